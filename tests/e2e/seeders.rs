//! Three seeders with slow links serve one reader together.

use std::fs;
use std::io::Read;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::netns::{Netns, run};
use crate::support::{Daemon, Options, Rng, World};

/// Bytes of the file.
const SIZE: usize = 300 << 20;
/// What each seeder can send, in bits per second: 20 MB/s.
const LINK: &str = "160mbit";
/// What the reader has to get, in bytes per second.
const RATE_MIN: f64 = 50e6;
/// Times it is tried with a fresh reader.
const TRIES: usize = 3;
/// A rate counts if the seeders' links were the limit: the processors had nothing to do for this part of the time in
/// nearly every moment of it. Where they were busy, with this test or with anything else, it says nothing.
const IDLE_MIN: f64 = 0.15;
const BUSY_MOMENTS_MAX: f64 = 0.1;
const MOMENT: Duration = Duration::from_millis(200);

/// Machines at one switch; the last is the reader.
struct Network {
    _switch: Netns,
    machines: Vec<Netns>,
}

impl Network {
    fn new(count: usize) -> Self {
        let switch = Netns::new();
        switch.ip("link add switch type bridge");
        switch.ip("link set switch up");
        let machines = (0..count)
            .map(|n| {
                let machine = Netns::new();
                machine.ip(&format!("link add eth0 type veth peer name port{n}"));
                machine.ip(&format!("link set port{n} netns {}", switch.name));
                switch.ip(&format!("link set port{n} master switch up"));
                machine.ip(&format!("addr add {}/24 dev eth0", address(n)));
                machine.ip("link set eth0 up");
                machine
            })
            .collect();
        Self {
            _switch: switch,
            machines,
        }
    }

    /// Caps what machine `n` sends.
    fn cap(&self, n: usize) {
        let name = &self.machines[n].name;
        let shape = "qdisc add dev eth0 root tbf rate LINK burst 256kb latency 200ms";
        let shape = shape.replace("LINK", LINK);
        let args: Vec<&str> = shape.split_whitespace().collect();
        run("tc", &[&["-n", name.as_str()], &args[..]].concat());
    }
}

fn address(n: usize) -> IpAddr {
    IpAddr::from([10, 77, 0, 1 + n as u8])
}

fn options(n: usize, peers: &[&Daemon]) -> Options {
    let addr = |(n, daemon): (usize, &&Daemon)| SocketAddr::new(address(n), daemon.port);
    Options {
        listen: address(n),
        peers: peers.iter().enumerate().map(addr).collect(),
        ..Options::default()
    }
}

/// Reads a file as an application does; its hash and the bytes per second.
fn read(path: &Path) -> (blake3::Hash, f64) {
    let start = Instant::now();
    let mut file = fs::File::open(path).unwrap();
    let (mut buf, mut hasher, mut size) = (vec![0; 1 << 20], blake3::Hasher::new(), 0);
    loop {
        let n = file.read(&mut buf).unwrap();
        if n == 0 {
            break;
        }
        hasher.update(&buf[..n]);
        size += n;
    }
    let rate = size as f64 / start.elapsed().as_secs_f64();
    (hasher.finalize(), rate)
}

/// Idle and all time of the processors so far.
fn processor_time() -> (f64, f64) {
    let stat = fs::read_to_string("/proc/stat").unwrap();
    let times = stat.lines().next().unwrap().split_whitespace().skip(1);
    let times: Vec<f64> = times.map(|time| time.parse().unwrap()).collect();
    // Guest times are part of user times.
    (times[3], times[..8].iter().sum())
}

/// Runs `act`; whether the processors were mostly idle in nearly every moment meanwhile.
fn watch_processors<T>(act: impl FnOnce() -> T) -> (T, bool) {
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let watch = scope.spawn(|| {
            let (mut moments, mut busy) = (0.0, 0.0);
            while !is_over.load(Ordering::Relaxed) {
                let before = processor_time();
                std::thread::sleep(MOMENT);
                let after = processor_time();
                let idle = (after.0 - before.0) / (after.1 - before.1).max(1.0);
                moments += 1.0;
                busy += f64::from(idle < IDLE_MIN);
            }
            busy <= moments * BUSY_MOMENTS_MAX
        });
        let result = act();
        is_over.store(true, Ordering::Relaxed);
        (result, watch.join().unwrap())
    })
}

#[test]
fn three_seeders_of_20_mb_s_give_50_mb_s() {
    let world = World::new();
    let network = Network::new(4);
    let src = world.dir("src");
    fs::write(src.join("big"), Rng(1).bytes(SIZE)).unwrap();
    let (hash, _) = read(&src.join("big"));
    let (first, links) =
        network.machines[0].enter(|| world.share_with(&src, "seeder-0", &options(0, &[])));
    let mut seeders = vec![first];
    for n in 1..3 {
        let at = world.dir(&format!("at-{n}"));
        let others: Vec<&Daemon> = seeders.iter().collect();
        let options = options(n, &others);
        let state = format!("seeder-{n}");
        let seeder =
            network.machines[n].enter(|| world.mount_with(&links.read, &at, &state, &options));
        assert_eq!(read(&at.join("big")).0, hash);
        seeders.push(seeder);
    }
    (0..3).for_each(|n| network.cap(n));

    let all: Vec<&Daemon> = seeders.iter().collect();
    let mut slow = Vec::new();
    for attempt in 0..TRIES {
        let at = world.dir(&format!("at-reader-{attempt}"));
        let (state, options) = (format!("reader-{attempt}"), options(3, &all));
        let mut reader =
            network.machines[3].enter(|| world.mount_with(&links.read, &at, &state, &options));
        reader.wait("all seeders", || reader.metric("ccbt_peers_connected") == 3);
        let ((got, rate), is_calm) = watch_processors(|| read(&at.join("big")));
        assert_eq!(got, hash);
        let bytes_in = reader.metric("ccbt_wire_bytes_in_total") as f64;
        println!(
            "{:.1} MB/s, {:.3} x the file on the wire",
            rate / 1e6,
            bytes_in / SIZE as f64
        );
        assert!(bytes_in < 1.1 * SIZE as f64, "{bytes_in} bytes received");
        assert_eq!(reader.stop(), 0);
        if rate >= RATE_MIN {
            return;
        }
        match is_calm {
            true => slow.push(rate),
            false => println!("the processors were the limit: the rate says nothing"),
        }
    }
    assert!(
        slow.len() < TRIES,
        "too slow: {slow:?} bytes/s\n{}",
        seeders[0].log()
    );
}
