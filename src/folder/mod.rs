//! One folder's working tree: its state, the nodes it is stored as, its snapshots.

pub mod changes;
pub mod content;
pub mod encoding;
pub mod tree;
