//! Seeds of what peers of ordinary torrents send.

use bytes::BytesMut;
use ccbt::proto::blocks::Block;
use ccbt::proto::pex::Told;
use ccbt::proto::torrent::holepunch::{Holepunch, Refusal};
use ccbt::proto::ut_metadata::UtMetadata;

use crate::targets::hashes::{layer, root};
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
    let peers = peers
        .iter()
        .filter_map(|text| Some((text.parse().ok()?, 0x12)));
    let peers = peers.collect();
    Told::default().news(&peers).into_iter().collect()
}

pub(super) fn hash_messages() -> Vec<Vec<u8>> {
    let range = HashRange {
        root: root(),
        base_layer: 1,
        index: 0,
        length: 8,
        proof_layers: 2,
    };
    let filler = ccbt::proto::metainfo::merkle::filler(1);
    let hashes = [layer(), vec![filler; 3]].concat().concat();
    let leaves = HashRange {
        base_layer: 0,
        index: 2,
        length: 2,
        proof_layers: 3,
        ..range
    };
    let messages: [Message<&[u8]>; 4] = [
        Message::HashRequest(range),
        Message::HashReject(range),
        Message::HashRequest(leaves),
        Message::Hashes {
            range,
            hashes: &hashes,
        },
    ];
    let mut all = BytesMut::new();
    messages.iter().for_each(|message| message.encode(&mut all));
    let mut answer = BytesMut::new();
    messages[3].encode(&mut answer);
    vec![all.to_vec(), answer.to_vec()]
}

pub(super) fn holepunch() -> Vec<Vec<u8>> {
    let four = ([10, 0, 0, 1], 6881).into();
    let six = ([0x2001, 0xdb8, 0, 0, 0, 0, 0, 1], 6882).into();
    vec![
        Holepunch::Rendezvous(four).encode(),
        Holepunch::Connect(six).encode(),
        Holepunch::Refused(four, Refusal::NotConnected).encode(),
    ]
}
