//! The kernel side of a ccbt mount.
//!
//! A [`Volume`] is what can be mounted; `fuse.rs` translates the kernel's requests to it. Nothing here knows a hash, a
//! peer or a folder.

mod attach;
mod counts;
mod errno;
mod error;
mod fuse;
#[doc(hidden)]
pub mod fuzzing;
mod handle;
mod inode;
mod invalidate;
mod memory;
mod mountinfo;
mod session;
mod volume;

pub use error::VolumeError;
pub use memory::MemoryVolume;
pub use mountinfo::{MountId, ParseMountIdError, is_ccbt_mount, is_fuse_mount, is_mount_point};
pub use session::{
    Mount, MountEnd, MountError, MountOptions, UnmountError, Unmounted, abort, detach_dead,
    detach_dead_mount, mount,
};
pub use volume::*;
