//! Super-seeding (BEP 16): the only one who has everything shows each peer a few pieces at a time, and more only when those turn
//! up elsewhere. So every byte leaves it about once, whoever takes it, and the rest is the swarm's to spread.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::{Now, Torrent};
use crate::proto::scheduler::PeerKey;
use crate::proto::wire::Message;

/// Pieces shown to a peer that nobody else has got from it: one on its way while the other is passed on.
const SHOWN_MAX: usize = 2;
/// A piece that has not turned up elsewhere after this time is shown to another peer.
const PASSING_TIME: Duration = Duration::from_secs(120);

/// What was shown to whom.
#[derive(Debug, Default)]
pub(super) struct SuperSeed {
    shown: BTreeMap<PeerKey, Shown>,
    /// How many peers each piece was shown to from whom nobody else has got it yet.
    times: Vec<u32>,
}

#[derive(Debug, Default)]
struct Shown {
    all: BTreeSet<u32>,
    /// Those that have not turned up elsewhere, and since when they are shown.
    waiting: BTreeMap<u32, Now>,
}

impl SuperSeed {
    pub(super) fn new(pieces: u32) -> Self {
        Self {
            shown: BTreeMap::new(),
            times: vec![0; pieces as usize],
        }
    }

    /// Whether the peer may ask for the piece. One that came before pieces were hidden has been told of all.
    pub(super) fn has_shown(&self, key: PeerKey, piece: u32) -> bool {
        let shown = self.shown.get(&key);
        shown.is_none_or(|shown| shown.all.contains(&piece))
    }

    /// Some piece may have to be shown anew.
    pub(super) fn is_waiting(&self) -> bool {
        self.shown.values().any(|shown| !shown.waiting.is_empty())
    }

    pub(super) fn forget(&mut self, key: PeerKey) {
        // What it was shown and nobody has is shown to others again.
        let waiting = self.shown.remove(&key).map(|shown| shown.waiting);
        for piece in waiting.into_iter().flat_map(BTreeMap::into_keys) {
            self.waited(piece);
        }
    }

    /// One peer less that a piece is waited for from.
    fn waited(&mut self, piece: u32) {
        if let Some(times) = self.times.get_mut(piece as usize) {
            *times = times.saturating_sub(1);
        }
    }
}

impl Torrent {
    /// Shows pieces one by one from now on, or everything. Takes effect while everything is here, for peers that come.
    pub fn set_super_seed(&mut self, now: Now, on: bool) {
        self.settings.super_seed = on;
        let Some(state) = self.super_seed.take_if(|_| !on) else {
            return;
        };
        for (key, shown) in state.shown {
            let has = self.peers.get(&key).and_then(|peer| peer.has().cloned());
            let had = |piece: &u32| has.as_ref().is_some_and(|has| has.has(*piece));
            let pieces = 0..self.pieces().unwrap_or(0);
            for piece in pieces.filter(|piece| !shown.all.contains(piece) && !had(piece)) {
                self.send(now, key, Message::Have(piece));
            }
            self.say_hello(now, key);
        }
    }

    /// Whether pieces are shown one by one.
    pub(super) fn super_seeds(&mut self) -> bool {
        let full = self
            .content
            .as_ref()
            .filter(|content| content.have.is_full());
        if !self.settings.super_seed || full.is_none() {
            return false;
        }
        let pieces = self.pieces().unwrap_or(0);
        self.super_seed
            .get_or_insert_with(|| SuperSeed::new(pieces));
        true
    }

    /// A peer has got a piece: those it was shown to have passed it on, if it was not they.
    pub(super) fn super_seed_saw(&mut self, now: Now, from: PeerKey, piece: u32) {
        let others = self.peers.values().filter(|peer| !peer.is_seed()).count();
        let Some(state) = &mut self.super_seed else {
            return;
        };
        let mut due = Vec::new();
        for (key, shown) in &mut state.shown {
            // A peer that is alone has nobody to pass anything on to.
            if (*key != from || others < 2) && shown.waiting.remove(&piece).is_some() {
                due.push(*key);
            }
        }
        due.iter().for_each(|_| state.waited(piece));
        due.into_iter().for_each(|key| self.show_more(now, key));
    }

    /// Shows anew what was not passed on, and what has gone with those who had it.
    pub(super) fn super_seed_round(&mut self, now: Now) {
        let Some(state) = &mut self.super_seed else {
            return;
        };
        let mut late = Vec::new();
        for shown in state.shown.values_mut() {
            let passed = |_: &u32, at: &mut Now| now >= *at + PASSING_TIME;
            let passed = shown.waiting.extract_if(.., passed);
            late.extend(passed.map(|(piece, _)| piece));
        }
        late.into_iter().for_each(|piece| state.waited(piece));
        let peers: Vec<PeerKey> = state.shown.keys().copied().collect();
        peers.into_iter().for_each(|key| self.show_more(now, key));
    }

    /// Shows a peer pieces that nobody has and nobody else is shown.
    pub(super) fn show_more(&mut self, now: Now, key: PeerKey) {
        loop {
            let begin = self.next_random();
            let (Some(content), Some(state), Some(peer)) =
                (&self.content, &mut self.super_seed, self.peers.get(&key))
            else {
                return;
            };
            let shown = state.shown.entry(key).or_default();
            if shown.waiting.len() >= SHOWN_MAX {
                return;
            }
            let pieces = content.have.len();
            let mut around =
                (0..pieces).map(|n| (begin.wrapping_add(u64::from(n)) % u64::from(pieces)) as u32);
            let unseen = |piece: &u32| {
                let times = state.times.get(*piece as usize).copied().unwrap_or(0);
                let known = peer.has().is_some_and(|has| has.has(*piece));
                times == 0 && content.picker.copies(*piece) == 0 && !known
            };
            let fresh = |piece: &u32| !shown.all.contains(piece) && unseen(piece);
            let Some(piece) = around.find(fresh) else {
                return;
            };
            shown.all.insert(piece);
            shown.waiting.insert(piece, now);
            if let Some(times) = state.times.get_mut(piece as usize) {
                *times += 1;
            }
            self.send(now, key, Message::Have(piece));
        }
    }
}
