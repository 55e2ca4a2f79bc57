//! Bytes to chunks to xorbs, and the store that keeps them.

pub mod chunk;
pub mod disk;
pub mod codec;
pub mod hash;
pub mod index;
pub mod merkle;
pub mod xorb;
