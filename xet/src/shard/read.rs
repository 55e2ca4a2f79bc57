//! From bytes to a shard, whatever the form and whoever wrote it.

use thiserror::Error;

use super::lookup::{self, LookupError, Tables};
use super::{
    ChunkInfo, END, FOOTER_LEN, FOOTER_VERSION, FileInfo, HEADER_VERSION, RECORD_LEN, Segment,
    Shard, TAG, WITH_SHA256, WITH_VERIFICATION, XorbInfo, swap_words,
};
use crate::chunk::MAX_CHUNK;
use crate::hash::{FileHash, HASH_LEN, KeyedChunkHash, RangeHash, XorbHash};
use crate::xorb::MAX_CHUNKS;

/// A shard with what its form adds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parsed {
    /// The content.
    pub shard: Shard,
    /// The footer; uploads have none.
    pub footer: Option<Footer>,
    /// The lookup tables; empty where the form has none.
    pub tables: Tables,
}

/// The footer as it stands. Offsets are bytes from the start of the shard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Footer {
    /// Start of the file section.
    pub files_at: u64,
    /// Start of the xorb section.
    pub xorbs_at: u64,
    /// Start and entries of the file table.
    pub file_table: (u64, u64),
    /// Start and entries of the xorb table.
    pub xorb_table: (u64, u64),
    /// Start and entries of the chunk table.
    pub chunk_table: (u64, u64),
    /// Key of the chunk hashes; zeros stand for none.
    pub key: [u8; HASH_LEN],
    /// When it was made, in seconds since 1970; 0 where the writer did not say.
    pub created: u64,
    /// When the key ends, in seconds since 1970; [`NEVER`](super::NEVER), or 0 in a server's rewrite.
    pub expires: u64,
    /// Sum of the xorbs' lengths on disk in bytes.
    pub disk_bytes: u64,
    /// Sum of the files' lengths in bytes.
    pub file_bytes: u64,
    /// Sum of the xorbs' uncompressed lengths in bytes.
    pub xorb_bytes: u64,
    /// Start of the footer.
    pub footer_at: u64,
}

/// Why bytes are not a shard.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ShardError {
    /// It ends too early.
    #[error("cut off at byte {at}, where {what} should be")]
    CutOff {
        /// Where the missing part should start.
        at: usize,
        /// What is missing.
        what: &'static str,
    },
    /// Other bytes at the start than those of a shard of this application.
    #[error("no shard: the first 32 bytes are not its tag")]
    Tag,
    /// An unknown version of the header or the footer.
    #[error("{part} version {version}")]
    Version {
        /// Header or footer.
        part: &'static str,
        /// The version found.
        version: u64,
    },
    /// The header states a footer of a length no footer has.
    #[error("footer of {0} bytes")]
    FooterLen(u64),
    /// Bytes after the end of an upload.
    #[error("{0} bytes follow the end of a shard without footer")]
    Trailing(usize),
    /// A record that starts like the end of a section and is not one.
    #[error("record at {at} is no end of a section")]
    End {
        /// Where it starts.
        at: usize,
    },
    /// A file with flags nobody knows: what follows it cannot be told.
    #[error("file at {at}: flags {flags:#x}")]
    FileFlags {
        /// Where its record starts.
        at: usize,
        /// The flags.
        flags: u32,
    },
    /// A run of chunks no xorb can have.
    #[error("segment at {at}: {len} bytes in chunks {start} to {end}")]
    Segment {
        /// Where its record starts.
        at: usize,
        /// Its length in bytes.
        len: u32,
        /// Its first chunk.
        start: u32,
        /// The chunk after its last.
        end: u32,
    },
    /// More chunks than a xorb may have, or none.
    #[error("xorb at {at}: {chunks} chunks")]
    Chunks {
        /// Where its record starts.
        at: usize,
        /// The number of chunks.
        chunks: u32,
    },
    /// A chunk that does not follow the one before it, or of a length no chunk has.
    #[error("chunk at {at}: {len} bytes from {offset}")]
    Chunk {
        /// Where its record starts.
        at: usize,
        /// Where the chunk starts in the uncompressed xorb, in bytes.
        offset: u32,
        /// Its length in bytes.
        len: u32,
    },
    /// A xorb whose chunks have another length together than it states.
    #[error("xorb at {at}: {stated} bytes, and its chunks have {actual}")]
    XorbLen {
        /// Where its record starts.
        at: usize,
        /// The length it states in bytes.
        stated: u32,
        /// The length of its chunks in bytes.
        actual: u32,
    },
    /// An offset in the footer that is not where the part is.
    #[error("the footer says that {part} is at {stated}, it is at {actual}")]
    Offset {
        /// Which part.
        part: &'static str,
        /// Where it is said to be.
        stated: u64,
        /// Where it is.
        actual: u64,
    },
    /// A sum in the footer that is neither left out nor right.
    #[error("the footer says {stated} bytes of {part}, there are {actual}")]
    Sum {
        /// Of what.
        part: &'static str,
        /// The sum found.
        stated: u64,
        /// The sum of the records.
        actual: u64,
    },
    /// A bad lookup table.
    #[error("{0}")]
    Lookup(#[from] LookupError),
}

/// Reads a shard in any form.
///
/// Checks the structure: every record, offset and table entry. Whether hashes belong to what they
/// name is for [`Shard::check`] and for whoever has the chunks.
pub fn parse(bytes: &[u8]) -> Result<Parsed, ShardError> {
    let mut input = Input { bytes, at: 0 };
    let has_footer = header(&mut input)?;
    let mut shard = Shard::default();
    while let Some((at, record)) = input.entry("a file or the end of the files")? {
        shard.files.push(file(&mut input, at, record)?);
    }
    let xorbs_at = input.at;
    while let Some((at, record)) = input.entry("a xorb or the end of the xorbs")? {
        shard.xorbs.push(xorb(&mut input, at, record)?);
    }
    if !has_footer {
        return match bytes.len() - input.at {
            0 => Ok(Parsed {
                shard,
                footer: None,
                tables: Tables::default(),
            }),
            more => Err(ShardError::Trailing(more)),
        };
    }
    let tables_at = input.at;
    let footer = footer(&mut input, tables_at)?;
    check_offset("the xorb section", footer.xorbs_at, xorbs_at)?;
    shard.key = (footer.key != [0; HASH_LEN]).then_some(footer.key);
    check_sums(&shard, &footer)?;
    let tables = lookup::read(bytes, &footer, tables_at, &shard)?;
    Ok(Parsed {
        shard,
        footer: Some(footer),
        tables,
    })
}

/// Whether a footer must follow.
fn header(input: &mut Input<'_>) -> Result<bool, ShardError> {
    let record = input.record("the header")?;
    if record.hash() != TAG {
        return Err(ShardError::Tag);
    }
    let [v0, v1, l0, l1] = record.numbers().map(u64::from);
    let (version, footer_len) = (v0 | v1 << 32, l0 | l1 << 32);
    if version != HEADER_VERSION {
        return Err(ShardError::Version {
            part: "header",
            version,
        });
    }
    match footer_len {
        0 => Ok(false),
        len if len == FOOTER_LEN as u64 => Ok(true),
        len => Err(ShardError::FooterLen(len)),
    }
}

fn file(input: &mut Input<'_>, at: usize, header: Record<'_>) -> Result<FileInfo, ShardError> {
    let [flags, count, ..] = header.numbers();
    if flags & !(WITH_VERIFICATION | WITH_SHA256) != 0 {
        return Err(ShardError::FileFlags { at, flags });
    }
    let count = count as usize;
    let mut segments = Vec::with_capacity(count.min(input.records_left()));
    for _ in 0..count {
        segments.push(segment(input)?);
    }
    let verification = match flags & WITH_VERIFICATION {
        0 => None,
        _ => {
            let mut ranges = Vec::with_capacity(count.min(input.records_left()));
            for _ in 0..count {
                let record = input.record("a verification hash")?;
                ranges.push(RangeHash::from_bytes(record.hash()));
            }
            Some(ranges)
        }
    };
    let sha256 = match flags & WITH_SHA256 {
        0 => None,
        _ => Some(swap_words(input.record("the SHA-256 of a file")?.hash())),
    };
    Ok(FileInfo {
        hash: FileHash::from_bytes(header.hash()),
        segments,
        verification,
        sha256,
    })
}

fn segment(input: &mut Input<'_>) -> Result<Segment, ShardError> {
    let at = input.at;
    let record = input.record("a segment")?;
    let [flags, len, start, end] = record.numbers();
    let chunks = end.saturating_sub(start);
    let longest = u64::from(chunks) * MAX_CHUNK as u64;
    let possible = (u64::from(chunks.max(1))..=longest).contains(&u64::from(len));
    if !possible || end > MAX_CHUNKS as u32 {
        return Err(ShardError::Segment {
            at,
            len,
            start,
            end,
        });
    }
    Ok(Segment {
        xorb: XorbHash::from_bytes(record.hash()),
        flags,
        len,
        chunks: start..end,
    })
}

fn xorb(input: &mut Input<'_>, at: usize, header: Record<'_>) -> Result<XorbInfo, ShardError> {
    let [flags, count, stated, disk_len] = header.numbers();
    if !(1..=MAX_CHUNKS as u32).contains(&count) {
        return Err(ShardError::Chunks { at, chunks: count });
    }
    let mut chunks = Vec::with_capacity((count as usize).min(input.records_left()));
    let mut end = 0;
    for _ in 0..count {
        let at = input.at;
        let record = input.record("a chunk")?;
        let [offset, len, flags, _] = record.numbers();
        if offset != end || !(1..=MAX_CHUNK as u32).contains(&len) {
            return Err(ShardError::Chunk { at, offset, len });
        }
        // At most MAX_CHUNKS times MAX_CHUNK, which is 2^30.
        end += len;
        chunks.push(ChunkInfo {
            listed: KeyedChunkHash::from_bytes(record.hash()),
            len,
            flags,
        });
    }
    if stated != end {
        return Err(ShardError::XorbLen {
            at,
            stated,
            actual: end,
        });
    }
    Ok(XorbInfo {
        hash: XorbHash::from_bytes(header.hash()),
        flags,
        len: stated,
        disk_len,
        chunks,
    })
}

/// Reads the footer at the end of the input. The sections end at `tables_at`.
fn footer(input: &mut Input<'_>, tables_at: usize) -> Result<Footer, ShardError> {
    let cut_off = ShardError::CutOff {
        at: tables_at,
        what: "the footer",
    };
    let bytes = input.bytes.get(tables_at..).unwrap_or_default();
    let (before, bytes) = bytes.split_last_chunk::<FOOTER_LEN>().ok_or(cut_off)?;
    let footer_at = (tables_at + before.len()) as u64;
    let words = bytes.as_chunks::<8>().0;
    let word = |i: usize| words.get(i).map_or(0, |word| u64::from_le_bytes(*word));
    if word(0) != FOOTER_VERSION {
        return Err(ShardError::Version {
            part: "footer",
            version: word(0),
        });
    }
    let mut key = [0; HASH_LEN];
    key.copy_from_slice(&bytes[72..72 + HASH_LEN]);
    let footer = Footer {
        files_at: word(1),
        xorbs_at: word(2),
        file_table: (word(3), word(4)),
        xorb_table: (word(5), word(6)),
        chunk_table: (word(7), word(8)),
        key,
        created: word(13),
        expires: word(14),
        disk_bytes: word(21),
        file_bytes: word(22),
        xorb_bytes: word(23),
        footer_at: word(24),
    };
    check_offset("the file section", footer.files_at, RECORD_LEN)?;
    check_offset("the footer", footer.footer_at, footer_at as usize)?;
    Ok(footer)
}

fn check_offset(part: &'static str, stated: u64, actual: usize) -> Result<(), ShardError> {
    let actual = actual as u64;
    match stated == actual {
        true => Ok(()),
        false => Err(ShardError::Offset {
            part,
            stated,
            actual,
        }),
    }
}

/// A server may leave sums out, and an answer may lack the files or xorbs that gave them.
fn check_sums(shard: &Shard, footer: &Footer) -> Result<(), ShardError> {
    if shard.key.is_some() {
        return Ok(());
    }
    let sums = super::write::Sums::of(shard);
    for (part, stated, actual) in [
        ("xorbs on disk", footer.disk_bytes, sums.disk_bytes),
        ("files", footer.file_bytes, sums.file_bytes),
        ("xorbs", footer.xorb_bytes, sums.xorb_bytes),
    ] {
        if stated != actual && stated != 0 {
            return Err(ShardError::Sum {
                part,
                stated,
                actual,
            });
        }
    }
    Ok(())
}

/// One record.
#[derive(Clone, Copy)]
struct Record<'a>(&'a [u8; RECORD_LEN]);

impl Record<'_> {
    fn hash(self) -> [u8; HASH_LEN] {
        let mut hash = [0; HASH_LEN];
        hash.copy_from_slice(&self.0[..HASH_LEN]);
        hash
    }

    /// The four numbers after the hash.
    fn numbers(self) -> [u32; 4] {
        let mut numbers = [0; 4];
        let bytes = self.0[HASH_LEN..].as_chunks::<4>().0;
        for (number, bytes) in numbers.iter_mut().zip(bytes) {
            *number = u32::from_le_bytes(*bytes);
        }
        numbers
    }
}

/// Records from `at` on.
struct Input<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Input<'a> {
    fn record(&mut self, what: &'static str) -> Result<Record<'a>, ShardError> {
        let rest = self.bytes.get(self.at..).unwrap_or_default();
        let cut_off = ShardError::CutOff { at: self.at, what };
        let record = rest.first_chunk().ok_or(cut_off)?;
        self.at += RECORD_LEN;
        Ok(Record(record))
    }

    /// The next entry of a section with its place, or `None` where the section ends.
    fn entry(&mut self, what: &'static str) -> Result<Option<(usize, Record<'a>)>, ShardError> {
        let at = self.at;
        let record = self.record(what)?;
        match record {
            Record(bytes) if *bytes == END => Ok(None),
            Record(bytes) if bytes[..HASH_LEN] == END[..HASH_LEN] => Err(ShardError::End { at }),
            record => Ok(Some((at, record))),
        }
    }

    fn records_left(&self) -> usize {
        self.bytes.len().saturating_sub(self.at) / RECORD_LEN
    }
}
