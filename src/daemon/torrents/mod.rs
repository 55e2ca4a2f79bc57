//! Torrents of the daemon: begun by `download`, remembered in a folder of their own each, opened again at every start.
//!
//! - `record`: what is remembered of one. `settings`: what is different for one. `add`: from a request or a record to a running torrent, and waiting for it.
//! - `keep`: from one run to the next: opening again, keeping metadata, closing.
//! - `command`: what a user does with one. `list`: what a user sees of them.
//! - `queue`: what is looked at for all of them together.

mod add;
mod command;
mod keep;
mod list;
mod queue;
mod record;
mod settings;

use std::path::PathBuf;
use std::sync::Weak;
use std::sync::atomic::AtomicBool;

use parking_lot::Mutex;

use self::record::TorrentRecord;
pub(super) use self::record::parse_record;
use super::{Daemon, Inner};
use crate::api::ApiError;
use crate::api::types::*;
use crate::clock::Elapsed;
use crate::config::Config;
use crate::engine::limits::Level;
use crate::engine::torrent::disk::DiskPool;
use crate::engine::torrent::lend::Lenders;
use crate::engine::torrent::slab::SlabPool;
use crate::engine::torrent::{self, TorrentHandle};
use crate::proto::metainfo::InfoHashes;
use crate::random;

/// Client and version in our peer id (BEP 20).
const PEER_ID_HEAD: &[u8; 8] = b"-CC0100-";

/// A torrent that runs.
pub(super) struct OpenTorrent {
    handle: TorrentHandle,
    hashes: InfoHashes,
    record: Mutex<TorrentRecord>,
    /// The folder of the record.
    state: PathBuf,
    hash: String,
    /// Something of the metadata was missing at the start; with the trackers to keep it with.
    keeps: Option<Vec<Vec<String>>>,
    /// It waits in the queue.
    waits: AtomicBool,
    /// It has been paused because it had seeded enough.
    rested: AtomicBool,
    /// Bytes received, sent and wasted that are in the metrics already.
    counted: Mutex<(u64, u64, u64)>,
}

/// What all torrents of a daemon have in common.
pub(super) fn shared(config: &Config) -> Result<torrent::Shared, ApiError> {
    let disk = DiskPool::start().map_err(|error| ApiError::io("cannot start threads", &error))?;
    let mut peer_id = random::bytes::<20>();
    if let Some(head) = peer_id.first_chunk_mut() {
        *head = *PEER_ID_HEAD;
    }
    Ok(torrent::Shared {
        disk,
        slabs: SlabPool::default(),
        limits: Level::new(Elapsed::start(), settings::shared_rates(config)),
        peer_id,
    })
}

impl OpenTorrent {
    pub(super) fn dir(&self) -> ApiPath {
        self.record.lock().dir.clone()
    }

    /// It is there for mounts alone.
    pub(super) fn is_lazy(&self) -> bool {
        self.record.lock().lazy
    }

    fn save(&self) -> Result<(), ApiError> {
        record::save(&self.state, &self.record.lock())
    }
}

/// The torrents of the daemon, for one that looks for content in the others.
struct Others(Weak<Inner>);

impl std::fmt::Debug for Others {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Others")
    }
}

impl Lenders for Others {
    fn lenders(&self, but: &[u8; 20]) -> Vec<TorrentHandle> {
        let Some(daemon) = self.0.upgrade() else {
            return Vec::new();
        };
        let torrents = daemon.torrents.lock();
        let others = torrents.values().filter(|open| open.hashes.short() != *but);
        others.map(|open| open.handle.clone()).collect()
    }
}

impl Daemon {
    fn torrents_dir(&self) -> PathBuf {
        self.0.state.path().join("torrents")
    }
}

/// 40 hex digits that name the torrent.
fn name_of(hashes: &InfoHashes) -> String {
    let short = short_hashes(hashes).next().unwrap_or_default();
    data_encoding::HEXLOWER.encode(&short)
}

/// What stands for the torrent in handshakes, the v1 hash first.
fn short_hashes(hashes: &InfoHashes) -> impl Iterator<Item = [u8; 20]> + use<> {
    let v1 = hashes.v1.map(|hash| hash.0);
    v1.into_iter().chain(hashes.v2.map(|hash| hash.short()))
}
