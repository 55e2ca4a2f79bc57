//! The keys of torrents.

use super::{ConfigError, Schedule, Settings};

/// Rates are bytes per second; `None`: without limit.
#[derive(Debug, Clone, Default)]
pub struct TorrentKeys {
    /// Of all torrents together.
    pub limit_down: Option<u64>,
    pub limit_up: Option<u64>,
    /// The same while `alt_schedule` says so.
    pub alt_limit_down: Option<u64>,
    pub alt_limit_up: Option<u64>,
    pub alt_schedule: Option<Schedule>,
    /// Of each connection.
    pub peer_limit_down: Option<u64>,
    pub peer_limit_up: Option<u64>,
    /// Connections of each torrent.
    pub peers_max: u64,
    /// Peers a torrent serves at once for what they give.
    pub slots: u64,
    pub seed_percent: Option<u64>,
    pub seed_minutes: Option<u64>,
    pub order: &'static str,
    pub preallocation: &'static str,
    /// Torrents that download at once; the others wait.
    pub downloads_max: Option<u64>,
    /// The same of those that seed.
    pub seeds_max: Option<u64>,
    /// Web servers that torrents name are asked.
    pub web_seeds: bool,
    /// Content of other torrents is taken.
    pub dedup: bool,
}

impl TorrentKeys {
    pub(super) fn of(s: &Settings) -> Result<Self, ConfigError> {
        let some = |key| Ok(Some(s.number(key)?).filter(|n| *n > 0));
        Ok(Self {
            limit_down: some("torrent.limit_down")?,
            limit_up: some("torrent.limit_up")?,
            alt_limit_down: some("torrent.alt_limit_down")?,
            alt_limit_up: some("torrent.alt_limit_up")?,
            alt_schedule: s.schedule("torrent.alt_schedule")?,
            peer_limit_down: some("torrent.peer_limit_down")?,
            peer_limit_up: some("torrent.peer_limit_up")?,
            peers_max: s.number("torrent.peers_max")?,
            slots: s.number("torrent.slots")?,
            seed_percent: some("torrent.seed_percent")?,
            seed_minutes: some("torrent.seed_minutes")?,
            order: s.choice("torrent.order")?,
            preallocation: s.choice("torrent.preallocation")?,
            downloads_max: some("torrent.downloads_max")?,
            seeds_max: some("torrent.seeds_max")?,
            web_seeds: s.bool("torrent.web_seeds")?,
            dedup: s.bool("torrent.dedup")?,
        })
    }
}
