//! What edits by others have replaced or removed, as it lies in a home: to be looked at and taken back. It needs no
//! daemon: a file that comes back is one the user has made, and is found by the next scan.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use rustix::fs::{CWD, RenameFlags};

use super::marker::OWN_DIR;
use super::places::{DISPLACED, own_name};
use super::write::shown_name;

/// One thing that was displaced.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Displaced {
    /// Different for each in a home.
    pub number: u64,
    /// The name it had; its directory is not known.
    pub name: Vec<u8>,
    pub is_dir: bool,
    /// Bytes.
    pub size: u64,
    /// When it was last written.
    pub modified: SystemTime,
    path: PathBuf,
}

/// What lies among the displaced of the home `dir`, oldest number first.
pub fn list(dir: &Path) -> io::Result<Vec<Displaced>> {
    let own = own_name(DISPLACED).unwrap_or_default();
    let entries = match fs::read_dir(dir.join(OWN_DIR).join(own)) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut out = Vec::new();
    for entry in entries {
        let entry = entry?;
        let name = entry.file_name();
        let name = name.as_bytes();
        let number = name.split(|byte| *byte == b'-').next().unwrap_or_default();
        let number = std::str::from_utf8(number)
            .ok()
            .and_then(|n| n.parse().ok());
        let Some(number) = number else { continue };
        let meta = entry.metadata()?;
        out.push(Displaced {
            number,
            name: shown_name(name).to_vec(),
            is_dir: meta.is_dir(),
            size: meta.len(),
            modified: meta.modified()?,
            path: entry.path(),
        });
    }
    out.sort_by_key(|one| one.number);
    Ok(out)
}

impl Displaced {
    /// Puts it back into the home `dir` as `name`, or under its own name at the top. Fails with `AlreadyExists` rather
    /// than replace anything. Returns where it is.
    pub fn restore(&self, dir: &Path, name: Option<&Path>) -> io::Result<PathBuf> {
        let name = name.unwrap_or_else(|| Path::new(OsStr::from_bytes(&self.name)));
        let to = dir.join(name);
        rustix::fs::renameat_with(CWD, &self.path, CWD, &to, RenameFlags::NOREPLACE)?;
        Ok(to)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_displaced_is_listed_and_comes_back_but_replaces_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let own = dir.path().join(".ccbt/displaced");
        assert_eq!(list(dir.path()).unwrap(), []);
        fs::create_dir_all(&own).unwrap();
        fs::write(own.join("12-b-c.txt"), b"twelve").unwrap();
        fs::write(own.join("3-a"), b"three").unwrap();
        fs::write(own.join("strange"), b"").unwrap();
        let found = list(dir.path()).unwrap();
        let names: Vec<(u64, &[u8])> = found.iter().map(|d| (d.number, &d.name[..])).collect();
        assert_eq!(names, [(3, &b"a"[..]), (12, b"b-c.txt")]);
        fs::write(dir.path().join("a"), b"mine").unwrap();
        let taken = found[0].restore(dir.path(), None).unwrap_err();
        assert_eq!(taken.kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(fs::read(dir.path().join("a")).unwrap(), b"mine");
        found[0]
            .restore(dir.path(), Some(Path::new("a.old")))
            .unwrap();
        assert_eq!(fs::read(dir.path().join("a.old")).unwrap(), b"three");
        found[1].restore(dir.path(), None).unwrap();
        assert_eq!(fs::read(dir.path().join("b-c.txt")).unwrap(), b"twelve");
        assert_eq!(list(dir.path()).unwrap(), []);
    }
}
