//! The state of a folder: the values every operation and merge works on, and what is derived from them to show the
//! folder as a tree. Pure data: no file, no clock, no randomness; iteration is in key order everywhere.
//!
//! The values are one ordered map [`Key`] -> [`Entry`], held as a map of directories so that one directory is touched
//! without its neighbours. **Which entries exist** is a function of the values alone, because the entries are hashed:
//! a name has an entry iff it holds a version or a meta; a directory (the root too) has a head iff it holds a place or
//! a meta, or a name in it has an entry, or some place of some directory, shown or not, names it as parent. The
//! directories a ghost needs above itself are not entries: its birth path gives them.
//!
//! Beside the values, and kept in step by [`State::apply`], the only function that changes them: the graph of shown
//! directories (`graph.rs`), the names of each link id, the names that more than one thing wants (`crowd`), and the
//! keys that changed since [`State::take_dirty`].
//!
//! An operation costs O(log n + the group of things at its name + the depth of its directory); with ghosts or broken
//! cycles in the folder, one that gives or takes a directory's place may read every directory, never every file.

mod crowd;
mod graph;
mod label;
mod merge;
mod ops;
mod plan;
mod redot;
mod rows;
mod values;
mod view;

#[cfg(test)]
mod tests;
#[cfg(test)]
mod tests_histories;
#[cfg(test)]
mod tests_ops;

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

use crowd::Crowd;
use graph::{Declined, Graph, Touched};
use rows::Rows;

pub use label::{Tag, conflict_tag, label as beside};
pub use merge::EntryError;
pub use ops::{Base, Body, By, NewFile, OpError, RenameMode, Target};
pub use redot::Redot;
pub use values::{
    BIRTH_LEVELS_MAX, BirthPath, Content, ContentDigest, DirMeta, Dot, Entry, Fid, FileEntry,
    FileKind, FileMeta, Head, Hlc, Inc, Key, LinkId, NAME_BYTES_MAX, Name, Place, Rank, Time,
    Version, VersionVector, Xattrs,
};
pub use view::{DirNode, FileNode, Node, Role};

/// A folder as one device knows it.
#[derive(Clone)]
pub struct State {
    vv: VersionVector,
    dirs: Dirs,
    graph: Graph,
    links: BTreeMap<LinkId, BTreeSet<Key>>,
    crowds: BTreeMap<Fid, Crowd>,
    dirty: BTreeSet<Key>,
    tag: Tag,
}

type Dirs = BTreeMap<Fid, Dir>;
type Births = BTreeMap<Fid, BirthPath>;

/// The head of a directory and the entries in it. Exists iff the head does.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Dir {
    birth: BirthPath,
    places: Vec<Place>,
    metas: Vec<DirMeta>,
    names: Rows,
    /// Names with a version: those that are shown.
    shown_names: usize,
    /// Places, of any directory, that name this one as parent.
    place_refs: usize,
}

/// What an entry becomes.
enum Values {
    Head {
        places: Vec<Place>,
        metas: Vec<DirMeta>,
    },
    File(FileEntry),
}

/// An entry, borrowed where it lies as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EntryRef<'a> {
    Head {
        birth: &'a BirthPath,
        places: &'a [Place],
        metas: &'a [DirMeta],
    },
    File(Cow<'a, FileEntry>),
}

/// A part of the view that may be different now.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Change {
    /// What `dir` shows at `name` came, went, or is another file, version or directory, or has other attributes.
    Name { dir: Fid, name: Name },
    /// Any name in `dir`, as above.
    Listing { dir: Fid },
    /// Mode, time or extended attributes of `dir` itself.
    Attributes { dir: Fid },
}

impl Change {
    /// The directory it is about.
    pub fn dir(&self) -> Fid {
        match self {
            Self::Name { dir, .. } | Self::Listing { dir } | Self::Attributes { dir } => *dir,
        }
    }
}

/// What an update touched, gathered while the values change and worked off afterwards.
#[derive(Default)]
struct Effect {
    touched: Touched,
    changes: BTreeSet<Change>,
    /// Directories whose largest place changed.
    moved: BTreeSet<Fid>,
    /// Link ids whose names or what they show changed.
    links: BTreeSet<LinkId>,
    /// Directories that may have lost the last reason for their head.
    heads: BTreeSet<Fid>,
    recompute: bool,
}

impl Dir {
    fn born(birth: BirthPath) -> Self {
        Self {
            birth,
            places: Vec::new(),
            metas: Vec::new(),
            names: Rows::default(),
            shown_names: 0,
            place_refs: 0,
        }
    }

    fn has_head(&self) -> bool {
        !self.places.is_empty()
            || !self.metas.is_empty()
            || !self.names.is_empty()
            || self.place_refs > 0
    }

    fn head(&self) -> EntryRef<'_> {
        EntryRef::Head {
            birth: &self.birth,
            places: &self.places,
            metas: &self.metas,
        }
    }
}

impl EntryRef<'_> {
    pub fn to_entry(self) -> Entry {
        match self {
            EntryRef::Head {
                birth,
                places,
                metas,
            } => Entry::Head(Head {
                birth: birth.clone(),
                places: places.to_vec(),
                metas: metas.to_vec(),
            }),
            EntryRef::File(entry) => Entry::File(entry.into_owned()),
        }
    }
}

impl State {
    /// An empty folder. Siblings are named by `tag`.
    pub fn new(tag: Tag) -> Self {
        Self {
            vv: VersionVector::default(),
            dirs: Dirs::new(),
            graph: Graph::empty(),
            links: BTreeMap::new(),
            crowds: BTreeMap::new(),
            dirty: BTreeSet::new(),
            tag,
        }
    }

    /// The tag gives other names than before: every directory that shows a sibling changes.
    pub fn rename_siblings(&mut self) -> Vec<Change> {
        self.crowds.values_mut().for_each(Crowd::forget_names);
        let dirs = self.crowds.keys();
        dirs.map(|&dir| Change::Listing { dir }).collect()
    }

    pub fn vv(&self) -> &VersionVector {
        &self.vv
    }

    /// The dot the next operation of `inc` gets.
    pub fn next_dot(&self, inc: Inc) -> Dot {
        let ctr = self.vv.get(inc).saturating_add(1);
        Dot { inc, ctr }
    }

    pub fn entry(&self, key: &Key) -> Option<EntryRef<'_>> {
        let dir = self.dirs.get(&key.dir)?;
        if key.name.is_empty() {
            return Some(dir.head());
        }
        let entry = dir.names.get(key.name.as_bytes());
        entry.map(|entry| EntryRef::File(Cow::Owned(entry)))
    }

    /// Every entry, in key order.
    pub fn entries(&self) -> impl Iterator<Item = (Key, EntryRef<'_>)> {
        self.entries_from(Key::head(Fid::ROOT))
    }

    /// The entries at and after `from`, in key order.
    pub fn entries_from(&self, from: Key) -> impl Iterator<Item = (Key, EntryRef<'_>)> {
        let Key { dir: first, name } = from;
        self.dirs.range(first..).flat_map(move |(&fid, dir)| {
            let start = if fid == first && !name.is_empty() {
                Bound::Included(name.as_bytes())
            } else {
                Bound::Unbounded
            };
            let head = matches!(start, Bound::Unbounded).then(|| (Key::head(fid), dir.head()));
            let files = dir.names.range(start).map(move |(name, entry)| {
                let entry = EntryRef::File(Cow::Owned(entry));
                (Key::file(fid, name), entry)
            });
            head.into_iter().chain(files)
        })
    }

    /// The keys whose entries came, went or changed since the last call, and perhaps some that did not.
    pub fn take_dirty(&mut self) -> BTreeSet<Key> {
        std::mem::take(&mut self.dirty)
    }

    /// Where a directory was born; none for one that has no head and is not shown.
    pub fn birth(&self, dir: Fid) -> Option<BirthPath> {
        if dir == Fid::ROOT {
            return Some(BirthPath::root());
        }
        let head = self.dirs.get(&dir).map(|dir| &dir.birth);
        let ghost = || self.graph.at(dir).and_then(|at| at.birth.as_ref());
        head.or_else(ghost).cloned()
    }

    /// Replaces the values of some entries and brings everything derived in step. `births` has the birth path of every
    /// directory that gets its head here.
    fn apply(&mut self, updates: Vec<(Key, Values)>, births: &Births) -> Vec<Change> {
        let mut effect = Effect::default();
        self.settle_births(births, &mut effect);
        for (key, values) in updates {
            match values {
                Values::Head { places, metas } => {
                    self.set_head(key.dir, places, metas, births, &mut effect);
                }
                Values::File(entry) => self.set_file(&key, &entry, births, &mut effect),
            }
            self.dirty.insert(key);
        }
        self.follow_moves(&mut effect);
        for fid in std::mem::take(&mut effect.heads) {
            if self.dirs.get(&fid).is_some_and(|dir| !dir.has_head()) {
                self.dirs.remove(&fid);
                self.dirty.insert(Key::head(fid));
            }
        }
        self.touch_inodes(&mut effect);
        for (dir, name) in effect.touched {
            self.refresh_crowd(dir, name, &mut effect.changes);
        }
        effect.changes.into_iter().collect()
    }

    /// Whatever happens at one name of an inode, a directory that takes it included, may change how many names it has.
    fn touch_inodes(&self, effect: &mut Effect) {
        let entry = |(dir, name): &(Fid, Name)| self.dirs.get(dir)?.names.get(name.as_bytes());
        let versions = effect
            .touched
            .iter()
            .filter_map(entry)
            .flat_map(|entry| entry.versions);
        effect
            .links
            .extend(versions.filter_map(|version| version.link));
        let keys = effect
            .links
            .iter()
            .filter_map(|link| self.links.get(link))
            .flatten();
        effect
            .touched
            .extend(keys.map(|key| (key.dir, key.name.clone())));
    }

    /// Two birth paths with one hash are a forgery; all devices keep the smaller.
    fn settle_births(&mut self, births: &Births, effect: &mut Effect) {
        for (fid, birth) in births {
            if let Some(dir) = self.dirs.get_mut(fid)
                && dir.birth != *birth
                && birth.steps() < dir.birth.steps()
            {
                dir.birth = birth.clone();
                self.dirty.insert(Key::head(*fid));
                effect.recompute = true;
            }
        }
    }

    /// The record of a directory, made if it has none.
    fn dir_mut(&mut self, fid: Fid, births: &Births) -> &mut Dir {
        let dirty = &mut self.dirty;
        self.dirs.entry(fid).or_insert_with(|| {
            debug_assert!(
                fid == Fid::ROOT || births.contains_key(&fid),
                "{fid:?} has no birth"
            );
            dirty.insert(Key::head(fid));
            Dir::born(births.get(&fid).cloned().unwrap_or_else(BirthPath::root))
        })
    }

    fn set_head(
        &mut self,
        fid: Fid,
        places: Vec<Place>,
        metas: Vec<DirMeta>,
        births: &Births,
        effect: &mut Effect,
    ) {
        for place in &places {
            self.dir_mut(place.parent, births).place_refs += 1;
        }
        let dir = self.dir_mut(fid, births);
        if dir.places.first() != places.first() {
            effect.moved.insert(fid);
        }
        dir.metas = metas;
        let old = std::mem::replace(&mut dir.places, places);
        for place in old {
            if let Some(parent) = self.dirs.get_mut(&place.parent) {
                parent.place_refs -= 1;
                effect.heads.insert(place.parent);
            }
        }
        effect.heads.insert(fid);
        effect.changes.insert(Change::Attributes { dir: fid });
    }

    fn set_file(&mut self, key: &Key, entry: &FileEntry, births: &Births, effect: &mut Effect) {
        let new_links: BTreeSet<LinkId> = entry.versions.iter().filter_map(|v| v.link).collect();
        let dir = self.dir_mut(key.dir, births);
        let shown = !entry.versions.is_empty();
        let old = dir.names.set(&key.name, entry);
        let old_versions = old.as_ref().map_or(&[][..], |entry| &entry.versions);
        let was_empty = dir.shown_names == 0;
        dir.shown_names += usize::from(shown);
        dir.shown_names -= usize::from(!old_versions.is_empty());
        if dir.places.is_empty() && key.dir != Fid::ROOT && was_empty != (dir.shown_names == 0) {
            effect.recompute = true;
        }
        let old_links: BTreeSet<LinkId> = old_versions.iter().filter_map(|v| v.link).collect();
        for link in new_links.difference(&old_links) {
            self.links.entry(*link).or_default().insert(key.clone());
        }
        for link in old_links.difference(&new_links) {
            if let Some(keys) = self.links.get_mut(link) {
                keys.remove(key);
                if keys.is_empty() {
                    self.links.remove(link);
                }
            }
        }
        effect.links.extend(old_links);
        effect.links.extend(new_links);
        effect.touched.insert((key.dir, key.name.clone()));
        effect.heads.insert(key.dir);
    }

    /// Brings the graph in step with the places: one directory at a time, parents before children and removals last and
    /// upwards, or at once if it declines one of them.
    fn follow_moves(&mut self, effect: &mut Effect) {
        let dirs = &self.dirs;
        let mut moves: Vec<(Fid, &Dir)> = effect
            .moved
            .iter()
            .filter_map(|fid| Some((*fid, dirs.get(fid)?)))
            .collect();
        moves.sort_by_key(|(_, dir)| {
            let level = dir.birth.level();
            match dir.places.is_empty() {
                false => (false, level),
                true => (true, BIRTH_LEVELS_MAX - level),
            }
        });
        let followed = !effect.recompute
            && moves.iter().all(|(fid, dir)| {
                let files = dir.shown_names > 0;
                let done = self
                    .graph
                    .update(*fid, dir.places.first(), files, &mut effect.touched);
                !matches!(done, Err(Declined))
            });
        if !followed {
            let old = std::mem::replace(&mut self.graph, Graph::compute(&self.dirs));
            compare(&old, &self.graph, effect);
            compare(&self.graph, &old, effect);
        }
    }
}

/// Touches whatever directory of `one` is elsewhere in `other`.
fn compare(one: &Graph, other: &Graph, effect: &mut Effect) {
    for (dir, at) in one.iter() {
        if other.at(dir) != Some(at) {
            effect.touched.insert((at.parent, at.name.clone()));
            effect.changes.insert(Change::Attributes { dir });
        }
    }
}

impl PartialEq for State {
    fn eq(&self, other: &Self) -> bool {
        self.vv == other.vv && self.dirs == other.dirs
    }
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("State")
            .field("vv", &self.vv)
            .field("dirs", &self.dirs)
            .finish_non_exhaustive()
    }
}
