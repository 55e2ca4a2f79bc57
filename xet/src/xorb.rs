//! The xorb: up to 8192 chunk records one after the other, and a footer that indexes them.
//!
//! A record is an 8-byte header and a payload. A record starts with 0x00 and a footer with `X`, so
//! the records can be walked without knowing whether a footer follows: uploads come without one
//! (draft-denis-xet, "Xorb Format"; the footer layouts are those of deployed servers). Parsers here
//! check every length before using it and hold one decoded chunk at a time.

mod footer;

use thiserror::Error;

use crate::chunk::MAX_CHUNK;
use crate::codec::{DecodeError, Scheme, decode_into};
use crate::hash::{ChunkHash, Suite, XorbHash};
use crate::merkle::MerkleBuilder;

pub use footer::{Footer, FooterError, footer_len};

/// Most chunks of a xorb.
pub const MAX_CHUNKS: usize = 8192;

/// Length in bytes a writer keeps a xorb within, footer included.
pub const MAX_XORB_LEN: usize = 64 * 1024 * 1024;

/// Length in bytes a reader must accept: some writers count 64 MiB of uncompressed chunks, to which
/// a header per incompressible chunk, a footer and its length word are added.
pub const MAX_READ_LEN: usize = MAX_XORB_LEN + MAX_CHUNKS * HEADER_LEN + footer::MAX_LEN;

/// Length of a record header in bytes.
pub const HEADER_LEN: usize = 8;

/// Longest payload a reader accepts. Compression schemes are only used where they shrink a chunk,
/// but deployed readers take payloads up to this.
pub const MAX_PAYLOAD: usize = 2 * MAX_CHUNK;

/// The only version of record headers.
const RECORD_VERSION: u8 = 0;

/// First bytes of a footer.
const FOOTER_MAGIC: [u8; 7] = *b"XETBLOB";

/// Header of a chunk record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordHeader {
    /// How to read the payload.
    pub scheme: Scheme,
    /// Length of the payload in bytes, `1..=MAX_PAYLOAD`.
    pub payload_len: u32,
    /// Length of the chunk in bytes, `1..=MAX_CHUNK`.
    pub chunk_len: u32,
}

impl RecordHeader {
    /// Parses and checks a header.
    pub fn parse(bytes: [u8; HEADER_LEN]) -> Result<Self, HeaderError> {
        let [version, p0, p1, p2, scheme, c0, c1, c2] = bytes;
        if version != RECORD_VERSION {
            return Err(HeaderError::Version(version));
        }
        let scheme = Scheme::from_byte(scheme).ok_or(HeaderError::Scheme(scheme))?;
        let payload_len = u32::from_le_bytes([p0, p1, p2, 0]);
        let chunk_len = u32::from_le_bytes([c0, c1, c2, 0]);
        let stored_differs = scheme == Scheme::Stored && payload_len != chunk_len;
        let in_range = (1..=MAX_PAYLOAD as u32).contains(&payload_len)
            && (1..=MAX_CHUNK as u32).contains(&chunk_len);
        if stored_differs || !in_range {
            return Err(HeaderError::Lengths {
                payload_len,
                chunk_len,
            });
        }
        Ok(Self {
            scheme,
            payload_len,
            chunk_len,
        })
    }

    /// The header's bytes. Both lengths must be within their stated ranges, which fit 24 bits.
    pub fn encode(&self) -> [u8; HEADER_LEN] {
        debug_assert!(self.payload_len as usize <= MAX_PAYLOAD);
        debug_assert!(self.chunk_len as usize <= MAX_CHUNK);
        let [p0, p1, p2, _] = self.payload_len.to_le_bytes();
        let [c0, c1, c2, _] = self.chunk_len.to_le_bytes();
        [
            RECORD_VERSION,
            p0,
            p1,
            p2,
            self.scheme.as_byte(),
            c0,
            c1,
            c2,
        ]
    }

    /// Length of the whole record in bytes, header included.
    pub fn record_len(&self) -> usize {
        HEADER_LEN + self.payload_len as usize
    }
}

/// Why a record header is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum HeaderError {
    /// Not version 0.
    #[error("record version {0}")]
    Version(u8),
    /// Not one of the three schemes.
    #[error("compression scheme {0}")]
    Scheme(u8),
    /// A length of zero, beyond its maximum, or two different ones for a stored chunk.
    #[error("payload of {payload_len} bytes for a chunk of {chunk_len}")]
    Lengths {
        /// Stated length of the payload in bytes.
        payload_len: u32,
        /// Stated length of the chunk in bytes.
        chunk_len: u32,
    },
}

/// A record inside the bytes of a xorb. Its payload is not yet decoded.
#[derive(Clone, Copy, Debug)]
pub struct Record<'a> {
    /// Where the record's header starts, in bytes from the start of the xorb.
    pub offset: usize,
    /// The checked header.
    pub header: RecordHeader,
    /// The bytes after the header.
    pub payload: &'a [u8],
}

impl Record<'_> {
    /// Offset of the first byte after the record.
    pub fn end(&self) -> usize {
        self.offset + self.header.record_len()
    }

    /// The chunk's bytes.
    pub fn decode(&self) -> Result<Vec<u8>, DecodeError> {
        let mut chunk = vec![0; self.header.chunk_len as usize];
        decode_into(self.header.scheme, self.payload, &mut chunk)?;
        Ok(chunk)
    }
}

/// Why bytes are not a xorb.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum XorbError {
    /// More bytes than any xorb has.
    #[error("{0} bytes are more than a xorb may have")]
    TooLong(usize),
    /// No chunk at all.
    #[error("xorb without chunks")]
    Empty,
    /// More than [`MAX_CHUNKS`] chunks.
    #[error("more than {MAX_CHUNKS} chunks")]
    TooManyChunks,
    /// The bytes end inside the record that starts at `offset`.
    #[error("record at {offset} is cut off")]
    CutOff {
        /// Start of the record in bytes.
        offset: usize,
    },
    /// A bad record header.
    #[error("record at {offset}: {error}")]
    Header {
        /// Start of the record in bytes.
        offset: usize,
        /// What is wrong with it.
        error: HeaderError,
    },
    /// A payload that does not decode to its chunk.
    #[error("record at {offset}: {error}")]
    Payload {
        /// Start of the record in bytes.
        offset: usize,
        /// What is wrong with it.
        error: DecodeError,
    },
    /// A bad footer.
    #[error("footer: {0}")]
    Footer(#[from] FooterError),
    /// A footer that does not describe the records before it.
    #[error("the footer differs from the records at chunk {chunk}")]
    FooterDiffers {
        /// Number of the first chunk that differs, or of chunks when their count does.
        chunk: usize,
    },
    /// The chunks have another hash than the one claimed by the caller or by the footer.
    #[error("xorb has hash {actual} instead of {claimed}")]
    Hash {
        /// The hash it should have.
        claimed: XorbHash,
        /// The hash its chunks give.
        actual: XorbHash,
    },
}

/// Walks the records of a xorb, with or without a footer, and stops where they end.
///
/// Yields one error at most, as the last item.
pub fn records(bytes: &[u8]) -> Records<'_> {
    Records {
        bytes,
        offset: 0,
        count: 0,
        failed: false,
    }
}

/// Iterator of [`records`].
#[derive(Clone, Debug)]
pub struct Records<'a> {
    bytes: &'a [u8],
    offset: usize,
    count: usize,
    failed: bool,
}

impl<'a> Records<'a> {
    /// Where the next record would start: after the last item, the length of all records in bytes.
    pub fn offset(&self) -> usize {
        self.offset
    }

    /// The bytes not walked yet: after the last item, the footer and its length word, or nothing.
    pub fn rest(&self) -> &'a [u8] {
        self.bytes.get(self.offset..).unwrap_or_default()
    }

    fn read(&mut self) -> Result<Record<'a>, XorbError> {
        let offset = self.offset;
        if self.count == MAX_CHUNKS {
            return Err(XorbError::TooManyChunks);
        }
        let cut_off = XorbError::CutOff { offset };
        let (header, rest) = self
            .rest()
            .split_first_chunk()
            .ok_or_else(|| cut_off.clone())?;
        let header =
            RecordHeader::parse(*header).map_err(|error| XorbError::Header { offset, error })?;
        let payload = rest.get(..header.payload_len as usize).ok_or(cut_off)?;
        self.offset += header.record_len();
        self.count += 1;
        Ok(Record {
            offset,
            header,
            payload,
        })
    }
}

impl<'a> Iterator for Records<'a> {
    type Item = Result<Record<'a>, XorbError>;

    fn next(&mut self) -> Option<Self::Item> {
        let rest = self.rest();
        if self.failed || rest.is_empty() || rest.starts_with(&FOOTER_MAGIC) {
            return None;
        }
        let record = self.read();
        self.failed = record.is_err();
        Some(record)
    }
}

/// What [`parse`] found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Contents {
    /// The hash its chunks give.
    pub hash: XorbHash,
    /// Hash and length in bytes of every chunk, in order.
    pub chunks: Vec<(ChunkHash, u32)>,
    /// Where each chunk's record ends, in bytes from the start of the xorb.
    pub record_ends: Vec<u32>,
    /// The footer, if there was one. It describes exactly these chunks.
    pub footer: Option<Footer>,
}

/// Checks a whole xorb from a stranger: every header, every payload, the footer if there is one,
/// and that the chunks give the hash it was claimed to have.
///
/// The hashes are those of `suite`, which nothing in the bytes tells.
/// A server that wants sealed xorbs only also looks whether [`Contents::footer`] is there.
pub fn validate(suite: Suite, bytes: &[u8], claimed: &XorbHash) -> Result<Contents, XorbError> {
    let contents = parse(suite, bytes)?;
    check_hash(claimed, contents.hash)?;
    Ok(contents)
}

/// As [`validate`], of a xorb nobody said the hash of, except its footer.
pub fn parse(suite: Suite, bytes: &[u8]) -> Result<Contents, XorbError> {
    if bytes.len() > MAX_READ_LEN {
        return Err(XorbError::TooLong(bytes.len()));
    }
    let mut walk = records(bytes);
    let (mut chunks, mut record_ends) = (Vec::new(), Vec::new());
    let (mut merkle, mut buffer) = (MerkleBuilder::with_suite(suite), Vec::new());
    for record in walk.by_ref() {
        let record = record?;
        let Record {
            offset,
            header,
            payload,
        } = record;
        buffer.resize(header.chunk_len as usize, 0);
        decode_into(header.scheme, payload, &mut buffer)
            .map_err(|error| XorbError::Payload { offset, error })?;
        let hash = suite.chunk_hash(&buffer);
        merkle.push(&hash, u64::from(header.chunk_len));
        chunks.push((hash, header.chunk_len));
        // At most MAX_READ_LEN, which is below 2^27.
        record_ends.push(record.end() as u32);
    }
    if chunks.is_empty() {
        return Err(XorbError::Empty);
    }
    let hash = merkle.xorb_hash();
    let footer = match walk.rest() {
        [] => None,
        bytes => {
            let footer = Footer::parse(bytes)?;
            if let Some(chunk) = footer.first_difference(&chunks, &record_ends) {
                return Err(XorbError::FooterDiffers { chunk });
            }
            check_hash(&footer.xorb_hash, hash)?;
            Some(footer)
        }
    };
    Ok(Contents {
        hash,
        chunks,
        record_ends,
        footer,
    })
}

fn check_hash(claimed: &XorbHash, actual: XorbHash) -> Result<(), XorbError> {
    match *claimed == actual {
        true => Ok(()),
        false => Err(XorbError::Hash {
            claimed: *claimed,
            actual,
        }),
    }
}

#[cfg(test)]
mod tests;
