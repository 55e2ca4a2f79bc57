//! What an edit costs on the wire when the other side is reading that file at the same time.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::support::{Daemon, Rng, World, eventually};

/// Bytes of the file that is edited.
const SIZE: usize = 64 << 20;
const MIB: usize = 1 << 20;
/// Edits of each length.
const ROUNDS: u64 = 6;

/// Reads as the benchmark does: opens anew, reads on until enough came, in a loop.
fn shows(path: &Path, at: u64, wanted: &[u8]) -> bool {
    let file = File::open(path).unwrap();
    let mut got = vec![0; wanted.len()];
    file.read_exact_at(&mut got, at).is_ok() && got == wanted
}

fn edit(path: &Path, at: u64, data: &[u8]) {
    let file = OpenOptions::new().write(true).open(path).unwrap();
    file.write_all_at(data, at).unwrap();
}

/// Both sides have all there is, and nothing is under way.
fn is_quiet(a: &Daemon, b: &Daemon) -> bool {
    let status = a.status();
    let folder = &status["folders"][0];
    let root = |daemon: &Daemon| daemon.status()["folders"][0]["root"].clone();
    folder["missing"]["files"] == 0 && folder["root"] == root(b) && folder["waiting"].is_null()
}

/// Chunks in a daemon's store.
fn chunks(daemon: &Daemon) -> u64 {
    let printed = daemon.run(&["xet", "stats", "--json"]);
    let printed: serde_json::Value = serde_json::from_str(&printed).unwrap();
    printed["chunks"].as_u64().unwrap()
}

/// Edits at one side what is read at the other. No chunk that an edit makes may come twice. Returns the most bytes that one
/// of them brought, and the median.
fn bytes_in(len: usize, seed: u64) -> (u64, u64) {
    let world = World::new();
    let (src, at_a, at_b) = (world.dir("src"), world.dir("at-a"), world.dir("at-b"));
    let mut rng = Rng(seed);
    fs::write(src.join("big"), rng.bytes(SIZE)).unwrap();
    let (mut a, links) = world.share(&src, "a");
    a.mount_again(&src, &at_a);
    let b = world.mount(&links.write, &at_b, "b", &[&a]);
    fs::read(at_b.join("big")).unwrap();
    let mut took = Vec::new();
    for round in 0..ROUNDS {
        let at = (round * 7 + 3) * MIB as u64 + 777;
        let data = rng.bytes(len);
        let before = a.metric("ccbt_wire_bytes_in_total");
        let (fetched, made) = (a.metric("ccbt_chunks_fetched_total"), chunks(&b));
        edit(&at_b.join("big"), at, &data);
        a.wait("the edit at a", || shows(&at_a.join("big"), at, &data));
        a.wait("the edit in the plain file", || {
            shows(&src.join("big"), at, &data)
        });
        assert!(eventually(|| is_quiet(&a, &b)), "{}", a.log());
        let fetched = a.metric("ccbt_chunks_fetched_total") - fetched;
        let made = chunks(&b) - made;
        assert!(fetched <= made, "{made} chunks are new, {fetched} came");
        took.push(a.metric("ccbt_wire_bytes_in_total") - before);
    }
    println!("{len} bytes changed: {took:?} received");
    took.sort_unstable();
    (took[took.len() - 1], took[took.len() / 2])
}

#[test]
fn a_changed_mebibyte_is_fetched_once_while_it_is_being_read() {
    // The chunks it touches at either end come with it.
    let (most, _) = bytes_in(MIB, 1);
    assert!(most < (MIB + 400 * 1024) as u64, "{most} bytes received");
}

#[test]
fn a_small_change_is_fetched_once_while_it_is_being_read() {
    // One or two chunks, rarely three, and the list of chunks around them.
    let (most, median) = bytes_in(4096, 2);
    assert!(most < 600_000 && median < 200_000, "{most}, {median}");
}
