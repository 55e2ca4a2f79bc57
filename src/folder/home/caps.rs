//! What the file system of a home can keep, found out by its type and by trying in our own directory. What it cannot keep
//! is neither set again and again nor read back as somebody's edit.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{AtFlags, Mode, OFlags, XattrFlags};

use super::marker::OWN_DIR;

/// Longest name in UTF-16 units where names are those of Windows.
const NAME_UNITS_MAX: usize = 255;

/// Longest name in bytes elsewhere.
const NAME_BYTES_MAX: usize = 255;

/// Types of file systems, as in `statfs(2)` and the kernel's `magic.h`.
const MSDOS: u64 = 0x4d44;
const EXFAT: u64 = 0x2011_bab0;
const NTFS: u64 = 0x7366_746e;
const CIFS: u64 = 0xff53_4d42;
const SMB2: u64 = 0xfe53_4d42;
const NFS: u64 = 0x6969;
const CEPH: u64 = 0x00c3_6400;
const AFS: u64 = 0x5346_414f;
const NINE_P: u64 = 0x0102_1997;
const CODA: u64 = 0x7375_7245;
const LUSTRE: u64 = 0x0bd0_0bd0;

/// What a file system keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Caps {
    /// Permission bits of each file.
    pub modes: bool,
    /// `user.` attributes.
    pub xattrs: bool,
    pub symlinks: bool,
    /// A file keeps its inode number for as long as it exists, and no other has it.
    pub stable_ino: bool,
    /// Names that differ in case only are one name.
    pub folds_case: bool,
    /// Names are those of Windows: some characters, and dots and spaces at the end, are not kept.
    pub dos_names: bool,
    /// Others change it without this machine hearing of it.
    pub is_remote: bool,
}

impl Caps {
    /// As a file system of this system has it.
    pub const ALL: Self = Self {
        modes: true,
        xattrs: true,
        symlinks: true,
        stable_ino: true,
        folds_case: false,
        dos_names: false,
        is_remote: false,
    };

    /// What is known of a type without trying.
    fn of_type(kind: u64) -> Self {
        let is_fat = matches!(kind, MSDOS | EXFAT);
        let is_remote = matches!(
            kind,
            CIFS | SMB2 | NFS | CEPH | AFS | NINE_P | CODA | LUSTRE
        );
        Self {
            modes: !is_fat,
            xattrs: !is_fat,
            symlinks: !is_fat,
            stable_ino: !is_fat,
            folds_case: is_fat,
            dos_names: is_fat || matches!(kind, NTFS | CIFS | SMB2),
            is_remote,
        }
    }

    /// What is known of the file system of an open directory without trying.
    pub(super) fn assumed(dir: &OwnedFd) -> Self {
        match rustix::fs::fstatfs(dir) {
            Ok(stat) => Self::of_type(u64::from(stat.f_type as u32)),
            Err(_) => Self::ALL,
        }
    }

    /// Whether a name can be kept as it is.
    pub(super) fn fits(&self, name: &[u8]) -> bool {
        if !self.dos_names {
            return name.len() <= NAME_BYTES_MAX;
        }
        let Ok(text) = std::str::from_utf8(name) else {
            return false;
        };
        let is_refused = |c: char| c.is_control() || "\"*/:<>?\\|".contains(c);
        !text.contains(is_refused)
            && !text.ends_with(['.', ' '])
            && text.encode_utf16().count() <= NAME_UNITS_MAX
    }

    /// What two names have in common that cannot both be.
    pub(super) fn fold(&self, name: &[u8]) -> Option<String> {
        self.folds_case
            .then(|| String::from_utf8_lossy(name).to_lowercase())
    }
}

/// Tries in `.ccbt` of a home what its file system keeps. Where that cannot be written, the type has to say.
pub(super) fn probe(root: &OwnedFd) -> Caps {
    let assumed = Caps::assumed(root);
    try_all(root, assumed).unwrap_or_else(|error| {
        tracing::debug!(%error, "what the file system keeps cannot be tried");
        assumed
    })
}

fn try_all(root: &OwnedFd, assumed: Caps) -> io::Result<Caps> {
    const FILE: &str = "probe";
    const LINK: &str = "probe-link";
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let own = rustix::fs::openat(root, OWN_DIR, flags, Mode::empty())?;
    for left in [FILE, LINK] {
        let _gone = rustix::fs::unlinkat(&own, left, AtFlags::empty());
    }
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = rustix::fs::openat(&own, FILE, flags, Mode::from_raw_mode(0o600))?;
    let caps = Caps {
        modes: keeps_modes(&file),
        xattrs: rustix::fs::fsetxattr(&file, "user.ccbt.probe", b"1", XattrFlags::empty()).is_ok(),
        symlinks: rustix::fs::symlinkat("nowhere", &own, LINK).is_ok(),
        folds_case: rustix::fs::statat(&own, "PROBE", AtFlags::SYMLINK_NOFOLLOW).is_ok(),
        ..assumed
    };
    for made in [FILE, LINK] {
        let _gone = rustix::fs::unlinkat(&own, made, AtFlags::empty());
    }
    Ok(caps)
}

/// Modes are kept if two that differ in every way come back as they were.
fn keeps_modes(file: impl AsFd) -> bool {
    [0o640, 0o705].into_iter().all(|mode| {
        let set = rustix::fs::fchmod(&file, Mode::from_raw_mode(mode));
        let kept = rustix::fs::fstat(&file).map(|stat| stat.st_mode & 0o777);
        set.is_ok() && kept == Ok(mode)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_file_system_keeps_everything() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join(OWN_DIR)).unwrap();
        let root = OwnedFd::from(std::fs::File::open(dir.path()).unwrap());
        assert_eq!(probe(&root), Caps::ALL);
        let own = std::fs::read_dir(dir.path().join(OWN_DIR)).unwrap();
        assert_eq!(own.count(), 0, "the probe is left");
    }

    #[test]
    fn what_windows_would_change_does_not_fit() {
        let fat = Caps::of_type(MSDOS);
        for name in ["a.", "b ", "c:d", "e?", "f\n", "g\\h"] {
            assert!(!fat.fits(name.as_bytes()), "{name:?}");
            assert!(Caps::ALL.fits(name.as_bytes()), "{name:?}");
        }
        assert!(!fat.fits(b"\xff"));
        assert!(fat.fits("ä.b c".as_bytes()) && fat.fits(b".hidden"));
        assert_eq!(fat.fold(b"ReadMe"), fat.fold(b"README"));
        assert_eq!(Caps::ALL.fold(b"ReadMe"), None);
    }
}
