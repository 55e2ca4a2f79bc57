//! The map against a plain ordered map, and its decoders against hostile nodes.

use std::collections::BTreeMap;
use std::convert::Infallible;

use proptest::prelude::*;

use super::node::MAX_NODE_LEN;
use super::*;
use crate::folder::encoding::put_varint;

type Map = BTreeMap<Bytes, Bytes>;
type Error = NodesError<Infallible>;

impl<'n, N: Nodes + ?Sized> Trees<'n, N> {
    fn with_rules(nodes: &'n N, rules: Rules) -> Self {
        Self { nodes, rules }
    }

    fn build_map(&self, map: &Map) -> Result<Tree, NodesError<N::Error>> {
        self.build(map.iter().map(|(key, value)| (key.clone(), value.clone())))
    }

    fn read_map(&self, tree: &Tree) -> Result<Map, NodesError<N::Error>> {
        self.range(tree, &[]).collect()
    }
}

fn key(n: u16) -> Bytes {
    let mut key = b"director".to_vec();
    key.extend_from_slice(format!("{n:05}").as_bytes());
    key.into()
}

fn value(fill: u8, len: usize) -> Bytes {
    vec![fill; len].into()
}

/// From "only sizes end nodes" to "almost every key does", with room for one item or for many.
fn any_rules() -> impl Strategy<Value = Rules> {
    let cut = prop_oneof![Just(0), Just(2), Just(40), Just(128), Just(250), Just(255)];
    let body = prop_oneof![Just(1_usize), Just(80), Just(300), Just(96 << 10)];
    (cut, body).prop_map(|(cut_below, max_body_len)| Rules {
        cut_below,
        max_body_len,
        max_level: 15,
    })
}

fn any_map(max: usize) -> impl Strategy<Value = Map> {
    let entry = (0_u16..400, any::<u8>(), 0_usize..60);
    prop::collection::vec(entry, 0..max).prop_map(|entries| {
        entries
            .into_iter()
            .map(|(n, fill, len)| (key(n), value(fill, len)))
            .collect()
    })
}

/// Changes around one place, as edits come, or all over.
fn any_changes() -> impl Strategy<Value = BTreeMap<Bytes, Option<Bytes>>> {
    let change = (0_u16..400, prop::option::of((any::<u8>(), 0_usize..60)));
    (0_u16..400, 1_u16..400, prop::collection::vec(change, 0..60)).prop_map(
        |(from, width, changes)| {
            let place = |n| key((from + n % width) % 400);
            let value = |(fill, len)| value(fill, len);
            changes
                .into_iter()
                .map(|(n, new)| (place(n), new.map(value)))
                .collect()
        },
    )
}

fn apply_to_map(map: &mut Map, changes: &BTreeMap<Bytes, Option<Bytes>>) {
    for (key, value) in changes {
        match value {
            Some(value) => drop(map.insert(key.clone(), value.clone())),
            None => drop(map.remove(key)),
        }
    }
}

fn differences(a: &Map, b: &Map) -> Vec<Difference> {
    let keys: std::collections::BTreeSet<_> = a.keys().chain(b.keys()).collect();
    keys.into_iter()
        .filter(|key| a.get(*key) != b.get(*key))
        .map(|key| Difference {
            key: key.clone(),
            a: a.get(key).cloned(),
            b: b.get(key).cloned(),
        })
        .collect()
}

proptest! {
    #[test]
    fn edits_give_the_tree_that_building_gives(
        rules in any_rules(),
        start in any_map(300),
        batches in prop::collection::vec(any_changes(), 1..6),
    ) {
        let nodes = MemoryNodes::new();
        let trees = Trees::with_rules(&nodes, rules);
        let mut map = start;
        let mut tree = trees.build_map(&map).unwrap();
        for changes in batches {
            let before = map.clone();
            apply_to_map(&mut map, &changes);
            let edited = trees.apply(&tree, changes).unwrap();
            prop_assert_eq!(edited, trees.build_map(&map).unwrap());
            prop_assert_eq!(&trees.read_map(&edited).unwrap(), &map);
            prop_assert_eq!(trees.len(&edited).unwrap(), map.len() as u64);
            let found: Result<Vec<_>, _> = trees.diff(&tree, &edited).unwrap().collect();
            prop_assert_eq!(found.unwrap(), differences(&before, &map));
            tree = edited;
        }
    }

    #[test]
    fn reading_agrees_with_a_plain_map(rules in any_rules(), map in any_map(200), from in 0_u16..400) {
        let nodes = MemoryNodes::new();
        let trees = Trees::with_rules(&nodes, rules);
        let tree = trees.build_map(&map).unwrap();
        for n in 0..400 {
            prop_assert_eq!(trees.get(&tree, &key(n)).unwrap(), map.get(&key(n)).cloned());
        }
        let tail: Vec<_> = trees.range(&tree, &key(from)).map(Result::unwrap).collect();
        let wanted: Vec<_> = map.range(key(from)..).map(|(k, v)| (k.clone(), v.clone())).collect();
        prop_assert_eq!(tail, wanted);
    }

    #[test]
    fn unrelated_maps_are_compared_too(rules in any_rules(), a in any_map(200), b in any_map(40)) {
        let nodes = MemoryNodes::new();
        let trees = Trees::with_rules(&nodes, rules);
        let (left, right) = (trees.build_map(&a).unwrap(), trees.build_map(&b).unwrap());
        let there: Vec<_> = trees.diff(&left, &right).unwrap().map(Result::unwrap).collect();
        prop_assert_eq!(there, differences(&a, &b));
        let back: Vec<_> = trees.diff(&right, &left).unwrap().map(Result::unwrap).collect();
        prop_assert_eq!(back, differences(&b, &a));
    }

    #[test]
    fn a_tree_is_fetched_frontier_by_frontier(
        rules in any_rules(),
        map in any_map(200),
        changes in any_changes(),
        limit in 1_usize..20,
        base_known: bool,
    ) {
        let (theirs, mine) = (MemoryNodes::new(), MemoryNodes::new());
        let (remote, local) =
            (Trees::with_rules(&theirs, rules), Trees::with_rules(&mine, rules));
        let base = local.build_map(&map).unwrap();
        remote.build_map(&map).unwrap();
        let tree = remote.apply(&base, changes.clone()).unwrap();
        let known = base_known.then_some(&base);
        let mut fetched = 0;
        loop {
            let missing = local.missing(&tree, known, limit).unwrap();
            prop_assert!(missing.len() <= limit);
            if missing.is_empty() {
                break;
            }
            if let Err(error) = local.diff(&base, &tree).and_then(Iterator::collect::<Result<Vec<_>, _>>) {
                let named = matches!(&error, NodesError::Missing(list) if !list.is_empty());
                prop_assert!(named, "{}", error);
            }
            for node in &missing {
                prop_assert!(!mine.has(node.kind, &node.id).unwrap(), "asked for twice");
                prop_assert!(mine.copy_from(&theirs, node));
                fetched += 1;
            }
        }
        prop_assert!(fetched <= theirs.refs().len());
        let mut wanted = map;
        apply_to_map(&mut wanted, &changes);
        prop_assert_eq!(local.read_map(&tree).unwrap(), wanted);
    }

    #[test]
    fn arbitrary_bytes_never_panic(level in 0_u8..4, bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        drop(Node::parse(level, bytes.into(), &Rules::FORMAT));
    }

    #[test]
    fn damaged_nodes_never_panic_and_stay_consistent(
        rules in any_rules(),
        map in any_map(100),
        pick: prop::sample::Index,
        at: prop::sample::Index,
        bit in 0_u8..8,
    ) {
        let nodes = MemoryNodes::new();
        let trees = Trees::with_rules(&nodes, rules);
        let tree = trees.build_map(&map).unwrap();
        let mut refs = nodes.refs();
        refs.sort_by_key(|node| *node.id.as_bytes());
        let node = *pick.get(&refs);
        let mut bytes = nodes.remove(&node).unwrap().to_vec();
        let at = at.index(bytes.len());
        bytes[at] ^= 1 << bit;
        nodes.put(node.kind, &node.id, bytes.into()).unwrap();
        match trees.read_map(&tree) {
            Ok(read) => prop_assert_eq!(trees.len(&tree).unwrap(), read.len() as u64),
            Err(error) => prop_assert!(rejects(&error), "{}", error),
        }
        for n in 0..400 {
            drop(trees.get(&tree, &key(n)));
        }
        drop(trees.apply(&tree, [(key(7), None), (key(200), Some(value(1, 1)))]));
    }
}

fn rejects(error: &Error) -> bool {
    matches!(error, NodesError::Malformed { .. } | NodesError::Missing(_))
}

/// 200 directories of 100 files, values as long as those of files of one or two chunks.
fn folder_of_20k() -> Map {
    let mut map = Map::new();
    for dir in 0..200_u32 {
        let fid = *blake3::hash(&dir.to_le_bytes()).as_bytes();
        map.insert(Bytes::copy_from_slice(&fid[..8]), value(1, 60));
        for file in 0..100 {
            let mut key = fid[..8].to_vec();
            key.extend_from_slice(format!("file-{file:04}.dat").as_bytes());
            map.insert(key.into(), value(file as u8, 110));
        }
    }
    map
}

#[test]
fn an_edit_rewrites_four_small_nodes() {
    let map = folder_of_20k();
    let nodes = MemoryNodes::new();
    let trees = Trees::new(&nodes);
    let tree = trees.build_map(&map).unwrap();
    let count = nodes.refs().len();
    assert!((100..400).contains(&count), "{count} nodes");
    assert!(nodes.total_len() < 3_000_000, "{} bytes", nodes.total_len());
    let (mut total, mut edits) = (0, 0);
    for key in map.keys().step_by(97) {
        let fresh = MemoryNodes::new();
        let both = Overlay {
            below: &nodes,
            above: &fresh,
        };
        Trees::new(&both)
            .apply(&tree, [(key.clone(), Some(value(255, 112)))])
            .unwrap();
        assert!(fresh.refs().len() <= 4, "{} nodes", fresh.refs().len());
        assert!(fresh.total_len() <= 150_000, "{} bytes", fresh.total_len());
        total += fresh.total_len();
        edits += 1;
    }
    let mean = total / edits;
    println!(
        "{count} nodes, height {}, {mean} bytes written per edit",
        tree.height
    );
    assert!(mean <= 60_000, "{mean} bytes written per edit");
}

/// Reads through to one store and writes to another, to see what an edit writes.
struct Overlay<'a> {
    below: &'a MemoryNodes,
    above: &'a MemoryNodes,
}

impl Nodes for Overlay<'_> {
    type Error = Infallible;

    fn get(&self, kind: NodeKind, id: &NodeId) -> Result<Option<Bytes>, Infallible> {
        Ok(self.above.get(kind, id)?.or(self.below.get(kind, id)?))
    }

    fn put(&self, kind: NodeKind, id: &NodeId, bytes: Bytes) -> Result<(), Infallible> {
        self.above.put(kind, id, bytes)
    }
}

#[test]
fn an_edit_that_changes_nothing_writes_nothing() {
    let map = folder_of_20k();
    let nodes = MemoryNodes::new();
    let trees = Trees::new(&nodes);
    let tree = trees.build_map(&map).unwrap();
    let count = nodes.refs().len();
    let (first, same) = map.first_key_value().unwrap();
    let absent = Bytes::from_static(b"not there");
    let changes = [(absent, None), (first.clone(), Some(same.clone()))];
    let changes = BTreeMap::from(changes);
    assert_eq!(trees.apply(&tree, changes), Ok(tree));
    assert_eq!(nodes.refs().len(), count);
}

#[test]
fn removing_everything_leaves_the_empty_leaf() {
    let map = folder_of_20k();
    let nodes = MemoryNodes::new();
    let trees = Trees::new(&nodes);
    let tree = trees.build_map(&map).unwrap();
    let empty = trees.build_map(&Map::new()).unwrap();
    assert_eq!(empty.height, 0);
    assert_eq!(
        trees.apply(&tree, map.keys().map(|key| (key.clone(), None))),
        Ok(empty)
    );
    let refill = map
        .iter()
        .map(|(key, value)| (key.clone(), Some(value.clone())));
    assert_eq!(trees.apply(&empty, refill), Ok(tree));
}

#[test]
fn what_does_not_fit_is_refused() {
    let nodes = MemoryNodes::new();
    let trees = Trees::new(&nodes);
    let build = |entries: Vec<(Bytes, Bytes)>| trees.build(entries);
    let long = value(0, MAX_VALUE_LEN);
    let tree = build(vec![(value(1, MAX_KEY_LEN), long.clone()), (key(2), long)]).unwrap();
    assert_eq!(tree.height, 1);
    assert_eq!(trees.len(&tree), Ok(2));
    let refused = |entries| matches!(build(entries), Err(NodesError::Input(_)));
    assert!(refused(vec![(key(1), value(0, MAX_VALUE_LEN + 1))]));
    assert!(refused(vec![(value(1, MAX_KEY_LEN + 1), value(0, 0))]));
    assert!(refused(vec![(value(1, MIN_KEY_LEN - 1), value(0, 0))]));
    assert!(refused(vec![(key(2), value(0, 0)), (key(2), value(0, 0))]));
    let error = Error::Input(DecodeError::Order("keys"));
    assert_eq!(
        trees.apply(&tree, [(key(2), None), (key(1), None)]),
        Err(error)
    );
    let deep = Rules {
        cut_below: 255,
        max_body_len: 1,
        max_level: 2,
    };
    let many = (0..100).map(|n| (key(n), value(0, 0)));
    assert!(matches!(
        Trees::with_rules(&nodes, deep).build(many),
        Err(NodesError::Input(_))
    ));
}

/// Roots of fixed maps: they must never change, or old folders could not be read.
#[test]
fn roots_are_those_of_the_format() {
    let nodes = MemoryNodes::new();
    let trees = Trees::new(&nodes);
    let root = |map: &Map| {
        let tree = trees.build_map(map).unwrap();
        (tree.height, hex(tree.root.as_bytes()))
    };
    let numbers: Map = (0..1000)
        .map(|n| (key(n), value(n as u8, usize::from(n % 200))))
        .collect();
    let large: Map = (0..40).map(|n| (key(n), value(n as u8, 20_000))).collect();
    assert_eq!(root(&Map::new()), (0, EMPTY_ROOT.to_owned()));
    assert_eq!(root(&numbers), (1, NUMBERS_ROOT.to_owned()));
    assert_eq!(root(&large), (1, LARGE_ROOT.to_owned()));
    assert_eq!(root(&folder_of_20k()), (2, FOLDER_ROOT.to_owned()));
}

const EMPTY_ROOT: &str = "f0ed755a09c7dd3c530f34e2b1a13f67ad6b196f939e693fc7989cf179521263";
const NUMBERS_ROOT: &str = "42f9c801a9b4ef352ab80114fa1a6fd9176c37240d8cabb00b6daf8fd259f97c";
const LARGE_ROOT: &str = "461c202274e7f37b9579e3982a2a9aa051bd0f1834af5d1530addd65ff0e285d";
const FOLDER_ROOT: &str = "5dfb086ce856f7e730813e3dd5f6b4399400b4470386d46d075048bb97031d5f";

fn hex(bytes: &[u8]) -> String {
    data_encoding::HEXLOWER.encode(bytes)
}

/// Nodes made by hand, for what no writer of ours makes.
mod hostile {
    use super::*;

    fn leaf(keys: &[&[u8]]) -> Vec<u8> {
        let mut out = Vec::new();
        put_varint(&mut out, keys.len() as u64);
        for key in keys {
            put_varint(&mut out, key.len() as u64);
            out.extend_from_slice(key);
            out.extend_from_slice(&[1, b'v']);
        }
        out
    }

    fn inner(level: u8, children: &[(&[u8], NodeId, u64)]) -> Vec<u8> {
        let mut out = vec![level];
        put_varint(&mut out, children.len() as u64);
        for (key, id, entries) in children {
            put_varint(&mut out, key.len() as u64);
            out.extend_from_slice(key);
            out.extend_from_slice(id.as_bytes());
            put_varint(&mut out, *entries);
        }
        out
    }

    fn put(nodes: &MemoryNodes, kind: NodeKind, bytes: Vec<u8>) -> NodeId {
        let id = ccbt_xet::hash::node_id(kind.code(), &bytes);
        nodes.put(kind, &id, bytes.into()).unwrap();
        id
    }

    fn rule(error: &Error) -> &DecodeError {
        match error {
            NodesError::Malformed { reason, .. } => reason,
            other => panic!("{other}"),
        }
    }

    /// The first keys from `from` on that do (or do not) end a node.
    fn keys(level: u8, cutting: bool, count: usize) -> Vec<Bytes> {
        let all = (0..u16::MAX).map(key);
        all.filter(|key| Rules::FORMAT.cuts(level, key) == cutting)
            .take(count)
            .collect()
    }

    fn parse(level: u8, bytes: Vec<u8>) -> Result<(), DecodeError> {
        Node::parse(level, bytes.into(), &Rules::FORMAT).map(drop)
    }

    #[test]
    fn leaves_that_break_a_rule_are_refused() {
        let plain = keys(0, false, 3);
        let [a, b] = [&plain[0][..], &plain[1]];
        assert_eq!(parse(0, leaf(&[a, b])), Ok(()));
        assert_eq!(parse(0, leaf(&[])), Ok(()));
        assert_eq!(parse(0, leaf(&[b, a])), Err(DecodeError::Order("keys")));
        assert_eq!(parse(0, leaf(&[a, a])), Err(DecodeError::Order("keys")));
        let cutting = keys(0, true, 1);
        let after = [cutting[0].as_ref(), b"zzzzzzzzz"];
        let over = DecodeError::Rule("a node goes on after its last item");
        assert_eq!(parse(0, leaf(&after)), Err(over));
        let mut trailing = leaf(&[a]);
        trailing.push(0);
        assert_eq!(parse(0, trailing), Err(DecodeError::Trailing(1)));
        assert!(matches!(
            parse(0, leaf(&[b"short"])),
            Err(DecodeError::Range { .. })
        ));
        assert!(matches!(
            parse(0, vec![0xff, 0xff, 3]),
            Err(DecodeError::Range { .. })
        ));
        assert!(matches!(
            parse(0, vec![0; MAX_NODE_LEN + 1]),
            Err(DecodeError::Range { .. })
        ));
    }

    #[test]
    fn a_leaf_above_the_limit_holds_one_entry() {
        let entry = |out: &mut Vec<u8>, key: &[u8], len: usize| {
            put_varint(out, key.len() as u64);
            out.extend_from_slice(key);
            put_varint(out, len as u64);
            out.resize(out.len() + len, 0);
        };
        let plain = keys(0, false, 2);
        let mut one = vec![1];
        entry(&mut one, &plain[0], 100 << 10);
        assert_eq!(parse(0, one.clone()), Ok(()));
        one[0] = 2;
        entry(&mut one, &plain[1], 1);
        let refused = DecodeError::Rule("a node is larger than its cut rule allows");
        assert_eq!(parse(0, one), Err(refused));
    }

    #[test]
    fn inner_nodes_that_break_a_rule_are_refused() {
        let id = NodeId::from_bytes([7; 32]);
        let cutting = keys(1, true, 3);
        let [a, b, c] = [&cutting[0][..], &cutting[1], &cutting[2]];
        assert_eq!(parse(1, inner(1, &[(a, id, 1), (b, id, 1)])), Ok(()));
        let over = DecodeError::Rule("a node goes on after its last item");
        assert_eq!(
            parse(1, inner(1, &[(a, id, 1), (b, id, 1), (c, id, 1)])),
            Err(over)
        );
        assert!(matches!(
            parse(1, inner(2, &[(a, id, 1)])),
            Err(DecodeError::Range { .. })
        ));
        assert!(matches!(
            parse(1, inner(1, &[(a, id, 0)])),
            Err(DecodeError::Range { .. })
        ));
        let sum = DecodeError::Rule("a node counts more entries than can be");
        assert_eq!(
            parse(1, inner(1, &[(a, id, u64::MAX), (b, id, 1)])),
            Err(sum)
        );
    }

    #[test]
    fn children_that_contradict_their_parent_are_refused() {
        let plain = keys(0, false, 4);
        let [a, b, c, d] = [&plain[0][..], &plain[1], &plain[2], &plain[3]];
        let nodes = MemoryNodes::new();
        let left = put(&nodes, NodeKind::TreeLeaf, leaf(&[a, b]));
        let right = put(&nodes, NodeKind::TreeLeaf, leaf(&[c, d]));
        let wide = put(&nodes, NodeKind::TreeLeaf, leaf(&[a, d]));
        let read = |children: &[(&[u8], NodeId, u64)]| {
            let root = put(&nodes, NodeKind::TreeInner, inner(1, children));
            Trees::new(&nodes).read_map(&Tree { root, height: 1 })
        };
        assert_eq!(read(&[(a, left, 2), (c, right, 2)]).unwrap().len(), 4);
        let refused = |children: &[(&[u8], NodeId, u64)], why| {
            assert_eq!(*rule(&read(children).unwrap_err()), DecodeError::Rule(why));
        };
        refused(&[(a, left, 2)], "the root has fewer than two children");
        refused(
            &[(a, wide, 2), (c, right, 2)],
            "a node overlaps the next one",
        );
        let first = "a node does not begin with the key its parent says";
        let after_b = [b, b"x"].concat();
        refused(&[(a, left, 2), (&after_b, right, 2)], first);
        let count = "a node does not have the entries its parent counts";
        refused(&[(a, left, 3), (c, right, 2)], count);
    }

    #[test]
    fn a_tree_deeper_than_the_format_is_refused() {
        let nodes = MemoryNodes::new();
        let root = put(&nodes, NodeKind::TreeInner, vec![16, 0]);
        let error = Trees::new(&nodes)
            .len(&Tree { root, height: 16 })
            .unwrap_err();
        assert_eq!(
            *rule(&error),
            DecodeError::Rule("the tree has too many levels")
        );
    }
}
