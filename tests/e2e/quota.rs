//! Content that others hold makes room: for the store's quota, and on a disk that is full. What was promised to be here
//! stays.

use std::fs;
use std::path::{Path, PathBuf};

use crate::netns::run;
use crate::support::{Daemon, Rng, World, ccbt};

/// Files of this many bytes, together more than there is room for.
const FILE_BYTES: usize = 40 << 20;
const FILES: u64 = 7;
const QUOTA: u64 = 100 << 20;
/// The pack that is being written is not given up, and one that is half empty not yet.
const PACKS: u64 = 2 * (64 << 20);

/// Shares files of random bytes.
fn share(world: &World, src: &Path) -> (Daemon, String, Vec<blake3::Hash>) {
    let mut rng = Rng(12);
    let hashes = (0..FILES).map(|n| {
        let content = rng.bytes(FILE_BYTES);
        fs::write(src.join(format!("f{n}")), &content).unwrap();
        blake3::hash(&content)
    });
    let hashes = hashes.collect();
    let (a, links) = world.share(src, "a");
    (a, links.write, hashes)
}

fn read_all(at: &Path, hashes: &[blake3::Hash], daemon: &Daemon) {
    for (n, hash) in hashes.iter().enumerate() {
        let content = fs::read(at.join(format!("f{n}")));
        let content = content.unwrap_or_else(|error| panic!("f{n}: {error}\n{}", daemon.log()));
        assert!(blake3::hash(&content) == *hash, "f{n} is something else");
    }
}

#[test]
fn a_store_above_its_quota_drops_what_others_hold_and_keeps_what_is_pinned() {
    let world = World::new();
    let (src, at) = (world.dir("src"), world.dir("at"));
    let (a, link, hashes) = share(&world, &src);
    let state = world.dir("b");
    let start = || {
        let mut command = ccbt(&state);
        command.env("CCBT_STORE_QUOTA", QUOTA.to_string());
        let args = ["mount", &link, at.to_str().unwrap()];
        let mut daemon = world.launch(command, &state, &[a.port], &args);
        daemon.watch_mount(&at);
        daemon.wait("the listing", || at.join("f0").exists());
        daemon
    };
    let mut b = start();
    read_all(&at, &hashes, &b);
    let bytes = || b.metric("ccbt_store_bytes");
    b.wait("the quota", || bytes() <= QUOTA + PACKS);
    read_all(&at, &hashes, &b);

    b.run(&["pin", at.to_str().unwrap()]);
    let missing = |b: &Daemon| b.status()["folders"][0]["missing"]["files"].clone();
    assert_eq!(missing(&b), 0);
    assert!(bytes() >= FILES * FILE_BYTES as u64);
    // Longer than between two looks.
    std::thread::sleep(std::time::Duration::from_secs(3));
    assert_eq!(missing(&b), 0, "what is pinned was dropped");
    assert_eq!(b.stop(), 0);
    drop(a);
}

/// A file system in memory, gone when dropped.
struct SmallDisk(PathBuf);

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let at = self.0.to_str().unwrap();
        let umount = std::process::Command::new("umount")
            .args(["-l", at])
            .output();
        assert!(umount.is_ok());
    }
}

#[test]
fn a_reader_on_a_full_disk_goes_on_with_what_others_hold_dropped() {
    let world = World::new();
    let (src, at, disk) = (world.dir("src"), world.dir("at"), world.dir("disk"));
    let (a, link, hashes) = share(&world, &src);
    let size = format!("size={}", 4 * FILE_BYTES);
    run(
        "mount",
        &["-t", "tmpfs", "-o", &size, "tmpfs", disk.to_str().unwrap()],
    );
    let small = SmallDisk(disk.clone());
    let b = world.mount(&link, &at, disk.join("b").to_str().unwrap(), &[&a]);
    read_all(&at, &hashes, &b);
    read_all(&at, &hashes, &b);
    drop(b);
    drop(small);
    drop(a);
}
