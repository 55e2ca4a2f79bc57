//! More than two: readers complete from each other, five daemons converge.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

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
    let mut model = Model::default();
    for round in 0..60 {
        let who = rng.below(5) as usize;
        model.edit(&at[who], who, round, &mut rng);
    }
    let all: Vec<&Daemon> = daemons.iter().collect();
    for other in &at[1..] {
        wait_equal(&at[0], other, &all);
    }
    model.check(&at[0]);
}

/// What five people did at once. What a file is that several of them touched depends on who was first, but it is
/// something that one of them wrote; what only one of them touched is what that one made of it.
#[derive(Default)]
struct Model {
    /// Names and contents of the files that have one editor.
    own: BTreeMap<String, Vec<u8>>,
    /// Every content that was ever written to a file of all.
    written: BTreeSet<Vec<u8>>,
}

impl Model {
    fn edit(&mut self, at: &Path, who: usize, round: usize, rng: &mut Rng) {
        let size = rng.below(100_000) as usize;
        let (content, n) = (rng.bytes(size), rng.below(4));
        let (common, own) = (format!("file {n}"), format!("own {who} {n}"));
        match rng.below(6) {
            0 => drop(fs::remove_file(at.join(common))),
            1 => drop(fs::rename(
                at.join(common),
                at.join(format!("renamed {round}")),
            )),
            2 => {
                fs::write(at.join(common), &content).unwrap();
                self.written.insert(content);
            }
            3 if self.own.contains_key(&own) => {
                let new = format!("own {who} renamed {round}");
                fs::rename(at.join(&own), at.join(&new)).unwrap();
                let content = self.own.remove(&own).unwrap();
                self.own.insert(new, content);
            }
            4 if self.own.contains_key(&own) => {
                fs::remove_file(at.join(&own)).unwrap();
                self.own.remove(&own);
            }
            _ => {
                fs::write(at.join(&own), &content).unwrap();
                self.own.insert(own, content);
            }
        }
    }

    fn check(&self, at: &Path) {
        let mut own = BTreeMap::new();
        for entry in fs::read_dir(at).unwrap() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            let content = fs::read(at.join(&name)).unwrap();
            if name.starts_with("own ") {
                own.insert(name, content);
            } else if name != "start" {
                assert!(self.written.contains(&content), "{name}: nobody wrote this");
            }
        }
        let names = |map: &BTreeMap<String, Vec<u8>>| map.keys().cloned().collect::<Vec<_>>();
        assert_eq!(names(&own), names(&self.own));
        assert!(own.len() > 5, "too few files to mean anything");
        assert!(
            own == self.own,
            "a file is not what its only editor made it"
        );
        assert_eq!(fs::read(at.join("start")).unwrap(), b"start");
    }
}
