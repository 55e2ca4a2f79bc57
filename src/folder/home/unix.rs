//! The real file system of a home, for writing: system calls relative to open directories.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use rustix::fs::{
    AtFlags, Mode, OFlags, RawMode, RenameFlags, Timespec, Timestamps, UTIME_OMIT, XattrFlags,
};
use rustix::io::Errno;

use super::base::FileTime;
use super::files::{HomeFiles, found, xattrs};
use super::fs::{Attributes, HomeFs, RenameHow};
use super::plan::{Found, FoundKind};
use crate::folder::state::Xattrs;

impl HomeFs for HomeFiles {
    type Dir = OwnedFd;
    type File = OwnedFd;

    fn open_dir(&self, path: &[u8]) -> io::Result<OwnedFd> {
        // The method that scans use.
        Self::open_dir(self, path)
    }

    fn stat_dir(&self, dir: &OwnedFd) -> io::Result<Found> {
        Ok(found(&rustix::fs::fstat(dir)?))
    }

    fn stat(&self, dir: &OwnedFd, name: &[u8]) -> io::Result<Found> {
        let stat = rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)?;
        Ok(found(&stat))
    }

    fn create(&self, dir: &OwnedFd, name: &[u8]) -> io::Result<OwnedFd> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW;
        let mode = Mode::from_raw_mode(0o600);
        let file = rustix::fs::openat(dir, name, flags | OFlags::CLOEXEC, mode)?;
        if let Some((uid, gid)) = self.owner() {
            std::os::unix::fs::fchown(&file, Some(uid), Some(gid))?;
        }
        Ok(file)
    }

    fn append(&self, file: &mut OwnedFd, bytes: &[u8]) -> io::Result<()> {
        let mut left = bytes;
        while !left.is_empty() {
            match rustix::io::write(&*file, left) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(len) => left = left.get(len..).unwrap_or_default(),
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    fn finish(&self, file: OwnedFd, attributes: &Attributes) -> io::Result<Found> {
        dress(&file, attributes)?;
        rustix::fs::fsync(&file)?;
        Ok(found(&rustix::fs::fstat(&file)?))
    }

    fn symlink(&self, dir: &OwnedFd, name: &[u8], target: &Bytes) -> io::Result<()> {
        rustix::fs::symlinkat(&target[..], dir, name)?;
        self.give(dir, name)
    }

    fn mkdir(&self, dir: &OwnedFd, name: &[u8]) -> io::Result<()> {
        rustix::fs::mkdirat(dir, name, Mode::from_raw_mode(0o700))?;
        self.give(dir, name)
    }

    fn set_attributes(
        &self,
        dir: &OwnedFd,
        name: &[u8],
        attributes: &Attributes,
    ) -> io::Result<()> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = rustix::fs::openat(dir, name, flags, Mode::empty())?;
        dress(&file, attributes)
    }

    fn rename(
        &self,
        from: (&OwnedFd, &[u8]),
        to: (&OwnedFd, &[u8]),
        how: RenameHow,
    ) -> io::Result<()> {
        let flags = match how {
            RenameHow::NoReplace => RenameFlags::NOREPLACE,
            RenameHow::Exchange => RenameFlags::EXCHANGE,
        };
        match rustix::fs::renameat_with(from.0, from.1, to.0, to.1, flags) {
            Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => match how {
                RenameHow::NoReplace => rename_in_steps(from, to),
                RenameHow::Exchange => {
                    self.no_exchange.store(true, Ordering::Relaxed);
                    Err(io::ErrorKind::Unsupported.into())
                }
            },
            renamed => Ok(renamed?),
        }
    }

    fn can_exchange(&self) -> bool {
        !self.no_exchange.load(Ordering::Relaxed)
    }

    fn unlink(&self, dir: &OwnedFd, name: &[u8]) -> io::Result<()> {
        Ok(rustix::fs::unlinkat(dir, name, AtFlags::empty())?)
    }

    fn rmdir(&self, dir: &OwnedFd, name: &[u8]) -> io::Result<()> {
        Ok(rustix::fs::unlinkat(dir, name, AtFlags::REMOVEDIR)?)
    }

    fn sync_dir(&self, dir: &OwnedFd) -> io::Result<()> {
        Ok(rustix::fs::fsync(dir)?)
    }
}

impl HomeFiles {
    /// What root makes belongs to who owns the home.
    fn owner(&self) -> Option<(u32, u32)> {
        rustix::process::geteuid()
            .is_root()
            .then_some(self.root_owner)
    }

    fn give(&self, dir: &OwnedFd, name: &[u8]) -> io::Result<()> {
        let Some((uid, gid)) = self.owner() else {
            return Ok(());
        };
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let made = rustix::fs::openat(dir, name, flags, Mode::empty())?;
        let (uid, gid) = (
            rustix::fs::Uid::from_raw(uid),
            rustix::fs::Gid::from_raw(gid),
        );
        rustix::fs::chownat(&made, "", Some(uid), Some(gid), AtFlags::EMPTY_PATH)?;
        Ok(())
    }
}

/// Where the file system cannot rename without replacing: a second name, which is refused if there is something, then
/// the first goes. Where there are no second names, or for a directory, looking first has to do.
fn rename_in_steps(from: (&OwnedFd, &[u8]), to: (&OwnedFd, &[u8])) -> io::Result<()> {
    let stat = rustix::fs::statat(from.0, from.1, AtFlags::SYMLINK_NOFOLLOW)?;
    if found(&stat).kind != FoundKind::Dir {
        match rustix::fs::linkat(from.0, from.1, to.0, to.1, AtFlags::empty()) {
            Ok(()) => return Ok(rustix::fs::unlinkat(from.0, from.1, AtFlags::empty())?),
            Err(Errno::PERM | Errno::OPNOTSUPP | Errno::NOSYS) => {}
            Err(error) => return Err(error.into()),
        }
    }
    match rustix::fs::statat(to.0, to.1, AtFlags::SYMLINK_NOFOLLOW) {
        Err(Errno::NOENT) => Ok(rustix::fs::renameat(from.0, from.1, to.0, to.1)?),
        Ok(_) => Err(io::ErrorKind::AlreadyExists.into()),
        Err(error) => Err(error.into()),
    }
}

fn dress(file: &OwnedFd, attributes: &Attributes) -> io::Result<()> {
    if let Some(wanted) = &attributes.xattrs {
        set_xattrs(file, wanted)?;
    }
    if let Some(mode) = attributes.mode {
        let mode = Mode::from_raw_mode(RawMode::from(mode & 0o777));
        match rustix::fs::fchmod(file, mode) {
            // A file system without modes.
            Ok(()) | Err(Errno::PERM | Errno::OPNOTSUPP) => {}
            Err(error) => return Err(error.into()),
        }
    }
    if let Some(FileTime { secs, nanos }) = attributes.mtime {
        let times = Timestamps {
            last_access: Timespec {
                tv_sec: 0,
                tv_nsec: UTIME_OMIT,
            },
            last_modification: Timespec {
                tv_sec: secs,
                tv_nsec: nanos.into(),
            },
        };
        rustix::fs::futimens(file, &times)?;
    }
    Ok(())
}

fn set_xattrs(file: &OwnedFd, wanted: &Xattrs) -> io::Result<()> {
    let old = xattrs(file)?;
    for name in old.keys().filter(|name| !wanted.contains_key(*name)) {
        rustix::fs::fremovexattr(file, &name[..])?;
    }
    // Only what belongs to users is taken from peers.
    let own = wanted.iter().filter(|(name, _)| name.starts_with(b"user."));
    for (name, value) in own.filter(|(name, value)| old.get(*name) != Some(value)) {
        match rustix::fs::fsetxattr(file, &name[..], value, XattrFlags::empty()) {
            // A file system without attributes, or without room for this one.
            Ok(()) | Err(Errno::OPNOTSUPP | Errno::TOOBIG | Errno::NOSPC | Errno::RANGE) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}
