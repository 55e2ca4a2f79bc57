//! Many files and a large one: every byte arrives, and neither daemon takes more memory than it may.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::support::{Daemon, Rng, World, wait_equal};

const SMALL_FILES: u64 = 50_000;
const FILES_PER_DIR: u64 = 500;
const LARGE_LEN: u64 = 4 << 30;
/// The daemon's own and the budget of readers.
const MEMORY_MAX: u64 = (200 + 256) << 20;
const BLOCK_LEN: usize = 4 << 20;

fn assert_memory(daemons: [&Daemon; 2]) {
    for daemon in daemons {
        let peak = daemon.peak_memory();
        println!("{}: {} MiB", daemon.state.display(), peak >> 20);
        assert!(
            peak <= MEMORY_MAX,
            "{}: {} MiB",
            daemon.state.display(),
            peak >> 20
        );
    }
}

/// A directory for many files: where every removal is a discard on the disk, removing them takes minutes.
fn in_memory() -> tempfile::TempDir {
    let mut builder = tempfile::Builder::new();
    builder.prefix("ccbt-e2e.");
    builder
        .tempdir_in("/dev/shm")
        .or_else(|_| builder.tempdir())
        .unwrap()
}

#[test]
fn fifty_thousand_small_files_arrive() {
    let world = World::new();
    let plain = in_memory();
    let (src, at_a, at_b) = (plain.path(), world.dir("at-a"), world.dir("at-b"));
    let mut rng = Rng(50);
    for dir in 0..SMALL_FILES / FILES_PER_DIR {
        let dir = src.join(format!("dir-{dir}"));
        fs::create_dir(&dir).unwrap();
        for file in 0..FILES_PER_DIR {
            let len = rng.below(2_000) as usize;
            fs::write(dir.join(format!("{file}")), rng.bytes(len)).unwrap();
        }
    }
    let (mut a, links) = world.share(src, "a");
    let b = world.mount(&links.write, &at_b, "b", &[&a]);
    wait_equal(src, &at_b, &[&a, &b]);

    a.mount_again(src, &at_a);
    fs::write(at_b.join("dir-7/7"), b"edited among many").unwrap();
    fs::remove_file(at_b.join("dir-8/8")).unwrap();
    a.wait("b's edits among many files", || {
        fs::read(at_a.join("dir-7/7")).is_ok_and(|text| text == b"edited among many")
            && !at_a.join("dir-8/8").exists()
    });
    wait_equal(&at_a.join("dir-7"), &at_b.join("dir-7"), &[&a, &b]);
    assert_memory([&a, &b]);
}

/// Content that can be made from any place on: 8 bytes for each number, as [`Rng`] makes them one after the other.
fn fill(at: u64, buf: &mut [u8]) {
    assert!(at.is_multiple_of(8) && buf.len().is_multiple_of(8));
    let mut rng = Rng(0x9E37_79B9_7F4A_7C15_u64.wrapping_mul(at / 8));
    for word in buf.chunks_exact_mut(8) {
        word.copy_from_slice(&rng.next().to_le_bytes());
    }
}

/// Writes the large file; its hash.
fn write_large(path: &Path) -> blake3::Hash {
    let mut file = fs::File::create(path).unwrap();
    let (mut hasher, mut block) = (blake3::Hasher::new(), vec![0; BLOCK_LEN]);
    for at in (0..LARGE_LEN).step_by(BLOCK_LEN) {
        fill(at, &mut block);
        hasher.update(&block);
        file.write_all(&block).unwrap();
    }
    hasher.finalize()
}

fn hash_of(path: &Path) -> blake3::Hash {
    let mut file = fs::File::open(path).unwrap();
    let (mut hasher, mut block) = (blake3::Hasher::new(), vec![0; BLOCK_LEN]);
    loop {
        let n = file.read(&mut block).unwrap();
        if n == 0 {
            return hasher.finalize();
        }
        hasher.update(&block[..n]);
    }
}

#[test]
fn a_file_of_four_gibibytes_is_read_anywhere_and_edited_in_the_middle() {
    let world = World::new();
    let (src, at_a, at_b) = (world.dir("src"), world.dir("at-a"), world.dir("at-b"));
    let hash = write_large(&src.join("large"));
    let (mut a, links) = world.share(&src, "a");
    let b = world.mount(&links.write, &at_b, "b", &[&a]);

    let large = fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open(at_b.join("large"))
        .unwrap();
    assert_eq!(large.metadata().unwrap().len(), LARGE_LEN);
    let mut rng = Rng(4);
    for _ in 0..100 {
        let at = rng.below(LARGE_LEN - 9_000);
        let (mut got, mut want) = (vec![0; 8_000], vec![0; 8_008]);
        large.read_exact_at(&mut got, at).unwrap();
        fill(at / 8 * 8, &mut want);
        assert!(got == want[(at % 8) as usize..][..8_000], "at {at}");
    }
    assert!(hash_of(&at_b.join("large")) == hash, "{}", b.log());

    a.mount_again(&src, &at_a);
    let (patch, at) = (rng.bytes(4_096), LARGE_LEN / 2 + 12_345);
    large.write_all_at(&patch, at).unwrap();
    drop(large);
    // An open file goes on showing the version it was opened on.
    a.wait("the edit in the middle", || {
        let seen = fs::File::open(at_a.join("large")).unwrap();
        let mut got = vec![0; patch.len()];
        seen.read_exact_at(&mut got, at).is_ok() && got == patch
    });
    for side in [&at_a, &at_b] {
        let file = fs::File::open(side.join("large")).unwrap();
        assert_eq!(file.metadata().unwrap().len(), LARGE_LEN);
        let around = (at - at % 8) - (1 << 20);
        let (mut got, mut want) = (vec![0; 2 << 20], vec![0; 2 << 20]);
        file.read_exact_at(&mut got, around).unwrap();
        fill(around, &mut want);
        want[(at - around) as usize..][..patch.len()].copy_from_slice(&patch);
        assert!(got == want, "around the edit in {}", side.display());
    }
    assert_memory([&a, &b]);
}
