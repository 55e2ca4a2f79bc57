//! Which peer is asked for what: one scheduler per folder for chunks and nodes.
//!
//! Sans-IO: the owner feeds it jobs ("these items, this urgent, by then"), peers coming and going, arrivals, misses and
//! the time; it answers with requests to send and jobs that ended. It never waits and never looks at bytes: whoever
//! calls [`Scheduler::arrived`] has hashed them.
//!
//! An item is asked of one peer at a time, except that a blocking item whose answer is late is asked of a second one.
//! A peer has at most [`WINDOW_BYTES_MAX`] open; the window grows while answers come quickly and shrinks when they queue
//! up, so a slow peer holds little back from a fast one. A peer that says MISS is not asked for that item again for a
//! while, which doubles with every MISS from [`MISS_TIME_MIN`] to [`MISS_TIME_MAX`], unless it says that it holds more now.
//!
//! What an item costs does not depend on how many peers are connected: peers with room are kept sorted by load, a peer that
//! found nothing in a queue does not look again before something was added, and an item nobody can be asked for waits
//! outside the queues.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    time::Duration,
};

use ccbt_xet::hash::{ChunkHash, NodeId};

pub use super::ut_xet::Priority;

/// Bytes asked of a fresh peer at once: some 16 chunks, enough to fill a LAN round trip.
const WINDOW_BYTES_MIN: u64 = 1 << 20;
/// Most bytes open at one peer; the other side drops who asks for more (docs/bep_xet.md, "Asking").
const WINDOW_BYTES_MAX: u64 = 16 << 20;
/// Most items open at one peer (docs/bep_xet.md, "Asking").
const ITEMS_OPEN_MAX: usize = 4096;
/// Most items in one request.
const REQUEST_ITEMS_MAX: usize = 64;
/// How long a request may queue at the peer before the window counts as too large.
const QUEUE_TIME_TARGET: Duration = Duration::from_millis(150);
/// After this long without an answer an item is asked elsewhere.
const STALL_TIME: Duration = Duration::from_secs(10);
/// A blocking item is asked of a second peer after this long at least, or twice the peer's usual time.
const HEDGE_TIME_MIN: Duration = Duration::from_millis(200);
/// How long a peer's first MISS for an item is believed; doubled with each further one.
const MISS_TIME_MIN: Duration = Duration::from_secs(1);
/// How long a MISS is believed at most.
const MISS_TIME_MAX: Duration = Duration::from_secs(64);
/// A blocking job fails this long after nobody was left to ask, even if its deadline is later.
const NOBODY_TIME: Duration = Duration::from_secs(5);
/// A peer that has missed everything lately, in the units of its load (1024 is a full window).
const MISS_SCORE_MAX: u64 = 1024;
/// Most items in a request to a peer that misses more often than not.
const PROBE_ITEMS_MAX: usize = 2;
/// How often deadlines, stalls and misses are looked at while anything is wanted.
const TICK: Duration = Duration::from_millis(50);
/// An answer to something nobody wants any more is waited for this long before the item counts as not asked for.
const FLIGHT_TIME: Duration = Duration::from_secs(60);
/// Items looked at in one queue for one peer in one go, so that a long queue of misses cannot stall the rest.
const SCAN_ITEMS_MAX: usize = 4096;

/// Time since the owner's start.
pub type Now = Duration;

/// A connected peer, as the owner numbers it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PeerKey(pub u64);

/// A set of items somebody waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct JobId(pub u64);

/// What can be asked of a peer by its hash.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Item {
    Chunk(ChunkHash),
    Node { kind: u8, id: NodeId },
}

const PRIORITIES: [Priority; 4] = [
    Priority::Blocked,
    Priority::ReadAhead,
    Priority::Replica,
    Priority::Prefetch,
];

/// What the owner must do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// Ask `peer` for `items`, all chunks or all nodes.
    Request {
        peer: PeerKey,
        priority: Priority,
        items: Vec<Item>,
    },
    /// Every item of the job has arrived.
    Done(JobId),
    /// The job ended without all its items.
    Failed(JobId, Failure),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    #[error("it did not arrive in time")]
    TimedOut,
    #[error("no connected peer has it")]
    NobodyHasIt,
    #[error("it came, but could not be kept")]
    NotStored,
    #[error("the request was given up")]
    Cancelled,
}

#[derive(Debug)]
struct Want {
    bytes: u32,
    priority: Priority,
    jobs: Vec<JobId>,
    asked: Vec<(PeerKey, Now)>,
    /// At most one for each connected peer.
    missed: Vec<Miss>,
    queued: bool,
}

/// What is remembered of a peer that said MISS.
#[derive(Debug, Clone, Copy)]
struct Miss {
    peer: PeerKey,
    times: u32,
    /// It is not asked again before.
    until: Now,
}

#[derive(Debug)]
struct Job {
    missing: usize,
    items: Vec<Item>,
    priority: Priority,
    deadline: Now,
    /// Since when nobody can be asked for some item of it.
    nobody_since: Option<Now>,
}

#[derive(Debug)]
struct Peer {
    window: u64,
    open_bytes: u64,
    open: HashMap<Item, u32>,
    answer_time: Duration,
    answer_time_min: Duration,
    /// The share of its last answers that were MISS, of [`MISS_SCORE_MAX`].
    miss_score: u64,
    /// Its load as listed in [`Scheduler::ready`]; `None` while it has no room.
    listed: Option<u64>,
    /// The generation of each queue in which it found nothing it could be asked for.
    barren: [u64; 4],
}

/// See the module documentation.
#[derive(Debug, Default)]
pub struct Scheduler {
    wants: HashMap<Item, Want>,
    /// What is on its way although nobody wants it any more: who wants it next waits for it instead of asking again.
    flying: HashMap<Item, Vec<(PeerKey, Now)>>,
    jobs: BTreeMap<JobId, Job>,
    next_job: u64,
    peers: BTreeMap<PeerKey, Peer>,
    queues: [VecDeque<Item>; 4],
    /// Grows when something is added to a queue.
    generations: [u64; 4],
    /// Peers with room, least loaded first.
    ready: BTreeSet<(u64, PeerKey)>,
    outputs: VecDeque<Output>,
    last_tick: Now,
}

impl Scheduler {
    pub fn new() -> Self {
        Self::default()
    }

    /// Starts a job for `items` with their sizes in bytes (an estimate will do). Without items it is done at once.
    pub fn add_job(
        &mut self,
        items: impl IntoIterator<Item = (Item, u32)>,
        priority: Priority,
        deadline: Now,
    ) -> JobId {
        let id = JobId(self.next_job);
        self.next_job += 1;
        let mut job = Job {
            missing: 0,
            items: Vec::new(),
            priority,
            deadline,
            nobody_since: None,
        };
        for (item, bytes) in items {
            if self.want(item, bytes, priority, id) {
                job.missing += 1;
                job.items.push(item);
            }
        }
        if job.missing == 0 {
            self.outputs.push_back(Output::Done(id));
        } else {
            self.jobs.insert(id, job);
        }
        id
    }

    /// Gives up a job; what only it wanted is asked for no longer.
    pub fn cancel(&mut self, job: JobId) {
        self.end_job(job, Failure::Cancelled);
    }

    pub fn peer_up(&mut self, peer: PeerKey) {
        let fresh = Peer {
            window: WINDOW_BYTES_MIN,
            open_bytes: 0,
            open: HashMap::new(),
            answer_time: Duration::ZERO,
            answer_time_min: Duration::MAX,
            miss_score: 0,
            listed: None,
            barren: [u64::MAX; 4],
        };
        self.peers.insert(peer, fresh);
        self.list(peer);
        for job in self.jobs.values_mut() {
            job.nobody_since = None;
        }
        self.enqueue_unasked(|_| true);
    }

    /// The peer says that it holds more than before: what it missed is worth another question.
    pub fn peer_has_more(&mut self, peer: PeerKey) {
        for want in self.wants.values_mut() {
            want.missed.retain(|miss| miss.peer != peer);
        }
        if let Some(p) = self.peers.get_mut(&peer) {
            p.miss_score = 0;
        }
        self.list(peer);
        self.enqueue_unasked(|_| true);
    }

    /// Forgets a peer; what it was asked for goes to others.
    pub fn peer_down(&mut self, peer: PeerKey) {
        let Some(gone) = self.peers.remove(&peer) else {
            return;
        };
        if let Some(load) = gone.listed {
            self.ready.remove(&(load, peer));
        }
        let asked = self.wants.iter().filter(|(_, w)| w.is_asked_of(peer));
        let asked: Vec<Item> = asked.map(|(item, _)| *item).collect();
        for item in asked {
            self.release(item, peer);
        }
        for want in self.wants.values_mut() {
            want.missed.retain(|miss| miss.peer != peer);
        }
        self.flying.retain(|_, asked| {
            asked.retain(|(asked, _)| *asked != peer);
            !asked.is_empty()
        });
    }

    /// `item` is here, hashed and stored. `from` is the peer that sent it; `None` if it came otherwise.
    pub fn arrived(&mut self, now: Now, item: Item, from: Option<PeerKey>) {
        if let Some(peer) = from {
            self.answered(now, item, peer, true);
        }
        self.flying.remove(&item);
        let Some(want) = self.wants.remove(&item) else {
            return;
        };
        for (peer, _) in want.asked {
            self.close(peer, &item);
        }
        for id in want.jobs {
            let Some(job) = self.jobs.get_mut(&id) else {
                continue;
            };
            job.missing -= 1;
            if job.missing == 0 {
                self.jobs.remove(&id);
                self.outputs.push_back(Output::Done(id));
            }
        }
    }

    /// The peer does not have the item.
    pub fn missed(&mut self, now: Now, item: Item, peer: PeerKey) {
        self.answered(now, item, peer, false);
        if let Some(want) = self.wants.get_mut(&item) {
            want.miss(now, peer);
        }
        if let Some(p) = self.peers.get_mut(&peer) {
            p.miss_score += (MISS_SCORE_MAX - p.miss_score).div_ceil(8);
        }
        self.list(peer);
        self.landed(&item, peer);
        self.release(item, peer);
    }

    /// The item came from `peer` and could not be kept: whoever waits for it is told, nobody is asked for it again.
    pub fn not_stored(&mut self, now: Now, item: Item, peer: PeerKey) {
        self.answered(now, item, peer, false);
        self.landed(&item, peer);
        let jobs = self.wants.get(&item).map(|want| want.jobs.clone());
        for job in jobs.unwrap_or_default() {
            self.end_job(job, Failure::NotStored);
        }
    }

    /// When [`Self::handle_timeout`] wants to be called; `None` while nothing is wanted.
    pub fn poll_timeout(&self) -> Option<Now> {
        (!self.jobs.is_empty()).then_some(self.last_tick + TICK)
    }

    /// Ends late jobs, takes stalled items elsewhere, forgets old misses.
    pub fn handle_timeout(&mut self, now: Now) {
        let before = std::mem::replace(&mut self.last_tick, now);
        self.note_nobody(now);
        self.flying
            .retain(|_, asked| asked.iter().any(|(_, at)| *at + FLIGHT_TIME > now));
        let late: Vec<(JobId, Failure)> = self
            .jobs
            .iter()
            .filter(|(_, job)| job.ends_at() <= now)
            .map(|(id, job)| {
                let nobody = job.deadline > now || job.nobody_since.is_some();
                (
                    *id,
                    if nobody {
                        Failure::NobodyHasIt
                    } else {
                        Failure::TimedOut
                    },
                )
            })
            .collect();
        for (id, why) in late {
            self.end_job(id, why);
        }
        let stalled: Vec<Item> = self
            .wants
            .iter()
            .filter(|(_, want)| {
                let late = |(peer, at): &(PeerKey, Now)| *at + self.patience(want, *peer) <= now;
                want.asked.iter().any(late)
            })
            .map(|(item, _)| *item)
            .collect();
        for item in stalled {
            self.enqueue(item);
        }
        self.enqueue_unasked(|want| {
            let forgiven = |miss: &Miss| before < miss.until && miss.until <= now;
            want.missed.iter().any(forgiven)
        });
    }

    /// The next thing to do, or `None` until something happens.
    pub fn poll_output(&mut self, now: Now) -> Option<Output> {
        if let Some(output) = self.outputs.pop_front() {
            return Some(output);
        }
        for priority in PRIORITIES {
            while let Some(peer) = self.next_candidate(priority) {
                if let Some(items) = self.pick(now, peer, priority) {
                    return Some(Output::Request {
                        peer,
                        priority,
                        items,
                    });
                }
                if let Some(p) = self.peers.get_mut(&peer) {
                    p.barren[priority as usize] = self.generations[priority as usize];
                }
            }
        }
        None
    }

    /// How many items of a job are not here yet; none if it has ended.
    pub fn left(&self, job: JobId) -> Option<usize> {
        self.jobs.get(&job).map(|job| job.missing)
    }

    /// Whether every connected peer has said of everything left of a job that it lacks it.
    pub fn is_barren(&self, job: JobId) -> bool {
        let Some(job) = self.jobs.get(&job) else {
            return false;
        };
        let mut wants = job.items.iter().filter_map(|item| self.wants.get(item));
        wants.all(|want| want.is_barren(self.peers.len()))
    }

    /// Bytes asked of peers and not here yet.
    pub fn open_bytes(&self) -> u64 {
        self.peers.values().map(|p| p.open_bytes).sum()
    }

    /// Items wanted and not here yet.
    pub fn wanted(&self) -> usize {
        self.wants.len()
    }

    fn want(&mut self, item: Item, bytes: u32, priority: Priority, job: JobId) -> bool {
        let flying = &mut self.flying;
        let want = self.wants.entry(item).or_insert_with(|| Want {
            bytes,
            priority,
            jobs: Vec::new(),
            asked: flying.remove(&item).unwrap_or_default(),
            missed: Vec::new(),
            queued: false,
        });
        if want.jobs.contains(&job) {
            return false;
        }
        want.jobs.push(job);
        let urgent = priority < want.priority;
        if urgent {
            want.priority = priority;
            want.queued = false;
        }
        // What was asked already is on its way; if it is late for its new urgency, the next tick asks somebody else as well.
        if want.asked.is_empty() {
            self.enqueue(item);
        }
        true
    }

    fn enqueue(&mut self, item: Item) {
        if let Some(want) = self.wants.get_mut(&item)
            && !want.queued
        {
            want.queued = true;
            self.queues[want.priority as usize].push_back(item);
            self.generations[want.priority as usize] += 1;
        }
    }

    /// Queues those wants that nobody was asked for.
    fn enqueue_unasked(&mut self, which: impl Fn(&Want) -> bool) {
        let unasked: Vec<Item> = self
            .wants
            .iter()
            .filter(|(_, want)| want.asked.is_empty() && !want.queued && which(want))
            .map(|(item, _)| *item)
            .collect();
        for item in unasked {
            self.enqueue(item);
        }
    }

    /// Keeps the peer's place in [`Self::ready`] current.
    fn list(&mut self, peer: PeerKey) {
        let Some(p) = self.peers.get_mut(&peer) else {
            return;
        };
        let load = p.has_room().then(|| p.load());
        let before = std::mem::replace(&mut p.listed, load);
        if before != load {
            before.map(|load| self.ready.remove(&(load, peer)));
            load.map(|load| self.ready.insert((load, peer)));
        }
    }

    /// The item is no longer awaited from the peer; its size if it was.
    fn close(&mut self, peer: PeerKey, item: &Item) -> Option<u32> {
        let bytes = self.peers.get_mut(&peer)?.close(item);
        self.list(peer);
        bytes
    }

    /// `peer` will not bring `item`: queue it again if nobody else was asked.
    fn release(&mut self, item: Item, peer: PeerKey) {
        let Some(want) = self.wants.get_mut(&item) else {
            return;
        };
        want.asked.retain(|(p, _)| *p != peer);
        if want.asked.is_empty() {
            self.enqueue(item);
        }
    }

    /// The peer's answer has come, whatever it was.
    fn landed(&mut self, item: &Item, peer: PeerKey) {
        if let Some(want) = self.wants.get_mut(item) {
            want.asked.retain(|(asked, _)| *asked != peer);
        }
        if let Some(asked) = self.flying.get_mut(item) {
            asked.retain(|(asked, _)| *asked != peer);
            if asked.is_empty() {
                self.flying.remove(item);
            }
        }
    }

    fn answered(&mut self, now: Now, item: Item, peer: PeerKey, useful: bool) {
        let asked_at = self
            .wants
            .get(&item)
            .and_then(|w| w.asked.iter().find(|(p, _)| *p == peer).map(|(_, at)| *at));
        let Some(bytes) = self.close(peer, &item) else {
            return;
        };
        if let (Some(at), true, Some(p)) = (asked_at, useful, self.peers.get_mut(&peer)) {
            p.learn(now.saturating_sub(at), bytes);
            self.list(peer);
        }
    }

    /// How long to wait for `peer` before the item is asked elsewhere as well.
    fn patience(&self, want: &Want, peer: PeerKey) -> Duration {
        if want.priority != Priority::Blocked || want.asked.len() > 1 {
            return STALL_TIME;
        }
        let usual = self
            .peers
            .get(&peer)
            .map_or(STALL_TIME, |p| p.answer_time * 2);
        usual.clamp(HEDGE_TIME_MIN, STALL_TIME)
    }

    /// The least loaded peer that may find something in a queue, so that every peer with room gets its share.
    fn next_candidate(&self, priority: Priority) -> Option<PeerKey> {
        let p = priority as usize;
        if self.queues[p].is_empty() {
            return None;
        }
        let fertile = |key: &PeerKey| {
            let peer = self.peers.get(key);
            peer.is_some_and(|peer| peer.barren[p] != self.generations[p])
        };
        self.ready.iter().map(|(_, key)| *key).find(fertile)
    }

    /// Takes items of one priority for one peer: chunks or nodes, not both, within its window.
    fn pick(&mut self, now: Now, peer: PeerKey, priority: Priority) -> Option<Vec<Item>> {
        let (mut room, peers) = (self.peers.get(&peer)?.room(), self.peers.len());
        let mut picked: Vec<Item> = Vec::new();
        let mut passed = Vec::new();
        let share = self.share_of(peer, priority);
        for _ in 0..SCAN_ITEMS_MAX {
            if picked.len() >= share || room == 0 {
                break;
            }
            let Some(item) = self.queues[priority as usize].pop_front() else {
                break;
            };
            let Some(want) = self.wants.get_mut(&item) else {
                continue;
            };
            if !want.queued || want.priority != priority {
                continue;
            }
            if want.refusing(now) >= peers {
                want.queued = false;
                continue;
            }
            let other_kind = picked
                .first()
                .is_some_and(|first| first.is_chunk() != item.is_chunk());
            if want.is_refused_by(now, peer) || other_kind {
                passed.push(item);
                continue;
            }
            want.queued = false;
            want.asked.push((peer, now));
            room = room.saturating_sub(u64::from(want.bytes));
            picked.push(item);
        }
        for item in passed.into_iter().rev() {
            self.queues[priority as usize].push_front(item);
        }
        let p = self.peers.get_mut(&peer)?;
        for item in &picked {
            let bytes = self.wants.get(item).map_or(0, |w| w.bytes);
            p.open_bytes += u64::from(bytes);
            p.open.insert(*item, bytes);
        }
        self.list(peer);
        (!picked.is_empty()).then_some(picked)
    }

    /// Most items one request takes, so that several idle peers share a short queue.
    fn share_of(&self, peer: PeerKey, priority: Priority) -> usize {
        let lacks = |p: &Peer| p.miss_score > MISS_SCORE_MAX / 2;
        let most = match self.peers.get(&peer).is_some_and(lacks) {
            true => PROBE_ITEMS_MAX,
            false => REQUEST_ITEMS_MAX,
        };
        let idle = self.ready.len().max(1);
        (self.queues[priority as usize].len().div_ceil(idle)).clamp(1, most)
    }

    /// Starts the clock of jobs with an item that every connected peer lacks.
    fn note_nobody(&mut self, now: Now) {
        let peers = self.peers.len();
        for job in self.jobs.values_mut() {
            if job.priority != Priority::Blocked {
                continue;
            }
            let wants = || job.items.iter().filter_map(|item| self.wants.get(item));
            let stuck = wants().any(|w| w.asked.is_empty() && w.missed.len() >= peers);
            let hopeful = wants().any(|w| w.asked.iter().any(|(peer, _)| !w.has_missed(*peer)));
            if stuck {
                job.nobody_since.get_or_insert(now);
            } else if hopeful {
                job.nobody_since = None;
            }
        }
    }

    fn end_job(&mut self, id: JobId, why: Failure) {
        let Some(job) = self.jobs.remove(&id) else {
            return;
        };
        for item in job.items {
            let Some(want) = self.wants.get_mut(&item) else {
                continue;
            };
            want.jobs.retain(|j| *j != id);
            if want.jobs.is_empty()
                && let Some(want) = self.wants.remove(&item)
                && !want.asked.is_empty()
            {
                for (peer, _) in &want.asked {
                    self.close(*peer, &item);
                }
                self.flying.insert(item, want.asked);
            }
        }
        self.outputs.push_back(Output::Failed(id, why));
    }
}

impl Want {
    fn miss(&mut self, now: Now, peer: PeerKey) {
        let known = self.missed.iter().position(|miss| miss.peer == peer);
        let times = known.map_or(0, |at| self.missed.swap_remove(at).times);
        let believed = MISS_TIME_MIN * 2_u32.saturating_pow(times.min(16));
        self.missed.push(Miss {
            peer,
            times: times + 1,
            until: now + believed.min(MISS_TIME_MAX),
        });
    }

    fn has_missed(&self, peer: PeerKey) -> bool {
        self.missed.iter().any(|miss| miss.peer == peer)
    }

    /// Whether all of so many connected peers have missed it, whoever is asked again just now.
    fn is_barren(&self, peers: usize) -> bool {
        self.missed.len() >= peers && self.asked.iter().all(|(peer, _)| self.has_missed(*peer))
    }

    fn is_asked_of(&self, peer: PeerKey) -> bool {
        self.asked.iter().any(|(asked, _)| *asked == peer)
    }

    fn is_refused_by(&self, now: Now, peer: PeerKey) -> bool {
        let missed = |miss: &Miss| miss.peer == peer && miss.until > now;
        self.is_asked_of(peer) || self.missed.iter().any(missed)
    }

    /// How many peers cannot be asked for it now.
    fn refusing(&self, now: Now) -> usize {
        let missed = self.missed.iter().filter(|miss| miss.until > now);
        self.asked.len() + missed.filter(|miss| !self.is_asked_of(miss.peer)).count()
    }
}

impl Job {
    fn ends_at(&self) -> Now {
        self.nobody_since.map_or(self.deadline, |since| {
            self.deadline.min(since + NOBODY_TIME)
        })
    }
}

impl Peer {
    fn room(&self) -> u64 {
        self.window.saturating_sub(self.open_bytes)
    }

    /// How much it has to do, of 1024. Who mostly lacks what is wanted counts as busy: others are asked first.
    fn load(&self) -> u64 {
        self.open_bytes * 1024 / self.window + self.miss_score
    }

    fn has_room(&self) -> bool {
        self.room() > 0 && self.open.len() < ITEMS_OPEN_MAX
    }

    fn close(&mut self, item: &Item) -> Option<u32> {
        let bytes = self.open.remove(item)?;
        self.open_bytes -= u64::from(bytes);
        Some(bytes)
    }

    /// An answer of `bytes` took `time`: open the window while answers come quickly, close it when they queue up.
    fn learn(&mut self, time: Duration, bytes: u32) {
        self.miss_score -= self.miss_score / 8;
        self.answer_time_min = self.answer_time_min.min(time);
        self.answer_time = (self.answer_time * 7 + time) / 8;
        let target = self.answer_time_min * 2 + QUEUE_TIME_TARGET;
        let window = if time <= target {
            self.window + u64::from(bytes)
        } else {
            self.window.saturating_sub(u64::from(bytes))
        };
        self.window = window.clamp(WINDOW_BYTES_MIN, WINDOW_BYTES_MAX);
    }
}

impl Item {
    pub fn is_chunk(&self) -> bool {
        matches!(self, Self::Chunk(_))
    }
}

#[cfg(test)]
mod tests;
