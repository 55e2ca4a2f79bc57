//! LZ4 frames (LZ4 Frame Format Description 1.6.4), one per payload.
//!
//! The frame is walked here and only its blocks go to the LZ4 crate to be decoded, because its frame reader
//! allocates what the frame's header asks for (up to 8 MiB), accepts a missing end mark and goes on
//! to a second frame. Here every block is decoded straight into its place in the chunk, where the
//! bytes before it also serve linked blocks as their dictionary.

use lz4_flex::block::{decompress_into, decompress_into_with_dict};
use thiserror::Error;

use super::block;
use super::encode::{self, Table};
use super::xxh32::xxh32;

const MAGIC: [u8; 4] = 0x184D_2204_u32.to_le_bytes();

/// Flag byte: version 1 in the top two bits, one bit reserved.
const VERSION_AND_RESERVED: u8 = 0b1100_0010;
const VERSION: u8 = 0b0100_0000;
const INDEPENDENT: u8 = 0b0010_0000;
const BLOCK_CHECKSUM: u8 = 0b0001_0000;
const CONTENT_SIZE: u8 = 0b0000_1000;
const CONTENT_CHECKSUM: u8 = 0b0000_0100;
const DICTIONARY: u8 = 0b0000_0001;

/// Block descriptor for blocks of up to 256 KiB: one block holds any chunk.
const BLOCKS_OF_256_KIB: u8 = 5 << 4;

/// Bit of a block's length that says it is stored.
const STORED_BLOCK: u32 = 1 << 31;

/// How far back a match may reach, and so the longest dictionary of use.
const WINDOW: usize = 64 * 1024;

/// Magic, flags, descriptor and header checksum of the frames written here.
const HEADER_LEN: usize = 7;

/// Why a frame is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum FrameError {
    /// Not an LZ4 frame at all.
    #[error("no LZ4 frame")]
    Magic,
    /// Unknown version, reserved bits, or an external dictionary.
    #[error("flags {flags:#04x} and block descriptor {descriptor:#04x} are not supported")]
    Unsupported {
        /// The flag byte.
        flags: u8,
        /// The block descriptor byte.
        descriptor: u8,
    },
    /// The payload ends inside the frame.
    #[error("cut off")]
    CutOff,
    /// The payload goes on after the frame.
    #[error("{0} bytes after its end")]
    Trailing(usize),
    /// A checksum of header, block or content is wrong.
    #[error("wrong checksum")]
    Checksum,
    /// A block is not valid LZ4, is too long, or would write past the end of the chunk.
    #[error("bad block")]
    Block,
    /// The frame holds less than the chunk, or states another length.
    #[error("holds {actual} bytes instead of {expected}")]
    Length {
        /// Length of the chunk in bytes.
        expected: u64,
        /// Length found or stated, in bytes.
        actual: u64,
    },
}

/// Decodes the frame that is `payload`, which must fill `out` exactly.
pub(super) fn decode(payload: &[u8], out: &mut [u8]) -> Result<(), FrameError> {
    let mut input = Input(payload);
    let header = Header::read(&mut input)?;
    let expected = out.len() as u64;
    if let Some(actual) = header.content_len.filter(|len| *len != expected) {
        return Err(FrameError::Length { expected, actual });
    }
    let mut filled = 0;
    loop {
        let word = u32::from_le_bytes(input.array()?);
        if word == 0 {
            break;
        }
        let block = input.take((word & !STORED_BLOCK) as usize)?;
        if block.len() > header.max_block {
            return Err(FrameError::Block);
        }
        if header.has(BLOCK_CHECKSUM) && xxh32(block) != u32::from_le_bytes(input.array()?) {
            return Err(FrameError::Checksum);
        }
        let stored = word & STORED_BLOCK != 0;
        filled += header.block_into(block, stored, out, filled)?;
    }
    if filled != out.len() {
        return Err(FrameError::Length {
            expected,
            actual: filled as u64,
        });
    }
    if header.has(CONTENT_CHECKSUM) && xxh32(out) != u32::from_le_bytes(input.array()?) {
        return Err(FrameError::Checksum);
    }
    match input.0.len() {
        0 => Ok(()),
        left => Err(FrameError::Trailing(left)),
    }
}

/// Decodes the first `len` bytes of a frame into `out`, growing it as needed. The frame is known to be good: its content
/// is not held against its checksums. `None` where that takes more than the first block.
pub(super) fn decode_start<'o>(
    payload: &[u8],
    len: usize,
    out: &'o mut Vec<u8>,
) -> Option<&'o [u8]> {
    let mut input = Input(payload);
    Header::read(&mut input).ok()?;
    let word = u32::from_le_bytes(input.array().ok()?);
    let bytes = input.take((word & !STORED_BLOCK) as usize).ok()?;
    if word & STORED_BLOCK == 0 {
        return block::decode_start(bytes, len, out);
    }
    out.clear();
    out.extend_from_slice(bytes.get(..len)?);
    Some(out)
}

/// Longest frame that [`encode`] writes for so many bytes.
pub(super) fn room(len: usize) -> usize {
    HEADER_LEN + 4 + encode::room(len) + 4
}

/// Writes `bytes` as a frame of one block to the front of `frame`, which has [`room`] for it.
///
/// Returns the frame's length, or 0 when the bytes do not fit one block or will not compress.
pub(super) fn encode(bytes: &[u8], frame: &mut [u8], table: &mut Table) -> usize {
    let flags = [VERSION | INDEPENDENT, BLOCKS_OF_256_KIB];
    frame[..4].copy_from_slice(&MAGIC);
    frame[4..6].copy_from_slice(&flags);
    frame[6] = header_checksum(&flags);
    let block_at = HEADER_LEN + 4;
    let Some(len) = encode::encode(bytes, &mut frame[block_at..], table) else {
        return 0;
    };
    if len >= bytes.len() || bytes.len() > max_block(BLOCKS_OF_256_KIB >> 4) {
        return 0;
    }
    // Both bounds above keep the length far below the stored bit.
    frame[HEADER_LEN..block_at].copy_from_slice(&(len as u32).to_le_bytes());
    frame[block_at + len..block_at + len + 4].fill(0);
    block_at + len + 4
}

struct Header {
    flags: u8,
    max_block: usize,
    content_len: Option<u64>,
}

impl Header {
    fn read(input: &mut Input<'_>) -> Result<Self, FrameError> {
        if input.array().ok() != Some(MAGIC) {
            return Err(FrameError::Magic);
        }
        let described = input.0;
        let [flags, descriptor] = input.array()?;
        let size_code = (descriptor >> 4) & 7;
        let bad_flags = flags & VERSION_AND_RESERVED != VERSION || flags & DICTIONARY != 0;
        if bad_flags || descriptor & !0x70 != 0 || size_code < 4 {
            return Err(FrameError::Unsupported { flags, descriptor });
        }
        let content_len = match flags & CONTENT_SIZE {
            0 => None,
            _ => Some(u64::from_le_bytes(input.array()?)),
        };
        let described = &described[..described.len() - input.0.len()];
        if input.array()? != [header_checksum(described)] {
            return Err(FrameError::Checksum);
        }
        Ok(Self {
            flags,
            max_block: max_block(size_code),
            content_len,
        })
    }

    const fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    /// Decodes one block to `out[filled..]`; returns how many bytes it gave.
    fn block_into(
        &self,
        block: &[u8],
        stored: bool,
        out: &mut [u8],
        filled: usize,
    ) -> Result<usize, FrameError> {
        let (before, room) = out.split_at_mut(filled);
        let room_len = room.len().min(self.max_block);
        let room = &mut room[..room_len];
        if stored {
            room.get_mut(..block.len())
                .ok_or(FrameError::Block)?
                .copy_from_slice(block);
            return Ok(block.len());
        }
        let linked = &before[before.len().saturating_sub(WINDOW)..];
        let decoded = if self.has(INDEPENDENT) || linked.is_empty() {
            decompress_into(block, room)
        } else {
            decompress_into_with_dict(block, room, linked)
        };
        decoded.map_err(|_| FrameError::Block)
    }
}

/// Most bytes of a block, by size code 4..=7: 64 KiB, 256 KiB, 1 MiB, 4 MiB.
const fn max_block(size_code: u8) -> usize {
    1 << (8 + 2 * size_code)
}

/// Second byte of the checksum over flags, descriptor and what follows them.
fn header_checksum(described: &[u8]) -> u8 {
    xxh32(described).to_le_bytes()[1]
}

/// What is left of a payload.
struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn take(&mut self, len: usize) -> Result<&'a [u8], FrameError> {
        let (taken, rest) = self.0.split_at_checked(len).ok_or(FrameError::CutOff)?;
        self.0 = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], FrameError> {
        let (taken, rest) = self.0.split_first_chunk().ok_or(FrameError::CutOff)?;
        self.0 = rest;
        Ok(*taken)
    }
}
