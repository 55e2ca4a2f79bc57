//! The recipe of a file: its chunks in order, and the segments in which that list is kept.
//!
//! A segment is a run of the list that ends after a chunk whose hash starts with a zero byte, or
//! after 1024 chunks. Where it ends depends on its own chunks only, so an edit rewrites the segment
//! it falls into, and a device that inserts a chunk shares all other segments with those that did
//! not. Encoded, a segment is its chunks one after the other: hash (32 bytes), length (24 bits,
//! little-endian). This is ccbt's own format, not Xet's.

use std::ops::Range;

use thiserror::Error;

use crate::chunk::MAX_CHUNK;
use crate::hash::{ChunkHash, FileHash, HASH_LEN};
use crate::merkle;

/// Most chunks of a segment. With one chunk in 256 ending one, few reach it unless by intent.
pub const MAX_SEGMENT: usize = 1024;

/// Encoded length of a chunk reference in bytes.
pub const REF_LEN: usize = HASH_LEN + 3;

/// A chunk of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ChunkRef {
    /// Its name.
    pub hash: ChunkHash,
    /// Its length in bytes, `1..=MAX_CHUNK`.
    pub len: u32,
}

impl ChunkRef {
    /// Whether a segment ends after this chunk.
    const fn ends_segment(&self) -> bool {
        self.hash.as_bytes()[0] == 0
    }
}

/// The chunks of a file, with their offsets.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recipe {
    chunks: Vec<ChunkRef>,
    /// Offset of the end of each chunk in the file.
    ends: Vec<u64>,
}

impl Recipe {
    /// The recipe of the file made of these chunks.
    pub fn new(chunks: Vec<ChunkRef>) -> Self {
        let ends = chunks.iter().scan(0u64, |end, chunk| {
            *end = end.saturating_add(u64::from(chunk.len));
            Some(*end)
        });
        let ends = ends.collect();
        Self { chunks, ends }
    }

    /// The chunks in file order.
    pub fn chunks(&self) -> &[ChunkRef] {
        &self.chunks
    }

    /// The chunks alone, for [`rechunk`](crate::rechunk) or for storing.
    pub fn into_chunks(self) -> Vec<ChunkRef> {
        self.chunks
    }

    /// Length of the file in bytes.
    pub fn len(&self) -> u64 {
        self.ends.last().copied().unwrap_or(0)
    }

    /// Whether the file is empty.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Number of the chunk that holds the byte at `offset`, and the offset at which it starts.
    /// `None` at and after the end of the file.
    pub fn find(&self, offset: u64) -> Option<(usize, u64)> {
        let index = self.ends.partition_point(|end| *end <= offset);
        let end = self.ends.get(index)?;
        Some((index, end - u64::from(self.chunks.get(index)?.len)))
    }

    /// The chunks that hold the bytes of `range`, each with the offset at which it starts.
    pub fn covering(&self, range: Range<u64>) -> impl Iterator<Item = (u64, ChunkRef)> {
        let (first, start) = self
            .find(range.start)
            .unwrap_or((self.chunks.len(), self.len()));
        let rest = self.chunks.get(first..).unwrap_or_default().iter();
        rest.scan(start, |next, chunk| {
            let start = *next;
            *next += u64::from(chunk.len);
            Some((start, *chunk))
        })
        .take_while(move |(start, _)| *start < range.end)
    }

    /// Xet hash of the file.
    pub fn file_hash(&self) -> FileHash {
        merkle::file_hash(
            self.chunks
                .iter()
                .map(|chunk| (chunk.hash, u64::from(chunk.len))),
        )
    }
}

/// Cuts a list of chunks into segments: ranges of chunk numbers, in order and without gaps.
pub fn segments(chunks: &[ChunkRef]) -> impl Iterator<Item = Range<usize>> {
    let mut start = 0;
    std::iter::from_fn(move || {
        let rest = chunks.get(start..).filter(|rest| !rest.is_empty())?;
        let longest = &rest[..rest.len().min(MAX_SEGMENT)];
        let last = longest.iter().position(ChunkRef::ends_segment);
        let range = start..start + last.map_or(longest.len(), |last| last + 1);
        start = range.end;
        Some(range)
    })
}

/// Whether a segment with these chunks is complete. Only the last segment of a file may not be.
pub fn is_closed(segment: &[ChunkRef]) -> bool {
    segment.len() >= MAX_SEGMENT || segment.last().is_some_and(ChunkRef::ends_segment)
}

/// The bytes of one segment, as [`segments`] cuts it.
pub fn encode_segment(segment: &[ChunkRef]) -> Vec<u8> {
    let mut out = Vec::with_capacity(segment.len() * REF_LEN);
    for chunk in segment {
        out.extend_from_slice(chunk.hash.as_bytes());
        out.extend_from_slice(&chunk.len.to_le_bytes()[..3]);
    }
    out
}

/// Reads one segment and checks that it is one [`segments`] could have cut. Whether an incomplete
/// one is the last of its file is for the caller to check, with [`is_closed`].
pub fn decode_segment(bytes: &[u8]) -> Result<Vec<ChunkRef>, SegmentError> {
    let (entries, rest) = bytes.as_chunks::<REF_LEN>();
    if !rest.is_empty() || !(1..=MAX_SEGMENT).contains(&entries.len()) {
        return Err(SegmentError::Length(bytes.len()));
    }
    let chunks: Vec<ChunkRef> = entries.iter().map(decode_ref).collect();
    let bad_len = |chunk: &ChunkRef| !(1..=MAX_CHUNK as u32).contains(&chunk.len);
    if let Some(index) = chunks.iter().position(bad_len) {
        return Err(SegmentError::ChunkLen {
            index,
            len: chunks[index].len,
        });
    }
    match chunks.iter().position(ChunkRef::ends_segment) {
        Some(index) if index + 1 < chunks.len() => Err(SegmentError::NotCut { index }),
        _ => Ok(chunks),
    }
}

fn decode_ref(entry: &[u8; REF_LEN]) -> ChunkRef {
    let (mut hash, mut len) = ([0; HASH_LEN], [0; 4]);
    hash.copy_from_slice(&entry[..HASH_LEN]);
    len[..3].copy_from_slice(&entry[HASH_LEN..]);
    ChunkRef {
        hash: ChunkHash::from_bytes(hash),
        len: u32::from_le_bytes(len),
    }
}

/// Why bytes are not a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum SegmentError {
    /// Not a whole number of entries, none, or more than [`MAX_SEGMENT`].
    #[error("{0} bytes are no segment")]
    Length(usize),
    /// A chunk of a length no chunk has.
    #[error("chunk {index} has {len} bytes")]
    ChunkLen {
        /// Number of the chunk in the segment.
        index: usize,
        /// Its stated length in bytes.
        len: u32,
    },
    /// Chunks follow one that ends a segment.
    #[error("the segment goes on after chunk {index}, which ends it")]
    NotCut {
        /// Number of the chunk in the segment.
        index: usize,
    },
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn chunk_ref() -> impl Strategy<Value = ChunkRef> {
        (any::<[u8; 32]>(), 1u32..=131_072, 0u8..8).prop_map(|(mut hash, len, end)| {
            hash[0] = end;
            ChunkRef {
                hash: ChunkHash::from_bytes(hash),
                len,
            }
        })
    }

    fn open_ref(len: u32) -> ChunkRef {
        ChunkRef {
            hash: ChunkHash::from_bytes([1; 32]),
            len,
        }
    }

    #[test]
    fn a_segment_is_cut_at_1024_chunks() {
        let chunks = vec![open_ref(9); 2500];
        let cut: Vec<_> = segments(&chunks).collect();
        assert_eq!(cut, [0..1024, 1024..2048, 2048..2500]);
        assert!(is_closed(&chunks[..1024]) && !is_closed(&chunks[..452]) && !is_closed(&[]));
        assert_eq!(segments(&[]).count(), 0);
    }

    #[test]
    fn broken_segments_are_refused() {
        let end = ChunkRef {
            hash: ChunkHash::from_bytes([0; 32]),
            len: 9,
        };
        let not_cut = encode_segment(&[open_ref(9), end, open_ref(9)]);
        assert_eq!(
            decode_segment(&not_cut),
            Err(SegmentError::NotCut { index: 1 })
        );
        let long = encode_segment(&vec![open_ref(9); 1025]);
        assert_eq!(decode_segment(&long), Err(SegmentError::Length(1025 * 35)));
        assert_eq!(decode_segment(&[]), Err(SegmentError::Length(0)));
        assert_eq!(decode_segment(&[1; 36]), Err(SegmentError::Length(36)));
        for len in [0, 131_073, 0xff_ffff] {
            let bytes = encode_segment(&[open_ref(9), open_ref(len)]);
            let expected = SegmentError::ChunkLen { index: 1, len };
            assert_eq!(decode_segment(&bytes), Err(expected));
        }
    }

    proptest! {
        #[test]
        fn segments_round_trip(chunks in prop::collection::vec(chunk_ref(), 0..100)) {
            let mut back = Vec::new();
            for range in segments(&chunks) {
                let segment = &chunks[range.clone()];
                prop_assert!(is_closed(segment) || range.end == chunks.len());
                back.extend(decode_segment(&encode_segment(segment)).expect("own segment"));
            }
            prop_assert_eq!(back, chunks);
        }

        #[test]
        fn arbitrary_bytes_decode_to_what_they_encode(
            entries in prop::collection::vec((any::<[u8; 32]>(), 0u32..140_000), 0..6),
            tail in prop::collection::vec(any::<u8>(), 0..3),
        ) {
            let mut bytes: Vec<u8> = entries.iter()
                .flat_map(|(hash, len)| [&hash[..], &len.to_le_bytes()[..3]].concat())
                .collect();
            bytes.extend(tail);
            if let Ok(segment) = decode_segment(&bytes) {
                prop_assert_eq!(segments(&segment).count(), 1);
                prop_assert_eq!(encode_segment(&segment), bytes);
            }
        }

        #[test]
        fn lookup_agrees_with_a_walk(
            chunks in prop::collection::vec(chunk_ref(), 0..20),
            from: prop::sample::Index,
            len in 0u64..300_000,
        ) {
            let recipe = Recipe::new(chunks.clone());
            let total: u64 = chunks.iter().map(|chunk| u64::from(chunk.len)).sum();
            prop_assert_eq!(recipe.len(), total);
            let offset = from.index(total as usize + 2) as u64;
            let (mut start, mut holder, mut covering) = (0, None, Vec::new());
            for (i, chunk) in chunks.iter().enumerate() {
                let end = start + u64::from(chunk.len);
                if start <= offset && offset < end {
                    holder = Some((i, start));
                }
                if start < offset + len && offset < end {
                    covering.push((start, *chunk));
                }
                start = end;
            }
            prop_assert_eq!(recipe.find(offset), holder);
            if len > 0 {
                prop_assert_eq!(recipe.covering(offset..offset + len).collect::<Vec<_>>(), covering);
            }
        }
    }
}
