//! Torrents: one actor for each. It owns the machine of `proto::torrent`, the addresses to call and the resume log; connections
//! are tasks (`peer`), writing and hashing are threads (`disk`), and everything reaches the actor as a message.
//!
//! - `storage`: where bytes lie. `relocate`: files that go elsewhere. `names`: those that a file system cannot tell apart.
//! - `hashes`: what bytes must be. `slab`: the buffers they come in. `resume`: what is here over restarts.
//! - `settings`: what a user may decide. `select`: which files are wanted. `reader`: reads that wait for pieces.
//! - `lend`: what this torrent has for others; `held`: what others have for it.
//! - `actor`, `content`, `files`, `v2`, `webs`: the actor itself; `v2` has piece hashes from and for peers, `webs` the web
//!   seeds, each of which is a task (`web`).

mod actor;
mod content;
pub mod disk;
mod files;
mod hashes;
mod held;
pub mod lend;
mod names;
mod peer;
pub mod reader;
pub mod relocate;
pub(crate) mod resume;
pub mod select;
pub mod settings;
pub mod slab;
mod storage;
mod v2;
mod web;
mod webs;

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::sync::{mpsc, oneshot, watch};

use self::disk::DiskPool;
use self::lend::{Lenders, Lent};
use self::reader::{ReadJob, TorrentReader};
use self::relocate::MoveError;
use self::select::Selection;
use self::settings::Settings;
use self::slab::SlabPool;
use self::storage::Storage;
use super::gate::Place;
use super::limits::Level;
use super::stream::PeerStream;
use crate::proto::handshake::Handshake;
use crate::proto::metainfo::chunks::ChunkLists;
use crate::proto::metainfo::merkle::TreeHash;
use crate::proto::metainfo::{Info, InfoHashes};
use crate::proto::torrent::PeerSummary;

/// In the state folder: bytes of files that are not wanted.
const PARTS_FILE: &str = "parts";

/// What all torrents of a daemon share.
#[derive(Debug, Clone)]
pub struct Shared {
    pub disk: DiskPool,
    pub slabs: SlabPool,
    /// What all of them may take of the line together.
    pub limits: Arc<Level>,
    /// Our name in handshakes.
    pub peer_id: [u8; 20],
}

/// The metadata of a torrent.
#[derive(Debug, Clone)]
pub struct Metadata {
    pub info: Info,
    /// Hashes of v2 pieces, by the root of their file.
    pub layers: BTreeMap<TreeHash, Vec<TreeHash>>,
}

/// A torrent to be run.
#[derive(Debug)]
pub struct TorrentConfig {
    pub hashes: InfoHashes,
    /// What is shown until the real name is known.
    pub name: String,
    /// `None` for a magnet link: peers have it.
    pub metadata: Option<Metadata>,
    /// The output folder.
    pub dir: PathBuf,
    /// A folder of ours, for the resume log and the bytes of unwanted files. It exists.
    pub state: PathBuf,
    pub selection: Selection,
    pub settings: Settings,
    /// Only what is read is fetched.
    pub lazy: bool,
    /// Nothing is asked for and nobody is called.
    pub paused: bool,
    /// Peers the user named: tried for ever.
    pub peers: Vec<SocketAddr>,
    /// URLs of web servers that have the content (BEP 19).
    pub web_seeds: Vec<String>,
    /// What its files are made of, as far as that is known.
    pub chunks: ChunkLists,
    /// Where content that is missing may be found on this machine.
    pub lenders: Option<Arc<dyn Lenders>>,
    /// Exchange addresses with peers.
    pub exchange: bool,
    /// Where peers connect; 0 for nowhere.
    pub port: u16,
    pub shared: Shared,
}

/// What a torrent is doing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Phase {
    /// The info dictionary is missing.
    #[default]
    Metadata,
    /// What is on disk is read and hashed.
    Checking,
    Downloading,
    /// All that is wanted is here; others are served.
    Seeding,
    /// Others come first.
    Queued,
    Paused,
    /// Something is in the way; see the note.
    Stopped,
}

/// How a torrent stands.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct TorrentStatus {
    pub name: String,
    pub phase: Phase,
    /// Bytes of wanted files, and how many of them are here; of pieces to be checked while checking.
    pub bytes_total: Option<u64>,
    pub bytes_done: u64,
    pub files_total: u64,
    pub rate_down: u64,
    pub rate_up: u64,
    /// Payload bytes of this run.
    pub bytes_down: u64,
    pub bytes_up: u64,
    pub bytes_wasted: u64,
    /// Taken from other torrents of this daemon.
    pub bytes_held: u64,
    pub peers: usize,
    pub seeds: usize,
    /// Web servers that are asked.
    pub web_seeds: usize,
    /// Why nothing happens, or what happens, in a few words.
    pub note: String,
    /// Everything that is wanted is here and can be read.
    pub finished: bool,
    /// The seed ratio or the time to seed is reached.
    pub done_seeding: bool,
    /// No piece hash of a v2 file is missing.
    pub has_layers: bool,
}

/// A connected peer.
#[derive(Debug, Clone)]
pub struct TorrentPeer {
    pub addr: SocketAddr,
    pub incoming: bool,
    pub summary: PeerSummary,
}

/// How a web seed stands.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct WebSeedStatus {
    /// Without user name and password.
    pub url: String,
    /// It is asked for content.
    pub active: bool,
    /// It is not asked any more.
    pub off: bool,
    /// Why not, or why not at present.
    pub trouble: Option<String>,
    pub rate_down: u64,
    pub bytes_down: u64,
}

/// A connection whose handshakes are done.
pub(super) struct Connected {
    pub(super) stream: PeerStream,
    pub(super) addr: SocketAddr,
    /// We called.
    pub(super) called: bool,
    pub(super) handshake: Handshake,
    /// What came behind the handshake.
    pub(super) early: Vec<u8>,
    pub(super) place: Place,
}

/// What reaches the actor, besides connections and the disk.
pub(super) enum ToTorrent {
    Connected(Box<Connected>),
    DialFailed(SocketAddr),
    DialedOurselves(SocketAddr),
    Found(SocketAddr),
    Give(SocketAddr),
    Pause(bool),
    Queue(bool),
    Recheck,
    Settings(Box<Settings>),
    Select(Selection),
    /// The files that are wanted now are in the folder, or cannot be.
    Placed(std::io::Result<()>),
    Move(PathBuf, oneshot::Sender<Result<(), MoveError>>),
    Moved(
        PathBuf,
        Result<(), MoveError>,
        oneshot::Sender<Result<(), MoveError>>,
    ),
    /// The new place is noted: what a move from there has left may go.
    Sweep(PathBuf),
    Peers(oneshot::Sender<Vec<TorrentPeer>>),
    WebSeeds(oneshot::Sender<Vec<WebSeedStatus>>),
    /// What has it for others?
    Lend(oneshot::Sender<Option<Lent>>),
    Metadata(oneshot::Sender<Option<Arc<Metadata>>>),
    Reader(oneshot::Sender<Option<TorrentReader>>),
    Read(Box<ReadJob>),
    /// These pieces will be read soon.
    Ahead(std::ops::Range<u32>),
    Shutdown(oneshot::Sender<()>),
}

/// Calls peers; the gate.
pub(super) trait DialTorrent: Send + Sync {
    /// The outcome is told to `torrent`.
    fn dial_torrent(&self, addr: SocketAddr, handshake: Handshake, torrent: TorrentHandle);

    /// Whoever is there lied: no connection to or from it for a while.
    fn bar(&self, ip: IpAddr);

    /// Whether this address may be spoken to.
    fn allows(&self, ip: IpAddr) -> bool;
}

/// The way to a torrent's actor. Cheap to clone.
#[derive(Debug, Clone)]
pub struct TorrentHandle {
    tx: mpsc::UnboundedSender<ToTorrent>,
    status: watch::Receiver<TorrentStatus>,
    pub(super) handshake: Handshake,
    /// What stands for the v2 half of a hybrid torrent.
    upgrade: Option<[u8; 20]>,
    tracker_key: u32,
}

impl TorrentHandle {
    /// How it stands, with news of changes, a few times a second.
    pub fn status(&self) -> watch::Receiver<TorrentStatus> {
        self.status.clone()
    }

    /// Our name in handshakes, which trackers hear too.
    pub fn peer_id(&self) -> [u8; 20] {
        self.handshake.peer_id
    }

    /// What stands for it in trackers and the DHT, the v1 hash first.
    pub fn short_hashes(&self) -> impl Iterator<Item = [u8; 20]> + use<> {
        [self.handshake.info_hash].into_iter().chain(self.upgrade)
    }

    /// By which trackers know the torrent again when our address changes.
    pub fn tracker_key(&self) -> u32 {
        self.tracker_key
    }

    /// Somebody says that a peer is at `addr`.
    pub fn found(&self, addr: SocketAddr) {
        self.tell(ToTorrent::Found(addr));
    }

    /// The user says so.
    pub fn give(&self, addr: SocketAddr) {
        self.tell(ToTorrent::Give(addr));
    }

    pub fn pause(&self, paused: bool) {
        self.tell(ToTorrent::Pause(paused));
    }

    /// Waits until others are done, or goes on.
    pub fn queue(&self, waits: bool) {
        self.tell(ToTorrent::Queue(waits));
    }

    /// Reads and hashes everything again.
    pub fn recheck(&self) {
        self.tell(ToTorrent::Recheck);
    }

    /// From now on.
    pub fn set(&self, settings: Settings) {
        self.tell(ToTorrent::Settings(Box::new(settings)));
    }

    /// Other files are wanted from now on, or more than others.
    pub fn select(&self, selection: Selection) {
        self.tell(ToTorrent::Select(selection));
    }

    /// Moves the files to another folder; then the caller notes it, and calls [`TorrentHandle::sweep`].
    pub async fn relocate(&self, to: PathBuf) -> Result<(), MoveError> {
        let (tx, rx) = oneshot::channel();
        self.tell(ToTorrent::Move(to, tx));
        rx.await.unwrap_or(Err(MoveError::Gone))
    }

    /// Removes what a move from that folder has left behind.
    pub fn sweep(&self, from: PathBuf) {
        self.tell(ToTorrent::Sweep(from));
    }

    pub async fn peers(&self) -> Vec<TorrentPeer> {
        let (tx, rx) = oneshot::channel();
        self.tell(ToTorrent::Peers(tx));
        rx.await.unwrap_or_default()
    }

    pub async fn web_seeds(&self) -> Vec<WebSeedStatus> {
        let (tx, rx) = oneshot::channel();
        self.tell(ToTorrent::WebSeeds(tx));
        rx.await.unwrap_or_default()
    }

    /// The metadata, once it is here.
    pub async fn metadata(&self) -> Option<Arc<Metadata>> {
        let (tx, rx) = oneshot::channel();
        self.tell(ToTorrent::Metadata(tx));
        rx.await.ok().flatten()
    }

    /// Reads content, once what is on disk is known.
    pub async fn reader(&self) -> Option<TorrentReader> {
        let (tx, rx) = oneshot::channel();
        self.tell(ToTorrent::Reader(tx));
        rx.await.ok().flatten()
    }

    /// Ends the torrent in order: what was written is made durable and noted.
    pub async fn shutdown(&self) {
        let (tx, rx) = oneshot::channel();
        self.tell(ToTorrent::Shutdown(tx));
        // An error means that it has ended already.
        drop(rx.await);
    }

    pub(super) fn tell(&self, message: ToTorrent) {
        if self.tx.send(message).is_err() {
            tracing::debug!("a torrent that has ended was spoken to");
        }
    }
}

/// Goes on with a move that was cut off, before the torrent is opened.
pub fn finish_move(
    info: &Info,
    selection: &Selection,
    state: &Path,
    from: &Path,
    to: &Path,
) -> Result<(), MoveError> {
    let wants = |n: usize| info.files.get(n).is_some_and(|file| selection.wants(file));
    let storage = Storage::new(
        info,
        from.to_owned(),
        state.join(PARTS_FILE),
        settings::Preallocation::default(),
        wants,
    );
    storage.relocate(to, true)?;
    storage.sweep(from);
    Ok(())
}

/// Starts the actor of a torrent.
pub fn spawn(config: TorrentConfig, gate: super::gate::Gate) -> TorrentHandle {
    actor::spawn(config, Arc::new(gate))
}
