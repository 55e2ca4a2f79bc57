//! What a daemon remembers of each folder over restarts: one small file per folder, replaced as a whole.

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::api::types::ApiPath;
use crate::random;
use crate::share::{FolderId, Incarnation, Link};
use crate::state_file;

const FILE: &str = "folder.json";
/// Raised when the meaning of a field changes; a newer file is refused.
const VERSION: u32 = 1;

/// A folder as it stands in the state directory.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct FolderRecord {
    version: u32,
    pub(super) name: String,
    /// The link of the highest right held here. Secret: the file is readable by its owner only.
    link: String,
    /// The plain directory that holds the folder here.
    pub(super) home: Option<ApiPath>,
    /// The directory that was made a live folder by `ccbt mount DIR`.
    pub(super) live: Option<ApiPath>,
    /// Open to peers.
    pub(super) shared: bool,
    /// Keep the whole content here.
    pub(super) pinned: bool,
    pub(super) peers: Vec<SocketAddr>,
    /// Mount again when the daemon starts.
    pub(super) mounts: Vec<MountRecord>,
    incarnation: IncarnationRecord,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct MountRecord {
    pub(super) dir: ApiPath,
    pub(super) read_only: bool,
    /// Only written if set, as earlier versions do not know it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(super) suid: bool,
    /// As above.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(super) dev: bool,
}

/// Under which incarnation this device publishes, and whether it may go on under it (merge rules, "State").
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct IncarnationRecord {
    id: [u8; 8],
    /// The daemon stopped in order.
    clean: bool,
    /// Machine and file the record was written on: a copied state directory differs.
    fingerprint: String,
}

#[derive(Debug, thiserror::Error)]
pub(super) enum RecordError {
    #[error("cannot read {}: {error}", path.display())]
    Read { path: PathBuf, error: io::Error },
    #[error("cannot write {}: {error}", path.display())]
    Write { path: PathBuf, error: io::Error },
    #[error("{} is damaged: {error}", path.display())]
    Json {
        path: PathBuf,
        error: serde_json::Error,
    },
    #[error("{} was written by a newer ccbt (version {version})", path.display())]
    Newer { path: PathBuf, version: u32 },
    #[error("{} holds a link that is damaged", path.display())]
    Link { path: PathBuf },
}

impl FolderRecord {
    /// A new folder's record with a fresh incarnation.
    pub(super) fn new(name: String, link: &Link) -> Self {
        Self {
            version: VERSION,
            name,
            link: link.reveal(),
            home: None,
            live: None,
            shared: false,
            pinned: false,
            peers: Vec::new(),
            mounts: Vec::new(),
            incarnation: IncarnationRecord {
                id: random::bytes(),
                clean: true,
                fingerprint: String::new(),
            },
        }
    }

    pub(super) fn link(&self, dir: &Path) -> Result<Link, RecordError> {
        self.link.parse().map_err(|_| RecordError::Link {
            path: dir.join(FILE),
        })
    }

    /// A link of a higher right came: keep that one.
    pub(super) fn set_link(&mut self, link: &Link) {
        self.link = link.reveal();
    }

    pub(super) fn load(dir: &Path) -> Result<Self, RecordError> {
        let path = dir.join(FILE);
        match fs::read(&path) {
            Ok(bytes) => Self::parse(&bytes, path),
            Err(error) => Err(RecordError::Read { path, error }),
        }
    }

    /// Reads a record; `path` is where it stands.
    pub(super) fn parse(bytes: &[u8], path: PathBuf) -> Result<Self, RecordError> {
        #[derive(Deserialize)]
        struct Version {
            version: u32,
        }
        let parse = |error| RecordError::Json {
            path: path.clone(),
            error,
        };
        let Version { version } = serde_json::from_slice(bytes).map_err(parse)?;
        if version > VERSION {
            return Err(RecordError::Newer { path, version });
        }
        serde_json::from_slice(bytes).map_err(parse)
    }

    pub(super) fn save(&self, dir: &Path) -> Result<(), RecordError> {
        let path = dir.join(FILE);
        let write = |error| RecordError::Write {
            path: path.clone(),
            error,
        };
        let json = serde_json::to_vec_pretty(self).map_err(|e| write(e.into()))?;
        state_file::replace(&path, &json).map_err(write)
    }

    /// The incarnation to publish under in this run: the last one if it was ended in order on this machine, else a
    /// fresh one. Marks it as in use; [`Self::release_incarnation`] at a clean stop.
    pub(super) fn take_incarnation(&mut self, dir: &Path) -> Result<Incarnation, RecordError> {
        let fingerprint = fingerprint(dir);
        let known = &mut self.incarnation;
        let fresh = known.fingerprint.is_empty();
        if !fresh && (!known.clean || known.fingerprint != fingerprint) {
            known.id = random::bytes();
        }
        known.fingerprint = fingerprint;
        known.clean = false;
        let id = known.id;
        self.save(dir)?;
        Ok(Incarnation::from_bytes(id))
    }

    /// The incarnation of the last run.
    pub(super) fn incarnation(&self) -> Incarnation {
        Incarnation::from_bytes(self.incarnation.id)
    }

    pub(super) fn release_incarnation(&mut self, dir: &Path) -> Result<(), RecordError> {
        self.incarnation.clean = true;
        self.save(dir)
    }
}

/// Folders live in `STATE/folders/<first 16 hex digits of the id>`.
pub(super) fn folder_dir(state: &Path, id: &FolderId) -> PathBuf {
    state.join("folders").join(&id.to_string()[..16])
}

/// Machine id, and device and inode of the folder's directory: whatever copies the state changes one of them.
fn fingerprint(dir: &Path) -> String {
    let machine = fs::read_to_string("/etc/machine-id").unwrap_or_default();
    let place = fs::metadata(dir).map_or((0, 0), |m| (m.dev(), m.ino()));
    let text = format!(
        "{} {} {} {:?}",
        machine.trim(),
        place.0,
        place.1,
        dir.as_os_str().as_bytes()
    );
    blake3::hash(text.as_bytes()).to_hex().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::share::{Capability, OwnerSeed, Suite};

    fn record() -> FolderRecord {
        let owner = OwnerSeed::from_bytes([7; 32]);
        let link = Link::new(owner.folder(), Suite::Blake3, Capability::Owner(owner));
        FolderRecord::new("photos".to_owned(), &link)
    }

    #[test]
    fn a_clean_stop_keeps_the_incarnation_and_a_crash_or_copy_does_not() {
        let dir = tempfile::tempdir().unwrap();
        let mut r = record();
        let first = r.take_incarnation(dir.path()).unwrap();
        r.release_incarnation(dir.path()).unwrap();
        let mut r = FolderRecord::load(dir.path()).unwrap();
        let second = r.take_incarnation(dir.path()).unwrap();
        assert_eq!(first, second);
        let mut crashed = FolderRecord::load(dir.path()).unwrap();
        let third = crashed.take_incarnation(dir.path()).unwrap();
        assert_ne!(second, third);
        crashed.release_incarnation(dir.path()).unwrap();
        let copy = tempfile::tempdir().unwrap();
        fs::copy(dir.path().join(FILE), copy.path().join(FILE)).unwrap();
        let mut copied = FolderRecord::load(copy.path()).unwrap();
        assert_ne!(copied.take_incarnation(copy.path()).unwrap(), third);
    }

    #[test]
    fn a_newer_or_damaged_file_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(FILE), br#"{"version": 2, "what": 1}"#).unwrap();
        assert!(matches!(
            FolderRecord::load(dir.path()),
            Err(RecordError::Newer { .. })
        ));
        fs::write(dir.path().join(FILE), b"{").unwrap();
        assert!(matches!(
            FolderRecord::load(dir.path()),
            Err(RecordError::Json { .. })
        ));
    }
}
