//! Content against a plain list of chunks, and its decoders against hostile nodes.

use std::convert::Infallible;

use bytes::Bytes;
use proptest::prelude::*;

use super::*;
use crate::folder::tree::{MemoryNodes, NodeKind};

type Error = NodesError<Infallible>;

/// A chunk whose name begins with `first`: 0 ends a segment.
fn chunk(n: u32, first: u8, len: u32) -> ChunkRef {
    let mut name = *blake3::hash(&n.to_le_bytes()).as_bytes();
    name[0] = first;
    ChunkRef {
        hash: ChunkHash::from_bytes(name),
        len,
    }
}

/// Chunks as a chunker makes them, by number: names as they come, 40 KiB on average.
fn natural(n: u32) -> ChunkRef {
    let hash = *blake3::hash(&n.to_le_bytes()).as_bytes();
    let len = 8192 + u32::from_le_bytes([hash[1], hash[2], 0, 0]) % 110_000;
    ChunkRef {
        hash: ChunkHash::from_bytes(hash),
        len,
    }
}

fn write(nodes: &MemoryNodes, chunks: &[ChunkRef]) -> (Vec<u8>, u64) {
    let mut writer = ContentWriter::new(nodes);
    for chunk in chunks {
        writer.push(*chunk).unwrap();
    }
    writer.finish().unwrap()
}

fn read(nodes: &MemoryNodes, content: &[u8], size: u64) -> Result<Vec<ChunkRef>, Error> {
    let reader = ContentReader::new(nodes, content, size).map_err(NodesError::Input)?;
    let found = reader.locate(0..size)?;
    Ok(found.into_iter().map(|located| located.chunk).collect())
}

/// Lists of few chunks and of thousands, in which `1 in ends` names ends a segment.
fn any_chunks(max: usize) -> impl Strategy<Value = Vec<ChunkRef>> {
    let count = prop_oneof![0_usize..8, 0..max / 10, 0..max];
    let ends = prop_oneof![Just(1_u32), Just(2), Just(10), Just(u32::MAX)];
    (count, ends, any::<u32>()).prop_map(|(count, ends, seed)| {
        let one = |i: u32| {
            let n = seed.wrapping_add(i);
            let dice = u32::from_le_bytes(
                *blake3::hash(&n.to_be_bytes())
                    .as_bytes()
                    .first_chunk()
                    .unwrap(),
            );
            chunk(
                n % 500,
                u8::from(dice % ends != 0),
                1 + dice % MAX_CHUNK_LEN,
            )
        };
        (0..count as u32).map(one).collect()
    })
}

fn offset_of(chunks: &[ChunkRef], i: usize) -> u64 {
    chunks[..i].iter().map(|chunk| u64::from(chunk.len)).sum()
}

proptest! {
    #[test]
    fn a_splice_gives_what_writing_gives(
        start in any_chunks(4000),
        edits in prop::collection::vec(
            (any::<prop::sample::Index>(), any::<prop::sample::Index>(), 0_usize..2, any_chunks(400)),
            1..5,
        ),
    ) {
        let nodes = MemoryNodes::new();
        let mut chunks = start;
        let (mut content, mut size) = write(&nodes, &chunks);
        prop_assert_eq!(read(&nodes, &content, size).unwrap(), chunks.clone());
        for (from, to, wide, new) in edits {
            let from = from.index(chunks.len() + 1);
            let room = if wide == 0 { 3.min(chunks.len() - from) } else { chunks.len() - from };
            let to = from + to.index(room + 1);
            let range = offset_of(&chunks, from)..offset_of(&chunks, to);
            chunks.splice(from..to, new.iter().copied());
            (content, size) = splice(&nodes, &content, size, range, &new).unwrap();
            let scratch = write(&MemoryNodes::new(), &chunks);
            prop_assert_eq!((&content, size), (&scratch.0, scratch.1));
            prop_assert_eq!(read(&nodes, &content, size).unwrap(), chunks.clone());
        }
    }

    #[test]
    fn ranges_are_located(chunks in any_chunks(2000), at in 0.0..1.1_f64, len in 0_u64..3_000_000) {
        let nodes = MemoryNodes::new();
        let (content, size) = write(&nodes, &chunks);
        let reader = ContentReader::new(&nodes, &content, size).unwrap();
        let from = (at * size as f64) as u64;
        let range = from..from + len;
        let mut offset = 0;
        let mut wanted = Vec::new();
        for chunk in &chunks {
            let end = offset + u64::from(chunk.len);
            if offset < range.end && end > range.start {
                wanted.push((*chunk, offset));
            }
            offset = end;
        }
        let found = reader.locate(range.clone()).unwrap();
        let plain: Vec<_> = found.iter().map(|found| (found.chunk, found.offset)).collect();
        prop_assert_eq!(plain, wanted);
        let segments = reader.segments(range).unwrap();
        for located in found {
            let Some((id, index)) = located.segment else {
                prop_assert!(chunks.len() <= 4);
                continue;
            };
            let at = segments.iter().find(|at| at.bytes.contains(&located.offset)).unwrap();
            prop_assert_eq!(at.id, id);
            let one = segment_chunks(&nodes, &id);
            prop_assert_eq!(one[usize::from(index)], located.chunk);
        }
    }

    #[test]
    fn a_list_is_fetched_frontier_by_frontier(chunks in any_chunks(3000), limit in 1_usize..50) {
        let (theirs, mine) = (MemoryNodes::new(), MemoryNodes::new());
        let (content, size) = write(&theirs, &chunks);
        let reader = ContentReader::new(&mine, &content, size).unwrap();
        loop {
            let missing = match reader.missing(limit) {
                Ok(missing) => missing,
                Err(NodesError::Missing(missing)) => missing,
                Err(error) => panic!("{error}"),
            };
            prop_assert!(missing.len() <= limit);
            if missing.is_empty() {
                break;
            }
            for node in missing {
                prop_assert!(mine.copy_from(&theirs, &node));
            }
        }
        prop_assert_eq!(read(&mine, &content, size).unwrap(), chunks);
    }

    #[test]
    fn arbitrary_bytes_never_panic(
        level in 0_u8..4,
        bytes in prop::collection::vec(any::<u8>(), 0..200),
        size in prop_oneof![0_u64..100_000, any::<u64>()],
    ) {
        drop(Node::parse(level, &bytes));
        let _ = node::index_level(&bytes);
        if let Ok(reader) = ContentReader::new(&MemoryNodes::new(), &bytes, size) {
            drop(reader.locate(0..u64::MAX));
        }
    }

    #[test]
    fn damaged_nodes_never_panic(
        chunks in any_chunks(2000),
        pick: prop::sample::Index,
        at: prop::sample::Index,
        bit in 0_u8..8,
    ) {
        let nodes = MemoryNodes::new();
        let (content, size) = write(&nodes, &chunks);
        let mut refs = nodes.refs();
        refs.sort_by_key(|node| *node.id.as_bytes());
        prop_assume!(!refs.is_empty());
        let node = *pick.get(&refs);
        let mut bytes = nodes.remove(&node).unwrap().to_vec();
        let at = at.index(bytes.len());
        bytes[at] ^= 1 << bit;
        nodes.put(node.kind, &node.id, bytes.into()).unwrap();
        if let Ok(read) = read(&nodes, &content, size) {
            prop_assert_eq!(offset_of(&read, read.len()), size);
        }
        drop(splice(&nodes, &content, size, 0..0, &[natural(1)]));
        drop(splice(&nodes, &content, size, size..size, &[natural(1)]));
    }
}

fn segment_chunks(nodes: &MemoryNodes, id: &NodeId) -> Vec<ChunkRef> {
    let bytes = nodes.get(NodeKind::Segment, id).unwrap().unwrap();
    Node::parse(0, &bytes)
        .unwrap()
        .items
        .into_iter()
        .map(Item::to_chunk)
        .collect()
}

/// Reads through to one store and writes to another, counting what is read.
struct Watched<'a> {
    below: &'a MemoryNodes,
    above: MemoryNodes,
    loads: std::cell::Cell<usize>,
}

impl Nodes for Watched<'_> {
    type Error = Infallible;

    fn get(&self, kind: NodeKind, id: &NodeId) -> Result<Option<Bytes>, Infallible> {
        self.loads.set(self.loads.get() + 1);
        Ok(self.above.get(kind, id)?.or(self.below.get(kind, id)?))
    }

    fn put(&self, kind: NodeKind, id: &NodeId, bytes: Bytes) -> Result<(), Infallible> {
        self.above.put(kind, id, bytes)
    }
}

#[test]
fn an_edit_of_a_large_file_touches_few_nodes() {
    let nodes = MemoryNodes::new();
    let chunks: Vec<_> = (0..1_500_000).map(natural).collect();
    let (content, size) = write(&nodes, &chunks);
    assert!(size > 50 << 30);
    let mut offset = 0;
    let (mut written, mut edits) = (0, 0);
    for (i, old) in chunks.iter().enumerate() {
        if i % 50_021 == 0 {
            let watched = Watched {
                below: &nodes,
                above: MemoryNodes::new(),
                loads: 0.into(),
            };
            let range = offset..offset + u64::from(old.len);
            splice(
                &watched,
                &content,
                size,
                range,
                &[natural(u32::MAX - i as u32)],
            )
            .unwrap();
            let count = watched.above.refs().len();
            assert!(count <= 6, "{count} nodes written");
            assert!(
                watched.loads.get() <= 40,
                "{} nodes read",
                watched.loads.get()
            );
            written += watched.above.total_len();
            edits += 1;
        }
        offset += u64::from(old.len);
    }
    let mean = written / edits;
    println!(
        "{} nodes, {mean} bytes written per edit",
        nodes.refs().len()
    );
    assert!(mean < 60_000, "{mean} bytes written per edit");
}

#[test]
fn forms_follow_the_number_of_chunks() {
    let nodes = MemoryNodes::new();
    let form = |chunks: &[ChunkRef]| {
        let (content, size) = write(&nodes, chunks);
        check_content(&content, size).unwrap();
        content.first().copied()
    };
    let ending: Vec<_> = (0..65).map(|n| chunk(n, 0, 9000)).collect();
    assert_eq!(form(&[]), None);
    assert_eq!(form(&ending[..4]), Some(FORM_CHUNKS));
    assert!(nodes.refs().is_empty(), "short files need no node");
    assert_eq!(form(&ending[..5]), Some(FORM_SEGMENTS));
    assert_eq!(form(&ending[..64]), Some(FORM_SEGMENTS));
    assert_eq!(form(&ending), Some(FORM_INDEX));
}

/// Content of a fixed file: it must never change, or old folders could not be read.
#[test]
fn content_is_that_of_the_format() {
    let nodes = MemoryNodes::new();
    let content = |count| {
        let chunks: Vec<_> = (0..count).map(natural).collect();
        let (content, size) = write(&nodes, &chunks);
        (
            size,
            data_encoding::HEXLOWER.encode(blake3::hash(&content).as_bytes()),
        )
    };
    assert_eq!(content(3), (200_822, INLINE.to_owned()));
    assert_eq!(content(3000), (123_802_439, SEGMENTS.to_owned()));
    assert_eq!(content(200_000), (8_192_230_472, INDEX.to_owned()));
}

const INLINE: &str = "4f3d767ed97acf2b74b6039d7c56f87e62c6375a5b14f0b56e92a50a1478cc0e";
const SEGMENTS: &str = "1fe71d2c4dedf314412ee49afd6f5e38eea8ab57623fb74c165689460e5dd278";
const INDEX: &str = "f4ab93a0123226a4b6e26ab6f63c163fac0b29efe023d9409942f949a3698c6e";

#[test]
fn illegal_content_is_refused() {
    let nodes = MemoryNodes::new();
    let (one, size) = write(&nodes, &[chunk(1, 1, 9000)]);
    let sum = DecodeError::Rule("the parts of a file do not add up to its size");
    assert_eq!(check_content(&one, size + 1), Err(sum));
    assert_eq!(
        check_content(&one, 0),
        Err(DecodeError::Rule("an empty file has content"))
    );
    assert!(matches!(
        check_content(&[], 1),
        Err(DecodeError::Truncated { .. })
    ));
    assert_eq!(
        check_content(&[9], 1),
        Err(DecodeError::Rule("unknown form of content"))
    );
    assert!(matches!(
        check_content(&[1, 0], 1),
        Err(DecodeError::Range { .. })
    ));
    assert!(matches!(
        check_content(&[1, 5], 1),
        Err(DecodeError::Range { .. })
    ));
    let trailing = [&one[..], &[0]].concat();
    assert_eq!(
        check_content(&trailing, size),
        Err(DecodeError::Trailing(1))
    );
    let mut writer = ContentWriter::new(&nodes);
    for len in [0, MAX_CHUNK_LEN + 1] {
        assert!(matches!(
            writer.push(chunk(1, 1, len)),
            Err(NodesError::Input(_))
        ));
    }
}

#[test]
fn splices_must_fall_on_chunks() {
    let nodes = MemoryNodes::new();
    for count in [2, 20] {
        let chunks: Vec<_> = (0..count).map(|n| chunk(n, 1, 10_000)).collect();
        let (content, size) = write(&nodes, &chunks);
        let error = |range| {
            let result = splice(&nodes, &content, size, range, &[]);
            matches!(result, Err(NodesError::Input(_)))
        };
        assert!(error(1..10_000));
        assert!(error(0..10_001));
        assert!(error(0..size + 1));
        assert!(!error(10_000..size));
    }
}

/// Nodes made by hand, for what no writer of ours makes.
mod hostile {
    use super::*;

    fn put_items(nodes: &MemoryNodes, level: u8, items: &[Item]) -> Item {
        let mut chunker = Chunker::new(level);
        items.iter().for_each(|item| chunker.push(*item));
        let (item, bytes) = chunker.finish().unwrap();
        nodes.put(kind_of(level), &item.id(), bytes.into()).unwrap();
        item
    }

    fn items(count: u32, first: u8) -> Vec<Item> {
        (0..count)
            .map(|n| Item::chunk(chunk(n, first, 10_000)).unwrap())
            .collect()
    }

    fn refused(result: Result<Vec<ChunkRef>, Error>, why: &'static str) {
        match result {
            Err(NodesError::Malformed { reason, .. }) => {
                assert_eq!(reason, DecodeError::Rule(why));
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn segments_that_break_the_cut_rule_are_refused() {
        let nodes = MemoryNodes::new();
        let good = put_items(&nodes, 0, &items(6, 1));
        let size = good.bytes;
        assert_eq!(
            read(&nodes, &inline(FORM_SEGMENTS, &[good]), size)
                .unwrap()
                .len(),
            6
        );
        let early = inline(FORM_SEGMENTS, &[good, good]);
        refused(
            read(&nodes, &early, 2 * size),
            "a node inside a level ends too early",
        );
        let late = put_items(&nodes, 0, &items(6, 0));
        let late = inline(FORM_SEGMENTS, &[late]);
        refused(
            read(&nodes, &late, size),
            "a node goes on after its last item",
        );
        let wrong = Item {
            bytes: size - 1,
            ..good
        };
        let wrong = inline(FORM_SEGMENTS, &[wrong]);
        refused(
            read(&nodes, &wrong, size - 1),
            "the parts of a file do not add up to its size",
        );
        let long = put_items(&nodes, 0, &items(1025, 1));
        let long = inline(FORM_SEGMENTS, &[long]);
        let result = read(&nodes, &long, 10_250_000);
        assert!(
            matches!(result, Err(NodesError::Malformed { .. })),
            "{result:?}"
        );
    }

    #[test]
    fn an_index_where_a_shorter_form_would_do_is_refused() {
        let nodes = MemoryNodes::new();
        let mut segment = put_items(&nodes, 0, &items(1, 0));
        while segment.name[0] == 0 {
            segment = put_items(&nodes, 0, &items(1, 0));
        }
        let index = |level, children: &[Item]| {
            let root = put_items(&nodes, level, children);
            let content = [&[FORM_INDEX][..], &root.name].concat();
            read(&nodes, &content, root.bytes)
        };
        assert_eq!(index(1, &[segment; 65]).unwrap().len(), 65);
        refused(
            index(1, &[segment; 64]),
            "a shorter form of content would do",
        );
        let below = put_items(&nodes, 1, &[segment; 65]);
        refused(index(2, &[below]), "a shorter form of content would do");
    }

    #[test]
    fn a_list_that_repeats_itself_without_end_is_walked_once() {
        let nodes = MemoryNodes::new();
        let mut child = put_items(&nodes, 0, &[items(1, 1)[0]; 1024]);
        for level in 1..=3 {
            child = put_items(&nodes, level, &[child; 1024]);
        }
        let content = [&[FORM_INDEX][..], &child.name].concat();
        let reader = ContentReader::new(&nodes, &content, child.bytes).unwrap();
        assert_eq!(reader.missing(10), Ok(vec![]));
        let middle = child.bytes / 2;
        assert_eq!(reader.locate(middle + 1..middle + 10_001).unwrap().len(), 2);
    }
}
