//! The frames of `ut_xet` (`docs/bep_xet.md` section 3): one enum, a strict bounded decoder, an
//! encoder that refuses to write what a decoder would refuse to read.
//!
//! Payloads stay [`Bytes`]: decoding slices them out of the receive buffer.

use std::net::SocketAddr;

use bytes::Bytes;
use thiserror::Error;

use super::frame::{FRAME_LEN_MAX, RawFrame};
use crate::share::wire::{Reader, at_most};
use crate::share::{
    Auth, Certificate, ChunkHash, DecodeError, Head, Manifest, NodeId, SnapshotId, Unverified,
};

mod body;

/// The only protocol version there is.
pub const PROTO: u16 = 1;
/// Most heads in one HEADS.
pub const HEADS_MAX: u16 = 1024;
/// Most certificates in one CERTS.
pub const CERTS_MAX: u16 = 1024;
/// Most addresses in one PEERS.
pub const PEERS_MAX: u8 = 64;
/// Most objects or chunks in one request, and indexes in one answer.
pub const ASK_MAX: u16 = 256;
/// Longest raw change list in a DELTA, in bytes.
pub const CHANGES_LEN_MAX: u32 = 1 << 20;
/// Longest node, in bytes (`docs/formats/tree.md`).
pub const NODE_LEN_MAX: u32 = 224 << 10;
/// Longest chunk, in bytes.
pub const CHUNK_LEN_MAX: u32 = 128 << 10;

/// Everything a peer can say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    /// Who I am and what I may do; the first frame each way and never again.
    Auth(Box<Auth>),
    /// The second frame each way.
    Hello(Hello),
    /// Newest heads the sender knows.
    Heads(Vec<Unverified<Head>>),
    /// A new head with what changed.
    Delta(Box<Delta>),
    /// A newer manifest.
    Manifest(Box<Unverified<Manifest>>),
    /// Certificates of devices whose heads the sender has.
    Certs(Vec<Unverified<Certificate>>),
    /// Addresses of other members.
    Peers(Vec<SocketAddr>),
    /// Why the sender closes.
    Bye {
        /// Number of the reason.
        reason: u8,
        /// The reason for people, at most 255 bytes in no particular encoding.
        text: Bytes,
    },
    /// Asks for nodes.
    Get(Get),
    /// One node.
    Obj(Obj),
    /// NONE: nodes the sender does not have.
    Absent(Indexes),
    /// Asks for chunks by hash.
    Want(Want),
    /// Asks for a run of chunks of one segment.
    WantRun(WantRun),
    /// One chunk.
    Chunk(Chunk),
    /// Chunks the sender does not have.
    Miss(Indexes),
    /// Takes a request back.
    Cancel {
        /// Which.
        req: u32,
    },
    /// What the sender holds of a snapshot.
    Have {
        /// The snapshot.
        snapshot: SnapshotId,
        /// How much of it.
        what: Holding,
    },
    /// A keeper holds every chunk of the snapshot, fsynced.
    Stored(SnapshotId),
    /// A keeper is about to drop chunks of it.
    Unstored(SnapshotId),
}

/// HELLO: about the sender, after AUTH.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hello {
    /// Protocol version, [`PROTO`].
    pub proto: u16,
    /// Capability bits, none so far.
    pub caps: u32,
    /// Epoch the sender is in, 0 if it does not know.
    pub epoch: u32,
    /// Random per process and folder; tells connections to ourselves and doubles.
    pub nonce: [u8; 8],
    /// Port the sender takes connections on, 0 for none.
    pub listen_port: u16,
}

/// DELTA: a head, its snapshot, and the change list that leads there from `base_root`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delta {
    /// The new head.
    pub head: Unverified<Head>,
    /// The snapshot node it names.
    pub snapshot: Bytes,
    /// Root of the tree the changes apply to.
    pub base_root: NodeId,
    /// Length of the change list in bytes, at most [`CHANGES_LEN_MAX`].
    pub raw_len: u32,
    /// The change list, zstd.
    pub changes: Bytes,
}

/// How urgent a request is; smaller is served first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Priority {
    /// A reader is blocked on it.
    Blocked,
    /// Somebody will probably read it next.
    ReadAhead,
    /// A pinned file or a whole replica.
    Replica,
    /// May be useful one day.
    Prefetch,
}

/// One node asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ObjectRef {
    /// Node kind (`docs/formats/tree.md`).
    pub kind: u8,
    /// Its id.
    pub id: NodeId,
}

/// GET.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Get {
    /// The asker's number for the request.
    pub req: u32,
    /// How urgent.
    pub priority: Priority,
    /// What; answers refer to it by index.
    pub objects: Vec<ObjectRef>,
}

/// OBJ.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Obj {
    /// The request answered.
    pub req: u32,
    /// Index into it.
    pub idx: u16,
    /// How `bytes` are packed.
    pub codec: ObjCodec,
    /// Length of the node in bytes, at most [`NODE_LEN_MAX`].
    pub raw_len: u32,
    /// The node, packed.
    pub bytes: Bytes,
}

/// How a node is packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ObjCodec {
    /// As it is.
    Raw,
    /// zstd.
    Zstd,
}

/// NONE and MISS: indexes into a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Indexes {
    /// The request answered.
    pub req: u32,
    /// What of it is not there.
    pub idx: Vec<u16>,
}

/// WANT.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Want {
    /// The asker's number for the request.
    pub req: u32,
    /// How urgent.
    pub priority: Priority,
    /// What; answers refer to it by index.
    pub chunks: Vec<ChunkHash>,
}

/// WANTRUN: `count` chunks of a recipe segment from index `from` on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WantRun {
    /// The asker's number for the request.
    pub req: u32,
    /// How urgent.
    pub priority: Priority,
    /// The segment.
    pub segment: NodeId,
    /// First chunk in it.
    pub from: u16,
    /// How many, at most [`ASK_MAX`].
    pub count: u16,
}

/// CHUNK.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chunk {
    /// The request answered.
    pub req: u32,
    /// Index into it.
    pub idx: u16,
    /// Xorb compression scheme: 0 none, 1 LZ4, 2 byte-grouped LZ4.
    pub scheme: u8,
    /// Length of the chunk in bytes, at most [`CHUNK_LEN_MAX`].
    pub raw_len: u32,
    /// The chunk, packed.
    pub bytes: Bytes,
}

/// How much of a snapshot somebody holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Holding {
    /// No chunk.
    Nothing,
    /// Every chunk.
    All,
    /// Some.
    Some,
}

/// A frame that breaks the protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("{} frame: {error}", kind_name(*.kind))]
pub struct FrameError {
    /// The frame's type byte.
    pub kind: u8,
    /// What is wrong with its body.
    pub error: DecodeError,
}

mod kind {
    pub(super) const AUTH: u8 = 0x00;
    pub(super) const HELLO: u8 = 0x01;
    pub(super) const HEADS: u8 = 0x02;
    pub(super) const DELTA: u8 = 0x03;
    pub(super) const MANIFEST: u8 = 0x05;
    pub(super) const CERTS: u8 = 0x06;
    pub(super) const PEERS: u8 = 0x07;
    pub(super) const BYE: u8 = 0x08;
    pub(super) const GET: u8 = 0x10;
    pub(super) const OBJ: u8 = 0x11;
    pub(super) const NONE: u8 = 0x12;
    pub(super) const WANT: u8 = 0x20;
    pub(super) const CHUNK: u8 = 0x21;
    pub(super) const MISS: u8 = 0x22;
    pub(super) const CANCEL: u8 = 0x23;
    pub(super) const WANTRUN: u8 = 0x24;
    pub(super) const HAVE: u8 = 0x30;
    pub(super) const STORED: u8 = 0x41;
    pub(super) const UNSTORED: u8 = 0x42;
}

/// The protocol's name of a frame type.
pub fn kind_name(kind: u8) -> &'static str {
    match kind {
        kind::AUTH => "AUTH",
        kind::HELLO => "HELLO",
        kind::HEADS => "HEADS",
        kind::DELTA => "DELTA",
        kind::MANIFEST => "MANIFEST",
        kind::CERTS => "CERTS",
        kind::PEERS => "PEERS",
        kind::BYE => "BYE",
        kind::GET => "GET",
        kind::OBJ => "OBJ",
        kind::NONE => "NONE",
        kind::WANT => "WANT",
        kind::CHUNK => "CHUNK",
        kind::MISS => "MISS",
        kind::CANCEL => "CANCEL",
        kind::WANTRUN => "WANTRUN",
        kind::HAVE => "HAVE",
        kind::STORED => "STORED",
        kind::UNSTORED => "UNSTORED",
        _ => "unknown",
    }
}

impl Frame {
    /// Appends the frame up to its payload to `head` and returns the payload, which has to follow
    /// as it is. Fails, with `head` unchanged, when a limit of the protocol is exceeded.
    pub fn encode(&self, head: &mut Vec<u8>) -> Result<Bytes, FrameError> {
        let start = head.len();
        head.extend_from_slice(&[0; 4]);
        head.push(self.kind());
        let result = self.encode_body(head).and_then(|payload| {
            let len = (head.len() - start - 4 + payload.len()) as u64;
            at_most("frame length", len, u64::from(FRAME_LEN_MAX))?;
            let field = head
                .get_mut(start..)
                .and_then(|frame| frame.first_chunk_mut());
            if let Some(field) = field {
                *field = (len as u32).to_le_bytes();
            }
            Ok(payload)
        });
        result.map_err(|error| {
            head.truncate(start);
            FrameError {
                kind: self.kind(),
                error,
            }
        })
    }

    /// Parses a frame; `None` for a type that this version does not know.
    pub fn decode(raw: RawFrame) -> Result<Option<Self>, FrameError> {
        let RawFrame { kind, body } = raw;
        Self::decode_body(kind, &body).map_err(|error| FrameError { kind, error })
    }

    /// The type byte.
    pub fn kind(&self) -> u8 {
        match self {
            Self::Auth(_) => kind::AUTH,
            Self::Hello(_) => kind::HELLO,
            Self::Heads(_) => kind::HEADS,
            Self::Delta(_) => kind::DELTA,
            Self::Manifest(_) => kind::MANIFEST,
            Self::Certs(_) => kind::CERTS,
            Self::Peers(_) => kind::PEERS,
            Self::Bye { .. } => kind::BYE,
            Self::Get(_) => kind::GET,
            Self::Obj(_) => kind::OBJ,
            Self::Absent(_) => kind::NONE,
            Self::Want(_) => kind::WANT,
            Self::WantRun(_) => kind::WANTRUN,
            Self::Chunk(_) => kind::CHUNK,
            Self::Miss(_) => kind::MISS,
            Self::Cancel { .. } => kind::CANCEL,
            Self::Have { .. } => kind::HAVE,
            Self::Stored(_) => kind::STORED,
            Self::Unstored(_) => kind::UNSTORED,
        }
    }

    fn encode_body(&self, out: &mut Vec<u8>) -> Result<Bytes, DecodeError> {
        match self {
            Self::Auth(auth) => auth.encode(out),
            Self::Hello(hello) => hello.encode(out),
            Self::Heads(heads) => body::encode_heads(heads, out)?,
            Self::Delta(delta) => return delta.encode(out),
            Self::Manifest(manifest) => out.extend_from_slice(&manifest.claimed().encode()),
            Self::Certs(certs) => body::encode_certs(certs, out)?,
            Self::Peers(peers) => body::encode_peers(peers, out)?,
            Self::Bye { reason, text } => {
                at_most("text length", text.len() as u64, u64::from(u8::MAX))?;
                out.extend_from_slice(&[*reason, text.len() as u8]);
                return Ok(text.clone());
            }
            Self::Get(get) => get.encode(out)?,
            Self::Obj(obj) => return obj.encode(out),
            Self::Absent(indexes) | Self::Miss(indexes) => indexes.encode(out)?,
            Self::Want(want) => want.encode(out)?,
            Self::WantRun(run) => run.encode(out)?,
            Self::Chunk(chunk) => return chunk.encode(out),
            Self::Cancel { req } => out.extend_from_slice(&req.to_le_bytes()),
            Self::Have { snapshot, what } => {
                out.extend_from_slice(snapshot.as_bytes());
                out.push(*what as u8);
            }
            Self::Stored(snapshot) | Self::Unstored(snapshot) => {
                out.extend_from_slice(snapshot.as_bytes());
            }
        }
        Ok(Bytes::new())
    }

    fn decode_body(kind: u8, body: &Bytes) -> Result<Option<Self>, DecodeError> {
        let mut reader = Reader::new(body);
        let r = &mut reader;
        let frame = match kind {
            kind::AUTH => return Ok(Some(Self::Auth(Box::new(Auth::decode(body)?)))),
            kind::HELLO => Self::Hello(Hello::decode(r)?),
            kind::HEADS => Self::Heads(body::decode_heads(r)?),
            kind::DELTA => Self::Delta(Box::new(Delta::decode(r, body)?)),
            kind::MANIFEST => {
                return Ok(Some(Self::Manifest(Box::new(Manifest::decode(body)?))));
            }
            kind::CERTS => Self::Certs(body::decode_certs(r)?),
            kind::PEERS => Self::Peers(body::decode_peers(r)?),
            kind::BYE => body::decode_bye(r, body)?,
            kind::GET => Self::Get(Get::decode(r)?),
            kind::OBJ => Self::Obj(Obj::decode(r, body)?),
            kind::NONE => Self::Absent(Indexes::decode(r)?),
            kind::WANT => Self::Want(Want::decode(r)?),
            kind::CHUNK => Self::Chunk(Chunk::decode(r, body)?),
            kind::MISS => Self::Miss(Indexes::decode(r)?),
            kind::CANCEL => Self::Cancel { req: r.u32()? },
            kind::WANTRUN => Self::WantRun(WantRun::decode(r)?),
            kind::HAVE => {
                let snapshot = SnapshotId::from_bytes(r.array()?);
                Self::Have {
                    snapshot,
                    what: Holding::from_byte(r.u8()?)?,
                }
            }
            kind::STORED => Self::Stored(SnapshotId::from_bytes(r.array()?)),
            kind::UNSTORED => Self::Unstored(SnapshotId::from_bytes(r.array()?)),
            _ => return Ok(None),
        };
        reader.finish()?;
        Ok(Some(frame))
    }
}

#[cfg(test)]
mod tests;
