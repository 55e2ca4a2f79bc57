//! Bringing a home in step with its folder: what the folder shows against the base records. What is on disk is not asked
//! here; every step that is taken proves first that it is what the records say.
//!
//! A file with a record that the folder shows elsewhere is renamed, known by its versions or by its content; one that it
//! shows nowhere goes among the displaced. Directories are known by their number. What is in the way of something goes
//! aside first, so names may be exchanged in any way. Whatever could not be done is found again by the next comparison,
//! because the records are true after every step.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};

use bytes::Bytes;

use super::base::{At, FileTime, HomeId, Row, RowKind, prefix, xattr_digest};
use super::fs::{Attributes, HomeFs, TEMP_PREFIX};
use super::ledger::{Extent, LedgerError, dots, encode_dots, noted_dirs};
use super::marker::OWN_DIR;
use super::places::{ASIDE, DISPLACED, is_hidden};
use super::write::{Dress, Miss, Move, NewDir, Put, Version, Writer, displaced_name, shown_name};
use crate::folder::state::{
    DirNode, Dot, Fid, FileKind, FileNode, Name, Node, Role, Xattrs, beside,
};

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
    /// Errors of the disk, the last as text.
    pub(super) failed: u64,
    pub(super) error: Option<String>,
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
}

impl Puller {
    /// Whether the file system has no room for these attributes.
    fn is_futile(&self, id: HomeId, wanted: &Wanted) -> bool {
        let tried = self.tried.get(&id);
        tried.is_some_and(|(tried, times)| tried == wanted && *times >= TRIES)
    }

    fn note_tried(&mut self, id: HomeId, wanted: Wanted) {
        let (tried, times) = self.tried.entry(id).or_insert((wanted, 0));
        if *tried != wanted {
            (*tried, *times) = (wanted, 0);
        }
        *times += 1;
    }
}

/// One version that is not where it is to be.
struct Want {
    dir: Fid,
    name: Bytes,
    version: Version,
    /// What is there now is an older version.
    replaces: bool,
}

/// What differs.
#[derive(Default)]
struct Diff {
    /// Files and symlinks that are not shown where they are.
    loose: BTreeSet<HomeId>,
    /// Directories that are not shown at all, a parent before its children.
    gone: Vec<HomeId>,
    /// Directories that are not where they are shown.
    dirs: BTreeSet<Fid>,
    wants: Vec<Want>,
    dress: Vec<Dress>,
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
        Ok(self.left)
    }

    fn compare(&mut self, extent: &Extent) -> Diff {
        let mut diff = Diff::default();
        let mut queue: VecDeque<Fid> = match extent {
            Extent::Everything => [Fid::ROOT].into(),
            Extent::Dirs(dirs) => dirs.iter().copied().collect(),
        };
        let mut seen: HashSet<Fid> = queue.iter().copied().collect();
        while let Some(fid) = queue.pop_front() {
            for new in self.compare_dir(fid, &mut diff) {
                if seen.insert(new) {
                    queue.push_back(new);
                }
            }
        }
        for (_, row) in self.rows(ASIDE) {
            self.unplace(row, &mut diff);
        }
        diff
    }

    fn rows(&self, dir: HomeId) -> Vec<(Bytes, Row)> {
        let rows = self.writer.ledger.rows(&prefix(dir)).into_iter();
        rows.filter_map(|(key, row)| Some((At::from_key(&key).ok()?.name, Row::decode(&row).ok()?)))
            .collect()
    }

    /// Compares one directory. Returns those below it that are to be compared too.
    fn compare_dir(&mut self, fid: Fid, diff: &mut Diff) -> Vec<Fid> {
        let mut shown = None;
        self.writer
            .ledger
            .read(&mut |state| shown = state.dir(fid).map(|_| state.list(fid)));
        // The directory above one that is not shown has its record.
        let Some(shown) = shown else {
            return Vec::new();
        };
        let id = self.ids.get(&fid).copied();
        let mut rows: BTreeMap<Bytes, Row> = match id {
            Some(id) => self.rows(id).into_iter().collect(),
            None => BTreeMap::new(),
        };
        let elsewhere = siblings(&shown);
        let mut below = Vec::new();
        for (name, node) in &shown {
            if is_reserved(fid, name.as_bytes()) {
                continue;
            }
            let name = Bytes::copy_from_slice(name.as_bytes());
            let row = rows.remove(&name);
            match node {
                Node::Dir(node) => {
                    let known = self.ids.get(&node.fid).copied();
                    if self.is_full || known.is_none() {
                        below.push(node.fid);
                    }
                    match (row, id) {
                        (Some(row), Some(id)) if Some(row.id) == known => {
                            diff.dress
                                .extend(self.dress_dir(At { dir: id, name }, row, node));
                        }
                        (row, _) => {
                            diff.dirs.insert(node.fid);
                            row.into_iter().for_each(|row| self.unplace(row, diff));
                        }
                    }
                }
                Node::File(node) => self.compare_file((fid, id, name), node, row, &elsewhere, diff),
            }
        }
        rows.into_values().for_each(|row| self.unplace(row, diff));
        below
    }

    fn compare_file(
        &self,
        (dir, id, name): (Fid, Option<HomeId>, Bytes),
        node: &FileNode,
        row: Option<Row>,
        elsewhere: &HashMap<Dot, Version>,
        diff: &mut Diff,
    ) {
        let version = version(node);
        let replaces = match (row, id) {
            (Some(row), Some(id)) if !row.is_dir() => {
                if row.has_content(&version) {
                    diff.dress
                        .extend(self.dress_file(At { dir: id, name }, row, version));
                    return;
                }
                let is_beside = dots(&row.held)
                    .iter()
                    .filter_map(|dot| elsewhere.get(dot))
                    .any(|other| row.has_content(other));
                if is_beside {
                    diff.loose.insert(row.id);
                }
                !is_beside
            }
            (row, _) => {
                row.into_iter().for_each(|row| self.unplace(row, diff));
                false
            }
        };
        diff.wants.push(Want {
            dir,
            name,
            version,
            replaces,
        });
    }

    /// Something is not shown where it is.
    fn unplace(&self, row: Row, diff: &mut Diff) {
        if !row.is_dir() {
            diff.loose.insert(row.id);
            return;
        }
        let mut stack = vec![row];
        while let Some(row) = stack.pop() {
            if !row.is_dir() {
                diff.loose.insert(row.id);
                continue;
            }
            // What nobody knows as a directory of the folder is the user's.
            let Some(fid) = self.fid(row.id) else {
                continue;
            };
            let mut is_shown = false;
            self.writer
                .ledger
                .read(&mut |state| is_shown = state.dir(fid).is_some());
            if is_shown && self.ids.get(&fid) == Some(&row.id) {
                diff.dirs.insert(fid);
            } else if !diff.gone.contains(&row.id) {
                diff.gone.push(row.id);
                stack.extend(self.rows(row.id).into_iter().map(|(_, row)| row));
            }
        }
    }

    fn fid(&self, id: HomeId) -> Option<Fid> {
        super::ledger::noted_fid(self.writer.ledger, id)
    }

    fn dress_dir(&self, at: At, row: Row, node: &DirNode) -> Option<Dress> {
        let attributes = Attributes {
            mode: (row.mode != node.mode & 0o777).then_some(node.mode & 0o777),
            mtime: None,
            xattrs: own_xattrs(&row, &node.xattrs),
        };
        let tried = (node.mode, FileTime::default(), xattr_digest(&node.xattrs));
        let is_needed = attributes != Attributes::default();
        (is_needed && !self.puller.is_futile(row.id, &tried)).then(|| Dress {
            at,
            held: row.held.clone(),
            row,
            attributes,
        })
    }

    fn dress_file(&self, at: At, row: Row, version: Version) -> Option<Dress> {
        let is_file = version.kind == FileKind::File;
        let mut attributes = Attributes::default();
        let tried = (version.mode, version.mtime, xattr_digest(&version.xattrs));
        if is_file && !self.puller.is_futile(row.id, &tried) {
            attributes = Attributes {
                mode: (row.mode != version.mode).then_some(version.mode),
                mtime: (!is_same_time(row.stamp.mtime, version.mtime)).then_some(version.mtime),
                xattrs: own_xattrs(&row, &version.xattrs),
            };
        }
        let is_needed = attributes != Attributes::default() || row.held != version.held;
        is_needed.then_some(Dress {
            at,
            row,
            attributes,
            held: version.held,
        })
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
            if is_reserved(parent, &at.name) {
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
        if let Some((from, row)) = place {
            let to = at.clone();
            self.relocate(&[Move { from, to, row }])?;
            return Ok(known.filter(|id| self.writer.places.get(*id).as_ref() == Some(&at)));
        }
        self.mkdir(&[new_dir(at, node)])?;
        Ok(self.ids.get(&node.fid).copied())
    }

    fn mkdir(&mut self, dirs: &[NewDir]) -> Result<(), LedgerError> {
        for (new, made) in dirs.iter().zip(self.writer.mkdir(dirs)?) {
            match made {
                Some(id) => drop(self.ids.insert(new.fid, id)),
                None => self.left.changed += 1,
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
            let ids = &self.ids;
            self.writer.ledger.read(&mut |state| {
                for fid in &left {
                    let shown = state.location(*fid).zip(state.dir(*fid));
                    let Some(((parent, name), node)) = shown else {
                        continue;
                    };
                    let name = Bytes::copy_from_slice(name.as_bytes());
                    match ids.get(&parent) {
                        Some(_) if is_reserved(parent, &name) => {}
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
            match source.and_then(|id| self.placed(*id)) {
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

    fn put(&mut self, wants: Vec<(At, &Want)>) -> Result<(), LedgerError> {
        let mut puts = Vec::with_capacity(wants.len());
        for (at, want) in wants {
            let mut old = self.writer.row(&at);
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

    fn dress(&mut self, things: Vec<Dress>) -> Result<(), LedgerError> {
        self.writer.dress(&things)?;
        for thing in things {
            let (
                Some(row),
                Attributes {
                    mode,
                    mtime,
                    xattrs,
                },
            ) = (self.writer.row(&thing.at), thing.attributes)
            else {
                continue;
            };
            let is_unlike = mode.is_some_and(|mode| row.mode != mode)
                || mtime.is_some_and(|mtime| !is_same_time(row.stamp.mtime, mtime));
            let is_tried = row.stamp.ctime != thing.row.stamp.ctime;
            if is_unlike && is_tried {
                let digest = xattrs.map_or(row.xattrs, |xattrs| xattr_digest(&xattrs));
                let mtime = mtime.unwrap_or(row.stamp.mtime);
                let tried = (mode.unwrap_or(row.mode), mtime, digest);
                self.puller.note_tried(row.id, tried);
            }
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

    /// What is left, for people; none if nothing is.
    pub(super) fn sentence(&self) -> Option<String> {
        let parts = [
            (self.missing, "waiting for their content"),
            (self.changed, "changed here meanwhile"),
        ];
        let parts = parts.into_iter().filter(|(count, _)| *count > 0);
        let mut parts: Vec<String> = parts
            .map(|(count, what)| format!("{count} {what}"))
            .collect();
        if self.failed > 0 {
            let error = self
                .error
                .as_deref()
                .unwrap_or("an earlier change comes first");
            parts.push(format!("{} that cannot be written: {error}", self.failed));
        }
        (!parts.is_empty()).then(|| format!("not in the directory yet: {}", parts.join(", ")))
    }

    pub(super) fn is_nothing(&self) -> bool {
        (self.missing, self.changed, self.failed) == (0, 0, 0)
    }
}

impl Diff {
    fn is_empty(&self) -> bool {
        self.loose.is_empty()
            && self.gone.is_empty()
            && self.dirs.is_empty()
            && self.wants.is_empty()
            && self.dress.is_empty()
    }
}

impl Row {
    /// Whether this is what was read or written here. Versions are not asked: one operation gives all it writes one dot.
    fn has_content(&self, version: &Version) -> bool {
        match &self.kind {
            RowKind::Dir => false,
            RowKind::File { content } => {
                version.kind == FileKind::File && *content == version.content
            }
            RowKind::Symlink { target } => {
                version.kind == FileKind::Symlink && *target == version.content
            }
        }
    }
}

/// Finds for what is not on disk where it is shown what is on disk where it is not shown, by versions, then by content:
/// the number of a want and what it is.
fn match_up<F: HomeFs>(writer: &Writer<'_, F>, diff: &Diff) -> HashMap<usize, HomeId> {
    let open = || {
        diff.wants
            .iter()
            .enumerate()
            .filter(|(_, want)| !want.replaces)
    };
    let mut by_dot: HashMap<Dot, usize> = HashMap::new();
    let mut by_content: HashMap<(FileKind, &Bytes), Vec<usize>> = HashMap::new();
    for (index, want) in open() {
        by_dot.extend(dots(&want.version.held).into_iter().map(|dot| (dot, index)));
        let same = (want.version.kind, &want.version.content);
        by_content.entry(same).or_default().push(index);
    }
    let mut found = HashMap::new();
    let loose = diff.loose.iter().filter_map(|id| {
        let at = writer.places.get(*id)?;
        writer.row(&at).filter(|row| row.id == *id)
    });
    let mut rest = Vec::new();
    for row in loose {
        let held = dots(&row.held);
        let known = held.iter().filter_map(|dot| by_dot.get(dot)).find(|index| {
            let want = diff.wants.get(**index);
            want.is_some_and(|want| row.has_content(&want.version)) && !found.contains_key(*index)
        });
        match known {
            Some(index) => drop(found.insert(*index, row.id)),
            None => rest.push(row),
        }
    }
    for row in rest {
        let same = match &row.kind {
            RowKind::Dir => continue,
            RowKind::File { content } => (FileKind::File, content),
            RowKind::Symlink { target } => (FileKind::Symlink, target),
        };
        let wants = by_content.get(&same).into_iter().flatten();
        if let Some(index) = wants.copied().find(|index| !found.contains_key(index)) {
            found.insert(index, row.id);
        }
    }
    found
}

fn new_dir(at: At, node: &DirNode) -> NewDir {
    NewDir {
        at,
        fid: node.fid,
        mode: node.mode & 0o777,
        xattrs: node.xattrs.clone(),
    }
}

/// The versions in a listing that share their name with others.
fn siblings(shown: &[(Name, Node)]) -> HashMap<Dot, Version> {
    let mut out = HashMap::new();
    for (_, node) in shown {
        if let Node::File(node) = node
            && node.role == Role::Sibling
        {
            out.extend(node.dots().map(|dot| (dot, version(node))));
        }
    }
    out
}

fn version(node: &FileNode) -> Version {
    let mtime = node.mtime;
    Version {
        kind: node.version.kind,
        content: Bytes::copy_from_slice(&node.version.content.0),
        size: node.version.size,
        mtime: FileTime {
            secs: mtime.secs,
            nanos: mtime.nanos,
        },
        mode: node.mode & 0o777,
        xattrs: node.xattrs.clone(),
        held: encode_dots(node.dots()),
    }
}

/// Attributes to set, if they differ from what a record stands for.
fn own_xattrs(row: &Row, xattrs: &Xattrs) -> Option<Xattrs> {
    (row.xattrs != xattr_digest(xattrs)).then(|| xattrs.clone())
}

/// Whether a file system that keeps times less exactly has kept this one.
fn is_same_time(kept: FileTime, wanted: FileTime) -> bool {
    let is_cut = kept.secs == wanted.secs && kept.nanos == wanted.nanos / 1000 * 1000;
    let is_coarse = kept.nanos == 0 && kept.distance(wanted) <= 2_000_000_000;
    kept == wanted || is_cut || is_coarse
}

/// Names that are ours on disk: a peer's file of such a name is not written.
fn is_reserved(dir: Fid, name: &[u8]) -> bool {
    name.starts_with(TEMP_PREFIX) || (dir == Fid::ROOT && name == OWN_DIR.as_bytes())
}
