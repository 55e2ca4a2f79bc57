//! The side of a stream that reads: fills windows, cuts them, and leaves out what is held.

use std::ops::Range;

use super::Taken;
use super::held::{Held, Predicted};
use crate::chunk::{Chunker, MAX_CHUNK};
use crate::codec::Payloads;
use crate::hash::{ChunkHash, Suite};
use crate::recipe::ChunkRef;
use crate::store::EncodedAt;

/// Length of a window in bytes: several chunks, and little enough to stay in the second-level cache
/// between being read and being stored.
const WINDOW_LEN: usize = 512 * 1024;

/// Chunks that a window lists before it is handed on, even if all of them are held or holes.
const NAMED_MAX: usize = 1024;

/// Stands for the name of a chunk that is named later.
const NAMELESS: ChunkHash = ChunkHash::from_bytes([0; 32]);

/// The chunk that a hole consists of.
pub(super) static ZEROS: [u8; MAX_CHUNK] = [0; MAX_CHUNK];

/// Bytes, the chunks that end in them, and what becomes of these.
#[derive(Default)]
pub(super) struct Window {
    /// Longer than what was filled, so that it is cleared once.
    bytes: Vec<u8>,
    /// Chunks of the bytes, but those that are held.
    pub(super) found: Vec<Found>,
    /// Names of all chunks since the window before, held ones too.
    pub(super) named: Vec<ChunkRef>,
    /// What the found ones compress to.
    pub(super) payloads: Payloads,
    pub(super) encoded: Vec<EncodedAt>,
    /// Name of [`ZEROS`].
    pub(super) zeros: Option<ChunkHash>,
}

/// A chunk in a window.
pub(super) struct Found {
    /// Where in the window it is. Empty if it is zeros that stand nowhere.
    range: Range<usize>,
    /// Its name, where chunks are looked for in a store.
    pub(super) hash: ChunkHash,
    /// It does not just end because the stream does.
    pub(super) is_cut: bool,
}

impl Found {
    pub(super) fn is_zeros(&self) -> bool {
        self.range.is_empty()
    }
}

impl Window {
    pub(super) fn bytes_of(&self, found: &Found) -> &[u8] {
        match found.is_zeros() {
            true => &ZEROS,
            false => &self.bytes[found.range.clone()],
        }
    }
}

/// Fills windows from a stream, each with whole chunks from its start.
pub(super) struct Cutter<'s, R> {
    suite: Suite,
    read: R,
    chunker: Chunker,
    held: Option<Held<'s>>,
    /// Bytes of the open chunk, which the last window ended in.
    tail: Vec<u8>,
    /// How many bytes of the open chunk the chunker has seen.
    scanned: usize,
    /// Zeros that come next.
    hole: u64,
    /// Of the next window.
    window_len: usize,
    ended: bool,
}

impl<'s, E, R: FnMut(&mut [u8]) -> Result<Taken, E>> Cutter<'s, R> {
    /// With `held`, chunks are named here, and those that are held are left out.
    pub(super) fn new(suite: Suite, len: u64, read: R, held: Option<Held<'s>>) -> Self {
        // The end shows when there is room for another byte. A small file's window is small.
        let window_len = len.saturating_add(1).min(WINDOW_LEN as u64) as usize;
        Self {
            suite,
            read,
            chunker: Chunker::new(),
            held,
            tail: Vec::new(),
            scanned: 0,
            hole: 0,
            window_len,
            ended: false,
        }
    }

    /// Whether the last window had the end of the stream.
    pub(super) fn has_ended(&self) -> bool {
        self.ended
    }

    /// Reads until there are chunks to be stored, the stream ends, or the list of names is long.
    pub(super) fn fill(&mut self, window: &mut Window) -> Result<(), E> {
        window.named.clear();
        loop {
            self.fill_once(window)?;
            if self.ended || !window.found.is_empty() || window.named.len() >= NAMED_MAX {
                return Ok(());
            }
        }
    }

    fn fill_once(&mut self, window: &mut Window) -> Result<(), E> {
        window.found.clear();
        // Only the first window is shorter, so what was left of it fits the next.
        let window_len = std::mem::replace(&mut self.window_len, WINDOW_LEN);
        if window.bytes.len() < window_len {
            window.bytes.resize(window_len, 0);
        }
        let (mut start, mut len) = (0, self.tail.len());
        window.bytes[..len].copy_from_slice(&self.tail);
        loop {
            while len < window_len && !self.ended && !self.is_at_hole() {
                len += self.take(&mut window.bytes[len..window_len])?;
            }
            start = self.cut(window, start, len);
            if !self.is_at_hole() {
                break;
            }
            let full = window.found.len().max(window.named.len()) >= NAMED_MAX;
            if start == len && !full {
                self.skip_hole(window);
            } else if start < len && len < window_len {
                // Not more than the open chunk takes.
                let end = window_len.min(start + MAX_CHUNK);
                len += self.take(&mut window.bytes[len..end])?;
            } else {
                break;
            }
        }
        self.tail.clear();
        self.tail.extend_from_slice(&window.bytes[start..len]);
        Ok(())
    }

    /// Whether whole chunks of zeros may come next.
    fn is_at_hole(&self) -> bool {
        self.hole >= MAX_CHUNK as u64
    }

    /// Puts what comes next into `buf`, which is not empty. Returns how much that was.
    fn take(&mut self, buf: &mut [u8]) -> Result<usize, E> {
        if self.hole > 0 {
            let len = self.hole.min(buf.len() as u64);
            buf[..len as usize].fill(0);
            self.hole -= len;
            return Ok(len as usize);
        }
        match (self.read)(buf)? {
            Taken::Bytes(len) => {
                self.ended = len == 0;
                Ok(len.min(buf.len()))
            }
            Taken::Zeros(len) => {
                self.hole = len;
                Ok(0)
            }
        }
    }

    /// Finds the chunks in a window from `start`, where the open one begins, to `len`. Returns where the one begins that is
    /// open then.
    fn cut(&mut self, window: &mut Window, mut start: usize, len: usize) -> usize {
        while start < len {
            if self.scanned == 0
                && let Some(held) = &mut self.held
            {
                match held.predict(&window.bytes[start..len], self.ended) {
                    Predicted::Chunk { hash, len } => {
                        self.found(window, start..start + len, Some(hash), true);
                        start += len;
                        continue;
                    }
                    Predicted::NeedsMore => return start,
                    Predicted::Nothing => {}
                }
            }
            let from = start + self.scanned;
            let cut = self.chunker.next_cut(&window.bytes[from..len]);
            if cut.is_none() && !self.ended {
                self.scanned = len - start;
                return start;
            }
            let end = cut.map_or(len, |taken| from + taken);
            self.found(window, start..end, None, cut.is_some());
            (start, self.scanned) = (end, 0);
        }
        start
    }

    /// Takes as many chunks of the hole as a window lists.
    fn skip_hole(&mut self, window: &mut Window) {
        let chunk = MAX_CHUNK as u64;
        let count = (self.hole / chunk).min(NAMED_MAX as u64);
        self.hole -= count * chunk;
        for _ in 0..count {
            let suite = self.suite;
            let zeros = window.zeros.get_or_insert_with(|| suite.chunk_hash(&ZEROS));
            let hash = Some(*zeros);
            self.found(window, 0..0, hash, true);
        }
    }

    fn found(
        &mut self,
        window: &mut Window,
        range: Range<usize>,
        hash: Option<ChunkHash>,
        is_cut: bool,
    ) {
        let mut found = Found {
            range,
            hash: hash.unwrap_or(NAMELESS),
            is_cut,
        };
        if let Some(held) = &mut self.held {
            let bytes = window.bytes_of(&found);
            let len = bytes.len() as u32;
            found.hash = hash.unwrap_or_else(|| self.suite.chunk_hash(bytes));
            window.named.push(ChunkRef {
                hash: found.hash,
                len,
            });
            if held.meets(&found.hash, is_cut) {
                return;
            }
        }
        window.found.push(found);
    }
}
