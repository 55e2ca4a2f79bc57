//! The adapter between fuser and a [`Volume`]: it translates, counts what the kernel holds, and decides nothing else.
//!
//! Calls run on the session's event threads, which must never wait for a peer: what may take time is given to the volume
//! as an owned [`Reply`]. Every count goes up before the reply that lets the kernel use what was counted.

mod convert;

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};

use fuser::{
    BsdFileFlags, CopyFileRangeFlags, FileHandle, Filesystem, FopenFlags, Generation, INodeNo,
    InitFlags, IoctlFlags, KernelConfig, LockOwner, OpenFlags, PollEvents, PollFlags, PollNotifier,
    RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty,
    ReplyEntry, ReplyIoctl, ReplyLseek, ReplyOpen, ReplyPoll, ReplyStatfs, ReplyWrite, ReplyXattr,
    Request, TimeOrNow, WriteFlags,
};

use self::convert::{
    XattrSpace, allocation, caller, file_attr, file_type, kind_of_mode, negative_entry, open_mode,
    permissions, rename_mode, set_time, set_xattr, whence, xattr_space,
};
use crate::errno::{BUFFER_TOO_SMALL, LOOK_UP_AGAIN, NO_SUCH_IOCTL, NOT_IMPLEMENTED, errno};
use crate::handle::OpenFiles;
use crate::inode::{Lookup, Lookups};
use crate::session::Ended;
use crate::{
    Attr, DirEntry, Handle, Ino, NAME_BYTES_MAX, Opened, Reply, SetAttr, Volume, VolumeError,
};

/// How long the kernel may trust names and attributes. Long, since the volume says when they change.
static TTL: Duration = Duration::from_secs(60);
/// How long it may trust that a name does not exist; short, since a name made by a peer may be waited for.
const NEGATIVE_TTL: Duration = Duration::from_secs(1);
/// Inode numbers are never used again, so one generation is enough.
const GENERATION: Generation = Generation(0);
/// Largest write request: what the kernel allows at most by default (256 pages of `fs.fuse.max_pages_limit`).
const WRITE_BYTES_MAX: u32 = 1 << 20;
/// Read-ahead requests in flight. Reads wait for peers without holding a thread, so many may.
const BACKGROUND_MAX: u16 = 64;
/// Directory rows asked of the volume at once. The kernel's buffer has room for about so many.
const ROWS: usize = 64;
/// `statfs` counts in blocks of this size, in bytes.
const STATFS_BLOCK: u32 = 4096;

/// What is asked of the kernel. A whitelist: fuser accepts bits it cannot serve (`SETXATTR_EXT` ends the session,
/// `HANDLE_KILLPRIV_V2` keeps set-id bits). No locks, so that they stay local to the kernel; no `ATOMIC_O_TRUNC`, since
/// the separate truncate is what takes set-id bits away.
const CAPABILITIES: InitFlags = InitFlags::FUSE_PARALLEL_DIROPS
    .union(InitFlags::FUSE_ASYNC_DIO)
    .union(InitFlags::FUSE_DO_READDIRPLUS)
    .union(InitFlags::FUSE_READDIRPLUS_AUTO)
    .union(InitFlags::FUSE_AUTO_INVAL_DATA);

/// What the kernel holds of a mounted volume; shared with the invalidation thread.
pub(crate) struct Held {
    pub(crate) lookups: Lookups,
    pub(crate) open: OpenFiles,
}

pub(crate) struct Adapter {
    volume: Arc<dyn Volume>,
    held: Arc<Held>,
    /// The way to tell the kernel something. Empty until the session is there.
    pub(crate) notifier: Arc<OnceLock<fuser::Notifier>>,
    ended: Arc<Ended>,
}

impl Adapter {
    pub(crate) fn new(volume: Arc<dyn Volume>, held: Arc<Held>, ended: Arc<Ended>) -> Self {
        Self {
            volume,
            held,
            notifier: Arc::default(),
            ended,
        }
    }

    /// Has the kernel ask for the attributes of a file before it next uses them. Safe while it waits for an answer of ours:
    /// nothing is dropped and no lock of the file is taken.
    fn distrust_size(&self, ino: Ino) {
        let Some(notifier) = self.notifier.get() else {
            return;
        };
        // A negative offset means attributes only.
        if let Err(error) = notifier.inval_inode(INodeNo(ino.0), -1, 0) {
            tracing::debug!(%error, ino = ino.0, "the kernel keeps what it knows of a size");
        }
    }

    fn forget_one(&self, ino: Ino, n: u64) {
        self.held
            .lookups
            .forget(ino, n, |ino| self.volume.forget(ino));
    }

    /// Gives back the references to inodes that a listing showed and the kernel took no reference to.
    fn forget_unused(&self, unused: Vec<Ino>) {
        for ino in unused {
            self.forget_one(ino, 0);
        }
    }

    /// Answers with an inode that is new or that the kernel holds already.
    fn reply_new(&self, result: Result<Attr, VolumeError>, reply: ReplyEntry) {
        match result {
            Ok(attr) => {
                self.held.lookups.count(attr.ino);
                reply.entry(ttl(&attr), &file_attr(&attr), GENERATION);
            }
            Err(error) => reply.error(errno(error)),
        }
    }

    fn fopen_flags(opened: &Opened) -> FopenFlags {
        if opened.keep_cache {
            FopenFlags::FOPEN_KEEP_CACHE
        } else {
            FopenFlags::empty()
        }
    }

    /// Offers the rows from `offset` on to `add` until it says that the buffer is full. Rows count as references; `add`
    /// tells whether the kernel got one, and the inodes of those it did not get are returned. An error means that
    /// nothing was added.
    fn fill(
        &self,
        lookup: &Lookup<'_>,
        (ino, handle): (Ino, Handle),
        mut offset: u64,
        mut add: impl FnMut(&DirEntry) -> Added,
    ) -> Result<Vec<Ino>, VolumeError> {
        let start = offset;
        let mut unused = Vec::new();
        loop {
            let rows = match self.volume.readdir(ino, handle, offset, ROWS) {
                Ok(rows) if rows.is_empty() => return Ok(unused),
                Ok(rows) => rows,
                Err(_) if offset != start => return Ok(unused),
                Err(error) => return Err(error),
            };
            for (at, row) in rows.iter().enumerate() {
                match add(row) {
                    Added::Reference => lookup.count(row.attr.ino),
                    Added::Name => unused.push(row.attr.ino),
                    Added::Full => {
                        unused.extend(rows.iter().skip(at).map(|row| row.attr.ino));
                        return Ok(unused);
                    }
                }
                offset = row.offset;
            }
        }
    }
}

/// What became of a directory row.
enum Added {
    /// The kernel got a name only.
    Name,
    /// The kernel got a reference to the inode.
    Reference,
    /// There was no room for it.
    Full,
}

/// How long the kernel may trust what it is told here.
fn ttl(attr: &Attr) -> &'static Duration {
    match attr.fleeting {
        true => &Duration::ZERO,
        false => &TTL,
    }
}

/// `.` and `..` are not looked up by the kernel even in a READDIRPLUS reply, and hold no reference.
fn is_dots(name: &[u8]) -> bool {
    matches!(name, b"." | b"..")
}

fn reply_empty(reply: ReplyEmpty) -> impl FnOnce(Result<(), VolumeError>) {
    move |result| match result {
        Ok(()) => reply.ok(),
        Err(error) => reply.error(errno(error)),
    }
}

/// Answers an extended attribute call with `value`, or its length if the caller asked for that (`size` 0).
fn reply_xattr(result: Result<&[u8], VolumeError>, size: u32, reply: ReplyXattr) {
    match result {
        Ok(value) if size == 0 => reply.size(u32::try_from(value.len()).unwrap_or(u32::MAX)),
        Ok(value) if value.len() > size as usize => reply.error(BUFFER_TOO_SMALL),
        Ok(value) => reply.data(value),
        Err(error) => reply.error(errno(error)),
    }
}

impl Filesystem for Adapter {
    fn init(&mut self, _req: &Request, config: &mut KernelConfig) -> io::Result<()> {
        let offered = config.capabilities();
        if let Err(missing) = config.add_capabilities(CAPABILITIES & offered) {
            tracing::warn!(?missing, "the kernel refuses capabilities it offered");
        }
        // Both are within fuser's limits, which is all that can fail.
        if config.set_max_write(WRITE_BYTES_MAX).is_err()
            || config.set_max_background(BACKGROUND_MAX).is_err()
        {
            tracing::warn!("request sizes stay at their defaults");
        }
        Ok(())
    }

    fn destroy(&mut self) {
        self.ended.end();
    }

    fn lookup(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        if name.len() > NAME_BYTES_MAX {
            reply.error(errno(VolumeError::NameTooLong));
            return;
        }
        let lookup = self.held.lookups.begin();
        match self.volume.lookup(Ino(parent.0), name.as_bytes()) {
            Ok(attr) => {
                lookup.count(attr.ino);
                reply.entry(ttl(&attr), &file_attr(&attr), GENERATION);
            }
            Err(VolumeError::NotFound) => {
                reply.entry(&NEGATIVE_TTL, &negative_entry(), GENERATION);
            }
            Err(error) => reply.error(errno(error)),
        }
    }

    fn forget(&self, _req: &Request, ino: INodeNo, nlookup: u64) {
        self.forget_one(Ino(ino.0), nlookup);
    }

    fn getattr(&self, _req: &Request, ino: INodeNo, fh: Option<FileHandle>, reply: ReplyAttr) {
        let ino = Ino(ino.0);
        let attr = match fh {
            Some(fh) => self.volume.getattr_open(ino, Handle(fh.0)),
            None => self.volume.getattr(ino),
        };
        match attr {
            Ok(attr) => reply.attr(ttl(&attr), &file_attr(&attr)),
            Err(error) => reply.error(errno(error)),
        }
    }

    fn setattr(
        &self,
        req: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let change = SetAttr {
            mode: mode.map(permissions),
            uid,
            gid,
            size,
            atime: atime.map(set_time),
            mtime: mtime.map(set_time),
            handle: fh.map(|handle| Handle(handle.0)),
        };
        match self.volume.setattr(Ino(ino.0), change, caller(req)) {
            Ok(attr) => reply.attr(ttl(&attr), &file_attr(&attr)),
            Err(error) => reply.error(errno(error)),
        }
    }

    fn readlink(&self, _req: &Request, ino: INodeNo, reply: ReplyData) {
        match self.volume.readlink(Ino(ino.0)) {
            Ok(target) => reply.data(&target),
            Err(error) => reply.error(errno(error)),
        }
    }

    fn mknod(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        rdev: u32,
        reply: ReplyEntry,
    ) {
        let result = kind_of_mode(mode)
            .ok_or(VolumeError::Invalid)
            .and_then(|kind| {
                let (parent, name) = (Ino(parent.0), name.as_bytes());
                self.volume
                    .mknod(parent, name, kind, permissions(mode), rdev, caller(req))
            });
        self.reply_new(result, reply);
    }

    fn mkdir(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        reply: ReplyEntry,
    ) {
        let (parent, name) = (Ino(parent.0), name.as_bytes());
        self.reply_new(
            self.volume
                .mkdir(parent, name, permissions(mode), caller(req)),
            reply,
        );
    }

    fn unlink(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        reply_empty(reply)(self.volume.unlink(Ino(parent.0), name.as_bytes()));
    }

    fn rmdir(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        reply_empty(reply)(self.volume.rmdir(Ino(parent.0), name.as_bytes()));
    }

    fn symlink(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        target: &Path,
        reply: ReplyEntry,
    ) {
        let target = target.as_os_str().as_bytes();
        let (parent, name) = (Ino(parent.0), name.as_bytes());
        self.reply_new(
            self.volume.symlink(parent, name, target, caller(req)),
            reply,
        );
    }

    fn rename(
        &self,
        _req: &Request,
        parent: INodeNo,
        name: &OsStr,
        new_parent: INodeNo,
        new_name: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let result = rename_mode(flags).and_then(|mode| {
            let from = (Ino(parent.0), name.as_bytes());
            self.volume
                .rename(from, (Ino(new_parent.0), new_name.as_bytes()), mode)
        });
        reply_empty(reply)(result);
    }

    fn link(&self, _req: &Request, ino: INodeNo, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let result = self.volume.link(Ino(ino.0), Ino(parent.0), name.as_bytes());
        self.reply_new(result, reply);
    }

    fn create(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        let (parent, name) = (Ino(parent.0), name.as_bytes());
        let open = open_mode(OpenFlags(flags));
        match self
            .volume
            .create(parent, name, permissions(mode), open, caller(req))
        {
            Ok((attr, opened)) => {
                self.held.lookups.count(attr.ino);
                self.held.open.opened(attr.ino);
                let (handle, flags) = (FileHandle(opened.handle.0), Self::fopen_flags(&opened));
                reply.created(ttl(&attr), &file_attr(&attr), GENERATION, handle, flags);
            }
            // A peer made the name while the kernel believed that there was none.
            Err(VolumeError::Exists) if !convert::is_exclusive(flags) => {
                reply.error(LOOK_UP_AGAIN);
            }
            Err(error) => reply.error(errno(error)),
        }
    }

    fn open(&self, _req: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let ino = Ino(ino.0);
        // Counted first: from here on an invalidation must not wait for pages of this inode.
        self.held.open.opened(ino);
        match self.volume.open(ino, open_mode(flags)) {
            Ok(opened) => {
                if opened.ask_size {
                    self.distrust_size(ino);
                }
                reply.opened(FileHandle(opened.handle.0), Self::fopen_flags(&opened));
            }
            Err(error) => {
                self.held.open.released(ino);
                reply.error(errno(error));
            }
        }
    }

    fn read(
        &self,
        _req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let reply = Reply::new(
            move |result: Result<bytes::Bytes, VolumeError>| match result {
                Ok(data) => reply.data(&data),
                Err(error) => reply.error(errno(error)),
            },
        );
        self.volume
            .read(Ino(ino.0), Handle(fh.0), offset, size, reply);
    }

    fn write(
        &self,
        _req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        data: &[u8],
        _write_flags: WriteFlags,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        match self.volume.write(Ino(ino.0), Handle(fh.0), offset, data) {
            Ok(()) => reply.written(u32::try_from(data.len()).unwrap_or(u32::MAX)),
            Err(error) => reply.error(errno(error)),
        }
    }

    fn flush(
        &self,
        _req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        _lock_owner: LockOwner,
        reply: ReplyEmpty,
    ) {
        reply_empty(reply)(self.volume.flush(Ino(ino.0), Handle(fh.0)));
    }

    fn release(
        &self,
        _req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        self.volume.release(Ino(ino.0), Handle(fh.0));
        self.held.open.released(Ino(ino.0));
        reply.ok();
    }

    fn fsync(
        &self,
        _req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        _datasync: bool,
        reply: ReplyEmpty,
    ) {
        self.volume
            .fsync(Ino(ino.0), Handle(fh.0), Reply::new(reply_empty(reply)));
    }

    fn opendir(&self, _req: &Request, ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        match self.volume.opendir(Ino(ino.0)) {
            Ok(handle) => reply.opened(FileHandle(handle.0), FopenFlags::empty()),
            Err(error) => reply.error(errno(error)),
        }
    }

    fn readdir(
        &self,
        _req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        let lookup = self.held.lookups.begin();
        let filled = self.fill(&lookup, (Ino(ino.0), Handle(fh.0)), offset, |row| {
            let (ino, kind) = (INodeNo(row.attr.ino.0), file_type(row.attr.kind));
            let full = reply.add(ino, row.offset, kind, OsStr::from_bytes(&row.name));
            if full { Added::Full } else { Added::Name }
        });
        let unused = match filled {
            Ok(unused) => {
                reply.ok();
                unused
            }
            Err(error) => {
                reply.error(errno(error));
                return;
            }
        };
        drop(lookup);
        self.forget_unused(unused);
    }

    fn readdirplus(
        &self,
        _req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        let lookup = self.held.lookups.begin();
        let filled = self.fill(&lookup, (Ino(ino.0), Handle(fh.0)), offset, |row| {
            let (attr, name) = (file_attr(&row.attr), OsStr::from_bytes(&row.name));
            if reply.add(
                attr.ino,
                row.offset,
                name,
                ttl(&row.attr),
                &attr,
                GENERATION,
            ) {
                Added::Full
            } else if is_dots(&row.name) {
                Added::Name
            } else {
                Added::Reference
            }
        });
        let unused = match filled {
            Ok(unused) => {
                reply.ok();
                unused
            }
            Err(error) => {
                reply.error(errno(error));
                return;
            }
        };
        drop(lookup);
        self.forget_unused(unused);
    }

    fn releasedir(
        &self,
        _req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        _flags: OpenFlags,
        reply: ReplyEmpty,
    ) {
        self.volume.releasedir(Ino(ino.0), Handle(fh.0));
        reply.ok();
    }

    fn fsyncdir(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        _datasync: bool,
        reply: ReplyEmpty,
    ) {
        self.volume
            .fsyncdir(Ino(ino.0), Reply::new(reply_empty(reply)));
    }

    fn statfs(&self, _req: &Request, _ino: INodeNo, reply: ReplyStatfs) {
        match self.volume.statfs() {
            Ok(stat) => {
                let block = u64::from(STATFS_BLOCK);
                let (total, free) = (stat.bytes_total / block, stat.bytes_free / block);
                let (inodes, inodes_free) = (stat.inodes_total, stat.inodes_free);
                let name_max = NAME_BYTES_MAX as u32;
                let size = STATFS_BLOCK;
                reply.statfs(total, free, free, inodes, inodes_free, size, name_max, size);
            }
            Err(error) => reply.error(errno(error)),
        }
    }

    fn getxattr(&self, _req: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        let result = match xattr_space(name.as_bytes()) {
            XattrSpace::Volume => self.volume.getxattr(Ino(ino.0), name.as_bytes()),
            // Asked before every write: there is none, and the volume need not be troubled.
            XattrSpace::Security => Err(VolumeError::NoAttribute),
            XattrSpace::System => Err(VolumeError::NotSupported),
        };
        reply_xattr(result.as_deref().map_err(|&error| error), size, reply);
    }

    fn listxattr(&self, req: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        let result = self
            .volume
            .listxattr(Ino(ino.0))
            .map(|names| convert::name_list(&names, req.uid() == 0));
        reply_xattr(result.as_deref().map_err(|&error| error), size, reply);
    }

    fn setxattr(
        &self,
        _req: &Request,
        ino: INodeNo,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        _position: u32,
        reply: ReplyEmpty,
    ) {
        let result = match xattr_space(name.as_bytes()) {
            XattrSpace::Volume => set_xattr(flags).and_then(|how| {
                self.volume
                    .setxattr(Ino(ino.0), name.as_bytes(), value, how)
            }),
            XattrSpace::Security | XattrSpace::System => Err(VolumeError::NotSupported),
        };
        reply_empty(reply)(result);
    }

    fn removexattr(&self, _req: &Request, ino: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let result = match xattr_space(name.as_bytes()) {
            XattrSpace::Volume => self.volume.removexattr(Ino(ino.0), name.as_bytes()),
            XattrSpace::Security => Err(VolumeError::NoAttribute),
            XattrSpace::System => Err(VolumeError::NotSupported),
        };
        reply_empty(reply)(result);
    }

    fn fallocate(
        &self,
        _req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let result = allocation(mode).and_then(|how| {
            self.volume
                .allocate(Ino(ino.0), Handle(fh.0), offset, length, how)
        });
        reply_empty(reply)(result);
    }

    fn lseek(
        &self,
        _req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: i64,
        whence_code: i32,
        reply: ReplyLseek,
    ) {
        let result = whence(whence_code).and_then(|whence| {
            let offset = u64::try_from(offset).map_err(|_| VolumeError::NoSuchOffset)?;
            let found = self.volume.seek(Ino(ino.0), Handle(fh.0), offset, whence)?;
            i64::try_from(found).map_err(|_| VolumeError::TooLarge)
        });
        match result {
            Ok(found) => reply.offset(found),
            Err(error) => reply.error(errno(error)),
        }
    }

    fn copy_file_range(
        &self,
        _req: &Request,
        _ino_in: INodeNo,
        _fh_in: FileHandle,
        _offset_in: u64,
        _ino_out: INodeNo,
        _fh_out: FileHandle,
        _offset_out: u64,
        _len: u64,
        _flags: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        // The kernel copies by read and write from then on.
        reply.error(NOT_IMPLEMENTED);
    }

    fn poll(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _notifier: PollNotifier,
        _events: PollEvents,
        _flags: PollFlags,
        reply: ReplyPoll,
    ) {
        // The kernel takes every file as ready from then on, which is what a file is.
        reply.error(NOT_IMPLEMENTED);
    }

    fn ioctl(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _flags: IoctlFlags,
        _cmd: u32,
        _in_data: &[u8],
        _out_size: u32,
        reply: ReplyIoctl,
    ) {
        reply.error(NO_SUCH_IOCTL);
    }
}
