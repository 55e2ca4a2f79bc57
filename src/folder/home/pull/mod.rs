//! Bringing a home in step with its folder: what the folder shows against the base records. What is on disk is not asked
//! here; every step that is taken proves first that it is what the records say.
//!
//! A file with a record that the folder shows elsewhere is renamed, known by its versions or by its content; one that it
//! shows nowhere goes among the displaced. Directories are known by their number. What is in the way of something goes
//! aside first, so names may be exchanged in any way. Whatever could not be done is found again by the next comparison,
//! because the records are true after every step.

mod compare;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::path::Path;

use bytes::Bytes;

use super::base::{At, FileTime, HomeId, Row, xattr_digest};
use super::fs::{Attributes, HomeFs};
use super::ledger::{Extent, LedgerError, noted_dirs};
use super::places::{ASIDE, DISPLACED, is_hidden};
use super::write::{Dress, Miss, Move, NewDir, Put, Writer, displaced_name, shown_name};
use crate::folder::state::{DirNode, Fid, beside};

use self::compare::{Diff, Want, is_reserved, is_same_time, match_up};

/// Comparisons of one pull: the second mostly finds nothing more to do.
const ROUNDS_MAX: usize = 4;

/// Names tried for what found no place.
const BESIDE_MAX: usize = 99;

/// What a pull left undone.
#[derive(Debug, Default)]
pub(super) struct Left {
    /// Files whose content is not here yet.
    pub(super) missing: u64,
    /// Things that are not as the records say: a scan comes first.
    pub(super) changed: u64,
    /// Things that wait for room on the disk, and why there is none.
    pub(super) waiting: u64,
    pub(super) room: Option<String>,
    /// Errors of the disk, the last as text.
    pub(super) failed: u64,
    pub(super) error: Option<String>,
    /// Things that the file system of the home has no place for: nothing waits for them.
    pub(super) unfit: u64,
}

/// Attributes as they were set: mode, mtime, [`xattr_digest`].
type Wanted = (u16, FileTime, u64);

/// How often attributes are set that do not stay: once it may have been somebody else who changed them right after.
const TRIES: u32 = 3;

/// What is remembered between pulls.
#[derive(Debug, Default)]
pub(super) struct Puller {
    /// Attributes that did not stay, and how often they were set.
    tried: HashMap<HomeId, (Wanted, u32)>,
    /// What cannot be here, by directory and name.
    unfit: BTreeMap<Fid, BTreeSet<Bytes>>,
}

impl Puller {
    /// Whether the file system has no room for these attributes.
    fn is_futile(&self, id: HomeId, wanted: &Wanted) -> bool {
        let tried = self.tried.get(&id);
        tried.is_some_and(|(tried, times)| tried == wanted && *times >= TRIES)
    }

    /// Whether something was found to have no place here.
    fn is_unfit(&self, dir: Fid, name: &[u8]) -> bool {
        let names = self.unfit.get(&dir);
        names.is_some_and(|names| names.contains(name))
    }

    fn note_tried(&mut self, id: HomeId, wanted: Wanted) {
        let (tried, times) = self.tried.entry(id).or_insert((wanted, 0));
        if *tried != wanted {
            (*tried, *times) = (wanted, 0);
        }
        *times += 1;
    }
}

/// One pull under way.
pub(super) struct Pull<'p, 'w, F: HomeFs> {
    writer: &'p mut Writer<'w, F>,
    puller: &'p mut Puller,
    /// The directories of the folder that have a place in the home.
    ids: HashMap<Fid, HomeId>,
    left: Left,
    is_full: bool,
}

impl<'p, 'w, F: HomeFs> Pull<'p, 'w, F> {
    pub(super) fn new(writer: &'p mut Writer<'w, F>, puller: &'p mut Puller) -> Self {
        let notes = noted_dirs(writer.ledger).into_iter();
        let placed = notes.filter(|(id, _)| writer.places.get(*id).is_some());
        let mut ids: HashMap<Fid, HomeId> = placed.map(|(id, fid)| (fid, id)).collect();
        ids.insert(Fid::ROOT, HomeId::ROOT);
        Self {
            writer,
            puller,
            ids,
            left: Left::default(),
            is_full: false,
        }
    }

    /// Does what can be done now.
    pub(super) fn run(mut self, extent: &Extent) -> Result<Left, LedgerError> {
        self.is_full = *extent == Extent::Everything;
        self.writer.look_for_room();
        for _round in 0..ROUNDS_MAX {
            let diff = self.compare(extent);
            if diff.is_empty() {
                break;
            }
            let before = self.writer.written.count();
            self.left = Left::default();
            self.carry_out(diff)?;
            if self.writer.written.count() == before {
                break;
            }
        }
        self.clear_aside()?;
        self.writer.drop_unused();
        if self.writer.is_stuck && self.left.failed == 0 {
            // Something has moved, and it is not known to be durable: what was to take its place has its turn after that.
            self.left.failed = 1;
        }
        let unfit = self.puller.unfit.values().map(BTreeSet::len);
        self.left.unfit += unfit.sum::<usize>() as u64;
        Ok(self.left)
    }

    fn carry_out(&mut self, diff: Diff) -> Result<(), LedgerError> {
        // What the folder shows must not be forgotten in a crash once it is on disk: it would be taken for the user's.
        self.writer.ledger.sync()?;
        let moves = match_up(self.writer, &diff);
        let matched: HashSet<HomeId> = moves.values().copied().collect();
        let unwanted: Vec<HomeId> = diff
            .loose
            .difference(&matched.iter().copied().collect())
            .copied()
            .collect();
        self.displace(&unwanted)?;
        self.make_dirs(&diff.dirs)?;
        for fid in &diff.dirs {
            self.place_dir(*fid)?;
        }
        self.place_files(&diff.wants, &moves)?;
        let gone: Vec<(At, Row)> = diff
            .gone
            .iter()
            .rev()
            .filter_map(|id| self.placed(*id))
            .collect();
        let removed = self.writer.rmdir(&gone)?;
        self.left.changed += gone.len() as u64 - removed;
        self.dress(diff.dress)
    }

    /// Where something is, and its record.
    fn placed(&self, id: HomeId) -> Option<(At, Row)> {
        let at = self.writer.places.get(id)?;
        let row = self.writer.row(&at).filter(|row| row.id == id)?;
        Some((at, row))
    }

    /// Moves things among the displaced.
    fn displace(&mut self, ids: &[HomeId]) -> Result<(), LedgerError> {
        let placed: Vec<(At, Row)> = ids.iter().filter_map(|id| self.placed(*id)).collect();
        let moves: Vec<Move> = placed
            .into_iter()
            .map(|(from, row)| {
                let shown = match is_hidden(from.dir) {
                    true => shown_name(&from.name),
                    false => &from.name,
                };
                let to = At {
                    dir: DISPLACED,
                    name: displaced_name(self.writer.fresh_id(), shown),
                };
                Move { from, to, row }
            })
            .collect();
        self.relocate(&moves)
    }

    fn relocate(&mut self, moves: &[Move]) -> Result<(), LedgerError> {
        for result in self.writer.relocate(moves)? {
            self.left.note(result.err());
        }
        Ok(())
    }

    /// Has nothing of ours at a name, by moving it aside. What the user has there stays.
    fn clear(&mut self, at: &At) -> Result<(), LedgerError> {
        let Some(row) = self.writer.row(at) else {
            return Ok(());
        };
        let to = At {
            dir: ASIDE,
            name: displaced_name(self.writer.fresh_id(), &at.name),
        };
        let from = at.clone();
        self.relocate(&[Move { from, to, row }])
    }

    /// Has a directory, and those above it, where the folder shows them. Returns its number; none if that cannot be.
    fn place_dir(&mut self, fid: Fid) -> Result<Option<HomeId>, LedgerError> {
        let mut chain = Vec::new();
        self.writer.ledger.read(&mut |state| {
            let mut at = fid;
            while let Some((parent, name)) = state.location(at) {
                let node = state.dir(at);
                chain.extend(node.map(|node| (node, parent, name)));
                at = parent;
            }
        });
        let mut dir = HomeId::ROOT;
        for (node, parent, name) in chain.into_iter().rev() {
            let at = At {
                dir,
                name: Bytes::copy_from_slice(name.as_bytes()),
            };
            if is_reserved(&at.name) || self.puller.is_unfit(parent, &at.name) {
                return Ok(None);
            }
            match self.put_dir(at, &node)? {
                Some(id) => dir = id,
                None => return Ok(None),
            }
        }
        Ok(Some(dir))
    }

    fn put_dir(&mut self, at: At, node: &DirNode) -> Result<Option<HomeId>, LedgerError> {
        let known = self.ids.get(&node.fid).copied();
        let place = known.and_then(|id| self.placed(id));
        if place.as_ref().is_some_and(|(place, _)| *place == at) {
            return Ok(known);
        }
        self.clear(&at)?;
        if let Some((_, row)) = place {
            let to = at.clone();
            if let Some((from, row)) = self.out_of_case(row.id, &to)? {
                self.relocate(&[Move { from, to, row }])?;
            }
            return Ok(known.filter(|id| self.writer.places.get(*id).as_ref() == Some(&at)));
        }
        self.mkdir(&[new_dir(at, node)])?;
        Ok(self.ids.get(&node.fid).copied())
    }

    fn mkdir(&mut self, dirs: &[NewDir]) -> Result<(), LedgerError> {
        for (new, made) in dirs.iter().zip(self.writer.mkdir(dirs)?) {
            match made {
                Ok(id) => drop(self.ids.insert(new.fid, id)),
                Err(miss) => self.left.note(Some(miss)),
            }
        }
        Ok(())
    }

    /// Makes the directories that have no place in the home yet, level by level.
    fn make_dirs(&mut self, dirs: &BTreeSet<Fid>) -> Result<(), LedgerError> {
        let new = dirs.iter().filter(|fid| !self.ids.contains_key(fid));
        let mut left: Vec<Fid> = new.copied().collect();
        loop {
            let (mut level, mut deeper) = (Vec::new(), Vec::new());
            let (ids, puller) = (&self.ids, &*self.puller);
            self.writer.ledger.read(&mut |state| {
                for fid in &left {
                    let shown = state.location(*fid).zip(state.dir(*fid));
                    let Some(((parent, name), node)) = shown else {
                        continue;
                    };
                    let name = Bytes::copy_from_slice(name.as_bytes());
                    match ids.get(&parent) {
                        Some(_) if is_reserved(&name) || puller.is_unfit(parent, &name) => {}
                        Some(dir) => level.push(new_dir(At { dir: *dir, name }, &node)),
                        None => deeper.push(*fid),
                    }
                }
            });
            if level.is_empty() {
                return Ok(());
            }
            for new in &level {
                self.clear(&new.at)?;
            }
            self.mkdir(&level)?;
            left = deeper;
        }
    }

    /// Renames what is known under another name, and writes the rest.
    fn place_files(
        &mut self,
        wants: &[Want],
        moves: &HashMap<usize, HomeId>,
    ) -> Result<(), LedgerError> {
        let mut targets = Vec::new();
        for (index, want) in wants.iter().enumerate() {
            let Some(dir) = self.place_dir(want.dir)? else {
                continue;
            };
            let name = want.name.clone();
            let at = At { dir, name };
            if !want.replaces || self.writer.row(&at).is_some_and(|row| row.is_dir()) {
                self.clear(&at)?;
            }
            targets.push((at, want, moves.get(&index)));
        }
        let (mut renames, mut puts) = (Vec::new(), Vec::new());
        for (at, want, source) in targets {
            let source = match source {
                Some(id) => self.out_of_case(*id, &at)?,
                None => None,
            };
            match source {
                Some((from, row)) => renames.push(Move {
                    from,
                    to: at,
                    row: Row {
                        held: want.version.held.clone(),
                        ..row
                    },
                }),
                None => puts.push((at, want)),
            }
        }
        self.relocate(&renames)?;
        self.put(puts)
    }

    /// Where something is that is to be renamed to `to`, and its record. If the two names are one here, it goes out of its
    /// own way first.
    fn out_of_case(&mut self, id: HomeId, to: &At) -> Result<Option<(At, Row)>, LedgerError> {
        let caps = self.writer.fs.caps();
        let is_in_the_way = |from: &At| {
            let fold = caps.fold(&from.name);
            fold.is_some() && from.dir == to.dir && fold == caps.fold(&to.name)
        };
        if let Some((from, _)) = self.placed(id).filter(|(from, _)| is_in_the_way(from)) {
            self.clear(&from)?;
        }
        Ok(self.placed(id))
    }

    fn put(&mut self, wants: Vec<(At, &Want)>) -> Result<(), LedgerError> {
        let mut puts = Vec::with_capacity(wants.len());
        for (at, want) in wants {
            let mut old = self.writer.row(&at);
            if old.as_ref().is_some_and(Row::is_dir) {
                // It could not go aside. Among the displaced it would take with it what nobody has read.
                self.left.note(Some(Miss::Changed));
                continue;
            }
            if let Some(row) = old.as_ref().filter(|_| !self.writer.fs.can_exchange()) {
                self.displace(&[row.id])?;
                old = self.writer.row(&at);
                if old.is_some() {
                    continue;
                }
            }
            puts.push(Put {
                at,
                version: want.version.clone(),
                old,
            });
        }
        for result in self.writer.put(&puts)? {
            self.left.note(result.err());
        }
        Ok(())
    }

    fn dress(&mut self, things: Vec<(Dress, Wanted)>) -> Result<(), LedgerError> {
        let (things, wanted): (Vec<Dress>, Vec<Wanted>) = things.into_iter().unzip();
        let results = self.writer.dress(&things)?;
        for ((thing, wanted), result) in things.into_iter().zip(wanted).zip(results) {
            if let Err(miss) = result {
                self.left.note(Some(miss));
                continue;
            }
            let Some(row) = self.writer.row(&thing.at) else {
                continue;
            };
            let Attributes {
                mode,
                mtime,
                xattrs,
            } = thing.attributes;
            let is_unlike = mode.is_some_and(|mode| row.mode != mode)
                || xattrs.is_some_and(|xattrs| row.xattrs != xattr_digest(&xattrs))
                || mtime.is_some_and(|mtime| !is_same_time(row.stamp.mtime, mtime));
            let is_tried = row.stamp.ctime != thing.row.stamp.ctime;
            if is_unlike && is_tried {
                self.puller.note_tried(row.id, wanted);
            }
            // Somebody set others right after.
            self.left.changed += u64::from(is_unlike && !self.puller.is_futile(row.id, &wanted));
        }
        Ok(())
    }

    /// What found no place while it was aside does not stay out of sight: files are among the displaced, and written again
    /// when there is a place; directories come back at the top.
    fn clear_aside(&mut self) -> Result<(), LedgerError> {
        let aside = self.rows(ASIDE);
        let files = aside.iter().filter(|(_, row)| !row.is_dir());
        let files: Vec<HomeId> = files.map(|(_, row)| row.id).collect();
        self.displace(&files)?;
        for (name, row) in aside.into_iter().filter(|(_, row)| row.is_dir()) {
            let shown = shown_name(&name);
            for number in 1..=BESIDE_MAX {
                let (dir, name) = (ASIDE, name.clone());
                let from = At { dir, name };
                let to = At {
                    dir: HomeId::ROOT,
                    name: Bytes::copy_from_slice(beside(shown, "recovered", number).as_bytes()),
                };
                if self.writer.row(&to).is_some() {
                    continue;
                }
                let row = row.clone();
                let id = row.id;
                self.relocate(&[Move { from, to, row }])?;
                if self.placed(id).is_none_or(|(at, _)| at.dir != ASIDE) {
                    break;
                }
            }
        }
        Ok(())
    }
}

impl Left {
    fn note(&mut self, miss: Option<Miss>) {
        match miss {
            None => {}
            Some(Miss::Missing) => self.missing += 1,
            Some(Miss::Changed) => self.changed += 1,
            Some(Miss::NoRoom(error)) => {
                self.waiting += 1;
                self.room = Some(error.to_string());
            }
            Some(Miss::Unfit) => self.unfit += 1,
            Some(Miss::Io(error)) => {
                self.failed += 1;
                self.error = Some(error.to_string());
            }
        }
    }

    /// What an earlier error left in between could not be settled.
    pub(super) fn unsettled() -> Self {
        Self {
            failed: 1,
            ..Self::default()
        }
    }

    /// What is left to be written into `dir`, for people; none if nothing is.
    pub(super) fn sentence(&self, dir: &Path) -> Option<String> {
        let parts = [
            (self.missing, "waiting for their content"),
            (self.changed, "changed here meanwhile"),
            (
                self.unfit,
                "that cannot be here: its file system has no such names",
            ),
        ];
        let parts = parts.into_iter().filter(|(count, _)| *count > 0);
        let mut parts: Vec<String> = parts
            .map(|(count, what)| format!("{count} {what}"))
            .collect();
        if self.waiting > 0 {
            let room = self.room.as_deref().unwrap_or_default();
            let dir = dir.display();
            parts.push(format!("{} waiting for {dir}: {room}", self.waiting));
        }
        if self.failed > 0 {
            let error = self
                .error
                .as_deref()
                .unwrap_or("an earlier change comes first");
            parts.push(format!("{} that cannot be written: {error}", self.failed));
        }
        (!parts.is_empty()).then(|| format!("not in the directory yet: {}", parts.join(", ")))
    }

    /// Whether nothing is left that could be written some time.
    pub(super) fn is_nothing(&self) -> bool {
        self.is_only_room() && self.waiting == 0
    }

    /// Whether nothing is left but what waits for room.
    pub(super) fn is_only_room(&self) -> bool {
        (self.missing, self.changed, self.failed) == (0, 0, 0)
    }
}

fn new_dir(at: At, node: &DirNode) -> NewDir {
    NewDir {
        at,
        fid: node.fid,
        mode: node.mode & 0o777,
        xattrs: node.xattrs.clone(),
    }
}
