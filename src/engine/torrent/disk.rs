//! Threads that write and hash. A piece belongs to one of them, so its blocks are hashed in order without a lock.
//!
//! Blocks are written as they come, runs of them in one call, and hashed from memory. One that comes before its turn is kept
//! for a while; when too many are, it is read back later instead.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;

use bytes::Bytes;
use tokio::sync::mpsc::UnboundedSender;

use super::hashes::{PieceHasher, PieceHashes, digests};
use super::storage::Storage;
use crate::proto::bitfield::Bitfield;
use crate::proto::blocks::{BLOCK_BYTES, Layout};
use crate::proto::metainfo::merkle::TreeHash;
use crate::proto::scheduler::PeerKey;
use crate::proto::wire::HashRange;

/// Bytes a thread keeps of blocks that came before their turn.
const KEPT_BYTES_MAX: usize = 2 << 20;
/// Threads, unless there are fewer cores.
const THREADS_MAX: usize = 8;

/// What a thread tells the torrent's actor.
#[derive(Debug)]
pub(super) enum DiskEvent {
    Verified(u32),
    Failed {
        piece: u32,
        digests: Vec<u64>,
    },
    Examined {
        piece: u32,
        digests: Vec<u64>,
    },
    /// The leaves of a piece's hash tree, for a peer; `None` if it cannot be read.
    Leaves {
        key: PeerKey,
        range: HashRange,
        leaves: Option<Vec<TreeHash>>,
    },
    /// The piece could not be written or read; it counts as missing.
    Broken {
        piece: u32,
        error: io::Error,
    },
}

/// A torrent as the threads know it.
#[derive(Debug)]
pub(super) struct DiskTorrent {
    id: u64,
    pub(super) storage: Storage,
    pub(super) layout: Layout,
    hashes: PieceHashes,
    events: UnboundedSender<DiskEvent>,
}

enum Job {
    Write {
        torrent: Arc<DiskTorrent>,
        piece: u32,
        blocks: Vec<(u32, Bytes)>,
    },
    Examine {
        torrent: Arc<DiskTorrent>,
        piece: u32,
    },
    /// Answered once everything before it is done.
    Barrier(Sender<()>),
}

/// See the module documentation. Cheap to clone; the threads end with the last clone.
#[derive(Debug, Clone)]
pub struct DiskPool {
    threads: Arc<[Sender<Job>]>,
    next_id: Arc<AtomicU64>,
}

impl DiskPool {
    /// Starts as many threads as there are cores.
    pub fn start() -> io::Result<Self> {
        let cores = thread::available_parallelism().map_or(1, usize::from);
        let spawn = |n: usize| {
            let (sender, jobs) = channel();
            let name = format!("disk-{n}");
            thread::Builder::new()
                .name(name)
                .spawn(move || Worker::default().run(&jobs))?;
            Ok(sender)
        };
        let threads: io::Result<Vec<_>> = (0..cores.min(THREADS_MAX)).map(spawn).collect();
        Ok(Self {
            threads: threads?.into(),
            next_id: Arc::default(),
        })
    }

    pub(super) fn torrent(
        &self,
        storage: Storage,
        layout: Layout,
        hashes: PieceHashes,
        events: UnboundedSender<DiskEvent>,
    ) -> Arc<DiskTorrent> {
        Arc::new(DiskTorrent {
            id: self.next_id.fetch_add(1, Ordering::Relaxed),
            storage,
            layout,
            hashes,
            events,
        })
    }

    /// Writes and hashes blocks of one piece; `blocks` are beginnings and bytes.
    pub(super) fn write(&self, torrent: &Arc<DiskTorrent>, piece: u32, blocks: Vec<(u32, Bytes)>) {
        let torrent = Arc::clone(torrent);
        self.give(
            piece,
            Job::Write {
                torrent,
                piece,
                blocks,
            },
        );
    }

    /// Reads a piece that is on disk and tells its blocks' digests.
    pub(super) fn examine(&self, torrent: &Arc<DiskTorrent>, piece: u32) {
        let torrent = Arc::clone(torrent);
        self.give(piece, Job::Examine { torrent, piece });
    }

    /// Waits until everything given so far is done.
    pub(super) fn barrier(&self) {
        let (done, all) = channel();
        for thread in self.threads.iter() {
            // An error means that it has ended, and so has its work.
            drop(thread.send(Job::Barrier(done.clone())));
        }
        drop(done);
        while all.recv().is_ok() {}
    }

    fn give(&self, piece: u32, job: Job) {
        let thread = self.threads.get(piece as usize % self.threads.len().max(1));
        if thread.is_none_or(|thread| thread.send(job).is_err()) {
            tracing::error!("a disk thread has ended");
        }
    }
}

/// A piece that is not whole yet.
struct Unfinished {
    hasher: PieceHasher,
    /// Blocks before their turn; `None` is read back.
    waiting: BTreeMap<u32, Option<Bytes>>,
}

#[derive(Default)]
struct Worker {
    pieces: HashMap<(u64, u32), Unfinished>,
    kept: usize,
}

impl Worker {
    fn run(mut self, jobs: &Receiver<Job>) {
        while let Ok(job) = jobs.recv() {
            match job {
                Job::Write {
                    torrent,
                    piece,
                    blocks,
                } => self.blocks(&torrent, piece, blocks),
                // Who waits may have gone away.
                Job::Barrier(done) => drop(done.send(())),
                Job::Examine { torrent, piece } => {
                    let event = match read_digests(&torrent, piece) {
                        Ok(digests) => DiskEvent::Examined { piece, digests },
                        Err(error) => DiskEvent::Broken { piece, error },
                    };
                    torrent.tell(event);
                }
            }
        }
    }

    fn blocks(&mut self, torrent: &DiskTorrent, piece: u32, blocks: Vec<(u32, Bytes)>) {
        match self.take(torrent, piece, blocks) {
            Ok(None) => {}
            Ok(Some(hasher)) => torrent.tell(finish(torrent, piece, hasher)),
            Err(error) => {
                self.forget(torrent, piece);
                torrent.tell(DiskEvent::Broken { piece, error });
            }
        }
    }

    /// Writes the blocks and hashes as far as it goes; the hasher once it has the whole piece.
    fn take(
        &mut self,
        torrent: &DiskTorrent,
        piece: u32,
        mut blocks: Vec<(u32, Bytes)>,
    ) -> io::Result<Option<PieceHasher>> {
        blocks.sort_by_key(|(begin, _)| *begin);
        write_runs(torrent, piece, &blocks)?;
        let unfinished = self
            .pieces
            .entry((torrent.id, piece))
            .or_insert_with(|| Unfinished {
                hasher: torrent.hashes.begin(piece),
                waiting: BTreeMap::new(),
            });
        for (begin, data) in blocks {
            if begin == unfinished.hasher.at() {
                unfinished.hasher.update(&data);
            } else if begin > unfinished.hasher.at() {
                let keep = self.kept + data.len() <= KEPT_BYTES_MAX;
                self.kept += if keep { data.len() } else { 0 };
                // Copied, as the buffer it lies in must be free again soon: others wait for one.
                let kept = keep.then(|| Bytes::copy_from_slice(&data));
                let before = unfinished.waiting.insert(begin, kept);
                self.kept -= before.flatten().map_or(0, |data| data.len());
            }
            while let Some(data) = unfinished.waiting.remove(&unfinished.hasher.at()) {
                match data {
                    Some(data) => {
                        self.kept -= data.len();
                        unfinished.hasher.update(&data);
                    }
                    None => {
                        let number = unfinished.hasher.at() / BLOCK_BYTES;
                        let block = torrent.layout.block(piece, number);
                        let mut data = vec![0; block.length as usize];
                        let offset = torrent.layout.offset(piece) + u64::from(block.begin);
                        torrent.storage.read(offset, &mut data)?;
                        unfinished.hasher.update(&data);
                    }
                }
            }
        }
        let whole = unfinished.hasher.at() >= torrent.layout.piece_len(piece);
        Ok(if whole {
            self.forget(torrent, piece)
        } else {
            None
        })
    }

    fn forget(&mut self, torrent: &DiskTorrent, piece: u32) -> Option<PieceHasher> {
        let unfinished = self.pieces.remove(&(torrent.id, piece))?;
        let kept = unfinished.waiting.values().flatten();
        self.kept -= kept.map(|data| data.len()).sum::<usize>();
        Some(unfinished.hasher)
    }
}

impl DiskTorrent {
    fn tell(&self, event: DiskEvent) {
        if self.events.send(event).is_err() {
            tracing::debug!("a torrent was closed before its last pieces were checked");
        }
    }

    /// Whether the piece on disk is right. A file that is missing or short means no.
    pub(super) fn check(&self, piece: u32, buf: &mut Vec<u8>) -> bool {
        buf.resize(BLOCK_BYTES as usize * 16, 0);
        let (mut at, len) = (0, self.layout.piece_len(piece));
        let mut hasher = self.hashes.begin(piece);
        while at < len {
            let now = (len - at).min(buf.len() as u32);
            let Some(part) = buf.get_mut(..now as usize) else {
                return false;
            };
            let offset = self.layout.offset(piece) + u64::from(at);
            if self.storage.read(offset, part).is_err() {
                return false;
            }
            part.chunks(BLOCK_BYTES as usize)
                .for_each(|block| hasher.update(block));
            at += now;
        }
        self.hashes.is_right(piece, hasher)
    }

    /// Checks pieces on all cores. `progress` hears the number of pieces done.
    pub(super) fn check_all(&self, pieces: &[u32], progress: &(dyn Fn(u32) + Sync)) -> Bitfield {
        let cores = thread::available_parallelism().map_or(1, usize::from);
        let next = AtomicU64::new(0);
        let found = parking_lot::Mutex::new(Bitfield::new(self.layout.pieces()));
        thread::scope(|scope| {
            for _ in 0..cores.min(THREADS_MAX) {
                scope.spawn(|| {
                    let mut buf = Vec::new();
                    while let Some(piece) =
                        pieces.get(next.fetch_add(1, Ordering::Relaxed) as usize)
                    {
                        if self.check(*piece, &mut buf) {
                            found.lock().set(*piece);
                        }
                        progress(1);
                    }
                });
            }
        });
        found.into_inner()
    }
}

/// Writes blocks, sorted by where they begin; those that touch go in one call.
fn write_runs(torrent: &DiskTorrent, piece: u32, blocks: &[(u32, Bytes)]) -> io::Result<()> {
    let touches = |a: &(u32, Bytes), b: &(u32, Bytes)| a.0 + a.1.len() as u32 == b.0;
    for run in blocks.chunk_by(touches) {
        let begin = run.first().map_or(0, |(begin, _)| *begin);
        let slices: Vec<&[u8]> = run.iter().map(|(_, data)| data.as_ref()).collect();
        let offset = torrent.layout.offset(piece) + u64::from(begin);
        torrent.storage.write(offset, &slices)?;
    }
    Ok(())
}

fn finish(torrent: &DiskTorrent, piece: u32, hasher: PieceHasher) -> DiskEvent {
    if torrent.hashes.is_right(piece, hasher) {
        return DiskEvent::Verified(piece);
    }
    match read_digests(torrent, piece) {
        Ok(digests) => DiskEvent::Failed { piece, digests },
        Err(error) => DiskEvent::Broken { piece, error },
    }
}

fn read_digests(torrent: &DiskTorrent, piece: u32) -> io::Result<Vec<u64>> {
    let mut bytes = vec![0; torrent.layout.piece_len(piece) as usize];
    torrent
        .storage
        .read(torrent.layout.offset(piece), &mut bytes)?;
    Ok(digests(&torrent.layout, piece, &bytes))
}
