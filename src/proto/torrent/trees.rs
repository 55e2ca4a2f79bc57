//! The hash trees of a torrent's v2 files (BEP 52): what is known of them, and answers to peers that ask for a part.
//!
//! Piece hashes and all above them come from the metadata. Hashes below them are made from a piece on disk, so they are the
//! owner's to fetch ([`Answer::Leaves`]). Pad files belong to v1 alone: a tree lies over the bytes of its file only.

use std::collections::BTreeMap;

use crate::proto::metainfo::Info;
use crate::proto::metainfo::merkle::{self, BLOCK_BYTES, TreeHash};
use crate::proto::wire::HashRange;

/// Most hashes sent in one answer: the leaves of a piece of 128 MiB, which libtorrent asks for at once.
const SERVED_MAX: u32 = 8192;

/// The hashes of pieces, by the root of their file.
pub type Layers = BTreeMap<TreeHash, Vec<TreeHash>>;

/// One file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Shape {
    length: u64,
    first_piece: u32,
}

/// A piece whose leaves are needed for an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LeavesOf {
    pub piece: u32,
    /// Bytes of the file in it.
    pub bytes: u32,
}

/// What a peer that asks for hashes is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Answer {
    Hashes(Vec<TreeHash>),
    /// [`HashTrees::answer_with`] needs the leaves of this piece.
    Leaves(LeavesOf),
    Refuse,
}

/// See the module documentation.
#[derive(Debug)]
pub struct HashTrees {
    piece_bytes: u32,
    /// Files that are not empty.
    files: BTreeMap<TreeHash, Shape>,
    /// The layer of pieces and those above, of files larger than a piece. Made when first asked for.
    built: BTreeMap<TreeHash, Vec<Vec<TreeHash>>>,
    layers: Layers,
}

impl Shape {
    /// Pieces of the file.
    pub(super) fn pieces(&self, piece_bytes: u32) -> u32 {
        u32::try_from(self.length.div_ceil(u64::from(piece_bytes))).unwrap_or(u32::MAX)
    }

    /// Layers above the leaves.
    fn height(&self) -> u32 {
        let leaves = self.length.div_ceil(u64::from(BLOCK_BYTES)).max(1);
        leaves.next_power_of_two().ilog2()
    }
}

impl HashTrees {
    /// The trees of `info`, with the layers that are known. `None`: it has no v2 half.
    pub fn new(info: &Info, layers: Layers) -> Option<Self> {
        info.hashes.v2.as_ref()?;
        let shape = |file: &crate::proto::metainfo::File| {
            let first_piece = u32::try_from(file.offset / u64::from(info.piece_bytes)).ok()?;
            let length = file.length;
            Some((
                file.root?,
                Shape {
                    length,
                    first_piece,
                },
            ))
        };
        Some(Self {
            piece_bytes: info.piece_bytes,
            files: info.files.iter().filter_map(shape).collect(),
            built: BTreeMap::new(),
            layers,
        })
    }

    pub(super) fn piece_bytes(&self) -> u32 {
        self.piece_bytes
    }

    pub(super) fn layers(&self) -> &Layers {
        &self.layers
    }

    /// Files whose piece hashes are not known.
    pub(super) fn missing(&self) -> impl Iterator<Item = (TreeHash, Shape)> {
        let lacks = |(root, shape): &(&TreeHash, &Shape)| {
            shape.length > u64::from(self.piece_bytes) && !self.layers.contains_key(*root)
        };
        self.files
            .iter()
            .filter(lacks)
            .map(|(root, shape)| (*root, *shape))
    }

    /// The piece hashes of files that were missing. They are right.
    pub(super) fn complete(&mut self, layers: Layers) {
        self.layers.extend(layers);
    }

    /// What to say to a peer that asks for `range`.
    pub(super) fn answer(&mut self, range: &HashRange) -> Answer {
        let Some(shape) = self.asked(range) else {
            return Answer::Refuse;
        };
        let layer = merkle::piece_layer(self.piece_bytes);
        if shape.length > u64::from(self.piece_bytes) && range.base_layer >= layer {
            let nodes = self.compose(range, |_, _| None);
            return nodes.map_or(Answer::Refuse, Answer::Hashes);
        }
        // Leaves of one piece: whoever wants those of several asks several times.
        let first = u64::from(range.index) << range.base_layer;
        let last = (u64::from(range.index + range.length) << range.base_layer) - 1;
        let blocks = u64::from(self.piece_bytes / BLOCK_BYTES);
        if first / blocks != last / blocks {
            return Answer::Refuse;
        }
        let number = (first / blocks) as u32;
        let begin = u64::from(number) * u64::from(self.piece_bytes);
        if begin >= shape.length {
            return Answer::Refuse;
        }
        Answer::Leaves(LeavesOf {
            piece: shape.first_piece + number,
            bytes: (shape.length - begin).min(self.piece_bytes.into()) as u32,
        })
    }

    /// The answer, with the leaves of the piece it lies in. `None`: they are not what the tree says.
    pub(super) fn answer_with(
        &mut self,
        range: &HashRange,
        leaves: Vec<TreeHash>,
    ) -> Option<Vec<TreeHash>> {
        let shape = self.asked(range)?;
        let layer = merkle::piece_layer(self.piece_bytes);
        let large = shape.length > u64::from(self.piece_bytes);
        let top = if large { layer } else { shape.height() };
        let number = (u64::from(range.index) << range.base_layer) / (1 << top);
        let mut below = merkle::layers_above(leaves, 0);
        // A last piece may be narrower than a whole one.
        while below.len() <= top as usize {
            let level = below.len() as u32 - 1;
            let node = *below.last()?.first()?;
            below.push(vec![merkle::parent(&node, &merkle::filler(level))]);
        }
        let right = match large {
            true => self.layers.get(&range.root)?.get(number as usize).copied(),
            false => Some(range.root),
        };
        if below.get(top as usize)?.first().copied() != right {
            return None;
        }
        self.compose(range, |level, index| {
            let nodes = below
                .get(level as usize)
                .filter(|_| level < top || !large)?;
            let begin = number << (top - level);
            let node = nodes.get(usize::try_from(u64::from(index).checked_sub(begin)?).ok()?);
            Some(node.copied().unwrap_or_else(|| merkle::filler(level)))
        })
    }

    /// The file, if the range is one a tree of its size has.
    fn asked(&self, range: &HashRange) -> Option<Shape> {
        let shape = *self.files.get(&range.root)?;
        let above = shape.height().checked_sub(range.base_layer)?;
        let width = 1_u64 << above;
        let fits = range.length.is_power_of_two()
            && (2..=SERVED_MAX).contains(&range.length)
            && range.index.is_multiple_of(range.length)
            && u64::from(range.index) + u64::from(range.length) <= width
            && range.proof_layers < above;
        fits.then_some(shape)
    }

    /// The nodes of the range and the uncles beside the way up. `below` knows nodes under the layer of pieces.
    fn compose(
        &mut self,
        range: &HashRange,
        below: impl Fn(u32, u32) -> Option<TreeHash>,
    ) -> Option<Vec<TreeHash>> {
        let layer = merkle::piece_layer(self.piece_bytes);
        if let (None, Some(pieces)) = (self.built.get(&range.root), self.layers.get(&range.root)) {
            let built = merkle::layers_above(pieces.clone(), layer);
            self.built.insert(range.root, built);
        }
        let built = self.built.get(&range.root);
        let node = |level: u32, index: u32| {
            below(level, index).or_else(|| {
                let nodes = built?.get(level.checked_sub(layer)? as usize)?;
                let node = nodes.get(index as usize).copied();
                Some(node.unwrap_or_else(|| merkle::filler(level)))
            })
        };
        let within = range.length.ilog2();
        let nodes = (range.index..range.index + range.length).map(|n| node(range.base_layer, n));
        // Layers that follow from the nodes themselves are left out (BEP 52).
        let uncles = (within..=range.proof_layers)
            .map(|up| node(range.base_layer + up, (range.index >> up) ^ 1));
        nodes.chain(uncles).collect()
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::proto::metainfo::tests::{content_of, torrent_of};

    /// Every layer of a file's tree from its definition: zero leaves and all.
    pub(in crate::proto::torrent) fn whole_tree(content: &[u8]) -> Vec<Vec<TreeHash>> {
        let mut leaves: Vec<TreeHash> = content
            .chunks(BLOCK_BYTES as usize)
            .map(merkle::leaf)
            .collect();
        leaves.resize(leaves.len().next_power_of_two(), [0; 32]);
        let mut tree = vec![leaves];
        while tree.last().unwrap().len() > 1 {
            let below = tree.last().unwrap().chunks(2);
            tree.push(below.map(|p| merkle::parent(&p[0], &p[1])).collect());
        }
        tree
    }

    /// Trees that lack the layer of a file of so many pieces, trees that have it, and the layer.
    pub(in crate::proto::torrent) fn synthetic(pieces: u32) -> (HashTrees, HashTrees, Layers) {
        let layer: Vec<TreeHash> = (0..pieces)
            .map(|n| merkle::leaf(&n.to_be_bytes()))
            .collect();
        let root = merkle::root_of_pieces(&layer, 32_768);
        let length = u64::from(pieces) * 32_768 - 10;
        let trees = |layers| HashTrees {
            piece_bytes: 32_768,
            files: BTreeMap::from([(
                root,
                Shape {
                    length,
                    first_piece: 0,
                },
            )]),
            built: BTreeMap::new(),
            layers,
        };
        let layers = Layers::from([(root, layer)]);
        (trees(Layers::new()), trees(layers.clone()), layers)
    }

    fn ranges(height: u32) -> Vec<(u32, u32, u32, u32)> {
        let mut out = Vec::new();
        for base in 0..height {
            let width = 1_u32 << (height - base);
            for length in (1..).map(|n| 1 << n).take_while(|n| *n <= width) {
                for index in (0..width).step_by(length as usize) {
                    out.extend((0..height - base).map(|proof| (base, index, length, proof)));
                }
            }
        }
        out
    }

    #[test]
    fn answers_are_cut_out_of_the_tree_as_it_is_defined() {
        // 32 KiB pieces: files of one block, of less than a piece, of one, and of many with a short last one.
        for length in [10, 16_384, 30_000, 32_768, 40_000, 100_000, 32_768 * 13 + 5] {
            let torrent = torrent_of(length);
            let content = content_of(length);
            let tree = whole_tree(&content);
            let root = tree.last().unwrap()[0];
            let mut trees = HashTrees::new(&torrent.info, torrent.layers).unwrap();
            for (base_layer, index, length, proof_layers) in ranges(tree.len() as u32 - 1) {
                let range = HashRange {
                    root,
                    base_layer,
                    index,
                    length,
                    proof_layers,
                };
                let answer = match trees.answer(&range) {
                    Answer::Leaves(of) => {
                        let begin = of.piece as usize * 32_768;
                        let bytes = &content[begin..][..of.bytes as usize];
                        let leaves = bytes.chunks(BLOCK_BYTES as usize).map(merkle::leaf);
                        trees.answer_with(&range, leaves.collect()).unwrap()
                    }
                    Answer::Hashes(hashes) => hashes,
                    Answer::Refuse => {
                        assert!(
                            base_layer == 0 && length > 2
                                || index as usize * 16_384 >= content.len(),
                            "{range:?}"
                        );
                        continue;
                    }
                };
                let (nodes, uncles) = answer.split_at(length as usize);
                assert_eq!(
                    nodes,
                    &tree[base_layer as usize][index as usize..][..length as usize]
                );
                let expected = (proof_layers + 1).saturating_sub(length.ilog2());
                assert_eq!(uncles.len(), expected as usize, "{range:?}");
                if base_layer + length.ilog2() + expected == tree.len() as u32 - 1 {
                    assert_eq!(
                        merkle::root_by_uncles(nodes, index, uncles),
                        root,
                        "{range:?}"
                    );
                }
            }
        }
    }

    #[test]
    fn what_no_tree_has_is_refused_and_wrong_leaves_are_noticed() {
        let torrent = torrent_of(100_000);
        let root = torrent.info.files[0].root.unwrap();
        let mut trees = HashTrees::new(&torrent.info, torrent.layers).unwrap();
        let good = HashRange {
            root,
            base_layer: 1,
            index: 0,
            length: 4,
            proof_layers: 1,
        };
        assert!(matches!(trees.answer(&good), Answer::Hashes(hashes) if hashes.len() == 4));
        let wrong = [
            HashRange {
                root: [1; 32],
                ..good
            },
            HashRange {
                base_layer: 9,
                ..good
            },
            HashRange {
                base_layer: u32::MAX,
                ..good
            },
            HashRange { index: 1, ..good },
            HashRange {
                index: u32::MAX - 3,
                ..good
            },
            HashRange { length: 0, ..good },
            HashRange { length: 1, ..good },
            HashRange { length: 3, ..good },
            HashRange { length: 8, ..good },
            HashRange {
                length: 1 << 31,
                ..good
            },
            HashRange {
                proof_layers: 2,
                ..good
            },
            HashRange {
                proof_layers: u32::MAX,
                ..good
            },
        ];
        for range in wrong {
            assert_eq!(trees.answer(&range), Answer::Refuse, "{range:?}");
        }
        let leaves = HashRange {
            base_layer: 0,
            length: 2,
            proof_layers: 2,
            ..good
        };
        assert!(matches!(trees.answer(&leaves), Answer::Leaves(of) if of.piece == 0));
        assert_eq!(trees.answer_with(&leaves, vec![[1; 32]; 2]), None);
        assert_eq!(trees.answer_with(&leaves, vec![]), None);
    }
}
