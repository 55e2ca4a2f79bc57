//! The content of a file that was edited: what it costs grows with the edit, not with the file.
//!
//! Only the chunks around each changed place are looked up, cut again and replaced in the file's list of chunks. An edit
//! moves no byte but those after a changed end, so a place can be worked on in the list as it was.

use std::collections::HashSet;
use std::ops::Range;

use ccbt_xet::rechunk::{Change, rechunk};
use ccbt_xet::recipe::ChunkRef;
use parking_lot::Mutex;

use super::body::{Cut, Stored};
use super::commit::{self, CommitError};
use super::nodes::{StoreError, StoreNodes};
use super::{Inner, WantedChunk};
use crate::folder::content::{self, ContentReader, Located};
use crate::folder::tree::NodesError;

/// Changes nearer to each other than this, in bytes, are one place: half of what a segment of the list covers on
/// average.
const PLACE_GAP: u64 = 8 << 20;

/// With more places than this the list is read and written once from the first to the last.
const PLACES_MAX: usize = 64;

/// Bytes looked at behind a change at first: cutting mostly falls in with the old boundaries within two chunks.
const AHEAD: u64 = 512 << 10;

/// Contents remembered by [`Packed`].
const PACKED_MAX: usize = 4096;

/// Contents of which no chunk is only in a plain file, by hash: they need not be looked through again.
#[derive(Debug, Default)]
pub(super) struct Packed(Mutex<HashSet<blake3::Hash>>);

impl Packed {
    fn knows(&self, stored: &Stored) -> bool {
        self.0.lock().contains(&blake3::hash(&stored.content.0))
    }

    fn add(&self, stored: &Stored) {
        let mut known = self.0.lock();
        if known.len() >= PACKED_MAX {
            known.clear();
        }
        known.insert(blake3::hash(&stored.content.0));
    }
}

/// A part of the old file and the chunks that take its place.
struct Recut {
    old: Range<u64>,
    chunks: Vec<ChunkRef>,
}

impl Inner {
    /// Chunks what changed in a file again and puts the new chunks and the nodes around them into the store.
    pub(super) fn patch(&self, cut: &Cut, changed: &[Range<u64>]) -> Result<Stored, CommitError> {
        let nodes = StoreNodes(&self.config.store);
        let mut new = (*cut.stored).clone();
        let mut done = 0;
        for place in places(changed, cut.stored.size, cut.overlay.size()) {
            // Cutting may have gone on into the next place.
            if place.end <= done {
                continue;
            }
            let recut = self.recut(cut, changed, place.start.max(done)..place.end)?;
            done = recut.old.end;
            let chunk = |chunk: &ChunkRef| content::ChunkRef {
                hash: chunk.hash,
                len: chunk.len,
            };
            let chunks: Vec<_> = recut.chunks.iter().map(chunk).collect();
            new = commit::stored(content::splice(
                &nodes,
                &new.content.0,
                new.size,
                recut.old,
                &chunks,
            )?);
        }
        Ok(new)
    }

    /// Cuts from the last old boundary before `place` until an old boundary behind it is met.
    fn recut(
        &self,
        cut: &Cut,
        changed: &[Range<u64>],
        place: Range<u64>,
    ) -> Result<Recut, CommitError> {
        let (old_len, new_len) = (cut.stored.size, cut.overlay.size());
        let nodes = StoreNodes(&self.config.store);
        let reader = ContentReader::new(&nodes, &cut.stored.content.0, old_len)
            .map_err(NodesError::Input)?;
        let mut ahead = AHEAD;
        loop {
            let until = place.end.saturating_add(ahead).min(old_len.min(new_len));
            let located = reader.locate(place.start..until.max(place.start + 1))?;
            let start = located.first().map_or(place.start, |first| first.offset);
            let met = located.last().map_or(start, Located::end);
            let at_end = met >= old_len.min(new_len);
            let part_len = if at_end {
                new_len - start.min(new_len)
            } else {
                met - start
            };
            let old: Vec<ChunkRef> = located.iter().map(chunk_of).collect();
            let dirty = within(changed, start..start + part_len);
            let change = Change {
                old: &old,
                new_len: part_len,
                dirty: &dirty,
                suite: self.config.store.suite(),
            };
            let chunks = rechunk(
                &change,
                |offset, buf| self.read_cut(cut, start + offset, buf),
                |chunk, bytes| {
                    self.config.store.put_chunk(&chunk.hash, bytes)?;
                    Ok::<(), CommitError>(())
                },
            )?;
            // A chunk equal to the old one at the same place ends where content says, not because the part ends.
            if at_end || chunks.last() == old.last() {
                let end = if at_end { old_len } else { met };
                return Ok(Recut {
                    old: start..end,
                    chunks,
                });
            }
            ahead = ahead.saturating_mul(4);
        }
    }

    /// Stores what a new version keeps of an old one and only a plain file has, which may change at any time. Chunks
    /// that are not here at all stay where they are, with peers.
    pub(super) fn pack_kept(&self, old: &Stored, new: &Stored) -> Result<(), CommitError> {
        let store = &self.config.store;
        if !store.has_borrowed() {
            return Ok(());
        }
        if !self.packed.knows(old) {
            self.pack_borrowed(new)?;
        }
        self.packed.add(new);
        Ok(())
    }

    /// Whether some chunk of a content is only in a plain file.
    pub(super) fn needs_plain_file(&self, stored: &Stored) -> Result<bool, CommitError> {
        let mut needs = false;
        self.each_chunk(stored, &mut |found| needs |= self.is_only_borrowed(found))?;
        Ok(needs)
    }

    /// Stores every chunk of a content that only a plain file has. Chunks that are not here at all, and those of parts
    /// of the list that are not here, stay with peers.
    pub(super) fn pack_borrowed(&self, stored: &Stored) -> Result<(), CommitError> {
        let mut gone = Vec::new();
        let mut done = Ok(());
        self.each_chunk(stored, &mut |found| {
            if done.is_ok() && self.is_only_borrowed(found) {
                done = self.pack_chunk(found, &mut gone);
            }
        })?;
        done?;
        match gone.is_empty() {
            true => Ok(()),
            false => Err(CommitError::MissingChunks(gone)),
        }
    }

    fn is_only_borrowed(&self, found: &Located) -> bool {
        let (store, hash) = (&self.config.store, &found.chunk.hash);
        !store.is_packed(hash) && store.contains(hash)
    }

    fn pack_chunk(&self, found: &Located, gone: &mut Vec<WantedChunk>) -> Result<(), CommitError> {
        let (store, hash) = (&self.config.store, &found.chunk.hash);
        match store.chunk(hash).map_err(StoreError::from)? {
            Some(bytes) => drop(store.put_chunk(hash, &bytes)?),
            None => gone.push(WantedChunk {
                hash: *hash,
                len: found.chunk.len,
                segment: found.segment,
            }),
        }
        Ok(())
    }
}

fn chunk_of(located: &Located) -> ChunkRef {
    ChunkRef {
        hash: located.chunk.hash,
        len: located.chunk.len,
    }
}

/// The parts of ranges that lie in `part`, counted from its start.
fn within(ranges: &[Range<u64>], part: Range<u64>) -> Vec<Range<u64>> {
    ranges
        .iter()
        .map(|range| range.start.max(part.start)..range.end.min(part.end))
        .filter(|range| range.start < range.end)
        .map(|range| range.start - part.start..range.end - part.start)
        .collect()
}

/// Where a file has to be cut again, ascending and apart. The old end of a file is no boundary by content: when the
/// size changes, it begins with the last byte the file had or has no more.
fn places(changed: &[Range<u64>], old_len: u64, new_len: u64) -> Vec<Range<u64>> {
    let end = match old_len.cmp(&new_len) {
        std::cmp::Ordering::Less => Some(old_len.saturating_sub(1)..new_len),
        std::cmp::Ordering::Equal => None,
        std::cmp::Ordering::Greater => Some(new_len..old_len),
    };
    let mut all: Vec<Range<u64>> = changed.iter().cloned().chain(end).collect();
    all.sort_unstable_by_key(|range| range.start);
    let mut out: Vec<Range<u64>> = Vec::new();
    for range in all {
        match out.last_mut() {
            Some(last) if range.start <= last.end.saturating_add(PLACE_GAP) => {
                last.end = last.end.max(range.end);
            }
            _ => out.push(range),
        }
    }
    if out.len() > PLACES_MAX {
        let end = out.last().map_or(0, |last| last.end);
        out.truncate(1);
        out.iter_mut().for_each(|all| all.end = end);
    }
    out
}
