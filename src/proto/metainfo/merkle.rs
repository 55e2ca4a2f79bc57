//! The hash tree of a v2 file (BEP 52): SHA-256 over blocks of 16 KiB, binary, leaves missing at the end are zero.

use sha2::{Digest, Sha256};

/// Bytes under one leaf.
pub const BLOCK_BYTES: u32 = 16 * 1024;

/// A node of the tree: a leaf, a piece's subtree, or the root.
pub type TreeHash = [u8; 32];

/// What stands for a leaf behind the end of the file.
const NO_LEAF: TreeHash = [0; 32];

/// The leaf over one block; only the last block of a file is shorter than [`BLOCK_BYTES`].
pub fn leaf(block: &[u8]) -> TreeHash {
    Sha256::digest(block).into()
}

/// The node over two nodes.
pub fn parent(left: &TreeHash, right: &TreeHash) -> TreeHash {
    let mut both = Sha256::new();
    both.update(left);
    both.update(right);
    both.finalize().into()
}

/// The root over `nodes`, filled up to `width` (a power of two, at least their number) with `filler`.
pub fn root_of(nodes: &[TreeHash], width: usize, mut filler: TreeHash) -> TreeHash {
    let mut level = nodes.to_vec();
    let mut width = width.max(1);
    while width > 1 {
        level = level
            .chunks(2)
            .map(|pair| match pair {
                [left, right] => parent(left, right),
                [left, ..] => parent(left, &filler),
                [] => filler,
            })
            .collect();
        filler = parent(&filler, &filler);
        width /= 2;
    }
    level.first().copied().unwrap_or(filler)
}

/// The hash of one piece of a file that has several: its leaves, filled up to a whole piece.
pub fn piece_hash(leaves: &[TreeHash], piece_bytes: u32) -> TreeHash {
    root_of(leaves, blocks_of_piece(piece_bytes), NO_LEAF)
}

/// The root of a file that fits into one piece.
pub fn small_file_root(leaves: &[TreeHash]) -> TreeHash {
    root_of(leaves, leaves.len().next_power_of_two(), NO_LEAF)
}

/// The root of a file from the hashes of its pieces.
pub fn root_of_pieces(pieces: &[TreeHash], piece_bytes: u32) -> TreeHash {
    let filler = root_of(&[], blocks_of_piece(piece_bytes), NO_LEAF);
    root_of(pieces, pieces.len().next_power_of_two(), filler)
}

fn blocks_of_piece(piece_bytes: u32) -> usize {
    (piece_bytes / BLOCK_BYTES).max(1) as usize
}

/// The layer in which piece hashes lie; leaves are layer 0.
pub fn piece_layer(piece_bytes: u32) -> u32 {
    (piece_bytes / BLOCK_BYTES).max(1).ilog2()
}

/// What stands in `layer` for a node that has only missing leaves under it.
pub fn filler(layer: u32) -> TreeHash {
    (0..layer).fold(NO_LEAF, |node, _| parent(&node, &node))
}

/// `nodes` of `layer` and every layer above them, up to the one of a single node. Missing nodes at the end stay missing.
pub fn layers_above(nodes: Vec<TreeHash>, layer: u32) -> Vec<Vec<TreeHash>> {
    let mut filler = filler(layer);
    let mut out = vec![nodes];
    while let Some(below) = out.last().filter(|below| below.len() > 1) {
        let next = below
            .chunks(2)
            .map(|pair| match pair {
                [left, right] => parent(left, right),
                [left, ..] => parent(left, &filler),
                [] => filler,
            })
            .collect();
        filler = parent(&filler, &filler);
        out.push(next);
    }
    out
}

/// The root over `nodes` (a power of two of them) that begin at `index` of their layer, with the nodes beside the way up.
pub fn root_by_uncles(nodes: &[TreeHash], index: u32, uncles: &[TreeHash]) -> TreeHash {
    let width = nodes.len().next_power_of_two();
    let top = root_of(nodes, width, NO_LEAF);
    let at = index.checked_shr(width.ilog2()).unwrap_or(0);
    let climb = |(node, at): (TreeHash, u32), uncle: &TreeHash| match at % 2 {
        0 => (parent(&node, uncle), at / 2),
        _ => (parent(uncle, &node), at / 2),
    };
    uncles.iter().fold((top, at), climb).0
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The definition, level by level over explicit zero leaves.
    fn naive(mut leaves: Vec<TreeHash>, width: usize) -> TreeHash {
        leaves.resize(width, NO_LEAF);
        while leaves.len() > 1 {
            leaves = leaves.chunks(2).map(|p| parent(&p[0], &p[1])).collect();
        }
        leaves[0]
    }

    fn some_leaves(count: usize) -> Vec<TreeHash> {
        (0..count)
            .map(|n| leaf(format!("{n}").as_bytes()))
            .collect()
    }

    proptest! {
        #[test]
        fn pieces_and_leaves_give_one_root(count in 5usize..70, piece_blocks in prop::sample::select(vec![1usize, 2, 4])) {
            let piece_bytes = BLOCK_BYTES * u32::try_from(piece_blocks).unwrap();
            let leaves = some_leaves(count);
            let pieces: Vec<_> = leaves.chunks(piece_blocks).map(|p| piece_hash(p, piece_bytes)).collect();
            prop_assert_eq!(root_of_pieces(&pieces, piece_bytes), naive(leaves, count.next_power_of_two()));
        }

        #[test]
        fn a_small_file_is_filled_to_a_power_of_two(count in 1usize..17) {
            prop_assert_eq!(small_file_root(&some_leaves(count)), naive(some_leaves(count), count.next_power_of_two()));
        }
    }

    #[test]
    fn one_block_is_its_own_root() {
        assert_eq!(small_file_root(&[leaf(b"abc")]), leaf(b"abc"));
        assert_eq!(
            leaf(b"abc")[..4],
            [0xba, 0x78, 0x16, 0xbf],
            "SHA-256 of abc, FIPS 180-2"
        );
    }
}
