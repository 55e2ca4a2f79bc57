//! `pin`, `unpin` and `evict`: what of a folder's content stays on this device.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use ccbt_mount::VolumeError;
use ccbt_xet::hash::NodeId;
use ccbt_xet::store::{Store, WriteError};
use tokio::sync::oneshot;

use super::Daemon;
use super::open::OpenFolder;
use super::quota::{Ration, drop_oldest};
use crate::api::types::*;
use crate::api::{ApiError, ErrorKind, ProgressSink};
use crate::folder::state::Name;
use crate::folder::work::{Fetch, FetchError, Folder, Held, Missing, Priority, WantedChunk};

/// Chunks and nodes asked for in one round of a pin.
const ROUND_MAX: usize = 4096;
/// Chunks after which a pin says how far it is: about 8 MiB.
const PART_CHUNKS: usize = 128;
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
        let (folder, inside) = (open.folder.clone(), path.clone());
        let look = move || {
            let names: Vec<&[u8]> = inside.iter().map(Name::as_bytes).collect();
            folder.absent_bytes(&names)
        };
        let absent = blocking(look).await?;
        let mut total = absent.map_err(|e| unreadable(&request.path, e))?;
        let mut done = 0;
        loop {
            let (folder, inside) = (open.folder.clone(), path.clone());
            let look = move || {
                let names: Vec<&[u8]> = inside.iter().map(Name::as_bytes).collect();
                Ok::<_, VolumeError>((
                    folder.missing_below(&names, ROUND_MAX)?,
                    folder.chunks_below(&names)?,
                ))
            };
            let (missing, below) = blocking(look)
                .await?
                .map_err(|e| unreadable(&request.path, e))?;
            if missing.chunks.is_empty() && missing.nodes.is_empty() {
                return Ok(PinResponse {
                    kept: Amount {
                        files: below.files,
                        bytes: below.bytes,
                    },
                });
            }
            let mut report = |bytes: u64, note: &str| {
                done += bytes;
                total = total.max(done);
                progress.report(Progress {
                    bytes_done: done,
                    bytes_total: Some(total),
                    note: note.to_owned(),
                    ..Progress::default()
                });
            };
            let note = match fetch_reporting(&open, missing, &mut |n| report(n, "fetching")).await {
                Ok(()) => "fetching",
                Err(FetchError::Closed) => {
                    return Err(ApiError::new(ErrorKind::NotFound, "the folder was closed"));
                }
                Err(FetchError::NoSpace) => {
                    let what = format!("there is no room to keep {}", request.path);
                    return Err(ApiError::new(ErrorKind::NoSpace, what)
                        .hint("free some space on the disk of the state directory; `ccbt status` says what is wrong"));
                }
                Err(_) => {
                    tokio::time::sleep(POLL).await;
                    "waiting for peers"
                }
            };
            report(0, note);
        }
    }

    pub(super) async fn unpin_path(
        &self,
        request: UnpinRequest,
    ) -> Result<UnpinResponse, ApiError> {
        let (open, path) = self.folder_of(&request.path)?;
        if !path.is_empty() {
            let what = "only whole folders are kept pinned; a file or directory is fetched once by `ccbt pin`";
            return Err(ApiError::new(ErrorKind::Refused, what).hint(
                "unpin the folder's mount point, or drop the file's content with `ccbt evict`",
            ));
        }
        open.record.lock().pinned = false;
        open.save()?;
        let is_home = open.record.lock().home.is_some();
        open.swarm.set_replica(is_home);
        let stats = open.folder.stats(&|_| true);
        Ok(UnpinResponse {
            released: Amount {
                files: stats.files,
                bytes: stats.bytes,
            },
        })
    }

    /// Drops content that a keeper is known to hold.
    pub(super) async fn evict_path(
        &self,
        request: EvictRequest,
    ) -> Result<EvictResponse, ApiError> {
        let _waiting = self.stop_background_gc();
        // No folder is opened or closed meanwhile.
        let _turn = self.0.turn.lock().await;
        let (open, path) = self.folder_of(&request.path)?;
        if is_kept_whole(&open) {
            return Err(ApiError::new(
                ErrorKind::Refused,
                "the folder is kept whole on this device",
            )
            .hint("unpin it first: ccbt unpin"));
        }
        self.evict_open(&open, path, u64::MAX).await
    }

    /// Drops about `enough` bytes, or all that can go, of what lies at or below a path. The caller holds the turn. Of a
    /// folder that is kept whole nothing goes.
    pub(super) async fn evict_open(
        &self,
        open: &Arc<OpenFolder>,
        path: Vec<Name>,
        enough: u64,
    ) -> Result<EvictResponse, ApiError> {
        if is_kept_whole(open) {
            return Ok(EvictResponse::default());
        }
        let stored = match open.swarm.status().await {
            Some(status) if status.stored_elsewhere => Some(status.root),
            _ => None,
        };
        let daemon = self.clone();
        let but = Arc::clone(open);
        let others = blocking(move || daemon.folders_but(&but)).await??;
        let (store, folder) = (Arc::clone(&open.store), open.folder.clone());
        let mut shown = PathBuf::from(open.record.lock().name.clone());
        shown.extend(path.iter().map(|name| OsStr::from_bytes(name.as_bytes())));
        let shown = ApiPath(shown);
        let evicted = blocking(move || {
            let names: Vec<&[u8]> = path.iter().map(Name::as_bytes).collect();
            evict(&store, &folder, &names, stored, &others, enough)
        });
        evicted.await?.map_err(|error| match error {
            EvictError::Folder(error) => unreadable(&shown, error),
            EvictError::Store(error) => ApiError::new(ErrorKind::Io, error),
        })
    }

    /// Every other folder of the state directory. Those that are not open are opened to be looked at only: they may hold
    /// what no peer has.
    pub(super) fn folders_but(&self, evicted: &OpenFolder) -> Result<Vec<Folder>, ApiError> {
        let opened: Vec<_> = self.0.folders.lock().values().cloned().collect();
        let mut others = Vec::new();
        for open in opened.iter().filter(|open| open.id != evicted.id) {
            others.push(open.folder.clone());
        }
        for dir in self.folder_dirs()? {
            if opened.iter().all(|open| open.dir != dir) {
                others.extend(self.closed_folder(&dir)?);
            }
        }
        Ok(others)
    }

    /// The folder a path lies in, and the path inside it.
    pub(super) fn folder_of(
        &self,
        path: &ApiPath,
    ) -> Result<(Arc<OpenFolder>, Vec<Name>), ApiError> {
        let real = std::fs::canonicalize(&path.0)
            .map_err(|error| ApiError::io(format_args!("cannot use {path}"), &error))?;
        for above in real.ancestors() {
            if let Some(open) = self.folder_at(above) {
                let inside = real.strip_prefix(above).unwrap_or(&real);
                let names = inside
                    .iter()
                    .map(|part| Name::from(part.as_bytes()))
                    .collect();
                return Ok((open, names));
            }
        }
        let what = format!("{path} is in no folder that is open here");
        Err(ApiError::new(ErrorKind::NotFound, what).hint("`ccbt status` lists them"))
    }
}

/// What was promised to be here stays here.
fn is_kept_whole(open: &OpenFolder) -> bool {
    let record = open.record.lock();
    record.pinned || record.home.is_some()
}

/// Drops what only the files below `path` need, if the root that is `stored` elsewhere holds all there is here.
fn evict(
    store: &Store,
    folder: &Folder,
    path: &[&[u8]],
    stored: Option<NodeId>,
    others: &[Folder],
    enough: u64,
) -> Result<EvictResponse, EvictError> {
    // What is being committed is in the store before any version names it.
    let held = folder.hold();
    let others: Vec<Held<'_>> = others.iter().map(Folder::hold).collect();
    let below = folder.chunks_below(path)?;
    let amount = |bytes| Amount {
        files: below.files,
        bytes,
    };
    if stored.is_none() || held.settled_root() != stored {
        return Ok(EvictResponse {
            freed: Amount::default(),
            only_here: amount(below.bytes),
        });
    }
    let ration = Ration::new(enough, below.chunks.len(), below.bytes);
    let mut spare = below.chunks;
    held.spare_opened(&mut spare)?;
    for other in &others {
        other.spare(&mut spare)?;
    }
    let reclaimed = drop_oldest(store, &spare, &ration)?;
    Ok(EvictResponse {
        freed: amount(reclaimed.freed_bytes),
        only_here: Amount::default(),
    })
}

#[derive(Debug, thiserror::Error)]
enum EvictError {
    #[error(transparent)]
    Folder(#[from] VolumeError),
    #[error(transparent)]
    Store(#[from] WriteError),
}

fn unreadable(path: &ApiPath, error: VolumeError) -> ApiError {
    let kind = match error {
        VolumeError::NotFound => ErrorKind::NotFound,
        _ => ErrorKind::Io,
    };
    ApiError::new(kind, format_args!("{path}: {error}"))
}

/// Runs what may take long on the blocking pool.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, ApiError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|error| ApiError::new(ErrorKind::Internal, error))
}

/// Fetches one round in parts, all asked for at once, and tells the bytes of each that has come.
async fn fetch_reporting(
    open: &OpenFolder,
    missing: Missing,
    came: &mut impl FnMut(u64),
) -> Result<(), FetchError> {
    if !missing.nodes.is_empty() {
        return fetch(open, missing).await;
    }
    let part = |chunks: &[WantedChunk]| {
        let bytes = chunks.iter().map(|chunk| u64::from(chunk.len)).sum();
        let (tx, rx) = oneshot::channel();
        let done = Box::new(move |result| {
            let _nobody = tx.send(result);
        });
        open.swarm.chunks(chunks.to_vec(), Priority::Replica, done);
        (bytes, rx)
    };
    let parts: Vec<(u64, _)> = missing.chunks.chunks(PART_CHUNKS).map(part).collect();
    for (bytes, rx) in parts {
        rx.await.unwrap_or(Err(FetchError::Closed))?;
        came(bytes);
    }
    Ok(())
}

/// Fetches one round; what could not be had is an error.
pub(super) async fn fetch(open: &OpenFolder, missing: Missing) -> Result<(), FetchError> {
    let (tx, rx) = oneshot::channel();
    let done = Box::new(move |result| {
        let _nobody = tx.send(result);
    });
    if missing.nodes.is_empty() {
        open.swarm.chunks(missing.chunks, Priority::Replica, done);
    } else {
        open.swarm.nodes(missing.nodes, Priority::Replica, done);
    }
    rx.await.unwrap_or(Err(FetchError::Closed))
}
