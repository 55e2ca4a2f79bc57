//! The log file: appended to, and moved aside when it is big, so a daemon that runs for years fills no disk.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use parking_lot::{Mutex, MutexGuard};
use tracing_subscriber::fmt::MakeWriter;

/// A file this big becomes `NAME.old`, taking the place of the one before: at most twice this is kept.
const FILE_BYTES_MAX: u64 = 16 << 20;

/// One writer for all threads; an event is written whole under the lock.
#[derive(Debug)]
pub(super) struct LogFile(Mutex<Inner>);

#[derive(Debug)]
struct Inner {
    path: PathBuf,
    file: File,
    bytes: u64,
    bytes_max: u64,
}

impl LogFile {
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        Self::with_limit(path, FILE_BYTES_MAX)
    }

    fn with_limit(path: &Path, bytes_max: u64) -> io::Result<Self> {
        let file = append(path)?;
        let bytes = file.metadata()?.len();
        Ok(Self(Mutex::new(Inner {
            path: path.to_path_buf(),
            file,
            bytes,
            bytes_max,
        })))
    }
}

/// Logs name files and peers, so they are as private as the rest of the state.
fn append(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o600)
        .open(path)
}

impl Inner {
    fn rotate(&mut self) -> io::Result<()> {
        let mut old = self.path.clone().into_os_string();
        old.push(".old");
        std::fs::rename(&self.path, old)?;
        self.file = append(&self.path)?;
        self.bytes = 0;
        Ok(())
    }
}

pub(super) struct Line<'a>(MutexGuard<'a, Inner>);

impl Write for Line<'_> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        if self.0.bytes >= self.0.bytes_max {
            self.0.rotate()?;
        }
        let written = self.0.file.write(buf)?;
        self.0.bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.file.flush()
    }
}

impl<'a> MakeWriter<'a> for LogFile {
    type Writer = Line<'a>;

    fn make_writer(&'a self) -> Line<'a> {
        Line(self.0.lock())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_file_is_moved_aside_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ccbt.log");
        let log = LogFile::with_limit(&path, 10).unwrap();
        for line in ["first line\n", "second line\n", "third\n"] {
            log.make_writer().write_all(line.as_bytes()).unwrap();
        }
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "third\n");
        let old = dir.path().join("ccbt.log.old");
        assert_eq!(std::fs::read_to_string(old).unwrap(), "second line\n");
        let again = LogFile::with_limit(&path, 10).unwrap();
        again.make_writer().write_all(b"more\n").unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "third\nmore\n");
    }
}
