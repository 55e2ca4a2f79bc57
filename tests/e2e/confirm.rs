//! A directory that looks as if its disk were gone is not published until the user says so; and what `unshare` leaves.

use std::fs;
use std::path::Path;

use crate::support::{Daemon, World, tree, wait_equal};

fn fill(dir: &Path, files: usize) {
    for n in 0..files {
        fs::write(dir.join(format!("f{n}")), format!("content {n}")).unwrap();
    }
}

fn held_back(daemon: &Daemon) -> Option<String> {
    let held = daemon.status()["folders"][0]["held_back"].clone();
    held.as_str().map(str::to_owned)
}

#[test]
fn what_is_held_back_is_shown_and_published_once_confirmed() {
    let world = World::new();
    let (src, at) = (world.dir("src"), world.dir("at"));
    fill(&src, 40);
    let dir = src.to_str().unwrap();
    let (a, links) = world.share(&src, "a");
    let b = world.mount(&links.read, &at, "b", &[&a]);
    wait_equal(&src, &at, &[&a, &b]);
    let whole = tree(&src).unwrap();
    assert!(a.run(&["confirm", dir]).starts_with("Nothing of "));

    for n in 0..35 {
        fs::remove_file(src.join(format!("f{n}"))).unwrap();
    }
    fs::write(src.join("later"), b"later").unwrap();
    a.wait("it to be held back", || held_back(&a).is_some());
    assert_eq!(held_back(&a).unwrap(), "35 of 40 entries are gone");
    let status = a.run(&["status"]);
    assert!(status.contains(&format!("ccbt confirm {dir}")), "{status}");
    assert_eq!(tree(&at).unwrap(), whole, "nothing of it was published");

    let said = a.run(&["confirm", dir]);
    assert!(
        said.contains("Confirmed although 35 of 40 entries are gone"),
        "{said}"
    );
    wait_equal(&src, &at, &[&a, &b]);
    assert_eq!(held_back(&a), None);
}

#[test]
fn a_directory_without_its_marker_gets_it_back_when_confirmed() {
    let world = World::new();
    let (src, at) = (world.dir("src"), world.dir("at"));
    fill(&src, 3);
    let (a, links) = world.share(&src, "a");
    let b = world.mount(&links.read, &at, "b", &[&a]);
    wait_equal(&src, &at, &[&a, &b]);
    fs::remove_dir_all(src.join(".ccbt")).unwrap();
    fs::write(src.join("f0"), b"edited").unwrap();
    a.wait("it to be held back", || held_back(&a).is_some());
    a.run(&["confirm", src.to_str().unwrap()]);
    assert!(src.join(".ccbt/home").exists());
    wait_equal(&src, &at, &[&a, &b]);
}

#[test]
fn another_directory_in_its_place_cannot_be_confirmed() {
    let world = World::new();
    let src = world.dir("src");
    fill(&src, 3);
    let (a, _) = world.share(&src, "a");
    fs::rename(&src, src.with_extension("moved")).unwrap();
    let src = world.dir("src");
    fs::write(src.with_extension("moved").join("x"), b"x").unwrap();
    a.wait("it to be held back", || held_back(&a).is_some());
    let output = a.try_run(&["confirm", src.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(5));
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("another directory is in its place"), "{said}");
    assert!(said.contains("\nhint: bring the directory back"), "{said}");
}

#[test]
fn unshare_keeps_the_files_takes_the_marker_and_sharing_again_keeps_the_links() {
    let world = World::new();
    let (src, at, here) = (world.dir("src"), world.dir("at"), world.dir("here"));
    fill(&src, 3);
    let dir = src.to_str().unwrap();
    let mut daemon = world.start("a", &[], &["daemon"]);
    daemon.wait("the daemon", || daemon.state.join("api.sock").exists());
    let share = |daemon: &Daemon| -> serde_json::Value {
        serde_json::from_str(&daemon.run(&["share", dir, "--json"])).unwrap()
    };
    let first = share(&daemon);
    daemon.mount_again(&src, &here);
    let before = tree(&src).unwrap();
    daemon.run(&["unshare", dir]);
    assert!(!src.join(".ccbt").exists(), "the marker is gone");
    assert_eq!(tree(&src).unwrap(), before);
    assert_eq!(tree(&here).unwrap(), before, "a mount goes on showing it");
    let twice = daemon.try_run(&["unshare", dir]);
    assert_eq!(twice.status.code(), Some(3));

    fs::write(src.join("f0"), b"edited while it was not shared").unwrap();
    let again = share(&daemon);
    assert_eq!(again["read_write"], first["read_write"]);
    assert!(src.join(".ccbt/home").exists());
    let link = again["read_only"].as_str().unwrap();
    let b = world.mount(link, &at, "b", &[&daemon]);
    wait_equal(&src, &at, &[&daemon, &b]);
    fs::write(src.join("new"), b"it is watched again").unwrap();
    wait_equal(&src, &at, &[&daemon, &b]);
    wait_equal(&src, &here, &[&daemon]);

    daemon.run(&["unmount", here.to_str().unwrap()]);
    daemon.run(&["unshare", dir]);
    assert_eq!(daemon.status()["folders"].as_array().unwrap().len(), 0);
    share(&daemon);
    wait_equal(&src, &at, &[&daemon, &b]);
}

#[test]
fn a_share_whose_directory_is_gone_can_be_ended() {
    let world = World::new();
    let src = world.dir("src");
    fill(&src, 3);
    let (mut a, _) = world.share(&src, "a");
    assert_eq!(a.stop(), 0);
    let away = src.with_extension("away");
    fs::rename(&src, &away).unwrap();
    let a = world.start("a", &[], &["daemon"]);
    a.wait("the daemon", || a.state.join("api.sock").exists());
    a.run(&["unshare", src.to_str().unwrap()]);
    let twice = a.try_run(&["unshare", src.to_str().unwrap()]);
    assert_eq!(twice.status.code(), Some(3));
    assert_eq!(fs::read(away.join("f0")).unwrap(), b"content 0");
}
