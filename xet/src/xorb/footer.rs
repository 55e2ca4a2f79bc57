//! The footer of a xorb: names and ends of its chunks, so that one can be found without a scan.
//!
//! Version 1, for n chunks, all integers little-endian:
//!
//! ```text
//! "XETBLOB" 1   xorb hash [32]
//! "XBLBHSH" 0   n u32   n x chunk hash [32]
//! "XBLBBND" 1   n u32   n x end of record u32   n x end in the uncompressed chunks u32
//! n u32   distance of "XBLBHSH" u32   distance of "XBLBBND" u32   16 bytes, ignored
//! footer length u32, which does not count itself
//! ```
//!
//! Distances are from the end of the ignored bytes back. Version 0, which is only read, is
//! `"XETBLOB" 0, xorb hash, n, ends of records, chunk hashes, 16 bytes, length`.

use thiserror::Error;

use super::{FOOTER_MAGIC, HEADER_LEN, MAX_CHUNKS, MAX_PAYLOAD, MAX_XORB_LEN, RecordHeader};
use crate::chunk::MAX_CHUNK;
use crate::hash::{ChunkHash, HASH_LEN, Suite, XorbHash};
use crate::merkle::MerkleBuilder;

const HASHES_MAGIC: [u8; 7] = *b"XBLBHSH";
const HASHES_VERSION: u8 = 0;
const BOUNDS_MAGIC: [u8; 7] = *b"XBLBBND";
const BOUNDS_VERSION: u8 = 1;

/// Bytes of a version 1 footer besides and for its chunks, without the length word.
const FIXED_LEN: usize = 92;
const LEN_PER_CHUNK: usize = 40;

/// The same of version 0.
const LEGACY_FIXED_LEN: usize = 60;
const LEGACY_LEN_PER_CHUNK: usize = 36;

/// Length of the word at the very end.
const LENGTH_WORD: usize = 4;

/// Bytes at the end of a footer that only some writers give a meaning.
const RESERVED_LEN: usize = 16;

/// Longest footer in bytes, length word included.
pub(super) const MAX_LEN: usize = FIXED_LEN + MAX_CHUNKS * LEN_PER_CHUNK + LENGTH_WORD;

/// Index of a xorb. The lists have one entry per chunk, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Footer {
    /// Name of the xorb.
    pub xorb_hash: XorbHash,
    /// Names of the chunks.
    pub hashes: Vec<ChunkHash>,
    /// Where each chunk's record ends, in bytes from the start of the xorb.
    pub record_ends: Vec<u32>,
    /// Where each chunk ends in the concatenation of all uncompressed chunks, in bytes. Legacy
    /// footers do not have it.
    pub chunk_ends: Option<Vec<u32>>,
}

/// Why bytes are not a footer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum FooterError {
    /// It ends too early.
    #[error("cut off")]
    CutOff,
    /// A section does not start with its name and a known version.
    #[error("a section has another name or version")]
    Section,
    /// A number of chunks that is zero, too large, or not the same everywhere.
    #[error("{0} chunks")]
    Count(u32),
    /// The length word or a distance does not fit the number of chunks, or bytes are left over.
    #[error("wrong length or distance")]
    Length,
    /// Ends of records or chunks that do not leave each a possible length.
    #[error("bounds of chunk {0}")]
    Bounds(usize),
}

/// Length in bytes of the footer whose length word is `word`, that word included; `None` when no
/// footer has that length. The footer of a sealed file is this many bytes at its end.
pub fn footer_len(word: [u8; LENGTH_WORD]) -> Option<usize> {
    let len = u32::from_le_bytes(word) as usize;
    let fits = |fixed: usize, per_chunk: usize| {
        len.checked_sub(fixed).is_some_and(|rest| {
            rest % per_chunk == 0 && (1..=MAX_CHUNKS).contains(&(rest / per_chunk))
        })
    };
    let known = fits(FIXED_LEN, LEN_PER_CHUNK) || fits(LEGACY_FIXED_LEN, LEGACY_LEN_PER_CHUNK);
    known.then_some(len + LENGTH_WORD)
}

impl Footer {
    /// The index of a xorb nothing has been written to. Its hash is that of no chunks until
    /// [`seal`](Self::seal).
    pub fn new() -> Self {
        let xorb_hash = XorbHash::from_bytes([0; HASH_LEN]);
        Self {
            xorb_hash,
            hashes: Vec::new(),
            record_ends: Vec::new(),
            chunk_ends: Some(Vec::new()),
        }
    }

    /// Whether a record with this header may be appended: the sealed xorb, footer included, stays
    /// within [`MAX_XORB_LEN`] and [`MAX_CHUNKS`].
    pub fn fits(&self, header: &RecordHeader) -> bool {
        let chunks = self.hashes.len() + 1;
        let footer_len = FIXED_LEN + LEN_PER_CHUNK * chunks + LENGTH_WORD;
        chunks <= MAX_CHUNKS
            && self.records_len() as usize + header.record_len() + footer_len <= MAX_XORB_LEN
    }

    /// Notes a record that was appended after the ones before. It must fit.
    pub fn push(&mut self, hash: ChunkHash, header: &RecordHeader) {
        debug_assert!(self.fits(header));
        let records_len = self.records_len();
        self.hashes.push(hash);
        // A record is at most HEADER_LEN + MAX_PAYLOAD long and the sum was checked by `fits`.
        self.record_ends
            .push(records_len + header.record_len() as u32);
        if let Some(ends) = &mut self.chunk_ends {
            ends.push(ends.last().copied().unwrap_or(0) + header.chunk_len);
        }
    }

    /// Length of all records in bytes, which is where the footer starts.
    pub fn records_len(&self) -> u32 {
        self.record_ends.last().copied().unwrap_or(0)
    }

    /// Hash and length of every chunk, if the footer knows the lengths.
    pub fn chunks(&self) -> Option<impl Iterator<Item = (ChunkHash, u32)>> {
        let ends = self.chunk_ends.as_ref()?;
        Some(self.hashes.iter().copied().zip(lengths(ends)))
    }

    /// The hash that follows from the chunks, if the footer knows their lengths.
    pub fn root(&self, suite: Suite) -> Option<XorbHash> {
        let mut tree = MerkleBuilder::with_suite(suite);
        for (hash, len) in self.chunks()? {
            tree.push(&hash, u64::from(len));
        }
        Some(tree.xorb_hash())
    }

    /// Sets the hash to the one that follows from the chunks.
    pub fn seal(&mut self, suite: Suite) {
        if let Some(root) = self.root(suite) {
            self.xorb_hash = root;
        }
    }

    /// The bytes to write after the records, in version 1, length word included. `None` for a
    /// legacy footer, which lacks what version 1 needs.
    pub fn encode(&self) -> Option<Vec<u8>> {
        let chunk_ends = self.chunk_ends.as_ref()?;
        let n = u32::try_from(self.hashes.len()).ok()?;
        let len = FIXED_LEN + LEN_PER_CHUNK * self.hashes.len();
        let mut out = Vec::with_capacity(len + LENGTH_WORD);
        out.extend_from_slice(&FOOTER_MAGIC);
        out.push(1);
        out.extend_from_slice(self.xorb_hash.as_bytes());
        out.extend_from_slice(&HASHES_MAGIC);
        out.push(HASHES_VERSION);
        out.extend_from_slice(&n.to_le_bytes());
        out.extend(self.hashes.iter().flat_map(|hash| hash.as_bytes()));
        out.extend_from_slice(&BOUNDS_MAGIC);
        out.push(BOUNDS_VERSION);
        out.extend_from_slice(&n.to_le_bytes());
        out.extend(self.record_ends.iter().flat_map(|end| end.to_le_bytes()));
        out.extend(chunk_ends.iter().flat_map(|end| end.to_le_bytes()));
        for word in [n, 52 + 40 * n, 40 + 8 * n] {
            out.extend_from_slice(&word.to_le_bytes());
        }
        out.extend_from_slice(&[0; RESERVED_LEN]);
        debug_assert_eq!(out.len(), len);
        out.extend_from_slice(&u32::try_from(len).ok()?.to_le_bytes());
        Some(out)
    }

    /// Parses the footer that is all of `bytes`, length word included, in either version.
    ///
    /// Checks everything but the hash; whether it describes the records is for the caller to check
    /// ([`validate`](super::validate) does).
    pub fn parse(bytes: &[u8]) -> Result<Self, FooterError> {
        let (body, word) = bytes.split_last_chunk().ok_or(FooterError::CutOff)?;
        if u32::from_le_bytes(*word) as usize != body.len() {
            return Err(FooterError::Length);
        }
        let mut input = Input(body);
        match input.section(FOOTER_MAGIC)? {
            0 => Self::parse_legacy(input),
            1 => Self::parse_v1(input),
            _ => Err(FooterError::Section),
        }
    }

    fn parse_v1(mut input: Input<'_>) -> Result<Self, FooterError> {
        let xorb_hash = XorbHash::from_bytes(input.array()?);
        if input.section(HASHES_MAGIC)? != HASHES_VERSION {
            return Err(FooterError::Section);
        }
        let n = input.count()?;
        let hashes = input.hashes(n)?;
        if input.section(BOUNDS_MAGIC)? != BOUNDS_VERSION {
            return Err(FooterError::Section);
        }
        input.same_count(n)?;
        let record_ends = input.ends(n, HEADER_LEN + 1..=HEADER_LEN + MAX_PAYLOAD)?;
        let chunk_ends = Some(input.ends(n, 1..=MAX_CHUNK)?);
        input.same_count(n)?;
        if (input.word()?, input.word()?) != (52 + 40 * n, 40 + 8 * n) {
            return Err(FooterError::Length);
        }
        input.only_reserved_left()?;
        Ok(Self {
            xorb_hash,
            hashes,
            record_ends,
            chunk_ends,
        })
    }

    fn parse_legacy(mut input: Input<'_>) -> Result<Self, FooterError> {
        let xorb_hash = XorbHash::from_bytes(input.array()?);
        let n = input.count()?;
        let record_ends = input.ends(n, HEADER_LEN + 1..=HEADER_LEN + MAX_PAYLOAD)?;
        let hashes = input.hashes(n)?;
        input.only_reserved_left()?;
        Ok(Self {
            xorb_hash,
            hashes,
            record_ends,
            chunk_ends: None,
        })
    }

    /// Number of the first chunk of which this footer says something else than these lists.
    pub(super) fn first_difference(
        &self,
        chunks: &[(ChunkHash, u32)],
        record_ends: &[u32],
    ) -> Option<usize> {
        if self.hashes.len() != chunks.len() {
            return Some(self.hashes.len().min(chunks.len()));
        }
        let ends = self.record_ends.iter().zip(record_ends);
        let ends = ends.into_iter().position(|(own, other)| own != other);
        let hashes = self
            .hashes
            .iter()
            .zip(chunks)
            .position(|(own, other)| *own != other.0);
        let lens = self.chunk_ends.iter().flat_map(|ends| lengths(ends));
        let lens = lens.zip(chunks).position(|(own, other)| own != other.1);
        [ends, hashes, lens].into_iter().flatten().min()
    }
}

impl Default for Footer {
    fn default() -> Self {
        Self::new()
    }
}

/// Lengths between ascending ends.
fn lengths(ends: &[u32]) -> impl Iterator<Item = u32> {
    let starts = std::iter::once(0).chain(ends.iter().copied());
    ends.iter().zip(starts).map(|(end, start)| end - start)
}

/// What is left of a footer.
struct Input<'a>(&'a [u8]);

impl Input<'_> {
    fn array<const N: usize>(&mut self) -> Result<[u8; N], FooterError> {
        let (taken, rest) = self.0.split_first_chunk().ok_or(FooterError::CutOff)?;
        self.0 = rest;
        Ok(*taken)
    }

    fn word(&mut self) -> Result<u32, FooterError> {
        self.array().map(u32::from_le_bytes)
    }

    /// Takes a section's name and returns its version.
    fn section(&mut self, magic: [u8; 7]) -> Result<u8, FooterError> {
        match self.array()? == magic {
            true => self.array().map(|[version]| version),
            false => Err(FooterError::Section),
        }
    }

    fn count(&mut self) -> Result<u32, FooterError> {
        let n = self.word()?;
        match (1..=MAX_CHUNKS as u32).contains(&n) {
            true => Ok(n),
            false => Err(FooterError::Count(n)),
        }
    }

    fn same_count(&mut self, n: u32) -> Result<(), FooterError> {
        match self.word()? {
            same if same == n => Ok(()),
            other => Err(FooterError::Count(other)),
        }
    }

    fn hashes(&mut self, n: u32) -> Result<Vec<ChunkHash>, FooterError> {
        let len = n as usize * HASH_LEN;
        let (taken, rest) = self.0.split_at_checked(len).ok_or(FooterError::CutOff)?;
        self.0 = rest;
        Ok(taken
            .as_chunks()
            .0
            .iter()
            .map(|bytes| ChunkHash::from_bytes(*bytes))
            .collect())
    }

    /// `n` ascending ends whose distances are all within `allowed`.
    fn ends(
        &mut self,
        n: u32,
        allowed: std::ops::RangeInclusive<usize>,
    ) -> Result<Vec<u32>, FooterError> {
        let (taken, rest) = self
            .0
            .split_at_checked(n as usize * 4)
            .ok_or(FooterError::CutOff)?;
        self.0 = rest;
        let mut ends = Vec::with_capacity(n as usize);
        let mut start = 0;
        for (i, bytes) in taken.as_chunks().0.iter().enumerate() {
            let end = u32::from_le_bytes(*bytes);
            let len = end.checked_sub(start).ok_or(FooterError::Bounds(i))?;
            if !allowed.contains(&(len as usize)) {
                return Err(FooterError::Bounds(i));
            }
            ends.push(end);
            start = end;
        }
        Ok(ends)
    }

    fn only_reserved_left(&self) -> Result<(), FooterError> {
        match self.0.len() {
            RESERVED_LEN => Ok(()),
            _ => Err(FooterError::Length),
        }
    }
}
