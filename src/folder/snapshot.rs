//! A snapshot: the root of a folder's tree and what that state has seen (docs/formats/tree.md,
//! "Snapshot").

use ccbt_xet::hash::{NodeId, node_id};

use super::encoding::{DecodeError, Reader, in_range, put_varint};
use super::state::{Dot, Hlc, Inc, VersionVector};
use super::tree::{NodeKind, NodeRef, Tree};

const VERSION: u8 = 1;
/// Most snapshots that one can follow from.
pub const MAX_PARENTS: usize = 8;
/// Most incarnations in a version vector.
pub const MAX_INCARNATIONS: usize = 4096;
/// Greatest level of a tree's root.
const MAX_HEIGHT: u8 = 15;
/// Bytes of one incarnation and its counter.
const VECTOR_ITEM_LEN: usize = 16;

/// The state of a folder at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// The entries.
    pub tree: Tree,
    /// Snapshots this one came from, in ascending order of their bytes. They inform only.
    pub parents: Vec<NodeId>,
    /// The operations this state has seen.
    pub vector: VersionVector,
    /// When it was made. Informs only.
    pub hlc: Hlc,
    /// Number of files.
    pub files: u64,
    /// Their sizes together in bytes.
    pub bytes: u64,
}

impl Snapshot {
    /// Whether both are the same state: then none of them is news to who has the other.
    pub fn is_same_state(&self, other: &Self) -> bool {
        self.tree == other.tree && self.vector == other.vector
    }

    /// The bytes of the node. Fails if parents or incarnations are too many, not in order or 0.
    pub fn encode(&self) -> Result<Vec<u8>, DecodeError> {
        let mut out = vec![VERSION, self.tree.height];
        out.extend_from_slice(self.tree.root.as_bytes());
        in_range("parents", self.parents.len() as u64, 0, MAX_PARENTS as u64)?;
        out.push(self.parents.len() as u8);
        self.parents
            .iter()
            .for_each(|parent| out.extend_from_slice(parent.as_bytes()));
        put_varint(&mut out, self.vector.len() as u64);
        for (inc, ctr) in self.vector.iter() {
            out.extend_from_slice(&inc.0);
            out.extend_from_slice(&ctr.to_le_bytes());
        }
        for number in [self.hlc.0, self.files, self.bytes] {
            out.extend_from_slice(&number.to_le_bytes());
        }
        Self::decode(&out)?;
        Ok(out)
    }

    /// Reads the bytes of a node.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(bytes);
        let version = u64::from(reader.u8()?);
        in_range(
            "snapshot version",
            version,
            u64::from(VERSION),
            u64::from(VERSION),
        )?;
        let height = in_range(
            "tree height",
            u64::from(reader.u8()?),
            0,
            u64::from(MAX_HEIGHT),
        )?;
        let root = NodeId::from_bytes(reader.array()?);
        let snapshot = Self {
            tree: Tree {
                root,
                height: height as u8,
            },
            parents: read_parents(&mut reader)?,
            vector: read_vector(&mut reader)?,
            hlc: Hlc(reader.u64()?),
            files: reader.u64()?,
            bytes: reader.u64()?,
        };
        reader.finish()?;
        Ok(snapshot)
    }
}

/// The name of a snapshot, from its bytes.
pub fn snapshot_ref(bytes: &[u8]) -> NodeRef {
    let kind = NodeKind::Snapshot;
    NodeRef {
        kind,
        id: node_id(kind.code(), bytes),
    }
}

/// Whether a state that has seen `newer` has seen all of `older`.
pub fn covers(newer: &VersionVector, older: &VersionVector) -> bool {
    older
        .iter()
        .all(|(inc, ctr)| newer.covers(Dot { inc, ctr }))
}

fn read_parents(reader: &mut Reader<'_>) -> Result<Vec<NodeId>, DecodeError> {
    let count = in_range("parents", u64::from(reader.u8()?), 0, MAX_PARENTS as u64)?;
    let mut parents: Vec<NodeId> = Vec::new();
    for _ in 0..count {
        let parent = NodeId::from_bytes(reader.array()?);
        if parents
            .last()
            .is_some_and(|last| last.as_bytes() >= parent.as_bytes())
        {
            return Err(DecodeError::Order("parents"));
        }
        parents.push(parent);
    }
    Ok(parents)
}

fn read_vector(reader: &mut Reader<'_>) -> Result<VersionVector, DecodeError> {
    let count = reader.count("incarnations", VECTOR_ITEM_LEN)?;
    in_range("incarnations", count as u64, 0, MAX_INCARNATIONS as u64)?;
    let mut items: Vec<(Inc, u64)> = Vec::with_capacity(count);
    for _ in 0..count {
        let inc = Inc(reader.array()?);
        if items.last().is_some_and(|(last, _)| *last >= inc) {
            return Err(DecodeError::Order("incarnations"));
        }
        items.push((inc, in_range("counter", reader.u64()?, 1, u64::MAX)?));
    }
    Ok(items.into_iter().collect())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn id(first: u8) -> NodeId {
        let mut bytes = [0; 32];
        bytes[0] = first;
        NodeId::from_bytes(bytes)
    }

    fn example() -> Snapshot {
        Snapshot {
            tree: Tree {
                root: id(9),
                height: 2,
            },
            parents: vec![id(1), id(2)],
            vector: [(Inc([1; 8]), 5), (Inc([2; 8]), 1)].into_iter().collect(),
            hlc: Hlc(7 << 16),
            files: 3,
            bytes: 4000,
        }
    }

    fn any_snapshot() -> impl Strategy<Value = Snapshot> {
        let parents = prop::collection::btree_set(any::<[u8; 32]>(), 0..9);
        let vector = prop::collection::btree_map(any::<[u8; 8]>(), 1..u64::MAX, 0..20);
        let numbers = any::<(u64, u64, u64)>();
        (any::<[u8; 32]>(), 0_u8..16, parents, vector, numbers).prop_map(
            |(root, height, parents, vector, (hlc, files, bytes))| Snapshot {
                tree: Tree {
                    root: NodeId::from_bytes(root),
                    height,
                },
                parents: parents.into_iter().map(NodeId::from_bytes).collect(),
                vector: vector
                    .into_iter()
                    .map(|(inc, ctr)| (Inc(inc), ctr))
                    .collect(),
                hlc: Hlc(hlc),
                files,
                bytes,
            },
        )
    }

    proptest! {
        #[test]
        fn a_snapshot_survives_the_way(snapshot in any_snapshot()) {
            let bytes = snapshot.encode().unwrap();
            prop_assert_eq!(Snapshot::decode(&bytes), Ok(snapshot));
        }

        #[test]
        fn what_is_decoded_is_encoded_the_same(
            snapshot in any_snapshot(),
            at: prop::sample::Index,
            bit in 0_u8..8,
        ) {
            let mut bytes = snapshot.encode().unwrap();
            let at = at.index(bytes.len());
            bytes[at] ^= 1 << bit;
            if let Ok(snapshot) = Snapshot::decode(&bytes) {
                prop_assert_eq!(snapshot.encode().unwrap(), bytes);
            }
        }

        #[test]
        fn arbitrary_bytes_never_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            drop(Snapshot::decode(&bytes));
            if bytes.len() > 1 {
                bytes[0] = VERSION;
                bytes[1] %= 16;
                drop(Snapshot::decode(&bytes));
            }
        }
    }

    /// The bytes of a fixed snapshot: they must never change.
    #[test]
    fn bytes_are_those_of_the_format() {
        let bytes = example().encode().unwrap();
        let mut wanted = vec![1, 2];
        for first in [9] {
            wanted.extend_from_slice(id(first).as_bytes());
        }
        wanted.push(2);
        wanted.extend_from_slice(id(1).as_bytes());
        wanted.extend_from_slice(id(2).as_bytes());
        wanted.push(2);
        wanted.extend_from_slice(b"\x01\x01\x01\x01\x01\x01\x01\x01\x05\0\0\0\0\0\0\0");
        wanted.extend_from_slice(b"\x02\x02\x02\x02\x02\x02\x02\x02\x01\0\0\0\0\0\0\0");
        wanted.extend_from_slice(b"\0\0\x07\0\0\0\0\0\x03\0\0\0\0\0\0\0\xa0\x0f\0\0\0\0\0\0");
        assert_eq!(bytes, wanted);
        assert_eq!(snapshot_ref(&bytes).id, node_id(5, &wanted));
    }

    #[test]
    fn malformed_snapshots_are_refused() {
        let refused = |change: fn(&mut Snapshot)| {
            let mut snapshot = example();
            change(&mut snapshot);
            snapshot.encode().unwrap_err()
        };
        assert_eq!(
            refused(|s| s.parents.reverse()),
            DecodeError::Order("parents")
        );
        assert_eq!(
            refused(|s| s.parents[1] = s.parents[0]),
            DecodeError::Order("parents")
        );
        let nine = |s: &mut Snapshot| s.parents = (0..9).map(id).collect();
        assert!(matches!(
            refused(nine),
            DecodeError::Range {
                what: "parents",
                ..
            }
        ));
        let high = |s: &mut Snapshot| s.tree.height = 16;
        assert!(matches!(
            refused(high),
            DecodeError::Range {
                what: "tree height",
                ..
            }
        ));
        let many = |s: &mut Snapshot| {
            s.vector = (0_u64..4097).map(|n| (Inc(n.to_be_bytes()), 1)).collect();
        };
        assert!(matches!(
            refused(many),
            DecodeError::Range {
                what: "incarnations",
                ..
            }
        ));
        let mut bytes = example().encode().unwrap();
        bytes.push(0);
        assert_eq!(Snapshot::decode(&bytes), Err(DecodeError::Trailing(1)));
        bytes[0] = 2;
        let version = Snapshot::decode(&bytes).unwrap_err();
        assert!(matches!(
            version,
            DecodeError::Range {
                what: "snapshot version",
                ..
            }
        ));
    }

    #[test]
    fn states_are_compared_by_what_they_hold_and_have_seen() {
        let (one, mut other) = (example(), example());
        (other.parents, other.hlc) = (vec![], Hlc(1));
        assert!(one.is_same_state(&other));
        assert!(covers(&one.vector, &other.vector) && covers(&other.vector, &one.vector));
        other.vector.see(Dot {
            inc: Inc([2; 8]),
            ctr: 2,
        });
        assert!(!one.is_same_state(&other));
        assert!(covers(&other.vector, &one.vector) && !covers(&one.vector, &other.vector));
        let stranger: VersionVector = [(Inc([3; 8]), 1)].into_iter().collect();
        assert!(!covers(&one.vector, &stranger) && !covers(&stranger, &one.vector));
    }
}
