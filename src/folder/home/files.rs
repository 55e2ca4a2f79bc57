//! Access to the files of a home: everything goes from one descriptor of its root, opened once, and never through a
//! symbolic link or onto another file system. Serves borrowed ranges to the store.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use ccbt_xet::store::{BorrowedFiles, SourceId};
use parking_lot::{Mutex, RwLock};
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, RawMode, ResolveFlags, Stat};

use super::base::{At, FileTime, HomeId, Stamp, UNKNOWN_INO};
use super::caps::{self, Caps};
use super::fs::TEMP_PREFIX;
use super::marker::OWN_DIR;
use super::places::Places;
use super::plan::{Found, FoundKind, Listing, Seen};
use super::watch::Waker;
use crate::folder::state::Xattrs;

/// Longest path handed to the kernel in one piece (`PATH_MAX` is 4096 with its NUL).
const PATH_PIECE_MAX: usize = 4000;

/// Most bytes of extended attributes of one file that are read (as the kernel limits a list of names).
const XATTR_BYTES_MAX: usize = 64 << 10;

/// Longest target of a symbolic link.
const TARGET_BYTES_MAX: usize = 4096;

const RESOLVE: ResolveFlags = ResolveFlags::BENEATH
    .union(ResolveFlags::NO_SYMLINKS)
    .union(ResolveFlags::NO_MAGICLINKS)
    .union(ResolveFlags::NO_XDEV);

/// What a borrowed range met that no longer has its bytes, or a file the store could not read.
type Suspects = Vec<HomeId>;

/// The directory at the root.
#[derive(Debug)]
struct Root {
    /// None while it is not there: an open directory would keep its disk from being unmounted.
    fd: Option<Arc<OwnedFd>>,
    /// Device and inode.
    stamp: (u64, u64),
}

/// The files of a home.
#[derive(Debug)]
pub struct HomeFiles {
    /// Its sources are told from those of other homes by this.
    space: u16,
    root: RwLock<Root>,
    /// User and group of the root.
    pub(super) root_owner: (u32, u32),
    /// The file system was found not to exchange names.
    pub(super) no_exchange: AtomicBool,
    /// It was found to have no files that share blocks, or none without a name.
    pub(super) no_clones: AtomicBool,
    pub(super) no_nameless: AtomicBool,
    /// What its type says it keeps, and what was found by trying.
    assumed: Caps,
    tried: OnceLock<Caps>,
    places: Places,
    suspects: Mutex<Suspects>,
    waker: Waker,
    /// Files opened to be taken in, for tests and metrics.
    opens: AtomicU64,
}

/// A file being written.
#[derive(Debug)]
pub struct NewFile {
    pub(super) fd: OwnedFd,
    /// Bytes so far, holes included.
    pub(super) size: u64,
    /// Where the last bytes that are no hole end.
    pub(super) end: u64,
    /// Up to here the disk was told to write.
    pub(super) flushed: u64,
}

impl HomeFiles {
    /// Opens the directory. `waker` is woken when a borrowed range was found changed.
    pub fn open(path: &Path, space: u16, waker: Waker) -> io::Result<Self> {
        let root = open_root(path)?;
        let stat = rustix::fs::fstat(&root)?;
        Ok(Self {
            space,
            assumed: Caps::assumed(&root),
            tried: OnceLock::new(),
            root: RwLock::new(Root {
                fd: Some(Arc::new(root)),
                stamp: (stat.st_dev, stat.st_ino),
            }),
            root_owner: (stat.st_uid, stat.st_gid),
            no_exchange: AtomicBool::new(false),
            no_clones: AtomicBool::new(false),
            no_nameless: AtomicBool::new(false),
            places: Places::default(),
            suspects: Mutex::default(),
            waker,
            opens: AtomicU64::new(0),
        })
    }

    pub fn space(&self) -> u16 {
        self.space
    }

    /// What the store knows a file as. Numbers are given one by one and never reach 2^48.
    pub fn source(&self, id: HomeId) -> SourceId {
        SourceId::new(self.space, id.0).unwrap_or(SourceId(u64::MAX))
    }

    /// The root. Fails with `NotFound` while it is not there.
    pub fn root(&self) -> io::Result<Arc<OwnedFd>> {
        let root = self.root.read().fd.clone();
        root.ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    /// The root is not where it was: nothing is kept open.
    pub(super) fn close_root(&self) {
        self.root.write().fd = None;
    }

    /// The root is there again.
    pub(super) fn set_root(&self, fd: OwnedFd, stamp: (u64, u64)) {
        let fd = Some(Arc::new(fd));
        *self.root.write() = Root { fd, stamp };
    }

    /// What the file system keeps.
    pub fn caps(&self) -> Caps {
        self.tried.get().copied().unwrap_or(self.assumed)
    }

    /// Tries what the file system keeps, in our own directory.
    pub(super) fn probe(&self) {
        if let Ok(root) = self.root() {
            self.tried.get_or_init(|| caps::probe(&root));
        }
    }

    /// What metadata says of a file, as far as the file system means it.
    pub fn found(&self, stat: &Stat) -> Found {
        let caps = self.caps();
        let mut found = found(stat);
        if !caps.stable_ino {
            found.stamp.ino = UNKNOWN_INO;
        }
        if !caps.modes {
            found.mode = if found.kind == FoundKind::Dir {
                0o755
            } else {
                0o644
            };
        }
        found
    }

    /// The root's inode as records have it.
    pub fn root_ino(&self) -> u64 {
        match self.caps().stable_ino {
            true => self.root_stamp().1,
            false => UNKNOWN_INO,
        }
    }

    /// Device and inode of the root.
    pub fn root_stamp(&self) -> (u64, u64) {
        self.root.read().stamp
    }

    /// Files opened so far to be taken in.
    pub fn opens(&self) -> u64 {
        self.opens.load(Ordering::Relaxed)
    }

    /// Takes what was found changed behind our back since the last call.
    pub fn take_suspects(&self) -> Vec<HomeId> {
        std::mem::take(&mut *self.suspects.lock())
    }

    /// Where everything with a base record is.
    pub fn places(&self) -> &Places {
        &self.places
    }

    /// Notes where something is, or that it is gone.
    pub fn set_place(&self, id: HomeId, at: Option<At>) {
        self.places.set(id, at);
    }

    pub fn place(&self, id: HomeId) -> Option<At> {
        self.places.get(id)
    }

    /// The path of something from the root; none if it has no record.
    pub fn path(&self, id: HomeId) -> Option<Vec<u8>> {
        self.places.path(id)
    }

    /// Opens a directory for listing.
    pub fn open_dir(&self, path: &[u8]) -> io::Result<OwnedFd> {
        self.open_at(path, OFlags::RDONLY | OFlags::DIRECTORY)
    }

    /// Opens a regular file for reading. What is there may be something else by now: check.
    pub fn open_file(&self, path: &[u8]) -> io::Result<OwnedFd> {
        self.opens.fetch_add(1, Ordering::Relaxed);
        self.open_plain(path)
    }

    fn open_plain(&self, path: &[u8]) -> io::Result<OwnedFd> {
        self.open_at(path, OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY)
    }

    fn open_at(&self, path: &[u8], flags: OFlags) -> io::Result<OwnedFd> {
        let root = self.root()?;
        let mut dir: Option<OwnedFd> = None;
        let mut rest = path;
        while rest.len() > PATH_PIECE_MAX {
            let head = rest.get(..PATH_PIECE_MAX).unwrap_or_default();
            let cut = head
                .iter()
                .rposition(|byte| *byte == b'/')
                .ok_or(io::ErrorKind::InvalidInput)?;
            let from = dir.as_ref().unwrap_or(&root).as_fd();
            dir = Some(open_beneath(
                from,
                &rest[..cut],
                OFlags::PATH | OFlags::DIRECTORY,
            )?);
            rest = &rest[cut + 1..];
        }
        let from = dir.as_ref().unwrap_or(&root).as_fd();
        open_beneath(from, if rest.is_empty() { b"." } else { rest }, flags)
    }

    /// The inode of an open directory, as records have it.
    pub(super) fn ino(&self, dir: &OwnedFd) -> io::Result<u64> {
        Ok(self.found(&rustix::fs::fstat(dir)?).stamp.ino)
    }

    /// What a directory holds, without what is ours. A directory that another home has made its own is not looked into.
    pub fn list(&self, dir: &OwnedFd, is_root: bool) -> io::Result<Listing> {
        let ino = self.ino(dir)?;
        let (dev, _) = self.root_stamp();
        let mut listing = Listing {
            complete: true,
            ino,
            ..Listing::default()
        };
        // A descriptor of its own, because reading a directory moves its position.
        let own = open_beneath(dir.as_fd(), b".", OFlags::RDONLY | OFlags::DIRECTORY)?;
        for entry in Dir::new(own)? {
            let Ok(entry) = entry else {
                listing.complete = false;
                break;
            };
            let name = entry.file_name().to_bytes();
            if name.starts_with(TEMP_PREFIX) {
                listing.leftover.push(Bytes::copy_from_slice(name));
            } else if name == OWN_DIR.as_bytes() {
                listing.is_nested |= !is_root && is_home(dir, b".");
            } else if !matches!(name, b"." | b"..") {
                let seen = self.look(dir, name, dev);
                listing
                    .names
                    .extend(seen.map(|seen| (Bytes::copy_from_slice(name), seen)));
            }
        }
        if listing.is_nested {
            // What is on its way in there is not ours to clear away.
            listing.leftover.clear();
        }
        Ok(listing)
    }

    /// What is at a name in an open directory, none if nothing is. `dev` is the home's device.
    fn look(&self, dir: &OwnedFd, name: &[u8], dev: u64) -> Option<Seen> {
        let stat = match rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            Err(rustix::io::Errno::NOENT) => return None,
            Err(_) => return Some(Seen::Unknown),
        };
        let found = self.found(&stat);
        // Two links are a directory's own: it has none below it, where they are counted.
        let may_be_home = found.kind == FoundKind::Dir && stat.st_nlink != 2;
        let is_other = found.kind == FoundKind::Dir && found.dev != dev;
        match is_other || (may_be_home && is_home(dir, name)) {
            true => Some(Seen::Nested),
            false => Some(Seen::Found(found)),
        }
    }

    /// The target of a symbolic link.
    pub fn read_link(&self, path: &[u8]) -> io::Result<Bytes> {
        let link = self.open_link(path)?;
        let target = rustix::fs::readlinkat(&link, "", Vec::new())?.into_bytes();
        if target.len() > TARGET_BYTES_MAX {
            return Err(io::ErrorKind::InvalidData.into());
        }
        Ok(target.into())
    }

    /// What is at a path now.
    pub fn stat(&self, path: &[u8]) -> io::Result<Found> {
        let link = self.open_link(path)?;
        Ok(self.found(&rustix::fs::fstat(&link)?))
    }

    fn open_link(&self, path: &[u8]) -> io::Result<OwnedFd> {
        let (dir, name) = match path.iter().rposition(|byte| *byte == b'/') {
            Some(at) => (&path[..at], &path[at + 1..]),
            None => (&b""[..], path),
        };
        let dir = self.open_at(dir, OFlags::PATH | OFlags::DIRECTORY)?;
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        Ok(rustix::fs::openat(&dir, name, flags, Mode::empty())?)
    }
}

/// Opens the directory that is to be a root.
pub(super) fn open_root(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(rustix::fs::open(path, flags, Mode::empty())?)
}

/// Whether a directory is the home of something: it has a marker.
fn is_home(dir: &OwnedFd, name: &[u8]) -> bool {
    let marker = [name, b"/", OWN_DIR.as_bytes(), b"/home"].concat();
    rustix::fs::statat(dir, marker, AtFlags::SYMLINK_NOFOLLOW).is_ok()
}

fn open_beneath(from: BorrowedFd<'_>, path: &[u8], flags: OFlags) -> io::Result<OwnedFd> {
    let flags = flags | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    Ok(rustix::fs::openat2(
        from,
        path,
        flags,
        Mode::empty(),
        RESOLVE,
    )?)
}

/// What a file's metadata says of it.
fn found(stat: &Stat) -> Found {
    let kind = match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => FoundKind::File,
        FileType::Directory => FoundKind::Dir,
        FileType::Symlink => FoundKind::Symlink,
        _ => FoundKind::Special,
    };
    let time = |secs: i64, nanos: u64| FileTime {
        secs,
        nanos: (nanos % 1_000_000_000) as u32,
    };
    Found {
        kind,
        dev: stat.st_dev,
        stamp: Stamp {
            ino: stat.st_ino,
            size: u64::try_from(stat.st_size).unwrap_or(0),
            mtime: time(stat.st_mtime, stat.st_mtime_nsec),
            ctime: time(stat.st_ctime, stat.st_ctime_nsec),
        },
        mode: (stat.st_mode as RawMode & 0o777) as u16,
    }
}

/// Whether a file has fewer blocks than bytes.
pub fn is_sparse(stat: &Stat) -> bool {
    u64::try_from(stat.st_blocks)
        .unwrap_or(0)
        .saturating_mul(512)
        < u64::try_from(stat.st_size).unwrap_or(0)
}

/// The `user.` attributes of an open file or directory; none where the file system has no such thing.
pub fn xattrs(file: impl AsFd) -> io::Result<Xattrs> {
    let mut names = vec![0u8; XATTR_BYTES_MAX];
    let len = match rustix::fs::flistxattr(&file, &mut names[..]) {
        Ok(len) => len,
        Err(rustix::io::Errno::OPNOTSUPP) => return Ok(Xattrs::new()),
        Err(error) => return Err(error.into()),
    };
    names.truncate(len);
    let mut out = Xattrs::new();
    let mut value = Vec::new();
    for name in names
        .split(|byte| *byte == 0)
        .filter(|name| name.starts_with(b"user."))
    {
        value.resize(XATTR_BYTES_MAX, 0);
        match rustix::fs::fgetxattr(&file, name, &mut value[..]) {
            Ok(len) => {
                let value = Bytes::copy_from_slice(value.get(..len).unwrap_or_default());
                out.insert(Bytes::copy_from_slice(name), value);
            }
            // Removed between the two calls.
            Err(rustix::io::Errno::NODATA) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(out)
}

impl BorrowedFiles for HomeFiles {
    fn read_at(&self, source: SourceId, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        let path = self
            .path(HomeId(source.number()))
            .ok_or(io::ErrorKind::NotFound)?;
        let file = self.open_plain(&path)?;
        let mut done = 0;
        while done < buf.len() {
            let read = rustix::io::pread(&file, &mut buf[done..], offset + done as u64)?;
            if read == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            done += read;
        }
        Ok(())
    }

    fn mismatch(&self, source: SourceId) {
        self.suspects.lock().push(HomeId(source.number()));
        self.waker.wake();
    }
}
