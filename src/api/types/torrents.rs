//! What is asked and told of torrents.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use super::{Amount, ApiPath};
pub use crate::engine::torrent::settings::{PieceOrder, Preallocation};

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
    /// What else is to be different for this torrent. A torrent that is here already keeps what it has for what is not named.
    #[serde(default)]
    pub settings: TorrentSettings,
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
    /// It waits until others are done.
    Queued,
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
    /// Seconds until all is here, at the rate of now; `None` while nothing comes.
    #[serde(default)]
    pub left_s: Option<u64>,
    /// Bytes per second.
    pub rate_down: u64,
    pub rate_up: u64,
    /// Payload bytes since the daemon started.
    pub bytes_down: u64,
    pub bytes_up: u64,
    /// Payload bytes that came and were of no use.
    pub bytes_wasted: u64,
    /// Taken from other torrents of this daemon, since it started.
    #[serde(default)]
    pub bytes_held: u64,
    pub peers: u32,
    pub seeds: u32,
    /// Web servers that are asked.
    #[serde(default)]
    pub web_seeds: u32,
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

/// What is different for one torrent; what is `None` is as the configuration says. Rates are bytes per second, 0 for no limit.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TorrentSettings {
    /// Of the torrent as a whole.
    pub limit_down: Option<u64>,
    pub limit_up: Option<u64>,
    /// Of each of its connections.
    pub peer_limit_down: Option<u64>,
    pub peer_limit_up: Option<u64>,
    /// Connections at once.
    pub peers_max: Option<u64>,
    /// Peers served at once for what they give.
    pub slots: Option<u64>,
    /// Stop seeding after this many bytes were sent for every hundred of the content; 0: never.
    pub seed_percent: Option<u64>,
    /// Stop seeding after this many minutes; 0: never.
    pub seed_minutes: Option<u64>,
    /// Which pieces are fetched first.
    pub order: Option<PieceOrder>,
    /// While everything is here, show each peer a few pieces at a time (BEP 16).
    pub super_seed: Option<bool>,
    pub preallocation: Option<Preallocation>,
    /// Active whatever the queue says.
    pub forced: Option<bool>,
}

/// `key` is that of a setting, `value` as a user writes it; empty for what the configuration says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TorrentSetting {
    pub key: String,
    pub value: String,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TorrentAction {
    #[default]
    Show,
    Files,
    Peers,
    Trackers,
    WebSeeds,
    Pause,
    Resume,
    /// Reads and hashes all content again.
    Recheck,
    /// Its files go to another folder, made if it is missing. Answers when they are there.
    Move {
        dir: ApiPath,
    },
    Set(Vec<TorrentSetting>),
    /// How much the files whose paths match are wanted: 0 not at all, 1 to 7, 4 is usual.
    Priority {
        pattern: String,
        priority: u8,
    },
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
    /// In the answer to `trackers`.
    #[serde(default)]
    pub trackers: Vec<TorrentTracker>,
    /// In the answer to `web_seeds`.
    #[serde(default)]
    pub web_seeds: Vec<TorrentWebSeed>,
    /// What is different for this torrent.
    #[serde(default)]
    pub settings: TorrentSettings,
}

/// A web server with the content (BEP 19).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TorrentWebSeed {
    /// Without user name and password.
    pub url: String,
    /// It is asked for content at present.
    pub active: bool,
    /// It is not asked any more, whatever happens.
    pub off: bool,
    /// Why.
    pub trouble: Option<String>,
    pub rate_down: u64,
    pub bytes_down: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TorrentTracker {
    pub url: String,
    /// The info-hash it is asked about; a hybrid torrent has two.
    pub hash: String,
    /// Those of one tier stand in for each other; the first is 0.
    pub tier: u32,
    /// Seconds since it was asked last; `None`: never.
    pub asked_s: Option<u64>,
    /// Seconds until it is asked again; `None`: when others of its tier fail.
    pub next_s: Option<u64>,
    /// Peers it named when it answered last.
    pub peers: Option<u32>,
    /// Peers that have everything, and those that do not, as it counts.
    pub seeds: Option<u32>,
    pub leechers: Option<u32>,
    /// What it wants the user to know, or why it refuses.
    pub message: Option<String>,
    /// Why asking it last came to nothing, if it did.
    pub error: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TorrentFile {
    /// Below the output folder.
    pub path: ApiPath,
    pub bytes: u64,
    pub wanted: bool,
    /// 0 to 7; 4 is usual.
    #[serde(default)]
    pub priority: u8,
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
