//! What a file system must offer to be mounted: the trait [`Volume`] and the plain types it speaks.
//!
//! A volume knows inodes, names and bytes; it knows nothing of the kernel, of errno numbers or of FUSE. The adapter
//! (`fuse.rs`) knows nothing else. Names are bytes: any byte but NUL and `/`, 1 to [`NAME_BYTES_MAX`] of them.
//!
//! Every call may come from any thread, many at once. A call that returns a `Result` must answer from memory or the
//! local disk, never from the network; the calls that may have to wait for a peer take a [`Reply`], which can be moved to
//! another thread and answered there, exactly once, within the volume's own deadline.

use bytes::Bytes;

use crate::VolumeError;

/// Longest name of a directory entry, in bytes (Linux `NAME_MAX`).
pub const NAME_BYTES_MAX: usize = 255;

/// An inode number. Stable over remounts, never used again for another file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Ino(pub u64);

impl Ino {
    /// The root directory (`FUSE_ROOT_ID`).
    pub const ROOT: Self = Self(1);
}

/// An open file or directory, as the volume numbers it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Handle(pub u64);

/// A point in time: seconds since the epoch (may be negative) and nanoseconds in `0..1_000_000_000`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Time {
    pub secs: i64,
    pub nanos: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    File,
    Dir,
    Symlink,
    Fifo,
    Socket,
    CharDevice,
    BlockDevice,
}

/// What `stat` shows. `mode` holds the permission bits only (`0o7777`), `blocks` are of 512 bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attr {
    pub ino: Ino,
    pub kind: Kind,
    pub mode: u16,
    pub nlink: u32,
    pub uid: u32,
    pub gid: u32,
    pub rdev: u32,
    pub size: u64,
    pub blocks: u64,
    pub atime: Time,
    pub mtime: Time,
    pub ctime: Time,
    /// Handles of this file that are open now show different contents: the kernel must ask again before each use.
    pub fleeting: bool,
}

/// Who asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Caller {
    pub uid: u32,
    pub gid: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SetTime {
    Now,
    At(Time),
}

/// The attributes to change; `None` leaves one as it is. When a write, truncate or chown by an ordinary user takes the
/// set-id bits away, the kernel sends the new `mode` itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SetAttr {
    pub mode: Option<u16>,
    pub uid: Option<u32>,
    pub gid: Option<u32>,
    pub size: Option<u64>,
    pub atime: Option<SetTime>,
    pub mtime: Option<SetTime>,
    /// The open file a truncate came through, if any.
    pub handle: Option<Handle>,
}

/// How a file is opened. Permission was checked by the kernel (`default_permissions`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct OpenMode {
    pub read: bool,
    pub write: bool,
    /// `O_APPEND`: the kernel sends offsets at the end of the file as it knows it; the volume must use its own end.
    pub append: bool,
    pub truncate: bool,
}

/// An opened file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Opened {
    pub handle: Handle,
    /// The content is the one the kernel may have cached for this inode, so keep those pages.
    pub keep_cache: bool,
    /// Others have changed the content, and what the kernel knows of its size may be older: it must ask again, or it would
    /// cut what is read to the old size.
    pub ask_size: bool,
}

/// One row of a directory listing. `offset` is the cookie of the *next* row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DirEntry {
    pub attr: Attr,
    pub name: Bytes,
    pub offset: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RenameMode {
    /// POSIX rename: an existing target is replaced.
    Replace,
    /// `RENAME_NOREPLACE`
    NoReplace,
    /// `RENAME_EXCHANGE`
    Exchange,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SetXattr {
    /// Create or replace.
    Any,
    /// `XATTR_CREATE`
    Create,
    /// `XATTR_REPLACE`
    Replace,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Allocate {
    /// Make the range exist; `keep_size`: without growing the file.
    Reserve { keep_size: bool },
    /// `FALLOC_FL_PUNCH_HOLE`: the range reads as zeros, the size stays.
    Punch,
    /// `FALLOC_FL_ZERO_RANGE`
    Zero { keep_size: bool },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seek {
    Data,
    Hole,
}

/// Sizes for `statfs`, in bytes and inodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Statfs {
    pub bytes_total: u64,
    pub bytes_free: u64,
    pub inodes_total: u64,
    pub inodes_free: u64,
}

type Answer<T> = Box<dyn FnOnce(Result<T, VolumeError>) + Send>;

/// The answer to a call that may take time. Dropped unanswered, it answers [`VolumeError::Io`].
pub struct Reply<T>(Option<Answer<T>>);

impl<T> Reply<T> {
    pub fn new(answer: impl FnOnce(Result<T, VolumeError>) + Send + 'static) -> Self {
        Self(Some(Box::new(answer)))
    }

    pub fn send(mut self, result: Result<T, VolumeError>) {
        if let Some(answer) = self.0.take() {
            answer(result);
        }
    }
}

impl<T> Drop for Reply<T> {
    fn drop(&mut self) {
        if let Some(answer) = self.0.take() {
            answer(Err(VolumeError::Io));
        }
    }
}

/// What the kernel's caches must forget. Handed to the volume at mount; safe to call from any thread, never blocks: the
/// work is queued to the session's own invalidation thread.
pub trait Notifier: Send + Sync {
    /// Attributes and, if nothing has the inode open, cached pages of `ino` changed.
    fn inode_changed(&self, ino: Ino);
    /// The name `name` in `parent` now means something else or nothing.
    fn entry_changed(&self, parent: Ino, name: &[u8]);
}

/// A mountable file system. See the module documentation for what may block.
///
/// `lookup`, `mknod`, `mkdir`, `symlink`, `link`, `create` and each entry a `readdir_plus` hands out count as one
/// reference of the kernel to the inode; the adapter counts them and calls [`Volume::forget`] once none is left, so an
/// unlinked inode must stay valid until it is both closed and forgotten.
pub trait Volume: Send + Sync + 'static {
    /// Called once before any other call, with the way to invalidate kernel caches.
    fn attach(&self, notifier: std::sync::Arc<dyn Notifier>);

    fn lookup(&self, parent: Ino, name: &[u8]) -> Result<Attr, VolumeError>;
    /// The kernel holds no reference to `ino` any more.
    fn forget(&self, ino: Ino);
    fn getattr(&self, ino: Ino) -> Result<Attr, VolumeError>;
    /// The attributes as an open handle shows the file.
    fn getattr_open(&self, ino: Ino, _handle: Handle) -> Result<Attr, VolumeError> {
        self.getattr(ino)
    }
    fn setattr(&self, ino: Ino, change: SetAttr, caller: Caller) -> Result<Attr, VolumeError>;
    fn readlink(&self, ino: Ino) -> Result<Bytes, VolumeError>;

    fn mknod(
        &self,
        parent: Ino,
        name: &[u8],
        kind: Kind,
        mode: u16,
        rdev: u32,
        caller: Caller,
    ) -> Result<Attr, VolumeError>;
    fn mkdir(
        &self,
        parent: Ino,
        name: &[u8],
        mode: u16,
        caller: Caller,
    ) -> Result<Attr, VolumeError>;
    fn symlink(
        &self,
        parent: Ino,
        name: &[u8],
        target: &[u8],
        caller: Caller,
    ) -> Result<Attr, VolumeError>;
    fn link(&self, ino: Ino, parent: Ino, name: &[u8]) -> Result<Attr, VolumeError>;
    fn unlink(&self, parent: Ino, name: &[u8]) -> Result<(), VolumeError>;
    fn rmdir(&self, parent: Ino, name: &[u8]) -> Result<(), VolumeError>;
    fn rename(
        &self,
        from: (Ino, &[u8]),
        to: (Ino, &[u8]),
        mode: RenameMode,
    ) -> Result<(), VolumeError>;

    fn create(
        &self,
        parent: Ino,
        name: &[u8],
        mode: u16,
        open: OpenMode,
        caller: Caller,
    ) -> Result<(Attr, Opened), VolumeError>;
    fn open(&self, ino: Ino, mode: OpenMode) -> Result<Opened, VolumeError>;
    /// Up to `size` bytes at `offset`; fewer only at the end of the file.
    fn read(&self, ino: Ino, handle: Handle, offset: u64, size: u32, reply: Reply<Bytes>);
    /// Writes all of `data`, or nothing.
    fn write(&self, ino: Ino, handle: Handle, offset: u64, data: &[u8]) -> Result<(), VolumeError>;
    /// One of the file descriptors of `handle` was closed.
    fn flush(&self, ino: Ino, handle: Handle) -> Result<(), VolumeError>;
    /// Data and attributes are durable on this machine when it answers.
    fn fsync(&self, ino: Ino, handle: Handle, reply: Reply<()>);
    /// The last descriptor of `handle` was closed.
    fn release(&self, ino: Ino, handle: Handle);
    fn allocate(
        &self,
        ino: Ino,
        handle: Handle,
        offset: u64,
        len: u64,
        how: Allocate,
    ) -> Result<(), VolumeError>;
    fn seek(&self, ino: Ino, handle: Handle, offset: u64, whence: Seek)
    -> Result<u64, VolumeError>;

    /// Takes a snapshot of the listing, so that offsets stay valid while names come and go.
    fn opendir(&self, ino: Ino) -> Result<Handle, VolumeError>;
    /// Rows from cookie `offset` (0 = start, includes `.` and `..`) on, at most `count`; the attributes are current.
    fn readdir(
        &self,
        ino: Ino,
        handle: Handle,
        offset: u64,
        count: usize,
    ) -> Result<Vec<DirEntry>, VolumeError>;
    fn releasedir(&self, ino: Ino, handle: Handle);
    fn fsyncdir(&self, ino: Ino, reply: Reply<()>);

    fn getxattr(&self, ino: Ino, name: &[u8]) -> Result<Bytes, VolumeError>;
    fn listxattr(&self, ino: Ino) -> Result<Vec<Bytes>, VolumeError>;
    fn setxattr(
        &self,
        ino: Ino,
        name: &[u8],
        value: &[u8],
        how: SetXattr,
    ) -> Result<(), VolumeError>;
    fn removexattr(&self, ino: Ino, name: &[u8]) -> Result<(), VolumeError>;

    fn statfs(&self) -> Result<Statfs, VolumeError>;
}
