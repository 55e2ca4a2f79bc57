//! How fast connections may receive and send: what is left of the limits of the connection, its torrent and all torrents.
//!
//! A connection asks before it takes a buffer or begins a block, and says afterwards how much it was. All limits are buckets on
//! one clock; the strictest decides. Nothing is queued here: who may not go on sleeps until [`Limits::ready_at`].

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::clock::Elapsed;
use crate::proto::rate::Bucket;

/// What may pass at once, in time at the limit, so that connections under one limit take turns.
const TURN: Duration = Duration::from_millis(50);
/// The least that may pass at once: a block.
const TURN_BYTES_MIN: u64 = 16 << 10;
/// Who went last leaves the next turn to the others for this long: timers end a millisecond apart, and the same one would
/// be first every time.
const YIELD: Duration = Duration::from_millis(5);
/// A sleeper looks again at least this often: the limit may have been raised meanwhile.
const SLEEP_MAX: Duration = Duration::from_millis(500);

/// Bytes per second each way; `None`: without limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Rates {
    pub down: Option<u64>,
    pub up: Option<u64>,
}

/// A way bytes go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    Down,
    Up,
}

/// The limits of one connection, one torrent, or everything.
#[derive(Debug)]
pub struct Level {
    clock: Elapsed,
    /// Most levels have no limit, and then nothing is locked.
    limited: [AtomicBool; 2],
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    rates: Rates,
    down: Bucket,
    up: Bucket,
}

impl Level {
    /// `clock` is that of all levels it is used together with.
    pub fn new(clock: Elapsed, rates: Rates) -> Arc<Self> {
        let now = clock.now();
        Arc::new(Self {
            clock,
            limited: [rates.down, rates.up].map(|rate| AtomicBool::new(rate.is_some())),
            inner: Mutex::new(Inner {
                rates,
                down: Bucket::new(now, rates.down),
                up: Bucket::new(now, rates.up),
            }),
        })
    }

    /// From now on.
    pub fn set(&self, rates: Rates) {
        self.set_at(self.clock.now(), rates);
    }

    fn set_at(&self, now: Duration, rates: Rates) {
        let mut inner = self.inner.lock();
        if inner.rates != rates {
            inner.rates = rates;
            inner.down.set_limit(now, rates.down);
            inner.up.set_limit(now, rates.up);
            for (limited, rate) in self.limited.iter().zip([rates.down, rates.up]) {
                limited.store(rate.is_some(), Ordering::Relaxed);
            }
        }
    }

    /// The clock of this level.
    pub(super) fn clock(&self) -> Elapsed {
        self.clock
    }

    /// `None` without a limit.
    fn with<T>(&self, way: Way, act: impl FnOnce(&mut Bucket, Option<u64>) -> T) -> Option<T> {
        let [down, up] = &self.limited;
        let limited = if way == Way::Down { down } else { up };
        limited.load(Ordering::Relaxed).then(|| {
            let mut inner = self.inner.lock();
            let rates = inner.rates;
            match way {
                Way::Down => act(&mut inner.down, rates.down),
                Way::Up => act(&mut inner.up, rates.up),
            }
        })
    }

    /// More has passed than was allowed so far: whoever is under this limit waits for us, not for a peer.
    pub(super) fn is_owing(&self, way: Way) -> bool {
        let now = self.clock.now();
        self.with(way, |bucket, _| bucket.ready_at(now) > now)
            .unwrap_or(false)
    }
}

/// See the module documentation.
#[derive(Debug, Clone)]
pub(super) struct Limits {
    levels: [Arc<Level>; 3],
    /// Until when others go first, by the clock of the levels, down and up.
    yields: [Duration; 2],
}

impl Limits {
    /// Of a connection, its torrent, and everything.
    pub(super) fn new(levels: [Arc<Level>; 3]) -> Self {
        let yields = [Duration::ZERO; 2];
        Self { levels, yields }
    }

    /// When something may pass, or when to ask again; `None`: now.
    pub(super) fn ready_at(&self, way: Way) -> Option<Instant> {
        let clock = self.clock();
        let wait = self.wait_at(clock.now(), way)?;
        Some(clock.instant(clock.now() + wait))
    }

    /// How long it is at `now` until something may pass, or until we ask again; `None`: it may.
    fn wait_at(&self, now: Duration, way: Way) -> Option<Duration> {
        let turn = self.yields[way as usize].saturating_sub(now);
        let wait = self.owed_at(now, way)?.max(turn);
        (!wait.is_zero()).then(|| wait.min(SLEEP_MAX))
    }

    /// How long the strictest limit makes us wait; `None` without limits.
    fn owed_at(&self, now: Duration, way: Way) -> Option<Duration> {
        let waits = self.levels.iter().filter_map(|level| {
            level.with(way, |bucket, _| bucket.ready_at(now).saturating_sub(now))
        });
        waits.max()
    }

    fn clock(&self) -> Elapsed {
        let [connection, _, _] = &self.levels;
        connection.clock
    }

    /// How much may pass at once.
    pub(super) fn turn_bytes(&self, way: Way) -> usize {
        let limits = self
            .levels
            .iter()
            .filter_map(|level| level.with(way, |_, limit| limit).flatten());
        let turn = limits.min().map_or(u64::MAX, |limit| {
            (limit / (1000 / TURN.as_millis() as u64)).max(TURN_BYTES_MIN)
        });
        usize::try_from(turn).unwrap_or(usize::MAX)
    }

    /// So much has passed.
    pub(super) fn passed(&mut self, way: Way, bytes: u64) {
        self.passed_at(self.clock().now(), way, bytes);
    }

    fn passed_at(&mut self, now: Duration, way: Way, bytes: u64) {
        for level in &self.levels {
            level.with(way, |bucket, _| bucket.take(now, bytes));
        }
        if let Some(wait) = self.owed_at(now, way).filter(|wait| !wait.is_zero()) {
            self.yields[way as usize] = now + wait.min(SLEEP_MAX) + YIELD;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits(rates: [Rates; 3]) -> Limits {
        let clock = Elapsed::start();
        Limits::new(rates.map(|rates| Level::new(clock, rates)))
    }

    fn down(limit: u64) -> Rates {
        Rates {
            down: Some(limit),
            up: None,
        }
    }

    #[test]
    fn the_strictest_limit_decides_and_each_way_is_its_own() {
        let mut limits = limits([down(1_000_000), Rates::default(), down(100_000)]);
        assert_eq!(limits.ready_at(Way::Down), None);
        assert_eq!(limits.turn_bytes(Way::Down), 16 << 10);
        assert_eq!(limits.turn_bytes(Way::Up), usize::MAX);
        limits.passed(Way::Down, 10_000_000);
        assert!(limits.ready_at(Way::Down).is_some());
        assert_eq!(limits.ready_at(Way::Up), None);
        assert!(limits.levels[0].is_owing(Way::Down) && limits.levels[2].is_owing(Way::Down));
        assert!(!limits.levels[1].is_owing(Way::Down) && !limits.levels[0].is_owing(Way::Up));
    }

    #[test]
    fn who_went_last_lets_others_go_first() {
        let mut one = limits([Rates::default(), Rates::default(), down(1_000_000)]);
        let mut other = Limits::new(one.levels.clone());
        one.passed(Way::Down, 300_000);
        let (ours, theirs) = (one.ready_at(Way::Down), other.ready_at(Way::Down));
        assert!(ours.unwrap() >= theirs.unwrap() + YIELD / 2);
        other.passed(Way::Down, 100_000);
        let (ours, theirs) = (one.ready_at(Way::Down), other.ready_at(Way::Down));
        assert!(theirs.unwrap() >= ours.unwrap() + YIELD / 2);
    }

    /// Connections that always have something to pass, on a clock that is handed to them. Each wakes up to `late` after it
    /// wanted to, as on a loaded machine.
    struct Line {
        now: Duration,
        late: Duration,
        random: u64,
        /// With when it wakes, and what has passed.
        connections: Vec<(Limits, Duration, u64)>,
    }

    impl Line {
        fn new(seed: u64, late_ms: u64, connections: Vec<Limits>) -> Self {
            let idle = |limits| (limits, Duration::ZERO, 0);
            Self {
                now: Duration::ZERO,
                late: Duration::from_millis(late_ms),
                random: seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1,
                connections: connections.into_iter().map(idle).collect(),
            }
        }

        fn lateness(&mut self) -> Duration {
            self.random ^= self.random << 13;
            self.random ^= self.random >> 7;
            self.random ^= self.random << 17;
            self.late * u32::try_from(self.random % 1000).unwrap() / 1000
        }

        /// Goes on for so long; what has passed of each connection meanwhile.
        fn run(&mut self, way: Way, seconds: u64) -> Vec<u64> {
            let before: Vec<u64> = self.connections.iter().map(|c| c.2).collect();
            let end = self.now + Duration::from_secs(seconds);
            loop {
                let next = (0..self.connections.len()).min_by_key(|n| self.connections[*n].1);
                let next = next.unwrap();
                let late = self.lateness();
                let (limits, wakes, passed) = &mut self.connections[next];
                if *wakes > end {
                    break;
                }
                self.now = self.now.max(*wakes);
                if limits.wait_at(self.now, way).is_none() {
                    // What a socket has at a time.
                    let bytes = limits.turn_bytes(way).min(256 << 10) as u64;
                    limits.passed_at(self.now, way, bytes);
                    *passed += bytes;
                }
                let wait = limits.wait_at(self.now, way);
                *wakes = self.now + wait.unwrap_or(Duration::from_millis(1)) + late;
            }
            self.now = end;
            let passed = self.connections.iter().zip(before);
            passed.map(|(c, before)| c.2 - before).collect()
        }
    }

    fn is_near(got: u64, wanted: u64, what: &str) {
        let share = got as f64 / wanted as f64;
        assert!((0.9..1.1).contains(&share), "{what}: {got} of {wanted}");
    }

    const MB: u64 = 1_000_000;

    #[test]
    fn a_torrent_keeps_to_its_limit_and_to_a_new_one() {
        for seed in 0..8 {
            for (way, connections, late) in
                [(Way::Down, 1, 0), (Way::Down, 7, 20), (Way::Up, 40, 5)]
            {
                let clock = Elapsed::start();
                let both = |rate| Rates {
                    down: Some(rate),
                    up: Some(rate),
                };
                let torrent = Level::new(clock, both(MB));
                let all = Level::new(clock, Rates::default());
                let limits = |_| {
                    let own = Level::new(clock, Rates::default());
                    Limits::new([own, Arc::clone(&torrent), Arc::clone(&all)])
                };
                let mut line = Line::new(seed, late, (0..connections).map(limits).collect());
                // What was saved up in idle time goes first.
                line.run(way, 2);
                is_near(line.run(way, 10).iter().sum(), 10 * MB, "at first");
                torrent.set_at(line.now, both(3 * MB));
                line.run(way, 1);
                is_near(line.run(way, 10).iter().sum(), 30 * MB, "a higher one");
                torrent.set_at(line.now, both(MB / 4));
                line.run(way, 1);
                is_near(line.run(way, 20).iter().sum(), 5 * MB, "a lower one");
                torrent.set_at(line.now, Rates::default());
                line.run(way, 1);
                assert!(line.run(way, 2).iter().sum::<u64>() > 40 * MB, "none");
            }
        }
    }

    #[test]
    fn each_connection_keeps_to_its_own_limit() {
        for seed in 0..8 {
            let clock = Elapsed::start();
            let free = Level::new(clock, Rates::default());
            let limits = |n: u64| {
                let own = Level::new(clock, down(n * MB / 2));
                Limits::new([own, Arc::clone(&free), Arc::clone(&free)])
            };
            let mut line = Line::new(seed, 20, (1..5).map(limits).collect());
            line.run(Way::Down, 2);
            for (n, passed) in (1..).zip(line.run(Way::Down, 10)) {
                is_near(passed, n * 5 * MB, "one of them");
            }
        }
    }

    #[test]
    fn torrents_share_what_all_may_pass_and_none_gets_nothing() {
        for seed in 0..8 {
            let clock = Elapsed::start();
            let all = Level::new(clock, down(MB));
            let free = || Level::new(clock, Rates::default());
            let limits = |_| Limits::new([free(), free(), Arc::clone(&all)]);
            let mut line = Line::new(seed, 3, (0..4).map(limits).collect());
            line.run(Way::Down, 2);
            let passed = line.run(Way::Down, 20);
            is_near(passed.iter().sum(), 20 * MB, "all of them");
            for passed in passed {
                assert!(passed > 2 * MB, "one of four got {passed} of {}", 20 * MB);
            }
        }
    }

    #[test]
    fn nobody_sleeps_through_a_limit_that_was_lifted() {
        let mut limits = limits([down(1), Rates::default(), Rates::default()]);
        limits.passed(Way::Down, 1 << 40);
        let until = limits.ready_at(Way::Down).unwrap();
        assert!(until <= Instant::now() + SLEEP_MAX);
        limits.levels[0].set(Rates::default());
        assert_eq!(limits.ready_at(Way::Down), None);
        limits.passed(Way::Down, 1 << 40);
        assert_eq!(limits.ready_at(Way::Down), None);
    }
}
