//! A router lets peers in: miniupnpd on a machine of its own, by PCP and by UPnP, and one that knows NAT-PMP only. Needs root.

use std::fs;
use std::net::{Ipv4Addr, TcpStream, UdpSocket};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::netns::Netns;
use crate::support::{Daemon, Options, World};

const ROUTER: Ipv4Addr = Ipv4Addr::new(192, 168, 77, 1);
/// No address that documents may use: miniupnpd takes those for private ones.
const OUTSIDE: Ipv4Addr = Ipv4Addr::new(5, 9, 10, 11);
const RULES: &str = "table inet filter {
chain forward {
type filter hook forward priority 0; policy accept;
jump miniupnpd
}
chain miniupnpd {
}
chain prerouting {
type nat hook prerouting priority -100; policy accept;
jump prerouting_miniupnpd
}
chain prerouting_miniupnpd {
}
chain postrouting {
type nat hook postrouting priority 100; policy accept;
jump postrouting_miniupnpd
}
chain postrouting_miniupnpd {
}
}
";

/// A machine at home, and the router between it and the world.
struct Home {
    machine: Netns,
    router: Netns,
    outside: Netns,
}

impl Home {
    fn new() -> Self {
        let home = Self {
            machine: Netns::new(),
            router: Netns::new(),
            outside: Netns::new(),
        };
        let peer = home.machine.name.clone();
        home.router
            .ip(&format!("link add r0 type veth peer name h0 netns {peer}"));
        home.router.ip(&format!("addr add {ROUTER}/24 dev r0"));
        home.router.ip("link set r0 up");
        home.machine.ip("addr add 192.168.77.2/24 dev h0");
        home.machine.ip("link set h0 up");
        home.machine.ip(&format!("route add default via {ROUTER}"));
        let world = &home.outside.name;
        home.router.ip(&format!(
            "link add wan type veth peer name w0 netns {world}"
        ));
        home.router.ip(&format!("addr add {OUTSIDE}/24 dev wan"));
        home.router.ip("link set wan up");
        home.outside.ip("addr add 5.9.10.99/24 dev w0");
        home.outside.ip("link set w0 up");
        home.router
            .enter(|| fs::write("/proc/sys/net/ipv4/ip_forward", "1").unwrap());
        home
    }

    fn in_router(&self, program: &str) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.router.name, program]);
        command
    }

    /// Runs miniupnpd on the router.
    fn route(&self, dir: &Path, pcp: &str, upnp: &str) -> Router {
        let rules = dir.join("rules");
        fs::write(&rules, RULES).unwrap();
        let nft = self.in_router("nft").arg("-f").arg(&rules).output();
        let nft = nft.expect("nft is needed: scripts/setup installs nftables");
        assert!(
            nft.status.success(),
            "{}",
            String::from_utf8_lossy(&nft.stderr)
        );
        let config = dir.join("miniupnpd.conf");
        let lines = format!(
            "ext_ifname=wan\nlistening_ip=r0\nenable_natpmp={pcp}\nenable_upnp={upnp}\nport=5000\nsecure_mode=yes\n\
             uuid=00000000-0000-0000-0000-000000000001\nallow 1024-65535 0.0.0.0/0 1024-65535\n"
        );
        fs::write(&config, lines).unwrap();
        let mut command = self.in_router("miniupnpd");
        command
            .arg("-d")
            .arg("-f")
            .arg(&config)
            .arg("-P")
            .arg(dir.join("pid"));
        let log = fs::File::create(dir.join("miniupnpd.log")).unwrap();
        command
            .stdin(Stdio::null())
            .stderr(log)
            .stdout(Stdio::null());
        let child = command.spawn();
        Router(child.expect("miniupnpd is needed: scripts/setup installs it"))
    }

    /// What the router leads to the machine.
    fn rules(&self) -> String {
        let nft = self.in_router("nft").args(["list", "ruleset"]).output();
        String::from_utf8(nft.unwrap().stdout).unwrap()
    }

    fn daemon(&self, world: &World, dir: &Path) -> Daemon {
        self.machine.enter(|| start(world, dir))
    }
}

/// A daemon that takes peers from anywhere and asks the router to let them in.
fn start(world: &World, dir: &Path) -> Daemon {
    let options = Options {
        listen: Ipv4Addr::UNSPECIFIED.into(),
        portmap: true,
        ..Options::default()
    };
    let daemon = world.start_with("a", &options, &["share", dir.to_str().unwrap()]);
    // Once it says them, it answers.
    daemon.links();
    daemon
}

struct Router(Child);

impl Drop for Router {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

fn portmap(daemon: &Daemon) -> serde_json::Value {
    daemon.status()["daemon"]["portmap"].clone()
}

fn mapped_by(method: &str, pcp: &str, upnp: &str) {
    let (world, home) = (World::new(), Home::new());
    let dir = world.dir("shared");
    let router = home.route(&world.dir("router"), pcp, upnp);
    let daemon = home.daemon(&world, &dir);
    let to = format!("dnat ip to 192.168.77.2:{}", daemon.port);
    daemon.wait("both ports", || {
        portmap(&daemon)["ports"]
            .as_array()
            .is_some_and(|ports| ports.len() == 2)
    });
    let status = portmap(&daemon);
    assert_eq!(status["method"], method, "{status}");
    assert_eq!(status["external_ip"], OUTSIDE.to_string());
    assert_eq!(status["ports"][0]["external"], daemon.port);
    assert_eq!(home.rules().matches(&to).count(), 2, "{}", home.rules());
    let text = daemon.run(&["status"]);
    assert!(
        text.contains(&format!("the router lets peers in at {OUTSIDE}")),
        "{text}"
    );
    let port = (OUTSIDE, daemon.port).into();
    home.outside
        .enter(|| TcpStream::connect_timeout(&port, Duration::from_secs(30)))
        .unwrap();
    drop(daemon);
    assert_eq!(home.rules().matches(&to).count(), 0, "{}", home.rules());
    drop(router);
}

#[test]
fn ports_are_mapped_by_pcp_and_taken_back() {
    mapped_by("PCP", "yes", "no");
}

#[test]
fn ports_are_mapped_by_upnp_and_taken_back() {
    mapped_by("UPnP", "no", "yes");
}

/// A router of old: NAT-PMP, and other external ports than were wished for.
fn old_router(stop: &AtomicBool, seen: &Mutex<Vec<Vec<u8>>>) {
    let socket = UdpSocket::bind((ROUTER, 5351)).unwrap();
    socket
        .set_read_timeout(Some(Duration::from_millis(50)))
        .unwrap();
    let mut buf = [0; 1100];
    while !stop.load(Ordering::Relaxed) {
        let Ok((len, from)) = socket.recv_from(&mut buf) else {
            continue;
        };
        let asked = &buf[..len];
        seen.lock().unwrap().push(asked.to_vec());
        let answer = match asked {
            [0, 0] => [&[0, 128, 0, 0, 0, 0, 0, 1][..], &OUTSIDE.octets()].concat(),
            [0, kind, ..] if len == 12 => {
                let external = u16::from_be_bytes([asked[6], asked[7]]);
                let external = if external == 0 {
                    0
                } else {
                    4000 + u16::from(*kind)
                };
                let head = [0, 128 + kind, 0, 0, 0, 0, 0, 1, asked[4], asked[5]];
                [&head[..], &external.to_be_bytes(), &asked[8..12]].concat()
            }
            _ => vec![0, 129, 0, 1, 0, 0, 0, 1],
        };
        socket.send_to(&answer, from).unwrap();
    }
}

/// Ends the router, whatever else happens.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn a_router_that_knows_nat_pmp_only_gives_other_ports() {
    let (world, home) = (World::new(), Home::new());
    let dir = world.dir("shared");
    let (stop, seen) = (AtomicBool::new(false), Arc::new(Mutex::default()));
    std::thread::scope(|scope| {
        let _stop = Stop(&stop);
        scope.spawn(|| home.router.enter(|| old_router(&stop, &seen)));
        let daemon = home.daemon(&world, &dir);
        daemon.wait("both ports and the address", || {
            let status = portmap(&daemon);
            status["ports"]
                .as_array()
                .is_some_and(|ports| ports.len() == 2)
                && status["external_ip"] == OUTSIDE.to_string()
        });
        let status = portmap(&daemon);
        assert_eq!(status["method"], "NAT-PMP");
        let external = |n: usize| status["ports"][n]["external"].as_u64().unwrap();
        assert_eq!([external(0), external(1)], [4002, 4001], "{status}");
        drop(daemon);
    });
    // The last words were to take both back: a lifetime of nothing.
    let seen = seen.lock().unwrap();
    let back = seen
        .iter()
        .filter(|asked| asked.len() == 12 && asked[6..] == [0; 6]);
    assert_eq!(back.count(), 2, "{seen:?}");
}

#[test]
fn without_a_router_or_with_no_portmap_nobody_is_asked_and_the_user_hears_why() {
    let world = World::new();
    let dir = world.dir("shared");
    let alone = Netns::new();
    let daemon = alone.enter(|| start(&world, &dir));
    daemon.wait("the reason", || {
        let status = portmap(&daemon);
        status["trouble"]
            .as_str()
            .is_some_and(|why| why.contains("no router"))
    });
    drop(daemon);
    let (quiet, _) = world.share(&world.dir("other"), "q");
    assert!(portmap(&quiet).is_null());
}
