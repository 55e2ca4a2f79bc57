//! What is known of one connected peer, and what is under way with it.

use std::collections::{BTreeSet, HashMap};
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;

use super::hello::Hello;
use super::window::Window;
use crate::proto::bitfield::Bitfield;
use crate::proto::blocks::Block;
use crate::proto::pex::Told;
use crate::proto::rate::Meter;

/// Time since the owner's start.
type Now = Duration;

/// Pieces a peer may name before we know how many there are.
const EARLY_HAVES_MAX: usize = 65_536;
/// Pieces of an allowed-fast set that are kept.
const ALLOWED_FAST_MAX: usize = 64;

/// Suggested pieces that are kept.
const SUGGESTED_MAX: usize = 16;

/// Which pieces a peer has.
#[derive(Debug, Clone)]
pub(super) enum Has {
    /// The number of pieces is not known yet: what the peer has said so far.
    Early {
        all: bool,
        field: Option<Bytes>,
        pieces: Vec<u32>,
    },
    Known(Bitfield),
}

/// A new connection.
#[derive(Debug, Clone)]
pub struct NewPeer {
    /// Both sides know BEP 6.
    pub fast: bool,
    /// It knows BEP 10.
    pub extended: bool,
    /// The connection speaks of the torrent by its v2 hash, so hash messages may be sent.
    pub v2: bool,
    /// We called it, so it can be called at `addr`.
    pub called: bool,
    /// Its end of the connection.
    pub addr: Option<SocketAddr>,
    /// What the connection itself shows, as flags of peer exchange: encryption, uTP.
    pub pex_flags: u8,
}

/// See the module documentation.
#[derive(Debug)]
pub(super) struct Peer {
    pub(super) fast: bool,
    pub(super) extended: bool,
    /// It is no peer but a web server.
    pub(super) web: bool,
    pub(super) v2: bool,
    /// Pieces being read for hashes it wants.
    pub(super) hash_jobs: u32,
    pub(super) called: bool,
    pub(super) addr: Option<SocketAddr>,
    pub(super) pex_flags: u8,
    pub(super) hello: Option<Hello>,
    pub(super) has: Has,
    /// Anything about pieces was said: what comes now is in addition.
    pub(super) spoke: bool,

    /// It lets us ask.
    pub(super) unchoked: bool,
    pub(super) interested_in_us: bool,
    pub(super) we_are_interested: bool,
    /// Since when we let it ask.
    pub(super) unchoked_since: Option<Now>,
    pub(super) choked_since: Now,

    /// What it was asked for, and when.
    pub(super) asked: HashMap<Block, Now>,
    pub(super) window: Window,
    /// When a block came last, or asking began.
    pub(super) heard_block: Now,
    pub(super) snubs: bool,
    /// Pieces it gives us while we are choked (BEP 6).
    pub(super) allowed_fast: Vec<u32>,
    /// Pieces we give it while it is choked.
    pub(super) gives_fast: Vec<u32>,
    /// Pieces it would like us to ask for (BEP 6).
    pub(super) suggests: Vec<u32>,
    /// The best rate at which it gave.
    pub(super) best: u64,
    /// Times it let us wait.
    pub(super) snubbed: u32,
    /// Pieces with blocks of it that had the wrong hash.
    pub(super) failures: u32,
    /// Bytes of requests we took back; they may come nevertheless.
    pub(super) cancelled_bytes: u64,
    /// Bytes that came unasked.
    pub(super) unasked_bytes: u64,

    /// Blocks it has asked for and not got.
    pub(super) serving: u32,
    pub(super) sent: Meter,

    pub(super) heard: Now,
    pub(super) spoken: Now,
    pub(super) told: Told,
    /// When it may be told of others again.
    pub(super) pex_at: Now,
    /// Some of those it has told us of.
    pub(super) tells_of: BTreeSet<SocketAddr>,
}

impl Peer {
    pub(super) fn new(now: Now, new: NewPeer, pieces: Option<u32>) -> Self {
        Self {
            fast: new.fast,
            extended: new.extended,
            web: false,
            v2: new.v2,
            hash_jobs: 0,
            called: new.called,
            addr: new.addr,
            pex_flags: new.pex_flags,
            hello: None,
            has: match pieces {
                Some(pieces) => Has::Known(Bitfield::new(pieces)),
                None => Has::Early {
                    all: false,
                    field: None,
                    pieces: Vec::new(),
                },
            },
            spoke: false,
            unchoked: false,
            interested_in_us: false,
            we_are_interested: false,
            unchoked_since: None,
            choked_since: now,
            asked: HashMap::new(),
            window: Window::new(),
            heard_block: now,
            snubs: false,
            allowed_fast: Vec::new(),
            gives_fast: Vec::new(),
            suggests: Vec::new(),
            best: 0,
            snubbed: 0,
            failures: 0,
            cancelled_bytes: 0,
            unasked_bytes: 0,
            serving: 0,
            sent: Meter::default(),
            heard: now,
            spoken: now,
            told: Told::default(),
            pex_at: now,
            tells_of: BTreeSet::new(),
        }
    }

    /// The pieces it has, once their number is known.
    pub(super) fn has(&self) -> Option<&Bitfield> {
        match &self.has {
            Has::Known(has) => Some(has),
            Has::Early { .. } => None,
        }
    }

    pub(super) fn is_seed(&self) -> bool {
        self.has().is_some_and(Bitfield::is_full)
    }

    /// Takes what was said before the number of pieces was known. `None`: it does not fit.
    pub(super) fn settle(&mut self, count: u32) -> Option<()> {
        let Has::Early { all, field, pieces } = &self.has else {
            return Some(());
        };
        let mut has = match (all, field) {
            (true, _) => Bitfield::full(count),
            (false, Some(field)) => Bitfield::from_bytes(field, count).ok()?,
            (false, None) => Bitfield::new(count),
        };
        for piece in pieces {
            if *piece >= count {
                return None;
            }
            has.set(*piece);
        }
        self.has = Has::Known(has);
        Some(())
    }

    /// Notes a piece before the number of pieces is known. `None`: too many.
    pub(super) fn early_have(&mut self, piece: u32) -> Option<()> {
        if let Has::Early { pieces, .. } = &mut self.has {
            if pieces.len() >= EARLY_HAVES_MAX {
                return None;
            }
            pieces.push(piece);
        }
        Some(())
    }

    pub(super) fn suggest(&mut self, piece: u32) {
        if self.suggests.len() < SUGGESTED_MAX && !self.suggests.contains(&piece) {
            self.suggests.push(piece);
        }
    }

    pub(super) fn allow_fast(&mut self, piece: u32) {
        if self.allowed_fast.len() < ALLOWED_FAST_MAX && !self.allowed_fast.contains(&piece) {
            self.allowed_fast.push(piece);
        }
    }

    /// How many more blocks to ask for now; 0 until it is worth a message.
    pub(super) fn room(&self) -> usize {
        let fits = self
            .hello
            .as_ref()
            .map_or(u32::MAX, |hello| hello.requests_max);
        let target = self.window.target().min(fits) as usize;
        let room = target.saturating_sub(self.asked.len());
        let low = self.asked.len() * 4 <= target * 3;
        if low || target < 16 { room } else { 0 }
    }
}
