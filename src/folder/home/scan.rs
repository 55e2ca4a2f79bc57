//! A scan: lists what is on disk, has `plan` compare it with the base records, takes in what is new, and hands the folder
//! the result in as few updates as there are batches.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;

use super::Inner;
use super::base::{At, FileTime, HomeId, Row, RowKind, unsure_for, xattr_digest};
use super::files::{HomeFiles, NewFile, xattrs};
use super::guard::{Guard, HeldReason};
use super::ignore::HomeRules;
use super::ledger::{Apply, Attributes, DiskFile, Ledger, LedgerError, noted_fid};
use super::marker;
use super::places::is_hidden;
use super::plan::{
    Counts, DirStep, FoundKind, Listing, Look, Plan, Seen, Steps, Take, Visit, join,
};
use super::pull::Puller;
use super::record::{self, Recorded, Table};
use super::take::{BIG_BYTES, Miss, Taken, When, ranges_of, take};
use super::unread::{SOON, Unread};
use super::write::Partial;
use super::writeback;
use crate::folder::state::{Fid, OpError, Xattrs};
use crate::folder::tree::NodesError;
use crate::folder::work::StoreError;

/// Files taken in with one update of the folder.
const BATCH_FILES: usize = 512;

/// In a first scan, files found before they are taken in.
const FIRST_FILES: usize = 4096;

/// Threads that read small files.
const READERS: usize = 2;

/// Before a file is read again that changed while it was read; doubled each time.
const LATER: Duration = Duration::from_secs(5);
const LATER_MAX: Duration = Duration::from_secs(320);

/// What a scan is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ScanProgress {
    /// Files and symlinks found so far.
    pub found: u64,
    /// Files read so far, and their bytes.
    pub read: u64,
    pub bytes: u64,
}

/// What a scan did.
#[derive(Debug, Default)]
pub struct ScanReport {
    pub counts: Counts,
    /// Files and symlinks whose content was read.
    pub read: u64,
    pub renamed: u64,
    pub removed: u64,
    /// Files that cannot be read; they are not published, and not taken for deleted.
    pub unreadable: Vec<Vec<u8>>,
    /// Files that changed while they were read; they are looked at again.
    pub moving: Vec<Vec<u8>>,
    /// What a peer's work leaves no place for.
    pub blocked: Vec<(Vec<u8>, OpError)>,
    /// Directories to be looked at again, and after what time.
    pub again: Vec<(HomeId, Duration)>,
    /// Files to be read that were not where the records say.
    pub astray: Vec<HomeId>,
}

/// Why a scan published nothing, or not everything.
#[derive(Debug, thiserror::Error)]
pub enum ScanError {
    #[error("held back: {0}")]
    Held(HeldReason),
    #[error("the home is being closed")]
    Stopped,
    #[error("the disk keeps an earlier change from being finished")]
    Unsettled,
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    #[error(transparent)]
    Store(#[from] NodesError<StoreError>),
}

/// What is remembered between scans.
#[derive(Debug, Default)]
pub(super) struct Scanner {
    pub(super) guard: Guard,
    pub(super) held: Option<HeldReason>,
    /// The user has confirmed what the next scan finds.
    pub(super) confirmed: bool,
    pub(super) next_id: u64,
    /// Paths with a base record.
    pub(super) entries: u64,
    /// Files whose ctime alone changed: to be read when there is nothing else to do.
    pub(super) later: VecDeque<HomeId>,
    /// Files that changed while they were read, and are left alone for a while.
    pub(super) restless: HashMap<At, Restless>,
    pub(super) unread: Unread,
    pub(super) puller: Puller,
    pub(super) partial: Option<Partial<NewFile>>,
    pub(super) rules: HomeRules,
}

/// A file that does not stop changing.
#[derive(Debug, Clone, Copy)]
pub(super) struct Restless {
    /// Not read before this.
    until: Duration,
    wait: Duration,
}

impl Scanner {
    /// Somebody has closed a file: it may be at rest now.
    pub(super) fn note_closed(&mut self, at: &At, now: Duration) {
        if let Some(restless) = self.restless.get_mut(at) {
            restless.until = restless.until.min(now + LATER);
        }
    }

    /// A file changed while it was read. Returns how long it is left alone.
    fn note_restless(&mut self, at: &At, now: Duration) -> Duration {
        let last = self.restless.get(at).map(|restless| restless.wait);
        let wait = last.map_or(LATER, |last| (last * 2).min(LATER_MAX));
        let until = now + wait;
        self.restless.insert(at.clone(), Restless { until, wait });
        wait
    }
}

/// One scan under way.
pub(super) struct Scan<'h> {
    home: &'h Inner,
    scanner: &'h mut Scanner,
    progress: &'h dyn Fn(ScanProgress),
    done: ScanProgress,
    report: ScanReport,
    moved: HashSet<(HomeId, Bytes)>,
}

/// Which part of a home to scan.
pub(super) enum Part<'d> {
    Everything,
    Dirs {
        dirs: &'d [HomeId],
        open: &'d HashSet<(HomeId, Bytes)>,
        /// Names of which nothing was heard but renames.
        moved: &'d HashSet<(HomeId, Bytes)>,
    },
}

impl<'h> Scan<'h> {
    pub(super) fn new(
        home: &'h Inner,
        scanner: &'h mut Scanner,
        progress: &'h dyn Fn(ScanProgress),
    ) -> Self {
        Self {
            home,
            scanner,
            progress,
            done: ScanProgress::default(),
            report: ScanReport::default(),
            moved: HashSet::new(),
        }
    }

    /// Scans; a home that is held back stays so until confirmed.
    pub(super) fn run(mut self, part: &Part<'_>) -> Result<ScanReport, ScanError> {
        if let Some(reason) = self.scanner.held.clone() {
            return Err(ScanError::Held(reason));
        }
        match self.run_unguarded(part) {
            Ok(()) => {
                self.note_problems(part);
                Ok(self.report)
            }
            Err(ScanError::Held(reason)) => {
                self.scanner.held = Some(reason.clone());
                Err(ScanError::Held(reason))
            }
            Err(error) => Err(error),
        }
    }

    fn note_problems(&self, part: &Part<'_>) {
        let files = &self.home.files;
        let dirs = match part {
            Part::Everything => None,
            Part::Dirs { dirs, .. } => Some(dirs.iter().filter_map(|dir| files.path(*dir))),
        };
        let dirs: Option<Vec<Vec<u8>>> = dirs.map(Iterator::collect);
        self.home
            .problems
            .lock()
            .note(dirs.as_deref(), &self.report);
    }

    fn run_unguarded(&mut self, part: &Part<'_>) -> Result<(), ScanError> {
        let home = self.home;
        check_root(home).map_err(ScanError::Held)?;
        self.recover()?;
        if self.scanner.rules.refresh(home) && !matches!(part, Part::Everything) {
            home.scan_asked.store(true, Ordering::Release);
            home.waker.wake();
        }
        let mut leftover = Vec::new();
        let table = Table(&*home.ledger);
        let stamp = (home.files.root_stamp().0, home.files.root_ino());
        let next_id = HomeId(self.scanner.next_id);
        let no_files = HashSet::new();
        let (mut plan, open) = match part {
            Part::Everything => (Plan::full(&table, stamp, next_id), &no_files),
            Part::Dirs { dirs, open, moved } => {
                self.moved.clone_from(moved);
                let dirs = dirs.iter().filter_map(|dir| self.expected(*dir));
                (Plan::partial(&table, stamp.0, next_id, dirs), *open)
            }
        };
        let is_first = self.scanner.entries == 0;
        let mut root_is_empty = false;
        while let Some(visit) = plan.next_visit() {
            self.go_on()?;
            let mut listing = self.list(&visit, open);
            self.spare_restless(&visit, &mut listing);
            let names = std::mem::take(&mut listing.leftover);
            leftover.extend(names.into_iter().map(|name| (visit.dir, name)));
            root_is_empty |=
                visit.dir == HomeId::ROOT && listing.complete && listing.names.is_empty();
            self.done.found += listing.names.len() as u64;
            if listing.complete && listing.ino == visit.ino {
                self.scanner.unread.forget(visit.dir);
            }
            plan.listed(visit, listing);
            self.scanner.next_id = plan.next_id().0;
            if is_first && plan.waiting() >= FIRST_FILES {
                let steps = plan.drain();
                self.carry_out(steps)?;
                plan.reserve(HomeId(self.scanner.next_id));
            }
        }
        self.scanner.next_id = plan.next_id().0;
        let steps = plan.finish();
        if !std::mem::take(&mut self.scanner.confirmed) {
            let now = home.elapsed();
            let judged =
                self.scanner
                    .guard
                    .judge(now, self.scanner.entries, steps.gone(), root_is_empty);
            judged.map_err(ScanError::Held)?;
        }
        self.carry_out(steps)?;
        Ok(writeback::sweep(home, self.scanner, &leftover)?)
    }

    fn recover(&mut self) -> Result<(), ScanError> {
        match writeback::recover(self.home, self.scanner)? {
            true => Ok(()),
            false => Err(ScanError::Unsettled),
        }
    }

    fn go_on(&self) -> Result<(), ScanError> {
        match self.home.stop.load(Ordering::Acquire) {
            true => Err(ScanError::Stopped),
            false => Ok(()),
        }
    }

    /// Where the records say a directory is, and its inode.
    fn expected(&self, dir: HomeId) -> Option<(HomeId, Vec<u8>, u64)> {
        if dir == HomeId::ROOT {
            return Some((dir, Vec::new(), self.home.files.root_ino()));
        }
        let row = self.home.row(&self.home.files.place(dir)?)?;
        Some((dir, self.home.files.path(dir)?, row.stamp.ino))
    }

    /// Reads a directory; watched before it is read, so that nothing falls between. What has got its path meanwhile is
    /// watched as what it turns out to be.
    fn list(&self, visit: &Visit, open: &HashSet<(HomeId, Bytes)>) -> Listing {
        let files = &self.home.files;
        let listing = files.open_dir(&visit.path).and_then(|fd| {
            if files.ino(&fd)? == visit.ino {
                self.home.watch_dir(visit.dir, &fd);
            }
            files.list(&fd, visit.dir == HomeId::ROOT)
        });
        let mut listing = listing.unwrap_or_default();
        self.leave_out_ignored(visit, &mut listing);
        for (name, seen) in &mut listing.names {
            let is_file = matches!(seen, Seen::Found(found) if found.kind == FoundKind::File);
            if is_file && !open.is_empty() && open.contains(&(visit.dir, name.clone())) {
                *seen = Seen::Busy;
            }
        }
        listing
    }

    /// Names that the rules keep out and that are not in the folder are as if they were not there.
    fn leave_out_ignored(&self, visit: &Visit, listing: &mut Listing) {
        let within = self.scanner.rules.rules.within(&visit.path);
        let (home, dir) = (self.home, visit.dir);
        listing.names.retain(|name, seen| {
            let is_dir = seen.is_dir();
            !within.ignores(name, is_dir) || is_in_folder(home, dir, name)
        });
    }

    /// Leaves files alone that would change again while they are read.
    fn spare_restless(&mut self, visit: &Visit, listing: &mut Listing) {
        if self.scanner.restless.is_empty() {
            return;
        }
        let (dir, now) = (visit.dir, self.home.elapsed());
        let restless = &mut self.scanner.restless;
        restless.retain(|at, _| at.dir != dir || listing.names.contains_key(&at.name));
        for (at, restless) in restless.iter().filter(|(at, _)| at.dir == dir) {
            if let Some(seen) = listing.names.get_mut(&at.name)
                && restless.until > now
            {
                *seen = Seen::Busy;
                self.report.moving.push(join(&visit.path, &at.name));
                self.report.again.push((dir, restless.until - now));
            }
        }
    }

    fn carry_out(&mut self, mut steps: Steps) -> Result<(), ScanError> {
        self.report.counts.add(std::mem::take(&mut steps.report));
        let unread = std::mem::take(&mut steps.unread);
        (self.progress)(self.done);
        let (renamed, home) = (std::mem::take(&mut steps.renamed), self.home);
        {
            // What lists the chunks of a file is stored before the folder names it.
            let _unnamed = home.store.hold();
            let taken = self.read_batch(&renamed)?;
            self.report.renamed += taken.len() as u64;
            self.rebuild(&steps, taken)?;
        }
        for batch in steps.changed.chunks(BATCH_FILES) {
            let _unnamed = home.store.hold();
            let taken = self.read_batch(batch)?;
            self.report.read += taken.len() as u64;
            self.publish(taken)?;
        }
        self.look(&steps.touched)?;
        self.look_at_dirs(&steps.touched_dirs)?;
        self.sort_unread(unread);
        Ok(())
    }

    /// What could not be read where it was expected is tried again, with the directory around it, which may not have it
    /// any more. What is found gone by now is no directory that cannot be read.
    fn sort_unread(&mut self, unread: Vec<(HomeId, Vec<u8>)>) {
        let mut gone = HashSet::new();
        for (dir, path) in unread {
            let files = &self.home.files;
            let (now, place) = (files.path(dir), files.place(dir));
            match now.is_some() {
                true => {
                    let wait = self.scanner.unread.failed(dir);
                    let around = place.map(|at| at.dir);
                    let both = [Some(dir), around].into_iter().flatten();
                    let again = both.filter_map(|dir| Some((dir, wait?)));
                    self.report.again.extend(again);
                }
                false => self.scanner.unread.forget(dir),
            }
            if now.as_ref() != Some(&path) {
                gone.insert(path);
            }
        }
        let unknown = &mut self.report.counts.unknown;
        unknown.retain(|path| !gone.contains(path));
    }

    /// Removals, renames and new directories: one update, because together they are one change of the tree.
    fn rebuild(&mut self, steps: &Steps, renamed: Vec<(Take, Taken)>) -> Result<(), ScanError> {
        if steps.gone() == 0 && steps.dirs.is_empty() && renamed.is_empty() {
            return Ok(());
        }
        let dirs = self.read_dir_attributes(steps);
        let mut recorded = Recorded::default();
        self.home.ledger.update(&mut |txn| {
            recorded = record::rebuild(txn, steps, &dirs, &mut files_of(&renamed));
        })?;
        self.forget(steps);
        self.settle(renamed, recorded);
        Ok(())
    }

    /// The attributes and base records of directories that are new or renamed.
    fn read_dir_attributes(&self, steps: &Steps) -> Vec<(Xattrs, Row)> {
        let read = |path: &[u8]| {
            let fd = self.home.files.open_dir(path);
            fd.and_then(xattrs).unwrap_or_default()
        };
        let dirs = steps.dirs.iter().map(|step| match step {
            DirStep::New(new) => {
                let xattrs = read(&new.path);
                let row = Row {
                    id: new.id,
                    stamp: new.found.stamp,
                    mode: new.found.mode,
                    xattrs: xattr_digest(&xattrs),
                    unsure: false,
                    kind: RowKind::Dir,
                    held: Bytes::new(),
                };
                (xattrs, row)
            }
            // Its attributes are compared afterwards.
            DirStep::Moved(moved) => (Xattrs::new(), moved.row.clone()),
        });
        dirs.collect()
    }

    /// Drops what the home keeps in memory of what is gone.
    fn forget(&mut self, steps: &Steps) {
        for (_, row) in steps.removed.iter().chain(&steps.removed_dirs) {
            self.home.store.unborrow(self.home.files.source(row.id));
            self.home.files.set_place(row.id, None);
            self.home.unwatch_dir(row.id);
        }
        self.scanner.entries = self.scanner.entries.saturating_sub(steps.gone());
        let new = steps
            .dirs
            .iter()
            .filter(|step| matches!(step, DirStep::New(_)));
        self.scanner.entries += new.count() as u64;
        self.report.removed += steps.gone();
    }

    /// Takes in files, in two threads unless they are big.
    fn read_batch(&mut self, takes: &[Take]) -> Result<Vec<(Take, Taken)>, ScanError> {
        let ids: Vec<HomeId> = takes
            .iter()
            .map(|take| match &take.base {
                Some(row) => row.id,
                None => self.fresh_id(),
            })
            .collect();
        let home = self.home;
        let now = || FileTime::from_unix_nanos((home.clock)());
        let when = When {
            now: &now,
            stop: &home.stop,
            moved: &self.moved,
        };
        let read = |index: usize| take(&home.files, &home.store, &takes[index], ids[index], &when);
        let is_big = |index: usize| takes[index].found.stamp.size >= BIG_BYTES;
        let next = AtomicUsize::new(0);
        let results = Mutex::new(Vec::with_capacity(takes.len()));
        let work = || {
            loop {
                let index = next.fetch_add(1, Ordering::Relaxed);
                if index >= takes.len() || home.stop.load(Ordering::Relaxed) {
                    return;
                }
                if !is_big(index) {
                    let result = read(index);
                    results.lock().push((index, result));
                }
            }
        };
        if takes.len() > 1 {
            thread::scope(|scope| (0..READERS).for_each(|_| drop(scope.spawn(work))));
        } else {
            work();
        }
        for index in (0..takes.len()).filter(|index| is_big(*index)) {
            self.go_on()?;
            let result = read(index);
            results.lock().push((index, result));
        }
        self.go_on()?;
        let mut results = results.into_inner();
        results.sort_by_key(|(index, _)| *index);
        let results = results
            .into_iter()
            .map(|(index, result)| (takes[index].clone(), result));
        self.sort_out(results.collect())
    }

    /// Reports what could not be taken in.
    fn sort_out(
        &mut self,
        results: Vec<(Take, Result<Taken, Miss>)>,
    ) -> Result<Vec<(Take, Taken)>, ScanError> {
        let mut out = Vec::with_capacity(results.len());
        for (take, result) in results {
            match result {
                Ok(taken) => {
                    self.scanner.restless.remove(&take.at);
                    self.done.read += 1;
                    self.done.bytes += taken.file.size;
                    if taken.is_guess {
                        self.scanner.later.push_back(taken.row.id);
                    } else if taken.row.unsure {
                        let wait = unsure_for(taken.row.stamp.mtime);
                        self.report.again.push((take.at.dir, wait));
                    }
                    out.push((take, taken));
                }
                Err(Miss::Stopped) => return Err(ScanError::Stopped),
                Err(Miss::Store(error)) => return Err(error.into()),
                Err(Miss::Unreadable(error)) if !is_gone(&error) => {
                    tracing::debug!(%error, "a file cannot be read");
                    self.report.unreadable.push(take.path);
                }
                // Its name went, or that of a directory above it: of that nobody tells who looks at this one.
                Err(Miss::Unreadable(_) | Miss::Gone) => {
                    self.report.again.push((take.at.dir, SOON));
                    self.report.moving.push(take.path);
                }
                Err(Miss::Moving) => {
                    let wait = self.scanner.note_restless(&take.at, self.home.elapsed());
                    self.report.again.push((take.at.dir, wait));
                    self.report.moving.push(take.path);
                }
            }
        }
        (self.progress)(self.done);
        Ok(out)
    }

    /// One update with the content of files.
    fn publish(&mut self, taken: Vec<(Take, Taken)>) -> Result<(), ScanError> {
        if taken.is_empty() {
            return Ok(());
        }
        let mut recorded = Recorded::default();
        self.home.ledger.update(&mut |txn| {
            recorded = record::put_all(txn, &mut files_of(&taken));
        })?;
        self.settle(taken, recorded);
        Ok(())
    }

    /// What the folder has now is noted in memory and lent to the store.
    fn settle(&mut self, taken: Vec<(Take, Taken)>, mut recorded: Recorded) {
        for (id, at) in recorded.placed {
            self.home.files.set_place(id, Some(at));
        }
        for (take, taken) in taken {
            if self.home.files.place(taken.row.id).as_ref() != Some(&take.at) {
                continue;
            }
            let source = self.home.files.source(taken.row.id);
            self.home.store.unborrow(source);
            self.home.store.borrow(source, &taken.ranges);
            self.scanner.entries += u64::from(take.base.is_none());
        }
        self.report.blocked.append(&mut recorded.blocked);
    }

    /// Compares attributes of files whose ctime changed. Their content is read later.
    fn look(&mut self, looks: &[Look]) -> Result<(), ScanError> {
        let mut changed = Vec::new();
        for look in looks {
            let found = match self.home.files.open_file(&look.path).and_then(xattrs) {
                _ if look.found.kind == FoundKind::Symlink => Xattrs::new(),
                Ok(found) => found,
                Err(_) => {
                    self.report.unreadable.push(look.path.clone());
                    continue;
                }
            };
            changed.push((look, found));
            self.scanner.later.push_back(look.row.id);
        }
        if changed.is_empty() {
            return Ok(());
        }
        let mut blocked = Vec::new();
        self.home.ledger.update(&mut |txn| {
            let mut apply = Apply::new(txn);
            for (look, xattrs) in &changed {
                let digest = xattr_digest(xattrs);
                let change = Attributes {
                    mode: (look.found.mode != look.row.mode).then_some(look.found.mode),
                    mtime: None,
                    xattrs: (digest != look.row.xattrs).then(|| xattrs.clone()),
                };
                let is_file = look.found.kind == FoundKind::File;
                let row = Row {
                    stamp: look.found.stamp,
                    mode: look.found.mode,
                    xattrs: digest,
                    unsure: is_file,
                    ..look.row.clone()
                };
                match apply.attributes(&look.at, &look.row.held, &change) {
                    Ok(held) => apply.keep(&look.at, &Row { held, ..row }),
                    Err(error) => blocked.push((look.path.clone(), error)),
                }
            }
        })?;
        self.report.blocked.append(&mut blocked);
        Ok(())
    }

    fn look_at_dirs(&mut self, looks: &[Look]) -> Result<(), ScanError> {
        let mut changed = Vec::new();
        for look in looks {
            if let Ok(found) = self.home.files.open_dir(&look.path).and_then(xattrs) {
                changed.push((look, found));
            }
        }
        if changed.is_empty() {
            return Ok(());
        }
        let mut blocked = Vec::new();
        self.home.ledger.update(&mut |txn| {
            let mut apply = Apply::new(txn);
            for (look, xattrs) in &changed {
                let digest = xattr_digest(xattrs);
                let mode = (look.found.mode != look.row.mode).then_some(look.found.mode);
                let row = Row {
                    stamp: look.found.stamp,
                    mode: look.found.mode,
                    xattrs: digest,
                    ..look.row.clone()
                };
                let done = match (mode, digest == look.row.xattrs) {
                    (None, true) => Ok(()),
                    _ => apply.dir_attributes(look.row.id, mode, xattrs),
                };
                match done {
                    Ok(()) => apply.keep(&look.at, &row),
                    Err(error) => blocked.push((look.path.clone(), error)),
                }
            }
        })?;
        self.report.blocked.append(&mut blocked);
        Ok(())
    }

    /// Reads files again whatever their stamps say.
    pub(super) fn reread(mut self, ids: &[HomeId]) -> Result<ScanReport, ScanError> {
        if let Some(reason) = self.scanner.held.clone() {
            return Err(ScanError::Held(reason));
        }
        self.recover()?;
        let (mut takes, mut astray) = (Vec::new(), Vec::new());
        for id in ids {
            match self.take_again(*id) {
                Some(take) => takes.push(take),
                None => astray.push(*id),
            }
        }
        self.report.astray = astray;
        for batch in takes.chunks(BATCH_FILES) {
            let taken = self.read_batch(batch)?;
            self.report.read += taken.len() as u64;
            self.publish(taken)?;
        }
        Ok(self.report)
    }

    fn take_again(&self, id: HomeId) -> Option<Take> {
        let at = self.home.files.place(id)?;
        if is_hidden(at.dir) {
            // It was written to through an old handle: what it had is not there any more.
            self.home.store.unborrow(self.home.files.source(id));
            return None;
        }
        let path = self.home.files.path(id)?;
        let base = Some(self.home.row(&at)?).filter(|row| !row.is_dir())?;
        let found = self.home.files.stat(&path).ok()?;
        let is_file = matches!(found.kind, FoundKind::File | FoundKind::Symlink);
        is_file.then_some(Take {
            at,
            path,
            found,
            base: Some(base),
            source: None,
        })
    }

    fn fresh_id(&mut self) -> HomeId {
        let id = HomeId(self.scanner.next_id);
        self.scanner.next_id += 1;
        id
    }
}

/// Whether a name has a base record, or the folder shows it.
fn is_in_folder(home: &Inner, dir: HomeId, name: &Bytes) -> bool {
    let at = At {
        dir,
        name: name.clone(),
    };
    if home.row(&at).is_some() {
        return true;
    }
    let fid = match dir {
        HomeId::ROOT => Some(Fid::ROOT),
        dir => noted_fid(&*home.ledger, dir),
    };
    let mut is_shown = false;
    home.ledger.read(&mut |state| {
        is_shown = fid.is_some_and(|fid| state.lookup(fid, name).is_some());
    });
    is_shown
}

/// Whether an error says that a file is not there any more, or is another kind of thing.
fn is_gone(error: &std::io::Error) -> bool {
    use rustix::io::Errno;
    matches!(
        Errno::from_io_error(error),
        Some(Errno::NOENT | Errno::NOTDIR | Errno::LOOP)
    )
}

/// Whether the directory is still ours.
pub(super) fn check_root(home: &Inner) -> Result<(), HeldReason> {
    // Under a mount of ours the path leads there, and nobody else can reach the directory.
    if !home.is_mounted.load(Ordering::Acquire) {
        let stat = rustix::fs::stat(&home.path).map_err(|_| HeldReason::RootMissing)?;
        if (stat.st_dev, stat.st_ino) != home.files.root_stamp() {
            return Err(HeldReason::Replaced);
        }
    }
    let root = home.files.root().map_err(|_| HeldReason::RootMissing)?;
    match marker::read(&root) {
        Ok(Some(marker)) if marker == home.marker => Ok(()),
        Ok(Some(_)) => Err(HeldReason::MarkerOfAnother),
        Ok(None) => Err(HeldReason::MarkerMissing),
        Err(_) => Err(HeldReason::RootMissing),
    }
}

fn files_of(taken: &[(Take, Taken)]) -> impl Iterator<Item = (&Take, &DiskFile, &Row)> {
    taken
        .iter()
        .map(|(take, taken)| (take, &taken.file, &taken.row))
}

impl Counts {
    fn add(&mut self, mut more: Self) {
        self.files += more.files;
        self.dirs += more.dirs;
        self.unchanged += more.unchanged;
        self.special.append(&mut more.special);
        self.nested.append(&mut more.nested);
        self.unknown.append(&mut more.unknown);
    }
}

/// Fills the store's table of borrowed ranges from the base records, without opening a file. Returns the number after
/// the largest in use, the count of records, and the files whose content is to be read again.
pub(super) fn load(home: &LoadFrom<'_>) -> Result<Scanner, NodesError<StoreError>> {
    let mut files = Vec::new();
    let (next_id, entries) = record::restore(home.ledger, home.files.places(), &mut |row| {
        if let RowKind::File { content } = &row.kind {
            files.push((row.id, content.clone(), row.stamp.size));
        }
    });
    let mut scanner = Scanner {
        next_id,
        entries,
        ..Scanner::default()
    };
    for (id, content, size) in files {
        // Without its nodes a file is not lent; a reading makes them again.
        match ranges_of(home.store, &content, size) {
            Ok(ranges) => home.store.borrow(home.files.source(id), &ranges),
            Err(NodesError::Missing(_)) => scanner.later.push_back(id),
            Err(error) => return Err(error),
        }
    }
    Ok(scanner)
}

/// What [`load`] reads from.
pub(super) struct LoadFrom<'a> {
    pub(super) ledger: &'a dyn Ledger,
    pub(super) store: &'a ccbt_xet::store::Store,
    pub(super) files: &'a HomeFiles,
}
