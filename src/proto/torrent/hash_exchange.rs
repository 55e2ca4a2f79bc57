//! Piece hashes of v2 files between peers (BEP 52): asked for while they are missing, and told to who asks.

use super::layers::{HashFetch, HashProgress};
use super::trees::{Answer, HashTrees, Layers, LeavesOf};
use super::{Action, Fault, Now, Torrent};
use crate::proto::metainfo::merkle::TreeHash;
use crate::proto::scheduler::PeerKey;
use crate::proto::wire::{HashRange, Message};

/// Pieces read for the hashes one peer wants, at once; beyond, it is refused.
const JOBS_MAX: u32 = 4;

impl Torrent {
    /// The trees of the torrent's files. What is missing of their piece hashes is fetched, and comes as [`Action::Layers`].
    pub fn set_hashes(&mut self, now: Now, trees: HashTrees) {
        self.hash_fetch = HashFetch::new(&trees);
        self.trees = Some(trees);
        let peers: Vec<PeerKey> = self.peers.keys().copied().collect();
        peers.into_iter().for_each(|key| self.offers_hashes(key));
        self.ask_for_hashes(now);
    }

    /// A peer is there; it may be one to ask.
    pub(super) fn offers_hashes(&mut self, key: PeerKey) {
        let v2 = self.peers.get(&key).is_some_and(|peer| peer.v2);
        if let Some(fetch) = self.hash_fetch.as_mut().filter(|_| v2) {
            fetch.offered(key);
        }
    }

    pub(super) fn ask_for_hashes(&mut self, now: Now) {
        let asked = self.hash_fetch.as_mut().map(|fetch| fetch.requests(now));
        for (key, range) in asked.into_iter().flatten() {
            self.send(now, key, Message::HashRequest(range));
        }
    }

    pub(super) fn hashes_came(&mut self, now: Now, key: PeerKey, range: &HashRange, hashes: &[u8]) {
        let Some(fetch) = &mut self.hash_fetch else {
            return;
        };
        match fetch.received(key, range, hashes) {
            HashProgress::Going => {}
            HashProgress::Wrong => self.drop_peer(key, Fault::Lie),
            HashProgress::Done(layers) => {
                self.hash_fetch = None;
                if let Some(trees) = &mut self.trees {
                    trees.complete(layers);
                    let all: Layers = trees.layers().clone();
                    self.actions.push_back(Action::Layers(all));
                }
            }
        }
        self.ask_for_hashes(now);
    }

    pub(super) fn hashes_refused(&mut self, now: Now, key: PeerKey, range: &HashRange) {
        if let Some(fetch) = &mut self.hash_fetch {
            fetch.rejected(now, key, range);
        }
        self.ask_for_hashes(now);
    }

    pub(super) fn hashes_wanted(&mut self, now: Now, key: PeerKey, range: HashRange) {
        let answer = self.trees.as_mut().map(|trees| trees.answer(&range));
        match answer.unwrap_or(Answer::Refuse) {
            Answer::Hashes(hashes) => self.send_hashes(now, key, range, Some(&hashes)),
            Answer::Leaves(of) if self.takes_job(key, &of) => {
                self.actions.push_back(Action::ServeHashes(key, range, of));
            }
            Answer::Leaves(_) | Answer::Refuse => self.send_hashes(now, key, range, None),
        }
    }

    fn takes_job(&mut self, key: PeerKey, of: &LeavesOf) -> bool {
        let here = self
            .content
            .as_ref()
            .is_some_and(|content| content.have.has(of.piece));
        let Some(peer) = self
            .peers
            .get_mut(&key)
            .filter(|peer| here && peer.hash_jobs < JOBS_MAX)
        else {
            return false;
        };
        peer.hash_jobs += 1;
        true
    }

    /// The answer to [`Action::ServeHashes`]; `None` if the piece cannot be read.
    pub fn leaves_read(
        &mut self,
        now: Now,
        key: PeerKey,
        range: HashRange,
        leaves: Option<Vec<TreeHash>>,
    ) {
        if let Some(peer) = self.peers.get_mut(&key) {
            peer.hash_jobs = peer.hash_jobs.saturating_sub(1);
        }
        let trees = self.trees.as_mut();
        let hashes = leaves.and_then(|leaves| trees?.answer_with(&range, leaves));
        self.send_hashes(now, key, range, hashes.as_deref());
    }

    fn send_hashes(
        &mut self,
        now: Now,
        key: PeerKey,
        range: HashRange,
        hashes: Option<&[TreeHash]>,
    ) {
        let message = match hashes {
            Some(hashes) => Message::Hashes {
                range,
                hashes: hashes.as_flattened().to_vec().into(),
            },
            None => Message::HashReject(range),
        };
        self.send(now, key, message);
    }
}
