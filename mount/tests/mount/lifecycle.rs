//! Mounting and unmounting: by us, by others, after a crash, as an ordinary user.

use std::fs;
use std::io::Read;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use crate::support::{Mounted, PATIENCE, directory, eventually, memfs, owner, start};
use ccbt_mount::{
    MemoryVolume, MountError, MountOptions, Unmounted, detach_dead, is_ccbt_mount, is_fuse_mount,
    is_mount_point, mount,
};
use rustix::io::Errno;
use rustix::mount::{UnmountFlags, unmount};
use rustix::process::{Pid, Signal, kill_process};

fn signal(child: &std::process::Child, signal: Signal) {
    kill_process(Pid::from_child(child), signal).expect("the child is there");
}

/// The line of the mount table for `path`.
fn table_line(path: &Path) -> String {
    let table = fs::read_to_string("/proc/self/mounts").expect("the mount table");
    let name = path.display().to_string();
    table
        .lines()
        .find(|line| line.contains(&name))
        .unwrap_or_default()
        .to_owned()
}

#[test]
fn the_table_shows_type_and_source() {
    let options = MountOptions {
        fsname: "ccbt:a, b".into(),
        ..MountOptions::default()
    };
    let m = Mounted::with(&options);
    let line = table_line(m.root());
    assert!(line.starts_with("ccbt:a,\\040b "), "{line}");
    assert!(
        line.contains(" fuse.ccbt ") && line.contains("default_permissions"),
        "{line}"
    );
    assert!(is_ccbt_mount(m.root()).unwrap() && is_fuse_mount(m.root()).unwrap());
    assert!(is_mount_point(m.mount.path()).unwrap());
    let path = m.mount.path().to_owned();
    assert_eq!(m.mount.unmount().unwrap(), Unmounted::Done);
    assert!(!is_mount_point(&path).unwrap());
}

#[test]
fn what_was_in_the_directory_comes_back_and_a_volume_is_let_go() {
    let dir = directory();
    fs::write(dir.path().join("below"), b"").unwrap();
    let volume = Arc::new(MemoryVolume::new(owner(), 1 << 20));
    let mounted = mount(volume.clone(), dir.path(), &MountOptions::default()).unwrap();
    assert!(!dir.path().join("below").exists());
    assert_eq!(mounted.unmount().unwrap(), Unmounted::Done);
    assert!(dir.path().join("below").exists());
    eventually("nobody else holds the volume", || {
        Arc::strong_count(&volume) == 1
    });
}

#[test]
fn an_open_file_does_not_keep_the_mount() {
    let m = Mounted::new();
    fs::write(m.path("file"), b"content").unwrap();
    let mut file = fs::File::open(m.path("file")).unwrap();
    let path = m.mount.path().to_owned();
    let unmounting = std::thread::spawn(move || m.mount.unmount().unwrap());
    eventually("the mount leaves the tree", || {
        !is_mount_point(&path).unwrap()
    });
    let mut content = String::new();
    file.read_to_string(&mut content).unwrap();
    assert_eq!(content, "content", "the open file is still served");
    drop(file);
    assert_eq!(unmounting.join().unwrap(), Unmounted::Done);
}

#[test]
fn a_file_that_stays_open_is_reported() {
    let m = Mounted::new();
    fs::write(m.path("file"), b"content").unwrap();
    let file = fs::File::open(m.path("file")).unwrap();
    let path = m.mount.path().to_owned();
    assert_eq!(m.mount.unmount().unwrap(), Unmounted::StillInUse);
    assert!(!is_mount_point(&path).unwrap());
    assert_eq!(file.metadata().unwrap().len(), 7);
}

#[test]
fn an_external_unmount_is_seen_and_what_came_after_is_left_alone() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let m = Mounted::new();
    assert!(!m.mount.wait_for(Duration::from_millis(20)));
    unmount(m.root(), UnmountFlags::empty()).unwrap();
    assert!(
        m.mount.wait_for(PATIENCE),
        "the end of the mount was not seen"
    );
    m.mount.wait();
    let volume = Arc::new(MemoryVolume::new(owner(), 1 << 20));
    let second = mount(volume, m.root(), &MountOptions::default()).unwrap();
    assert_eq!(m.mount.unmount().unwrap(), Unmounted::Done);
    assert!(
        is_ccbt_mount(second.path()).unwrap(),
        "the second mount was taken down"
    );
    let path = second.path().to_owned();
    drop(second);
    assert!(!is_mount_point(&path).unwrap(), "dropping unmounts");
}

#[test]
fn a_dead_mount_is_detached_before_mounting() {
    let dir = directory();
    let mut child = start(dir.path());
    fs::write(dir.path().join("lost"), b"").unwrap();
    assert!(!detach_dead(dir.path()).unwrap(), "the mount is alive");
    signal(&child, Signal::KILL);
    child.wait().unwrap();
    let error = fs::metadata(dir.path()).unwrap_err();
    assert_eq!(Errno::from_io_error(&error), Some(Errno::NOTCONN));
    assert!(is_ccbt_mount(dir.path()).unwrap());

    let volume = Arc::new(MemoryVolume::new(owner(), 1 << 20));
    let mounted = mount(volume, dir.path(), &MountOptions::default()).unwrap();
    fs::write(dir.path().join("kept"), b"").unwrap();
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    assert_eq!(mounted.unmount().unwrap(), Unmounted::Done);
    assert!(
        !is_mount_point(dir.path()).unwrap(),
        "the dead mount came back"
    );
    assert!(!detach_dead(dir.path()).unwrap());
}

#[test]
fn sigterm_ends_the_example_cleanly() {
    let dir = directory();
    let mut child = start(dir.path());
    signal(&child, Signal::TERM);
    assert!(child.wait().unwrap().success());
    assert!(!is_mount_point(dir.path()).unwrap());
}

/// What an ordinary user sees, from a mount to its end. Runs in a mount namespace of its own where `/dev/fuse` is open to
/// all, as udev leaves it on most machines.
const AS_USER: &str = r#"
set -e
mount -t tmpfs -o mode=755 tmpfs "$1"
cd "$1"
cp "$2" memfs
mknod -m 666 fuse c 10 229
mount --bind fuse /dev/fuse
mkdir point
chown 65534:65534 point
as_user='setpriv --reuid=65534 --regid=65534 --clear-groups'
$as_user ./memfs point &
for i in $(seq 1000); do grep -q "$1/point fuse" /proc/mounts && break; sleep 0.01; done
grep "$1/point" /proc/mounts | cut -d' ' -f1,3
$as_user sh -c 'echo hello > point/file && cat point/file && stat -c %u point/file'
cat point/file 2>&1 || true
kill -TERM $!
wait $!
grep -c "$1/point" /proc/mounts || true
"#;

#[test]
fn an_ordinary_user_mounts_through_the_helper() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let dir = directory();
    let output = Command::new("timeout")
        .args(["60", "unshare", "--mount", "sh", "-c", AS_USER, "sh"])
        .args([dir.path(), &memfs()])
        .output()
        .unwrap();
    let shown = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    let point = dir.path().canonicalize().unwrap().join("point");
    let expected = format!(
        "memfs fuse.ccbt\nmounted on {}\nhello\n65534\ncat: point/file: Permission denied\n0\n",
        point.display()
    );
    let sorted = |text: &str| {
        let mut lines: Vec<_> = text.lines().map(str::to_owned).collect();
        lines.sort();
        lines
    };
    // The line of the background process comes when it comes.
    assert_eq!(sorted(&shown), sorted(&expected), "{errors}");
    assert!(output.status.success(), "{errors}");
}

#[test]
fn errors_say_what_to_do() {
    let dir = directory();
    let volume = || Arc::new(MemoryVolume::new(owner(), 1 << 20));
    let refused = |path: &Path| {
        let error = mount(volume(), path, &MountOptions::default()).err();
        error.expect("mounting must fail")
    };
    let missing = dir.path().join("not there");
    let error = refused(&missing);
    assert!(matches!(error, MountError::NotFound { .. }));
    assert!(error.to_string().contains("mkdir -p '"), "{error}");

    let file = dir.path().join("file");
    fs::write(&file, b"").unwrap();
    assert!(matches!(refused(&file), MountError::NotDirectory { .. }));
    assert!(matches!(
        refused(&file.join("below")),
        MountError::NotDirectory { .. }
    ));

    let mounted = mount(volume(), dir.path(), &MountOptions::default()).unwrap();
    let error = refused(dir.path());
    assert!(matches!(error, MountError::AlreadyMounted { .. }));
    assert!(error.to_string().contains("ccbt unmount /"), "{error}");
    drop(mounted);

    let options = MountOptions {
        fsname: "two\nlines".into(),
        ..MountOptions::default()
    };
    let error = mount(volume(), dir.path(), &options)
        .err()
        .expect("mounting must fail");
    assert!(matches!(error, MountError::FsName { .. }), "{error}");
    assert!(!is_mount_point(dir.path()).unwrap());
}
