//! The DHT as discovery needs it ([`Dht`]), and the one file that knows `mainline` ([`Mainline`]).
//!
//! `mainline` is IPv4 only and runs a thread of its own, which takes our calls between two waits for datagrams (see
//! [`rest`](super::rest)). Its calls panic if that thread died, so each runs in a task of its own and such an end is
//! [`DhtError::Stopped`].

use std::collections::HashSet;
use std::future::Future;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures_core::Stream;
use mainline::async_dht::AsyncDht;
use mainline::errors::{ConcurrencyError, PutMutableError, PutQueryError};
use mainline::{Id, MutableItem};
use thiserror::Error;
use tokio::sync::{mpsc, watch};

use super::{Found, Source, Stop, deliver, jittered, moved, rest};
use crate::proto::tracker::callable;
use crate::share::SwarmId;
use crate::share::dht_item::{ItemKey, SignedItem, VALUE_LEN_MAX};
use crate::state_file;

/// Addresses taken from one lookup.
const LOOKUP_PEERS_MAX: usize = 1000;
/// Room between a lookup and who reads it.
const LOOKUP_QUEUE: usize = 64;
/// Nodes kept in the file, and read from it.
const SAVED_NODES_MAX: usize = 500;
/// Longest file of nodes read: 500 lines of at most 22 bytes.
const SAVED_LEN_MAX: u64 = 16 * 1024;
/// Wait before trying again to start a node that has nobody to ask.
const START_RETRY_TIME: Duration = Duration::from_secs(60);
/// How often nodes are counted and saved.
const SAVE_TIME: Duration = Duration::from_secs(10 * 60);
/// First count and save after the start: the routing table has filled by then.
const SAVE_TIME_FIRST: Duration = Duration::from_secs(30);
/// Wait between announces of a swarm; nodes keep a peer for 30 minutes.
const ANNOUNCE_TIME: Duration = Duration::from_secs(15 * 60);
/// First wait after the start or after a failed announce; doubled up to [`ANNOUNCE_TIME`]: of two who start together,
/// one looks before the other has announced itself.
const RETRY_TIME: Duration = Duration::from_secs(15);
/// How long the thread waits for a datagram, and a call of ours for the thread at most.
const DATAGRAM_WAIT: Duration = Duration::from_millis(250);
/// Longest name lookup of a bootstrap host.
const RESOLVE_TIME: Duration = Duration::from_secs(10);

/// What a DHT operation gives, later.
pub type Later<T> = Pin<Box<dyn Future<Output = Result<T, DhtError>> + Send>>;

/// Why a DHT operation failed.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum DhtError {
    /// Nobody near the target is known; the node is offline or has not found the network.
    #[error("no DHT node was found to ask")]
    NoNodes,
    /// Nodes were asked and none answered.
    #[error("no DHT node answered")]
    Silent,
    /// Most nodes refused.
    #[error("DHT nodes refuse with code {code}")]
    Refused {
        /// BEP 5 or BEP 44 error code.
        code: i32,
    },
    /// The nodes hold a newer item, or one that is not the expected.
    #[error("the DHT holds a newer item")]
    Newer,
    /// Another put of the same item is under way.
    #[error("another put of this item is under way")]
    Busy,
    /// The node has ended.
    #[error("the DHT node has ended")]
    Stopped,
}

/// A node of the mainline DHT.
pub trait Dht: Send + Sync {
    /// Announces that we listen on `port` for `swarm` (BEP 5).
    fn announce(&self, swarm: SwarmId, port: u16) -> Later<()>;

    /// Looks for peers of `swarm`. Ends when the lookup does; each address comes once.
    fn get_peers(&self, swarm: SwarmId) -> mpsc::Receiver<SocketAddr>;

    /// Stores a signed item (BEP 44), if `cas` is given only in place of the version with that number. Gives the number
    /// of nodes that took it. The signature is passed on as it is, so a reader can put again what it got.
    fn put_item(&self, item: SignedItem, cas: Option<i64>) -> Later<u32>;

    /// The newest item under `key` and `salt`, its signature checked.
    fn get_item(&self, key: ItemKey, salt: [u8; 8]) -> Later<Option<SignedItem>>;

    /// Our address as other nodes see it, once enough of them have said so.
    fn public_ip(&self) -> Later<Option<Ipv4Addr>>;

    /// Nodes worth asking first after a restart: those of the routing table that still answer.
    fn nodes(&self) -> Later<Vec<SocketAddr>>;
}

/// How to run a node.
#[derive(Debug, Clone)]
pub struct DhtConfig {
    /// IPv4 address to bind.
    pub bind: Ipv4Addr,
    /// UDP port to bind, 0 for any.
    pub port: u16,
    /// `host:port` of nodes to ask first.
    pub bootstrap: Vec<String>,
    /// Answer others from the start. Else only once we are seen to be reachable.
    pub server: bool,
    /// Where nodes are saved for the next start.
    pub nodes_file: Option<PathBuf>,
    /// Wait for an answer of one node; a lookup takes at least as long when one is silent.
    pub request_timeout: Duration,
}

/// `host:port` of the nodes that a node of the public network asks first.
pub fn public_bootstrap() -> Vec<String> {
    mainline::DEFAULT_BOOTSTRAP_NODES
        .map(str::to_owned)
        .to_vec()
}

/// [`Dht`] by `mainline`.
#[derive(Debug)]
pub struct Mainline(AsyncDht);

impl Mainline {
    /// Binds and starts to find the network. `bootstrap` may be empty for the first node of a new network.
    pub async fn start(config: &DhtConfig, bootstrap: Vec<SocketAddrV4>) -> io::Result<Self> {
        let mut builder = mainline::Dht::builder();
        builder
            .bootstrap(&bootstrap)
            .port(config.port)
            .bind_address(config.bind)
            .request_timeout(config.request_timeout);
        if config.server {
            builder.server_mode();
        }
        // Waits for its thread, so not here.
        let dht = tokio::task::spawn_blocking(move || builder.build()).await??;
        let dht = dht.as_async();
        let port = dht.info().await.local_addr().port();
        match rest::wait_longer(port, DATAGRAM_WAIT) {
            Ok(true) => {}
            Ok(false) => tracing::debug!(port, "the socket of the DHT is not found"),
            Err(error) => tracing::debug!(%error, "the thread of the DHT wakes often"),
        }
        Ok(Self(dht))
    }
}

impl Dht for Mainline {
    fn announce(&self, swarm: SwarmId, port: u16) -> Later<()> {
        let dht = self.0.clone();
        contained(async move {
            dht.announce_peer(id(swarm), Some(port))
                .await
                .map(drop)
                .map_err(query_error)
        })
    }

    fn get_peers(&self, swarm: SwarmId) -> mpsc::Receiver<SocketAddr> {
        let dht = self.0.clone();
        let (found, receiver) = mpsc::channel(LOOKUP_QUEUE);
        tokio::spawn(async move {
            let mut lookup = dht.get_peers(id(swarm));
            let mut seen = HashSet::new();
            while let Some(peers) = next(&mut lookup).await {
                for peer in peers.into_iter().map(SocketAddr::V4).filter(callable) {
                    if seen.len() < LOOKUP_PEERS_MAX
                        && seen.insert(peer)
                        && found.send(peer).await.is_err()
                    {
                        return;
                    }
                }
            }
        });
        receiver
    }

    fn put_item(&self, item: SignedItem, cas: Option<i64>) -> Later<u32> {
        let dht = self.0.clone();
        contained(async move {
            let SignedItem {
                key,
                salt,
                seq,
                value,
                signature,
            } = item;
            let item =
                MutableItem::new_signed_unchecked(key.0, signature, &value, seq, Some(&salt));
            let outcome = dht.put_mutable(item, cas).await.map_err(put_error)?;
            Ok(outcome.stored_at)
        })
    }

    fn get_item(&self, key: ItemKey, salt: [u8; 8]) -> Later<Option<SignedItem>> {
        let dht = self.0.clone();
        contained(async move {
            let found = dht.get_mutable_most_recent(&key.0, Some(&salt)).await;
            let signed = |item: MutableItem| SignedItem {
                key,
                salt,
                seq: item.seq(),
                value: item.value().to_vec(),
                signature: *item.signature(),
            };
            let acceptable =
                |item: &SignedItem| item.value.len() <= VALUE_LEN_MAX && item.verify().is_ok();
            Ok(found.map(signed).filter(acceptable))
        })
    }

    fn public_ip(&self) -> Later<Option<Ipv4Addr>> {
        let dht = self.0.clone();
        contained(async move {
            let info = dht.info().await;
            Ok(info.public_address().map(|addr| *addr.ip()))
        })
    }

    fn nodes(&self) -> Later<Vec<SocketAddr>> {
        let dht = self.0.clone();
        contained(async move {
            let nodes = dht.to_bootstrap().await;
            Ok(nodes.iter().filter_map(|node| node.parse().ok()).collect())
        })
    }
}

/// Runs `work` where a panic of `mainline` ends nothing else.
fn contained<T: Send + 'static>(
    work: impl Future<Output = Result<T, DhtError>> + Send + 'static,
) -> Later<T> {
    let task = tokio::spawn(work);
    Box::pin(async move { task.await.unwrap_or(Err(DhtError::Stopped)) })
}

async fn next<S: Stream + Unpin>(stream: &mut S) -> Option<S::Item> {
    std::future::poll_fn(|cx| Pin::new(&mut *stream).poll_next(cx)).await
}

fn id(swarm: SwarmId) -> Id {
    Id::from(*swarm.as_bytes())
}

fn query_error(error: PutQueryError) -> DhtError {
    match error {
        PutQueryError::NoClosestNodes => DhtError::NoNodes,
        PutQueryError::ErrorResponse(answer) => DhtError::Refused { code: answer.code },
        PutQueryError::Timeout => DhtError::Silent,
    }
}

fn put_error(error: PutMutableError) -> DhtError {
    match error {
        PutMutableError::Query(error) => query_error(error),
        PutMutableError::Concurrency(ConcurrencyError::ConflictRisk) => DhtError::Busy,
        PutMutableError::Concurrency(_) => DhtError::Newer,
    }
}

/// What others see of the node: it once it runs, and how many nodes it knows.
#[derive(Clone)]
pub(super) struct DhtView {
    pub(super) node: watch::Receiver<Option<Arc<dyn Dht>>>,
    pub(super) nodes: Arc<AtomicUsize>,
}

impl DhtView {
    /// The node, once it runs; nothing if it never will.
    pub(super) async fn ready(&mut self) -> Option<Arc<dyn Dht>> {
        let node = self.node.wait_for(Option::is_some).await;
        node.ok()?.clone()
    }
}

/// Starts a node as soon as it has somebody to ask, then saves its nodes now and then and at the end.
pub(super) fn spawn(config: DhtConfig, stop: Stop) -> (DhtView, tokio::task::JoinHandle<()>) {
    let (ready, node) = watch::channel(None);
    let nodes = Arc::new(AtomicUsize::new(0));
    let view = DhtView {
        node,
        nodes: Arc::clone(&nodes),
    };
    let task = tokio::spawn(async move {
        let mut ending = stop.clone();
        let dht = tokio::select! {
            dht = start(&config) => dht,
            () = ending.stopped() => return,
        };
        drop(ready.send(Some(Arc::clone(&dht))));
        keep(dht.as_ref(), config.nodes_file.as_deref(), &nodes, stop).await;
    });
    (view, task)
}

async fn start(config: &DhtConfig) -> Arc<dyn Dht> {
    loop {
        let bootstrap = bootstrap(config).await;
        if bootstrap.is_empty() && !config.bootstrap.is_empty() {
            tracing::debug!("no bootstrap host has an address, trying again later");
        } else {
            match Mainline::start(config, bootstrap).await {
                Ok(dht) => return Arc::new(dht),
                Err(error) => tracing::warn!(%error, port = config.port, "the DHT cannot start"),
            }
        }
        tokio::time::sleep(START_RETRY_TIME).await;
    }
}

/// Saved nodes and the addresses of the configured hosts.
async fn bootstrap(config: &DhtConfig) -> Vec<SocketAddrV4> {
    let mut out = match config.nodes_file.clone() {
        Some(path) => tokio::task::spawn_blocking(move || load(&path))
            .await
            .unwrap_or_default(),
        None => Vec::new(),
    };
    for host in &config.bootstrap {
        let lookup = tokio::time::timeout(RESOLVE_TIME, tokio::net::lookup_host(host)).await;
        if let Ok(Ok(addrs)) = lookup {
            out.extend(addrs.filter_map(only_v4));
        }
    }
    out
}

fn only_v4(addr: SocketAddr) -> Option<SocketAddrV4> {
    match addr {
        SocketAddr::V4(addr) => Some(addr),
        SocketAddr::V6(_) => None,
    }
}

async fn keep(dht: &dyn Dht, file: Option<&Path>, count: &AtomicUsize, mut stop: Stop) {
    let mut wait = SAVE_TIME_FIRST;
    loop {
        let ending = tokio::select! {
            () = tokio::time::sleep(wait) => false,
            () = stop.stopped() => true,
        };
        wait = SAVE_TIME;
        let Ok(nodes) = dht.nodes().await else { return };
        count.store(nodes.len(), Ordering::Relaxed);
        if let Some(file) = file {
            let file = file.to_owned();
            let saved = tokio::task::spawn_blocking(move || save(&file, &nodes)).await;
            if let Ok(Err(error)) = saved {
                tracing::warn!(%error, "the DHT's nodes cannot be saved");
            }
        }
        if ending {
            return;
        }
    }
}

/// Saves nodes, one a line. An empty table is no reason to forget those of last time.
fn save(path: &Path, nodes: &[SocketAddr]) -> io::Result<()> {
    if nodes.is_empty() {
        return Ok(());
    }
    let lines = nodes
        .iter()
        .take(SAVED_NODES_MAX)
        .map(|node| format!("{node}\n"));
    state_file::replace(path, lines.collect::<String>().as_bytes())
}

/// Reads what [`save`] wrote. Anything else in the file is skipped: the nodes are only hints.
fn load(path: &Path) -> Vec<SocketAddrV4> {
    let read = || {
        let mut text = Vec::new();
        io::Read::read_to_end(
            &mut io::Read::take(std::fs::File::open(path)?, SAVED_LEN_MAX),
            &mut text,
        )?;
        Ok::<_, io::Error>(text)
    };
    parse_nodes(&read().unwrap_or_default())
}

pub(crate) fn parse_nodes(bytes: &[u8]) -> Vec<SocketAddrV4> {
    let text = String::from_utf8_lossy(bytes);
    text.lines()
        .filter_map(|line| line.parse().ok())
        .take(SAVED_NODES_MAX)
        .collect()
}

/// Looks for peers of one swarm and announces us, until told to stop or nobody listens any more.
pub(super) async fn follow(
    mut view: DhtView,
    swarm: SwarmId,
    mut port: watch::Receiver<u16>,
    sink: mpsc::Sender<Found>,
    mut stop: Stop,
) {
    let work = async {
        let Some(dht) = view.ready().await else {
            return;
        };
        let (mut rounds, mut failures) = (0, 0);
        loop {
            let mut peers = dht.get_peers(swarm);
            while let Some(peer) = peers.recv().await {
                if !deliver(&sink, swarm, peer, Source::Dht).await {
                    return;
                }
            }
            let outside = *port.borrow_and_update();
            let announced = match outside {
                0 => Ok(()),
                port => dht.announce(swarm, port).await,
            };
            match announced {
                Ok(()) => {
                    rounds += 1;
                    failures = 0;
                }
                Err(DhtError::Stopped) => return,
                Err(error) => {
                    failures += 1;
                    tracing::debug!(%swarm, %error, "not announced to the DHT");
                }
            }
            tokio::select! {
                () = tokio::time::sleep(jittered(wait(rounds, failures))) => {}
                () = moved(&mut port) => {}
            }
        }
    };
    tokio::select! {
        () = work => {}
        () = stop.stopped() => {}
    }
}

/// The wait after so many announces, or after so many failures in a row.
fn wait(rounds: u32, failures: u32) -> Duration {
    let times = if failures > 0 { failures } else { rounds };
    (RETRY_TIME * 2_u32.pow(times.saturating_sub(1).min(10))).min(ANNOUNCE_TIME)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_are_saved_and_read_and_never_forgotten_for_an_empty_table() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("nodes");
        assert_eq!(load(&path), []);
        let nodes: Vec<SocketAddr> = (1..=600)
            .map(|port| SocketAddr::from(([10, 0, 0, 1], port)))
            .collect();
        save(&path, &nodes).unwrap();
        save(&path, &[]).unwrap();
        let loaded = load(&path);
        assert_eq!(loaded.len(), SAVED_NODES_MAX);
        assert_eq!(SocketAddr::V4(loaded[499]), nodes[499]);
        std::fs::write(
            &path,
            b"\xff\xfe\n1.2.3.4:5\nhello\n[::1]:4\n6.7.8.9:99999\n",
        )
        .unwrap();
        assert_eq!(load(&path), ["1.2.3.4:5".parse().unwrap()]);
    }

    #[test]
    fn the_first_rounds_and_failures_are_repeated_soon_then_ever_later() {
        let secs = |rounds, failures| wait(rounds, failures).as_secs();
        assert_eq!([1, 2, 3, 7, 40].map(|n| secs(n, 0)), [15, 30, 60, 900, 900]);
        assert_eq!(
            [1, 2, 3, 7, 40].map(|n| secs(40, n)),
            [15, 30, 60, 900, 900]
        );
    }
}
