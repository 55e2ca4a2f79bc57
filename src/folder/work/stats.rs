//! What a folder holds, what of it is here, and what it takes to have it whole.

use std::collections::HashSet;

use ccbt_mount::{Ino, VolumeError};
use ccbt_xet::hash::{ChunkHash, NodeId};

use super::body::Stored;
use super::commit::CommitError;
use super::nodes::{StoreError, StoreNodes};
use super::read::Presence;
use super::{Folder, Inner, Lenders, WantedChunk};
use crate::folder::codec;
use crate::folder::content::ContentReader;
use crate::folder::state::{Dot, Entry, EntryRef, Fid, FileEntry, FileKind, Name, Node, State};
use crate::folder::tree::{NodesError, Tree, Trees};

/// Numbers of a folder. Files count once for each name; conflicting versions count beside them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct FolderStats {
    pub files: u64,
    pub dirs: u64,
    pub bytes: u64,
    /// Files with content that is not committed.
    pub dirty: u64,
    /// Versions that perhaps nobody else has.
    pub only_here_files: u64,
    pub only_here_bytes: u64,
    /// Files of which not every chunk is here.
    pub missing_files: u64,
    pub missing_bytes: u64,
}

/// What it takes to have the folder whole. Nodes come first: which chunks a file has is in them.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Missing {
    pub chunks: Vec<WantedChunk>,
    /// By kind and name.
    pub nodes: Vec<(u8, NodeId)>,
}

/// One thing that is not here.
#[derive(Debug, Clone, Copy)]
pub(super) enum Absent {
    Chunk(WantedChunk),
    /// By kind and name.
    Node(u8, NodeId),
}

/// Which part of what is missing is asked for: about `count` things after the first `from`. Where there are not so many,
/// it goes on with the first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Part {
    pub from: usize,
    pub count: usize,
}

/// What a look at the whole folder found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lacking {
    /// Of the tree that was looked at.
    pub root: NodeId,
    /// Every chunk below the root is here, as far as was put or is in a plain file that is known to hold it; not synced.
    pub whole: bool,
    /// Nothing is missing, but some is only in plain files that may change at any time.
    pub on_loan: bool,
    /// The part of what is missing that was asked for.
    pub missing: Missing,
    /// More than that may be missing behind it.
    pub more: bool,
}

/// What a path leads to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    pub ino: Ino,
    pub node: Node,
}

impl Folder {
    /// Counts. What `is_elsewhere` does not say another device holds, perhaps nobody else has.
    pub fn stats(&self, is_elsewhere: &dyn Fn(Dot) -> bool) -> FolderStats {
        let inner = &self.inner;
        let (mut stats, files) = {
            let core = inner.core.lock();
            let mut stats = count(&core.state, is_elsewhere);
            stats.dirty = core.dirty.values().filter(|body| body.is_dirty()).count() as u64;
            (stats, contents(&core.state))
        };
        for stored in files {
            if inner.presence_of(&stored) != Presence::Local {
                stats.missing_files += 1;
                stats.missing_bytes += stored.size;
            }
        }
        stats
    }

    /// Whether nothing was ever put into it.
    pub fn is_empty(&self) -> bool {
        let core = self.inner.core.lock();
        core.state.list(Fid::ROOT).is_empty()
    }

    /// A part of the chunks and nodes that are not here, and if there are none, whether something is only on loan.
    /// `pack`: then it is stored. What the tree `whole` holds is not looked at. Fails if a recipe that is here is
    /// damaged.
    pub fn lacking(
        &self,
        whole: Option<NodeId>,
        part: Part,
        pack: bool,
    ) -> Result<Lacking, VolumeError> {
        let (tree, flushed, files) = {
            let _turn = self.inner.turn.lock();
            let (tree, flushed) = {
                let core = self.inner.core.lock();
                (core.tip.tree, core.is_flushed())
            };
            let changed = whole.and_then(|whole| self.changed_since(whole, &tree));
            let all = || contents(&self.inner.core.lock().state);
            (tree, flushed, changed.unwrap_or_else(all))
        };
        let (missing, more) = self.missing_of(&files, part)?;
        let is_here = missing.is_empty();
        let on_loan = is_here && self.is_on_loan(&files, pack)?;
        Ok(Lacking {
            root: tree.root,
            whole: is_here && flushed && !on_loan,
            on_loan,
            missing,
            more,
        })
    }

    /// The contents of the entries in which `tree` differs from another; none if that cannot be compared.
    fn changed_since(&self, base: NodeId, tree: &Tree) -> Option<Vec<Stored>> {
        let nodes = StoreNodes(&self.inner.config.store);
        let base = nodes.tree(base).ok()?;
        let mut files = Vec::new();
        for difference in Trees::new(&nodes).diff(&base, tree).ok()? {
            let difference = difference.ok()?;
            let Some(value) = difference.b else { continue };
            let key = codec::decode_key(&difference.key).ok()?;
            let entry = codec::decode_entry(&key, &value).ok()?;
            if let Entry::File(entry) = entry {
                files.extend(stored_versions(&entry));
            }
        }
        Some(files)
    }

    /// Whether some content has chunks that only plain files have, and no base record says that one holds this content:
    /// the next edit of those files may take them away. `pack`: they are stored.
    fn is_on_loan(&self, files: &[Stored], pack: bool) -> Result<bool, VolumeError> {
        let inner = &self.inner;
        if !inner.config.store.has_borrowed() {
            return Ok(false);
        }
        let lenders = inner.lenders.read().clone();
        for stored in files {
            if !inner
                .needs_plain_file(stored)
                .map_err(|error| unkept(&error))?
            {
                continue;
            }
            let is_held = lenders
                .as_ref()
                .map(|lenders| inner.is_lent(stored, lenders));
            if is_held
                .transpose()
                .map_err(|error| unkept(&error))?
                .unwrap_or(false)
            {
                continue;
            }
            if !pack {
                return Ok(true);
            }
            inner
                .pack_borrowed(stored)
                .map_err(|error| unkept(&error))?;
        }
        Ok(false)
    }

    /// The same for what lies at or below `path`.
    pub fn missing_below(&self, path: &[&[u8]], limit: usize) -> Result<Missing, VolumeError> {
        let files = {
            let core = self.inner.core.lock();
            let mut files = Vec::new();
            match node_at(&core.state, path) {
                Some(Node::Dir(dir)) => below(&core.state, dir.fid, &mut files),
                Some(node) => files.extend(stored_of(&node)),
                None => {}
            }
            files
        };
        let part = Part {
            from: 0,
            count: limit,
        };
        Ok(self.missing_of(&files, part)?.0)
    }

    /// What is missing of these chunks and nodes, each once: however much else is missing, no more than that is kept.
    pub fn missing_among(
        &self,
        chunks: &HashSet<ChunkHash>,
        nodes: &HashSet<NodeId>,
    ) -> Result<Missing, VolumeError> {
        let files = contents(&self.inner.core.lock().state);
        let (mut found, mut seen) = (Missing::default(), (HashSet::new(), HashSet::new()));
        for stored in &files {
            self.inner
                .each_missing(stored, &mut |absent| match absent {
                    Absent::Chunk(chunk) if chunks.contains(&chunk.hash) => {
                        if seen.0.insert(chunk.hash) {
                            found.chunks.push(chunk);
                        }
                    }
                    Absent::Node(kind, id) if nodes.contains(&id) => {
                        if seen.1.insert(id) {
                            found.nodes.push((kind, id));
                        }
                    }
                    Absent::Chunk(_) | Absent::Node(..) => {}
                })?;
        }
        Ok(found)
    }

    /// A part of what is missing, and whether there may be more behind it.
    fn missing_of(&self, files: &[Stored], part: Part) -> Result<(Missing, bool), VolumeError> {
        let mut picked = Picked::new(part);
        for stored in files {
            if picked.is_full() {
                return Ok((picked.tail, true));
            }
            self.inner
                .each_missing(stored, &mut |absent| picked.show(absent))?;
        }
        Ok(picked.finish())
    }

    /// Whether all content of what is shown is here.
    pub fn is_here(&self, node: &Node) -> bool {
        let stored = stored_of(node);
        stored.is_none_or(|stored| self.inner.presence_of(&stored) == Presence::Local)
    }

    /// What is shown at a path of names from the root.
    pub fn lookup_path(&self, path: &[&[u8]]) -> Option<Found> {
        let mut core = self.inner.core.lock();
        let Some((name, above)) = path.split_last() else {
            let node = core.state.dir(Fid::ROOT)?;
            return Some(Found {
                ino: Ino::ROOT,
                node: Node::Dir(node),
            });
        };
        let Node::Dir(parent) = node_at(&core.state, above)? else {
            return None;
        };
        let node = core.state.lookup(parent.fid, name)?;
        let spot = super::inodes::Spot {
            dir: parent.fid,
            name: Name::from(*name),
        };
        let ino = core.numbered(spot, node.clone()).ino();
        Some(Found { ino, node })
    }
}

impl Missing {
    pub fn len(&self) -> usize {
        self.chunks.len() + self.nodes.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Picks a part of what is missing out of all of it, as it is found.
#[derive(Debug)]
struct Picked {
    part: Part,
    found: usize,
    /// The first of what is left out, in case there is room for it.
    head: Missing,
    tail: Missing,
}

impl Picked {
    fn new(part: Part) -> Self {
        Self {
            part,
            found: 0,
            head: Missing::default(),
            tail: Missing::default(),
        }
    }

    fn show(&mut self, absent: Absent) {
        if let Some(missing) = self.place() {
            match absent {
                Absent::Chunk(chunk) => missing.chunks.push(chunk),
                Absent::Node(kind, id) => missing.nodes.push((kind, id)),
            }
        }
    }

    /// Where the next thing found is kept, if it is.
    fn place(&mut self) -> Option<&mut Missing> {
        let is_head = self.found < self.part.from;
        self.found += 1;
        let kept = match is_head {
            true => &mut self.head,
            false => &mut self.tail,
        };
        (kept.len() < self.part.count).then_some(kept)
    }

    fn is_full(&self) -> bool {
        self.tail.len() >= self.part.count
    }

    /// Everything was shown.
    fn finish(self) -> (Missing, bool) {
        let Self {
            part,
            found,
            mut head,
            mut tail,
        } = self;
        if found.saturating_sub(part.from) > tail.len() {
            return (tail, true);
        }
        let room = part.count - tail.len();
        head.chunks.truncate(room);
        head.nodes.truncate(room - head.chunks.len());
        tail.chunks.append(&mut head.chunks);
        tail.nodes.append(&mut head.nodes);
        (tail, false)
    }
}

pub(super) fn node_at(state: &State, path: &[&[u8]]) -> Option<Node> {
    let mut node = Node::Dir(state.dir(Fid::ROOT)?);
    for name in path {
        let Node::Dir(dir) = node else {
            return None;
        };
        node = state.lookup(dir.fid, name)?;
    }
    Some(node)
}

fn count(state: &State, is_elsewhere: &dyn Fn(Dot) -> bool) -> FolderStats {
    let mut stats = FolderStats::default();
    for (key, entry) in state.entries() {
        match entry {
            EntryRef::Head { .. } => {
                stats.dirs += u64::from(key.dir != Fid::ROOT && state.dir(key.dir).is_some());
            }
            EntryRef::File(entry) => {
                stats.files += entry.versions.len() as u64;
                for version in &entry.versions {
                    stats.bytes += version.size;
                    if !is_elsewhere(version.dot) {
                        stats.only_here_files += 1;
                        stats.only_here_bytes += version.size;
                    }
                }
            }
        }
    }
    stats
}

/// The contents of all versions.
pub(super) fn contents(state: &State) -> Vec<Stored> {
    let mut out = Vec::new();
    for (_, entry) in state.entries() {
        if let EntryRef::File(entry) = entry {
            out.extend(stored_versions(&entry));
        }
    }
    out
}

impl Inner {
    /// Whether a row says that a plain file holds this content. Where many files have its first chunk, that may not be
    /// found out.
    fn is_lent(&self, stored: &Stored, lenders: &Lenders) -> Result<bool, CommitError> {
        let nodes = StoreNodes(&self.config.store);
        let reader = ContentReader::new(&nodes, &stored.content.0, stored.size)
            .map_err(NodesError::<StoreError>::Input)?;
        let first = reader.locate(0..1)?;
        // Before the lock: who knows it has locks of its own.
        let keys = first.first().map(|first| lenders(&first.chunk.hash));
        let core = self.core.lock();
        Ok(keys.into_iter().flatten().any(|key| {
            let row = core.table.get(&key);
            let held = row.and_then(|row| (self.config.held_content)(&key, &row));
            held.is_some_and(|(content, _)| content[..] == stored.content.0[..])
        }))
    }
}

fn unkept(error: &CommitError) -> VolumeError {
    tracing::warn!(%error, "what only a plain file has cannot be kept");
    VolumeError::Io
}

fn stored_versions(entry: &FileEntry) -> impl Iterator<Item = Stored> + '_ {
    let files = entry
        .versions
        .iter()
        .filter(|version| version.kind == FileKind::File);
    files.map(|version| Stored {
        content: version.content.clone(),
        size: version.size,
    })
}

pub(super) fn below(state: &State, dir: Fid, out: &mut Vec<Stored>) {
    let mut dirs = vec![dir];
    while let Some(dir) = dirs.pop() {
        for (_, node) in state.list(dir) {
            match &node {
                Node::Dir(dir) => dirs.push(dir.fid),
                Node::File(_) => out.extend(stored_of(&node)),
            }
        }
    }
}

pub(super) fn stored_of(node: &Node) -> Option<Stored> {
    match node {
        Node::File(file) if file.version.kind == FileKind::File => Some(Stored {
            content: file.version.content.clone(),
            size: file.version.size,
        }),
        Node::File(_) | Node::Dir(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pick(all: usize, from: usize, count: usize) -> (Vec<u8>, bool) {
        let mut picked = Picked::new(Part { from, count });
        for n in 0..all {
            picked.show(Absent::Node(n as u8, NodeId::from_bytes([0; 32])));
        }
        let (missing, more) = picked.finish();
        (missing.nodes.into_iter().map(|(n, _)| n).collect(), more)
    }

    #[test]
    fn parts_of_what_is_missing_come_round() {
        assert_eq!(pick(0, 0, 3), (vec![], false));
        assert_eq!(pick(3, 0, 3), (vec![0, 1, 2], false));
        assert_eq!(pick(5, 0, 3), (vec![0, 1, 2], true));
        assert_eq!(pick(7, 3, 3), (vec![3, 4, 5], true));
        assert_eq!(pick(7, 6, 3), (vec![6, 0, 1], false));
        assert_eq!(pick(2, 6, 3), (vec![0, 1], false), "fewer than there were");
        assert_eq!(pick(2, 6, usize::MAX), (vec![0, 1], false));
    }
}
