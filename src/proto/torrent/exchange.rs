//! What peers are told of us and of each other: the extension handshake, again when something in it changes (BEP 21), peer
//! exchange (BEP 11), and pieces that are gone (BEP 54).

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;

use super::hello::Hello;
use super::{Action, Now, Torrent};
use crate::proto::pex::{self, FLAG_HOLEPUNCH, FLAG_REACHABLE, FLAG_SEED};
use crate::proto::scheduler::PeerKey;
use crate::proto::wire::Message;

/// Time between two messages of peer exchange to one peer (BEP 11). The first comes at once.
const PEX_TIME: Duration = Duration::from_secs(60);
/// Addresses remembered of those a peer has told us of: who to ask for an introduction (BEP 55).
const TOLD_MAX: usize = 200;

impl super::peer::Peer {
    /// Where others can call it.
    pub(super) fn callable(&self) -> Option<SocketAddr> {
        let addr = self.addr?;
        if self.called {
            return Some(addr);
        }
        let port = self.hello.as_ref()?.port?;
        Some(SocketAddr::new(addr.ip(), port))
    }

    /// It wants nothing of anybody.
    pub(super) fn only_uploads(&self) -> bool {
        let says = |hello: &Hello| hello.upload_only;
        self.web || self.is_seed() || self.hello.as_ref().is_some_and(says)
    }

    fn pex_flags(&self) -> u8 {
        let holepunch = self
            .hello
            .as_ref()
            .and_then(|hello| hello.ut_holepunch)
            .is_some();
        let flag = |flag: u8, is: bool| if is { flag } else { 0 };
        self.pex_flags
            | flag(FLAG_SEED, self.only_uploads())
            | flag(FLAG_HOLEPUNCH, holepunch)
            | flag(FLAG_REACHABLE, self.called)
    }
}

impl Torrent {
    /// Says what we can do and how it stands.
    pub(super) fn say_hello(&mut self, now: Now, key: PeerKey) {
        // Who shows pieces one by one has more for those who have got what was shown: they would hang up on one who only uploads.
        let done = self.is_finished() && !self.super_seeds();
        let Some(peer) = self.peers.get(&key).filter(|peer| peer.extended) else {
            return;
        };
        let your_ip = peer.addr.map(|addr| addr.ip());
        let size = self.metadata.as_ref().map(Bytes::len);
        let pex = !self.settings.private;
        let hello = Hello::ours(size, pex, done, self.settings.port);
        let payload = Hello { your_ip, ..hello }.encode().into();
        self.send(now, key, Message::Extended { id: 0, payload });
    }

    /// Tells everybody if we now want nothing more, or something again (BEP 21).
    pub(super) fn note_finished(&mut self, now: Now) {
        let finished = self.is_finished();
        if std::mem::replace(&mut self.told_finished, finished) == finished {
            return;
        }
        let keys: Vec<PeerKey> = self.peers.keys().copied().collect();
        keys.into_iter().for_each(|key| self.say_hello(now, key));
    }

    /// Tells everybody who knows BEP 54 that a piece they may have heard of is gone.
    pub(super) fn say_lost(&mut self, now: Now, piece: u32) {
        let takes =
            |(key, peer): (&PeerKey, &super::Peer)| Some((*key, peer.hello.as_ref()?.lt_donthave?));
        let peers: Vec<(PeerKey, u8)> = self.peers.iter().filter_map(takes).collect();
        for (key, id) in peers {
            let payload = Bytes::copy_from_slice(&piece.to_be_bytes());
            self.send(now, key, Message::Extended { id, payload });
        }
    }

    /// Somebody can be called or has gone: those who were told of others long enough ago hear of it. Nobody is told of anybody
    /// before the metadata says whether the torrent is private.
    pub(super) fn pex_news(&mut self, now: Now) {
        if !self.settings.private && self.content.is_some() {
            self.next_pex = Some(now);
        }
    }

    /// Tells peers of each other.
    pub(super) fn exchange(&mut self, now: Now) {
        let callable = |peer: &super::Peer| Some((peer.callable()?, peer.pex_flags()));
        let all: BTreeMap<SocketAddr, u8> = self.peers.values().filter_map(callable).collect();
        let mut messages = Vec::new();
        let mut next: Option<Now> = None;
        for (key, peer) in &mut self.peers {
            let Some(id) = peer.hello.as_ref().and_then(|hello| hello.ut_pex) else {
                continue;
            };
            if now >= peer.pex_at {
                let mut others = all.clone();
                if let Some(own) = peer.callable() {
                    others.remove(&own);
                }
                let Some(payload) = peer.told.news(&others) else {
                    continue;
                };
                peer.pex_at = now + PEX_TIME;
                messages.push((*key, id, payload));
            }
            // What did not fit, or came too soon after the last one.
            next = Some(next.map_or(peer.pex_at, |at| at.min(peer.pex_at)));
        }
        self.next_pex = next;
        for (key, id, payload) in messages {
            let payload = payload.into();
            self.send(now, key, Message::Extended { id, payload });
        }
    }

    /// A peer tells of others.
    pub(super) fn told_of(&mut self, key: PeerKey, payload: &[u8]) {
        let Some(told) = pex::decode(payload).filter(|_| !self.settings.private) else {
            return;
        };
        let finished = self.is_finished();
        if let Some(peer) = self.peers.get_mut(&key) {
            for other in &told {
                if peer.tells_of.len() < TOLD_MAX {
                    peer.tells_of.insert(other.addr);
                }
            }
        }
        // Two who have everything have nothing to say to each other.
        let of_use = told
            .iter()
            .filter(|peer| !finished || peer.flags & FLAG_SEED == 0);
        let addrs: Vec<SocketAddr> = of_use.map(|peer| peer.addr).collect();
        if !addrs.is_empty() {
            self.actions.push_back(Action::Found(addrs));
        }
    }
}
