//! The one table of errno numbers: what a [`VolumeError`] looks like to a program, and the few answers the adapter gives
//! without asking the volume.

use std::io;

use fuser::Errno;

use crate::VolumeError;

/// The request is not implemented and never will be on this mount: the kernel stops sending it or falls back.
pub(crate) const NOT_IMPLEMENTED: Errno = Errno::ENOSYS;
/// The buffer of a `getxattr` or `listxattr` is too small.
pub(crate) const BUFFER_TOO_SMALL: Errno = Errno::ERANGE;
/// The kernel's idea of a name is out of date: it looks the path up again and repeats the call.
pub(crate) const LOOK_UP_AGAIN: Errno = Errno::ESTALE;
/// An ioctl this file does not know.
pub(crate) const NO_SUCH_IOCTL: Errno = Errno::ENOTTY;

/// The errno a program sees for `error`.
pub(crate) fn errno(error: VolumeError) -> Errno {
    match error {
        VolumeError::NotFound => Errno::ENOENT,
        VolumeError::Exists => Errno::EEXIST,
        VolumeError::NotDirectory => Errno::ENOTDIR,
        VolumeError::IsDirectory => Errno::EISDIR,
        VolumeError::NotEmpty => Errno::ENOTEMPTY,
        VolumeError::ReadOnly => Errno::EROFS,
        VolumeError::NoSpace => Errno::ENOSPC,
        VolumeError::NameTooLong => Errno::ENAMETOOLONG,
        VolumeError::TooLarge => Errno::EFBIG,
        VolumeError::TooManyLinks => Errno::EMLINK,
        VolumeError::Invalid => Errno::EINVAL,
        VolumeError::NotPermitted => Errno::EPERM,
        VolumeError::Denied => Errno::EACCES,
        VolumeError::NoAttribute => Errno::NO_XATTR,
        VolumeError::ValueTooLong => Errno::E2BIG,
        VolumeError::NotSupported => Errno::EOPNOTSUPP,
        VolumeError::BadHandle => Errno::EBADF,
        VolumeError::Stale => Errno::ESTALE,
        VolumeError::NoSuchOffset => Errno::ENXIO,
        // ETIMEDOUT from read(2) is unknown to most programs; databases and version control handle EIO.
        VolumeError::TimedOut | VolumeError::Io => Errno::EIO,
    }
}

/// What a failed system call of the session means to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Failure {
    /// The process behind a FUSE mount is gone.
    Disconnected,
    /// A privilege is missing; a set-uid helper may have it.
    NotPermitted,
    /// The path is not a mount point.
    NotMounted,
    Missing,
    NotDirectory,
    Other,
}

/// Sorts the errors of `stat`, `mount` and `umount` into what can be done about them.
pub(crate) fn failure(error: &io::Error) -> Failure {
    use rustix::io::Errno as Os;
    match Os::from_io_error(error) {
        Some(Os::NOTCONN) => Failure::Disconnected,
        Some(Os::PERM | Os::ACCESS) => Failure::NotPermitted,
        Some(Os::INVAL) => Failure::NotMounted,
        Some(Os::NOENT | Os::NODEV | Os::NXIO) => Failure::Missing,
        Some(Os::NOTDIR) => Failure::NotDirectory,
        _ => Failure::Other,
    }
}
