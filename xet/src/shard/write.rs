//! From a shard to bytes, in the form its reader wants.

use thiserror::Error;

use super::lookup::Tables;
use super::{
    END, FOOTER_LEN, FOOTER_VERSION, FileInfo, HEADER_VERSION, NEVER, RECORD_LEN, Shard, TAG,
    XorbInfo,
};
use crate::hash::HASH_LEN;

/// What stands around the two sections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// Nothing: what a client sends to a server.
    Upload,
    /// A footer, and lookup tables as wanted.
    Sealed(Seal),
}

/// What a footer says besides what follows from the content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seal {
    /// Whether to write the file table.
    pub file_table: bool,
    /// Whether to write the xorb table.
    pub xorb_table: bool,
    /// Whether to write the chunk table.
    pub chunk_table: bool,
    /// When the shard was made, in seconds since 1970, or 0.
    pub created: u64,
    /// When its key ends, in seconds since 1970.
    pub expires: u64,
}

impl Form {
    /// What a client keeps: all lookup tables.
    pub const LOCAL: Self = Self::Sealed(Seal {
        file_table: true,
        xorb_table: true,
        chunk_table: true,
        created: 0,
        expires: NEVER,
    });

    /// What a server keeps of an upload: no lookup tables.
    pub const SERVER: Self = Self::Sealed(Seal {
        file_table: false,
        xorb_table: false,
        chunk_table: false,
        created: 0,
        expires: 0,
    });
}

/// Why a shard cannot be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum EncodeError {
    /// An upload has no place for the key its chunk hashes are hidden under.
    #[error("a shard with hidden chunk hashes cannot be uploaded")]
    Hidden,
    /// Another number of verification hashes than of segments.
    #[error("file {file}: {segments} segments, {hashes} verification hashes")]
    Verification {
        /// Number of the file.
        file: usize,
        /// Its segments.
        segments: usize,
        /// Its verification hashes.
        hashes: usize,
    },
    /// More records than a table can number.
    #[error("{0} records in one section")]
    Records(u64),
}

impl Shard {
    /// The bytes of this shard. Files and xorbs are written in ascending order of their hashes.
    pub fn encode(&self, form: Form) -> Result<Vec<u8>, EncodeError> {
        if form == Form::Upload && self.key.is_some() {
            return Err(EncodeError::Hidden);
        }
        self.check_counts()?;
        let mut sorted = self.clone();
        sorted.files.sort_by_key(|file| file.hash);
        sorted.xorbs.sort_by_key(|xorb| xorb.hash);
        let footer_len = match form {
            Form::Upload => 0,
            Form::Sealed(_) => FOOTER_LEN,
        };
        let mut out = Vec::with_capacity(sorted.sections_len() + footer_len);
        out.extend_from_slice(&TAG);
        out.extend_from_slice(&HEADER_VERSION.to_le_bytes());
        out.extend_from_slice(&(footer_len as u64).to_le_bytes());
        for file in &sorted.files {
            encode_file(file, &mut out);
        }
        out.extend_from_slice(&END);
        let xorbs_at = out.len();
        for xorb in &sorted.xorbs {
            encode_xorb(xorb, &mut out);
        }
        out.extend_from_slice(&END);
        if let Form::Sealed(seal) = form {
            sorted.encode_footer(seal, xorbs_at, &mut out);
        }
        Ok(out)
    }

    /// Length of header and sections in bytes: that of the upload.
    pub fn sections_len(&self) -> usize {
        let files: u64 = self.files.iter().map(FileInfo::records).sum();
        let xorbs: u64 = self.xorbs.iter().map(XorbInfo::records).sum();
        RECORD_LEN * (3 + (files + xorbs) as usize)
    }

    fn check_counts(&self) -> Result<(), EncodeError> {
        for (number, file) in self.files.iter().enumerate() {
            let segments = file.segments.len();
            let hashes = file.verification.as_ref().map_or(segments, Vec::len);
            if segments != hashes {
                return Err(EncodeError::Verification {
                    file: number,
                    segments,
                    hashes,
                });
            }
        }
        let records = (self.sections_len() / RECORD_LEN) as u64;
        match u32::try_from(records) {
            Ok(_) => Ok(()),
            Err(_) => Err(EncodeError::Records(records)),
        }
    }

    fn encode_footer(&self, seal: Seal, xorbs_at: usize, out: &mut Vec<u8>) {
        let mut tables = Tables::of(self);
        if !seal.file_table {
            tables.files.clear();
        }
        if !seal.xorb_table {
            tables.xorbs.clear();
        }
        if !seal.chunk_table {
            tables.chunks.clear();
        }
        let files_table = out.len();
        let xorbs_table = files_table + tables.files_len();
        let chunks_table = xorbs_table + tables.xorbs_len();
        tables.encode(out);
        let footer_at = out.len();
        let sums = Sums::of(self);
        let places = [
            FOOTER_VERSION,
            RECORD_LEN as u64,
            xorbs_at as u64,
            files_table as u64,
            tables.files.len() as u64,
            xorbs_table as u64,
            tables.xorbs.len() as u64,
            chunks_table as u64,
            tables.chunks.len() as u64,
        ];
        out.extend(places.iter().flat_map(|word| word.to_le_bytes()));
        out.extend_from_slice(&self.key.unwrap_or([0; HASH_LEN]));
        let unused = [0; 6];
        let times = [seal.created, seal.expires];
        let ends = [
            sums.disk_bytes,
            sums.file_bytes,
            sums.xorb_bytes,
            footer_at as u64,
        ];
        let rest = times.iter().chain(&unused).chain(&ends);
        out.extend(rest.flat_map(|word| word.to_le_bytes()));
        debug_assert_eq!(out.len(), footer_at + FOOTER_LEN);
    }
}

fn encode_file(file: &FileInfo, out: &mut Vec<u8>) {
    let count = file.segments.len() as u32;
    record(out, file.hash.as_bytes(), [file.flags(), count, 0, 0]);
    for segment in &file.segments {
        let (len, chunks) = (segment.len, &segment.chunks);
        let numbers = [segment.flags, len, chunks.start, chunks.end];
        record(out, segment.xorb.as_bytes(), numbers);
    }
    for range in file.verification.iter().flatten() {
        record(out, range.as_bytes(), [0; 4]);
    }
    if let Some(field) = file.sha256_field() {
        record(out, &field, [0; 4]);
    }
}

fn encode_xorb(xorb: &XorbInfo, out: &mut Vec<u8>) {
    let count = xorb.chunks.len() as u32;
    let numbers = [xorb.flags, count, xorb.len, xorb.disk_len];
    record(out, xorb.hash.as_bytes(), numbers);
    let mut offset = 0u32;
    for chunk in &xorb.chunks {
        let numbers = [offset, chunk.len, chunk.flags, 0];
        record(out, chunk.listed.as_bytes(), numbers);
        offset = offset.saturating_add(chunk.len);
    }
}

fn record(out: &mut Vec<u8>, hash: &[u8; HASH_LEN], numbers: [u32; 4]) {
    out.extend_from_slice(hash);
    out.extend(numbers.iter().flat_map(|number| number.to_le_bytes()));
}

/// The sums a footer states, in bytes.
pub(super) struct Sums {
    pub(super) disk_bytes: u64,
    pub(super) file_bytes: u64,
    pub(super) xorb_bytes: u64,
}

impl Sums {
    pub(super) fn of(shard: &Shard) -> Self {
        let xorbs = shard.xorbs.iter();
        Self {
            disk_bytes: xorbs.clone().map(|xorb| u64::from(xorb.disk_len)).sum(),
            file_bytes: shard.files.iter().map(FileInfo::len).sum(),
            xorb_bytes: xorbs.map(|xorb| u64::from(xorb.len)).sum(),
        }
    }
}
