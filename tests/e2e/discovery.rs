//! Cold start: daemons that know a link and the DHT, and nothing else, find each other. The DHT is `mainline`'s test network
//! on loopback.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::path::Path;
use std::time::Duration;

use ccbt::engine::discovery::dht::{Dht, DhtConfig, Mainline};
use ccbt::share::dht_item::{DhtItem, ItemKey, SignedItem};
use ccbt::share::{Link, WriteKey};
use mainline::Testnet;
use tokio::runtime::Runtime;

use crate::support::{Daemon, Links, World, is_mounted, tree};

/// A network of DHT nodes, and a node of our own in it.
struct Network {
    nodes: Testnet,
    runtime: Runtime,
    node: Mainline,
}

impl Network {
    fn new() -> Self {
        let nodes = Testnet::builder(10).build().unwrap();
        let runtime = Runtime::new().unwrap();
        let config = DhtConfig {
            bind: Ipv4Addr::LOCALHOST,
            port: 0,
            bootstrap: nodes.bootstrap.clone(),
            server: false,
            nodes_file: None,
            request_timeout: Duration::from_millis(500),
        };
        let bootstrap: Vec<SocketAddrV4> =
            nodes.bootstrap.iter().map(|n| n.parse().unwrap()).collect();
        let node = runtime
            .block_on(Mainline::start(&config, bootstrap))
            .unwrap();
        Self {
            nodes,
            runtime,
            node,
        }
    }

    fn get(&self, key: ItemKey, salt: [u8; 8]) -> Option<SignedItem> {
        let got = self
            .runtime
            .block_on(async { self.node.get_item(key, salt).await });
        got.unwrap()
    }

    fn item(&self, key: &WriteKey) -> Option<SignedItem> {
        self.get(key.public().into(), key.read_key().discover_key().salt())
    }

    fn opened(&self, key: &WriteKey) -> Option<DhtItem> {
        let discover = key.read_key().discover_key();
        self.item(key).map(|item| item.open(&discover).unwrap())
    }

    fn put(&self, item: SignedItem) {
        let put = self
            .runtime
            .block_on(async { self.node.put_item(item, None).await });
        assert!(put.unwrap() > 0);
    }

    fn share(&self, world: &World, dir: &Path) -> (Daemon, Links) {
        let args = ["share", dir.to_str().unwrap()];
        let daemon = world.start_in_dht("a", &self.nodes.bootstrap, &args);
        let links = daemon.links();
        (daemon, links)
    }

    fn mount(&self, world: &World, link: &str, at: &Path, state: &str) -> Daemon {
        let args = ["mount", link, at.to_str().unwrap()];
        let mut daemon = world.start_in_dht(state, &self.nodes.bootstrap, &args);
        daemon.watch_mount(at);
        daemon.wait("the mount", || is_mounted(at));
        daemon
    }
}

fn write_key(links: &Links) -> WriteKey {
    let link: Link = links.write.parse().unwrap();
    link.capability().write_key(0).unwrap()
}

#[test]
fn two_who_know_only_the_link_meet_and_the_item_says_where_and_what() {
    let (world, network) = (World::new(), Network::new());
    let (src, at_b) = (world.dir("src"), world.dir("at-b"));
    fs::write(src.join("f"), b"found in the dark").unwrap();
    let (a, links) = network.share(&world, &src);
    let b = network.mount(&world, &links.read, &at_b, "b");
    b.wait("the content", || tree(&at_b).ok() == tree(&src).ok());

    let key = write_key(&links);
    a.wait("the item", || network.item(&key).is_some());
    let item = network.opened(&key).unwrap();
    let here = SocketAddr::from(([127, 0, 0, 1], a.port));
    assert_eq!(item.endpoints.first(), Some(&here));
    assert_eq!(item.heads.len(), 1);
    let head = item.heads[0]
        .clone()
        .verify()
        .expect("signed by the device");
    let shown = head.claims().snapshot.to_string();
    let status = a.status();
    let heads = status["folders"][0]["heads"].as_array().unwrap();
    assert!(
        heads
            .iter()
            .any(|h| shown.starts_with(h["snapshot"].as_str().unwrap())),
        "{shown}: {heads:?}"
    );
}

#[test]
fn the_item_alone_is_enough_even_with_a_stale_hint_in_the_link() {
    let (world, network) = (World::new(), Network::new());
    let (src, at_b) = (world.dir("src"), world.dir("at-b"));
    fs::write(src.join("f"), b"found by the item").unwrap();
    // It announces itself nowhere: only the item says where it is.
    let (a, links) = world.share(&src, "a");
    let key = write_key(&links);
    let item = DhtItem {
        heads: vec![],
        endpoints: vec![
            SocketAddr::from(([127, 0, 0, 1], 9)),
            SocketAddr::from(([127, 0, 0, 1], a.port)),
        ],
    };
    network.put(SignedItem::seal(&item, &key, 7, [1; 24]).unwrap());
    let stale = format!("{}?pe=127.0.0.1:9", links.write);
    let b = network.mount(&world, &stale, &at_b, "b");
    b.wait("the content", || tree(&at_b).ok() == tree(&src).ok());
}

#[test]
fn a_read_link_finds_the_item_by_the_owners_manifest_and_readers_outlive_its_writer() {
    let (world, network) = (World::new(), Network::new());
    let (src, at_b, at_c) = (world.dir("src"), world.dir("at-b"), world.dir("at-c"));
    fs::write(src.join("f"), b"kept by readers").unwrap();
    let (mut a, links) = network.share(&world, &src);
    let key = write_key(&links);
    a.wait("the item", || network.item(&key).is_some());
    let folder = links.read.parse::<Link>().unwrap().folder();
    let discover = key.read_key().discover_key();
    let manifest = || network.get(folder.into(), discover.salt());
    a.wait("the manifest", || manifest().is_some());
    let opened = manifest().unwrap().open_manifest(&discover).unwrap();
    let opened = opened.verify(&folder).expect("signed by the owner");
    assert_eq!(opened.claims().write, key.public());

    let b = network.mount(&world, &links.read, &at_b, "b");
    b.wait("the content", || tree(&at_b).ok() == tree(&src).ok());
    assert_eq!(a.stop(), 0);
    let c = network.mount(&world, &links.read, &at_c, "c");
    c.wait("the content from a reader", || {
        tree(&at_c).ok() == tree(&src).ok()
    });
}

#[test]
fn junk_in_the_item_costs_nothing() {
    let (world, network) = (World::new(), Network::new());
    let (src, at_b) = (world.dir("src"), world.dir("at-b"));
    fs::write(src.join("f"), b"all the same").unwrap();
    let (a, links) = world.share(&src, "a");
    let key = write_key(&links);
    // Signed by a holder of the write key: heads of nobody, and addresses nobody has.
    let junk = ccbt::share::Head::decode(&[0xff; ccbt::share::head::HEAD_LEN]).unwrap();
    let mut endpoints: Vec<SocketAddr> = [
        "0.0.0.0:1",
        "255.255.255.255:1",
        "224.0.0.1:1",
        "127.0.0.1:0",
    ]
    .map(|addr| addr.parse().unwrap())
    .into();
    endpoints.push(SocketAddr::from(([127, 0, 0, 1], a.port)));
    let item = DhtItem {
        heads: vec![junk; 3],
        endpoints,
    };
    network.put(SignedItem::seal(&item, &key, i64::MAX, [1; 24]).unwrap());
    let b = network.mount(&world, &links.write, &at_b, "b");
    b.wait("the content", || tree(&at_b).ok() == tree(&src).ok());
    fs::write(at_b.join("f"), b"and b writes").unwrap();
    a.wait("b's head", || {
        a.status()["folders"][0]["heads"]
            .as_array()
            .is_some_and(|heads| heads.len() == 2)
    });
    let status = b.status();
    assert!(status["folders"][0]["waiting"].is_null(), "{status}");
}
