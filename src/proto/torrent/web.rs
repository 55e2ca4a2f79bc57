//! Web seeds among the peers: they have what they have, let us ask at any time, and neither want nor say anything else.

use super::peer::{Has, NewPeer, Peer};
use super::{Now, Torrent};
use crate::proto::bitfield::Bitfield;
use crate::proto::blocks::Block;
use crate::proto::scheduler::PeerKey;

impl Torrent {
    /// A web server has the content. It is asked by [`Message::Request`](crate::proto::wire::Message::Request), and may be told of other things that it need
    /// not care for. Nothing happens before the metadata is known.
    pub fn web_joined(&mut self, now: Now, key: PeerKey) {
        let Some(content) = &mut self.content else {
            return;
        };
        let has = Bitfield::full(content.have.len());
        content.picker.peer_joined(&has);
        let new = NewPeer {
            fast: false,
            extended: false,
            v2: false,
            called: true,
            addr: None,
            pex_flags: 0,
        };
        let mut peer = Peer::new(now, new, Some(content.have.len()));
        peer.has = Has::Known(has);
        peer.web = true;
        peer.unchoked = true;
        self.peers.insert(key, peer);
        self.consider(now, key);
    }

    /// It does not have these pieces after all.
    pub fn web_lacks(&mut self, now: Now, key: PeerKey, pieces: &[u32]) {
        let Some(peer) = self.peers.get_mut(&key) else {
            return;
        };
        let lacking = |block: &Block| pieces.contains(&block.piece);
        let asked: Vec<Block> = peer.asked.keys().copied().filter(lacking).collect();
        for block in asked {
            peer.asked.remove(&block);
            if let Some(content) = &mut self.content {
                content.picker.unasked(key, &block);
            }
        }
        if let Some(Has::Known(has)) = self.peers.get(&key).map(|peer| &peer.has) {
            let mut new = has.clone();
            for piece in pieces {
                new.clear(*piece);
            }
            self.now_has(key, new);
        }
        self.consider_all(now);
    }

    /// It fails, and is not asked until it is said to be ready again. What it was asked for does not come.
    pub fn web_rests(&mut self, now: Now, key: PeerKey, rests: bool) {
        if rests {
            drop(self.take_back(key));
        }
        if let Some(peer) = self.peers.get_mut(&key) {
            peer.unchoked = !rests;
            peer.snubs = false;
        }
        self.consider_all(now);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use bytes::Bytes;

    use super::*;
    use crate::proto::blocks::{BLOCK_BYTES, Layout};
    use crate::proto::metainfo::{InfoHashV1, InfoHashes};
    use crate::proto::torrent::{Action, Fault, Settings, Verdict};
    use crate::proto::wire::Message;

    const WEB: PeerKey = PeerKey(9);

    fn layout() -> Layout {
        Layout::new(2 * BLOCK_BYTES, u64::from(10 * BLOCK_BYTES))
    }

    fn torrent() -> Torrent {
        let v1 = Some(InfoHashV1([1; 20]));
        let settings = Settings {
            hashes: InfoHashes { v1, v2: None },
            private: true,
            port: 7,
            lazy: false,
            super_seed: false,
            seed: 3,
        };
        let mut torrent = Torrent::new(Now::ZERO, settings);
        let raw = Bytes::from_static(b"de");
        torrent.begin(Now::ZERO, layout(), raw, true, Bitfield::new(5));
        torrent
    }

    /// What it is asked for.
    fn asked(torrent: &mut Torrent) -> Vec<Block> {
        let actions = std::iter::from_fn(|| torrent.poll_action());
        let mut blocks: Vec<Block> = actions
            .filter_map(|action| match action {
                Action::Send(WEB, Message::Request(block)) => Some(block),
                _ => None,
            })
            .collect();
        blocks.sort_unstable();
        blocks
    }

    #[test]
    fn it_is_asked_for_everything_but_what_it_lacks() {
        let mut t = torrent();
        t.web_joined(Now::ZERO, WEB);
        assert_eq!(asked(&mut t).len(), 10);
        assert_eq!(t.summary(Now::ZERO).peers, 0);
        t.web_lacks(Now::ZERO, WEB, &[1, 2]);
        assert_eq!(asked(&mut t), []);
        assert_eq!(t.summary(Now::ZERO).copies_min, Some(0));
        // What it lacks comes from a peer, or from nowhere.
        let block = layout().block(1, 0);
        assert_eq!(t.block_arrived(Now::ZERO, WEB, block), Verdict::Waste);
        let block = layout().block(0, 1);
        assert_eq!(t.block_arrived(Now::ZERO, WEB, block), Verdict::Write);
    }

    #[test]
    fn while_it_rests_nothing_is_asked_of_it_and_then_all_again() {
        let mut t = torrent();
        t.web_joined(Now::ZERO, WEB);
        assert_eq!(asked(&mut t).len(), 10);
        t.web_rests(Now::ZERO, WEB, true);
        for minute in 0..10 {
            t.handle_timeout(Duration::from_secs(minute * 60));
        }
        assert_eq!(
            asked(&mut t),
            [],
            "it is not dropped for its silence either"
        );
        t.web_rests(Duration::from_secs(600), WEB, false);
        assert_eq!(asked(&mut t).len(), 10);
    }

    #[test]
    fn it_goes_when_all_is_here_and_when_it_lies() {
        let mut t = torrent();
        t.web_joined(Now::ZERO, WEB);
        for piece in 0..5 {
            for number in 0..2 {
                t.block_arrived(Now::ZERO, WEB, layout().block(piece, number));
            }
            t.piece_verified(Now::ZERO, piece);
        }
        t.handle_timeout(Duration::from_secs(1));
        let mut actions = std::iter::from_fn(|| t.poll_action());
        assert!(actions.any(|a| a == Action::Drop(WEB, Fault::Redundant)));
        let mut t = torrent();
        t.web_joined(Now::ZERO, WEB);
        for number in 0..2 {
            t.block_arrived(Now::ZERO, WEB, layout().block(3, number));
        }
        t.piece_failed(Now::ZERO, 3, &[1, 2]);
        let mut actions = std::iter::from_fn(|| t.poll_action());
        assert!(actions.any(|a| a == Action::Drop(WEB, Fault::Lie)));
    }

    #[test]
    fn blocks_that_were_elsewhere_are_asked_of_nobody() {
        let mut t = torrent();
        let here = PeerKey(0);
        for (piece, number) in [(0, 0), (0, 1), (4, 1)] {
            let block = layout().block(piece, number);
            assert_eq!(t.block_held(Now::ZERO, here, block), Verdict::Write);
            assert_eq!(t.block_held(Now::ZERO, here, block), Verdict::Waste);
        }
        t.web_joined(Now::ZERO, WEB);
        let found = asked(&mut t);
        assert_eq!(found.len(), 7);
        assert!(!found.contains(&layout().block(4, 1)) && found.contains(&layout().block(4, 0)));
        // They were wrong after all.
        t.piece_failed(Now::ZERO, 0, &[1, 2]);
        assert_eq!(asked(&mut t), [layout().block(0, 0), layout().block(0, 1)]);
    }
}
