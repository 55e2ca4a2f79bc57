//! What a user sees of torrents, their files and their peers.

use super::super::Daemon;
use super::OpenTorrent;
use super::add::{know, selection_of};
use super::record::METAINFO_FILE;
use crate::api::ApiError;
use crate::api::types::*;
use crate::engine::torrent::{Phase, TorrentPeer, WebSeedStatus};

impl OpenTorrent {
    pub(super) fn entry(&self) -> TorrentEntry {
        let status = self.handle.status().borrow().clone();
        let left = status
            .bytes_total
            .unwrap_or(0)
            .saturating_sub(status.bytes_done);
        TorrentEntry {
            hash: self.hash.clone(),
            name: status.name,
            state: match status.phase {
                Phase::Metadata => TorrentState::Metadata,
                Phase::Checking => TorrentState::Checking,
                Phase::Downloading => TorrentState::Downloading,
                Phase::Seeding => TorrentState::Seeding,
                Phase::Queued => TorrentState::Queued,
                Phase::Paused => TorrentState::Paused,
                Phase::Stopped => TorrentState::Stopped,
            },
            note: status.note,
            dir: self.dir(),
            content: status.bytes_total.map(|bytes| Amount {
                files: status.files_total,
                bytes,
            }),
            bytes_done: status.bytes_done,
            left_s: match status.phase {
                Phase::Downloading => left.checked_div(status.rate_down),
                _ => None,
            },
            rate_down: status.rate_down,
            rate_up: status.rate_up,
            bytes_down: status.bytes_down,
            bytes_up: status.bytes_up,
            bytes_wasted: status.bytes_wasted,
            bytes_held: status.bytes_held,
            peers: u32::try_from(status.peers).unwrap_or(u32::MAX),
            seeds: u32::try_from(status.seeds).unwrap_or(u32::MAX),
            web_seeds: u32::try_from(status.web_seeds).unwrap_or(u32::MAX),
        }
    }
}

impl Daemon {
    pub(in crate::daemon) fn list_torrents(&self) -> Vec<TorrentEntry> {
        let torrents: Vec<_> = self.0.torrents.lock().values().cloned().collect();
        torrents.iter().map(|open| open.entry()).collect()
    }
}

pub(super) async fn list_files(open: &OpenTorrent) -> Vec<TorrentFile> {
    let Some(metadata) = open.handle.metadata().await else {
        return Vec::new();
    };
    let selection = selection_of(&open.record.lock());
    let file = |file: &crate::proto::metainfo::File| TorrentFile {
        path: ApiPath(file.path.to_path()),
        bytes: file.length,
        wanted: selection.wants(file),
        priority: selection.priority(file),
    };
    metadata.info.files.iter().map(file).collect()
}

pub(super) fn peer_entry(peer: TorrentPeer) -> TorrentPeerEntry {
    let summary = peer.summary;
    TorrentPeerEntry {
        addr: peer.addr,
        incoming: peer.incoming,
        client: summary.client,
        pieces: summary.pieces,
        rate_down: summary.rate_down,
        rate_up: summary.rate_up,
        bytes_down: summary.bytes_down,
        bytes_up: summary.bytes_up,
        asked: u32::try_from(summary.asked).unwrap_or(u32::MAX),
        unchoked: summary.unchoked,
        served: summary.served,
    }
}

pub(super) fn web_seed_entry(seed: WebSeedStatus) -> TorrentWebSeed {
    TorrentWebSeed {
        url: seed.url,
        active: seed.active,
        off: seed.off,
        trouble: seed.trouble,
        rate_down: seed.rate_down,
        bytes_down: seed.bytes_down,
    }
}

/// The trackers it names. What they say is in the log.
pub(super) fn list_trackers(open: &OpenTorrent) -> Result<Vec<TorrentTracker>, ApiError> {
    let magnet = open.record.lock().magnet.clone();
    let bytes = std::fs::read(open.state.join(METAINFO_FILE)).ok();
    let known = know(bytes.as_deref(), magnet.as_deref())?;
    let tracker = |url| TorrentTracker { url };
    Ok(known.trackers.into_iter().flatten().map(tracker).collect())
}
