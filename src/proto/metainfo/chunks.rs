//! Chunk lists of a torrent's files, and marks of their blocks: the key `xet` beside `info` (docs/bep_xet.md).
//!
//! Hints, believed by nobody: what is put together by them has to have the torrent's own hashes.

use std::collections::BTreeMap;

use ccbt_xet::chunk::MAX_CHUNK;
use ccbt_xet::hash::{ChunkHash, HASH_LEN};
use ccbt_xet::recipe::{ChunkRef, REF_LEN, encode_segment};

use super::Info;
use crate::proto::bencode::{Document, Item, Strictness, Value};

/// Bytes of a file that have one mark.
pub const MARKED_BYTES: u64 = 16 << 10;
/// The hashes that lists are made of.
const SUITE: &[u8] = b"blake3";

/// Tells blocks apart; too short to be relied on.
pub type Mark = [u8; 8];

/// The mark of a block.
pub fn mark(block: &[u8]) -> Mark {
    blake3::hash(block)
        .as_bytes()
        .first_chunk()
        .copied()
        .unwrap_or_default()
}

/// The chunks of some files of a torrent, by the numbers that BEP 53 gives them. Each list is as long as its file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ChunkLists {
    files: BTreeMap<u32, Vec<ChunkRef>>,
    /// Of each 16 KiB of a file, from its beginning.
    marks: BTreeMap<u32, Vec<Mark>>,
}

impl ChunkLists {
    /// What the dictionary has of the files of `info`; lists that do not fit are left out.
    pub fn read(dict: Value<'_>, info: &Info) -> Self {
        let mut lists = Self::default();
        if dict.get(b"suite").and_then(|v| v.bytes()) != Some(SUITE) {
            return lists;
        }
        let lengths: BTreeMap<u32, u64> = info
            .files
            .iter()
            .map(|file| (file.index, file.length))
            .collect();
        let files = dict.get(b"files").and_then(|v| v.dict());
        for (number, list) in files.into_iter().flatten() {
            let number = std::str::from_utf8(number)
                .ok()
                .and_then(|n| n.parse().ok());
            let length = number.and_then(|number| lengths.get(&number));
            let list = list.bytes().and_then(|bytes| decode(bytes, *length?));
            if let (Some(number), Some(list)) = (number, list) {
                lists.files.insert(number, list);
            }
        }
        let marks = dict.get(b"blocks").and_then(|v| v.dict());
        for (number, marks) in marks.into_iter().flatten() {
            let number = std::str::from_utf8(number)
                .ok()
                .and_then(|n| n.parse().ok());
            let Some((number, length)) = number.and_then(|n| Some((n, lengths.get(&n)?))) else {
                continue;
            };
            let (marks, rest) = marks.bytes().unwrap_or_default().as_chunks();
            if rest.is_empty() && marks.len() as u64 == length.div_ceil(MARKED_BYTES) {
                lists.marks.insert(number, marks.to_vec());
            }
        }
        lists
    }

    /// The same of a file of its own that holds nothing else.
    pub fn parse(bytes: &[u8], info: &Info) -> Option<Self> {
        let document = Document::parse(bytes, Strictness::AsFound).ok()?;
        Some(Self::read(document.root(), info))
    }

    pub fn encode(&self) -> Vec<u8> {
        let key = |number: &u32| number.to_string().into_bytes();
        let files = self.files.iter();
        let files = files.map(|(number, list)| (key(number), Item::Bytes(encode_segment(list))));
        let mut dict = BTreeMap::new();
        dict.insert(b"files".to_vec(), Item::Dict(files.collect()));
        dict.insert(b"suite".to_vec(), Item::Bytes(SUITE.to_vec()));
        if !self.marks.is_empty() {
            let marks = self.marks.iter();
            let marks = marks.map(|(number, marks)| (key(number), Item::Bytes(marks.concat())));
            dict.insert(b"blocks".to_vec(), Item::Dict(marks.collect()));
        }
        let mut out = Vec::new();
        Item::Dict(dict).encode(&mut out);
        out
    }

    /// Puts the lists into a `.torrent` file that has none and was written by us: `xet` is the last of its keys.
    pub fn add_to(&self, torrent: &mut Vec<u8>) {
        torrent.truncate(torrent.len().saturating_sub(1));
        torrent.extend_from_slice(b"3:xet");
        torrent.extend(self.encode());
        torrent.push(b'e');
    }

    pub fn set(&mut self, number: u32, list: Vec<ChunkRef>) {
        self.files.insert(number, list);
    }

    pub fn set_marks(&mut self, number: u32, marks: Vec<Mark>) {
        self.marks.insert(number, marks);
    }

    /// The marks of a file in order, if they are known.
    pub fn marks_of(&self, number: u32) -> Option<&[Mark]> {
        self.marks.get(&number).map(Vec::as_slice)
    }

    /// The chunks of a file in order, if they are known.
    pub fn of(&self, number: u32) -> Option<&[ChunkRef]> {
        self.files.get(&number).map(Vec::as_slice)
    }

    pub fn is_empty(&self) -> bool {
        self.files.is_empty()
    }

    /// Chunks in all.
    pub fn len(&self) -> usize {
        self.files.values().map(Vec::len).sum()
    }

    pub fn iter(&self) -> impl Iterator<Item = (u32, &[ChunkRef])> {
        let files = self.files.iter();
        files.map(|(number, list)| (*number, list.as_slice()))
    }
}

/// `None` unless the chunks are together as long as the file.
fn decode(bytes: &[u8], length: u64) -> Option<Vec<ChunkRef>> {
    let (entries, rest) = bytes.as_chunks::<REF_LEN>();
    let chunk = |entry: &[u8; REF_LEN]| {
        let (hash, len) = entry.split_at(HASH_LEN);
        let len = u32::from_le_bytes([*len.first()?, *len.get(1)?, *len.get(2)?, 0]);
        let sane = (1..=MAX_CHUNK as u32).contains(&len);
        let hash = ChunkHash::from_bytes(hash.try_into().ok()?);
        sane.then_some(ChunkRef { hash, len })
    };
    let list: Vec<ChunkRef> = entries.iter().map(chunk).collect::<Option<_>>()?;
    let bytes: u64 = list.iter().map(|chunk| u64::from(chunk.len)).sum();
    (rest.is_empty() && bytes == length && length > 0).then_some(list)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::metainfo::Torrent;

    fn info() -> Info {
        let text = b"d5:filesld6:lengthi100000e4:pathl1:aeed6:lengthi0e4:pathl1:eeed6:lengthi5e4:pathl1:beee4:name1:t12:piece lengthi131072e6:pieces20:aaaaaaaaaaaaaaaaaaaae";
        Info::parse(text).unwrap()
    }

    fn chunk(n: u8, len: u32) -> ChunkRef {
        let hash = ChunkHash::from_bytes([n; HASH_LEN]);
        ChunkRef { hash, len }
    }

    #[test]
    fn lists_come_back_and_those_that_do_not_fit_are_left_out() {
        let mut lists = ChunkLists::default();
        lists.set(0, vec![chunk(1, 70_000), chunk(2, 30_000)]);
        lists.set(2, vec![chunk(3, 5)]);
        lists.set_marks(0, vec![[7; 8]; 7]);
        let info = info();
        assert_eq!(
            ChunkLists::parse(&lists.encode(), &info),
            Some(lists.clone())
        );
        let mut wrong = lists.clone();
        wrong.set(0, vec![chunk(1, 99_999)]);
        wrong.set(1, Vec::new());
        wrong.set(7, vec![chunk(1, 5)]);
        wrong.set_marks(0, vec![[7; 8]; 6]);
        wrong.set_marks(7, Vec::new());
        let read = ChunkLists::parse(&wrong.encode(), &info).unwrap();
        assert_eq!((read.len(), read.of(2).unwrap().len()), (1, 1));
        assert!(read.marks.is_empty());
        let mut torrent = [b"d4:info", info.raw(), b"e"].concat();
        lists.add_to(&mut torrent);
        let read = Torrent::parse(&torrent).unwrap();
        assert_eq!((read.chunks, read.info.hashes), (lists, info.hashes));
        let other = b"d5:filesde5:suite6:sha256e";
        assert!(ChunkLists::parse(other, &info).unwrap().is_empty());
        for bad in [&b""[..], b"i1e", b"le"] {
            assert!(ChunkLists::parse(bad, &info).is_none_or(|l| l.is_empty()));
        }
        for length in [0, MAX_CHUNK as u32 + 1] {
            let list = encode_segment(&[chunk(1, length)]);
            assert_eq!(decode(&list, length.into()), None);
        }
    }
}
