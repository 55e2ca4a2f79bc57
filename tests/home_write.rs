//! A home on a real directory is written: what a peer does to the folder is done to the plain files, and nothing of the
//! user's goes.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use ccbt::clock;
use ccbt::folder::content::{ChunkRef, ContentWriter};
use ccbt::folder::home::marker::Marker;
use ccbt::folder::home::memory::MemoryLedger;
use ccbt::folder::home::{Home, HomeOptions};
use ccbt::folder::state::{
    Body, By, Content, Fid, FileKind, Hlc, Inc, NewFile, Node, RenameMode, State, Target, Time,
};
use ccbt::folder::tree::{NodeKind, Nodes};
use ccbt_xet::disk::RealDisk;
use ccbt_xet::hash::{NodeId, chunk_hash};
use ccbt_xet::store::{Store, StoreOptions};
use tempfile::TempDir;

/// A content of one chunk has no nodes.
struct NoNodes;

impl Nodes for NoNodes {
    type Error = Infallible;

    fn get(&self, _kind: NodeKind, _id: &NodeId) -> Result<Option<Bytes>, Infallible> {
        Ok(None)
    }

    fn put(&self, _kind: NodeKind, _id: &NodeId, _bytes: Bytes) -> Result<(), Infallible> {
        unreachable!("a content of one chunk has no nodes")
    }
}

struct Fixture {
    dir: TempDir,
    ledger: Arc<MemoryLedger>,
    store: Arc<Store>,
    hlc: u64,
}

impl Fixture {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("home")).unwrap();
        let path = dir.path().join("state/store");
        fs::create_dir_all(&path).unwrap();
        let store = Store::open(&path, Arc::new(RealDisk), StoreOptions::default()).unwrap();
        Self {
            dir,
            ledger: Arc::new(MemoryLedger::new(Inc([1; 8]))),
            store: Arc::new(store),
            hlc: 1 << 60,
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join("home").join(name)
    }

    /// Opens the home, scans it and has it follow.
    fn open(&self) -> Home {
        let options = HomeOptions {
            marker: Marker {
                folder: "f0".into(),
                device: "d0".into(),
            },
            state_dir: self.dir.path().join("state"),
            known_homes: Vec::new(),
            space: 0,
        };
        let clock = Arc::new(clock::unix_nanos);
        let (ledger, store) = (self.ledger.clone(), self.store.clone());
        let home = Home::open(&self.path(""), ledger, store, clock, &options).unwrap();
        std::thread::sleep(Duration::from_millis(130));
        home.scan(&|_| ()).unwrap();
        home.watch(Box::new(|_| ())).unwrap();
        home
    }

    fn body(&self, text: &str) -> Body {
        let hash = chunk_hash(text.as_bytes());
        self.store.put_chunk(&hash, text.as_bytes()).unwrap();
        let mut writer = ContentWriter::new(&NoNodes);
        let len = text.len() as u32;
        writer.push(ChunkRef { hash, len }).unwrap();
        let (content, size) = writer.finish().unwrap();
        Body {
            content: Content::from(&content[..]),
            size,
            mtime: Time {
                secs: 1_500_000_000,
                nanos: 123_456_789,
            },
        }
    }

    /// A peer does something.
    fn peer<R>(&mut self, act: impl FnOnce(&mut State, By) -> R) -> R {
        self.hlc += 1;
        let by = By {
            inc: Inc([2; 8]),
            hlc: Hlc(self.hlc),
        };
        act(&mut self.ledger.lock().state, by)
    }

    fn create(&mut self, dir: Fid, name: &str, text: &str) {
        let file = NewFile {
            kind: FileKind::File,
            mode: 0o640,
            body: self.body(text),
        };
        self.peer(|state, by| state.create(dir, name.as_bytes(), file, by).unwrap());
    }

    fn edit(&mut self, name: &str, text: &str) {
        let body = self.body(text);
        self.peer(|state, by| {
            let mut base = state.base(Fid::ROOT, name.as_bytes()).unwrap();
            state.write(&mut base, body, by).unwrap();
        });
    }

    fn mkdir(&mut self, name: &str) -> Fid {
        self.peer(|state, by| {
            state.mkdir(Fid::ROOT, name.as_bytes(), 0o750, by).unwrap();
            match state.lookup(Fid::ROOT, name.as_bytes()) {
                Some(Node::Dir(node)) => node.fid,
                other => panic!("{other:?}"),
            }
        })
    }

    fn read(&self, name: &str) -> Option<String> {
        fs::read_to_string(self.path(name)).ok()
    }

    fn displaced(&self) -> Vec<String> {
        let Ok(entries) = fs::read_dir(self.path(".ccbt/displaced")) else {
            return Vec::new();
        };
        let mut texts: Vec<String> = entries
            .map(|entry| fs::read_to_string(entry.unwrap().path()).unwrap())
            .collect();
        texts.sort();
        texts
    }
}

fn eventually(what: &str, ready: impl Fn() -> bool) {
    let start = Instant::now();
    while !ready() {
        assert!(start.elapsed() < Duration::from_secs(20), "never: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_peers_edits_reach_the_plain_files() {
    let mut t = Fixture::new();
    fs::write(t.path("edited"), "mine").unwrap();
    fs::write(t.path("removed"), "unwanted").unwrap();
    fs::write(t.path("old name"), "moved").unwrap();
    let ino = fs::metadata(t.path("old name")).unwrap().ino();
    let _home = t.open();
    let dir = t.mkdir("dir");
    t.create(dir, "new", "from the peer");
    t.edit("edited", "theirs");
    t.peer(|state, by| state.unlink(Fid::ROOT, b"removed", by).unwrap());
    t.peer(|state, by| {
        let (from, to) = ((Fid::ROOT, &b"old name"[..]), (dir, &b"name"[..]));
        state.rename(from, to, RenameMode::NoReplace, by).unwrap();
    });
    eventually("everything is written", || {
        t.read("dir/new").as_deref() == Some("from the peer")
            && t.read("edited").as_deref() == Some("theirs")
            && t.read("dir/name").as_deref() == Some("moved")
            && !t.path("removed").exists()
            && !t.path("old name").exists()
    });
    let meta = fs::metadata(t.path("dir/new")).unwrap();
    let modified = (meta.mtime(), meta.mtime_nsec());
    assert_eq!(meta.permissions().mode() & 0o777, 0o640);
    assert_eq!(modified, (1_500_000_000, 123_456_789));
    assert_eq!(fs::metadata(t.path("dir/name")).unwrap().ino(), ino);
    assert_eq!(t.displaced(), ["mine", "unwanted"]);

    let target = Target::Name(dir, b"new");
    t.peer(|state, by| state.chmod(target, 0o600, by).unwrap());
    eventually("the mode is set", || {
        let meta = fs::metadata(t.path("dir/new")).unwrap();
        meta.permissions().mode() & 0o777 == 0o600
    });
}

#[test]
fn nothing_of_what_is_written_comes_back_as_an_edit() {
    let mut t = Fixture::new();
    let home = t.open();
    let dir = t.mkdir("dir");
    t.create(dir, "file", "theirs");
    eventually("it is written", || t.read("dir/file").is_some());
    std::thread::sleep(Duration::from_millis(500));
    home.scan(&|_| ()).unwrap();
    let state = t.ledger.lock().state.clone();
    assert_eq!(state.vv().get(Inc([1; 8])), 0, "published what nobody did");
}

#[test]
fn an_edit_on_each_side_leaves_both() {
    let mut t = Fixture::new();
    fs::write(t.path("file.txt"), "base").unwrap();
    let _home = t.open();
    fs::write(t.path("file.txt"), "the user's").unwrap();
    t.edit("file.txt", "the peer's");
    let texts = || -> BTreeMap<String, String> {
        let entries = fs::read_dir(t.path("")).unwrap();
        let files = entries.filter_map(|entry| {
            let name = entry.unwrap().file_name().into_string().unwrap();
            Some((name.clone(), t.read(&name)?))
        });
        files.collect()
    };
    eventually("both are there", || {
        let texts = texts();
        let has = |wanted: &str| texts.values().any(|text| text == wanted);
        texts.len() == 2 && has("the user's") && has("the peer's")
    });
}

#[test]
fn a_hole_is_written_as_a_hole() {
    let mut t = Fixture::new();
    let size = 3u64 << 30;
    {
        let file = fs::File::create(t.path("sparse")).unwrap();
        file.write_all_at(b"start", 0).unwrap();
        file.write_all_at(b"in the middle", size / 2).unwrap();
        file.set_len(size).unwrap();
    }
    let _home = t.open();
    let body = match t.ledger.lock().state.lookup(Fid::ROOT, b"sparse") {
        Some(Node::File(node)) => Body {
            content: node.version.content.clone(),
            size: node.version.size,
            mtime: node.mtime,
        },
        other => panic!("{other:?}"),
    };
    let file = NewFile {
        kind: FileKind::File,
        mode: 0o644,
        body,
    };
    t.peer(|state, by| state.create(Fid::ROOT, b"copy", file, by).unwrap());
    eventually("it is written", || t.path("copy").exists());
    let copy = fs::File::open(t.path("copy")).unwrap();
    let meta = copy.metadata().unwrap();
    assert_eq!(meta.len(), size);
    assert!(meta.blocks() * 512 < 4 << 20, "{} blocks", meta.blocks());
    let mut bytes = [0; 20];
    copy.read_exact_at(&mut bytes, size / 2 - 4).unwrap();
    assert_eq!(&bytes, b"\0\0\0\0in the middle\0\0\0");
    copy.read_exact_at(&mut bytes[..6], 0).unwrap();
    assert_eq!(&bytes[..6], b"start\0");
}
