//! Targets of what peers of ordinary torrents send.

use bytes::BytesMut;
use ccbt::engine::discovery::trackers::TrackerUrl;
use ccbt::proto::pex as peer_exchange;
use ccbt::proto::torrent::hello::Hello;
use ccbt::proto::ut_metadata::{METADATA_PIECE_BYTES, UtMetadata};
use ccbt::proto::wire::{Message, WireLimits, decode, needed};

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
    peer_exchange::decode(data).is_some_and(|addrs| {
        assert!(addrs.iter().all(|addr| addr.port() != 0));
        !addrs.is_empty()
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
