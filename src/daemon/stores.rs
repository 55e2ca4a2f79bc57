//! The chunk stores of a state directory: one for each hash suite, since names of two suites never mix.
//!
//! `STATE/store` is the one of BLAKE3, which is always there. `STATE/store-sha256` is made for the first folder that
//! was created with that suite.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use ccbt_xet::disk::{Disk, RealDisk};
use ccbt_xet::hash::Suite;
use ccbt_xet::store::{OpenStoreError, Store, StoreOptions, StoreStats};
use parking_lot::Mutex;

use super::place;
use crate::api::{ApiError, ErrorKind};
use crate::config::StateDir;

/// The stores that are open.
#[derive(Debug)]
pub(super) struct Stores {
    state: PathBuf,
    blake3: Arc<Store>,
    sha256: Mutex<Option<Arc<Store>>>,
}

impl Stores {
    /// Opens every store that is there, and that of BLAKE3.
    pub(super) fn open(state: &StateDir, cache_bytes: usize) -> Result<Self, ApiError> {
        let state = state.path().to_path_buf();
        let stores = Self {
            blake3: open(&state, Suite::Blake3, |dir, disk, options| {
                let options = StoreOptions {
                    cache_bytes,
                    ..options
                };
                Store::open(dir, disk, options)
            })?,
            sha256: Mutex::new(None),
            state,
        };
        if dir(&stores.state, Suite::Sha256).exists() {
            stores.of(Suite::Sha256)?;
        }
        Ok(stores)
    }

    /// The store of a suite. The first time, this may read a lot.
    pub(super) fn of(&self, suite: Suite) -> Result<Arc<Store>, ApiError> {
        if suite == Suite::Blake3 {
            return Ok(Arc::clone(&self.blake3));
        }
        let mut sha256 = self.sha256.lock();
        if let Some(store) = &*sha256 {
            return Ok(Arc::clone(store));
        }
        // One budget for what is decoded, however many stores there are.
        let store = open(&self.state, suite, |dir, disk, options| {
            Store::open_beside(&self.blake3, dir, disk, options)
        })?;
        *sha256 = Some(Arc::clone(&store));
        Ok(store)
    }

    /// All that are open.
    pub(super) fn all(&self) -> Vec<Arc<Store>> {
        let sha256 = self.sha256.lock().clone();
        std::iter::once(Arc::clone(&self.blake3))
            .chain(sha256)
            .collect()
    }
}

/// Sizes and counts of stores together.
pub(super) fn stats(stores: &[Arc<Store>]) -> StoreStats {
    let mut sum = StoreStats::default();
    for stats in stores.iter().map(|store| store.stats()) {
        sum.chunks += stats.chunks;
        sum.nodes += stats.nodes;
        sum.bytes += stats.bytes;
        sum.packs += stats.packs;
        sum.borrowed += stats.borrowed;
        sum.borrowed_bytes += stats.borrowed_bytes;
        sum.quarantined += stats.quarantined;
        sum.memory_bytes += stats.memory_bytes;
    }
    sum
}

fn dir(state: &Path, suite: Suite) -> PathBuf {
    state.join(match suite {
        Suite::Blake3 => "store",
        Suite::Sha256 => "store-sha256",
    })
}

fn open(
    state: &Path,
    suite: Suite,
    open: impl FnOnce(&Path, Arc<dyn Disk>, StoreOptions) -> Result<Store, OpenStoreError>,
) -> Result<Arc<Store>, ApiError> {
    let options = StoreOptions {
        suite,
        ..StoreOptions::default()
    };
    let opened = open(&dir(state, suite), Arc::new(RealDisk), options);
    opened.map(Arc::new).map_err(|error| match &error {
        OpenStoreError::Io { path, source } => {
            let path = place::shown(path);
            ApiError::io(format_args!("cannot open the store: {path}"), source)
        }
        OpenStoreError::Version { .. } => ApiError::new(ErrorKind::Refused, &error)
            .hint("use the version of ccbt that made it, or another directory with --state"),
        OpenStoreError::Suite { .. } => ApiError::new(ErrorKind::Refused, &error)
            .hint("it was moved here: put it back where it was"),
        OpenStoreError::Format { .. } => ApiError::new(ErrorKind::Io, &error),
    })
}
