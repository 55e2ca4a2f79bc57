//! Peer exchange (BEP 11): who came and who went since the last message, in compact form.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use super::bencode::{Document, Item, Strictness, Value};
use super::tracker::{callable, compact_v4, compact_v6};

/// Most addresses of either kind in one message; BEP 11 says 50, and what is beyond this is left out.
const ADDED_MAX: usize = 100;
/// Addresses sent in one message.
const SENT_MAX: usize = 50;

/// Flags of an address (BEP 11): it wants encrypted connections.
pub const FLAG_ENCRYPTION: u8 = 0x01;
/// It downloads nothing: it has everything, or everything it wants.
pub const FLAG_SEED: u8 = 0x02;
/// It takes uTP.
pub const FLAG_UTP: u8 = 0x04;
/// It takes holepunch messages (BEP 55).
pub const FLAG_HOLEPUNCH: u8 = 0x08;
/// Who tells of it has called it, so it can be reached.
pub const FLAG_REACHABLE: u8 = 0x10;

/// A peer somebody tells of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PexPeer {
    pub addr: SocketAddr,
    /// `FLAG_…`; 0 where none were given.
    pub flags: u8,
}

/// Reads a message: the peers that were added. Those dropped are of no use to us.
pub fn decode(payload: &[u8]) -> Option<Vec<PexPeer>> {
    let document = Document::parse(payload, Strictness::AsFound).ok()?;
    let root = document.root();
    drop(root.dict()?);
    let bytes = |key: &[u8]| -> &[u8] {
        let value: Option<Value<'_>> = root.get(key);
        value.and_then(|v| v.bytes()).unwrap_or_default()
    };
    let flags = |key: &[u8]| bytes(key).iter().copied().chain(std::iter::repeat(0));
    let v4 = compact_v4(bytes(b"added")).zip(flags(b"added.f"));
    let v6 = compact_v6(bytes(b"added6")).zip(flags(b"added6.f"));
    let all = v4.take(ADDED_MAX).chain(v6.take(ADDED_MAX));
    let peers = all.map(|(addr, flags)| PexPeer { addr, flags });
    Some(peers.filter(|peer| callable(&peer.addr)).collect())
}

/// What one peer has been told, so that only news is sent.
#[derive(Debug, Default)]
pub struct Told(BTreeSet<SocketAddr>);

impl Told {
    /// The message that takes the peer from what it was told to `now`; `None` if there is no news.
    pub fn news(&mut self, now: &BTreeMap<SocketAddr, u8>) -> Option<Vec<u8>> {
        let fresh = now.keys().filter(|addr| !self.0.contains(addr));
        let added: Vec<SocketAddr> = fresh.take(SENT_MAX).copied().collect();
        let gone = self.0.iter().filter(|addr| !now.contains_key(addr));
        let dropped: Vec<SocketAddr> = gone.take(SENT_MAX).copied().collect();
        if added.is_empty() && dropped.is_empty() {
            return None;
        }
        self.0.extend(&added);
        dropped.iter().for_each(|addr| {
            self.0.remove(addr);
        });
        let (added4, added6) = compact(&added);
        let (dropped4, dropped6) = compact(&dropped);
        let flags = |v4: bool| {
            let of = added.iter().filter(|addr| addr.is_ipv4() == v4);
            Item::Bytes(of.filter_map(|addr| now.get(addr).copied()).collect())
        };
        let mut payload = Vec::new();
        Item::dict([
            ("added.f", flags(true)),
            ("added6.f", flags(false)),
            ("added", Item::Bytes(added4)),
            ("added6", Item::Bytes(added6)),
            ("dropped", Item::Bytes(dropped4)),
            ("dropped6", Item::Bytes(dropped6)),
        ])
        .encode(&mut payload);
        Some(payload)
    }
}

fn compact(addrs: &[SocketAddr]) -> (Vec<u8>, Vec<u8>) {
    let (mut v4, mut v6) = (Vec::new(), Vec::new());
    for addr in addrs {
        match addr {
            SocketAddr::V4(addr) => {
                v4.extend_from_slice(&addr.ip().octets());
                v4.extend_from_slice(&addr.port().to_be_bytes());
            }
            SocketAddr::V6(addr) => {
                v6.extend_from_slice(&addr.ip().octets());
                v6.extend_from_slice(&addr.port().to_be_bytes());
            }
        }
    }
    (v4, v6)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(ports: impl IntoIterator<Item = u16>) -> BTreeMap<SocketAddr, u8> {
        ports
            .into_iter()
            .map(|port| (SocketAddr::from(([10, 0, 0, 1], port)), port as u8 & 0x1f))
            .collect()
    }

    #[test]
    fn only_news_is_told_and_read_back() {
        let mut told = Told::default();
        let mut peers = set(1..=3);
        peers.insert("[2001:db8::1]:9".parse().unwrap(), FLAG_SEED | FLAG_UTP);
        let read = |payload: Option<Vec<u8>>| -> BTreeMap<SocketAddr, u8> {
            let peers = decode(&payload.unwrap()).unwrap().into_iter();
            peers.map(|peer| (peer.addr, peer.flags)).collect()
        };
        assert_eq!(read(told.news(&peers)), peers);
        assert_eq!(told.news(&peers), None);
        assert_eq!(read(told.news(&set(2..=4))), set([4]));
    }

    #[test]
    fn a_message_is_bounded_both_ways() {
        let mut told = Told::default();
        let many = set(1..=120);
        let sizes: Vec<usize> = (0..3)
            .map(|_| decode(&told.news(&many).unwrap()).unwrap().len())
            .collect();
        assert_eq!(sizes, [50, 50, 20]);
        let mut payload = Vec::new();
        Item::dict([("added", Item::Bytes([[10, 0, 0, 1, 0, 9]; 5000].concat()))])
            .encode(&mut payload);
        assert_eq!(decode(&payload).unwrap().len(), ADDED_MAX);
        assert_eq!(decode(b"le"), None);
        assert_eq!(decode(b"d5:added3:abce"), Some(vec![]));
    }
}
