//! The state directory: where one daemon keeps its keys, store, catalogue and logs.
//!
//! It is private (0700), belongs to one daemon at a time (a lock on the file `lock`, which the kernel drops with the
//! process), and says which version of ccbt's formats it holds (the file `version`).

use std::fs::{DirBuilder, File, OpenOptions, Permissions, TryLockError};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use ccbt_mount::MountId;

use super::killed;
use crate::api::{ApiError, ErrorKind, escape};

/// The version this program writes and reads.
pub const STATE_VERSION: u32 = 1;

/// Held by the daemon; its lines are the daemon's process id and the mounts it has.
pub const LOCK_FILE: &str = "lock";
const VERSION_FILE: &str = "version";
const SOCKET_FILE: &str = "api.sock";
const TOKEN_FILE: &str = "api.token";
/// Where a daemon in the background logs.
pub const LOG_FILE: &str = "ccbt.log";

/// A state directory that exists and that this version understands.
#[derive(Debug)]
pub struct StateDir {
    path: PathBuf,
    /// Locked while this is held.
    lock: Option<File>,
}

/// Why a state directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    #[error("neither $HOME nor $XDG_DATA_HOME is set")]
    NoHome,
    #[error("cannot use the state directory {}: {error}", path.display())]
    Io { path: PathBuf, error: io::Error },
    #[error("the state directory {} is not a directory", path.display())]
    NotDirectory { path: PathBuf },
    #[error("the state directory {} belongs to user {uid}", path.display())]
    Foreign { path: PathBuf, uid: u32 },
    #[error("others can write to the state directory {}", path.display())]
    Writable { path: PathBuf },
    #[error("the state directory {} was written by a newer ccbt (version {found}, this one knows {STATE_VERSION})", path.display())]
    Newer { path: PathBuf, found: u32 },
    #[error("the state directory {} was written by an older ccbt (version {found}, this one reads {STATE_VERSION})", path.display())]
    Older { path: PathBuf, found: u32 },
    #[error("the file {} does not hold a version", path.display())]
    BadVersion { path: PathBuf },
    #[error("the state directory {} is in use by {}", path.display(), holder(*pid))]
    InUse { path: PathBuf, pid: Option<u32> },
    #[error("the daemon that used the state directory {} was killed but cannot end: {error}", path.display())]
    Stuck {
        path: PathBuf,
        error: ccbt_mount::UnmountError,
    },
}

fn holder(pid: Option<u32>) -> String {
    pid.map_or_else(
        || "another daemon".into(),
        |pid| format!("the daemon with process id {pid}"),
    )
}

impl From<StateError> for ApiError {
    fn from(error: StateError) -> Self {
        let (kind, hint) = match &error {
            StateError::NoHome => (ErrorKind::Usage, "name a directory with --state"),
            StateError::Io { path, error } => {
                let path = escape(path.as_os_str().as_encoded_bytes());
                let what = format_args!("cannot use the state directory {path}");
                let error = Self::io(what, error);
                let hint = match error.kind {
                    ErrorKind::NoSpace => "make room on its disk, or choose another with --state",
                    _ => "check who may read and write it, or choose another with --state",
                };
                return error.hint(hint);
            }
            StateError::NotDirectory { .. } => {
                (ErrorKind::Usage, "choose another place with --state")
            }
            StateError::Foreign { .. } => (
                ErrorKind::Denied,
                "run ccbt as that user, or choose another directory with --state",
            ),
            StateError::Writable { .. } => (
                ErrorKind::Refused,
                "it holds keys: take the permission away with `chmod go-w`, or choose another with --state",
            ),
            StateError::Newer { .. } => (
                ErrorKind::Refused,
                "install that version of ccbt, or choose another directory with --state",
            ),
            StateError::Older { .. } => (
                ErrorKind::Refused,
                "use that version of ccbt for it, or choose another directory with --state",
            ),
            StateError::BadVersion { .. } => (
                ErrorKind::Io,
                "restore the file from a backup, or choose another directory with --state",
            ),
            StateError::Stuck { .. } => (ErrorKind::Busy, "then start ccbt again"),
            StateError::InUse { .. } => (
                ErrorKind::Busy,
                "stop it with `ccbt daemon stop`, or choose another with --state",
            ),
        };
        Self::new(kind, &error).hint(hint)
    }
}

impl StateDir {
    /// Where the state is kept when no directory is named: `ccbt` in the XDG data directory.
    pub fn default_path() -> Result<PathBuf, StateError> {
        use etcetera::BaseStrategy;
        let base = etcetera::choose_base_strategy().map_err(|_| StateError::NoHome)?;
        Ok(base.data_dir().join("ccbt"))
    }

    /// Opens the directory if it is there, and changes nothing.
    pub fn find(path: &Path) -> Result<Option<Self>, StateError> {
        let path = absolute(path)?;
        match std::fs::metadata(&path) {
            Ok(meta) if !meta.is_dir() => return Err(StateError::NotDirectory { path }),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(StateError::Io { path, error }),
        }
        read_version(&path, STATE_VERSION)?;
        Ok(Some(Self { path, lock: None }))
    }

    /// Opens the directory for a daemon: creates it if needed, checks that it is safe, and locks it.
    pub fn lock(path: &Path) -> Result<Self, StateError> {
        let path = absolute(path)?;
        create(&path)?;
        let version = read_version(&path, STATE_VERSION)?;
        let lock = take_lock(&path)?;
        if version.is_none() {
            write_version(&path).map_err(|error| StateError::Io {
                path: path.clone(),
                error,
            })?;
        }
        Ok(Self {
            path,
            lock: Some(lock),
        })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn is_locked(&self) -> bool {
        self.lock.is_some()
    }

    /// The API's unix socket.
    pub fn socket(&self) -> PathBuf {
        self.path.join(SOCKET_FILE)
    }

    /// The API's token for TCP.
    pub fn token_file(&self) -> PathBuf {
        self.path.join(TOKEN_FILE)
    }

    pub fn log_file(&self) -> PathBuf {
        self.path.join(LOG_FILE)
    }

    /// Notes which mounts the daemon that locked this has, so that they can be [ended](Self::end_killed_holder) after it
    /// was killed. Replaces what was noted before.
    pub fn note_mounts(&self, mounts: &[MountId]) -> io::Result<()> {
        match &self.lock {
            Some(lock) => killed::write_holder(lock, mounts),
            None => Ok(()),
        }
    }

    /// Lets a daemon end that was killed and cannot (see [`killed`]), by aborting its mounts. Takes seconds then, and no time
    /// otherwise. A daemon that is alive is left alone.
    pub fn end_killed_holder(&self) -> Result<(), StateError> {
        let Ok(file) = File::open(self.path.join(LOCK_FILE)) else {
            return Ok(());
        };
        killed::end_holder(&file).map_err(|error| StateError::Stuck {
            path: self.path.clone(),
            error,
        })
    }

    /// Whether some daemon holds the directory now, and which.
    pub fn holder(&self) -> Option<Option<u32>> {
        let file = File::open(self.path.join(LOCK_FILE)).ok()?;
        match file.try_lock_shared() {
            Err(TryLockError::WouldBlock) => {
                Some(killed::read_holder(&file).map(|holder| holder.pid))
            }
            _ => None,
        }
    }
}

/// The process keeps one state directory whatever its working directory becomes.
fn absolute(path: &Path) -> Result<PathBuf, StateError> {
    std::path::absolute(path).map_err(|error| StateError::Io {
        path: path.to_path_buf(),
        error,
    })
}

/// Makes the directory private if it is new or empty. One with other things in it is left as it is: it may be somebody's
/// home, or hold the log of the script that runs us. It must only not be writable by others.
fn create(path: &Path) -> Result<(), StateError> {
    let io = |error| StateError::Io {
        path: path.to_path_buf(),
        error,
    };
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(|error| match error.kind() {
            io::ErrorKind::AlreadyExists => StateError::NotDirectory {
                path: path.to_path_buf(),
            },
            _ => io(error),
        })?;
    let meta = std::fs::metadata(path).map_err(io)?;
    if meta.uid() != rustix::process::geteuid().as_raw() {
        return Err(StateError::Foreign {
            path: path.to_path_buf(),
            uid: meta.uid(),
        });
    }
    if meta.mode() & 0o077 == 0 {
        return Ok(());
    }
    if std::fs::read_dir(path).map_err(io)?.next().is_none() {
        return std::fs::set_permissions(path, Permissions::from_mode(0o700)).map_err(io);
    }
    if meta.mode() & 0o022 != 0 {
        return Err(StateError::Writable {
            path: path.to_path_buf(),
        });
    }
    Ok(())
}

/// The version in the directory, if it is the one that this program `reads`: there is no older one it could migrate.
fn read_version(path: &Path, reads: u32) -> Result<Option<u32>, StateError> {
    let file = path.join(VERSION_FILE);
    let bytes = match read_short(&file) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => {
            return Err(StateError::Io {
                path: path.to_path_buf(),
                error,
            });
        }
    };
    let number = std::str::from_utf8(&bytes)
        .ok()
        .and_then(|text| text.trim().parse().ok());
    match number {
        None | Some(0) => Err(StateError::BadVersion { path: file }),
        Some(found) if found > reads => Err(StateError::Newer {
            path: path.to_path_buf(),
            found,
        }),
        Some(found) if found < reads => Err(StateError::Older {
            path: path.to_path_buf(),
            found,
        }),
        Some(found) => Ok(Some(found)),
    }
}

/// Written aside, synced and renamed, so it is whole or absent.
fn write_version(path: &Path) -> io::Result<()> {
    let aside = path.join("version.new");
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&aside)?;
    writeln!(file, "{STATE_VERSION}")?;
    file.sync_all()?;
    std::fs::rename(&aside, path.join(VERSION_FILE))?;
    File::open(path)?.sync_all()
}

fn take_lock(path: &Path) -> Result<File, StateError> {
    let io = |error| StateError::Io {
        path: path.to_path_buf(),
        error,
    };
    let mut options = OpenOptions::new();
    options
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600);
    let file = options.open(path.join(LOCK_FILE)).map_err(io)?;
    let mut locked = try_lock_briefly(&file);
    if matches!(locked, Err(TryLockError::WouldBlock)) {
        killed::end_holder(&file).map_err(|error| StateError::Stuck {
            path: path.to_path_buf(),
            error,
        })?;
        locked = try_lock_briefly(&file);
    }
    match locked {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            return Err(StateError::InUse {
                path: path.to_path_buf(),
                pid: killed::read_holder(&file).map(|holder| holder.pid),
            });
        }
        Err(TryLockError::Error(error)) => return Err(io(error)),
    }
    killed::detach_left(&file);
    killed::write_holder(&file, &[]).map_err(io)?;
    Ok(file)
}

/// [`StateDir::holder`] holds the lock for an instant to see whether it is free; that must not look like a daemon.
fn try_lock_briefly(file: &File) -> Result<(), TryLockError> {
    for _ in 0..5 {
        match file.try_lock() {
            Err(TryLockError::WouldBlock) => std::thread::sleep(Duration::from_millis(10)),
            result => return result,
        }
    }
    file.try_lock()
}

/// The file holds one number; whatever follows is not ours.
fn read_short(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(64).read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(path: &Path) -> u32 {
        std::fs::metadata(path).unwrap().mode() & 0o777
    }

    #[test]
    fn a_new_directory_is_private_locked_and_versioned() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/state");
        assert!(StateDir::find(&path).unwrap().is_none());
        let state = StateDir::lock(&path).unwrap();
        assert_eq!(mode(&path), 0o700);
        assert_eq!(
            std::fs::read_to_string(path.join("version")).unwrap(),
            "1\n"
        );
        assert_eq!(state.holder(), Some(Some(std::process::id())));
        let error = StateDir::lock(&path).unwrap_err();
        assert!(
            matches!(error, StateError::InUse { pid: Some(_), .. }),
            "{error}"
        );
        drop(state);
        assert_eq!(StateDir::find(&path).unwrap().unwrap().holder(), None);
        StateDir::lock(&path).unwrap();
    }

    #[test]
    fn an_empty_directory_is_made_private_and_a_used_one_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::set_permissions(dir.path(), Permissions::from_mode(0o777)).unwrap();
        drop(StateDir::lock(dir.path()).unwrap());
        assert_eq!(mode(dir.path()), 0o700);

        std::fs::set_permissions(dir.path(), Permissions::from_mode(0o755)).unwrap();
        drop(StateDir::lock(dir.path()).unwrap());
        assert_eq!(mode(dir.path()), 0o755);

        std::fs::set_permissions(dir.path(), Permissions::from_mode(0o1777)).unwrap();
        let error = StateDir::lock(dir.path()).unwrap_err();
        assert_eq!(ApiError::from(error).kind, ErrorKind::Refused);
    }

    #[test]
    fn a_version_that_is_newer_or_garbage_is_refused_and_untouched() {
        for (text, kind) in [
            ("2\n", ErrorKind::Refused),
            ("x", ErrorKind::Io),
            ("", ErrorKind::Io),
        ] {
            let dir = tempfile::tempdir().unwrap();
            std::fs::write(dir.path().join("version"), text).unwrap();
            for error in [
                StateDir::lock(dir.path()).err(),
                StateDir::find(dir.path()).err(),
            ] {
                assert_eq!(ApiError::from(error.unwrap()).kind, kind);
            }
            assert_eq!(
                std::fs::read_to_string(dir.path().join("version")).unwrap(),
                text
            );
        }
    }

    #[test]
    fn an_older_version_is_refused_with_a_sentence() {
        let dir = tempfile::tempdir().unwrap();
        drop(StateDir::lock(dir.path()).unwrap());
        let next = STATE_VERSION + 1;
        let error = read_version(dir.path(), next).unwrap_err();
        assert!(matches!(
            error,
            StateError::Older {
                found: STATE_VERSION,
                ..
            }
        ));
        let error = ApiError::from(error);
        assert_eq!(error.kind, ErrorKind::Refused);
        let says = format!("written by an older ccbt (version {STATE_VERSION}");
        assert!(error.message.contains(&says), "{}", error.message);
        assert!(error.hint.is_some());
        assert_eq!(
            read_version(dir.path(), STATE_VERSION).unwrap(),
            Some(STATE_VERSION)
        );
    }

    #[test]
    fn a_file_in_its_place_is_named() {
        let file = tempfile::NamedTempFile::new().unwrap();
        for error in [
            StateDir::lock(file.path()).err(),
            StateDir::find(file.path()).err(),
        ] {
            assert!(matches!(error.unwrap(), StateError::NotDirectory { .. }));
        }
    }
}
