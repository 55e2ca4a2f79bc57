//! `xet stats`, `verify` and `gc`: the store as a whole.
//!
//! Garbage is what no folder names. Every folder this device remembers is asked, open or not; if one of them cannot be
//! asked, nothing is collected.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use ccbt_mount::VolumeError;
use ccbt_xet::store::{Collect, CollectError, Marks, ReadError, Reclaimed, Store, StoreOptions};

use super::Daemon;
use super::open::{
    OpenFolder, blocking, closed_folder, folder_dirs, noted_elsewhere, noted_snapshots,
};
use super::stores::{self, Stores};
use crate::api::types::*;
use crate::api::{ApiError, ErrorKind, ProgressSink};
use crate::config::StateDir;
use crate::folder::work::Folder;

/// How long a gc waits for files that are being stored: the biggest ones take minutes.
const STORING_TIME_MAX: Duration = Duration::from_secs(300);

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
                self.collect(dry_run, progress).await.map(StoreResponse::Gc)
            }
        }
    }

    async fn store_stats(&self) -> Result<StoreStatsResponse, ApiError> {
        let status = self.report_status().await?;
        let _turn = self.0.turn.lock().await;
        let daemon = self.clone();
        blocking(move || {
            let open: Vec<Arc<OpenFolder>> = daemon.0.folders.lock().values().cloned().collect();
            let mut response = stats(&daemon.0.stores.all())?;
            let (mut content, mut only_here) = (Content::default(), Amount::default());
            for folder in &status.folders {
                content.all.add(folder.content);
                content.missing.add(folder.missing);
                only_here.add(folder.only_here);
            }
            for dir in daemon.folder_dirs()? {
                if open.iter().all(|open| open.dir != dir) {
                    // Nobody is asked about a folder that is closed: what was made here may be only here.
                    only_here.add(content.add_closed(&daemon.0.stores, &dir));
                }
            }
            content.show(&mut response);
            response.only_here = Some(only_here);
            Ok(response)
        })
        .await
    }

    async fn verify(
        &self,
        repair: bool,
        progress: ProgressSink,
    ) -> Result<VerifyResponse, ApiError> {
        let turn = match repair {
            true => Some(self.repair_turn().await),
            false => None,
        };
        let (stores, shown) = (self.0.stores.all(), Arc::clone(&progress));
        let mut response = blocking(move || verify(&stores, &shown)).await?;
        if let Some(turn) = turn {
            let _waiting = self.stop_background_gc();
            // What was met before, and could not be repaired then, counts too.
            let (damaged, repaired) = self.repair(&turn, &progress).await?;
            response.damaged = response.damaged.max(damaged);
            response.repaired = repaired;
        }
        Ok(response)
    }

    /// Keeps the garbage collection of the background from going on while this is held.
    pub(super) fn stop_background_gc(&self) -> Waiting<'_> {
        self.0.waiting_for_gc.fetch_add(1, Ordering::AcqRel);
        Waiting(&self.0.waiting_for_gc)
    }

    async fn collect(&self, dry_run: bool, progress: ProgressSink) -> Result<GcResponse, ApiError> {
        let _waiting = self.stop_background_gc();
        let daemon = self.clone();
        blocking(move || {
            progress.report(Progress {
                note: "looking for what is wanted".to_owned(),
                ..Progress::default()
            });
            let how = Collect {
                wait: STORING_TIME_MAX,
                grace: daemon.0.config.store_gc_grace,
                dry_run,
            };
            let all = stores::stats(&daemon.0.stores.all()).bytes;
            let (mut before, mut sum) = (0, Reclaimed::default());
            for store in daemon.0.stores.all() {
                let reclaimed = daemon.collect_store(&store, &how, &mut |_, (done, total)| {
                    let done = before + done.min(total);
                    progress.report(collecting(done, all));
                    true
                })?;
                before += store.stats().bytes;
                sum = sum_of(sum, reclaimed);
            }
            Ok(gc_response(dry_run, sum))
        })
        .await
    }

    /// Collects the garbage of one store. Blocks.
    pub(super) fn collect_store(
        &self,
        store: &Store,
        how: &Collect,
        report: &mut dyn FnMut(&Reclaimed, (u64, u64)) -> bool,
    ) -> Result<Reclaimed, ApiError> {
        // No folder is opened or closed until all of them have said what they need.
        let turn = Arc::clone(&self.0.turn).blocking_lock_owned();
        let mark = |marks: &mut Marks<'_>| {
            for (folder, dir) in self.every_folder()? {
                mark_needed(&folder, &dir, marks)?;
            }
            drop(turn);
            Ok(())
        };
        store.collect(mark, how, report).map_err(not_collected)
    }

    /// Every folder that is remembered, and where its files are. Those that are not open are opened to be looked at only.
    fn every_folder(&self) -> Result<Vec<(Folder, PathBuf)>, ApiError> {
        let open: Vec<Arc<OpenFolder>> = self.0.folders.lock().values().cloned().collect();
        let known = |open: &Arc<OpenFolder>| (open.folder.clone(), open.dir.clone());
        let mut folders: Vec<(Folder, PathBuf)> = open.iter().map(known).collect();
        for dir in self.folder_dirs()? {
            if open.iter().all(|open| open.dir != dir) {
                let closed = self.closed_folder(&dir).map_err(|error| {
                    let what = format!(
                        "cannot tell what the folder in {} needs: {}",
                        dir.display(),
                        error.message
                    );
                    ApiError::new(error.kind, what)
                        .hint("nothing was dropped; open the folder, or remove its directory")
                })?;
                folders.extend(closed.map(|folder| (folder, dir)));
            }
        }
        Ok(folders)
    }
}

/// Somebody waits for the garbage collection of the background.
pub(super) struct Waiting<'d>(&'d AtomicUsize);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

/// What folders hold, as far as all of them could be asked.
#[derive(Default)]
struct Content {
    all: Amount,
    missing: Amount,
    unknown: bool,
}

impl Content {
    /// Adds a folder that is not open. Returns what was made here.
    fn add_closed(&mut self, stores: &Stores, dir: &Path) -> Amount {
        match closed_folder(stores, dir) {
            Ok(None) => Amount::default(),
            Ok(Some(folder)) => {
                let elsewhere = noted_elsewhere(dir);
                let stats = folder.stats(&|dot| elsewhere.has(dot));
                self.all.add(Amount {
                    files: stats.files,
                    bytes: stats.bytes,
                });
                self.missing.add(Amount {
                    files: stats.missing_files,
                    bytes: stats.missing_bytes,
                });
                Amount {
                    files: stats.only_here_files,
                    bytes: stats.only_here_bytes,
                }
            }
            Err(error) => {
                tracing::warn!(dir = %dir.display(), error = error.message, "a folder is not counted");
                self.unknown = true;
                Amount::default()
            }
        }
    }

    fn show(&self, response: &mut StoreStatsResponse) {
        if !self.unknown {
            response.content = Some(self.all);
            response.here = Some(Amount {
                files: self.all.files.saturating_sub(self.missing.files),
                bytes: self.all.bytes.saturating_sub(self.missing.bytes),
            });
        }
    }
}

/// The same without a daemon, for whoever has locked the state directory. Collecting garbage needs one as soon as there
/// are folders.
pub fn store_offline(
    state: &StateDir,
    request: &StoreRequest,
    progress: &ProgressSink,
) -> Result<StoreResponse, ApiError> {
    let stores = Stores::open(state, StoreOptions::default().cache_bytes)?;
    match request.action {
        StoreAction::Stats => {
            let (mut response, mut content) = (stats(&stores.all())?, Content::default());
            for dir in folder_dirs(state)? {
                content.add_closed(&stores, &dir);
            }
            content.show(&mut response);
            Ok(StoreResponse::Stats(response))
        }
        StoreAction::Verify { .. } => verify(&stores.all(), progress).map(StoreResponse::Verify),
        StoreAction::Gc { dry_run } => {
            if !folder_dirs(state)?.is_empty() {
                let what = "only a daemon can tell what the folders of this state directory need";
                return Err(ApiError::new(ErrorKind::NoDaemon, what)
                    .hint("start one with `ccbt daemon -d`"));
            }
            let how = Collect {
                wait: STORING_TIME_MAX,
                grace: Duration::ZERO,
                dry_run,
            };
            let (stores, mut sum) = (stores.all(), Reclaimed::default());
            for store in &stores {
                let nothing = |_: &mut Marks<'_>| Ok::<_, ApiError>(());
                let reclaimed = store.collect(nothing, &how, &mut |_, (done, total)| {
                    progress.report(collecting(done, total));
                    true
                });
                sum = sum_of(sum, reclaimed.map_err(not_collected)?);
            }
            Ok(StoreResponse::Gc(gc_response(dry_run, sum)))
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
        borrowed_bytes: stats.borrowed_bytes,
        quarantined: stats.quarantined,
        memory_bytes: stats.memory_bytes,
        content: None,
        here: None,
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

/// Marks what a folder needs, and what peers may ask for because its heads name it.
fn mark_needed(folder: &Folder, dir: &Path, marks: &mut Marks<'_>) -> Result<(), ApiError> {
    let failed = |error: VolumeError| {
        let what = format!(
            "cannot tell what the folder in {} needs: {error}",
            dir.display()
        );
        ApiError::new(ErrorKind::Io, what).hint("nothing was dropped")
    };
    folder
        .needed_chunks(&mut |hash| marks.chunk(hash))
        .map_err(failed)?;
    let heads = noted_snapshots(dir);
    let nodes = heads.map(|heads| folder.needed_nodes(&heads)).transpose();
    match nodes.map_err(failed)?.flatten() {
        Some(nodes) => nodes.iter().for_each(|id| marks.node(id)),
        None => {
            tracing::warn!(dir = %dir.display(), "no nodes are dropped: a folder's tree is not whole");
            marks.keep_all_nodes();
        }
    }
    Ok(())
}

fn not_collected(error: CollectError<ApiError>) -> ApiError {
    match error {
        CollectError::Mark(error) => error,
        CollectError::Busy(_) => ApiError::new(ErrorKind::Busy, error).hint("try again later"),
        CollectError::Write(error) => write_failed(error),
    }
}

pub(super) fn collecting(done: u64, total: u64) -> Progress {
    Progress {
        bytes_done: done,
        bytes_total: Some(total),
        note: "collecting".to_owned(),
        ..Progress::default()
    }
}

fn sum_of(a: Reclaimed, b: Reclaimed) -> Reclaimed {
    Reclaimed {
        dropped: a.dropped + b.dropped,
        dropped_bytes: a.dropped_bytes + b.dropped_bytes,
        moved_bytes: a.moved_bytes + b.moved_bytes,
        freed_bytes: a.freed_bytes + b.freed_bytes,
    }
}

fn gc_response(dry_run: bool, sum: Reclaimed) -> GcResponse {
    GcResponse {
        dry_run,
        dropped: sum.dropped,
        dropped_bytes: sum.dropped_bytes,
        freed_bytes: sum.freed_bytes.saturating_sub(sum.moved_bytes),
    }
}

pub(super) fn read_failed(error: ReadError) -> ApiError {
    ApiError::new(ErrorKind::Io, error)
}

pub(super) fn write_failed(error: ccbt_xet::store::WriteError) -> ApiError {
    let kind = match error {
        ccbt_xet::store::WriteError::NoSpace { .. } => ErrorKind::NoSpace,
        _ => ErrorKind::Io,
    };
    ApiError::new(kind, error)
}
