//! Pieces that somebody waits for: they go before everything, and what is in their way is taken back.

use std::ops::Range;
use std::time::Duration;

use super::{Now, Torrent};
use crate::proto::blocks::Block;
use crate::proto::picker::{PRIORITY_MAX, PRIORITY_NORMAL};
use crate::proto::scheduler::PeerKey;
use crate::proto::wire::Message;

/// The deadline of a piece that a read waits for. Those that will be read soon have theirs behind it, in order.
const AT_ONCE: Now = Duration::ZERO;
/// Requests a peer may have before a waiting read: few enough to be answered in a moment.
const IN_THE_WAY: usize = 8;
/// A block of a piece somebody waits for that does not come within this time is asked of another peer too.
const PATIENCE: Duration = Duration::from_secs(1);

impl Torrent {
    /// A read waits for `pieces`; `ahead` will be read next.
    pub fn read_needs(&mut self, now: Now, pieces: &[u32], ahead: Range<u32>) {
        let Some(content) = &mut self.content else {
            return;
        };
        let mut blocked = false;
        for piece in pieces {
            content.picker.want(*piece, PRIORITY_MAX);
            content.picker.set_deadline(*piece, Some(AT_ONCE));
            blocked |= content.picker.has_open(*piece);
        }
        self.read_ahead(now, ahead);
        if blocked {
            self.make_way(now, pieces);
        }
        self.consider_all(now);
    }

    /// These pieces will be read soon, in this order.
    pub fn read_ahead(&mut self, now: Now, pieces: Range<u32>) {
        let Some(content) = &mut self.content else {
            return;
        };
        let mut news = false;
        for (rank, piece) in (1..).zip(pieces) {
            if !content.have.has(piece) && !content.picker.has_deadline(piece) {
                let priority = content.picker.priority(piece).max(PRIORITY_NORMAL);
                content.picker.want(piece, priority);
                content
                    .picker
                    .set_deadline(piece, Some(Duration::from_millis(rank)));
                news = true;
            }
        }
        if news {
            self.consider_all(now);
        }
    }

    /// Nobody waits for the pieces any more; they are still fetched, when their turn comes.
    pub fn read_over(&mut self, pieces: &[u32]) {
        if let Some(content) = &mut self.content {
            for piece in pieces {
                content.picker.set_deadline(*piece, None);
            }
        }
    }

    /// The pieces are waited for and do not come: others are asked as well, if there are any.
    pub fn hurry(&mut self, now: Now, pieces: &[u32]) {
        let Some(content) = &mut self.content else {
            return;
        };
        let mut late: Vec<(PeerKey, Block)> = Vec::new();
        for piece in pieces {
            let could = |peer: &&super::Peer| {
                peer.unchoked && peer.has().is_some_and(|has| has.has(*piece))
            };
            if self.peers.values().filter(could).count() < 2 {
                continue;
            }
            for (key, peer) in &self.peers {
                let overdue =
                    |(block, at): &(&Block, &Now)| block.piece == *piece && now >= **at + PATIENCE;
                let blocks = peer
                    .asked
                    .iter()
                    .filter(overdue)
                    .map(|(block, _)| (*key, *block));
                late.extend(blocks);
            }
        }
        // They stay asked of who has them: what comes first is taken.
        for (key, block) in &late {
            content.picker.unasked(*key, block);
        }
        if !late.is_empty() {
            self.consider_all(now);
        }
    }

    /// Takes requests for other pieces back, where many are waiting to be answered.
    fn make_way(&mut self, now: Now, pieces: &[u32]) {
        let keys: Vec<PeerKey> = self.peers.keys().copied().collect();
        for key in keys {
            let (Some(content), Some(peer)) = (&mut self.content, self.peers.get_mut(&key)) else {
                continue;
            };
            if peer.asked.len() <= IN_THE_WAY {
                continue;
            }
            let others = peer
                .asked
                .keys()
                .filter(|block| !pieces.contains(&block.piece));
            let others: Vec<Block> = others.copied().collect();
            for block in &others {
                peer.asked.remove(block);
                peer.cancelled_bytes += u64::from(block.length);
                content.picker.unasked(key, block);
            }
            for block in others {
                self.send(now, key, Message::Cancel(block));
            }
        }
    }
}
