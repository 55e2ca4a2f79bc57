//! How many references the kernel holds to each inode.
//!
//! The kernel counts every name it was given and returns the count in FORGET. The count is raised before the reply is
//! sent, since the FORGET may overtake our own thread otherwise. A lookup that is being answered while the last
//! reference is given back must not lose its inode in between: [`Lookups::begin`] keeps forgetting out meanwhile.

use parking_lot::{RwLock, RwLockReadGuard};

use crate::Ino;
use crate::counts::Counts;

pub(crate) struct Lookups {
    counts: Counts,
    /// Read: between asking the volume for an existing inode and counting it. Write: between finding that no reference
    /// is left and telling the volume.
    gate: RwLock<()>,
}

/// While it lives, no inode is forgotten. Keep it until the reply is sent.
pub(crate) struct Lookup<'a> {
    counts: &'a Counts,
    _gate: RwLockReadGuard<'a, ()>,
}

impl Lookups {
    pub(crate) fn new() -> Self {
        Self {
            counts: Counts::new(),
            gate: RwLock::new(()),
        }
    }

    /// Call before asking the volume for inodes that may exist already. Must not be held over [`Lookups::forget`].
    pub(crate) fn begin(&self) -> Lookup<'_> {
        Lookup {
            counts: &self.counts,
            _gate: self.gate.read(),
        }
    }

    /// Counts a reference to an inode that nobody can forget at this moment: a new one, or one the kernel holds.
    pub(crate) fn count(&self, ino: Ino) {
        self.counts.add_one(ino);
    }

    /// Takes `n` references back. If none is left, `forgotten` runs, and no lookup can meet the inode half gone.
    pub(crate) fn forget(&self, ino: Ino, n: u64, forgotten: impl FnOnce(Ino)) {
        if ino == Ino::ROOT || self.counts.subtract(ino, n) > 0 {
            return;
        }
        let _gate = self.gate.write();
        if self.counts.get(ino) == 0 {
            forgotten(ino);
        }
    }

    /// Whether the kernel knows the inode or is just being told of one, which may be this. It always knows the root.
    ///
    /// Asked after a change: a lookup that begins later sees the change, one that ended before is counted.
    pub(crate) fn may_be_known(&self, ino: Ino) -> bool {
        self.gate.is_locked() || ino == Ino::ROOT || self.counts.get(ino) > 0
    }

    /// Every inode the kernel knows, but the root.
    pub(crate) fn known(&self) -> Vec<Ino> {
        self.counts.inodes()
    }
}

impl Lookup<'_> {
    pub(crate) fn count(&self, ino: Ino) {
        self.counts.add_one(ino);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    fn forgets(lookups: &Lookups, ino: Ino, n: u64) -> bool {
        let mut told = false;
        lookups.forget(ino, n, |_| told = true);
        told
    }

    #[test]
    fn forgets_when_the_last_reference_is_gone() {
        let lookups = Lookups::new();
        lookups.count(Ino(7));
        lookups.begin().count(Ino(7));
        assert!(!forgets(&lookups, Ino(7), 1));
        assert!(lookups.may_be_known(Ino(7)));
        assert!(forgets(&lookups, Ino(7), 1));
        assert!(!lookups.may_be_known(Ino(7)));
    }

    #[test]
    fn never_forgets_the_root() {
        let lookups = Lookups::new();
        assert!(!forgets(&lookups, Ino::ROOT, 1));
        assert!(lookups.may_be_known(Ino::ROOT));
    }

    #[test]
    fn while_a_lookup_is_in_progress_any_inode_may_be_known() {
        let lookups = Lookups::new();
        let lookup = lookups.begin();
        assert!(
            lookups.may_be_known(Ino(8)),
            "the lookup may be about to answer with it"
        );
        drop(lookup);
        assert!(!lookups.may_be_known(Ino(8)));
    }

    #[test]
    fn a_lookup_in_progress_keeps_its_inode() {
        let lookups = Arc::new(Lookups::new());
        lookups.count(Ino(9));
        let told = Arc::new(AtomicBool::new(false));
        let lookup = lookups.begin();
        let forgetting = std::thread::spawn({
            let (lookups, told) = (lookups.clone(), told.clone());
            move || lookups.forget(Ino(9), 1, |_| told.store(true, Ordering::SeqCst))
        });
        while lookups.counts.get(Ino(9)) > 0 {
            std::thread::yield_now();
        }
        lookup.count(Ino(9));
        drop(lookup);
        forgetting.join().unwrap();
        assert!(
            !told.load(Ordering::SeqCst),
            "the lookup's own reference was lost"
        );
        assert!(lookups.may_be_known(Ino(9)));
    }
}
