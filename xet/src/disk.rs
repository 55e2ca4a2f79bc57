//! The file operations the store needs, as a trait: [`RealDisk`] is the operating system,
//! [`MemDisk`] a fake that keeps only what was synced, so that tests can crash it anywhere.
//!
//! Durability is the strict reading of POSIX: written bytes survive a crash once the file was
//! synced, and a created, renamed or removed name once its directory was synced. Nothing else does.

mod mem;
mod real;

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

pub use mem::MemDisk;
pub use real::RealDisk;

/// How a file is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenMode {
    /// The file must exist; it is only read.
    Read,
    /// The file must exist; it is read and written.
    Write,
    /// Created empty, or emptied if it exists; read and written.
    Create,
}

/// A directory tree of files.
pub trait Disk: fmt::Debug + Send + Sync {
    /// Opens a file. Fails with `NotFound` where `mode` needs it to exist.
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Box<dyn DiskFile>>;

    /// Renames a file over whatever has the new name. Durable once the directory is synced.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Removes a file's name. Open handles stay usable.
    fn remove(&self, path: &Path) -> io::Result<()>;

    /// The paths of the files directly inside `dir`, sorted.
    fn list(&self, dir: &Path) -> io::Result<Vec<PathBuf>>;

    /// Creates a directory and its missing parents, durably. An existing one is not an error.
    fn create_dir(&self, dir: &Path) -> io::Result<()>;

    /// Makes names created, renamed or removed directly inside `dir` durable.
    fn sync_dir(&self, dir: &Path) -> io::Result<()>;

    /// How long ago a file was last written. Zero if the clock was set back since.
    fn age(&self, path: &Path) -> io::Result<Duration>;
}

/// Whether a read failed because these bytes are not to be had from the drive: what lies there is as good as damaged,
/// and what lies elsewhere is not. Nothing of the kind is a missing file, a missing right or a lack of memory.
pub(crate) fn is_unreadable(error: &io::Error) -> bool {
    use rustix::io::Errno;
    let bad_media = [Errno::IO, Errno::BADMSG, Errno::UCLEAN];
    error.kind() == io::ErrorKind::UnexpectedEof
        || Errno::from_io_error(error).is_some_and(|errno| bad_media.contains(&errno))
}

/// An open file. All positions are explicit, so one handle serves many threads.
pub trait DiskFile: fmt::Debug + Send + Sync {
    /// Fills `buf` from `offset`. Fails with `UnexpectedEof` where the file ends before.
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()>;

    /// Writes the parts one after the other from `offset`. After an error any prefix of them, or
    /// any mixture of old and new bytes in that range, may be in the file.
    fn write_at(&self, offset: u64, parts: &[&[u8]]) -> io::Result<()>;

    /// Length in bytes.
    fn len(&self) -> io::Result<u64>;

    /// True if the file has no bytes.
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }

    /// Cuts the file or extends it with zeros.
    fn set_len(&self, len: u64) -> io::Result<()>;

    /// Makes content and length durable (`fdatasync`).
    fn sync(&self) -> io::Result<()>;
}

#[cfg(test)]
mod tests;
