//! Mounting a volume and unmounting it again.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use fuser::{Session, SessionACL};
use parking_lot::{Condvar, Mutex};

use crate::attach;
use crate::errno::{Failure, failure};
use crate::fuse::{Adapter, Held};
use crate::handle::OpenFiles;
use crate::inode::Lookups;
use crate::invalidate::{self, Invalidations, Kernel};
use crate::mountinfo::{self, MountId, absolute, quoted};
use crate::{Notifier, Volume};

/// How long an unmount waits for files that are still open in the mount.
const DRAIN: Duration = Duration::from_secs(5);
/// Threads that answer the kernel; they never wait for peers, so more only cost buffers (16 MiB of address space each).
const THREADS_MIN: usize = 2;
const THREADS_MAX: usize = 4;
/// Dead mounts lying on each other that are detached before giving up.
const DEAD_MAX: usize = 16;

/// How a volume is mounted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountOptions {
    /// What the mount table shows as the source. Not empty, no control characters, at most 1024 bytes.
    pub fsname: String,
    pub read_only: bool,
    /// Let other users in, where that is permitted: to root always, to others if `/etc/fuse.conf` says
    /// `user_allow_other`. Permissions of files are checked by the kernel either way.
    pub allow_other: bool,
    /// Honour set-user-id bits (root only).
    pub suid: bool,
    /// Honour device nodes (root only).
    pub dev: bool,
    /// Threads that answer the kernel, kept within 2 and 4.
    pub threads: usize,
}

impl Default for MountOptions {
    fn default() -> Self {
        Self {
            fsname: "ccbt".into(),
            read_only: false,
            allow_other: true,
            suid: false,
            dev: false,
            threads: std::thread::available_parallelism().map_or(THREADS_MIN, usize::from),
        }
    }
}

impl MountOptions {
    /// `allow_other` as far as this user may ask for it.
    pub(crate) fn others_allowed(&self) -> bool {
        let is_root = rustix::process::geteuid().is_root();
        self.allow_other && (is_root || attach::users_may_allow_other())
    }
}

/// Why a volume could not be mounted, and what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    #[error("{} does not exist: create it with `mkdir -p {}`", quoted(.path), quoted(.path))]
    NotFound { path: PathBuf },
    #[error("{} is not a directory: name a directory to mount on", quoted(.path))]
    NotDirectory { path: PathBuf },
    #[error("{} is a {fs_type} mount already: unmount it first with `{command} {}`", quoted(.path), quoted(.path))]
    AlreadyMounted {
        path: PathBuf,
        fs_type: String,
        command: &'static str,
    },
    #[error(
        "there is no /dev/fuse: load the kernel module with `modprobe fuse`, or start the container with \
         `--device /dev/fuse --cap-add SYS_ADMIN`"
    )]
    NoDevice,
    #[error("you may not open /dev/fuse: let root run `chmod 666 /dev/fuse`, or run as root")]
    DeviceDenied,
    #[error("fusermount3 was not found: install the package `fuse3`, or run as root")]
    NoHelper,
    #[error("{} cannot be mounted on: {message}: make it writable for you, or run as root", quoted(.path))]
    HelperRefused { path: PathBuf, message: String },
    #[error(
        "{name} cannot be the source name of a mount: use 1 to 1024 bytes without control characters"
    )]
    FsName { name: String },
    #[error("a dead mount lies on {}: {source}", quoted(.path))]
    Dead { path: PathBuf, source: UnmountError },
    #[error("{} cannot be mounted on: {source}", quoted(.path))]
    Io { path: PathBuf, source: io::Error },
}

/// Why a mount could not be taken out of the tree.
#[derive(Debug, thiserror::Error)]
pub enum UnmountError {
    #[error(
        "fusermount3 was not found: install the package `fuse3`, or run `umount -l {path}` as root"
    )]
    NoHelper { path: String },
    #[error("{} cannot be unmounted: {message}: run `umount -l {}` as root", quoted(.path), quoted(.path))]
    HelperRefused { path: PathBuf, message: String },
    #[error("the process behind {} was killed but cannot end: run `umount -f {}` as root", quoted(.path), quoted(.path))]
    NotAborted { path: PathBuf },
    #[error("{} cannot be unmounted: {source}", quoted(.path))]
    Io { path: PathBuf, source: io::Error },
}

/// What an unmount left behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unmounted {
    /// The kernel let go of everything: the volume gets no call any more.
    Done,
    /// The mount is gone from the tree, but programs still have files or working directories in it. They go on being
    /// served until they close them or this process ends.
    StillInUse,
}

/// Set once the kernel has let go of the file system.
pub(crate) struct Ended {
    ended: Mutex<bool>,
    changed: Condvar,
}

impl Ended {
    fn new() -> Self {
        Self {
            ended: Mutex::new(false),
            changed: Condvar::new(),
        }
    }

    pub(crate) fn end(&self) {
        *self.ended.lock() = true;
        self.changed.notify_all();
    }

    fn wait(&self) {
        let mut ended = self.ended.lock();
        while !*ended {
            self.changed.wait(&mut ended);
        }
    }

    /// Whether it ended within `limit`.
    fn wait_for(&self, limit: Duration) -> bool {
        let deadline = Instant::now() + limit;
        let mut ended = self.ended.lock();
        while !*ended {
            if self.changed.wait_until(&mut ended, deadline).timed_out() {
                return *ended;
            }
        }
        true
    }
}

/// A mounted volume. Dropping it unmounts without waiting.
pub struct Mount {
    path: PathBuf,
    /// Which of the mounts that may lie on `path` over time is ours; `None` if it was gone before it could be seen.
    id: Option<MountId>,
    ended: Arc<Ended>,
    invalidations: Arc<Invalidations>,
    threads: Vec<JoinHandle<()>>,
}

/// Mounts `volume` on the directory `mount_point`. A dead mount of ours found there is detached first.
///
/// The volume is [attached](Volume::attach) before the first call reaches it. Everything it is asked runs on threads of
/// the mount.
pub fn mount(
    volume: Arc<dyn Volume>,
    mount_point: &Path,
    options: &MountOptions,
) -> Result<Mount, MountError> {
    attach::check_fsname(&options.fsname)?;
    let path = usable_mount_point(mount_point)?;
    let held = Arc::new(Held {
        lookups: Lookups::new(),
        open: OpenFiles::new(),
    });
    let ended = Arc::new(Ended::new());
    let invalidations = Arc::new(Invalidations::new(held.clone()));
    volume.attach(invalidations.clone() as Arc<dyn Notifier>);

    let device = attach::attach(&path, options)?;
    let adapter = Adapter::new(volume, held, ended.clone());
    let threads = serve(adapter, device, &path, options, &invalidations).map_err(|source| {
        // What is reported is why serving failed; that the empty mount stays as well would only hide it.
        if let Err(error) = attach::detach(&path) {
            tracing::warn!(%error, "a mount that could not be served stays");
        }
        MountError::Io {
            path: path.clone(),
            source,
        }
    })?;
    let seen = mountinfo::mounted_at(&path).ok().flatten();
    let id = seen
        .filter(mountinfo::Entry::is_ccbt)
        .map(|entry| entry.mount_id());
    if let Some(id) = id {
        attach::raise_read_ahead(id.device);
    }
    Ok(Mount {
        path,
        id,
        ended,
        invalidations,
        threads,
    })
}

/// Greets the kernel and starts the threads: the session's and the invalidation's.
fn serve(
    adapter: Adapter,
    device: std::os::fd::OwnedFd,
    path: &Path,
    options: &MountOptions,
    invalidations: &Arc<Invalidations>,
) -> io::Result<Vec<JoinHandle<()>>> {
    let acl = if options.others_allowed() {
        SessionACL::All
    } else {
        SessionACL::Owner
    };
    let mut config = fuser::Config::default();
    config.acl = acl;
    config.n_threads = Some(options.threads.clamp(THREADS_MIN, THREADS_MAX));
    let own = File::from(device.try_clone()?);
    let adapters_own = adapter.notifier.clone();
    let session = Session::from_fd(adapter, device, acl, config)?;
    let _only = adapters_own.set(session.notifier());
    let kernel = Kernel {
        notifier: session.notifier(),
        device: own,
    };
    let invalidating = invalidate::spawn(invalidations.clone(), kernel)?;
    let queue = invalidations.clone();
    let path = path.to_owned();
    let serving = std::thread::Builder::new()
        .name("ccbt-mount".into())
        .spawn(move || {
            let result = session.run();
            queue.close();
            if let Err(error) = result {
                tracing::error!(path = %path.display(), %error, "the mount ended with an error");
            }
        });
    let serving = serving.inspect_err(|_| invalidations.close())?;
    Ok(vec![serving, invalidating])
}

impl Mount {
    /// The mount point, absolute and without symlinks.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What [`abort`] needs to know it by; `None` once unmounted.
    pub fn id(&self) -> Option<MountId> {
        self.id
    }

    /// Waits until the mount has ended, by whoever's `umount`.
    pub fn wait(&self) {
        self.ended.wait();
    }

    /// Something to wait on that leaves the mount free to be unmounted meanwhile.
    pub fn end(&self) -> MountEnd {
        MountEnd(self.ended.clone())
    }

    /// Waits at most `limit`; whether the mount has ended.
    pub fn wait_for(&self, limit: Duration) -> bool {
        self.ended.wait_for(limit)
    }

    /// Ends the connection: every call in the mount fails, those under way and those of files that are open. What stays in
    /// the tree is a dead mount, to be [unmounted](Self::unmount).
    pub fn abort(&self) -> Result<(), UnmountError> {
        match self.id {
            Some(id) => abort(id).map(drop),
            None => Ok(()),
        }
    }

    /// Takes the mount out of the tree at once, even while it is in use, then waits up to 5 s until the last file in it
    /// is closed. Flush what the volume holds before or after, not by being dropped.
    pub fn unmount(mut self) -> Result<Unmounted, UnmountError> {
        self.detach()?;
        if !self.ended.wait_for(DRAIN) {
            return Ok(Unmounted::StillInUse);
        }
        for thread in std::mem::take(&mut self.threads) {
            if thread.join().is_err() {
                tracing::error!(path = %self.path.display(), "a thread of the mount panicked");
            }
        }
        Ok(Unmounted::Done)
    }

    fn detach(&mut self) -> Result<(), UnmountError> {
        self.invalidations.close();
        // Someone else may have unmounted ours and mounted something else on the same path since.
        let Some(ours) = self.id.take() else {
            return Ok(());
        };
        let there = mountinfo::mounted_at(&self.path).map_err(|source| UnmountError::Io {
            path: self.path.clone(),
            source,
        })?;
        match there {
            Some(entry) if entry.device == ours.device && !self.is_replaced() => {
                attach::detach(&self.path)
            }
            _ => Ok(()),
        }
    }

    /// Whether the mount on our path is another one that was given the device number of ours. The kernel does so only
    /// once our file system has ended; a mount that ended by being aborted is still there, but dead.
    fn is_replaced(&self) -> bool {
        self.ended.wait_for(Duration::ZERO) && !attach::is_dead(&self.path)
    }
}

/// Knows when a mount has ended. See [`Mount::end`].
#[derive(Clone)]
pub struct MountEnd(Arc<Ended>);

impl MountEnd {
    /// Waits until the mount has ended, by whoever's `umount`.
    pub fn wait(&self) {
        self.0.wait();
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        if let Err(error) = self.detach() {
            tracing::warn!(%error, "the mount stays");
        }
    }
}

/// `path` resolved, alive, a directory, and nothing of FUSE on it.
fn usable_mount_point(path: &Path) -> Result<PathBuf, MountError> {
    detach_dead(path).map_err(|source| MountError::Dead {
        path: path.into(),
        source,
    })?;
    let classify = |source: io::Error| match failure(&source) {
        Failure::Missing => MountError::NotFound { path: path.into() },
        Failure::NotDirectory => MountError::NotDirectory { path: path.into() },
        _ => MountError::Io {
            path: path.into(),
            source,
        },
    };
    let path = absolute(path).map_err(classify)?;
    match mountinfo::mounted_at(&path) {
        Ok(Some(entry)) if entry.is_fuse() => {
            let command = if entry.is_ccbt() {
                "ccbt unmount"
            } else {
                "fusermount3 -u"
            };
            return Err(MountError::AlreadyMounted {
                path,
                fs_type: entry.fs_type,
                command,
            });
        }
        Ok(_) => {}
        Err(source) => return Err(MountError::Io { path, source }),
    }
    if !path.metadata().map_err(classify)?.is_dir() {
        return Err(MountError::NotDirectory { path });
    }
    Ok(path)
}

/// Ends the connection of a mount of ours, so that every call in it fails. Returns whether it was there.
///
/// For mounts of a process that was killed and cannot end: the kernel may be telling it to wait for a directory that a
/// program has locked, while that program waits for the process. Its mount is then [dead](detach_dead) like any other.
pub fn abort(id: MountId) -> Result<bool, UnmountError> {
    let to_io = |source| UnmountError::Io {
        path: mountinfo::MOUNTINFO.into(),
        source,
    };
    match mountinfo::find(id).map_err(to_io)? {
        Some(path) => attach::abort(&path, id.device.1).map(|()| true),
        None => Ok(false),
    }
}

/// Detaches the mount of ours known by `id` if its process is gone; where it was. One that is served is left alone.
pub fn detach_dead_mount(id: MountId) -> Result<Option<PathBuf>, UnmountError> {
    let to_io = |source| UnmountError::Io {
        path: mountinfo::MOUNTINFO.into(),
        source,
    };
    let Some(path) = mountinfo::find(id).map_err(to_io)? else {
        return Ok(None);
    };
    // The first question may be the one that the ending process leaves without an answer.
    if !attach::is_dead(&path) && !attach::is_dead(&path) {
        return Ok(None);
    }
    match mountinfo::mounted_at(&path).map_err(to_io)? {
        Some(entry) if entry.is_ccbt() && entry.mount_id() == id => attach::detach(&path)?,
        _ => return Ok(None),
    }
    tracing::info!(path = %path.display(), "detached a mount whose process is gone");
    Ok(Some(path))
}

/// Detaches mounts of ours on `path` whose process is gone (every call answers `Transport endpoint is not connected`).
/// Returns whether there was one. Other mounts, dead or alive, are left alone.
pub fn detach_dead(path: &Path) -> Result<bool, UnmountError> {
    let mut found = false;
    for _ in 0..DEAD_MAX {
        if !attach::is_dead(path) {
            break;
        }
        let to_io = |source| UnmountError::Io {
            path: path.into(),
            source,
        };
        let resolved = absolute(path).map_err(to_io)?;
        match mountinfo::mounted_at(&resolved).map_err(to_io)? {
            Some(entry) if entry.is_ccbt() => attach::detach(&resolved)?,
            _ => break,
        }
        tracing::info!(path = %resolved.display(), "detached a mount whose process is gone");
        found = true;
    }
    Ok(found)
}
