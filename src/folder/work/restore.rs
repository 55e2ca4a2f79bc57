//! The tree of the state, where nodes of it have gone from the store: written anew.
//!
//! All of the state is in memory, and a tree is the same however it came to be, so no peer is needed for it. The next start is
//! different: it has only the tree. What a crash may lose: nothing. Until the checkpoint is durable that ends this, what was damaged
//! still is.

use std::collections::HashSet;

use super::checkpoint;
use super::nodes::StoreNodes;
use super::publish::FlushError;
use super::{Folder, Inner};
use crate::folder::tree::{Tree, Trees};

impl Folder {
    /// Writes the tree again, if not all of its nodes are in the store. Whether that was so.
    pub fn restore_tree(&self) -> Result<bool, FlushError> {
        let _turn = self.inner.turn.lock();
        if self.inner.is_tree_here()? {
            return Ok(false);
        }
        tracing::warn!(dir = ?self.inner.config.dir, "the tree of a folder is not whole, it is written again");
        self.inner.write_whole_tree()?;
        self.inner.checkpoint()?;
        Ok(true)
    }
}

impl Inner {
    /// Whether the store has every node of the tree as last written, and as the next start finds it.
    fn is_tree_here(&self) -> Result<bool, FlushError> {
        let tip = self.core.lock().tip.tree;
        let saved = checkpoint::load(self.config.disk.as_ref(), &self.config.dir)?;
        let saved = saved.map(|saved| saved.tip.tree);
        for tree in std::iter::once(tip).chain(saved) {
            if !self.has_nodes_of(&tree)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn has_nodes_of(&self, tree: &Tree) -> Result<bool, FlushError> {
        let (nodes, mut named) = (StoreNodes(&self.config.store), HashSet::new());
        // One that does not say what its name stands for is as good as none.
        let is_whole = Trees::new(&nodes).add_nodes(tree, &mut named);
        let is_whole = is_whole.unwrap_or(false);
        Ok(is_whole && named.iter().all(|id| self.config.store.contains_node(id)))
    }
}
