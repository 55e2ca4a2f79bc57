//! How many open files each inode has.
//!
//! Dropping cached pages of an inode waits in the kernel for every read of it in flight. While somebody has it open that
//! can take as long as a peer takes, so invalidation asks here first and leaves the pages of open files alone.

use crate::Ino;
use crate::counts::Counts;

pub(crate) struct OpenFiles {
    counts: Counts,
}

impl OpenFiles {
    pub(crate) fn new() -> Self {
        Self {
            counts: Counts::new(),
        }
    }

    /// Call before the reply to `open` or `create` is sent.
    pub(crate) fn opened(&self, ino: Ino) {
        self.counts.add_one(ino);
    }

    pub(crate) fn released(&self, ino: Ino) {
        self.counts.subtract(ino, 1);
    }

    pub(crate) fn is_open(&self, ino: Ino) -> bool {
        self.counts.get(ino) > 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn open_until_the_last_release() {
        let open = OpenFiles::new();
        open.opened(Ino(2));
        open.opened(Ino(2));
        open.released(Ino(2));
        assert!(open.is_open(Ino(2)));
        open.released(Ino(2));
        assert!(!open.is_open(Ino(2)));
    }
}
