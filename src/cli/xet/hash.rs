//! `ccbt xet hash`

use std::io;
use std::path::PathBuf;

use ccbt_xet::ingest;
use ccbt_xet::merkle::MerkleBuilder;
use clap::Args;
use serde::Serialize;

use super::super::CommandResult;
use super::super::options::GlobalOptions;
use super::super::output::Output;
use super::super::progress::Bar;
use super::{hashes, shown};
use crate::api::types::{ApiPath, HashSuite, Progress};
use crate::api::{ApiError, ProgressReport};

/// Print the Xet hash of a file
///
/// The hash is in the form in which Xet tools print it and `xet:` links name it.
#[derive(Debug, Args)]
pub(in crate::cli) struct HashCommand {
    file: PathBuf,
    /// The hash suite that names the chunks
    #[arg(long, value_enum, value_name = "SUITE", default_value = "blake3")]
    suite: HashSuite,
}

#[derive(Serialize)]
struct Hashed {
    path: ApiPath,
    size: u64,
    chunks: u64,
    file_hash: String,
}

impl HashCommand {
    pub(super) fn run(self, global: &GlobalOptions) -> CommandResult {
        let failed = |error: io::Error| {
            ApiError::io(format_args!("cannot read {}", shown(&self.file)), &error)
        };
        let suite = hashes(self.suite);
        let file = super::open(&self.file)?;
        let size = file.metadata().map_err(failed)?.len();
        let output = Output { json: global.json };
        let bar = Bar::for_command(global, output);
        let (mut tree, mut chunks, mut progress) =
            (MerkleBuilder::with_suite(suite), 0, Progress::default());
        progress.note = "hashing".to_owned();
        progress.bytes_total = (size > 0).then_some(size);
        ingest::each_chunk(suite, file, |hash, bytes| {
            tree.push(hash, bytes.len() as u64);
            chunks += 1;
            progress.bytes_done += bytes.len() as u64;
            bar.report(progress.clone());
            Ok(())
        })
        .map_err(failed)?;
        drop(bar);
        let hashed = Hashed {
            path: ApiPath(self.file.clone()),
            size: progress.bytes_done,
            chunks,
            file_hash: tree.file_hash().to_string(),
        };
        output.result(&hashed, |hashed| format!("{}\n", hashed.file_hash))?;
        Ok(0)
    }
}
