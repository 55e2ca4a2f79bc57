//! Every fuzz target over its committed corpus, so that what a fuzzer found once stays fixed for those who never run one.

use std::fs;
use std::path::{Path, PathBuf};

#[path = "fuzz/seeds/mod.rs"]
mod seeds;
#[path = "fuzz/targets/mod.rs"]
mod targets;

use targets::{TARGETS, Target};

/// Largest corpus, all targets together, in bytes: it is part of every checkout.
const CORPUS_BYTES_MAX: u64 = 1 << 20;

fn corpus() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/corpus")
}

/// The inputs in a corpus, in the order of their names.
fn inputs(dir: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(dir) else {
        return Vec::new();
    };
    let mut paths: Vec<PathBuf> = entries
        .map(|entry| entry.expect("the corpus can be listed").path())
        .collect();
    paths.sort();
    paths
}

/// Runs a target over its corpus; true if it took something.
fn replay(name: &str, target: Target) -> bool {
    let mut taken = false;
    for path in inputs(&corpus().join(name)) {
        let input = fs::read(&path).expect("the input can be read");
        let run = std::panic::catch_unwind(|| target(&input));
        taken |= run.unwrap_or_else(|_| panic!("{name} fails on {}", path.display()));
    }
    taken
}

#[test]
fn every_target_keeps_its_promises_on_its_corpus() {
    let poor: Vec<&str> = TARGETS
        .iter()
        .filter(|(name, target)| !replay(name, *target))
        .map(|(name, _)| *name)
        .collect();
    assert!(
        poor.is_empty(),
        "nothing in the corpora of {poor:?} is taken"
    );
}

#[test]
fn every_corpus_has_its_target_and_all_are_small() {
    let dirs = inputs(&corpus());
    let names: Vec<&str> = TARGETS.iter().map(|(name, _)| *name).collect();
    let found: Vec<&str> = dirs
        .iter()
        .filter_map(|dir| dir.file_name()?.to_str())
        .collect();
    assert_eq!(found, names);
    let sizes = dirs
        .iter()
        .flat_map(|dir| inputs(dir))
        .map(|path| path.metadata().expect("an input is a file").len());
    let total: u64 = sizes.sum();
    assert!(total <= CORPUS_BYTES_MAX, "{total} bytes");
}

#[test]
#[ignore = "writes the seeds into the corpora; scripts/fuzz seeds"]
fn write_seeds() {
    for (name, _) in TARGETS {
        let dir = corpus().join(name);
        fs::create_dir_all(&dir).expect("the corpus can be written");
        for (number, seed) in seeds::of(name).iter().enumerate() {
            fs::write(dir.join(format!("seed-{number:02}")), seed)
                .expect("the corpus can be written");
        }
    }
}
