//! Two people edit at once, or apart: both versions are kept and shown, everywhere alike, until somebody chooses.

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use crate::support::{Daemon, Links, World, text as text_of, tree, wait_equal};

/// What the files in a directory hold.
fn contents(dir: &Path) -> BTreeSet<Vec<u8>> {
    let paths = fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().path());
    paths
        .filter(|path| path.is_file())
        .map(|path| fs::read(path).unwrap_or_default())
        .collect()
}

#[test]
fn edits_made_apart_are_both_kept_on_every_side() {
    let world = World::new();
    let (src, at_a, at_b) = (world.dir("src"), world.dir("at-a"), world.dir("at-b"));
    fs::write(src.join("plan.txt"), b"base").unwrap();
    let (mut a, links) = world.share(&src, "a");
    let mut b = world.mount(&links.write, &at_b, "b", &[&a]);
    a.mount_again(&src, &at_a);
    wait_equal(&at_a, &at_b, &[&a, &b]);

    assert_eq!(b.stop(), 0);
    fs::write(at_a.join("plan.txt"), b"by a").unwrap();
    fs::write(at_a.join("only a"), b"a's own").unwrap();
    let port = a.port;
    assert_eq!(a.stop(), 0);

    let mut b = world.mount(&links.write, &at_b, "b", &[]);
    fs::write(at_b.join("plan.txt"), b"by b").unwrap();
    fs::write(at_b.join("only b"), b"b's own").unwrap();
    assert_eq!(b.stop(), 0);

    let (mut a, _) = world.share(&src, "a");
    a.mount_again(&src, &at_a);
    assert_ne!(a.port, port, "the peer is found at its new address");
    let mut b = world.mount(&links.write, &at_b, "b", &[&a]);
    let both: BTreeSet<Vec<u8>> = [&b"by a"[..], b"by b", b"a's own", b"b's own"]
        .map(<[u8]>::to_vec)
        .into();
    a.wait("both versions at a", || contents(&at_a) == both);
    b.wait("both versions at b", || contents(&at_b) == both);
    wait_equal(&at_a, &at_b, &[&a, &b]);
    let names: Vec<String> = tree(&at_a)
        .unwrap()
        .keys()
        .map(|n| String::from_utf8_lossy(n).into_owned())
        .collect();
    assert!(names.contains(&"plan.txt".to_owned()), "{names:?}");
    let conflict = names
        .iter()
        .find(|n| n.starts_with("plan (conflict ") && n.ends_with(").txt"));
    assert!(conflict.is_some(), "{names:?}");

    // The same after a start, without anybody who could say what devices are called.
    assert_eq!(b.stop(), 0);
    let _b = world.mount(&links.write, &at_b, "b", &[]);
    let again: BTreeSet<String> = fs::read_dir(&at_b)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    assert_eq!(again, names.into_iter().collect());
}

/// Plain directories of one folder, each with its daemon.
struct Homes {
    world: World,
    dirs: Vec<PathBuf>,
    daemons: Vec<Daemon>,
    links: Links,
}

impl Homes {
    /// The first is shared with what `fill` puts into it, the others join.
    fn new(count: usize, fill: impl Fn(&Path)) -> Self {
        let world = World::new();
        let dirs: Vec<PathBuf> = (0..count)
            .map(|n| world.dir(&format!("home-{n}")))
            .collect();
        fill(&dirs[0]);
        let (first, links) = world.share(&dirs[0], "s0");
        let mut daemons = vec![first];
        for (n, dir) in dirs.iter().enumerate().skip(1) {
            let args = ["join", &links.write, dir.to_str().unwrap()];
            let daemon = world.start(&format!("s{n}"), &[daemons[0].port], &args);
            daemon.wait("the join", || daemon.says("Joined "));
            daemons.push(daemon);
        }
        let homes = Self {
            world,
            dirs,
            daemons,
            links,
        };
        homes.wait_equal();
        homes
    }

    fn wait_equal(&self) {
        let daemons: Vec<&Daemon> = self.daemons.iter().collect();
        for dir in &self.dirs[1..] {
            wait_equal(&self.dirs[0], dir, &daemons);
        }
    }

    /// Has `edit` change each directory while it hears of no other, then brings them together.
    fn apart(&mut self, edit: impl Fn(usize, &Path)) {
        for daemon in &mut self.daemons {
            assert_eq!(daemon.stop(), 0, "{}", daemon.log());
        }
        for (n, dir) in self.dirs.iter().enumerate() {
            edit(n, dir);
        }
        // Each takes in its own before it meets another.
        let mut ports = Vec::new();
        for n in 0..self.dirs.len() {
            let daemon = self.world.start(&format!("s{n}"), &ports, &["daemon"]);
            daemon.wait("the daemon", || {
                daemon.try_run(&["status"]).status.success()
            });
            ports.push(daemon.port);
            self.daemons[n] = daemon;
        }
    }

    /// `ccbt conflicts --json` of one, once it has as many versions in conflict.
    fn conflicts(&self, n: usize, versions: usize) -> serde_json::Value {
        let list = || -> serde_json::Value {
            let dir = self.dirs[n].to_str().unwrap();
            serde_json::from_str(&self.daemons[n].run(&["conflicts", dir, "--json"])).unwrap()
        };
        let count = |list: serde_json::Value| {
            let versions = list["conflicts"][0]["versions"].as_array().map(Vec::len);
            versions.unwrap_or(0)
        };
        self.daemons[n].wait("the conflict", || count(list()) == versions);
        self.wait_equal();
        list()
    }

    /// What is among the displaced of a directory.
    fn displaced(&self, n: usize) -> BTreeSet<Vec<u8>> {
        let dir = self.dirs[n].join(".ccbt/displaced");
        if dir.exists() {
            contents(&dir)
        } else {
            BTreeSet::new()
        }
    }
}

fn name(path: &serde_json::Value) -> String {
    let path = Path::new(path.as_str().unwrap());
    path.file_name().unwrap().to_str().unwrap().to_owned()
}

/// A call of the API with the socket itself.
fn call(daemon: &Daemon, name: &str, body: &serde_json::Value) -> String {
    let mut socket = UnixStream::connect(daemon.state.join("api.sock")).unwrap();
    let body = body.to_string();
    write!(
        socket,
        "POST /v1/{name} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
    .unwrap();
    let mut answer = String::new();
    socket.read_to_string(&mut answer).unwrap();
    answer
}

#[test]
fn the_version_that_is_kept_gets_the_name_and_the_other_is_displaced_everywhere() {
    let mut homes = Homes::new(2, |dir| {
        fs::create_dir(dir.join("sub")).unwrap();
        fs::write(dir.join("sub/plan.txt"), "one\ntwo\nthree\n").unwrap();
        fs::write(dir.join("other"), "other").unwrap();
    });
    homes.apart(|n, dir| {
        fs::write(dir.join("sub/plan.txt"), format!("one\nby {n}\nthree\n")).unwrap();
    });
    let list = homes.conflicts(0, 2);
    let conflict = &list["conflicts"][0];
    let versions = conflict["versions"].as_array().unwrap();
    assert_eq!(name(&conflict["path"]), "plan.txt");
    assert_eq!(conflict["path"], versions[0]["path"]);
    for version in versions {
        assert_eq!(
            (&version["kind"], &version["size"]),
            (&"file".into(), &15.into())
        );
        assert_eq!(version["here"], true);
        assert!(version["age_s"].as_u64().unwrap() < 600, "{version}");
        assert!(!version["device"].as_str().unwrap().is_empty());
    }
    let loser = PathBuf::from(versions[0]["path"].as_str().unwrap());
    let sibling = PathBuf::from(versions[1]["path"].as_str().unwrap());
    let (lost, kept) = (fs::read(&loser).unwrap(), fs::read(&sibling).unwrap());
    assert_ne!(lost, kept);

    let text = homes.daemons[0].run(&["conflicts"]);
    assert!(
        text.contains(&format!("{}\n  plan.txt ", loser.display())),
        "{text}"
    );
    let shown = homes.daemons[0].run(&["conflicts", "--show", loser.to_str().unwrap()]);
    let (minus, plus) = (
        String::from_utf8(lost.clone()).unwrap(),
        String::from_utf8(kept.clone()).unwrap(),
    );
    let line = |text: &str| text.lines().nth(1).unwrap().to_owned();
    let diff = format!(
        "@@ -1,3 +1,3 @@\n one\n-{}\n+{}\n three\n",
        line(&minus),
        line(&plus)
    );
    assert!(shown.ends_with(&diff), "{shown}");

    let other = homes.dirs[0].join("other");
    let none = homes.daemons[0].try_run(&["conflicts", "--keep", other.to_str().unwrap()]);
    assert_eq!(none.status.code(), Some(3), "{}", text_of(&none));
    let before = [homes.displaced(0), homes.displaced(1)];
    assert!(before.iter().all(|displaced| !displaced.contains(&lost)));

    let said = homes.daemons[0].run(&["conflicts", "--keep", sibling.to_str().unwrap()]);
    assert_eq!(
        said,
        format!("Kept {}; removed 1 other version\n", loser.display())
    );
    for (n, dir) in homes.dirs.iter().enumerate() {
        homes.daemons[n].wait("the choice", || {
            contents(&dir.join("sub")) == BTreeSet::from([kept.clone()])
        });
        assert_eq!(fs::read(dir.join("sub/plan.txt")).unwrap(), kept);
        homes.daemons[n].wait("it to be displaced", || homes.displaced(n).contains(&lost));
        assert_eq!(homes.daemons[n].run(&["conflicts"]), "No conflicts\n");
    }
}

#[test]
fn what_was_saved_a_moment_ago_is_not_lost_by_a_choice() {
    let mut homes = Homes::new(2, |dir| fs::write(dir.join("f"), "start").unwrap());
    homes.apart(|n, dir| fs::write(dir.join("f"), format!("by {n}")).unwrap());
    let list = homes.conflicts(0, 2);
    let versions = &list["conflicts"][0]["versions"];
    let (main, sibling) = (versions[0]["path"].clone(), versions[1]["path"].clone());
    let seen = list["conflicts"][0]["seen"].clone();
    // The one that is to go is edited in the plain directory, and nobody has heard of it yet.
    fs::write(main.as_str().unwrap(), "edited since").unwrap();
    let request = serde_json::json!({"path": sibling, "seen": seen, "action": "keep"});
    let answer = call(&homes.daemons[0], "resolve", &request);
    assert!(answer.contains("422 "), "{answer}");
    assert!(
        answer.contains("its versions changed meanwhile"),
        "{answer}"
    );
    homes.wait_equal();
    assert!(contents(&homes.dirs[1]).contains(&b"edited since"[..]));
    assert_eq!(contents(&homes.dirs[1]).len(), 2);
}

#[test]
fn both_are_kept_under_names_of_their_own_also_through_a_mount() {
    let mut homes = Homes::new(2, |dir| fs::write(dir.join("f.txt"), "start").unwrap());
    homes.apart(|n, dir| fs::write(dir.join("f.txt"), format!("by {n}")).unwrap());
    homes.conflicts(0, 2);
    let (at, read) = (homes.world.dir("at"), homes.world.dir("read"));
    let daemons: Vec<&Daemon> = homes.daemons.iter().collect();
    let c = homes.world.mount(&homes.links.write, &at, "c", &daemons);
    let d = homes.world.mount(&homes.links.read, &read, "d", &daemons);
    wait_equal(&homes.dirs[0], &at, &[&c]);
    wait_equal(&homes.dirs[0], &read, &[&d]);

    let there = read.join("f.txt");
    let refused = d.try_run(&["conflicts", "--keep", there.to_str().unwrap()]);
    assert_eq!(refused.status.code(), Some(5), "{}", text_of(&refused));
    assert!(
        text_of(&refused).contains("read-only link"),
        "{}",
        text_of(&refused)
    );

    let there = at.join("f.txt");
    let said = c.run(&["conflicts", "--keep-both", there.to_str().unwrap()]);
    assert!(
        said.starts_with(&format!("Kept {}, ", there.display())),
        "{said}"
    );
    homes.daemons[0].wait("the choice", || {
        homes.daemons[0].run(&["conflicts"]) == "No conflicts\n"
    });
    for dir in homes.dirs.iter().chain([&at, &read]) {
        wait_equal(&homes.dirs[0], dir, &[&homes.daemons[0], &c, &d]);
    }
    let both: BTreeSet<Vec<u8>> = [b"by 0".to_vec(), b"by 1".to_vec()].into();
    assert_eq!(contents(&homes.dirs[1]), both);
    let names: Vec<Vec<u8>> = tree(&at).unwrap().into_keys().collect();
    assert!(
        names
            .iter()
            .all(|name| !name.windows(8).any(|w| w == b"conflict")),
        "{names:?}"
    );
}

#[test]
fn a_directory_against_a_file_is_not_thrown_away() {
    let mut homes = Homes::new(2, |dir| fs::write(dir.join("f"), "start").unwrap());
    homes.apart(|n, dir| match n {
        0 => fs::write(dir.join("x"), "a file").unwrap(),
        _ => {
            fs::create_dir(dir.join("x")).unwrap();
            fs::write(dir.join("x/inside"), "in the directory").unwrap();
        }
    });
    let list = homes.conflicts(0, 2);
    let versions = &list["conflicts"][0]["versions"];
    assert_eq!(versions[0]["kind"], "directory");
    assert_eq!(versions[1]["kind"], "file");
    let file = versions[1]["path"].as_str().unwrap();
    let refused = homes.daemons[0].try_run(&["conflicts", "--keep", file]);
    assert_eq!(refused.status.code(), Some(5), "{}", text_of(&refused));
    assert!(
        text_of(&refused).contains("--keep-both"),
        "{}",
        text_of(&refused)
    );
    homes.wait_equal();
    assert_eq!(
        fs::read(homes.dirs[0].join("x/inside")).unwrap(),
        b"in the directory"
    );

    // Once it is empty it gives way.
    fs::remove_file(homes.dirs[0].join("x/inside")).unwrap();
    homes.wait_equal();
    homes.daemons[0].run(&["conflicts", "--keep", file]);
    for (n, dir) in homes.dirs.iter().enumerate() {
        homes.daemons[n].wait("the file", || {
            fs::read(dir.join("x")).is_ok_and(|content| content == b"a file")
        });
    }
    homes.wait_equal();
}

#[test]
fn of_three_versions_one_is_kept() {
    let mut homes = Homes::new(3, |dir| fs::write(dir.join("f.txt"), "start").unwrap());
    homes.apart(|n, dir| fs::write(dir.join("f.txt"), format!("by {n}")).unwrap());
    let list = homes.conflicts(1, 3);
    let middle = list["conflicts"][0]["versions"][1]["path"]
        .as_str()
        .unwrap();
    let kept = fs::read(middle).unwrap();
    let said = homes.daemons[1].run(&["conflicts", "--keep", middle, "--json"]);
    let said: serde_json::Value = serde_json::from_str(&said).unwrap();
    assert_eq!(said["removed"], 2);
    for (n, dir) in homes.dirs.iter().enumerate() {
        homes.daemons[n].wait("the choice", || {
            contents(dir) == BTreeSet::from([kept.clone()])
        });
        assert_eq!(fs::read(dir.join("f.txt")).unwrap(), kept);
        // It may be on its way from one name to another.
        homes.daemons[n].wait("what was displaced", || {
            let displaced = homes.displaced(n);
            let texts = ["by 0", "by 1", "by 2"].map(|text| text.as_bytes().to_vec());
            let is_kept = |lost: &Vec<u8>| *lost == kept || displaced.contains(lost);
            texts.iter().all(is_kept)
        });
    }
}

#[test]
fn three_edits_made_apart_are_all_kept_on_every_side() {
    let world = World::new();
    let src = world.dir("src");
    fs::write(src.join("plan.txt"), b"base").unwrap();
    let (mut a, links) = world.share(&src, "a");
    let at: Vec<_> = (0..3).map(|n| world.dir(&format!("at{n}"))).collect();
    for at in &at {
        let mut member = world.mount(&links.write, at, &state_of(at), &[&a]);
        wait_equal(&src, at, &[&a, &member]);
        assert_eq!(member.stop(), 0);
    }
    assert_eq!(a.stop(), 0);
    // Each edits while none of the others runs.
    for at in &at {
        let state = state_of(at);
        let mut member = world.mount(&links.write, at, &state, &[]);
        fs::write(at.join("plan.txt"), format!("by {state}")).unwrap();
        assert_eq!(member.stop(), 0);
    }
    let (a, _) = world.share(&src, "a");
    let members: Vec<_> = at
        .iter()
        .map(|at| world.mount(&links.write, at, &state_of(at), &[&a]))
        .collect();
    let all: BTreeSet<Vec<u8>> = ["by state-at0", "by state-at1", "by state-at2"]
        .map(|text| text.as_bytes().to_vec())
        .into();
    for (member, dir) in members.iter().zip(&at) {
        member.wait("all three versions", || contents(dir) == all);
        wait_equal(&at[0], dir, &[&a, member]);
    }
}

/// The state directory of who has a folder mounted at `at`.
fn state_of(at: &Path) -> String {
    format!("state-{}", at.file_name().unwrap().display())
}
