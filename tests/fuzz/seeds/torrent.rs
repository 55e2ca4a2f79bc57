//! Seeds of what peers of ordinary torrents send.

use bytes::BytesMut;
use ccbt::proto::blocks::Block;
use ccbt::proto::pex::Told;
use ccbt::proto::torrent::hello::Hello;
use ccbt::proto::torrent::holepunch::{Holepunch, Refusal};
use ccbt::proto::ut_metadata::UtMetadata;

use crate::targets::hashes::{layer, root};
use ccbt::proto::wire::{HashRange, Message};

use super::with_prefix;
use crate::targets::join;
use crate::targets::torrent::{mse_fill, mse_side};

/// A whole handshake as each side hears it, in two cuts, with something behind it.
pub(super) fn mse() -> Vec<Vec<u8>> {
    let mut sides = [mse_side(true), mse_side(false)];
    let mut heard = [Vec::new(), Vec::new()];
    for n in 0..4 {
        let out = sides[n % 2].poll_transmit().unwrap_or_default();
        let to = (n + 1) % 2;
        sides[to].handle_input(&out);
        heard[to].push(out);
        if let Some(work) = sides[to].poll_work() {
            let worked = work.run(&mut mse_fill);
            sides[to].handle_work(worked);
        }
    }
    let mut seeds = Vec::new();
    for (calls, mut messages) in [(1, heard[0].clone()), (0, heard[1].clone())] {
        messages.push(b"behind".to_vec());
        seeds.push(with_prefix(&[calls], join(&messages)));
        let bytes = messages.concat();
        seeds.push(with_prefix(&[calls], join(bytes.chunks(50))));
    }
    seeds
}

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

pub(super) fn ip_filter() -> Vec<Vec<u8>> {
    let lists: [&[u8]; 3] = [
        b"# p2p\nSome - one:1.2.3.4-1.2.3.9\nsix:2001:db9::1-2001:db9::5\n",
        b"001.009.000.000 - 001.009.000.255 , 000 , eMule\n1.10.0.0 - 1.10.0.255 , 200 , x\n",
        b"10.0.0.0/8\n10.0.0.0/9\n192.0.2.7\n2001:db8::/32\n",
    ];
    lists.map(<[u8]>::to_vec).into()
}

pub(super) fn proxy() -> Vec<Vec<u8>> {
    let answers: [&[u8]; 4] = [
        b"\0\x05\0\x05\0\0\x01\0\0\0\0\0\0early",
        b"\x01\x05\x02\x01\0\x05\0\0\x03\x04name\0\x50",
        b"\x02HTTP/1.1 200 OK\r\nVia: x\r\n\r\nearly",
        b"\0\x05\0\x05\x05\0\x01\0\0\0\0\0\0",
    ];
    answers.map(<[u8]>::to_vec).into()
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
