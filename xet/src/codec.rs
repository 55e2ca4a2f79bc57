//! How the bytes of one chunk are stored: as they are, or compressed by one of two schemes.
//!
//! Compressed bytes are not canonical and never hashed, so an encoder is free in what it picks
//! (draft-denis-xet, "Chunk Compression Schemes"). Trying to compress data that does not compress
//! costs more than cutting and hashing it together, so [`Probe`] looks at a small sample first, and
//! ever more rarely while it keeps finding the same. Decoding writes into a buffer of exactly the
//! length the record states and accepts nothing else, whatever the payload claims.

mod block;
mod encode;
mod frame;
mod xxh32;

use std::ops::Range;
use std::sync::atomic::{AtomicU8, AtomicU32, Ordering};

use thiserror::Error;

use encode::Table;
pub use frame::FrameError;

/// Bytes a probe compresses, from the middle of the chunk. A multiple of the grouping width.
const SAMPLE_LEN: usize = 4 * 1024;

/// Compressed size, in sixteenths, from which on compressing does not pay: less than
/// that is lost again in copying and in reads that cannot use the stored bytes directly.
const WORTH_SIXTEENTHS: usize = 14;

/// After `n` samples in a row with the same answer, `2^n - 1` chunks pass unprobed, up to this `n`
/// (31 chunks, about 2 MB).
const MAX_BACKOFF: u32 = 5;

/// Width of byte grouping: the size of the numbers it is good for.
const GROUPS: usize = 4;

/// How a payload is to be read. The discriminant is the byte in the record header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Scheme {
    /// The chunk itself.
    Stored = 0,
    /// One LZ4 frame.
    Lz4 = 1,
    /// Bytes grouped by their position modulo four, then one LZ4 frame. Good for arrays of numbers.
    GroupedLz4 = 2,
}

impl Scheme {
    /// The scheme with this header byte.
    pub const fn from_byte(byte: u8) -> Option<Self> {
        match byte {
            0 => Some(Self::Stored),
            1 => Some(Self::Lz4),
            2 => Some(Self::GroupedLz4),
            _ => None,
        }
    }

    /// The header byte.
    pub const fn as_byte(self) -> u8 {
        self as u8
    }
}

/// Why a payload cannot be decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum DecodeError {
    /// A stored payload whose length is not the chunk's.
    #[error("stored payload of {payload} bytes for a chunk of {chunk}")]
    StoredLength {
        /// Length of the payload in bytes.
        payload: usize,
        /// Length the chunk should have in bytes.
        chunk: usize,
    },
    /// The LZ4 frame is broken or does not hold exactly the chunk.
    #[error("LZ4 frame: {0}")]
    Frame(#[from] FrameError),
}

/// Decodes `payload` into `chunk`, whose length is the exact length the result must have.
///
/// Allocates nothing but, for grouped payloads, one buffer of that length. On an error the content
/// of `chunk` is unspecified.
pub fn decode_into(scheme: Scheme, payload: &[u8], chunk: &mut [u8]) -> Result<(), DecodeError> {
    match scheme {
        Scheme::Stored if payload.len() != chunk.len() => {
            return Err(DecodeError::StoredLength {
                payload: payload.len(),
                chunk: chunk.len(),
            });
        }
        Scheme::Stored => chunk.copy_from_slice(payload),
        Scheme::Lz4 => frame::decode(payload, chunk)?,
        Scheme::GroupedLz4 => {
            let mut grouped = vec![0; chunk.len()];
            frame::decode(payload, &mut grouped)?;
            ungroup(&grouped, chunk);
        }
    }
    Ok(())
}

/// Decodes the first `len` bytes of a chunk into `out`, growing it as needed, from a payload that is known to be good:
/// whoever wants it checked decodes it whole. `None` where only that is possible.
pub fn decode_start<'o>(
    scheme: Scheme,
    payload: &[u8],
    len: usize,
    out: &'o mut Vec<u8>,
) -> Option<&'o [u8]> {
    match scheme {
        Scheme::Lz4 => frame::decode_start(payload, len, out),
        Scheme::Stored | Scheme::GroupedLz4 => None,
    }
}

/// A payload ready to be written, borrowed from the chunk or from the encoder.
#[derive(Clone, Copy, Debug)]
pub struct Encoded<'a> {
    /// What the record header must say.
    pub scheme: Scheme,
    /// Bytes to write after the header.
    pub payload: &'a [u8],
}

/// Payloads one after the other in one buffer, which is kept.
#[derive(Debug, Default)]
pub struct Payloads {
    /// Longer than what is used, so that it is cleared once.
    bytes: Vec<u8>,
    used: usize,
}

impl Payloads {
    /// Forgets the payloads, but keeps the memory.
    pub fn clear(&mut self) {
        self.used = 0;
    }

    /// The bytes of one.
    pub fn get(&self, range: Range<usize>) -> &[u8] {
        self.bytes.get(range).unwrap_or_default()
    }

    /// Appends a frame. `None` when it would not be shorter than `bytes`.
    fn push_frame(&mut self, bytes: &[u8], table: &mut Table) -> Option<Range<usize>> {
        let room = self.used + frame::room(bytes.len());
        if self.bytes.len() < room {
            self.bytes.resize(room, 0);
        }
        let len = frame::encode(bytes, self.bytes.get_mut(self.used..)?, table);
        let range = self.used..self.used + len;
        (0 < len && len < bytes.len()).then(|| {
            self.used = range.end;
            range
        })
    }
}

/// Compresses chunks, keeping its tables and buffers between them (about 300 KiB).
pub struct Encoder {
    table: Table,
    grouped: Vec<u8>,
    /// Of one chunk.
    payload: Payloads,
}

impl Default for Encoder {
    fn default() -> Self {
        Self::new()
    }
}

impl Encoder {
    /// An encoder without buffers yet.
    pub fn new() -> Self {
        Self {
            table: Table::new(),
            grouped: Vec::new(),
            payload: Payloads::default(),
        }
    }

    /// Encodes a chunk of at most [`MAX_CHUNK`](crate::chunk::MAX_CHUNK) bytes by `scheme`, or
    /// stores it when the result would not be smaller.
    pub fn encode<'a>(&'a mut self, scheme: Scheme, chunk: &'a [u8]) -> Encoded<'a> {
        let mut payload = std::mem::take(&mut self.payload);
        payload.clear();
        let range = self.encode_to(scheme, chunk, &mut payload);
        self.payload = payload;
        match range {
            Some(range) => Encoded {
                scheme,
                payload: self.payload.get(range),
            },
            None => Encoded::stored(chunk),
        }
    }

    /// As [`encode`](Self::encode), to the end of `out`. `None` means that the chunk is to be stored as it is.
    fn encode_to(
        &mut self,
        scheme: Scheme,
        chunk: &[u8],
        out: &mut Payloads,
    ) -> Option<Range<usize>> {
        let source = match scheme {
            Scheme::Stored => return None,
            Scheme::Lz4 => chunk,
            Scheme::GroupedLz4 => {
                self.grouped.resize(chunk.len(), 0);
                group(chunk, &mut self.grouped);
                &self.grouped
            }
        };
        out.push_frame(source, &mut self.table)
    }
}

impl<'a> Encoded<'a> {
    /// A chunk as it is.
    pub const fn stored(chunk: &'a [u8]) -> Self {
        Self {
            scheme: Scheme::Stored,
            payload: chunk,
        }
    }
}

/// Decides how chunks are encoded, from samples and from how the last ones went.
///
/// Shared by all writers of a store; what it remembers only moves the moment of the next look, so
/// races between them do no harm.
#[derive(Debug, Default)]
pub struct Probe {
    /// Samples in a row that gave the same answer, up to [`MAX_BACKOFF`].
    same: AtomicU32,
    /// Chunks still to pass unprobed.
    skip: AtomicU32,
    /// The last answer, as the byte of a scheme.
    last: AtomicU8,
}

impl Probe {
    /// A probe that looks at the next chunk.
    pub fn new() -> Self {
        Self::default()
    }

    /// The scheme to encode `chunk` by. `Stored` means: will not pay, as far as can be told.
    fn scheme(&self, chunk: &[u8], table: &mut Table) -> Scheme {
        let last = Scheme::from_byte(self.last.load(Ordering::Relaxed)).unwrap_or(Scheme::Stored);
        let skipped = self
            .skip
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1));
        if skipped.is_ok() {
            return last;
        }
        let scheme = best_for_sample(middle(chunk), table);
        let same = match scheme == last {
            true => self.same.load(Ordering::Relaxed).saturating_add(1),
            false => 1,
        };
        let same = same.min(MAX_BACKOFF);
        self.same.store(same, Ordering::Relaxed);
        self.skip.store((1 << same) - 1, Ordering::Relaxed);
        self.last.store(scheme.as_byte(), Ordering::Relaxed);
        scheme
    }

    /// Encodes a chunk if that pays. If it does not where it was said to, the next chunk is looked at.
    pub fn encode<'a>(&self, encoder: &'a mut Encoder, chunk: &'a [u8]) -> Encoded<'a> {
        let mut payload = std::mem::take(&mut encoder.payload);
        payload.clear();
        let encoded = self.encode_to(encoder, chunk, &mut payload);
        encoder.payload = payload;
        match encoded {
            Some((scheme, range)) => Encoded {
                scheme,
                payload: encoder.payload.get(range),
            },
            None => Encoded::stored(chunk),
        }
    }

    /// As [`encode`](Self::encode), to the end of `out`. `None` means that the chunk is to be stored as it is.
    pub fn encode_to(
        &self,
        encoder: &mut Encoder,
        chunk: &[u8],
        out: &mut Payloads,
    ) -> Option<(Scheme, Range<usize>)> {
        let scheme = self.scheme(chunk, &mut encoder.table);
        if scheme == Scheme::Stored {
            return None;
        }
        let used = out.used;
        let range = encoder.encode_to(scheme, chunk, out);
        if let Some(range) = range.filter(|range| pays(range.len(), chunk.len())) {
            return Some((scheme, range));
        }
        out.used = used;
        self.same.store(0, Ordering::Relaxed);
        self.skip.store(0, Ordering::Relaxed);
        None
    }
}

/// Whether it pays to keep `encoded` bytes for a chunk or sample of `len`.
const fn pays(encoded: usize, len: usize) -> bool {
    encoded < len * WORTH_SIXTEENTHS / 16
}

/// Up to [`SAMPLE_LEN`] bytes from the middle, starting at a multiple of the grouping width.
fn middle(chunk: &[u8]) -> &[u8] {
    let start = chunk.len().saturating_sub(SAMPLE_LEN) / 2 / GROUPS * GROUPS;
    let rest = &chunk[start..];
    &rest[..rest.len().min(SAMPLE_LEN)]
}

fn best_for_sample(sample: &[u8], table: &mut Table) -> Scheme {
    let mut grouped = [0; SAMPLE_LEN];
    let grouped = &mut grouped[..sample.len()];
    group(sample, grouped);
    let plain_len = block_len(sample, table);
    let grouped_len = block_len(grouped, table);
    if !pays(plain_len.min(grouped_len), sample.len()) {
        Scheme::Stored
    } else if grouped_len + grouped_len / 16 < plain_len {
        // Ungrouping costs the reader a pass over the chunk, so it has to win clearly.
        Scheme::GroupedLz4
    } else {
        Scheme::Lz4
    }
}

/// Length of `sample` compressed as one LZ4 block.
fn block_len(sample: &[u8], table: &mut Table) -> usize {
    let mut out = [0; encode::room(SAMPLE_LEN)];
    encode::encode(sample, &mut out, table).unwrap_or(sample.len())
}

/// Writes the bytes at index 0 modulo 4, then those at 1, 2 and 3. Both slices have one length.
fn group(bytes: &[u8], grouped: &mut [u8]) {
    let mut out = grouped.iter_mut();
    for first in 0..GROUPS {
        let column = bytes.iter().skip(first).step_by(GROUPS);
        column.zip(&mut out).for_each(|(byte, slot)| *slot = *byte);
    }
}

/// Undoes [`group`].
fn ungroup(grouped: &[u8], bytes: &mut [u8]) {
    let mut rest = grouped;
    for first in 0..GROUPS {
        let len = (bytes.len() + GROUPS - 1 - first) / GROUPS;
        let (column, later) = rest.split_at(len.min(rest.len()));
        let slots = bytes.iter_mut().skip(first).step_by(GROUPS);
        slots.zip(column).for_each(|(slot, byte)| *slot = *byte);
        rest = later;
    }
}

#[cfg(test)]
mod tests;
