//! The base record: what a home's path looked like on disk when what the folder holds of it was read from it. Without
//! it "the user edited this" and "the peer's edit is not written here" look the same, so base records are truth and are
//! kept in the folder's log, in the same record as the operation they belong to.
//!
//! Records are keyed by the number of the directory and the name in it, so renaming a directory changes one record.
//! There is no device in them: a home never leaves the file system of its root.

use std::time::Duration;

use bytes::Bytes;

/// First byte of the keys of base records in the folder's table.
const TABLE: u8 = b'h';

const KEY_HEAD_LEN: usize = 9;

/// Longest base reference kept: a path stands for a handful of versions.
const HELD_BYTES_MAX: usize = u16::MAX as usize;

/// A change this soon before a reading may not be over, or be followed by one with the same time: the clock of file
/// times ticks every 10 ms at most, and a write sets the time before it copies its bytes.
const TICK: Duration = Duration::from_millis(100);

/// The same where times are kept in whole or even seconds.
const COARSE_TICK: Duration = Duration::from_secs(2);

/// A file or directory of a home. Given once and kept through renames, never used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HomeId(pub u64);

impl HomeId {
    /// The home's own directory.
    pub const ROOT: Self = Self(0);
}

/// A time as the file system returned it: seconds since the epoch and nanoseconds in `0..1_000_000_000`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct FileTime {
    pub secs: i64,
    pub nanos: u32,
}

impl FileTime {
    /// From nanoseconds since the epoch.
    pub fn from_unix_nanos(nanos: u64) -> Self {
        Self {
            secs: (nanos / 1_000_000_000) as i64,
            nanos: (nanos % 1_000_000_000) as u32,
        }
    }

    /// Nanoseconds since the epoch; 0 for a time before it.
    pub fn unix_nanos(self) -> u64 {
        u64::try_from(self.nanos_since_epoch()).unwrap_or(0)
    }

    /// Distance to another time in nanoseconds.
    pub fn distance(self, other: Self) -> u128 {
        self.nanos_since_epoch().abs_diff(other.nanos_since_epoch())
    }

    fn nanos_since_epoch(self) -> i128 {
        i128::from(self.secs) * 1_000_000_000 + i128::from(self.nanos)
    }
}

/// Stands for an inode number where they do not last: there a name says what is at it.
pub const UNKNOWN_INO: u64 = 0;

/// What tells without reading it that a file is still the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Stamp {
    pub ino: u64,
    /// Bytes.
    pub size: u64,
    pub mtime: FileTime,
    pub ctime: FileTime,
}

impl Stamp {
    /// Whether the content is the same as far as the file system says: a changed ctime alone may be a rename, a chmod,
    /// or a write whose mtime was set back.
    pub fn same_content(&self, other: &Self) -> bool {
        (self.size, self.mtime) == (other.size, other.mtime) && self.same_ino(other.ino)
    }

    /// Whether the inode is the same, or may be for all that is known.
    pub fn same_ino(&self, ino: u64) -> bool {
        self.ino == ino || self.ino == UNKNOWN_INO || ino == UNKNOWN_INO
    }

    /// Whether nothing says that the file was touched.
    pub fn is_same(&self, other: &Self) -> bool {
        self.same_content(other) && self.ctime == other.ctime
    }
}

/// A name in a directory of the home.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct At {
    pub dir: HomeId,
    pub name: Bytes,
}

/// What is at a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RowKind {
    Dir,
    /// The content as the folder refers to it.
    File {
        content: Bytes,
    },
    /// Its target is the content.
    Symlink {
        target: Bytes,
    },
}

/// The base record of one path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    pub id: HomeId,
    pub stamp: Stamp,
    /// Permission bits (0o777).
    pub mode: u16,
    /// [`xattr_digest`] of its attributes.
    pub xattrs: u64,
    /// It was read so soon after a change that a later one may have the same time, or its content was not read again
    /// since its ctime changed.
    pub unsure: bool,
    pub kind: RowKind,
    /// The versions of the folder it stands for, in the folder's own words: what the next edit replaces.
    pub held: Bytes,
}

/// Why bytes are no base record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a base record is damaged")]
pub struct BadRow;

impl At {
    /// The record's key.
    pub fn key(&self) -> Bytes {
        let mut key = Vec::with_capacity(KEY_HEAD_LEN + self.name.len());
        key.extend_from_slice(&prefix(self.dir));
        key.extend_from_slice(&self.name);
        key.into()
    }

    /// The path a key is of.
    pub fn from_key(key: &Bytes) -> Result<Self, BadRow> {
        let head: &[u8; KEY_HEAD_LEN] = key.first_chunk().ok_or(BadRow)?;
        let [TABLE, dir @ ..] = *head else {
            return Err(BadRow);
        };
        Ok(Self {
            dir: HomeId(u64::from_be_bytes(dir)),
            name: key.slice(KEY_HEAD_LEN..),
        })
    }
}

/// What the keys of all records in a directory begin with.
pub fn prefix(dir: HomeId) -> [u8; KEY_HEAD_LEN] {
    let mut prefix = [TABLE; KEY_HEAD_LEN];
    prefix[1..].copy_from_slice(&dir.0.to_be_bytes());
    prefix
}

/// What the keys of all records begin with.
pub fn table_prefix() -> [u8; 1] {
    [TABLE]
}

/// What stands for a set of attributes where only a change matters; 0 for none.
pub fn xattr_digest<'a>(xattrs: impl IntoIterator<Item = (&'a Bytes, &'a Bytes)>) -> u64 {
    let mut hasher = blake3::Hasher::new();
    let mut any = false;
    for part in xattrs.into_iter().flat_map(|(name, value)| [name, value]) {
        any = true;
        hasher
            .update(&(part.len() as u64).to_le_bytes())
            .update(part);
    }
    let mut head = [0; 8];
    head.copy_from_slice(&hasher.finalize().as_bytes()[..8]);
    if any {
        u64::from_le_bytes(head).max(1)
    } else {
        0
    }
}

impl Row {
    pub fn is_dir(&self) -> bool {
        self.kind == RowKind::Dir
    }

    /// `kind u8 | unsure u8 | id u64 | ino u64 | size u64 | mtime | ctime | mode u16 | xattrs u64 | held u16 + bytes |
    /// content`, little-endian, a time as `secs i64 | nanos u32`.
    pub fn encode(&self) -> Bytes {
        let (kind, content) = match &self.kind {
            RowKind::Dir => (0, &Bytes::new()),
            RowKind::File { content } => (1, content),
            RowKind::Symlink { target } => (2, target),
        };
        let held = &self.held[..self.held.len().min(HELD_BYTES_MAX)];
        let mut out = Vec::with_capacity(70 + held.len() + content.len());
        out.extend_from_slice(&[kind, u8::from(self.unsure)]);
        for n in [self.id.0, self.stamp.ino, self.stamp.size] {
            out.extend_from_slice(&n.to_le_bytes());
        }
        for time in [self.stamp.mtime, self.stamp.ctime] {
            out.extend_from_slice(&time.secs.to_le_bytes());
            out.extend_from_slice(&time.nanos.to_le_bytes());
        }
        out.extend_from_slice(&self.mode.to_le_bytes());
        out.extend_from_slice(&self.xattrs.to_le_bytes());
        out.extend_from_slice(&(held.len() as u16).to_le_bytes());
        out.extend_from_slice(held);
        out.extend_from_slice(content);
        out.into()
    }

    /// Reads what [`Row::encode`] wrote.
    pub fn decode(bytes: &Bytes) -> Result<Self, BadRow> {
        let mut left = bytes.clone();
        let [kind, unsure] = take(&mut left)?;
        let id = HomeId(u64::from_le_bytes(take(&mut left)?));
        let ino = u64::from_le_bytes(take(&mut left)?);
        let size = u64::from_le_bytes(take(&mut left)?);
        let stamp = Stamp {
            ino,
            size,
            mtime: time(&mut left)?,
            ctime: time(&mut left)?,
        };
        let mode = u16::from_le_bytes(take(&mut left)?);
        let xattrs = u64::from_le_bytes(take(&mut left)?);
        let held = usize::from(u16::from_le_bytes(take(&mut left)?));
        if left.len() < held || unsure > 1 || mode > 0o777 {
            return Err(BadRow);
        }
        let held = left.split_to(held);
        let kind = match kind {
            0 if left.is_empty() => RowKind::Dir,
            1 => RowKind::File { content: left },
            2 => RowKind::Symlink { target: left },
            _ => return Err(BadRow),
        };
        Ok(Self {
            id,
            stamp,
            mode,
            xattrs,
            unsure: unsure == 1,
            kind,
            held,
        })
    }
}

/// For how long a later change could leave the same time on what was last changed at `mtime`.
pub(super) fn unsure_for(mtime: FileTime) -> Duration {
    if mtime.nanos == 0 { COARSE_TICK } else { TICK }
}

/// Whether a change right after `now` could leave the same time.
pub(super) fn is_unsure(mtime: FileTime, now: FileTime) -> bool {
    mtime.distance(now) < unsure_for(mtime).as_nanos()
}

fn take<const N: usize>(left: &mut Bytes) -> Result<[u8; N], BadRow> {
    let head = *left.first_chunk().ok_or(BadRow)?;
    let _taken = left.split_to(N);
    Ok(head)
}

fn time(left: &mut Bytes) -> Result<FileTime, BadRow> {
    let secs = i64::from_le_bytes(take(left)?);
    let nanos = u32::from_le_bytes(take(left)?);
    if nanos < 1_000_000_000 {
        Ok(FileTime { secs, nanos })
    } else {
        Err(BadRow)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    prop_compose! {
        fn times()(secs: i64, nanos in 0u32..1_000_000_000) -> FileTime {
            FileTime { secs, nanos }
        }
    }

    prop_compose! {
        fn rows()(
            numbers: (u64, u64, u64, u64), mtime in times(), ctime in times(),
            mode in 0u16..0o1000, unsure: bool, kind in 0..3, held: Vec<u8>, content: Vec<u8>,
        ) -> Row {
            let kind = match kind {
                0 => RowKind::Dir,
                1 => RowKind::File { content: content.into() },
                _ => RowKind::Symlink { target: content.into() },
            };
            let (id, ino, size, xattrs) = numbers;
            let stamp = Stamp { ino, size, mtime, ctime };
            Row { id: HomeId(id), stamp, mode, xattrs, unsure, kind, held: held.into() }
        }
    }

    proptest! {
        #[test]
        fn records_come_back_as_they_were(row in rows()) {
            prop_assert_eq!(Row::decode(&row.encode()), Ok(row));
        }

        #[test]
        fn any_bytes_decode_to_what_encodes_to_them_or_are_refused(bytes: Vec<u8>, kind in 0u8..4) {
            let mut bytes = bytes;
            if let Some(first) = bytes.first_mut() {
                *first = kind;
            }
            let bytes = Bytes::from(bytes);
            if let Ok(row) = Row::decode(&bytes) {
                prop_assert_eq!(row.encode(), bytes);
            }
        }

        #[test]
        fn keys_come_back_and_sort_by_directory(dir: u64, name: Vec<u8>) {
            let at = At { dir: HomeId(dir), name: name.into() };
            let key = at.key();
            prop_assert!(key.starts_with(&prefix(at.dir)) && key.starts_with(&table_prefix()));
            prop_assert_eq!(At::from_key(&key), Ok(at));
        }
    }

    #[test]
    fn a_cut_record_is_refused() {
        let row = Row {
            id: HomeId(7),
            stamp: Stamp::default(),
            mode: 0o644,
            xattrs: 0,
            unsure: false,
            kind: RowKind::Dir,
            held: Bytes::from_static(b"dots"),
        };
        let bytes = row.encode();
        for len in 0..bytes.len() {
            assert_eq!(Row::decode(&bytes.slice(..len)), Err(BadRow), "{len} bytes");
        }
        let mut longer = bytes.to_vec();
        longer.push(0);
        assert_eq!(Row::decode(&longer.into()), Err(BadRow));
    }

    #[test]
    fn attributes_that_only_concatenate_alike_differ() {
        let digest = |name: &'static str, value: &'static str| {
            xattr_digest([(&Bytes::from(name), &Bytes::from(value))])
        };
        assert_ne!(digest("user.a", "bc"), digest("user.ab", "c"));
        assert_eq!(xattr_digest([]), 0);
    }
}
