//! Whether what a shard says of its xorbs and files fits together.

use thiserror::Error;

use super::{FileInfo, Segment, Shard, XorbInfo};
use crate::hash::{ChunkHash, FileHash, Suite, XorbHash};
use crate::merkle::MerkleBuilder;

/// Why a shard contradicts itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum CheckError {
    /// A xorb whose chunks give another hash.
    #[error("the chunks of xorb {stated} give {actual}")]
    Xorb {
        /// The hash it has in the shard.
        stated: XorbHash,
        /// The hash of its chunks.
        actual: XorbHash,
    },
    /// A segment that goes beyond its xorb, or has another length than its chunks.
    #[error("segment {segment} of file {file} does not fit xorb {xorb}")]
    Segment {
        /// The file.
        file: FileHash,
        /// Number of the segment.
        segment: usize,
        /// The xorb it names.
        xorb: XorbHash,
    },
    /// A verification hash that is not that of the segment's chunks.
    #[error("segment {segment} of file {file} has another verification hash")]
    Verification {
        /// The file.
        file: FileHash,
        /// Number of the segment.
        segment: usize,
    },
}

impl Shard {
    /// Checks the hashes of all xorbs, and the segments that name one of them. Where chunk hashes
    /// are hidden, only lengths can be checked.
    ///
    /// The hash of a file is not checked: owners may salt it.
    pub fn check(&self) -> Result<(), CheckError> {
        self.check_as(Suite::Blake3)
    }

    /// As [`check`](Self::check), of a shard whose hashes are those of `suite`.
    pub fn check_as(&self, suite: Suite) -> Result<(), CheckError> {
        for xorb in &self.xorbs {
            self.check_xorb(suite, xorb)?;
        }
        let numbers = self.xorb_numbers();
        for file in &self.files {
            for (number, segment) in file.segments.iter().enumerate() {
                let xorb = numbers.get(&segment.xorb).and_then(|i| self.xorbs.get(*i));
                if let Some(xorb) = xorb {
                    self.check_segment(suite, file, (number, segment), xorb)?;
                }
            }
        }
        Ok(())
    }

    fn check_xorb(&self, suite: Suite, xorb: &XorbInfo) -> Result<(), CheckError> {
        let plain = xorb
            .chunks
            .iter()
            .map(|chunk| Some((self.plain_hash(chunk)?, u64::from(chunk.len))));
        let Some(chunks) = plain.collect::<Option<Vec<_>>>() else {
            return Ok(());
        };
        let mut tree = MerkleBuilder::with_suite(suite);
        for (hash, len) in &chunks {
            tree.push(hash, *len);
        }
        let (stated, actual) = (xorb.hash, tree.xorb_hash());
        match stated == actual {
            true => Ok(()),
            false => Err(CheckError::Xorb { stated, actual }),
        }
    }

    fn check_segment(
        &self,
        suite: Suite,
        file: &FileInfo,
        (number, segment): (usize, &Segment),
        xorb: &XorbInfo,
    ) -> Result<(), CheckError> {
        let (start, end) = (segment.chunks.start as usize, segment.chunks.end as usize);
        let misfit = CheckError::Segment {
            file: file.hash,
            segment: number,
            xorb: xorb.hash,
        };
        let chunks = xorb.chunks.get(start..end).ok_or(misfit)?;
        let len: u64 = chunks.iter().map(|chunk| u64::from(chunk.len)).sum();
        if len != u64::from(segment.len) {
            return Err(misfit);
        }
        let hashes: Option<Vec<ChunkHash>> = chunks.iter().map(|of| self.plain_hash(of)).collect();
        let stated = file.verification.as_ref().and_then(|of| of.get(number));
        match (hashes, stated) {
            (Some(hashes), Some(stated)) if suite.range_hash(&hashes) != *stated => {
                Err(CheckError::Verification {
                    file: file.hash,
                    segment: number,
                })
            }
            _ => Ok(()),
        }
    }
}
