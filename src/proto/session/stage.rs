//! The stages of a connection and the step from each to the next.

use std::sync::Arc;

use bytes::{Buf, BytesMut};

use super::{Lookup, PeerInfo, Reason, Session, Side};
use crate::proto::extension::{self, HANDSHAKE_ID, UT_XET_ID};
use crate::proto::frame::{FRAME_LEN_MAX, RawFrame, Splitter};
use crate::proto::handshake::{HANDSHAKE_LEN, Handshake};
use crate::proto::noise::{self, MESSAGE_LEN_MAX, Transport};
use crate::proto::ut_xet::{Frame, Hello, PROTO};
use crate::share::auth::{AUTH_LEN_MAX, FolderCredentials, PeerRights};
use crate::share::{Auth, SwarmId};

/// Longest payload of any message before the channel stands, in bytes.
const SETUP_PAYLOAD_MAX: u32 = 1 << 10;

/// Longest message before AUTH is verified, in bytes: AUTH with the longest manifest, and HELLO.
const AUTH_PAYLOAD_MAX: u32 = 18 << 10;

/// Largest length field of the AUTH frame: its type byte and body.
const AUTH_FRAME_LEN_MAX: u32 = 1 + AUTH_LEN_MAX as u32;

const _: () = assert!(AUTH_FRAME_LEN_MAX + 4 + 25 + 16 <= AUTH_PAYLOAD_MAX);

/// How far a connection is.
pub(super) enum Stage {
    ExpectHandshake(ExpectHandshake),
    ExpectExtensions(ExpectExtensions),
    ExpectNoise(Box<ExpectNoise>),
    ExpectAuth(Box<ExpectAuth>),
    ExpectHello(Box<ExpectHello>),
    Open(Box<Open>),
    Over,
}

/// Waits for the BEP 3 handshake.
pub(super) enum ExpectHandshake {
    /// We called: it has to name the swarm we asked for.
    Called {
        folder: Arc<FolderCredentials>,
        swarm: SwarmId,
    },
    /// We were called: it has to name a swarm we are in.
    Caller(Lookup),
}

/// Waits for the BEP 10 handshake.
pub(super) struct ExpectExtensions {
    folder: Arc<FolderCredentials>,
    swarm: SwarmId,
}

/// Waits for the peer's next Noise message.
pub(super) struct ExpectNoise {
    folder: Arc<FolderCredentials>,
    noise: noise::Handshake,
    peer_id: u8,
}

/// Waits for AUTH; nothing else is looked at.
pub(super) struct ExpectAuth {
    folder: Arc<FolderCredentials>,
    channel: Channel,
    handshake_hash: [u8; 32],
}

/// Waits for HELLO of a peer that has proven its rights.
pub(super) struct ExpectHello {
    channel: Channel,
    rights: PeerRights,
}

/// Everything may be said.
pub(super) struct Open {
    pub(super) channel: Channel,
}

/// The established Noise channel.
pub(super) struct Channel {
    pub(super) transport: Transport,
    /// The extended id under which the peer takes `ut_xet`.
    pub(super) peer_id: u8,
}

impl Stage {
    pub(super) fn called_peer(folder: Arc<FolderCredentials>, swarm: SwarmId) -> Self {
        Self::ExpectHandshake(ExpectHandshake::Called { folder, swarm })
    }

    pub(super) fn caller(lookup: Lookup) -> Self {
        Self::ExpectHandshake(ExpectHandshake::Caller(lookup))
    }

    /// Longest payload of an extended message that is taken now, in bytes.
    pub(super) fn payload_max(&self) -> u32 {
        match self {
            Self::ExpectHandshake(_) | Self::ExpectExtensions(_) | Self::ExpectNoise(_) => {
                SETUP_PAYLOAD_MAX
            }
            Self::ExpectAuth(_) => AUTH_PAYLOAD_MAX,
            Self::ExpectHello(_) | Self::Open(_) | Self::Over => MESSAGE_LEN_MAX as u32,
        }
    }

    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::ExpectHandshake(_) => "ExpectHandshake",
            Self::ExpectExtensions(_) => "ExpectExtensions",
            Self::ExpectNoise(_) => "ExpectNoise",
            Self::ExpectAuth(_) => "ExpectAuth",
            Self::ExpectHello(_) => "ExpectHello",
            Self::Open(_) => "Open",
            Self::Over => "Over",
        }
    }
}

impl Session {
    pub(super) fn put_handshake(&mut self, swarm: &SwarmId) {
        let handshake = Handshake::with_extensions(*swarm.as_bytes(), self.drawn.peer_id);
        self.ready.extend_from_slice(&handshake.encode());
    }

    fn put_extended(&mut self, id: u8, payload: &[u8]) {
        extension::put_header(&mut self.ready, id, payload.len());
        self.ready.extend_from_slice(payload);
    }

    /// The BEP 3 handshake. The called side answers it together with its BEP 10 handshake, the
    /// caller sends its own only now that it knows the other end is in the swarm.
    pub(super) fn take_handshake(&mut self, input: &mut BytesMut) -> Result<bool, Reason> {
        let Some(theirs) = Handshake::decode(input)? else {
            return Ok(false);
        };
        let named = SwarmId::from_bytes(theirs.info_hash);
        let (folder, is_new) = match &self.stage {
            Stage::ExpectHandshake(ExpectHandshake::Called { folder, swarm }) => {
                (Some(folder.clone()).filter(|_| named == *swarm), false)
            }
            Stage::ExpectHandshake(ExpectHandshake::Caller(lookup)) => (lookup(&named), true),
            _ => return Ok(false),
        };
        let missing = if is_new {
            Reason::UnknownSwarm
        } else {
            Reason::OtherSwarm
        };
        let folder = folder.ok_or(missing)?;
        if !theirs.has_extensions() {
            return Err(Reason::NoExtensions);
        }
        if is_new {
            self.put_handshake(&named);
        }
        self.put_extended(HANDSHAKE_ID, &extension::encode_handshake());
        input.advance(HANDSHAKE_LEN);
        self.stage = Stage::ExpectExtensions(ExpectExtensions {
            folder,
            swarm: named,
        });
        Ok(true)
    }

    /// A whole extended message: the stage decides what it has to be.
    pub(super) fn take_extended(&mut self, id: u8, payload: &[u8]) -> Result<(), Reason> {
        let expected = match self.stage {
            Stage::ExpectExtensions(_) => HANDSHAKE_ID,
            _ => UT_XET_ID,
        };
        if id != expected {
            return Err(Reason::UnexpectedId(id));
        }
        match std::mem::replace(&mut self.stage, Stage::Over) {
            Stage::ExpectExtensions(stage) => self.take_extensions(stage, payload),
            Stage::ExpectNoise(stage) => self.take_noise(stage, payload),
            Stage::ExpectAuth(mut stage) => {
                self.splitter.open(&mut stage.channel.transport, payload)?;
                self.take_auth(stage)
            }
            Stage::ExpectHello(mut stage) => {
                self.splitter.open(&mut stage.channel.transport, payload)?;
                self.take_hello(stage)
            }
            Stage::Open(mut stage) => {
                let opened = self.splitter.open(&mut stage.channel.transport, payload);
                // Frames that are whole already are still given out when this one is damaged.
                self.stage = Stage::Open(stage);
                Ok(opened?)
            }
            Stage::ExpectHandshake(_) | Stage::Over => Ok(()),
        }
    }

    fn take_extensions(&mut self, stage: ExpectExtensions, payload: &[u8]) -> Result<(), Reason> {
        let peer_id = extension::decode_handshake(payload)?;
        let ExpectExtensions { folder, swarm } = stage;
        let (key, ephemeral) = (&self.config.static_key, self.drawn.ephemeral.clone());
        let mut noise = noise::Handshake::begin(self.side, &swarm, &folder.psk(), key, ephemeral)?;
        if self.side == Side::Caller {
            self.put_extended(peer_id, &noise.write()?);
        }
        self.stage = Stage::ExpectNoise(Box::new(ExpectNoise {
            folder,
            noise,
            peer_id,
        }));
        Ok(())
    }

    /// The peer's Noise message, and our answer if the pattern has one.
    fn take_noise(&mut self, mut stage: Box<ExpectNoise>, payload: &[u8]) -> Result<(), Reason> {
        stage.noise.read(payload)?;
        if !stage.noise.is_finished() {
            self.put_extended(stage.peer_id, &stage.noise.write()?);
        }
        if !stage.noise.is_finished() {
            self.stage = Stage::ExpectNoise(stage);
            return Ok(());
        }
        let ExpectNoise {
            folder,
            noise,
            peer_id,
        } = *stage;
        let (transport, handshake_hash) = noise.finish()?;
        let mut channel = Channel { transport, peer_id };
        self.put_auth(&folder, &mut channel, &handshake_hash)?;
        self.stage = Stage::ExpectAuth(Box::new(ExpectAuth {
            folder,
            channel,
            handshake_hash,
        }));
        Ok(())
    }

    /// Our AUTH and HELLO, one message.
    fn put_auth(
        &mut self,
        folder: &FolderCredentials,
        channel: &mut Channel,
        handshake_hash: &[u8; 32],
    ) -> Result<(), Reason> {
        let auth = Auth::prove(folder, self.side, handshake_hash);
        self.queue(&Frame::Auth(Box::new(auth)))?;
        self.queue(&Frame::Hello(Hello {
            proto: PROTO,
            caps: 0,
            epoch: folder.epoch(),
            nonce: self.config.nonce,
            listen_port: self.config.listen_port,
        }))?;
        while self
            .outbox
            .seal_next(&mut channel.transport, channel.peer_id, &mut self.ready)?
        {}
        Ok(())
    }

    fn take_auth(&mut self, stage: Box<ExpectAuth>) -> Result<(), Reason> {
        let Some(frame) = self.splitter.next_frame(AUTH_FRAME_LEN_MAX)? else {
            self.stage = Stage::ExpectAuth(stage);
            return Ok(());
        };
        let auth = expect_auth(frame)?;
        let ExpectAuth {
            folder,
            channel,
            handshake_hash,
        } = *stage;
        let today = self.config.today;
        let rights = auth.verify(&folder, self.side.peer(), &handshake_hash, today)?;
        self.take_hello(Box::new(ExpectHello { channel, rights }))
    }

    fn take_hello(&mut self, stage: Box<ExpectHello>) -> Result<(), Reason> {
        let Some(frame) = self.splitter.next_frame(FRAME_LEN_MAX)? else {
            self.stage = Stage::ExpectHello(stage);
            return Ok(());
        };
        let hello = expect_hello(frame)?;
        if hello.proto != PROTO {
            return Err(Reason::Version(hello.proto));
        }
        if hello.nonce == self.config.nonce {
            return Err(Reason::Ourselves);
        }
        let ExpectHello { channel, rights } = *stage;
        self.timers.setup = None;
        self.established = Some(Box::new(PeerInfo {
            side: self.side.peer(),
            certificate: rights.certificate,
            manifest: rights.manifest,
            epoch: hello.epoch,
            nonce: hello.nonce,
            listen_port: hello.listen_port,
        }));
        self.stage = Stage::Open(Box::new(Open { channel }));
        Ok(())
    }
}

impl Open {
    /// The next frame of a type we know.
    pub(super) fn next_frame(&self, splitter: &mut Splitter) -> Result<Option<Frame>, Reason> {
        while let Some(raw) = splitter.next_frame(FRAME_LEN_MAX)? {
            match Frame::decode(raw)? {
                Some(frame @ (Frame::Auth(_) | Frame::Hello(_))) => {
                    return Err(Reason::OutOfTurn(frame.kind()));
                }
                Some(frame) => return Ok(Some(frame)),
                None => {}
            }
        }
        Ok(None)
    }
}

/// The type is checked before the body is looked at.
fn expect_auth(frame: RawFrame) -> Result<Auth, Reason> {
    let kind = frame.kind;
    if kind != 0 {
        return Err(Reason::OutOfTurn(kind));
    }
    match Frame::decode(frame)? {
        Some(Frame::Auth(auth)) => Ok(*auth),
        _ => Err(Reason::OutOfTurn(kind)),
    }
}

fn expect_hello(frame: RawFrame) -> Result<Hello, Reason> {
    let kind = frame.kind;
    match Frame::decode(frame)? {
        Some(Frame::Hello(hello)) => Ok(hello),
        _ => Err(Reason::OutOfTurn(kind)),
    }
}
