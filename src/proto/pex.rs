//! Peer exchange (BEP 11): who came and who went since the last message, in compact form.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use super::bencode::{Document, Item, Strictness, Value};
use super::tracker::{callable, compact_v4, compact_v6};

/// Most addresses of either kind in one message; BEP 11 says 50, and what is beyond this is left out.
const ADDED_MAX: usize = 100;
/// Addresses sent in one message.
const SENT_MAX: usize = 50;

/// Reads a message: the peers that were added. Those dropped are of no use to us.
pub fn decode(payload: &[u8]) -> Option<Vec<SocketAddr>> {
    let document = Document::parse(payload, Strictness::AsFound).ok()?;
    let root = document.root();
    drop(root.dict()?);
    let bytes = |key: &[u8]| -> &[u8] {
        let value: Option<Value<'_>> = root.get(key);
        value.and_then(|v| v.bytes()).unwrap_or_default()
    };
    let v4 = compact_v4(bytes(b"added")).take(ADDED_MAX);
    let v6 = compact_v6(bytes(b"added6")).take(ADDED_MAX);
    Some(v4.chain(v6).filter(callable).collect())
}

/// What one peer has been told, so that only news is sent.
#[derive(Debug, Default)]
pub struct Told(BTreeSet<SocketAddr>);

impl Told {
    /// The message that takes the peer from what it was told to `now`; `None` if there is no news.
    pub fn news(&mut self, now: &BTreeSet<SocketAddr>) -> Option<Vec<u8>> {
        let added: Vec<SocketAddr> = now.difference(&self.0).take(SENT_MAX).copied().collect();
        let dropped: Vec<SocketAddr> = self.0.difference(now).take(SENT_MAX).copied().collect();
        if added.is_empty() && dropped.is_empty() {
            return None;
        }
        self.0.extend(&added);
        dropped.iter().for_each(|addr| {
            self.0.remove(addr);
        });
        let (added4, added6) = compact(&added);
        let (dropped4, dropped6) = compact(&dropped);
        let flags = |bytes: &[u8], each: usize| Item::Bytes(vec![0; bytes.len() / each]);
        let mut payload = Vec::new();
        Item::dict([
            ("added.f", flags(&added4, 6)),
            ("added6.f", flags(&added6, 18)),
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

    fn set(ports: impl IntoIterator<Item = u16>) -> BTreeSet<SocketAddr> {
        ports
            .into_iter()
            .map(|port| SocketAddr::from(([10, 0, 0, 1], port)))
            .collect()
    }

    #[test]
    fn only_news_is_told_and_read_back() {
        let mut told = Told::default();
        let mut peers = set(1..=3);
        peers.insert("[2001:db8::1]:9".parse().unwrap());
        let read = |payload: Option<Vec<u8>>| decode(&payload.unwrap()).unwrap();
        let first = read(told.news(&peers));
        assert_eq!(first.into_iter().collect::<BTreeSet<_>>(), peers);
        assert_eq!(told.news(&peers), None);
        assert_eq!(
            read(told.news(&set(2..=4))),
            [SocketAddr::from(([10, 0, 0, 1], 4))]
        );
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
