//! Plain directories on the file systems people have: what each can keep is kept, what it cannot is never taken for an
//! edit; and what happens when one is full, read-only, or taken away.

use std::ffi::OsStr;
use std::fs;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::support::{Daemon, Links, Rng, World, need_root, text, tree, wait_equal};

/// A file system of its own, gone when the test ends.
struct Disk {
    at: PathBuf,
    device: Option<String>,
}

fn run(command: &str, args: &[&OsStr]) -> String {
    let output = Command::new(command).args(args).output();
    let output = output.unwrap_or_else(|error| panic!("{command}: {error}: run scripts/setup"));
    assert!(
        output.status.success(),
        "{command} {args:?}: {}",
        text(&output)
    );
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

impl Disk {
    /// A file of `mib` MiB made a file system of type `kind`, mounted at `name` in the test's directory.
    fn image(world: &World, name: &str, kind: &str, mib: u64) -> Self {
        need_root();
        let image = world.dir("images").join(name);
        fs::File::create(&image)
            .unwrap()
            .set_len(mib << 20)
            .unwrap();
        let quiet = if kind == "vfat" { "-v" } else { "-q" };
        let made = format!("mkfs.{kind}");
        run(&made, &[OsStr::new(quiet), image.as_os_str()]);
        let device = run(
            "losetup",
            &["--find".as_ref(), "--show".as_ref(), image.as_os_str()],
        );
        let disk = Self {
            at: world.dir(name),
            device: Some(device),
        };
        disk.mount();
        disk
    }

    fn tmpfs(world: &World, name: &str) -> Self {
        need_root();
        let at = world.dir(name);
        run(
            "mount",
            &[
                "-t".as_ref(),
                "tmpfs".as_ref(),
                "tmpfs".as_ref(),
                at.as_os_str(),
            ],
        );
        Self { at, device: None }
    }

    fn mount(&self) {
        let device = self.device.as_deref().unwrap();
        run("mount", &[device.as_ref(), self.at.as_os_str()]);
    }

    fn remount(&self, how: &str) {
        let options = format!("remount,{how}");
        run(
            "mount",
            &["-o".as_ref(), options.as_ref(), self.at.as_os_str()],
        );
    }

    fn detach(&self) {
        run("umount", &["-l".as_ref(), self.at.as_os_str()]);
    }

    /// A directory on it.
    fn dir(&self, name: &str) -> PathBuf {
        let dir = self.at.join(name);
        fs::create_dir_all(&dir).unwrap();
        dir
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _detached = Command::new("umount").arg("-l").arg(&self.at).output();
        if let Some(device) = &self.device {
            let _freed = Command::new("losetup").args(["-d", device]).output();
        }
    }
}

/// Whether the kernel has a file system.
fn has(kind: &str) -> bool {
    let list = fs::read_to_string("/proc/filesystems").unwrap();
    list.lines()
        .any(|line| line.split_whitespace().last() == Some(kind))
}

fn join(world: &World, links: &Links, dir: &Path, state: &str, to: &Daemon) -> Daemon {
    let args = ["join", &links.write, dir.to_str().unwrap()];
    let daemon = world.start(state, &[to.port], &args);
    daemon.wait("the join", || daemon.says("Joined "));
    daemon
}

/// The newest snapshot a daemon has published itself.
fn published(daemon: &Daemon) -> String {
    daemon.status()["folders"][0]["published"]["snapshot"].to_string()
}

/// A directory on `disk` and one on an ordinary disk follow each other, in both roles. `any_name`: it keeps all bytes.
fn follows_on(world: &World, disk: &Disk, any_name: bool) {
    let (home_a, home_b) = (disk.dir("home"), world.dir("plain"));
    let mut rng = Rng(11);
    fs::create_dir_all(home_a.join("sub/deep")).unwrap();
    fs::write(home_a.join("sub/deep/file"), rng.bytes(300_000)).unwrap();
    fs::write(home_a.join("notes.txt"), "first\n").unwrap();
    let (a, links) = world.share(&home_a, "a");
    let b = join(world, &links, &home_b, "b", &a);
    let equal = || wait_equal(&home_a, &home_b, &[&a, &b]);
    equal();
    settle(&a, &b);

    // The one that only follows has nothing to say of its own.
    let before = published(&b);
    append(&home_a.join("notes.txt"), "by a\n");
    fs::write(home_a.join("made by a"), "a").unwrap();
    equal();
    settle(&a, &b);
    assert_eq!(
        published(&b),
        before,
        "b published what it was told\n{}",
        b.log()
    );
    let before = published(&a);
    append(&home_b.join("notes.txt"), "by b\n");
    fs::write(home_b.join("made by b"), "b").unwrap();
    equal();
    settle(&a, &b);
    assert_eq!(
        published(&a),
        before,
        "a published what it was told\n{}",
        a.log()
    );
    assert_eq!(
        fs::read(home_a.join("notes.txt")).unwrap(),
        b"first\nby a\nby b\n"
    );

    if any_name {
        let names: [&[u8]; 4] = [
            &[b'n'; 255],
            b"two\nlines",
            b"\xff\xfe not UTF-8",
            b" (conflict) ",
        ];
        for name in names {
            fs::write(home_b.join(OsStr::from_bytes(name)), name).unwrap();
        }
        std::os::unix::fs::symlink("sub/deep/file", home_b.join("link")).unwrap();
        equal();
        for name in names {
            assert_eq!(
                fs::read(home_a.join(OsStr::from_bytes(name))).unwrap(),
                name
            );
        }
    }
    fs::rename(home_b.join("sub"), home_b.join("moved")).unwrap();
    equal();
    fs::rename(home_a.join("moved/deep"), home_a.join("deep")).unwrap();
    equal();
    fs::remove_file(home_b.join("deep/file")).unwrap();
    equal();
    assert!(!home_a.join("deep/file").exists());
    // The record follows the rename.
    a.wait("where the displaced were", || {
        let listed = a.run(&["displaced", home_a.to_str().unwrap(), "--json"]);
        let listed: serde_json::Value = serde_json::from_str(&listed).unwrap();
        let has = |path: &str| {
            listed
                .as_array()
                .unwrap()
                .iter()
                .any(|one| one["path"] == path)
        };
        has("notes.txt") && has("deep/file")
    });
}

fn append(path: &Path, line: &str) {
    let mut file = fs::OpenOptions::new().append(true).open(path).unwrap();
    file.write_all(line.as_bytes()).unwrap();
}

/// Long enough for a file system with coarse times to be looked at again, and for what follows.
fn settle(a: &Daemon, b: &Daemon) {
    let root = |daemon: &Daemon| daemon.status()["folders"][0]["root"].to_string();
    a.wait("one root", || root(a) == root(b));
    std::thread::sleep(Duration::from_millis(2500));
    a.wait("one root still", || root(a) == root(b));
}

#[test]
fn a_directory_on_ext4_follows() {
    let world = World::new();
    let disk = Disk::image(&world, "ext4", "ext4", 64);
    follows_on(&world, &disk, true);
}

#[test]
fn a_directory_on_tmpfs_follows() {
    let world = World::new();
    let disk = Disk::tmpfs(&world, "tmpfs");
    follows_on(&world, &disk, true);
}

#[test]
fn a_directory_on_xfs_follows() {
    let world = World::new();
    assert!(has("xfs"), "the kernel has no xfs: load its module");
    let disk = Disk::image(&world, "xfs", "xfs", 320);
    follows_on(&world, &disk, true);
}

/// The new version of a large file shares the blocks of the old one, which is among the displaced, and has only its own bytes.
#[test]
fn a_new_version_on_xfs_takes_room_for_what_is_new() {
    let world = World::new();
    assert!(has("xfs"), "the kernel has no xfs: load its module");
    let disk = Disk::image(&world, "xfs", "xfs", 320);
    let (home_a, home_b) = (world.dir("plain"), disk.dir("home"));
    let old = Rng(5).bytes(48 << 20);
    fs::write(home_a.join("large"), &old).unwrap();
    let (a, links) = world.share(&home_a, "a");
    let b = join(&world, &links, &home_b, "b", &a);
    wait_equal(&home_a, &home_b, &[&a, &b]);
    settle(&a, &b);
    let used = || {
        rustix::fs::sync();
        let stat = rustix::fs::statvfs(&disk.at).unwrap();
        (stat.f_blocks - stat.f_bfree) * stat.f_frsize
    };
    let before = used();
    let file = fs::OpenOptions::new()
        .write(true)
        .open(home_a.join("large"));
    let new = Rng(6).bytes(1 << 20);
    file.unwrap().write_all_at(&new, 20 << 20).unwrap();
    wait_equal(&home_a, &home_b, &[&a, &b]);
    let displaced = fs::read_dir(home_b.join(".ccbt/displaced")).unwrap();
    let displaced: Vec<_> = displaced.map(|entry| entry.unwrap().path()).collect();
    assert_eq!(displaced.len(), 1, "{displaced:?}");
    assert!(fs::read(&displaced[0]).unwrap() == old);
    let grown = used() - before;
    assert!(grown < 16 << 20, "{grown} bytes more are in use");
}

#[test]
fn a_full_disk_waits_and_nobody_fails_for_it() {
    let world = World::new();
    let disk = Disk::image(&world, "small", "ext4", 24);
    let (home_a, home_b) = (world.dir("home-a"), disk.dir("home-b"));
    fs::write(home_a.join("small"), "small").unwrap();
    let ballast = disk.at.join("ballast");
    fs::write(&ballast, vec![1; 10 << 20]).unwrap();
    let (a, links) = world.share(&home_a, "a");
    let b = join(&world, &links, &home_b, "b", &a);
    wait_equal(&home_a, &home_b, &[&a, &b]);

    let big = Rng(5).bytes(12 << 20);
    fs::write(home_a.join("big"), &big).unwrap();
    fs::write(home_a.join("later"), "later").unwrap();
    let waiting = || b.status()["folders"][0]["directory"]["waiting"].clone();
    b.wait("it to wait", || {
        waiting()
            .as_str()
            .is_some_and(|why| why.contains("waiting for /"))
    });
    let status = b.run(&["status"]);
    assert!(
        status.contains("waiting    not in the directory yet"),
        "{status}"
    );
    assert!(
        !home_b.join("big").exists(),
        "nothing half written is in sight"
    );
    // What fits is written all the same.
    b.wait("the small file", || {
        fs::read(home_b.join("later")).is_ok_and(|text| text == b"later")
    });
    fs::write(home_b.join("small"), "SMALL").unwrap();
    a.wait("an edit from the full disk", || {
        fs::read(home_a.join("small")).unwrap() == b"SMALL"
    });

    fs::remove_file(&ballast).unwrap();
    b.wait("the big file", || {
        fs::read(home_b.join("big")).is_ok_and(|content| content == big)
    });
    b.wait("nothing to wait for", || waiting().is_null());
    wait_equal(&home_a, &home_b, &[&a, &b]);
}

#[test]
fn a_disk_that_becomes_read_only_waits() {
    let world = World::new();
    let disk = Disk::image(&world, "ro", "ext4", 32);
    let (home_a, home_b) = (world.dir("home-a"), disk.dir("home-b"));
    fs::write(home_a.join("f"), "first").unwrap();
    let (a, links) = world.share(&home_a, "a");
    let b = join(&world, &links, &home_b, "b", &a);
    wait_equal(&home_a, &home_b, &[&a, &b]);
    disk.remount("ro");
    fs::write(home_a.join("f"), "second").unwrap();
    let waiting = || b.status()["folders"][0]["directory"]["waiting"].clone();
    b.wait("it to wait", || waiting().is_string());
    assert_eq!(fs::read(home_b.join("f")).unwrap(), b"first");
    disk.remount("rw");
    wait_equal(&home_a, &home_b, &[&a, &b]);
    assert_eq!(fs::read(home_b.join("f")).unwrap(), b"second");
}

#[test]
fn a_disk_that_is_taken_away_is_not_taken_for_deletions_and_comes_back() {
    let world = World::new();
    let disk = Disk::image(&world, "away", "ext4", 32);
    let (home_a, home_b) = (world.dir("home-a"), disk.at.clone());
    for n in 0..5 {
        fs::write(home_a.join(format!("f{n}")), format!("content {n}")).unwrap();
    }
    // What mkfs leaves at the top of a disk is nobody's file.
    fs::remove_dir(home_b.join("lost+found")).unwrap();
    let (a, links) = world.share(&home_a, "a");
    let mut b = join(&world, &links, &home_b, "b", &a);
    wait_equal(&home_a, &home_b, &[&a, &b]);
    let whole = tree(&home_a).unwrap();
    disk.detach();
    fs::write(home_a.join("f0"), "edited while it was away").unwrap();
    let held = || b.status()["folders"][0]["directory"]["held_back"].clone();
    b.wait("it to be held back", || held().is_string());
    assert_eq!(
        fs::read_dir(&home_b).unwrap().count(),
        0,
        "nothing is written where the disk was"
    );
    assert_eq!(
        tree(&home_a).unwrap().len(),
        whole.len(),
        "nothing was deleted"
    );
    disk.mount();
    assert_eq!(b.stop(), 0, "{}", b.log());
    let b = world.start("b", &[a.port], &["daemon"]);
    wait_equal(&home_a, &home_b, &[&a, &b]);
    assert_eq!(
        fs::read(home_b.join("f0")).unwrap(),
        b"edited while it was away"
    );
}
