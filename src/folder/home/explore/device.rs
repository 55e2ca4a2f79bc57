//! The device under test: a home on the disk that fails, scanned as [`super::super::scan`] does it and written by the
//! real writer.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::disk::{Disk, FakeFs, IGNORED, ROOT};
use super::faults::{Faults, Random};
use super::ledger::CrashLedger;
use super::people::User;
use crate::folder::home::base::{FileTime, HomeId, Row, RowKind, is_unsure};
use crate::folder::home::fs::TEMP_PREFIX;
use crate::folder::home::guard::Guard;
use crate::folder::home::ledger::{Apply, DiskFile, Extent, Ledger, LedgerError};
use crate::folder::home::marker::OWN_DIR;
use crate::folder::home::memory::MemoryLedger;
use crate::folder::home::places::Places;
use crate::folder::home::plan::{DirStep, FoundKind, Listing, Plan, Seen, Steps, Take, Visit};
use crate::folder::home::pull::{Pull, Puller};
use crate::folder::home::record::{self, Recorded, Table};
use crate::folder::home::write::{ContentError, Contents, Piece, Writer, Written};
use crate::folder::state::{FileKind, Inc, State, Xattrs};

/// Contents are their own references.
struct Whole<'r> {
    random: &'r RefCell<Random>,
    /// Everything has arrived.
    is_complete: bool,
}

pub(super) struct Device {
    pub(super) fs: FakeFs,
    pub(super) faults: Arc<Faults>,
    pub(super) ledger: CrashLedger,
    pub(super) user: Rc<RefCell<User>>,
    places: Places,
    puller: Puller,
    next_id: u64,
    guard: Guard,
    entries: u64,
    is_held: bool,
    confirmed: bool,
    lives: u8,
    contents: RefCell<Random>,
    /// Every content has arrived.
    pub(super) is_complete: bool,
    /// What of the folder is not known to be written.
    changed: Extent,
    /// Contents that a crash took files back to: elsewhere they may have been renamed, or published, since.
    pub(super) returned: BTreeSet<Bytes>,
}

impl Contents for Whole<'_> {
    fn read(
        &self,
        content: &Bytes,
        _size: u64,
        each: &mut dyn FnMut(Piece<'_>) -> io::Result<()>,
    ) -> Result<(), ContentError> {
        if !self.is_complete && self.random.borrow_mut().one_in(10) {
            return Err(ContentError::Missing);
        }
        let (one, two) = content.split_at(content.len() / 2);
        each(Piece::Bytes(one))?;
        Ok(each(Piece::Bytes(two))?)
    }

    fn lend(&self, _id: HomeId, _content: &Bytes, _size: u64) {}
}

fn inc(life: u8) -> Inc {
    Inc([b'o', b'u', b'r', b's', 0, 0, 0, life])
}

impl Device {
    pub(super) fn new(seed: u64, can_exchange: bool) -> Self {
        let mut random = Random(seed);
        let faults = Arc::new(Faults::new(random.next(), can_exchange));
        let mut disk = Disk::new();
        if let Ok(own) = disk.make(ROOT, OWN_DIR.as_bytes(), FoundKind::Dir, Bytes::new()) {
            let _marker = disk.make(own, b"home", FoundKind::File, Bytes::new());
        }
        disk.sync_names();
        let user = Rc::new(RefCell::new(User::new(random.next())));
        let hand = Rc::clone(&user);
        let fs = FakeFs {
            disk: RefCell::new(disk),
            faults: Arc::clone(&faults),
            others: RefCell::new(Box::new(move |disk| hand.borrow_mut().maybe_act(disk))),
        };
        let memory = MemoryLedger::new(inc(0)).lock().clone();
        Self {
            fs,
            ledger: CrashLedger::new(memory, Arc::clone(&faults)),
            faults,
            user,
            places: Places::default(),
            puller: Puller::default(),
            next_id: 1,
            guard: Guard::default(),
            entries: 0,
            is_held: false,
            confirmed: false,
            lives: 0,
            contents: RefCell::new(random),
            is_complete: false,
            changed: Extent::Everything,
            returned: BTreeSet::new(),
        }
    }

    pub(super) fn is_down(&self) -> bool {
        self.faults.is_down()
    }

    /// The power failed; what is durable is read again.
    pub(super) fn restart(&mut self, random: &mut Random) {
        self.lives += 1;
        self.user.borrow_mut().restart();
        let returned = self.fs.disk.borrow_mut().crash(random);
        self.returned.extend(returned);
        self.ledger.crash(random, inc(self.lives));
        self.faults.set(None, None, false);
        self.places = Places::default();
        self.puller = Puller::default();
        self.guard = Guard::default();
        self.is_held = false;
        self.changed = Extent::Everything;
        (self.next_id, self.entries) = record::restore(&self.ledger, &self.places, &mut |_| ());
    }

    pub(super) fn wait(&self, ms: u64) {
        self.fs.disk.borrow_mut().clock += ms * 1_000_000;
    }

    /// What is on disk stays, whatever happens.
    pub(super) fn sync_all(&self) {
        let disk = &mut *self.fs.disk.borrow_mut();
        let all: Vec<u64> = disk.nodes.keys().copied().collect();
        all.into_iter().for_each(|ino| disk.sync_node(ino));
        disk.sync_names();
    }

    pub(super) fn jump(&self, forward: bool) {
        const YEAR: u64 = 365 * 86_400 * 1_000_000_000;
        let clock = &mut self.fs.disk.borrow_mut().clock;
        *clock = if forward {
            *clock + YEAR
        } else {
            *clock - YEAR
        };
    }

    pub(super) fn mount(&self, is_mounted: bool) {
        self.fs.disk.borrow_mut().is_mounted = is_mounted;
    }

    pub(super) fn user_acts(&self) {
        self.user.borrow_mut().act(&mut self.fs.disk.borrow_mut());
    }

    pub(super) fn user_is_busy(&self, acts_one_in: Option<u64>) {
        self.user.borrow_mut().acts_one_in = acts_one_in;
    }

    pub(super) fn empty(&self) {
        self.user.borrow_mut().empty(&mut self.fs.disk.borrow_mut());
    }

    pub(super) fn safe(&self) -> BTreeSet<Bytes> {
        self.fs.disk.borrow().safe()
    }

    pub(super) fn contents(&self) -> BTreeSet<Bytes> {
        self.fs.disk.borrow().contents()
    }

    pub(super) fn forgive(&self, is_lost: impl Fn(&Bytes) -> bool) {
        self.user
            .borrow_mut()
            .owed
            .retain(|content| !is_lost(content));
    }

    pub(super) fn confirm(&mut self) {
        self.confirmed = self.is_held;
        self.is_held = false;
        if self.confirmed {
            self.guard.reset();
        }
    }

    /// Operations of ours that the folder knows.
    pub(super) fn own_dots(&self) -> u64 {
        let state = self.ledger.state();
        (0..=self.lives).map(|life| state.vv().get(inc(life))).sum()
    }

    pub(super) fn has_intents(&self) -> bool {
        !self.ledger.rows(b"i").is_empty()
    }

    /// Makes what is to be published durable.
    pub(super) fn publish(&self) -> bool {
        self.ledger.sync().is_ok()
    }

    pub(super) fn merge(&self, state: &State, hlc: u64) {
        self.ledger.merge(state, hlc);
    }

    fn now(&self) -> FileTime {
        self.fs.disk.borrow().now()
    }

    /// Does something with the writer, after what was left in between is settled.
    fn write<R>(
        &mut self,
        work: impl FnOnce(&mut Writer<'_, FakeFs>, &mut Puller) -> Result<R, LedgerError>,
    ) -> Option<(R, Written)> {
        let now = || self.fs.disk.borrow().now();
        let contents = Whole {
            random: &self.contents,
            is_complete: self.is_complete,
        };
        let mut writer = Writer {
            fs: &self.fs,
            ledger: &self.ledger,
            contents: &contents,
            places: &self.places,
            is_spent: &|path, _| self.fs.disk.borrow().has_only_ignored(path),
            next_id: &mut self.next_id,
            now: &now,
            written: Written::default(),
            is_stuck: false,
            refused: None,
        };
        let result = match writer.recover() {
            Ok(true) => work(&mut writer, &mut self.puller).ok(),
            Ok(false) | Err(_) => None,
        };
        let written = writer.written;
        self.entries = self.entries.saturating_add_signed(written.entries);
        Some((result?, written))
    }

    fn is_home(&self) -> bool {
        self.fs
            .list(OWN_DIR.as_bytes())
            .is_ok_and(|(_, names)| names.iter().any(|(name, _)| *name == "home"))
    }

    /// Writes what changed, and what could not be written before. Returns whether nothing is left to do.
    pub(super) fn pull(&mut self) -> bool {
        self.changed.add(self.ledger.take_changed());
        let nothing = Extent::Dirs(BTreeSet::new());
        let extent = std::mem::replace(&mut self.changed, nothing);
        let is_done = self.pull_extent(&extent);
        if !is_done {
            self.changed.add(extent);
        }
        is_done
    }

    /// Returns whether nothing is left to do.
    fn pull_extent(&mut self, extent: &Extent) -> bool {
        if self.is_held || !self.is_home() {
            return false;
        }
        let done = self.write(|writer, puller| Pull::new(writer, puller).run(extent));
        done.is_some_and(|(left, _)| left.is_nothing())
    }

    pub(super) fn scan(&mut self) {
        if self.is_held || !self.is_home() {
            return;
        }
        if self.write(|_, _| Ok(())).is_none() {
            return;
        }
        let mut leftover = Vec::new();
        let mut root_is_empty = false;
        let steps = {
            let table = Table(&self.ledger);
            let root = self
                .fs
                .disk
                .borrow()
                .found(ROOT)
                .map_or((0, 0), |root| (root.dev, root.stamp.ino));
            let mut plan = Plan::full(&table, root, HomeId(self.next_id));
            while let Some(visit) = plan.next_visit() {
                let listing = self.list(&visit, &mut leftover);
                root_is_empty |=
                    visit.dir == HomeId::ROOT && listing.complete && listing.names.is_empty();
                plan.listed(visit, listing);
            }
            self.next_id = self.next_id.max(plan.next_id().0);
            plan.finish()
        };
        if !std::mem::take(&mut self.confirmed) {
            let now = Duration::from_nanos(self.fs.disk.borrow().clock);
            let judged = self
                .guard
                .judge(now, self.entries, steps.gone(), root_is_empty);
            if judged.is_err() {
                self.is_held = true;
                return;
            }
        }
        let _failed = self.carry_out(steps);
        for (dir, name) in leftover {
            let _swept = self.write(|writer, _| {
                let _left = writer.sweep(dir, &name);
                Ok(())
            });
        }
    }

    fn list(&self, visit: &Visit, leftover: &mut Vec<(HomeId, Bytes)>) -> Listing {
        let Ok((ino, names)) = self.fs.list(&visit.path) else {
            return Listing::default();
        };
        let mut listing = Listing {
            complete: true,
            ino,
            ..Listing::default()
        };
        for (name, found) in names {
            let is_own = visit.dir == HomeId::ROOT && name == OWN_DIR;
            if name.starts_with(TEMP_PREFIX) {
                leftover.push((visit.dir, name));
            } else if !is_own && !name.starts_with(IGNORED) {
                listing.names.insert(name, Seen::Found(found));
            }
        }
        listing
    }

    fn carry_out(&mut self, steps: Steps) -> Result<(), LedgerError> {
        let renamed = self.take_all(&steps.renamed);
        let dirs: Vec<(Xattrs, Row)> = steps.dirs.iter().map(dir_of).collect();
        let mut recorded = Recorded::default();
        self.ledger.update(&mut |txn| {
            recorded = record::rebuild(txn, &steps, &dirs, &mut files_of(&renamed));
        })?;
        for (_, row) in steps.removed.iter().chain(&steps.removed_dirs) {
            self.places.set(row.id, None);
        }
        self.entries = self.entries.saturating_sub(steps.gone());
        self.settle(recorded);
        let mut changed = steps.changed;
        changed.extend(steps.touched.into_iter().map(|look| Take {
            at: look.at,
            path: look.path,
            found: look.found,
            base: Some(look.row),
            source: None,
        }));
        let taken = self.take_all(&changed);
        let mut recorded = Recorded::default();
        self.ledger.update(&mut |txn| {
            recorded = record::put_all(txn, &mut files_of(&taken));
        })?;
        self.settle(recorded);
        self.ledger.update(&mut |txn| {
            for look in &steps.touched_dirs {
                let row = Row {
                    stamp: look.found.stamp,
                    mode: look.found.mode,
                    ..look.row.clone()
                };
                let mode = (look.found.mode != look.row.mode).then_some(look.found.mode);
                let mut apply = Apply::new(txn);
                if apply.dir_attributes(row.id, mode, &Xattrs::new()).is_ok() {
                    apply.keep(&look.at, &row);
                }
            }
        })
    }

    fn settle(&mut self, recorded: Recorded) {
        self.entries += recorded.placed.len() as u64;
        for (id, at) in recorded.placed {
            self.places.set(id, Some(at));
        }
    }

    fn take_all(&mut self, takes: &[Take]) -> Vec<(Take, DiskFile, Row)> {
        let mut out = Vec::new();
        for take in takes {
            let id = take
                .base
                .as_ref()
                .map_or(HomeId(self.next_id), |row| row.id);
            self.next_id += 1;
            let looked_at = self.now();
            if let Ok((found, data)) = self.fs.read(&take.path) {
                let kind = match found.kind {
                    FoundKind::File => FileKind::File,
                    FoundKind::Symlink => FileKind::Symlink,
                    _ => continue,
                };
                let file = DiskFile {
                    kind,
                    content: data.clone(),
                    size: found.stamp.size,
                    mtime: found.stamp.mtime,
                    mode: found.mode,
                    xattrs: Xattrs::new(),
                };
                let row = Row {
                    id,
                    stamp: found.stamp,
                    mode: found.mode,
                    xattrs: 0,
                    unsure: is_unsure(found.stamp.mtime, looked_at),
                    kind: match kind {
                        FileKind::File => RowKind::File { content: data },
                        FileKind::Symlink => RowKind::Symlink { target: data },
                    },
                    held: Bytes::new(),
                };
                out.push((take.clone(), file, row));
            }
        }
        out
    }
}

fn files_of(taken: &[(Take, DiskFile, Row)]) -> impl Iterator<Item = (&Take, &DiskFile, &Row)> {
    taken.iter().map(|(take, file, row)| (take, file, row))
}

fn dir_of(step: &DirStep) -> (Xattrs, Row) {
    let row = match step {
        DirStep::New(new) => Row {
            id: new.id,
            stamp: new.found.stamp,
            mode: new.found.mode,
            xattrs: 0,
            unsure: false,
            kind: RowKind::Dir,
            held: Bytes::new(),
        },
        DirStep::Moved(moved) => moved.row.clone(),
    };
    (Xattrs::new(), row)
}
