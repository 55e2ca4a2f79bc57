//! ccbt: a peer-to-peer filesystem you mount.

pub mod api;
pub mod cli;
pub mod clock;
pub mod config;
pub mod daemon;
pub mod engine;
pub mod folder;
#[doc(hidden)]
pub mod fuzzing;
pub mod net;
pub mod proto;
pub mod random;
pub mod share;
pub mod state_file;
pub mod telemetry;
pub mod volume;
