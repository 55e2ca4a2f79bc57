//! Seeds of what web servers and routers answer, and of chunk lists.

use ccbt::proto::metainfo::chunks::ChunkLists;
use ccbt_xet::hash::{ChunkHash, HASH_LEN};
use ccbt_xet::recipe::ChunkRef;

use super::with_prefix;
use crate::targets::join;

pub(super) fn chunk_lists() -> Vec<Vec<u8>> {
    let chunk = |n: u8, len: u32| ChunkRef {
        hash: ChunkHash::from_bytes([n; HASH_LEN]),
        len,
    };
    let mut lists = ChunkLists::default();
    lists.set(1, vec![chunk(3, 5)]);
    let small = lists.encode();
    lists.set(0, vec![chunk(1, 70_000), chunk(2, 30_000)]);
    vec![small, lists.encode()]
}

/// An answer to the first question, for either protocol.
pub(super) fn pcp() -> Vec<Vec<u8>> {
    let mut pcp = vec![2, 0x81, 0, 0, 0, 0, 14, 16, 0, 0, 0, 1];
    pcp.extend([0; 12]);
    pcp.extend([9; 12]);
    pcp.extend([6, 0, 0, 0, 26, 225, 26, 226]);
    pcp.extend([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 203, 0, 113, 5]);
    let old = [
        vec![0, 129, 0, 1, 0, 0, 0, 0],
        vec![0, 128, 0, 0, 0, 0, 0, 9, 203, 0, 113, 5],
        vec![0, 130, 0, 0, 0, 0, 0, 9, 26, 225, 100, 0, 0, 0, 0, 120],
    ];
    let mut refused = pcp.clone();
    refused[3] = 8;
    vec![join([pcp]), join(old), join([refused])]
}

pub(super) fn ssdp() -> Vec<Vec<u8>> {
    let answer = |location: &str| {
        format!("HTTP/1.1 200 OK\r\nST: x\r\nLOCATION: {location}\r\n\r\n").into_bytes()
    };
    vec![
        answer("http://192.168.1.1:5000/rootDesc.xml"),
        answer("http://192.168.1.2/"),
    ]
}

pub(super) fn upnp() -> Vec<Vec<u8>> {
    let description = "<root><device><serviceList><service><serviceType>urn:schemas-upnp-org:service:WANIPConnection:1</serviceType>\
        <controlURL>/ctl</controlURL></service></serviceList></device></root>";
    let address = "<u:R><NewExternalIPAddress>203.0.113.5</NewExternalIPAddress></u:R>";
    let taken = "<errorCode>718</errorCode><errorDescription>taken</errorDescription>";
    let good = |text: &str| with_prefix(&[0], text);
    let bad = |text: &str| with_prefix(&[1], text);
    vec![
        join([good(description), good(address), good(""), good("")]),
        join([good(description), good(address), bad(taken), good("")]),
    ]
}

pub(super) fn web_url() -> Vec<Vec<u8>> {
    let pairs = [
        ("http://me:secret@mirror.example:8080/a b/?x=1#y", "../c"),
        ("https://[::1]/", "//other.example/d"),
        ("http://h", "https://h/e?f"),
    ];
    pairs.map(|(url, to)| join([url, to])).into()
}

pub(super) fn web_seed() -> Vec<Vec<u8>> {
    let body = vec![7u8; 60_000];
    let first = "206\nr bytes 0-99999/100000";
    let moved = "302\nl http://other/t/a";
    let page = "200\nt text/html\nn 9";
    vec![
        join([first.as_bytes(), &body]),
        join([moved.as_bytes(), b"404", first.as_bytes(), &body]),
        join([b"404", &b"206\nr bytes 0-4/5"[..], b"hello"]),
        join([page.as_bytes()]),
    ]
}
