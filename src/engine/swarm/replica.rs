//! Keeping the whole content here: after every change, find what is missing and fetch it.
//!
//! What is missing is asked for in rounds. A round is not waited for: when the folder changes, the next one, with what is
//! new, takes its place. What every connected member lacks ends a round as soon as nothing else is on its way; then the
//! rest of what is missing has its turn, and only when a whole turn has brought nothing the next one waits.

use std::sync::Arc;
use std::time::Duration;

use ccbt_xet::hash::NodeId;
use ccbt_xet::store::Store;

use super::{BACKGROUND_DEADLINE, JobDone, NODE_BYTES_GUESS, Swarm, Waiter};
use crate::folder::work::{FetchError, Folder, Part};
use crate::proto::scheduler::{Item, JobId, Priority};

/// Items asked for in one round; then the rest is looked at again.
const ROUND_ITEMS_MAX: usize = 4096;
/// A round of which nothing can come ends after this long: within it who lacked something is asked once more, in case it
/// came there meanwhile.
const BARREN_TIME: Duration = Duration::from_secs(2);
/// After a turn that brought nothing the next one waits this long, doubled with each further one.
pub(super) const RETRY_TIME_MIN: Duration = Duration::from_secs(5);
/// Longest wait for what no member has: it may come to one that does not say so.
const RETRY_TIME_MAX: Duration = Duration::from_secs(60);
/// Longest wait for our own disk, which what comes is lost on: a full one is looked at again this often.
const RETRY_TIME_MAX_DISK: Duration = Duration::from_secs(320);
/// What is only on loan is copied once nothing has changed for this long: it may be as much as the folder, and the file
/// that lends it may get the new version meanwhile.
const PACK_DELAY: Duration = Duration::from_secs(10);
/// Looking through a folder takes at most one part in this many of the time.
const LOOK_SHARE: u32 = 20;
/// What came is told to who keeps a copy of the folder when nothing more came for so long, so that files are whole, ..
const TELL_QUIET: Duration = Duration::from_millis(50);
/// .. and this long after the first of a stream.
const TELL_STREAM: Duration = Duration::from_secs(1);

/// Whether and how far the content is kept whole.
#[derive(Debug)]
pub(super) struct Replica {
    wanted: bool,
    looking: bool,
    /// Something changed since the last look.
    stale: bool,
    /// The next look stores what is only on loan.
    pack: bool,
    not_before: Duration,
    round: Option<Round>,
    /// Of what is missing so many were found to be with nobody: the next look begins behind them.
    from: usize,
    /// Turns in a row that brought nothing.
    failures: u32,
    /// It was our own disk the last time.
    disk_failed: bool,
    whole: Option<Whole>,
    /// The first and the last arrival that nobody was told of yet.
    arrived: Option<(Duration, Duration)>,
}

/// What is being fetched.
#[derive(Debug, Clone, Copy)]
struct Round {
    job: JobId,
    /// Things the look found; one may be among them more than once.
    found: usize,
    /// Things asked for, and those of them that are not here yet.
    asked: usize,
    left: usize,
    /// More is missing behind what is asked for.
    more: bool,
    /// Since when all members are known to lack all that is left.
    barren_since: Option<Duration>,
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
    Lacking {
        items: Vec<(Item, u32)>,
        more: bool,
    },
}

impl Replica {
    pub(super) fn new(wanted: bool) -> Self {
        Self {
            wanted,
            looking: false,
            stale: true,
            pack: false,
            not_before: Duration::ZERO,
            round: None,
            from: 0,
            failures: 0,
            disk_failed: false,
            whole: None,
            arrived: None,
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

    /// A member came, or has more than before: it may have what nobody had.
    pub(super) fn member_has_more(&mut self) {
        if !self.disk_failed {
            self.try_now();
        }
    }

    pub(super) fn is_wanted(&self) -> bool {
        self.wanted
    }

    /// The folder shows something else. What it shows now is looked for at once, whatever could not be had before.
    pub(super) fn changed(&mut self) {
        self.stale = true;
        if std::mem::take(&mut self.pack) {
            self.not_before = Duration::ZERO;
        }
        self.member_has_more();
    }

    /// When there is something to look for or to tell.
    pub(super) fn poll_timeout(&self) -> Option<Duration> {
        let look = (self.wanted && !self.looking && self.stale).then_some(self.not_before);
        look.into_iter().chain(self.tell_at()).min()
    }

    fn tell_at(&self) -> Option<Duration> {
        let (first, last) = self.arrived?;
        Some((last + TELL_QUIET).min(first + TELL_STREAM))
    }

    /// Whether it is time to tell that content has come.
    fn take_arrived(&mut self, now: Duration) -> bool {
        let is_time = self.tell_at().is_some_and(|at| at <= now);
        is_time && self.arrived.take().is_some()
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

    /// Which part of what is missing to look for, if it is time to look.
    fn start_look(&mut self, now: Duration) -> Option<Part> {
        if !self.wanted || self.looking || !self.stale || self.not_before > now {
            return None;
        }
        self.looking = true;
        self.stale = false;
        // What takes the place of a round that got nowhere does not begin with the same.
        if let Some(round) = self.round.filter(|round| round.barren_since.is_some()) {
            self.pass(&round);
        }
        Some(Part {
            from: self.from,
            count: ROUND_ITEMS_MAX,
        })
    }

    /// What a look found is asked for. Returns the job whose place this one takes.
    fn start_round(&mut self, round: Round) -> Option<JobId> {
        self.round.replace(round).map(|before| before.job)
    }

    /// Nothing is missing any more. Returns the job that is of no use.
    fn end_round(&mut self) -> Option<JobId> {
        self.from = 0;
        self.round.take().map(|round| round.job)
    }

    /// Something came; so many things of the round are still missing.
    pub(super) fn handle_arrived(&mut self, now: Duration, left: impl Fn(JobId) -> Option<usize>) {
        if !self.wanted {
            return;
        }
        let (first, _) = self.arrived.unwrap_or((now, now));
        self.arrived = Some((first, now));
        if let Some(round) = &mut self.round {
            round.left = left(round.job).unwrap_or(0);
        }
    }

    /// Returns the job to be given up because nothing of it can come.
    pub(super) fn handle_tick(
        &mut self,
        now: Duration,
        is_barren: impl Fn(JobId) -> bool,
    ) -> Option<JobId> {
        let round = self.round.as_mut()?;
        if !is_barren(round.job) {
            round.barren_since = None;
            return None;
        }
        let since = *round.barren_since.get_or_insert(now);
        (since + BARREN_TIME <= now).then_some(round.job)
    }

    /// A job of ours has ended. What brought something is no failure, whatever it was that did not come.
    pub(super) fn handle_ended(&mut self, now: Duration, job: JobId, why: Result<(), FetchError>) {
        let Some(round) = self.round.take_if(|round| round.job == job) else {
            return;
        };
        self.stale = true;
        match why {
            Ok(()) => self.failures = 0,
            Err(FetchError::NoSpace) => self.fail(now, true),
            Err(_) => {
                let had_more = round.more;
                self.pass(&round);
                if round.left < round.asked {
                    self.failures = 0;
                } else if !had_more {
                    self.fail(now, false);
                }
            }
        }
    }

    /// What is left of a round is left out next time, until the turn is over.
    fn pass(&mut self, round: &Round) {
        self.from = match round.more {
            true => self.from + round.found - (round.asked - round.left),
            false => 0,
        };
    }

    fn fail(&mut self, now: Duration, disk: bool) {
        let most = match disk {
            true => RETRY_TIME_MAX_DISK,
            false => RETRY_TIME_MAX,
        };
        let wait = RETRY_TIME_MIN * 2_u32.pow(self.failures.min(10));
        self.not_before = self.not_before.max(now + wait.min(most));
        self.failures += 1;
        self.disk_failed = disk;
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
        let now = self.clock.now();
        if self.replica.take_arrived(now) {
            self.config.folder.note_arrival();
        }
        if self.ending.is_some() {
            return;
        }
        let Some(part) = self.replica.start_look(now) else {
            return;
        };
        let folder = self.config.folder.clone();
        let (clock, store) = (self.clock, Arc::clone(&self.config.store));
        let pack = std::mem::take(&mut self.replica.pack);
        let whole = self.replica.whole();
        let panicked = Missing::failed("looking for what is missing panicked".to_owned());
        let look = move || {
            let (losses, start) = (store.losses(), clock.now());
            let found = look(&folder, &store, whole, part, pack);
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
        self.replica.looking = false;
        self.replica.not_before = now + missing.took * LOOK_SHARE;
        let losses = missing.losses;
        let before = match missing.found {
            Ok(Found::Whole(root)) => {
                self.replica.failures = 0;
                self.replica.whole = self.replica.wanted.then_some(Whole { root, losses });
                self.replica.check_losses(self.config.store.losses());
                self.replica.end_round()
            }
            Ok(Found::OnLoan) => {
                // A change meanwhile is looked at first.
                if !self.replica.stale {
                    self.replica.stale = true;
                    self.replica.pack = true;
                    self.replica.not_before = now + PACK_DELAY;
                }
                self.replica.end_round()
            }
            Ok(Found::Unsettled) => self.replica.end_round(),
            Ok(Found::Lacking { items, more }) => {
                let deadline = now + BACKGROUND_DEADLINE;
                let found = items.len();
                let job = self.ask_for(items, Priority::Replica, deadline);
                self.waiters.insert(job, Waiter::Replica);
                let asked = self.scheduler.left(job).unwrap_or(0);
                self.replica.start_round(Round {
                    job,
                    found,
                    asked,
                    left: asked,
                    more,
                    barren_since: None,
                })
            }
            Err(error) => {
                tracing::warn!(error, "cannot see what is missing");
                self.replica.stale = true;
                self.replica.fail(now, true);
                None
            }
        };
        // Only now: what both want is not asked for again.
        if let Some(before) = before {
            self.waiters.remove(&before);
            self.scheduler.cancel(before);
        }
    }

    /// Gives up a round of which nothing can come.
    pub(super) fn weigh_replica(&mut self) {
        let now = self.clock.now();
        let Self {
            replica, scheduler, ..
        } = self;
        if let Some(job) = replica.handle_tick(now, |job| scheduler.is_barren(job)) {
            scheduler.cancel(job);
        }
    }

    pub(super) fn replica_ended(&mut self, job: JobId, result: Result<(), FetchError>) {
        if self.replica.arrived.take().is_some() {
            self.config.folder.note_arrival();
        }
        self.replica.handle_ended(self.clock.now(), job, result);
    }
}

/// Looks at what is different from the root that is known to be whole. Peers are told that everything is here only once
/// it is durable.
fn look(
    folder: &Folder,
    store: &Store,
    whole: Option<NodeId>,
    part: Part,
    pack: bool,
) -> Result<Found, String> {
    let text = |error: &dyn std::fmt::Display| error.to_string();
    let lacking = folder
        .lacking(whole, part, pack)
        .map_err(|error| text(&error))?;
    if lacking.whole {
        store.sync().map_err(|error| text(&error))?;
        return Ok(Found::Whole(lacking.root));
    }
    if lacking.on_loan {
        return Ok(Found::OnLoan);
    }
    let (missing, more) = (lacking.missing, lacking.more);
    let chunks = missing.chunks.into_iter();
    let chunks = chunks.map(|chunk| (Item::Chunk(chunk.hash), chunk.len));
    let node = |(kind, id)| (Item::Node { kind, id }, NODE_BYTES_GUESS);
    let items: Vec<_> = chunks.chain(missing.nodes.into_iter().map(node)).collect();
    Ok(match items.is_empty() {
        true => Found::Unsettled,
        false => Found::Lacking { items, more },
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

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    /// Plays a look that finds `found` things missing and asks for them as job `job`. Returns where it began.
    fn ask(replica: &mut Replica, now: Duration, job: u64, found: usize, more: bool) -> usize {
        let part = replica.start_look(now).expect("it is time to look");
        assert_eq!(replica.start_look(now), None, "one look at a time");
        replica.looking = false;
        replica.start_round(Round {
            job: JobId(job),
            found,
            asked: found,
            left: found,
            more,
            barren_since: None,
        });
        part.from
    }

    fn come(replica: &mut Replica, now: Duration, left: usize) {
        replica.handle_arrived(now, |_| Some(left));
    }

    /// Ticks until the round is given up, whose members all lack what is left. Returns when.
    fn starve(replica: &mut Replica, mut now: Duration) -> Duration {
        loop {
            if let Some(job) = replica.handle_tick(now, |_| true) {
                replica.handle_ended(now, job, Err(FetchError::Closed));
                return now;
            }
            now += ms(1000);
        }
    }

    #[test]
    fn a_full_disk_is_tried_ever_less_often_whatever_changes() {
        let mut replica = Replica::new(true);
        let (mut now, mut rounds) = (Duration::ZERO, 0);
        while now < Duration::from_secs(3600) {
            now = now.max(replica.not_before);
            ask(&mut replica, now, rounds, 10, false);
            come(&mut replica, now, 5);
            replica.handle_ended(now, JobId(rounds), Err(FetchError::NoSpace));
            replica.changed();
            replica.member_has_more();
            rounds += 1;
        }
        assert!((15..=18).contains(&rounds), "{rounds} rounds in an hour");
        replica.try_now();
        assert_eq!(replica.not_before, Duration::ZERO);
    }

    #[test]
    fn what_nobody_has_is_asked_for_ever_less_often_until_something_changes() {
        let mut replica = Replica::new(true);
        ask(&mut replica, ms(0), 1, 3, false);
        assert_eq!(replica.poll_timeout(), None);
        let mut now = starve(&mut replica, ms(500));
        assert_eq!(now, ms(2500));
        for wait in [5, 10, 20, 40, 60, 60] {
            let next = now + Duration::from_secs(wait);
            assert_eq!(replica.poll_timeout(), Some(next));
            ask(&mut replica, next, 1, 3, false);
            now = starve(&mut replica, next);
        }
        replica.changed();
        assert_eq!(replica.poll_timeout(), Some(Duration::ZERO));
        ask(&mut replica, now, 1, 3, false);
        now = starve(&mut replica, now);
        replica.member_has_more();
        assert_eq!(replica.poll_timeout(), Some(Duration::ZERO));
        assert!(replica.start_look(now).is_some());
    }

    #[test]
    fn a_change_is_looked_at_while_a_round_waits_for_what_nobody_has() {
        let mut replica = Replica::new(true);
        ask(&mut replica, ms(0), 1, 3, false);
        replica.changed();
        ask(&mut replica, ms(10), 2, 4, false);
        replica.handle_ended(ms(20), JobId(1), Err(FetchError::Closed));
        assert_eq!(replica.poll_timeout(), None, "the second round goes on");
        come(&mut replica, ms(30), 3);
        let given_up = starve(&mut replica, ms(1000));
        assert_eq!(replica.not_before, ms(0), "the new thing came");
        ask(&mut replica, given_up, 3, 3, false);
    }

    #[test]
    fn a_round_that_moves_is_never_given_up_and_is_no_failure() {
        let mut replica = Replica::new(true);
        ask(&mut replica, ms(0), 1, 1000, false);
        for second in 0..600 {
            let now = ms(second * 1000);
            come(&mut replica, now, 1000 - second as usize);
            // Now and then everything on its way has just come, and the rest is asked for again.
            let given_up = replica.handle_tick(now, |_| second % 2 == 0);
            assert_eq!(given_up, None, "after {second} s");
        }
        let end = ms(600_000);
        replica.handle_ended(end, JobId(1), Err(FetchError::TimedOut));
        ask(&mut replica, end, 2, 401, false);
    }

    #[test]
    fn what_nobody_has_lets_the_rest_have_its_turn() {
        let mut replica = Replica::new(true);
        // 4,096 that nobody has, 4,096 of which half come, 10 that nobody has.
        assert_eq!(ask(&mut replica, ms(0), 1, 4096, true), 0);
        let now = starve(&mut replica, ms(0));
        assert_eq!(ask(&mut replica, now, 2, 4096, true), 4096);
        come(&mut replica, now, 2048);
        let now = starve(&mut replica, now);
        assert_eq!(ask(&mut replica, now, 3, 10, false), 6144);
        let now = starve(&mut replica, now);
        assert!(replica.not_before > now, "nothing came in the last round");
        replica.changed();
        assert_eq!(ask(&mut replica, now, 4, 4096, true), 0, "a new turn");
        // Changes all the time do not keep the others from their turn.
        assert_eq!(replica.handle_tick(now, |_| true), None);
        replica.changed();
        assert_eq!(ask(&mut replica, now, 5, 4096, true), 4096);
    }

    #[test]
    fn what_came_is_told_when_it_is_quiet_and_in_a_stream_now_and_then() {
        let mut replica = Replica::new(true);
        ask(&mut replica, ms(0), 1, 1000, false);
        come(&mut replica, ms(100), 9);
        assert_eq!(replica.poll_timeout(), Some(ms(150)));
        assert!(!replica.take_arrived(ms(149)));
        assert!(replica.take_arrived(ms(150)) && !replica.take_arrived(ms(150)));
        let mut told = 0;
        for at in 0..200 {
            come(&mut replica, ms(1000 + at * 10), 8);
            told += u32::from(replica.take_arrived(ms(1000 + at * 10)));
        }
        assert_eq!(told, 1);
        let mut lazy = Replica::new(false);
        come(&mut lazy, ms(0), 0);
        assert_eq!(lazy.poll_timeout(), None);
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
