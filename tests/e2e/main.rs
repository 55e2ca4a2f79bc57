//! End to end: real daemons, real FUSE mounts, real sockets on loopback. Needs /dev/fuse and, for mounts by root, root.
//!
//! Each test has its own state directories and ports. Contents are compared by hash on every side.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod bad_input;
mod conflicts;
mod keep;
mod kill;
mod main_job;
mod members;
mod scale;
mod support;
