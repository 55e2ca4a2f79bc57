//! The store as the place where tree and recipe nodes are kept.

use bytes::Bytes;
use ccbt_xet::hash::NodeId;
use ccbt_xet::store::{ReadError, Store, WriteError};

use crate::folder::tree::{NodeKind, NodeRef, Nodes, NodesError, Tree};

/// The node half of a store.
#[derive(Clone, Copy)]
pub(crate) struct StoreNodes<'s>(pub(crate) &'s Store);

/// Why the store failed.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error(transparent)]
    Write(#[from] WriteError),
}

impl Nodes for StoreNodes<'_> {
    type Error = StoreError;

    fn get(&self, _kind: NodeKind, id: &NodeId) -> Result<Option<Bytes>, StoreError> {
        Ok(self.0.node(id)?)
    }

    fn put(&self, kind: NodeKind, id: &NodeId, bytes: Bytes) -> Result<(), StoreError> {
        self.0.put_node(kind.code(), id, &bytes)?;
        Ok(())
    }

    fn has(&self, _kind: NodeKind, id: &NodeId) -> Result<bool, StoreError> {
        Ok(self.0.contains_node(id))
    }
}

impl StoreNodes<'_> {
    /// The tree with this root. A snapshot does not say whether its root is a leaf, so a missing one is wanted as
    /// either: the name fits only one kind.
    pub(super) fn tree(&self, root: NodeId) -> Result<Tree, NodesError<StoreError>> {
        let Some(bytes) = self
            .0
            .node(&root)
            .map_err(|error| NodesError::Store(error.into()))?
        else {
            let wanted = |kind| NodeRef { kind, id: root };
            return Err(NodesError::Missing(vec![
                wanted(NodeKind::TreeLeaf),
                wanted(NodeKind::TreeInner),
            ]));
        };
        let is_leaf = ccbt_xet::hash::node_id(NodeKind::TreeLeaf.code(), &bytes) == root;
        // An inner node begins with its level.
        let height = if is_leaf {
            0
        } else {
            bytes.first().copied().unwrap_or(0)
        };
        Ok(Tree { root, height })
    }
}
