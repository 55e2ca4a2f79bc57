//! The catalogue is a cache: deleted or damaged at any moment, nothing visible changes and nothing new is published.

use std::fs;
use std::path::Path;

use crate::support::{Daemon, Rng, World, ccbt, wait_equal};

fn connected(daemon: &Daemon) -> u64 {
    daemon.status()["folders"][0]["peers"].as_u64().unwrap()
}

/// Heads and root of the only folder: what others would see change.
fn shown(daemon: &Daemon) -> Vec<String> {
    let folder = &daemon.status()["folders"][0];
    let heads = folder["heads"].as_array().unwrap();
    let mut shown: Vec<String> = heads.iter().map(|h| h["snapshot"].to_string()).collect();
    shown.sort();
    shown.push(folder["root"].to_string());
    shown
}

fn damage(catalogue: &Path, rng: &mut Rng) {
    for entry in fs::read_dir(catalogue).unwrap() {
        let path = entry.unwrap().path();
        if path.is_file() {
            let size = 1 + rng.below(5000) as usize;
            fs::write(&path, rng.bytes(size)).unwrap();
        }
    }
}

#[test]
fn members_are_found_again_after_a_restart_without_being_named() {
    let world = World::new();
    let (src, at) = (world.dir("src"), world.dir("at"));
    fs::write(src.join("f"), b"content").unwrap();
    let (mut a, links) = world.share(&src, "a");
    let b = world.mount(&links.write, &at, "b", &[&a]);
    wait_equal(&src, &at, &[&a, &b]);
    let port = b.port;
    drop(b);
    // B comes back at its old address, without its state, and is told of nobody: A has to remember it.
    assert_eq!(a.stop(), 0);
    let state = world.dir("b");
    fs::remove_dir_all(&state).unwrap();
    let args = ["mount", &links.write, at.to_str().unwrap()];
    let mut b = world.launch_at(port, ccbt(&state), &state, &[], &args);
    b.watch_mount(&at);
    let (a, _) = world.share(&src, "a");
    a.wait("a to call b", || connected(&a) == 1);
    wait_equal(&src, &at, &[&a, &b]);
}

#[test]
fn deleted_or_damaged_while_stopped_or_running_nothing_visible_changes() {
    let world = World::new();
    let (src, at) = (world.dir("src"), world.dir("at"));
    let mut rng = Rng(5);
    for n in 0..30 {
        let size = 1 + rng.below(300_000) as usize;
        fs::write(src.join(format!("f{n}")), rng.bytes(size)).unwrap();
    }
    let (mut a, links) = world.share(&src, "a");
    let b = world.mount(&links.write, &at, "b", &[&a]);
    wait_equal(&src, &at, &[&a, &b]);
    let catalogue = a.state.join("catalogue");
    a.wait("the catalogue", || catalogue.join("db").exists());
    let before = shown(&a);

    for round in 0..4 {
        match round {
            0 => fs::remove_dir_all(&catalogue).unwrap(),
            1 => damage(&catalogue, &mut rng),
            _ => {}
        }
        // Running: both sides go on.
        fs::write(src.join("g"), format!("round {round}")).unwrap();
        wait_equal(&src, &at, &[&a, &b]);
        let before_stop = shown(&a);
        assert_eq!(a.stop(), 0);
        match round {
            2 => drop(fs::remove_dir_all(&catalogue)),
            3 => damage(&catalogue, &mut rng),
            _ => {}
        }
        let args = ["share", src.to_str().unwrap()];
        a = world.launch_at(a.port, ccbt(&a.state), &a.state, &[], &args);
        a.links();
        b.wait("a to be back", || connected(&b) == 1);
        assert_eq!(
            shown(&a),
            before_stop,
            "round {round}: nothing is published anew"
        );
        // `g` alone may be: it was changed a moment before it was last read.
        let read = a.metric("ccbt_home_files_read_total");
        assert!(read <= 1, "round {round}: {read} files were read again");
        wait_equal(&src, &at, &[&a, &b]);
        a.wait("the catalogue", || catalogue.join("db").exists());
    }
    assert_eq!(a.metric("ccbt_catalogues_rebuilt_total"), 1, "{}", a.log());
    assert!(
        a.log().contains("the catalogue is moved aside"),
        "{}",
        a.log()
    );
    assert_ne!(shown(&a), before, "the edits of each round were published");
}
