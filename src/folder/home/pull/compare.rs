//! What differs between what the folder shows and the base records, and what on disk can become what is wanted.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};

use bytes::Bytes;

use super::super::base::{At, FileTime, HomeId, Row, RowKind, prefix, xattr_digest};
use super::super::fs::{Attributes, HomeFs, TEMP_PREFIX};
use super::super::ledger::{Extent, dots, encode_dots, noted_fid};
use super::super::marker::OWN_DIR;
use super::super::places::ASIDE;
use super::super::write::{Dress, Version, Writer};
use super::{Pull, Wanted};
use crate::folder::state::{DirNode, Dot, Fid, FileKind, FileNode, Name, Node, Role, Xattrs};

/// One version that is not where it is to be.
pub(super) struct Want {
    pub(super) dir: Fid,
    pub(super) name: Bytes,
    pub(super) version: Version,
    /// What is there now is an older version.
    pub(super) replaces: bool,
}

/// What differs.
#[derive(Default)]
pub(super) struct Diff {
    /// Files and symlinks that are not shown where they are.
    pub(super) loose: BTreeSet<HomeId>,
    /// Directories that are not shown at all, a parent before its children.
    pub(super) gone: Vec<HomeId>,
    /// Directories that are not where they are shown.
    pub(super) dirs: BTreeSet<Fid>,
    pub(super) wants: Vec<Want>,
    pub(super) dress: Vec<(Dress, Wanted)>,
}

impl<F: HomeFs> Pull<'_, '_, F> {
    pub(super) fn compare(&mut self, extent: &Extent) -> Diff {
        let mut diff = Diff::default();
        let mut queue: VecDeque<Fid> = match extent {
            Extent::Everything => [Fid::ROOT].into(),
            Extent::Dirs(dirs) => dirs.iter().copied().collect(),
        };
        let mut seen: HashSet<Fid> = queue.iter().copied().collect();
        for fid in &seen {
            self.compare_itself(*fid, &seen, &mut diff);
        }
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

    /// Compares the attributes of a directory, unless those of all in the one around it are compared.
    fn compare_itself(&self, fid: Fid, compared: &HashSet<Fid>, diff: &mut Diff) {
        let mut shown = None;
        self.writer
            .ledger
            .read(&mut |state| shown = state.location(fid).zip(state.dir(fid)));
        let Some(((parent, _), node)) = shown else {
            return;
        };
        if !compared.contains(&parent) {
            let place = self.ids.get(&fid).and_then(|id| self.placed(*id));
            let dress = place.and_then(|(at, row)| self.dress_dir(at, row, &node));
            diff.dress.extend(dress);
        }
    }

    pub(super) fn rows(&self, dir: HomeId) -> Vec<(Bytes, Row)> {
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
        let unfit = self.unfit(&shown, &rows);
        let mut below = Vec::new();
        for (name, node) in &shown {
            if is_reserved(name.as_bytes()) || unfit.contains(name.as_bytes()) {
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
        match unfit.is_empty() {
            true => drop(self.puller.unfit.remove(&fid)),
            false => drop(self.puller.unfit.insert(fid, unfit)),
        }
        below
    }

    /// The names in a directory that cannot be here. Of names that differ in case only, the one that is here stays.
    fn unfit(&self, shown: &[(Name, Node)], rows: &BTreeMap<Bytes, Row>) -> BTreeSet<Bytes> {
        let caps = self.writer.fs.caps();
        let mut taken: HashSet<String> = HashSet::new();
        if caps.folds_case {
            let here = shown
                .iter()
                .filter(|(name, _)| rows.contains_key(name.as_bytes()));
            taken.extend(here.filter_map(|(name, _)| caps.fold(name.as_bytes())));
        }
        let mut unfit = BTreeSet::new();
        for (name, node) in shown {
            let name = name.as_bytes();
            if rows.contains_key(name) {
                continue;
            }
            let is_link =
                matches!(node, Node::File(file) if file.version.kind == FileKind::Symlink);
            let is_free = caps.fold(name).is_none_or(|fold| taken.insert(fold));
            if !is_free || !caps.fits(name) || (is_link && !caps.symlinks) {
                unfit.insert(Bytes::copy_from_slice(name));
            }
        }
        unfit
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
        noted_fid(self.writer.ledger, id)
    }

    fn dress_dir(&self, at: At, row: Row, node: &DirNode) -> Option<(Dress, Wanted)> {
        let caps = self.writer.fs.caps();
        let mode = node.mode & 0o777;
        let attributes = Attributes {
            mode: (caps.modes && row.mode != mode).then_some(mode),
            mtime: None,
            xattrs: own_xattrs(&row, &node.xattrs).filter(|_| caps.xattrs),
        };
        let wanted = (mode, FileTime::default(), xattr_digest(&node.xattrs));
        let is_needed = attributes != Attributes::default();
        let dress = (is_needed && !self.puller.is_futile(row.id, &wanted)).then(|| Dress {
            at,
            held: row.held.clone(),
            row,
            attributes,
        })?;
        Some((dress, wanted))
    }

    fn dress_file(&self, at: At, row: Row, version: Version) -> Option<(Dress, Wanted)> {
        let is_file = version.kind == FileKind::File;
        let mut attributes = Attributes::default();
        let wanted = (version.mode, version.mtime, xattr_digest(&version.xattrs));
        if is_file && !self.puller.is_futile(row.id, &wanted) {
            let caps = self.writer.fs.caps();
            attributes = Attributes {
                mode: (caps.modes && row.mode != version.mode).then_some(version.mode),
                mtime: (!is_same_time(row.stamp.mtime, version.mtime)).then_some(version.mtime),
                xattrs: own_xattrs(&row, &version.xattrs).filter(|_| caps.xattrs),
            };
        }
        let is_needed = attributes != Attributes::default() || row.held != version.held;
        let dress = is_needed.then_some(Dress {
            at,
            row,
            attributes,
            held: version.held,
        })?;
        Some((dress, wanted))
    }
}

impl Diff {
    pub(super) fn is_empty(&self) -> bool {
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
pub(super) fn match_up<F: HomeFs>(writer: &Writer<'_, F>, diff: &Diff) -> HashMap<usize, HomeId> {
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
pub(super) fn is_same_time(kept: FileTime, wanted: FileTime) -> bool {
    let is_cut = kept.secs == wanted.secs && kept.nanos == wanted.nanos / 1000 * 1000;
    let is_coarse = kept.nanos == 0 && kept.distance(wanted) <= 2_000_000_000;
    kept == wanted || is_cut || is_coarse
}

/// Names that are ours on disk: a peer's file of such a name is not written.
pub(super) fn is_reserved(name: &[u8]) -> bool {
    name.starts_with(TEMP_PREFIX) || name == OWN_DIR.as_bytes()
}
