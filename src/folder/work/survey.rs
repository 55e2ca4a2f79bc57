//! What a folder has and lacks: counts for `status`, and what to fetch to have the content whole.

use std::collections::HashSet;

use ccbt_xet::hash::{ChunkHash, NodeId};

use super::nodes::{StoreError, StoreNodes};
use super::{Folder, WantedChunk};
use crate::folder::content::ContentReader;
use crate::folder::state::{Content, EntryRef, FileKind, Fid, Key, Name};
use crate::folder::tree::NodesError;

/// How much of what.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct FolderStats {
    pub files: u64,
    pub bytes: u64,
    /// Files with changes that are not committed.
    pub dirty: u64,
    /// Files with chunks that are not here.
    pub missing_files: u64,
    pub missing_bytes: u64,
    /// Files with chunks in packs, none of which is borrowed from a plain file.
    pub only_here_files: u64,
    pub only_here_bytes: u64,
}

/// What has to be fetched next to come closer to whole.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Lacking {
    pub chunks: Vec<WantedChunk>,
    /// Recipe nodes: which chunks stand behind them is not known yet.
    pub nodes: Vec<(u8, NodeId)>,
}

impl Lacking {
    /// Everything is here.
    pub fn is_empty(&self) -> bool {
        self.chunks.is_empty() && self.nodes.is_empty()
    }
}

/// Why the content could not be looked through.
#[derive(Debug, thiserror::Error)]
#[error("the list of a file's chunks cannot be read: {0}")]
pub struct SurveyError(#[from] NodesError<StoreError>);

/// One file version with content.
struct Held {
    content: Content,
    size: u64,
}

impl Folder {
    /// Counts files and bytes as last written down; with `content`, also what is missing and what is only here, for which
    /// every list of chunks is read.
    pub fn stats(&self, content: bool) -> FolderStats {
        let mut stats = {
            let core = self.inner.core.lock();
            FolderStats {
                files: core.tip.files,
                bytes: core.tip.bytes,
                dirty: core.dirty.len() as u64,
                ..FolderStats::default()
            }
        };
        if content {
            for held in self.contents(None) {
                self.count(&held, &mut stats);
            }
        }
        stats
    }

    fn count(&self, held: &Held, stats: &mut FolderStats) {
        let store = &self.inner.config.store;
        let nodes = StoreNodes(store);
        let located = ContentReader::new(&nodes, &held.content.0, held.size)
            .map_err(NodesError::Input)
            .and_then(|reader| reader.locate(0..held.size));
        let Ok(located) = located else {
            stats.missing_files += 1;
            stats.missing_bytes += held.size;
            return;
        };
        let (mut missing, mut packed) = (0, 0);
        for at in &located {
            if !store.contains(&at.chunk.hash) {
                missing += u64::from(at.chunk.len);
            } else if store.is_packed(&at.chunk.hash) {
                packed += u64::from(at.chunk.len);
            }
        }
        if missing > 0 {
            stats.missing_files += 1;
            stats.missing_bytes += missing;
        } else if packed > 0 {
            stats.only_here_files += 1;
            stats.only_here_bytes += packed;
        }
    }

    /// Up to about `limit` chunks and nodes that are not here, of the files below `under` (all of them for `None`).
    pub fn lacking(&self, under: Option<&[Key]>, limit: usize) -> Result<Lacking, SurveyError> {
        let store = &self.inner.config.store;
        let nodes = StoreNodes(store);
        let mut lacking = Lacking::default();
        let mut asked = HashSet::new();
        for held in self.contents(under) {
            if lacking.chunks.len() + lacking.nodes.len() >= limit {
                break;
            }
            let reader = ContentReader::new(&nodes, &held.content.0, held.size)
                .map_err(NodesError::Input)?;
            match reader.locate(0..held.size) {
                Ok(located) => {
                    let absent = located.into_iter().filter(|at| {
                        !store.contains(&at.chunk.hash) && asked.insert(at.chunk.hash)
                    });
                    lacking.chunks.extend(absent.take(limit).map(|at| WantedChunk {
                        hash: at.chunk.hash,
                        len: at.chunk.len,
                        segment: at.segment,
                    }));
                }
                Err(NodesError::Missing(missing)) => {
                    lacking.nodes.extend(missing.iter().map(|node| (node.kind.code(), node.id)));
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(lacking)
    }

    /// The directory or file a path inside the folder names, as keys whose files are meant: every key below a directory.
    pub fn keys_below(&self, path: &[Name]) -> Option<Vec<Key>> {
        use crate::folder::state::Node;
        let core = self.inner.core.lock();
        let mut dir = Fid::ROOT;
        for (n, name) in path.iter().enumerate() {
            match core.state.lookup(dir, name.as_bytes())? {
                Node::Dir(node) => dir = node.fid,
                Node::File(node) if n + 1 == path.len() => return Some(vec![node.at.clone()]),
                Node::File(_) => return None,
            }
        }
        let mut keys = Vec::new();
        let mut todo = vec![dir];
        while let Some(dir) = todo.pop() {
            for (_, node) in core.state.list(dir) {
                match node {
                    Node::Dir(node) => todo.push(node.fid),
                    Node::File(node) => keys.push(node.at.clone()),
                }
            }
        }
        Some(keys)
    }

    /// Files and bytes at `keys`.
    pub fn amount(&self, keys: &[Key]) -> (u64, u64) {
        let held = self.contents(Some(keys));
        (held.len() as u64, held.iter().map(|held| held.size).sum())
    }

    /// The chunks of the files at `keys`, as far as their lists are here.
    pub fn chunks_of(&self, keys: &[Key]) -> Result<HashSet<ChunkHash>, SurveyError> {
        let nodes = StoreNodes(&self.inner.config.store);
        let mut chunks = HashSet::new();
        for held in self.contents(Some(keys)) {
            let reader = ContentReader::new(&nodes, &held.content.0, held.size)
                .map_err(NodesError::Input)?;
            match reader.locate(0..held.size) {
                Ok(located) => chunks.extend(located.into_iter().map(|at| at.chunk.hash)),
                Err(NodesError::Missing(_)) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(chunks)
    }

    /// Whether both are handles of one folder.
    pub fn is_same(&self, other: &Self) -> bool {
        std::sync::Arc::ptr_eq(&self.inner, &other.inner)
    }

    fn contents(&self, under: Option<&[Key]>) -> Vec<Held> {
        let core = self.inner.core.lock();
        let mut out = Vec::new();
        let mut take = |entry: EntryRef<'_>| {
            if let EntryRef::File(file) = entry {
                let files = file.versions.iter().filter(|v| v.kind == FileKind::File && v.size > 0);
                out.extend(files.map(|v| Held { content: v.content.clone(), size: v.size }));
            }
        };
        match under {
            Some(keys) => keys.iter().filter_map(|key| core.state.entry(key)).for_each(&mut take),
            None => core.state.entries().for_each(|(_, entry)| take(entry)),
        }
        out
    }
}
