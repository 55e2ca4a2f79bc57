//! `ccbt xet export`

use std::fs::{self, File, Metadata};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use ccbt_xet::assemble::{Assembler, SealedXorb};
use ccbt_xet::hash::Suite;
use ccbt_xet::ingest;
use ccbt_xet::shard::Form;
use clap::Args;
use serde::Serialize;
use sha2::{Digest, Sha256};

use super::super::CommandResult;
use super::super::options::GlobalOptions;
use super::super::output::{self, Output};
use super::super::progress::Bar;
use super::set::{self, Entry, Kind, Manifest};
use super::{hashes, shown};
use crate::api::types::{ApiPath, HashSuite, Progress};
use crate::api::{ApiError, ErrorKind, ProgressReport};

/// Write a file or directory as xorbs and a shard
///
/// DIR gets `HASH.xorb` files, a shard `HASH.mdb`, and `files.json` with the names. `ccbt xet import` reads them back.
#[derive(Debug, Args)]
pub(in crate::cli) struct ExportCommand {
    path: PathBuf,
    /// A new or empty directory
    #[arg(short, long, value_name = "DIR")]
    out: PathBuf,
    /// Leave out the SHA-256 of the files
    #[arg(long)]
    no_sha256: bool,
    /// The hash suite that names the chunks
    #[arg(long, value_enum, value_name = "SUITE", default_value = "blake3")]
    suite: HashSuite,
}

#[derive(Debug, Default, Serialize)]
struct Exported {
    files: u64,
    /// Of the files.
    bytes: u64,
    chunks: u64,
    xorbs: Vec<String>,
    /// Of the xorbs.
    stored_bytes: u64,
    shards: Vec<String>,
    /// Sockets, devices and the like, which have no content.
    left_out: u64,
}

impl ExportCommand {
    pub(super) fn run(self, global: &GlobalOptions) -> CommandResult {
        let entries = entries(&self.path)?;
        prepare(&self.path, &self.out)?;
        let output = Output { json: global.json };
        let bar = Bar::for_command(global, output);
        let suite = hashes(self.suite);
        let mut export = Export::new(&self.out, suite, &bar, content_len(&entries));
        export.sha256 = !self.no_sha256;
        let mut manifest = Manifest {
            version: set::VERSION,
            suite: suite.name().to_owned(),
            entries: Vec::new(),
        };
        for entry in &entries {
            manifest.entries.extend(export.entry(entry)?);
        }
        export.end_shard()?;
        let json = serde_json::to_vec(&manifest)
            .map_err(|error| ApiError::new(ErrorKind::Internal, error))?;
        set::write_file(&self.out.join(set::MANIFEST), &json)?;
        let done = export.done;
        drop(bar);
        if done.left_out > 0 {
            output.note(&format!("{} special files were left out", done.left_out));
        }
        output.result(&done, text)?;
        Ok(0)
    }
}

fn text(done: &Exported) -> String {
    format!(
        "{} files, {}, in {} xorbs of {}\n",
        output::count(done.files),
        output::bytes(done.bytes),
        output::count(done.xorbs.len() as u64),
        output::bytes(done.stored_bytes),
    )
}

/// Something below the exported path.
struct Found {
    at: PathBuf,
    /// Below the exported directory, or the name of the exported file.
    path: PathBuf,
    meta: Metadata,
}

/// Everything to export, directories before what is in them.
fn entries(path: &Path) -> Result<Vec<Found>, ApiError> {
    let failed = |at: &Path, error: &io::Error| {
        ApiError::io(format_args!("cannot read {}", shown(at)), error)
    };
    let meta = fs::metadata(path).map_err(|error| failed(path, &error))?;
    if !meta.is_dir() {
        let name = path.file_name().unwrap_or(path.as_os_str());
        return Ok(vec![Found {
            at: path.to_path_buf(),
            path: name.into(),
            meta,
        }]);
    }
    let (mut found, mut todo) = (Vec::new(), vec![(path.to_path_buf(), PathBuf::new())]);
    while let Some((dir, inside)) = todo.pop() {
        let list = fs::read_dir(&dir).and_then(Iterator::collect::<io::Result<Vec<_>>>);
        let mut list = list.map_err(|error| failed(&dir, &error))?;
        list.sort_by_key(fs::DirEntry::file_name);
        for entry in list {
            let (at, path) = (entry.path(), inside.join(entry.file_name()));
            let meta = entry.metadata().map_err(|error| failed(&at, &error))?;
            if meta.is_dir() {
                todo.push((at.clone(), path.clone()));
            }
            found.push(Found { at, path, meta });
        }
    }
    Ok(found)
}

/// Bytes of all files together.
fn content_len(entries: &[Found]) -> u64 {
    let files = entries.iter().filter(|found| found.meta.is_file());
    files.map(|found| found.meta.len()).sum()
}

/// Makes the output directory, which must not get in the way of what is exported.
fn prepare(path: &Path, out: &Path) -> Result<(), ApiError> {
    let failed = |error| ApiError::io(format_args!("cannot use {}", shown(out)), &error);
    fs::create_dir_all(out).map_err(failed)?;
    if fs::read_dir(out).map_err(failed)?.next().is_some() {
        let what = format!("{} is not empty", shown(out));
        return Err(ApiError::new(ErrorKind::Refused, what).hint("name a new directory with -o"));
    }
    let inside = fs::canonicalize(out).map_err(failed)?;
    let path = fs::canonicalize(path).map_err(failed)?;
    if inside.starts_with(path) {
        let what = format!("{} is inside of what is exported", shown(out));
        return Err(ApiError::new(ErrorKind::Refused, what).hint("name another one with -o"));
    }
    Ok(())
}

struct Export<'a> {
    out: &'a Path,
    bar: &'a Bar,
    progress: Progress,
    suite: Suite,
    assembler: Assembler,
    sha256: bool,
    done: Exported,
}

impl<'a> Export<'a> {
    fn new(out: &'a Path, suite: Suite, bar: &'a Bar, bytes_total: u64) -> Self {
        Self {
            out,
            bar,
            progress: Progress {
                bytes_total: Some(bytes_total),
                note: "exporting".to_owned(),
                ..Progress::default()
            },
            suite,
            assembler: Assembler::new(suite),
            sha256: true,
            done: Exported::default(),
        }
    }

    fn entry(&mut self, found: &Found) -> Result<Option<Entry>, ApiError> {
        let kind = if found.meta.is_dir() {
            Kind::Dir
        } else if found.meta.is_symlink() {
            let target = fs::read_link(&found.at).map_err(|error| unreadable(found, &error))?;
            Kind::Symlink {
                target: ApiPath(target),
            }
        } else if found.meta.is_file() {
            self.file(found)?
        } else {
            self.done.left_out += 1;
            return Ok(None);
        };
        let seconds = found.meta.mtime().saturating_mul(1_000_000_000);
        Ok(Some(Entry {
            path: ApiPath(found.path.clone()),
            kind,
            mode: found.meta.mode() & 0o7777,
            mtime_ns: seconds.saturating_add(found.meta.mtime_nsec()),
        }))
    }

    fn file(&mut self, found: &Found) -> Result<Kind, ApiError> {
        let file = File::open(&found.at).map_err(|error| unreadable(found, &error))?;
        let mut sha256 = self.sha256.then(Sha256::new);
        let mut size = 0;
        ingest::each_chunk(self.suite, Named { file, found }, |hash, bytes| {
            if let Some(sha256) = &mut sha256 {
                sha256.update(bytes);
            }
            size += bytes.len() as u64;
            self.done.chunks += 1;
            let sealed = self.assembler.chunk(hash, bytes);
            let sealed = sealed.map_err(|error| ApiError::new(ErrorKind::Internal, error))?;
            self.xorb(sealed)?;
            self.progress.bytes_done += bytes.len() as u64;
            self.bar.report(self.progress.clone());
            Ok::<(), Stop>(())
        })
        .map_err(|stop| stop.0)?;
        let hash = self
            .assembler
            .end_file(sha256.map(|of| of.finalize().into()));
        self.done.files += 1;
        self.done.bytes += size;
        self.progress.files_done += 1;
        if self.assembler.is_shard_due() {
            self.end_shard()?;
        }
        Ok(Kind::File {
            size,
            file_hash: hash.to_string(),
        })
    }

    fn xorb(&mut self, sealed: Option<SealedXorb>) -> Result<(), ApiError> {
        let Some(xorb) = sealed else { return Ok(()) };
        set::write_file(&self.out.join(set::xorb_name(&xorb.hash)), &xorb.bytes)?;
        self.done.stored_bytes += xorb.bytes.len() as u64;
        self.done.xorbs.push(xorb.hash.to_string());
        Ok(())
    }

    fn end_shard(&mut self) -> Result<(), ApiError> {
        let (sealed, shard) = self.assembler.finish_shard();
        self.xorb(sealed)?;
        if shard.files.is_empty() && shard.xorbs.is_empty() {
            return Ok(());
        }
        let bytes = shard
            .encode(Form::LOCAL)
            .map_err(|error| ApiError::new(ErrorKind::Internal, error))?;
        let hash = self.suite.shard_hash(&bytes);
        set::write_file(&self.out.join(set::shard_name(&hash)), &bytes)?;
        self.done.shards.push(hash.to_string());
        Ok(())
    }
}

fn unreadable(found: &Found, error: &io::Error) -> ApiError {
    ApiError::io(format_args!("cannot read {}", shown(&found.at)), error)
}

/// Why a file was not exported, whichever side failed.
struct Stop(ApiError);

impl From<ApiError> for Stop {
    fn from(error: ApiError) -> Self {
        Self(error)
    }
}

impl From<io::Error> for Stop {
    /// Of [`Named`], which has said in the error which file it is.
    fn from(error: io::Error) -> Self {
        match error.downcast::<ApiError>() {
            Ok(error) => Self(error),
            Err(error) => Self(ApiError::io("cannot read a file", &error)),
        }
    }
}

/// A file whose errors name it.
struct Named<'a> {
    file: File,
    found: &'a Found,
}

impl Read for Named<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        match self.file.read(buf) {
            Err(error) if error.kind() != io::ErrorKind::Interrupted => {
                Err(io::Error::other(unreadable(self.found, &error)))
            }
            other => other,
        }
    }
}
