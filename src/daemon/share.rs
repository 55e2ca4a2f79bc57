//! `share`, `unshare` and `confirm`.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::open::{OpenFolder, blocking, indexing, unscanned};
use super::record::{self, FolderRecord};
use super::{Daemon, place};
use crate::api::types::*;
use crate::api::{ApiError, ErrorKind, ProgressSink};
use crate::folder::home::marker;
use crate::random;
use crate::share::{Capability, Link, OwnerSeed, Right, Suite};

impl Daemon {
    /// Publishes a directory: a plain one becomes a home, one that is mounted is opened to others.
    pub(super) async fn share_dir(
        &self,
        request: ShareRequest,
        progress: ProgressSink,
    ) -> Result<ShareResponse, ApiError> {
        let dir = place::existing_dir(&request.dir)?;
        let _turn = self.0.turn.lock().await;
        let open = match self.folder_at(&dir) {
            Some(open) => {
                // A read-only member cannot hand out the links, so it is asked before anything changes.
                self.links_of(&open)?;
                self.share_again(&open, progress).await?;
                open
            }
            None => {
                self.listen()?;
                let suite = request.suite.map_or(Suite::Blake3, suite_of);
                self.new_home(&dir, request.name.clone(), suite, progress)
                    .await?
                    .0
            }
        };
        if request
            .suite
            .is_some_and(|suite| suite_of(suite) != open.link.suite())
        {
            let what = "the directory holds a folder that was created with another hash";
            return Err(ApiError::new(ErrorKind::Refused, what)
                .hint("leave out --suite, or `ccbt unshare` it and remove its .ccbt directory to make a new folder"));
        }
        for peer in &request.peers {
            open.swarm.give(*peer);
        }
        self.go_online(&open)?;
        open.record.lock().shared = true;
        open.save()?;
        self.publish(&open).await?;
        self.announce_work();
        self.share_response(&open)
    }

    /// A plain directory becomes the home of its folder. What fails before it is shared leaves nothing behind; only a
    /// first scan that was stopped is gone on with the next time. Also returns whether the folder is new.
    pub(super) async fn new_home(
        &self,
        dir: &Path,
        name: Option<String>,
        suite: Suite,
        progress: ProgressSink,
    ) -> Result<(Arc<OpenFolder>, bool), ApiError> {
        place::apart_from_state(dir, self.0.state.path())?;
        place::outside_mounts(dir)?;
        let homes = self.homes();
        place::apart_from_others(dir, homes.iter().map(|home| home.as_path()))?;
        let (known, is_new) = match self.remembered_home(dir)? {
            Some(known) => (known, false),
            None => (new_folder(dir, name, suite), true),
        };
        let (mut record, link) = known;
        record.home = Some(ApiPath(dir.to_path_buf()));
        let open = self.open_folder(record, &link).await?;
        if let Err(error) = self.open_home(&open, dir, progress).await {
            let is_stopped = self.0.stopping.load(Ordering::Relaxed);
            if is_new && !is_stopped {
                self.unmark(&open).await;
            }
            self.close_folder(&open).await;
            if is_new && !is_stopped {
                forget_folder(&open.dir);
            }
            return Err(error);
        }
        Ok((open, is_new))
    }

    /// A home that was unshared while it was mounted is followed again.
    async fn share_again(
        &self,
        open: &Arc<OpenFolder>,
        progress: ProgressSink,
    ) -> Result<(), ApiError> {
        let (shared, home) = {
            let record = open.record.lock();
            (record.shared, record.home.clone())
        };
        match home {
            // Under its mount it is followed all the time.
            Some(home) if !shared && !self.0.mounts.lock().contains_key(&home.0) => {
                // Two readers of one directory would answer for each other's ranges.
                drop(open.home.lock().take());
                self.open_home(open, &home.0, progress).await
            }
            _ => Ok(()),
        }
    }

    /// Takes the marker away from the directory that holds a folder.
    pub(super) async fn unmark(&self, open: &OpenFolder) {
        let Some(home) = open.home.lock().clone() else {
            return;
        };
        let unmarked = tokio::task::spawn_blocking(move || home.unshare()).await;
        if let Ok(Err(error)) = unmarked {
            tracing::warn!(%error, "the marker .ccbt/home stays in the directory");
        }
    }

    /// A directory that was shared before keeps its folder and so its links.
    pub(super) fn remembered_home(
        &self,
        dir: &Path,
    ) -> Result<Option<(FolderRecord, Link)>, ApiError> {
        let folders = self.0.state.path().join("folders");
        let Ok(entries) = std::fs::read_dir(&folders) else {
            return Ok(None);
        };
        for entry in entries.flatten() {
            if let Ok(record) = FolderRecord::load(&entry.path())
                && record.home.as_ref().is_some_and(|home| home.0 == dir)
            {
                let link = record.link(&entry.path())?;
                return Ok(Some((record, link)));
            }
        }
        Ok(None)
    }

    pub(super) async fn unshare_dir(
        &self,
        request: UnshareRequest,
    ) -> Result<UnshareResponse, ApiError> {
        let dir = place::real(&request.dir);
        let _turn = self.0.turn.lock().await;
        let Some(open) = self.folder_at(&dir) else {
            return self.unshare_closed(&dir, &request.dir);
        };
        if !open.record.lock().shared {
            return Err(not_shared(&request.dir));
        }
        let response = UnshareResponse {
            folder: open.id.to_string(),
            name: open.record.lock().name.clone(),
        };
        open.record.lock().shared = false;
        open.save()?;
        self.0.gate.close(&open.credentials.swarm());
        self.stop_looking(&open);
        open.swarm.set_online(false);
        let home = open.record.lock().home.clone();
        if home.is_none_or(|home| !self.0.mounts.lock().contains_key(&home.0)) {
            open.write_back().await;
            self.unmark(&open).await;
        }
        if self.mounts_of(&open.id).is_empty() {
            self.close_folder(&open).await;
        }
        self.announce_work();
        Ok(response)
    }

    /// Ends a share that could not be opened when the daemon started, as when its disk is gone.
    fn unshare_closed(&self, dir: &Path, asked: &ApiPath) -> Result<UnshareResponse, ApiError> {
        let Some((mut record, link)) = self.remembered_home(dir)?.filter(|(r, _)| r.shared) else {
            return Err(not_shared(asked));
        };
        record.shared = false;
        let folder = link.folder();
        record.save(&record::folder_dir(self.0.state.path(), &folder))?;
        let marker = self.marker(&folder);
        if let Err(error) = marker::remove_own(dir, &marker) {
            tracing::warn!(%error, "the marker .ccbt/home stays in the directory");
        }
        Ok(UnshareResponse {
            folder: folder.to_string(),
            name: record.name,
        })
    }

    /// Publishes what a home holds although it looks as if its disk were gone: the user says it is meant to be so.
    pub(super) async fn confirm_dir(
        &self,
        request: ConfirmRequest,
        progress: ProgressSink,
    ) -> Result<ConfirmResponse, ApiError> {
        let dir = place::real(&request.dir);
        let _turn = self.0.turn.lock().await;
        let open = self
            .folder_at(&dir)
            .ok_or_else(|| not_shared(&request.dir))?;
        let home = open.home.lock().clone();
        let home = home.ok_or_else(|| not_shared(&request.dir))?;
        let held = home.held_back();
        if let Some(reason) = &held {
            if !reason.can_be_confirmed() {
                let what = format!("{} cannot be confirmed: {reason}", request.dir);
                return Err(ApiError::new(ErrorKind::Refused, what).hint(
                    "bring the directory back, or share the one that is there: `ccbt unshare`, then `ccbt share`",
                ));
            }
            let shown = request.dir.to_string();
            blocking(move || {
                home.confirm().map_err(|error| {
                    ApiError::io(format_args!("cannot write in {shown}"), &error)
                })?;
                let scanned = home.scan(&|done| progress.report(indexing(&done, None)));
                scanned.map(drop).map_err(unscanned)
            })
            .await?;
            self.publish(&open).await?;
        }
        let stats = open.folder.stats(&|_| true);
        Ok(ConfirmResponse {
            folder: open.id.to_string(),
            name: open.record.lock().name.clone(),
            held_back: held.map(|reason| reason.to_string()),
            content: Amount {
                files: stats.files,
                bytes: stats.bytes,
            },
        })
    }

    pub(super) async fn publish(&self, open: &OpenFolder) -> Result<(), ApiError> {
        open.swarm.publish_now().await.map_err(|error| {
            let kind = match error.is_disk_full {
                true => ErrorKind::NoSpace,
                false => ErrorKind::Io,
            };
            ApiError::new(kind, format_args!("cannot publish the folder: {error}"))
        })
    }

    /// The open folder whose home, live directory or mount point `dir` is.
    pub(super) fn folder_at(&self, dir: &Path) -> Option<Arc<OpenFolder>> {
        let mounted = self.0.mounts.lock().get(dir).map(|mount| mount.of.clone());
        if let Some(open) = mounted.and_then(|of| self.mounted_folder(&of)) {
            return Some(open);
        }
        let folders = self.0.folders.lock();
        let is_at = |open: &&Arc<OpenFolder>| {
            let record = open.record.lock();
            let at = |path: &Option<ApiPath>| path.as_ref().is_some_and(|p| p.0 == dir);
            at(&record.home) || at(&record.live)
        };
        folders.values().find(is_at).cloned()
    }

    /// Directories that hold open folders.
    pub(super) fn homes(&self) -> Vec<std::path::PathBuf> {
        let folders = self.0.folders.lock();
        folders
            .values()
            .filter_map(|open| open.record.lock().home.clone())
            .map(|p| p.0)
            .collect()
    }

    /// The read-write and the read-only link.
    fn links_of(&self, open: &OpenFolder) -> Result<(Secret, Secret), ApiError> {
        let link = |right| {
            open.link_for(right).map(Secret::new).ok_or_else(|| {
                let what = "this device only has a read-only link to the folder";
                ApiError::new(ErrorKind::Refused, what)
                    .hint("hand on the link you were given, or share with a read-write one")
            })
        };
        Ok((link(Right::Write)?, link(Right::Read)?))
    }

    fn share_response(&self, open: &OpenFolder) -> Result<ShareResponse, ApiError> {
        let (read_write, read_only) = self.links_of(open)?;
        let stats = open.folder.stats(&|_| true);
        Ok(ShareResponse {
            folder: open.id.to_string(),
            name: open.record.lock().name.clone(),
            read_write,
            read_only,
            content: Amount {
                files: stats.files,
                bytes: stats.bytes,
            },
        })
    }
}

fn not_shared(dir: &ApiPath) -> ApiError {
    ApiError::new(ErrorKind::NotFound, format_args!("{dir} is not shared"))
        .hint("`ccbt status` lists what is")
}

fn suite_of(named: HashSuite) -> Suite {
    match named {
        HashSuite::Blake3 => Suite::Blake3,
        HashSuite::Sha256 => Suite::Sha256,
    }
}

/// Removes the record and the working tree of a folder nobody has seen yet.
pub(super) fn forget_folder(dir: &Path) {
    if let Err(error) = std::fs::remove_dir_all(dir) {
        tracing::warn!(%error, dir = %dir.display(), "what was begun stays");
    }
}

/// A folder that did not exist before: its owner is whoever has this state directory.
pub(super) fn new_folder(dir: &Path, name: Option<String>, suite: Suite) -> (FolderRecord, Link) {
    let seed = OwnerSeed::generate(&mut random::fill);
    let link = Link::new(seed.folder(), suite, Capability::Owner(seed));
    let name = name.unwrap_or_else(|| name_of(dir));
    (FolderRecord::new(name, &link), link)
}

/// What a folder that nobody has named is called: as the directory is where it is first seen.
pub(super) fn name_of(dir: &Path) -> String {
    let last = dir.file_name().unwrap_or(dir.as_os_str());
    last.to_string_lossy().into_owned()
}
