//! What may be given up: the chunks that only certain files need.

use std::collections::HashSet;
use std::sync::Arc;

use ccbt_mount::VolumeError;
use ccbt_xet::hash::ChunkHash;

use super::Folder;
use super::body::Stored;
use super::nodes::StoreNodes;
use super::stats::{below, contents, node_at, stored_of};
use crate::folder::content::ContentReader;
use crate::folder::state::Node;
use crate::folder::tree::NodesError;

/// The files at or below a path.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Below {
    pub files: u64,
    pub bytes: u64,
    /// Their chunks, as far as the lists of them are here.
    pub chunks: HashSet<ChunkHash>,
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
        self.chunks_in(files)
    }

    /// The chunks of every version of every file.
    pub fn chunks(&self) -> Result<Below, VolumeError> {
        let files = contents(&self.inner.core.lock().state);
        self.chunks_in(files)
    }

    fn chunks_in(&self, files: Vec<Stored>) -> Result<Below, VolumeError> {
        let nodes = StoreNodes(&self.inner.config.store);
        let mut below = Below::default();
        for stored in files {
            below.files += 1;
            below.bytes += stored.size;
            let located = ContentReader::new(&nodes, &stored.content.0, stored.size)
                .map_err(|_| VolumeError::Io)?
                .locate(0..stored.size);
            match located {
                Ok(located) => below
                    .chunks
                    .extend(located.into_iter().map(|at| at.chunk.hash)),
                Err(NodesError::Missing(_)) => {}
                Err(_) => return Err(VolumeError::Io),
            }
        }
        Ok(below)
    }

    /// Whether both are handles of one folder.
    pub fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.inner, &other.inner)
    }
}
