//! Changes of the state by a scanner of a plain directory: any number of operations and rows of its own table, in the
//! log together or not at all.

use std::collections::BTreeSet;
use std::sync::Arc;

use bytes::Bytes;
use ccbt_mount::VolumeError;

use super::core::{Core, Listener, Op, Refused};
use super::{Dirty, Folder, Lenders, disk_error};
use crate::folder::state::{By, Change, Fid, Hlc, OpError, State};

/// Operations under way. What is done through it is seen by nobody else before it ends.
pub struct Txn<'o, 'c> {
    op: &'o mut Op<'c>,
}

impl Txn<'_, '_> {
    /// What the folder is.
    pub fn state(&self) -> &State {
        &self.op.core.state
    }

    /// Does one operation on the state. Each gets its own reading of the clock.
    pub fn apply<R>(
        &mut self,
        operation: impl FnOnce(&mut State, By) -> Result<(R, Vec<Change>), OpError>,
    ) -> Result<R, OpError> {
        let core = &mut *self.op.core;
        core.hlc = Hlc(core.hlc.0 + 1);
        let by = By {
            inc: core.inc,
            hlc: core.hlc,
        };
        let (result, changes) = operation(&mut core.state, by)?;
        self.op.follow(changes);
        Ok(result)
    }

    /// A row of the caller's table.
    pub fn row(&self, key: &[u8]) -> Option<Bytes> {
        self.op.core.table.get(key)
    }

    /// Every row whose key begins with `prefix`, ascending.
    pub fn rows(&self, prefix: &[u8]) -> Vec<(Bytes, Bytes)> {
        self.op.core.rows(prefix)
    }

    /// Sets or removes a row.
    pub fn set_row(&mut self, key: Bytes, value: Option<Bytes>) {
        match &value {
            Some(value) => self.op.core.table.insert(&key, value),
            None => self.op.core.table.remove(&key),
        }
        self.op.record.table.push((key, value));
    }
}

impl Core {
    fn rows(&self, prefix: &[u8]) -> Vec<(Bytes, Bytes)> {
        self.table.range(prefix).collect()
    }
}

impl Folder {
    /// Runs `change`; what it did is one record of the log. It must not wait for anything: everybody else does.
    pub fn update<R>(&self, change: impl FnOnce(&mut Txn<'_, '_>) -> R) -> Result<R, VolumeError> {
        let inner = &self.inner;
        let (result, touched) = inner.operate(Dirty::Namespace, |op| {
            let result = change(&mut Txn { op });
            let changes = std::mem::take(&mut op.changes);
            let touched = op.core.reconcile_all(&changes, op.now);
            Ok::<_, Refused>((result, touched))
        })?;
        inner.tell(&touched);
        Ok(result)
    }

    /// Lets `look` see the state. It must not wait for anything.
    pub fn look<R>(&self, look: impl FnOnce(&State) -> R) -> R {
        look(&self.inner.core.lock().state)
    }

    /// Has `tell` called when there is something to [take](Self::take_changed) again, by whoever changes it: it must not wait.
    pub fn on_change(&self, tell: Arc<dyn Fn() + Send + Sync>) {
        self.inner.core.lock().on_change = Listener(Some(tell));
    }

    /// The directories in which anything changed since the last call; none: any may have.
    pub fn take_changed(&self) -> Option<BTreeSet<Fid>> {
        self.inner.core.lock().changed.replace(BTreeSet::new())
    }

    /// Content that was missing has come: who keeps a copy of the folder may go on.
    pub fn note_arrival(&self) {
        let mut core = self.inner.core.lock();
        core.arrivals += 1;
        if let Some(tell) = &core.on_change.0 {
            tell();
        }
    }

    /// How often content has come.
    pub fn arrivals(&self) -> u64 {
        self.inner.core.lock().arrivals
    }

    /// A row of the caller's table. A full disk does not keep anybody from reading.
    pub fn row(&self, key: &[u8]) -> Option<Bytes> {
        self.inner.core.lock().table.get(key)
    }

    /// Every row whose key begins with `prefix`, ascending.
    pub fn rows(&self, prefix: &[u8]) -> Vec<(Bytes, Bytes)> {
        self.inner.core.lock().rows(prefix)
    }

    /// Has `lenders` asked which rows may speak of a plain file. It must not wait for anything.
    pub fn set_lenders(&self, lenders: Lenders) {
        *self.inner.lenders.write() = Some(lenders);
    }

    /// Makes every update that returned before the call durable.
    pub fn sync(&self) -> Result<(), VolumeError> {
        self.inner
            .journal
            .sync()
            .map_err(|error| disk_error(&error))
    }
}
