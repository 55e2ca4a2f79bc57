//! Which peer is asked for what: one scheduler per folder for chunks and nodes.
//!
//! Sans-IO: the owner feeds it jobs ("these items, this urgent, by then"), peers coming and going, arrivals, misses and
//! the time; it answers with requests to send and jobs that ended. It never waits and never looks at bytes: whoever
//! calls [`Scheduler::arrived`] has hashed them.
//!
//! An item is asked of one peer at a time, except that a blocking item whose answer is late is asked of a second one.
//! A peer has at most [`WINDOW_BYTES_MAX`] open; the window grows while answers come quickly and shrinks when they queue
//! up, so a slow peer holds little back from a fast one. A peer that says MISS is not asked for that item again until
//! [`MISS_MEMORY`] has passed.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
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
/// How long a MISS is believed.
const MISS_MEMORY: Duration = Duration::from_secs(1);
/// A blocking job fails this long after nobody was left to ask, even if its deadline is later.
const NOBODY_TIME: Duration = Duration::from_secs(5);
/// How often deadlines, stalls and misses are looked at while anything is wanted.
const TICK: Duration = Duration::from_millis(50);
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
    #[error("the request was given up")]
    Cancelled,
}

#[derive(Debug)]
struct Want {
    bytes: u32,
    priority: Priority,
    jobs: Vec<JobId>,
    asked: Vec<(PeerKey, Now)>,
    missed: Vec<(PeerKey, Now)>,
    queued: bool,
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
}

/// See the module documentation.
#[derive(Debug, Default)]
pub struct Scheduler {
    wants: HashMap<Item, Want>,
    jobs: BTreeMap<JobId, Job>,
    next_job: u64,
    peers: BTreeMap<PeerKey, Peer>,
    queues: [VecDeque<Item>; 4],
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
        };
        self.peers.insert(peer, fresh);
        for job in self.jobs.values_mut() {
            job.nobody_since = None;
        }
    }

    /// Forgets a peer; what it was asked for goes to others.
    pub fn peer_down(&mut self, peer: PeerKey) {
        let Some(gone) = self.peers.remove(&peer) else {
            return;
        };
        for item in gone.open.into_keys() {
            self.release(item, peer);
        }
        for want in self.wants.values_mut() {
            want.missed.retain(|(p, _)| *p != peer);
        }
    }

    /// `item` is here, hashed and stored. `from` is the peer that sent it; `None` if it came otherwise.
    pub fn arrived(&mut self, now: Now, item: Item, from: Option<PeerKey>) {
        if let Some(peer) = from {
            self.answered(now, item, peer, true);
        }
        let Some(want) = self.wants.remove(&item) else {
            return;
        };
        for (peer, _) in want.asked {
            if let Some(p) = self.peers.get_mut(&peer) {
                p.close(&item);
            }
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
            want.missed.push((peer, now));
        }
        self.release(item, peer);
    }

    /// When [`Self::handle_timeout`] wants to be called; `None` while nothing is wanted.
    pub fn poll_timeout(&self) -> Option<Now> {
        (!self.jobs.is_empty()).then_some(self.last_tick + TICK)
    }

    /// Ends late jobs, takes stalled items elsewhere, forgets old misses.
    pub fn handle_timeout(&mut self, now: Now) {
        self.last_tick = now;
        self.note_nobody(now);
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
        let mut again = Vec::new();
        for (item, want) in &self.wants {
            let stalled = want
                .asked
                .iter()
                .any(|(peer, at)| *at + self.patience(want, *peer) <= now);
            let forgiven = want.missed.iter().any(|(_, at)| *at + MISS_MEMORY <= now);
            if stalled || forgiven {
                again.push(*item);
            }
        }
        for item in again {
            if let Some(want) = self.wants.get_mut(&item) {
                want.missed.retain(|(_, at)| *at + MISS_MEMORY > now);
            }
            self.enqueue(item);
        }
    }

    /// The next thing to do, or `None` until something happens.
    pub fn poll_output(&mut self, now: Now) -> Option<Output> {
        if let Some(output) = self.outputs.pop_front() {
            return Some(output);
        }
        let peers: Vec<PeerKey> = self.peers_by_speed();
        for priority in PRIORITIES {
            for peer in &peers {
                if let Some(items) = self.pick(now, *peer, priority) {
                    return Some(Output::Request {
                        peer: *peer,
                        priority,
                        items,
                    });
                }
            }
        }
        None
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
        let want = self.wants.entry(item).or_insert_with(|| Want {
            bytes,
            priority,
            jobs: Vec::new(),
            asked: Vec::new(),
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
        if urgent || want.asked.is_empty() {
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
        }
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

    fn answered(&mut self, now: Now, item: Item, peer: PeerKey, useful: bool) {
        let asked_at = self
            .wants
            .get(&item)
            .and_then(|w| w.asked.iter().find(|(p, _)| *p == peer).map(|(_, at)| *at));
        let Some(p) = self.peers.get_mut(&peer) else {
            return;
        };
        let Some(bytes) = p.close(&item) else { return };
        if let (Some(at), true) = (asked_at, useful) {
            p.learn(now.saturating_sub(at), bytes);
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

    /// Least loaded first, so that every peer with room gets its share.
    fn peers_by_speed(&self) -> Vec<PeerKey> {
        let mut peers: Vec<(u64, PeerKey)> = self
            .peers
            .iter()
            .filter(|(_, p)| p.has_room())
            .map(|(key, p)| (p.open_bytes * 1024 / p.window, *key))
            .collect();
        peers.sort_unstable();
        peers.into_iter().map(|(_, key)| key).collect()
    }

    /// Takes items of one priority for one peer: chunks or nodes, not both, within its window.
    fn pick(&mut self, now: Now, peer: PeerKey, priority: Priority) -> Option<Vec<Item>> {
        let mut room = self.peers.get(&peer)?.room();
        let mut picked: Vec<Item> = Vec::new();
        let mut passed = Vec::new();
        let share = self.share_of(priority);
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
            let refused = want.missed.iter().any(|(p, _)| *p == peer)
                || want.asked.iter().any(|(p, _)| *p == peer);
            let other_kind = picked
                .first()
                .is_some_and(|first| first.is_chunk() != item.is_chunk());
            if refused || other_kind {
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
        (!picked.is_empty()).then_some(picked)
    }

    /// Most items one request takes, so that several idle peers share a short queue.
    fn share_of(&self, priority: Priority) -> usize {
        let idle = self.peers.values().filter(|p| p.has_room()).count().max(1);
        (self.queues[priority as usize].len().div_ceil(idle)).clamp(1, REQUEST_ITEMS_MAX)
    }

    /// Starts the clock of jobs with an item that every connected peer lacks.
    fn note_nobody(&mut self, now: Now) {
        let peers = self.peers.len();
        for job in self.jobs.values_mut() {
            if job.priority != Priority::Blocked {
                continue;
            }
            let stuck = job.items.iter().any(|item| {
                self.wants
                    .get(item)
                    .is_some_and(|w| w.asked.is_empty() && w.missed.len() >= peers)
            });
            if stuck {
                job.nobody_since.get_or_insert(now);
            } else if peers > 0
                && job.items.iter().any(|i| {
                    self.wants
                        .get(i)
                        .is_some_and(|w| !w.asked.is_empty() && w.missed.is_empty())
                })
            {
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
            if want.jobs.is_empty() {
                let want = self.wants.remove(&item);
                for (peer, _) in want.into_iter().flat_map(|w| w.asked) {
                    if let Some(p) = self.peers.get_mut(&peer) {
                        p.close(&item);
                    }
                }
            }
        }
        self.outputs.push_back(Output::Failed(id, why));
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
