//! Every frame goes there and back; nothing that arrives makes a decoder panic.

use proptest::prelude::*;

use super::*;
use crate::share::head::HEAD_LEN;
use crate::share::{
    DeviceKey, DeviceName, HeadClaims, Incarnation, ManifestClaims, OwnerSeed, Revocation, Role,
    Suite,
};

fn bytes(max: usize) -> impl Strategy<Value = Bytes> {
    prop::collection::vec(any::<u8>(), 0..=max).prop_map(Bytes::from)
}

fn head() -> impl Strategy<Value = Unverified<Head>> {
    any::<([u8; HEAD_LEN - 64], [u8; 32], [u8; 32])>()
        .prop_map(|(claims, r, s)| Head::decode(&[&claims[..], &r, &s].concat()).unwrap())
}

fn cert() -> impl Strategy<Value = Unverified<Certificate>> {
    ("[A-Za-z0-9-]{1,16}", any::<u32>(), any::<[u8; 32]>()).prop_map(|(name, expires, device)| {
        let write = OwnerSeed::from_bytes([1; 32]).write_key(0);
        let device = DeviceKey::from_bytes(device).id();
        let name: DeviceName = name.parse().unwrap();
        Certificate::issue(&write, device, Role::Writer, expires, name).into()
    })
}

fn manifest() -> impl Strategy<Value = Unverified<Manifest>> {
    (
        any::<u32>(),
        prop::collection::vec(any::<([u8; 8], u64)>(), 0..20),
    )
        .prop_map(|(epoch, revoked)| {
            let owner = OwnerSeed::from_bytes([1; 32]);
            let revoke = |(inc, last_seq)| Revocation {
                incarnation: Incarnation::from_bytes(inc),
                last_seq,
            };
            let claims = ManifestClaims {
                epoch,
                suite: Suite::Sha256,
                write: owner.write_key(epoch).public(),
                flags: 0,
                revocations: revoked.into_iter().map(revoke).collect(),
            };
            Manifest::sign(&owner, claims).unwrap().into()
        })
}

fn priority() -> impl Strategy<Value = Priority> {
    (0u8..4).prop_map(|byte| Priority::from_byte(byte).unwrap())
}

fn snapshot() -> impl Strategy<Value = SnapshotId> {
    any::<[u8; 32]>().prop_map(SnapshotId::from_bytes)
}

fn node() -> impl Strategy<Value = NodeId> {
    any::<[u8; 32]>().prop_map(NodeId::from_bytes)
}

fn statements() -> impl Strategy<Value = Frame> {
    let delta = (head(), bytes(300), node(), 0..=CHANGES_LEN_MAX, bytes(300)).prop_map(
        |(head, snapshot, base_root, raw_len, changes)| {
            Frame::Delta(Box::new(Delta {
                head,
                snapshot,
                base_root,
                raw_len,
                changes,
            }))
        },
    );
    let hello = any::<(u16, u32, u32, [u8; 8], u16)>().prop_map(
        |(proto, caps, epoch, nonce, listen_port)| {
            Frame::Hello(Hello {
                proto,
                caps,
                epoch,
                nonce,
                listen_port,
            })
        },
    );
    prop_oneof![
        hello,
        prop::collection::vec(head(), 0..4).prop_map(Frame::Heads),
        delta,
        manifest().prop_map(|manifest| Frame::Manifest(Box::new(manifest))),
        prop::collection::vec(cert(), 0..4).prop_map(Frame::Certs),
        prop::collection::vec(any::<SocketAddr>(), 0..=64).prop_map(|peers| {
            let plain = |peer: SocketAddr| SocketAddr::new(peer.ip(), peer.port());
            Frame::Peers(peers.into_iter().map(plain).collect())
        }),
        (any::<u8>(), bytes(255)).prop_map(|(reason, text)| Frame::Bye { reason, text }),
        (snapshot(), 0u8..3).prop_map(|(snapshot, what)| {
            Frame::Have {
                snapshot,
                what: Holding::from_byte(what).unwrap(),
            }
        }),
        snapshot().prop_map(Frame::Stored),
        snapshot().prop_map(Frame::Unstored),
    ]
}

fn requests() -> impl Strategy<Value = Frame> {
    let object = (any::<u8>(), node()).prop_map(|(kind, id)| ObjectRef { kind, id });
    let hash = any::<[u8; 32]>().prop_map(ChunkHash::from_bytes);
    let ask = usize::from(ASK_MAX);
    prop_oneof![
        (
            any::<u32>(),
            priority(),
            prop::collection::vec(object, 0..=ask)
        )
            .prop_map(|(req, priority, objects)| Frame::Get(Get {
                req,
                priority,
                objects
            })),
        (
            any::<u32>(),
            priority(),
            prop::collection::vec(hash, 0..=ask)
        )
            .prop_map(|(req, priority, chunks)| Frame::Want(Want {
                req,
                priority,
                chunks
            })),
        (any::<u32>(), priority(), node(), any::<u16>(), 0..=ASK_MAX).prop_map(
            |(req, priority, segment, from, count)| {
                Frame::WantRun(WantRun {
                    req,
                    priority,
                    segment,
                    from,
                    count,
                })
            }
        ),
        any::<u32>().prop_map(|req| Frame::Cancel { req }),
    ]
}

fn answers() -> impl Strategy<Value = Frame> {
    let indexes = || {
        (
            any::<u32>(),
            prop::collection::vec(any::<u16>(), 0..=usize::from(ASK_MAX)),
        )
            .prop_map(|(req, idx)| Indexes { req, idx })
    };
    prop_oneof![
        (any::<(u32, u16, bool)>(), bytes(9000), 0u32..100).prop_map(
            |((req, idx, raw), bytes, more)| {
                let (codec, more) = if raw {
                    (ObjCodec::Raw, 0)
                } else {
                    (ObjCodec::Zstd, more)
                };
                let raw_len = bytes.len() as u32 + more;
                Frame::Obj(Obj {
                    req,
                    idx,
                    codec,
                    raw_len,
                    bytes,
                })
            }
        ),
        (any::<(u32, u16)>(), 0u8..3, bytes(9000), 0u32..100).prop_map(
            |((req, idx), scheme, bytes, more)| {
                let raw_len = bytes.len() as u32 + if scheme == 0 { 0 } else { more };
                Frame::Chunk(Chunk {
                    req,
                    idx,
                    scheme,
                    raw_len,
                    bytes,
                })
            }
        ),
        indexes().prop_map(Frame::Absent),
        indexes().prop_map(Frame::Miss),
    ]
}

fn encoded(frame: &Frame) -> Vec<u8> {
    let mut all = vec![];
    let payload = frame.encode(&mut all).unwrap();
    all.extend_from_slice(&payload);
    all
}

fn decoded(encoded: &[u8]) -> Result<Option<Frame>, FrameError> {
    let len = u32::from_le_bytes(*encoded.first_chunk().unwrap());
    assert_eq!(len as usize, encoded.len() - 4);
    let body = Bytes::copy_from_slice(&encoded[5..]);
    Frame::decode(RawFrame {
        kind: encoded[4],
        body,
    })
}

fn refused(kind: u8, body: &[u8]) -> DecodeError {
    let body = Bytes::copy_from_slice(body);
    Frame::decode(RawFrame { kind, body }).unwrap_err().error
}

#[test]
fn fields_lie_where_the_table_says() {
    let chunk = Chunk {
        req: 0x0403_0201,
        idx: 0x0605,
        scheme: 2,
        raw_len: 0x01_0908,
        bytes: Bytes::from_static(b"xyz"),
    };
    let bytes = [
        14, 0, 0, 0, 0x21, 1, 2, 3, 4, 5, 6, 2, 8, 9, 1, b'x', b'y', b'z',
    ];
    assert_eq!(encoded(&Frame::Chunk(chunk)), bytes);
    let hello = Hello {
        proto: 1,
        caps: 0,
        epoch: 2,
        nonce: [7; 8],
        listen_port: 0x1234,
    };
    let mut bytes = vec![21, 0, 0, 0, 1, 1, 0, 0, 0, 0, 0, 2, 0, 0, 0];
    bytes.extend_from_slice(&[7; 8]);
    bytes.extend_from_slice(&[0x34, 0x12]);
    assert_eq!(encoded(&Frame::Hello(hello)), bytes);
}

#[test]
fn counts_and_lengths_beyond_their_limit_are_refused() {
    let limit = |what, value, max| DecodeError::TooMany { what, value, max };
    assert_eq!(refused(kind::HEADS, &[1, 4]), limit("heads", 1025, 1024));
    assert_eq!(
        refused(kind::CERTS, &[1, 4]),
        limit("certificates", 1025, 1024)
    );
    assert_eq!(refused(kind::PEERS, &[65]), limit("peers", 65, 64));
    assert_eq!(
        refused(kind::WANT, &[0, 0, 0, 0, 0, 1, 1]),
        limit("chunks", 257, 256)
    );
    assert_eq!(
        refused(kind::GET, &[0, 0, 0, 0, 0, 1, 1]),
        limit("objects", 257, 256)
    );
    assert_eq!(
        refused(kind::MISS, &[0, 0, 0, 0, 1, 1]),
        limit("indexes", 257, 256)
    );
    let chunk = [0, 0, 0, 0, 0, 0, 1, 1, 0, 2];
    assert_eq!(
        refused(kind::CHUNK, &chunk),
        limit("chunk length", 0x02_0001, 0x02_0000)
    );
    let obj = [0, 0, 0, 0, 0, 0, 1, 1, 0x80, 3, 0];
    assert_eq!(
        refused(kind::OBJ, &obj),
        limit("node length", 0x03_8001, 0x03_8000)
    );
    let bomb = [0, 0, 0, 0, 0, 0, 1, 1, 0, 0, b'a', b'b'];
    assert_eq!(refused(kind::CHUNK, &bomb), limit("packed length", 2, 1));
}

#[test]
fn values_without_meaning_are_refused() {
    let value = |what, value| DecodeError::Value { what, value };
    assert_eq!(
        refused(kind::WANT, &[0, 0, 0, 0, 4, 0, 0]),
        value("priority", 4)
    );
    assert_eq!(refused(kind::PEERS, &[1, 5, 0]), value("address family", 5));
    assert_eq!(
        refused(kind::OBJ, &[0, 0, 0, 0, 0, 0, 2]),
        value("codec", 2)
    );
    let chunk = [0, 0, 0, 0, 0, 0, 3, 0, 0, 0];
    assert_eq!(refused(kind::CHUNK, &chunk), value("compression scheme", 3));
    assert_eq!(refused(kind::HAVE, &[3; 33]), value("holding", 3));
    assert_eq!(
        refused(kind::STORED, &[0; 33]),
        DecodeError::Trailing { left: 1 }
    );
    assert_eq!(
        refused(kind::STORED, &[0; 31]),
        DecodeError::Truncated { missing: 1 }
    );
}

#[test]
fn unknown_types_are_passed_over() {
    let raw = RawFrame {
        kind: 0x7f,
        body: Bytes::from_static(b"anything"),
    };
    assert_eq!(Frame::decode(raw), Ok(None));
}

#[test]
fn the_encoder_refuses_what_the_decoder_would() {
    let mut head = b"before".to_vec();
    let many = Frame::Want(Want {
        req: 1,
        priority: Priority::Blocked,
        chunks: vec![ChunkHash::from_bytes([0; 32]); 257],
    });
    assert_eq!(
        many.encode(&mut head).unwrap_err().to_string(),
        "WANT frame: chunks is 257, at most 256 is allowed"
    );
    let delta = Frame::Delta(Box::new(Delta {
        head: Head::decode(&[0; HEAD_LEN]).unwrap(),
        snapshot: Bytes::new(),
        base_root: NodeId::from_bytes([0; 32]),
        raw_len: 0,
        changes: Bytes::from(vec![0; FRAME_LEN_MAX as usize]),
    }));
    let refused = delta.encode(&mut head).unwrap_err().error;
    assert!(
        matches!(
            refused,
            DecodeError::TooMany {
                what: "frame length",
                ..
            }
        ),
        "{refused}"
    );
    assert_eq!(head, b"before");
}

#[test]
fn a_head_signed_and_sent_still_verifies() {
    let device = DeviceKey::from_bytes([3; 32]);
    let claims = HeadClaims {
        epoch: 0,
        device: device.id(),
        incarnation: Incarnation::from_bytes([1; 8]),
        ctr: 1,
        seq: 1,
        snapshot: SnapshotId::from_bytes([2; 32]),
        previous: [0; 32],
        hlc: 1,
        flags: 0,
    };
    let head = Head::sign(&device, claims);
    let frame = Frame::Heads(vec![head.clone().into()]);
    let Ok(Some(Frame::Heads(mut heads))) = decoded(&encoded(&frame)) else {
        panic!("no HEADS came back")
    };
    assert_eq!(heads.pop().unwrap().verify(), Ok(head));
}

proptest! {
    #[test]
    fn every_frame_survives_the_trip(
        frame in prop_oneof![statements(), requests(), answers()],
    ) {
        prop_assert_eq!(decoded(&encoded(&frame)), Ok(Some(frame)));
    }

    #[test]
    fn what_is_accepted_is_the_only_encoding(
        kind in prop::sample::select((0..0x44u8).collect::<Vec<_>>()),
        body in prop::collection::vec(prop_oneof![0u8..5, any::<u8>()], 0..400),
    ) {
        let raw = RawFrame { kind, body: Bytes::from(body.clone()) };
        if let Ok(Some(frame)) = Frame::decode(raw) {
            prop_assert_eq!(&encoded(&frame)[5..], &body[..]);
        }
    }

    #[test]
    fn a_cut_frame_is_refused(
        frame in prop_oneof![requests(), statements()],
        cut: prop::sample::Index,
    ) {
        let bytes = encoded(&frame);
        let len = 5 + cut.index(bytes.len() - 4);
        prop_assume!(len < bytes.len());
        // DELTA ends in bytes of any length.
        prop_assume!(!matches!(frame, Frame::Delta(_)));
        let body = Bytes::copy_from_slice(&bytes[5..len]);
        let raw = RawFrame { kind: bytes[4], body };
        prop_assert!(Frame::decode(raw).is_err());
    }
}
