//! Whole swarms in one thread: torrents joined by links with delay and bandwidth, some peers slow, silent or lying, all from
//! one seed. Blocks travel as numbers that say whether they are the right ones.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap, VecDeque};
use std::time::Duration;

use bytes::Bytes;

use super::*;
use crate::proto::blocks::BLOCK_BYTES;
use crate::proto::metainfo::InfoHashV1;

/// What a node is like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Honest,
    /// Every third block it sends is wrong.
    Liar,
    /// It says it has everything and never sends a block.
    Silent,
}

enum Payload {
    Message(Message<Bytes>),
    Block(Block, u64),
}

enum Event {
    Deliver(usize, PeerKey, Payload),
    Sent(usize, PeerKey, Block),
    Hashed(usize, u32),
    Tick(usize),
    Join(usize),
    Leave(usize),
}

struct Node {
    torrent: Torrent,
    kind: Kind,
    /// Bytes per second it can send.
    rate: u64,
    /// Blocks to be sent, and whether the first is on its way out.
    queue: VecDeque<(PeerKey, Block)>,
    sending: bool,
    written: BTreeMap<(u32, u32), u64>,
    links: BTreeMap<PeerKey, usize>,
    sent: u64,
    here: bool,
    /// When the owner has been asked to call again.
    wakes_at: Option<Now>,
}

struct Swarm {
    now: Now,
    nodes: Vec<Node>,
    queue: BinaryHeap<Reverse<(Now, u64, usize)>>,
    events: Vec<Option<Event>>,
    next_key: u64,
    random: u64,
    pieces: u32,
    lies: BTreeSet<usize>,
    /// When the last message sent over a link in one direction arrives: links keep their order, as TCP does.
    arrivals: BTreeMap<(usize, PeerKey), Now>,
    finished: BTreeMap<usize, Now>,
    /// One in so many messages is lost on its way and comes when it is sent again.
    loss: Option<u64>,
    /// A node that joins is connected to this many others at most.
    degree: usize,
    /// Nodes that are still to join.
    coming: usize,
}

/// When what was lost is sent again.
const RESEND_TIME: Duration = Duration::from_millis(300);

/// 4 blocks a piece, the last piece shorter.
fn layout(pieces: u32) -> Layout {
    Layout::new(
        4 * BLOCK_BYTES,
        u64::from(pieces) * u64::from(4 * BLOCK_BYTES) - 20_000,
    )
}

fn right(block: (u32, u32)) -> u64 {
    u64::from(block.0) * 1000 + u64::from(block.1)
}

impl Swarm {
    fn new(pieces: u32, seed: u64) -> Self {
        Self {
            now: Duration::ZERO,
            nodes: Vec::new(),
            queue: BinaryHeap::new(),
            events: Vec::new(),
            next_key: 0,
            random: seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1,
            pieces,
            lies: BTreeSet::new(),
            arrivals: BTreeMap::new(),
            finished: BTreeMap::new(),
            loss: None,
            degree: usize::MAX,
            coming: 0,
        }
    }

    fn random(&mut self, below: u64) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random % below
    }

    fn add(&mut self, kind: Kind, rate: u64, has_all: bool) -> usize {
        let settings = Settings {
            hashes: InfoHashes {
                v1: Some(InfoHashV1([1; 20])),
                v2: None,
            },
            private: false,
            port: 0,
            lazy: false,
            super_seed: false,
            seed: self.random(u64::MAX),
        };
        let mut torrent = Torrent::new(self.now, settings);
        let have = match has_all {
            true => Bitfield::full(self.pieces),
            false => Bitfield::new(self.pieces),
        };
        torrent.begin(
            self.now,
            layout(self.pieces),
            Bytes::from_static(b"de"),
            false,
            have,
        );
        self.nodes.push(Node {
            torrent,
            kind,
            rate,
            queue: VecDeque::new(),
            sending: false,
            written: BTreeMap::new(),
            links: BTreeMap::new(),
            sent: 0,
            here: false,
            wakes_at: None,
        });
        self.nodes.len() - 1
    }

    fn add_many(&mut self, count: usize, kind: Kind, rate: u64, has_all: bool) {
        for _ in 0..count {
            self.add(kind, rate, has_all);
        }
    }

    /// When a message arrives that would arrive at `when` if none had been sent before it.
    fn arrival(&mut self, from: usize, key: PeerKey, when: Now) -> Now {
        let last = self.arrivals.entry((from, key)).or_default();
        *last = when.max(*last);
        *last
    }

    /// How long a message is on its way: jitter, and now and then a loss.
    fn delay(&mut self) -> Duration {
        let jitter = Duration::from_millis(20 + self.random(60));
        let loss = self.loss;
        let lost = loss.is_some_and(|one_in| self.random(one_in) == 0);
        jitter + RESEND_TIME * u32::from(lost)
    }

    fn at(&mut self, when: Now, event: Event) {
        self.coming += usize::from(matches!(event, Event::Join(_)));
        let number = self.events.len();
        self.events.push(Some(event));
        self.queue.push(Reverse((when, number as u64, number)));
    }

    /// Joins the node to all that are here.
    fn join(&mut self, node: usize) {
        self.nodes[node].here = true;
        let here = |n: &usize| *n != node && self.nodes[*n].here;
        let mut others: Vec<usize> = (0..self.nodes.len()).filter(here).collect();
        while others.len() > self.degree {
            let any = self.random(others.len() as u64) as usize;
            others.swap_remove(any);
        }
        for other in others {
            self.next_key += 1;
            let key = PeerKey(self.next_key);
            for (a, b) in [(node, other), (other, node)] {
                let new = NewPeer {
                    fast: (node + other).is_multiple_of(2),
                    extended: true,
                    v2: false,
                    called: false,
                    addr: None,
                    pex_flags: 0,
                };
                self.nodes[a].links.insert(key, b);
                self.nodes[a].torrent.peer_joined(self.now, key, new);
            }
            self.apply(other);
        }
        self.apply(node);
    }

    /// Wakes the node when it wants to be.
    fn sleep(&mut self, node: usize) {
        let wanted = self.nodes[node].torrent.poll_timeout();
        let wanted = wanted.map(|at| at.max(self.now));
        if let Some(at) = wanted.filter(|_| wanted != self.nodes[node].wakes_at) {
            self.at(at, Event::Tick(node));
        }
        self.nodes[node].wakes_at = wanted;
    }

    fn cut(&mut self, node: usize, key: PeerKey) {
        if let Some(other) = self.nodes[node].links.remove(&key) {
            self.nodes[node].torrent.peer_left(self.now, key);
            self.nodes[other].links.remove(&key);
            self.nodes[other].torrent.peer_left(self.now, key);
            self.apply(other);
        }
    }

    fn apply(&mut self, node: usize) {
        while let Some(action) = self.nodes[node].torrent.poll_action() {
            match action {
                Action::Send(key, message) => {
                    let delay = self.delay();
                    if let Some(other) = self.nodes[node].links.get(&key).copied() {
                        let when = self.arrival(node, key, self.now + delay);
                        let payload = Payload::Message(message);
                        self.at(when, Event::Deliver(other, key, payload));
                    }
                }
                Action::Serve(key, block) => self.serve(node, key, block),
                Action::Drop(key, fault) => {
                    let other = self.nodes[node].links.get(&key).copied();
                    if let (Fault::Lie, Some(other)) = (fault, other) {
                        assert_eq!(
                            self.nodes[other].kind,
                            Kind::Liar,
                            "an honest peer is blamed"
                        );
                        self.lies.insert(other);
                    }
                    assert!(!matches!(fault, Fault::Protocol(_)), "{fault}");
                    self.cut(node, key);
                }
                Action::Examine(piece) => {
                    let digests = self.digests(node, piece);
                    self.nodes[node].torrent.examined(self.now, piece, &digests);
                }
                Action::Unserve(key, block) => {
                    self.unserve(node, |to, queued| to == key && *queued == block);
                }
                Action::UnserveAll(key) => self.unserve(node, |to, _| to == key),
                Action::Found(_) | Action::Punch(_) => {}
                Action::Metadata(_) | Action::Layers(_) | Action::ServeHashes(..) => {
                    panic!("it was there from the start")
                }
            }
        }
        self.sleep(node);
    }

    fn serve(&mut self, node: usize, key: PeerKey, block: Block) {
        if self.nodes[node].kind != Kind::Silent {
            self.nodes[node].queue.push_back((key, block));
            self.send_next(node);
        }
    }

    /// Blocks that have not been sent are refused instead.
    fn unserve(&mut self, node: usize, which: impl Fn(PeerKey, &Block) -> bool) {
        let sending = usize::from(self.nodes[node].sending);
        let (first, rest): (Vec<_>, Vec<_>) = {
            let queue = &mut self.nodes[node].queue;
            let first = queue.drain(..sending.min(queue.len())).collect();
            (first, queue.drain(..).collect())
        };
        self.nodes[node].queue.extend(first);
        for (key, block) in rest {
            if !which(key, &block) {
                self.nodes[node].queue.push_back((key, block));
                continue;
            }
            self.nodes[node].torrent.served(self.now, key, 1, 0);
            let Some(other) = self.nodes[node].links.get(&key).copied() else {
                continue;
            };
            if (node + other).is_multiple_of(2) {
                let delay = self.delay();
                let when = self.arrival(node, key, self.now + delay);
                let payload = Payload::Message(Message::Reject(block));
                self.at(when, Event::Deliver(other, key, payload));
            }
        }
    }

    fn send_next(&mut self, node: usize) {
        let sender = &mut self.nodes[node];
        let Some((key, block)) = sender.queue.front().copied().filter(|_| !sender.sending) else {
            return;
        };
        sender.sending = true;
        let time = Duration::from_nanos(u64::from(block.length) * 1_000_000_000 / sender.rate);
        self.at(self.now + time, Event::Sent(node, key, block));
    }

    fn sent(&mut self, node: usize, key: PeerKey, block: Block) {
        let bytes = u64::from(block.length);
        let sender = &mut self.nodes[node];
        sender.queue.pop_front();
        sender.sending = false;
        sender.sent += bytes;
        sender.torrent.served(self.now, key, 1, bytes);
        let (kind, other) = (sender.kind, sender.links.get(&key).copied());
        if let Some(other) = other {
            let lies = kind == Kind::Liar && self.random(3) == 0;
            let token = right((block.piece, block.number())) + u64::from(lies) * 500;
            let delay = self.delay();
            let when = self.arrival(node, key, self.now + delay);
            self.at(
                when,
                Event::Deliver(other, key, Payload::Block(block, token)),
            );
        }
        self.send_next(node);
    }

    fn digests(&self, node: usize, piece: u32) -> Vec<u64> {
        let blocks = 0..layout(self.pieces).blocks(piece);
        blocks
            .map(|n| self.nodes[node].written[&(piece, n)])
            .collect()
    }

    fn block(&mut self, node: usize, key: PeerKey, block: Block, token: u64) {
        let verdict = self.nodes[node].torrent.block_arrived(self.now, key, block);
        if verdict == Verdict::Write {
            let at = (block.piece, block.number());
            let fresh = self.nodes[node].written.insert(at, token).is_none();
            assert!(fresh, "{at:?} is written twice");
            let blocks = layout(self.pieces).blocks(block.piece);
            if (0..blocks).all(|n| self.nodes[node].written.contains_key(&(block.piece, n))) {
                self.at(
                    self.now + Duration::from_millis(2),
                    Event::Hashed(node, block.piece),
                );
            }
        }
    }

    fn hashed(&mut self, node: usize, piece: u32) {
        let digests = self.digests(node, piece);
        let good = (0..)
            .zip(&digests)
            .all(|(n, token)| *token == right((piece, n)));
        let torrent = &mut self.nodes[node].torrent;
        if good {
            torrent.piece_verified(self.now, piece);
        } else {
            torrent.piece_failed(self.now, piece, &digests);
            self.nodes[node].written.retain(|(p, _), _| *p != piece);
        }
        if self.nodes[node].torrent.is_finished() {
            self.finished.entry(node).or_insert(self.now);
        }
    }

    /// Runs until all honest nodes that are here have finished; returns when the last one has.
    fn run(&mut self, limit: Now) -> Now {
        while let Some(Reverse((when, _, number))) = self.queue.pop() {
            self.now = when;
            assert!(when < limit, "not finished: {:?}", self.finished);
            let mut may_end = true;
            let node = match self.events[number].take().unwrap() {
                Event::Deliver(node, key, payload) => {
                    may_end = false;
                    if self.nodes[node].links.contains_key(&key) {
                        match payload {
                            Payload::Message(m) => self.nodes[node].torrent.message(when, key, m),
                            Payload::Block(b, token) => self.block(node, key, b, token),
                        }
                    }
                    node
                }
                Event::Sent(node, key, block) => {
                    self.sent(node, key, block);
                    node
                }
                Event::Hashed(node, piece) => {
                    self.hashed(node, piece);
                    node
                }
                Event::Tick(node) => {
                    // Others are those it has changed its mind about.
                    if self.nodes[node].here && self.nodes[node].wakes_at == Some(when) {
                        self.nodes[node].wakes_at = None;
                        self.nodes[node].torrent.handle_timeout(when);
                    }
                    node
                }
                Event::Join(node) => {
                    self.coming -= 1;
                    self.join(node);
                    node
                }
                Event::Leave(node) => {
                    let keys: Vec<PeerKey> = self.nodes[node].links.keys().copied().collect();
                    keys.into_iter().for_each(|key| self.cut(node, key));
                    self.nodes[node].here = false;
                    node
                }
            };
            self.apply(node);
            let busy = |n: &Node| n.here && n.kind == Kind::Honest && !n.torrent.is_finished();
            if may_end && self.coming == 0 && !self.nodes.iter().any(busy) {
                return when;
            }
        }
        panic!("nothing happens any more");
    }
}

const MB: u64 = 1_000_000;

fn secs(n: u64) -> Now {
    Duration::from_secs(n)
}

#[test]
fn one_seed_feeds_many_who_feed_each_other() {
    for seed in 0..5 {
        let mut swarm = Swarm::new(60, seed);
        let first = swarm.add(Kind::Honest, MB, true);
        swarm.add_many(8, Kind::Honest, MB, false);
        (0..9).for_each(|node| swarm.join(node));
        let end = swarm.run(secs(600));
        // 3.9 MB for each of eight: alone the seed would need 31 s.
        assert!(end < secs(20), "seed {seed}: {end:?}");
        let sent = swarm.nodes[first].sent;
        assert!(
            sent < 24 * MB,
            "seed {seed}: the first seed has sent {sent} bytes"
        );
    }
}

#[test]
fn liars_are_found_and_nobody_else_is_blamed() {
    for seed in 0..10 {
        let mut swarm = Swarm::new(30, seed);
        swarm.add(Kind::Honest, MB, true);
        let liars = [
            swarm.add(Kind::Liar, MB, true),
            swarm.add(Kind::Liar, 2 * MB, true),
        ];
        swarm.add_many(4, Kind::Honest, MB, false);
        (0..7).for_each(|node| swarm.join(node));
        swarm.run(secs(600));
        assert_eq!(swarm.lies, liars.into(), "seed {seed}");
    }
}

#[test]
fn the_silent_and_the_slow_hold_nobody_up_for_long() {
    for seed in 0..5 {
        let mut swarm = Swarm::new(40, seed);
        swarm.add(Kind::Honest, MB, true);
        swarm.add(Kind::Honest, 2_000, true);
        swarm.add_many(3, Kind::Silent, MB, true);
        swarm.add(Kind::Honest, MB, false);
        (0..6).for_each(|node| swarm.join(node));
        let end = swarm.run(secs(600));
        assert!(end < secs(30), "seed {seed}: {end:?}");
    }
}

#[test]
fn peers_come_and_go() {
    for seed in 0..5 {
        let mut swarm = Swarm::new(50, seed);
        swarm.add_many(2, Kind::Honest, MB / 2, true);
        swarm.add_many(12, Kind::Honest, MB / 2, false);
        swarm.join(0);
        for node in 1..14 {
            let when = Duration::from_millis(swarm.random(20_000));
            swarm.at(when, Event::Join(node));
            if node % 3 == 2 {
                let stay = Duration::from_millis(swarm.random(6_000));
                swarm.at(when + stay, Event::Leave(node));
            }
        }
        swarm.run(secs(600));
        assert!(swarm.finished.len() >= 8, "seed {seed}");
    }
}

#[test]
fn two_hundred_peers_come_and_go_over_bad_links() {
    let mut swarm = Swarm::new(24, 7);
    swarm.loss = Some(20);
    swarm.degree = 10;
    let first = swarm.add(Kind::Honest, 2 * MB, true);
    swarm.add_many(199, Kind::Honest, MB / 2, false);
    swarm.join(first);
    for node in 1..200 {
        let when = Duration::from_millis(swarm.random(30_000));
        swarm.at(when, Event::Join(node));
        if node % 5 == 0 {
            let stay = Duration::from_millis(1000 + swarm.random(8_000));
            swarm.at(when + stay, Event::Leave(node));
        }
    }
    let end = swarm.run(secs(300));
    assert!(swarm.finished.len() >= 159, "{}", swarm.finished.len());
    // 1.5 MB each: alone the seed would need more than two minutes.
    assert!(end < secs(70), "{end:?}");
}

#[test]
fn a_super_seed_sends_every_byte_little_more_than_once() {
    for seed in 0..3 {
        let mut swarm = Swarm::new(60, seed);
        let first = swarm.add(Kind::Honest, MB / 2, true);
        swarm.nodes[first].torrent.set_super_seed(Now::ZERO, true);
        swarm.add_many(8, Kind::Honest, MB, false);
        (0..9).for_each(|node| swarm.join(node));
        swarm.run(secs(600));
        let content = 60 * u64::from(4 * BLOCK_BYTES) - 20_000;
        let sent = swarm.nodes[first].sent;
        assert!(
            sent * 10 <= content * 12,
            "seed {seed}: {sent} of {content} bytes"
        );
    }
}

#[test]
fn the_end_does_not_wait_for_the_slow_and_wastes_little() {
    for seed in 0..5 {
        let mut swarm = Swarm::new(40, seed);
        swarm.add_many(2, Kind::Honest, MB, true);
        swarm.add_many(2, Kind::Honest, 20_000, true);
        let leecher = swarm.add(Kind::Honest, MB, false);
        (0..5).for_each(|node| swarm.join(node));
        let end = swarm.run(secs(600));
        // 2.6 MB at 2 MB/s; what the slow were asked for is asked of the fast too.
        assert!(end < secs(8), "seed {seed}: {end:?}");
        let wasted = swarm.nodes[leecher].torrent.summary(end).bytes_wasted;
        assert!(
            wasted < 40 * u64::from(BLOCK_BYTES),
            "seed {seed}: {wasted} bytes for nothing"
        );
    }
}
