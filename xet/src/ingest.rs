//! Streams of bytes to named chunks, and into the store.
//!
//! Bytes are read into a window that fits the second-level cache, cut and hashed there before the next
//! read, and never copied but for the open chunk at the window's end. [`store_chunks`] hands whole
//! windows to a second thread that compresses and appends while the first reads on; a window without
//! a new chunk is used again at once, so what is held already costs its hash only. Memory is
//! [`WINDOWS`] windows, whatever the length of the stream.

use std::io::{self, Read};
use std::ops::Range;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;

use thiserror::Error;

use crate::chunk::{Chunker, MAX_CHUNK};
use crate::hash::{ChunkHash, Suite};
use crate::recipe::ChunkRef;
use crate::store::{Store, WriteError};

/// Length of a window in bytes: several chunks, and little enough to stay in the second-level cache
/// between being read and being hashed.
const WINDOW_LEN: usize = 512 * 1024;

/// Windows of a pipeline: one being filled, one being stored, and some in between that even out
/// chunks that compress well or badly.
const WINDOWS: usize = 6;

/// Why a stream could not be stored.
#[derive(Debug, Error)]
pub enum IngestError {
    /// Reading failed.
    #[error("cannot read: {0}")]
    Read(#[from] io::Error),
    /// Storing failed.
    #[error(transparent)]
    Write(#[from] WriteError),
}

/// Gives each chunk of a stream to `each`, in order, with its hash.
pub fn each_chunk<E: From<io::Error>>(
    suite: Suite,
    mut stream: impl Read,
    mut each: impl FnMut(&ChunkHash, &[u8]) -> Result<(), E>,
) -> Result<(), E> {
    let (mut cutter, mut window) = (Cutter::new(suite), Window::default());
    while cutter.fill(&mut window, &mut stream)? {
        for (hash, range) in &window.chunks {
            each(hash, window.bytes.get(range.clone()).unwrap_or_default())?;
        }
        cutter.keep_tail(&window);
    }
    Ok(())
}

/// Stores the chunks of a stream. Returns them in order. Nothing is synced.
pub fn store_chunks(store: &Store, stream: impl Read) -> Result<Vec<ChunkRef>, IngestError> {
    let (to_writer, filled) = sync_channel(WINDOWS - 2);
    let (to_reader, spare) = sync_channel(WINDOWS);
    thread::scope(|scope| {
        let writer = scope.spawn(move || write(store, &filled, &to_reader));
        let read = read(store, stream, to_writer, &spare);
        // A writer that failed hangs up, which also ends the reader: its error is the cause.
        match writer.join() {
            Ok(Ok(())) => read,
            Ok(Err(error)) => Err(error.into()),
            Err(_) => Err(io::Error::other("the storing thread panicked").into()),
        }
    })
}

fn read(
    store: &Store,
    mut stream: impl Read,
    to_writer: SyncSender<Window>,
    spare: &Receiver<Window>,
) -> Result<Vec<ChunkRef>, IngestError> {
    let (mut cutter, mut window) = (Cutter::new(store.suite()), Window::default());
    let mut chunks = Vec::new();
    let mut made = 1;
    while cutter.fill(&mut window, &mut stream)? {
        chunks.extend(window.chunks.iter().map(|(hash, range)| ChunkRef {
            hash: *hash,
            len: range.len() as u32,
        }));
        cutter.keep_tail(&window);
        window.chunks.retain(|(hash, _)| !store.is_packed(hash));
        if window.chunks.is_empty() {
            continue;
        }
        let hung_up = || io::Error::other("the storing thread ended");
        to_writer.send(window).map_err(|_| hung_up())?;
        window = match spare.try_recv() {
            Ok(window) => window,
            Err(_) if made < WINDOWS => {
                made += 1;
                Window::default()
            }
            Err(_) => spare.recv().map_err(|_| hung_up())?,
        };
    }
    Ok(chunks)
}

fn write(
    store: &Store,
    filled: &Receiver<Window>,
    to_reader: &SyncSender<Window>,
) -> Result<(), WriteError> {
    for window in filled {
        let chunks: Vec<(ChunkHash, &[u8])> = window
            .chunks
            .iter()
            .filter_map(|(hash, range)| Some((*hash, window.bytes.get(range.clone())?)))
            .collect();
        store.put_chunks(&chunks)?;
        // At the end of the stream nobody waits for it.
        let _gone = to_reader.send(window).is_err();
    }
    Ok(())
}

/// Bytes and the chunks that end in them.
#[derive(Default)]
struct Window {
    bytes: Vec<u8>,
    chunks: Vec<(ChunkHash, Range<usize>)>,
}

/// Fills windows from a stream, each with whole chunks from its start.
struct Cutter {
    suite: Suite,
    chunker: Chunker,
    /// Bytes of the open chunk, which the last window ended in.
    tail: Vec<u8>,
    ended: bool,
}

impl Cutter {
    fn new(suite: Suite) -> Self {
        Self {
            suite,
            chunker: Chunker::new(),
            tail: Vec::with_capacity(MAX_CHUNK),
            ended: false,
        }
    }

    /// Reads until the window is full or the stream ends, and finds its chunks. False if none is
    /// left.
    fn fill(&mut self, window: &mut Window, stream: &mut impl Read) -> io::Result<bool> {
        window.chunks.clear();
        if self.ended {
            return Ok(false);
        }
        window.bytes.resize(WINDOW_LEN, 0);
        let mut len = self.tail.len();
        window.bytes[..len].copy_from_slice(&self.tail);
        let mut start = 0;
        while len < WINDOW_LEN {
            let taken = match stream.read(&mut window.bytes[len..]) {
                Ok(0) => {
                    self.ended = true;
                    break;
                }
                Ok(taken) => taken,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            let end = len + taken;
            while let Some(cut) = self.chunker.next_cut(&window.bytes[len..end]) {
                len += cut;
                self.name(window, start..len);
                start = len;
            }
            len = end;
        }
        if self.ended && start < len {
            self.name(window, start..len);
        }
        window.bytes.truncate(len);
        Ok(!window.chunks.is_empty())
    }

    fn name(&self, window: &mut Window, range: Range<usize>) {
        let hash = self.suite.chunk_hash(&window.bytes[range.clone()]);
        window.chunks.push((hash, range));
    }

    /// Takes the bytes after the last chunk over to the next window.
    fn keep_tail(&mut self, window: &Window) {
        let end = window.chunks.last().map_or(0, |(_, range)| range.end);
        self.tail.clear();
        let rest = window.bytes.get(end..).unwrap_or_default();
        self.tail.extend_from_slice(rest);
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::*;
    use crate::chunk::chunks;
    use crate::disk::MemDisk;
    use crate::hash::chunk_hash;
    use crate::store::StoreOptions;

    /// Numbered words with runs of zeros: cut by content and by length.
    fn data(len: usize, seed: u32) -> Vec<u8> {
        let words = (seed..).map(|n| {
            if n % 70_000 < 40_000 {
                n.wrapping_mul(0x9E37_79B9)
            } else {
                0
            }
        });
        words.flat_map(u32::to_le_bytes).take(len).collect()
    }

    /// Gives a few bytes at a time, and an interruption now and then.
    struct Trickle<'a> {
        rest: &'a [u8],
        step: usize,
        interrupted: bool,
    }

    impl Read for Trickle<'_> {
        fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
            self.interrupted = !self.interrupted;
            if self.interrupted {
                return Err(io::ErrorKind::Interrupted.into());
            }
            let len = self.step.min(buf.len()).min(self.rest.len());
            let (now, later) = self.rest.split_at(len);
            buf[..len].copy_from_slice(now);
            self.rest = later;
            Ok(len)
        }
    }

    fn expected(data: &[u8]) -> Vec<(ChunkHash, Vec<u8>)> {
        chunks(data)
            .map(|chunk| (chunk_hash(chunk), chunk.to_vec()))
            .collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn windows_change_no_cut(len in 0usize..1_500_000, seed: u32, step in 1000usize..700_000) {
            let data = data(len, seed);
            let stream = Trickle { rest: &data, step, interrupted: false };
            let mut found = Vec::new();
            each_chunk(Suite::Blake3, stream, |hash, bytes| {
                found.push((*hash, bytes.to_vec()));
                Ok::<(), io::Error>(())
            }).expect("reads");
            prop_assert_eq!(found, expected(&data));
        }
    }

    fn store(disk: &MemDisk) -> Store {
        let options = StoreOptions::default();
        Store::open(Path::new("/store"), Arc::new(disk.clone()), options).expect("opens")
    }

    #[test]
    fn a_stream_is_stored_and_a_second_time_only_hashed() {
        let disk = MemDisk::new();
        let store = store(&disk);
        let data = data(9_000_000, 1);
        let listed = store_chunks(&store, &data[..]).expect("stored");
        let expected = expected(&data);
        assert!(expected.len() > 60);
        assert_eq!(listed.len(), expected.len());
        for (chunk, (hash, bytes)) in listed.iter().zip(&expected) {
            assert_eq!((chunk.hash, chunk.len as usize), (*hash, bytes.len()));
            let held = store.chunk(hash).expect("readable").expect("held");
            assert_eq!(held, bytes);
        }
        let before = store.stats();
        assert_eq!(store_chunks(&store, &data[..]).expect("stored"), listed);
        assert_eq!(store.stats().bytes, before.bytes);
    }

    #[test]
    fn a_stream_that_fails_says_so() {
        struct Broken(usize);
        impl Read for Broken {
            fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
                self.0 = self.0.checked_sub(1).ok_or(io::ErrorKind::NotConnected)?;
                Ok(buf.len())
            }
        }
        let disk = MemDisk::new();
        let error = store_chunks(&store(&disk), Broken(3)).expect_err("fails");
        assert!(
            matches!(error, IngestError::Read(error) if error.kind() == io::ErrorKind::NotConnected)
        );
    }

    #[test]
    fn a_full_disk_ends_the_reader_too() {
        let disk = MemDisk::new();
        let store = store(&disk);
        disk.limit_space(Some(1_000_000));
        let error = store_chunks(&store, &data(20_000_000, 3)[..]).expect_err("no space");
        assert!(
            matches!(error, IngestError::Write(WriteError::NoSpace { .. })),
            "{error}"
        );
    }
}
