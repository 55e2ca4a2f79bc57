//! The rows that whoever keeps a plain copy of a folder keeps here, as they lie in memory: a folder may have a million of
//! them, so each is one piece of bytes.

use std::borrow::Borrow;
use std::cmp::Ordering;
use std::collections::BTreeSet;
use std::fmt;
use std::ops::Bound;

use bytes::Bytes;

use super::record::BYTES_MAX;
use crate::folder::encoding::{DecodeError, Reader, put_prefixed, put_varint};

/// Bytes that the length of a key takes.
const HEAD_LEN: usize = 2;

/// Rows by key.
#[derive(Debug, Default)]
pub(super) struct Table(BTreeSet<Row>);

/// `length of the key u16 | key | value`. Ordered, and equal, by key.
struct Row(Box<[u8]>);

impl Table {
    pub(super) fn get(&self, key: &[u8]) -> Option<Bytes> {
        let row = self.0.get(key)?;
        Some(Bytes::copy_from_slice(row.value()))
    }

    /// Sets a row. Keys are at most 65,535 bytes long; a longer one is cut.
    pub(super) fn insert(&mut self, key: &[u8], value: &[u8]) {
        self.0.replace(Row::new(key, value));
    }

    pub(super) fn remove(&mut self, key: &[u8]) {
        self.0.remove(key);
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.0.iter().map(|row| (row.key(), row.value()))
    }

    /// The rows whose keys begin with `prefix`, ascending.
    pub(super) fn range<'t>(&'t self, prefix: &'t [u8]) -> impl Iterator<Item = (Bytes, Bytes)> {
        let from = (Bound::Included(prefix), Bound::Unbounded);
        let rows = self.0.range::<[u8], _>(from);
        rows.take_while(|row| row.key().starts_with(prefix))
            .map(Row::split)
    }

    /// Gives rows the values that `change` says.
    pub(super) fn change(&mut self, change: impl Fn(&[u8]) -> Option<Bytes>) {
        let changed = |row: &Row| Some(Row::new(row.key(), &change(row.value())?));
        let changed: Vec<Row> = self.0.iter().filter_map(changed).collect();
        for row in changed {
            self.0.replace(row);
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
            Ok(Row::new(
                r.prefixed("row key", BYTES_MAX)?,
                r.prefixed("row", BYTES_MAX)?,
            ))
        };
        (0..self.rows)
            .map(|_| row())
            .collect::<Result<_, _>>()
            .map(Table)
    }
}

impl Row {
    fn new(key: &[u8], value: &[u8]) -> Self {
        let key = &key[..key.len().min(u16::MAX.into())];
        let mut out = Vec::with_capacity(HEAD_LEN + key.len() + value.len());
        out.extend_from_slice(&(key.len() as u16).to_le_bytes());
        out.extend_from_slice(key);
        out.extend_from_slice(value);
        Self(out.into())
    }

    fn value_start(&self) -> usize {
        let len = self.0.first_chunk().copied().unwrap_or_default();
        HEAD_LEN + usize::from(u16::from_le_bytes(len))
    }

    fn key(&self) -> &[u8] {
        let key = self.0.get(HEAD_LEN..self.value_start());
        key.unwrap_or_default()
    }

    fn value(&self) -> &[u8] {
        self.0.get(self.value_start()..).unwrap_or_default()
    }

    /// Key and value, in one piece of memory.
    fn split(&self) -> (Bytes, Bytes) {
        let mut key = Bytes::copy_from_slice(&self.0);
        let value = key.split_off(self.value_start().min(key.len()));
        (key.split_off(HEAD_LEN.min(key.len())), value)
    }
}

impl fmt::Debug for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (key, value) = (self.key().escape_ascii(), self.value().escape_ascii());
        write!(f, "{key}: {value}")
    }
}

impl Borrow<[u8]> for Row {
    fn borrow(&self) -> &[u8] {
        self.key()
    }
}

impl PartialEq for Row {
    fn eq(&self, other: &Self) -> bool {
        self.key() == other.key()
    }
}

impl Eq for Row {}

impl PartialOrd for Row {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Row {
    fn cmp(&self, other: &Self) -> Ordering {
        self.key().cmp(other.key())
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
