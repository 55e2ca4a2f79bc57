//! The endgame: every block that is wanted is asked of somebody, so those on their way are asked of others too.

use super::{BlockState, Parole, Picker};
use crate::proto::bitfield::Bitfield;
use crate::proto::blocks::Block;
use crate::proto::scheduler::PeerKey;

/// In the endgame a block is asked of this many peers at most.
pub(super) const ENDGAME_PEERS_MAX: usize = 3;

impl Picker {
    /// Endgame: blocks that others have been asked for.
    pub(super) fn pick_again(
        &mut self,
        peer: PeerKey,
        has: &Bitfield,
        until: usize,
        out: &mut Vec<Block>,
    ) {
        let begin = self.next_random() as usize % self.partial.len().max(1);
        let keys: Vec<u32> = self.partial.keys().copied().collect();
        let (tail, head) = keys.split_at(begin.min(keys.len()));
        for piece in head.iter().chain(tail).copied() {
            if !has.has(piece) || !self.needs(piece) {
                continue;
            }
            let Some(partial) = self.partial.get_mut(&piece) else {
                continue;
            };
            if partial.parole != Parole::No {
                continue;
            }
            for (number, state) in (0..).zip(&partial.blocks) {
                if out.len() >= until {
                    return;
                }
                let BlockState::Asked(first) = state else {
                    continue;
                };
                let askers = partial.also.iter().filter(|a| a.0 == number);
                let mine = *first == peer || partial.also.contains(&(number, peer));
                if !mine && 1 + askers.count() < ENDGAME_PEERS_MAX {
                    partial.also.push((number, peer));
                    out.push(self.layout.block(piece, number));
                }
            }
        }
    }
}
