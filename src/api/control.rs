//! What a daemon can be asked: the trait the daemon implements, and the only door through which the command line, the
//! HTTP server and the tests reach it.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use tokio::sync::watch;

use super::error::ApiError;
use super::types::*;

/// The answer of a call, when it comes.
pub type Reply<'a, T> = Pin<Box<dyn Future<Output = Result<T, ApiError>> + Send + 'a>>;

/// Where a call tells how far it is.
pub type ProgressSink = Arc<dyn ProgressReport>;

/// Takes progress. Called from any thread, as often as the caller likes: implementations keep the newest report and must
/// not block.
pub trait ProgressReport: Send + Sync {
    fn report(&self, progress: Progress);
}

/// For callers that do not want to know.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoProgress;

impl ProgressReport for NoProgress {
    fn report(&self, _progress: Progress) {}
}

/// A running daemon. Calls may overlap. A call that was begun runs to its end even if who asked has gone away.
pub trait Control: Send + Sync {
    /// Answers once the first snapshot is published.
    fn share(&self, request: ShareRequest, progress: ProgressSink) -> Reply<'_, ShareResponse>;
    fn unshare(
        &self,
        request: UnshareRequest,
        progress: ProgressSink,
    ) -> Reply<'_, UnshareResponse>;
    /// Answers once what the directory holds is part of the folder; the rest of the folder is written into it afterwards.
    fn join(&self, request: JoinRequest, progress: ProgressSink) -> Reply<'_, JoinResponse>;
    /// Answers once what the directory holds is published.
    fn confirm(
        &self,
        request: ConfirmRequest,
        progress: ProgressSink,
    ) -> Reply<'_, ConfirmResponse>;
    fn conflicts(
        &self,
        request: ConflictsRequest,
        progress: ProgressSink,
    ) -> Reply<'_, ConflictsResponse>;
    /// Answers once it is published.
    fn resolve(
        &self,
        request: ResolveRequest,
        progress: ProgressSink,
    ) -> Reply<'_, ResolveResponse>;
    fn displaced(
        &self,
        request: DisplacedRequest,
        progress: ProgressSink,
    ) -> Reply<'_, DisplacedResponse>;
    /// Answers once the directory can be listed.
    fn mount(&self, request: MountRequest, progress: ProgressSink) -> Reply<'_, MountResponse>;
    /// Answers once everything written is durable and the mount is gone.
    fn unmount(
        &self,
        request: UnmountRequest,
        progress: ProgressSink,
    ) -> Reply<'_, UnmountResponse>;
    fn status(&self, request: StatusRequest, progress: ProgressSink) -> Reply<'_, StatusResponse>;
    fn peers(&self, request: PeersRequest, progress: ProgressSink) -> Reply<'_, PeersResponse>;
    /// Answers once the content is here.
    fn pin(&self, request: PinRequest, progress: ProgressSink) -> Reply<'_, PinResponse>;
    fn unpin(&self, request: UnpinRequest, progress: ProgressSink) -> Reply<'_, UnpinResponse>;
    fn evict(&self, request: EvictRequest, progress: ProgressSink) -> Reply<'_, EvictResponse>;
    fn keys(&self, request: KeysRequest, progress: ProgressSink) -> Reply<'_, KeysResponse>;
    /// The store as a whole. A gc answers once the space is given back.
    fn store(&self, request: StoreRequest, progress: ProgressSink) -> Reply<'_, StoreResponse>;
    /// Answers as the request says; going away does not end the download.
    fn download(
        &self,
        request: DownloadRequest,
        progress: ProgressSink,
    ) -> Reply<'_, DownloadResponse>;
    fn torrents(
        &self,
        request: TorrentsRequest,
        progress: ProgressSink,
    ) -> Reply<'_, TorrentsResponse>;
    fn torrent(
        &self,
        request: TorrentRequest,
        progress: ProgressSink,
    ) -> Reply<'_, TorrentResponse>;
    /// Publishes, unmounts and flushes; answers when all is down. Then [`Work::ended`] is true. May be called again.
    fn shutdown(
        &self,
        request: ShutdownRequest,
        progress: ProgressSink,
    ) -> Reply<'_, ShutdownResponse>;
    /// What the daemon is doing for its user now, and news of every change, whoever caused it (a `fusermount3 -u` too).
    fn work(&self) -> watch::Receiver<Work>;
}

/// The mounts and shares of a daemon.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Work {
    pub items: Vec<WorkItem>,
    /// The daemon has shut down; nothing will change any more.
    pub ended: bool,
}

/// One mount, one shared directory, or one torrent.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct WorkItem {
    pub kind: WorkKind,
    /// The mount point, the directory that is shared, or where the torrent's files go. Absolute.
    pub dir: ApiPath,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum WorkKind {
    Mount,
    Share,
    /// A torrent that is downloaded or seeded; `dir` is its output folder.
    Torrent,
}
