//! A connection of two members of a folder, from the first byte to the last, without IO
//! (`docs/bep_xet.md` section 2).
//!
//! Bytes go in by [`Session::handle_input`] and come out by [`Session::poll_transmit`]; what it
//! all means comes out of [`Session::poll_event`]. The stages are one enum with a struct each, so
//! that nothing can be read before its time:
//!
//! `ExpectHandshake` > `ExpectExtensions` > `ExpectNoise` > `ExpectAuth` > `ExpectHello` > `Open`

use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, BytesMut};
use thiserror::Error;
use zeroize::Zeroizing;

use super::extension::{self, ExtensionError, Message, MessageError};
use super::frame::{FrameLength, Outbox, Splitter};
use super::handshake::NotBitTorrent;
use super::noise::{NoiseError, StaticKey};
use super::ut_xet::{Frame, FrameError};
use crate::share::auth::{FolderCredentials, Side};
use crate::share::keys::Secret;
use crate::share::{AuthError, Certificate, DeviceId, Manifest, SwarmId};

mod stage;

#[cfg(test)]
mod pair;
#[cfg(test)]
mod tests;

use stage::Stage;

/// From the first byte to a verified HELLO.
pub const SETUP_TIMEOUT: Duration = Duration::from_secs(5);

/// A sign of life goes out after this long without one.
pub const KEEP_ALIVE_AFTER: Duration = Duration::from_secs(60);

/// The connection is given up after this long without one from the peer.
pub const SILENCE_TIMEOUT: Duration = Duration::from_secs(180);

/// A single `poll_transmit` stops adding messages once it has written this many bytes: enough for
/// one large `write`, and a bound on what a slow peer's socket holds sealed.
const TRANSMIT_LEN: usize = 256 << 10;

/// What a session needs to know beside the folder.
#[derive(Debug, Clone)]
pub struct Config {
    /// The Noise key of this process.
    pub static_key: Arc<StaticKey>,
    /// Random per process and folder, sent in HELLO.
    pub nonce: [u8; 8],
    /// The port we take connections on, 0 for none.
    pub listen_port: u16,
    /// Unix day for the expiry of certificates.
    pub today: u32,
}

/// Random values of one connection, drawn when it starts.
struct Drawn {
    peer_id: [u8; 20],
    ephemeral: Secret,
}

/// Finds the credentials of the folder whose swarm a caller asks for.
pub type Lookup = Box<dyn Fn(&SwarmId) -> Option<Arc<FolderCredentials>> + Send>;

/// What comes out of a session.
#[derive(Debug)]
pub enum Event {
    /// The peer is a member. The first event, if the connection gets that far.
    Established(Box<PeerInfo>),
    /// It says something.
    Frame(Frame),
    /// The connection is over; the last event.
    Closed(Reason),
}

/// Who the peer is, as far as it has proven it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerInfo {
    /// Which end it is.
    pub side: Side,
    /// Its certificate if it is a writer, `None` for a reader.
    pub certificate: Option<Certificate>,
    /// The manifest it holds, signed by the owner; may be newer or older than ours.
    pub manifest: Option<Manifest>,
    /// The epoch it says it is in, 0 if it does not know.
    pub epoch: u32,
    /// Tells double connections: the same two nonces.
    pub nonce: [u8; 8],
    /// The port it takes connections on, 0 for none.
    pub listen_port: u16,
}

impl PeerInfo {
    /// The device, for a writer.
    pub fn device(&self) -> Option<DeviceId> {
        self.certificate.as_ref().map(Certificate::device)
    }
}

/// Why a connection is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum Reason {
    /// The first bytes are of another protocol.
    #[error(transparent)]
    NotBitTorrent(#[from] NotBitTorrent),
    /// The caller asks for a swarm we are not in.
    #[error("the peer asks for a swarm we are not in")]
    UnknownSwarm,
    /// The called peer answers for another swarm.
    #[error("the peer answers for another swarm")]
    OtherSwarm,
    /// The peer does not know BEP 10.
    #[error("the peer has no extensions")]
    NoExtensions,
    /// A message that has no place here.
    #[error(transparent)]
    Message(#[from] MessageError),
    /// An extended message with an id that is not ours, or not yet.
    #[error("an extended message with the unexpected id {0}")]
    UnexpectedId(u8),
    /// The extension handshake does not lead to `ut_xet`.
    #[error(transparent)]
    Extension(#[from] ExtensionError),
    /// A Noise message does not open.
    #[error(transparent)]
    Noise(#[from] NoiseError),
    /// A frame with an impossible length.
    #[error(transparent)]
    FrameLength(#[from] FrameLength),
    /// A frame that does not parse.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// A frame out of turn: not AUTH first, not HELLO second, or either again.
    #[error("a {} frame out of turn", super::ut_xet::kind_name(*.0))]
    OutOfTurn(u8),
    /// AUTH is not accepted.
    #[error(transparent)]
    Auth(#[from] AuthError),
    /// The peer speaks another version of `ut_xet`.
    #[error("the peer speaks version {0} of ut_xet")]
    Version(u16),
    /// We called ourselves.
    #[error("a connection to ourselves")]
    Ourselves,
    /// Setup took longer than [`SETUP_TIMEOUT`].
    #[error("the peer did not finish the handshake in time")]
    SetupTimeout,
    /// Nothing came for [`SILENCE_TIMEOUT`].
    #[error("the peer fell silent")]
    Silent,
}

impl Reason {
    /// A short constant name, for counting.
    pub fn name(&self) -> &'static str {
        match self {
            Self::NotBitTorrent(_) => "not_bittorrent",
            Self::UnknownSwarm => "unknown_swarm",
            Self::OtherSwarm => "other_swarm",
            Self::NoExtensions => "no_extensions",
            Self::Message(_) => "message",
            Self::UnexpectedId(_) => "unexpected_id",
            Self::Extension(_) => "extension",
            Self::Noise(_) => "noise",
            Self::FrameLength(_) => "frame_length",
            Self::Frame(_) => "frame",
            Self::OutOfTurn(_) => "out_of_turn",
            Self::Auth(_) => "auth",
            Self::Version(_) => "version",
            Self::Ourselves => "ourselves",
            Self::SetupTimeout => "setup_timeout",
            Self::Silent => "silent",
        }
    }

    /// Whether it is to be counted against the peer's address. What happens between honest peers
    /// of different folders, ages and versions is not, nor is a line that goes dead.
    pub fn is_fault(&self) -> bool {
        !matches!(
            self,
            Self::UnknownSwarm
                | Self::OtherSwarm
                | Self::NoExtensions
                | Self::Auth(AuthError::NoManifest | AuthError::Certificate(_))
                | Self::Version(_)
                | Self::Ourselves
                | Self::Silent
        )
    }
}

/// A frame cannot be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum SendError {
    /// The connection is not established, or over.
    #[error("the connection is not open")]
    NotOpen,
    /// AUTH and HELLO are the session's own.
    #[error("{} frames are sent by the session itself", super::ut_xet::kind_name(*.0))]
    Reserved(u8),
    /// The frame exceeds a limit of the protocol.
    #[error(transparent)]
    Frame(#[from] FrameError),
}

/// One connection.
pub struct Session {
    stage: Stage,
    config: Config,
    side: Side,
    drawn: Drawn,
    /// Sealed or plain bytes of the setup and keep-alives, to go out before anything in `outbox`.
    ready: BytesMut,
    outbox: Outbox,
    splitter: Splitter,
    timers: Timers,
    /// Scratch for frame heads.
    head: Vec<u8>,
    established: Option<Box<PeerInfo>>,
    closed: Option<Reason>,
    is_over: bool,
}

/// When what is due.
#[derive(Debug)]
struct Timers {
    /// Setup must be through by then; `None` once it is.
    setup: Option<Duration>,
    keep_alive: Duration,
    silence: Duration,
}

impl Session {
    /// Calls a peer of the folder. Its handshake is ready to transmit at once.
    pub fn connect(
        now: Duration,
        folder: Arc<FolderCredentials>,
        config: Config,
        random: &mut dyn FnMut(&mut [u8]),
    ) -> Self {
        let mut session = Self::begin(now, Side::Caller, config, random);
        let swarm = folder.swarm();
        session.put_handshake(&swarm);
        session.stage = Stage::called_peer(folder, swarm);
        session
    }

    /// Takes a call. Nothing is sent until the caller names a swarm that `lookup` knows.
    pub fn accept(
        now: Duration,
        lookup: Lookup,
        config: Config,
        random: &mut dyn FnMut(&mut [u8]),
    ) -> Self {
        let mut session = Self::begin(now, Side::Called, config, random);
        session.stage = Stage::caller(lookup);
        session
    }

    fn begin(now: Duration, side: Side, config: Config, random: &mut dyn FnMut(&mut [u8])) -> Self {
        let mut drawn = Drawn {
            peer_id: [0; 20],
            ephemeral: Zeroizing::new([0; 32]),
        };
        random(&mut drawn.peer_id);
        random(&mut drawn.ephemeral[..]);
        let timers = Timers {
            setup: Some(now + SETUP_TIMEOUT),
            keep_alive: now + KEEP_ALIVE_AFTER,
            silence: now + SILENCE_TIMEOUT,
        };
        Self {
            stage: Stage::Over,
            config,
            side,
            drawn,
            ready: BytesMut::new(),
            outbox: Outbox::default(),
            splitter: Splitter::default(),
            timers,
            head: Vec::new(),
            established: None,
            closed: None,
            is_over: false,
        }
    }

    /// Takes what it can of `input`; what is left is an incomplete message and has to stay at the
    /// front of the next call's input. Call [`Session::poll_event`] until it is empty afterwards:
    /// frames are decoded there, so what they occupy is bounded by what was passed in here.
    pub fn handle_input(&mut self, now: Duration, input: &mut BytesMut) {
        if !input.is_empty() {
            self.timers.silence = now + SILENCE_TIMEOUT;
        }
        while !self.is_closed() {
            match self.take_message(input) {
                Ok(true) => {}
                Ok(false) => return,
                Err(reason) => self.close(reason),
            }
        }
        input.clear();
    }

    /// How many bytes of input may wait in front of this session. Before AUTH a peer can make us
    /// hold no more than one message of the setup.
    pub fn input_len_max(&self) -> usize {
        4 + self.stage.payload_max() as usize + 2
    }

    /// Appends what is to be sent to `out` and tells whether that was anything.
    pub fn poll_transmit(&mut self, now: Duration, out: &mut BytesMut) -> bool {
        let before = out.len();
        out.extend_from_slice(&self.ready.split());
        if let Stage::Open(open) = &mut self.stage {
            let outbox = &mut self.outbox;
            while out.len() - before < TRANSMIT_LEN {
                match outbox.seal_next(&mut open.channel.transport, open.channel.peer_id, out) {
                    Ok(true) => {}
                    Ok(false) => break,
                    Err(error) => {
                        self.close(error.into());
                        break;
                    }
                }
            }
        }
        let is_written = out.len() > before;
        if is_written {
            self.timers.keep_alive = now + KEEP_ALIVE_AFTER;
        }
        is_written
    }

    /// When [`Session::handle_timeout`] wants to be called next.
    pub fn poll_timeout(&self) -> Option<Duration> {
        if self.is_closed() {
            return None;
        }
        let timers = &self.timers;
        let next = timers.keep_alive.min(timers.silence);
        Some(timers.setup.map_or(next, |setup| setup.min(next)))
    }

    /// Does what is due at `now`.
    pub fn handle_timeout(&mut self, now: Duration) {
        if self.is_closed() {
            return;
        }
        if self.timers.setup.is_some_and(|setup| setup <= now) {
            self.close(Reason::SetupTimeout);
        } else if self.timers.silence <= now {
            self.close(Reason::Silent);
        } else if self.timers.keep_alive <= now {
            self.ready.extend_from_slice(&[0; 4]);
            self.timers.keep_alive = now + KEEP_ALIVE_AFTER;
        }
    }

    /// What has happened since; `None` when nothing is left.
    pub fn poll_event(&mut self) -> Option<Event> {
        if let Some(info) = self.established.take() {
            return Some(Event::Established(info));
        }
        if let Stage::Open(open) = &self.stage {
            match open.next_frame(&mut self.splitter) {
                Ok(Some(frame)) => return Some(Event::Frame(frame)),
                Ok(None) => {}
                Err(reason) => self.close(reason),
            }
        }
        let reason = self.closed.take()?;
        self.stage = Stage::Over;
        Some(Event::Closed(reason))
    }

    /// Queues a frame.
    ///
    /// # Errors
    ///
    /// Before `Established` and after `Closed`, for AUTH and HELLO, and for a frame over a limit.
    pub fn send(&mut self, frame: &Frame) -> Result<(), SendError> {
        match (frame, &self.stage) {
            (Frame::Auth(_) | Frame::Hello(_), _) => Err(SendError::Reserved(frame.kind())),
            (_, Stage::Open(_)) if !self.is_over => Ok(self.queue(frame)?),
            _ => Err(SendError::NotOpen),
        }
    }

    /// Bytes waiting to be sent, for back-pressure: stop answering while this is large.
    pub fn queued_len(&self) -> usize {
        self.ready.len() + self.outbox.len()
    }

    fn queue(&mut self, frame: &Frame) -> Result<(), FrameError> {
        self.head.clear();
        let payload = frame.encode(&mut self.head)?;
        self.outbox.push(&self.head, payload);
        Ok(())
    }

    fn is_closed(&self) -> bool {
        self.is_over
    }

    /// Frames that came before the fault are still given out, then the reason.
    fn close(&mut self, reason: Reason) {
        if !self.is_over {
            self.is_over = true;
            self.closed = Some(reason);
        }
    }

    /// Takes one message of the current stage; false if none is complete.
    fn take_message(&mut self, input: &mut BytesMut) -> Result<bool, Reason> {
        if let Stage::ExpectHandshake(_) = self.stage {
            return self.take_handshake(input);
        }
        match extension::next_message(input, self.stage.payload_max())? {
            None => Ok(false),
            Some(message) => {
                if let Message::Extended { id, payload } = &message {
                    let payload = input.get(payload.clone()).unwrap_or_default();
                    self.take_extended(*id, payload)?;
                }
                input.advance(message.input_len());
                Ok(true)
            }
        }
    }
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session")
            .field("side", &self.side)
            .field("stage", &self.stage.name())
            .field("queued", &self.queued_len())
            .finish_non_exhaustive()
    }
}
