//! Tells the kernel what to forget, on a thread of its own.
//!
//! Dropping pages or names waits for locks that the kernel holds while it waits for us, so it must never be done by a
//! thread that answers requests. Changes gather in a set: what changes a hundred times before the thread gets to it is
//! invalidated once.

use std::collections::HashSet;
use std::fs::File;
use std::io::{self, Write};
use std::sync::Arc;
use std::thread::JoinHandle;

use bytes::Bytes;
use fuser::INodeNo;
use parking_lot::{Condvar, Mutex};

use crate::fuse::Held;
use crate::{Ino, Notifier};

/// Most changes waiting. Beyond it inodes are invalidated all at once, and names are left to their time to live.
const WAITING_MAX: usize = 65_536;
/// Changes taken from the set at once.
const BATCH: usize = 64;

/// `FUSE_NOTIFY_INVAL_ENTRY` of the kernel's `fuse.h`.
const NOTIFY_INVAL_ENTRY: i32 = 3;
/// `FUSE_EXPIRE_ONLY`, from Linux 6.2 on. Older kernels do not look at it.
const EXPIRE_ONLY: u32 = 1;

/// What changed and was not told to the kernel yet.
#[derive(Default)]
struct Waiting {
    inodes: HashSet<Ino>,
    entries: HashSet<(Ino, Bytes)>,
    /// More inodes changed than were noted: every inode the kernel knows is in doubt.
    all_inodes: bool,
    closed: bool,
}

/// The queue between a volume and the invalidation thread.
pub(crate) struct Invalidations {
    waiting: Mutex<Waiting>,
    changed: Condvar,
    held: Arc<Held>,
}

#[derive(Debug, PartialEq, Eq)]
enum Change {
    Inode(Ino),
    Entry(Ino, Bytes),
}

impl Invalidations {
    pub(crate) fn new(held: Arc<Held>) -> Self {
        Self {
            waiting: Mutex::new(Waiting::default()),
            changed: Condvar::new(),
            held,
        }
    }

    /// The thread ends after what it is at; later changes go nowhere.
    pub(crate) fn close(&self) {
        let mut waiting = self.waiting.lock();
        *waiting = Waiting {
            closed: true,
            ..Waiting::default()
        };
        self.changed.notify_all();
    }

    /// Waits for the next changes, names first. `None` once closed.
    fn next(&self) -> Option<Vec<Change>> {
        let mut waiting = self.waiting.lock();
        loop {
            if waiting.closed {
                return None;
            }
            let batch = waiting.take();
            if !batch.is_empty() {
                return Some(batch);
            }
            if std::mem::take(&mut waiting.all_inodes) {
                return Some(
                    self.held
                        .lookups
                        .known()
                        .into_iter()
                        .map(Change::Inode)
                        .collect(),
                );
            }
            self.changed.wait(&mut waiting);
        }
    }
}

impl Waiting {
    fn take(&mut self) -> Vec<Change> {
        let names: Vec<_> = self.entries.iter().take(BATCH).cloned().collect();
        let inodes: Vec<_> = self
            .inodes
            .iter()
            .take(BATCH - names.len())
            .copied()
            .collect();
        for name in &names {
            self.entries.remove(name);
        }
        for ino in &inodes {
            self.inodes.remove(ino);
        }
        let names = names
            .into_iter()
            .map(|(parent, name)| Change::Entry(parent, name));
        names.chain(inodes.into_iter().map(Change::Inode)).collect()
    }
}

impl Notifier for Invalidations {
    fn inode_changed(&self, ino: Ino) {
        if !self.held.lookups.may_be_known(ino) {
            return;
        }
        let mut waiting = self.waiting.lock();
        if waiting.closed || waiting.all_inodes {
            return;
        }
        if waiting.inodes.len() >= WAITING_MAX {
            waiting.inodes.clear();
            waiting.all_inodes = true;
        } else {
            waiting.inodes.insert(ino);
        }
        self.changed.notify_one();
    }

    fn entry_changed(&self, parent: Ino, name: &[u8]) {
        if !self.held.lookups.may_be_known(parent) {
            return;
        }
        let mut waiting = self.waiting.lock();
        if waiting.closed {
            return;
        }
        if waiting.entries.len() >= WAITING_MAX {
            tracing::warn!("too many changed names at once: some show late");
            return;
        }
        waiting
            .entries
            .insert((parent, Bytes::copy_from_slice(name)));
        self.changed.notify_one();
    }
}

/// The way to the kernel.
pub(crate) struct Kernel {
    pub(crate) notifier: fuser::Notifier,
    /// What the notifier writes to, for what it cannot say.
    pub(crate) device: File,
}

/// Starts the thread; it ends after [`Invalidations::close`].
pub(crate) fn spawn(queue: Arc<Invalidations>, kernel: Kernel) -> io::Result<JoinHandle<()>> {
    std::thread::Builder::new()
        .name("ccbt-invalidate".into())
        .spawn(move || {
            while let Some(batch) = queue.next() {
                for change in batch {
                    if let Err(error) = invalidate(&kernel, &queue.held, &change) {
                        tracing::debug!(%error, ?change, "the kernel did not take an invalidation");
                    }
                }
            }
        })
}

fn invalidate(kernel: &Kernel, held: &Held, change: &Change) -> io::Result<()> {
    let notifier = &kernel.notifier;
    match change {
        // A negative offset means attributes only. The next read compares the time of change and drops the pages itself.
        Change::Inode(ino) if held.open.is_open(*ino) => {
            notifier.inval_inode(INodeNo(ino.0), -1, 0)
        }
        // Length -1: to the end.
        Change::Inode(ino) => notifier.inval_inode(INodeNo(ino.0), 0, -1),
        Change::Entry(parent, name) => {
            match (&kernel.device).write(&expired(*parent, name)) {
                // The kernel knows nothing of that name.
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
                written => written.map(drop),
            }
        }
    }
}

/// The message that has a name looked up again when it is next used. It stays in the tree of names if it stands for the
/// same then: were it taken out, as by `inval_entry` of fuser, a directory that somebody works in would have no path, and
/// `getcwd` there would fail for good.
fn expired(parent: Ino, name: &[u8]) -> Vec<u8> {
    // A header (length, what, 0), the parent, the length of the name, flags, and the name with its NUL.
    let len = 16 + 16 + name.len() + 1;
    let mut out = Vec::with_capacity(len);
    out.extend((len as u32).to_ne_bytes());
    out.extend(NOTIFY_INVAL_ENTRY.to_ne_bytes());
    out.extend(0_u64.to_ne_bytes());
    out.extend(parent.0.to_ne_bytes());
    out.extend((name.len() as u32).to_ne_bytes());
    out.extend(EXPIRE_ONLY.to_ne_bytes());
    out.extend(name);
    out.push(0);
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::handle::OpenFiles;
    use crate::inode::Lookups;

    fn queue(known: impl IntoIterator<Item = u64>) -> Invalidations {
        let held = Held {
            lookups: Lookups::new(),
            open: OpenFiles::new(),
        };
        for ino in known {
            held.lookups.count(Ino(ino));
        }
        Invalidations::new(Arc::new(held))
    }

    #[test]
    fn repeated_changes_become_one_and_names_go_first() {
        let queue = queue([5]);
        for _ in 0..100 {
            queue.inode_changed(Ino(5));
            queue.entry_changed(Ino::ROOT, b"name");
        }
        let name = Change::Entry(Ino::ROOT, Bytes::from_static(b"name"));
        assert_eq!(queue.next(), Some(vec![name, Change::Inode(Ino(5))]));
        queue.close();
        assert_eq!(queue.next(), None);
    }

    #[test]
    fn what_the_kernel_does_not_know_is_not_queued() {
        let queue = queue([5]);
        queue.inode_changed(Ino(6));
        queue.entry_changed(Ino(6), b"name");
        queue.inode_changed(Ino(5));
        assert_eq!(queue.next(), Some(vec![Change::Inode(Ino(5))]));
    }

    #[test]
    fn comes_in_batches() {
        let queue = queue([]);
        for n in 0..BATCH + 1 {
            queue.entry_changed(Ino::ROOT, n.to_string().as_bytes());
        }
        assert_eq!(queue.next().unwrap().len(), BATCH);
        assert_eq!(queue.next().unwrap().len(), 1);
    }

    #[test]
    fn too_many_inodes_put_every_known_one_in_doubt() {
        let known = 2..WAITING_MAX as u64 + 10;
        let queue = queue(known.clone());
        for ino in known.clone() {
            queue.inode_changed(Ino(ino));
        }
        assert_eq!(queue.waiting.lock().inodes.len(), 0);
        let mut told: Vec<u64> = Vec::new();
        for change in queue.next().unwrap() {
            match change {
                Change::Inode(ino) => told.push(ino.0),
                Change::Entry(..) => panic!("no name changed"),
            }
        }
        told.sort_unstable();
        assert_eq!(told, known.collect::<Vec<_>>());
    }

    #[test]
    fn names_are_bounded() {
        let queue = queue([]);
        for n in 0..WAITING_MAX + 10 {
            queue.entry_changed(Ino::ROOT, n.to_string().as_bytes());
        }
        assert_eq!(queue.waiting.lock().entries.len(), WAITING_MAX);
    }
}
