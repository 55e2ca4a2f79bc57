//! A folder in memory that forgets in a crash what was not synced, and that peers write to.

use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;

use super::super::watch::Waker;
use super::faults::{Faults, Random};
use crate::folder::home::ledger::{Extent, Ledger, LedgerError, Txn};
use crate::folder::home::memory::Memory;
use crate::folder::state::{Change, EntryRef, Inc, State};
use crate::folder::work::Lenders;

pub(super) struct CrashLedger {
    memory: Mutex<Memory>,
    /// What it was at the last sync, and after each update since.
    versions: Mutex<Vec<Memory>>,
    faults: Arc<Faults>,
}

impl CrashLedger {
    pub(super) fn new(memory: Memory, faults: Arc<Faults>) -> Self {
        Self {
            versions: Mutex::new(vec![memory.clone()]),
            memory: Mutex::new(memory),
            faults,
        }
    }

    pub(super) fn state(&self) -> State {
        self.memory.lock().state.clone()
    }

    /// A peer's state comes in.
    pub(super) fn merge(&self, other: &State, at_least: u64) {
        if self.faults.pass().is_err() {
            return;
        }
        let mut memory = self.memory.lock();
        let changes = memory.state.merge(other);
        memory.changed.extend(changes.iter().map(Change::dir));
        memory.hlc.0 = memory.hlc.0.max(at_least);
        self.versions.lock().push(memory.clone());
    }

    pub(super) fn hlc(&self) -> u64 {
        self.memory.lock().hlc.0
    }

    /// Power fails; the next start has another incarnation.
    pub(super) fn crash(&self, random: &mut Random, inc: Inc) {
        let mut versions = self.versions.lock();
        let kept = random.below(versions.len() as u64) as usize;
        let mut memory = self.memory.lock();
        if let Some(version) = versions.get(kept) {
            *memory = version.clone();
        }
        memory.inc = inc;
        *versions = vec![memory.clone()];
    }

    /// Every content that a crash could not take away.
    pub(super) fn safe(&self) -> BTreeSet<Bytes> {
        self.versions
            .lock()
            .first()
            .map(|memory| contents(&memory.state))
            .unwrap_or_default()
    }
}

/// Every content that a state has a version of.
pub(super) fn contents(state: &State) -> BTreeSet<Bytes> {
    let mut out = BTreeSet::new();
    for (_, entry) in state.entries() {
        if let EntryRef::File(file) = entry {
            let versions = file.versions.iter();
            out.extend(versions.map(|version| Bytes::copy_from_slice(&version.content.0)));
        }
    }
    out
}

fn failed(error: io::Error) -> LedgerError {
    LedgerError::Io(error)
}

impl Ledger for CrashLedger {
    fn rows(&self, prefix: &[u8]) -> Vec<(Bytes, Bytes)> {
        let memory = self.memory.lock();
        let rows = memory.table.range(Bytes::copy_from_slice(prefix)..);
        rows.take_while(|(key, _)| key.starts_with(prefix))
            .map(|(key, row)| (key.clone(), row.clone()))
            .collect()
    }

    fn row(&self, key: &[u8]) -> Option<Bytes> {
        self.memory.lock().table.get(key).cloned()
    }

    /// Who explores needs no waking.
    fn wake_on_change(&self, _waker: Waker) {}

    /// Nothing is kept here that only a file has.
    fn set_lenders(&self, _lenders: Lenders) {}

    fn take_changed(&self) -> Extent {
        Extent::Dirs(std::mem::take(&mut self.memory.lock().changed))
    }

    /// All content is there from the start.
    fn arrivals(&self) -> u64 {
        0
    }

    fn read(&self, look: &mut dyn FnMut(&State)) {
        look(&self.memory.lock().state);
    }

    fn sync(&self) -> Result<(), LedgerError> {
        self.faults.pass().map_err(failed)?;
        *self.versions.lock() = vec![self.memory.lock().clone()];
        Ok(())
    }

    fn update(&self, work: &mut dyn FnMut(&mut dyn Txn)) -> Result<(), LedgerError> {
        self.faults.pass().map_err(failed)?;
        let mut memory = self.memory.lock();
        work(&mut *memory);
        self.versions.lock().push(memory.clone());
        Ok(())
    }
}
