//! Targets of `proto`: what comes over the network before and after a peer has proven itself, and torrents.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Component;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use ccbt::proto::bencode::{Document, Item, Strictness, Value};
use ccbt::proto::extension::{self, UT_XET_ID, next_message, put_header};
use ccbt::proto::frame::{FRAME_LEN_MAX, RawFrame};
use ccbt::proto::handshake::{HANDSHAKE_LEN, Handshake};
use ccbt::proto::http_tracker::parse_answer;
use ccbt::proto::lsd::{DATAGRAM_LEN_MAX, GROUP_V4, Lsd, Search};
use ccbt::proto::magnet::Magnet;
use ccbt::proto::metainfo::{Info, Torrent};
use ccbt::proto::noise::{self, StaticKey, Transport};
use ccbt::proto::session::{Config, Event, Reason, Session};
use ccbt::proto::tracker::{
    self, AnnounceRequest, Announced, INTERVAL_MAX, INTERVAL_MIN, callable,
};
use ccbt::proto::udp_tracker::{Family, Question, UdpAnswer, UdpExchange};
use ccbt::proto::ut_xet::{Frame, Hello, PROTO};
use ccbt::share::{
    Auth, Certificate, DeviceKey, FolderCredentials, OwnerSeed, Role, Side, SwarmId, Writer,
};

use super::{parts, take};

/// A value: strictly read, it is written the same; leniently, more is taken and nothing else.
pub(crate) fn bencode(data: &[u8]) -> bool {
    let lenient = Document::parse(data, Strictness::AsFound);
    if let Ok(prefix) = Document::parse_prefix(data, Strictness::AsFound) {
        assert!(0 < prefix.len() && prefix.len() <= data.len());
        let _whole_tree = item(prefix.root());
    }
    let Ok(document) = Document::parse(data, Strictness::Canonical) else {
        return false;
    };
    assert!(lenient.is_ok());
    let mut out = Vec::new();
    item(document.root()).encode(&mut out);
    assert_eq!(out, data);
    true
}

fn item(value: Value<'_>) -> Item {
    assert!(!value.raw().is_empty());
    if let Some(integer) = value.integer() {
        Item::Integer(integer)
    } else if let Some(bytes) = value.bytes() {
        Item::Bytes(bytes.to_vec())
    } else if let Some(list) = value.list() {
        Item::List(list.map(item).collect())
    } else {
        let entries = value.dict().expect("a value has one of four kinds");
        let entries: BTreeMap<Vec<u8>, Item> = entries
            .map(|(key, value)| (key.to_vec(), item(value)))
            .collect();
        for key in entries.keys() {
            assert!(value.get(key).is_some());
        }
        Item::Dict(entries)
    }
}

/// A torrent file, or the info dictionary alone. No path leads out of where it is put.
pub(crate) fn metainfo(data: &[u8]) -> bool {
    let info = match Torrent::parse(data) {
        Ok(torrent) => torrent.info,
        Err(_) => match Info::parse(data) {
            Ok(info) => info,
            Err(_) => return false,
        },
    };
    assert_eq!(Info::parse(info.raw()).as_ref(), Ok(&info));
    assert!(info.content_bytes() <= info.space_bytes);
    if info.hashes.v1.is_some() {
        assert_eq!(info.piece_count(), info.pieces_v1.len() as u64);
    }
    for file in &info.files {
        let targets = [Some(&file.path), file.symlink.as_ref()];
        for path in targets.into_iter().flatten() {
            let path = path.to_path();
            assert!(
                path.components()
                    .all(|part| matches!(part, Component::Normal(_))),
                "{path:?}"
            );
        }
        assert!(file.offset + file.length <= info.space_bytes);
    }
    true
}

/// A magnet link: what is read is written in one form and read the same.
pub(crate) fn magnet(data: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(data) else {
        return false;
    };
    let Ok(magnet) = Magnet::parse(text) else {
        return false;
    };
    assert_eq!(Magnet::parse(&magnet.to_string()).as_ref(), Ok(&magnet));
    true
}

/// The first 68 bytes of a connection.
pub(crate) fn handshake(data: &[u8]) -> bool {
    let Ok(Some(handshake)) = Handshake::decode(data) else {
        return false;
    };
    assert_eq!(handshake.encode(), data[..HANDSHAKE_LEN]);
    assert!((0..HANDSHAKE_LEN).all(|len| Handshake::decode(&data[..len]) == Ok(None)));
    true
}

/// A message behind the handshake, and the payload of the extension handshake.
pub(crate) fn extension(data: &[u8]) -> bool {
    const PAYLOAD_MAX: u32 = 64;
    let whole = next_message(data, PAYLOAD_MAX);
    for len in 0..data.len().min(80) {
        let early = next_message(&data[..len], PAYLOAD_MAX);
        assert!(
            early == Ok(None) || early == whole,
            "after {len} bytes {early:?}, then {whole:?}"
        );
    }
    let Ok(Some(message)) = whole else {
        return extension::decode_handshake(data).is_ok();
    };
    assert!(message.input_len() <= data.len());
    true
}

/// A frame: `kind u8 | body`. What is read is written the same.
pub(crate) fn frame(mut data: &[u8]) -> bool {
    let whole = data;
    let [kind] = take(&mut data);
    let body = Bytes::copy_from_slice(data);
    let Ok(Some(frame)) = Frame::decode(RawFrame { kind, body }) else {
        return false;
    };
    let mut head = Vec::new();
    let payload = frame.encode(&mut head).expect("what was read can be sent");
    head.extend_from_slice(&payload);
    assert_eq!(head[..4], (whole.len() as u32).to_le_bytes());
    assert_eq!(&head[4..], whole);
    true
}

/// A tracker's answer over HTTP.
pub(crate) fn http_tracker(data: &[u8]) -> bool {
    let Ok(announced) = parse_answer(data) else {
        return false;
    };
    check_announced(&announced);
    !announced.peers.is_empty()
}

/// A tracker's answers over UDP: `family u8 | datagrams`. Our transactions are all called 0x07070707.
pub(crate) fn udp_tracker(mut data: &[u8]) -> bool {
    let [family] = take(&mut data);
    let family = if family % 2 == 0 {
        Family::V4
    } else {
        Family::V6
    };
    let request = AnnounceRequest {
        swarm: SwarmId::from_bytes([1; 20]),
        peer_id: [2; 20],
        port: 6881,
        key: 3,
        uploaded: 0,
        downloaded: 0,
        left: 1,
        event: tracker::Event::Started,
    };
    let mut random = |dest: &mut [u8]| dest.fill(7);
    let mut now = Duration::from_secs(1);
    let question = Question::Announce {
        request,
        url_data: "/announce".into(),
        family,
    };
    let mut announce = UdpExchange::new(now, question, &mut random);
    for datagram in parts(data) {
        announce.handle_datagram(now, datagram, &mut random);
        if datagram.is_empty() {
            now = announce.poll_timeout().unwrap_or(now);
            announce.handle_timeout(now, &mut random);
        }
        let _sent = announce.poll_transmit();
    }
    let Some(Ok(UdpAnswer::Announced(announced))) = announce.poll_outcome() else {
        return false;
    };
    assert_eq!(announce.poll_timeout(), None);
    check_announced(&announced);
    !announced.peers.is_empty()
}

fn check_announced(announced: &Announced) {
    assert!(announced.peers.len() <= tracker::PEERS_MAX);
    assert!(announced.peers.iter().all(callable));
    assert!((INTERVAL_MIN..=INTERVAL_MAX).contains(&announced.interval));
}

/// A datagram of local service discovery.
pub(crate) fn lsd(data: &[u8]) -> bool {
    let Ok(search) = Search::parse(data) else {
        return false;
    };
    let again = search.encode(GROUP_V4);
    if again.len() <= DATAGRAM_LEN_MAX {
        assert_eq!(Search::parse(&again).as_ref(), Ok(&search));
    }
    let own = [0; 8];
    let mut lsd = Lsd::new(1, GROUP_V4, own);
    for swarm in &search.swarms {
        lsd.watch(Duration::ZERO, *swarm);
    }
    let (port, swarms) = lsd.handle_datagram(data).expect("it was read before");
    let is_own = search.cookie == Some(data_encoding::HEXLOWER.encode(&own));
    let expected = if is_own { &[][..] } else { &search.swarms };
    assert!(port == search.port && swarms == expected);
    true
}

/// A folder and a member of it, always the same.
pub(crate) struct Member {
    pub(crate) credentials: Arc<FolderCredentials>,
    pub(crate) swarm: SwarmId,
}

pub(crate) static MEMBER: LazyLock<Member> = LazyLock::new(|| {
    let owner = OwnerSeed::from_bytes([7; 32]);
    let write = owner.write_key(1);
    let device = Arc::new(DeviceKey::from_bytes([8; 32]));
    let name = "fuzz".parse().expect("a device's name");
    let certificate = Certificate::issue(&write, device.id(), Role::Writer, 0, name);
    let credentials = FolderCredentials {
        folder: owner.folder(),
        read: write.read_key(),
        write: Some(write.public()),
        manifest: None,
        writer: Some(Writer {
            device,
            certificate,
        }),
    };
    Member {
        swarm: credentials.swarm(),
        credentials: Arc::new(credentials),
    }
});

pub(crate) const NOW: Duration = Duration::from_secs(1000);

fn config(seed: u8) -> Config {
    Config {
        static_key: Arc::new(StaticKey::generate(&mut |dest| dest.fill(seed))),
        nonce: [seed; 8],
        listen_port: 6881,
        today: 20_000,
    }
}

pub(crate) fn called(seed: u8) -> Session {
    let credentials = Arc::clone(&MEMBER.credentials);
    let lookup =
        Box::new(move |swarm: &_| (*swarm == MEMBER.swarm).then(|| Arc::clone(&credentials)));
    Session::accept(NOW, lookup, config(seed), &mut |dest| dest.fill(seed))
}

pub(crate) fn caller(seed: u8) -> Session {
    let credentials = Arc::clone(&MEMBER.credentials);
    Session::connect(NOW, credentials, config(seed), &mut |dest| dest.fill(seed))
}

/// What a session did with its input.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Heard {
    pub(crate) sent: Vec<u8>,
    pub(crate) established: bool,
    pub(crate) frames: Vec<Frame>,
    pub(crate) closed: Option<Reason>,
}

impl Heard {
    pub(crate) fn listen(&mut self, session: &mut Session) {
        while let Some(event) = session.poll_event() {
            assert_eq!(self.closed, None, "{event:?} after the last event");
            match event {
                Event::Established(_) => {
                    assert!(!self.established);
                    self.established = true;
                }
                Event::Frame(frame) => {
                    assert!(self.established, "{frame:?} from a stranger");
                    self.frames.push(frame);
                }
                Event::Closed(reason) => self.closed = Some(reason),
            }
        }
        let mut out = BytesMut::new();
        while session.poll_transmit(NOW, &mut out) {}
        self.sent.extend_from_slice(&out);
    }
}

fn feed(session: &mut Session, mut data: &[u8], step: usize, heard: &mut Heard) {
    let mut input = BytesMut::new();
    heard.listen(session);
    while !data.is_empty() {
        let (piece, rest) = data.split_at(step.min(data.len()));
        input.extend_from_slice(piece);
        session.handle_input(NOW, &mut input);
        assert!(input.len() <= session.input_len_max());
        heard.listen(session);
        if heard.closed.is_some() {
            return;
        }
        data = rest;
    }
}

/// A connection from its first byte: `side u8 | bytes from the peer`. It goes the same however the bytes are cut.
pub(crate) fn session_stranger(mut data: &[u8]) -> bool {
    let [side] = take(&mut data);
    let run = |step: usize| {
        let mut session = if side % 2 == 0 { called(1) } else { caller(2) };
        let mut heard = Heard::default();
        feed(&mut session, data, step, &mut heard);
        heard
    };
    let (whole, cut) = (run(data.len().max(1)), run(1 + usize::from(side / 2)));
    assert_eq!(
        (whole.established, whole.closed),
        (cut.established, cut.closed)
    );
    assert_eq!((&whole.sent, &whole.frames), (&cut.sent, &cut.frames));
    whole.established
}

/// What a member says behind the handshake: `mode u8 | length of the Noise messages u8 | plain bytes`. In mode 0 they
/// stand for AUTH and HELLO too, else these are right and the rest is frames.
pub(crate) fn session_member(mut data: &[u8]) -> bool {
    let [mode, step] = take(&mut data);
    let mut session = called(1);
    let mut heard = Heard::default();
    let (mut transport, hash) = join_by_hand(&mut session, &mut heard);
    let mut plain = Vec::new();
    if mode % 2 == 1 {
        plain = introduction(&hash);
    }
    plain.extend_from_slice(data);
    let mut line = BytesMut::new();
    for piece in plain.chunks(1 + 16 * usize::from(step)) {
        put_header(&mut line, UT_XET_ID, piece.len() + noise::TAG_LEN);
        transport
            .seal(piece, &mut line)
            .expect("the piece is short");
    }
    feed(&mut session, &line, line.len().max(1), &mut heard);
    if mode % 2 == 1 {
        assert!(heard.established);
        assert_eq!(heard.frames, frames_of(data));
    }
    !heard.frames.is_empty()
}

/// AUTH and HELLO as the caller sends them.
pub(crate) fn introduction(handshake: &[u8; 32]) -> Vec<u8> {
    let auth = Auth::prove(&MEMBER.credentials, Side::Caller, handshake);
    let hello = Hello {
        proto: PROTO,
        caps: 0,
        epoch: 0,
        nonce: [9; 8],
        listen_port: 0,
    };
    let mut out = Vec::new();
    for frame in [Frame::Auth(Box::new(auth)), Frame::Hello(hello)] {
        let payload = frame.encode(&mut out).expect("a short frame");
        out.extend_from_slice(&payload);
    }
    out
}

/// The frames in plain bytes up to the first that is wrong or out of turn.
fn frames_of(mut plain: &[u8]) -> Vec<Frame> {
    let mut frames = Vec::new();
    while let Some((len, rest)) = plain.split_first_chunk::<4>() {
        let len = u32::from_le_bytes(*len);
        let Some((body, after)) = rest.split_at_checked(len as usize) else {
            break;
        };
        let Some((&kind, body)) = body.split_first() else {
            break;
        };
        let body = Bytes::copy_from_slice(body);
        match Frame::decode(RawFrame { kind, body }) {
            Ok(Some(Frame::Auth(_) | Frame::Hello(_))) | Err(_) => break,
            _ if len > FRAME_LEN_MAX => break,
            Ok(frame) => frames.extend(frame),
        }
        plain = after;
    }
    frames
}

/// Plays the caller up to the Noise channel.
fn join_by_hand(session: &mut Session, heard: &mut Heard) -> (Transport, [u8; 32]) {
    const EXPECT: &str = "an honest handshake";
    let (psk, key) = (MEMBER.credentials.psk(), config(2).static_key);
    let mut noise =
        noise::Handshake::begin(Side::Caller, &MEMBER.swarm, &psk, &key, [3; 32].into())
            .expect(EXPECT);
    let mut line =
        BytesMut::from(&Handshake::with_extensions(*MEMBER.swarm.as_bytes(), [4; 20]).encode()[..]);
    let ours = extension::encode_handshake();
    put_header(&mut line, extension::HANDSHAKE_ID, ours.len());
    line.extend_from_slice(&ours);
    let first = noise.write().expect(EXPECT);
    put_header(&mut line, UT_XET_ID, first.len());
    line.extend_from_slice(&first);
    feed(session, &line, line.len(), heard);
    let answer = heard
        .sent
        .split_off(HANDSHAKE_LEN + extension::HEADER_LEN + ours.len());
    noise.read(&answer[extension::HEADER_LEN..]).expect(EXPECT);
    let last = noise.write().expect(EXPECT);
    let mut line = BytesMut::new();
    put_header(&mut line, UT_XET_ID, last.len());
    line.extend_from_slice(&last);
    feed(session, &line, line.len(), heard);
    assert_eq!(heard.closed, None);
    noise.finish().expect(EXPECT)
}

/// Noise messages: `side u8 | messages`. None from somebody else opens; reading them does no harm.
pub(crate) fn noise(mut data: &[u8]) -> bool {
    let [side] = take(&mut data);
    let side = if side % 2 == 0 {
        Side::Called
    } else {
        Side::Caller
    };
    let psk = MEMBER.credentials.psk();
    let key = config(1).static_key;
    let begun = noise::Handshake::begin(side, &MEMBER.swarm, &psk, &key, [1; 32].into());
    let mut handshake = begun.expect("the parameters are right");
    if side == Side::Caller {
        let _first = handshake.write();
    }
    let mut messages = parts(data).into_iter();
    let mut taken = 0;
    for message in messages.by_ref() {
        if handshake.is_finished() || handshake.read(message).is_err() {
            break;
        }
        taken += 1;
        let _ours = handshake.write();
    }
    if let Ok((mut transport, _)) = handshake.finish() {
        let mut plain = BytesMut::new();
        for message in messages {
            let _opened = transport.open(message, &mut plain);
        }
    }
    taken > 0
}

/// A peer's address for seeds.
pub(crate) fn address() -> SocketAddr {
    SocketAddr::from(([192, 0, 2, 1], 6881))
}
