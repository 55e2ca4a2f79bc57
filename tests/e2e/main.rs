//! End to end: real daemons, real FUSE mounts, real sockets on loopback. Needs /dev/fuse and, for mounts by root, root.
//!
//! Each test has its own state directories and ports. Contents are compared by hash on every side.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod bad_input;
mod capture;
mod catalogue;
mod clock;
mod confirm;
mod conflicts;
mod discovery;
mod full_disk;
mod handover;
mod home_fs;
mod hostile;
mod ignore;
mod keep;
mod kill;
mod main_job;
mod member;
mod members;
mod mounts;
mod netns;
mod only_here;
mod ordinary_user;
mod plain;
mod portmap;
mod quota;
mod replica_full;
mod scale;
mod seeders;
mod stores;
mod storm;
mod support;
mod upkeep;
mod wire;
