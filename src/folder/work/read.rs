//! Reading: what is here is answered at once, what is not is fetched with the reply moved along, never with a thread
//! waiting.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use ccbt_mount::{Reply, VolumeError};
use ccbt_xet::hash::NodeId;
use parking_lot::Mutex;

use super::body::{Extract, Stored};
use super::buffers::Buffers;
use super::extents::Source;
use super::inodes::Ino;
use super::nodes::{StoreError, StoreNodes};
use super::open::OpenFile;
use super::runs::{Interest, Runs, SMALL_MAX};
use super::stats::Absent;
use super::{FetchError, Inner, Priority, WantedChunk};
use crate::folder::content::{ContentReader, Located};
use crate::folder::tree::{NodeRef, NodesError};

/// A chunk that did not come is not asked for again so soon: the kernel repeats a failed read at once, and an
/// application would wait twice the timeout.
const FAILED_FOR_NS: u64 = 10_000_000_000;

/// Most failed chunks remembered.
const FAILED_MAX: usize = 4096;

/// A read that is still incomplete after so many answers of the fetcher fails.
const ROUNDS_MAX: u32 = 16;

/// First read-ahead: what one more second of a slow reader needs.
const AHEAD_MIN: u64 = (1 << 20) + (128 << 10);
const AHEAD_MAX: u64 = 32 << 20;

/// How far a read may be from where a sequential one would be: the kernel's read-ahead arrives out of order.
const AHEAD_SLACK: u64 = 1 << 20;

/// Bytes of a file whose chunks are listed at once when the whole list is looked through.
const LIST_BYTES: u64 = 64 << 20;

/// Bytes asked for ahead of all readers of a folder together.
const AHEAD_BUDGET: u64 = 256 << 20;

/// What readers of a folder share.
#[derive(Debug, Default)]
pub(super) struct Reads {
    /// When the fetch of a chunk or node failed, in nanoseconds, and what readers were told.
    failed: Mutex<HashMap<[u8; 32], (u64, VolumeError)>>,
    ahead_bytes: AtomicU64,
    runs: Mutex<Runs>,
    buffers: Buffers,
}

/// The read-ahead of one handle.
#[derive(Debug, Default)]
pub(super) struct Ahead {
    /// Where a sequential reader goes on.
    next: u64,
    window: u64,
    /// Everything before this offset was asked for.
    asked: u64,
}

/// How much of a file is here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Presence {
    Remote,
    Partial,
    Local,
    Dirty,
}

/// What a read lacks.
pub(super) enum Lack {
    Chunks(Vec<WantedChunk>),
    Nodes(Vec<(u8, NodeId)>),
    Failed(VolumeError),
}

struct Job {
    inner: Arc<Inner>,
    extract: Extract,
    reply: Reply<Bytes>,
    rounds: u32,
}

impl Inner {
    pub(crate) fn read(
        self: &Arc<Self>,
        file: &OpenFile,
        offset: u64,
        size: u32,
        reply: Reply<Bytes>,
    ) {
        let range = offset..offset.saturating_add(u64::from(size));
        let extract = file.body.extract(range);
        let wanted = file.ahead.lock().advance(offset, u64::from(size));
        let stored = extract.stored.clone();
        let was_here = Job {
            inner: self.clone(),
            extract,
            reply,
            rounds: 0,
        }
        .run();
        if let Some(wanted) = wanted {
            self.read_ahead(&stored, wanted, &file.interest);
        }
        if offset == 0 && stored.size <= SMALL_MAX {
            self.read_on(file.ino, !was_here);
        }
    }

    /// Asks for the small files that follow in the directory, if that is how they are being read.
    fn read_on(self: &Arc<Self>, ino: Ino, lacking: bool) {
        let next = {
            let core = self.core.lock();
            let spot = core.inodes.get(ino).and_then(|inode| inode.names.first());
            let mut runs = self.reads.runs.lock();
            spot.and_then(|spot| runs.opened(&core.state, spot.dir, &spot.name, lacking))
        };
        let Some((files, interest)) = next else {
            return;
        };
        let mut want = Vec::new();
        for stored in files {
            if let Ok(chunks) = self.locate(&stored, 0..stored.size) {
                want.extend(self.absent(&chunks));
            }
        }
        self.ask_ahead(want, interest);
    }

    pub(super) fn assemble(&self, extract: &Extract) -> Result<Bytes, Lack> {
        let len = match (extract.pieces.first(), extract.pieces.last()) {
            (Some((first, _)), Some((last, _))) => last.range.end - first.range.start,
            _ => return Ok(Bytes::new()),
        };
        let mut out = self.reads.buffers.take(len as usize);
        let mut rest = out.as_mut();
        let mut lacking = Vec::new();
        for (piece, file) in &extract.pieces {
            let (buf, after) = rest.split_at_mut((piece.range.end - piece.range.start) as usize);
            rest = after;
            match (piece.source, file) {
                (Source::Zero, _) => buf.fill(0),
                (Source::Data { at, .. }, Some(file)) => {
                    let read = file.read_at(at, buf);
                    read.map_err(|error| Lack::Failed(super::disk_error(&error)))?;
                }
                (Source::Data { .. }, None) => return Err(Lack::Failed(VolumeError::Io)),
                (Source::Base, _) => {
                    self.read_stored(&extract.stored, piece.range.clone(), buf, &mut lacking)?;
                }
            }
        }
        match lacking.is_empty() {
            true => Ok(out.freeze()),
            false => Err(Lack::Chunks(lacking)),
        }
    }

    /// Fills all of `buf` with a range of a version; what is not here is added to `lacking`.
    fn read_stored(
        &self,
        stored: &Stored,
        range: Range<u64>,
        buf: &mut [u8],
        lacking: &mut Vec<WantedChunk>,
    ) -> Result<(), Lack> {
        let (mut at, mut rest) = (range.start, buf);
        for located in self.locate(stored, range.clone())? {
            let to = located.end().min(range.end);
            let (Some(skip), Some(len)) = (at.checked_sub(located.offset), to.checked_sub(at))
            else {
                return Err(Lack::Failed(VolumeError::Io));
            };
            let Some((part, after)) = rest.split_at_mut_checked(len as usize) else {
                return Err(Lack::Failed(VolumeError::Io));
            };
            if !self.read_chunk(&located, skip as u32, part)? {
                lacking.push(wanted(&located));
            }
            (at, rest) = (to, after);
        }
        match rest.is_empty() {
            true => Ok(()),
            false => Err(Lack::Failed(VolumeError::Io)),
        }
    }

    fn read_chunk(&self, located: &Located, skip: u32, part: &mut [u8]) -> Result<bool, Lack> {
        let store = &self.config.store;
        let hash = &located.chunk.hash;
        let failed = |error| {
            tracing::error!(%error, chunk = %hash, "a chunk cannot be read");
            Lack::Failed(VolumeError::Io)
        };
        match store.read_range(hash, skip, part).map_err(failed)? {
            None => Ok(false),
            Some(len) if len == located.chunk.len => Ok(true),
            // The recipe lies about the length of a chunk it names.
            Some(_) => Err(Lack::Failed(VolumeError::Io)),
        }
    }

    fn locate(&self, stored: &Stored, range: Range<u64>) -> Result<Vec<Located>, Lack> {
        let nodes = StoreNodes(&self.config.store);
        let malformed = |error: &dyn std::fmt::Display| {
            tracing::error!(%error, "the recipe of a file is damaged");
            Lack::Failed(VolumeError::Io)
        };
        let reader = ContentReader::new(&nodes, &stored.content.0, stored.size)
            .map_err(|error| malformed(&error))?;
        reader.locate(range).map_err(|error| match error {
            NodesError::Missing(nodes) => Lack::Nodes(
                nodes
                    .iter()
                    .map(|node| (node.kind.code(), node.id))
                    .collect(),
            ),
            error => malformed(&error),
        })
    }

    /// Asks for what a sequential reader will want. Nothing here waits for it or minds its failing.
    fn read_ahead(self: &Arc<Self>, stored: &Stored, range: Range<u64>, interest: &Arc<()>) {
        let range = range.start..range.end.min(stored.size);
        if range.is_empty() {
            return;
        }
        let chunks = match self.locate(stored, range) {
            Ok(chunks) => chunks,
            Err(Lack::Nodes(nodes)) => {
                self.config
                    .fetch
                    .nodes(nodes, Priority::ReadAhead, Box::new(|_| {}));
                return;
            }
            Err(_) => return,
        };
        let interest = Arc::downgrade(interest);
        self.ask_ahead(self.absent(&chunks).collect(), interest);
    }

    fn absent(&self, chunks: &[Located]) -> impl Iterator<Item = WantedChunk> {
        let absent = |located: &&Located| !self.config.store.contains(&located.chunk.hash);
        chunks.iter().filter(absent).map(wanted)
    }

    /// Fetches for readers that are not there yet, as far as the budget of all of them goes.
    fn ask_ahead(self: &Arc<Self>, want: Vec<WantedChunk>, interest: Interest) {
        let bytes: u64 = want.iter().map(|chunk| u64::from(chunk.len)).sum();
        if bytes == 0 {
            return;
        }
        let before = self.reads.ahead_bytes.fetch_add(bytes, Ordering::Relaxed);
        if before + bytes > AHEAD_BUDGET {
            self.reads.ahead_bytes.fetch_sub(bytes, Ordering::Relaxed);
            return;
        }
        let inner = self.clone();
        let done = Box::new(move |_| {
            inner.reads.ahead_bytes.fetch_sub(bytes, Ordering::Relaxed);
        });
        self.config.fetch.ahead(want, interest, done);
    }

    /// How much of a file is here.
    pub(super) fn presence(&self, ino: Ino) -> Result<Presence, VolumeError> {
        let stored = {
            let core = self.core.lock();
            let inode = core.inode(ino)?;
            if inode.body.as_ref().is_some_and(|body| body.is_dirty()) {
                return Ok(Presence::Dirty);
            }
            let (_, node) = core.node_of(inode).ok_or(VolumeError::NoAttribute)?;
            Stored {
                content: node.version.content,
                size: node.version.size,
            }
        };
        Ok(self.presence_of(&stored))
    }

    pub(super) fn presence_of(&self, stored: &Stored) -> Presence {
        let store = &self.config.store;
        let (mut here, mut all) = (0_u64, 0);
        let unlisted = self.each_chunk(stored, &mut |located| {
            all += 1;
            here += u64::from(store.contains(&located.chunk.hash));
        });
        match unlisted {
            Ok(unlisted) if unlisted.is_empty() && here == all => Presence::Local,
            Ok(_) if here > 0 => Presence::Partial,
            _ => Presence::Remote,
        }
    }

    /// Shows `each` what of a version is not here: chunks, and the nodes it takes to know them.
    pub(super) fn each_missing(
        &self,
        stored: &Stored,
        each: &mut dyn FnMut(Absent),
    ) -> Result<(), VolumeError> {
        let store = &self.config.store;
        let unlisted = self.each_chunk(stored, &mut |found| {
            if !store.contains(&found.chunk.hash) {
                each(Absent::Chunk(wanted(found)));
            }
        });
        let unlisted = unlisted.map_err(|error| {
            tracing::error!(%error, "the recipe of a file is damaged");
            VolumeError::Io
        })?;
        for node in unlisted {
            each(Absent::Node(node.kind.code(), node.id));
        }
        Ok(())
    }

    /// Shows `each` a file's chunks in order, with only a part of the list in memory. Returns the nodes of the list that
    /// are not here, as far as they are known; what they list is left out.
    pub(super) fn each_chunk(
        &self,
        stored: &Stored,
        each: &mut dyn FnMut(&Located),
    ) -> Result<Vec<NodeRef>, NodesError<StoreError>> {
        let nodes = StoreNodes(&self.config.store);
        let reader = ContentReader::new(&nodes, &stored.content.0, stored.size)
            .map_err(NodesError::Input)?;
        let mut missing = Vec::new();
        let mut at = 0;
        while at < stored.size {
            let until = at.saturating_add(LIST_BYTES).min(stored.size);
            match reader.locate(at..until) {
                Ok(found) => {
                    found.iter().for_each(&mut *each);
                    at = found.last().map_or(until, Located::end).max(until);
                }
                Err(NodesError::Missing(nodes)) => {
                    missing.extend(nodes);
                    at = until;
                }
                Err(error) => return Err(error),
            }
        }
        missing.dedup();
        Ok(missing)
    }
}

fn wanted(located: &Located) -> WantedChunk {
    WantedChunk {
        hash: located.chunk.hash,
        len: located.chunk.len,
        segment: located.segment,
    }
}

impl Job {
    /// Answers at once or asks for what is lacking; whether nothing was.
    fn run(mut self) -> bool {
        let lack = match self.inner.assemble(&self.extract) {
            Ok(bytes) => {
                self.reply.send(Ok(bytes));
                return true;
            }
            Err(Lack::Failed(error)) => {
                self.reply.send(Err(error));
                return true;
            }
            Err(lack) => lack,
        };
        let names = lack.names();
        self.rounds += 1;
        let failed = self.inner.reads.failed(&names, self.inner.now_ns());
        let is_endless = self.rounds > ROUNDS_MAX;
        if let Some(error) = failed.or_else(|| is_endless.then_some(VolumeError::TimedOut)) {
            self.reply.send(Err(error));
            return false;
        }
        let inner = self.inner.clone();
        let done = Box::new(move |result| self.resume(&names, result));
        match lack {
            Lack::Chunks(want) => inner.config.fetch.chunks(want, Priority::Blocking, done),
            Lack::Nodes(want) => inner.config.fetch.nodes(want, Priority::Blocking, done),
            Lack::Failed(_) => {}
        }
        false
    }

    fn resume(self, names: &[[u8; 32]], result: Result<(), FetchError>) {
        match result {
            Ok(()) => {
                self.run();
            }
            Err(FetchError::NoSpace)
                if self.rounds < ROUNDS_MAX && self.inner.config.fetch.make_room() =>
            {
                self.run();
            }
            Err(error) => {
                let error = match error {
                    FetchError::NoSpace => VolumeError::NoSpace,
                    FetchError::NoPeer | FetchError::TimedOut | FetchError::Closed => {
                        VolumeError::TimedOut
                    }
                };
                let now = self.inner.now_ns();
                self.inner.reads.note_failed(names, now, error);
                self.reply.send(Err(error));
            }
        }
    }
}

impl Lack {
    fn names(&self) -> Vec<[u8; 32]> {
        match self {
            Self::Chunks(chunks) => chunks.iter().map(|chunk| *chunk.hash.as_bytes()).collect(),
            Self::Nodes(nodes) => nodes.iter().map(|(_, id)| *id.as_bytes()).collect(),
            Self::Failed(_) => Vec::new(),
        }
    }
}

impl Reads {
    /// Why one of these failed a moment ago, if it did.
    fn failed(&self, names: &[[u8; 32]], now_ns: u64) -> Option<VolumeError> {
        let failed = self.failed.lock();
        let mut known = names.iter().filter_map(|name| failed.get(name));
        let lately = known.find(|(at, _)| now_ns.saturating_sub(*at) < FAILED_FOR_NS);
        lately.map(|(_, error)| *error)
    }

    fn note_failed(&self, names: &[[u8; 32]], now_ns: u64, error: VolumeError) {
        let mut failed = self.failed.lock();
        if failed.len() + names.len() > FAILED_MAX {
            failed.retain(|_, (at, _)| now_ns.saturating_sub(*at) < FAILED_FOR_NS);
        }
        let room = FAILED_MAX.saturating_sub(failed.len());
        let noted = names.iter().take(room);
        failed.extend(noted.map(|name| (*name, (now_ns, error))));
    }
}

impl Ahead {
    /// Notes a read; the range to ask for, if it is time.
    fn advance(&mut self, offset: u64, len: u64) -> Option<Range<u64>> {
        let end = offset.saturating_add(len);
        let near = offset.abs_diff(self.next) <= AHEAD_SLACK;
        if !near {
            *self = Self {
                next: end,
                window: 0,
                asked: end,
            };
            return None;
        }
        self.next = self.next.max(end);
        self.asked = self.asked.max(end);
        if self.asked - self.next > self.window / 2 {
            return None;
        }
        self.window = (self.window * 2).clamp(AHEAD_MIN, AHEAD_MAX);
        let from = self.asked;
        self.asked = self.next.saturating_add(self.window);
        (from < self.asked).then_some(from..self.asked)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sequential_reader_is_read_ahead_in_growing_steps_and_a_random_one_not() {
        let mut ahead = Ahead::default();
        let mut asked = 0;
        let mut steps = Vec::new();
        for i in 0..1024 {
            if let Some(range) = ahead.advance(i * 131_072, 131_072) {
                assert!(range.start >= asked, "asked twice");
                asked = range.end;
                steps.push(range.end - range.start);
            }
        }
        assert!(steps.len() < 24, "{} requests", steps.len());
        assert!(asked <= 1024 * 131_072 + AHEAD_MAX, "{asked}");
        let mut random = Ahead::default();
        for i in 1..100 {
            assert_eq!(random.advance((i * 7919 % 100) << 24, 4096), None, "{i}");
        }
    }
}
