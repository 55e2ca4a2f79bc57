//! What the daemon does for its store by itself: damage is found and repaired, a check goes on after a kill, garbage goes.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;

use crate::support::{Daemon, Rng, World, ccbt, is_mounted, tree, wait_equal};

/// A `ccbt` that looks at its store every second.
fn eager(state: &Path, rate: &str) -> Command {
    let mut command = ccbt(state);
    command
        .env("CCBT_STORE_LOOK_EVERY_S", "1")
        .env("CCBT_STORE_SCRUB_EVERY_S", "1")
        .env("CCBT_STORE_SCRUB_RATE", rate)
        .env("CCBT_STORE_GC_GRACE_S", "1");
    command
}

/// A number that `ccbt xet COMMAND --json` prints.
fn xet(daemon: &Daemon, command: &[&str], field: &str) -> u64 {
    let text = daemon.run(&[&["xet"], command, &["--json"]].concat());
    let printed: serde_json::Value = serde_json::from_str(&text).unwrap();
    printed[field].as_u64().unwrap()
}

/// Bytes of the packs in a directory of a store.
fn packed(dir: &Path) -> u64 {
    let entries = fs::read_dir(dir).into_iter().flatten();
    let packs = entries.map(|entry| entry.unwrap().path());
    let is_pack = |path: &std::path::PathBuf| {
        path.extension()
            .is_some_and(|extension| extension == "xorb" || extension == "nodes")
    };
    packs
        .filter(is_pack)
        .filter_map(|path| path.metadata().ok())
        .map(|meta| meta.len())
        .sum()
}

/// Bytes done of the check that `status` shows.
fn scrubbed(daemon: &Daemon) -> Option<u64> {
    let status = daemon.status();
    let jobs = status["jobs"].as_array().unwrap();
    let job = jobs.iter().find(|job| job["what"] == "scrub")?;
    job["progress"]["bytes_done"].as_u64()
}

/// How far a check got, and when the one before ended: `STATE/scrub.json`.
fn round(state: &Path) -> Option<((u64, bool, u64), u64)> {
    let text = fs::read(state.join("scrub.json")).ok()?;
    let round: serde_json::Value = serde_json::from_slice(&text).unwrap();
    let place = (
        round["store"].as_u64()?,
        round["nodes"].as_bool()?,
        round["pack"].as_u64()?,
    );
    Some((place, round["ended_ms"].as_u64()?))
}

#[test]
fn damage_is_found_and_repaired_while_nobody_looks() {
    let world = World::new();
    let (src, at) = (world.dir("src"), world.dir("at"));
    let mut rng = Rng(5);
    for name in ["f", "g"] {
        fs::write(src.join(name), rng.bytes(1_500_000)).unwrap();
    }
    let (a, links) = world.share(&src, "a");
    let state = world.dir("b");
    let args = ["mount", &links.read, at.to_str().unwrap()];
    let mut b = world.launch(eager(&state, "2 MiB"), &state, &[a.port], &args);
    b.watch_mount(&at);
    b.wait("the mount", || is_mounted(&at) && b.says("Mounted "));
    wait_equal(&src, &at, &[&a, &b]);
    b.wait("a check in status", || scrubbed(&b).is_some());

    let pack = state.join("store/chunks/00000001.xorb");
    let file = fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open(&pack)
        .unwrap();
    for at in (100_000..2_900_000).step_by(700_000) {
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).unwrap();
        file.write_all_at(&[byte[0] ^ 0x40], at).unwrap();
    }
    b.wait("the damage to be found", || {
        b.metric("ccbt_packs_damaged_total") == 4
    });
    // Its good records are elsewhere once the others are here again.
    b.wait("the repair", || {
        let text = b.run(&["xet", "stats", "--json"]);
        let stats: serde_json::Value = serde_json::from_str(&text).unwrap();
        !pack.exists() && stats["here"] == stats["content"]
    });
    assert_eq!(xet(&b, &["verify"], "damaged"), 0);
    assert_eq!(b.metric("ccbt_packs_damaged_total"), 4, "found once");
    wait_equal(&src, &at, &[&a, &b]);
}

#[test]
fn a_check_goes_on_where_a_kill_ended_it() {
    let world = World::new();
    let (src, other) = (world.dir("src"), world.dir("other"));
    let (at, other_at) = (world.dir("at"), world.dir("other-at"));
    let mut rng = Rng(6);
    fs::write(src.join("f"), rng.bytes(1_500_000)).unwrap();
    fs::write(other.join("f"), rng.bytes(1_500_000)).unwrap();
    let (a, links) = world.share(&src, "a");
    let text = a.run(&["share", "--suite", "sha256", other.to_str().unwrap()]);
    let line = text
        .lines()
        .find(|line| line.starts_with("read-only"))
        .unwrap();
    let link = line.split_whitespace().last().unwrap();
    let mut b = world.mount(&links.read, &at, "b", &[&a]);
    let peer = format!("127.0.0.1:{}", a.port);
    b.run(&["mount", link, other_at.to_str().unwrap(), "--peer", &peer]);
    b.watch_mount(&other_at);
    wait_equal(&src, &at, &[&a, &b]);
    wait_equal(&other, &other_at, &[&a, &b]);
    let state = b.state.clone();
    assert_eq!(b.stop(), 0, "{}", b.log());
    let (_, before) = round(&state).unwrap();

    let mut b = world.launch(eager(&state, "500 kB"), &state, &[a.port], &["daemon"]);
    let is_past_the_first = || {
        let (place, _) = round(&state).unwrap();
        ((0, false, 1)..(1, false, 1)).contains(&place)
    };
    b.wait("the first pack to be read", is_past_the_first);
    b.kill();
    let (reached, ended) = round(&state).unwrap();
    assert_eq!(ended, before, "the round is not over");
    // Behind where the check is: this round does not see it, the next one does.
    let first = state.join("store/chunks/00000001.xorb");
    let len = first.metadata().unwrap().len();
    let file = fs::OpenOptions::new().write(true).open(&first).unwrap();
    file.write_all_at(&[0x5a; 64], 500_000).unwrap();

    let mut b = world.launch(eager(&state, "500 kB"), &state, &[a.port], &["daemon"]);
    for at in [&at, &other_at] {
        b.watch_mount(at);
    }
    let seen = std::cell::Cell::new(false);
    b.wait("the end of the round", || {
        let (place, ended) = round(&state).unwrap();
        if ended != before {
            return true;
        }
        assert!(place >= reached, "{place:?} is before {reached:?}");
        if let Some(done) = b
            .try_run(&["status"])
            .status
            .success()
            .then(|| scrubbed(&b))
            .flatten()
        {
            let is_over = round(&state).unwrap().1 != before;
            assert!(
                is_over || done + 8192 >= len,
                "{done} of the first {len} bytes again"
            );
            seen.set(true);
        }
        false
    });
    assert!(seen.get(), "the check was never in status\n{}", b.log());
    b.wait("the next round", || {
        b.metric("ccbt_packs_damaged_total") > 0
    });
}

#[test]
fn garbage_goes_by_itself_once_every_folder_can_be_asked() {
    let world = World::new();
    let (at, state) = (world.dir("at"), world.dir("a"));
    let args = ["mount", at.to_str().unwrap()];
    let mut a = world.launch(eager(&state, "0"), &state, &[], &args);
    a.watch_mount(&at);
    a.wait("the mount", || is_mounted(&at) && a.says("Mounted "));
    let mut rng = Rng(7);
    fs::write(at.join("kept"), rng.bytes(700_000)).unwrap();
    fs::write(at.join("gone"), rng.bytes(5_000_000)).unwrap();
    let chunks = state.join("store/chunks");
    a.wait("the chunks", || packed(&chunks) > 5_500_000);

    // A folder whose record nobody can read: what it needs is not known.
    let unknown = state.join("folders/unknown");
    fs::create_dir_all(&unknown).unwrap();
    fs::write(unknown.join("folder.json"), "{").unwrap();
    fs::remove_file(at.join("gone")).unwrap();
    let (_, before) = round(&state).unwrap();
    let rounds_since = |last: u64| round(&state).is_some_and(|(_, ended)| ended > last + 3000);
    a.wait("some rounds", || rounds_since(before));
    assert!(packed(&chunks) > 5_500_000, "{}", a.log());
    assert!(a.says("no garbage is collected now"), "{}", a.log());

    fs::remove_dir_all(&unknown).unwrap();
    a.wait("the garbage to go", || packed(&chunks) < 1_500_000);
    let want = tree(&at).unwrap();
    assert_eq!(want.len(), 1);
    assert_eq!(a.stop(), 0, "{}", a.log());
    let mut a = world.launch(eager(&state, "0"), &state, &[], &args);
    a.watch_mount(&at);
    a.wait("the mount", || is_mounted(&at) && a.says("Mounted "));
    assert_eq!(tree(&at).unwrap(), want);
}

/// What the daemon knows of a folder is more than what its damaged store does: it must not be lost with the next stop.
#[test]
fn a_damaged_tree_does_not_keep_a_folder_from_opening() {
    let world = World::new();
    let (src, at) = (world.dir("src"), world.dir("at"));
    for n in 0..500 {
        fs::write(src.join(format!("file {n}")), format!("content {n}")).unwrap();
    }
    let (mut a, links) = world.share(&src, "a");
    let state = a.state.clone();
    let pack = state.join("store/nodes/00000001.nodes");
    let file = fs::OpenOptions::new().write(true).open(&pack).unwrap();
    for at in (0..pack.metadata().unwrap().len()).step_by(64) {
        file.write_all_at(&[0x5a; 4], at).unwrap();
    }
    // Some of it nobody needs any more, so not all is repaired.
    let found = a.try_run(&["xet", "verify", "--repair", "--json"]);
    let found: serde_json::Value = serde_json::from_slice(&found.stdout).unwrap();
    assert!(found["damaged"].as_u64() >= found["repaired"].as_u64());
    assert!(found["repaired"].as_u64() > Some(2), "{found}");
    assert_eq!(xet(&a, &["verify"], "damaged"), 0);
    assert_eq!(a.stop(), 0, "{}", a.log());

    let a = world.launch(ccbt(&state), &state, &[], &["daemon"]);
    a.wait("the daemon", || a.try_run(&["status"]).status.success());
    assert_eq!(a.status()["unopened"], serde_json::json!([]));
    fs::write(src.join("new"), "written after it").unwrap();
    let b = world.mount(&links.read, &at, "b", &[&a]);
    wait_equal(&src, &at, &[&a, &b]);
}

/// Where a compressed record starts in the bytes of a pack.
fn compressed_record(pack: &[u8]) -> usize {
    let mut at = 0;
    loop {
        let is_footer = pack[at..].starts_with(b"XETBLOB");
        assert!(!is_footer, "nothing is compressed");
        let word = |at: usize| u32::from_le_bytes([pack[at], pack[at + 1], pack[at + 2], 0]);
        if pack[at + 4] != 0 {
            return at;
        }
        at += 8 + word(at + 1) as usize;
    }
}

/// A record is damaged, and so is the footer that named it: all there is to go by is that the folder is to be whole.
#[test]
fn what_nobody_can_name_is_fetched_where_a_folder_is_kept_whole() {
    let world = World::new();
    let (src, at) = (world.dir("src"), world.dir("at"));
    let mut rng = Rng(8);
    let text: String = (0..500_000)
        .map(|n| format!("line {n} of a text\n"))
        .collect();
    // More than one pack, so that there is a footer.
    let content = [
        rng.bytes(35_000_000),
        text.into_bytes(),
        rng.bytes(35_000_000),
    ]
    .concat();
    fs::write(src.join("f"), &content).unwrap();
    let (mut a, links) = world.share(&src, "a");
    let mut b = world.mount(&links.read, &at, "b", &[&a]);
    b.run(&["pin", at.to_str().unwrap()]);
    let state = b.state.clone();
    assert_eq!(b.stop(), 0, "{}", b.log());

    let path = state.join("store/chunks/00000001.xorb");
    let pack = fs::read(&path).unwrap();
    let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
    // The magic of the frame, and the length of the footer.
    file.write_all_at(b"????", compressed_record(&pack) as u64 + 8)
        .unwrap();
    file.write_all_at(b"????", pack.len() as u64 - 4).unwrap();
    // Nothing else says what is in the pack.
    assert!(!state.join("store/chunks/00000001.journal").exists());
    drop(fs::remove_file(state.join("store/chunks/index.checkpoint")));

    let args = ["mount", &links.read, at.to_str().unwrap()];
    let mut b = world.launch(ccbt(&state), &state, &[a.port], &args);
    b.watch_mount(&at);
    b.wait("the mount", || is_mounted(&at) && b.says("Mounted "));
    assert_eq!(b.metric("ccbt_packs_damaged_total"), 1);
    let repaired = b.try_run(&["xet", "verify", "--repair"]);
    assert!(repaired.status.success(), "{repaired:?}\n{}", b.log());
    assert!(!path.exists(), "the damaged pack is still there");
    // From here on there is nobody to ask.
    assert_eq!(a.stop(), 0, "{}", a.log());
    assert!(fs::read(at.join("f")).unwrap() == content, "{}", b.log());
}
