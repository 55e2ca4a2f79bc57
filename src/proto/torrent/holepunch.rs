//! Meeting a peer that takes no calls, through a third one both are connected to (BEP 55).
//!
//! Who wants to meet asks the third for a rendezvous; the third tells both to connect to each other at the same time, so that each
//! one's packets open its own way for the other's. Connecting is the owner's ([`Action::Punch`]); here are the messages and the
//! part of the third.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::{Action, Now, Torrent};
use crate::proto::scheduler::PeerKey;
use crate::proto::tracker::callable;
use crate::proto::wire::Message;

/// Peers asked to introduce us to the same one.
const ASKED_MAX: usize = 3;

/// Why somebody is not introduced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// The address is none.
    NoSuchPeer,
    /// It is not connected to the third.
    NotConnected,
    /// It does not know this extension.
    NoSupport,
    /// It is the third itself.
    NoSelf,
    /// A later version's reason.
    Other(u32),
}

/// One message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Holepunch {
    /// Tell this peer and me to connect to each other.
    Rendezvous(SocketAddr),
    /// Connect to this peer now.
    Connect(SocketAddr),
    /// You are not introduced to this peer.
    Refused(SocketAddr, Refusal),
}

impl Holepunch {
    /// Reads a payload. `None`: it is none, or of a later version.
    pub fn decode(payload: &[u8]) -> Option<Self> {
        let (&kind, rest) = payload.split_first()?;
        let (&family, rest) = rest.split_first()?;
        let (ip, rest) = match family {
            0 => {
                let (ip, rest) = rest.split_first_chunk::<4>()?;
                (IpAddr::from(Ipv4Addr::from(*ip)), rest)
            }
            1 => {
                let (ip, rest) = rest.split_first_chunk::<16>()?;
                (IpAddr::from(Ipv6Addr::from(*ip)), rest)
            }
            _ => return None,
        };
        let (port, rest) = rest.split_first_chunk()?;
        let addr = SocketAddr::new(ip.to_canonical(), u16::from_be_bytes(*port));
        match kind {
            0 => Some(Self::Rendezvous(addr)),
            1 => Some(Self::Connect(addr)),
            2 => {
                let code = u32::from_be_bytes(*rest.first_chunk()?);
                Some(Self::Refused(addr, Refusal::of(code)))
            }
            _ => None,
        }
    }

    /// The payload. All messages have a code; it is 0 where nothing is refused.
    pub fn encode(&self) -> Vec<u8> {
        let (kind, addr, code) = match self {
            Self::Rendezvous(addr) => (0, addr, 0),
            Self::Connect(addr) => (1, addr, 0),
            Self::Refused(addr, refusal) => (2, addr, refusal.code()),
        };
        let mut out = vec![kind];
        match addr.ip().to_canonical() {
            IpAddr::V4(ip) => {
                out.push(0);
                out.extend_from_slice(&ip.octets());
            }
            IpAddr::V6(ip) => {
                out.push(1);
                out.extend_from_slice(&ip.octets());
            }
        }
        out.extend_from_slice(&addr.port().to_be_bytes());
        out.extend_from_slice(&u32::to_be_bytes(code));
        out
    }
}

impl Refusal {
    fn of(code: u32) -> Self {
        match code {
            1 => Self::NoSuchPeer,
            2 => Self::NotConnected,
            3 => Self::NoSupport,
            4 => Self::NoSelf,
            other => Self::Other(other),
        }
    }

    fn code(self) -> u32 {
        match self {
            Self::NoSuchPeer => 1,
            Self::NotConnected => 2,
            Self::NoSupport => 3,
            Self::NoSelf => 4,
            Self::Other(code) => code,
        }
    }
}

impl Torrent {
    /// `addr` does not take our call: peers that have told us of it are asked to introduce us.
    pub fn introduce(&mut self, now: Now, addr: SocketAddr) {
        let knows = |(key, peer): (&PeerKey, &super::Peer)| {
            let punches = peer
                .hello
                .as_ref()
                .is_some_and(|h| h.ut_holepunch.is_some());
            (punches && peer.tells_of.contains(&addr)).then_some(*key)
        };
        let third: Vec<PeerKey> = self
            .peers
            .iter()
            .filter_map(knows)
            .take(ASKED_MAX)
            .collect();
        for key in third {
            self.send_holepunch(now, key, &Holepunch::Rendezvous(addr));
        }
    }

    pub(super) fn holepunch(&mut self, now: Now, key: PeerKey, payload: &[u8]) {
        match Holepunch::decode(payload) {
            Some(Holepunch::Rendezvous(addr)) => self.rendezvous(now, key, addr),
            Some(Holepunch::Connect(addr)) if callable(&addr) && self.may_meet(key) => {
                self.actions.push_back(Action::Punch(addr));
            }
            _ => {}
        }
    }

    /// A peer must have told its port or have told us of others to send us anywhere: a stranger who only just came may not make
    /// us knock at doors. Private torrents have their own ways.
    fn may_meet(&self, key: PeerKey) -> bool {
        let known = self
            .peers
            .get(&key)
            .is_some_and(|peer| peer.hello.is_some());
        known && !self.settings.private
    }

    /// Tells both to connect to each other.
    fn rendezvous(&mut self, now: Now, key: PeerKey, addr: SocketAddr) {
        let Some(from) = self.peers.get(&key).and_then(|peer| peer.addr) else {
            return;
        };
        let is = |(_, peer): &(&PeerKey, &super::Peer)| {
            peer.addr == Some(addr) || peer.callable() == Some(addr)
        };
        let target = self.peers.iter().find(is);
        let refusal = match target {
            _ if !callable(&addr) => Refusal::NoSuchPeer,
            None => Refusal::NotConnected,
            Some((other, _)) if *other == key => Refusal::NoSelf,
            Some((other, peer)) => match peer.hello.as_ref().and_then(|h| h.ut_holepunch) {
                None => Refusal::NoSupport,
                Some(_) => {
                    let (other, there) = (*other, peer.addr.unwrap_or(addr));
                    self.send_holepunch(now, other, &Holepunch::Connect(from));
                    return self.send_holepunch(now, key, &Holepunch::Connect(there));
                }
            },
        };
        self.send_holepunch(now, key, &Holepunch::Refused(addr, refusal));
    }

    fn send_holepunch(&mut self, now: Now, key: PeerKey, message: &Holepunch) {
        let hello = self.peers.get(&key).and_then(|peer| peer.hello.as_ref());
        if let Some(id) = hello.and_then(|hello| hello.ut_holepunch) {
            let payload = message.encode().into();
            self.send(now, key, Message::Extended { id, payload });
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn messages_have_the_layout_of_bep_55() {
        let addr: SocketAddr = "10.1.2.3:6881".parse().unwrap();
        let bytes = [0, 0, 10, 1, 2, 3, 0x1a, 0xe1, 0, 0, 0, 0];
        assert_eq!(Holepunch::Rendezvous(addr).encode(), bytes);
        assert_eq!(Holepunch::decode(&bytes), Some(Holepunch::Rendezvous(addr)));
        let short = bytes.get(..8).unwrap();
        assert_eq!(
            Holepunch::decode(short),
            Some(Holepunch::Rendezvous(addr)),
            "some leave the code out"
        );
        let six: SocketAddr = "[2001:db8::1]:9".parse().unwrap();
        let refused = Holepunch::Refused(six, Refusal::NoSupport);
        assert_eq!(refused.encode().len(), 2 + 16 + 2 + 4);
        for message in [
            refused,
            Holepunch::Connect(six),
            Holepunch::Refused(addr, Refusal::Other(9)),
        ] {
            assert_eq!(Holepunch::decode(&message.encode()), Some(message));
        }
        for wrong in [
            &[][..],
            &[0],
            &[0, 2, 1, 1, 1, 1, 1, 1],
            &[3, 0, 1, 1, 1, 1, 1, 1],
            &[2, 0, 1, 1, 1, 1, 1, 1],
        ] {
            assert_eq!(Holepunch::decode(wrong), None, "{wrong:?}");
        }
    }

    proptest! {
        #[test]
        fn no_payload_makes_it_panic(payload in prop::collection::vec(any::<u8>(), 0..40)) {
            if let Some(message) = Holepunch::decode(&payload) {
                prop_assert_eq!(Holepunch::decode(&message.encode()), Some(message));
            }
        }
    }
}
