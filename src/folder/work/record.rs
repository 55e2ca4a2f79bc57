//! The records of the journal and their bytes (docs/formats/journal.md).
//!
//! A record holds the outcome of an operation, never the operation: the entries as they are afterwards, who has which
//! inode number, where written bytes lie. So replaying a record twice, or over a newer checkpoint, changes nothing.

use bytes::Bytes;

use super::extents::FileId;
use super::inodes::{Ino, Local, Meta, NodeKind, SpecialKind, Spot};
use crate::folder::encoding::{DecodeError, Reader, put_prefixed, put_varint, put_zigzag};
use crate::folder::state::{Content, Dot, Fid, Hlc, Inc, Key, NAME_BYTES_MAX, Name, Time};

/// Longest byte string in a record: an entry with its attributes, a base record, a file's content reference.
pub(super) const BYTES_MAX: usize = 16 << 20;

/// One record.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Record {
    Op(Box<OpRecord>),
    BodyStart(BodyStart),
    Data(DataRecord),
    Shape(ShapeRecord),
    Published(Published),
}

/// What one operation (or merge, or commit) left behind: all of it or nothing is replayed.
#[derive(Debug, Clone, PartialEq, Default)]
pub(super) struct OpRecord {
    /// The counters that grew.
    pub(super) seen: Vec<(Inc, u64)>,
    pub(super) hlc: Hlc,
    /// Encoded keys and entries; none: the entry is gone.
    pub(super) entries: Vec<(Bytes, Option<Bytes>)>,
    pub(super) metas: Vec<(Ino, Option<Meta>)>,
    pub(super) binds: Vec<(Spot, Option<Ino>)>,
    /// Rows of the caller's own table (base records of a home).
    pub(super) table: Vec<(Bytes, Option<Bytes>)>,
    pub(super) settled: Vec<Settled>,
    /// Bodies whose file was renamed or got other attributes.
    pub(super) moved: Vec<(BodyId, Anchor)>,
    /// Bodies whose file is gone.
    pub(super) dropped: Vec<BodyId>,
}

/// The number of the uncommitted content of one file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct BodyId(pub(super) u64);

/// Where in the state a file's versions are, and which of them its next commit replaces.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Anchor {
    pub(super) key: Key,
    /// The name it was opened under.
    pub(super) shown: Name,
    pub(super) dots: Vec<Dot>,
}

/// The version that uncommitted content lies over.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Base {
    pub(super) anchor: Anchor,
    pub(super) content: Content,
    pub(super) size: u64,
}

/// The first write to a file since its version `base`.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct BodyStart {
    pub(super) body: BodyId,
    pub(super) ino: Ino,
    pub(super) base: Base,
}

/// Bytes were written.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct DataRecord {
    pub(super) body: BodyId,
    pub(super) stamp: u64,
    pub(super) mtime: Time,
    pub(super) offset: u64,
    pub(super) len: u64,
    pub(super) at: DataAt,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum DataAt {
    /// In a staging file.
    Staging { file: u64, at: u64, crc: u32 },
    /// The last `len` bytes of this record.
    Inline,
}

/// The file was cut, extended, or got a hole.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct ShapeRecord {
    pub(super) body: BodyId,
    pub(super) stamp: u64,
    pub(super) mtime: Time,
    pub(super) change: Shape,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Shape {
    Size(u64),
    Zero {
        start: u64,
        end: u64,
    },
    /// Only the time changed.
    Time,
}

/// What was written up to `stamp` is version `base` now.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Settled {
    pub(super) body: BodyId,
    pub(super) stamp: u64,
    pub(super) base: Base,
}

/// A head that was signed, so that its numbers are never used again.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Published {
    pub(super) inc: Inc,
    pub(super) ctr: u64,
    pub(super) seq: u64,
    /// BLAKE3 of the 197 bytes of the head.
    pub(super) head: [u8; 32],
    pub(super) snapshot: [u8; 32],
    pub(super) root: [u8; 32],
}

impl Record {
    /// The bytes of the record; those of [`DataAt::Inline`] follow them in the journal.
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(128);
        match self {
            Self::Op(op) => {
                out.push(1);
                op.encode(&mut out);
            }
            Self::BodyStart(start) => {
                out.push(2);
                put_varint(&mut out, start.body.0);
                put_varint(&mut out, start.ino.0);
                put_base(&mut out, &start.base);
            }
            Self::Data(data) => {
                out.push(3);
                data.encode(&mut out);
            }
            Self::Shape(shape) => {
                out.push(4);
                shape.encode(&mut out);
            }
            Self::Published(published) => {
                out.push(5);
                published.encode(&mut out);
            }
        }
        out
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let r = &mut Reader::new(bytes);
        let record = match r.u8()? {
            1 => Self::Op(Box::new(OpRecord::decode(r)?)),
            2 => Self::BodyStart(BodyStart {
                body: BodyId(r.varint()?),
                ino: Ino(r.varint()?),
                base: base(r)?,
            }),
            3 => Self::Data(DataRecord::decode(r)?),
            4 => Self::Shape(ShapeRecord::decode(r)?),
            5 => Self::Published(Published::decode(r)?),
            _ => return Err(DecodeError::Rule("unknown kind of journal record")),
        };
        match (&record, r.remaining() as u64) {
            (
                Self::Data(DataRecord {
                    at: DataAt::Inline,
                    len,
                    ..
                }),
                left,
            ) if *len == left => {}
            (_, 0) => {}
            (_, left) => return Err(DecodeError::Trailing(left as usize)),
        }
        Ok(record)
    }
}

impl OpRecord {
    fn encode(&self, out: &mut Vec<u8>) {
        put_varint(out, self.seen.len() as u64);
        for (inc, ctr) in &self.seen {
            out.extend_from_slice(&inc.0);
            put_varint(out, *ctr);
        }
        put_varint(out, self.hlc.0);
        put_varint(out, self.entries.len() as u64);
        for (key, entry) in &self.entries {
            put_prefixed(out, key);
            put_option(out, entry.as_deref(), put_prefixed);
        }
        put_varint(out, self.metas.len() as u64);
        for (ino, meta) in &self.metas {
            put_varint(out, ino.0);
            put_option(out, meta.as_ref(), put_meta);
        }
        put_varint(out, self.binds.len() as u64);
        for (spot, ino) in &self.binds {
            put_spot(out, spot);
            put_varint(out, ino.map_or(0, |ino| ino.0));
        }
        put_varint(out, self.table.len() as u64);
        for (key, value) in &self.table {
            put_prefixed(out, key);
            put_option(out, value.as_deref(), put_prefixed);
        }
        put_varint(out, self.settled.len() as u64);
        for settled in &self.settled {
            put_varint(out, settled.body.0);
            put_varint(out, settled.stamp);
            put_base(out, &settled.base);
        }
        put_varint(out, self.moved.len() as u64);
        for (body, anchor) in &self.moved {
            put_varint(out, body.0);
            put_anchor(out, anchor);
        }
        put_varint(out, self.dropped.len() as u64);
        for body in &self.dropped {
            put_varint(out, body.0);
        }
    }

    fn decode(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            seen: list(r, "counters", 9, |r| Ok((Inc(r.array()?), r.varint()?)))?,
            hlc: Hlc(r.varint()?),
            entries: list(r, "entries", 2, |r| {
                let key = bytes(r, "key")?;
                Ok((key, option(r, |r| bytes(r, "entry"))?))
            })?,
            metas: list(r, "inodes", 2, |r| Ok((Ino(r.varint()?), option(r, meta)?)))?,
            binds: list(r, "names", 10, |r| {
                let spot = spot(r)?;
                let ino = r.varint()?;
                Ok((spot, (ino != 0).then_some(Ino(ino))))
            })?,
            table: list(r, "rows", 2, |r| {
                let key = bytes(r, "row key")?;
                Ok((key, option(r, |r| bytes(r, "row"))?))
            })?,
            settled: list(r, "commits", 3, |r| {
                Ok(Settled {
                    body: BodyId(r.varint()?),
                    stamp: r.varint()?,
                    base: base(r)?,
                })
            })?,
            moved: list(r, "moves", 12, |r| Ok((BodyId(r.varint()?), anchor(r)?)))?,
            dropped: list(r, "bodies", 1, |r| Ok(BodyId(r.varint()?)))?,
        })
    }

    /// Whether replaying it would do nothing.
    pub(super) fn is_empty(&self) -> bool {
        self.seen.is_empty()
            && self.entries.is_empty()
            && self.metas.is_empty()
            && self.binds.is_empty()
            && self.table.is_empty()
            && self.settled.is_empty()
            && self.moved.is_empty()
            && self.dropped.is_empty()
    }
}

impl DataRecord {
    fn encode(&self, out: &mut Vec<u8>) {
        put_varint(out, self.body.0);
        put_varint(out, self.stamp);
        put_time(out, self.mtime);
        put_varint(out, self.offset);
        put_varint(out, self.len);
        match self.at {
            DataAt::Inline => out.push(0),
            DataAt::Staging { file, at, crc } => {
                out.push(1);
                put_varint(out, file);
                put_varint(out, at);
                out.extend_from_slice(&crc.to_le_bytes());
            }
        }
    }

    fn decode(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            body: BodyId(r.varint()?),
            stamp: r.varint()?,
            mtime: time(r)?,
            offset: r.varint()?,
            len: r.varint()?,
            at: match r.u8()? {
                0 => DataAt::Inline,
                1 => DataAt::Staging {
                    file: r.varint()?,
                    at: r.varint()?,
                    crc: u32::from_le_bytes(r.array()?),
                },
                _ => return Err(DecodeError::Rule("unknown place of written bytes")),
            },
        })
    }
}

impl ShapeRecord {
    fn encode(&self, out: &mut Vec<u8>) {
        put_varint(out, self.body.0);
        put_varint(out, self.stamp);
        put_time(out, self.mtime);
        match self.change {
            Shape::Size(size) => {
                out.push(0);
                put_varint(out, size);
            }
            Shape::Zero { start, end } => {
                out.push(1);
                put_varint(out, start);
                put_varint(out, end);
            }
            Shape::Time => out.push(2),
        }
    }

    fn decode(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            body: BodyId(r.varint()?),
            stamp: r.varint()?,
            mtime: time(r)?,
            change: match r.u8()? {
                0 => Shape::Size(r.varint()?),
                1 => Shape::Zero {
                    start: r.varint()?,
                    end: r.varint()?,
                },
                2 => Shape::Time,
                _ => return Err(DecodeError::Rule("unknown change of a file's shape")),
            },
        })
    }
}

impl Published {
    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.inc.0);
        put_varint(out, self.ctr);
        put_varint(out, self.seq);
        out.extend_from_slice(&self.head);
        out.extend_from_slice(&self.snapshot);
        out.extend_from_slice(&self.root);
    }

    pub(super) fn decode(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            inc: Inc(r.array()?),
            ctr: r.varint()?,
            seq: r.varint()?,
            head: r.array()?,
            snapshot: r.array()?,
            root: r.array()?,
        })
    }
}

pub(super) fn put_anchor(out: &mut Vec<u8>, anchor: &Anchor) {
    out.extend_from_slice(&anchor.key.dir.0);
    put_prefixed(out, anchor.key.name.as_bytes());
    put_prefixed(out, anchor.shown.as_bytes());
    put_varint(out, anchor.dots.len() as u64);
    for dot in &anchor.dots {
        out.extend_from_slice(&dot.inc.0);
        put_varint(out, dot.ctr);
    }
}

pub(super) fn anchor(r: &mut Reader<'_>) -> Result<Anchor, DecodeError> {
    let dir = Fid(r.array()?);
    Ok(Anchor {
        key: Key::file(dir, name(r)?),
        shown: name(r)?,
        dots: list(r, "dots", 9, |r| {
            Ok(Dot {
                inc: Inc(r.array()?),
                ctr: r.varint()?,
            })
        })?,
    })
}

pub(super) fn put_base(out: &mut Vec<u8>, base: &Base) {
    put_anchor(out, &base.anchor);
    put_prefixed(out, &base.content.0);
    put_varint(out, base.size);
}

pub(super) fn base(r: &mut Reader<'_>) -> Result<Base, DecodeError> {
    Ok(Base {
        anchor: anchor(r)?,
        content: Content::from(r.prefixed("content", BYTES_MAX)?),
        size: r.varint()?,
    })
}

pub(super) fn put_time(out: &mut Vec<u8>, time: Time) {
    put_zigzag(out, time.secs);
    put_varint(out, u64::from(time.nanos));
}

pub(super) fn time(r: &mut Reader<'_>) -> Result<Time, DecodeError> {
    Ok(Time {
        secs: r.zigzag()?,
        nanos: r.varint_in("nanoseconds", 0, 999_999_999)? as u32,
    })
}

pub(super) fn put_spot(out: &mut Vec<u8>, spot: &Spot) {
    out.extend_from_slice(&spot.dir.0);
    put_prefixed(out, spot.name.as_bytes());
}

pub(super) fn spot(r: &mut Reader<'_>) -> Result<Spot, DecodeError> {
    Ok(Spot {
        dir: Fid(r.array()?),
        name: name(r)?,
    })
}

fn name(r: &mut Reader<'_>) -> Result<Name, DecodeError> {
    r.prefixed("name", NAME_BYTES_MAX).map(Name::from)
}

pub(super) fn put_meta(out: &mut Vec<u8>, meta: &Meta) {
    match &meta.kind {
        NodeKind::File => out.push(0),
        NodeKind::Dir(fid) => {
            out.push(1);
            out.extend_from_slice(&fid.0);
        }
        NodeKind::Special { kind, rdev, mode } => {
            out.push(2);
            out.push(*kind as u8);
            put_varint(out, u64::from(*rdev));
            put_varint(out, u64::from(*mode));
        }
    }
    let local = &meta.local;
    put_varint(out, u64::from(local.uid));
    put_varint(out, u64::from(local.gid));
    put_varint(out, u64::from(local.set_id));
    put_time(out, local.atime);
    put_time(out, local.ctime);
    put_option(out, local.mtime.as_ref(), |out, time| put_time(out, *time));
}

pub(super) fn meta(r: &mut Reader<'_>) -> Result<Meta, DecodeError> {
    let kind = match r.u8()? {
        0 => NodeKind::File,
        1 => NodeKind::Dir(Fid(r.array()?)),
        2 => NodeKind::Special {
            kind: SpecialKind::from_u8(r.u8()?)
                .ok_or(DecodeError::Rule("unknown kind of special file"))?,
            rdev: u32_of(r, "device number")?,
            mode: r.varint_in("mode", 0, 0o7777)? as u16,
        },
        _ => return Err(DecodeError::Rule("unknown kind of inode")),
    };
    let local = Local {
        uid: u32_of(r, "uid")?,
        gid: u32_of(r, "gid")?,
        set_id: r.varint_in("set-id bits", 0, 0o7777)? as u16,
        atime: time(r)?,
        ctime: time(r)?,
        mtime: option(r, time)?,
    };
    Ok(Meta { kind, local })
}

fn u32_of(r: &mut Reader<'_>, what: &'static str) -> Result<u32, DecodeError> {
    Ok(r.varint_in(what, 0, u64::from(u32::MAX))? as u32)
}

pub(super) fn bytes(r: &mut Reader<'_>, what: &'static str) -> Result<Bytes, DecodeError> {
    r.prefixed(what, BYTES_MAX).map(Bytes::copy_from_slice)
}

pub(super) fn put_option<T: ?Sized>(
    out: &mut Vec<u8>,
    value: Option<&T>,
    put: impl FnOnce(&mut Vec<u8>, &T),
) {
    out.push(u8::from(value.is_some()));
    if let Some(value) = value {
        put(out, value);
    }
}

pub(super) fn option<'a, T>(
    r: &mut Reader<'a>,
    get: impl FnOnce(&mut Reader<'a>) -> Result<T, DecodeError>,
) -> Result<Option<T>, DecodeError> {
    match r.u8()? {
        0 => Ok(None),
        1 => get(r).map(Some),
        _ => Err(DecodeError::Rule("a flag is neither 0 nor 1")),
    }
}

/// A counted list of items of at least `item_len` bytes each.
pub(super) fn list<'a, T>(
    r: &mut Reader<'a>,
    what: &'static str,
    item_len: usize,
    mut get: impl FnMut(&mut Reader<'a>) -> Result<T, DecodeError>,
) -> Result<Vec<T>, DecodeError> {
    let count = r.count(what, item_len)?;
    (0..count).map(|_| get(r)).collect()
}

/// The file an extent is in, as a tag byte and a number.
pub(super) fn put_file_id(out: &mut Vec<u8>, file: FileId) {
    let (tag, number) = match file {
        FileId::Journal(generation) => (0, generation),
        FileId::Staging(number) => (1, number),
    };
    out.push(tag);
    put_varint(out, number);
}

pub(super) fn file_id(r: &mut Reader<'_>) -> Result<FileId, DecodeError> {
    match r.u8()? {
        0 => r.varint().map(FileId::Journal),
        1 => r.varint().map(FileId::Staging),
        _ => Err(DecodeError::Rule("unknown kind of data file")),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn op() -> OpRecord {
        let local = Local {
            uid: 1000,
            gid: u32::MAX,
            set_id: 0o4000,
            atime: Time { secs: -5, nanos: 7 },
            ctime: Time::default(),
            mtime: Some(Time {
                secs: 1 << 40,
                nanos: 999_999_999,
            }),
        };
        let spot = Spot {
            dir: Fid([7; 8]),
            name: Name::from(&b"caf\xe9"[..]),
        };
        let kinds = [
            NodeKind::File,
            NodeKind::Dir(Fid([3; 8])),
            NodeKind::Special {
                kind: SpecialKind::BlockDevice,
                rdev: 0x801,
                mode: 0o640,
            },
        ];
        let meta = |kind| Meta {
            kind,
            local: local.clone(),
        };
        let mut metas: Vec<_> = kinds
            .into_iter()
            .enumerate()
            .map(|(i, kind)| (Ino(i as u64 + 2), Some(meta(kind))))
            .collect();
        metas.push((Ino(99), None));
        OpRecord {
            seen: vec![(Inc([1; 8]), 300)],
            hlc: Hlc(77 << 16),
            entries: vec![
                (
                    Bytes::from_static(b"key"),
                    Some(Bytes::from_static(b"entry")),
                ),
                (Bytes::from_static(b"gone"), None),
            ],
            metas,
            binds: vec![(spot.clone(), Some(Ino(2))), (spot, None)],
            table: vec![(Bytes::from_static(b"row"), None)],
            moved: vec![(BodyId(8), base_of().anchor)],
            settled: vec![Settled {
                body: BodyId(5),
                stamp: 9,
                base: base_of(),
            }],
            dropped: vec![BodyId(6)],
        }
    }

    fn base_of() -> Base {
        Base {
            anchor: Anchor {
                key: Key::file(Fid([7; 8]), Name::from(&b"name"[..])),
                shown: Name::from(&b"name (conflict)"[..]),
                dots: vec![Dot {
                    inc: Inc([9; 8]),
                    ctr: 4,
                }],
            },
            content: Content::from(&b"ref"[..]),
            size: 1 << 40,
        }
    }

    fn records() -> Vec<Record> {
        let time = Time {
            secs: 12,
            nanos: 34,
        };
        vec![
            Record::Op(Box::new(op())),
            Record::Op(Box::default()),
            Record::BodyStart(BodyStart {
                body: BodyId(1),
                ino: Ino(2),
                base: base_of(),
            }),
            Record::Data(DataRecord {
                body: BodyId(1),
                stamp: 3,
                mtime: time,
                offset: 1 << 33,
                len: 4096,
                at: DataAt::Staging {
                    file: 8,
                    at: 77,
                    crc: 0xdead_beef,
                },
            }),
            Record::Shape(ShapeRecord {
                body: BodyId(1),
                stamp: 4,
                mtime: time,
                change: Shape::Zero { start: 5, end: 6 },
            }),
            Record::Published(Published {
                inc: Inc([1; 8]),
                ctr: 2,
                seq: 3,
                head: [4; 32],
                snapshot: [5; 32],
                root: [6; 32],
            }),
        ]
    }

    #[test]
    fn records_survive_a_round_trip_and_no_prefix_is_one() {
        for record in records() {
            let bytes = record.encode();
            assert_eq!(Record::decode(&bytes).as_ref(), Ok(&record));
            for cut in 0..bytes.len() {
                assert!(
                    Record::decode(&bytes[..cut]).is_err(),
                    "{record:?} cut at {cut}"
                );
            }
        }
    }

    #[test]
    fn inline_bytes_follow_their_record() {
        let record = Record::Data(DataRecord {
            body: BodyId(1),
            stamp: 1,
            mtime: Time::default(),
            offset: 0,
            len: 5,
            at: DataAt::Inline,
        });
        let mut bytes = record.encode();
        bytes.extend_from_slice(b"hello");
        assert_eq!(Record::decode(&bytes), Ok(record));
        assert_eq!(
            Record::decode(&bytes[..bytes.len() - 1]),
            Err(DecodeError::Trailing(4))
        );
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(record) = Record::decode(&bytes) {
                prop_assert!(record.encode().len() <= bytes.len());
            }
        }
    }
}
