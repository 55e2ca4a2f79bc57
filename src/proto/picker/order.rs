//! The order in which idle pieces are begun: one vector, bucket by bucket, sorted by priority and then by copies. Moving a piece to
//! a neighbouring bucket is one swap.

use super::{PRIORITY_MAX, Picker, Piece, State};

/// Copies beyond this many are not told apart.
pub(super) const COPIES_MAX: u32 = 63;
pub(super) const BUCKETS: usize = PRIORITY_MAX as usize * (COPIES_MAX as usize + 1);

impl Picker {
    pub(super) fn bucket(&self, piece: u32) -> usize {
        let (priority, copies) = self
            .pieces
            .get(piece as usize)
            .map_or((1, 0), |p| (p.priority.max(1), p.available.min(COPIES_MAX)));
        usize::from(PRIORITY_MAX - priority.min(PRIORITY_MAX)) * (COPIES_MAX as usize + 1)
            + copies as usize
    }

    pub(super) fn end(&self, bucket: usize) -> u32 {
        self.ends.get(bucket).copied().unwrap_or(0)
    }

    pub(super) fn begin_of(&self, bucket: usize) -> u32 {
        bucket.checked_sub(1).map_or(0, |before| self.end(before))
    }

    fn move_end(&mut self, bucket: usize, up: bool) {
        if let Some(end) = self.ends.get_mut(bucket) {
            *end = if up { *end + 1 } else { *end - 1 };
        }
    }

    /// Puts `piece` at a place of `order`.
    fn place(&mut self, piece: u32, at: u32) {
        if let Some(slot) = self.order.get_mut(at as usize) {
            *slot = piece;
        }
        if let Some(p) = self.pieces.get_mut(piece as usize) {
            p.at = at;
        }
    }

    fn swap(&mut self, a: u32, b: u32) {
        let at = |at: u32| self.order.get(at as usize).copied();
        if let (Some(x), Some(y)) = (at(a), at(b)) {
            self.place(x, b);
            self.place(y, a);
        }
    }

    /// Lets the piece at `at` change places with any of its bucket.
    fn shuffle(&mut self, at: u32, bucket: usize) {
        let begin = self.begin_of(bucket);
        let size = self.end(bucket).saturating_sub(begin).max(1);
        let other = begin + (self.next_random() % u64::from(size)) as u32;
        self.swap(at, other);
    }

    pub(super) fn put_in(&mut self, piece: u32) {
        let bucket = self.bucket(piece);
        let mut hole = self.order.len() as u32;
        self.order.push(piece);
        for later in (bucket + 1..BUCKETS).rev() {
            let begin = self.begin_of(later);
            if let Some(first) = self.order.get(begin as usize).copied()
                && begin < self.end(later)
            {
                self.place(first, hole);
                hole = begin;
            }
            self.move_end(later, true);
        }
        self.move_end(bucket, true);
        self.place(piece, hole);
        self.shuffle(hole, bucket);
    }

    pub(super) fn take_out(&mut self, piece: u32) {
        let Some(p) = self.pieces.get(piece as usize) else {
            return;
        };
        if p.state != State::Idle || p.priority == 0 {
            return;
        }
        let mut hole = p.at;
        for bucket in self.bucket(piece)..BUCKETS {
            let last = self.end(bucket) - 1;
            // The last of the bucket fills the hole, unless the bucket is empty or the hole is its last place.
            if let Some(moved) = self.order.get(last as usize).copied()
                && last != hole
            {
                self.place(moved, hole);
            }
            hole = last;
            self.move_end(bucket, false);
        }
        self.order.pop();
    }

    /// The piece, whose count of copies has just been raised by one, goes to the next bucket.
    pub(super) fn step_up(&mut self, piece: u32) {
        let bucket = self.bucket(piece);
        let Some(at) = self.pieces.get(piece as usize).map(|p| p.at) else {
            return;
        };
        let last = self.end(bucket - 1) - 1;
        self.swap(at, last);
        self.move_end(bucket - 1, false);
        self.shuffle(last, bucket);
    }

    /// Sorts all idle pieces anew.
    pub(super) fn rebuild(&mut self) {
        let mut counts = vec![0_u32; BUCKETS];
        let listed = |p: &Piece| p.state == State::Idle && p.priority > 0;
        let mut total = 0;
        for piece in 0..self.pieces.len() as u32 {
            if self.pieces.get(piece as usize).is_some_and(listed) {
                total += 1;
                if let Some(count) = counts.get_mut(self.bucket(piece)) {
                    *count += 1;
                }
            }
        }
        let mut end = 0;
        for (to, count) in self.ends.iter_mut().zip(&mut counts) {
            let begin = end;
            end += *count;
            *to = end;
            // From here on: where the next piece of this bucket goes.
            *count = begin;
        }
        self.order = vec![0; total];
        for piece in 0..self.pieces.len() as u32 {
            if self.pieces.get(piece as usize).is_some_and(listed) {
                let bucket = self.bucket(piece);
                let Some(next) = counts.get_mut(bucket) else {
                    continue;
                };
                let at = *next;
                *next += 1;
                let begin = self.begin_of(bucket);
                self.place(piece, at);
                let other = begin + (self.next_random() % u64::from(at - begin + 1)) as u32;
                self.swap(at, other);
            }
        }
    }
}
