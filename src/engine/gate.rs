//! Where connections come in and go out: the listener, calls, and what a stranger may cost us before AUTH.
//!
//! Every connection starts here. Until it has proven itself it counts against the limits of docs/bep_xet.md section 2;
//! then it gets a key, is announced to its folder's actor and becomes a task of its own (`peer.rs`).

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicU64, Ordering};
use std::time::Duration;

use bytes::BytesMut;
use ccbt_xet::store::Store;
use parking_lot::Mutex;
use rustix::io::Errno;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tracing::Instrument;

use super::call::{CONNECT_TIME, Caller, Reached};
use super::greet::{self, read_until};
use super::peer::{self, Connection, FromPeer, NewPeer, PeerCounters, PeerEnd};
use super::stream::PeerStream;
use super::swarm::{Dial, SwarmHandle};
use super::torrent::{Connected, DialTorrent, ToTorrent, TorrentHandle};
use super::utp::Utp;
use crate::clock::{self, Elapsed};
use crate::net::{self, Network};
use crate::proto::handshake::{HANDSHAKE_LEN, Handshake};
use crate::proto::mse::{Encryption, Lookup, obfuscated};
use crate::proto::noise::StaticKey;
use crate::proto::scheduler::PeerKey;
use crate::proto::session::{Config, Reason, Session};
use crate::random;
use crate::share::{FolderCredentials, SwarmId};
use crate::telemetry::Metrics;

/// Connections that have not proven themselves, in all.
const STRANGERS_MAX: usize = 256;
/// The same from one IPv4 /24 or IPv6 /64.
const STRANGERS_PER_NET_MAX: usize = 8;
/// Connected members in all.
const MEMBERS_MAX: usize = 512;
/// Pairs of ports tried for one that is free for both TCP and UDP.
const PORTS_TRIED: usize = 16;
/// Time a stranger has to say which torrent or folder it wants.
const GREETING_TIME: Duration = Duration::from_secs(10);
/// Bytes of a handshake up to and with the info-hash.
const INFO_HASH_END: usize = 48;
/// A peer that sent a wrong chunk is not spoken to for this long.
const BAR_TIME: Duration = Duration::from_secs(3600);
/// Barred addresses remembered.
const BARRED_MAX: usize = 4096;
/// After a failed accept (out of descriptors), wait before the next.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A folder that can be met.
#[derive(Clone)]
pub struct Door {
    pub swarm: SwarmHandle,
    pub credentials: Arc<FolderCredentials>,
    pub store: Arc<Store>,
    /// For spans and logs.
    pub name: String,
}

/// See the module documentation. Cheap to clone.
#[derive(Clone)]
pub struct Gate(Arc<Inner>);

struct Inner {
    clock: Elapsed,
    network: Network,
    nonce: [u8; 8],
    static_key: Arc<StaticKey>,
    listen_port: AtomicU16,
    caller: Caller,
    next_key: AtomicU64,
    doors: Mutex<HashMap<SwarmId, Door>>,
    torrents: Mutex<Torrents>,
    crowd: Mutex<Crowd>,
    metrics: Arc<Metrics>,
}

/// The torrents that can be met.
#[derive(Default)]
struct Torrents {
    /// By the info-hashes of their handshakes; a hybrid one is there twice.
    open: HashMap<[u8; 20], TorrentHandle>,
    /// Their info-hashes, by what stands for them in encrypted handshakes.
    veiled: HashMap<[u8; 20], [u8; 20]>,
}

/// Who is here, by number.
#[derive(Default)]
struct Crowd {
    strangers: HashMap<IpAddr, usize>,
    members: usize,
    barred: HashMap<IpAddr, Duration>,
}

impl Gate {
    pub fn new(network: Network, metrics: Arc<Metrics>) -> Self {
        Self(Arc::new(Inner {
            clock: Elapsed::start(),
            caller: Caller::new(network.encryption),
            network,
            nonce: random::bytes(),
            static_key: Arc::new(StaticKey::generate(&mut random::fill)),
            listen_port: AtomicU16::new(0),
            next_key: AtomicU64::new(0),
            doors: Mutex::default(),
            torrents: Mutex::default(),
            crowd: Mutex::default(),
            metrics,
        }))
    }

    /// Lets members of a folder in from now on. Opening it again replaces what was known (a manifest that came).
    pub fn open(&self, door: Door) {
        self.0.doors.lock().insert(door.credentials.swarm(), door);
    }

    pub fn close(&self, swarm: &SwarmId) {
        self.0.doors.lock().remove(swarm);
    }

    /// Lets peers of a torrent in from now on.
    pub fn open_torrent(&self, info_hash: [u8; 20], torrent: TorrentHandle) {
        let mut torrents = self.0.torrents.lock();
        torrents.veiled.insert(obfuscated(&info_hash), info_hash);
        torrents.open.insert(info_hash, torrent);
    }

    pub fn close_torrent(&self, info_hash: &[u8; 20]) {
        let mut torrents = self.0.torrents.lock();
        torrents.veiled.remove(&obfuscated(info_hash));
        torrents.open.remove(info_hash);
    }

    /// Whether members of this folder are let in.
    pub fn is_open(&self, swarm: &SwarmId) -> bool {
        self.0.doors.lock().contains_key(swarm)
    }

    /// What this process says in HELLO.
    pub fn nonce(&self) -> [u8; 8] {
        self.0.nonce
    }

    /// Connected members.
    pub fn members(&self) -> usize {
        self.0.crowd.lock().members
    }

    /// Listens on `addr` until the process ends. Returns the address with its real port.
    pub fn listen(&self, addr: SocketAddr) -> io::Result<SocketAddr> {
        let (listener, utp) = match self.bind(addr) {
            // A machine without IPv6.
            Err(error)
                if addr.ip() == IpAddr::from(Ipv6Addr::UNSPECIFIED)
                    && error.raw_os_error() == Some(Errno::AFNOSUPPORT.raw_os_error()) =>
            {
                tracing::info!("no IPv6 here, so peers are taken by IPv4 alone");
                self.bind((Ipv4Addr::UNSPECIFIED, addr.port()).into())?
            }
            bound => bound?,
        };
        let addr = listener.local_addr()?;
        self.0.listen_port.store(addr.port(), Ordering::Relaxed);
        if let Some(utp) = utp {
            self.0.caller.use_utp(utp.clone());
            let gate = self.clone();
            tokio::spawn(async move { gate.accept_streams(utp).await });
        }
        let gate = self.clone();
        tokio::spawn(async move { gate.accept_all(listener).await });
        Ok(addr)
    }

    /// Both protocols have the same port. Without one that is free for both there is no uTP.
    fn bind(&self, addr: SocketAddr) -> io::Result<(TcpListener, Option<Utp>)> {
        let mut tries = if addr.port() == 0 { PORTS_TRIED } else { 1 };
        loop {
            let listener = net::tcp_listen(addr)?;
            if !self.0.network.utp {
                return Ok((listener, None));
            }
            let utp = net::udp_listen(listener.local_addr()?).and_then(Utp::start);
            tries -= 1;
            match utp {
                Ok(utp) => return Ok((listener, Some(utp))),
                Err(error) if tries == 0 => {
                    tracing::warn!(%error, "no uTP: its port cannot be had");
                    return Ok((listener, None));
                }
                Err(_) => {}
            }
        }
    }

    async fn accept_all(self, listener: TcpListener) {
        loop {
            match listener.accept().await {
                Ok((stream, addr)) => {
                    if let Err(error) = net::tune(&stream) {
                        tracing::debug!(%error, "cannot tune a connection");
                    }
                    self.accepted(stream.into(), addr);
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    async fn accept_streams(self, utp: Utp) {
        loop {
            match utp.accept().await {
                Ok((pipe, addr)) => self.accepted(pipe.into(), addr),
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a uTP stream");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    fn accepted(&self, stream: PeerStream, addr: SocketAddr) {
        self.0.metrics.connections_accepted.inc();
        // A listener on both families shows IPv4 inside IPv6.
        let addr = SocketAddr::new(addr.ip().to_canonical(), addr.port());
        let Some(place) = self.admit(addr.ip()) else {
            self.0.metrics.connections_refused.inc();
            return;
        };
        let gate = self.clone();
        tokio::spawn(async move { gate.receive(stream, addr, place).await });
    }

    /// A stranger names a torrent, or begins a folder's handshake.
    async fn receive(&self, mut stream: PeerStream, addr: SocketAddr, place: Place) {
        let mut inbuf = BytesMut::new();
        let greeting = self.listen_to(&mut stream, &mut inbuf);
        let greeted = tokio::time::timeout(GREETING_TIME, greeting).await;
        let Ok(Ok(named)) = greeted else {
            self.0.metrics.connections_unproven.inc();
            return;
        };
        if let Some((info_hash, torrent)) = named {
            let meet = Meet {
                addr,
                called: false,
                ours: torrent.answer(&inbuf, info_hash),
                said: false,
            };
            return self.join_torrent(stream, inbuf, meet, torrent, place).await;
        }
        let Some(stream) = stream.into_tcp() else {
            self.0.metrics.connections_unproven.inc();
            return;
        };
        let asked = Arc::new(Mutex::new(None));
        let lookup = {
            let (doors, asked) = (self.clone(), Arc::clone(&asked));
            move |swarm: &SwarmId| {
                let door = doors.0.doors.lock().get(swarm).cloned()?;
                let credentials = Arc::clone(&door.credentials);
                *asked.lock() = Some(door);
                Some(credentials)
            }
        };
        let now = self.0.clock.now();
        let session = Session::accept(now, Box::new(lookup), self.config(), &mut random::fill);
        self.meet(stream, session, inbuf, addr, Meeting::Called(asked), place)
            .await;
    }

    /// Which torrent a stranger wants, once its handshake is there as far as the info-hash; `None` is for the folders. It may
    /// begin with encryption, which only torrents have.
    async fn listen_to(
        &self,
        stream: &mut PeerStream,
        inbuf: &mut BytesMut,
    ) -> io::Result<Option<([u8; 20], TorrentHandle)>> {
        read_until(stream, inbuf, INFO_HASH_END).await?;
        let encryption = self.0.network.encryption;
        let plain = Handshake::decode(inbuf).is_ok();
        let may_hide = encryption != Encryption::Off && !self.0.torrents.lock().open.is_empty();
        let mut hidden = None;
        if !plain && may_hide {
            match greet::answer(stream, inbuf, encryption, self.unveil()).await {
                Ok(info_hash) => hidden = Some(info_hash),
                Err(error) => {
                    tracing::debug!(%error, "no encryption");
                    greet::ignore(stream).await?;
                }
            }
            read_until(stream, inbuf, INFO_HASH_END).await?;
        }
        let hash = inbuf.get(28..INFO_HASH_END);
        let hash = hash.and_then(|hash| <[u8; 20]>::try_from(hash).ok());
        let lied = hidden.is_some() && hidden != hash;
        let too_open = hidden.is_none() && encryption == Encryption::Require;
        let Some(hash) = hash.filter(|_| !lied && !too_open) else {
            return match hidden {
                Some(_) => Err(io::ErrorKind::InvalidData.into()),
                None => Ok(None),
            };
        };
        let torrent = self.0.torrents.lock().open.get(&hash).cloned();
        Ok(torrent.map(|torrent| (hash, torrent)))
    }

    fn unveil(&self) -> Lookup {
        let gate = self.clone();
        Box::new(move |name| gate.0.torrents.lock().veiled.get(name).copied())
    }

    /// Finishes the handshake of a torrent's connection and hands it to the torrent.
    async fn join_torrent(
        &self,
        mut stream: PeerStream,
        mut inbuf: BytesMut,
        meet: Meet,
        torrent: TorrentHandle,
        mut place: Place,
    ) {
        let Meet {
            addr,
            called,
            ours,
            said,
        } = meet;
        let exchange = async {
            if !said {
                stream.write_all(&ours.encode()).await?;
            }
            read_until(&mut stream, &mut inbuf, HANDSHAKE_LEN).await
        };
        let exchanged = tokio::time::timeout(GREETING_TIME, exchange).await;
        let theirs = match exchanged {
            Ok(Ok(())) => Handshake::decode(&inbuf).ok().flatten(),
            _ => None,
        };
        match theirs.filter(|theirs| torrent.takes(&ours, theirs)) {
            Some(theirs) if theirs.peer_id == ours.peer_id => {
                torrent.tell(ToTorrent::DialedOurselves(addr));
            }
            Some(handshake) => {
                place.promote();
                let early = inbuf.split_off(HANDSHAKE_LEN).to_vec();
                let connected = Connected {
                    stream,
                    addr,
                    called,
                    handshake,
                    early,
                    place,
                };
                torrent.tell(ToTorrent::Connected(Box::new(connected)));
            }
            None => {
                self.0.metrics.connections_unproven.inc();
                if called {
                    self.0.caller.failed(addr, &stream);
                    torrent.tell(ToTorrent::DialFailed(addr));
                }
            }
        }
    }

    fn config(&self) -> Config {
        Config {
            static_key: Arc::clone(&self.0.static_key),
            nonce: self.0.nonce,
            listen_port: self.0.listen_port.load(Ordering::Relaxed),
            today: clock::unix_days(),
        }
    }

    /// A place for one more stranger, unless a limit or a bar speaks against it.
    fn admit(&self, ip: IpAddr) -> Option<Place> {
        let filter = self.0.network.filter.as_ref();
        if filter.is_some_and(|filter| filter.blocks(ip)) {
            return None;
        }
        let now = self.0.clock.now();
        let net = network_of(ip);
        let mut crowd = self.0.crowd.lock();
        if crowd.barred.get(&ip).is_some_and(|until| *until > now) || crowd.members >= MEMBERS_MAX {
            return None;
        }
        let in_all: usize = crowd.strangers.values().sum();
        let from_net = crowd.strangers.get(&net).copied().unwrap_or(0);
        let local = ip.is_loopback();
        if in_all >= STRANGERS_MAX || (from_net >= STRANGERS_PER_NET_MAX && !local) {
            return None;
        }
        *crowd.strangers.entry(net).or_insert(0) += 1;
        drop(crowd);
        Some(Place {
            gate: self.clone(),
            stranger: Some(net),
        })
    }

    fn bar(&self, ip: IpAddr) {
        let now = self.0.clock.now();
        let mut crowd = self.0.crowd.lock();
        crowd.barred.retain(|_, until| *until > now);
        if crowd.barred.len() < BARRED_MAX {
            crowd.barred.insert(ip, now + BAR_TIME);
        }
    }

    /// From a fresh connection to its end.
    async fn meet(
        &self,
        mut stream: TcpStream,
        mut session: Session,
        mut inbuf: BytesMut,
        addr: SocketAddr,
        meeting: Meeting,
        mut place: Place,
    ) {
        let clock = self.0.clock;
        session.handle_input(clock.now(), &mut inbuf);
        let proof = peer::handshake(&mut stream, &mut session, &clock, &mut inbuf);
        let info = match proof.await {
            Ok(info) => info,
            Err(end) => {
                self.0.metrics.connections_unproven.inc();
                tracing::debug!(%addr, why = %end, "no session");
                meeting.failed(addr, &end);
                return;
            }
        };
        place.promote();
        let called = matches!(meeting, Meeting::Calling(_)).then_some(addr);
        let Some(door) = meeting.door() else { return };
        let key = PeerKey(self.0.next_key.fetch_add(1, Ordering::Relaxed));
        let events = door.swarm.peer_events();
        let (commands_tx, commands) = mpsc::unbounded_channel();
        let counters = Arc::new(PeerCounters::default());
        events.send(FromPeer::Up(Box::new(NewPeer {
            key,
            info,
            addr,
            called,
            commands: commands_tx,
            counters: Arc::clone(&counters),
        })));
        let store = door.store;
        let events_of_task = events.clone();
        let connection = Connection {
            key,
            stream,
            session,
            clock,
            store,
            events: events_of_task,
            commands,
            counters,
            metrics: Arc::clone(&self.0.metrics),
        };
        let span = tracing::info_span!("peer", folder = door.name, %addr);
        let end = peer::run(connection, inbuf).instrument(span.clone()).await;
        span.in_scope(|| self.ended(addr.ip(), &end));
        events.send(FromPeer::Down { key, called });
    }

    fn ended(&self, ip: IpAddr, end: &PeerEnd) {
        tracing::info!(why = %end, "connection ended");
        let broke_rules = match end {
            PeerEnd::Lie | PeerEnd::Protocol(_) => true,
            PeerEnd::Session(reason) => reason.is_fault(),
            _ => false,
        };
        if broke_rules {
            self.0.metrics.peers_dropped.inc();
        }
        if matches!(end, PeerEnd::Lie) {
            self.bar(ip);
        }
    }
}

impl Dial for Gate {
    fn dial(&self, addr: SocketAddr, door: Door) {
        let gate = self.clone();
        tokio::spawn(async move {
            let Some(place) = gate.admit(addr.ip()) else {
                return door.swarm.dial_failed(addr);
            };
            match net::tcp_connect(addr, CONNECT_TIME).await {
                Ok(stream) => {
                    let now = gate.0.clock.now();
                    let credentials = Arc::clone(&door.credentials);
                    let session =
                        Session::connect(now, credentials, gate.config(), &mut random::fill);
                    let early = BytesMut::new();
                    gate.meet(stream, session, early, addr, Meeting::Calling(door), place)
                        .await;
                }
                Err(error) => {
                    tracing::debug!(%addr, %error, "cannot connect");
                    door.swarm.dial_failed(addr);
                }
            }
        });
    }

    fn reopen(&self, door: Door) {
        let mut doors = self.0.doors.lock();
        if let Some(known) = doors.get_mut(&door.credentials.swarm()) {
            *known = door;
        }
    }
}

impl DialTorrent for Gate {
    fn dial_torrent(&self, addr: SocketAddr, handshake: Handshake, torrent: TorrentHandle) {
        let gate = self.clone();
        tokio::spawn(async move {
            let Some(place) = gate.admit(addr.ip()) else {
                return torrent.tell(ToTorrent::DialFailed(addr));
            };
            match gate.0.caller.reach(addr, &handshake).await {
                Ok(Reached {
                    stream,
                    inbuf,
                    said,
                }) => {
                    let meet = Meet {
                        addr,
                        called: true,
                        ours: handshake,
                        said,
                    };
                    gate.join_torrent(stream, inbuf, meet, torrent, place).await;
                }
                Err(error) => {
                    tracing::debug!(%addr, %error, "cannot connect");
                    torrent.tell(ToTorrent::DialFailed(addr));
                }
            }
        });
    }

    fn bar(&self, ip: IpAddr) {
        // Peers on this machine have one address together.
        let shared = [
            IpAddr::from(Ipv4Addr::LOCALHOST),
            Ipv6Addr::LOCALHOST.into(),
        ];
        if !shared.contains(&ip) {
            Self::bar(self, ip);
        }
    }

    fn allows(&self, ip: IpAddr) -> bool {
        let filter = self.0.network.filter.as_ref();
        !filter.is_some_and(|filter| filter.blocks(ip.to_canonical()))
    }
}

/// A torrent's connection before its handshake.
struct Meet {
    addr: SocketAddr,
    called: bool,
    ours: Handshake,
    /// They have it already.
    said: bool,
}

/// Which folder a fresh connection is about.
enum Meeting {
    /// We called for it.
    Calling(Door),
    /// The caller names it during the handshake.
    Called(Arc<Mutex<Option<Door>>>),
}

impl Meeting {
    fn door(self) -> Option<Door> {
        match self {
            Self::Calling(door) => Some(door),
            Self::Called(asked) => asked.lock().take(),
        }
    }

    fn failed(self, addr: SocketAddr, end: &PeerEnd) {
        let Self::Calling(door) = self else { return };
        if matches!(end, PeerEnd::Session(Reason::Ourselves)) {
            door.swarm.dialed_ourselves(addr);
        } else {
            door.swarm.dial_failed(addr);
        }
    }
}

/// The network a stranger is counted in: /24 or /64.
fn network_of(ip: IpAddr) -> IpAddr {
    match ip.to_canonical() {
        IpAddr::V4(v4) => {
            let [a, b, c, _] = v4.octets();
            IpAddr::from([a, b, c, 0])
        }
        IpAddr::V6(v6) => {
            let [a, b, c, d, ..] = v6.segments();
            IpAddr::from([a, b, c, d, 0, 0, 0, 0])
        }
    }
}

/// A connection's entry in the crowd, given back when dropped.
pub(super) struct Place {
    gate: Gate,
    /// The network it counts in as long as it is a stranger; then it is a member.
    stranger: Option<IpAddr>,
}

impl Place {
    fn promote(&mut self) {
        let mut crowd = self.gate.0.crowd.lock();
        leave(&mut crowd, self.stranger.take());
        crowd.members += 1;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut crowd = self.gate.0.crowd.lock();
        match self.stranger.take() {
            Some(net) => leave(&mut crowd, Some(net)),
            None => crowd.members -= 1,
        }
    }
}

fn leave(crowd: &mut Crowd, stranger: Option<IpAddr>) {
    if let Some(net) = stranger
        && let Some(count) = crowd.strangers.get_mut(&net)
    {
        *count -= 1;
        if *count == 0 {
            crowd.strangers.remove(&net);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn strangers_are_limited_by_network_and_in_all() {
        let gate = Gate::new(Network::default(), Arc::default());
        let ip = |a: u8, b: u8| IpAddr::from([10, 0, a, b]);
        let mut places: Vec<Place> = (0..8).map(|b| gate.admit(ip(1, b)).unwrap()).collect();
        assert!(gate.admit(ip(1, 99)).is_none(), "a ninth from one /24");
        places[0].promote();
        places.push(gate.admit(ip(1, 99)).unwrap());
        places.extend(
            (0..31)
                .flat_map(|a| (0..8).map(move |b| (a + 2, b)))
                .map(|(a, b)| gate.admit(ip(a, b)).unwrap()),
        );
        assert!(gate.admit(ip(200, 1)).is_none(), "256 in all");
        places.clear();
        assert!(gate.admit(ip(200, 1)).is_some());
        assert_eq!(gate.0.crowd.lock().members, 0);
    }

    #[tokio::test]
    async fn who_is_on_the_list_is_not_spoken_to() {
        let parsed = crate::proto::ip_filter::IpFilter::parse(b"10.0.0.0/24");
        let network = Network {
            filter: Some(Arc::new(parsed.filter)),
            ..Network::default()
        };
        let gate = Gate::new(network, Arc::default());
        assert!(gate.admit(IpAddr::from([10, 0, 0, 1])).is_none());
        assert!(gate.admit("::ffff:10.0.0.1".parse().unwrap()).is_none());
        assert!(gate.admit(IpAddr::from([10, 0, 1, 1])).is_some());
    }

    #[tokio::test]
    async fn a_liar_is_barred() {
        let gate = Gate::new(Network::default(), Arc::default());
        let ip = IpAddr::from([10, 0, 0, 1]);
        gate.ended(ip, &PeerEnd::Lie);
        assert!(gate.admit(ip).is_none());
        assert!(gate.admit(IpAddr::from([10, 0, 0, 2])).is_some());
        assert_eq!(gate.0.metrics.peers_dropped.value(), 1);
    }
}
