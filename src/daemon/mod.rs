//! The daemon: every folder and mount of one state directory, behind [`Control`].
//!
//! - `record`: what is remembered of a folder over restarts.
//! - `open`: from a record to a running folder: store, working tree, actor, home.
//! - `share`, `mounts`, `status`, `keep`: the calls of the API, one file per family.
//! - `conflicts`: names that more than one thing wants.
//! - `displaced`: what edits by others replaced in plain directories.
//! - `handover`: what is only here, when the daemon or a mount is to go.
//! - `seen`: members met in earlier runs.
//! - `stores`: the chunk stores, one for each hash suite; `store`: all of them as a whole, also without a daemon;
//!   `upkeep`: what is done for them while nobody asks; `repair`: getting back what is damaged.
//! - `quota`: what is dropped when the store has grown too large.
//! - `torrents`: downloads and seeds.
//! - `network`: the route to peers, and whom to avoid. `portmap`: the router that lets them in.
//! - `place`: which directories may be shared or mounted on.
//!
//! The daemon owns two tables, open folders and mounts. A call that changes them holds `turn`, so that two commands
//! about one directory come one after the other; calls that only look take the tables' locks for a moment.

mod conflicts;
mod discover;
mod displaced;
pub(crate) mod fuzzing;
mod handover;
mod join;
mod keep;
mod mounts;
mod network;
mod open;
mod place;
mod portmap;
mod quota;
mod record;
mod repair;
mod resume;
mod seen;
mod share;
mod status;
mod store;
mod stores;
mod torrents;
mod upkeep;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU64, AtomicUsize, Ordering};

use ccbt_mount::Mount;
use parking_lot::Mutex;
use rustix::process::{Resource, getrlimit, setrlimit};
use tokio::sync::watch;

use self::open::{OpenFolder, blocking};
use self::seen::Seen;
pub use self::store::store_offline;
use self::stores::Stores;
use self::torrents::OpenTorrent;
use crate::api::types::*;
use crate::api::{ApiError, Control, ErrorKind, ProgressSink, Reply, Work, WorkItem, WorkKind};
use crate::clock::Elapsed;
use crate::config::{Config, StateDir};
use crate::engine::discovery::Discovery;
use crate::engine::gate::Gate;
use crate::engine::portmap::Portmap;
use crate::engine::torrent;
use crate::random;
use crate::share::{DeviceKey, DeviceName, FolderId};
use crate::state_file;
use crate::telemetry::Metrics;

const DEVICE_KEY_FILE: &str = "device.key";

/// A running daemon. Cheap to clone.
#[derive(Clone)]
pub struct Daemon(Arc<Inner>);

struct Inner {
    config: Arc<Config>,
    state: StateDir,
    clock: Elapsed,
    stores: Stores,
    seen: Arc<Seen>,
    device: Arc<DeviceKey>,
    device_name: DeviceName,
    gate: Gate,
    metrics: Arc<Metrics>,
    /// Set once the first folder goes online.
    listening: Mutex<Option<SocketAddr>>,
    torrents: Mutex<BTreeMap<String, Arc<OpenTorrent>>>,
    torrent_shared: torrent::Shared,
    folders: Mutex<BTreeMap<FolderId, Arc<OpenFolder>>>,
    /// What should be open and cannot be yet, by the directory of its record.
    unopened: Mutex<BTreeMap<PathBuf, UnopenedStatus>>,
    mounts: Mutex<BTreeMap<PathBuf, Mounted>>,
    /// One change of the tables at a time.
    turn: Arc<tokio::sync::Mutex<()>>,
    /// What is damaged in the stores and not here again; one tries to get it back at a time.
    lost: Mutex<repair::Lost>,
    repairing: tokio::sync::Mutex<()>,
    /// Calls that wait for the garbage collection of the background to make way.
    waiting_for_gc: AtomicUsize,
    jobs: Mutex<BTreeMap<u64, JobStatus>>,
    /// Runs once a folder is online.
    discovery: Mutex<Option<Discovery>>,
    /// The same, if the router is to let peers in.
    portmap: Mutex<Option<Portmap>>,
    next_number: AtomicU64,
    /// The daemon is on its way down.
    stopping: AtomicBool,
    next_space: AtomicU16,
    work: watch::Sender<Work>,
}

/// What a mount shows.
#[derive(Debug, Clone, PartialEq, Eq)]
enum MountOf {
    Folder(FolderId),
    /// By the name in the table of torrents.
    Torrent(String),
}

struct Mounted {
    of: MountOf,
    read_only: bool,
    persist: bool,
    /// Tells this mount from a later one at the same place.
    number: u64,
    mount: Mount,
}

/// Starts the daemon of a state directory that the caller has locked: opens the store and every folder that was shared
/// or mounted to stay.
pub async fn start(config: Arc<Config>, state: StateDir) -> Result<Arc<dyn Control>, ApiError> {
    let path = state.path().to_path_buf();
    let device = Arc::new(device_key(&path)?);
    let seen = Seen::start(&path).map_err(|error| ApiError::io("cannot start threads", &error))?;
    let cache_bytes = usize::try_from(config.read_cache_bytes).unwrap_or(usize::MAX);
    let (state, stores) = blocking(move || {
        let stores = Stores::open(&state, cache_bytes)?;
        Ok((state, stores))
    })
    .await?;
    let torrent_shared = torrents::shared(&config)?;
    let (work, _) = watch::channel(Work::default());
    let metrics = Arc::new(Metrics::default());
    raise_descriptor_limit();
    let network = network::prepare(&config)?;
    let daemon = Daemon(Arc::new(Inner {
        config,
        state,
        clock: Elapsed::start(),
        stores,
        seen: Arc::new(seen),
        device,
        device_name: device_name(),
        gate: Gate::new(network, Arc::clone(&metrics)),
        metrics,
        listening: Mutex::new(None),
        torrents: Mutex::default(),
        torrent_shared,
        folders: Mutex::default(),
        unopened: Mutex::default(),
        mounts: Mutex::default(),
        turn: Arc::default(),
        lost: Mutex::default(),
        repairing: tokio::sync::Mutex::default(),
        waiting_for_gc: AtomicUsize::new(0),
        jobs: Mutex::default(),
        discovery: Mutex::default(),
        portmap: Mutex::default(),
        next_number: AtomicU64::new(0),
        stopping: AtomicBool::new(false),
        next_space: AtomicU16::new(0),
        work,
    }));
    daemon.resume().await?;
    daemon.resume_torrents().await;
    daemon.announce_work();
    daemon.start_upkeep();
    daemon.start_quota();
    daemon.start_torrent_upkeep();
    Ok(Arc::new(daemon))
}

/// Every peer, mount and open file takes a descriptor; the usual soft limit of 1,024 is for programs that use `select`.
fn raise_descriptor_limit() {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    if let Err(error) = setrlimit(Resource::Nofile, limit) {
        tracing::warn!(%error, "the limit of open files stays as it is");
    }
}

/// This installation's key; made at the first start.
fn device_key(state: &std::path::Path) -> Result<DeviceKey, ApiError> {
    let path = state.join(DEVICE_KEY_FILE);
    match std::fs::read(&path) {
        Ok(bytes) => {
            let bytes = <[u8; 32]>::try_from(bytes).map_err(|_| {
                let what = format!("the device key {} is damaged", path.display());
                ApiError::new(ErrorKind::Io, what).hint(
                    "restore it from a backup, or remove it: this device then counts as a new one",
                )
            })?;
            Ok(DeviceKey::from_bytes(bytes))
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let key = DeviceKey::generate(&mut random::fill);
            state_file::replace(&path, key.expose())
                .map_err(|e| ApiError::io(format_args!("cannot write {}", path.display()), &e))?;
            Ok(key)
        }
        Err(error) => Err(ApiError::io(
            format_args!("cannot read {}", path.display()),
            &error,
        )),
    }
}

/// The host's name as far as it fits a certificate.
fn device_name() -> DeviceName {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let plain: String = host
        .trim()
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() { c } else { '-' })
        .take(16)
        .collect();
    plain
        .parse()
        .or_else(|_| "device".parse())
        .expect("`device` is a device name")
}

impl Daemon {
    fn folder(&self, id: &FolderId) -> Option<Arc<OpenFolder>> {
        self.0.folders.lock().get(id).cloned()
    }

    /// Listens for peers, once.
    fn listen(&self) -> Result<SocketAddr, ApiError> {
        let mut listening = self.0.listening.lock();
        if let Some(addr) = *listening {
            return Ok(addr);
        }
        let wanted = self.0.config.listen;
        let addr = self.0.gate.listen(wanted).map_err(|error| {
            ApiError::io(format_args!("cannot listen on {wanted}"), &error)
                .hint("choose another address with --listen IP:PORT")
        })?;
        tracing::info!(%addr, "listening for peers");
        *listening = Some(addr);
        drop(listening);
        self.map_ports(addr);
        Ok(addr)
    }

    /// Tells whoever watches what the daemon is doing for its user now.
    fn announce_work(&self) {
        let mounts = self.0.mounts.lock();
        let mut items: Vec<WorkItem> = mounts
            .keys()
            .map(|dir| WorkItem {
                kind: WorkKind::Mount,
                dir: ApiPath(dir.clone()),
            })
            .collect();
        drop(mounts);
        for folder in self.0.folders.lock().values() {
            let record = folder.record.lock();
            if let (true, Some(dir)) = (record.shared, &record.home) {
                items.push(WorkItem {
                    kind: WorkKind::Share,
                    dir: dir.clone(),
                });
            }
        }
        let torrents = self.0.torrents.lock();
        let own = torrents.values().filter(|open| !open.is_lazy());
        items.extend(own.map(|open| WorkItem {
            kind: WorkKind::Torrent,
            dir: open.dir(),
        }));
        drop(torrents);
        items.sort();
        self.0.work.send_if_modified(|work| {
            let news = work.items != items;
            work.items = items;
            news
        });
    }

    /// Runs `call` to its end, listed in `status` meanwhile, even if who asked goes away.
    fn job<T: Send + 'static>(
        &self,
        what: String,
        progress: ProgressSink,
        call: impl FnOnce(Self, ProgressSink) -> BoxedCall<T> + Send + 'static,
    ) -> Reply<'static, T> {
        let daemon = self.clone();
        Box::pin(async move {
            let id = daemon.0.next_number.fetch_add(1, Ordering::Relaxed);
            let status = JobStatus {
                what,
                progress: Progress::default(),
            };
            daemon.0.jobs.lock().insert(id, status);
            let listed = Arc::new(Listed {
                daemon: daemon.clone(),
                id,
                inner: progress,
            });
            let task = tokio::spawn(call(daemon, listed));
            task.await
                .unwrap_or_else(|error| Err(ApiError::new(ErrorKind::Internal, error)))
        })
    }
}

type BoxedCall<T> = std::pin::Pin<Box<dyn Future<Output = Result<T, ApiError>> + Send + 'static>>;

/// A job's progress, shown to who asked and in `status`; the entry ends with it.
struct Listed {
    daemon: Daemon,
    id: u64,
    inner: ProgressSink,
}

impl crate::api::ProgressReport for Listed {
    fn report(&self, progress: Progress) {
        if let Some(job) = self.daemon.0.jobs.lock().get_mut(&self.id) {
            job.progress = progress.clone();
        }
        self.inner.report(progress);
    }
}

impl Drop for Listed {
    fn drop(&mut self) {
        self.daemon.0.jobs.lock().remove(&self.id);
    }
}

impl Control for Daemon {
    fn share(&self, request: ShareRequest, progress: ProgressSink) -> Reply<'_, ShareResponse> {
        let what = format!("share {}", request.dir);
        self.job(what, progress, |d, p| {
            Box::pin(async move { d.share_dir(request, p).await })
        })
    }

    fn unshare(
        &self,
        request: UnshareRequest,
        progress: ProgressSink,
    ) -> Reply<'_, UnshareResponse> {
        let what = format!("unshare {}", request.dir);
        self.job(what, progress, |d, _| {
            Box::pin(async move { d.unshare_dir(request).await })
        })
    }

    fn join(&self, request: JoinRequest, progress: ProgressSink) -> Reply<'_, JoinResponse> {
        let what = format!("join {}", request.dir);
        self.job(what, progress, |d, p| {
            Box::pin(async move { d.join_dir(request, p).await })
        })
    }

    fn confirm(
        &self,
        request: ConfirmRequest,
        progress: ProgressSink,
    ) -> Reply<'_, ConfirmResponse> {
        let what = format!("confirm {}", request.dir);
        self.job(what, progress, |d, p| {
            Box::pin(async move { d.confirm_dir(request, p).await })
        })
    }

    fn conflicts(
        &self,
        request: ConflictsRequest,
        _: ProgressSink,
    ) -> Reply<'_, ConflictsResponse> {
        Box::pin(self.list_conflicts(request))
    }

    fn resolve(
        &self,
        request: ResolveRequest,
        progress: ProgressSink,
    ) -> Reply<'_, ResolveResponse> {
        let what = format!("resolve {}", request.path);
        self.job(what, progress, |d, _| {
            Box::pin(async move { d.resolve_conflict(request).await })
        })
    }

    fn displaced(
        &self,
        request: DisplacedRequest,
        progress: ProgressSink,
    ) -> Reply<'_, DisplacedResponse> {
        self.job("displaced".to_owned(), progress, |d, _| {
            Box::pin(async move { d.displaced_call(request).await })
        })
    }

    fn mount(&self, request: MountRequest, progress: ProgressSink) -> Reply<'_, MountResponse> {
        let what = format!("mount {}", request.dir);
        self.job(what, progress, |d, p| {
            Box::pin(async move { d.mount_source(request, p).await })
        })
    }

    fn unmount(
        &self,
        request: UnmountRequest,
        progress: ProgressSink,
    ) -> Reply<'_, UnmountResponse> {
        let what = format!("unmount {}", request.dir);
        self.job(what, progress, |d, p| {
            Box::pin(async move { d.unmount_dir(request, p).await })
        })
    }

    fn status(&self, _: StatusRequest, _: ProgressSink) -> Reply<'_, StatusResponse> {
        Box::pin(self.report_status())
    }

    fn peers(&self, request: PeersRequest, _: ProgressSink) -> Reply<'_, PeersResponse> {
        Box::pin(self.report_peers(request))
    }

    fn pin(&self, request: PinRequest, progress: ProgressSink) -> Reply<'_, PinResponse> {
        let what = format!("pin {}", request.path);
        self.job(what, progress, |d, p| {
            Box::pin(async move { d.pin_path(request, p).await })
        })
    }

    fn unpin(&self, request: UnpinRequest, _: ProgressSink) -> Reply<'_, UnpinResponse> {
        Box::pin(self.unpin_path(request))
    }

    fn evict(&self, request: EvictRequest, _: ProgressSink) -> Reply<'_, EvictResponse> {
        Box::pin(self.evict_path(request))
    }

    fn keys(&self, request: KeysRequest, _: ProgressSink) -> Reply<'_, KeysResponse> {
        Box::pin(async move { self.report_keys(&request) })
    }

    fn store(&self, request: StoreRequest, progress: ProgressSink) -> Reply<'_, StoreResponse> {
        let what = match request.action {
            StoreAction::Stats => "stats",
            StoreAction::Verify { .. } => "verify",
            StoreAction::Gc { .. } => "gc",
        };
        self.job(format!("xet {what}"), progress, |d, p| {
            Box::pin(async move { d.store_call(request, p).await })
        })
    }

    fn download(
        &self,
        request: DownloadRequest,
        progress: ProgressSink,
    ) -> Reply<'_, DownloadResponse> {
        let what = format!("download to {}", request.dir);
        self.job(what, progress, |d, p| {
            Box::pin(async move { d.download_torrent(request, p).await })
        })
    }

    fn torrents(&self, _: TorrentsRequest, _: ProgressSink) -> Reply<'_, TorrentsResponse> {
        let torrents = self.list_torrents();
        Box::pin(async move { Ok(TorrentsResponse { torrents }) })
    }

    fn torrent(&self, request: TorrentRequest, _: ProgressSink) -> Reply<'_, TorrentResponse> {
        Box::pin(self.torrent_call(request))
    }

    fn shutdown(&self, _: ShutdownRequest, progress: ProgressSink) -> Reply<'_, ShutdownResponse> {
        self.job("shutdown".to_owned(), progress, |d, p| {
            Box::pin(async move { d.stop(p).await })
        })
    }

    fn work(&self) -> watch::Receiver<Work> {
        self.0.work.subscribe()
    }
}
