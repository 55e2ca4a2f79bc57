//! `share` and `unshare`.

use std::path::Path;
use std::sync::Arc;

use super::open::OpenFolder;
use super::record::FolderRecord;
use super::{Daemon, place};
use crate::api::types::*;
use crate::api::{ApiError, ErrorKind, ProgressSink};
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
            Some(open) => open,
            None => self.new_home(&dir, request.name.clone(), progress).await?,
        };
        // A read-only member cannot hand out the links, so it is asked before anything changes.
        self.links_of(&open)?;
        for peer in &request.peers {
            open.swarm.give(*peer);
        }
        self.go_online(&open)?;
        open.record.lock().shared = true;
        open.save()?;
        let published = open.swarm.publish_now().await;
        published.map_err(|error| {
            ApiError::new(
                ErrorKind::Io,
                format_args!("cannot publish the folder: {error}"),
            )
        })?;
        self.announce_work();
        self.share_response(&open)
    }

    async fn new_home(
        &self,
        dir: &Path,
        name: Option<String>,
        progress: ProgressSink,
    ) -> Result<Arc<OpenFolder>, ApiError> {
        place::apart_from_state(dir, self.0.state.path())?;
        place::outside_mounts(dir)?;
        let homes = self.homes();
        place::apart_from_others(dir, homes.iter().map(|home| home.as_path()))?;
        let (mut record, link) = match self.remembered_home(dir)? {
            Some(known) => known,
            None => new_folder(dir, name),
        };
        record.home = Some(ApiPath(dir.to_path_buf()));
        let open = self.open_folder(record, &link).await?;
        if let Err(error) = self.open_home(&open, dir, progress).await {
            self.close_folder(&open).await;
            return Err(error);
        }
        Ok(open)
    }

    /// A directory that was shared before keeps its folder and so its links.
    fn remembered_home(&self, dir: &Path) -> Result<Option<(FolderRecord, Link)>, ApiError> {
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
        let dir = place::existing_dir(&request.dir)?;
        let _turn = self.0.turn.lock().await;
        let open = self.folder_at(&dir).ok_or_else(|| {
            ApiError::new(
                ErrorKind::NotFound,
                format_args!("{} is not shared", request.dir),
            )
            .hint("`ccbt status` lists what is")
        })?;
        if !open.record.lock().shared {
            let what = format!("{} is not shared", request.dir);
            return Err(
                ApiError::new(ErrorKind::NotFound, what).hint("`ccbt status` lists what is")
            );
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
        if self.mounts_of(&open.id).is_empty() {
            self.close_folder(&open).await;
        }
        self.announce_work();
        Ok(response)
    }

    /// The open folder whose home, live directory or mount point `dir` is.
    pub(super) fn folder_at(&self, dir: &Path) -> Option<Arc<OpenFolder>> {
        let mounted = self.0.mounts.lock().get(dir).map(|mount| mount.folder);
        if let Some(open) = mounted.and_then(|id| self.folder(&id)) {
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
        let stats = open.folder.stats();
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

/// A folder that did not exist before: its owner is whoever has this state directory.
pub(super) fn new_folder(dir: &Path, name: Option<String>) -> (FolderRecord, Link) {
    let seed = OwnerSeed::generate(&mut random::fill);
    let link = Link::new(seed.folder(), Suite::Blake3, Capability::Owner(seed));
    let name = name.unwrap_or_else(|| {
        let last = dir.file_name().unwrap_or(dir.as_os_str());
        last.to_string_lossy().into_owned()
    });
    (FolderRecord::new(name, &link), link)
}
