//! A folder as a mountable volume: hands out handles, and tells the other mounts of the same folder what this one's kernel
//! knows already. Everything else is the folder's.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use ccbt_mount::{
    Allocate, Attr, Caller, DirEntry, Handle, Ino, Kind, Notifier, OpenMode, Opened, RenameMode,
    Reply, Seek, SetAttr, SetXattr, Statfs, Volume, VolumeError,
};
use parking_lot::RwLock;

use crate::folder::work::{Folder, OpenFile, Trusted};

/// A listing as it was when the directory was opened, so that offsets stay valid.
type Listing = Arc<Vec<(Bytes, Ino)>>;

/// One mount of a folder.
pub struct FolderVolume {
    folder: Arc<Folder>,
    files: RwLock<HashMap<Handle, Arc<OpenFile>>>,
    dirs: RwLock<HashMap<Handle, Listing>>,
    next: AtomicU64,
    /// What the folder calls this mount, once it is one.
    number: OnceLock<u64>,
}

impl Drop for FolderVolume {
    fn drop(&mut self) {
        if let Some(number) = self.number.get() {
            self.folder.detach(*number);
        }
    }
}

impl FolderVolume {
    pub fn new(folder: Arc<Folder>) -> Self {
        Self {
            folder,
            files: RwLock::default(),
            dirs: RwLock::default(),
            next: AtomicU64::new(1),
            number: OnceLock::new(),
        }
    }

    fn handle(&self) -> Handle {
        Handle(self.next.fetch_add(1, Ordering::Relaxed))
    }

    fn file(&self, handle: Handle) -> Result<Arc<OpenFile>, VolumeError> {
        self.files
            .read()
            .get(&handle)
            .cloned()
            .ok_or(VolumeError::BadHandle)
    }

    fn tell_others(&self, tell: impl Fn(&dyn Notifier)) {
        if let Some(number) = self.number.get() {
            self.folder.tell_others(*number, tell);
        }
    }

    fn tell_inode(&self, ino: Ino) {
        self.tell_others(|other| other.inode_changed(ino));
    }

    fn tell_name(&self, parent: Ino, name: &[u8]) {
        self.tell_others(|other| {
            other.entry_changed(parent, name);
            other.inode_changed(parent);
        });
    }

    fn keep(&self, (file, trusted): (OpenFile, Trusted)) -> Opened {
        let handle = self.handle();
        self.files.write().insert(handle, Arc::new(file));
        Opened {
            handle,
            keep_cache: trusted.pages,
            ask_size: !trusted.size,
        }
    }
}

impl Volume for FolderVolume {
    fn attach(&self, notifier: Arc<dyn Notifier>) {
        let number = self.folder.attach(notifier);
        let _first = self.number.set(number);
    }

    fn lookup(&self, parent: Ino, name: &[u8]) -> Result<Attr, VolumeError> {
        self.folder.live().lookup(parent, name)
    }

    fn forget(&self, ino: Ino) {
        self.folder.live().forget(ino);
    }

    fn getattr(&self, ino: Ino) -> Result<Attr, VolumeError> {
        self.folder.live().getattr(ino)
    }

    fn getattr_open(&self, ino: Ino, handle: Handle) -> Result<Attr, VolumeError> {
        match self.file(handle) {
            Ok(file) => self.folder.live().getattr_open(&file),
            // A directory's.
            Err(_) => self.getattr(ino),
        }
    }

    fn setattr(&self, ino: Ino, change: SetAttr, _caller: Caller) -> Result<Attr, VolumeError> {
        let live = self.folder.live();
        if let Some(size) = change.size {
            let file = change.handle.map(|handle| self.file(handle)).transpose()?;
            live.truncate(ino, file.as_deref(), size)?;
        }
        live.set_attributes(ino, &change)?;
        self.tell_inode(ino);
        live.getattr(ino)
    }

    fn readlink(&self, ino: Ino) -> Result<Bytes, VolumeError> {
        self.folder.live().readlink(ino)
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
        let made = self
            .folder
            .live()
            .mknod(parent, name, kind, (mode, rdev), caller)?;
        self.tell_name(parent, name);
        Ok(made)
    }

    fn mkdir(
        &self,
        parent: Ino,
        name: &[u8],
        mode: u16,
        caller: Caller,
    ) -> Result<Attr, VolumeError> {
        let made = self.folder.live().mkdir(parent, name, mode, caller)?;
        self.tell_name(parent, name);
        Ok(made)
    }

    fn symlink(
        &self,
        parent: Ino,
        name: &[u8],
        target: &[u8],
        caller: Caller,
    ) -> Result<Attr, VolumeError> {
        let made = self.folder.live().symlink(parent, name, target, caller)?;
        self.tell_name(parent, name);
        Ok(made)
    }

    fn link(&self, ino: Ino, parent: Ino, name: &[u8]) -> Result<Attr, VolumeError> {
        let linked = self.folder.live().link(ino, parent, name)?;
        self.tell_name(parent, name);
        self.tell_inode(ino);
        Ok(linked)
    }

    fn unlink(&self, parent: Ino, name: &[u8]) -> Result<(), VolumeError> {
        self.folder.live().unlink(parent, name)?;
        self.tell_name(parent, name);
        Ok(())
    }

    fn rmdir(&self, parent: Ino, name: &[u8]) -> Result<(), VolumeError> {
        self.folder.live().rmdir(parent, name)?;
        self.tell_name(parent, name);
        Ok(())
    }

    fn rename(
        &self,
        from: (Ino, &[u8]),
        to: (Ino, &[u8]),
        mode: RenameMode,
    ) -> Result<(), VolumeError> {
        self.folder.live().rename(from, to, mode)?;
        self.tell_name(from.0, from.1);
        self.tell_name(to.0, to.1);
        Ok(())
    }

    fn create(
        &self,
        parent: Ino,
        name: &[u8],
        mode: u16,
        open: OpenMode,
        caller: Caller,
    ) -> Result<(Attr, Opened), VolumeError> {
        let live = self.folder.live();
        let attr = live.create_file(parent, name, mode, caller)?;
        self.tell_name(parent, name);
        let open = OpenMode {
            truncate: false,
            ..open
        };
        Ok((attr, self.keep(live.open(attr.ino, open)?)))
    }

    fn open(&self, ino: Ino, mode: OpenMode) -> Result<Opened, VolumeError> {
        Ok(self.keep(self.folder.live().open(ino, mode)?))
    }

    fn read(&self, _ino: Ino, handle: Handle, offset: u64, size: u32, reply: Reply<Bytes>) {
        match self.file(handle) {
            Ok(file) => self.folder.live().read(&file, offset, size, reply),
            Err(error) => reply.send(Err(error)),
        }
    }

    fn write(&self, ino: Ino, handle: Handle, offset: u64, data: &[u8]) -> Result<(), VolumeError> {
        let file = self.file(handle)?;
        self.folder.live().write(&file, offset, data)?;
        self.tell_inode(ino);
        Ok(())
    }

    fn flush(&self, _ino: Ino, handle: Handle) -> Result<(), VolumeError> {
        let file = self.file(handle)?;
        self.folder.live().flush(&file);
        Ok(())
    }

    fn fsync(&self, _ino: Ino, handle: Handle, reply: Reply<()>) {
        let file = self.file(handle);
        reply.send(file.and_then(|file| self.folder.live().fsync(&file)));
    }

    fn release(&self, _ino: Ino, handle: Handle) {
        let file = self.files.write().remove(&handle);
        if let Some(file) = file {
            self.folder.live().close(&file);
        }
    }

    fn allocate(
        &self,
        ino: Ino,
        handle: Handle,
        offset: u64,
        len: u64,
        how: Allocate,
    ) -> Result<(), VolumeError> {
        let end = offset.checked_add(len).ok_or(VolumeError::TooLarge)?;
        let file = self.file(handle)?;
        self.folder.live().allocate(&file, offset..end, how)?;
        self.tell_inode(ino);
        Ok(())
    }

    fn seek(
        &self,
        _ino: Ino,
        handle: Handle,
        offset: u64,
        whence: Seek,
    ) -> Result<u64, VolumeError> {
        let file = self.file(handle)?;
        self.folder.live().seek(&file, offset, whence)
    }

    fn opendir(&self, ino: Ino) -> Result<Handle, VolumeError> {
        let listing = Arc::new(self.folder.live().list(ino)?);
        let handle = self.handle();
        self.dirs.write().insert(handle, listing);
        Ok(handle)
    }

    fn readdir(
        &self,
        _ino: Ino,
        handle: Handle,
        offset: u64,
        count: usize,
    ) -> Result<Vec<DirEntry>, VolumeError> {
        let listing = self
            .dirs
            .read()
            .get(&handle)
            .cloned()
            .ok_or(VolumeError::BadHandle)?;
        let live = self.folder.live();
        let rows = listing.iter().zip(1_u64..).skip(offset as usize);
        // What was removed since is left out.
        let shown = rows.filter_map(|((name, ino), next)| {
            Some(DirEntry {
                attr: live.row(*ino, name)?,
                name: name.clone(),
                offset: next,
            })
        });
        Ok(shown.take(count).collect())
    }

    fn releasedir(&self, _ino: Ino, handle: Handle) {
        self.dirs.write().remove(&handle);
    }

    fn fsyncdir(&self, _ino: Ino, reply: Reply<()>) {
        reply.send(self.folder.live().fsync_names());
    }

    fn getxattr(&self, ino: Ino, name: &[u8]) -> Result<Bytes, VolumeError> {
        self.folder.live().getxattr(ino, name)
    }

    fn listxattr(&self, ino: Ino) -> Result<Vec<Bytes>, VolumeError> {
        self.folder.live().listxattr(ino)
    }

    fn setxattr(
        &self,
        ino: Ino,
        name: &[u8],
        value: &[u8],
        how: SetXattr,
    ) -> Result<(), VolumeError> {
        self.folder.live().setxattr(ino, name, value, how)?;
        self.tell_inode(ino);
        Ok(())
    }

    fn removexattr(&self, ino: Ino, name: &[u8]) -> Result<(), VolumeError> {
        self.folder.live().removexattr(ino, name)?;
        self.tell_inode(ino);
        Ok(())
    }

    fn statfs(&self) -> Result<Statfs, VolumeError> {
        self.folder.live().statfs()
    }
}
