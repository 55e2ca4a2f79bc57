//! How many blocks are asked of a peer at once: enough for bandwidth times delay, without knowing either.

use std::time::Duration;

use crate::proto::blocks::BLOCK_BYTES;
use crate::proto::rate::Meter;

/// Time since the owner's start.
type Now = Duration;

/// Blocks asked of a fresh peer: 1 MiB, so that a small torrent needs no second round trip.
const START: u32 = 64;
/// Never fewer, however slow the peer: its disk and ours work best with some in the queue.
const MIN: u32 = 16;
/// Never more: 16 MiB is what a gigabit brings over 130 ms.
const MAX: u32 = 1024;
/// The queue holds this much time of the peer's rate: it covers any round trip with room for jitter.
const QUEUE_TIME: Duration = Duration::from_secs(2);
/// How often growing is judged.
const JUDGE_TIME: Duration = Duration::from_secs(1);

/// See the module documentation.
#[derive(Debug)]
pub(super) struct Window {
    target: u32,
    /// Grows by a block with every block: doubles every round trip.
    starting: bool,
    last_rate: u64,
    judge_at: Option<Now>,
    meter: Meter,
}

impl Window {
    pub(super) fn new() -> Self {
        Self {
            target: START,
            starting: true,
            last_rate: 0,
            judge_at: None,
            meter: Meter::default(),
        }
    }

    /// Bytes per second of late.
    pub(super) fn rate(&mut self, now: Now) -> u64 {
        self.meter.rate(now)
    }

    /// Bytes in all.
    pub(super) fn total(&self) -> u64 {
        self.meter.total()
    }

    /// A block has arrived.
    pub(super) fn received(&mut self, now: Now, bytes: u32) {
        self.meter.add(now, bytes.into());
        let judge_at = *self.judge_at.get_or_insert(now + JUDGE_TIME);
        if self.starting {
            self.target = (self.target + 1).min(MAX);
        }
        if now < judge_at {
            return;
        }
        self.judge_at = Some(now + JUDGE_TIME);
        let rate = self.meter.rate(now);
        // More in the queue brought nothing: the peer, or the way, is what limits.
        if rate < self.last_rate + self.last_rate / 8 {
            self.starting = false;
        }
        self.last_rate = rate;
        if !self.starting {
            let blocks = rate.saturating_mul(QUEUE_TIME.as_secs()) / u64::from(BLOCK_BYTES);
            self.target = u32::try_from(blocks).unwrap_or(MAX).clamp(MIN, MAX);
        }
    }

    /// The peer lets us wait: it gets one request at a time until something comes.
    pub(super) fn snubbed(&mut self) {
        self.target = 1;
        self.starting = false;
    }

    /// Something came after all.
    pub(super) fn recovered(&mut self) {
        self.target = self.target.max(MIN);
    }

    /// Blocks to have open at once.
    pub(super) fn target(&self) -> u32 {
        self.target
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Serves blocks at `rate` per second, `delay` after they were asked for; returns blocks per second in the last 5 of 15 s.
    fn run(rate: u64, delay_ms: u64) -> u64 {
        let mut window = Window::new();
        let spacing = Duration::from_nanos(1_000_000_000 / rate);
        let delay = Duration::from_millis(delay_ms);
        let mut open = std::collections::VecDeque::new();
        let (mut now, mut free_at, mut late) = (Duration::ZERO, Duration::ZERO, 0);
        while now < Duration::from_secs(15) {
            while open.len() < window.target() as usize {
                free_at = free_at.max(now + delay) + spacing;
                open.push_back(free_at);
            }
            now = open.pop_front().unwrap();
            window.received(now, BLOCK_BYTES);
            late += u64::from(now > Duration::from_secs(10));
        }
        late / 5
    }

    #[test]
    fn a_long_way_is_filled() {
        for (rate, delay) in [(600, 50), (600, 200), (3000, 200), (4000, 1), (20, 300)] {
            let got = run(rate, delay);
            assert!(
                got * 100 >= rate * 97,
                "{got} of {rate} blocks at {delay} ms"
            );
        }
    }

    #[test]
    fn a_slow_peer_is_not_asked_for_more_than_the_least() {
        let mut window = Window::new();
        for n in 0..100 {
            window.received(Duration::from_secs(n), BLOCK_BYTES);
        }
        assert_eq!(window.target(), MIN);
        window.snubbed();
        assert_eq!(window.target(), 1);
        window.recovered();
        assert_eq!(window.target(), MIN);
    }
}
