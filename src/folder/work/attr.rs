//! Attributes: what `stat` shows, and changing it. Kind, mode, mtime and user xattrs are the state's; owner, atime, ctime
//! and the set-id bits are this machine's.

use bytes::Bytes;
use ccbt_mount::{Attr, Kind, SetAttr, SetTime, SetXattr, Statfs, VolumeError};

use super::body::Body;
use super::core::{Core, Op, Refused, Shown, time_of};
use super::inodes::{Ino, Inode, Local, NodeKind, SpecialKind};
use super::namespace::{SET_ID, SHARED_MODE};
use super::open::OpenFile;
use super::read::Presence;
use super::{Dirty, Inner};
use crate::folder::state::{FileKind, FileNode, Target, Time, Xattrs};

/// Bytes a directory is said to have.
const DIR_SIZE: u64 = 4096;

/// Inodes a folder is said to have room for.
const INODES_MAX: u64 = 1 << 32;

/// Unit of `st_blocks`.
const BLOCK_BYTES: u64 = 512;

/// All extended attributes of one file or directory, as the format limits them.
const XATTRS_BYTES_MAX: usize = 64 << 10;
const XATTR_NAME_MAX: usize = 255;

/// Computed attributes.
const XATTR_STATE: &[u8] = b"user.ccbt.state";
const XATTR_HASH: &[u8] = b"user.ccbt.hash";
const OWN_XATTRS: &[u8] = b"user.ccbt.";

/// The same time in the mount's type.
fn stamp(time: Time) -> ccbt_mount::Time {
    ccbt_mount::Time {
        secs: time.secs,
        nanos: time.nanos,
    }
}

impl Core {
    pub(super) fn attr(&self, ino: Ino) -> Result<Attr, VolumeError> {
        let inode = self.inode(ino)?;
        match inode.meta.kind {
            NodeKind::Dir(fid) => match self.state.dir(fid) {
                Some(node) => self.attr_of(&Shown::Dir(ino, node)),
                None => Ok(removed_dir(ino, &inode.meta.local)),
            },
            NodeKind::Special { .. } => self.attr_of(&Shown::Special(ino)),
            NodeKind::File => match self.node_of(inode) {
                Some((_, node)) => Ok(self.file_attr(ino, inode, &node)),
                None => orphan_attr(ino, inode),
            },
        }
    }

    pub(super) fn attr_of(&self, shown: &Shown) -> Result<Attr, VolumeError> {
        let inode = self.inode(shown.ino())?;
        let local = &inode.meta.local;
        match shown {
            Shown::Dir(ino, node) => Ok(Attr {
                nlink: 2 + self.state.subdirs(node.fid) as u32,
                mtime: stamp(local.mtime.or(node.mtime).unwrap_or(local.ctime)),
                ..blank(*ino, Kind::Dir, node.mode, DIR_SIZE, local)
            }),
            Shown::File(ino, node) => Ok(self.file_attr(*ino, inode, node)),
            Shown::Special(ino) => special_attr(*ino, inode),
        }
    }

    fn file_attr(&self, ino: Ino, inode: &Inode, node: &FileNode) -> Attr {
        let kind = match node.version.kind {
            FileKind::File => Kind::File,
            FileKind::Symlink => Kind::Symlink,
        };
        let local = &inode.meta.local;
        let mut attr = blank(ino, kind, node.mode, node.version.size, local);
        attr.mtime = stamp(node.mtime);
        if node.version.link.is_some() {
            attr.nlink = self.state.inode_names(node).len().max(1) as u32;
        }
        with_body(attr, inode)
    }
}

/// Size and times of content that is not committed win over the version's.
fn with_body(mut attr: Attr, inode: &Inode) -> Attr {
    attr.fleeting = inode.divided;
    if let Some(body) = inode.body.as_ref().filter(|body| body.is_dirty()) {
        show(&mut attr, body);
    }
    attr
}

/// Size and times of a content.
fn show(attr: &mut Attr, body: &Body) {
    let page = body.page();
    attr.size = page.overlay.size();
    attr.blocks = page.overlay.filled().div_ceil(BLOCK_BYTES);
    attr.mtime = stamp(page.mtime);
    attr.ctime = attr.ctime.max(attr.mtime);
}

fn blank(ino: Ino, kind: Kind, mode: u16, size: u64, local: &Local) -> Attr {
    Attr {
        ino,
        kind,
        mode: (mode & SHARED_MODE) | (local.set_id & SET_ID),
        nlink: 1,
        uid: local.uid,
        gid: local.gid,
        rdev: 0,
        size,
        blocks: size.div_ceil(BLOCK_BYTES),
        atime: stamp(local.atime),
        mtime: stamp(local.ctime),
        ctime: stamp(local.ctime),
        fleeting: false,
    }
}

fn removed_dir(ino: Ino, local: &Local) -> Attr {
    Attr {
        nlink: 0,
        ..blank(ino, Kind::Dir, 0o700, DIR_SIZE, local)
    }
}

fn orphan_attr(ino: Ino, inode: &Inode) -> Result<Attr, VolumeError> {
    let orphan = inode.orphan.as_ref().ok_or(VolumeError::NotFound)?;
    let kind = match orphan.kind {
        FileKind::File => Kind::File,
        FileKind::Symlink => Kind::Symlink,
    };
    let local = &inode.meta.local;
    let mut attr = blank(ino, kind, orphan.mode, orphan.size, local);
    attr.mtime = stamp(orphan.mtime);
    attr.nlink = 0;
    Ok(with_body(attr, inode))
}

fn special_attr(ino: Ino, inode: &Inode) -> Result<Attr, VolumeError> {
    let NodeKind::Special { kind, rdev, mode } = &inode.meta.kind else {
        return Err(VolumeError::Io);
    };
    let kind = match kind {
        SpecialKind::Fifo => Kind::Fifo,
        SpecialKind::Socket => Kind::Socket,
        SpecialKind::CharDevice => Kind::CharDevice,
        SpecialKind::BlockDevice => Kind::BlockDevice,
    };
    let local = &inode.meta.local;
    Ok(Attr {
        rdev: *rdev,
        nlink: inode.names.len() as u32,
        mtime: stamp(local.mtime.unwrap_or(local.ctime)),
        ..blank(ino, kind, *mode, 0, local)
    })
}

impl Inner {
    pub(crate) fn getattr(&self, ino: Ino) -> Result<Attr, VolumeError> {
        self.core.lock().attr(ino)
    }

    /// As an open file shows it: with the size and time of the version it was opened at.
    pub(crate) fn getattr_open(&self, file: &OpenFile) -> Result<Attr, VolumeError> {
        let core = self.core.lock();
        let mut attr = core.attr(file.ino)?;
        if attr.fleeting {
            show(&mut attr, &file.body);
        }
        Ok(attr)
    }

    /// All but the size, which is content.
    pub(crate) fn set_attributes(&self, ino: Ino, change: &SetAttr) -> Result<(), VolumeError> {
        let none = SetAttr {
            size: None,
            handle: None,
            ..*change
        } == SetAttr::default();
        if none {
            return Ok(());
        }
        let time = |set: Option<SetTime>| {
            set.map(|set| match set {
                SetTime::Now => time_of(self.now_ns()),
                SetTime::At(at) => Time {
                    secs: at.secs,
                    nanos: at.nanos,
                },
            })
        };
        let (atime, mtime) = (time(change.atime), time(change.mtime));
        let dated = match mtime {
            Some(mtime) => self.date_body(ino, mtime)?,
            None => false,
        };
        self.operate(Dirty::Namespace, |op| {
            if let Some(mode) = change.mode {
                op.set_mode(ino, mode)?;
            }
            if let Some(mtime) = mtime.filter(|_| !dated) {
                op.set_mtime(ino, mtime)?;
            }
            op.touch(ino, |local, now| {
                local.uid = change.uid.unwrap_or(local.uid);
                local.gid = change.gid.unwrap_or(local.gid);
                local.atime = atime.unwrap_or(local.atime);
                local.ctime = now;
            });
            Ok(())
        })
    }

    /// Sizes of the disk the store lies on.
    pub(crate) fn statfs(&self) -> Result<Statfs, VolumeError> {
        let inodes = self.core.lock().inodes.iter().len() as u64;
        let mut sizes = Statfs {
            inodes_total: INODES_MAX,
            inodes_free: INODES_MAX.saturating_sub(inodes),
            ..Statfs::default()
        };
        // A disk in memory has no such numbers.
        if let Ok(found) = rustix::fs::statvfs(&self.config.dir) {
            sizes.bytes_total = found.f_blocks.saturating_mul(found.f_frsize);
            sizes.bytes_free = found.f_bavail.saturating_mul(found.f_frsize);
        }
        Ok(sizes)
    }

    pub(crate) fn readlink(&self, ino: Ino) -> Result<Bytes, VolumeError> {
        let core = self.core.lock();
        let inode = core.inode(ino)?;
        let (kind, content) = match (core.node_of(inode), &inode.orphan) {
            (Some((_, node)), _) => (node.version.kind, node.version.content),
            (None, Some(orphan)) => (orphan.kind, orphan.content.clone()),
            (None, None) => return Err(VolumeError::NotFound),
        };
        match kind {
            FileKind::Symlink => Ok(Bytes::copy_from_slice(&content.0)),
            FileKind::File => Err(VolumeError::Invalid),
        }
    }

    pub(crate) fn getxattr(&self, ino: Ino, name: &[u8]) -> Result<Bytes, VolumeError> {
        if !name.starts_with(b"user.") {
            return Err(VolumeError::NoAttribute);
        }
        if name.starts_with(OWN_XATTRS) {
            return self.computed_xattr(ino, name);
        }
        let core = self.core.lock();
        let xattrs = core.xattrs(ino)?;
        xattrs.get(name).cloned().ok_or(VolumeError::NoAttribute)
    }

    fn computed_xattr(&self, ino: Ino, name: &[u8]) -> Result<Bytes, VolumeError> {
        match name {
            XATTR_STATE => match self.presence(ino)? {
                Presence::Remote => Ok(Bytes::from_static(b"remote")),
                Presence::Partial => Ok(Bytes::from_static(b"partial")),
                Presence::Local => Ok(Bytes::from_static(b"local")),
                Presence::Dirty => Ok(Bytes::from_static(b"dirty")),
            },
            XATTR_HASH => {
                let core = self.core.lock();
                let (_, node) = core
                    .node_of(core.inode(ino)?)
                    .ok_or(VolumeError::NoAttribute)?;
                let digest = u64::from_be_bytes(node.version.content.digest().0);
                Ok(Bytes::from(format!("{digest:016x}")))
            }
            _ => Err(VolumeError::NoAttribute),
        }
    }

    pub(crate) fn listxattr(&self, ino: Ino) -> Result<Vec<Bytes>, VolumeError> {
        Ok(self.core.lock().xattrs(ino)?.into_keys().collect())
    }

    pub(crate) fn setxattr(
        &self,
        ino: Ino,
        name: &[u8],
        value: &[u8],
        how: SetXattr,
    ) -> Result<(), VolumeError> {
        check_xattr_name(name)?;
        self.operate(Dirty::Namespace, |op| {
            let xattrs = op.core.xattrs(ino)?;
            match (xattrs.contains_key(name), how) {
                (true, SetXattr::Create) => return Err(VolumeError::Exists.into()),
                (false, SetXattr::Replace) => return Err(VolumeError::NoAttribute.into()),
                _ => {}
            }
            let others = xattrs.iter().filter(|(key, _)| **key != name);
            let used: usize = others.map(|(key, value)| key.len() + value.len() + 8).sum();
            if used + name.len() + value.len() + 8 > XATTRS_BYTES_MAX {
                return Err(VolumeError::NoSpace.into());
            }
            let (name, value) = (Bytes::copy_from_slice(name), Bytes::copy_from_slice(value));
            op.change_xattrs(ino, |xattrs| {
                drop(xattrs.insert(name.clone(), value.clone()));
            })
        })
    }

    pub(crate) fn removexattr(&self, ino: Ino, name: &[u8]) -> Result<(), VolumeError> {
        check_xattr_name(name)?;
        self.operate(Dirty::Namespace, |op| {
            if !op.core.xattrs(ino)?.contains_key(name) {
                return Err(VolumeError::NoAttribute.into());
            }
            op.change_xattrs(ino, |xattrs| drop(xattrs.remove(name)))
        })
    }
}

fn check_xattr_name(name: &[u8]) -> Result<(), VolumeError> {
    if name.len() > XATTR_NAME_MAX {
        return Err(VolumeError::NameTooLong);
    }
    if !name.starts_with(b"user.") || name.len() == b"user.".len() {
        return Err(VolumeError::NotSupported);
    }
    if name.starts_with(OWN_XATTRS) {
        return Err(VolumeError::NotPermitted);
    }
    Ok(())
}

impl Core {
    fn xattrs(&self, ino: Ino) -> Result<Xattrs, VolumeError> {
        let inode = self.inode(ino)?;
        match inode.meta.kind {
            NodeKind::Dir(fid) => {
                let dir = self.state.dir(fid);
                Ok(dir.map(|dir| dir.xattrs).unwrap_or_default())
            }
            NodeKind::Special { .. } => Ok(Xattrs::new()),
            NodeKind::File => match (self.node_of(inode), &inode.orphan) {
                (Some((_, node)), _) => Ok(node.xattrs),
                (None, Some(orphan)) => Ok(orphan.xattrs.clone()),
                (None, None) => Err(VolumeError::NotFound),
            },
        }
    }
}

impl Op<'_> {
    fn set_mode(&mut self, ino: Ino, mode: u16) -> Result<(), Refused> {
        let shared = mode & SHARED_MODE;
        let inode = self.core.inode(ino)?;
        match inode.meta.kind {
            NodeKind::Dir(fid) => {
                if self
                    .core
                    .state
                    .dir(fid)
                    .is_some_and(|node| node.mode != shared)
                {
                    let changes = self.core.state.chmod(Target::Dir(fid), shared, self.by)?;
                    self.follow(changes);
                }
            }
            NodeKind::File => match self.core.node_of(inode) {
                Some((spot, node)) if node.mode != shared => {
                    let target = Target::Name(spot.dir, spot.name.as_bytes());
                    let changes = self.core.state.chmod(target, shared, self.by)?;
                    self.follow(changes);
                }
                Some(_) => {}
                None => self.on_orphan(ino, |orphan| orphan.mode = shared),
            },
            NodeKind::Special { .. } => {}
        }
        if let Some(meta) = self.core.inodes.meta_mut(ino) {
            meta.local.set_id = mode & SET_ID;
            if let NodeKind::Special { mode, .. } = &mut meta.kind {
                *mode = shared;
            }
        }
        Ok(())
    }

    fn set_mtime(&mut self, ino: Ino, mtime: Time) -> Result<(), Refused> {
        let inode = self.core.inode(ino)?;
        match inode.meta.kind {
            NodeKind::Dir(fid) if self.core.state.dir(fid).is_some() => {
                let target = Target::Dir(fid);
                let changes = self.core.state.set_times(target, mtime, self.by)?;
                self.follow(changes);
            }
            NodeKind::File => match self.core.node_of(inode) {
                Some((spot, node)) if node.mtime != mtime => {
                    let target = Target::Name(spot.dir, spot.name.as_bytes());
                    let changes = self.core.state.set_times(target, mtime, self.by)?;
                    self.follow(changes);
                }
                Some(_) => {}
                None => self.on_orphan(ino, |orphan| orphan.mtime = mtime),
            },
            NodeKind::Dir(_) | NodeKind::Special { .. } => {}
        }
        self.touch(ino, |local, _| {
            local.mtime = Some(mtime);
        });
        Ok(())
    }

    fn change_xattrs(&mut self, ino: Ino, change: impl FnOnce(&mut Xattrs)) -> Result<(), Refused> {
        let mut xattrs = self.core.xattrs(ino)?;
        let before = xattrs.clone();
        change(&mut xattrs);
        let inode = self.core.inode(ino)?;
        let (dir, name);
        let target = match inode.meta.kind {
            NodeKind::Dir(fid) => Target::Dir(fid),
            NodeKind::Special { .. } => return Err(VolumeError::NotPermitted.into()),
            NodeKind::File => match self.core.node_of(inode) {
                Some((spot, _)) => {
                    (dir, name) = (spot.dir, spot.name);
                    Target::Name(dir, name.as_bytes())
                }
                None => {
                    self.on_orphan(ino, |orphan| orphan.xattrs = xattrs);
                    return Ok(());
                }
            },
        };
        let state = &mut self.core.state;
        let set = xattrs
            .iter()
            .find(|(key, value)| before.get(*key) != Some(*value));
        let changes = match (set, before.keys().find(|key| !xattrs.contains_key(*key))) {
            (Some((key, value)), _) => {
                state.set_xattr(target, key.clone(), value.clone(), self.by)?
            }
            (None, Some(key)) => state.remove_xattr(target, key, self.by)?,
            (None, None) => return Ok(()),
        };
        self.follow(changes);
        self.touch(ino, |local, now| local.ctime = now);
        Ok(())
    }

    fn on_orphan(&mut self, ino: Ino, change: impl FnOnce(&mut super::inodes::Orphan)) {
        let inode = self.core.inodes.get_mut(ino);
        if let Some(orphan) = inode.and_then(|inode| inode.orphan.as_deref_mut()) {
            change(orphan);
        }
    }
}
