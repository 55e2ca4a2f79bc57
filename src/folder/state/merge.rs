//! How two states come together: a value on both sides stays, a value on one side stays iff the other has not seen its
//! dot. Merging makes no dot and reads no clock, so every device that merges the same states gets the same state.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

use super::graph::Graph;
use super::rows::Rows;
use super::values::{Dot, Entry, Fid, FileEntry, Key, Name, Value, VersionVector};
use super::{Births, Change, Dir, EntryRef, State, Tag, Values};

/// Entries that no state has.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EntryError {
    #[error("the entry at {0:?} is of the wrong kind for its key")]
    Kind(Key),
    #[error("the entry at {0:?} holds no value, a bad name, or values out of order")]
    Malformed(Key),
    #[error("directory {0:?} is not where its birth path leads")]
    Birth(Fid),
    #[error("directory {0:?} is referred to but has no head")]
    NoHead(Fid),
    #[error("the root cannot have a place")]
    RootPlace,
}

impl State {
    /// A state from all its entries. The files are never together in another form than the state's own, and what is
    /// derived is derived once.
    pub fn from_entries(
        entries: impl IntoIterator<Item = (Key, Entry)>,
        vv: VersionVector,
        tag: Tag,
    ) -> Result<Self, EntryError> {
        let mut state = Self::new(tag);
        let mut births = Births::new();
        let mut heads = Vec::new();
        let mut files: BTreeMap<Fid, Rows> = BTreeMap::new();
        for (key, entry) in entries {
            check(&key, &entry)?;
            match entry {
                Entry::Head(head) => {
                    births.insert(key.dir, head.birth);
                    let (places, metas) = (head.places, head.metas);
                    heads.push((key, Values::Head { places, metas }));
                }
                Entry::File(file) => {
                    let rows = files.entry(key.dir).or_default();
                    rows.set(&key.name, &file);
                }
            }
        }
        state.check_heads(&heads, &births)?;
        state.apply(heads, &births);
        for (fid, rows) in files {
            if fid != Fid::ROOT && !births.contains_key(&fid) {
                return Err(EntryError::NoHead(fid));
            }
            state.dir_mut(fid, &births).names = rows;
        }
        state.derive_from_files();
        state.dirty.clear();
        state.vv = vv;
        Ok(state)
    }

    /// Brings everything derived in step with files that [`Self::apply`] was not told of.
    fn derive_from_files(&mut self) {
        let mut crowded: BTreeSet<(Fid, Name)> = BTreeSet::new();
        for (&fid, dir) in &mut self.dirs {
            for (name, entry) in dir.names.iter() {
                dir.shown_names += usize::from(!entry.versions.is_empty());
                for link in entry.versions.iter().filter_map(|version| version.link) {
                    let keys = self.links.entry(link).or_default();
                    keys.insert(Key::file(fid, name.clone()));
                }
                if entry.versions.len() > 1 {
                    crowded.insert((fid, name));
                }
            }
        }
        self.graph = Graph::compute(&self.dirs);
        let dirs = self.graph.iter();
        crowded.extend(dirs.map(|(_, at)| (at.parent, at.name.clone())));
        let mut changes = BTreeSet::new();
        for (dir, name) in crowded {
            self.refresh_crowd(dir, name, &mut changes);
        }
    }

    /// Merges all of `other` into this state.
    pub fn merge(&mut self, other: &Self) -> Vec<Change> {
        let mut births = Births::new();
        let updates = self
            .differences(other)
            .into_iter()
            .filter_map(|key| {
                let theirs = other.entry(&key);
                if let Some(EntryRef::Head { birth, .. }) = theirs {
                    births.insert(key.dir, birth.clone());
                }
                self.merged(key, theirs, &other.vv)
            })
            .collect();
        let changes = self.apply(updates, &births);
        self.vv.join(&other.vv);
        changes
    }

    /// Merges a state of which only the entries that differ from ours are given, with none where it has no entry: the
    /// same as [`Self::merge`] with all of it. Entries that do not differ do no harm. Refused, it changes nothing.
    pub fn merge_entries(
        &mut self,
        theirs: impl IntoIterator<Item = (Key, Option<Entry>)>,
        their_vv: &VersionVector,
    ) -> Result<Vec<Change>, EntryError> {
        let mut births = Births::new();
        let mut updates = Vec::new();
        for (key, entry) in theirs {
            if let Some(entry) = &entry {
                check(&key, entry)?;
            }
            if let Some(Entry::Head(head)) = &entry {
                births.insert(key.dir, head.birth.clone());
            }
            updates.extend(self.merged(key, entry.as_ref().map(Entry::as_ref), their_vv));
        }
        self.check_heads(&updates, &births)?;
        let changes = self.apply(updates, &births);
        self.vv.join(their_vv);
        Ok(changes)
    }

    /// The keys whose entries differ between the two states.
    pub fn differences(&self, other: &Self) -> BTreeSet<Key> {
        let mut keys = BTreeSet::new();
        let fids: BTreeSet<Fid> = self.dirs.keys().chain(other.dirs.keys()).copied().collect();
        for fid in fids {
            let (mine, theirs) = (self.dirs.get(&fid), other.dirs.get(&fid));
            if mine.map(Dir::head) != theirs.map(Dir::head) {
                keys.insert(Key::head(fid));
            }
            for (one, two) in [(mine, theirs), (theirs, mine)] {
                let names = one.into_iter().flat_map(|dir| {
                    let others = two.map(|dir| &dir.names);
                    dir.names.missing_or_other(others)
                });
                keys.extend(names.map(|name| Key::file(fid, name)));
            }
        }
        keys
    }

    /// What the entry at `key` becomes; none if it stays as it is.
    fn merged(
        &self,
        key: Key,
        theirs: Option<EntryRef<'_>>,
        their_vv: &VersionVector,
    ) -> Option<(Key, Values)> {
        let sides = Sides {
            mine: &self.vv,
            theirs: their_vv,
        };
        let dir = self.dirs.get(&key.dir);
        if key.name.is_empty() {
            let (places, metas) = match theirs {
                Some(EntryRef::Head { places, metas, .. }) => (places, metas),
                _ => (&[][..], &[][..]),
            };
            let mine = dir.map_or((&[][..], &[][..]), |dir| (&dir.places, &dir.metas));
            let places = sides.merge(mine.0, places);
            let metas = sides.merge(mine.1, metas);
            let same = (&places[..], &metas[..]) == mine;
            return (!same).then_some((key, Values::Head { places, metas }));
        }
        let mine = dir.and_then(|dir| dir.names.get(key.name.as_bytes()));
        let mine = mine.unwrap_or_default();
        let theirs = match theirs {
            Some(EntryRef::File(entry)) => entry,
            _ => Cow::Owned(FileEntry::default()),
        };
        let merged = FileEntry {
            versions: sides.merge(&mine.versions, &theirs.versions),
            metas: sides.merge(&mine.metas, &theirs.metas),
        };
        (merged != mine).then_some((key, Values::File(merged)))
    }

    /// Whether every directory that `updates` refer to has a head, here or in `births`.
    fn check_heads(&self, updates: &[(Key, Values)], births: &Births) -> Result<(), EntryError> {
        let known = |fid: Fid| {
            fid == Fid::ROOT || self.dirs.contains_key(&fid) || births.contains_key(&fid)
        };
        for (key, values) in updates {
            let parents = match values {
                Values::Head { places, .. } => &places[..],
                Values::File(_) => &[],
            };
            let holds = match values {
                Values::Head { places, metas } => !places.is_empty() || !metas.is_empty(),
                Values::File(entry) => !entry.is_empty(),
            };
            let own = holds.then_some(key.dir);
            let mut needed = parents.iter().map(|place| place.parent).chain(own);
            if let Some(unknown) = needed.find(|fid| !known(*fid)) {
                return Err(EntryError::NoHead(unknown));
            }
        }
        Ok(())
    }
}

impl Entry {
    pub fn as_ref(&self) -> EntryRef<'_> {
        match self {
            Self::Head(head) => EntryRef::Head {
                birth: &head.birth,
                places: &head.places,
                metas: &head.metas,
            },
            Self::File(entry) => EntryRef::File(Cow::Borrowed(entry)),
        }
    }
}

/// What the two sides of a merge have seen.
struct Sides<'a> {
    mine: &'a VersionVector,
    theirs: &'a VersionVector,
}

impl Sides<'_> {
    /// The values of one key that stay, largest first.
    fn merge<T: Value>(&self, mine: &[T], theirs: &[T]) -> Vec<T> {
        if mine == theirs {
            return mine.to_vec();
        }
        let dots = |values: &[T]| -> BTreeSet<Dot> { values.iter().map(T::dot).collect() };
        let (my_dots, their_dots) = (dots(mine), dots(theirs));
        let stays = |value: &&T, other: &BTreeSet<Dot>, seen: &VersionVector| {
            other.contains(&value.dot()) || !seen.covers(value.dot())
        };
        let mine = mine.iter().filter(|v| stays(v, &their_dots, self.theirs));
        let theirs = theirs.iter().filter(|v| stays(v, &my_dots, self.mine));
        let mut merged: Vec<T> = mine.chain(theirs).cloned().collect();
        merged.sort_unstable_by(|one, two| two.cmp(one));
        merged.dedup();
        merged.shrink_to_fit();
        merged
    }
}

/// Whether an entry from outside is one that some state could have at `key`.
fn check(key: &Key, entry: &Entry) -> Result<(), EntryError> {
    match entry {
        Entry::Head(_) if !key.name.is_empty() => Err(EntryError::Kind(key.clone())),
        Entry::File(_) if key.name.is_empty() => Err(EntryError::Kind(key.clone())),
        Entry::Head(head) if head.birth.fid() != key.dir => Err(EntryError::Birth(key.dir)),
        Entry::Head(head) if key.dir == Fid::ROOT && !head.places.is_empty() => {
            Err(EntryError::RootPlace)
        }
        Entry::Head(head) => {
            let names = head.places.iter().flat_map(|place| {
                let was = place.was.as_ref().map(|(_, name)| name);
                std::iter::once(&place.name).chain(was)
            });
            let names_ok = names.map(Name::as_bytes).all(Name::is_valid);
            ensure(
                names_ok && descends(&head.places) && descends(&head.metas),
                key,
            )
        }
        Entry::File(file) => {
            let name_ok = Name::is_valid(key.name.as_bytes()) && !file.is_empty();
            ensure(
                name_ok && descends(&file.versions) && descends(&file.metas),
                key,
            )
        }
    }
}

fn ensure(well_formed: bool, key: &Key) -> Result<(), EntryError> {
    match well_formed {
        true => Ok(()),
        false => Err(EntryError::Malformed(key.clone())),
    }
}

fn descends<T: Ord>(values: &[T]) -> bool {
    values.windows(2).all(|pair| pair[0] > pair[1])
}
