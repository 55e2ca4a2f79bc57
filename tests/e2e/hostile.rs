//! Hostile peers against a real daemon: they are dropped and counted, cost little memory, and nobody else notices.

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use bytes::Bytes;
use ccbt::folder::snapshot::{Snapshot, snapshot_ref};
use ccbt::folder::tree::NodeKind;
use ccbt::proto::handshake::{HANDSHAKE_LEN, Handshake};
use ccbt::proto::ut_xet::{
    Chunk, Delta, Frame, Get, Holding, Indexes, NODE_LEN_MAX, ObjCodec, ObjectRef, Priority,
};
use ccbt::random;
use ccbt::share::{
    Capability, Head, HeadClaims, Incarnation, Link, NodeId, OwnerSeed, SnapshotId, Suite,
    Unverified,
};
use rustix::process::{Resource, getrlimit, setrlimit};

use crate::member::{Keys, Member, connect_from, is_timeout};
use crate::support::{Daemon, Links, Options, Rng, World, tree, wait_equal};

/// What hostile peers may cost, in KiB of resident memory.
const EXTRA_KIB_MAX: u64 = 64 * 1024;
/// A stranger has 5 s; the rest is for a loaded machine.
const SETUP_TIME: Duration = Duration::from_secs(25);

const DROPPED: &str = "ccbt_peers_dropped_total";
const UNPROVEN: &str = "ccbt_connections_unproven_total";
const REFUSED: &str = "ccbt_connections_refused_total";

/// A daemon under attack that serves an honest reader and writer.
struct Stage {
    _world: World,
    a: Daemon,
    b: Daemon,
    links: Links,
    src: PathBuf,
    at_a: PathBuf,
    at_b: PathBuf,
    idle_kib: u64,
}

impl Stage {
    fn new() -> Self {
        let world = World::new();
        let (src, at_a, at_b) = (world.dir("src"), world.dir("at-a"), world.dir("at-b"));
        let mut rng = Rng(3);
        fs::write(src.join("before"), rng.bytes(6 << 20)).unwrap();
        fs::write(src.join("during"), rng.bytes(6 << 20)).unwrap();
        fs::write(src.join("notes"), b"first\n").unwrap();
        let (mut a, links) = world.share(&src, "a");
        a.mount_again(&src, &at_a);
        let b = world.mount(&links.write, &at_b, "b", &[&a]);
        assert_eq!(
            fs::read(at_b.join("before")).unwrap(),
            fs::read(src.join("before")).unwrap()
        );
        let idle_kib = memory_kib(a.pid(), "VmRSS");
        // From here on the peak counts.
        fs::write(format!("/proc/{}/clear_refs", a.pid()), "5").unwrap();
        Self {
            _world: world,
            a,
            b,
            links,
            src,
            at_a,
            at_b,
            idle_kib,
        }
    }

    /// The honest member has read a file and edits travel both ways; little memory was used.
    fn others_are_unharmed(&self) {
        assert_eq!(
            fs::read(self.at_b.join("during")).unwrap(),
            fs::read(self.src.join("during")).unwrap()
        );
        fs::write(self.at_b.join("notes"), b"by b\n").unwrap();
        self.a.wait("b's edit at a", || {
            fs::read(self.at_a.join("notes")).is_ok_and(|text| text == b"by b\n")
        });
        fs::write(self.at_a.join("new"), b"by a\n").unwrap();
        self.b.wait("a's edit at b", || {
            fs::read(self.at_b.join("new")).is_ok_and(|text| text == b"by a\n")
        });
        wait_equal(&self.at_a, &self.at_b, &[&self.a, &self.b]);
        let peak = memory_kib(self.a.pid(), "VmHWM");
        assert!(
            peak <= self.idle_kib + EXTRA_KIB_MAX,
            "idle {} KiB, at most {peak} KiB",
            self.idle_kib
        );
    }
}

fn memory_kib(pid: u32, field: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with(field)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// Everything the other side says until it closes; `None` if it does not close in time.
fn until_closed(stream: &mut TcpStream, patience: Duration) -> Option<Vec<u8>> {
    let (end, mut heard) = (Instant::now() + patience, Vec::new());
    let mut buf = [0; 4096];
    while Instant::now() < end {
        stream
            .set_read_timeout(Some(Duration::from_millis(200)))
            .unwrap();
        match stream.read(&mut buf) {
            Ok(0) => return Some(heard),
            Ok(n) => heard.extend_from_slice(&buf[..n]),
            Err(error) if is_timeout(&error) => {}
            Err(_) => return Some(heard),
        }
    }
    None
}

fn extended(id: u8, payload: &[u8]) -> Vec<u8> {
    let mut message = (payload.len() as u32 + 2).to_be_bytes().to_vec();
    message.extend([20, id]);
    message.extend(payload);
    message
}

#[test]
fn strangers_are_dropped_and_counted_and_learn_nothing() {
    let stage = Stage::new();
    let port = stage.a.port;
    let swarm = *Keys::of(&stage.links.write).credentials.swarm().as_bytes();
    let handshake = Handshake::with_extensions(swarm, random::bytes()).encode();
    let mut rng = Rng(4);
    let extensions = extended(0, b"d1:md6:ut_xeti1eee");
    let introduced = [&handshake[..], &extensions].concat();
    let attacks: Vec<(&str, Vec<u8>)> = vec![
        ("garbage", rng.bytes(100_000)),
        ("another swarm", {
            let other = Handshake::with_extensions([7; 20], random::bytes());
            other.encode().to_vec()
        }),
        ("a message of 4 GiB", [&handshake[..], &[0xff; 64]].concat()),
        (
            "the extension handshake cut off",
            [&handshake[..], &extensions[..9]].concat(),
        ),
        (
            "bencode without end",
            [&handshake[..], &extended(0, &[b'l'; 1000])].concat(),
        ),
        (
            "noise without the key",
            [&introduced[..], &extended(1, &rng.bytes(96))].concat(),
        ),
        (
            "a plain frame",
            [&introduced[..], &extended(1, &[2, 0, 0, 0, 2, 0])].concat(),
        ),
        (
            "ordinary bittorrent",
            [&introduced[..], &[0, 0, 0, 1, 2]].concat(),
        ),
        ("a handshake that stops", handshake[..30].to_vec()),
        ("silence", Vec::new()),
    ];
    let before = stage.a.metric(UNPROVEN);
    let streams: Vec<(&str, TcpStream)> = attacks
        .iter()
        .map(|(what, bytes)| {
            let mut stream = connect_from(66, port);
            // The daemon may have closed before everything was sent.
            let _refused = stream.write_all(bytes);
            (*what, stream)
        })
        .collect();
    let known = [&[0; HANDSHAKE_LEN][..], &extensions].concat();
    for (what, mut stream) in streams {
        let heard = until_closed(&mut stream, SETUP_TIME);
        let mut heard = heard.unwrap_or_else(|| panic!("{what}: still open\n{}", stage.a.log()));
        if let Some(theirs) = heard.get_mut(..HANDSHAKE_LEN) {
            assert_eq!(theirs[28..48], swarm);
            theirs.fill(0);
        }
        assert!(known.starts_with(&heard), "{what}: heard {heard:?}");
    }
    stage.a.wait("all of them to be counted", || {
        stage.a.metric(UNPROVEN) >= before + attacks.len() as u64
    });
    stage.others_are_unharmed();
}

#[test]
fn a_thousand_connections_at_once_are_held_off() {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    setrlimit(Resource::Nofile, limit).unwrap();
    let stage = Stage::new();
    let open = fs::read_to_string(format!("/proc/{}/limits", stage.a.pid())).unwrap();
    let open = open.lines().find(|l| l.starts_with("Max open")).unwrap();
    let open: Vec<&str> = open.split_whitespace().collect();
    assert_eq!(open[3], open[4], "the soft limit is raised to the hard one");

    let start = Instant::now();
    let mut streams: Vec<TcpStream> = (0..1000).map(|_| connect_from(66, stage.a.port)).collect();
    stage.others_are_unharmed();
    stage.a.wait("the many to be turned away", || {
        stage.a.metric(REFUSED) >= 700 && stage.a.metric(UNPROVEN) >= 200
    });
    for stream in &mut streams {
        let closed = until_closed(stream, SETUP_TIME);
        assert!(closed.is_some(), "open after {:?}", start.elapsed());
    }
    stage.others_are_unharmed();
    let again = connect_from(67, stage.a.port);
    drop(again);
    let keys = Keys::of(&stage.links.write);
    let _served = Member::connect(68, stage.a.port, &keys);
}

/// The newest heads as the daemon tells every member.
fn newest_heads(member: &mut Member) -> Vec<Unverified<Head>> {
    member.hear(|frame| match frame {
        Frame::Heads(heads) if !heads.is_empty() => Some(heads),
        _ => None,
    })
}

fn snapshot_of(member: &mut Member, id: SnapshotId) -> Snapshot {
    let kind = NodeKind::Snapshot.code();
    let get = Get {
        req: 1,
        priority: Priority::Blocked,
        objects: vec![ObjectRef { kind, id }],
    };
    member.say(&Frame::Get(get)).unwrap();
    let obj = member.hear(|frame| match frame {
        Frame::Obj(obj) => Some(obj),
        _ => None,
    });
    let bytes = match obj.codec {
        ObjCodec::Raw => obj.bytes.to_vec(),
        ObjCodec::Zstd => zstd::bulk::decompress(&obj.bytes, NODE_LEN_MAX as usize).unwrap(),
    };
    Snapshot::decode(&bytes).unwrap()
}

fn claims(keys: &Keys, seq: u64, snapshot: NodeId) -> HeadClaims {
    HeadClaims {
        epoch: 0,
        device: keys.device.id(),
        incarnation: Incarnation::from_bytes([0xee; 8]),
        ctr: 0,
        seq,
        snapshot,
        previous: [0; 32],
        hlc: ccbt::clock::unix_millis() << 16,
        flags: 0,
    }
}

#[test]
fn heads_that_lie_are_not_believed() {
    let stage = Stage::new();
    let (port, keys) = (stage.a.port, Keys::of(&stage.links.write));
    let mut member = Member::connect(66, port, &keys);
    let old = newest_heads(&mut member);
    let (accepted, refused) = ("ccbt_heads_accepted_total", "ccbt_heads_refused_total");

    // An edit makes what we heard old; telling it again changes nothing.
    let at_first = stage.a.metric(accepted);
    fs::write(stage.at_b.join("notes"), b"newer\n").unwrap();
    stage.a.wait("the edit", || {
        fs::read(stage.at_a.join("notes")).is_ok_and(|text| text == b"newer\n")
    });
    stage
        .a
        .wait("its head", || stage.a.metric(accepted) > at_first);
    let (knew, turned_away) = (stage.a.metric(accepted), stage.a.metric(refused));
    member.say(&Frame::Heads(old.clone())).unwrap();
    // What is asked after it is answered after it.
    let theirs = old[0].claimed().claims().clone();
    snapshot_of(&mut member, theirs.snapshot);
    assert_eq!(stage.a.metric(accepted), knew, "a head was believed twice");
    assert_eq!(
        stage.a.metric(refused),
        turned_away,
        "a known head is no offence"
    );
    assert_eq!(fs::read(stage.at_a.join("notes")).unwrap(), b"newer\n");

    // A head of our own is believed; one with the same number and other content is a fork.
    let certificate = keys.certificate();
    member.say(&Frame::Certs(vec![certificate.into()])).unwrap();
    let believed = stage.a.metric(accepted);
    let mine = Head::sign(&keys.device, claims(&keys, 1, theirs.snapshot));
    member.say(&Frame::Heads(vec![mine.into()])).unwrap();
    stage
        .a
        .wait("a good head", || stage.a.metric(accepted) > believed);
    let before = stage.a.metric(refused);
    let fork = Head::sign(&keys.device, claims(&keys, 1, NodeId::from_bytes([9; 32])));
    member.say(&Frame::Heads(vec![fork.into()])).unwrap();
    stage
        .a
        .wait("the fork", || stage.a.metric(refused) > before);

    // A snapshot that claims to have seen what the others will do next would swallow it.
    let mut poison = snapshot_of(&mut member, theirs.snapshot);
    poison.vector = poison
        .vector
        .iter()
        .map(|(inc, _)| (inc, 1 << 40))
        .collect();
    let bytes = poison.encode().unwrap();
    let head = Head::sign(&keys.device, claims(&keys, 2, snapshot_ref(&bytes).id));
    let delta = Delta {
        head: head.into(),
        snapshot: bytes.into(),
        base_root: poison.tree.root,
        raw_len: 0,
        changes: Bytes::new(),
    };
    member.say(&Frame::Delta(Box::new(delta))).unwrap();
    let held = "ccbt_heads_held_back_total";
    stage.a.wait("the poison", || stage.a.metric(held) > 0);

    // A head nobody signed ends the connection.
    let dropped = stage.a.metric(DROPPED);
    let mut bytes = old[0].claimed().encode();
    bytes[44..52].copy_from_slice(&(1_u64 << 63).to_le_bytes());
    let forged = vec![Head::decode(&bytes).unwrap(); 1000];
    member.say(&Frame::Heads(forged)).unwrap();
    assert!(
        member.until_closed(SETUP_TIME, |_| Vec::new()),
        "{}",
        stage.a.log()
    );
    stage
        .a
        .wait("the drop", || stage.a.metric(DROPPED) == dropped + 1);
    stage.others_are_unharmed();
}

/// What is said over and over, given the newest heads.
type Flood = fn(&[Unverified<Head>]) -> Frame;

#[test]
fn a_member_that_floods_is_dropped() {
    let stage = Stage::new();
    let keys = Keys::of(&stage.links.write);
    let floods: [Flood; 3] = [
        |heads| Frame::Heads(heads.iter().cycle().take(1024).cloned().collect()),
        |_| Frame::Peers(vec![SocketAddr::from((Ipv4Addr::LOCALHOST, 1)); 64]),
        |_| Frame::Have {
            snapshot: NodeId::from_bytes(random::bytes()),
            what: Holding::All,
        },
    ];
    for (n, flood) in (0..).zip(floods) {
        let before = stage.a.metric(DROPPED);
        let mut member = Member::connect(70 + n, stage.a.port, &keys);
        let heads = newest_heads(&mut member);
        let end = Instant::now() + SETUP_TIME * 2;
        while member.say(&flood(&heads)).is_ok() {
            assert!(Instant::now() < end, "flood {n} goes on\n{}", stage.a.log());
        }
        stage
            .a
            .wait("the drop", || stage.a.metric(DROPPED) > before);
    }
    stage.others_are_unharmed();
}

#[test]
fn a_reader_gets_the_file_although_a_member_sends_wrong_chunks() {
    let stage = Stage::new();
    let keys = Keys::of(&stage.links.write);
    let listener = TcpListener::bind((Ipv4Addr::new(127, 0, 0, 77), 0)).unwrap();
    let liar_addr = listener.local_addr().unwrap();
    let (met, meeting) = std::sync::mpsc::channel();
    let liar = std::thread::spawn(move || {
        let mut member = Member::accept(&listener, &keys);
        met.send(()).unwrap();
        let mut lies = 0;
        let closed = member.until_closed(SETUP_TIME * 2, |frame| match frame {
            Frame::Want(want) => {
                lies += want.chunks.len();
                (0..want.chunks.len() as u16)
                    .map(|idx| lie(want.req, idx))
                    .collect()
            }
            Frame::Get(get) => vec![Frame::Absent(Indexes {
                req: get.req,
                idx: (0..get.objects.len() as u16).collect(),
            })],
            _ => Vec::new(),
        });
        (closed, lies)
    });
    let at_c = stage._world.dir("at-c");
    let options = Options {
        peers: vec![liar_addr, ([127, 0, 0, 1], stage.a.port).into()],
        ..Options::default()
    };
    let c = stage
        ._world
        .mount_with(&stage.links.write, &at_c, "c", &options);
    meeting.recv().unwrap();
    for name in ["before", "during"] {
        assert_eq!(
            fs::read(at_c.join(name)).unwrap(),
            fs::read(stage.src.join(name)).unwrap()
        );
    }
    let (closed, lies) = liar.join().unwrap();
    assert!(
        closed && lies > 0,
        "closed {closed} after {lies} wrong chunks\n{}",
        c.log()
    );
    assert_eq!(c.metric("ccbt_chunks_wrong_total"), 1);
    assert_eq!(c.metric(DROPPED), 1);
    stage.others_are_unharmed();
}

fn lie(req: u32, idx: u16) -> Frame {
    let bytes = Bytes::from_static(&[0x5a; 50_000]);
    Frame::Chunk(Chunk {
        req,
        idx,
        scheme: 0,
        raw_len: bytes.len() as u32,
        bytes,
    })
}

#[test]
fn what_a_reader_publishes_is_not_shown() {
    let stage = Stage::new();
    let keys = Keys::of_reader(&stage.links.read);
    let mut member = Member::connect(67, stage.a.port, &keys);
    let known = newest_heads(&mut member)[0].claimed().claims().snapshot;
    let (accepted, refused) = ("ccbt_heads_accepted_total", "ccbt_heads_refused_total");
    let before = (stage.a.metric(accepted), stage.a.metric(refused));
    let shown = tree(&stage.at_a).unwrap();

    // An empty folder, by a device of its own: only the certificate is missing.
    let mut snapshot = snapshot_of(&mut member, known);
    let empty = NodeId::from_bytes([0; 32]);
    (snapshot.tree.root, snapshot.files, snapshot.bytes) = (empty, 0, 0);
    let bytes = snapshot.encode().unwrap();
    let head = Head::sign(&keys.device, claims(&keys, 1, snapshot_ref(&bytes).id));
    member
        .say(&Frame::Heads(vec![head.clone().into()]))
        .unwrap();
    let delta = Delta {
        head: head.into(),
        snapshot: bytes.into(),
        base_root: snapshot.tree.root,
        raw_len: 0,
        changes: Bytes::new(),
    };
    member.say(&Frame::Delta(Box::new(delta))).unwrap();
    stage.a.wait("both to be refused", || {
        stage.a.metric(refused) == before.1 + 2
    });
    assert_eq!(stage.a.metric(accepted), before.0);
    assert_eq!(tree(&stage.at_a).unwrap(), shown);

    // A certificate it made itself ends the connection.
    let writer = Keys::of(&other_write_link());
    member
        .say(&Frame::Certs(vec![writer.certificate().into()]))
        .unwrap();
    assert!(
        member.until_closed(SETUP_TIME, |_| Vec::new()),
        "{}",
        stage.a.log()
    );
    stage.others_are_unharmed();
}

/// A link with a write key that is not the folder's.
fn other_write_link() -> String {
    let owner = OwnerSeed::generate(&mut random::fill);
    let capability = Capability::Write(owner.write_key(0));
    Link::new(owner.folder(), Suite::Blake3, capability).reveal()
}
