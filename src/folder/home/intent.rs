//! Intents: what is about to be renamed in the home. Durable before the rename, gone in the same update that keeps the
//! new base record, so that after a crash in between what is on disk is known for ours and not taken for the user's.

use bytes::Bytes;

use super::base::{At, BadRow, Row};
use crate::folder::state::Fid;

/// First byte of the keys of intents in the folder's table.
const TABLE: u8 = b'i';

/// First byte of an encoded intent. Base records, in the same table, begin with 0 to 2.
const MOVE: u8 = 0x10;
const PUT: u8 = 0x11;
const DRESS: u8 = 0x12;

/// What is about to happen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Intent {
    /// Something goes from one name to another.
    Move { from: At, to: At, row: Row },
    /// A version becomes what is at a name, or a new directory does.
    Put {
        at: At,
        /// The name in the same directory under which the new file is whole.
        temp: Bytes,
        /// Its base record: the inode is the temporary file's.
        row: Row,
        /// For a new directory, which one of the folder it is.
        dir: Option<Fid>,
        /// What was there, and the name it gets among the displaced.
        old: Option<(Row, Bytes)>,
    },
    /// What is at a name gets other attributes; its record but for them.
    Dress { at: At, row: Row },
}

/// The number of an intent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct IntentId(pub(super) u64);

impl IntentId {
    pub(crate) fn key(self) -> Bytes {
        [&[TABLE][..], &self.0.to_be_bytes()].concat().into()
    }

    pub(crate) fn from_key(key: &[u8]) -> Option<Self> {
        let (TABLE, number) = key.split_first().map(|(table, rest)| (*table, rest))? else {
            return None;
        };
        Some(Self(u64::from_be_bytes(number.try_into().ok()?)))
    }
}

/// What the keys of all intents begin with.
pub(super) fn table_prefix() -> [u8; 1] {
    [TABLE]
}

impl Intent {
    /// `kind u8`, then fields, each `len u32 + bytes`: keys of places, names and encoded base records.
    pub(crate) fn encode(&self) -> Bytes {
        let (kind, fields) = match self {
            Self::Move { from, to, row } => (MOVE, vec![from.key(), to.key(), row.encode()]),
            Self::Put {
                at,
                temp,
                row,
                dir,
                old,
            } => {
                let mut fields = vec![at.key(), temp.clone(), row.encode()];
                fields.extend(dir.map(|fid| Bytes::copy_from_slice(&fid.0)));
                if let Some((old, name)) = old {
                    fields.extend([old.encode(), name.clone()]);
                }
                (PUT, fields)
            }
            Self::Dress { at, row } => (DRESS, vec![at.key(), row.encode()]),
        };
        let mut out = vec![kind];
        for field in fields {
            out.extend_from_slice(&(field.len() as u32).to_le_bytes());
            out.extend_from_slice(&field);
        }
        out.into()
    }

    pub(crate) fn decode(bytes: &Bytes) -> Result<Self, BadRow> {
        let kind = *bytes.first().ok_or(BadRow)?;
        let mut fields = Vec::new();
        let mut left = bytes.slice(1..);
        while !left.is_empty() {
            let len = left.first_chunk().ok_or(BadRow)?;
            let len = u32::from_le_bytes(*len) as usize;
            let mut rest = left.split_off(4);
            if rest.len() < len {
                return Err(BadRow);
            }
            left = rest.split_off(len);
            fields.push(rest);
        }
        match (kind, &fields[..]) {
            (MOVE, [from, to, row]) => Ok(Self::Move {
                from: At::from_key(from)?,
                to: At::from_key(to)?,
                row: Row::decode(row)?,
            }),
            (PUT, [at, temp, row, more @ ..]) => {
                let (dir, old) = match more {
                    [] => (None, None),
                    [fid] => (Some(Fid(fid[..].try_into().map_err(|_| BadRow)?)), None),
                    [old, name] => (None, Some((Row::decode(old)?, name.clone()))),
                    _ => return Err(BadRow),
                };
                Ok(Self::Put {
                    at: At::from_key(at)?,
                    temp: temp.clone(),
                    row: Row::decode(row)?,
                    dir,
                    old,
                })
            }
            (DRESS, [at, row]) => Ok(Self::Dress {
                at: At::from_key(at)?,
                row: Row::decode(row)?,
            }),
            _ => Err(BadRow),
        }
    }

    /// The base records in it.
    pub(super) fn rows_mut(&mut self) -> impl Iterator<Item = &mut Row> {
        let (row, old) = match self {
            Self::Move { row, .. } | Self::Dress { row, .. } => (row, None),
            Self::Put { row, old, .. } => (row, old.as_mut().map(|(row, _)| row)),
        };
        std::iter::once(row).chain(old)
    }
}

#[cfg(test)]
mod tests {
    use super::super::base::{FileTime, HomeId, RowKind, Stamp};
    use super::*;

    fn row(number: u64) -> Row {
        let time = FileTime {
            secs: -5,
            nanos: 999,
        };
        Row {
            id: HomeId(number),
            stamp: Stamp {
                ino: number * 7,
                size: 3,
                mtime: time,
                ctime: time,
            },
            mode: 0o640,
            xattrs: 9,
            unsure: true,
            kind: RowKind::File {
                content: Bytes::from_static(b"content"),
            },
            held: Bytes::from_static(b"0123456789abcdef"),
        }
    }

    fn at(dir: u64, name: &'static str) -> At {
        At {
            dir: HomeId(dir),
            name: name.into(),
        }
    }

    fn intents() -> [Intent; 5] {
        let put = |dir, old| Intent::Put {
            at: at(4, "name"),
            temp: Bytes::from_static(b".ccbt-tmp-9"),
            row: row(1),
            dir,
            old,
        };
        [
            Intent::Move {
                from: at(0, "a"),
                to: at(7, "b"),
                row: row(2),
            },
            Intent::Dress {
                at: at(2, "c"),
                row: row(5),
            },
            put(None, None),
            put(Some(Fid([7; 8])), None),
            put(None, Some((row(3), Bytes::from_static(b"3-name")))),
        ]
    }

    #[test]
    fn intents_come_back_as_they_were_and_cut_ones_are_refused() {
        for intent in intents() {
            let bytes = intent.encode();
            assert_eq!(Intent::decode(&bytes), Ok(intent.clone()));
            assert!(Row::decode(&bytes).is_err(), "taken for a base record");
            for len in 0..bytes.len() {
                let cut = Intent::decode(&bytes.slice(..len));
                // Without its last fields it is a put that replaces nothing; a record is written whole.
                let is_shorter = matches!(
                    &cut,
                    Ok(Intent::Put {
                        dir: None,
                        old: None,
                        ..
                    })
                );
                assert!(cut.is_err() || is_shorter, "{len} bytes of {intent:?}");
            }
        }
        let key = IntentId(77).key();
        assert_eq!(IntentId::from_key(&key), Some(IntentId(77)));
        assert_eq!(IntentId::from_key(b"i123"), None);
        assert_eq!(IntentId::from_key(b""), None);
    }
}
