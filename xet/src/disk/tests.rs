//! The fake disk: what survives a crash, what a full or failing one does.

use super::*;

/// Both disks must agree on everything but durability.
fn check_operations(disk: &dyn Disk, root: &Path) {
    let dir = root.join("a/b");
    disk.create_dir(&dir).unwrap();
    disk.create_dir(&dir).unwrap();
    let missing = disk.open(&dir.join("x"), OpenMode::Write).unwrap_err();
    assert_eq!(missing.kind(), io::ErrorKind::NotFound);
    let file = disk.open(&dir.join("x"), OpenMode::Create).unwrap();
    let many: Vec<Vec<u8>> = (0..200u8).map(|i| vec![i; usize::from(i % 5)]).collect();
    let parts: Vec<&[u8]> = many.iter().map(Vec::as_slice).collect();
    file.write_at(3, &parts).unwrap();
    let mut want = vec![0; 3];
    want.extend(many.concat());
    let mut got = vec![0; want.len()];
    assert_eq!(file.len().unwrap(), want.len() as u64);
    file.read_at(0, &mut got).unwrap();
    assert_eq!(got, want);
    let short = file.read_at(1, &mut got).unwrap_err();
    assert_eq!(short.kind(), io::ErrorKind::UnexpectedEof);
    file.set_len(4).unwrap();
    file.set_len(6).unwrap();
    let mut cut = [9; 6];
    file.read_at(0, &mut cut).unwrap();
    assert_eq!(cut, [0, 0, 0, want[3], 0, 0]);
    disk.rename(&dir.join("x"), &dir.join("y")).unwrap();
    assert_eq!(disk.list(&dir).unwrap(), [dir.join("y")]);
    let reader = disk.open(&dir.join("y"), OpenMode::Read).unwrap();
    assert!(reader.write_at(0, &[b"no"]).is_err());
    disk.remove(&dir.join("y")).unwrap();
    reader.read_at(0, &mut cut).unwrap();
    assert_eq!(disk.list(&dir).unwrap(), [] as [PathBuf; 0]);
    assert_eq!(disk.list(root).unwrap(), [] as [PathBuf; 0]);
}

#[test]
fn real_and_memory_agree() {
    let dir = tempfile::tempdir().unwrap();
    check_operations(&RealDisk, dir.path());
    check_operations(&MemDisk::new(), Path::new("/state"));
}

fn new_synced(disk: &MemDisk, path: &str) -> Box<dyn DiskFile> {
    disk.create_dir(Path::new("/d")).unwrap();
    let file = disk.open(Path::new(path), OpenMode::Create).unwrap();
    disk.sync_dir(Path::new("/d")).unwrap();
    file
}

#[test]
fn synced_bytes_survive_and_unsynced_are_kept_lost_or_torn() {
    let (mut kept, mut lost, mut torn) = (0, 0, 0);
    for seed in 0..60 {
        let disk = MemDisk::new();
        let file = new_synced(&disk, "/d/f");
        file.write_at(0, &[&[1; 1000]]).unwrap();
        file.sync().unwrap();
        file.write_at(1000, &[&[2; 3000]]).unwrap();
        disk.crash(seed);
        assert!(file.len().is_err(), "seed {seed}: a dead handle works");
        let bytes = disk.contents(Path::new("/d/f")).unwrap();
        assert_eq!(bytes[..1000], [1; 1000], "seed {seed}");
        match bytes.len() {
            1000 => lost += 1,
            4000 if bytes[1000..] == [2; 3000] => kept += 1,
            _ => torn += 1,
        }
    }
    assert!(kept > 5 && lost > 5 && torn > 5, "{kept} {lost} {torn}");
}

#[test]
fn names_need_their_directory_synced() {
    let mut outcomes = std::collections::BTreeSet::new();
    for seed in 0..60 {
        let disk = MemDisk::new();
        new_synced(&disk, "/d/f").sync().unwrap();
        disk.rename(Path::new("/d/f"), Path::new("/d/g")).unwrap();
        disk.open(Path::new("/d/h"), OpenMode::Create).unwrap();
        disk.crash(seed);
        let names = disk.list(Path::new("/d")).unwrap();
        assert_eq!(
            names.iter().filter(|name| !name.ends_with("h")).count(),
            1,
            "{names:?}"
        );
        outcomes.insert(names);
    }
    assert_eq!(outcomes.len(), 4);
}

#[test]
fn limits_of_space_and_operations() {
    let disk = MemDisk::new();
    let file = new_synced(&disk, "/d/f");
    disk.limit_space(Some(10));
    file.write_at(0, &[b"123456"]).unwrap();
    let full = file.write_at(6, &[b"abcdef"]).unwrap_err();
    assert_eq!(full.kind(), io::ErrorKind::StorageFull);
    assert_eq!(disk.contents(Path::new("/d/f")).unwrap(), b"123456abcd");
    file.write_at(0, &[b"654321"]).unwrap();
    disk.limit_space(None);
    file.write_at(6, &[b"abcdef"]).unwrap();
    let before = disk.operations();
    disk.fail_after(1);
    file.sync().unwrap();
    assert!(file.sync().is_err());
    assert!(file.len().is_err());
    assert_eq!(disk.operations(), before + 1);
    disk.kill();
    assert_eq!(disk.contents(Path::new("/d/f")).unwrap(), b"654321abcdef");
}
