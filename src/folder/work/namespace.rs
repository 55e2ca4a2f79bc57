//! Names: looking up, listing, creating, linking, renaming and removing them.

use bytes::Bytes;
use ccbt_mount::{Attr, Caller, Kind, RenameMode, VolumeError};

use super::core::{Core, Op, Refused, Shown};
use super::inodes::{Ino, Local, Meta, NodeKind, SpecialKind, Spot};
use super::{Dirty, Inner};
use crate::folder::state::{
    self, Body as NewBody, Change, Content, Fid, FileKind, FileNode, Key, NAME_BYTES_MAX, Name,
    NewFile, Node,
};

/// The name at the root that belongs to ccbt itself.
const RESERVED: &[u8] = b".ccbt";

/// Longest target of a symbolic link (`PATH_MAX` without its NUL).
const SYMLINK_BYTES_MAX: usize = 4095;

/// Mode bits that are shared; the set-id bits are not.
pub(super) const SHARED_MODE: u16 = 0o1777;
pub(super) const SET_ID: u16 = 0o6000;
const SET_GROUP_ID: u16 = 0o2000;

/// Most names of one inode, as ext4 has it.
const LINKS_MAX: usize = 65_000;

/// Numbers given by looking around are logged with the next operation, or once there are this many.
const UNLOGGED_MAX: usize = 1024;

impl Inner {
    pub(crate) fn lookup(&self, parent: Ino, name: &[u8]) -> Result<Attr, VolumeError> {
        let mut core = self.core.lock();
        let dir = core.fid(parent)?;
        if name.len() > NAME_BYTES_MAX {
            return Err(VolumeError::NameTooLong);
        }
        let shown = core.find(dir, name).ok_or(VolumeError::NotFound)?;
        core.known(shown.ino());
        let attr = core.attr_of(&shown);
        let crowded = core.inodes.touched() > UNLOGGED_MAX;
        drop(core);
        if crowded {
            self.log_numbers();
        }
        attr
    }

    /// Logs numbers that were given since the last operation. On a full disk they wait.
    pub(super) fn log_numbers(&self) {
        let _gate = self.gate.read();
        let ticket = {
            let mut core = self.core.lock();
            let (record, _) = core.op(self.now_ns()).finish();
            record.map(|record| self.journal.queue(record))
        };
        if let Some(Err(error)) = ticket.map(|ticket| self.journal.write_out(ticket)) {
            tracing::warn!(%error, "inode numbers are not logged yet");
        }
    }

    pub(crate) fn forget(&self, ino: Ino) {
        let mut core = self.core.lock();
        if let Some(inode) = core.inodes.get_mut(ino) {
            inode.known = false;
        }
        core.drop_if_gone(ino);
    }

    /// The names in a directory, `.` and `..` first.
    pub(crate) fn list(&self, ino: Ino) -> Result<Vec<(Bytes, Ino)>, VolumeError> {
        let mut core = self.core.lock();
        let dir = core.fid(ino)?;
        let parent = match core.state.location(dir) {
            Some((above, _)) => core.state.dir(above).map(|node| {
                let spot = Spot {
                    dir: above,
                    name: Name::from(&b"."[..]),
                };
                core.numbered(spot, Node::Dir(node)).ino()
            }),
            None => None,
        };
        let mut rows = vec![
            (Bytes::from_static(b"."), ino),
            (Bytes::from_static(b".."), parent.unwrap_or(Ino::ROOT)),
        ];
        for (name, node) in core.state.list(dir) {
            let bytes = Bytes::copy_from_slice(name.as_bytes());
            let shown = core.numbered(Spot { dir, name }, node);
            rows.push((bytes, shown.ino()));
        }
        let specials: Vec<(Name, Ino)> = core
            .inodes
            .specials_in(dir)
            .map(|(name, ino)| (name.clone(), ino))
            .collect();
        for (name, ino) in specials {
            if core.state.lookup(dir, name.as_bytes()).is_none() {
                rows.push((Bytes::copy_from_slice(name.as_bytes()), ino));
            }
        }
        Ok(rows)
    }

    /// A row of a listing; none if it is gone. The kernel knows the number afterwards.
    pub(crate) fn row(&self, ino: Ino, name: &[u8]) -> Option<Attr> {
        let mut core = self.core.lock();
        let attr = core.attr(ino).ok()?;
        if attr.nlink == 0 {
            return None;
        }
        if name != b"." && name != b".." {
            core.known(ino);
        }
        Some(attr)
    }

    pub(crate) fn mkdir(
        &self,
        parent: Ino,
        name: &[u8],
        mode: u16,
        caller: Caller,
    ) -> Result<Attr, VolumeError> {
        self.operate(Dirty::Namespace, |op| {
            let dir = op.free(parent, name)?;
            let changes = op.core.state.mkdir(dir, name, mode & SHARED_MODE, op.by)?;
            op.follow(changes);
            let mut local = op.new_local(parent, mode, caller);
            if op.set_group(parent) {
                local.set_id |= SET_GROUP_ID;
            }
            local.mtime = Some(op.now);
            let Some(Node::Dir(node)) = op.core.state.lookup(dir, name) else {
                return Err(VolumeError::Io.into());
            };
            let kind = NodeKind::Dir(node.fid);
            let ino = match op.core.inodes.of_dir(node.fid) {
                Some(ino) => {
                    op.core.inodes.set_meta(ino, Meta { kind, local });
                    ino
                }
                None => op.core.inodes.add(Meta { kind, local }),
            };
            op.touch_dir(parent);
            op.core.known(ino);
            Ok(op.core.attr(ino)?)
        })
    }

    pub(crate) fn create_file(
        &self,
        parent: Ino,
        name: &[u8],
        mode: u16,
        caller: Caller,
    ) -> Result<Attr, VolumeError> {
        self.new_file(parent, name, (FileKind::File, &[]), mode, caller)
    }

    pub(crate) fn symlink(
        &self,
        parent: Ino,
        name: &[u8],
        target: &[u8],
        caller: Caller,
    ) -> Result<Attr, VolumeError> {
        if target.is_empty() || target.contains(&0) {
            return Err(VolumeError::Invalid);
        }
        if target.len() > SYMLINK_BYTES_MAX {
            return Err(VolumeError::NameTooLong);
        }
        self.new_file(parent, name, (FileKind::Symlink, target), 0o777, caller)
    }

    fn new_file(
        &self,
        parent: Ino,
        name: &[u8],
        (kind, content): (FileKind, &[u8]),
        mode: u16,
        caller: Caller,
    ) -> Result<Attr, VolumeError> {
        self.operate(Dirty::Namespace, |op| {
            let dir = op.free(parent, name)?;
            let file = NewFile {
                kind,
                mode: mode & SHARED_MODE,
                body: NewBody {
                    content: Content::from(content),
                    size: content.len() as u64,
                    mtime: op.now,
                },
            };
            let changes = op.core.state.create(dir, name, file, op.by)?;
            op.follow(changes);
            let local = op.new_local(parent, mode, caller);
            let ino = op.core.inodes.add(Meta {
                kind: NodeKind::File,
                local,
            });
            let name = Name::from(name);
            op.core.inodes.bind(Spot { dir, name }, ino);
            op.touch_dir(parent);
            op.core.known(ino);
            Ok(op.core.attr(ino)?)
        })
    }

    pub(crate) fn mknod(
        &self,
        parent: Ino,
        name: &[u8],
        kind: Kind,
        (mode, rdev): (u16, u32),
        caller: Caller,
    ) -> Result<Attr, VolumeError> {
        let special = match kind {
            Kind::File => return self.create_file(parent, name, mode, caller),
            Kind::Fifo => SpecialKind::Fifo,
            Kind::Socket => SpecialKind::Socket,
            Kind::CharDevice => SpecialKind::CharDevice,
            Kind::BlockDevice => SpecialKind::BlockDevice,
            Kind::Dir | Kind::Symlink => return Err(VolumeError::Invalid),
        };
        self.operate(Dirty::Namespace, |op| {
            let dir = op.free(parent, name)?;
            if op.core.state.lookup(dir, name).is_some() {
                return Err(VolumeError::Exists.into());
            }
            let mut local = op.new_local(parent, mode, caller);
            local.mtime = Some(op.now);
            let mode = mode & SHARED_MODE;
            let kind = NodeKind::Special {
                kind: special,
                rdev,
                mode,
            };
            let ino = op.core.inodes.add(Meta { kind, local });
            let name = Name::from(name);
            op.core.inodes.bind(Spot { dir, name }, ino);
            op.touch_dir(parent);
            op.core.known(ino);
            Ok(op.core.attr(ino)?)
        })
    }

    pub(crate) fn link(&self, ino: Ino, parent: Ino, name: &[u8]) -> Result<Attr, VolumeError> {
        self.operate(Dirty::Namespace, |op| {
            let dir = op.free(parent, name)?;
            let inode = op.core.inode(ino)?;
            if inode.names.len() >= LINKS_MAX {
                return Err(VolumeError::TooManyLinks.into());
            }
            let special = match inode.meta.kind {
                NodeKind::Dir(_) => return Err(VolumeError::NotPermitted.into()),
                NodeKind::Special { .. } => true,
                NodeKind::File => false,
            };
            if special {
                if op.core.state.lookup(dir, name).is_some() {
                    return Err(VolumeError::Exists.into());
                }
            } else {
                let (from, _) = op.core.node_of(inode).ok_or(VolumeError::NotFound)?;
                let old = (from.dir, from.name.as_bytes());
                let changes = op.core.state.link(old, (dir, name), op.by)?;
                op.follow(changes);
            }
            let name = Name::from(name);
            op.core.inodes.bind(Spot { dir, name }, ino);
            op.touch_dir(parent);
            op.touch(ino, |local, now| local.ctime = now);
            op.core.known(ino);
            Ok(op.core.attr(ino)?)
        })
    }

    pub(crate) fn unlink(&self, parent: Ino, name: &[u8]) -> Result<(), VolumeError> {
        self.operate(Dirty::Namespace, |op| {
            let dir = op.core.fid(parent)?;
            let shown = op.core.find(dir, name).ok_or(VolumeError::NotFound)?;
            if let Shown::Dir(..) = shown {
                return Err(VolumeError::IsDirectory.into());
            }
            if let Shown::File(..) = shown {
                let changes = op.core.state.unlink(dir, name, op.by)?;
                op.follow(changes);
            }
            op.drop_name(dir, name, shown);
            op.touch_dir(parent);
            Ok(())
        })
    }

    pub(crate) fn rmdir(&self, parent: Ino, name: &[u8]) -> Result<(), VolumeError> {
        self.operate(Dirty::Namespace, |op| {
            let dir = op.core.fid(parent)?;
            let shown = op.core.find(dir, name).ok_or(VolumeError::NotFound)?;
            let Shown::Dir(ino, node) = shown else {
                return Err(VolumeError::NotDirectory.into());
            };
            op.refuse_specials(node.fid)?;
            let changes = op.core.state.rmdir(dir, name, op.by)?;
            op.follow(changes);
            op.touch_dir(parent);
            op.core.drop_if_gone(ino);
            Ok(())
        })
    }

    pub(crate) fn rename(
        &self,
        from: (Ino, &[u8]),
        to: (Ino, &[u8]),
        mode: RenameMode,
    ) -> Result<(), VolumeError> {
        self.operate(Dirty::Renamed, |op| {
            let (from_dir, to_dir) = (op.core.fid(from.0)?, op.core.fid(to.0)?);
            op.check_name(to_dir, to.1)?;
            let moved = op
                .core
                .find(from_dir, from.1)
                .ok_or(VolumeError::NotFound)?;
            let target = op.core.find(to_dir, to.1);
            let (from_at, to_at) = ((from_dir, from.1), (to_dir, to.1));
            match (&target, mode) {
                (Some(_), RenameMode::NoReplace) => return Err(VolumeError::Exists.into()),
                (None, RenameMode::Exchange) => return Err(VolumeError::NotFound.into()),
                (Some(target), _) if target.ino() == moved.ino() => return Ok(()),
                _ => {}
            }
            // An exchange is one of names.
            let own = match mode {
                RenameMode::Exchange => None,
                _ => op.core.name_of_written(from_dir, from.1),
            };
            let own_at = (from_dir, own.as_ref().map_or(from.1, Name::as_bytes));
            op.rename_shown(own_at, to_at, (&moved, target.as_ref()), mode)?;
            op.rebind(from_at, to_at, (moved, target), mode);
            op.touch_dir(from.0);
            op.touch_dir(to.0);
            Ok(())
        })
    }
}

impl Op<'_> {
    /// The directory `parent`, in which `name` may be created as far as special files go.
    fn free(&mut self, parent: Ino, name: &[u8]) -> Result<Fid, Refused> {
        let dir = self.core.fid(parent)?;
        self.check_name(dir, name)?;
        let spot = Spot {
            dir,
            name: Name::from(name),
        };
        if self.core.inodes.special_at(&spot).is_some() {
            return Err(VolumeError::Exists.into());
        }
        if self.core.state.dir(dir).is_none() {
            return Err(VolumeError::NotFound.into());
        }
        Ok(dir)
    }

    fn check_name(&self, dir: Fid, name: &[u8]) -> Result<(), Refused> {
        if name.len() > NAME_BYTES_MAX {
            return Err(VolumeError::NameTooLong.into());
        }
        if dir == Fid::ROOT && name == RESERVED {
            return Err(VolumeError::NotPermitted.into());
        }
        if !Name::is_valid(name) {
            return Err(VolumeError::Invalid.into());
        }
        Ok(())
    }

    /// A directory that holds special files is not empty, whatever the state says.
    fn refuse_specials(&self, dir: Fid) -> Result<(), Refused> {
        match self.core.inodes.specials_in(dir).next() {
            Some(_) => Err(VolumeError::NotEmpty.into()),
            None => Ok(()),
        }
    }

    fn set_group(&self, parent: Ino) -> bool {
        let parent = self.core.inodes.get(parent);
        parent.is_some_and(|parent| parent.meta.local.set_id & SET_GROUP_ID != 0)
    }

    fn new_local(&self, parent: Ino, mode: u16, caller: Caller) -> Local {
        let above = self
            .core
            .inodes
            .get(parent)
            .map(|parent| parent.meta.local.gid);
        Local {
            uid: caller.uid,
            gid: above
                .filter(|_| self.set_group(parent))
                .unwrap_or(caller.gid),
            set_id: mode & SET_ID,
            atime: self.now,
            ctime: self.now,
            mtime: None,
        }
    }

    /// Renames in the state, as far as it knows the two.
    fn rename_shown(
        &mut self,
        from: (Fid, &[u8]),
        to: (Fid, &[u8]),
        (moved, target): (&Shown, Option<&Shown>),
        mode: RenameMode,
    ) -> Result<(), Refused> {
        let state_mode = match mode {
            RenameMode::Replace => state::RenameMode::Replace,
            RenameMode::NoReplace => state::RenameMode::NoReplace,
            RenameMode::Exchange => state::RenameMode::Exchange,
        };
        let changes = match (moved, target) {
            (Shown::Special(_), Some(Shown::Dir(..))) => {
                return Err(VolumeError::IsDirectory.into());
            }
            (Shown::Dir(..), Some(Shown::Special(_))) => {
                return Err(VolumeError::NotDirectory.into());
            }
            (Shown::Special(_), Some(Shown::File(..)))
            | (Shown::File(..), Some(Shown::Special(_)))
                if mode == RenameMode::Exchange =>
            {
                return Err(VolumeError::Invalid.into());
            }
            (Shown::Special(_), Some(Shown::File(..))) => {
                self.core.state.unlink(to.0, to.1, self.by)?
            }
            (Shown::Special(_), _) => Vec::new(),
            (_, target) => {
                if let (Some(Shown::Dir(_, node)), RenameMode::Replace) = (target, mode) {
                    self.refuse_specials(node.fid)?;
                }
                self.core.state.rename(from, to, state_mode, self.by)?
            }
        };
        self.changes.extend(changes);
        Ok(())
    }

    /// Numbers follow what was renamed.
    fn rebind(
        &mut self,
        from: (Fid, &[u8]),
        to: (Fid, &[u8]),
        (moved, target): (Shown, Option<Shown>),
        mode: RenameMode,
    ) {
        let from_spot = Spot {
            dir: from.0,
            name: Name::from(from.1),
        };
        let to_spot = Spot {
            dir: to.0,
            name: Name::from(to.1),
        };
        let moved_ino = moved.ino();
        if !matches!(moved, Shown::Dir(..)) {
            self.core.inodes.unbind(&from_spot);
        }
        match target {
            Some(Shown::Dir(ino, _)) if mode != RenameMode::Exchange => {
                self.core.drop_if_gone(ino);
            }
            Some(Shown::Dir(..)) | None => {}
            Some(target) if mode == RenameMode::Exchange => {
                self.core.inodes.unbind(&to_spot);
                self.core.inodes.bind(from_spot, target.ino());
                self.touch(target.ino(), |local, now| local.ctime = now);
            }
            Some(target) => self.drop_name(to.0, to.1, target),
        }
        if !matches!(moved, Shown::Dir(..)) {
            self.core.inodes.bind(to_spot, moved_ino);
        }
        self.touch(moved_ino, |local, now| local.ctime = now);
        let changes = std::mem::take(&mut self.changes);
        self.follow(changes);
    }

    /// `name` no longer stands for `shown`, which was removed there.
    fn drop_name(&mut self, dir: Fid, name: &[u8], shown: Shown) {
        let spot = Spot {
            dir,
            name: Name::from(name),
        };
        let Some(ino) = self.core.inodes.unbind(&spot) else {
            return;
        };
        self.touch(ino, |local, now| local.ctime = now);
        if let Shown::File(_, node) = shown {
            self.orphan(ino, node);
        }
        let left = self
            .core
            .inodes
            .get(ino)
            .and_then(|inode| inode.names.first().cloned());
        if let Some(left) = left {
            self.follow_name(left);
        }
        self.core.drop_if_gone(ino);
    }

    /// Keeps what an inode without names is, as long as somebody can ask.
    fn orphan(&mut self, ino: Ino, node: FileNode) {
        let Some(inode) = self.core.inodes.get_mut(ino) else {
            return;
        };
        if !inode.names.is_empty() {
            return;
        }
        inode.orphan = Some(Box::new(node.into()));
        if let Some(body) = &inode.body {
            body.page().unlinked = true;
            if self.core.dirty.remove(&body.id).is_some() {
                self.record.dropped.push(body.id);
            }
        }
    }

    /// A commit made a version at `shown`: if others had removed the file meanwhile, it is back there.
    pub(super) fn rehome(&mut self, ino: Ino, dir: Fid, shown: Name, digest: u64) {
        let Some(inode) = self.core.inodes.get_mut(ino) else {
            return;
        };
        inode.cached = Some(digest);
        if inode.names.is_empty() {
            inode.orphan = None;
            self.core.inodes.bind(Spot { dir, name: shown }, ino);
        }
    }

    /// Open files whose versions got new dots by our own operation are based on those from now on.
    pub(super) fn follow(&mut self, changes: Vec<Change>) {
        self.core.note_changed(&changes);
        for change in &changes {
            match change {
                Change::Name { dir, name } => self.follow_name(Spot {
                    dir: *dir,
                    name: name.clone(),
                }),
                // Where names are contested, the state does not say which of them changed.
                Change::Listing { dir } => {
                    let names = self.core.names_with_body(*dir);
                    names.into_iter().for_each(|spot| self.follow_name(spot));
                }
                Change::Attributes { .. } => {}
            }
        }
        self.changes.extend(changes);
    }

    fn follow_name(&mut self, spot: Spot) {
        let core = &mut *self.core;
        let ino = core.inodes.at(&spot);
        let Some(body) = ino.and_then(|ino| core.inodes.get(ino)?.body.clone()) else {
            return;
        };
        let mut page = body.page();
        if core.state.is_current(&page.at) {
            return;
        }
        let Some(Node::File(node)) = core.state.lookup(spot.dir, spot.name.as_bytes()) else {
            return;
        };
        if node.version.content == page.stored.content {
            if let Some(base) = core.state.base(spot.dir, spot.name.as_bytes()) {
                page.at = base;
            }
        } else {
            page.at.key = Key::file(spot.dir, spot.name.clone());
            page.at.shown = spot.name;
        }
        if page.listed {
            self.record.moved.push((body.id, page.anchor()));
        }
    }
}

impl Core {
    /// Where the state shows the version that the file at a name was written over, while that is not committed: a version of
    /// others may have come and have the name. Whoever does something to the file means what they wrote.
    fn name_of_written(&self, dir: Fid, name: &[u8]) -> Option<Name> {
        let name = Name::from(name);
        let spot = Spot { dir, name };
        let ino = self.inodes.at(&spot)?;
        let page = self.inodes.get(ino)?.body.as_ref()?.page();
        // The file may have several names, and be written over what is at another one.
        let is_here = page.at.key.dir == dir && page.at.shown == spot.name;
        let written = (page.listed && is_here).then_some(&page.at);
        self.state.name_of(written?)
    }

    /// The names in a directory of files that are open or not committed.
    fn names_with_body(&self, dir: Fid) -> Vec<Spot> {
        let bodies = self.bodies.iter().filter_map(std::sync::Weak::upgrade);
        let inodes = bodies.filter_map(|body| self.inodes.get(body.ino));
        let names = inodes.flat_map(|inode| &inode.names);
        names.filter(|spot| spot.dir == dir).cloned().collect()
    }

    /// The kernel knows the number now.
    pub(super) fn known(&mut self, ino: Ino) {
        if let Some(inode) = self.inodes.get_mut(ino) {
            inode.known = true;
        }
    }

    /// Forgets an inode that has no name and that nobody can ask for.
    pub(super) fn drop_if_gone(&mut self, ino: Ino) {
        let Some(inode) = self.inodes.get(ino) else {
            return;
        };
        let nameless = match inode.meta.kind {
            NodeKind::Dir(fid) => self.state.dir(fid).is_none(),
            NodeKind::File | NodeKind::Special { .. } => inode.names.is_empty(),
        };
        let dirty = inode
            .body
            .as_ref()
            .is_some_and(|body| self.dirty.contains_key(&body.id));
        if nameless && !inode.known && inode.opens == 0 && !dirty {
            self.inodes.remove(ino);
        }
    }
}
