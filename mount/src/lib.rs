//! The kernel side of a ccbt mount.
//!
//! A [`Volume`] is what can be mounted; `fuse.rs` translates the kernel's requests to it. Nothing here knows a hash, a
//! peer or a folder.

mod error;
mod volume;

pub use error::VolumeError;
pub use volume::*;
