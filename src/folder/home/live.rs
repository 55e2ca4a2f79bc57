//! The live folder as the ledger of a home.

use std::sync::Arc;

use bytes::Bytes;
use ccbt_mount::VolumeError;

use super::ledger::{Extent, Ledger, LedgerError, Operation, Txn};
use super::watch::Waker;
use crate::folder::state::{OpError, State};
use crate::folder::work::{self, Folder, Lenders};

impl Ledger for Folder {
    fn rows(&self, prefix: &[u8]) -> Vec<(Bytes, Bytes)> {
        self.rows(prefix)
    }

    fn row(&self, key: &[u8]) -> Option<Bytes> {
        self.row(key)
    }

    fn take_changed(&self) -> Extent {
        self.take_changed().map_or(Extent::Everything, Extent::Dirs)
    }

    fn wake_on_change(&self, waker: Waker) {
        self.on_change(Arc::new(move || waker.wake()));
    }

    fn set_lenders(&self, lenders: Lenders) {
        self.set_lenders(lenders);
    }

    fn arrivals(&self) -> u64 {
        self.arrivals()
    }

    fn read(&self, look: &mut dyn FnMut(&State)) {
        self.look(look);
    }

    fn sync(&self) -> Result<(), LedgerError> {
        self.sync().map_err(ledger_error)
    }

    fn update(&self, work: &mut dyn FnMut(&mut dyn Txn)) -> Result<(), LedgerError> {
        self.update(|txn| work(txn)).map_err(ledger_error)
    }
}

fn ledger_error(error: VolumeError) -> LedgerError {
    match error {
        VolumeError::NoSpace => LedgerError::NoSpace,
        VolumeError::ReadOnly => LedgerError::Closed,
        error => LedgerError::Io(std::io::Error::other(error)),
    }
}

impl Txn for work::Txn<'_, '_> {
    fn state(&self) -> &State {
        self.state()
    }

    fn operate(&mut self, op: &mut Operation<'_>) -> Result<(), OpError> {
        self.apply(|state, by| Ok(((), op(state, by)?)))
    }

    fn row(&self, key: &[u8]) -> Option<Bytes> {
        self.row(key)
    }

    fn set_row(&mut self, key: Bytes, row: Option<Bytes>) {
        self.set_row(key, row);
    }
}
