//! What a scan concludes: base records against what is on disk. Pure: it asks for directories to be listed and is told
//! what was found; the result is a list of steps, nothing is read or written here.
//!
//! A name that is gone is removed only if a complete listing of its directory proves it. A directory that is gone from
//! one place and found in another by its inode was renamed, and what is below it is not touched. A file found at a new
//! name with inode, size and mtime of a record whose name is gone or has another inode now was renamed, and its content
//! is not read. Everything else whose stamp changed is to be read.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};

use bytes::Bytes;

use super::base::{At, HomeId, Row, RowKind, Stamp, UNKNOWN_INO};

#[cfg(test)]
mod tests;

/// What kind of thing was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FoundKind {
    File,
    Dir,
    Symlink,
    /// A device, socket or fifo: not shared.
    Special,
}

/// What is at a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Found {
    pub kind: FoundKind,
    pub dev: u64,
    pub stamp: Stamp,
    /// Permission bits (0o777).
    pub mode: u16,
}

/// What a listing says of a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seen {
    Found(Found),
    /// A directory that is not ours to enter: the home of something else, or on another file system.
    Nested,
    /// It is there, and no more is wanted for now: it is being written.
    Busy,
    /// It is there, and no more is known: it cannot be examined.
    Unknown,
}

impl Seen {
    pub fn is_dir(&self) -> bool {
        match self {
            Self::Found(found) => found.kind == FoundKind::Dir,
            Self::Nested => true,
            Self::Busy | Self::Unknown => false,
        }
    }
}

/// A directory as it was read.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Listing {
    pub names: BTreeMap<Bytes, Seen>,
    /// It was read to its end without error: what is not in it is not there.
    pub complete: bool,
    /// The inode of the directory that was read.
    pub ino: u64,
    /// Names of temporary files of ours that nothing is being done with any more.
    pub leftover: Vec<Bytes>,
    /// It is the home of something else.
    pub is_nested: bool,
}

/// Where the base records are.
pub trait Rows {
    /// The records of a directory.
    fn children(&self, dir: HomeId) -> Vec<(Bytes, Row)>;
}

/// A directory to list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Visit {
    pub dir: HomeId,
    /// From the root of the home, empty for itself.
    pub path: Vec<u8>,
    /// The inode it has. Another directory may have got its path since.
    pub(super) ino: u64,
    /// What is below it is to be listed too, although it has records.
    deep: bool,
}

/// A directory that was not there before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewDir {
    pub at: At,
    pub id: HomeId,
    pub path: Vec<u8>,
    pub found: Found,
}

/// A directory that was renamed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MovedDir {
    pub from: At,
    pub to: At,
    pub path: Vec<u8>,
    pub row: Row,
    pub found: Found,
}

/// A file or symlink to be taken in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Take {
    pub at: At,
    pub path: Vec<u8>,
    pub found: Found,
    /// What was at this name before, if it was a file or symlink.
    pub base: Option<Row>,
    /// The record it had under another name: its content is known.
    pub source: Option<Row>,
}

/// Something whose attributes may have changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Look {
    pub at: At,
    pub path: Vec<u8>,
    pub found: Found,
    pub row: Row,
}

/// What to do, in the order of the fields.
#[derive(Debug, Default)]
pub struct Steps {
    /// Files whose names are gone.
    pub removed: Vec<(At, Row)>,
    /// Directories that are gone, a child before its parent.
    pub removed_dirs: Vec<(At, Row)>,
    /// A parent before its children.
    pub dirs: Vec<DirStep>,
    /// Files whose content is known from another name.
    pub renamed: Vec<Take>,
    /// Files and symlinks to be read.
    pub changed: Vec<Take>,
    /// Files whose ctime alone changed: attributes are to be compared now, the content later.
    pub touched: Vec<Look>,
    /// Directories whose attributes may have changed.
    pub touched_dirs: Vec<Look>,
    /// Directories that could not be read to their end where they were expected, with that path.
    pub unread: Vec<(HomeId, Vec<u8>)>,
    pub report: Counts,
}

/// A directory in its new place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DirStep {
    New(NewDir),
    Moved(MovedDir),
}

/// What a scan met.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Counts {
    pub files: u64,
    pub dirs: u64,
    pub unchanged: u64,
    /// Devices, sockets and fifos.
    pub special: Vec<Vec<u8>>,
    /// Directories on other file systems and homes of others, not entered.
    pub nested: Vec<Vec<u8>>,
    /// Directories that could not be read to their end, and names that could not be examined.
    pub unknown: Vec<Vec<u8>>,
}

/// A directory found where none was before; whether it was renamed is not clear yet.
#[derive(Debug)]
struct Candidate {
    at: At,
    path: Vec<u8>,
    found: Found,
}

/// A scan under way.
pub struct Plan<'r> {
    rows: &'r dyn Rows,
    /// The device of the root.
    dev: u64,
    /// The whole home is listed.
    is_full: bool,
    next_id: HomeId,
    queue: VecDeque<Visit>,
    candidates: Vec<Candidate>,
    /// Names proven gone, and those that have another inode now.
    gone: Vec<(At, Row)>,
    /// How many of `gone` are in `gone_dirs`.
    indexed: usize,
    /// Every directory at or below `gone`, by inode.
    gone_dirs: HashMap<u64, (At, Row)>,
    moved: HashSet<HomeId>,
    /// Directories that were listed: one may be found at its old path and, by its inode, as renamed there.
    listed: HashSet<HomeId>,
    /// Files and symlinks that are new or changed.
    taken: Vec<Take>,
    steps: Steps,
}

impl<'r> Plan<'r> {
    /// A scan of the whole home, whose root is `ino` on device `dev`. New things are numbered from `next_id`.
    pub fn full(rows: &'r dyn Rows, (dev, ino): (u64, u64), next_id: HomeId) -> Self {
        let root = Visit {
            dir: HomeId::ROOT,
            path: Vec::new(),
            ino,
            deep: true,
        };
        Self {
            is_full: true,
            ..Self::start(rows, dev, next_id, [root].into())
        }
    }

    /// A scan of some directories (number, path, inode), and of what is new below them.
    pub fn partial(
        rows: &'r dyn Rows,
        dev: u64,
        next_id: HomeId,
        dirs: impl IntoIterator<Item = (HomeId, Vec<u8>, u64)>,
    ) -> Self {
        let visit = |(dir, path, ino)| Visit {
            dir,
            path,
            ino,
            deep: false,
        };
        Self::start(rows, dev, next_id, dirs.into_iter().map(visit).collect())
    }

    fn start(rows: &'r dyn Rows, dev: u64, next_id: HomeId, queue: VecDeque<Visit>) -> Self {
        Self {
            rows,
            dev,
            is_full: false,
            next_id,
            queue,
            candidates: Vec::new(),
            gone: Vec::new(),
            indexed: 0,
            gone_dirs: HashMap::new(),
            moved: HashSet::new(),
            listed: HashSet::new(),
            taken: Vec::new(),
            steps: Steps::default(),
        }
    }

    /// The next directory to list, none when all is known. [`Plan::listed`] is to be called before this is again.
    pub fn next_visit(&mut self) -> Option<Visit> {
        loop {
            if let Some(visit) = self.queue.pop_front() {
                return Some(visit);
            }
            if self.candidates.is_empty() {
                return None;
            }
            self.place_candidates();
        }
    }

    /// The number the next new thing would get.
    pub fn next_id(&self) -> HomeId {
        self.next_id
    }

    /// Numbers below `next_id` were given elsewhere meanwhile.
    pub fn reserve(&mut self, next_id: HomeId) {
        self.next_id = self.next_id.max(next_id);
    }

    /// Takes in what a directory holds.
    pub fn listed(&mut self, visit: Visit, listing: Listing) {
        self.steps.report.dirs += 1;
        if !listing.complete || listing.ino != visit.ino {
            self.steps.report.unknown.push(visit.path.clone());
            self.steps.unread.push((visit.dir, visit.path.clone()));
        }
        if listing.ino != visit.ino || !self.listed.insert(visit.dir) {
            return;
        }
        if listing.is_nested {
            self.steps.report.nested.push(visit.path);
            return;
        }
        let mut rows: HashMap<Bytes, Row> = self.rows.children(visit.dir).into_iter().collect();
        for (name, seen) in listing.names {
            let row = rows.remove(&name);
            let path = join(&visit.path, &name);
            let at = At {
                dir: visit.dir,
                name,
            };
            match seen {
                Seen::Busy => {}
                Seen::Unknown => self.steps.report.unknown.push(path),
                // What its records say of it is neither true nor false while it is somebody else's.
                Seen::Nested => self.steps.report.nested.push(path),
                Seen::Found(found) => self.compare(at, path, found, row, visit.deep),
            }
        }
        if listing.complete {
            let gone = rows.into_iter().map(|(name, row)| {
                (
                    At {
                        dir: visit.dir,
                        name,
                    },
                    row,
                )
            });
            self.gone.extend(gone);
        }
    }

    fn compare(&mut self, at: At, path: Vec<u8>, found: Found, row: Option<Row>, deep: bool) {
        match found.kind {
            // What its records say of it is neither true nor false while something is mounted over it.
            FoundKind::Dir if found.dev != self.dev => self.steps.report.nested.push(path),
            FoundKind::Dir => self.compare_dir(at, path, found, row, deep),
            FoundKind::File | FoundKind::Symlink => self.compare_file(at, path, found, row),
            FoundKind::Special => {
                self.steps.report.special.push(path);
                self.gone.extend(row.map(|row| (at, row)));
            }
        }
    }

    fn compare_dir(&mut self, at: At, path: Vec<u8>, found: Found, row: Option<Row>, deep: bool) {
        match row {
            Some(row) if row.is_dir() && row.stamp.same_ino(found.stamp.ino) => {
                if deep {
                    let (path, ino) = (path.clone(), found.stamp.ino);
                    self.queue.push_back(Visit {
                        dir: row.id,
                        path,
                        ino,
                        deep,
                    });
                }
                if (row.stamp.ctime, row.mode) != (found.stamp.ctime, found.mode) {
                    self.steps.touched_dirs.push(Look {
                        at,
                        path,
                        found,
                        row,
                    });
                }
            }
            row => {
                self.gone.extend(row.map(|row| (at.clone(), row)));
                self.candidates.push(Candidate { at, path, found });
            }
        }
    }

    fn compare_file(&mut self, at: At, path: Vec<u8>, found: Found, row: Option<Row>) {
        self.steps.report.files += 1;
        let base = match row {
            Some(row) if row.is_dir() => {
                self.gone.push((at.clone(), row));
                None
            }
            row => row,
        };
        if let Some(row) = base.as_ref().filter(|row| row.is_kind(found.kind)) {
            if row.stamp.is_same(&found.stamp) && row.mode == found.mode && !row.unsure {
                self.steps.report.unchanged += 1;
                return;
            }
            if row.stamp.same_content(&found.stamp) && row.stamp.ctime != found.stamp.ctime {
                let row = row.clone();
                self.steps.touched.push(Look {
                    at,
                    path,
                    found,
                    row,
                });
                return;
            }
        }
        self.taken.push(Take {
            at,
            path,
            found,
            base,
            source: None,
        });
    }

    /// Decides for each directory found where none was whether it was renamed, and has it listed.
    fn place_candidates(&mut self) {
        self.index_gone_dirs();
        for Candidate { at, path, found } in std::mem::take(&mut self.candidates) {
            let ino = found.stamp.ino;
            let renamed = self.gone_dirs.remove(&ino);
            let (dir, step) = match renamed {
                Some((from, row)) => {
                    self.moved.insert(row.id);
                    self.steps.touched_dirs.push(Look {
                        at: at.clone(),
                        path: path.clone(),
                        found,
                        row: row.clone(),
                    });
                    let id = row.id;
                    let path = path.clone();
                    (
                        id,
                        DirStep::Moved(MovedDir {
                            from,
                            to: at,
                            path,
                            row,
                            found,
                        }),
                    )
                }
                None => {
                    let id = self.next_id;
                    self.next_id.0 += 1;
                    (
                        id,
                        DirStep::New(NewDir {
                            at,
                            id,
                            path: path.clone(),
                            found,
                        }),
                    )
                }
            };
            self.steps.dirs.push(step);
            self.queue.push_back(Visit {
                dir,
                path,
                ino,
                deep: self.is_full,
            });
        }
    }

    /// Adds the directories at and below the names that turned out gone since the last call.
    fn index_gone_dirs(&mut self) {
        let fresh = self.gone.get(self.indexed..).unwrap_or_default();
        let mut stack: Vec<(At, Row)> = fresh
            .iter()
            .filter(|(_, row)| row.is_dir())
            .cloned()
            .collect();
        self.indexed = self.gone.len();
        while let Some((at, row)) = stack.pop() {
            if self.moved.contains(&row.id) {
                continue;
            }
            stack.extend(self.children(row.id).filter(|(_, row)| row.is_dir()));
            if row.stamp.ino != UNKNOWN_INO {
                self.gone_dirs.insert(row.stamp.ino, (at, row));
            }
        }
    }

    fn children(&self, dir: HomeId) -> impl Iterator<Item = (At, Row)> + use<> {
        let rows = self.rows.children(dir).into_iter();
        rows.map(move |(name, row)| (At { dir, name }, row))
    }

    /// What is concluded so far. Only for a home without records, in which nothing can be gone or renamed: a first scan
    /// of a million files need not remember them all.
    pub fn drain(&mut self) -> Steps {
        let mut steps = std::mem::take(&mut self.steps);
        steps.changed = std::mem::take(&mut self.taken);
        steps
    }

    /// Files and symlinks that [`Plan::drain`] would give.
    pub fn waiting(&self) -> usize {
        self.taken.len()
    }

    /// The conclusion, once there is nothing more to list.
    pub fn finish(mut self) -> Steps {
        self.collect_gone();
        let sources = self.sources();
        let mut steps = std::mem::take(&mut self.steps);
        for mut take in std::mem::take(&mut self.taken) {
            let source = sources.get(&take.found.stamp.ino).filter(|row| {
                row.is_kind(take.found.kind)
                    && !row.unsure
                    && row.stamp.same_content(&take.found.stamp)
            });
            take.source = source.cloned();
            match take.source {
                Some(_) => steps.renamed.push(take),
                None => steps.changed.push(take),
            }
        }
        steps
    }

    /// Everything at and below the names that are gone, but for what was renamed.
    fn collect_gone(&mut self) {
        let mut dirs = Vec::new();
        let mut stack = std::mem::take(&mut self.gone);
        while let Some((at, row)) = stack.pop() {
            if self.moved.contains(&row.id) {
                continue;
            }
            if row.is_dir() {
                stack.extend(self.children(row.id));
                dirs.push((at, row));
            } else {
                self.steps.removed.push((at, row));
            }
        }
        dirs.reverse();
        self.steps.removed_dirs = dirs;
    }

    /// The records of files whose name is gone or has something else now, by inode.
    fn sources(&self) -> HashMap<u64, Row> {
        let removed = self.steps.removed.iter().map(|(_, row)| row);
        let replaced = self.taken.iter().filter_map(|take| {
            take.base
                .as_ref()
                .filter(|row| !row.stamp.same_ino(take.found.stamp.ino))
        });
        removed
            .chain(replaced)
            .filter(|row| row.stamp.ino != UNKNOWN_INO)
            .map(|row| (row.stamp.ino, row.clone()))
            .collect()
    }
}

impl Steps {
    /// Entries that are gone.
    pub fn gone(&self) -> u64 {
        (self.removed.len() + self.removed_dirs.len()) as u64
    }
}

impl Row {
    fn is_kind(&self, kind: FoundKind) -> bool {
        match self.kind {
            RowKind::Dir => kind == FoundKind::Dir,
            RowKind::File { .. } => kind == FoundKind::File,
            RowKind::Symlink { .. } => kind == FoundKind::Symlink,
        }
    }
}

/// The path of a name in a directory.
pub(super) fn join(dir: &[u8], name: &[u8]) -> Vec<u8> {
    let mut path = Vec::with_capacity(dir.len() + 1 + name.len());
    path.extend_from_slice(dir);
    if !dir.is_empty() {
        path.push(b'/');
    }
    path.extend_from_slice(name);
    path
}
