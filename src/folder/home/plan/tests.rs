//! Random edits of a model of a file system, scanned and compared: afterwards the records are the file system, nothing
//! was read that did not have to be, and no directory that was only renamed lost its number.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::super::base::FileTime;
use super::*;

const DEV: u64 = 7;
const ROOT_INO: u64 = 1;

#[derive(Debug, Clone)]
enum Node {
    Dir(BTreeMap<Bytes, u64>),
    File { content: u64, size: u64 },
}

#[derive(Debug, Clone)]
struct Inode {
    node: Node,
    mtime: u64,
    ctime: u64,
    mode: u16,
}

/// A file system in memory, with the table of records beside it.
#[derive(Debug, Clone)]
struct Model {
    inodes: BTreeMap<u64, Inode>,
    now: u64,
    next_ino: u64,
    rows: Table,
    next_id: HomeId,
    /// Inodes whose content is not that of their record.
    written: BTreeSet<u64>,
    /// Directories with changed names.
    dirty: BTreeSet<u64>,
}

#[derive(Debug, Clone, Default)]
struct Table(BTreeMap<(HomeId, Bytes), Row>);

impl Rows for Table {
    fn children(&self, dir: HomeId) -> Vec<(Bytes, Row)> {
        let rows = self
            .0
            .range((dir, Bytes::new())..)
            .take_while(|((at, _), _)| *at == dir);
        rows.map(|((_, name), row)| (name.clone(), row.clone()))
            .collect()
    }
}

/// One edit; the numbers choose among what there is.
#[derive(Debug, Clone, Copy)]
enum Edit {
    Create { dir: usize, name: u8 },
    Mkdir { dir: usize, name: u8 },
    Write { file: usize },
    Touch { file: usize },
    Chmod { any: usize },
    Remove { any: usize },
    Rename { any: usize, dir: usize, name: u8 },
    Exchange { one: usize, two: usize },
    Link { file: usize, dir: usize, name: u8 },
    Scan { full: bool },
}

fn edits() -> impl Strategy<Value = Vec<Edit>> {
    let edit = prop_oneof![
        4 => (any::<usize>(), 0u8..5).prop_map(|(dir, name)| Edit::Create { dir, name }),
        4 => (any::<usize>(), 0u8..5).prop_map(|(dir, name)| Edit::Mkdir { dir, name }),
        2 => any::<usize>().prop_map(|file| Edit::Write { file }),
        1 => any::<usize>().prop_map(|file| Edit::Touch { file }),
        1 => any::<usize>().prop_map(|any| Edit::Chmod { any }),
        2 => any::<usize>().prop_map(|any| Edit::Remove { any }),
        6 => (any::<usize>(), any::<usize>(), 0u8..5)
            .prop_map(|(any, dir, name)| Edit::Rename { any, dir, name }),
        1 => (any::<usize>(), any::<usize>()).prop_map(|(one, two)| Edit::Exchange { one, two }),
        1 => (any::<usize>(), any::<usize>(), 0u8..5)
            .prop_map(|(file, dir, name)| Edit::Link { file, dir, name }),
        2 => any::<bool>().prop_map(|full| Edit::Scan { full }),
    ];
    prop::collection::vec(edit, 1..80)
}

impl Model {
    fn new() -> Self {
        let root = Inode {
            node: Node::Dir(BTreeMap::new()),
            mtime: 0,
            ctime: 0,
            mode: 0o755,
        };
        Self {
            inodes: [(ROOT_INO, root)].into(),
            now: 0,
            next_ino: ROOT_INO + 1,
            rows: Table::default(),
            next_id: HomeId(1),
            written: BTreeSet::new(),
            dirty: BTreeSet::new(),
        }
    }

    fn dir(&self, ino: u64) -> &BTreeMap<Bytes, u64> {
        match &self.inodes[&ino].node {
            Node::Dir(names) => names,
            Node::File { .. } => panic!("{ino} is a file"),
        }
    }

    fn names_mut(&mut self, ino: u64) -> &mut BTreeMap<Bytes, u64> {
        self.dirty.insert(ino);
        let now = self.now;
        let inode = self.inodes.get_mut(&ino).unwrap();
        (inode.mtime, inode.ctime) = (now, now);
        match &mut inode.node {
            Node::Dir(names) => names,
            Node::File { .. } => panic!("{ino} is a file"),
        }
    }

    /// (path, directory it is in, name, inode) of everything, a parent before its children.
    fn walk(&self) -> Vec<(Vec<u8>, u64, Bytes, u64)> {
        let mut out = Vec::new();
        let mut dirs = VecDeque::from([(Vec::new(), ROOT_INO)]);
        while let Some((path, dir)) = dirs.pop_front() {
            for (name, &ino) in self.dir(dir) {
                let path = join(&path, name);
                if let Node::Dir(_) = self.inodes[&ino].node {
                    dirs.push_back((path.clone(), ino));
                }
                out.push((path, dir, name.clone(), ino));
            }
        }
        out
    }

    fn pick<T: Clone>(things: &[T], number: usize) -> Option<T> {
        (!things.is_empty()).then(|| things[number % things.len()].clone())
    }

    fn dirs(&self) -> Vec<u64> {
        let dirs = self.walk().into_iter().map(|(.., ino)| ino);
        std::iter::once(ROOT_INO)
            .chain(dirs.filter(|ino| matches!(self.inodes[ino].node, Node::Dir(_))))
            .collect()
    }

    fn files(&self) -> Vec<u64> {
        let inos = self.walk().into_iter().map(|(.., ino)| ino);
        inos.filter(|ino| matches!(self.inodes[ino].node, Node::File { .. }))
            .collect()
    }

    fn is_within(&self, dir: u64, above: u64) -> bool {
        dir == above
            || self
                .inodes
                .get(&above)
                .is_some_and(|inode| match &inode.node {
                    Node::Dir(names) => names.values().any(|ino| self.is_within(dir, *ino)),
                    Node::File { .. } => false,
                })
    }

    fn add(&mut self, node: Node) -> u64 {
        let ino = self.next_ino;
        self.next_ino += 1;
        let (mtime, ctime) = (self.now, self.now);
        self.inodes.insert(
            ino,
            Inode {
                node,
                mtime,
                ctime,
                mode: 0o644,
            },
        );
        self.written.insert(ino);
        ino
    }

    fn edit(&mut self, edit: Edit) -> Result<(), TestCaseError> {
        self.now += 1;
        match edit {
            Edit::Create { dir, name } => self.make(dir, name, false),
            Edit::Mkdir { dir, name } => self.make(dir, name, true),
            Edit::Write { file } => self.write(file),
            Edit::Touch { file } => {
                if let Some(ino) = Self::pick(&self.files(), file) {
                    self.change(ino, |inode, now| (inode.mtime, inode.ctime) = (now, now));
                    self.written.insert(ino);
                }
            }
            Edit::Chmod { any } => {
                if let Some((.., ino)) = Self::pick(&self.walk(), any) {
                    self.change(ino, |inode, now| {
                        (inode.mode, inode.ctime) = (inode.mode ^ 0o111, now);
                    });
                }
            }
            Edit::Remove { any } => {
                if let Some((_, dir, name, _)) = Self::pick(&self.walk(), any) {
                    self.names_mut(dir).remove(&name);
                }
            }
            Edit::Rename { any, dir, name } => self.rename(any, dir, name),
            Edit::Exchange { one, two } => self.exchange(one, two),
            Edit::Link { file, dir, name } => self.link(file, dir, name),
            Edit::Scan { full } => return self.scan(full),
        }
        Ok(())
    }

    /// Changes an inode; every directory with a name of it gets an event.
    fn change(&mut self, ino: u64, change: impl FnOnce(&mut Inode, u64)) {
        let now = self.now;
        change(self.inodes.get_mut(&ino).unwrap(), now);
        let holders = self.walk().into_iter().filter(|(.., other)| *other == ino);
        self.dirty
            .extend(holders.map(|(_, dir, ..)| dir).collect::<Vec<_>>());
    }

    fn make(&mut self, dir: usize, name: u8, is_dir: bool) {
        let dir = Self::pick(&self.dirs(), dir).unwrap();
        let name = Bytes::from(vec![b'a' + name]);
        if self.dir(dir).contains_key(&name) {
            return;
        }
        let content = self.now;
        let node = match is_dir {
            true => Node::Dir(BTreeMap::new()),
            false => Node::File {
                content,
                size: content % 3,
            },
        };
        let ino = self.add(node);
        self.names_mut(dir).insert(name, ino);
    }

    fn write(&mut self, file: usize) {
        if let Some(ino) = Self::pick(&self.files(), file) {
            self.change(ino, |inode, now| {
                inode.node = Node::File {
                    content: now,
                    size: now % 3,
                };
                (inode.mtime, inode.ctime) = (now, now);
            });
            self.written.insert(ino);
        }
    }

    fn rename(&mut self, any: usize, dir: usize, name: u8) {
        let Some((_, from, old, ino)) = Self::pick(&self.walk(), any) else {
            return;
        };
        let to = Self::pick(&self.dirs(), dir).unwrap();
        let name = Bytes::from(vec![b'a' + name]);
        let target = self.dir(to).get(&name).copied();
        if self.is_within(to, ino) || target.is_some_and(|target| self.is_within(from, target)) {
            return;
        }
        self.names_mut(from).remove(&old);
        self.names_mut(to).insert(name, ino);
        self.renamed(ino);
    }

    fn exchange(&mut self, one: usize, two: usize) {
        let all = self.walk();
        let (Some(one), Some(two)) = (Self::pick(&all, one), Self::pick(&all, two)) else {
            return;
        };
        if self.is_within(one.1, two.3) || self.is_within(two.1, one.3) {
            return;
        }
        self.names_mut(one.1).insert(one.2, two.3);
        self.names_mut(two.1).insert(two.2, one.3);
        self.renamed(one.3);
        self.renamed(two.3);
    }

    fn renamed(&mut self, ino: u64) {
        let now = self.now;
        self.inodes.get_mut(&ino).unwrap().ctime = now;
    }

    fn link(&mut self, file: usize, dir: usize, name: u8) {
        let Some(ino) = Self::pick(&self.files(), file) else {
            return;
        };
        let dir = Self::pick(&self.dirs(), dir).unwrap();
        let name = Bytes::from(vec![b'a' + name]);
        if !self.dir(dir).contains_key(&name) {
            self.names_mut(dir).insert(name, ino);
            self.change(ino, |inode, now| inode.ctime = now);
        }
    }

    fn found(&self, ino: u64) -> Found {
        let inode = &self.inodes[&ino];
        let (kind, size) = match inode.node {
            Node::Dir(_) => (FoundKind::Dir, 0),
            Node::File { size, .. } => (FoundKind::File, size),
        };
        let time = |secs: u64| FileTime {
            secs: secs as i64,
            nanos: 0,
        };
        let stamp = Stamp {
            ino,
            size,
            mtime: time(inode.mtime),
            ctime: time(inode.ctime),
        };
        Found {
            kind,
            dev: DEV,
            stamp,
            mode: inode.mode,
        }
    }

    /// What is at a path now.
    fn list(&self, path: &[u8]) -> Listing {
        let parts = path
            .split(|byte| *byte == b'/')
            .filter(|part| !part.is_empty());
        let mut ino = ROOT_INO;
        for part in parts {
            let Node::Dir(names) = &self.inodes[&ino].node else {
                return Listing::default();
            };
            let Some(next) = names.get(part) else {
                return Listing::default();
            };
            ino = *next;
        }
        let Node::Dir(names) = &self.inodes[&ino].node else {
            return Listing::default();
        };
        let names = names
            .iter()
            .map(|(name, ino)| (name.clone(), Seen::Found(self.found(*ino))));
        Listing {
            names: names.collect(),
            complete: true,
            ino,
            leftover: Vec::new(),
            is_nested: false,
        }
    }

    /// The directories with events, where their records say they are.
    fn dirty_dirs(&self) -> Vec<(HomeId, Vec<u8>, u64)> {
        let mut dirs = VecDeque::from([(HomeId::ROOT, Vec::new(), ROOT_INO)]);
        let mut out = Vec::new();
        while let Some((dir, path, ino)) = dirs.pop_front() {
            for (name, row) in self.rows.children(dir) {
                if row.is_dir() {
                    dirs.push_back((row.id, join(&path, &name), row.stamp.ino));
                }
            }
            if self.dirty.contains(&ino) {
                out.push((dir, path, ino));
            }
        }
        out
    }

    fn scan(&mut self, full: bool) -> Result<(), TestCaseError> {
        let mut dirs = self.dirty_dirs();
        let mut is_first = true;
        // What was renamed away from under a directory with events is found where it is by the next round.
        loop {
            let steps = {
                let mut plan = match is_first && full {
                    true => Plan::full(&self.rows, (DEV, ROOT_INO), self.next_id),
                    false => Plan::partial(&self.rows, DEV, self.next_id, dirs),
                };
                while let Some(visit) = plan.next_visit() {
                    let listing = self.list(&visit.path);
                    plan.listed(visit, listing);
                }
                self.next_id = plan.next_id();
                plan.finish()
            };
            let unread: BTreeSet<HomeId> = steps.unread.iter().map(|(dir, _)| *dir).collect();
            self.apply(steps, full)?;
            dirs = self
                .dirty_dirs()
                .into_iter()
                .filter(|dir| unread.contains(&dir.0))
                .collect();
            is_first = false;
            if dirs.is_empty() {
                break;
            }
        }
        self.dirty.clear();
        self.written.clear();
        self.check()
    }

    fn apply(&mut self, steps: Steps, full: bool) -> Result<(), TestCaseError> {
        let mut lifted = BTreeSet::new();
        for (at, row) in steps.removed {
            prop_assert_eq!(self.rows.0.remove(&(at.dir, at.name)), Some(row));
        }
        for step in &steps.dirs {
            if let DirStep::Moved(moved) = step {
                lifted.insert(moved.row.id);
                let from = (moved.from.dir, moved.from.name.clone());
                prop_assert_eq!(self.rows.0.remove(&from), Some(moved.row.clone()));
            }
        }
        for (at, row) in steps.removed_dirs {
            prop_assert!(
                self.rows.children(row.id).is_empty(),
                "{row:?} is not empty"
            );
            prop_assert_eq!(self.rows.0.remove(&(at.dir, at.name)), Some(row));
        }
        for step in steps.dirs {
            let (at, id, found) = match step {
                DirStep::New(new) => (new.at, new.id, new.found),
                DirStep::Moved(moved) => (moved.to, moved.row.id, moved.found),
            };
            // What is being moved is out of the way, but it is there.
            let is_there = |id| {
                id == HomeId::ROOT
                    || lifted.contains(&id)
                    || self.rows.0.values().any(|row| row.id == id)
            };
            prop_assert!(is_there(at.dir), "{at:?} comes before its parent");
            let old = self
                .rows
                .0
                .insert((at.dir, at.name), row_of(id, found, None));
            prop_assert!(old.is_none(), "{old:?} is in the way");
        }
        for take in steps.renamed {
            let source = take.source.expect("renamed files have a source");
            let RowKind::File { content } = source.kind else {
                panic!("{source:?}")
            };
            self.rows.0.insert(
                (take.at.dir, take.at.name),
                row_of(HomeId(0), take.found, Some(content)),
            );
        }
        for take in steps.changed {
            let is_known = self
                .rows
                .0
                .values()
                .any(|row| row.stamp.same_content(&take.found.stamp));
            let ino = take.found.stamp.ino;
            // A partial scan may find a name before it learns that another is gone; links are new names.
            let excused = !full || is_known;
            prop_assert!(
                excused || self.written.contains(&ino),
                "{take:?} is read for nothing"
            );
            let content = self.content(ino);
            self.rows.0.insert(
                (take.at.dir, take.at.name),
                row_of(HomeId(0), take.found, Some(content)),
            );
        }
        for look in steps.touched.into_iter().chain(steps.touched_dirs) {
            let row = Row {
                stamp: look.found.stamp,
                mode: look.found.mode,
                ..look.row
            };
            self.rows.0.insert((look.at.dir, look.at.name), row);
        }
        Ok(())
    }

    fn content(&self, ino: u64) -> Bytes {
        match self.inodes[&ino].node {
            Node::File { content, .. } => content.to_le_bytes().to_vec().into(),
            Node::Dir(_) => panic!("{ino} is a directory"),
        }
    }

    /// The records are the file system.
    fn check(&self) -> Result<(), TestCaseError> {
        let mut ids = HashMap::from([(ROOT_INO, HomeId::ROOT)]);
        let mut count = 0;
        for (path, dir, name, ino) in self.walk() {
            let row = self.rows.0.get(&(ids[&dir], name));
            let Some(row) = row else {
                return Err(TestCaseError::fail(format!(
                    "{} is missing",
                    path.escape_ascii()
                )));
            };
            let found = self.found(ino);
            match &row.kind {
                RowKind::Dir => {
                    prop_assert_eq!(row.stamp.ino, ino);
                    ids.insert(ino, row.id);
                }
                RowKind::File { content } => {
                    prop_assert_eq!(content, &self.content(ino), "{}", path.escape_ascii());
                    // Renaming one of two links changes the ctime of both, and nothing tells of the other.
                    prop_assert!(
                        row.stamp.same_content(&found.stamp),
                        "{}",
                        path.escape_ascii()
                    );
                }
                RowKind::Symlink { .. } => panic!("the model has no symlinks"),
            }
            prop_assert_eq!(row.mode, found.mode);
            count += 1;
        }
        prop_assert_eq!(self.rows.0.len(), count, "{:?}", self.rows);
        Ok(())
    }
}

fn row_of(id: HomeId, found: Found, content: Option<Bytes>) -> Row {
    Row {
        id,
        stamp: found.stamp,
        mode: found.mode,
        xattrs: 0,
        unsure: false,
        kind: content.map_or(RowKind::Dir, |content| RowKind::File { content }),
        held: Bytes::new(),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn records_follow_any_edits(edits in edits()) {
        let mut model = Model::new();
        for edit in edits {
            model.edit(edit)?;
        }
        model.scan(true)?;
    }
}
