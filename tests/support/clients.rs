//! Programs that run beside a test of torrents: libtorrent and `ccbt`; and what they exchange.

#![allow(dead_code, reason = "each file of tests uses its own part")]
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::Place;

/// Debian's Python with its libtorrent, which `scripts/setup` installs.
pub(crate) const PYTHON: &str = "/usr/bin/python3";
/// Long enough for a loaded machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);

/// A libtorrent that runs beside the test.
pub(crate) struct Other {
    child: Child,
}

impl Other {
    pub(crate) fn start(args: &[&str]) -> (Self, BufReader<std::process::ChildStdout>) {
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
    pub(crate) fn seed(torrent: &Path, folder: &Path, limit: u32) -> (Self, u16) {
        Self::seed_with(&[], torrent, folder, limit)
    }

    /// The same, under settings of libtorrent.
    pub(crate) fn seed_with(
        settings: &[&str],
        torrent: &Path,
        folder: &Path,
        limit: u32,
    ) -> (Self, u16) {
        let limit = limit.to_string();
        let args = ["seed", text(torrent), text(folder), &limit];
        let (other, out) = Self::start(&[&set(settings), &args[..]].concat());
        (other, said(out)["port"].as_u64().unwrap() as u16)
    }

    /// A leecher, until it has everything.
    pub(crate) fn leech(torrent: &str, folder: &Path, port: u16) {
        Self::leech_with(&[], torrent, folder, port, "127.0.0.1");
    }

    /// The same, under settings of libtorrent, from a peer at `ip`.
    pub(crate) fn leech_with(settings: &[&str], torrent: &str, folder: &Path, port: u16, ip: &str) {
        let port = port.to_string();
        let args = ["leech", torrent, text(folder), &port, ip];
        let (_other, out) = Self::start(&[&set(settings), &args[..]].concat());
        assert_done(out);
    }

    /// A leecher that goes on beside the test.
    pub(crate) fn begin_leech(torrent: &Path, folder: &Path, port: u16) -> Leecher {
        let args = ["leech", text(torrent), text(folder), &port.to_string()];
        let (other, out) = Self::start(&args);
        Leecher { other, out }
    }
}

/// Arguments that set libtorrent's settings.
fn set<'a>(settings: &[&'a str]) -> Vec<&'a str> {
    settings.iter().flat_map(|s| ["--set", s]).collect()
}

/// A libtorrent that downloads.
pub(crate) struct Leecher {
    other: Other,
    out: BufReader<std::process::ChildStdout>,
}

impl Leecher {
    /// Until it has everything.
    pub(crate) fn wait(self) {
        assert_done(self.out);
        drop(self.other);
    }
}

fn assert_done(out: impl BufRead) {
    let end = said(out);
    assert_eq!(end["done"], true, "libtorrent is stuck: {end}");
}

impl Drop for Other {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

pub(crate) fn said(mut out: impl BufRead) -> serde_json::Value {
    let mut line = String::new();
    out.read_line(&mut line).unwrap();
    serde_json::from_str(&line)
        .expect("python3-libtorrent is needed: scripts/setup installs it; its errors are above")
}

pub(crate) fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// `ccbt` beside the test.
pub(crate) struct Ccbt {
    pub(crate) child: Child,
    pub(crate) log: PathBuf,
}

impl Ccbt {
    pub(crate) fn start(place: &Place, state: &str, port: u16, args: &[&str]) -> Self {
        Self::start_with(place, state, port, args, &[])
    }

    pub(crate) fn start_with(
        place: &Place,
        state: &str,
        port: u16,
        args: &[&str],
        env: &[(&str, &str)],
    ) -> Self {
        let listen = format!("127.0.0.1:{port}");
        Self::start_on(place, state, &listen, env, args)
    }

    /// Listening on that address.
    pub(crate) fn start_on(
        place: &Place,
        state: &str,
        listen: &str,
        env: &[(&str, &str)],
        args: &[&str],
    ) -> Self {
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
            .arg(format!("--listen={listen}"))
            .envs(env.iter().copied())
            .stdin(Stdio::null())
            .stdout(out.try_clone().unwrap())
            .stderr(out)
            .spawn()
            .unwrap();
        Self { child, log }
    }

    /// A daemon, once it answers: a command with `-d` that came earlier would start a second one, in an environment of its own.
    pub(crate) fn daemon(place: &Place, state: &str, port: u16, env: &[(&str, &str)]) -> Self {
        let daemon = Self::start_with(place, state, port, &["daemon"], env);
        let until = Instant::now() + PATIENCE;
        let state = place.path(state);
        while place.run(&["--state", text(&state), "status"]).code != 0 {
            assert!(Instant::now() < until, "no answer:\n{}", daemon.log());
            std::thread::sleep(Duration::from_millis(50));
        }
        daemon
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Waits for the command to end by itself.
    pub(crate) fn finish(mut self) {
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

    pub(crate) fn wait_for(&mut self, words: &str) {
        self.wait_for_within(words, PATIENCE, String::new);
    }

    /// `more`: what else is of interest when it fails.
    pub(crate) fn wait_for_within(
        &mut self,
        words: &str,
        patience: Duration,
        more: impl Fn() -> String,
    ) {
        let until = Instant::now() + patience;
        while !self.log().contains(words) {
            let ended = self.child.try_wait().unwrap();
            assert!(
                ended.is_none() && Instant::now() < until,
                "{ended:?}, no {words:?}:\n{}\n{}",
                self.log(),
                more()
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

pub(crate) fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}

pub(crate) fn random_bytes(len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    fs::File::open("/dev/urandom")
        .unwrap()
        .read_exact(&mut bytes)
        .unwrap();
    bytes
}

/// A folder `top` of files of many sizes, `mib` MiB in all, below `src`.
pub(crate) fn content(place: &Place, mib: usize) -> PathBuf {
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

pub(crate) fn torrent(place: &Place, top: &Path, flag: &str) -> PathBuf {
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

pub(crate) fn same(a: &Path, b: &Path) {
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

pub(crate) fn magnet(place: &Place, torrent: &Path) -> String {
    place
        .run(&["magnet", text(torrent)])
        .stdout
        .trim()
        .to_owned()
}
