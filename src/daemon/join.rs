//! `join`: a plain directory becomes the home of a folder that others have.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::keep::fetch;
use super::mounts::{Opened, parse_link, remember_peers};
use super::open::{OpenFolder, blocking};
use super::share::forget_folder;
use super::{Daemon, place};
use crate::api::types::*;
use crate::api::{ApiError, ErrorKind, ProgressSink};
use crate::folder::home::ignore;
use crate::folder::home::join::{JoinPlan, Paths, compare, is_bare};
use crate::share::Right;

/// Fetches of the folder's rules: their nodes, what these name, and once more should a member have gone.
const RULES_ROUNDS: u32 = 6;

impl Daemon {
    pub(super) async fn join_dir(
        &self,
        request: JoinRequest,
        progress: ProgressSink,
    ) -> Result<JoinResponse, ApiError> {
        let link = parse_link(&request.link)?;
        if link.right() < Right::Write {
            let what = "the link is read-only, and a plain directory goes both ways";
            return Err(ApiError::new(ErrorKind::Refused, what).hint(
                "join with a read-write link, or keep a read-only copy: `ccbt mount --offline`",
            ));
        }
        let _turn = self.0.turn.lock().await;
        let is_made = make_dir(&request.dir)?;
        let dir = self.free_dir(&request.dir)?;
        self.listen()?;
        let Opened { open, is_new } = self.open_link(&link, &dir).await?;
        let joined = self.join_open(&open, &dir, &request, &progress).await;
        if joined.is_err() || request.dry_run {
            self.close_if_idle(&open).await;
            if is_new && self.folder(&open.id).is_none() {
                forget_folder(&open.dir);
            }
            if is_made {
                // It was made a moment ago; if it is not empty any more, it is somebody's.
                let _used = std::fs::remove_dir(&dir);
            }
        }
        joined
    }

    async fn join_open(
        &self,
        open: &Arc<OpenFolder>,
        dir: &Path,
        request: &JoinRequest,
        progress: &ProgressSink,
    ) -> Result<JoinResponse, ApiError> {
        if let Some(home) = open.record.lock().home.clone().filter(|home| home.0 != dir) {
            let what = format!("the folder has a plain directory here already: {home}");
            return Err(ApiError::new(ErrorKind::Refused, what)
                .hint("unshare that one first, or use another state directory (--state)"));
        }
        remember_peers(open, &request.peers);
        self.go_online(open)?;
        let listing = self.wait_for_listing(open, progress).await?;
        let bare = is_bare(dir).map_err(|error| unreadable(dir, &error))?;
        if listing.is_none() && !bare {
            let what = "no member of the folder answers, so what the directory holds cannot be compared with it";
            return Err(ApiError::new(ErrorKind::Timeout, what).hint(
                "name a member that is online with --peer IP:PORT, or join an empty directory",
            ));
        }
        if !fetch_rules(open).await && !bare {
            let what = "the folder's .ccbtignore cannot be fetched, so what is not to be shared of the directory is not known";
            return Err(ApiError::new(ErrorKind::Timeout, what).hint(
                "try again when a member that has it is online, or join an empty directory",
            ));
        }
        let plan = self.plan_join(open, dir).await?;
        let response = response(open, dir, &plan, request.dry_run);
        if request.dry_run {
            return Ok(response);
        }
        if plan.local_only.count > 0 && !request.merge {
            return Err(only_local(&plan.local_only, dir));
        }
        open.record.lock().home = Some(ApiPath(dir.to_path_buf()));
        let opened = self.open_home(open, dir, Arc::clone(progress)).await;
        if let Err(error) = opened {
            self.unmark(open).await;
            drop(open.home.lock().take());
            open.record.lock().home = None;
            return Err(error);
        }
        open.record.lock().shared = true;
        open.swarm.set_replica(true);
        open.swarm.set_keeper(true);
        open.save()?;
        self.publish(open).await?;
        self.announce_work();
        Ok(response)
    }

    /// A directory that can become a home.
    fn free_dir(&self, dir: &ApiPath) -> Result<PathBuf, ApiError> {
        let real = place::existing_dir(dir)?;
        place::apart_from_state(&real, self.0.state.path())?;
        place::outside_mounts(&real)?;
        let homes = self.homes();
        place::apart_from_others(&real, homes.iter().map(|home| home.as_path()))?;
        Ok(real)
    }

    async fn plan_join(&self, open: &OpenFolder, dir: &Path) -> Result<JoinPlan, ApiError> {
        let (folder, store) = (open.folder.clone(), Arc::clone(&open.store));
        let dir = dir.to_path_buf();
        blocking(move || compare(&dir, &folder, &store).map_err(|error| unreadable(&dir, &error)))
            .await
    }
}

/// Has the folder's rules here before anything is judged by them. Whether they are.
async fn fetch_rules(open: &OpenFolder) -> bool {
    for _round in 0..RULES_ROUNDS {
        let missing = open.folder.missing_below(&[ignore::FILE], 64);
        match missing {
            Ok(missing) if missing.chunks.is_empty() && missing.nodes.is_empty() => return true,
            Ok(missing) => drop(fetch(open, missing).await),
            Err(_) => return false,
        }
    }
    false
}

/// Makes the directory if it is missing. Whether it was made.
fn make_dir(dir: &ApiPath) -> Result<bool, ApiError> {
    match std::fs::create_dir(&dir.0) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Ok(false),
        Err(error) => Err(ApiError::io(format_args!("cannot create {dir}"), &error)
            .hint("name a directory in one that is there and that you can write to")),
    }
}

fn unreadable(dir: &Path, error: &std::io::Error) -> ApiError {
    ApiError::io(format_args!("cannot read {}", place::shown(dir)), error)
}

fn only_local(paths: &Paths, dir: &Path) -> ApiError {
    let first = paths.first.first().cloned().unwrap_or_default();
    let what = format!(
        "{} names in {} are not in the folder, the first is {}",
        paths.count,
        place::shown(dir),
        path_of(first),
    );
    ApiError::new(ErrorKind::Refused, what)
        .hint("publish them with --merge, or move them away; --dry-run lists them")
}

fn response(open: &OpenFolder, dir: &Path, plan: &JoinPlan, dry_run: bool) -> JoinResponse {
    let paths = |paths: &Paths| paths.first.iter().cloned().map(path_of).collect();
    JoinResponse {
        folder: open.id.to_string(),
        name: open.record.lock().name.clone(),
        dir: ApiPath(dir.to_path_buf()),
        same: plan.same,
        different: plan.different.count,
        different_paths: paths(&plan.different),
        local_only: plan.local_only.count,
        local_only_paths: paths(&plan.local_only),
        missing: Amount {
            files: plan.missing_files,
            bytes: plan.missing_bytes,
        },
        dry_run,
    }
}

fn path_of(path: Vec<u8>) -> ApiPath {
    ApiPath(PathBuf::from(OsString::from_vec(path)))
}
