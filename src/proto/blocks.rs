//! How the piece space of a torrent is cut: pieces of one size, blocks of 16 KiB inside them.

use std::collections::HashMap;

use super::metainfo::Info;

/// Bytes of a block, the unit in which clients ask (BEP 3 by convention, BEP 52 by rule).
pub const BLOCK_BYTES: u32 = 16 * 1024;

/// A range of a piece, as request, piece, cancel and reject messages name it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Block {
    pub piece: u32,
    /// Byte in the piece.
    pub begin: u32,
    /// Bytes.
    pub length: u32,
}

impl Block {
    /// Which of its piece's blocks begins here.
    pub fn number(&self) -> u32 {
        self.begin / BLOCK_BYTES
    }
}

/// The sizes of all pieces.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    piece_bytes: u32,
    pieces: u32,
    /// Pieces with fewer bytes than the others: the last one, and in v2 the last one of each file.
    short: HashMap<u32, u32>,
    /// Files end within pieces: it is of v2 alone.
    has_gaps: bool,
}

impl Layout {
    /// `space_bytes` cut into pieces of `piece_bytes`, of which only the last may be shorter. Pieces beyond `u32` are left
    /// out; no client could name them.
    pub fn new(piece_bytes: u32, space_bytes: u64) -> Self {
        let piece_bytes = piece_bytes.max(1);
        let pieces = space_bytes.div_ceil(u64::from(piece_bytes));
        let pieces = u32::try_from(pieces).unwrap_or(u32::MAX);
        let rest = (space_bytes % u64::from(piece_bytes)) as u32;
        let last = (rest > 0).then(|| (pieces.saturating_sub(1), rest));
        Self {
            piece_bytes,
            pieces,
            short: last.into_iter().collect(),
            has_gaps: false,
        }
    }

    /// The pieces of a torrent. Those of a v2 torrent end with their file (BEP 52); in a hybrid one pad files fill them up.
    pub fn of(info: &Info) -> Self {
        let mut layout = Self::new(info.piece_bytes, info.space_bytes);
        if info.pieces_v1.is_empty() {
            layout.has_gaps = true;
            for file in &info.files {
                let rest = (file.length % u64::from(layout.piece_bytes)) as u32;
                let last = (file.offset + file.length) / u64::from(layout.piece_bytes);
                if let (true, Ok(last)) = (rest > 0, u32::try_from(last)) {
                    layout.short.insert(last, rest);
                }
            }
        }
        layout
    }

    /// Number of pieces.
    pub fn pieces(&self) -> u32 {
        self.pieces
    }

    /// Bytes between the beginnings of two pieces.
    pub fn piece_bytes(&self) -> u32 {
        self.piece_bytes
    }

    /// Bytes of one piece; 0 for a number that is none.
    pub fn piece_len(&self, piece: u32) -> u32 {
        if piece >= self.pieces {
            return 0;
        }
        self.short.get(&piece).copied().unwrap_or(self.piece_bytes)
    }

    /// Blocks of one piece.
    pub fn blocks(&self, piece: u32) -> u32 {
        self.piece_len(piece).div_ceil(BLOCK_BYTES)
    }

    /// The block of a piece with this number; of length 0 if there is none.
    pub fn block(&self, piece: u32, number: u32) -> Block {
        let begin = number.saturating_mul(BLOCK_BYTES);
        let left = self.piece_len(piece).saturating_sub(begin);
        Block {
            piece,
            begin,
            length: left.min(BLOCK_BYTES),
        }
    }

    /// Whether a peer may ask for this range: it lies in its piece, or in the gap between that and where the next one would begin.
    /// libtorrent 2.0 asks for all of a v2 piece, however little of it is file, and be it the last; what lies in a gap are zeros.
    pub fn may_be_asked(&self, block: &Block) -> bool {
        let last = block.piece.checked_add(1) == Some(self.pieces);
        let most = match self.piece_len(block.piece) {
            0 => 0,
            len if last && !self.has_gaps => len,
            _ => self.piece_bytes,
        };
        let end = u64::from(block.begin) + u64::from(block.length);
        block.length > 0 && end <= u64::from(most)
    }

    /// Whether this is a block as we ask for them.
    pub fn is_block(&self, block: &Block) -> bool {
        block.length > 0 && *block == self.block(block.piece, block.number())
    }

    /// Where the piece begins in the piece space.
    pub fn offset(&self, piece: u32) -> u64 {
        u64::from(piece) * u64::from(self.piece_bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_for_may_lie_in_the_gap_behind_a_file() {
        let mut layout = Layout::new(40_000, 100_000);
        layout.short.insert(0, 35_000);
        let range = |piece, begin, length| Block {
            piece,
            begin,
            length,
        };
        for block in [
            range(0, 32_768, 2_232),
            range(0, 32_768, 7_232),
            range(0, 35_000, 1),
            range(2, 16_384, 3_616),
        ] {
            assert!(layout.may_be_asked(&block), "{block:?}");
        }
        for block in [
            range(0, 32_768, 7_233),
            range(0, 0, 0),
            range(2, 16_384, 3_617),
            range(3, 0, 1),
            range(u32::MAX, 0, 1),
        ] {
            assert!(!layout.may_be_asked(&block), "{block:?}");
        }
        layout.has_gaps = true;
        assert!(layout.may_be_asked(&range(2, 16_384, 16_384)));
        for block in [range(2, 32_768, 7_233), range(3, 0, 1)] {
            assert!(!layout.may_be_asked(&block), "{block:?}");
        }
    }

    #[test]
    fn only_the_last_piece_is_short() {
        let layout = Layout::new(40_000, 100_000);
        assert_eq!(
            [0, 1, 2, 3].map(|p| layout.piece_len(p)),
            [40_000, 40_000, 20_000, 0]
        );
        assert_eq!([0, 2].map(|p| layout.blocks(p)), [3, 2]);
        let last = layout.block(0, 2);
        assert_eq!((last.begin, last.length), (32_768, 7_232));
        assert!(layout.is_block(&last) && layout.may_be_asked(&last));
        let odd = Block {
            piece: 0,
            begin: 1,
            length: 39_999,
        };
        assert!(layout.may_be_asked(&odd) && !layout.is_block(&odd));
        let beyond = Block {
            piece: 2,
            begin: 16_384,
            length: 16_384,
        };
        assert!(!layout.may_be_asked(&beyond));
        assert_eq!(layout.block(7, 0).length, 0);
        assert_eq!(Layout::new(10, 20).piece_len(1), 10);
    }
}
