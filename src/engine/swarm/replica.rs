//! Keeping the whole content here: after every change, find what is missing and fetch it.

use std::sync::Arc;
use std::time::Duration;

use ccbt_xet::hash::NodeId;
use ccbt_xet::store::Store;

use super::{BACKGROUND_DEADLINE, JobDone, NODE_BYTES_GUESS, Swarm, Waiter};
use crate::folder::work::Folder;
use crate::proto::scheduler::{Item, Priority};

/// Items asked for in one round; then the rest is looked at again.
const ROUND_ITEMS_MAX: usize = 4096;
/// After a round that failed the next one waits this long, doubled with each further failure.
pub(super) const RETRY_TIME_MIN: Duration = Duration::from_secs(5);
/// Longest wait after failures: a full disk is looked at again this often.
const RETRY_TIME_MAX: Duration = Duration::from_secs(320);
/// What is only on loan is copied once nothing has changed for this long: it may be as much as the folder, and the file
/// that lends it may get the new version meanwhile.
const PACK_DELAY: Duration = Duration::from_secs(10);
/// Looking through a folder takes at most one part in this many of the time.
const LOOK_SHARE: u32 = 20;

/// Whether and how far the content is kept whole.
#[derive(Debug)]
pub(super) struct Replica {
    wanted: bool,
    running: bool,
    /// Something changed since the last look.
    stale: bool,
    /// The next look stores what is only on loan.
    pack: bool,
    not_before: Duration,
    /// Failed rounds in a row.
    failures: u32,
    whole: Option<Whole>,
}

/// What the last look proved.
#[derive(Debug, Clone, Copy)]
struct Whole {
    root: NodeId,
    /// [`Store::losses`] when the look began.
    losses: u64,
}

/// What a look at the folder found.
pub(super) struct Missing {
    took: Duration,
    losses: u64,
    found: Result<Found, String>,
}

enum Found {
    /// Every chunk below this root is here and durable.
    Whole(NodeId),
    /// Everything is here, but some only in plain files that may change at any time.
    OnLoan,
    /// There is more in the working tree than in its root; when it is published it is looked at again.
    Unsettled,
    Lacking(Vec<(Item, u32)>),
}

impl Replica {
    pub(super) fn new(wanted: bool) -> Self {
        Self {
            wanted,
            running: false,
            stale: true,
            pack: false,
            not_before: Duration::ZERO,
            failures: 0,
            whole: None,
        }
    }

    pub(super) fn set(&mut self, wanted: bool) {
        self.wanted = wanted;
        self.stale = true;
        if !wanted {
            self.whole = None;
        }
        self.try_now();
    }

    /// What was in the way may be gone: the next round does not wait for earlier failures.
    pub(super) fn try_now(&mut self) {
        if self.failures > 0 {
            self.failures = 0;
            self.not_before = Duration::ZERO;
        }
    }

    pub(super) fn is_wanted(&self) -> bool {
        self.wanted
    }

    pub(super) fn changed(&mut self) {
        self.stale = true;
        if std::mem::take(&mut self.pack) {
            self.not_before = Duration::ZERO;
        }
    }

    /// When there is something to look for.
    pub(super) fn poll_timeout(&self) -> Option<Duration> {
        (self.wanted && !self.running && self.stale).then_some(self.not_before)
    }

    /// The root every chunk of which is here, as far as the last look knows.
    pub(super) fn whole(&self) -> Option<NodeId> {
        self.whole.map(|whole| whole.root)
    }

    /// Something that was here may have gone since the last look: nothing is vouched for before the next.
    pub(super) fn check_losses(&mut self, losses: u64) {
        if self.whole.is_some_and(|whole| whole.losses != losses) {
            self.whole = None;
            self.stale = true;
        }
    }

    pub(super) fn fetched(&mut self, ok: bool, now: Duration) {
        self.running = false;
        self.stale = true;
        if ok {
            self.failures = 0;
        } else {
            let wait = RETRY_TIME_MIN * 2_u32.pow(self.failures.min(10));
            self.not_before = now + wait.min(RETRY_TIME_MAX);
            self.failures += 1;
        }
    }
}

impl Missing {
    /// The look itself failed.
    pub(super) fn failed(why: String) -> Self {
        Self {
            took: Duration::ZERO,
            losses: 0,
            found: Err(why),
        }
    }
}

impl Swarm {
    pub(super) fn start_replica(&mut self) {
        let r = &mut self.replica;
        let now = self.clock.now();
        if !r.wanted || r.running || !r.stale || r.not_before > now || self.ending.is_some() {
            return;
        }
        r.running = true;
        r.stale = false;
        let folder = self.config.folder.clone();
        let (clock, store) = (self.clock, Arc::clone(&self.config.store));
        let (whole, pack) = (r.whole(), std::mem::take(&mut r.pack));
        let panicked = Missing::failed("looking for what is missing panicked".to_owned());
        let look = move || {
            let (losses, start) = (store.losses(), clock.now());
            let found = look(&folder, &store, whole, pack);
            JobDone::Missing(Missing {
                losses,
                found,
                took: clock.now() - start,
            })
        };
        let otherwise = JobDone::Missing(panicked);
        self.start_job(otherwise, look);
    }

    pub(super) fn replica_missing(&mut self, missing: Missing) {
        let now = self.clock.now();
        self.replica.not_before = now + missing.took * LOOK_SHARE;
        let losses = missing.losses;
        match missing.found {
            Ok(Found::Whole(root)) => {
                self.replica.running = false;
                self.replica.whole = self.replica.wanted.then_some(Whole { root, losses });
                self.replica.check_losses(self.config.store.losses());
            }
            Ok(Found::OnLoan) => {
                self.replica.running = false;
                // A change meanwhile is looked at first.
                if !self.replica.stale {
                    self.replica.stale = true;
                    self.replica.pack = true;
                    self.replica.not_before = now + PACK_DELAY;
                }
            }
            Ok(Found::Unsettled) => self.replica.running = false,
            Ok(Found::Lacking(items)) => {
                let deadline = now + BACKGROUND_DEADLINE;
                let job = self.ask_for(items, Priority::Replica, deadline);
                self.waiters.insert(job, Waiter::Replica);
            }
            Err(error) => {
                tracing::warn!(error, "cannot see what is missing");
                self.replica.fetched(false, now);
            }
        }
    }
}

/// Looks at what is different from the root that is known to be whole. Peers are told that everything is here only once
/// it is durable.
fn look(
    folder: &Folder,
    store: &Store,
    whole: Option<NodeId>,
    pack: bool,
) -> Result<Found, String> {
    let text = |error: &dyn std::fmt::Display| error.to_string();
    let lacking = folder
        .lacking(whole, ROUND_ITEMS_MAX, pack)
        .map_err(|error| text(&error))?;
    if lacking.whole {
        store.sync().map_err(|error| text(&error))?;
        return Ok(Found::Whole(lacking.root));
    }
    if lacking.on_loan {
        return Ok(Found::OnLoan);
    }
    let missing = lacking.missing;
    let chunks = missing.chunks.into_iter();
    let chunks = chunks.map(|chunk| (Item::Chunk(chunk.hash), chunk.len));
    let node = |(kind, id)| (Item::Node { kind, id }, NODE_BYTES_GUESS);
    let items: Vec<_> = chunks.chain(missing.nodes.into_iter().map(node)).collect();
    Ok(match items.is_empty() {
        true => Found::Unsettled,
        false => Found::Lacking(items),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    impl Missing {
        pub(in crate::engine::swarm) fn error(&self) -> Option<&str> {
            self.found.as_ref().err().map(String::as_str)
        }
    }

    #[test]
    fn rounds_that_fail_come_ever_less_often() {
        let mut replica = Replica::new(true);
        let mut now = Duration::ZERO;
        let mut rounds = 0;
        while now < Duration::from_secs(3600) {
            now = now.max(replica.poll_timeout().unwrap());
            replica.running = true;
            assert_eq!(replica.poll_timeout(), None, "one round at a time");
            replica.fetched(false, now);
            rounds += 1;
        }
        assert!((15..=18).contains(&rounds), "{rounds} rounds in an hour");
        replica.try_now();
        assert_eq!(replica.poll_timeout(), Some(Duration::ZERO));
        replica.fetched(false, now);
        assert_eq!(replica.poll_timeout(), Some(now + RETRY_TIME_MIN));
    }

    fn whole() -> Replica {
        let mut replica = Replica::new(true);
        replica.stale = false;
        replica.whole = Some(Whole {
            root: NodeId::from_bytes([7; 32]),
            losses: 3,
        });
        replica
    }

    #[test]
    fn nothing_is_vouched_for_after_a_loss_until_the_next_look() {
        let mut replica = whole();
        replica.check_losses(3);
        assert_eq!(replica.whole(), Some(NodeId::from_bytes([7; 32])));
        assert_eq!(replica.poll_timeout(), None);
        replica.check_losses(4);
        assert_eq!(replica.whole(), None);
        assert_eq!(replica.poll_timeout(), Some(Duration::ZERO));
    }

    #[test]
    fn a_folder_that_is_not_kept_whole_vouches_for_nothing() {
        let mut replica = whole();
        replica.set(false);
        assert_eq!(replica.whole(), None);
    }

    #[test]
    fn a_change_is_looked_at_before_what_is_on_loan_is_copied() {
        let mut replica = whole();
        replica.stale = true;
        replica.pack = true;
        replica.not_before = Duration::from_secs(100);
        replica.changed();
        assert!(!replica.pack);
        assert_eq!(replica.poll_timeout(), Some(Duration::ZERO));
    }
}
