//! Evict: what a keeper vouches for goes, what another folder needs or nobody else has stays.

use std::fs;
use std::path::Path;

use crate::support::{Rng, World, wait_equal};

/// How much of a file's content is on this device.
fn state(file: &Path) -> String {
    let mut value = [0; 32];
    let len = rustix::fs::getxattr(file, "user.ccbt.state", &mut value).unwrap();
    String::from_utf8_lossy(&value[..len]).into_owned()
}

#[test]
fn an_evict_spares_what_a_closed_folder_needs_and_what_is_only_here() {
    let world = World::new();
    let (src, other) = (world.dir("src"), world.dir("other"));
    let (at_b, other_b) = (world.dir("at-b"), world.dir("other-b"));
    let mut rng = Rng(9);
    let common = rng.bytes(900_000);
    fs::write(src.join("common"), &common).unwrap();
    fs::write(src.join("own"), rng.bytes(900_000)).unwrap();
    fs::write(other.join("common too"), &common).unwrap();
    let (mut a, links) = world.share(&src, "a");
    let (mut c, other_links) = world.share(&other, "c");
    let b = world.mount(&links.write, &at_b, "b", &[&a, &c]);
    b.run(&["mount", &other_links.write, other_b.to_str().unwrap()]);
    wait_equal(&src, &at_b, &[&a, &b]);
    wait_equal(&other, &other_b, &[&c, &b]);
    b.run(&["unmount", other_b.to_str().unwrap()]);
    assert_eq!(c.stop(), 0, "{}", c.log());

    let evict = || b.run(&["evict", at_b.to_str().unwrap()]);
    b.wait("the evict", || {
        evict();
        state(&at_b.join("own")) == "remote"
    });
    assert_eq!(state(&at_b.join("common")), "local");

    // Nobody else has the other folder now.
    b.run(&["mount", &other_links.write, other_b.to_str().unwrap()]);
    assert!(fs::read(other_b.join("common too")).unwrap() == common);
    wait_equal(&src, &at_b, &[&a, &b]);

    assert_eq!(a.stop(), 0, "{}", a.log());
    fs::write(at_b.join("mine"), b"only here").unwrap();
    b.wait("the commit", || state(&at_b.join("mine")) == "local");
    evict();
    assert_eq!(state(&at_b.join("mine")), "local");
    assert_eq!(fs::read(at_b.join("mine")).unwrap(), b"only here");
    b.run(&["unmount", other_b.to_str().unwrap()]);
}
