//! Operations one by one: what random histories do not reach or do not look at closely.

use std::collections::BTreeSet;

use super::tests::*;
use super::*;

/// Replicas `A`, `B`, ... whose clocks follow one counter.
struct Devices {
    replicas: Vec<Replica>,
    now: u64,
}

impl Devices {
    fn new(count: u8) -> Self {
        Self {
            replicas: (0..count).map(|i| Replica::new([b'A' + i; 8])).collect(),
            now: 0,
        }
    }

    fn try_op(&mut self, device: usize, op: Op) -> Result<Vec<Change>, OpError> {
        self.now += 1;
        let before = Cached::of(&self.replicas[device].state);
        let changes = self.replicas[device].op(self.now, &op)?;
        let state = &self.replicas[device].state;
        before.check_reported(&Cached::of(state), &changes);
        check_derived(state);
        Ok(changes)
    }

    fn op(&mut self, device: usize, op: Op) {
        let done = self.try_op(device, op.clone());
        done.unwrap_or_else(|error| panic!("{op:?}: {error}"));
    }

    fn create(&mut self, device: usize, path: &str, text: &str) {
        self.op(device, Op::Create(path.into(), text.into(), FileKind::File));
    }

    fn pull(&mut self, to: usize, from: usize) {
        let from = self.replicas[from].clone();
        self.replicas[to].pull(&from);
        check_derived(&self.replicas[to].state);
    }

    /// Both ways, and the same at both ends.
    fn sync(&mut self, one: usize, two: usize) {
        self.pull(one, two);
        self.pull(two, one);
        assert!(self.replicas[one].state == self.replicas[two].state);
        assert_eq!(
            tree(&self.replicas[one].state),
            tree(&self.replicas[two].state)
        );
    }

    fn by(&mut self, device: usize) -> By {
        self.now += 1;
        let by = self.replicas[device].next(self.now);
        self.replicas[device].hlc = by.hlc.0;
        by
    }

    fn base(&self, device: usize, path: &str) -> Base {
        let state = &self.replicas[device].state;
        let (dir, name) = locate(state, path).unwrap();
        state.base(dir, name.as_bytes()).unwrap()
    }

    fn write(&mut self, device: usize, base: &mut Base, text: &str) {
        let by = self.by(device);
        let body = Body {
            content: content(text),
            size: text.len() as u64,
            mtime: seconds(by.hlc.0),
        };
        self.replicas[device].state.write(base, body, by).unwrap();
        check_derived(&self.replicas[device].state);
    }

    fn state(&mut self, device: usize) -> &mut State {
        &mut self.replicas[device].state
    }

    /// "path content" of every file, "path/" of every directory.
    fn shown(&self, device: usize) -> Vec<String> {
        let rows = tree(&self.replicas[device].state).into_iter();
        let lines = rows.map(|(path, row)| match row.file() {
            Some(file) => format!("{path} {}", file.content),
            None => format!("{path}/"),
        });
        lines.collect::<BTreeSet<String>>().into_iter().collect()
    }

    fn row(&self, device: usize, path: &str) -> FileRow {
        let tree = tree(&self.replicas[device].state);
        tree[path].file().unwrap().clone()
    }
}

fn s(text: &str) -> String {
    text.to_owned()
}

#[test]
fn an_open_file_is_written_on_what_it_was_opened_at() {
    let mut d = Devices::new(2);
    d.create(0, "/a", "r1");
    d.sync(0, 1);
    let mut base = d.base(0, "/a");
    d.op(1, Op::Write(s("/a"), s("theirs")));
    d.pull(0, 1);
    assert!(!d.replicas[0].state.is_current(&base));
    d.write(0, &mut base, "mine");
    assert_eq!(
        d.shown(0),
        ["/a mine", "/a (conflict BBBB 3) theirs"].map(s).sorted()
    );
    assert!(d.replicas[0].state.is_current(&base));
    d.write(0, &mut base, "mine again");
    assert_eq!(
        d.shown(0),
        ["/a mine again", "/a (conflict BBBB 3) theirs"]
            .map(s)
            .sorted()
    );
    d.sync(0, 1);
}

#[test]
fn an_open_file_that_others_removed_comes_back_with_its_directory() {
    let mut d = Devices::new(2);
    d.op(0, Op::Mkdir(s("/d")));
    d.op(0, Op::Mkdir(s("/d/e")));
    d.create(0, "/d/e/a", "r1");
    d.op(0, Op::SetXattr(s("/d/e/a"), s("x")));
    d.sync(0, 1);
    let mut base = d.base(0, "/d/e/a");
    for op in [
        Op::Unlink(s("/d/e/a")),
        Op::Rmdir(s("/d/e")),
        Op::Rmdir(s("/d")),
    ] {
        d.op(1, op);
    }
    d.pull(0, 1);
    assert!(d.shown(0).is_empty());
    assert_eq!(
        d.replicas[0].state.entries().count(),
        0,
        "nothing is left behind"
    );
    d.write(0, &mut base, "r2");
    assert_eq!(d.shown(0), ["/d/", "/d/e/", "/d/e/a r2"]);
    assert_eq!(d.row(0, "/d/e/a").xattrs[&b"user.x"[..]], "x");
    d.sync(0, 1);
}

#[test]
fn an_open_file_that_lost_its_name_takes_it_back_but_not_from_a_directory() {
    let mut d = Devices::new(2);
    d.create(0, "/a", "r1");
    d.sync(0, 1);
    let mut base = d.base(0, "/a");
    let mut theirs = d.base(1, "/a");
    d.write(0, &mut base, "mine");
    d.write(1, &mut theirs, "theirs");
    d.pull(0, 1);
    assert_eq!(
        d.shown(0),
        ["/a theirs", "/a (conflict AAAA 3) mine"].map(s).sorted()
    );
    d.write(0, &mut base, "mine again");
    assert_eq!(
        d.shown(0),
        ["/a mine again", "/a (conflict BBBB 4) theirs"]
            .map(s)
            .sorted()
    );

    let mut d = Devices::new(2);
    d.op(0, Op::Mkdir(s("/d")));
    d.create(1, "/d", "r1");
    let mut base = d.base(1, "/d");
    d.pull(1, 0);
    d.write(1, &mut base, "r2");
    d.write(1, &mut base, "r3");
    assert_eq!(
        d.shown(1),
        ["/d (conflict BBBB 3) r3", "/d/"],
        "keeps the name it was given"
    );
}

#[test]
fn a_sibling_that_is_written_becomes_an_ordinary_file() {
    let mut d = Devices::new(2);
    d.create(0, "/a.txt", "r1");
    d.create(1, "/a.txt", "r2");
    d.sync(0, 1);
    let sibling = "/a (conflict AAAA 2).txt";
    let mut base = d.base(0, sibling);
    d.write(0, &mut base, "r3");
    assert_eq!(base.key.name, base.shown);
    d.write(0, &mut base, "r2");
    assert_eq!(d.shown(0), [format!("{sibling} r2"), s("/a.txt r2")]);
    assert_eq!(
        d.row(0, sibling).inode,
        sibling,
        "two files of equal content are no link"
    );
}

#[test]
fn rename_replaces_as_posix_says() {
    let mut d = Devices::new(1);
    for path in ["/d", "/d/e", "/empty", "/full"] {
        d.op(0, Op::Mkdir(s(path)));
    }
    d.create(0, "/full/x", "r1");
    d.create(0, "/f", "r2");
    let refused = [
        ("/d", "/full", OpError::NotEmpty),
        ("/d", "/f", OpError::NotDirectory),
        ("/f", "/d", OpError::IsDirectory),
        ("/d", "/d/e/x", OpError::Invalid),
        ("/d", "/d/e", OpError::Invalid),
        ("/d/e", "/d", OpError::NotEmpty),
        ("/none", "/x", OpError::NotFound),
        ("/f", "/.", OpError::Invalid),
    ];
    for (from, to, error) in refused {
        assert_eq!(
            d.try_op(0, Op::Rename(s(from), s(to))),
            Err(error),
            "{from} {to}"
        );
    }
    d.op(0, Op::Rename(s("/full"), s("/empty")));
    assert_eq!(
        d.shown(0),
        ["/d/", "/d/e/", "/empty/", "/empty/x r1", "/f r2"]
    );
    let by = d.by(0);
    let names: [(Fid, &[u8]); 2] = [(Fid::ROOT, b"f"), (Fid::ROOT, b"d")];
    let done = d
        .state(0)
        .rename(names[0], names[1], RenameMode::NoReplace, by);
    assert_eq!(done, Err(OpError::Exists));
    let vv = d.state(0).vv().clone();
    d.op(0, Op::Rename(s("/f"), s("/f")));
    assert_eq!(*d.state(0).vv(), vv, "nothing to do makes no dot");
}

#[test]
fn exchange_is_one_operation() {
    let mut d = Devices::new(2);
    d.op(0, Op::Mkdir(s("/d")));
    d.create(0, "/d/x", "r1");
    d.create(0, "/f", "r2");
    d.op(0, Op::SetXattr(s("/f"), s("v")));
    d.sync(0, 1);
    let before = d.state(0).vv().clone();
    d.op(0, Op::Exchange(s("/d"), s("/f")));
    assert_eq!(d.shown(0), ["/d r2", "/f/", "/f/x r1"]);
    assert_eq!(d.row(0, "/d").xattrs[&b"user.x"[..]], "v");
    let inc = d.replicas[0].inc;
    assert_eq!(d.state(0).vv().get(inc), before.get(inc) + 1);
    assert_eq!(
        d.try_op(0, Op::Exchange(s("/f"), s("/f/x"))),
        Err(OpError::Invalid)
    );
    assert_eq!(
        d.try_op(0, Op::Exchange(s("/f/x"), s("/f"))),
        Err(OpError::Invalid)
    );
    assert_eq!(
        d.try_op(0, Op::Exchange(s("/f"), s("/none"))),
        Err(OpError::NotFound)
    );
    d.op(1, Op::Write(s("/f"), s("r3")));
    d.sync(0, 1);
    assert_eq!(
        d.shown(0),
        ["/d r2", "/f (conflict BBBB 10) r3", "/f/", "/f/x r1"]
    );
}

#[test]
fn directories_that_entered_each_other_can_be_used_and_settle() {
    let mut d = Devices::new(2);
    for path in ["/d", "/e"] {
        d.op(0, Op::Mkdir(s(path)));
    }
    d.sync(0, 1);
    d.op(0, Op::Exchange(s("/d"), s("/e")));
    d.op(0, Op::Rename(s("/d"), s("/e/x")));
    d.op(1, Op::Rename(s("/d"), s("/e/y")));
    d.sync(0, 1);
    assert_eq!(d.replicas[0].state.graph.displaced.len(), 1);
    let shown = d.shown(0);
    assert_eq!(shown.len(), 2, "{shown:?}");
    d.op(0, Op::Mkdir(s("/new")));
    d.op(0, Op::Rename(s("/new"), s("/other")));
    assert!(
        d.replicas[0].state.graph.displaced.is_empty(),
        "pinned by the next move"
    );
    d.sync(0, 1);
    assert_eq!(d.shown(0)[..2], shown[..]);
}

#[test]
fn xattrs_follow_the_file_and_make_no_sibling() {
    let mut d = Devices::new(2);
    d.create(0, "/a", "r1");
    d.op(0, Op::SetXattr(s("/a"), s("v1")));
    d.op(0, Op::Write(s("/a"), s("r2")));
    d.op(0, Op::Rename(s("/a"), s("/b")));
    d.op(0, Op::Link(s("/b"), s("/c")));
    for path in ["/b", "/c"] {
        assert_eq!(d.row(0, path).xattrs[&b"user.x"[..]], "v1");
        assert_eq!(d.row(0, path).inode, "/b");
    }
    d.sync(0, 1);
    d.op(0, Op::SetXattr(s("/b"), s("v2")));
    d.op(1, Op::SetXattr(s("/c"), s("v3")));
    d.sync(0, 1);
    assert_eq!(d.shown(0), ["/b r2", "/c r2"]);
    assert_eq!(
        (
            d.row(0, "/b").xattrs[&b"user.x"[..]].clone(),
            d.row(0, "/c").inode
        ),
        ("v3".into(), s("/b"))
    );
    let by = d.by(0);
    let target = Target::Name(Fid::ROOT, b"b");
    d.state(0).remove_xattr(target, b"user.x", by).unwrap();
    assert!(d.row(0, "/c").xattrs.is_empty());
    let by = d.by(0);
    let done = d.state(0).remove_xattr(target, b"user.x", by);
    assert_eq!(done, Err(OpError::NotFound));
}

#[test]
fn the_root_and_directories_have_attributes() {
    let mut d = Devices::new(2);
    let by = d.by(0);
    d.state(0).chmod(Target::Dir(Fid::ROOT), 0o711, by).unwrap();
    let by = d.by(0);
    d.state(0)
        .set_xattr(Target::Dir(Fid::ROOT), "user.r".into(), "1".into(), by)
        .unwrap();
    d.sync(0, 1);
    let root = d.state(1).dir(Fid::ROOT).unwrap();
    assert_eq!(
        (root.mode, root.xattrs.len(), root.ghost),
        (0o711, 1, false)
    );
    assert_eq!(
        d.state(1).entries().map(|(key, _)| key).collect::<Vec<_>>(),
        [Key::head(Fid::ROOT)]
    );
}

#[test]
fn a_time_set_alone_applies_to_that_content_only() {
    let mut d = Devices::new(2);
    d.create(0, "/a", "r1");
    d.sync(0, 1);
    d.op(0, Op::SetTimes(s("/a"), 77));
    assert_eq!(d.row(0, "/a").mtime, seconds(77));
    d.op(1, Op::Write(s("/a"), s("r2")));
    d.sync(0, 1);
    assert_eq!(d.shown(0), ["/a r2"]);
    assert_eq!(d.row(0, "/a").mtime, seconds(4), "the write's own time");
    d.op(0, Op::SetTimes(s("/a"), 88));
    d.op(0, Op::Chmod(s("/a"), 0o600));
    d.op(0, Op::Rename(s("/a"), s("/b")));
    assert_eq!(
        (d.row(0, "/b").mtime, d.row(0, "/b").mode),
        (seconds(88), 0o600)
    );
}

#[test]
fn names_are_checked_and_siblings_keep_255_bytes() {
    let mut d = Devices::new(2);
    let long = "n".repeat(255);
    for bad in [&b""[..], b".", b"..", b"a/b", b"a\0b", &[b'x'; 256]] {
        let by = d.by(0);
        assert_eq!(
            d.state(0).mkdir(Fid::ROOT, bad, 0o755, by),
            Err(OpError::Invalid)
        );
    }
    d.create(0, &format!("/{long}"), "r1");
    d.create(1, &format!("/{long}"), "r2");
    d.sync(0, 1);
    let names: Vec<Name> = d
        .state(0)
        .list(Fid::ROOT)
        .into_iter()
        .map(|(name, _)| name)
        .collect();
    assert_eq!(names.len(), 2);
    assert!(
        names.iter().all(|name| Name::is_valid(name.as_bytes())),
        "{names:?}"
    );
    let sibling = names.iter().map(text).find(|name| *name != long).unwrap();
    assert!(sibling.ends_with("n (conflict AAAA 8)"), "{sibling}");
    d.op(0, Op::Unlink(format!("/{sibling}")));
    assert_eq!(d.shown(0), [format!("/{long} r2")]);
}

#[test]
fn a_taken_sibling_name_is_numbered() {
    let mut d = Devices::new(2);
    d.create(0, "/a", "r1");
    d.create(1, "/a", "r2");
    d.create(1, "/a (conflict AAAA 2)", "r3");
    d.create(1, "/a (conflict AAAA 2) 2", "r4");
    d.sync(0, 1);
    let all = [
        "/a r2",
        "/a (conflict AAAA 2) r3",
        "/a (conflict AAAA 2) 2 r4",
        "/a (conflict AAAA 2) 3 r1",
    ];
    assert_eq!(d.shown(0), all.map(s).sorted());
    d.op(0, Op::Unlink(s("/a")));
    d.op(0, Op::Unlink(s("/a (conflict AAAA 2)")));
    assert_eq!(
        d.shown(0),
        [s(all[2]), s(all[3])].sorted(),
        "pinned by the removal of the main file"
    );
}

#[test]
fn a_file_that_arrives_under_a_siblings_name_gets_it() {
    let mut d = Devices::new(3);
    d.create(0, "/a", "r1");
    d.create(1, "/a", "r2");
    d.create(2, "/a (conflict AAAA 2)", "r3");
    d.pull(0, 1);
    let before = Cached::of(&d.replicas[0].state);
    let from = d.replicas[2].clone();
    let changes = d.replicas[0].pull(&from);
    before.check_reported(&Cached::of(&d.replicas[0].state), &changes);
    let all = [
        "/a r2",
        "/a (conflict AAAA 2) r3",
        "/a (conflict AAAA 2) 2 r1",
    ];
    assert_eq!(d.shown(0), all.map(s).sorted());
}

#[test]
fn a_ghost_goes_when_others_move_the_last_directory_out_of_it() {
    let mut d = Devices::new(3);
    d.op(0, Op::Mkdir(s("/d")));
    d.sync(0, 1);
    d.op(0, Op::Rmdir(s("/d")));
    d.op(1, Op::Mkdir(s("/d/x")));
    d.pull(0, 1);
    assert_eq!(d.shown(0), ["/d/", "/d/x/"]);
    d.op(1, Op::Rename(s("/d/x"), s("/x")));
    d.pull(0, 1);
    assert_eq!(d.shown(0), ["/x/"]);
}

#[test]
fn a_new_tag_renames_siblings() {
    let mut d = Devices::new(2);
    d.create(0, "/a", "r1");
    d.create(1, "/a", "r2");
    d.sync(0, 1);
    d.state(0).tag = conflict_tag(|inc| Some(format!("laptop-{}", char::from(inc.0[0]))));
    let changes = d.state(0).rename_siblings();
    assert_eq!(changes, [Change::Listing { dir: Fid::ROOT }]);
    assert_eq!(
        d.shown(0),
        ["/a r2", "/a (conflict laptop-A 1970-01-01 00-00-00) r1"]
            .map(s)
            .sorted()
    );
}

#[test]
fn a_directory_born_twice_at_a_name_is_another() {
    let mut d = Devices::new(1);
    d.op(0, Op::Mkdir(s("/d")));
    let first = locate(&d.replicas[0].state, "/d/x").unwrap().0;
    assert_eq!(first, Fid::born(Fid::ROOT, 0, b"d"));
    d.op(0, Op::Rename(s("/d"), s("/e")));
    d.op(0, Op::Mkdir(s("/d")));
    let second = locate(&d.replicas[0].state, "/d/x").unwrap().0;
    assert_eq!(second, Fid::born(Fid::ROOT, 1, b"d"));
    let path = d.state(0).path_of(first).unwrap();
    assert_eq!(path.iter().map(text).collect::<Vec<_>>(), ["e"]);
    assert_eq!(
        d.state(0).birth(second).unwrap().steps(),
        [(Name::from(&b"d"[..]), 1)]
    );
}

#[test]
fn directories_nest_to_a_limit() {
    let mut d = Devices::new(1);
    let mut path = String::new();
    for _ in 0..BIRTH_LEVELS_MAX {
        path += "/d";
        d.op(0, Op::Mkdir(path.clone()));
    }
    let done = d.try_op(0, Op::Mkdir(path.clone() + "/d"));
    assert_eq!(done, Err(OpError::TooDeep));
    d.create(0, &(path + "/f"), "r1");
}

#[test]
fn entries_are_what_has_or_is_referred_to_by_values() {
    let mut d = Devices::new(2);
    d.op(0, Op::Mkdir(s("/d")));
    let keys = |d: &Devices, device: usize| -> Vec<Key> {
        d.replicas[device]
            .state
            .entries()
            .map(|(key, _)| key)
            .collect()
    };
    let dir = Fid::born(Fid::ROOT, 0, b"d");
    assert_eq!(keys(&d, 0), [Key::head(Fid::ROOT), Key::head(dir)]);
    d.sync(0, 1);
    d.state(0).take_dirty();
    d.create(0, "/d/f", "r1");
    let file = Key::file(dir, Name::from(&b"f"[..]));
    assert!(d.state(0).take_dirty().contains(&file));
    assert_eq!(
        keys(&d, 0),
        [Key::head(Fid::ROOT), Key::head(dir), file.clone()]
    );
    let from: Vec<Key> = d
        .state(0)
        .entries_from(file.clone())
        .map(|(key, _)| key)
        .collect();
    assert_eq!(from, std::slice::from_ref(&file));
    d.op(1, Op::Rmdir(s("/d")));
    assert_eq!(keys(&d, 1), []);
    d.pull(1, 0);
    // The ghost has a head for its file and no value; nothing names the root as parent any more.
    assert_eq!(keys(&d, 1), [Key::head(dir), file]);
    d.op(1, Op::Unlink(s("/d/f")));
    assert_eq!(d.shown(1), ["/d/"], "an operation in a ghost makes it real");
}

#[test]
fn forged_dots_both_stay() {
    let mut d = Devices::new(3);
    d.replicas[1].inc = d.replicas[0].inc;
    d.create(0, "/a", "r1");
    d.now = 0;
    d.create(1, "/a", "r2");
    d.sync(0, 1);
    assert_eq!(d.shown(0).len(), 2);
    d.pull(2, 1);
    let name = d.shown(2)[0].split(" r").next().unwrap().to_owned();
    let done = d.try_op(2, Op::Write(name, s("r3")));
    assert!(done.is_ok());
    d.sync(0, 2);
    assert!(d.shown(0).iter().any(|row| row.ends_with("r3")));
}

type Entries = Vec<(Key, Entry)>;

#[test]
fn entries_no_state_has_are_refused() {
    let mut d = Devices::new(1);
    d.op(0, Op::Mkdir(s("/d")));
    d.create(0, "/d/f", "r1");
    d.op(0, Op::Write(s("/d/f"), s("r2")));
    let state = d.replicas[0].state.clone();
    let entries: Entries = state
        .entries()
        .map(|(key, entry)| (key, entry.to_entry()))
        .collect();
    let refused = |change: fn(&mut Entries)| {
        let mut entries = entries.clone();
        change(&mut entries);
        let whole = State::from_entries(entries.clone(), state.vv().clone(), model_tag());
        let mut other = State::new(model_tag());
        let pruned = entries.into_iter().map(|(key, entry)| (key, Some(entry)));
        let merged = other.merge_entries(pruned, state.vv());
        let error = whole.unwrap_err();
        assert_eq!(merged, Err(error.clone()));
        assert!(
            other == State::new(model_tag()),
            "a refused merge changed something"
        );
        error
    };
    let (dir, file) = (entries[1].0.dir, entries[2].0.clone());
    let no_head = refused(|entries| drop(entries.remove(1)));
    assert_eq!(no_head, EntryError::NoHead(dir));
    let kind = refused(|entries| entries[2].1 = entries[1].1.clone());
    assert_eq!(kind, EntryError::Kind(file.clone()));
    let birth = refused(|entries| {
        if let Entry::Head(head) = &mut entries[1].1 {
            head.birth = BirthPath::root();
        }
    });
    assert_eq!(birth, EntryError::Birth(dir));
    let empty = refused(|entries| entries[2].1 = Entry::File(FileEntry::default()));
    assert_eq!(empty, EntryError::Malformed(file.clone()));
    let twice = refused(|entries| {
        if let Entry::File(entry) = &mut entries[2].1 {
            entry.versions.push(entry.versions[0].clone());
        }
    });
    assert_eq!(twice, EntryError::Malformed(file));
    let root = refused(|entries| {
        if let [(_, Entry::Head(root)), (_, Entry::Head(head)), ..] = &mut entries[..] {
            root.places.clone_from(&head.places);
        }
    });
    assert_eq!(root, EntryError::RootPlace);
}

/// Lists as a tree shows them: in byte order.
trait Sorted {
    fn sorted(self) -> Self;
}

impl<const N: usize> Sorted for [String; N] {
    fn sorted(mut self) -> Self {
        self.sort();
        self
    }
}
