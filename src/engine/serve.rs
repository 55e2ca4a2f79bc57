//! What a peer asked us for and has not got yet, most urgent first.
//!
//! The queue is bounded as docs/bep_xet.md says ("Asking"); who asks for more is dropped by the caller. Reading the store is
//! done elsewhere, in batches taken from here.

use std::collections::VecDeque;

use crate::proto::scheduler::Item;
use crate::proto::ut_xet::Priority;

/// Most chunks and nodes a peer may have asked for at once.
const ITEMS_MAX: usize = 4096;
/// As many as [`Priority`] has.
const PRIORITIES: usize = 4;

/// One chunk or node to be sent: the answer carries `req` and `idx`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Wanted {
    pub(super) req: u32,
    pub(super) idx: u16,
    pub(super) item: Item,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the peer asked for more than {ITEMS_MAX} items at once")]
pub(super) struct TooMuch;

/// See the module documentation.
#[derive(Debug, Default)]
pub(super) struct ServeQueue {
    queues: [VecDeque<Wanted>; PRIORITIES],
    len: usize,
}

impl ServeQueue {
    /// Queues one request.
    pub(super) fn push(
        &mut self,
        req: u32,
        priority: Priority,
        items: impl Iterator<Item = Item>,
    ) -> Result<(), TooMuch> {
        let queue = &mut self.queues[priority as usize];
        for (idx, item) in (0_u16..).zip(items) {
            if self.len >= ITEMS_MAX {
                return Err(TooMuch);
            }
            queue.push_back(Wanted { req, idx, item });
            self.len += 1;
        }
        Ok(())
    }

    /// Forgets what is left of a request.
    pub(super) fn cancel(&mut self, req: u32) {
        for queue in &mut self.queues {
            queue.retain(|wanted| wanted.req != req);
        }
        self.len = self.queues.iter().map(VecDeque::len).sum();
    }

    /// Up to `count` items to serve next, the most urgent first.
    pub(super) fn take(&mut self, count: usize) -> Vec<Wanted> {
        let mut batch = Vec::new();
        for queue in &mut self.queues {
            let room = count - batch.len();
            batch.extend(queue.drain(..room.min(queue.len())));
        }
        self.len -= batch.len();
        batch
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len == 0
    }
}

#[cfg(test)]
mod tests {
    use ccbt_xet::hash::ChunkHash;

    use super::*;

    fn chunk(n: u8) -> Item {
        Item::Chunk(ChunkHash::from_bytes([n; 32]))
    }

    fn reqs(batch: &[Wanted]) -> Vec<(u32, u16)> {
        batch.iter().map(|w| (w.req, w.idx)).collect()
    }

    #[test]
    fn the_urgent_goes_first_and_order_is_kept_within() {
        let mut queue = ServeQueue::default();
        queue
            .push(1, Priority::Replica, [chunk(1), chunk(2)].into_iter())
            .unwrap();
        queue
            .push(2, Priority::Blocked, [chunk(3)].into_iter())
            .unwrap();
        queue
            .push(3, Priority::Prefetch, [chunk(4)].into_iter())
            .unwrap();
        assert_eq!(reqs(&queue.take(2)), [(2, 0), (1, 0)]);
        assert_eq!(reqs(&queue.take(9)), [(1, 1), (3, 0)]);
        assert!(queue.is_empty());
    }

    #[test]
    fn a_cancelled_request_is_forgotten() {
        let mut queue = ServeQueue::default();
        queue.push(1, Priority::Blocked, (0..9).map(chunk)).unwrap();
        queue
            .push(2, Priority::Blocked, [chunk(9)].into_iter())
            .unwrap();
        queue.cancel(1);
        assert_eq!(reqs(&queue.take(9)), [(2, 0)]);
    }

    #[test]
    fn asking_for_too_much_is_an_error() {
        let mut queue = ServeQueue::default();
        let many = |n| std::iter::repeat_n(chunk(0), n);
        queue.push(1, Priority::Blocked, many(ITEMS_MAX)).unwrap();
        assert!(queue.push(2, Priority::Blocked, many(1)).is_err());
        queue.take(1);
        queue.push(3, Priority::Blocked, many(1)).unwrap();
    }
}
