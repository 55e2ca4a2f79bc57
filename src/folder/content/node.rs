//! Nodes of a file's list of chunks: segments (level 0) and the indexes above them (level 1 and
//! up, one more than the level byte they carry), with the rules that decide where one ends.

use ccbt_xet::hash::{ChunkHash, HASH_LEN, NodeId, node_id};

use super::{ChunkRef, DecodeError, MAX_CHUNK_LEN, MAX_FILE_LEN, Reader, in_range, put_varint};
use crate::folder::tree::{NodeKind, NodeRef};

/// A node ends after this many items.
const MAX_ITEMS: usize = 1024;
/// Greatest level of a node. Every level has at most half the nodes of the one below.
pub(super) const MAX_LEVEL: u8 = 16;
/// Bytes of one chunk in a segment.
const CHUNK_ITEM_LEN: usize = HASH_LEN + 3;

/// The kind under which nodes of `level` are named.
pub(super) fn kind_of(level: u8) -> NodeKind {
    if level == 0 {
        NodeKind::Segment
    } else {
        NodeKind::SegmentIndex
    }
}

/// Items a node holds before its cut rule may end it. Two children at least make every level half
/// as long as the one below, whatever the names.
fn min_items(level: u8) -> usize {
    if level == 0 { 1 } else { 2 }
}

/// What a node lists: a chunk, or a node of the level below.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Item {
    pub(super) name: [u8; HASH_LEN],
    /// Bytes of the file that it stands for, never 0.
    pub(super) bytes: u64,
}

impl Item {
    pub(super) fn chunk(chunk: ChunkRef) -> Result<Self, DecodeError> {
        let bytes = u64::from(chunk.len);
        in_range("chunk length", bytes, 1, u64::from(MAX_CHUNK_LEN))?;
        Ok(Self {
            name: *chunk.hash.as_bytes(),
            bytes,
        })
    }

    pub(super) fn to_chunk(self) -> ChunkRef {
        ChunkRef {
            hash: ChunkHash::from_bytes(self.name),
            len: self.bytes as u32,
        }
    }

    pub(super) fn id(&self) -> NodeId {
        NodeId::from_bytes(self.name)
    }

    /// Reads an item of a node of `level`.
    pub(super) fn read(level: u8, reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let name = reader.array()?;
        let bytes = if level == 0 {
            in_range(
                "chunk length",
                u64::from(reader.u24()?),
                1,
                u64::from(MAX_CHUNK_LEN),
            )?
        } else {
            reader.varint_in("bytes of a node", 1, MAX_FILE_LEN)?
        };
        Ok(Self { name, bytes })
    }

    /// Appends the item as it stands in a node of `level`.
    pub(super) fn write(&self, level: u8, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.name);
        if level == 0 {
            out.extend_from_slice(&(self.bytes as u32).to_le_bytes()[..3]);
        } else {
            put_varint(out, self.bytes);
        }
    }

    fn cuts(&self) -> bool {
        self.name[0] == 0
    }
}

/// Reference to a node, with all that its parent says about it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Link {
    pub(super) level: u8,
    pub(super) item: Item,
    /// Where it begins in the file.
    pub(super) offset: u64,
    /// Whether the file ends with it.
    pub(super) is_last: bool,
}

impl Link {
    pub(super) fn node_ref(&self) -> NodeRef {
        NodeRef {
            kind: kind_of(self.level),
            id: self.item.id(),
        }
    }

    /// End in the file.
    pub(super) fn end(&self) -> u64 {
        self.offset + self.item.bytes
    }
}

/// References to neighbouring nodes of `level`, the first of which begins at `offset`. The items
/// add up to no more than `size`.
pub(super) fn links(items: &[Item], level: u8, mut offset: u64, size: u64) -> Vec<Link> {
    let link = |item: &Item| {
        let start = offset;
        offset += item.bytes;
        Link {
            level,
            item: *item,
            offset: start,
            is_last: offset == size,
        }
    };
    items.iter().map(link).collect()
}

/// A node whose own bytes break no rule.
#[derive(Clone, Debug)]
pub(super) struct Node {
    pub(super) level: u8,
    pub(super) items: Vec<Item>,
}

impl Node {
    pub(super) fn parse(level: u8, bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(bytes);
        let count = if level == 0 {
            bytes.len() / CHUNK_ITEM_LEN
        } else {
            let stated = u64::from(reader.u8()?) + 1;
            in_range("index level", stated, u64::from(level), u64::from(level))?;
            reader.count("children of an index", HASH_LEN + 1)?
        };
        in_range("items of a node", count as u64, 1, MAX_ITEMS as u64)?;
        let items: Result<Vec<_>, _> = (0..count).map(|_| Item::read(level, &mut reader)).collect();
        reader.finish()?;
        let node = Self {
            level,
            items: items?,
        };
        check_run(level, &node.items)?;
        Ok(node)
    }

    /// Checks what only the referring node shows: the sum of bytes, and that a node inside a level
    /// ends where its rule says.
    pub(super) fn check_link(&self, link: &Link) -> Result<(), DecodeError> {
        check_sum(&self.items, link.item.bytes)?;
        let ends = self.items.len() == MAX_ITEMS
            || (self.items.len() >= min_items(self.level)
                && self.items.last().is_some_and(Item::cuts));
        if ends || link.is_last {
            Ok(())
        } else {
            Err(DecodeError::Rule("a node inside a level ends too early"))
        }
    }

    /// Checks an index that the entry itself refers to.
    pub(super) fn check_root(&self, size: u64, inline: usize) -> Result<(), DecodeError> {
        check_sum(&self.items, size)?;
        let least = if self.level == 1 { inline + 1 } else { 2 };
        if self.items.len() < least {
            return Err(DecodeError::Rule("a shorter form of content would do"));
        }
        Ok(())
    }

    /// References to the children of an index that begins at `offset`.
    pub(super) fn links(&self, offset: u64, size: u64) -> Vec<Link> {
        links(&self.items, self.level.saturating_sub(1), offset, size)
    }
}

/// The level of an index node, from its first byte.
pub(super) fn index_level(bytes: &[u8]) -> Result<u8, DecodeError> {
    let stated = Reader::new(bytes).u8()?;
    in_range(
        "index level",
        u64::from(stated),
        0,
        u64::from(MAX_LEVEL - 1),
    )?;
    Ok(stated + 1)
}

/// No item but the last may be one after which a node of `level` had to end.
fn check_run(level: u8, items: &[Item]) -> Result<(), DecodeError> {
    let inside = items.len().saturating_sub(1);
    let from = (min_items(level) - 1).min(inside);
    if items[from..inside].iter().any(Item::cuts) {
        return Err(DecodeError::Rule("a node goes on after its last item"));
    }
    Ok(())
}

/// Checks that the items stand for `size` bytes.
pub(super) fn check_sum(items: &[Item], size: u64) -> Result<(), DecodeError> {
    let sum = items
        .iter()
        .try_fold(0_u64, |sum, item| sum.checked_add(item.bytes));
    if sum == Some(size) {
        Ok(())
    } else {
        Err(DecodeError::Rule(
            "the parts of a file do not add up to its size",
        ))
    }
}

/// Puts items of one level into nodes.
#[derive(Debug)]
pub(super) struct Chunker {
    level: u8,
    items: Vec<Item>,
}

impl Chunker {
    pub(super) fn new(level: u8) -> Self {
        Self {
            level,
            items: Vec::new(),
        }
    }

    /// Appends the next item of the level; the caller finishes the node at every boundary.
    pub(super) fn push(&mut self, item: Item) {
        self.items.push(item);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// Whether the node ends here whatever follows, or nothing is pending.
    pub(super) fn at_boundary(&self) -> bool {
        let Some(last) = self.items.last() else {
            return true;
        };
        let full = self.items.len() >= MAX_ITEMS;
        full || (last.cuts() && self.items.len() >= min_items(self.level))
    }

    /// Ends the node that is being filled, if any item is in it. Returns its bytes too.
    pub(super) fn finish(&mut self) -> Option<(Item, Vec<u8>)> {
        if self.items.is_empty() {
            return None;
        }
        let mut bytes = Vec::with_capacity(3 + self.items.len() * (HASH_LEN + 4));
        if self.level > 0 {
            bytes.push(self.level - 1);
            put_varint(&mut bytes, self.items.len() as u64);
        }
        self.items
            .iter()
            .for_each(|item| item.write(self.level, &mut bytes));
        let name = *node_id(kind_of(self.level).code(), &bytes).as_bytes();
        let item = Item {
            name,
            bytes: self.items.iter().map(|item| item.bytes).sum(),
        };
        self.items.clear();
        Some((item, bytes))
    }
}
