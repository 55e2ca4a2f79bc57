//! Re-chunking after an edit equals chunking from scratch.

use std::convert::Infallible;

use super::*;
use crate::chunk::{self, MIN_CHUNK};
use crate::hash::chunk_hash;

/// Cases of the property test unless `CCBT_CASES` says otherwise.
const DEFAULT_CASES: u64 = 2_000;

/// splitmix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() % n.max(1) as u64) as usize
    }

    fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }
}

/// Bytes to build files from: zeros, in which nothing matches, a 16-byte pattern, noise, and between
/// them 64-byte windows after which the gear hash matches, at distances around the minimum chunk.
struct Material {
    bytes: Vec<u8>,
    window: [u8; 64],
}

impl Material {
    fn new() -> Self {
        let mut random = Random(1);
        let window =
            std::iter::repeat_with(|| std::array::from_fn(|_| random.next().to_le_bytes()[0]))
                .find(|bytes: &[u8; 64]| {
                    let mut gear = gearhash::Hasher::default();
                    gear.update(bytes);
                    gear.is_match(0xffff_0000_0000_0000)
                })
                .expect("one window in 65536 matches");
        let mut bytes = Vec::new();
        while bytes.len() < 1 << 20 {
            let len = match random.below(4) {
                0 => random.below(2_000),
                1 => MIN_CHUNK - 64 + random.below(3) - 1,
                2 => random.below(12_000),
                _ => random.below(30_000),
            };
            match random.below(3) {
                0 => bytes.extend(std::iter::repeat_n(0, len)),
                1 => bytes.extend((0..len).map(|i| (i % 16) as u8)),
                _ => bytes.extend((0..len).map(|_| random.next().to_le_bytes()[0])),
            }
            bytes.extend_from_slice(&window);
        }
        bytes.extend(std::iter::repeat_n(0, 1 << 18));
        Self { bytes, window }
    }

    fn piece(&self, random: &mut Random, len: usize) -> &[u8] {
        let start = random.below(self.bytes.len() - len);
        &self.bytes[start..start + len]
    }

    /// Appends `len` bytes made of a few pieces.
    fn append(&self, random: &mut Random, file: &mut Vec<u8>, len: usize) {
        let end = file.len() + len;
        while file.len() < end {
            let piece = (end - file.len()).min(1 + random.below(100_000));
            file.extend_from_slice(self.piece(random, piece));
            if random.one_in(2) && file.len() + 64 <= end {
                file.extend_from_slice(&self.window);
            }
        }
    }
}

fn from_scratch(data: &[u8]) -> Vec<ChunkRef> {
    let chunk = |bytes: &[u8]| ChunkRef {
        hash: chunk_hash(bytes),
        len: bytes.len() as u32,
    };
    chunk::chunks(data).map(chunk).collect()
}

/// What a call did.
struct Outcome {
    chunks: Vec<ChunkRef>,
    /// Ranges read, in order.
    reads: Vec<Range<u64>>,
    /// Offset and length of the chunks given to `store`.
    stored: Vec<Range<u64>>,
}

fn run(old: &[ChunkRef], new: &[u8], dirty: &[Range<u64>]) -> Outcome {
    let (mut reads, mut stored) = (Vec::new(), Vec::new());
    let read = |offset: u64, buf: &mut [u8]| {
        assert!(!buf.is_empty());
        let end = offset + buf.len() as u64;
        buf.copy_from_slice(&new[offset as usize..end as usize]);
        reads.push(offset..end);
        Ok::<_, Infallible>(())
    };
    let store = |chunk: ChunkRef, bytes: &[u8]| {
        stored.push((chunk, bytes.to_vec()));
        Ok(())
    };
    let change = Change {
        old,
        new_len: new.len() as u64,
        dirty,
        suite: Suite::Blake3,
    };
    let chunks = rechunk(&change, read, store).unwrap_or_else(|never| match never {});
    let stored = places(&chunks, &stored, new);
    Outcome {
        chunks,
        reads,
        stored,
    }
}

/// Where the stored chunks stand in the new file; asserts that their bytes are those of the file.
fn places(chunks: &[ChunkRef], stored: &[(ChunkRef, Vec<u8>)], new: &[u8]) -> Vec<Range<u64>> {
    let (mut at, mut next, mut places) = (0, 0, Vec::new());
    for chunk in chunks {
        let end = at + chunk.len as usize;
        let hit = stored
            .get(next)
            .filter(|(other, bytes)| other == chunk && bytes == &new[at..end]);
        if hit.is_some() {
            places.push(at as u64..end as u64);
            next += 1;
        }
        at = end;
    }
    assert_eq!(
        next,
        stored.len(),
        "stored chunks are chunks of the file, in order"
    );
    places
}

fn total(ranges: &[Range<u64>]) -> u64 {
    ranges.iter().map(|range| range.end - range.start).sum()
}

/// An edited copy of `old` and the ranges of it that were written.
fn edit(
    material: &Material,
    random: &mut Random,
    old: &[u8],
    boundaries: &[usize],
) -> (Vec<u8>, Vec<Range<u64>>) {
    let mut new = old.to_vec();
    match random.below(6) {
        0 => new.truncate(place(random, old.len(), boundaries)),
        1 => {
            let len = if random.one_in(3) {
                random.below(200)
            } else {
                random.below(60_000)
            };
            material.append(random, &mut new, len);
        }
        _ => {}
    }
    let mut dirty = Vec::new();
    for _ in 0..random.below(4) {
        let start = place(random, new.len(), boundaries);
        let longest = [1, 64, 3_000, 40_000][random.below(4)].min(new.len() - start);
        let len = random.below(longest + 1);
        match random.below(3) {
            // Written with the same bytes again.
            0 => {}
            1 => new[start..start + len].copy_from_slice(material.piece(random, len)),
            _ => new[start..start + len].fill(random.below(2) as u8),
        }
        dirty.push(start as u64..(start + len) as u64);
    }
    if random.one_in(4) {
        // Written before the file was cut off in front of it.
        let start = (new.len() + random.below(200_000)) as u64;
        dirty.push(start..start + 1 + random.below(1_000) as u64);
    }
    dirty.sort_by_key(|range| range.start);
    (new, dirty)
}

/// A place in a file of `len` bytes: often at or next to an old boundary.
fn place(random: &mut Random, len: usize, boundaries: &[usize]) -> usize {
    let anywhere = random.below(len + 1);
    match boundaries.get(random.below(boundaries.len())) {
        Some(boundary) if random.one_in(2) => {
            (boundary + random.below(3)).saturating_sub(1).min(len)
        }
        _ => anywhere,
    }
}

fn check_case(material: &Material, seed: u64) {
    let mut random = Random(seed);
    let len = match random.below(8) {
        0 => random.below(600_000),
        1 => random.below(9_000),
        _ => random.below(90_000),
    };
    let mut old = Vec::new();
    material.append(&mut random, &mut old, len);
    let old_chunks = from_scratch(&old);
    let boundaries: Vec<usize> = old_chunks
        .iter()
        .scan(0, |end, chunk| {
            *end += chunk.len as usize;
            Some(*end)
        })
        .collect();
    let (new, dirty) = edit(material, &mut random, &old, &boundaries);
    let outcome = run(&old_chunks, &new, &dirty);
    assert!(
        outcome.chunks == from_scratch(&new),
        "seed {seed}: other chunks than from scratch"
    );
    assert_eq!(
        total(&outcome.reads),
        total(&outcome.stored),
        "seed {seed}: read in vain"
    );
    let in_order = outcome
        .reads
        .windows(2)
        .all(|pair| pair[0].end <= pair[1].start);
    assert!(in_order, "seed {seed}: read twice");
}

#[test]
fn gives_the_chunks_of_chunking_from_scratch() {
    let cases = std::env::var("CCBT_CASES")
        .ok()
        .and_then(|text| text.parse().ok());
    let material = Material::new();
    for seed in 0..cases.unwrap_or(DEFAULT_CASES) {
        check_case(&material, seed);
    }
}

#[test]
fn an_edit_reads_only_around_itself() {
    let mut old = vec![0; 4 << 20];
    blake3::Hasher::new().finalize_xof().fill(&mut old);
    let old_chunks = from_scratch(&old);
    let mut new = old.clone();
    new[2_000_000..2_000_010].fill(7);
    let written = 2_000_000..2_000_010;
    let outcome = run(&old_chunks, &new, std::slice::from_ref(&written));
    assert_eq!(outcome.chunks, from_scratch(&new));
    assert!(total(&outcome.reads) <= 4 * MAX_CHUNK as u64);
    let untouched = run(&old_chunks, &old, &[]);
    assert_eq!((untouched.chunks, untouched.reads), (old_chunks, vec![]));
}

#[test]
fn the_old_end_is_no_boundary() {
    let old = vec![0; MAX_CHUNK + 5_000];
    let new = vec![0; MAX_CHUNK + 9_000];
    let outcome = run(&from_scratch(&old), &new, &[]);
    assert_eq!(outcome.chunks, from_scratch(&new));
    assert_eq!(outcome.reads[0].start, MAX_CHUNK as u64);
    assert_eq!(total(&outcome.reads), 9_000);
    // Cut off within the last chunk, it is cut anew; at a boundary, nothing is read.
    let shorter = run(&from_scratch(&new), &old, &[]);
    assert_eq!(shorter.chunks, from_scratch(&old));
    assert_eq!(shorter.reads[0].start, MAX_CHUNK as u64);
    assert_eq!(total(&shorter.reads), 5_000);
    assert_eq!(run(&from_scratch(&new), &new[..MAX_CHUNK], &[]).reads, []);
    assert_eq!(run(&from_scratch(&new), &[], &[]).chunks, []);
}

#[test]
fn a_new_file_is_read_once() {
    let mut new = vec![0; 1 << 20];
    blake3::Hasher::new().finalize_xof().fill(&mut new);
    let outcome = run(&[], &new, &[]);
    assert_eq!(outcome.chunks, from_scratch(&new));
    assert_eq!(outcome.stored.len(), outcome.chunks.len());
    assert_eq!(total(&outcome.reads), 1 << 20);
}

#[test]
fn errors_end_it() {
    let change = Change {
        old: &[],
        new_len: 10,
        dirty: &[],
        suite: Suite::Blake3,
    };
    let failed = rechunk(&change, |_, _| Err("read"), |_, _| Ok(()));
    assert_eq!(failed, Err("read"));
    let failed = rechunk(&change, |_, _| Ok(()), |_, _| Err("store"));
    assert_eq!(failed, Err("store"));
}
