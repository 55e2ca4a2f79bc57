//! The v2 half of a torrent in the actor: waiting for piece hashes, telling peers of them, and which hash a connection goes by.

use std::sync::Arc;

use super::actor::Actor;
use super::disk::{DiskEvent, DiskTorrent};
use super::{Metadata, TorrentHandle};
use crate::proto::blocks::BLOCK_BYTES;
use crate::proto::handshake::Handshake;
use crate::proto::metainfo::merkle::{self, TreeHash};
use crate::proto::metainfo::{Info, InfoHashes};
use crate::proto::scheduler::PeerKey;
use crate::proto::torrent::{HashTrees, Layers, LeavesOf};
use crate::proto::wire::HashRange;

impl Metadata {
    /// Whether piece hashes of v2 files are missing: it came by a magnet link.
    pub fn lacks_layers(&self) -> bool {
        let large =
            |file: &&crate::proto::metainfo::File| file.length > u64::from(self.info.piece_bytes);
        let mut roots = self
            .info
            .files
            .iter()
            .filter(large)
            .filter_map(|file| file.root);
        roots.any(|root| !self.layers.contains_key(&root))
    }
}

impl TorrentHandle {
    /// What we answer to a stranger who begins with `inbuf` and names this torrent by `asked`. Who knows BEP 52 and came by the
    /// v1 hash of a hybrid torrent is answered with its v2 hash.
    pub(in crate::engine) fn answer(&self, inbuf: &[u8], asked: [u8; 20]) -> Handshake {
        let theirs = Handshake {
            reserved: inbuf
                .get(20..28)
                .and_then(|bits| bits.try_into().ok())
                .unwrap_or_default(),
            info_hash: asked,
            peer_id: [0; 20],
        };
        Handshake {
            info_hash: self.upgrade.filter(|_| theirs.offers_v2()).unwrap_or(asked),
            ..self.handshake
        }
    }

    /// Whether `theirs` names the torrent that `ours` does.
    pub(in crate::engine) fn takes(&self, ours: &Handshake, theirs: &Handshake) -> bool {
        let either = [Some(self.handshake.info_hash), self.upgrade];
        let hybrid = self.upgrade.is_some() && either.contains(&Some(theirs.info_hash));
        theirs.info_hash == ours.info_hash || hybrid
    }
}

/// Our side of every handshake of a torrent, and the v2 hash of a hybrid one.
pub(super) fn handshake_of(
    hashes: &InfoHashes,
    peer_id: [u8; 20],
) -> (Handshake, Option<[u8; 20]>) {
    let v2 = hashes.v2.map(|hash| hash.short());
    let Some(v1) = hashes.v1 else {
        return (
            Handshake::for_torrent(v2.unwrap_or_default(), peer_id),
            None,
        );
    };
    let handshake = Handshake::for_torrent(v1.0, peer_id);
    match v2 {
        Some(v2) => (handshake.offering_v2(), Some(v2)),
        None => (handshake, None),
    }
}

impl Actor {
    /// Whether both sides of a new connection speak of the torrent by its v2 hash.
    pub(super) fn is_v2(&self, called: bool, theirs: &Handshake) -> bool {
        let v2 = self.config.hashes.v2.map(|hash| hash.short());
        let upgraded = !called && self.config.hashes.v1.is_some() && theirs.offers_v2();
        v2.is_some_and(|v2| theirs.info_hash == v2 || upgraded)
    }

    /// Peers have the metadata; the hashes that pieces are checked by are still missing.
    pub(super) fn await_layers(&mut self, metadata: Metadata) {
        self.machine
            .set_metadata(metadata.info.raw().to_vec().into());
        self.hash_trees(&metadata.info, &metadata.layers);
        self.awaiting = Some(metadata);
    }

    /// Tells the machine of the trees of `info`; what is missing of them is fetched.
    pub(super) fn hash_trees(&mut self, info: &Info, layers: &Layers) {
        if let Some(trees) = HashTrees::new(info, layers.clone()) {
            self.machine.set_hashes(self.clock.now(), trees);
        }
    }

    /// All piece hashes are known.
    pub(super) fn layers_known(&mut self, layers: Layers) {
        if let Some(Metadata { info, .. }) = self.awaiting.take() {
            return self.open(Metadata { info, layers });
        }
        if let Some(metadata) = &self.metadata {
            let info = metadata.info.clone();
            self.metadata = Some(Arc::new(Metadata { info, layers }));
        }
    }

    /// Reads a piece for the hashes a peer wants.
    pub(super) fn serve_hashes(&mut self, key: PeerKey, range: HashRange, of: LeavesOf) {
        let Some(content) = &self.content else {
            return self.machine.leaves_read(self.clock.now(), key, range, None);
        };
        let (disk, events) = (Arc::clone(&content.disk), self.disk_events.clone());
        tokio::task::spawn_blocking(move || {
            let leaves = leaves(&disk, of).ok();
            // An error means that the torrent was closed meanwhile.
            drop(events.send(DiskEvent::Leaves { key, range, leaves }));
        });
    }
}

fn leaves(disk: &DiskTorrent, of: LeavesOf) -> std::io::Result<Vec<TreeHash>> {
    let begin = disk.layout.offset(of.piece);
    let mut block = vec![0; BLOCK_BYTES as usize];
    let leaf = |at: u32| {
        let len = (of.bytes - at).min(BLOCK_BYTES) as usize;
        let bytes = block.get_mut(..len).unwrap_or_default();
        disk.storage.read(begin + u64::from(at), bytes)?;
        Ok(merkle::leaf(bytes))
    };
    (0..of.bytes)
        .step_by(BLOCK_BYTES as usize)
        .map(leaf)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::metainfo::{InfoHashV1, InfoHashV2};

    #[test]
    fn a_hybrid_offers_its_v2_half_and_others_do_not() {
        let (v1, v2) = (Some(InfoHashV1([1; 20])), Some(InfoHashV2([2; 32])));
        let of = |v1, v2| handshake_of(&InfoHashes { v1, v2 }, [9; 20]);
        let (hybrid, upgrade) = of(v1, v2);
        assert_eq!((hybrid.info_hash, upgrade), ([1; 20], Some([2; 20])));
        assert!(hybrid.offers_v2());
        let (only, upgrade) = of(None, v2);
        assert_eq!(
            (only.info_hash, upgrade, only.offers_v2()),
            ([2; 20], None, false)
        );
        let (old, upgrade) = of(v1, None);
        assert_eq!(
            (old.info_hash, upgrade, old.offers_v2()),
            ([1; 20], None, false)
        );
    }
}
