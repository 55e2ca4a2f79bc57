//! Downloads of torrents that are like ones the daemon has: what is equal is not fetched, and what is wrong is not believed.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::fs;
use std::path::{Path, PathBuf};

use support::Place;
use support::clients::*;

const MIB: usize = 1 << 20;

fn create(place: &Place, top: &Path, name: &str, more: &[&str]) -> PathBuf {
    let file = place.path(&format!("{name}.torrent"));
    let args = [
        "create",
        text(top),
        "-o",
        text(&file),
        "--piece-size",
        "256KiB",
    ];
    let run = place.run(&[&args[..], more].concat());
    assert_eq!(run.code, 0, "{}", run.stderr);
    file
}

struct Daemon<'a> {
    place: &'a Place,
    ccbt: Ccbt,
}

impl<'a> Daemon<'a> {
    fn start(place: &'a Place, env: &[(&str, &str)]) -> Self {
        let ccbt = Ccbt::daemon(place, "s", free_port(), env);
        Self { place, ccbt }
    }

    fn try_run(&self, args: &[&str]) -> Option<serde_json::Value> {
        let state = self.place.path("s");
        let run = self
            .place
            .run(&[&["--state", text(&state), "--json"], args].concat());
        (run.code == 0).then(|| run.json())
    }

    /// Downloads a torrent from a seeder of `folder`, and says how many bytes of it came by the network.
    fn fetch(&self, torrent: &Path, folder: &Path, out: &Path) -> Fetched {
        let (_seeder, port) = Other::seed(torrent, folder, 0);
        let peer = format!("--peer=127.0.0.1:{port}");
        let args = ["download", text(torrent), "-o", text(out), &peer];
        let done = self
            .try_run(&args)
            .unwrap_or_else(|| panic!("{}", self.ccbt.log()));
        let number = |key: &str| done["torrent"][key].as_u64().unwrap();
        Fetched {
            received: number("bytes_down"),
            held: number("bytes_held"),
        }
    }
}

#[derive(Debug)]
struct Fetched {
    received: u64,
    held: u64,
}

/// A folder with one large file and a few small ones, below `src-NAME`.
fn folder(place: &Place, name: &str, big: &[u8]) -> PathBuf {
    let top = place.path(&format!("src-{name}/top"));
    fs::create_dir_all(top.join("sub")).unwrap();
    fs::write(top.join("big"), big).unwrap();
    fs::write(top.join("sub/small"), vec![b'x'; 50_000]).unwrap();
    fs::write(top.join("z"), b"the end").unwrap();
    top
}

fn parent(top: &Path) -> &Path {
    top.parent().unwrap()
}

/// Edits of 4 KiB all over the place, one per cent in all.
fn scattered(bytes: &[u8]) -> Vec<u8> {
    let mut out = bytes.to_vec();
    let edits = bytes.len() / 100 / 4096;
    let noise = random_bytes(edits * 4096);
    for (n, edit) in noise.chunks(4096).enumerate() {
        // In every part one, at a place of its own.
        let part = bytes.len() / edits;
        let within = usize::from(edit[0]) * usize::from(edit[1]) * 31 % (part - 4096);
        let at = n * part + within;
        out[at..at + 4096].copy_from_slice(edit);
    }
    out
}

#[test]
fn of_a_changed_copy_only_what_is_different_is_fetched() {
    let place = Place::new();
    let old = random_bytes(48 * MIB);
    let top = folder(&place, "old", &old);
    let first = create(&place, &top, "old", &["--v1"]);
    let daemon = Daemon::start(&place, &[]);
    daemon.fetch(&first, parent(&top), &place.path("out-old"));

    let size = old.len() as f64;
    let mut contiguous = old.clone();
    let change = random_bytes(old.len() / 100);
    contiguous[20 * MIB..20 * MIB + change.len()].copy_from_slice(&change);
    let mut shifted = b"a few bytes before everything".to_vec();
    shifted.extend_from_slice(&old);
    let cases = [
        ("contiguous", contiguous, "--v1", 0.03),
        ("shifted", shifted, "--hybrid", 0.03),
        ("scattered", scattered(&old), "--v2", 0.10),
    ];
    for (name, big, flag, share) in cases {
        let top = folder(&place, name, &big);
        let torrent = create(&place, &top, name, &[flag, "--xet"]);
        let out = place.path(&format!("out-{name}"));
        let fetched = daemon.fetch(&torrent, parent(&top), &out);
        same(&top, &out.join("top"));
        let received = fetched.received as f64 / size;
        assert!(
            received <= share,
            "{name}: {received:.3} of it, {fetched:?}"
        );
        assert!(fetched.held > 0, "{name}: {fetched:?}");
        fs::remove_dir_all(&out).unwrap();
        fs::remove_dir_all(parent(&top)).unwrap();
    }
}

#[test]
fn an_equal_file_of_a_v2_torrent_needs_no_lists_and_a_restart_changes_nothing() {
    let place = Place::new();
    let top = folder(&place, "old", &random_bytes(8 * MIB));
    let first = create(&place, &top, "old", &["--v2"]);
    let daemon = Daemon::start(&place, &[]);
    daemon.fetch(&first, parent(&top), &place.path("out-old"));
    drop(daemon);
    let moved = place.path("src-new/other");
    fs::create_dir_all(moved.join("deep")).unwrap();
    fs::rename(top.join("big"), moved.join("deep/renamed")).unwrap();
    fs::write(moved.join("new"), random_bytes(100_000)).unwrap();
    let second = create(&place, &moved, "new", &["--hybrid"]);
    let daemon = Daemon::start(&place, &[]);
    let fetched = daemon.fetch(&second, parent(&moved), &place.path("out-new"));
    same(&moved, &place.path("out-new/other"));
    assert!(fetched.received < 300_000, "{fetched:?}");
    assert!(fetched.held >= 8 * MIB as u64, "{fetched:?}");
}

#[test]
fn lists_that_lie_and_files_that_have_changed_cost_work_and_nothing_else() {
    let place = Place::new();
    let old = random_bytes(8 * MIB);
    let top = folder(&place, "old", &old);
    let first = create(&place, &top, "old", &["--v1", "--xet"]);
    let daemon = Daemon::start(&place, &[]);
    let out = place.path("out-old");
    daemon.fetch(&first, parent(&top), &out);
    // Lists of the old content around hashes of other content.
    let new = folder(&place, "new", &random_bytes(8 * MIB));
    let second = create(&place, &new, "new", &["--v1"]);
    let (mut honest, lists) = (fs::read(&second).unwrap(), fs::read(&first).unwrap());
    let at = lists.windows(5).rposition(|five| five == b"3:xet").unwrap();
    honest.pop();
    honest.extend_from_slice(&lists[at..]);
    let lying = place.path("lying.torrent");
    fs::write(&lying, honest).unwrap();
    let fetched = daemon.fetch(&lying, parent(&new), &place.path("out-new"));
    same(&new, &place.path("out-new/top"));
    assert!(fetched.received >= 8 * MIB as u64, "{fetched:?}");
    // What is in the old files is no longer what its lists say.
    let mut changed = old.clone();
    changed[..4 * MIB].fill(7);
    fs::write(out.join("top/big"), &changed).unwrap();
    let like = folder(&place, "like", &old);
    fs::write(like.join("more"), b"so that it is another torrent").unwrap();
    let third = create(&place, &like, "like", &["--v2", "--xet"]);
    let fetched = daemon.fetch(&third, parent(&like), &place.path("out-like"));
    same(&like, &place.path("out-like/top"));
    let received = fetched.received as usize;
    assert!((4 * MIB..5 * MIB).contains(&received), "{fetched:?}");
}

#[test]
fn nothing_is_taken_from_private_torrents_or_where_it_is_not_wanted() {
    let place = Place::new();
    let big = random_bytes(2 * MIB);
    let top = folder(&place, "old", &big);
    let first = create(&place, &top, "old", &["--v1", "--private"]);
    let daemon = Daemon::start(&place, &[]);
    daemon.fetch(&first, parent(&top), &place.path("out-old"));
    let open = create(&place, &top, "open", &["--v1", "--xet"]);
    let fetched = daemon.fetch(&open, parent(&top), &place.path("out-open"));
    assert_eq!(fetched.held, 0);
    drop(daemon);
    let again = folder(&place, "again", &big);
    fs::write(again.join("more"), b"so that it is another torrent").unwrap();
    let third = create(&place, &again, "again", &["--v1", "--xet"]);
    let off = Daemon::start(&place, &[("CCBT_TORRENT_DEDUP", "false")]);
    let fetched = off.fetch(&third, parent(&again), &place.path("out-again"));
    assert_eq!(fetched.held, 0);
    same(&again, &place.path("out-again/top"));
}
