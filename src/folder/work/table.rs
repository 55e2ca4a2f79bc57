//! The rows that whoever keeps a plain copy of a folder keeps here, in memory and on disk.

use std::ops::Bound;

use bytes::Bytes;

use super::record::BYTES_MAX;
use crate::folder::byte_map::ByteMap;
use crate::folder::encoding::{DecodeError, Reader, put_prefixed, put_varint};

/// Rows by key.
#[derive(Debug, Default)]
pub(super) struct Table(ByteMap);

impl Table {
    pub(super) fn get(&self, key: &[u8]) -> Option<Bytes> {
        self.0.get(key).map(Bytes::copy_from_slice)
    }

    /// Sets a row. What is kept on disk has keys of at most 65,535 bytes.
    pub(super) fn insert(&mut self, key: &[u8], value: &[u8]) {
        self.0.insert(key, value);
    }

    pub(super) fn remove(&mut self, key: &[u8]) {
        self.0.remove(key);
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.0.iter()
    }

    /// The rows whose keys begin with `prefix`, ascending.
    pub(super) fn range<'t>(&'t self, prefix: &'t [u8]) -> impl Iterator<Item = (Bytes, Bytes)> {
        let rows = self.0.range(Bound::Included(prefix));
        rows.take_while(|(key, _)| key.starts_with(prefix))
            .map(|(key, value)| (Bytes::copy_from_slice(key), Bytes::copy_from_slice(value)))
    }

    /// Gives rows the values that `change` says.
    pub(super) fn change(&mut self, change: impl Fn(&[u8]) -> Option<Bytes>) {
        let changed = |(key, value): (&[u8], &[u8])| Some((key.to_vec(), change(value)?));
        let changed: Vec<(Vec<u8>, Bytes)> = self.0.iter().filter_map(changed).collect();
        for (key, value) in changed {
            self.0.insert(&key, &value);
        }
    }
}

/// A table as it is on disk: the count of its rows, and for each its key and its value, each after its length.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Packed {
    rows: u64,
    bytes: Vec<u8>,
}

impl Packed {
    pub(super) fn of(table: &Table) -> Self {
        let mut packed = Self::default();
        table
            .iter()
            .for_each(|(key, value)| packed.push(key, value));
        packed
    }

    fn push(&mut self, key: &[u8], value: &[u8]) {
        self.rows += 1;
        put_prefixed(&mut self.bytes, key);
        put_prefixed(&mut self.bytes, value);
    }

    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        put_varint(out, self.rows);
        out.extend_from_slice(&self.bytes);
    }

    pub(super) fn decode(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let mut packed = Self::default();
        for _ in 0..r.count("rows", 2)? {
            let key = r.prefixed("row key", usize::from(u16::MAX))?;
            packed.push(key, r.prefixed("row", BYTES_MAX)?);
        }
        Ok(packed)
    }

    pub(super) fn table(&self) -> Result<Table, DecodeError> {
        let mut r = Reader::new(&self.bytes);
        let mut row = || {
            let key = r.prefixed("row key", BYTES_MAX)?.to_vec();
            Ok((key, r.prefixed("row", BYTES_MAX)?.to_vec()))
        };
        (0..self.rows)
            .map(|_| row())
            .collect::<Result<_, _>>()
            .map(Table)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_table_is_a_map(
            steps in prop::collection::vec((prop::collection::vec(0u8..3, 0..4), any::<Option<Vec<u8>>>()), 0..60),
            prefix in prop::collection::vec(0u8..3, 0..3),
        ) {
            let (mut table, mut map) = (Table::default(), BTreeMap::new());
            for (key, value) in steps {
                match value {
                    Some(value) => {
                        table.insert(&key, &value);
                        map.insert(key, value);
                    }
                    None => {
                        table.remove(&key);
                        map.remove(&key);
                    }
                }
            }
            let all = map.iter().map(|(key, value)| (&key[..], &value[..]));
            prop_assert!(table.iter().eq(all.clone()));
            prop_assert!(map.iter().all(|(key, value)| table.get(key).unwrap() == value[..]));
            prop_assert_eq!(table.get(b"none"), None);
            let own = |(key, value): (&[u8], &[u8])| (Bytes::copy_from_slice(key), Bytes::copy_from_slice(value));
            let found: Vec<_> = table.range(&prefix).collect();
            let wanted: Vec<_> = all.clone().filter(|(key, _)| key.starts_with(&prefix)).map(own).collect();
            prop_assert_eq!(found, wanted);
            let mut packed = Vec::new();
            Packed::of(&table).encode(&mut packed);
            let again = Packed::decode(&mut Reader::new(&packed)).unwrap().table().unwrap();
            prop_assert!(again.iter().eq(table.iter()));
            prop_assert!(packed.is_empty() || Packed::decode(&mut Reader::new(&packed[..packed.len() - 1])).is_err());
            table.change(|value| value.first().map(|first| Bytes::copy_from_slice(&[*first])));
            let short = map.iter().map(|(key, value)| (&key[..], &value[..value.len().min(1)]));
            prop_assert!(table.iter().eq(short));
        }
    }
}
