//! The writer and the home's own files, store and folder put together.

use std::io;

use bytes::Bytes;

use super::Inner;
use super::base::{FileTime, HomeId};
use super::contents::StoreContents;
use super::files::HomeFiles;
use super::ignore::Rules;
use super::ledger::{Extent, LedgerError};
use super::plan::{FoundKind, Seen};
use super::pull::{Left, Pull, Puller};
use super::scan::{ScanError, Scanner, check_root};
use super::write::{Writer, Written};

/// Whether a directory has nothing in it but what is not shared of the directory `shared`.
fn has_only_ignored(files: &HomeFiles, rules: &Rules, path: &[u8], shared: &[u8]) -> bool {
    let listing = files.open_dir(path).and_then(|dir| files.list(&dir, false));
    let Ok(listing) = listing else { return false };
    let within = rules.within(shared);
    let is_ignored = |(name, seen): (&Bytes, &Seen)| match seen {
        Seen::Found(found) => within.ignores(name, found.kind == FoundKind::Dir),
        Seen::Nested | Seen::Busy | Seen::Unknown => false,
    };
    !listing.is_nested
        && listing.complete
        && listing.leftover.is_empty()
        && listing.names.iter().all(is_ignored)
}

/// What a pull did and left.
#[derive(Debug)]
pub(super) struct Pulled {
    pub(super) left: Left,
    pub(super) written: Written,
}

/// Writes what the folder shows into the home. One that is held back is not written.
pub(super) fn pull(
    home: &Inner,
    scanner: &mut Scanner,
    extent: &Extent,
) -> Result<Pulled, ScanError> {
    if let Some(reason) = scanner.held.clone() {
        return Err(ScanError::Held(reason));
    }
    check_root(home).map_err(|reason| {
        // Who writes may be the first to see it; a scan may be an hour away.
        scanner.held = Some(reason.clone());
        ScanError::Held(reason)
    })?;
    home.store
        .sync()
        .map_err(|error| LedgerError::Io(io::Error::other(error)))?;
    let (left, written) = with_writer(home, scanner, |writer, puller| match writer.recover()? {
        true => Pull::new(writer, puller).run(extent),
        false => Ok(Left::unsettled()),
    })?;
    *home.left.lock() = left.sentence(&home.path);
    Ok(Pulled { left, written })
}

/// Settles what was left in between. Nothing in the home may be believed before this returns true.
pub(super) fn recover(home: &Inner, scanner: &mut Scanner) -> Result<bool, LedgerError> {
    let (is_settled, _) = with_writer(home, scanner, |writer, _| writer.recover())?;
    Ok(is_settled)
}

/// Moves temporary files that nothing is being done with out of the way.
pub(super) fn sweep(
    home: &Inner,
    scanner: &mut Scanner,
    leftover: &[(HomeId, Bytes)],
) -> Result<(), LedgerError> {
    if leftover.is_empty() {
        return Ok(());
    }
    with_writer(home, scanner, |writer, _| {
        for (dir, name) in leftover {
            if let Err(error) = writer.sweep(*dir, name) {
                tracing::debug!(%error, "a temporary file stays");
            }
        }
        Ok(())
    })?;
    Ok(())
}

fn with_writer<R>(
    home: &Inner,
    scanner: &mut Scanner,
    work: impl FnOnce(&mut Writer<'_, HomeFiles>, &mut Puller) -> Result<R, LedgerError>,
) -> Result<(R, Written), LedgerError> {
    let contents = StoreContents {
        store: &home.store,
        files: &home.files,
    };
    let rules = &scanner.rules.rules;
    let mut writer = Writer {
        fs: &*home.files,
        ledger: &*home.ledger,
        contents: &contents,
        places: home.files.places(),
        is_spent: &|path, shared| has_only_ignored(&home.files, rules, path, shared),
        next_id: &mut scanner.next_id,
        now: &|| FileTime::from_unix_nanos((home.clock)()),
        written: Written::default(),
        partial: &mut scanner.partial,
        is_partial_used: false,
        is_stuck: false,
        refused: None,
    };
    let result = work(&mut writer, &mut scanner.puller);
    let written = writer.written;
    scanner.entries = scanner.entries.saturating_add_signed(written.entries);
    Ok((result?, written))
}
