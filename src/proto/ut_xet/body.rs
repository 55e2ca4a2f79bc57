//! The bodies of the frames: field by field in the order of the table in `docs/bep_xet.md`.

use std::net::{IpAddr, SocketAddr};

use bytes::Bytes;

use super::{
    ASK_MAX, CERTS_MAX, CHANGES_LEN_MAX, CHUNK_LEN_MAX, Chunk, Delta, Frame, Get, HEADS_MAX, Hello,
    Holding, Indexes, NODE_LEN_MAX, Obj, ObjCodec, ObjectRef, PEERS_MAX, Priority, Want, WantRun,
};
use crate::share::auth::{put_short, take_short};
use crate::share::cert::{CERT_LEN_MAX, Certificate};
use crate::share::head::HEAD_LEN;
use crate::share::wire::{Reader, at_most};
use crate::share::{ChunkHash, DecodeError, Head, NodeId, Unverified};

impl Hello {
    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.proto.to_le_bytes());
        out.extend_from_slice(&self.caps.to_le_bytes());
        out.extend_from_slice(&self.epoch.to_le_bytes());
        out.extend_from_slice(&self.nonce);
        out.extend_from_slice(&self.listen_port.to_le_bytes());
    }

    pub(super) fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            proto: reader.u16()?,
            caps: reader.u32()?,
            epoch: reader.u32()?,
            nonce: reader.array()?,
            listen_port: reader.u16()?,
        })
    }
}

impl Delta {
    pub(super) fn encode(&self, out: &mut Vec<u8>) -> Result<Bytes, DecodeError> {
        at_most(
            "change list length",
            u64::from(self.raw_len),
            u64::from(CHANGES_LEN_MAX),
        )?;
        at_most(
            "snapshot length",
            self.snapshot.len() as u64,
            u64::from(NODE_LEN_MAX),
        )?;
        out.extend_from_slice(&self.head.claimed().encode());
        out.extend_from_slice(&(self.snapshot.len() as u32).to_le_bytes());
        out.extend_from_slice(&self.snapshot);
        out.extend_from_slice(self.base_root.as_bytes());
        out.extend_from_slice(&self.raw_len.to_le_bytes());
        Ok(self.changes.clone())
    }

    pub(super) fn decode(reader: &mut Reader<'_>, body: &Bytes) -> Result<Self, DecodeError> {
        let head = Head::read(reader)?;
        let snapshot_len = reader.u32()?;
        at_most(
            "snapshot length",
            u64::from(snapshot_len),
            u64::from(NODE_LEN_MAX),
        )?;
        let snapshot = take_bytes(reader, body, snapshot_len as usize)?;
        let base_root = NodeId::from_bytes(reader.array()?);
        let raw_len = reader.u32()?;
        at_most(
            "change list length",
            u64::from(raw_len),
            u64::from(CHANGES_LEN_MAX),
        )?;
        Ok(Self {
            head,
            snapshot,
            base_root,
            raw_len,
            changes: take_rest(reader, body)?,
        })
    }
}

impl Get {
    pub(super) fn encode(&self, out: &mut Vec<u8>) -> Result<(), DecodeError> {
        put_request(out, self.req, self.priority);
        put_count(out, "objects", self.objects.len(), ASK_MAX)?;
        for object in &self.objects {
            out.push(object.kind);
            out.extend_from_slice(object.id.as_bytes());
        }
        Ok(())
    }

    pub(super) fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let req = reader.u32()?;
        let priority = Priority::from_byte(reader.u8()?)?;
        let count = reader.count("objects", ASK_MAX, 1 + NodeId::LEN)?;
        let mut objects = Vec::with_capacity(count);
        for _ in 0..count {
            let kind = reader.u8()?;
            objects.push(ObjectRef {
                kind,
                id: NodeId::from_bytes(reader.array()?),
            });
        }
        Ok(Self {
            req,
            priority,
            objects,
        })
    }
}

impl Obj {
    fn check(&self) -> Result<(), DecodeError> {
        at_most(
            "node length",
            u64::from(self.raw_len),
            u64::from(NODE_LEN_MAX),
        )?;
        check_packed(self.bytes.len(), self.raw_len, self.codec == ObjCodec::Raw)
    }

    pub(super) fn encode(&self, out: &mut Vec<u8>) -> Result<Bytes, DecodeError> {
        self.check()?;
        out.extend_from_slice(&self.req.to_le_bytes());
        out.extend_from_slice(&self.idx.to_le_bytes());
        out.push(self.codec as u8);
        out.extend_from_slice(&self.raw_len.to_le_bytes());
        Ok(self.bytes.clone())
    }

    pub(super) fn decode(reader: &mut Reader<'_>, body: &Bytes) -> Result<Self, DecodeError> {
        let req = reader.u32()?;
        let idx = reader.u16()?;
        let codec = match reader.u8()? {
            0 => ObjCodec::Raw,
            1 => ObjCodec::Zstd,
            value => {
                return Err(DecodeError::Value {
                    what: "codec",
                    value: u64::from(value),
                });
            }
        };
        let raw_len = reader.u32()?;
        let obj = Self {
            req,
            idx,
            codec,
            raw_len,
            bytes: take_rest(reader, body)?,
        };
        obj.check()?;
        Ok(obj)
    }
}

impl Chunk {
    fn check(&self) -> Result<(), DecodeError> {
        if self.scheme > 2 {
            let value = u64::from(self.scheme);
            return Err(DecodeError::Value {
                what: "compression scheme",
                value,
            });
        }
        at_most(
            "chunk length",
            u64::from(self.raw_len),
            u64::from(CHUNK_LEN_MAX),
        )?;
        check_packed(self.bytes.len(), self.raw_len, self.scheme == 0)
    }

    pub(super) fn encode(&self, out: &mut Vec<u8>) -> Result<Bytes, DecodeError> {
        self.check()?;
        out.extend_from_slice(&self.req.to_le_bytes());
        out.extend_from_slice(&self.idx.to_le_bytes());
        out.push(self.scheme);
        let [a, b, c, _] = self.raw_len.to_le_bytes();
        out.extend_from_slice(&[a, b, c]);
        Ok(self.bytes.clone())
    }

    pub(super) fn decode(reader: &mut Reader<'_>, body: &Bytes) -> Result<Self, DecodeError> {
        let chunk = Self {
            req: reader.u32()?,
            idx: reader.u16()?,
            scheme: reader.u8()?,
            raw_len: reader.u24()?,
            bytes: take_rest(reader, body)?,
        };
        chunk.check()?;
        Ok(chunk)
    }
}

impl Indexes {
    pub(super) fn encode(&self, out: &mut Vec<u8>) -> Result<(), DecodeError> {
        out.extend_from_slice(&self.req.to_le_bytes());
        put_count(out, "indexes", self.idx.len(), ASK_MAX)?;
        self.idx
            .iter()
            .for_each(|idx| out.extend_from_slice(&idx.to_le_bytes()));
        Ok(())
    }

    pub(super) fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let req = reader.u32()?;
        let count = reader.count("indexes", ASK_MAX, 2)?;
        let idx = (0..count).map(|_| reader.u16()).collect::<Result<_, _>>()?;
        Ok(Self { req, idx })
    }
}

impl Want {
    pub(super) fn encode(&self, out: &mut Vec<u8>) -> Result<(), DecodeError> {
        put_request(out, self.req, self.priority);
        put_count(out, "chunks", self.chunks.len(), ASK_MAX)?;
        self.chunks
            .iter()
            .for_each(|hash| out.extend_from_slice(hash.as_bytes()));
        Ok(())
    }

    pub(super) fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let req = reader.u32()?;
        let priority = Priority::from_byte(reader.u8()?)?;
        let count = reader.count("chunks", ASK_MAX, ChunkHash::LEN)?;
        let hash = |_| Ok(ChunkHash::from_bytes(reader.array()?));
        Ok(Self {
            req,
            priority,
            chunks: (0..count).map(hash).collect::<Result<_, _>>()?,
        })
    }
}

impl WantRun {
    pub(super) fn encode(&self, out: &mut Vec<u8>) -> Result<(), DecodeError> {
        at_most("chunks", u64::from(self.count), u64::from(ASK_MAX))?;
        put_request(out, self.req, self.priority);
        out.extend_from_slice(self.segment.as_bytes());
        out.extend_from_slice(&self.from.to_le_bytes());
        out.extend_from_slice(&self.count.to_le_bytes());
        Ok(())
    }

    pub(super) fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let run = Self {
            req: reader.u32()?,
            priority: Priority::from_byte(reader.u8()?)?,
            segment: NodeId::from_bytes(reader.array()?),
            from: reader.u16()?,
            count: reader.u16()?,
        };
        at_most("chunks", u64::from(run.count), u64::from(ASK_MAX))?;
        Ok(run)
    }
}

impl Priority {
    pub(super) fn from_byte(byte: u8) -> Result<Self, DecodeError> {
        [
            Self::Blocked,
            Self::ReadAhead,
            Self::Replica,
            Self::Prefetch,
        ]
        .get(usize::from(byte))
        .copied()
        .ok_or_else(|| DecodeError::Value {
            what: "priority",
            value: u64::from(byte),
        })
    }
}

impl Holding {
    pub(super) fn from_byte(byte: u8) -> Result<Self, DecodeError> {
        [Self::Nothing, Self::All, Self::Some]
            .get(usize::from(byte))
            .copied()
            .ok_or_else(|| DecodeError::Value {
                what: "holding",
                value: u64::from(byte),
            })
    }
}

pub(super) fn encode_heads(
    heads: &[Unverified<Head>],
    out: &mut Vec<u8>,
) -> Result<(), DecodeError> {
    put_count(out, "heads", heads.len(), HEADS_MAX)?;
    heads
        .iter()
        .for_each(|head| out.extend_from_slice(&head.claimed().encode()));
    Ok(())
}

pub(super) fn decode_heads(reader: &mut Reader<'_>) -> Result<Vec<Unverified<Head>>, DecodeError> {
    let count = reader.count("heads", HEADS_MAX, HEAD_LEN)?;
    (0..count).map(|_| Head::read(reader)).collect()
}

pub(super) fn encode_certs(
    certs: &[Unverified<Certificate>],
    out: &mut Vec<u8>,
) -> Result<(), DecodeError> {
    put_count(out, "certificates", certs.len(), CERTS_MAX)?;
    certs
        .iter()
        .for_each(|cert| put_short(out, &cert.claimed().encode()));
    Ok(())
}

pub(super) fn decode_certs(
    reader: &mut Reader<'_>,
) -> Result<Vec<Unverified<Certificate>>, DecodeError> {
    let count = reader.count("certificates", CERTS_MAX, 2)?;
    (0..count)
        .map(|_| Certificate::decode(take_short(reader, "certificate length", CERT_LEN_MAX)?))
        .collect()
}

pub(super) fn encode_peers(peers: &[SocketAddr], out: &mut Vec<u8>) -> Result<(), DecodeError> {
    at_most("peers", peers.len() as u64, u64::from(PEERS_MAX))?;
    out.push(peers.len() as u8);
    for peer in peers {
        match peer.ip() {
            IpAddr::V4(ip) => {
                out.push(4);
                out.extend_from_slice(&ip.octets());
            }
            IpAddr::V6(ip) => {
                out.push(6);
                out.extend_from_slice(&ip.octets());
            }
        }
        out.extend_from_slice(&peer.port().to_le_bytes());
    }
    Ok(())
}

pub(super) fn decode_peers(reader: &mut Reader<'_>) -> Result<Vec<SocketAddr>, DecodeError> {
    let count = reader.u8()?;
    at_most("peers", u64::from(count), u64::from(PEERS_MAX))?;
    let mut peers = Vec::with_capacity(usize::from(count));
    for _ in 0..count {
        let ip: IpAddr = match reader.u8()? {
            4 => reader.array::<4>()?.into(),
            6 => reader.array::<16>()?.into(),
            family => {
                let value = u64::from(family);
                return Err(DecodeError::Value {
                    what: "address family",
                    value,
                });
            }
        };
        peers.push(SocketAddr::new(ip, reader.u16()?));
    }
    Ok(peers)
}

pub(super) fn decode_bye(reader: &mut Reader<'_>, body: &Bytes) -> Result<Frame, DecodeError> {
    let reason = reader.u8()?;
    let len = reader.u8()?;
    Ok(Frame::Bye {
        reason,
        text: take_bytes(reader, body, usize::from(len))?,
    })
}

fn put_request(out: &mut Vec<u8>, req: u32, priority: Priority) {
    out.extend_from_slice(&req.to_le_bytes());
    out.push(priority as u8);
}

fn put_count(
    out: &mut Vec<u8>,
    what: &'static str,
    count: usize,
    max: u16,
) -> Result<(), DecodeError> {
    at_most(what, count as u64, u64::from(max))?;
    out.extend_from_slice(&(count as u16).to_le_bytes());
    Ok(())
}

/// Packed bytes are never longer than what they unpack to, and as long if they are not packed.
fn check_packed(len: usize, raw_len: u32, is_raw: bool) -> Result<(), DecodeError> {
    at_most("packed length", len as u64, u64::from(raw_len))?;
    if is_raw && len as u64 != u64::from(raw_len) {
        return Err(DecodeError::Value {
            what: "raw length",
            value: u64::from(raw_len),
        });
    }
    Ok(())
}

/// The next `len` bytes as a slice that shares `body`.
fn take_bytes(reader: &mut Reader<'_>, body: &Bytes, len: usize) -> Result<Bytes, DecodeError> {
    reader.take(len).map(|taken| body.slice_ref(taken))
}

fn take_rest(reader: &mut Reader<'_>, body: &Bytes) -> Result<Bytes, DecodeError> {
    take_bytes(reader, body, reader.remaining())
}
