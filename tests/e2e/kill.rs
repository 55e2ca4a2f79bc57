//! kill -9 of either side at random moments: what was fsynced is there afterwards, and both sides agree again.
//!
//! `CCBT_ROUNDS=200` for the long run, `CCBT_SEED=N` to repeat one. A round looks at the files written in it and at a
//! sample of the older ones, the end at all of them, so a round costs the same however many there were.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::support::{Daemon, Links, Rng, World, wait_equal};

/// Rounds in the normal test run.
const ROUNDS: u64 = 8;
/// Older files read again after every kill.
const SAMPLE: u64 = 20;

/// Path below the mount -> length and hash of the content whose fsync returned.
type Synced = BTreeMap<String, (usize, blake3::Hash)>;

fn env(name: &str, default: u64) -> u64 {
    std::env::var(name)
        .ok()
        .and_then(|v| v.parse().ok())
        .unwrap_or(default)
}

/// The two sides and where they are.
struct Pair {
    world: World,
    src: PathBuf,
    at_a: PathBuf,
    at_b: PathBuf,
    links: Links,
    a: Daemon,
    b: Daemon,
}

#[test]
fn nothing_fsynced_is_lost_when_a_side_is_killed() {
    let seed = env("CCBT_SEED", 1);
    let rounds = env("CCBT_ROUNDS", ROUNDS);
    println!("CCBT_SEED={seed} CCBT_ROUNDS={rounds}");
    let mut rng = Rng(seed);
    let mut pair = Pair::new();
    let mut synced = Synced::new();
    for round in 0..rounds {
        let what = format!("CCBT_SEED={seed} round {round}");
        println!("{what}");
        let fresh = pair.round(round, &mut rng);
        let dir = format!("round-{round}");
        wait_equal(
            &pair.at_a.join(&dir),
            &pair.at_b.join(&dir),
            &pair.daemons(),
        );
        pair.check(fresh.iter(), &what);
        let older = (0..SAMPLE.min(synced.len() as u64))
            .filter_map(|_| synced.iter().nth(rng.below(synced.len() as u64) as usize));
        pair.check(older, &what);
        synced.extend(fresh);
    }
    println!("{} files were fsynced", synced.len());
    wait_equal(&pair.at_a, &pair.at_b, &pair.daemons());
    pair.check(synced.iter(), &format!("CCBT_SEED={seed}, at the end"));
}

#[test]
fn what_a_killed_daemon_left_is_unmounted_without_one() {
    let mut pair = Pair::new();
    pair.b.kill();
    let look = || fs::read_dir(&pair.at_b).map(|entries| entries.count());
    assert!(look().is_err(), "nobody serves the mount");
    let at_b = pair.at_b.to_str().unwrap();
    let said = pair.b.run(&["unmount", at_b]);
    assert_eq!(said, format!("Unmounted {at_b}, whose daemon was gone\n"));
    assert_eq!(look().unwrap(), 0, "the empty mount point is back");
    assert!(!pair.b.try_run(&["unmount", at_b]).status.success());
}

impl Pair {
    fn new() -> Self {
        let world = World::new();
        let (src, at_a, at_b) = (world.dir("src"), world.dir("at-a"), world.dir("at-b"));
        fs::write(src.join("start"), b"start").unwrap();
        let (mut a, links) = world.share(&src, "a");
        a.mount_again(&src, &at_a);
        let b = world.mount(&links.write, &at_b, "b", &[&a]);
        Self {
            world,
            src,
            at_a,
            at_b,
            links,
            a,
            b,
        }
    }

    fn daemons(&self) -> [&Daemon; 2] {
        [&self.a, &self.b]
    }

    /// Writes on both sides, kills one, starts it again. Returns what was fsynced.
    fn round(&mut self, round: u64, rng: &mut Rng) -> Synced {
        let kill_a = rng.below(2) == 0;
        let after = Duration::from_millis(rng.below(700));
        let stop = AtomicBool::new(false);
        let seeds = [rng.next(), rng.next()];
        let mut synced = Synced::new();
        std::thread::scope(|scope| {
            let sides = [(&self.at_a, "a", seeds[0]), (&self.at_b, "b", seeds[1])];
            let stop = &stop;
            let writers = sides.map(|(dir, who, seed)| {
                scope.spawn(move || write_until(dir, who, round, seed, stop))
            });
            std::thread::sleep(after);
            match kill_a {
                true => self.a.kill(),
                false => self.b.kill(),
            }
            stop.store(true, Ordering::Relaxed);
            for writer in writers {
                synced.extend(writer.join().unwrap());
            }
        });
        match kill_a {
            true => self.restart_a(),
            false => self.b = self.mount_b(),
        }
        synced
    }

    /// A comes back at another port; B is told by being started again with it.
    fn restart_a(&mut self) {
        let (a, again) = self.world.share(&self.src, "a");
        assert_eq!(again.write, self.links.write);
        self.a = a;
        self.a.mount_again(&self.src, &self.at_a);
        assert_eq!(self.b.stop(), 0, "{}", self.b.log());
        self.b = self.mount_b();
    }

    fn mount_b(&self) -> Daemon {
        let link = &self.links.write;
        self.world.mount(link, &self.at_b, "b", &[&self.a])
    }

    /// Both sides have these files as they were fsynced.
    fn check<'s>(
        &self,
        files: impl Iterator<Item = (&'s String, &'s (usize, blake3::Hash))>,
        what: &str,
    ) {
        for (name, synced) in files {
            for (side, at) in [("a", &self.at_a), ("b", &self.at_b)] {
                let got = fs::read(at.join(name)).unwrap_or_default();
                assert!(
                    (got.len(), blake3::hash(&got)) == *synced,
                    "{what}: {name} has {} bytes at {side}, {} were fsynced\n{}\n{}",
                    got.len(),
                    synced.0,
                    self.a.log(),
                    self.b.log()
                );
            }
        }
    }
}

/// Writes files of its own, and into them, until stopped or the mount dies; returns those whose fsync returned.
fn write_until(dir: &Path, who: &str, round: u64, seed: u64, stop: &AtomicBool) -> Synced {
    let mut rng = Rng(seed);
    let mut synced: Vec<(String, Vec<u8>)> = Vec::new();
    let below = format!("round-{round}");
    let made = fs::create_dir(dir.join(&below));
    if made.is_err_and(|error| error.kind() != std::io::ErrorKind::AlreadyExists) {
        return Synced::new();
    }
    for n in 0.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        // What is being edited when the mount dies may or may not have the edit.
        let done = if rng.below(3) == 0 && !synced.is_empty() {
            let (name, content) = synced.swap_remove(rng.below(synced.len() as u64) as usize);
            edit(dir, name, content, &mut rng)
        } else {
            create(dir, format!("{below}/{who}-{n}"), &mut rng)
        };
        match done {
            Ok(done) => synced.push(done),
            Err(_) => break,
        }
    }
    let hashed =
        |(name, content): (String, Vec<u8>)| (name, (content.len(), blake3::hash(&content)));
    synced.into_iter().map(hashed).collect()
}

/// A new file, as an application saves one: under another name, synced, renamed, the directory synced.
fn create(dir: &Path, name: String, rng: &mut Rng) -> std::io::Result<(String, Vec<u8>)> {
    let sizes = [100, 100, 5_000, 5_000, 70_000, 70_000, 400_000];
    let size = match rng.below(40) {
        0 => 3_000_000,
        n => sizes[n as usize % sizes.len()],
    };
    let content = rng.bytes(size);
    let path = dir.join(&name);
    let temporary = path.with_extension("tmp");
    let mut file = fs::File::create(&temporary)?;
    file.write_all(&content)?;
    file.sync_all()?;
    drop(file);
    fs::rename(&temporary, &path)?;
    fs::File::open(path.parent().unwrap_or(dir))?.sync_all()?;
    Ok((name, content))
}

/// An edit in place, as a database makes one: overwrites, appends or cuts.
fn edit(
    dir: &Path,
    name: String,
    mut content: Vec<u8>,
    rng: &mut Rng,
) -> std::io::Result<(String, Vec<u8>)> {
    let file = fs::OpenOptions::new().write(true).open(dir.join(&name))?;
    let at = rng.below(content.len() as u64 + 1) as usize;
    if rng.below(4) == 0 {
        file.set_len(at as u64)?;
        content.truncate(at);
    } else {
        let patch_len = 1 + rng.below(5_000) as usize;
        let patch = rng.bytes(patch_len);
        file.write_all_at(&patch, at as u64)?;
        content.resize(content.len().max(at + patch.len()), 0);
        content[at..at + patch.len()].copy_from_slice(&patch);
    }
    file.sync_all()?;
    Ok((name, content))
}
