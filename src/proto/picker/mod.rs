//! Which block is asked of whom.
//!
//! Rarest first, by buckets: pieces nobody has begun lie in one vector, sorted by priority and then by how many peers have
//! them; a piece moves between neighbouring buckets by one swap, and lies at a random place inside its bucket. Peers that have
//! everything are counted once instead of per piece.
//!
//! A piece that was begun belongs to who began it, so that its blocks come in order and its hash needs no reading back; others
//! help once nothing else is left. Pieces with a deadline go before everything. When every block has been asked for, those
//! still on their way are asked of others too (endgame).

mod endgame;
mod order;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use self::order::{BUCKETS, COPIES_MAX};
use super::bitfield::Bitfield;
use super::blocks::{Block, Layout};
use super::scheduler::PeerKey;

/// Time since the owner's start.
type Now = Duration;

/// Highest priority a piece can have; 0 means unwanted.
pub const PRIORITY_MAX: u8 = 7;
/// What pieces have unless somebody says otherwise.
pub const PRIORITY_NORMAL: u8 = 4;

/// In which order pieces are begun.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    RarestFirst,
    Sequential,
    /// One after the other, going on where the last one was begun, and from the beginning again at the end.
    RoundRobin,
}

/// What became of a block that arrived.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Received {
    /// It was missing.
    Fresh {
        /// Others that were asked for it too.
        cancel: Vec<PeerKey>,
        /// All blocks of the piece are here now.
        complete: bool,
    },
    /// It was here, or its piece is not wanted.
    Known,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Idle,
    Partial,
    Have,
}

#[derive(Debug, Clone)]
struct Piece {
    /// Peers that have it, those with everything left out.
    available: u32,
    priority: u8,
    state: State,
    /// Place in `order`, while idle and wanted.
    at: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum BlockState {
    Open,
    Asked(PeerKey),
    Here(PeerKey),
}

/// A piece that failed its hash is fetched from one peer alone, so that a second failure has one culprit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Parole {
    No,
    Due,
    Of(PeerKey),
}

#[derive(Debug)]
struct Partial {
    blocks: Vec<BlockState>,
    open: u32,
    here: u32,
    /// No block before this one is open.
    first_open: u32,
    owner: Option<PeerKey>,
    parole: Parole,
    /// Second and third askers of a block, in the endgame.
    also: Vec<(u32, PeerKey)>,
}

/// See the module documentation.
#[derive(Debug)]
pub struct Picker {
    layout: Layout,
    pieces: Vec<Piece>,
    /// Idle wanted pieces, bucket by bucket.
    order: Vec<u32>,
    /// Where each bucket ends in `order`.
    ends: Vec<u32>,
    partial: BTreeMap<u32, Partial>,
    /// The partial pieces that are wanted and have open blocks.
    open_partials: BTreeSet<u32>,
    deadlines: BTreeSet<(Now, u32)>,
    deadline_of: BTreeMap<u32, Now>,
    mode: Order,
    /// Peers with everything.
    seeds: u32,
    /// Blocks of wanted pieces that are neither here nor asked for.
    open: u64,
    /// Wanted pieces that are not had.
    missing: u32,
    /// No wanted piece before this one is missing.
    first_missing: u32,
    /// Behind the piece that was begun last, in round robin.
    next_around: u32,
    random: u64,
}

impl Picker {
    /// Everything is wanted and nothing here. `seed` decides the order among equals.
    pub fn new(layout: Layout, seed: u64) -> Self {
        let pieces = layout.pieces();
        let blocks = (0..pieces).map(|piece| u64::from(layout.blocks(piece)));
        let mut picker = Self {
            open: blocks.sum(),
            pieces: vec![
                Piece {
                    available: 0,
                    priority: PRIORITY_NORMAL,
                    state: State::Idle,
                    at: 0,
                };
                pieces as usize
            ],
            layout,
            order: Vec::new(),
            ends: vec![0; BUCKETS],
            partial: BTreeMap::new(),
            open_partials: BTreeSet::new(),
            deadlines: BTreeSet::new(),
            deadline_of: BTreeMap::new(),
            mode: Order::RarestFirst,
            seeds: 0,
            missing: pieces,
            first_missing: 0,
            next_around: 0,
            random: seed | 1,
        };
        picker.rebuild();
        picker
    }

    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Wanted pieces that are not had.
    pub fn missing(&self) -> u32 {
        self.missing
    }

    /// Whether the piece is had.
    pub fn has(&self, piece: u32) -> bool {
        self.pieces
            .get(piece as usize)
            .is_some_and(|p| p.state == State::Have)
    }

    /// Whether the piece is wanted and not had.
    pub fn needs(&self, piece: u32) -> bool {
        self.pieces
            .get(piece as usize)
            .is_some_and(|p| p.state != State::Have && p.priority > 0)
    }

    /// Every block that is wanted has been asked for or is here.
    pub fn is_endgame(&self) -> bool {
        self.open == 0 && self.missing > 0
    }

    /// Copies of the rarest wanted piece among peers; `None` when nothing is missing.
    pub fn copies_min(&self) -> Option<u32> {
        let wanted = |p: &&Piece| p.state != State::Have && p.priority > 0;
        let rarest = self.pieces.iter().filter(wanted).map(|p| p.available).min();
        rarest.map(|copies| copies + self.seeds)
    }

    /// Copies of the piece among peers.
    pub fn copies(&self, piece: u32) -> u32 {
        let copies = self.pieces.get(piece as usize).map_or(0, |p| p.available);
        copies + self.seeds
    }

    pub fn set_order(&mut self, order: Order) {
        self.mode = order;
    }

    /// How much a piece is wanted; 0 for not at all.
    pub fn want(&mut self, piece: u32, priority: u8) {
        let Some(p) = self.pieces.get(piece as usize) else {
            return;
        };
        let (state, before, after) = (p.state, p.priority, priority.min(PRIORITY_MAX));
        if before == after {
            return;
        }
        if state == State::Idle && before > 0 {
            self.take_out(piece);
        }
        if after == 0 {
            self.set_deadline(piece, None);
        }
        if let Some(p) = self.pieces.get_mut(piece as usize) {
            p.priority = after;
        }
        if state == State::Idle && after > 0 {
            self.put_in(piece);
        }
        if state != State::Have && (before == 0) != (after == 0) {
            let open = self.open_blocks(piece);
            if after > 0 {
                self.open += open;
                self.missing += 1;
                self.first_missing = self.first_missing.min(piece);
            } else {
                self.open -= open;
                self.missing -= 1;
            }
        }
        self.note_open(piece);
    }

    /// The piece is needed by `at`; `None` takes that back.
    pub fn set_deadline(&mut self, piece: u32, at: Option<Now>) {
        if let Some(old) = self.deadline_of.remove(&piece) {
            self.deadlines.remove(&(old, piece));
        }
        if let Some(at) = at.filter(|_| self.needs(piece)) {
            self.deadline_of.insert(piece, at);
            self.deadlines.insert((at, piece));
        }
    }

    pub fn has_deadline(&self, piece: u32) -> bool {
        self.deadline_of.contains_key(&piece)
    }

    /// Whether somebody waits for any piece.
    pub fn has_deadlines(&self) -> bool {
        !self.deadlines.is_empty()
    }

    /// How much the piece is wanted.
    pub fn priority(&self, piece: u32) -> u8 {
        self.pieces.get(piece as usize).map_or(0, |p| p.priority)
    }

    /// Whether blocks of the piece are neither here nor asked for.
    pub fn has_open(&self, piece: u32) -> bool {
        self.needs(piece) && self.open_blocks(piece) > 0
    }

    /// A peer with these pieces has come.
    pub fn peer_joined(&mut self, has: &Bitfield) {
        if has.is_full() {
            self.seeds += 1;
            return;
        }
        for piece in has.iter() {
            if let Some(p) = self.pieces.get_mut(piece as usize) {
                p.available += 1;
            }
        }
        self.rebuild();
    }

    /// A peer with these pieces has gone.
    pub fn peer_left(&mut self, has: &Bitfield) {
        if has.is_full() {
            self.seeds = self.seeds.saturating_sub(1);
            return;
        }
        for piece in has.iter() {
            if let Some(p) = self.pieces.get_mut(piece as usize) {
                p.available = p.available.saturating_sub(1);
            }
        }
        self.rebuild();
    }

    /// A peer got a piece. `has` already contains it; a peer that now has everything is counted as such.
    pub fn peer_got(&mut self, piece: u32, has: &Bitfield) {
        if has.is_full() {
            let mut before = has.clone();
            before.clear(piece);
            self.peer_left(&before);
            self.seeds += 1;
            return;
        }
        let Some(p) = self.pieces.get_mut(piece as usize) else {
            return;
        };
        let (copies, listed) = (p.available, p.state == State::Idle && p.priority > 0);
        p.available += 1;
        if listed && copies < COPIES_MAX {
            self.step_up(piece);
        }
    }

    /// Nothing is asked of `peer` any more; [`Self::unasked`] has been told for each of its blocks.
    pub fn forget(&mut self, peer: PeerKey) {
        for partial in self.partial.values_mut() {
            if partial.owner == Some(peer) {
                partial.owner = None;
            }
            if partial.parole == Parole::Of(peer) {
                partial.parole = Parole::No;
            }
        }
    }

    /// Chooses up to `count` blocks to ask of a peer that has `has`, and appends them to `out`.
    pub fn pick(&mut self, peer: PeerKey, has: &Bitfield, count: usize, out: &mut Vec<Block>) {
        let until = out.len() + count;
        if self.missing == 0 || has.ones() == 0 {
            return;
        }
        if self.open > 0 {
            self.pick_due(peer, has, until, out);
            match self.mode {
                Order::Sequential => self.pick_in_order(peer, has, until, out),
                order => {
                    self.pick_partial(peer, has, until, out, |owner| owner == Some(peer));
                    self.pick_partial(peer, has, until, out, |owner| owner.is_none());
                    match order {
                        Order::RoundRobin => self.pick_around(peer, has, until, out),
                        _ => self.pick_new(peer, has, until, out),
                    }
                    self.pick_partial(peer, has, until, out, |_| true);
                }
            }
        }
        if self.is_endgame() && out.len() < until {
            self.pick_again(peer, has, until, out);
        }
    }

    /// The block is no longer asked of the peer: choked, rejected, too late, gone.
    pub fn unasked(&mut self, peer: PeerKey, block: &Block) {
        let (piece, number) = (block.piece, block.number());
        let wanted = self.needs(piece);
        let Some(partial) = self.partial.get_mut(&piece) else {
            return;
        };
        if let Some(n) = partial.also.iter().position(|a| *a == (number, peer)) {
            partial.also.swap_remove(n);
            return;
        }
        let Some(state) = partial.blocks.get_mut(number as usize) else {
            return;
        };
        if *state != BlockState::Asked(peer) {
            return;
        }
        if let Some(n) = partial.also.iter().position(|a| a.0 == number) {
            *state = BlockState::Asked(partial.also.swap_remove(n).1);
            return;
        }
        *state = BlockState::Open;
        partial.open += 1;
        partial.first_open = partial.first_open.min(number);
        if wanted {
            self.open += 1;
        }
        self.note_open(piece);
    }

    /// A block is here that nobody was asked for: it was elsewhere on this machine.
    pub fn held(&mut self, as_from: PeerKey, block: &Block) -> Received {
        let idle = self
            .pieces
            .get(block.piece as usize)
            .is_some_and(|p| p.state == State::Idle);
        if idle && self.needs(block.piece) && self.layout.is_block(block) {
            self.begin(as_from, block.piece);
            if let Some(partial) = self.partial.get_mut(&block.piece) {
                partial.owner = None;
            }
            self.note_open(block.piece);
        }
        self.received(as_from, block)
    }

    /// A block has arrived from a peer that had been asked for it.
    pub fn received(&mut self, peer: PeerKey, block: &Block) -> Received {
        let number = block.number();
        let wanted = self.needs(block.piece);
        let Some(partial) = self.partial.get_mut(&block.piece) else {
            return Received::Known;
        };
        let Some(state) = partial.blocks.get_mut(number as usize) else {
            return Received::Known;
        };
        let mut cancel = Vec::new();
        match *state {
            BlockState::Here(_) => return Received::Known,
            BlockState::Asked(other) => cancel.push(other),
            BlockState::Open => {
                partial.open -= 1;
                if wanted {
                    self.open -= 1;
                }
            }
        }
        *state = BlockState::Here(peer);
        partial.here += 1;
        partial.also.retain(|(n, other)| {
            if *n == number {
                cancel.push(*other);
            }
            *n != number
        });
        cancel.retain(|other| *other != peer);
        let complete = partial.here as usize == partial.blocks.len();
        self.note_open(block.piece);
        Received::Fresh { cancel, complete }
    }

    /// Who sent the blocks of a piece, in order.
    pub fn senders(&self, piece: u32) -> Vec<PeerKey> {
        let blocks = self.partial.get(&piece).map(|p| p.blocks.iter());
        let sender = |state: &BlockState| match state {
            BlockState::Here(peer) => Some(*peer),
            _ => None,
        };
        blocks.into_iter().flatten().filter_map(sender).collect()
    }

    /// The piece is on disk and its hash is right.
    pub fn verified(&mut self, piece: u32) {
        let Some(p) = self.pieces.get(piece as usize) else {
            return;
        };
        let (state, wanted) = (p.state, p.priority > 0);
        if state == State::Have {
            return;
        }
        if wanted {
            self.open -= self.open_blocks(piece);
            self.missing -= 1;
        }
        if state == State::Idle && wanted {
            self.take_out(piece);
        }
        if let Some(p) = self.pieces.get_mut(piece as usize) {
            p.state = State::Have;
        }
        self.partial.remove(&piece);
        self.open_partials.remove(&piece);
        self.set_deadline(piece, None);
    }

    /// What arrived of the piece is wrong: all of it is open again. With `alone` only one peer is asked for it.
    pub fn failed(&mut self, piece: u32, alone: bool) {
        let wanted = self.needs(piece);
        let Some(partial) = self.partial.get_mut(&piece) else {
            return;
        };
        let before = partial.open;
        partial
            .blocks
            .iter_mut()
            .for_each(|state| *state = BlockState::Open);
        partial.open = partial.blocks.len() as u32;
        partial.here = 0;
        partial.first_open = 0;
        partial.owner = None;
        partial.also.clear();
        partial.parole = if alone { Parole::Due } else { Parole::No };
        if wanted {
            self.open += u64::from(partial.open - before);
        }
        self.note_open(piece);
    }

    /// A piece that was had is damaged or gone.
    pub fn lost(&mut self, piece: u32) {
        if !self.has(piece) {
            return;
        }
        if let Some(p) = self.pieces.get_mut(piece as usize) {
            p.state = State::Idle;
            if p.priority > 0 {
                self.missing += 1;
                self.open += u64::from(self.layout.blocks(piece));
                self.first_missing = self.first_missing.min(piece);
                self.put_in(piece);
            }
        }
    }

    fn open_blocks(&self, piece: u32) -> u64 {
        let state = self.pieces.get(piece as usize).map(|p| p.state);
        match (state, self.partial.get(&piece)) {
            (_, Some(partial)) => partial.open.into(),
            (Some(State::Idle), None) => self.layout.blocks(piece).into(),
            _ => 0,
        }
    }

    fn note_open(&mut self, piece: u32) {
        let open = self.partial.get(&piece).is_some_and(|p| p.open > 0);
        if open && self.needs(piece) {
            self.open_partials.insert(piece);
        } else {
            self.open_partials.remove(&piece);
        }
    }

    fn pick_due(&mut self, peer: PeerKey, has: &Bitfield, until: usize, out: &mut Vec<Block>) {
        if self.deadlines.is_empty() {
            return;
        }
        let due: Vec<u32> = self
            .deadlines
            .iter()
            .map(|(_, piece)| *piece)
            .filter(|piece| has.has(*piece))
            .collect();
        for piece in due {
            if out.len() >= until {
                return;
            }
            self.take(peer, piece, until, out);
        }
    }

    fn pick_in_order(&mut self, peer: PeerKey, has: &Bitfield, until: usize, out: &mut Vec<Block>) {
        while self.first_missing < self.layout.pieces() && !self.needs(self.first_missing) {
            self.first_missing += 1;
        }
        for piece in self.first_missing..self.layout.pieces() {
            if out.len() >= until {
                return;
            }
            if has.has(piece) && self.needs(piece) {
                self.take(peer, piece, until, out);
            }
        }
    }

    fn pick_partial(
        &mut self,
        peer: PeerKey,
        has: &Bitfield,
        until: usize,
        out: &mut Vec<Block>,
        of: impl Fn(Option<PeerKey>) -> bool,
    ) {
        if out.len() >= until || self.open_partials.is_empty() {
            return;
        }
        let owner = |piece: &u32| self.partial.get(piece).and_then(|p| p.owner);
        let fitting: Vec<u32> = self
            .open_partials
            .iter()
            .filter(|piece| has.has(**piece) && of(owner(piece)))
            .copied()
            .collect();
        for piece in fitting {
            if out.len() >= until {
                return;
            }
            self.take(peer, piece, until, out);
        }
    }

    fn pick_around(&mut self, peer: PeerKey, has: &Bitfield, until: usize, out: &mut Vec<Block>) {
        let (begin, end) = (self.next_around, self.layout.pieces());
        for piece in (begin..end).chain(0..begin) {
            if out.len() >= until {
                return;
            }
            let idle = self
                .pieces
                .get(piece as usize)
                .is_some_and(|p| p.state == State::Idle);
            if idle && has.has(piece) && self.needs(piece) {
                self.take(peer, piece, until, out);
                self.next_around = piece + 1;
            }
        }
    }

    fn pick_new(&mut self, peer: PeerKey, has: &Bitfield, until: usize, out: &mut Vec<Block>) {
        while out.len() < until {
            let found = self.order.iter().find(|piece| has.has(**piece)).copied();
            let Some(piece) = found else { return };
            self.take(peer, piece, until, out);
        }
    }

    /// Asks `peer` for open blocks of `piece`, in order.
    fn take(&mut self, peer: PeerKey, piece: u32, until: usize, out: &mut Vec<Block>) {
        if !self.partial.contains_key(&piece) {
            self.begin(peer, piece);
        }
        let Some(partial) = self.partial.get_mut(&piece) else {
            return;
        };
        match partial.parole {
            Parole::Of(other) if other != peer => return,
            Parole::Due if partial.open > 0 => partial.parole = Parole::Of(peer),
            _ => {}
        }
        if partial.owner.is_none() {
            partial.owner = Some(peer);
        }
        let mut number = partial.first_open;
        while out.len() < until && partial.open > 0 {
            let Some(state) = partial.blocks.get_mut(number as usize) else {
                break;
            };
            if *state == BlockState::Open {
                *state = BlockState::Asked(peer);
                partial.open -= 1;
                self.open -= 1;
                out.push(self.layout.block(piece, number));
            }
            number += 1;
        }
        partial.first_open = number;
        self.note_open(piece);
    }

    fn begin(&mut self, peer: PeerKey, piece: u32) {
        self.take_out(piece);
        if let Some(p) = self.pieces.get_mut(piece as usize) {
            p.state = State::Partial;
        }
        let blocks = self.layout.blocks(piece);
        self.partial.insert(
            piece,
            Partial {
                blocks: vec![BlockState::Open; blocks as usize],
                open: blocks,
                here: 0,
                first_open: 0,
                owner: Some(peer),
                parole: Parole::No,
                also: Vec::new(),
            },
        );
    }

    /// Xorshift: good enough to spread equals.
    fn next_random(&mut self) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random
    }
}

#[cfg(test)]
mod tests;
