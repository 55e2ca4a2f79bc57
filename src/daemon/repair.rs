//! Getting back what was found damaged: from plain files, from memory, from peers.
//!
//! The stores name what is damaged once. It is kept here until it is in a store again or no folder that is open misses it any more,
//! and tried again ever more rarely: a peer that has it may come later, and a full disk may have room later. What a crash
//! loses of that is found by the next check, or missed by the folder that needs it.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ccbt_xet::hash::{ChunkHash, NodeId};
use ccbt_xet::store::Store;

use super::Daemon;
use super::keep::fetch;
use super::open::{OpenFolder, blocking};
use super::store::{read_failed, write_failed};
use crate::api::types::Progress;
use crate::api::{ApiError, ErrorKind, NoProgress, ProgressSink};
use crate::folder::work::Missing;

/// Rounds of fetching what was damaged: nodes lead to more nodes, then to chunks.
const ROUNDS_MAX: usize = 32;

/// Things asked for in one round where nobody can name what is damaged.
const ROUND_MAX: usize = 4096;

/// Time between two tries to get back the same, which doubles from the first to the last.
const RETRY_TIME_MIN: Duration = Duration::from_secs(60);
const RETRY_TIME_MAX: Duration = Duration::from_secs(6 * 3600);

/// What was found damaged and is not here again.
#[derive(Debug, Default)]
pub(super) struct Lost {
    damaged: Damaged,
    /// Tries since something was added.
    tries: u32,
    tried: Option<Instant>,
}

impl Lost {
    fn is_due(&self) -> bool {
        let wait = RETRY_TIME_MIN
            .saturating_mul(2_u32.saturating_pow(self.tries.saturating_sub(1).min(16)));
        let wait = wait.min(RETRY_TIME_MAX);
        !self.damaged.is_empty() && self.tried.is_none_or(|tried| tried.elapsed() >= wait)
    }

    fn add(&mut self, found: Damaged) {
        if !found.is_empty() {
            self.damaged.add(found);
            (self.tries, self.tried) = (0, None);
        }
    }

    /// After a try to get back what was `wanted`, of which `left` is still missed.
    fn tried(&mut self, wanted: &Damaged, left: Damaged) {
        let damaged = &mut self.damaged;
        damaged.chunks.retain(|hash| !wanted.chunks.contains(hash));
        damaged.nodes.retain(|id| !wanted.nodes.contains(id));
        damaged.nameless = damaged.nameless.saturating_sub(wanted.nameless);
        damaged.add(left);
        (self.tries, self.tried) = (self.tries.saturating_add(1), Some(Instant::now()));
    }
}

/// Who holds it repairs, and nobody else meanwhile.
pub(super) type Turn<'d> = tokio::sync::MutexGuard<'d, ()>;

/// Records that were found damaged.
#[derive(Clone, Debug, Default)]
struct Damaged {
    chunks: HashSet<ChunkHash>,
    nodes: HashSet<NodeId>,
    /// How many more nobody can name: the footer that named them is damaged too.
    nameless: u64,
}

impl Damaged {
    fn len(&self) -> u64 {
        (self.chunks.len() + self.nodes.len()) as u64 + self.nameless
    }

    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn add(&mut self, other: Self) {
        self.chunks.extend(other.chunks);
        self.nodes.extend(other.nodes);
        self.nameless += other.nameless;
    }

    /// How many of those with a name are in a store.
    fn here(&self, stores: &[Arc<Store>]) -> u64 {
        let is_here = |hash: &&ChunkHash| stores.iter().any(|store| store.contains(hash));
        let chunks = self.chunks.iter().filter(is_here).count();
        let is_here = |id: &&NodeId| stores.iter().any(|store| store.contains_node(id));
        (chunks + self.nodes.iter().filter(is_here).count()) as u64
    }
}

impl Daemon {
    /// Gets back what was found damaged since the last time, whoever found it, and tries again what could not be had then.
    pub(super) async fn mend(&self) {
        self.note_damaged();
        if !self.0.lost.lock().is_due() {
            return;
        }
        let (nobody, turn): (ProgressSink, _) = (Arc::new(NoProgress), self.repair_turn().await);
        match self.repair(&turn, &nobody).await {
            Ok((0, _)) => {}
            Ok((damaged, repaired)) => {
                tracing::warn!(damaged, repaired, "records of the store were damaged");
            }
            Err(error) => {
                tracing::warn!(
                    error = error.message,
                    "what is damaged cannot be repaired now"
                );
            }
        }
    }

    /// To be held by who looks for damage to repair it: else another may repair it before, and it counts as lost.
    pub(super) async fn repair_turn(&self) -> Turn<'_> {
        self.0.repairing.lock().await
    }

    /// Takes down what the stores found damaged since the last time.
    fn note_damaged(&self) {
        let mut found = Damaged::default();
        for store in self.0.stores.all() {
            let (chunks, nodes) = store.take_quarantined();
            found.chunks.extend(chunks);
            found.nodes.extend(nodes);
            found.nameless += store.take_nameless();
        }
        self.0.lost.lock().add(found);
    }

    /// Gets what is damaged from plain files, from memory and from peers. Returns how much was damaged, and how much of
    /// it is here again.
    pub(super) async fn repair(
        &self,
        _turn: &Turn<'_>,
        progress: &ProgressSink,
    ) -> Result<(u64, u64), ApiError> {
        self.note_damaged();
        // Whatever ends this early, nothing is forgotten.
        let wanted = Arc::new(self.0.lost.lock().damaged.clone());
        if wanted.is_empty() {
            return Ok((0, 0));
        }
        let got = self.get_back(&wanted, progress).await;
        let (repaired, left) = match got {
            Ok((repaired, left)) => (Ok((wanted.len(), repaired)), left),
            Err(error) => (Err(error), Damaged::clone(&wanted)),
        };
        self.0.lost.lock().tried(&wanted, left);
        repaired
    }

    /// How much of it is here again, and what some folder still misses.
    async fn get_back(
        &self,
        damaged: &Arc<Damaged>,
        progress: &ProgressSink,
    ) -> Result<(u64, Damaged), ApiError> {
        let (stores, lost) = (self.0.stores.all(), Arc::clone(damaged));
        let show = |note: &str| {
            progress.report(Progress {
                files_done: damaged.here(&self.0.stores.all()),
                files_total: Some(damaged.len()),
                note: note.to_owned(),
                ..Progress::default()
            });
        };
        show("repairing from plain files");
        blocking(move || {
            stores
                .iter()
                .try_for_each(|store| pack_borrowed(store, &lost.chunks))
        })
        .await?;
        let open: Vec<Arc<OpenFolder>> = self.0.folders.lock().values().cloned().collect();
        let (mut nameless, mut kept_whole, mut lacking) = (0, false, false);
        let mut left = Damaged::default();
        for folder in open {
            show("fetching what is damaged");
            if (!damaged.nodes.is_empty() || damaged.nameless > 0)
                && let Err(error) = restore_tree(&folder).await
            {
                tracing::warn!(error = error.message, "the tree of a folder is not whole");
            }
            let (_, missing) = refetch(&folder, Some(damaged)).await?;
            left.add(missing);
            // Whatever a folder that is kept whole misses may be what nobody could name.
            if damaged.nameless > 0 && folder.is_kept_whole() {
                let (arrived, missing) = refetch(&folder, None).await?;
                nameless += arrived;
                kept_whole = true;
                lacking |= !missing.is_empty();
            }
        }
        self.empty_damaged().await?;
        if kept_whole && !lacking {
            // They fetch what they miss by themselves too, and may have been quicker.
            nameless = damaged.nameless;
        } else if lacking {
            left.nameless = damaged.nameless - nameless.min(damaged.nameless);
        }
        let repaired = damaged.here(&self.0.stores.all()) + nameless.min(damaged.nameless);
        Ok((repaired, left))
    }

    /// Moves what is good in packs with damage to others.
    async fn empty_damaged(&self) -> Result<(), ApiError> {
        let stores = self.0.stores.all();
        blocking(move || {
            for store in stores {
                store.sync().map_err(write_failed)?;
                store.remove(&|_| true).map_err(write_failed)?;
                store.remove_nodes(&|_| true).map_err(write_failed)?;
            }
            Ok(())
        })
        .await
    }
}

/// Stores the chunks that plain files have.
fn pack_borrowed(store: &Store, damaged: &HashSet<ChunkHash>) -> Result<(), ApiError> {
    for hash in damaged {
        if let Some(bytes) = store.chunk(hash).map_err(read_failed)? {
            store.put_chunk(hash, &bytes).map_err(write_failed)?;
        }
    }
    Ok(())
}

/// Writes the nodes of a folder's tree again that are not here any more.
async fn restore_tree(open: &OpenFolder) -> Result<(), ApiError> {
    let folder = open.folder.clone();
    let restored = blocking(move || {
        let restored = folder.restore_tree();
        restored.map_err(|error| ApiError::new(ErrorKind::Io, error))
    });
    restored.await.map(drop)
}

/// Asks a folder's peers for what it misses, of the damaged or of everything. Peers that do not have it are no error.
/// How much arrived, and what is missed after that: of everything if nothing was named.
async fn refetch(
    open: &OpenFolder,
    damaged: Option<&Arc<Damaged>>,
) -> Result<(u64, Damaged), ApiError> {
    let mut arrived = 0;
    let mut missing = look(open, damaged).await?;
    for _ in 0..ROUNDS_MAX {
        if missing.chunks.is_empty() && missing.nodes.is_empty() {
            break;
        }
        let fetched = fetch(open, missing.clone()).await;
        let asked = std::mem::replace(&mut missing, look(open, damaged).await?);
        arrived += came(&asked, &missing);
        if fetched.is_err() {
            break;
        }
    }
    let left = Damaged {
        chunks: missing.chunks.iter().map(|want| want.hash).collect(),
        nodes: missing.nodes.iter().map(|(_, id)| *id).collect(),
        nameless: 0,
    };
    Ok((arrived, left))
}

/// How much of what was asked for is not missed any more. Chunks are only asked for where no nodes are.
fn came(asked: &Missing, missing: &Missing) -> u64 {
    let chunks: HashSet<ChunkHash> = missing.chunks.iter().map(|want| want.hash).collect();
    let nodes: HashSet<NodeId> = missing.nodes.iter().map(|(_, id)| *id).collect();
    let came = match asked.nodes.is_empty() {
        true => asked
            .chunks
            .iter()
            .filter(|want| !chunks.contains(&want.hash))
            .count(),
        false => asked
            .nodes
            .iter()
            .filter(|(_, id)| !nodes.contains(id))
            .count(),
    };
    came as u64
}

/// What a folder misses of the damaged, or the first of all it misses.
async fn look(open: &OpenFolder, damaged: Option<&Arc<Damaged>>) -> Result<Missing, ApiError> {
    let (folder, damaged) = (open.folder.clone(), damaged.cloned());
    blocking(move || {
        let missing = match damaged {
            Some(damaged) => folder.missing_among(&damaged.chunks, &damaged.nodes),
            None => folder.missing_below(&[], ROUND_MAX),
        };
        missing.map_err(|error| ApiError::new(ErrorKind::Io, error))
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;

    fn damaged(chunks: &[u8], nameless: u64) -> Damaged {
        let hashes = chunks.iter().map(|n| ChunkHash::from_bytes([*n; 32]));
        Damaged {
            chunks: hashes.collect(),
            nameless,
            ..Damaged::default()
        }
    }

    #[test]
    fn what_could_not_be_had_is_tried_again_later_and_what_is_new_at_once() {
        let mut lost = Lost::default();
        assert!(!lost.is_due());
        lost.add(damaged(&[1, 2], 1));
        assert!(lost.is_due());
        let wanted = lost.damaged.clone();
        // Found while the first was tried.
        lost.add(damaged(&[2, 3], 4));
        lost.tried(&wanted, damaged(&[1], 0));
        assert_eq!((lost.damaged.len(), lost.damaged.nameless), (6, 4));
        assert!(!lost.is_due(), "it was tried just now");
        lost.add(Damaged::default());
        assert!(!lost.is_due(), "nothing is new");
        lost.tried = Instant::now().checked_sub(RETRY_TIME_MIN);
        assert!(lost.is_due());
        let wanted = lost.damaged.clone();
        lost.tried(&wanted, wanted.clone());
        lost.tried = Instant::now().checked_sub(RETRY_TIME_MIN);
        assert!(!lost.is_due(), "the second time it takes longer");
        lost.add(damaged(&[3], 0));
        assert!(lost.is_due());
        // However often it was tried, the wait has an end.
        lost.tries = u32::MAX;
        lost.tried = Instant::now().checked_sub(RETRY_TIME_MAX);
        assert!(lost.tried.is_none() || lost.is_due());
        lost.tried(&lost.damaged.clone(), Damaged::default());
        assert_eq!(lost.damaged.len(), 0);
    }
}
