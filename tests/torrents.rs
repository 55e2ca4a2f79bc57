//! Downloads from and to libtorrent: whole content, by torrent file and by magnet, after a kill, and of chosen files.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use support::Place;

/// Debian's Python with its libtorrent, which `scripts/setup` installs.
const PYTHON: &str = "/usr/bin/python3";
/// Long enough for a loaded machine.
const PATIENCE: Duration = Duration::from_secs(120);

/// A libtorrent that runs beside the test.
struct Other {
    child: Child,
}

impl Other {
    fn start(args: &[&str]) -> (Self, BufReader<std::process::ChildStdout>) {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/torrent_peer.py");
        let mut child = Command::new(PYTHON)
            .arg(script)
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("Debian's python3 is needed: scripts/setup installs it and python3-libtorrent");
        let out = BufReader::new(child.stdout.take().unwrap());
        (Self { child }, out)
    }

    /// A seeder; with the port it listens on.
    fn seed(torrent: &Path, folder: &Path, limit: u32) -> (Self, u16) {
        let limit = limit.to_string();
        let (other, out) = Self::start(&["seed", text(torrent), text(folder), &limit]);
        (other, said(out)["port"].as_u64().unwrap() as u16)
    }

    /// A leecher, until it has everything.
    fn leech(torrent: &str, folder: &Path, port: u16) {
        let (_other, out) = Self::start(&["leech", torrent, text(folder), &port.to_string()]);
        let end = said(out);
        assert_eq!(end["done"], true, "libtorrent is stuck: {end}");
    }
}

impl Drop for Other {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

fn said(mut out: impl BufRead) -> serde_json::Value {
    let mut line = String::new();
    out.read_line(&mut line).unwrap();
    serde_json::from_str(&line)
        .expect("python3-libtorrent is needed: scripts/setup installs it; its errors are above")
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// `ccbt` beside the test.
struct Ccbt {
    child: Child,
    log: PathBuf,
}

impl Ccbt {
    fn start(place: &Place, state: &str, port: u16, args: &[&str]) -> Self {
        let log = place.path(&format!("{state}.log"));
        let out = fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(&log)
            .unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_ccbt"))
            .arg("--state")
            .arg(place.path(state))
            .args(args)
            .args(["--no-dht", "--no-lsd", "--no-portmap", "-v"])
            .arg(format!("--listen=127.0.0.1:{port}"))
            .stdin(Stdio::null())
            .stdout(out.try_clone().unwrap())
            .stderr(out)
            .spawn()
            .unwrap();
        Self { child, log }
    }

    fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Waits for the command to end by itself.
    fn finish(mut self) {
        let until = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                assert!(status.success(), "{status}\n{}", self.log());
                return;
            }
            assert!(Instant::now() < until, "it does not end:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn wait_for(&mut self, words: &str) {
        let until = Instant::now() + PATIENCE;
        while !self.log().contains(words) {
            let ended = self.child.try_wait().unwrap();
            assert!(
                ended.is_none() && Instant::now() < until,
                "{ended:?}, no {words:?}:\n{}",
                self.log()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Ccbt {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}

fn random_bytes(len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    fs::File::open("/dev/urandom")
        .unwrap()
        .read_exact(&mut bytes)
        .unwrap();
    bytes
}

/// A folder `top` of files of many sizes, `mib` MiB in all, below `src`.
fn content(place: &Place, mib: usize) -> PathBuf {
    let top = place.path("src/top");
    fs::create_dir_all(top.join("sub/deep")).unwrap();
    fs::write(top.join("big"), random_bytes(mib << 20)).unwrap();
    for (name, len) in [
        ("a", 1),
        ("sub/b", 16_384),
        ("sub/deep/c", 300_001),
        ("z", 70_000),
        ("empty", 0),
    ] {
        fs::write(top.join(name), random_bytes(len)).unwrap();
    }
    top
}

fn torrent(place: &Place, top: &Path, flag: &str) -> PathBuf {
    let file = place.path(&format!("t{flag}.torrent"));
    let run = place.run(&[
        "create",
        text(top),
        "-o",
        text(&file),
        flag,
        "--piece-size",
        "256KiB",
    ]);
    assert_eq!(run.code, 0, "{}", run.stderr);
    file
}

fn same(a: &Path, b: &Path) {
    let run = Command::new("diff")
        .args(["-r", text(a), text(b)])
        .output()
        .unwrap();
    assert!(
        run.status.success(),
        "{}",
        String::from_utf8_lossy(&run.stdout)
    );
}

fn magnet(place: &Place, torrent: &Path) -> String {
    place
        .run(&["magnet", text(torrent)])
        .stdout
        .trim()
        .to_owned()
}

#[test]
fn from_libtorrent_by_file_and_by_magnet() {
    let place = Place::new();
    let top = content(&place, 64);
    for flag in ["--v1", "--hybrid", "--v2"] {
        let file = torrent(&place, &top, flag);
        let (_seeder, port) = Other::seed(&file, &place.path("src"), 0);
        let link = magnet(&place, &file);
        for (n, source) in [text(&file), &link].iter().enumerate() {
            let out = place.path(&format!("out{flag}{n}"));
            let state = format!("s{flag}{n}");
            let peer = format!("--peer=127.0.0.1:{port}");
            let ccbt = Ccbt::start(
                &place,
                &state,
                0,
                &["download", source, "-o", text(&out), &peer],
            );
            ccbt.finish();
            same(&top, &out.join("top"));
            fs::remove_dir_all(&out).unwrap();
        }
    }
}

#[test]
fn to_libtorrent_by_file_and_by_magnet() {
    let place = Place::new();
    let top = content(&place, 64);
    for flag in ["--v1", "--hybrid"] {
        let file = torrent(&place, &top, flag);
        let port = free_port();
        let src = place.path("src");
        let args = ["download", text(&file), "-o", text(&src), "--seed"];
        let mut ccbt = Ccbt::start(&place, &format!("s{flag}"), port, &args);
        ccbt.wait_for("Downloaded top");
        for (n, source) in [text(&file), &magnet(&place, &file)].iter().enumerate() {
            let out = place.path(&format!("out{flag}{n}"));
            Other::leech(source, &out, port);
            same(&top, &out.join("top"));
            fs::remove_dir_all(&out).unwrap();
        }
    }
}

#[test]
fn a_magnet_is_opened_again_without_peers() {
    let place = Place::new();
    let top = content(&place, 4);
    for flag in ["--v1", "--hybrid", "--v2"] {
        let file = torrent(&place, &top, flag);
        let (seeder, port) = Other::seed(&file, &place.path("src"), 0);
        let (link, out) = (magnet(&place, &file), place.path(&format!("out{flag}")));
        let peer = format!("--peer=127.0.0.1:{port}");
        let state = format!("s{flag}");
        let args = ["download", &link, "-o", text(&out), &peer];
        Ccbt::start(&place, &state, 0, &args).finish();
        drop(seeder);
        // What is kept is a torrent file like any other, with the piece hashes that peers have told.
        let kept = fs::read_dir(place.path(&state).join("torrents")).unwrap();
        let kept = kept
            .map(|dir| dir.unwrap().path().join("metainfo.torrent"))
            .next()
            .unwrap();
        let (run, original) = (
            place.run(&["info", text(&kept)]),
            place.run(&["info", text(&file)]),
        );
        assert_eq!(run.code, 0, "{run:?}");
        let line = |text: &str| {
            text.lines()
                .find(|l| l.contains("btmh") || l.contains("v2"))
                .map(str::to_owned)
        };
        assert_eq!(line(&run.stdout), line(&original.stdout));
        if flag != "--v1" {
            let find = |bytes: &[u8]| bytes.windows(15).any(|at| at == b"12:piece layers");
            assert!(
                find(&fs::read(&kept).unwrap()),
                "{flag}: the piece hashes were not kept"
            );
        }
        fs::remove_file(place.path(&format!("{state}.log"))).unwrap();
        let args = ["download", &link, "-o", text(&out), "--seed"];
        let mut again = Ccbt::start(&place, &state, 0, &args);
        again.wait_for("Downloaded top");
        assert!(
            !again.log().contains("torrent not opened"),
            "{}",
            again.log()
        );
    }
}

#[test]
fn a_killed_download_goes_on_where_it_was() {
    let place = Place::new();
    let top = content(&place, 64);
    let file = torrent(&place, &top, "--v1");
    let (_seeder, port) = Other::seed(&file, &place.path("src"), 24 << 20);
    let out = place.path("out");
    let peer = format!("--peer=127.0.0.1:{port}");
    let args = ["download", text(&file), "-o", text(&out), &peer, "--json"];
    let mut ccbt = Ccbt::start(&place, "s", 0, &args);
    let until = Instant::now() + PATIENCE;
    let noted = || {
        let dir = fs::read_dir(place.path("s/torrents"))
            .ok()?
            .next()?
            .ok()?
            .path();
        fs::metadata(dir.join("resume")).ok().map(|m| m.len())
    };
    // 82 bytes of header and bit field, then 4 for each piece of 256 KiB.
    while noted().is_none_or(|len| len < 82 + 4 * 100) {
        assert!(Instant::now() < until, "{}", ccbt.log());
        std::thread::sleep(Duration::from_millis(5));
    }
    ccbt.child.kill().unwrap();
    ccbt.child.wait().unwrap();
    let before = (noted().unwrap() - 82) / 4 * (256 << 10);
    fs::remove_file(place.path("s.log")).unwrap();
    let ccbt = Ccbt::start(&place, "s", 0, &args);
    let log = ccbt.log.clone();
    ccbt.finish();
    same(&top, &out.join("top"));
    let log = fs::read_to_string(log).unwrap();
    let line = log.lines().find(|line| line.starts_with('{')).unwrap();
    let end: serde_json::Value = serde_json::from_str(line).unwrap();
    let total = end["torrent"]["content"]["bytes"].as_u64().unwrap();
    let fetched = end["torrent"]["bytes_down"].as_u64().unwrap();
    assert!(
        fetched <= total - before + (300 << 10),
        "{fetched} of {total}, {before} were there"
    );
}

#[test]
fn only_what_is_chosen_is_made() {
    let place = Place::new();
    let top = content(&place, 4);
    let file = torrent(&place, &top, "--v1");
    let (_seeder, port) = Other::seed(&file, &place.path("src"), 0);
    let out = place.path("out");
    let peer = format!("--peer=127.0.0.1:{port}");
    let args = [
        "download",
        text(&file),
        "-o",
        text(&out),
        &peer,
        "--select",
        "*/deep/*",
        "--sequential",
    ];
    Ccbt::start(&place, "s", 0, &args).finish();
    let read = |dir: &Path| fs::read(dir.join("sub/deep/c")).unwrap();
    assert_eq!(read(&top), read(&out.join("top")));
    for name in ["big", "z", "a", "sub/b"] {
        assert!(!out.join("top").join(name).exists(), "{name}");
    }
}

#[test]
fn torrents_are_listed_and_told_what_to_do() {
    let place = Place::new();
    let top = content(&place, 4);
    let file = torrent(&place, &top, "--v1");
    let src = place.path("src");
    let args = ["download", text(&file), "-o", text(&src), "--seed"];
    let mut ccbt = Ccbt::start(&place, "s", 0, &args);
    ccbt.wait_for("Downloaded top");
    let state = place.path("s");
    let run = |args: &[&str]| {
        let run = place.run(&[&["--state", text(&state), "--json"], args].concat());
        assert_eq!(run.code, 0, "{run:?}");
        run.json()
    };
    let list = run(&["torrents"]);
    let hash = list["torrents"][0]["hash"].as_str().unwrap().to_owned();
    assert_eq!(list["torrents"][0]["state"], "seeding");
    assert_eq!(
        run(&["torrent", "top", "files"])["files"]
            .as_array()
            .unwrap()
            .len(),
        6
    );
    run(&["torrent", &hash[..6], "pause"]);
    let until = Instant::now() + PATIENCE;
    let wait = |wanted: &str| {
        while run(&["torrent", &hash])["torrent"]["state"] != wanted {
            assert!(Instant::now() < until, "not {wanted}");
            std::thread::sleep(Duration::from_millis(50));
        }
    };
    wait("paused");
    run(&["torrent", &hash, "resume"]);
    wait("seeding");
    // A damaged piece is found by a check, and missing from then on.
    let mut big = fs::OpenOptions::new()
        .write(true)
        .open(top.join("big"))
        .unwrap();
    big.write_all(b"damage").unwrap();
    run(&["torrent", &hash, "recheck"]);
    wait("downloading");
    run(&["torrent", &hash, "remove"]);
    assert!(top.join("big").exists());
    ccbt.child.wait().unwrap();
}

#[test]
fn a_mounted_torrent_is_fetched_as_it_is_read() {
    assert!(
        Path::new("/dev/fuse").exists(),
        "/dev/fuse is missing: run `modprobe fuse`"
    );
    let place = Place::new();
    let top = content(&place, 64);
    for flag in ["--v1", "--v2"] {
        let file = torrent(&place, &top, flag);
        let (_seeder, port) = Other::seed(&file, &place.path("src"), 0);
        let mnt = place.path(&format!("mnt{flag}"));
        fs::create_dir_all(&mnt).unwrap();
        let peer = format!("--peer=127.0.0.1:{port}");
        let state = format!("s{flag}");
        let link = magnet(&place, &file);
        let source = if flag == "--v1" { &link } else { text(&file) };
        let mut ccbt = Ccbt::start(&place, &state, 0, &["mount", source, text(&mnt), &peer]);
        ccbt.wait_for("Mounted top");
        let big = fs::read(top.join("big")).unwrap();
        let mounted = fs::File::open(mnt.join("top/big")).unwrap();
        let begun = Instant::now();
        for at in [50 << 20, 7 << 20, 33_333_333, big.len() - 10] {
            use std::os::unix::fs::FileExt;
            let mut part = vec![0; 65_536.min(big.len() - at)];
            mounted.read_exact_at(&mut part, at as u64).unwrap();
            assert_eq!(part, big[at..at + part.len()], "at {at}");
        }
        println!("{flag}: four reads in {:?}", begun.elapsed());
        let run = place
            .run(&["--state", text(&place.path(&state)), "--json", "torrents"])
            .json();
        let done = run["torrents"][0]["bytes_done"].as_u64().unwrap();
        assert!(done < 16 << 20, "{done} bytes were fetched for four reads");
        same(&top, &mnt.join("top"));
        fs::write(mnt.join("top/new"), "x").unwrap_err();
        assert!(fs::metadata(mnt.join("top/nothing")).is_err());
        let run = place.run(&["--state", text(&place.path(&state)), "unmount", text(&mnt)]);
        assert_eq!(run.code, 0, "{run:?}");
        ccbt.finish();
    }
}

#[test]
fn one_of_two_seeders_is_corrupt() {
    let place = Place::new();
    let top = content(&place, 16);
    let file = torrent(&place, &top, "--v1");
    let (_good, good) = Other::seed(&file, &place.path("src"), 6 << 20);
    // The other one's files change after it has checked them.
    let bad = place.path("bad");
    fs::create_dir_all(&bad).unwrap();
    let copied = Command::new("cp")
        .args(["-r", text(&top), text(&bad)])
        .status()
        .unwrap();
    assert!(copied.success());
    let (_bad, port) = Other::seed(&file, &bad, 6 << 20);
    let big = fs::OpenOptions::new()
        .write(true)
        .open(bad.join("top/big"))
        .unwrap();
    for at in (0..16 << 20).step_by(100_000) {
        std::os::unix::fs::FileExt::write_all_at(&big, b"corrupt", at).unwrap();
    }
    let out = place.path("out");
    let peers = [good, port].map(|port| format!("--peer=127.0.0.1:{port}"));
    let args = [
        "download",
        text(&file),
        "-o",
        text(&out),
        &peers[0],
        &peers[1],
    ];
    let ccbt = Ccbt::start(&place, "s", 0, &args);
    let log = ccbt.log.clone();
    ccbt.finish();
    same(&top, &out.join("top"));
    let log = fs::read_to_string(log).unwrap();
    let dropped: Vec<&str> = log
        .lines()
        .filter(|line| line.contains("it sent wrong bytes"))
        .collect();
    assert!(
        !dropped.is_empty() && dropped.iter().all(|line| line.contains(&port.to_string())),
        "{log}"
    );
}
