//! Publishing: committed state becomes tree nodes, a snapshot and a signed head, all of it durable before anybody is told.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::Bytes;
use ccbt_xet::hash::NodeId;
use ccbt_xet::store::WriteError;

use super::body::Body;
use super::commit::CommitError;
use super::core::{Core, time_of};
use super::journal;
use super::nodes::{StoreError, StoreNodes};
use super::record::{Published, Record};
use super::{Folder, Inner};
use crate::folder::changes::{Change, MAX_CHANGES_LEN};
use crate::folder::codec;
use crate::folder::snapshot::{Snapshot, snapshot_ref};
use crate::folder::state::{Entry, Hlc, Key, Time, VersionVector};
use crate::folder::tree::{NodeKind, NodesError, Tree, Trees};

/// A new file that is still empty and open for writing is waited for before a publication, at most so long: others would
/// see it empty, and might rename or keep what is about to be replaced. Short of the 0.2 s within which changes show.
const FILL_TIME: Duration = Duration::from_millis(100);
const FILL_STEP: Duration = Duration::from_millis(1);

/// Bytes of a signed head.
pub const HEAD_LEN: usize = 197;

/// What the holder of `turn` may do alone: commit, publish, merge, checkpoint.
#[derive(Debug, Default)]
pub(super) struct Turn;

/// The state as it was last written to nodes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Tip {
    pub(super) tree: Tree,
    /// The newest root that peers have too: our last publication, or the last snapshot merged.
    pub(super) shared: NodeId,
    /// Files it shows.
    pub(super) files: u64,
    /// Bytes they have.
    pub(super) bytes: u64,
}

/// What there is to sign. The rest of a head is the signer's: epoch, keys, flags.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unsigned {
    pub snapshot: NodeId,
    pub ctr: u64,
    pub seq: u64,
    /// BLAKE3 of the head before, zeros for the first of an incarnation.
    pub prev: [u8; 32],
    pub hlc: u64,
}

/// What peers are to be told.
#[derive(Debug, Clone)]
pub struct Publication {
    pub head: [u8; HEAD_LEN],
    pub snapshot_id: NodeId,
    pub snapshot: Vec<u8>,
    /// The root that `changes` lead on from.
    pub base_root: NodeId,
    /// What is different from `base_root`. None: more than a message may carry.
    pub changes: Option<Vec<Change>>,
}

/// Why nothing was published. What is committed stays and goes out with the next.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    #[error(transparent)]
    Commit(#[from] CommitError),
    #[error(transparent)]
    Flush(#[from] FlushError),
}

impl PublishError {
    /// Whether it works again once there is space.
    pub fn is_disk_full(&self) -> bool {
        let store = match self {
            Self::Commit(CommitError::NoSpace) | Self::Flush(FlushError::NoSpace) => return true,
            Self::Commit(CommitError::Store(error))
            | Self::Flush(FlushError::Store(error) | FlushError::Nodes(NodesError::Store(error))) => {
                error
            }
            _ => return false,
        };
        matches!(store, StoreError::Write(WriteError::NoSpace { .. }))
    }
}

/// Why the state could not be written down.
#[derive(Debug, thiserror::Error)]
pub enum FlushError {
    #[error("no space left")]
    NoSpace,
    #[error("the folder's own files: {0}")]
    Disk(io::Error),
    #[error(transparent)]
    Store(StoreError),
    #[error(transparent)]
    Nodes(NodesError<StoreError>),
}

impl From<io::Error> for FlushError {
    fn from(error: io::Error) -> Self {
        match journal::is_full(&error) {
            true => Self::NoSpace,
            false => Self::Disk(error),
        }
    }
}

impl From<StoreError> for FlushError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Write(WriteError::NoSpace { .. }) => Self::NoSpace,
            error => Self::Store(error),
        }
    }
}

impl From<NodesError<StoreError>> for FlushError {
    fn from(error: NodesError<StoreError>) -> Self {
        match error {
            NodesError::Store(error) => error.into(),
            error => Self::Nodes(error),
        }
    }
}

/// What changed since the tree was last written, with the clocks of the same moment.
pub(super) struct Flush {
    entries: BTreeMap<Key, Option<Entry>>,
    pub(super) vv: VersionVector,
    pub(super) hlc: Hlc,
}

impl Core {
    /// Whether a file that is empty so far was opened or begun to be written after `since`, and is open for writing.
    fn is_filling(&self, since: Time) -> bool {
        let is_filling = |body: Arc<Body>| {
            let page = body.page();
            // Each write is a later change; what counts is the first.
            let begun = page.since.map_or(page.mtime, time_of);
            page.writers > 0 && page.stored.size == 0 && begun > since
        };
        let mut bodies = self.bodies.iter().filter_map(Weak::upgrade);
        bodies.any(is_filling)
    }

    pub(super) fn take_unflushed(&mut self) -> Flush {
        let mut keys = std::mem::take(&mut self.unflushed);
        keys.extend(self.state.take_dirty());
        let entry = |key: &Key| self.state.entry(key).map(|entry| entry.to_entry());
        Flush {
            entries: keys
                .into_iter()
                .map(|key| (key.clone(), entry(&key)))
                .collect(),
            vv: self.state.vv().clone(),
            hlc: self.hlc,
        }
    }
}

impl Folder {
    /// Commits what is to be committed and publishes the state, if anything was done here since the last time. `sign` makes
    /// the head and keeps it: durably, because its numbers become durable next and nobody could believe what follows
    /// them without it. When
    /// this returns a head, everything it names is durable, and so are its numbers: they are never used again.
    pub fn publish(
        &self,
        sign: &dyn Fn(Unsigned) -> io::Result<[u8; HEAD_LEN]>,
    ) -> Result<Option<Publication>, PublishError> {
        let inner = &self.inner;
        inner.let_new_files_fill();
        let _turn = inner.turn.lock();
        inner.commit_possible(false)?;
        let published = inner.publish_state(sign)?;
        inner.empty_trash().map_err(FlushError::from)?;
        inner.checkpoint_if_long()?;
        Ok(published)
    }

    /// BLAKE3 of the last head whose numbers are durable.
    pub fn published_head(&self) -> Option<[u8; 32]> {
        self.inner
            .core
            .lock()
            .published
            .as_ref()
            .map(|published| published.head)
    }

    /// Whether `snapshot` knows of operations of this incarnation that we do not: only if our state was rolled back.
    pub fn is_behind_itself(&self, snapshot: &Snapshot) -> bool {
        let inc = self.inner.config.inc;
        snapshot.vector.get(inc) > self.inner.core.lock().state.vv().get(inc)
    }

    /// The root of the tree as last written and what that tree has seen.
    pub fn written(&self) -> (NodeId, VersionVector) {
        let core = self.inner.core.lock();
        (core.tip.tree.root, core.tip_vector.clone())
    }

    /// The root of the tree as last written and what the state has seen.
    pub fn root(&self) -> (NodeId, VersionVector) {
        let core = self.inner.core.lock();
        (core.tip.tree.root, core.state.vv().clone())
    }
}

impl Inner {
    fn let_new_files_fill(&self) {
        let steps = FILL_TIME.as_nanos() / FILL_STEP.as_nanos();
        for _ in 0..steps {
            let since = self.now_ns().saturating_sub(FILL_TIME.as_nanos() as u64);
            if !self.core.lock().is_filling(time_of(since)) {
                return;
            }
            std::thread::sleep(FILL_STEP);
        }
    }

    /// Commits what can be. A file that waits for a peer does not hold up the rest.
    pub(super) fn commit_possible(self: &Arc<Self>, all: bool) -> Result<(), CommitError> {
        match self.commit_due(all) {
            Err(CommitError::MissingChunks(_) | CommitError::MissingNodes(_)) => Ok(()),
            committed => committed,
        }
    }

    fn publish_state(
        self: &Arc<Self>,
        sign: &dyn Fn(Unsigned) -> io::Result<[u8; HEAD_LEN]>,
    ) -> Result<Option<Publication>, FlushError> {
        let inc = self.config.inc;
        // The snapshot is named only once the head is noted.
        let _unnamed = self.config.store.hold();
        let (flush, last) = {
            let mut core = self.core.lock();
            let last = core
                .published
                .clone()
                .filter(|published| published.inc == inc);
            let done = last.as_ref().map_or(0, |published| published.ctr);
            if core.state.vv().get(inc) <= done && !core.sign_again {
                return Ok(None);
            }
            (core.take_unflushed(), last)
        };
        let (vv, hlc) = (flush.vv.clone(), flush.hlc);
        let tip = self.write_tree(flush)?;
        let ctr = vv.get(inc);
        let snapshot = Snapshot {
            tree: tip.tree,
            parents: last
                .iter()
                .map(|last| NodeId::from_bytes(last.snapshot))
                .collect(),
            vector: vv,
            hlc,
            files: tip.files,
            bytes: tip.bytes,
        };
        let bytes = snapshot
            .encode()
            .map_err(|error| FlushError::Nodes(NodesError::Input(error)))?;
        let snapshot_id = snapshot_ref(&bytes).id;
        let store = &self.config.store;
        store
            .put_node(NodeKind::Snapshot.code(), &snapshot_id, &bytes)
            .map_err(StoreError::from)?;
        store.sync().map_err(StoreError::from)?;
        let changes = self.changes_since(tip.shared, tip.tree)?;
        let seq = last.as_ref().map_or(0, |last| last.seq) + 1;
        let head = sign(Unsigned {
            snapshot: snapshot_id,
            ctr,
            seq,
            prev: last.map_or([0; 32], |last| last.head),
            hlc: hlc.0,
        })?;
        self.note_published(Published {
            inc,
            ctr,
            seq,
            head: *blake3::hash(&head).as_bytes(),
            snapshot: *snapshot_id.as_bytes(),
            root: *tip.tree.root.as_bytes(),
        })?;
        Ok(Some(Publication {
            head,
            snapshot_id,
            snapshot: bytes,
            base_root: tip.shared,
            changes,
        }))
    }

    /// Makes the numbers of a head durable, and with them everything logged before.
    fn note_published(&self, published: Published) -> Result<(), FlushError> {
        let _gate = self.gate.read();
        let ticket = {
            let mut core = self.core.lock();
            core.tip.shared = NodeId::from_bytes(published.root);
            core.published = Some(published.clone());
            core.sign_again = false;
            self.journal.queue(Record::Published(published).encode())
        };
        self.journal.write_out(ticket)?;
        Ok(self.journal.sync()?)
    }

    /// Writes what changed into the tree. The nodes are not synced yet.
    pub(super) fn write_tree(&self, flush: Flush) -> Result<Tip, FlushError> {
        // The nodes are named once they are the tip's.
        let _unnamed = self.config.store.hold();
        let before = self.core.lock().tip;
        let written = self.apply_to_tree(before, &flush);
        self.set_tip(flush, written)
    }

    /// As [`write_tree`](Self::write_tree), without what was written before: all of the state, which may be many nodes.
    pub(super) fn write_whole_tree(&self) -> Result<Tip, FlushError> {
        let _unnamed = self.config.store.hold();
        let (flush, mut tip, entries) = {
            let mut core = self.core.lock();
            let flush = core.take_unflushed();
            let entries = core.state.entries();
            let entries: Vec<_> = entries
                .map(|(key, entry)| (key, entry.to_entry()))
                .collect();
            (flush, core.tip, entries)
        };
        (tip.files, tip.bytes) = (0, 0);
        for (_, entry) in &entries {
            let (files, bytes) = weigh(entry);
            tip.files += files;
            tip.bytes += bytes;
        }
        let encoded = entries.iter().map(|(key, entry)| {
            let value = codec::encode_entry(key, entry.as_ref());
            value.map(|value| (codec::encode_key(key), value))
        });
        let encoded = encoded.collect::<Result<Vec<_>, _>>();
        let built = encoded.map_err(NodesError::Input).and_then(|entries| {
            let nodes = StoreNodes(&self.config.store);
            Trees::new(&nodes).build(entries)
        });
        let written = built.map(|tree| Tip { tree, ..tip });
        self.set_tip(flush, written.map_err(FlushError::from))
    }

    /// Takes what was written for the tip; what could not be is still to be written.
    fn set_tip(&self, flush: Flush, written: Result<Tip, FlushError>) -> Result<Tip, FlushError> {
        let mut core = self.core.lock();
        match written {
            Ok(tip) => {
                let shared = core.tip.shared;
                core.tip = Tip { shared, ..tip };
                core.tip_vector = flush.vv;
                Ok(core.tip)
            }
            Err(error) => {
                core.unflushed.extend(flush.entries.into_keys());
                Err(error)
            }
        }
    }

    fn apply_to_tree(&self, mut tip: Tip, flush: &Flush) -> Result<Tip, FlushError> {
        let nodes = StoreNodes(&self.config.store);
        let trees = Trees::new(&nodes);
        let mut changes: Vec<Change> = Vec::with_capacity(flush.entries.len());
        for (key, entry) in &flush.entries {
            let encoded_key = codec::encode_key(key);
            if let Some(old) = trees.get(&tip.tree, &encoded_key)?
                && let Ok(old) = codec::decode_entry(key, &old)
            {
                let (files, bytes) = weigh(&old);
                tip.files -= files.min(tip.files);
                tip.bytes -= bytes.min(tip.bytes);
            }
            if let Some(new) = entry {
                let (files, bytes) = weigh(new);
                tip.files += files;
                tip.bytes += bytes;
            }
            let encoded = entry
                .as_ref()
                .map(|entry| codec::encode_entry(key, entry.as_ref()));
            let encoded = encoded.transpose().map_err(NodesError::Input)?;
            changes.push((encoded_key, encoded));
        }
        tip.tree = trees.apply(&tip.tree, changes)?;
        Ok(tip)
    }

    fn changes_since(&self, base: NodeId, tree: Tree) -> Result<Option<Vec<Change>>, FlushError> {
        let nodes = StoreNodes(&self.config.store);
        let trees = Trees::new(&nodes);
        // A base that was merged but not synced before a crash is no base.
        let compared = nodes.tree(base).and_then(|old| trees.diff(&old, &tree));
        let differences = match compared {
            Err(NodesError::Missing(_)) => return Ok(None),
            compared => compared?,
        };
        let mut changes = Vec::new();
        let mut bytes = 0;
        for difference in differences {
            let difference = match difference {
                Err(NodesError::Missing(_)) => return Ok(None),
                difference => difference?,
            };
            bytes += difference.key.len() + difference.b.as_ref().map_or(0, Bytes::len) + 8;
            if bytes > MAX_CHANGES_LEN {
                return Ok(None);
            }
            changes.push((difference.key, difference.b));
        }
        Ok(Some(changes))
    }
}

/// What an entry adds to the numbers of files and bytes.
fn weigh(entry: &Entry) -> (u64, u64) {
    match entry {
        Entry::Head(_) => (0, 0),
        Entry::File(file) => match file.versions.first() {
            Some(version) => (1, version.size),
            None => (0, 0),
        },
    }
}
