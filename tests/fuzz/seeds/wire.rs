//! Seeds of the targets of `proto`.

use bytes::{Bytes, BytesMut};
use ccbt::proto::extension;
use ccbt::proto::handshake::Handshake;
use ccbt::proto::lsd::{GROUP_V4, Search};
use ccbt::proto::metainfo::draft::{Draft, DraftFile, Extras, Piece, Version};
use ccbt::proto::metainfo::path::{FilePath, Name};
use ccbt::proto::metainfo::{Attributes, Torrent};
use ccbt::proto::ut_xet::{
    Chunk, Delta, Frame, Get, Hello, Holding, Indexes, Obj, ObjCodec, ObjectRef, PROTO, Priority,
    Want, WantRun,
};
use ccbt::share::{Auth, ChunkHash, NodeId, Side};

use super::share::signed;
use super::with_prefix;
use crate::targets::join;
use crate::targets::wire::{Heard, MEMBER, NOW, address, called, caller};

pub(super) fn bencode() -> Vec<Vec<u8>> {
    let texts: [&[u8]; 6] = [
        b"d1:ad2:idi-7ee1:q4:ping1:t2:\x00\xff5:emptyle1:zli0ei9223372036854775807eee",
        b"i-9223372036854775808e",
        b"0:",
        b"lllllleeeeee",
        b"i007e",
        b"d1:bi1e1:ai2ee",
    ];
    texts.map(<[u8]>::to_vec).into()
}

pub(super) fn extension() -> Vec<Vec<u8>> {
    let ours = extension::encode_handshake();
    let mut message = BytesMut::new();
    extension::put_header(&mut message, 0, ours.len());
    message.extend_from_slice(&ours);
    vec![
        message.to_vec(),
        ours,
        vec![0; 4],
        b"d1:md6:ut_pexi2e6:ut_xeti7ee1:pi6881e1:v4:teste".to_vec(),
    ]
}

pub(super) fn handshake() -> Vec<Vec<u8>> {
    vec![
        Handshake::with_extensions([1; 20], *b"-CC0001-abcdefghijkl")
            .encode()
            .to_vec(),
    ]
}

fn frames() -> Vec<Frame> {
    let own = signed();
    let (req, node) = (77, NodeId::from_bytes([5; 32]));
    let bytes = Bytes::from_static(b"not really compressed");
    vec![
        Frame::Auth(Box::new(Auth::prove(
            &MEMBER.credentials,
            Side::Caller,
            &[6; 32],
        ))),
        Frame::Hello(Hello {
            proto: PROTO,
            caps: 1,
            epoch: 2,
            nonce: [3; 8],
            listen_port: 6881,
        }),
        Frame::Heads(vec![own.head.clone().into(); 2]),
        Frame::Delta(Box::new(Delta {
            head: own.head.into(),
            snapshot: Bytes::from_static(b"\x01 a snapshot"),
            base_root: node,
            raw_len: 100,
            changes: bytes.clone(),
        })),
        Frame::Manifest(Box::new(own.manifest.into())),
        Frame::Certs(vec![own.certificate.into()]),
        Frame::Peers(vec![
            address(),
            "[2001:db8::1]:1".parse().expect("an address"),
        ]),
        Frame::Bye {
            reason: 1,
            text: Bytes::from_static(b"going home"),
        },
        Frame::Get(Get {
            req,
            priority: Priority::Blocked,
            objects: vec![ObjectRef { kind: 1, id: node }],
        }),
        Frame::Obj(Obj {
            req,
            idx: 0,
            codec: ObjCodec::Raw,
            raw_len: bytes.len() as u32,
            bytes: bytes.clone(),
        }),
        Frame::Absent(Indexes {
            req,
            idx: vec![0, 4],
        }),
        Frame::Want(Want {
            req,
            priority: Priority::ReadAhead,
            chunks: vec![ChunkHash::from_bytes([8; 32]); 2],
        }),
        Frame::WantRun(WantRun {
            req,
            priority: Priority::Blocked,
            segment: node,
            from: 3,
            count: 9,
        }),
        Frame::Chunk(Chunk {
            req,
            idx: 1,
            scheme: 0,
            raw_len: bytes.len() as u32,
            bytes,
        }),
        Frame::Miss(Indexes { req, idx: vec![1] }),
        Frame::Cancel { req },
        Frame::Have {
            snapshot: node,
            what: Holding::All,
        },
        Frame::Stored(node),
        Frame::Unstored(node),
    ]
}

fn encode(frame: &Frame) -> Vec<u8> {
    let mut out = Vec::new();
    let payload = frame.encode(&mut out).expect("a short frame");
    out.extend_from_slice(&payload);
    out
}

pub(super) fn frame() -> Vec<Vec<u8>> {
    frames()
        .iter()
        .map(|frame| encode(frame)[4..].to_vec())
        .collect()
}

pub(super) fn session_member() -> Vec<Vec<u8>> {
    let conversation: Vec<u8> = frames().iter().skip(2).flat_map(encode).collect();
    let single = frames()
        .iter()
        .skip(2)
        .map(|frame| with_prefix(&[1, 255], encode(frame)))
        .collect::<Vec<_>>();
    [
        vec![
            with_prefix(&[1, 3], conversation),
            with_prefix(&[0, 200], encode(&frames()[0])),
        ],
        single,
    ]
    .concat()
}

/// What each side of an honest connection hears.
fn conversation() -> (Vec<u8>, Vec<u8>) {
    let (mut one, mut other) = (caller(2), called(1));
    let (mut by_caller, mut by_called) = (Heard::default(), Heard::default());
    let (mut to_called, mut to_caller) = (BytesMut::new(), BytesMut::new());
    let (mut seen_by_called, mut seen_by_caller) = (0, 0);
    for _ in 0..8 {
        by_caller.listen(&mut one);
        to_called.extend_from_slice(&by_caller.sent[seen_by_called..]);
        seen_by_called = by_caller.sent.len();
        other.handle_input(NOW, &mut to_called);
        by_called.listen(&mut other);
        to_caller.extend_from_slice(&by_called.sent[seen_by_caller..]);
        seen_by_caller = by_called.sent.len();
        one.handle_input(NOW, &mut to_caller);
    }
    by_caller.listen(&mut one);
    assert!(by_caller.established && by_called.established);
    (by_caller.sent, by_called.sent)
}

pub(super) fn session_stranger() -> Vec<Vec<u8>> {
    let (by_caller, by_called) = conversation();
    vec![
        with_prefix(&[0], &by_caller),
        with_prefix(&[15], &by_called),
        with_prefix(&[6], &by_caller[..100]),
    ]
}

pub(super) fn noise() -> Vec<Vec<u8>> {
    let (by_caller, by_called) = conversation();
    let messages = |mut line: &[u8]| {
        let mut found = Vec::new();
        line = &line[68..];
        while let Some((len, rest)) = line.split_first_chunk::<4>() {
            let (message, after) = rest.split_at(u32::from_be_bytes(*len) as usize);
            found.push(message[2..].to_vec());
            line = after;
        }
        found.remove(0);
        join(found)
    };
    vec![
        with_prefix(&[0], messages(&by_caller)),
        with_prefix(&[1], messages(&by_called)),
    ]
}

pub(super) fn http_tracker() -> Vec<Vec<u8>> {
    let texts: [&[u8]; 4] = [
        b"d8:intervali900e12:min intervali60e5:peers12:\x0a\0\0\x01\0\x50\x0a\0\0\x02\x1a\xe1e",
        b"d8:intervali900e5:peersld2:ip8:10.0.0.14:porti80eed2:ip3:::14:porti81eeee",
        b"d8:intervali900e6:peers618:\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x01\0\x51e",
        b"d14:failure reason12:unregisterede",
    ];
    texts.map(<[u8]>::to_vec).into()
}

pub(super) fn udp_tracker() -> Vec<Vec<u8>> {
    let connect = b"\0\0\0\0\x07\x07\x07\x07connecti";
    let announce = b"\0\0\0\x01\x07\x07\x07\x07\0\0\x03\x84\0\0\0\x01\0\0\0\x02\x0a\0\0\x01\0\x50\x0a\0\0\x02\0\x51";
    let error = b"\0\0\0\x03\x07\x07\x07\x07no";
    let silence = b"";
    vec![
        with_prefix(&[0], join([&connect[..], announce])),
        with_prefix(
            &[0],
            join([&silence[..], silence, connect, silence, announce]),
        ),
        with_prefix(&[1], join([&connect[..], error])),
    ]
}

pub(super) fn lsd() -> Vec<Vec<u8>> {
    let search = Search {
        port: 6881,
        swarms: vec![MEMBER.swarm, ccbt::share::SwarmId::from_bytes([1; 20])],
        cookie: Some("0102030405060708".to_owned()),
    };
    let bare = b"BT-SEARCH * HTTP/1.1\r\nport:1\r\nINFOHASH: 0101010101010101010101010101010101010101\r\n\r\n\r\n";
    vec![search.encode(GROUP_V4), bare.to_vec()]
}

pub(super) fn magnet() -> Vec<Vec<u8>> {
    let texts = [
        "magnet:?xt=urn:btih:0101010101010101010101010101010101010101&dn=a+name&xl=5&tr=udp%3A%2F%2Ft.example%3A80&so=0,2-4",
        "magnet:?xt=urn:btmh:12200101010101010101010101010101010101010101010101010101010101010101&ws=http://w.example/&x.pe=192.0.2.1:6881",
        "magnet:?xt=urn:btih:AEAQCAIBAEAQCAIBAEAQCAIBAEAQCAIB&x.pe=[2001:db8::1]:1",
    ];
    texts.map(|text| text.as_bytes().to_vec()).into()
}

fn torrent(version: Version, single: bool) -> Vec<u8> {
    let name = |text: &str| Name::new(text.as_bytes()).expect("a good name");
    let file = |path: &[&str], length| DraftFile {
        path: FilePath::new(path.iter().map(|part| name(part)).collect()).expect("a good path"),
        length,
        attributes: Attributes {
            executable: length == 0,
            hidden: false,
        },
        symlink: None,
    };
    let files = match single {
        true => vec![file(&["top"], 40_000)],
        false => vec![
            file(&["top", "a"], 100),
            file(&["top", "sub", "b"], 70_000),
            file(&["top", "empty"], 0),
        ],
    };
    let extras = Extras {
        trackers: vec!["http://t.example/announce".to_owned()],
        web_seeds: vec!["http://w.example/".to_owned()],
        private: true,
        comment: Some("a comment".to_owned()),
        created: Some(1_700_000_000),
        ..Extras::default()
    };
    let draft =
        Draft::new(name("top"), version, Some(32 << 10), files, extras).expect("a good draft");
    let hash = |piece: &Piece| {
        let len: u32 = piece.parts.iter().map(|(_, _, len)| len).sum();
        piece.hash(&vec![b'x'; len as usize])
    };
    let hashes: Vec<_> = draft.pieces().iter().map(hash).collect();
    draft.finish(&hashes)
}

pub(super) fn metainfo() -> Vec<Vec<u8>> {
    let versions = [Version::V1, Version::V2, Version::Hybrid];
    let mut out: Vec<Vec<u8>> = versions
        .into_iter()
        .flat_map(|version| [torrent(version, true), torrent(version, false)])
        .collect();
    let info = Torrent::parse(&out[5]).expect("our own torrent").info;
    out.push(info.raw().to_vec());
    out
}
