//! Finds peers of swarms: DHT, trackers and local discovery, each switchable.
//!
//! [`Discovery`] owns what is watched. Every watched swarm has one task for the DHT and one per tracker; local discovery
//! is one task for all. What they find goes to the sink given with the swarm; a full sink slows its own swarm only. With
//! everything off no socket is opened.

pub mod dht;
pub mod item;
mod lsd;
mod rest;
pub mod trackers;

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use self::dht::{Dht, DhtConfig, DhtView};
use self::item::{ItemKeys, Keeper};
use self::lsd::LsdHandle;
use self::trackers::{Announce, TrackerStatus, TrackerUrl};
use crate::engine::swarm::SwarmHandle;
use crate::proto::lsd::GROUP_V4;
use crate::random;
use crate::share::SwarmId;

/// Trackers announced to per swarm; a link could name hundreds.
const TRACKERS_MAX: usize = 32;
/// How long [`Discovery::close`] waits for good-byes to trackers and for the DHT's nodes to be saved.
const CLOSE_TIME: Duration = Duration::from_secs(4);

/// Who named an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Source {
    /// The mainline DHT.
    Dht,
    /// A tracker.
    Tracker,
    /// A neighbour's multicast.
    Lsd,
}

/// A peer that somebody says is in a swarm. Nothing about it is checked but that it can be called.
pub type Found = (SwarmId, SocketAddr, Source);

/// Where a swarm may be looked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    Everywhere,
    /// Its trackers, all of them at once: it may be private, nobody knows yet.
    TrackersFirst,
    /// Its trackers, one at a time: it is private (BEP 27).
    TrackersOnly,
}

/// What is used.
#[derive(Debug, Clone, Default)]
pub struct Config {
    /// The DHT, if it is on.
    pub dht: Option<DhtConfig>,
    /// Local discovery.
    pub lsd: bool,
    /// Trackers.
    pub trackers: bool,
}

/// What discovery is doing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Status {
    /// Nodes the DHT knew when last counted; nothing while it does not run.
    pub dht_nodes: Option<usize>,
    /// Whether local discovery has its socket.
    pub lsd: bool,
    /// Watched swarms and their trackers.
    pub swarms: Vec<(SwarmId, Vec<TrackerStatus>)>,
}

/// Finds peers for any number of swarms. Dropping it ends its tasks; [`Discovery::close`] also waits for them.
pub struct Discovery {
    /// Where others can call us.
    port: watch::Sender<u16>,
    trackers: bool,
    dht: Option<DhtView>,
    lsd: Option<LsdHandle>,
    watches: Mutex<HashMap<SwarmId, Watch>>,
    /// Tasks of swarms that are not watched any more, which may be saying good-bye.
    leaving: Mutex<Vec<JoinHandle<()>>>,
    /// Ends the tasks that serve all swarms.
    stopper: Stopper,
    shared: Vec<JoinHandle<()>>,
}

/// One watched swarm.
struct Watch {
    stopper: Stopper,
    tasks: Vec<JoinHandle<()>>,
    trackers: Vec<Arc<Mutex<TrackerStatus>>>,
}

impl Watch {
    /// A tracker whose status is shown; one to announce to if its URL is one.
    fn tracker(&mut self, url: &str, tier: usize) -> Option<trackers::Entry> {
        let parsed = TrackerUrl::parse(url);
        let status = Arc::new(Mutex::new(TrackerStatus {
            url: url.to_owned(),
            tier,
            error: parsed.as_ref().err().map(ToString::to_string),
            ..TrackerStatus::default()
        }));
        self.trackers.push(Arc::clone(&status));
        Some(trackers::Entry::new(parsed.ok()?, status))
    }
}

impl Discovery {
    /// Starts what `config` wants, on the current runtime. `port` is where we take connections; with 0 we look for others
    /// and announce nothing but to trackers.
    pub fn start(config: Config, port: u16) -> Self {
        let (stopper, stop) = stop_pair();
        let mut shared = Vec::new();
        let dht = config.dht.map(|config| {
            let (view, task) = dht::spawn(config, stop.clone());
            shared.push(task);
            view
        });
        let lsd = config.lsd.then(|| {
            let (view, task) = lsd::spawn(GROUP_V4, port, stop.clone());
            shared.push(task);
            view
        });
        let watches = Mutex::default();
        Self {
            port: watch::channel(port).0,
            trackers: config.trackers,
            dht,
            lsd,
            watches,
            leaving: Mutex::default(),
            stopper,
            shared,
        }
    }

    /// Others can call us at this port, which a router leads to ours. Trackers and the DHT hear of it at once.
    pub fn call_at(&self, port: u16) {
        self.port
            .send_if_modified(|old| std::mem::replace(old, port) != port);
    }

    /// Looks for peers of `swarm` from now on, in place of an earlier watch of it. Addresses come to `sink`, any of them
    /// more than once. Ends with [`Self::unwatch`] or when the other side of `sink` is dropped. URLs that are none are
    /// reported in [`Self::status`].
    pub fn watch(&self, swarm: SwarmId, trackers: Vec<String>, sink: mpsc::Sender<Found>) {
        let announce = Announce::anonymous(trackers);
        self.watch_within(swarm, announce, sink, Reach::Everywhere);
    }

    /// The same, where `reach` may leave nothing but the trackers (BEP 27).
    pub fn watch_within(
        &self,
        swarm: SwarmId,
        announce: Announce,
        sink: mpsc::Sender<Found>,
        reach: Reach,
    ) {
        let everywhere = reach == Reach::Everywhere;
        let (stopper, stop) = stop_pair();
        let mut watch = Watch {
            stopper,
            tasks: Vec::new(),
            trackers: Vec::new(),
        };
        if let Some(view) = self.dht.clone().filter(|_| everywhere) {
            let task = dht::follow(
                view,
                swarm,
                self.port.subscribe(),
                sink.clone(),
                stop.clone(),
            );
            watch.tasks.push(tokio::spawn(task));
        }
        if self.trackers {
            self.watch_trackers(&mut watch, &announce, swarm, &sink, &stop, reach);
        }
        // Ends the earlier watch, if any.
        let earlier = self.watches.lock().insert(swarm, watch);
        self.end(earlier);
        if let Some(lsd) = &self.lsd {
            match reach {
                Reach::Everywhere => lsd.watch(swarm, sink),
                Reach::TrackersFirst | Reach::TrackersOnly => lsd.unwatch(swarm),
            }
        }
    }

    /// A swarm that was looked for at its trackers is looked for everywhere from now on, and at trackers of `more` too. Those
    /// it has hear nothing of it.
    pub fn widen(&self, swarm: SwarmId, more: &Announce, sink: mpsc::Sender<Found>) {
        let mut watches = self.watches.lock();
        let Some(watch) = watches.get_mut(&swarm) else {
            return;
        };
        let stop = Stop(watch.stopper.0.subscribe());
        if let Some(view) = self.dht.clone() {
            let task = dht::follow(
                view,
                swarm,
                self.port.subscribe(),
                sink.clone(),
                stop.clone(),
            );
            watch.tasks.push(tokio::spawn(task));
        }
        if self.trackers {
            self.watch_trackers(watch, more, swarm, &sink, &stop, Reach::Everywhere);
        }
        drop(watches);
        if let Some(lsd) = &self.lsd {
            lsd.watch(swarm, sink);
        }
    }

    /// Keeps the DHT items of the folder that is watched under `keys` from now on, until it is watched no longer. `listen` is
    /// where members can call us.
    pub fn keep_items(&self, keys: ItemKeys, swarm: SwarmHandle, listen: Option<SocketAddr>) {
        let mut watches = self.watches.lock();
        let watched = watches.get_mut(&keys.discover.swarm());
        if let (Some(watch), Some(view)) = (watched, self.dht.clone()) {
            let stop = Stop(watch.stopper.0.subscribe());
            let keeper = Keeper::new(keys, swarm, listen);
            watch.tasks.push(tokio::spawn(keeper.run(view, stop)));
        }
    }

    /// One task for each tier, or one for all where peers may come from one tracker at a time only (BEP 27).
    fn watch_trackers(
        &self,
        watch: &mut Watch,
        announce: &Announce,
        swarm: SwarmId,
        sink: &mpsc::Sender<Found>,
        stop: &Stop,
        reach: Reach,
    ) {
        let mut known: HashSet<String> = HashSet::new();
        known.extend(watch.trackers.iter().map(|t| t.lock().url.clone()));
        let mut tiers = Vec::new();
        for (number, urls) in announce.tiers.iter().enumerate() {
            let mut tier = Vec::new();
            for url in urls {
                if known.len() < TRACKERS_MAX && known.insert(url.clone()) {
                    tier.extend(watch.tracker(url, number));
                }
            }
            tiers.push(tier);
        }
        tiers.retain(|tier| !tier.is_empty());
        let tasks = match reach {
            Reach::TrackersOnly if tiers.is_empty() => Vec::new(),
            Reach::TrackersOnly => vec![tiers],
            Reach::Everywhere | Reach::TrackersFirst => {
                tiers.into_iter().map(|tier| vec![tier]).collect()
            }
        };
        for tiers in tasks {
            let task = trackers::Task {
                tiers,
                swarm,
                announce: announce.clone(),
                port: self.port.subscribe(),
                sink: sink.clone(),
                stop: stop.clone(),
            };
            watch.tasks.push(tokio::spawn(task.run()));
        }
    }

    /// What is known of the trackers of a swarm.
    pub fn trackers_of(&self, swarm: SwarmId) -> Vec<TrackerStatus> {
        let watches = self.watches.lock();
        let trackers = watches.get(&swarm).map(|watch| watch.trackers.iter());
        trackers
            .into_iter()
            .flatten()
            .map(|t| t.lock().clone())
            .collect()
    }

    /// Stops looking for peers of `swarm` and tells its trackers.
    pub fn unwatch(&self, swarm: SwarmId) {
        let ended = self.watches.lock().remove(&swarm);
        self.end(ended);
        if let Some(lsd) = &self.lsd {
            lsd.unwatch(swarm);
        }
    }

    fn end(&self, watch: Option<Watch>) {
        let Some(Watch { stopper, tasks, .. }) = watch else {
            return;
        };
        drop(stopper);
        let mut leaving = self.leaving.lock();
        leaving.retain(|task| !task.is_finished());
        leaving.extend(tasks);
    }

    /// The DHT, once it runs.
    pub fn dht(&self) -> Option<Arc<dyn Dht>> {
        self.dht.as_ref()?.node.borrow().clone()
    }

    /// What is going on.
    pub fn status(&self) -> Status {
        let nodes = |view: &DhtView| {
            view.node
                .borrow()
                .is_some()
                .then(|| view.nodes.load(Ordering::Relaxed))
        };
        let of = |watch: &Watch| watch.trackers.iter().map(|t| t.lock().clone()).collect();
        Status {
            dht_nodes: self.dht.as_ref().and_then(nodes),
            lsd: self.lsd.as_ref().is_some_and(LsdHandle::active),
            swarms: self
                .watches
                .lock()
                .iter()
                .map(|(swarm, watch)| (*swarm, of(watch)))
                .collect(),
        }
    }

    /// Ends everything: says good-bye to trackers and saves the DHT's nodes, for a few seconds at most.
    pub async fn close(self) {
        let Self {
            watches,
            leaving,
            stopper,
            shared,
            ..
        } = self;
        let mut tasks = shared;
        tasks.extend(leaving.into_inner());
        for (_, watch) in watches.into_inner() {
            drop(watch.stopper);
            tasks.extend(watch.tasks);
        }
        drop(stopper);
        let all = async {
            for task in tasks {
                drop(task.await);
            }
        };
        let _ = tokio::time::timeout(CLOSE_TIME, all).await;
    }
}

/// Dropping it stops the tasks that hold its [`Stop`].
#[derive(Debug)]
struct Stopper(watch::Sender<()>);

/// Tells a task that it shall end.
#[derive(Debug, Clone)]
struct Stop(watch::Receiver<()>);

fn stop_pair() -> (Stopper, Stop) {
    let (sender, receiver) = watch::channel(());
    (Stopper(sender), Stop(receiver))
}

impl Stop {
    /// Returns when the [`Stopper`] is gone.
    async fn stopped(&mut self) {
        while self.0.changed().await.is_ok() {}
    }
}

/// Others can call us at another port than before.
async fn moved(port: &mut watch::Receiver<u16>) {
    if port.changed().await.is_err() {
        // Nobody will say so any more.
        std::future::pending::<()>().await;
    }
}

/// Hands an address to who asked for it; false once nobody does.
async fn deliver(
    sink: &mpsc::Sender<Found>,
    swarm: SwarmId,
    peer: SocketAddr,
    source: Source,
) -> bool {
    sink.send((swarm, peer, source)).await.is_ok()
}

/// Up to a tenth longer, so that many swarms or devices do not fall into step.
fn jittered(wait: Duration) -> Duration {
    let [byte] = random::bytes();
    wait + wait / 10 * u32::from(byte) / 255
}
