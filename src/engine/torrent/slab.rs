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
/// KiB of small reads that were copied out of buffers and wait for the disk: as much again.
const COPIES_KIB: usize = 12 << 10;

/// See the module documentation. Cheap to clone.
#[derive(Debug, Clone)]
pub struct SlabPool(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    free: Mutex<Vec<Box<[u8]>>>,
    permits: Arc<Semaphore>,
    copies: Arc<Semaphore>,
}

/// Bytes of a small read, with their part of what may wait.
#[derive(Debug)]
struct Copied {
    bytes: Vec<u8>,
    _permit: OwnedSemaphorePermit,
}

impl AsRef<[u8]> for Copied {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Default for SlabPool {
    fn default() -> Self {
        Self(Arc::new(Inner {
            free: Mutex::default(),
            permits: Arc::new(Semaphore::new(SLABS)),
            copies: Arc::new(Semaphore::new(COPIES_KIB)),
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

impl SlabPool {
    /// Keeps a small read without the buffer it came in. Waits while too much of the kind has not reached the disk.
    pub(super) async fn keep(&self, bytes: Vec<u8>) -> Option<Bytes> {
        let kib = u32::try_from(bytes.len().div_ceil(1 << 10)).ok()?;
        let permit = Arc::clone(&self.0.copies).acquire_many_owned(kib).await;
        Some(Bytes::from_owner(Copied {
            bytes,
            _permit: permit.ok()?,
        }))
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
    #[tokio::test]
    async fn small_reads_that_wait_for_the_disk_are_bounded() {
        let pool = SlabPool::default();
        let mut kept = Vec::new();
        for _ in 0..COPIES_KIB / 40 {
            kept.push(pool.keep(vec![1; 40 << 10]).await.unwrap().slice(7..9));
        }
        let more = pool.keep(vec![2; 40 << 10]);
        tokio::pin!(more);
        let soon = std::time::Duration::from_millis(20);
        assert!(
            tokio::time::timeout(soon, &mut more).await.is_err(),
            "there is no bound"
        );
        kept.pop();
        assert_eq!(more.await.unwrap().len(), 40 << 10);
    }
}
