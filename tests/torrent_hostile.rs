//! Peers that break every rule, over real sockets: each is closed or bounded, those who behave are served meanwhile, and nothing wrong
//! is kept.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use support::Place;
use support::clients::*;

/// Time for the other side to close a connection that must be closed at once.
const SOON: Duration = Duration::from_secs(60);

fn info_hash(magnet: &str) -> Vec<u8> {
    let at = magnet.find("btih:").unwrap() + 5;
    data_encoding::HEXLOWER
        .decode(&magnet.as_bytes()[at..at + 40])
        .unwrap()
}

/// Our half of a handshake, without any extension.
fn handshake(hash: &[u8], name: u8) -> Vec<u8> {
    let mut out = b"\x13BitTorrent protocol".to_vec();
    out.extend([0; 8]);
    out.extend_from_slice(hash);
    out.extend([name; 20]);
    out
}

fn message(id: u8, body: &[u8]) -> Vec<u8> {
    let len = (body.len() as u32 + 1).to_be_bytes();
    [&len[..], &[id], body].concat()
}

fn numbers(numbers: &[u32]) -> Vec<u8> {
    numbers.iter().flat_map(|n| n.to_be_bytes()).collect()
}

/// Connects and shakes hands.
fn meet(port: u16, hash: &[u8], name: u8) -> TcpStream {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.set_read_timeout(Some(SOON)).unwrap();
    stream.write_all(&handshake(hash, name)).unwrap();
    stream.read_exact(&mut [0; 68]).unwrap();
    stream
}

/// Whether the other side closes the connection; what it says until then is passed over.
fn is_closed(stream: &mut TcpStream) -> bool {
    let mut buf = [0; 4096];
    loop {
        match stream.read(&mut buf) {
            Ok(0) => return true,
            Ok(_) => {}
            Err(error) => {
                use std::io::ErrorKind::{TimedOut, WouldBlock};
                return !matches!(error.kind(), WouldBlock | TimedOut);
            }
        }
    }
}

#[test]
fn a_seeder_closes_those_who_break_the_rules_and_serves_the_others() {
    let place = Place::new();
    let top = content(&place, 2);
    let file = torrent(&place, &top, "--v1");
    let hash = info_hash(&magnet(&place, &file));
    let (port, src) = (free_port(), place.path("src"));
    let args = ["download", text(&file), "-o", text(&src), "--seed"];
    let mut ccbt = Ccbt::start(&place, "s", port, &args);
    ccbt.wait_for("Downloaded top");
    let interested = message(2, &[]);
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("garbage", random_bytes(100_000)),
        ("a length of 4 GiB", vec![0xff; 64]),
        (
            "a request of a piece that does not exist",
            message(6, &numbers(&[9999, 0, 16_384])),
        ),
        (
            "a request beyond the end",
            message(6, &numbers(&[0, 0x7fff_0000, 16_384])),
        ),
        ("a request of a GiB", message(6, &numbers(&[0, 0, 1 << 30]))),
        ("a request of nothing", message(6, &numbers(&[0, 0, 0]))),
        (
            "a piece that does not exist",
            message(4, &numbers(&[u32::MAX])),
        ),
        ("a bitfield that does not fit", message(5, &[0xff; 4000])),
        (
            "a reject without the fast extension",
            message(16, &numbers(&[0, 0, 16_384])),
        ),
        ("a request that is cut short", message(6, &[0; 5])),
    ];
    for (n, (what, bytes)) in cases.iter().enumerate() {
        let mut stream = meet(port, &hash, n as u8 + 1);
        // It may be closed before all is written.
        drop(stream.write_all(&[&interested[..], bytes].concat()));
        assert!(is_closed(&mut stream), "{what}: not closed\n{}", ccbt.log());
    }
    // What is only of no use is borne: blocks nobody asked for, the same piece ten thousand times, and silence.
    let block = [&numbers(&[0, 0])[..], &[7; 16_384]].concat();
    let mut unasked = meet(port, &hash, 101);
    for _ in 0..50 {
        unasked.write_all(&message(7, &block)).unwrap();
    }
    let mut haves = meet(port, &hash, 102);
    for _ in 0..10_000 {
        haves.write_all(&message(4, &numbers(&[0]))).unwrap();
    }
    let silent: Vec<TcpStream> = (0..20).map(|n| meet(port, &hash, 110 + n)).collect();
    let out = place.path("out");
    Other::leech(text(&file), &out, port);
    same(&top, &out.join("top"));
    drop(silent);
    same(&top, &src.join("top"));
    assert!(!ccbt.log().contains("panicked"), "{}", ccbt.log());
}

/// A peer that says it has everything and sends what `block` makes; counts who connects.
fn liar(hash: Vec<u8>, pieces: usize, block: fn(&[u8]) -> Vec<u8>) -> (u16, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let met = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&met);
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            count.fetch_add(1, Ordering::Relaxed);
            let hash = hash.clone();
            std::thread::spawn(move || drop(lie(stream, &hash, pieces, block)));
        }
    });
    (port, met)
}

fn lie(
    mut stream: TcpStream,
    hash: &[u8],
    pieces: usize,
    block: fn(&[u8]) -> Vec<u8>,
) -> std::io::Result<()> {
    let mut theirs = [0; 68];
    stream.read_exact(&mut theirs)?;
    stream.write_all(&handshake(hash, 99))?;
    let mut field = vec![0xff; pieces.div_ceil(8)];
    if !pieces.is_multiple_of(8) {
        *field.last_mut().unwrap() <<= 8 - pieces % 8;
    }
    stream.write_all(&[message(5, &field), message(1, &[])].concat())?;
    loop {
        let mut len = [0; 4];
        stream.read_exact(&mut len)?;
        let mut body = vec![0; u32::from_be_bytes(len) as usize];
        stream.read_exact(&mut body)?;
        if body.first() == Some(&6) {
            stream.write_all(&block(&body[1..]))?;
        }
    }
}

#[test]
fn a_leecher_believes_no_block_and_finishes_from_one_that_is_honest() {
    let place = Place::new();
    let top = content(&place, 2);
    let file = torrent(&place, &top, "--v1");
    let hash = info_hash(&magnet(&place, &file));
    // What `content` makes.
    let pieces = usize::div_ceil((2 << 20) + 1 + 16_384 + 300_001 + 70_000, 256 << 10);
    let wrong: fn(&[u8]) -> Vec<u8> = |request| {
        let len = u32::from_be_bytes(request[8..12].try_into().unwrap()) as usize;
        message(7, &[&request[..8], &vec![0x55; len]].concat())
    };
    let short: fn(&[u8]) -> Vec<u8> = |request| message(7, &[&request[..8], &[1; 100]].concat());
    let elsewhere: fn(&[u8]) -> Vec<u8> =
        |_| message(7, &[&numbers(&[0xffff, 3])[..], &[1; 16_384]].concat());
    let nothing: fn(&[u8]) -> Vec<u8> = |_| Vec::new();
    let liars = [wrong, short, elsewhere, nothing].map(|how| liar(hash.clone(), pieces, how));
    let (_seeder, port) = Other::seed(&file, &place.path("src"), 0);
    let out = place.path("out");
    let peers = liars.iter().map(|(port, _)| *port).chain([port]);
    let peers: Vec<String> = peers
        .map(|port| format!("--peer=127.0.0.1:{port}"))
        .collect();
    let args = ["download", text(&file), "-o", text(&out)];
    let args: Vec<&str> = args
        .into_iter()
        .chain(peers.iter().map(String::as_str))
        .collect();
    let env = [
        ("CCBT_NETWORK_ENCRYPTION", "off"),
        ("CCBT_NETWORK_UTP", "false"),
    ];
    Ccbt::start_on(&place, "s", "127.0.0.1:0", &env, &args).finish();
    same(&top, &out.join("top"));
    assert!(liars.iter().any(|(_, met)| met.load(Ordering::Relaxed) > 0));
}
