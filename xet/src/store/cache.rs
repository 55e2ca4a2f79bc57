//! Decoded chunks kept in memory within a budget of bytes: a clock in a few independent parts. Stores of several suites
//! may share one.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use parking_lot::Mutex;

use crate::chunk::MAX_CHUNK;
use crate::hash::{ChunkHash, Suite};

/// What a chunk is called: names of two suites have nothing to do with each other.
type Key = (Suite, ChunkHash);

/// Parts with a lock of their own, chosen by the hash.
const PARTS: usize = 16;

/// Chunks remembered as touched: as many of the usual length as the usual budget holds.
const TOUCHED: usize = 512;

#[derive(Debug)]
pub(crate) struct Cache {
    parts: Box<[Mutex<Part>]>,
    /// Budget of one part.
    part_bytes: usize,
    /// A word of the hash of each chunk that was read in part lately.
    touched: Box<[AtomicU64]>,
}

#[derive(Debug, Default)]
struct Part {
    chunks: HashMap<Key, Cached>,
    /// All keys of `chunks`; the front is the next to go.
    queue: VecDeque<Key>,
    bytes: usize,
}

#[derive(Debug)]
struct Cached {
    bytes: Bytes,
    used: bool,
}

impl Cache {
    pub(crate) fn new(bytes: usize) -> Self {
        let parts = (0..PARTS).map(|_| Mutex::default()).collect();
        Self {
            parts,
            part_bytes: bytes / PARTS,
            touched: (0..TOUCHED).map(|_| AtomicU64::new(0)).collect(),
        }
    }

    /// Notes that a part of a chunk is read. Whether that was so before, not long ago: then all of it is worth keeping.
    pub(crate) fn touch(&self, hash: &ChunkHash) -> bool {
        let word = hash.word(0);
        let before = self.touched[word as usize % TOUCHED].swap(word, Ordering::Relaxed);
        before == word && self.part_bytes >= MAX_CHUNK
    }

    pub(crate) fn get(&self, suite: Suite, hash: &ChunkHash) -> Option<Bytes> {
        let mut part = self.part(hash).lock();
        let cached = part.chunks.get_mut(&(suite, *hash))?;
        cached.used = true;
        Some(cached.bytes.clone())
    }

    /// Keeps a chunk, at the cost of those not used since the clock last passed them.
    pub(crate) fn insert(&self, suite: Suite, hash: &ChunkHash, bytes: Bytes) {
        if bytes.len() > self.part_bytes {
            return;
        }
        let mut part = self.part(hash).lock();
        let key = (suite, *hash);
        if part.chunks.contains_key(&key) {
            return;
        }
        part.make_room(self.part_bytes - bytes.len());
        part.bytes += bytes.len();
        part.queue.push_back(key);
        part.chunks.insert(key, Cached { bytes, used: false });
    }

    pub(crate) fn bytes(&self) -> usize {
        self.parts.iter().map(|part| part.lock().bytes).sum()
    }

    fn part(&self, hash: &ChunkHash) -> &Mutex<Part> {
        &self.parts[usize::from(hash.as_bytes()[31]) % PARTS]
    }
}

impl Part {
    /// Drops chunks until at most `bytes` are left. Each gets one more round if it was used.
    fn make_room(&mut self, bytes: usize) {
        while self.bytes > bytes {
            let Some(key) = self.queue.pop_front() else {
                return;
            };
            match self.chunks.get_mut(&key) {
                Some(cached) if cached.used => {
                    cached.used = false;
                    self.queue.push_back(key);
                }
                _ => {
                    let dropped = self.chunks.remove(&key);
                    self.bytes -= dropped.map_or(0, |cached| cached.bytes.len());
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::Arc;

    use super::*;
    use crate::disk::MemDisk;
    use crate::store::{Store, StoreOptions};

    const B: Suite = Suite::Blake3;

    fn hash(number: u8) -> ChunkHash {
        let mut bytes = [number; 32];
        bytes[31] = 0;
        ChunkHash::from_bytes(bytes)
    }

    #[test]
    fn keeps_what_is_used_within_the_budget() {
        let cache = Cache::new(PARTS * 100);
        for number in 0..50 {
            cache.insert(B, &hash(number), vec![number; 20].into());
            assert_eq!(cache.get(B, &hash(0)).unwrap(), vec![0; 20]);
            assert!(cache.bytes() <= 100);
        }
        assert_eq!(cache.get(B, &hash(49)).unwrap(), vec![49; 20]);
        assert!(cache.get(B, &hash(20)).is_none());
        cache.insert(B, &hash(60), vec![0; 101].into());
        assert!(cache.get(B, &hash(60)).is_none());
    }
    #[test]
    fn names_of_two_suites_do_not_meet() {
        let cache = Cache::new(PARTS * 100);
        cache.insert(B, &hash(1), vec![1; 20].into());
        assert!(cache.get(Suite::Sha256, &hash(1)).is_none());
        cache.insert(Suite::Sha256, &hash(1), vec![2; 20].into());
        assert_eq!(cache.get(B, &hash(1)).unwrap(), vec![1; 20]);
        assert_eq!(cache.get(Suite::Sha256, &hash(1)).unwrap(), vec![2; 20]);
    }

    #[test]
    fn two_stores_keep_within_one_budget() {
        const BUDGET: usize = PARTS * 4000;
        let disk = Arc::new(MemDisk::new());
        let options = |suite| StoreOptions {
            cache_bytes: BUDGET,
            suite,
            ..StoreOptions::default()
        };
        let one = Store::open(Path::new("/one"), disk.clone(), options(B)).unwrap();
        let suite = Suite::Sha256;
        let two = Store::open_beside(&one, Path::new("/two"), disk, options(suite)).unwrap();
        let before = one.stats().memory_bytes + two.stats().memory_bytes;
        for number in 0..500u32 {
            let bytes: Vec<u8> = number.to_le_bytes().repeat(250);
            for store in [&one, &two] {
                let hash = store.suite().chunk_hash(&bytes);
                store.put_chunk(&hash, &bytes).unwrap();
                assert_eq!(store.chunk(&hash).unwrap().unwrap(), bytes);
            }
            assert!(one.cache.bytes() <= BUDGET);
        }
        assert!(one.cache.bytes() > BUDGET / 2, "it is used");
        let indexes = one.chunks.index.memory_bytes() + two.chunks.index.memory_bytes();
        let after = one.stats().memory_bytes + two.stats().memory_bytes;
        assert!(after <= before + (BUDGET + indexes) as u64, "counted once");
    }

    #[test]
    fn what_is_touched_twice_is_worth_keeping_where_there_is_room() {
        let cache = Cache::new(PARTS * MAX_CHUNK);
        assert_eq!(
            [1, 2, 1, 1, 2].map(|n| cache.touch(&hash(n))),
            [false, false, true, true, true]
        );
        let none = Cache::new(0);
        assert_eq!([1, 1].map(|n| none.touch(&hash(n))), [false; 2]);
    }
}
