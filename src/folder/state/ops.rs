//! The operations of a file system on a state, as POSIX has them on the tree the user sees. Each makes one new dot and
//! puts it on every value it writes; it removes exactly the values its author saw of what it replaces, so whatever
//! others did meanwhile survives beside it. A refused operation, and one that changes nothing, makes no dot.

use super::plan::{Edit, Inode, Plan};
use super::values::{BirthPath, Content, Dot, Fid, FileKind, Hlc, Inc, Key, Name, Time, Xattrs};
use super::view::{DirNode, FileNode, Node, Spot};
use super::{Change, State};
use bytes::Bytes;

/// Why an operation is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum OpError {
    #[error("no such file, directory or attribute")]
    NotFound,
    #[error("the name exists")]
    Exists,
    #[error("not a directory")]
    NotDirectory,
    #[error("is a directory")]
    IsDirectory,
    #[error("the directory is not empty")]
    NotEmpty,
    #[error("not a valid name, or a directory moved into itself")]
    Invalid,
    #[error("directories nest too deep")]
    TooDeep,
}

/// Who acts, and when: the reading of the clock must be later than that of any value the author has seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct By {
    pub inc: Inc,
    pub hlc: Hlc,
}

/// What a write leaves in a file. `size` in bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Body {
    pub content: Content,
    pub size: u64,
    pub mtime: Time,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewFile {
    pub kind: FileKind,
    pub mode: u16,
    pub body: Body,
}

/// What an attribute is set on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target<'a> {
    Dir(Fid),
    Name(Fid, &'a [u8]),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RenameMode {
    /// An existing target is replaced.
    Replace,
    NoReplace,
    Exchange,
}

/// What an open file was opened at, or last written as: the versions its next write replaces, wherever they are by
/// then. After a local rename, link or change of attributes of a file that [`State::is_current`] said is still the one
/// opened, take a new base from its new name; if it was not, set `key` and `shown` to the new name and keep the dots.
/// A file without a name any more must not be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Base {
    /// Where its values are.
    pub key: Key,
    /// The name it was opened under: another than `key`'s if it was a sibling.
    pub shown: Name,
    pub dots: Vec<Dot>,
    kind: FileKind,
    mode: u16,
    xattrs: Xattrs,
    /// Of the directory, in case it is gone when the write comes.
    birth: BirthPath,
}

/// Attributes to change; none leaves one as it is.
#[derive(Default)]
struct Attributes {
    mode: Option<u16>,
    mtime: Option<Time>,
    xattrs: Option<Xattrs>,
}

type Outcome = Result<Vec<Change>, OpError>;

impl State {
    pub fn create(&mut self, dir: Fid, name: &[u8], file: NewFile, by: By) -> Outcome {
        let name = self.free_name(dir, name)?;
        let mut plan = self.plan(by);
        plan.make_real(dir);
        let inode = Inode {
            kind: file.kind,
            content: file.body.content,
            size: file.body.size,
            mtime: file.body.mtime,
            mode: file.mode,
            link: None,
            xattrs: Xattrs::new(),
        };
        plan.put(dir, &name, &inode);
        let edit = plan.finish();
        Ok(self.commit(edit))
    }

    pub fn mkdir(&mut self, dir: Fid, name: &[u8], mode: u16, by: By) -> Outcome {
        let name = self.free_name(dir, name)?;
        let birth = self.unused_birth(dir, &name)?;
        let node = DirNode {
            fid: birth.fid(),
            mode,
            mtime: None,
            xattrs: Xattrs::new(),
            ghost: false,
        };
        let mut plan = self.plan(by);
        plan.make_real(dir);
        plan.births.insert(node.fid, birth);
        plan.put_dir(&node, dir, &name, None);
        plan.put_dir_meta(&node);
        let edit = plan.finish();
        Ok(self.commit(edit))
    }

    /// What to base the writes of a file on that is opened now; none if there is no file of that name.
    pub fn base(&self, dir: Fid, name: &[u8]) -> Option<Base> {
        let spot = self.spot(dir, name)?;
        let Node::File(file) = spot.node else {
            return None;
        };
        Some(Base {
            dots: file.dots().collect(),
            key: file.at,
            shown: spot.name,
            kind: file.version.kind,
            mode: file.mode,
            xattrs: file.xattrs,
            birth: self.birth(dir)?,
        })
    }

    /// Whether the version a file was opened at is still shown where it was.
    pub fn is_current(&self, base: &Base) -> bool {
        self.current(base)
            .is_some_and(|spot| spot.name == base.shown)
    }

    /// The name, in the directory of `base`, at which the versions of `base` are shown now.
    pub fn name_of(&self, base: &Base) -> Option<Name> {
        self.current(base).map(|spot| spot.name)
    }

    /// Writes what was opened at `base`: replaces its versions at every name of their inode and moves `base` on. What
    /// arrived meanwhile stays beside it; if the file was removed by others meanwhile, the write brings it back.
    pub fn write(&mut self, base: &mut Base, body: Body, by: By) -> Outcome {
        let opened_plain = base.shown == base.key.name;
        let current = self.current(base);
        let mut plan = self.plan(by);
        let mut inode = Inode {
            kind: base.kind,
            content: body.content,
            size: body.size,
            mtime: body.mtime,
            mode: base.mode,
            link: None,
            xattrs: base.xattrs.clone(),
        };
        let dir = base.key.dir;
        let mut name = base.shown.clone();
        if let Some(Spot {
            node: Node::File(file),
            ..
        }) = current
        {
            inode.mode = file.mode;
            inode.xattrs.clone_from(&file.xattrs);
            name = plan.rewrite(&file, &inode, opened_plain);
        } else {
            plan.make_real(dir);
            plan.births.insert(dir, base.birth.clone());
            if self.is_plain(dir, name.as_bytes()) {
                plan.add_version(dir, &name, &inode);
            } else {
                plan.put(dir, &name, &inode);
            }
        }
        let edit = plan.finish();
        base.key = Key::file(dir, name.clone());
        base.dots = vec![edit.dot];
        let changes = self.commit(edit);
        // A directory may have the name by now.
        base.shown = self.current(base).map_or(name, |spot| spot.name);
        Ok(changes)
    }

    pub fn chmod(&mut self, target: Target<'_>, mode: u16, by: By) -> Outcome {
        let change = Attributes {
            mode: Some(mode),
            ..Attributes::default()
        };
        self.set_attributes(target, change, by)
    }

    pub fn set_times(&mut self, target: Target<'_>, mtime: Time, by: By) -> Outcome {
        let change = Attributes {
            mtime: Some(mtime),
            ..Attributes::default()
        };
        self.set_attributes(target, change, by)
    }

    pub fn set_xattr(&mut self, target: Target<'_>, name: Bytes, value: Bytes, by: By) -> Outcome {
        let mut xattrs = self.xattrs(target)?;
        xattrs.insert(name, value);
        let change = Attributes {
            xattrs: Some(xattrs),
            ..Attributes::default()
        };
        self.set_attributes(target, change, by)
    }

    pub fn remove_xattr(&mut self, target: Target<'_>, name: &[u8], by: By) -> Outcome {
        let mut xattrs = self.xattrs(target)?;
        xattrs.remove(name).ok_or(OpError::NotFound)?;
        let change = Attributes {
            xattrs: Some(xattrs),
            ..Attributes::default()
        };
        self.set_attributes(target, change, by)
    }

    pub fn unlink(&mut self, dir: Fid, name: &[u8], by: By) -> Outcome {
        let spot = self.spot(dir, name).ok_or(OpError::NotFound)?;
        if spot.dir_node().is_some() {
            return Err(OpError::IsDirectory);
        }
        let mut plan = self.plan(by);
        plan.make_real(dir);
        plan.settle(&spot, None);
        plan.drop(&spot);
        let edit = plan.finish();
        Ok(self.commit(edit))
    }

    pub fn rmdir(&mut self, dir: Fid, name: &[u8], by: By) -> Outcome {
        let spot = self.spot(dir, name).ok_or(OpError::NotFound)?;
        let fid = spot.dir_node().ok_or(OpError::NotDirectory)?.fid;
        if !self.shows_nothing(fid) {
            return Err(OpError::NotEmpty);
        }
        let mut plan = self.plan(by);
        plan.pin_displaced(&[fid]);
        plan.make_real(dir);
        plan.settle(&spot, None);
        plan.drop(&spot);
        let edit = plan.finish();
        Ok(self.commit(edit))
    }

    /// A hard link: `new` becomes another name of the file at `old`.
    pub fn link(&mut self, old: (Fid, &[u8]), new: (Fid, &[u8]), by: By) -> Outcome {
        let spot = self.spot(old.0, old.1).ok_or(OpError::NotFound)?;
        let Node::File(file) = &spot.node else {
            return Err(OpError::IsDirectory);
        };
        let name = self.free_name(new.0, new.1)?;
        let mut plan = self.plan(by);
        plan.make_real(spot.dir);
        plan.make_real(new.0);
        let mut inode = Inode::of(file);
        if inode.link.is_none() {
            inode.link = Some(plan.fresh_link());
            plan.drop(&spot);
            plan.put(spot.dir, &spot.name, &inode);
        }
        plan.put(new.0, &name, &inode);
        let edit = plan.finish();
        Ok(self.commit(edit))
    }

    pub fn rename(
        &mut self,
        from: (Fid, &[u8]),
        to: (Fid, &[u8]),
        mode: RenameMode,
        by: By,
    ) -> Outcome {
        let moved = self.spot(from.0, from.1).ok_or(OpError::NotFound)?;
        self.dir(to.0).ok_or(OpError::NotFound)?;
        let name = valid(to.1)?;
        let target = self.spot(to.0, to.1);
        match (&target, mode) {
            (Some(_), RenameMode::NoReplace) => return Err(OpError::Exists),
            (None, RenameMode::Exchange) => return Err(OpError::NotFound),
            (Some(target), _) if *target == moved || is_same_inode(&moved, target) => {
                return Ok(Vec::new());
            }
            _ => self.may_move(&moved, to.0)?,
        }
        let edit = match (target, mode) {
            (Some(target), RenameMode::Exchange) => {
                self.may_move(&target, from.0)?;
                self.exchanged(&moved, &target, by)
            }
            (target, _) => {
                if let Some(target) = &target {
                    self.may_replace(&moved, target)?;
                }
                self.renamed(&moved, target.as_ref(), (to.0, &name), by)
            }
        };
        Ok(self.commit(edit))
    }

    fn plan(&self, by: By) -> Plan<'_> {
        Plan::new(self, self.next_dot(by.inc), by.hlc)
    }

    fn commit(&mut self, edit: Edit) -> Vec<Change> {
        self.vv.see(edit.dot);
        self.apply(edit.updates, &edit.births)
    }

    /// `name` as a name nothing has in `dir`, which is shown.
    fn free_name(&self, dir: Fid, name: &[u8]) -> Result<Name, OpError> {
        self.dir(dir).ok_or(OpError::NotFound)?;
        let valid = valid(name)?;
        match self.spot(dir, name) {
            Some(_) => Err(OpError::Exists),
            None => Ok(valid),
        }
    }

    /// The birth path of a new directory: the first of its name and parent that nobody knows of.
    fn unused_birth(&self, dir: Fid, name: &Name) -> Result<BirthPath, OpError> {
        let parent = self.birth(dir).ok_or(OpError::NotFound)?;
        // What a cycle displaced goes back to where it was once that is there, so it must not be a new directory.
        let awaited = |fid| {
            let displaced = self.graph.displaced.iter();
            let mut places = displaced.filter_map(|dir| self.dirs.get(dir)?.places.first());
            places.any(|place| place.was.as_ref().is_some_and(|(parent, _)| *parent == fid))
        };
        let used = |fid| self.dirs.contains_key(&fid) || self.graph.is_known(fid) || awaited(fid);
        let n = (0..u32::MAX).find(|n| !used(Fid::born(dir, *n, name.as_bytes())));
        let birth = n.and_then(|n| parent.child(name, n));
        birth.ok_or(OpError::TooDeep)
    }

    /// Where the versions of `base` are shown now.
    fn current(&self, base: &Base) -> Option<Spot> {
        let group = self.group(base.key.dir, base.key.name.as_bytes());
        group.into_iter().find(|spot| match &spot.node {
            Node::File(file) => file.dots().any(|dot| base.dots.contains(&dot)),
            Node::Dir(_) => false,
        })
    }

    fn shows_nothing(&self, dir: Fid) -> bool {
        !self.graph.has_children(dir) && self.dirs.get(&dir).is_none_or(|dir| dir.shown_names == 0)
    }

    fn xattrs(&self, target: Target<'_>) -> Result<Xattrs, OpError> {
        let node = match target {
            Target::Dir(fid) => self.dir(fid).map(Node::Dir),
            Target::Name(dir, name) => self.lookup(dir, name),
        };
        match node.ok_or(OpError::NotFound)? {
            Node::Dir(dir) => Ok(dir.xattrs),
            Node::File(file) => Ok(file.xattrs),
        }
    }

    fn set_attributes(&mut self, target: Target<'_>, change: Attributes, by: By) -> Outcome {
        let node = match target {
            Target::Dir(fid) => self.dir(fid).map(Node::Dir),
            Target::Name(dir, name) => self.lookup(dir, name),
        };
        let mut plan = self.plan(by);
        match node.ok_or(OpError::NotFound)? {
            Node::Dir(mut dir) => {
                dir.mode = change.mode.unwrap_or(dir.mode);
                dir.mtime = change.mtime.or(dir.mtime);
                dir.xattrs = change.xattrs.unwrap_or(dir.xattrs);
                plan.make_real(dir.fid);
                plan.put_dir_meta(&dir);
            }
            Node::File(mut file) => {
                let before = file.clone();
                file.mode = change.mode.unwrap_or(file.mode);
                file.mtime = change.mtime.unwrap_or(file.mtime);
                file.xattrs = change.xattrs.unwrap_or(file.xattrs);
                if before.version.link.is_some() || !before.has_own_name() {
                    plan.rewrite(&before, &Inode::of(&file), false);
                } else {
                    plan.make_real(file.at.dir);
                    plan.put_file_meta(&file);
                }
            }
        }
        let edit = plan.finish();
        Ok(self.commit(edit))
    }

    /// A directory does not go into itself.
    fn may_move(&self, spot: &Spot, to: Fid) -> Result<(), OpError> {
        match spot.dir_node() {
            Some(dir) if self.graph.is_within(to, dir.fid) => Err(OpError::Invalid),
            _ => Ok(()),
        }
    }

    fn may_replace(&self, moved: &Spot, target: &Spot) -> Result<(), OpError> {
        match (moved.dir_node(), target.dir_node()) {
            (Some(_), None) => Err(OpError::NotDirectory),
            (None, Some(_)) => Err(OpError::IsDirectory),
            (Some(_), Some(dir)) if !self.shows_nothing(dir.fid) => Err(OpError::NotEmpty),
            _ => Ok(()),
        }
    }

    fn renamed(&self, moved: &Spot, target: Option<&Spot>, to: (Fid, &Name), by: By) -> Edit {
        let mut plan = self.plan(by);
        plan.prepare_places(&[Some(moved), target]);
        plan.make_real(moved.dir);
        plan.make_real(to.0);
        plan.settle(moved, target);
        if let Some(target) = target {
            plan.settle(target, Some(moved));
            plan.drop(target);
        }
        plan.place_at(moved, to);
        plan.finish()
    }

    fn exchanged(&self, one: &Spot, two: &Spot, by: By) -> Edit {
        let mut plan = self.plan(by);
        plan.prepare_places(&[Some(one), Some(two)]);
        plan.make_real(one.dir);
        plan.make_real(two.dir);
        plan.settle(one, Some(two));
        plan.settle(two, Some(one));
        plan.place_at(one, (two.dir, &two.name));
        plan.place_at(two, (one.dir, &one.name));
        plan.finish()
    }
}

impl Plan<'_> {
    /// Before directories among `spots` are given or lose a place.
    fn prepare_places(&mut self, spots: &[Option<&Spot>]) {
        let dirs = spots.iter().flatten().filter_map(|spot| spot.dir_node());
        let fids: Vec<Fid> = dirs.map(|dir| dir.fid).collect();
        if !fids.is_empty() {
            self.pin_displaced(&fids);
        }
    }

    /// Moves what `spot` shows to another name.
    fn place_at(&mut self, spot: &Spot, to: (Fid, &Name)) {
        match &spot.node {
            Node::Dir(dir) => {
                self.make_real(dir.fid);
                let was = (spot.dir, spot.name.clone());
                self.put_dir(dir, to.0, to.1, Some(was));
            }
            Node::File(file) => {
                self.drop(spot);
                self.put(to.0, to.1, &Inode::of(file));
            }
        }
    }
}

impl FileNode {
    fn has_own_name(&self) -> bool {
        self.role == super::Role::Main
    }
}

fn valid(name: &[u8]) -> Result<Name, OpError> {
    match Name::is_valid(name) {
        true => Ok(Name::from(name)),
        false => Err(OpError::Invalid),
    }
}

fn is_same_inode(one: &Spot, two: &Spot) -> bool {
    match (&one.node, &two.node) {
        (Node::File(one), Node::File(two)) => one.is_same_inode(two),
        _ => false,
    }
}
