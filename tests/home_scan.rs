//! A home on a real directory: what is on disk is what the folder shows, and nothing is read without need.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use ccbt::clock;
use ccbt::folder::content::ContentReader;
use ccbt::folder::home::guard::HeldReason;
use ccbt::folder::home::marker::Marker;
use ccbt::folder::home::memory::MemoryLedger;
use ccbt::folder::home::problems::{Problem, ProblemKind};
use ccbt::folder::home::{Home, HomeOptions, OpenHomeError, ScanError, ScanReport};
use ccbt::folder::state::{Body, By, Content, Fid, FileKind, Hlc, Inc, Node, State, Time};
use ccbt::folder::tree::{NodeKind, Nodes};
use ccbt_xet::disk::RealDisk;
use ccbt_xet::hash::NodeId;
use ccbt_xet::store::{ReadError, Store, StoreOptions};
use tempfile::TempDir;

const MINE: Inc = Inc([1; 8]);
const PEER: Inc = Inc([2; 8]);

struct Fixture {
    dir: TempDir,
    ledger: Arc<MemoryLedger>,
    store: Arc<Store>,
}

struct StoreNodes<'s>(&'s Store);

impl Nodes for StoreNodes<'_> {
    type Error = ReadError;

    fn get(&self, _kind: NodeKind, id: &NodeId) -> Result<Option<Bytes>, ReadError> {
        self.0.node(id)
    }

    fn put(&self, _kind: NodeKind, _id: &NodeId, _bytes: Bytes) -> Result<(), ReadError> {
        unreachable!("only read here")
    }
}

/// What a path is, on disk or in the folder.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Thing {
    Dir {
        mode: u16,
    },
    File {
        bytes: Option<String>,
        mode: u16,
        mtime: (i64, u32),
        xattrs: BTreeMap<Bytes, Bytes>,
    },
    Link(Vec<u8>),
}

type Tree = BTreeMap<Vec<u8>, Thing>;

impl Fixture {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("home")).unwrap();
        let ledger = Arc::new(MemoryLedger::new(MINE));
        let store = Self::store(dir.path());
        Self { dir, ledger, store }
    }

    fn store(dir: &Path) -> Arc<Store> {
        let path = dir.join("state/store");
        fs::create_dir_all(&path).unwrap();
        Arc::new(Store::open(&path, Arc::new(RealDisk), StoreOptions::default()).unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join("home").join(name)
    }

    fn write(&self, name: &str, bytes: impl AsRef<[u8]>) {
        fs::write(self.path(name), bytes).unwrap();
    }

    fn options(&self) -> HomeOptions {
        HomeOptions {
            marker: Marker {
                folder: "f0".into(),
                device: "d0".into(),
            },
            state_dir: self.dir.path().join("state"),
            known_homes: Vec::new(),
            space: 0,
        }
    }

    fn try_open(&self) -> Result<Home, OpenHomeError> {
        let clock = Arc::new(clock::unix_nanos);
        Home::open(
            &self.path(""),
            self.ledger.clone(),
            self.store.clone(),
            clock,
            &self.options(),
        )
    }

    fn open(&self) -> Home {
        self.try_open().unwrap()
    }

    /// What the folder shows, contents read from the store, which has them from the home.
    fn shown(&self) -> Tree {
        let state = self.ledger.lock().state.clone();
        let mut tree = Tree::new();
        self.walk(&state, Fid::ROOT, &[], &mut tree, true);
        tree
    }

    fn walk(&self, state: &State, dir: Fid, path: &[u8], tree: &mut Tree, read: bool) {
        for (name, node) in state.list(dir) {
            let path = [path, b"/", name.as_bytes()].concat();
            let thing = match node {
                Node::Dir(node) => {
                    self.walk(state, node.fid, &path, tree, read);
                    Thing::Dir { mode: node.mode }
                }
                Node::File(node) if node.version.kind == FileKind::Symlink => {
                    Thing::Link(node.version.content.0.to_vec())
                }
                Node::File(node) => Thing::File {
                    bytes: match read {
                        true => self.content(&node.version.content.0, node.version.size),
                        false => None,
                    },
                    mode: node.mode,
                    mtime: (node.mtime.secs, node.mtime.nanos),
                    xattrs: node.xattrs,
                },
            };
            tree.insert(path, thing);
        }
    }

    /// Stands for the bytes; none if a chunk of them is missing.
    fn content(&self, content: &[u8], size: u64) -> Option<String> {
        let nodes = StoreNodes(&self.store);
        let reader = ContentReader::new(&nodes, content, size).ok()?;
        let mut bytes = Vec::new();
        for located in reader.locate(0..size).unwrap() {
            let chunk = self.store.chunk(&located.chunk.hash).unwrap();
            bytes.extend_from_slice(&chunk?);
        }
        Some(sum(&bytes))
    }

    /// What is on disk.
    fn on_disk(&self) -> Tree {
        let mut tree = Tree::new();
        read_disk(&self.path(""), &[], &mut tree);
        tree
    }

    fn assert_same(&self) {
        let (shown, disk) = (self.shown(), self.on_disk());
        assert!(!disk.is_empty());
        assert_eq!(shown, disk);
    }

    /// Past the time in which a change could go unseen.
    fn settle(&self) {
        std::thread::sleep(Duration::from_millis(130));
    }

    fn scan(&self, home: &Home) -> ScanReport {
        self.settle();
        let report = home.scan(&|_| ()).unwrap();
        assert!(report.blocked.is_empty(), "{report:?}");
        report
    }
}

fn read_disk(dir: &Path, path: &[u8], tree: &mut Tree) {
    use std::os::unix::fs::MetadataExt;
    for entry in fs::read_dir(dir).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name();
        if path.is_empty() && name == ".ccbt" {
            continue;
        }
        let path = [path, b"/", name.as_bytes()].concat();
        let meta = entry.metadata().unwrap();
        let mode = (meta.permissions().mode() & 0o777) as u16;
        let thing = if meta.is_dir() {
            read_disk(&entry.path(), &path, tree);
            Thing::Dir { mode }
        } else if meta.is_symlink() {
            Thing::Link(
                fs::read_link(entry.path())
                    .unwrap()
                    .as_os_str()
                    .as_bytes()
                    .to_vec(),
            )
        } else {
            let mtime = (meta.mtime(), meta.mtime_nsec() as u32);
            let xattrs = ccbt::folder::home::files::xattrs(fs::File::open(entry.path()).unwrap());
            let bytes = Some(sum(&fs::read(entry.path()).unwrap()));
            Thing::File {
                bytes,
                mode,
                mtime,
                xattrs: xattrs.unwrap(),
            }
        };
        tree.insert(path, thing);
    }
}

fn sum(bytes: &[u8]) -> String {
    format!(
        "{} bytes {}",
        bytes.len(),
        &blake3::hash(bytes).to_hex()[..8]
    )
}

fn noise(seed: u8, len: usize) -> Vec<u8> {
    let mut out = vec![0; len];
    blake3::Hasher::new()
        .update(&[seed])
        .finalize_xof()
        .fill(&mut out);
    out
}

fn set_xattr(path: &Path, name: &str, value: &str) {
    rustix::fs::setxattr(
        path,
        name,
        value.as_bytes(),
        rustix::fs::XattrFlags::empty(),
    )
    .unwrap();
}

#[test]
fn what_is_on_disk_is_shown_and_read_once() {
    let t = Fixture::new();
    fs::create_dir_all(t.path("a/b")).unwrap();
    t.write("a/b/file", noise(1, 200_000));
    t.write("empty", "");
    symlink("nowhere/at all", t.path("link")).unwrap();
    t.write(&"n".repeat(255), "long name");
    fs::write(
        t.path("").join(std::ffi::OsStr::from_bytes(b"\xff\n\x80")),
        "odd name",
    )
    .unwrap();
    set_xattr(&t.path("empty"), "user.colour", "blue");
    let home = t.open();
    let report = t.scan(&home);
    assert_eq!(
        (report.read, report.counts.files, report.counts.dirs),
        (5, 5, 3)
    );
    t.assert_same();

    let (opens, updates) = (home.opens(), t.ledger.lock().updates);
    let report = t.scan(&home);
    assert_eq!((report.counts.unchanged, report.read), (5, 0));
    assert_eq!(home.opens(), opens, "an unchanged file was opened");
    assert_eq!(t.ledger.lock().updates, updates);
}

#[test]
fn edits_are_seen() {
    let t = Fixture::new();
    fs::create_dir(t.path("dir")).unwrap();
    t.write("edited", "one");
    t.write("touched", "same");
    t.write("deleted", "x");
    t.write("moded", "y");
    t.write("becomes a directory", "z");
    symlink("one", t.path("link")).unwrap();
    let home = t.open();
    t.scan(&home);

    t.write("edited", "two");
    t.write("dir/new", "new");
    t.write("touched", "same");
    fs::remove_file(t.path("deleted")).unwrap();
    fs::set_permissions(t.path("moded"), fs::Permissions::from_mode(0o700)).unwrap();
    fs::set_permissions(t.path("dir"), fs::Permissions::from_mode(0o711)).unwrap();
    set_xattr(&t.path("moded"), "user.note", "important");
    fs::remove_file(t.path("becomes a directory")).unwrap();
    fs::create_dir(t.path("becomes a directory")).unwrap();
    fs::remove_file(t.path("link")).unwrap();
    symlink("two", t.path("link")).unwrap();
    let report = t.scan(&home);
    assert_eq!(report.removed, 2);
    t.assert_same();
}

#[test]
fn renames_are_not_read() {
    let t = Fixture::new();
    fs::create_dir_all(t.path("tree/deep")).unwrap();
    t.write("tree/deep/file", noise(2, 300_000));
    t.write("tree/other", "other");
    t.write("file", noise(3, 100_000));
    t.write("old", "old");
    let home = t.open();
    t.scan(&home);
    let dots = |t: &Fixture, path: &str| {
        let state = t.ledger.lock().state.clone();
        let Some(Node::Dir(tree)) = state.lookup(Fid::ROOT, path.as_bytes()) else {
            panic!("{path} is no directory");
        };
        let Some(Node::File(node)) = state.lookup(tree.fid, b"other") else {
            panic!("no file")
        };
        node.version.dot
    };
    let before = dots(&t, "tree");

    fs::rename(t.path("tree"), t.path("wood")).unwrap();
    fs::rename(t.path("file"), t.path("wood/moved")).unwrap();
    fs::rename(t.path("old"), t.path("older")).unwrap();
    t.write("old", "a new file");
    let report = t.scan(&home);
    // The new file, and once all is done those that were renamed, to be sure of them.
    assert_eq!((report.read, report.renamed), (3, 2), "{report:?}");
    assert_eq!(
        dots(&t, "wood"),
        before,
        "a file below a renamed directory was touched"
    );
    t.assert_same();

    // Each in the place of the other, and one into the other.
    fs::create_dir(t.path("second")).unwrap();
    t.write("second/x", "x");
    t.scan(&home);
    fs::rename(t.path("wood"), t.path("tmp")).unwrap();
    fs::rename(t.path("second"), t.path("wood")).unwrap();
    fs::rename(t.path("tmp"), t.path("second")).unwrap();
    fs::rename(t.path("second/deep"), t.path("deep")).unwrap();
    fs::rename(t.path("second"), t.path("deep/second")).unwrap();
    let report = t.scan(&home);
    assert_eq!(report.read, 0, "{report:?}");
    t.assert_same();
}

#[test]
fn a_renamed_file_that_only_looks_like_the_old_one_is_found_out() {
    let t = Fixture::new();
    t.write("old", "one");
    let home = t.open();
    t.scan(&home);
    let mtime = fs::metadata(t.path("old")).unwrap().modified().unwrap();
    t.write("old", "two");
    let file = fs::File::options().write(true).open(t.path("old")).unwrap();
    file.set_modified(mtime).unwrap();
    drop(file);
    fs::rename(t.path("old"), t.path("new")).unwrap();
    let report = t.scan(&home);
    assert_eq!((report.renamed, report.read), (1, 1), "{report:?}");
    t.assert_same();
}

#[test]
fn a_scan_stops_when_it_is_asked_to() {
    let t = Fixture::new();
    t.write("file", noise(9, 100_000));
    let home = t.open();
    home.ask_to_stop();
    let stopped = home.scan(&|_| ());
    assert!(matches!(stopped, Err(ScanError::Stopped)), "{stopped:?}");
    assert_eq!(home.opens(), 0);
}

#[test]
fn a_directory_moved_to_where_a_peer_put_something_is_put_beside_it() {
    let t = Fixture::new();
    for dir in ["a", "b"] {
        fs::create_dir(t.path(dir)).unwrap();
        t.write(&format!("{dir}/file"), dir);
    }
    let home = t.open();
    t.scan(&home);
    {
        let mut ledger = t.ledger.lock();
        let by = ledger.by();
        ledger.state.mkdir(Fid::ROOT, b"c", 0o755, by).unwrap();
        let Some(Node::Dir(c)) = ledger.state.lookup(Fid::ROOT, b"c") else {
            panic!("no directory")
        };
        let by = ledger.by();
        ledger.state.mkdir(c.fid, b"theirs", 0o755, by).unwrap();
    }
    fs::rename(t.path("a"), t.path("c")).unwrap();
    fs::rename(t.path("b"), t.path("d")).unwrap();
    t.scan(&home);
    let ledger = t.ledger.lock();
    let names: Vec<String> = ledger
        .state
        .list(Fid::ROOT)
        .into_iter()
        .map(|(name, _)| String::from_utf8_lossy(name.as_bytes()).into_owned())
        .collect();
    assert_eq!(names, ["c", "c (moved)", "d"]);
}

#[test]
fn a_restart_borrows_again_without_reading() {
    let mut t = Fixture::new();
    t.write("file", noise(4, 250_000));
    t.scan(&t.open());
    t.store.sync().unwrap();
    t.store = Fixture::store(&t.dir.path().join("other"));
    t.store = Fixture::store(t.dir.path());
    let home = t.open();
    assert_eq!(home.opens(), 0);
    t.assert_same();
    assert_eq!(t.scan(&home).read, 0);
}

#[test]
fn the_peers_version_outlives_local_edits_and_deletions() {
    let t = Fixture::new();
    for name in ["edited", "deleted", "removed by the peer"] {
        t.write(name, "base");
    }
    let home = t.open();
    t.scan(&home);
    {
        let mut folder = t.ledger.lock();
        let theirs = |text: &str| Body {
            content: Content::from(text.as_bytes()),
            size: text.len() as u64,
            mtime: Time::default(),
        };
        let by = By {
            inc: PEER,
            hlc: Hlc(u64::MAX >> 1),
        };
        for name in [&b"edited"[..], b"deleted"] {
            let mut base = folder.state.base(Fid::ROOT, name).unwrap();
            folder.state.write(&mut base, theirs("peer"), by).unwrap();
        }
        folder
            .state
            .unlink(Fid::ROOT, b"removed by the peer", by)
            .unwrap();
    }
    t.write("edited", "mine, longer");
    fs::remove_file(t.path("deleted")).unwrap();
    t.scan(&home);
    let state = t.ledger.lock().state.clone();
    let contents: BTreeMap<String, Inc> = state
        .list(Fid::ROOT)
        .into_iter()
        .filter_map(|(name, node)| match node {
            Node::File(node) => {
                let name = String::from_utf8_lossy(name.as_bytes()).into_owned();
                Some((name, node.version.dot.inc))
            }
            Node::Dir(_) => None,
        })
        .collect();
    let with = |start: &str, inc| {
        contents
            .iter()
            .filter(|(name, by)| name.starts_with(start) && **by == inc)
            .count()
    };
    assert_eq!(
        (with("edited", MINE), with("edited", PEER)),
        (1, 1),
        "{contents:?}"
    );
    assert_eq!(
        (with("deleted", MINE), with("deleted", PEER)),
        (0, 1),
        "{contents:?}"
    );
    assert_eq!(
        with("removed", MINE) + with("removed", PEER),
        0,
        "the peer's removal was undone"
    );

    t.write("removed by the peer", "edited after all");
    t.scan(&home);
    assert!(t.shown().contains_key(&b"/removed by the peer"[..]));
}

#[test]
fn edits_in_a_directory_a_peer_removed_bring_it_back() {
    let t = Fixture::new();
    fs::create_dir_all(t.path("a/b")).unwrap();
    t.write("a/b/file", "x");
    let home = t.open();
    t.scan(&home);
    {
        let mut folder = t.ledger.lock();
        let by = By {
            inc: PEER,
            hlc: Hlc(u64::MAX >> 1),
        };
        let dir = |state: &State, dir, name: &[u8]| match state.lookup(dir, name) {
            Some(Node::Dir(node)) => node.fid,
            other => panic!("{other:?}"),
        };
        let a = dir(&folder.state, Fid::ROOT, b"a");
        let b = dir(&folder.state, a, b"b");
        folder.state.unlink(b, b"file", by).unwrap();
        folder.state.rmdir(a, b"b", by).unwrap();
        folder.state.rmdir(Fid::ROOT, b"a", by).unwrap();
    }
    t.scan(&home);
    assert!(t.shown().is_empty(), "the peer's removal was undone");
    t.write("a/b/new", "y");
    t.scan(&home);
    let names: Vec<Vec<u8>> = t.shown().into_keys().collect();
    assert_eq!(names, [&b"/a"[..], b"/a/b", b"/a/b/new"]);
}

#[test]
fn a_lost_home_publishes_nothing_until_confirmed() {
    let t = Fixture::new();
    for i in 0..50 {
        t.write(&format!("file {i}"), format!("{i}"));
    }
    let home = t.open();
    t.scan(&home);
    let before = t.shown().len();
    assert_eq!(before, 50);

    for i in 0..30 {
        fs::remove_file(t.path(&format!("file {i}"))).unwrap();
    }
    let held = |home: &Home| match home.scan(&|_| ()) {
        Err(ScanError::Held(reason)) => reason,
        other => panic!("{other:?}"),
    };
    assert_eq!(held(&home), HeldReason::MostGone { gone: 30, of: 50 });
    t.write("file 49", "edited meanwhile");
    assert_eq!(held(&home), HeldReason::MostGone { gone: 30, of: 50 });
    assert_eq!(t.ledger.lock().state.list(Fid::ROOT).len(), before);
    home.confirm().unwrap();
    t.scan(&home);
    t.assert_same();

    fs::remove_file(t.path(".ccbt/home")).unwrap();
    t.write("file 48", "x");
    assert_eq!(held(&home), HeldReason::MarkerMissing);
    home.confirm().unwrap();
    t.scan(&home);
    t.assert_same();

    fs::rename(t.path(""), t.dir.path().join("away")).unwrap();
    assert_eq!(held(&home), HeldReason::RootMissing);
    fs::create_dir(t.path("")).unwrap();
    home.confirm().unwrap();
    assert_eq!(held(&home), HeldReason::Replaced);
    assert_eq!(t.ledger.lock().state.list(Fid::ROOT).len(), 20);
    drop(home);
    let home = t.open();
    assert_eq!(held(&home), HeldReason::MarkerMissing);
}

#[test]
fn an_emptied_home_is_held_back() {
    let t = Fixture::new();
    t.write("only", "x");
    let home = t.open();
    t.scan(&home);
    fs::remove_file(t.path("only")).unwrap();
    assert!(matches!(
        home.scan(&|_| ()),
        Err(ScanError::Held(HeldReason::Emptied))
    ));
    assert_eq!(t.ledger.lock().state.list(Fid::ROOT).len(), 1);
}

#[test]
fn what_cannot_be_listed_is_not_deleted() {
    let t = Fixture::new();
    fs::create_dir(t.path("dir")).unwrap();
    t.write("dir/file", "x");
    rustix::fs::mknodat(
        rustix::fs::CWD,
        t.path("fifo"),
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::from_raw_mode(0o600),
        0,
    )
    .unwrap();
    let home = t.open();
    assert_eq!(t.scan(&home).counts.special.len(), 1);
    // As root nothing is unreadable: a path that was replaced behind the records is as unknown.
    fs::rename(t.path("dir"), t.dir.path().join("dir")).unwrap();
    symlink(t.dir.path().join("dir"), t.path("dir")).unwrap();
    let report = t.scan(&home);
    assert_eq!(report.removed, 2);
    let shown: Vec<Vec<u8>> = t.shown().into_keys().collect();
    assert_eq!(shown, [b"/dir"], "nothing behind the link is published");
}

#[test]
fn a_file_that_changes_while_it_is_read_is_never_published_torn() {
    let t = Fixture::new();
    let stop = Arc::new(AtomicBool::new(false));
    let path = t.path("busy");
    let writer = std::thread::spawn({
        let (stop, path) = (stop.clone(), path);
        move || {
            use std::os::unix::fs::FileExt;
            let file = fs::File::create(path).unwrap();
            let mut value = 0u8;
            while !stop.load(Ordering::Relaxed) {
                value = value.wrapping_add(1);
                file.write_all_at(&vec![value; 3 << 20], 0).unwrap();
            }
        }
    });
    std::thread::sleep(Duration::from_millis(30));
    let home = t.open();
    for _ in 0..5 {
        home.scan(&|_| ()).unwrap();
    }
    stop.store(true, Ordering::Relaxed);
    writer.join().unwrap();
    t.scan(&home);
    t.assert_same();
}

/// What is being written can be read: to the user it is something that changes.
#[test]
fn a_file_that_is_being_written_is_not_told_as_unreadable() {
    let t = Fixture::new();
    let stop = Arc::new(AtomicBool::new(false));
    let writer = std::thread::spawn({
        let (stop, path) = (stop.clone(), t.path("busy"));
        move || {
            use std::os::unix::fs::FileExt;
            let file = fs::File::create(path).unwrap();
            while !stop.load(Ordering::Relaxed) {
                file.write_all_at(&vec![1; 3 << 20], 0).unwrap();
            }
        }
    });
    let home = t.open();
    let start = Instant::now();
    while home.scan(&|_| ()).unwrap().moving.is_empty() {
        assert!(start.elapsed() < Duration::from_secs(60));
    }
    let problems = home.problems();
    assert_eq!(
        (problems[0].kind, &problems[0].first[..]),
        (ProblemKind::Moving, &[b"busy".to_vec()][..])
    );
    let _told = follow(&home);
    t.write("other", "looked at while the first is left alone");
    while t.ledger.lock().state.lookup(Fid::ROOT, b"other").is_none() {
        assert!(start.elapsed() < Duration::from_secs(60));
        std::thread::sleep(Duration::from_millis(10));
    }
    let unreadable = |problem: &Problem| problem.kind == ProblemKind::Unreadable;
    assert!(!home.problems().iter().any(unreadable));
    stop.store(true, Ordering::Relaxed);
    writer.join().unwrap();
}

#[test]
fn a_borrowed_range_that_changed_is_not_served() {
    let t = Fixture::new();
    t.write("file", noise(5, 50_000));
    let home = t.open();
    t.scan(&home);
    let hash = ccbt_xet::hash::chunk_hash(&noise(5, 50_000));
    assert!(t.store.chunk(&hash).unwrap().is_some());
    // Same size and time: no scan would notice.
    let mtime = fs::metadata(t.path("file")).unwrap().modified().unwrap();
    t.write("file", noise(6, 50_000));
    fs::File::options()
        .write(true)
        .open(t.path("file"))
        .unwrap()
        .set_modified(mtime)
        .unwrap();
    let store = Fixture::store(&t.dir.path().join("cold"));
    drop(home);
    let t = Fixture { store, ..t };
    let home = t.open();
    assert_eq!(t.store.chunk(&hash).unwrap(), None);
    let (told, tell) = mpsc::channel();
    home.watch(Box::new(move |result| {
        told.send(result.unwrap().read).unwrap();
    }))
    .unwrap();
    assert_eq!(
        tell.recv_timeout(Duration::from_secs(20)),
        Ok(1),
        "it was not read again"
    );
    t.assert_same();
}

#[test]
fn refusals_say_why() {
    let t = Fixture::new();
    let open = |dir: &Path, options: &HomeOptions| {
        let clock = Arc::new(clock::unix_nanos);
        Home::open(dir, t.ledger.clone(), t.store.clone(), clock, options)
            .map(drop)
            .unwrap_err()
    };
    let options = t.options();
    assert!(matches!(
        open(Path::new("/"), &options),
        OpenHomeError::IsRoot
    ));
    assert!(matches!(
        open(t.dir.path(), &options),
        OpenHomeError::ContainsState { .. }
    ));
    assert!(matches!(
        open(&t.dir.path().join("state/store"), &options),
        OpenHomeError::InState { .. }
    ));
    t.write("file", "x");
    assert!(matches!(
        open(&t.path("file"), &options),
        OpenHomeError::NotADirectory(_)
    ));
    assert!(matches!(
        open(&t.path("none"), &options),
        OpenHomeError::Unreadable { .. }
    ));
    fs::create_dir_all(t.path("sub/sub")).unwrap();
    let known = HomeOptions {
        known_homes: vec![t.path("sub/sub")],
        space: 0,
        ..options.clone()
    };
    assert!(matches!(
        open(&t.path("sub"), &known),
        OpenHomeError::ContainsHome { .. }
    ));
    drop(t.open());
    assert!(matches!(
        open(&t.path("sub/sub"), &options),
        OpenHomeError::InHome { .. }
    ));
    let marker = Marker {
        folder: "f1".into(),
        device: "d0".into(),
    };
    let other = HomeOptions { marker, ..options };
    assert!(matches!(
        open(&t.path(""), &other),
        OpenHomeError::OfAnother(_)
    ));
}

/// Waits until the folder shows what is on disk, and compares everything once it shows the same names and times: to
/// read contents earlier would have them read by way of names that are gone.
fn wait_until_same(t: &Fixture) {
    let without_content = |tree: Tree| -> Tree {
        let bare = |thing| match thing {
            Thing::File {
                mode,
                mtime,
                xattrs,
                ..
            } => Thing::File {
                bytes: None,
                mode,
                mtime,
                xattrs,
            },
            other => other,
        };
        tree.into_iter()
            .map(|(path, thing)| (path, bare(thing)))
            .collect()
    };
    let end = Instant::now() + Duration::from_secs(30);
    loop {
        let mut shown = Tree::new();
        let state = t.ledger.lock().state.clone();
        t.walk(&state, Fid::ROOT, &[], &mut shown, false);
        if without_content(t.on_disk()) == shown {
            return t.assert_same();
        }
        assert!(Instant::now() < end, "{shown:?}\n{:?}", t.on_disk());
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn changes_are_followed() {
    let t = Fixture::new();
    fs::create_dir(t.path("dir")).unwrap();
    t.write("dir/old", "old");
    let home = t.open();
    t.scan(&home);
    home.watch(Box::new(|result| {
        assert!(result.unwrap().blocked.is_empty());
    }))
    .unwrap();

    t.write("dir/new", noise(7, 150_000));
    t.write("dir/old", "edited");
    wait_until_same(&t);
    fs::create_dir_all(t.path("new/deep/er")).unwrap();
    t.write("new/deep/er/file", "x");
    symlink("x", t.path("new/link")).unwrap();
    wait_until_same(&t);
    // What was read right after a change is read once more.
    std::thread::sleep(Duration::from_millis(500));
    let opens = home.opens();
    fs::rename(t.path("new/deep"), t.path("dir/moved")).unwrap();
    wait_until_same(&t);
    assert_eq!(
        home.opens(),
        opens,
        "a file below a renamed directory was read"
    );
    t.write("dir/moved/er/file", "still followed");
    fs::set_permissions(t.path("dir/old"), fs::Permissions::from_mode(0o600)).unwrap();
    fs::remove_file(t.path("dir/new")).unwrap();
    wait_until_same(&t);
    t.write("dir/.old.swp", "saved by rename");
    fs::rename(t.path("dir/.old.swp"), t.path("dir/old")).unwrap();
    fs::remove_dir_all(t.path("new")).unwrap();
    wait_until_same(&t);
}

#[test]
fn a_directory_that_was_removed_and_made_again_is_followed() {
    let t = Fixture::new();
    fs::create_dir(t.path("dir")).unwrap();
    t.write("dir/old", "old");
    // Both are there at once, so the new one has another inode.
    let new = t.dir.path().join("new");
    fs::create_dir(&new).unwrap();
    let home = t.open();
    t.scan(&home);
    let _reports = follow(&home);

    fs::remove_dir_all(t.path("dir")).unwrap();
    fs::rename(&new, t.path("dir")).unwrap();
    wait_until_same(&t);
    fs::create_dir(t.path("dir/deep")).unwrap();
    t.write("dir/deep/file", "x");
    wait_until_same(&t);
    let end = Instant::now() + Duration::from_secs(30);
    while !home.problems().is_empty() {
        assert!(Instant::now() < end, "{:?}", home.problems());
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn directories_renamed_and_made_again_while_they_are_read_are_followed() {
    let t = Fixture::new();
    let home = t.open();
    t.scan(&home);
    let _reports = follow(&home);
    let mut dice = Dice::new(1);
    for round in 0..150 {
        let (part, whole) = (t.path("part"), t.path(&format!("whole-{}", round / 2)));
        fs::create_dir_all(part.join("deep/er")).unwrap();
        for n in 0..3 {
            fs::write(part.join(format!("deep/er/{n}")), format!("{round} {n}")).unwrap();
            std::thread::sleep(Duration::from_millis(dice.below(8) as u64));
        }
        // Few enough at once not to be held back.
        if round % 10 == 1 {
            fs::remove_dir_all(&whole).unwrap();
        }
        let _taken = fs::rename(&part, &whole);
        std::thread::sleep(Duration::from_millis(dice.below(30) as u64));
    }
    wait_until_same(&t);
}

/// Random numbers from a seed.
struct Dice(blake3::OutputReader);

impl Dice {
    fn new(seed: u64) -> Self {
        Self(
            blake3::Hasher::new()
                .update(&seed.to_le_bytes())
                .finalize_xof(),
        )
    }

    fn below(&mut self, n: usize) -> usize {
        let mut bytes = [0; 8];
        self.0.fill(&mut bytes);
        (u64::from_le_bytes(bytes) % n as u64) as usize
    }

    fn pick<'a, T>(&mut self, things: &'a [T]) -> &'a T {
        &things[self.below(things.len())]
    }
}

/// Everything below a directory, itself first.
fn paths(dir: &Path, dirs_only: bool) -> Vec<PathBuf> {
    let mut out = vec![dir.to_owned()];
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let is_dir = fs::symlink_metadata(&path).unwrap().is_dir();
        if path.ends_with(".ccbt") {
            continue;
        } else if is_dir {
            out.extend(paths(&path, dirs_only));
        } else if !dirs_only {
            out.push(path);
        }
    }
    out
}

/// One random edit; most errors mean that it makes no sense here.
fn random_edit(root: &Path, dice: &mut Dice) {
    let name = ["a", "b", "c", "d", "e"][dice.below(5)];
    let (all, dirs) = (paths(root, false), paths(root, true));
    let target = dice.pick(&dirs).join(name);
    let any = dice.pick(&all).clone();
    let _refused = match dice.below(12) {
        0..=2 => fs::write(&target, noise(dice.below(256) as u8, dice.below(30_000))),
        3..=4 => fs::create_dir(&target),
        5 => symlink(name, &target),
        6 => fs::hard_link(&any, &target),
        7 if any.is_dir() && any != root => fs::remove_dir_all(&any),
        7 if any != root => fs::remove_file(&any),
        8 if !any.is_symlink() && any != root => fs::set_permissions(
            &any,
            fs::Permissions::from_mode(0o700 | dice.below(0o100) as u32),
        ),
        9 if any != root => {
            let (one, flags) = (any, rustix::fs::RenameFlags::EXCHANGE);
            let two = dice.pick(&all);
            let cwd = rustix::fs::CWD;
            rustix::fs::renameat_with(cwd, &one, cwd, two, flags).map_err(Into::into)
        }
        _ if any != root => fs::rename(&any, &target),
        _ => Ok(()),
    };
}

#[test]
fn any_edits_between_scans_are_shown() {
    for seed in 0..12 {
        println!("seed {seed}");
        let (t, mut dice) = (Fixture::new(), Dice::new(seed));
        let home = t.open();
        for _scan in 0..8 {
            for _edit in 0..dice.below(12) {
                random_edit(&t.path(""), &mut dice);
            }
            let report = loop {
                t.settle();
                match home.scan(&|_| ()) {
                    Err(ScanError::Held(_)) => home.confirm().unwrap(),
                    other => break other.unwrap(),
                }
            };
            assert!(report.blocked.is_empty(), "{report:?}");
            assert_eq!(t.shown(), t.on_disk());
        }
    }
}

/// What a thread that follows the home reports.
fn follow(home: &Home) -> mpsc::Receiver<Result<ScanReport, ScanError>> {
    let (told, tell) = mpsc::channel();
    let listener = move |result| drop(told.send(result));
    home.watch(Box::new(listener)).unwrap();
    tell
}

#[test]
fn the_home_of_something_else_is_not_entered() {
    let t = Fixture::new();
    fs::create_dir_all(t.path("theirs/.ccbt/displaced")).unwrap();
    t.write("theirs/.ccbt/home", "folder x\ndevice y\n");
    t.write("theirs/file", "not ours");
    t.write("theirs/.ccbt-tmp-5", "on its way there");
    fs::create_dir_all(t.path("dir/sub")).unwrap();
    t.write("dir/sub/file", "ours");
    let home = t.open();
    let report = t.scan(&home);
    assert_eq!(report.counts.nested, [b"theirs".to_vec()]);
    let state = t.ledger.lock().state.clone();
    assert!(state.lookup(Fid::ROOT, b"theirs").is_none());
    assert!(state.lookup(Fid::ROOT, b"dir").is_some());
    assert!(t.path("theirs/.ccbt-tmp-5").exists());

    // One that becomes another's stays as it was known.
    fs::create_dir(t.path("dir/.ccbt")).unwrap();
    t.write("dir/.ccbt/home", "folder x\ndevice y\n");
    fs::remove_file(t.path("dir/sub/file")).unwrap();
    t.write("dir/new", "not ours any more");
    let report = t.scan(&home);
    assert_eq!(report.counts.nested.len(), 2, "{report:?}");
    assert_eq!((report.read, report.removed), (0, 0));
    assert!(t.ledger.lock().state == state, "something was published");
}

#[test]
fn a_second_daemon_is_refused() {
    let t = Fixture::new();
    let home = t.open();
    let second = t.try_open().map(drop).unwrap_err();
    assert!(matches!(second, OpenHomeError::InUse(_)), "{second}");
    drop(home);
    drop(t.open());
}

#[test]
fn a_file_seen_being_renamed_is_not_read_again() {
    let t = Fixture::new();
    fs::create_dir(t.path("dir")).unwrap();
    t.write("file", noise(8, 300_000));
    let home = t.open();
    t.scan(&home);
    let reports = follow(&home);
    fs::rename(t.path("file"), t.path("dir/renamed")).unwrap();
    let renamed = std::iter::from_fn(|| reports.recv_timeout(Duration::from_secs(20)).ok());
    let found = renamed
        .map(Result::unwrap)
        .any(|report| report.renamed == 1);
    assert!(found, "it was not found renamed");
    // Reading it again would be done when there is nothing else to do.
    std::thread::sleep(Duration::from_millis(700));
    let read: u64 = reports.try_iter().map(|report| report.unwrap().read).sum();
    assert_eq!(read, 0);
    t.assert_same();
}

#[test]
fn a_home_that_is_there_again_goes_on_by_itself() {
    let t = Fixture::new();
    t.write("file", "one");
    let home = t.open();
    t.scan(&home);
    let away = t.dir.path().join("away");
    fs::rename(t.path(""), &away).unwrap();
    let error = home.scan(&|_| ()).unwrap_err();
    assert!(matches!(error, ScanError::Held(HeldReason::RootMissing)));
    let reports = follow(&home);
    // Something else is there for a while, and nothing of it is taken for ours.
    fs::create_dir(t.path("")).unwrap();
    t.write("stranger", "not ours");
    std::thread::sleep(Duration::from_millis(100));
    fs::remove_dir_all(t.path("")).unwrap();
    fs::write(away.join("file"), "two").unwrap();
    fs::rename(&away, t.path("")).unwrap();
    let mut all = std::iter::from_fn(|| reports.recv_timeout(Duration::from_secs(60)).ok());
    assert!(all.any(|report| report.is_ok_and(|report| report.read == 1)));
    assert_eq!(home.held_back(), None);
    t.assert_same();
}
