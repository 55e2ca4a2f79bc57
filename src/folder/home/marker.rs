//! The marker `.ccbt/home` in a home: which folder and device it belongs to. A directory without it is not the home,
//! whatever its path.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, FlockOperation, Mode, OFlags};
use rustix::io::Errno;

/// The directory at the root of a home that is ours and never published.
pub const OWN_DIR: &str = ".ccbt";

const FILE: &str = ".ccbt/home";
const NEW_FILE: &str = ".ccbt/home.new";

/// Locked by the daemon that has the home open.
const LOCK_FILE: &str = ".ccbt/lock";

/// Longest marker read: two lines of 80 bytes.
const BYTES_MAX: u64 = 256;

/// Who a directory is the home of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Marker {
    /// Public name of the folder, in hex.
    pub folder: String,
    /// The device, in hex.
    pub device: String,
}

/// Reads the marker below `root`, none if there is none. One that cannot be understood is nobody's we know.
pub fn read(root: &OwnedFd) -> io::Result<Option<Marker>> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let file = match rustix::fs::openat(root, FILE, flags, Mode::empty()) {
        Ok(file) => std::fs::File::from(file),
        Err(Errno::NOENT | Errno::NOTDIR) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let mut text = Vec::new();
    if file.take(BYTES_MAX).read_to_end(&mut text).is_err() {
        text.clear();
    }
    Ok(Some(Marker::parse(&text)))
}

impl Marker {
    /// What is not said is empty.
    pub(crate) fn parse(text: &[u8]) -> Self {
        let text = std::str::from_utf8(text).unwrap_or_default();
        let field = |name: &str| {
            let mut lines = text.lines();
            let line = lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
            line.unwrap_or_default().to_owned()
        };
        Self {
            folder: field("folder"),
            device: field("device"),
        }
    }
}

/// Writes the marker, whole or not at all.
pub fn write(root: &OwnedFd, marker: &Marker) -> io::Result<()> {
    match rustix::fs::mkdirat(root, OWN_DIR, Mode::from_raw_mode(0o700)) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(error) => return Err(error.into()),
    }
    let flags =
        OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = rustix::fs::openat(root, NEW_FILE, flags, Mode::from_raw_mode(0o600))?;
    let mut file = std::fs::File::from(file);
    write!(file, "folder {}\ndevice {}\n", marker.folder, marker.device)?;
    file.sync_all()?;
    rustix::fs::renameat(root, NEW_FILE, root, FILE)?;
    Ok(rustix::fs::fsync(root)?)
}

/// Takes the home for this process until what is returned is closed; none where nothing can be locked, as on a disk that
/// is read-only. Fails with `WouldBlock` if another has it.
pub(super) fn lock(root: &OwnedFd) -> io::Result<Option<OwnedFd>> {
    // A file that is open for writing would keep the disk from being made read-only.
    match lock_as(root, OFlags::RDONLY) {
        // On NFS only such a file can be locked.
        Err(Errno::BADF) => Ok(lock_as(root, OFlags::RDWR)?),
        locked => Ok(locked?),
    }
}

fn lock_as(root: &OwnedFd, how: OFlags) -> Result<Option<OwnedFd>, Errno> {
    let flags = how | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = match rustix::fs::openat(root, LOCK_FILE, flags, Mode::from_raw_mode(0o600)) {
        Ok(file) => file,
        Err(Errno::ROFS | Errno::NOSPC) => return Ok(None),
        Err(error) => return Err(error),
    };
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Some(file)),
        Err(Errno::NOLCK | Errno::OPNOTSUPP) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Removes the marker from the directory `path`, if it is this one.
pub fn remove_own(path: &Path, own: &Marker) -> io::Result<()> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = match rustix::fs::open(path, flags, Mode::empty()) {
        Ok(root) => root,
        Err(Errno::NOENT | Errno::NOTDIR) => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    match read(&root)? {
        Some(marker) if marker == *own => remove(root),
        _ => Ok(()),
    }
}

/// Removes the marker; the directory is no home any more. What else is in `.ccbt` stays.
pub fn remove(root: impl AsFd) -> io::Result<()> {
    for file in [FILE, LOCK_FILE] {
        match rustix::fs::unlinkat(&root, file, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(error) => return Err(error.into()),
        }
    }
    match rustix::fs::unlinkat(&root, OWN_DIR, AtFlags::REMOVEDIR) {
        Ok(()) | Err(Errno::NOENT | Errno::NOTEMPTY) => Ok(()),
        Err(error) => Err(error.into()),
    }
}
