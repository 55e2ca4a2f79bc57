//! Hash suites: which function names chunks and what is made of them.
//!
//! Both have the same keys, the same inputs and the same tree, so everything above this file works
//! with either. They never mix: a store holds chunks of one suite, and nothing in the bytes of a
//! xorb or shard says which one that is.

use sha2::{Digest, Sha256};

use super::{CHUNK_KEY, ChunkHash, HASH_LEN, KeyedChunkHash, RANGE_KEY, RangeHash, ShardHash};

/// Block length of SHA-256 in bytes, which is what HMAC pads its key to.
const BLOCK_LEN: usize = 64;

/// A keyed hash function and everything that is named with it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Suite {
    /// BLAKE3 in keyed mode: the hashes of Xet.
    #[default]
    Blake3,
    /// HMAC-SHA-256 (RFC 2104) with the same keys. ccbt's own; no other Xet software has it.
    Sha256,
}

impl Suite {
    /// What it is called in files and messages.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Blake3 => "blake3",
            Self::Sha256 => "sha256",
        }
    }

    /// The suite that is called so.
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::Blake3, Self::Sha256]
            .into_iter()
            .find(|suite| suite.name() == name)
    }

    /// Hash that names a chunk by its uncompressed bytes.
    pub fn chunk_hash(self, bytes: &[u8]) -> ChunkHash {
        ChunkHash(self.keyed(&CHUNK_KEY, [bytes]))
    }

    /// Verification hash over the chunks of one file segment, in file order.
    pub fn range_hash(self, chunks: &[ChunkHash]) -> RangeHash {
        RangeHash(self.keyed(&RANGE_KEY, chunks.iter().map(|chunk| &chunk.0[..])))
    }

    /// Hides a chunk hash under `key`. The Xet code calls this "HMAC" also where it is BLAKE3.
    pub fn keyed_chunk_hash(self, key: &[u8; HASH_LEN], chunk: &ChunkHash) -> KeyedChunkHash {
        KeyedChunkHash(self.keyed(key, [&chunk.0[..]]))
    }

    /// Hash that names a shard by all its bytes, footer included.
    pub fn shard_hash(self, bytes: &[u8]) -> ShardHash {
        ShardHash(self.keyed(&CHUNK_KEY, [bytes]))
    }

    /// The keyed hash of the concatenation of `parts`.
    pub(crate) fn keyed<'a>(
        self,
        key: &[u8; HASH_LEN],
        parts: impl IntoIterator<Item = &'a [u8]>,
    ) -> [u8; HASH_LEN] {
        match self {
            Self::Blake3 => {
                let mut hasher = blake3::Hasher::new_keyed(key);
                for part in parts {
                    hasher.update(part);
                }
                *hasher.finalize().as_bytes()
            }
            Self::Sha256 => {
                let mut inner = padded(key, 0x36);
                for part in parts {
                    inner.update(part);
                }
                let mut outer = padded(key, 0x5c);
                outer.update(inner.finalize());
                outer.finalize().into()
            }
        }
    }
}

/// SHA-256 that has seen the key, which is shorter than a block, combined with HMAC's padding byte.
fn padded(key: &[u8; HASH_LEN], pad: u8) -> Sha256 {
    let mut block = [pad; BLOCK_LEN];
    for (byte, key) in block.iter_mut().zip(key) {
        *byte ^= key;
    }
    Sha256::new_with_prefix(block)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Values from Python's `hmac.new(key, message, "sha256")`.
    #[test]
    fn the_sha256_suite_is_hmac() {
        let key: [u8; 32] = std::array::from_fn(|i| i as u8);
        let plain = |parts: &[&[u8]]| {
            let bytes = Suite::Sha256.keyed(&key, parts.iter().copied());
            bytes.map(|byte| format!("{byte:02x}")).concat()
        };
        assert_eq!(plain(&[]), EMPTY);
        assert_eq!(plain(&[b"chunk"]), CHUNK);
        assert_eq!(plain(&[b"ch", b"", b"unk"]), CHUNK);
        assert_eq!(plain(&[&[0xaa; 200]]), LONG);
    }

    const EMPTY: &str = "d38b42096d80f45f826b44a9d5607de72496a415d3f4a1a8c88e3bb9da8dc1cb";
    const CHUNK: &str = "3d46dd86cb2691259c1535f663554cc5d469c7a8c956d45457ae1f7099d574ee";
    const LONG: &str = "18a915e639f4d472049ce48e25e690db0aaa627613642dc9a1bd1f55320ab2e4";

    /// `hmac.new(CHUNK_KEY, b"abc", "sha256")` and the same of its text form under other keys.
    #[test]
    fn suites_share_keys_and_nothing_else() {
        let blake3 = Suite::Blake3.chunk_hash(b"abc");
        let sha256 = Suite::Sha256.chunk_hash(b"abc");
        assert_eq!(blake3, super::super::chunk_hash(b"abc"));
        assert_eq!(
            sha256.as_bytes().map(|byte| format!("{byte:02x}")).concat(),
            "58901a25c4ce1f2b364f0ef8629eec2b31a08a6c8f5a29aff2521ed9f63974c9"
        );
        let range = Suite::Sha256.range_hash(&[sha256, sha256]);
        assert_eq!(
            range.as_bytes().map(|byte| format!("{byte:02x}")).concat(),
            "683c09bedbd02bf87137bf159547ad557a3c3cb9e29c32f983e3002cbba196ff"
        );
        assert_ne!(Suite::Blake3.range_hash(&[sha256, sha256]), range);
        let hidden = Suite::Sha256.keyed_chunk_hash(&[3; 32], &sha256);
        assert_eq!(
            hidden.as_bytes().map(|byte| format!("{byte:02x}")).concat(),
            "af878d912778ea6bf720773b408fc9d68dcfdd33af66e661aac70ccc5d4ac36f"
        );
    }
}
