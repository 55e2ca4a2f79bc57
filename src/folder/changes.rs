//! The change list: the entries in which one tree differs from another, as a DELTA message carries
//! them (docs/formats/tree.md, "Change list").
//!
//! A one-file edit rewrites some 30 KB of tree nodes but changes one entry of about 100 bytes, so
//! peers send the entry and each rebuilds the nodes.

use bytes::Bytes;
use thiserror::Error;

use super::encoding::{DecodeError, Reader, in_range, put_prefixed, put_varint};
use super::tree::{MAX_KEY_LEN, MAX_VALUE_LEN, MIN_KEY_LEN};

/// Longest change list in bytes before compression; what changes more is fetched as nodes.
pub const MAX_CHANGES_LEN: usize = 1 << 20;
/// Entries are small and sent at once: the level at which zstd takes no noticeable time.
const ZSTD_LEVEL: i32 = 3;
/// Shortest change: operation, length and a key without a name.
const MIN_CHANGE_LEN: usize = 2 + MIN_KEY_LEN;

const OP_REMOVED: u8 = 0;
const OP_PUT: u8 = 1;

/// One changed entry: its key, and its new value unless it is removed.
pub type Change = (Bytes, Option<Bytes>);

/// A change list as it is sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PackedChanges {
    /// Length before compression in bytes.
    pub raw_len: u32,
    /// The list, compressed with zstd.
    pub zstd: Bytes,
}

/// Why changes cannot be sent as a list.
#[derive(Debug, Error)]
pub enum PackError {
    /// The list is longer than a message may carry.
    #[error("the change list is longer than {MAX_CHANGES_LEN} bytes")]
    TooLong,
    /// The compressor failed.
    #[error("zstd: {0}")]
    Zstd(#[source] std::io::Error),
}

/// Why a received change list is refused.
#[derive(Debug, Error)]
pub enum UnpackError {
    /// What was decompressed has another length than was stated.
    #[error("the change list has {actual} bytes, {stated} were announced")]
    Length {
        /// Length that the message states.
        stated: usize,
        /// Length that came out.
        actual: usize,
    },
    /// Not zstd, or more than was announced.
    #[error("zstd: {0}")]
    Zstd(#[source] std::io::Error),
    /// The list breaks the format.
    #[error("bad change list: {0}")]
    Malformed(#[from] DecodeError),
}

/// Encodes and compresses changes, which come in ascending order of keys.
pub fn pack(changes: &[Change]) -> Result<PackedChanges, PackError> {
    let raw = encode(changes).ok_or(PackError::TooLong)?;
    let zstd = zstd::bulk::compress(&raw, ZSTD_LEVEL).map_err(PackError::Zstd)?;
    Ok(PackedChanges {
        raw_len: raw.len() as u32,
        zstd: zstd.into(),
    })
}

/// Decompresses and decodes a received list. Allocates no more than `raw_len` and never more than
/// [`MAX_CHANGES_LEN`] for the decompressed bytes.
pub fn unpack(packed: &PackedChanges) -> Result<Vec<Change>, UnpackError> {
    let stated = packed.raw_len as usize;
    in_range(
        "length of the change list",
        stated as u64,
        1,
        MAX_CHANGES_LEN as u64,
    )?;
    let raw = zstd::bulk::decompress(&packed.zstd, stated).map_err(UnpackError::Zstd)?;
    if raw.len() != stated {
        return Err(UnpackError::Length {
            stated,
            actual: raw.len(),
        });
    }
    Ok(decode(&raw.into())?)
}

/// The list before compression; none if it gets too long.
fn encode(changes: &[Change]) -> Option<Vec<u8>> {
    let mut out = Vec::new();
    put_varint(&mut out, changes.len() as u64);
    for (key, value) in changes {
        out.push(if value.is_some() { OP_PUT } else { OP_REMOVED });
        put_prefixed(&mut out, key);
        if let Some(value) = value {
            put_prefixed(&mut out, value);
        }
        if out.len() > MAX_CHANGES_LEN {
            return None;
        }
    }
    Some(out)
}

fn decode(raw: &Bytes) -> Result<Vec<Change>, DecodeError> {
    let mut reader = Reader::new(raw);
    let count = reader.count("changes", MIN_CHANGE_LEN)?;
    let mut changes: Vec<Change> = Vec::with_capacity(count);
    for _ in 0..count {
        let op = reader.u8()?;
        let key = reader.prefixed("key length", MAX_KEY_LEN)?;
        in_range(
            "key length",
            key.len() as u64,
            MIN_KEY_LEN as u64,
            MAX_KEY_LEN as u64,
        )?;
        if changes.last().is_some_and(|(last, _)| *last >= key) {
            return Err(DecodeError::Order("changed keys"));
        }
        let value = match op {
            OP_REMOVED => None,
            OP_PUT => Some(raw.slice_ref(reader.prefixed("entry length", MAX_VALUE_LEN)?)),
            _ => return Err(DecodeError::Rule("unknown operation on an entry")),
        };
        changes.push((raw.slice_ref(key), value));
    }
    reader.finish()?;
    Ok(changes)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn any_list() -> impl Strategy<Value = Vec<Change>> {
        let key = prop::collection::vec(any::<u8>(), MIN_KEY_LEN..40);
        let value = prop::option::of(prop::collection::vec(any::<u8>(), 0..300));
        prop::collection::btree_map(key, value, 0..40).prop_map(|list: BTreeMap<_, _>| {
            list.into_iter()
                .map(|(key, value)| (key.into(), value.map(Bytes::from)))
                .collect()
        })
    }

    fn change(key: &'static [u8], value: Option<usize>) -> Change {
        (
            Bytes::from_static(key),
            value.map(|len| vec![7; len].into()),
        )
    }

    proptest! {
        #[test]
        fn a_list_survives_the_way(list in any_list()) {
            prop_assert_eq!(unpack(&pack(&list).unwrap()).unwrap(), list);
        }

        #[test]
        fn what_is_decoded_is_encoded_the_same(
            list in any_list(),
            at: prop::sample::Index,
            bit in 0_u8..8,
        ) {
            let mut raw = encode(&list).unwrap();
            let at = at.index(raw.len());
            raw[at] ^= 1 << bit;
            let raw = Bytes::from(raw);
            if let Ok(list) = decode(&raw) {
                prop_assert_eq!(encode(&list).unwrap(), raw);
            }
        }

        #[test]
        fn arbitrary_bytes_never_panic(
            bytes in prop::collection::vec(any::<u8>(), 0..300),
            raw_len: u32,
        ) {
            let bytes = Bytes::from(bytes);
            drop(decode(&bytes));
            drop(unpack(&PackedChanges { raw_len, zstd: bytes }));
        }
    }

    #[test]
    fn bytes_are_those_of_the_format() {
        let list = [change(b"aaaaaaaa", None), change(b"aaaaaaaab", Some(2))];
        let raw = encode(&list).unwrap();
        assert_eq!(raw, b"\x02\x00\x08aaaaaaaa\x01\x09aaaaaaaab\x02\x07\x07");
    }

    #[test]
    fn long_lists_are_not_packed() {
        let value = Some(vec![0; MAX_VALUE_LEN].into());
        let list: Vec<Change> = (0_u64..5)
            .map(|n| (n.to_be_bytes().to_vec().into(), value.clone()))
            .collect();
        assert!(pack(&list[..4]).is_ok());
        assert!(matches!(pack(&list), Err(PackError::TooLong)));
    }

    #[test]
    fn lists_that_lie_about_their_length_are_refused() {
        let honest = pack(&[change(b"aaaaaaaa", Some(100_000))]).unwrap();
        assert!(
            honest.zstd.len() < 1000,
            "compressed to {}",
            honest.zstd.len()
        );
        let with_len = |raw_len| {
            unpack(&PackedChanges {
                raw_len,
                zstd: honest.zstd.clone(),
            })
        };
        assert!(with_len(honest.raw_len).is_ok());
        assert!(matches!(
            with_len(honest.raw_len - 1),
            Err(UnpackError::Zstd(_))
        ));
        assert!(matches!(
            with_len(honest.raw_len + 1),
            Err(UnpackError::Length { .. })
        ));
        assert!(matches!(with_len(0), Err(UnpackError::Malformed(_))));
        assert!(matches!(
            with_len((1 << 20) + 1),
            Err(UnpackError::Malformed(_))
        ));
    }

    #[test]
    fn malformed_lists_are_refused() {
        let list = [change(b"aaaaaaaa", None), change(b"bbbbbbbb", None)];
        let good = encode(&list).unwrap();
        let decode = |bytes: &[u8]| decode(&Bytes::copy_from_slice(bytes));
        assert_eq!(decode(&good).unwrap(), list);
        let trailing = [&good[..], b"x"].concat();
        assert_eq!(decode(&trailing), Err(DecodeError::Trailing(1)));
        let unsorted = encode(&[list[1].clone(), list[0].clone()]).unwrap();
        assert_eq!(decode(&unsorted), Err(DecodeError::Order("changed keys")));
        let double = encode(&[list[0].clone(), list[0].clone()]).unwrap();
        assert_eq!(decode(&double), Err(DecodeError::Order("changed keys")));
        let operation = b"\x01\x02\x08aaaaaaaa";
        let unknown = DecodeError::Rule("unknown operation on an entry");
        assert_eq!(decode(operation), Err(unknown));
        assert!(matches!(
            decode(b"\x01\x00\x01a12345678"),
            Err(DecodeError::Range { .. })
        ));
        assert!(matches!(
            decode(b"\xff\xff\x03"),
            Err(DecodeError::Range { .. })
        ));
    }
}
