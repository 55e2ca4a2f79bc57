//! The state of a folder as a Merkle map: an ordered map from byte keys to byte values, kept in
//! immutable nodes that are named by their content (docs/formats/tree.md).
//!
//! Where a node ends depends on the keys in it and not on the order of edits, so equal maps have
//! equal roots on every device, an edit rewrites one leaf and the path above it, and two maps are
//! compared by skipping what has equal names. Nothing here knows what keys and values mean, where
//! nodes are stored, or how missing ones are fetched: that is behind [`Nodes`].

mod cursor;
mod diff;
mod edit;
mod memory;
mod node;

#[cfg(test)]
mod tests;

use std::collections::HashSet;
use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use ccbt_xet::hash::NodeId;
use thiserror::Error;

pub use cursor::Range;
pub use diff::{Diff, Difference};
pub use memory::MemoryNodes;
pub use node::{MAX_NODE_LEN, MAX_VALUE_LEN};

use self::node::{Child, Chunker, Finished, Item, Link, Node, Rules, empty_leaf, kind_of};
use super::encoding::DecodeError;

/// Shortest key in bytes: a directory id.
pub const MIN_KEY_LEN: usize = 8;
/// Longest key in bytes: a directory id and the longest name.
pub const MAX_KEY_LEN: usize = MIN_KEY_LEN + 255;

/// What a node is; part of what its name is computed from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum NodeKind {
    /// Entries of the map.
    TreeLeaf = 1,
    /// Children of the map.
    TreeInner = 2,
    /// Part of a file's list of chunks.
    Segment = 3,
    /// List of segments, or of such lists.
    SegmentIndex = 4,
    /// Root and version vector of a folder.
    Snapshot = 5,
}

impl NodeKind {
    /// The number that stands for the kind in formats and messages.
    pub const fn code(self) -> u8 {
        self as u8
    }

    /// The kind of this number, if it is one.
    pub const fn from_code(code: u8) -> Option<Self> {
        match code {
            1 => Some(Self::TreeLeaf),
            2 => Some(Self::TreeInner),
            3 => Some(Self::Segment),
            4 => Some(Self::SegmentIndex),
            5 => Some(Self::Snapshot),
            _ => None,
        }
    }
}

/// Kind and name of a node: what it takes to ask for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct NodeRef {
    /// What the node is.
    pub kind: NodeKind,
    /// Its name.
    pub id: NodeId,
}

impl fmt::Display for NodeRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} {}", self.kind, self.id)
    }
}

/// Where nodes are kept. The implementation answers for the bytes being those that `id` names; all
/// that they say is checked here.
pub trait Nodes {
    /// What can go wrong in the store itself.
    type Error;

    /// Bytes of a node, or none if it is not here.
    fn get(&self, kind: NodeKind, id: &NodeId) -> Result<Option<Bytes>, Self::Error>;

    /// Keeps a node. Putting one that is here already changes nothing.
    fn put(&self, kind: NodeKind, id: &NodeId, bytes: Bytes) -> Result<(), Self::Error>;

    /// Whether a node is here.
    fn has(&self, kind: NodeKind, id: &NodeId) -> Result<bool, Self::Error> {
        Ok(self.get(kind, id)?.is_some())
    }
}

/// Why an operation on nodes could not be done; `E` is the store's own error.
#[derive(Debug, PartialEq, Eq, Error)]
pub enum NodesError<E> {
    /// Nodes that are not here: fetch these, then try again.
    #[error("{} nodes are missing, the first is {:?}", .0.len(), .0.first())]
    Missing(Vec<NodeRef>),
    /// A node breaks the format.
    #[error("bad node {node}: {reason}")]
    Malformed {
        /// The node.
        node: NodeRef,
        /// The rule it breaks.
        reason: DecodeError,
    },
    /// Something given to be stored does not fit the format.
    #[error("cannot be stored: {0}")]
    Input(DecodeError),
    /// The store failed.
    #[error("node store: {0}")]
    Store(E),
}

/// Handle of one map: the name of its root and how many levels lie below that.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Tree {
    /// Name of the root node.
    pub root: NodeId,
    /// Level of the root node: 0 if it is a leaf.
    pub height: u8,
}

impl Tree {
    /// The root node.
    pub fn root_ref(&self) -> NodeRef {
        NodeRef {
            kind: kind_of(self.height),
            id: self.root,
        }
    }

    fn link(&self) -> Link {
        Link {
            level: self.height,
            id: self.root,
            first: None,
            upper: None,
            entries: None,
        }
    }
}

/// The maps whose nodes lie in one store.
#[derive(Debug)]
pub struct Trees<'n, N: ?Sized> {
    nodes: &'n N,
    rules: Rules,
}

impl<N: ?Sized> Clone for Trees<'_, N> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<N: ?Sized> Copy for Trees<'_, N> {}

impl<'n, N: Nodes + ?Sized> Trees<'n, N> {
    /// Works on the maps in `nodes`.
    pub fn new(nodes: &'n N) -> Self {
        Self {
            nodes,
            rules: Rules::FORMAT,
        }
    }

    /// Builds a map from its entries, which come in strictly ascending order of keys.
    pub fn build(
        &self,
        entries: impl IntoIterator<Item = (Bytes, Bytes)>,
    ) -> Result<Tree, NodesError<N::Error>> {
        let mut chunker = Chunker::new(0, self.rules);
        let mut leaves = Vec::new();
        let mut last: Option<Bytes> = None;
        for (key, value) in entries {
            check_entry(last.as_deref(), &key, &value).map_err(NodesError::Input)?;
            if let Some(leaf) = chunker.push(&Item::entry(key.clone(), &value)) {
                leaves.push(self.keep(0, leaf)?);
            }
            last = Some(key);
        }
        if let Some(leaf) = chunker.finish() {
            leaves.push(self.keep(0, leaf)?);
        }
        self.build_above(0, leaves)
    }

    /// The value at `key`.
    pub fn get(&self, tree: &Tree, key: &[u8]) -> Result<Option<Bytes>, NodesError<N::Error>> {
        let mut link = tree.link();
        loop {
            let node = self.load(&link)?;
            if node.level == 0 {
                let i = node.lower_bound(key);
                let found = i < node.len() && node.key(i) == key;
                return Ok(found.then(|| node.value(i)));
            }
            link = node.link(node.child_for(key), link.upper.as_ref());
        }
    }

    /// Number of entries.
    pub fn len(&self, tree: &Tree) -> Result<u64, NodesError<N::Error>> {
        Ok(self.load(&tree.link())?.entries())
    }

    /// Adds every node of a map to `seen`, but for those below what is there already. Whether all but the leaves, at
    /// which nobody looks, are here: what is below a missing node is not known.
    pub fn add_nodes(
        &self,
        tree: &Tree,
        seen: &mut HashSet<NodeId>,
    ) -> Result<bool, NodesError<N::Error>> {
        let (mut todo, mut whole) = (vec![tree.link()], true);
        while let Some(link) = todo.pop() {
            if !seen.insert(link.id) || link.level == 0 {
                continue;
            }
            match self.try_load(&link)? {
                Some(node) => {
                    let links = (0..node.len()).map(|i| node.link(i, link.upper.as_ref()));
                    todo.extend(links);
                }
                None => whole = false,
            }
        }
        Ok(whole)
    }

    /// Entries from the first key at or above `from` to the end, ascending. After an error the
    /// iterator ends.
    pub fn range(&self, tree: &Tree, from: &[u8]) -> Range<'n, N> {
        Range::new(*self, tree, from)
    }

    /// Puts the levels above `children`, nodes of `level`, until one has a single node.
    fn build_above(
        &self,
        mut level: u8,
        mut children: Vec<Child>,
    ) -> Result<Tree, NodesError<N::Error>> {
        while children.len() > 1 {
            if level == self.rules.max_level {
                return Err(NodesError::Input(DecodeError::Rule(
                    "the map has too many levels",
                )));
            }
            level += 1;
            children = self.build_level(level, &children)?;
        }
        let root = match children.pop() {
            Some(child) => child,
            None => self.keep(0, empty_leaf())?,
        };
        Ok(Tree {
            root: root.id,
            height: level,
        })
    }

    fn build_level(
        &self,
        level: u8,
        children: &[Child],
    ) -> Result<Vec<Child>, NodesError<N::Error>> {
        let mut chunker = Chunker::new(level, self.rules);
        let mut parents = Vec::new();
        for child in children {
            if let Some(parent) = chunker.push(&child.item) {
                parents.push(self.keep(level, parent)?);
            }
        }
        if let Some(parent) = chunker.finish() {
            parents.push(self.keep(level, parent)?);
        }
        Ok(parents)
    }

    /// Stores a node of `level`.
    fn keep(&self, level: u8, node: Finished) -> Result<Child, NodesError<N::Error>> {
        self.nodes
            .put(kind_of(level), &node.child.id, node.bytes)
            .map_err(NodesError::Store)?;
        Ok(node.child)
    }

    /// Loads a node and checks it, also against the node that refers to it.
    fn load(&self, link: &Link) -> Result<Arc<Node>, NodesError<N::Error>> {
        match self.try_load(link)? {
            Some(node) => Ok(node),
            None => Err(NodesError::Missing(vec![link_ref(link)])),
        }
    }

    fn try_load(&self, link: &Link) -> Result<Option<Arc<Node>>, NodesError<N::Error>> {
        let node = link_ref(link);
        let malformed = |reason| NodesError::Malformed { node, reason };
        if link.level > self.rules.max_level {
            return Err(malformed(DecodeError::Rule("the tree has too many levels")));
        }
        let Some(bytes) = self
            .nodes
            .get(node.kind, &node.id)
            .map_err(NodesError::Store)?
        else {
            return Ok(None);
        };
        let parsed = Node::parse(link.level, bytes, &self.rules).map_err(malformed)?;
        parsed.check_link(link).map_err(malformed)?;
        Ok(Some(Arc::new(parsed)))
    }
}

fn link_ref(link: &Link) -> NodeRef {
    NodeRef {
        kind: kind_of(link.level),
        id: link.id,
    }
}

/// Checks lengths and order of an entry that is to be stored.
fn check_entry(last: Option<&[u8]>, key: &[u8], value: &[u8]) -> Result<(), DecodeError> {
    use super::encoding::in_range;
    in_range(
        "key length",
        key.len() as u64,
        MIN_KEY_LEN as u64,
        MAX_KEY_LEN as u64,
    )?;
    in_range("entry length", value.len() as u64, 0, MAX_VALUE_LEN as u64)?;
    if last.is_some_and(|last| last >= key) {
        return Err(DecodeError::Order("keys"));
    }
    Ok(())
}
