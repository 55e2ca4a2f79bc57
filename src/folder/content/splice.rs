//! Replacing a range of a file's chunks.
//!
//! As in the tree, the work goes level by level: from the node in which the range begins, items are
//! put into new nodes until a new boundary falls on an old one; the range of replaced nodes is what
//! changes one level up. The result is what writing the file from scratch would give.

use std::ops::Range;

use super::node::{Chunker, Item, Link, links};
use super::{
    ChunkRef, ContentReader, ContentWriter, DecodeError, FORM_CHUNKS, FORM_SEGMENTS, Form,
    MAX_FILE_LEN, MAX_INLINE_CHUNKS, MAX_INLINE_SEGMENTS, Nodes, NodesError, build_index, in_range,
    inline, put,
};

/// Replaces the bytes `range` of a file, which begins and ends where chunks do, by `chunks`.
/// Returns the new content and size. The nodes of the old content stay.
pub fn splice<N: Nodes + ?Sized>(
    nodes: &N,
    content: &[u8],
    size: u64,
    range: Range<u64>,
    chunks: &[ChunkRef],
) -> Result<(Vec<u8>, u64), NodesError<N::Error>> {
    let old = ContentReader::new(nodes, content, size).map_err(NodesError::Input)?;
    if range.start > range.end || range.end > size {
        return Err(NodesError::Input(DecodeError::Rule(
            "a range is not within the file",
        )));
    }
    let new: Result<Vec<_>, _> = chunks.iter().copied().map(Item::chunk).collect();
    let new = new.map_err(NodesError::Input)?;
    if let Form::Chunks(items) = &old.form {
        return splice_inline(nodes, items, &range, &new);
    }
    let top = old.top()?;
    let height = top.first().map_or(0, |link| link.level);
    let mut part = Part {
        range,
        items: new,
        fewer: true,
    };
    // A list too long to be named by the entry stays so if there are no fewer segments.
    let mut is_long = matches!(old.form, Form::Index(_));
    for level in 0..=height {
        part = rewrite_level(&old, &top, level, part)?;
        is_long &= level > 0 || !part.fewer;
    }
    let before = top.iter().filter(|link| link.end() <= part.range.start);
    let after = top.iter().filter(|link| link.offset >= part.range.end);
    let mut items: Vec<Item> = before.map(|link| link.item).collect();
    items.extend_from_slice(&part.items);
    items.extend(after.map(|link| link.item));
    finish(&old, height, items, is_long)
}

/// A range of the old file and the items that take its place at one level.
struct Part {
    range: Range<u64>,
    items: Vec<Item>,
    /// There may be fewer of them than there were in the range.
    fewer: bool,
}

fn unaligned<E>() -> NodesError<E> {
    NodesError::Input(DecodeError::Rule(
        "a range does not fall on boundaries of chunks",
    ))
}

/// Splices content that names its chunks itself.
fn splice_inline<N: Nodes + ?Sized>(
    nodes: &N,
    old: &[Item],
    range: &Range<u64>,
    new: &[Item],
) -> Result<(Vec<u8>, u64), NodesError<N::Error>> {
    let (before, _) = split(old, 0, range.start).ok_or_else(unaligned)?;
    let (_, after) = split(old, 0, range.end).ok_or_else(unaligned)?;
    let mut writer = ContentWriter::new(nodes);
    for item in before.iter().chain(new).chain(after) {
        writer.push(item.to_chunk())?;
    }
    writer.finish()
}

/// Splits items, the first of which begins at `offset`, at the byte `at` of the file. None if that
/// is not where an item begins or ends.
fn split(items: &[Item], mut offset: u64, at: u64) -> Option<(&[Item], &[Item])> {
    for (i, item) in items.iter().enumerate() {
        if offset >= at {
            return (offset == at).then(|| items.split_at(i));
        }
        offset += item.bytes;
    }
    (offset == at).then_some((items, &[]))
}

/// Rewrites the nodes of `level` around a changed part of their items. Returns which nodes were
/// replaced, as a range of the old file, and by what.
fn rewrite_level<N: Nodes + ?Sized>(
    old: &ContentReader<'_, N>,
    top: &[Link],
    level: u8,
    part: Part,
) -> Result<Part, NodesError<N::Error>> {
    let mut output = Output {
        nodes: old.nodes,
        level,
        chunker: Chunker::new(level),
        new: vec![],
    };
    let first = link_at(old, top, level, part.range.start.min(old.size - 1))?;
    let (mut seen, mut seen_end) = (1, first.end());
    if first.offset < part.range.start {
        let node = old.load(&first)?;
        let before = split(&node.items, first.offset, part.range.start);
        output.push_all(before.ok_or_else(unaligned)?.0)?;
    }
    output.push_all(&part.items)?;
    let mut at = part.range.end;
    while at < old.size {
        let link = link_at(old, top, level, at)?;
        if link.offset == at && output.chunker.is_empty() {
            break;
        }
        let node = old.load(&link)?;
        output.push_all(split(&node.items, link.offset, at).ok_or_else(unaligned)?.1)?;
        at = link.end();
        if link.offset == seen_end {
            seen += 1;
            seen_end = at;
        }
    }
    output.end_node()?;
    Ok(Part {
        range: first.offset..at,
        fewer: seen_end < at || output.new.len() < seen,
        items: output.new,
    })
}

/// The node of `level` that holds the byte `at` of the file. Only those above it are loaded.
fn link_at<N: Nodes + ?Sized>(
    old: &ContentReader<'_, N>,
    top: &[Link],
    level: u8,
    at: u64,
) -> Result<Link, NodesError<N::Error>> {
    let outside = || NodesError::Input(DecodeError::Rule("a range is not within the file"));
    let holds = |link: &Link| link.offset <= at && at < link.end();
    let mut link = *top.iter().find(|link| holds(link)).ok_or_else(outside)?;
    while link.level > level {
        let children = old.load(&link)?.links(link.offset, old.size);
        link = children.into_iter().find(holds).ok_or_else(outside)?;
    }
    Ok(link)
}

/// New nodes of one level.
struct Output<'n, N: ?Sized> {
    nodes: &'n N,
    level: u8,
    chunker: Chunker,
    new: Vec<Item>,
}

impl<N: Nodes + ?Sized> Output<'_, N> {
    fn push_all(&mut self, items: &[Item]) -> Result<(), NodesError<N::Error>> {
        for item in items {
            self.chunker.push(*item);
            if self.chunker.at_boundary() {
                self.end_node()?;
            }
        }
        Ok(())
    }

    fn end_node(&mut self) -> Result<(), NodesError<N::Error>> {
        if let Some((item, bytes)) = self.chunker.finish() {
            put(self.nodes, self.level, &item, bytes)?;
            self.new.push(item);
        }
        Ok(())
    }
}

/// Content and size of a file whose nodes of `level` are `items`, in the first form that fits; `is_long`: it is known that
/// only an index does.
fn finish<N: Nodes + ?Sized>(
    old: &ContentReader<'_, N>,
    mut level: u8,
    mut items: Vec<Item>,
    is_long: bool,
) -> Result<(Vec<u8>, u64), NodesError<N::Error>> {
    let size = items.iter().map(|item| item.bytes).sum();
    in_range("file size", size, 0, MAX_FILE_LEN).map_err(NodesError::Input)?;
    if size == 0 {
        return Ok((Vec::new(), 0));
    }
    let reader = ContentReader {
        nodes: old.nodes,
        form: Form::Chunks(Vec::new()),
        size,
    };
    if !is_long && let Some(segments) = expand(&reader, level, &items, 0, MAX_INLINE_SEGMENTS)? {
        let chunks = chunks_if_few(&reader, &segments)?;
        let content = match chunks {
            Some(chunks) => inline(FORM_CHUNKS, &chunks),
            None => inline(FORM_SEGMENTS, &segments),
        };
        return Ok((content, size));
    }
    while let [root] = &items[..] {
        let link = Link {
            level,
            item: *root,
            offset: 0,
            is_last: true,
        };
        let node = reader.load(&link)?;
        if node.items.len() > 1 {
            break;
        }
        items = node.items;
        level -= 1;
    }
    Ok((build_index(old.nodes, level, items)?, size))
}

/// The nodes of level `to` below `items`, unless they are more than `max`.
fn expand<N: Nodes + ?Sized>(
    reader: &ContentReader<'_, N>,
    level: u8,
    items: &[Item],
    to: u8,
    max: usize,
) -> Result<Option<Vec<Item>>, NodesError<N::Error>> {
    let mut items = items.to_vec();
    for level in (to + 1..=level).rev() {
        let mut below = Vec::new();
        let nodes = links(&items, level, 0, reader.size);
        for (i, link) in nodes.iter().enumerate() {
            if below.len() + (nodes.len() - i) > max {
                return Ok(None);
            }
            below.extend(reader.load(link)?.items);
        }
        items = below;
    }
    Ok((items.len() <= max).then_some(items))
}

/// The chunks of `segments`, if the entry itself can name them.
fn chunks_if_few<N: Nodes + ?Sized>(
    reader: &ContentReader<'_, N>,
    segments: &[Item],
) -> Result<Option<Vec<Item>>, NodesError<N::Error>> {
    if segments.len() > MAX_INLINE_CHUNKS {
        return Ok(None);
    }
    let mut chunks = Vec::new();
    for link in links(segments, 0, 0, reader.size) {
        chunks.extend(reader.load(&link)?.items);
    }
    Ok((chunks.len() <= MAX_INLINE_CHUNKS).then_some(chunks))
}
