//! A clock that is wrong by a year: it is said whose, nothing is lost, and all goes on once the clock is right.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::support::{Daemon, World, ccbt, wait_equal};

/// Installed by scripts/setup.
const LIBRARIES: [&str; 2] = [
    "/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1",
    "/usr/lib/aarch64-linux-gnu/faketime/libfaketime.so.1",
];

/// The command with its wall clock moved by `offset`, such as `+366d`.
fn ccbt_at(state: &Path, offset: &str) -> Command {
    let library = LIBRARIES.into_iter().find(|path| Path::new(path).exists());
    let library = library.expect("libfaketime is installed by scripts/setup");
    let mut command = ccbt(state);
    command
        .env("LD_PRELOAD", library)
        .env("FAKETIME", offset)
        .env("FAKETIME_DONT_FAKE_MONOTONIC", "1")
        // Times of files are the file system's.
        .env("NO_FAKE_STAT", "1");
    command
}

fn waiting(daemon: &Daemon) -> String {
    let folder = &daemon.status()["folders"][0];
    folder["waiting"].as_str().unwrap_or_default().to_owned()
}

fn mount_at(world: &World, offset: &str, link: &str, at: &Path, peer: &Daemon) -> Daemon {
    let state = world.dir("b");
    let args = ["mount", link, at.to_str().unwrap()];
    let mut b = world.launch(ccbt_at(&state, offset), &state, &[peer.port], &args);
    b.watch_mount(at);
    b.wait("the mount", || b.says("Mounted "));
    b
}

#[test]
fn a_device_a_year_ahead_reads_and_what_it_writes_waits_for_its_clock() {
    let world = World::new();
    let (src, at, at_a) = (world.dir("src"), world.dir("at"), world.dir("at-a"));
    fs::write(src.join("f"), b"by a").unwrap();
    let (mut a, links) = world.share(&src, "a");
    a.mount_again(&src, &at_a);
    let mut b = mount_at(&world, "+366d", &links.write, &at, &a);
    b.wait("a's file", || {
        fs::read(at.join("f")).is_ok_and(|t| t == b"by a")
    });
    fs::write(at.join("g"), b"by b").unwrap();
    a.wait("a to say so", || waiting(&a).contains("clock"));
    assert!(waiting(&a).contains("365 days ahead"), "{}", waiting(&a));
    assert!(!at_a.join("g").exists());
    // The other way it goes on.
    fs::write(src.join("h"), b"by a").unwrap();
    b.wait("a's next file", || {
        fs::read(at.join("h")).is_ok_and(|t| t == b"by a")
    });

    assert_eq!(b.stop(), 0);
    let b = world.mount(&links.write, &at, "b", &[&a]);
    wait_equal(&at, &at_a, &[&a, &b]);
    assert_eq!(fs::read(at_a.join("g")).unwrap(), b"by b");
    fs::write(at.join("g"), b"by b again").unwrap();
    a.wait("b's next edit", || {
        fs::read(at_a.join("g")).is_ok_and(|t| t == b"by b again")
    });
    fs::write(at_a.join("g"), b"by a").unwrap();
    b.wait("a's edit", || {
        fs::read(at.join("g")).is_ok_and(|t| t == b"by a")
    });
    a.wait("nothing to be left", || waiting(&a).is_empty());
}

#[test]
fn a_device_a_year_behind_is_told_and_goes_on_once_its_clock_is_right() {
    let world = World::new();
    let (src, at, at_a) = (world.dir("src"), world.dir("at"), world.dir("at-a"));
    fs::write(src.join("f"), b"by a").unwrap();
    let (mut a, links) = world.share(&src, "a");
    a.mount_again(&src, &at_a);
    let mut b = mount_at(&world, "-366d", &links.write, &at, &a);
    b.wait("b to say so", || waiting(&b).contains("clock"));
    assert!(waiting(&b).contains("365 days ahead"), "{}", waiting(&b));
    fs::write(at.join("g"), b"by b").unwrap();
    a.wait("b's file", || {
        fs::read(at_a.join("g")).is_ok_and(|t| t == b"by b")
    });
    assert_eq!(b.stop(), 0);

    let b = world.mount(&links.write, &at, "b", &[&a]);
    wait_equal(&at, &at_a, &[&a, &b]);
    assert_eq!(fs::read(at.join("f")).unwrap(), b"by a");
    fs::write(at.join("f"), b"by b").unwrap();
    a.wait("b's edit", || {
        fs::read(at_a.join("f")).is_ok_and(|t| t == b"by b")
    });
}

#[test]
fn what_was_written_with_the_clock_ahead_counts_after_a_kill_too() {
    let world = World::new();
    let (src, at, at_a) = (world.dir("src"), world.dir("at"), world.dir("at-a"));
    fs::write(src.join("f"), b"by a").unwrap();
    let (mut a, links) = world.share(&src, "a");
    a.mount_again(&src, &at_a);
    let mut b = mount_at(&world, "+366d", &links.write, &at, &a);
    fs::write(at.join("g"), b"by b").unwrap();
    a.wait("a to say so", || waiting(&a).contains("clock"));
    b.kill();

    // It goes on under another incarnation, and cannot sign for the one before any more.
    let b = world.mount(&links.write, &at, "b", &[&a]);
    fs::write(at.join("h"), b"by b").unwrap();
    a.wait("both files", || {
        ["g", "h"]
            .iter()
            .all(|name| fs::read(at_a.join(name)).is_ok_and(|t| t == b"by b"))
    });
    wait_equal(&at, &at_a, &[&a, &b]);
    a.wait("a to be content", || waiting(&a).is_empty());
}
