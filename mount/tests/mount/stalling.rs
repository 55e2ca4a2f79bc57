//! A volume in memory whose reads are answered when the test says so, and whose renames may never be.

use std::sync::Arc;

use bytes::Bytes;
use ccbt_mount::{
    Allocate, Attr, Caller, DirEntry, Handle, Ino, Kind, MemoryVolume, Notifier, OpenMode, Opened,
    RenameMode, Reply, Seek, SetAttr, SetXattr, Statfs, Volume, VolumeError,
};
use parking_lot::Mutex;

pub(crate) struct StallingVolume {
    pub(crate) inner: MemoryVolume,
    stalled: Mutex<Vec<Stalled>>,
    hold_renames: bool,
}

struct Stalled {
    ino: Ino,
    handle: Handle,
    offset: u64,
    size: u32,
    reply: Reply<Bytes>,
}

impl StallingVolume {
    pub(crate) fn new(inner: MemoryVolume) -> Self {
        Self {
            inner,
            stalled: Mutex::new(Vec::new()),
            hold_renames: false,
        }
    }

    /// A rename tells the kernel about another change of the directory, which waits for its lock, and never ends.
    pub(crate) fn holding_renames(inner: MemoryVolume) -> Self {
        Self {
            hold_renames: true,
            ..Self::new(inner)
        }
    }

    /// How many reads wait.
    pub(crate) fn stalled(&self) -> usize {
        self.stalled.lock().len()
    }

    /// Answers all waiting reads.
    pub(crate) fn answer(&self) {
        for read in self.take() {
            self.inner
                .read(read.ino, read.handle, read.offset, read.size, read.reply);
        }
    }

    /// Drops all waiting reads without an answer.
    pub(crate) fn abandon(&self) {
        drop(self.take());
    }

    fn take(&self) -> Vec<Stalled> {
        std::mem::take(&mut *self.stalled.lock())
    }
}

/// Abandons what waits when a test ends, also by a panic: a thread stuck in the kernel would keep the process for ever.
pub(crate) struct AbandonAtEnd(pub(crate) Arc<StallingVolume>);

impl Drop for AbandonAtEnd {
    fn drop(&mut self) {
        self.0.abandon();
    }
}

macro_rules! as_inner {
    ($($name:ident($($arg:ident: $type:ty),*) $(-> $result:ty)?;)*) => {
        $(fn $name(&self, $($arg: $type),*) $(-> $result)? { self.inner.$name($($arg),*) })*
    };
}

type Answer<T> = Result<T, VolumeError>;

impl Volume for StallingVolume {
    fn read(&self, ino: Ino, handle: Handle, offset: u64, size: u32, reply: Reply<Bytes>) {
        self.stalled.lock().push(Stalled {
            ino,
            handle,
            offset,
            size,
            reply,
        });
    }

    fn rename(&self, from: (Ino, &[u8]), to: (Ino, &[u8]), mode: RenameMode) -> Answer<()> {
        if self.hold_renames {
            let notifier = self.inner.notifier().expect("attached by mounting");
            notifier.entry_changed(to.0, b"other");
            loop {
                std::thread::park();
            }
        }
        self.inner.rename(from, to, mode)
    }

    as_inner! {
        attach(notifier: Arc<dyn Notifier>);
        lookup(parent: Ino, name: &[u8]) -> Answer<Attr>;
        forget(ino: Ino);
        getattr(ino: Ino) -> Answer<Attr>;
        setattr(ino: Ino, change: SetAttr, caller: Caller) -> Answer<Attr>;
        readlink(ino: Ino) -> Answer<Bytes>;
        mknod(parent: Ino, name: &[u8], kind: Kind, mode: u16, rdev: u32, caller: Caller) -> Answer<Attr>;
        mkdir(parent: Ino, name: &[u8], mode: u16, caller: Caller) -> Answer<Attr>;
        symlink(parent: Ino, name: &[u8], target: &[u8], caller: Caller) -> Answer<Attr>;
        link(ino: Ino, parent: Ino, name: &[u8]) -> Answer<Attr>;
        unlink(parent: Ino, name: &[u8]) -> Answer<()>;
        rmdir(parent: Ino, name: &[u8]) -> Answer<()>;
        create(parent: Ino, name: &[u8], mode: u16, open: OpenMode, caller: Caller) -> Answer<(Attr, Opened)>;
        open(ino: Ino, mode: OpenMode) -> Answer<Opened>;
        write(ino: Ino, handle: Handle, offset: u64, data: &[u8]) -> Answer<()>;
        flush(ino: Ino, handle: Handle) -> Answer<()>;
        fsync(ino: Ino, handle: Handle, reply: Reply<()>);
        release(ino: Ino, handle: Handle);
        allocate(ino: Ino, handle: Handle, offset: u64, len: u64, how: Allocate) -> Answer<()>;
        seek(ino: Ino, handle: Handle, offset: u64, whence: Seek) -> Answer<u64>;
        opendir(ino: Ino) -> Answer<Handle>;
        readdir(ino: Ino, handle: Handle, offset: u64, count: usize) -> Answer<Vec<DirEntry>>;
        releasedir(ino: Ino, handle: Handle);
        fsyncdir(ino: Ino, reply: Reply<()>);
        getxattr(ino: Ino, name: &[u8]) -> Answer<Bytes>;
        listxattr(ino: Ino) -> Answer<Vec<Bytes>>;
        setxattr(ino: Ino, name: &[u8], value: &[u8], how: SetXattr) -> Answer<()>;
        removexattr(ino: Ino, name: &[u8]) -> Answer<()>;
        statfs() -> Answer<Statfs>;
    }
}
