//! Who takes a mount or a daemon down is told what nobody else has, and waits for a keeper that is on its way.

use std::fs;

use crate::support::{Rng, World, is_mounted, text, wait_equal};

#[test]
fn what_is_only_here_is_said_and_what_a_keeper_gets_is_waited_for() {
    let world = World::new();
    let (home, at) = (world.dir("home"), world.dir("at"));
    fs::write(home.join("first"), "first").unwrap();
    let (mut a, links) = world.share(&home, "a");
    let mut b = world.start(
        "b",
        &[a.port],
        &["mount", &links.write, at.to_str().unwrap()],
    );
    b.watch_mount(&at);
    b.wait("the mount", || is_mounted(&at) && b.says("Mounted "));
    wait_equal(&home, &at, &[&a, &b]);

    // Who has kept something is waited for.
    fs::write(at.join("small"), "small").unwrap();
    a.wait("a small file", || home.join("small").exists());
    b.wait("the home to keep it", || {
        b.status()["folders"][0]["only_here"]["files"] == 0
    });

    // The home keeps everything: what was written a moment ago is there when the unmount returns.
    let content = Rng(3).bytes(20 << 20);
    fs::write(at.join("big"), &content).unwrap();
    let said = b.try_run(&["unmount", at.to_str().unwrap()]);
    assert!(said.status.success(), "{}", text(&said));
    assert!(!text(&said).contains("only here"), "{}", text(&said));
    a.wait("what was handed over", || {
        fs::read(home.join("big")).is_ok_and(|found| found == content)
    });
    let _ended = b.stop();

    let mut b = world.mount(&links.write, &at, "b", &[&a]);
    assert_eq!(a.stop(), 0, "{}", a.log());
    b.wait("the home to be gone", || {
        b.status()["folders"][0]["peers"] == 0
    });
    for n in 0..2 {
        fs::write(at.join(format!("alone {n}")), "alone").unwrap();
    }
    b.wait("them to count", || {
        b.status()["folders"][0]["only_here"]["files"].as_u64() >= Some(2)
    });
    assert_eq!(b.stop(), 0, "{}", b.log());
    assert!(b.says(" exist only here: they are kept"), "{}", b.log());
}

#[test]
fn a_folder_of_ones_own_is_not_missed_by_anybody() {
    let world = World::new();
    let live = world.dir("live");
    let mut daemon = world.start("s", &[], &["mount", live.to_str().unwrap()]);
    daemon.watch_mount(&live);
    daemon.wait("the mount", || is_mounted(&live) && daemon.says("Mounted "));
    fs::write(live.join("f"), "mine").unwrap();
    assert_eq!(daemon.stop(), 0, "{}", daemon.log());
    assert!(!daemon.says("only here"), "{}", daemon.log());
}
