//! Merging a peer's snapshot: its entries join the state, and whoever looks at what changed is told.

use std::collections::{BTreeMap, BTreeSet};

use ccbt_mount::Notifier;
use ccbt_xet::hash::NodeId;

use super::core::Core;
use super::inodes::{Ino, Local, NodeKind, Spot};
use super::journal::RECORD_LEN_MAX;
use super::nodes::{StoreError, StoreNodes};
use super::publish::FlushError;
use super::record::Record;
use super::{Folder, Inner};
use crate::folder::changes::Change as EntryChange;
use crate::folder::codec;
use crate::folder::encoding::DecodeError;
use crate::folder::snapshot::Snapshot;
use crate::folder::state::{Change, Entry, EntryError, Fid, FileNode, Hlc, Key, Name, Node, Time};
use crate::folder::tree::{NodesError, Trees};

/// How often a merge starts over because something was done meanwhile, before it keeps everybody else waiting.
const TRIES: usize = 3;

/// A merge of more entries than this is followed by a checkpoint, so that the next open need not replay them.
const RECORD_ENTRIES_MAX: usize = 50_000;

/// A snapshot's clock is not believed to be further ahead than this, in milliseconds: with a later one nobody would
/// accept our heads.
pub(super) const AHEAD_MS_MAX: u64 = 10 * 60 * 1000;

/// What a merge did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Merged {
    /// Whether the state is another now.
    pub changed: bool,
}

/// Why a snapshot was not merged. Nothing changed.
#[derive(Debug, thiserror::Error)]
pub enum MergeError {
    /// Nodes by kind and name: fetch them and try again.
    #[error("{} nodes are missing", .0.len())]
    Missing(Vec<(u8, NodeId)>),
    #[error("an entry of the snapshot is not well formed: {0}")]
    Entry(#[from] DecodeError),
    #[error("the snapshot contradicts itself: {0}")]
    State(#[from] EntryError),
    #[error(transparent)]
    Flush(FlushError),
}

impl From<FlushError> for MergeError {
    fn from(error: FlushError) -> Self {
        match error {
            FlushError::Nodes(NodesError::Missing(nodes)) => Self::Missing(
                nodes
                    .iter()
                    .map(|node| (node.kind.code(), node.id))
                    .collect(),
            ),
            error => Self::Flush(error),
        }
    }
}

impl From<NodesError<StoreError>> for MergeError {
    fn from(error: NodesError<StoreError>) -> Self {
        FlushError::from(error).into()
    }
}

impl Folder {
    /// Merges a snapshot whose nodes are in the store.
    pub fn merge(&self, snapshot: &Snapshot) -> Result<Merged, MergeError> {
        let inner = &self.inner;
        let _turn = inner.turn.lock();
        for _ in 0..TRIES {
            let theirs = inner.differing(snapshot)?;
            let gate = inner.gate.read();
            if let Some(merged) = inner.merge_entries(snapshot, &theirs)? {
                drop(gate);
                inner.write_merged(snapshot);
                return inner.after_merge(merged, theirs.len());
            }
        }
        let merged = {
            let _alone = inner.gate.write();
            let theirs = inner.differing(snapshot)?;
            let merged = inner.merge_entries(snapshot, &theirs)?;
            merged.map(|merged| (merged, theirs.len()))
        };
        match merged {
            Some((merged, len)) => {
                inner.write_merged(snapshot);
                inner.after_merge(merged, len)
            }
            None => Ok(Merged { changed: false }),
        }
    }

    /// Shows siblings by what `device_name` of the configuration says now.
    pub fn rename_siblings(&self) {
        let inner = &self.inner;
        let gate = inner.gate.read();
        let told = {
            let mut core = inner.core.lock();
            let op = core.op(inner.now_ns());
            let changes = op.core.state.rename_siblings();
            op.core.note_changed(&changes);
            let told = op.core.reconcile_all(&changes, op.now);
            if let (Some(record), _) = op.finish() {
                // Which inode had which name is told again at the next start, should it not be written.
                let _ = inner.journal.queue(record);
            }
            told
        };
        if let Err(error) = inner.journal.write_queue() {
            tracing::warn!(%error, "new names of siblings wait to be written to the journal");
        }
        drop(gate);
        inner.tell(&told);
    }

    /// Builds the tree that `changes` make of the tree `base` into the store. True: it is the tree `expect_root`, whose
    /// snapshot can be merged now.
    pub fn apply_changes(
        &self,
        base: NodeId,
        changes: Vec<EntryChange>,
        expect_root: NodeId,
    ) -> Result<bool, MergeError> {
        let nodes = StoreNodes(&self.inner.config.store);
        let tree = nodes.tree(base)?;
        let built = Trees::new(&nodes).apply(&tree, changes)?;
        Ok(built.root == expect_root)
    }
}

/// What a merge left to be done without locks.
struct After {
    told: Told,
    changed: bool,
    /// It is in the journal's queue.
    logged: bool,
}

/// Kernel caches that are out of date.
#[derive(Debug, Default)]
pub(super) struct Told {
    inodes: BTreeSet<Ino>,
    names: BTreeSet<(Ino, Name)>,
}

type Theirs = BTreeMap<Key, Option<Entry>>;

impl Inner {
    /// Writes our state down and gives the entries in which the snapshot differs, as it has them.
    fn differing(&self, snapshot: &Snapshot) -> Result<Theirs, MergeError> {
        let flush = self.core.lock().take_unflushed();
        let mine = self.write_tree(flush)?.tree;
        let nodes = StoreNodes(&self.config.store);
        let trees = Trees::new(&nodes);
        let mut out = Theirs::new();
        for difference in trees.diff(&mine, &snapshot.tree)? {
            let difference = difference?;
            let key = codec::decode_key(&difference.key)?;
            let entry = match &difference.b {
                Some(bytes) => Some(codec::decode_entry(&key, bytes)?),
                None => None,
            };
            out.insert(key, entry);
        }
        Ok(out)
    }

    /// None: something was done since the state was written down.
    fn merge_entries(
        &self,
        snapshot: &Snapshot,
        theirs: &Theirs,
    ) -> Result<Option<After>, MergeError> {
        let mut core = self.core.lock();
        if !core.unflushed.is_empty() {
            return Ok(None);
        }
        let core = &mut *core;
        let before: BTreeMap<_, _> = core.state.vv().iter().collect();
        let open = core.open_files(theirs.keys());
        let entries = theirs
            .iter()
            .map(|(key, entry)| (key.clone(), entry.clone()));
        let changes = core.state.merge_entries(entries, &snapshot.vector)?;
        // What is done here from now on is later than anything seen.
        let latest = (self.now_ns() / 1_000_000).saturating_add(AHEAD_MS_MAX);
        let latest = Hlc::default().tick(latest);
        core.hlc = core.hlc.max(snapshot.hlc.min(latest));
        let mut op = core.op(self.now_ns());
        let grown = op
            .core
            .state
            .vv()
            .iter()
            .filter(|(inc, ctr)| before.get(inc) != Some(ctr));
        op.record.seen = grown.collect();
        op.core.note_changed(&changes);
        let told = op.core.reconcile_all(&changes, op.now);
        op.core.keep_orphans(open);
        let record = op.complete();
        let changed = record
            .as_ref()
            .is_some_and(|record| !record.entries.is_empty() || !record.seen.is_empty());
        let record = record.map(|record| Record::Op(Box::new(record)).encode());
        let logged = record
            .as_ref()
            .is_none_or(|record| record.len() <= RECORD_LEN_MAX);
        if let Some(record) = record.filter(|_| logged) {
            // Written by the caller, once the lock is gone.
            let _ = self.journal.queue(record);
        }
        Ok(Some(After {
            told,
            changed,
            logged,
        }))
    }

    /// The merge is done in memory, whatever the disk says to it: the journal's queue is written before anything else.
    fn after_merge(&self, after: After, entries: usize) -> Result<Merged, MergeError> {
        self.tell(&after.told);
        if !after.logged {
            self.checkpoint()?;
        } else if let Err(error) = self.journal.write_queue() {
            tracing::warn!(%error, "a merge waits to be written to the journal");
        } else if entries > RECORD_ENTRIES_MAX
            && let Err(error) = self.checkpoint()
        {
            tracing::warn!(%error, "a large merge is only in the journal");
        }
        Ok(Merged {
            changed: after.changed,
        })
    }

    /// The root is that of the merged state at once, and `snapshot`'s is one that others have. If there is no room for
    /// the nodes, the next publication writes them.
    fn write_merged(&self, snapshot: &Snapshot) {
        let flush = self.core.lock().take_unflushed();
        match self.write_tree(flush) {
            Ok(_) => self.core.lock().tip.shared = snapshot.tree.root,
            Err(error) => tracing::warn!(%error, "the merged tree is not written yet"),
        }
    }

    /// Tells the kernel what to forget. Not under any lock.
    pub(super) fn tell(&self, told: &Told) {
        for (_, notifier) in self.notifiers.read().iter() {
            told.tell(notifier.as_ref());
        }
    }
}

impl Told {
    fn tell(&self, notifier: &dyn Notifier) {
        for ino in &self.inodes {
            notifier.inode_changed(*ino);
        }
        for (parent, name) in &self.names {
            notifier.entry_changed(*parent, name.as_bytes());
        }
    }
}

impl Core {
    /// Brings inodes in step with what others, or a scanner, changed.
    pub(super) fn reconcile_all(&mut self, changes: &[Change], now: Time) -> Told {
        let mut told = Told::default();
        for change in changes {
            self.reconcile(change, &mut told, now);
        }
        told
    }

    fn reconcile(&mut self, change: &Change, told: &mut Told, now: Time) {
        match change {
            Change::Name { dir, name } => {
                self.reconcile_name(
                    Spot {
                        dir: *dir,
                        name: name.clone(),
                    },
                    told,
                    now,
                );
            }
            Change::Listing { dir } => {
                for name in self.names_in(*dir) {
                    self.reconcile_name(Spot { dir: *dir, name }, told, now);
                }
            }
            Change::Attributes { dir } => {
                if let Some(ino) = self.inodes.of_dir(*dir) {
                    let shared = self.state.dir(*dir).and_then(|node| node.mtime);
                    self.date(ino, now, |local| {
                        if shared.is_some() {
                            local.mtime = None;
                        }
                    });
                    told.inodes.insert(ino);
                    self.drop_if_gone(ino);
                }
            }
        }
    }

    fn names_in(&self, dir: Fid) -> Vec<Name> {
        let bound = self.inodes.names_in(dir);
        let listed = self.state.list(dir).into_iter().map(|(name, _)| name);
        let all: BTreeSet<Name> = bound.into_iter().chain(listed).collect();
        all.into_iter().collect()
    }

    fn date(&mut self, ino: Ino, now: Time, change: impl FnOnce(&mut Local)) {
        if let Some(meta) = self.inodes.meta_mut(ino) {
            meta.local.ctime = now;
            change(&mut meta.local);
        }
    }

    fn reconcile_name(&mut self, spot: Spot, told: &mut Told, now: Time) {
        if let Some(parent) = self.inodes.of_dir(spot.dir) {
            told.names.insert((parent, spot.name.clone()));
            told.inodes.insert(parent);
            self.date(parent, now, |local| local.mtime = Some(now));
        }
        let Some(ino) = self.inodes.at(&spot) else {
            return;
        };
        if self.inodes.special_at(&spot).is_some() {
            return;
        }
        told.inodes.insert(ino);
        match self.state.lookup(spot.dir, spot.name.as_bytes()) {
            Some(Node::File(node)) => self.renew(ino, &spot, &node, now),
            Some(Node::Dir(_)) | None => self.lose(ino, &spot),
        }
    }

    /// The file at `spot` may be another version now, or no longer the same inode as its other names.
    fn renew(&mut self, ino: Ino, spot: &Spot, node: &FileNode, now: Time) {
        let others = self.inodes.get(ino).and_then(|inode| {
            let mut others = inode.names.iter().filter(|other| *other != spot);
            others.next().cloned()
        });
        if let Some(other) = others {
            let same = match self.state.lookup(other.dir, other.name.as_bytes()) {
                Some(Node::File(other)) => other.is_same_inode(node),
                _ => true,
            };
            // The names came apart: the first keeps the number.
            if !same && other < *spot {
                self.inodes.unbind(spot);
                return;
            }
        }
        self.date(ino, now, |_| {});
        let Some(inode) = self.inodes.get_mut(ino) else {
            return;
        };
        inode.renewed = true;
        let stale = inode.body.as_ref().is_some_and(|body| {
            let page = body.page();
            !page.listed && page.stored.content != node.version.content
        });
        if stale {
            // Old handles keep the version they opened.
            inode.body = None;
            inode.divided = inode.opens > 0;
        } else if let Some(body) = inode.body.clone() {
            let mut page = body.page();
            if !page.listed
                && let Some(base) = self.state.base(spot.dir, spot.name.as_bytes())
            {
                page.at = base;
            }
        }
    }

    /// Others removed the file at `spot`, or took its name.
    fn lose(&mut self, ino: Ino, spot: &Spot) {
        self.inodes.unbind(spot);
        self.drop_if_gone(ino);
    }

    /// What the open files among `keys` are before a merge.
    fn open_files<'k>(&self, keys: impl Iterator<Item = &'k Key>) -> Vec<(Ino, FileNode)> {
        let at = |key: &Key| {
            let ino = self.inodes.at(&Spot {
                dir: key.dir,
                name: key.name.clone(),
            })?;
            let inode = self.inodes.get(ino)?;
            inode.body.as_ref()?;
            Some((ino, self.node_of(inode)?.1))
        };
        keys.filter_map(at).collect()
    }

    /// Those that have lost their last name are what they were until they are closed.
    fn keep_orphans(&mut self, open: Vec<(Ino, FileNode)>) {
        for (ino, node) in open {
            if let Some(inode) = self.inodes.get_mut(ino)
                && inode.names.is_empty()
                && inode.meta.kind == NodeKind::File
            {
                inode.orphan = Some(Box::new(node.into()));
            }
        }
    }
}
