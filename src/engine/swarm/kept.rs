//! What keepers hold: for each, the newest tree it said it holds whole, as far as that was a tree of ours.
//!
//! Kept over restarts, and after the keeper has gone: it is what tells which content is perhaps only here. A keeper that
//! goes on to a newer tree still has what both trees show; one that lost something says so, and nothing of it counts until
//! it has all again.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::path::{Path, PathBuf};

use ccbt_xet::hash::NodeId;

use crate::folder::encoding::{DecodeError, Reader, put_varint};
use crate::folder::state::{Dot, Inc, VersionVector};
use crate::share::heads::Heads;
use crate::share::{DeviceId, Incarnation};

const MAGIC: &[u8] = b"ccbt kept 1\n";
/// Keepers remembered; a folder rarely has more than a few.
const KEEPERS_MAX: usize = 256;
/// Our latest trees whose vectors are remembered: what a keeper confirms is seldom older.
const ROOTS_MAX: usize = 64;

/// See the module documentation.
#[derive(Debug, Default)]
pub(super) struct Kept {
    /// What the tree each keeper holds has seen.
    keepers: BTreeMap<DeviceId, VersionVector>,
    /// Our latest trees and what they have seen.
    roots: VecDeque<(NodeId, VersionVector)>,
    is_saved: bool,
}

/// What other devices hold, of versions known by their dots.
#[derive(Debug, Clone, Default)]
pub struct Elsewhere {
    pub(super) kept: Vec<VersionVector>,
    /// Incarnations of other devices: what they made they have.
    pub(super) others: BTreeSet<Inc>,
}

impl Elsewhere {
    /// Of a folder nobody serves: what was saved beside its table of heads, which is of the device that publishes as `own`.
    /// Unless that one has a head in it, nobody can be told from it, and what others made counts as not held by them.
    pub fn noted(heads: &Heads, own: &Incarnation, heads_file: &Path) -> Self {
        let kept = Kept::load(&path(heads_file)).vectors();
        let Some(own) = heads.get(own).map(|head| head.claims().device) else {
            return Self {
                kept,
                ..Self::default()
            };
        };
        Self {
            kept,
            others: incarnations_of_others(heads, own),
        }
    }

    /// Whether another device has this version, as far as known.
    pub fn has(&self, dot: Dot) -> bool {
        self.others.contains(&dot.inc) || self.kept.iter().any(|vector| vector.covers(dot))
    }
}

/// Those in the table that are not `own`'s.
pub(super) fn incarnations_of_others(heads: &Heads, own: DeviceId) -> BTreeSet<Inc> {
    let claims = heads.heads().map(|head| head.claims());
    let others = claims.filter(|claims| claims.device != own);
    others.map(|by| Inc(*by.incarnation.as_bytes())).collect()
}

impl Kept {
    /// What was saved beside the table of heads. Without it, or if it is damaged, keepers say it again.
    pub(super) fn load(path: &Path) -> Self {
        let mut kept = Self {
            is_saved: true,
            ..Self::default()
        };
        match std::fs::read(path).map(|bytes| decode(&bytes)) {
            Ok(Ok(keepers)) => kept.keepers = keepers,
            Ok(Err(error)) => {
                tracing::warn!(%error, "what keepers hold is not known any more; they will say it again");
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => tracing::warn!(%error, "what keepers hold cannot be read"),
        }
        kept
    }

    /// Saves what changed since the last time.
    pub(super) fn save(&mut self, path: &Path) {
        if std::mem::replace(&mut self.is_saved, true) {
            return;
        }
        if let Err(error) = crate::state_file::replace(path, &encode(&self.keepers)) {
            tracing::warn!(%error, "cannot save what keepers hold; they will say it again");
        }
    }

    /// We show another tree, which has seen `vector`.
    pub(super) fn shown(&mut self, root: NodeId, vector: VersionVector) {
        self.roots.retain(|(known, _)| *known != root);
        if self.roots.len() >= ROOTS_MAX {
            self.roots.pop_front();
        }
        self.roots.push_back((root, vector));
    }

    /// A keeper holds every chunk below `root`.
    pub(super) fn stored(&mut self, keeper: DeviceId, root: NodeId) {
        let Some((_, vector)) = self.roots.iter().find(|(known, _)| *known == root) else {
            return;
        };
        let room = self.keepers.len() < KEEPERS_MAX || self.keepers.contains_key(&keeper);
        if room && self.keepers.get(&keeper) != Some(vector) {
            self.keepers.insert(keeper, vector.clone());
            self.is_saved = false;
        }
    }

    /// A keeper has lost something, or keeps the folder no longer.
    pub(super) fn lost(&mut self, keeper: &DeviceId) {
        if self.keepers.remove(keeper).is_some() {
            self.is_saved = false;
        }
    }

    pub(super) fn vectors(&self) -> Vec<VersionVector> {
        self.keepers.values().cloned().collect()
    }
}

/// Where it is kept: beside the table of heads.
pub(super) fn path(heads_file: &Path) -> PathBuf {
    heads_file.with_file_name("kept")
}

fn encode(keepers: &BTreeMap<DeviceId, VersionVector>) -> Vec<u8> {
    let mut out = MAGIC.to_vec();
    put_varint(&mut out, keepers.len() as u64);
    for (keeper, vector) in keepers {
        out.extend_from_slice(keeper.as_bytes());
        put_varint(&mut out, vector.len() as u64);
        for (inc, ctr) in vector.iter() {
            out.extend_from_slice(&inc.0);
            put_varint(&mut out, ctr);
        }
    }
    let crc = crc32fast::hash(&out);
    out.extend_from_slice(&crc.to_le_bytes());
    out
}

fn decode(bytes: &[u8]) -> Result<BTreeMap<DeviceId, VersionVector>, DecodeError> {
    let damaged = DecodeError::Rule("the checksum is wrong");
    let (body, crc) = bytes.split_last_chunk().ok_or(damaged)?;
    if u32::from_le_bytes(*crc) != crc32fast::hash(body) {
        return Err(damaged);
    }
    let mut reader = Reader::new(body);
    if reader.take(MAGIC.len())? != MAGIC {
        return Err(DecodeError::Rule("not of this version"));
    }
    let mut keepers = BTreeMap::new();
    for _ in 0..reader.count("keepers", DeviceId::LEN)? {
        let keeper = DeviceId::from_bytes(reader.array()?);
        let counters: Result<Vec<(Inc, u64)>, DecodeError> = (0..reader.count("counters", 9)?)
            .map(|_| Ok((Inc(reader.array()?), reader.varint()?)))
            .collect();
        keepers.insert(keeper, counters?.into_iter().collect());
    }
    reader.finish()?;
    Ok(keepers)
}

#[cfg(test)]
mod tests {
    use super::*;

    const OURS: Inc = Inc([1; 8]);
    const THEIRS: Inc = Inc([2; 8]);

    fn root(n: u8) -> NodeId {
        NodeId::from_bytes([n; 32])
    }

    fn keeper(n: u8) -> DeviceId {
        DeviceId::from_bytes([n; 32])
    }

    fn dot(inc: Inc, ctr: u64) -> Dot {
        Dot { inc, ctr }
    }

    fn elsewhere(kept: &Kept) -> Elsewhere {
        Elsewhere {
            kept: kept.vectors(),
            others: [THEIRS].into(),
        }
    }

    #[test]
    fn what_a_keeper_stored_is_elsewhere_until_it_is_lost() {
        let dir = tempfile::tempdir().unwrap();
        let file = path(&dir.path().join("heads"));
        let mut kept = Kept::load(&file);
        kept.shown(root(1), [(OURS, 5)].into_iter().collect());
        kept.shown(root(2), [(OURS, 9)].into_iter().collect());
        assert!(!elsewhere(&kept).has(dot(OURS, 1)));
        assert!(elsewhere(&kept).has(dot(THEIRS, 100)), "they made it");
        kept.stored(keeper(1), root(7));
        assert!(!elsewhere(&kept).has(dot(OURS, 1)), "no tree of ours");
        kept.stored(keeper(1), root(1));
        assert!(elsewhere(&kept).has(dot(OURS, 5)));
        assert!(!elsewhere(&kept).has(dot(OURS, 6)));

        kept.save(&file);
        let mut kept = Kept::load(&file);
        assert!(elsewhere(&kept).has(dot(OURS, 5)), "after a restart");
        kept.lost(&keeper(2));
        assert!(elsewhere(&kept).has(dot(OURS, 5)), "another keeper");
        kept.lost(&keeper(1));
        assert!(!elsewhere(&kept).has(dot(OURS, 5)));
        kept.save(&file);
        assert!(!elsewhere(&Kept::load(&file)).has(dot(OURS, 5)));
    }

    #[test]
    fn a_damaged_file_counts_for_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("kept");
        let mut kept = Kept::default();
        kept.shown(root(1), [(OURS, 5), (THEIRS, 7)].into_iter().collect());
        kept.stored(keeper(1), root(1));
        kept.save(&file);
        let whole = std::fs::read(&file).unwrap();
        assert_eq!(decode(&whole).unwrap(), kept.keepers);
        for at in 0..whole.len() {
            let mut bytes = whole.clone();
            bytes[at] ^= 0x10;
            assert!(decode(&bytes).is_err(), "byte {at}");
            assert!(decode(&whole[..at]).is_err(), "cut at {at}");
        }
    }

    #[test]
    fn only_our_latest_trees_are_remembered() {
        let mut kept = Kept::default();
        for n in 0..=ROOTS_MAX as u8 {
            kept.shown(root(n), VersionVector::default());
        }
        assert_eq!(kept.roots.len(), ROOTS_MAX);
        kept.stored(keeper(1), root(0));
        assert!(kept.keepers.is_empty());
    }
}
