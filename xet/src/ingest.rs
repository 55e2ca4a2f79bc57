//! Streams of bytes to named chunks, and into the store.
//!
//! Bytes are read into a window that fits the second-level cache, cut and hashed there before the next
//! read, and never copied but for the open chunk at the window's end. [`chunk_stream`] does so on a second thread and
//! hands whole windows to its caller, who compresses and appends meanwhile; a window without a chunk
//! that is wanted is used again at once, so what is held already costs its hash only. Memory is
//! [`WINDOWS`] windows, whatever the length of the stream. A stream that ends in its first window takes no thread.
//!
//! What a crash may lose: chunks that were put since the last [`Store::sync`]. Nothing here syncs; a chunk that was put and is
//! lost is put again by the next run, which pays for its hash and its write only. Nothing is named before all of a stream was put.

use std::io::{self, Read};
use std::ops::Range;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::{panic, thread};

use thiserror::Error;

use crate::chunk::Chunker;
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
    stream: impl Read,
    mut each: impl FnMut(&ChunkHash, &[u8]) -> Result<(), E>,
) -> Result<(), E> {
    let mut cutter = Cutter::new(suite, u64::MAX, reader(stream));
    let mut window = Window::default();
    while cutter.fill(&mut window)? {
        for (hash, bytes) in window.chunks() {
            each(&hash, bytes)?;
        }
    }
    Ok(())
}

/// Stores the chunks of a stream. Returns them in order. Nothing is synced.
pub fn store_chunks(store: &Store, stream: impl Read + Send) -> Result<Vec<ChunkRef>, IngestError> {
    let missing = |hash: &ChunkHash| !store.is_packed(hash);
    let put = |chunks: &[(ChunkHash, &[u8])]| {
        store.put_chunks(chunks)?;
        Ok::<(), IngestError>(())
    };
    chunk_stream(store.suite(), u64::MAX, reader(stream), missing, put)
}

/// What reads from `stream`, as [`chunk_stream`] wants it.
pub fn reader<E: From<io::Error>>(
    mut stream: impl Read,
) -> impl FnMut(&mut [u8]) -> Result<usize, E> {
    move |buf| loop {
        match stream.read(buf) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            read => return Ok(read?),
        }
    }
}

/// Chunks and hashes the bytes that `read` gives: how many it put into the buffer, 0 at the end. Returns the chunks
/// in order. `len` is how many bytes there will be; wrong, it costs nothing but time.
///
/// `sink` gets those that are `wanted`, in order and several at a time. It runs on this thread, `read` and `wanted` on another.
/// After an error of either the rest is not read.
pub fn chunk_stream<E: Send>(
    suite: Suite,
    len: u64,
    read: impl FnMut(&mut [u8]) -> Result<usize, E> + Send,
    wanted: impl Fn(&ChunkHash) -> bool + Send,
    mut sink: impl FnMut(&[(ChunkHash, &[u8])]) -> Result<(), E>,
) -> Result<Vec<ChunkRef>, E> {
    let mut reading = Reading {
        cutter: Cutter::new(suite, len, read),
        wanted,
        chunks: Vec::new(),
    };
    let mut first = Window::default();
    let is_wanted = reading.fill(&mut first)?;
    if is_wanted {
        sink(&first.chunks().collect::<Vec<_>>())?;
    }
    if reading.cutter.ended {
        return Ok(reading.chunks);
    }
    let (to_sink, filled) = sync_channel(WINDOWS - 2);
    let (to_reader, spare) = sync_channel(WINDOWS);
    thread::scope(|scope| {
        let reading = scope.spawn(move || reading.run(first, &to_sink, &spare));
        let mut sunk = Ok(());
        for window in &filled {
            sunk = sink(&window.chunks().collect::<Vec<_>>());
            if sunk.is_err() {
                break;
            }
            // At the end of the stream nobody waits for it.
            let _gone = to_reader.send(window).is_err();
        }
        // Ends the reading, if it has not ended.
        drop((filled, to_reader));
        let read = reading.join();
        sunk?;
        read.unwrap_or_else(|panicked| panic::resume_unwind(panicked))
    })
}

/// The side of a pipeline that reads.
struct Reading<R, W> {
    cutter: Cutter<R>,
    wanted: W,
    /// All so far.
    chunks: Vec<ChunkRef>,
}

impl<E, R, W> Reading<R, W>
where
    R: FnMut(&mut [u8]) -> Result<usize, E>,
    W: Fn(&ChunkHash) -> bool,
{
    /// Fills a window and leaves those of its chunks in it that are wanted. Whether there are any.
    fn fill(&mut self, window: &mut Window) -> Result<bool, E> {
        self.cutter.fill(window)?;
        self.chunks
            .extend(window.found.iter().map(|(hash, range)| ChunkRef {
                hash: *hash,
                len: range.len() as u32,
            }));
        window.found.retain(|(hash, _)| (self.wanted)(hash));
        Ok(!window.found.is_empty())
    }

    /// Reads to the end of the stream, or until the other side hangs up.
    fn run(
        mut self,
        mut window: Window,
        to_sink: &SyncSender<Window>,
        spare: &Receiver<Window>,
    ) -> Result<Vec<ChunkRef>, E> {
        let mut made = 1;
        while !self.cutter.ended {
            if !self.fill(&mut window)? {
                continue;
            }
            if to_sink.send(window).is_err() {
                break;
            }
            window = match spare.try_recv() {
                Ok(window) => window,
                Err(_) if made < WINDOWS => {
                    made += 1;
                    Window::default()
                }
                Err(_) => match spare.recv() {
                    Ok(window) => window,
                    Err(_) => break,
                },
            };
        }
        Ok(self.chunks)
    }
}

/// Bytes and the chunks that end in them.
#[derive(Default)]
struct Window {
    bytes: Vec<u8>,
    found: Vec<(ChunkHash, Range<usize>)>,
}

impl Window {
    fn chunks(&self) -> impl Iterator<Item = (ChunkHash, &[u8])> {
        let chunks = self.found.iter();
        chunks.filter_map(|(hash, range)| Some((*hash, self.bytes.get(range.clone())?)))
    }
}

/// Fills windows from a stream, each with whole chunks from its start.
struct Cutter<R> {
    suite: Suite,
    read: R,
    chunker: Chunker,
    /// Bytes of the open chunk, which the last window ended in.
    tail: Vec<u8>,
    /// Of the next window.
    window_len: usize,
    ended: bool,
}

impl<E, R: FnMut(&mut [u8]) -> Result<usize, E>> Cutter<R> {
    fn new(suite: Suite, len: u64, read: R) -> Self {
        // The end shows when there is room for another byte. A small file's window is small.
        let window_len = len.saturating_add(1).min(WINDOW_LEN as u64) as usize;
        Self {
            suite,
            read,
            chunker: Chunker::new(),
            tail: Vec::new(),
            window_len,
            ended: false,
        }
    }

    /// Reads until the window is full or the stream ends, and finds its chunks. False if none is
    /// left.
    fn fill(&mut self, window: &mut Window) -> Result<bool, E> {
        window.found.clear();
        if self.ended {
            return Ok(false);
        }
        let window_len = std::mem::replace(&mut self.window_len, WINDOW_LEN);
        window.bytes.resize(window_len, 0);
        let mut len = self.tail.len();
        window.bytes[..len].copy_from_slice(&self.tail);
        let mut start = 0;
        while len < window_len {
            let taken = (self.read)(&mut window.bytes[len..])?;
            if taken == 0 {
                self.ended = true;
                break;
            }
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
            start = len;
        }
        window.bytes.truncate(len);
        self.tail.clear();
        self.tail.extend_from_slice(&window.bytes[start..]);
        Ok(!window.found.is_empty())
    }

    fn name(&self, window: &mut Window, range: Range<usize>) {
        let hash = self.suite.chunk_hash(&window.bytes[range.clone()]);
        window.found.push((hash, range));
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

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn a_wrong_length_changes_nothing(len in 0usize..1_500_000, hint in 0u64..2_000_000, seed: u32) {
            let (data, mut sunk) = (data(len, seed), Vec::new());
            let every_other = |hash: &ChunkHash| hash.as_bytes()[0].is_multiple_of(2);
            let read = reader::<io::Error>(&data[..]);
            let listed = chunk_stream(Suite::Blake3, hint, read, every_other, |chunks| {
                sunk.extend(chunks.iter().map(|(hash, bytes)| (*hash, bytes.to_vec())));
                Ok(())
            }).expect("reads");
            let mut expected = expected(&data);
            let found: Vec<_> = listed.iter().map(|chunk| (chunk.hash, chunk.len as usize)).collect();
            let all: Vec<_> = expected.iter().map(|(hash, bytes)| (*hash, bytes.len())).collect();
            prop_assert_eq!(found, all);
            expected.retain(|(hash, _)| every_other(hash));
            prop_assert_eq!(sunk, expected);
        }
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
