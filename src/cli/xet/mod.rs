//! `ccbt xet`: Xet's formats as files, and the store of this device.

mod export;
mod hash;
mod import;
mod inspect;
pub(crate) mod set;
mod shard;
mod store;
mod xorb;

use std::fs::File;
use std::io::Read;
use std::path::Path;

use ccbt_xet::hash::Suite;
use clap::Subcommand;

use super::CommandResult;
use super::options::{Context, GlobalOptions};
use crate::api::types::HashSuite;
use crate::api::{ApiError, ErrorKind, escape};

/// Tools for the Xet format and the store
#[derive(Debug, Subcommand)]
pub(super) enum XetCommand {
    Hash(hash::HashCommand),
    Inspect(inspect::InspectCommand),
    Xorb(xorb::XorbCommand),
    Shard(shard::ShardCommand),
    Export(export::ExportCommand),
    Import(import::ImportCommand),
    Stats(store::StatsCommand),
    Verify(store::VerifyCommand),
    Gc(store::GcCommand),
}

impl XetCommand {
    /// Does what needs no daemon and no state directory; gives the rest back.
    pub(super) fn run_alone(self, global: &GlobalOptions) -> Result<CommandResult, Self> {
        match self {
            Self::Hash(command) => Ok(command.run(global)),
            Self::Inspect(command) => Ok(command.run(global)),
            Self::Xorb(command) => Ok(command.run(global)),
            Self::Shard(command) => Ok(command.run(global)),
            Self::Export(command) => Ok(command.run(global)),
            Self::Import(command) => Ok(command.run(global)),
            other => Err(other),
        }
    }

    pub(super) async fn run(self, context: &Context) -> CommandResult {
        match self {
            Self::Stats(command) => command.run(context).await,
            Self::Verify(command) => command.run(context).await,
            Self::Gc(command) => command.run(context).await,
            // `run_alone` has taken the others.
            other => other.run_alone(&context.global).unwrap_or(Ok(0)),
        }
    }
}

/// The functions a suite stands for.
const fn hashes(named: HashSuite) -> Suite {
    match named {
        HashSuite::Blake3 => Suite::Blake3,
        HashSuite::Sha256 => Suite::Sha256,
    }
}

/// Opens a file to read it; a directory is a mistake of who typed the command.
fn open(path: &Path) -> Result<File, ApiError> {
    let shown = shown(path);
    let failed = |error| ApiError::io(format_args!("cannot read {shown}"), &error);
    let file = File::open(path).map_err(failed)?;
    if file.metadata().map_err(failed)?.is_dir() {
        return Err(
            ApiError::new(ErrorKind::Usage, format_args!("{shown} is a directory"))
                .hint("name a file"),
        );
    }
    Ok(file)
}

/// The bytes of a file of at most `max` bytes.
fn read_whole(path: &Path, max: usize, what: &str) -> Result<Vec<u8>, ApiError> {
    let mut bytes = Vec::new();
    let read = open(path)?.take(max as u64 + 1).read_to_end(&mut bytes);
    read.map_err(|error| ApiError::io(format_args!("cannot read {}", shown(path)), &error))?;
    match bytes.len() > max {
        true => Err(damaged(
            path,
            format_args!("longer than a {what} can be ({max} bytes)"),
        )),
        false => Ok(bytes),
    }
}

/// An error about the bytes of a file.
fn damaged(path: &Path, why: impl std::fmt::Display) -> ApiError {
    ApiError::new(ErrorKind::Io, format_args!("{}: {why}", shown(path)))
}

fn shown(path: &Path) -> String {
    escape(path.as_os_str().as_encoded_bytes())
}

/// Plain hexadecimal.
fn hex(bytes: &[u8]) -> String {
    data_encoding::HEXLOWER.encode(bytes)
}
