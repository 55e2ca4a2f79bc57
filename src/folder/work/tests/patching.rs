//! Edits in place: the list of chunks is what chunking the result from scratch gives, and only the part around an edit
//! is looked at.

use std::collections::HashSet;

use ccbt_xet::chunk::chunks;
use ccbt_xet::hash::chunk_hash;
use proptest::prelude::*;

use super::rig::{Rig, noise};
use crate::folder::content::{ChunkRef, ContentReader, ContentWriter};
use crate::folder::state::{Body, Content, Fid, FileKind, NewFile, Node, Time};
use crate::folder::tree::{MemoryNodes, Nodes, NodesError};
use crate::folder::work::StoreNodes;

fn content_of(rig: &Rig, name: &str) -> (Content, u64) {
    match rig.folder.lookup_path(&[name.as_bytes()]).unwrap().node {
        Node::File(file) => (file.version.content, file.version.size),
        Node::Dir(_) => panic!("{name} is a directory"),
    }
}

fn from_scratch(bytes: &[u8]) -> (Content, u64) {
    let nodes = MemoryNodes::default();
    let mut writer = ContentWriter::new(&nodes);
    for chunk in chunks(bytes) {
        let (hash, len) = (chunk_hash(chunk), chunk.len() as u32);
        writer.push(ChunkRef { hash, len }).unwrap();
    }
    let (content, size) = writer.finish().unwrap();
    (Content::from(&content[..]), size)
}

/// What is done to a file between two commits.
#[derive(Debug, Clone)]
enum Edit {
    Write(u64, usize),
    Cut(u64),
    Grow(u64),
}

fn edits() -> impl Strategy<Value = Vec<Vec<Edit>>> {
    let size = 6_000_000_u64;
    let one = prop_oneof![
        6 => (0..size, 1..20_000_usize).prop_map(|(at, len)| Edit::Write(at, len)),
        1 => (0..size).prop_map(Edit::Cut),
        1 => (0..300_000_u64).prop_map(Edit::Grow),
    ];
    prop::collection::vec(prop::collection::vec(one, 1..5), 1..5)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    /// Zeros have no boundary by content, so what follows a change in them is all cut anew.
    #[test]
    fn the_list_is_what_chunking_from_scratch_gives(
        seed in 1..u64::MAX,
        zeros in prop_oneof![Just(0..0), Just(1_000_000..4_000_000_usize)],
        rounds in edits(),
    ) {
        let rig = Rig::new(1);
        let mut bytes = noise(seed, 5_000_000);
        bytes[zeros].fill(0);
        rig.put("f", &bytes).unwrap();
        rig.publish().unwrap();
        for (n, round) in rounds.into_iter().enumerate() {
            for edit in round {
                apply(&rig, &mut bytes, edit, seed ^ n as u64);
            }
            rig.publish();
            prop_assert_eq!(content_of(&rig, "f"), from_scratch(&bytes));
            prop_assert!(rig.read("f").unwrap() == bytes);
        }
    }
}

fn apply(rig: &Rig, bytes: &mut Vec<u8>, edit: Edit, seed: u64) {
    match edit {
        Edit::Write(at, len) => {
            let patch = noise(seed ^ at, len);
            rig.patch("f", at, &patch).unwrap();
            let (at, end) = (at as usize, at as usize + len);
            bytes.resize(bytes.len().max(end), 0);
            bytes[at..end].copy_from_slice(&patch);
        }
        Edit::Cut(size) => {
            let size = size.min(bytes.len() as u64);
            rig.truncate("f", size).unwrap();
            bytes.truncate(size as usize);
        }
        Edit::Grow(by) => {
            let size = bytes.len() as u64 + by;
            rig.truncate("f", size).unwrap();
            bytes.resize(size as usize, 0);
        }
    }
}

/// A list as long as that of a file of `size` bytes or more: the same chunks again and again.
fn long_list(nodes: &impl Nodes, chunks: &[ChunkRef], size: u64) -> (Vec<u8>, u64) {
    let mut writer = ContentWriter::new(nodes);
    let mut at = 0;
    for chunk in chunks.iter().cycle() {
        if at >= size {
            break;
        }
        writer
            .push(*chunk)
            .map_err(|_| "the list is too long")
            .unwrap();
        at += u64::from(chunk.len);
    }
    writer.finish().map_err(|_| "the list is too long").unwrap()
}

#[test]
fn an_edit_looks_only_at_the_list_around_it() {
    let rig = Rig::new(1);
    let bytes = noise(5, 48 << 20);
    let mut chunks = Vec::new();
    for chunk in ccbt_xet::chunk::chunks(&bytes) {
        let (hash, len) = (chunk_hash(chunk), chunk.len() as u32);
        rig.store.put_chunk(&hash, chunk).unwrap();
        chunks.push(ChunkRef { hash, len });
    }
    chunks.pop();
    let all = MemoryNodes::new();
    let (content, size) = long_list(&all, &chunks, 100 << 30);
    let file = NewFile {
        kind: FileKind::File,
        mode: 0o644,
        body: Body {
            content: Content::from(&content[..]),
            size,
            mtime: Time::default(),
        },
    };
    let made = rig.folder.update(|txn| {
        txn.apply(|state, by| Ok(((), state.create(Fid::ROOT, b"f", file.clone(), by)?)))
    });
    made.unwrap().unwrap();

    let at = (60 << 30) + 12_345;
    let lent = lend(&rig, &all, &content, size, at);
    assert!(lent < 12, "{lent} nodes of {}", all.refs().len());
    rig.patch("f", at, &noise(6, 4096)).unwrap();
    let before = rig.store.stats();
    rig.publish().unwrap();
    let after = rig.store.stats();
    assert_eq!(rig.folder.stats(&|_| true).dirty, 0, "not committed");
    assert_eq!(content_of(&rig, "f").1, size);
    assert_ne!(&content_of(&rig, "f").0.0[..], &content[..]);
    assert!(after.chunks - before.chunks <= 4, "{after:?}");
    assert!(after.nodes - before.nodes <= 10, "{after:?}");
    assert!(after.bytes - before.bytes < 600_000, "{after:?}");
}

/// Copies the nodes on the way to the bytes around `at` into the rig's store; returns how many.
fn lend(rig: &Rig, all: &MemoryNodes, content: &[u8], size: u64, at: u64) -> usize {
    let store = StoreNodes(&rig.store);
    let mut lent = HashSet::new();
    loop {
        let reader = ContentReader::new(&store, content, size).unwrap();
        let Err(NodesError::Missing(missing)) = reader.locate(at - (1 << 20)..at + (2 << 20))
        else {
            return lent.len();
        };
        for node in missing {
            let bytes = all.get(node.kind, &node.id).unwrap().unwrap();
            store.put(node.kind, &node.id, bytes).unwrap();
            lent.insert(node.id);
        }
    }
}

#[test]
fn a_file_cut_to_nothing_and_filled_again_is_empty_in_between() {
    let rig = Rig::new(1);
    rig.put("f", &noise(1, 3_000_000)).unwrap();
    rig.publish().unwrap();
    rig.truncate("f", 0).unwrap();
    rig.publish().unwrap();
    assert_eq!(content_of(&rig, "f"), (Content::from(&[][..]), 0));
    rig.patch("f", 100, b"x").unwrap();
    rig.publish().unwrap();
    assert_eq!(rig.read("f").unwrap()[..], [&[0; 100][..], b"x"].concat());
}
