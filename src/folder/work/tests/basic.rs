//! What every user does, one thing at a time.

use ccbt_mount::{Allocate, Ino, Kind, RenameMode, Seek, SetXattr, Volume, VolumeError};

use super::rig::{READ, ROOT_USER, Rig, WRITE, noise};

#[test]
fn create_write_read_commit_reopen() {
    let rig = Rig::new(1);
    rig.mkdir("a").unwrap();
    rig.put("a/small", b"hello").unwrap();
    let big = noise(1, 3_000_000);
    rig.put("a/big", &big).unwrap();
    assert_eq!(rig.read("a/small").unwrap(), &b"hello"[..]);
    assert!(rig.read("a/big").unwrap() == big, "before the commit");
    let ino = rig.find("a/big").unwrap().ino;
    let publication = rig.publish().expect("there is something to publish");
    assert_eq!(
        publication.changes.as_ref().map(Vec::len),
        Some(4),
        "root, a, two files"
    );
    assert!(rig.read("a/big").unwrap() == big, "after the commit");
    assert!(rig.publish().is_none(), "nothing new");
    let rig = rig.killed();
    assert!(rig.read("a/big").unwrap() == big, "after a kill");
    assert_eq!(rig.find("a/big").unwrap().ino, ino);
    let rig = rig.remounted();
    assert_eq!(rig.read("a/small").unwrap(), &b"hello"[..]);
    assert_eq!(rig.find("a/big").unwrap().ino, ino);
    assert!(rig.publish().is_none(), "nothing new after a remount");
    assert!(rig.disk.contents("/folder/staging/none".as_ref()).is_none());
}

#[test]
fn uncommitted_writes_survive_a_kill_and_synced_ones_a_power_failure() {
    for seed in 0..20 {
        let rig = Rig::new(1);
        let big = noise(seed, 200_000);
        rig.put("kept", &big).unwrap();
        rig.put("little", b"little").unwrap();
        rig.fsync("kept").unwrap();
        rig.fsync("little").unwrap();
        let rig = rig.crashed(seed);
        assert!(rig.read("kept").unwrap() == big, "seed {seed}");
        assert_eq!(rig.read("little").unwrap(), &b"little"[..], "seed {seed}");
        rig.patch("little", 3, b"LE and more").unwrap();
        let rig = rig.killed();
        assert_eq!(
            rig.read("little").unwrap(),
            &b"litLE and more"[..],
            "seed {seed}"
        );
        rig.publish().unwrap();
        let rig = rig.crashed(seed + 1000);
        assert!(rig.read("kept").unwrap() == big, "seed {seed}");
        assert_eq!(
            rig.read("little").unwrap(),
            &b"litLE and more"[..],
            "seed {seed}"
        );
    }
}

#[test]
fn an_edit_of_a_committed_file_stores_little_and_reads_right() {
    let rig = Rig::new(1);
    let mut bytes = noise(7, 5_000_000);
    rig.put("f", &bytes).unwrap();
    rig.publish().unwrap();
    let before = rig.store.stats().chunks;
    rig.patch("f", 2_500_000, b"edited").unwrap();
    bytes[2_500_000..2_500_006].copy_from_slice(b"edited");
    assert!(rig.read("f").unwrap() == bytes, "overlay");
    rig.publish().unwrap();
    assert!(rig.read("f").unwrap() == bytes, "committed");
    let more = rig.store.stats().chunks - before;
    assert!(more <= 4, "{more} new chunks for six bytes");
    rig.truncate("f", 100).unwrap();
    rig.truncate("f", 200).unwrap();
    bytes.truncate(100);
    bytes.resize(200, 0);
    assert!(rig.read("f").unwrap() == bytes, "cut and extended");
    rig.publish().unwrap();
    assert!(rig.killed().read("f").unwrap() == bytes);
}

#[test]
fn names_behave_as_posix_has_them() {
    let rig = Rig::new(1);
    rig.mkdir("d").unwrap();
    rig.put("d/f", b"1").unwrap();
    let ino = rig.find("d/f").unwrap().ino;
    assert_eq!(rig.rmdir("d"), Err(VolumeError::NotEmpty));
    assert_eq!(rig.unlink("d"), Err(VolumeError::IsDirectory));
    assert_eq!(rig.mkdir("d").unwrap_err(), VolumeError::Exists);
    assert_eq!(rig.link("d/f", "g").unwrap().nlink, 2);
    assert_eq!(rig.find("g").unwrap().ino, ino);
    rig.patch("g", 0, b"2").unwrap();
    assert_eq!(rig.read("d/f").unwrap(), &b"2"[..]);
    rig.publish().unwrap();
    assert_eq!(rig.read("d/f").unwrap(), &b"2"[..]);
    assert_eq!(rig.find("d/f").unwrap().nlink, 2);
    rig.rename("g", "h").unwrap();
    assert_eq!(rig.find("h").unwrap().ino, ino);
    rig.unlink("d/f").unwrap();
    assert_eq!(rig.find("h").unwrap().nlink, 1);
    rig.rename("d", "e").unwrap();
    assert_eq!(rig.rename("e", "e/x"), Err(VolumeError::Invalid));
    rig.rmdir("e").unwrap();
    assert_eq!(rig.create(".ccbt").unwrap_err(), VolumeError::NotPermitted);
    assert_eq!(rig.names("").len(), 1);
    let rig = rig.killed();
    assert_eq!(rig.find("h").unwrap().ino, ino);
    assert_eq!(rig.read("h").unwrap(), &b"2"[..]);
}

#[test]
fn a_removed_file_lives_until_it_is_closed() {
    let rig = Rig::new(1);
    let (ino, handle) = rig.create("f").unwrap();
    rig.volume.write(ino, handle, 0, b"still here").unwrap();
    rig.unlink("f").unwrap();
    assert_eq!(rig.find("f").unwrap_err(), VolumeError::NotFound);
    assert_eq!(rig.volume.getattr(ino).unwrap().nlink, 0);
    rig.volume.write(ino, handle, 10, &[7; 100_000]).unwrap();
    assert_eq!(rig.read_handle(ino, handle).unwrap().len(), 100_010);
    rig.publish().unwrap();
    assert!(rig.tree().is_empty());
    rig.volume.release(ino, handle);
    rig.volume.forget(ino);
    assert_eq!(rig.volume.getattr(ino).unwrap_err(), VolumeError::NotFound);
    assert!(rig.killed().tree().is_empty());
}

#[test]
fn replacing_by_rename_keeps_what_is_open() {
    let rig = Rig::new(1);
    rig.put("old", b"old").unwrap();
    rig.publish().unwrap();
    let (ino, handle) = rig.open("old", READ).unwrap();
    rig.put("new", b"new").unwrap();
    rig.rename("new", "old").unwrap();
    assert_eq!(rig.read("old").unwrap(), &b"new"[..]);
    assert_eq!(rig.read_handle(ino, handle).unwrap(), &b"old"[..]);
    rig.publish().unwrap();
    assert_eq!(rig.read("old").unwrap(), &b"new"[..]);
    assert_eq!(rig.tree().len(), 1);
}

#[test]
fn each_name_of_a_file_that_is_being_written_is_renamed_for_itself() {
    let rig = Rig::new(1);
    rig.put("f", b"one").unwrap();
    let (ino, handle) = rig.open("f", WRITE).unwrap();
    rig.volume.link(ino, Ino::ROOT, b"g").unwrap();
    rig.volume.write(ino, handle, 0, b"two").unwrap();
    rig.rename("g", "h").unwrap();
    let names = |rig: &Rig| {
        rig.names("")
            .into_iter()
            .map(|(name, _)| name)
            .collect::<Vec<_>>()
    };
    assert_eq!(names(&rig), ["f", "h"]);
    rig.rename("f", "e").unwrap();
    rig.volume.release(ino, handle);
    assert_eq!(names(&rig), ["e", "h"]);
    for name in ["e", "h"] {
        assert_eq!(rig.read(name).unwrap(), &b"two"[..]);
    }
}

#[test]
fn exchange_and_noreplace() {
    let rig = Rig::new(1);
    rig.put("a", b"a").unwrap();
    rig.mkdir("b").unwrap();
    let (a, b) = (rig.find("a").unwrap().ino, rig.find("b").unwrap().ino);
    let root = Ino::ROOT;
    let rename = |mode| rig.volume.rename((root, b"a"), (root, b"b"), mode);
    assert_eq!(rename(RenameMode::NoReplace), Err(VolumeError::Exists));
    rename(RenameMode::Exchange).unwrap();
    assert_eq!(rig.find("a").unwrap().ino, b);
    assert_eq!(rig.find("b").unwrap().ino, a);
    assert_eq!(rig.read("b").unwrap(), &b"a"[..]);
}

#[test]
fn attributes_xattrs_links_and_special_files_survive() {
    let rig = Rig::new(1);
    rig.put("f", b"x").unwrap();
    let ino = rig.find("f").unwrap().ino;
    rig.volume
        .setxattr(ino, b"user.k", b"v", SetXattr::Create)
        .unwrap();
    let again = rig.volume.setxattr(ino, b"user.k", b"w", SetXattr::Create);
    assert_eq!(again, Err(VolumeError::Exists));
    let change = ccbt_mount::SetAttr {
        mode: Some(0o4750),
        uid: Some(42),
        mtime: Some(ccbt_mount::SetTime::At(ccbt_mount::Time {
            secs: -7,
            nanos: 5,
        })),
        ..Default::default()
    };
    rig.volume.setattr(ino, change, ROOT_USER).unwrap();
    rig.volume
        .symlink(Ino::ROOT, b"s", b"to/where", ROOT_USER)
        .unwrap();
    rig.volume
        .mknod(Ino::ROOT, b"p", Kind::Fifo, 0o600, 0, ROOT_USER)
        .unwrap();
    let check = |rig: &Rig| {
        let attr = rig.find("f").unwrap();
        assert_eq!((attr.mode, attr.uid), (0o4750, 42));
        assert_eq!((attr.mtime.secs, attr.mtime.nanos), (-7, 5));
        assert_eq!(rig.volume.getxattr(attr.ino, b"user.k").unwrap(), &b"v"[..]);
        let link = rig.find("s").unwrap();
        assert_eq!(rig.volume.readlink(link.ino).unwrap(), &b"to/where"[..]);
        assert_eq!(rig.find("p").unwrap().kind, Kind::Fifo);
        assert_eq!(rig.names("").len(), 3);
    };
    check(&rig);
    rig.publish().unwrap();
    check(&rig);
    let rig = rig.killed();
    check(&rig);
    let rig = rig.remounted();
    check(&rig);
    rig.unlink("p").unwrap();
    assert_eq!(rig.killed().names("").len(), 2);
}

#[test]
fn holes_are_found_and_punched() {
    let rig = Rig::new(1);
    let (ino, handle) = rig.create("f").unwrap();
    rig.volume.write(ino, handle, 100_000, b"end").unwrap();
    assert_eq!(rig.volume.seek(ino, handle, 0, Seek::Data), Ok(100_000));
    assert_eq!(rig.volume.seek(ino, handle, 0, Seek::Hole), Ok(0));
    assert_eq!(rig.volume.getattr(ino).unwrap().blocks, 1);
    rig.volume.write(ino, handle, 0, &[1; 9000]).unwrap();
    rig.volume
        .allocate(ino, handle, 10, 8000, Allocate::Punch)
        .unwrap();
    let bytes = rig.read_handle(ino, handle).unwrap();
    assert_eq!(bytes.len(), 100_003);
    assert!(bytes[..10] == [1; 10] && bytes[10..8010] == [0; 8000] && bytes[8010] == 1);
    rig.volume
        .allocate(
            ino,
            handle,
            0,
            200_000,
            Allocate::Reserve { keep_size: false },
        )
        .unwrap();
    assert_eq!(rig.volume.getattr(ino).unwrap().size, 200_000);
    rig.volume.release(ino, handle);
    rig.publish().unwrap();
    assert_eq!(rig.killed().read("f").unwrap()[..100_003], bytes[..]);
}

#[test]
fn an_old_handle_goes_on_with_what_it_wrote_while_it_is_committed() {
    let rig = Rig::new(1);
    let (ino, handle) = rig.create("f").unwrap();
    rig.volume
        .write(ino, handle, 0, &noise(1, 100_000))
        .unwrap();
    rig.sync_handle(ino, handle).unwrap();
    rig.publish().unwrap();
    rig.volume.write(ino, handle, 50_000, b"after").unwrap();
    rig.volume.release(ino, handle);
    let mut expected = noise(1, 100_000);
    expected[50_000..50_005].copy_from_slice(b"after");
    assert!(rig.read("f").unwrap() == expected);
    rig.publish().unwrap();
    assert!(rig.read("f").unwrap() == expected);
    assert_eq!(rig.tree().len(), 1, "no sibling of its own making");
    let (ino, handle) = rig.open("f", WRITE).unwrap();
    rig.rename("f", "g").unwrap();
    rig.volume.write(ino, handle, 0, b"moved").unwrap();
    rig.volume.release(ino, handle);
    rig.publish().unwrap();
    expected[..5].copy_from_slice(b"moved");
    assert!(rig.read("g").unwrap() == expected);
    assert_eq!(rig.tree().len(), 1);
}
