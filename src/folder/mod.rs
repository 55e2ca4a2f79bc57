//! One folder: what it is ([`state`]), the nodes it is stored as ([`tree`], [`content`]), and the live file system over
//! all of it ([`work`]).
//! One folder's working tree: its [`state`] (what a folder is, how two copies of it come together,
//! what the user sees of it), the bytes that the state is stored and sent as, and the live file system
//! over all of it ([`work`]).

mod byte_map;
pub mod changes;
pub mod codec;
pub mod content;
pub mod encoding;
pub mod home;
pub mod snapshot;
pub mod state;
pub mod tree;
pub mod work;
