//! Nodes in memory: the double that tests use in place of a store.

use std::collections::HashMap;
use std::convert::Infallible;

use bytes::Bytes;
use ccbt_xet::hash::NodeId;
use parking_lot::RwLock;

use super::{NodeKind, NodeRef, Nodes};

/// Keeps every node that is put, and counts them.
#[derive(Debug, Default)]
pub struct MemoryNodes {
    kept: RwLock<HashMap<NodeRef, Bytes>>,
}

impl MemoryNodes {
    /// An empty store.
    pub fn new() -> Self {
        Self::default()
    }

    /// Names of all nodes, in no particular order.
    pub fn refs(&self) -> Vec<NodeRef> {
        self.kept.read().keys().copied().collect()
    }

    /// Length of all nodes together in bytes.
    pub fn total_len(&self) -> usize {
        self.kept.read().values().map(Bytes::len).sum()
    }

    /// Forgets a node; returns its bytes.
    pub fn remove(&self, node: &NodeRef) -> Option<Bytes> {
        self.kept.write().remove(node)
    }

    /// Copies a node from another store; returns whether that has it.
    pub fn copy_from(&self, other: &Self, node: &NodeRef) -> bool {
        let bytes = other.kept.read().get(node).cloned();
        let found = bytes.is_some();
        self.kept.write().extend(bytes.map(|bytes| (*node, bytes)));
        found
    }
}

impl Nodes for MemoryNodes {
    type Error = Infallible;

    fn get(&self, kind: NodeKind, id: &NodeId) -> Result<Option<Bytes>, Infallible> {
        Ok(self.kept.read().get(&NodeRef { kind, id: *id }).cloned())
    }

    fn put(&self, kind: NodeKind, id: &NodeId, bytes: Bytes) -> Result<(), Infallible> {
        self.kept.write().insert(NodeRef { kind, id: *id }, bytes);
        Ok(())
    }
}
