//! The shard: which chunks make a file, and which chunks are in a xorb.
//!
//! A shard is a header, a section of files, a section of xorbs, and, in most forms, lookup tables and
//! a footer. Everything is little-endian; a section is a run of 48-byte records that ends with a
//! marker (draft-denis-xet, "Shard Format"; `docs/formats/shard.md` draws the bytes). Four forms are
//! in use: a client uploads one without footer, keeps one with footer and lookup tables, a server
//! rewrites it with a footer and no tables, and answers deduplication queries with one whose chunk
//! hashes are hidden under a key. All are read by [`parse`] and written by [`Shard::encode`].
//!
//! The sections are read in sequence; lookup tables are checked where they are, never needed. Nothing
//! is allocated beyond what the input holds.

mod check;
mod lookup;
mod read;
mod write;

use std::ops::Range;

use crate::hash::{
    ChunkHash, FileHash, HASH_LEN, KeyedChunkHash, RangeHash, XorbHash, keyed_chunk_hash,
};

pub use check::CheckError;
pub use lookup::{Answer, Held, LookupError, Tables};
pub use read::{Footer, Parsed, ShardError, parse};
pub use write::{EncodeError, Form, Seal};

/// Length in bytes a writer of shards aims at: it starts another before this one gets longer.
pub const TARGET_SHARD_LEN: usize = 64 * 1024 * 1024;

/// Length in bytes beyond which nobody should read a shard into memory. A writer at the target is
/// over it by the records of one file at most.
pub const MAX_READ_LEN: usize = 4 * TARGET_SHARD_LEN;

/// First bytes of every shard. Other applications use other ones, and their shards are not ours.
const TAG: [u8; 32] =
    *b"HFRepoMetaData\0\x55\x69\x67\x45\x6a\x7b\x81\x57\x83\xa5\xbd\xd9\x5c\xcd\xd1\x4a\xa9";

/// The only version of the header.
const HEADER_VERSION: u64 = 2;

/// The only version of the footer.
const FOOTER_VERSION: u64 = 1;

/// Length of a record in bytes. The header has it too.
pub(crate) const RECORD_LEN: usize = 48;

/// Length of the footer in bytes.
const FOOTER_LEN: usize = 200;

/// The record that ends a section.
const END: [u8; RECORD_LEN] = {
    let mut record = [0; RECORD_LEN];
    let mut i = 0;
    while i < HASH_LEN {
        record[i] = 0xff;
        i += 1;
    }
    record
};

/// Flag of a file: a verification hash per segment follows the segments.
const WITH_VERIFICATION: u32 = 1 << 31;

/// Flag of a file: a record with its SHA-256 follows.
const WITH_SHA256: u32 = 1 << 30;

/// Flag of a chunk: offered for global deduplication.
const DEDUP: u32 = 1 << 31;

/// Expiry of a key that has none, and of shards a client writes for itself.
pub const NEVER: u64 = u64::MAX;

/// What a shard says, in the order of its records.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Shard {
    /// The files.
    pub files: Vec<FileInfo>,
    /// The xorbs. A file may name others.
    pub xorbs: Vec<XorbInfo>,
    /// What the chunk hashes are hidden under. Only answers to deduplication queries have it.
    pub key: Option<[u8; HASH_LEN]>,
}

/// A file: the chunks that make it, as runs of chunks of xorbs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileInfo {
    /// Name of its content.
    pub hash: FileHash,
    /// Its content in order. An empty file has none.
    pub segments: Vec<Segment>,
    /// Proof, per segment, that the writer knew the chunks.
    pub verification: Option<Vec<RangeHash>>,
    /// SHA-256 of its content, as everybody else writes it. An empty file has zeros here.
    pub sha256: Option<[u8; 32]>,
}

/// A run of chunks of one xorb.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    /// The xorb that has them.
    pub xorb: XorbHash,
    /// No bit has a meaning yet.
    pub flags: u32,
    /// Length of the chunks together, uncompressed, in bytes.
    pub len: u32,
    /// Numbers of the chunks in the xorb.
    pub chunks: Range<u32>,
}

/// A xorb and its chunks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct XorbInfo {
    /// Its name.
    pub hash: XorbHash,
    /// No bit has a meaning yet.
    pub flags: u32,
    /// Length of its chunks together, uncompressed, in bytes.
    pub len: u32,
    /// Length of the xorb itself in bytes. Uploads say 0.
    pub disk_len: u32,
    /// Its chunks in order.
    pub chunks: Vec<ChunkInfo>,
}

/// A chunk of a xorb.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChunkInfo {
    /// Its name as it stands in the shard: hidden where the shard has a key, plain elsewhere.
    pub listed: KeyedChunkHash,
    /// Its length, uncompressed, in bytes.
    pub len: u32,
    /// See [`is_offered`](Self::is_offered); no other bit has a meaning yet.
    pub flags: u32,
}

impl FileInfo {
    /// Length of the file in bytes.
    pub fn len(&self) -> u64 {
        let lens = self.segments.iter().map(|segment| u64::from(segment.len));
        lens.sum()
    }

    /// Whether the file has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The flags its header record has.
    pub fn flags(&self) -> u32 {
        let mut flags = 0;
        if self.verification.is_some() {
            flags |= WITH_VERIFICATION;
        }
        if self.sha256.is_some() {
            flags |= WITH_SHA256;
        }
        flags
    }

    /// The hash field of its metadata record: the SHA-256 with each group of eight bytes reversed,
    /// so that the text form of the field is the usual hexadecimal form of the SHA-256.
    pub fn sha256_field(&self) -> Option<[u8; 32]> {
        self.sha256.map(swap_words)
    }

    /// Records it takes in the section.
    fn records(&self) -> u64 {
        let segments = self.segments.len() as u64;
        let verification = self.verification.as_ref().map_or(0, |of| of.len() as u64);
        1 + segments + verification + u64::from(self.sha256.is_some())
    }
}

impl XorbInfo {
    /// Records it takes in the section.
    fn records(&self) -> u64 {
        1 + self.chunks.len() as u64
    }
}

impl ChunkInfo {
    /// A chunk in a shard without a key.
    pub fn plain(hash: &ChunkHash, len: u32) -> Self {
        Self {
            listed: KeyedChunkHash::from_bytes(*hash.as_bytes()),
            len,
            flags: 0,
        }
    }

    /// Whether a server offers the chunk for global deduplication. Clients leave the flag unset.
    pub const fn is_offered(&self) -> bool {
        self.flags & DEDUP != 0
    }
}

impl Shard {
    /// The name a chunk has in this shard.
    pub fn listed(&self, chunk: &ChunkHash) -> KeyedChunkHash {
        match &self.key {
            Some(key) => keyed_chunk_hash(key, chunk),
            None => KeyedChunkHash::from_bytes(*chunk.as_bytes()),
        }
    }

    /// The chunk's hash, if this shard does not hide it.
    pub fn plain_hash(&self, chunk: &ChunkInfo) -> Option<ChunkHash> {
        let plain = ChunkHash::from_bytes(*chunk.listed.as_bytes());
        self.key.is_none().then_some(plain)
    }

    /// The same shard with its chunk hashes hidden under `key`, which must not be all zeros. `None`
    /// if they are hidden already.
    pub fn hidden(&self, key: [u8; HASH_LEN]) -> Option<Self> {
        let mut hidden = self.clone();
        for chunk in hidden.xorbs.iter_mut().flat_map(|xorb| &mut xorb.chunks) {
            chunk.listed = keyed_chunk_hash(&key, &self.plain_hash(chunk)?);
        }
        hidden.key = Some(key);
        Some(hidden)
    }

    /// The chunks a client may ask a server about: those whose hash says so, and the first ones of
    /// files. In ascending order, each once; none where the hashes are hidden.
    pub fn dedup_eligible(&self) -> Vec<ChunkHash> {
        let mut eligible: Vec<ChunkHash> = self
            .xorbs
            .iter()
            .flat_map(|xorb| &xorb.chunks)
            .filter_map(|chunk| self.plain_hash(chunk))
            .filter(ChunkHash::is_dedup_eligible)
            .collect();
        let starts = self.file_starts();
        eligible.extend(starts.filter_map(|(xorb, chunk)| {
            let chunk = self.xorbs.get(xorb)?.chunks.get(chunk)?;
            self.plain_hash(chunk)
        }));
        eligible.sort_unstable();
        eligible.dedup();
        eligible
    }

    /// Marks the first chunks of files as offered for global deduplication, as servers do. What a
    /// hash tells by itself needs no mark.
    pub fn offer_file_starts(&mut self) {
        let starts: Vec<_> = self.file_starts().collect();
        for (xorb, chunk) in starts {
            let xorb = self.xorbs.get_mut(xorb);
            if let Some(chunk) = xorb.and_then(|xorb| xorb.chunks.get_mut(chunk)) {
                chunk.flags |= DEDUP;
            }
        }
    }

    /// Where files start that start in one of these xorbs: number of the xorb, number of the chunk.
    fn file_starts(&self) -> impl Iterator<Item = (usize, usize)> {
        let numbers = self.xorb_numbers();
        self.files.iter().filter_map(move |file| {
            let first = file.segments.first()?;
            let xorb = numbers.get(&first.xorb)?;
            Some((*xorb, first.chunks.start as usize))
        })
    }

    /// Number of each xorb in the section.
    fn xorb_numbers(&self) -> std::collections::HashMap<XorbHash, usize> {
        let xorbs = self.xorbs.iter().enumerate();
        xorbs.map(|(number, xorb)| (xorb.hash, number)).collect()
    }
}

/// Reverses the bytes of each 8-byte word.
fn swap_words(mut bytes: [u8; 32]) -> [u8; 32] {
    for word in bytes.as_chunks_mut::<8>().0 {
        word.reverse();
    }
    bytes
}

#[cfg(test)]
mod tests;
