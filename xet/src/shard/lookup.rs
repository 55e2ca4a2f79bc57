//! Finding things in a shard: the lookup tables of the format, and a map for deduplication answers.
//!
//! A table lists the first word of each hash in ascending order with the number of the record that
//! has it. Several entries may share a first word. Readers here build what they need from the
//! sections; tables are written for others, and checked so that a shard we accept misleads nobody.

use std::collections::HashMap;

use thiserror::Error;

use super::Shard;
use super::read::Footer;
use crate::hash::{ChunkHash, KeyedChunkHash, XorbHash};

/// Length of an entry of the file and the xorb table in bytes.
const ENTRY_LEN: usize = 12;

/// Length of an entry of the chunk table in bytes.
const CHUNK_ENTRY_LEN: usize = 16;

/// The lookup tables. Record numbers count from the start of the section, all kinds of records.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tables {
    /// First word of the file hash, number of the file's first record.
    pub files: Vec<(u64, u32)>,
    /// First word of the xorb hash, number of the xorb's first record.
    pub xorbs: Vec<(u64, u32)>,
    /// First word of the chunk hash as listed, number of the xorb's first record, number of the
    /// chunk in the xorb.
    pub chunks: Vec<(u64, u32, u32)>,
}

/// Why a lookup table is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum LookupError {
    /// Not directly behind what comes before it, or beyond the footer.
    #[error("the {table} table of {entries} entries at {at} is out of place")]
    Place {
        /// Which table.
        table: &'static str,
        /// Where the footer says it starts.
        at: u64,
        /// How many entries the footer says it has.
        entries: u64,
    },
    /// Bytes between the last table and the footer.
    #[error("{0} bytes between the sections and the footer belong to no table")]
    Gap(usize),
    /// Entries that are not in ascending order.
    #[error("entry {entry} of the {table} table is out of order")]
    Order {
        /// Which table.
        table: &'static str,
        /// Number of the entry.
        entry: usize,
    },
    /// An entry that leads to something else than it says.
    #[error("entry {entry} of the {table} table leads nowhere")]
    Target {
        /// Which table.
        table: &'static str,
        /// Number of the entry.
        entry: usize,
    },
}

impl Tables {
    /// The tables of a shard, all three.
    pub(super) fn of(shard: &Shard) -> Self {
        let mut tables = Self::default();
        let mut record = 0;
        for file in &shard.files {
            tables.files.push((file.hash.word(0), record as u32));
            record += file.records();
        }
        let mut record = 0;
        for xorb in &shard.xorbs {
            tables.xorbs.push((xorb.hash.word(0), record as u32));
            let chunks = (0..).zip(&xorb.chunks);
            tables.chunks.extend(
                chunks.map(|(number, chunk)| (chunk.listed.word(0), record as u32, number)),
            );
            record += xorb.records();
        }
        tables.files.sort_unstable();
        tables.xorbs.sort_unstable();
        tables.chunks.sort_unstable();
        tables
    }

    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        for (word, record) in self.files.iter().chain(&self.xorbs) {
            out.extend_from_slice(&word.to_le_bytes());
            out.extend_from_slice(&record.to_le_bytes());
        }
        for (word, record, chunk) in &self.chunks {
            out.extend_from_slice(&word.to_le_bytes());
            out.extend_from_slice(&record.to_le_bytes());
            out.extend_from_slice(&chunk.to_le_bytes());
        }
    }

    pub(super) fn files_len(&self) -> usize {
        ENTRY_LEN * self.files.len()
    }

    pub(super) fn xorbs_len(&self) -> usize {
        ENTRY_LEN * self.xorbs.len()
    }
}

/// Reads the tables between the sections and the footer, and follows every entry.
pub(super) fn read(
    bytes: &[u8],
    footer: &Footer,
    tables_at: usize,
    shard: &Shard,
) -> Result<Tables, LookupError> {
    // The caller has found the footer at its end, so this is within the bytes.
    let area = bytes.get(tables_at..footer.footer_at as usize);
    let mut area = Area {
        rest: area.unwrap_or_default(),
        at: tables_at as u64,
    };
    let files = area.take::<ENTRY_LEN>("file", footer.file_table)?;
    let xorbs = area.take::<ENTRY_LEN>("xorb", footer.xorb_table)?;
    let chunks = area.take::<CHUNK_ENTRY_LEN>("chunk", footer.chunk_table)?;
    if !area.rest.is_empty() {
        return Err(LookupError::Gap(area.rest.len()));
    }
    let pair = |entry: &[u8; ENTRY_LEN]| (first_word(entry), number(entry, 8));
    let tables = Tables {
        files: files.iter().map(pair).collect(),
        xorbs: xorbs.iter().map(pair).collect(),
        chunks: chunks
            .iter()
            .map(|entry| (first_word(entry), number(entry, 8), number(entry, 12)))
            .collect(),
    };
    check(&tables, shard)?;
    Ok(tables)
}

/// Compares with the tables the sections give. One that lacks entries only costs its readers
/// misses; one with others is wrong.
fn check(tables: &Tables, shard: &Shard) -> Result<(), LookupError> {
    let right = Tables::of(shard);
    check_table("file", &tables.files, &right.files, |entry| entry.0)?;
    check_table("xorb", &tables.xorbs, &right.xorbs, |entry| entry.0)?;
    check_table("chunk", &tables.chunks, &right.chunks, |entry| entry.0)
}

fn check_table<T: Ord>(
    table: &'static str,
    entries: &[T],
    right: &[T],
    word: impl Fn(&T) -> u64,
) -> Result<(), LookupError> {
    for (entry, pair) in (1..).zip(entries.windows(2)) {
        if word(&pair[0]) > word(&pair[1]) {
            return Err(LookupError::Order { table, entry });
        }
    }
    match entries
        .iter()
        .position(|entry| right.binary_search(entry).is_err())
    {
        Some(entry) => Err(LookupError::Target { table, entry }),
        None => Ok(()),
    }
}

fn first_word(entry: &[u8]) -> u64 {
    entry
        .first_chunk()
        .map_or(0, |word| u64::from_le_bytes(*word))
}

fn number(entry: &[u8], at: usize) -> u32 {
    let bytes = entry.get(at..).and_then(<[u8]>::first_chunk);
    bytes.map_or(0, |word| u32::from_le_bytes(*word))
}

/// What lies between the sections and the footer.
struct Area<'a> {
    rest: &'a [u8],
    at: u64,
}

impl<'a> Area<'a> {
    /// Takes a table. An empty one may claim to be anywhere.
    fn take<const N: usize>(
        &mut self,
        table: &'static str,
        (at, entries): (u64, u64),
    ) -> Result<&'a [[u8; N]], LookupError> {
        if entries == 0 {
            return Ok(&[]);
        }
        let len = usize::try_from(entries)
            .ok()
            .and_then(|entries| entries.checked_mul(N));
        let taken = len.and_then(|len| self.rest.split_at_checked(len));
        let (taken, rest) =
            taken
                .filter(|_| at == self.at)
                .ok_or(LookupError::Place { table, at, entries })?;
        self.rest = rest;
        self.at += taken.len() as u64;
        Ok(taken.as_chunks().0)
    }
}

/// Where a chunk is, by an answer to a deduplication query.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Held {
    /// The xorb that has it.
    pub xorb: XorbHash,
    /// Its number in the xorb.
    pub chunk: u32,
    /// Its length in bytes.
    pub len: u32,
}

/// The xorbs of a shard by chunk, keyed or not.
#[derive(Clone, Debug)]
pub struct Answer {
    shard: Shard,
    /// Number of the xorb and of the chunk in it.
    places: HashMap<KeyedChunkHash, (u32, u32)>,
}

impl Answer {
    /// Of two places of a chunk the first is kept.
    pub fn new(shard: Shard) -> Self {
        let mut places = HashMap::new();
        for (number, xorb) in (0..).zip(&shard.xorbs) {
            for (chunk, info) in (0..).zip(&xorb.chunks) {
                places.entry(info.listed).or_insert((number, chunk));
            }
        }
        Self { shard, places }
    }

    /// Where `chunk` is held, if the shard lists it.
    pub fn find(&self, chunk: &ChunkHash) -> Option<Held> {
        let (xorb, number) = *self.places.get(&self.shard.listed(chunk))?;
        let xorb = self.shard.xorbs.get(xorb as usize)?;
        Some(Held {
            xorb: xorb.hash,
            chunk: number,
            len: xorb.chunks.get(number as usize)?.len,
        })
    }
}
