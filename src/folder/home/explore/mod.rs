//! Random schedules of a home: a user edits the directory between any two calls, a peer edits the folder, the disk fails
//! or fills up, the power fails between any two calls, the disk is unmounted, everything is deleted, the clock jumps. At
//! the end, with everything at rest, the directory shows what the folder shows, every byte that nobody threw away is in
//! a file and, unless it was written through an old handle, in the folder's history, no file is a mix, and nothing was published that nobody did.

mod device;
mod disk;
mod faults;
mod ledger;
mod people;
mod scenes;

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;

use self::device::Device;
use self::disk::{IGNORED, ROOT};
use self::faults::Random;
use self::people::Peer;
use super::fs::TEMP_PREFIX;
use super::marker::OWN_DIR;
use super::plan::FoundKind;
use crate::folder::state::{Fid, FileKind, Hlc, Node, State};

/// Steps of a schedule before everybody comes to rest.
const STEPS_MAX: u64 = 24;

/// Rounds of scan, exchange and pull after which everything has to be at rest.
const ROUNDS_MAX: usize = 16;

/// What is part of a schedule.
#[derive(Debug, Clone, Copy)]
struct Kind {
    user: bool,
    peer: bool,
    crashes: bool,
    errors: bool,
    full: bool,
    unmounts: bool,
    empties: bool,
    jumps: bool,
    can_exchange: bool,
    can_clone: bool,
    /// The disk keeps no modes, links or inode numbers, and times in steps of 2 s.
    is_fat: bool,
    /// The disk gives the inode number of what is gone to what comes next.
    reuses_numbers: bool,
}

impl Kind {
    /// Nothing goes wrong, and nobody does anything.
    fn quiet(user: bool) -> Self {
        Self {
            user,
            peer: true,
            crashes: true,
            errors: false,
            full: false,
            unmounts: false,
            empties: false,
            jumps: false,
            can_exchange: true,
            can_clone: true,
            is_fat: false,
            reuses_numbers: false,
        }
    }

    fn of(random: &mut Random) -> Self {
        let mut maybe = |n| random.one_in(n);
        let user = !maybe(3);
        Self {
            user,
            peer: !user || !maybe(6),
            crashes: maybe(2),
            errors: maybe(3),
            full: maybe(5),
            unmounts: maybe(6),
            empties: user && maybe(12),
            jumps: maybe(6),
            can_exchange: !maybe(5),
            is_fat: maybe(8),
            reuses_numbers: maybe(2),
            can_clone: !maybe(3),
        }
    }
}

/// One file, link or directory, as a comparison sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Thing {
    Dir { mode: u16 },
    File { content: Bytes, mode: u16 },
    Link(Bytes),
}

type Tree = BTreeMap<Vec<u8>, Thing>;

/// Runs one schedule. The error says what is wrong at its end.
fn run(seed: u64) -> Result<(), String> {
    Schedule::new(seed).run()
}

struct Schedule {
    random: Random,
    kind: Kind,
    device: Device,
    peer: Peer,
    /// Contents that were in the folder at some time and could not be lost any more.
    history: BTreeSet<Bytes>,
    /// Counters of our own after the first scan.
    at_start: u64,
}

impl Schedule {
    fn new(seed: u64) -> Self {
        let mut random = Random(seed.wrapping_mul(0x2545_f491_4f6c_dd1d));
        let kind = Kind::of(&mut random);
        Self::of_kind(random, kind)
    }

    fn of_kind(mut random: Random, kind: Kind) -> Self {
        let is_fat = kind.is_fat;
        let (can_exchange, can_clone) = (kind.can_exchange && !is_fat, kind.can_clone && !is_fat);
        let device = Device::new(random.next(), can_exchange, can_clone);
        device.fs.disk.borrow_mut().is_fat = is_fat;
        device.fs.disk.borrow_mut().reuses_numbers = kind.reuses_numbers;
        let peer = Peer::new(random.next(), device.ledger.state());
        Self {
            random,
            kind,
            device,
            peer,
            history: BTreeSet::new(),
            at_start: 0,
        }
    }

    fn run(mut self) -> Result<(), String> {
        for _ in 0..self.random.below(6) {
            self.device.user_acts();
        }
        self.device.sync_all();
        self.device.scan();
        self.exchange();
        self.at_start = self.device.own_dots();
        for _ in 0..self.random.below(STEPS_MAX) {
            self.step();
        }
        self.come_to_rest()?;
        self.check()
    }

    fn step(&mut self) {
        self.set_faults();
        self.device.wait(self.random.below(4) * 80);
        match self.random.below(12) {
            0..3 => self.device.scan(),
            3..6 => drop(self.device.pull()),
            6..8 => self.exchange(),
            8..10 if self.kind.peer => {
                for _ in 0..=self.random.below(3) {
                    self.peer.act();
                }
            }
            10 if self.kind.user => self.device.user_acts(),
            11 => self.disturb(),
            _ => {}
        }
        if self.device.is_down() {
            self.restart();
        }
    }

    fn set_faults(&mut self) {
        let crash = (self.kind.crashes && self.random.one_in(3)).then(|| self.random.below(60));
        let errors = (self.kind.errors && self.random.one_in(3)).then_some(12);
        let is_full = self.kind.full && self.random.one_in(3);
        self.device.faults.set(crash, errors, is_full);
        let acts = self.kind.user && self.random.one_in(2);
        self.device
            .user_is_busy(acts.then(|| 2 + self.random.below(12)));
    }

    fn disturb(&mut self) {
        match self.random.below(4) {
            0 if self.kind.unmounts => self.device.mount(self.random.one_in(2)),
            1 if self.kind.empties => self.device.empty(),
            2 if self.kind.jumps => self.device.jump(self.random.one_in(2)),
            3 if self.kind.crashes => self.restart(),
            _ => {}
        }
    }

    fn restart(&mut self) {
        let (safe, folder) = (self.device.safe(), self.device.ledger.safe());
        self.history.extend(folder);
        self.device.restart(&mut self.random);
        // A start scans before it lets anybody in.
        self.device.user_is_busy(None);
        self.device.scan();
        // What the user had not synced, the crash may have taken.
        let there = self.device.contents();
        self.device
            .forgive(|content| !safe.contains(content) && !there.contains(content));
    }

    /// We publish what is durable, and take in what the peer has.
    fn exchange(&mut self) {
        if !self.device.publish() {
            return;
        }
        let ours = self.device.ledger.state();
        self.history.extend(ledger::contents(&ours));
        self.peer.state.merge(&ours);
        self.peer.hlc = Hlc(self.peer.hlc.0.max(self.device.ledger.hlc()));
        self.history.extend(ledger::contents(&self.peer.state));
        self.device.merge(&self.peer.state, self.peer.hlc.0);
    }

    fn come_to_rest(&mut self) -> Result<(), String> {
        self.device.faults.set(None, None, false);
        self.device.user_is_busy(None);
        self.device.mount(true);
        self.device.is_complete = true;
        let mut before = None;
        for _ in 0..ROUNDS_MAX {
            self.device.wait(5000);
            self.device.confirm();
            self.device.scan();
            self.exchange();
            let is_done = self.device.pull();
            self.exchange();
            let now = (self.disk_tree(), self.device.ledger.state());
            if is_done && before.as_ref() == Some(&now) {
                return Ok(());
            }
            before = Some(now);
        }
        Err(format!("it does not come to rest: {:?}", self.kind))
    }

    fn check(&self) -> Result<(), String> {
        let (mut disk, mut shown) = (self.disk_tree(), self.shown_tree());
        if self.kind.is_fat {
            // What cannot be there is not asked for.
            [&mut disk, &mut shown]
                .into_iter()
                .for_each(forget_what_fat_does);
        }
        if disk != shown {
            let differ = |tree: &Tree, other: &Tree| -> Vec<String> {
                let differ = tree
                    .iter()
                    .filter(|(path, thing)| other.get(*path) != Some(thing));
                differ
                    .map(|(path, thing)| format!("{} {thing:?}", String::from_utf8_lossy(path)))
                    .collect()
            };
            let (disk, shown) = (differ(&disk, &shown), differ(&shown, &disk));
            return Err(format!("disk {disk:?}, folder {shown:?}, {:?}", self.kind));
        }
        let there = self.device.contents();
        let user = self.device.user.borrow();
        // What the folder remembers of it is borrowed from these files.
        if let Some(lost) = user.owed.iter().find(|content| !there.contains(*content)) {
            return Err(format!("{lost:?} of the user is lost: {:?}", self.kind));
        }
        let shown =
            |content: &Bytes| self.history.contains(content) || user.hidden.contains(content);
        if let Some(unseen) = user.owed.iter().find(|content| !shown(content)) {
            return Err(format!("{unseen:?} was never published: {:?}", self.kind));
        }
        self.check_contents(&user.all)?;
        if !self.device.has_intents() {
            self.check_published(&user.renamed)
        } else {
            Err("an intent is left".to_owned())
        }
    }

    /// No file is a mix of two versions.
    fn check_contents(&self, user: &BTreeSet<Bytes>) -> Result<(), String> {
        let whole = |content: &Bytes| user.contains(content) || self.peer.all.contains(content);
        // A crash may tear what a program did not sync.
        let torn =
            |content: &Bytes| self.kind.crashes && (content.is_empty() || &content[..] == b"user");
        for (path, thing) in self.disk_tree() {
            if let Thing::File { content, .. } = thing
                && !whole(&content)
                && !torn(&content)
            {
                let path = String::from_utf8_lossy(&path).into_owned();
                return Err(format!("{path} is a mix: {content:?}"));
            }
        }
        Ok(())
    }

    /// Nothing was published that nobody did.
    fn check_published(&self, renamed: &BTreeSet<Bytes>) -> Result<(), String> {
        if !self.kind.user && self.device.own_dots() != self.at_start {
            return Err(format!("published what nobody did: {:?}", self.kind));
        }
        let mut seen = BTreeMap::new();
        for (path, thing) in self.shown_tree() {
            let Thing::File { content, .. } = thing else {
                continue;
            };
            let is_whole = content.len() > 4;
            let is_renamed = renamed.contains(&content)
                || self.peer.renamed.contains(&content)
                || self.device.returned.contains(&content);
            if let Some(other) = seen.insert(content.clone(), path.clone())
                && is_whole
                && !is_renamed
            {
                let (one, two) = (
                    String::from_utf8_lossy(&other),
                    String::from_utf8_lossy(&path),
                );
                return Err(format!(
                    "{content:?} is at {one} and {two}: {:?}",
                    self.kind
                ));
            }
        }
        Ok(())
    }

    fn disk_tree(&self) -> Tree {
        let fs = self.device.fs.disk.borrow();
        let mut tree = Tree::new();
        let mut stack = vec![(ROOT, Vec::new())];
        while let Some((dir, path)) = stack.pop() {
            for (name, ino) in fs.names.get(&dir).into_iter().flatten() {
                let node = &fs.nodes[ino];
                let is_own = dir == ROOT && *name == OWN_DIR;
                if is_own || name.starts_with(TEMP_PREFIX) || name.starts_with(IGNORED) {
                    continue;
                }
                let path = super::plan::join(&path, name);
                let (mode, content) = (node.mode, node.data.clone());
                let thing = match node.kind {
                    FoundKind::Dir => {
                        stack.push((*ino, path.clone()));
                        Thing::Dir { mode }
                    }
                    FoundKind::Symlink => Thing::Link(content),
                    _ => Thing::File { content, mode },
                };
                tree.insert(path, thing);
            }
        }
        tree
    }

    fn shown_tree(&self) -> Tree {
        let mut tree = Tree::new();
        walk(&self.device.ledger.state(), Fid::ROOT, &[], &mut tree);
        tree
    }
}

fn forget_what_fat_does(tree: &mut Tree) {
    tree.retain(|_, thing| !matches!(thing, Thing::Link(_)));
    for thing in tree.values_mut() {
        match thing {
            Thing::Dir { mode } | Thing::File { mode, .. } => *mode = 0,
            Thing::Link(_) => {}
        }
    }
}

fn walk(state: &State, dir: Fid, path: &[u8], tree: &mut Tree) {
    for (name, node) in state.list(dir) {
        let path = super::plan::join(path, name.as_bytes());
        let thing = match node {
            Node::Dir(node) => {
                walk(state, node.fid, &path, tree);
                Thing::Dir { mode: node.mode }
            }
            Node::File(node) => {
                let content = Bytes::copy_from_slice(&node.version.content.0);
                match node.version.kind {
                    FileKind::Symlink => Thing::Link(content),
                    FileKind::File => Thing::File {
                        content,
                        mode: node.mode,
                    },
                }
            }
        };
        tree.insert(path, thing);
    }
}

#[cfg(test)]
mod tests {
    /// `CCBT_CASES` sets how many, `CCBT_SEED` the first.
    #[test]
    fn schedules_end_with_nothing_lost() {
        let number = |name: &str, default| {
            let set = std::env::var(name)
                .ok()
                .and_then(|value| value.parse().ok());
            set.unwrap_or(default)
        };
        let first = number("CCBT_SEED", 0);
        for seed in first..first + number("CCBT_CASES", 2000) {
            if let Err(what) = super::run(seed) {
                panic!("CCBT_SEED={seed}: {what}");
            }
        }
    }
}
