//! Targets of the shared state: what a member's nodes, snapshots and change lists say, and what merging them does.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use ccbt::folder::changes::{Change, PackedChanges, pack, unpack};
use ccbt::folder::codec::{decode_entry, decode_key, encode_entry, encode_key};
use ccbt::folder::content::{ContentReader, check_content};
use ccbt::folder::snapshot::Snapshot;
use ccbt::folder::state::{Dot, Entry, Inc, Key, State, Tag, VersionVector};
use ccbt::folder::tree::{MemoryNodes, NodeKind, Nodes, Tree, Trees};
use ccbt_xet::hash::NodeId;

use super::{parts, take};

/// The nodes of an input: the first that is asked for is its first part, and so on. Their names are not checked, as if
/// somebody had found bytes for every hash; asked again, a name has the same node.
pub(crate) struct Answers<'a> {
    parts: Vec<&'a [u8]>,
    given: RefCell<BTreeMap<(u8, [u8; 32]), usize>>,
}

impl<'a> Answers<'a> {
    fn new(input: &'a [u8]) -> Self {
        Self {
            parts: parts(input),
            given: RefCell::default(),
        }
    }
}

impl Nodes for Answers<'_> {
    type Error = std::convert::Infallible;

    fn get(&self, kind: NodeKind, id: &NodeId) -> Result<Option<Bytes>, Self::Error> {
        let mut given = self.given.borrow_mut();
        let next = given.len();
        let number = *given.entry((kind.code(), *id.as_bytes())).or_insert(next);
        Ok(self
            .parts
            .get(number)
            .map(|part| Bytes::copy_from_slice(part)))
    }

    fn put(&self, _: NodeKind, _: &NodeId, _: Bytes) -> Result<(), Self::Error> {
        Ok(())
    }
}

/// A tree: `height u8 | nodes`. Its entries ascend and are as many as it says; a leaf is the one that its entries make.
pub(crate) fn tree(mut data: &[u8]) -> bool {
    let [height] = take(&mut data);
    let nodes = Answers::new(data);
    let trees = Trees::new(&nodes);
    let tree = Tree {
        root: NodeId::from_bytes([0; 32]),
        height: height % 18,
    };
    let entries: Result<Vec<_>, _> = trees.range(&tree, &[]).collect();
    let missing = trees.missing(&tree, None, 16);
    assert!(missing.is_err() || missing.is_ok_and(|missing| missing.len() <= 16));
    let _found = trees.get(&tree, b"\x80 a key of a file in a directory");
    let Ok(entries) = entries else {
        return false;
    };
    assert!(entries.is_sorted_by(|(a, _), (b, _)| a < b));
    assert_eq!(
        trees.len(&tree).expect("all of it was read"),
        entries.len() as u64
    );
    if let Some((key, value)) = entries.last() {
        assert_eq!(
            trees.get(&tree, key).expect("all of it was read").as_ref(),
            Some(value)
        );
    }
    let own = MemoryNodes::new();
    let rebuilt = Trees::new(&own)
        .build(entries)
        .expect("entries of a tree make a tree");
    if tree.height == 0 && rebuilt.height == 0 {
        let leaf = own
            .get(NodeKind::TreeLeaf, &rebuilt.root)
            .expect("it was just put");
        assert_eq!(leaf.as_deref(), nodes.parts.first().copied());
    }
    true
}

/// The content of a file: `size u64 | content | nodes`, the content being the first part.
pub(crate) fn content(mut data: &[u8]) -> bool {
    const NEAR: u64 = 1 << 20;
    let size = u64::from_le_bytes(take(&mut data));
    let len = usize::from(u16::from_le_bytes(take(&mut data))).min(data.len());
    let (content, data) = data.split_at(len);
    let nodes = Answers::new(data);
    let checked = check_content(content, size);
    let reader = ContentReader::new(&nodes, content, size);
    assert_eq!(checked.is_ok(), reader.is_ok());
    let Ok(reader) = reader else {
        return false;
    };
    let _missing = reader
        .missing(16)
        .map(|missing| assert!(missing.len() <= 16));
    let mut all = true;
    for start in [0, size / 2, size.saturating_sub(NEAR)] {
        let range = start..start.saturating_add(NEAR).min(size);
        let Ok(found) = reader.locate(range.clone()) else {
            all = false;
            continue;
        };
        let mut end = range.start;
        for located in &found {
            assert!(located.offset <= end && end < located.offset + u64::from(located.chunk.len));
            end = located.offset + u64::from(located.chunk.len);
        }
        assert!(end >= range.end, "the chunks cover the range");
        if let Ok(segments) = reader.segments(range.clone()) {
            assert!(segments.iter().all(|segment| segment.bytes.end <= size));
        }
    }
    all
}

/// An entry and its key: `length of the key u8 | key | entry`. Both are written as they were read.
pub(crate) fn entry(mut data: &[u8]) -> bool {
    let [len] = take(&mut data);
    let (key, data) = data.split_at(usize::from(len).min(data.len()));
    let Ok(decoded) = decode_key(key) else {
        return false;
    };
    assert_eq!(encode_key(&decoded), key);
    let Ok(entry) = decode_entry(&decoded, data) else {
        return false;
    };
    let encoded = encode_entry(&decoded, entry.as_ref()).expect("what was read can be written");
    assert_eq!(encoded, data);
    true
}

/// A change list: behind a zero byte uncompressed, else `length u32 | zstd`.
pub(crate) fn changes(data: &[u8]) -> bool {
    read_changes(data).is_some()
}

fn read_changes(mut data: &[u8]) -> Option<Vec<Change>> {
    let [is_zstd] = take(&mut data);
    let packed = if is_zstd == 0 {
        PackedChanges {
            raw_len: data.len() as u32,
            zstd: zstd::bulk::compress(data, 1)
                .expect("the input is short")
                .into(),
        }
    } else {
        PackedChanges {
            raw_len: u32::from_le_bytes(take(&mut data)),
            zstd: Bytes::copy_from_slice(data),
        }
    };
    let changes = unpack(&packed).ok()?;
    let again = pack(&changes).expect("what was read can be written");
    assert_eq!(again.raw_len, packed.raw_len);
    assert_eq!(unpack(&again).expect("our own list"), changes);
    Some(changes)
}

pub(crate) fn snapshot(data: &[u8]) -> bool {
    let Ok(snapshot) = Snapshot::decode(data) else {
        return false;
    };
    assert_eq!(
        snapshot.encode().expect("what was read can be written"),
        data
    );
    true
}

/// What a member says that the folder is: `counter u8 | change list`. A state takes it or refuses it unchanged, and a
/// second time there is nothing new in it.
pub(crate) fn merge(mut data: &[u8]) -> bool {
    let [ctr] = take(&mut data);
    let Some(changes) = read_changes(data) else {
        return false;
    };
    let mut entries: Vec<(Key, Option<Entry>)> = Vec::new();
    for (key, value) in changes {
        let Ok(key) = decode_key(&key) else {
            return false;
        };
        match value.map(|value| decode_entry(&key, &value)) {
            None => entries.push((key, None)),
            Some(Ok(entry)) => entries.push((key, Some(entry))),
            Some(Err(_)) => return false,
        }
    }
    let tag: Tag = Arc::new(|inc, hlc| format!("{:02x} {}", inc.0[0], hlc.0));
    let mut vv = VersionVector::default();
    for inc in 0..4 {
        vv.see(Dot {
            inc: Inc([inc; 8]),
            ctr: u64::from(ctr),
        });
    }
    let mut state = State::new(Arc::clone(&tag));
    let before = state.clone();
    if state.merge_entries(entries.clone(), &vv).is_err() {
        assert!(state == before);
        return false;
    }
    let once = state.clone();
    state
        .merge_entries(entries, &vv)
        .expect("it was taken before");
    assert!(state == once, "{once:?} becomes {state:?}");
    let stored = once.entries().map(|(key, entry)| (key, entry.to_entry()));
    let loaded = State::from_entries(stored, once.vv().clone(), tag).expect("a state of ours");
    assert!(loaded == once, "{once:?} is loaded as {loaded:?}");
    true
}
