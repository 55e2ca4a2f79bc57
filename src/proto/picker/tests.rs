//! The picker against what it promises: nothing twice, nothing that is here, rarest first, and an end.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::endgame::ENDGAME_PEERS_MAX;
use super::*;
use crate::proto::blocks::BLOCK_BYTES;

/// Pieces of `blocks` blocks, the last one shorter.
fn layout(pieces: u32, blocks: u32) -> Layout {
    let piece = BLOCK_BYTES * blocks;
    Layout::new(piece, u64::from(piece) * u64::from(pieces) - 5)
}

fn key(n: usize) -> PeerKey {
    PeerKey(n as u64)
}

#[derive(Debug, Clone)]
enum Op {
    Pick { peer: usize, count: usize },
    Receive { nth: usize },
    Unask { nth: usize },
    Verify,
    Fail { alone: bool },
    Want { piece: u32, priority: u8 },
    Have { peer: usize, piece: u32 },
    Deadline { piece: u32, at: Option<u64> },
    Order(Order),
    Lose { piece: u32 },
    Leave { peer: usize },
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        6 => (0..4usize, 1..9usize).prop_map(|(peer, count)| Op::Pick { peer, count }),
        6 => any::<usize>().prop_map(|nth| Op::Receive { nth }),
        1 => any::<usize>().prop_map(|nth| Op::Unask { nth }),
        2 => Just(Op::Verify),
        1 => any::<bool>().prop_map(|alone| Op::Fail { alone }),
        1 => (0..12u32, 0..8u8).prop_map(|(piece, priority)| Op::Want { piece, priority }),
        2 => (0..4usize, 0..12u32).prop_map(|(peer, piece)| Op::Have { peer, piece }),
        1 => (0..12u32, any::<Option<u8>>())
            .prop_map(|(piece, at)| Op::Deadline { piece, at: at.map(u64::from) }),
        1 => prop_oneof![Just(Order::RarestFirst), Just(Order::Sequential), Just(Order::RoundRobin)]
            .prop_map(Op::Order),
        1 => (0..12u32).prop_map(|piece| Op::Lose { piece }),
        1 => (0..4usize).prop_map(|peer| Op::Leave { peer }),
    ]
}

/// What the picker must agree with, kept in sets.
struct Model {
    picker: Picker,
    has: Vec<Bitfield>,
    asked: Vec<(usize, Block)>,
    here: BTreeSet<(u32, u32)>,
    have: BTreeSet<u32>,
    complete: BTreeSet<u32>,
    priority: Vec<u8>,
}

impl Model {
    fn new(has: Vec<Bitfield>) -> Self {
        let mut picker = Picker::new(layout(12, 3), 7);
        has.iter().for_each(|has| picker.peer_joined(has));
        Self {
            picker,
            has,
            asked: Vec::new(),
            here: BTreeSet::new(),
            have: BTreeSet::new(),
            complete: BTreeSet::new(),
            priority: vec![PRIORITY_NORMAL; 12],
        }
    }

    /// Blocks that are wanted, not here and not asked for.
    fn open(&self) -> usize {
        let layout = self.picker.layout();
        (0..12u32)
            .filter(|p| self.priority[*p as usize] > 0 && !self.have.contains(p))
            .flat_map(|p| (0..layout.blocks(p)).map(move |n| (p, n)))
            .filter(|at| !self.here.contains(at))
            .filter(|at| !self.asked.iter().any(|(_, b)| (b.piece, b.number()) == *at))
            .count()
    }

    fn run(&mut self, op: Op) {
        match op {
            Op::Pick { peer, count } => self.pick(peer, count),
            Op::Receive { nth } if !self.asked.is_empty() => self.receive(nth % self.asked.len()),
            Op::Unask { nth } if !self.asked.is_empty() => {
                let (peer, block) = self.asked.swap_remove(nth % self.asked.len());
                self.picker.unasked(key(peer), &block);
            }
            Op::Verify => {
                if let Some(piece) = self.complete.pop_first() {
                    self.picker.verified(piece);
                    self.have.insert(piece);
                }
            }
            Op::Fail { alone } => {
                if let Some(piece) = self.complete.pop_first() {
                    self.picker.failed(piece, alone);
                    self.here.retain(|(p, _)| *p != piece);
                }
            }
            Op::Want { piece, priority } => {
                self.picker.want(piece, priority);
                self.priority[piece as usize] = priority;
            }
            Op::Have { peer, piece } => {
                if self.has[peer].set(piece) {
                    self.picker.peer_got(piece, &self.has[peer]);
                }
            }
            Op::Deadline { piece, at } => {
                self.picker.set_deadline(piece, at.map(Duration::from_secs));
            }
            Op::Order(order) => self.picker.set_order(order),
            Op::Lose { piece } => {
                self.picker.lost(piece);
                if self.have.remove(&piece) {
                    self.here.retain(|(p, _)| *p != piece);
                }
            }
            Op::Leave { peer } => self.leave(peer),
            Op::Receive { .. } | Op::Unask { .. } => {}
        }
    }

    fn pick(&mut self, peer: usize, count: usize) {
        let endgame = self.open() == 0;
        let mut out = Vec::new();
        let has = self.has[peer].clone();
        self.picker.pick(key(peer), &has, count, &mut out);
        assert!(out.len() <= count);
        for block in out {
            let at = (block.piece, block.number());
            assert!(self.picker.layout().is_block(&block), "{block:?}");
            assert!(has.has(block.piece) && self.priority[block.piece as usize] > 0);
            assert!(!self.here.contains(&at) && !self.have.contains(&block.piece));
            let askers: Vec<usize> = self
                .asked
                .iter()
                .filter(|(_, b)| *b == block)
                .map(|(p, _)| *p)
                .collect();
            assert!(!askers.contains(&peer), "asked of the same peer twice");
            let last = self.open() == 0;
            assert!(
                askers.is_empty() || endgame || last,
                "asked twice before the endgame"
            );
            assert!(askers.len() < ENDGAME_PEERS_MAX);
            self.asked.push((peer, block));
        }
    }

    fn receive(&mut self, nth: usize) {
        let (peer, block) = self.asked.swap_remove(nth);
        let at = (block.piece, block.number());
        let received = self.picker.received(key(peer), &block);
        if !self.here.insert(at) {
            assert_eq!(received, Received::Known);
            return;
        }
        let others: BTreeSet<PeerKey> = self
            .asked
            .iter()
            .filter(|(_, b)| *b == block)
            .map(|(p, _)| key(*p))
            .collect();
        self.asked.retain(|(_, b)| *b != block);
        let blocks = self.picker.layout().blocks(block.piece);
        let whole = (0..blocks).all(|n| self.here.contains(&(block.piece, n)));
        let Received::Fresh { cancel, complete } = received else {
            panic!("{block:?} was missing")
        };
        assert_eq!(cancel.into_iter().collect::<BTreeSet<_>>(), others);
        assert_eq!(complete, whole);
        if whole {
            self.complete.insert(block.piece);
        }
    }

    fn leave(&mut self, peer: usize) {
        let (gone, stay) = self.asked.drain(..).partition(|(p, _)| *p == peer);
        self.asked = stay;
        let gone: Vec<(usize, Block)> = gone;
        for (_, block) in gone {
            self.picker.unasked(key(peer), &block);
        }
        self.picker.forget(key(peer));
        self.picker.peer_left(&self.has[peer]);
        self.has[peer] = Bitfield::new(12);
        self.picker.peer_joined(&self.has[peer]);
    }

    fn check(&self) {
        let missing =
            (0..12u32).filter(|p| self.priority[*p as usize] > 0 && !self.have.contains(p));
        assert_eq!(self.picker.missing() as usize, missing.count());
        assert_eq!(self.picker.open as usize, self.open());
        self.check_order();
    }

    /// The order is sorted by bucket, complete, and knows its places.
    fn check_order(&self) {
        let picker = &self.picker;
        let buckets: Vec<usize> = picker.order.iter().map(|p| picker.bucket(*p)).collect();
        assert!(buckets.is_sorted(), "{buckets:?}");
        let idle = picker
            .pieces
            .iter()
            .filter(|p| p.state == State::Idle && p.priority > 0);
        assert_eq!(picker.order.len(), idle.count());
        for (at, piece) in picker.order.iter().enumerate() {
            assert_eq!(picker.pieces[*piece as usize].at as usize, at);
            let bucket = picker.bucket(*piece);
            assert!((picker.begin_of(bucket)..picker.end(bucket)).contains(&(at as u32)));
        }
        for (piece, p) in picker.pieces.iter().enumerate() {
            let full = self.has.iter().filter(|h| h.is_full()).count();
            let copies = self.has.iter().filter(|h| h.has(piece as u32)).count();
            assert_eq!(
                (p.available + picker.seeds) as usize,
                copies,
                "piece {piece}, {full} seeds"
            );
        }
    }
}

fn peers() -> impl Strategy<Value = Vec<Bitfield>> {
    let one = prop_oneof![
        1 => Just(Bitfield::full(12)),
        3 => prop::collection::vec(0..12u32, 0..12).prop_map(|pieces| {
            let mut has = Bitfield::new(12);
            pieces.into_iter().for_each(|p| {
                has.set(p);
            });
            has
        }),
    ];
    prop::collection::vec(one, 4)
}

proptest! {
    #[test]
    fn it_agrees_with_sets(has in peers(), ops in prop::collection::vec(op(), 0..200)) {
        let mut model = Model::new(has);
        for op in ops {
            model.run(op);
            model.check();
        }
    }

    #[test]
    fn whatever_was_before_it_ends_when_the_peers_have_all(has in peers(), ops in prop::collection::vec(op(), 0..100)) {
        let mut model = Model::new(has);
        ops.into_iter().for_each(|op| model.run(op));
        (0..12).for_each(|piece| model.run(Op::Want { piece, priority: 1 }));
        (0..12).for_each(|piece| model.run(Op::Have { peer: 3, piece }));
        for _ in 0..200 {
            (0..4).for_each(|peer| model.pick(peer, 5));
            while !model.asked.is_empty() {
                model.receive(0);
            }
            while !model.complete.is_empty() {
                model.run(Op::Verify);
            }
        }
        prop_assert_eq!(model.picker.missing(), 0);
    }

    #[test]
    fn the_rarest_piece_is_begun_first(has in peers(), seed: u64) {
        let mut picker = Picker::new(layout(12, 1), seed);
        has.iter().for_each(|has| picker.peer_joined(has));
        let copies = |piece: u32| has.iter().filter(|h| h.has(piece)).count();
        let mut left: BTreeSet<u32> = has[0].iter().collect();
        while !left.is_empty() {
            let mut out = Vec::new();
            picker.pick(key(0), &has[0], 1, &mut out);
            let rarest = left.iter().map(|p| copies(*p)).min().unwrap();
            prop_assert_eq!(copies(out[0].piece), rarest);
            left.remove(&out[0].piece);
        }
    }
}

#[test]
fn equals_are_begun_in_random_order() {
    let mut first = BTreeMap::<u32, u32>::new();
    for seed in 0..600 {
        let mut picker = Picker::new(layout(6, 1), seed * 2654435761 + 99);
        picker.peer_joined(&Bitfield::full(6));
        let mut out = Vec::new();
        picker.pick(key(0), &Bitfield::full(6), 1, &mut out);
        *first.entry(out[0].piece).or_default() += 1;
    }
    assert!(
        first.len() == 6 && first.values().all(|n| *n > 50),
        "{first:?}"
    );
}

#[test]
fn a_piece_stays_with_who_began_it_until_nothing_else_is_left() {
    let mut picker = Picker::new(layout(2, 4), 1);
    let all = Bitfield::full(2);
    picker.peer_joined(&all);
    picker.peer_joined(&all);
    let mut pick = |peer, count| {
        let mut out = Vec::new();
        picker.pick(key(peer), &all, count, &mut out);
        out
    };
    let first = pick(0, 2)[0].piece;
    assert!(pick(1, 2).iter().all(|b| b.piece != first));
    assert!(pick(0, 2).iter().all(|b| b.piece == first));
    let rest = pick(0, 9);
    assert_eq!(
        rest.len(),
        4,
        "two open ones of the other's, then its two asked ones again"
    );
}

#[test]
fn deadlines_come_first_and_in_their_order() {
    let mut picker = Picker::new(layout(9, 1), 3);
    let all = Bitfield::full(9);
    picker.peer_joined(&all);
    picker.set_deadline(7, Some(Duration::from_secs(9)));
    picker.set_deadline(2, Some(Duration::from_secs(10)));
    picker.set_deadline(2, Some(Duration::from_secs(5)));
    picker.set_deadline(4, Some(Duration::from_secs(1)));
    picker.set_deadline(4, None);
    let mut out = Vec::new();
    picker.pick(key(0), &all, 2, &mut out);
    assert_eq!(out.iter().map(|b| b.piece).collect::<Vec<_>>(), [2, 7]);
}

#[test]
fn a_failed_piece_is_fetched_from_one_peer_alone() {
    let mut picker = Picker::new(layout(1, 4), 3);
    let all = Bitfield::full(1);
    picker.peer_joined(&all);
    picker.peer_joined(&all);
    let mut out = Vec::new();
    picker.pick(key(0), &all, 2, &mut out);
    picker.pick(key(1), &all, 2, &mut out);
    for (n, block) in out.iter().enumerate() {
        picker.received(key(n / 2), block);
    }
    assert_eq!(picker.senders(0), [key(0), key(0), key(1), key(1)]);
    picker.failed(0, true);
    let mut out = Vec::new();
    picker.pick(key(1), &all, 1, &mut out);
    picker.pick(key(0), &all, 9, &mut out);
    assert_eq!(out.len(), 1, "only peer 1 may fetch it");
    picker.unasked(key(1), &out[0]);
    picker.forget(key(1));
    picker.pick(key(0), &all, 9, &mut out);
    assert_eq!(out.len(), 5, "peer 1 is gone");
}

#[test]
fn in_order_means_lowest_first_whoever_began_it() {
    let mut picker = Picker::new(layout(4, 2), 3);
    picker.set_order(Order::Sequential);
    let all = Bitfield::full(4);
    picker.peer_joined(&all);
    picker.verified(0);
    let mut out = Vec::new();
    picker.pick(key(0), &all, 1, &mut out);
    picker.pick(key(1), &all, 3, &mut out);
    let order: Vec<(u32, u32)> = out.iter().map(|b| (b.piece, b.number())).collect();
    assert_eq!(order, [(1, 0), (1, 1), (2, 0), (2, 1)]);
}

#[test]
fn round_robin_goes_on_where_it_was_and_around() {
    let mut picker = Picker::new(layout(5, 1), 3);
    picker.set_order(Order::RoundRobin);
    let mut has = Bitfield::full(5);
    has.clear(1);
    let next = |picker: &mut Picker, n: usize| {
        let mut out = Vec::new();
        picker.pick(key(n), &has, 1, &mut out);
        out.first().map(|block| block.piece)
    };
    assert_eq!([0, 1].map(|n| next(&mut picker, n)), [Some(0), Some(2)]);
    picker.unasked(key(0), &picker.layout().block(0, 0));
    // What was begun is gone on with first.
    assert_eq!(next(&mut picker, 0), Some(0));
    assert_eq!([2, 3].map(|n| next(&mut picker, n)), [Some(3), Some(4)]);
    picker.verified(4);
    picker.lost(4);
    assert_eq!(next(&mut picker, 4), Some(4));
}
