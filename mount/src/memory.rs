//! A complete volume in memory: the reference of what [`Volume`] means, and the double for tests above it.
//!
//! One lock around everything keeps it readable; it is not meant to be fast.

mod pages;
mod tree;

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use parking_lot::Mutex;

use self::pages::{PAGE, Pages};
use self::tree::{Body, Inode, Tree, now};
use crate::{
    Allocate, Attr, Caller, DirEntry, Handle, Ino, Kind, Notifier, OpenMode, Opened, RenameMode,
    Reply, Seek, SetAttr, SetTime, SetXattr, Statfs, Volume, VolumeError,
};

/// Largest file: offsets of the kernel are signed.
const FILE_BYTES_MAX: u64 = i64::MAX.cast_unsigned();
/// Most inodes a volume in memory holds; `statfs` shows it.
const INODES_MAX: u64 = 1 << 24;
/// Longest extended attribute name and value (Linux `XATTR_NAME_MAX`, `XATTR_SIZE_MAX`).
const XATTR_NAME_BYTES_MAX: usize = 255;
const XATTR_VALUE_BYTES_MAX: usize = 65_536;

/// A file system in memory, gone when dropped.
pub struct MemoryVolume {
    state: Mutex<State>,
    notifier: OnceLock<Arc<dyn Notifier>>,
}

struct State {
    tree: Tree,
    handles: HashMap<Handle, Open>,
    next_handle: u64,
    pages_used: u64,
    pages_max: u64,
}

enum Open {
    File(OpenMode),
    /// The listing as it was at `opendir`; `.` and `..` come first.
    Dir(Vec<(Bytes, Ino)>),
}

impl MemoryVolume {
    /// An empty volume whose root belongs to `owner` and whose files hold at most `capacity` bytes together.
    pub fn new(owner: Caller, capacity: u64) -> Self {
        let state = State {
            tree: Tree::new(owner),
            handles: HashMap::new(),
            next_handle: 1,
            pages_used: 0,
            pages_max: capacity / PAGE,
        };
        Self {
            state: Mutex::new(state),
            notifier: OnceLock::new(),
        }
    }

    /// Replaces the content of a file as a peer would: not through the kernel, which is told afterwards.
    pub fn replace_content(&self, ino: Ino, content: &[u8]) -> Result<(), VolumeError> {
        self.replace_untold(ino, content)?;
        if let Some(notifier) = self.notifier() {
            notifier.inode_changed(ino);
        }
        Ok(())
    }

    /// As [`replace_content`](Self::replace_content), and the kernel does not hear of it.
    pub fn replace_untold(&self, ino: Ino, content: &[u8]) -> Result<(), VolumeError> {
        let mut state = self.state.lock();
        state.truncate(ino, 0)?;
        state.write_at(ino, 0, content)?;
        state.tree.get_mut(ino)?.version += 1;
        Ok(())
    }

    /// What [`Volume::attach`] was given; `None` before the volume is mounted.
    pub fn notifier(&self) -> Option<Arc<dyn Notifier>> {
        self.notifier.get().cloned()
    }

    /// Inodes in memory, unlinked ones that are still held included.
    pub fn inodes(&self) -> usize {
        self.state.lock().tree.count()
    }
}

impl State {
    /// Runs `change` on the pages of a file and accounts for the ones it takes and gives back.
    fn change_pages(
        &mut self,
        ino: Ino,
        change: impl FnOnce(&mut Pages),
    ) -> Result<(), VolumeError> {
        let inode = self.tree.get_mut(ino)?;
        let pages = inode.pages_mut()?;
        let before = pages.allocated();
        change(pages);
        let after = pages.allocated();
        inode.modified();
        self.pages_used = self.pages_used + after - before;
        Ok(())
    }

    fn write_at(&mut self, ino: Ino, offset: u64, data: &[u8]) -> Result<(), VolumeError> {
        let len = data.len() as u64;
        check_range(offset, len)?;
        let missing = self.tree.get(ino)?.pages()?.missing(offset, len);
        if self.pages_used + missing > self.pages_max {
            return Err(VolumeError::NoSpace);
        }
        self.change_pages(ino, |pages| pages.write(offset, data))
    }

    fn truncate(&mut self, ino: Ino, size: u64) -> Result<(), VolumeError> {
        check_range(0, size)?;
        self.change_pages(ino, |pages| pages.set_len(size))
    }

    fn open(&mut self, ino: Ino, mode: OpenMode) -> Result<Opened, VolumeError> {
        self.tree.get(ino)?.pages()?;
        if mode.truncate {
            self.truncate(ino, 0)?;
        }
        let handle = self.add_handle(ino, Open::File(mode))?;
        let inode = self.tree.get_mut(ino)?;
        let keep_cache = inode.cached == inode.version;
        inode.cached = inode.version;
        Ok(Opened {
            handle,
            keep_cache,
            ask_size: !keep_cache,
        })
    }

    fn add_handle(&mut self, ino: Ino, open: Open) -> Result<Handle, VolumeError> {
        self.tree.get_mut(ino)?.opens += 1;
        let handle = Handle(self.next_handle);
        self.next_handle += 1;
        self.handles.insert(handle, open);
        Ok(handle)
    }

    fn remove_handle(&mut self, ino: Ino, handle: Handle) {
        if self.handles.remove(&handle).is_none() {
            return;
        }
        if let Ok(inode) = self.tree.get_mut(ino) {
            inode.opens -= 1;
        }
        self.reap(ino);
    }

    /// Frees the inode if nothing holds it, and its pages.
    fn reap(&mut self, ino: Ino) {
        let pages = |tree: &Tree| tree.get(ino).ok()?.pages().ok().map(Pages::allocated);
        let before = pages(&self.tree).unwrap_or(0);
        self.tree.reap(ino);
        self.pages_used -= before - pages(&self.tree).unwrap_or(0);
    }

    /// Runs `change`, which may take the last name of what `parent`/`name` is, and accounts for its pages.
    fn change_names(
        &mut self,
        (parent, name): (Ino, &[u8]),
        change: impl FnOnce(&mut Tree) -> Result<(), VolumeError>,
    ) -> Result<(), VolumeError> {
        let victim = self.tree.child(parent, name).ok();
        let pages = |tree: &Tree| {
            victim.and_then(|ino| tree.get(ino).ok()?.pages().ok().map(Pages::allocated))
        };
        let before = pages(&self.tree).unwrap_or(0);
        change(&mut self.tree)?;
        self.pages_used -= before - pages(&self.tree).unwrap_or(0);
        Ok(())
    }

    fn add(&mut self, parent: Ino, name: &[u8], inode: Inode) -> Result<Attr, VolumeError> {
        if self.tree.count() as u64 >= INODES_MAX {
            return Err(VolumeError::NoSpace);
        }
        let ino = self.tree.add(parent, name, inode)?;
        self.tree.refer(ino)
    }

    fn listing(&self, dir: Ino) -> Result<Vec<(Bytes, Ino)>, VolumeError> {
        let names = self.tree.names(dir)?;
        let dots = [
            (Bytes::from_static(b"."), dir),
            (Bytes::from_static(b".."), self.tree.parent(dir)?),
        ];
        Ok(dots
            .into_iter()
            .chain(names.iter().map(|(name, &ino)| (name.clone(), ino)))
            .collect())
    }
}

fn check_range(offset: u64, len: u64) -> Result<(), VolumeError> {
    match offset.checked_add(len) {
        Some(end) if end <= FILE_BYTES_MAX => Ok(()),
        _ => Err(VolumeError::TooLarge),
    }
}

fn is_dots(name: &[u8]) -> bool {
    matches!(name, b"." | b"..")
}

impl Volume for MemoryVolume {
    fn attach(&self, notifier: Arc<dyn Notifier>) {
        // Mounted a second time it keeps telling the first mount: no test mounts one volume twice.
        drop(self.notifier.set(notifier));
    }

    fn lookup(&self, parent: Ino, name: &[u8]) -> Result<Attr, VolumeError> {
        let mut state = self.state.lock();
        let ino = state.tree.child(parent, name)?;
        state.tree.refer(ino)
    }

    fn forget(&self, ino: Ino) {
        let mut state = self.state.lock();
        if let Ok(inode) = state.tree.get_mut(ino) {
            inode.referenced = false;
        }
        state.reap(ino);
    }

    fn getattr(&self, ino: Ino) -> Result<Attr, VolumeError> {
        Ok(self.state.lock().tree.get(ino)?.attr(ino))
    }

    fn setattr(&self, ino: Ino, change: SetAttr, _caller: Caller) -> Result<Attr, VolumeError> {
        let mut state = self.state.lock();
        if let Some(size) = change.size {
            state.truncate(ino, size)?;
        }
        let inode = state.tree.get_mut(ino)?;
        let time = |set| match set {
            SetTime::Now => now(),
            SetTime::At(time) => time,
        };
        inode.mode = change.mode.unwrap_or(inode.mode);
        inode.uid = change.uid.unwrap_or(inode.uid);
        inode.gid = change.gid.unwrap_or(inode.gid);
        inode.atime = change.atime.map_or(inode.atime, time);
        inode.mtime = change.mtime.map_or(inode.mtime, time);
        inode.ctime = now();
        Ok(inode.attr(ino))
    }

    fn readlink(&self, ino: Ino) -> Result<Bytes, VolumeError> {
        let mut state = self.state.lock();
        let inode = state.tree.get_mut(ino)?;
        inode.accessed();
        match &inode.body {
            Body::Symlink(target) => Ok(target.clone()),
            _ => Err(VolumeError::Invalid),
        }
    }

    fn mknod(
        &self,
        parent: Ino,
        name: &[u8],
        kind: Kind,
        mode: u16,
        rdev: u32,
        caller: Caller,
    ) -> Result<Attr, VolumeError> {
        let body = match kind {
            Kind::File => Body::File(Pages::default()),
            Kind::Dir | Kind::Symlink => return Err(VolumeError::Invalid),
            Kind::Fifo | Kind::Socket | Kind::CharDevice | Kind::BlockDevice => Body::Special,
        };
        let mut inode = Inode::new(kind, mode, caller, body);
        inode.rdev = rdev;
        self.state.lock().add(parent, name, inode)
    }

    fn mkdir(
        &self,
        parent: Ino,
        name: &[u8],
        mode: u16,
        caller: Caller,
    ) -> Result<Attr, VolumeError> {
        let body = Body::Dir {
            names: BTreeMap::new(),
            parent,
        };
        self.state
            .lock()
            .add(parent, name, Inode::new(Kind::Dir, mode, caller, body))
    }

    fn symlink(
        &self,
        parent: Ino,
        name: &[u8],
        target: &[u8],
        caller: Caller,
    ) -> Result<Attr, VolumeError> {
        let body = Body::Symlink(Bytes::copy_from_slice(target));
        self.state
            .lock()
            .add(parent, name, Inode::new(Kind::Symlink, 0o777, caller, body))
    }

    fn link(&self, ino: Ino, parent: Ino, name: &[u8]) -> Result<Attr, VolumeError> {
        let mut state = self.state.lock();
        state.tree.link(ino, parent, name)?;
        state.tree.refer(ino)
    }

    fn unlink(&self, parent: Ino, name: &[u8]) -> Result<(), VolumeError> {
        self.state
            .lock()
            .change_names((parent, name), |tree| tree.unlink(parent, name))
    }

    fn rmdir(&self, parent: Ino, name: &[u8]) -> Result<(), VolumeError> {
        self.state.lock().tree.rmdir(parent, name)
    }

    fn rename(
        &self,
        from: (Ino, &[u8]),
        to: (Ino, &[u8]),
        mode: RenameMode,
    ) -> Result<(), VolumeError> {
        self.state
            .lock()
            .change_names(to, |tree| tree.rename(from, to, mode))
    }

    fn create(
        &self,
        parent: Ino,
        name: &[u8],
        mode: u16,
        open: OpenMode,
        caller: Caller,
    ) -> Result<(Attr, Opened), VolumeError> {
        let mut state = self.state.lock();
        let body = Body::File(Pages::default());
        let attr = state.add(parent, name, Inode::new(Kind::File, mode, caller, body))?;
        Ok((attr, state.open(attr.ino, open)?))
    }

    fn open(&self, ino: Ino, mode: OpenMode) -> Result<Opened, VolumeError> {
        self.state.lock().open(ino, mode)
    }

    fn read(&self, ino: Ino, _handle: Handle, offset: u64, size: u32, reply: Reply<Bytes>) {
        let read = || {
            let mut state = self.state.lock();
            let inode = state.tree.get_mut(ino)?;
            inode.accessed();
            Ok(inode.pages()?.read(offset, size))
        };
        // The reply may be a system call: it is sent after the lock is gone.
        let result = read();
        reply.send(result);
    }

    fn write(&self, ino: Ino, handle: Handle, offset: u64, data: &[u8]) -> Result<(), VolumeError> {
        let mut state = self.state.lock();
        let Some(Open::File(mode)) = state.handles.get(&handle) else {
            return Err(VolumeError::BadHandle);
        };
        let offset = if mode.append {
            state.tree.get(ino)?.pages()?.len()
        } else {
            offset
        };
        state.write_at(ino, offset, data)
    }

    fn flush(&self, _ino: Ino, _handle: Handle) -> Result<(), VolumeError> {
        Ok(())
    }

    fn fsync(&self, _ino: Ino, _handle: Handle, reply: Reply<()>) {
        reply.send(Ok(()));
    }

    fn release(&self, ino: Ino, handle: Handle) {
        self.state.lock().remove_handle(ino, handle);
    }

    fn allocate(
        &self,
        ino: Ino,
        _handle: Handle,
        offset: u64,
        len: u64,
        how: Allocate,
    ) -> Result<(), VolumeError> {
        check_range(offset, len)?;
        let mut state = self.state.lock();
        let keep_size = match how {
            Allocate::Reserve { keep_size } | Allocate::Zero { keep_size } => keep_size,
            Allocate::Punch => true,
        };
        let space = (state.pages_max - state.pages_used) * PAGE;
        if how != Allocate::Punch && len > space {
            return Err(VolumeError::NoSpace);
        }
        state.change_pages(ino, |pages| {
            if !matches!(how, Allocate::Reserve { .. }) {
                pages.punch(offset, len);
            }
            if !keep_size && offset + len > pages.len() {
                pages.set_len(offset + len);
            }
        })
    }

    fn seek(
        &self,
        ino: Ino,
        _handle: Handle,
        offset: u64,
        whence: Seek,
    ) -> Result<u64, VolumeError> {
        let state = self.state.lock();
        let pages = state.tree.get(ino)?.pages()?;
        let found = match whence {
            Seek::Data => pages.next_data(offset),
            Seek::Hole => pages.next_hole(offset),
        };
        found.ok_or(VolumeError::NoSuchOffset)
    }

    fn opendir(&self, ino: Ino) -> Result<Handle, VolumeError> {
        let mut state = self.state.lock();
        let rows = state.listing(ino)?;
        state.add_handle(ino, Open::Dir(rows))
    }

    fn readdir(
        &self,
        ino: Ino,
        handle: Handle,
        offset: u64,
        count: usize,
    ) -> Result<Vec<DirEntry>, VolumeError> {
        let mut guard = self.state.lock();
        let state = &mut *guard;
        // The start of a listing, or rewinddir(3), which has to show what is there now.
        let fresh = if offset == 0 {
            Some(state.listing(ino)?)
        } else {
            None
        };
        let Some(Open::Dir(rows)) = state.handles.get_mut(&handle) else {
            return Err(VolumeError::BadHandle);
        };
        if let Some(fresh) = fresh {
            *rows = fresh;
            state.tree.get_mut(ino)?.accessed();
        }
        let mut entries = Vec::new();
        let skip = usize::try_from(offset).unwrap_or(usize::MAX);
        for (at, (name, child)) in (1..).zip(rows.iter()).skip(skip) {
            let attr = if is_dots(name) {
                state.tree.get(*child).map(|inode| inode.attr(*child))
            } else if state.tree.child(ino, name) == Ok(*child) {
                state.tree.refer(*child)
            } else {
                // A name that went away or means another file must not come back into the kernel's cache.
                continue;
            };
            let Ok(attr) = attr else { continue };
            entries.push(DirEntry {
                attr,
                name: name.clone(),
                offset: at,
            });
            if entries.len() >= count {
                break;
            }
        }
        Ok(entries)
    }

    fn releasedir(&self, ino: Ino, handle: Handle) {
        self.state.lock().remove_handle(ino, handle);
    }

    fn fsyncdir(&self, _ino: Ino, reply: Reply<()>) {
        reply.send(Ok(()));
    }

    fn getxattr(&self, ino: Ino, name: &[u8]) -> Result<Bytes, VolumeError> {
        let state = self.state.lock();
        state
            .tree
            .get(ino)?
            .xattrs
            .get(name)
            .cloned()
            .ok_or(VolumeError::NoAttribute)
    }

    fn listxattr(&self, ino: Ino) -> Result<Vec<Bytes>, VolumeError> {
        Ok(self
            .state
            .lock()
            .tree
            .get(ino)?
            .xattrs
            .keys()
            .cloned()
            .collect())
    }

    fn setxattr(
        &self,
        ino: Ino,
        name: &[u8],
        value: &[u8],
        how: SetXattr,
    ) -> Result<(), VolumeError> {
        if name.len() > XATTR_NAME_BYTES_MAX || value.len() > XATTR_VALUE_BYTES_MAX {
            return Err(VolumeError::ValueTooLong);
        }
        let mut state = self.state.lock();
        let inode = state.tree.get_mut(ino)?;
        match (how, inode.xattrs.contains_key(name)) {
            (SetXattr::Create, true) => return Err(VolumeError::Exists),
            (SetXattr::Replace, false) => return Err(VolumeError::NoAttribute),
            _ => {}
        }
        inode
            .xattrs
            .insert(Bytes::copy_from_slice(name), Bytes::copy_from_slice(value));
        inode.ctime = now();
        Ok(())
    }

    fn removexattr(&self, ino: Ino, name: &[u8]) -> Result<(), VolumeError> {
        let mut state = self.state.lock();
        let inode = state.tree.get_mut(ino)?;
        inode.xattrs.remove(name).ok_or(VolumeError::NoAttribute)?;
        inode.ctime = now();
        Ok(())
    }

    fn statfs(&self) -> Result<Statfs, VolumeError> {
        let state = self.state.lock();
        Ok(Statfs {
            bytes_total: state.pages_max * PAGE,
            bytes_free: (state.pages_max - state.pages_used) * PAGE,
            inodes_total: INODES_MAX,
            inodes_free: INODES_MAX - state.tree.count() as u64,
        })
    }
}

#[cfg(test)]
mod tests;
