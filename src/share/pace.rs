//! When to publish: soon after things go quiet, and at a slowing pace while they do not.
//!
//! A single save is published [`QUIET_TIME`] after its last change. Under a stream of changes the first publication comes
//! after 250 ms, the next after 1 s, then one every 2 s. A file that stays open for writing counts only every
//! [`OPEN_FILE_TIME`].

use std::time::Duration;

/// Time since the owner's start.
pub type Now = Duration;

/// Nothing changed for this long: a good moment for a consistent cut.
const QUIET_TIME: Duration = Duration::from_millis(20);
/// Longest wait under a stream of changes, for the first, second and every later publication in a row.
const STREAM_TIMES: [Duration; 3] = [
    Duration::from_millis(250),
    Duration::from_secs(1),
    Duration::from_secs(2),
];
/// A file open for writing is published at most this often.
const OPEN_FILE_TIME: Duration = Duration::from_secs(5);

/// See the module documentation.
#[derive(Debug, Default)]
pub struct Pace {
    /// First and last change since the last publication.
    changed: Option<(Now, Now)>,
    /// Since when a file is being written that nobody has closed.
    writing: Option<Now>,
    /// How many publications in a row were not preceded by quiet.
    step: usize,
}

impl Pace {
    /// Something complete changed: a file was closed or synced, a name came or went.
    pub fn changed(&mut self, now: Now) {
        let first = self.changed.map_or(now, |(first, _)| first);
        self.changed = Some((first, now));
    }

    /// A file that is still open was written to.
    pub fn writing(&mut self, now: Now) {
        self.writing.get_or_insert(now);
    }

    /// When to publish next, if there is anything.
    pub fn due(&self) -> Option<Now> {
        let changed = self
            .changed
            .map(|(first, last)| (last + QUIET_TIME).min(first + STREAM_TIMES[self.step]));
        let writing = self.writing.map(|since| since + OPEN_FILE_TIME);
        changed.into_iter().chain(writing).min()
    }

    /// A publication begins now and takes everything up to now with it.
    pub fn published(&mut self, now: Now) {
        if let Some((_, last)) = self.changed.take() {
            let quiet = now >= last + QUIET_TIME;
            self.step = if quiet {
                0
            } else {
                (self.step + 1).min(STREAM_TIMES.len() - 1)
            };
        }
        if self
            .writing
            .is_some_and(|since| since + OPEN_FILE_TIME <= now)
        {
            self.writing = None;
        }
    }

    /// The publication failed: try again in a moment.
    pub fn failed(&mut self, now: Now) {
        self.step = STREAM_TIMES.len() - 1;
        self.changed(now + STREAM_TIMES[self.step]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(n: u64) -> Now {
        Duration::from_millis(n)
    }

    #[test]
    fn one_save_goes_out_after_20_ms() {
        let mut pace = Pace::default();
        assert_eq!(pace.due(), None);
        pace.changed(ms(100));
        pace.changed(ms(105));
        assert_eq!(pace.due(), Some(ms(125)));
        pace.published(ms(125));
        assert_eq!(pace.due(), None);
    }

    #[test]
    fn a_stream_slows_down_and_quiet_makes_it_quick_again() {
        let mut pace = Pace::default();
        let mut at = Vec::new();
        for t in (0..8000).step_by(10) {
            pace.changed(ms(t));
            if pace.due().is_some_and(|due| due <= ms(t)) {
                pace.published(ms(t));
                at.push(t);
            }
        }
        assert_eq!(at, [250, 1260, 3270, 5280, 7290]);
        assert_eq!(pace.due(), Some(ms(7990 + 20)));
        pace.published(ms(8010));
        pace.changed(ms(9000));
        assert_eq!(pace.due(), Some(ms(9020)));
        pace.changed(ms(9015));
        assert_eq!(pace.due(), Some(ms(9035)));
    }

    #[test]
    fn a_file_kept_open_goes_out_every_5_s() {
        let mut pace = Pace::default();
        pace.writing(ms(0));
        pace.writing(ms(3000));
        assert_eq!(pace.due(), Some(ms(5000)));
        pace.published(ms(5000));
        assert_eq!(pace.due(), None);
    }
}
