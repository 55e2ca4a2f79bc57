//! The contents of files as they come out of the store, which has them in packs or borrows them from the home's own files:
//! whole, read ahead of who writes them, or as what is different in a file that has most of a content already.

use std::collections::VecDeque;
use std::io;
use std::ops::Range;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::{self, Scope};

use bytes::Bytes;
use ccbt_xet::hash::ChunkHash;
use ccbt_xet::store::Store;

use super::base::HomeId;
use super::files::HomeFiles;
use super::hash::ZEROS;
use super::take::{each_chunk, each_chunk_in, ranges_of};
use super::write::{ContentError, Contents, Patch, Piece};
use crate::folder::content::ChunkRef;
use crate::folder::tree::NodesError;
use crate::folder::work::StoreError;

/// Bytes read at once: enough that a call costs nothing beside them, few enough to stay in the cache until they are hashed.
const BATCH_BYTES: usize = 1 << 20;

/// Threads that read and hash ahead of who writes, and batches that each is ahead.
const READERS: usize = 2;
const AHEAD: usize = 2;

/// Contents from the store.
pub(super) struct StoreContents<'h> {
    pub(super) store: &'h Store,
    pub(super) files: &'h HomeFiles,
}

/// A part of a content that is read at once.
enum Part {
    Chunks(Batch),
    /// So many zeros.
    Zeros(u64),
}

#[derive(Default)]
struct Batch {
    chunks: Vec<(ChunkHash, u32)>,
    /// Their bytes together.
    bytes: usize,
}

/// A thread that reads batches in the order in which it gets them.
struct ReadsAhead {
    jobs: SyncSender<(Batch, Vec<u8>)>,
    results: Receiver<Result<Vec<u8>, ContentError>>,
}

/// What is handed out next.
enum Next {
    /// What this reader has read.
    Of(usize),
    Zeros(u64),
}

impl StoreContents<'_> {
    fn each_part(
        &self,
        content: &[u8],
        size: u64,
        bytes: Range<u64>,
        mut each: impl FnMut(Part) -> Result<(), ContentError>,
    ) -> Result<(), ContentError> {
        let zeros = self.store.suite().chunk_hash(&ZEROS);
        let mut batch = Batch::default();
        each_chunk_in(self.store, content, size, bytes, |located| {
            let ChunkRef { hash, len } = located.chunk;
            let is_zeros = hash == zeros && len as usize == ZEROS.len();
            let is_full = batch.bytes + len as usize > BATCH_BYTES;
            if (is_zeros || is_full) && batch.bytes > 0 {
                each(Part::Chunks(std::mem::take(&mut batch)))?;
            }
            if is_zeros {
                return each(Part::Zeros(len.into()));
            }
            batch.chunks.push((hash, len));
            batch.bytes += len as usize;
            Ok(())
        })?;
        match batch.bytes {
            0 => Ok(()),
            _ => each(Part::Chunks(batch)),
        }
    }

    fn read_here(
        &self,
        content: &[u8],
        size: u64,
        bytes: Range<u64>,
        each: &mut dyn FnMut(Piece<'_>) -> io::Result<()>,
    ) -> Result<(), ContentError> {
        let mut buf = Vec::new();
        self.each_part(content, size, bytes, |part| match part {
            Part::Zeros(len) => Ok(each(Piece::Zeros(len))?),
            Part::Chunks(batch) => {
                buf = read_batch(self.store, &batch, std::mem::take(&mut buf))?;
                Ok(each(Piece::Bytes(&buf))?)
            }
        })
    }

    /// The same with other threads, so that who writes need not wait for who reads and hashes.
    fn read_ahead(
        &self,
        content: &[u8],
        size: u64,
        bytes: Range<u64>,
        each: &mut dyn FnMut(Piece<'_>) -> io::Result<()>,
    ) -> Result<(), ContentError> {
        thread::scope(|scope| {
            let readers = [(); READERS].map(|()| ReadsAhead::start(scope, self.store));
            let (mut waiting, mut spare, mut turn) = (VecDeque::new(), Vec::new(), 0);
            let mut hand_out = |next: Next, spare: &mut Vec<Vec<u8>>| {
                match next {
                    Next::Zeros(len) => each(Piece::Zeros(len))?,
                    Next::Of(reader) => {
                        let bytes = readers[reader].results.recv().unwrap_or_else(|_| gone())?;
                        each(Piece::Bytes(&bytes))?;
                        spare.push(bytes);
                    }
                }
                Ok::<(), ContentError>(())
            };
            self.each_part(content, size, bytes, |part| {
                match part {
                    Part::Zeros(len) => waiting.push_back(Next::Zeros(len)),
                    Part::Chunks(batch) => {
                        let job = (batch, spare.pop().unwrap_or_default());
                        readers[turn].jobs.send(job).or_else(|_| gone())?;
                        waiting.push_back(Next::Of(turn));
                        turn = (turn + 1) % READERS;
                    }
                }
                match waiting.len() > READERS * AHEAD {
                    true => waiting
                        .pop_front()
                        .map_or(Ok(()), |next| hand_out(next, &mut spare)),
                    false => Ok(()),
                }
            })?;
            waiting
                .into_iter()
                .try_for_each(|next| hand_out(next, &mut spare))
        })
    }

    /// Has `file` hold a batch from byte `at` on. What is right there stays, and nobody is believed that it is: every byte
    /// is hashed.
    fn patch_batch(
        &self,
        batch: &Batch,
        at: u64,
        file: &mut dyn Patch,
        buf: &mut Vec<u8>,
    ) -> Result<(), ContentError> {
        buf.resize(batch.bytes, 0);
        let there = file.read(at, buf)?;
        let mut start = 0;
        for (hash, len) in &batch.chunks {
            let end = start + *len as usize;
            let part = buf.get_mut(start..end).unwrap_or_default();
            if end > there || self.store.suite().chunk_hash(part) != *hash {
                match self.store.read_all(&[(*hash, *len)], part) {
                    Ok(true) => file.write(at + start as u64, part)?,
                    Ok(false) => return Err(ContentError::Missing),
                    Err(error) => return Err(io::Error::other(error).into()),
                }
            }
            start = end;
        }
        Ok(())
    }
}

impl ReadsAhead {
    fn start<'s, 'e>(scope: &'s Scope<'s, 'e>, store: &'e Store) -> Self {
        let (jobs, todo) = sync_channel::<(Batch, Vec<u8>)>(AHEAD);
        let (done, results) = sync_channel(AHEAD);
        scope.spawn(move || {
            for (batch, buf) in todo {
                if done.send(read_batch(store, &batch, buf)).is_err() {
                    return;
                }
            }
        });
        Self { jobs, results }
    }
}

/// A thread of ours has panicked, which was reported where it happened.
fn gone<T>() -> Result<T, ContentError> {
    Err(io::Error::other("reading ahead ended").into())
}

/// Reads a batch into `buf`, whose own bytes go.
fn read_batch(store: &Store, batch: &Batch, mut buf: Vec<u8>) -> Result<Vec<u8>, ContentError> {
    buf.resize(batch.bytes, 0);
    match store.read_all(&batch.chunks, &mut buf) {
        Ok(true) => Ok(buf),
        // A borrowed range whose file was changed just now.
        Ok(false) => Err(ContentError::Missing),
        Err(error) => Err(io::Error::other(error).into()),
    }
}

impl From<NodesError<StoreError>> for ContentError {
    fn from(error: NodesError<StoreError>) -> Self {
        match error {
            NodesError::Missing(_) => Self::Missing,
            error => Self::Io(io::Error::other(error)),
        }
    }
}

impl Contents for StoreContents<'_> {
    /// A chunk that occurs many times in a row, as in a hole, is looked for once.
    fn here(&self, content: &Bytes, size: u64, from: u64) -> Result<u64, ContentError> {
        let (mut last, mut here) = (None, from);
        let looked = each_chunk_in(self.store, content, size, from..size, |located| {
            let hash = located.chunk.hash;
            if last != Some(hash) && !self.store.contains(&hash) {
                return Err(ContentError::Missing);
            }
            (last, here) = (Some(hash), located.end());
            Ok(())
        });
        match looked {
            Ok(()) | Err(ContentError::Missing) => Ok(here),
            Err(error) => Err(error),
        }
    }

    fn read(
        &self,
        content: &Bytes,
        size: u64,
        part: Range<u64>,
        each: &mut dyn FnMut(Piece<'_>) -> io::Result<()>,
    ) -> Result<(), ContentError> {
        match part.end - part.start <= BATCH_BYTES as u64 {
            true => self.read_here(content, size, part, each),
            false => self.read_ahead(content, size, part, each),
        }
    }

    fn are_alike(&self, old: (&Bytes, u64), new: (&Bytes, u64)) -> bool {
        let Ok(ranges) = ranges_of(self.store, old.0, old.1) else {
            return false;
        };
        let mut ranges = ranges.into_iter().peekable();
        let mut same = 0;
        let walked = each_chunk::<NodesError<StoreError>>(self.store, new.0, new.1, |located| {
            while ranges
                .next_if(|(_, offset, _)| *offset < located.offset)
                .is_some()
            {}
            let ChunkRef { hash, len } = located.chunk;
            if ranges.peek() == Some(&(hash, located.offset, len)) {
                same += u64::from(len);
            }
            Ok(())
        });
        walked.is_ok() && same > new.1 / 2
    }

    fn patch(&self, content: &Bytes, size: u64, file: &mut dyn Patch) -> Result<(), ContentError> {
        let (mut at, mut buf) = (0, Vec::new());
        // Up to here the file has no bytes but zeros.
        let mut data = 0;
        self.each_part(content, size, 0..size, |part| {
            at += match part {
                Part::Chunks(batch) => {
                    self.patch_batch(&batch, at, file, &mut buf)?;
                    batch.bytes as u64
                }
                Part::Zeros(len) => {
                    if data < at + len {
                        data = file.data_from(at)?;
                    }
                    if data < at + len {
                        file.write(at, &ZEROS)?;
                    }
                    len
                }
            };
            Ok(())
        })
    }

    fn lend(&self, id: HomeId, content: &Bytes, size: u64) {
        match ranges_of(self.store, content, size) {
            Ok(ranges) => self.store.borrow(self.files.source(id), &ranges),
            Err(error) => tracing::warn!(%error, "a file cannot be lent to the store"),
        }
    }
}

/// The bytes of a content of the folder, if all of it is here.
pub(super) fn content(
    store: &Store,
    files: &HomeFiles,
    content: &Bytes,
    size: u64,
) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut keep = |piece: Piece<'_>| {
        match piece {
            Piece::Bytes(part) => bytes.extend_from_slice(part),
            Piece::Zeros(len) => bytes.resize(bytes.len() + usize::try_from(len).unwrap_or(0), 0),
        }
        Ok(())
    };
    let contents = StoreContents { store, files };
    if contents.here(content, size, 0).ok()? < size {
        return None;
    }
    contents.read(content, size, 0..size, &mut keep).ok()?;
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::Arc;

    use ccbt_xet::disk::MemDisk;
    use ccbt_xet::hash::chunk_hash;
    use ccbt_xet::store::StoreOptions;

    use super::super::watch::Waker;
    use super::*;
    use crate::folder::content::ContentWriter;
    use crate::folder::work::StoreNodes;

    const LEN: usize = 5 << 20;

    /// A file in memory, and how many bytes were written to it.
    struct File(Vec<u8>, usize);

    impl Patch for File {
        fn read(&mut self, at: u64, buf: &mut [u8]) -> io::Result<usize> {
            let there = self.0.get(at as usize..).unwrap_or_default();
            let len = there.len().min(buf.len());
            buf[..len].copy_from_slice(&there[..len]);
            Ok(len)
        }

        fn write(&mut self, at: u64, bytes: &[u8]) -> io::Result<()> {
            let (at, end) = (at as usize, at as usize + bytes.len());
            self.0.resize(self.0.len().max(end), 0);
            self.0[at..end].copy_from_slice(bytes);
            self.1 += bytes.len();
            Ok(())
        }

        fn data_from(&mut self, at: u64) -> io::Result<u64> {
            let mut after = self.0.iter().enumerate().skip(at as usize);
            let data = after.find(|(_, byte)| **byte != 0);
            Ok(data.map_or(u64::MAX, |(at, _)| at as u64))
        }
    }

    /// Noise with two chunks of zeros, 128 KiB each, in it.
    fn bytes() -> Vec<u8> {
        let mut bytes = vec![0; LEN];
        blake3::Hasher::new().finalize_xof().fill(&mut bytes);
        bytes[1 << 20..(1 << 20) + (512 << 10)].fill(0);
        bytes
    }

    fn store() -> Store {
        let disk = Arc::new(MemDisk::new());
        Store::open(Path::new("/store"), disk, StoreOptions::default()).unwrap()
    }

    /// Stores all chunks but the one that `but` lies in. Returns the content.
    fn put(store: &Store, bytes: &[u8], but: Option<usize>) -> Bytes {
        let nodes = StoreNodes(store);
        let (mut writer, mut at) = (ContentWriter::new(&nodes), 0);
        for chunk in ccbt_xet::chunk::chunks(bytes) {
            let (hash, len) = (chunk_hash(chunk), chunk.len() as u32);
            if !but.is_some_and(|but| (at..at + chunk.len()).contains(&but)) {
                store.put_chunk(&hash, chunk).unwrap();
            }
            writer.push(ChunkRef { hash, len }).unwrap();
            at += chunk.len();
        }
        writer.finish().unwrap().0.into()
    }

    fn with_contents(store: &Store, test: impl FnOnce(&StoreContents<'_>)) {
        let dir = tempfile::tempdir().unwrap();
        let files = HomeFiles::open(dir.path(), 1, Waker::new().unwrap()).unwrap();
        let files = &files;
        test(&StoreContents { store, files });
    }

    #[test]
    fn a_content_is_read_as_far_as_it_is_here_and_goes_on_from_there() {
        let (bytes, store) = (bytes(), store());
        let content = put(&store, &bytes, Some(3 << 20));
        let size = LEN as u64;
        with_contents(&store, |contents| {
            let here = contents.here(&content, size, 0).unwrap();
            assert!((2 << 20..3 << 20 | 1).contains(&here), "{here}");
            let mut got = Vec::new();
            let mut read = |part| {
                contents.read(&content, size, part, &mut |piece| {
                    match piece {
                        Piece::Bytes(bytes) => got.extend_from_slice(bytes),
                        Piece::Zeros(len) => got.resize(got.len() + len as usize, 0),
                    }
                    Ok(())
                })
            };
            read(0..here).unwrap();
            assert!(matches!(read(here..size), Err(ContentError::Missing)));
            put(&store, &bytes, None);
            assert_eq!(contents.here(&content, size, here).unwrap(), size);
            got.truncate(here as usize);
            contents
                .read(&content, size, here..size, &mut |piece| {
                    match piece {
                        Piece::Bytes(bytes) => got.extend_from_slice(bytes),
                        Piece::Zeros(len) => got.resize(got.len() + len as usize, 0),
                    }
                    Ok(())
                })
                .unwrap();
            assert!(got == bytes);
        });
    }

    /// Whatever is in the file, it ends as the content, and what was right is not written.
    #[test]
    fn nothing_that_is_in_a_clone_is_believed() {
        let (bytes, store) = (bytes(), store());
        let content = put(&store, &bytes, None);
        let flipped = |at: &[usize]| {
            let mut bytes = bytes.clone();
            at.iter().for_each(|at| bytes[*at] ^= 1);
            bytes
        };
        let longer = [&bytes[..], b"more"].concat();
        let cases = [
            (bytes.clone(), 0),
            (longer, 0),
            (flipped(&[0]), 1),
            (flipped(&[LEN - 1, 2 << 20]), 2),
            // In the zeros that nobody reads.
            (flipped(&[(1 << 20) + (256 << 10)]), 1),
            (bytes[..LEN - 1].to_vec(), 1),
        ];
        with_contents(&store, |contents| {
            for (number, (there, chunks)) in cases.into_iter().enumerate() {
                let mut file = File(there, 0);
                contents.patch(&content, LEN as u64, &mut file).unwrap();
                assert!(file.0[..LEN] == bytes[..], "case {number}");
                let most = chunks * ccbt_xet::chunk::MAX_CHUNK;
                let is_written = file.1 > 0;
                assert!(
                    file.1 <= most && is_written == (chunks > 0),
                    "{number}: {}",
                    file.1
                );
            }
            assert!(contents.are_alike((&content, LEN as u64), (&content, LEN as u64)));
            let other = put(&store, &vec![7; LEN], None);
            assert!(!contents.are_alike((&other, LEN as u64), (&content, LEN as u64)));
        });
    }
}
