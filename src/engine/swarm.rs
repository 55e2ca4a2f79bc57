//! One actor per folder: who is connected, which heads are believed, what is fetched from whom, when to publish.
//!
//! Shape: [`Swarm::select`] waits for the next [`Action`], [`Swarm::apply`] changes state and never waits, `pump` turns
//! the new state into requests, dials and jobs. Whatever takes long (merging, publishing, reading the disk) runs as a
//! job on the blocking pool and comes back as an action; at most one merge and one publication run at a time.

mod adopt;
mod handle;
mod hints;
mod kept;
mod members;
mod publish;
mod replica;
mod status;

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Weak};
use std::time::Duration;

use ccbt_xet::hash::NodeId;
use ccbt_xet::store::Store;
use parking_lot::RwLock;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tracing::{Instrument, Span};

use self::adopt::Adoption;
use self::handle::Message;
pub(super) use self::handle::{Credit, PeerEvents};
pub use self::handle::{SwarmHandle, SwarmInbox, channel};
use self::hints::Hints;
pub use self::hints::Outlook;
pub use self::kept::Elsewhere;
use self::kept::Kept;
pub use self::members::WRONG_SUITE;
pub use self::publish::NotPublished;
use self::replica::Replica;
pub use self::status::{HeadView, PeerView, SwarmStatus};
use super::dial::Dialer;
use super::gate::Door;
use super::peer::{PeerCounters, PeerInfo, ToPeer};
use crate::clock::{self, Elapsed};
use crate::folder::work::{Dirty, FetchError, Fetched, Folder};
use crate::proto::scheduler::{Failure, Item, JobId, Output, PeerKey, Priority, Scheduler};
use crate::proto::ut_xet::{Frame, Holding};
use crate::share::head::HEAD_LEN;
use crate::share::heads::Heads;
use crate::share::pace::Pace;
use crate::share::{
    Certificate, DeviceId, DeviceKey, FolderCredentials, Head, Incarnation, Unverified,
};
use crate::telemetry::Metrics;

/// Messages taken from the channel before the state is acted on again.
const BATCH_MAX: usize = 256;
/// Read-ahead and replica jobs may take this long; they are asked for again if somebody still wants them.
const BACKGROUND_DEADLINE: Duration = Duration::from_secs(600);
/// Guess for a node's size when it is asked for; nodes are at most 224 KiB and mostly far smaller.
const NODE_BYTES_GUESS: u32 = 16 * 1024;
/// Heads or certificates in one frame; the protocol allows 1024.
const LIST_MAX: usize = 512;
/// Addresses in one PEERS frame.
const PEERS_MAX: usize = 64;
/// How often things that need no exact time are looked at.
const TICK: Duration = Duration::from_secs(1);

/// Everything a swarm is started with.
pub struct SwarmConfig {
    pub name: String,
    pub credentials: Arc<FolderCredentials>,
    pub device: Arc<DeviceKey>,
    pub incarnation: Incarnation,
    pub epoch: u32,
    pub folder: Folder,
    pub store: Arc<Store>,
    /// Where the table of heads is kept.
    pub heads_file: PathBuf,
    /// How long a blocked reader waits for its bytes.
    pub read_timeout: Duration,
    /// Addresses the user gave.
    pub given: Vec<SocketAddr>,
    /// Keep the whole content here.
    pub replica: bool,
    /// This device holds the folder in a home: its heads say so.
    pub keeper: bool,
    /// Talk to peers at all. A folder that is only mounted here does not.
    pub online: bool,
    /// Device names by incarnation, kept current for the names of conflict files. Begins with those known so far.
    pub names: Names,
    /// Tell members of each other.
    pub exchange: bool,
    /// What this process says in HELLO.
    pub nonce: [u8; 8],
    pub metrics: Arc<Metrics>,
    /// What is logged of the folder is logged in it.
    pub span: Span,
    /// Told of every member that is met, by the address it can be called at. Must not wait.
    pub met: Arc<dyn Fn(SocketAddr) + Send + Sync>,
}

/// See [`SwarmConfig::names`].
pub type Names = Arc<RwLock<BTreeMap<[u8; 8], String>>>;

/// Who waits for a scheduler job.
enum Waiter {
    Caller(Fetched),
    Adoption(Incarnation),
    Replica,
}

/// A connected member.
struct Peer {
    info: PeerInfo,
    addr: SocketAddr,
    /// We called it.
    called: bool,
    /// Where it can be called, if anywhere.
    reach: Option<SocketAddr>,
    since: Duration,
    commands: mpsc::UnboundedSender<ToPeer>,
    counters: Arc<PeerCounters>,
    /// The root it last said it shows, and whether it holds every chunk of it.
    shows: Option<(NodeId, bool)>,
    /// It promised to keep this root's chunks.
    stored: Option<NodeId>,
    /// It has promised that of some root: it is on its way to the next.
    keeps: bool,
    /// The root of ours it was told all heads of because it showed another.
    reminded: Option<NodeId>,
}

impl Peer {
    /// The device it has proven to be; a reader does not.
    fn device(&self) -> Option<DeviceId> {
        Some(self.info.certificate.as_ref()?.device())
    }
}

/// What a finished job brings back.
enum JobDone {
    Adopted(Incarnation, Box<adopt::Attempt>),
    Published(Box<publish::Outcome>),
    Missing(replica::Missing),
    Other,
}

enum Action {
    Messages(Vec<Message>),
    Job(JobDone),
    Tick,
    Closed,
}

/// See the module documentation.
pub(super) struct Swarm {
    config: SwarmConfig,
    credentials: Arc<FolderCredentials>,
    clock: Elapsed,
    tx: mpsc::UnboundedSender<Message>,
    rx: mpsc::UnboundedReceiver<Message>,
    dialer: Dialer,
    dial: Arc<dyn Dial>,
    scheduler: Scheduler,
    waiters: HashMap<JobId, Waiter>,
    /// Fetches that are of use only as long as somebody is interested.
    interests: Vec<(JobId, Weak<()>)>,
    peers: BTreeMap<PeerKey, Peer>,
    heads: Heads,
    heads_saved: bool,
    kept: Kept,
    /// Peers were told that we hold some tree whole, and nothing was lost since.
    vouching: bool,
    adoptions: BTreeMap<Incarnation, Adoption>,
    adopting: bool,
    hints: Hints,
    pace: Pace,
    publishing: bool,
    /// Who waits for the publication that runs, and who asked after it began.
    publish_waiters: Vec<oneshot::Sender<Result<(), NotPublished>>>,
    next_publish_waiters: Vec<oneshot::Sender<Result<(), NotPublished>>>,
    publish_again: bool,
    published_at: Option<Duration>,
    replica: Replica,
    /// The root last told to peers, with whether every chunk of it is here.
    told: Option<(NodeId, bool)>,
    jobs: JoinSet<JobDone>,
    next_tick: Duration,
    ending: Option<oneshot::Sender<()>>,
    trouble: Option<String>,
    /// Why what peers send cannot be kept, and when that was seen last; until something could.
    not_stored: Option<(String, Duration)>,
    /// Our state is older than what we published under this incarnation: nothing more is done under it.
    rolled_back: bool,
    /// The owner's manifest names another hash suite than the link we have: nothing of the folder would be what it is
    /// called.
    wrong_suite: bool,
}

/// Opens a connection and runs its task; the outcome comes back as messages.
pub trait Dial: Send + Sync {
    fn dial(&self, addr: SocketAddr, door: Door);

    /// The folder's credentials changed (a manifest came): who calls next is met with these.
    fn reopen(&self, door: Door);
}

/// Starts the actor of a folder.
pub fn spawn(inbox: SwarmInbox, config: SwarmConfig, dial: Arc<dyn Dial>) {
    let clock = Elapsed::start();
    let mut dialer = Dialer::default();
    for addr in &config.given {
        dialer.give(*addr);
    }
    let mut heads = Heads::new(config.credentials.folder, config.credentials.write);
    restore_heads(&mut heads, &config);
    let replica = Replica::new(config.replica);
    let kept = Kept::load(&kept::path(&config.heads_file));
    let span = config.span.clone();
    let mut swarm = Swarm {
        credentials: Arc::clone(&config.credentials),
        config,
        clock,
        tx: inbox.tx,
        rx: inbox.rx,
        dialer,
        dial,
        scheduler: Scheduler::new(),
        waiters: HashMap::new(),
        interests: Vec::new(),
        peers: BTreeMap::new(),
        heads,
        heads_saved: true,
        kept,
        vouching: false,
        adoptions: BTreeMap::new(),
        adopting: false,
        hints: Hints::default(),
        pace: Pace::default(),
        publishing: false,
        publish_waiters: Vec::new(),
        next_publish_waiters: Vec::new(),
        publish_again: false,
        published_at: None,
        replica,
        told: None,
        jobs: JoinSet::new(),
        next_tick: Duration::ZERO,
        ending: None,
        trouble: None,
        not_stored: None,
        rolled_back: false,
        wrong_suite: false,
    };
    tokio::spawn(async move { swarm.run().await }.instrument(span));
}

fn restore_heads(heads: &mut Heads, config: &SwarmConfig) {
    let today = clock::unix_days();
    if let Ok(bytes) = std::fs::read(&config.heads_file)
        && let Err(error) = heads.restore(&bytes, today)
    {
        tracing::warn!(%error, "the table of heads is damaged; peers will send it again");
    }
    if let Some(manifest) = &config.credentials.manifest {
        let _known = heads.offer_manifest(manifest.clone().into());
    }
    if let Some(writer) = &config.credentials.writer {
        let _known = heads.offer_certificate(writer.certificate.clone().into(), today);
    }
    if let Some(head) = own_head(config) {
        let _known = heads
            .check(head, u64::MAX >> 16)
            .map(|head| head.is_some_and(|h| heads.take(h)));
    }
}

/// The head we signed last, if its number became durable. It may be missing in the table of heads.
fn own_head(config: &SwarmConfig) -> Option<Unverified<Head>> {
    let bytes = std::fs::read(config.own_head_file()).ok()?;
    let is_last = config.folder.published_head() == Some(*blake3::hash(&bytes).as_bytes());
    let bytes = <[u8; HEAD_LEN]>::try_from(bytes).ok().filter(|_| is_last)?;
    Head::decode(&bytes).ok()
}

impl SwarmConfig {
    /// Where our own newest head is kept, beside the table.
    fn own_head_file(&self) -> PathBuf {
        self.heads_file.with_file_name("head")
    }
}

impl Swarm {
    async fn run(&mut self) {
        self.start_publication_if_dirty();
        loop {
            self.pump();
            if self.ended() {
                break;
            }
            match self.select().await {
                Action::Closed => break,
                action => self.apply(action),
            }
        }
        self.save_heads();
        self.save_kept();
        if let Some(done) = self.ending.take() {
            let _nobody = done.send(());
        }
    }

    async fn select(&mut self) -> Action {
        let at = tokio::time::Instant::from_std(self.clock.instant(self.next_timeout()));
        tokio::select! {
            message = self.rx.recv() => {
                let Some(first) = message else { return Action::Closed };
                let mut batch = vec![first];
                while batch.len() < BATCH_MAX && let Ok(message) = self.rx.try_recv() {
                    batch.push(message);
                }
                Action::Messages(batch)
            }
            Some(done) = self.jobs.join_next() => match done {
                Ok(done) => Action::Job(done),
                Err(error) => {
                    tracing::error!(%error, "a job of the folder panicked");
                    Action::Job(JobDone::Other)
                }
            },
            () = tokio::time::sleep_until(at) => Action::Tick,
        }
    }

    fn next_timeout(&self) -> Duration {
        let awake = self.ending.is_none();
        let dial = if self.config.online && awake {
            self.dialer.poll_timeout()
        } else {
            None
        };
        let replica = if awake {
            self.replica.poll_timeout()
        } else {
            None
        };
        let publish = if self.publishing {
            None
        } else {
            self.pace.due()
        };
        [self.scheduler.poll_timeout(), publish, dial, replica]
            .into_iter()
            .flatten()
            .fold(self.next_tick, Duration::min)
    }

    fn apply(&mut self, action: Action) {
        match action {
            Action::Messages(batch) => {
                for message in batch {
                    self.handle(message);
                }
            }
            Action::Job(done) => self.job_done(done),
            Action::Tick => {}
            Action::Closed => {}
        }
        let now = self.clock.now();
        if self.scheduler.poll_timeout().is_some_and(|at| at <= now) {
            self.scheduler.handle_timeout(now);
        }
        if self.next_tick <= now {
            self.next_tick = now + TICK;
            self.tick();
        }
    }

    fn handle(&mut self, message: Message) {
        let now = self.clock.now();
        match message {
            Message::Peer(event) => self.peer_event(event),
            Message::Dirty(Dirty::Writing) => self.pace.writing(now),
            Message::Dirty(_) => self.pace.changed(now),
            Message::Fetch {
                items,
                priority,
                interest,
                done,
            } => {
                self.drop_uninteresting();
                let patience = match priority {
                    Priority::Blocked => self.config.read_timeout,
                    _ => BACKGROUND_DEADLINE,
                };
                let job = self.ask_for(items, priority, now + patience);
                self.waiters.insert(job, Waiter::Caller(done));
                self.interests
                    .extend(interest.map(|interest| (job, interest)));
            }
            Message::DialFailed(addr) => self.dialer.failed(now, addr),
            Message::DialedOurselves(addr) => self.dialer.ourselves(addr),
            Message::Found(addr) => self.dialer.found(addr),
            Message::Give(addr) => self.dialer.give(addr),
            Message::Hinted(item) => self.hinted(item),
            Message::Manifest(manifest) => {
                if let Err(error) = self.manifest_offered(*manifest) {
                    tracing::debug!(%error, "manifest refused");
                }
            }
            Message::Outlook(reply) => {
                let _nobody = reply.send(self.outlook());
            }
            Message::SetReplica(on) => self.replica.set(on),
            Message::SetKeeper(on) => self.config.keeper = on,
            Message::SetOnline(on) => self.set_online(on && !self.wrong_suite),
            Message::Status(reply) => self.report_status(reply),
            Message::PublishNow(reply) => {
                self.next_publish_waiters.push(reply);
                self.publish_soon();
            }
            Message::Shutdown(reply) => {
                self.ending = Some(reply);
                self.publish_soon();
            }
        }
    }

    fn set_online(&mut self, on: bool) {
        self.config.online = on;
        if !on {
            for peer in self.peers.values() {
                let _gone = peer.commands.send(ToPeer::Close);
            }
        }
    }

    fn job_done(&mut self, done: JobDone) {
        match done {
            JobDone::Adopted(incarnation, attempt) => self.adopted(incarnation, *attempt),
            JobDone::Published(outcome) => self.published(*outcome),
            JobDone::Missing(missing) => self.replica_missing(missing),
            JobDone::Other => {}
        }
    }

    fn tick(&mut self) {
        if !self.publishing {
            self.save_heads();
        }
        self.save_kept();
        self.weigh_hints();
        self.retry_adoptions();
        self.drop_uninteresting();
        self.remind();
        self.weigh_replica();
        self.replica.check_losses(self.config.store.losses());
    }

    /// Tells peers that show something else than we do all heads we know, once for each root of ours: a head is forwarded to
    /// some peers only, and a frame may have been lost with a connection.
    fn remind(&mut self) {
        let Some((root, _)) = self.told else { return };
        let behind: Vec<PeerKey> = self
            .peers
            .iter()
            .filter(|(_, p)| p.shows.is_some_and(|(shown, _)| shown != root))
            .filter(|(_, p)| p.reminded != Some(root))
            .map(|(key, _)| *key)
            .collect();
        for key in behind {
            if let Some(peer) = self.peers.get_mut(&key) {
                peer.reminded = Some(root);
            }
            if let Some(peer) = self.peers.get(&key) {
                self.tell_heads(peer);
            }
        }
    }

    /// Who may write, and the newest heads.
    fn tell_heads(&self, peer: &Peer) {
        let send = |frame| {
            let _gone = peer.commands.send(ToPeer::Send(frame));
        };
        let certificates: Vec<Certificate> = self.heads.certificates().cloned().collect();
        for some in certificates.chunks(LIST_MAX) {
            send(Frame::Certs(some.iter().cloned().map(Into::into).collect()));
        }
        let heads: Vec<Head> = self.heads.heads().cloned().collect();
        for some in heads.chunks(LIST_MAX) {
            send(Frame::Heads(some.iter().cloned().map(Into::into).collect()));
        }
    }

    /// Turns state into requests, dials and jobs.
    fn pump(&mut self) {
        let now = self.clock.now();
        while let Some(output) = self.scheduler.poll_output(now) {
            self.scheduled(output);
        }
        if self.config.online && self.ending.is_none() {
            for addr in self.dialer.due(now) {
                self.dial.dial(addr, self.door());
            }
        }
        if self.pace.due().is_some_and(|at| at <= now) {
            self.start_publication();
        }
        self.start_adoption();
        self.start_replica();
        self.tell_state();
    }

    fn scheduled(&mut self, output: Output) {
        match output {
            Output::Request {
                peer,
                priority,
                items,
            } => {
                if let Some(p) = self.peers.get(&peer) {
                    let _gone = p.commands.send(ToPeer::Ask { priority, items });
                }
            }
            Output::Done(job) => self.wake(job, Ok(())),
            Output::Failed(job, why) => {
                if why == Failure::TimedOut {
                    self.config.metrics.fetch_timeouts.inc();
                }
                let error = match why {
                    Failure::TimedOut => FetchError::TimedOut,
                    Failure::NobodyHasIt => FetchError::NoPeer,
                    Failure::NotStored => FetchError::NoSpace,
                    Failure::Cancelled => FetchError::Closed,
                };
                self.wake(job, Err(error));
            }
        }
    }

    /// Starts a job for items that somebody missed when they looked. What has come since is not asked for: the look and
    /// the answer to somebody else may have crossed.
    fn ask_for(
        &mut self,
        mut items: Vec<(Item, u32)>,
        priority: Priority,
        until: Duration,
    ) -> JobId {
        let store = &self.config.store;
        items.retain(|(item, _)| !is_here(store, item));
        self.scheduler.add_job(items, priority, until)
    }

    /// Gives up what was asked for ahead of a reader that went elsewhere.
    fn drop_uninteresting(&mut self) {
        let Self {
            interests,
            waiters,
            scheduler,
            ..
        } = self;
        interests.retain(|(job, interest)| {
            let lives = interest.strong_count() > 0;
            if !lives {
                scheduler.cancel(*job);
            }
            lives && waiters.contains_key(job)
        });
    }

    fn wake(&mut self, job: JobId, result: Result<(), FetchError>) {
        match self.waiters.remove(&job) {
            Some(Waiter::Caller(done)) => {
                self.start_job(JobDone::Other, move || {
                    done(result);
                    JobDone::Other
                });
            }
            Some(Waiter::Adoption(incarnation)) => self.adoption_fetched(incarnation, result),
            Some(Waiter::Replica) => self.replica_ended(job, result),
            None => {}
        }
    }

    /// Tells peers what we show now, when that changed.
    fn tell_state(&mut self) {
        let root = self.config.folder.root().0;
        let whole = self.replica.whole() == Some(root);
        if self.told == Some((root, whole)) {
            return self.tell_losses(root);
        }
        let before = self.told.replace((root, whole));
        self.show(before.map(|(shown, _)| shown));
        self.vouching |= whole;
        for peer in self.peers.values() {
            let send = |frame| {
                let _gone = peer.commands.send(ToPeer::Send(frame));
            };
            send(have(root, whole));
            match before {
                _ if whole && self.may_vouch() => send(Frame::Stored(root)),
                Some((vouched, true)) if self.may_vouch() => send(Frame::Unstored(vouched)),
                _ => {}
            }
        }
        self.tell_losses(root);
    }

    /// Takes back what we said of a tree that we held whole, if something of it has gone.
    fn tell_losses(&mut self, root: NodeId) {
        if !self.vouching || self.replica.whole().is_some() {
            return;
        }
        self.vouching = false;
        if self.may_vouch() {
            for peer in self.peers.values() {
                let _gone = peer.commands.send(ToPeer::Send(Frame::Unstored(root)));
            }
        }
    }

    /// Notes which tree we show, for what keepers say of it, or have said.
    fn show(&mut self, before: Option<NodeId>) {
        let (root, vector) = self.config.folder.written();
        if before == Some(root) {
            return;
        }
        self.kept.shown(root, vector);
        for peer in self.peers.values().filter(|p| p.stored == Some(root)) {
            if let Some(keeper) = peer.device() {
                self.kept.stored(keeper, root);
            }
        }
    }

    fn save_kept(&mut self) {
        self.kept.save(&kept::path(&self.config.heads_file));
    }

    /// Whether others believe it when we say that we keep everything.
    fn may_vouch(&self) -> bool {
        self.credentials.writer.is_some()
    }

    /// Makes the names of devices known to the folder, for the names of conflict files. Before anything that a device wrote
    /// is shown, so that it is shown under one name from the start.
    fn name_devices(&mut self) {
        let pending = self.adoptions.values().map(|adoption| adoption.head());
        let named = self.heads.named(pending);
        let renamed = learn_names(&mut self.config.names.write(), named);
        if renamed {
            let folder = self.config.folder.clone();
            self.start_job(JobDone::Other, move || {
                folder.rename_siblings();
                JobDone::Other
            });
        }
    }

    /// Runs what may take long on the blocking pool. If it panics, what comes back is `otherwise`.
    fn start_job(&mut self, otherwise: JobDone, job: impl FnOnce() -> JobDone + Send + 'static) {
        let span = self.config.span.clone();
        self.jobs
            .spawn_blocking(move || span.in_scope(|| outcome_of(otherwise, job)));
    }

    fn save_heads(&mut self) {
        if self.heads_saved {
            return;
        }
        self.name_devices();
        self.heads_saved = true;
        let (file, bytes) = (self.config.heads_file.clone(), self.heads.encode());
        let saved = crate::state_file::replace(&file, &bytes);
        if let Err(error) = saved {
            tracing::warn!(%error, "cannot save the table of heads; peers will send it again");
        }
    }

    fn ended(&self) -> bool {
        self.ending.is_some() && !self.publishing && !self.publish_again
    }
}

/// Takes note of what devices are called. True if something may be shown under another name: what a device wrote that was
/// not known is shown under its incarnation, after a kill that was faster than the table of heads was saved.
fn learn_names<'n>(
    names: &mut BTreeMap<[u8; 8], String>,
    named: impl Iterator<Item = (Incarnation, &'n str)>,
) -> bool {
    let mut is_news = false;
    for (incarnation, name) in named {
        let known = names.insert(*incarnation.as_bytes(), name.to_owned());
        is_news |= known.as_deref() != Some(name);
    }
    is_news
}

/// Runs a job of the blocking pool. If it panics, what it brings back is `otherwise`: the actor waits for the end of each
/// job it has started.
fn outcome_of(otherwise: JobDone, job: impl FnOnce() -> JobDone) -> JobDone {
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(job)).unwrap_or_else(|_| {
        tracing::error!("a job of the folder panicked");
        otherwise
    })
}

/// Whether an item is in a pack. A plain file that once had it is no reason not to ask.
fn is_here(store: &Store, item: &Item) -> bool {
    match item {
        Item::Chunk(hash) => store.is_packed(hash),
        Item::Node { id, .. } => store.contains_node(id),
    }
}

fn have(root: NodeId, whole: bool) -> Frame {
    Frame::Have {
        snapshot: root,
        what: if whole { Holding::All } else { Holding::Some },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_was_not_known_is_news_and_one_that_was_is_none() {
        let mut names = BTreeMap::new();
        let mut learn = |name: &str| {
            let named = [(Incarnation::from_bytes([7; 8]), name)];
            learn_names(&mut names, named.into_iter())
        };
        assert!(learn("desk"), "its files may be shown already");
        assert!(!learn("desk"));
        assert!(learn("laptop"));
    }

    #[test]
    fn a_job_that_panics_ends_all_the_same() {
        let failed = |why: &str| JobDone::Missing(replica::Missing::failed(why.into()));
        let done = outcome_of(failed("it panicked"), || panic!("on purpose"));
        assert!(matches!(done, JobDone::Missing(m) if m.error() == Some("it panicked")));
        let done = outcome_of(failed("it panicked"), || failed("it failed"));
        assert!(matches!(done, JobDone::Missing(m) if m.error() == Some("it failed")));
    }
}
