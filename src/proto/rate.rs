//! Bytes per second: what was measured, and what is allowed.

use std::time::Duration;

/// Time since the owner's start.
type Now = Duration;

/// Length of one slot of a [`Meter`].
const SLOT: Duration = Duration::from_millis(250);
/// Slots a [`Meter`] looks back over: 3 s smooth over bursts and still follow a change.
const SLOTS: usize = 12;

/// Measures a rate over the last three seconds.
#[derive(Debug, Clone, Default)]
pub struct Meter {
    slots: [u64; SLOTS],
    /// Number of the newest slot since time zero.
    newest: u64,
    /// When the first byte came, so that a young meter does not divide by time in which nothing could come.
    since: Option<Now>,
    total: u64,
}

impl Meter {
    /// Counts bytes.
    pub fn add(&mut self, now: Now, bytes: u64) {
        self.advance(now);
        self.since.get_or_insert(now);
        self.total += bytes;
        if let Some(slot) = self.slots.get_mut(self.newest as usize % SLOTS) {
            *slot += bytes;
        }
    }

    /// Bytes per second of late.
    pub fn rate(&mut self, now: Now) -> u64 {
        self.advance(now);
        let Some(since) = self.since else { return 0 };
        let window = SLOT * (SLOTS as u32 - 1)
            + Duration::from_nanos(now.as_nanos() as u64 % SLOT.as_nanos() as u64);
        let time = window.min(now.saturating_sub(since)).max(SLOT);
        let sum: u64 = self.slots.iter().sum();
        (u128::from(sum) * 1_000_000_000 / time.as_nanos()) as u64
    }

    /// Bytes counted in all.
    pub fn total(&self) -> u64 {
        self.total
    }

    fn advance(&mut self, now: Now) {
        let slot = (now.as_nanos() / SLOT.as_nanos()) as u64;
        let passed = slot.saturating_sub(self.newest);
        for n in 0..passed.min(SLOTS as u64) {
            if let Some(old) = self.slots.get_mut((self.newest + 1 + n) as usize % SLOTS) {
                *old = 0;
            }
        }
        self.newest = self.newest.max(slot);
    }
}

/// How much a [`Bucket`] may save up, in time at its rate.
const BURST: Duration = Duration::from_millis(250);
/// A bucket holds at least this, or a block would never fit.
const BURST_BYTES_MIN: u64 = 64 << 10;

/// A limit in bytes per second. Bytes are taken first and waited for afterwards, so that one of any size passes.
#[derive(Debug, Clone)]
pub struct Bucket {
    /// `None`: without limit.
    limit: Option<u64>,
    /// Bytes that may still be taken; negative while there is a debt.
    level: i64,
    filled_at: Now,
}

impl Bucket {
    /// `limit` in bytes per second.
    pub fn new(now: Now, limit: Option<u64>) -> Self {
        let mut bucket = Self {
            limit: limit.map(|limit| limit.max(1)),
            level: 0,
            filled_at: now,
        };
        bucket.level = bucket.level_max();
        bucket
    }

    /// Changes the limit; what was saved up or owed stays.
    pub fn set_limit(&mut self, now: Now, limit: Option<u64>) {
        self.fill(now);
        self.limit = limit.map(|limit| limit.max(1));
        self.level = self.level.min(self.level_max());
    }

    /// Takes `bytes`, which may leave a debt.
    pub fn take(&mut self, now: Now, bytes: u64) {
        self.fill(now);
        if self.limit.is_some() {
            self.level = self.level.saturating_sub_unsigned(bytes);
        }
    }

    /// When something may be taken: `now` if there is no debt.
    pub fn ready_at(&mut self, now: Now) -> Now {
        self.fill(now);
        match (self.limit, self.level) {
            (Some(limit), level @ ..0) => {
                let nanos = u128::from(level.unsigned_abs()) * 1_000_000_000 / u128::from(limit);
                now + Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
                    + Duration::from_nanos(1)
            }
            _ => now,
        }
    }

    fn level_max(&self) -> i64 {
        let burst = self.limit.unwrap_or(0) / (1000 / BURST.as_millis() as u64);
        i64::try_from(burst.max(BURST_BYTES_MIN)).unwrap_or(i64::MAX)
    }

    fn fill(&mut self, now: Now) {
        let Some(limit) = self.limit else { return };
        let passed = now.saturating_sub(self.filled_at);
        let fresh = passed.as_nanos() * u128::from(limit) / 1_000_000_000;
        // Time too short to be worth a byte is kept for the next call.
        if fresh > 0 {
            self.filled_at = now;
            let fresh = i64::try_from(fresh).unwrap_or(i64::MAX);
            self.level = self.level.saturating_add(fresh).min(self.level_max());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(n: u64) -> Now {
        Duration::from_millis(n)
    }

    #[test]
    fn a_steady_stream_has_its_rate_and_a_silent_one_none() {
        let mut meter = Meter::default();
        assert_eq!(meter.rate(ms(5)), 0);
        for n in 0..1000 {
            meter.add(ms(100_000 + n * 10), 1000);
        }
        let rate = meter.rate(ms(109_990));
        assert!((98_000..=102_000).contains(&rate), "{rate}");
        assert_eq!(meter.rate(ms(120_000)), 0);
        assert_eq!(meter.total(), 1_000_000);
    }

    #[test]
    fn a_young_meter_does_not_wait_for_three_seconds() {
        let mut meter = Meter::default();
        for n in 0..50 {
            meter.add(ms(1000 + n * 10), 1000);
        }
        let rate = meter.rate(ms(1500));
        assert!((95_000..=105_000).contains(&rate), "{rate}");
    }

    #[test]
    fn a_bucket_lets_its_limit_through() {
        for limit in [10_000, 1_000_000, 50_000_000] {
            let mut bucket = Bucket::new(ms(0), Some(limit));
            let (mut now, mut taken) = (ms(0), 0);
            while now < ms(20_000) {
                bucket.take(now, 16_384);
                taken += 16_384;
                now = bucket.ready_at(now);
            }
            let expected = limit * 20;
            let bound = expected + limit / 4 + 100_000;
            assert!((expected..bound).contains(&taken), "{taken} at {limit}");
        }
        let mut free = Bucket::new(ms(0), None);
        free.take(ms(0), u64::MAX);
        assert_eq!(free.ready_at(ms(0)), ms(0));
        free.set_limit(ms(0), Some(1000));
        free.take(ms(0), 10_000_000);
        assert!(free.ready_at(ms(0)) > ms(1_000_000));
    }
}
