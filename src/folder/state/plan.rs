//! What one operation will change, gathered against the state as its author sees it: values to remove, by the dots that
//! were seen, and at most one new value of each sort per key, all with the operation's dot.

use std::collections::{BTreeMap, BTreeSet};

use super::values::{
    Content, DirMeta, Dot, Fid, FileKind, FileMeta, Hlc, Key, LinkId, Name, Place, Time, Value,
    Version, Xattrs,
};
use super::view::{DirNode, FileNode, Node, Role, Spot};
use super::{Births, State, Values};

pub(super) struct Plan<'a> {
    state: &'a State,
    pub(super) dot: Dot,
    hlc: Hlc,
    drafts: BTreeMap<Key, Draft>,
    pub(super) births: Births,
    displaced_pinned: bool,
}

/// A finished plan, free of the state it was made against.
pub(super) struct Edit {
    pub(super) dot: Dot,
    pub(super) updates: Vec<(Key, Values)>,
    pub(super) births: Births,
}

/// The changes at one key. Places and metas are always replaced as a whole.
#[derive(Default)]
struct Draft {
    drop_places: bool,
    drop_dir_metas: bool,
    drop_file_metas: bool,
    drop_versions: BTreeSet<Dot>,
    place: Option<Place>,
    dir_meta: Option<DirMeta>,
    version: Option<Version>,
    file_meta: Option<FileMeta>,
}

/// A file as it is to be at a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Inode {
    pub(super) kind: FileKind,
    pub(super) content: Content,
    pub(super) size: u64,
    pub(super) mtime: Time,
    pub(super) mode: u16,
    pub(super) link: Option<LinkId>,
    pub(super) xattrs: Xattrs,
}

impl Inode {
    /// As `file` is shown.
    pub(super) fn of(file: &FileNode) -> Self {
        Self {
            kind: file.version.kind,
            content: file.version.content.clone(),
            size: file.version.size,
            mtime: file.mtime,
            mode: file.mode,
            link: file.version.link,
            xattrs: file.xattrs.clone(),
        }
    }
}

impl<'a> Plan<'a> {
    pub(super) fn new(state: &'a State, dot: Dot, hlc: Hlc) -> Self {
        Self {
            state,
            dot,
            hlc,
            drafts: BTreeMap::new(),
            births: Births::new(),
            displaced_pinned: false,
        }
    }

    /// The link id of this operation.
    pub(super) fn fresh_link(&self) -> LinkId {
        LinkId(self.dot)
    }

    fn draft(&mut self, key: Key) -> &mut Draft {
        self.drafts.entry(key).or_default()
    }

    /// Gives a directory one new place instead of those it has.
    pub(super) fn put_dir(
        &mut self,
        dir: &DirNode,
        parent: Fid,
        name: &Name,
        was: Option<(Fid, Name)>,
    ) {
        let place = Place {
            hlc: self.hlc,
            dot: self.dot,
            parent,
            name: name.clone(),
            mode: dir.mode,
            was,
        };
        let draft = self.draft(Key::head(dir.fid));
        draft.drop_places = true;
        draft.place = Some(place);
    }

    /// Gives a directory the attributes of `dir`.
    pub(super) fn put_dir_meta(&mut self, dir: &DirNode) {
        let meta = DirMeta {
            hlc: self.hlc,
            dot: self.dot,
            mode: dir.mode,
            mtime: dir.mtime,
            xattrs: dir.xattrs.clone(),
        };
        let draft = self.draft(Key::head(dir.fid));
        draft.drop_dir_metas = true;
        draft.dir_meta = Some(meta);
    }

    /// Directories that a cycle shows elsewhere get a place there, so that no other place can undo it; `but` those that
    /// the operation places itself.
    pub(super) fn pin_displaced(&mut self, but: &[Fid]) {
        if std::mem::replace(&mut self.displaced_pinned, true) {
            return;
        }
        let state = self.state;
        let displaced = state
            .graph
            .displaced
            .iter()
            .filter(|fid| !but.contains(fid));
        for spot in displaced.filter_map(|fid| state.dir_spot(*fid)) {
            self.make_real(spot.dir);
            if let Node::Dir(dir) = &spot.node {
                self.put_dir(dir, spot.dir, &spot.name, None);
            }
        }
    }

    /// Ghosts on the way to `dir`, and itself, get a place and a meta where they are shown.
    pub(super) fn make_real(&mut self, dir: Fid) {
        let state = self.state;
        let ghosts = state.graph.ancestors(dir).filter(|(_, at)| at.is_ghost());
        for spot in ghosts.filter_map(|(fid, _)| state.dir_spot(fid)) {
            self.pin_displaced(&[]);
            if let Node::Dir(ghost) = &spot.node {
                self.put_dir(ghost, spot.dir, &spot.name, None);
                self.put_dir_meta(ghost);
            }
        }
    }

    /// Removes what `spot` shows; metas go with the name.
    pub(super) fn drop(&mut self, spot: &Spot) {
        match &spot.node {
            Node::Dir(dir) => {
                let draft = self.draft(Key::head(dir.fid));
                draft.drop_places = true;
                draft.drop_dir_metas = true;
                let inside = self.state.dirs.get(&dir.fid).into_iter();
                for name in inside.flat_map(|inside| inside.names.names()) {
                    self.draft(Key::file(dir.fid, name)).drop_file_metas = true;
                }
            }
            Node::File(file) => {
                let draft = self.draft(file.at.clone());
                draft.drop_versions.extend(file.dots());
                draft.drop_file_metas |= file.role == Role::Main;
            }
        }
    }

    /// Adds a version, and a meta if there is something a version cannot hold, in place of the metas at that name.
    pub(super) fn put(&mut self, dir: Fid, name: &Name, inode: &Inode) {
        let meta = FileMeta {
            hlc: self.hlc,
            dot: self.dot,
            mode: inode.mode,
            mtime: None,
            xattrs: inode.xattrs.clone(),
        };
        self.add_version(dir, name, inode);
        let draft = self.draft(Key::file(dir, name.clone()));
        draft.drop_file_metas = true;
        draft.file_meta = (!meta.xattrs.is_empty()).then_some(meta);
    }

    /// Adds a version and leaves the metas at that name as they are.
    pub(super) fn add_version(&mut self, dir: Fid, name: &Name, inode: &Inode) {
        let version = Version {
            hlc: self.hlc,
            dot: self.dot,
            kind: inode.kind,
            content: inode.content.clone(),
            size: inode.size,
            mtime: inode.mtime,
            mode: inode.mode,
            link: inode.link,
        };
        self.draft(Key::file(dir, name.clone())).version = Some(version);
    }

    /// Replaces the metas of a file that has its name by the attributes of `file`.
    pub(super) fn put_file_meta(&mut self, file: &FileNode) {
        let digest = || file.version.content.digest();
        let set = file.mtime != file.version.mtime;
        let meta = FileMeta {
            hlc: self.hlc,
            dot: self.dot,
            mode: file.mode,
            mtime: set.then(|| (digest(), file.mtime)),
            xattrs: file.xattrs.clone(),
        };
        let draft = self.draft(file.at.clone());
        draft.drop_file_metas = true;
        draft.file_meta = Some(meta);
    }

    /// A sibling becomes an ordinary entry at the name it is shown under.
    fn pin(&mut self, spot: &Spot) {
        if spot.is_plain() {
            return;
        }
        match &spot.node {
            Node::Dir(dir) => self.put_dir(dir, spot.dir, &spot.name, None),
            Node::File(file) => {
                self.drop(spot);
                self.put(spot.dir, &spot.name, &Inode::of(file));
            }
        }
    }

    /// Before the name of `spot` goes away, its siblings become ordinary entries, `keep` excepted.
    pub(super) fn settle(&mut self, spot: &Spot, keep: Option<&Spot>) {
        if !spot.is_plain() {
            return;
        }
        for other in self.state.group(spot.dir, spot.base.as_bytes()) {
            if other != *spot && Some(&other) != keep {
                self.pin(&other);
            }
        }
    }

    /// Replaces `file` at every name of its inode by `new`, under a fresh link id if there are several. Siblings among
    /// them are pinned; with `take_back`, `file` itself takes its own name from the file that has it now. Returns the
    /// name that `file` got.
    pub(super) fn rewrite(&mut self, file: &FileNode, new: &Inode, take_back: bool) -> Name {
        let mut own = file.at.name.clone();
        let spots = self.state.inode_spots(file);
        let link = (spots.len() > 1).then(|| self.fresh_link());
        let new = Inode {
            link,
            ..new.clone()
        };
        for spot in &spots {
            self.make_real(spot.dir);
            let group = self.state.group(spot.dir, spot.base.as_bytes());
            for other in &group {
                if let Node::File(rival) = &other.node
                    && !spots.contains(other)
                    && rival.version.same() == (new.kind, &new.content)
                {
                    self.pin(other);
                }
            }
            let under_file = matches!(group.first(), Some(first) if first.dir_node().is_none());
            self.drop(spot);
            let is_own = matches!(&spot.node, Node::File(other) if other.at == file.at);
            let name = if is_own && take_back && under_file && !spot.is_plain() {
                self.add_version(spot.dir, &spot.base, &new);
                &spot.base
            } else {
                self.put(spot.dir, &spot.name, &new);
                &spot.name
            };
            if is_own {
                own.clone_from(name);
            }
        }
        own
    }

    pub(super) fn finish(mut self) -> Edit {
        let mut updates = Vec::with_capacity(self.drafts.len());
        for (key, draft) in std::mem::take(&mut self.drafts) {
            self.note_birth(key.dir);
            if let Some(place) = &draft.place {
                self.note_birth(place.parent);
            }
            let values = draft.applied(self.state, &key);
            updates.push((key, values));
        }
        Edit {
            dot: self.dot,
            updates,
            births: self.births,
        }
    }

    /// A directory may get its head by this operation.
    fn note_birth(&mut self, dir: Fid) {
        if !self.state.dirs.contains_key(&dir)
            && let Some(birth) = self.state.birth(dir)
        {
            self.births.insert(dir, birth);
        }
    }
}

impl Draft {
    /// The values at `key` after this draft.
    fn applied(self, state: &State, key: &Key) -> Values {
        let dir = state.dirs.get(&key.dir);
        if key.name.is_empty() {
            let places = dir.filter(|_| !self.drop_places).map(|dir| &dir.places);
            let metas = dir.filter(|_| !self.drop_dir_metas).map(|dir| &dir.metas);
            return Values::Head {
                places: with(places, |_| true, self.place),
                metas: with(metas, |_| true, self.dir_meta),
            };
        }
        let entry = dir.and_then(|dir| dir.names.get(key.name.as_bytes()));
        let metas = entry
            .as_ref()
            .filter(|_| !self.drop_file_metas)
            .map(|entry| &entry.metas);
        let dropped = self.drop_versions;
        Values::File(super::FileEntry {
            versions: with(
                entry.as_ref().map(|entry| &entry.versions),
                |version| !dropped.contains(&version.dot),
                self.version,
            ),
            metas: with(metas, |_| true, self.file_meta),
        })
    }
}

/// The kept values and the new one, largest first.
fn with<T: Value>(old: Option<&Vec<T>>, keep: impl Fn(&T) -> bool, new: Option<T>) -> Vec<T> {
    let kept = old
        .into_iter()
        .flatten()
        .filter(|value| keep(value))
        .cloned();
    let mut values: Vec<T> = kept.chain(new).collect();
    values.sort_unstable_by(|one, two| two.cmp(one));
    // Collecting leaves room for more; there is one such list per file.
    values.shrink_to_fit();
    values
}
