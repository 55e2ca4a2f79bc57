//! Giving space back: what the owner no longer wants leaves the index, and packs that are mostly
//! dead are emptied into the open one and removed.
//!
//! Order makes it crash-safe: live records are copied and synced before the old pack goes. A crash
//! in between leaves two copies, or dead records that come back at start; both are only garbage.
//!
//! What is asked for is the wanted, name by name; the index turns names into bits, one a record ([`Marks`]). Records
//! that were not there when gc started have no bit and stay, as do those in packs written to in the last
//! [`grace`](Collect::grace): what peers send is stored before anything here names it.
//!
//! A put must not be told "held" about a record that is being dropped. Puts in flight when gc
//! starts finish first; later ones set the bits of what they look for before they look, and gc looks at the bits
//! under the same lock in which it drops a record. So a gc of hours costs a bit a record, however much is put meanwhile.
//!
//! Nor may a chunk go that was put before gc started and is named only later by what gc asks about.
//! Who works like that holds a [`Hold`] from before its first put until the names are recorded;
//! [`Store::collect`] makes the bits first, then waits for the holds that are older, then asks.
//!
//! A record that is moved is hashed once more: it may have been good when it was last read, and whoever finds the copy
//! has no other.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex, RwLock, RwLockReadGuard};
use thiserror::Error;

use crate::hash::{ChunkHash, NodeId};
use crate::index::{PackId, Place};
use crate::pack::{Name, Pack, PackKind};

use super::shelf::{Item, Shelf};
use super::{Store, WriteError};

/// A pack is emptied once its live records take less than this part of it, in eighths. Half would leave every second
/// pack alone when every second record of many like ones is dead; at five eighths a byte is given back for less than
/// two copied.
const LIVE_EIGHTHS: u64 = 5;

/// What a gc did, or would do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reclaimed {
    /// Records that left the index.
    pub dropped: u64,
    /// Their bytes.
    pub dropped_bytes: u64,
    /// Bytes of live records copied to other packs.
    pub moved_bytes: u64,
    /// Bytes of pack files removed.
    pub freed_bytes: u64,
}

/// How [`Store::collect`] goes about it.
#[derive(Clone, Copy, Debug)]
pub struct Collect {
    /// Longest wait for work that began before.
    pub wait: Duration,
    /// Packs written to less than this ago keep everything.
    pub grace: Duration,
    /// Nothing is dropped; the result is what would be.
    pub dry_run: bool,
}

/// Who tells what is wanted.
#[derive(Debug)]
pub struct Marks<'s>(&'s Store);

impl Marks<'_> {
    /// A chunk is wanted.
    pub fn chunk(&mut self, hash: &ChunkHash) {
        self.0.gate.mark(&self.0.chunks, hash.as_bytes());
    }

    /// A node is wanted.
    pub fn node(&mut self, id: &NodeId) {
        self.0.gate.mark(&self.0.nodes, id.as_bytes());
    }

    /// Which nodes are wanted cannot be told: all of them are.
    pub fn keep_all_nodes(&mut self) {
        self.0.gate.keep_all(&self.0.nodes);
    }
}

/// What a gc judges.
#[derive(Debug)]
pub(crate) struct Judged {
    chunks: Marked,
    nodes: Marked,
}

impl Judged {
    fn new(store: &Store, grace: Duration) -> Self {
        Self {
            chunks: Marked::new(&store.chunks, grace),
            nodes: Marked::new(&store.nodes, grace),
        }
    }

    fn of(&mut self, shelf: &Shelf) -> &mut Marked {
        match shelf.kind {
            PackKind::Chunks(_) => &mut self.chunks,
            PackKind::Nodes => &mut self.nodes,
        }
    }
}

/// A bit for each record of a shelf there was when gc started: it is wanted. What is in no pack here is wanted too.
#[derive(Debug)]
struct Marked {
    packs: HashMap<PackId, PackMarks>,
}

#[derive(Debug)]
struct PackMarks {
    /// Records that are judged; those after them came later.
    slots: usize,
    bits: Box<[u64]>,
}

impl Marked {
    fn new(shelf: &Shelf, grace: Duration) -> Self {
        let packs: Vec<Arc<Pack>> = shelf.packs.read().values().cloned().collect();
        let disk = &shelf.files.disk;
        // A pack that cannot be looked at is left alone.
        let is_old = |pack: &&Arc<Pack>| {
            grace.is_zero() || disk.age(&pack.path).is_ok_and(|age| age >= grace)
        };
        let marks = packs.iter().filter(is_old).map(|pack| {
            let slots = pack.slots();
            let bits = vec![0; slots.div_ceil(64)].into_boxed_slice();
            (pack.id, PackMarks { slots, bits })
        });
        Self {
            packs: marks.collect(),
        }
    }

    fn mark(&mut self, place: Place) {
        let bits = self.packs.get_mut(&place.pack).map(|marks| &mut marks.bits);
        if let Some(word) = bits.and_then(|bits| bits.get_mut(usize::from(place.slot) / 64)) {
            *word |= 1 << (place.slot % 64);
        }
    }

    fn keeps(&self, place: Place) -> bool {
        let slot = usize::from(place.slot);
        let Some(marks) = self.packs.get(&place.pack) else {
            return true;
        };
        slot >= marks.slots || (marks.bits[slot / 64] >> (slot % 64)) & 1 == 1
    }
}

/// Whether a record is wanted. Asked once about each.
type Keep<'k> = &'k dyn Fn(Place, &Name) -> bool;

/// Hears what was done so far, the bytes of packs looked at and of all there are. False: that is enough.
type Report<'r> = &'r mut dyn FnMut(&Reclaimed, (u64, u64)) -> bool;

/// What the gc that runs judges. `None` when none does.
pub(crate) type Judging = Option<Mutex<Judged>>;

/// Where puts and gc meet.
#[derive(Debug, Default)]
pub(crate) struct Gate {
    judging: RwLock<Judging>,
    running: Mutex<()>,
    holds: Mutex<Holds>,
    released: Condvar,
}

/// Holds by the generation they began in. Each gc begins a generation.
#[derive(Debug, Default)]
struct Holds {
    generation: u64,
    open: BTreeMap<u64, usize>,
}

/// Keeps gc from deciding about chunks while their names are not yet recorded.
#[derive(Debug)]
pub struct Hold<'a> {
    gate: &'a Gate,
    generation: u64,
}

impl Drop for Hold<'_> {
    fn drop(&mut self) {
        let mut holds = self.gate.holds.lock();
        if let Some(count) = holds.open.get_mut(&self.generation) {
            *count -= 1;
            if *count == 0 {
                holds.open.remove(&self.generation);
            }
        }
        drop(holds);
        self.gate.released.notify_all();
    }
}

/// Why garbage was not collected.
#[derive(Debug, Error)]
pub enum CollectError<E> {
    /// Work that began before did not end in time.
    #[error("files are being stored, and not done after {} s", .0.as_secs())]
    Busy(Duration),
    /// What is to be kept could not be told.
    #[error("{0}")]
    Mark(E),
    /// The store failed. Everything wanted is still there.
    #[error(transparent)]
    Write(#[from] WriteError),
}

impl Gate {
    /// A put passes with the names it is going to look for: they stay.
    pub(crate) fn enter(&self, shelf: &Shelf, names: &[Name]) -> RwLockReadGuard<'_, Judging> {
        let guard = self.judging.read();
        if let Some(judged) = &*guard {
            let mut judged = judged.lock();
            names.iter().for_each(|name| mark(&mut judged, shelf, name));
        }
        guard
    }

    /// What has this name is wanted.
    fn mark(&self, shelf: &Shelf, name: &Name) {
        drop(self.enter(shelf, std::slice::from_ref(name)));
    }

    /// Everything is wanted.
    fn keep_all(&self, shelf: &Shelf) {
        if let Some(judged) = &*self.judging.read() {
            judged.lock().of(shelf).packs.clear();
        }
    }

    /// Whether the record at a place is wanted, or came too late to be judged.
    fn keeps(&self, shelf: &Shelf, place: Place) -> bool {
        match &*self.judging.read() {
            Some(judged) => judged.lock().of(shelf).keeps(place),
            None => true,
        }
    }

    fn hold(&self) -> Hold<'_> {
        let mut holds = self.holds.lock();
        let generation = holds.generation;
        *holds.open.entry(generation).or_default() += 1;
        Hold {
            gate: self,
            generation,
        }
    }

    /// Waits for the holds that there are now. False if they did not all end in time.
    fn outlive_holds(&self, time: Duration) -> bool {
        let until = Instant::now() + time;
        let mut holds = self.holds.lock();
        holds.generation += 1;
        let now = holds.generation;
        while holds.open.keys().next().is_some_and(|oldest| *oldest < now) {
            if self.released.wait_until(&mut holds, until).timed_out() {
                return false;
            }
        }
        true
    }

    /// Runs `drop_it` unless the record at a place is wanted. No put asks for it meanwhile.
    fn unless_kept(&self, shelf: &Shelf, place: Place, drop_it: impl FnOnce() -> bool) -> bool {
        let guard = self.judging.read();
        let Some(judged) = &*guard else {
            return false;
        };
        let mut judged = judged.lock();
        !judged.of(shelf).keeps(place) && drop_it()
    }
}

fn mark(judged: &mut Judged, shelf: &Shelf, name: &Name) {
    let marked = judged.of(shelf);
    for place in shelf.index.candidates(name).iter() {
        marked.mark(place);
    }
}

impl Store {
    /// To be held from before the first put of chunks until what names them is recorded.
    pub fn hold(&self) -> Hold<'_> {
        self.gate.hold()
    }

    /// Drops the chunks and nodes that nobody wants and gives the space of packs that are mostly dead back.
    ///
    /// `mark` is called once all work that [`hold`](Self::hold)s the store has ended, and marks what is wanted; what is
    /// put meanwhile stays. `report` hears of every pack and may end it early: what was done stays done.
    ///
    /// What is in the pack being written leaves the index but not the disk, unless that is mostly dead: then it is
    /// sealed and emptied like the others.
    pub fn collect<E>(
        &self,
        mark: impl FnOnce(&mut Marks<'_>) -> Result<(), E>,
        how: &Collect,
        report: Report<'_>,
    ) -> Result<Reclaimed, CollectError<E>> {
        self.judging(how.grace, || {
            if !self.gate.outlive_holds(how.wait) {
                return Err(CollectError::Busy(how.wait));
            }
            mark(&mut Marks(self)).map_err(CollectError::Mark)?;
            let mut reclaimed = Reclaimed::default();
            for shelf in [&self.chunks, &self.nodes] {
                let keep = |place, _: &Name| self.gate.keeps(shelf, place);
                if how.dry_run {
                    self.estimate(shelf, &keep, &mut reclaimed);
                } else {
                    self.seal_if_mostly_dead(shelf, &keep)?;
                    self.collect_packs(shelf, &keep, &mut reclaimed, report)?;
                }
            }
            Ok(reclaimed)
        })
    }

    /// Drops the chunks that `keep` does not accept and gives the space of packs that are mostly
    /// dead back. `keep` must accept everything that was put before this call and is still wanted;
    /// what is put meanwhile stays.
    ///
    /// Chunks in the pack being written leave the index but not the disk. After an error
    /// everything accepted is still there.
    pub fn remove(&self, keep: &dyn Fn(&ChunkHash) -> bool) -> Result<Reclaimed, WriteError> {
        self.remove_from(&self.chunks, &|_, name| keep(&ChunkHash::from_bytes(*name)))
    }

    /// As [`remove`](Self::remove), for nodes.
    pub fn remove_nodes(&self, keep: &dyn Fn(&NodeId) -> bool) -> Result<Reclaimed, WriteError> {
        self.remove_from(&self.nodes, &|_, name| keep(&NodeId::from_bytes(*name)))
    }

    fn remove_from(&self, shelf: &Shelf, keep: Keep<'_>) -> Result<Reclaimed, WriteError> {
        let mut reclaimed = Reclaimed::default();
        let collected = self.judging(Duration::ZERO, || {
            self.collect_packs(shelf, keep, &mut reclaimed, &mut |_, _| true)
        });
        collected.map(|()| reclaimed)
    }

    /// Runs one gc, during which puts keep what they look for.
    fn judging<T>(&self, grace: Duration, run: impl FnOnce() -> T) -> T {
        let _only = self.gate.running.lock();
        // What is appended from here on is judged by nobody.
        let judged = Judged::new(self, grace);
        *self.gate.judging.write() = Some(Mutex::new(judged));
        let result = run();
        *self.gate.judging.write() = None;
        self.lost();
        result
    }

    /// Adds what [`collect_packs`](Self::collect_packs) would do.
    fn estimate(&self, shelf: &Shelf, keep: Keep<'_>, reclaimed: &mut Reclaimed) {
        let packs: Vec<Arc<Pack>> = shelf.packs.read().values().cloned().collect();
        for pack in packs {
            let Ok(names) = shelf.names(&pack) else {
                continue;
            };
            let mut kept_bytes = 0;
            for slot in live_slots(shelf, &pack, &names) {
                let len = span_len(&pack, slot);
                if keep(pack.place(slot), &names[usize::from(slot)]) {
                    kept_bytes += len;
                } else {
                    reclaimed.dropped += 1;
                    reclaimed.dropped_bytes += len;
                }
            }
            if is_worth_emptying(&pack, kept_bytes) {
                reclaimed.moved_bytes += kept_bytes;
                reclaimed.freed_bytes += pack.records_len();
            }
        }
    }

    fn seal_if_mostly_dead(&self, shelf: &Shelf, keep: Keep<'_>) -> Result<(), WriteError> {
        shelf.seal_if(|pack| {
            let Ok(names) = pack.names(&shelf.files) else {
                return false;
            };
            let live = live_slots(shelf, pack, &names).into_iter();
            let kept = live.filter(|slot| keep(pack.place(*slot), &names[usize::from(*slot)]));
            pack.slots() > 0 && is_worth_emptying(pack, kept.map(|slot| span_len(pack, slot)).sum())
        })
    }

    fn collect_packs(
        &self,
        shelf: &Shelf,
        keep: Keep<'_>,
        reclaimed: &mut Reclaimed,
        report: Report<'_>,
    ) -> Result<(), WriteError> {
        let failed = |error| WriteError::from_io(shelf.dir(), error);
        let is_emptied = |pack: &Pack| pack.is_sealed() || pack.is_retired();
        shelf.seal_if(Pack::has_bad)?;
        // Sealed packs are durable from here on, so their journals do not matter below.
        self.commit()?;
        let mut packs: Vec<Arc<Pack>> = shelf.packs.read().values().cloned().collect();
        packs.sort_unstable_by_key(|pack| pack.id);
        // Each is looked at twice: packs without anything live go first. That needs no room, and may make some for the others.
        let total = 2 * packs.iter().map(|pack| pack.records_len()).sum::<u64>();
        let mut looked_at = 0;
        for pack in &packs {
            match shelf.names(pack) {
                Ok(names) => {
                    let (dropped, bytes) = self.drop_dead(shelf, pack, &names, keep);
                    reclaimed.dropped += dropped;
                    reclaimed.dropped_bytes += bytes;
                    if is_emptied(pack) && live_slots(shelf, pack, &names).is_empty() {
                        self.empty_if_worth(shelf, pack, &names, reclaimed)?;
                    }
                }
                Err(error) => {
                    tracing::warn!(path = ?pack.path, %error, "gc leaves an unreadable pack");
                }
            }
            looked_at += pack.records_len();
            if !report(reclaimed, (looked_at, total)) {
                return shelf.sync_dir().map_err(failed);
            }
        }
        for pack in packs.iter().filter(|pack| is_emptied(pack)) {
            let Ok(names) = shelf.names(pack) else {
                continue;
            };
            if !live_slots(shelf, pack, &names).is_empty() {
                match self.empty_if_worth(shelf, pack, &names, reclaimed) {
                    Err(WriteError::NoSpace { .. }) if reclaimed.freed_bytes > 0 => break,
                    emptied => emptied?,
                }
            }
            looked_at += pack.records_len();
            if !report(reclaimed, (looked_at, total)) {
                break;
            }
        }
        shelf.sync_dir().map_err(failed)
    }

    /// Takes what is not kept out of the index. Returns how many records left it, and their bytes.
    fn drop_dead(&self, shelf: &Shelf, pack: &Pack, names: &[Name], keep: Keep<'_>) -> (u64, u64) {
        let (mut dropped, mut bytes) = (0, 0);
        for (slot, name) in names.iter().enumerate() {
            let place = pack.place(slot as u16);
            if !keep(place, name) {
                let remove = || shelf.index.remove(name, place);
                let gone = self.gate.unless_kept(shelf, place, remove);
                if gone {
                    dropped += 1;
                    bytes += span_len(pack, place.slot);
                }
            }
        }
        (dropped, bytes)
    }

    /// Moves the live records of a pack to the open one and removes it, if that frees enough.
    fn empty_if_worth(
        &self,
        shelf: &Shelf,
        pack: &Pack,
        names: &[Name],
        reclaimed: &mut Reclaimed,
    ) -> Result<(), WriteError> {
        let live = live_slots(shelf, pack, names);
        let live_bytes: u64 = live.iter().map(|slot| span_len(pack, *slot)).sum();
        if !is_worth_emptying(pack, live_bytes) {
            return Ok(());
        }
        for &slot in &live {
            reclaimed.moved_bytes += move_record(shelf, pack, slot, &names[usize::from(slot)])?;
        }
        if !live.is_empty() {
            self.commit()?;
        }
        for &slot in &live {
            shelf
                .index
                .remove(&names[usize::from(slot)], pack.place(slot));
        }
        if shelf.may_recover(pack) {
            tracing::warn!(path = ?pack.path, "a pack stays: the drive cannot read some of it, and it is nowhere else");
            return Ok(());
        }
        let removed = shelf.drop_pack(pack);
        removed.map_err(|error| WriteError::from_io(&pack.path, error))?;
        reclaimed.freed_bytes += pack.records_len();
        Ok(())
    }
}

/// Whether a pack with this many live bytes is mostly dead, or has something it should not keep.
fn is_worth_emptying(pack: &Pack, live_bytes: u64) -> bool {
    let mostly_dead = live_bytes * 8 < pack.records_len() * LIVE_EIGHTHS;
    mostly_dead || pack.has_bad() || pack.is_retired()
}

/// Slots the index still points to.
pub(super) fn live_slots(shelf: &Shelf, pack: &Pack, names: &[Name]) -> Vec<u16> {
    let mut live = Vec::new();
    for (slot, name) in names.iter().enumerate() {
        let place = pack.place(slot as u16);
        if shelf
            .index
            .candidates(name)
            .iter()
            .any(|found| found == place)
        {
            live.push(place.slot);
        }
    }
    live
}

pub(super) fn span_len(pack: &Pack, slot: u16) -> u64 {
    pack.span(slot).map_or(0, |span| span.end - span.start)
}

/// Copies a record as it stands, once it is seen to be good. A damaged one is quarantined, one
/// that another pack has too (from a gc that crashed) stays there.
fn move_record(shelf: &Shelf, pack: &Pack, slot: u16, name: &Name) -> Result<u64, WriteError> {
    if shelf.has_elsewhere(name, pack) {
        return Ok(0);
    }
    let record = match shelf.hashed_record(pack, slot, name) {
        Ok(Some((record, _))) => record,
        Ok(None) => return Ok(0),
        Err(error) => return Err(WriteError::from_io(&pack.path, error)),
    };
    let (tag, header, payload) = (record.tag, record.header, record.payload());
    shelf.append(&[Item {
        name: *name,
        is_cut: false,
        tag,
        header,
        payload,
    }])?;
    Ok(header.record_len() as u64)
}
