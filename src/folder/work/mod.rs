//! One folder's working tree: a live file system over the shared state.
//!
//! The state (`folder::state`) *is* the namespace: every operation is applied to it at once, as one operation with one
//! dot. Beside it are inode numbers (`inodes.rs`), contents being written (`body.rs`, `extents.rs`) and the journal
//! (`journal.rs`) that makes all of it survive. A commit (`commit.rs`) turns written bytes into chunks and a new
//! version, a publication (`publish.rs`) the state into nodes and a snapshot, a merge (`merge.rs`) brings a peer's
//! snapshot in.
//!
//! Locks, in the order they are taken: `turn` (one commit, publication, merge or checkpoint at a time), `gate` (shared
//! by every change, exclusive while a checkpoint is cut), a body's pen, `core`, a body's page, the journal's. No file
//! data is read, written or hashed and nothing is synced under `core`.

mod attr;
mod body;
mod buffers;
mod checkpoint;
mod commit;
mod core;
mod evict;
mod extents;
mod inodes;
mod journal;
mod merge;
mod namespace;
mod nodes;
mod open;
mod patch;
mod publish;
mod read;
mod record;
mod recover;
mod restore;
mod runs;
mod stats;
mod table;
mod txn;
mod write;

#[cfg(test)]
mod tests;

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::Bytes;
use ccbt_mount::{Notifier, VolumeError};
use ccbt_xet::disk::Disk;
use ccbt_xet::hash::{ChunkHash, NodeId};
use ccbt_xet::store::Store;
use parking_lot::{Mutex, RwLock};

use crate::folder::state::{Inc, Redot};

use self::core::{Core, Op, Refused};
use self::journal::Journal;

pub use self::commit::CommitError;
pub use self::evict::{Below, Held};
pub use self::merge::{MergeError, Merged};
pub use self::nodes::StoreError;
pub(crate) use self::nodes::StoreNodes;
pub use self::open::OpenFile;
pub(crate) use self::open::Trusted;
pub use self::publish::{FlushError, HEAD_LEN, Publication, PublishError, Unsigned};
pub use self::read::Presence;
pub use self::recover::OpenFolderError;
pub use self::stats::{FolderStats, Found, Lacking, Missing, Part};
pub use self::txn::Txn;

/// The wall clock.
pub trait Clock: Send + Sync {
    /// Nanoseconds since the Unix epoch.
    fn now_ns(&self) -> u64;
}

/// How much somebody waits for what is fetched.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Priority {
    /// An application is blocked on it.
    Blocking,
    /// An application will probably ask for it soon.
    ReadAhead,
    /// To keep the folder whole.
    Replica,
    /// Nobody waits.
    Probe,
}

/// A chunk that is not here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WantedChunk {
    pub hash: ChunkHash,
    /// Bytes.
    pub len: u32,
    /// The segment of the file's recipe it stands in, and its place there: availability is told per segment.
    pub segment: Option<(NodeId, u16)>,
}

/// Why something could not be fetched.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FetchError {
    #[error("no peer has it")]
    NoPeer,
    #[error("it did not arrive in time")]
    TimedOut,
    #[error("there is no room to keep it")]
    NoSpace,
    #[error("the folder is closed")]
    Closed,
}

/// Called once when what was wanted is in the store, or will not come.
pub type Fetched = Box<dyn FnOnce(Result<(), FetchError>) + Send>;

/// The way to peers. Returns at once; the deadline is the fetcher's.
pub trait Fetch: Send + Sync {
    fn chunks(&self, want: Vec<WantedChunk>, priority: Priority, done: Fetched);
    /// Nodes by kind and name.
    fn nodes(&self, want: Vec<(u8, NodeId)>, priority: Priority, done: Fetched);
    /// Chunks that a reader will probably want soon; given up when `interest` is gone.
    fn ahead(&self, want: Vec<WantedChunk>, interest: Weak<()>, done: Fetched);
    /// What came could not be kept for want of space: gives something up that can be had again. Whether there is room
    /// now. Not to be called from a thread that answers the kernel: it takes a while.
    fn make_room(&self) -> bool {
        false
    }
}

/// What changed a folder, for the timer that decides when to publish.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dirty {
    Closed,
    Renamed,
    Fsynced,
    Writing,
    Namespace,
}

/// Hears of local changes. Called from any thread; must be quick and call nothing back.
pub trait Observer: Send + Sync {
    fn dirty(&self, why: Dirty);
}

/// The name a conflict is labelled with, by incarnation.
pub type DeviceName = Arc<dyn Fn(Inc) -> Option<String> + Send + Sync>;

/// Knows the keys of the rows that say what is in plain files which may have a chunk.
pub type Lenders = Arc<dyn Fn(&ChunkHash) -> Vec<Bytes> + Send + Sync>;

/// What a folder is opened with.
#[derive(Clone)]
pub struct FolderConfig {
    /// Where journal, checkpoint and staging files lie.
    pub dir: PathBuf,
    pub disk: Arc<dyn Disk>,
    pub store: Arc<Store>,
    /// Signs for what is done here; a fresh one starts its own counters.
    pub inc: Inc,
    /// Renames the dots in a row of the caller's table when a fresh incarnation takes over what another did not
    /// publish. `None` if there are none in it.
    pub rename_row: fn(&Redot, &[u8]) -> Option<Bytes>,
    /// The content, with its size in bytes, that a row of the caller's table says a plain file holds.
    pub held_content: fn(&Bytes, &Bytes) -> Option<(Bytes, u64)>,
    pub clock: Arc<dyn Clock>,
    pub read_only: bool,
    pub fetch: Arc<dyn Fetch>,
    pub observer: Arc<dyn Observer>,
    pub device_name: DeviceName,
    /// Longest a read waits for a peer.
    pub read_timeout: Duration,
}

/// One folder. Cheap to clone; all clones are the same folder.
#[derive(Clone)]
pub struct Folder {
    inner: Arc<Inner>,
}

/// A folder alive. Its file system calls are what a mount needs, one for one.
pub(crate) struct Inner {
    config: FolderConfig,
    journal: Journal,
    core: Mutex<Core>,
    gate: RwLock<()>,
    turn: Mutex<publish::Turn>,
    /// Number of the next body and the next staging file.
    next_number: AtomicU64,
    /// Of every mount, by the number it got.
    notifiers: RwLock<Vec<(u64, Arc<dyn Notifier>)>>,
    reads: read::Reads,
    packed: patch::Packed,
    lenders: RwLock<Option<Lenders>>,
}

impl Folder {
    /// The file system.
    pub(crate) fn live(&self) -> &Arc<Inner> {
        &self.inner
    }

    /// Kernel caches are told of merges through `notifier` from now on. Returns what [`Self::detach`] wants.
    pub fn attach(&self, notifier: Arc<dyn Notifier>) -> u64 {
        let number = self.inner.next_number.fetch_add(1, Ordering::Relaxed);
        self.inner.notifiers.write().push((number, notifier));
        number
    }

    /// Undoes [`Self::attach`].
    pub fn detach(&self, number: u64) {
        let mut notifiers = self.inner.notifiers.write();
        notifiers.retain(|(other, _)| *other != number);
    }

    /// Tells the caches of every mount but one: that one's kernel did the change itself.
    pub fn tell_others(&self, but: u64, tell: impl Fn(&dyn Notifier)) {
        let notifiers = self.inner.notifiers.read();
        for (_, other) in notifiers.iter().filter(|(number, _)| *number != but) {
            tell(other.as_ref());
        }
    }

    /// Commits what is written and leaves a checkpoint, so that the next open is quick. What cannot be committed stays
    /// in the journal.
    pub fn shutdown(&self) -> Result<(), PublishError> {
        let _turn = self.inner.turn.lock();
        let committed = self.inner.commit_possible(true);
        self.inner.checkpoint()?;
        Ok(committed?)
    }
}

impl Inner {
    fn now_ns(&self) -> u64 {
        self.config.clock.now_ns()
    }

    /// Applies one operation and logs it. What is in the log when this returns survives the process. An operation that
    /// was applied is done: if the log cannot be written, it waits in the journal's queue, before anything else.
    fn operate<R>(
        &self,
        why: Dirty,
        apply: impl FnOnce(&mut Op<'_>) -> Result<R, Refused>,
    ) -> Result<R, VolumeError> {
        if self.config.read_only {
            return Err(VolumeError::ReadOnly);
        }
        let _gate = self.gate.read();
        self.journal.ready().map_err(|error| disk_error(&error))?;
        let (result, ticket) = {
            let mut core = self.core.lock();
            let mut op = core.op(self.now_ns());
            let result = apply(&mut op).map_err(|Refused(error)| error)?;
            let (record, _) = op.finish();
            (result, record.map(|record| self.journal.queue(record)))
        };
        if let Some(ticket) = ticket {
            if let Err(error) = self.journal.write_out(ticket) {
                tracing::error!(%error, "an operation waits to be written to the journal");
            }
            self.config.observer.dirty(why);
        }
        Ok(result)
    }
}

/// What a caller is told of an error of our own disk.
fn disk_error(error: &std::io::Error) -> VolumeError {
    if journal::is_full(error) {
        return VolumeError::NoSpace;
    }
    tracing::error!(%error, "the folder's own files cannot be read or written");
    VolumeError::Io
}
