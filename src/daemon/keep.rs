//! `pin`, `unpin` and `evict`: what of a folder's content stays on this device.

use std::collections::HashSet;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;

use super::Daemon;
use super::open::OpenFolder;
use crate::api::types::*;
use crate::api::{ApiError, ErrorKind, ProgressSink};
use crate::folder::state::{Key, Name};
use crate::folder::work::{Fetch, FetchError, Lacking, Priority, SurveyError};

/// Chunks and nodes asked for in one round of a pin.
const ROUND_MAX: usize = 4096;
/// How often a pin that waits for peers looks again.
const POLL: Duration = Duration::from_millis(500);

impl Daemon {
    /// Fetches what is missing below a path; of a whole folder also from now on.
    pub(super) async fn pin_path(
        &self,
        request: PinRequest,
        progress: ProgressSink,
    ) -> Result<PinResponse, ApiError> {
        let (open, path) = self.folder_of(&request.path)?;
        if path.is_empty() {
            open.record.lock().pinned = true;
            open.save()?;
            open.swarm.set_replica(true);
        }
        loop {
            let keys = keys_below(&open, &path, &request.path)?;
            let (folder, below) = (open.folder.clone(), keys.clone());
            let looked = move || (folder.lacking(Some(&below), ROUND_MAX), folder.amount(&below));
            let (lacking, (files, bytes)) = tokio::task::spawn_blocking(looked)
                .await
                .map_err(|error| ApiError::new(ErrorKind::Internal, error))?;
            let lacking = lacking?;
            if lacking.is_empty() {
                return Ok(PinResponse { kept: Amount { files, bytes } });
            }
            let note = match fetch(&open, lacking).await {
                Ok(()) => "fetching",
                Err(_) => {
                    tokio::time::sleep(POLL).await;
                    "waiting for peers"
                }
            };
            progress.report(Progress { note: note.to_owned(), ..Progress::default() });
        }
    }

    pub(super) async fn unpin_path(&self, request: UnpinRequest) -> Result<UnpinResponse, ApiError> {
        let (open, path) = self.folder_of(&request.path)?;
        if !path.is_empty() {
            let what = "only whole folders are kept pinned; a file or directory is fetched once by `ccbt pin`";
            return Err(ApiError::new(ErrorKind::Refused, what)
                .hint("unpin the folder's mount point, or drop the file's content with `ccbt evict`"));
        }
        open.record.lock().pinned = false;
        open.save()?;
        let is_home = open.record.lock().home.is_some();
        open.swarm.set_replica(is_home);
        let stats = open.folder.stats(false);
        Ok(UnpinResponse { released: Amount { files: stats.files, bytes: stats.bytes } })
    }

    /// Drops content that a keeper is known to hold.
    pub(super) async fn evict_path(&self, request: EvictRequest) -> Result<EvictResponse, ApiError> {
        let (open, path) = self.folder_of(&request.path)?;
        if open.record.lock().pinned || open.record.lock().home.is_some() {
            return Err(ApiError::new(ErrorKind::Refused, "the folder is kept whole on this device")
                .hint("unpin it first: ccbt unpin"));
        }
        let keys = keys_below(&open, &path, &request.path)?;
        let elsewhere = open.swarm.status().await.is_some_and(|status| status.stored_elsewhere);
        let (files, bytes) = open.folder.amount(&keys);
        if !elsewhere {
            let only_here = Amount { files, bytes };
            return Ok(EvictResponse { freed: Amount::default(), only_here });
        }
        let folders: Vec<_> = self.0.folders.lock().values().map(|f| f.folder.clone()).collect();
        let (store, folder) = (Arc::clone(&self.0.store), open.folder.clone());
        let evicted = tokio::task::spawn_blocking(move || {
            let kept = keys_of_others(&folder, &keys);
            let mut keep: HashSet<_> = folder.chunks_of(&kept)?;
            for other in folders.iter().filter(|other| !other.is_same(&folder)) {
                keep.extend(other.chunks_of(&other.keys_below(&[]).unwrap_or_default())?);
            }
            let drop = folder.chunks_of(&keys)?;
            let reclaimed = store
                .remove(&|hash| !drop.contains(hash) || keep.contains(hash))
                .map_err(|error| ApiError::new(ErrorKind::Io, error))?;
            Ok::<_, ApiError>(reclaimed)
        })
        .await
        .map_err(|error| ApiError::new(ErrorKind::Internal, error))??;
        let freed = Amount { files, bytes: evicted.freed_bytes };
        Ok(EvictResponse { freed, only_here: Amount::default() })
    }

    /// The folder a path lies in, and the path inside it.
    fn folder_of(&self, path: &ApiPath) -> Result<(Arc<OpenFolder>, Vec<Name>), ApiError> {
        let real = std::fs::canonicalize(&path.0)
            .map_err(|error| ApiError::io(format_args!("cannot use {path}"), &error))?;
        for above in real.ancestors() {
            if let Some(open) = self.folder_at(above) {
                let inside = real.strip_prefix(above).unwrap_or(&real);
                let names = inside.iter().map(|part| Name::from(part.as_bytes())).collect();
                return Ok((open, names));
            }
        }
        let what = format!("{path} is in no folder that is open here");
        Err(ApiError::new(ErrorKind::NotFound, what).hint("`ccbt status` lists them"))
    }
}

fn keys_below(open: &OpenFolder, path: &[Name], shown: &ApiPath) -> Result<Vec<Key>, ApiError> {
    open.folder.keys_below(path).ok_or_else(|| {
        ApiError::new(ErrorKind::NotFound, format_args!("{shown} is not in the folder"))
    })
}

impl From<SurveyError> for ApiError {
    fn from(error: SurveyError) -> Self {
        Self::new(ErrorKind::Io, error)
    }
}

/// Every file of the folder that is not among `keys`.
fn keys_of_others(folder: &crate::folder::work::Folder, keys: &[Key]) -> Vec<Key> {
    let keys: HashSet<&Key> = keys.iter().collect();
    let all = folder.keys_below(&[]).unwrap_or_default();
    all.into_iter().filter(|key| !keys.contains(key)).collect()
}

/// Fetches one round; what could not be had is an error.
async fn fetch(open: &OpenFolder, lacking: Lacking) -> Result<(), FetchError> {
    let (tx, rx) = oneshot::channel();
    let done = Box::new(move |result| {
        let _nobody = tx.send(result);
    });
    if lacking.nodes.is_empty() {
        open.swarm.chunks(lacking.chunks, Priority::Replica, done);
    } else {
        open.swarm.nodes(lacking.nodes, Priority::Replica, done);
    }
    rx.await.unwrap_or(Err(FetchError::Closed))
}
