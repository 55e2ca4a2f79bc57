//! One folder's working tree: its state, the nodes it is stored as, its snapshots.

pub mod changes;
pub mod content;
pub mod encoding;
pub mod tree;
//! One folder's working tree. So far its [`state`]: what a folder is, how two copies of it come together, what the
//! user sees of it and how an operation changes it.

pub mod state;
