//! What the store's tests share: reproducible chunks, small packs.

use std::path::Path;
use std::sync::Arc;

use ccbt_xet::disk::MemDisk;
use ccbt_xet::hash::{ChunkHash, NodeId, chunk_hash, node_id};
use ccbt_xet::store::{Store, StoreOptions};

/// Bytes nobody can compress, the same for the same number, with their name.
pub(crate) fn noise(number: u64, len: usize) -> (ChunkHash, Vec<u8>) {
    let mut bytes = vec![0; len];
    blake3::Hasher::new()
        .update(&number.to_le_bytes())
        .finalize_xof()
        .fill(&mut bytes);
    (chunk_hash(&bytes), bytes)
}

/// Bytes that compress well.
pub(crate) fn text(number: u64, len: usize) -> (ChunkHash, Vec<u8>) {
    let line = format!("line {number} of a file that says much the same all the time\n");
    let bytes: Vec<u8> = line.bytes().cycle().take(len).collect();
    (chunk_hash(&bytes), bytes)
}

/// A node of a kind.
pub(crate) fn node(kind: u8, number: u64) -> (NodeId, Vec<u8>) {
    let (_, bytes) = noise(number, 300 + number as usize % 500);
    (node_id(kind, &bytes), bytes)
}

/// Packs of a few records, no cache: every read goes to the disk. A checkpoint whenever one is asked for.
pub(crate) fn small_packs() -> StoreOptions {
    StoreOptions {
        cache_bytes: 0,
        pack_slots: 5,
        checkpoint_packs: 1,
        ..StoreOptions::default()
    }
}

pub(crate) const DIR: &str = "/state/store";

pub(crate) fn open_with(disk: &MemDisk, options: StoreOptions, context: &str) -> Store {
    Store::open(Path::new(DIR), Arc::new(disk.clone()), options).expect(context)
}
