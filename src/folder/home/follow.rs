//! The thread that follows a home: it waits for events, changes of the folder and times, and scans or writes what is due.

use std::collections::HashSet;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::base::{At, HomeId};
use super::guard::HeldReason;
use super::pace::{Outcome, Pace};
use super::scan::{Part, Scan, ScanError, ScanReport};
use super::watch::{Due, Event, Quiet, Written};
use super::writeback::{self, Pulled};
use super::{Inner, LOOK_AFTER, ScanListener};

/// Between scans of everything, in case events were lost without a word.
const FULL_SCAN_EVERY: Duration = Duration::from_secs(3600);

/// The same where not everything can be watched.
const POLL_EVERY: Duration = Duration::from_secs(60);

/// Before it is looked again whether a directory that is not there has come back.
const LOOK_FOR_EVERY: Duration = Duration::from_secs(5);

/// Scanning everything takes at most one in so many parts of the time.
const POLL_SHARE: u32 = 100;

/// Before a scan is repeated whose result the folder could not keep, as on a full disk.
const RETRY_AFTER: Duration = Duration::from_secs(5);

/// Closed files that are remembered; of more than these the hourly scan takes care.
const CLOSED_MAX: usize = 4096;

/// Pause where there are no events to wait for.
const PAUSE: Duration = Duration::from_millis(50);

/// Longest wait of the watching thread, so that it sees that it is to stop.
const WAIT_MAX: Duration = Duration::from_secs(3600);

/// The watching thread.
pub(super) struct Follow<'h> {
    home: &'h Inner,
    listener: ScanListener,
    quiet: Quiet,
    last_full: Duration,
    /// When everything is to be scanned again because the folder could not keep what was found.
    retry_full: Option<Duration>,
    /// Files that were not where the records say: read when a scan has found where they are.
    astray: Vec<HomeId>,
    /// Files that were closed and are not looked at yet.
    closed: Vec<At>,
    /// How long the last scan of everything took.
    full_took: Duration,
    /// How often content had come when that was last asked.
    arrivals: u64,
    /// When it was last looked whether a home that is not there has come back.
    last_look: Duration,
    pace: Pace,
}

impl<'h> Follow<'h> {
    pub(super) fn new(home: &'h Inner, listener: ScanListener) -> Self {
        let last_full = home.elapsed();
        Self {
            home,
            listener,
            quiet: Quiet::default(),
            last_full,
            retry_full: None,
            astray: Vec::new(),
            closed: Vec::new(),
            full_took: Duration::ZERO,
            arrivals: 0,
            last_look: last_full,
            pace: Pace::new(last_full),
        }
    }

    pub(super) fn run(mut self) {
        while !self.home.stop.load(Ordering::Acquire) {
            let again = std::mem::take(&mut *self.home.again.lock());
            self.look_again(&again);
            self.wait();
            self.look_for_home();
            self.reread_suspects();
            let now = self.home.elapsed();
            let is_time = now >= self.next_full();
            if self.home.scan_asked.swap(false, Ordering::AcqRel) || is_time {
                self.scan(&Due {
                    everything: true,
                    ..Due::default()
                });
            } else if let Some(due) = self.quiet.take(now) {
                self.scan(&due);
            } else {
                self.reread_one();
            }
            self.pull_if_due();
        }
    }

    /// Goes on by itself when a directory that was not there is there again.
    fn look_for_home(&mut self) {
        let now = self.home.elapsed();
        let mut scanner = self.home.scanner.lock();
        let Some(reason) = scanner.held.clone().filter(HeldReason::may_pass) else {
            return;
        };
        // It would keep the disk from being unmounted.
        scanner.partial = None;
        if now.saturating_sub(self.last_look) < LOOK_FOR_EVERY {
            return;
        }
        self.last_look = now;
        if self.home.is_back(&reason) {
            tracing::info!("the directory is there again");
            scanner.held = None;
            self.home.scan_asked.store(true, Ordering::Release);
        }
    }

    /// Writes what the folder shows into the home, when it is time.
    fn pull_if_due(&mut self) {
        let home = self.home;
        let now = home.elapsed();
        self.pace.handle_changed(now, home.ledger.take_changed());
        let arrivals = home.ledger.arrivals();
        if std::mem::replace(&mut self.arrivals, arrivals) != arrivals {
            self.pace.handle_arrived(now);
        }
        let is_mounted = home.is_mounted.load(Ordering::Acquire);
        let Some(extent) = self.pace.take(now, is_mounted) else {
            return;
        };
        let result = {
            let mut scanner = home.scanner.lock();
            writeback::pull(home, &mut scanner, &extent)
        };
        let now = home.elapsed();
        match result {
            Ok(Pulled { left, written }) => {
                tracing::debug!(?left, ?written, "directory written");
                let again = written.scan.iter();
                again.for_each(|dir| self.quiet.note_later(now + LOOK_AFTER, *dir));
                let outcome = match (left.is_nothing(), written.is_nothing()) {
                    (true, _) => Outcome::Done,
                    _ if left.is_only_room() => Outcome::NoRoom,
                    (false, false) => Outcome::Some,
                    (false, true) => Outcome::Stuck,
                };
                self.pace.handle_left(now, outcome, extent);
            }
            Err(error) => {
                tracing::warn!(%error, "directory not written");
                self.pace.handle_left(now, Outcome::Stuck, extent);
            }
        }
    }

    fn full_every(&self) -> Duration {
        match *self.home.unwatched.lock() {
            Some(_) => POLL_EVERY.max(self.full_took * POLL_SHARE),
            None => FULL_SCAN_EVERY,
        }
    }

    fn next_full(&self) -> Duration {
        let regular = self.last_full + self.full_every();
        self.retry_full.map_or(regular, |retry| retry.min(regular))
    }

    fn wait(&mut self) {
        let now = self.home.elapsed();
        let is_mounted = self.home.is_mounted.load(Ordering::Acquire);
        let next = [self.quiet.next(), self.pace.next(is_mounted)]
            .into_iter()
            .flatten()
            .fold(self.next_full(), Duration::min);
        let (has_more, is_away) = {
            let scanner = self.home.scanner.lock();
            let is_away = scanner.held.as_ref().is_some_and(HeldReason::may_pass);
            (!scanner.later.is_empty() && scanner.held.is_none(), is_away)
        };
        let timeout = match (has_more, is_away) {
            (true, _) => Duration::ZERO,
            (_, true) => next.saturating_sub(now).min(LOOK_FOR_EVERY),
            _ => next.saturating_sub(now),
        };
        let home = self.home;
        let Some(watcher) = &home.watcher else {
            std::thread::park_timeout(timeout.min(PAUSE));
            return;
        };
        let (quiet, closed) = (&mut self.quiet, &mut self.closed);
        let waited = watcher.wait(timeout.min(WAIT_MAX), |event| {
            if let Event::Name { dir, name, written } = &event
                && *written == Written::Closed
                && closed.len() < CLOSED_MAX
            {
                let (dir, name) = (*dir, name.clone());
                closed.push(At { dir, name });
            }
            quiet.event(home.elapsed(), event);
        });
        if let Err(error) = waited {
            tracing::warn!(%error, "changes cannot be watched: scanning once a minute");
            *home.unwatched.lock() = Some(error.to_string());
            std::thread::park_timeout(PAUSE);
        }
    }

    fn scan(&mut self, due: &Due) {
        let part = match due.everything {
            true => {
                self.last_full = self.home.elapsed();
                self.retry_full = None;
                Part::Everything
            }
            false => Part::Dirs {
                dirs: &due.dirs,
                open: &due.open,
                moved: &due.moved,
            },
        };
        let start = self.home.elapsed();
        let result = {
            let mut scanner = self.home.scanner.lock();
            for at in self.closed.drain(..) {
                scanner.note_closed(&at, start);
            }
            Scan::new(self.home, &mut scanner, &|_| ()).run(&part)
        };
        if due.everything {
            self.full_took = self.home.elapsed() - start;
        }
        let is_done = result.is_ok();
        if is_kept_back(&result) {
            let again = self.home.elapsed() + RETRY_AFTER;
            self.retry_full = due.everything.then_some(again);
            due.dirs
                .iter()
                .for_each(|dir| self.quiet.note_later(again, *dir));
        }
        self.tell(result);
        let mut astray = std::mem::take(&mut self.astray);
        astray.retain(|id| self.home.files.place(*id).is_some());
        if is_done && !astray.is_empty() {
            self.reread(&astray);
        }
    }

    /// What was found changed while it was served is read at once.
    fn reread_suspects(&mut self) {
        let suspects: HashSet<HomeId> = self.home.files.take_suspects().into_iter().collect();
        if !suspects.is_empty() {
            self.reread(&suspects.into_iter().collect::<Vec<_>>());
        }
    }

    fn reread_one(&mut self) {
        let next = {
            let mut scanner = self.home.scanner.lock();
            match scanner.held {
                Some(_) => None,
                None => scanner.later.pop_front(),
            }
        };
        if let Some(next) = next {
            self.reread(&[next]);
        }
    }

    fn reread(&mut self, ids: &[HomeId]) {
        let result = {
            let mut scanner = self.home.scanner.lock();
            Scan::new(self.home, &mut scanner, &|_| ()).reread(ids)
        };
        if is_kept_back(&result) {
            // The next scan that works reads them, and there will be one.
            self.astray.extend_from_slice(ids);
            let again = self.home.elapsed() + RETRY_AFTER;
            ids.iter()
                .filter_map(|id| self.home.files.place(*id))
                .for_each(|at| self.quiet.note_later(again, at.dir));
        }
        self.tell(result);
    }

    fn tell(&mut self, result: Result<ScanReport, ScanError>) {
        if matches!(result, Err(ScanError::Stopped)) {
            return;
        }
        if let Ok(report) = &result {
            self.pace.handle_scanned(self.home.elapsed());
            self.astray.extend_from_slice(&report.astray);
            self.look_again(&report.again);
        }
        (self.listener)(result);
    }

    fn look_again(&mut self, dirs: &[(HomeId, Duration)]) {
        let now = self.home.elapsed();
        for (dir, wait) in dirs {
            self.quiet.note_later(now + *wait, *dir);
        }
    }
}

/// Whether what a scan found could not be kept, so that nobody will hear of it unless it is found again.
fn is_kept_back(result: &Result<ScanReport, ScanError>) -> bool {
    matches!(
        result,
        Err(ScanError::Ledger(_) | ScanError::Store(_) | ScanError::Unsettled)
    )
}
