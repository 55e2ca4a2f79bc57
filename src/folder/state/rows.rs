//! The files of a directory as they lie in memory: one row of bytes per name, because a folder has a million of them
//! and most say little: one version, no link, no attributes. A row is read where it is asked for.

use std::ops::Bound;

use bytes::Bytes;

use super::values::{
    Content, ContentDigest, Dot, FileEntry, FileKind, FileMeta, Hlc, Inc, LinkId, Name, Time,
    Version, Xattrs,
};
use crate::folder::byte_map::ByteMap;
use crate::folder::encoding::{DecodeError, Reader, put_prefixed, put_varint, put_zigzag};

/// Bit of the first byte of a version: it is a symlink.
const SYMLINK: u8 = 1;
/// Bit of the first byte of a version: it has a link id.
const LINKED: u8 = 2;

/// The entries of one directory, by name. None is empty.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Rows(ByteMap);

impl Rows {
    pub(super) fn get(&self, name: &[u8]) -> Option<FileEntry> {
        self.0.get(name).map(entry)
    }

    /// Whether there is a version at `name`.
    pub(super) fn shows(&self, name: &[u8]) -> bool {
        self.get(name)
            .is_some_and(|entry| !entry.versions.is_empty())
    }

    /// Puts `entry` at `name`, or takes what is there away if it is empty; returns what was there.
    pub(super) fn set(&mut self, name: &Name, new: &FileEntry) -> Option<FileEntry> {
        let old = match new.is_empty() {
            true => self.0.remove(name.as_bytes()),
            false => self.0.insert(name.as_bytes(), &row(new)),
        };
        old.map(|values| entry(&values))
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn names(&self) -> impl Iterator<Item = Name> {
        self.0.iter().map(|(name, _)| Name::from(name))
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (Name, FileEntry)> {
        self.range(Bound::Unbounded)
    }

    /// The entries from `start` on, in the order of their names.
    pub(super) fn range<'a>(
        &'a self,
        start: Bound<&[u8]>,
    ) -> impl Iterator<Item = (Name, FileEntry)> + use<'a> {
        let rows = self.0.range(start);
        rows.map(|(name, values)| (Name::from(name), entry(values)))
    }

    /// The names at which `other` has no entry or another.
    pub(super) fn missing_or_other<'a>(
        &'a self,
        other: Option<&'a Self>,
    ) -> impl Iterator<Item = Name> + 'a {
        let mut theirs = other
            .into_iter()
            .flat_map(|other| other.0.iter())
            .peekable();
        let mut is_there = move |mine: &(&[u8], &[u8])| {
            while theirs.next_if(|(name, _)| *name < mine.0).is_some() {}
            theirs.peek() == Some(mine)
        };
        let rows = self.0.iter().filter(move |mine| !is_there(mine));
        rows.map(|(name, _)| Name::from(name))
    }
}

fn row(entry: &FileEntry) -> Vec<u8> {
    let mut out = Vec::with_capacity(128);
    put_varint(&mut out, entry.versions.len() as u64);
    for version in &entry.versions {
        put_version(&mut out, version);
    }
    for meta in &entry.metas {
        put_meta(&mut out, meta);
    }
    out
}

fn entry(row: &[u8]) -> FileEntry {
    read_entry(row).expect("a row is read as it was written")
}

fn put_version(out: &mut Vec<u8>, version: &Version) {
    let symlink = if version.kind == FileKind::Symlink {
        SYMLINK
    } else {
        0
    };
    let linked = if version.link.is_some() { LINKED } else { 0 };
    out.push(symlink | linked);
    put_stamp(out, version.hlc, version.dot);
    put_prefixed(out, &version.content.0);
    put_varint(out, version.size);
    put_time(out, version.mtime);
    put_varint(out, u64::from(version.mode));
    if let Some(LinkId(dot)) = version.link {
        put_dot(out, dot);
    }
}

fn put_meta(out: &mut Vec<u8>, meta: &FileMeta) {
    put_stamp(out, meta.hlc, meta.dot);
    put_varint(out, u64::from(meta.mode));
    out.push(u8::from(meta.mtime.is_some()));
    if let Some((content, time)) = meta.mtime {
        out.extend_from_slice(&content.0);
        put_time(out, time);
    }
    put_varint(out, meta.xattrs.len() as u64);
    for (name, value) in &meta.xattrs {
        put_prefixed(out, name);
        put_prefixed(out, value);
    }
}

fn put_stamp(out: &mut Vec<u8>, hlc: Hlc, dot: Dot) {
    out.extend_from_slice(&hlc.0.to_le_bytes());
    put_dot(out, dot);
}

fn put_dot(out: &mut Vec<u8>, dot: Dot) {
    out.extend_from_slice(&dot.inc.0);
    put_varint(out, dot.ctr);
}

fn put_time(out: &mut Vec<u8>, time: Time) {
    put_zigzag(out, time.secs);
    put_varint(out, u64::from(time.nanos));
}

fn read_entry(bytes: &[u8]) -> Result<FileEntry, DecodeError> {
    let mut reader = Reader::new(bytes);
    let count = reader.count("versions", 1)?;
    let mut entry = FileEntry::default();
    entry.versions.reserve_exact(count);
    for _ in 0..count {
        entry.versions.push(read_version(&mut reader)?);
    }
    while reader.remaining() > 0 {
        entry.metas.push(read_meta(&mut reader)?);
    }
    Ok(entry)
}

fn read_version(reader: &mut Reader<'_>) -> Result<Version, DecodeError> {
    let flags = reader.u8()?;
    let (hlc, dot) = (Hlc(reader.u64()?), read_dot(reader)?);
    Ok(Version {
        hlc,
        dot,
        kind: if flags & SYMLINK != 0 {
            FileKind::Symlink
        } else {
            FileKind::File
        },
        content: Content::from(reader.prefixed("content", usize::MAX)?),
        size: reader.varint()?,
        mtime: read_time(reader)?,
        mode: read_mode(reader)?,
        link: if flags & LINKED != 0 {
            Some(LinkId(read_dot(reader)?))
        } else {
            None
        },
    })
}

fn read_meta(reader: &mut Reader<'_>) -> Result<FileMeta, DecodeError> {
    let (hlc, dot) = (Hlc(reader.u64()?), read_dot(reader)?);
    let mode = read_mode(reader)?;
    let mtime = match reader.u8()? {
        0 => None,
        _ => Some((ContentDigest(reader.array()?), read_time(reader)?)),
    };
    let mut xattrs = Xattrs::new();
    for _ in 0..reader.varint()? {
        let name = Bytes::copy_from_slice(reader.prefixed("name", usize::MAX)?);
        let value = Bytes::copy_from_slice(reader.prefixed("value", usize::MAX)?);
        xattrs.insert(name, value);
    }
    Ok(FileMeta {
        hlc,
        dot,
        mode,
        mtime,
        xattrs,
    })
}

fn read_dot(reader: &mut Reader<'_>) -> Result<Dot, DecodeError> {
    Ok(Dot {
        inc: Inc(reader.array()?),
        ctr: reader.varint()?,
    })
}

fn read_time(reader: &mut Reader<'_>) -> Result<Time, DecodeError> {
    Ok(Time {
        secs: reader.zigzag()?,
        nanos: reader.varint()? as u32,
    })
}

fn read_mode(reader: &mut Reader<'_>) -> Result<u16, DecodeError> {
    Ok(reader.varint()? as u16)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::values::NAME_BYTES_MAX;
    use super::*;

    fn dot() -> impl Strategy<Value = Dot> {
        (any::<[u8; 8]>(), any::<u64>()).prop_map(|(inc, ctr)| Dot { inc: Inc(inc), ctr })
    }

    fn time() -> impl Strategy<Value = Time> {
        (any::<i64>(), any::<u32>()).prop_map(|(secs, nanos)| Time { secs, nanos })
    }

    fn version() -> impl Strategy<Value = Version> {
        let stamp = (
            any::<u64>(),
            dot(),
            any::<bool>(),
            proptest::option::of(dot()),
        );
        let rest = (any::<Vec<u8>>(), any::<u64>(), time(), any::<u16>());
        (stamp, rest).prop_map(
            |((hlc, dot, symlink, link), (content, size, mtime, mode))| Version {
                hlc: Hlc(hlc),
                dot,
                kind: if symlink {
                    FileKind::Symlink
                } else {
                    FileKind::File
                },
                content: Content::from(&content[..]),
                size,
                mtime,
                mode,
                link: link.map(LinkId),
            },
        )
    }

    fn meta() -> impl Strategy<Value = FileMeta> {
        let set = proptest::option::of((any::<[u8; 8]>(), time()));
        let xattrs = proptest::collection::btree_map(any::<Vec<u8>>(), any::<Vec<u8>>(), 0..3);
        (any::<u64>(), dot(), any::<u16>(), set, xattrs).prop_map(
            |(hlc, dot, mode, mtime, xattrs)| FileMeta {
                hlc: Hlc(hlc),
                dot,
                mode,
                mtime: mtime.map(|(content, time)| (ContentDigest(content), time)),
                xattrs: xattrs
                    .into_iter()
                    .map(|(k, v)| (k.into(), v.into()))
                    .collect(),
            },
        )
    }

    fn entry() -> impl Strategy<Value = FileEntry> {
        let versions = proptest::collection::vec(version(), 0..4);
        (versions, proptest::collection::vec(meta(), 0..3))
            .prop_map(|(versions, metas)| FileEntry { versions, metas })
    }

    fn name() -> impl Strategy<Value = Name> {
        let short = proptest::collection::vec(b'a'..b'c', 1..3);
        let long = proptest::collection::vec(any::<u8>(), 1..=NAME_BYTES_MAX);
        prop_oneof![8 => short, 1 => long].prop_map(|bytes| Name::from(&bytes[..]))
    }

    proptest! {
        #[test]
        fn rows_are_a_map(sets in proptest::collection::vec((name(), entry()), 0..20), from in name()) {
            let mut rows = Rows::default();
            let mut map = std::collections::BTreeMap::new();
            for (name, entry) in sets {
                let old = match entry.is_empty() {
                    true => map.remove(&name),
                    false => map.insert(name.clone(), entry.clone()),
                };
                prop_assert_eq!(rows.set(&name, &entry), old);
            }
            let pairs: Vec<(Name, FileEntry)> = map.clone().into_iter().collect();
            prop_assert!(rows.iter().eq(pairs.iter().cloned()));
            let later = map.range(from.clone()..).map(|(name, entry)| (name.clone(), entry.clone()));
            prop_assert!(rows.range(Bound::Included(from.as_bytes())).eq(later));
            let mut again = Rows::default();
            for (name, entry) in pairs.iter().rev() {
                again.set(name, entry);
            }
            prop_assert!(again == rows && again.missing_or_other(Some(&rows)).next().is_none());
            for (name, entry) in &pairs {
                prop_assert_eq!(rows.shows(name.as_bytes()), !entry.versions.is_empty());
                let mut other = again.clone();
                let mut changed = entry.clone();
                changed.metas.clear();
                changed.versions.truncate(1);
                other.set(name, &changed);
                let differs: Vec<Name> = rows.missing_or_other(Some(&other)).collect();
                let expected: Vec<Name> = (changed != *entry).then(|| name.clone()).into_iter().collect();
                prop_assert_eq!(other == rows, expected.is_empty());
                prop_assert_eq!(differs, expected);
            }
        }
    }
}
