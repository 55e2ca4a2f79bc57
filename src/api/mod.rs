//! The JSON API between a daemon and those who command it: the types ([`types`]), what a daemon must be able to do
//! ([`Control`]), and the server and client that put HTTP between the two.

mod access;
mod client;
mod control;
mod error;
mod listen;
mod path;
mod server;
pub mod types;

pub use client::Client;
pub use control::{
    Control, NoProgress, ProgressReport, ProgressSink, Reply, Work, WorkItem, WorkKind,
};
pub use error::{ApiError, ErrorKind};
pub use path::escape;
pub use server::Server;

#[cfg(test)]
pub(crate) mod fake;
#[cfg(test)]
mod tests;
