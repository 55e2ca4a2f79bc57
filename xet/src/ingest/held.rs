//! Not scanning what is held: where a held chunk is met, the chunk that was stored after it is likely to follow.
//!
//! If the bytes that come next, as many as that chunk has, have its hash, they are that chunk, and no scan can find another
//! end: a cut depends on the bytes from the start of a chunk alone, so where the chunker once cut exactly this content, it
//! would cut it again. That is only known of contents which this process saw the chunker cut. A chunk that came from a
//! peer may have a cut inside, and if it were believed, equal files would be listed differently on two devices. The store keeps a
//! bit of what is known; the last chunk of a stream never gets it, as it ends because the stream does.

use crate::chunk::MAX_CHUNK;
use crate::hash::ChunkHash;
use crate::store::Store;

/// After `n` wrong predictions in a row, `2^(n - 1) - 1` are not made, up to this `n`: a wrong one costs a hash.
const MISSES_MAX: u32 = 6;

/// What is held in a store, met in the order of a stream.
pub(super) struct Held<'s> {
    store: &'s Store,
    /// What may come next, and its length in bytes.
    next: Option<(ChunkHash, usize)>,
    /// Wrong predictions in a row.
    misses: u32,
    /// Predictions still to be left out.
    skip: u32,
}

/// What comes next.
pub(super) enum Predicted {
    /// This chunk.
    Chunk { hash: ChunkHash, len: usize },
    /// That cannot be told before there are more bytes.
    NeedsMore,
    /// What a scan finds.
    Nothing,
}

impl<'s> Held<'s> {
    pub(super) const fn new(store: &'s Store) -> Self {
        Self {
            store,
            next: None,
            misses: 0,
            skip: 0,
        }
    }

    /// Whether the open chunk, of which there are `bytes`, is the one that may come next.
    pub(super) fn predict(&mut self, bytes: &[u8], are_all: bool) -> Predicted {
        let Some((hash, len)) = self.next else {
            return Predicted::Nothing;
        };
        let Some(bytes) = bytes.get(..len) else {
            return match are_all {
                true => Predicted::Nothing,
                false => Predicted::NeedsMore,
            };
        };
        self.next = None;
        if self.store.suite().chunk_hash(bytes) == hash {
            self.misses = 0;
            return Predicted::Chunk { hash, len };
        }
        self.misses = (self.misses + 1).min(MISSES_MAX);
        self.skip = (1 << (self.misses - 1)) - 1;
        Predicted::Nothing
    }

    /// Notes the chunk that came next. Whether it is held. `is_cut` if the chunker cut at its end.
    pub(super) fn meets(&mut self, hash: &ChunkHash, is_cut: bool) -> bool {
        self.next = None;
        let Some(place) = self.store.held_place(hash) else {
            return false;
        };
        if is_cut {
            self.store.mark_cut(place);
        }
        match self.skip.checked_sub(1) {
            Some(left) => self.skip = left,
            None => {
                let next = self.store.follower(place);
                let next = next.map(|(hash, len)| (hash, len as usize));
                self.next = next.filter(|(_, len)| (1..=MAX_CHUNK).contains(len));
            }
        }
        true
    }
}
