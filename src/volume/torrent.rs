//! A torrent as a mountable volume, read-only: names and sizes from the metadata, bytes as they are read.
//!
//! A reader that goes on where it was is read ahead of by a window that doubles with every step, and begins anew when it goes
//! elsewhere; so a player's seek costs a piece and a film runs from a full window.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use ccbt_mount::{
    Allocate, Attr, Caller, DirEntry, Handle, Ino, Kind, Notifier, OpenMode, Opened, RenameMode,
    Reply, Seek, SetAttr, SetXattr, Statfs, Time, Volume, VolumeError,
};
use parking_lot::Mutex;

use crate::engine::torrent::reader::{ReadError, TorrentReader};
use crate::proto::metainfo::Info;

/// Bytes read ahead of a reader that has just begun to go on where it was.
const AHEAD_BYTES_MIN: u64 = 1 << 20;
/// Bytes read ahead of one that has long done so.
const AHEAD_BYTES_MAX: u64 = 64 << 20;
/// A read this far from where the last one ended still goes on: the kernel's own reads come out of order.
const NEAR_BYTES: u64 = 1 << 20;
const BLOCK_BYTES: u64 = 512;
/// Extended attributes: the info-hash, and how many bytes of a file are here.
const XATTR_HASH: &[u8] = b"user.ccbt.torrent";
const XATTR_PRESENT: &[u8] = b"user.ccbt.present";

#[derive(Debug)]
enum What {
    Dir(Vec<(Bytes, Ino)>),
    File {
        offset: u64,
        length: u64,
        executable: bool,
    },
    Link(Bytes),
}

#[derive(Debug)]
struct Node {
    parent: Ino,
    what: What,
}

/// Where a reader is.
#[derive(Debug, Default)]
struct Stream {
    next: u64,
    ahead: u64,
}

/// See the module documentation.
pub struct TorrentVolume {
    /// By inode number, from 1.
    nodes: Vec<Node>,
    names: HashMap<(Ino, Bytes), Ino>,
    reader: TorrentReader,
    hash: Bytes,
    timeout: Duration,
    open: Mutex<HashMap<Handle, Arc<Mutex<Stream>>>>,
    next: AtomicU64,
    owner: (u32, u32),
    mounted: Time,
}

impl TorrentVolume {
    /// A read that has waited for `timeout` fails.
    pub fn new(info: &Info, reader: TorrentReader, hash: &str, timeout: Duration) -> Self {
        let root = Node {
            parent: Ino::ROOT,
            what: What::Dir(Vec::new()),
        };
        let mut volume = Self {
            nodes: vec![root],
            names: HashMap::new(),
            reader,
            hash: hash.to_owned().into(),
            timeout,
            open: Mutex::default(),
            next: AtomicU64::new(1),
            owner: (
                rustix::process::getuid().as_raw(),
                rustix::process::getgid().as_raw(),
            ),
            mounted: Time {
                secs: (crate::clock::unix_millis() / 1000) as i64,
                nanos: 0,
            },
        };
        for file in &info.files {
            let mut parent = Ino::ROOT;
            let Some((last, dirs)) = file.path.parts().split_last() else {
                continue;
            };
            for dir in dirs {
                parent = volume.add(parent, dir.as_bytes(), What::Dir(Vec::new()));
            }
            let what = match &file.symlink {
                Some(target) => {
                    let up = "../".repeat(dirs.len());
                    let target = std::path::Path::new(&up).join(target.to_path());
                    What::Link(target.into_os_string().into_encoded_bytes().into())
                }
                None => What::File {
                    offset: file.offset,
                    length: file.length,
                    executable: file.attributes.executable,
                },
            };
            volume.add(parent, last.as_bytes(), what);
        }
        volume
    }

    /// The entry of that name, made if it is missing.
    fn add(&mut self, parent: Ino, name: &[u8], what: What) -> Ino {
        let key = (parent, Bytes::copy_from_slice(name));
        if let Some(known) = self.names.get(&key) {
            return *known;
        }
        self.nodes.push(Node { parent, what });
        let ino = Ino(self.nodes.len() as u64);
        if let Some(Node {
            what: What::Dir(rows),
            ..
        }) = self.nodes.get_mut(parent.0 as usize - 1)
        {
            rows.push((key.1.clone(), ino));
        }
        self.names.insert(key, ino);
        ino
    }

    fn node(&self, ino: Ino) -> Result<&Node, VolumeError> {
        let index = usize::try_from(ino.0).ok().and_then(|n| n.checked_sub(1));
        index
            .and_then(|index| self.nodes.get(index))
            .ok_or(VolumeError::NotFound)
    }

    fn attr(&self, ino: Ino) -> Result<Attr, VolumeError> {
        let (kind, mode, size, blocks) = match &self.node(ino)?.what {
            What::Dir(rows) => (Kind::Dir, 0o555, rows.len() as u64, 0),
            What::Link(target) => (Kind::Symlink, 0o777, target.len() as u64, 0),
            What::File {
                offset,
                length,
                executable,
            } => {
                let mode = if *executable { 0o555 } else { 0o444 };
                let present = self.reader.present(*offset, *length);
                (Kind::File, mode, *length, present.div_ceil(BLOCK_BYTES))
            }
        };
        Ok(Attr {
            ino,
            kind,
            mode,
            nlink: if kind == Kind::Dir { 2 } else { 1 },
            uid: self.owner.0,
            gid: self.owner.1,
            rdev: 0,
            size,
            blocks,
            atime: self.mounted,
            mtime: self.mounted,
            ctime: self.mounted,
            fleeting: false,
        })
    }

    fn handle(&self) -> Handle {
        Handle(self.next.fetch_add(1, Ordering::Relaxed))
    }

    /// Bytes to read ahead behind a read.
    fn ahead(&self, handle: Handle, offset: u64, len: u64) -> u64 {
        let Some(stream) = self.open.lock().get(&handle).cloned() else {
            return 0;
        };
        let mut stream = stream.lock();
        if offset.abs_diff(stream.next) <= NEAR_BYTES {
            stream.ahead = (stream.ahead * 2).clamp(AHEAD_BYTES_MIN, AHEAD_BYTES_MAX);
        } else {
            stream.ahead = 0;
        }
        stream.next = offset + len;
        stream.ahead
    }
}

impl Volume for TorrentVolume {
    /// Nothing ever changes but what is here.
    fn attach(&self, _notifier: Arc<dyn Notifier>) {}

    fn lookup(&self, parent: Ino, name: &[u8]) -> Result<Attr, VolumeError> {
        let key = (parent, Bytes::copy_from_slice(name));
        let ino = self.names.get(&key).ok_or(VolumeError::NotFound)?;
        self.attr(*ino)
    }

    fn forget(&self, _ino: Ino) {}

    fn getattr(&self, ino: Ino) -> Result<Attr, VolumeError> {
        self.attr(ino)
    }

    fn setattr(&self, _: Ino, _: SetAttr, _: Caller) -> Result<Attr, VolumeError> {
        Err(VolumeError::ReadOnly)
    }

    fn readlink(&self, ino: Ino) -> Result<Bytes, VolumeError> {
        match &self.node(ino)?.what {
            What::Link(target) => Ok(target.clone()),
            _ => Err(VolumeError::Invalid),
        }
    }

    fn mknod(
        &self,
        _: Ino,
        _: &[u8],
        _: Kind,
        _: u16,
        _: u32,
        _: Caller,
    ) -> Result<Attr, VolumeError> {
        Err(VolumeError::ReadOnly)
    }

    fn mkdir(&self, _: Ino, _: &[u8], _: u16, _: Caller) -> Result<Attr, VolumeError> {
        Err(VolumeError::ReadOnly)
    }

    fn symlink(&self, _: Ino, _: &[u8], _: &[u8], _: Caller) -> Result<Attr, VolumeError> {
        Err(VolumeError::ReadOnly)
    }

    fn link(&self, _: Ino, _: Ino, _: &[u8]) -> Result<Attr, VolumeError> {
        Err(VolumeError::ReadOnly)
    }

    fn unlink(&self, _: Ino, _: &[u8]) -> Result<(), VolumeError> {
        Err(VolumeError::ReadOnly)
    }

    fn rmdir(&self, _: Ino, _: &[u8]) -> Result<(), VolumeError> {
        Err(VolumeError::ReadOnly)
    }

    fn rename(&self, _: (Ino, &[u8]), _: (Ino, &[u8]), _: RenameMode) -> Result<(), VolumeError> {
        Err(VolumeError::ReadOnly)
    }

    fn create(
        &self,
        _: Ino,
        _: &[u8],
        _: u16,
        _: OpenMode,
        _: Caller,
    ) -> Result<(Attr, Opened), VolumeError> {
        Err(VolumeError::ReadOnly)
    }

    fn open(&self, ino: Ino, mode: OpenMode) -> Result<Opened, VolumeError> {
        if mode.write || mode.truncate {
            return Err(VolumeError::ReadOnly);
        }
        if !matches!(self.node(ino)?.what, What::File { .. }) {
            return Err(VolumeError::IsDirectory);
        }
        let handle = self.handle();
        self.open.lock().insert(handle, Arc::default());
        Ok(Opened {
            handle,
            keep_cache: true,
            ask_size: false,
        })
    }

    fn read(&self, ino: Ino, handle: Handle, offset: u64, size: u32, reply: Reply<Bytes>) {
        let (begin, length) = match self.node(ino).map(|node| &node.what) {
            Ok(What::File { offset, length, .. }) => (*offset, *length),
            Ok(_) => return reply.send(Err(VolumeError::Invalid)),
            Err(error) => return reply.send(Err(error)),
        };
        let len = length.saturating_sub(offset).min(size.into());
        if len == 0 {
            return reply.send(Ok(Bytes::new()));
        }
        let left = length - offset - len;
        let ahead = self.ahead(handle, offset, len).min(left);
        let done = Box::new(move |result: Result<Bytes, ReadError>| {
            reply.send(result.map_err(|error| match error {
                ReadError::TimedOut => VolumeError::TimedOut,
                ReadError::Io(_) => VolumeError::Io,
            }));
        });
        self.reader
            .read(begin + offset, len as u32, ahead, self.timeout, done);
    }

    fn write(&self, _: Ino, _: Handle, _: u64, _: &[u8]) -> Result<(), VolumeError> {
        Err(VolumeError::ReadOnly)
    }

    fn flush(&self, _: Ino, _: Handle) -> Result<(), VolumeError> {
        Ok(())
    }

    fn fsync(&self, _: Ino, _: Handle, reply: Reply<()>) {
        reply.send(Ok(()));
    }

    fn release(&self, _: Ino, handle: Handle) {
        self.open.lock().remove(&handle);
    }

    fn allocate(&self, _: Ino, _: Handle, _: u64, _: u64, _: Allocate) -> Result<(), VolumeError> {
        Err(VolumeError::ReadOnly)
    }

    fn seek(&self, ino: Ino, _: Handle, offset: u64, whence: Seek) -> Result<u64, VolumeError> {
        match (&self.node(ino)?.what, whence) {
            (What::File { length, .. }, _) if offset >= *length => Err(VolumeError::NoSuchOffset),
            (What::File { .. }, Seek::Data) => Ok(offset),
            (What::File { length, .. }, Seek::Hole) => Ok(*length),
            _ => Err(VolumeError::Invalid),
        }
    }

    fn opendir(&self, ino: Ino) -> Result<Handle, VolumeError> {
        match self.node(ino)?.what {
            What::Dir(_) => Ok(self.handle()),
            _ => Err(VolumeError::NotDirectory),
        }
    }

    fn readdir(
        &self,
        ino: Ino,
        _: Handle,
        offset: u64,
        count: usize,
    ) -> Result<Vec<DirEntry>, VolumeError> {
        let node = self.node(ino)?;
        let What::Dir(rows) = &node.what else {
            return Err(VolumeError::NotDirectory);
        };
        let own = [
            (Bytes::from_static(b"."), ino),
            (Bytes::from_static(b".."), node.parent),
        ];
        let rows = (1..).zip(own.iter().chain(rows));
        let from = rows
            .skip(usize::try_from(offset).unwrap_or(usize::MAX))
            .take(count);
        from.map(|(offset, (name, ino))| {
            let attr = self.attr(*ino)?;
            Ok(DirEntry {
                attr,
                name: name.clone(),
                offset,
            })
        })
        .collect()
    }

    fn releasedir(&self, _: Ino, _: Handle) {}

    fn fsyncdir(&self, _: Ino, reply: Reply<()>) {
        reply.send(Ok(()));
    }

    fn getxattr(&self, ino: Ino, name: &[u8]) -> Result<Bytes, VolumeError> {
        match (&self.node(ino)?.what, name) {
            (_, XATTR_HASH) => Ok(self.hash.clone()),
            (What::File { offset, length, .. }, XATTR_PRESENT) => {
                Ok(self.reader.present(*offset, *length).to_string().into())
            }
            _ => Err(VolumeError::NoAttribute),
        }
    }

    fn listxattr(&self, ino: Ino) -> Result<Vec<Bytes>, VolumeError> {
        let mut names = vec![Bytes::from_static(XATTR_HASH)];
        if matches!(self.node(ino)?.what, What::File { .. }) {
            names.push(Bytes::from_static(XATTR_PRESENT));
        }
        Ok(names)
    }

    fn setxattr(&self, _: Ino, _: &[u8], _: &[u8], _: SetXattr) -> Result<(), VolumeError> {
        Err(VolumeError::ReadOnly)
    }

    fn removexattr(&self, _: Ino, _: &[u8]) -> Result<(), VolumeError> {
        Err(VolumeError::ReadOnly)
    }

    fn statfs(&self) -> Result<Statfs, VolumeError> {
        let length = |node: &Node| match node.what {
            What::File { length, .. } => length,
            _ => 0,
        };
        Ok(Statfs {
            bytes_total: self.nodes.iter().map(length).sum(),
            bytes_free: 0,
            inodes_total: self.nodes.len() as u64,
            inodes_free: 0,
        })
    }
}
