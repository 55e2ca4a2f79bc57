//! ccbt: a peer-to-peer filesystem you mount.

pub mod api;
pub mod clock;
pub mod folder;
pub mod net;
pub mod proto;
pub mod random;
pub mod share;
pub mod state_file;
