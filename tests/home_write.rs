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
use ccbt::folder::home::displaced::RestoreError;
use ccbt::folder::home::expire::{Expired, Retention};
use ccbt::folder::home::ledger::Ledger;
use ccbt::folder::home::marker::Marker;
use ccbt::folder::home::memory::MemoryLedger;
use ccbt::folder::home::origin::Why;
use ccbt::folder::home::problems::ProblemKind;
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

/// Nothing lies too short for it.
fn retention(max_bytes: Option<u64>) -> Retention {
    Retention {
        keep: Some(Duration::ZERO),
        max_bytes,
        at_least: Duration::ZERO,
    }
}

/// A home in which a peer has edited `sub/edited` and removed `sub/removed`.
fn displaced_two(t: &mut Fixture) -> Home {
    fs::create_dir(t.path("sub")).unwrap();
    fs::write(t.path("sub/edited"), "mine").unwrap();
    fs::write(t.path("sub/removed"), "unwanted").unwrap();
    let home = t.open();
    let sub = t.peer(|state, _| match state.lookup(Fid::ROOT, b"sub") {
        Some(Node::Dir(node)) => node.fid,
        other => panic!("{other:?}"),
    });
    let body = t.body("theirs");
    t.peer(|state, by| {
        let mut base = state.base(sub, b"edited").unwrap();
        state.write(&mut base, body, by).unwrap();
    });
    t.peer(|state, by| state.unlink(sub, b"removed", by).unwrap());
    eventually("both are displaced", || {
        t.displaced() == ["mine", "unwanted"]
    });
    eventually("the records are kept", || {
        let lying = home.displaced().unwrap();
        lying.len() == 2 && lying.iter().all(|one| one.origin.is_some())
    });
    home
}

/// Rows of the table about what is displaced.
fn rows(t: &Fixture) -> usize {
    let records = t.ledger.rows(&[&b"h"[..], &[0xff; 8]].concat()).len();
    records + t.ledger.rows(b"o").len()
}

#[test]
fn what_is_displaced_knows_where_it_was_and_goes_back_there() {
    let mut t = Fixture::new();
    let home = displaced_two(&mut t);
    let lying = home.displaced().unwrap();
    let of = |path: &[u8]| lying.iter().find(|one| one.path() == path).unwrap();
    let (edited, removed) = (of(b"sub/edited"), of(b"sub/removed"));
    let edited_by = edited.origin.as_ref().unwrap();
    assert_eq!(
        (edited_by.why, edited_by.by),
        (Why::Replaced, Some(Inc([2; 8])))
    );
    assert_eq!(removed.origin.as_ref().unwrap().why, Why::Removed);
    assert_eq!(rows(&t), 4);

    let taken = home.restore(edited.number, None, false).unwrap_err();
    assert!(matches!(taken, RestoreError::Taken), "{taken}");
    for bad in [
        &b".ccbt/x"[..],
        b"../x",
        b"/x",
        b"a//b",
        b"a/.ccbt/b",
        b".ccbt-tmp-1",
    ] {
        let refused = home.restore(edited.number, Some(bad), false).unwrap_err();
        assert!(matches!(refused, RestoreError::BadName), "{refused}");
    }
    assert_eq!(t.displaced(), ["mine", "unwanted"]);
    let path = home.restore(edited.number, None, true).unwrap();
    assert_eq!(path, b"sub/edited (restored)");
    assert_eq!(t.read("sub/edited (restored)").unwrap(), "mine");
    assert_eq!(t.read("sub/edited").unwrap(), "theirs");
    let path = home
        .restore(removed.number, Some(b"new/deep/name"), false)
        .unwrap();
    assert_eq!(path, b"new/deep/name");
    assert_eq!(rows(&t), 0, "nothing is known of it any more");
    eventually("it is part of the folder again", || {
        let state = t.ledger.lock().state.clone();
        let is_there = |dir, name: &[u8]| state.lookup(dir, name);
        let Some(Node::Dir(new)) = is_there(Fid::ROOT, b"new") else {
            return false;
        };
        let Some(Node::Dir(deep)) = is_there(new.fid, b"deep") else {
            return false;
        };
        is_there(deep.fid, b"name").is_some()
    });
    let unknown = home.restore(removed.number, None, false).unwrap_err();
    assert!(matches!(unknown, RestoreError::Unknown), "{unknown}");
}

#[test]
fn what_was_displaced_long_enough_ago_goes_and_what_is_written_stays() {
    let mut t = Fixture::new();
    let home = displaced_two(&mut t);
    let kept = Retention {
        at_least: Duration::from_secs(3600),
        ..retention(None)
    };
    assert!(
        home.displaced_due(&kept).unwrap().is_empty(),
        "within an hour"
    );
    let for_ever = Retention {
        keep: None,
        ..retention(None)
    };
    assert!(home.displaced_due(&for_ever).unwrap().is_empty());

    let lying = home.displaced().unwrap();
    let is_removed = |path: &PathBuf| fs::read_to_string(path).unwrap() == "unwanted";
    let mut paths = fs::read_dir(t.path(".ccbt/displaced"))
        .unwrap()
        .map(|e| e.unwrap().path());
    let open = fs::OpenOptions::new()
        .append(true)
        .open(paths.find(is_removed).unwrap())
        .unwrap();
    let due = home.displaced_due(&retention(None)).unwrap();
    assert_eq!(due.len(), 2);
    let mine = chunk_hash(b"mine");
    assert!(
        home.borrowed_by(&due).contains(&mine),
        "only the plain file has it"
    );
    assert_eq!(
        home.expire(&due).unwrap(),
        Expired {
            things: 1,
            bytes: 4
        }
    );
    assert_eq!(t.displaced(), ["unwanted"], "somebody has it open");
    assert!(!t.store.contains(&mine), "nobody counts on it any more");
    assert_eq!(rows(&t), 2);

    let stale = home.displaced_due(&retention(None)).unwrap();
    std::io::Write::write_all(&mut &open, b" but changed").unwrap();
    drop(open);
    assert_eq!(
        home.expire(&stale).unwrap(),
        Expired::default(),
        "it changed since"
    );
    let due = home.displaced_due(&retention(None)).unwrap();
    assert_eq!(home.expire(&due).unwrap().things, 1);
    assert_eq!((t.displaced(), rows(&t)), (Vec::new(), 0));
    assert_eq!(lying.len(), 2);
}

#[test]
fn the_oldest_goes_when_there_is_too_much() {
    let mut t = Fixture::new();
    let home = displaced_two(&mut t);
    let much = |max| Retention {
        keep: None,
        ..retention(Some(max))
    };
    assert!(home.displaced_due(&much(12)).unwrap().is_empty());
    let first = home.displaced().unwrap()[0].number;
    let due = home.displaced_due(&much(11)).unwrap();
    assert_eq!(due.len(), 1);
    home.expire(&due).unwrap();
    assert!(
        home.displaced()
            .unwrap()
            .iter()
            .all(|one| one.number != first)
    );
    assert_eq!(rows(&t), 2);
}

#[test]
fn records_of_what_the_user_took_away_go() {
    let mut t = Fixture::new();
    let home = displaced_two(&mut t);
    fs::remove_dir_all(t.path(".ccbt/displaced")).unwrap();
    assert!(home.displaced_due(&retention(None)).unwrap().is_empty());
    assert_eq!(rows(&t), 0);
    assert!(!t.store.contains(&chunk_hash(b"mine")));
}

/// The names in the folder's top directory.
fn shown(t: &Fixture) -> Vec<String> {
    let state = t.ledger.lock().state.clone();
    let names = state.list(Fid::ROOT).into_iter();
    names
        .map(|(name, _)| String::from_utf8(name.as_bytes().to_vec()).unwrap())
        .collect()
}

/// The size in the folder of a file in its top directory.
fn size_of(t: &Fixture, name: &[u8]) -> Option<u64> {
    match t.ledger.lock().state.lookup(Fid::ROOT, name) {
        Some(Node::File(file)) => Some(file.version.size),
        _ => None,
    }
}

#[test]
fn what_is_ignored_stays_out_of_the_folder_until_the_rules_change() {
    let mut t = Fixture::new();
    fs::write(t.path(".ccbtignore"), "*.log\nbuild/\n").unwrap();
    fs::write(t.path("a.log"), "log").unwrap();
    fs::write(t.path(".a.txt.swp"), "swap").unwrap();
    fs::write(t.path("a.txt"), "text").unwrap();
    fs::create_dir(t.path("build")).unwrap();
    fs::write(t.path("build/out"), "built").unwrap();
    let home = t.open();
    assert_eq!(shown(&t), [".ccbtignore", "a.txt"]);

    // What others publish is written and followed, whatever the rules say.
    t.create(Fid::ROOT, "theirs.log", "from the peer");
    eventually("it is written", || t.read("theirs.log").is_some());
    std::thread::sleep(Duration::from_millis(300));
    fs::write(t.path("theirs.log"), "edited here").unwrap();
    eventually("the edit is taken in", || {
        size_of(&t, b"theirs.log") == Some(11)
    });
    fs::write(t.path("b.log"), "another").unwrap();
    home.scan(&|_| ()).unwrap();
    assert_eq!(shown(&t), [".ccbtignore", "a.txt", "theirs.log"]);

    // Fewer rules: one look at everything. What is in the folder by then stays there when they come back.
    fs::write(t.path(".ccbtignore"), "*.log\n").unwrap();
    eventually("the directory is shared", || {
        shown(&t).contains(&"build".to_owned())
    });
    fs::write(t.path(".ccbtignore"), "*.log\nbuild/\n").unwrap();
    eventually("the rules are taken in", || {
        size_of(&t, b".ccbtignore") == Some(13)
    });
    home.scan(&|_| ()).unwrap();
    assert_eq!(shown(&t), [".ccbtignore", "a.txt", "build", "theirs.log"]);
    fs::write(t.path("build/new"), "not shared").unwrap();
    fs::write(t.path("build/out"), "shared").unwrap();
    home.scan(&|_| ()).unwrap();
    let state = t.ledger.lock().state.clone();
    let Some(Node::Dir(build)) = state.lookup(Fid::ROOT, b"build") else {
        panic!("build is gone")
    };
    assert_eq!(state.list(build.fid).len(), 1);
    assert!(
        matches!(state.lookup(build.fid, b"out"), Some(Node::File(out)) if out.version.size == 6)
    );
}

#[test]
fn a_directory_that_others_removed_goes_with_what_is_ignored_in_it() {
    let mut t = Fixture::new();
    fs::write(t.path(".ccbtignore"), "*.o\n").unwrap();
    fs::create_dir(t.path("src")).unwrap();
    fs::write(t.path("src/a.c"), "source").unwrap();
    fs::write(t.path("src/a.o"), "object").unwrap();
    let home = t.open();
    t.peer(|state, by| {
        let Some(Node::Dir(src)) = state.lookup(Fid::ROOT, b"src") else {
            panic!("src")
        };
        state.unlink(src.fid, b"a.c", by).unwrap();
        state.rmdir(Fid::ROOT, b"src", by).unwrap();
    });
    eventually("it is gone", || !t.path("src").exists());
    home.scan(&|_| ()).unwrap();
    assert_eq!(shown(&t), [".ccbtignore"]);
    let lying = home.displaced().unwrap();
    let src = lying.iter().find(|one| one.is_dir()).unwrap();
    assert_eq!(src.name(), b"src");
    let kept = t.path(&format!(".ccbt/displaced/{}-src/a.o", src.number));
    assert_eq!(fs::read(kept).unwrap(), b"object");
    assert_eq!(home.restore(src.number, None, false).unwrap(), b"src");
    assert_eq!(t.read("src/a.o").unwrap(), "object");
}

#[test]
fn what_cannot_be_part_of_the_folder_is_named() {
    let t = Fixture::new();
    fs::create_dir(t.path("sub")).unwrap();
    let fifo = std::process::Command::new("mkfifo")
        .arg(t.path("sub/pipe"))
        .status();
    assert!(fifo.unwrap().success());
    let home = t.open();
    let problems = home.problems();
    assert_eq!(problems.len(), 1, "{problems:?}");
    assert_eq!(
        (problems[0].kind, &problems[0].first[..]),
        (ProblemKind::Special, &[b"sub/pipe".to_vec()][..])
    );
    fs::remove_file(t.path("sub/pipe")).unwrap();
    eventually("it is not there any more", || home.problems().is_empty());
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
