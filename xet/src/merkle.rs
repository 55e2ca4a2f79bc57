//! The Merkle aggregation that turns a list of chunks into a xorb hash or a file hash.
//!
//! Entries are grouped from the left; a group ends after an entry, from the third on, whose hash is
//! divisible by four, or after nine entries, or at the end of the list. Each group becomes one entry
//! of the next level, until one is left (draft-denis-xet, "Merkle Hash"). Where a group ends depends
//! on nothing to its right, so the levels are built while entries stream in and only the open group
//! of each level is kept: a file of any size needs a few kilobytes.

use std::io::Write;

use crate::hash::{ChunkHash, FileHash, HASH_LEN, MERKLE_KEY, Suite, XorbHash, text, word};

/// An entry below this position (from 0) never ends a group.
const FIRST_END: usize = 2;

/// Most entries of a group.
const MAX_GROUP: usize = 9;

/// Longest line of a group's preimage: hash, `" : "`, a u64, newline.
const MAX_LINE: usize = 2 * HASH_LEN + 3 + 20 + 1;

/// Hash of a xorb with these chunks, given with their uncompressed lengths in bytes.
///
/// The hash of no chunks is all zeros, that of one chunk is the chunk's own.
pub fn xorb_hash(chunks: impl IntoIterator<Item = (ChunkHash, u64)>) -> XorbHash {
    XorbHash::from_bytes(collect(chunks).root())
}

/// Hash of a file with these chunks. The empty file's hash is all zeros, as every deployed
/// implementation has it (the draft's text would give another value).
pub fn file_hash(chunks: impl IntoIterator<Item = (ChunkHash, u64)>) -> FileHash {
    collect(chunks).file_hash()
}

fn collect(chunks: impl IntoIterator<Item = (ChunkHash, u64)>) -> MerkleBuilder {
    let mut builder = MerkleBuilder::new();
    for (hash, len) in chunks {
        builder.push(&hash, len);
    }
    builder
}

/// Builds the tree from chunks as they come.
#[derive(Clone, Debug, Default)]
pub struct MerkleBuilder {
    suite: Suite,
    levels: Vec<Level>,
}

impl MerkleBuilder {
    /// A tree without chunks, of the hashes of Xet.
    pub fn new() -> Self {
        Self::default()
    }

    /// A tree without chunks, of the hashes of `suite`.
    pub fn with_suite(suite: Suite) -> Self {
        Self {
            suite,
            levels: Vec::new(),
        }
    }

    /// Appends a chunk of `len` uncompressed bytes.
    pub fn push(&mut self, chunk: &ChunkHash, len: u64) {
        self.push_at(
            0,
            Entry {
                hash: *chunk.as_bytes(),
                len,
            },
        );
    }

    /// Hash of a file made of the chunks so far.
    pub fn file_hash(self) -> FileHash {
        self.salted_file_hash(&[0; HASH_LEN])
    }

    /// Hash of a file under a salt that keeps equal files of two owners apart.
    pub fn salted_file_hash(self, salt: &[u8; HASH_LEN]) -> FileHash {
        if self.levels.is_empty() {
            return FileHash::from_bytes([0; HASH_LEN]);
        }
        FileHash::from_bytes(self.suite.keyed(salt, [&self.root()[..]]))
    }

    /// Hash of a xorb made of the chunks so far.
    pub fn xorb_hash(self) -> XorbHash {
        XorbHash::from_bytes(self.root())
    }

    fn push_at(&mut self, depth: usize, entry: Entry) {
        let (mut depth, mut entry) = (depth, entry);
        loop {
            if depth == self.levels.len() {
                self.levels.push(Level::default());
            }
            match self.levels[depth].push(self.suite, entry) {
                Some(parent) => (depth, entry) = (depth + 1, parent),
                None => return,
            }
        }
    }

    fn root(mut self) -> [u8; HASH_LEN] {
        let mut depth = 0;
        while depth < self.levels.len() {
            let is_top = depth + 1 == self.levels.len();
            let level = &mut self.levels[depth];
            if let (true, 1, Some(only)) = (is_top, level.members, level.last) {
                return only.hash;
            }
            if level.members > 0 {
                let parent = level.close(self.suite);
                self.push_at(depth + 1, parent);
            }
            depth += 1;
        }
        [0; HASH_LEN]
    }
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    hash: [u8; HASH_LEN],
    /// Bytes below this entry.
    len: u64,
}

/// The open group of one level.
#[derive(Clone, Debug, Default)]
struct Level {
    /// Lines of the members.
    preimage: Vec<u8>,
    members: usize,
    len: u64,
    last: Option<Entry>,
}

impl Level {
    /// Adds a member and returns the group's parent when that closes it.
    fn push(&mut self, suite: Suite, entry: Entry) -> Option<Entry> {
        self.preimage.reserve(MAX_LINE);
        self.preimage.extend_from_slice(&text(&entry.hash));
        writeln!(self.preimage, " : {}", entry.len).expect("writing to a vector succeeds");
        self.len = self.len.wrapping_add(entry.len);
        self.last = Some(entry);
        self.members += 1;
        let ends = self.members > FIRST_END && word(&entry.hash, 3).is_multiple_of(4);
        (ends || self.members == MAX_GROUP).then(|| self.close(suite))
    }

    fn close(&mut self, suite: Suite) -> Entry {
        let hash = suite.keyed(&MERKLE_KEY, [&self.preimage[..]]);
        let parent = Entry {
            hash,
            len: self.len,
        };
        self.preimage.clear();
        self.members = 0;
        self.len = 0;
        self.last = None;
        parent
    }
}
