//! Inodes and names of a volume in memory: a plain table of inodes, each directory a sorted map of names.

use std::collections::{BTreeMap, HashMap};
use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;

use super::pages::{PAGE, Pages};
use crate::{Attr, Caller, Ino, Kind, NAME_BYTES_MAX, RenameMode, Time, VolumeError};

/// Most names an inode may have, as on ext4.
const LINKS_MAX: u32 = 65_000;

const SET_GID: u16 = 0o2000;

pub(super) enum Body {
    File(Pages),
    Dir {
        names: BTreeMap<Bytes, Ino>,
        parent: Ino,
    },
    Symlink(Bytes),
    Special,
}

pub(super) struct Inode {
    pub(super) kind: Kind,
    pub(super) mode: u16,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) rdev: u32,
    pub(super) nlink: u32,
    pub(super) atime: Time,
    pub(super) mtime: Time,
    pub(super) ctime: Time,
    pub(super) xattrs: BTreeMap<Bytes, Bytes>,
    pub(super) body: Body,
    /// Open handles, directories included.
    pub(super) opens: u32,
    /// The kernel was told of it and has not forgotten it.
    pub(super) referenced: bool,
    /// Rises when the content changes behind the kernel's back.
    pub(super) version: u64,
    /// The version whose pages the kernel may have cached.
    pub(super) cached: u64,
}

impl Inode {
    pub(super) fn new(kind: Kind, mode: u16, caller: Caller, body: Body) -> Self {
        let now = now();
        Self {
            kind,
            mode,
            uid: caller.uid,
            gid: caller.gid,
            rdev: 0,
            nlink: 0,
            atime: now,
            mtime: now,
            ctime: now,
            xattrs: BTreeMap::new(),
            body,
            opens: 0,
            referenced: false,
            version: 0,
            cached: 0,
        }
    }

    pub(super) fn attr(&self, ino: Ino) -> Attr {
        let (size, blocks) = match &self.body {
            Body::File(pages) => (pages.len(), pages.allocated() * (PAGE / 512)),
            Body::Dir { .. } => (PAGE, PAGE / 512),
            Body::Symlink(target) => (target.len() as u64, 0),
            Body::Special => (0, 0),
        };
        Attr {
            ino,
            kind: self.kind,
            mode: self.mode,
            nlink: self.nlink,
            uid: self.uid,
            gid: self.gid,
            rdev: self.rdev,
            size,
            blocks,
            atime: self.atime,
            mtime: self.mtime,
            ctime: self.ctime,
            fleeting: false,
        }
    }

    pub(super) fn pages(&self) -> Result<&Pages, VolumeError> {
        match &self.body {
            Body::File(pages) => Ok(pages),
            Body::Dir { .. } => Err(VolumeError::IsDirectory),
            Body::Symlink(_) | Body::Special => Err(VolumeError::Invalid),
        }
    }

    pub(super) fn pages_mut(&mut self) -> Result<&mut Pages, VolumeError> {
        match &mut self.body {
            Body::File(pages) => Ok(pages),
            Body::Dir { .. } => Err(VolumeError::IsDirectory),
            Body::Symlink(_) | Body::Special => Err(VolumeError::Invalid),
        }
    }

    /// Content changed.
    pub(super) fn modified(&mut self) {
        self.mtime = now();
        self.ctime = self.mtime;
    }

    /// Content was read: moves the access time if it is older than the last change (as `relatime` does).
    pub(super) fn accessed(&mut self) {
        if self.atime <= self.mtime || self.atime <= self.ctime {
            self.atime = now();
        }
    }
}

/// The system's clock as a [`Time`].
pub(super) fn now() -> Time {
    // A clock before 1970 is a broken clock: the epoch is as good as any other answer.
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    Time {
        secs: since.as_secs().cast_signed(),
        nanos: since.subsec_nanos(),
    }
}

pub(super) struct Tree {
    inodes: HashMap<Ino, Inode>,
    next: u64,
}

impl Tree {
    pub(super) fn new(root: Caller) -> Self {
        let body = Body::Dir {
            names: BTreeMap::new(),
            parent: Ino::ROOT,
        };
        let mut inode = Inode::new(Kind::Dir, 0o755, root, body);
        inode.nlink = 2;
        Self {
            inodes: HashMap::from([(Ino::ROOT, inode)]),
            next: Ino::ROOT.0 + 1,
        }
    }

    pub(super) fn count(&self) -> usize {
        self.inodes.len()
    }

    pub(super) fn get(&self, ino: Ino) -> Result<&Inode, VolumeError> {
        self.inodes.get(&ino).ok_or(VolumeError::NotFound)
    }

    pub(super) fn get_mut(&mut self, ino: Ino) -> Result<&mut Inode, VolumeError> {
        self.inodes.get_mut(&ino).ok_or(VolumeError::NotFound)
    }

    /// Attributes for the kernel, which holds a reference from now on.
    pub(super) fn refer(&mut self, ino: Ino) -> Result<Attr, VolumeError> {
        let inode = self.get_mut(ino)?;
        inode.referenced = true;
        Ok(inode.attr(ino))
    }

    pub(super) fn child(&self, parent: Ino, name: &[u8]) -> Result<Ino, VolumeError> {
        if name.len() > NAME_BYTES_MAX {
            return Err(VolumeError::NameTooLong);
        }
        self.names(parent)?
            .get(name)
            .copied()
            .ok_or(VolumeError::NotFound)
    }

    pub(super) fn names(&self, dir: Ino) -> Result<&BTreeMap<Bytes, Ino>, VolumeError> {
        match &self.get(dir)?.body {
            Body::Dir { names, .. } => Ok(names),
            _ => Err(VolumeError::NotDirectory),
        }
    }

    pub(super) fn parent(&self, dir: Ino) -> Result<Ino, VolumeError> {
        match &self.get(dir)?.body {
            Body::Dir { parent, .. } => Ok(*parent),
            _ => Err(VolumeError::NotDirectory),
        }
    }

    /// Gives a new inode its first name. In a set-gid directory it takes the directory's group.
    pub(super) fn add(
        &mut self,
        parent: Ino,
        name: &[u8],
        mut inode: Inode,
    ) -> Result<Ino, VolumeError> {
        self.check_free(parent, name)?;
        let dir = self.get(parent)?;
        if dir.mode & SET_GID != 0 {
            inode.gid = dir.gid;
            if inode.kind == Kind::Dir {
                inode.mode |= SET_GID;
            }
        }
        inode.nlink = if inode.kind == Kind::Dir { 2 } else { 1 };
        let ino = Ino(self.next);
        self.next += 1;
        self.inodes.insert(ino, inode);
        self.bind(parent, name, ino)?;
        Ok(ino)
    }

    pub(super) fn link(&mut self, ino: Ino, parent: Ino, name: &[u8]) -> Result<(), VolumeError> {
        let inode = self.get(ino)?;
        match inode.nlink {
            _ if inode.kind == Kind::Dir => return Err(VolumeError::NotPermitted),
            0 => return Err(VolumeError::NotFound),
            LINKS_MAX.. => return Err(VolumeError::TooManyLinks),
            _ => {}
        }
        self.check_free(parent, name)?;
        self.bind(parent, name, ino)?;
        let inode = self.get_mut(ino)?;
        inode.nlink += 1;
        inode.ctime = now();
        Ok(())
    }

    pub(super) fn unlink(&mut self, parent: Ino, name: &[u8]) -> Result<(), VolumeError> {
        let ino = self.child(parent, name)?;
        if self.get(ino)?.kind == Kind::Dir {
            return Err(VolumeError::IsDirectory);
        }
        self.unbind(parent, name)?;
        self.drop_name(ino)
    }

    pub(super) fn rmdir(&mut self, parent: Ino, name: &[u8]) -> Result<(), VolumeError> {
        let ino = self.child(parent, name)?;
        if !self.names(ino)?.is_empty() {
            return Err(VolumeError::NotEmpty);
        }
        self.unbind(parent, name)?;
        self.drop_name(ino)
    }

    pub(super) fn rename(
        &mut self,
        from: (Ino, &[u8]),
        to: (Ino, &[u8]),
        mode: RenameMode,
    ) -> Result<(), VolumeError> {
        let source = self.child(from.0, from.1)?;
        let target = match self.child(to.0, to.1) {
            Ok(ino) => Some(ino),
            Err(VolumeError::NotFound) => None,
            Err(error) => return Err(error),
        };
        self.check_outside(source, to.0)?;
        match (mode, target) {
            (RenameMode::NoReplace, Some(_)) => Err(VolumeError::Exists),
            (RenameMode::Exchange, None) => Err(VolumeError::NotFound),
            (_, Some(target)) if target == source => Ok(()),
            (RenameMode::Exchange, Some(target)) => {
                self.check_outside(target, from.0)?;
                self.unbind(to.0, to.1)?;
                self.unbind(from.0, from.1)?;
                self.bind(from.0, from.1, target)?;
                self.bind(to.0, to.1, source)?;
                self.get_mut(target)?.ctime = now();
                self.moved(source)
            }
            (_, target) => {
                if let Some(target) = target {
                    self.check_replaceable(source, target)?;
                    self.unbind(to.0, to.1)?;
                    self.drop_name(target)?;
                } else {
                    self.check_free(to.0, to.1)?;
                }
                self.unbind(from.0, from.1)?;
                self.bind(to.0, to.1, source)?;
                self.moved(source)
            }
        }
    }

    /// Frees an inode that has no name, no open file and no reference left.
    pub(super) fn reap(&mut self, ino: Ino) {
        if let Some(inode) = self.inodes.get(&ino)
            && inode.nlink == 0
            && inode.opens == 0
            && !inode.referenced
        {
            self.inodes.remove(&ino);
        }
    }

    fn moved(&mut self, ino: Ino) -> Result<(), VolumeError> {
        self.get_mut(ino)?.ctime = now();
        Ok(())
    }

    fn check_replaceable(&self, source: Ino, target: Ino) -> Result<(), VolumeError> {
        let is_dir = |ino| Ok(self.get(ino)?.kind == Kind::Dir);
        match (is_dir(source)?, is_dir(target)?) {
            (true, false) => Err(VolumeError::NotDirectory),
            (false, true) => Err(VolumeError::IsDirectory),
            (true, true) if !self.names(target)?.is_empty() => Err(VolumeError::NotEmpty),
            _ => Ok(()),
        }
    }

    /// `dir` must not lie in `ino`, or a loop cut off from the root would come to be.
    fn check_outside(&self, ino: Ino, dir: Ino) -> Result<(), VolumeError> {
        let mut at = dir;
        loop {
            if at == ino {
                return Err(VolumeError::Invalid);
            }
            let parent = self.parent(at)?;
            if parent == at {
                return Ok(());
            }
            at = parent;
        }
    }

    /// `name` is a valid name that a living directory does not have yet.
    fn check_free(&self, parent: Ino, name: &[u8]) -> Result<(), VolumeError> {
        if name.len() > NAME_BYTES_MAX {
            return Err(VolumeError::NameTooLong);
        }
        if matches!(name, b"" | b"." | b"..") || name.iter().any(|&byte| byte == 0 || byte == b'/')
        {
            return Err(VolumeError::Invalid);
        }
        if self.names(parent)?.contains_key(name) {
            return Err(VolumeError::Exists);
        }
        if self.get(parent)?.nlink == 0 {
            return Err(VolumeError::NotFound);
        }
        Ok(())
    }

    /// Puts a name into a directory; the link count of the inode itself is the caller's.
    fn bind(&mut self, dir: Ino, name: &[u8], ino: Ino) -> Result<(), VolumeError> {
        let is_dir = match &mut self.get_mut(ino)?.body {
            Body::Dir { parent, .. } => {
                *parent = dir;
                true
            }
            _ => false,
        };
        self.change_names(dir, |names| {
            names.insert(Bytes::copy_from_slice(name), ino);
        })?;
        if is_dir {
            self.get_mut(dir)?.nlink += 1;
        }
        Ok(())
    }

    fn unbind(&mut self, dir: Ino, name: &[u8]) -> Result<(), VolumeError> {
        let ino = self.child(dir, name)?;
        self.change_names(dir, |names| {
            names.remove(name);
        })?;
        if self.get(ino)?.kind == Kind::Dir {
            self.get_mut(dir)?.nlink -= 1;
        }
        Ok(())
    }

    fn change_names(
        &mut self,
        dir: Ino,
        change: impl FnOnce(&mut BTreeMap<Bytes, Ino>),
    ) -> Result<(), VolumeError> {
        let inode = self.get_mut(dir)?;
        match &mut inode.body {
            Body::Dir { names, .. } => change(names),
            _ => return Err(VolumeError::NotDirectory),
        }
        inode.modified();
        Ok(())
    }

    /// One name less: a directory has only one, a file may live on under others or open.
    fn drop_name(&mut self, ino: Ino) -> Result<(), VolumeError> {
        let inode = self.get_mut(ino)?;
        inode.nlink = if inode.kind == Kind::Dir {
            0
        } else {
            inode.nlink - 1
        };
        inode.ctime = now();
        self.reap(ino);
        Ok(())
    }
}
