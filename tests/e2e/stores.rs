//! The chunk stores under a daemon: a suite of its own for a folder, and damage that peers repair.

use std::fs;
use std::path::Path;

use ccbt::share::{Link, Suite};

use crate::support::{Daemon, Rng, World, text, wait_equal};

/// A number that `ccbt xet COMMAND --json` prints.
fn xet(daemon: &Daemon, command: &[&str], field: &str) -> u64 {
    let text = daemon.run(&[&["xet"], command, &["--json"]].concat());
    let printed: serde_json::Value = serde_json::from_str(&text).unwrap();
    printed[field].as_u64().unwrap()
}

/// Bytes of the chunk packs in one store of a state directory.
fn packed(state: &Path, store: &str) -> u64 {
    let Ok(entries) = fs::read_dir(state.join(store).join("chunks")) else {
        return 0;
    };
    let packs = entries.map(|entry| entry.unwrap().path());
    packs
        .filter(|path| {
            path.extension()
                .is_some_and(|extension| extension == "xorb")
        })
        .map(|path| path.metadata().unwrap().len())
        .sum()
}

#[test]
fn a_folder_of_the_other_suite_has_a_store_of_its_own_everywhere() {
    let world = World::new();
    let (src, plain) = (world.dir("src"), world.dir("plain"));
    let (at, plain_at, own) = (world.dir("at"), world.dir("plain-at"), world.dir("own"));
    let bytes = Rng(3).bytes(2_000_000);
    fs::write(src.join("f"), &bytes).unwrap();
    fs::write(plain.join("f"), &bytes).unwrap();
    let args = ["share", "--suite", "sha256", src.to_str().unwrap()];
    let mut a = world.start("a", &[], &args);
    let links = a.links();
    assert_eq!(links.write.parse::<Link>().unwrap().suite(), Suite::Sha256);
    let (mut c, plain_links) = world.share(&plain, "c");
    let mut b = world.mount(&links.write, &at, "b", &[&a, &c]);
    wait_equal(&src, &at, &[&a, &b]);
    assert_eq!(packed(&b.state, "store"), 0);
    assert!(packed(&b.state, "store-sha256") >= 2_000_000);

    let mut edited = bytes;
    edited.splice(1_000_000..1_000_010, *b"an edit");
    fs::write(at.join("f"), &edited).unwrap();
    fs::write(at.join("g"), b"new").unwrap();
    a.run(&["mount", &links.write, own.to_str().unwrap()]);
    a.watch_mount(&own);
    wait_equal(&at, &own, &[&a, &b]);
    assert!(fs::read(own.join("f")).unwrap() == edited);

    // The same bytes in a folder of the usual suite are other chunks, in another store.
    let peer = format!("127.0.0.1:{}", c.port);
    let place = plain_at.to_str().unwrap();
    b.run(&["mount", &plain_links.read, place, "--peer", &peer]);
    b.watch_mount(&plain_at);
    wait_equal(&plain, &plain_at, &[&c, &b]);
    assert!(packed(&b.state, "store") >= 2_000_000);
    assert_eq!(xet(&b, &["verify"], "damaged"), 0);
    // What the edit replaced goes, and nothing else.
    xet(&b, &["gc"], "dropped");
    wait_equal(&own, &at, &[&a, &b]);
    wait_equal(&plain, &plain_at, &[&c, &b]);
    assert_eq!(xet(&b, &["verify"], "damaged"), 0);

    let refused = a.try_run(&["share", "--suite", "blake3", src.to_str().unwrap()]);
    assert_eq!(refused.status.code(), Some(5), "{refused:?}");
    for daemon in [&mut b, &mut a, &mut c] {
        assert_eq!(daemon.stop(), 0, "{}", daemon.log());
    }
    let (a, again) = world.share(&src, "a");
    assert_eq!(again.write, links.write, "{}", a.log());
}

#[test]
fn what_is_damaged_is_fetched_again() {
    let world = World::new();
    let (src, at) = (world.dir("src"), world.dir("at"));
    let mut rng = Rng(4);
    for name in ["f", "g", "h"] {
        fs::write(src.join(name), rng.bytes(1_500_000)).unwrap();
    }
    let (a, links) = world.share(&src, "a");
    let b = world.mount(&links.read, &at, "b", &[&a]);
    wait_equal(&src, &at, &[&a, &b]);
    let held = xet(&b, &["stats"], "chunks");
    let pack = b.state.join("store/chunks/00000001.xorb");
    let mut bytes = fs::read(&pack).unwrap();
    for at in (100_000..4_000_000).step_by(800_000) {
        bytes[at] ^= 0x40;
    }
    fs::write(&pack, bytes).unwrap();
    let text = b.run(&["xet", "verify", "--repair", "--json"]);
    let found: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(found["damaged"], 5, "{text}");
    assert_eq!(found["repaired"], 5, "{text}\n{}", b.log());
    assert!(!pack.exists(), "its good records are elsewhere now");
    assert_eq!(xet(&b, &["verify"], "damaged"), 0);
    assert_eq!(xet(&b, &["stats"], "chunks"), held);
    wait_equal(&src, &at, &[&a, &b]);
}

/// The same link of the other suite.
fn of_other_suite(link: &str) -> String {
    let link: Link = link.parse().unwrap();
    let other = match link.suite() {
        Suite::Blake3 => Suite::Sha256,
        Suite::Sha256 => Suite::Blake3,
    };
    Link::new(link.folder(), other, link.capability().clone()).reveal()
}

#[test]
fn a_link_of_another_suite_is_refused_and_nothing_is_left() {
    let world = World::new();
    let (src, at, known) = (world.dir("src"), world.dir("at"), world.dir("known"));
    fs::write(src.join("f"), b"content").unwrap();
    let (a, links) = world.share(&src, "a");
    let peer = std::net::SocketAddr::from(([127, 0, 0, 1], a.port)).to_string();
    let wrong = of_other_suite(&links.write);
    let refused = |daemon: &Daemon| {
        let output = daemon.try_run(&["mount", &wrong, at.to_str().unwrap(), "--peer", &peer]);
        let said = text(&output);
        assert_eq!(output.status.code(), Some(5), "{said}");
        assert!(said.contains("another hash suite"), "{said}");
    };
    // One that has never heard of the folder learns it from a member.
    let b = world.start("b", &[a.port], &["daemon"]);
    b.wait("the daemon", || b.try_run(&["status"]).status.success());
    refused(&b);
    assert_eq!(b.status()["folders"], serde_json::json!([]));
    assert_eq!(fs::read_dir(b.state.join("folders")).unwrap().count(), 0);
    // The right link works afterwards: no member is barred for what it would have sent.
    b.run(&[
        "mount",
        &links.read,
        known.to_str().unwrap(),
        "--peer",
        &peer,
    ]);
    b.wait("the file", || {
        fs::read(known.join("f")).is_ok_and(|found| found == b"content")
    });
    // One that knows the folder says so at once.
    b.run(&["unmount", known.to_str().unwrap()]);
    refused(&b);
    assert_eq!(b.status()["folders"], serde_json::json!([]));
    drop(a);
}
