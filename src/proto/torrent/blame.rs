//! Who sent what was wrong: digests of the blocks of failed pieces, kept until the right bytes show who lied.

use std::collections::BTreeMap;

use crate::proto::scheduler::PeerKey;

/// Failed pieces remembered; beyond, the oldest numbers are forgotten.
const PIECES_MAX: usize = 64;
/// Versions of one block remembered.
const VERSIONS_MAX: usize = 8;

/// What one peer sent for one block.
type Version = (PeerKey, u64);

/// See the module documentation.
#[derive(Debug, Default)]
pub(super) struct Blame {
    suspects: BTreeMap<u32, Vec<Vec<Version>>>,
}

impl Blame {
    /// A piece has failed. `senders` and `digests` are of its blocks, in order.
    pub(super) fn failed(&mut self, piece: u32, senders: &[PeerKey], digests: &[u64]) {
        if self.suspects.len() >= PIECES_MAX && !self.suspects.contains_key(&piece) {
            self.suspects.pop_first();
        }
        let blocks = self.suspects.entry(piece).or_default();
        blocks.resize(senders.len().max(blocks.len()), Vec::new());
        for ((versions, sender), digest) in blocks.iter_mut().zip(senders).zip(digests) {
            if versions.len() < VERSIONS_MAX {
                versions.push((*sender, *digest));
            }
        }
    }

    /// Whether the digests of this piece's right bytes would tell something.
    pub(super) fn suspects(&self, piece: u32) -> bool {
        self.suspects.contains_key(&piece)
    }

    /// The right bytes are known: who sent others?
    pub(super) fn settle(&mut self, piece: u32, right: &[u64]) -> Vec<PeerKey> {
        let blocks = self.suspects.remove(&piece).unwrap_or_default();
        let versions = blocks.iter().zip(right);
        let mut liars: Vec<PeerKey> = versions
            .flat_map(|(versions, right)| {
                versions.iter().filter(move |(_, digest)| digest != right)
            })
            .map(|(peer, _)| *peer)
            .collect();
        liars.sort_unstable();
        liars.dedup();
        liars
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exactly_the_liars_are_found() {
        let mut blame = Blame::default();
        let [a, b, c] = [1, 2, 3].map(PeerKey);
        blame.failed(7, &[a, b, a], &[10, 99, 12]);
        blame.failed(7, &[c, a, b], &[10, 11, 98]);
        assert!(blame.suspects(7) && !blame.suspects(8));
        assert_eq!(blame.settle(7, &[10, 11, 12]), [b]);
        assert!(!blame.suspects(7));
        for piece in 0..1000 {
            blame.failed(piece, &[a], &[1]);
        }
        assert_eq!(blame.suspects.len(), PIECES_MAX);
    }
}
