//! From a record to a running folder: working tree, actor, home; and back.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use ccbt_xet::disk::RealDisk;
use ccbt_xet::hash::NodeId;
use ccbt_xet::store::{Store, WriteError};
use parking_lot::{Mutex, RwLock};
use tracing::Span;

use super::Daemon;
use super::place;
use super::quota::Fetcher;
use super::record::{self, FolderRecord, RecordError};
use super::stores::Stores;
use crate::api::types::{Amount, Progress, Right as ApiRight};
use crate::api::{ApiError, ErrorKind, ProgressSink};
use crate::clock;
use crate::config::StateDir;
use crate::engine::gate::Door;
use crate::engine::swarm::{self, Elsewhere, Names, SwarmConfig, SwarmHandle};
use crate::folder::home::ledger::{self, LedgerError};
use crate::folder::home::marker::Marker;
use crate::folder::home::{
    Home, HomeOptions, OpenHomeError, ScanError, ScanProgress, ScanReport, StoreError,
};
use crate::folder::state::Inc;
use crate::folder::tree::NodesError;
use crate::folder::work::{Clock, FlushError, Folder, FolderConfig, OpenFolderError};
use crate::share::heads::Heads;
use crate::share::{
    Capability, Certificate, FolderCredentials, FolderId, Incarnation, Link, Manifest,
    ManifestClaims, Right, Role, Suite, Writer,
};

/// The epoch of every folder until revocation exists.
pub(super) const EPOCH: u32 = 0;

/// A folder that is open in this daemon.
pub(super) struct OpenFolder {
    pub(super) id: FolderId,
    pub(super) dir: PathBuf,
    pub(super) link: Link,
    pub(super) record: Mutex<FolderRecord>,
    pub(super) credentials: Arc<FolderCredentials>,
    pub(super) folder: Folder,
    /// That of its hash suite.
    pub(super) store: Arc<Store>,
    pub(super) swarm: SwarmHandle,
    /// What devices are called.
    pub(super) names: Names,
    pub(super) home: Mutex<Option<Arc<Home>>>,
    /// What is logged of the folder is logged in it.
    pub(super) span: Span,
}

/// The wall clock for folders.
struct WallClock;

impl Clock for WallClock {
    fn now_ns(&self) -> u64 {
        clock::unix_nanos()
    }
}

/// How long an unmount or a stop waits for the plain files to be written.
const WRITE_BACK_TIME: Duration = Duration::from_secs(20);

impl Daemon {
    /// Where every folder of the state directory is kept.
    pub(super) fn folder_dirs(&self) -> Result<Vec<PathBuf>, ApiError> {
        folder_dirs(&self.0.state)
    }

    /// The working tree of a folder that is not open, to look at: nothing is done under its incarnation. None: it was
    /// never opened.
    pub(super) fn closed_folder(&self, dir: &Path) -> Result<Option<Folder>, ApiError> {
        closed_folder(&self.0.stores, dir)
    }

    /// The record of a folder that was here before, if any.
    pub(super) fn known(&self, id: &FolderId) -> Result<Option<FolderRecord>, ApiError> {
        Ok(load_if_there(&record::folder_dir(self.0.state.path(), id))?)
    }

    /// Opens a folder, offline. Its record is saved with the incarnation in use.
    pub(super) async fn open_folder(
        &self,
        mut record: FolderRecord,
        link: &Link,
    ) -> Result<Arc<OpenFolder>, ApiError> {
        let id = link.folder();
        let dir = record::folder_dir(self.0.state.path(), &id);
        let credentials = Arc::new(self.credentials(link, &dir)?);
        std::fs::create_dir_all(&dir).map_err(|error| {
            let dir = place::shown(&dir);
            ApiError::io(format_args!("cannot create {dir}"), &error)
        })?;
        let incarnation = record.take_incarnation(&dir)?;
        let (swarm, inbox) = swarm::channel();
        let seen = Arc::clone(&self.0.seen);
        let names = known_names(&credentials, &dir, incarnation);
        let store = self.store_of(link).await?;
        let (of, known) = (Arc::clone(&store), Arc::clone(&names));
        let config = FolderConfig {
            read_only: credentials.writer.is_none(),
            read_timeout: self.0.config.read_timeout,
            fetch: Arc::new(self.fetcher(&swarm)),
            ..work_config(&dir, of, Inc(*incarnation.as_bytes()), &swarm, known)
        };
        let span = tracing::info_span!("folder", name = record.name);
        let opening = span.clone();
        let opened = move || opening.in_scope(|| Folder::open(config).map_err(unopened));
        let folder = blocking(opened).await?;
        let config = SwarmConfig {
            name: record.name.clone(),
            credentials: Arc::clone(&credentials),
            device: Arc::clone(&self.0.device),
            incarnation,
            epoch: EPOCH,
            folder: folder.clone(),
            store: Arc::clone(&store),
            heads_file: dir.join("heads"),
            read_timeout: self.0.config.read_timeout,
            given: self.given_peers(&record),
            replica: record.pinned || record.home.is_some(),
            keeper: record.home.is_some(),
            online: false,
            names: Arc::clone(&names),
            exchange: self.0.config.pex,
            nonce: self.0.gate.nonce(),
            metrics: Arc::clone(&self.0.metrics),
            span: span.clone(),
            met: Arc::new(move |addr| seen.met(id, addr)),
        };
        swarm::spawn(inbox, config, Arc::new(self.0.gate.clone()));
        let open = Arc::new(OpenFolder {
            id,
            dir,
            link: link.clone(),
            record: Mutex::new(record),
            credentials,
            folder,
            store,
            swarm,
            names,
            home: Mutex::new(None),
            span,
        });
        self.0.folders.lock().insert(id, Arc::clone(&open));
        Ok(open)
    }

    /// Addresses the user gave, for every folder and for this one.
    fn given_peers(&self, record: &FolderRecord) -> Vec<SocketAddr> {
        let all = self.0.config.peers.iter();
        all.chain(&record.peers).copied().collect()
    }

    /// The store of a folder's suite.
    async fn store_of(&self, link: &Link) -> Result<Arc<Store>, ApiError> {
        let (daemon, suite) = (self.clone(), link.suite().hashes());
        blocking(move || daemon.0.stores.of(suite)).await
    }

    fn fetcher(&self, swarm: &SwarmHandle) -> Fetcher {
        Fetcher {
            swarm: swarm.clone(),
            daemon: Arc::downgrade(&self.0),
            runtime: tokio::runtime::Handle::current(),
        }
    }

    /// What this device shows to members.
    fn credentials(&self, link: &Link, dir: &Path) -> Result<FolderCredentials, ApiError> {
        let capability = link.capability();
        let read = capability.read_key(EPOCH).ok_or_else(|| {
            ApiError::new(
                ErrorKind::Refused,
                "the link only lets its holder find the folder, not read it",
            )
            .hint("ask for a read-only or read-write link")
        })?;
        let write_key = capability.write_key(EPOCH);
        let manifest = match capability {
            Capability::Owner(seed) => Some(own_manifest(seed, link.suite())?),
            _ => stored_manifest(link, dir),
        };
        if manifest
            .as_ref()
            .is_some_and(|manifest| manifest.claims().suite != link.suite())
        {
            return Err(wrong_suite());
        }
        let writer = write_key.as_ref().map(|key| Writer {
            device: Arc::clone(&self.0.device),
            certificate: Certificate::issue(
                key,
                self.0.device.id(),
                Role::Keeper,
                0,
                self.0.device_name.clone(),
            ),
        });
        let write = write_key.map(|key| key.public());
        Ok(FolderCredentials {
            folder: link.folder(),
            read,
            write,
            manifest,
            writer,
        })
    }

    /// Lets members in and looks for them.
    pub(super) fn go_online(&self, open: &OpenFolder) -> Result<(), ApiError> {
        self.listen()?;
        self.0.gate.open(Door {
            swarm: open.swarm.clone(),
            credentials: Arc::clone(&open.credentials),
            store: Arc::clone(&open.store),
            name: open.record.lock().name.clone(),
        });
        open.swarm.set_online(true);
        self.0.seen.recall(open.id, open.swarm.clone());
        self.watch_for_members(open);
        Ok(())
    }

    /// Scans the plain directory that holds the folder and goes on watching it.
    pub(super) async fn open_home(
        &self,
        open: &Arc<OpenFolder>,
        dir: &Path,
        progress: ProgressSink,
    ) -> Result<(), ApiError> {
        let home = self.attach_home(open, dir).await?;
        let was_shared = open.record.lock().shared;
        let is_new = open.folder.is_empty();
        let (root, dir, span) = (dir.to_path_buf(), place::shown(dir), open.span.clone());
        let take_in = move || {
            let total = is_new.then(|| place::measure(&root));
            if !was_shared {
                home.mark_again()
                    .map_err(|error| ApiError::io(format_args!("cannot write in {dir}"), &error))?;
            }
            match home.scan(&|done| progress.report(indexing(&done, total))) {
                // It says why in `status` and goes on once the user confirms.
                Ok(_) | Err(ScanError::Held(_)) => {}
                Err(error) => return Err(unscanned(error)),
            }
            home.watch(Box::new(report_scan))
                .map_err(|error| ApiError::io(format_args!("cannot watch {dir}"), &error))
        };
        blocking(move || span.in_scope(take_in)).await
    }

    /// Opens the plain directory that holds the folder, and reads nothing of it yet.
    pub(super) async fn attach_home(
        &self,
        open: &Arc<OpenFolder>,
        dir: &Path,
    ) -> Result<Arc<Home>, ApiError> {
        let (folder, store) = (Arc::new(open.folder.clone()), Arc::clone(&open.store));
        let (dir, options) = (dir.to_path_buf(), self.home_options(open));
        let opened = blocking(move || {
            let clock = Arc::new(clock::unix_nanos);
            Home::open(&dir, folder, store, clock, &options).map_err(no_home)
        });
        let home = Arc::new(opened.await?);
        *open.home.lock() = Some(Arc::clone(&home));
        Ok(home)
    }

    fn home_options(&self, open: &OpenFolder) -> HomeOptions {
        let own = open.record.lock().home.clone();
        let others = self.homes();
        HomeOptions {
            marker: self.marker(&open.id),
            state_dir: self.0.state.path().to_path_buf(),
            known_homes: others
                .into_iter()
                .filter(|o| own.as_ref().is_none_or(|h| h.0 != *o))
                .collect(),
            // One of 65,536: a daemon opens far fewer homes in its life.
            space: self.0.next_space.fetch_add(1, Ordering::Relaxed),
        }
    }

    /// What the directory that holds a folder here is marked with.
    pub(super) fn marker(&self, folder: &FolderId) -> Marker {
        Marker {
            folder: folder.to_string(),
            device: self.0.device.id().to_string(),
        }
    }

    /// Ends a folder in order: home, actor, working tree; then its incarnation may be used again.
    pub(super) async fn close_folder(&self, open: &Arc<OpenFolder>) {
        self.0.folders.lock().remove(&open.id);
        self.0.gate.close(&open.credentials.swarm());
        self.stop_looking(open);
        // What is left of it is written at the next start.
        let _left = open.swarm.publish_now().await;
        open.write_back().await;
        let home = open.home.lock().take();
        let _closed = tokio::task::spawn_blocking(move || drop(home)).await;
        let rolled_back = open
            .swarm
            .status()
            .await
            .is_some_and(|status| status.rolled_back);
        open.swarm.shutdown().await;
        let folder = open.folder.clone();
        let flushed = tokio::task::spawn_blocking(move || folder.shutdown()).await;
        match flushed {
            // The next start must take a fresh incarnation.
            Ok(Ok(())) if rolled_back => {}
            Ok(Ok(())) => {
                if let Err(error) = open.record.lock().release_incarnation(&open.dir) {
                    tracing::warn!(%error, "the next start takes a new incarnation");
                }
            }
            Ok(Err(error)) => tracing::error!(%error, "the folder was not closed in order"),
            Err(error) => tracing::error!(%error, "closing the folder panicked"),
        }
    }
}

/// See [`Daemon::closed_folder`].
pub(super) fn closed_folder(stores: &Stores, dir: &Path) -> Result<Option<Folder>, ApiError> {
    let Some(record) = load_if_there(dir)? else {
        return Ok(None);
    };
    let inc = Inc(*record.incarnation().as_bytes());
    // Nobody takes what it would tell.
    let (nobody, _) = swarm::channel();
    let store = stores.of(record.link(dir)?.suite().hashes())?;
    let config = work_config(dir, store, inc, &nobody, Names::default());
    Folder::open(config).map(Some).map_err(unopened)
}

/// How a folder is opened to be looked at only.
fn work_config(
    dir: &Path,
    store: Arc<Store>,
    inc: Inc,
    swarm: &SwarmHandle,
    names: Names,
) -> FolderConfig {
    FolderConfig {
        dir: dir.join("work"),
        disk: Arc::new(RealDisk),
        store,
        inc,
        rename_row: ledger::rename_row,
        held_content: ledger::held_content,
        clock: Arc::new(WallClock),
        read_only: true,
        fetch: Arc::new(swarm.clone()),
        observer: Arc::new(swarm.clone()),
        device_name: Arc::new(move |inc: Inc| names.read().get(&inc.0).cloned()),
        read_timeout: Duration::ZERO,
    }
}

/// The snapshots that the heads of a folder name, as far as they are noted. None: that cannot be told.
pub(super) fn noted_snapshots(dir: &Path) -> Option<Vec<NodeId>> {
    if !dir.join("heads").exists() {
        return Some(Vec::new());
    }
    let link = load_if_there(dir).ok()??.link(dir).ok()?;
    let write = link.capability().write_key(EPOCH).map(|key| key.public());
    let table = stored_heads(Heads::new(link.folder(), write), dir)?;
    Some(table.heads().map(|head| head.claims().snapshot).collect())
}

/// What other devices hold of a folder that is not open, as far as noted.
pub(super) fn noted_elsewhere(dir: &Path) -> Elsewhere {
    let noted = || {
        let record = load_if_there(dir).ok()??;
        let link = record.link(dir).ok()?;
        let write = link.capability().write_key(EPOCH).map(|key| key.public());
        let heads = stored_heads(Heads::new(link.folder(), write), dir)?;
        Some(Elsewhere::noted(
            &heads,
            &record.incarnation(),
            &dir.join("heads"),
        ))
    };
    noted().unwrap_or_default()
}

/// The directories of all folders that are remembered.
pub(super) fn folder_dirs(state: &StateDir) -> Result<Vec<PathBuf>, ApiError> {
    let folders = state.path().join("folders");
    let unreadable = |error: &std::io::Error| {
        ApiError::io(format_args!("cannot read {}", folders.display()), error)
    };
    let entries = match std::fs::read_dir(&folders) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(unreadable(&error)),
    };
    let dirs = entries.map(|entry| entry.map(|entry| entry.path()));
    dirs.collect::<Result<_, _>>()
        .map_err(|error| unreadable(&error))
}

/// Runs what may take long on the blocking pool.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ApiError> + Send + 'static,
) -> Result<T, ApiError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|error| Err(ApiError::new(ErrorKind::Internal, error)))
}

/// Why a working tree cannot be opened.
fn unopened(error: OpenFolderError) -> ApiError {
    match error {
        OpenFolderError::Io { path, source } => {
            let path = place::shown(&path);
            ApiError::io(format_args!("cannot open the folder: {path}"), &source)
        }
        OpenFolderError::Checkpoint(FlushError::NoSpace)
        | OpenFolderError::Tree(NodesError::Store(StoreError::Write(WriteError::NoSpace {
            ..
        }))) => ApiError::new(
            ErrorKind::NoSpace,
            "cannot open the folder: no space left for it",
        ),
        error => ApiError::new(
            ErrorKind::Io,
            format_args!("cannot open the folder: {error}"),
        ),
    }
}

/// Why a directory cannot hold a folder.
fn no_home(error: OpenHomeError) -> ApiError {
    match error {
        OpenHomeError::Unreadable { path, error } => {
            ApiError::io(format_args!("cannot read {}", place::shown(&path)), &error)
        }
        OpenHomeError::Marker { dir, error } => ApiError::io(
            format_args!("cannot write in {}", place::shown(&dir)),
            &error,
        )
        .hint("a shared directory is marked by a small file in it, `.ccbt/home`"),
        OpenHomeError::OfAnother(dir) => {
            let what = format!(
                "{} is already shared as another folder or by another device",
                place::shown(&dir)
            );
            ApiError::new(ErrorKind::Refused, what).hint(
                "end that with `ccbt unshare`; if there is nothing to end, remove `.ccbt/home` in the directory",
            )
        }
        error @ OpenHomeError::InUse(_) => ApiError::new(ErrorKind::Refused, error).hint(
            "two daemons would undo each other's work: end the other one (`ccbt stop` with its --state)",
        ),
        error @ OpenHomeError::Store(_) => ApiError::new(ErrorKind::Io, error),
        error => ApiError::new(ErrorKind::Refused, error)
            .hint("share a directory that neither lies in another one of these nor contains one"),
    }
}

/// Why a directory was not taken in.
pub(super) fn unscanned(error: ScanError) -> ApiError {
    let kind = match &error {
        ScanError::Ledger(LedgerError::NoSpace)
        | ScanError::Store(NodesError::Store(StoreError::Write(WriteError::NoSpace { .. }))) => {
            ErrorKind::NoSpace
        }
        ScanError::Held(_) => ErrorKind::Refused,
        _ => ErrorKind::Io,
    };
    ApiError::new(kind, error)
}

/// A link of another suite than its folder's.
pub(super) fn wrong_suite() -> ApiError {
    ApiError::new(ErrorKind::Refused, swarm::WRONG_SUITE).hint("ask for the link again")
}

fn load_if_there(dir: &Path) -> Result<Option<FolderRecord>, RecordError> {
    match FolderRecord::load(dir) {
        Err(RecordError::Read { error, .. }) if error.kind() == std::io::ErrorKind::NotFound => {
            Ok(None)
        }
        loaded => loaded.map(Some),
    }
}

/// How far a scan is; `total`: of all that is to be read, if that is known.
pub(super) fn indexing(done: &ScanProgress, total: Option<Amount>) -> Progress {
    Progress {
        files_done: total.map_or(done.found, |_| done.read),
        files_total: total.map(|total| total.files.max(done.read)),
        bytes_done: done.bytes,
        bytes_total: total.map(|total| total.bytes.max(done.bytes)),
        note: "indexing".to_owned(),
    }
}

fn report_scan(result: Result<ScanReport, ScanError>) {
    match result {
        Ok(report) => tracing::debug!(?report, "directory scanned"),
        Err(error) => tracing::warn!(%error, "directory not scanned"),
    }
}

fn own_manifest(seed: &crate::share::OwnerSeed, suite: Suite) -> Result<Manifest, ApiError> {
    let claims = ManifestClaims {
        epoch: EPOCH,
        suite,
        write: seed.write_key(EPOCH).public(),
        flags: 0,
        revocations: Vec::new(),
    };
    Manifest::sign(seed, claims).map_err(|error| ApiError::new(ErrorKind::Internal, error))
}

/// The manifest kept with the heads, for who cannot make it.
fn stored_manifest(link: &Link, dir: &Path) -> Option<Manifest> {
    let heads = stored_heads(Heads::new(link.folder(), None), dir)?;
    heads.manifest().cloned()
}

fn stored_heads(mut table: Heads, dir: &Path) -> Option<Heads> {
    let bytes = std::fs::read(dir.join("heads")).ok()?;
    table.restore(&bytes, clock::unix_days()).ok()?;
    Some(table)
}

/// What the devices are called whose files the folder may show as soon as it is open: ours, and those met so far.
fn known_names(credentials: &FolderCredentials, dir: &Path, own: Incarnation) -> Names {
    let mut names = BTreeMap::new();
    let table = Heads::new(credentials.folder, credentials.write);
    if let Some(heads) = stored_heads(table, dir) {
        let known = heads.named([]);
        names.extend(known.map(|(inc, name)| (*inc.as_bytes(), name.to_owned())));
    }
    if let Some(writer) = &credentials.writer {
        names.insert(*own.as_bytes(), writer.certificate.name().to_string());
    }
    Arc::new(RwLock::new(names))
}

impl OpenFolder {
    /// Whether all of its content is to be here: what is missing is not only what nobody has read yet.
    pub(super) fn is_kept_whole(&self) -> bool {
        let record = self.record.lock();
        record.pinned || record.home.is_some()
    }

    pub(super) fn save(&self) -> Result<(), ApiError> {
        Ok(self.record.lock().save(&self.dir)?)
    }

    /// Whether the folder is mounted over the plain directory that holds it, if that is `dir`.
    pub(super) fn set_home_mounted(&self, dir: &Path, is_mounted: bool) {
        let is_home = self
            .record
            .lock()
            .home
            .as_ref()
            .is_some_and(|home| home.0 == dir);
        if let Some(home) = self.home.lock().as_ref().filter(|_| is_home) {
            home.set_mounted(is_mounted);
        }
    }

    /// Has the plain directory hold what the folder shows, as far as that is possible now.
    pub(super) async fn write_back(&self) {
        let Some(home) = self.home.lock().clone() else {
            return;
        };
        let written = tokio::task::spawn_blocking(move || home.write_back(WRITE_BACK_TIME)).await;
        if let Ok(Err(left)) = written {
            tracing::warn!(folder = %self.id, "{left}");
        }
    }

    /// Makes a scan of the home end early.
    pub(super) fn stop_scanning(&self) {
        if let Some(home) = &*self.home.lock() {
            home.ask_to_stop();
        }
    }

    pub(super) fn right(&self) -> ApiRight {
        match self.link.right() {
            Right::Owner => ApiRight::Owner,
            Right::Write => ApiRight::Write,
            Right::Read | Right::Discover => ApiRight::Read,
        }
    }

    /// The link of a right to hand out, if we hold it.
    pub(super) fn link_for(&self, right: Right) -> Option<String> {
        self.link
            .attenuate(right, EPOCH)
            .ok()
            .map(|link| link.reveal())
    }
}

impl From<RecordError> for ApiError {
    fn from(error: RecordError) -> Self {
        let hint =
            "restore it from a backup, or move it aside: its links then have to be given again";
        match &error {
            RecordError::Read { path, error } => {
                Self::io(format_args!("cannot read {}", place::shown(path)), error)
            }
            RecordError::Write { path, error } => {
                Self::io(format_args!("cannot write {}", place::shown(path)), error)
            }
            RecordError::Newer { .. } => {
                Self::new(ErrorKind::Refused, error).hint("install that version of ccbt")
            }
            RecordError::Json { .. } | RecordError::Link { .. } => {
                Self::new(ErrorKind::Io, error).hint(hint)
            }
        }
    }
}
