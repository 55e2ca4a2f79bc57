//! `ccbt xet xorb`

use std::path::PathBuf;

use ccbt_xet::hash::XorbHash;
use ccbt_xet::xorb::{self, Contents, MAX_READ_LEN, records};
use clap::Args;
use serde::Serialize;
use sha2::{Digest, Sha256};

use super::super::CommandResult;
use super::super::options::GlobalOptions;
use super::super::output::{self, Output};
use super::{damaged, hashes, hex, read_whole};
use crate::api::ApiError;
use crate::api::types::HashSuite;

/// Check a xorb and show its chunks
///
/// With or without footer. Every chunk is decoded and hashed.
#[derive(Debug, Args)]
pub(in crate::cli) struct XorbCommand {
    file: PathBuf,
    /// The hash the xorb must have
    #[arg(long, value_name = "HASH")]
    hash: Option<XorbHash>,
    /// The hash suite that names the chunks
    #[arg(long, value_enum, value_name = "SUITE", default_value = "blake3")]
    suite: HashSuite,
}

/// Offsets and lengths in bytes. What only a footer says is `None` without one.
#[derive(Serialize)]
struct Shown {
    total_len: usize,
    xorb_hash: String,
    num_chunks: usize,
    content_len: usize,
    info_length: Option<usize>,
    footer_version: Option<u8>,
    boundary_offsets: Vec<u32>,
    unpacked_offsets: Vec<u32>,
    hashes_section_offset_from_end: Option<usize>,
    boundary_section_offset_from_end: Option<usize>,
    /// Of a legacy footer.
    #[serde(skip_serializing_if = "Option::is_none")]
    chunk_hashes: Option<Vec<String>>,
    chunks: Vec<ShownChunk>,
}

#[derive(Serialize)]
struct ShownChunk {
    offset: usize,
    version: u8,
    scheme: u8,
    compressed_len: u32,
    uncompressed_len: u32,
    chunk_hash: String,
    data_sha256: String,
}

impl XorbCommand {
    pub(super) fn run(self, global: &GlobalOptions) -> CommandResult {
        let bytes = read_whole(&self.file, MAX_READ_LEN, "xorb")?;
        let contents = match &self.hash {
            Some(claimed) => xorb::validate(hashes(self.suite), &bytes, claimed),
            None => xorb::parse(hashes(self.suite), &bytes),
        };
        let contents = contents.map_err(|error| damaged(&self.file, error))?;
        let chunks = self.chunks(&bytes, &contents)?;
        let shown = show(&bytes, &contents, chunks);
        Output { json: global.json }.result(&shown, text)?;
        Ok(0)
    }

    fn chunks(&self, bytes: &[u8], contents: &Contents) -> Result<Vec<ShownChunk>, ApiError> {
        let mut shown = Vec::with_capacity(contents.chunks.len());
        for (record, (hash, _)) in records(bytes).zip(&contents.chunks) {
            let record = record.map_err(|error| damaged(&self.file, error))?;
            let data = record
                .decode()
                .map_err(|error| damaged(&self.file, error))?;
            shown.push(ShownChunk {
                offset: record.offset,
                version: 0,
                scheme: record.header.scheme.as_byte(),
                compressed_len: record.header.payload_len,
                uncompressed_len: record.header.chunk_len,
                chunk_hash: hash.to_string(),
                data_sha256: hex(&Sha256::digest(&data)),
            });
        }
        Ok(shown)
    }
}

fn show(bytes: &[u8], contents: &Contents, chunks: Vec<ShownChunk>) -> Shown {
    let footer = contents.footer.as_ref();
    let content_len = contents.record_ends.last().copied().unwrap_or(0) as usize;
    let version = footer.map(|footer| u8::from(footer.chunk_ends.is_some()));
    let n = contents.chunks.len();
    let ends = contents.chunks.iter().scan(0, |end, (_, len)| {
        *end += len;
        Some(*end)
    });
    let legacy = footer.filter(|_| version == Some(0));
    Shown {
        total_len: bytes.len(),
        xorb_hash: contents.hash.to_string(),
        num_chunks: n,
        content_len,
        info_length: footer.map(|_| bytes.len() - content_len - 4),
        footer_version: version,
        boundary_offsets: contents.record_ends.clone(),
        unpacked_offsets: ends.collect(),
        hashes_section_offset_from_end: version.filter(|v| *v == 1).map(|_| 52 + 40 * n),
        boundary_section_offset_from_end: version.filter(|v| *v == 1).map(|_| 40 + 8 * n),
        chunk_hashes: legacy.map(|of| of.hashes.iter().map(ToString::to_string).collect()),
        chunks,
    }
}

fn text(shown: &Shown) -> String {
    let mut rows = Vec::with_capacity(shown.chunks.len());
    for chunk in &shown.chunks {
        let scheme = match chunk.scheme {
            0 => "stored",
            1 => "lz4",
            _ => "grouped lz4",
        };
        rows.push(vec![
            chunk.offset.to_string(),
            chunk.uncompressed_len.to_string(),
            chunk.compressed_len.to_string(),
            scheme.to_owned(),
            chunk.chunk_hash.clone(),
        ]);
    }
    let footer = match shown.footer_version {
        None => "none".to_owned(),
        Some(version) => format!("version {version}"),
    };
    let uncompressed = shown.unpacked_offsets.last().copied().unwrap_or(0);
    format!(
        "{}xorb hash     {}\nchunks        {}\nuncompressed  {}\nfooter        {footer}\n",
        output::table(&rows),
        shown.xorb_hash,
        shown.num_chunks,
        output::bytes(u64::from(uncompressed)),
    )
}
