//! ccbt: a peer-to-peer filesystem you mount.

pub mod api;
pub mod cli;
pub mod config;
pub mod daemon;
pub mod telemetry;
