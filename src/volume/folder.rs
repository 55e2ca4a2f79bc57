//! A folder as a mountable volume: hands out handles, everything else is the folder's.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use ccbt_mount::{
    Allocate, Attr, Caller, DirEntry, Handle, Ino, Kind, Notifier, OpenMode, Opened, RenameMode,
    Reply, Seek, SetAttr, SetXattr, Statfs, Volume, VolumeError,
};
use parking_lot::RwLock;

use crate::folder::work::{Folder, OpenFile};

/// A listing as it was when the directory was opened, so that offsets stay valid.
type Listing = Arc<Vec<(Bytes, Ino)>>;

/// One mount of a folder.
pub struct FolderVolume {
    folder: Arc<Folder>,
    files: RwLock<HashMap<Handle, Arc<OpenFile>>>,
    dirs: RwLock<HashMap<Handle, Listing>>,
    next: AtomicU64,
}

impl FolderVolume {
    pub fn new(folder: Arc<Folder>) -> Self {
        Self {
            folder,
            files: RwLock::default(),
            dirs: RwLock::default(),
            next: AtomicU64::new(1),
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

    fn keep(&self, (file, keep_cache): (OpenFile, bool)) -> Opened {
        let handle = self.handle();
        self.files.write().insert(handle, Arc::new(file));
        Opened { handle, keep_cache }
    }
}

impl Volume for FolderVolume {
    fn attach(&self, notifier: Arc<dyn Notifier>) {
        self.folder.attach(notifier);
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

    fn setattr(&self, ino: Ino, change: SetAttr, _caller: Caller) -> Result<Attr, VolumeError> {
        let live = self.folder.live();
        if let Some(size) = change.size {
            let file = change.handle.map(|handle| self.file(handle)).transpose()?;
            live.truncate(ino, file.as_deref(), size)?;
        }
        live.set_attributes(ino, &change)?;
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
        self.folder
            .live()
            .mknod(parent, name, kind, (mode, rdev), caller)
    }

    fn mkdir(
        &self,
        parent: Ino,
        name: &[u8],
        mode: u16,
        caller: Caller,
    ) -> Result<Attr, VolumeError> {
        self.folder.live().mkdir(parent, name, mode, caller)
    }

    fn symlink(
        &self,
        parent: Ino,
        name: &[u8],
        target: &[u8],
        caller: Caller,
    ) -> Result<Attr, VolumeError> {
        self.folder.live().symlink(parent, name, target, caller)
    }

    fn link(&self, ino: Ino, parent: Ino, name: &[u8]) -> Result<Attr, VolumeError> {
        self.folder.live().link(ino, parent, name)
    }

    fn unlink(&self, parent: Ino, name: &[u8]) -> Result<(), VolumeError> {
        self.folder.live().unlink(parent, name)
    }

    fn rmdir(&self, parent: Ino, name: &[u8]) -> Result<(), VolumeError> {
        self.folder.live().rmdir(parent, name)
    }

    fn rename(
        &self,
        from: (Ino, &[u8]),
        to: (Ino, &[u8]),
        mode: RenameMode,
    ) -> Result<(), VolumeError> {
        self.folder.live().rename(from, to, mode)
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

    fn write(
        &self,
        _ino: Ino,
        handle: Handle,
        offset: u64,
        data: &[u8],
    ) -> Result<(), VolumeError> {
        let file = self.file(handle)?;
        self.folder.live().write(&file, offset, data)
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
        _ino: Ino,
        handle: Handle,
        offset: u64,
        len: u64,
        how: Allocate,
    ) -> Result<(), VolumeError> {
        let end = offset.checked_add(len).ok_or(VolumeError::TooLarge)?;
        let file = self.file(handle)?;
        self.folder.live().allocate(&file, offset..end, how)
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
        self.folder.live().setxattr(ino, name, value, how)
    }

    fn removexattr(&self, ino: Ino, name: &[u8]) -> Result<(), VolumeError> {
        self.folder.live().removexattr(ino, name)
    }

    fn statfs(&self) -> Result<Statfs, VolumeError> {
        self.folder.live().statfs()
    }
}
