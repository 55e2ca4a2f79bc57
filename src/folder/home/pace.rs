//! When what the folder shows is to be written into its home: soon after it was last changed, at the latest some time
//! after the first change of a stream, and again when something was left undone.

use std::collections::BTreeSet;
use std::time::Duration;

use super::ledger::Extent;

/// After the last change: a merge or a commit is often followed by another.
const QUIET: Duration = Duration::from_millis(50);

/// The same after a change in so few directories that it is more likely one edit than a part of many.
const QUIET_SMALL: Duration = Duration::from_millis(10);
const SMALL_DIRS: usize = 2;

/// Longest a stream of changes puts it off.
const STREAM: Duration = Duration::from_secs(2);

/// The same two while the directory is mounted over itself: nobody looks at the plain files then, and a file that is
/// being written would be copied again and again.
const QUIET_MOUNTED: Duration = Duration::from_secs(2);
const STREAM_MOUNTED: Duration = Duration::from_secs(60);

/// Before what was left undone is tried again; doubled each time.
const RETRY_MIN: Duration = Duration::from_millis(200);
const RETRY_MAX: Duration = Duration::from_secs(60);

/// Between two tries while content comes.
const ARRIVED_AFTER: Duration = Duration::from_millis(20);

/// Before it is looked whether a full disk has room again.
const ROOM_EVERY: Duration = Duration::from_secs(20);

/// Up to this backoff a scan is followed by a try at once.
const HURRY_MAX: Duration = Duration::from_secs(2);

/// What a try came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    Done,
    /// Something was written, and something is left.
    Some,
    /// Nothing could be written of what is left.
    Stuck,
    /// What is left waits for room on the disk, which nothing here announces.
    NoRoom,
}

/// The timer.
#[derive(Debug)]
pub(super) struct Pace {
    /// What is to be written.
    extent: Extent,
    /// The first and the last change of it.
    changed: Option<(Duration, Duration)>,
    retry: Option<Duration>,
    backoff: Duration,
    /// The last try that left something.
    tried: Duration,
}

impl Pace {
    /// At `now`, what happened before is not known to be written.
    pub(super) fn new(now: Duration) -> Self {
        Self {
            extent: Extent::Everything,
            changed: Some((now, now)),
            retry: None,
            backoff: RETRY_MIN,
            tried: now,
        }
    }

    /// This changed in the folder since it was last asked.
    pub(super) fn handle_changed(&mut self, now: Duration, extent: Extent) {
        if !extent.is_empty() {
            self.extent.add(extent);
            let (first, _) = self.changed.unwrap_or((now, now));
            self.changed = Some((first, now));
        }
    }

    /// A scan found out what is there. What is left after several of them will not be helped by one more.
    pub(super) fn handle_scanned(&mut self, now: Duration) {
        if let Some(retry) = &mut self.retry
            && self.backoff <= HURRY_MAX
        {
            *retry = now;
        }
    }

    /// Content has come that may be what was missing.
    pub(super) fn handle_arrived(&mut self, now: Duration) {
        if let Some(retry) = &mut self.retry {
            *retry = (*retry).min(now.max(self.tried + ARRIVED_AFTER));
        }
    }

    /// When it is time to write something.
    pub(super) fn next(&self, is_mounted: bool) -> Option<Duration> {
        let (quiet, stream) = match is_mounted {
            true => (QUIET_MOUNTED, STREAM_MOUNTED),
            false => match &self.extent {
                Extent::Dirs(dirs) if dirs.len() <= SMALL_DIRS => (QUIET_SMALL, STREAM),
                _ => (QUIET, STREAM),
            },
        };
        let settled = self
            .changed
            .map(|(first, last)| (last + quiet).min(first + stream));
        [settled, self.retry].into_iter().flatten().min()
    }

    /// What it is time to write. What changes from here on is for the next time.
    pub(super) fn take(&mut self, now: Duration, is_mounted: bool) -> Option<Extent> {
        if self.next(is_mounted).is_none_or(|due| due > now) {
            return None;
        }
        self.changed = None;
        self.retry = None;
        let nothing = Extent::Dirs(BTreeSet::new());
        Some(std::mem::replace(&mut self.extent, nothing))
    }

    /// `extent` was tried at `now`. What moves on is soon tried again: content that arrives is not waited for long.
    pub(super) fn handle_left(&mut self, now: Duration, outcome: Outcome, extent: Extent) {
        if matches!(outcome, Outcome::Done | Outcome::Some) {
            self.backoff = RETRY_MIN;
        }
        if outcome == Outcome::Done {
            return;
        }
        self.extent.add(extent);
        self.tried = now;
        if outcome == Outcome::NoRoom {
            self.backoff = ROOM_EVERY;
            self.retry = Some(now + ROOM_EVERY);
            return;
        }
        self.retry = Some(now + self.backoff);
        self.backoff = (self.backoff * 2).min(RETRY_MAX);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::folder::state::Fid;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    fn dir(number: u8) -> Extent {
        Extent::Dirs(BTreeSet::from([Fid([number; 8])]))
    }

    fn rested() -> Pace {
        let mut pace = Pace::new(ms(0));
        assert_eq!(pace.take(ms(49), false), None);
        assert_eq!(pace.take(ms(50), false), Some(Extent::Everything));
        pace.handle_left(ms(50), Outcome::Done, Extent::Everything);
        pace
    }

    #[test]
    fn a_change_is_written_when_it_was_quiet_and_a_stream_is_cut() {
        let mut pace = rested();
        pace.handle_changed(ms(100), dir(1));
        pace.handle_changed(ms(105), Extent::Dirs(BTreeSet::new()));
        assert_eq!(pace.take(ms(109), false), None);
        assert_eq!(pace.take(ms(110), false), Some(dir(1)));
        pace.handle_changed(ms(200), Extent::Dirs((1..4).map(|n| Fid([n; 8])).collect()));
        assert_eq!(pace.take(ms(249), false), None);
        assert!(pace.take(ms(250), false).is_some());
        for at in 0..200 {
            pace.handle_changed(ms(1000 + at * 9), dir(2));
            assert_eq!(pace.take(ms(1000 + at * 9), false), None, "{at}");
        }
        for at in 0..30 {
            pace.handle_changed(ms(2800 + at * 6), dir(2));
        }
        pace.handle_changed(ms(3000), dir(2));
        assert_eq!(pace.take(ms(3000), false), Some(dir(2)));
        assert_eq!(pace.take(ms(9000), false), None);
    }

    #[test]
    fn what_was_left_is_tried_again_later_and_later_and_after_a_scan() {
        let mut pace = rested();
        pace.handle_left(ms(100), Outcome::Stuck, dir(1));
        assert_eq!(pace.take(ms(299), false), None);
        assert_eq!(pace.take(ms(300), false), Some(dir(1)));
        pace.handle_left(ms(300), Outcome::Stuck, dir(1));
        assert_eq!(pace.take(ms(699), false), None);
        pace.handle_scanned(ms(650));
        assert_eq!(pace.take(ms(650), false), Some(dir(1)));
        for at in 0..10 {
            pace.handle_left(ms(650), Outcome::Stuck, Extent::Everything);
            pace.handle_scanned(ms(700));
            assert_eq!(pace.take(ms(700), false).is_some(), at < 1, "{at}");
        }
        pace.handle_left(ms(800), Outcome::Done, Extent::Everything);
    }

    #[test]
    fn under_a_mount_files_are_left_alone_longer() {
        let mut pace = rested();
        pace.handle_changed(ms(100), dir(1));
        assert_eq!(pace.take(ms(2099), true), None);
        assert_eq!(pace.take(ms(2100), true), Some(dir(1)));
        for at in 0..60 {
            pace.handle_changed(ms(10_000 + at * 1000), dir(2));
            assert_eq!(pace.take(ms(10_000 + at * 1000), true), None, "{at}");
        }
        assert_eq!(pace.take(ms(70_000), true), Some(dir(2)));
    }

    #[test]
    fn a_full_disk_is_looked_at_now_and_then_whatever_is_scanned() {
        let mut pace = rested();
        pace.handle_left(ms(100), Outcome::NoRoom, dir(1));
        pace.handle_scanned(ms(200));
        assert_eq!(pace.take(ms(20_099), false), None);
        assert_eq!(pace.take(ms(20_100), false), Some(dir(1)));
        pace.handle_left(ms(20_100), Outcome::NoRoom, dir(1));
        assert_eq!(pace.next(false), Some(ms(40_100)));
    }

    #[test]
    fn content_that_comes_is_not_waited_for() {
        let mut pace = rested();
        pace.handle_arrived(ms(90));
        assert_eq!(pace.next(false), None);
        pace.handle_left(ms(100), Outcome::Stuck, dir(1));
        pace.handle_arrived(ms(105));
        assert_eq!(pace.take(ms(119), false), None);
        assert_eq!(pace.take(ms(120), false), Some(dir(1)));
    }

    #[test]
    fn what_moves_on_is_tried_again_at_once() {
        let mut pace = rested();
        for at in 0..5 {
            pace.handle_left(ms(at * 1000), Outcome::Stuck, dir(1));
        }
        pace.handle_left(ms(9000), Outcome::Some, dir(1));
        assert_eq!(pace.take(ms(9199), false), None);
        assert_eq!(pace.take(ms(9200), false), Some(dir(1)));
    }
}
