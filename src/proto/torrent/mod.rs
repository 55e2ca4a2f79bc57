//! One torrent as a state machine: who is connected, what is asked of whom, who is served, who lied.
//!
//! Sans-IO: connections, the disk and the clock are the owner's. It is told of messages, blocks and hashes as they come, and
//! answers with [`Action`]s. Blocks pass by as numbers; their bytes go from the connection to the disk.
//!
//! - [`mod@hello`]: the extension handshake. `peer`: what is known of a peer. `window`: how much is asked of it at once.
//! - `trees`, `layers`, `hash_exchange`: hash trees of v2 files: what is known, fetching it, and telling it (BEP 52).
//! - `exchange`: what peers are told of us and of each other.
//! - `blame`: who sent a wrong block. `messages`: what a peer says. `upkeep`: what time brings.
//! - `limits`: what the user's limits change. `reading`: pieces that somebody waits for. `fast`: pieces given to the choked.
//!   `superseed`: pieces shown one by one.
//! - `web`: servers that have the content (BEP 19).
//! - `score`, `priority`, `standing`: which peers are worth more than others. `holepunch`: meeting those nobody can call.

mod blame;
mod exchange;
mod fast;
mod hash_exchange;
pub mod hello;
pub mod holepunch;
mod layers;
mod limits;
mod messages;
mod peer;
mod priority;
mod reading;
pub mod score;
mod standing;
mod superseed;
mod trees;
mod upkeep;
mod web;
mod window;

use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use bytes::Bytes;
use thiserror::Error;

use self::blame::Blame;
use self::layers::HashFetch;
pub use self::peer::NewPeer;
use self::peer::{Has, Peer};
use self::score::Scores;
pub use self::standing::Standing;
use self::superseed::SuperSeed;
pub use self::trees::{HashTrees, Layers, LeavesOf};
use super::bitfield::Bitfield;
use super::blocks::{Block, Layout};
use super::choker::Choker;
use super::metainfo::InfoHashes;
use super::picker::{Order, Picker, Received};
use super::scheduler::PeerKey;
use super::ut_metadata::MetadataFetch;
use super::wire::{HashRange, Message};

/// Time since the owner's start.
pub type Now = Duration;

/// Peers served for what they give, besides the optimistic one.
const UPLOAD_SLOTS: usize = 8;
/// Bytes a peer may send unasked (what we cancelled, or a choke has crossed) before it is dropped.
const UNASKED_BYTES_MAX: u64 = 64 << 20;

/// What the owner has to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    Send(PeerKey, Message<Bytes>),
    /// Read the block and send it; then call [`Torrent::served`].
    Serve(PeerKey, Block),
    /// Do not send the block if it has not been sent; refuse it instead. Counts as served.
    Unserve(PeerKey, Block),
    /// The same for all blocks the peer waits for.
    UnserveAll(PeerKey),
    /// Close the connection; the peer is forgotten already.
    Drop(PeerKey, Fault),
    /// A whole piece that had failed before is right now: [`Torrent::examined`] wants digests of its blocks.
    Examine(u32),
    /// The info dictionary has come and has the right hash: [`Torrent::begin`] wants its layout.
    Metadata(Vec<u8>),
    /// The piece hashes of all v2 files are known and right.
    Layers(Layers),
    /// A peer wants hashes that follow from the leaves of this piece: [`Torrent::leaves_read`] wants those.
    ServeHashes(PeerKey, HashRange, LeavesOf),
    /// Peers name these addresses.
    Found(Vec<SocketAddr>),
    /// Connect to this peer, which is told to connect to us at the same time.
    Punch(SocketAddr),
}

/// Why a peer is dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum Fault {
    #[error("it broke the protocol: {0}")]
    Protocol(&'static str),
    #[error("it sent wrong bytes")]
    Lie,
    #[error("it has been silent for too long")]
    Silent,
    #[error("neither side wants anything of the other")]
    Redundant,
    #[error("there are too many peers, and it is the least of them")]
    Crowded,
}

/// What is to be done with a block that arrived.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Write and hash it.
    Write,
    /// It is of no use.
    Waste,
}

/// What the metadata has made known.
#[derive(Debug)]
struct Content {
    picker: Picker,
    have: Bitfield,
}

/// What decides how a torrent behaves.
#[derive(Debug, Clone)]
pub struct Settings {
    pub hashes: InfoHashes,
    /// No addresses are exchanged with peers (BEP 27), or the user does not want it.
    pub private: bool,
    /// Where we take connections; 0 for nowhere.
    pub port: u16,
    /// Only what is read is fetched: peers are kept though nothing is wanted at present.
    pub lazy: bool,
    /// Pieces are shown to peers one by one (BEP 16).
    pub super_seed: bool,
    /// For choices among equals.
    pub seed: u64,
}

/// How a torrent is doing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Summary {
    /// Without web seeds, as all that follows up to the bytes.
    pub peers: usize,
    pub seeds: usize,
    /// Peers that let us ask.
    pub unchoked: usize,
    /// Peers that want something from us.
    pub leechers: usize,
    pub rate_down: u64,
    pub rate_up: u64,
    /// Payload bytes in this run.
    pub bytes_down: u64,
    pub bytes_up: u64,
    /// Payload bytes that came and were of no use.
    pub bytes_wasted: u64,
    /// Peers that say they have the metadata, while it is missing.
    pub metadata_sources: usize,
    /// Peers that may have the piece hashes, while some are missing.
    pub hash_sources: Option<usize>,
    /// Wanted pieces that are not had.
    pub missing: u32,
    /// Copies of the rarest wanted piece.
    pub copies_min: Option<u32>,
}

/// One peer as a user sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerSummary {
    pub key: PeerKey,
    pub client: Option<String>,
    pub pieces: u32,
    pub rate_down: u64,
    pub rate_up: u64,
    pub bytes_down: u64,
    pub bytes_up: u64,
    pub asked: usize,
    pub unchoked: bool,
    pub served: bool,
    pub snubs: bool,
}

/// See the module documentation.
#[derive(Debug)]
pub struct Torrent {
    settings: Settings,
    content: Option<Content>,
    metadata: Option<Bytes>,
    fetch: MetadataFetch,
    /// Once the metadata is known, if the torrent has a v2 half.
    trees: Option<HashTrees>,
    /// While piece hashes are missing.
    hash_fetch: Option<HashFetch>,
    peers: BTreeMap<PeerKey, Peer>,
    choker: Choker,
    next_round: Now,
    next_tick: Now,
    /// When some peer is to be told of others.
    next_pex: Option<Now>,
    /// Peers were told that we want nothing more.
    told_finished: bool,
    blame: Blame,
    /// While pieces are shown one by one.
    super_seed: Option<SuperSeed>,
    scores: Scores,
    /// Our address as peers see it.
    our_ip: Option<IpAddr>,
    /// Nothing is asked for: paused, or the disk is full.
    held: bool,
    /// Bytes of peers that are gone.
    gone_down: u64,
    gone_up: u64,
    wasted: u64,
    random: u64,
    actions: VecDeque<Action>,
}

impl Torrent {
    /// A torrent without metadata.
    pub fn new(now: Now, settings: Settings) -> Self {
        Self {
            content: None,
            metadata: None,
            fetch: MetadataFetch::new(settings.hashes),
            trees: None,
            hash_fetch: None,
            peers: BTreeMap::new(),
            choker: Choker::new(UPLOAD_SLOTS),
            next_round: now,
            next_tick: now,
            next_pex: None,
            told_finished: false,
            blame: Blame::default(),
            super_seed: None,
            scores: Scores::default(),
            our_ip: None,
            held: false,
            gone_down: 0,
            gone_up: 0,
            wasted: 0,
            random: settings.seed | 1,
            settings,
            actions: VecDeque::new(),
        }
    }

    /// The info dictionary is known from elsewhere: peers are not asked for it.
    pub fn set_metadata(&mut self, raw: Bytes) {
        self.metadata = Some(raw);
    }

    /// The metadata is known: `raw` is the info dictionary, `have` what is on disk already.
    pub fn begin(&mut self, now: Now, layout: Layout, raw: Bytes, private: bool, have: Bitfield) {
        let mut picker = Picker::new(layout, self.next_random());
        have.iter().for_each(|piece| picker.verified(piece));
        let pieces = picker.layout().pieces();
        self.settings.private |= private;
        self.metadata = Some(raw);
        let mut misfits = Vec::new();
        for (key, peer) in &mut self.peers {
            match peer.settle(pieces) {
                Some(()) => peer
                    .has()
                    .into_iter()
                    .for_each(|has| picker.peer_joined(has)),
                None => misfits.push(*key),
            }
        }
        self.content = Some(Content { picker, have });
        for key in misfits {
            // What does not fit was never counted.
            if let Some(peer) = self.peers.get_mut(&key) {
                peer.has = Has::Known(Bitfield::new(pieces));
            }
            self.drop_peer(key, Fault::Protocol("its pieces do not fit the torrent"));
        }
        let keys: Vec<PeerKey> = self.peers.keys().copied().collect();
        for key in keys {
            self.say_pieces(now, key);
            self.consider(now, key);
        }
        self.pex_news(now);
    }

    /// The next thing to do.
    pub fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// Number of pieces, once known.
    pub fn pieces(&self) -> Option<u32> {
        Some(self.content.as_ref()?.have.len())
    }

    /// The pieces that are verified, once there are any.
    pub fn have(&self) -> Option<&Bitfield> {
        self.content.as_ref().map(|content| &content.have)
    }

    /// Everything that is wanted is here.
    pub fn is_finished(&self) -> bool {
        let lazy = self.settings.lazy;
        self.content.as_ref().is_some_and(|content| {
            content.picker.missing() == 0 && (!lazy || content.have.is_full())
        })
    }

    pub fn set_order(&mut self, order: Order) {
        if let Some(content) = &mut self.content {
            content.picker.set_order(order);
        }
    }

    /// How much each piece is wanted; 0 for not at all.
    pub fn want(&mut self, now: Now, wanted: impl IntoIterator<Item = (u32, u8)>) {
        let Some(content) = &mut self.content else {
            return;
        };
        for (piece, priority) in wanted {
            content.picker.want(piece, priority);
        }
        self.note_finished(now);
        self.consider_all(now);
    }

    /// Stops asking, or goes on. What was asked for is taken back.
    pub fn hold(&mut self, now: Now, held: bool) {
        if self.held == held {
            return;
        }
        self.held = held;
        let keys: Vec<PeerKey> = self.peers.keys().copied().collect();
        for key in keys {
            if held {
                let asked = self.take_back(key);
                for block in asked {
                    self.send(now, key, Message::Cancel(block));
                }
            }
        }
        self.consider_all(now);
    }

    /// A connection has been made and greeted.
    pub fn peer_joined(&mut self, now: Now, key: PeerKey, new: NewPeer) {
        let peer = Peer::new(now, new, self.pieces());
        if let (Some(content), Some(has)) = (&mut self.content, peer.has()) {
            content.picker.peer_joined(has);
        }
        self.peers.insert(key, peer);
        if self.content.is_some() {
            self.say_pieces(now, key);
        }
        self.offers_hashes(key);
        self.ask_for_hashes(now);
        self.say_hello(now, key);
        self.pex_news(now);
    }

    /// The connection has ended.
    pub fn peer_left(&mut self, now: Now, key: PeerKey) {
        self.remove(key);
        self.pex_news(now);
        self.unchoke_waiting(now);
        self.consider_all(now);
    }

    /// A block has arrived.
    pub fn block_arrived(&mut self, now: Now, key: PeerKey, block: Block) -> Verdict {
        let (Some(peer), Some(content)) = (self.peers.get_mut(&key), &mut self.content) else {
            return Verdict::Waste;
        };
        peer.heard = now;
        let asked = peer.asked.remove(&block).is_some();
        if asked {
            peer.heard_block = now;
            peer.window.received(now, block.length);
            if std::mem::take(&mut peer.snubs) {
                peer.window.recovered();
            }
        } else {
            peer.unasked_bytes += u64::from(block.length);
        }
        let received = match asked {
            true => content.picker.received(key, &block),
            false => Received::Known,
        };
        let Received::Fresh { cancel, .. } = received else {
            self.wasted += u64::from(block.length);
            if self
                .peers
                .get(&key)
                .is_some_and(|p| p.unasked_bytes > UNASKED_BYTES_MAX + p.cancelled_bytes)
            {
                self.drop_peer(key, Fault::Protocol("it sends what nobody asked for"));
            }
            return Verdict::Waste;
        };
        for other in cancel {
            if let Some(peer) = self.peers.get_mut(&other) {
                peer.asked.remove(&block);
            }
            self.send(now, other, Message::Cancel(block));
        }
        self.refill(now, key);
        Verdict::Write
    }

    /// A block was elsewhere on this machine; `as_from` stands for whoever sent it, should it be wrong.
    pub fn block_held(&mut self, now: Now, as_from: PeerKey, block: Block) -> Verdict {
        let Some(content) = &mut self.content else {
            return Verdict::Waste;
        };
        let Received::Fresh { cancel, .. } = content.picker.held(as_from, &block) else {
            return Verdict::Waste;
        };
        for other in cancel {
            if let Some(peer) = self.peers.get_mut(&other) {
                peer.asked.remove(&block);
            }
            self.send(now, other, Message::Cancel(block));
        }
        Verdict::Write
    }

    /// Blocks were sent to a peer, or refused with `bytes` of 0.
    pub fn served(&mut self, now: Now, key: PeerKey, blocks: u32, bytes: u64) {
        if let Some(peer) = self.peers.get_mut(&key) {
            peer.serving = peer.serving.saturating_sub(blocks);
            peer.sent.add(now, bytes);
            peer.spoken = now;
        }
    }

    /// All blocks of a piece are on disk and its hash is right.
    pub fn piece_verified(&mut self, now: Now, piece: u32) {
        let Some(content) = &mut self.content else {
            return;
        };
        content.picker.verified(piece);
        if !content.have.set(piece) {
            return;
        }
        let finished = content.picker.missing() == 0;
        if self.blame.suspects(piece) {
            self.actions.push_back(Action::Examine(piece));
        }
        let lacking = |peer: &Peer| !peer.has().is_some_and(|has| has.has(piece));
        let keys: Vec<PeerKey> = self
            .peers
            .iter()
            .filter(|(_, peer)| lacking(peer))
            .map(|(key, _)| *key)
            .collect();
        for key in keys {
            self.send(now, key, Message::Have(piece));
        }
        if finished {
            self.note_finished(now);
            self.consider_all(now);
        }
    }

    /// A whole piece had the wrong hash. `digests` tell its blocks apart.
    pub fn piece_failed(&mut self, now: Now, piece: u32, digests: &[u64]) {
        let Some(content) = &mut self.content else {
            return;
        };
        let senders = content.picker.senders(piece);
        for (key, peer) in &mut self.peers {
            peer.failures += u32::from(senders.contains(key));
        }
        content.picker.failed(piece, true);
        let first = senders.first().copied();
        if let Some(only) = first.filter(|first| senders.iter().all(|sender| sender == first)) {
            self.drop_peer(only, Fault::Lie);
        } else {
            self.blame.failed(piece, &senders, digests);
        }
        self.consider_all(now);
    }

    /// A piece that all blocks of are here could not be written or read: it is fetched again.
    pub fn piece_lost(&mut self, now: Now, piece: u32) {
        if let Some(content) = &mut self.content {
            if content.have.clear(piece) {
                content.picker.lost(piece);
                self.say_lost(now, piece);
            } else {
                content.picker.failed(piece, false);
            }
        }
        self.note_finished(now);
        self.consider_all(now);
    }

    /// The answer to [`Action::Examine`].
    pub fn examined(&mut self, now: Now, piece: u32, digests: &[u64]) {
        for liar in self.blame.settle(piece, digests) {
            if self.peers.contains_key(&liar) {
                self.drop_peer(liar, Fault::Lie);
            }
        }
        self.consider_all(now);
    }

    /// Sends what a peer must hear first about our pieces.
    fn say_pieces(&mut self, now: Now, key: PeerKey) {
        let hides = self.super_seeds();
        let Some(content) = &self.content else { return };
        let fast = self.peers.get(&key).is_some_and(|peer| peer.fast);
        let message = match (fast, content.have.ones()) {
            (true, _) if hides => Message::HaveNone,
            (false, _) if hides => return self.show_more(now, key),
            (true, 0) => Message::HaveNone,
            (true, _) if content.have.is_full() => Message::HaveAll,
            (false, 0) => return,
            _ => Message::Bitfield(content.have.to_bytes().into()),
        };
        self.send(now, key, message);
        if hides {
            self.show_more(now, key);
        }
    }

    fn send(&mut self, now: Now, key: PeerKey, message: Message<Bytes>) {
        if let Some(peer) = self.peers.get_mut(&key) {
            peer.spoken = now;
            self.actions.push_back(Action::Send(key, message));
        }
    }

    fn drop_peer(&mut self, key: PeerKey, fault: Fault) {
        if self.remove(key) {
            self.actions.push_back(Action::Drop(key, fault));
        }
    }

    fn remove(&mut self, key: PeerKey) -> bool {
        drop(self.take_back(key));
        let Some(peer) = self.peers.remove(&key) else {
            return false;
        };
        if let Some(addr) = peer.callable() {
            self.scores.note(addr, peer.shown());
        }
        if let Some(state) = &mut self.super_seed {
            state.forget(key);
        }
        if let (Some(content), Some(has)) = (&mut self.content, peer.has()) {
            content.picker.peer_left(has);
            content.picker.forget(key);
        }
        self.fetch.peer_left(key);
        if let Some(fetch) = &mut self.hash_fetch {
            fetch.peer_left(key);
        }
        self.gone_down += peer.window.total();
        self.gone_up += peer.sent.total();
        true
    }

    /// Nothing is asked of the peer any more. Returns what was.
    fn take_back(&mut self, key: PeerKey) -> Vec<Block> {
        let Some(peer) = self.peers.get_mut(&key) else {
            return Vec::new();
        };
        let asked: Vec<Block> = peer.asked.drain().map(|(block, _)| block).collect();
        if let Some(content) = &mut self.content {
            asked
                .iter()
                .for_each(|block| content.picker.unasked(key, block));
        }
        asked
    }

    /// Interest and requests of every peer, after something has changed for all.
    fn consider_all(&mut self, now: Now) {
        let keys: Vec<PeerKey> = self.peers.keys().copied().collect();
        for key in keys {
            self.consider(now, key);
        }
    }

    /// Says whether we want something from the peer, and asks.
    fn consider(&mut self, now: Now, key: PeerKey) {
        let (Some(content), Some(peer)) = (&self.content, self.peers.get_mut(&key)) else {
            return;
        };
        let has = peer.has();
        let lazy = self.settings.lazy;
        let of_use = |piece: u32| content.picker.needs(piece) || (lazy && !content.have.has(piece));
        let wants =
            (content.picker.missing() > 0 || lazy) && has.is_some_and(|has| has.iter().any(of_use));
        if wants != peer.we_are_interested {
            peer.we_are_interested = wants;
            let message = if wants {
                Message::Interested
            } else {
                Message::NotInterested
            };
            self.send(now, key, message);
        }
        self.refill(now, key);
    }

    /// Asks for as much as the peer's window has room for.
    fn refill(&mut self, now: Now, key: PeerKey) {
        let (Some(content), Some(peer)) = (&mut self.content, self.peers.get_mut(&key)) else {
            return;
        };
        let room = peer.room();
        if self.held
            || room == 0
            || !peer.we_are_interested
            || (peer.snubs && !peer.asked.is_empty())
        {
            return;
        }
        let mut blocks = Vec::new();
        if peer.unchoked {
            if let Has::Known(has) = &peer.has {
                peer.suggests
                    .retain(|piece| content.picker.has_open(*piece));
                if !peer.suggests.is_empty() && !content.picker.has_deadlines() {
                    let suggested = has.only(&peer.suggests);
                    content.picker.pick(key, &suggested, room, &mut blocks);
                }
                let room = room - blocks.len();
                content.picker.pick(key, has, room, &mut blocks);
            }
        } else if !peer.allowed_fast.is_empty()
            && let Has::Known(has) = &peer.has
        {
            let allowed = has.only(&peer.allowed_fast);
            content.picker.pick(key, &allowed, room, &mut blocks);
        }
        if peer.asked.is_empty() {
            peer.heard_block = now;
        }
        peer.asked.extend(blocks.iter().map(|block| (*block, now)));
        for block in blocks {
            self.send(now, key, Message::Request(block));
        }
    }

    fn next_random(&mut self) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random
    }
}

#[cfg(test)]
mod sim;
#[cfg(test)]
mod tests;
