//! The disk with the state directory runs full: the writer gets ENOSPC, what was acknowledged stays, and the service goes on
//! when there is space again.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::{Daemon, Rng, World, ccbt, eventually, need_root, text, tree};

/// Of the small disk. The ballast is what is taken away to make space again.
const DISK_MIB: usize = 48;
const BALLAST_MIB: usize = 20;
const FILE_BYTES: usize = 1 << 20;

/// A small file system of its own, unmounted when the test ends.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn new(at: &Path) -> Self {
        let size = format!("size={DISK_MIB}m,mode=700");
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &size, "tmpfs"])
            .arg(at)
            .output()
            .unwrap();
        assert!(mounted.status.success(), "{}", text(&mounted));
        Self(at.to_path_buf())
    }

    /// Leaves `bytes` free.
    fn fill_up_to(&self, bytes: u64) {
        let stat = rustix::fs::statvfs(&self.0).unwrap();
        let fill = (stat.f_bavail * stat.f_bsize).saturating_sub(bytes);
        fs::write(self.0.join("filler"), vec![7; fill as usize]).unwrap();
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _detached = Command::new("umount").arg("-l").arg(&self.0).output();
    }
}

/// Writes a file and makes it durable; only what returns Ok is promised.
fn write_durably(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut file = fs::File::create(path)?;
    file.write_all(content)?;
    file.sync_all()
}

/// Fills the folder until a write fails. Returns what was acknowledged.
fn write_until_full(at: &Path, rng: &mut Rng) -> BTreeMap<String, Vec<u8>> {
    let mut kept = BTreeMap::new();
    for n in 0..2 * DISK_MIB {
        let (name, content) = (format!("f{n:03}"), rng.bytes(FILE_BYTES));
        match write_durably(&at.join(&name), &content) {
            Ok(()) => drop(kept.insert(name, content)),
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::StorageFull, "{error}");
                return kept;
            }
        }
    }
    panic!("the disk did not run full");
}

fn assert_kept(at: &Path, kept: &BTreeMap<String, Vec<u8>>, daemon: &Daemon) {
    for (name, content) in kept {
        let is_there = fs::read(at.join(name)).is_ok_and(|found| found == *content);
        assert!(is_there, "{name} was acknowledged\n{}", daemon.log());
    }
}

#[test]
fn a_writer_gets_enospc_and_nothing_acknowledged_is_lost() {
    need_root();
    let world = World::new();
    let (src, at, disk) = (world.dir("src"), world.dir("at"), world.dir("disk"));
    let at_a = world.dir("at-a");
    fs::write(src.join("old"), b"there before").unwrap();
    let small = SmallDisk::new(&disk);
    let ballast = disk.join("ballast");
    fs::write(&ballast, vec![1; BALLAST_MIB << 20]).unwrap();
    let (mut a, links) = world.share(&src, "a");
    a.mount_again(&src, &at_a);
    let mut b = world.mount(&links.write, &at, "disk/state", &[&a]);
    assert_eq!(fs::read(at.join("old")).unwrap(), b"there before");
    let mut rng = Rng(3);
    let kept = write_until_full(&at, &mut rng);
    assert!(!kept.is_empty());
    assert_kept(&at, &kept, &b);
    assert_eq!(fs::read(at.join("old")).unwrap(), b"there before");
    b.status();

    // Killed on the full disk, and started on it.
    b.kill();
    let _dead = Command::new("umount").arg("-l").arg(&at).output();
    let full = Command::new("df").arg(&disk).output().unwrap();
    fs::remove_file(&ballast).unwrap();
    let b = world.mount(&links.write, &at, "disk/state", &[&a]);
    assert_kept(&at, &kept, &b);

    // With space it goes on: what was kept reaches the others, and new files can be written.
    write_durably(&at.join("later"), b"written later").unwrap();
    let arrived = eventually(|| {
        let Ok(found) = tree(&at_a) else { return false };
        found.contains_key(b"later".as_slice())
            && kept.keys().all(|name| found.contains_key(name.as_bytes()))
    });
    assert!(arrived, "{}\n{}\n{}", text(&full), a.log(), b.log());
    assert_kept(&at_a, &kept, &a);
    drop(b);
    drop(small);
}

#[test]
fn a_running_service_goes_on_when_space_returns() {
    need_root();
    let world = World::new();
    let (src, at, disk) = (world.dir("src"), world.dir("at"), world.dir("disk"));
    let at_a = world.dir("at-a");
    let small = SmallDisk::new(&disk);
    let ballast = disk.join("ballast");
    fs::write(&ballast, vec![1; BALLAST_MIB << 20]).unwrap();
    let (mut a, links) = world.share(&src, "a");
    a.mount_again(&src, &at_a);
    let b = world.mount(&links.write, &at, "disk/state", &[&a]);
    let mut rng = Rng(4);
    let kept = write_until_full(&at, &mut rng);
    fs::remove_file(&ballast).unwrap();
    let works = eventually(|| write_durably(&at.join("later"), b"written later").is_ok());
    assert!(works, "{}", b.log());
    let arrived = eventually(|| fs::read(at_a.join("later")).is_ok_and(|t| t == b"written later"));
    assert!(arrived, "{}\n{}", a.log(), b.log());
    assert_kept(&at, &kept, &b);
    assert_kept(&at_a, &kept, &a);
    drop(b);
    drop(small);
}

#[test]
fn a_daemon_started_on_a_full_disk_opens_its_folders_when_space_returns() {
    need_root();
    let world = World::new();
    let (src, at, disk) = (world.dir("src"), world.dir("at"), world.dir("disk"));
    let small = SmallDisk::new(&disk);
    fs::write(src.join("f"), b"shared before").unwrap();
    let (mut a, links) = world.share(&src, "disk/state");
    a.kill();
    small.fill_up_to(0);
    let state = disk.join("state");
    let a = world.launch(ccbt(&state), &state, &[], &["daemon"]);
    a.wait("the daemon", || a.try_run(&["status"]).status.success());
    let unopened = || {
        a.status()["unopened"][0]["error"]
            .as_str()
            .map(str::to_owned)
    };
    a.wait("the status to say why", || {
        unopened().is_some_and(|why| why.contains("no space left"))
    });
    assert_eq!(a.status()["folders"].as_array().unwrap().len(), 0);
    fs::remove_file(disk.join("filler")).unwrap();
    a.wait("the folder", || unopened().is_none());
    let b = world.mount(&links.write, &at, "b", &[&a]);
    assert_eq!(fs::read(at.join("f")).unwrap(), b"shared before");
    drop(b);
    drop(a);
    drop(small);
}

#[test]
fn sharing_with_the_state_on_a_full_disk_changes_nothing_and_works_later() {
    need_root();
    let world = World::new();
    let (src, disk) = (world.dir("src"), world.dir("disk"));
    let mut rng = Rng(9);
    for n in 0..300 {
        fs::write(src.join(format!("f{n}")), rng.bytes(3000)).unwrap();
    }
    let before = tree(&src).unwrap();
    let small = SmallDisk::new(&disk);
    for free in [0, 16 << 10, 64 << 10] {
        small.fill_up_to(free);
        let state = disk.join(format!("state-{free}"));
        let output = ccbt(&state)
            .args(["share", src.to_str().unwrap(), "--no-dht", "--no-lsd"])
            .args(["--listen", "127.0.0.1:0"])
            .output()
            .unwrap();
        let said = text(&output);
        assert_eq!(output.status.code(), Some(8), "{free} bytes free: {said}");
        assert!(said.contains("no space left"), "{said}");
        assert!(!said.contains("panicked"), "{said}");
        assert_eq!(tree(&src).unwrap(), before);
        assert!(
            !src.join(".ccbt").exists(),
            "{free} bytes free: the marker stays"
        );
        let _part = fs::remove_dir_all(&state);
        fs::remove_file(disk.join("filler")).unwrap();
    }
    let (a, _) = world.share(&src, "disk/state");
    assert_eq!(a.status()["folders"][0]["content"]["files"], 300);
    drop(a);
    drop(small);
}
