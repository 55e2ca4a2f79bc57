//! Looking for members of the folders that are online: DHT, trackers, local discovery.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use tokio::sync::mpsc;

use super::Daemon;
use super::open::{EPOCH, OpenFolder};
use crate::engine::discovery::dht::{self, DhtConfig};
use crate::engine::discovery::item::ItemKeys;
use crate::engine::discovery::{Config, Discovery, Found, Reach};
use crate::engine::torrent::TorrentHandle;
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
        mut trackers: Vec<String>,
        private: bool,
        torrent: TorrentHandle,
    ) {
        let mut discovery = self.0.discovery.lock();
        let discovery = discovery.get_or_insert_with(|| self.start_discovery());
        let (sink, mut found) = mpsc::channel::<Found>(FOUND_MAX);
        let reach = match private {
            true => Reach::TrackersOnly,
            false => Reach::Everywhere,
        };
        if !private {
            trackers.extend(self.0.config.trackers.iter().cloned());
        }
        discovery.watch_within(SwarmId::from_bytes(info_hash), trackers, sink, reach);
        tokio::spawn(async move {
            while let Some((_, addr, _)) = found.recv().await {
                torrent.found(addr);
            }
        });
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
        let port = self.0.listening.lock().map_or(0, |addr| addr.port());
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
