//! What `status` calls only here: content that no keeper is known to hold, whatever happened to the daemon since.

use std::fs;
use std::path::Path;

use crate::support::{Daemon, Rng, World, is_mounted};

fn only_here(daemon: &Daemon) -> u64 {
    let status = daemon.status();
    status["folders"][0]["only_here"]["files"].as_u64().unwrap()
}

fn start(world: &World, live: &Path) -> Daemon {
    let mut daemon = world.start("a", &[], &["mount", live.to_str().unwrap()]);
    daemon.watch_mount(live);
    daemon.wait("the live folder", || {
        is_mounted(live) && daemon.says("Mounted ")
    });
    daemon
}

/// What keepers hold is on disk.
fn is_noted(daemon: &Daemon) -> bool {
    let folders = fs::read_dir(daemon.state.join("folders")).unwrap();
    folders
        .flatten()
        .any(|folder| folder.path().join("kept").exists())
}

#[test]
fn what_is_only_here_is_named_after_a_kill_and_until_a_keeper_has_it() {
    let world = World::new();
    let (live, kept, at_p) = (world.dir("live"), world.dir("kept"), world.dir("at-p"));
    let mut rng = Rng(5);
    let mut a = start(&world, &live);
    fs::write(live.join("mine"), rng.bytes(300_000)).unwrap();
    let shared = a.run(&["share", live.to_str().unwrap(), "--json"]);
    let shared: serde_json::Value = serde_json::from_str(&shared).unwrap();
    let link = shared["read_write"].as_str().unwrap();
    a.wait("the first file", || only_here(&a) == 1);

    // Under its next incarnation it has the same content, and still alone.
    a.kill();
    let mut a = start(&world, &live);
    a.wait("the first file again", || only_here(&a) == 1);
    fs::write(live.join("more"), rng.bytes(300_000)).unwrap();
    a.wait("the second file", || only_here(&a) == 2);

    let mut keeper = world.start("k", &[a.port], &["join", link, kept.to_str().unwrap()]);
    a.wait("the keeper", || only_here(&a) == 0 && is_noted(&a));
    assert_eq!(keeper.stop(), 0, "{}", keeper.log());
    a.wait("the keeper to go", || {
        a.status()["folders"][0]["peers"] == 0
    });
    assert_eq!(only_here(&a), 0, "it has left with all of it");
    a.kill();
    let a = start(&world, &live);
    a.wait("the folder", || {
        a.status()["folders"][0]["content"]["files"] == 2
    });
    assert_eq!(only_here(&a), 0, "this is remembered");
    fs::write(live.join("new"), rng.bytes(300_000)).unwrap();
    a.wait("the new file", || only_here(&a) == 1);

    // One that is pinned vouches as long as it is.
    let pinned = world.mount(link, &at_p, "p", &[&a]);
    pinned.run(&["pin", at_p.to_str().unwrap()]);
    a.wait("the pinned one", || only_here(&a) == 0);
    pinned.run(&["unpin", at_p.to_str().unwrap()]);
    a.wait("it to be taken back", || only_here(&a) == 1);
}
