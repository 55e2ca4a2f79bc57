//! What a crash or an error of the disk left in between.

use super::super::fs::HomeFs;
use super::super::intent::{self, Intent, IntentId};
use super::super::ledger::LedgerError;
use super::moves::Move;
use super::puts::Staged;
use super::{Writer, settle};

impl<F: HomeFs> Writer<'_, F> {
    /// Settles every intent, in the order they were written down. Until it returns true, nothing in the home may be
    /// taken for the user's doing.
    pub(in super::super) fn recover(&mut self) -> Result<bool, LedgerError> {
        self.is_stuck = false;
        let mut is_settled = true;
        for (key, record) in self.ledger.rows(&intent::table_prefix()) {
            let Some(id) = IntentId::from_key(&key) else {
                continue;
            };
            is_settled &= match Intent::decode(&record) {
                Ok(Intent::Move { from, to, row }) => {
                    self.recover_move(&Move { from, to, row }, id)?
                }
                Ok(Intent::Put {
                    at,
                    temp,
                    row,
                    dir,
                    old,
                }) => {
                    let staged = Staged {
                        at,
                        temp,
                        row,
                        dir,
                        old,
                    };
                    self.recover_put(&staged, id)?
                }
                Ok(Intent::Dress { at, row }) => self.recover_dress(&at, &row, id)?,
                // A damaged one says nothing that could be finished.
                Err(_) => {
                    self.ledger.update(&mut |txn| settle(txn, &[id]))?;
                    true
                }
            };
        }
        self.is_stuck = !is_settled;
        Ok(is_settled)
    }
}
