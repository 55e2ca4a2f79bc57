//! A folder mounted through the kernel, on a real disk: what programs do, and that it is all there after a remount.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::sync::{Arc, Weak};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ccbt::folder::state::Inc;
use ccbt::folder::work::{
    Clock, Dirty, Fetch, FetchError, Fetched, Folder, FolderConfig, Observer, Priority, Unsigned,
    WantedChunk,
};
use ccbt::volume::FolderVolume;
use ccbt_mount::MountOptions;
use ccbt_xet::disk::RealDisk;
use ccbt_xet::hash::NodeId;
use ccbt_xet::store::{Store, StoreOptions};

struct Wall;

impl Clock for Wall {
    fn now_ns(&self) -> u64 {
        SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap()
            .as_nanos() as u64
    }
}

/// No peers, nobody to tell.
struct Alone;

impl Fetch for Alone {
    fn chunks(&self, _: Vec<WantedChunk>, _: Priority, done: Fetched) {
        done(Err(FetchError::NoPeer));
    }

    fn nodes(&self, _: Vec<(u8, NodeId)>, _: Priority, done: Fetched) {
        done(Err(FetchError::NoPeer));
    }

    fn ahead(&self, _: Vec<WantedChunk>, _: Weak<()>, done: Fetched) {
        done(Err(FetchError::NoPeer));
    }
}

impl Observer for Alone {
    fn dirty(&self, _: Dirty) {}
}

fn open(dir: &Path) -> Arc<Folder> {
    let disk = Arc::new(RealDisk);
    let options = StoreOptions::default();
    let store = Arc::new(Store::open(&dir.join("store"), disk.clone(), options).unwrap());
    let folder = Folder::open(FolderConfig {
        rename_row: |_, _| None,
        held_content: |_, _| None,
        dir: dir.join("folder"),
        disk,
        store,
        inc: Inc([7; 8]),
        clock: Arc::new(Wall),
        read_only: false,
        fetch: Arc::new(Alone),
        observer: Arc::new(Alone),
        device_name: Arc::new(|_| None),
        read_timeout: Duration::from_secs(30),
    });
    Arc::new(folder.unwrap())
}

fn use_it(at: &Path, big: &[u8], folder: &Folder) {
    fs::create_dir(at.join("dir")).unwrap();
    fs::write(at.join("dir/big"), big).unwrap();
    fs::write(at.join("small"), b"small").unwrap();
    fs::hard_link(at.join("small"), at.join("dir/linked")).unwrap();
    let file = fs::File::options()
        .write(true)
        .open(at.join("dir/big"))
        .unwrap();
    file.write_all_at(b"edited", 1_000_000).unwrap();
    file.sync_all().unwrap();
    folder
        .publish(&|_: Unsigned| Ok([0; 197]))
        .unwrap()
        .expect("something to publish");
    assert_eq!(fs::metadata(at.join("small")).unwrap().nlink(), 2);
    fs::rename(at.join("small"), at.join("renamed")).unwrap();
    fs::write(at.join("gone"), b"x").unwrap();
    fs::remove_file(at.join("gone")).unwrap();
}

#[test]
fn a_folder_is_a_file_system_and_is_the_same_after_a_remount() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path().join("mnt");
    fs::create_dir(&at).unwrap();
    let mut big: Vec<u8> = (0..3_000_000_u32)
        .map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8)
        .collect();
    let mut numbers = None;
    for round in 0..2 {
        let folder = open(dir.path());
        let volume = Arc::new(FolderVolume::new(folder.clone()));
        let mount = ccbt_mount::mount(volume, &at, &MountOptions::default()).unwrap();
        if round == 0 {
            use_it(&at, &big, &folder);
            big[1_000_000..1_000_006].copy_from_slice(b"edited");
        }
        assert!(
            fs::read(at.join("dir/big")).unwrap() == big,
            "round {round}"
        );
        assert_eq!(fs::read(at.join("renamed")).unwrap(), b"small");
        assert_eq!(fs::read(at.join("dir/linked")).unwrap(), b"small");
        let mut names: Vec<_> = fs::read_dir(&at)
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        names.sort();
        assert_eq!(names, ["dir", "renamed"]);
        let found =
            ["dir", "dir/big", "renamed"].map(|name| fs::metadata(at.join(name)).unwrap().ino());
        assert_eq!(
            *numbers.get_or_insert(found),
            found,
            "inode numbers changed"
        );
        mount.unmount().unwrap();
        folder.shutdown().unwrap();
    }
}
