//! What time brings: rounds of the choker, peers that let us wait, signs of life; and how it all stands.

use std::time::Duration;

use super::layers::HashFetch;
use super::peer::Peer;
use super::superseed::SuperSeed;
use super::{Action, Fault, Now, PeerSummary, Summary, Torrent};
use crate::proto::blocks::Block;
use crate::proto::choker::{Candidate, ROUND};
use crate::proto::scheduler::PeerKey;
use crate::proto::wire::Message;

/// How often peers are looked at.
const TICK: Duration = Duration::from_millis(500);
/// A peer that was asked and has sent nothing for this long lets us wait (BEP 3 says a minute; others are faster now).
const SNUB_TIME: Duration = Duration::from_secs(20);
/// A sign of life is sent after this long.
const KEEP_ALIVE_TIME: Duration = Duration::from_secs(100);
/// A peer that said nothing for this long is gone.
const SILENCE_MAX: Duration = Duration::from_secs(180);

impl Torrent {
    /// When [`Torrent::handle_timeout`] wants to be called; `None` while nothing can become due by itself.
    pub fn poll_timeout(&self) -> Option<Now> {
        if self.peers.is_empty() {
            return None;
        }
        if self.is_busy() {
            return Some(self.next_tick.min(self.next_round));
        }
        let wanted = |peer: &Peer| peer.interested_in_us || peer.unchoked_since.is_some();
        let shows = self.super_seed.as_ref().is_some_and(SuperSeed::is_waiting);
        let round = (shows || self.peers.values().any(wanted)).then_some(self.next_round);
        let life = |peer: &Peer| (peer.heard + SILENCE_MAX).min(peer.spoken + KEEP_ALIVE_TIME);
        let life = self.peers.values().filter(|peer| !peer.web).map(life).min();
        let fetch = self.hash_fetch.as_ref().and_then(HashFetch::poll_timeout);
        let tick = life.into_iter().chain(fetch).min();
        // What a tick does is not done before the next one.
        let tick = tick.map(|at| at.max(self.next_tick));
        [round, tick, self.next_pex].into_iter().flatten().min()
    }

    /// Something is under way that has to be looked at often.
    fn is_busy(&self) -> bool {
        let finished = self.is_finished();
        let content = self.content.as_ref();
        let missing = content.is_some_and(|content| content.picker.missing() > 0) && !self.held;
        let busy = |peer: &Peer| {
            let could_ask = missing && peer.unchoked && peer.we_are_interested;
            !peer.asked.is_empty() || could_ask || (finished && peer.only_uploads())
        };
        self.peers.values().any(busy) || (self.metadata.is_none() && self.fetch.sources() > 0)
    }

    /// Does what is due.
    pub fn handle_timeout(&mut self, now: Now) {
        if now >= self.next_round {
            self.next_round = now + ROUND;
            self.choke_round(now);
        }
        if now >= self.next_tick {
            self.next_tick = now + TICK;
            self.tick(now);
        }
        if self.next_pex.is_some_and(|at| at <= now) {
            self.exchange(now);
        }
    }

    fn tick(&mut self, now: Now) {
        let keys: Vec<PeerKey> = self.peers.keys().copied().collect();
        let finished = self.is_finished();
        for key in keys {
            let Some(peer) = self.peers.get_mut(&key) else {
                continue;
            };
            peer.best = peer.best.max(peer.window.rate(now));
            let (silent, quiet) = (
                now.saturating_sub(peer.heard),
                now.saturating_sub(peer.spoken),
            );
            if finished && peer.only_uploads() {
                self.drop_peer(key, Fault::Redundant);
            } else if peer.web {
                // It says nothing unasked.
            } else if silent >= SILENCE_MAX {
                self.drop_peer(key, Fault::Silent);
            } else if quiet >= KEEP_ALIVE_TIME {
                self.send(now, key, Message::KeepAlive);
            }
            self.check_snub(now, key);
            self.refill(now, key);
        }
        self.ask_for_metadata(now);
        self.ask_for_hashes(now);
    }

    /// A peer that lets us wait keeps nobody else from being asked.
    fn check_snub(&mut self, now: Now, key: PeerKey) {
        let (Some(peer), Some(content)) = (self.peers.get_mut(&key), &mut self.content) else {
            return;
        };
        let waiting = now.saturating_sub(peer.heard_block);
        if peer.snubs || peer.asked.is_empty() || waiting < SNUB_TIME {
            return;
        }
        peer.snubs = true;
        peer.snubbed += 1;
        peer.window.snubbed();
        // They stay in `asked`: what comes late after all is taken.
        let asked: Vec<Block> = peer.asked.keys().copied().collect();
        asked
            .iter()
            .for_each(|block| content.picker.unasked(key, block));
        content.picker.forget(key);
        self.consider_all(now);
    }

    /// Gives free places at once to those who wait.
    pub(super) fn unchoke_waiting(&mut self, now: Now) {
        let served = |peer: &&Peer| peer.unchoked_since.is_some() && peer.interested_in_us;
        let mut free = self
            .choker
            .places()
            .saturating_sub(self.peers.values().filter(served).count());
        let mut waiting: Vec<(Now, PeerKey)> = self
            .peers
            .iter()
            .filter(|(_, peer)| peer.interested_in_us && peer.unchoked_since.is_none())
            .map(|(key, peer)| (peer.choked_since, *key))
            .collect();
        waiting.sort_unstable();
        for (_, key) in waiting {
            if free == 0 {
                return;
            }
            free -= 1;
            self.set_choked(now, key, false);
        }
    }

    fn choke_round(&mut self, now: Now) {
        let seeding = self.is_finished();
        let wanting = self
            .peers
            .iter_mut()
            .filter(|(_, peer)| peer.interested_in_us);
        let candidates: Vec<Candidate> = wanting
            .map(|(key, peer)| Candidate {
                peer: *key,
                gives: peer.window.rate(now),
                takes: peer.sent.rate(now),
                unchoked_since: peer.unchoked_since,
                choked_since: peer.choked_since,
                snubs: peer.snubs,
                score: peer.shown().value(),
            })
            .collect();
        let random = self.next_random();
        let chosen = self.choker.round(now, &candidates, seeding, random);
        let keys: Vec<PeerKey> = self.peers.keys().copied().collect();
        for key in keys {
            self.set_choked(now, key, !chosen.contains(&key));
        }
        self.super_seed_round(now);
    }

    fn set_choked(&mut self, now: Now, key: PeerKey, choked: bool) {
        let Some(peer) = self.peers.get_mut(&key) else {
            return;
        };
        match (choked, peer.unchoked_since.is_some()) {
            (true, true) => {
                peer.unchoked_since = None;
                peer.choked_since = now;
                self.send(now, key, Message::Choke);
                self.actions.push_back(Action::UnserveAll(key));
            }
            (false, false) => {
                peer.unchoked_since = Some(now);
                self.send(now, key, Message::Unchoke);
            }
            _ => {}
        }
    }

    /// How it stands.
    pub fn summary(&mut self, now: Now) -> Summary {
        let mut summary = Summary {
            bytes_down: self.gone_down,
            bytes_up: self.gone_up,
            bytes_wasted: self.wasted,
            metadata_sources: self.fetch.sources(),
            hash_sources: self.hash_fetch.as_ref().map(HashFetch::sources),
            ..Summary::default()
        };
        for peer in self.peers.values_mut() {
            summary.peers += usize::from(!peer.web);
            summary.seeds += usize::from(!peer.web && peer.is_seed());
            summary.unchoked += usize::from(!peer.web && peer.unchoked);
            summary.leechers += usize::from(peer.interested_in_us);
            summary.rate_down += peer.window.rate(now);
            summary.rate_up += peer.sent.rate(now);
            summary.bytes_down += peer.window.total();
            summary.bytes_up += peer.sent.total();
        }
        if let Some(content) = &self.content {
            summary.missing = content.picker.missing();
            summary.copies_min = content.picker.copies_min();
        }
        summary
    }

    /// How each peer stands.
    pub fn peer_summaries(&mut self, now: Now) -> Vec<PeerSummary> {
        let summary = |(key, peer): (&PeerKey, &mut Peer)| PeerSummary {
            key: *key,
            client: peer.hello.as_ref().and_then(|hello| hello.client.clone()),
            pieces: peer.has().map_or(0, |has| has.ones()),
            rate_down: peer.window.rate(now),
            rate_up: peer.sent.rate(now),
            bytes_down: peer.window.total(),
            bytes_up: peer.sent.total(),
            asked: peer.asked.len(),
            unchoked: peer.unchoked,
            served: peer.unchoked_since.is_some(),
            snubs: peer.snubs,
        };
        self.peers.iter_mut().map(summary).collect()
    }
}
