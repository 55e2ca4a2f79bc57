//! Chunking a changed file again without reading what did not change.
//!
//! A chunk is decided by its own bytes alone once its start is a boundary. So an old chunk stays a
//! chunk of the new file if it starts at a boundary of the new file, none of its bytes changed and
//! it ended by content. Chunking therefore starts at the last boundary at or before a change and
//! goes on until a boundary it finds is also an old one, from where old chunks are taken over up to
//! the next change. The end of the old file is no boundary by content: when the file grows, its
//! last chunk counts as changed; when it shrinks, the chunk that held the new end does.
//!
//! Reading follows the old boundaries, so every byte read ends up in a new chunk. That matters
//! where reading an unchanged byte may mean fetching its chunk from a peer.

use std::ops::Range;

use crate::chunk::{Chunker, MAX_CHUNK};
use crate::hash::Suite;
use crate::recipe::ChunkRef;

/// Bytes of new content held at once: the open chunk and as much read ahead.
const BUFFER_LEN: usize = 2 * MAX_CHUNK;

/// A file that has changed since it was last chunked.
#[derive(Clone, Copy, Debug)]
pub struct Change<'a> {
    /// All chunks of the old content, as this crate's chunker cut them.
    pub old: &'a [ChunkRef],
    /// Length of the new content in bytes.
    pub new_len: u64,
    /// Where the new content may differ from the old at the same offset: byte ranges of the new
    /// content, sorted by start; they may overlap or be empty. What lies past the end of the old
    /// content is new anyway and need not be listed.
    pub dirty: &'a [Range<u64>],
    /// Names the chunks, old and new.
    pub suite: Suite,
}

/// Chunks the new content of a file, reusing what the change left alone.
///
/// `read(offset, buf)` fills `buf` with new content from `offset` on. `store(chunk, bytes)` is given
/// every chunk that was cut anew, in file order. Returns all chunks of the new content: exactly
/// those that chunking all of it would give. Holds at most 256 KiB of content.
///
/// # Errors
///
/// The first error of `read` or `store` ends it.
pub fn rechunk<E>(
    change: &Change<'_>,
    read: impl FnMut(u64, &mut [u8]) -> Result<(), E>,
    mut store: impl FnMut(ChunkRef, &[u8]) -> Result<(), E>,
) -> Result<Vec<ChunkRef>, E> {
    let dirty = dirty_ranges(change);
    let mut dirty = dirty.iter().peekable();
    let mut old = OldChunks {
        rest: change.old,
        start: 0,
    };
    let mut content = Content {
        read,
        len: change.new_len,
        buffer: Vec::new(),
        start: 0,
        end: 0,
    };
    let mut chunks = Vec::with_capacity(change.old.len());
    let mut at = 0;
    loop {
        old.skip_to(at);
        while dirty.next_if(|range| range.end <= at).is_some() {}
        if old.start == at {
            let clean_until = dirty.peek().map_or(change.new_len, |range| range.start);
            while let Some(chunk) = old.next_within(clean_until) {
                chunks.push(chunk);
            }
            at = old.start;
        }
        if at == change.new_len {
            return Ok(chunks);
        }
        let bytes = content.next_chunk(at, old)?;
        let chunk = ChunkRef {
            hash: change.suite.chunk_hash(bytes),
            len: bytes.len() as u32,
        };
        store(chunk, bytes)?;
        chunks.push(chunk);
        at += u64::from(chunk.len);
    }
}

/// The dirty ranges within the new content, with what a changed length adds, sorted by start. They
/// may overlap: the first that ends after a boundary tells how far old chunks are good from there.
fn dirty_ranges(change: &Change<'_>) -> Vec<Range<u64>> {
    let old_len: u64 = change.old.iter().map(|chunk| u64::from(chunk.len)).sum();
    let last_len = change.old.last().map_or(0, |chunk| u64::from(chunk.len));
    let grown = (old_len < change.new_len).then(|| old_len - last_len..change.new_len);
    let all = change.dirty.iter().cloned().chain(grown);
    let clipped = all.map(|range| range.start..range.end.min(change.new_len));
    let mut ranges: Vec<Range<u64>> = clipped.filter(|range| !range.is_empty()).collect();
    ranges.sort_unstable_by_key(|range| range.start);
    ranges
}

/// Old chunks from one boundary on.
#[derive(Clone, Copy)]
struct OldChunks<'a> {
    rest: &'a [ChunkRef],
    /// Offset at which the first of them starts.
    start: u64,
}

impl OldChunks<'_> {
    fn skip_to(&mut self, offset: u64) {
        while self.start < offset && self.next_within(u64::MAX).is_some() {}
    }

    /// Takes the next chunk if it ends at or before `limit`.
    fn next_within(&mut self, limit: u64) -> Option<ChunkRef> {
        let (first, rest) = self.rest.split_first()?;
        let end = self.start + u64::from(first.len);
        if end > limit {
            return None;
        }
        *self = Self { rest, start: end };
        Some(*first)
    }
}

/// The new content, read as chunks of it are asked for.
struct Content<R> {
    read: R,
    /// Length of the whole content in bytes.
    len: u64,
    /// Holds the bytes `[start, end)` of the content at its front.
    buffer: Vec<u8>,
    start: u64,
    end: u64,
}

impl<R> Content<R> {
    /// The bytes of the chunk that starts at the boundary `at`, before the end of the content.
    fn next_chunk<E>(&mut self, at: u64, mut old: OldChunks<'_>) -> Result<&[u8], E>
    where
        R: FnMut(u64, &mut [u8]) -> Result<(), E>,
    {
        self.forget_before(at);
        let (mut chunker, mut fed) = (Chunker::new(), 0);
        let len = loop {
            let held = (self.end - self.start) as usize;
            if let Some(taken) = chunker.next_cut(&self.buffer[fed..held]) {
                break fed + taken;
            }
            fed = held;
            if self.end == self.len {
                break held;
            }
            // `old` stands at a boundary at or after `at`. Reading stops at each old boundary, as
            // chunking may end there.
            while old.start <= self.end && old.next_within(u64::MAX).is_some() {}
            let stop = if old.start > self.end {
                old.start
            } else {
                self.len
            };
            self.read_until(stop)?;
        };
        Ok(&self.buffer[..len])
    }

    /// Drops the bytes before `at`, and all if `at` is past them.
    fn forget_before(&mut self, at: u64) {
        if at >= self.end {
            (self.start, self.end) = (at, at);
            return;
        }
        let (dropped, held) = ((at - self.start) as usize, (self.end - self.start) as usize);
        self.buffer.copy_within(dropped..held, 0);
        self.start = at;
    }

    /// Reads on up to `stop`, the end of the content or the end of the buffer.
    fn read_until<E>(&mut self, stop: u64) -> Result<(), E>
    where
        R: FnMut(u64, &mut [u8]) -> Result<(), E>,
    {
        self.buffer.resize(BUFFER_LEN, 0);
        let stop = stop.min(self.len).min(self.start + BUFFER_LEN as u64);
        let (held, end) = (
            (self.end - self.start) as usize,
            (stop - self.start) as usize,
        );
        (self.read)(self.end, &mut self.buffer[held..end])?;
        self.end = stop;
        Ok(())
    }
}

#[cfg(test)]
mod tests;
