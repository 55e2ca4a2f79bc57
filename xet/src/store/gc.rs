//! Giving space back: what the owner no longer wants leaves the index, and packs that are mostly
//! dead are emptied into the open one and removed.
//!
//! Order makes it crash-safe: live records are copied and synced before the old pack goes. A crash
//! in between leaves two copies, or dead records that come back at start; both are only garbage.
//!
//! A put must not be told "held" about a record that is being dropped. Puts in flight when gc
//! starts finish first; later ones note their names before they look, and gc looks at these notes
//! under the same lock in which it drops a record.
//!
//! Nor may a chunk go that was put before gc started and is named only later by what gc asks about.
//! Who works like that holds a [`Hold`] from before its first put until the names are recorded;
//! [`Store::collect`] notes puts first, then waits for the holds that are older, then asks.

use std::collections::{BTreeMap, HashSet};
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex, RwLock, RwLockReadGuard};
use thiserror::Error;

use crate::hash::{ChunkHash, NodeId};
use crate::index::Place;
use crate::pack::{Name, Pack};

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

/// Names put while gc runs. `None` when it does not.
type Touched = Option<Mutex<HashSet<Name>>>;

/// Where puts and gc meet.
#[derive(Debug, Default)]
pub(crate) struct Gate {
    touched: RwLock<Touched>,
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
    /// A put passes with the names it is going to look for.
    pub(crate) fn enter(&self, names: &[Name]) -> RwLockReadGuard<'_, Touched> {
        let guard = self.touched.read();
        if let Some(touched) = &*guard {
            touched.lock().extend(names);
        }
        guard
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

    /// Runs `drop_it` unless a put has asked for `name`.
    fn unless_touched(&self, name: &Name, drop_it: impl FnOnce() -> bool) -> bool {
        let guard = self.touched.read();
        let Some(touched) = &*guard else {
            return false;
        };
        let touched = touched.lock();
        !touched.contains(name) && drop_it()
    }
}

impl Store {
    /// To be held from before the first put of chunks until what names them is recorded.
    pub fn hold(&self) -> Hold<'_> {
        self.gate.hold()
    }

    /// Drops the chunks that nobody wants and gives the space of packs that are mostly dead back.
    ///
    /// `mark` is called once all work that [`hold`](Self::hold)s the store has ended, at most `wait`
    /// later, and says what is wanted; what is put meanwhile stays. With `dry_run` nothing is
    /// dropped, and the result is what would be.
    ///
    /// Chunks in the pack being written leave the index but not the disk, unless it is mostly dead:
    /// then it is sealed and emptied like the others.
    pub fn collect<E, K: Fn(&ChunkHash) -> bool>(
        &self,
        mark: impl FnOnce() -> Result<K, E>,
        wait: Duration,
        dry_run: bool,
    ) -> Result<Reclaimed, CollectError<E>> {
        self.noting_puts(|| {
            if !self.gate.outlive_holds(wait) {
                return Err(CollectError::Busy(wait));
            }
            let keep = mark().map_err(CollectError::Mark)?;
            let keep = |name: &Name| keep(&ChunkHash::from_bytes(*name));
            match dry_run {
                true => Ok(self.estimate(&self.chunks, &keep)),
                false => {
                    self.seal_if_mostly_dead(&self.chunks, &keep)?;
                    Ok(self.collect_packs(&self.chunks, &keep)?)
                }
            }
        })
    }

    /// Drops the chunks that `keep` does not accept and gives the space of packs that are mostly
    /// dead back. `keep` must accept everything that was put before this call and is still wanted;
    /// what is put meanwhile stays.
    ///
    /// Chunks in the pack being written leave the index but not the disk. After an error
    /// everything accepted is still there.
    pub fn remove(&self, keep: &dyn Fn(&ChunkHash) -> bool) -> Result<Reclaimed, WriteError> {
        let keep = |name: &Name| keep(&ChunkHash::from_bytes(*name));
        self.noting_puts(|| self.collect_packs(&self.chunks, &keep))
    }

    /// As [`remove`](Self::remove), for nodes.
    pub fn remove_nodes(&self, keep: &dyn Fn(&NodeId) -> bool) -> Result<Reclaimed, WriteError> {
        let keep = |name: &Name| keep(&NodeId::from_bytes(*name));
        self.noting_puts(|| self.collect_packs(&self.nodes, &keep))
    }

    /// Runs one gc, during which puts note their names.
    fn noting_puts<T>(&self, run: impl FnOnce() -> T) -> T {
        let _only = self.gate.running.lock();
        *self.gate.touched.write() = Some(Mutex::default());
        let result = run();
        *self.gate.touched.write() = None;
        self.lost();
        result
    }

    /// What [`collect_packs`](Self::collect_packs) would do.
    fn estimate(&self, shelf: &Shelf, keep: &dyn Fn(&Name) -> bool) -> Reclaimed {
        let packs: Vec<Arc<Pack>> = shelf.packs.read().values().cloned().collect();
        let mut reclaimed = Reclaimed::default();
        for pack in packs {
            let Ok(names) = pack.names(&shelf.files) else {
                continue;
            };
            let mut kept_bytes = 0;
            for slot in live_slots(shelf, &pack, &names) {
                let len = span_len(&pack, slot);
                if keep(&names[usize::from(slot)]) {
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
        reclaimed
    }

    fn seal_if_mostly_dead(
        &self,
        shelf: &Shelf,
        keep: &dyn Fn(&Name) -> bool,
    ) -> Result<(), WriteError> {
        shelf.seal_if(|pack| {
            let Ok(names) = pack.names(&shelf.files) else {
                return false;
            };
            let live = live_slots(shelf, pack, &names).into_iter();
            let kept = live.filter(|slot| keep(&names[usize::from(*slot)]));
            pack.slots() > 0 && is_worth_emptying(pack, kept.map(|slot| span_len(pack, slot)).sum())
        })
    }

    fn collect_packs(
        &self,
        shelf: &Shelf,
        keep: &dyn Fn(&Name) -> bool,
    ) -> Result<Reclaimed, WriteError> {
        shelf.seal_if(Pack::has_bad)?;
        // Sealed packs are durable from here on, so their journals do not matter below.
        self.commit()?;
        let mut packs: Vec<Arc<Pack>> = shelf.packs.read().values().cloned().collect();
        packs.sort_unstable_by_key(|pack| pack.id);
        let mut reclaimed = Reclaimed::default();
        // Packs without anything live go first: that needs no room, and may make some for the others.
        let mut live = Vec::new();
        for pack in packs {
            let emptied = pack.is_sealed() || pack.is_retired();
            let names = match pack.names(&shelf.files) {
                Ok(names) => names,
                Err(error) => {
                    tracing::warn!(path = ?pack.path, %error, "gc leaves an unreadable pack");
                    continue;
                }
            };
            let (dropped, bytes) = self.drop_dead(shelf, &pack, &names, keep);
            reclaimed.dropped += dropped;
            reclaimed.dropped_bytes += bytes;
            match live_slots(shelf, &pack, &names).is_empty() {
                _ if !emptied => {}
                true => self.empty_if_worth(shelf, &pack, &names, &mut reclaimed)?,
                false => live.push(pack),
            }
        }
        for pack in live {
            let Ok(names) = pack.names(&shelf.files) else {
                continue;
            };
            match self.empty_if_worth(shelf, &pack, &names, &mut reclaimed) {
                Err(WriteError::NoSpace { .. }) if reclaimed.freed_bytes > 0 => break,
                emptied => emptied?,
            }
        }
        shelf
            .sync_dir()
            .map_err(|error| WriteError::from_io(shelf.dir(), error))?;
        Ok(reclaimed)
    }

    /// Takes what is not kept out of the index. Returns how many records left it, and their bytes.
    fn drop_dead(
        &self,
        shelf: &Shelf,
        pack: &Pack,
        names: &[Name],
        keep: &dyn Fn(&Name) -> bool,
    ) -> (u64, u64) {
        let (mut dropped, mut bytes) = (0, 0);
        for (slot, name) in names.iter().enumerate() {
            let place = Place {
                pack: pack.id,
                slot: slot as u16,
            };
            if !keep(name) {
                let gone = self
                    .gate
                    .unless_touched(name, || shelf.index.remove(name, place));
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
            shelf.index.remove(
                &names[usize::from(slot)],
                Place {
                    pack: pack.id,
                    slot,
                },
            );
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
        let place = Place {
            pack: pack.id,
            slot: slot as u16,
        };
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

/// Copies a record as it stands, once it is known to be good. A damaged one is quarantined, one
/// that another pack has too (from a gc that crashed) stays there.
fn move_record(shelf: &Shelf, pack: &Pack, slot: u16, name: &Name) -> Result<u64, WriteError> {
    if shelf.has_elsewhere(name, pack) {
        return Ok(0);
    }
    let record = match shelf.checked_record(pack, slot, name) {
        Ok(Some((record, _))) => record,
        Ok(None) => return Ok(0),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
            shelf.quarantine(pack, slot, name);
            return Ok(0);
        }
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
