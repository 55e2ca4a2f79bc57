//! Reading content that may not be here yet. What is here is read on the caller's thread; for the rest the actor raises the
//! deadlines of exactly the pieces needed, and the answer comes when they are verified, or when the time is over.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::RwLock;
use thiserror::Error;

use super::actor::Actor;
use super::disk::DiskTorrent;
use super::{ToTorrent, TorrentHandle};
use crate::proto::bitfield::Bitfield;
use crate::proto::torrent::Now;

/// How often reads that wait are looked at.
const CHECK_TIME: Duration = Duration::from_millis(500);
/// Reads that wait at once; the kernel asks for fewer.
const READS_MAX: usize = 4096;

/// Why a read came to nothing.
#[derive(Debug, Error)]
pub enum ReadError {
    #[error("the content did not arrive in time")]
    TimedOut,
    #[error("the content cannot be read: {0}")]
    Io(#[from] std::io::Error),
}

/// Takes the answer.
type Done = Box<dyn FnOnce(Result<Bytes, ReadError>) + Send>;

/// Reads a torrent's content. Cheap to clone.
#[derive(Debug, Clone)]
pub struct TorrentReader {
    disk: Arc<DiskTorrent>,
    have: Arc<RwLock<Bitfield>>,
    handle: TorrentHandle,
}

/// A read for which pieces are missing.
pub(in crate::engine) struct ReadJob {
    offset: u64,
    len: u32,
    pieces: Range<u32>,
    ahead: Range<u32>,
    timeout: Duration,
    done: Done,
}

/// The same, in the actor.
pub(super) struct PendingRead {
    offset: u64,
    len: u32,
    missing: Vec<u32>,
    until: Now,
    done: Done,
}

impl fmt::Debug for PendingRead {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes at {}", self.len, self.offset)
    }
}

impl TorrentReader {
    /// Reads `len` bytes of the piece space. `ahead`: bytes behind them that will be read next. `done` is called once, from any
    /// thread, within `timeout` or shortly after.
    pub fn read(&self, offset: u64, len: u32, ahead: u64, timeout: Duration, done: Done) {
        let pieces = self.pieces(offset, u64::from(len));
        let next = self.pieces(offset + u64::from(len), ahead);
        let here = {
            let have = self.have.read();
            pieces.clone().all(|piece| have.has(piece))
        };
        if here {
            // Asked for once in a piece, or each small read would go to the actor.
            if ahead > 0 && self.begins_piece(offset, len) {
                self.handle.tell(ToTorrent::Ahead(next));
            }
            return done(read(&self.disk, offset, len));
        }
        let ahead = next;
        let job = ReadJob {
            offset,
            len,
            pieces,
            ahead,
            timeout,
            done,
        };
        self.handle.tell(ToTorrent::Read(Box::new(job)));
    }

    /// Bytes of a range that are here, by whole pieces.
    pub fn present(&self, offset: u64, len: u64) -> u64 {
        let have = self.have.read();
        let size = u64::from(self.disk.layout.piece_bytes());
        let overlap = |piece: u32| {
            let begin = u64::from(piece) * size;
            (offset + len)
                .min(begin + size)
                .saturating_sub(offset.max(begin))
        };
        let here = self.pieces(offset, len).filter(|piece| have.has(*piece));
        here.map(overlap).sum()
    }

    fn pieces(&self, offset: u64, len: u64) -> Range<u32> {
        let size = u64::from(self.disk.layout.piece_bytes()).max(1);
        let number = |at: u64| {
            u32::try_from(at)
                .unwrap_or(u32::MAX)
                .min(self.disk.layout.pieces())
        };
        number(offset / size)..number((offset + len).div_ceil(size))
    }

    fn begins_piece(&self, offset: u64, len: u32) -> bool {
        let size = u64::from(self.disk.layout.piece_bytes()).max(1);
        offset.is_multiple_of(size) || offset / size != (offset + u64::from(len)) / size
    }
}

fn read(disk: &DiskTorrent, offset: u64, len: u32) -> Result<Bytes, ReadError> {
    let mut bytes = vec![0; len as usize];
    disk.storage.read(offset, &mut bytes)?;
    Ok(bytes.into())
}

impl Actor {
    pub(super) fn reader(&self) -> Option<TorrentReader> {
        let content = self.content.as_ref()?;
        Some(TorrentReader {
            disk: Arc::clone(&content.disk),
            have: Arc::clone(&content.have),
            handle: self.handle.clone(),
        })
    }

    pub(super) fn read(&mut self, now: Now, job: ReadJob) {
        let Some(content) = &self.content else {
            return (job.done)(Err(ReadError::TimedOut));
        };
        if self.reads.len() >= READS_MAX {
            return (job.done)(Err(ReadError::TimedOut));
        }
        let have = content.have.read();
        let missing: Vec<u32> = job.pieces.filter(|piece| !have.has(*piece)).collect();
        drop(have);
        self.machine.read_needs(now, &missing, job.ahead);
        self.reads.push(PendingRead {
            offset: job.offset,
            len: job.len,
            missing,
            until: now + job.timeout,
            done: job.done,
        });
        self.answer_reads(None);
    }

    /// A piece has come, or a check has found some: answers reads that have all they need.
    pub(super) fn answer_reads(&mut self, piece: Option<u32>) {
        let Some(content) = &self.content else { return };
        if let Some(piece) = piece {
            content.have.write().set(piece);
        }
        let have = content.have.read();
        for read in &mut self.reads {
            read.missing.retain(|piece| !have.has(*piece));
        }
        drop(have);
        let ready = |read: &mut PendingRead| read.missing.is_empty();
        for PendingRead {
            offset, len, done, ..
        } in self.reads.extract_if(.., ready)
        {
            let disk = Arc::clone(&content.disk);
            tokio::task::spawn_blocking(move || done(read(&disk, offset, len)));
        }
    }

    /// A piece that was here is not any more.
    pub(super) fn piece_gone(&mut self, piece: u32) {
        if let Some(content) = &self.content {
            content.have.write().clear(piece);
        }
    }

    pub(super) fn next_read_check(&self) -> Option<Now> {
        (!self.reads.is_empty()).then_some(self.read_check_at)
    }

    /// Gives up reads whose time is over, and hurries the others.
    pub(super) fn check_reads(&mut self, now: Now) {
        if self.reads.is_empty() || now < self.read_check_at {
            return;
        }
        self.read_check_at = now + CHECK_TIME;
        let late: Vec<PendingRead> = self
            .reads
            .extract_if(.., |read| read.until <= now)
            .collect();
        for read in late {
            self.machine.read_over(&read.missing);
            (read.done)(Err(ReadError::TimedOut));
        }
        let mut waiting: Vec<u32> = self
            .reads
            .iter()
            .flat_map(|read| read.missing.iter().copied())
            .collect();
        waiting.sort_unstable();
        waiting.dedup();
        self.machine.hurry(now, &waiting);
    }
}
