//! `ccbt create`

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use clap::Args;
use serde::Serialize;

use super::CommandResult;
use super::info::{self, TorrentInfo};
use super::options::GlobalOptions;
use super::output::{self, Output};
use super::progress::Bar;
use crate::api::types::Progress;
use crate::api::{ApiError, ErrorKind, ProgressReport, escape};
use crate::engine::create::{CreateError, CreateOptions, create};
use crate::proto::metainfo::draft::{Extras, Version};
use crate::proto::metainfo::merkle::BLOCK_BYTES;
use crate::proto::metainfo::{PIECE_BYTES_MAX, Torrent};
use crate::{clock, config};

/// Make a torrent of a file or directory
///
/// By default a v1 torrent, which every client opens. Some clients refuse v2 or hybrid torrents.
#[derive(Debug, Args)]
pub(super) struct CreateCommand {
    /// A file or directory
    path: PathBuf,
    /// Where to write the torrent [default: the name of PATH with .torrent, here]
    #[arg(short, long, value_name = "X.torrent")]
    output: Option<PathBuf>,
    /// v1 hashes only (BEP 3)
    #[arg(long, group = "version")]
    v1: bool,
    /// v2 hashes only (BEP 52)
    #[arg(long, group = "version")]
    v2: bool,
    /// Both: the content is read by old and new clients
    #[arg(long, group = "version")]
    hybrid: bool,
    /// A tracker; again for more, each used when those before it fail
    #[arg(long, value_name = "URL")]
    tracker: Vec<String>,
    /// An HTTP server that has the content (BEP 19); again for more
    #[arg(long, value_name = "URL")]
    web_seed: Vec<String>,
    /// Add chunk lists, 1.1 MB per GiB: who has a like copy fetches only what is different (see docs/bep_xet.md)
    #[arg(long)]
    xet: bool,
    /// Take peers from the trackers only (BEP 27)
    #[arg(long)]
    private: bool,
    /// Bytes in a piece, a power of two, like 512KiB or 4MiB [default: by the size of the content]
    #[arg(long, value_name = "SIZE", value_parser = piece_size)]
    piece_size: Option<u32>,
    /// A comment that clients show
    #[arg(long, value_name = "TEXT")]
    comment: Option<String>,
    /// What a private tracker wants in the `source` field
    #[arg(long, value_name = "TEXT")]
    source: Option<String>,
    /// Replace the torrent file if it exists
    #[arg(long)]
    force: bool,
}

#[derive(Serialize)]
struct Created {
    file: String,
    #[serde(flatten)]
    info: TorrentInfo,
    left_out: Vec<String>,
}

impl CreateCommand {
    pub(super) fn run(self, global: &GlobalOptions, out: Output) -> CommandResult {
        let target = match &self.output {
            Some(path) => path.clone(),
            None => default_target(&self.path)?,
        };
        if !self.force && target.exists() {
            return Err(exists(&target));
        }
        let bar = Bar::for_command(global, out);
        let progress = |bytes_done, total| {
            bar.report(Progress {
                note: "hashing".into(),
                bytes_done,
                bytes_total: Some(total),
                ..Progress::default()
            });
        };
        let created = create(&self.path, self.options(), &progress).map_err(failed)?;
        drop(bar);
        write(&target, &created.torrent, self.force)?;
        let torrent = Torrent::parse(&created.torrent)
            .map_err(|error| ApiError::new(ErrorKind::Internal, error))?;
        let left_out = created.left_out.iter().map(|path| shown(path)).collect();
        let result = Created {
            file: shown(&target),
            info: TorrentInfo::of(&torrent),
            left_out,
        };
        for path in &result.left_out {
            out.note(&format!(
                "left out: {path} (a link out of the directory, or a special file)"
            ));
        }
        out.result(&result, text)?;
        Ok(0)
    }

    fn options(&self) -> CreateOptions {
        let version = match (self.v2, self.hybrid) {
            (true, _) => Version::V2,
            (_, true) => Version::Hybrid,
            _ => Version::V1,
        };
        let extras = Extras {
            trackers: self.tracker.clone(),
            web_seeds: self.web_seed.clone(),
            private: self.private,
            comment: self.comment.clone(),
            created_by: Some(concat!("ccbt ", env!("CARGO_PKG_VERSION")).into()),
            created: i64::try_from(clock::unix_millis() / 1000).ok(),
            source: self.source.clone(),
        };
        CreateOptions {
            version,
            piece_bytes: self.piece_size,
            extras,
            chunks: self.xet,
        }
    }
}

fn piece_size(text: &str) -> Result<u32, String> {
    let size = config::parse_bytes(text).and_then(|size| u32::try_from(size).ok());
    size.filter(|size| size.is_power_of_two() && (BLOCK_BYTES..=PIECE_BYTES_MAX).contains(size))
        .ok_or_else(|| "a piece has a power of two from 16 KiB to 512 MiB".into())
}

fn default_target(path: &Path) -> Result<PathBuf, ApiError> {
    let failed = |error| ApiError::io(format_args!("cannot read {}", shown(path)), &error);
    let full = path.canonicalize().map_err(failed)?;
    let mut name = full.file_name().unwrap_or_default().to_owned();
    name.push(".torrent");
    Ok(name.into())
}

fn write(target: &Path, torrent: &[u8], force: bool) -> Result<(), ApiError> {
    let mut options = OpenOptions::new();
    options.write(true).truncate(true);
    let file = if force {
        options.create(true)
    } else {
        options.create_new(true)
    }
    .open(target);
    let done = file.and_then(|mut file| file.write_all(torrent).and_then(|()| file.sync_all()));
    done.map_err(|error| match error.kind() {
        io::ErrorKind::AlreadyExists => exists(target),
        _ => ApiError::io(format_args!("cannot write {}", shown(target)), &error),
    })
}

fn exists(target: &Path) -> ApiError {
    ApiError::new(ErrorKind::Refused, format_args!("{} exists", shown(target)))
        .hint("name another file with -o, or replace it with --force")
}

fn failed(error: CreateError) -> ApiError {
    match error {
        CreateError::Read { path, error } => {
            ApiError::io(format_args!("cannot read {}", shown(&path)), &error)
        }
        CreateError::Changed(_) => ApiError::new(ErrorKind::Io, error)
            .hint("make the torrent when nothing writes to the files"),
        CreateError::Special(_) | CreateError::Metainfo(_) => {
            ApiError::new(ErrorKind::Usage, error)
        }
    }
}

fn shown(path: &Path) -> String {
    escape(path.as_os_str().as_encoded_bytes())
}

fn text(created: &Created) -> String {
    let info = &created.info;
    let content = output::amount(info.content);
    format!(
        "Created {}: {content}, {} pieces of {}\n{}",
        created.file,
        output::count(info.pieces),
        output::bytes(u64::from(info.piece_bytes)),
        info::hash_lines(info),
    )
}
