//! A DHT of ten nodes on one address, for measurements that must not touch the public one.
//!
//!     cargo run --release --example dht_testnet -- 10.213.7.1
//!
//! Prints the nodes' addresses, one a line, then an empty line, and runs until its standard input ends.

use std::io::Read;
use std::net::Ipv4Addr;

use mainline::Testnet;

const NODES: usize = 10;

fn main() -> anyhow::Result<()> {
    let addr = std::env::args()
        .nth(1)
        .map_or(Ok(Ipv4Addr::LOCALHOST), |addr| addr.parse())?;
    let network = Testnet::builder(NODES).bind_address(addr).build()?;
    for node in &network.bootstrap {
        println!("{node}");
    }
    println!();
    std::io::stdin().read_to_end(&mut Vec::new())?;
    Ok(())
}
