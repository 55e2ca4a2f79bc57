//! Two people edit at once, or apart: both versions are kept and shown, everywhere alike.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use crate::support::{World, tree, wait_equal};

fn contents(dir: &Path) -> BTreeSet<Vec<u8>> {
    fs::read_dir(dir)
        .unwrap()
        .map(|e| fs::read(e.unwrap().path()).unwrap())
        .collect()
}

#[test]
fn edits_made_apart_are_both_kept_on_every_side() {
    let world = World::new();
    let (src, at_a, at_b) = (world.dir("src"), world.dir("at-a"), world.dir("at-b"));
    fs::write(src.join("plan.txt"), b"base").unwrap();
    let (mut a, links) = world.share(&src, "a");
    let mut b = world.mount(&links.write, &at_b, "b", &[&a]);
    a.mount_again(&src, &at_a);
    wait_equal(&at_a, &at_b, &[&a, &b]);

    assert_eq!(b.stop(), 0);
    fs::write(at_a.join("plan.txt"), b"by a").unwrap();
    fs::write(at_a.join("only a"), b"a's own").unwrap();
    let port = a.port;
    assert_eq!(a.stop(), 0);

    let mut b = world.mount(&links.write, &at_b, "b", &[]);
    fs::write(at_b.join("plan.txt"), b"by b").unwrap();
    fs::write(at_b.join("only b"), b"b's own").unwrap();
    assert_eq!(b.stop(), 0);

    let (mut a, _) = world.share(&src, "a");
    a.mount_again(&src, &at_a);
    assert_ne!(a.port, port, "the peer is found at its new address");
    let mut b = world.mount(&links.write, &at_b, "b", &[&a]);
    let both: BTreeSet<Vec<u8>> = [&b"by a"[..], b"by b", b"a's own", b"b's own"]
        .map(<[u8]>::to_vec)
        .into();
    a.wait("both versions at a", || contents(&at_a) == both);
    b.wait("both versions at b", || contents(&at_b) == both);
    wait_equal(&at_a, &at_b, &[&a, &b]);
    let names: Vec<String> = tree(&at_a)
        .unwrap()
        .keys()
        .map(|n| String::from_utf8_lossy(n).into_owned())
        .collect();
    assert!(names.contains(&"plan.txt".to_owned()), "{names:?}");
    let conflict = names
        .iter()
        .find(|n| n.starts_with("plan (conflict ") && n.ends_with(").txt"));
    assert!(conflict.is_some(), "{names:?}");

    // The same after a start, without anybody who could say what devices are called.
    assert_eq!(b.stop(), 0);
    let _b = world.mount(&links.write, &at_b, "b", &[]);
    let again: BTreeSet<String> = fs::read_dir(&at_b)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    assert_eq!(again, names.into_iter().collect());
}

#[test]
fn three_edits_made_apart_are_all_kept_on_every_side() {
    let world = World::new();
    let src = world.dir("src");
    fs::write(src.join("plan.txt"), b"base").unwrap();
    let (mut a, links) = world.share(&src, "a");
    let at: Vec<_> = (0..3).map(|n| world.dir(&format!("at{n}"))).collect();
    for at in &at {
        let mut member = world.mount(&links.write, at, &state_of(at), &[&a]);
        wait_equal(&src, at, &[&a, &member]);
        assert_eq!(member.stop(), 0);
    }
    assert_eq!(a.stop(), 0);
    // Each edits while none of the others runs.
    for at in &at {
        let state = state_of(at);
        let mut member = world.mount(&links.write, at, &state, &[]);
        fs::write(at.join("plan.txt"), format!("by {state}")).unwrap();
        assert_eq!(member.stop(), 0);
    }
    let (a, _) = world.share(&src, "a");
    let members: Vec<_> = at
        .iter()
        .map(|at| world.mount(&links.write, at, &state_of(at), &[&a]))
        .collect();
    let all: BTreeSet<Vec<u8>> = ["by state-at0", "by state-at1", "by state-at2"]
        .map(|text| text.as_bytes().to_vec())
        .into();
    for (member, dir) in members.iter().zip(&at) {
        member.wait("all three versions", || contents(dir) == all);
        wait_equal(&at[0], dir, &[&a, member]);
    }
}

/// The state directory of who has a folder mounted at `at`.
fn state_of(at: &Path) -> String {
    format!("state-{}", at.file_name().unwrap().display())
}
