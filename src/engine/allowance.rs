//! How much news a member may tell us: what costs us work beyond what we asked for.
//!
//! Chunks and nodes are bounded by our own questions. Heads, certificates, addresses and the like are not, so each connection
//! has an allowance in bytes that fills up again with time. An honest member stays far below it; who empties it is flooding.

use std::time::Duration;

use crate::proto::ut_xet::Frame;

/// What may be told at once: the newest heads and certificates of the most devices a folder can have, many times.
const BYTES_MAX: u64 = 16 << 20;
/// What is added each second: more than the publications of a hundred busy devices.
const BYTES_PER_SECOND: u64 = 2 << 20;
/// Every frame costs this beside its length, so that many small ones count as well.
const FRAME_BYTES: u64 = 64;
/// Bytes of a head, of a certificate with its name, and of an address.
const ENTRY_BYTES: u64 = 200;

/// See the module documentation.
#[derive(Debug)]
pub(super) struct Allowance {
    left: u64,
    filled_at: Duration,
}

impl Allowance {
    pub(super) fn new(now: Duration) -> Self {
        Self {
            left: BYTES_MAX,
            filled_at: now,
        }
    }

    /// Takes `bytes`; false if that is more than is left.
    pub(super) fn take(&mut self, now: Duration, bytes: u64) -> bool {
        let elapsed = now.saturating_sub(self.filled_at);
        let fresh = (elapsed.as_millis() as u64).saturating_mul(BYTES_PER_SECOND) / 1000;
        // Time too short to be worth a byte is kept for the next call.
        if fresh > 0 {
            self.filled_at = now;
            self.left = self.left.saturating_add(fresh).min(BYTES_MAX);
        }
        let enough = self.left >= bytes;
        self.left = self.left.saturating_sub(bytes);
        enough
    }
}

/// What a frame weighs, about its bytes in memory. Answers to what we asked weigh nothing.
pub(super) fn weight(frame: &Frame) -> u64 {
    let entries = |n: usize| n as u64 * ENTRY_BYTES;
    FRAME_BYTES
        + match frame {
            Frame::Heads(heads) => entries(heads.len()),
            Frame::Certs(certificates) => entries(certificates.len()),
            Frame::Peers(addrs) => entries(addrs.len()),
            Frame::Delta(delta) => (delta.snapshot.len() + delta.changes.len()) as u64,
            Frame::Manifest(_) => entries(1),
            Frame::Chunk(_) | Frame::Obj(_) | Frame::Miss(_) | Frame::Absent(_) => return 0,
            _ => 0,
        }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_empties_it_and_time_fills_it() {
        let secs = Duration::from_secs;
        let mut allowance = Allowance::new(secs(10));
        assert!(allowance.take(secs(10), BYTES_MAX));
        assert!(!allowance.take(secs(10), 1), "nothing is left");
        assert!(allowance.take(secs(11), BYTES_PER_SECOND));
        assert!(!allowance.take(secs(11), 1));
        assert!(allowance.take(secs(9999), BYTES_MAX), "it is full again");
        assert!(
            !allowance.take(secs(9999), BYTES_PER_SECOND),
            "and not fuller"
        );
    }

    #[test]
    fn many_calls_in_one_millisecond_do_not_lose_time() {
        let mut allowance = Allowance::new(Duration::ZERO);
        assert!(allowance.take(Duration::ZERO, BYTES_MAX));
        let taken = (0..1_000_000_u64)
            .filter(|n| allowance.take(Duration::from_micros(*n), 1024))
            .count() as u64;
        assert!((1950..=2048).contains(&taken), "{taken} KiB in a second");
    }

    #[test]
    fn small_frames_weigh_something() {
        assert!(weight(&Frame::Cancel { req: 1 }) >= FRAME_BYTES);
        assert!(weight(&Frame::Peers(vec![([10, 0, 0, 1], 1).into(); 64])) > 64 * 18);
    }
}
