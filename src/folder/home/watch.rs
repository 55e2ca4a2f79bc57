//! What changes in a home, by inotify: which directories are to be looked at again, and when.
//!
//! A directory is due when it was quiet for 20 ms, or 250 ms after its first event under a stream of them. A file that
//! is being written is left alone until it is closed, or for 5 s.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ffi::CStr;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};

use super::base::HomeId;

/// After the last event, before a directory is looked at: an editor's save is several events.
const QUIET: Duration = Duration::from_millis(20);

/// Longest a stream of events puts a directory off.
const STREAM: Duration = Duration::from_millis(250);

/// Longest a file that is kept open stays unpublished.
const OPEN_MAX: Duration = Duration::from_secs(5);

/// Files being written that are remembered; of more than these, writing is not waited for.
const OPEN_FILES_MAX: usize = 65_536;

/// Names of which it is remembered what was heard.
const HEARD_NAMES_MAX: usize = 65_536;

/// Buffer for events; each has at most 16 + 256 bytes.
const EVENT_BYTES: usize = 64 << 10;

const EVENTS: WatchFlags = WatchFlags::CREATE
    .union(WatchFlags::MOVE)
    .union(WatchFlags::DELETE)
    .union(WatchFlags::CLOSE_WRITE)
    .union(WatchFlags::MODIFY)
    .union(WatchFlags::ATTRIB)
    .union(WatchFlags::DELETE_SELF)
    .union(WatchFlags::MOVE_SELF)
    .union(WatchFlags::ONLYDIR)
    .union(WatchFlags::EXCL_UNLINK);

/// Wakes the watching thread.
#[derive(Debug, Clone)]
pub struct Waker(Arc<OwnedFd>);

impl Waker {
    pub fn new() -> io::Result<Self> {
        Ok(Self(Arc::new(eventfd(
            0,
            EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK,
        )?)))
    }

    pub fn wake(&self) {
        // Fails only if it is awake 2^64 times already.
        let _awake = rustix::io::write(&*self.0, &1u64.to_ne_bytes());
    }

    fn clear(&self) {
        let _count = rustix::io::read(&*self.0, &mut [0; 8]);
    }
}

/// One thing that happened in a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A name came, went, or its attributes changed.
    Name {
        dir: HomeId,
        name: Bytes,
        written: Written,
    },
    /// The directory itself.
    Itself { dir: HomeId },
    /// Events were lost.
    Overflow,
}

/// What an event says of a file being open for writing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Written {
    /// It was made just now, so it will probably be written.
    Made,
    /// It is being written.
    Open,
    /// It was written and closed.
    Closed,
    /// It only came from or went to another name.
    Moved,
    No,
}

/// Watches directories.
#[derive(Debug)]
pub struct Watcher {
    inotify: OwnedFd,
    waker: Waker,
    watched: Mutex<Watched>,
}

#[derive(Debug, Default)]
struct Watched {
    by_watch: HashMap<i32, HomeId>,
    by_dir: HashMap<HomeId, i32>,
}

impl Watcher {
    pub fn new(waker: Waker) -> io::Result<Self> {
        let inotify = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
        Ok(Self {
            inotify,
            waker,
            watched: Mutex::default(),
        })
    }

    /// Watches an open directory. Fails with `StorageFull` when the system's limit of watches is reached.
    pub fn add(&self, dir: HomeId, fd: &OwnedFd) -> io::Result<()> {
        // By its descriptor, so that it is this directory and not what has its name by now.
        let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
        let watch = inotify::add_watch(&self.inotify, path, EVENTS)?;
        let mut watched = self.watched.lock();
        let before = watched.by_watch.insert(watch, dir);
        // What was taken for another directory goes with its new number only: that the other is gone ends nothing.
        if let Some(other) = before.filter(|other| *other != dir)
            && watched.by_dir.get(&other) == Some(&watch)
        {
            watched.by_dir.remove(&other);
        }
        if let Some(old) = watched
            .by_dir
            .insert(dir, watch)
            .filter(|old| *old != watch)
        {
            watched.by_watch.remove(&old);
            // It may have gone by itself.
            let _gone = inotify::remove_watch(&self.inotify, old);
        }
        Ok(())
    }

    /// Stops watching a directory that is gone.
    pub fn remove(&self, dir: HomeId) {
        let mut watched = self.watched.lock();
        if let Some(watch) = watched.by_dir.remove(&dir) {
            watched.by_watch.remove(&watch);
            let _gone = inotify::remove_watch(&self.inotify, watch);
        }
    }

    /// Directories watched.
    pub fn len(&self) -> usize {
        self.watched.lock().by_dir.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Waits for events, a wake-up, or until `timeout` is over, and hands out the events there are.
    pub fn wait(&self, timeout: Duration, mut each: impl FnMut(Event)) -> io::Result<()> {
        let timeout = Timespec {
            tv_sec: timeout.as_secs() as i64,
            tv_nsec: timeout.subsec_nanos().into(),
        };
        let mut fds = [
            PollFd::new(&self.inotify, PollFlags::IN),
            PollFd::new(&*self.waker.0, PollFlags::IN),
        ];
        match poll(&mut fds, Some(&timeout)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        self.waker.clear();
        self.read(&mut each)
    }

    fn read(&self, each: &mut impl FnMut(Event)) -> io::Result<()> {
        let mut buffer = vec![std::mem::MaybeUninit::uninit(); EVENT_BYTES];
        let mut reader = inotify::Reader::new(&self.inotify, &mut buffer);
        loop {
            match reader.next() {
                Ok(event) => {
                    if let Some(event) =
                        self.understand(event.wd(), event.events(), event.file_name())
                    {
                        each(event);
                    }
                }
                Err(rustix::io::Errno::AGAIN) => return Ok(()),
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn understand(&self, watch: i32, flags: ReadFlags, name: Option<&CStr>) -> Option<Event> {
        if flags.contains(ReadFlags::QUEUE_OVERFLOW) {
            return Some(Event::Overflow);
        }
        let mut watched = self.watched.lock();
        let dir = *watched.by_watch.get(&watch)?;
        if flags.contains(ReadFlags::IGNORED) {
            watched.by_watch.remove(&watch);
            if watched.by_dir.get(&dir) == Some(&watch) {
                watched.by_dir.remove(&dir);
            }
        }
        let Some(name) = name.map(CStr::to_bytes).filter(|name| !name.is_empty()) else {
            return Some(Event::Itself { dir });
        };
        let written = if flags.contains(ReadFlags::CLOSE_WRITE) {
            Written::Closed
        } else if flags.contains(ReadFlags::ISDIR) {
            Written::No
        } else if flags.contains(ReadFlags::CREATE) {
            Written::Made
        } else if flags.contains(ReadFlags::MODIFY) {
            Written::Open
        } else if flags.intersects(ReadFlags::MOVED_FROM.union(ReadFlags::MOVED_TO)) {
            Written::Moved
        } else {
            Written::No
        };
        Some(Event::Name {
            dir,
            name: Bytes::copy_from_slice(name),
            written,
        })
    }
}

/// What is due, and when: no clock, no files.
#[derive(Debug, Default)]
pub struct Quiet {
    dirs: BTreeMap<HomeId, Pending>,
    open: HashMap<(HomeId, Bytes), Duration>,
    /// Names of which anything was heard since they were last due, and whether it was nothing but moves.
    heard: HashMap<(HomeId, Bytes), bool>,
    is_full: bool,
}

#[derive(Debug, Clone, Copy)]
struct Pending {
    first: Duration,
    last: Duration,
}

/// What is to be looked at now.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Due {
    pub dirs: Vec<HomeId>,
    /// Files that are being written: not to be read yet.
    pub open: HashSet<(HomeId, Bytes)>,
    /// Names from or to which something was renamed, and nothing else happened to them.
    pub moved: HashSet<(HomeId, Bytes)>,
    /// Everything, because events were lost.
    pub everything: bool,
}

impl Quiet {
    pub fn event(&mut self, now: Duration, event: Event) {
        match event {
            Event::Overflow => self.is_full = true,
            Event::Itself { dir } => self.note(now, dir),
            Event::Name { dir, name, written } => {
                let is_open = matches!(written, Written::Made | Written::Open);
                let has_room = self.open.len() < OPEN_FILES_MAX;
                self.hear((dir, name.clone()), written == Written::Moved);
                if is_open && has_room {
                    self.open.entry((dir, name)).or_insert(now);
                } else if written == Written::Closed {
                    self.open.remove(&(dir, name));
                }
                // What was made may be a symlink, which is whole at once. Writing alone is no reason to look.
                if written != Written::Open || !has_room {
                    self.note(now, dir);
                }
            }
        }
    }

    fn hear(&mut self, at: (HomeId, Bytes), is_move: bool) {
        if self.heard.len() < HEARD_NAMES_MAX || self.heard.contains_key(&at) {
            *self.heard.entry(at).or_insert(true) &= is_move;
        } else {
            // Of one that is not remembered, nothing may be concluded.
            self.heard
                .values_mut()
                .for_each(|only_moves| *only_moves = false);
        }
    }

    /// Has a directory looked at.
    pub fn note(&mut self, now: Duration, dir: HomeId) {
        self.dirs
            .entry(dir)
            .or_insert(Pending {
                first: now,
                last: now,
            })
            .last = now;
    }

    /// Has a directory looked at again at `at`.
    pub fn note_later(&mut self, at: Duration, dir: HomeId) {
        let first = at.saturating_sub(QUIET);
        self.dirs
            .entry(dir)
            .or_insert(Pending { first, last: first });
    }

    /// When [`Quiet::take`] next has something; none: not before the next event.
    pub fn next(&self) -> Option<Duration> {
        if self.is_full {
            return Some(Duration::ZERO);
        }
        let dirs = self.dirs.values().map(Pending::due);
        dirs.chain(self.open.values().map(|since| *since + OPEN_MAX))
            .min()
    }

    /// What is due at `now`: once one directory is, all are looked at, so that both ends of a rename are.
    pub fn take(&mut self, now: Duration) -> Option<Due> {
        if self.next().is_none_or(|next| next > now) {
            return None;
        }
        let mut due = Due {
            everything: std::mem::take(&mut self.is_full),
            ..Due::default()
        };
        let late = self.open.extract_if(|_, since| *since + OPEN_MAX <= now);
        for ((dir, _), _) in late {
            self.dirs.entry(dir).or_insert(Pending {
                first: now,
                last: now,
            });
        }
        due.dirs = std::mem::take(&mut self.dirs).into_keys().collect();
        due.open = self.open.keys().cloned().collect();
        let heard = std::mem::take(&mut self.heard).into_iter();
        if !due.everything {
            due.moved = heard
                .filter(|(_, only_moves)| *only_moves)
                .map(|(at, _)| at)
                .collect();
        }
        Some(due)
    }
}

impl Pending {
    fn due(&self) -> Duration {
        (self.last + QUIET).min(self.first + STREAM)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIR: HomeId = HomeId(3);

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    fn name(name: &'static str, written: Written) -> Event {
        Event::Name {
            dir: DIR,
            name: Bytes::from(name),
            written,
        }
    }

    #[test]
    fn a_directory_is_due_when_it_was_quiet() {
        let mut quiet = Quiet::default();
        quiet.event(ms(0), name("a", Written::No));
        quiet.event(ms(15), name("a", Written::No));
        assert_eq!((quiet.next(), quiet.take(ms(34))), (Some(ms(35)), None));
        assert_eq!(quiet.take(ms(35)).unwrap().dirs, [DIR]);
        assert_eq!(quiet.next(), None);
    }

    #[test]
    fn a_stream_of_events_is_cut() {
        let mut quiet = Quiet::default();
        for at in 0..250 {
            assert_eq!(quiet.take(ms(at)), None, "at {at}");
            quiet.event(ms(at), name("a", Written::No));
        }
        assert_eq!(quiet.take(ms(250)).unwrap().dirs, [DIR]);
    }

    #[test]
    fn a_file_being_written_waits_for_its_close() {
        let mut quiet = Quiet::default();
        quiet.event(ms(0), name("a", Written::Made));
        let due = quiet.take(ms(20)).unwrap();
        assert_eq!(due.open, HashSet::from([(DIR, Bytes::from("a"))]));
        assert_eq!(quiet.next(), Some(OPEN_MAX));
        quiet.event(ms(100), name("a", Written::Closed));
        let due = quiet.take(ms(120)).unwrap();
        assert_eq!((due.dirs, due.open.len()), (vec![DIR], 0));
        assert_eq!(quiet.next(), None);
    }

    #[test]
    fn a_file_kept_open_is_published_after_a_while() {
        let mut quiet = Quiet::default();
        for second in 0..5 {
            quiet.event(ms(second * 1000), name("a", Written::Open));
            assert_eq!(quiet.take(ms(second * 1000 + 999)), None, "at {second}");
        }
        let due = quiet.take(OPEN_MAX).unwrap();
        assert_eq!((due.dirs, due.open.len()), (vec![DIR], 0));
    }

    #[test]
    fn a_name_that_was_only_moved_is_told_from_one_that_was_written_too() {
        let mut quiet = Quiet::default();
        quiet.event(ms(0), name("a", Written::Moved));
        quiet.event(ms(0), name("b", Written::Moved));
        quiet.event(ms(1), name("b", Written::Open));
        quiet.event(ms(2), name("b", Written::Closed));
        quiet.event(ms(2), name("b", Written::Moved));
        let due = quiet.take(ms(30)).unwrap();
        assert_eq!(due.moved, HashSet::from([(DIR, Bytes::from("a"))]));
        quiet.event(ms(100), name("a", Written::No));
        assert_eq!(quiet.take(ms(130)).unwrap().moved, HashSet::new());
    }

    #[test]
    fn lost_events_mean_everything() {
        let mut quiet = Quiet::default();
        quiet.event(ms(5), Event::Overflow);
        assert!(quiet.take(ms(5)).unwrap().everything);
        assert_eq!(quiet.take(ms(5)), None);
    }

    #[test]
    fn events_of_a_real_directory_arrive() {
        let dir = tempfile::tempdir().unwrap();
        let fd = OwnedFd::from(std::fs::File::open(dir.path()).unwrap());
        let waker = Waker::new().unwrap();
        let watcher = Watcher::new(waker.clone()).unwrap();
        watcher.add(DIR, &fd).unwrap();
        std::fs::write(dir.path().join("new"), "x").unwrap();
        std::fs::create_dir(dir.path().join("sub")).unwrap();
        let mut events = Vec::new();
        watcher.wait(ms(1000), |event| events.push(event)).unwrap();
        assert_eq!(events.first(), Some(&name("new", Written::Made)));
        assert!(events.contains(&name("new", Written::Closed)), "{events:?}");
        assert!(events.contains(&name("sub", Written::No)), "{events:?}");
        waker.wake();
        watcher
            .wait(Duration::from_secs(60), |event| panic!("{event:?}"))
            .unwrap();
    }

    #[test]
    fn a_directory_stays_watched_when_the_one_it_was_taken_for_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        let fd = OwnedFd::from(std::fs::File::open(dir.path()).unwrap());
        let watcher = Watcher::new(Waker::new().unwrap()).unwrap();
        watcher.add(HomeId(2), &fd).unwrap();
        watcher.add(DIR, &fd).unwrap();
        watcher.remove(HomeId(2));
        assert_eq!(watcher.len(), 1);
        std::fs::create_dir(dir.path().join("sub")).unwrap();
        let mut events = Vec::new();
        watcher.wait(ms(1000), |event| events.push(event)).unwrap();
        assert_eq!(events, [name("sub", Written::No)]);
    }
}
