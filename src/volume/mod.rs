//! What can be mounted: folders and torrents as a [`ccbt_mount::Volume`]. Glue only: no formats, no state but handles.

mod folder;
mod torrent;

pub use folder::FolderVolume;
pub use torrent::TorrentVolume;
