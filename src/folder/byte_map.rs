//! An ordered map from bytes to bytes for tables of a million small rows: rows lie one after the other in blocks, since a
//! piece of memory for each, and a place in a tree that points to it, would take half as much again as the rows.

use std::borrow::Borrow;
use std::cmp::Ordering;
use std::collections::{BTreeSet, btree_set};
use std::ops::Bound;

use super::encoding::{Reader, put_prefixed};

/// A block longer than this, in bytes, becomes two: a look-up reads one from its start, a change moves what follows.
const BLOCK_LEN_MAX: usize = 2 << 10;
/// Memory of a block grows in such steps, in bytes.
const STEP_LEN: usize = 128;

/// The map. Keys and values may be of any length.
#[derive(Debug, Clone, Default)]
pub(super) struct ByteMap {
    blocks: BTreeSet<Block>,
}

/// A block with less, in bytes, is joined with the next one if both have room in half a block.
const SHORT_LEN: usize = BLOCK_LEN_MAX / 4;

/// Rows in the order of their keys, at least one: the key after its length, the value after its length. Blocks are
/// ordered, and equal, by their first keys.
#[derive(Debug, Clone, Default)]
struct Block(Vec<u8>);

/// A key and its value.
type Row<'b> = (&'b [u8], &'b [u8]);

/// Rows in the order of their keys.
#[derive(Debug, Clone)]
pub(super) struct Rows<'m> {
    rest: &'m [u8],
    blocks: btree_set::Range<'m, Block>,
}

impl ByteMap {
    pub(super) fn is_empty(&self) -> bool {
        self.blocks.is_empty()
    }

    pub(super) fn get(&self, key: &[u8]) -> Option<&[u8]> {
        let block = self.block_for(key)?;
        let (_, value) = block.0.get(block.find(key).ok()?).and_then(split_row)?.0;
        Some(value)
    }

    /// Sets a row; returns the value it had.
    pub(super) fn insert(&mut self, key: &[u8], value: &[u8]) -> Option<Vec<u8>> {
        let place = self.block_for(key).or_else(|| self.blocks.first());
        let first = place.map(|block| block.first_key().to_vec());
        let block = first.and_then(|first| self.blocks.take(&first[..]));
        let mut block = block.unwrap_or_default();
        let old = block.set(key, Some(value));
        let is_last = self.blocks.last().is_none_or(|last| *last < block);
        self.blocks.extend(block.split_if_long(is_last));
        self.blocks.insert(block);
        old
    }

    /// Takes a row away; returns the value it had.
    pub(super) fn remove(&mut self, key: &[u8]) -> Option<Vec<u8>> {
        let block = self.block_for(key)?;
        block.find(key).ok()?;
        let first = block.first_key().to_vec();
        let mut block = self.blocks.take(&first[..])?;
        let old = block.set(key, None);
        if block.0.len() < SHORT_LEN {
            self.join_next(&mut block, key);
        }
        if !block.0.is_empty() {
            self.blocks.insert(block);
        }
        old
    }

    /// Gives a block the rows of the one behind it, that begins behind `key`, if they are few.
    fn join_next(&mut self, block: &mut Block, key: &[u8]) {
        let behind = (Bound::Excluded(key), Bound::Unbounded);
        let next = self.blocks.range::<[u8], _>(behind).next();
        let Some(next) = next.filter(|next| block.0.len() + next.0.len() <= BLOCK_LEN_MAX / 2)
        else {
            return;
        };
        let first = next.first_key().to_vec();
        if let Some(next) = self.blocks.take(&first[..]) {
            block.make_room(next.0.len());
            block.0.extend_from_slice(&next.0);
        }
    }

    pub(super) fn iter(&self) -> Rows<'_> {
        Rows {
            rest: &[],
            blocks: self.blocks.range::<[u8], _>(..),
        }
    }

    /// The rows from `start` on.
    pub(super) fn range<'m>(&'m self, start: Bound<&[u8]>) -> Rows<'m> {
        let (Bound::Included(key) | Bound::Excluded(key)) = start else {
            return self.iter();
        };
        let from = self.block_for(key).map_or(key, Block::first_key);
        let from = (Bound::Included(from), Bound::Unbounded);
        let mut rows = Rows {
            rest: &[],
            blocks: self.blocks.range::<[u8], _>(from),
        };
        let is_excluded = matches!(start, Bound::Excluded(_));
        loop {
            let here = rows.clone();
            match rows.next() {
                Some((found, _)) if found < key || is_excluded && found == key => {}
                _ => return here,
            }
        }
    }

    /// The block that has a key if there is one: the last that does not begin behind it.
    fn block_for(&self, key: &[u8]) -> Option<&Block> {
        let until = (Bound::Unbounded, Bound::Included(key));
        self.blocks.range::<[u8], _>(until).next_back()
    }
}

impl FromIterator<(Vec<u8>, Vec<u8>)> for ByteMap {
    fn from_iter<I: IntoIterator<Item = (Vec<u8>, Vec<u8>)>>(rows: I) -> Self {
        let mut map = Self::default();
        for (key, value) in rows {
            map.insert(&key, &value);
        }
        map
    }
}

impl PartialEq for ByteMap {
    fn eq(&self, other: &Self) -> bool {
        self.iter().eq(other.iter())
    }
}

impl Eq for ByteMap {}

impl<'m> Iterator for Rows<'m> {
    type Item = Row<'m>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some((row, rest)) = split_row(self.rest) {
                self.rest = rest;
                return Some(row);
            }
            self.rest = &self.blocks.next()?.0;
        }
    }
}

/// The first row of some, key and value, and the others.
fn split_row(rows: &[u8]) -> Option<(Row<'_>, &[u8])> {
    let mut reader = Reader::new(rows);
    let key = reader.prefixed("key", usize::MAX).ok()?;
    let value = reader.prefixed("value", usize::MAX).ok()?;
    let rest = rows.get(rows.len() - reader.remaining()..)?;
    Some(((key, value), rest))
}

impl Block {
    fn first_key(&self) -> &[u8] {
        split_row(&self.0)
            .map(|((key, _), _)| key)
            .unwrap_or_default()
    }

    /// Where the row with a key is, or where it would be.
    fn find(&self, key: &[u8]) -> Result<std::ops::Range<usize>, usize> {
        let mut at = 0;
        let mut rows = &self.0[..];
        while let Some(((found, _), rest)) = split_row(rows) {
            let end = self.0.len() - rest.len();
            match found.cmp(key) {
                Ordering::Less => {}
                Ordering::Equal => return Ok(at..end),
                Ordering::Greater => return Err(at),
            }
            (at, rows) = (end, rest);
        }
        Err(at)
    }

    /// Sets or removes a row; returns the value it had.
    fn set(&mut self, key: &[u8], value: Option<&[u8]>) -> Option<Vec<u8>> {
        let place = self.find(key);
        let old = place.clone().ok().and_then(|place| self.0.get(place));
        let old = old.and_then(split_row).map(|((_, old), _)| old.to_vec());
        let place = place.unwrap_or_else(|at| at..at);
        let mut row = Vec::new();
        if let Some(value) = value {
            put_prefixed(&mut row, key);
            put_prefixed(&mut row, value);
        }
        self.make_room(row.len().saturating_sub(place.len()));
        self.0.splice(place, row);
        old
    }

    /// Has the memory that so many bytes more take, and little beyond.
    fn make_room(&mut self, more: usize) {
        let len = self.0.len() + more;
        if self.0.capacity() < len {
            self.0
                .reserve_exact(len.next_multiple_of(STEP_LEN) - self.0.len());
        }
    }

    /// Cuts a long block in two and returns the second: of the last block the last row, because rows that come in order
    /// will follow it.
    fn split_if_long(&mut self, is_last: bool) -> Option<Self> {
        if self.0.len() <= BLOCK_LEN_MAX {
            return None;
        }
        let mut cut = 0;
        let mut rows = &self.0[..];
        while let Some((_, rest)) = split_row(rows) {
            let is_past_half = cut >= self.0.len() / 2;
            if cut > 0 && (rest.is_empty() || is_past_half && !is_last) {
                break;
            }
            (cut, rows) = (self.0.len() - rest.len(), rest);
        }
        let behind = self.0.split_off(cut);
        self.0.shrink_to_fit();
        (!behind.is_empty()).then_some(Self(behind))
    }
}

impl Borrow<[u8]> for Block {
    fn borrow(&self) -> &[u8] {
        self.first_key()
    }
}

impl PartialEq for Block {
    fn eq(&self, other: &Self) -> bool {
        self.first_key() == other.first_key()
    }
}

impl Eq for Block {}

impl PartialOrd for Block {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Block {
    fn cmp(&self, other: &Self) -> Ordering {
        self.first_key().cmp(other.first_key())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn check(map: &ByteMap, model: &BTreeMap<Vec<u8>, Vec<u8>>, from: &[u8]) {
        let pair = |(key, value): (&Vec<u8>, &Vec<u8>)| (key.clone(), value.clone());
        let own = |(key, value): (&[u8], &[u8])| (key.to_vec(), value.to_vec());
        assert_eq!(map.is_empty(), model.is_empty());
        assert!(map.iter().map(own).eq(model.iter().map(pair)));
        for start in [
            Bound::Included(from),
            Bound::Excluded(from),
            Bound::Unbounded,
        ] {
            let expected = model.range::<[u8], _>((start, Bound::Unbounded)).map(pair);
            assert!(map.range(start).map(own).eq(expected), "{start:?}");
        }
        for block in &map.blocks {
            let mut rows = Vec::new();
            let mut rest = &block.0[..];
            while let Some((_, after)) = split_row(rest) {
                rows.push(rest.len() - after.len());
                rest = after;
            }
            let longest = rows.iter().max().expect("a block has rows");
            assert!(block.0.len() - longest <= BLOCK_LEN_MAX, "{rows:?}");
        }
    }

    fn value() -> impl Strategy<Value = Option<Vec<u8>>> {
        prop_oneof![
            3 => Just(None),
            6 => proptest::collection::vec(any::<u8>(), 0..300).prop_map(Some),
            1 => proptest::collection::vec(any::<u8>(), 0..5000).prop_map(Some),
        ]
    }

    proptest! {
        #[test]
        fn equals_the_standard_map(
            steps in proptest::collection::vec((proptest::collection::vec(0u8..4, 0..5), value()), 0..150),
            from in proptest::collection::vec(0u8..4, 0..5),
        ) {
            let (mut map, mut model) = (ByteMap::default(), BTreeMap::new());
            for (key, value) in steps {
                let (old, expected) = match value {
                    Some(value) => (map.insert(&key, &value), model.insert(key.clone(), value)),
                    None => (map.remove(&key), model.remove(&key)),
                };
                prop_assert_eq!(old, expected);
                prop_assert_eq!(map.get(&key), model.get(&key).map(|value| &value[..]));
            }
            check(&map, &model, &from);
            let again: ByteMap = model.clone().into_iter().rev().collect();
            check(&again, &model, &from);
            prop_assert_eq!(again, map);
        }
    }

    #[test]
    fn blocks_are_full_in_whatever_order_rows_come_and_join_when_they_go() {
        let key = |n: u32| n.to_be_bytes();
        let scattered = |n: u32| key(n.wrapping_mul(0x9e37_79b9));
        let (mut ascending, mut random) = (ByteMap::default(), ByteMap::default());
        for n in 0..10_000 {
            ascending.insert(&key(n), &[7; 100]);
            random.insert(&scattered(n), &[7; 100]);
        }
        let most = |map: &ByteMap| {
            map.blocks
                .iter()
                .map(|block| block.0.capacity())
                .sum::<usize>()
        };
        assert!(most(&ascending) < 10_000 * 115, "{}", most(&ascending));
        assert!(most(&random) < 10_000 * 115, "{}", most(&random));
        let fill = |map: &ByteMap| map.iter().count() / map.blocks.len();
        assert!(fill(&ascending) >= 18, "{}", fill(&ascending));
        assert!(fill(&random) >= 9, "{}", fill(&random));
        for n in 0..9_900 {
            assert!(random.remove(&scattered(n)).is_some());
        }
        assert!(fill(&random) >= 3, "{}", fill(&random));
    }
}
