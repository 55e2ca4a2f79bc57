//! The start of an LZ4 block (LZ4 Block Format Description), for readers who want some bytes of a chunk.
//!
//! The crate decodes a block whole or not at all, and half of it is decoded for nothing when somebody reads a
//! few bytes in the middle. Short pieces are copied in steps of a fixed length, which is one load and one store; what they
//! write too much is overwritten by the next piece.

/// Bytes copied at once. `out` is longer than what is wanted by as much.
const STEP: usize = 16;

/// A length of 15 in the token goes on in the bytes that follow.
const LONG: usize = 15;

/// Length of the shortest match in bytes.
const MATCH_MIN: usize = 4;

/// Decodes the first `len` bytes of a block into `out`, growing it as needed. `None` if the block has fewer or is
/// broken before.
pub(super) fn decode_start<'o>(block: &[u8], len: usize, out: &'o mut Vec<u8>) -> Option<&'o [u8]> {
    if out.len() < len + STEP {
        out.resize(len + STEP, 0);
    }
    let mut input = block;
    let mut done = 0;
    while done < len {
        let (token, rest) = input.split_first()?;
        input = rest;
        let (literals, matched) = (usize::from(token >> 4), usize::from(token & 15));
        match input.first_chunk::<STEP>() {
            Some(step) if literals < LONG => {
                *out.get_mut(done..)?.first_chunk_mut()? = *step;
                input = &input[literals..];
                done += literals;
            }
            _ => {
                let literals = long(literals, &mut input)?;
                let (taken, rest) = input.split_at_checked(literals.min(len - done))?;
                out.get_mut(done..done + taken.len())?
                    .copy_from_slice(taken);
                input = rest;
                done += taken.len();
            }
        }
        if done >= len {
            break;
        }
        let (offset, rest) = input.split_first_chunk()?;
        input = rest;
        let offset = usize::from(u16::from_le_bytes(*offset));
        let matched = long(matched, &mut input)? + MATCH_MIN;
        copy_match(out, done, offset, matched.min(len - done))?;
        done += matched;
    }
    out.get(..len)
}

/// A length whose first part is `start`.
fn long(start: usize, input: &mut &[u8]) -> Option<usize> {
    let mut len = start;
    if start == LONG {
        loop {
            let (byte, rest) = input.split_first()?;
            *input = rest;
            len += usize::from(*byte);
            if *byte != u8::MAX {
                break;
            }
        }
    }
    Some(len)
}

/// Repeats `len` bytes from `offset` bytes before `at` on, some of which may be those just written.
fn copy_match(out: &mut [u8], at: usize, offset: usize, len: usize) -> Option<()> {
    let from = at.checked_sub(offset).filter(|_| offset > 0)?;
    let end = at + len;
    let mut to = at;
    if offset >= STEP {
        while to < end {
            let step = *out.get(to - offset..)?.first_chunk::<STEP>()?;
            *out.get_mut(to..)?.first_chunk_mut()? = step;
            to += STEP;
        }
        return Some(());
    }
    while to < end {
        // What lies between repeats every `offset` bytes and is a whole number of times as long.
        let piece = (to - from).min(end - to);
        out.copy_within(from..from + piece, to);
        to += piece;
    }
    Some(())
}
