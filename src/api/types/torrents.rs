//! What is asked and told of torrents.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use super::{Amount, ApiPath};

/// Where a torrent comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TorrentSource {
    /// A `.torrent` file.
    File(ApiPath),
    Magnet(String),
}

/// When a download is to answer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TorrentUntil {
    /// It has begun.
    Started,
    /// All that is wanted is here and can be read.
    #[default]
    Finished,
    /// The seed ratio is reached too.
    Seeded,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DownloadRequest {
    pub source: TorrentSource,
    /// The output folder; made if it is missing.
    pub dir: ApiPath,
    /// Only files whose paths match one of these patterns.
    #[serde(default)]
    pub select: Vec<String>,
    /// Fetch pieces in order.
    #[serde(default)]
    pub sequential: bool,
    /// Seeding counts as done after this many bytes were sent for every hundred of the content.
    #[serde(default)]
    pub seed_percent: Option<u64>,
    /// Peers to try first, beside those in the magnet and the configuration.
    #[serde(default)]
    pub peers: Vec<SocketAddr>,
    #[serde(default)]
    pub until: TorrentUntil,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DownloadResponse {
    pub torrent: TorrentEntry,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TorrentsRequest {}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TorrentsResponse {
    pub torrents: Vec<TorrentEntry>,
}

/// What a torrent is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TorrentState {
    Metadata,
    Checking,
    Downloading,
    Seeding,
    Paused,
    Stopped,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TorrentEntry {
    /// 40 hex digits: the v1 info-hash, or the first of the v2 one.
    pub hash: String,
    pub name: String,
    pub state: TorrentState,
    /// What is going on, or why nothing is, in a few words.
    pub note: String,
    /// The output folder.
    pub dir: ApiPath,
    /// Wanted files and their bytes; `None` while the metadata is missing.
    pub content: Option<Amount>,
    pub bytes_done: u64,
    /// Bytes per second.
    pub rate_down: u64,
    pub rate_up: u64,
    /// Payload bytes since the daemon started.
    pub bytes_down: u64,
    pub bytes_up: u64,
    /// Payload bytes that came and were of no use.
    pub bytes_wasted: u64,
    pub peers: u32,
    pub seeds: u32,
}

/// Of `torrent`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TorrentRequest {
    /// Its hash or the beginning of it, or its name.
    pub torrent: String,
    #[serde(default)]
    pub action: TorrentAction,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TorrentAction {
    #[default]
    Show,
    Files,
    Peers,
    Pause,
    Resume,
    /// Reads and hashes all content again.
    Recheck,
    /// Forgets the torrent; its files stay.
    Remove,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TorrentResponse {
    pub torrent: TorrentEntry,
    /// In the answer to `files`.
    pub files: Vec<TorrentFile>,
    /// In the answer to `peers`.
    pub peers: Vec<TorrentPeerEntry>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TorrentFile {
    /// Below the output folder.
    pub path: ApiPath,
    pub bytes: u64,
    pub wanted: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TorrentPeerEntry {
    pub addr: SocketAddr,
    /// They connected to us.
    pub incoming: bool,
    /// Name and version of its program.
    pub client: Option<String>,
    /// Pieces it has.
    pub pieces: u32,
    pub rate_down: u64,
    pub rate_up: u64,
    pub bytes_down: u64,
    pub bytes_up: u64,
    /// Blocks it has been asked for.
    pub asked: u32,
    /// It lets us ask.
    pub unchoked: bool,
    /// We let it ask.
    pub served: bool,
}
