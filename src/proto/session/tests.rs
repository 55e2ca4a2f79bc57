//! Two honest ends under every segmentation, and every dishonest one that came to mind.

use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use proptest::prelude::*;

use super::pair::{End, Line, Pair, Rng, config};
use super::*;
use crate::proto::bencode::BencodeError;
use crate::proto::frame::FRAME_LEN_MAX;
use crate::proto::handshake::Handshake;
use crate::proto::noise::{self, Transport};
use crate::proto::ut_xet::{Chunk, Hello, Priority, Want};
use crate::share::{
    Auth, ChunkHash, DeviceKey, Manifest, ManifestClaims, OwnerSeed, ReadKey, Role, Suite,
    WriteKey, Writer,
};

const NAME: &str = "SECRET-LAPTOP";

fn owner() -> OwnerSeed {
    OwnerSeed::from_bytes([1; 32])
}

fn reader() -> FolderCredentials {
    let owner = owner();
    let write = owner.write_key(0);
    let claims = ManifestClaims {
        epoch: 0,
        suite: Suite::Blake3,
        write: write.public(),
        flags: 0,
        revocations: vec![],
    };
    FolderCredentials {
        folder: owner.folder(),
        read: write.read_key(),
        write: None,
        manifest: Some(Manifest::sign(&owner, claims).unwrap()),
        writer: None,
    }
}

fn writer_certified_by(write: &WriteKey, device: u8) -> FolderCredentials {
    let device = Arc::new(DeviceKey::from_bytes([device; 32]));
    let name = NAME.parse().unwrap();
    let certificate = Certificate::issue(write, device.id(), Role::Writer, 0, name);
    FolderCredentials {
        writer: Some(Writer {
            device,
            certificate,
        }),
        ..reader()
    }
}

fn writer(device: u8) -> FolderCredentials {
    writer_certified_by(&owner().write_key(0), device)
}

fn stranger() -> FolderCredentials {
    FolderCredentials {
        read: ReadKey::from_bytes([77; 32]),
        ..reader()
    }
}

fn settled(caller: FolderCredentials, called: FolderCredentials, seed: u64) -> Pair {
    let mut pair = Pair::new(caller, called, Line::default(), seed);
    pair.settle();
    pair
}

fn chunk(req: u32, len: usize) -> Frame {
    let mut bytes = vec![0; len];
    Rng(u64::from(req)).fill(&mut bytes);
    Frame::Chunk(Chunk {
        req,
        idx: 0,
        scheme: 0,
        raw_len: len as u32,
        bytes: bytes.into(),
    })
}

/// A peer made by hand, to say what no session would. It calls.
struct Raw {
    end: End,
    transport: Transport,
    hash: [u8; 32],
}

const NOW: Duration = Duration::from_secs(1);

impl Raw {
    /// Gets as far as anybody with the discovery key gets.
    fn call(called: FolderCredentials) -> Self {
        let mut end = accepting(called);
        let folder = reader();
        let mut noise = noise::Handshake::begin(
            Side::Caller,
            &folder.swarm(),
            &folder.psk(),
            &StaticKey::generate(&mut |dest| dest.fill(4)),
            Zeroizing::new([5; 32]),
        )
        .unwrap();
        let mut hello = Handshake::with_extensions(*folder.swarm().as_bytes(), [6; 20]).encode();
        hello[20] = 0xff;
        end.receive(NOW, &hello);
        end.receive(NOW, &extended(0, b"d1:md6:ut_xeti7eee"));
        end.receive(NOW, &extended(1, &noise.write().unwrap()));
        let answer = end.transmit(NOW);
        let second = answer.len() - 96;
        assert_eq!(answer[second - 1], 7, "the peer uses the id we gave it");
        noise.read(&answer[second..]).unwrap();
        end.receive(NOW, &extended(1, &noise.write().unwrap()));
        let (transport, hash) = noise.finish().unwrap();
        Self {
            end,
            transport,
            hash,
        }
    }

    fn send(&mut self, plaintext: &[u8]) {
        let mut sealed = BytesMut::new();
        self.transport.seal(plaintext, &mut sealed).unwrap();
        self.end.receive(NOW, &extended(1, &sealed));
    }

    fn frame(&mut self, frame: &Frame) {
        let bytes = plain(frame);
        self.send(&bytes);
    }

    fn auth(&self, folder: &FolderCredentials, side: Side) -> Frame {
        Frame::Auth(Box::new(Auth::prove(folder, side, &self.hash)))
    }

    /// Past AUTH and HELLO as a reader.
    fn member(called: FolderCredentials) -> Self {
        let mut raw = Self::call(called);
        raw.frame(&raw.auth(&reader(), Side::Caller));
        raw.frame(&hello([3; 8]));
        assert!(raw.end.established.is_some());
        raw
    }

    fn reason(&self) -> Reason {
        self.end.closed.unwrap()
    }
}

fn accepting(folder: FolderCredentials) -> End {
    let (folder, swarm) = (Arc::new(folder), reader().swarm());
    let lookup = Box::new(move |asked: &SwarmId| Some(folder.clone()).filter(|_| *asked == swarm));
    let mut rng = Rng(8);
    let config = config(&mut rng);
    End::new(Session::accept(NOW, lookup, config, &mut |dest| {
        rng.fill(dest);
    }))
}

fn calling() -> End {
    let mut rng = Rng(9);
    let config = config(&mut rng);
    let folder = Arc::new(reader());
    End::new(Session::connect(NOW, folder, config, &mut |dest| {
        rng.fill(dest);
    }))
}

fn hello(nonce: [u8; 8]) -> Frame {
    Frame::Hello(Hello {
        proto: 1,
        caps: 0,
        epoch: 0,
        nonce,
        listen_port: 0,
    })
}

fn plain(frame: &Frame) -> Vec<u8> {
    let mut bytes = vec![];
    let payload = frame.encode(&mut bytes).unwrap();
    bytes.extend_from_slice(&payload);
    bytes
}

fn extended(id: u8, payload: &[u8]) -> BytesMut {
    let mut out = BytesMut::new();
    extension::put_header(&mut out, id, payload.len());
    out.extend_from_slice(payload);
    out
}

#[test]
fn members_of_every_level_meet() {
    let levels = [reader(), writer(2), writer(3)];
    for (i, caller) in levels.iter().enumerate() {
        for (j, called) in levels.iter().enumerate() {
            let pair = settled(caller.clone(), called.clone(), (i * 3 + j) as u64);
            let device = |folder: &FolderCredentials| folder.writer.as_ref().map(|w| w.device.id());
            let at_called = pair.called.established.unwrap();
            let at_caller = pair.caller.established.unwrap();
            assert_eq!(at_called.device(), device(caller));
            assert_eq!(at_caller.device(), device(called));
            assert_eq!(
                (at_called.side, at_caller.side),
                (Side::Caller, Side::Called)
            );
            assert_eq!(at_called.manifest, reader().manifest);
            assert_eq!(at_caller.listen_port, 6881);
            assert_ne!(at_caller.nonce, at_called.nonce);
        }
    }
}

#[test]
fn a_fresh_reader_takes_the_manifest_from_auth() {
    let fresh = FolderCredentials {
        manifest: None,
        ..reader()
    };
    let pair = settled(fresh.clone(), writer(2), 1);
    let info = pair.caller.established.unwrap();
    assert_eq!(info.manifest, reader().manifest);
    assert!(info.device().is_some());
    assert_eq!(pair.called.established.unwrap().manifest, None);

    let unproven = FolderCredentials {
        manifest: None,
        ..writer(2)
    };
    let pair = settled(fresh, unproven, 2);
    assert_eq!(
        pair.caller.closed,
        Some(Reason::Auth(AuthError::NoManifest))
    );
}

#[test]
fn frames_arrive_whole_and_in_order_however_the_line_cuts_them() {
    for (seed, segment_max) in [(1, 1), (2, 100), (3, 1460), (4, 300_000)] {
        let line = Line {
            segment_max,
            ..Line::default()
        };
        let mut pair = Pair::new(writer(2), reader(), line, seed);
        pair.settle();
        let hashes = vec![ChunkHash::from_bytes([9; 32]); 256];
        let want = Want {
            req: 1,
            priority: Priority::ReadAhead,
            chunks: hashes,
        };
        let lens = [
            128 << 10,
            1,
            0,
            4095,
            4096,
            65_519,
            65_520,
            70_000,
            131_038,
            100_000,
        ];
        let mut sent: Vec<Frame> = vec![Frame::Want(want)];
        sent.extend(
            lens.iter()
                .enumerate()
                .map(|(i, len)| chunk(i as u32, *len)),
        );
        sent.push(Frame::Cancel { req: 1 });
        for frame in &sent {
            pair.caller.session.send(frame).unwrap();
            pair.called.session.send(frame).unwrap();
        }
        let count = sent.len();
        let limit = Duration::from_secs(30);
        let all =
            |pair: &Pair| pair.called.frames.len() == count && pair.caller.frames.len() == count;
        assert!(pair.run(limit, all), "seed {seed}");
        assert!(pair.called.frames == sent, "seed {seed}");
        assert!(pair.caller.frames == sent, "seed {seed}");
        assert_eq!(pair.caller.session.queued_len(), 0);
    }
}

/// Lengths of the `ut_xet` messages a chunk of `len` bytes is sent in, and of the queue before.
fn message_lens(len: usize) -> (usize, Vec<usize>) {
    let mut pair = settled(reader(), reader(), 5);
    pair.caller.session.send(&chunk(1, len)).unwrap();
    let queued = pair.caller.session.queued_len();
    let mut bytes = pair.caller.transmit(pair.now);
    let mut lens = vec![];
    while let Some(message) = extension::next_message(&bytes, u32::MAX - 2).unwrap() {
        lens.push(message.input_len());
        bytes = bytes.slice(message.input_len()..);
    }
    (queued, lens)
}

#[test]
fn a_large_chunk_takes_as_many_messages_as_it_must_and_ends_with_one() {
    let (head, frame) = (4 + 1 + 10, 6 + 16);
    // The odd 34 bytes travel with the head, the rest is sealed from where it lies.
    let (queued, lens) = message_lens(128 << 10);
    assert_eq!(queued, head + (128 << 10));
    assert_eq!(lens, [frame + head + 34, 6 + 65_535, 6 + 65_535]);
    // Too many odd bytes to copy get a message of their own, before the full ones: the receiver
    // then has room for exactly this frame and need not move it.
    let (_, lens) = message_lens(100_000);
    assert_eq!(lens, [frame + head, frame + 100_000 - 65_519, 6 + 65_535]);
}

#[test]
fn one_transmit_is_bounded_and_the_rest_stays_queued() {
    let mut pair = settled(reader(), reader(), 6);
    for req in 0..20 {
        pair.caller.session.send(&chunk(req, 100_000)).unwrap();
    }
    let mut out = BytesMut::new();
    assert!(pair.caller.session.poll_transmit(pair.now, &mut out));
    assert!(out.len() < TRANSMIT_LEN + 66_000, "{}", out.len());
    assert!(pair.caller.session.queued_len() > 1_700_000);
}

#[test]
fn nothing_of_the_members_shows_before_or_after_auth() {
    let mut pair = settled(writer(2), writer(3), 7);
    pair.caller.session.send(&chunk(1, 5000)).unwrap();
    let frames = |pair: &Pair| !pair.called.frames.is_empty();
    assert!(pair.run(Duration::from_secs(1), frames));
    let info = pair.caller.established.as_ref().unwrap();
    let own = pair.called.established.as_ref().unwrap();
    let Frame::Chunk(sent) = chunk(1, 5000) else {
        unreachable!()
    };
    let manifest = reader().manifest.unwrap().encode();
    let devices = [own.device().unwrap(), info.device().unwrap()];
    let (folder, psk) = (owner().folder(), reader().psk());
    let write = owner().write_key(0).public();
    let secrets: [(&str, &[u8]); 11] = [
        ("caller's device", devices[0].as_bytes()),
        ("called's device", devices[1].as_bytes()),
        ("device name", NAME.as_bytes()),
        ("folder id", folder.as_bytes()),
        ("write key", &write.0),
        ("manifest", &manifest[..40]),
        ("caller's nonce", &own.nonce),
        ("called's nonce", &info.nonce),
        ("chunk", &sent.bytes[..16]),
        ("psk", &psk[..]),
        ("client name", b"ccbt"),
    ];
    let transcript = [&pair.caller.sent[..], &pair.called.sent].concat();
    for (what, secret) in secrets {
        assert!(
            !transcript.windows(secret.len()).any(|w| w == secret),
            "{what} in clear"
        );
    }
    let swarm = *reader().swarm().as_bytes();
    assert!(
        transcript.windows(20).any(|w| w == swarm),
        "the search finds what is there"
    );
}

#[test]
fn with_another_psk_the_first_noise_message_ends_it() {
    let pair = settled(reader(), stranger(), 8);
    assert_eq!(pair.called.closed, Some(Reason::Noise(NoiseError)));
    assert!(pair.caller.established.is_none());
    assert_eq!(
        pair.called.sent.len(),
        68 + 6 + 18,
        "nothing but the two handshakes"
    );
}

#[test]
fn a_swarm_we_are_not_in_gets_no_answer() {
    let mut end = accepting(reader());
    end.receive(NOW, &Handshake::with_extensions([0; 20], [1; 20]).encode());
    assert_eq!(end.closed, Some(Reason::UnknownSwarm));
    assert!(end.transmit(NOW).is_empty());

    let mut end = calling();
    end.receive(NOW, &Handshake::with_extensions([0; 20], [1; 20]).encode());
    assert_eq!(end.closed, Some(Reason::OtherSwarm));
    assert_eq!(end.transmit(NOW).len(), 68);
}

#[test]
fn a_recorded_connection_cannot_be_played_again() {
    let mut pair = settled(writer(2), writer(3), 10);
    pair.caller.session.send(&Frame::Cancel { req: 1 }).unwrap();
    let frames = |pair: &Pair| !pair.called.frames.is_empty();
    assert!(pair.run(Duration::from_secs(1), frames));
    let mut end = accepting(writer(3));
    end.receive(NOW, &pair.caller.sent);
    assert_eq!(end.closed, Some(Reason::Noise(NoiseError)));
    let mut end = calling();
    end.receive(NOW, &pair.called.sent);
    assert_eq!(end.closed, Some(Reason::Noise(NoiseError)));
}

#[test]
fn what_a_caller_says_cannot_be_sent_back_to_it() {
    let mut end = calling();
    for _ in 0..5 {
        let echo = end.transmit(NOW);
        end.receive(NOW, &echo);
    }
    // The Noise message that a responder never sends.
    assert_eq!(end.closed, Some(Reason::Noise(NoiseError)));
}

#[test]
fn the_discovery_key_alone_does_not_open_the_door() {
    let mut raw = Raw::call(writer(3));
    raw.frame(&raw.auth(&stranger(), Side::Caller));
    assert_eq!(raw.reason(), Reason::Auth(AuthError::Mac));

    // Nor does the AUTH that the called side sends.
    let mut raw = Raw::call(writer(3));
    let sent = raw.end.transmit(NOW);
    let mut theirs = BytesMut::new();
    raw.transport.open(&sent[6..], &mut theirs).unwrap();
    assert!(theirs.len() > 300, "AUTH of a writer and HELLO");
    raw.send(&theirs);
    assert_eq!(raw.reason(), Reason::Auth(AuthError::Mac));
}

#[test]
fn a_certificate_by_another_write_key_is_refused() {
    let forged = writer_certified_by(&WriteKey::from_bytes([66; 32]), 2);
    let pair = settled(forged, reader(), 11);
    let Some(Reason::Auth(AuthError::Certificate(_))) = pair.called.closed else {
        panic!("{:?}", pair.called.closed)
    };
    assert!(pair.called.established.is_none());
}

#[test]
fn frames_out_of_turn_end_the_connection() {
    let mut raw = Raw::call(reader());
    raw.frame(&hello([3; 8]));
    assert_eq!(raw.reason(), Reason::OutOfTurn(1));

    // The body of a stranger's frame is not even looked at.
    let mut raw = Raw::call(reader());
    raw.send(&[2, 0, 0, 0, 2, 9]);
    assert_eq!(raw.reason(), Reason::OutOfTurn(2));

    let mut raw = Raw::call(reader());
    raw.frame(&raw.auth(&reader(), Side::Caller));
    raw.frame(&Frame::Cancel { req: 1 });
    assert_eq!(raw.reason(), Reason::OutOfTurn(0x23));

    for again in [
        hello([3; 8]),
        Raw::call(reader()).auth(&reader(), Side::Caller),
    ] {
        let mut raw = Raw::member(reader());
        raw.frame(&again);
        assert_eq!(raw.reason(), Reason::OutOfTurn(again.kind()));
    }
}

#[test]
fn ourselves_and_other_versions_are_told_apart() {
    let mut raw = Raw::call(reader());
    raw.frame(&raw.auth(&reader(), Side::Caller));
    raw.frame(&hello(config(&mut Rng(8)).nonce));
    assert_eq!(raw.reason(), Reason::Ourselves);

    let mut raw = Raw::call(reader());
    raw.frame(&raw.auth(&reader(), Side::Caller));
    let next = Hello {
        proto: 2,
        caps: 0,
        epoch: 0,
        nonce: [3; 8],
        listen_port: 0,
    };
    raw.frame(&Frame::Hello(next));
    assert_eq!(raw.reason(), Reason::Version(2));
}

#[test]
fn oversized_frames_end_the_connection_at_their_length_field() {
    let mut raw = Raw::call(reader());
    raw.send(&(18u32 << 10).to_le_bytes());
    assert!(
        matches!(raw.reason(), Reason::FrameLength(_)),
        "{:?}",
        raw.reason()
    );

    for len in [0, FRAME_LEN_MAX + 1, u32::MAX] {
        let mut raw = Raw::member(reader());
        raw.send(&len.to_le_bytes());
        let expected = FrameLength {
            len,
            max: FRAME_LEN_MAX,
        };
        assert_eq!(raw.reason(), Reason::FrameLength(expected));
    }
}

#[test]
fn what_came_before_a_bad_frame_is_still_given_out() {
    let mut raw = Raw::member(reader());
    let mut bytes = plain(&Frame::Cancel { req: 5 });
    bytes.extend_from_slice(&[3, 0, 0, 0, 0x7f, 1, 2]);
    bytes.extend_from_slice(&[2, 0, 0, 0, 0x23, 1]);
    bytes.extend_from_slice(&plain(&Frame::Cancel { req: 6 }));
    raw.send(&bytes);
    assert_eq!(
        raw.end.frames,
        [Frame::Cancel { req: 5 }],
        "the unknown one is passed over"
    );
    assert!(matches!(
        raw.reason(),
        Reason::Frame(FrameError { kind: 0x23, .. })
    ));
    assert!(raw.reason().is_fault());
}

#[test]
fn a_damaged_message_ends_the_connection() {
    let mut raw = Raw::member(reader());
    raw.end.receive(NOW, &extended(1, &[0; 40]));
    assert_eq!(raw.reason(), Reason::Noise(NoiseError));
}

#[test]
fn before_auth_a_peer_cannot_make_us_hold_more_than_its_message() {
    let too_long = |len: u32| {
        let mut bytes = len.to_be_bytes().to_vec();
        bytes.extend_from_slice(&[20, 0]);
        bytes
    };
    let mut end = calling();
    end.receive(
        NOW,
        &Handshake::with_extensions(*reader().swarm().as_bytes(), [1; 20]).encode(),
    );
    end.receive(NOW, &too_long(1027));
    let expected = MessageError::TooLong {
        len: 1027,
        max: 1026,
    };
    assert_eq!(end.closed, Some(Reason::Message(expected)));

    let mut raw = Raw::call(reader());
    raw.end.receive(NOW, &too_long((18 << 10) + 3));
    assert!(matches!(
        raw.reason(),
        Reason::Message(MessageError::TooLong { .. })
    ));

    let mut raw = Raw::member(reader());
    raw.end.receive(NOW, &too_long(65_538));
    assert!(matches!(
        raw.reason(),
        Reason::Message(MessageError::TooLong { .. })
    ));
}

#[test]
fn ordinary_bittorrent_is_not_spoken_here() {
    let swarm = *reader().swarm().as_bytes();
    let mut end = accepting(reader());
    end.receive(NOW, b"GET / HTTP/1.0\r\n\r\n");
    assert_eq!(end.closed, Some(Reason::NotBitTorrent(NotBitTorrent)));

    let mut end = accepting(reader());
    let mut plain = Handshake::with_extensions(swarm, [1; 20]);
    plain.reserved = [0; 8];
    end.receive(NOW, &plain.encode());
    assert_eq!(end.closed, Some(Reason::NoExtensions));

    let handshake = Handshake::with_extensions(swarm, [1; 20]).encode();
    let cases: [(&[u8], Reason); 4] = [
        (&[0, 0, 0, 1, 2], Reason::Message(MessageError::Foreign(2))),
        (
            &extended(0, b"d1:mdee"),
            Reason::Extension(ExtensionError::NoUtXet),
        ),
        (
            &extended(0, b"d1:m"),
            Reason::Extension(BencodeError::Truncated.into()),
        ),
        (&extended(1, b"d1:mdee"), Reason::UnexpectedId(1)),
    ];
    for (bytes, reason) in cases {
        let mut end = accepting(reader());
        end.receive(NOW, &handshake);
        end.receive(NOW, bytes);
        assert_eq!(end.closed, Some(reason));
    }
}

#[test]
fn a_slow_loris_is_cut_off_after_five_seconds() {
    let bytes = Handshake::with_extensions(*reader().swarm().as_bytes(), [1; 20]).encode();
    let mut end = accepting(reader());
    let mut now = NOW;
    for byte in &bytes {
        while end.session.poll_timeout().is_some_and(|due| due <= now) {
            end.timeout(now);
        }
        if end.closed.is_some() {
            break;
        }
        end.receive(now, &[*byte]);
        now += Duration::from_millis(300);
    }
    assert_eq!(end.closed, Some(Reason::SetupTimeout));
    assert!(now >= NOW + SETUP_TIMEOUT && now < NOW + SETUP_TIMEOUT + Duration::from_secs(1));

    // Keep-alives do not buy time either.
    let mut raw = Raw::call(reader());
    raw.end.receive(NOW, &[0; 4]);
    raw.end.timeout(NOW + SETUP_TIMEOUT);
    assert_eq!(raw.reason(), Reason::SetupTimeout);
}

#[test]
fn idle_connections_live_on_keep_alives() {
    let mut pair = settled(reader(), writer(2), 12);
    let before = pair.caller.sent.len();
    let hour = Duration::from_secs(3600);
    assert!(!pair.run(hour, |pair| pair.called.closed.is_some()));
    assert!(pair.caller.closed.is_none());
    let keep_alives = pair.caller.sent[before..].to_vec();
    assert!(keep_alives.iter().all(|byte| *byte == 0));
    assert!(
        (59..=61).contains(&(keep_alives.len() / 4)),
        "{}",
        keep_alives.len() / 4
    );
}

#[test]
fn a_dead_line_is_noticed_after_three_minutes() {
    let mut pair = settled(reader(), writer(2), 13);
    pair.is_cut = true;
    let cut_at = pair.now;
    let both = |pair: &Pair| pair.caller.closed.is_some() && pair.called.closed.is_some();
    assert!(pair.run(Duration::from_secs(200), both));
    assert_eq!(pair.caller.closed, Some(Reason::Silent));
    assert!(!Reason::Silent.is_fault());
    let after = pair.now - cut_at;
    assert!(after <= SILENCE_TIMEOUT && after > SILENCE_TIMEOUT - Duration::from_secs(1));
}

#[test]
fn only_an_open_session_sends_and_only_what_is_the_users() {
    let cancel = Frame::Cancel { req: 1 };
    let mut end = calling();
    assert_eq!(end.session.send(&cancel), Err(SendError::NotOpen));
    let mut raw = Raw::member(reader());
    assert_eq!(
        raw.end.session.send(&hello([0; 8])),
        Err(SendError::Reserved(1))
    );
    assert_eq!(raw.end.session.send(&cancel), Ok(()));
    raw.send(&[0; 4]);
    assert_eq!(raw.end.session.send(&cancel), Err(SendError::NotOpen));
}

#[test]
fn a_session_can_move_between_threads() {
    fn is_send<T: Send>() {}
    is_send::<Session>();
}

/// Runs an honest connection but changes the caller's bytes from `at` on.
fn garbled(at: usize, garbage: &[u8], is_called: bool) -> End {
    let mut pair = settled(writer(2), writer(3), 14);
    pair.caller.session.send(&chunk(1, 3000)).unwrap();
    pair.called.session.send(&chunk(1, 3000)).unwrap();
    for _ in 0..100 {
        pair.step();
    }
    // The same seed gives the same keys, so the recorded bytes fit a second run until `at`.
    let mut again = Pair::new(writer(2), writer(3), Line::default(), 14);
    let (victim, peer) = if is_called {
        (&mut again.called, pair.caller.sent)
    } else {
        (&mut again.caller, pair.called.sent)
    };
    let now = again.now;
    let at = at.min(peer.len());
    for byte in &peer[..at] {
        drop(victim.transmit(now));
        victim.receive(now, &[*byte]);
    }
    victim.receive(now, garbage);
    victim.timeout(now + SILENCE_TIMEOUT);
    std::mem::replace(victim, calling())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn honest_ends_meet_on_any_line(seed: u64, segment_max in 1u64..3000, latency in 0u64..200) {
        let line = Line { latency: Duration::from_millis(latency), segment_max };
        let mut pair = Pair::new(writer(2), reader(), line, seed);
        pair.settle();
        prop_assert!(pair.caller.established.is_some() && pair.called.established.is_some());
    }

    #[test]
    fn garbage_at_any_byte_ends_it_without_a_word_too_much(
        at in 0usize..4200,
        garbage in prop::collection::vec(any::<u8>(), 1..300),
        is_called: bool,
    ) {
        let end = garbled(at, &garbage, is_called);
        prop_assert!(end.closed.is_some());
        prop_assert!(end.frames.iter().all(|frame| *frame == chunk(1, 3000)));
    }

    #[test]
    fn a_member_may_send_any_plaintext(plaintext in prop::collection::vec(any::<u8>(), 0..300)) {
        let mut raw = Raw::member(reader());
        raw.send(&plaintext);
        raw.send(&[0; 5]);
        let mut framed = (plaintext.len() as u32).to_le_bytes().to_vec();
        framed.extend_from_slice(&plaintext);
        Raw::member(reader()).send(&framed);
    }
}
