//! A disk that is too small for a whole replica: status says so, peers are left alone, and it goes on when there is space.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::netns::run;
use crate::support::{Rng, World, tree};

/// A file system in memory of a given size, gone when dropped.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn new(at: PathBuf, size: &str) -> Self {
        let size = format!("size={size}");
        let args = ["-t", "tmpfs", "-o", &size, "tmpfs", at.to_str().unwrap()];
        run("mount", &args);
        Self(at)
    }

    fn grow(&self, size: &str) {
        let size = format!("remount,size={size}");
        run("mount", &["-o", &size, self.0.to_str().unwrap()]);
    }

    fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let at = self.0.to_str().unwrap();
        let _gone = std::process::Command::new("umount")
            .args(["-l", at])
            .output();
    }
}

#[test]
fn a_replica_without_room_waits_and_then_goes_on() {
    let world = World::new();
    let (src, at_b) = (world.dir("src"), world.dir("at-b"));
    let mut rng = Rng(8);
    for n in 0..60 {
        fs::write(src.join(format!("f{n}")), rng.bytes(1 << 20)).unwrap();
    }
    let (a, links) = world.share(&src, "a");
    let disk = SmallDisk::new(world.dir("disk"), "40m");
    let state = disk.path().join("b");
    let b = world.mount(&links.read, &at_b, state.to_str().unwrap(), &[&a]);
    let output = b.try_run(&["pin", at_b.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(8), "{output:?}");
    let waiting = || b.status()["folders"][0]["waiting"].to_string();
    b.wait("status to say so", || waiting().contains("cannot be kept"));

    let received = || b.metric("ccbt_wire_bytes_in_total");
    let before = received();
    std::thread::sleep(Duration::from_secs(12));
    let more = received() - before;
    // At most the rounds after 5 and 10 s, each what a peer is asked for at once.
    assert!(more <= 40 << 20, "{more} bytes were fetched for nothing");

    disk.grow("200m");
    b.wait("the rest", || {
        b.status()["folders"][0]["missing"]["bytes"] == 0
    });
    assert_eq!(tree(&src).unwrap(), tree(&at_b).unwrap());
    assert_eq!(b.status()["folders"][0]["waiting"], serde_json::Value::Null);
}
