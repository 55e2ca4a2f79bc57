//! Two threads take turns at the windows of a stream.
//!
//! ```text
//! this thread    fill 1 | work on 1 | finish 1 | fill 3 | work on 3 ...
//! the helper              fill 2 | work on 2 | finish 2 | fill 4 ...
//! ```
//!
//! One fills at a time, and one finishes at a time, in the order of the stream; work is done side by side. A helper is
//! taken if the process has one to spare, whenever a window was filled, so any number of streams at once
//! gets by with [`helpers_max`] threads besides those of their callers, and none ever waits for a thread.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::{panic, thread};

use parking_lot::{Condvar, Mutex};

use super::Taken;
use super::cut::{Cutter, Window};

/// Helpers at work in this process.
static HELPERS: AtomicUsize = AtomicUsize::new(0);

/// Cores that ingest uses at most while it has but one caller.
const CORES_MAX: usize = 4;

/// Fills windows from `cutter`, does `work` on each and hands them to `finish`, in order.
///
/// Returns the first error in the order of the stream. After it nothing is read or finished any more.
pub(super) fn run<'s, E, R>(
    cutter: Cutter<'s, R>,
    work: impl Fn(&mut Window) + Sync,
    finish: impl FnMut(&Window) -> Result<(), E> + Send,
) -> Result<(), E>
where
    E: Send,
    R: FnMut(&mut [u8]) -> Result<Taken, E> + Send,
{
    let turns = Turns {
        source: Mutex::new(Source {
            cutter,
            filled: 0,
            stopped: false,
        }),
        work,
        line: Mutex::new(Line {
            finish,
            finished: 0,
            result: Ok(()),
            stopped: false,
        }),
        turn: Condvar::new(),
    };
    thread::scope(|scope| {
        let mut helper = None;
        turns.take(|| {
            if helper.is_none()
                && let Some(permit) = Permit::get()
            {
                let help = || {
                    let _permit = permit;
                    turns.take(|| {});
                };
                // Without a thread it takes longer.
                helper = thread::Builder::new().spawn_scoped(scope, help).ok();
            }
        });
        if let Some(Err(panicked)) = helper.map(thread::ScopedJoinHandle::join) {
            panic::resume_unwind(panicked);
        }
    });
    turns.line.into_inner().result
}

struct Turns<C, W, F, E> {
    source: Mutex<Source<C>>,
    work: W,
    line: Mutex<Line<F, E>>,
    turn: Condvar,
}

struct Source<C> {
    cutter: C,
    /// Windows so far.
    filled: u64,
    stopped: bool,
}

struct Line<F, E> {
    finish: F,
    /// Windows so far.
    finished: u64,
    result: Result<(), E>,
    stopped: bool,
}

impl<'s, E, R, W, F> Turns<Cutter<'s, R>, W, F, E>
where
    R: FnMut(&mut [u8]) -> Result<Taken, E>,
    W: Fn(&mut Window),
    F: FnMut(&Window) -> Result<(), E>,
{
    /// Takes windows until there are no more. Calls `more` when one was filled with work and there is another.
    fn take(&self, mut more: impl FnMut()) {
        let _stop = StopOnPanic(self);
        let mut window = Window::default();
        while let Some((number, filled)) = self.fill(&mut window) {
            match filled {
                Ok(ended) => {
                    if !ended && !window.found.is_empty() {
                        more();
                    }
                    (self.work)(&mut window);
                    self.finish(number, |finish| finish(&window));
                }
                Err(error) => self.finish(number, |_| Err(error)),
            }
        }
    }

    /// Fills the next window, if there is one. Its number, and whether it is the last.
    fn fill(&self, window: &mut Window) -> Option<(u64, Result<bool, E>)> {
        let mut source = self.source.lock();
        if source.stopped {
            return None;
        }
        let number = source.filled;
        source.filled += 1;
        let filled = source.cutter.fill(window);
        source.stopped = filled.is_err() || source.cutter.has_ended();
        let ended = source.stopped;
        Some((number, filled.map(|()| ended)))
    }

    /// Finishes a window when it is its turn, unless something failed before.
    fn finish(&self, number: u64, finish: impl FnOnce(&mut F) -> Result<(), E>) {
        let mut line = self.line.lock();
        while line.finished < number && !line.stopped {
            self.turn.wait(&mut line);
        }
        if line.stopped {
            return;
        }
        let finished = finish(&mut line.finish);
        line.finished += 1;
        if finished.is_err() {
            line.result = finished;
            line.stopped = true;
        }
        let stopped = line.stopped;
        drop(line);
        self.turn.notify_all();
        if stopped {
            self.source.lock().stopped = true;
        }
    }
}

/// Lets nobody wait for the turn of a thread that panics.
struct StopOnPanic<'t, C, W, F, E>(&'t Turns<C, W, F, E>);

impl<C, W, F, E> Drop for StopOnPanic<'_, C, W, F, E> {
    fn drop(&mut self) {
        if thread::panicking() {
            self.0.line.lock().stopped = true;
            self.0.turn.notify_all();
            self.0.source.lock().stopped = true;
        }
    }
}

/// The right to be a helper.
struct Permit;

impl Permit {
    fn get() -> Option<Self> {
        let max = helpers_max();
        let taken = HELPERS.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |helpers| {
            (helpers < max).then_some(helpers + 1)
        });
        taken.ok().map(|_| Self)
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        HELPERS.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Most helpers at once: a caller and they have a core each.
fn helpers_max() -> usize {
    // Asking the system takes as long as hashing a small file.
    static MAX: OnceLock<usize> = OnceLock::new();
    *MAX.get_or_init(|| {
        let cores = thread::available_parallelism().map_or(1, usize::from);
        cores.min(CORES_MAX) - 1
    })
}
