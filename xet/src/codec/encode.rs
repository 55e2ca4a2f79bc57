//! Bytes to an LZ4 block (LZ4 Block Format Description): the encoder of everything that is stored compressed.
//!
//! Compressing is most of what storing text costs, and most of compressing is branches that no processor can foresee: how
//! long a match is, how far back it begins, how many literals come before it. Each of these is answered here by a comparison of
//! 8 or 16 bytes without a branch for as long as the answer is short, and a match takes four of them where the crate's takes
//! ten. Positions are remembered by their low 16 bits: what comes out is a distance a block can
//! express, whatever else stood there, so nothing has to be asked of it but whether its bytes are the same.
//!
//! As fast as the format's own encoder, and like it greedy; nothing here is unsafe, a wrong step is a chunk that is stored as it
//! is. What is encoded is our own content, so its limits are about speed and not about strangers.

/// Positions remembered. 16 KiB: it shares the first-level cache with the bytes it is about.
const SLOTS: usize = 1 << SLOT_BITS;
const SLOT_BITS: u32 = 13;

/// Bytes hashed, one more than the shortest match: a match of five is worth its sequence, one of four seldom.
const HASHED_BITS: u32 = 40;

/// A prime of as many bits; the top bits of a product with it depend on all bytes hashed.
const PRIME: u64 = 889_523_592_379;

/// After `2^n` misses in a row a position is left out between two, after twice as many two, and so on.
const PATIENCE_BITS: usize = 5;

/// Length of the shortest match in bytes.
const MATCH_MIN: usize = 4;

/// A length of 15 in the token goes on in the bytes that follow.
const LONG: usize = 15;

/// No match may begin in as many last bytes of a block, nor reach into the last five: decoders rely on it.
const LAST_MATCH: usize = 12;
const LAST_LITERALS: usize = 5;

/// Bytes copied or compared at once.
const STEP: usize = 16;

/// Where bytes were seen last, by their hash.
pub(super) struct Table(Box<[u16; SLOTS]>);

impl Table {
    pub(super) fn new() -> Self {
        Self(Box::new([0; SLOTS]))
    }

    #[inline]
    fn slot(&mut self, word: u64) -> &mut u16 {
        let hash = (word << (64 - HASHED_BITS)).wrapping_mul(PRIME) >> (64 - SLOT_BITS);
        &mut self.0[hash as usize % SLOTS]
    }
}

/// Longest block of so many bytes.
pub(super) const fn room(len: usize) -> usize {
    len + len / 255 + STEP
}

/// Writes `bytes` as a block to the front of `out`. Returns its length, or `None` when there is no room for it.
pub(super) fn encode(bytes: &[u8], out: &mut [u8], table: &mut Table) -> Option<usize> {
    // Equal bytes give equal blocks, whatever was encoded before.
    table.0.fill(0);
    let mut block = Block { out, len: 0 };
    let mut literals = 0;
    if let Some(last) = bytes.len().checked_sub(LAST_MATCH) {
        let end = bytes.len() - LAST_LITERALS;
        let mut at = 1;
        while let Some((found, from)) = find(bytes, at, last, table) {
            let before = same_before(bytes, found, from, found - literals);
            let start = found - before;
            at = found + MATCH_MIN + same_from(bytes, found + MATCH_MIN, from + MATCH_MIN, end);
            let offset = (found - from) as u16;
            block.sequence(bytes, literals..start, offset, at - start)?;
            literals = at;
            // The end of a match is often the start of the next one's like.
            if let Some(word) = word(bytes, at - 2) {
                *table.slot(word) = (at - 2) as u16;
            }
        }
    }
    block.last(&bytes[literals..])?;
    Some(block.len)
}

/// The first position from `at` up to `last` whose bytes were seen before, and where.
#[inline(always)]
fn find(bytes: &[u8], mut at: usize, last: usize, table: &mut Table) -> Option<(usize, usize)> {
    let mut tries = 1 << PATIENCE_BITS;
    while at <= last {
        let word = word(bytes, at)?;
        let slot = table.slot(word);
        let back = (at as u16).wrapping_sub(*slot);
        *slot = at as u16;
        if let Some(from) = at.checked_sub(usize::from(back))
            && back != 0
            && half(bytes, from) == Some(word as u32)
        {
            return Some((at, from));
        }
        at += tries >> PATIENCE_BITS;
        tries += 1;
    }
    None
}

/// How many bytes before `at` are those before `from`, at most `max`.
#[inline(always)]
fn same_before(bytes: &[u8], at: usize, from: usize, max: usize) -> usize {
    let max = max.min(from);
    let words = at.checked_sub(8).zip(from.checked_sub(8));
    let words = words.and_then(|(at, from)| Some((word(bytes, at)?, word(bytes, from)?)));
    let known = match words {
        Some((a, b)) => ((a ^ b).leading_zeros() / 8) as usize,
        None => 0,
    };
    if words.is_some() && known < 8 {
        return known.min(max);
    }
    let mut same = known.min(max);
    while same < max && bytes[at - same - 1] == bytes[from - same - 1] {
        same += 1;
    }
    same
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
            return same + (different.trailing_zeros() / 8) as usize;
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
        literals: std::ops::Range<usize>,
        offset: u16,
        matched: usize,
    ) -> Option<()> {
        let (count, matched) = (literals.len(), matched - MATCH_MIN);
        let token = (count.min(LONG) << 4 | matched.min(LONG)) as u8;
        let rest = self.out.get_mut(self.len..)?;
        let source = bytes.get(literals.start..)?.first_chunk::<STEP>();
        // What is copied too much is overwritten by what follows.
        match (source, rest.first_chunk_mut::<{ STEP + 3 }>()) {
            (Some(source), Some(rest)) if count < LONG => {
                rest[0] = token;
                *rest[1..].first_chunk_mut()? = *source;
                [rest[1 + count], rest[2 + count]] = offset.to_le_bytes();
                self.len += 3 + count;
            }
            _ => {
                self.literals(token, bytes.get(literals)?)?;
                self.put(&offset.to_le_bytes())?;
            }
        }
        if matched >= LONG {
            self.long(matched - LONG)?;
        }
        Some(())
    }

    /// The literals a block ends with.
    fn last(&mut self, literals: &[u8]) -> Option<()> {
        let token = (literals.len().min(LONG) << 4) as u8;
        self.literals(token, literals)
    }

    fn literals(&mut self, token: u8, literals: &[u8]) -> Option<()> {
        self.put(&[token])?;
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
