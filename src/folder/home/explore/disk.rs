//! A file system in memory that others write to between any two calls, that can fail at any of them, and that keeps of a
//! crash only what was synced.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;

use bytes::Bytes;

use super::faults::{Faults, Random};
use crate::folder::home::base::{FileTime, Stamp, UNKNOWN_INO};
use crate::folder::home::caps::Caps;
use crate::folder::home::fs::{Attributes, HomeFs, Kept, RenameHow, Room, TEMP_PREFIX};
use crate::folder::home::marker::OWN_DIR;
use crate::folder::home::plan::{Found, FoundKind};

pub(super) const ROOT: u64 = 1;
const DEV: u64 = 5;

/// What names begin with that the user does not share.
pub(super) const IGNORED: &[u8] = b"#";

/// Names of each directory.
pub(super) type Names = BTreeMap<u64, BTreeMap<Bytes, u64>>;

#[derive(Debug, Clone)]
pub(super) struct Node {
    pub(super) kind: FoundKind,
    pub(super) data: Bytes,
    /// What a crash leaves of it; the rest is lost or torn.
    durable: Bytes,
    pub(super) mode: u16,
    pub(super) mtime: FileTime,
    ctime: FileTime,
}

/// The disk, without the calls.
#[derive(Debug, Clone)]
pub(super) struct Disk {
    pub(super) names: Names,
    pub(super) nodes: BTreeMap<u64, Node>,
    /// What the names were at the last sync, and after each change since.
    versions: Vec<Names>,
    /// Files that we made and the user has not written to.
    pub(super) ours: BTreeSet<u64>,
    next_ino: u64,
    /// What is told as the inode number of each node, and those that are free again.
    numbers: BTreeMap<u64, u64>,
    free: BTreeSet<u64>,
    /// A new file gets the number of one that is gone.
    pub(super) reuses_numbers: bool,
    /// Nanoseconds since 1970.
    pub(super) clock: u64,
    pub(super) is_mounted: bool,
    /// It keeps no modes, links or inode numbers, and times in steps of 2 s.
    pub(super) is_fat: bool,
}

/// Acts between two calls.
pub(super) type Others = Box<dyn FnMut(&mut Disk)>;

/// The disk behind calls that fail.
pub(super) struct FakeFs {
    pub(super) disk: RefCell<Disk>,
    pub(super) faults: Arc<Faults>,
    pub(super) others: RefCell<Others>,
}

#[derive(Debug)]
pub(super) struct File {
    ino: u64,
}

impl Disk {
    pub(super) fn new() -> Self {
        let mut disk = Self {
            names: BTreeMap::new(),
            nodes: BTreeMap::new(),
            versions: Vec::new(),
            ours: BTreeSet::new(),
            next_ino: ROOT,
            numbers: BTreeMap::new(),
            free: BTreeSet::new(),
            reuses_numbers: false,
            clock: 1_700_000_000_000_000_000,
            is_mounted: true,
            is_fat: false,
        };
        disk.add(FoundKind::Dir, Bytes::new(), 0o755);
        disk.versions = vec![disk.names.clone()];
        disk
    }

    pub(super) fn now(&self) -> FileTime {
        FileTime::from_unix_nanos(self.clock)
    }

    /// A new node without a name.
    fn add(&mut self, kind: FoundKind, data: Bytes, mode: u16) -> u64 {
        let (ino, now) = (self.next_ino, self.now());
        self.next_ino += 1;
        let reused = self.free.pop_last().filter(|_| self.reuses_numbers);
        self.numbers.insert(ino, reused.unwrap_or(ino));
        let node = Node {
            kind,
            data,
            durable: Bytes::new(),
            mode,
            mtime: now,
            ctime: now,
        };
        self.nodes.insert(ino, node);
        if kind == FoundKind::Dir {
            self.names.insert(ino, BTreeMap::new());
        }
        ino
    }

    pub(super) fn lookup(&self, dir: u64, name: &[u8]) -> io::Result<u64> {
        let names = self.names.get(&dir).ok_or(io::ErrorKind::NotFound)?;
        Ok(*names.get(name).ok_or(io::ErrorKind::NotFound)?)
    }

    pub(super) fn resolve(&self, path: &[u8]) -> io::Result<u64> {
        let parts = path.split(|byte| *byte == b'/').filter(|p| !p.is_empty());
        parts.into_iter().try_fold(ROOT, |dir, name| {
            let ino = self.lookup(dir, name)?;
            match self.names.contains_key(&ino) {
                true => Ok(ino),
                false => Err(io::ErrorKind::NotADirectory.into()),
            }
        })
    }

    pub(super) fn found(&self, ino: u64) -> io::Result<Found> {
        let node = self.nodes.get(&ino).ok_or(io::ErrorKind::NotFound)?;
        if self.is_fat {
            return Ok(fat_found(node));
        }
        Ok(Found {
            kind: node.kind,
            dev: DEV,
            stamp: Stamp {
                ino: self.numbers.get(&ino).copied().unwrap_or(ino),
                size: node.data.len() as u64,
                mtime: node.mtime,
                ctime: node.ctime,
            },
            mode: node.mode,
        })
    }

    fn changed(&mut self) {
        self.versions.push(self.names.clone());
    }

    pub(super) fn touch(&mut self, ino: u64) {
        let now = self.now();
        if let Some(node) = self.nodes.get_mut(&ino) {
            node.ctime = now;
        }
    }

    pub(super) fn make(
        &mut self,
        dir: u64,
        name: &[u8],
        kind: FoundKind,
        data: Bytes,
    ) -> io::Result<u64> {
        if self.lookup(dir, name).is_ok() {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let mode = if kind == FoundKind::Dir { 0o700 } else { 0o600 };
        if !self.names.contains_key(&dir) {
            return Err(io::ErrorKind::NotFound.into());
        }
        let ino = self.add(kind, data, mode);
        self.link(ino, dir, name)?;
        Ok(ino)
    }

    fn link(&mut self, ino: u64, dir: u64, name: &[u8]) -> io::Result<()> {
        let names = self.names.get_mut(&dir).ok_or(io::ErrorKind::NotFound)?;
        if names.contains_key(name) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        names.insert(Bytes::copy_from_slice(name), ino);
        self.changed();
        Ok(())
    }

    /// Writes in place. The mtime stays if `keeps_time`.
    pub(super) fn write(&mut self, ino: u64, data: Bytes, keeps_time: bool) {
        let now = self.now();
        if let Some(node) = self.nodes.get_mut(&ino) {
            node.data = data;
            node.ctime = now;
            if !keeps_time {
                node.mtime = now;
            }
        }
    }

    pub(super) fn sync_node(&mut self, ino: u64) {
        if let Some(node) = self.nodes.get_mut(&ino) {
            node.durable = node.data.clone();
        }
    }

    /// As a journal does it, everything before is durable too.
    pub(super) fn sync_names(&mut self) {
        self.versions = vec![self.names.clone()];
    }

    pub(super) fn rename(
        &mut self,
        from: (u64, &[u8]),
        to: (u64, &[u8]),
        how: Option<RenameHow>,
    ) -> io::Result<()> {
        let ino = self.lookup(from.0, from.1)?;
        let target = self.lookup(to.0, to.1).ok();
        match (how, target) {
            (Some(RenameHow::NoReplace), Some(_)) => {
                return Err(io::ErrorKind::AlreadyExists.into());
            }
            (Some(RenameHow::Exchange), None) => return Err(io::ErrorKind::NotFound.into()),
            (None, Some(target)) if self.names.contains_key(&target) => {
                return Err(io::ErrorKind::AlreadyExists.into());
            }
            _ => {}
        }
        if target == Some(ino) {
            return Ok(());
        }
        let is_loop = self.is_within(to.0, ino)
            || (how == Some(RenameHow::Exchange)
                && target.is_some_and(|target| self.is_within(from.0, target)));
        if is_loop {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let to_dir = self.names.get_mut(&to.0).ok_or(io::ErrorKind::NotFound)?;
        to_dir.insert(Bytes::copy_from_slice(to.1), ino);
        let from_dir = self.names.get_mut(&from.0).ok_or(io::ErrorKind::NotFound)?;
        match target.filter(|_| how == Some(RenameHow::Exchange)) {
            Some(target) => {
                from_dir.insert(Bytes::copy_from_slice(from.1), target);
                self.touch(target);
            }
            None => drop(from_dir.remove(from.1)),
        }
        if how.is_none() {
            self.free
                .extend(target.and_then(|gone| self.numbers.get(&gone)));
        }
        self.touch(ino);
        self.changed();
        Ok(())
    }

    fn is_within(&self, dir: u64, above: u64) -> bool {
        let inside = self
            .names
            .get(&above)
            .into_iter()
            .flat_map(BTreeMap::values);
        dir == above || inside.into_iter().any(|ino| self.is_within(dir, *ino))
    }

    pub(super) fn remove(&mut self, dir: u64, name: &[u8]) -> io::Result<()> {
        let ino = self.lookup(dir, name)?;
        if self.names.get(&ino).is_some_and(|names| !names.is_empty()) {
            return Err(io::ErrorKind::DirectoryNotEmpty.into());
        }
        if let Some(names) = self.names.get_mut(&dir) {
            names.remove(name);
        }
        self.names.remove(&ino);
        self.free.extend(self.numbers.get(&ino));
        self.changed();
        Ok(())
    }

    /// Power fails. Names go back to one of the states since the last sync, data that was not synced is lost or torn.
    /// Returns the contents that files have come back to, and those of files that have come back to another name.
    pub(super) fn crash(&mut self, random: &mut Random) -> BTreeSet<Bytes> {
        let mut returned = BTreeSet::new();
        let kept = random.below(self.versions.len() as u64) as usize;
        if let Some(names) = self.versions.get(kept).cloned() {
            let moved = reach(&self.names, ROOT).into_iter().filter(|ino| {
                let at = |names: &Names| names_of(names, *ino);
                at(&names) != at(&self.names)
            });
            let contents = moved.filter_map(|ino| Some(self.nodes.get(&ino)?.data.clone()));
            returned.extend(contents);
            self.names = names;
        }
        self.versions = vec![self.names.clone()];
        let used = self.names.values().flat_map(BTreeMap::values);
        let used: BTreeSet<u64> = used
            .filter_map(|ino| self.numbers.get(ino))
            .copied()
            .collect();
        self.free = self
            .numbers
            .values()
            .copied()
            .filter(|n| *n != ROOT && !used.contains(n))
            .collect();
        self.clock += 1_000_000_000;
        let now = self.now();
        for node in self
            .nodes
            .values_mut()
            .filter(|node| node.data != node.durable)
        {
            node.data = match random.below(3) {
                0 => node.data.clone(),
                1 => node.data.slice(..node.data.len() / 2),
                _ => node.durable.clone(),
            };
            node.durable = node.data.clone();
            // A reader cannot tell data that came back from data that stayed unless the times say so.
            node.ctime = now;
            returned.insert(node.data.clone());
        }
        returned
    }

    /// The contents that a crash could not take away.
    pub(super) fn safe(&self) -> BTreeSet<Bytes> {
        let contents = |names: &Names| {
            // A copy of ours that has not come to its name yet is dropped after a crash.
            let mut names = names.clone();
            for below in names.values_mut() {
                below
                    .retain(|name, ino| !name.starts_with(TEMP_PREFIX) || !self.ours.contains(ino));
            }
            let reached = reach(&names, ROOT);
            let synced = |ino: &u64| {
                let node = self.nodes.get(ino)?;
                (node.data == node.durable).then(|| node.data.clone())
            };
            reached.iter().filter_map(synced).collect::<BTreeSet<_>>()
        };
        let mut versions = self.versions.iter().map(contents);
        let first = versions.next().unwrap_or_default();
        versions.fold(first, |all, one| &all & &one)
    }

    pub(super) fn has_only_ignored(&self, path: &[u8]) -> bool {
        let names = self.resolve(path).ok().and_then(|dir| self.names.get(&dir));
        names.is_some_and(|names| names.keys().all(|name| name.starts_with(IGNORED)))
    }

    /// The files that have a name the user sees.
    pub(super) fn visible(&self) -> BTreeSet<u64> {
        let mut names = self.names.clone();
        for below in names.values_mut() {
            below.retain(|name, _| *name != OWN_DIR && !name.starts_with(TEMP_PREFIX));
        }
        reach(&names, ROOT)
    }

    /// Every content that is in a file.
    pub(super) fn contents(&self) -> BTreeSet<Bytes> {
        let nodes = reach(&self.names, ROOT).into_iter();
        nodes
            .filter_map(|ino| Some(self.nodes.get(&ino)?.data.clone()))
            .collect()
    }
}

/// What FAT says of a file. What has the size and the time of something else cannot be told from it there, so all
/// contents have sizes of their own.
fn fat_found(node: &Node) -> Found {
    let mtime = FileTime {
        secs: node.mtime.secs & !1,
        nanos: 0,
    };
    Found {
        kind: node.kind,
        dev: DEV,
        stamp: Stamp {
            ino: UNKNOWN_INO,
            size: node.data.iter().fold(7, |size: u64, byte| {
                size.wrapping_mul(31).wrapping_add(u64::from(*byte))
            }),
            mtime,
            ctime: mtime,
        },
        mode: if node.kind == FoundKind::Dir {
            0o755
        } else {
            0o644
        },
    }
}

/// The directories and names a file is at.
fn names_of(names: &Names, ino: u64) -> Vec<(u64, Bytes)> {
    let all = names.iter().flat_map(|(dir, names)| {
        let here = names.iter().filter(move |(_, there)| **there == ino);
        here.map(|(name, _)| (*dir, name.clone()))
    });
    all.collect()
}

/// All files below a directory.
fn reach(names: &Names, dir: u64) -> BTreeSet<u64> {
    let mut out = BTreeSet::new();
    let mut stack = vec![dir];
    while let Some(ino) = stack.pop() {
        match names.get(&ino) {
            Some(names) => stack.extend(names.values()),
            None => drop(out.insert(ino)),
        }
    }
    out
}

impl FakeFs {
    /// Changes what is in a file.
    fn change(&self, file: &File, change: impl FnOnce(&mut Vec<u8>)) -> io::Result<()> {
        self.call(|disk| {
            let node = disk.nodes.get(&file.ino);
            let mut data = node.map(|node| node.data.to_vec()).unwrap_or_default();
            change(&mut data);
            disk.write(file.ino, data.into(), false);
            Ok(())
        })
    }

    fn call<R>(&self, work: impl FnOnce(&mut Disk) -> io::Result<R>) -> io::Result<R> {
        let disk = &mut *self.disk.borrow_mut();
        disk.clock += 1_000_000;
        self.others.borrow_mut()(disk);
        self.faults.pass()?;
        if !disk.is_mounted {
            return Err(io::ErrorKind::NotFound.into());
        }
        let result = work(disk);
        // Some calls are done, and fail.
        self.faults.after()?;
        result
    }

    /// Whether a call that needs room finds it.
    fn room(&self) -> io::Result<()> {
        match self.faults.is_full() {
            true => Err(io::ErrorKind::StorageFull.into()),
            false => Ok(()),
        }
    }

    /// What a file holds, as a scanner reads it.
    pub(super) fn read(&self, path: &[u8]) -> io::Result<(Found, Bytes)> {
        let before = self.call(|disk| disk.find(path))?;
        let data = self.call(|disk| {
            let node = disk.nodes.get(&disk.find_ino(path)?);
            Ok(node.ok_or(io::ErrorKind::NotFound)?.data.clone())
        })?;
        let after = self.call(|disk| disk.find(path))?;
        if before == after {
            Ok((after, data))
        } else {
            Err(io::ErrorKind::Interrupted.into())
        }
    }

    pub(super) fn list(&self, path: &[u8]) -> io::Result<(u64, Vec<(Bytes, Found)>)> {
        self.call(|disk| {
            let dir = disk.resolve(path)?;
            let names = disk.names.get(&dir).ok_or(io::ErrorKind::NotFound)?;
            let found = names
                .iter()
                .map(|(name, ino)| Ok((name.clone(), disk.found(*ino)?)));
            let ino = disk.found(dir)?.stamp.ino;
            Ok((ino, found.collect::<io::Result<_>>()?))
        })
    }
}

impl Disk {
    fn find(&self, path: &[u8]) -> io::Result<Found> {
        self.found(self.find_ino(path)?)
    }

    fn find_ino(&self, path: &[u8]) -> io::Result<u64> {
        let cut = path.iter().rposition(|byte| *byte == b'/');
        let (dir, name) = match cut {
            Some(at) => (&path[..at], &path[at + 1..]),
            None => (&b""[..], path),
        };
        self.lookup(self.resolve(dir)?, name)
    }
}

impl HomeFs for FakeFs {
    type Dir = u64;
    type File = File;

    fn caps(&self) -> Caps {
        match self.disk.borrow().is_fat {
            true => Caps {
                modes: false,
                xattrs: false,
                symlinks: false,
                stable_ino: false,
                ..Caps::ALL
            },
            false => Caps::ALL,
        }
    }

    /// Who writes finds out.
    fn room(&self) -> io::Result<Room> {
        Ok(Room {
            free: u64::MAX,
            is_read_only: false,
        })
    }

    fn open_dir(&self, path: &[u8]) -> io::Result<u64> {
        self.call(|disk| disk.resolve(path))
    }

    fn stat_dir(&self, dir: &u64) -> io::Result<Found> {
        self.call(|disk| disk.found(*dir))
    }

    fn stat(&self, dir: &u64, name: &[u8]) -> io::Result<Found> {
        self.call(|disk| disk.found(disk.lookup(*dir, name)?))
    }

    fn create(&self, dir: &u64, name: &[u8]) -> io::Result<File> {
        self.room()?;
        let ino = self.call(|disk| {
            let ino = disk.make(*dir, name, FoundKind::File, Bytes::new())?;
            disk.ours.insert(ino);
            Ok(ino)
        })?;
        Ok(File { ino })
    }

    fn nameless_from(&self) -> Option<u64> {
        self.faults.can_clone.then_some(0)
    }

    fn create_nameless(&self, _dir: &u64) -> io::Result<File> {
        self.room()?;
        self.call(|disk| {
            let ino = disk.add(FoundKind::File, Bytes::new(), 0o600);
            disk.ours.insert(ino);
            Ok(File { ino })
        })
    }

    fn give_name(&self, file: &File, dir: &u64, name: &[u8]) -> io::Result<()> {
        self.call(|disk| disk.link(file.ino, *dir, name))
    }

    fn append(&self, file: &mut File, bytes: &[u8]) -> io::Result<()> {
        self.room()?;
        self.call(|disk| {
            let old = disk.nodes.get(&file.ino).map(|node| node.data.clone());
            let new = [&old.unwrap_or_default()[..], bytes].concat();
            disk.write(file.ino, new.into(), false);
            Ok(())
        })
    }

    fn skip(&self, file: &mut File, bytes: u64) -> io::Result<()> {
        let zeros = vec![0; usize::try_from(bytes).map_err(io::Error::other)?];
        self.append(file, &zeros)
    }

    fn clones_from(&self) -> Option<u64> {
        self.faults.can_clone.then_some(0)
    }

    fn share_blocks(&self, dir: &u64, from: &[u8], file: &mut File) -> io::Result<bool> {
        self.room()?;
        self.call(|disk| {
            let from = disk.nodes.get(&disk.lookup(*dir, from)?);
            let from = from.filter(|from| from.kind == FoundKind::File);
            let Some(data) = from.map(|from| from.data.clone()) else {
                return Ok(false);
            };
            disk.write(file.ino, data, false);
            Ok(true)
        })
    }

    fn read_at(&self, file: &File, at: u64, buf: &mut [u8]) -> io::Result<usize> {
        self.call(|disk| {
            let node = disk.nodes.get(&file.ino);
            let there = node.and_then(|node| node.data.get(at as usize..));
            let len = there.map_or(0, |there| there.len().min(buf.len()));
            buf[..len].copy_from_slice(&there.unwrap_or_default()[..len]);
            Ok(len)
        })
    }

    fn write_at(&self, file: &mut File, at: u64, bytes: &[u8]) -> io::Result<()> {
        self.room()?;
        self.change(file, |data| {
            let end = at as usize + bytes.len();
            data.resize(data.len().max(end), 0);
            data[at as usize..end].copy_from_slice(bytes);
        })
    }

    fn data_from(&self, _file: &File, at: u64) -> io::Result<u64> {
        Ok(at)
    }

    fn resize(&self, file: &mut File, size: u64) -> io::Result<()> {
        self.room()?;
        self.change(file, |data| data.resize(size as usize, 0))
    }

    fn finish(&self, file: &mut File, attributes: &Attributes) -> io::Result<Kept> {
        self.call(|disk| {
            disk.dress(file.ino, attributes);
            disk.kept(file.ino)
        })
    }

    fn sync_files(&self, files: &[File]) -> io::Result<()> {
        files.iter().try_for_each(|file| {
            self.call(|disk| {
                disk.sync_node(file.ino);
                Ok(())
            })
        })
    }

    fn symlink(&self, dir: &u64, name: &[u8], target: &Bytes) -> io::Result<()> {
        self.call(|disk| {
            let ino = disk.make(*dir, name, FoundKind::Symlink, target.clone())?;
            disk.sync_node(ino);
            Ok(())
        })
    }

    fn mkdir(&self, dir: &u64, name: &[u8]) -> io::Result<()> {
        self.room()?;
        self.call(|disk| {
            disk.make(*dir, name, FoundKind::Dir, Bytes::new())
                .map(drop)
        })
    }

    fn set_attributes(&self, dir: &u64, name: &[u8], attributes: &Attributes) -> io::Result<Kept> {
        self.call(|disk| {
            let ino = disk.lookup(*dir, name)?;
            disk.dress(ino, attributes);
            disk.kept(ino)
        })
    }

    fn rename(&self, from: (&u64, &[u8]), to: (&u64, &[u8]), how: RenameHow) -> io::Result<()> {
        self.call(|disk| disk.rename((*from.0, from.1), (*to.0, to.1), Some(how)))
    }

    fn can_exchange(&self) -> bool {
        self.faults.can_exchange
    }

    fn unlink(&self, dir: &u64, name: &[u8]) -> io::Result<()> {
        self.call(|disk| match disk.is_dir(*dir, name)? {
            true => Err(io::ErrorKind::IsADirectory.into()),
            false => disk.remove(*dir, name),
        })
    }

    fn rmdir(&self, dir: &u64, name: &[u8]) -> io::Result<()> {
        self.call(|disk| match disk.is_dir(*dir, name)? {
            true => disk.remove(*dir, name),
            false => Err(io::ErrorKind::NotADirectory.into()),
        })
    }

    fn sync_dir(&self, _dir: &u64) -> io::Result<()> {
        self.call(|disk| {
            disk.sync_names();
            Ok(())
        })
    }
}

impl Disk {
    fn is_dir(&self, dir: u64, name: &[u8]) -> io::Result<bool> {
        Ok(self.names.contains_key(&self.lookup(dir, name)?))
    }

    fn kept(&self, ino: u64) -> io::Result<Kept> {
        let found = self.found(ino)?;
        Ok(Kept { found, xattrs: 0 })
    }

    fn dress(&mut self, ino: u64, attributes: &Attributes) {
        self.touch(ino);
        if let Some(node) = self.nodes.get_mut(&ino) {
            node.mode = attributes.mode.unwrap_or(node.mode);
            node.mtime = attributes.mtime.unwrap_or(node.mtime);
        }
    }
}
