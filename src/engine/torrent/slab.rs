//! Receive buffers: a fixed number for all torrents together, handed round.
//!
//! A connection takes one when its socket has something to read. Blocks keep it alive until they are on disk; then it is
//! free again. When all are in use nobody reads, so what waits for the disk is bounded, and the senders feel it.

use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Bytes of a buffer: enough that one call reads many blocks.
pub(super) const SLAB_BYTES: usize = 256 << 10;
/// Buffers in all: 12 MiB.
const SLABS: usize = 48;

/// See the module documentation. Cheap to clone.
#[derive(Debug, Clone)]
pub struct SlabPool(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    free: Mutex<Vec<Box<[u8]>>>,
    permits: Arc<Semaphore>,
}

impl Default for SlabPool {
    fn default() -> Self {
        Self(Arc::new(Inner {
            free: Mutex::default(),
            permits: Arc::new(Semaphore::new(SLABS)),
        }))
    }
}

/// A buffer in use.
#[derive(Debug)]
pub(super) struct Slab {
    bytes: Box<[u8]>,
    pool: SlabPool,
    _permit: OwnedSemaphorePermit,
}

impl SlabPool {
    /// Waits for a buffer. `None` never happens while the pool lives.
    pub(super) async fn take(&self) -> Option<Slab> {
        let permit = Arc::clone(&self.0.permits).acquire_owned().await.ok()?;
        let bytes = self.0.free.lock().pop();
        Some(Slab {
            bytes: bytes.unwrap_or_else(|| vec![0; SLAB_BYTES].into()),
            pool: self.clone(),
            _permit: permit,
        })
    }
}

impl Slab {
    pub(super) fn as_mut(&mut self) -> &mut [u8] {
        &mut self.bytes
    }

    pub(super) fn as_slice(&self) -> &[u8] {
        &self.bytes
    }

    /// Shares the buffer; it is free again when the last part of it is dropped.
    pub(super) fn freeze(self) -> Bytes {
        Bytes::from_owner(self)
    }
}

impl AsRef<[u8]> for Slab {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Slab {
    fn drop(&mut self) {
        let bytes = std::mem::take(&mut self.bytes);
        self.pool.0.free.lock().push(bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_buffer_is_free_when_its_last_part_is_gone() {
        let pool = SlabPool::default();
        let mut parts = Vec::new();
        for _ in 0..SLABS {
            parts.push(pool.take().await.unwrap().freeze().slice(5..9));
        }
        assert_eq!(pool.0.permits.available_permits(), 0);
        let second = parts[0].clone();
        parts.clear();
        assert_eq!(pool.0.permits.available_permits(), SLABS - 1);
        drop(second);
        assert_eq!(pool.0.permits.available_permits(), SLABS);
        assert_eq!(pool.0.free.lock().len(), SLABS);
    }
}
