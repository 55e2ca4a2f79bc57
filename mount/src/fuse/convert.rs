//! Between fuser's types and the volume's, in both directions.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use fuser::{FileAttr, FileType, INodeNo, OpenAccMode, OpenFlags, RenameFlags, Request, TimeOrNow};
use rustix::fs::{FallocateFlags, OFlags, XattrFlags};

use crate::{
    Allocate, Attr, Caller, Ino, Kind, OpenMode, RenameMode, Seek, SetTime, SetXattr, Time,
    VolumeError,
};

/// Bytes a program should read or write at once, as `stat` tells it.
const BLOCK_SIZE: u32 = 4096;

/// `SEEK_DATA` and `SEEK_HOLE` of `lseek(2)` on Linux; the kernel answers every other kind itself.
const SEEK_DATA: i32 = 3;
const SEEK_HOLE: i32 = 4;

pub(super) fn caller(req: &Request) -> Caller {
    Caller {
        uid: req.uid(),
        gid: req.gid(),
    }
}

/// The permission bits of a mode.
pub(super) fn permissions(mode: u32) -> u16 {
    (mode & 0o7777) as u16
}

/// The kind of node `mknod` is asked for; no file type means a regular file.
pub(super) fn kind_of_mode(mode: u32) -> Option<Kind> {
    use rustix::fs::FileType as Type;
    match Type::from_raw_mode(mode) {
        Type::RegularFile => Some(Kind::File),
        Type::Fifo => Some(Kind::Fifo),
        Type::Socket => Some(Kind::Socket),
        Type::CharacterDevice => Some(Kind::CharDevice),
        Type::BlockDevice => Some(Kind::BlockDevice),
        _ if mode & !0o7777 == 0 => Some(Kind::File),
        _ => None,
    }
}

pub(super) fn file_type(kind: Kind) -> FileType {
    match kind {
        Kind::File => FileType::RegularFile,
        Kind::Dir => FileType::Directory,
        Kind::Symlink => FileType::Symlink,
        Kind::Fifo => FileType::NamedPipe,
        Kind::Socket => FileType::Socket,
        Kind::CharDevice => FileType::CharDevice,
        Kind::BlockDevice => FileType::BlockDevice,
    }
}

pub(super) fn file_attr(attr: &Attr) -> FileAttr {
    FileAttr {
        ino: INodeNo(attr.ino.0),
        size: attr.size,
        blocks: attr.blocks,
        atime: system_time(attr.atime),
        mtime: system_time(attr.mtime),
        ctime: system_time(attr.ctime),
        crtime: UNIX_EPOCH,
        kind: file_type(attr.kind),
        perm: attr.mode,
        nlink: attr.nlink,
        uid: attr.uid,
        gid: attr.gid,
        rdev: attr.rdev,
        blksize: BLOCK_SIZE,
        flags: 0,
    }
}

/// Inode number 0 in a lookup reply: there is no such name, and the kernel may remember that.
pub(super) fn negative_entry() -> FileAttr {
    file_attr(&Attr {
        ino: Ino(0),
        kind: Kind::File,
        mode: 0,
        nlink: 0,
        uid: 0,
        gid: 0,
        rdev: 0,
        size: 0,
        blocks: 0,
        atime: Time::default(),
        mtime: Time::default(),
        ctime: Time::default(),
        fleeting: false,
    })
}

fn system_time(time: Time) -> SystemTime {
    let secs = Duration::from_secs(time.secs.unsigned_abs());
    let whole = if time.secs < 0 {
        UNIX_EPOCH.checked_sub(secs)
    } else {
        UNIX_EPOCH.checked_add(secs)
    };
    whole
        .and_then(|whole| whole.checked_add(Duration::from_nanos(time.nanos.into())))
        .unwrap_or(UNIX_EPOCH)
}

pub(super) fn set_time(time: TimeOrNow) -> SetTime {
    match time {
        TimeOrNow::Now => SetTime::Now,
        TimeOrNow::SpecificTime(time) => SetTime::At(time_from_kernel(time)),
    }
}

/// fuser 0.18.0 decodes the kernel's (-s seconds, +n nanoseconds) as `epoch - (s + n)`. Nothing is lost by it, so taking
/// the distance to the epoch apart again gives what the kernel sent. A fuser that decodes right needs
/// `nanos = 10^9 - n, secs - 1` here; `times_before_1970` in the mount tests tells.
fn time_from_kernel(time: SystemTime) -> Time {
    match time.duration_since(UNIX_EPOCH) {
        Ok(after) => Time {
            secs: i64::try_from(after.as_secs()).unwrap_or(i64::MAX),
            nanos: after.subsec_nanos(),
        },
        Err(before) => {
            let before = before.duration();
            let secs = i64::try_from(before.as_secs()).map_or(i64::MIN, |secs| -secs);
            Time {
                secs,
                nanos: before.subsec_nanos(),
            }
        }
    }
}

pub(super) fn open_mode(flags: OpenFlags) -> OpenMode {
    let bits = OFlags::from_bits_retain(flags.0.cast_unsigned());
    let access = flags.acc_mode();
    OpenMode {
        read: access != OpenAccMode::O_WRONLY,
        write: access != OpenAccMode::O_RDONLY,
        append: bits.contains(OFlags::APPEND),
        truncate: bits.contains(OFlags::TRUNC),
    }
}

/// `O_EXCL`
pub(super) fn is_exclusive(flags: i32) -> bool {
    OFlags::from_bits_retain(flags.cast_unsigned()).contains(OFlags::EXCL)
}

pub(super) fn rename_mode(flags: RenameFlags) -> Result<RenameMode, VolumeError> {
    if flags.is_empty() {
        Ok(RenameMode::Replace)
    } else if flags == RenameFlags::RENAME_NOREPLACE {
        Ok(RenameMode::NoReplace)
    } else if flags == RenameFlags::RENAME_EXCHANGE {
        Ok(RenameMode::Exchange)
    } else {
        Err(VolumeError::Invalid)
    }
}

pub(super) fn allocation(mode: i32) -> Result<Allocate, VolumeError> {
    let mode = FallocateFlags::from_bits_retain(mode.cast_unsigned());
    let keep_size = mode.contains(FallocateFlags::KEEP_SIZE);
    let kind = mode - FallocateFlags::KEEP_SIZE;
    if kind.is_empty() {
        Ok(Allocate::Reserve { keep_size })
    } else if kind == FallocateFlags::PUNCH_HOLE && keep_size {
        Ok(Allocate::Punch)
    } else if kind == FallocateFlags::ZERO_RANGE {
        Ok(Allocate::Zero { keep_size })
    } else {
        Err(VolumeError::NotSupported)
    }
}

pub(super) fn whence(code: i32) -> Result<Seek, VolumeError> {
    match code {
        SEEK_DATA => Ok(Seek::Data),
        SEEK_HOLE => Ok(Seek::Hole),
        _ => Err(VolumeError::Invalid),
    }
}

/// Who answers for an extended attribute.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum XattrSpace {
    /// `user.*` and what else a volume may keep.
    Volume,
    /// `security.*`: capabilities and labels, never stored.
    Security,
    /// `system.*`: access control lists, not supported.
    System,
}

pub(super) fn xattr_space(name: &[u8]) -> XattrSpace {
    if name.starts_with(b"security.") {
        XattrSpace::Security
    } else if name.starts_with(b"system.") {
        XattrSpace::System
    } else {
        XattrSpace::Volume
    }
}

pub(super) fn set_xattr(flags: i32) -> Result<SetXattr, VolumeError> {
    let flags = XattrFlags::from_bits_retain(flags.cast_unsigned());
    if flags.is_empty() {
        Ok(SetXattr::Any)
    } else if flags == XattrFlags::CREATE {
        Ok(SetXattr::Create)
    } else if flags == XattrFlags::REPLACE {
        Ok(SetXattr::Replace)
    } else {
        Err(VolumeError::Invalid)
    }
}

/// The names as `listxattr(2)` wants them, each ended by NUL. `trusted.*` is for privileged callers only.
pub(super) fn name_list(names: &[Bytes], privileged: bool) -> Vec<u8> {
    let mut list = Vec::new();
    for name in names
        .iter()
        .filter(|name| privileged || !name.starts_with(b"trusted."))
    {
        list.extend_from_slice(name);
        list.push(0);
    }
    list
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What fuser 0.18.0 makes of the seconds and nanoseconds the kernel sent.
    fn decoded_by_fuser(secs: i64, nanos: u32) -> SystemTime {
        if secs >= 0 {
            UNIX_EPOCH + Duration::new(secs.unsigned_abs(), nanos)
        } else {
            UNIX_EPOCH - Duration::new(secs.unsigned_abs(), nanos)
        }
    }

    #[test]
    fn times_survive_the_decoding_of_fuser() {
        let times = [
            (0, 0),
            (0, 1),
            (1, 999_999_999),
            (-1, 0),
            (-1, 999_999_999),
            (-86_400, 500_000_000),
        ];
        for (secs, nanos) in times {
            assert_eq!(
                time_from_kernel(decoded_by_fuser(secs, nanos)),
                Time { secs, nanos }
            );
        }
    }

    #[test]
    fn times_before_1970_are_told_as_they_are() {
        let time = Time {
            secs: -2,
            nanos: 800_000_000,
        };
        assert_eq!(system_time(time), UNIX_EPOCH - Duration::from_millis(1200));
        assert_eq!(
            system_time(Time { secs: 3, nanos: 5 }),
            UNIX_EPOCH + Duration::new(3, 5)
        );
        // Beyond what the clock type holds: any answer, but no panic.
        let _: SystemTime = system_time(Time {
            secs: i64::MAX,
            nanos: 999_999_999,
        });
        let _: SystemTime = system_time(Time {
            secs: i64::MIN,
            nanos: 0,
        });
    }

    #[test]
    fn fallocate_modes() {
        let keep = FallocateFlags::KEEP_SIZE.bits().cast_signed();
        let punch = FallocateFlags::PUNCH_HOLE.bits().cast_signed();
        let zero = FallocateFlags::ZERO_RANGE.bits().cast_signed();
        let collapse = FallocateFlags::COLLAPSE_RANGE.bits().cast_signed();
        assert_eq!(allocation(0), Ok(Allocate::Reserve { keep_size: false }));
        assert_eq!(allocation(keep), Ok(Allocate::Reserve { keep_size: true }));
        assert_eq!(allocation(keep | punch), Ok(Allocate::Punch));
        assert_eq!(allocation(zero), Ok(Allocate::Zero { keep_size: false }));
        assert_eq!(
            allocation(zero | keep),
            Ok(Allocate::Zero { keep_size: true })
        );
        assert_eq!(allocation(punch), Err(VolumeError::NotSupported));
        assert_eq!(allocation(collapse), Err(VolumeError::NotSupported));
    }

    #[test]
    fn names_of_attributes() {
        assert_eq!(xattr_space(b"security.capability"), XattrSpace::Security);
        assert_eq!(xattr_space(b"system.posix_acl_access"), XattrSpace::System);
        assert_eq!(xattr_space(b"user.security.x"), XattrSpace::Volume);
        let names = [
            Bytes::from_static(b"trusted.a"),
            Bytes::from_static(b"user.b"),
        ];
        assert_eq!(name_list(&names, true), b"trusted.a\0user.b\0");
        assert_eq!(name_list(&names, false), b"user.b\0");
    }
}
