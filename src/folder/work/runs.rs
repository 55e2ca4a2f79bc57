//! Which files a reader will open next: behind a run of small files read by name, those that follow in their directory.
//!
//! Read one after another, small files would cost a round trip each. A run is noticed when two files in a row lie close
//! behind the one before; a single open fetches nothing else. What is asked for ahead is bounded and grows while the run
//! goes on. A run that ended with its directory lets the next directory, read from its first name, begin as one.

use std::collections::VecDeque;
use std::sync::{Arc, Weak};

use super::body::Stored;
use crate::folder::state::{EntryRef, Fid, FileKind, Key, Name, State};

/// Directories read at once that are told apart.
const RUNS_MAX: usize = 8;
/// Files that must have followed another before anything is asked for ahead.
const STREAK_MIN: u32 = 2;
/// How many names further a follower may be: readers with several threads do not open in strict order.
const SLACK: usize = 8;
/// Names passed over and not opened since that end a run: this reader chooses.
const SKIPPED_MAX: usize = 2 * SLACK;
/// First and largest window, in bytes asked for ahead of the reader.
const WINDOW_MIN: u64 = 256 << 10;
const WINDOW_MAX: u64 = 4 << 20;
/// Files ahead of the reader at most.
const FILES_MAX: usize = 512;
/// Longer files are left to their own read-ahead, in bytes.
pub(super) const SMALL_MAX: u64 = 1 << 20;
/// What a file counts at least, in bytes.
const FILE_COST: u64 = 1 << 10;

/// Lives as long as what was asked for ahead is of use.
pub(super) type Interest = Weak<()>;

/// The runs of one folder, the latest last.
#[derive(Debug, Default)]
pub(super) struct Runs {
    runs: Vec<Run>,
    /// The window of a run that came to the end of its directory.
    habit: Option<u64>,
}

#[derive(Debug)]
struct Run {
    dir: Fid,
    last: Name,
    streak: u32,
    skipped: VecDeque<Name>,
    window: u64,
    /// Names in front of the reader that were asked for, with their bytes.
    ahead: VecDeque<(Name, u64)>,
    ahead_bytes: u64,
    interest: Arc<()>,
}

impl Runs {
    /// Notes that `name` in `dir` is being read from its start; `lacking` if its bytes were not here. What to ask for
    /// ahead, if it is time.
    pub(super) fn opened(
        &mut self,
        state: &State,
        dir: Fid,
        name: &Name,
        lacking: bool,
    ) -> Option<(Vec<Stored>, Interest)> {
        let known = self.runs.iter().position(|run| run.dir == dir);
        let mut run = match known {
            Some(at) => self.runs.remove(at),
            // Where everything is here nothing is to be foreseen.
            None if !lacking => return None,
            None => self.begun(state, dir, name),
        };
        if known.is_some() && !run.follow(state, name) {
            self.habit = None;
            run = Run::new(dir, name);
        }
        let wanted = run.extend(state);
        if run.streak >= STREAK_MIN && run.ahead.is_empty() {
            self.habit = Some(run.window);
        }
        let interest = Arc::downgrade(&run.interest);
        if self.runs.len() >= RUNS_MAX {
            self.runs.remove(0);
        }
        self.runs.push(run);
        (!wanted.is_empty()).then_some((wanted, interest))
    }

    fn begun(&mut self, state: &State, dir: Fid, name: &Name) -> Run {
        let mut run = Run::new(dir, name);
        let is_first = files_behind(state, dir, None)
            .next()
            .is_some_and(|(first, _)| first == *name);
        if let Some(window) = self.habit.take().filter(|_| is_first) {
            (run.streak, run.window) = (STREAK_MIN, window / 2);
        }
        run
    }
}

impl Run {
    fn new(dir: Fid, name: &Name) -> Self {
        Self {
            dir,
            last: name.clone(),
            streak: 0,
            skipped: VecDeque::new(),
            window: 0,
            ahead: VecDeque::new(),
            ahead_bytes: 0,
            interest: Arc::new(()),
        }
    }

    /// Goes on with `name`, if it is of the run.
    fn follow(&mut self, state: &State, name: &Name) -> bool {
        if *name == self.last {
            return true;
        }
        if let Some(at) = self.skipped.iter().position(|skipped| skipped == name) {
            self.skipped.remove(at);
            return true;
        }
        let near: Vec<Name> = files_behind(state, self.dir, Some(&self.last))
            .take(SLACK)
            .map(|(near, _)| near)
            .collect();
        let Some(at) = near.iter().position(|near| near == name) else {
            return false;
        };
        self.skipped.extend(near.into_iter().take(at));
        self.last = name.clone();
        self.streak = self.streak.saturating_add(1);
        while let Some((_, bytes)) = self.ahead.pop_front_if(|(front, _)| *front <= *name) {
            self.ahead_bytes -= bytes;
        }
        self.skipped.len() <= SKIPPED_MAX
    }

    /// The files to ask for so that the window in front of the reader is full again, once it is half empty.
    fn extend(&mut self, state: &State) -> Vec<Stored> {
        if self.streak < STREAK_MIN || self.ahead_bytes * 2 > self.window {
            return Vec::new();
        }
        self.window = (self.window * 2).clamp(WINDOW_MIN, WINDOW_MAX);
        let from = self.ahead.back().map_or(&self.last, |(name, _)| name);
        let mut wanted = Vec::new();
        for (name, stored) in files_behind(state, self.dir, Some(&from.clone())) {
            if self.ahead_bytes >= self.window || self.ahead.len() >= FILES_MAX {
                break;
            }
            let small = (1..=SMALL_MAX).contains(&stored.size);
            let bytes = if small { stored.size } else { 0 }.max(FILE_COST);
            self.ahead.push_back((name, bytes));
            self.ahead_bytes += bytes;
            if small {
                wanted.push(stored);
            }
        }
        wanted
    }
}

/// The files of `dir` behind `name` or from the first, in the order of their names: the version that has the name.
fn files_behind<'s>(
    state: &'s State,
    dir: Fid,
    name: Option<&Name>,
) -> impl Iterator<Item = (Name, Stored)> + use<'s> {
    let from = Key {
        dir,
        name: name.cloned().unwrap_or_else(|| Name::from(&b""[..])),
    };
    let entries = state.entries_from(from.clone());
    entries
        .take_while(move |(key, _)| key.dir == dir)
        .filter(move |(key, _)| *key > from)
        .filter_map(|(key, entry)| match entry {
            EntryRef::File(file) => {
                let shown = file.versions.first()?;
                let stored = Stored {
                    content: shown.content.clone(),
                    size: shown.size,
                };
                (shown.kind == FileKind::File).then_some((key.name, stored))
            }
            EntryRef::Head { .. } => None,
        })
}
