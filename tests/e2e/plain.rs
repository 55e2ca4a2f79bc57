//! Plain directories kept in step: two of them and a mount, one mounted over itself, and what joining does.

use std::fs;
use std::io::Write;
use std::path::Path;

use crate::support::{Daemon, Links, Rng, World, is_mounted, text, tree, wait_equal};

/// Kills in the normal test run.
const ROUNDS: u64 = 6;

fn fill(dir: &Path) {
    let mut rng = Rng(7);
    fs::write(dir.join("notes.txt"), b"first notes\n").unwrap();
    fs::write(dir.join("big"), rng.bytes(3 << 20)).unwrap();
    fs::create_dir_all(dir.join("sub/deep")).unwrap();
    fs::write(dir.join("sub/deep/file"), rng.bytes(200_000)).unwrap();
    std::os::unix::fs::symlink("sub/deep/file", dir.join("link")).unwrap();
}

fn append(path: &Path, line: &str) {
    let mut file = fs::OpenOptions::new().append(true).open(path).unwrap();
    file.write_all(line.as_bytes()).unwrap();
}

/// `ccbt join LINK DIR`; returns once it says so.
fn join(world: &World, links: &Links, dir: &Path, state: &str, to: &Daemon) -> Daemon {
    let args = ["join", &links.write, dir.to_str().unwrap()];
    let daemon = world.start(state, &[to.port], &args);
    daemon.wait("the join", || daemon.says("Joined "));
    daemon
}

#[test]
fn two_plain_directories_and_a_mount_follow_each_other() {
    let world = World::new();
    let (home_a, home_b, at_c) = (world.dir("home-a"), world.dir("home-b"), world.dir("at-c"));
    fill(&home_a);
    let (a, links) = world.share(&home_a, "a");
    let b = join(&world, &links, &home_b, "b", &a);
    let c = world.mount(&links.write, &at_c, "c", &[&a, &b]);
    // Wherever the edit was, each pair agrees on it after this.
    let equal = || {
        wait_equal(&home_a, &at_c, &[&a, &b, &c]);
        wait_equal(&home_a, &home_b, &[&a, &b, &c]);
        wait_equal(&home_b, &at_c, &[&a, &b, &c]);
    };
    equal();

    append(&home_b.join("notes.txt"), "by b\n");
    equal();
    append(&at_c.join("notes.txt"), "by c\n");
    equal();
    append(&home_a.join("notes.txt"), "by a\n");
    equal();
    let notes = fs::read(home_b.join("notes.txt")).unwrap();
    assert_eq!(notes, b"first notes\nby b\nby c\nby a\n");

    fs::rename(home_b.join("sub"), home_b.join("moved")).unwrap();
    equal();
    fs::create_dir(at_c.join("new")).unwrap();
    fs::write(at_c.join("new/one"), b"one").unwrap();
    equal();
    // A directory that others made is followed like any other.
    fs::write(home_b.join("new/two"), b"two").unwrap();
    equal();
    fs::remove_dir_all(home_a.join("moved")).unwrap();
    fs::remove_file(at_c.join("big")).unwrap();
    equal();
    let names: Vec<String> = tree(&home_b)
        .unwrap()
        .into_keys()
        .map(|name| String::from_utf8(name).unwrap())
        .collect();
    assert_eq!(names, ["link", "new", "new/one", "new/two", "notes.txt"]);
    for home in [&home_a, &home_b] {
        let kept = fs::read_dir(home.join(".ccbt/displaced"));
        let kept = kept.map_or(0, Iterator::count);
        assert!(kept > 0, "what was replaced in {} is kept", home.display());
    }
}

#[test]
fn what_others_removed_is_listed_and_taken_back() {
    let world = World::new();
    let (home_a, home_b) = (world.dir("home-a"), world.dir("home-b"));
    fill(&home_a);
    let (a, links) = world.share(&home_a, "a");
    let b = join(&world, &links, &home_b, "b", &a);
    wait_equal(&home_a, &home_b, &[&a, &b]);
    let dir = home_a.to_str().unwrap();
    assert_eq!(a.run(&["displaced", dir]), "Nothing was displaced\n");
    fs::remove_file(home_b.join("notes.txt")).unwrap();
    wait_equal(&home_a, &home_b, &[&a, &b]);
    assert!(!home_a.join("notes.txt").exists());
    let listed: serde_json::Value =
        serde_json::from_str(&a.run(&["displaced", dir, "--json"])).unwrap();
    assert_eq!(listed[0]["name"], "notes.txt");
    assert_eq!(listed[0]["size"], 12);
    assert_eq!(listed[0]["path"], "notes.txt");
    assert_eq!(listed[0]["why"], "removed");
    let number = listed[0]["number"].to_string();
    let unknown = a.try_run(&["displaced", dir, "--restore", "99999"]);
    assert_eq!(unknown.status.code(), Some(3), "{}", text(&unknown));
    a.run(&["displaced", dir, "--restore", &number, "--as", "back.txt"]);
    wait_equal(&home_a, &home_b, &[&a, &b]);
    assert_eq!(fs::read(home_b.join("back.txt")).unwrap(), b"first notes\n");
}

#[test]
fn edits_of_one_file_at_once_are_seen_everywhere() {
    let world = World::new();
    let (home_a, home_b) = (world.dir("home-a"), world.dir("home-b"));
    fs::write(home_a.join("f.txt"), b"start").unwrap();
    let (mut a, links) = world.share(&home_a, "a");
    let mut b = join(&world, &links, &home_b, "b", &a);
    wait_equal(&home_a, &home_b, &[&a, &b]);
    let port = a.port;
    assert_eq!(b.stop(), 0, "{}", b.log());
    fs::write(home_b.join("f.txt"), b"by b while alone").unwrap();
    fs::write(home_a.join("f.txt"), b"by a").unwrap();
    a.wait("a's edit to be published", || {
        a.status()["folders"][0]["content"]["bytes"] == 4
    });
    b = world.start("b", &[port], &["daemon"]);
    wait_equal(&home_a, &home_b, &[&a, &b]);
    let contents: Vec<Vec<u8>> = fs::read_dir(&home_a)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.is_file())
        .map(|path| fs::read(path).unwrap())
        .collect();
    assert_eq!(contents.len(), 2, "{contents:?}");
    assert!(contents.contains(&b"by a".to_vec()));
    assert!(contents.contains(&b"by b while alone".to_vec()));
    assert_eq!(a.stop(), 0, "{}", a.log());
}

#[test]
fn joining_says_what_it_would_do_and_keeps_both_versions() {
    let world = World::new();
    let (home_a, home_b) = (world.dir("home-a"), world.dir("home-b"));
    fill(&home_a);
    let (a, links) = world.share(&home_a, "a");
    fs::create_dir(home_b.join("sub")).unwrap();
    fs::copy(home_a.join("big"), home_b.join("big")).unwrap();
    fs::write(home_b.join("notes.txt"), b"other notes").unwrap();
    fs::write(home_b.join("mine"), b"only here").unwrap();
    let before = tree(&home_b).unwrap();
    let dir = home_b.to_str().unwrap();

    let b = world.start("b", &[a.port], &["daemon"]);
    b.wait("the daemon", || b.try_run(&["status"]).status.success());
    let said = b.run(&["join", &links.write, dir, "--dry-run"]);
    for part in [
        "Would join ",
        "1 with the same content in both",
        "1 different, kept side by side\n    notes.txt\n",
        "1 only in the directory, published\n    mine\n",
    ] {
        assert!(said.contains(part), "{said:?} does not say {part:?}");
    }
    let refused = b.try_run(&["join", &links.write, dir]);
    assert_eq!(refused.status.code(), Some(5), "{}", text(&refused));
    assert!(text(&refused).contains("--merge"), "{}", text(&refused));
    let read_only = b.try_run(&["join", &links.read, dir]);
    assert!(
        text(&read_only).contains("read-only"),
        "{}",
        text(&read_only)
    );
    assert_eq!(tree(&home_b).unwrap(), before, "nothing was touched");
    assert!(!home_b.join(".ccbt").exists());

    b.run(&["join", &links.write, dir, "--merge"]);
    wait_equal(&home_a, &home_b, &[&a, &b]);
    let after = tree(&home_a).unwrap();
    assert_eq!(after.get(&b"mine"[..]), before.get(&b"mine"[..]));
    assert_eq!(after.get(&b"big"[..]), before.get(&b"big"[..]));
    assert_eq!(after.len(), 8, "two versions of the notes: {after:?}");
    b.run(&["unshare", dir]);
    append(&home_b.join("mine"), " and stays here");
    assert!(!home_b.join(".ccbt/home").exists());
    assert_eq!(fs::read(home_a.join("mine")).unwrap(), b"only here");
}

#[test]
fn a_directory_mounted_over_itself_has_its_plain_files_current_afterwards() {
    let world = World::new();
    let dir = world.dir("dir");
    fill(&dir);
    let shown = dir.to_str().unwrap();
    let mut plain = tree(&dir).unwrap();
    for round in 0..3 {
        let mut daemon = world.start("s", &[], &["mount", shown]);
        daemon.watch_mount(&dir);
        daemon.wait("the mount", || is_mounted(&dir) && daemon.says("Mounted "));
        assert_eq!(tree(&dir).unwrap(), plain, "round {round}");
        append(&dir.join("notes.txt"), &format!("round {round}\n"));
        fs::create_dir(dir.join(format!("made-{round}"))).unwrap();
        fs::write(dir.join(format!("made-{round}/f")), format!("{round}")).unwrap();
        fs::rename(
            dir.join(format!("made-{round}")),
            dir.join(format!("kept-{round}")),
        )
        .unwrap();
        if round == 1 {
            fs::remove_file(dir.join("big")).unwrap();
        }
        let expected = tree(&dir).unwrap();
        match round {
            0 => drop(daemon.run(&["unmount", shown])),
            _ => assert_eq!(daemon.stop(), 0, "{}", daemon.log()),
        }
        assert!(!is_mounted(&dir));
        plain = tree(&dir).unwrap();
        assert_eq!(plain, expected, "round {round}\n{}", daemon.log());
    }
    assert_eq!(
        fs::read(dir.join("notes.txt")).unwrap(),
        b"first notes\nround 0\nround 1\nround 2\n"
    );
}

#[test]
fn plain_directories_agree_again_after_kills() {
    let world = World::new();
    let (home_a, home_b) = (world.dir("home-a"), world.dir("home-b"));
    fill(&home_a);
    let (mut a, links) = world.share(&home_a, "a");
    let mut b = join(&world, &links, &home_b, "b", &a);
    wait_equal(&home_a, &home_b, &[&a, &b]);
    let mut rng = Rng(3);
    let mut written = Vec::new();
    for round in 0..ROUNDS {
        for n in 0..20 {
            let (name, content) = (format!("{round}-{n}"), rng.bytes(3000));
            let home = if rng.below(2) == 0 { &home_a } else { &home_b };
            let mut file = fs::File::create(home.join(&name)).unwrap();
            file.write_all(&content).unwrap();
            file.sync_all().unwrap();
            written.push((name, content));
            if n == 10 {
                std::thread::sleep(std::time::Duration::from_millis(rng.below(400)));
                b.kill();
            }
        }
        fs::rename(home_a.join("sub"), home_a.join("sub~")).unwrap();
        fs::rename(home_a.join("sub~"), home_a.join("sub")).unwrap();
        b = world.start("b", &[a.port], &["daemon"]);
        wait_equal(&home_a, &home_b, &[&a, &b]);
    }
    for (name, content) in written {
        assert_eq!(fs::read(home_b.join(&name)).unwrap(), content, "{name}");
    }
    let shown = tree(&home_a).unwrap();
    let conflicts = shown
        .keys()
        .filter(|name| name.windows(8).any(|w| w == b"conflict"));
    assert_eq!(
        conflicts.count(),
        0,
        "nobody edited one file twice: {shown:?}"
    );
    assert_eq!((a.stop(), b.stop()), (0, 0));
}
