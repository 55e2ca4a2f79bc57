//! The store: every chunk and node this device holds, by its name.
//!
//! | state | owner | lost when |
//! |---|---|---|
//! | records | pack files ([`crate::pack`]) | never once [`Store::sync`] returned |
//! | where they are | the index, in memory | at exit; built from footers and journals at start |
//! | which plain files hold a chunk | the borrow table, in memory | at exit; the owner borrows again |
//! | decoded chunks | the cache | any time |
//!
//! A put appends to the page cache and is found at once; [`Store::sync`] makes all puts that
//! returned before it durable, with one `fdatasync` for all who ask at the same time. Nothing is
//! served that was not hashed: what comes in is named by its caller, what is read from disk is
//! checked the first time this process reads it, borrowed bytes every time. A record that fails
//! is quarantined: counted, named by [`Store::take_quarantined`], and missing from then on.
//!
//! Readers take no lock during IO. Writers of one kind (chunks, nodes) append one after the other.
//! A directory belongs to one `Store` at a time; keeping others out is for its owner.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use bytes::Bytes;
use parking_lot::{Mutex, RwLock};
use thiserror::Error;

use crate::chunk::MAX_CHUNK;
use crate::codec::{Encoded, Encoder, Payloads, Probe, Scheme};
use crate::disk::Disk;
use crate::hash::{ChunkHash, NodeId, Suite};
use crate::index::{ChunkIndex, CompactIndex, Place};
use crate::pack::files::OpenFiles;
use crate::pack::{PackKind, Scratch};
use crate::xorb::{MAX_CHUNKS, MAX_XORB_LEN, RecordHeader};

mod borrow;
mod cache;
mod checkpoint;
mod commit;
mod format;
mod gc;
mod run;
mod shelf;
mod verify;

use borrow::{BorrowTable, Borrowed};
pub use borrow::{BorrowedFiles, SourceId};
use cache::Cache;
use commit::Committer;
use gc::Gate;
pub use gc::{Collect, CollectError, Hold, Marks, Reclaimed};
use shelf::{Item, Limits, Ranged, Shelf};
pub use verify::{Verified, VerifyPosition};

/// Longest node in bytes: what a record can hold.
pub const NODE_BYTES_MAX: usize = MAX_CHUNK;

/// Sealed packs that may wait for a commit before a put makes one itself.
const SEALED_WAITING_MAX: usize = 4;

/// Part of the packs that must have come or gone, so that checkpoints cost a few bytes a chunk however many there are.
const CHECKPOINT_PART: usize = 8;

/// Encoders, and as many buffers of readers, kept for reuse: about 300 KiB each.
const SPARES_MAX: usize = 4;

/// How a store behaves.
#[derive(Clone, Copy, Debug)]
pub struct StoreOptions {
    /// Budget of the cache of decoded chunks, in bytes. Of no meaning beside another store.
    pub cache_bytes: usize,
    /// Names chunks. One store holds chunks of one suite, and is not opened for another.
    pub suite: Suite,
    /// A pack is sealed before it gets longer than this, footer included. At most 64 MiB.
    pub pack_bytes: u64,
    /// A pack is sealed with this many records. At most 8192.
    pub pack_slots: usize,
    /// Packs of a kind that must have come or gone for a checkpoint; a quarter of it at the end of a process, when
    /// nobody waits.
    pub checkpoint_packs: usize,
}

impl Default for StoreOptions {
    fn default() -> Self {
        Self {
            cache_bytes: 32 * 1024 * 1024,
            suite: Suite::Blake3,
            pack_bytes: MAX_XORB_LEN as u64,
            pack_slots: MAX_CHUNKS,
            // Reading the footers of fewer takes about 50 ms.
            checkpoint_packs: 64,
        }
    }
}

/// What a put found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Put {
    /// It was stored.
    New,
    /// It was there already.
    Held,
}

impl Put {
    const fn of(new: bool) -> Self {
        if new { Self::New } else { Self::Held }
    }
}

/// Why a store cannot be opened.
#[derive(Debug, Error)]
pub enum OpenStoreError {
    /// The system refused.
    #[error("cannot open the store at {path}: {source}")]
    Io {
        /// The file or directory that failed.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// It holds chunks of another suite. Nothing was changed.
    #[error("the store at {path} names chunks by {found}, not {wanted}")]
    Suite {
        /// The store.
        path: PathBuf,
        /// What it holds.
        found: &'static str,
        /// What it was opened for.
        wanted: &'static str,
    },
    /// Another version of this program made it. Nothing was changed.
    #[error(
        "the store at {path} has format {found}, this version reads {}",
        format::FORMAT
    )]
    Version {
        /// The store.
        path: PathBuf,
        /// Its format.
        found: u64,
    },
    /// The file that says what the store is says nothing.
    #[error("{path} is damaged: remove it, and what the store holds tells what it is")]
    Format {
        /// The file.
        path: PathBuf,
    },
}

/// Why something that is held cannot be read.
#[derive(Debug, Error)]
#[error("cannot read {path}: {source}")]
pub struct ReadError {
    /// The pack that failed.
    pub path: PathBuf,
    /// What the system said.
    pub source: io::Error,
}

/// Why something cannot be stored.
#[derive(Debug, Error)]
pub enum WriteError {
    /// The disk or the quota is full. What was synced stays, and puts work again once there is
    /// space.
    #[error("no space left for {path}")]
    NoSpace {
        /// The file that could not grow.
        path: PathBuf,
    },
    /// The system refused.
    #[error("cannot write {path}: {source}")]
    Io {
        /// The file that failed.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// An earlier sync failed: the system may have dropped what it had not yet written. Nothing
    /// is stored or called durable until the store is opened again.
    #[error("an earlier sync failed, the store has to be opened again")]
    SyncFailed,
    /// Empty, or longer than a record can be.
    #[error("{len} bytes cannot be one record")]
    Length {
        /// Length in bytes.
        len: usize,
    },
}

impl WriteError {
    pub(crate) fn from_io(path: &Path, source: io::Error) -> Self {
        let path = path.to_path_buf();
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::NoSpace { path },
            _ => Self::Io { path, source },
        }
    }
}

/// Sizes and counts of a store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StoreStats {
    /// Chunks in packs.
    pub chunks: u64,
    /// Nodes in packs.
    pub nodes: u64,
    /// Bytes of all records, in both kinds of packs, dead ones included.
    pub bytes: u64,
    /// Pack files of both kinds.
    pub packs: u64,
    /// Borrowed ranges.
    pub borrowed: u64,
    /// Their bytes.
    pub borrowed_bytes: u64,
    /// Damaged records met since start.
    pub quarantined: u64,
    /// Bytes of memory the chunk index, the borrow table and the cache take.
    pub memory_bytes: u64,
}

/// Chunks and nodes by name. See the module's description.
pub struct Store {
    chunks: Shelf,
    nodes: Shelf,
    cache: Arc<Cache>,
    /// Another store counts what is in the cache.
    is_cache_shared: bool,
    borrowed: BorrowTable,
    /// By the space of the sources they read.
    readers: RwLock<BTreeMap<u16, Arc<dyn BorrowedFiles>>>,
    suite: Suite,
    probe: Probe,
    encoders: Spares<Encoder>,
    scratches: Spares<Scratch>,
    committer: Mutex<Committer>,
    sync_failed: AtomicBool,
    gate: Gate,
    /// See [`Store::losses`]; what is damaged is counted by the shelves.
    losses: AtomicU64,
    checkpoint_packs: usize,
}

impl Store {
    /// Opens the store in `dir`, creating it if there is none, and recovers it after a crash.
    ///
    /// Reads the footer of every sealed pack and scans only what was written after the last sync.
    pub fn open(
        dir: &Path,
        disk: Arc<dyn Disk>,
        options: StoreOptions,
    ) -> Result<Self, OpenStoreError> {
        Self::open_with_index(dir, disk, options, Box::new(CompactIndex::new()))
    }

    /// As [`open`](Self::open), with another chunk index, which must be empty.
    pub fn open_with_index(
        dir: &Path,
        disk: Arc<dyn Disk>,
        options: StoreOptions,
        index: Box<dyn ChunkIndex>,
    ) -> Result<Self, OpenStoreError> {
        let cache = Arc::new(Cache::new(options.cache_bytes));
        Self::open_in(dir, disk, options, index, cache)
    }

    /// As [`open`](Self::open), with the cache of `other`: both together keep within its budget.
    pub fn open_beside(
        other: &Self,
        dir: &Path,
        disk: Arc<dyn Disk>,
        options: StoreOptions,
    ) -> Result<Self, OpenStoreError> {
        let (index, cache) = (Box::new(CompactIndex::new()), Arc::clone(&other.cache));
        let opened = Self::open_in(dir, disk, options, index, cache)?;
        Ok(Self {
            is_cache_shared: true,
            ..opened
        })
    }

    fn open_in(
        dir: &Path,
        disk: Arc<dyn Disk>,
        options: StoreOptions,
        index: Box<dyn ChunkIndex>,
        cache: Arc<Cache>,
    ) -> Result<Self, OpenStoreError> {
        let limits = Limits {
            bytes: options.pack_bytes.min(MAX_XORB_LEN as u64),
            slots: options.pack_slots.clamp(1, MAX_CHUNKS),
        };
        let (chunks_dir, nodes_dir) = (dir.join("chunks"), dir.join("nodes"));
        for dir in [&chunks_dir, &nodes_dir] {
            let created = disk.create_dir(dir);
            created.map_err(|source| OpenStoreError::Io {
                path: dir.clone(),
                source,
            })?;
        }
        let is_settled = format::check(&*disk, dir, options.suite)?;
        let files = Arc::new(OpenFiles::new(Arc::clone(&disk)));
        let kind = PackKind::Chunks(options.suite);
        let chunks = Shelf::open(kind, chunks_dir, limits, Arc::clone(&files), index)?;
        if !is_settled {
            format::settle(&*disk, dir, options.suite, &chunks)?;
        }
        let index = Box::new(CompactIndex::new());
        let nodes = Shelf::open(PackKind::Nodes, nodes_dir, limits, files, index)?;
        Ok(Self {
            chunks,
            nodes,
            cache,
            is_cache_shared: false,
            borrowed: BorrowTable::new(),
            readers: RwLock::default(),
            suite: options.suite,
            probe: Probe::new(),
            encoders: Spares::default(),
            scratches: Spares::default(),
            committer: Mutex::default(),
            sync_failed: AtomicBool::new(false),
            gate: Gate::default(),
            losses: AtomicU64::new(0),
            checkpoint_packs: options.checkpoint_packs.max(1),
        })
    }

    /// What names the chunks of this store.
    pub fn suite(&self) -> Suite {
        self.suite
    }

    /// Whether a chunk is here, packed or borrowed. What is damaged or was edited since is only
    /// noticed when it is read.
    pub fn contains(&self, hash: &ChunkHash) -> bool {
        self.is_packed(hash) || self.borrowed.contains(hash)
    }

    /// Whether a chunk is here in a pack.
    pub fn is_packed(&self, hash: &ChunkHash) -> bool {
        self.chunks.holds(hash.as_bytes())
    }

    /// The bytes of a chunk, or `None` if it is not here.
    pub fn chunk(&self, hash: &ChunkHash) -> Result<Option<Bytes>, ReadError> {
        if let Some(bytes) = self.cache.get(self.suite, hash) {
            return Ok(Some(bytes));
        }
        // A pack that cannot be read is no reason to fail while a plain file has the chunk.
        let packed = self.chunks.read(hash.as_bytes());
        let found = match packed {
            Ok(Some(bytes)) => {
                self.cache.insert(self.suite, hash, bytes.clone());
                return Ok(Some(bytes));
            }
            Ok(None) | Err(_) => self.read_borrowed(hash),
        };
        if found.is_some() { Ok(found) } else { packed }
    }

    /// Copies the bytes of a chunk from `offset` on into `buf`, and does no more for it than it takes: what was checked
    /// before is not read or decoded whole. Returns the length of the chunk, `None` if it is not here; `buf` is filled if
    /// the chunk is long enough.
    pub fn read_range(
        &self,
        hash: &ChunkHash,
        offset: u32,
        buf: &mut [u8],
    ) -> Result<Option<u32>, ReadError> {
        if let Some(bytes) = self.cache.get(self.suite, hash) {
            return Ok(Some(copy_range(&bytes, offset, buf)));
        }
        let keep = || self.cache.touch(hash);
        let packed = self.scratches.with(|scratch| {
            let range = (offset, &mut *buf);
            self.chunks
                .read_range(hash.as_bytes(), range, scratch, keep)
        });
        let found = match packed {
            Ok(Some(Ranged::Copied(len))) => return Ok(Some(len)),
            Ok(Some(Ranged::Whole { content, is_plain })) => {
                if !is_plain {
                    self.cache.insert(self.suite, hash, content.clone());
                }
                return Ok(Some(copy_range(&content, offset, buf)));
            }
            Ok(None) | Err(_) => self.read_borrowed(hash),
        };
        match found {
            Some(bytes) => Ok(Some(copy_range(&bytes, offset, buf))),
            None => packed.map(|_| None),
        }
    }

    /// Whether a chunk is here in a pack, for one who needs it to stay: as if it were put, a gc that runs meanwhile
    /// leaves it.
    pub fn note_held(&self, hash: &ChunkHash) -> bool {
        self.held_place(hash).is_some()
    }

    /// As [`note_held`](Self::note_held), and where it is.
    pub(crate) fn held_place(&self, hash: &ChunkHash) -> Option<Place> {
        let _open = self.gate.enter(&self.chunks, &[*hash.as_bytes()]);
        self.chunks.place_of(hash.as_bytes())
    }

    /// Notes that our chunker, at the start of the chunk at this place, cuts at its end.
    pub(crate) fn mark_cut(&self, place: Place) {
        self.chunks.mark_cut(place);
    }

    /// The chunk that was stored after the one at this place, and its length, if our chunker is known to cut at its end.
    pub(crate) fn follower(&self, place: Place) -> Option<(ChunkHash, u32)> {
        let (name, len) = self.chunks.follower(place)?;
        Some((ChunkHash::from_bytes(name), len))
    }

    /// Stores a chunk. The caller has hashed it: `hash` is not checked here.
    ///
    /// A borrowed chunk is stored too: the plain file may change at any time.
    pub fn put_chunk(&self, hash: &ChunkHash, bytes: &[u8]) -> Result<Put, WriteError> {
        check_len(bytes, MAX_CHUNK)?;
        let _open = self.gate.enter(&self.chunks, &[*hash.as_bytes()]);
        if self.chunks.holds(hash.as_bytes()) {
            return Ok(Put::Held);
        }
        self.encoders.with(|encoder| {
            let encoded = self.probe.encode(encoder, bytes);
            self.append(
                &self.chunks,
                item(*hash.as_bytes(), 0, encoded, bytes.len()),
            )
        })
    }

    /// Stores several chunks with as few writes as possible. The way to store small ones.
    ///
    /// After an error, some of them may be stored.
    pub fn put_chunks(&self, chunks: &[(ChunkHash, &[u8])]) -> Result<Vec<Put>, WriteError> {
        for (_, bytes) in chunks {
            check_len(bytes, MAX_CHUNK)?;
        }
        let names: Vec<_> = chunks.iter().map(|(hash, _)| *hash.as_bytes()).collect();
        let _open = self.gate.enter(&self.chunks, &names);
        let mut payloads = Payloads::default();
        let encoded: Vec<_> = chunks
            .iter()
            .map(|(hash, bytes)| {
                let held = self.chunks.holds(hash.as_bytes());
                (!held).then(|| self.encode(bytes, &mut payloads)).flatten()
            })
            .collect();
        let items = chunks.iter().zip(encoded).map(|((hash, bytes), encoded)| {
            let encoded = found_in(&payloads, encoded, bytes);
            item(*hash.as_bytes(), 0, encoded, bytes.len())
        });
        let new = self.append_missing(&items.collect::<Vec<_>>())?;
        Ok(new.into_iter().map(Put::of).collect())
    }

    /// Compresses a chunk to the end of `payloads`, if that pays.
    pub(crate) fn encode(&self, bytes: &[u8], payloads: &mut Payloads) -> EncodedAt {
        self.encoders
            .with(|encoder| self.probe.encode_to(encoder, bytes, payloads))
    }

    /// Stores chunks that were cut out of a stream and encoded, unless they are here by now.
    pub(crate) fn put_cut(&self, chunks: &[CutChunk<'_>]) -> Result<(), WriteError> {
        let names: Vec<_> = chunks.iter().map(|of| *of.hash.as_bytes()).collect();
        let _open = self.gate.enter(&self.chunks, &names);
        let items = chunks.iter().map(|chunk| Item {
            is_cut: chunk.is_cut,
            ..item(*chunk.hash.as_bytes(), 0, chunk.encoded, chunk.len)
        });
        self.append_missing(&items.collect::<Vec<_>>())?;
        Ok(())
    }

    /// The bytes of a node, or `None` if it is not here.
    pub fn node(&self, id: &NodeId) -> Result<Option<Bytes>, ReadError> {
        self.nodes.read(id.as_bytes())
    }

    /// Whether a node is here.
    pub fn contains_node(&self, id: &NodeId) -> bool {
        self.nodes.holds(id.as_bytes())
    }

    /// Stores a node of at most [`NODE_BYTES_MAX`] bytes. The caller has hashed it: `id` must be
    /// `node_id(kind, bytes)` and is not checked here.
    pub fn put_node(&self, kind: u8, id: &NodeId, bytes: &[u8]) -> Result<Put, WriteError> {
        check_len(bytes, NODE_BYTES_MAX)?;
        let _open = self.gate.enter(&self.nodes, &[*id.as_bytes()]);
        if self.nodes.holds(id.as_bytes()) {
            return Ok(Put::Held);
        }
        // Nodes are mostly hashes, which do not compress.
        let encoded = Encoded {
            scheme: Scheme::Stored,
            payload: bytes,
        };
        self.append(
            &self.nodes,
            item(*id.as_bytes(), kind, encoded, bytes.len()),
        )
    }

    /// Makes every put that returned before this call durable.
    pub fn sync(&self) -> Result<(), WriteError> {
        self.commit()
    }

    /// Saves where everything is, so that the next start need not read every footer. Does so if packs enough came or
    /// went since the last time that it is worth it; meant to be called now and then.
    pub fn checkpoint_if_due(&self) -> Result<(), WriteError> {
        self.checkpoint(self.checkpoint_packs, CHECKPOINT_PART)
    }

    /// As [`checkpoint_if_due`](Self::checkpoint_if_due), for the end of a process: sooner.
    pub fn checkpoint_at_end(&self) -> Result<(), WriteError> {
        self.checkpoint(self.checkpoint_packs.div_ceil(4), usize::MAX)
    }

    fn checkpoint(&self, packs_min: usize, part: usize) -> Result<(), WriteError> {
        let shelves = [&self.chunks, &self.nodes];
        let durable = {
            // What is sealed and does not wait for a sync is durable, as long as none is running.
            let _no_sync = self.committer.lock();
            self.check_usable()?;
            shelves.map(Shelf::durable_packs)
        };
        for (shelf, durable) in shelves.into_iter().zip(&durable) {
            let saved = shelf.checkpoint(durable, packs_min, part);
            saved.map_err(|error| WriteError::from_io(shelf.dir(), error))?;
        }
        Ok(())
    }

    /// Notes that plain files hold chunks: `(hash, offset, length)` of ranges of `source`, in
    /// bytes. Kept in memory only. Ranges beyond 16 TiB are not noted.
    pub fn borrow(&self, source: SourceId, ranges: &[(ChunkHash, u64, u32)]) {
        self.borrowed.add(source, ranges);
    }

    /// Forgets all ranges of a source.
    pub fn unborrow(&self, source: SourceId) {
        self.borrowed.remove_source(source);
        self.lost();
    }

    /// The plain files that are known to hold a chunk, a few of them if there are many.
    pub fn borrowed_from(&self, hash: &ChunkHash) -> Vec<SourceId> {
        let found = self.borrowed.find(hash).into_iter();
        found.map(|range| range.source).collect()
    }

    /// Whether any plain file holds chunks.
    pub fn has_borrowed(&self) -> bool {
        self.borrowed.has_sources()
    }

    /// Sets who reads the borrowed ranges of a space of sources. Without one, its chunks are missing.
    pub fn set_borrow_reader(&self, space: u16, reader: Arc<dyn BorrowedFiles>) {
        self.readers.write().insert(space, reader);
    }

    /// Forgets a space: its reader, and all ranges of its sources.
    pub fn remove_borrow_reader(&self, space: u16) {
        self.readers.write().remove(&space);
        self.borrowed.remove_space(space);
        self.lost();
    }

    /// Names of damaged chunks met since the last call, to be fetched from elsewhere.
    pub fn take_quarantined(&self) -> (Vec<ChunkHash>, Vec<NodeId>) {
        let chunks = self.chunks.take_quarantined();
        let nodes = self.nodes.take_quarantined();
        (
            chunks.into_iter().map(ChunkHash::from_bytes).collect(),
            nodes.into_iter().map(NodeId::from_bytes).collect(),
        )
    }

    /// Damaged records met since the last call that [`take_quarantined`](Self::take_quarantined) cannot name.
    pub fn take_nameless(&self) -> u64 {
        self.chunks.take_nameless() + self.nodes.take_nameless()
    }

    /// How often something that was here may have gone since start: a plain file changed or went, a record is
    /// damaged, space was given back. While it stays the same, what was here still is.
    pub fn losses(&self) -> u64 {
        let damaged = self.chunks.losses() + self.nodes.losses();
        self.losses.load(Ordering::Acquire) + damaged
    }

    fn lost(&self) {
        self.losses.fetch_add(1, Ordering::Release);
    }

    /// Sizes and counts.
    pub fn stats(&self) -> StoreStats {
        let mut stats = StoreStats {
            chunks: self.chunks.index.len() as u64,
            nodes: self.nodes.index.len() as u64,
            borrowed: self.borrowed.len() as u64,
            borrowed_bytes: self.borrowed.bytes(),
            quarantined: self.chunks.quarantined() + self.nodes.quarantined(),
            memory_bytes: self.borrowed.memory_bytes() as u64,
            ..StoreStats::default()
        };
        if !self.is_cache_shared {
            stats.memory_bytes += self.cache.bytes() as u64;
        }
        for shelf in [&self.chunks, &self.nodes] {
            stats.memory_bytes += shelf.index.memory_bytes() as u64;
            for pack in shelf.packs.read().values() {
                stats.packs += 1;
                stats.bytes += pack.records_len();
            }
        }
        stats
    }

    fn append(&self, shelf: &Shelf, item: Item<'_>) -> Result<Put, WriteError> {
        self.check_usable()?;
        let new = shelf.append_if_missing(item)?;
        self.commit_if_due(shelf)?;
        Ok(Put::of(new))
    }

    fn append_missing(&self, items: &[Item<'_>]) -> Result<Vec<bool>, WriteError> {
        self.check_usable()?;
        let new = self.chunks.append_missing(items)?;
        self.commit_if_due(&self.chunks)?;
        Ok(new)
    }

    fn check_usable(&self) -> Result<(), WriteError> {
        if self.sync_failed.load(Ordering::Acquire) {
            return Err(WriteError::SyncFailed);
        }
        Ok(())
    }

    /// Bounds what a crash can leave to scan.
    fn commit_if_due(&self, shelf: &Shelf) -> Result<(), WriteError> {
        if shelf.sealed_waiting() >= SEALED_WAITING_MAX {
            self.commit()?;
        }
        Ok(())
    }

    /// Tries the ranges of plain files until one still has the chunk.
    fn read_borrowed(&self, hash: &ChunkHash) -> Option<Bytes> {
        for range in self.borrowed.find(hash) {
            let Borrowed {
                source,
                offset,
                len,
            } = range;
            let reader = self.readers.read().get(&source.space()).cloned();
            let Some(reader) = reader else { continue };
            let mut bytes = vec![0; len as usize];
            let read = reader.read_at(source, offset, &mut bytes);
            if read.is_ok() && self.suite.chunk_hash(&bytes) == *hash {
                return Some(bytes.into());
            }
            tracing::debug!(?source, offset, len, error = ?read.err(), "borrowed range changed");
            self.borrowed.remove(hash, range);
            self.lost();
            reader.mismatch(source);
        }
        None
    }
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Store")
            .field("chunks", &self.chunks)
            .field("nodes", &self.nodes)
            .finish()
    }
}

/// Where among payloads a chunk was encoded to; `None` means that it is stored as it is.
pub(crate) type EncodedAt = Option<(Scheme, Range<usize>)>;

/// A chunk of a stream, ready to be stored.
pub(crate) struct CutChunk<'a> {
    pub(crate) hash: ChunkHash,
    /// Length of the chunk in bytes.
    pub(crate) len: usize,
    pub(crate) encoded: Encoded<'a>,
    /// Our chunker, at its start, cuts at its end: so of all chunks of a stream but the last.
    pub(crate) is_cut: bool,
}

/// What stands in `payloads` for a chunk.
pub(crate) fn found_in<'a>(payloads: &'a Payloads, at: EncodedAt, chunk: &'a [u8]) -> Encoded<'a> {
    match at {
        Some((scheme, range)) => Encoded {
            scheme,
            payload: payloads.get(range),
        },
        None => Encoded::stored(chunk),
    }
}

/// Things of many bytes, kept for the next who needs one.
#[derive(Debug, Default)]
struct Spares<T>(Mutex<Vec<T>>);

impl<T: Default> Spares<T> {
    fn with<R>(&self, run: impl FnOnce(&mut T) -> R) -> R {
        let kept = self.0.lock().pop();
        let mut spare = kept.unwrap_or_default();
        let result = run(&mut spare);
        let mut kept = self.0.lock();
        if kept.len() < SPARES_MAX {
            kept.push(spare);
        }
        result
    }
}

/// Copies bytes of a chunk, if it is long enough. Returns its length.
fn copy_range(chunk: &[u8], offset: u32, buf: &mut [u8]) -> u32 {
    let rest = chunk.get(offset as usize..);
    if let Some(part) = rest.and_then(|rest| rest.get(..buf.len())) {
        buf.copy_from_slice(part);
    }
    chunk.len() as u32
}

fn item(name: [u8; 32], tag: u8, encoded: Encoded<'_>, len: usize) -> Item<'_> {
    let Encoded { scheme, payload } = encoded;
    let header = RecordHeader {
        scheme,
        payload_len: payload.len() as u32,
        chunk_len: len as u32,
    };
    Item {
        name,
        is_cut: false,
        tag,
        header,
        payload,
    }
}

fn check_len(bytes: &[u8], max: usize) -> Result<(), WriteError> {
    let len = bytes.len();
    if (1..=max).contains(&len) {
        Ok(())
    } else {
        Err(WriteError::Length { len })
    }
}
