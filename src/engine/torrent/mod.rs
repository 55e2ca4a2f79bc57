//! Torrents: one actor for each. It owns the machine of `proto::torrent`, the addresses to call and the resume log; connections
//! are tasks (`peer`), writing and hashing are threads (`disk`), and everything reaches the actor as a message.
//!
//! - `storage`: where bytes lie. `hashes`: what they must be. `slab`: the buffers they come in. `resume`: what is here over
//!   restarts. `select`: which files are wanted. `reader`: reads that wait for pieces. `actor`, `content`: the actor itself.

mod actor;
mod content;
pub mod disk;
mod hashes;
mod peer;
pub mod reader;
pub(crate) mod resume;
pub mod select;
pub mod slab;
mod storage;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot, watch};

use self::disk::DiskPool;
use self::reader::{ReadJob, TorrentReader};
use self::select::Selection;
use self::slab::SlabPool;
use super::gate::Place;
use crate::proto::handshake::Handshake;
use crate::proto::metainfo::merkle::TreeHash;
use crate::proto::metainfo::{Info, InfoHashes};
use crate::proto::torrent::PeerSummary;

/// What all torrents of a daemon share.
#[derive(Debug, Clone)]
pub struct Shared {
    pub disk: DiskPool,
    pub slabs: SlabPool,
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
    pub sequential: bool,
    /// Only what is read is fetched.
    pub lazy: bool,
    /// Nothing is asked for and nobody is called.
    pub paused: bool,
    /// Stop serving once this many bytes were sent for every byte of content.
    pub seed_ratio: Option<f64>,
    /// Peers the user named: tried for ever.
    pub peers: Vec<SocketAddr>,
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
    pub peers: usize,
    pub seeds: usize,
    /// Why nothing happens, or what happens, in a few words.
    pub note: String,
    /// Everything that is wanted is here and can be read.
    pub finished: bool,
    /// The seed ratio is reached.
    pub done_seeding: bool,
}

/// A connected peer.
#[derive(Debug, Clone)]
pub struct TorrentPeer {
    pub addr: SocketAddr,
    pub incoming: bool,
    pub summary: PeerSummary,
}

/// A connection whose handshakes are done.
pub(super) struct Connected {
    pub(super) stream: TcpStream,
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
    Recheck,
    Peers(oneshot::Sender<Vec<TorrentPeer>>),
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
}

/// The way to a torrent's actor. Cheap to clone.
#[derive(Debug, Clone)]
pub struct TorrentHandle {
    tx: mpsc::UnboundedSender<ToTorrent>,
    status: watch::Receiver<TorrentStatus>,
    pub(super) handshake: Handshake,
}

impl TorrentHandle {
    /// How it stands, with news of changes, a few times a second.
    pub fn status(&self) -> watch::Receiver<TorrentStatus> {
        self.status.clone()
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

    /// Reads and hashes everything again.
    pub fn recheck(&self) {
        self.tell(ToTorrent::Recheck);
    }

    pub async fn peers(&self) -> Vec<TorrentPeer> {
        let (tx, rx) = oneshot::channel();
        self.tell(ToTorrent::Peers(tx));
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

/// Starts the actor of a torrent.
pub fn spawn(config: TorrentConfig, gate: super::gate::Gate) -> TorrentHandle {
    actor::spawn(config, Arc::new(gate))
}
