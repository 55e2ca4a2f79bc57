//! Random operations against a plain map of paths, with kills, remounts and power failures at every disk operation.

use std::collections::BTreeMap;
use std::sync::Arc;

use ccbt_mount::{Volume, VolumeError};
use ccbt_xet::disk::MemDisk;

use super::rig::{Rig, Ticks, noise, sign};

/// Seeded choice.
pub(super) struct Dice(u64);

impl Dice {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x1234_5678)
    }

    pub(super) fn below(&mut self, n: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % n
    }
}

#[derive(Debug, Clone)]
pub(super) enum Step {
    Put(String, Vec<u8>),
    Patch(String, u64, Vec<u8>),
    Truncate(String, u64),
    Fsync(String),
    Rename(String, String),
    Link(String, String),
    Unlink(String),
    Mkdir(String),
    Rmdir(String),
    Publish,
}

const DIRS: [&str; 3] = ["", "d", "d/e"];

fn path(dice: &mut Dice) -> String {
    let dir = DIRS[dice.below(3) as usize];
    format!("{dir}/f{}", dice.below(4))
}

pub(super) fn step(dice: &mut Dice) -> Step {
    let at = path(dice);
    match dice.below(20) {
        0..=3 => {
            let len = [0, 5, 3000, 90_000, 400_000][dice.below(5) as usize];
            Step::Put(at, noise(dice.below(1 << 20), len))
        }
        4..=7 => {
            let len = [1, 900, 70_000][dice.below(3) as usize];
            Step::Patch(at, dice.below(300_000), noise(dice.below(1 << 20), len))
        }
        8 => Step::Truncate(at, dice.below(200_000)),
        9..=11 => Step::Fsync(at),
        12 | 13 => Step::Rename(at, path(dice)),
        14 => Step::Link(at, path(dice)),
        15 => Step::Unlink(at),
        16 => Step::Mkdir(DIRS[1 + dice.below(2) as usize].to_owned()),
        17 => Step::Rmdir(DIRS[1 + dice.below(2) as usize].to_owned()),
        _ => Step::Publish,
    }
}

pub(super) fn run(rig: &Rig, step: &Step) -> Result<(), VolumeError> {
    match step {
        Step::Put(path, bytes) => rig.put(path, bytes),
        Step::Patch(path, offset, bytes) => rig.patch(path, *offset, bytes),
        Step::Truncate(path, size) => rig.truncate(path, *size),
        Step::Fsync(path) => rig.fsync(path),
        Step::Rename(from, to) => rig.rename(from, to),
        Step::Link(old, new) => rig.link(old, new).map(drop),
        Step::Unlink(path) => rig.unlink(path),
        Step::Mkdir(path) => rig.mkdir(path).map(drop),
        Step::Rmdir(path) => rig.rmdir(path),
        Step::Publish => {
            let published = rig.folder.publish(&sign);
            published.map(drop).map_err(|_| VolumeError::Io)
        }
    }
}

/// The same as plain data: names to file numbers, file numbers to bytes.
#[derive(Debug, Clone, Default)]
struct Reference {
    names: BTreeMap<String, Option<usize>>,
    files: Vec<Vec<u8>>,
}

impl Reference {
    fn run(&mut self, step: &Step) -> Result<(), VolumeError> {
        match step {
            Step::Put(path, bytes) => {
                let path = absolute(path);
                match self.find(&path) {
                    Ok(file) => self.files[file] = bytes.clone(),
                    Err(VolumeError::NotFound) => {
                        self.exists_parent(&path)?;
                        self.files.push(bytes.clone());
                        self.names.insert(path, Some(self.files.len() - 1));
                    }
                    Err(error) => return Err(error),
                }
            }
            Step::Patch(path, offset, bytes) => {
                let file = self.find(&absolute(path))?;
                let (from, to) = (*offset as usize, *offset as usize + bytes.len());
                let content = &mut self.files[file];
                content.resize(content.len().max(to), 0);
                content[from..to].copy_from_slice(bytes);
            }
            Step::Truncate(path, size) => {
                let file = self.find(&absolute(path))?;
                self.files[file].resize(*size as usize, 0);
            }
            Step::Fsync(path) => drop(self.find(&absolute(path))?),
            Step::Rename(from, to) => {
                let (from, to) = (absolute(from), absolute(to));
                let file = self.find(&from)?;
                self.exists_parent(&to)?;
                if self.names.get(&to) != Some(&Some(file)) {
                    self.names.remove(&from);
                    self.names.insert(to, Some(file));
                }
            }
            Step::Link(old, new) => {
                let (old, new) = (absolute(old), absolute(new));
                let file = self.find(&old)?;
                self.exists_parent(&new)?;
                if self.names.contains_key(&new) {
                    return Err(VolumeError::Exists);
                }
                self.names.insert(new, Some(file));
            }
            Step::Unlink(path) => {
                let path = absolute(path);
                self.find(&path)?;
                self.names.remove(&path);
            }
            Step::Mkdir(path) => {
                let path = absolute(path);
                self.exists_parent(&path)?;
                if self.names.contains_key(&path) {
                    return Err(VolumeError::Exists);
                }
                self.names.insert(path, None);
            }
            Step::Rmdir(path) => {
                let path = absolute(path);
                if self.names.get(&path) != Some(&None) {
                    return Err(VolumeError::NotFound);
                }
                let inside = format!("{path}/");
                if self.names.keys().any(|name| name.starts_with(&inside)) {
                    return Err(VolumeError::NotEmpty);
                }
                self.names.remove(&path);
            }
            Step::Publish => {}
        }
        Ok(())
    }

    fn find(&self, path: &str) -> Result<usize, VolumeError> {
        self.exists_parent(path)?;
        match self.names.get(path) {
            Some(Some(file)) => Ok(*file),
            Some(None) => Err(VolumeError::IsDirectory),
            None => Err(VolumeError::NotFound),
        }
    }

    fn exists_parent(&self, path: &str) -> Result<(), VolumeError> {
        match path.rsplit_once('/') {
            Some(("", _)) | None => Ok(()),
            Some((dir, _)) if self.names.get(dir) == Some(&None) => Ok(()),
            Some(_) => Err(VolumeError::NotFound),
        }
    }

    fn tree(&self) -> BTreeMap<String, Option<Vec<u8>>> {
        let content = |file: &Option<usize>| file.map(|file| self.files[file].clone());
        self.names
            .iter()
            .map(|(path, file)| (path.clone(), content(file)))
            .collect()
    }
}

fn absolute(path: &str) -> String {
    format!("/{}", path.trim_start_matches('/'))
}

fn tree(rig: &Rig) -> BTreeMap<String, Option<Vec<u8>>> {
    rig.tree()
        .into_iter()
        .map(|(path, bytes)| (path, bytes.map(|b| b.to_vec())))
        .collect()
}

fn assert_equal(rig: &Rig, reference: &Reference, what: &str) {
    let (found, expected) = (tree(rig), reference.tree());
    let names: Vec<_> = found.keys().collect();
    let wanted: Vec<_> = expected.keys().collect();
    assert_eq!(names, wanted, "{what}");
    for (path, bytes) in &expected {
        assert!(found[path] == *bytes, "{what}: {path} differs");
    }
}

fn cases(normal: u64) -> u64 {
    std::env::var("CCBT_CASES")
        .ok()
        .and_then(|n| n.parse().ok())
        .unwrap_or(normal)
}

#[test]
fn equals_a_plain_map_over_kills_and_remounts() {
    for seed in 0..cases(12) {
        let mut dice = Dice::new(seed);
        let mut rig = Rig::new(1);
        let mut reference = Reference::default();
        for number in 0..120 {
            let step = step(&mut dice);
            let what = format!("seed {seed} step {number}: {step:.40?}");
            assert_eq!(run(&rig, &step), reference.run(&step), "{what}");
            match dice.below(24) {
                0 => rig = rig.killed(),
                1 => rig = rig.remounted(),
                2 => assert_equal(&rig, &reference, &what),
                _ => {}
            }
        }
        assert_equal(&rig, &reference, &format!("seed {seed} at the end"));
    }
}

/// What one path may be after a crash: everything it was since it was last synced.
#[derive(Default)]
struct History(BTreeMap<String, Vec<Option<Vec<u8>>>>);

impl History {
    /// A step is about to be done, and leads to `after`; creating and cutting a file may be seen in between.
    fn may_become(&mut self, step: &Step, before: &Reference, after: &Reference) {
        let (before, after) = (before.tree(), after.tree());
        for path in before.keys().chain(after.keys()) {
            if before.get(path) != after.get(path) {
                let was = before.get(path).cloned().flatten();
                let is = after.get(path).cloned().flatten();
                let seen = self.0.entry(path.clone()).or_insert_with(|| vec![was]);
                if let Step::Put(..) = step {
                    seen.push(Some(Vec::new()));
                }
                seen.push(is);
            }
        }
        // A name may be durable before the bytes of its file are.
        if let Step::Rename(from, to) | Step::Link(from, to) = step {
            let moved = self.0.get(&absolute(from)).cloned().unwrap_or_default();
            self.0.entry(absolute(to)).or_default().extend(moved);
        }
    }

    fn synced(&mut self, path: &str, now: &Reference) {
        let path = absolute(path);
        let content = now.tree().get(&path).cloned().flatten();
        self.0.insert(path, vec![content]);
    }

    fn check(&self, found: &BTreeMap<String, Option<Vec<u8>>>, what: &str) {
        for (path, seen) in &self.0 {
            let is = found.get(path).cloned().flatten();
            let len = is.as_ref().map(Vec::len);
            assert!(
                seen.contains(&is),
                "{what}: {path} has {len:?} bytes it never had"
            );
        }
    }
}

/// Runs a workload until the disk stops after `limit` operations, crashes, and checks. False: the disk never stopped.
fn crash_after(seed: u64, limit: u64) -> bool {
    let what = format!("seed {seed} stopped after {limit} operations");
    let disk = MemDisk::new();
    let mut reference = Reference::default();
    let mut history = History::default();
    let mut stopped = true;
    let mut last_seq = 0;
    let mut dice = Dice::new(seed);
    disk.fail_after(limit);
    if let Ok(rig) = Rig::on(disk.clone(), 1, Arc::new(Ticks::default())) {
        stopped = false;
        let dirs = DIRS[1..].iter().map(|dir| Step::Mkdir((*dir).to_owned()));
        let steps = std::iter::repeat_with(|| step(&mut dice)).take(60);
        for step in dirs.chain(steps) {
            let mut after = reference.clone();
            if after.run(&step).is_ok() {
                history.may_become(&step, &reference, &after);
            }
            if let Step::Publish = step {
                match rig.folder.publish(&sign) {
                    Ok(Some(publication)) => last_seq = seq(&publication.head),
                    Ok(None) => {}
                    Err(_) => stopped = true,
                }
            } else {
                match run(&rig, &step) {
                    Err(VolumeError::Io) => stopped = true,
                    result => {
                        assert_eq!(result, reference.clone().run(&step), "{what}: {step:.40?}");
                    }
                }
            }
            if stopped {
                break;
            }
            reference = after;
            if let Step::Fsync(path) = &step
                && reference.find(&absolute(path)).is_ok()
            {
                history.synced(path, &reference);
            }
        }
    }
    disk.crash(seed ^ limit);
    let rig = Rig::on(disk, 1, Arc::new(Ticks::default()))
        .unwrap_or_else(|error| panic!("{what}: {error}"));
    history.check(&tree(&rig), &what);
    rig.put("new", b"after the crash").unwrap();
    let publication = rig.folder.publish(&sign).unwrap().expect("something new");
    assert!(
        seq(&publication.head) > last_seq,
        "{what}: a sequence number is used twice"
    );
    history.check(&tree(&rig), &format!("{what}, after a commit"));
    stopped
}

fn seq(head: &[u8]) -> u64 {
    u64::from_le_bytes(head[40..48].try_into().unwrap())
}

#[test]
fn a_power_failure_at_any_disk_operation_keeps_what_was_synced_and_tears_nothing() {
    for seed in 0..cases(3) {
        let mut limit = 0;
        while crash_after(seed, limit) {
            limit += 1;
        }
        assert!(
            limit > 50,
            "seed {seed}: the workload has only {limit} operations"
        );
    }
}

#[test]
fn a_full_disk_refuses_writes_and_loses_nothing() {
    let mut refused = 0;
    for seed in 0..cases(10) {
        let mut dice = Dice::new(seed);
        let mut rig = Rig::new(1);
        let mut reference = Reference::default();
        for _ in 0..30 {
            let step = step(&mut dice);
            assert_eq!(run(&rig, &step), reference.run(&step), "seed {seed}");
        }
        rig.disk.limit_space(Some(dice.below(400_000)));
        for _ in 0..60 {
            let step = step(&mut dice);
            let mut after = reference.clone();
            let expected = after.run(&step);
            match run(&rig, &step) {
                Err(VolumeError::NoSpace) => {
                    refused += 1;
                    // A new file may have been made before its bytes were refused, an old one cut.
                    if let Step::Put(path, _) = &step {
                        let path = absolute(path);
                        match rig.read(&path) {
                            Ok(bytes) if bytes.is_empty() => {
                                after.run(&Step::Put(path, Vec::new())).unwrap();
                                reference = after;
                            }
                            _ => {}
                        }
                    }
                }
                Err(VolumeError::Io) if matches!(step, Step::Publish) => refused += 1,
                result => {
                    assert_eq!(result, expected, "seed {seed}: {step:.40?}");
                    reference = after;
                }
            }
        }
        assert_equal(&rig, &reference, &format!("seed {seed} full"));
        rig.disk.limit_space(None);
        rig = rig.killed();
        assert_equal(&rig, &reference, &format!("seed {seed} with room again"));
        rig.put("after", b"x").unwrap();
        rig.publish().unwrap();
        rig.volume.statfs().unwrap();
    }
    assert!(refused > 10, "the disk was hardly ever full");
}
