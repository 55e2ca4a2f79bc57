//! Targets of what peers of ordinary torrents send.

use bytes::BytesMut;
use ccbt::proto::pex as peer_exchange;
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
    peer_exchange::decode(data).is_some_and(|peers| {
        assert!(peers.iter().all(|peer| peer.addr.port() != 0));
        !peers.is_empty()
    })
}
