//! What may be given up: the chunks that only certain files need.

use std::collections::HashSet;

use ccbt_mount::VolumeError;
use ccbt_xet::hash::{ChunkHash, NodeId};
use parking_lot::MutexGuard;

use super::Folder;
use super::body::Stored;
use super::publish::Turn;
use super::stats::{below, contents, node_at, stored_of};
use crate::folder::state::Node;

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

    /// The chunks that something here may still read: those of every version of every file, of what is open, and of what
    /// was changed and not committed. They are what a gc has to leave, beside what is stored and not named yet.
    pub fn needed_chunks(&self) -> Result<HashSet<ChunkHash>, VolumeError> {
        let (mut files, bodies) = {
            let core = self.inner.core.lock();
            let mut files = contents(&core.state);
            let orphans = core.inodes.iter();
            let orphans = orphans.filter_map(|(_, inode)| inode.orphan.as_deref());
            files.extend(orphans.map(|orphan| Stored {
                content: orphan.content.clone(),
                size: orphan.size,
            }));
            let bodies = core.bodies.iter().filter_map(|body| body.upgrade());
            (files, bodies.collect::<Vec<_>>())
        };
        files.extend(bodies.iter().map(|body| (*body.page().stored).clone()));
        let mut needed = HashSet::new();
        for stored in &files {
            self.each_listed(stored, &mut |hash| {
                needed.insert(hash);
            })?;
        }
        Ok(needed)
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
