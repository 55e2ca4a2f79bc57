//! One node of the tree: its bytes, the rules that decide where it ends, and the checks that a node
//! from outside must pass.
//!
//! A parsed node keeps its bytes and remembers offsets, so reading one entry copies nothing.

use std::ops::Range;

use bytes::Bytes;
use ccbt_xet::hash::{HASH_LEN, NodeId, node_id};

use super::{MAX_KEY_LEN, MIN_KEY_LEN, NodeKind};
use crate::folder::encoding::{DecodeError, Reader, in_range, put_varint, varint_len};

/// Largest encoded node in bytes; a frame of the wire protocol holds one uncompressed.
pub const MAX_NODE_LEN: usize = 224 << 10;
/// Largest value in bytes: what is left of a node after its count, one longest key and lengths.
pub const MAX_VALUE_LEN: usize = MAX_NODE_LEN - 512;
/// A node's items take no more than this, unless it is a leaf with a single entry.
const MAX_BODY_LEN: usize = 96 << 10;
/// A node ends after a key whose hash begins with a byte below this: one key in 128.
const CUT_BELOW: u8 = 2;
/// Greatest level; every level has at most half the nodes of the one below, in practice 1/128.
const MAX_LEVEL: u8 = 15;

/// Where nodes end. Constant for the format; tests use small numbers to get deep trees.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rules {
    /// A first hash byte below this ends a node.
    pub(super) cut_below: u8,
    /// Bytes of items that a node holds before it is ended by force.
    pub(super) max_body_len: usize,
    /// Greatest level of a node.
    pub(super) max_level: u8,
}

impl Rules {
    /// The rules of the format.
    pub(super) const FORMAT: Self = Self {
        cut_below: CUT_BELOW,
        max_body_len: MAX_BODY_LEN,
        max_level: MAX_LEVEL,
    };

    /// Whether a node of `level` may end after an item with this key.
    pub(super) fn cuts(&self, level: u8, key: &[u8]) -> bool {
        let mut hasher = blake3::Hasher::new();
        if level > 0 {
            hasher.update(&[level]);
        }
        hasher.update(key);
        hasher.finalize().as_bytes()[0] < self.cut_below
    }

    /// Items a node of `level` holds before any rule may end it. Two children at least make every
    /// level half as long as the one below, whatever the keys.
    pub(super) fn min_items(level: u8) -> usize {
        if level == 0 { 1 } else { 2 }
    }
}

/// The kind under which nodes of `level` are named.
pub(super) fn kind_of(level: u8) -> NodeKind {
    if level == 0 {
        NodeKind::TreeLeaf
    } else {
        NodeKind::TreeInner
    }
}

/// Reference to a node, with all that its parent says about it.
#[derive(Clone, Debug)]
pub(super) struct Link {
    pub(super) level: u8,
    pub(super) id: NodeId,
    /// First key below it; none for the root.
    pub(super) first: Option<Bytes>,
    /// First key of what follows; none at the end of the level.
    pub(super) upper: Option<Bytes>,
    /// Entries below it; none for the root.
    pub(super) entries: Option<u64>,
}

/// One item of a node, encoded: an entry of a leaf, or a child of an inner node.
#[derive(Clone, Debug)]
pub(super) struct Item {
    pub(super) key: Bytes,
    /// The item as it stands in the node, key included.
    pub(super) encoded: Bytes,
    /// Entries it stands for.
    pub(super) entries: u64,
}

impl Item {
    /// An entry of a leaf. The lengths are the caller's to check.
    pub(super) fn entry(key: Bytes, value: &[u8]) -> Self {
        let mut encoded = Vec::with_capacity(key.len() + value.len() + 8);
        put_varint(&mut encoded, key.len() as u64);
        encoded.extend_from_slice(&key);
        put_varint(&mut encoded, value.len() as u64);
        encoded.extend_from_slice(value);
        Self {
            key,
            encoded: encoded.into(),
            entries: 1,
        }
    }

    /// A child of an inner node, whose first key is `key`.
    pub(super) fn child(key: Bytes, id: &NodeId, entries: u64) -> Self {
        let mut encoded = Vec::with_capacity(key.len() + HASH_LEN + 8);
        put_varint(&mut encoded, key.len() as u64);
        encoded.extend_from_slice(&key);
        encoded.extend_from_slice(id.as_bytes());
        put_varint(&mut encoded, entries);
        Self {
            key,
            encoded: encoded.into(),
            entries,
        }
    }
}

/// A node that has been checked: every rule that its bytes alone can break holds.
#[derive(Clone, Debug)]
pub(super) struct Node {
    pub(super) level: u8,
    bytes: Bytes,
    spans: Vec<Span>,
    entries: u64,
}

/// Where the parts of one item lie in the node's bytes. A node is below 4 GiB by far.
#[derive(Clone, Debug)]
struct Span {
    start: u32,
    key: Range<u32>,
    /// The entry's value, or the child's id.
    value: Range<u32>,
    end: u32,
    entries: u64,
}

impl Node {
    /// Parses the bytes of a node of `level` and checks them against `rules`.
    pub(super) fn parse(level: u8, bytes: Bytes, rules: &Rules) -> Result<Self, DecodeError> {
        in_range("node length", bytes.len() as u64, 1, MAX_NODE_LEN as u64)?;
        let mut reader = Reader::new(&bytes);
        if level > 0 {
            let stated = u64::from(reader.u8()?);
            in_range("node level", stated, u64::from(level), u64::from(level))?;
        }
        let least = if level == 0 {
            MIN_KEY_LEN + 2
        } else {
            MIN_KEY_LEN + HASH_LEN + 2
        };
        let count = reader.count("items of a node", least)?;
        let mut spans = Vec::with_capacity(count);
        let mut entries = 0_u64;
        for _ in 0..count {
            let span = Span::read(level, &mut reader)?;
            entries = entries
                .checked_add(span.entries)
                .ok_or(DecodeError::Rule("a node counts more entries than can be"))?;
            spans.push(span);
        }
        reader.finish()?;
        let node = Self {
            level,
            bytes,
            spans,
            entries,
        };
        node.check_order()?;
        node.check_cuts(rules)?;
        Ok(node)
    }

    fn check_order(&self) -> Result<(), DecodeError> {
        let ascending = (1..self.len()).all(|i| self.key(i - 1) < self.key(i));
        if ascending {
            Ok(())
        } else {
            Err(DecodeError::Order("keys"))
        }
    }

    /// No item but the last may be one after which the node had to end, and the items must have
    /// fitted.
    fn check_cuts(&self, rules: &Rules) -> Result<(), DecodeError> {
        let inside = self.len().saturating_sub(1);
        let first = Rules::min_items(self.level) - 1;
        if (first..inside).any(|i| rules.cuts(self.level, self.key(i))) {
            return Err(DecodeError::Rule("a node goes on after its last item"));
        }
        if self.len() > Rules::min_items(self.level) && self.body_len() > rules.max_body_len {
            return Err(DecodeError::Rule(
                "a node is larger than its cut rule allows",
            ));
        }
        Ok(())
    }

    /// Checks what only the referring node shows: first key, last key, number of entries, and that
    /// a node short of children stands at the end of its level.
    pub(super) fn check_link(&self, link: &Link) -> Result<(), DecodeError> {
        let Some(first) = &link.first else {
            return match (self.level, self.len()) {
                (0, _) | (_, 2..) => Ok(()),
                _ => Err(DecodeError::Rule("the root has fewer than two children")),
            };
        };
        if self.is_empty() || self.key(0) != first {
            return Err(DecodeError::Rule(
                "a node does not begin with the key its parent says",
            ));
        }
        if link.entries.is_some_and(|entries| entries != self.entries) {
            return Err(DecodeError::Rule(
                "a node does not have the entries its parent counts",
            ));
        }
        let Some(upper) = &link.upper else {
            return Ok(());
        };
        if self.key(self.len() - 1) >= upper {
            return Err(DecodeError::Rule("a node overlaps the next one"));
        }
        if self.len() < Rules::min_items(self.level) {
            return Err(DecodeError::Rule(
                "a node inside a level has a single child",
            ));
        }
        Ok(())
    }

    pub(super) fn len(&self) -> usize {
        self.spans.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.spans.is_empty()
    }

    /// Entries below this node.
    pub(super) fn entries(&self) -> u64 {
        self.entries
    }

    /// Bytes of its items, without the head of the node.
    fn body_len(&self) -> usize {
        let first = self.spans.first().map_or(0, |span| span.start);
        self.spans
            .last()
            .map_or(0, |span| (span.end - first) as usize)
    }

    fn bytes_at(&self, range: &Range<u32>) -> &[u8] {
        &self.bytes[range.start as usize..range.end as usize]
    }

    fn slice(&self, range: &Range<u32>) -> Bytes {
        self.bytes.slice(range.start as usize..range.end as usize)
    }

    pub(super) fn key(&self, i: usize) -> &[u8] {
        self.bytes_at(&self.spans[i].key)
    }

    pub(super) fn key_bytes(&self, i: usize) -> Bytes {
        self.slice(&self.spans[i].key)
    }

    /// Value of entry `i` of a leaf.
    pub(super) fn value(&self, i: usize) -> Bytes {
        self.slice(&self.spans[i].value)
    }

    pub(super) fn item(&self, i: usize) -> Item {
        let span = &self.spans[i];
        Item {
            key: self.slice(&span.key),
            encoded: self.slice(&(span.start..span.end)),
            entries: span.entries,
        }
    }

    /// Id of child `i` of an inner node.
    pub(super) fn child_id(&self, i: usize) -> NodeId {
        let mut id = [0; HASH_LEN];
        id.copy_from_slice(self.bytes_at(&self.spans[i].value));
        NodeId::from_bytes(id)
    }

    /// Reference to child `i` of an inner node; `upper` is what follows this node.
    pub(super) fn link(&self, i: usize, upper: Option<&Bytes>) -> Link {
        let next = i + 1;
        let sibling = (next < self.len()).then(|| self.key_bytes(next));
        Link {
            level: self.level - 1,
            id: self.child_id(i),
            first: Some(self.key_bytes(i)),
            upper: sibling.or_else(|| upper.cloned()),
            entries: Some(self.spans[i].entries),
        }
    }

    /// Index of the first item whose key is not below `key`.
    pub(super) fn lower_bound(&self, key: &[u8]) -> usize {
        self.spans
            .partition_point(|span| self.bytes_at(&span.key) < key)
    }

    /// The child under which `key` belongs: the last that begins at or below it, else the first.
    pub(super) fn child_for(&self, key: &[u8]) -> usize {
        let after = self
            .spans
            .partition_point(|span| self.bytes_at(&span.key) <= key);
        after.saturating_sub(1)
    }

    /// Whether the node ends because of its last key, whatever follows.
    pub(super) fn ends_by_key(&self, rules: &Rules) -> bool {
        self.len() >= Rules::min_items(self.level)
            && rules.cuts(self.level, self.key(self.len() - 1))
    }
}

impl Span {
    fn read(level: u8, reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let start = reader.position();
        let key_len = reader.varint_in("key length", MIN_KEY_LEN as u64, MAX_KEY_LEN as u64)?;
        let key = read_range(reader, key_len as usize)?;
        let (value, entries) = if level == 0 {
            let len = reader.varint_in("entry length", 0, MAX_VALUE_LEN as u64)?;
            (read_range(reader, len as usize)?, 1)
        } else {
            let id = read_range(reader, HASH_LEN)?;
            (id, reader.varint_in("entries below a child", 1, u64::MAX)?)
        };
        Ok(Self {
            start: start as u32,
            key,
            value,
            end: reader.position() as u32,
            entries,
        })
    }
}

fn read_range(reader: &mut Reader<'_>, len: usize) -> Result<Range<u32>, DecodeError> {
    let start = reader.position() as u32;
    reader.take(len)?;
    Ok(start..reader.position() as u32)
}

/// A node as its parent sees it.
#[derive(Clone, Debug)]
pub(super) struct Child {
    pub(super) id: NodeId,
    /// The item that stands for it one level up. That of an empty leaf has an empty key.
    pub(super) item: Item,
}

/// A node that was just ended.
#[derive(Debug)]
pub(super) struct Finished {
    pub(super) child: Child,
    pub(super) bytes: Bytes,
}

/// Puts items of one level into nodes.
#[derive(Debug)]
pub(super) struct Chunker {
    rules: Rules,
    level: u8,
    first: Bytes,
    body: Vec<u8>,
    count: usize,
    entries: u64,
    /// The last item ended the node; it is closed when the next one comes or at the end.
    ended: bool,
}

impl Chunker {
    pub(super) fn new(level: u8, rules: Rules) -> Self {
        let first = Bytes::new();
        Self {
            rules,
            level,
            first,
            body: Vec::new(),
            count: 0,
            entries: 0,
            ended: false,
        }
    }

    /// Appends the next item of the level. Returns the node before it, if that has ended.
    pub(super) fn push(&mut self, item: &Item) -> Option<Finished> {
        let before = if self.ends_before(item) {
            self.finish()
        } else {
            None
        };
        if self.count == 0 {
            self.first = item.key.clone();
        }
        self.body.extend_from_slice(&item.encoded);
        self.count += 1;
        self.entries = self.entries.saturating_add(item.entries);
        self.ended =
            self.count >= Rules::min_items(self.level) && self.rules.cuts(self.level, &item.key);
        before
    }

    /// Whether a node ends between what was pushed and `next`.
    pub(super) fn ends_before(&self, next: &Item) -> bool {
        let full = self.body.len() + next.encoded.len() > self.rules.max_body_len;
        self.ended || (full && self.count >= Rules::min_items(self.level))
    }

    /// Whether the node ends here whatever follows, or nothing is pending.
    pub(super) fn at_boundary(&self) -> bool {
        self.ended || self.count == 0
    }

    /// Ends the node that is being filled, if any item is in it.
    pub(super) fn finish(&mut self) -> Option<Finished> {
        if self.count == 0 {
            return None;
        }
        let (body, count) = (
            std::mem::take(&mut self.body),
            std::mem::take(&mut self.count),
        );
        let entries = std::mem::take(&mut self.entries);
        self.ended = false;
        Some(seal(
            self.level,
            std::mem::take(&mut self.first),
            count,
            entries,
            &body,
        ))
    }
}

/// The leaf of the empty map.
pub(super) fn empty_leaf() -> Finished {
    seal(0, Bytes::new(), 0, 0, &[])
}

fn seal(level: u8, first: Bytes, count: usize, entries: u64, body: &[u8]) -> Finished {
    let mut bytes = Vec::with_capacity(1 + varint_len(count as u64) + body.len());
    if level > 0 {
        bytes.push(level);
    }
    put_varint(&mut bytes, count as u64);
    bytes.extend_from_slice(body);
    let id = node_id(kind_of(level).code(), &bytes);
    let item = Item::child(first, &id, entries);
    Finished {
        child: Child { id, item },
        bytes: bytes.into(),
    }
}
