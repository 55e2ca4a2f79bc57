//! A sharded map of counters by inode, for tables that every FUSE thread touches on nearly every request.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use parking_lot::Mutex;

use crate::Ino;

/// Enough shards that a handful of threads rarely meet; a power of two.
const SHARDS: u64 = 16;

/// How many of something each inode has. Inodes with none take no memory.
pub(crate) struct Counts {
    shards: [Mutex<HashMap<Ino, u64>>; SHARDS as usize],
}

impl Counts {
    pub(crate) fn new() -> Self {
        Self {
            shards: std::array::from_fn(|_| Mutex::new(HashMap::new())),
        }
    }

    pub(crate) fn add_one(&self, ino: Ino) {
        *self.shard(ino).lock().entry(ino).or_insert(0) += 1;
    }

    /// Takes `n` away and returns what is left. Taking more than there is leaves none.
    pub(crate) fn subtract(&self, ino: Ino, n: u64) -> u64 {
        match self.shard(ino).lock().entry(ino) {
            Entry::Vacant(_) => 0,
            Entry::Occupied(mut entry) => {
                let left = entry.get().saturating_sub(n);
                if left == 0 {
                    entry.remove();
                } else {
                    *entry.get_mut() = left;
                }
                left
            }
        }
    }

    pub(crate) fn get(&self, ino: Ino) -> u64 {
        self.shard(ino).lock().get(&ino).copied().unwrap_or(0)
    }

    /// Every inode with a count, in no order; a consistent picture of each shard only.
    pub(crate) fn inodes(&self) -> Vec<Ino> {
        self.shards
            .iter()
            .flat_map(|shard| shard.lock().keys().copied().collect::<Vec<_>>())
            .collect()
    }

    fn shard(&self, ino: Ino) -> &Mutex<HashMap<Ino, u64>> {
        &self.shards[(ino.0 % SHARDS) as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_per_inode_and_never_goes_below_zero() {
        let counts = Counts::new();
        let (a, b) = (Ino(3), Ino(3 + SHARDS));
        counts.add_one(a);
        counts.add_one(a);
        counts.add_one(b);
        assert_eq!(counts.subtract(a, 1), 1);
        assert_eq!(counts.get(b), 1);
        assert_eq!(counts.subtract(a, 5), 0);
        assert_eq!(counts.subtract(a, 1), 0);
        assert_eq!(counts.inodes(), [b]);
    }
}
