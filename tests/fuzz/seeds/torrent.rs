//! Seeds of what peers of ordinary torrents send.

use bytes::BytesMut;
use ccbt::proto::blocks::Block;
use ccbt::proto::pex::Told;
use ccbt::proto::torrent::hello::Hello;
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

pub(super) fn torrent_hello() -> Vec<Vec<u8>> {
    let hellos = [(Some(77), true, false, 6881), (None, false, true, 0)];
    let mut out: Vec<Vec<u8>> = hellos
        .map(|(size, pex, upload_only, port)| Hello::ours(size, pex, upload_only, port).encode())
        .into();
    out.push(b"d1:md11:ut_metadatai3e11:lt_donthavei7ee1:pi70000e4:reqqi250e1:v4:abcd6:yourip4:\x01\x02\x03\x04e".to_vec());
    out
}

pub(super) fn tracker_url() -> Vec<Vec<u8>> {
    let urls = [
        "http://tracker.example/announce?key=1",
        "https://[2001:db8::1]:8443/a",
        "udp://tracker.example:6969/announce",
        "udp://tracker.example/announce",
        "http://user@tracker.example:80",
    ];
    urls.map(|url| url.as_bytes().to_vec()).into()
}
