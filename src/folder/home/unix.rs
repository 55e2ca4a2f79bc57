//! The real file system of a home, for writing: system calls relative to open directories.

use std::io;
use std::num::NonZeroU64;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::Ordering;

use bytes::Bytes;
use rustix::fs::{
    Advice, AtFlags, FileType, Mode, OFlags, RawMode, RenameFlags, SeekFrom, StatVfsMountFlags,
    Timespec, Timestamps, UTIME_OMIT, XattrFlags,
};
use rustix::io::Errno;

use super::base::{FileTime, xattr_digest};
use super::caps::Caps;
use super::files::{HomeFiles, NewFile, xattrs};
use super::fs::{Attributes, HomeFs, Kept, RenameHow, Room};
use super::plan::Found;
use crate::folder::state::Xattrs;

/// After so many bytes of a file the disk starts to write them, so that syncing does not begin with all of them waiting.
const FLUSH_BYTES: u64 = 8 << 20;

/// Below this, writing a file anew takes no longer than proving what is in a clone.
const CLONE_BYTES_MIN: u64 = 1 << 20;

/// Below this a file is written once all of it is here: soon enough.
const NAMELESS_BYTES_MIN: u64 = 8 << 20;

/// From so many files on they are synced with one call for the whole file system: one commit of its journal instead of
/// one for each.
const SYNC_ALL_FROM: usize = 8;

impl HomeFs for HomeFiles {
    type Dir = OwnedFd;
    type File = NewFile;

    fn caps(&self) -> Caps {
        Self::caps(self)
    }

    fn room(&self) -> io::Result<Room> {
        let stat = rustix::fs::fstatvfs(self.root()?)?;
        Ok(Room {
            free: stat.f_bavail.saturating_mul(stat.f_frsize),
            is_read_only: stat.f_flag.contains(StatVfsMountFlags::RDONLY),
        })
    }

    fn open_dir(&self, path: &[u8]) -> io::Result<OwnedFd> {
        // The method that scans use.
        Self::open_dir(self, path)
    }

    fn stat_dir(&self, dir: &OwnedFd) -> io::Result<Found> {
        Ok(self.found(&rustix::fs::fstat(dir)?))
    }

    fn stat(&self, dir: &OwnedFd, name: &[u8]) -> io::Result<Found> {
        let stat = rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)?;
        Ok(self.found(&stat))
    }

    fn create(&self, dir: &OwnedFd, name: &[u8]) -> io::Result<NewFile> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW;
        let mode = Mode::from_raw_mode(0o600);
        let fd = rustix::fs::openat(dir, name, flags | OFlags::CLOEXEC, mode)?;
        self.new_file(fd)
    }

    fn nameless_from(&self) -> Option<u64> {
        (!self.no_nameless.load(Ordering::Relaxed)).then_some(NAMELESS_BYTES_MIN)
    }

    fn create_nameless(&self, dir: &OwnedFd) -> io::Result<NewFile> {
        let flags = OFlags::RDWR | OFlags::TMPFILE | OFlags::CLOEXEC;
        match rustix::fs::openat(dir, ".", flags, Mode::from_raw_mode(0o600)) {
            Err(error @ (Errno::OPNOTSUPP | Errno::ISDIR | Errno::INVAL)) => {
                self.no_nameless.store(true, Ordering::Relaxed);
                Err(error.into())
            }
            opened => self.new_file(opened?),
        }
    }

    fn give_name(&self, file: &NewFile, dir: &OwnedFd, name: &[u8]) -> io::Result<()> {
        // By its descriptor alone only those may who may read everything.
        let path = format!("/proc/self/fd/{}", file.fd.as_raw_fd());
        let flags = AtFlags::SYMLINK_FOLLOW;
        match rustix::fs::linkat(rustix::fs::CWD, path, dir, name, flags) {
            Err(error @ (Errno::NOENT | Errno::OPNOTSUPP | Errno::PERM)) => {
                self.no_nameless.store(true, Ordering::Relaxed);
                Err(error.into())
            }
            named => Ok(named?),
        }
    }

    fn append(&self, file: &mut NewFile, bytes: &[u8]) -> io::Result<()> {
        write_all(&file.fd, file.size, bytes)?;
        file.size += bytes.len() as u64;
        file.end = file.size;
        if file.size - file.flushed >= FLUSH_BYTES {
            // The one piece of advice that has dirty pages written and waits for nothing. Nobody relies on it.
            let len = NonZeroU64::new(file.size - file.flushed);
            let _told = rustix::fs::fadvise(&file.fd, file.flushed, len, Advice::DontNeed);
            file.flushed = file.size;
        }
        Ok(())
    }

    fn skip(&self, file: &mut NewFile, bytes: u64) -> io::Result<()> {
        let size = file.size.checked_add(bytes);
        file.size = size.ok_or(io::ErrorKind::FileTooLarge)?;
        Ok(())
    }

    fn clones_from(&self) -> Option<u64> {
        (!self.no_clones.load(Ordering::Relaxed)).then_some(CLONE_BYTES_MIN)
    }

    fn share_blocks(&self, dir: &OwnedFd, from: &[u8], file: &mut NewFile) -> io::Result<bool> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let Ok(from) = rustix::fs::openat(dir, from, flags, Mode::empty()) else {
            return Ok(false);
        };
        match rustix::fs::ioctl_ficlone(&file.fd, &from) {
            Ok(()) => {}
            Err(error @ (Errno::NOSPC | Errno::DQUOT | Errno::IO)) => return Err(error.into()),
            Err(error) => {
                // Others are about this file.
                let is_unknown = matches!(error, Errno::OPNOTSUPP | Errno::NOTTY | Errno::NOSYS);
                self.no_clones.fetch_or(is_unknown, Ordering::Relaxed);
                return Ok(false);
            }
        }
        let size = rustix::fs::fstat(&file.fd)?.st_size;
        file.size = u64::try_from(size).unwrap_or(0);
        (file.end, file.flushed) = (file.size, file.size);
        Ok(true)
    }

    fn read_at(&self, file: &NewFile, at: u64, buf: &mut [u8]) -> io::Result<usize> {
        let mut done = 0;
        while let Some(left) = buf.get_mut(done..).filter(|left| !left.is_empty()) {
            match rustix::io::pread(&file.fd, left, at + done as u64) {
                Ok(0) => break,
                Ok(len) => done += len,
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(done)
    }

    fn write_at(&self, file: &mut NewFile, at: u64, bytes: &[u8]) -> io::Result<()> {
        write_all(&file.fd, at, bytes)?;
        file.end = file.end.max(at + bytes.len() as u64);
        file.size = file.size.max(file.end);
        Ok(())
    }

    fn data_from(&self, file: &NewFile, at: u64) -> io::Result<u64> {
        match rustix::fs::seek(&file.fd, SeekFrom::Data(at)) {
            Err(Errno::NXIO) => Ok(u64::MAX),
            // Whatever has no holes has data everywhere.
            found => Ok(found.unwrap_or(at)),
        }
    }

    fn resize(&self, file: &mut NewFile, size: u64) -> io::Result<()> {
        if file.size != size {
            rustix::fs::ftruncate(&file.fd, size)?;
        }
        (file.size, file.end) = (size, size);
        Ok(())
    }

    fn finish(&self, file: &mut NewFile, attributes: &Attributes) -> io::Result<Kept> {
        if file.size > file.end {
            rustix::fs::ftruncate(&file.fd, file.size)?;
        }
        self.dress(&file.fd, attributes)
    }

    fn sync_files(&self, files: &[NewFile]) -> io::Result<()> {
        match files {
            [first, ..] if files.len() >= SYNC_ALL_FROM => Ok(rustix::fs::syncfs(&first.fd)?),
            _ => files
                .iter()
                .try_for_each(|file| Ok(rustix::fs::fsync(&file.fd)?)),
        }
    }

    fn symlink(&self, dir: &OwnedFd, name: &[u8], target: &Bytes) -> io::Result<()> {
        match rustix::fs::symlinkat(&target[..], dir, name) {
            Err(Errno::PERM | Errno::OPNOTSUPP | Errno::NOSYS) => {
                Err(io::ErrorKind::Unsupported.into())
            }
            made => {
                made?;
                self.give(dir, name)
            }
        }
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
    ) -> io::Result<Kept> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = rustix::fs::openat(dir, name, flags, Mode::empty())?;
        self.dress(&file, attributes)
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
            Err(Errno::NAMETOOLONG | Errno::ILSEQ) => Err(io::ErrorKind::InvalidFilename.into()),
            Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => match how {
                RenameHow::NoReplace => rename_in_steps(from, to).map_err(invalid_is_a_name),
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

    fn new_file(&self, fd: OwnedFd) -> io::Result<NewFile> {
        if let Some((uid, gid)) = self.owner() {
            match std::os::unix::fs::fchown(&fd, Some(uid), Some(gid)) {
                // A file system without owners.
                Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {}
                given => given?,
            }
        }
        Ok(NewFile {
            fd,
            size: 0,
            end: 0,
            flushed: 0,
        })
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
        match rustix::fs::chownat(&made, "", Some(uid), Some(gid), AtFlags::EMPTY_PATH) {
            // A file system without owners.
            Ok(()) | Err(Errno::PERM) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

fn write_all(file: &OwnedFd, at: u64, bytes: &[u8]) -> io::Result<()> {
    let (mut left, mut at) = (bytes, at);
    while !left.is_empty() {
        match rustix::io::pwrite(file, left, at) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(len) => {
                left = left.get(len..).unwrap_or_default();
                at += len as u64;
            }
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Nothing else is invalid about a plain rename of a file that is there.
fn invalid_is_a_name(error: io::Error) -> io::Error {
    match Errno::from_io_error(&error) {
        Some(Errno::INVAL | Errno::NAMETOOLONG | Errno::ILSEQ) => {
            io::ErrorKind::InvalidFilename.into()
        }
        _ => error,
    }
}

/// Where the file system cannot rename without replacing: a second name, which is refused if there is something, then
/// the first goes. Where there are no second names, or for a directory, looking first has to do.
fn rename_in_steps(from: (&OwnedFd, &[u8]), to: (&OwnedFd, &[u8])) -> io::Result<()> {
    let stat = rustix::fs::statat(from.0, from.1, AtFlags::SYMLINK_NOFOLLOW)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
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

impl HomeFiles {
    fn dress(&self, file: &OwnedFd, attributes: &Attributes) -> io::Result<Kept> {
        let caps = Self::caps(self);
        let kept = match &attributes.xattrs {
            Some(wanted) if caps.xattrs => set_xattrs(file, wanted)?,
            _ => xattrs(file)?,
        };
        if let Some(mode) = attributes.mode.filter(|_| caps.modes) {
            let mode = Mode::from_raw_mode(RawMode::from(mode & 0o777));
            match rustix::fs::fchmod(file, mode) {
                // A file of somebody else's, in a directory that is ours.
                Ok(()) | Err(Errno::PERM | Errno::OPNOTSUPP) => {}
                Err(error) => return Err(error.into()),
            }
        }
        if let Some(mtime) = attributes.mtime {
            set_mtime(file, mtime)?;
        }
        Ok(Kept {
            found: self.found(&rustix::fs::fstat(file)?),
            xattrs: xattr_digest(&kept),
        })
    }
}

fn set_mtime(file: &OwnedFd, FileTime { secs, nanos }: FileTime) -> io::Result<()> {
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
    Ok(rustix::fs::futimens(file, &times)?)
}

/// Returns the attributes that are there now.
fn set_xattrs(file: &OwnedFd, wanted: &Xattrs) -> io::Result<Xattrs> {
    let old = xattrs(file)?;
    if old == *wanted {
        return Ok(old);
    }
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
    xattrs(file)
}
