//! Share, mount by link, read on demand, edit on each side, see it on the other.

use std::ffi::OsStr;
use std::fs;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::Path;

use crate::support::{Rng, World, eventually, tree, wait_equal};

fn fill(dir: &Path) {
    let mut rng = Rng(1);
    fs::write(dir.join("notes.txt"), b"first notes\n").unwrap();
    fs::write(dir.join("empty"), b"").unwrap();
    fs::write(dir.join("big"), rng.bytes(5 << 20)).unwrap();
    fs::create_dir_all(dir.join("sub/deep")).unwrap();
    fs::write(dir.join("sub/deep/file"), rng.bytes(200_000)).unwrap();
    symlink("sub/deep/file", dir.join("link")).unwrap();
    fs::set_permissions(dir.join("notes.txt"), fs::Permissions::from_mode(0o640)).unwrap();
}

#[test]
fn a_shared_directory_is_read_and_edited_through_a_mount_elsewhere() {
    let world = World::new();
    let (src, at_a, at_b) = (world.dir("src"), world.dir("at-a"), world.dir("at-b"));
    fill(&src);
    let (mut a, links) = world.share(&src, "a");
    let b = world.mount(&links.write, &at_b, "b", &[&a]);
    wait_equal(&src, &at_b, &[&a, &b]);
    assert_eq!(
        fs::metadata(at_b.join("notes.txt")).unwrap().mode() & 0o777,
        0o640
    );
    let mtime = |p: &Path| fs::metadata(p.join("big")).unwrap().modified().unwrap();
    assert_eq!(mtime(&at_b), mtime(&src));

    a.mount_again(&src, &at_a);
    wait_equal(&src, &at_a, &[&a]);

    fs::OpenOptions::new()
        .append(true)
        .open(at_b.join("notes.txt"))
        .unwrap()
        .write_all(b"by b\n")
        .unwrap();
    a.wait("b's line at a", || {
        fs::read(at_a.join("notes.txt")).is_ok_and(|t| t == b"first notes\nby b\n")
    });
    let mut big = fs::OpenOptions::new()
        .write(true)
        .open(at_a.join("big"))
        .unwrap();
    big.seek(SeekFrom::Start(2_000_000)).unwrap();
    big.write_all(b"in the middle").unwrap();
    drop(big);
    b.wait("a's patch at b", || {
        let mut file = fs::File::open(at_b.join("big")).unwrap();
        let mut got = [0; 13];
        file.seek(SeekFrom::Start(2_000_000)).unwrap();
        file.read_exact(&mut got).is_ok() && &got == b"in the middle"
    });
    wait_equal(&at_a, &at_b, &[&a, &b]);
    // The home is a plain directory that follows.
    wait_equal(&src, &at_b, &[&a, &b]);
    assert_eq!(
        fs::read(src.join("notes.txt")).unwrap(),
        b"first notes\nby b\n"
    );

    fs::rename(at_b.join("sub"), at_b.join("moved")).unwrap();
    fs::remove_file(at_b.join("empty")).unwrap();
    fs::create_dir(at_a.join("new dir")).unwrap();
    fs::write(at_a.join("new dir/x"), b"x").unwrap();
    wait_equal(&at_a, &at_b, &[&a, &b]);
    assert!(at_a.join("moved/deep/file").exists() && at_b.join("new dir/x").exists());
    wait_equal(&src, &at_b, &[&a, &b]);
}

#[test]
fn an_edit_of_the_plain_directory_reaches_the_mounts() {
    let world = World::new();
    let (src, at_b) = (world.dir("src"), world.dir("at-b"));
    fill(&src);
    let (a, links) = world.share(&src, "a");
    let b = world.mount(&links.read, &at_b, "b", &[&a]);
    wait_equal(&src, &at_b, &[&a, &b]);
    fs::write(src.join("notes.txt"), b"edited in place\n").unwrap();
    fs::write(src.join("sub/new"), b"new").unwrap();
    fs::remove_file(src.join("empty")).unwrap();
    fs::rename(src.join("big"), src.join("sub/bigger")).unwrap();
    wait_equal(&src, &at_b, &[&a, &b]);
}

#[test]
fn a_read_only_link_reads_and_cannot_write() {
    let world = World::new();
    let (src, at_b) = (world.dir("src"), world.dir("at-b"));
    fill(&src);
    let (a, links) = world.share(&src, "a");
    let b = world.mount(&links.read, &at_b, "b", &[&a]);
    wait_equal(&src, &at_b, &[&a, &b]);
    let readonly = |result: std::io::Result<()>| {
        assert_eq!(
            result.unwrap_err().kind(),
            std::io::ErrorKind::ReadOnlyFilesystem
        );
    };
    readonly(fs::write(at_b.join("new"), b"x"));
    readonly(fs::write(at_b.join("notes.txt"), b"x"));
    readonly(fs::remove_file(at_b.join("notes.txt")));
    readonly(fs::create_dir(at_b.join("d")));
    assert_eq!(tree(&src).unwrap(), tree(&at_b).unwrap());
}

#[test]
fn a_new_directory_becomes_a_live_folder_and_can_be_shared() {
    let world = World::new();
    let (live, at_b) = (world.dir("live"), world.dir("at-b"));
    let a = world.start("a", &[], &["mount", live.to_str().unwrap()]);
    a.wait("the mount", || crate::support::is_mounted(&live));
    fs::write(live.join("mine"), b"made before it was shared").unwrap();
    assert!(
        a.status()["daemon"]["listen"].is_null(),
        "nothing listens before sharing"
    );
    let shared: serde_json::Value =
        serde_json::from_str(&a.run(&["share", live.to_str().unwrap(), "--json"])).unwrap();
    let b = world.mount(shared["read_write"].as_str().unwrap(), &at_b, "b", &[&a]);
    wait_equal(&live, &at_b, &[&a, &b]);
    fs::write(at_b.join("theirs"), b"made elsewhere").unwrap();
    wait_equal(&live, &at_b, &[&a, &b]);
    assert_eq!(fs::read(live.join("theirs")).unwrap(), b"made elsewhere");
}

#[test]
fn a_stop_in_order_unmounts_and_a_start_brings_all_back() {
    let world = World::new();
    let (src, at_b) = (world.dir("src"), world.dir("at-b"));
    fill(&src);
    let (mut a, links) = world.share(&src, "a");
    let mut b = world.mount(&links.write, &at_b, "b", &[&a]);
    wait_equal(&src, &at_b, &[&a, &b]);
    fs::write(at_b.join("late"), b"written just before the end").unwrap();
    assert_eq!(b.stop(), 0, "{}", b.log());
    assert!(!crate::support::is_mounted(&at_b) && fs::read_dir(&at_b).unwrap().next().is_none());
    assert_eq!(a.stop(), 0, "{}", a.log());

    let b = world.mount(&links.write, &at_b, "b", &[]);
    assert_eq!(
        fs::read(at_b.join("late")).unwrap(),
        b"written just before the end"
    );
    let (a, again) = world.share(&src, "a");
    assert_eq!(
        again.write, links.write,
        "the same directory keeps its links"
    );
    drop((a, b));
}

#[test]
fn names_are_bytes() {
    let world = World::new();
    let (src, at_b) = (world.dir("src"), world.dir("at-b"));
    let long = "n".repeat(255);
    let names: [&[u8]; 5] = [
        long.as_bytes(),
        b"not \xff utf-8 \xfe",
        b"new\nline",
        "ümläut".as_bytes(),
        b" ",
    ];
    for name in names {
        fs::write(src.join(OsStr::from_bytes(name)), name).unwrap();
    }
    let (a, links) = world.share(&src, "a");
    let b = world.mount(&links.write, &at_b, "b", &[&a]);
    wait_equal(&src, &at_b, &[&a, &b]);
    let renamed = OsStr::from_bytes(b"renamed \xff");
    fs::rename(at_b.join(OsStr::from_bytes(names[1])), at_b.join(renamed)).unwrap();
    assert!(eventually(|| at_b.join(renamed).exists()));
}

#[test]
fn hard_links_and_xattrs_travel() {
    let world = World::new();
    let (src, at_a, at_b) = (world.dir("src"), world.dir("at-a"), world.dir("at-b"));
    let (mut a, links) = world.share(&src, "a");
    let b = world.mount(&links.write, &at_b, "b", &[&a]);
    a.mount_again(&src, &at_a);
    fs::write(at_b.join("one"), b"content").unwrap();
    fs::hard_link(at_b.join("one"), at_b.join("two")).unwrap();
    rustix::fs::setxattr(
        at_b.join("one"),
        "user.tag",
        b"blue",
        rustix::fs::XattrFlags::empty(),
    )
    .unwrap();
    a.wait("the second name", || at_a.join("two").exists());
    let ino = |p: &Path| fs::metadata(p).map(|m| (m.ino(), m.nlink()));
    a.wait("one inode", || {
        matches!((ino(&at_a.join("one")), ino(&at_a.join("two"))), (Ok(x), Ok(y)) if x == y && x.1 == 2)
    });
    let tag = || {
        let mut value = [0; 16];
        let len = rustix::fs::getxattr(at_a.join("two"), "user.tag", &mut value[..]).ok()?;
        Some(value[..len].to_vec())
    };
    a.wait("the attribute", || tag().as_deref() == Some(b"blue"));
    fs::write(at_a.join("two"), b"through the other name").unwrap();
    b.wait("both names", || {
        fs::read(at_b.join("one")).is_ok_and(|t| t == b"through the other name")
    });
    drop(b);
}

#[test]
fn an_open_file_stays_as_it_was_opened_when_others_replace_it() {
    let world = World::new();
    let (src, at_b) = (world.dir("src"), world.dir("at-b"));
    let old = Rng(7).bytes(1_000_000);
    fs::write(src.join("f"), &old).unwrap();
    let (a, links) = world.share(&src, "a");
    let b = world.mount(&links.write, &at_b, "b", &[&a]);
    let path = at_b.join("f");
    // What nobody has any more cannot be shown: the plain file was the only other place.
    assert!(fs::read(&path).unwrap() == old);
    let open = fs::File::open(&path).unwrap();
    for new in [&b"short\n"[..], &Rng(8).bytes(1_500_000), b"again\n"] {
        fs::write(src.join("new"), new).unwrap();
        fs::rename(src.join("new"), src.join("f")).unwrap();
        b.wait("the new content", || {
            fs::read(&path).is_ok_and(|bytes| bytes == new)
        });
        let mut bytes = vec![0; old.len()];
        open.read_exact_at(&mut bytes, 0).unwrap();
        assert!(bytes == old, "the open file shows other bytes");
        assert!(fs::read(&path).unwrap() == new);
    }
}
