//! Borrowed chunks: which ranges of which plain files hold them, in about 20 bytes a range.
//!
//! The table keeps 46 bits of a hash, so it can be wrong; the store hashes every borrowed range
//! before it serves it, so that costs a read. Dropping a source forgets its number at once and its
//! ranges when enough such ranges have gathered.

use std::collections::HashMap;
use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::{Mutex, RwLock};

use crate::chunk::MAX_CHUNK;
use crate::hash::ChunkHash;
use crate::index::{Slot, Table, prefix};

/// A plain file, as its owner numbers it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SourceId(pub u64);

/// Bits of a source that number it within its space.
const SPACE_SHIFT: u32 = 48;

impl SourceId {
    /// Source `number` of a space: each space has a reader of its own. `None` if the number takes more than 48 bits.
    pub fn new(space: u16, number: u64) -> Option<Self> {
        (number >> SPACE_SHIFT == 0).then_some(Self(u64::from(space) << SPACE_SHIFT | number))
    }

    /// The space it belongs to.
    pub fn space(self) -> u16 {
        (self.0 >> SPACE_SHIFT) as u16
    }

    /// Its number within the space.
    pub fn number(self) -> u64 {
        self.0 & ((1 << SPACE_SHIFT) - 1)
    }
}

/// Reads plain files for the store.
pub trait BorrowedFiles: Send + Sync + std::fmt::Debug {
    /// Fills `buf` from byte `offset` of a source.
    fn read_at(&self, source: SourceId, offset: u64, buf: &mut [u8]) -> io::Result<()>;

    /// A range of the source did not have the bytes it was borrowed for, or could not be read. The
    /// range is forgotten; the file is worth a new scan. Called without locks held.
    fn mismatch(&self, source: SourceId);
}

/// A range of a plain file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Borrowed {
    pub(crate) source: SourceId,
    pub(crate) offset: u64,
    pub(crate) len: u32,
}

/// Independent tables, chosen by the hash's first bits.
const SHARDS: usize = 64;

/// Different files tried for one chunk, and kept for it.
const SOURCES_PER_CHUNK_MAX: usize = 16;

/// Ranges of dropped sources are swept out once they are this part of all.
const SWEEP_DIVISOR: usize = 4;

const TAG_BITS: u32 = 40;
const SOURCE_BITS: u32 = 27;
const OFFSET_BITS: u32 = 44;
const LEN_BITS: u32 = 17;

/// Most significant first: 40 bits of the hash, number of the source (from 1), offset, length - 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Range(u128);

impl Range {
    /// `None` if a part does not fit: a file beyond 16 TiB, or more than 2^27 files.
    fn new(tag: u64, source: u32, offset: u64, len: u32) -> Option<Self> {
        let fits = source < 1 << SOURCE_BITS && offset < 1 << OFFSET_BITS;
        if !fits || !(1..=MAX_CHUNK as u32).contains(&len) {
            return None;
        }
        let head = (u128::from(tag) << SOURCE_BITS) | u128::from(source);
        let place = (u128::from(offset) << LEN_BITS) | u128::from(len - 1);
        Some(Self((head << (OFFSET_BITS + LEN_BITS)) | place))
    }

    const fn sample(tag: u64) -> Self {
        Self((tag as u128) << (128 - TAG_BITS))
    }

    const fn tag(self) -> u64 {
        (self.0 >> (128 - TAG_BITS)) as u64
    }

    const fn source(self) -> u32 {
        (self.0 >> (OFFSET_BITS + LEN_BITS)) as u32 & ((1 << SOURCE_BITS) - 1)
    }

    const fn offset(self) -> u64 {
        (self.0 >> LEN_BITS) as u64 & ((1 << OFFSET_BITS) - 1)
    }

    const fn len(self) -> u32 {
        (self.0 as u32 & ((1 << LEN_BITS) - 1)) + 1
    }
}

impl Slot for Range {
    const EMPTY: Self = Self(0);

    fn home(self, slots: usize) -> usize {
        ((u128::from(self.tag()) * slots as u128) >> TAG_BITS) as usize
    }
}

fn tag(hash: &ChunkHash) -> u64 {
    (prefix(hash.as_bytes()) << SHARDS.trailing_zeros()) >> (64 - TAG_BITS)
}

#[derive(Debug)]
pub(crate) struct BorrowTable {
    shards: Box<[RwLock<Table<Range>>]>,
    sources: RwLock<Sources>,
    /// Ranges whose source is gone.
    dead: AtomicUsize,
    sweeping: Mutex<()>,
}

/// What the table has of a source.
#[derive(Clone, Copy, Debug, Default)]
struct Held {
    ranges: u32,
    bytes: u64,
}

/// Sources and the small numbers they have in the table. There may be a million.
#[derive(Debug, Default)]
struct Sources {
    numbers: HashMap<SourceId, u32>,
    /// The one with number 1 is first. A place is used again once the table has none of the ranges that were its.
    by_number: Vec<Option<Source>>,
    free: Vec<u32>,
    /// Numbers of dropped sources: the table may still have ranges of theirs.
    dropped: Vec<u32>,
}

#[derive(Debug)]
struct Source {
    id: SourceId,
    held: Held,
}

impl BorrowTable {
    pub(crate) fn new() -> Self {
        Self {
            shards: (0..SHARDS).map(|_| RwLock::new(Table::new())).collect(),
            sources: RwLock::default(),
            dead: AtomicUsize::new(0),
            sweeping: Mutex::new(()),
        }
    }

    pub(crate) fn add(&self, source: SourceId, ranges: &[(ChunkHash, u64, u32)]) {
        // Held throughout, so that the source cannot go between numbering and adding.
        let mut sources = self.sources.write();
        let number = sources.number(source);
        let mut added = Held::default();
        for (hash, offset, len) in ranges {
            if let Some(range) = Range::new(tag(hash), number, *offset, *len)
                && self.add_range(hash, range)
            {
                added.ranges += 1;
                added.bytes += u64::from(*len);
            }
        }
        if let Some(of) = sources.get_mut(number) {
            of.held.ranges += added.ranges;
            of.held.bytes += added.bytes;
        }
    }

    /// Adds a range unless its source has the chunk already or enough other sources have: a file
    /// of zeros is one chunk a million times.
    fn add_range(&self, hash: &ChunkHash, range: Range) -> bool {
        let mut shard = self.shard(hash).write();
        let (mut same_tag, mut known) = (0, false);
        for other in shard.run(range).filter(|other| other.tag() == range.tag()) {
            same_tag += 1;
            known |= other.source() == range.source() && other.len() == range.len();
        }
        if known || same_tag >= SOURCES_PER_CHUNK_MAX {
            return false;
        }
        shard.insert(range);
        true
    }

    pub(crate) fn remove_source(&self, source: SourceId) {
        let count = {
            let mut sources = self.sources.write();
            sources.give_up(source)
        };
        let dead = count.map_or(0, |held| held.ranges as usize);
        let dead = self.dead.fetch_add(dead, Ordering::Relaxed) + dead;
        if dead > 1024 && dead > self.entries() / SWEEP_DIVISOR {
            self.sweep();
        }
    }

    pub(crate) fn remove_space(&self, space: u16) {
        let gone: Vec<SourceId> = {
            let sources = self.sources.read();
            sources
                .numbers
                .keys()
                .copied()
                .filter(|source| source.space() == space)
                .collect()
        };
        for source in gone {
            self.remove_source(source);
        }
    }

    fn sweep(&self) {
        let Some(_only) = self.sweeping.try_lock() else {
            return;
        };
        self.dead.store(0, Ordering::Relaxed);
        // Held throughout: no number is given again before all ranges of the one that had it are gone.
        let mut sources = self.sources.write();
        for shard in &self.shards {
            shard
                .write()
                .retain(|range| sources.get(range.source()).is_some());
        }
        let mut free = std::mem::take(&mut sources.dropped);
        sources.free.append(&mut free);
    }

    pub(crate) fn find(&self, hash: &ChunkHash) -> Vec<Borrowed> {
        let wanted = tag(hash);
        let mut ranges = Vec::new();
        for range in self.shard(hash).read().run(Range::sample(wanted)) {
            if range.tag() == wanted {
                ranges.push(range);
            }
        }
        let sources = self.sources.read();
        let mut found = Vec::new();
        for range in ranges {
            if let Some(of) = sources.get(range.source()) {
                let (source, offset, len) = (of.id, range.offset(), range.len());
                found.push(Borrowed {
                    source,
                    offset,
                    len,
                });
            }
        }
        found
    }

    pub(crate) fn contains(&self, hash: &ChunkHash) -> bool {
        !self.find(hash).is_empty()
    }

    /// Forgets one range, if it is still as it was found.
    pub(crate) fn remove(&self, hash: &ChunkHash, range: Borrowed) {
        let mut sources = self.sources.write();
        let Some(number) = sources.numbers.get(&range.source).copied() else {
            return;
        };
        let Some(range) = Range::new(tag(hash), number, range.offset, range.len) else {
            return;
        };
        if self.shard(hash).write().remove(range)
            && let Some(of) = sources.get_mut(number)
        {
            of.held.ranges -= 1;
            of.held.bytes -= u64::from(range.len());
        }
    }

    pub(crate) fn has_sources(&self) -> bool {
        !self.sources.read().numbers.is_empty()
    }

    /// Ranges of sources that are still there.
    pub(crate) fn len(&self) -> usize {
        let sources = self.sources.read();
        sources.held().map(|held| held.ranges as usize).sum()
    }

    /// Their bytes together.
    pub(crate) fn bytes(&self) -> u64 {
        let sources = self.sources.read();
        sources.held().map(|held| held.bytes).sum()
    }

    pub(crate) fn memory_bytes(&self) -> usize {
        self.shards
            .iter()
            .map(|shard| shard.read().memory_bytes())
            .sum()
    }

    fn entries(&self) -> usize {
        self.shards.iter().map(|shard| shard.read().len()).sum()
    }

    fn shard(&self, hash: &ChunkHash) -> &RwLock<Table<Range>> {
        &self.shards[usize::from(hash.as_bytes()[0]) * SHARDS / 256]
    }
}

impl Sources {
    fn number(&mut self, source: SourceId) -> u32 {
        if let Some(number) = self.numbers.get(&source) {
            return *number;
        }
        let new = Some(Source {
            id: source,
            held: Held::default(),
        });
        let number = match self.free.pop() {
            Some(number) => number,
            None => {
                self.by_number.push(None);
                // One that is too large for a range has none.
                u32::try_from(self.by_number.len()).unwrap_or(u32::MAX)
            }
        };
        if let Some(place) = self.by_number.get_mut(index(number)) {
            *place = new;
        }
        self.numbers.insert(source, number);
        number
    }

    fn get(&self, number: u32) -> Option<&Source> {
        self.by_number.get(index(number))?.as_ref()
    }

    fn get_mut(&mut self, number: u32) -> Option<&mut Source> {
        self.by_number.get_mut(index(number))?.as_mut()
    }

    /// Forgets a source. Returns what the table has of it still.
    fn give_up(&mut self, source: SourceId) -> Option<Held> {
        let number = self.numbers.remove(&source)?;
        let held = self.by_number.get_mut(index(number))?.take()?.held;
        match held.ranges {
            0 => self.free.push(number),
            _ => self.dropped.push(number),
        }
        Some(held)
    }

    fn held(&self) -> impl Iterator<Item = Held> {
        self.by_number.iter().flatten().map(|source| source.held)
    }
}

/// Where in a list the source with this number is.
fn index(number: u32) -> usize {
    (number as usize).wrapping_sub(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hash(number: u64) -> ChunkHash {
        ChunkHash::from_bytes(*blake3::hash(&number.to_le_bytes()).as_bytes())
    }

    #[test]
    fn ranges_come_back_exactly() {
        let table = BorrowTable::new();
        let extremes = [
            (hash(1), 0, 1),
            (hash(2), (1 << OFFSET_BITS) - 1, MAX_CHUNK as u32),
            (hash(3), 123_456_789_012, 65_537),
        ];
        table.add(SourceId(u64::MAX), &extremes);
        table.add(
            SourceId(7),
            &[(hash(4), 1 << OFFSET_BITS, 5), (hash(5), 0, 0)],
        );
        assert_eq!(table.len(), 3);
        for (hash, offset, len) in extremes {
            let want = Borrowed {
                source: SourceId(u64::MAX),
                offset,
                len,
            };
            assert_eq!(table.find(&hash), [want]);
        }
        assert!(!table.contains(&hash(4)));
    }

    #[test]
    fn sources_come_and_go_within_the_memory_budget() {
        let table = BorrowTable::new();
        let per_source = 3000;
        for source in 0..100 {
            let numbers = source * per_source..(source + 1) * per_source;
            let ranges: Vec<_> = numbers.map(|n| (hash(n), n, 70_000)).collect();
            table.add(SourceId(source), &ranges);
            if source > 20 {
                let each = table.memory_bytes() as f64 / table.entries() as f64;
                assert!(each < 24.0, "{each} bytes a range");
            }
        }
        for source in (0..100).step_by(2) {
            table.remove_source(SourceId(source));
            assert!(!table.contains(&hash(source * per_source)));
        }
        assert_eq!(table.len(), 50 * per_source as usize);
        assert!(
            table.entries() < 80 * per_source as usize,
            "{} are left",
            table.entries()
        );
        let kept = 51 * per_source + 8;
        let want = Borrowed {
            source: SourceId(51),
            offset: kept,
            len: 70_000,
        };
        assert_eq!(table.find(&hash(kept)), [want]);
        table.remove(&hash(kept), want);
        assert!(!table.contains(&hash(kept)));
    }

    #[test]
    fn one_chunk_everywhere_takes_few_entries() {
        let table = BorrowTable::new();
        let zeros: Vec<_> = (0..100_000)
            .map(|n| (hash(0), n * 131_072, 131_072))
            .collect();
        for source in 0..100 {
            table.add(
                SourceId(source),
                &zeros[..if source == 0 { 100_000 } else { 10 }],
            );
        }
        assert_eq!(table.len(), SOURCES_PER_CHUNK_MAX);
    }
}
