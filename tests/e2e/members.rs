//! More than two: readers complete from each other, five daemons converge.

use std::fs;

use crate::support::{Daemon, Rng, World, tree, wait_equal};

#[test]
fn readers_serve_each_other_when_the_publisher_is_gone() {
    let world = World::new();
    let (src, at_b, at_c) = (world.dir("src"), world.dir("at-b"), world.dir("at-c"));
    let mut rng = Rng(7);
    for n in 0..20 {
        fs::write(src.join(format!("f{n:02}")), rng.bytes(300_000)).unwrap();
    }
    let wanted = tree(&src).unwrap();
    let (mut a, links) = world.share(&src, "a");
    let b = world.mount(&links.read, &at_b, "b", &[&a]);
    let c = world.mount(&links.read, &at_c, "c", &[&a, &b]);
    // Each reads a different half, then the publisher goes.
    for n in 0..20 {
        let at = if n % 2 == 0 { &at_b } else { &at_c };
        fs::read(at.join(format!("f{n:02}"))).unwrap();
    }
    c.wait("b and c to be connected", || {
        c.status()["folders"][0]["peers"].as_u64() == Some(2)
    });
    assert_eq!(a.stop(), 0);
    b.wait("everything at b", || tree(&at_b).is_ok_and(|t| t == wanted));
    c.wait("everything at c", || tree(&at_c).is_ok_and(|t| t == wanted));
}

#[test]
fn five_daemons_agree() {
    let world = World::new();
    let src = world.dir("src");
    fs::write(src.join("start"), b"start").unwrap();
    let (mut a, links) = world.share(&src, "m0");
    let at: Vec<_> = (0..5).map(|n| world.dir(&format!("at{n}"))).collect();
    a.mount_again(&src, &at[0]);
    let mut daemons: Vec<Daemon> = vec![a];
    for (n, at) in at.iter().enumerate().skip(1) {
        let peers: Vec<&Daemon> = daemons.iter().take(2).collect();
        let next = world.mount(&links.write, at, &format!("m{n}"), &peers);
        daemons.push(next);
    }
    let mut rng = Rng(11);
    for round in 0..30 {
        let who = rng.below(5) as usize;
        let name = format!("file {}", rng.below(8));
        let path = at[who].join(&name);
        match rng.below(4) {
            0 => drop(fs::remove_file(&path)),
            1 => drop(fs::rename(&path, at[who].join(format!("renamed {round}")))),
            _ => {
                let size = rng.below(100_000) as usize;
                fs::write(&path, rng.bytes(size)).unwrap();
            }
        }
    }
    let all: Vec<&Daemon> = daemons.iter().collect();
    for other in &at[1..] {
        wait_equal(&at[0], other, &all);
    }
}
