//! kill -9 of either side at random moments: what was fsynced is there afterwards, and both sides agree again.
//!
//! `CCBT_ROUNDS=200` for the long run, `CCBT_SEED=N` to repeat one.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::support::{Daemon, Links, Rng, World, wait_equal};

/// Rounds in the normal test run.
const ROUNDS: u64 = 6;

fn env(name: &str, default: u64) -> u64 {
    std::env::var(name)
        .ok()
        .and_then(|v| v.parse().ok())
        .unwrap_or(default)
}

#[test]
fn nothing_fsynced_is_lost_when_a_side_is_killed() {
    let seed = env("CCBT_SEED", 1);
    let rounds = env("CCBT_ROUNDS", ROUNDS);
    println!("CCBT_SEED={seed} CCBT_ROUNDS={rounds}");
    let world = World::new();
    let (src, at_a, at_b) = (world.dir("src"), world.dir("at-a"), world.dir("at-b"));
    fs::write(src.join("start"), b"start").unwrap();
    let mut rng = Rng(seed);
    let (mut a, links) = world.share(&src, "a");
    a.mount_again(&src, &at_a);
    let mut b = world.mount(&links.write, &at_b, "b", &[&a]);
    let mut synced = BTreeMap::new();
    for round in 0..rounds {
        let kill_a = rng.below(2) == 0;
        let after = Duration::from_millis(rng.below(700));
        let stop = AtomicBool::new(false);
        let (one, two) = std::thread::scope(|scope| {
            let writers = [(&at_a, "a"), (&at_b, "b")].map(|(dir, who)| {
                let (seed, stop) = (rng.next(), &stop);
                scope.spawn(move || write_until(dir, who, round, seed, stop))
            });
            std::thread::sleep(after);
            if kill_a {
                a.kill();
            } else {
                b.kill();
            }
            stop.store(true, Ordering::Relaxed);
            let [one, two] = writers.map(|w| w.join().unwrap());
            (one, two)
        });
        synced.extend(one);
        synced.extend(two);
        if kill_a {
            (a, b) = restart_a(&world, &src, &at_a, &links, b);
        } else {
            b = world.mount(&links.write, &at_b, "b", &[&a]);
        }
        wait_equal(&at_a, &at_b, &[&a, &b]);
        for (name, content) in &synced {
            let got = fs::read(at_a.join(name)).unwrap_or_default();
            assert!(
                got == *content,
                "seed {seed} round {round}: {name} has {} bytes, {} were fsynced\n{}\n{}",
                got.len(),
                content.len(),
                a.log(),
                b.log()
            );
        }
    }
}

/// A comes back at another port; B is told by being started again with it.
fn restart_a(
    world: &World,
    src: &Path,
    at_a: &Path,
    links: &Links,
    mut b: Daemon,
) -> (Daemon, Daemon) {
    let at_b = at_a.with_file_name("at-b");
    let (mut a, again) = world.share(src, "a");
    assert_eq!(again.write, links.write);
    a.mount_again(src, at_a);
    assert_eq!(b.stop(), 0, "{}", b.log());
    let b = world.mount(&links.write, &at_b, "b", &[&a]);
    (a, b)
}

/// Writes files of its own until stopped or the mount dies; returns those whose fsync returned. No name is used twice.
fn write_until(
    dir: &Path,
    who: &str,
    round: u64,
    seed: u64,
    stop: &AtomicBool,
) -> BTreeMap<String, Vec<u8>> {
    let mut rng = Rng(seed);
    let mut synced = BTreeMap::new();
    for n in 0.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let name = format!("{who}-{round}-{n}");
        let size = [100, 5_000, 70_000, 400_000][rng.below(4) as usize];
        let content = rng.bytes(size);
        let write = || -> std::io::Result<()> {
            let temporary = dir.join(format!(".{name}.tmp"));
            let mut file = fs::File::create(&temporary)?;
            file.write_all(&content)?;
            file.sync_all()?;
            drop(file);
            fs::rename(&temporary, dir.join(&name))?;
            fs::File::open(dir)?.sync_all()
        };
        match write() {
            Ok(()) => drop(synced.insert(name, content)),
            Err(_) => break,
        }
    }
    synced
}
