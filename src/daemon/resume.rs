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
        let is_open = self.0.folders.lock().values().any(|open| open.dir == dir);
        let (name, result) = match FolderRecord::load(dir) {
            _ if is_open => (String::new(), Ok(())),
            Ok(record) if record.shared || !record.mounts.is_empty() => {
                (record.name.clone(), self.resume_folder(dir, record).await)
            }
            Ok(record) => (record.name, Ok(())),
            Err(error) => {
                let name = dir.file_name().unwrap_or_default();
                (escape(name.as_encoded_bytes()), Err(error.into()))
            }
        };
        let mut unopened = self.0.unopened.lock();
        match result {
            Ok(()) => drop(unopened.remove(dir)),
            Err(ApiError { message, hint, .. }) => {
                let now = UnopenedStatus {
                    name,
                    error: message,
                    hint,
                };
                if unopened.get(dir) != Some(&now) {
                    tracing::error!(folder = now.name, error = now.error, "folder not opened");
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
        let (home, shared, mounts) = {
            let record = open.record.lock();
            (record.home.clone(), record.shared, record.mounts.clone())
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
        if shared {
            self.go_online(open)?;
        }
        for mount in mounts {
            if let Err(error) = self
                .mount_folder(open, &mount.dir.0, mount.read_only, true, false, false)
                .await
            {
                tracing::error!(dir = %mount.dir, error = error.message, "not mounted again");
            }
        }
        Ok(())
    }
}
