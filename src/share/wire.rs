//! A bounds-checked reader over little-endian bytes, shared by every signed object and frame body.

use thiserror::Error;

/// Why bytes are not the object they were taken for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum DecodeError {
    /// The bytes end before the object does.
    #[error("{missing} bytes are missing at the end")]
    Truncated {
        /// How many more bytes the field being read needs.
        missing: usize,
    },
    /// Bytes are left over behind the object.
    #[error("{left} bytes are left over")]
    Trailing {
        /// How many.
        left: usize,
    },
    /// A count or length is above its limit.
    #[error("{what} is {value}, at most {max} is allowed")]
    TooMany {
        /// The field.
        what: &'static str,
        /// What it says.
        value: u64,
        /// What it may say.
        max: u64,
    },
    /// A field holds a value that has no meaning.
    #[error("{what} cannot be {value}")]
    Value {
        /// The field.
        what: &'static str,
        /// What it says.
        value: u64,
    },
    /// List elements are not in the order that makes the encoding unique.
    #[error("{what} are not in ascending order")]
    Order {
        /// The list.
        what: &'static str,
    },
}

/// Reads fields off the front of a byte slice. Nothing here panics or allocates.
#[derive(Debug, Clone)]
pub(crate) struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    pub(crate) fn take(&mut self, len: usize) -> Result<&'a [u8], DecodeError> {
        let Some((taken, rest)) = self.rest.split_at_checked(len) else {
            return Err(DecodeError::Truncated {
                missing: len - self.rest.len(),
            });
        };
        self.rest = rest;
        Ok(taken)
    }

    pub(crate) fn array<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        let Some((taken, rest)) = self.rest.split_first_chunk::<N>() else {
            return Err(DecodeError::Truncated {
                missing: N - self.rest.len(),
            });
        };
        self.rest = rest;
        Ok(*taken)
    }

    pub(crate) fn u8(&mut self) -> Result<u8, DecodeError> {
        Ok(u8::from_le_bytes(self.array()?))
    }

    pub(crate) fn u16(&mut self) -> Result<u16, DecodeError> {
        Ok(u16::from_le_bytes(self.array()?))
    }

    pub(crate) fn u24(&mut self) -> Result<u32, DecodeError> {
        let [a, b, c] = self.array()?;
        Ok(u32::from_le_bytes([a, b, c, 0]))
    }

    pub(crate) fn u32(&mut self) -> Result<u32, DecodeError> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    pub(crate) fn u64(&mut self) -> Result<u64, DecodeError> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    /// Reads a `u16` count of elements of at least `element_len` bytes. The count is checked
    /// against what the remaining input can hold, so a caller may reserve for it.
    pub(crate) fn count(
        &mut self,
        what: &'static str,
        max: u16,
        element_len: usize,
    ) -> Result<usize, DecodeError> {
        let count = self.u16()?;
        at_most(what, u64::from(count), u64::from(max))?;
        let needed = usize::from(count) * element_len;
        if needed > self.rest.len() {
            return Err(DecodeError::Truncated {
                missing: needed - self.rest.len(),
            });
        }
        Ok(usize::from(count))
    }

    pub(crate) fn remaining(&self) -> usize {
        self.rest.len()
    }

    pub(crate) fn finish(self) -> Result<(), DecodeError> {
        match self.rest.len() {
            0 => Ok(()),
            left => Err(DecodeError::Trailing { left }),
        }
    }
}

/// Checks a number against its limit.
pub(crate) fn at_most(what: &'static str, value: u64, max: u64) -> Result<(), DecodeError> {
    if value > max {
        Err(DecodeError::TooMany { what, value, max })
    } else {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_little_endian_and_says_what_is_missing() {
        let mut reader = Reader::new(&[1, 2, 0, 3, 0, 0, 9]);
        assert_eq!(reader.u8(), Ok(1));
        assert_eq!(reader.u16(), Ok(2));
        assert_eq!(reader.u24(), Ok(3));
        assert_eq!(reader.u32(), Err(DecodeError::Truncated { missing: 3 }));
        assert_eq!(
            reader.clone().finish(),
            Err(DecodeError::Trailing { left: 1 })
        );
        assert_eq!(reader.take(1), Ok(&[9][..]));
        assert_eq!(reader.finish(), Ok(()));
    }

    #[test]
    fn a_count_beyond_the_input_is_refused_before_anything_is_reserved() {
        let mut reader = Reader::new(&[0xff, 0x00, 1, 2, 3]);
        assert_eq!(
            reader.count("x", 1024, 32),
            Err(DecodeError::Truncated { missing: 8157 })
        );
    }
}
