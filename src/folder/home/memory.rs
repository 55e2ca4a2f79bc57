//! A folder in memory: state and table without journal, inodes or peers. For tests of what is above a [`Ledger`].

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use parking_lot::{Mutex, MutexGuard};

use super::ledger::{Extent, Ledger, LedgerError, Operation, Txn};
use super::watch::Waker;
use crate::folder::state::{
    By, Change, Fid, Hlc, Inc, OpError, State, VersionVector, conflict_tag,
};
use crate::folder::work::Lenders;

/// The folder.
pub struct MemoryLedger {
    inner: Mutex<Memory>,
}

/// What it holds.
#[derive(Clone)]
pub struct Memory {
    pub state: State,
    pub table: BTreeMap<Bytes, Bytes>,
    pub inc: Inc,
    pub hlc: Hlc,
    /// What it had seen when it was last asked for changes.
    told: VersionVector,
    /// Directories in which operations changed something.
    pub changed: BTreeSet<Fid>,
    /// Updates that changed something.
    pub updates: u64,
}

impl MemoryLedger {
    /// An empty folder of incarnation `inc`.
    pub fn new(inc: Inc) -> Self {
        let state = State::new(conflict_tag(|_| None));
        let table = BTreeMap::new();
        Self {
            inner: Mutex::new(Memory {
                state,
                table,
                inc,
                hlc: Hlc::default(),
                told: VersionVector::default(),
                changed: BTreeSet::new(),
                updates: 0,
            }),
        }
    }

    pub fn lock(&self) -> MutexGuard<'_, Memory> {
        self.inner.lock()
    }
}

impl Memory {
    /// The next reading of a clock that only counts.
    pub fn by(&mut self) -> By {
        self.hlc = self.hlc.tick(0);
        By {
            inc: self.inc,
            hlc: self.hlc,
        }
    }
}

impl Ledger for MemoryLedger {
    fn rows(&self, prefix: &[u8]) -> Vec<(Bytes, Bytes)> {
        let inner = self.inner.lock();
        let from = Bytes::copy_from_slice(prefix);
        let rows = inner
            .table
            .range(from..)
            .take_while(|(key, _)| key.starts_with(prefix));
        rows.map(|(key, row)| (key.clone(), row.clone())).collect()
    }

    fn row(&self, key: &[u8]) -> Option<Bytes> {
        self.inner.lock().table.get(key).cloned()
    }

    /// Who explores needs no waking.
    fn wake_on_change(&self, _waker: Waker) {}

    /// Nothing is kept here that only a file has.
    fn set_lenders(&self, _lenders: Lenders) {}

    fn take_changed(&self) -> Extent {
        let mut inner = self.inner.lock();
        if inner.told == *inner.state.vv() {
            return Extent::Dirs(BTreeSet::new());
        }
        inner.told = inner.state.vv().clone();
        Extent::Everything
    }

    /// All content is there from the start.
    fn arrivals(&self) -> u64 {
        0
    }

    fn read(&self, look: &mut dyn FnMut(&State)) {
        look(&self.inner.lock().state);
    }

    fn sync(&self) -> Result<(), LedgerError> {
        Ok(())
    }

    fn update(&self, work: &mut dyn FnMut(&mut dyn Txn)) -> Result<(), LedgerError> {
        let mut inner = self.inner.lock();
        inner.updates += 1;
        work(&mut *inner);
        Ok(())
    }
}

impl Txn for Memory {
    fn state(&self) -> &State {
        &self.state
    }

    fn operate(&mut self, op: &mut Operation<'_>) -> Result<(), OpError> {
        let by = self.by();
        let changes = op(&mut self.state, by)?;
        self.changed.extend(changes.iter().map(Change::dir));
        Ok(())
    }

    fn row(&self, key: &[u8]) -> Option<Bytes> {
        self.table.get(key).cloned()
    }

    fn set_row(&mut self, key: Bytes, row: Option<Bytes>) {
        match row {
            Some(row) => self.table.insert(key, row),
            None => self.table.remove(&key),
        };
    }
}
