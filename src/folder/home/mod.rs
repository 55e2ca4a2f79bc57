//! A home: the plain directory that holds a folder as ordinary files.
//!
//! Reading: `base` is what was true when the directory was last read or written, `plan` compares that with what is there
//! now, `take` reads what is new, `ledger` and `record` turn it into operations of the folder, `scan` drives them,
//! `watch` says when. Writing: `pull` compares what the folder shows with the base records, `write` does what follows, by
//! renames that `intent` announces and that can be undone, on the file system of `fs`, with what `contents` reads; `pace` says when. What that takes
//! away is `displaced`, with where it was in `origin`, until it is to `expire`. `ignore` has the rules of what is not
//! shared, `problems` what scans met. `guard` and
//! `marker` keep a lost disk from being taken for the user's wish, `files` and `unix` are the only way to the files, and
//! `explore` proves the writing side on a file system that others write to and that fails. Reading and writing never
//! happen at once: who has the scanner does.

pub mod base;
pub mod caps;
mod contents;
pub mod displaced;
pub mod expire;
#[cfg(test)]
mod explore;
pub mod files;
mod follow;
pub mod fs;
pub mod guard;
mod hash;
pub mod ignore;
pub(crate) mod intent;
pub mod join;
mod lease;
pub mod ledger;
mod live;
mod look;
pub mod marker;
pub mod memory;
pub mod origin;
mod pace;
pub mod places;
pub mod plan;
pub mod problems;
mod pull;
mod record;
mod scan;
mod take;
mod unix;
mod unread;
pub mod watch;
mod write;
mod writeback;

use std::collections::{HashMap, HashSet};
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use ccbt_xet::store::Store;
use parking_lot::Mutex;

use self::base::{At, HomeId, Row};
use self::files::HomeFiles;
use self::follow::Follow;
use self::guard::HeldReason;
use self::ledger::{Extent, Ledger};
use self::marker::{Marker, OWN_DIR};
use self::problems::{Problem, Problems};
use self::scan::{LoadFrom, Part, Scan, Scanner};
use self::watch::{Waker, Watcher};
use self::writeback::Pulled;
use crate::folder::tree::NodesError;

pub use self::scan::{ScanError, ScanProgress, ScanReport};
use crate::folder::work::Lenders;
pub use crate::folder::work::StoreError;

/// Before a directory that was written is looked at: what is in it has been still for long enough by then.
const LOOK_AFTER: Duration = Duration::from_millis(150);

/// Nanoseconds since 1970.
pub type WallClock = Arc<dyn Fn() -> u64 + Send + Sync>;

/// What a home is opened with.
#[derive(Clone)]
pub struct HomeOptions {
    pub marker: Marker,
    /// Where the daemon keeps its state: may not be in the home, nor the home in it.
    pub state_dir: PathBuf,
    /// The other homes of this device.
    pub known_homes: Vec<PathBuf>,
    /// Tells what is borrowed from this home from what is borrowed from others: different for each that is open.
    pub space: u16,
}

/// Why a directory cannot be a home.
#[derive(Debug, thiserror::Error)]
pub enum OpenHomeError {
    #[error("{} cannot be opened: {error}", path.display())]
    Unreadable { path: PathBuf, error: io::Error },
    #[error("{} is not a directory", .0.display())]
    NotADirectory(PathBuf),
    #[error("/ cannot be shared: choose a directory in it")]
    IsRoot,
    #[error("{} contains the state directory {}: put one elsewhere, see --state", dir.display(), state.display())]
    ContainsState { dir: PathBuf, state: PathBuf },
    #[error("{} lies in the state directory {}", dir.display(), state.display())]
    InState { dir: PathBuf, state: PathBuf },
    #[error("{} is on a mount of ccbt: share it by the link of its folder", .0.display())]
    OnOwnMount(PathBuf),
    #[error("{} lies in the shared directory {}", dir.display(), home.display())]
    InHome { dir: PathBuf, home: PathBuf },
    #[error("{} contains the shared directory {}: unshare that first", dir.display(), home.display())]
    ContainsHome { dir: PathBuf, home: PathBuf },
    #[error("{} is already shared as another folder or by another device", .0.display())]
    OfAnother(PathBuf),
    #[error("another daemon has {} open", .0.display())]
    InUse(PathBuf),
    #[error("the marker in {} cannot be written: {error}", dir.display())]
    Marker { dir: PathBuf, error: io::Error },
    #[error(transparent)]
    Store(#[from] NodesError<StoreError>),
}

/// How changes are noticed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Watching {
    /// At once.
    Events,
    /// By scanning everything now and then, because not all changes are announced.
    Polling { why: String },
}

/// Hears what the watching thread did.
pub type ScanListener = Box<dyn FnMut(Result<ScanReport, ScanError>) + Send>;

/// A home. Dropping it stops the watching.
pub struct Home {
    inner: Arc<Inner>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

struct Inner {
    path: PathBuf,
    marker: Marker,
    files: Arc<HomeFiles>,
    ledger: Arc<dyn Ledger>,
    store: Arc<Store>,
    clock: WallClock,
    started: Instant,
    waker: Waker,
    watcher: Option<Watcher>,
    /// Why not everything is watched.
    unwatched: Mutex<Option<String>>,
    scanner: Mutex<Scanner>,
    stop: AtomicBool,
    scan_asked: AtomicBool,
    /// Directories that a scan by others than the watching thread wants looked at again, and after what time.
    again: Mutex<Vec<(HomeId, Duration)>>,
    /// The folder is mounted over the directory.
    is_mounted: AtomicBool,
    /// What scans met.
    problems: Mutex<Problems>,
    /// Since when each displaced thing was seen.
    displaced_seen: Mutex<HashMap<u64, Duration>>,
    /// What the last writing left undone.
    left: Mutex<Option<String>>,
    /// Keeps other daemons out for as long as it is open.
    lock: Mutex<Option<OwnedFd>>,
}

impl Home {
    /// Opens the directory `dir` as the home of the folder behind `ledger`. Reads no user file: what is borrowed from
    /// the directory follows from the base records.
    pub fn open(
        dir: &Path,
        ledger: Arc<dyn Ledger>,
        store: Arc<Store>,
        clock: WallClock,
        options: &HomeOptions,
    ) -> Result<Self, OpenHomeError> {
        let path = check(dir, options)?;
        let unreadable = |error| OpenHomeError::Unreadable {
            path: path.clone(),
            error,
        };
        let waker = Waker::new().map_err(unreadable)?;
        let files =
            Arc::new(HomeFiles::open(&path, options.space, waker.clone()).map_err(unreadable)?);
        let scanner = {
            let from = LoadFrom {
                ledger: &*ledger,
                store: &store,
                files: &files,
            };
            scan::load(&from)?
        };
        let lock = mark(&path, &files, &options.marker, scanner.entries > 0)?;
        store.set_borrow_reader(options.space, files.clone());
        let watcher = Watcher::new(waker.clone());
        ledger.wake_on_change(waker.clone());
        ledger.set_lenders(lenders(&store, &files));
        let unwatched = match files.caps().is_remote {
            true => Some("other machines change it without a word".to_owned()),
            false => watcher.as_ref().err().map(ToString::to_string),
        };
        let inner = Inner {
            path,
            marker: options.marker.clone(),
            files,
            ledger,
            store,
            clock,
            started: Instant::now(),
            waker,
            watcher: watcher.ok(),
            unwatched: Mutex::new(unwatched),
            scanner: Mutex::new(scanner),
            stop: AtomicBool::new(false),
            scan_asked: AtomicBool::new(false),
            again: Mutex::default(),
            is_mounted: AtomicBool::new(false),
            problems: Mutex::default(),
            displaced_seen: Mutex::default(),
            left: Mutex::new(None),
            lock: Mutex::new(lock),
        };
        Ok(Self {
            inner: Arc::new(inner),
            thread: Mutex::new(None),
        })
    }

    /// Scans everything.
    pub fn scan(&self, progress: &dyn Fn(ScanProgress)) -> Result<ScanReport, ScanError> {
        let mut scanner = self.inner.scanner.lock();
        // Who asks for it wants everything.
        scanner.restless.clear();
        let scan = Scan::new(&self.inner, &mut scanner, progress);
        let mut report = scan.run(&Part::Everything)?;
        let later: Vec<HomeId> = scanner.later.drain(..).collect();
        let mut reread = Scan::new(&self.inner, &mut scanner, progress).reread(&later)?;
        report.read += reread.read;
        report.again.append(&mut reread.again);
        self.inner.again.lock().extend(&report.again);
        self.inner.waker.wake();
        Ok(report)
    }

    /// Starts to follow changes, in a thread of its own; what it did is told to `listener`. Scan first: directories are
    /// watched from when they were first listed.
    pub fn watch(&self, listener: ScanListener) -> io::Result<()> {
        let (inner, span) = (self.inner.clone(), tracing::Span::current());
        let builder = std::thread::Builder::new().name("home".into());
        let follow = move || span.in_scope(|| Follow::new(&inner, listener).run());
        *self.thread.lock() = Some(builder.spawn(follow)?);
        Ok(())
    }

    /// How changes are noticed.
    pub fn watching(&self) -> Watching {
        match &*self.inner.unwatched.lock() {
            Some(why) => Watching::Polling { why: why.clone() },
            None => Watching::Events,
        }
    }

    /// Why nothing is published, if so. Does not wait for a scan: while one is under way, nothing is held back.
    pub fn held_back(&self) -> Option<HeldReason> {
        self.inner.scanner.try_lock()?.held.clone()
    }

    /// The user confirms what was found: the next scan publishes it. A directory that lost its marker gets it back.
    pub fn confirm(&self) -> io::Result<()> {
        let mut scanner = self.inner.scanner.lock();
        if scanner.held == Some(HeldReason::MarkerMissing) {
            let root = self.inner.files.root()?;
            marker::write(&root, &self.inner.marker)?;
        }
        scanner.held = None;
        scanner.confirmed = true;
        scanner.guard.reset();
        drop(scanner);
        self.inner.scan_asked.store(true, Ordering::Release);
        self.inner.waker.wake();
        Ok(())
    }

    /// Whether the folder is mounted over the directory: its files are then written less often, and its path leads to
    /// the mount.
    pub fn set_mounted(&self, is_mounted: bool) {
        self.inner.is_mounted.store(is_mounted, Ordering::Release);
        self.inner.waker.wake();
    }

    /// What the folder shows and the directory has not got yet, and what in the directory cannot be published yet, as a
    /// sentence. Does not wait for a scan.
    pub fn waiting(&self) -> Option<String> {
        let left = self.inner.left.lock().clone();
        let scanner = self.inner.scanner.try_lock();
        let restless = scanner.map_or(0, |scanner| scanner.restless.len());
        let restless = (restless > 0)
            .then(|| format!("{restless} changed while they were read and are read again later"));
        let parts = [left, restless].into_iter().flatten();
        parts.reduce(|left, restless| format!("{left}; {restless}"))
    }

    /// Writes what the folder shows into the directory, now. What cannot be done within `time`, or not at all for now,
    /// is left: the error says what.
    pub fn write_back(&self, time: Duration) -> Result<(), String> {
        let until = Instant::now() + time;
        if self.inner.stop.load(Ordering::Acquire) {
            // Nobody else scans any more, and what was written is to be looked at.
            self.stop();
            self.inner.stop.store(false, Ordering::Release);
        }
        loop {
            let pulled = {
                let mut scanner = self.inner.scanner.lock();
                writeback::pull(&self.inner, &mut scanner, &Extent::Everything)
            };
            let Pulled { left, written } = pulled.map_err(|error| error.to_string())?;
            if left.is_nothing() {
                return Ok(());
            }
            let sentence = left.sentence(&self.inner.path).unwrap_or_default();
            if left.changed == 0 || Instant::now() >= until {
                return Err(sentence);
            }
            std::thread::sleep(LOOK_AFTER);
            let dirs: Vec<HomeId> = written.scan.into_iter().collect();
            let nothing = HashSet::new();
            let part = Part::Dirs {
                dirs: &dirs,
                open: &nothing,
                moved: &nothing,
            };
            let mut scanner = self.inner.scanner.lock();
            let scanned = Scan::new(&self.inner, &mut scanner, &|_| ()).run(&part);
            scanned.map_err(|error| error.to_string())?;
        }
    }

    /// What keeps some of its names from being part of the folder.
    pub fn problems(&self) -> Vec<Problem> {
        self.inner.problems.lock().told()
    }

    /// Files opened so far to be taken in.
    pub fn opens(&self) -> u64 {
        self.inner.files.opens()
    }

    /// Stops following changes and takes the marker away: the files stay, and what is borrowed from them is served until
    /// this is dropped.
    pub fn unshare(&self) -> io::Result<()> {
        self.stop();
        // What is not there has no marker that could be taken away.
        let Ok(root) = self.inner.files.root() else {
            return Ok(());
        };
        match marker::read(&root)? {
            Some(marker) if marker == self.inner.marker => marker::remove(&*root),
            _ => Ok(()),
        }
    }

    /// The user shares a directory again that was unshared: it gets its marker back. What is gone from it is judged as
    /// ever.
    pub fn mark_again(&self) -> io::Result<()> {
        let root = self.inner.files.root()?;
        match marker::read(&root)? {
            Some(_) => Ok(()),
            None => marker::write(&root, &self.inner.marker),
        }
    }

    /// Has a scan end soon, with [`ScanError::Stopped`], and no other begin. Waits for nothing.
    pub fn ask_to_stop(&self) {
        self.inner.stop.store(true, Ordering::Release);
        self.inner.waker.wake();
    }

    fn stop(&self) {
        self.ask_to_stop();
        if let Some(thread) = self.thread.lock().take() {
            // A panic in it was reported where it happened.
            let _ended = thread.join();
        }
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        self.stop();
        self.inner
            .store
            .remove_borrow_reader(self.inner.files.space());
    }
}

impl Inner {
    fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    /// Whether the directory that was not there is there again. Until then nothing of it is kept open.
    fn is_back(&self, reason: &HeldReason) -> bool {
        if self.is_mounted.load(Ordering::Acquire) {
            return false;
        }
        let mut lock = self.lock.lock();
        if matches!(reason, HeldReason::RootMissing | HeldReason::Replaced) {
            self.files.close_root();
            drop(lock.take());
        }
        let opened = files::open_root(&self.path).and_then(|fd| {
            let stat = rustix::fs::fstat(&fd)?;
            Ok((marker::read(&fd)?, (stat.st_dev, stat.st_ino), fd))
        });
        let Ok((Some(marker), stamp, fd)) = opened else {
            return false;
        };
        // A copy has another inode, and may be older than what the records say: that is for the user to judge.
        let is_it = stamp.1 == self.files.root_stamp().1
            || !self.files.caps().stable_ino
            || *reason == HeldReason::MarkerMissing;
        if marker != self.marker || !is_it {
            return false;
        }
        drop(lock.take());
        let Ok(locked) = marker::lock(&fd) else {
            return false;
        };
        *lock = locked;
        self.files.set_root(fd, stamp);
        self.files.probe();
        true
    }

    fn row(&self, at: &At) -> Option<Row> {
        Row::decode(&self.ledger.row(&at.key())?).ok()
    }

    fn watch_dir(&self, dir: HomeId, fd: &OwnedFd) {
        if let Some(Err(error)) = self.watcher.as_ref().map(|watcher| watcher.add(dir, fd)) {
            self.unwatched.lock().get_or_insert_with(|| {
                tracing::warn!(%error, "not every directory can be watched: scanning once a minute");
                format!("{error}: raise fs.inotify.max_user_watches")
            });
        }
    }

    fn unwatch_dir(&self, dir: HomeId) {
        if let Some(watcher) = &self.watcher {
            watcher.remove(dir);
        }
    }
}

/// Finds the base records of the files that have a chunk. Keeps nothing open.
fn lenders(store: &Arc<Store>, files: &Arc<HomeFiles>) -> Lenders {
    let (store, files) = (Arc::downgrade(store), Arc::downgrade(files));
    Arc::new(move |hash| {
        let Some((store, files)) = store.upgrade().zip(files.upgrade()) else {
            return Vec::new();
        };
        let sources = store.borrowed_from(hash).into_iter();
        let own = sources.filter(|source| source.space() == files.space());
        let places = own.filter_map(|source| files.place(HomeId(source.number())));
        places.map(|at| at.key()).collect()
    })
}

/// Marks a directory as the home it is to be, and keeps other daemons out of it. With records but without a marker it may
/// be the mount point of a disk that is not there: that is left alone.
fn mark(
    path: &Path,
    files: &HomeFiles,
    own: &Marker,
    has_records: bool,
) -> Result<Option<OwnedFd>, OpenHomeError> {
    let unreadable = |error| OpenHomeError::Unreadable {
        path: path.to_owned(),
        error,
    };
    let unmarked = |error| OpenHomeError::Marker {
        dir: path.to_owned(),
        error,
    };
    let root = files.root().map_err(unreadable)?;
    match marker::read(&root).map_err(unreadable)? {
        Some(marker) if marker == *own => {}
        Some(_) => return Err(OpenHomeError::OfAnother(path.to_owned())),
        None if has_records => return Ok(None),
        None => marker::write(&root, own).map_err(unmarked)?,
    }
    files.probe();
    marker::lock(&root).map_err(|error| match error.kind() {
        io::ErrorKind::WouldBlock => OpenHomeError::InUse(path.to_owned()),
        _ => unmarked(error),
    })
}

/// Whether `dir` may be a home. Returns its real path.
fn check(dir: &Path, options: &HomeOptions) -> Result<PathBuf, OpenHomeError> {
    let unreadable = |error| OpenHomeError::Unreadable {
        path: dir.to_owned(),
        error,
    };
    let path = dir.canonicalize().map_err(unreadable)?;
    if !path.is_dir() {
        return Err(OpenHomeError::NotADirectory(path));
    }
    if path.parent().is_none() {
        return Err(OpenHomeError::IsRoot);
    }
    std::fs::read_dir(&path).map_err(unreadable)?;
    let state = options
        .state_dir
        .canonicalize()
        .unwrap_or_else(|_| options.state_dir.clone());
    if path.starts_with(&state) {
        return Err(OpenHomeError::InState { dir: path, state });
    }
    if state.starts_with(&path) {
        return Err(OpenHomeError::ContainsState { dir: path, state });
    }
    if is_own_mount(&path).map_err(unreadable)? {
        return Err(OpenHomeError::OnOwnMount(path));
    }
    for home in &options.known_homes {
        let home = home.canonicalize().unwrap_or_else(|_| home.clone());
        if home != path && home.starts_with(&path) {
            return Err(OpenHomeError::ContainsHome { dir: path, home });
        }
    }
    let above = path.ancestors().skip(1);
    match above
        .into_iter()
        .find(|above| above.join(OWN_DIR).join("home").exists())
    {
        Some(home) => Err(OpenHomeError::InHome {
            dir: path.clone(),
            home: home.to_owned(),
        }),
        None => Ok(path),
    }
}

/// Whether the file system a path is on is one of our mounts, by the type that /proc/self/mountinfo has for its device.
fn is_own_mount(path: &Path) -> io::Result<bool> {
    let stat = rustix::fs::stat(path)?;
    let device = format!(
        "{}:{}",
        rustix::fs::major(stat.st_dev),
        rustix::fs::minor(stat.st_dev)
    );
    let table = std::fs::read("/proc/self/mountinfo")?;
    Ok(table
        .split(|byte| *byte == b'\n')
        .any(|line| is_own_line(line, device.as_bytes())))
}

fn is_own_line(line: &[u8], device: &[u8]) -> bool {
    let mut fields = line.split(|byte| *byte == b' ');
    let is_device = fields.nth(2) == Some(device);
    is_device && fields.skip_while(|field| *field != b"-").nth(1) == Some(b"fuse.ccbt")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_mounts_are_known_by_type_and_device() {
        let own = b"36 35 0:98 / /mnt/x rw,nosuid - fuse.ccbt photos rw,user_id=0";
        assert!(is_own_line(own, b"0:98"));
        assert!(!is_own_line(own, b"0:9"));
        let other = b"36 35 0:98 / /mnt/fuse.ccbt rw shared:1 - ext4 fuse.ccbt rw";
        assert!(!is_own_line(other, b"0:98"));
    }
}
