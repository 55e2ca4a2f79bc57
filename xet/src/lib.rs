//! Bytes to chunks to xorbs, and the store that keeps them.

pub mod chunk;
pub mod hash;
pub mod merkle;
