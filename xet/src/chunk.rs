//! The content-defined chunker: where a file is cut.
//!
//! A gear hash rolls over the bytes; a chunk ends after the first byte, at a size of at least
//! [`MIN_CHUNK`], where the top 16 bits of the hash are zero, or at [`MAX_CHUNK`], or at the end of
//! the file (draft-denis-xet, "Content-Defined Chunking").
//!
//! # Why the head of a chunk need not be hashed
//!
//! Each step shifts the 64-bit hash left by one, so a byte has left it after 64 steps: the hash at a
//! position is a function of the last 64 bytes alone. No cut may happen before size 8192, so hashing
//! from size 8128 with a zero state gives the same hash at size 8192 and after as hashing from the
//! chunk's first byte. Starting later would test a state that has not seen 64 bytes, and matches
//! where a full one does not.
//!
//! # Why there is no separate scan
//!
//! From a block that holds the rest of a chunk, [`Chunker::next_cut`] makes one SIMD call over up to
//! 120 KiB and returns while the bytes are still in the second-level cache, which is the moment to
//! hash them. Finding all matches in long windows first and selecting cuts among them gives the same
//! cuts, but hashes the heads of chunks too: 0.39 to 0.41 CPU seconds per 10^9 random bytes against
//! 0.35, and one call per byte where hostile data matches everywhere. With chunk hashes it is 0.54
//! against 0.50.

use gearhash::Hasher;

/// Size no chunk but a file's last is below, in bytes.
pub const MIN_CHUNK: usize = 8 * 1024;

/// Mean size the mask aims at, in bytes. Random data gives 63.7 KB.
pub const TARGET_CHUNK: usize = 64 * 1024;

/// Size at which a chunk is cut whatever its content, in bytes.
pub const MAX_CHUNK: usize = 128 * 1024;

/// A hash with none of these bits set ends a chunk: log2 of the target, at the top of the word
/// where all of the last 64 bytes have a say.
const MASK: u64 = 0xffff_0000_0000_0000;

/// Bytes that determine the hash: one per bit of its state.
const WINDOW: usize = 64;

/// Size of a chunk from which on its bytes are hashed.
const HASH_FROM: usize = MIN_CHUNK - WINDOW;

/// Finds the cuts of one stream of bytes, fed in blocks of any size.
#[derive(Clone, Debug, Default)]
pub struct Chunker {
    gear: Hasher<'static>,
    /// Bytes of the open chunk seen so far; below `MAX_CHUNK` between calls.
    len: usize,
}

impl Chunker {
    /// A chunker at the start of a file, or at any other chunk boundary.
    pub fn new() -> Self {
        Self::default()
    }

    /// Feeds the next bytes of the stream, up to the next cut.
    ///
    /// Returns how many bytes of `block` belong to the chunk that ends in it; call again with the
    /// rest. `None` means that all of `block` was taken and its chunk is still open.
    pub fn next_cut(&mut self, block: &[u8]) -> Option<usize> {
        let limit = block.len().min(MAX_CHUNK - self.len);
        let skipped = HASH_FROM.saturating_sub(self.len).min(limit);
        let warmed = (MIN_CHUNK - 1).saturating_sub(self.len).min(limit);
        self.gear.update(&block[skipped..warmed]);
        if let Some(taken) = self.gear.next_match(&block[warmed..limit], MASK) {
            self.restart();
            return Some(warmed + taken);
        }
        self.len += limit;
        if self.len == MAX_CHUNK {
            self.restart();
            return Some(limit);
        }
        None
    }

    /// Bytes of the open chunk; what is left of it at the end of the file is the last chunk.
    pub fn pending(&self) -> usize {
        self.len
    }

    fn restart(&mut self) {
        self.gear.set_hash(0);
        self.len = 0;
    }
}

/// The chunks of a whole file in memory, in order. An empty file has none.
pub fn chunks(data: &[u8]) -> Chunks<'_> {
    Chunks {
        chunker: Chunker::new(),
        rest: data,
    }
}

/// Iterator of [`chunks`].
#[derive(Clone, Debug)]
pub struct Chunks<'a> {
    chunker: Chunker,
    rest: &'a [u8],
}

impl<'a> Iterator for Chunks<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        if self.rest.is_empty() {
            return None;
        }
        let len = self.chunker.next_cut(self.rest).unwrap_or(self.rest.len());
        let (chunk, rest) = self.rest.split_at(len);
        self.rest = rest;
        Some(chunk)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The definition, one byte at a time and without skipping anything.
    fn reference_cuts(data: &[u8]) -> Vec<usize> {
        let mut cuts = Vec::new();
        let (mut hash, mut start) = (0u64, 0);
        for (i, byte) in data.iter().enumerate() {
            hash = (hash << 1).wrapping_add(gearhash::DEFAULT_TABLE[usize::from(*byte)]);
            let size = i + 1 - start;
            if size >= 8192 && (hash & 0xffff_0000_0000_0000 == 0 || size == 131_072) {
                cuts.push(i + 1);
                (hash, start) = (0, i + 1);
            }
        }
        cuts
    }

    fn streamed_cuts(data: &[u8], mut block_len: impl FnMut() -> usize) -> Vec<usize> {
        let (mut chunker, mut cuts, mut at) = (Chunker::new(), Vec::new(), 0);
        while at < data.len() {
            let block = &data[at..data.len().min(at + block_len())];
            match chunker.next_cut(block) {
                Some(taken) => {
                    at += taken;
                    cuts.push(at);
                }
                None => at += block.len(),
            }
        }
        assert_eq!(
            chunker.pending(),
            data.len() - cuts.last().copied().unwrap_or(0)
        );
        cuts
    }

    /// 64 bytes after which a zeroed or zero-fed gear hash matches, found by trial.
    fn matching_window(seed: u64) -> [u8; WINDOW] {
        (seed << 32..)
            .map(|n| {
                let mut bytes = [0; WINDOW];
                blake3::Hasher::new()
                    .update(&n.to_le_bytes())
                    .finalize_xof()
                    .fill(&mut bytes);
                bytes
            })
            .find(|bytes| {
                let mut gear = Hasher::default();
                gear.update(bytes);
                gear.is_match(MASK)
            })
            .expect("one window in 65536 matches")
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn any_blocks_give_the_cuts_of_the_definition(
            gaps in prop::collection::vec(prop_oneof![0usize..9_000, 8_000usize..8_400, 0usize..140_000], 0..6),
            fill: u8,
            sizes in prop::collection::vec(1usize..70_000, 1..20),
        ) {
            let windows = [matching_window(1), matching_window(2)];
            let mut data = Vec::new();
            for (i, gap) in gaps.iter().enumerate() {
                data.resize(data.len() + gap, fill);
                data.extend_from_slice(&windows[i % 2]);
            }
            let expected = reference_cuts(&data);
            let mut next = sizes.iter().cycle();
            prop_assert_eq!(&streamed_cuts(&data, || *next.next().expect("cycle")), &expected);
            let mut ends: Vec<usize> = chunks(&data)
                .scan(0, |at, chunk| { *at += chunk.len(); Some(*at) })
                .collect();
            if expected.last() != Some(&data.len()) {
                ends.pop();
            }
            prop_assert_eq!(&ends, &expected);
        }
    }

    #[test]
    fn zeros_are_cut_at_the_maximum() {
        let sizes = [131_072, 131_072, 131_072, 6_784];
        assert!(chunks(&vec![0; 400_000]).map(<[u8]>::len).eq(sizes));
    }
}
