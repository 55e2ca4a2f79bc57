//! What a user does with a torrent: look, pause, check again, remove.

use std::sync::Arc;

use super::super::open::blocking;
use super::super::{Daemon, place};
use super::OpenTorrent;
use super::list::{list_files, peer_entry};
use crate::api::types::*;
use crate::api::{ApiError, ErrorKind};

impl Daemon {
    pub(in crate::daemon) async fn torrent_call(
        &self,
        request: TorrentRequest,
    ) -> Result<TorrentResponse, ApiError> {
        let open = self.find_torrent(&request.torrent)?;
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
            TorrentAction::Pause => pause(&open, true)?,
            TorrentAction::Resume => pause(&open, false)?,
            TorrentAction::Recheck => open.handle.recheck(),
            TorrentAction::Remove => self.remove_torrent(&open).await?,
        }
        Ok(TorrentResponse {
            torrent: open.entry(),
            files,
            peers,
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

pub(super) fn pause(open: &OpenTorrent, paused: bool) -> Result<(), ApiError> {
    open.record.lock().paused = paused;
    open.handle.pause(paused);
    open.save()
}
