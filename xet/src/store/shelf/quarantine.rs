//! Records that are damaged or cannot be read: never served again, counted, named to the owner who may get them elsewhere.

use std::collections::HashMap;
use std::io;

use crate::index::{PackId, Place};
use crate::pack::open::NAMELESS;
use crate::pack::{Name, Pack, State};

use super::Shelf;

/// Names of damaged records kept for the owner to ask for.
const QUARANTINE_NAMES_MAX: usize = 65_536;

#[derive(Debug, Default)]
pub(super) struct Quarantine {
    count: u64,
    names: Vec<Name>,
    /// Damaged records whose names nobody can tell.
    nameless: u64,
    /// Packs whose footer was given up: some of their records may have gone unnoticed.
    footers: u64,
    /// Records the drive could not read. It may be able to another day, so their packs stay while nobody else has them.
    pub(super) unreadable: HashMap<PackId, Vec<Name>>,
}

impl Shelf {
    /// Lets the records of a pack with a damaged footer name themselves. How many are damaged too.
    ///
    /// A record whose bytes changed names itself as something else, if it is stored as it is. The index tells: it knows
    /// the place under another name then. The one in the footer is not believed, but if the index agrees with it, it is
    /// what the record was stored as.
    pub(crate) fn rename_records(&self, pack: &Pack) -> io::Result<u64> {
        let _one = self.renaming.lock();
        if !pack.is_sealed() {
            return Ok(0);
        }
        tracing::warn!(path = ?pack.path, "the footer of a pack is damaged, its records name themselves");
        let said = pack.names(&self.files).unwrap_or_default();
        let unreadable = pack.rename_records(&self.files)?;
        let mut damaged = 0;
        for (slot, name) in pack.names(&self.files)?.iter().enumerate() {
            let place = pack.place(slot as u16);
            let known = self.index.candidates(name).iter().any(|at| at == place);
            let lost = said.get(slot).filter(|_| !known);
            match lost.filter(|said| self.index.remove(said, place)) {
                Some(said) => self.count_bad(said),
                None if *name == NAMELESS => self.count_bad(&NAMELESS),
                None => continue,
            }
            damaged += 1;
        }
        if unreadable {
            self.note_unreadable(pack, &NAMELESS);
        }
        self.quarantined.lock().footers += 1;
        Ok(damaged)
    }

    /// Never serves a record again that cannot be read. If only the drive says so, its pack is not removed for it.
    pub(super) fn give_up(&self, pack: &Pack, slot: u16, name: &Name, error: &io::Error) {
        tracing::warn!(path = ?pack.path, slot, %error, "record cannot be read");
        if error.kind() != io::ErrorKind::UnexpectedEof {
            self.note_unreadable(pack, name);
        }
        self.quarantine(pack, slot, name);
    }

    pub(super) fn note_unreadable(&self, pack: &Pack, name: &Name) {
        let mut quarantined = self.quarantined.lock();
        let names = quarantined.unreadable.entry(pack.id).or_default();
        if !names.contains(name) {
            names.push(*name);
        }
    }

    /// Whether a pack has records that the drive could not read and no other pack has: it may read them another day.
    pub(crate) fn may_recover(&self, pack: &Pack) -> bool {
        let names = self.quarantined.lock().unreadable.get(&pack.id).cloned();
        let mut names = names.into_iter().flatten();
        names.any(|name| name == NAMELESS || !self.has_elsewhere(&name, pack))
    }

    /// Never serves this record again.
    pub(crate) fn quarantine(&self, pack: &Pack, slot: u16, name: &Name) {
        pack.set_state(slot, State::Bad);
        if self.index.remove(
            name,
            Place {
                pack: pack.id,
                slot,
            },
        ) {
            tracing::warn!(path = ?pack.path, slot, "record is damaged");
            self.count_bad(name);
        }
    }

    pub(super) fn count_bad(&self, name: &Name) {
        let mut quarantined = self.quarantined.lock();
        quarantined.count += 1;
        if *name == NAMELESS {
            quarantined.nameless += 1;
        } else if quarantined.names.len() < QUARANTINE_NAMES_MAX {
            quarantined.names.push(*name);
        } else {
            quarantined.nameless += 1;
        }
    }

    /// Damaged records since the last call whose names are not among those of
    /// [`take_quarantined`](Self::take_quarantined).
    pub(crate) fn take_nameless(&self) -> u64 {
        std::mem::take(&mut self.quarantined.lock().nameless)
    }

    pub(crate) fn quarantined(&self) -> u64 {
        self.quarantined.lock().count
    }

    /// What may have gone by damage: it grows whenever something may have.
    pub(crate) fn losses(&self) -> u64 {
        let quarantined = self.quarantined.lock();
        quarantined.count + quarantined.footers
    }

    pub(crate) fn take_quarantined(&self) -> Vec<Name> {
        std::mem::take(&mut self.quarantined.lock().names)
    }
}
