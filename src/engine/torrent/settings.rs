//! What a user may decide for a torrent, as the engine needs it: without gaps, and without where it came from.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::engine::limits::Rates;

/// Places for peers that are served, unless somebody says otherwise.
pub const SLOTS: u32 = 8;
/// Connections of one torrent, unless somebody says otherwise.
pub const PEERS_MAX: u32 = 120;

/// How disk space is taken for files before their bytes come.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Preallocation {
    /// Files grow as they are written.
    None,
    /// Files have their length at once, and space as they are written.
    #[default]
    Sparse,
    /// All space is taken before the first byte is asked for.
    Full,
}

/// See the module documentation.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// Of the torrent as a whole.
    pub rates: Rates,
    /// Of each of its connections.
    pub peer_rates: Rates,
    pub peers_max: usize,
    /// Peers served at once for what they give.
    pub slots: usize,
    /// Seeding is done once this many bytes were sent for every byte of content.
    pub seed_ratio: Option<f64>,
    /// Seeding is done after this time.
    pub seed_time: Option<Duration>,
    pub sequential: bool,
    pub preallocation: Preallocation,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            rates: Rates::default(),
            peer_rates: Rates::default(),
            peers_max: PEERS_MAX as usize,
            slots: SLOTS as usize,
            seed_ratio: None,
            seed_time: None,
            sequential: false,
            preallocation: Preallocation::default(),
        }
    }
}
