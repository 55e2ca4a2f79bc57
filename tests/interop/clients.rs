//! Other people's programs, each run with a configuration of its own, on the loopback, without DHT and local discovery: what they find, they
//! find through the tracker.

use std::fs;
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::support::clients::{free_port, text};

/// A client with one torrent.
pub(crate) trait Client: Sized {
    const NAME: &'static str;

    /// Runs it with the torrent; `folder` has the content, or will. `dir` is for what else it keeps.
    fn start(dir: &Path, torrent: &Path, folder: &Path) -> Self;

    fn log(&self) -> String;

    /// The port at which it has to be called, if it does not call others here.
    fn to_call(&self) -> Option<u16> {
        None
    }
}

/// A program beside the test, ended with it.
struct Running {
    child: Child,
    log: PathBuf,
}

impl Running {
    fn start(dir: &Path, program: &str, package: &str, args: &[String]) -> Self {
        fs::create_dir_all(dir).unwrap();
        let log = dir.join("log");
        let out = fs::File::create(&log).unwrap();
        let child = Command::new(program)
            .args(args)
            .env("HOME", dir)
            .env_remove("XDG_CONFIG_HOME")
            .env_remove("XDG_DATA_HOME")
            .current_dir(dir)
            .stdin(Stdio::null())
            .stdout(out.try_clone().unwrap())
            .stderr(out)
            .spawn()
            .unwrap_or_else(|error| panic!("{program}: {error}; scripts/setup installs {package}"));
        Self { child, log }
    }

    fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

fn strings(args: &[&str]) -> Vec<String> {
    args.iter().map(|arg| (*arg).to_owned()).collect()
}

/// opentracker, HTTP and UDP on one port.
pub(crate) struct Tracker {
    running: Running,
    port: u16,
    /// Of the torrent, 40 hex digits.
    hash: String,
}

impl Tracker {
    /// Debian's serves the torrents of a list.
    pub(crate) fn start(dir: &Path, port: u16, hashes: &[String]) -> Self {
        fs::create_dir_all(dir).unwrap();
        fs::write(dir.join("list"), hashes.join("\n") + "\n").unwrap();
        // It gives up root's rights, and must still see its folder.
        let open = std::os::unix::fs::PermissionsExt::from_mode(0o777);
        fs::set_permissions(dir, open).unwrap();
        let number = port.to_string();
        let args = [
            "-i",
            "127.0.0.1",
            "-p",
            &number,
            "-P",
            &number,
            "-d",
            text(dir),
            "-w",
            "/list",
        ];
        let tracker = Self {
            running: Running::start(dir, "opentracker", "opentracker", &strings(&args)),
            port,
            hash: hashes.first().unwrap().clone(),
        };
        let end = Instant::now() + Duration::from_secs(30);
        while tracker.scrape().is_err() {
            assert!(Instant::now() < end, "no answer: {}", tracker.running.log());
            std::thread::sleep(Duration::from_millis(20));
        }
        tracker
    }

    /// Until somebody has told the tracker: whoever asks before that hears nothing for half an hour.
    pub(crate) fn wait_for_somebody(&self, log: impl Fn() -> String) {
        let end = Instant::now() + Duration::from_secs(60);
        let known = |answer: String| {
            answer.contains("8:completei1e") || answer.contains("10:incompletei1e")
        };
        while !self.scrape().is_ok_and(known) {
            assert!(Instant::now() < end, "nobody tells the tracker:\n{}", log());
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    fn scrape(&self) -> io::Result<String> {
        let hash: String = (0..20)
            .map(|n| format!("%{}", &self.hash[2 * n..2 * n + 2]))
            .collect();
        let mut stream = TcpStream::connect(("127.0.0.1", self.port))?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        write!(stream, "GET /scrape?info_hash={hash} HTTP/1.0\r\n\r\n")?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer)?;
        Ok(String::from_utf8_lossy(&answer).into_owned())
    }
}

/// transmission-daemon; torrents come through a watched folder.
pub(crate) struct Transmission {
    running: Running,
    port: u16,
}

impl Client for Transmission {
    const NAME: &'static str = "Transmission";

    fn start(dir: &Path, torrent: &Path, folder: &Path) -> Self {
        let watched = dir.join("watched");
        fs::create_dir_all(&watched).unwrap();
        fs::copy(torrent, watched.join("top.torrent")).unwrap();
        let (rpc, peers) = (free_port().to_string(), free_port());
        let port = peers.to_string();
        let args = strings(&[
            "--foreground",
            "--config-dir",
            text(&dir.join("config")),
            "--download-dir",
            text(folder),
            "--watch-dir",
            text(&watched),
            "--no-dht",
            "--no-lpd",
            "--no-portmap",
            "--no-utp",
            "--no-auth",
            "--port",
            &rpc,
            "--peerport",
            &port,
            "--bind-address-ipv4",
            "127.0.0.1",
            "--no-incomplete-dir",
        ]);
        let program = "transmission-daemon";
        Self {
            running: Running::start(dir, program, program, &args),
            port: peers,
        }
    }

    fn log(&self) -> String {
        self.running.log()
    }

    /// It takes every address of the loopback for a mistake.
    fn to_call(&self) -> Option<u16> {
        Some(self.port)
    }
}

/// aria2c.
pub(crate) struct Aria2(Running);

impl Client for Aria2 {
    const NAME: &'static str = "aria2";

    fn start(dir: &Path, torrent: &Path, folder: &Path) -> Self {
        let port = format!("--listen-port={}", free_port());
        let folder = format!("--dir={}", text(folder));
        let args = strings(&[
            "--no-conf",
            &folder,
            &port,
            "--check-integrity=true",
            "--seed-ratio=0",
            "--enable-dht=false",
            "--enable-dht6=false",
            "--bt-enable-lpd=false",
            "--bt-tracker-interval=2",
            "--interface=127.0.0.1",
            "--file-allocation=none",
            text(torrent),
        ]);
        Self(Running::start(dir, "aria2c", "aria2", &args))
    }

    fn log(&self) -> String {
        self.0.log()
    }
}

/// qbittorrent-nox.
pub(crate) struct QBittorrent(Running);

impl Client for QBittorrent {
    const NAME: &'static str = "qBittorrent";

    fn start(dir: &Path, torrent: &Path, folder: &Path) -> Self {
        let config = dir.join("qBittorrent/config");
        fs::create_dir_all(&config).unwrap();
        let (web, port) = (free_port(), free_port());
        let settings = format!(
            "[BitTorrent]\nSession\\DHTEnabled=false\nSession\\LSDEnabled=false\nSession\\PeXEnabled=false\nSession\\Port={port}\n\
             Session\\InterfaceAddress=127.0.0.1\nSession\\DefaultSavePath={folder}\nSession\\MultiConnectionsPerIp=true\n\
             [LegalNotice]\nAccepted=true\n[Network]\nPortForwardingEnabled=false\n[Preferences]\nWebUI\\Port={web}\nWebUI\\Address=127.0.0.1\n",
            folder = text(folder)
        );
        fs::write(config.join("qBittorrent.conf"), settings).unwrap();
        let profile = format!("--profile={}", text(dir));
        let save = format!("--save-path={}", text(folder));
        let args = strings(&[&profile, &save, "--skip-dialog=true", text(torrent)]);
        Self(Running::start(
            dir,
            "qbittorrent-nox",
            "qbittorrent-nox",
            &args,
        ))
    }

    fn log(&self) -> String {
        self.0.log()
    }
}
