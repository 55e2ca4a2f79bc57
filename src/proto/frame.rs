//! The stream of frames inside the Noise channel: cut out of decrypted bytes without copying them
//! again, and laid out for sealing so that large payloads are read only by the cipher.

use std::collections::VecDeque;

use bytes::{Buf, Bytes, BytesMut};
use thiserror::Error;

use super::extension;
use super::noise::{self, NoiseError, PLAINTEXT_LEN_MAX, Transport};

/// Largest value of a frame's length field: type byte and 256 KiB of body.
pub const FRAME_LEN_MAX: u32 = 1 + (256 << 10);

/// Bytes of the length field.
const LEN_BYTES: usize = 4;

/// Payloads from this many bytes on get Noise messages of their own; below, copying them beside
/// the frame head costs less than the fixed cost of one more message.
const DIRECT_LEN_MIN: usize = 4 << 10;

/// A frame whose body has not been looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RawFrame {
    /// The type byte.
    pub kind: u8,
    /// What follows it; shares the receive buffer, so a holder of a small body may keep
    /// a Noise message (64 KiB) or one frame alive.
    pub body: Bytes,
}

/// A length field that no frame has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("a frame of {len} bytes, 1 to {max} are allowed")]
pub struct FrameLength {
    /// What the field says.
    pub len: u32,
    /// What it may say at most.
    pub max: u32,
}

/// Cuts frames out of decrypted bytes.
#[derive(Debug, Default)]
pub struct Splitter {
    plain: BytesMut,
}

impl Splitter {
    /// Decrypts one Noise message to the end of the stream.
    ///
    /// Room is made for the whole frame as soon as its length is known, so that one spanning
    /// several messages stays in one piece.
    pub fn open(&mut self, transport: &mut Transport, message: &[u8]) -> Result<(), NoiseError> {
        let begun = self.frame_len().filter(|len| *len <= FRAME_LEN_MAX);
        let missing = begun.map_or(0, |len| {
            (LEN_BYTES + len as usize).saturating_sub(self.plain.len()) + noise::TAG_LEN
        });
        self.plain.reserve(missing.max(message.len()));
        transport.open(message, &mut self.plain)
    }

    /// The next complete frame. `max` bounds its length field.
    pub fn next_frame(&mut self, max: u32) -> Result<Option<RawFrame>, FrameLength> {
        let Some(len) = self.frame_len() else {
            return Ok(None);
        };
        if len == 0 || len > max {
            return Err(FrameLength { len, max });
        }
        if self.plain.len() - LEN_BYTES < len as usize {
            return Ok(None);
        }
        self.plain.advance(LEN_BYTES);
        let kind = self.plain.get_u8();
        let body = self.plain.split_to(len as usize - 1).freeze();
        Ok(Some(RawFrame { kind, body }))
    }

    fn frame_len(&self) -> Option<u32> {
        self.plain.first_chunk().map(|len| u32::from_le_bytes(*len))
    }
}

/// Frames waiting to be sealed.
#[derive(Debug, Default)]
pub struct Outbox {
    segments: VecDeque<Segment>,
    len: usize,
}

#[derive(Debug)]
enum Segment {
    /// Frame heads and small payloads, one behind the other.
    Gathered(BytesMut),
    /// The rest of a large payload, a multiple of [`PLAINTEXT_LEN_MAX`] after its first message.
    Direct(Bytes),
}

impl Outbox {
    /// Plaintext bytes waiting.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether nothing is waiting.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Queues a frame: `head` is everything up to the payload, length field included.
    pub fn push(&mut self, head: &[u8], mut payload: Bytes) {
        self.len += head.len() + payload.len();
        let odd = match payload.len() {
            len if len < DIRECT_LEN_MIN => len,
            len => Some(len % PLAINTEXT_LEN_MAX)
                .filter(|odd| *odd < DIRECT_LEN_MIN)
                .unwrap_or(0),
        };
        let gathered = match self.segments.back_mut() {
            Some(Segment::Gathered(gathered)) => gathered,
            _ => self.begin_gathered(head.len() + odd),
        };
        gathered.extend_from_slice(head);
        gathered.extend_from_slice(&payload.split_to(odd));
        if !payload.is_empty() {
            self.segments.push_back(Segment::Direct(payload));
        }
    }

    fn begin_gathered(&mut self, capacity: usize) -> &mut BytesMut {
        self.segments
            .push_back(Segment::Gathered(BytesMut::with_capacity(capacity)));
        match self.segments.back_mut() {
            Some(Segment::Gathered(gathered)) => gathered,
            _ => unreachable!("pushed the line before"),
        }
    }

    /// Seals one message under the extended id `id` into `out`; false when nothing is waiting.
    pub fn seal_next(
        &mut self,
        transport: &mut Transport,
        id: u8,
        out: &mut BytesMut,
    ) -> Result<bool, NoiseError> {
        let Some(segment) = self.segments.front_mut() else {
            return Ok(false);
        };
        let (plaintext, left) = match segment {
            Segment::Gathered(bytes) => {
                let len = bytes.len().min(PLAINTEXT_LEN_MAX);
                (bytes.split_to(len).freeze(), bytes.len())
            }
            Segment::Direct(bytes) => {
                let odd = bytes.len() % PLAINTEXT_LEN_MAX;
                let len = if odd == 0 { PLAINTEXT_LEN_MAX } else { odd };
                (bytes.split_to(len), bytes.len())
            }
        };
        if left == 0 {
            self.segments.pop_front();
        }
        self.len -= plaintext.len();
        extension::put_header(out, id, plaintext.len() + noise::TAG_LEN);
        transport.seal(&plaintext, out)?;
        Ok(true)
    }
}
