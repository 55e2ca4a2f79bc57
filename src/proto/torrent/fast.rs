//! Pieces a peer may have while it is choked (BEP 6): which ones follows from its address, so that coming back brings no more.

use std::net::{IpAddr, Ipv4Addr};

use sha1::{Digest, Sha1};

use super::{Bitfield, Now, Torrent};
use crate::proto::scheduler::PeerKey;
use crate::proto::wire::Message;

/// Pieces of an allowed-fast set, and as many as a peer may have to be given one: then it has something to offer.
const SET_MAX: usize = 10;
/// Rounds of hashing after which a set stays as small as it is.
const ROUNDS_MAX: usize = 16;

/// The set of `count` pieces for a peer at `ip`: BEP 6 takes the first three bytes of the address, so neighbours share a set.
fn allowed_fast_set(ip: Ipv4Addr, info_hash: [u8; 20], pieces: u32, count: usize) -> Vec<u32> {
    let count = count.min(pieces as usize);
    let [a, b, c, _] = ip.octets();
    let mut hashed = [&[a, b, c, 0][..], &info_hash].concat();
    let mut set = Vec::with_capacity(count);
    for _ in 0..ROUNDS_MAX {
        let hash: [u8; 20] = Sha1::digest(&hashed).into();
        for word in hash.as_chunks::<4>().0 {
            let piece = u32::from_be_bytes(*word) % pieces.max(1);
            if set.len() >= count {
                return set;
            }
            if !set.contains(&piece) {
                set.push(piece);
            }
        }
        hashed = hash.to_vec();
    }
    set
}

impl Torrent {
    /// Gives a choked peer that has next to nothing its set, once.
    pub(super) fn allow_fast(&mut self, now: Now, key: PeerKey) {
        let (Some(content), Some(peer)) = (&self.content, self.peers.get_mut(&key)) else {
            return;
        };
        let poor = |has: &Bitfield| (has.ones() as usize) < SET_MAX && !has.is_full();
        let poor = peer.has().is_some_and(poor);
        let hash = self.settings.hashes.short();
        let ip = peer.addr.map(|addr| addr.ip().to_canonical());
        let Some(IpAddr::V4(ip)) = ip.filter(|_| peer.fast && poor && peer.gives_fast.is_empty())
        else {
            return;
        };
        let mut set = allowed_fast_set(ip, hash, content.have.len(), SET_MAX);
        set.retain(|piece| content.have.has(*piece));
        peer.gives_fast.clone_from(&set);
        for piece in set {
            self.send(now, key, Message::AllowedFast(piece));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sets_of_bep_6() {
        let ip = Ipv4Addr::new(80, 4, 4, 200);
        let seven = [1059, 431, 808, 1217, 287, 376, 1188];
        assert_eq!(allowed_fast_set(ip, [0xaa; 20], 1313, 7), seven);
        let nine = [1059, 431, 808, 1217, 287, 376, 1188, 353, 508];
        assert_eq!(allowed_fast_set(ip, [0xaa; 20], 1313, 9), nine);
    }

    #[test]
    fn a_torrent_of_few_pieces_has_a_small_set() {
        let ip = Ipv4Addr::new(80, 4, 4, 200);
        for pieces in 0..5 {
            let mut set = allowed_fast_set(ip, [1; 20], pieces, 10);
            set.sort_unstable();
            assert!(set.len() <= pieces as usize && set.iter().all(|piece| *piece < pieces));
        }
    }
}
