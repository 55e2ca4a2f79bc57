//! What a user does with a torrent: look, pause, check again, remove.

use std::sync::Arc;

use super::super::open::blocking;
use super::super::{Daemon, place};
use super::OpenTorrent;
use super::add::selection_of;
use super::list::{list_files, peer_entry, web_seed_entry};
use super::record::save;
use crate::api::types::*;
use crate::api::{ApiError, ErrorKind};
use crate::engine::torrent::relocate::MoveError;
use crate::proto::picker::PRIORITY_MAX;

impl Daemon {
    pub(in crate::daemon) async fn torrent_call(
        &self,
        request: TorrentRequest,
    ) -> Result<TorrentResponse, ApiError> {
        let open = self.find_torrent(&request.torrent)?;
        let (mut trackers, mut web_seeds) = (Vec::new(), Vec::new());
        let (mut files, mut peers) = (Vec::new(), Vec::new());
        match request.action {
            TorrentAction::Show => {}
            TorrentAction::Files => files = list_files(&open).await,
            TorrentAction::Peers => {
                peers = open
                    .handle
                    .peers()
                    .await
                    .into_iter()
                    .map(peer_entry)
                    .collect();
            }
            TorrentAction::WebSeeds => {
                let seeds = open.handle.web_seeds().await.into_iter();
                web_seeds = seeds.map(web_seed_entry).collect();
            }
            TorrentAction::Trackers => trackers = self.list_trackers(&open),
            TorrentAction::Set(changes) => self.change_settings(&open, |settings| {
                changes.iter().try_for_each(|change| settings.set(change))
            })?,
            TorrentAction::Priority { pattern, priority } => prefer(&open, &pattern, priority)?,
            TorrentAction::Move { dir } => self.move_torrent(&open, dir).await?,
            TorrentAction::Pause => pause(&open, true)?,
            TorrentAction::Resume => pause(&open, false)?,
            TorrentAction::Recheck => open.handle.recheck(),
            TorrentAction::Remove => self.remove_torrent(&open).await?,
        }
        Ok(TorrentResponse {
            torrent: self.entry_of(&open),
            files,
            peers,
            trackers,
            web_seeds,
            settings: open.record.lock().settings.clone(),
        })
    }

    /// The torrent that is meant: by hash, by the beginning of one, or by name.
    fn find_torrent(&self, text: &str) -> Result<Arc<OpenTorrent>, ApiError> {
        let torrents = self.0.torrents.lock();
        let lower = text.to_ascii_lowercase();
        let named = |open: &&Arc<OpenTorrent>| open.handle.status().borrow().name == text;
        let begins = |open: &&Arc<OpenTorrent>| !lower.is_empty() && open.hash.starts_with(&lower);
        let mut found: Vec<_> = torrents.values().filter(begins).cloned().collect();
        if found.is_empty() {
            found = torrents.values().filter(named).cloned().collect();
        }
        match found.len() {
            1 => Ok(found.remove(0)),
            0 => Err(
                ApiError::new(ErrorKind::NotFound, "there is no such torrent")
                    .hint("`ccbt torrents` lists them"),
            ),
            _ => Err(
                ApiError::new(ErrorKind::Usage, "several torrents are meant by this")
                    .hint("give more digits of the info-hash"),
            ),
        }
    }

    /// Changes what is different for a torrent: all of `change`, or nothing.
    pub(super) fn change_settings(
        &self,
        open: &OpenTorrent,
        change: impl FnOnce(&mut TorrentSettings) -> Result<(), ApiError>,
    ) -> Result<(), ApiError> {
        let mut record = open.record.lock();
        let mut settings = record.settings.clone();
        change(&mut settings)?;
        if settings != record.settings {
            let before = std::mem::replace(&mut record.settings, settings);
            if let Err(error) = save(&open.state, &record) {
                record.settings = before;
                return Err(error);
            }
            open.handle.set(record.settings.resolve(&self.0.config));
        }
        Ok(())
    }

    /// Moves the files of a torrent. Where to is noted first, so that a daemon that is killed meanwhile goes on with it.
    async fn move_torrent(&self, open: &Arc<OpenTorrent>, dir: ApiPath) -> Result<(), ApiError> {
        let from = {
            let mut record = open.record.lock();
            if record.lazy {
                let what = "what a mount has fetched stays with the daemon";
                return Err(ApiError::new(ErrorKind::Refused, what).hint("download the torrent"));
            }
            if record.moving.is_some() {
                return Err(ApiError::new(
                    ErrorKind::Busy,
                    "its files are on the move already",
                ));
            }
            record.moving = Some(dir.clone());
            let noted = save(&open.state, &record);
            if noted.is_err() {
                record.moving = None;
            }
            noted?;
            record.dir.clone()
        };
        let moved = open.handle.relocate(dir.0.clone()).await;
        let torn = matches!(moved, Err(MoveError::Torn(..)));
        {
            let mut record = open.record.lock();
            if moved.is_ok() {
                record.dir = dir;
            }
            if !torn {
                record.moving = None;
            }
            save(&open.state, &record)?;
        }
        match moved {
            Ok(()) => open.handle.sweep(from.0),
            Err(error @ MoveError::Exists(_)) => {
                let hint = "move it away, or choose another folder";
                return Err(ApiError::new(ErrorKind::Busy, escaped(&error)).hint(hint));
            }
            Err(error @ MoveError::NotYet) => {
                return Err(ApiError::new(ErrorKind::Busy, escaped(&error)));
            }
            Err(error) => return Err(ApiError::new(ErrorKind::Io, escaped(&error))),
        }
        self.announce_work();
        Ok(())
    }

    async fn remove_torrent(&self, open: &Arc<OpenTorrent>) -> Result<(), ApiError> {
        self.0.torrents.lock().remove(&open.hash);
        self.close_torrent(open).await;
        self.announce_work();
        let state = open.state.clone();
        blocking(move || {
            std::fs::remove_dir_all(&state).map_err(|error| {
                ApiError::io(
                    format_args!("cannot remove {}", place::shown(&state)),
                    &error,
                )
            })
        })
        .await
    }
}

/// Paths in it may have any bytes.
fn escaped(error: &MoveError) -> String {
    crate::api::escape(error.to_string().as_bytes())
}

/// Says how much files are wanted, from now on.
fn prefer(open: &OpenTorrent, pattern: &str, priority: u8) -> Result<(), ApiError> {
    if priority > PRIORITY_MAX {
        let what = format!("a priority is 0 (not wanted) to {PRIORITY_MAX}, not {priority}");
        return Err(ApiError::new(ErrorKind::Usage, what));
    }
    let mut record = open.record.lock();
    let before = record.selection.clone();
    record.selection.prefer(pattern, priority);
    if let Err(error) = save(&open.state, &record) {
        record.selection = before;
        return Err(error);
    }
    open.handle.select(selection_of(&record));
    Ok(())
}

pub(super) fn pause(open: &OpenTorrent, paused: bool) -> Result<(), ApiError> {
    open.record.lock().paused = paused;
    open.handle.pause(paused);
    open.save()
}
