//! `ccbt xet shard`

use std::path::PathBuf;

use ccbt_xet::hash::Suite;
use ccbt_xet::shard::{self, FileInfo, Footer, MAX_READ_LEN, Parsed, XorbInfo};
use clap::Args;
use serde::Serialize;

use super::super::CommandResult;
use super::super::options::GlobalOptions;
use super::super::output::{self, Output};
use super::{damaged, hashes, hex, read_whole};
use crate::api::types::HashSuite;

/// Check a shard and show its files and xorbs
///
/// In any form: as uploaded, with footer and lookup tables, or as an answer with hidden chunk hashes.
#[derive(Debug, Args)]
pub(in crate::cli) struct ShardCommand {
    file: PathBuf,
    /// The hash suite that names the chunks
    #[arg(long, value_enum, value_name = "SUITE", default_value = "blake3")]
    suite: HashSuite,
}

impl ShardCommand {
    pub(super) fn run(self, global: &GlobalOptions) -> CommandResult {
        let suite = hashes(self.suite);
        let bytes = read_whole(&self.file, MAX_READ_LEN, "shard")?;
        let parsed = shard::parse(&bytes).map_err(|error| damaged(&self.file, error))?;
        let checked = parsed.shard.check_as(suite);
        checked.map_err(|error| damaged(&self.file, error))?;
        let shown = Shown::of(suite, &bytes, &parsed);
        Output { json: global.json }.result(&shown, text)?;
        Ok(0)
    }
}

/// Words of hashes and times that may exceed 2^53 are decimal strings.
#[derive(Serialize)]
struct Shown {
    total_len: usize,
    /// A name for the file rather than a field of it.
    #[serde(skip)]
    shard_hash: String,
    header: Header,
    files: Vec<File>,
    xorbs: Vec<Xorb>,
    file_lookup: Vec<(String, u32)>,
    xorb_lookup: Vec<(String, u32)>,
    chunk_lookup: Vec<(String, u32, u32)>,
    footer: Option<ShownFooter>,
}

#[derive(Serialize)]
struct Header {
    version: u32,
    footer_size: u32,
}

#[derive(Serialize)]
struct File {
    file_hash: String,
    flags: u32,
    num_entries: usize,
    segments: Vec<Segment>,
    verification: Vec<String>,
    metadata_ext_sha256_field: Option<Sha256Field>,
}

#[derive(Serialize)]
struct Segment {
    xorb_hash: String,
    flags: u32,
    unpacked_bytes: u32,
    start: u32,
    end: u32,
}

#[derive(Serialize)]
struct Sha256Field {
    raw_on_disk_hex: String,
    sha256_hex: String,
}

#[derive(Serialize)]
struct Xorb {
    xorb_hash: String,
    flags: u32,
    num_entries: usize,
    num_bytes_in_xorb: u32,
    num_bytes_on_disk: u32,
    /// Hash, offset, length, flags.
    chunks: Vec<(String, u32, u32, u32)>,
}

#[derive(Serialize)]
struct ShownFooter {
    version: u32,
    file_info_offset: u64,
    xorb_info_offset: u64,
    file_lookup_offset: u64,
    file_lookup_num: u64,
    xorb_lookup_offset: u64,
    xorb_lookup_num: u64,
    chunk_lookup_offset: u64,
    chunk_lookup_num: u64,
    chunk_hash_key_raw_hex: String,
    creation_timestamp: u64,
    key_expiry: String,
    stored_bytes_on_disk: u64,
    materialized_bytes: u64,
    stored_bytes: u64,
    footer_offset: u64,
}

impl Shown {
    fn of(suite: Suite, bytes: &[u8], parsed: &Parsed) -> Self {
        let tables = &parsed.tables;
        let pairs = |table: &[(u64, u32)]| -> Vec<(String, u32)> {
            let rows = table.iter();
            rows.map(|(word, record)| (word.to_string(), *record))
                .collect()
        };
        let chunks = tables.chunks.iter();
        Self {
            total_len: bytes.len(),
            shard_hash: suite.shard_hash(bytes).to_string(),
            header: Header {
                version: 2,
                footer_size: if parsed.footer.is_some() { 200 } else { 0 },
            },
            files: parsed.shard.files.iter().map(File::of).collect(),
            xorbs: parsed.shard.xorbs.iter().map(Xorb::of).collect(),
            file_lookup: pairs(&tables.files),
            xorb_lookup: pairs(&tables.xorbs),
            chunk_lookup: chunks
                .map(|(word, record, chunk)| (word.to_string(), *record, *chunk))
                .collect(),
            footer: parsed.footer.as_ref().map(ShownFooter::of),
        }
    }
}

impl File {
    fn of(file: &FileInfo) -> Self {
        let segments = file.segments.iter().map(|segment| Segment {
            xorb_hash: segment.xorb.to_string(),
            flags: segment.flags,
            unpacked_bytes: segment.len,
            start: segment.chunks.start,
            end: segment.chunks.end,
        });
        let ranges = file.verification.iter().flatten();
        let sha256 = file.sha256.zip(file.sha256_field());
        Self {
            file_hash: file.hash.to_string(),
            flags: file.flags(),
            num_entries: file.segments.len(),
            segments: segments.collect(),
            verification: ranges.map(ToString::to_string).collect(),
            metadata_ext_sha256_field: sha256.map(|(sha256, field)| Sha256Field {
                raw_on_disk_hex: hex(&field),
                sha256_hex: hex(&sha256),
            }),
        }
    }
}

impl Xorb {
    fn of(xorb: &XorbInfo) -> Self {
        let mut offset = 0;
        let chunks = xorb.chunks.iter().map(|chunk| {
            let start = offset;
            offset += chunk.len;
            (chunk.listed.to_string(), start, chunk.len, chunk.flags)
        });
        let chunks = chunks.collect();
        Self {
            xorb_hash: xorb.hash.to_string(),
            flags: xorb.flags,
            num_entries: xorb.chunks.len(),
            num_bytes_in_xorb: xorb.len,
            num_bytes_on_disk: xorb.disk_len,
            chunks,
        }
    }
}

impl ShownFooter {
    fn of(footer: &Footer) -> Self {
        Self {
            version: 1,
            file_info_offset: footer.files_at,
            xorb_info_offset: footer.xorbs_at,
            file_lookup_offset: footer.file_table.0,
            file_lookup_num: footer.file_table.1,
            xorb_lookup_offset: footer.xorb_table.0,
            xorb_lookup_num: footer.xorb_table.1,
            chunk_lookup_offset: footer.chunk_table.0,
            chunk_lookup_num: footer.chunk_table.1,
            chunk_hash_key_raw_hex: hex(&footer.key),
            creation_timestamp: footer.created,
            key_expiry: footer.expires.to_string(),
            stored_bytes_on_disk: footer.disk_bytes,
            materialized_bytes: footer.file_bytes,
            stored_bytes: footer.xorb_bytes,
            footer_offset: footer.footer_at,
        }
    }
}

fn text(shown: &Shown) -> String {
    let mut rows = Vec::new();
    for file in &shown.files {
        let lens = file.segments.iter();
        let len: u64 = lens.map(|segment| u64::from(segment.unpacked_bytes)).sum();
        let terms = format!("{} segments", file.num_entries);
        rows.push(vec![
            "file".to_owned(),
            file.file_hash.clone(),
            output::bytes(len),
            terms,
        ]);
    }
    for xorb in &shown.xorbs {
        rows.push(vec![
            "xorb".to_owned(),
            xorb.xorb_hash.clone(),
            output::bytes(u64::from(xorb.num_bytes_in_xorb)),
            format!("{} chunks", xorb.num_entries),
        ]);
    }
    let form = match &shown.footer {
        None => "upload (no footer)",
        Some(footer) if footer.chunk_hash_key_raw_hex.bytes().any(|c| c != b'0') => {
            "answer (chunk hashes hidden under a key)"
        }
        Some(_) if shown.chunk_lookup.is_empty() => "sealed, without lookup tables",
        Some(_) => "sealed, with lookup tables",
    };
    format!(
        "{}shard hash  {}\nform        {form}\n",
        output::table(&rows),
        shown.shard_hash
    )
}
