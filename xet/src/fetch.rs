//! The only door outwards: asking somebody else for chunks that are not here.

use thiserror::Error;

use crate::hash::ChunkHash;

/// How urgent a fetch is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Priority {
    /// Nobody waits: pinning, prefetch of whole folders.
    Background,
    /// Somebody will probably read it soon: read-ahead.
    Soon,
    /// A read waits for it.
    Now,
}

/// Why chunks did not come.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum FetchError {
    /// Nobody reachable had all of them in time.
    #[error("{missing} chunks did not arrive in time")]
    Missing {
        /// Chunks still not here.
        missing: usize,
    },
    /// They came and could not be stored.
    #[error("fetched chunks cannot be stored: the disk is full")]
    NoSpace,
    /// The fetch was given up, by its caller or at shutdown.
    #[error("the fetch was cancelled")]
    Cancelled,
}

/// Called once, from any thread, when a fetch has ended.
pub type FetchDone = Box<dyn FnOnce(Result<(), FetchError>) + Send>;

/// Brings chunks into the store.
pub trait Fetch: Send + Sync {
    /// Asks for chunks and returns at once. `done` gets `Ok` once all of them are in the store,
    /// checked. Chunks may arrive one by one before; chunks that are there already are not asked
    /// for.
    fn fetch(&self, want: &[ChunkHash], priority: Priority, done: FetchDone);
}
