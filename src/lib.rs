//! ccbt: a peer-to-peer filesystem you mount.

pub mod folder;
pub mod volume;
