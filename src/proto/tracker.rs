//! What HTTP and UDP trackers have in common: the question, the answer, and compact peer lists (BEP 3, 7, 15, 23).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use crate::share::SwarmId;

/// Peers taken from one answer. Trackers send 50 to 200 when asked for [`PEERS_WANTED`].
pub const PEERS_MAX: usize = 500;
/// Peers asked for in one announce.
pub const PEERS_WANTED: u16 = 100;
/// Shortest wait between two announces whatever the tracker says: its answer is not trusted with our traffic.
pub const INTERVAL_MIN: Duration = Duration::from_secs(60);
/// Longest wait between two announces, so that one odd answer does not silence a tracker for days.
pub const INTERVAL_MAX: Duration = Duration::from_secs(2 * 3600);
/// Characters kept of what a tracker says went wrong.
const REASON_LEN_MAX: usize = 200;

/// Why a tracker is asked now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// One of the regular announces.
    Regular,
    /// The content became whole.
    Completed,
    /// The first announce.
    Started,
    /// The last announce; no peers are wanted.
    Stopped,
}

/// The question to a tracker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AnnounceRequest {
    /// Info-hash.
    pub swarm: SwarmId,
    /// Our peer id in this swarm.
    pub peer_id: [u8; 20],
    /// TCP port we listen on.
    pub port: u16,
    /// Lets the tracker know us again when our address changes.
    pub key: u32,
    /// Payload bytes sent since `Started`.
    pub uploaded: u64,
    /// Payload bytes received since `Started`.
    pub downloaded: u64,
    /// Payload bytes still missing.
    pub left: u64,
    /// Why now.
    pub event: Event,
}

impl AnnounceRequest {
    /// Peers to ask for.
    pub(super) fn wanted(&self) -> u16 {
        if self.event == Event::Stopped {
            0
        } else {
            PEERS_WANTED
        }
    }
}

/// A tracker's answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Announced {
    /// When to announce next, within [`INTERVAL_MIN`] and [`INTERVAL_MAX`].
    pub interval: Duration,
    /// At most [`PEERS_MAX`] addresses that can be called.
    pub peers: Vec<SocketAddr>,
    /// Peers that have everything, as far as the tracker says.
    pub seeds: Option<u32>,
    /// Peers that do not.
    pub leechers: Option<u32>,
    /// What the tracker wants the user to know.
    pub warning: Option<String>,
}

/// What a tracker knows of a swarm (BEP 48).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Scraped {
    /// Peers that have everything.
    pub seeds: u32,
    /// Peers that do not.
    pub leechers: u32,
    /// Times the content became whole somewhere.
    pub downloads: u32,
}

impl Announced {
    pub(super) fn new(interval_secs: u64, peers: impl Iterator<Item = SocketAddr>) -> Self {
        let interval = Duration::from_secs(interval_secs).clamp(INTERVAL_MIN, INTERVAL_MAX);
        Self {
            interval,
            peers: peers.filter(callable).take(PEERS_MAX).collect(),
            seeds: None,
            leechers: None,
            warning: None,
        }
    }
}

/// Whether anyone can be reached there at all.
pub fn callable(addr: &SocketAddr) -> bool {
    let ip = addr.ip();
    let broadcast = ip == IpAddr::V4(Ipv4Addr::BROADCAST);
    addr.port() != 0 && !ip.is_unspecified() && !ip.is_multicast() && !broadcast
}

/// Peers as 4 bytes of address and 2 of port, big-endian. A rest shorter than that is ignored.
pub(super) fn compact_v4(bytes: &[u8]) -> impl Iterator<Item = SocketAddr> {
    let (peers, _) = bytes.as_chunks::<6>();
    peers.iter().map(|&[a, b, c, d, p, q]| {
        SocketAddr::from((Ipv4Addr::new(a, b, c, d), u16::from_be_bytes([p, q])))
    })
}

/// Peers as 16 bytes of address and 2 of port, big-endian. A rest shorter than that is ignored.
pub(super) fn compact_v6(bytes: &[u8]) -> impl Iterator<Item = SocketAddr> {
    let (peers, _) = bytes.as_chunks::<18>();
    peers.iter().filter_map(|peer| {
        let (ip, port) = peer.split_first_chunk::<16>()?;
        let port = u16::from_be_bytes(port.try_into().ok()?);
        Some(SocketAddr::from((Ipv6Addr::from(*ip), port)))
    })
}

/// What a tracker says went wrong, bounded and without control characters.
pub(super) fn reason(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    text.chars()
        .filter(|c| !c.is_control())
        .take(REASON_LEN_MAX)
        .collect()
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A request whose fields all differ.
    pub(crate) fn request(event: Event) -> AnnounceRequest {
        AnnounceRequest {
            swarm: SwarmId::from_bytes(std::array::from_fn(|i| i as u8)),
            peer_id: *b"-CC0001-abcdefghijkl",
            port: 51413,
            key: 0xdead_beef,
            uploaded: 7,
            downloaded: 8,
            left: 9,
            event,
        }
    }

    #[test]
    fn addresses_nobody_can_be_called_at_are_left_out() {
        let bytes = [
            10, 0, 0, 1, 0, 80, 10, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 80, 239, 0, 0, 1, 0, 80,
        ];
        let answer = Announced::new(1800, compact_v4(&bytes));
        assert_eq!(answer.peers, ["10.0.0.1:80".parse().unwrap()]);
        assert_eq!(answer.interval, Duration::from_secs(1800));
    }

    #[test]
    fn the_interval_is_held_within_reason() {
        assert_eq!(Announced::new(0, std::iter::empty()).interval, INTERVAL_MIN);
        assert_eq!(
            Announced::new(u64::MAX, std::iter::empty()).interval,
            INTERVAL_MAX
        );
    }

    #[test]
    fn a_reason_is_short_and_prints_plainly() {
        assert_eq!(reason(b"go\x1b[31m away\n\xff"), "go[31m away\u{fffd}");
        assert_eq!(reason(&[b'x'; 5000]).len(), 200);
    }

    proptest! {
        #[test]
        fn compact_lists_round_trip(peers in prop::collection::vec(any::<([u8; 4], [u8; 16], u16)>(), 0..40),
                                    rest in 0_usize..6) {
            let (mut v4, mut v6) = (Vec::new(), Vec::new());
            for (a, b, port) in &peers {
                v4.extend_from_slice(a);
                v4.extend_from_slice(&port.to_be_bytes());
                v6.extend_from_slice(b);
                v6.extend_from_slice(&port.to_be_bytes());
            }
            v4.extend(vec![1; rest]);
            v6.extend(vec![1; rest]);
            let want4: Vec<SocketAddr> = peers.iter().map(|(a, _, p)| (*a, *p).into()).collect();
            let want6: Vec<SocketAddr> = peers.iter().map(|(_, b, p)| (*b, *p).into()).collect();
            prop_assert_eq!(compact_v4(&v4).collect::<Vec<_>>(), want4);
            prop_assert_eq!(compact_v6(&v6).collect::<Vec<_>>(), want6);
        }
    }
}
