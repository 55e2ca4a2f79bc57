//! What mistakes get: one clear sentence, the documented exit code, nothing changed.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output};
use std::sync::atomic::{AtomicBool, Ordering};

use ccbt::share::{Capability, Link, OwnerSeed, Right, Suite};

use crate::support::{
    Daemon, World, ccbt, ccbt_as_nobody, give_to_nobody, need_root, text, wait_equal,
};

fn fails(output: &Output, code: i32, sentence: &str) {
    let text = text(output);
    assert_eq!(output.status.code(), Some(code), "{text}");
    assert!(
        text.contains(sentence),
        "{text:?} does not say {sentence:?}"
    );
    assert!(!text.contains("panicked"), "{text}");
}

fn run(state: &Path, args: &[&str]) -> Output {
    ccbt(state)
        .args(args)
        .args(["--no-dht", "--no-lsd", "--listen", "127.0.0.1:0"])
        .output()
        .unwrap()
}

#[test]
fn directories_that_cannot_be_shared_or_mounted() {
    let world = World::new();
    let state = world.dir("states").join("s");
    let (src, full) = (world.dir("src"), world.dir("full"));
    fs::write(full.join("x"), b"x").unwrap();
    fs::write(src.join("file"), b"x").unwrap();
    let file = src.join("file");
    let p = |path: &Path| path.to_str().unwrap().to_owned();
    fails(
        &run(&state, &["share", "/nonexistent/x"]),
        3,
        "/nonexistent/x",
    );
    fails(&run(&state, &["share", &p(&file)]), 2, "is not a directory");
    fails(&run(&state, &["share", "/"]), 5, "`/` cannot be shared");
    fails(
        &run(&state, &["share", &p(state.parent().unwrap())]),
        5,
        "lie in one another",
    );
    let link = "ccbt:w";
    fails(&run(&state, &["join", link, &p(&file)]), 2, "link");
    fails(
        &run(&state, &["join", &p(&src), &p(&full)]),
        2,
        "only a link can be joined",
    );
    fails(
        &run(&state, &["mount", &p(&file)]),
        2,
        "is a file, and it holds no link",
    );
    fails(
        &run(&state, &["mount", &p(&src), &p(&full)]),
        3,
        "neither shared nor mounted",
    );
    assert_eq!(fs::read(full.join("x")).unwrap(), b"x");
    assert!(!src.join(".ccbt").exists() && !full.join(".ccbt").exists());
}

fn says(daemon: &Daemon, args: &[&str], code: i32, sentence: &str) {
    let output = daemon.try_run(args);
    fails(&output, code, sentence);
    assert!(text(&output).contains("hint: "), "{}", text(&output));
}

#[test]
fn mount_points_that_cannot_be_used() {
    let world = World::new();
    let (src, at, other) = (world.dir("src"), world.dir("at"), world.dir("other"));
    let inside = src.join("inside");
    fs::create_dir(&inside).unwrap();
    let p = |path: &Path| path.to_str().unwrap().to_owned();
    let (mut a, _) = world.share(&src, "a");
    let (b, foreign) = world.share(&other, "b");
    let link = foreign.write.as_str();
    a.mount_again(&src, &at);

    says(
        &a,
        &["mount", link, &p(&world.dir("x").join("none"))],
        3,
        "no such file",
    );
    says(
        &a,
        &["mount", link, &p(&world.dir("x").join("no/ne"))],
        3,
        "cannot use",
    );
    says(
        &a,
        &["mount", link, "/"],
        5,
        "cannot be shared or mounted on",
    );
    says(&a, &["mount", link, &p(&at)], 4, "is mounted already");
    says(
        &b,
        &["mount", link, &p(&at)],
        4,
        "has mounted a file system on",
    );
    says(&b, &["mount", &p(&at)], 4, "has mounted a file system on");
    let both = ["mount", link, &p(&inside)];
    says(&a, &both, 5, "is inside the shared directory");
    says(&b, &both, 5, "is inside the shared directory");
    says(
        &a,
        &["mount", &p(&inside)],
        5,
        "is inside the shared directory",
    );
    let below = at.join("inside");
    says(
        &a,
        &["mount", link, &p(&below)],
        5,
        "is inside the ccbt mount",
    );
    says(&b, &["mount", link, &p(&below)], 5, "is inside the");
    says(&b, &["share", &p(&below)], 5, "is inside the ccbt mount");
    says(
        &b,
        &["share", &p(&inside)],
        5,
        "lies in the shared directory",
    );
    says(
        &a,
        &["mount", link, &p(&a.state.join("folders"))],
        5,
        "lie in one another",
    );
    let file = src.join("file");
    fs::write(&file, b"x").unwrap();
    let output = a.try_run(&["mount", link, &p(&file)]);
    assert!(
        [2, 5].contains(&output.status.code().unwrap()),
        "{}",
        text(&output)
    );
    assert_eq!(
        a.status()["folders"].as_array().unwrap().len(),
        1,
        "no link was taken in"
    );
    drop(b);
}

#[test]
fn links_of_another_right_and_the_same_link_twice() {
    let world = World::new();
    let (src, at, twice) = (world.dir("src"), world.dir("at"), world.dir("twice"));
    fs::write(src.join("f"), b"content").unwrap();
    let (a, links) = world.share(&src, "a");
    let mut b = world.mount(&links.read, &at, "b", &[&a]);
    says(
        &b,
        &["share", at.to_str().unwrap()],
        5,
        "only has a read-only link",
    );
    assert_eq!(b.status()["folders"][0]["right"], "read");

    let point = world.dir("point");
    let try_mount = |link: &str| b.try_run(&["mount", link, point.to_str().unwrap()]);
    let seed = OwnerSeed::from_bytes([4; 32]);
    let fresh = Link::new(seed.folder(), Suite::Blake3, Capability::Owner(seed));
    let relay = fresh.attenuate(Right::Discover, 0).unwrap().reveal();
    fails(
        &try_mount(&relay),
        5,
        "only lets its holder find the folder",
    );
    assert_eq!(fs::read_dir(b.state.join("folders")).unwrap().count(), 1);
    fails(&try_mount(&links.write), 4, "with a link of a lower right");

    // A second mount of the same folder; at the same place it is there already.
    b.run(&["mount", &links.read, twice.to_str().unwrap()]);
    b.watch_mount(&twice);
    wait_equal(&at, &twice, &[&b]);
    fails(
        &b.try_run(&["mount", &links.read, twice.to_str().unwrap()]),
        4,
        "is mounted already",
    );
    assert_eq!(b.status()["folders"].as_array().unwrap().len(), 1);
    // Our own link is our own folder.
    let mut a = a;
    let own = world.dir("own");
    a.run(&["mount", &links.write, own.to_str().unwrap()]);
    a.watch_mount(&own);
    wait_equal(&src, &own, &[&a]);
}

#[test]
fn what_an_ordinary_user_lacks() {
    need_root();
    let world = World::new();
    world.open_to_all();
    let (states, theirs, mine) = (world.dir("states"), world.dir("theirs"), world.dir("mine"));
    give_to_nobody(&states);
    give_to_nobody(&mine);
    let state = states.join("s");
    let p = |path: &Path| path.to_str().unwrap().to_owned();
    let path = "/usr/bin:/bin";
    let run = |path: &str, args: &[&str]| {
        let mut command = ccbt_as_nobody(&state, path);
        command
            .args(args)
            .args(["--no-dht", "--no-lsd", "--listen", "127.0.0.1:0"]);
        command.output().unwrap()
    };
    // No fusermount3.
    let live = p(&mine);
    let lacking = run("/nonexistent", &["mount", &live]);
    fails(&lacking, 3, "install the package `fuse3`");
    assert_eq!(fs::read_dir(state.join("folders")).unwrap().count(), 0);
    // A parent, a mount point, a directory that are not theirs.
    let denied = "permission denied";
    fails(&run(path, &["mount", &p(&theirs)]), 6, "write access");
    fails(&run(path, &["share", &p(&theirs)]), 6, denied);
    assert!(!theirs.join(".ccbt").exists());
    let closed = world.dir("closed");
    fs::set_permissions(&closed, fs::Permissions::from_mode(0o700)).unwrap();
    fails(&run(path, &["share", &p(&closed)]), 6, denied);
    // State that is not theirs, or not readable.
    for state in [closed.join("s"), theirs.join("s")] {
        let mut command = ccbt_as_nobody(&state, path);
        let output = command.args(["share", &p(&mine)]).output().unwrap();
        fails(&output, 6, "cannot use the state directory");
        assert!(text(&output).contains("hint: "), "{}", text(&output));
    }
    let output = ccbt_as_nobody(&theirs, path)
        .args(["share", &p(&mine)])
        .output()
        .unwrap();
    fails(&output, 6, "belongs to user 0");
    for file in ["version", "device.key"] {
        let unreadable = state.join(file);
        fs::set_permissions(&unreadable, fs::Permissions::from_mode(0o000)).unwrap();
        fails(&run(path, &["share", &p(&mine)]), 6, denied);
        fs::set_permissions(&unreadable, fs::Permissions::from_mode(0o600)).unwrap();
    }
    assert_eq!(fs::read_dir(&mine).unwrap().count(), 0);
}

#[test]
fn a_machine_without_dev_fuse() {
    need_root();
    let world = World::new();
    let (dev, state) = (world.dir("dev"), world.dir("states").join("s"));
    let live = world.dir("mine");
    fs::write(dev.join("null"), b"").unwrap();
    // A mount namespace of its own, with a /dev that has nothing but /dev/null.
    let script =
        r#"mount --bind /dev/null "$1/null" && mount --rbind "$1" /dev && shift && exec "$@""#;
    let output = Command::new("unshare")
        .args(["-m", "sh", "-c", script, "sh"])
        .arg(&dev)
        .args([env!("CARGO_BIN_EXE_ccbt"), "--state"])
        .arg(&state)
        .arg("mount")
        .arg(&live)
        .output()
        .unwrap();
    fails(&output, 3, "there is no /dev/fuse");
    assert_eq!(fs::read_dir(&live).unwrap().count(), 0);
    assert_eq!(fs::read_dir(state.join("folders")).unwrap().count(), 0);
}

#[test]
fn a_file_that_changes_during_the_first_scan() {
    let world = World::new();
    let (src, at) = (world.dir("src"), world.dir("at"));
    for n in 0..200 {
        fs::write(src.join(format!("f{n}")), vec![n as u8; 100_000]).unwrap();
    }
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut n = 0_u32;
            while !stop.load(Ordering::Relaxed) {
                let content = n.to_le_bytes().repeat(500_000);
                fs::write(src.join("moving"), &content).unwrap();
                fs::write(src.join(format!("f{}", n % 200)), &content[..1000]).unwrap();
                n += 1;
            }
        });
        let (a, links) = world.share(&src, "a");
        let b = world.mount(&links.read, &at, "b", &[&a]);
        stop.store(true, Ordering::Relaxed);
        wait_equal(&src, &at, &[&a, &b]);
    });
}

#[test]
fn links_that_are_wrong() {
    let world = World::new();
    let (src, at) = (world.dir("src"), world.dir("at"));
    let (a, links) = world.share(&src, "a");
    let state = world.dir("states").join("b");
    let mut mistyped = links.write.clone().into_bytes();
    mistyped[50] = if mistyped[50] == b'a' { b'b' } else { b'a' };
    let mistyped = String::from_utf8(mistyped).unwrap();
    let at = at.to_str().unwrap();
    fails(&run(&state, &["mount", &mistyped, at]), 2, "mistyped");
    fails(&run(&state, &["mount", &links.write[..80], at]), 2, "link");
    let output = run(&state, &["mount", &mistyped, at]);
    assert!(
        !text(&output).contains(&mistyped[20..]),
        "a link must not be repeated in an error"
    );
    drop(a);
}

#[test]
fn a_state_directory_in_use_or_newer() {
    let world = World::new();
    let (src, other) = (world.dir("src"), world.dir("other"));
    let (a, _) = world.share(&src, "a");
    let shared = a.run(&["share", other.to_str().unwrap()]);
    assert!(
        shared.contains("read-write"),
        "a running daemon takes the command: {shared}"
    );
    fails(&run(&a.state, &["daemon"]), 4, "daemon");
    let state = world.dir("newer");
    fs::write(state.join("version"), "999\n").unwrap();
    fails(
        &run(&state, &["share", other.to_str().unwrap()]),
        5,
        "newer",
    );
}

#[test]
fn a_port_in_use() {
    let world = World::new();
    let (src, other) = (world.dir("src"), world.dir("other"));
    let (a, _) = world.share(&src, "a");
    let state = world.dir("states").join("b");
    let listen = format!("127.0.0.1:{}", a.port);
    let output = ccbt(&state)
        .args([
            "share",
            other.to_str().unwrap(),
            "--no-dht",
            "--no-lsd",
            "--listen",
            &listen,
        ])
        .output()
        .unwrap();
    fails(&output, 4, &listen);
    assert!(
        text(&output).contains("hint: choose another address"),
        "{}",
        text(&output)
    );
    assert!(
        !other.join(".ccbt").exists(),
        "nothing is left in the directory"
    );
    let folders = fs::read_dir(state.join("folders"));
    assert!(folders.is_err() || folders.unwrap().next().is_none());
    let _running = a.status();
}
