//! Which pieces somebody has: a dense bit per piece, in the order of the BEP 3 bitfield message.

use thiserror::Error;

/// One bit per piece, packed into words; the count of set bits is kept.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Bitfield {
    words: Vec<u64>,
    len: u32,
    ones: u32,
}

/// Bytes that are no bitfield of the length expected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum BitfieldError {
    #[error("a bitfield of {found} bytes where {expected} are needed")]
    Length { found: usize, expected: usize },
    #[error("a bitfield with bits set behind its last piece")]
    Spare,
}

impl Bitfield {
    /// No piece of `len`.
    pub fn new(len: u32) -> Self {
        Self {
            words: vec![0; (len as usize).div_ceil(64)],
            len,
            ones: 0,
        }
    }

    /// Every piece of `len`.
    pub fn full(len: u32) -> Self {
        let mut all = Self::new(len);
        for piece in 0..len {
            all.set(piece);
        }
        all
    }

    /// Reads the payload of a bitfield message for `len` pieces. Spare bits must be zero (BEP 3).
    pub fn from_bytes(bytes: &[u8], len: u32) -> Result<Self, BitfieldError> {
        let expected = (len as usize).div_ceil(8);
        if bytes.len() != expected {
            let found = bytes.len();
            return Err(BitfieldError::Length { found, expected });
        }
        let words: Vec<u64> = bytes
            .chunks(8)
            .map(|chunk| {
                let mut word = [0; 8];
                word.iter_mut()
                    .zip(chunk)
                    .for_each(|(to, from)| *to = *from);
                u64::from_be_bytes(word)
            })
            .collect();
        let spare = match (len % 64, words.last()) {
            (used @ 1.., Some(last)) => last << used,
            _ => 0,
        };
        if spare != 0 {
            return Err(BitfieldError::Spare);
        }
        let ones = words.iter().map(|word| word.count_ones()).sum();
        Ok(Self { words, len, ones })
    }

    /// The payload of a bitfield message.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes: Vec<u8> = self
            .words
            .iter()
            .flat_map(|word| word.to_be_bytes())
            .collect();
        bytes.truncate((self.len as usize).div_ceil(8));
        bytes
    }

    /// Number of pieces, set or not.
    #[expect(
        clippy::len_without_is_empty,
        reason = "a torrent without pieces needs no bitfield"
    )]
    pub fn len(&self) -> u32 {
        self.len
    }

    /// Number of pieces that are set.
    pub fn ones(&self) -> u32 {
        self.ones
    }

    pub fn is_full(&self) -> bool {
        self.ones == self.len
    }

    /// Whether `piece` is set; false for a number that is none.
    pub fn has(&self, piece: u32) -> bool {
        let word = self.words.get(piece as usize / 64);
        piece < self.len && word.is_some_and(|word| word >> (63 - piece % 64) & 1 == 1)
    }

    /// Those of `pieces` that are in it.
    pub fn only(&self, pieces: &[u32]) -> Self {
        let mut only = Self::new(self.len());
        for piece in pieces.iter().filter(|piece| self.has(**piece)) {
            only.set(*piece);
        }
        only
    }

    /// Sets `piece`; true if it was not set before.
    pub fn set(&mut self, piece: u32) -> bool {
        if piece >= self.len || self.has(piece) {
            return false;
        }
        if let Some(word) = self.words.get_mut(piece as usize / 64) {
            *word |= 1 << (63 - piece % 64);
            self.ones += 1;
        }
        true
    }

    /// Clears `piece`; true if it was set before.
    pub fn clear(&mut self, piece: u32) -> bool {
        if !self.has(piece) {
            return false;
        }
        if let Some(word) = self.words.get_mut(piece as usize / 64) {
            *word &= !(1 << (63 - piece % 64));
            self.ones -= 1;
        }
        true
    }

    /// The pieces that are set, in order.
    pub fn iter(&self) -> impl Iterator<Item = u32> {
        self.words.iter().enumerate().flat_map(|(n, word)| {
            let mut left = *word;
            std::iter::from_fn(move || {
                let bit = left.leading_zeros();
                (bit < 64).then(|| {
                    left &= !(1 << (63 - bit));
                    n as u32 * 64 + bit
                })
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_first_piece_is_the_highest_bit() {
        let mut field = Bitfield::new(9);
        field.set(0);
        field.set(8);
        assert_eq!(field.to_bytes(), [0x80, 0x80], "BEP 3");
        assert_eq!(Bitfield::from_bytes(&[0x80, 0x80], 9), Ok(field));
        let spare = Bitfield::from_bytes(&[0, 0x40], 9);
        assert_eq!(spare, Err(BitfieldError::Spare));
        let length = Bitfield::from_bytes(&[0], 9);
        assert_eq!(
            length,
            Err(BitfieldError::Length {
                found: 1,
                expected: 2
            })
        );
    }

    proptest! {
        #[test]
        fn it_is_a_set(len in 0u32..300, changes in prop::collection::vec((0u32..310, any::<bool>()), 0..200)) {
            let mut field = Bitfield::new(len);
            let mut set = BTreeSet::new();
            for (piece, on) in changes {
                if on {
                    prop_assert_eq!(field.set(piece), piece < len && set.insert(piece));
                } else {
                    prop_assert_eq!(field.clear(piece), set.remove(&piece));
                }
                prop_assert_eq!(field.has(piece), set.contains(&piece));
            }
            prop_assert_eq!(field.ones() as usize, set.len());
            prop_assert!(field.iter().eq(set.iter().copied()));
            prop_assert_eq!(Bitfield::from_bytes(&field.to_bytes(), len), Ok(field.clone()));
            prop_assert_eq!(field.is_full(), Bitfield::full(len) == field);
        }
    }
}
