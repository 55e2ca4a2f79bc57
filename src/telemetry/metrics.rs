//! Every metric of a daemon: one struct, one table of names with unit and meaning. A layer that counts holds the `Arc` and
//! adds to the field; nothing looks a metric up by name.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering};

/// A number that only grows.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    pub fn inc(&self) {
        self.add(1);
    }

    pub fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    /// Takes over a count that is kept elsewhere.
    pub fn raise_to(&self, n: u64) {
        self.0.fetch_max(n, Ordering::Relaxed);
    }

    pub fn value(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// A number that goes up and down.
#[derive(Debug, Default)]
pub struct Gauge(AtomicU64);

impl Gauge {
    pub fn set(&self, n: u64) {
        self.0.store(n, Ordering::Relaxed);
    }

    pub fn value(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

macro_rules! metrics {
    ($($field:ident: $kind:ident, $constant:ident = $name:literal, $help:literal;)*) => {
        $(#[doc = $help] pub const $constant: &str = $name;)*

        /// The metrics of one daemon.
        #[derive(Debug, Default)]
        pub struct Metrics {
            $(#[doc = $help] pub $field: $kind,)*
        }

        impl Metrics {
            /// Name, kind in Prometheus' words, and meaning of each, in order of declaration.
            pub const TABLE: &[(&str, &str, &str)] = &[
                $(($constant, metrics!(@kind $kind), $help),)*
            ];

            fn values(&self) -> Vec<u64> {
                vec![$(self.$field.value(),)*]
            }
        }
    };
    (@kind Counter) => { "counter" };
    (@kind Gauge) => { "gauge" };
}

metrics! {
    peers_connected: Gauge, PEERS_CONNECTED = "ccbt_peers_connected",
        "Peers that have proven a right to a folder and are connected.";
    peers_dropped: Counter, PEERS_DROPPED = "ccbt_peers_dropped_total",
        "Peers dropped because they broke the protocol or sent wrong content.";
    connections_accepted: Counter, CONNECTIONS_ACCEPTED = "ccbt_connections_accepted_total",
        "Incoming connections, those turned away included.";
    connections_refused: Counter, CONNECTIONS_REFUSED = "ccbt_connections_refused_total",
        "Connections turned away at once: too many, or from an address that sent wrong content.";
    connections_unproven: Counter, CONNECTIONS_UNPROVEN = "ccbt_connections_unproven_total",
        "Connections that ended before a right to a folder was proven: strangers, garbage, too slow.";
    wire_bytes_in: Counter, WIRE_BYTES_IN = "ccbt_wire_bytes_in_total",
        "Bytes received from peers.";
    wire_bytes_out: Counter, WIRE_BYTES_OUT = "ccbt_wire_bytes_out_total",
        "Bytes sent to peers.";
    chunks_fetched: Counter, CHUNKS_FETCHED = "ccbt_chunks_fetched_total",
        "Chunks received from peers and verified.";
    chunks_wrong: Counter, CHUNKS_WRONG = "ccbt_chunks_wrong_total",
        "Chunks received from peers that were not what was asked for.";
    chunks_served: Counter, CHUNKS_SERVED = "ccbt_chunks_served_total",
        "Chunks sent to peers.";
    fetch_timeouts: Counter, FETCH_TIMEOUTS = "ccbt_fetch_timeouts_total",
        "Reads that failed because no peer delivered in time.";
    heads_accepted: Counter, HEADS_ACCEPTED = "ccbt_heads_accepted_total",
        "Heads of other devices that were new and valid.";
    heads_refused: Counter, HEADS_REFUSED = "ccbt_heads_refused_total",
        "Heads that were forged or forked, or whose snapshots break the rules.";
    heads_held_back: Counter, HEADS_HELD_BACK = "ccbt_heads_held_back_total",
        "Attempts to believe a head that names changes nobody is known to have signed.";
    snapshots_published: Counter, SNAPSHOTS_PUBLISHED = "ccbt_snapshots_published_total",
        "Snapshots published by this device.";
    store_bytes: Gauge, STORE_BYTES = "ccbt_store_bytes",
        "Bytes the packs take on disk.";
    packs_damaged: Counter, PACKS_DAMAGED = "ccbt_packs_damaged_total",
        "Damaged records met in packs and set aside.";
    store_memory_bytes: Gauge, STORE_MEMORY_BYTES = "ccbt_store_memory_bytes",
        "Bytes of memory the chunk index, the borrow table and the read cache take.";
    catalogues_rebuilt: Counter, CATALOGUES_REBUILT = "ccbt_catalogues_rebuilt_total",
        "Times the catalogue was damaged, moved aside and begun anew.";
    home_files_read: Counter, HOME_FILES_READ = "ccbt_home_files_read_total",
        "Files of shared directories opened to be hashed.";
    torrents: Gauge, TORRENTS = "ccbt_torrents",
        "Torrents that are open.";
    torrents_downloading: Gauge, TORRENTS_DOWNLOADING = "ccbt_torrents_downloading",
        "Torrents that download.";
    torrents_seeding: Gauge, TORRENTS_SEEDING = "ccbt_torrents_seeding",
        "Torrents that have all that is wanted, and serve it.";
    torrent_peers: Gauge, TORRENT_PEERS = "ccbt_torrent_peers",
        "Peers that torrents are connected to.";
    torrent_bytes_in: Counter, TORRENT_BYTES_IN = "ccbt_torrent_bytes_in_total",
        "Payload bytes of torrents received.";
    torrent_bytes_out: Counter, TORRENT_BYTES_OUT = "ccbt_torrent_bytes_out_total",
        "Payload bytes of torrents sent.";
    torrent_bytes_wasted: Counter, TORRENT_BYTES_WASTED = "ccbt_torrent_bytes_wasted_total",
        "Payload bytes of torrents that came and were of no use.";
    mounts: Gauge, MOUNTS = "ccbt_mounts",
        "Mounts that are up.";
}

impl Metrics {
    /// Every value by its name.
    pub fn snapshot(&self) -> BTreeMap<String, u64> {
        let names = Self::TABLE.iter().map(|(name, _, _)| (*name).to_owned());
        names.zip(self.values()).collect()
    }
}

/// `values` by name in Prometheus' text format; a name this version does not know is left out.
pub fn exposition(values: &BTreeMap<String, u64>) -> String {
    let mut text = String::new();
    for (name, kind, help) in Metrics::TABLE {
        let Some(value) = values.get(*name) else {
            continue;
        };
        // Writing to a String cannot fail.
        let _ = write!(
            text,
            "# HELP {name} {help}\n# TYPE {name} {kind}\n{name} {value}\n"
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_the_conventions_of_prometheus_and_are_distinct() {
        let mut names: Vec<&str> = Metrics::TABLE.iter().map(|row| row.0).collect();
        for (name, kind, _) in Metrics::TABLE {
            assert_eq!(*kind == "counter", name.ends_with("_total"), "{name}");
            assert!(name.starts_with("ccbt_"), "{name}");
        }
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), Metrics::TABLE.len());
    }

    #[test]
    fn values_arrive_under_their_names() {
        let metrics = Metrics::default();
        metrics.chunks_served.add(2);
        metrics.chunks_served.inc();
        metrics.mounts.set(7);
        let values = metrics.snapshot();
        assert_eq!(values.len(), Metrics::TABLE.len());
        assert_eq!(
            (values[CHUNKS_SERVED], values[MOUNTS], values[CHUNKS_WRONG]),
            (3, 7, 0)
        );
        let text = exposition(&values);
        assert!(
            text.contains("\n# TYPE ccbt_mounts gauge\nccbt_mounts 7\n"),
            "{text}"
        );
    }
}
