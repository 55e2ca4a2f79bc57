//! Who edits: a user in the plain directory, between any two calls of ours, and a peer in the folder.

use std::collections::BTreeSet;

use bytes::Bytes;

use super::disk::{Disk, ROOT};
use super::faults::Random;
use crate::folder::home::fs::TEMP_PREFIX;
use crate::folder::home::marker::OWN_DIR;
use crate::folder::home::plan::FoundKind;
use crate::folder::state::{
    Body, By, Content, Fid, FileKind, Hlc, Inc, Name, NewFile, Node, RenameMode, State, Target,
    Time,
};

const NAMES: [&str; 5] = ["a", "b", "c", "d.txt", "e"];

/// The user at the keyboard.
#[derive(Debug)]
pub(super) struct User {
    random: Random,
    /// One call of ours in so many is preceded by something the user does; none: the user is away.
    pub(super) acts_one_in: Option<u64>,
    written: u64,
    /// Contents the user has not thrown away.
    pub(super) owed: BTreeSet<Bytes>,
    /// All contents the user ever wrote.
    pub(super) all: BTreeSet<Bytes>,
    /// A file held open for writing.
    open: Option<u64>,
    /// Files whose name the user took away: what is written to them goes with the last handle.
    removed: BTreeSet<u64>,
    /// Contents written through an old handle, to a file that has no name the user sees.
    pub(super) hidden: BTreeSet<Bytes>,
    /// Contents whose files the user has renamed.
    pub(super) renamed: BTreeSet<Bytes>,
}

impl User {
    pub(super) fn new(seed: u64) -> Self {
        Self {
            random: Random(seed),
            acts_one_in: None,
            written: 0,
            owed: BTreeSet::new(),
            all: BTreeSet::new(),
            open: None,
            removed: BTreeSet::new(),
            hidden: BTreeSet::new(),
            renamed: BTreeSet::new(),
        }
    }

    pub(super) fn maybe_act(&mut self, disk: &mut Disk) {
        if self.acts_one_in.is_some_and(|n| self.random.one_in(n)) {
            self.act(disk);
        }
    }

    pub(super) fn act(&mut self, disk: &mut Disk) {
        disk.clock += 3_000_000;
        let (dir, name) = (self.dir(disk), self.name());
        let is_there = disk.lookup(dir, name).ok();
        match (self.random.below(12), is_there) {
            (0, None) => drop(disk.make(dir, name, FoundKind::Dir, Bytes::new())),
            (0..5, None) => {
                self.create(disk, (dir, name));
            }
            (0..3, Some(ino)) => self.overwrite(disk, ino),
            (3, Some(_)) => self.save(disk, dir, name),
            (4..6, Some(ino)) if disk.remove(dir, name).is_ok() => self.discard(disk, ino),
            (6..9, _) => self.rename(disk, (dir, name)),
            (9, Some(ino)) => {
                if let Some(node) = disk.nodes.get_mut(&ino) {
                    node.mode = [0o600, 0o640, 0o755][self.random.below(3) as usize];
                }
                disk.touch(ino);
            }
            (10, Some(ino)) => self.open = Some(ino),
            (11, _) => {
                if let Some(ino) = self.open.take() {
                    self.overwrite(disk, ino);
                }
            }
            _ => {}
        }
    }

    /// Every program ended with the machine.
    pub(super) fn restart(&mut self) {
        self.open = None;
        self.removed.clear();
    }

    fn content(&mut self) -> Bytes {
        self.written += 1;
        let content = Bytes::from(format!("user-{:04}", self.written));
        self.all.insert(content.clone());
        self.owed.insert(content.clone());
        content
    }

    fn settle(&mut self, disk: &mut Disk, ino: u64) {
        if self.random.one_in(2) {
            disk.sync_node(ino);
            disk.sync_names();
        }
    }

    /// Writes in place; a name may be gone by then, or be another.
    pub(super) fn overwrite(&mut self, disk: &mut Disk, ino: u64) {
        let is_file = disk
            .nodes
            .get(&ino)
            .is_some_and(|node| node.kind == FoundKind::File);
        if !is_file {
            return;
        }
        self.throw(disk, ino);
        let content = self.content();
        if self.removed.contains(&ino) {
            self.owed.remove(&content);
        }
        self.note_hidden(disk, ino, &content);
        disk.ours.remove(&ino);
        disk.write(ino, content, false);
        self.settle(disk, ino);
    }

    fn note_hidden(&mut self, disk: &Disk, ino: u64, content: &Bytes) {
        if !disk.visible().contains(&ino) {
            self.hidden.insert(content.clone());
        }
    }

    /// As editors do it.
    pub(super) fn save(&mut self, disk: &mut Disk, dir: u64, name: &'static [u8]) {
        let is_file = |ino| {
            disk.nodes
                .get(&ino)
                .is_some_and(|n: &super::disk::Node| n.kind == FoundKind::File)
        };
        if !disk.lookup(dir, name).is_ok_and(is_file) {
            return;
        }
        let Some(ino) = self.create(disk, (dir, b"save~")) else {
            return;
        };
        if let Ok(old) = disk.lookup(dir, name) {
            self.discard(disk, old);
        }
        let _stays = disk.rename((dir, b"save~"), (dir, name), None);
        self.settle(disk, ino);
    }

    pub(super) fn create(&mut self, disk: &mut Disk, (dir, name): (u64, &[u8])) -> Option<u64> {
        let content = self.content();
        let made = disk.make(dir, name, FoundKind::File, content.clone());
        match made {
            Ok(ino) => {
                self.note_hidden(disk, ino, &content);
                self.settle(disk, ino);
                Some(ino)
            }
            // Nobody may expect to find what could not be written.
            Err(_) => {
                self.owed.remove(&content);
                None
            }
        }
    }

    /// The user does not want this content any more.
    fn throw(&mut self, disk: &Disk, ino: u64) {
        if let Some(node) = disk.nodes.get(&ino) {
            self.owed.remove(&node.data);
        }
    }

    /// The user took its name away.
    fn discard(&mut self, disk: &Disk, ino: u64) {
        self.throw(disk, ino);
        self.removed.insert(ino);
    }

    fn rename(&mut self, disk: &mut Disk, from: (u64, &[u8])) {
        let to = (self.dir(disk), self.name());
        let Ok(ino) = disk.lookup(from.0, from.1) else {
            return;
        };
        let target = disk.lookup(to.0, to.1).ok().filter(|target| *target != ino);
        if target
            .is_some_and(|target| disk.names.contains_key(&target) || disk.names.contains_key(&ino))
        {
            return;
        }
        let mut inside = vec![ino];
        while let Some(ino) = inside.pop() {
            inside.extend(
                disk.names
                    .get(&ino)
                    .into_iter()
                    .flat_map(|names| names.values()),
            );
            self.renamed
                .extend(disk.nodes.get(&ino).map(|node| node.data.clone()));
        }
        if disk.rename(from, to, None).is_ok()
            && let Some(target) = target
        {
            self.discard(disk, target);
        }
    }

    fn name(&mut self) -> &'static [u8] {
        NAMES[self.random.below(NAMES.len() as u64) as usize].as_bytes()
    }

    fn dir(&mut self, disk: &Disk) -> u64 {
        let mut dir = ROOT;
        while self.random.one_in(2) {
            let below = disk.names.get(&dir).into_iter().flatten();
            let dirs: Vec<u64> = below
                .filter(|(name, ino)| !is_ours(name) && disk.names.contains_key(ino))
                .map(|(_, ino)| *ino)
                .collect();
            if dirs.is_empty() {
                break;
            }
            dir = dirs[self.random.below(dirs.len() as u64) as usize];
        }
        dir
    }

    /// Everything goes, as if the wrong disk were there.
    pub(super) fn empty(&mut self, disk: &mut Disk) {
        let names = disk.names.get(&ROOT).cloned().unwrap_or_default();
        for (name, ino) in names.into_iter().filter(|(name, _)| *name != OWN_DIR) {
            if !name.starts_with(TEMP_PREFIX) {
                self.remove_all(disk, (ROOT, &name), ino);
            }
        }
    }

    fn remove_all(&mut self, disk: &mut Disk, at: (u64, &[u8]), ino: u64) {
        for (name, below) in disk.names.get(&ino).cloned().unwrap_or_default() {
            self.remove_all(disk, (ino, &name), below);
        }
        if disk.remove(at.0, at.1).is_ok() {
            self.discard(disk, ino);
        }
    }
}

/// Whether the user keeps out of it.
fn is_ours(name: &[u8]) -> bool {
    name == OWN_DIR.as_bytes() || name.starts_with(TEMP_PREFIX)
}

/// A peer with a folder of its own.
pub(super) struct Peer {
    random: Random,
    pub(super) state: State,
    pub(super) hlc: Hlc,
    written: u64,
    pub(super) all: BTreeSet<Bytes>,
    pub(super) renamed: BTreeSet<Bytes>,
}

const PEER: Inc = Inc(*b"peer----");

impl Peer {
    pub(super) fn new(seed: u64, state: State) -> Self {
        Self {
            random: Random(seed),
            state,
            hlc: Hlc(1),
            written: 0,
            all: BTreeSet::new(),
            renamed: BTreeSet::new(),
        }
    }

    pub(super) fn by(&mut self) -> By {
        self.hlc = self.hlc.tick(0);
        By {
            inc: PEER,
            hlc: self.hlc,
        }
    }

    pub(super) fn act(&mut self) {
        let (dir, name) = self.place();
        let there = self.state.lookup(dir, name.as_bytes());
        let by = self.by();
        // A refused operation is one the peer did not do.
        let _done = match (self.random.below(10), there) {
            (0, None) => self.state.mkdir(dir, name.as_bytes(), 0o750, by),
            (1..5, None) => {
                let file = NewFile {
                    kind: FileKind::File,
                    mode: 0o644,
                    body: self.body(),
                };
                self.state.create(dir, name.as_bytes(), file, by)
            }
            (5, None) => {
                let body = self.body();
                let kind = FileKind::Symlink;
                let mode = 0o777;
                self.state
                    .create(dir, name.as_bytes(), NewFile { kind, mode, body }, by)
            }
            (0..3, Some(Node::File(_))) => {
                let body = self.body();
                let base = self.state.base(dir, name.as_bytes());
                base.map_or(Ok(Vec::new()), |mut base| {
                    self.state.write(&mut base, body, by)
                })
            }
            (3, Some(Node::File(_))) => self.state.unlink(dir, name.as_bytes(), by),
            (3, Some(Node::Dir(_))) => self.state.rmdir(dir, name.as_bytes(), by),
            (4, Some(_)) => {
                let mode = [0o700, 0o640, 0o755][self.random.below(3) as usize];
                let target = Target::Name(dir, name.as_bytes());
                match self.state.lookup(dir, name.as_bytes()) {
                    Some(Node::Dir(node)) => self.state.chmod(Target::Dir(node.fid), mode, by),
                    _ => self.state.chmod(target, mode, by),
                }
            }
            (_, Some(_)) => {
                let to = self.place();
                self.note_renamed(dir, &name);
                let mode = [
                    RenameMode::Replace,
                    RenameMode::NoReplace,
                    RenameMode::Exchange,
                ][self.random.below(3) as usize];
                if mode == RenameMode::Exchange {
                    self.note_renamed(to.0, &to.1);
                }
                let (from, to) = ((dir, name.as_bytes()), (to.0, to.1.as_bytes()));
                self.state.rename(from, to, mode, by)
            }
            _ => Ok(Vec::new()),
        };
    }

    fn note_renamed(&mut self, dir: Fid, name: &Name) {
        match self.state.lookup(dir, name.as_bytes()) {
            Some(Node::File(node)) => {
                let content = Bytes::copy_from_slice(&node.version.content.0);
                self.renamed.insert(content);
            }
            Some(Node::Dir(node)) => {
                for (name, _) in self.state.list(node.fid) {
                    self.note_renamed(node.fid, &name);
                }
            }
            None => {}
        }
    }

    fn body(&mut self) -> Body {
        self.written += 1;
        let content = format!("peer-{:04}", self.written).into_bytes();
        self.all.insert(content.clone().into());
        Body {
            size: content.len() as u64,
            content: Content::from(&content[..]),
            mtime: Time {
                secs: 1_600_000_000 + self.written as i64,
                nanos: 5,
            },
        }
    }

    fn place(&mut self) -> (Fid, Name) {
        let mut dir = Fid::ROOT;
        loop {
            let shown = self.state.list(dir);
            if !shown.is_empty() && self.random.one_in(2) {
                let (name, node) = &shown[self.random.below(shown.len() as u64) as usize];
                match node {
                    Node::Dir(node) => {
                        dir = node.fid;
                        continue;
                    }
                    Node::File(_) => return (dir, name.clone()),
                }
            }
            let name = NAMES[self.random.below(NAMES.len() as u64) as usize];
            return (dir, Name::from(name.as_bytes()));
        }
    }
}
