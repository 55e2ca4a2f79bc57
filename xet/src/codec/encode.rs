//! Bytes to an LZ4 block (LZ4 Block Format Description): the encoder of everything that is stored compressed.
//!
//! Compressing is most of what storing text costs, and most of compressing is waiting: a match cannot be looked for before
//! it is known where the last one ends, and whether there is one no processor can foresee. So the sequences are made few
//! and what has to be waited for short:
//!
//! - Six bytes are hashed. A match of four or five bytes saves one or two, and takes as long as any other.
//! - A slot of the table holds 16 more bits of the hash beside the position. Whether bytes were seen before is known from
//!   the table alone, and only bytes that were are fetched from further back.
//! - How long a match is, how far back it begins and what is written for it is found by comparing and copying 8, 16 and 32
//!   bytes at once, without a branch as long as the answer is short.
//!
//! Positions are remembered by their low 16 bits: what comes out is a distance that a block can express, whatever else
//! stood there. Nothing here is unsafe. What is encoded is our own content, so its limits are about speed and not about strangers.

use std::ops::Range;

/// Positions remembered, of 4 bytes each: with the bytes they are about they share the first-level cache.
const SLOTS: usize = 1 << SLOT_BITS;
const SLOT_BITS: u32 = 13;

/// Bits that are hashed, and a prime of as many: the top bits of a product with it depend on all of them.
const HASHED_BITS: u32 = 48;
const PRIME: u64 = 227_718_039_650_203;

/// After `2^n` misses in a row a position is left out between two, after twice as many two, and so on.
const PATIENCE_BITS: usize = 4;

/// Length of the shortest match in bytes.
const MATCH_MIN: usize = 4;

/// A length of 15 in the token goes on in the bytes that follow, each but the last of which is 255.
const LONG: usize = 15;

/// No match may begin in as many last bytes of a block, nor reach into the last five: decoders rely on it.
const LAST_MATCH: usize = 12;
const LAST_LITERALS: usize = 5;

/// Bytes compared at once.
const STEP: usize = 16;

/// Literals copied at once.
const LITERALS: usize = 32;

/// Longest sequence that is written at once: token, lengths, literals and offset.
const SEQUENCE: usize = 1 + 1 + LITERALS + 2 + 1;

/// Where bytes were seen last, by their hash: more of the hash above, the low bits of the position below.
pub(super) struct Table(Box<[u32; SLOTS]>);

impl Table {
    pub(super) fn new() -> Self {
        Self(Box::new([0; SLOTS]))
    }

    /// Notes that `word` stands at `at`. How far back its like is, if the table has it.
    #[inline(always)]
    fn replace(&mut self, word: u64, at: usize) -> Option<u16> {
        let hash = (word << (64 - HASHED_BITS)).wrapping_mul(PRIME);
        let slot = &mut self.0[(hash >> (64 - SLOT_BITS)) as usize % SLOTS];
        let entry = (hash >> 16) as u32 & 0xffff_0000 | u32::from(at as u16);
        let seen = std::mem::replace(slot, entry);
        (seen ^ entry < 1 << 16).then(|| (at as u16).wrapping_sub(seen as u16))
    }
}

/// Longest block of so many bytes, and what is written beyond its end meanwhile.
pub(super) const fn room(len: usize) -> usize {
    len + len / 255 + SEQUENCE
}

/// Writes `bytes` as a block to the front of `out`. Returns its length, or `None` when there is no room for it.
pub(super) fn encode(bytes: &[u8], out: &mut [u8], table: &mut Table) -> Option<usize> {
    // Equal bytes give equal blocks, whatever was encoded before.
    table.0.fill(0);
    let mut block = Block { out, len: 0 };
    let (mut at, mut literals) = (1, 0);
    let last = bytes.len().saturating_sub(LAST_LITERALS);
    while let Some((found, offset)) = find(bytes, at, table) {
        let from = found - usize::from(offset);
        let start = found - same_before(bytes, found, from, found - literals);
        let end = found + MATCH_MIN;
        at = end + same_from(bytes, end, from + MATCH_MIN, last);
        block.sequence(bytes, literals..start, offset, at - start)?;
        literals = at;
        // The end of a match is often the start of the next one's like.
        if let Some(word) = word(bytes, at - 2) {
            table.replace(word, at - 2);
        }
    }
    block.last(&bytes[literals..])?;
    Some(block.len)
}

/// The first position from `at` where bytes stand that were seen before, and how far back.
#[inline(always)]
fn find(bytes: &[u8], mut at: usize, table: &mut Table) -> Option<(usize, u16)> {
    // Of the last match that may begin, there is just a word.
    let bytes = &bytes[..(bytes.len() + size_of::<u64>()).saturating_sub(LAST_MATCH)];
    let mut tries = 1 << PATIENCE_BITS;
    loop {
        let word = word(bytes, at)?;
        if let Some(offset) = table.replace(word, at)
            && let from = at.wrapping_sub(usize::from(offset))
            && from < at
            && half(bytes, from) == Some(word as u32)
        {
            return Some((at, offset));
        }
        at += tries >> PATIENCE_BITS;
        tries += 1;
    }
}

/// How many bytes before `at` are those before `from`, at most `max` and as many as a word has.
#[inline(always)]
fn same_before(bytes: &[u8], at: usize, from: usize, max: usize) -> usize {
    if max == 0 {
        return 0;
    }
    let words = from.checked_sub(size_of::<u64>()).and_then(|from| {
        let at = at - size_of::<u64>();
        Some((word(bytes, at)?, word(bytes, from)?))
    });
    let same = words.map_or(0, |(a, b)| (a ^ b).leading_zeros() / u8::BITS);
    max.min(same as usize)
}

/// How many bytes from `at` on are those from `from` on, up to `end`.
#[inline(always)]
fn same_from(bytes: &[u8], at: usize, from: usize, end: usize) -> usize {
    let mut same = 0;
    while at + same + STEP <= end
        && let Some(a) = wide(bytes, at + same)
        && let Some(b) = wide(bytes, from + same)
    {
        let different = a ^ b;
        if different != 0 {
            return same + (different.trailing_zeros() / u8::BITS) as usize;
        }
        same += STEP;
    }
    while at + same < end && bytes[at + same] == bytes[from + same] {
        same += 1;
    }
    same
}

#[inline(always)]
fn half(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

#[inline(always)]
fn word(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

#[inline(always)]
fn wide(bytes: &[u8], at: usize) -> Option<u128> {
    Some(u128::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

/// The block as far as it is written.
struct Block<'o> {
    out: &'o mut [u8],
    len: usize,
}

impl Block<'_> {
    /// Literals, then a match of `matched` bytes.
    #[inline(always)]
    fn sequence(
        &mut self,
        bytes: &[u8],
        literals: Range<usize>,
        offset: u16,
        matched: usize,
    ) -> Option<()> {
        let (count, matched) = (literals.len(), matched - MATCH_MIN);
        let source = bytes.get(literals.start..)?.first_chunk::<LITERALS>();
        let rest = self.out.get_mut(self.len..)?.first_chunk_mut::<SEQUENCE>();
        match (source, rest) {
            (Some(source), Some(rest)) if count <= LITERALS && matched < LONG + 255 => {
                self.len += short_sequence(rest, source, count, offset, matched);
            }
            _ => {
                self.literals(bytes.get(literals)?, matched)?;
                self.put(&offset.to_le_bytes())?;
                if matched >= LONG {
                    self.long(matched - LONG)?;
                }
            }
        }
        Some(())
    }

    /// The literals a block ends with.
    fn last(&mut self, literals: &[u8]) -> Option<()> {
        self.literals(literals, 0)
    }

    #[inline(never)]
    fn literals(&mut self, literals: &[u8], matched: usize) -> Option<()> {
        self.put(&[token(literals.len(), matched)])?;
        if literals.len() >= LONG {
            self.long(literals.len() - LONG)?;
        }
        self.put(literals)
    }

    /// The rest of a length.
    fn long(&mut self, mut rest: usize) -> Option<()> {
        while rest >= 255 {
            self.put(&[255])?;
            rest -= 255;
        }
        self.put(&[rest as u8])
    }

    fn put(&mut self, bytes: &[u8]) -> Option<()> {
        let room = self.out.get_mut(self.len..self.len + bytes.len())?;
        room.copy_from_slice(bytes);
        self.len += bytes.len();
        Some(())
    }
}

fn token(literals: usize, matched: usize) -> u8 {
    (literals.min(LONG) << 4 | matched.min(LONG)) as u8
}

/// Writes a sequence whose lengths take one more byte each at most: those bytes always, and what follows over them where there are
/// none. Of the literals too many are copied. Returns how long it is.
#[inline(always)]
fn short_sequence(
    rest: &mut [u8; SEQUENCE],
    source: &[u8; LITERALS],
    count: usize,
    offset: u16,
    matched: usize,
) -> usize {
    let literals_at = 1 + usize::from(count >= LONG);
    let offset_at = literals_at + count;
    rest[0] = token(count, matched);
    rest[1] = count.wrapping_sub(LONG) as u8;
    rest[literals_at..literals_at + LITERALS].copy_from_slice(source);
    rest[offset_at..offset_at + 2].copy_from_slice(&offset.to_le_bytes());
    rest[offset_at + 2] = matched.wrapping_sub(LONG) as u8;
    offset_at + 2 + usize::from(matched >= LONG)
}
