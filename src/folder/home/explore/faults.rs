//! What goes wrong, and when: one countdown for all calls of a device, so that a crash comes between any two of them.

use std::io;

use parking_lot::Mutex;

/// A stream of numbers that a seed gives.
#[derive(Debug, Clone)]
pub(super) struct Random(pub(super) u64);

impl Random {
    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Less than `n`, which is not 0.
    pub(super) fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    pub(super) fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
}

/// The faults of one device.
#[derive(Debug)]
pub(super) struct Faults {
    state: Mutex<State>,
    pub(super) can_exchange: bool,
    pub(super) can_clone: bool,
}

#[derive(Debug)]
struct State {
    random: Random,
    /// Calls until the crash.
    left: Option<u64>,
    is_down: bool,
    /// Calls until the one that fails, alone.
    until_error: Option<u64>,
    /// One call in so many fails.
    error_one_in: Option<u64>,
    is_full: bool,
}

impl Faults {
    pub(super) fn new(seed: u64, can_exchange: bool, can_clone: bool) -> Self {
        let state = State {
            random: Random(seed),
            left: None,
            is_down: false,
            until_error: None,
            error_one_in: None,
            is_full: false,
        };
        Self {
            state: Mutex::new(state),
            can_exchange,
            can_clone,
        }
    }

    /// What goes wrong from now on.
    pub(super) fn set(&self, crash_after: Option<u64>, error_one_in: Option<u64>, is_full: bool) {
        let mut state = self.state.lock();
        state.left = crash_after;
        state.until_error = None;
        state.error_one_in = error_one_in;
        state.is_full = is_full;
        state.is_down = false;
    }

    /// One call fails, after so many that do not.
    pub(super) fn fail_once(&self, after: u64) {
        self.state.lock().until_error = Some(after);
    }

    pub(super) fn is_down(&self) -> bool {
        self.state.lock().is_down
    }

    pub(super) fn is_full(&self) -> bool {
        let state = &mut *self.state.lock();
        state.is_full && state.random.one_in(2)
    }

    /// Before a call: whether it is made at all.
    pub(super) fn pass(&self) -> io::Result<()> {
        let state = &mut *self.state.lock();
        if let Some(left) = &mut state.left {
            match left.checked_sub(1) {
                Some(less) => *left = less,
                None => state.is_down = true,
            }
        }
        let is_next = state.until_error == Some(0);
        state.until_error = state.until_error.and_then(|left| left.checked_sub(1));
        let fails = is_next || state.error_one_in.is_some_and(|n| state.random.one_in(n));
        match state.is_down || fails {
            true => Err(io::Error::other("the disk fails")),
            false => Ok(()),
        }
    }

    /// After a call: whether the caller hears of its success.
    pub(super) fn after(&self) -> io::Result<()> {
        let state = &mut *self.state.lock();
        let fails = state
            .error_one_in
            .is_some_and(|n| state.random.one_in(n * 4));
        match fails {
            true => Err(io::Error::other("the disk fails")),
            false => Ok(()),
        }
    }
}
