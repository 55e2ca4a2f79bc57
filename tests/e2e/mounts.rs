//! Mounts in odd states: dead ones, forced ends, those that do not come back, and reads that nobody answers.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::process::{Pid, Signal, kill_process};

use crate::support::{Daemon, Rng, World, ccbt, is_mounted, text, tree, wait_equal};

fn raw_error<T>(result: io::Result<T>) -> Option<i32> {
    result.err().and_then(|error| error.raw_os_error())
}

fn local(daemon: &Daemon) -> String {
    SocketAddr::from(([127, 0, 0, 1], daemon.port)).to_string()
}

#[test]
fn a_dead_mount_goes_when_its_daemon_starts_again_and_when_another_unmounts_it() {
    let world = World::new();
    let (src, at_b, at_c) = (world.dir("src"), world.dir("at-b"), world.dir("at-c"));
    fs::write(src.join("f"), b"content").unwrap();
    let (a, links) = world.share(&src, "a");
    let mut b = world.mount(&links.write, &at_b, "b", &[&a]);
    b.kill();
    assert_eq!(
        raw_error(fs::read_dir(&at_b)),
        Some(Errno::NOTCONN.raw_os_error())
    );
    let b = world.start("b", &[], &["daemon"]);
    b.wait("the daemon", || b.try_run(&["status"]).status.success());
    assert_eq!(fs::read_dir(&at_b).unwrap().count(), 0);
    assert!(!is_mounted(&at_b));

    let mut c = world.mount(&links.write, &at_c, "c", &[&a]);
    c.kill();
    let said = b.run(&["unmount", at_c.to_str().unwrap()]);
    assert_eq!(
        said,
        format!("Unmounted {}, whose daemon was gone\n", at_c.display())
    );
    assert_eq!(fs::read_dir(&at_c).unwrap().count(), 0);
    let again = b.try_run(&["unmount", at_c.to_str().unwrap()]);
    assert_eq!(again.status.code(), Some(3), "{}", text(&again));
}

#[test]
fn a_forced_unmount_ends_the_mount_for_those_who_have_files_open() {
    let world = World::new();
    let (src, at_b) = (world.dir("src"), world.dir("at-b"));
    fs::write(src.join("f"), b"").unwrap();
    let (a, links) = world.share(&src, "a");
    let mut b = world.start("b", &[], &["daemon"]);
    b.watch_mount(&at_b);
    b.wait("the daemon", || b.try_run(&["status"]).status.success());
    let at = at_b.to_str().unwrap();
    let mount = || b.run(&["mount", &links.write, at, "--peer", &local(&a)]);
    mount();
    let open = || {
        OpenOptions::new()
            .read(true)
            .append(true)
            .open(at_b.join("f"))
    };
    let mut file = open().unwrap();
    file.write_all(b"written before").unwrap();
    b.run(&["unmount", at, "--force"]);
    let gone = [Errno::NOTCONN, Errno::CONNABORTED].map(|errno| Some(errno.raw_os_error()));
    assert!(gone.contains(&raw_error(file.write_all(b"too late"))));
    let mut bytes = [0; 4];
    assert!(gone.contains(&raw_error(file.read(&mut bytes))));
    drop(file);
    assert!(!is_mounted(&at_b));

    mount();
    assert_eq!(fs::read(at_b.join("f")).unwrap(), b"written before");
    // Without force the file is served on.
    let mut file = open().unwrap();
    b.run(&["unmount", at]);
    file.write_all(b", and on").unwrap();
    drop(file);
    mount();
    assert_eq!(fs::read(at_b.join("f")).unwrap(), b"written before, and on");
}

fn mount_options(at: &Path) -> String {
    let table = fs::read_to_string("/proc/self/mounts").unwrap();
    let at = at.to_str().unwrap();
    let line = table.lines().find(|line| line.contains(at));
    line.unwrap_or_default().to_owned()
}

#[test]
fn a_mount_that_does_not_come_back_is_named_and_tried_again() {
    let world = World::new();
    let (src, at_b) = (world.dir("src"), world.dir("at-b"));
    fs::write(src.join("f"), b"content").unwrap();
    let (a, links) = world.share(&src, "a");
    let start = || {
        let daemon = world.start("b", &[], &["daemon"]);
        daemon.wait("the daemon", || {
            daemon.try_run(&["status"]).status.success()
        });
        daemon
    };
    let at = at_b.to_str().unwrap();
    let mut b = start();
    b.run(&[
        "mount",
        &links.write,
        at,
        "-d",
        "--suid",
        "--peer",
        &local(&a),
    ]);
    assert!(!mount_options(&at_b).contains("nosuid"));
    assert_eq!(b.stop(), 0);

    fs::remove_dir(&at_b).unwrap();
    fs::write(&at_b, b"in the way").unwrap();
    let mut b = start();
    b.watch_mount(&at_b);
    let unopened = |daemon: &Daemon| daemon.status()["unopened"].clone();
    assert_eq!(unopened(&b)[0]["mount"], at, "{}", unopened(&b));
    let said = b.run(&["status"]);
    assert!(said.contains(&format!("not mounted on {at}: ")), "{said}");
    fs::remove_file(&at_b).unwrap();
    fs::create_dir(&at_b).unwrap();
    b.wait("the mount", || is_mounted(&at_b));
    assert_eq!(fs::read(at_b.join("f")).unwrap(), b"content");
    let options = mount_options(&at_b);
    assert!(
        !options.contains("nosuid") && options.contains("nodev"),
        "{options}"
    );
    b.wait("the status", || unopened(&b) == serde_json::json!([]));
    assert_eq!(b.stop(), 0);

    // Who does not want it any more says so.
    fs::remove_dir(&at_b).unwrap();
    let mut b = start();
    assert_eq!(unopened(&b)[0]["mount"], at);
    b.run(&["unmount", at]);
    assert_eq!(unopened(&b), serde_json::json!([]));
    assert_eq!(b.stop(), 0);
    let b = start();
    assert_eq!(unopened(&b), serde_json::json!([]));
    assert_eq!(b.status()["folders"], serde_json::json!([]));
}

#[test]
fn an_offline_mount_has_everything_when_the_publisher_is_gone() {
    let world = World::new();
    let (src, at_b) = (world.dir("src"), world.dir("at-b"));
    let mut rng = Rng(6);
    fs::create_dir(src.join("sub")).unwrap();
    for n in 0..30 {
        fs::write(src.join(format!("sub/f{n}")), rng.bytes(200_000)).unwrap();
    }
    let wanted = tree(&src).unwrap();
    let (mut a, links) = world.share(&src, "a");
    let at = at_b.to_str().unwrap();
    let args = ["mount", &links.read, at, "--offline"];
    let mut b = world.start("b", &[a.port], &args);
    b.watch_mount(&at_b);
    b.wait("everything", || {
        let status = b.try_run(&["status", "--json"]);
        let Ok(status) = serde_json::from_slice::<serde_json::Value>(&status.stdout) else {
            return false;
        };
        let folder = &status["folders"][0];
        folder["content"]["files"] == 30 && folder["missing"]["files"] == 0
    });
    assert_eq!(a.stop(), 0);
    assert_eq!(tree(&at_b).unwrap(), wanted);
    assert_eq!(b.stop(), 0);
    let b = world.mount(&links.read, &at_b, "b", &[]);
    assert_eq!(tree(&at_b).unwrap(), wanted);
    assert_eq!(b.status()["folders"][0]["pinned"], true);
}

#[test]
fn a_mount_that_fails_leaves_nothing_pinned() {
    let world = World::new();
    let (src, at_b) = (world.dir("src"), world.dir("at-b"));
    fs::write(src.join("f"), b"content").unwrap();
    let (a, links) = world.share(&src, "a");
    let b = world.mount(&links.write, &at_b, "b", &[&a]);
    let other = world.dir("other");
    fs::write(other.join("file"), b"").unwrap();
    let failed = b.try_run(&["mount", &links.write, other.to_str().unwrap(), "--offline"]);
    assert!(!failed.status.success());
    assert_eq!(b.status()["folders"][0]["pinned"], false);
}

/// A read that nobody answers, and how long it took to fail.
fn failed_read(path: &Path) -> Duration {
    let start = Instant::now();
    assert_eq!(raw_error(fs::read(path)), Some(Errno::IO.raw_os_error()));
    start.elapsed()
}

#[test]
fn a_read_that_nobody_answers_fails_in_time_and_works_again_later() {
    let world = World::new();
    let (src, at_b) = (world.dir("src"), world.dir("at-b"));
    let mut rng = Rng(7);
    let contents = [rng.bytes(400_000), rng.bytes(400_000)];
    for (n, content) in contents.iter().enumerate() {
        fs::write(src.join(format!("f{n}")), content).unwrap();
    }
    let (mut a, links) = world.share(&src, "a");
    let at = at_b.to_str().unwrap();
    let args = ["mount", &links.read, at, "--read-timeout", "2"];
    let mut b = world.start("b", &[a.port], &args);
    b.watch_mount(&at_b);
    b.wait("the listing", || at_b.join("f1").exists());
    let reads = |n: usize| fs::read(at_b.join(format!("f{n}"))).is_ok_and(|got| got == contents[n]);

    // A peer that is there and says nothing. A loaded machine may be late, never early.
    let pid = Pid::from_raw(a.pid() as i32).unwrap();
    kill_process(pid, Signal::STOP).unwrap();
    let took = failed_read(&at_b.join("f0"));
    assert!(took >= Duration::from_millis(1500), "{took:?}");
    assert!(took < Duration::from_secs(30), "{took:?}");
    kill_process(pid, Signal::CONT).unwrap();
    b.wait("the first file", || reads(0));

    // No peer at all.
    let port = a.port;
    assert_eq!(a.stop(), 0);
    b.wait("the peer to be gone", || {
        b.status()["folders"][0]["peers"] == 0
    });
    assert!(failed_read(&at_b.join("f1")) < Duration::from_secs(30));
    assert!(reads(0), "what was read before is here");
    let args = ["share", src.to_str().unwrap()];
    let a = world.launch_at(port, ccbt(&a.state), &a.state, &[], &args);
    b.wait("the second file", || reads(1));
    wait_equal(&src, &at_b, &[&a, &b]);
}

#[test]
fn a_mount_without_peers_says_that_it_waits() {
    let world = World::new();
    let (src, at_b) = (world.dir("src"), world.dir("at-b"));
    fs::write(src.join("f"), b"content").unwrap();
    let (mut a, links) = world.share(&src, "a");
    let port = a.port;
    assert_eq!(a.stop(), 0);
    let mut b = world.start(
        "b",
        &[port],
        &["mount", &links.read, at_b.to_str().unwrap()],
    );
    b.watch_mount(&at_b);
    b.wait("the sentence", || {
        b.says("no peer has answered yet; the folder shows up when one does")
    });
    assert_eq!(
        File::open(at_b.join("f")).map_err(|e| e.kind()).err(),
        Some(io::ErrorKind::NotFound)
    );
    let args = ["share", src.to_str().unwrap()];
    let a = world.launch_at(port, ccbt(&a.state), &a.state, &[], &args);
    b.wait("the folder", || {
        fs::read(at_b.join("f")).is_ok_and(|found| found == b"content")
    });
    drop(a);
}

#[test]
fn a_directory_that_cannot_be_made_is_named_and_nothing_is_left() {
    crate::support::need_root();
    let world = World::new();
    world.open_to_all();
    let (src, closed, state) = (world.dir("src"), world.dir("closed"), world.dir("state"));
    let (_a, links) = world.share(&src, "a");
    crate::support::give_to_nobody(&state);
    let at = closed.join("new");
    let path = std::env::var("PATH").unwrap();
    let output = crate::support::ccbt_as_nobody(&state, &path)
        .args(["join", &links.write, at.to_str().unwrap()])
        .args(["--no-dht", "--no-lsd", "--listen", "127.0.0.1:0"])
        .output()
        .unwrap();
    let said = text(&output);
    assert_eq!(output.status.code(), Some(6), "{said}");
    assert!(said.contains("that you can write to"), "{said}");
    assert_eq!(fs::read_dir(&closed).unwrap().count(), 0);
    let folders = fs::read_dir(state.join("folders"));
    assert_eq!(folders.map_or(0, |folders| folders.count()), 0);
}
