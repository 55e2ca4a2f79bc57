//! What a user may decide for a torrent, as the engine needs it: without gaps, and without where it came from.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::engine::limits::Rates;
use crate::proto::picker::Order;

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

/// In which order pieces are begun.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PieceOrder {
    /// What fewest peers have, first: best for the swarm.
    #[default]
    Rarest,
    /// From the beginning on.
    Sequential,
    /// One after the other, going on where the last one was begun, and from the beginning again at the end.
    RoundRobin,
}

impl From<PieceOrder> for Order {
    fn from(order: PieceOrder) -> Self {
        match order {
            PieceOrder::Rarest => Self::RarestFirst,
            PieceOrder::Sequential => Self::Sequential,
            PieceOrder::RoundRobin => Self::RoundRobin,
        }
    }
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
    pub order: PieceOrder,
    /// Pieces are shown to peers one by one while everything is here (BEP 16).
    pub super_seed: bool,
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
            order: PieceOrder::default(),
            super_seed: false,
            preallocation: Preallocation::default(),
        }
    }
}
