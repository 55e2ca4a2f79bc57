//! The 32-byte names of chunks, xorbs, files and nodes, and the hash functions that make them.
//!
//! Every name is its own type, so a xorb hash can never be looked up as a chunk hash. All Xet hashes
//! are BLAKE3 in keyed mode, one fixed key per use (draft-denis-xet, "Hashing Methods"); the functions
//! here are those. [`Suite`] has them for either suite. The text form prints each 8-byte group as one little-endian word, so it is *not* the plain hex of the bytes.

use std::cmp::Ordering;
use std::fmt;
use std::str::FromStr;
use std::sync::OnceLock;

use thiserror::Error;

mod suite;

pub use suite::Suite;

/// Length of every hash in bytes.
pub const HASH_LEN: usize = 32;

/// Key of the chunk hash (draft-denis-xet, `DATA_KEY`).
const CHUNK_KEY: [u8; HASH_LEN] = [
    0x66, 0x97, 0xf5, 0x77, 0x5b, 0x95, 0x50, 0xde, 0x31, 0x35, 0xcb, 0xac, 0xa5, 0x97, 0x18, 0x1c,
    0x9d, 0xe4, 0x21, 0x10, 0x9b, 0xeb, 0x2b, 0x58, 0xb4, 0xd0, 0xb0, 0x4b, 0x93, 0xad, 0xf2, 0x29,
];

/// Key of inner Merkle nodes (draft-denis-xet, `INTERNAL_NODE_KEY`).
pub(crate) const MERKLE_KEY: [u8; HASH_LEN] = [
    0x01, 0x7e, 0xc5, 0xc7, 0xa5, 0x47, 0x29, 0x96, 0xfd, 0x94, 0x66, 0x66, 0xb4, 0x8a, 0x02, 0xe6,
    0x5d, 0xdd, 0x53, 0x6f, 0x37, 0xc7, 0x6d, 0xd2, 0xf8, 0x63, 0x52, 0xe6, 0x4a, 0x53, 0x71, 0x3f,
];

/// Key of the verification hash over a range of chunks (draft-denis-xet, `VERIFICATION_KEY`).
const RANGE_KEY: [u8; HASH_LEN] = [
    0x7f, 0x18, 0x57, 0xd6, 0xce, 0x56, 0xed, 0x66, 0x12, 0x7f, 0xf9, 0x13, 0xe7, 0xa5, 0xc3, 0xf3,
    0xa4, 0xcd, 0x26, 0xd5, 0xb5, 0xdb, 0x49, 0xe6, 0x41, 0x24, 0x98, 0x7f, 0x28, 0xfb, 0x94, 0xc3,
];

/// BLAKE3 key-derivation context of ccbt's own nodes; the key material is the one kind byte.
const NODE_CONTEXT: &str = "ccbt 2026 node";

/// One chunk in this many may be asked for in global deduplication.
const DEDUP_MODULUS: u64 = 1024;

macro_rules! hash_type {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash)]
        pub struct $name([u8; HASH_LEN]);

        impl $name {
            /// Length in bytes.
            pub const LEN: usize = HASH_LEN;

            /// Wraps raw bytes, as they stand in xorbs and shards.
            pub const fn from_bytes(bytes: [u8; HASH_LEN]) -> Self {
                Self(bytes)
            }

            /// The raw bytes.
            pub const fn as_bytes(&self) -> &[u8; HASH_LEN] {
                &self.0
            }

            /// Little-endian word `i`. Word 0 is the "truncated hash" of lookup tables, word 3 is
            /// what "hash modulo n" means. Panics when `i > 3`.
            pub const fn word(&self, i: usize) -> u64 {
                word(&self.0, i)
            }
        }

        impl Ord for $name {
            /// Compares word by word, which is the order of shards and of the text form.
            fn cmp(&self, other: &Self) -> Ordering {
                (0..4).map(|i| self.word(i)).cmp((0..4).map(|i| other.word(i)))
            }
        }

        impl PartialOrd for $name {
            fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
                Some(self.cmp(other))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(as_str(&text(&self.0)))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl FromStr for $name {
            type Err = ParseHashError;

            fn from_str(s: &str) -> Result<Self, ParseHashError> {
                parse(s).map(Self)
            }
        }
    };
}

hash_type! {
    /// Name of a chunk: hash of its uncompressed bytes.
    ChunkHash
}
hash_type! {
    /// Name of a chunk hidden under a shard's key, as in answers to deduplication queries.
    KeyedChunkHash
}
hash_type! {
    /// Name of a xorb: Merkle root over its chunks.
    XorbHash
}
hash_type! {
    /// Name of a file's content: hash of the Merkle root over its chunks.
    FileHash
}
hash_type! {
    /// Name of a shard: hash of all its bytes.
    ShardHash
}
hash_type! {
    /// Proof that a client knows the chunks of a range of a file.
    RangeHash
}
hash_type! {
    /// Name of a ccbt tree or recipe node. Not part of Xet.
    NodeId
}

/// Why a text is not a hash.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum ParseHashError {
    /// The text form is exactly 64 characters.
    #[error("a hash has 64 hexadecimal digits, this text has {0} bytes")]
    Length(usize),
    /// Something other than a hexadecimal digit.
    #[error("no hexadecimal digit at position {0}")]
    Digit(usize),
}

/// Hash that names a chunk by its uncompressed bytes.
pub fn chunk_hash(bytes: &[u8]) -> ChunkHash {
    Suite::Blake3.chunk_hash(bytes)
}

/// Hash that names a shard by all its bytes, footer included.
pub fn shard_hash(bytes: &[u8]) -> ShardHash {
    Suite::Blake3.shard_hash(bytes)
}

/// Verification hash over the chunks of one file segment, in file order.
pub fn range_hash(chunks: &[ChunkHash]) -> RangeHash {
    Suite::Blake3.range_hash(chunks)
}

/// Hides a chunk hash under `key`. The Xet code calls this "HMAC"; it is plain keyed BLAKE3.
pub fn keyed_chunk_hash(key: &[u8; HASH_LEN], chunk: &ChunkHash) -> KeyedChunkHash {
    Suite::Blake3.keyed_chunk_hash(key, chunk)
}

/// Name of a ccbt node: keyed BLAKE3 of `bytes` under `derive_key("ccbt 2026 node", [kind])`, so
/// that equal bytes of two kinds never share a name and no node can pass for a Xet object.
pub fn node_id(kind: u8, bytes: &[u8]) -> NodeId {
    static KEYS: [OnceLock<[u8; HASH_LEN]>; 256] = [const { OnceLock::new() }; 256];
    let key = KEYS[usize::from(kind)].get_or_init(|| blake3::derive_key(NODE_CONTEXT, &[kind]));
    NodeId(*blake3::keyed_hash(key, bytes).as_bytes())
}

impl ChunkHash {
    /// Whether this chunk may be asked for in global deduplication wherever it stands in a file
    /// (the first chunk of a file always may).
    pub const fn is_dedup_eligible(&self) -> bool {
        self.word(3).is_multiple_of(DEDUP_MODULUS)
    }
}

/// Text form: four little-endian words, 16 lowercase digits each.
pub(crate) fn text(bytes: &[u8; HASH_LEN]) -> [u8; 2 * HASH_LEN] {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut out = [0; 2 * HASH_LEN];
    for (i, pair) in out.chunks_exact_mut(2).enumerate() {
        let byte = bytes[reversed_in_word(i)];
        pair[0] = DIGITS[usize::from(byte >> 4)];
        pair[1] = DIGITS[usize::from(byte & 15)];
    }
    out
}

/// `hash` word `i` as a little-endian integer. Panics when `i > 3`.
pub(crate) const fn word(hash: &[u8; HASH_LEN], i: usize) -> u64 {
    let mut bytes = [0; 8];
    let mut k = 0;
    while k < 8 {
        bytes[k] = hash[8 * i + k];
        k += 1;
    }
    u64::from_le_bytes(bytes)
}

fn as_str(text: &[u8; 2 * HASH_LEN]) -> &str {
    std::str::from_utf8(text).unwrap_or_default()
}

fn parse(s: &str) -> Result<[u8; HASH_LEN], ParseHashError> {
    if s.len() != 2 * HASH_LEN {
        return Err(ParseHashError::Length(s.len()));
    }
    let mut out = [0; HASH_LEN];
    for (i, pair) in s.as_bytes().chunks_exact(2).enumerate() {
        let high = digit(pair[0]).ok_or(ParseHashError::Digit(2 * i))?;
        let low = digit(pair[1]).ok_or(ParseHashError::Digit(2 * i + 1))?;
        out[reversed_in_word(i)] = high << 4 | low;
    }
    Ok(out)
}

fn digit(c: u8) -> Option<u8> {
    char::from(c)
        .to_digit(16)
        .and_then(|d| u8::try_from(d).ok())
}

/// Index of the byte that stands at text position `i`: the same word, counted from its end.
const fn reversed_in_word(i: usize) -> usize {
    (i & !7) | (7 - (i & 7))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn bad_text_is_refused() {
        assert_eq!("00".parse::<ChunkHash>(), Err(ParseHashError::Length(2)));
        let mut text = "0".repeat(64);
        text.replace_range(63.., "g");
        assert_eq!(text.parse::<ChunkHash>(), Err(ParseHashError::Digit(63)));
        let wide = "é".repeat(32);
        assert_eq!(wide.parse::<ChunkHash>(), Err(ParseHashError::Digit(0)));
    }

    #[test]
    fn node_kinds_do_not_share_names() {
        let ids: Vec<NodeId> = (0..=255).map(|kind| node_id(kind, b"same")).collect();
        let mut unique = ids.clone();
        unique.sort();
        unique.dedup();
        assert_eq!(unique.len(), 256);
        assert_eq!(
            ids[1].to_string(),
            node_id(1, b"same").to_string(),
            "the cached key is the derived one"
        );
        let key = blake3::derive_key("ccbt 2026 node", &[7]);
        assert_eq!(
            node_id(7, b"x").as_bytes(),
            blake3::keyed_hash(&key, b"x").as_bytes()
        );
    }

    proptest! {
        #[test]
        fn order_is_the_order_of_texts(a: [u8; 32], b: [u8; 32]) {
            let (a, b) = (XorbHash::from_bytes(a), XorbHash::from_bytes(b));
            prop_assert_eq!(a.cmp(&b), a.to_string().cmp(&b.to_string()));
        }

        #[test]
        fn text_round_trips(bytes: [u8; 32]) {
            let hash = FileHash::from_bytes(bytes);
            prop_assert_eq!(hash.to_string().parse::<FileHash>(), Ok(hash));
            prop_assert_eq!(hash.to_string().to_uppercase().parse::<FileHash>(), Ok(hash));
        }
    }
}
