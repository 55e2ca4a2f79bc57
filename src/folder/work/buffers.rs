//! The memory that answers to reads are put together in, used again and again: what is in the processor's cache already
//! takes half the time of new memory, which has to be zeroed and fetched first.
//!
//! A buffer comes as it was left, with bytes of other files in it: whoever takes one must fill all of it.

use std::sync::{Arc, Weak};

use bytes::Bytes;
use parking_lot::Mutex;

/// Buffers kept: one for each thread that a mount answers with, of the usual number.
const KEPT_MAX: usize = 4;
/// Longer ones are not kept, in bytes: the largest read a kernel asks for.
const LEN_MAX: usize = 1 << 20;

/// Buffers not in use, the latest last.
#[derive(Debug, Default)]
pub(super) struct Buffers(Arc<Mutex<Vec<Vec<u8>>>>);

/// A buffer in use. Comes back when it is dropped, or when the bytes made of it are.
#[derive(Debug)]
pub(super) struct Buffer {
    memory: Vec<u8>,
    len: usize,
    home: Weak<Mutex<Vec<Vec<u8>>>>,
}

impl Buffers {
    pub(super) fn take(&self, len: usize) -> Buffer {
        let mut memory = self.0.lock().pop().unwrap_or_default();
        if memory.len() < len {
            memory.resize(len, 0);
        }
        Buffer {
            memory,
            len,
            home: Arc::downgrade(&self.0),
        }
    }
}

impl Buffer {
    pub(super) fn as_mut(&mut self) -> &mut [u8] {
        self.memory.get_mut(..self.len).unwrap_or_default()
    }

    pub(super) fn freeze(self) -> Bytes {
        Bytes::from_owner(self)
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        self.memory.get(..self.len).unwrap_or_default()
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let Some(home) = self.home.upgrade() else {
            return;
        };
        let mut kept = home.lock();
        if self.memory.len() <= LEN_MAX && kept.len() < KEPT_MAX {
            kept.push(std::mem::take(&mut self.memory));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_is_used_again_with_the_length_asked_for() {
        let buffers = Buffers::default();
        let mut first = buffers.take(5);
        first.as_mut().copy_from_slice(b"first");
        let place = first.memory.as_ptr();
        let bytes = first.freeze();
        assert_eq!(&bytes[..], b"first");
        assert!(buffers.0.lock().is_empty(), "it is in use");
        drop(bytes);
        let mut second = buffers.take(3);
        assert_eq!(second.memory.as_ptr(), place);
        assert_eq!(second.as_mut().len(), 3);
    }

    #[test]
    fn few_are_kept_and_none_of_great_length() {
        let buffers = Buffers::default();
        drop(buffers.take(LEN_MAX + 1));
        assert_eq!(buffers.0.lock().len(), 0);
        let many: Vec<Buffer> = (0..KEPT_MAX + 3).map(|_| buffers.take(9)).collect();
        drop(many);
        assert_eq!(buffers.0.lock().len(), KEPT_MAX);
        let last = buffers.take(1);
        drop(buffers);
        drop(last);
    }
}
