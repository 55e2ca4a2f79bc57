//! The bytes of a file in memory: 4 KiB pages by number, holes are pages that are not there.

use std::collections::BTreeMap;

use bytes::Bytes;

/// Bytes of a page; also the unit of holes.
pub(super) const PAGE: u64 = 4096;

type Page = Box<[u8; PAGE as usize]>;

/// A sparse file. Bytes of the last page beyond the length are zero always.
#[derive(Default)]
pub(super) struct Pages {
    pages: BTreeMap<u64, Page>,
    len: u64,
}

impl Pages {
    pub(super) fn len(&self) -> u64 {
        self.len
    }

    /// How many pages are there.
    pub(super) fn allocated(&self) -> u64 {
        self.pages.len() as u64
    }

    /// How many pages a write to this range would add.
    pub(super) fn missing(&self, offset: u64, len: u64) -> u64 {
        if len == 0 {
            return 0;
        }
        let (first, last) = (offset / PAGE, (offset + len - 1) / PAGE);
        last - first + 1 - self.pages.range(first..=last).count() as u64
    }

    pub(super) fn read(&self, offset: u64, size: u32) -> Bytes {
        let end = self.len.min(offset.saturating_add(u64::from(size)));
        if offset >= end {
            return Bytes::new();
        }
        let mut bytes = vec![0; (end - offset) as usize];
        for (&number, page) in self.pages.range(offset / PAGE..=(end - 1) / PAGE) {
            let start = number * PAGE;
            let from = offset.max(start);
            let to = end.min(start + PAGE);
            bytes[(from - offset) as usize..(to - offset) as usize]
                .copy_from_slice(&page[(from - start) as usize..(to - start) as usize]);
        }
        bytes.into()
    }

    /// Writes and grows the file if needed. `offset + data.len()` must not overflow.
    pub(super) fn write(&mut self, offset: u64, data: &[u8]) {
        let end = offset + data.len() as u64;
        let mut at = offset;
        while at < end {
            let start = at / PAGE * PAGE;
            let to = end.min(start + PAGE);
            let page = self.pages.entry(at / PAGE).or_insert_with(empty_page);
            page[(at - start) as usize..(to - start) as usize]
                .copy_from_slice(&data[(at - offset) as usize..(to - offset) as usize]);
            at = to;
        }
        if !data.is_empty() {
            self.len = self.len.max(end);
        }
    }

    pub(super) fn set_len(&mut self, len: u64) {
        if len < self.len {
            drop(self.pages.split_off(&len.div_ceil(PAGE)));
            if let Some(page) = self.pages.get_mut(&(len / PAGE)) {
                page[(len % PAGE) as usize..].fill(0);
            }
        }
        self.len = len;
    }

    /// Makes the range a hole; the length stays.
    pub(super) fn punch(&mut self, offset: u64, len: u64) {
        let end = offset.saturating_add(len);
        let numbers: Vec<u64> = self
            .pages
            .range(offset / PAGE..end.div_ceil(PAGE))
            .map(|(&n, _)| n)
            .collect();
        for number in numbers {
            let start = number * PAGE;
            let (from, to) = (offset.max(start), end.min(start + PAGE));
            if to - from == PAGE {
                self.pages.remove(&number);
            } else if let Some(page) = self.pages.get_mut(&number) {
                page[(from - start) as usize..(to - start) as usize].fill(0);
            }
        }
    }

    /// The first byte of data at or after `offset`.
    pub(super) fn next_data(&self, offset: u64) -> Option<u64> {
        let (&number, _) = self.pages.range(offset / PAGE..).next()?;
        let at = offset.max(number * PAGE);
        (at < self.len).then_some(at)
    }

    /// The first byte of a hole at or after `offset`; the end of the file counts as one.
    pub(super) fn next_hole(&self, offset: u64) -> Option<u64> {
        if offset >= self.len {
            return None;
        }
        let mut number = offset / PAGE;
        while self.pages.contains_key(&number) {
            number += 1;
        }
        Some(self.len.min(offset.max(number * PAGE)))
    }
}

fn empty_page() -> Page {
    Box::new([0; PAGE as usize])
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Debug, Clone)]
    enum Op {
        Write(u64, Vec<u8>),
        SetLen(u64),
        Punch(u64, u64),
        Read(u64, u32),
    }

    fn op() -> impl Strategy<Value = Op> {
        let offset = 0..5 * PAGE;
        prop_oneof![
            (offset.clone(), prop::collection::vec(1..=255_u8, 0..6000))
                .prop_map(|(at, data)| Op::Write(at, data)),
            offset.clone().prop_map(Op::SetLen),
            (offset.clone(), 1..3 * PAGE).prop_map(|(at, len)| Op::Punch(at, len)),
            (offset, 0..9000_u32).prop_map(|(at, size)| Op::Read(at, size)),
        ]
    }

    fn apply(model: &mut Vec<u8>, op: &Op) {
        match op {
            Op::Write(at, data) if !data.is_empty() => {
                let end = *at as usize + data.len();
                model.resize(model.len().max(end), 0);
                model[*at as usize..end].copy_from_slice(data);
            }
            Op::SetLen(len) => model.resize(*len as usize, 0),
            Op::Punch(at, len) => {
                let to = model.len().min((at + len) as usize);
                let from = to.min(*at as usize);
                model[from..to].fill(0);
            }
            Op::Write(..) | Op::Read(..) => {}
        }
    }

    proptest! {
        #[test]
        fn behaves_like_a_vector_of_bytes(ops in prop::collection::vec(op(), 1..24)) {
            let (mut pages, mut model) = (Pages::default(), Vec::new());
            for op in &ops {
                match op {
                    Op::Write(at, data) => {
                        let expected = pages.allocated() + pages.missing(*at, data.len() as u64);
                        pages.write(*at, data);
                        prop_assert_eq!(pages.allocated(), expected);
                    }
                    Op::SetLen(len) => pages.set_len(*len),
                    Op::Punch(at, len) => pages.punch(*at, *len),
                    Op::Read(at, size) => {
                        let from = model.len().min(*at as usize);
                        let to = model.len().min(from + *size as usize);
                        prop_assert_eq!(&pages.read(*at, *size)[..], &model[from..to]);
                    }
                }
                apply(&mut model, op);
                prop_assert_eq!(pages.len(), model.len() as u64);
                prop_assert_eq!(&pages.read(0, u32::MAX)[..], &model[..]);
            }
            // Every byte that is not zero lies in data, and the two kinds of ranges take turns.
            let mut at = 0;
            while let Some(data) = pages.next_data(at) {
                prop_assert!(model[at as usize..data as usize].iter().all(|&byte| byte == 0));
                at = pages.next_hole(data).unwrap();
                prop_assert!(at > data);
            }
            prop_assert!(model[at.min(pages.len()) as usize..].iter().all(|&byte| byte == 0));
        }
    }

    #[test]
    fn a_hole_takes_no_page() {
        let mut pages = Pages::default();
        pages.write(10 * PAGE, b"x");
        assert_eq!(pages.allocated(), 1);
        assert_eq!(pages.next_data(0), Some(10 * PAGE));
        assert_eq!(pages.next_hole(0), Some(0));
        assert_eq!(pages.next_hole(10 * PAGE), Some(10 * PAGE + 1));
        assert_eq!(pages.next_hole(10 * PAGE + 1), None);
        pages.punch(10 * PAGE, PAGE);
        assert_eq!((pages.allocated(), pages.len()), (0, 10 * PAGE + 1));
    }
}
