//! A volume in memory on a real mount, for the tests of this directory.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use ccbt_mount::{
    Caller, Ino, MemoryVolume, Mount, MountOptions, Notifier, OpenMode, Volume, mount,
};
use tempfile::TempDir;

/// Longest wait for something that normally happens at once.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) const READ_WRITE: OpenMode = OpenMode {
    read: true,
    write: true,
    append: false,
    truncate: false,
};

const CAPACITY: u64 = 1 << 30;

/// A mounted volume; unmounted before its directory is removed.
pub(crate) struct Mounted {
    pub(crate) mount: Mount,
    pub(crate) volume: Arc<MemoryVolume>,
    dir: TempDir,
}

impl Mounted {
    pub(crate) fn new() -> Self {
        Self::with(&MountOptions::default())
    }

    pub(crate) fn with(options: &MountOptions) -> Self {
        let dir = directory();
        let volume = Arc::new(MemoryVolume::new(owner(), CAPACITY));
        let mount = mount(volume.clone(), dir.path(), options).expect("mounting");
        Self { mount, volume, dir }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn root(&self) -> &Path {
        self.dir.path()
    }

    pub(crate) fn notifier(&self) -> Arc<dyn Notifier> {
        self.volume.notifier().expect("attached by mounting")
    }

    /// The inode of a name in the root, as the volume sees it.
    pub(crate) fn ino(&self, name: &str) -> Ino {
        self.volume
            .lookup(Ino::ROOT, name.as_bytes())
            .expect("looked up in the volume")
            .ino
    }

    /// Makes a file as a peer would: the kernel is not told.
    pub(crate) fn create_outside(&self, name: &str, content: &[u8]) -> Ino {
        let (attr, opened) = self
            .volume
            .create(Ino::ROOT, name.as_bytes(), 0o644, READ_WRITE, owner())
            .expect("created in the volume");
        self.volume
            .write(attr.ino, opened.handle, 0, content)
            .expect("written in the volume");
        self.volume.release(attr.ino, opened.handle);
        attr.ino
    }
}

pub(crate) fn owner() -> Caller {
    Caller {
        uid: rustix::process::getuid().as_raw(),
        gid: rustix::process::getgid().as_raw(),
    }
}

/// An empty directory to mount on. Without `/dev/fuse` nothing here can be tested, and that must not pass unnoticed.
pub(crate) fn directory() -> TempDir {
    assert!(
        Path::new("/dev/fuse").exists(),
        "these tests mount: load the kernel module with `modprobe fuse`, or run the container with --device /dev/fuse"
    );
    tempfile::tempdir().expect("a temporary directory")
}

/// Waits until `condition` holds and fails the test if it does not come true.
pub(crate) fn eventually(what: &str, condition: impl FnMut() -> bool) {
    assert!(
        within(PATIENCE, condition),
        "{what}: not within {PATIENCE:?}"
    );
}

/// Whether `condition` comes true within `limit`.
pub(crate) fn within(limit: Duration, mut condition: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + limit;
    loop {
        if condition() {
            return true;
        }
        if Instant::now() > deadline {
            return false;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// The `memfs` example next to this test's binary.
pub(crate) fn memfs() -> PathBuf {
    let test = std::env::current_exe().expect("the path of the test");
    let target = test
        .parent()
        .and_then(Path::parent)
        .expect("a target directory");
    let path = target.join("examples/memfs");
    assert!(
        path.exists(),
        "build it first: cargo build -p ccbt-mount --examples"
    );
    path
}

/// A `memfs` process whose mount is up.
pub(crate) fn start(mount_point: &Path) -> Child {
    let mut child = Command::new(memfs())
        .arg(mount_point)
        .stdout(Stdio::null())
        .spawn()
        .expect("memfs starts");
    eventually("memfs mounts", || {
        assert_eq!(
            child.try_wait().expect("asking for the state"),
            None,
            "memfs ended"
        );
        ccbt_mount::is_ccbt_mount(mount_point).expect("the mount table")
    });
    child
}
