//! Reading many chunks at once: those that lie one after the other in a plain file take one read, not one each.

use super::borrow::Borrowed;
use super::{ReadError, Store};
use crate::hash::ChunkHash;

impl Store {
    /// Fills `buf` with the bytes of chunks, `(hash, length)`, in order. Returns whether all are here; if not, `buf` holds
    /// anything, as it does if it has not the length of the chunks together. Every borrowed byte is hashed, as ever.
    pub fn read_all(&self, chunks: &[(ChunkHash, u32)], buf: &mut [u8]) -> Result<bool, ReadError> {
        let (mut chunks, mut buf) = (chunks, buf);
        while let Some((first, _)) = chunks.first() {
            let run = match self.is_packed(first) {
                true => None,
                false => self.longest_run(chunks),
            };
            let (these, rest) = chunks.split_at(run.map_or(1, |(_, count)| count));
            let len: usize = these.iter().map(|(_, len)| *len as usize).sum();
            let Some((part, left)) = std::mem::take(&mut buf).split_at_mut_checked(len) else {
                return Ok(false);
            };
            let is_read = run.is_some_and(|(at, _)| self.read_file(at, part));
            if !self.prove(these, part, is_read)? {
                return Ok(false);
            }
            (chunks, buf) = (rest, left);
        }
        Ok(buf.is_empty())
    }

    /// Where a plain file is thought to hold most of these chunks, from the first on, one after the other, and how many.
    fn longest_run(&self, chunks: &[(ChunkHash, u32)]) -> Option<(Borrowed, usize)> {
        let (first, len) = chunks.first()?;
        let mut best: Option<(Borrowed, usize)> = None;
        for start in self.borrowed.find(first) {
            if start.len != *len {
                continue;
            }
            let mut end = start.offset + u64::from(start.len);
            let followers = chunks.iter().skip(1).take_while(|(hash, len)| {
                let next = Borrowed {
                    source: start.source,
                    offset: end,
                    len: *len,
                };
                end += u64::from(*len);
                self.borrowed.find(hash).contains(&next)
            });
            let count = 1 + followers.count();
            if best.is_none_or(|(_, most)| count > most) {
                best = Some((start, count));
            }
            if count == chunks.len() {
                break;
            }
        }
        best
    }

    fn read_file(&self, at: Borrowed, buf: &mut [u8]) -> bool {
        let reader = self.readers.read().get(&at.source.space()).cloned();
        reader.is_some_and(|reader| reader.read_at(at.source, at.offset, buf).is_ok())
    }

    /// Has `buf` hold these chunks. What was read there and has the right hash stays; the rest is read one by one, which
    /// also finds out what is wrong with the file.
    fn prove(
        &self,
        chunks: &[(ChunkHash, u32)],
        buf: &mut [u8],
        is_read: bool,
    ) -> Result<bool, ReadError> {
        let mut left = buf;
        for (hash, len) in chunks {
            let Some((part, rest)) = std::mem::take(&mut left).split_at_mut_checked(*len as usize)
            else {
                return Ok(false);
            };
            let is_right = is_read && self.suite.chunk_hash(part) == *hash;
            if !is_right && self.read_range(hash, 0, part)? != Some(*len) {
                return Ok(false);
            }
            left = rest;
        }
        Ok(true)
    }
}
