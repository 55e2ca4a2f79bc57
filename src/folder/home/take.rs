//! Taking a file in: its content and attributes as they were at one moment, proven by a stat before and after.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use ccbt_xet::hash::ChunkHash;
use ccbt_xet::store::Store;

use super::base::{FileTime, HomeId, Row, RowKind, Stamp, is_unsure, xattr_digest};
use super::files::{self, HomeFiles, found, is_sparse};
use super::hash::chunks_of;
use super::ledger::DiskFile;
use super::plan::{Found, FoundKind, Take};
use crate::folder::content::{ContentReader, ContentWriter};
use crate::folder::state::{FileKind, Xattrs};
use crate::folder::tree::NodesError;
use crate::folder::work::{StoreError, StoreNodes};

/// How often a file that changes while it is read is read again before it is left for later.
const ATTEMPTS: u32 = 3;

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
    for _attempt in 0..ATTEMPTS {
        let was = found(&before);
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
        if found(&after) == was {
            let (content, ranges) = read?;
            let kind = RowKind::File {
                content: content.clone(),
            };
            let unsure = is_guess || is_unsure(was.stamp.mtime, looked_at);
            let taken = taken(id, was, xattrs, kind, content, (unsure, ranges));
            return Ok(Taken { is_guess, ..taken });
        }
        before = after;
    }
    Err(Miss::Moving)
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
    let nodes = StoreNodes(store);
    let reader = ContentReader::new(&nodes, content, size).map_err(NodesError::Input)?;
    let mut ranges = Ranges::new();
    for located in reader.locate(0..size)? {
        if ranges
            .last()
            .is_none_or(|(hash, ..)| *hash != located.chunk.hash)
        {
            ranges.push((located.chunk.hash, located.offset, located.chunk.len));
        }
    }
    Ok(ranges)
}
