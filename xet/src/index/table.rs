//! Open addressing over fixed-size entries that know where they want to stand.
//!
//! Linear probing, deletion by moving back (no tombstones), growth by a quarter: a slot's home is
//! `hash * slots >> bits`, so any number of slots works and growing needs no hash but what the
//! entry holds.

/// An entry of a [`Table`].
pub(crate) trait Slot: Copy + Eq {
    /// Marks a free slot; no real entry equals it.
    const EMPTY: Self;

    /// The slot this entry wants among `slots`: monotone in the hash bits it keeps.
    fn home(self, slots: usize) -> usize;
}

/// A set of entries, several of which may share a home.
#[derive(Debug)]
pub(crate) struct Table<E> {
    slots: Vec<E>,
    len: usize,
}

/// A table grows before it gets fuller than this: runs get long beyond.
const FULL_PERCENT: usize = 85;

/// Up to this part of the entries, forgetting one by one is cheaper than making a new table.
const REMOVED_PART: usize = 16;

/// Slots of the first allocation.
const SLOTS_MIN: usize = 16;

impl<E: Slot> Table<E> {
    pub(crate) const fn new() -> Self {
        Self {
            slots: Vec::new(),
            len: 0,
        }
    }

    pub(crate) const fn len(&self) -> usize {
        self.len
    }

    /// All slots, free ones too, in order: what [`from_slots`](Self::from_slots) takes.
    pub(crate) fn slots(&self) -> &[E] {
        &self.slots
    }

    /// The table with these slots. `None` if there never was such a table: it would be too full.
    pub(crate) fn from_slots(slots: Vec<E>) -> Option<Self> {
        let len = slots.iter().filter(|entry| **entry != E::EMPTY).count();
        (len * 100 <= slots.len() * FULL_PERCENT).then_some(Self { slots, len })
    }

    pub(crate) const fn memory_bytes(&self) -> usize {
        self.slots.capacity() * size_of::<E>()
    }

    /// The entries from `sample`'s home to the next free slot: all that share its home are there.
    pub(crate) fn run(&self, sample: E) -> impl Iterator<Item = E> + '_ {
        let start = if self.slots.is_empty() {
            0
        } else {
            sample.home(self.slots.len())
        };
        let (before, after) = self.slots.split_at(start);
        after
            .iter()
            .chain(before)
            .copied()
            .take_while(|entry| *entry != E::EMPTY)
    }

    /// Adds an entry, even if an equal one is there.
    pub(crate) fn insert(&mut self, entry: E) {
        if (self.len + 1) * 100 > self.slots.len() * FULL_PERCENT {
            self.resize((self.slots.len() + self.slots.len() / 4).max(SLOTS_MIN));
        }
        self.place(entry);
        self.len += 1;
    }

    /// Removes one entry equal to `entry`.
    pub(crate) fn remove(&mut self, entry: E) -> bool {
        let Some(offset) = self.run(entry).position(|found| found == entry) else {
            return false;
        };
        let slots = self.slots.len();
        let mut hole = (entry.home(slots) + offset) % slots;
        let mut at = hole;
        loop {
            at = (at + 1) % slots;
            let next = self.slots[at];
            if next == E::EMPTY {
                break;
            }
            let wanted = next.home(slots);
            if (at + slots - wanted) % slots >= (at + slots - hole) % slots {
                self.slots[hole] = next;
                hole = at;
            }
        }
        self.slots[hole] = E::EMPTY;
        self.len -= 1;
        true
    }

    /// Keeps the entries that `keep` accepts. Gives unneeded memory back if that is many fewer.
    pub(crate) fn retain(&mut self, keep: impl Fn(E) -> bool) {
        let is_kept = |entry: &&E| **entry != E::EMPTY && keep(**entry);
        let kept = self.slots.iter().filter(is_kept).count();
        if self.len - kept <= self.len / REMOVED_PART {
            let is_gone = |entry: &&E| **entry != E::EMPTY && !keep(**entry);
            let gone: Vec<E> = self.slots.iter().filter(is_gone).copied().collect();
            for entry in gone {
                self.remove(entry);
            }
            return;
        }
        let entries: Vec<E> = self.slots.iter().filter(is_kept).copied().collect();
        self.len = entries.len();
        let slots = (entries.len() * 5 / 4).max(SLOTS_MIN);
        self.slots = vec![E::EMPTY; slots];
        for entry in entries {
            self.place(entry);
        }
    }

    fn resize(&mut self, slots: usize) {
        let old = std::mem::replace(&mut self.slots, vec![E::EMPTY; slots]);
        for entry in old.into_iter().filter(|entry| *entry != E::EMPTY) {
            self.place(entry);
        }
    }

    /// Puts an entry into the first free slot from its home. There is one: the table is never full.
    fn place(&mut self, entry: E) {
        let slots = self.slots.len();
        let mut at = entry.home(slots);
        while self.slots[at] != E::EMPTY {
            at = (at + 1) % slots;
        }
        self.slots[at] = entry;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
    struct Byte(u16);

    impl Slot for Byte {
        const EMPTY: Self = Self(0);

        fn home(self, slots: usize) -> usize {
            usize::from(self.0 >> 4) * slots / 4096
        }
    }

    proptest! {
        /// Against a sorted list: few homes, so runs are long and wrap around.
        #[test]
        fn behaves_as_a_multiset(ops in prop::collection::vec((0..4u8, 1..300u16, any::<bool>()), 0..400)) {
            let mut table = Table::new();
            let mut model: Vec<Byte> = Vec::new();
            for (op, value, high) in ops {
                let entry = Byte(if high { 0xFF00 | value } else { value });
                match op {
                    0 | 1 => {
                        table.insert(entry);
                        model.push(entry);
                    }
                    2 => {
                        let at = model.iter().position(|held| *held == entry);
                        prop_assert_eq!(table.remove(entry), at.is_some());
                        at.map(|at| model.swap_remove(at));
                    }
                    _ if value < 20 => {
                        table.retain(|held| held.0 % 3 != 0);
                        model.retain(|held| held.0 % 3 != 0);
                    }
                    _ => {}
                }
                let count = |of: Byte| model.iter().filter(|held| **held == of).count();
                prop_assert_eq!(table.run(entry).filter(|held| *held == entry).count(), count(entry));
                prop_assert_eq!(table.len(), model.len());
            }
            for entry in &model {
                prop_assert!(table.run(*entry).any(|held| held == *entry));
            }
        }
    }
}
