//! What was open before a stop is opened again. What cannot be opened yet, because a disk is full or away, is tried until it
//! can, and `status` says why.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::Daemon;
use super::open::OpenFolder;
use super::record::FolderRecord;
use crate::api::types::{ApiPath, UnopenedStatus};
use crate::api::{ApiError, escape};

/// Between two tries to open what could not be opened.
const RETRY: Duration = Duration::from_secs(10);
/// A try that takes long (a large folder whose home is away) is made less often: at most 1 part in this many of the time.
const RETRY_SHARE: u32 = 20;

impl Daemon {
    /// Opens every folder that is to be open after a start. One that cannot be opened must not keep the others closed.
    pub(super) async fn resume(&self) -> Result<(), ApiError> {
        for dir in self.folder_dirs()? {
            self.resume_dir(&dir).await;
        }
        if !self.0.unopened.lock().is_empty() {
            tokio::spawn(self.clone().keep_trying());
        }
        Ok(())
    }

    async fn keep_trying(self) {
        let mut wait = RETRY;
        loop {
            tokio::time::sleep(wait).await;
            let _turn = self.0.turn.lock().await;
            if self.0.stopping.load(Ordering::Relaxed) {
                return;
            }
            let started = self.0.clock.now();
            let dirs: Vec<PathBuf> = self.0.unopened.lock().keys().cloned().collect();
            for dir in dirs {
                self.resume_dir(&dir).await;
            }
            if self.0.unopened.lock().is_empty() {
                return;
            }
            wait = RETRY.max(self.0.clock.now().saturating_sub(started) * RETRY_SHARE);
        }
    }

    async fn resume_dir(&self, dir: &Path) {
        let open = self.open_in(dir);
        let (name, result) = match FolderRecord::load(dir) {
            Ok(record) if open.is_some() => (record.name, Ok(())),
            Ok(record) if record.shared || !record.mounts.is_empty() => {
                (record.name.clone(), self.resume_folder(dir, record).await)
            }
            Ok(record) => (record.name, Ok(())),
            Err(error) => {
                let name = dir.file_name().unwrap_or_default();
                (escape(name.as_encoded_bytes()), Err(error.into()))
            }
        };
        let result = match (result, self.open_in(dir)) {
            (Ok(()), Some(open)) => self.mount_again(&open).await,
            (result, _) => result.map_err(|error| (None, error)),
        };
        let mut unopened = self.0.unopened.lock();
        match result {
            Ok(()) => drop(unopened.remove(dir)),
            Err((mount, ApiError { message, hint, .. })) => {
                let now = UnopenedStatus {
                    name,
                    mount,
                    error: message,
                    hint,
                };
                if unopened.get(dir) != Some(&now) {
                    tracing::error!(folder = now.name, mount = ?now.mount, error = now.error, "not opened");
                    unopened.insert(dir.to_path_buf(), now);
                }
            }
        }
    }

    async fn resume_folder(&self, dir: &Path, record: FolderRecord) -> Result<(), ApiError> {
        let link = record.link(dir)?;
        let open = self.open_folder(record, &link).await?;
        let resumed = self.resume_work(&open).await;
        if resumed.is_err() {
            self.close_folder(&open).await;
        }
        resumed
    }

    async fn resume_work(&self, open: &Arc<OpenFolder>) -> Result<(), ApiError> {
        let (home, shared, mounts, is_private) = {
            let record = open.record.lock();
            // One that was opened by a link is not.
            let is_own = record.home.is_some() || record.live.is_some();
            let is_private = is_own && !record.shared;
            let (home, mounts) = (record.home.clone(), record.mounts.clone());
            (home, record.shared, mounts, is_private)
        };
        let is_mounted = |home: &ApiPath| mounts.iter().any(|mount| mount.dir == *home);
        match home {
            Some(home) if shared || is_mounted(&home) => {
                self.open_home(open, &home.0, Arc::new(crate::api::NoProgress))
                    .await?;
            }
            // What the mounts show is still read from its files.
            Some(home) => drop(self.attach_home(open, &home.0).await?),
            None => {}
        }
        if !is_private {
            self.go_online(open)?;
        }
        Ok(())
    }

    /// Mounts an open folder wherever it is to be and is not. One mount that does not come back does not keep the others
    /// away; the first is given back with the reason.
    async fn mount_again(&self, open: &Arc<OpenFolder>) -> Result<(), (Option<ApiPath>, ApiError)> {
        let mut mounts = open.record.lock().mounts.clone();
        mounts.retain(|mount| !self.0.mounts.lock().contains_key(&mount.dir.0));
        let mut result = Ok(());
        for mount in mounts {
            let dir = mount.dir.clone();
            let mounted = self.mount_folder(open, mount, true).await;
            if let Err(error) = mounted {
                result = result.and(Err((Some(dir), error)));
            }
        }
        self.announce_work();
        result
    }

    fn open_in(&self, dir: &Path) -> Option<Arc<OpenFolder>> {
        let folders = self.0.folders.lock();
        folders.values().find(|open| open.dir == dir).cloned()
    }
}
