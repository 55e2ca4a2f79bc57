//! Discovery with everything off opens no socket. A test binary of its own: it counts the sockets of its process.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use std::fs;
use std::time::Duration;

use ccbt::engine::discovery::{Config, Discovery, Status};
use ccbt::share::SwarmId;
use tokio::sync::mpsc;

fn sockets() -> usize {
    let open = fs::read_dir("/proc/self/fd").unwrap();
    let target = |entry: std::io::Result<fs::DirEntry>| fs::read_link(entry.ok()?.path()).ok();
    open.filter_map(target)
        .filter(|t| t.to_string_lossy().starts_with("socket:"))
        .count()
}

#[tokio::test]
async fn with_everything_off_no_socket_is_opened() {
    let swarm = SwarmId::from_bytes([1; 20]);
    let url = "udp://127.0.0.1:1/announce".to_owned();
    let before = sockets();
    let watched = |config| {
        let discovery = Discovery::start(config, 6881);
        let (sink, found) = mpsc::channel(1);
        discovery.watch(swarm, vec![url.clone()], sink);
        (discovery, found)
    };

    let (off, _found) = watched(Config::default());
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(sockets(), before);
    let idle = Status {
        dht_nodes: None,
        lsd: false,
        swarms: vec![(swarm, vec![])],
    };
    assert_eq!(off.status(), idle);
    assert!(off.dht().is_none());

    // The count does see discovery's sockets.
    let (_on, _found) = watched(Config {
        lsd: true,
        ..Config::default()
    });
    for _ in 0..100 {
        if sockets() > before {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("local discovery has no socket");
}
