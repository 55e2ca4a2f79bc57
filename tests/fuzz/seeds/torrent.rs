//! Seeds of what peers of ordinary torrents send.

use bytes::BytesMut;
use ccbt::proto::blocks::Block;
use ccbt::proto::pex::Told;
use ccbt::proto::ut_metadata::UtMetadata;
use ccbt::proto::wire::{HashRange, Message};

pub(super) fn peer_wire() -> Vec<Vec<u8>> {
    let block = Block {
        piece: 1,
        begin: 16_384,
        length: 16_384,
    };
    let range = HashRange {
        root: [7; 32],
        base_layer: 4,
        index: 2,
        length: 2,
        proof_layers: 1,
    };
    let greeting: Vec<Message<&[u8]>> = vec![
        Message::Bitfield(&[0xf0]),
        Message::Extended {
            id: 0,
            payload: b"d1:md11:ut_metadatai3ee13:metadata_sizei99ee",
        },
        Message::Unchoke,
        Message::Interested,
        Message::KeepAlive,
    ];
    let rest: Vec<Message<&[u8]>> = vec![
        Message::Have(3),
        Message::Request(block),
        Message::Piece {
            piece: 1,
            begin: 0,
            data: b"data",
        },
        Message::Cancel(block),
        Message::Reject(block),
        Message::Port(6881),
        Message::AllowedFast(2),
        Message::HashRequest(range),
        Message::Hashes {
            range,
            hashes: &[9; 64],
        },
    ];
    let encode = |messages: Vec<Message<&[u8]>>| {
        let mut out = BytesMut::new();
        messages.iter().for_each(|message| message.encode(&mut out));
        out.to_vec()
    };
    vec![encode(greeting), encode(rest)]
}

pub(super) fn ut_metadata() -> Vec<Vec<u8>> {
    let data = UtMetadata::Data {
        piece: 0,
        total: 4,
        data: b"d1:a",
    };
    vec![
        UtMetadata::Request { piece: 2 }.encode(),
        data.encode(),
        UtMetadata::Reject { piece: 2 }.encode(),
    ]
}

pub(super) fn pex() -> Vec<Vec<u8>> {
    let peers = ["10.0.0.1:6881", "[2001:db8::1]:6882"];
    let peers = peers.iter().filter_map(|text| text.parse().ok()).collect();
    Told::default().news(&peers).into_iter().collect()
}
