//! Keeping the whole content here: after every change, find what is missing and fetch it.

use std::sync::Arc;
use std::time::Duration;

use ccbt_xet::hash::NodeId;

use super::{BACKGROUND_DEADLINE, JobDone, NODE_BYTES_GUESS, Swarm, Waiter, outcome_of};
use crate::proto::scheduler::{Item, Priority};

/// Items asked for in one round; then the rest is looked at again.
const ROUND_ITEMS_MAX: usize = 4096;
/// After a round that failed the next one waits this long, doubled with each further failure.
const RETRY_TIME_MIN: Duration = Duration::from_secs(5);
/// Longest wait after failures: a full disk is looked at again this often.
const RETRY_TIME_MAX: Duration = Duration::from_secs(320);
/// Looking through a folder takes at most one part in this many of the time.
const LOOK_SHARE: u32 = 20;

/// Whether and how far the content is kept whole.
#[derive(Debug)]
pub(super) struct Replica {
    wanted: bool,
    running: bool,
    /// Something changed since the last look.
    stale: bool,
    not_before: Duration,
    /// Failed rounds in a row.
    failures: u32,
    whole: Option<NodeId>,
}

/// What a look at the folder found.
pub(super) struct Missing {
    root: NodeId,
    took: Duration,
    items: Result<Vec<(Item, u32)>, String>,
}

impl Replica {
    pub(super) fn new(wanted: bool) -> Self {
        Self {
            wanted,
            running: false,
            stale: true,
            not_before: Duration::ZERO,
            failures: 0,
            whole: None,
        }
    }

    pub(super) fn set(&mut self, wanted: bool) {
        self.wanted = wanted;
        self.stale = true;
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
    }

    /// When there is something to look for.
    pub(super) fn poll_timeout(&self) -> Option<Duration> {
        (self.wanted && !self.running && self.stale).then_some(self.not_before)
    }

    /// The root every chunk of which is here, as far as the last look knows.
    pub(super) fn whole(&self) -> Option<NodeId> {
        self.whole
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
    pub(super) fn failed(root: NodeId, why: String) -> Self {
        let (took, items) = (Duration::ZERO, Err(why));
        Self { root, took, items }
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
        let root = folder.root().0;
        let panicked = Missing::failed(root, "looking for what is missing panicked".to_owned());
        let look = move || {
            let start = clock.now();
            let lacking = folder
                .missing(ROUND_ITEMS_MAX)
                .map_err(|error| error.to_string());
            let items = lacking.map(|missing| {
                let chunks = missing
                    .chunks
                    .into_iter()
                    .map(|c| (Item::Chunk(c.hash), c.len));
                let node = |(kind, id)| (Item::Node { kind, id }, NODE_BYTES_GUESS);
                chunks.chain(missing.nodes.into_iter().map(node)).collect()
            });
            // Peers are told that everything is here only once it is durable.
            let items = items.and_then(|items: Vec<_>| {
                if items.is_empty() {
                    store.sync().map_err(|error| error.to_string())?;
                }
                Ok(items)
            });
            JobDone::Missing(Missing {
                root,
                items,
                took: clock.now() - start,
            })
        };
        let otherwise = JobDone::Missing(panicked);
        self.jobs
            .spawn_blocking(move || outcome_of(otherwise, look));
    }

    pub(super) fn replica_missing(&mut self, missing: Missing) {
        let now = self.clock.now();
        self.replica.not_before = now + missing.took * LOOK_SHARE;
        match missing.items {
            Ok(items) if items.is_empty() => {
                self.replica.running = false;
                self.replica.whole = Some(missing.root);
            }
            Ok(items) => {
                let deadline = now + BACKGROUND_DEADLINE;
                let job = self.scheduler.add_job(items, Priority::Replica, deadline);
                self.waiters.insert(job, Waiter::Replica);
            }
            Err(error) => {
                tracing::warn!(error, "cannot see what is missing");
                self.replica.fetched(false, now);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    impl Missing {
        pub(in crate::engine::swarm) fn error(&self) -> Option<&str> {
            self.items.as_ref().err().map(String::as_str)
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
}
