//! What a first scan costs. Run by hand: `cargo test --release --test home_speed -- --ignored --nocapture`.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::fs;
use std::sync::Arc;
use std::time::Instant;

use ccbt::clock;
use ccbt::folder::home::marker::Marker;
use ccbt::folder::home::memory::MemoryLedger;
use ccbt::folder::home::{Home, HomeOptions};
use ccbt::folder::state::Inc;
use ccbt_xet::disk::RealDisk;
use ccbt_xet::store::{Store, StoreOptions};

/// Seconds of processor time this process has used; the kernel counts in hundredths.
fn cpu_seconds() -> f64 {
    let stat = fs::read_to_string("/proc/self/stat").unwrap();
    let fields = stat.rsplit(") ").next().unwrap().split(' ');
    let ticks: u64 = fields
        .skip(11)
        .take(2)
        .map(|field| field.parse::<u64>().unwrap())
        .sum();
    ticks as f64 / 100.0
}

fn scan_of(count: usize, len: usize) {
    let dir =
        tempfile::tempdir_in(std::env::var_os("CCBT_BENCH_DIR").unwrap_or_else(|| "/tmp".into()));
    let dir = dir.unwrap();
    let (path, state) = (dir.path().join("home"), dir.path().join("state"));
    fs::create_dir(&path).unwrap();
    fs::create_dir(&state).unwrap();
    let mut noise = blake3::Hasher::new().finalize_xof();
    let mut bytes = vec![0; len];
    for i in 0..count {
        let sub = path.join(format!("{:03}", i / 200));
        fs::create_dir_all(&sub).unwrap();
        noise.fill(&mut bytes);
        fs::write(sub.join(format!("{i}")), &bytes).unwrap();
    }
    std::thread::sleep(std::time::Duration::from_millis(20));
    let store = Store::open(&state, Arc::new(RealDisk), StoreOptions::default()).unwrap();
    let options = HomeOptions {
        marker: Marker {
            folder: "f".into(),
            device: "d".into(),
        },
        state_dir: state,
        known_homes: Vec::new(),
        space: 0,
    };
    let ledger = Arc::new(MemoryLedger::new(Inc([1; 8])));
    let home = Home::open(
        &path,
        ledger,
        Arc::new(store),
        Arc::new(clock::unix_nanos),
        &options,
    )
    .unwrap();
    for what in ["first", "second"] {
        let (wall, cpu) = (Instant::now(), cpu_seconds());
        let report = home.scan(&|_| ()).unwrap();
        let (wall, cpu) = (wall.elapsed().as_secs_f64(), cpu_seconds() - cpu);
        println!(
            "{what} scan of {count} x {len}: {wall:.2} s, {cpu:.2} CPU-s, {} read",
            report.read
        );
    }
}

#[test]
#[ignore = "a measurement"]
fn one_large_file() {
    scan_of(1, 1 << 30);
}

#[test]
#[ignore = "a measurement"]
fn many_small_files() {
    scan_of(20_000, 8 << 10);
}
