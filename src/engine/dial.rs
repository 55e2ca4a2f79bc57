//! Whom to call next: known addresses of one folder's members, with back-off.

use std::cmp::Reverse;
use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::time::Duration;

/// Time since the owner's start.
type Now = Duration;

/// First wait after a failure; doubled each time.
const RETRY_TIME_MIN: Duration = Duration::from_secs(1);
/// Longest wait between two tries of an address the user gave.
const RETRY_TIME_MAX_GIVEN: Duration = Duration::from_secs(10);
/// Longest wait between two tries of an address that was found.
const RETRY_TIME_MAX_FOUND: Duration = Duration::from_secs(600);
/// Addresses kept per folder; found ones beyond are ignored.
const ADDRESSES_MAX: usize = 1024;
/// A found address is forgotten after this many failures in a row.
const FAILURES_MAX: u32 = 12;
/// Calls under way at once.
const DIALING_MAX: usize = 8;

#[derive(Debug)]
struct Address {
    given: bool,
    failures: u32,
    next_try: Now,
}

/// The addresses of one folder.
#[derive(Debug, Default)]
pub(super) struct Dialer {
    known: HashMap<SocketAddr, Address>,
    busy: HashSet<SocketAddr>,
    connected: HashSet<SocketAddr>,
    /// Our own addresses, learned by calling ourselves, and those of liars.
    own: HashSet<SocketAddr>,
}

impl Dialer {
    /// The user gave this address (`--peer`, a link's `pe=`): it is tried for ever.
    pub(super) fn give(&mut self, addr: SocketAddr) {
        let addr = plain(addr);
        let entry = self.known.entry(addr);
        entry
            .or_insert(Address {
                given: true,
                failures: 0,
                next_try: Now::ZERO,
            })
            .given = true;
    }

    /// Discovery or a member named this address.
    pub(super) fn found(&mut self, addr: SocketAddr) {
        let addr = plain(addr);
        let usable = addr.port() != 0 && !addr.ip().is_unspecified() && !addr.ip().is_multicast();
        if usable && self.known.len() < ADDRESSES_MAX && !self.own.contains(&addr) {
            let fresh = Address {
                given: false,
                failures: 0,
                next_try: Now::ZERO,
            };
            self.known.entry(addr).or_insert(fresh);
        }
    }

    /// Addresses to call now; each must be answered by [`Self::connected`] or [`Self::failed`].
    pub(super) fn due(&mut self, now: Now) -> Vec<SocketAddr> {
        self.due_by(now, |_| ())
    }

    /// The same, those that the user gave first, then those of the highest worth.
    pub(super) fn due_by<W: Ord>(
        &mut self,
        now: Now,
        worth: impl Fn(&SocketAddr) -> W,
    ) -> Vec<SocketAddr> {
        let room = DIALING_MAX.saturating_sub(self.busy.len());
        if room == 0 {
            return Vec::new();
        }
        let mut due: Vec<(Reverse<(bool, W)>, SocketAddr)> = self
            .known
            .iter()
            .filter(|(addr, a)| {
                a.next_try <= now && !self.busy.contains(addr) && !self.connected.contains(addr)
            })
            .map(|(addr, a)| (Reverse((a.given, worth(addr))), *addr))
            .collect();
        due.sort_unstable();
        due.truncate(room);
        let due: Vec<SocketAddr> = due.into_iter().map(|(_, addr)| addr).collect();
        self.busy.extend(&due);
        due
    }

    /// When [`Self::due`] may have something, if at all.
    pub(super) fn poll_timeout(&self) -> Option<Now> {
        if self.busy.len() >= DIALING_MAX {
            return None;
        }
        self.known
            .iter()
            .filter(|(addr, _)| !self.busy.contains(addr) && !self.connected.contains(addr))
            .map(|(_, a)| a.next_try)
            .min()
    }

    pub(super) fn connected(&mut self, addr: SocketAddr) {
        self.busy.remove(&addr);
        self.connected.insert(addr);
        if let Some(a) = self.known.get_mut(&addr) {
            a.failures = 0;
        }
    }

    /// The call failed, or the connection ended.
    pub(super) fn failed(&mut self, now: Now, addr: SocketAddr) {
        self.busy.remove(&addr);
        self.connected.remove(&addr);
        let Some(a) = self.known.get_mut(&addr) else {
            return;
        };
        let max = if a.given {
            RETRY_TIME_MAX_GIVEN
        } else {
            RETRY_TIME_MAX_FOUND
        };
        a.next_try = now + (RETRY_TIME_MIN * 2_u32.pow(a.failures.min(10))).min(max);
        a.failures += 1;
        if !a.given && a.failures > FAILURES_MAX {
            self.known.remove(&addr);
        }
    }

    /// Whoever is there wants nothing of us and we nothing of it: it is called again when that may have changed.
    pub(super) fn rests(&mut self, now: Now, addr: SocketAddr) {
        self.busy.remove(&addr);
        self.connected.remove(&addr);
        if let Some(a) = self.known.get_mut(&addr) {
            a.next_try = now + RETRY_TIME_MAX_FOUND;
        }
    }

    /// Now is the moment to call.
    pub(super) fn at_once(&mut self, now: Now, addr: SocketAddr) {
        let addr = plain(addr);
        self.found(addr);
        if let Some(a) = self.known.get_mut(&addr) {
            a.next_try = a.next_try.min(now);
        }
    }

    /// Whoever is there lied: it is not called again.
    pub(super) fn bar(&mut self, addr: SocketAddr) {
        self.ourselves(addr);
    }

    /// The address turned out to be our own.
    pub(super) fn ourselves(&mut self, addr: SocketAddr) {
        self.busy.remove(&addr);
        self.connected.remove(&addr);
        self.known.remove(&addr);
        self.own.insert(addr);
    }
}

/// IPv4 inside IPv6 is IPv4, so that nobody is called at both.
fn plain(addr: SocketAddr) -> SocketAddr {
    SocketAddr::new(addr.ip().to_canonical(), addr.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addr(n: u16) -> SocketAddr {
        SocketAddr::from(([10, 0, 0, 1], n))
    }

    fn secs(n: u64) -> Now {
        Duration::from_secs(n)
    }

    #[test]
    fn failures_back_off_and_success_resets() {
        let mut dialer = Dialer::default();
        dialer.give(addr(1));
        assert_eq!(dialer.due(secs(0)), [addr(1)]);
        assert_eq!(dialer.due(secs(0)), [], "not twice at once");
        dialer.failed(secs(0), addr(1));
        assert_eq!(dialer.poll_timeout(), Some(secs(1)));
        assert_eq!(dialer.due(secs(1)), [addr(1)]);
        dialer.failed(secs(1), addr(1));
        assert_eq!(dialer.poll_timeout(), Some(secs(3)));
        assert_eq!(dialer.due(secs(3)), [addr(1)]);
        dialer.connected(addr(1));
        assert_eq!((dialer.due(secs(9)), dialer.poll_timeout()), (vec![], None));
        dialer.failed(secs(20), addr(1));
        assert_eq!(dialer.poll_timeout(), Some(secs(21)));
    }

    #[test]
    fn both_families_are_called_and_each_address_once() {
        let mut dialer = Dialer::default();
        dialer.give("[2001:db8::1]:7".parse().unwrap());
        dialer.found("[::ffff:10.0.0.1]:7".parse().unwrap());
        dialer.found(addr(7));
        let mut due = dialer.due(secs(0));
        due.sort();
        assert_eq!(due, [addr(7), "[2001:db8::1]:7".parse().unwrap()]);
    }

    #[test]
    fn the_given_are_called_first_then_the_worthy_and_the_redundant_much_later() {
        let mut dialer = Dialer::default();
        for n in 1..20 {
            dialer.found(addr(n));
        }
        dialer.give(addr(1));
        let due = dialer.due_by(secs(0), |addr| addr.port());
        assert_eq!(due, [1, 19, 18, 17, 16, 15, 14, 13].map(addr));
        dialer.connected(addr(19));
        dialer.rests(secs(5), addr(19));
        let due = dialer.due_by(secs(500), |addr| addr.port());
        assert_eq!(due, [addr(12)]);
        dialer.at_once(secs(500), addr(19));
        dialer.failed(secs(500), addr(12));
        assert_eq!(dialer.due_by(secs(500), |addr| addr.port()), [addr(19)]);
    }

    #[test]
    fn found_addresses_are_bounded_and_forgotten_given_ones_are_not() {
        let mut dialer = Dialer::default();
        dialer.give(addr(1));
        for n in 0..3000 {
            dialer.found(addr(n));
        }
        assert_eq!(dialer.known.len(), ADDRESSES_MAX);
        assert!(
            !dialer.known.contains_key(&addr(0)),
            "port 0 cannot be called"
        );
        let mut now = secs(0);
        for _ in 0..20 {
            now += secs(700);
            dialer.failed(now, addr(1));
            dialer.failed(now, addr(2));
        }
        assert!(dialer.known.contains_key(&addr(1)) && !dialer.known.contains_key(&addr(2)));
        dialer.ourselves(addr(1));
        dialer.found(addr(1));
        assert!(!dialer.known.contains_key(&addr(1)));
    }
}
