//! Where a peer stands among others: who is called first, and who has to go when there are too many.

use std::net::SocketAddr;

use super::peer::Peer;
use super::priority::canonical;
use super::score::Score;
use super::{Fault, Now, Torrent};
use crate::proto::scheduler::PeerKey;

/// The higher the better: first how it behaves, then what BEP 40 says.
pub type Standing = (i64, u32);

impl Peer {
    /// What this connection has shown of it.
    pub(super) fn shown(&self) -> Score {
        let brought = self.window.total() > 0;
        Score {
            speed: self.best.max(u64::from(brought)),
            snubs: self.snubbed,
            failures: self.failures,
            idle: u32::from(self.we_are_interested && !brought),
        }
    }

    /// Something is under way with it, or has been of late.
    fn is_of_use(&self) -> bool {
        !self.asked.is_empty() || self.unchoked_since.is_some() || self.best > 0
    }
}

impl Torrent {
    /// How much a call to this address is worth.
    pub fn standing(&self, addr: &SocketAddr) -> Standing {
        (self.scores.of(addr).value(), self.priority(*addr))
    }

    /// A call to this address was not taken.
    pub fn call_failed(&mut self, now: Now, addr: SocketAddr) {
        let idle = Score {
            idle: 1,
            ..Score::default()
        };
        self.scores.note(addr, idle);
        self.introduce(now, addr);
    }

    /// There are as many peers as there may be, and one at `addr` wants to join. If the least of them is worth less, it goes.
    pub fn make_room(&mut self, addr: SocketAddr) -> bool {
        let standing = |peer: &Peer| {
            let before = peer
                .callable()
                .map_or(0, |addr| self.scores.of(&addr).value());
            let behaviour = peer.shown().value().min(before);
            (behaviour, peer.addr.map_or(0, |addr| self.priority(addr)))
        };
        let idle = self
            .peers
            .iter()
            .filter(|(_, peer)| !peer.web && !peer.is_of_use());
        let least: Option<(Standing, PeerKey)> =
            idle.map(|(key, peer)| (standing(peer), *key)).min();
        let Some((_, key)) = least.filter(|(least, _)| *least < self.standing(&addr)) else {
            return false;
        };
        self.drop_peer(key, Fault::Crowded);
        true
    }

    fn priority(&self, addr: SocketAddr) -> u32 {
        let ours = self
            .our_ip
            .map(|ip| SocketAddr::new(ip, self.settings.port));
        ours.map_or(0, |ours| canonical(ours, addr))
    }
}
