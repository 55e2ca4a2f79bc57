//! What the bytes of each piece must hash to: SHA-1 of the whole (v1), the root of its blocks (v2), or both.

use std::collections::{BTreeMap, HashMap};

use sha1::{Digest, Sha1};

use crate::proto::blocks::{BLOCK_BYTES, Layout};
use crate::proto::metainfo::Info;
use crate::proto::metainfo::merkle::{self, TreeHash};

/// The v2 half of a piece.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Subtree {
    hash: TreeHash,
    /// Bytes of the file in the piece; a pad file may follow.
    bytes: u32,
    /// The file fits into the piece, so the tree is only as wide as the file.
    whole_file: bool,
}

/// See the module documentation.
#[derive(Debug)]
pub(super) struct PieceHashes {
    v1: Vec<[u8; 20]>,
    v2: HashMap<u32, Subtree>,
    piece_bytes: u32,
}

impl PieceHashes {
    /// The hashes of a torrent; `layers` are those of its v2 half. `None`: there are not enough of them to check every piece.
    pub(super) fn new(info: &Info, layers: &BTreeMap<TreeHash, Vec<TreeHash>>) -> Option<Self> {
        let mut v2 = HashMap::new();
        for file in &info.files {
            let Some(root) = file.root else { continue };
            let first = u32::try_from(file.offset / u64::from(info.piece_bytes)).ok()?;
            if file.length <= u64::from(info.piece_bytes) {
                let bytes = file.length as u32;
                v2.insert(
                    first,
                    Subtree {
                        hash: root,
                        bytes,
                        whole_file: true,
                    },
                );
                continue;
            }
            let Some(layer) = layers.get(&root) else {
                if info.pieces_v1.is_empty() {
                    return None;
                }
                continue;
            };
            for (piece, hash) in (first..).zip(layer) {
                let begin = u64::from(piece - first) * u64::from(info.piece_bytes);
                let bytes = (file.length - begin).min(info.piece_bytes.into()) as u32;
                v2.insert(
                    piece,
                    Subtree {
                        hash: *hash,
                        bytes,
                        whole_file: false,
                    },
                );
            }
        }
        Some(Self {
            v1: info.pieces_v1.clone(),
            v2,
            piece_bytes: info.piece_bytes,
        })
    }

    /// Starts hashing a piece.
    pub(super) fn begin(&self, piece: u32) -> PieceHasher {
        PieceHasher {
            v1: self.v1.get(piece as usize).map(|_| Sha1::new()),
            v2: self.v2.get(&piece).map(|subtree| (*subtree, Vec::new())),
            at: 0,
        }
    }

    /// Whether what went through the hasher is the piece.
    pub(super) fn is_right(&self, piece: u32, hasher: PieceHasher) -> bool {
        let v1 = match (hasher.v1, self.v1.get(piece as usize)) {
            (Some(found), Some(expected)) => Some(<[u8; 20]>::from(found.finalize()) == *expected),
            _ => None,
        };
        let v2 = hasher.v2.map(|(subtree, leaves)| {
            let found = match subtree.whole_file {
                true => merkle::small_file_root(&leaves),
                false => merkle::piece_hash(&leaves, self.piece_bytes),
            };
            found == subtree.hash
        });
        v1 != Some(false) && v2 != Some(false) && (v1.is_some() || v2.is_some())
    }
}

/// A piece being hashed, in order.
#[derive(Debug)]
pub(super) struct PieceHasher {
    v1: Option<Sha1>,
    v2: Option<(Subtree, Vec<TreeHash>)>,
    at: u32,
}

impl PieceHasher {
    /// Takes the next block, whole.
    pub(super) fn update(&mut self, block: &[u8]) {
        if let Some(v1) = &mut self.v1 {
            v1.update(block);
        }
        if let Some((subtree, leaves)) = &mut self.v2 {
            let bytes = subtree.bytes.saturating_sub(self.at) as usize;
            if bytes > 0 {
                let block = block.get(..bytes.min(block.len())).unwrap_or_default();
                leaves.push(merkle::leaf(block));
            }
        }
        self.at = self.at.saturating_add(block.len() as u32);
    }

    /// Bytes taken so far.
    pub(super) fn at(&self) -> u32 {
        self.at
    }
}

/// Tells the blocks of a piece apart; salted by nothing, as it is compared only with others of ours.
pub(super) fn digests(layout: &Layout, piece: u32, bytes: &[u8]) -> Vec<u64> {
    let digest = |block: &[u8]| {
        let hash: [u8; 20] = Sha1::digest(block).into();
        hash.first_chunk()
            .map_or(0, |head| u64::from_le_bytes(*head))
    };
    let all = bytes.chunks(BLOCK_BYTES as usize).map(digest);
    all.take(layout.blocks(piece) as usize).collect()
}
