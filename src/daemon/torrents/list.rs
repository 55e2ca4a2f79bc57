//! What a user sees of torrents, their files, their peers and their trackers.

use data_encoding::HEXLOWER;

use super::super::Daemon;
use super::OpenTorrent;
use super::add::selection_of;
use crate::api::types::*;
use crate::clock;
use crate::engine::discovery::trackers::TrackerStatus;
use crate::engine::torrent::{Phase, TorrentHandle, TorrentPeer, TorrentStatus, WebSeedStatus};

impl Daemon {
    pub(super) fn entry_of(&self, open: &OpenTorrent) -> TorrentEntry {
        let status = open.handle.status().borrow().clone();
        let left = status
            .bytes_total
            .unwrap_or(0)
            .saturating_sub(status.bytes_done);
        TorrentEntry {
            hash: open.hash.clone(),
            note: self.note_of(&open.handle, &status),
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
            dir: open.dir(),
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

    /// What is going on; where nobody is found, also what the trackers say about that.
    pub(super) fn note_of(&self, handle: &TorrentHandle, status: &TorrentStatus) -> String {
        let seeks = matches!(status.phase, Phase::Metadata | Phase::Downloading);
        if !seeks || status.peers > 0 {
            return status.note.clone();
        }
        let shorts = handle.short_hashes();
        let trackers: Vec<_> = shorts.flat_map(|short| self.trackers_of(short)).collect();
        match what_trackers_say(&trackers) {
            Some(said) => format!("{}; {said}", status.note),
            None => status.note.clone(),
        }
    }

    /// The trackers that are asked about it, and what they say.
    pub(super) fn list_trackers(&self, open: &OpenTorrent) -> Vec<TorrentTracker> {
        let now = clock::unix_millis() / 1000;
        let shorts = open.handle.short_hashes();
        let entries = shorts.flat_map(|short| {
            let hash = HEXLOWER.encode(&short);
            let trackers = self.trackers_of(short).into_iter();
            trackers.map(move |tracker| tracker_entry(tracker, hash.clone(), now))
        });
        entries.collect()
    }

    pub(in crate::daemon) fn list_torrents(&self) -> Vec<TorrentEntry> {
        let torrents: Vec<_> = self.0.torrents.lock().values().cloned().collect();
        torrents.iter().map(|open| self.entry_of(open)).collect()
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

fn tracker_entry(tracker: TrackerStatus, hash: String, now: u64) -> TorrentTracker {
    let small = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    TorrentTracker {
        url: tracker.url,
        hash,
        tier: small(tracker.tier),
        asked_s: tracker.last_announce.map(|at| now.saturating_sub(at)),
        next_s: tracker.next_announce.map(|at| at.saturating_sub(now)),
        peers: tracker.peers.map(small),
        seeds: tracker.seeds,
        leechers: tracker.leechers,
        message: tracker.message,
        error: tracker.error,
    }
}

/// The most telling of what trackers say while nobody is found: a refusal in a tracker's own words, else what went wrong, else
/// that they know nobody. `None` before one has answered.
fn what_trackers_say(trackers: &[TrackerStatus]) -> Option<String> {
    let failed = || trackers.iter().filter(|tracker| tracker.error.is_some());
    let refusal = failed().find_map(|tracker| tracker.message.as_ref());
    if let Some(words) = refusal {
        return Some(format!("tracker said: {words}"));
    }
    let answers = |tracker: &&TrackerStatus| tracker.error.is_none() && tracker.peers.is_some();
    match (trackers.iter().find(answers), failed().next()) {
        (Some(tracker), _) => {
            let words = tracker.message.as_ref();
            let words = words.map_or_else(String::new, |words| format!(" and says: {words}"));
            let named = tracker.peers.unwrap_or(0);
            Some(format!("a tracker names {named} peers{words}"))
        }
        (None, Some(tracker)) => {
            let error = tracker.error.as_deref().unwrap_or_default();
            Some(format!("tracker {}: {error}", host_of(&tracker.url)))
        }
        (None, None) => None,
    }
}

/// Not the rest of the URL: some trackers put a secret of the user there.
fn host_of(url: &str) -> String {
    let uri = url.parse::<hyper::Uri>().ok();
    let host = uri.as_ref().and_then(|uri| uri.host());
    host.unwrap_or("without a host").to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_told_before_failures_and_those_before_silence() {
        let tracker = |peers, message: Option<&str>, error: Option<&str>| TrackerStatus {
            url: "http://t.example:80/secret/announce".to_owned(),
            peers,
            message: message.map(str::to_owned),
            error: error.map(str::to_owned),
            ..TrackerStatus::default()
        };
        let unasked = tracker(None, None, None);
        let down = tracker(None, None, Some("HTTP status 500"));
        let refuses = tracker(None, Some("not registered"), Some("it refuses"));
        let empty = tracker(Some(0), None, None);
        let warns = tracker(Some(2), Some("use https"), None);
        for (trackers, said) in [
            (vec![], None),
            (vec![unasked.clone()], None),
            (
                vec![unasked, down.clone()],
                Some("tracker t.example: HTTP status 500"),
            ),
            (
                vec![down.clone(), empty.clone()],
                Some("a tracker names 0 peers"),
            ),
            (
                vec![warns, down.clone()],
                Some("a tracker names 2 peers and says: use https"),
            ),
            (
                vec![empty, down, refuses],
                Some("tracker said: not registered"),
            ),
        ] {
            assert_eq!(what_trackers_say(&trackers).as_deref(), said);
        }
    }
}
