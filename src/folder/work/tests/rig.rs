//! A folder on a fake disk, driven by paths through the `Volume` it is mounted as.

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::Bytes;
use ccbt_mount::{
    Attr, Caller, Handle, Ino, Kind, OpenMode, RenameMode, Reply, SetAttr, Volume, VolumeError,
};
use ccbt_xet::disk::{Disk, MemDisk};
use ccbt_xet::hash::NodeId;
use ccbt_xet::store::{Store, StoreOptions};
use parking_lot::Mutex;

use crate::folder::snapshot::Snapshot;
use crate::folder::state::Inc;
use crate::folder::work::{
    Clock, Dirty, Fetch, FetchError, Fetched, Folder, FolderConfig, HEAD_LEN, Observer, Part,
    Priority, Publication, Unsigned, WantedChunk,
};
use crate::volume::FolderVolume;

pub(super) const ROOT_USER: Caller = Caller { uid: 0, gid: 0 };

pub(super) const READ: OpenMode = OpenMode {
    read: true,
    write: false,
    append: false,
    truncate: false,
};
pub(super) const WRITE: OpenMode = OpenMode {
    read: true,
    write: true,
    append: false,
    truncate: false,
};

/// More than any folder here lacks.
pub(super) const ALL: Part = Part {
    from: 0,
    count: 10_000,
};

/// A clock that goes on by a millisecond whenever it is read.
#[derive(Default)]
pub(super) struct Ticks(AtomicU64);

impl Clock for Ticks {
    fn now_ns(&self) -> u64 {
        1_700_000_000_000_000_000 + self.0.fetch_add(1_000_000, Ordering::Relaxed)
    }
}

struct Deaf;

impl Observer for Deaf {
    fn dirty(&self, _: Dirty) {}
}

/// Fetches from other stores, into the own one.
#[derive(Default)]
pub(super) struct Peers {
    own: Mutex<Option<Arc<Store>>>,
    pub(super) others: Mutex<Vec<Arc<Store>>>,
    pub(super) asked: Mutex<Vec<(WantedChunk, Priority)>>,
    /// One for each request made ahead of a reader.
    pub(super) interests: Mutex<Vec<Weak<()>>>,
}

impl Fetch for Peers {
    fn chunks(&self, want: Vec<WantedChunk>, priority: Priority, done: Fetched) {
        let own = self.own.lock().clone().unwrap();
        let others = self.others.lock().clone();
        let mut found = Ok(());
        for chunk in want {
            self.asked.lock().push((chunk, priority));
            match others
                .iter()
                .find_map(|store| store.chunk(&chunk.hash).unwrap())
            {
                Some(bytes) => drop(own.put_chunk(&chunk.hash, &bytes).unwrap()),
                None => found = Err(FetchError::NoPeer),
            }
        }
        done(found);
    }

    fn nodes(&self, want: Vec<(u8, NodeId)>, _: Priority, done: Fetched) {
        done(self.copy_nodes(&want));
    }

    fn ahead(&self, want: Vec<WantedChunk>, interest: Weak<()>, done: Fetched) {
        self.interests.lock().push(interest);
        self.chunks(want, Priority::ReadAhead, done);
    }
}

impl Peers {
    pub(super) fn copy_nodes(&self, want: &[(u8, NodeId)]) -> Result<(), FetchError> {
        let own = self.own.lock().clone().unwrap();
        let others = self.others.lock().clone();
        let mut found = false;
        for (kind, id) in want {
            if let Some(bytes) = others.iter().find_map(|store| store.node(id).unwrap()) {
                own.put_node(*kind, id, &bytes).unwrap();
                found = true;
            }
        }
        if found {
            Ok(())
        } else {
            Err(FetchError::NoPeer)
        }
    }
}

/// A folder, its mount and everything under it.
pub(super) struct Rig {
    pub(super) disk: MemDisk,
    pub(super) store: Arc<Store>,
    pub(super) folder: Arc<Folder>,
    pub(super) volume: FolderVolume,
    pub(super) peers: Arc<Peers>,
    /// What devices are called is not known.
    pub(super) nameless: Arc<AtomicBool>,
    config: FolderConfig,
}

impl Rig {
    pub(super) fn new(inc: u8) -> Self {
        Self::on(MemDisk::new(), inc, Arc::default()).unwrap()
    }

    /// Opens what is on `disk`. Fails if the disk does.
    pub(super) fn on(disk: MemDisk, inc: u8, clock: Arc<Ticks>) -> Result<Self, String> {
        let arc: Arc<dyn Disk> = Arc::new(disk.clone());
        let store = Store::open(Path::new("/store"), arc.clone(), StoreOptions::default());
        let store = Arc::new(store.map_err(|error| error.to_string())?);
        let peers = Arc::new(Peers::default());
        *peers.own.lock() = Some(store.clone());
        let nameless = Arc::new(AtomicBool::new(false));
        let is_nameless = nameless.clone();
        let config = FolderConfig {
            rename_row: |_, _| None,
            held_content: |key, row| key.starts_with(b"held").then(|| (row.clone(), 0)),
            dir: "/folder".into(),
            disk: arc,
            store: store.clone(),
            inc: Inc([inc; 8]),
            clock,
            read_only: false,
            fetch: peers.clone(),
            observer: Arc::new(Deaf),
            device_name: Arc::new(move |inc| {
                let is_known = !is_nameless.load(Ordering::Relaxed);
                is_known.then(|| format!("dev{}", inc.0[0]))
            }),
            read_timeout: Duration::from_secs(30),
        };
        let folder = Folder::open(config.clone()).map_err(|error| error.to_string())?;
        let folder = Arc::new(folder);
        Ok(Self {
            volume: FolderVolume::new(folder.clone()),
            folder,
            store,
            disk,
            peers,
            nameless,
            config,
        })
    }

    pub(super) fn config_inc(&self) -> u8 {
        self.config.inc.0[0]
    }

    /// The process is killed and started again.
    pub(super) fn killed(self) -> Self {
        self.disk.kill();
        self.again(1)
    }

    /// The power fails.
    pub(super) fn crashed(self, seed: u64) -> Self {
        self.disk.crash(seed);
        self.again(seed)
    }

    fn again(self, seed: u64) -> Self {
        let clock = Arc::new(Ticks(AtomicU64::new(
            self.config.clock.now_ns() - 1_700_000_000_000_000_000,
        )));
        let inc = self.config.inc.0[0];
        Self::on(self.disk, inc, clock).unwrap_or_else(|error| panic!("seed {seed}: {error}"))
    }

    /// A clean stop and start.
    pub(super) fn remounted(self) -> Self {
        self.folder.shutdown().unwrap();
        self.again(0)
    }

    pub(super) fn find(&self, path: &str) -> Result<Attr, VolumeError> {
        let mut attr = self.volume.getattr(Ino::ROOT)?;
        for name in path.split('/').filter(|name| !name.is_empty()) {
            attr = self.volume.lookup(attr.ino, name.as_bytes())?;
        }
        Ok(attr)
    }

    /// The directory and the last name of a path.
    pub(super) fn split<'p>(&self, path: &'p str) -> Result<(Ino, &'p [u8]), VolumeError> {
        let (dir, name) = path.rsplit_once('/').unwrap_or(("", path));
        Ok((self.find(dir)?.ino, name.as_bytes()))
    }

    pub(super) fn mkdir(&self, path: &str) -> Result<Attr, VolumeError> {
        let (dir, name) = self.split(path)?;
        self.volume.mkdir(dir, name, 0o755, ROOT_USER)
    }

    pub(super) fn create(&self, path: &str) -> Result<(Ino, Handle), VolumeError> {
        let (dir, name) = self.split(path)?;
        let (attr, opened) = self.volume.create(dir, name, 0o644, WRITE, ROOT_USER)?;
        Ok((attr.ino, opened.handle))
    }

    pub(super) fn open(&self, path: &str, mode: OpenMode) -> Result<(Ino, Handle), VolumeError> {
        let ino = self.find(path)?.ino;
        Ok((ino, self.volume.open(ino, mode)?.handle))
    }

    /// Creates or overwrites a file.
    pub(super) fn put(&self, path: &str, bytes: &[u8]) -> Result<(), VolumeError> {
        let truncating = OpenMode {
            truncate: true,
            ..WRITE
        };
        let (ino, handle) = match self.open(path, truncating) {
            Err(VolumeError::NotFound) => self.create(path)?,
            other => other?,
        };
        let written = self.volume.write(ino, handle, 0, bytes);
        self.volume.release(ino, handle);
        written
    }

    /// Writes into a file, and syncs it.
    pub(super) fn patch(&self, path: &str, offset: u64, bytes: &[u8]) -> Result<(), VolumeError> {
        let (ino, handle) = self.open(path, WRITE)?;
        let written = self.volume.write(ino, handle, offset, bytes);
        self.volume.release(ino, handle);
        written
    }

    pub(super) fn fsync(&self, path: &str) -> Result<(), VolumeError> {
        let (ino, handle) = self.open(path, READ)?;
        let synced = self.sync_handle(ino, handle);
        self.volume.release(ino, handle);
        synced
    }

    pub(super) fn sync_handle(&self, ino: Ino, handle: Handle) -> Result<(), VolumeError> {
        let answer = Arc::new(Mutex::new(None));
        let slot = answer.clone();
        self.volume.fsync(
            ino,
            handle,
            Reply::new(move |result| *slot.lock() = Some(result)),
        );
        answer.lock().take().unwrap()
    }

    pub(super) fn read_handle(&self, ino: Ino, handle: Handle) -> Result<Bytes, VolumeError> {
        let mut out = Vec::new();
        loop {
            let answer = Arc::new(Mutex::new(None));
            let slot = answer.clone();
            let reply = Reply::new(move |result| *slot.lock() = Some(result));
            self.volume
                .read(ino, handle, out.len() as u64, 131_072, reply);
            let bytes: Bytes = answer
                .lock()
                .take()
                .expect("the test fetcher answers at once")?;
            if bytes.is_empty() {
                return Ok(out.into());
            }
            out.extend_from_slice(&bytes);
        }
    }

    pub(super) fn read(&self, path: &str) -> Result<Bytes, VolumeError> {
        let (ino, handle) = self.open(path, READ)?;
        let bytes = self.read_handle(ino, handle);
        self.volume.release(ino, handle);
        bytes
    }

    pub(super) fn truncate(&self, path: &str, size: u64) -> Result<(), VolumeError> {
        let change = SetAttr {
            size: Some(size),
            ..SetAttr::default()
        };
        self.volume
            .setattr(self.find(path)?.ino, change, ROOT_USER)
            .map(drop)
    }

    pub(super) fn unlink(&self, path: &str) -> Result<(), VolumeError> {
        let (dir, name) = self.split(path)?;
        self.volume.unlink(dir, name)
    }

    pub(super) fn rmdir(&self, path: &str) -> Result<(), VolumeError> {
        let (dir, name) = self.split(path)?;
        self.volume.rmdir(dir, name)
    }

    pub(super) fn rename(&self, from: &str, to: &str) -> Result<(), VolumeError> {
        let (from, to) = (self.split(from)?, self.split(to)?);
        self.volume.rename(from, to, RenameMode::Replace)
    }

    pub(super) fn link(&self, old: &str, new: &str) -> Result<Attr, VolumeError> {
        let ino = self.find(old)?.ino;
        let (dir, name) = self.split(new)?;
        self.volume.link(ino, dir, name)
    }

    /// Names in a directory, without the dots.
    pub(super) fn names(&self, path: &str) -> Vec<(String, Attr)> {
        let ino = self.find(path).unwrap().ino;
        let handle = self.volume.opendir(ino).unwrap();
        let rows = self.volume.readdir(ino, handle, 0, usize::MAX).unwrap();
        self.volume.releasedir(ino, handle);
        rows.into_iter()
            .map(|row| (String::from_utf8_lossy(&row.name).into_owned(), row.attr))
            .filter(|(name, _)| name != "." && name != "..")
            .collect()
    }

    /// Every path with what it is: the bytes of a file, the target of a link, nothing for a directory.
    pub(super) fn tree(&self) -> std::collections::BTreeMap<String, Option<Bytes>> {
        let mut out = std::collections::BTreeMap::new();
        let mut dirs = vec![String::new()];
        while let Some(dir) = dirs.pop() {
            for (name, attr) in self.names(&dir) {
                let path = format!("{dir}/{name}");
                let content = match attr.kind {
                    Kind::Dir => {
                        dirs.push(path.clone());
                        None
                    }
                    Kind::Symlink => Some(self.volume.readlink(attr.ino).unwrap()),
                    _ => Some(
                        self.read(&path)
                            .unwrap_or_else(|error| panic!("{path}: {error}")),
                    ),
                };
                out.insert(path, content);
            }
        }
        out
    }

    pub(super) fn publish(&self) -> Option<Publication> {
        self.folder.publish(&sign).unwrap()
    }

    /// Merges what another published, fetching what is missing.
    pub(super) fn merge(&self, publication: &Publication) -> bool {
        let snapshot = Snapshot::decode(&publication.snapshot).unwrap();
        for _ in 0..64 {
            match self.folder.merge(&snapshot) {
                Ok(merged) => return merged.changed,
                Err(crate::folder::work::MergeError::Missing(nodes)) => {
                    self.peers.copy_nodes(&nodes).unwrap();
                }
                Err(error) => panic!("{error}"),
            }
        }
        panic!("the merge never has all its nodes");
    }
}

/// A head that holds what was to be signed, as far as tests look at it.
pub(super) fn sign(unsigned: Unsigned) -> std::io::Result<[u8; HEAD_LEN]> {
    let mut head = [0; HEAD_LEN];
    head[..32].copy_from_slice(unsigned.snapshot.as_bytes());
    head[32..40].copy_from_slice(&unsigned.ctr.to_le_bytes());
    head[40..48].copy_from_slice(&unsigned.seq.to_le_bytes());
    head[48..80].copy_from_slice(&unsigned.prev);
    Ok(head)
}

/// Bytes that do not compress, by seed.
pub(super) fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut random = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    std::iter::repeat_with(|| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        (random >> 32) as u8
    })
    .take(len)
    .collect()
}
