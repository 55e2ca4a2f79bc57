//! What somebody on the wire sees of a whole conversation: a handshake on a hash, then noise.
//!
//! Two daemons in a network namespace of their own, with DHT and LSD on, and every packet of it recorded.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use ccbt::share::{Capability, Link};
use mainline::Testnet;
use socket2::{Domain, Protocol, Socket, Type};

use crate::member::is_timeout;
use crate::netns::Netns;
use crate::support::{Daemon, Links, Options, Rng, World, ccbt, wait_equal};

/// All protocols, in network byte order, as AF_PACKET wants it.
const ETH_P_ALL: i32 = 0x0003_u16.to_be() as i32;
/// Kernel buffer of the recorder: more than is said in the whole test.
const BUFFER_BYTES: usize = 32 << 20;

/// Both directions of every connection, and every datagram.
#[derive(Default)]
struct Recorded {
    /// By the two ports: what comes next, and the bytes so far.
    streams: BTreeMap<(u16, u16), (Option<u32>, Vec<u8>)>,
    datagrams: Vec<Vec<u8>>,
}

impl Recorded {
    /// One IPv4 packet.
    fn packet(&mut self, packet: &[u8]) -> Option<()> {
        let header = usize::from(packet.first()? & 15) * 4;
        let total = usize::from(u16::from_be_bytes(packet.get(2..4)?.try_into().ok()?));
        // A packet beyond 64 KiB (offload on loopback) says 0.
        let end = if total == 0 { packet.len() } else { total };
        let payload = packet.get(header..end)?;
        let port = |at: usize| {
            Some(u16::from_be_bytes(
                payload.get(at..at + 2)?.try_into().ok()?,
            ))
        };
        match packet.get(9)? {
            17 => self.datagrams.push(payload.get(8..)?.to_vec()),
            6 => {
                let seq = u32::from_be_bytes(payload.get(4..8)?.try_into().ok()?);
                let data = payload.get(usize::from(payload.get(12)? >> 4) * 4..)?;
                let is_syn = payload.get(13)? & 2 != 0;
                self.segment((port(0)?, port(2)?), seq, is_syn, data);
            }
            _ => {}
        }
        Some(())
    }

    /// Loopback shows each packet going out and coming in: only what is next counts.
    fn segment(&mut self, ports: (u16, u16), seq: u32, is_syn: bool, data: &[u8]) {
        let (next, bytes) = self.streams.entry(ports).or_default();
        if is_syn {
            next.get_or_insert(seq.wrapping_add(1));
        } else if *next == Some(seq) {
            bytes.extend_from_slice(data);
            *next = Some(seq.wrapping_add(data.len() as u32));
        }
    }
}

/// Records everything on the loopback of the namespace it is started in.
struct Recorder {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Recorded>,
}

impl Recorder {
    fn start() -> Self {
        let socket =
            Socket::new(Domain::PACKET, Type::DGRAM, Some(Protocol::from(ETH_P_ALL))).unwrap();
        rustix::net::sockopt::set_socket_recv_buffer_size_force(&socket, BUFFER_BYTES).unwrap();
        let soon = Some(Duration::from_millis(100));
        socket.set_read_timeout(soon).unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let (mut recorded, mut buf) = (Recorded::default(), vec![0; 256 * 1024]);
            let mut socket = socket;
            loop {
                match socket.read(&mut buf) {
                    Ok(n) => drop(recorded.packet(&buf[..n])),
                    Err(error) if !is_timeout(&error) => panic!("{error}"),
                    Err(_) if stopped.load(Ordering::Relaxed) => return recorded,
                    Err(_) => {}
                }
            }
        });
        Self { stop, thread }
    }

    fn finish(self) -> Recorded {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap()
    }
}

/// What must not be seen, with its name.
type Secrets = Vec<(String, Vec<u8>)>;

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Vec<u8> {
    (0..text.len() / 2)
        .map(|n| u8::from_str_radix(&text[2 * n..2 * n + 2], 16).unwrap())
        .collect()
}

/// Raw, as hex digits, and what stands in a link.
fn secret(secrets: &mut Secrets, what: &str, bytes: &[u8]) {
    secrets.push((what.to_owned(), bytes.to_vec()));
    secrets.push((format!("{what} in hex"), hex(bytes).into_bytes()));
    secrets.push((
        format!("{what} in HEX"),
        hex(bytes).to_uppercase().into_bytes(),
    ));
}

fn keys_of(secrets: &mut Secrets, links: &Links) {
    let link: Link = links.write.parse().unwrap();
    secret(secrets, "folder id", link.folder().as_bytes());
    let Capability::Write(write) = link.capability() else {
        panic!("not a write link");
    };
    let read = write.read_key();
    let discover = read.discover_key();
    secret(secrets, "write key", write.expose());
    secret(secrets, "public write key", &write.public().0);
    secret(secrets, "read key", read.expose());
    secret(secrets, "discovery key", discover.expose());
    secret(secrets, "pre-shared key", &discover.psk()[..]);
    for (what, link) in [("write link", &links.write), ("read link", &links.read)] {
        secrets.push((what.to_owned(), link.as_bytes()[5..60].to_vec()));
    }
}

/// What is in a file: its hash and those of its chunks.
fn hashes_of(secrets: &mut Secrets, state: &Path, file: &Path) {
    let args = ["xet", "inspect", file.to_str().unwrap(), "--json"];
    let output = ccbt(state).args(args).output().unwrap();
    let told: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let mut take = |what: &str, value: &serde_json::Value| {
        let text = value.as_str().unwrap();
        secret(secrets, what, &unhex(text));
    };
    take("file hash", &told["file_hash"]);
    let chunks = told["chunks"].as_array().unwrap();
    assert!(!chunks.is_empty());
    for chunk in chunks {
        take("chunk hash", &chunk["hash"]);
    }
}

fn about(secrets: &mut Secrets, daemon: &Daemon) {
    let keys: serde_json::Value = serde_json::from_str(&daemon.run(&["keys", "--json"])).unwrap();
    let device = keys["device_key"].as_str().unwrap();
    secret(secrets, "device key", &unhex(device));
    let root = daemon.status()["folders"][0]["root"].clone();
    let root = root.as_str().unwrap();
    secrets.push(("root".to_owned(), unhex(root)));
    secrets.push(("root in hex".to_owned(), root.as_bytes().to_vec()));
}

fn contains(text: &[u8], what: &[u8]) -> bool {
    text.windows(what.len()).any(|part| part == what)
}

/// A DHT message without the public key of the item it stores: nodes need it to check the item's signature, and it gives
/// no right.
fn without_item_key(datagram: &[u8]) -> Vec<u8> {
    const MARK: &[u8] = b"1:k32:";
    let mut bytes = datagram.to_vec();
    let at = bytes.windows(MARK.len()).position(|part| part == MARK);
    if let Some(at) = at.filter(|_| datagram.starts_with(b"d")) {
        let from = at + MARK.len();
        let to = bytes.len().min(from + 32);
        bytes[from..to].fill(0);
    }
    bytes
}

/// Share, mount, read, edit on both sides: all that members say to each other.
fn converse(world: &World) -> Secrets {
    let (src, at_a, at_b) = (world.dir("src"), world.dir("at-a"), world.dir("at-b"));
    let mut rng = Rng(5);
    fs::write(src.join("a-telling-name.txt"), rng.bytes(120_000)).unwrap();
    fs::create_dir(src.join("private-directory")).unwrap();
    let letter = b"the content of this letter is nobody else's business. ".repeat(20);
    fs::write(src.join("private-directory/letter"), &letter).unwrap();
    let testnet = Testnet::builder(5).build().unwrap();
    let mut options = Options {
        dht_bootstrap: Some(testnet.bootstrap),
        ..Options::default()
    };
    let (mut a, links) = world.share_with(&src, "a", &options);
    a.mount_again(&src, &at_a);
    options.peers = vec![([127, 0, 0, 1], a.port).into()];
    let b = world.mount_with(&links.write, &at_b, "b", &options);
    wait_equal(&src, &at_b, &[&a, &b]);

    let mut secrets = Secrets::new();
    about(&mut secrets, &a);
    fs::write(
        at_b.join("another-telling-name"),
        b"an edit that is nobody's business",
    )
    .unwrap();
    fs::rename(
        at_b.join("private-directory"),
        at_b.join("renamed-directory"),
    )
    .unwrap();
    wait_equal(&at_a, &at_b, &[&a, &b]);
    for daemon in [&a, &b] {
        about(&mut secrets, daemon);
        daemon.wait("the DHT", || {
            daemon.status()["daemon"]["dht_nodes"].as_u64() > Some(0)
        });
    }
    keys_of(&mut secrets, &links);
    hashes_of(&mut secrets, &a.state, &src.join("a-telling-name.txt"));
    for name in [
        "a-telling-name",
        "private-directory",
        "letter",
        "another-telling-name",
        "renamed-directory",
        "nobody else's",
        "nobody's business",
    ] {
        secrets.push((format!("`{name}`"), name.as_bytes().to_vec()));
    }
    // Announces go out when a daemon starts and are repeated; give the datagrams time to be sent.
    std::thread::sleep(Duration::from_secs(2));
    secrets
}

#[test]
fn somebody_on_the_wire_learns_nothing_but_the_info_hash_and_addresses() {
    let world = World::new();
    let net = Netns::new();
    net.ip("link set lo multicast on");
    net.ip("route add 224.0.0.0/4 dev lo");
    let recorder = net.enter(Recorder::start);
    let secrets = net.enter(|| converse(&world));
    let recorded = recorder.finish();

    let said: usize = recorded
        .streams
        .values()
        .map(|(_, bytes)| bytes.len())
        .sum();
    assert!(said > 120_000, "only {said} bytes of TCP were recorded");
    let datagrams = recorded.datagrams.len();
    assert!(datagrams > 10, "only {datagrams} datagrams were recorded");
    let lsd = |datagram: &&Vec<u8>| datagram.starts_with(b"BT-SEARCH");
    assert!(
        recorded.datagrams.iter().any(|d| lsd(&d)),
        "LSD said nothing"
    );
    let streams = recorded.streams.values().map(|(_, bytes)| bytes.clone());
    let datagrams = recorded.datagrams.iter().map(|d| without_item_key(d));
    for bytes in streams.chain(datagrams) {
        for (what, secret) in &secrets {
            assert!(!contains(&bytes, secret), "{what} is on the wire");
        }
        // Further on, four letters may come up in noise.
        let open = bytes[..bytes.len().min(2048)].to_ascii_lowercase();
        assert!(
            !contains(&open, b"ccbt"),
            "the client's name is on the wire"
        );
    }
}

#[test]
fn the_recorder_sees_what_is_said() {
    let net = Netns::new();
    let recorder = net.enter(Recorder::start);
    net.enter(|| {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let mut there = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (mut here, _) = listener.accept().unwrap();
        std::io::Write::write_all(&mut there, &[b'x'; 100_000]).unwrap();
        std::io::Write::write_all(&mut there, b"a telling name").unwrap();
        here.read_exact(&mut vec![0; 100_014]).unwrap();
    });
    let recorded = recorder.finish();
    let found = recorded
        .streams
        .values()
        .filter(|(_, bytes)| contains(bytes, b"xa telling name") && bytes.len() == 100_014);
    assert_eq!(found.count(), 1);
}
