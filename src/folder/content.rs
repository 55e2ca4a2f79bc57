//! The content of a file version: which chunks it is made of, in a form that grows with the file
//! (docs/formats/tree.md, "Content of a file version").
//!
//! Up to four chunks are named in the entry itself, up to 64 segments of chunks likewise; larger
//! files are a tree of nodes over their segments. The first form that fits is the only legal one,
//! so equal content gives equal bytes. [`ContentWriter`] makes content, [`ContentReader`] finds the
//! chunks of a byte range and loads only the nodes on the way there, [`splice`] replaces a range of
//! chunks and rewrites only the nodes around it.

mod node;
mod splice;

#[cfg(test)]
mod tests;

use std::collections::HashSet;
use std::ops::Range;

use ccbt_xet::hash::{ChunkHash, NodeId};

pub use self::splice::splice;

use self::node::{Chunker, Item, Link, Node, kind_of};
use super::encoding::{DecodeError, Reader, in_range, put_varint};
use super::tree::{NodeRef, Nodes, NodesError};

/// Largest chunk in bytes.
pub const MAX_CHUNK_LEN: u32 = 128 << 10;
/// Largest file in bytes: what the kernel can address.
pub const MAX_FILE_LEN: u64 = i64::MAX as u64;
/// Most chunks that the entry itself names.
const MAX_INLINE_CHUNKS: usize = 4;
/// Most segments that the entry itself names.
const MAX_INLINE_SEGMENTS: usize = 64;

/// First byte of content that names chunks.
const FORM_CHUNKS: u8 = 1;
/// First byte of content that names segments.
const FORM_SEGMENTS: u8 = 2;
/// First byte of content that names a segment index.
const FORM_INDEX: u8 = 3;

/// One chunk of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChunkRef {
    /// Its name.
    pub hash: ChunkHash,
    /// Its length in bytes, 1 to [`MAX_CHUNK_LEN`].
    pub len: u32,
}

/// A chunk with its place in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Located {
    /// The chunk.
    pub chunk: ChunkRef,
    /// Where it begins in the file, in bytes.
    pub offset: u64,
    /// The segment that lists it and its index there, unless the entry itself does.
    pub segment: Option<(NodeId, u16)>,
}

impl Located {
    /// Where it ends in the file, in bytes.
    pub fn end(&self) -> u64 {
        self.offset + u64::from(self.chunk.len)
    }
}

/// A segment with its place in the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SegmentAt {
    /// Its name.
    pub id: NodeId,
    /// The bytes of the file that it lists the chunks of.
    pub bytes: Range<u64>,
}

/// What stands for content where only its identity matters: the first 8 bytes of its BLAKE3.
pub fn content_digest(content: &[u8]) -> [u8; 8] {
    let mut digest = [0; 8];
    digest.copy_from_slice(&blake3::hash(content).as_bytes()[..8]);
    digest
}

/// Checks the content of a file version as far as its own bytes show.
pub fn check_content(content: &[u8], size: u64) -> Result<(), DecodeError> {
    Form::parse(content, size).map(drop)
}

/// Content, parsed.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Form {
    Chunks(Vec<Item>),
    Segments(Vec<Item>),
    Index(NodeId),
}

impl Form {
    fn parse(content: &[u8], size: u64) -> Result<Self, DecodeError> {
        in_range("file size", size, 0, MAX_FILE_LEN)?;
        if size == 0 {
            let empty = content.is_empty();
            return if empty {
                Ok(Self::Chunks(Vec::new()))
            } else {
                Err(DecodeError::Rule("an empty file has content"))
            };
        }
        let mut reader = Reader::new(content);
        let form = match reader.u8()? {
            FORM_CHUNKS => Self::Chunks(read_items(0, MAX_INLINE_CHUNKS, size, &mut reader)?),
            FORM_SEGMENTS => Self::Segments(read_items(1, MAX_INLINE_SEGMENTS, size, &mut reader)?),
            FORM_INDEX => Self::Index(NodeId::from_bytes(reader.array()?)),
            _ => return Err(DecodeError::Rule("unknown form of content")),
        };
        reader.finish()?;
        Ok(form)
    }

    /// The nodes that the content names, all of one level; chunks are not nodes.
    fn top(&self, size: u64) -> Vec<Item> {
        match self {
            Self::Chunks(_) => Vec::new(),
            Self::Segments(segments) => segments.clone(),
            Self::Index(root) => vec![Item {
                name: *root.as_bytes(),
                bytes: size,
            }],
        }
    }
}

fn read_items(
    level: u8,
    max: usize,
    size: u64,
    reader: &mut Reader<'_>,
) -> Result<Vec<Item>, DecodeError> {
    let count = in_range("count", u64::from(reader.u8()?), 1, max as u64)?;
    let items: Result<Vec<_>, _> = (0..count).map(|_| Item::read(level, reader)).collect();
    let items = items?;
    node::check_sum(&items, size)?;
    Ok(items)
}

/// Bytes of content that names `items`: chunks, or segments.
fn inline(form: u8, items: &[Item]) -> Vec<u8> {
    let mut out = vec![form, items.len() as u8];
    let level = u8::from(form == FORM_SEGMENTS);
    items.iter().for_each(|item| item.write(level, &mut out));
    out
}

/// Makes content from chunks in file order.
#[derive(Debug)]
pub struct ContentWriter<'n, N: ?Sized> {
    nodes: &'n N,
    /// The chunks, as long as the entry can name them.
    head: Vec<Item>,
    chunker: Chunker,
    segments: Vec<Item>,
    size: u64,
}

impl<'n, N: Nodes + ?Sized> ContentWriter<'n, N> {
    /// Begins an empty file, whose nodes go to `nodes`.
    pub fn new(nodes: &'n N) -> Self {
        let chunker = Chunker::new(0);
        Self {
            nodes,
            head: Vec::new(),
            chunker,
            segments: Vec::new(),
            size: 0,
        }
    }

    /// Appends a chunk.
    pub fn push(&mut self, chunk: ChunkRef) -> Result<(), NodesError<N::Error>> {
        let item = Item::chunk(chunk).map_err(NodesError::Input)?;
        self.size += item.bytes;
        if self.segments.is_empty() && self.chunker.is_empty() {
            self.head.push(item);
            if self.head.len() <= MAX_INLINE_CHUNKS {
                return Ok(());
            }
            let head = std::mem::take(&mut self.head);
            return head.into_iter().try_for_each(|item| self.list(item));
        }
        self.list(item)
    }

    fn list(&mut self, item: Item) -> Result<(), NodesError<N::Error>> {
        self.chunker.push(item);
        if self.chunker.at_boundary() {
            self.end_segment()
        } else {
            Ok(())
        }
    }

    fn end_segment(&mut self) -> Result<(), NodesError<N::Error>> {
        if let Some((item, bytes)) = self.chunker.finish() {
            put(self.nodes, 0, &item, bytes)?;
            self.segments.push(item);
        }
        Ok(())
    }

    /// Ends the file. Returns its content and its size in bytes.
    pub fn finish(mut self) -> Result<(Vec<u8>, u64), NodesError<N::Error>> {
        self.end_segment()?;
        let content = if self.size == 0 {
            Vec::new()
        } else if !self.head.is_empty() {
            inline(FORM_CHUNKS, &self.head)
        } else if self.segments.len() <= MAX_INLINE_SEGMENTS {
            inline(FORM_SEGMENTS, &self.segments)
        } else {
            build_index(self.nodes, 0, self.segments)?
        };
        Ok((content, self.size))
    }
}

fn put<N: Nodes + ?Sized>(
    nodes: &N,
    level: u8,
    item: &Item,
    bytes: Vec<u8>,
) -> Result<(), NodesError<N::Error>> {
    nodes
        .put(kind_of(level), &item.id(), bytes.into())
        .map_err(NodesError::Store)
}

/// Puts the levels above `children`, nodes of `level`, until one has a single node.
fn build_index<N: Nodes + ?Sized>(
    nodes: &N,
    mut level: u8,
    mut children: Vec<Item>,
) -> Result<Vec<u8>, NodesError<N::Error>> {
    while children.len() > 1 {
        if level == node::MAX_LEVEL {
            return Err(NodesError::Input(DecodeError::Rule(
                "the file has too many levels",
            )));
        }
        level += 1;
        let mut chunker = Chunker::new(level);
        let mut parents = Vec::new();
        let last = children.len() - 1;
        for (i, child) in children.into_iter().enumerate() {
            chunker.push(child);
            if (chunker.at_boundary() || i == last)
                && let Some((parent, bytes)) = chunker.finish()
            {
                put(nodes, level, &parent, bytes)?;
                parents.push(parent);
            }
        }
        children = parents;
    }
    let mut content = vec![FORM_INDEX];
    content.extend(children.iter().flat_map(|root| root.name));
    Ok(content)
}

/// Finds the chunks of a file.
#[derive(Debug)]
pub struct ContentReader<'n, N: ?Sized> {
    nodes: &'n N,
    form: Form,
    size: u64,
}

impl<'n, N: Nodes + ?Sized> ContentReader<'n, N> {
    /// Reads a file's content; `size` is the file's size in bytes.
    pub fn new(nodes: &'n N, content: &[u8], size: u64) -> Result<Self, DecodeError> {
        Ok(Self {
            nodes,
            form: Form::parse(content, size)?,
            size,
        })
    }

    /// The chunks that hold `range`, in file order; what of the range lies beyond the file is
    /// ignored. If nodes are missing, the error names all of them that can be known now.
    pub fn locate(&self, range: Range<u64>) -> Result<Vec<Located>, NodesError<N::Error>> {
        let mut found = Vec::new();
        if let Form::Chunks(chunks) = &self.form {
            add_overlapping(chunks, 0, None, &range, &mut found);
            return Ok(found);
        }
        let mut missing = Vec::new();
        for link in &self.overlapping(&range, &mut missing)? {
            match self.try_load(link)? {
                Some(segment) => {
                    let id = Some(link.item.id());
                    add_overlapping(&segment.items, link.offset, id, &range, &mut found);
                }
                None => missing.push(link.node_ref()),
            }
        }
        if missing.is_empty() {
            Ok(found)
        } else {
            Err(NodesError::Missing(missing))
        }
    }

    /// The segments that hold `range`, in file order. A file whose entry names its chunks has none.
    pub fn segments(&self, range: Range<u64>) -> Result<Vec<SegmentAt>, NodesError<N::Error>> {
        let mut missing = Vec::new();
        let links = self.overlapping(&range, &mut missing)?;
        if !missing.is_empty() {
            return Err(NodesError::Missing(missing));
        }
        let segment = |link: Link| SegmentAt {
            id: link.item.id(),
            bytes: link.offset..link.end(),
        };
        Ok(links.into_iter().map(segment).collect())
    }

    /// References to the segments that hold `range`, as far as the nodes above them are here.
    fn overlapping(
        &self,
        range: &Range<u64>,
        missing: &mut Vec<NodeRef>,
    ) -> Result<Vec<Link>, NodesError<N::Error>> {
        let mut links = self.top()?;
        loop {
            links.retain(|link| overlaps(link.offset, link.item.bytes, range));
            if links.first().is_none_or(|link| link.level == 0) {
                return Ok(links);
            }
            links = self.descend(&links, missing)?;
        }
    }

    /// At most `limit` nodes of the file that are not here and whose parents are: what to fetch
    /// next. Empty when the list of chunks is whole. A node that occurs many times is looked at
    /// once.
    pub fn missing(&self, limit: usize) -> Result<Vec<NodeRef>, NodesError<N::Error>> {
        let mut links = self.top()?;
        let mut missing = Vec::new();
        let mut seen = HashSet::new();
        while links.first().is_some_and(|link| link.level > 0) && missing.len() < limit {
            links = self.descend(&links, &mut missing)?;
            links.retain(|link| seen.insert((link.level, link.item.name)));
        }
        for link in links.iter().filter(|link| link.level == 0) {
            if missing.len() >= limit {
                break;
            }
            let segment = link.node_ref();
            if !self
                .nodes
                .has(segment.kind, &segment.id)
                .map_err(NodesError::Store)?
            {
                missing.push(segment);
            }
        }
        missing.truncate(limit);
        Ok(missing)
    }

    /// Shows `each` the nodes of the list of chunks, as far as they are known: those that are here, and those that
    /// these name. A node that occurs many times is shown once or more.
    pub fn each_node(&self, each: &mut dyn FnMut(&NodeId)) -> Result<(), NodesError<N::Error>> {
        let mut links = match self.top() {
            Err(NodesError::Missing(root)) => {
                root.iter().for_each(|node| each(&node.id));
                return Ok(());
            }
            top => top?,
        };
        let (mut missing, mut seen) = (Vec::new(), HashSet::new());
        loop {
            links.retain(|link| seen.insert((link.level, link.item.name)));
            links.iter().for_each(|link| each(&link.item.id()));
            if links.first().is_none_or(|link| link.level == 0) {
                return Ok(());
            }
            links = self.descend(&links, &mut missing)?;
        }
    }

    /// References to the nodes that the content names.
    fn top(&self) -> Result<Vec<Link>, NodesError<N::Error>> {
        let top = self.form.top(self.size);
        let mut level = 0;
        if let (Form::Index(_), Some(root)) = (&self.form, top.first()) {
            level = match self.root_level(root)? {
                Some(level) => level,
                None => return Err(NodesError::Missing(vec![index_ref(root)])),
            };
        }
        Ok(node::links(&top, level, 0, self.size))
    }

    /// Level of the index node that the content names: it says so itself.
    fn root_level(&self, root: &Item) -> Result<Option<u8>, NodesError<N::Error>> {
        let node = index_ref(root);
        let bytes = self
            .nodes
            .get(node.kind, &node.id)
            .map_err(NodesError::Store)?;
        let Some(bytes) = bytes else { return Ok(None) };
        let checked = node::index_level(&bytes).and_then(|level| {
            let root = Node::parse(level, &bytes)?;
            root.check_root(self.size, MAX_INLINE_SEGMENTS)?;
            Ok(level)
        });
        checked
            .map(Some)
            .map_err(|reason| NodesError::Malformed { node, reason })
    }

    /// The children of nodes of one level. Nodes that are not here go to `missing`.
    fn descend(
        &self,
        links: &[Link],
        missing: &mut Vec<NodeRef>,
    ) -> Result<Vec<Link>, NodesError<N::Error>> {
        let mut children = Vec::new();
        for link in links {
            match self.try_load(link)? {
                Some(node) => children.extend(node.links(link.offset, self.size)),
                None => missing.push(link.node_ref()),
            }
        }
        Ok(children)
    }

    /// Loads a node and checks it, also against the node that refers to it.
    fn try_load(&self, link: &Link) -> Result<Option<Node>, NodesError<N::Error>> {
        let node = link.node_ref();
        let bytes = self
            .nodes
            .get(node.kind, &node.id)
            .map_err(NodesError::Store)?;
        let Some(bytes) = bytes else { return Ok(None) };
        let checked = Node::parse(link.level, &bytes).and_then(|node| {
            node.check_link(link)?;
            Ok(node)
        });
        checked
            .map(Some)
            .map_err(|reason| NodesError::Malformed { node, reason })
    }

    fn load(&self, link: &Link) -> Result<Node, NodesError<N::Error>> {
        self.try_load(link)?
            .ok_or_else(|| NodesError::Missing(vec![link.node_ref()]))
    }
}

fn index_ref(root: &Item) -> NodeRef {
    NodeRef {
        kind: kind_of(1),
        id: root.id(),
    }
}

fn overlaps(offset: u64, bytes: u64, range: &Range<u64>) -> bool {
    offset < range.end && range.start < offset + bytes
}

/// Adds those of a run of chunks that overlap `range`; the run begins at `offset`.
fn add_overlapping(
    chunks: &[Item],
    mut offset: u64,
    segment: Option<NodeId>,
    range: &Range<u64>,
    found: &mut Vec<Located>,
) {
    for (i, item) in chunks.iter().enumerate() {
        if overlaps(offset, item.bytes, range) {
            let segment = segment.map(|id| (id, i as u16));
            found.push(Located {
                chunk: item.to_chunk(),
                offset,
                segment,
            });
        }
        offset += item.bytes;
    }
}
