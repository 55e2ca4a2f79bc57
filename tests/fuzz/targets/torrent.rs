//! Targets of what peers of ordinary torrents send.

use bytes::BytesMut;
use ccbt::engine::discovery::trackers::TrackerUrl;
use ccbt::proto::ip_filter::IpFilter;
use ccbt::proto::mse::{Encryption, KEY_LEN, Keys, Mse, obfuscated};
use ccbt::proto::pex as peer_exchange;
use ccbt::proto::proxy::{Dialogue, ProxyUrl, Target};
use ccbt::proto::torrent::hello::Hello;
use ccbt::proto::ut_metadata::{METADATA_PIECE_BYTES, UtMetadata};
use ccbt::proto::wire::{Message, WireLimits, decode, needed};

use super::parts;

/// The torrent that encrypted handshakes are about.
pub(crate) const MSE_TORRENT: [u8; 20] = [4; 20];

/// Random bytes of the side that a fuzzer talks to: always the same, so that a seed fits.
pub(crate) fn mse_fill(bytes: &mut [u8]) {
    bytes.fill(17);
}

/// The side of an encrypted handshake that calls, or the one that is called.
pub(crate) fn mse_side(calls: bool) -> Mse {
    if calls {
        let keys = Keys::generate(&mut mse_fill);
        let initial = b"first".to_vec();
        return Mse::call(
            keys,
            MSE_TORRENT,
            Encryption::Prefer,
            initial,
            &mut mse_fill,
        );
    }
    let find = |name: &[u8; 20]| (*name == obfuscated(&MSE_TORRENT)).then_some(MSE_TORRENT);
    Mse::answer(Encryption::Prefer, Box::new(find), &mut mse_fill)
}

/// What one side says in an encrypted handshake, in any pieces; the first byte says which side hears it. What it answers has
/// an end, and the cut changes nothing.
pub(crate) fn mse(data: &[u8]) -> bool {
    let Some((calls, data)) = data.split_first() else {
        return false;
    };
    let calls = calls & 1 == 1;
    let hear = |pieces: &[&[u8]]| {
        let mut side = mse_side(calls);
        let mut said = Vec::new();
        for piece in pieces {
            side.handle_input(piece);
            if let Some(work) = side.poll_work() {
                let worked = work.run(&mut mse_fill);
                side.handle_work(worked);
            }
            said.extend(side.poll_transmit().unwrap_or_default());
        }
        let longest = 2 * KEY_LEN + 4 * 512;
        assert!(said.len() < longest, "{} bytes", said.len());
        let done = side.poll_outcome().map(|outcome| outcome.map(|d| d.early));
        (said, done)
    };
    let pieces = parts(data);
    let whole = pieces.concat();
    let (said, outcome) = hear(&[&whole]);
    let (said_in_pieces, in_pieces) = hear(&pieces);
    assert_eq!(said, said_in_pieces);
    if let (Some(Ok(all)), Some(Ok(some))) = (&outcome, &in_pieces) {
        // What comes behind the end is no longer its business.
        assert!(all.starts_with(some));
    } else {
        assert_eq!(outcome, in_pieces);
    }
    matches!(outcome, Some(Ok(_)))
}

/// A stream of messages: each is read whole or not at all, and what is written again is read the same.
pub(crate) fn peer_wire(data: &[u8]) -> bool {
    let limits = WireLimits {
        bitfield_bytes: 512,
    };
    let mut at = 0;
    let mut known = false;
    while let Ok(Some((message, taken))) = decode(&data[at..], limits) {
        assert_eq!(needed(&data[at..]), Some(taken));
        if !matches!(message, Message::Unknown(_)) {
            let mut out = BytesMut::new();
            message.encode(&mut out);
            assert_eq!(out, data[at..at + taken]);
            known = true;
        }
        at += taken;
    }
    known
}

/// A message of BEP 9; what is written again is read the same.
pub(crate) fn ut_metadata(data: &[u8]) -> bool {
    let Some(message) = UtMetadata::decode(data) else {
        return false;
    };
    assert_eq!(UtMetadata::decode(&message.encode()), Some(message.clone()));
    !matches!(message, UtMetadata::Data { data, .. } if data.len() > METADATA_PIECE_BYTES)
}

/// A message of BEP 11: every address can be called.
pub(crate) fn pex(data: &[u8]) -> bool {
    peer_exchange::decode(data).is_some_and(|peers| {
        assert!(peers.iter().all(|peer| peer.addr.port() != 0));
        !peers.is_empty()
    })
}

/// A handshake of BEP 10. What was understood is written and understood the same.
pub(crate) fn torrent_hello(data: &[u8]) -> bool {
    let Some(hello) = Hello::decode(data) else {
        return false;
    };
    assert_ne!(hello.requests_max, 0);
    assert_ne!(hello.port, Some(0));
    let client = hello.client.as_deref().unwrap_or_default();
    assert!(!client.contains(|c: char| c.is_control()));
    let again = Hello::decode(&hello.encode()).expect("our own hello");
    assert_eq!(
        (again.ut_metadata, again.ut_pex),
        (hello.ut_metadata, hello.ut_pex)
    );
    assert_eq!((again.port, again.client), (hello.port, hello.client));
    hello.ut_metadata.is_some()
}

/// The URL of a tracker.
pub(crate) fn tracker_url(data: &[u8]) -> bool {
    std::str::from_utf8(data).is_ok_and(|text| TrackerUrl::parse(text).is_ok())
}

/// A list of addresses: what it blocks does not depend on the order of its lines.
pub(crate) fn ip_filter(data: &[u8]) -> bool {
    let parsed = IpFilter::parse(data);
    let mut lines: Vec<&[u8]> = data.split(|byte| *byte == b'\n').collect();
    assert!(parsed.filter.len() + parsed.unknown <= lines.len());
    lines.reverse();
    let reversed = IpFilter::parse(&lines.join(&b'\n'));
    assert_eq!(reversed.filter, parsed.filter);
    assert_eq!(reversed.unknown, parsed.unknown);
    !parsed.filter.is_empty()
}

/// What a proxy answers, byte by byte and at once.
pub(crate) fn proxy(data: &[u8]) -> bool {
    let Some((kind, answer)) = data.split_first() else {
        return false;
    };
    let url = match kind % 3 {
        0 => "socks5://proxy:1080",
        1 => "socks5://user:password@proxy:1080",
        _ => "http://user:password@proxy:3128",
    };
    let url = ProxyUrl::parse(url).expect("it is the URL of a proxy");
    let target = Target::Name("host.example".to_owned(), 80);
    let start = || Dialogue::new(url.clone(), target.clone()).expect("the name is short");
    let mut whole = start();
    let at_once = whole.handle_input(answer);
    let mut slow = start();
    for (n, byte) in answer.iter().enumerate() {
        match slow.handle_input(&[*byte]) {
            Ok(None) => {}
            Ok(Some(rest)) => {
                assert_eq!(rest, b"");
                assert_eq!(at_once, Ok(Some(answer[n + 1..].to_vec())));
                return true;
            }
            Err(error) => {
                assert_eq!(at_once, Err(error));
                return false;
            }
        }
    }
    assert_eq!(at_once, Ok(None));
    false
}
