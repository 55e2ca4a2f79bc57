//! What can be mounted: folders as a [`ccbt_mount::Volume`]. Glue only: no formats, no state but handles.

mod folder;

pub use folder::FolderVolume;
