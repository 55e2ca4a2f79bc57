//! The writer and the home's own files, store and folder put together.

use std::io;

use bytes::Bytes;
use ccbt_xet::store::Store;

use super::Inner;
use super::base::{FileTime, HomeId};
use super::files::HomeFiles;
use super::ignore::Rules;
use super::ledger::{Extent, LedgerError};
use super::plan::{FoundKind, Seen};
use super::pull::{Left, Pull, Puller};
use super::scan::{ScanError, Scanner, check_root};
use super::take::ranges_of;
use super::write::{ContentError, Contents, Writer, Written};
use crate::folder::content::{ContentReader, Located};
use crate::folder::tree::NodesError;
use crate::folder::work::StoreNodes;

/// Contents from the store, which borrows them from the home's files.
struct StoreContents<'h> {
    store: &'h Store,
    files: &'h HomeFiles,
}

impl StoreContents<'_> {
    fn chunks(&self, content: &[u8], size: u64) -> Result<Vec<Located>, ContentError> {
        let nodes = StoreNodes(self.store);
        let reader = ContentReader::new(&nodes, content, size).map_err(io::Error::other)?;
        let chunks = reader.locate(0..size).map_err(|error| match error {
            NodesError::Missing(_) => ContentError::Missing,
            error => ContentError::Io(io::Error::other(error)),
        })?;
        let is_here = |located: &Located| self.store.contains(&located.chunk.hash);
        match chunks.iter().all(is_here) {
            true => Ok(chunks),
            false => Err(ContentError::Missing),
        }
    }
}

impl Contents for StoreContents<'_> {
    fn read(
        &self,
        content: &Bytes,
        size: u64,
        each: &mut dyn FnMut(&[u8]) -> io::Result<()>,
    ) -> Result<(), ContentError> {
        for located in self.chunks(content, size)? {
            let chunk = self.store.chunk(&located.chunk.hash);
            let chunk = chunk.map_err(io::Error::other)?;
            match chunk.filter(|chunk| chunk.len() == located.chunk.len as usize) {
                Some(chunk) => each(&chunk)?,
                // A borrowed range whose file was changed just now.
                None => return Err(ContentError::Missing),
            }
        }
        Ok(())
    }

    fn lend(&self, id: HomeId, content: &Bytes, size: u64) {
        match ranges_of(self.store, content, size) {
            Ok(ranges) => self.store.borrow(self.files.source(id), &ranges),
            Err(error) => tracing::warn!(%error, "a file cannot be lent to the store"),
        }
    }
}

/// The bytes of a content of the folder, if all of it is here.
pub(super) fn content(
    store: &Store,
    files: &HomeFiles,
    content: &Bytes,
    size: u64,
) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut keep = |part: &[u8]| {
        bytes.extend_from_slice(part);
        Ok(())
    };
    let contents = StoreContents { store, files };
    contents.read(content, size, &mut keep).ok()?;
    Some(bytes)
}

/// Whether a directory has nothing in it but what is not shared.
fn has_only_ignored(files: &HomeFiles, rules: &Rules, path: &[u8]) -> bool {
    let listing = files.open_dir(path).and_then(|dir| files.list(&dir, false));
    let Ok(listing) = listing else { return false };
    let within = rules.within(path);
    let is_ignored = |(name, seen): (&Bytes, &Seen)| match seen {
        Seen::Found(found) => within.ignores(name, found.kind == FoundKind::Dir),
        Seen::Unknown => false,
    };
    listing.complete && listing.leftover.is_empty() && listing.names.iter().all(is_ignored)
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
    check_root(home).map_err(ScanError::Held)?;
    home.store
        .sync()
        .map_err(|error| LedgerError::Io(io::Error::other(error)))?;
    let (left, written) = with_writer(home, scanner, |writer, puller| match writer.recover()? {
        true => Pull::new(writer, puller).run(extent),
        false => Ok(Left::unsettled()),
    })?;
    *home.left.lock() = left.sentence();
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
        is_spent: &|path| has_only_ignored(&home.files, rules, path),
        next_id: &mut scanner.next_id,
        now: &|| FileTime::from_unix_nanos((home.clock)()),
        written: Written::default(),
        is_stuck: false,
    };
    let result = work(&mut writer, &mut scanner.puller);
    let written = writer.written;
    scanner.entries = scanner.entries.saturating_add_signed(written.entries);
    Ok((result?, written))
}
