//! What edits by others displaced in plain directories: `displaced`, and its end when its time has come.

use std::collections::HashSet;
use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use ccbt_mount::VolumeError;
use ccbt_xet::hash::ChunkHash;
use ccbt_xet::store::{ReadError, WriteError};

use super::open::{OpenFolder, blocking};
use super::{Daemon, place};
use crate::api::types::*;
use crate::api::{ApiError, ErrorKind, escape};
use crate::clock;
use crate::folder::home::Home;
use crate::folder::home::displaced::{Lying, RestoreError};
use crate::folder::home::expire::{Due, ExpireError, Expired, Retention};
use crate::folder::home::origin::Why;
use crate::folder::work::{Folder, Held};

/// Nothing that was displaced goes earlier: who did it by mistake, or looks at the wrong clock, notices.
const KEEP_MIN: Duration = Duration::from_secs(3600);

/// A home that is open, and where it is.
struct OpenHome {
    open: Arc<OpenFolder>,
    home: Arc<Home>,
    dir: PathBuf,
}

impl Daemon {
    pub(super) async fn displaced_call(
        &self,
        request: DisplacedRequest,
    ) -> Result<DisplacedResponse, ApiError> {
        let homes = match &request.dir {
            Some(dir) => vec![self.home_at(dir)?],
            None => self.open_homes(),
        };
        let mut response = DisplacedResponse {
            displaced: Vec::new(),
            restored: Vec::new(),
        };
        match request.action {
            DisplacedAction::List => {
                for home in homes {
                    let mut listed = blocking(move || list(&home)).await?;
                    response.displaced.append(&mut listed);
                }
            }
            DisplacedAction::Restore { number, name } => {
                let mut homes = homes.into_iter();
                let (Some(home), None) = (homes.next(), homes.next()) else {
                    let what = "numbers are those of one directory";
                    return Err(ApiError::new(ErrorKind::Usage, what)
                        .hint("name it: ccbt displaced DIR --restore NUMBER"));
                };
                let path = blocking(move || restore(&home, number, name.as_ref())).await?;
                response.restored.push(path);
            }
            DisplacedAction::RestoreAll { since_s, device } => {
                for home in homes {
                    let device = device.clone();
                    let all = move || restore_all(&home, since_s, device.as_deref());
                    response.restored.append(&mut blocking(all).await?);
                }
            }
        }
        Ok(response)
    }

    fn open_homes(&self) -> Vec<OpenHome> {
        let folders: Vec<Arc<OpenFolder>> = self.0.folders.lock().values().cloned().collect();
        folders.into_iter().filter_map(open_home).collect()
    }

    fn home_at(&self, dir: &ApiPath) -> Result<OpenHome, ApiError> {
        let found = self.folder_at(&place::real(dir)).and_then(open_home);
        found.ok_or_else(|| {
            let what = format!("{dir} is no plain directory that is open here");
            ApiError::new(ErrorKind::NotFound, what).hint("`ccbt status` lists them")
        })
    }

    /// Removes what has been among the displaced for long enough.
    pub(super) async fn expire_displaced(&self) {
        for home in self.open_homes() {
            let shown = place::shown(&home.dir);
            if let Err(error) = self.expire_in(home).await {
                tracing::warn!(dir = %shown, error = error.message, "what is displaced stays");
            }
        }
    }

    async fn expire_in(&self, home: OpenHome) -> Result<(), ApiError> {
        let retention = self.retention();
        let OpenHome { open, home, .. } = home;
        let looking = Arc::clone(&home);
        let due = blocking(move || looking.displaced_due(&retention).map_err(unexpired)).await?;
        if due.is_empty() {
            return Ok(());
        }
        // No folder is opened or closed meanwhile.
        let _turn = self.0.turn.lock().await;
        let (daemon, folder) = (self.clone(), Arc::clone(&open));
        let others = blocking(move || daemon.folders_but(&folder)).await?;
        let expired = blocking(move || expire(&open, &home, &due, &others));
        let expired = expired.await?;
        tracing::info!(
            things = expired.things,
            bytes = expired.bytes,
            "displaced files have gone"
        );
        Ok(())
    }

    fn retention(&self) -> Retention {
        Retention {
            keep: self.0.config.displaced_keep,
            max_bytes: self.0.config.displaced_max_bytes,
            at_least: KEEP_MIN,
        }
    }
}

/// Why what is needed could not be kept otherwise.
#[derive(Debug, thiserror::Error)]
enum KeepError {
    #[error(transparent)]
    Folder(#[from] VolumeError),
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error(transparent)]
    Write(#[from] WriteError),
}

/// Removes what is due, once the store holds on its own what any folder needs of it.
fn expire(
    open: &OpenFolder,
    home: &Home,
    due: &[Due],
    others: &[Folder],
) -> Result<Expired, ApiError> {
    // Until it is gone: what is being committed may count on chunks that no version names yet.
    let held = open.folder.hold();
    let others: Vec<Held<'_>> = others.iter().map(Folder::hold).collect();
    let kept = keep_needed(open, home.borrowed_by(due), &held, &others);
    kept.map_err(|error| ApiError::new(ErrorKind::Io, error))?;
    home.expire(due).map_err(unexpired)
}

fn keep_needed(
    open: &OpenFolder,
    borrowed: HashSet<ChunkHash>,
    held: &Held<'_>,
    others: &[Held<'_>],
) -> Result<(), KeepError> {
    let mut spare = borrowed.clone();
    held.spare(&mut spare)?;
    for other in others {
        other.spare(&mut spare)?;
    }
    for hash in borrowed.difference(&spare) {
        // One that is not in the file any more is not lost by its going.
        if let Some(bytes) = open.store.chunk(hash)? {
            open.store.put_chunk(hash, &bytes)?;
        }
    }
    Ok(open.store.sync()?)
}

fn open_home(open: Arc<OpenFolder>) -> Option<OpenHome> {
    let home = open.home.lock().clone()?;
    let dir = open.record.lock().home.clone()?.0;
    Some(OpenHome { open, home, dir })
}

fn list(home: &OpenHome) -> Result<Vec<Displaced>, ApiError> {
    let lying = lying(home)?.into_iter();
    Ok(lying.map(|one| displaced(home, &one)).collect())
}

fn lying(home: &OpenHome) -> Result<Vec<Lying>, ApiError> {
    let lying = home.home.displaced();
    let dir = place::shown(&home.dir);
    lying.map_err(|error| ApiError::io(format_args!("cannot read {dir}"), &error))
}

fn displaced(home: &OpenHome, one: &Lying) -> Displaced {
    let origin = one.origin.as_ref();
    let since = origin.map_or_else(|| one.found.stamp.ctime.unix_nanos(), |origin| origin.when);
    Displaced {
        dir: ApiPath(home.dir.clone()),
        number: one.number,
        name: escape(one.name()),
        path: origin.map(|origin| path_of(&origin.path)),
        why: origin.map(|origin| match origin.why {
            Why::Replaced => DisplacedWhy::Replaced,
            Why::Removed => DisplacedWhy::Removed,
        }),
        device: device(home, one),
        directory: one.is_dir(),
        size: one.bytes,
        age_s: clock::unix_nanos().saturating_sub(since) / 1_000_000_000,
    }
}

/// Whose version took the place of something, escaped.
fn device(home: &OpenHome, one: &Lying) -> Option<String> {
    let by = one.origin.as_ref()?.by?;
    let names = home.open.names.read();
    names.get(&by.0).map(|name| escape(name.as_bytes()))
}

fn restore(home: &OpenHome, number: u64, name: Option<&ApiPath>) -> Result<ApiPath, ApiError> {
    let asked = name.map(|name| name.0.as_os_str().as_bytes());
    let restored = home.home.restore(number, asked, false);
    let dir = place::shown(&home.dir);
    let restored = restored.map_err(|error| match error {
        RestoreError::Unknown => {
            let what = format!("nothing in {dir} was displaced under the number {number}");
            ApiError::new(ErrorKind::NotFound, what)
                .hint(format!("ccbt displaced {dir} lists what was"))
        }
        RestoreError::Taken => {
            let what = format!("the name is taken in {dir}");
            ApiError::new(ErrorKind::Refused, what).hint("choose another name with --as NAME")
        }
        error => unrestored(&home.dir, error),
    });
    Ok(path_in(&home.dir, &restored?))
}

fn restore_all(
    home: &OpenHome,
    since_s: Option<u64>,
    by: Option<&str>,
) -> Result<Vec<ApiPath>, ApiError> {
    let wanted = lying(home)?.into_iter().rev().filter(|one| {
        let is_new = since_s.is_none_or(|since| displaced(home, one).age_s <= since);
        is_new && by.is_none_or(|by| device(home, one).as_deref() == Some(by))
    });
    let mut restored = Vec::new();
    for one in wanted.collect::<Vec<_>>() {
        match home.home.restore(one.number, None, true) {
            Ok(path) => restored.push(path_in(&home.dir, &path)),
            // Somebody was faster.
            Err(RestoreError::Unknown) => {}
            Err(error) => return Err(unrestored(&home.dir, error)),
        }
    }
    Ok(restored)
}

fn unrestored(dir: &Path, error: RestoreError) -> ApiError {
    let what = format!("cannot restore in {}", place::shown(dir));
    match error {
        RestoreError::Io(error) => ApiError::io(what, &error),
        RestoreError::BadName => ApiError::new(ErrorKind::Usage, format_args!("{what}: {error}"))
            .hint("name it from DIR on with --as, like `sub/name`"),
        error => ApiError::new(ErrorKind::Io, format_args!("{what}: {error}")),
    }
}

fn unexpired(error: ExpireError) -> ApiError {
    ApiError::new(ErrorKind::Io, error)
}

fn path_in(dir: &Path, path: &[u8]) -> ApiPath {
    ApiPath(dir.join(path_of(path).0))
}

fn path_of(path: &[u8]) -> ApiPath {
    ApiPath(PathBuf::from(OsString::from_vec(path.to_vec())))
}
