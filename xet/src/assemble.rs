//! Files to xorbs and a shard: what a client uploads, or keeps to hand on.
//!
//! Chunks come in file order. New ones go into the open xorb, known ones cost nothing; a file is noted
//! as runs of chunks. A xorb is handed out when the next chunk does not fit, so memory holds one xorb
//! and a map entry per chunk, however much goes through. This module does no IO.
//!
//! What a crash may lose: the open xorb, the runs noted so far and the map of known chunks, which exist in memory only. What was
//! handed out is as durable as its taker made it. A shard names only xorbs that were handed out before or with it, so who writes
//! them in the order in which they come never has a shard that names what is not there; xorbs without a shard are waste.

use std::collections::HashMap;
use std::ops::Range;

use thiserror::Error;

use crate::chunk::MAX_CHUNK;
use crate::codec::{Encoder, Probe};
use crate::hash::{ChunkHash, FileHash, RangeHash, Suite, XorbHash};
use crate::merkle::MerkleBuilder;
use crate::shard::{ChunkInfo, FileInfo, RECORD_LEN, Segment, Shard, TARGET_SHARD_LEN, XorbInfo};
use crate::xorb::{Footer, RecordHeader};

/// A xorb that is complete.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SealedXorb {
    /// Its name.
    pub hash: XorbHash,
    /// Its bytes, footer included.
    pub bytes: Vec<u8>,
    /// Length of its records in bytes: the part that is uploaded.
    pub records_len: usize,
}

/// A chunk that can be in no xorb.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("{0} bytes cannot be one chunk")]
pub struct ChunkLenError(pub usize);

/// Builds xorbs and shards out of files.
pub struct Assembler {
    suite: Suite,
    encoder: Encoder,
    probe: Probe,
    /// Records of the open xorb.
    records: Vec<u8>,
    open: Footer,
    /// Hashes of the xorbs before the open one.
    sealed: Vec<XorbHash>,
    /// Number of the xorb and of the chunk in it.
    places: HashMap<ChunkHash, (u32, u32)>,
    file: OpenFile,
    /// Complete files of this shard; their runs may be in the open xorb, which has no name yet.
    files: Vec<FinishedFile>,
    xorbs: Vec<XorbInfo>,
    /// Records the shard has so far, those of the open xorb included.
    listed: usize,
}

/// The file whose chunks come now.
struct OpenFile {
    tree: MerkleBuilder,
    runs: Vec<Run>,
    /// Of the last run, which may grow.
    run_hashes: Vec<ChunkHash>,
}

/// Chunks of one xorb that follow each other in a file too.
struct Run {
    /// Number of the xorb.
    xorb: u32,
    chunks: Range<u32>,
    /// Bytes.
    len: u32,
    /// Set once the run has ended.
    proof: Option<RangeHash>,
}

struct FinishedFile {
    hash: FileHash,
    runs: Vec<Run>,
    sha256: Option<[u8; 32]>,
}

impl Assembler {
    /// An assembler that knows no chunk yet.
    pub fn new(suite: Suite) -> Self {
        Self {
            suite,
            encoder: Encoder::new(),
            probe: Probe::new(),
            records: Vec::new(),
            open: Footer::new(),
            sealed: Vec::new(),
            places: HashMap::new(),
            file: OpenFile::new(suite),
            files: Vec::new(),
            xorbs: Vec::new(),
            listed: 0,
        }
    }

    /// Takes the next chunk of the open file. The caller has hashed it. Returns the xorb before, if
    /// the chunk began another.
    pub fn chunk(
        &mut self,
        hash: &ChunkHash,
        bytes: &[u8],
    ) -> Result<Option<SealedXorb>, ChunkLenError> {
        if !(1..=MAX_CHUNK).contains(&bytes.len()) {
            return Err(ChunkLenError(bytes.len()));
        }
        let len = bytes.len() as u32;
        let (place, sealed) = match self.places.get(hash) {
            Some(place) => (*place, None),
            None => self.add(hash, bytes),
        };
        self.file.push(self.suite, hash, len, place);
        Ok(sealed)
    }

    /// Ends the open file, which then is one even if no chunk came. `sha256` is that of its content,
    /// if the shard shall have it.
    pub fn end_file(&mut self, sha256: Option<[u8; 32]>) -> FileHash {
        let mut file = std::mem::replace(&mut self.file, OpenFile::new(self.suite));
        file.end_run(self.suite);
        let (hash, runs) = (file.tree.file_hash(), file.runs);
        // The shard says of an empty file that its SHA-256 is zeros.
        let sha256 = match runs.is_empty() {
            true => sha256.map(|_| [0; 32]),
            false => sha256,
        };
        // Its own record, two for each run, one for the SHA-256.
        self.listed += 2 * runs.len() + 2;
        self.files.push(FinishedFile { hash, runs, sha256 });
        hash
    }

    /// Whether the shard has reached the length at which writers start another.
    pub fn is_shard_due(&self) -> bool {
        RECORD_LEN * self.listed >= TARGET_SHARD_LEN
    }

    /// Ends the open xorb and hands out all ended files and their xorbs. Chunks stay known: later
    /// files may name xorbs of this shard.
    pub fn finish_shard(&mut self) -> (Option<SealedXorb>, Shard) {
        let sealed = self.seal();
        self.listed = 0;
        let mut files = Vec::with_capacity(self.files.len());
        for file in std::mem::take(&mut self.files) {
            let proofs = file.runs.iter().filter_map(|run| run.proof).collect();
            let segments = file.runs.into_iter().filter_map(|run| {
                Some(Segment {
                    xorb: *self.sealed.get(run.xorb as usize)?,
                    flags: 0,
                    len: run.len,
                    chunks: run.chunks,
                })
            });
            files.push(FileInfo {
                hash: file.hash,
                segments: segments.collect(),
                verification: Some(proofs),
                sha256: file.sha256,
            });
        }
        files.sort_by_key(|file| file.hash);
        files.dedup_by_key(|file| file.hash);
        let mut xorbs = std::mem::take(&mut self.xorbs);
        xorbs.sort_by_key(|xorb| xorb.hash);
        let key = None;
        (sealed, Shard { files, xorbs, key })
    }

    /// Appends a chunk to the open xorb, or to the next one if it is full.
    fn add(&mut self, hash: &ChunkHash, bytes: &[u8]) -> ((u32, u32), Option<SealedXorb>) {
        let encoded = self.probe.encode(&mut self.encoder, bytes);
        let header = RecordHeader {
            scheme: encoded.scheme,
            payload_len: encoded.payload.len() as u32,
            chunk_len: bytes.len() as u32,
        };
        let mut sealed = None;
        if !self.open.fits(&header) {
            sealed = seal(
                self.suite,
                &mut self.records,
                &mut self.open,
                &mut self.sealed,
                &mut self.xorbs,
            );
        }
        let place = (self.sealed.len() as u32, self.open.hashes.len() as u32);
        self.records.extend_from_slice(&header.encode());
        self.records.extend_from_slice(encoded.payload);
        self.open.push(*hash, &header);
        // The record of the xorb comes with its first chunk.
        self.listed += 1 + usize::from(place.1 == 0);
        self.places.insert(*hash, place);
        (place, sealed)
    }

    fn seal(&mut self) -> Option<SealedXorb> {
        seal(
            self.suite,
            &mut self.records,
            &mut self.open,
            &mut self.sealed,
            &mut self.xorbs,
        )
    }
}

/// Closes the open xorb, if it has a chunk. The parts are separate because the encoder's buffer is
/// still borrowed where this is called.
fn seal(
    suite: Suite,
    records: &mut Vec<u8>,
    open: &mut Footer,
    sealed: &mut Vec<XorbHash>,
    xorbs: &mut Vec<XorbInfo>,
) -> Option<SealedXorb> {
    let mut footer = std::mem::take(open);
    if footer.hashes.is_empty() {
        return None;
    }
    footer.seal(suite);
    let mut bytes = std::mem::take(records);
    let records_len = bytes.len();
    bytes.extend(footer.encode()?);
    let chunks = footer.chunks()?;
    xorbs.push(XorbInfo {
        hash: footer.xorb_hash,
        flags: 0,
        len: footer.chunk_ends.as_ref()?.last().copied()?,
        disk_len: bytes.len() as u32,
        chunks: chunks
            .map(|(hash, len)| ChunkInfo::plain(&hash, len))
            .collect(),
    });
    sealed.push(footer.xorb_hash);
    Some(SealedXorb {
        hash: footer.xorb_hash,
        bytes,
        records_len,
    })
}

impl OpenFile {
    fn new(suite: Suite) -> Self {
        Self {
            tree: MerkleBuilder::with_suite(suite),
            runs: Vec::new(),
            run_hashes: Vec::new(),
        }
    }

    fn push(&mut self, suite: Suite, hash: &ChunkHash, len: u32, (xorb, chunk): (u32, u32)) {
        self.tree.push(hash, u64::from(len));
        match self.runs.last_mut() {
            Some(run) if run.xorb == xorb && run.chunks.end == chunk => {
                run.chunks.end += 1;
                run.len += len;
            }
            _ => {
                self.end_run(suite);
                self.runs.push(Run {
                    xorb,
                    chunks: chunk..chunk + 1,
                    len,
                    proof: None,
                });
            }
        }
        self.run_hashes.push(*hash);
    }

    fn end_run(&mut self, suite: Suite) {
        if let Some(run) = self.runs.last_mut() {
            run.proof = Some(suite.range_hash(&self.run_hashes));
        }
        self.run_hashes.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chunk::chunks;
    use crate::shard::{self, Form};
    use crate::xorb;

    /// Bytes without a pattern (splitmix64).
    fn noise(seed: u64, len: usize) -> Vec<u8> {
        let mut state = seed;
        let mut out = Vec::with_capacity(len + 8);
        while out.len() < len {
            state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
            let z = (state ^ (state >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            out.extend_from_slice(&(z ^ (z >> 27)).to_le_bytes());
        }
        out.truncate(len);
        out
    }

    struct Set {
        xorbs: Vec<SealedXorb>,
        shard: Shard,
    }

    fn assemble(suite: Suite, files: &[&[u8]]) -> Set {
        let mut assembler = Assembler::new(suite);
        let mut xorbs = Vec::new();
        for file in files {
            for chunk in chunks(file) {
                xorbs.extend(
                    assembler
                        .chunk(&suite.chunk_hash(chunk), chunk)
                        .expect("a chunk"),
                );
            }
            assembler.end_file(Some([1; 32]));
        }
        let (last, shard) = assembler.finish_shard();
        xorbs.extend(last);
        Set { xorbs, shard }
    }

    /// Content of a file of the set.
    fn content(suite: Suite, set: &Set, file: &FileInfo) -> Vec<u8> {
        let mut out = Vec::new();
        for segment in &file.segments {
            let xorb = set.xorbs.iter().find(|xorb| xorb.hash == segment.xorb);
            let bytes = &xorb.expect("xorb").bytes;
            xorb::validate(suite, bytes, &segment.xorb).expect("a whole xorb");
            let run = xorb::records(bytes)
                .skip(segment.chunks.start as usize)
                .take(segment.chunks.len());
            for record in run {
                out.extend(record.expect("record").decode().expect("payload"));
            }
        }
        out
    }

    #[test]
    fn files_come_back_from_what_was_assembled() {
        let a = noise(1, 700_000);
        let text: Vec<u8> = (0..60_000).flat_map(|n: u32| n.to_le_bytes()).collect();
        let edited = [&a[..300_000], b"edit", &a[300_000..]].concat();
        let files: [&[u8]; 5] = [&a, &text, b"", &edited, &a];
        for suite in [Suite::Blake3, Suite::Sha256] {
            let set = assemble(suite, &files);
            assert_eq!((set.xorbs.len(), set.shard.files.len()), (1, 4));
            for file in files {
                let tree = chunks(file).fold(MerkleBuilder::with_suite(suite), |mut tree, of| {
                    tree.push(&suite.chunk_hash(of), of.len() as u64);
                    tree
                });
                let hash = tree.file_hash();
                let info = set.shard.files.iter().find(|info| info.hash == hash);
                let info = info.expect("the file is listed");
                assert_eq!(content(suite, &set, info), file);
                let sha256 = if file.is_empty() { [0; 32] } else { [1; 32] };
                assert_eq!(info.sha256, Some(sha256));
            }
            // The edited file shares most chunks, so the xorb is not much longer than the two others.
            let stored = a.len() + text.len();
            assert!(set.xorbs[0].bytes.len() < stored + 300_000);
            let bytes = set.shard.encode(Form::LOCAL).expect("shard");
            assert_eq!(shard::parse(&bytes).expect("shard").shard, set.shard);
        }
        let set = assemble(Suite::Blake3, &files);
        assert_eq!(set.shard.check(), Ok(()));
    }

    #[test]
    fn a_full_xorb_is_handed_out_and_runs_go_on_in_the_next() {
        let mut assembler = Assembler::new(Suite::Blake3);
        let mut xorbs = Vec::new();
        let count = xorb::MAX_CHUNKS as u32 + 3;
        let hash = |n: u32| crate::hash::chunk_hash(&n.to_le_bytes());
        for n in 0..count {
            xorbs.extend(
                assembler
                    .chunk(&hash(n), &n.to_le_bytes())
                    .expect("a chunk"),
            );
        }
        assert_eq!(xorbs.len(), 1);
        // A chunk of the first xorb after it was handed out.
        assert_eq!(assembler.chunk(&hash(5), &5u32.to_le_bytes()), Ok(None));
        assembler.end_file(None);
        // Two xorbs of 8195 chunks, a file of three runs, and a record for a SHA-256 it does not have.
        assert_eq!(assembler.listed, 2 + 8195 + 1 + 6 + 1);
        let (last, shard) = assembler.finish_shard();
        assert_eq!(assembler.listed, 0);
        xorbs.extend(last);
        let set = Set { xorbs, shard };
        let file = &set.shard.files[0];
        let runs: Vec<_> = file.segments.iter().map(|of| of.chunks.clone()).collect();
        assert_eq!(runs, [0..8192, 0..3, 5..6]);
        let expected: Vec<u8> = (0..count).chain([5]).flat_map(u32::to_le_bytes).collect();
        assert_eq!(content(Suite::Blake3, &set, file), expected);
        assert_eq!(set.shard.check(), Ok(()));
        assert_eq!(file.sha256, None);

        assembler
            .chunk(&hash(7), &7u32.to_le_bytes())
            .expect("a chunk");
        assembler.end_file(None);
        let (none, later) = assembler.finish_shard();
        assert_eq!((none, later.xorbs.len()), (None, 0));
        assert_eq!(later.files[0].segments[0].xorb, file.segments[0].xorb);
    }

    #[test]
    fn what_is_no_chunk_is_refused() {
        let mut assembler = Assembler::new(Suite::Blake3);
        let hash = crate::hash::chunk_hash(b"");
        assert_eq!(assembler.chunk(&hash, b""), Err(ChunkLenError(0)));
        let long = vec![0; MAX_CHUNK + 1];
        assert_eq!(assembler.chunk(&hash, &long), Err(ChunkLenError(131_073)));
    }
}
