//! Giving space back: what the owner no longer wants leaves the index, and packs that are mostly
//! dead are emptied into the open one and removed.
//!
//! Order makes it crash-safe: live records are copied and synced before the old pack goes. A crash
//! in between leaves two copies, or dead records that come back at start; both are only garbage.
//!
//! A put must not be told "held" about a record that is being dropped. Puts in flight when gc
//! starts finish first; later ones note their names before they look, and gc looks at these notes
//! under the same lock in which it drops a record.

use std::collections::HashSet;
use std::io;
use std::sync::Arc;

use parking_lot::{Mutex, RwLock, RwLockReadGuard};

use crate::hash::{ChunkHash, NodeId};
use crate::index::Place;
use crate::pack::{Name, Pack};

use super::shelf::{Item, Shelf};
use super::{Store, WriteError};

/// A pack is emptied once its live records take less than this part of it.
const LIVE_DIVISOR: u64 = 2;

/// What a gc did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reclaimed {
    /// Records that left the index.
    pub dropped: u64,
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
    /// Drops the chunks that `keep` does not accept and gives the space of packs that are mostly
    /// dead back. `keep` must accept everything that was put before this call and is still wanted;
    /// what is put meanwhile stays.
    ///
    /// Chunks in the pack being written leave the index but not the disk. After an error
    /// everything accepted is still there.
    pub fn remove(&self, keep: &dyn Fn(&ChunkHash) -> bool) -> Result<Reclaimed, WriteError> {
        self.collect(&self.chunks, &|name| keep(&ChunkHash::from_bytes(*name)))
    }

    /// As [`remove`](Self::remove), for nodes.
    pub fn remove_nodes(&self, keep: &dyn Fn(&NodeId) -> bool) -> Result<Reclaimed, WriteError> {
        self.collect(&self.nodes, &|name| keep(&NodeId::from_bytes(*name)))
    }

    fn collect(
        &self,
        shelf: &Shelf,
        keep: &dyn Fn(&Name) -> bool,
    ) -> Result<Reclaimed, WriteError> {
        let _only = self.gate.running.lock();
        *self.gate.touched.write() = Some(Mutex::default());
        let result = self.collect_packs(shelf, keep);
        *self.gate.touched.write() = None;
        self.lost();
        result
    }

    fn collect_packs(
        &self,
        shelf: &Shelf,
        keep: &dyn Fn(&Name) -> bool,
    ) -> Result<Reclaimed, WriteError> {
        shelf.seal_if_damaged()?;
        // Sealed packs are durable from here on, so their journals do not matter below.
        self.commit()?;
        let mut packs: Vec<Arc<Pack>> = shelf.packs.read().values().cloned().collect();
        packs.sort_unstable_by_key(|pack| pack.id);
        let mut reclaimed = Reclaimed::default();
        for pack in packs {
            let emptied = pack.is_sealed() || pack.retired;
            let names = match pack.names(&shelf.files) {
                Ok(names) => names,
                Err(error) => {
                    tracing::warn!(path = ?pack.path, %error, "gc leaves an unreadable pack");
                    continue;
                }
            };
            reclaimed.dropped += self.drop_dead(shelf, &pack, &names, keep);
            if emptied {
                self.empty_if_worth(shelf, &pack, &names, &mut reclaimed)?;
            }
        }
        shelf
            .sync_dir()
            .map_err(|error| WriteError::from_io(shelf.dir(), error))?;
        Ok(reclaimed)
    }

    /// Takes what is not kept out of the index. Returns how many records left it.
    fn drop_dead(
        &self,
        shelf: &Shelf,
        pack: &Pack,
        names: &[Name],
        keep: &dyn Fn(&Name) -> bool,
    ) -> u64 {
        let mut dropped = 0;
        for (slot, name) in names.iter().enumerate() {
            let place = Place {
                pack: pack.id,
                slot: slot as u16,
            };
            if !keep(name) {
                let gone = self
                    .gate
                    .unless_touched(name, || shelf.index.remove(name, place));
                dropped += u64::from(gone);
            }
        }
        dropped
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
        let mostly_dead = live_bytes < pack.records_len() / LIVE_DIVISOR;
        if !mostly_dead && !pack.has_bad() && !pack.retired {
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

/// Slots the index still points to.
fn live_slots(shelf: &Shelf, pack: &Pack, names: &[Name]) -> Vec<u16> {
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

fn span_len(pack: &Pack, slot: u16) -> u64 {
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
        tag,
        header,
        payload,
    }])?;
    Ok(header.record_len() as u64)
}
