//! `xet stats`, `verify` and `gc`: the store as a whole.
//!
//! Garbage is what no folder names. Every folder this device remembers is asked, open or not; if one of them cannot be
//! asked, nothing is collected.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use ccbt_mount::VolumeError;
use ccbt_xet::hash::{ChunkHash, NodeId};
use ccbt_xet::store::{CollectError, ReadError, Reclaimed, Store, StoreOptions};

use super::Daemon;
use super::keep::fetch;
use super::open::{OpenFolder, blocking, folder_dirs};
use super::stores::{self, Stores};
use crate::api::types::*;
use crate::api::{ApiError, ErrorKind, ProgressSink};
use crate::config::StateDir;
use crate::folder::work::Folder;

/// How long a gc waits for files that are being stored: the biggest ones take minutes.
const STORING_TIME_MAX: Duration = Duration::from_secs(300);

/// Rounds of fetching what was damaged: nodes lead to more nodes, then to chunks.
const REPAIR_ROUNDS_MAX: usize = 32;

impl Daemon {
    pub(super) async fn store_call(
        &self,
        request: StoreRequest,
        progress: ProgressSink,
    ) -> Result<StoreResponse, ApiError> {
        match request.action {
            StoreAction::Stats => self.store_stats().await.map(StoreResponse::Stats),
            StoreAction::Verify { repair } => {
                let found = self.verify(repair, progress).await;
                found.map(StoreResponse::Verify)
            }
            StoreAction::Gc { dry_run } => {
                // No folder is opened or closed meanwhile.
                let _turn = self.0.turn.lock().await;
                self.collect(dry_run, progress).await.map(StoreResponse::Gc)
            }
        }
    }

    async fn store_stats(&self) -> Result<StoreStatsResponse, ApiError> {
        let stores = self.0.stores.all();
        let mut stats = blocking(move || stats(&stores)).await?;
        let (mut content, mut only_here) = (Amount::default(), Amount::default());
        for folder in self.report_status().await?.folders {
            content.files += folder.content.files;
            content.bytes += folder.content.bytes;
            only_here.files += folder.only_here.files;
            only_here.bytes += folder.only_here.bytes;
        }
        stats.content = Some(content);
        stats.only_here = Some(only_here);
        Ok(stats)
    }

    async fn verify(
        &self,
        repair: bool,
        progress: ProgressSink,
    ) -> Result<VerifyResponse, ApiError> {
        let stores = self.0.stores.all();
        let mut response = blocking(move || verify(&stores, &progress)).await?;
        if repair && response.damaged > 0 {
            let (chunks, nodes) = self.take_quarantined();
            response.repaired = self.repair(&chunks, &nodes).await?;
        }
        Ok(response)
    }

    /// What was found damaged since the last time, in all stores.
    pub(super) fn take_quarantined(&self) -> (Vec<ChunkHash>, Vec<NodeId>) {
        let (mut chunks, mut nodes) = (Vec::new(), Vec::new());
        for store in self.0.stores.all() {
            let (more_chunks, more_nodes) = store.take_quarantined();
            chunks.extend(more_chunks);
            nodes.extend(more_nodes);
        }
        (chunks, nodes)
    }

    /// Gets what was damaged from plain files and from peers. Returns how much of it is here again.
    pub(super) async fn repair(
        &self,
        chunks: &[ChunkHash],
        nodes: &[NodeId],
    ) -> Result<u64, ApiError> {
        let stores = self.0.stores.all();
        let damaged: HashSet<ChunkHash> = chunks.iter().copied().collect();
        let wanted = damaged.clone();
        blocking(move || {
            stores
                .iter()
                .try_for_each(|store| pack_borrowed(store, &wanted))
        })
        .await?;
        let damaged_nodes: HashSet<NodeId> = nodes.iter().copied().collect();
        let open: Vec<Arc<OpenFolder>> = self.0.folders.lock().values().cloned().collect();
        for folder in open {
            refetch(&folder, &damaged, &damaged_nodes).await?;
        }
        let stores = self.0.stores.all();
        blocking(move || {
            let mut repaired = 0;
            for store in stores {
                store.sync().map_err(write_failed)?;
                // Empties the packs with damage into others.
                store.remove(&|_| true).map_err(write_failed)?;
                store.remove_nodes(&|_| true).map_err(write_failed)?;
                repaired += damaged.iter().filter(|hash| store.contains(hash)).count();
                let nodes = damaged_nodes.iter();
                repaired += nodes.filter(|id| store.contains_node(id)).count();
            }
            Ok(repaired as u64)
        })
        .await
    }

    async fn collect(&self, dry_run: bool, progress: ProgressSink) -> Result<GcResponse, ApiError> {
        let daemon = self.clone();
        blocking(move || {
            progress.report(Progress {
                note: "looking for what is wanted".to_owned(),
                ..Progress::default()
            });
            collect(&daemon.0.stores.all(), &daemon.every_folder()?, dry_run)
        })
        .await
    }

    /// Every folder that is remembered. Those that are not open are opened to be looked at only.
    fn every_folder(&self) -> Result<Vec<Folder>, ApiError> {
        let open: Vec<Arc<OpenFolder>> = self.0.folders.lock().values().cloned().collect();
        let mut folders: Vec<Folder> = open.iter().map(|open| open.folder.clone()).collect();
        for dir in self.folder_dirs()? {
            if open.iter().all(|open| open.dir != dir) {
                folders.extend(self.closed_folder(&dir).map_err(|error| {
                    let what = format!(
                        "cannot tell what the folder in {} needs: {}",
                        dir.display(),
                        error.message
                    );
                    ApiError::new(error.kind, what)
                        .hint("nothing was dropped; open the folder, or remove its directory")
                })?);
            }
        }
        Ok(folders)
    }
}

/// The same without a daemon, for whoever has locked the state directory. Collecting garbage needs one as soon as there
/// are folders.
pub fn store_offline(
    state: &StateDir,
    request: &StoreRequest,
    progress: &ProgressSink,
) -> Result<StoreResponse, ApiError> {
    let stores = Stores::open(state, StoreOptions::default().cache_bytes)?.all();
    match request.action {
        StoreAction::Stats => Ok(StoreResponse::Stats(stats(&stores)?)),
        StoreAction::Verify { .. } => verify(&stores, progress).map(StoreResponse::Verify),
        StoreAction::Gc { dry_run } => {
            if !folder_dirs(state)?.is_empty() {
                let what = "only a daemon can tell what the folders of this state directory need";
                return Err(ApiError::new(ErrorKind::NoDaemon, what)
                    .hint("start one with `ccbt daemon -d`"));
            }
            collect(&stores, &[], dry_run).map(StoreResponse::Gc)
        }
    }
}

fn stats(stores: &[Arc<Store>]) -> Result<StoreStatsResponse, ApiError> {
    let stats = stores::stats(stores);
    let mut chunk_bytes = 0;
    for store in stores {
        chunk_bytes += store.content_bytes().map_err(read_failed)?;
    }
    Ok(StoreStatsResponse {
        chunks: stats.chunks,
        chunk_bytes,
        nodes: stats.nodes,
        packs: stats.packs,
        packed_bytes: stats.bytes,
        borrowed: stats.borrowed,
        quarantined: stats.quarantined,
        memory_bytes: stats.memory_bytes,
        content: None,
        only_here: None,
    })
}

fn verify(stores: &[Arc<Store>], progress: &ProgressSink) -> Result<VerifyResponse, ApiError> {
    let mut response = VerifyResponse {
        records: 0,
        bytes: 0,
        damaged: 0,
        repaired: 0,
    };
    let all = stores::stats(stores).bytes;
    for store in stores {
        let before = response.bytes;
        let verified = store.verify(&mut |done, _| {
            progress.report(Progress {
                bytes_done: before + done,
                bytes_total: Some(all),
                note: "verifying".to_owned(),
                ..Progress::default()
            });
            true
        });
        let verified = verified.map_err(read_failed)?;
        response.records += verified.records;
        response.bytes += verified.bytes;
        response.damaged += verified.damaged;
    }
    Ok(response)
}

fn collect(
    stores: &[Arc<Store>],
    folders: &[Folder],
    dry_run: bool,
) -> Result<GcResponse, ApiError> {
    let mark = || {
        let mut wanted = HashSet::new();
        for folder in folders {
            wanted.extend(folder.needed_chunks()?);
        }
        Ok::<_, VolumeError>(move |hash: &ChunkHash| wanted.contains(hash))
    };
    let mut sum = Reclaimed::default();
    for store in stores {
        let reclaimed = store.collect(mark, STORING_TIME_MAX, dry_run);
        let reclaimed = reclaimed.map_err(|error| match error {
            CollectError::Busy(_) => ApiError::new(ErrorKind::Busy, error).hint("try again later"),
            error => ApiError::new(ErrorKind::Io, error),
        })?;
        sum.dropped += reclaimed.dropped;
        sum.dropped_bytes += reclaimed.dropped_bytes;
        sum.freed_bytes += reclaimed.freed_bytes.saturating_sub(reclaimed.moved_bytes);
    }
    Ok(GcResponse {
        dry_run,
        dropped: sum.dropped,
        dropped_bytes: sum.dropped_bytes,
        freed_bytes: sum.freed_bytes,
    })
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

/// Asks a folder's peers for what it misses of the damaged. Peers that do not have it are no error.
async fn refetch(
    open: &OpenFolder,
    chunks: &HashSet<ChunkHash>,
    nodes: &HashSet<NodeId>,
) -> Result<(), ApiError> {
    for _ in 0..REPAIR_ROUNDS_MAX {
        let folder = open.folder.clone();
        let missing = blocking(move || {
            let missing = folder.missing_below(&[], usize::MAX);
            missing.map_err(|error| ApiError::new(ErrorKind::Io, error))
        });
        let mut missing = missing.await?;
        missing.chunks.retain(|want| chunks.contains(&want.hash));
        missing.nodes.retain(|(_, id)| nodes.contains(id));
        let nothing = missing.chunks.is_empty() && missing.nodes.is_empty();
        if nothing || fetch(open, missing).await.is_err() {
            break;
        }
    }
    Ok(())
}

fn read_failed(error: ReadError) -> ApiError {
    ApiError::new(ErrorKind::Io, error)
}

fn write_failed(error: ccbt_xet::store::WriteError) -> ApiError {
    let kind = match error {
        ccbt_xet::store::WriteError::NoSpace { .. } => ErrorKind::NoSpace,
        _ => ErrorKind::Io,
    };
    ApiError::new(kind, error)
}
