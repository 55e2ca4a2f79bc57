//! The volume in memory: what programs see, and invariants under random operations.

use proptest::prelude::*;

use super::*;
use crate::Time;

const ROOT_USER: Caller = Caller { uid: 0, gid: 0 };
const USER: Caller = Caller {
    uid: 1000,
    gid: 100,
};
const WRITE: OpenMode = OpenMode {
    read: true,
    write: true,
    append: false,
    truncate: false,
};
const CAPACITY: u64 = 64 * PAGE;

fn volume() -> MemoryVolume {
    MemoryVolume::new(ROOT_USER, CAPACITY)
}

fn create(volume: &MemoryVolume, name: &str) -> (Ino, Handle) {
    let (attr, opened) = volume
        .create(Ino::ROOT, name.as_bytes(), 0o644, WRITE, USER)
        .expect("create");
    (attr.ino, opened.handle)
}

fn file(volume: &MemoryVolume, name: &str, content: &[u8]) -> Ino {
    let (ino, handle) = create(volume, name);
    volume.write(ino, handle, 0, content).unwrap();
    volume.release(ino, handle);
    ino
}

fn dir(volume: &MemoryVolume, parent: Ino, name: &str) -> Ino {
    volume
        .mkdir(parent, name.as_bytes(), 0o755, USER)
        .unwrap()
        .ino
}

fn read(volume: &MemoryVolume, ino: Ino) -> Result<Bytes, VolumeError> {
    let (send, receive) = std::sync::mpsc::channel();
    let reply = Reply::new(move |result| send.send(result).unwrap());
    volume.read(ino, Handle(0), 0, u32::MAX, reply);
    receive.recv().unwrap()
}

fn names(volume: &MemoryVolume, dir: Ino) -> Vec<String> {
    let handle = volume.opendir(dir).unwrap();
    let rows = volume.readdir(dir, handle, 0, usize::MAX).unwrap();
    volume.releasedir(dir, handle);
    rows.iter()
        .skip(2)
        .map(|row| String::from_utf8_lossy(&row.name).into_owned())
        .collect()
}

#[test]
fn writes_are_read_back_and_counted() {
    let volume = volume();
    let ino = file(&volume, "a", b"hello");
    assert_eq!(read(&volume, ino).unwrap(), "hello");
    let attr = volume.getattr(ino).unwrap();
    assert_eq!(
        (attr.size, attr.blocks, attr.nlink, attr.uid),
        (5, 8, 1, USER.uid)
    );
    let free = volume.statfs().unwrap().bytes_free;
    assert_eq!(free, CAPACITY - PAGE);
}

#[test]
fn appends_go_to_the_volumes_own_end() {
    let volume = volume();
    let ino = file(&volume, "log", b"one ");
    let append = OpenMode {
        append: true,
        ..WRITE
    };
    let handle = volume.open(ino, append).unwrap().handle;
    volume.write(ino, handle, 0, b"two").unwrap();
    assert_eq!(read(&volume, ino).unwrap(), "one two");
}

#[test]
fn a_file_lives_until_it_is_unnamed_closed_and_forgotten() {
    let volume = volume();
    let (ino, handle) = create(&volume, "a");
    volume.write(ino, handle, 0, b"still here").unwrap();
    volume.unlink(Ino::ROOT, b"a").unwrap();
    assert_eq!(volume.lookup(Ino::ROOT, b"a"), Err(VolumeError::NotFound));
    assert_eq!(volume.getattr(ino).unwrap().nlink, 0);
    volume.forget(ino);
    assert_eq!(read(&volume, ino).unwrap(), "still here");
    assert_eq!(
        volume.link(ino, Ino::ROOT, b"again"),
        Err(VolumeError::NotFound)
    );
    volume.release(ino, handle);
    assert_eq!(volume.getattr(ino), Err(VolumeError::NotFound));
    assert_eq!(volume.statfs().unwrap().bytes_free, CAPACITY);

    let ino = file(&volume, "b", b"x");
    volume.unlink(Ino::ROOT, b"b").unwrap();
    assert!(volume.getattr(ino).is_ok(), "the kernel still refers to it");
    volume.forget(ino);
    assert_eq!(volume.getattr(ino), Err(VolumeError::NotFound));
    assert_eq!(volume.inodes(), 1);
}

#[test]
fn hard_links_are_one_file() {
    let volume = volume();
    let ino = file(&volume, "a", b"x");
    let attr = volume.link(ino, Ino::ROOT, b"b").unwrap();
    assert_eq!((attr.ino, attr.nlink), (ino, 2));
    volume.unlink(Ino::ROOT, b"a").unwrap();
    assert_eq!(volume.lookup(Ino::ROOT, b"b").unwrap().nlink, 1);
    assert_eq!(read(&volume, ino).unwrap(), "x");
    let sub = dir(&volume, Ino::ROOT, "d");
    assert_eq!(
        volume.link(sub, Ino::ROOT, b"e"),
        Err(VolumeError::NotPermitted)
    );
    assert_eq!(volume.link(ino, Ino::ROOT, b"b"), Err(VolumeError::Exists));
}

#[test]
fn rename_replaces_like_posix() {
    let volume = volume();
    let (a, b) = (file(&volume, "a", b"a"), file(&volume, "b", b"b"));
    let rename = |from: &str, to: &str, mode| {
        volume.rename(
            (Ino::ROOT, from.as_bytes()),
            (Ino::ROOT, to.as_bytes()),
            mode,
        )
    };
    assert_eq!(
        rename("a", "b", RenameMode::NoReplace),
        Err(VolumeError::Exists)
    );
    rename("a", "b", RenameMode::Replace).unwrap();
    assert_eq!(names(&volume, Ino::ROOT), ["b"]);
    assert_eq!(volume.lookup(Ino::ROOT, b"b").unwrap().ino, a);
    assert_eq!(volume.getattr(b).unwrap().nlink, 0);
    volume.link(a, Ino::ROOT, b"same").unwrap();
    rename("b", "same", RenameMode::Replace).unwrap();
    assert_eq!(
        names(&volume, Ino::ROOT),
        ["b", "same"],
        "two names of one file stay"
    );

    let (empty, full) = (
        dir(&volume, Ino::ROOT, "empty"),
        dir(&volume, Ino::ROOT, "full"),
    );
    dir(&volume, full, "child");
    assert_eq!(
        rename("b", "empty", RenameMode::Replace),
        Err(VolumeError::IsDirectory)
    );
    assert_eq!(
        rename("empty", "b", RenameMode::Replace),
        Err(VolumeError::NotDirectory)
    );
    assert_eq!(
        rename("empty", "full", RenameMode::Replace),
        Err(VolumeError::NotEmpty)
    );
    rename("full", "empty", RenameMode::Replace).unwrap();
    assert_eq!(names(&volume, full), ["child"]);
    assert_eq!(volume.getattr(empty).unwrap().nlink, 0);
}

#[test]
fn rename_keeps_directories_a_tree() {
    let volume = volume();
    let outer = dir(&volume, Ino::ROOT, "outer");
    let inner = dir(&volume, outer, "inner");
    let into_itself = volume.rename((Ino::ROOT, b"outer"), (inner, b"loop"), RenameMode::Replace);
    assert_eq!(into_itself, Err(VolumeError::Invalid));
    let with_its_child = volume.rename(
        (outer, b"inner"),
        (Ino::ROOT, b"outer"),
        RenameMode::Exchange,
    );
    assert_eq!(with_its_child, Err(VolumeError::Invalid));
    volume
        .rename(
            (outer, b"inner"),
            (Ino::ROOT, b"inner"),
            RenameMode::Replace,
        )
        .unwrap();
    assert_eq!(volume.getattr(outer).unwrap().nlink, 2);
    assert_eq!(volume.getattr(Ino::ROOT).unwrap().nlink, 4);
    let handle = volume.opendir(inner).unwrap();
    let rows = volume.readdir(inner, handle, 0, 2).unwrap();
    assert_eq!(rows[1].attr.ino, Ino::ROOT, "the moved directory's `..`");
}

#[test]
fn exchange_swaps_a_file_and_a_directory() {
    let volume = volume();
    let (sub, a) = (dir(&volume, Ino::ROOT, "d"), file(&volume, "a", b"x"));
    let inner = dir(&volume, sub, "inner");
    volume
        .rename((Ino::ROOT, b"a"), (sub, b"inner"), RenameMode::Exchange)
        .unwrap();
    assert_eq!(volume.lookup(Ino::ROOT, b"a").unwrap().ino, inner);
    assert_eq!(volume.lookup(sub, b"inner").unwrap().ino, a);
    assert_eq!(volume.getattr(sub).unwrap().nlink, 2);
    assert_eq!(volume.getattr(Ino::ROOT).unwrap().nlink, 4);
    let missing = volume.rename((Ino::ROOT, b"a"), (Ino::ROOT, b"no"), RenameMode::Exchange);
    assert_eq!(missing, Err(VolumeError::NotFound));
}

#[test]
fn names_are_checked() {
    let volume = volume();
    let make = |name: &[u8]| volume.mkdir(Ino::ROOT, name, 0o755, USER).map(|_| ());
    for bad in [&b""[..], b".", b"..", b"a/b", b"a\0b"] {
        assert_eq!(make(bad), Err(VolumeError::Invalid), "{bad:?}");
    }
    assert_eq!(make(&[b'x'; 256]), Err(VolumeError::NameTooLong));
    assert_eq!(make(&[0xff; 255]), Ok(()));
}

#[test]
fn a_removed_directory_takes_no_new_names() {
    let volume = volume();
    let sub = dir(&volume, Ino::ROOT, "d");
    dir(&volume, sub, "child");
    assert_eq!(volume.rmdir(Ino::ROOT, b"d"), Err(VolumeError::NotEmpty));
    volume.rmdir(sub, b"child").unwrap();
    volume.rmdir(Ino::ROOT, b"d").unwrap();
    assert_eq!(
        volume.mkdir(sub, b"late", 0o755, USER),
        Err(VolumeError::NotFound)
    );
    file(&volume, "f", b"");
    assert_eq!(
        volume.rmdir(Ino::ROOT, b"f"),
        Err(VolumeError::NotDirectory)
    );
    assert_eq!(volume.getattr(Ino::ROOT).unwrap().nlink, 2);
}

#[test]
fn a_set_gid_directory_gives_its_group() {
    let volume = volume();
    let sub = dir(&volume, Ino::ROOT, "d");
    let change = SetAttr {
        mode: Some(0o2775),
        gid: Some(7),
        ..SetAttr::default()
    };
    volume.setattr(sub, change, ROOT_USER).unwrap();
    assert_eq!(volume.mkdir(sub, b"x", 0o755, USER).unwrap().mode, 0o2755);
    assert_eq!(
        volume
            .mknod(sub, b"y", Kind::Fifo, 0o600, 0, USER)
            .unwrap()
            .gid,
        7
    );
}

#[test]
fn listings_are_snapshots_without_what_went_away() {
    let volume = volume();
    for name in ["a", "b", "c", "d"] {
        file(&volume, name, b"");
    }
    let handle = volume.opendir(Ino::ROOT).unwrap();
    let first = volume.readdir(Ino::ROOT, handle, 0, 3).unwrap();
    let first: Vec<_> = first
        .iter()
        .map(|row| (&row.name[..], row.offset))
        .collect();
    assert_eq!(first, [(&b"."[..], 1), (b"..", 2), (b"a", 3)]);
    volume.unlink(Ino::ROOT, b"a").unwrap();
    volume.unlink(Ino::ROOT, b"b").unwrap();
    file(&volume, "e", b"");
    let rest = volume.readdir(Ino::ROOT, handle, 3, 9).unwrap();
    let rest: Vec<_> = rest.iter().map(|row| (&row.name[..], row.offset)).collect();
    assert_eq!(rest, [(&b"c"[..], 5), (b"d", 6)]);
    let again = volume.readdir(Ino::ROOT, handle, 0, 9).unwrap();
    assert_eq!(again.len(), 5, "rewinding shows what is there now");
    volume.releasedir(Ino::ROOT, handle);
    assert_eq!(
        volume.readdir(Ino::ROOT, handle, 0, 9),
        Err(VolumeError::BadHandle)
    );
}

#[test]
fn attributes_are_set_and_times_kept() {
    let volume = volume();
    let ino = file(&volume, "a", b"content");
    let time = Time { secs: -5, nanos: 7 };
    let change = SetAttr {
        mode: Some(0o600),
        uid: Some(5),
        size: Some(3),
        mtime: Some(SetTime::At(time)),
        atime: Some(SetTime::Now),
        ..SetAttr::default()
    };
    let attr = volume.setattr(ino, change, ROOT_USER).unwrap();
    assert_eq!(
        (attr.mode, attr.uid, attr.gid, attr.size),
        (0o600, 5, USER.gid, 3)
    );
    assert_eq!((attr.mtime, attr.kind), (time, Kind::File));
    assert!(attr.ctime.secs > 0 && attr.atime.secs > 0);
    assert_eq!(read(&volume, ino).unwrap(), "con");
    let too_large = SetAttr {
        size: Some(u64::MAX),
        ..SetAttr::default()
    };
    assert_eq!(
        volume.setattr(ino, too_large, ROOT_USER),
        Err(VolumeError::TooLarge)
    );
}

#[test]
fn extended_attributes() {
    let volume = volume();
    let ino = file(&volume, "a", b"");
    let set = |name: &[u8], value: &[u8], how| volume.setxattr(ino, name, value, how);
    assert_eq!(
        set(b"user.a", b"1", SetXattr::Replace),
        Err(VolumeError::NoAttribute)
    );
    assert_eq!(set(b"user.a", b"1", SetXattr::Create), Ok(()));
    assert_eq!(
        set(b"user.a", b"2", SetXattr::Create),
        Err(VolumeError::Exists)
    );
    assert_eq!(set(b"user.a", b"2", SetXattr::Any), Ok(()));
    assert_eq!(
        set(b"user.b", &[0; 65_537], SetXattr::Any),
        Err(VolumeError::ValueTooLong)
    );
    assert_eq!(volume.getxattr(ino, b"user.a").unwrap(), "2");
    assert_eq!(volume.listxattr(ino).unwrap(), ["user.a"]);
    assert_eq!(volume.removexattr(ino, b"user.a"), Ok(()));
    assert_eq!(
        volume.removexattr(ino, b"user.a"),
        Err(VolumeError::NoAttribute)
    );
}

#[test]
fn space_is_allocated_and_given_back() {
    let volume = volume();
    let (ino, handle) = create(&volume, "a");
    let allocate = |offset, len, how| volume.allocate(ino, handle, offset, len, how);
    allocate(0, 10, Allocate::Reserve { keep_size: true }).unwrap();
    assert_eq!(volume.getattr(ino).unwrap().size, 0);
    allocate(0, 3 * PAGE, Allocate::Reserve { keep_size: false }).unwrap();
    volume
        .write(ino, handle, 0, &[1; 3 * PAGE as usize])
        .unwrap();
    allocate(PAGE, PAGE, Allocate::Punch).unwrap();
    assert_eq!(volume.getattr(ino).unwrap().blocks, 16);
    assert_eq!(volume.seek(ino, handle, 0, Seek::Hole), Ok(PAGE));
    assert_eq!(volume.seek(ino, handle, PAGE, Seek::Data), Ok(2 * PAGE));
    assert_eq!(
        volume.seek(ino, handle, 3 * PAGE, Seek::Data),
        Err(VolumeError::NoSuchOffset)
    );
    allocate(2 * PAGE, 2 * PAGE, Allocate::Zero { keep_size: false }).unwrap();
    assert_eq!(volume.getattr(ino).unwrap().size, 4 * PAGE);
    let huge = allocate(0, CAPACITY + 1, Allocate::Reserve { keep_size: true });
    assert_eq!(huge, Err(VolumeError::NoSpace));
    let full = volume.write(ino, handle, 0, &[1; (CAPACITY + PAGE) as usize]);
    assert_eq!(full, Err(VolumeError::NoSpace));
    assert_eq!(
        volume.write(ino, handle, u64::MAX - 1, b"xy"),
        Err(VolumeError::TooLarge)
    );
    assert_eq!(
        volume.write(ino, Handle(99), 0, b"x"),
        Err(VolumeError::BadHandle)
    );
}

#[test]
fn the_cache_is_kept_while_the_content_is_the_kernels_own() {
    let volume = volume();
    let ino = file(&volume, "a", b"one");
    let keeps = || volume.open(ino, WRITE).unwrap().keep_cache;
    assert!(keeps());
    volume.replace_content(ino, b"from a peer").unwrap();
    assert!(!keeps());
    assert!(keeps());
    assert_eq!(read(&volume, ino).unwrap(), "from a peer");
}

#[derive(Debug, Clone)]
enum Op {
    Create(usize, u8),
    Mkdir(usize, u8),
    Link(usize, usize, u8),
    Unlink(usize, u8),
    Rmdir(usize, u8),
    Rename(usize, u8, usize, u8, u8),
    Forget(usize),
}

fn op() -> impl Strategy<Value = Op> {
    let (dir, name) = (0..6_usize, 0..4_u8);
    prop_oneof![
        (dir.clone(), name.clone()).prop_map(|(d, n)| Op::Create(d, n)),
        (dir.clone(), name.clone()).prop_map(|(d, n)| Op::Mkdir(d, n)),
        (0..12_usize, dir.clone(), name.clone()).prop_map(|(i, d, n)| Op::Link(i, d, n)),
        (dir.clone(), name.clone()).prop_map(|(d, n)| Op::Unlink(d, n)),
        (dir.clone(), name.clone()).prop_map(|(d, n)| Op::Rmdir(d, n)),
        (dir.clone(), name.clone(), dir, name, 0..3_u8)
            .prop_map(|(d, n, e, m, mode)| Op::Rename(d, n, e, m, mode)),
        (0..12_usize).prop_map(Op::Forget),
    ]
}

/// Every inode ever made, by number of making; directories among them are looked up by it.
struct Made(Vec<Ino>, Vec<Ino>);

fn apply(volume: &MemoryVolume, made: &mut Made, op: &Op) {
    let dir = |n: usize| made.1[n % made.1.len()];
    let inode = |n: usize| made.0.get(n).copied().unwrap_or(Ino::ROOT);
    match *op {
        Op::Create(d, n) => {
            if let Ok((attr, opened)) = volume.create(dir(d), &[b'a' + n], 0o644, WRITE, USER) {
                volume.write(attr.ino, opened.handle, 0, b"data").unwrap();
                volume.release(attr.ino, opened.handle);
                made.0.push(attr.ino);
            }
        }
        Op::Mkdir(d, n) => {
            if let Ok(attr) = volume.mkdir(dir(d), &[b'a' + n], 0o755, USER) {
                made.1.push(attr.ino);
            }
        }
        // Whether it is allowed does not matter here: the counts must hold either way.
        Op::Link(i, d, n) => {
            let _: Result<Attr, VolumeError> = volume.link(inode(i), dir(d), &[b'a' + n]);
        }
        Op::Unlink(d, n) => {
            let _: Result<(), VolumeError> = volume.unlink(dir(d), &[b'a' + n]);
        }
        Op::Rmdir(d, n) => {
            let _: Result<(), VolumeError> = volume.rmdir(dir(d), &[b'a' + n]);
        }
        Op::Rename(d, n, e, m, mode) => {
            let modes = [
                RenameMode::Replace,
                RenameMode::NoReplace,
                RenameMode::Exchange,
            ];
            let mode = modes[usize::from(mode)];
            let _: Result<(), VolumeError> =
                volume.rename((dir(d), &[b'a' + n]), (dir(e), &[b'a' + m]), mode);
        }
        Op::Forget(i) => volume.forget(inode(i)),
    }
}

/// Counts the names of each inode in the tree below `dir` and the subdirectories of each directory.
fn walk(volume: &MemoryVolume, dir: Ino, found: &mut HashMap<Ino, (u32, u32)>) {
    for name in names(volume, dir) {
        let attr = volume.lookup(dir, name.as_bytes()).unwrap();
        found.entry(attr.ino).or_default().0 += 1;
        if attr.kind == Kind::Dir {
            found.entry(dir).or_default().1 += 1;
            walk(volume, attr.ino, found);
        }
    }
}

proptest! {
    #[test]
    fn counts_hold_whatever_is_done_to_names(ops in prop::collection::vec(op(), 1..60)) {
        let volume = volume();
        let mut made = Made(Vec::new(), vec![Ino::ROOT]);
        for op in &ops {
            apply(&volume, &mut made, op);
        }
        let mut found = HashMap::from([(Ino::ROOT, (0, 0))]);
        walk(&volume, Ino::ROOT, &mut found);
        for (&ino, &(names, subdirs)) in &found {
            let attr = volume.getattr(ino).unwrap();
            let expected = if attr.kind == Kind::Dir { 2 + subdirs } else { names };
            prop_assert_eq!(attr.nlink, expected);
            prop_assert!(attr.kind == Kind::File || names <= 1);
        }
        // What has no name is gone once the kernel forgets it, and its space with it.
        for ino in made.0.into_iter().chain(made.1) {
            volume.forget(ino);
        }
        prop_assert_eq!(volume.inodes(), found.len());
        let files = found.keys().filter(|&&ino| volume.getattr(ino).unwrap().kind == Kind::File);
        prop_assert_eq!(volume.statfs().unwrap().bytes_free, CAPACITY - files.count() as u64 * PAGE);
    }
}
