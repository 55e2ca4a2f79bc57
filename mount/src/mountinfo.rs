//! What is mounted where, as `/proc/self/mountinfo` tells it.
//!
//! Asking the mount point itself would not do: a FUSE mount whose process is gone answers every call with an error.

use std::ffi::OsString;
use std::fmt;
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// The file system type of our mounts: `fuse` with the subtype `ccbt`.
pub(crate) const FS_TYPE: &str = "fuse.ccbt";

pub(crate) const MOUNTINFO: &str = "/proc/self/mountinfo";

/// A mount on this machine, told from others at the same place before and after it. Shown and parsed as `ID MAJOR:MINOR`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MountId {
    mount: u64,
    pub(crate) device: (u32, u32),
}

impl fmt::Display for MountId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (major, minor) = self.device;
        write!(f, "{} {major}:{minor}", self.mount)
    }
}

/// The text is not what [`MountId`] is shown as.
#[derive(Debug, thiserror::Error)]
#[error("not the id of a mount")]
pub struct ParseMountIdError;

impl FromStr for MountId {
    type Err = ParseMountIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parse = || {
            let (mount, device) = text.split_once(' ')?;
            let (major, minor) = device.split_once(':')?;
            Some(Self {
                mount: mount.parse().ok()?,
                device: (major.parse().ok()?, minor.parse().ok()?),
            })
        };
        parse().ok_or(ParseMountIdError)
    }
}

/// One mounted file system.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    id: u64,
    parent: u64,
    /// Device number of the file system, major and minor: tells one mount at a path from the next.
    pub(crate) device: (u32, u32),
    path: PathBuf,
    pub(crate) fs_type: String,
}

impl Entry {
    pub(crate) fn is_fuse(&self) -> bool {
        self.fs_type == "fuse" || self.fs_type == "fuseblk" || self.fs_type.starts_with("fuse.")
    }

    pub(crate) fn is_ccbt(&self) -> bool {
        self.fs_type == FS_TYPE
    }

    pub(crate) fn mount_id(&self) -> MountId {
        MountId {
            mount: self.id,
            device: self.device,
        }
    }
}

/// Where this mount is, if it is there and ours.
pub(crate) fn find(id: MountId) -> io::Result<Option<PathBuf>> {
    let entries = parse(&std::fs::read(MOUNTINFO)?);
    let found = entries
        .into_iter()
        .find(|entry| entry.is_ccbt() && entry.mount_id() == id);
    Ok(found.map(|entry| entry.path))
}

/// What is mounted on `path` (absolute, no symlinks), topmost if several lie on each other.
pub(crate) fn mounted_at(path: &Path) -> io::Result<Option<Entry>> {
    Ok(topmost(parse(&std::fs::read(MOUNTINFO)?), path))
}

/// Whether something is mounted on `path`. Symlinks are followed but in the last part of the path.
pub fn is_mount_point(path: &Path) -> io::Result<bool> {
    Ok(mounted_at(&absolute(path)?)?.is_some())
}

/// Whether any FUSE file system is mounted on `path`, alive or dead.
pub fn is_fuse_mount(path: &Path) -> io::Result<bool> {
    Ok(mounted_at(&absolute(path)?)?.is_some_and(|entry| entry.is_fuse()))
}

/// Whether one of our own mounts lies on `path`, alive or dead.
pub fn is_ccbt_mount(path: &Path) -> io::Result<bool> {
    Ok(mounted_at(&absolute(path)?)?.is_some_and(|entry| entry.is_ccbt()))
}

/// `path` without symlinks and dots. Works where `path` itself is a dead mount and cannot be asked: then only its
/// directory is resolved.
pub(crate) fn absolute(path: &Path) -> io::Result<PathBuf> {
    let resolved = path.canonicalize();
    let Err(error) = &resolved else {
        return resolved;
    };
    if crate::errno::failure(error) != crate::errno::Failure::Disconnected {
        return resolved;
    }
    match (path.parent(), path.file_name()) {
        (Some(parent), Some(name)) if parent.as_os_str().is_empty() => {
            Ok(Path::new(".").canonicalize()?.join(name))
        }
        (Some(parent), Some(name)) => Ok(parent.canonicalize()?.join(name)),
        _ => resolved,
    }
}

fn topmost(entries: Vec<Entry>, path: &Path) -> Option<Entry> {
    let here: Vec<Entry> = entries
        .into_iter()
        .filter(|entry| entry.path == path)
        .collect();
    let covered = |id| {
        here.iter()
            .any(|other| other.parent == id && other.id != id)
    };
    here.iter().rev().find(|entry| !covered(entry.id)).cloned()
}

/// Lines the kernel would not write are skipped.
pub(crate) fn parse(text: &[u8]) -> Vec<Entry> {
    text.split(|&byte| byte == b'\n')
        .filter_map(parse_line)
        .collect()
}

/// `ID PARENT MAJOR:MINOR ROOT PATH OPTIONS [TAG..] - TYPE SOURCE SUPER` (proc_pid_mountinfo(5)).
fn parse_line(line: &[u8]) -> Option<Entry> {
    let mut fields = line.split(|&byte| byte == b' ');
    let id = number(fields.next()?)?;
    let parent = number(fields.next()?)?;
    let device = std::str::from_utf8(fields.next()?).ok()?;
    let (major, minor) = device.split_once(':')?;
    let _root = fields.next()?;
    let path = PathBuf::from(OsString::from_vec(unescape(fields.next()?)));
    let mut rest = fields.skip_while(|&field| field != b"-");
    rest.next()?;
    let fs_type = String::from_utf8(unescape(rest.next()?)).ok()?;
    Some(Entry {
        id,
        parent,
        device: (major.parse().ok()?, minor.parse().ok()?),
        path,
        fs_type,
    })
}

fn number(field: &[u8]) -> Option<u64> {
    std::str::from_utf8(field).ok()?.parse().ok()
}

/// Undoes the kernel's `\ooo` for blanks, newlines and backslashes.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&byte, tail)) = rest.split_first() {
        let octal = tail
            .get(..3)
            .filter(|_| byte == b'\\')
            .and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok());
        match octal {
            Some(value) => {
                out.push(value);
                rest = &tail[3..];
            }
            None => {
                out.push(byte);
                rest = tail;
            }
        }
    }
    out
}

/// `path` as one word of a shell command line, for messages that say what to type.
pub(crate) fn quoted(path: &Path) -> String {
    let plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"/._-+,:@%".contains(byte);
    let bytes = path.as_os_str().as_bytes();
    if !bytes.is_empty() && bytes.iter().all(plain) {
        return path.display().to_string();
    }
    let escaped = String::from_utf8_lossy(bytes).replace('\'', r"'\''");
    format!(
        "'{}'",
        escaped.chars().flat_map(visible).collect::<String>()
    )
}

/// Control characters in a message could move the cursor of a terminal.
fn visible(c: char) -> Vec<char> {
    if c.is_control() {
        c.escape_default().collect()
    } else {
        vec![c]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &[u8] = b"22 1 254:0 / / rw,relatime - ext4 /dev/vda rw\n\
        30 22 0:44 / /mnt/with\\040blank rw shared:5 master:1 - fuse.ccbt a\\040b rw,user_id=0\n\
        31 22 0:45 / /twice rw - tmpfs tmpfs rw\n\
        40 31 0:46 / /twice rw - fuse.sshfs host: rw\n\
        a line that is not one\n";

    #[test]
    fn finds_types_devices_and_escaped_paths() {
        let entry = topmost(parse(TEXT), Path::new("/mnt/with blank")).unwrap();
        assert_eq!((entry.device, entry.fs_type.as_str()), ((0, 44), FS_TYPE));
        assert!(entry.is_ccbt() && entry.is_fuse());
        assert!(!topmost(parse(TEXT), Path::new("/")).unwrap().is_fuse());
        assert_eq!(topmost(parse(TEXT), Path::new("/mnt")), None);
    }

    #[test]
    fn the_topmost_of_two_mounts_counts() {
        let entry = topmost(parse(TEXT), Path::new("/twice")).unwrap();
        assert_eq!(entry.device, (0, 46));
        assert!(entry.is_fuse() && !entry.is_ccbt());
        // Whatever the order of the lines.
        let mut entries = parse(TEXT);
        entries.reverse();
        assert_eq!(
            topmost(entries, Path::new("/twice")).unwrap().device,
            (0, 46)
        );
    }

    #[test]
    fn the_root_is_a_mount_point_and_no_fuse_mount() {
        assert!(is_mount_point(Path::new("/")).unwrap());
        assert!(!is_ccbt_mount(Path::new("/")).unwrap());
        assert!(!is_mount_point(Path::new("/proc/self")).unwrap());
    }

    #[test]
    fn odd_escapes_stay_as_they_are() {
        assert_eq!(unescape(br"a\040b\13"), b"a b\\13");
        assert_eq!(unescape(br"\999\134"), b"\\999\\");
    }

    #[test]
    fn paths_in_messages_can_be_pasted_into_a_shell() {
        assert_eq!(quoted(Path::new("/a/b-c.d")), "/a/b-c.d");
        assert_eq!(quoted(Path::new("/it's a b")), r"'/it'\''s a b'");
        assert_eq!(quoted(Path::new("/bell\x07")), r"'/bell\u{7}'");
    }
}
