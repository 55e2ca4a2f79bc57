//! Downloads from and to libtorrent: whole content, by torrent file and by magnet, after a kill, and of chosen files.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::fs;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Shutdown, SocketAddrV4, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use support::Place;
use support::clients::*;
use support::web::{Manner, WebServer};

#[test]
fn from_libtorrent_by_file_and_by_magnet() {
    let place = Place::new();
    let top = content(&place, 64);
    for flag in ["--v1", "--hybrid", "--v2"] {
        let file = torrent(&place, &top, flag);
        let (_seeder, port) = Other::seed(&file, &place.path("src"), 0);
        let link = magnet(&place, &file);
        for (n, source) in [text(&file), &link].iter().enumerate() {
            let out = place.path(&format!("out{flag}{n}"));
            let state = format!("s{flag}{n}");
            let peer = format!("--peer=127.0.0.1:{port}");
            let ccbt = Ccbt::start(
                &place,
                &state,
                0,
                &["download", source, "-o", text(&out), &peer],
            );
            ccbt.finish();
            same(&top, &out.join("top"));
            fs::remove_dir_all(&out).unwrap();
        }
    }
}

#[test]
fn to_libtorrent_by_file_and_by_magnet() {
    let place = Place::new();
    let top = content(&place, 64);
    for flag in ["--v1", "--hybrid", "--v2"] {
        let file = torrent(&place, &top, flag);
        let port = free_port();
        let src = place.path("src");
        let args = ["download", text(&file), "-o", text(&src), "--seed"];
        let mut ccbt = Ccbt::start(&place, &format!("s{flag}"), port, &args);
        ccbt.wait_for("Downloaded top");
        for (n, source) in [text(&file), &magnet(&place, &file)].iter().enumerate() {
            let out = place.path(&format!("out{flag}{n}"));
            Other::leech(source, &out, port);
            same(&top, &out.join("top"));
            fs::remove_dir_all(&out).unwrap();
        }
    }
}

#[test]
fn a_magnet_is_opened_again_without_peers() {
    // libtorrent speaks of a hybrid torrent by its v1 hash, and so not of piece hashes, where the handshake was encrypted.
    let kinds = [
        ("--v1", "prefer"),
        ("--hybrid", "prefer"),
        ("--hybrid", "off"),
        ("--v2", "prefer"),
    ];
    for (flag, encryption) in kinds {
        let place = Place::new();
        let top = content(&place, 4);
        let file = torrent(&place, &top, flag);
        let (seeder, port) = Other::seed(&file, &place.path("src"), 0);
        let (link, out) = (magnet(&place, &file), place.path("out"));
        let peer = format!("--peer=127.0.0.1:{port}");
        let env = [("CCBT_NETWORK_ENCRYPTION", encryption)];
        let args = ["download", &link, "-o", text(&out), &peer];
        Ccbt::start_on(&place, "s", "127.0.0.1:0", &env, &args).finish();
        drop(seeder);
        // What is kept is a torrent file like any other, with the piece hashes that peers have told.
        let kept = fs::read_dir(place.path("s").join("torrents")).unwrap();
        let kept = kept
            .map(|dir| dir.unwrap().path().join("metainfo.torrent"))
            .next()
            .unwrap();
        let (run, original) = (
            place.run(&["info", text(&kept)]),
            place.run(&["info", text(&file)]),
        );
        assert_eq!(run.code, 0, "{run:?}");
        let line = |text: &str| {
            text.lines()
                .find(|l| l.contains("btmh") || l.contains("v2"))
                .map(str::to_owned)
        };
        assert_eq!(line(&run.stdout), line(&original.stdout));
        if flag == "--v2" || (flag, encryption) == ("--hybrid", "off") {
            let find = |bytes: &[u8]| bytes.windows(15).any(|at| at == b"12:piece layers");
            assert!(
                find(&fs::read(&kept).unwrap()),
                "{flag}: the piece hashes were not kept"
            );
        }
        fs::remove_file(place.path("s.log")).unwrap();
        let args = ["download", &link, "-o", text(&out), "--seed"];
        let mut again = Ccbt::start(&place, "s", 0, &args);
        again.wait_for("Downloaded top");
        assert!(
            !again.log().contains("torrent not opened"),
            "{}",
            again.log()
        );
    }
}

#[test]
fn a_killed_download_goes_on_where_it_was() {
    let place = Place::new();
    let top = content(&place, 64);
    let file = torrent(&place, &top, "--v1");
    let (_seeder, port) = Other::seed(&file, &place.path("src"), 24 << 20);
    let out = place.path("out");
    let peer = format!("--peer=127.0.0.1:{port}");
    let args = ["download", text(&file), "-o", text(&out), &peer, "--json"];
    let mut ccbt = Ccbt::start(&place, "s", 0, &args);
    let until = Instant::now() + PATIENCE;
    let noted = || {
        let dir = fs::read_dir(place.path("s/torrents"))
            .ok()?
            .next()?
            .ok()?
            .path();
        fs::metadata(dir.join("resume")).ok().map(|m| m.len())
    };
    // 82 bytes of header and bit field, then 4 for each piece of 256 KiB.
    while noted().is_none_or(|len| len < 82 + 4 * 100) {
        assert!(Instant::now() < until, "{}", ccbt.log());
        std::thread::sleep(Duration::from_millis(5));
    }
    ccbt.child.kill().unwrap();
    ccbt.child.wait().unwrap();
    let before = (noted().unwrap() - 82) / 4 * (256 << 10);
    fs::remove_file(place.path("s.log")).unwrap();
    let ccbt = Ccbt::start(&place, "s", 0, &args);
    let log = ccbt.log.clone();
    ccbt.finish();
    same(&top, &out.join("top"));
    let log = fs::read_to_string(log).unwrap();
    let line = log.lines().find(|line| line.starts_with('{')).unwrap();
    let end: serde_json::Value = serde_json::from_str(line).unwrap();
    let total = end["torrent"]["content"]["bytes"].as_u64().unwrap();
    let fetched = end["torrent"]["bytes_down"].as_u64().unwrap();
    assert!(
        fetched <= total - before + (300 << 10),
        "{fetched} of {total}, {before} were there"
    );
}

#[test]
fn only_what_is_chosen_is_made() {
    let place = Place::new();
    let top = content(&place, 4);
    let file = torrent(&place, &top, "--v1");
    let (_seeder, port) = Other::seed(&file, &place.path("src"), 0);
    let out = place.path("out");
    let peer = format!("--peer=127.0.0.1:{port}");
    let args = [
        "download",
        text(&file),
        "-o",
        text(&out),
        &peer,
        "--select",
        "*/deep/*",
        "--sequential",
    ];
    Ccbt::start(&place, "s", 0, &args).finish();
    let read = |dir: &Path| fs::read(dir.join("sub/deep/c")).unwrap();
    assert_eq!(read(&top), read(&out.join("top")));
    for name in ["big", "z", "a", "sub/b"] {
        assert!(!out.join("top").join(name).exists(), "{name}");
    }
}

#[test]
fn torrents_are_listed_and_told_what_to_do() {
    let place = Place::new();
    let top = content(&place, 4);
    let file = torrent(&place, &top, "--v1");
    let src = place.path("src");
    let args = ["download", text(&file), "-o", text(&src), "--seed"];
    let mut ccbt = Ccbt::start(&place, "s", 0, &args);
    ccbt.wait_for("Downloaded top");
    let state = place.path("s");
    let run = |args: &[&str]| {
        let run = place.run(&[&["--state", text(&state), "--json"], args].concat());
        assert_eq!(run.code, 0, "{run:?}");
        run.json()
    };
    let list = run(&["torrents"]);
    let hash = list["torrents"][0]["hash"].as_str().unwrap().to_owned();
    assert_eq!(list["torrents"][0]["state"], "seeding");
    assert_eq!(
        run(&["torrent", "top", "files"])["files"]
            .as_array()
            .unwrap()
            .len(),
        6
    );
    run(&["torrent", &hash[..6], "pause"]);
    let until = Instant::now() + PATIENCE;
    let wait = |wanted: &str| {
        while run(&["torrent", &hash])["torrent"]["state"] != wanted {
            assert!(Instant::now() < until, "not {wanted}");
            std::thread::sleep(Duration::from_millis(50));
        }
    };
    wait("paused");
    run(&["torrent", &hash, "resume"]);
    wait("seeding");
    // A damaged piece is found by a check, and missing from then on.
    let mut big = fs::OpenOptions::new()
        .write(true)
        .open(top.join("big"))
        .unwrap();
    big.write_all(b"damage").unwrap();
    run(&["torrent", &hash, "recheck"]);
    wait("downloading");
    run(&["torrent", &hash, "remove"]);
    assert!(top.join("big").exists());
    ccbt.child.wait().unwrap();
}

#[test]
fn a_mounted_torrent_is_fetched_as_it_is_read() {
    assert!(
        Path::new("/dev/fuse").exists(),
        "/dev/fuse is missing: run `modprobe fuse`"
    );
    let place = Place::new();
    let top = content(&place, 64);
    for flag in ["--v1", "--v2"] {
        let file = torrent(&place, &top, flag);
        let (_seeder, port) = Other::seed(&file, &place.path("src"), 0);
        let mnt = place.path(&format!("mnt{flag}"));
        fs::create_dir_all(&mnt).unwrap();
        let peer = format!("--peer=127.0.0.1:{port}");
        let state = format!("s{flag}");
        let link = magnet(&place, &file);
        let source = if flag == "--v1" { &link } else { text(&file) };
        let mut ccbt = Ccbt::start(&place, &state, 0, &["mount", source, text(&mnt), &peer]);
        ccbt.wait_for("Mounted top");
        let big = fs::read(top.join("big")).unwrap();
        let mounted = fs::File::open(mnt.join("top/big")).unwrap();
        let begun = Instant::now();
        for at in [50 << 20, 7 << 20, 33_333_333, big.len() - 10] {
            use std::os::unix::fs::FileExt;
            let mut part = vec![0; 65_536.min(big.len() - at)];
            mounted.read_exact_at(&mut part, at as u64).unwrap();
            assert_eq!(part, big[at..at + part.len()], "at {at}");
        }
        println!("{flag}: four reads in {:?}", begun.elapsed());
        let run = place
            .run(&["--state", text(&place.path(&state)), "--json", "torrents"])
            .json();
        let done = run["torrents"][0]["bytes_done"].as_u64().unwrap();
        assert!(done < 16 << 20, "{done} bytes were fetched for four reads");
        same(&top, &mnt.join("top"));
        fs::write(mnt.join("top/new"), "x").unwrap_err();
        assert!(fs::metadata(mnt.join("top/nothing")).is_err());
        let run = place.run(&["--state", text(&place.path(&state)), "unmount", text(&mnt)]);
        assert_eq!(run.code, 0, "{run:?}");
        ccbt.finish();
    }
}

#[test]
fn one_of_two_seeders_is_corrupt() {
    let place = Place::new();
    let top = content(&place, 16);
    let file = torrent(&place, &top, "--v1");
    let (_good, good) = Other::seed(&file, &place.path("src"), 6 << 20);
    // The other one's files change after it has checked them.
    let bad = place.path("bad");
    fs::create_dir_all(&bad).unwrap();
    let copied = Command::new("cp")
        .args(["-r", text(&top), text(&bad)])
        .status()
        .unwrap();
    assert!(copied.success());
    let there = [
        "listen_interfaces=127.0.0.2:0",
        "outgoing_interfaces=127.0.0.2",
    ];
    let (_bad, port) = Other::seed_with(&there, &file, &bad, 6 << 20);
    let big = fs::OpenOptions::new()
        .write(true)
        .open(bad.join("top/big"))
        .unwrap();
    for at in (0..16 << 20).step_by(100_000) {
        std::os::unix::fs::FileExt::write_all_at(&big, b"corrupt", at).unwrap();
    }
    let out = place.path("out");
    let peers = [
        format!("--peer=127.0.0.1:{good}"),
        format!("--peer=127.0.0.2:{port}"),
    ];
    let args = [
        "download",
        text(&file),
        "-o",
        text(&out),
        &peers[0],
        &peers[1],
        "--seed",
    ];
    let ours = free_port();
    let mut ccbt = Ccbt::start(&place, "s", ours, &args);
    ccbt.wait_for("Downloaded top");
    same(&top, &out.join("top"));
    let log = ccbt.log();
    let dropped: Vec<&str> = log
        .lines()
        .filter(|line| line.contains("it sent wrong bytes"))
        .collect();
    assert!(
        !dropped.is_empty() && dropped.iter().all(|line| line.contains(&port.to_string())),
        "{log}"
    );
    // It is not let in either.
    let hash = info_hash(&magnet(&place, &file));
    assert_eq!(plain_handshake_from("127.0.0.2", ours, &hash).len(), 0);
    assert_eq!(plain_handshake_from("127.0.0.3", ours, &hash).len(), 68);
}

/// Settings of libtorrent under which it speaks RC4 and nothing else.
const RC4_ONLY: [&str; 3] = ["out_enc_policy=0", "in_enc_policy=0", "allowed_enc_level=2"];

/// 20 bytes of the magnet link.
fn info_hash(magnet: &str) -> Vec<u8> {
    let hex = magnet.split("btih:").nth(1).unwrap().as_bytes();
    data_encoding::HEXLOWER.decode(&hex[..40]).unwrap()
}

/// What answers a plain handshake, until the connection ends or 68 bytes are there.
fn plain_handshake(port: u16, info_hash: &[u8]) -> Vec<u8> {
    plain_handshake_from("127.0.0.1", port, info_hash)
}

fn plain_handshake_from(ip: &str, port: u16, info_hash: &[u8]) -> Vec<u8> {
    use socket2::{Domain, Socket, Type};
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    let local: IpAddr = ip.parse().unwrap();
    socket
        .bind(&std::net::SocketAddr::new(local, 0).into())
        .unwrap();
    let there = std::net::SocketAddr::from(([127, 0, 0, 1], port));
    socket.connect(&there.into()).unwrap();
    let mut stream = TcpStream::from(socket);
    let head = b"\x13BitTorrent protocol\0\0\0\0\0\0\0\0";
    let ours = [&head[..], info_hash, b"-XX0000-aaaaaaaaaaaa"].concat();
    // Who is not let in may find the connection closed already.
    drop(stream.write_all(&ours));
    let mut answer = Vec::new();
    drop(stream.take(68).read_to_end(&mut answer));
    answer
}

#[test]
fn encrypted_from_and_to_libtorrent() {
    let place = Place::new();
    let top = content(&place, 16);
    let file = torrent(&place, &top, "--v1");
    let hash = info_hash(&magnet(&place, &file));
    // Each side insists once; the other would take anything.
    for (n, (mode, theirs)) in [("prefer", &RC4_ONLY[..]), ("require", &[])]
        .iter()
        .enumerate()
    {
        let env = [("CCBT_NETWORK_ENCRYPTION", *mode)];
        let (_seeder, port) = Other::seed_with(theirs, &file, &place.path("src"), 0);
        let out = place.path(&format!("out{n}"));
        let peer = format!("--peer=127.0.0.1:{port}");
        let args = ["download", text(&file), "-o", text(&out), &peer];
        Ccbt::start_on(&place, &format!("l{n}"), "127.0.0.1:0", &env, &args).finish();
        same(&top, &out.join("top"));

        let port = free_port();
        let src = place.path("src");
        let args = ["download", text(&file), "-o", text(&src), "--seed"];
        let listen = format!("127.0.0.1:{port}");
        let mut ccbt = Ccbt::start_on(&place, &format!("s{n}"), &listen, &env, &args);
        ccbt.wait_for("Downloaded top");
        let out = place.path(&format!("theirs{n}"));
        Other::leech_with(theirs, text(&file), &out, port, "127.0.0.1");
        same(&top, &out.join("top"));
        let plain = plain_handshake(port, &hash);
        assert_eq!(plain.len(), if *mode == "require" { 0 } else { 68 });
    }
}

#[test]
fn who_has_no_encryption_is_called_without() {
    let place = Place::new();
    let top = content(&place, 4);
    let file = torrent(&place, &top, "--v1");
    let plain_only = ["in_enc_policy=2", "out_enc_policy=2"];
    let (_seeder, port) = Other::seed_with(&plain_only, &file, &place.path("src"), 0);
    let out = place.path("out");
    let peer = format!("--peer=127.0.0.1:{port}");
    let args = ["download", text(&file), "-o", text(&out), &peer];
    Ccbt::start(&place, "s", 0, &args).finish();
    same(&top, &out.join("top"));
}

#[test]
fn by_utp_alone_from_and_to_libtorrent() {
    // It still has a TCP port, and closes what comes there.
    let utp_only = [
        "enable_outgoing_tcp=0",
        "enable_incoming_tcp=0",
        "enable_outgoing_utp=1",
        "enable_incoming_utp=1",
    ];
    let place = Place::new();
    let top = content(&place, 8);
    let file = torrent(&place, &top, "--v1");
    for (n, encryption) in [&[][..], &RC4_ONLY].iter().enumerate() {
        let theirs = [&utp_only[..], encryption].concat();
        let (_seeder, port) = Other::seed_with(&theirs, &file, &place.path("src"), 0);
        let out = place.path(&format!("out{n}"));
        let peer = format!("--peer=127.0.0.1:{port}");
        let args = ["download", text(&file), "-o", text(&out), &peer];
        Ccbt::start(&place, &format!("l{n}"), 0, &args).finish();
        same(&top, &out.join("top"));

        let port = free_port();
        let src = place.path("src");
        let args = ["download", text(&file), "-o", text(&src), "--seed"];
        let mut ccbt = Ccbt::start(&place, &format!("s{n}"), port, &args);
        ccbt.wait_for("Downloaded top");
        let out = place.path(&format!("theirs{n}"));
        Other::leech_with(&theirs, text(&file), &out, port, "127.0.0.1");
        same(&top, &out.join("top"));
    }
}

#[test]
fn by_ipv6_from_and_to_libtorrent() {
    let place = Place::new();
    let top = content(&place, 8);
    let file = torrent(&place, &top, "--v1");
    let by_6 = ["listen_interfaces=[::1]:0"];
    let (_seeder, port) = Other::seed_with(&by_6, &file, &place.path("src"), 0);
    let out = place.path("out");
    let peer = format!("--peer=[::1]:{port}");
    let args = ["download", text(&file), "-o", text(&out), &peer];
    Ccbt::start_on(&place, "l", "[::]:0", &[], &args).finish();
    same(&top, &out.join("top"));

    let port = free_port();
    let src = place.path("src");
    let args = ["download", text(&file), "-o", text(&src), "--seed"];
    let mut ccbt = Ccbt::start_on(&place, "s", &format!("[::]:{port}"), &[], &args);
    ccbt.wait_for("Downloaded top");
    // The same listener, by both families.
    for (n, (settings, ip)) in [(&by_6[..], "::1"), (&[], "127.0.0.1")].iter().enumerate() {
        let out = place.path(&format!("theirs{n}"));
        Other::leech_with(settings, text(&file), &out, port, ip);
        same(&top, &out.join("top"));
    }
}

#[test]
fn a_second_connection_of_one_peer_is_refused() {
    let place = Place::new();
    let top = content(&place, 1);
    let file = torrent(&place, &top, "--v1");
    let hash = info_hash(&magnet(&place, &file));
    let port = free_port();
    let src = place.path("src");
    let args = ["download", text(&file), "-o", text(&src), "--seed"];
    let mut ccbt = Ccbt::start(&place, "s", port, &args);
    ccbt.wait_for("Downloaded top");
    let ours = [
        &b"\x13BitTorrent protocol\0\0\0\0\0\0\0\0"[..],
        &hash,
        b"-XX0000-aaaaaaaaaaaa",
    ]
    .concat();
    let connect = || {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
        stream.write_all(&ours).unwrap();
        let mut theirs = [0; 68];
        stream.read_exact(&mut theirs).unwrap();
        stream
    };
    let mut first = connect();
    // What comes behind the handshake comes from the torrent, which knows the first by then.
    first.read_exact(&mut [0; 5]).unwrap();
    let mut second = connect();
    assert_eq!(second.read_to_end(&mut Vec::new()).unwrap_or(0), 0);
    first
        .set_read_timeout(Some(Duration::from_millis(200)))
        .unwrap();
    loop {
        match first.read(&mut [0; 1000]) {
            Ok(0) => panic!("the first connection ended"),
            Ok(_) => {}
            Err(error) => {
                assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock);
                break;
            }
        }
    }
}

/// A proxy for SOCKS5 and HTTP CONNECT that leads everything to this machine, and notes where it should have led.
struct Proxy {
    port: u16,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Proxy {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let notes = Arc::clone(&asked);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let notes = Arc::clone(&notes);
                std::thread::spawn(move || Self::serve(stream.unwrap(), &notes));
            }
        });
        Self { port, asked }
    }

    fn serve(mut stream: TcpStream, notes: &Mutex<Vec<String>>) {
        let mut first = [0; 1];
        stream.read_exact(&mut first).unwrap();
        let (target, answer) = match first[0] {
            5 => Self::socks(&mut stream),
            _ => Self::http(&mut stream),
        };
        let port = target.rsplit_once(':').unwrap().1.parse::<u16>().unwrap();
        notes.lock().unwrap().push(target);
        let Ok(mut there) = TcpStream::connect(("127.0.0.1", port)) else {
            return;
        };
        stream.write_all(answer).unwrap();
        let (mut a, mut b) = (stream.try_clone().unwrap(), there.try_clone().unwrap());
        std::thread::spawn(move || {
            drop(std::io::copy(&mut a, &mut b));
            drop(b.shutdown(Shutdown::Both));
        });
        drop(std::io::copy(&mut there, &mut stream));
        drop(stream.shutdown(Shutdown::Both));
    }

    fn socks(stream: &mut TcpStream) -> (String, &'static [u8]) {
        let mut byte = || {
            let mut byte = [0; 1];
            stream.read_exact(&mut byte).unwrap();
            byte[0]
        };
        for _ in 0..byte() {
            byte();
        }
        stream.write_all(&[5, 0]).unwrap();
        let mut head = [0; 4];
        stream.read_exact(&mut head).unwrap();
        let mut take = |len: usize| {
            let mut bytes = vec![0; len];
            stream.read_exact(&mut bytes).unwrap();
            bytes
        };
        let host = match head[3] {
            1 => Ipv4Addr::from(<[u8; 4]>::try_from(take(4)).unwrap()).to_string(),
            3 => {
                let len = take(1)[0];
                String::from_utf8(take(len.into())).unwrap()
            }
            kind => panic!("address of kind {kind}"),
        };
        let port = u16::from_be_bytes(take(2).try_into().unwrap());
        (format!("{host}:{port}"), b"\x05\0\0\x01\0\0\0\0\0\0")
    }

    fn http(stream: &mut TcpStream) -> (String, &'static [u8]) {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0; 1];
            stream.read_exact(&mut byte).unwrap();
            head.push(byte[0]);
        }
        let head = String::from_utf8(head).unwrap();
        let target = head
            .strip_prefix("ONNECT ")
            .unwrap()
            .split(' ')
            .next()
            .unwrap();
        (target.to_owned(), b"HTTP/1.1 200 OK\r\n\r\n")
    }
}

/// A tracker that names one peer to everybody, and notes who asks.
fn tracker(peer: SocketAddrV4) -> (u16, Arc<Mutex<Vec<IpAddr>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let asked = Arc::new(Mutex::new(Vec::new()));
    let notes = Arc::clone(&asked);
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            notes.lock().unwrap().push(stream.peer_addr().unwrap().ip());
            drop(stream.read(&mut [0; 4096]));
            let addr = [&peer.ip().octets()[..], &peer.port().to_be_bytes()].concat();
            let body = [b"d8:intervali900e5:peers6:", &addr[..], b"e"].concat();
            let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len());
            drop(stream.write_all(&[head.as_bytes(), &body].concat()));
        }
    });
    (port, asked)
}

/// The torrent of `top`, to be announced to `trackers`; other URLs are those of web seeds.
fn announced(place: &Place, top: &Path, trackers: &[&str]) -> PathBuf {
    let file = place.path("announced.torrent");
    let args = ["create", text(top), "-o", text(&file), "--v1"];
    let option = |url: &&str| match url.contains("announce") {
        true => format!("--tracker={url}"),
        false => format!("--web-seed={url}"),
    };
    let urls: Vec<String> = trackers.iter().map(option).collect();
    let urls = urls.iter().map(String::as_str);
    let args = [&args[..], &["--piece-size", "256KiB"]].concat();
    let args: Vec<&str> = args.into_iter().chain(urls).collect();
    let run = place.run(&args);
    assert_eq!(run.code, 0, "{}", run.stderr);
    file
}

#[test]
fn everything_comes_from_the_address_it_is_bound_to() {
    let place = Place::new();
    let top = content(&place, 4);
    let seeded = torrent(&place, &top, "--v1");
    let (_seeder, seeder) = Other::seed(&seeded, &place.path("src"), 0);
    let (port, asked) = tracker(SocketAddrV4::new(Ipv4Addr::LOCALHOST, seeder));
    let file = announced(
        &place,
        &top,
        &[&format!("http://127.0.0.1:{port}/announce")],
    );
    let out = place.path("out");
    let env = [("CCBT_NETWORK_BIND", "127.0.0.9")];
    let args = ["download", text(&file), "-o", text(&out), "--seed"];
    let ours = free_port();
    let mut ccbt = Ccbt::start_on(&place, "s", &format!("[::]:{ours}"), &env, &args);
    ccbt.wait_for("Downloaded top");
    same(&top, &out.join("top"));
    let here = IpAddr::from([127, 0, 0, 9]);
    let asked = asked.lock().unwrap().clone();
    assert!(
        !asked.is_empty() && asked.iter().all(|ip| *ip == here),
        "{asked:?}"
    );
    assert!(TcpStream::connect((here, ours)).is_ok());
    assert!(TcpStream::connect((Ipv4Addr::LOCALHOST, ours)).is_err());
}

#[test]
fn who_is_on_the_list_is_not_let_in() {
    let place = Place::new();
    let top = content(&place, 1);
    let file = torrent(&place, &top, "--v1");
    let list = place.path("list.p2p");
    fs::write(&list, "# those\nsomebody:127.0.0.2-127.0.0.2\n").unwrap();
    let env = [("CCBT_NETWORK_IP_FILTER", text(&list))];
    let src = place.path("src");
    let args = ["download", text(&file), "-o", text(&src), "--seed"];
    let port = free_port();
    let listen = format!("127.0.0.1:{port}");
    let mut ccbt = Ccbt::start_on(&place, "s", &listen, &env, &args);
    ccbt.wait_for("Downloaded top");
    let hash = info_hash(&magnet(&place, &file));
    assert_eq!(plain_handshake_from("127.0.0.2", port, &hash).len(), 0);
    assert_eq!(plain_handshake_from("127.0.0.3", port, &hash).len(), 68);
}

/// Nobody but the proxy can find the tracker by its name or reach the peer at its address.
#[test]
fn everything_goes_through_the_proxy() {
    let place = Place::new();
    let top = content(&place, 4);
    let seeded = torrent(&place, &top, "--v1");
    let (_seeder, seeder) = Other::seed(&seeded, &place.path("src"), 0);
    let peer = SocketAddrV4::new(Ipv4Addr::new(203, 0, 113, 7), seeder);
    let url = format!("http://tracker.invalid:{}/announce", tracker(peer).0);
    // It does not have everything, so the peer is needed too.
    let web = WebServer::start(&place.path("src"), Manner::Lacks);
    let seed = format!("web.invalid:{}", web.port);
    let url_of_seed = format!("http://{seed}/");
    let urls = [&url[..], "udp://127.0.0.1:9/announce", &url_of_seed];
    let file = announced(&place, &top, &urls);
    for scheme in ["socks5", "http"] {
        let proxy = Proxy::start();
        let way = format!("{scheme}://127.0.0.1:{}", proxy.port);
        let out = place.path(scheme);
        let env = [("CCBT_NETWORK_PROXY", &way[..])];
        let args = ["download", text(&file), "-o", text(&out)];
        Ccbt::start_on(&place, &format!("s{scheme}"), "127.0.0.1:0", &env, &args).finish();
        same(&top, &out.join("top"));
        let asked = proxy.asked.lock().unwrap().clone();
        let name = url
            .strip_prefix("http://")
            .unwrap()
            .split('/')
            .next()
            .unwrap();
        for wanted in [name.to_owned(), peer.to_string(), seed.clone()] {
            assert!(asked.contains(&wanted), "{wanted} is not in {asked:?}");
        }
    }
}

#[test]
fn two_that_call_each_other_are_connected_once() {
    let place = Place::new();
    let top = content(&place, 8);
    let file = torrent(&place, &top, "--v1");
    // Nobody has anything, so both look for peers all the time.
    let ports = [free_port(), free_port()];
    let start = |n: usize| {
        let peer = format!("--peer=127.0.0.1:{}", ports[1 - n]);
        let out = place.path(&format!("out{n}"));
        let args = ["download", text(&file), "-o", text(&out), &peer];
        Ccbt::start(&place, &format!("s{n}"), ports[n], &args)
    };
    let both = [start(0), start(1)];
    let peers = |n: usize| {
        let state = place.path(&format!("s{n}"));
        let run = place.run(&["--state", text(&state), "--json", "torrent", "top", "peers"]);
        // It may not have begun to answer.
        let answer = (run.code == 0).then(|| run.json());
        answer.map_or(0, |answer| answer["peers"].as_array().unwrap().len())
    };
    let until = Instant::now() + PATIENCE;
    let mut seen = 0;
    while seen < 10 {
        let counts = [peers(0), peers(1)];
        assert!(counts.iter().all(|count| *count <= 1), "{counts:?}");
        // The second call comes when the first one that failed is tried again.
        let twice = both.iter().any(|one| one.log().contains("connected twice"));
        seen += usize::from(twice && counts == [1, 1]);
        assert!(Instant::now() < until, "{counts:?}");
    }
}
