//! Taking a file in: its content and attributes as they were at one moment, proven by a stat before and after.

use std::collections::HashSet;
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use bytes::Bytes;
use ccbt_xet::hash::ChunkHash;
use ccbt_xet::store::Store;

use super::base::{At, FileTime, HomeId, Row, RowKind, Stamp, is_unsure, unsure_for, xattr_digest};
use super::files::{self, HomeFiles, is_sparse};
use super::hash::chunks_of;
use super::ledger::DiskFile;
use super::plan::{Found, FoundKind, Take};
use crate::folder::content::{ContentReader, ContentWriter, Located};
use crate::folder::state::{FileKind, Xattrs};
use crate::folder::tree::NodesError;
use crate::folder::work::{StoreError, StoreNodes};

/// How often a file that changes while it is read is read again before it is left for later.
const ATTEMPTS: u32 = 3;

/// Files from this many bytes on are read one at a time, which keeps two threads busy, and once.
pub(super) const BIG_BYTES: u64 = 32 << 20;

/// A range of a file by the chunk it holds: (hash, offset, length).
pub(super) type Ranges = Vec<(ChunkHash, u64, u32)>;

/// A file as it was taken in.
#[derive(Debug)]
pub(super) struct Taken {
    pub(super) file: DiskFile,
    /// Its new base record, but for what the folder will call it.
    pub(super) row: Row,
    pub(super) ranges: Ranges,
    /// Its content is that of a record with its inode, size and mtime, and was not read: it has to be, soon.
    pub(super) is_guess: bool,
}

/// Why a file was not taken in.
#[derive(Debug, thiserror::Error)]
pub(super) enum Miss {
    #[error("the home is being closed")]
    Stopped,
    /// It changed each time it was read.
    #[error("it keeps changing")]
    Moving,
    /// It is no file any more.
    #[error("it is gone")]
    Gone,
    #[error(transparent)]
    Unreadable(#[from] io::Error),
    #[error(transparent)]
    Store(#[from] NodesError<StoreError>),
}

/// What a reading needs to know of the world.
pub(super) struct When<'w> {
    /// Reads the wall clock.
    pub(super) now: &'w (dyn Fn() -> FileTime + Sync),
    /// The home is being closed: a big file is not read to its end.
    pub(super) stop: &'w AtomicBool,
    /// Names of which nothing was heard but that something was renamed there.
    pub(super) moved: &'w HashSet<(HomeId, Bytes)>,
}

/// Takes in a file or symlink as number `id`.
pub(super) fn take(
    files: &HomeFiles,
    store: &Store,
    take: &Take,
    id: HomeId,
    when: &When<'_>,
) -> Result<Taken, Miss> {
    match take.found.kind {
        FoundKind::Symlink => take_link(files, take, id),
        _ => take_file(files, store, take, id, when),
    }
}

fn take_link(files: &HomeFiles, take: &Take, id: HomeId) -> Result<Taken, Miss> {
    let target = files.read_link(&take.path)?;
    let found = files.stat(&take.path)?;
    if found.kind != FoundKind::Symlink {
        return Err(Miss::Gone);
    }
    // A link is never written, only replaced, so its inode alone tells.
    if found.stamp.ino != take.found.stamp.ino {
        return Err(Miss::Moving);
    }
    let kind = RowKind::Symlink {
        target: target.clone(),
    };
    Ok(taken(
        id,
        found,
        Xattrs::new(),
        kind,
        target,
        (false, Ranges::new()),
    ))
}

fn take_file(
    files: &HomeFiles,
    store: &Store,
    take: &Take,
    id: HomeId,
    when: &When<'_>,
) -> Result<Taken, Miss> {
    let file = files.open_file(&take.path)?;
    let mut before = rustix::fs::fstat(&file).map_err(io::Error::from)?;
    let is_big = u64::try_from(before.st_size).unwrap_or(0) >= BIG_BYTES;
    if is_big && take.source.is_none() {
        // Read too soon after it was written, it would have to be read twice.
        thread::sleep(still_unsure(files.found(&before).stamp.mtime, (when.now)()));
        before = rustix::fs::fstat(&file).map_err(io::Error::from)?;
    }
    for _attempt in 0..if is_big { 1 } else { ATTEMPTS } {
        let was = files.found(&before);
        if was.kind != FoundKind::File {
            return Err(Miss::Gone);
        }
        let looked_at = (when.now)();
        let xattrs = files::xattrs(&file)?;
        let known = take
            .source
            .as_ref()
            .filter(|row| row.stamp.same_content(&was.stamp));
        let known = known.map(|row| &row.kind);
        let is_guess = matches!(known, Some(RowKind::File { .. }));
        let read = match known {
            Some(RowKind::File { content }) => {
                let ranges = ranges_of(store, content, was.stamp.size)?;
                Ok((content.clone(), ranges))
            }
            _ => read(
                store,
                &file,
                (was.stamp.size, is_sparse(&before)),
                when.stop,
            ),
        };
        let after = rustix::fs::fstat(&file).map_err(io::Error::from)?;
        if files.found(&after) == was {
            let (content, ranges) = read?;
            let kind = RowKind::File {
                content: content.clone(),
            };
            let is_guess = is_guess && !is_proven(files, take, when);
            let unsure = is_guess || is_unsure(was.stamp.mtime, looked_at);
            let taken = taken(id, was, xattrs, kind, content, (unsure, ranges));
            return Ok(Taken { is_guess, ..taken });
        }
        before = after;
    }
    Err(Miss::Moving)
}

/// Whether a file that is taken for a renamed one was seen being renamed, and nothing else.
fn is_proven(files: &HomeFiles, take: &Take, when: &When<'_>) -> bool {
    let from = take.source.as_ref().and_then(|row| files.place(row.id));
    let was_moved = |at: &At| when.moved.contains(&(at.dir, at.name.clone()));
    was_moved(&take.at) && from.is_some_and(|from| was_moved(&from))
}

/// How long a reading of what was last changed at `mtime` would not be sure.
fn still_unsure(mtime: FileTime, now: FileTime) -> Duration {
    let past = Duration::from_nanos(u64::try_from(mtime.distance(now)).unwrap_or(u64::MAX));
    match is_unsure(mtime, now) {
        true => unsure_for(mtime).saturating_sub(past) + Duration::from_millis(1),
        false => Duration::ZERO,
    }
}

fn taken(
    id: HomeId,
    found: Found,
    xattrs: Xattrs,
    kind: RowKind,
    content: Bytes,
    (unsure, ranges): (bool, Ranges),
) -> Taken {
    let Stamp { size, mtime, .. } = found.stamp;
    let row = Row {
        id,
        stamp: found.stamp,
        mode: found.mode,
        xattrs: xattr_digest(&xattrs),
        unsure,
        held: Bytes::new(),
        kind,
    };
    let kind = match row.kind {
        RowKind::Symlink { .. } => FileKind::Symlink,
        _ => FileKind::File,
    };
    Taken {
        file: DiskFile {
            kind,
            content,
            size,
            mtime,
            mode: found.mode,
            xattrs,
        },
        row,
        ranges,
        is_guess: false,
    }
}

/// Chunks a file and makes the nodes of its content.
fn read(
    store: &Store,
    file: &OwnedFd,
    (size, is_sparse): (u64, bool),
    stop: &AtomicBool,
) -> Result<(Bytes, Ranges), Miss> {
    let nodes = StoreNodes(store);
    let mut writer = ContentWriter::new(&nodes);
    let (mut ranges, mut offset) = (Ranges::new(), 0);
    chunks_of::<Miss>(store.suite(), file.as_fd(), size, is_sparse, |chunk| {
        if stop.load(Ordering::Relaxed) {
            return Err(Miss::Stopped);
        }
        // A hole is one chunk over and over: once is enough to find it.
        if ranges.last().is_none_or(|(hash, ..)| *hash != chunk.hash) {
            ranges.push((chunk.hash, offset, chunk.len));
        }
        offset += u64::from(chunk.len);
        Ok(writer.push(chunk)?)
    })?;
    let (content, _) = writer.finish()?;
    Ok((content.into(), ranges))
}

/// What a file holds, as a folder refers to it. Its nodes are put into the store, its chunks are not.
pub(super) fn content_of(
    store: &Store,
    file: &OwnedFd,
    size: u64,
    stop: &AtomicBool,
) -> Result<Bytes, Miss> {
    let stat = rustix::fs::fstat(file).map_err(io::Error::from)?;
    let (content, _) = read(store, file, (size, is_sparse(&stat)), stop)?;
    Ok(content)
}

/// Where in a file with this content its chunks are.
pub(super) fn ranges_of(
    store: &Store,
    content: &[u8],
    size: u64,
) -> Result<Ranges, NodesError<StoreError>> {
    let mut ranges = Ranges::new();
    each_chunk(store, content, size, |located| {
        let Located { chunk, offset, .. } = located;
        if ranges.last().is_none_or(|(hash, ..)| *hash != chunk.hash) {
            ranges.push((chunk.hash, *offset, chunk.len));
        }
        Ok(())
    })?;
    Ok(ranges)
}

/// Hands out the chunks of a content in order, one segment after the other: the list of all of them can be far larger
/// than what is in a sparse file.
pub(super) fn each_chunk<E: From<NodesError<StoreError>>>(
    store: &Store,
    content: &[u8],
    size: u64,
    each: impl FnMut(&Located) -> Result<(), E>,
) -> Result<(), E> {
    each_chunk_in(store, content, size, 0..size, each)
}

/// The same for the chunks that begin within `bytes`.
pub(super) fn each_chunk_in<E: From<NodesError<StoreError>>>(
    store: &Store,
    content: &[u8],
    size: u64,
    bytes: Range<u64>,
    mut each: impl FnMut(&Located) -> Result<(), E>,
) -> Result<(), E> {
    let nodes = StoreNodes(store);
    let reader =
        ContentReader::new(&nodes, content, size).map_err(NodesError::<StoreError>::Input)?;
    let mut each = |located: &Located| match bytes.contains(&located.offset) {
        true => each(located),
        false => Ok(()),
    };
    let segments = reader.segments(bytes.clone())?;
    if segments.is_empty() {
        return reader.locate(bytes.clone())?.iter().try_for_each(each);
    }
    for segment in segments {
        reader
            .locate(segment.bytes)?
            .iter()
            .try_for_each(&mut each)?;
    }
    Ok(())
}
