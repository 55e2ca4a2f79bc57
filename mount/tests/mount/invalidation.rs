//! What the kernel keeps cached, what it is told to forget, and that neither hangs on a read that takes long.

use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::process::{Command, Stdio};
use std::sync::Arc;

use crate::stalling::{AbandonAtEnd, StallingVolume};
use crate::support::{Mounted, READ_WRITE, directory, eventually, owner};
use ccbt_mount::{Ino, MemoryVolume, MountOptions, RenameMode, Volume, mount};
use rustix::io::Errno;

#[test]
fn pages_and_attributes_are_cached_until_told() {
    let m = Mounted::new();
    fs::write(m.path("file"), b"old").unwrap();
    assert_eq!(fs::read(m.path("file")).unwrap(), b"old");
    // Fetches the attributes that the write left in doubt.
    assert_eq!(fs::metadata(m.path("file")).unwrap().len(), 3);
    let ino = m.ino("file");
    let handle = m.volume.open(ino, READ_WRITE).unwrap().handle;
    m.volume.write(ino, handle, 0, b"new content").unwrap();
    assert_eq!(
        fs::metadata(m.path("file")).unwrap().len(),
        3,
        "attributes were not cached"
    );
    assert_eq!(
        fs::read(m.path("file")).unwrap(),
        b"old",
        "pages were not cached over opens"
    );
    m.notifier().inode_changed(ino);
    eventually("the new size shows", || {
        fs::metadata(m.path("file")).unwrap().len() == 11
    });
    assert_eq!(fs::read(m.path("file")).unwrap(), b"new content");
}

#[test]
fn content_from_a_peer_shows_in_closed_and_open_files() {
    let m = Mounted::new();
    fs::write(m.path("closed"), b"old 1").unwrap();
    fs::write(m.path("open"), b"old 2").unwrap();
    let open = File::open(m.path("open")).unwrap();
    let content = |file: &File| {
        let mut buffer = [0; 32];
        let len = file.read_at(&mut buffer, 0).unwrap();
        String::from_utf8_lossy(&buffer[..len]).into_owned()
    };
    assert_eq!(fs::read(m.path("closed")).unwrap(), b"old 1");
    assert_eq!(content(&open), "old 2");
    // Of the same length, so that only the time of change tells them apart.
    m.volume.replace_content(m.ino("closed"), b"new 1").unwrap();
    m.volume.replace_content(m.ino("open"), b"new 2").unwrap();
    eventually("the closed file", || {
        fs::read(m.path("closed")).unwrap() == b"new 1"
    });
    eventually("the open file", || content(&open) == "new 2");
    m.volume
        .replace_content(m.ino("open"), b"longer than before")
        .unwrap();
    eventually("a longer one", || content(&open) == "longer than before");
}

#[test]
fn what_is_opened_is_read_to_its_end_though_the_new_size_is_not_told_yet() {
    let m = Mounted::new();
    let ino = m.create_outside("file", b"old");
    assert_eq!(fs::read(m.path("file")).unwrap(), b"old");
    let size = || fs::metadata(m.path("file")).unwrap().len();
    // Fetches the attributes that the read left in doubt.
    assert_eq!(size(), 3);
    m.volume.replace_untold(ino, b"longer than before").unwrap();
    assert_eq!(size(), 3, "attributes were not cached");
    let mut bytes = [0; 18];
    let file = File::open(m.path("file")).unwrap();
    file.read_exact_at(&mut bytes, 0).unwrap();
    assert_eq!(&bytes, b"longer than before");
}

#[test]
fn what_only_a_listing_told_the_kernel_is_invalidated_too() {
    let m = Mounted::new();
    let ino = m.create_outside("file", b"old");
    assert_eq!(fs::read_dir(m.root()).unwrap().count(), 1);
    assert_eq!(fs::metadata(m.path("file")).unwrap().len(), 3);
    m.volume.replace_content(ino, b"longer").unwrap();
    eventually("the new size", || {
        fs::metadata(m.path("file")).unwrap().len() == 6
    });
}

#[test]
fn names_from_a_peer_show_when_told() {
    let m = Mounted::new();
    fs::write(m.path("gone"), b"").unwrap();
    fs::write(m.path("stays"), b"stays").unwrap();
    fs::write(m.path("other"), b"other").unwrap();
    for name in ["gone", "stays", "other"] {
        fs::metadata(m.path(name)).unwrap();
    }
    m.volume.unlink(Ino::ROOT, b"gone").unwrap();
    let root = |name: &'static [u8]| (Ino::ROOT, name);
    m.volume
        .rename(root(b"other"), root(b"stays"), RenameMode::Replace)
        .unwrap();
    assert!(
        fs::metadata(m.path("gone")).is_ok(),
        "the name was not cached"
    );
    for name in [&b"gone"[..], b"stays", b"other"] {
        m.notifier().entry_changed(Ino::ROOT, name);
    }
    let missing = |name| fs::metadata(m.path(name)).is_err_and(|e| e.kind() == ErrorKind::NotFound);
    eventually("the removed name", || missing("gone"));
    eventually("the moved name", || missing("other"));
    eventually("the replaced name", || {
        fs::read(m.path("stays")).unwrap() == b"other"
    });
    assert_eq!(
        fs::metadata(m.path("stays")).unwrap().ino(),
        m.ino("stays").0
    );
}

#[test]
fn a_name_that_was_missing_shows_when_told() {
    let m = Mounted::new();
    assert_eq!(
        fs::metadata(m.path("new")).unwrap_err().kind(),
        ErrorKind::NotFound
    );
    m.create_outside("new", b"from a peer");
    m.notifier().entry_changed(Ino::ROOT, b"new");
    eventually("the new name", || fs::metadata(m.path("new")).is_ok());
    assert_eq!(fs::read(m.path("new")).unwrap(), b"from a peer");
}

#[test]
fn a_working_directory_keeps_its_path_when_its_name_is_told() {
    let m = Mounted::new();
    fs::create_dir_all(m.path("dir/below")).unwrap();
    let mut shell = Command::new("sh")
        .args(["-c", "read go && exec readlink /proc/self/cwd"])
        .current_dir(m.path("dir/below"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let below = Some((m.ino("dir"), &b"below"[..]));
    // What is told in one turn has no order, so the last turn is for the one before it.
    for name in [Some((Ino::ROOT, &b"dir"[..])), below, None] {
        fs::write(m.path("turn"), b"").unwrap();
        fs::metadata(m.path("turn")).unwrap();
        if let Some((parent, name)) = name {
            m.notifier().entry_changed(parent, name);
        }
        m.volume.unlink(Ino::ROOT, b"turn").unwrap();
        m.notifier().entry_changed(Ino::ROOT, b"turn");
        eventually("it is told", || !m.path("turn").exists());
    }
    shell.stdin.take().unwrap().write_all(b"go\n").unwrap();
    let said = shell.wait_with_output().unwrap();
    assert!(said.status.success(), "{said:?}");
    let path = fs::canonicalize(m.path("dir/below")).unwrap();
    assert_eq!(said.stdout.trim_ascii_end(), path.as_os_str().as_bytes());
}

#[test]
fn creating_a_name_that_a_peer_made_meanwhile_opens_it() {
    let m = Mounted::new();
    for n in 0..20 {
        let (open, exclusive) = (format!("open {n}"), format!("exclusive {n}"));
        for name in [&open, &exclusive] {
            assert!(!m.path(name).exists());
            m.create_outside(name, b"from a peer");
        }
        let file = File::options()
            .append(true)
            .create(true)
            .open(m.path(&open))
            .unwrap();
        assert_eq!(file.metadata().unwrap().ino(), m.ino(&open).0);
        let error = File::create_new(m.path(&exclusive)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::AlreadyExists);
        assert_eq!(fs::read(m.path(&open)).unwrap(), b"from a peer");
    }
}

/// More reads than threads answer the kernel, all waiting for a peer.
#[test]
fn a_stalled_read_stops_nothing_else() {
    const FILES: usize = 8;
    let dir = directory();
    let volume = Arc::new(StallingVolume::new(MemoryVolume::new(owner(), 1 << 20)));
    let mounted = mount(volume.clone(), dir.path(), &MountOptions::default()).unwrap();
    let at_end = AbandonAtEnd(volume.clone());
    let path = |n: usize| dir.path().join(n.to_string());
    for n in 0..FILES {
        fs::write(path(n), b"slow").unwrap();
    }
    let readers: Vec<_> = (0..FILES)
        .map(|n| {
            let path = path(n);
            std::thread::spawn(move || fs::read(path))
        })
        .collect();
    eventually("every reader waits", || volume.stalled() == FILES);

    fs::write(dir.path().join("quick"), b"").unwrap();
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), FILES + 1);
    // An open file whose pages are locked by the stalled read must not hold up the invalidations behind it.
    let notifier = volume.inner.notifier().unwrap();
    let stalled = volume.lookup(Ino::ROOT, b"0").unwrap().ino;
    fs::metadata(dir.path().join("quick")).unwrap();
    notifier.inode_changed(stalled);
    std::thread::sleep(std::time::Duration::from_millis(50));
    volume.unlink(Ino::ROOT, b"quick").unwrap();
    notifier.entry_changed(Ino::ROOT, b"quick");
    eventually("a later invalidation", || {
        !dir.path().join("quick").exists()
    });
    assert_eq!(volume.stalled(), FILES);

    volume.answer();
    for reader in readers {
        assert_eq!(reader.join().unwrap().unwrap(), b"slow");
    }
    drop((at_end, mounted));
}

#[test]
fn a_read_that_is_never_answered_fails() {
    let dir = directory();
    let volume = Arc::new(StallingVolume::new(MemoryVolume::new(owner(), 1 << 20)));
    let mounted = mount(volume.clone(), dir.path(), &MountOptions::default()).unwrap();
    let at_end = AbandonAtEnd(volume.clone());
    let path = dir.path().join("file");
    fs::write(&path, b"content").unwrap();
    let reader = std::thread::spawn(move || fs::read(path));
    eventually("the read waits", || volume.stalled() > 0);
    // The kernel asks again once when reading ahead has failed.
    eventually("the reader gives up", || {
        volume.abandon();
        reader.is_finished()
    });
    let error = reader.join().unwrap().unwrap_err();
    assert_eq!(Errno::from_io_error(&error), Some(Errno::IO));
    drop((at_end, mounted));
}
