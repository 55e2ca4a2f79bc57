//! Bytes to chunks to xorbs, and the store that keeps them.

pub mod assemble;
pub mod catalogue;
pub mod chunk;
pub mod codec;
pub mod disk;
pub mod fetch;
pub mod hash;
pub mod index;
pub mod ingest;
pub mod merkle;
pub mod pack;
pub mod rechunk;
pub mod recipe;
pub mod shard;
pub mod store;
pub mod xorb;
