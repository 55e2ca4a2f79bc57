//! Group commit: one `fdatasync` for everybody who asked while the one before was running.
//!
//! The lock is the queue. Whoever gets it first syncs what all the waiting ones had appended; they
//! find their target covered and leave.

use std::sync::atomic::Ordering;

use super::shelf::{Dirty, Shelf};
use super::{Store, WriteError};

/// Records per kind (chunks, nodes) known to be durable.
#[derive(Debug, Default)]
pub(crate) struct Committer {
    durable: [u64; 2],
}

impl Store {
    pub(super) fn commit(&self) -> Result<(), WriteError> {
        let shelves = [&self.chunks, &self.nodes];
        let targets = shelves.map(Shelf::appended);
        let mut committer = self.committer.lock();
        if self.sync_failed.load(Ordering::Acquire) {
            return Err(WriteError::SyncFailed);
        }
        for (shelf, (target, durable)) in shelves
            .iter()
            .zip(targets.into_iter().zip(&mut committer.durable))
        {
            if *durable >= target {
                continue;
            }
            // What is appended from here on may or may not be covered; it is not claimed.
            let covered = shelf.appended();
            if let Err(error) = sync_dirty(shelf, shelf.take_dirty()) {
                // The system reports a failed write-back once and then calls the pages clean:
                // trying again would only hide the loss.
                self.sync_failed.store(true, Ordering::Release);
                return Err(error);
            }
            *durable = covered;
        }
        Ok(())
    }
}

fn sync_dirty(shelf: &Shelf, dirty: Dirty) -> Result<(), WriteError> {
    for sealed in &dirty.sealed {
        let synced = sealed.file.sync();
        synced.map_err(|error| WriteError::from_io(&sealed.pack.path, error))?;
        shelf.forget_journal(&sealed.pack);
    }
    let Some((open, slots)) = dirty.open else {
        return Ok(());
    };
    let mut journal = open.journal.lock();
    if journal.slots() >= slots {
        return Ok(());
    }
    open.file
        .sync()
        .map_err(|error| WriteError::from_io(&open.pack.path, error))?;
    let mut entries = open.pack.listed_from(journal.slots());
    entries.truncate(slots - journal.slots());
    // Without its journal entry a record is found by the scan at the next start.
    if let Err(error) = journal.append(&entries) {
        tracing::warn!(path = ?open.pack.path, %error, "cannot write a pack's journal");
    }
    Ok(())
}
