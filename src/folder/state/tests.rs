//! What the tests of the state share: replicas driven by paths, the view as a plain tree, the same operations on a plain
//! tree as POSIX has them, and checks of everything derived. And two sets of views worked out by another implementation
//! of the rules: `vectors.json`, a few operations at once for each rule, and `programs.json`, random longer ones.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::graph::Graph;
use super::*;

/// Sibling tags of the golden vectors: the first characters of the incarnation and the bare clock.
pub(super) fn model_tag() -> Tag {
    Arc::new(|inc, hlc| {
        let inc = String::from_utf8_lossy(&inc.0[..4]).into_owned();
        format!("conflict {inc} {}", hlc.0)
    })
}

pub(super) fn text(name: &Name) -> String {
    String::from_utf8(name.as_bytes().to_vec()).unwrap()
}

pub(super) fn content(text: &str) -> Content {
    Content::from(text.as_bytes())
}

pub(super) fn content_text(content: &Content) -> String {
    String::from_utf8(content.0.to_vec()).unwrap()
}

pub(super) fn seconds(secs: u64) -> Time {
    Time {
        secs: i64::try_from(secs).unwrap(),
        nanos: 0,
    }
}

/// An operation by paths ("/a/b").
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Op {
    Create(String, String, FileKind),
    Mkdir(String),
    Write(String, String),
    Chmod(String, u16),
    SetTimes(String, u64),
    SetXattr(String, String),
    Unlink(String),
    Rmdir(String),
    Link(String, String),
    Rename(String, String),
    Exchange(String, String),
}

/// One device: its state and its clock, which counts in bare numbers here.
#[derive(Clone)]
pub(super) struct Replica {
    pub(super) inc: Inc,
    pub(super) state: State,
    pub(super) hlc: u64,
    pub(super) skew: i64,
}

impl Replica {
    pub(super) fn new(inc: [u8; 8]) -> Self {
        Self {
            inc: Inc(inc),
            state: State::new(model_tag()),
            hlc: 0,
            skew: 0,
        }
    }

    pub(super) fn pull(&mut self, other: &Self) -> Vec<Change> {
        self.hlc = self.hlc.max(other.hlc);
        self.state.merge(&other.state)
    }

    pub(super) fn next(&self, now: u64) -> By {
        let wall = now.saturating_add_signed(self.skew);
        By {
            inc: self.inc,
            hlc: Hlc(self.hlc.max(wall) + 1),
        }
    }

    pub(super) fn op(&mut self, now: u64, op: &Op) -> Result<Vec<Change>, OpError> {
        let by = self.next(now);
        let changes = apply(&mut self.state, op, by)?;
        self.hlc = by.hlc.0;
        Ok(changes)
    }
}

fn apply(state: &mut State, op: &Op, by: By) -> Result<Vec<Change>, OpError> {
    let mtime = seconds(by.hlc.0);
    let body = |text: &str| Body {
        content: content(text),
        size: text.len() as u64,
        mtime,
    };
    let at = |path: &str| locate(state, path);
    match op {
        Op::Create(path, text, kind) => {
            let (dir, name) = at(path)?;
            let file = NewFile {
                kind: *kind,
                mode: 0o644,
                body: body(text),
            };
            state.create(dir, name.as_bytes(), file, by)
        }
        Op::Mkdir(path) => {
            let (dir, name) = at(path)?;
            state.mkdir(dir, name.as_bytes(), 0o755, by)
        }
        Op::Write(path, text) => {
            let (dir, name) = at(path)?;
            if state.lookup(dir, name.as_bytes()).is_none() {
                return Err(OpError::NotFound);
            }
            let base = state.base(dir, name.as_bytes());
            state.write(&mut base.ok_or(OpError::IsDirectory)?, body(text), by)
        }
        Op::Chmod(path, mode) => {
            let (dir, name) = at(path)?;
            state.chmod(Target::Name(dir, name.as_bytes()), *mode, by)
        }
        Op::SetTimes(path, time) => {
            let (dir, name) = at(path)?;
            state.set_times(Target::Name(dir, name.as_bytes()), seconds(*time), by)
        }
        Op::SetXattr(path, value) => {
            let (dir, name) = at(path)?;
            let target = Target::Name(dir, name.as_bytes());
            state.set_xattr(target, "user.x".into(), value.clone().into(), by)
        }
        Op::Unlink(path) => {
            let (dir, name) = at(path)?;
            state.unlink(dir, name.as_bytes(), by)
        }
        Op::Rmdir(path) => {
            let (dir, name) = at(path)?;
            state.rmdir(dir, name.as_bytes(), by)
        }
        Op::Link(old, new) => {
            let (old, new) = (at(old)?, at(new)?);
            state.link((old.0, old.1.as_bytes()), (new.0, new.1.as_bytes()), by)
        }
        Op::Rename(from, to) | Op::Exchange(from, to) => {
            let (from, to) = (at(from)?, at(to)?);
            let mode = match op {
                Op::Exchange(..) => RenameMode::Exchange,
                _ => RenameMode::Replace,
            };
            state.rename(
                (from.0, from.1.as_bytes()),
                (to.0, to.1.as_bytes()),
                mode,
                by,
            )
        }
    }
}

/// The directory a path is in, and its last name.
pub(super) fn locate(state: &State, path: &str) -> Result<(Fid, String), OpError> {
    let (dirs, name) = path.rsplit_once('/').ok_or(OpError::NotFound)?;
    let mut dir = Fid::ROOT;
    for part in dirs.split('/').filter(|part| !part.is_empty()) {
        match state
            .lookup(dir, part.as_bytes())
            .ok_or(OpError::NotFound)?
        {
            Node::Dir(node) => dir = node.fid,
            Node::File(_) => return Err(OpError::NotDirectory),
        }
    }
    Ok((dir, name.to_owned()))
}

/// One row of a plain tree. Files of one inode carry the first of its paths.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Row {
    Dir {
        mode: u16,
        mtime: Option<Time>,
        xattrs: Xattrs,
    },
    File(FileRow),
}

#[derive(Debug, Clone, PartialEq)]
pub(super) struct FileRow {
    pub(super) kind: FileKind,
    pub(super) content: String,
    pub(super) mode: u16,
    pub(super) mtime: Time,
    pub(super) xattrs: Xattrs,
    pub(super) inode: String,
}

impl Row {
    pub(super) fn is_dir(&self) -> bool {
        matches!(self, Self::Dir { .. })
    }

    pub(super) fn file(&self) -> Option<&FileRow> {
        match self {
            Self::Dir { .. } => None,
            Self::File(file) => Some(file),
        }
    }
}

pub(super) type Tree = BTreeMap<String, Row>;

/// Every shown thing by path.
pub(super) fn walk(state: &State) -> BTreeMap<String, Node> {
    let mut nodes = BTreeMap::new();
    let mut todo = vec![(String::new(), Fid::ROOT)];
    while let Some((path, dir)) = todo.pop() {
        for (name, node) in state.list(dir) {
            let path = format!("{path}/{}", text(&name));
            if let Node::Dir(dir) = &node {
                todo.push((path.clone(), dir.fid));
            }
            assert!(nodes.insert(path, node).is_none(), "a name shown twice");
        }
    }
    nodes
}

pub(super) fn tree(state: &State) -> Tree {
    let mut firsts: Vec<(FileNode, String)> = Vec::new();
    let row = |(path, node)| {
        let row = match node {
            Node::Dir(dir) => Row::Dir {
                mode: dir.mode,
                mtime: dir.mtime,
                xattrs: dir.xattrs,
            },
            Node::File(file) => {
                let known = firsts.iter().find(|(first, _)| first.is_same_inode(&file));
                let inode = known.map_or(&path, |(_, path)| path).clone();
                if inode == path {
                    firsts.push((file.clone(), inode.clone()));
                }
                Row::File(FileRow {
                    kind: file.version.kind,
                    content: content_text(&file.version.content),
                    mode: file.mode,
                    mtime: file.mtime,
                    xattrs: file.xattrs,
                    inode,
                })
            }
        };
        (path, row)
    };
    walk(state).into_iter().map(row).collect()
}

/// What `op` at clock `hlc` makes of a plain tree; none if POSIX refuses it.
pub(super) fn posix(tree: &Tree, op: &Op, hlc: u64) -> Option<Tree> {
    let mut new = tree.clone();
    let absent = |path: &str| !tree.contains_key(path) && in_dir(tree, path);
    match op {
        Op::Create(path, content, kind) => {
            let file = FileRow {
                kind: *kind,
                content: content.clone(),
                mode: 0o644,
                mtime: seconds(hlc),
                xattrs: Xattrs::new(),
                inode: "new".to_owned(),
            };
            absent(path).then(|| new.insert(path.clone(), Row::File(file)))?;
        }
        Op::Mkdir(path) => {
            let dir = Row::Dir {
                mode: 0o755,
                mtime: None,
                xattrs: Xattrs::new(),
            };
            absent(path).then(|| new.insert(path.clone(), dir))?;
        }
        Op::Write(path, content) => {
            tree.get(path)?.file()?;
            at_inode(&mut new, path, |row| {
                if let Row::File(file) = row {
                    file.content.clone_from(content);
                    file.mtime = seconds(hlc);
                }
            });
        }
        Op::Chmod(path, to) => {
            tree.get(path)?;
            at_inode(&mut new, path, |row| match row {
                Row::Dir { mode, .. } => *mode = *to,
                Row::File(file) => file.mode = *to,
            });
        }
        Op::SetTimes(path, time) => {
            tree.get(path)?;
            at_inode(&mut new, path, |row| match row {
                Row::Dir { mtime, .. } => *mtime = Some(seconds(*time)),
                Row::File(file) => file.mtime = seconds(*time),
            });
        }
        Op::SetXattr(path, value) => {
            tree.get(path)?;
            at_inode(&mut new, path, |row| {
                let (Row::Dir { xattrs, .. } | Row::File(FileRow { xattrs, .. })) = row;
                xattrs.insert("user.x".into(), value.clone().into());
            });
        }
        Op::Unlink(path) => {
            tree.get(path)?.file()?;
            new.remove(path);
        }
        Op::Rmdir(path) => {
            let empty = tree.get(path)?.is_dir() && below(tree, path).is_empty();
            empty.then(|| new.remove(path))?;
        }
        Op::Link(old, to) => {
            let file = Row::File(tree.get(old)?.file()?.clone());
            absent(to).then(|| new.insert(to.clone(), file))?;
        }
        Op::Rename(from, to) => posix_rename(tree, &mut new, from, to)?,
        Op::Exchange(one, two) => posix_exchange(tree, &mut new, one, two)?,
    }
    Some(name_inodes(new))
}

fn posix_rename(tree: &Tree, new: &mut Tree, from: &str, to: &str) -> Option<()> {
    let row = tree.get(from)?;
    if to.starts_with(&format!("{from}/")) || !in_dir(tree, to) {
        return None;
    }
    if let Some(old) = tree.get(to) {
        let one_inode = |a: &FileRow, b: &FileRow| a.inode == b.inode;
        let same = row
            .file()
            .zip(old.file())
            .is_some_and(|(a, b)| one_inode(a, b));
        if from == to || same {
            return Some(());
        }
        if row.is_dir() != old.is_dir() || !below(tree, to).is_empty() {
            return None;
        }
        new.remove(to);
    }
    for path in below(tree, from).iter().map(String::as_str).chain([from]) {
        let row = new.remove(path)?;
        new.insert(format!("{to}{}", &path[from.len()..]), row);
    }
    Some(())
}

fn posix_exchange(tree: &Tree, new: &mut Tree, one: &str, two: &str) -> Option<()> {
    let (a, b) = (tree.get(one)?, tree.get(two)?);
    let inside = |outer: &str, inner: &str| inner.starts_with(&format!("{outer}/"));
    let same = a
        .file()
        .zip(b.file())
        .is_some_and(|(a, b)| a.inode == b.inode);
    if one == two || same {
        return Some(());
    }
    if inside(one, two) || inside(two, one) {
        return None;
    }
    for (from, to) in [(one, two), (two, one)] {
        for path in below(tree, from).iter().map(String::as_str).chain([from]) {
            new.remove(path);
        }
        for path in below(tree, to).iter().map(String::as_str).chain([to]) {
            let moved = format!("{from}{}", &path[to.len()..]);
            new.insert(format!("\0{moved}"), tree[path].clone());
        }
    }
    let rows = std::mem::take(new).into_iter();
    *new = rows
        .map(|(path, row)| (path.trim_start_matches('\0').to_owned(), row))
        .collect();
    Some(())
}

fn in_dir(tree: &Tree, path: &str) -> bool {
    let parent = path.rsplit_once('/').map_or("", |(parent, _)| parent);
    parent.is_empty() || tree.get(parent).is_some_and(Row::is_dir)
}

fn below(tree: &Tree, path: &str) -> Vec<String> {
    let inside = format!("{path}/");
    let paths = tree.keys().filter(|path| path.starts_with(&inside));
    paths.cloned().collect()
}

fn at_inode(tree: &mut Tree, path: &str, change: impl Fn(&mut Row)) {
    let inode = tree[path].file().map(|file| file.inode.clone());
    for (at, row) in tree {
        if at == path || (inode.is_some() && row.file().map(|file| &file.inode) == inode.as_ref()) {
            change(row);
        }
    }
}

fn name_inodes(mut tree: Tree) -> Tree {
    let mut firsts = BTreeMap::new();
    for (path, row) in &mut tree {
        if let Row::File(file) = row {
            file.inode = firsts.entry(file.inode.clone()).or_insert(path).clone();
        }
    }
    tree
}

/// Everything derived must be what it is from scratch.
pub(super) fn check_derived(state: &State) {
    assert_eq!(
        state.graph,
        Graph::compute(&state.dirs),
        "incremental graph"
    );
    let mut links: BTreeMap<LinkId, BTreeSet<Key>> = BTreeMap::new();
    let mut refs: BTreeMap<Fid, usize> = BTreeMap::new();
    let mut wanted = BTreeSet::new();
    for (&fid, dir) in &state.dirs {
        assert!(dir.has_head(), "a record without a reason: {fid:?}");
        assert_eq!(dir.birth.fid(), fid);
        for (name, entry) in dir.names.iter() {
            assert!(!entry.is_empty());
            wanted.insert((fid, name.clone()));
            for link in entry.versions.iter().filter_map(|version| version.link) {
                let key = Key::file(fid, name.clone());
                links.entry(link).or_default().insert(key);
            }
        }
        let shown = dir
            .names
            .iter()
            .filter(|(_, entry)| !entry.versions.is_empty());
        assert_eq!(dir.shown_names, shown.count());
        for place in &dir.places {
            *refs.entry(place.parent).or_insert(0) += 1;
        }
    }
    assert_eq!(state.links, links, "link index");
    for (&fid, dir) in &state.dirs {
        assert_eq!(
            dir.place_refs,
            refs.get(&fid).copied().unwrap_or(0),
            "references to {fid:?}"
        );
    }
    assert!(
        refs.keys().all(|fid| state.dirs.contains_key(fid)),
        "a parent without a head"
    );
    wanted.extend(
        state
            .graph
            .iter()
            .map(|(_, at)| (at.parent, at.name.clone())),
    );
    let crowded = |(dir, name): &(Fid, Name)| state.members(*dir, name.as_bytes()).len() > 1;
    let crowded: Vec<(Fid, Name)> = wanted.into_iter().filter(crowded).collect();
    assert_eq!(
        state
            .conflicts()
            .map(|(dir, name)| (dir, name.clone()))
            .collect::<Vec<_>>(),
        crowded,
        "crowded names"
    );
}

/// All a kernel may have cached: names with what they show and how many names that has, and attributes of directories.
#[derive(PartialEq)]
pub(super) struct Cached {
    names: BTreeMap<(Fid, Name), CachedName>,
    dirs: BTreeMap<Fid, DirNode>,
}

#[derive(Debug, Clone, PartialEq)]
enum CachedName {
    Dir(Fid),
    File(Box<FileNode>, BTreeSet<(Fid, Name)>),
}

impl Cached {
    pub(super) fn of(state: &State) -> Self {
        let mut names = BTreeMap::new();
        let mut dirs = BTreeMap::new();
        let root = state.dir(Fid::ROOT).unwrap();
        let mut todo = vec![root];
        while let Some(dir) = todo.pop() {
            for (name, node) in state.list(dir.fid) {
                let cached = match node {
                    Node::Dir(dir) => {
                        let fid = dir.fid;
                        todo.push(dir);
                        CachedName::Dir(fid)
                    }
                    Node::File(file) => {
                        let inode = state.inode_names(&file).into_iter().collect();
                        CachedName::File(Box::new(file), inode)
                    }
                };
                names.insert((dir.fid, name), cached);
            }
            dirs.insert(dir.fid, dir);
        }
        Self { names, dirs }
    }

    /// Whatever is different in `after` must have been reported.
    pub(super) fn check_reported(&self, after: &Self, changes: &[Change]) {
        for at in self.names.keys().chain(after.names.keys()) {
            let (dir, name) = at.clone();
            let reported = changes.contains(&Change::Listing { dir })
                || changes.contains(&Change::Name { dir, name });
            let (old, new) = (self.names.get(at), after.names.get(at));
            let same = old == new;
            assert!(
                same || reported,
                "unreported {at:?}: {old:?} -> {new:?}: {changes:?}"
            );
        }
        for dir in self.dirs.keys().filter(|dir| after.dirs.contains_key(dir)) {
            let reported = changes.contains(&Change::Attributes { dir: *dir });
            let same = self.dirs[dir] == after.dirs[dir];
            assert!(
                same || reported,
                "unreported change of {dir:?} itself: {changes:?}"
            );
        }
    }
}

fn parse(words: &[String]) -> Op {
    let [what, rest @ ..] = words else {
        panic!("empty operation");
    };
    match (what.as_str(), rest) {
        ("create", [path, text]) => Op::Create(path.clone(), text.clone(), FileKind::File),
        ("symlink", [path, text]) => Op::Create(path.clone(), text.clone(), FileKind::Symlink),
        ("mkdir", [path]) => Op::Mkdir(path.clone()),
        ("write", [path, text]) => Op::Write(path.clone(), text.clone()),
        ("chmod", [path, mode]) => Op::Chmod(path.clone(), mode.parse().unwrap()),
        ("unlink", [path]) => Op::Unlink(path.clone()),
        ("rmdir", [path]) => Op::Rmdir(path.clone()),
        ("link", [old, new]) => Op::Link(old.clone(), new.clone()),
        ("rename", [from, to]) => Op::Rename(from.clone(), to.clone()),
        _ => panic!("unknown operation {words:?}"),
    }
}

fn vector_view(state: &State) -> serde_json::Value {
    let row = |(path, row)| {
        let value = match row {
            Row::Dir { mode, .. } => serde_json::json!(["d", mode]),
            Row::File(file) => {
                let kind = if file.kind == FileKind::File {
                    "f"
                } else {
                    "l"
                };
                serde_json::json!([kind, file.content, file.mode, file.inode])
            }
        };
        (path, value)
    };
    tree(state).into_iter().map(row).collect()
}

#[test]
fn golden_vectors() {
    let vectors: serde_json::Value =
        serde_json::from_str(include_str!("testdata/vectors.json")).unwrap();
    let vectors = vectors.as_array().unwrap();
    assert_eq!(vectors.len(), 34);
    for vector in vectors {
        let rule = vector["rule"].as_str().unwrap();
        let apart = vector["apart"].as_object().unwrap();
        let mut replicas: Vec<Replica> = b"ABC"[..apart.len().max(2)]
            .iter()
            .map(|letter| Replica::new([*letter; 8]))
            .collect();
        let mut now = 0;
        let mut run = |replica: &mut Replica, ops: &str| {
            for op in ops.split(';').filter(|op| !op.is_empty()) {
                now += 1;
                let before = Cached::of(&replica.state);
                let words: Vec<String> = op.split(' ').map(str::to_owned).collect();
                let changes = replica.op(now, &parse(&words));
                let changes = changes.unwrap_or_else(|error| panic!("{rule}: {op}: {error}"));
                before.check_reported(&Cached::of(&replica.state), &changes);
                check_derived(&replica.state);
            }
        };
        run(&mut replicas[0], vector["base"].as_str().unwrap());
        let first = replicas[0].clone();
        for replica in &mut replicas {
            replica.pull(&first);
        }
        for (letter, ops) in apart {
            let replica = &mut replicas[usize::from(letter.as_bytes()[0] - b'A')];
            run(replica, ops.as_str().unwrap());
        }
        for order in [[0, 1, 2], [2, 1, 0]] {
            let mut merged = State::new(model_tag());
            for replica in order.iter().filter_map(|index| replicas.get(*index)) {
                merged.merge(&replica.state);
                check_derived(&merged);
            }
            assert_eq!(vector_view(&merged), vector["view"], "{rule}");
        }
    }
}

#[derive(serde::Deserialize)]
struct Program {
    seed: u64,
    /// What each replica's clock is ahead.
    skews: Vec<i64>,
    /// A replica, by its letter, and the words of an operation, or "pull" and another replica; one for each tick.
    steps: Vec<Vec<String>>,
    /// The view of each replica in the end, and of all merged.
    apart: Vec<serde_json::Value>,
    joined: serde_json::Value,
}

#[test]
fn random_programs() {
    let programs: Vec<Program> =
        serde_json::from_str(include_str!("testdata/programs.json")).unwrap();
    assert!(programs.len() >= 50);
    for Program {
        seed,
        skews,
        steps,
        apart,
        joined,
    } in programs
    {
        let letters = (b'A'..).zip(skews);
        let mut replicas: Vec<Replica> = letters
            .map(|(letter, skew)| Replica {
                skew,
                ..Replica::new([letter; 8])
            })
            .collect();
        let index = |letter: &str| usize::from(letter.as_bytes()[0] - b'A');
        for (now, step) in (1..).zip(&steps) {
            let (letter, op) = step.split_first().unwrap();
            if let [what, other] = op
                && what == "pull"
            {
                let other = replicas[index(other)].clone();
                replicas[index(letter)].pull(&other);
            } else {
                let done = replicas[index(letter)].op(now, &parse(op));
                done.unwrap_or_else(|error| panic!("{seed}: {step:?}: {error}"));
            }
        }
        let mut merged = State::new(model_tag());
        for (replica, view) in replicas.iter().zip(&apart) {
            assert_eq!(
                &vector_view(&replica.state),
                view,
                "{seed}: {:?} apart",
                replica.inc
            );
            merged.merge(&replica.state);
        }
        assert_eq!(vector_view(&merged), joined, "{seed}: joined");
    }
}
