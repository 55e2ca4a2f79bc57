//! `ccbt xet import`

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File, FileTimes, Permissions};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use ccbt_xet::hash::{FileHash, ShardHash, Suite, XorbHash};
use ccbt_xet::merkle::MerkleBuilder;
use ccbt_xet::shard::{self, FileInfo, Segment};
use ccbt_xet::xorb::{self, Contents, records};
use clap::Args;
use serde::Serialize;
use sha2::{Digest, Sha256};

use super::super::CommandResult;
use super::super::options::GlobalOptions;
use super::super::output::{self, Output};
use super::super::progress::Bar;
use super::set::{self, Entry, Kind, MANIFEST, MANIFEST_BYTES_MAX, Manifest};
use super::{damaged, hashes, read_whole, shown};
use crate::api::types::{ApiPath, HashSuite, Progress};
use crate::api::{ApiError, ErrorKind, ProgressReport};

/// Read files back from xorbs and shards
///
/// Everything is checked: xorbs, shards, and every file against its hashes. Files that `files.json` does not name are
/// named by their hash. Nothing that exists is replaced.
#[derive(Debug, Args)]
pub(in crate::cli) struct ImportCommand {
    dir: PathBuf,
    /// Where the files go
    #[arg(short, long, value_name = "DIR", default_value = ".")]
    out: PathBuf,
    /// The hash suite that names the chunks, where `files.json` does not say
    #[arg(long, value_enum, value_name = "SUITE")]
    suite: Option<HashSuite>,
}

#[derive(Debug, Default, Serialize)]
struct Imported {
    files: u64,
    /// Of the files.
    bytes: u64,
    xorbs: u64,
    shards: u64,
    entries: Vec<ImportedFile>,
}

#[derive(Debug, Serialize)]
struct ImportedFile {
    path: ApiPath,
    size: u64,
    file_hash: String,
}

impl ImportCommand {
    pub(super) fn run(self, global: &GlobalOptions) -> CommandResult {
        let (set, entries) = Set::open(&self.dir, self.suite.map(hashes))?;
        let output = Output { json: global.json };
        let bar = Bar::for_command(global, output);
        let mut import = Import {
            set: &set,
            bar: &bar,
            progress: Progress {
                note: "importing".to_owned(),
                bytes_total: Some(entries.iter().map(Entry::len).sum()),
                ..Progress::default()
            },
            loaded: None,
            done: Imported {
                xorbs: set.xorbs.len() as u64,
                shards: set.shards,
                ..Imported::default()
            },
        };
        import.write_all(&entries, &self.out)?;
        let done = import.done;
        drop(bar);
        output.result(&done, |done| {
            format!(
                "{} files, {}\n",
                output::count(done.files),
                output::bytes(done.bytes)
            )
        })?;
        Ok(0)
    }
}

impl Entry {
    fn len(&self) -> u64 {
        match self.kind {
            Kind::File { size, .. } => size,
            _ => 0,
        }
    }
}

/// A set on disk, its shards read.
struct Set {
    dir: PathBuf,
    suite: Suite,
    shards: u64,
    files: BTreeMap<FileHash, FileInfo>,
    xorbs: HashMap<XorbHash, PathBuf>,
}

impl Set {
    /// Reads a set. Also what is to be written: what the manifest names, or every file under its hash.
    fn open(dir: &Path, suite: Option<Suite>) -> Result<(Self, Vec<Entry>), ApiError> {
        let manifest = manifest_of(dir)?;
        if let (Some((_, stated)), Some(suite)) = (&manifest, suite)
            && *stated != suite
        {
            let what = format!("{} was exported with --suite {}", shown(dir), stated.name());
            return Err(ApiError::new(ErrorKind::Usage, what).hint("leave --suite out"));
        }
        let stated = manifest.as_ref().map(|(_, stated)| *stated);
        let mut set = Self {
            dir: dir.to_path_buf(),
            suite: stated.or(suite).unwrap_or_default(),
            shards: 0,
            files: BTreeMap::new(),
            xorbs: HashMap::new(),
        };
        for path in set::files_with(dir, "xorb")? {
            let hash = stem(&path).and_then(|name| name.parse().ok());
            let hash = hash.ok_or_else(|| damaged(&path, "a xorb is named by its hash"))?;
            set.xorbs.insert(hash, path);
        }
        for path in set::files_with(dir, "mdb")? {
            set.add_shard(&path)?;
        }
        if set.shards == 0 {
            let what = format!("no shard (*.mdb) is in {}", shown(dir));
            return Err(ApiError::new(ErrorKind::NotFound, what)
                .hint("name a directory that `ccbt xet export` wrote"));
        }
        let entries = match manifest {
            Some((manifest, _)) => manifest.entries,
            None => set.unnamed(),
        };
        Ok((set, entries))
    }

    fn add_shard(&mut self, path: &Path) -> Result<(), ApiError> {
        let bytes = read_whole(path, shard::MAX_READ_LEN, "shard")?;
        let named: Option<ShardHash> = stem(path).and_then(|name| name.parse().ok());
        if named.is_some_and(|named| named != self.suite.shard_hash(&bytes)) {
            return Err(damaged(path, "the shard has another hash than its name"));
        }
        let parsed = shard::parse(&bytes).map_err(|error| damaged(path, error))?;
        let checked = parsed.shard.check_as(self.suite);
        checked.map_err(|error| damaged(path, error))?;
        let files = parsed.shard.files.into_iter();
        self.files.extend(files.map(|file| (file.hash, file)));
        self.shards += 1;
        Ok(())
    }

    /// Every file, under its hash.
    fn unnamed(&self) -> Vec<Entry> {
        let files = self.files.values().map(|file| Entry {
            path: set::unnamed(&file.hash),
            kind: Kind::File {
                size: file.len(),
                file_hash: file.hash.to_string(),
            },
            mode: 0o644,
            mtime_ns: 0,
        });
        files.collect()
    }
}

/// The manifest of a set, if it has one.
fn manifest_of(dir: &Path) -> Result<Option<(Manifest, Suite)>, ApiError> {
    let path = dir.join(MANIFEST);
    if !path.exists() {
        return Ok(None);
    }
    let bytes = read_whole(&path, MANIFEST_BYTES_MAX, "manifest")?;
    let parsed = Manifest::parse(&bytes);
    parsed.map(Some).map_err(|error| damaged(&path, error))
}

fn stem(path: &Path) -> Option<&str> {
    path.file_stem()?.to_str()
}

struct Import<'a> {
    set: &'a Set,
    bar: &'a Bar,
    progress: Progress,
    /// The xorb read last: files mostly go on in the same one.
    loaded: Option<(XorbHash, Loaded)>,
    done: Imported,
}

struct Loaded {
    bytes: Vec<u8>,
    contents: Contents,
}

impl Import<'_> {
    fn write_all(&mut self, entries: &[Entry], out: &Path) -> Result<(), ApiError> {
        let failed = |path: &Path, error: &io::Error| {
            ApiError::io(format_args!("cannot write {}", shown(path)), error)
        };
        fs::create_dir_all(out).map_err(|error| failed(out, &error))?;
        for entry in entries {
            let path = out.join(entry.path.as_path());
            match &entry.kind {
                Kind::Dir => match fs::create_dir(&path) {
                    Err(error) if error.kind() == io::ErrorKind::AlreadyExists && is_dir(&path) => {
                    }
                    made => made.map_err(|error| failed(&path, &error))?,
                },
                Kind::File { file_hash, .. } => self.write_file(entry, file_hash, &path)?,
                Kind::Symlink { .. } => {}
            }
        }
        // Links come last, so that nothing is written through one; directories get their times
        // when nothing in them changes any more.
        for entry in entries.iter().rev() {
            let path = out.join(entry.path.as_path());
            let made = match &entry.kind {
                Kind::Symlink { target } => symlink(target.as_path(), &path),
                Kind::Dir => File::open(&path).and_then(|dir| set_attributes(&dir, entry)),
                Kind::File { .. } => Ok(()),
            };
            made.map_err(|error| failed(&path, &error))?;
        }
        Ok(())
    }

    fn write_file(&mut self, entry: &Entry, hash: &str, path: &Path) -> Result<(), ApiError> {
        let set = self.set;
        let hash: FileHash = hash
            .parse()
            .map_err(|error| damaged(&set.dir.join(MANIFEST), error))?;
        let missing = || damaged(&set.dir, format_args!("no shard has file {hash}"));
        let info = set.files.get(&hash).ok_or_else(missing)?;
        let failed =
            |error: io::Error| ApiError::io(format_args!("cannot write {}", shown(path)), &error);
        let mut file = BufWriter::new(File::create_new(path).map_err(failed)?);
        if let Err(error) = self.write_content(info, path, &mut file) {
            drop(file);
            // What is wrong must not be left lying there as if it were right.
            drop(fs::remove_file(path));
            return Err(error);
        }
        let file = file
            .into_inner()
            .map_err(|error| failed(error.into_error()))?;
        set_attributes(&file, entry)
            .and_then(|()| file.sync_all())
            .map_err(failed)?;
        self.progress.files_done += 1;
        self.done.files += 1;
        self.done.bytes += info.len();
        self.done.entries.push(ImportedFile {
            path: entry.path.clone(),
            size: info.len(),
            file_hash: hash.to_string(),
        });
        Ok(())
    }

    /// Writes a file chunk by chunk and checks it.
    fn write_content(
        &mut self,
        info: &FileInfo,
        path: &Path,
        out: &mut impl Write,
    ) -> Result<(), ApiError> {
        let mut sums = Sums::new(self.set.suite);
        for segment in &info.segments {
            let (from, loaded) = self.xorb(&segment.xorb)?;
            let mut written = 0;
            for chunk in loaded.run(segment).map_err(|why| damaged(from, why))? {
                let chunk = chunk.map_err(|error| damaged(from, error))?;
                sums.add(&chunk);
                out.write_all(&chunk).map_err(|error| {
                    ApiError::io(format_args!("cannot write {}", shown(path)), &error)
                })?;
                written += chunk.len() as u64;
            }
            self.progress.bytes_done += written;
            self.bar.report(self.progress.clone());
        }
        sums.check(info).map_err(|why| damaged(&self.set.dir, why))
    }

    /// A xorb of the set, checked, and where it lies.
    fn xorb(&mut self, hash: &XorbHash) -> Result<(&Path, &Loaded), ApiError> {
        let set = self.set;
        let path = set.xorbs.get(hash).ok_or_else(|| {
            let why = format!("xorb {hash} is missing");
            damaged(&set.dir, why)
        })?;
        let loaded = match self.loaded.take() {
            Some((known, loaded)) if known == *hash => loaded,
            _ => {
                let bytes = read_whole(path, xorb::MAX_READ_LEN, "xorb")?;
                let contents = xorb::validate(set.suite, &bytes, hash);
                let contents = contents.map_err(|error| damaged(path, error))?;
                Loaded { bytes, contents }
            }
        };
        let (_, loaded) = self.loaded.insert((*hash, loaded));
        Ok((path, loaded))
    }
}

impl Loaded {
    /// The chunks of a segment, each decoded when it is asked for.
    fn run(
        &self,
        segment: &Segment,
    ) -> Result<impl Iterator<Item = Result<Vec<u8>, String>> + '_, String> {
        let (first, end) = (segment.chunks.start as usize, segment.chunks.end as usize);
        if end > self.contents.chunks.len() {
            return Err(format!("no chunk {}", end - 1));
        }
        let start = first.checked_sub(1);
        let start = start.and_then(|before| self.contents.record_ends.get(before));
        let from = self.bytes.get(start.map_or(0, |end| *end as usize)..);
        let run = records(from.unwrap_or_default()).take(end.saturating_sub(first));
        Ok(run.map(|record| {
            let record = record.map_err(|error| error.to_string())?;
            record.decode().map_err(|error| error.to_string())
        }))
    }
}

/// The hashes of a file as it is written.
struct Sums {
    suite: Suite,
    tree: MerkleBuilder,
    sha256: Sha256,
}

impl Sums {
    fn new(suite: Suite) -> Self {
        Self {
            suite,
            tree: MerkleBuilder::with_suite(suite),
            sha256: Sha256::new(),
        }
    }

    fn add(&mut self, chunk: &[u8]) {
        let hash = self.suite.chunk_hash(chunk);
        self.tree.push(&hash, chunk.len() as u64);
        self.sha256.update(chunk);
    }

    fn check(self, info: &FileInfo) -> Result<(), String> {
        let hash = self.tree.file_hash();
        if hash != info.hash {
            return Err(format!("file {} has hash {hash}", info.hash));
        }
        let sha256: [u8; 32] = self.sha256.finalize().into();
        match info.sha256 {
            Some(stated) if stated != sha256 && !info.is_empty() => {
                Err(format!("file {} has another SHA-256", info.hash))
            }
            _ => Ok(()),
        }
    }
}

fn is_dir(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|meta| meta.is_dir())
}

/// Mode and time. Set-id bits are not taken from a file that anybody may have made.
fn set_attributes(file: &File, entry: &Entry) -> io::Result<()> {
    file.set_permissions(Permissions::from_mode(entry.mode & 0o1777))?;
    let from_epoch = Duration::from_nanos(entry.mtime_ns.unsigned_abs());
    let time = match entry.mtime_ns {
        0 => return Ok(()),
        1.. => SystemTime::UNIX_EPOCH.checked_add(from_epoch),
        _ => SystemTime::UNIX_EPOCH.checked_sub(from_epoch),
    };
    let Some(time) = time else { return Ok(()) };
    file.set_times(FileTimes::new().set_modified(time))
}
