//! Announces one swarm to its trackers for as long as it is watched.
//!
//! Trackers come in tiers (BEP 12): inside a tier they are tried in random order, the first that answers is asked from then on
//! and moves to the front. Every tier is announced to, each by a [`Task`] of its own, as most clients do; a link has a tier for
//! each tracker. In a private torrent one task goes through the tiers and talks to one tracker at a time (BEP 27).

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{mpsc, watch};

use super::{TrackerError, TrackerStatus, TrackerUrl};
use crate::engine::discovery::{Found, Source, Stop, deliver, jittered, moved};
use crate::proto::tracker::{AnnounceRequest, Announced, Event};
use crate::share::SwarmId;
use crate::{clock, random};

/// First wait after a failure; doubled with each further one.
const RETRY_TIME_MIN: Duration = Duration::from_secs(60);
/// Longest wait after failures.
const RETRY_TIME_MAX: Duration = Duration::from_secs(30 * 60);
/// The good-bye to a tracker must not hold up the end.
const LEAVE_TIME: Duration = Duration::from_secs(3);
/// Said in place of 0 when nobody can call us: trackers refuse 0.
const PORT_NONE: u16 = 1;
/// What is said to be missing while nobody knows. Not 0: to those who miss nothing many trackers do not name others who miss
/// nothing.
const LEFT_UNKNOWN: u64 = 1;

/// How far we are, as trackers are told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Totals {
    /// Payload bytes sent in this run.
    pub uploaded: u64,
    /// Payload bytes received in this run.
    pub downloaded: u64,
    /// Payload bytes still missing.
    pub left: u64,
    /// The content became whole in this run.
    pub completed: bool,
}

impl Default for Totals {
    fn default() -> Self {
        Self {
            uploaded: 0,
            downloaded: 0,
            left: LEFT_UNKNOWN,
            completed: false,
        }
    }
}

/// Which trackers are told of us, and what.
#[derive(Debug, Clone)]
pub struct Announce {
    /// Their URLs in tiers.
    pub tiers: Vec<Vec<String>>,
    /// Our name in the swarm, the same as in handshakes.
    pub peer_id: [u8; 20],
    /// By which a tracker knows us again when our address changes.
    pub key: u32,
    pub totals: watch::Receiver<Totals>,
}

impl Announce {
    /// For a swarm that has no names and nothing to count: a folder.
    pub fn anonymous(trackers: Vec<String>) -> Self {
        Self {
            tiers: trackers.into_iter().map(|url| vec![url]).collect(),
            peer_id: random::bytes(),
            key: u32::from_be_bytes(random::bytes()),
            totals: watch::channel(Totals::default()).1,
        }
    }
}

/// A tracker of a task.
pub(in crate::engine::discovery) struct Entry {
    url: TrackerUrl,
    status: Arc<Mutex<TrackerStatus>>,
    /// It has heard of us and wants to hear when we go.
    knows_us: bool,
    /// It has been told that the content became whole.
    told_completed: bool,
}

/// Announces one swarm to the trackers of some tiers, one at a time.
pub(in crate::engine::discovery) struct Task {
    pub(in crate::engine::discovery) tiers: Vec<Vec<Entry>>,
    pub(in crate::engine::discovery) swarm: SwarmId,
    pub(in crate::engine::discovery) announce: Announce,
    /// Where others can call us.
    pub(in crate::engine::discovery) port: watch::Receiver<u16>,
    pub(in crate::engine::discovery) sink: mpsc::Sender<Found>,
    pub(in crate::engine::discovery) stop: Stop,
}

/// Somebody still listens.
type Heard = bool;

impl Task {
    /// Announces until told to stop, then says good-bye to the trackers that know us.
    pub(in crate::engine::discovery) async fn run(mut self) {
        self.tiers.iter_mut().for_each(|tier| shuffle(tier));
        let mut stop = self.stop.clone();
        tokio::select! {
            () = self.repeat() => {}
            () = stop.stopped() => {}
        }
        self.leave().await;
    }

    /// Ends only when nobody listens any more.
    async fn repeat(&mut self) {
        let mut failures = 0;
        let completed = self.announce.totals.borrow().completed;
        // What was whole before is not told as having become so.
        let entries = self.tiers.iter_mut().flatten();
        entries.for_each(|entry| entry.told_completed = completed);
        loop {
            let told = *self.announce.totals.borrow();
            drop(self.port.borrow_and_update());
            let wait = match self.round().await {
                Some((announced, heard)) => {
                    if !heard {
                        return;
                    }
                    failures = 0;
                    announced.interval
                }
                None => {
                    failures += 1;
                    jittered(retry_wait(failures))
                }
            };
            self.note_next(wait);
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = becomes_whole(&mut self.announce.totals, told) => {}
                () = moved(&mut self.port) => {}
            }
        }
    }

    /// Asks tracker after tracker until one answers, which goes to the front of its tier.
    async fn round(&mut self) -> Option<(Announced, Heard)> {
        let request = self.request();
        for tier in &mut self.tiers {
            for n in 0..tier.len() {
                let Some(entry) = tier.get_mut(n) else {
                    continue;
                };
                let outcome = entry.announce(&request).await;
                entry.note(self.swarm, &outcome);
                let Ok(announced) = outcome else { continue };
                entry.complete_counts(self.swarm, &announced).await;
                if let Some(until_here) = tier.get_mut(..=n) {
                    until_here.rotate_right(1);
                }
                let mut heard = true;
                for peer in &announced.peers {
                    heard = heard && deliver(&self.sink, self.swarm, *peer, Source::Tracker).await;
                }
                return Some((announced, heard && !self.sink.is_closed()));
            }
        }
        None
    }

    fn request(&self) -> AnnounceRequest {
        let totals = *self.announce.totals.borrow();
        AnnounceRequest {
            swarm: self.swarm,
            peer_id: self.announce.peer_id,
            port: match *self.port.borrow() {
                0 => PORT_NONE,
                port => port,
            },
            key: self.announce.key,
            uploaded: totals.uploaded,
            downloaded: totals.downloaded,
            left: totals.left,
            event: match totals.completed {
                true => Event::Completed,
                false => Event::Regular,
            },
        }
    }

    fn note_next(&self, wait: Duration) {
        let next = clock::unix_millis() / 1000 + wait.as_secs();
        // The one at the front is asked first; if it fails, the others are too.
        if let Some(entry) = self.tiers.iter().flatten().next() {
            entry.status.lock().next_announce = Some(next);
        }
    }

    /// Says good-bye, to all that know us at once.
    async fn leave(self) {
        let request = AnnounceRequest {
            event: Event::Stopped,
            ..self.request()
        };
        let mut good_byes = tokio::task::JoinSet::new();
        for entry in self
            .tiers
            .into_iter()
            .flatten()
            .filter(|entry| entry.knows_us)
        {
            let request = request.clone();
            good_byes.spawn(async move { entry.url.announce(request).await.is_ok() });
        }
        let all = async { while good_byes.join_next().await.is_some() {} };
        drop(tokio::time::timeout(LEAVE_TIME, all).await);
    }
}

impl Entry {
    pub(in crate::engine::discovery) fn new(
        url: TrackerUrl,
        status: Arc<Mutex<TrackerStatus>>,
    ) -> Self {
        Self {
            url,
            status,
            knows_us: false,
            told_completed: false,
        }
    }

    /// Announces with the event this tracker has to hear next.
    async fn announce(&mut self, request: &AnnounceRequest) -> Result<Announced, TrackerError> {
        let whole = request.event == Event::Completed;
        let event = match (self.knows_us, whole && !self.told_completed) {
            (false, _) => Event::Started,
            (true, true) => Event::Completed,
            (true, false) => Event::Regular,
        };
        let request = AnnounceRequest {
            event,
            ..request.clone()
        };
        let outcome = self.url.announce(request).await;
        if outcome.is_ok() {
            self.knows_us = true;
            // A tracker that hears of us only now counts no download of ours.
            self.told_completed |= whole;
        }
        outcome
    }

    fn note(&self, swarm: SwarmId, outcome: &Result<Announced, TrackerError>) {
        let mut status = self.status.lock();
        status.last_announce = Some(clock::unix_millis() / 1000);
        match outcome {
            Ok(announced) => {
                status.peers = Some(announced.peers.len());
                status.seeds = announced.seeds.or(status.seeds);
                status.leechers = announced.leechers.or(status.leechers);
                status.message.clone_from(&announced.warning);
                status.error = None;
            }
            Err(error) => {
                tracing::debug!(%swarm, url = status.url, %error, "tracker");
                status.message = error.said().map(str::to_owned);
                status.error = Some(error.to_string());
            }
        }
    }

    /// Asks a tracker that gave no counts for them (BEP 48).
    async fn complete_counts(&self, swarm: SwarmId, announced: &Announced) {
        if announced.seeds.is_some() && announced.leechers.is_some() {
            return;
        }
        if let Ok(scraped) = self.url.scrape(swarm).await {
            let mut status = self.status.lock();
            status.seeds = Some(scraped.seeds);
            status.leechers = Some(scraped.leechers);
        }
    }
}

/// Returns when the content is whole, unless that was told: it has become so, or has been found to be so by a look at the disk.
/// Until a tracker hears that nothing is left, it counts us as one who wants something.
async fn becomes_whole(totals: &mut watch::Receiver<Totals>, told: Totals) {
    let news = |now: &Totals| {
        let became = now.completed && !told.completed;
        became || (now.left == 0 && told.left != 0)
    };
    let whole = totals.wait_for(news).await.is_ok();
    if !whole {
        // Nobody will say so any more.
        std::future::pending::<()>().await;
    }
}

fn shuffle(tier: &mut [Entry]) {
    for n in (1..tier.len()).rev() {
        let random = u64::from_le_bytes(random::bytes());
        tier.swap(n, (random % (n as u64 + 1)) as usize);
    }
}

pub(super) fn retry_wait(failures: u32) -> Duration {
    (RETRY_TIME_MIN * 2_u32.pow(failures.saturating_sub(1).min(10))).min(RETRY_TIME_MAX)
}
