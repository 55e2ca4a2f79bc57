//! Where what is among the displaced came from: kept in the folder's table beside the base record, in the same update.

use bytes::Bytes;

use super::base::BadRow;
use crate::folder::state::Inc;

/// First byte of the keys under which origins are kept.
const TABLE: u8 = b'o';

/// First byte of an encoded origin: no base record and no intent begins so.
const ORIGIN: u8 = 0x20;

/// Why something was displaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// An edit of somebody else took its place.
    Replaced,
    /// Somebody else removed it.
    Removed,
}

/// Where a displaced thing was, and since when it is not there any more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    /// From the top of the home.
    pub path: Vec<u8>,
    pub why: Why,
    /// The incarnation whose version took its place; that of a removal is not known.
    pub by: Option<Inc>,
    /// Nanoseconds since 1970.
    pub when: u64,
    /// The versions it stood for, as a base record has them.
    pub held: Bytes,
}

/// The number that the name of a displaced thing begins with.
pub(super) fn number_of(name: &[u8]) -> Option<u64> {
    let number = name.split(|byte| *byte == b'-').next()?;
    std::str::from_utf8(number).ok()?.parse().ok()
}

/// The key of the origin of what lies under the name `file`: numbers may repeat after a crash, names cannot.
pub(super) fn key(file: &[u8]) -> Bytes {
    [&[TABLE][..], file].concat().into()
}

/// What the keys of all origins begin with.
pub(super) fn table_prefix() -> [u8; 1] {
    [TABLE]
}

/// The name a key is of.
pub(super) fn from_key(key: &[u8]) -> Option<&[u8]> {
    match key.split_first() {
        Some((&TABLE, file)) => Some(file),
        _ => None,
    }
}

impl Origin {
    /// `0x20 | why u8 | by 8, zeros if unknown | when u64 | held u16 + bytes | path`, little-endian.
    pub(super) fn encode(&self) -> Bytes {
        let why = match self.why {
            Why::Replaced => 0,
            Why::Removed => 1,
        };
        let held = &self.held[..self.held.len().min(usize::from(u16::MAX))];
        let mut out = vec![ORIGIN, why];
        out.extend_from_slice(&self.by.map_or([0; 8], |by| by.0));
        out.extend_from_slice(&self.when.to_le_bytes());
        out.extend_from_slice(&(held.len() as u16).to_le_bytes());
        out.extend_from_slice(held);
        out.extend_from_slice(&self.path);
        out.into()
    }

    pub(super) fn decode(bytes: &Bytes) -> Result<Self, BadRow> {
        let head: &[u8; 20] = bytes.first_chunk().ok_or(BadRow)?;
        let why = match head {
            [ORIGIN, 0, ..] => Why::Replaced,
            [ORIGIN, 1, ..] => Why::Removed,
            _ => return Err(BadRow),
        };
        let (mut by, mut when) = ([0; 8], [0; 8]);
        by.copy_from_slice(&head[2..10]);
        when.copy_from_slice(&head[10..18]);
        let len = usize::from(u16::from_le_bytes([head[18], head[19]]));
        let mut held = bytes.slice(20..);
        if held.len() < len {
            return Err(BadRow);
        }
        let path = held.split_off(len).to_vec();
        Ok(Self {
            path,
            why,
            by: (by != [0; 8]).then_some(Inc(by)),
            when: u64::from_le_bytes(when),
            held,
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::base::Row;
    use super::super::intent::Intent;
    use super::*;

    proptest! {
        #[test]
        fn origins_come_back_as_they_were_and_are_taken_for_nothing_else(
            path: Vec<u8>, removed: bool, by: [u8; 8], when: u64, held: Vec<u8>, file: Vec<u8>,
        ) {
            let origin = Origin {
                path,
                why: if removed { Why::Removed } else { Why::Replaced },
                by: (by != [0; 8]).then_some(Inc(by)),
                when,
                held: held.into(),
            };
            let bytes = origin.encode();
            prop_assert_eq!(Origin::decode(&bytes), Ok(origin));
            prop_assert!(Row::decode(&bytes).is_err() && Intent::decode(&bytes).is_err());
            let key = key(&file);
            prop_assert_eq!(from_key(&key), Some(&file[..]));
        }

        #[test]
        fn any_bytes_are_an_origin_or_refused(bytes: Vec<u8>) {
            let bytes = Bytes::from(bytes);
            if let Ok(origin) = Origin::decode(&bytes) {
                prop_assert_eq!(origin.encode(), bytes);
            }
        }
    }

    #[test]
    fn numbers_are_read_from_names() {
        assert_eq!(number_of(b"12-a-b"), Some(12));
        assert_eq!(number_of(b"x"), None);
        assert_eq!(number_of(b""), None);
    }
}
