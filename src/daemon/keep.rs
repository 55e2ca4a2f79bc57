//! `pin`, `unpin` and `evict`: what of a folder's content stays on this device.

use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;
use std::time::Duration;

use ccbt_mount::VolumeError;
use ccbt_xet::hash::NodeId;
use ccbt_xet::store::{Store, WriteError};
use tokio::sync::oneshot;

use super::Daemon;
use super::open::OpenFolder;
use crate::api::types::*;
use crate::api::{ApiError, ErrorKind, ProgressSink};
use crate::folder::state::Name;
use crate::folder::work::{Fetch, FetchError, Folder, Held, Missing, Priority};

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
            let note = match fetch(&open, missing).await {
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
            progress.report(Progress {
                note: note.to_owned(),
                ..Progress::default()
            });
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
        let stats = open.folder.stats();
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
        // No folder is opened or closed meanwhile.
        let _turn = self.0.turn.lock().await;
        let (open, path) = self.folder_of(&request.path)?;
        if open.record.lock().pinned || open.record.lock().home.is_some() {
            return Err(ApiError::new(
                ErrorKind::Refused,
                "the folder is kept whole on this device",
            )
            .hint("unpin it first: ccbt unpin"));
        }
        let stored = match open.swarm.status().await {
            Some(status) if status.stored_elsewhere => Some(status.root),
            _ => None,
        };
        let daemon = self.clone();
        let but = Arc::clone(&open);
        let others = blocking(move || daemon.folders_but(&but)).await??;
        let (store, folder) = (Arc::clone(&open.store), open.folder.clone());
        let shown = request.path.clone();
        let evicted = blocking(move || {
            let names: Vec<&[u8]> = path.iter().map(Name::as_bytes).collect();
            evict(&store, &folder, &names, stored, &others)
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

/// Drops what only the files below `path` need, if the root that is `stored` elsewhere holds all there is here.
fn evict(
    store: &Store,
    folder: &Folder,
    path: &[&[u8]],
    stored: Option<NodeId>,
    others: &[Folder],
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
    let mut spare = below.chunks;
    held.spare_opened(&mut spare)?;
    for other in &others {
        other.spare(&mut spare)?;
    }
    let reclaimed = store.remove(&|hash| !spare.contains(hash))?;
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
