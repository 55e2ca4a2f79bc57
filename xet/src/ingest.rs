//! Streams of bytes to named chunks, and into the store.
//!
//! Bytes are read into a window that fits the second-level cache, cut and hashed there before the next
//! read, and never copied but for the open chunk at the window's end. A window stays with the thread that filled it: that
//! one also compresses its chunks, and only then, in the order of the stream, appends them. The next window is
//! meanwhile another thread's ([`turns`]), if one is to be had, so no core waits for the other and nothing but the open
//! chunk goes from cache to cache.
//!
//! What is held already costs its hash only: its bytes go nowhere, and if it is known where the chunk after it ends,
//! it is not even scanned for cuts ([`held`]). Memory is two windows and what they compress to, whatever the length of the
//! stream. A stream that ends in its first window takes no thread.
//!
//! What a crash may lose: chunks that were put since the last [`Store::sync`]. Nothing here syncs; a chunk that was put and is
//! lost is put again by the next run, which pays for its hash and its write only. Nothing is named before all of a stream was put.

use std::io::{self, Read};

use thiserror::Error;

use crate::hash::{ChunkHash, Suite};
use crate::recipe::ChunkRef;
use crate::store::{CutChunk, Store, WriteError, found_in};

mod cut;
mod held;
mod turns;

use cut::{Cutter, Window, ZEROS};
use held::Held;

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

/// What a stream gives next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Taken {
    /// So many bytes, which stand at the start of the buffer. None is the end.
    Bytes(usize),
    /// So many zeros, at least one, which nobody had to read. They are in no buffer.
    Zeros(u64),
}

/// What reads from `stream`, as the functions here want it.
pub fn reader<E: From<io::Error>>(
    mut stream: impl Read,
) -> impl FnMut(&mut [u8]) -> Result<Taken, E> {
    move |buf| loop {
        match stream.read(buf) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            read => return Ok(Taken::Bytes(read?)),
        }
    }
}

/// Gives each chunk of a stream to `each`, in order, with its hash. All on this thread.
pub fn each_chunk<E: From<io::Error>>(
    suite: Suite,
    stream: impl Read,
    mut each: impl FnMut(&ChunkHash, &[u8]) -> Result<(), E>,
) -> Result<(), E> {
    let mut cutter = Cutter::new(suite, u64::MAX, reader(stream), None);
    let mut window = Window::default();
    while !cutter.has_ended() {
        cutter.fill(&mut window)?;
        for found in &window.found {
            let bytes = window.bytes_of(found);
            each(&suite.chunk_hash(bytes), bytes)?;
        }
    }
    Ok(())
}

/// Names the chunks of the bytes that `read` gives and hands the names to `each`, in order.
///
/// `len` is how many bytes there will be; wrong, it costs nothing but time. `read` and `each` run on this thread or on another
/// one, now the one and now the other. After an error of either the rest is not read.
pub fn name_stream<E: Send>(
    suite: Suite,
    len: u64,
    read: impl FnMut(&mut [u8]) -> Result<Taken, E> + Send,
    mut each: impl FnMut(ChunkRef) -> Result<(), E> + Send,
) -> Result<(), E> {
    let cutter = Cutter::new(suite, len, read, None);
    let name = |window: &mut Window| window.name(suite);
    turns::run(cutter, name, |window| {
        window.named.iter().try_for_each(|chunk| each(*chunk))
    })
}

/// As [`name_stream`], and stores the chunks that are not in a pack yet; `each` gets a name after the chunk is stored.
/// Nothing is synced. To be called with a [`Hold`](crate::store::Hold) on the store where gc may run.
pub fn store_stream<E: Send + From<WriteError>>(
    store: &Store,
    len: u64,
    read: impl FnMut(&mut [u8]) -> Result<Taken, E> + Send,
    mut each: impl FnMut(ChunkRef) -> Result<(), E> + Send,
) -> Result<(), E> {
    let cutter = Cutter::new(store.suite(), len, read, Some(Held::new(store)));
    let encode = |window: &mut Window| window.encode(store);
    turns::run(cutter, encode, |window| {
        if !window.found.is_empty() {
            store.put_cut(&window.encoded_chunks())?;
        }
        window.named.iter().try_for_each(|chunk| each(*chunk))
    })
}

impl Window {
    /// Names what was found.
    fn name(&mut self, suite: Suite) {
        let mut named = std::mem::take(&mut self.named);
        for found in &self.found {
            // A hole is one chunk over and over.
            let hash = match found.is_zeros() {
                true => *self.zeros.get_or_insert_with(|| suite.chunk_hash(&ZEROS)),
                false => suite.chunk_hash(self.bytes_of(found)),
            };
            named.push(ChunkRef {
                hash,
                len: self.bytes_of(found).len() as u32,
            });
        }
        self.named = named;
    }

    /// Compresses what was found.
    fn encode(&mut self, store: &Store) {
        let mut payloads = std::mem::take(&mut self.payloads);
        payloads.clear();
        self.encoded.clear();
        for found in &self.found {
            let encoded = store.encode(self.bytes_of(found), &mut payloads);
            self.encoded.push(encoded);
        }
        self.payloads = payloads;
    }

    fn encoded_chunks(&self) -> Vec<CutChunk<'_>> {
        let found = self.found.iter().zip(&self.encoded);
        let chunks = found.map(|(found, encoded)| {
            let bytes = self.bytes_of(found);
            CutChunk {
                hash: found.hash,
                len: bytes.len(),
                encoded: found_in(&self.payloads, encoded.clone(), bytes),
                is_cut: found.is_cut,
            }
        });
        chunks.collect()
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::held::Predicted;
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

    fn store_all(store: &Store, stream: impl Read + Send) -> Result<Vec<ChunkRef>, IngestError> {
        let mut listed = Vec::new();
        store_stream(store, u64::MAX, reader(stream), |chunk| {
            listed.push(chunk);
            Ok::<_, IngestError>(())
        })?;
        Ok(listed)
    }

    fn refs(data: &[u8]) -> Vec<ChunkRef> {
        let named = expected(data).into_iter();
        named
            .map(|(hash, bytes)| ChunkRef {
                hash,
                len: bytes.len() as u32,
            })
            .collect()
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
        let listed = store_all(&store, &data[..]).expect("stored");
        let expected = expected(&data);
        assert!(expected.len() > 60);
        assert_eq!(listed.len(), expected.len());
        for (chunk, (hash, bytes)) in listed.iter().zip(&expected) {
            assert_eq!((chunk.hash, chunk.len as usize), (*hash, bytes.len()));
            let held = store.chunk(hash).expect("readable").expect("held");
            assert_eq!(held, bytes);
        }
        let before = store.stats();
        assert_eq!(store_all(&store, &data[..]).expect("stored"), listed);
        assert_eq!(store.stats().bytes, before.bytes);
    }

    /// Runs of noise, zeros that are bytes, and holes.
    #[derive(Clone, Debug)]
    enum Run {
        Noise(u32, usize),
        Zeros(usize),
        Hole(usize),
    }

    fn runs() -> impl Strategy<Value = Vec<Run>> {
        let run = prop_oneof![
            (any::<u32>(), 1usize..600_000).prop_map(|(seed, len)| Run::Noise(seed, len)),
            (1usize..300_000).prop_map(Run::Zeros),
            (1usize..900_000).prop_map(Run::Hole),
        ];
        prop::collection::vec(run, 0..6)
    }

    /// All bytes, and a stream of them that does not read the holes.
    fn stream(runs: &[Run]) -> (Vec<u8>, impl FnMut(&mut [u8]) -> Result<Taken, IngestError>) {
        let mut pieces = std::collections::VecDeque::new();
        let mut all = Vec::new();
        for run in runs {
            let (piece, is_hole) = match run {
                Run::Noise(seed, len) => (data(*len, *seed), false),
                Run::Zeros(len) => (vec![0; *len], false),
                Run::Hole(len) => (vec![0; *len], true),
            };
            all.extend_from_slice(&piece);
            pieces.push_back((piece, is_hole));
        }
        let read = move |buf: &mut [u8]| {
            let Some((mut piece, is_hole)) = pieces.pop_front() else {
                return Ok(Taken::Bytes(0));
            };
            if is_hole {
                return Ok(Taken::Zeros(piece.len() as u64));
            }
            let rest = piece.split_off(buf.len().min(piece.len()));
            buf[..piece.len()].copy_from_slice(&piece);
            if !rest.is_empty() {
                pieces.push_front((rest, false));
            }
            Ok(Taken::Bytes(piece.len()))
        };
        (all, read)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        #[test]
        fn neither_a_wrong_length_nor_holes_change_a_name(runs in runs(), hint in 0u64..2_000_000) {
            let (all, read) = stream(&runs);
            let mut named = Vec::new();
            name_stream(Suite::Blake3, hint, read, |chunk| {
                named.push(chunk);
                Ok::<_, IngestError>(())
            }).expect("reads");
            prop_assert_eq!(&named, &refs(&all));
            let disk = MemDisk::new();
            let (store, (_, read)) = (store(&disk), stream(&runs));
            let mut stored = Vec::new();
            store_stream(&store, hint, read, |chunk| {
                stored.push(chunk);
                Ok::<_, IngestError>(())
            }).expect("stores");
            prop_assert_eq!(&stored, &named);
            for (hash, bytes) in expected(&all) {
                prop_assert_eq!(store.chunk(&hash).expect("readable").expect("held"), bytes);
            }
        }
    }

    /// A store that holds `data`: its chunks, some of them known to be cut by us, and between them pieces that were not.
    fn filled(data: &[u8], marked: &dyn Fn(usize) -> bool) -> Store {
        let store = store(&MemDisk::new());
        let cut: Vec<&[u8]> = chunks(data).collect();
        for (n, chunk) in cut.iter().enumerate() {
            let hash = chunk_hash(chunk);
            store.put_chunk(&hash, chunk).expect("put");
            // The last one ends because the data does.
            if marked(n) && n + 1 < cut.len() {
                store.mark_cut(store.held_place(&hash).expect("held"));
            }
            if n % 5 == 4 {
                let piece = &chunk[..chunk.len() / 2];
                store.put_chunk(&chunk_hash(piece), piece).expect("put");
            }
        }
        store
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        /// Whatever is known of what is held, a copy with a few edits is cut as if nothing were.
        #[test]
        fn what_is_predicted_is_what_is_cut(
            len in 1usize..3_000_000, seed: u32, marks: u64,
            edits in prop::collection::vec((any::<prop::sample::Index>(), 0usize..3, 1usize..5000), 0..6),
        ) {
            let base = data(len, seed);
            let store = filled(&base, &|n| marks >> (n % 64) & 1 == 1);
            let mut copy = base.clone();
            for (at, kind, len) in edits {
                let at = at.index(copy.len() + 1);
                match kind {
                    0 => copy.truncate(at),
                    1 => copy.splice(at..at, data(len, seed ^ len as u32)).for_each(drop),
                    _ => copy.extend_from_slice(&base[at.min(base.len())..]),
                }
            }
            for copy in [&base, &copy, &copy] {
                prop_assert_eq!(store_all(&store, &copy[..]).expect("stored"), refs(copy));
            }
            for (hash, bytes) in expected(&copy) {
                prop_assert_eq!(store.chunk(&hash).expect("readable").expect("held"), bytes);
            }
        }
    }

    /// Chunks a stranger could send: two that our chunker cuts, glued into one, after one that it cuts too.
    #[test]
    fn a_chunk_with_a_cut_inside_is_never_believed() {
        let data: Vec<u8> = (0..40).flat_map(|seed| data(60_000, seed * 7919)).collect();
        let cut: Vec<&[u8]> = chunks(&data).collect();
        let short = |two: &&[&[u8]]| two[1].len() + two[2].len() <= crate::chunk::MAX_CHUNK;
        let three = cut.windows(3).find(short).expect("short chunks");
        let glued = [three[1], three[2]].concat();
        let stream = [three[0], &glued, three[0], &glued].concat();
        let store = store(&MemDisk::new());
        for chunk in [three[0], &glued] {
            store.put_chunk(&chunk_hash(chunk), chunk).expect("put");
        }
        for _ in 0..3 {
            let listed = store_all(&store, &stream[..]).expect("stored");
            assert_eq!(listed, refs(&stream));
            assert!(!listed.iter().any(|chunk| chunk.hash == chunk_hash(&glued)));
        }
    }

    #[test]
    fn what_follows_is_predicted_across_packs() {
        let options = StoreOptions {
            pack_slots: 7,
            ..StoreOptions::default()
        };
        let disk = Arc::new(MemDisk::new());
        let store = Store::open(Path::new("/store"), disk, options).expect("opens");
        let data = data(4_000_000, 9);
        let listed = store_all(&store, &data[..]).expect("stored");
        let (mut held, mut at) = (Held::new(&store), 0);
        for (n, chunk) in listed.iter().enumerate() {
            let rest = &data[at..];
            let predicted = match held.predict(rest, false) {
                Predicted::Chunk { hash, len } => Some((hash, len as u32)),
                _ => None,
            };
            // The first follows none; the last ended because the stream did.
            let known = (0 < n && n + 1 < listed.len()).then_some((chunk.hash, chunk.len));
            assert_eq!(predicted, known, "chunk {n}");
            assert!(held.meets(&chunk.hash, n + 1 < listed.len()));
            at += chunk.len as usize;
        }
    }

    #[test]
    fn streams_share_the_helpers() {
        let disk = MemDisk::new();
        let store = store(&disk);
        std::thread::scope(|scope| {
            for seed in 0..6 {
                let store = &store;
                scope.spawn(move || {
                    let data = data(3_000_000 + 1000 * seed as usize, seed * 1000);
                    assert_eq!(store_all(store, &data[..]).expect("stored"), refs(&data));
                });
            }
        });
    }

    #[test]
    fn a_panic_in_a_stream_reaches_its_caller() {
        for at in 0..8 {
            let mut left = at;
            let read = move |buf: &mut [u8]| {
                assert!(left > 0, "as wanted");
                left -= 1;
                buf.copy_from_slice(&data(buf.len(), left));
                Ok::<_, IngestError>(Taken::Bytes(buf.len()))
            };
            let named = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                name_stream(Suite::Blake3, u64::MAX, read, |_| Ok(()))
            }));
            let text = named.expect_err("panics");
            assert!(
                text.downcast_ref::<&str>()
                    .is_some_and(|text| *text == "as wanted")
            );
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
        let error = store_all(&store(&disk), Broken(3)).expect_err("fails");
        assert!(
            matches!(error, IngestError::Read(error) if error.kind() == io::ErrorKind::NotConnected)
        );
    }

    #[test]
    fn a_full_disk_ends_the_reader_too() {
        let disk = MemDisk::new();
        let store = store(&disk);
        disk.limit_space(Some(1_000_000));
        let error = store_all(&store, &data(20_000_000, 3)[..]).expect_err("no space");
        assert!(
            matches!(error, IngestError::Write(WriteError::NoSpace { .. })),
            "{error}"
        );
    }
}
