//! One folder's working tree: its [`state`] (what a folder is, how two copies of it come together, what the user sees of
//! it), and the bytes that state is stored and sent as.

pub mod changes;
pub mod codec;
pub mod content;
pub mod encoding;
pub mod home;
pub mod snapshot;
pub mod state;
pub mod tree;
