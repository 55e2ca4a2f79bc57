//! What edits by others have replaced or removed, as it lies in a home: to be looked at and taken back. A file that comes
//! back is one the user has made, and is found by the next scan. Where the things came from is in the folder's table, so
//! only an open [`Home`] knows it; without one they are known by their names.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use bytes::Bytes;
use rustix::fs::{AtFlags, CWD, Dir, Mode, RenameFlags};

use super::Home;
use super::base::{At, Row};
use super::fs::{HomeFs, RenameHow, TEMP_PREFIX};
use super::ledger::LedgerError;
use super::marker::OWN_DIR;
use super::origin::{self, Origin, number_of};
use super::places::{DISPLACED, own_name};
use super::plan::{Found, FoundKind, join};
use super::write::shown_name;
use crate::folder::state::{Name, beside};

/// Names tried for what comes back to a name that is taken.
const BESIDE_MAX: usize = 999;

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
        let Some(number) = number_of(name) else {
            continue;
        };
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

/// One displaced thing of an open home.
#[derive(Debug, Clone)]
pub struct Lying {
    /// Different for each in a home; larger for what came later.
    pub number: u64,
    /// The name it lies under.
    pub(super) file: Bytes,
    pub found: Found,
    /// Of a file; what a directory holds is not counted.
    pub bytes: u64,
    /// None for what was left over by a crash.
    pub origin: Option<Origin>,
}

/// Why something does not come back.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    #[error("nothing was displaced under this number")]
    Unknown,
    #[error("the name is taken")]
    Taken,
    #[error("it cannot have this name")]
    BadName,
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error(transparent)]
    Ledger(#[from] LedgerError),
}

impl Lying {
    /// The name it had.
    pub fn name(&self) -> &[u8] {
        shown_name(&self.file)
    }

    /// Where it was, from the top of the home, or the name it had.
    pub fn path(&self) -> &[u8] {
        match &self.origin {
            Some(origin) => &origin.path,
            None => self.name(),
        }
    }

    pub fn is_dir(&self) -> bool {
        self.found.kind == FoundKind::Dir
    }
}

/// Where a displaced thing lies, from the top of the home.
pub(super) fn path_of(file: &[u8]) -> Vec<u8> {
    let own = own_name(DISPLACED).unwrap_or_default();
    join(&join(OWN_DIR.as_bytes(), own.as_bytes()), file)
}

impl Home {
    /// What lies among the displaced, in the order in which it came.
    pub fn displaced(&self) -> io::Result<Vec<Lying>> {
        let own = match self.open_displaced() {
            Ok(own) => own,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        let mut out = Vec::new();
        for entry in Dir::read_from(&own)? {
            let file = Bytes::copy_from_slice(entry?.file_name().to_bytes());
            let Some(number) = number_of(&file) else {
                continue;
            };
            let found = match rustix::fs::statat(&own, &file[..], AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) => self.inner.files.found(&stat),
                Err(rustix::io::Errno::NOENT) => continue,
                Err(error) => return Err(error.into()),
            };
            let origin = self.inner.ledger.row(&origin::key(&file));
            out.push(Lying {
                number,
                found,
                bytes: match found.kind {
                    FoundKind::File => found.stamp.size,
                    _ => 0,
                },
                origin: origin.and_then(|row| Origin::decode(&row).ok()),
                file,
            });
        }
        out.sort_by_key(|one| one.number);
        Ok(out)
    }

    pub(super) fn open_displaced(&self) -> io::Result<OwnedFd> {
        let own = own_name(DISPLACED).unwrap_or_default();
        let path = join(OWN_DIR.as_bytes(), own.as_bytes());
        self.inner.files.open_dir(&path)
    }

    /// Puts a displaced thing back to `path`, from the top of the home, or to where it was. Replaces nothing: with
    /// `is_beside` it gets a name like it that is free. Returns where it is.
    pub fn restore(
        &self,
        number: u64,
        path: Option<&[u8]>,
        is_beside: bool,
    ) -> Result<Vec<u8>, RestoreError> {
        // Nobody scans or writes the home meanwhile.
        let _scanner = self.inner.scanner.lock();
        let lying = self.displaced()?;
        let one = lying.into_iter().find(|one| one.number == number);
        let one = one.ok_or(RestoreError::Unknown)?;
        let path = path.unwrap_or_else(|| one.path()).to_vec();
        let (dir, name) = match path.iter().rposition(|byte| *byte == b'/') {
            Some(at) => (&path[..at], &path[at + 1..]),
            None => (&b""[..], &path[..]),
        };
        check_names(&path)?;
        let (own, parent) = (self.open_displaced()?, self.make_dir(dir)?);
        let files = &self.inner.files;
        let names = std::iter::once(Name::from(name));
        let more = (1..=BESIDE_MAX).map(|number| beside(name, "restored", number));
        for name in names.chain(more.filter(|_| is_beside)) {
            let to = (&parent, name.as_bytes());
            match files.rename((&own, &one.file[..]), to, RenameHow::NoReplace) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => continue,
                renamed => renamed?,
            }
            HomeFs::sync_dir(&**files, &parent)?;
            HomeFs::sync_dir(&**files, &own)?;
            self.forget_displaced(&one)?;
            return Ok(join(dir, name.as_bytes()));
        }
        Err(RestoreError::Taken)
    }

    /// It is the user's again.
    fn forget_displaced(&self, one: &Lying) -> Result<(), LedgerError> {
        let at = At {
            dir: DISPLACED,
            name: one.file.clone(),
        };
        let row: Option<Row> = self.inner.row(&at);
        self.inner.ledger.update(&mut |txn| {
            txn.set_row(at.key(), None);
            txn.set_row(origin::key(&one.file), None);
        })?;
        row.iter().for_each(|row| self.let_go(row));
        Ok(())
    }

    /// Opens a directory, made with those above it if it is missing.
    fn make_dir(&self, path: &[u8]) -> io::Result<OwnedFd> {
        let files = &self.inner.files;
        let ends = path.iter().enumerate().filter(|(_, byte)| **byte == b'/');
        let ends = ends.map(|(at, _)| at).chain([path.len()]);
        let mut parent = files.open_dir(b"")?;
        for end in ends.filter(|_| !path.is_empty()) {
            let dir = path.get(..end).unwrap_or_default();
            let name = dir.rsplit(|byte| *byte == b'/').next().unwrap_or(dir);
            parent = match files.open_dir(dir) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    files.mkdir(&parent, name)?;
                    HomeFs::sync_dir(&**files, &parent)?;
                    let made = files.open_dir(dir)?;
                    rustix::fs::fchmod(&made, Mode::from_raw_mode(0o755))?;
                    made
                }
                opened => opened?,
            };
        }
        Ok(parent)
    }
}

/// Whether everything on the way is a name that a user may give, and none of ours.
fn check_names(path: &[u8]) -> Result<(), RestoreError> {
    let is_ours = |name: &[u8]| name.starts_with(TEMP_PREFIX) || name == OWN_DIR.as_bytes();
    let mut names = path.split(|byte| *byte == b'/');
    match names.any(|name| !Name::is_valid(name) || is_ours(name)) {
        true => Err(RestoreError::BadName),
        false => Ok(()),
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
