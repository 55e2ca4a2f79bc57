//! Where a chunk lies: from the prefix of its hash to (pack, slot), in about 11 bytes a chunk.
//!
//! The index knows only a part of every hash, so what it answers are *candidates*: the store
//! compares the full hash that stands in the pack before it believes one. A lost or lying entry
//! therefore costs a miss and never gives wrong bytes, and the whole table can be dropped and
//! built again from the footers of the packs.

use std::collections::HashMap;
use std::fmt;

use parking_lot::RwLock;

mod table;

pub(crate) use table::{Slot, Table};

/// Number of a pack file. Starts at 1, below 2^24.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PackId(pub u32);

impl PackId {
    /// The index has 24 bits for it: 2^24 packs of 64 MiB are a pebibyte.
    pub const MAX: Self = Self((1 << 24) - 1);
}

/// Place of a record: the `slot`-th of pack `pack`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    /// The pack file.
    pub pack: PackId,
    /// Position among its records, below 8192.
    pub slot: u16,
}

/// Places one lookup gives at most. A key has more than one only after damage or a crash in gc.
pub const CANDIDATES_MAX: usize = 8;

/// The places that may hold a key.
#[derive(Clone, Copy, Default)]
pub struct Candidates {
    places: [Option<Place>; CANDIDATES_MAX],
    len: usize,
}

impl Candidates {
    /// Adds a place, or drops it if there are enough already.
    pub fn push(&mut self, place: Place) {
        if let Some(free) = self.places.get_mut(self.len) {
            *free = Some(place);
            self.len += 1;
        }
    }

    /// The places, in no particular order.
    pub fn iter(&self) -> impl Iterator<Item = Place> + '_ {
        self.places.iter().copied().flatten()
    }
}

impl fmt::Debug for Candidates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

/// A table from 32-byte keys to places that may forget and may give false candidates.
pub trait ChunkIndex: fmt::Debug + Send + Sync {
    /// Places that may hold `key`.
    fn candidates(&self, key: &[u8; 32]) -> Candidates;

    /// Adds a place of `key`; adding it again changes nothing.
    fn insert(&self, key: &[u8; 32], place: Place);

    /// Forgets one place of `key`. False if it was not there.
    fn remove(&self, key: &[u8; 32], place: Place) -> bool;

    /// Number of entries.
    fn len(&self) -> usize;

    /// True without entries.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes of memory it takes.
    fn memory_bytes(&self) -> usize;

    /// Forgets all places in packs that `keep` does not accept.
    fn retain_packs(&self, keep: &dyn Fn(PackId) -> bool);

    /// Parts it is saved in, one at a time. None if it cannot be saved.
    fn parts(&self) -> usize;

    /// The entries of a part, for [`load_part`](Self::load_part) of an index of the same kind.
    fn save_part(&self, part: usize) -> Vec<u8>;

    /// Takes back what was saved of a part, in place of all that is in it. False, and nothing is taken, if these
    /// bytes were not saved.
    fn load_part(&self, part: usize, bytes: &[u8]) -> bool;
}

/// Independent tables, chosen by the key's first bits, so that writers rarely meet.
const SHARDS: usize = 64;

/// The index in use: 8 bytes an entry in open addressing, filled to between 67 and 85 %.
pub struct CompactIndex {
    shards: Box<[RwLock<Table<Entry>>]>,
}

/// 27 bits of the key, 24 of the pack, 13 of the slot. Pack 0 does not exist, so 0 is "empty".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Entry(u64);

const TAG_BITS: u32 = 27;
const SLOT_BITS: u32 = 13;
const PLACE_BITS: u32 = 64 - TAG_BITS;

impl Entry {
    fn new(key: &[u8; 32], place: Place) -> Self {
        let place = (u64::from(place.pack.0) << SLOT_BITS) | u64::from(place.slot);
        Self((tag(key) << PLACE_BITS) | place)
    }

    fn tag(self) -> u64 {
        self.0 >> PLACE_BITS
    }

    fn place(self) -> Place {
        let slot = (self.0 & ((1 << SLOT_BITS) - 1)) as u16;
        let pack = ((self.0 >> SLOT_BITS) & u64::from(PackId::MAX.0)) as u32;
        Place {
            pack: PackId(pack),
            slot,
        }
    }
}

impl Slot for Entry {
    const EMPTY: Self = Self(0);

    fn home(self, slots: usize) -> usize {
        ((self.tag() * slots as u64) >> TAG_BITS) as usize
    }
}

/// The bits of the key after those that choose the shard.
fn tag(key: &[u8; 32]) -> u64 {
    (prefix(key) << SHARDS.trailing_zeros()) >> PLACE_BITS
}

pub(crate) fn prefix(key: &[u8; 32]) -> u64 {
    let [a, b, c, d, e, f, g, h, ..] = *key;
    u64::from_be_bytes([a, b, c, d, e, f, g, h])
}

impl CompactIndex {
    /// An empty index.
    pub fn new() -> Self {
        Self {
            shards: (0..SHARDS).map(|_| RwLock::new(Table::new())).collect(),
        }
    }

    /// Bytes of memory it takes.
    pub fn memory_bytes(&self) -> usize {
        self.shards
            .iter()
            .map(|shard| shard.read().memory_bytes())
            .sum()
    }

    fn shard(&self, key: &[u8; 32]) -> &RwLock<Table<Entry>> {
        &self.shards[usize::from(key[0]) * SHARDS / 256]
    }
}

impl fmt::Debug for CompactIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CompactIndex")
            .field("len", &self.len())
            .finish()
    }
}

impl Default for CompactIndex {
    fn default() -> Self {
        Self::new()
    }
}

impl ChunkIndex for CompactIndex {
    fn candidates(&self, key: &[u8; 32]) -> Candidates {
        let wanted = tag(key);
        let mut found = Candidates::default();
        let shard = self.shard(key).read();
        for entry in shard.run(Entry(wanted << PLACE_BITS)) {
            if entry.tag() == wanted {
                found.push(entry.place());
            }
        }
        found
    }

    fn insert(&self, key: &[u8; 32], place: Place) {
        let mut shard = self.shard(key).write();
        let entry = Entry::new(key, place);
        if !shard.run(entry).any(|found| found == entry) {
            shard.insert(entry);
        }
    }

    fn remove(&self, key: &[u8; 32], place: Place) -> bool {
        let entry = Entry::new(key, place);
        self.shard(key).write().remove(entry)
    }

    fn len(&self) -> usize {
        self.shards.iter().map(|shard| shard.read().len()).sum()
    }

    fn memory_bytes(&self) -> usize {
        self.shards
            .iter()
            .map(|shard| shard.read().memory_bytes())
            .sum()
    }

    fn retain_packs(&self, keep: &dyn Fn(PackId) -> bool) {
        for shard in &self.shards {
            shard.write().retain(|entry| keep(entry.place().pack));
        }
    }

    fn parts(&self) -> usize {
        SHARDS
    }

    fn save_part(&self, part: usize) -> Vec<u8> {
        let Some(shard) = self.shards.get(part) else {
            return Vec::new();
        };
        let shard = shard.read();
        shard
            .slots()
            .iter()
            .flat_map(|entry| entry.0.to_le_bytes())
            .collect()
    }

    fn load_part(&self, part: usize, bytes: &[u8]) -> bool {
        let (Some(shard), (entries, [])) = (self.shards.get(part), bytes.as_chunks::<8>()) else {
            return false;
        };
        let entries = entries
            .iter()
            .map(|entry| Entry(u64::from_le_bytes(*entry)));
        let table = Table::from_slots(entries.collect());
        table.map(|table| *shard.write() = table).is_some()
    }
}

/// The index of tests: a map of whole keys. It is saved as keys and places, in one part.
#[derive(Debug, Default)]
pub struct MapIndex {
    map: RwLock<HashMap<[u8; 32], Vec<Place>>>,
}

impl ChunkIndex for MapIndex {
    fn candidates(&self, key: &[u8; 32]) -> Candidates {
        let mut found = Candidates::default();
        for place in self.map.read().get(key).into_iter().flatten() {
            found.push(*place);
        }
        found
    }

    fn insert(&self, key: &[u8; 32], place: Place) {
        let mut map = self.map.write();
        let places = map.entry(*key).or_default();
        if !places.contains(&place) {
            places.push(place);
        }
    }

    fn remove(&self, key: &[u8; 32], place: Place) -> bool {
        let mut map = self.map.write();
        let Some(places) = map.get_mut(key) else {
            return false;
        };
        let before = places.len();
        places.retain(|held| *held != place);
        let found = places.len() < before;
        if places.is_empty() {
            map.remove(key);
        }
        found
    }

    fn len(&self) -> usize {
        self.map.read().values().map(Vec::len).sum()
    }

    fn memory_bytes(&self) -> usize {
        let map = self.map.read();
        map.capacity() * size_of::<([u8; 32], Vec<Place>)>() + self.len() * size_of::<Place>()
    }

    fn retain_packs(&self, keep: &dyn Fn(PackId) -> bool) {
        self.map.write().retain(|_, places| {
            places.retain(|place| keep(place.pack));
            !places.is_empty()
        });
    }

    fn parts(&self) -> usize {
        1
    }

    fn save_part(&self, _part: usize) -> Vec<u8> {
        let mut out = Vec::new();
        for (key, places) in &*self.map.read() {
            for place in places {
                out.extend_from_slice(key);
                out.extend_from_slice(&place.pack.0.to_le_bytes());
                out.extend_from_slice(&u32::from(place.slot).to_le_bytes());
            }
        }
        out
    }

    fn load_part(&self, _part: usize, bytes: &[u8]) -> bool {
        let (entries, rest) = bytes.as_chunks::<{ 32 + 8 }>();
        self.map.write().clear();
        for entry in entries {
            let (key, place) = entry.split_at(32);
            let words = place.as_chunks::<4>().0;
            let [pack, slot] = [0, 1].map(|word| u32::from_le_bytes(words[word]));
            let mut name = [0; 32];
            name.copy_from_slice(key);
            let (pack, slot) = (PackId(pack), slot as u16);
            self.insert(&name, Place { pack, slot });
        }
        rest.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(number: u64) -> [u8; 32] {
        *blake3::hash(&number.to_le_bytes()).as_bytes()
    }

    fn place(number: u64) -> Place {
        let pack = 1 + (number * 7919) as u32 % PackId::MAX.0;
        Place {
            pack: PackId(pack),
            slot: (number % 8192) as u16,
        }
    }

    /// What every index must do, whatever else it forgets.
    fn conforms(index: &dyn ChunkIndex, other: &dyn ChunkIndex) {
        const N: u64 = 20_000;
        let has = |n: u64| {
            index
                .candidates(&key(n))
                .iter()
                .any(|found| found == place(n))
        };
        assert!(index.is_empty());
        for n in 0..N {
            index.insert(&key(n), place(n));
            index.insert(&key(n), place(n));
        }
        assert_eq!(index.len(), N as usize);
        assert!((0..N).all(has));
        let extreme = Place {
            pack: PackId::MAX,
            slot: 8191,
        };
        index.insert(&key(5), extreme);
        let both: Vec<Place> = index.candidates(&key(5)).iter().collect();
        assert!(
            both.contains(&extreme) && both.contains(&place(5)),
            "{both:?}"
        );
        assert!(index.remove(&key(5), extreme));
        assert!(!index.remove(&key(5), extreme));
        for n in (0..N).step_by(3) {
            assert!(index.remove(&key(n), place(n)), "entry {n}");
        }
        for n in 0..N {
            assert_eq!(has(n), n % 3 != 0, "entry {n}");
        }
        let false_hits = (N..2 * N).filter(|&n| index.candidates(&key(n)).iter().count() > 0);
        assert!(false_hits.count() < 20);
        for slot in 0..100 {
            index.insert(
                &key(0),
                Place {
                    pack: PackId(1),
                    slot,
                },
            );
        }
        assert_eq!(index.candidates(&key(0)).iter().count(), CANDIDATES_MAX);
        survives_saving(index, other);
    }

    /// Copies `index` part by part into `other`, then forgets half of the packs there.
    fn survives_saving(index: &dyn ChunkIndex, other: &dyn ChunkIndex) {
        const N: u64 = 20_000;
        assert!(index.parts() > 0);
        other.insert(&key(N + 1), place(N + 1));
        for part in 0..index.parts() {
            let mut bytes = index.save_part(part);
            assert!(other.load_part(part, &bytes));
            bytes.push(0);
            assert!(!other.load_part(part, &bytes));
            bytes.pop();
            assert!(other.load_part(part, &bytes));
        }
        assert_eq!(other.len(), index.len());
        let is_kept = |pack: PackId| pack.0.is_multiple_of(2);
        let mut kept = 0;
        other.retain_packs(&is_kept);
        for n in 1..N {
            let was = index
                .candidates(&key(n))
                .iter()
                .any(|found| found == place(n));
            let is = other
                .candidates(&key(n))
                .iter()
                .any(|found| found == place(n));
            assert_eq!(is, was && is_kept(place(n).pack), "entry {n}");
            kept += usize::from(is);
        }
        assert!(kept > 1000 && other.len() >= kept);
        other.insert(&key(N), place(N));
        assert!(other.remove(&key(N), place(N)));
        other.retain_packs(&|_| false);
        assert!(other.is_empty());
    }

    #[test]
    fn compact_index_conforms() {
        conforms(&CompactIndex::new(), &CompactIndex::new());
    }

    #[test]
    fn map_index_conforms() {
        conforms(&MapIndex::default(), &MapIndex::default());
    }

    #[test]
    fn compact_index_is_compact() {
        let index = CompactIndex::new();
        let mut worst = 0.0f64;
        for n in 0..300_000 {
            index.insert(&key(n), place(n));
            if n > 100_000 && n % 1000 == 0 {
                worst = worst.max(index.memory_bytes() as f64 / n as f64);
            }
        }
        assert!(worst < 13.0, "{worst} bytes an entry");
    }
}
