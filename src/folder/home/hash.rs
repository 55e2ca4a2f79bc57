//! The chunks of a plain file: read in big blocks, cut and named, its bytes kept nowhere. Holes are not read: zeros are
//! cut every 128 KiB, so a hole is one chunk over and over.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::mpsc;
use std::thread;

use ccbt_xet::chunk::{Chunker, MAX_CHUNK};
use ccbt_xet::hash::{ChunkHash, Suite};
use rustix::fs::{SeekFrom, seek};

use crate::folder::content::ChunkRef;

/// Bytes read at once.
const BLOCK: usize = 1 << 20;

/// Files from this many bytes on are hashed by a second thread while the first reads on.
const TWO_THREADS_FROM: u64 = 32 << 20;

/// Blocks that may wait for the second thread.
const BLOCKS_WAITING: usize = 4;

/// What a hole is cut into.
pub(super) static ZEROS: [u8; MAX_CHUNK] = [0; MAX_CHUNK];

/// A piece of a file, cut.
enum Piece {
    /// Bytes and where in them each chunk ends; the last chunk ends with the bytes.
    Block { bytes: Vec<u8>, ends: Vec<usize> },
    /// A whole chunk of zeros.
    Zeros,
}

/// Names the chunks of the first `size` bytes of `file`, in order. Fails with `UnexpectedEof` if there are fewer.
pub(super) fn chunks_of<E: From<io::Error>>(
    suite: Suite,
    file: BorrowedFd<'_>,
    size: u64,
    is_sparse: bool,
    mut each: impl FnMut(ChunkRef) -> Result<(), E>,
) -> Result<(), E> {
    let cutter = Cutter::new(file, size, is_sparse);
    if size < TWO_THREADS_FROM {
        let mut hasher = Hasher::new(suite);
        return cutter.run(|piece, spare| {
            hasher.hash(&piece).into_iter().try_for_each(&mut each)?;
            spare.extend(piece.into_bytes());
            Ok(())
        });
    }
    let (to_hasher, pieces) = mpsc::sync_channel::<Piece>(BLOCKS_WAITING);
    let (hashed, results) = mpsc::channel();
    thread::scope(|scope| {
        scope.spawn(move || {
            let mut hasher = Hasher::new(suite);
            for piece in pieces {
                let chunks = hasher.hash(&piece);
                if hashed.send((chunks, piece.into_bytes())).is_err() {
                    return;
                }
            }
        });
        cutter.run(|piece, spare| {
            to_hasher
                .send(piece)
                .map_err(|_| io::Error::other("the hashing thread is gone"))?;
            for (chunks, bytes) in results.try_iter() {
                chunks.into_iter().try_for_each(&mut each)?;
                spare.extend(bytes);
            }
            Ok::<(), E>(())
        })?;
        drop(to_hasher);
        for (chunks, _) in results {
            chunks.into_iter().try_for_each(&mut each)?;
        }
        Ok(())
    })
}

impl Piece {
    fn into_bytes(self) -> Option<Vec<u8>> {
        match self {
            Self::Block { bytes, .. } => Some(bytes),
            Self::Zeros => None,
        }
    }
}

struct Hasher {
    suite: Suite,
    zeros: Option<ChunkHash>,
}

impl Hasher {
    const fn new(suite: Suite) -> Self {
        Self { suite, zeros: None }
    }

    fn hash(&mut self, piece: &Piece) -> Vec<ChunkRef> {
        let Piece::Block { bytes, ends } = piece else {
            let suite = self.suite;
            let hash = *self.zeros.get_or_insert_with(|| suite.chunk_hash(&ZEROS));
            return vec![ChunkRef {
                hash,
                len: MAX_CHUNK as u32,
            }];
        };
        let mut start = 0;
        let mut out = Vec::with_capacity(ends.len());
        for &end in ends {
            let chunk = &bytes[start..end];
            out.push(ChunkRef {
                hash: self.suite.chunk_hash(chunk),
                len: chunk.len() as u32,
            });
            start = end;
        }
        out
    }
}

/// Reads a file and cuts it.
struct Cutter<'f> {
    file: BorrowedFd<'f>,
    size: u64,
    is_sparse: bool,
    chunker: Chunker,
    /// Where the next byte comes from.
    at: u64,
    /// The end of the data or the hole that `at` is in.
    extent: Extent,
}

#[derive(Clone, Copy)]
struct Extent {
    end: u64,
    is_hole: bool,
}

impl<'f> Cutter<'f> {
    fn new(file: BorrowedFd<'f>, size: u64, is_sparse: bool) -> Self {
        let extent = Extent {
            end: 0,
            is_hole: false,
        };
        Self {
            file,
            size,
            is_sparse,
            chunker: Chunker::new(),
            at: 0,
            extent,
        }
    }

    /// Hands out every piece, with a place to put buffers that are free again.
    fn run<E: From<io::Error>>(
        mut self,
        mut each: impl FnMut(Piece, &mut Vec<Vec<u8>>) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut spare = Vec::new();
        // Starts with the open chunk.
        let mut bytes = Vec::with_capacity(BLOCK + MAX_CHUNK);
        while self.at < self.size {
            self.find_extent()?;
            if self.extent.is_hole
                && bytes.is_empty()
                && self.extent.end - self.at >= MAX_CHUNK as u64
            {
                self.at += MAX_CHUNK as u64;
                each(Piece::Zeros, &mut spare)?;
                continue;
            }
            let ends = if self.extent.is_hole {
                self.cut_hole(&mut bytes)
            } else {
                self.cut_block(&mut bytes)?
            };
            let Some(&cut) = ends.last() else { continue };
            let mut next = spare
                .pop()
                .unwrap_or_else(|| Vec::with_capacity(BLOCK + MAX_CHUNK));
            next.clear();
            next.extend_from_slice(&bytes[cut..]);
            bytes.truncate(cut);
            each(Piece::Block { bytes, ends }, &mut spare)?;
            bytes = next;
        }
        if !bytes.is_empty() {
            let ends = vec![bytes.len()];
            each(Piece::Block { bytes, ends }, &mut spare)?;
        }
        Ok(())
    }

    /// Reads the next bytes and cuts them; the ends of chunks in `bytes`.
    fn cut_block(&mut self, bytes: &mut Vec<u8>) -> io::Result<Vec<usize>> {
        let mut done = bytes.len();
        let want = (self.extent.end - self.at).min(BLOCK as u64) as usize;
        bytes.resize(done + want, 0);
        let mut filled = done;
        while filled < bytes.len() {
            let read = rustix::io::pread(self.file, &mut bytes[filled..], self.at)?;
            if read == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            filled += read;
            self.at += read as u64;
        }
        let mut ends = Vec::new();
        while let Some(len) = self.chunker.next_cut(&bytes[done..]) {
            done += len;
            ends.push(done);
        }
        Ok(ends)
    }

    /// Goes on with zeros until the open chunk or the hole ends.
    fn cut_hole(&mut self, bytes: &mut Vec<u8>) -> Vec<usize> {
        let want = (self.extent.end - self.at).min(MAX_CHUNK as u64) as usize;
        let cut = self.chunker.next_cut(&ZEROS[..want]);
        let taken = cut.unwrap_or(want);
        bytes.resize(bytes.len() + taken, 0);
        self.at += taken as u64;
        cut.map(|_| bytes.len()).into_iter().collect()
    }

    fn find_extent(&mut self) -> io::Result<()> {
        if self.at < self.extent.end {
            return Ok(());
        }
        self.extent = Extent {
            end: self.size,
            is_hole: false,
        };
        if !self.is_sparse {
            return Ok(());
        }
        let find = |from| match seek(self.file.as_fd(), from) {
            Ok(at) => Ok(at.min(self.size)),
            // Nothing but a hole up to the end.
            Err(rustix::io::Errno::NXIO) => Ok(self.size),
            Err(error) => Err(error),
        };
        let data = find(SeekFrom::Data(self.at))?;
        self.extent = match data > self.at {
            true => Extent {
                end: data,
                is_hole: true,
            },
            false => Extent {
                end: find(SeekFrom::Hole(self.at))?.max(self.at + 1),
                is_hole: false,
            },
        };
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::unix::fs::FileExt;

    use ccbt_xet::hash::chunk_hash;
    use proptest::prelude::*;

    use super::*;

    fn chunks(file: &File, is_sparse: bool) -> Vec<ChunkRef> {
        let mut out = Vec::new();
        let size = file.metadata().unwrap().len();
        chunks_of(Suite::Blake3, file.as_fd(), size, is_sparse, |chunk| {
            out.push(chunk);
            Ok::<(), io::Error>(())
        })
        .unwrap();
        out
    }

    fn reference(bytes: &[u8]) -> Vec<ChunkRef> {
        let chunks = ccbt_xet::chunk::chunks(bytes);
        chunks
            .map(|bytes| ChunkRef {
                hash: chunk_hash(bytes),
                len: bytes.len() as u32,
            })
            .collect()
    }

    fn noise(seed: u64, len: usize) -> Vec<u8> {
        let mut out = vec![0; len];
        blake3::Hasher::new()
            .update(&seed.to_le_bytes())
            .finalize_xof()
            .fill(&mut out);
        out
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        #[test]
        fn holes_are_cut_as_the_zeros_they_are(
            parts in prop::collection::vec((0u64..40, 1usize..300_000), 1..6), tail in 0u64..400_000,
        ) {
            let file = tempfile::tempfile().unwrap();
            let mut at = 0;
            for (i, (gap, len)) in parts.into_iter().enumerate() {
                at += gap * 16_384;
                file.write_all_at(&noise(i as u64, len), at).unwrap();
                at += len as u64;
            }
            file.set_len(at + tail).unwrap();
            let mut bytes = vec![0; (at + tail) as usize];
            file.read_exact_at(&mut bytes, 0).unwrap();
            prop_assert_eq!(chunks(&file, true), reference(&bytes));
            prop_assert_eq!(chunks(&file, false), reference(&bytes));
        }
    }

    #[test]
    fn two_threads_cut_as_one() {
        let bytes = noise(7, (TWO_THREADS_FROM as usize) + 12_345);
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&bytes, 0).unwrap();
        assert_eq!(chunks(&file, false), reference(&bytes));
    }

    #[test]
    fn a_terabyte_of_nothing_is_not_read() {
        let file = tempfile::tempfile().unwrap();
        let size = 1u64 << 37;
        file.set_len(size).unwrap();
        file.write_all_at(b"end", size - 3).unwrap();
        let (mut count, mut total) = (0u64, 0u64);
        chunks_of(Suite::Blake3, file.as_fd(), size, true, |chunk| {
            (count, total) = (count + 1, total + u64::from(chunk.len));
            Ok::<(), io::Error>(())
        })
        .unwrap();
        assert_eq!((count, total), (size / MAX_CHUNK as u64, size));
    }

    #[test]
    fn a_file_that_got_shorter_is_an_error() {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(b"short", 0).unwrap();
        let result = chunks_of(Suite::Blake3, file.as_fd(), 6, false, |_| {
            Ok::<(), io::Error>(())
        });
        assert_eq!(result.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }
}
