//! One folder: what it is ([`state`]), the nodes it is stored as ([`tree`], [`content`]), and, on a disk, its working
//! tree.

pub mod content;
pub mod encoding;
pub mod state;
pub mod tree;
