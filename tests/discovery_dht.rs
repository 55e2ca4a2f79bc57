//! Discovery over a DHT of nodes on loopback: peers, items, and a second node that puts an item again.
//!
//! Runs against `mainline`'s own test network; no packet leaves the machine.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Duration;

use ccbt::engine::discovery::dht::{Dht, DhtConfig, DhtError, Mainline};
use ccbt::engine::discovery::{Config, Discovery, Source};
use ccbt::share::dht_item::{DhtItem, SignedItem};
use ccbt::share::{OwnerSeed, SwarmId};
use mainline::Testnet;
use tokio::sync::mpsc;

/// Ends a test that hangs; no assertion depends on it.
const PATIENCE: Duration = Duration::from_secs(60);

fn testnet() -> Testnet {
    Testnet::builder(10).build().unwrap()
}

fn config(testnet: &Testnet) -> DhtConfig {
    DhtConfig {
        bind: Ipv4Addr::LOCALHOST,
        port: 0,
        bootstrap: testnet.bootstrap.clone(),
        server: false,
        nodes_file: None,
        request_timeout: Duration::from_millis(500),
    }
}

async fn node(testnet: &Testnet) -> Mainline {
    let bootstrap: Vec<SocketAddrV4> = testnet
        .bootstrap
        .iter()
        .map(|node| node.parse().unwrap())
        .collect();
    Mainline::start(&config(testnet), bootstrap).await.unwrap()
}

async fn soon<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, work).await.expect("in time")
}

#[tokio::test]
async fn items_are_put_found_replaced_and_put_again_by_a_reader() {
    let testnet = testnet();
    let (writer, reader, newcomer) = (
        node(&testnet).await,
        node(&testnet).await,
        node(&testnet).await,
    );
    let write = OwnerSeed::from_bytes([5; 32]).write_key(0);
    let discover = write.read_key().discover_key();
    let item = DhtItem {
        heads: vec![],
        endpoints: vec![([10, 0, 0, 1], 80).into()],
    };
    let first = SignedItem::seal(&item, &write, 7, [1; 24]).unwrap();

    assert_eq!(
        soon(reader.get_item(write.public().into(), discover.salt())).await,
        Ok(None)
    );
    let stored = soon(writer.put_item(first.clone(), None)).await.unwrap();
    assert!(stored > 0);
    let got = soon(reader.get_item(write.public().into(), discover.salt()))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(got, first, "as it was signed");
    assert_eq!(got.open(&discover), Ok(item.clone()));
    drop(writer);
    soon(reader.put_item(got, None))
        .await
        .expect("a reader may put it again");

    let second = SignedItem::seal(&item, &write, 9, [2; 24]).unwrap();
    soon(newcomer.put_item(second.clone(), Some(7)))
        .await
        .unwrap();
    let got = soon(reader.get_item(write.public().into(), discover.salt()))
        .await
        .unwrap();
    assert_eq!(got, Some(second));
    let stale = soon(newcomer.put_item(first, None)).await;
    assert!(
        matches!(stale, Err(DhtError::Newer | DhtError::Refused { .. })),
        "{stale:?}"
    );
}

#[tokio::test]
async fn two_instances_find_each_other_and_keep_the_nodes_they_saw() {
    let testnet = testnet();
    let dir = tempfile::tempdir().unwrap();
    let nodes_file = dir.path().join("dht_nodes");
    let start = |port, nodes_file| {
        let dht = DhtConfig {
            nodes_file,
            ..config(&testnet)
        };
        Discovery::start(
            Config {
                dht: Some(dht),
                ..Config::default()
            },
            port,
        )
    };
    let swarm = SwarmId::from_bytes([9; 20]);
    let a = start(1111, None);
    let (sink, mut at_a) = mpsc::channel(8);
    a.watch(swarm, vec![], sink);

    // Whether the first lookup of `b` comes before the announce of `a` is chance, so it looks again.
    let b = start(2222, Some(nodes_file.clone()));
    let found = soon(async {
        loop {
            let (sink, mut at_b) = mpsc::channel(8);
            b.watch(swarm, vec![], sink);
            while let Ok(Some(found)) =
                tokio::time::timeout(Duration::from_secs(2), at_b.recv()).await
            {
                if found.1.port() == 1111 {
                    return found;
                }
            }
        }
    })
    .await;
    assert_eq!(found, (swarm, ([127, 0, 0, 1], 1111).into(), Source::Dht));
    assert!(b.dht().is_some() && b.status().dht_nodes.is_some());
    b.unwatch(swarm);
    soon(b.close()).await;
    let saved = std::fs::read_to_string(&nodes_file).unwrap();
    assert!(
        saved
            .lines()
            .any(|line| testnet.bootstrap.iter().any(|node| node == line)),
        "{saved}"
    );

    // The saved nodes alone are enough to find the network again.
    let dht = DhtConfig {
        bootstrap: vec![],
        nodes_file: Some(nodes_file),
        ..config(&testnet)
    };
    let c = Discovery::start(
        Config {
            dht: Some(dht),
            ..Config::default()
        },
        0,
    );
    let (sink, mut at_c) = mpsc::channel(8);
    c.watch(swarm, vec![], sink);
    assert_eq!(soon(at_c.recv()).await.unwrap().0, swarm);
    at_a.close();
}
