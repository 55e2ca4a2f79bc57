//! How a peer behaves: one figure that decides whom to call first, whom to drop when there are too many, and whom to serve among
//! those who give the same.

use std::collections::BTreeMap;
use std::net::SocketAddr;

/// Addresses remembered; beyond, the worst are forgotten.
const REMEMBERED_MAX: usize = 2048;
/// A hash failure costs what a rate of 16 MiB/s brings: nobody is fast enough to make up for lies.
const FAILURE_COST: i64 = 24 << 10;
/// A time in which it let us wait.
const SNUB_COST: i64 = 4 << 10;
/// A call that it did not take, or a connection that brought nothing.
const IDLE_COST: i64 = 512;

/// What is known of one peer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Score {
    /// The best rate at which it gave, in bytes per second.
    pub speed: u64,
    /// Times it let us wait.
    pub snubs: u32,
    /// Pieces with bytes of it that had the wrong hash.
    pub failures: u32,
    /// Connections, and calls that were not taken, which brought nothing.
    pub idle: u32,
}

impl Score {
    /// The higher the better; 0 for somebody new. Twice the rate is not twice the worth.
    pub fn value(&self) -> i64 {
        let speed = i64::from((self.speed >> 10).checked_ilog2().map_or(0, |log| log + 1)) << 10;
        let cost = |times: u32, each: i64| i64::from(times.min(64)) * each;
        speed
            - cost(self.failures, FAILURE_COST)
            - cost(self.snubs, SNUB_COST)
            - cost(self.idle, IDLE_COST)
    }

    /// What is known, with what a connection has shown.
    fn with(self, shown: Self) -> Self {
        Self {
            speed: self.speed.max(shown.speed),
            snubs: self.snubs.saturating_add(shown.snubs),
            failures: self.failures.saturating_add(shown.failures),
            idle: match shown.speed {
                0 => self.idle.saturating_add(shown.idle),
                _ => 0,
            },
        }
    }
}

/// What is known of addresses, over connections.
#[derive(Debug, Default)]
pub(super) struct Scores(BTreeMap<SocketAddr, Score>);

impl Scores {
    pub(super) fn of(&self, addr: &SocketAddr) -> Score {
        self.0.get(addr).copied().unwrap_or_default()
    }

    /// A connection has ended, after it has shown this; or a call was not taken.
    pub(super) fn note(&mut self, addr: SocketAddr, shown: Score) {
        let score = self.of(&addr).with(shown);
        self.0.insert(addr, score);
        if self.0.len() > REMEMBERED_MAX {
            // Those with the least to say: neither good nor bad enough to matter.
            let dull = |(_, score): &(&SocketAddr, &Score)| score.value().unsigned_abs();
            if let Some(addr) = self.0.iter().min_by_key(dull).map(|(addr, _)| *addr) {
                self.0.remove(&addr);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fast_come_before_the_new_and_those_before_the_bad() {
        let speed = |speed| Score {
            speed,
            ..Score::default()
        };
        let fast = speed(5 << 20);
        let order = [
            Score {
                failures: 2,
                ..fast
            },
            Score {
                failures: 1,
                ..fast
            },
            Score { snubs: 4, ..fast },
            Score {
                idle: 3,
                ..Score::default()
            },
            Score::default(),
            speed(3 << 10),
            Score { snubs: 1, ..fast },
            fast,
            speed(u64::MAX),
        ];
        let values = order.map(|score| score.value());
        assert!(values.is_sorted(), "{values:?}");
        let worst = Score {
            speed: 0,
            snubs: u32::MAX,
            failures: u32::MAX,
            idle: u32::MAX,
        };
        assert!(worst.value() < values[0]);
    }

    #[test]
    fn what_was_shown_adds_up_and_is_bounded() {
        let mut scores = Scores::default();
        let addr = |n: u16| SocketAddr::from(([10, 0, (n >> 8) as u8, n as u8], 1));
        let idle = Score {
            idle: 1,
            ..Score::default()
        };
        scores.note(addr(1), idle);
        scores.note(addr(1), idle);
        scores.note(addr(1), Score::default());
        assert_eq!(scores.of(&addr(1)).idle, 2);
        let shown = Score {
            speed: 1000,
            snubs: 1,
            failures: 0,
            idle: 0,
        };
        scores.note(addr(1), shown);
        scores.note(
            addr(1),
            Score {
                speed: 500,
                ..shown
            },
        );
        assert_eq!(
            scores.of(&addr(1)),
            Score {
                speed: 1000,
                snubs: 2,
                failures: 0,
                idle: 0
            }
        );
        let liar = Score {
            failures: 1,
            ..Score::default()
        };
        scores.note(addr(2), liar);
        for n in 3..3000 {
            scores.note(addr(n), Score::default());
        }
        assert_eq!(scores.0.len(), REMEMBERED_MAX);
        assert_eq!(scores.of(&addr(2)).failures, 1, "what matters stays");
    }
}
