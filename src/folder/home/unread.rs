//! Directories that could not be read where they were expected, and when each is tried again. Mostly one was renamed, or
//! removed and made again, while the one around it was read, so that no event will tell of it any more.

use std::collections::HashMap;
use std::time::Duration;

use super::base::HomeId;

/// Before the first try; doubled each time.
pub(super) const SOON: Duration = Duration::from_millis(50);

/// Longest wait: one that must not be read is tried this often.
const WAIT_MAX: Duration = Duration::from_secs(320);

/// Directories remembered; of more than these the hourly scan takes care.
const DIRS_MAX: usize = 4096;

/// See the module documentation.
#[derive(Debug, Default)]
pub(super) struct Unread(HashMap<HomeId, Duration>);

impl Unread {
    /// It could not be read. Returns how long it is left alone; none if there are too many.
    pub(super) fn failed(&mut self, dir: HomeId) -> Option<Duration> {
        if self.0.len() >= DIRS_MAX && !self.0.contains_key(&dir) {
            return None;
        }
        let next = self.0.entry(dir).or_insert(SOON);
        let wait = *next;
        *next = (wait * 2).min(WAIT_MAX);
        Some(wait)
    }

    /// It was read to its end, or is gone.
    pub(super) fn forget(&mut self, dir: HomeId) {
        self.0.remove(&dir);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_read_is_tried_ever_less_often_until_it_could() {
        let mut unread = Unread::default();
        let waits: Vec<Duration> = (0..16).filter_map(|_| unread.failed(HomeId(1))).collect();
        assert_eq!(waits[..3], [SOON, SOON * 2, SOON * 4]);
        assert_eq!(waits[14..], [WAIT_MAX, WAIT_MAX]);
        unread.forget(HomeId(1));
        assert_eq!(unread.failed(HomeId(1)), Some(SOON));
        for dir in 2..=DIRS_MAX as u64 {
            assert_eq!(unread.failed(HomeId(dir)), Some(SOON));
        }
        assert_eq!(unread.failed(HomeId(0)), None);
        assert_eq!(unread.failed(HomeId(1)), Some(SOON * 2));
    }
}
