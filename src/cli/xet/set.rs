//! A set: what `export` writes and `import` reads. A directory with xorbs and shards as any Xet software names and
//! reads them, and `files.json`, which has what they lack: paths, kinds and modes.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Component, Path, PathBuf};

use ccbt_xet::hash::{FileHash, ShardHash, Suite, XorbHash};
use serde::{Deserialize, Serialize};

use crate::api::ApiError;
use crate::api::types::ApiPath;

use super::shown;

pub(super) const MANIFEST: &str = "files.json";

/// Raised when the meaning of a field changes.
pub(super) const VERSION: u32 = 1;

/// Longest manifest that is read, in bytes: some ten million files.
pub(super) const MANIFEST_BYTES_MAX: usize = 2 << 30;

/// The files of a set, in the order in which they are made: directories before what is in them.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Manifest {
    pub(super) version: u32,
    /// The hash suite of xorbs and shards. Sets of before there was a choice do not say.
    #[serde(default = "blake3")]
    pub(super) suite: String,
    pub(super) entries: Vec<Entry>,
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Entry {
    /// Relative, without `.` and `..`.
    pub(super) path: ApiPath,
    #[serde(flatten)]
    pub(super) kind: Kind,
    /// Permission bits.
    pub(super) mode: u32,
    /// Time of the last change, in nanoseconds since 1970.
    pub(super) mtime_ns: i64,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub(super) enum Kind {
    Dir,
    File {
        /// Bytes.
        size: u64,
        file_hash: String,
    },
    Symlink {
        target: ApiPath,
    },
}

fn blake3() -> String {
    Suite::Blake3.name().to_owned()
}

/// Why a manifest is not followed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ManifestError {
    #[error(transparent)]
    Json(#[from] serde_json::Error),
    #[error("version {0} of another ccbt")]
    Version(u32),
    #[error("hash suite {0:?} is not known")]
    Suite(String),
    #[error("{0} leads out")]
    Outside(ApiPath),
}

impl Manifest {
    /// Reads a manifest and checks that nothing in it leads out of the directory it is for. With its suite.
    pub(crate) fn parse(bytes: &[u8]) -> Result<(Self, Suite), ManifestError> {
        let manifest: Self = serde_json::from_slice(bytes)?;
        if manifest.version != VERSION {
            return Err(ManifestError::Version(manifest.version));
        }
        if let Some(entry) = manifest.entries.iter().find(|entry| !entry.is_inside()) {
            return Err(ManifestError::Outside(entry.path.clone()));
        }
        match Suite::from_name(&manifest.suite) {
            Some(suite) => Ok((manifest, suite)),
            None => Err(ManifestError::Suite(manifest.suite)),
        }
    }
}

impl Entry {
    /// Whether the path stays inside the directory it is joined to.
    pub(super) fn is_inside(&self) -> bool {
        let path = self.path.as_path();
        let normal = |part: Component<'_>| matches!(part, Component::Normal(_));
        path.components().next().is_some() && path.components().all(normal)
    }
}

pub(super) fn xorb_name(hash: &XorbHash) -> String {
    format!("{hash}.xorb")
}

/// The name Xet clients give a shard they keep.
pub(super) fn shard_name(hash: &ShardHash) -> String {
    format!("{hash}.mdb")
}

/// Writes a file and makes its content durable.
pub(super) fn write_file(path: &Path, bytes: &[u8]) -> Result<(), ApiError> {
    let write = || -> io::Result<()> {
        let mut file = File::create_new(path)?;
        file.write_all(bytes)?;
        file.sync_all()
    };
    write().map_err(|error| ApiError::io(format_args!("cannot write {}", shown(path)), &error))
}

/// The files of a directory with this extension, sorted.
pub(super) fn files_with(dir: &Path, extension: &str) -> Result<Vec<PathBuf>, ApiError> {
    let failed = |error| ApiError::io(format_args!("cannot read {}", shown(dir)), &error);
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        if path.extension().is_some_and(|of| of == extension) {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

/// The name a set gives a file nobody named: its hash.
pub(super) fn unnamed(hash: &FileHash) -> ApiPath {
    ApiPath(PathBuf::from(hash.to_string()))
}
