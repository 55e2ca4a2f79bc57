//! Tests of the whole crate on real mounts: the kernel is the client. They need `/dev/fuse`; most also run as an ordinary
//! user, those that need root do nothing then.

mod invalidation;
mod killed;
mod lifecycle;
mod semantics;
mod stalling;
mod support;
