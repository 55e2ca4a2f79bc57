//! The chunks of a plain file: read, cut and named, its bytes kept nowhere. Holes are not read: zeros are cut every
//! 128 KiB, so a hole is one chunk over and over.

use std::io;
use std::os::fd::BorrowedFd;

use ccbt_xet::chunk::MAX_CHUNK;
use ccbt_xet::hash::Suite;
use ccbt_xet::ingest::{self, Taken};
use rustix::fs::{SeekFrom, seek};

use crate::folder::content::ChunkRef;

/// What a hole is cut into.
pub(super) static ZEROS: [u8; MAX_CHUNK] = [0; MAX_CHUNK];

/// Names the chunks of the first `size` bytes of `file`, in order. Fails with `UnexpectedEof` if there are fewer.
pub(super) fn chunks_of<E: From<io::Error> + Send>(
    suite: Suite,
    file: BorrowedFd<'_>,
    size: u64,
    is_sparse: bool,
    mut each: impl FnMut(ChunkRef) -> Result<(), E> + Send,
) -> Result<(), E> {
    let mut source = Source {
        file,
        size,
        is_sparse,
        at: 0,
        extent: Extent {
            end: 0,
            is_hole: false,
        },
    };
    let read = |buf: &mut [u8]| Ok(source.read(buf)?);
    ingest::name_stream(suite, size, read, |chunk| {
        each(ChunkRef {
            hash: chunk.hash,
            len: chunk.len,
        })
    })
}

/// Reads a file from its start.
struct Source<'f> {
    file: BorrowedFd<'f>,
    size: u64,
    is_sparse: bool,
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

impl Source<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<Taken> {
        if self.at >= self.size {
            return Ok(Taken::Bytes(0));
        }
        self.find_extent()?;
        let left = self.extent.end - self.at;
        if self.extent.is_hole {
            self.at = self.extent.end;
            return Ok(Taken::Zeros(left));
        }
        let want = left.min(buf.len() as u64) as usize;
        let read = rustix::io::pread(self.file, &mut buf[..want], self.at)?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.at += read as u64;
        Ok(Taken::Bytes(read))
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
        let find = |from| match seek(self.file, from) {
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
    use std::os::fd::AsFd;
    use std::os::unix::fs::FileExt;

    use ccbt_xet::chunk::MAX_CHUNK;
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
        let bytes = noise(7, (32 << 20) + 12_345);
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
