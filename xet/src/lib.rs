//! Bytes to chunks to xorbs, and the store that keeps them.

pub mod chunk;
pub mod codec;
pub mod hash;
pub mod merkle;
pub mod rechunk;
pub mod recipe;
pub mod xorb;
