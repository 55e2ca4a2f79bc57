//! The actor of a torrent: takes messages, lets the machine decide, does what it says.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot, watch};

use super::content::{Checked, Content};
use super::disk::DiskEvent;
use super::files::FilesState;
use super::peer::{self, Connection, FromPeer, PeerEnd, ToPeer};
use super::reader::PendingRead;
use super::settings::Settings;
use super::webs::Webs;
use super::{
    Connected, DialTorrent, Metadata, Phase, ToTorrent, TorrentConfig, TorrentHandle, TorrentPeer,
    TorrentStatus,
};
use crate::clock::Elapsed;
use crate::engine::dial::Dialer;
use crate::engine::limits::{Level, Limits, Way};
use crate::proto::blocks::Block;
use crate::proto::metainfo::Info;
use crate::proto::scheduler::PeerKey;
use crate::proto::torrent::{self as machine, Action, Fault, NewPeer, Now, Torrent, Verdict};
use crate::proto::wire::Message;
use crate::random;

/// Reads of connections waiting for the actor; beyond, sockets are not read.
const PEER_EVENTS_MAX: usize = 64;
/// Messages dealt with before the machine's answers go out, so that they go in batches.
const BATCH: usize = 16;
/// How often the status is told.
const STATUS_TIME: Duration = Duration::from_millis(250);

struct PeerLink {
    tx: mpsc::UnboundedSender<Vec<ToPeer>>,
    addr: SocketAddr,
    called: bool,
    peer_id: [u8; 20],
    /// The address to call that leads to this peer, if one is known to.
    dialed: Option<SocketAddr>,
    limits: Arc<Level>,
}

/// Why a connection is not taken.
enum Refused {
    /// There are enough, or none are wanted now.
    NoRoom,
    Ourselves,
    /// Its peer has another one, which stays.
    IsHere,
}

/// Whether a second connection takes the place of the first. When both sides have called, both keep the call of the one
/// with the smaller id.
fn replaces(new_called: bool, old_called: bool, ours: &[u8; 20], theirs: &[u8; 20]) -> bool {
    let wins = |called: bool| called == (ours < theirs);
    wins(new_called) && !wins(old_called)
}

pub(super) struct Actor {
    pub(super) config: TorrentConfig,
    pub(super) clock: Elapsed,
    pub(super) machine: Torrent,
    pub(super) content: Option<Content>,
    pub(super) metadata: Option<Arc<Metadata>>,
    /// Metadata whose piece hashes are being fetched.
    pub(super) awaiting: Option<Metadata>,
    pub(super) disk_events: mpsc::UnboundedSender<DiskEvent>,
    pub(super) checked: mpsc::UnboundedSender<Checked>,
    pub(super) phase: Phase,
    /// Why the phase is `Stopped`, or what the disk says.
    pub(super) trouble: Option<String>,
    /// When to try the disk again.
    pub(super) retry_at: Option<Now>,
    pub(super) checked_pieces: Arc<std::sync::atomic::AtomicU64>,
    pub(super) checking_pieces: u64,
    pub(super) reads: Vec<PendingRead>,
    /// When the reads are looked at next.
    pub(super) read_check_at: Now,
    pub(super) handle: TorrentHandle,
    pub(super) gate: Arc<dyn DialTorrent>,
    peers: HashMap<PeerKey, PeerLink>,
    pub(super) webs: Webs,
    pub(super) peer_events: mpsc::Sender<FromPeer>,
    outgoing: BTreeMap<PeerKey, Vec<ToPeer>>,
    dialer: Dialer,
    next_key: u64,
    pub(super) limits: Arc<Level>,
    /// Since when everything is here.
    pub(super) seeding_since: Option<Now>,
    pub(super) files: FilesState,
    /// Others come first.
    pub(super) queued: bool,
    /// It has seeded as much as it was to.
    pub(super) seeded: bool,
    status: watch::Sender<TorrentStatus>,
    pub(super) next_status: Now,
    /// Something has happened in this turn.
    stirred: bool,
    /// Something has happened since the status was told.
    untold: bool,
    done: Option<oneshot::Sender<()>>,
}

struct Inputs {
    commands: mpsc::UnboundedReceiver<ToTorrent>,
    peers: mpsc::Receiver<FromPeer>,
    disk: mpsc::UnboundedReceiver<DiskEvent>,
    checked: mpsc::UnboundedReceiver<Checked>,
}

pub(super) fn spawn(config: TorrentConfig, gate: Arc<dyn DialTorrent>) -> TorrentHandle {
    let clock = Elapsed::start();
    let (tx, commands) = mpsc::unbounded_channel();
    let (peer_events, peers) = mpsc::channel(PEER_EVENTS_MAX);
    let (disk_events, disk) = mpsc::unbounded_channel();
    let (checked_tx, checked) = mpsc::unbounded_channel();
    let (status, watched) = watch::channel(TorrentStatus {
        name: config.name.clone(),
        ..TorrentStatus::default()
    });
    let (handshake, upgrade) = super::v2::handshake_of(&config.hashes, config.shared.peer_id);
    let handle = TorrentHandle {
        tx,
        status: watched,
        handshake,
        upgrade,
        tracker_key: u32::from_le_bytes(random::bytes()),
    };
    let rules = rules_of(&config);
    let mut dialer = Dialer::default();
    config.peers.iter().for_each(|addr| dialer.give(*addr));
    let actor = Actor {
        machine: Torrent::new(clock.now(), rules),
        clock,
        content: None,
        metadata: None,
        awaiting: None,
        disk_events,
        checked: checked_tx,
        phase: Phase::Metadata,
        trouble: None,
        retry_at: None,
        checked_pieces: Arc::default(),
        checking_pieces: 0,
        reads: Vec::new(),
        read_check_at: Now::ZERO,
        handle: handle.clone(),
        gate,
        peers: HashMap::new(),
        webs: Webs::new(&config.web_seeds),
        peer_events,
        outgoing: BTreeMap::new(),
        dialer,
        next_key: 0,
        limits: Level::new(config.shared.limits.clock(), config.settings.rates),
        seeding_since: None,
        files: FilesState::default(),
        queued: false,
        seeded: false,
        status,
        next_status: Now::ZERO,
        stirred: true,
        untold: true,
        done: None,
        config,
    };
    let span = tracing::info_span!("torrent", name = actor.config.name);
    let inputs = Inputs {
        commands,
        peers,
        disk,
        checked,
    };
    tokio::spawn(tracing::Instrument::instrument(actor.run(inputs), span));
    handle
}

fn rules_of(config: &TorrentConfig) -> machine::Settings {
    machine::Settings {
        hashes: config.hashes,
        private: !config.exchange,
        port: config.port,
        lazy: config.lazy,
        super_seed: config.settings.super_seed,
        seed: u64::from_le_bytes(random::bytes()),
    }
}

/// An idle torrent has nothing to wake up for.
async fn sleep(until: Option<std::time::Instant>) {
    match until {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}

impl Actor {
    async fn run(mut self, mut inputs: Inputs) {
        if let Some(metadata) = self.config.metadata.take() {
            self.open(metadata);
        }
        if self.config.paused {
            self.machine.hold(self.clock.now(), true);
        }
        self.machine.set_slots(self.config.settings.slots);
        while self.done.is_none() {
            let until = self.poll_timeout().map(|at| self.clock.instant(at));
            self.stirred = true;
            tokio::select! {
                Some(command) = inputs.commands.recv() => self.command(command),
                Some(event) = inputs.disk.recv() => self.disk_event(event),
                Some(checked) = inputs.checked.recv() => self.begin(checked),
                Some(event) = inputs.peers.recv() => self.peer_event(event),
                () = sleep(until) => self.stirred = self.is_due(self.clock.now()),
            }
            for _ in 0..BATCH {
                if let Ok(event) = inputs.disk.try_recv() {
                    self.disk_event(event);
                }
                match inputs.peers.try_recv() {
                    Ok(event) => self.peer_event(event),
                    Err(_) => break,
                }
            }
            self.upkeep();
        }
        self.close().await;
    }

    /// When something is to be done; `None` while nobody is connected, called or read for.
    fn poll_timeout(&self) -> Option<Now> {
        let status = (self.untold || self.is_active()).then_some(self.next_status);
        [self.next_work(), status].into_iter().flatten().min()
    }

    /// The same, without telling how it stands.
    fn next_work(&self) -> Option<Now> {
        let dial = self
            .may_dial()
            .then(|| self.dialer.poll_timeout())
            .flatten();
        let read = self.next_read_check();
        let times = [
            read,
            self.machine.poll_timeout(),
            dial,
            self.retry_at,
            self.seed_end(),
        ];
        times.into_iter().flatten().min()
    }

    fn is_due(&self, now: Now) -> bool {
        self.next_work().is_some_and(|at| at <= now)
    }

    /// Rates and progress change without anything reaching the actor.
    fn is_active(&self) -> bool {
        let told = self.status.borrow();
        self.phase == Phase::Checking || told.rate_down > 0 || told.rate_up > 0
    }

    /// When it has seeded as long as it was to, and that is to be told.
    fn seed_end(&self) -> Option<Now> {
        let since = self.seeding_since.filter(|_| !self.seeded)?;
        let end = since.saturating_add(self.config.settings.seed_time?);
        Some(end.max(self.next_status))
    }

    fn upkeep(&mut self) {
        let now = self.clock.now();
        if self.is_owing() && self.machine.poll_timeout().is_some_and(|at| at <= now) {
            self.machine.excuse(now);
        }
        self.machine.handle_timeout(now);
        if self.retry_at.is_some_and(|at| at <= now) {
            self.retry(now);
        }
        self.check_reads(now);
        self.look_at_webs(now);
        self.apply();
        if self.may_dial() {
            let machine = &self.machine;
            for addr in self.dialer.due_by(now, |addr| machine.standing(addr)) {
                self.gate
                    .dial_torrent(addr, self.handle.handshake, self.handle.clone());
            }
        }
        self.untold |= self.stirred;
        if now >= self.next_status && (self.untold || self.is_active()) {
            self.next_status = now + STATUS_TIME;
            self.untold = false;
            self.tell_status(now);
        }
    }

    /// What did not come may be for our own limits.
    fn is_owing(&self) -> bool {
        let peers = self.peers.values().map(|link| &link.limits);
        let all = [&self.config.shared.limits, &self.limits];
        all.into_iter()
            .chain(peers)
            .chain(self.webs.limits())
            .any(|level| level.is_owing(Way::Down))
    }

    pub(super) fn is_resting(&self) -> bool {
        self.config.paused || self.queued
    }

    /// Who seeds calls too: some of those who want something cannot be called back. Places are left for those who call.
    fn may_dial(&self) -> bool {
        let max = self.config.settings.peers_max;
        let max = match self.phase {
            Phase::Stopped => 0,
            Phase::Seeding => max / 2,
            _ => max,
        };
        !self.is_resting() && self.peers.len() < max
    }

    fn command(&mut self, command: ToTorrent) {
        let now = self.clock.now();
        match command {
            ToTorrent::Connected(connected) => self.connected(*connected),
            ToTorrent::DialFailed(addr) => {
                self.dialer.failed(now, addr);
                self.machine.call_failed(now, addr);
            }
            ToTorrent::DialedOurselves(addr) => self.dialer.ourselves(addr),
            ToTorrent::Found(addr) => self.dialer.found(addr),
            ToTorrent::Give(addr) => self.dialer.give(addr),
            ToTorrent::Pause(paused) => self.pause(now, paused),
            ToTorrent::Queue(waits) => {
                self.queued = waits;
                self.rest(now);
            }
            ToTorrent::Recheck => self.recheck(),
            ToTorrent::Settings(settings) => self.set(*settings),
            ToTorrent::Select(selection) => self.select(selection),
            ToTorrent::Placed(result) => self.placed(now, result),
            ToTorrent::Move(to, reply) => self.relocate(now, to, reply),
            ToTorrent::Moved(to, result, reply) => self.moved(now, to, result, reply),
            ToTorrent::Sweep(from) => self.sweep(from),
            ToTorrent::Peers(reply) => drop(reply.send(self.list_peers(now))),
            ToTorrent::Lend(reply) => drop(reply.send(self.lend())),
            ToTorrent::WebSeeds(reply) => drop(reply.send(self.webs.list(now))),
            ToTorrent::Metadata(reply) => drop(reply.send(self.metadata.clone())),
            ToTorrent::Reader(reply) => drop(reply.send(self.reader())),
            ToTorrent::Read(job) => self.read(now, *job),
            ToTorrent::Ahead(pieces) => self.machine.read_ahead(now, pieces),
            ToTorrent::Shutdown(reply) => self.done = Some(reply),
        }
    }

    fn pause(&mut self, now: Now, paused: bool) {
        self.config.paused = paused;
        if !paused && self.phase == Phase::Stopped && self.content.is_some() {
            // The user has put right what was in the way.
            self.trouble = None;
            self.check(false);
        }
        self.rest(now);
    }

    /// Nothing is asked for and nobody is served, or no longer so.
    fn rest(&mut self, now: Now) {
        self.hold(now);
        if self.is_resting() {
            // Those who are served notice as well.
            self.peers
                .values_mut()
                .for_each(|link| link.tx = mpsc::unbounded_channel().0);
        }
        self.set_phase();
        self.next_status = now;
    }

    fn set(&mut self, settings: Settings) {
        self.limits.set(settings.rates);
        for link in self.peers.values() {
            link.limits.set(settings.peer_rates);
        }
        self.webs
            .limits()
            .for_each(|level| level.set(settings.peer_rates));
        self.machine.set_slots(settings.slots);
        self.machine.set_order(settings.order.into());
        self.machine
            .set_super_seed(self.clock.now(), settings.super_seed);
        self.config.settings = settings;
        self.next_status = self.clock.now();
    }

    fn connected(&mut self, connected: Connected) {
        let now = self.clock.now();
        if let Err(refused) = self.admit(now, &connected) {
            match refused {
                Refused::Ourselves if connected.called => self.dialer.ourselves(connected.addr),
                Refused::NoRoom if connected.called => self.dialer.failed(now, connected.addr),
                _ => {}
            }
            return;
        }
        let Connected {
            stream,
            addr,
            called,
            handshake,
            early,
            place,
        } = connected;
        if called {
            self.dialer.connected(addr);
        }
        let key = self.new_key();
        let (tx, commands) = mpsc::unbounded_channel();
        let fast = handshake.has_fast();
        let shared = &self.config.shared.limits;
        let limits = Level::new(shared.clock(), self.config.settings.peer_rates);
        let connection = Connection {
            key,
            stream,
            early,
            fast,
            slabs: self.config.shared.slabs.clone(),
            limits: Limits::new([&limits, &self.limits, shared].map(Arc::clone)),
            events: self.peer_events.clone(),
            commands,
        };
        tracing::debug!(%addr, called, "connected");
        let task = async move {
            peer::run(connection).await;
            drop(place);
        };
        tokio::spawn(tracing::Instrument::in_current_span(task));
        let link = PeerLink {
            tx,
            addr,
            called,
            peer_id: handshake.peer_id,
            dialed: called.then_some(addr),
            limits,
        };
        self.peers.insert(key, link);
        if let Some(content) = &self.content {
            self.outgoing
                .entry(key)
                .or_default()
                .push(ToPeer::Disk(Arc::clone(&content.disk)));
        }
        let new = NewPeer {
            fast,
            extended: handshake.has_extensions(),
            v2: self.is_v2(called, &handshake),
            called,
            addr: Some(addr),
            pex_flags: 0,
        };
        self.machine.peer_joined(now, key, new);
    }

    pub(super) fn new_key(&mut self) -> PeerKey {
        self.next_key += 1;
        PeerKey(self.next_key)
    }

    /// Whether a connection is taken. One of `Refused::IsHere` has been settled with the dialer.
    fn admit(&mut self, now: Now, new: &Connected) -> Result<(), Refused> {
        if self.is_resting() {
            return Err(Refused::NoRoom);
        }
        if new.handshake.peer_id == self.config.shared.peer_id {
            return Err(Refused::Ourselves);
        }
        let before = self.peers.len();
        if self.is_here(now, new) {
            return Err(Refused::IsHere);
        }
        let replaces = self.peers.len() < before;
        let full = before >= self.config.settings.peers_max;
        if full && !replaces && !self.machine.make_room(new.addr) {
            return Err(Refused::NoRoom);
        }
        Ok(())
    }

    /// Whether the peer is connected already, and stays so. A second connection would count its pieces and its choice of
    /// whom to serve twice.
    fn is_here(&mut self, now: Now, new: &Connected) -> bool {
        let peer_id = new.handshake.peer_id;
        let mut links = self.peers.iter_mut();
        let Some((key, link)) = links.find(|(_, link)| link.peer_id == peer_id) else {
            return false;
        };
        tracing::debug!(addr = %new.addr, here = %link.addr, "connected twice");
        // From elsewhere anybody could use its name.
        let same_place = link.addr.ip() == new.addr.ip();
        let ours = &self.config.shared.peer_id;
        if !(same_place && replaces(new.called, link.called, ours, &peer_id)) {
            match (new.called, link.dialed) {
                // Not called again as long as the other connection lasts.
                (true, None) => {
                    link.dialed = Some(new.addr);
                    self.dialer.connected(new.addr);
                }
                (true, Some(dialed)) if dialed != new.addr => self.dialer.failed(now, new.addr),
                _ => {}
            }
            return true;
        }
        let key = *key;
        self.machine.peer_left(now, key);
        self.outgoing.remove(&key);
        if let Some(dialed) = self.peers.remove(&key).and_then(|link| link.dialed) {
            self.dialer.failed(now, dialed);
        }
        false
    }

    fn peer_event(&mut self, event: FromPeer) {
        let now = self.clock.now();
        match event {
            FromPeer::Said(key, messages) => self.said(now, key, messages),
            FromPeer::Served { key, blocks, bytes } => self.machine.served(now, key, blocks, bytes),
            FromPeer::Unreadable(piece) => self.unreadable(now, piece),
            FromPeer::Down(key, end) => self.down(now, key, &end),
            FromPeer::Web(key, news) => self.web_news(now, key, news),
            FromPeer::Held(blocks) => self.held(now, blocks),
            FromPeer::HeldDone => self.held_done(now),
        }
    }

    fn down(&mut self, now: Now, key: PeerKey, end: &PeerEnd) {
        self.machine.peer_left(now, key);
        self.outgoing.remove(&key);
        if let Some(link) = self.peers.remove(&key) {
            tracing::debug!(addr = %link.addr, why = %end, "connection ended");
            if let Some(dialed) = link.dialed {
                self.dialer.failed(now, dialed);
            }
        }
    }

    fn said(&mut self, now: Now, key: PeerKey, messages: Vec<Message<Bytes>>) {
        // Blocks of one piece that came together are written together.
        let mut run: Option<(u32, Vec<(u32, Bytes)>)> = None;
        for message in messages {
            let Message::Piece { piece, begin, data } = message else {
                self.machine.message(now, key, message);
                continue;
            };
            let length = data.len() as u32;
            self.webs.count(now, key, length);
            let block = Block {
                piece,
                begin,
                length,
            };
            if self.machine.block_arrived(now, key, block) == Verdict::Waste {
                continue;
            }
            match &mut run {
                Some((same, blocks)) if *same == piece => blocks.push((begin, data)),
                _ => {
                    self.write(run.replace((piece, vec![(begin, data)])));
                }
            }
        }
        self.write(run);
    }

    fn write(&self, run: Option<(u32, Vec<(u32, Bytes)>)>) {
        if let (Some((piece, blocks)), Some(content)) = (run, &self.content) {
            self.config.shared.disk.write(&content.disk, piece, blocks);
        }
    }

    fn disk_event(&mut self, event: DiskEvent) {
        let now = self.clock.now();
        match event {
            DiskEvent::Verified(piece) => {
                self.machine.piece_verified(now, piece);
                self.log_piece(piece);
                self.answer_reads(Some(piece));
                if self.machine.is_finished() {
                    self.set_phase();
                    self.next_status = now;
                }
            }
            DiskEvent::Failed { piece, digests } => self.machine.piece_failed(now, piece, &digests),
            DiskEvent::Examined { piece, digests } => self.machine.examined(now, piece, &digests),
            DiskEvent::Leaves { key, range, leaves } => {
                self.machine.leaves_read(now, key, range, leaves);
            }
            DiskEvent::Broken { piece, error } => {
                self.machine.piece_lost(now, piece);
                self.piece_gone(piece);
                self.disk_trouble(now, &error);
            }
        }
    }

    /// Does what the machine wants done.
    pub(super) fn apply(&mut self) {
        while let Some(action) = self.machine.poll_action() {
            match action {
                Action::Send(key, message) => self.put(key, ToPeer::Send(message)),
                Action::Serve(key, block) => self.put(key, ToPeer::Serve(block)),
                Action::Unserve(key, block) => self.put(key, ToPeer::Unserve(block)),
                Action::UnserveAll(key) => self.put(key, ToPeer::UnserveAll),
                Action::Drop(key, fault) => self.drop_peer(key, fault),
                Action::Examine(piece) => {
                    if let Some(content) = &self.content {
                        self.config.shared.disk.examine(&content.disk, piece);
                    }
                }
                Action::Metadata(raw) => match Info::parse(&raw) {
                    Ok(info) => self.open(Metadata {
                        info,
                        layers: BTreeMap::new(),
                    }),
                    Err(error) => self.stop(format!("the metadata is no torrent: {error}")),
                },
                Action::Layers(layers) => self.layers_known(layers),
                Action::ServeHashes(key, range, of) => self.serve_hashes(key, range, of),
                Action::Punch(addr) => self.dialer.at_once(self.clock.now(), addr),
                Action::Found(addrs) => addrs.into_iter().for_each(|addr| self.dialer.found(addr)),
            }
        }
        for (key, commands) in std::mem::take(&mut self.outgoing) {
            let link = self.peers.get(&key).map(|link| &link.tx);
            if let Some(tx) = link.or_else(|| self.webs.way_to(key)) {
                // An error means that the task has ended; its report is on the way.
                drop(tx.send(commands));
            }
        }
    }

    fn put(&mut self, key: PeerKey, command: ToPeer) {
        if self.peers.contains_key(&key) || self.webs.way_to(key).is_some() {
            self.outgoing.entry(key).or_default().push(command);
        }
    }

    fn drop_peer(&mut self, key: PeerKey, fault: Fault) {
        self.webs.dropped(key, fault);
        if let Some(link) = self.peers.remove(&key) {
            tracing::info!(addr = %link.addr, why = %fault, "peer dropped");
            if let Some(commands) = self.outgoing.remove(&key) {
                drop(link.tx.send(commands));
            }
            let dialed = link.dialed.unwrap_or(link.addr);
            match fault {
                Fault::Lie => {
                    self.dialer.bar(dialed);
                    self.gate.bar(link.addr.ip());
                }
                Fault::Redundant => self.dialer.rests(self.clock.now(), dialed),
                _ if link.dialed.is_some() => self.dialer.failed(self.clock.now(), dialed),
                _ => {}
            }
        }
    }

    /// Tells everybody who is connected from where blocks are read.
    pub(super) fn announce_disk(&mut self) {
        let Some(content) = &self.content else { return };
        for key in self.peers.keys() {
            let disk = ToPeer::Disk(Arc::clone(&content.disk));
            self.outgoing.entry(*key).or_default().push(disk);
        }
    }

    fn list_peers(&mut self, now: Now) -> Vec<TorrentPeer> {
        let summaries = self.machine.peer_summaries(now).into_iter();
        let peer = |summary: crate::proto::torrent::PeerSummary| {
            let link = self.peers.get(&summary.key)?;
            Some(TorrentPeer {
                addr: link.addr,
                incoming: !link.called,
                summary,
            })
        };
        summaries.filter_map(peer).collect()
    }

    fn tell_status(&mut self, now: Now) {
        let summary = self.machine.summary(now);
        let status = self.describe(now, &summary);
        self.seeded = status.done_seeding;
        self.status.send_if_modified(|old| {
            let news = *old != status;
            *old = status;
            news
        });
    }

    async fn close(mut self) {
        self.peers.clear();
        self.close_content().await;
        if let Some(done) = self.done {
            // Who asked may have gone away.
            let _gone = done.send(());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_two_calls_both_sides_keep_the_same() {
        let (small, large) = ([1; 20], [2; 20]);
        // The call of the one with the small id comes second on one side and first on the other.
        assert!(replaces(true, false, &small, &large));
        assert!(!replaces(true, false, &large, &small));
        assert!(replaces(false, true, &large, &small));
        assert!(!replaces(false, true, &small, &large));
        for called in [true, false] {
            assert!(!replaces(called, called, &small, &large), "the first stays");
        }
    }
}
