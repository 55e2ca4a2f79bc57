//! Looking for members of the folders that are online: DHT, trackers, local discovery.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use tokio::sync::{mpsc, watch};

use super::Daemon;
use super::open::{EPOCH, OpenFolder};
use crate::engine::discovery::dht::{self, DhtConfig};
use crate::engine::discovery::item::ItemKeys;
use crate::engine::discovery::trackers::{Announce, Totals, TrackerStatus};
use crate::engine::discovery::{Config, Discovery, Found, Reach};
use crate::engine::torrent::{Phase, TorrentHandle, TorrentStatus};
use crate::net::{self, Bind};
use crate::share::{Capability, SwarmId};

/// Addresses waiting to be looked at by a folder's actor; discovery slows down beyond.
const FOUND_MAX: usize = 256;
/// Wait for one DHT node's answer.
const DHT_REQUEST_TIME: Duration = Duration::from_secs(2);

impl Daemon {
    /// Looks for members of a folder from now on. Discovery itself starts with the first folder that is online, so a
    /// daemon with private folders only opens no socket.
    pub(super) fn watch_for_members(&self, open: &OpenFolder) {
        let mut discovery = self.0.discovery.lock();
        let discovery = discovery.get_or_insert_with(|| self.start_discovery());
        let (sink, mut found) = mpsc::channel::<Found>(FOUND_MAX);
        let mut trackers = self.0.config.trackers.clone();
        trackers.extend(open.link.hints.trackers.iter().cloned());
        discovery.watch(open.credentials.swarm(), trackers, sink);
        let listen = *self.0.listening.lock();
        discovery.keep_items(item_keys(open), open.swarm.clone(), listen);
        let swarm = open.swarm.clone();
        tokio::spawn(async move {
            while let Some((_, addr, source)) = found.recv().await {
                tracing::debug!(%addr, ?source, "member found");
                swarm.found(addr);
            }
        });
    }

    /// Looks for peers of a torrent from now on. Those of a private one come from its own trackers alone.
    pub(super) fn watch_for_peers(
        &self,
        info_hash: [u8; 20],
        mut tiers: Vec<Vec<String>>,
        reach: Reach,
        torrent: &TorrentHandle,
    ) {
        let mut discovery = self.0.discovery.lock();
        let discovery = discovery.get_or_insert_with(|| self.start_discovery());
        if reach == Reach::Everywhere {
            tiers.extend(self.trackers_of_ours());
        }
        let (announce, sink) = (announce(torrent, tiers), sink(torrent));
        discovery.watch_within(SwarmId::from_bytes(info_hash), announce, sink, reach);
    }

    /// A torrent that was looked for at its trackers first is looked for everywhere from now on.
    pub(super) fn widen_search(&self, info_hash: [u8; 20], torrent: &TorrentHandle) {
        if let Some(discovery) = &*self.0.discovery.lock() {
            let more = announce(torrent, self.trackers_of_ours());
            discovery.widen(SwarmId::from_bytes(info_hash), &more, sink(torrent));
        }
    }

    /// Those of the configuration.
    fn trackers_of_ours(&self) -> Vec<Vec<String>> {
        self.0
            .config
            .trackers
            .iter()
            .map(|url| vec![url.clone()])
            .collect()
    }

    /// What is known of the trackers of a torrent.
    pub(super) fn trackers_of(&self, info_hash: [u8; 20]) -> Vec<TrackerStatus> {
        let discovery = self.0.discovery.lock();
        let swarm = SwarmId::from_bytes(info_hash);
        let known = discovery.as_ref().map(|d| d.trackers_of(swarm));
        known.unwrap_or_default()
    }

    pub(super) fn stop_looking_for(&self, info_hash: [u8; 20]) {
        if let Some(discovery) = &*self.0.discovery.lock() {
            discovery.unwatch(SwarmId::from_bytes(info_hash));
        }
    }

    pub(super) fn stop_looking(&self, open: &OpenFolder) {
        if let Some(discovery) = &*self.0.discovery.lock() {
            discovery.unwatch(open.credentials.swarm());
        }
    }

    /// Says good-bye to trackers and saves the DHT's nodes.
    pub(super) async fn close_discovery(&self) {
        let discovery = self.0.discovery.lock().take();
        if let Some(discovery) = discovery {
            discovery.close().await;
        }
    }

    /// Nodes the DHT knows; `None` while it does not run.
    pub(super) fn dht_nodes(&self) -> Option<u32> {
        let nodes = self.0.discovery.lock().as_ref()?.status().dht_nodes?;
        Some(u32::try_from(nodes).unwrap_or(u32::MAX))
    }

    fn start_discovery(&self) -> Discovery {
        let config = &self.0.config;
        let port = self.outside_port();
        // The DHT opens its own socket, which knows no interface and no proxy.
        let (bind, free) = match net::bound_to() {
            None => (Ipv4Addr::UNSPECIFIED, true),
            Some(Bind::Address(IpAddr::V4(ip))) => (*ip, true),
            Some(_) => (Ipv4Addr::UNSPECIFIED, false),
        };
        let dht = config.dht && free && !net::is_proxied();
        if config.dht && !dht {
            tracing::warn!("no DHT: it cannot be bound to the interface or go through the proxy");
        }
        let nodes = dht.then(|| DhtConfig {
            bind,
            port: 0,
            bootstrap: match config.dht_bootstrap.is_empty() {
                true => dht::public_bootstrap(),
                false => config.dht_bootstrap.clone(),
            },
            server: false,
            nodes_file: Some(self.0.state.path().join("dht-nodes")),
            request_timeout: DHT_REQUEST_TIME,
        });
        Discovery::start(
            Config {
                dht: nodes,
                lsd: config.lsd && !net::is_proxied(),
                trackers: true,
            },
            port,
        )
    }
}

fn announce(torrent: &TorrentHandle, tiers: Vec<Vec<String>>) -> Announce {
    Announce {
        tiers,
        peer_id: torrent.peer_id(),
        key: torrent.tracker_key(),
        totals: totals(torrent),
    }
}

/// Takes what is found, for the torrent.
fn sink(torrent: &TorrentHandle) -> mpsc::Sender<Found> {
    let (sink, mut found) = mpsc::channel::<Found>(FOUND_MAX);
    let torrent = torrent.clone();
    tokio::spawn(async move {
        while let Some((_, addr, _)) = found.recv().await {
            torrent.found(addr);
        }
    });
    sink
}

/// How far a torrent is, as its trackers are told; ends with the torrent or when nobody listens any more.
fn totals(torrent: &TorrentHandle) -> watch::Receiver<Totals> {
    let mut status = torrent.status();
    let mut before = totals_of(&status.borrow(), Totals::default(), false);
    let (sender, receiver) = watch::channel(before);
    tokio::spawn(async move {
        let mut downloading = false;
        loop {
            tokio::select! {
                changed = status.changed() => if changed.is_err() { return },
                () = sender.closed() => return,
            }
            let now = status.borrow_and_update();
            downloading |= now.phase == Phase::Downloading;
            before = totals_of(&now, before, downloading);
            drop(now);
            sender.send_replace(before);
        }
    });
    receiver
}

fn totals_of(status: &TorrentStatus, before: Totals, downloading: bool) -> Totals {
    let left = status
        .bytes_total
        .filter(|_| status.phase != Phase::Checking);
    Totals {
        uploaded: status.bytes_up,
        downloaded: status.bytes_down,
        left: left.map_or(before.left, |total| total.saturating_sub(status.bytes_done)),
        completed: before.completed || (downloading && status.finished),
    }
}

fn item_keys(open: &OpenFolder) -> ItemKeys {
    let capability = open.link.capability();
    ItemKeys {
        folder: open.id,
        discover: open.credentials.read.discover_key(),
        write: capability.write_key(EPOCH),
        owner: match capability {
            Capability::Owner(seed) => Some(seed.clone()),
            _ => None,
        },
    }
}
