//! Local service discovery (BEP 14): announces of swarms by multicast, and what others announce.
//!
//! [`Lsd`] decides when which swarm is announced; a swarm never goes out more than once in [`ANNOUNCE_TIME_MIN`],
//! however often it is watched and unwatched.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Duration;

use thiserror::Error;

use crate::share::SwarmId;

/// Time since a start the caller chose.
type Now = Duration;

/// The group and port of BEP 14 for IPv4.
pub const GROUP_V4: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(239, 192, 152, 143), 6771);
/// Longest message sent or read: what fits an Ethernet frame with room for tunnels (BEP 14 says 1400).
pub const DATAGRAM_LEN_MAX: usize = 1400;
/// Wait between two regular announces of a swarm (BEP 14).
pub const ANNOUNCE_TIME: Duration = Duration::from_secs(5 * 60);
/// Shortest wait between two announces of a swarm (BEP 14).
pub const ANNOUNCE_TIME_MIN: Duration = Duration::from_secs(60);
/// Info-hashes in one message: 20 lines of 53 bytes are 1060.
const SWARMS_MAX: usize = 20;
/// Info-hashes read from one message: more do not fit 1400 bytes.
const SWARMS_READ_MAX: usize = 32;
/// Longest cookie looked at.
const COOKIE_LEN_MAX: usize = 64;

/// What a neighbour announces.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Search {
    /// TCP port it listens on, not 0.
    pub port: u16,
    /// Info-hashes of its swarms, at least one.
    pub swarms: Vec<SwarmId>,
    /// How it knows its own messages.
    pub cookie: Option<String>,
}

/// Why a datagram is not an announce.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum LsdError {
    /// Longer than BEP 14 allows.
    #[error("{len} bytes, at most {DATAGRAM_LEN_MAX} are read")]
    TooLong {
        /// Its length.
        len: usize,
    },
    /// It does not open with `BT-SEARCH * HTTP/1.1`, or is not text.
    #[error("not a BT-SEARCH message")]
    NotSearch,
    /// No port, or not a number from 1 to 65535.
    #[error("no usable port")]
    BadPort,
    /// Not one info-hash of 40 hexadecimal digits.
    #[error("no info-hash")]
    NoSwarm,
}

impl Search {
    /// Reads a datagram. Unknown headers and hashes of other lengths are skipped.
    pub fn parse(datagram: &[u8]) -> Result<Self, LsdError> {
        if datagram.len() > DATAGRAM_LEN_MAX {
            return Err(LsdError::TooLong {
                len: datagram.len(),
            });
        }
        let text = std::str::from_utf8(datagram).map_err(|_| LsdError::NotSearch)?;
        let mut lines = text.split("\r\n");
        if lines.next() != Some("BT-SEARCH * HTTP/1.1") {
            return Err(LsdError::NotSearch);
        }
        let (mut port, mut swarms, mut cookie) = (None, Vec::new(), None);
        for (name, value) in lines.filter_map(|line| line.split_once(':')) {
            let value = value.trim();
            match name.trim().to_ascii_lowercase().as_str() {
                "port" => port = value.parse().ok().filter(|port| *port != 0),
                "infohash" if swarms.len() < SWARMS_READ_MAX => swarms.extend(info_hash(value)),
                "cookie" if value.len() <= COOKIE_LEN_MAX => cookie = Some(value.to_owned()),
                _ => {}
            }
        }
        let port = port.ok_or(LsdError::BadPort)?;
        if swarms.is_empty() {
            return Err(LsdError::NoSwarm);
        }
        Ok(Self {
            port,
            swarms,
            cookie,
        })
    }

    /// The datagram, for a group at `host`.
    pub fn encode(&self, host: SocketAddrV4) -> Vec<u8> {
        let mut out = format!(
            "BT-SEARCH * HTTP/1.1\r\nHost: {host}\r\nPort: {}\r\n",
            self.port
        );
        for swarm in &self.swarms {
            let _ = write!(out, "Infohash: {swarm}\r\n");
        }
        if let Some(cookie) = &self.cookie {
            let _ = write!(out, "cookie: {cookie}\r\n");
        }
        out.push_str("\r\n\r\n");
        out.into_bytes()
    }
}

fn info_hash(text: &str) -> Option<SwarmId> {
    let bytes = data_encoding::HEXLOWER_PERMISSIVE
        .decode(text.as_bytes())
        .ok()?;
    Some(SwarmId::from_bytes(bytes.try_into().ok()?))
}

/// Our announces on one network.
#[derive(Debug)]
pub struct Lsd {
    port: u16,
    cookie: String,
    group: SocketAddrV4,
    /// When each watched swarm goes out next.
    due: BTreeMap<SwarmId, Now>,
    /// When each swarm went out last; those not watched are forgotten after [`ANNOUNCE_TIME_MIN`].
    last: BTreeMap<SwarmId, Now>,
}

impl Lsd {
    /// Announces `port` to `group`. `cookie` are random bytes by which our own messages are known. With port 0 nothing
    /// is announced.
    pub fn new(port: u16, group: SocketAddrV4, cookie: [u8; 8]) -> Self {
        let cookie = data_encoding::HEXLOWER.encode(&cookie);
        Self {
            port,
            cookie,
            group,
            due: BTreeMap::new(),
            last: BTreeMap::new(),
        }
    }

    /// Announces `swarm` from now on and looks for it.
    pub fn watch(&mut self, now: Now, swarm: SwarmId) {
        let earliest = self
            .last
            .get(&swarm)
            .map_or(now, |last| *last + ANNOUNCE_TIME_MIN);
        self.due.entry(swarm).or_insert_with(|| earliest.max(now));
    }

    /// Stops announcing and looking for `swarm`.
    pub fn unwatch(&mut self, swarm: SwarmId) {
        self.due.remove(&swarm);
    }

    /// The next datagram due at `now`.
    pub fn poll_transmit(&mut self, now: Now) -> Option<Vec<u8>> {
        let due = &self.due;
        self.last
            .retain(|swarm, at| due.contains_key(swarm) || now < *at + ANNOUNCE_TIME_MIN);
        if self.port == 0 {
            return None;
        }
        let ready = self
            .due
            .iter_mut()
            .filter(|(_, at)| **at <= now)
            .take(SWARMS_MAX);
        let mut swarms = Vec::new();
        for (swarm, at) in ready {
            *at = now + ANNOUNCE_TIME;
            self.last.insert(*swarm, now);
            swarms.push(*swarm);
        }
        let message = Search {
            port: self.port,
            swarms,
            cookie: Some(self.cookie.clone()),
        };
        (!message.swarms.is_empty()).then(|| message.encode(self.group))
    }

    /// When [`Self::poll_transmit`] will have something.
    pub fn poll_timeout(&self) -> Option<Now> {
        self.due.values().min().copied().filter(|_| self.port != 0)
    }

    /// Takes a datagram: the port of its sender and those of its swarms that we watch. Our own messages name none.
    pub fn handle_datagram(&self, datagram: &[u8]) -> Result<(u16, Vec<SwarmId>), LsdError> {
        let mut search = Search::parse(datagram)?;
        let ours = search.cookie.as_ref() == Some(&self.cookie);
        search
            .swarms
            .retain(|swarm| !ours && self.due.contains_key(swarm));
        Ok((search.port, search.swarms))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn secs(n: u64) -> Now {
        Duration::from_secs(n)
    }

    fn swarm(n: u8) -> SwarmId {
        SwarmId::from_bytes([n; 20])
    }

    fn lsd(cookie: u8) -> Lsd {
        Lsd::new(6881, GROUP_V4, [cookie; 8])
    }

    #[test]
    fn the_message_is_that_of_bep_14() {
        let mut lsd = lsd(0xab);
        lsd.watch(secs(0), swarm(1));
        let text = String::from_utf8(lsd.poll_transmit(secs(0)).unwrap()).unwrap();
        assert_eq!(
            text,
            "BT-SEARCH * HTTP/1.1\r\nHost: 239.192.152.143:6771\r\nPort: 6881\r\n\
             Infohash: 0101010101010101010101010101010101010101\r\n\
             cookie: abababababababab\r\n\r\n\r\n"
        );
    }

    #[test]
    fn a_swarm_goes_out_at_once_then_every_five_minutes_never_twice_a_minute() {
        let mut lsd = lsd(1);
        lsd.watch(secs(10), swarm(1));
        assert!(lsd.poll_transmit(secs(10)).is_some());
        assert_eq!(
            (lsd.poll_transmit(secs(10)), lsd.poll_timeout()),
            (None, Some(secs(310)))
        );
        lsd.unwatch(swarm(1));
        assert_eq!(lsd.poll_timeout(), None);
        lsd.watch(secs(20), swarm(1));
        assert_eq!(
            (lsd.poll_transmit(secs(20)), lsd.poll_timeout()),
            (None, Some(secs(70)))
        );
        assert!(lsd.poll_transmit(secs(70)).is_some());
        lsd.unwatch(swarm(1));
        assert_eq!(
            (lsd.poll_transmit(secs(130)), lsd.last.len()),
            (None, 0),
            "forgotten"
        );
    }

    #[test]
    fn many_swarms_are_packed_into_messages_that_fit() {
        let mut lsd = lsd(1);
        (0..45).for_each(|n| lsd.watch(secs(0), swarm(n)));
        let mut seen = Vec::new();
        while let Some(datagram) = lsd.poll_transmit(secs(0)) {
            assert!(datagram.len() <= DATAGRAM_LEN_MAX);
            let message = Search::parse(&datagram).unwrap();
            assert!(message.swarms.len() <= 20);
            seen.extend(message.swarms);
        }
        assert_eq!(seen, (0..45).map(swarm).collect::<Vec<_>>());
    }

    #[test]
    fn others_are_heard_for_watched_swarms_and_we_are_not() {
        let (mut a, mut b) = (lsd(1), lsd(2));
        a.watch(secs(0), swarm(1));
        a.watch(secs(0), swarm(2));
        b.watch(secs(0), swarm(2));
        let datagram = a.poll_transmit(secs(0)).unwrap();
        assert_eq!(b.handle_datagram(&datagram), Ok((6881, vec![swarm(2)])));
        assert_eq!(a.handle_datagram(&datagram), Ok((6881, vec![])), "our own");
    }

    #[test]
    fn with_no_port_nothing_is_announced_but_all_is_heard() {
        let mut quiet = Lsd::new(0, GROUP_V4, [1; 8]);
        quiet.watch(secs(0), swarm(1));
        assert_eq!(
            (quiet.poll_transmit(secs(0)), quiet.poll_timeout()),
            (None, None)
        );
        let mut other = lsd(2);
        other.watch(secs(0), swarm(1));
        let datagram = other.poll_transmit(secs(0)).unwrap();
        assert_eq!(quiet.handle_datagram(&datagram), Ok((6881, vec![swarm(1)])));
    }

    #[test]
    fn what_is_no_announce_is_refused() {
        let message = |port: &str, hash: &str| {
            format!("BT-SEARCH * HTTP/1.1\r\nPORT:{port}\r\ninfohash:{hash}\r\n\r\n").into_bytes()
        };
        let hash = "AA".repeat(20);
        assert_eq!(
            Search::parse(&message("1", &hash)).unwrap().swarms,
            [swarm(0xaa)]
        );
        for port in ["0", "65536", "-1", "", "x"] {
            assert_eq!(
                Search::parse(&message(port, &hash)),
                Err(LsdError::BadPort),
                "{port}"
            );
        }
        for hash in [
            "",
            "zz",
            &"a".repeat(39),
            &"ab".repeat(32),
            &"xx".repeat(20),
        ] {
            assert_eq!(
                Search::parse(&message("1", hash)),
                Err(LsdError::NoSwarm),
                "{hash}"
            );
        }
        assert_eq!(
            Search::parse(b"GET / HTTP/1.1\r\n\r\n"),
            Err(LsdError::NotSearch)
        );
        assert_eq!(Search::parse(&[0xff; 30]), Err(LsdError::NotSearch));
        assert_eq!(
            Search::parse(&[b'a'; 1401]),
            Err(LsdError::TooLong { len: 1401 })
        );
    }

    proptest! {
        #[test]
        fn messages_round_trip(port in 1_u16.., hashes in prop::collection::vec(any::<[u8; 20]>(), 1..20),
                               cookie in prop::option::of("[a-z0-9]{1,64}")) {
            let swarms = hashes.into_iter().map(SwarmId::from_bytes).collect();
            let message = Search { port, swarms, cookie };
            prop_assert_eq!(Search::parse(&message.encode(GROUP_V4)), Ok(message));
        }

        #[test]
        fn no_datagram_makes_it_panic(body in prop::collection::vec(any::<u8>(), 0..300), text in ".{0,200}") {
            drop(Search::parse(&body));
            drop(Search::parse(format!("BT-SEARCH * HTTP/1.1\r\n{text}").as_bytes()));
        }
    }
}
