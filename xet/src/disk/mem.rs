//! A disk in memory that keeps only what was synced: [`MemDisk::crash`] throws the rest away, or
//! keeps it, or tears it, write by write, from a seed.
//!
//! Every file is two images, the durable one and the one processes see, and the list of changes
//! between them; names likewise. A crash applies a random part of each list to the durable image.
//! Changes are kept or lost independently of their order, which is harsher than journalling file
//! systems are: what survives here survives there.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use super::{Disk, DiskFile, OpenMode};

/// Writes tear at multiples of this: the unit a drive writes atomically.
const SECTOR_BYTES: usize = 512;

/// A disk in memory with crashes, a size limit and an operation limit. Clones share the disk.
#[derive(Clone, Debug, Default)]
pub struct MemDisk {
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    inodes: Vec<Inode>,
    names: BTreeMap<PathBuf, usize>,
    dirs: BTreeSet<PathBuf>,
    durable_names: BTreeMap<PathBuf, usize>,
    name_changes: Vec<NameChange>,
    /// Counts crashes: handles of an earlier life are dead.
    life: u64,
    /// Changing operations since creation.
    operations: u64,
    /// Every operation fails once `operations` has reached this.
    operations_max: Option<u64>,
    /// Bytes all files together may have.
    capacity_bytes: Option<u64>,
    syncs: u64,
    bytes_read: u64,
    failing_syncs: u64,
    /// Bytes that a drive cannot read any more, by inode.
    bad_ranges: Vec<(usize, Range<usize>)>,
    /// Time since the disk was made.
    now: Duration,
}

#[derive(Default)]
struct Inode {
    live: Vec<u8>,
    durable: Vec<u8>,
    changes: Vec<Change>,
    /// When it was last written.
    written: Duration,
}

enum Change {
    Write { offset: usize, bytes: Vec<u8> },
    SetLen(usize),
}

/// One directory operation: both names of a rename change together or not at all.
struct NameChange {
    dir: PathBuf,
    set: Option<(PathBuf, usize)>,
    unset: Option<PathBuf>,
}

#[derive(Debug)]
struct MemFile {
    state: Arc<Mutex<State>>,
    inode: usize,
    life: u64,
    writable: bool,
}

impl MemDisk {
    /// An empty, endless disk.
    pub fn new() -> Self {
        Self::default()
    }

    /// Power fails: unsynced changes are kept, lost or torn as `seed` decides. Open handles are
    /// dead afterwards; the operation limit is lifted.
    pub fn crash(&self, seed: u64) {
        let mut random = SplitMix(seed);
        let state = &mut *self.state.lock();
        state.life += 1;
        state.operations_max = None;
        state.failing_syncs = 0;
        for inode in &mut state.inodes {
            for change in std::mem::take(&mut inode.changes) {
                change.apply_in_part(&mut inode.durable, &mut random);
            }
            inode.live.clone_from(&inode.durable);
        }
        for change in std::mem::take(&mut state.name_changes) {
            if random.below(2) == 0 {
                change.apply(&mut state.durable_names);
            }
        }
        state.names.clone_from(&state.durable_names);
    }

    /// The process dies, the machine lives: every write that was made stays, handles are dead.
    pub fn kill(&self) {
        let mut state = self.state.lock();
        state.life += 1;
        state.operations_max = None;
    }

    /// Changing operations so far (open for creation, write, length, sync, rename, remove, mkdir).
    pub fn operations(&self) -> u64 {
        self.state.lock().operations
    }

    /// File and directory syncs so far.
    pub fn syncs(&self) -> u64 {
        self.state.lock().syncs
    }

    /// Bytes read from files so far.
    pub fn bytes_read(&self) -> u64 {
        self.state.lock().bytes_read
    }

    /// From the operation after the next `more` ones on, everything fails until the next crash.
    pub fn fail_after(&self, more: u64) {
        let mut state = self.state.lock();
        state.operations_max = Some(state.operations + more);
    }

    /// The next `count` file syncs fail with an I/O error.
    pub fn fail_syncs(&self, count: u64) {
        self.state.lock().failing_syncs = count;
    }

    /// Lets all files together grow by `more` bytes from now on, or without limit for `None`.
    /// A write that does not fit is made in part and fails with `StorageFull`.
    pub fn limit_space(&self, more: Option<u64>) {
        let mut state = self.state.lock();
        state.capacity_bytes = more.map(|more| state.used_bytes() + more);
    }

    /// Damages a file as a bad drive does: the bytes change at once and for good, nobody is told.
    /// Bytes past its end are ignored.
    pub fn damage(&self, path: &Path, offset: usize, bytes: &[u8]) {
        let state = &mut *self.state.lock();
        let Some(inode) = state
            .names
            .get(path)
            .and_then(|&inode| state.inodes.get_mut(inode))
        else {
            return;
        };
        for image in [&mut inode.live, &mut inode.durable] {
            for (target, byte) in image.iter_mut().skip(offset).zip(bytes) {
                *target = *byte;
            }
        }
    }

    /// Reads of these bytes of a file fail with `EIO` until [`heal`](Self::heal).
    pub fn fail_reads(&self, path: &Path, range: Range<usize>) {
        let state = &mut *self.state.lock();
        if let Some(inode) = state.names.get(path) {
            state.bad_ranges.push((*inode, range));
        }
    }

    /// All bytes can be read again.
    pub fn heal(&self) {
        self.state.lock().bad_ranges.clear();
    }

    /// Lets time pass: files get older.
    pub fn pass(&self, time: Duration) {
        self.state.lock().now += time;
    }

    /// The bytes of a file as processes see them.
    pub fn contents(&self, path: &Path) -> Option<Vec<u8>> {
        let state = self.state.lock();
        let inode = state.names.get(path)?;
        Some(state.inodes.get(*inode)?.live.clone())
    }
}

impl fmt::Debug for State {
    /// Without the files' content.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (names, operations) = (self.names.keys(), self.operations);
        write!(
            f,
            "{operations} operations, {} crashes, {:?}",
            self.life, names
        )
    }
}

impl State {
    /// Counts one changing operation, or fails it if the limit is reached.
    fn operate(&mut self) -> io::Result<()> {
        self.alive()?;
        self.operations += 1;
        Ok(())
    }

    fn alive(&self) -> io::Result<()> {
        match self.operations_max {
            Some(max) if self.operations >= max => Err(io::Error::other("the machine is down")),
            _ => Ok(()),
        }
    }

    fn used_bytes(&self) -> u64 {
        let mut used = 0;
        for inode in self.names.values().collect::<BTreeSet<_>>() {
            used += self.inodes[*inode].live.len() as u64;
        }
        used
    }

    fn change_names(&mut self, change: NameChange) {
        change.apply(&mut self.names);
        self.name_changes.push(change);
    }

    fn open(&mut self, path: &Path, mode: OpenMode) -> io::Result<usize> {
        self.alive()?;
        let found = self.names.get(path).copied();
        match (found, mode) {
            (Some(inode), OpenMode::Create) => {
                self.operate()?;
                let now = self.now;
                self.inodes[inode].change(Change::SetLen(0), now);
                Ok(inode)
            }
            (Some(inode), _) => Ok(inode),
            (None, OpenMode::Create) => {
                let dir = parent(path);
                if !self.dirs.contains(&dir) {
                    return Err(io::ErrorKind::NotFound.into());
                }
                self.operate()?;
                self.inodes.push(Inode {
                    written: self.now,
                    ..Inode::default()
                });
                let inode = self.inodes.len() - 1;
                let set = Some((path.to_path_buf(), inode));
                self.change_names(NameChange {
                    dir,
                    set,
                    unset: None,
                });
                Ok(inode)
            }
            (None, _) => Err(io::ErrorKind::NotFound.into()),
        }
    }
}

impl Inode {
    fn change(&mut self, change: Change, now: Duration) {
        self.written = now;
        change.apply(&mut self.live);
        self.changes.push(change);
    }
}

impl Change {
    fn apply(&self, image: &mut Vec<u8>) {
        match self {
            Self::Write { offset, bytes } => put_bytes(image, *offset, bytes),
            Self::SetLen(len) => image.resize(*len, 0),
        }
    }

    /// Applies all, nothing, or (of a write) some sectors.
    fn apply_in_part(self, image: &mut Vec<u8>, random: &mut SplitMix) {
        match (random.below(3), &self) {
            (0, _) => {}
            (1, Self::Write { offset, bytes }) => {
                let mut at = *offset;
                let mut rest = bytes.as_slice();
                while !rest.is_empty() {
                    let sector = (SECTOR_BYTES - at % SECTOR_BYTES).min(rest.len());
                    if random.below(2) == 0 {
                        put_bytes(image, at, &rest[..sector]);
                    }
                    at += sector;
                    rest = &rest[sector..];
                }
            }
            _ => self.apply(image),
        }
    }
}

impl NameChange {
    fn apply(&self, names: &mut BTreeMap<PathBuf, usize>) {
        if let Some(path) = &self.unset {
            names.remove(path);
        }
        if let Some((path, inode)) = &self.set {
            names.insert(path.clone(), *inode);
        }
    }
}

impl Disk for MemDisk {
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Box<dyn DiskFile>> {
        let mut state = self.state.lock();
        let inode = state.open(path, mode)?;
        let writable = mode != OpenMode::Read;
        Ok(Box::new(MemFile {
            state: Arc::clone(&self.state),
            inode,
            life: state.life,
            writable,
        }))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.state.lock();
        let inode = *state.names.get(from).ok_or(io::ErrorKind::NotFound)?;
        state.operate()?;
        let (set, unset) = (Some((to.to_path_buf(), inode)), Some(from.to_path_buf()));
        state.change_names(NameChange {
            dir: parent(to),
            set,
            unset,
        });
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut state = self.state.lock();
        if !state.names.contains_key(path) {
            return Err(io::ErrorKind::NotFound.into());
        }
        state.operate()?;
        let unset = Some(path.to_path_buf());
        state.change_names(NameChange {
            dir: parent(path),
            set: None,
            unset,
        });
        Ok(())
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<PathBuf>> {
        let state = self.state.lock();
        state.alive()?;
        if !state.dirs.contains(dir) {
            return Err(io::ErrorKind::NotFound.into());
        }
        Ok(state
            .names
            .keys()
            .filter(|path| path.parent() == Some(dir))
            .cloned()
            .collect())
    }

    fn create_dir(&self, dir: &Path) -> io::Result<()> {
        let mut state = self.state.lock();
        for ancestor in dir
            .ancestors()
            .filter(|ancestor| ancestor.parent().is_some())
        {
            if !state.dirs.contains(ancestor) {
                state.operate()?;
                state.dirs.insert(ancestor.to_path_buf());
            }
        }
        Ok(())
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        let state = &mut *self.state.lock();
        state.operate()?;
        state.syncs += 1;
        for change in std::mem::take(&mut state.name_changes) {
            if change.dir == dir {
                change.apply(&mut state.durable_names);
            } else {
                state.name_changes.push(change);
            }
        }
        Ok(())
    }

    fn age(&self, path: &Path) -> io::Result<Duration> {
        let state = self.state.lock();
        let inode = *state.names.get(path).ok_or(io::ErrorKind::NotFound)?;
        Ok(state.now.saturating_sub(state.inodes[inode].written))
    }
}

impl MemFile {
    /// Runs `act` on the state and this file's inode number, if the handle is of this life.
    fn with<T>(&self, act: impl FnOnce(&mut State, usize) -> io::Result<T>) -> io::Result<T> {
        let mut state = self.state.lock();
        if state.life != self.life {
            return Err(io::Error::other("a handle from before the crash"));
        }
        act(&mut state, self.inode)
    }

    fn with_writable<T>(
        &self,
        act: impl FnOnce(&mut State, usize) -> io::Result<T>,
    ) -> io::Result<T> {
        if !self.writable {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        self.with(|state, inode| {
            state.operate()?;
            act(state, inode)
        })
    }
}

impl DiskFile for MemFile {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.with(|state, inode| {
            state.alive()?;
            let start = usize::try_from(offset).map_err(io::Error::other)?;
            let range = start..start.saturating_add(buf.len());
            let is_hit = |(bad, part): &(usize, Range<usize>)| {
                *bad == inode && part.start < range.end && range.start < part.end
            };
            if state.bad_ranges.iter().any(is_hit) {
                return Err(rustix::io::Errno::IO.into());
            }
            let bytes = state.inodes[inode].live.get(range);
            buf.copy_from_slice(bytes.ok_or(io::ErrorKind::UnexpectedEof)?);
            state.bytes_read += buf.len() as u64;
            Ok(())
        })
    }

    fn write_at(&self, offset: u64, parts: &[&[u8]]) -> io::Result<()> {
        self.with_writable(|state, inode| {
            let offset = usize::try_from(offset).map_err(io::Error::other)?;
            let mut bytes = parts.concat();
            let wanted = bytes.len();
            let free = state
                .capacity_bytes
                .map(|all| all.saturating_sub(state.used_bytes()));
            let now = state.now;
            let file = &mut state.inodes[inode];
            if let Some(free) = free {
                let fits = file
                    .live
                    .len()
                    .saturating_add(free as usize)
                    .saturating_sub(offset);
                bytes.truncate(fits);
            }
            let full = bytes.len() < wanted;
            file.change(Change::Write { offset, bytes }, now);
            if full {
                Err(io::ErrorKind::StorageFull.into())
            } else {
                Ok(())
            }
        })
    }

    fn len(&self) -> io::Result<u64> {
        self.with(|state, inode| {
            state.alive()?;
            Ok(state.inodes[inode].live.len() as u64)
        })
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.with_writable(|state, inode| {
            let len = usize::try_from(len).map_err(io::Error::other)?;
            let now = state.now;
            state.inodes[inode].change(Change::SetLen(len), now);
            Ok(())
        })
    }

    fn sync(&self) -> io::Result<()> {
        self.with(|state, inode| {
            state.operate()?;
            state.syncs += 1;
            if state.failing_syncs > 0 {
                state.failing_syncs -= 1;
                return Err(io::Error::other("the drive failed to write"));
            }
            let file = &mut state.inodes[inode];
            for change in std::mem::take(&mut file.changes) {
                change.apply(&mut file.durable);
            }
            Ok(())
        })
    }
}

fn parent(path: &Path) -> PathBuf {
    path.parent().unwrap_or_else(|| Path::new("")).to_path_buf()
}

fn put_bytes(image: &mut Vec<u8>, offset: usize, bytes: &[u8]) {
    let end = offset + bytes.len();
    if image.len() < end {
        image.resize(end, 0);
    }
    image[offset..end].copy_from_slice(bytes);
}

/// The splitmix64 generator: a seed gives the same crash everywhere.
struct SplitMix(u64);

impl SplitMix {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (z ^ (z >> 31)) % bound
    }
}
