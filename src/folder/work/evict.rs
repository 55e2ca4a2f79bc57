//! What may be given up: the chunks that only certain files need, and what nothing here needs.

use std::collections::HashSet;

use bytes::Bytes;
use ccbt_mount::VolumeError;
use ccbt_xet::hash::{ChunkHash, NodeId};
use parking_lot::MutexGuard;

use super::body::Stored;
use super::checkpoint;
use super::core::Core;
use super::nodes::StoreNodes;
use super::publish::Turn;
use super::stats::{below, contents, node_at, stored_of};
use super::{Folder, Inner};
use crate::folder::content::ContentReader;
use crate::folder::snapshot::Snapshot;
use crate::folder::state::Node;
use crate::folder::tree::{NodesError, Tree, Trees};

/// The files at or below a path.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Below {
    pub files: u64,
    pub bytes: u64,
    /// Their chunks, as far as the lists of them are here.
    pub chunks: HashSet<ChunkHash>,
}

/// A folder held still: while this lives, nothing is committed, published or merged, so no chunk is needed that was not
/// before, but by what is fetched, which comes back.
pub struct Held<'f> {
    folder: &'f Folder,
    _turn: MutexGuard<'f, Turn>,
}

impl Folder {
    /// What lies at or below `path`.
    pub fn chunks_below(&self, path: &[&[u8]]) -> Result<Below, VolumeError> {
        let files = {
            let core = self.inner.core.lock();
            let mut files = Vec::new();
            match node_at(&core.state, path) {
                Some(Node::Dir(dir)) => below(&core.state, dir.fid, &mut files),
                Some(node) => files.extend(stored_of(&node)),
                None => return Err(VolumeError::NotFound),
            }
            files
        };
        let mut below = Below {
            files: files.len() as u64,
            bytes: files.iter().map(|stored| stored.size).sum(),
            chunks: HashSet::new(),
        };
        for stored in &files {
            self.each_listed(stored, &mut |hash| {
                below.chunks.insert(hash);
            })?;
        }
        Ok(below)
    }

    /// Bytes of the files at or below `path` that are not here.
    pub fn absent_bytes(&self, path: &[&[u8]]) -> Result<u64, VolumeError> {
        let mut files = Vec::new();
        {
            let core = self.inner.core.lock();
            match node_at(&core.state, path) {
                Some(Node::Dir(dir)) => below(&core.state, dir.fid, &mut files),
                Some(node) => files.extend(stored_of(&node)),
                None => return Err(VolumeError::NotFound),
            }
        }
        let store = &self.inner.config.store;
        let mut absent = 0;
        for stored in &files {
            let mut here = 0;
            let listed = self.inner.each_chunk(stored, &mut |found| {
                if store.contains(&found.chunk.hash) {
                    here += u64::from(found.chunk.len);
                }
            });
            listed.map_err(|_| VolumeError::Io)?;
            absent += stored.size.saturating_sub(here);
        }
        Ok(absent)
    }

    /// Waits for the commit, publication or merge that runs, and holds off the next.
    pub fn hold(&self) -> Held<'_> {
        Held {
            folder: self,
            _turn: self.inner.turn.lock(),
        }
    }

    /// Shows `each` the chunks that something here may still read: those of every version of every file, of what is open,
    /// and of what was changed and not committed. They are what a gc has to leave, beside what is stored and not named
    /// yet.
    pub fn needed_chunks(&self, each: &mut dyn FnMut(&ChunkHash)) -> Result<(), VolumeError> {
        let files = self.inner.needed_contents(&self.inner.core.lock());
        files
            .iter()
            .try_for_each(|stored| self.each_listed(stored, &mut |hash| each(&hash)))
    }

    /// The nodes that something here, or a peer that asks for what a head names, may still read: the tree as last written,
    /// as last shared and as the next start finds it, the snapshots of `heads` and of our own with their trees, and the lists of chunks. None: the
    /// tree of the state is not whole, so what belongs to it cannot be told.
    pub fn needed_nodes(&self, heads: &[NodeId]) -> Result<Option<HashSet<NodeId>>, VolumeError> {
        let inner = &self.inner;
        let (tip, published, files, held) = {
            let core = inner.core.lock();
            let held = core.table.range(&[]);
            let held = held.filter_map(|(key, row)| (inner.config.held_content)(&key, &row));
            let held: Vec<(Bytes, u64)> = held.collect();
            let published = core.published.clone();
            (core.tip, published, inner.needed_contents(&core), held)
        };
        let nodes = StoreNodes(&inner.config.store);
        let mut needed = HashSet::new();
        // The next start replays the journal over the tree of the checkpoint.
        let saved = checkpoint::load(inner.config.disk.as_ref(), &inner.config.dir);
        let Ok(saved) = saved.map(|saved| saved.map(|saved| saved.tip.tree)) else {
            return Ok(None);
        };
        for tree in std::iter::once(tip.tree).chain(saved) {
            if !inner.add_tree(&tree, &mut needed)? {
                return Ok(None);
            }
        }
        let mut roots = vec![tip.shared];
        let mut snapshots = heads.to_vec();
        if let Some(published) = published {
            roots.push(NodeId::from_bytes(published.root));
            snapshots.push(NodeId::from_bytes(published.snapshot));
        }
        for root in roots {
            if let Ok(tree) = nodes.tree(root) {
                inner.add_tree(&tree, &mut needed)?;
            }
        }
        for id in snapshots {
            needed.insert(id);
            let bytes = inner.config.store.node(&id).map_err(|_| VolumeError::Io)?;
            if let Some(Ok(snapshot)) = bytes.map(|bytes| Snapshot::decode(&bytes)) {
                inner.add_tree(&snapshot.tree, &mut needed)?;
            }
        }
        let mut add = |node: &NodeId| {
            needed.insert(*node);
        };
        for stored in &files {
            let reader = ContentReader::new(&nodes, &stored.content.0, stored.size);
            let listed = reader.map_err(NodesError::Input);
            let listed = listed.and_then(|reader| reader.each_node(&mut add));
            listed.map_err(|error| {
                tracing::error!(%error, "the recipe of a file is damaged");
                VolumeError::Io
            })?;
        }
        for (content, size) in held {
            // A base record that breaks the format names nothing.
            if let Ok(reader) = ContentReader::new(&nodes, &content, size) {
                let _named = reader.each_node(&mut add);
            }
        }
        Ok(Some(needed))
    }

    /// Of parts of the list that are not here no chunk was ever fetched.
    fn each_listed(
        &self,
        stored: &Stored,
        each: &mut dyn FnMut(ChunkHash),
    ) -> Result<(), VolumeError> {
        let listed = self
            .inner
            .each_chunk(stored, &mut |located| each(located.chunk.hash));
        listed.map(drop).map_err(|_| VolumeError::Io)
    }
}

impl Inner {
    /// The contents of all versions, of what is open without a name, and of what lies under uncommitted writes.
    fn needed_contents(&self, core: &Core) -> Vec<Stored> {
        let mut files = contents(&core.state);
        let orphans = core.inodes.iter();
        let orphans = orphans.filter_map(|(_, inode)| inode.orphan.as_deref());
        files.extend(orphans.map(|orphan| Stored {
            content: orphan.content.clone(),
            size: orphan.size,
        }));
        let bodies = core.bodies.iter().filter_map(|body| body.upgrade());
        files.extend(bodies.map(|body| (*body.page().stored).clone()));
        files
    }

    /// Adds the nodes of a tree. False: some are missing, or break the format.
    fn add_tree(&self, tree: &Tree, needed: &mut HashSet<NodeId>) -> Result<bool, VolumeError> {
        let nodes = StoreNodes(&self.config.store);
        match Trees::new(&nodes).add_nodes(tree, needed) {
            Ok(whole) => Ok(whole),
            Err(NodesError::Store(error)) => {
                tracing::error!(%error, "the tree of a folder cannot be read");
                Err(VolumeError::Io)
            }
            Err(_) => Ok(false),
        }
    }
}

impl Held<'_> {
    /// The root of the tree, if it holds all there is: nothing was done since it was written.
    pub fn settled_root(&self) -> Option<NodeId> {
        let core = self.folder.inner.core.lock();
        core.is_flushed().then_some(core.tip.tree.root)
    }

    /// Takes every chunk out of `chunks` that some version of a file needs, or that is needed by what was opened or
    /// written since.
    pub fn spare(&self, chunks: &mut HashSet<ChunkHash>) -> Result<(), VolumeError> {
        let files = contents(&self.folder.inner.core.lock().state);
        self.spare_of(&files, chunks)?;
        self.spare_opened(chunks)
    }

    /// Takes the chunks out of `chunks` of versions that open handles show or uncommitted writes lie over: they need
    /// not be in the newest state.
    pub fn spare_opened(&self, chunks: &mut HashSet<ChunkHash>) -> Result<(), VolumeError> {
        let bodies: Vec<_> = {
            let core = self.folder.inner.core.lock();
            core.bodies
                .iter()
                .filter_map(|body| body.upgrade())
                .collect()
        };
        let opened = bodies.iter().map(|body| (*body.page().stored).clone());
        self.spare_of(&opened.collect::<Vec<_>>(), chunks)
    }

    fn spare_of(
        &self,
        files: &[Stored],
        chunks: &mut HashSet<ChunkHash>,
    ) -> Result<(), VolumeError> {
        files.iter().try_for_each(|stored| {
            self.folder.each_listed(stored, &mut |hash| {
                chunks.remove(&hash);
            })
        })
    }
}
