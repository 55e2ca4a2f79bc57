//! The JSON API between a daemon and those who command it: the types ([`types`]), what a daemon must be able to do
//! ([`Control`]), and the server and client that put HTTP between the two.

mod control;
mod error;
mod path;
pub mod types;

pub use control::{
    Control, NoProgress, ProgressReport, ProgressSink, Reply, Work, WorkItem, WorkKind,
};
pub use error::{ApiError, ErrorKind};
pub use path::escape;
