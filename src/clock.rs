//! Where time comes from. Code that decides anything is handed the time; only drivers ask for it here.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Time since a fixed moment of this process. Never goes back.
#[derive(Debug, Clone, Copy)]
pub struct Elapsed(Instant);

impl Elapsed {
    /// Starts counting.
    pub fn start() -> Self {
        Self(Instant::now())
    }

    pub fn now(&self) -> Duration {
        self.0.elapsed()
    }

    /// The moment `at`, for timers of the runtime.
    pub fn instant(&self, at: Duration) -> Instant {
        self.0 + at
    }
}

/// Nanoseconds since 1970 by the wall clock, 0 before it.
pub fn unix_nanos() -> u64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

/// Milliseconds since 1970 by the wall clock.
pub fn unix_millis() -> u64 {
    unix_nanos() / 1_000_000
}

/// Days since 1970 by the wall clock.
pub fn unix_days() -> u32 {
    u32::try_from(unix_millis() / 86_400_000).unwrap_or(u32::MAX)
}
