//! Room for what is fetched: the configured quota of the store, and a disk that is full.
//!
//! What goes is what has lain in the store longest, and only where `ccbt evict` would let it go: a keeper that is connected
//! holds the very tree shown here, and the folder is neither pinned nor kept in a plain directory. Everything else stays,
//! so the store may be larger than its quota.

use std::cell::Cell;
use std::collections::HashSet;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::Duration;

use ccbt_xet::hash::{ChunkHash, NodeId};
use ccbt_xet::store::{Reclaimed, Store, WriteError};
use tokio::runtime::Handle;

use super::open::{OpenFolder, blocking};
use super::{Daemon, Inner, stores};
use crate::api::ApiError;
use crate::engine::swarm::SwarmHandle;
use crate::folder::work::{Fetch, Fetched, Priority, WantedChunk};

/// Between two looks at how much there is, with a quota.
const LOOK: Duration = Duration::from_secs(1);
/// After a look that found nothing to drop: each goes through the lists of all files.
const FRUITLESS: Duration = Duration::from_secs(30);
/// Above the quota, the store is brought down to this part of it in tenths, so that not every chunk that comes makes
/// another go.
const QUOTA_TENTHS: u64 = 9;
/// What a full disk is given: this part of the store, and at least these bytes, so that a whole pack goes: one that is not
/// empty takes room before it gives any.
const ROOM_MIN: u64 = 128 << 20;
const ROOM_PART: u64 = 8;
/// With as much free, in bytes, somebody else has made room meanwhile.
const ROOM_ENOUGH: u64 = 16 << 20;
/// A reader waits this long for a call that changes the folders, then gets the error.
const TURN_TIME: Duration = Duration::from_secs(5);

impl Daemon {
    /// Keeps the store within its quota until the daemon stops.
    pub(super) fn start_quota(&self) {
        let Some(quota) = self.0.config.store_quota_bytes else {
            return;
        };
        let inner = Arc::downgrade(&self.0);
        tokio::spawn(async move {
            let mut wait = LOOK;
            loop {
                tokio::time::sleep(wait).await;
                let Some(daemon) = inner.upgrade().map(Self) else {
                    return;
                };
                if daemon.0.stopping.load(Ordering::Relaxed) {
                    return;
                }
                let bytes = stores::stats(&daemon.0.stores.all()).bytes;
                let above = bytes > quota;
                wait = LOOK;
                if above && daemon.make_room(bytes - quota / 10 * QUOTA_TENTHS).await == 0 {
                    wait = FRUITLESS;
                }
            }
        });
    }

    /// Drops about `bytes` of what others hold and nothing here needs. Returns how many the disk has got back.
    async fn make_room(&self, bytes: u64) -> u64 {
        let Ok(_turn) = tokio::time::timeout(TURN_TIME, self.0.turn.lock()).await else {
            return 0;
        };
        let open: Vec<Arc<OpenFolder>> = self.0.folders.lock().values().cloned().collect();
        let mut freed = 0;
        for open in open {
            if freed >= bytes {
                break;
            }
            match self.evict_open(&open, Vec::new(), bytes - freed).await {
                Ok(evicted) => freed += evicted.freed.bytes,
                Err(error) => {
                    tracing::warn!(error = error.message, "nothing of a folder is dropped");
                }
            }
        }
        if freed > 0 {
            tracing::info!(bytes = freed, "dropped what others hold");
        }
        freed
    }

    /// The disk of the state directory is full: whether there is room now.
    async fn make_room_on_disk(&self) -> bool {
        let free = self.0.state.path().to_path_buf();
        let is_enough = move || -> Result<bool, ApiError> {
            let stat = rustix::fs::statvfs(&free).map_err(std::io::Error::from);
            Ok(stat.is_ok_and(|stat| stat.f_bavail * stat.f_frsize >= ROOM_ENOUGH))
        };
        if blocking(is_enough.clone()).await.unwrap_or(false) {
            return true;
        }
        let bytes = stores::stats(&self.0.stores.all()).bytes;
        self.make_room((bytes / ROOM_PART).max(ROOM_MIN)).await > 0
    }
}

/// The way of a folder to its peers, and to room for what they send.
pub(super) struct Fetcher {
    pub(super) swarm: SwarmHandle,
    pub(super) daemon: Weak<Inner>,
    pub(super) runtime: Handle,
}

impl Fetch for Fetcher {
    fn chunks(&self, want: Vec<WantedChunk>, priority: Priority, done: Fetched) {
        self.swarm.chunks(want, priority, done);
    }

    fn nodes(&self, want: Vec<(u8, NodeId)>, priority: Priority, done: Fetched) {
        self.swarm.nodes(want, priority, done);
    }

    fn ahead(&self, want: Vec<WantedChunk>, interest: Weak<()>, done: Fetched) {
        self.swarm.ahead(want, interest, done);
    }

    fn make_room(&self) -> bool {
        let Some(daemon) = self.daemon.upgrade().map(Daemon) else {
            return false;
        };
        self.runtime.block_on(daemon.make_room_on_disk())
    }
}

/// Chunks that may go, until enough have.
pub(super) struct Ration {
    /// How many more.
    left: Cell<u64>,
}

impl Ration {
    /// For about `bytes`, of chunks that have `total` bytes in all.
    pub(super) fn new(bytes: u64, chunks: usize, total: u64) -> Self {
        let size = (total / (chunks as u64).max(1)).max(1);
        Self {
            left: Cell::new(bytes.div_ceil(size)),
        }
    }

    /// Whether this one goes.
    pub(super) fn take(&self) -> bool {
        let left = self.left.get();
        self.left.set(left.saturating_sub(1));
        left > 0
    }
}

/// Drops every chunk in `spare`, the oldest packs first, as far as the ration goes.
pub(super) fn drop_oldest(
    store: &Store,
    spare: &HashSet<ChunkHash>,
    ration: &Ration,
) -> Result<Reclaimed, WriteError> {
    // What has left the index already is in a pack until that is emptied.
    let goes = |hash: &ChunkHash| spare.contains(hash) && store.is_packed(hash) && ration.take();
    store.remove(&|hash| !goes(hash))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ration_ends() {
        let ration = Ration::new(100, 10, 640);
        let taken = (0..10).filter(|_| ration.take()).count();
        assert_eq!(taken, 2, "of 64 bytes each");
        let all = Ration::new(u64::MAX, 10, 640);
        assert!((0..10).all(|_| all.take()));
        let none = Ration::new(1, 0, 0);
        assert!(none.take());
    }
}
