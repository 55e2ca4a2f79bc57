//! Reading and writing the integers and byte strings that all folder formats are made of
//! (docs/formats/tree.md).
//!
//! Everything read here may come from a peer: the reader never panics, never allocates, and takes
//! only the one shortest form of a number, so that equal values have equal bytes.

use thiserror::Error;

/// Longest varint: ten groups of seven bits hold a `u64`.
const MAX_VARINT_LEN: usize = 10;

/// Why bytes are not a well-formed object of the folder formats.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum DecodeError {
    /// The bytes end inside a field.
    #[error("{need} bytes needed, {have} left")]
    Truncated {
        /// Bytes the field takes.
        need: usize,
        /// Bytes that were left.
        have: usize,
    },
    /// A varint that is longer than its shortest form, or than 64 bits.
    #[error("a number is not in its shortest form")]
    Varint,
    /// Bytes after the end of the object.
    #[error("{0} bytes left over")]
    Trailing(usize),
    /// A length, count or number beyond what the format allows.
    #[error("{what} is {value}, allowed is {min} to {max}")]
    Range {
        /// The field.
        what: &'static str,
        /// What it holds.
        value: u64,
        /// Least legal value.
        min: u64,
        /// Greatest legal value.
        max: u64,
    },
    /// A sorted list is not strictly ascending.
    #[error("{0} are not in ascending order")]
    Order(&'static str),
    /// Another rule of the format is broken.
    #[error("{0}")]
    Rule(&'static str),
}

/// A position in bytes that are being decoded.
#[derive(Clone, Debug)]
pub struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    /// Starts at the first byte.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    /// Bytes consumed so far.
    pub fn position(&self) -> usize {
        self.at
    }

    /// Bytes not consumed yet.
    pub fn remaining(&self) -> usize {
        self.bytes.len() - self.at
    }

    /// The next `len` bytes.
    pub fn take(&mut self, len: usize) -> Result<&'a [u8], DecodeError> {
        let have = self.remaining();
        let rest = self.bytes.get(self.at..).unwrap_or_default();
        let taken = rest
            .get(..len)
            .ok_or(DecodeError::Truncated { need: len, have })?;
        self.at += len;
        Ok(taken)
    }

    /// The next `N` bytes as an array.
    pub fn array<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N)?);
        Ok(array)
    }

    /// One byte.
    pub fn u8(&mut self) -> Result<u8, DecodeError> {
        self.array().map(|[byte]| byte)
    }

    /// Three bytes, little-endian.
    pub fn u24(&mut self) -> Result<u32, DecodeError> {
        self.array()
            .map(|[a, b, c]| u32::from_le_bytes([a, b, c, 0]))
    }

    /// Eight bytes, little-endian.
    pub fn u64(&mut self) -> Result<u64, DecodeError> {
        self.array().map(u64::from_le_bytes)
    }

    /// Unsigned LEB128 in its shortest form.
    pub fn varint(&mut self) -> Result<u64, DecodeError> {
        let mut value = 0_u64;
        for i in 0..MAX_VARINT_LEN {
            let byte = self.u8()?;
            let group = u64::from(byte & 0x7f);
            if i == MAX_VARINT_LEN - 1 && group > 1 {
                return Err(DecodeError::Varint);
            }
            value |= group << (7 * i);
            if byte & 0x80 == 0 {
                let overlong = byte == 0 && i > 0;
                return if overlong {
                    Err(DecodeError::Varint)
                } else {
                    Ok(value)
                };
            }
        }
        Err(DecodeError::Varint)
    }

    /// Signed number: a varint of `(x << 1) ^ (x >> 63)`.
    pub fn zigzag(&mut self) -> Result<i64, DecodeError> {
        let coded = self.varint()?;
        Ok((coded >> 1).cast_signed() ^ -(coded & 1).cast_signed())
    }

    /// A varint within `min..=max`; `what` names the field in the error.
    pub fn varint_in(
        &mut self,
        what: &'static str,
        min: u64,
        max: u64,
    ) -> Result<u64, DecodeError> {
        let value = self.varint()?;
        in_range(what, value, min, max)
    }

    /// The number of items that follow, each at least `item_len` bytes long. What the bytes left
    /// cannot hold is refused here, so a caller may reserve memory for the count.
    pub fn count(&mut self, what: &'static str, item_len: usize) -> Result<usize, DecodeError> {
        let value = self.varint()?;
        let max = self.remaining() / item_len.max(1);
        in_range(what, value, 0, max as u64).map(|count| count as usize)
    }

    /// A byte string with its length as a varint in front.
    pub fn prefixed(&mut self, what: &'static str, max: usize) -> Result<&'a [u8], DecodeError> {
        let len = self.varint_in(what, 0, max as u64)?;
        self.take(len as usize)
    }

    /// Refuses bytes that are left over.
    pub fn finish(self) -> Result<(), DecodeError> {
        match self.remaining() {
            0 => Ok(()),
            left => Err(DecodeError::Trailing(left)),
        }
    }
}

/// Passes `value` on if it lies within `min..=max`.
pub fn in_range(what: &'static str, value: u64, min: u64, max: u64) -> Result<u64, DecodeError> {
    if (min..=max).contains(&value) {
        Ok(value)
    } else {
        Err(DecodeError::Range {
            what,
            value,
            min,
            max,
        })
    }
}

/// Appends `value` as a varint.
pub fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Appends a signed number.
pub fn put_zigzag(out: &mut Vec<u8>, value: i64) {
    put_varint(out, ((value << 1) ^ (value >> 63)).cast_unsigned());
}

/// Appends a byte string with its length as a varint in front.
pub fn put_prefixed(out: &mut Vec<u8>, bytes: &[u8]) {
    put_varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

/// Bytes that `value` takes as a varint.
pub fn varint_len(value: u64) -> usize {
    let bits = 64 - (value | 1).leading_zeros() as usize;
    bits.div_ceil(7)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn numbers_survive_a_round_trip(value: u64, signed: i64) {
            let mut out = Vec::new();
            put_varint(&mut out, value);
            prop_assert_eq!(out.len(), varint_len(value));
            put_zigzag(&mut out, signed);
            let mut reader = Reader::new(&out);
            prop_assert_eq!(reader.varint(), Ok(value));
            prop_assert_eq!(reader.zigzag(), Ok(signed));
            prop_assert_eq!(reader.finish(), Ok(()));
        }

        #[test]
        fn a_varint_that_is_read_is_written_the_same(
            bytes in prop::collection::vec(any::<u8>(), 0..12),
        ) {
            let mut reader = Reader::new(&bytes);
            if let Ok(value) = reader.varint() {
                let mut out = Vec::new();
                put_varint(&mut out, value);
                prop_assert_eq!(&out[..], &bytes[..reader.position()]);
            }
        }
    }

    #[test]
    fn known_forms() {
        let encode = |value| {
            let mut out = Vec::new();
            put_varint(&mut out, value);
            out
        };
        assert_eq!(encode(0), [0]);
        assert_eq!(encode(127), [0x7f]);
        assert_eq!(encode(128), [0x80, 1]);
        assert_eq!(
            encode(u64::MAX),
            [255, 255, 255, 255, 255, 255, 255, 255, 255, 1]
        );
        let mut out = Vec::new();
        for value in [0, -1, 1, -2, i64::MIN] {
            put_zigzag(&mut out, value);
        }
        assert_eq!(out[..4], [0, 1, 2, 3]);
        assert_eq!(out[4..], encode(u64::MAX));
    }

    #[test]
    fn overlong_and_oversized_numbers_are_refused() {
        for bytes in [&[0x80, 0][..], &[0xff, 0x80, 0], &[0xff; 11]] {
            assert_eq!(
                Reader::new(bytes).varint(),
                Err(DecodeError::Varint),
                "{bytes:?}"
            );
        }
        let sixty_five_bits = [255, 255, 255, 255, 255, 255, 255, 255, 255, 2];
        assert_eq!(
            Reader::new(&sixty_five_bits).varint(),
            Err(DecodeError::Varint)
        );
        let cut = DecodeError::Truncated { need: 1, have: 0 };
        assert_eq!(Reader::new(&[0x80]).varint(), Err(cut));
    }

    #[test]
    fn a_count_never_promises_more_than_the_bytes_hold() {
        let refused = DecodeError::Range {
            what: "items",
            value: 3,
            min: 0,
            max: 2,
        };
        assert_eq!(
            Reader::new(&[3, 0, 0, 0, 0]).count("items", 2),
            Err(refused)
        );
        assert_eq!(Reader::new(&[2, 0, 0, 0, 0]).count("items", 2), Ok(2));
    }
}
