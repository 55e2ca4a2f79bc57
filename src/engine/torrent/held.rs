//! Taking what other torrents of this daemon have: files with the same v2 root, and chunks, where the chunk lists of both
//! files are known. What is taken is written and hashed like blocks of a peer; it counts only if the torrent's own hashes
//! say so.

use std::collections::HashMap;

use bytes::Bytes;
use ccbt_xet::hash::{ChunkHash, Suite};
use tokio::runtime::Handle;
use tokio::sync::mpsc;

use super::actor::Actor;
use super::lend::Lent;
use super::peer::FromPeer;
use super::slab::SlabPool;
use super::{ToTorrent, TorrentHandle};
use crate::proto::bitfield::Bitfield;
use crate::proto::blocks::{BLOCK_BYTES, Block, Layout};
use crate::proto::metainfo::chunks::{ChunkLists, MARKED_BYTES, mark};
use crate::proto::metainfo::{File, Info};
use crate::proto::scheduler::PeerKey;
use crate::proto::torrent::{Now, Verdict};

/// Stands for what came from here where peers have their numbers.
const HERE: PeerKey = PeerKey(0);
/// Equal files are read in steps of this.
const STEP_BYTES: u64 = 128 << 10;
/// Blocks handed on at once.
const BATCH: usize = 16;

/// A part of the wanted torrent that is elsewhere.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Part {
    /// Where it belongs in the piece space, and its bytes.
    to: u64,
    len: u64,
    from: From,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum From {
    /// A pad file or a gap: zeros.
    Nowhere,
    Torrent {
        /// Its number among the lenders, and where it lies in its piece space.
        lender: usize,
        at: u64,
        /// What the bytes must hash to, if that is known.
        hash: Option<ChunkHash>,
    },
}

/// What is wanted, for a thread that reads and copies.
struct Wanted {
    info: Info,
    layout: Layout,
    lists: ChunkLists,
    /// Pieces that are wanted and missing.
    pieces: Bitfield,
}

impl Actor {
    /// Looks for missing content in other torrents, once what is on disk is known. Nothing is asked of peers meanwhile.
    pub(super) fn take_held(&mut self) {
        // Once is enough, and they are long.
        let lists = std::mem::take(&mut self.config.chunks);
        let (Some(lenders), Some(metadata)) = (self.config.lenders.clone(), &self.metadata) else {
            return;
        };
        let Some(pieces) = self.missing_pieces() else {
            return;
        };
        let rooted = metadata.info.files.iter().any(|file| file.root.is_some());
        if self.config.lazy || pieces.ones() == 0 || (lists.is_empty() && !rooted) {
            return;
        }
        let Some(content) = &self.content else { return };
        let wanted = Wanted {
            info: metadata.info.clone(),
            layout: content.disk.layout.clone(),
            lists,
            pieces,
        };
        self.files.taking = true;
        let others = lenders.lenders(&self.config.hashes.short());
        let (events, slabs) = (self.peer_events.clone(), self.config.shared.slabs.clone());
        let handle = self.handle.clone();
        tokio::spawn(async move {
            let taken = take(wanted, others, events.clone(), slabs).await;
            if let Err(error) = taken {
                tracing::error!(%error, "taking content from other torrents panicked");
            }
            // Behind the blocks, so that none of them is asked of a peer.
            drop(events.send(FromPeer::HeldDone).await);
            drop(handle);
        });
    }

    fn missing_pieces(&self) -> Option<Bitfield> {
        let have = self.machine.have()?;
        let mut missing = Bitfield::new(have.len());
        let priorities = &self.content.as_ref()?.priorities;
        for (piece, priority) in (0..).zip(priorities) {
            if *priority > 0 && !have.has(piece) {
                missing.set(piece);
            }
        }
        Some(missing)
    }

    /// Blocks that another torrent had.
    pub(super) fn held(&mut self, now: Now, blocks: Vec<(Block, Bytes)>) {
        let Some(content) = &self.content else { return };
        let mut runs: HashMap<u32, Vec<(u32, Bytes)>> = HashMap::new();
        for (block, bytes) in blocks {
            if self.machine.block_held(now, HERE, block) == Verdict::Write {
                self.files.held_bytes += u64::from(block.length);
                runs.entry(block.piece)
                    .or_default()
                    .push((block.begin, bytes));
            }
        }
        for (piece, blocks) in runs {
            self.config.shared.disk.write(&content.disk, piece, blocks);
        }
    }

    pub(super) fn held_done(&mut self, now: Now) {
        self.files.taking = false;
        if self.files.held_bytes > 0 {
            tracing::info!(bytes = self.files.held_bytes, "taken from other torrents");
        }
        self.hold(now);
        self.next_status = now;
    }
}

async fn take(
    wanted: Wanted,
    others: Vec<TorrentHandle>,
    events: mpsc::Sender<FromPeer>,
    slabs: SlabPool,
) -> Result<(), tokio::task::JoinError> {
    let mut lenders = Vec::new();
    for other in others {
        let (tx, rx) = tokio::sync::oneshot::channel();
        other.tell(ToTorrent::Lend(tx));
        lenders.extend(rx.await.ok().flatten());
    }
    let runtime = Handle::current();
    tokio::task::spawn_blocking(move || {
        let parts = plan(&wanted, &lenders);
        let sink = |blocks: Vec<(Block, Vec<u8>)>| {
            let mut kept = Vec::new();
            for (block, bytes) in blocks {
                kept.push((block, runtime.block_on(slabs.keep(bytes))?));
            }
            events.blocking_send(FromPeer::Held(kept)).ok()
        };
        // Nobody listens any more if this ends early.
        let _all = copy(&wanted, &lenders, &parts, sink);
    })
    .await
}

/// Where the missing bytes are, in the order of the piece space.
fn plan(wanted: &Wanted, lenders: &[Lent]) -> Vec<Part> {
    let missing = |file: &&File| file.length > 0 && wanted.touches(file.offset, file.length);
    let files: Vec<&File> = wanted.info.files.iter().filter(missing).collect();
    let mut parts = wanted.gaps();
    let mut left = Vec::new();
    for file in files {
        match same_root(file, lenders) {
            Some((lender, at)) => parts.extend(steps(file, lender, at)),
            None => left.extend(wanted.lists.of(file.index).map(|list| (file, list))),
        }
    }
    let mut chunks: HashMap<ChunkHash, Option<Spot>> = HashMap::new();
    for (_, list) in &left {
        chunks.extend(list.iter().map(|chunk| (chunk.hash, None)));
    }
    if !chunks.is_empty() {
        for (number, lender) in lenders.iter().enumerate() {
            let like = |file: &File| left.iter().any(|(wanted, _)| is_like(wanted, file));
            find_chunks(&mut chunks, number, lender, &lender.lists(like));
        }
    }
    for (file, list) in left {
        let mut gap = Gap::default();
        let mut to = file.offset;
        for chunk in list {
            if let Some(Some(spot)) = chunks.get(&chunk.hash) {
                gap.close(wanted, lenders, file, Some((to, *spot)), &mut parts);
                let len = chunk.len.into();
                let hash = Some(chunk.hash);
                parts.push(spot.part(to, len, spot.at, hash));
                gap = Gap {
                    begin: to + len,
                    before: Some((to, *spot)),
                };
            }
            to += u64::from(chunk.len);
        }
        gap.close(wanted, lenders, file, None, &mut parts);
    }
    parts.sort_by_key(|part| part.to);
    parts
}

/// Where a chunk lies.
#[derive(Debug, Clone, Copy)]
struct Spot {
    lender: usize,
    /// In the lender's piece space, and its file there.
    at: u64,
    file: (u64, u64),
}

impl Spot {
    fn part(&self, to: u64, len: u64, at: u64, hash: Option<ChunkHash>) -> Part {
        let lender = self.lender;
        let from = From::Torrent { lender, at, hash };
        Part { to, len, from }
    }

    /// What lies `to` of where this chunk belongs, if nothing was put in or taken out between; `None` beyond the file.
    fn beside(&self, from: u64, to: u64, len: u64) -> Option<u64> {
        let at = self.at.checked_add(to)?.checked_sub(from)?;
        (at >= self.file.0 && at + len <= self.file.1).then_some(at)
    }
}

/// Chunks that nobody has, one behind the other.
#[derive(Debug, Default)]
struct Gap {
    begin: u64,
    /// The chunk before it: where it belongs, and where it is.
    before: Option<(u64, Spot)>,
}

impl Gap {
    /// It ends where `after` belongs, or with the file. Of its blocks those are added that have their marks in what lies beside
    /// the neighbours: a small edit changes a whole chunk, but only a block or two.
    fn close(
        &self,
        wanted: &Wanted,
        lenders: &[Lent],
        file: &File,
        after: Option<(u64, Spot)>,
        parts: &mut Vec<Part>,
    ) {
        let begin = self.begin.max(file.offset);
        let end = after.map_or(file.offset + file.length, |(to, _)| to);
        let Some(marks) = wanted.lists.marks_of(file.index).filter(|_| begin < end) else {
            return;
        };
        let mut buf = vec![0; MARKED_BYTES as usize];
        for number in
            (begin - file.offset) / MARKED_BYTES..(end - file.offset).div_ceil(MARKED_BYTES)
        {
            let to = file.offset + number * MARKED_BYTES;
            let len = MARKED_BYTES.min(file.offset + file.length - to);
            let Some(wanted_mark) = marks.get(number as usize) else {
                return;
            };
            let room = buf.get_mut(..len as usize).unwrap_or_default();
            for (from, spot) in self.before.into_iter().chain(after) {
                let Some(at) = spot.beside(from, to, len) else {
                    continue;
                };
                let read = lenders.get(spot.lender).map(|lender| lender.read(at, room));
                if matches!(read, Some(Ok(()))) && mark(room) == *wanted_mark {
                    // What belongs to the neighbours is taken with them.
                    let (first, last) = (to.max(begin), (to + len).min(end));
                    parts.push(spot.part(first, last - first, at + (first - to), None));
                    break;
                }
            }
        }
    }
}

fn find_chunks(
    chunks: &mut HashMap<ChunkHash, Option<Spot>>,
    number: usize,
    lender: &Lent,
    lists: &ChunkLists,
) {
    for file in &lender.metadata.info.files {
        let mut at = file.offset;
        for chunk in lists.of(file.index).unwrap_or_default() {
            if let Some(place) = chunks.get_mut(&chunk.hash) {
                place.get_or_insert(Spot {
                    lender: number,
                    at,
                    file: (file.offset, file.offset + file.length),
                });
            }
            at += u64::from(chunk.len);
        }
    }
}

/// Whether one may be a changed copy of the other: cutting everything there is into chunks would take hours where much is.
fn is_like(a: &File, b: &File) -> bool {
    let name = |file: &File| file.path.parts().last().cloned();
    let near = a.length / 2 <= b.length && b.length / 2 <= a.length;
    near || name(a) == name(b)
}

fn same_root(file: &File, lenders: &[Lent]) -> Option<(usize, u64)> {
    let root = file.root?;
    let place = |(number, lender): (usize, &Lent)| {
        let files = &lender.metadata.info.files;
        let same = files.iter().find(|other| {
            other.root == Some(root) && other.length == file.length && lender.has(other)
        })?;
        Some((number, same.offset))
    };
    lenders.iter().enumerate().find_map(place)
}

fn steps(file: &File, lender: usize, at: u64) -> impl Iterator<Item = Part> + use<> {
    let (to, length) = (file.offset, file.length);
    (0..length)
        .step_by(STEP_BYTES as usize)
        .map(move |step| Part {
            to: to + step,
            len: STEP_BYTES.min(length - step),
            from: From::Torrent {
                lender,
                at: at + step,
                hash: None,
            },
        })
}

impl Wanted {
    /// A missing piece lies in this range.
    fn touches(&self, at: u64, len: u64) -> bool {
        let bytes = u64::from(self.layout.piece_bytes().max(1));
        let mut pieces = at / bytes..(at + len).div_ceil(bytes);
        pieces.any(|piece| self.pieces.has(piece as u32))
    }

    /// What lies between files, as far as it belongs to pieces.
    fn gaps(&self) -> Vec<Part> {
        let mut files: Vec<&File> = self.info.files.iter().filter(|f| f.length > 0).collect();
        files.sort_by_key(|file| file.offset);
        let mut parts = Vec::new();
        let mut at = 0;
        let end = files.last().map_or(0, |file| file.offset + file.length);
        let ends = files
            .iter()
            .map(|file| (file.offset, file.offset + file.length));
        for (begin, end) in ends.chain([(self.info.space_bytes.max(end), 0)]) {
            let mut gap = at;
            while gap < begin {
                let len = STEP_BYTES.min(begin - gap);
                parts.push(Part {
                    to: gap,
                    len,
                    from: From::Nowhere,
                });
                gap += len;
            }
            at = end;
        }
        parts
    }

    /// The block at `at`, and where it begins in the piece space.
    fn block_at(&self, at: u64) -> (Block, u64) {
        let bytes = u64::from(self.layout.piece_bytes().max(1));
        let piece = u32::try_from(at / bytes).unwrap_or(u32::MAX);
        let number = (at % bytes) as u32 / BLOCK_BYTES;
        let block = self.layout.block(piece, number);
        (
            block,
            self.layout.offset(piece) + u64::from(number * BLOCK_BYTES),
        )
    }
}

/// Reads the parts and gives whole blocks of missing pieces to `sink`, until that wants no more.
fn copy(
    wanted: &Wanted,
    lenders: &[Lent],
    parts: &[Part],
    mut sink: impl FnMut(Vec<(Block, Vec<u8>)>) -> Option<()>,
) -> Option<()> {
    let mut run = Run {
        at: 0,
        bytes: Vec::new(),
    };
    let mut batch = Vec::new();
    for part in parts {
        if !wanted.touches(part.to, part.len) {
            continue;
        }
        if part.to != run.at + run.bytes.len() as u64 {
            run = Run {
                at: part.to,
                bytes: Vec::new(),
            };
        }
        let begin = run.bytes.len();
        run.bytes.resize(begin + part.len as usize, 0);
        let room = run.bytes.get_mut(begin..).unwrap_or_default();
        if !part.read(lenders, room) {
            run.bytes.clear();
            run.at = part.to + part.len;
        }
        run.cut(wanted, &mut batch);
        if batch.len() >= BATCH {
            sink(std::mem::take(&mut batch))?;
        }
    }
    sink(batch)
}

impl Part {
    /// Fills `buf` with what is to be there. False: it is not what it was.
    fn read(&self, lenders: &[Lent], buf: &mut [u8]) -> bool {
        let From::Torrent { lender, at, hash } = &self.from else {
            return true;
        };
        let read = lenders.get(*lender).map(|lender| lender.read(*at, buf));
        let right = |hash: &ChunkHash| Suite::Blake3.chunk_hash(buf) == *hash;
        matches!(read, Some(Ok(()))) && hash.as_ref().is_none_or(right)
    }
}

/// Bytes that lie one behind the other.
struct Run {
    at: u64,
    bytes: Vec<u8>,
}

impl Run {
    /// Takes whole blocks off the front; what lies before the first of them is of no use.
    fn cut(&mut self, wanted: &Wanted, out: &mut Vec<(Block, Vec<u8>)>) {
        let end = self.at + self.bytes.len() as u64;
        let mut at = self.at;
        while at < end {
            let (block, begin) = wanted.block_at(at);
            let behind = begin + u64::from(block.length);
            if block.length == 0 {
                // Between the end of a piece and the next one.
                let bytes = u64::from(wanted.layout.piece_bytes().max(1));
                at = (at / bytes + 1) * bytes;
            } else if at > begin {
                at = behind.max(at + 1);
            } else if behind > end {
                break;
            } else {
                let from = (begin - self.at) as usize;
                let bytes = self.bytes.get(from..from + block.length as usize);
                if let (true, Some(bytes)) = (wanted.pieces.has(block.piece), bytes) {
                    out.push((block, bytes.to_vec()));
                }
                at = behind;
            }
        }
        let gone = usize::try_from(at - self.at).unwrap_or(usize::MAX);
        self.bytes.drain(..gone.min(self.bytes.len()));
        self.at = at;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Three files, one of them with an odd end, in pieces of 32 KiB.
    fn wanted(missing: &[bool]) -> Wanted {
        let lengths = [100_000u64, 7, 60_000];
        let list: String = (0..)
            .zip(lengths)
            .map(|(n, length): (u32, u64)| format!("d6:lengthi{length}e4:pathl2:f{n}ee"))
            .collect();
        let hashes = "a".repeat(5 * 20);
        let text = format!("d5:filesl{list}e4:name1:t12:piece lengthi32768e6:pieces100:{hashes}e");
        let info = Info::parse(text.as_bytes()).unwrap();
        let mut pieces = Bitfield::new(5);
        for (piece, missing) in (0..).zip(missing) {
            if *missing {
                pieces.set(piece);
            }
        }
        Wanted {
            layout: Layout::of(&info),
            info,
            lists: ChunkLists::default(),
            pieces,
        }
    }

    proptest! {
        #[test]
        fn exactly_the_blocks_that_lie_in_parts_come_out(
            cuts in prop::collection::btree_set(0u64..160_007, 0..12),
            holes in any::<u16>(),
            missing in prop::collection::vec(any::<bool>(), 5),
        ) {
            let wanted = wanted(&missing);
            let ends: Vec<u64> = cuts.iter().copied().chain([160_007]).collect();
            let begins = [0].into_iter().chain(cuts.iter().copied());
            let mut parts = Vec::new();
            let mut covered = vec![false; 160_007];
            for (n, (to, end)) in begins.zip(ends).enumerate() {
                if holes >> n & 1 == 0 && end > to {
                    covered[to as usize..end as usize].fill(true);
                    parts.push(Part { to, len: end - to, from: From::Nowhere });
                }
            }
            let mut found = Vec::new();
            copy(&wanted, &[], &parts, |blocks| {
                found.extend(blocks.into_iter().map(|(block, _)| block));
                Some(())
            });
            let mut expected = Vec::new();
            for piece in (0..5).filter(|piece| wanted.pieces.has(*piece)) {
                for number in 0..wanted.layout.blocks(piece) {
                    let block = wanted.layout.block(piece, number);
                    let at = wanted.layout.offset(piece) as usize + block.begin as usize;
                    if covered[at..at + block.length as usize].iter().all(|here| *here) {
                        expected.push(block);
                    }
                }
            }
            prop_assert_eq!(found, expected);
        }
    }
}
