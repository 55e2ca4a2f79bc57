//! ccbt: a peer-to-peer filesystem you mount.

pub mod api;
pub mod config;
pub mod telemetry;
