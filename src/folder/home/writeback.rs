//! The writer and the home's own files, store and folder put together.

use std::io;

use bytes::Bytes;
use ccbt_xet::store::Store;

use super::Inner;
use super::base::{FileTime, HomeId};
use super::files::HomeFiles;
use super::hash::ZEROS;
use super::ignore::Rules;
use super::ledger::{Extent, LedgerError};
use super::plan::{FoundKind, Seen};
use super::pull::{Left, Pull, Puller};
use super::scan::{ScanError, Scanner, check_root};
use super::take::{each_chunk, ranges_of};
use super::write::{ContentError, Contents, Piece, Writer, Written};
use crate::folder::content::ChunkRef;
use crate::folder::tree::NodesError;
use crate::folder::work::StoreError;

/// Contents from the store, which borrows them from the home's files.
struct StoreContents<'h> {
    store: &'h Store,
    files: &'h HomeFiles,
}

impl StoreContents<'_> {
    /// Proves that all of a content is here. A segment that occurs many times, as in a hole, is looked at once.
    fn check(&self, content: &[u8], size: u64) -> Result<(), ContentError> {
        let mut last = None;
        each_chunk(self.store, content, size, |located| {
            let hash = located.chunk.hash;
            if last == Some(hash) || self.store.contains(&hash) {
                last = Some(hash);
                return Ok(());
            }
            Err(ContentError::Missing)
        })
    }
}

impl From<NodesError<StoreError>> for ContentError {
    fn from(error: NodesError<StoreError>) -> Self {
        match error {
            NodesError::Missing(_) => Self::Missing,
            error => Self::Io(io::Error::other(error)),
        }
    }
}

impl Contents for StoreContents<'_> {
    fn read(
        &self,
        content: &Bytes,
        size: u64,
        each: &mut dyn FnMut(Piece<'_>) -> io::Result<()>,
    ) -> Result<(), ContentError> {
        self.check(content, size)?;
        let zeros = self.store.suite().chunk_hash(&ZEROS);
        each_chunk(self.store, content, size, |located| {
            let ChunkRef { hash, len } = located.chunk;
            if hash == zeros && len as usize == ZEROS.len() {
                return Ok(each(Piece::Zeros(len.into()))?);
            }
            let chunk = self.store.chunk(&hash).map_err(io::Error::other)?;
            match chunk.filter(|chunk| chunk.len() == len as usize) {
                Some(chunk) => Ok(each(Piece::Bytes(&chunk))?),
                // A borrowed range whose file was changed just now.
                None => Err(ContentError::Missing),
            }
        })
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
    let mut keep = |piece: Piece<'_>| {
        match piece {
            Piece::Bytes(part) => bytes.extend_from_slice(part),
            Piece::Zeros(len) => bytes.resize(bytes.len() + usize::try_from(len).unwrap_or(0), 0),
        }
        Ok(())
    };
    let contents = StoreContents { store, files };
    contents.read(content, size, &mut keep).ok()?;
    Some(bytes)
}

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
        is_stuck: false,
        refused: None,
    };
    let result = work(&mut writer, &mut scanner.puller);
    let written = writer.written;
    scanner.entries = scanner.entries.saturating_add_signed(written.entries);
    Ok((result?, written))
}
