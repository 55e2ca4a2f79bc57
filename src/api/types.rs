//! The requests and answers of the API, as they travel in JSON.
//!
//! Sizes are bytes, ages and durations seconds, counts plain numbers. Fields are only ever added, with a default, while
//! the path says `/v1`. Every request is a `POST /v1/<name>`; paths in requests are absolute.

mod conflicts;
mod home;
mod torrents;

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

pub use self::conflicts::*;
pub use self::home::*;
pub use self::torrents::*;
pub use super::path::ApiPath;

/// A request with its name on the wire and the answer it gets.
pub trait Request: Serialize + DeserializeOwned + Send + 'static {
    type Response: Serialize + DeserializeOwned + Send + 'static;
    const NAME: &'static str;
}

macro_rules! requests {
    ($($name:literal: $request:ident => $response:ident),* $(,)?) => {
        $(impl Request for $request {
            type Response = $response;
            const NAME: &'static str = $name;
        })*

        /// Of all requests.
        #[cfg(test)]
        pub(super) const NAMES: &[&str] = &[$($name),*];
    };
}

requests! {
    "share": ShareRequest => ShareResponse,
    "unshare": UnshareRequest => UnshareResponse,
    "join": JoinRequest => JoinResponse,
    "confirm": ConfirmRequest => ConfirmResponse,
    "conflicts": ConflictsRequest => ConflictsResponse,
    "resolve": ResolveRequest => ResolveResponse,
    "displaced": DisplacedRequest => DisplacedResponse,
    "mount": MountRequest => MountResponse,
    "unmount": UnmountRequest => UnmountResponse,
    "status": StatusRequest => StatusResponse,
    "peers": PeersRequest => PeersResponse,
    "pin": PinRequest => PinResponse,
    "unpin": UnpinRequest => UnpinResponse,
    "evict": EvictRequest => EvictResponse,
    "keys": KeysRequest => KeysResponse,
    "store": StoreRequest => StoreResponse,
    "download": DownloadRequest => DownloadResponse,
    "torrents": TorrentsRequest => TorrentsResponse,
    "torrent": TorrentRequest => TorrentResponse,
    "shutdown": ShutdownRequest => ShutdownResponse,
}

/// A link or a key. `Debug` hides it and there is no `Display`, so it cannot slip into a log, a span or an error.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Secret(String);

impl Secret {
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The text itself. Only for the place that parses it and the one that prints it because the user asked.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(secret)")
    }
}

/// What the holder of a link or key may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Right {
    Read,
    Write,
    Owner,
}

/// How far a call is. A total of `None` is not known yet.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Progress {
    pub files_done: u64,
    pub files_total: Option<u64>,
    pub bytes_done: u64,
    pub bytes_total: Option<u64>,
    /// What is being done, a few words: `indexing`, `waiting for peers`.
    pub note: String,
}

/// A number of files and their bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Amount {
    pub files: u64,
    pub bytes: u64,
}

impl Amount {
    pub(crate) fn add(&mut self, other: Self) {
        self.files += other.files;
        self.bytes += other.bytes;
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ShareRequest {
    /// A plain directory, or one that is mounted from a directory.
    pub dir: ApiPath,
    /// What the folder is called; the last part of `dir` if `None`.
    #[serde(default)]
    pub name: Option<String>,
    /// Peers of the folder to try first, beside those in the configuration.
    #[serde(default)]
    pub peers: Vec<SocketAddr>,
    /// What names the chunks of a folder that does not exist yet; BLAKE3 if `None`.
    #[serde(default)]
    pub suite: Option<HashSuite>,
}

/// A hash suite as users name it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum HashSuite {
    /// Keyed BLAKE3, as other Xet software has it
    Blake3,
    /// HMAC-SHA-256
    Sha256,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShareResponse {
    /// Folder id, 64 hex digits.
    pub folder: String,
    pub name: String,
    pub read_write: Secret,
    pub read_only: Secret,
    pub content: Amount,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UnshareRequest {
    pub dir: ApiPath,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnshareResponse {
    pub folder: String,
    pub name: String,
}

/// Of `join`: a plain directory is to hold a folder of others, in step with it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JoinRequest {
    /// A read-write link.
    pub link: Secret,
    pub dir: ApiPath,
    /// What only the directory has goes to the folder; without it, there may be no such thing.
    pub merge: bool,
    /// Only say what would happen.
    pub dry_run: bool,
    /// Where to look for members.
    pub peers: Vec<SocketAddr>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinResponse {
    pub folder: String,
    pub name: String,
    pub dir: ApiPath,
    /// Files that are in both with the same content.
    pub same: u64,
    /// Names that stand for something else in the folder: both are kept, side by side. The first of them by name.
    pub different: u64,
    pub different_paths: Vec<ApiPath>,
    /// What only the directory has, and the first of it by name.
    pub local_only: u64,
    pub local_only_paths: Vec<ApiPath>,
    /// What is to be written into the directory.
    pub missing: Amount,
    /// It was only asked what would happen.
    pub dry_run: bool,
}

/// Of `confirm`: what a directory holds now is what its user wants it to hold.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConfirmRequest {
    /// A directory that is shared.
    pub dir: ApiPath,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfirmResponse {
    pub folder: String,
    pub name: String,
    /// Why nothing was published until now; `None` if nothing was held back.
    pub held_back: Option<String>,
    /// What the directory holds, published now.
    pub content: Amount,
}

/// What is to be mounted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MountSource {
    /// A directory: one that is shared or mounted already (mounted a second time), or a new folder.
    Dir(ApiPath),
    /// `ccbt:…`, `magnet:…` or `xet:…`, not yet parsed.
    Link(Secret),
    /// A `.torrent` file.
    Torrent(ApiPath),
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MountRequest {
    pub source: MountSource,
    /// The mount point. Equal to the source directory: mounted over itself.
    pub dir: ApiPath,
    #[serde(default)]
    pub read_only: bool,
    /// Make the whole content local, and keep it so.
    #[serde(default)]
    pub offline: bool,
    /// Mount again when the daemon starts.
    #[serde(default)]
    pub persist: bool,
    /// Honour set-id bits (mounts are `nosuid` otherwise).
    #[serde(default)]
    pub suid: bool,
    /// Honour device files (mounts are `nodev` otherwise).
    #[serde(default)]
    pub dev: bool,
    /// Peers of the folder to try first, beside those in the link and the configuration.
    #[serde(default)]
    pub peers: Vec<SocketAddr>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountResponse {
    pub folder: String,
    pub name: String,
    pub dir: ApiPath,
    pub read_only: bool,
    /// `None` while the listing is still on its way.
    pub content: Option<Amount>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UnmountRequest {
    pub dir: ApiPath,
    /// End it now even if files are open: whoever has them open gets errors.
    #[serde(default)]
    pub force: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnmountResponse {
    /// The folder or torrent that was shown; `None` if only a dead mount was left.
    pub folder: Option<String>,
    pub dir: ApiPath,
    /// Of a shared folder: what no keeper has, after waiting for it.
    #[serde(default)]
    pub only_here: Amount,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StatusRequest {}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StatusResponse {
    pub daemon: DaemonStatus,
    pub folders: Vec<FolderStatus>,
    /// Folders that should be open, or mounted, and cannot be yet; the daemon goes on trying.
    pub unopened: Vec<UnopenedStatus>,
    /// Calls that are being worked on.
    pub jobs: Vec<JobStatus>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnopenedStatus {
    pub name: String,
    /// The folder is open, and this mount of it did not come back.
    #[serde(default)]
    pub mount: Option<ApiPath>,
    pub error: String,
    /// What can be done about it.
    pub hint: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DaemonStatus {
    pub pid: u32,
    pub version: String,
    pub state: ApiPath,
    pub uptime_s: u64,
    /// Where peers can connect; `None` while nothing is shared.
    pub listen: Option<SocketAddr>,
    /// Nodes in the routing table; `None` when the DHT is off.
    pub dht_nodes: Option<u32>,
    /// `None` while the router is not asked for anything.
    #[serde(default)]
    pub portmap: Option<PortmapEntry>,
    /// By the names of `telemetry::metrics`.
    pub metrics: BTreeMap<String, u64>,
}

/// What the router lets in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortmapEntry {
    /// `PCP`, `NAT-PMP` or `UPnP`.
    pub method: Option<String>,
    /// Our address as the router tells it.
    pub external_ip: Option<IpAddr>,
    pub ports: Vec<MappedPort>,
    /// Why there is no mapping.
    pub trouble: Option<String>,
}

/// A port of ours that the router leads others to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MappedPort {
    /// `TCP` or `UDP`.
    pub protocol: String,
    pub port: u16,
    /// The router's port.
    pub external: u16,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FolderStatus {
    /// Folder id, 64 hex digits.
    pub id: String,
    pub name: String,
    pub right: Right,
    /// The plain directory that holds the folder here, if any.
    pub home: Option<ApiPath>,
    /// Open to peers. A folder that is only mounted from a directory is not.
    pub shared: bool,
    pub mounts: Vec<MountStatus>,
    pub content: Amount,
    /// Connected now.
    pub peers: u32,
    pub heads: Vec<HeadStatus>,
    /// First digits of the root of the tree shown here.
    pub root: String,
    /// How many devices are known to show the same root.
    pub converged_with: u32,
    /// Content no other device is known to hold.
    pub only_here: Amount,
    /// Content that is not on this device.
    pub missing: Amount,
    /// Kept whole on this device.
    pub pinned: bool,
    /// The newest snapshot published from here, if there is one.
    pub published: Option<PublishedStatus>,
    /// Files with changes that are not published yet.
    pub dirty_files: u64,
    /// Why nothing of the directory is published until `confirm`, or until it is back.
    #[serde(default)]
    pub held_back: Option<String>,
    /// What is in the way of publishing or receiving at present, as a sentence.
    pub waiting: Option<String>,
    /// How the plain directory stands, if there is one and it is open.
    #[serde(default)]
    pub directory: Option<HomeStatus>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountStatus {
    pub dir: ApiPath,
    pub read_only: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeadStatus {
    /// Name of the device, or its key's first digits.
    pub device: String,
    pub age_s: u64,
    /// First digits of the snapshot.
    pub snapshot: String,
    /// No known head is newer than this one.
    pub newest: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PublishedStatus {
    pub snapshot: String,
    pub age_s: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobStatus {
    /// The call and what it is about: `share /home/a/photos`.
    pub what: String,
    pub progress: Progress,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PeersRequest {
    /// Only of this folder: its id, its name, or a directory of it.
    #[serde(default)]
    pub folder: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeersResponse {
    pub peers: Vec<PeerStatus>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerStatus {
    /// Folder id, 64 hex digits.
    pub folder: String,
    pub folder_name: String,
    /// Name of the device, or its key's first digits. `None` before it has proven itself.
    pub device: Option<String>,
    pub addr: SocketAddr,
    pub right: Option<Right>,
    /// They connected to us.
    pub incoming: bool,
    pub connected_s: u64,
    pub bytes_in: u64,
    pub bytes_out: u64,
    /// Shows the same root as we do.
    pub converged: bool,
}

/// Of `pin`, `unpin` and `evict`: a file or directory in a mounted or shared folder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PinRequest {
    pub path: ApiPath,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PinResponse {
    /// What is now kept on this device.
    pub kept: Amount,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UnpinRequest {
    pub path: ApiPath,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnpinResponse {
    /// What may now be dropped when space is needed.
    pub released: Amount,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EvictRequest {
    pub path: ApiPath,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EvictResponse {
    pub freed: Amount,
    /// Left in place because no other device is known to hold it.
    pub only_here: Amount,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeysRequest {
    #[serde(default)]
    pub action: KeysAction,
    /// Only of this folder: its id, its name, or a directory of it.
    #[serde(default)]
    pub folder: Option<String>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KeysAction {
    /// The links that can be handed out.
    #[default]
    Show,
    /// The owner keys too: whoever has one owns the folder.
    Backup,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeysResponse {
    pub device_name: String,
    /// Public key of this installation, 64 hex digits.
    pub device_key: String,
    pub folders: Vec<FolderKeys>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FolderKeys {
    pub id: String,
    pub name: String,
    pub right: Right,
    pub read_write: Option<Secret>,
    pub read_only: Option<Secret>,
    /// Only in the answer to `backup`, and only for the owner.
    pub owner: Option<Secret>,
}

/// Of `xet stats`, `verify` and `gc`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StoreRequest {
    pub action: StoreAction,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StoreAction {
    Stats,
    /// Reads and hashes everything.
    Verify {
        /// Gets what is damaged from plain files and peers.
        repair: bool,
    },
    /// Drops chunks that no folder needs.
    Gc {
        /// Only says what would be dropped.
        dry_run: bool,
    },
}

/// The answer to the action of the same name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StoreResponse {
    Stats(StoreStatsResponse),
    Verify(VerifyResponse),
    Gc(GcResponse),
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoreStatsResponse {
    /// Chunks in packs.
    pub chunks: u64,
    /// Their bytes: after deduplication, before compression.
    pub chunk_bytes: u64,
    pub nodes: u64,
    pub packs: u64,
    /// Of all records in packs, after compression.
    pub packed_bytes: u64,
    /// Ranges of plain files that count as chunks.
    pub borrowed: u64,
    pub borrowed_bytes: u64,
    /// Damaged records met since the store was opened.
    pub quarantined: u64,
    pub memory_bytes: u64,
    /// Of every folder, before deduplication. `None` if one of them cannot be opened.
    pub content: Option<Amount>,
    /// Of these the files that are here whole: what `chunk_bytes` and `borrowed_bytes` hold once.
    pub here: Option<Amount>,
    /// Content no other device is known to hold. `None` without a daemon.
    pub only_here: Option<Amount>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VerifyResponse {
    /// Chunks and nodes that were read.
    pub records: u64,
    /// Their bytes on disk.
    pub bytes: u64,
    pub damaged: u64,
    /// How many of the damaged are here again.
    pub repaired: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GcResponse {
    pub dry_run: bool,
    /// Chunks and nodes that are, or would be, dropped.
    pub dropped: u64,
    pub dropped_bytes: u64,
    /// By how much the packs get shorter now. The rest follows when more of a pack is dead.
    pub freed_bytes: u64,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ShutdownRequest {}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShutdownResponse {
    /// The mounts that were taken down.
    pub unmounted: Vec<ApiPath>,
    /// Of shared folders: what no keeper has, after waiting for it.
    #[serde(default)]
    pub only_here: Amount,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_do_not_show_in_debug_output() {
        let request = MountRequest {
            source: MountSource::Link(Secret::new("ccbt:wsecretsecret")),
            dir: ApiPath("/m".into()),
            read_only: false,
            offline: false,
            persist: false,
            suid: false,
            dev: false,
            peers: Vec::new(),
        };
        assert!(!format!("{request:?}").contains("secretsecret"));
        let json = serde_json::to_string(&request).unwrap();
        assert!(
            json.contains(r#""source":{"link":"ccbt:wsecretsecret"}"#),
            "{json}"
        );
    }

    #[test]
    fn optional_fields_may_be_left_out_and_unknown_ones_are_refused() {
        let request: MountRequest =
            serde_json::from_str(r#"{"source":{"dir":"/a"},"dir":"/a"}"#).unwrap();
        assert_eq!(request.source, MountSource::Dir(ApiPath("/a".into())));
        assert!(!request.persist);
        assert!(serde_json::from_str::<UnshareRequest>(r#"{"dir":"/a","dri":1}"#).is_err());
    }
}
