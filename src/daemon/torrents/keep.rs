//! From one run of the daemon to the next: torrents are opened again, their metadata is kept, and they are closed.

use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::task::JoinSet;

use super::super::open::blocking;
use super::super::{Daemon, MountOf, place};
use super::add::{know, selection_of};
use super::record::{METAINFO_FILE, TorrentRecord, load, save, save_metainfo};
use super::{OpenTorrent, short_hashes};
use crate::api::{ApiError, ErrorKind};
use crate::engine::discovery::Reach;
use crate::engine::torrent::{self, Metadata, TorrentHandle, TorrentStatus};
use crate::proto::metainfo::wrap::wrap;

/// A magnet link does not say whether its torrent is private (BEP 27), and whoever looks for a private one in the DHT gives it
/// away. One with trackers is therefore looked for there alone until peers have told the metadata; but if they have not by
/// then, everywhere: links to public torrents name trackers that are long gone.
const TRACKERS_FIRST_TIME: Duration = Duration::from_secs(10);

impl Daemon {
    /// Opens every torrent that was here before.
    pub(in crate::daemon) async fn resume_torrents(&self) {
        let Ok(entries) = std::fs::read_dir(self.torrents_dir()) else {
            return;
        };
        for entry in entries.flatten() {
            let state = entry.path();
            let opened = match load(&state) {
                // What a mount has left is opened by the next one.
                Ok(record) if record.lazy => Ok(()),
                Ok(record) if record.moving.is_some() => {
                    tokio::spawn(self.clone().go_on_moving(state.clone(), record));
                    Ok(())
                }
                Ok(record) => self.open_torrent(state.clone(), record).await.map(drop),
                Err(error) => Err(error),
            };
            not_opened(&state, opened);
        }
        self.look_at_queue();
    }

    /// A move was cut off: its files go on before anything else is done with them.
    async fn go_on_moving(self, state: PathBuf, mut record: TorrentRecord) {
        let folder = state.clone();
        let moved = blocking(move || {
            finish_move(&folder, &mut record)?;
            Ok(record)
        });
        let opened = match moved.await {
            Ok(record) => self.open_torrent(state.clone(), record).await.map(drop),
            Err(error) => Err(error),
        };
        not_opened(&state, opened);
        self.announce_work();
    }

    /// Keeps what peers said the torrent is, so that the next start need not ask. If it turns out to be private, peers are
    /// looked for at its trackers alone from then on.
    pub(super) async fn keep_metadata(
        self,
        handle: TorrentHandle,
        state: PathBuf,
        trackers: Vec<Vec<String>>,
        mut reach: Reach,
    ) {
        let mut status = handle.status();
        let known = |status: &TorrentStatus| status.bytes_total.is_some();
        let in_time = tokio::time::timeout(TRACKERS_FIRST_TIME, status.wait_for(known));
        let late = in_time.await.is_err();
        if late && reach == Reach::TrackersFirst {
            reach = Reach::Everywhere;
            self.look_everywhere(&handle);
        }
        if status.wait_for(known).await.is_err() {
            return;
        }
        let Some(metadata) = handle.metadata().await else {
            return;
        };
        if metadata.info.private && reach != Reach::TrackersOnly {
            for short in handle.short_hashes() {
                self.watch_for_peers(short, trackers.clone(), Reach::TrackersOnly, &handle);
            }
        } else if reach == Reach::TrackersFirst {
            self.look_everywhere(&handle);
        }
        keep(&state, &metadata, &trackers);
        // A hybrid torrent is opened without its piece hashes, and has them later.
        if metadata.lacks_layers()
            && status.wait_for(|status| status.has_layers).await.is_ok()
            && let Some(metadata) = handle.metadata().await
        {
            keep(&state, &metadata, &trackers);
        }
    }

    fn look_everywhere(&self, handle: &TorrentHandle) {
        let shorts = handle.short_hashes();
        shorts.for_each(|short| self.widen_search(short, handle));
    }

    pub(super) async fn close_torrent(&self, open: &OpenTorrent) {
        if let Some(tiers) = &open.keeps
            && let Some(metadata) = open.handle.metadata().await
        {
            // A short download ends before the task that keeps it gets to it.
            keep(&open.state, &metadata, tiers);
        }
        for short in short_hashes(&open.hashes) {
            self.0.gate.close_torrent(&short);
            self.stop_looking_for(short);
        }
        open.handle.shutdown().await;
    }

    /// A torrent that was there for a mount alone ends with its last one. What was read stays for the next.
    pub(in crate::daemon) async fn close_unmounted(&self, of: &MountOf) {
        let MountOf::Torrent(hash) = of else { return };
        let mounted = self.0.mounts.lock().values().any(|mount| mount.of == *of);
        let open = self.0.torrents.lock().get(hash).cloned();
        if let Some(open) = open.filter(|open| !mounted && open.is_lazy()) {
            self.0.torrents.lock().remove(hash);
            self.close_torrent(&open).await;
        }
    }

    pub(in crate::daemon) async fn close_torrents(&self) {
        let torrents = std::mem::take(&mut *self.0.torrents.lock());
        let mut closing = JoinSet::new();
        for open in torrents.into_values() {
            let daemon = self.clone();
            closing.spawn(async move { daemon.close_torrent(&open).await });
        }
        closing.join_all().await;
    }
}

fn keep(state: &Path, metadata: &Metadata, trackers: &[Vec<String>]) {
    let bytes = wrap(metadata.info.raw(), trackers, &metadata.layers);
    if let Err(error) = save_metainfo(state, &bytes) {
        tracing::warn!(error = error.message, "the metadata will be fetched again");
    }
}

fn not_opened(state: &Path, opened: Result<(), ApiError>) {
    if let Err(error) = opened {
        let torrent = place::shown(state);
        tracing::error!(torrent, error = error.message, "torrent not opened");
    }
}

fn finish_move(state: &Path, record: &mut TorrentRecord) -> Result<(), ApiError> {
    let Some(to) = record.moving.take() else {
        return Ok(());
    };
    let bytes = std::fs::read(state.join(METAINFO_FILE)).ok();
    let known = know(bytes.as_deref(), record.magnet.as_deref())?;
    if let Some(metadata) = known.metadata {
        let selection = selection_of(record);
        torrent::finish_move(&metadata.info, &selection, state, &record.dir.0, &to.0).map_err(
            |error| {
                let error = error.to_string();
                ApiError::new(ErrorKind::Io, crate::api::escape(error.as_bytes()))
            },
        )?;
        record.dir = to;
    }
    save(state, record)
}
