//! Torrents with the clients people use: Transmission, aria2 and qBittorrent of Debian as seeders and as leechers, found through opentracker
//! by HTTP and by UDP, and all of them in one swarm. Content is compared byte by byte.
//!
//! What a client cannot do stays out of its cells: Transmission 3.00 and aria2 1.36 know v1 torrents only. `scripts/interop` runs the long ones
//! too.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod clients;
#[path = "../support/mod.rs"]
mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use clients::{Aria2, Client, QBittorrent, Tracker, Transmission};
use support::Place;
use support::clients::{Ccbt, content, free_port, same, text};

/// Transmission makes its first request after ten seconds, and machines are busy.
const PATIENCE: Duration = Duration::from_secs(120);

/// How a tracker is spoken to.
#[derive(Debug, Clone, Copy)]
enum By {
    Http,
    Udp,
}

struct Scene {
    place: Place,
    top: PathBuf,
    torrent: PathBuf,
    tracker: Tracker,
}

impl Scene {
    fn new(by: By, flag: &str) -> Self {
        let place = Place::new();
        let top = content(&place, 8);
        let port = free_port();
        let url = match by {
            By::Http => format!("http://127.0.0.1:{port}/announce"),
            By::Udp => format!("udp://127.0.0.1:{port}/announce"),
        };
        let torrent = place.path("top.torrent");
        let args = [
            "create",
            text(&top),
            "-o",
            text(&torrent),
            flag,
            "--tracker",
            &url,
            "--piece-size",
            "64KiB",
        ];
        let made = place.run(&args);
        assert_eq!(made.code, 0, "{}", made.stderr);
        let info = place.run(&["info", text(&torrent), "--json"]).json();
        let hashes = ["info_hash", "info_hash_v2"].map(|key| info[key].as_str());
        let hashes = hashes
            .into_iter()
            .flatten()
            .map(|hash| hash[..40].to_owned());
        let tracker = Tracker::start(&place.path("tracker"), port, &hashes.collect::<Vec<_>>());
        Self {
            place,
            top,
            torrent,
            tracker,
        }
    }

    /// A folder for one who has nothing yet, or a copy of the content for one who seeds.
    fn folder(&self, name: &str, seeds: bool) -> PathBuf {
        let dir = self.place.path(name);
        fs::create_dir_all(&dir).unwrap();
        if seeds {
            let copied = Command::new("cp")
                .args(["-r", text(&self.top), text(&dir)])
                .status()
                .unwrap();
            assert!(copied.success());
        }
        dir
    }

    fn ccbt(&self, name: &str, folder: &Path) -> Ccbt {
        let args = [
            "download",
            text(&self.torrent),
            "-o",
            text(folder),
            "--seed",
        ];
        Ccbt::start(&self.place, name, free_port(), &args)
    }

    /// Tells the `ccbt` of that name of a client that has to be called.
    fn introduce(&self, name: &str, folder: &Path, client: &impl Client) {
        let Some(port) = client.to_call() else { return };
        let state = self.place.path(name);
        let peer = format!("--peer=127.0.0.1:{port}");
        let args = ["--state", text(&state), "download", text(&self.torrent)];
        let run = self
            .place
            .run(&[&args[..], &["-o", text(folder), &peer, "--detach"]].concat());
        assert_eq!(run.code, 0, "{}", run.stderr);
    }

    fn wait_for(&self, folder: &Path, who: &str, log: impl Fn() -> String) {
        let end = Instant::now() + PATIENCE;
        while !is_same(&self.top, &folder.join("top")) {
            assert!(
                Instant::now() < end,
                "{who} does not get the content:\n{}",
                log()
            );
            std::thread::sleep(Duration::from_millis(200));
        }
    }
}

/// While a client writes, files are missing, short or have other names. Some never make a file without bytes.
fn is_same(a: &Path, b: &Path) -> bool {
    let run = Command::new("diff")
        .args(["-r", "-q", "-x", "empty", text(a), text(b)])
        .output()
        .unwrap();
    run.status.success()
}

/// We have it, the client gets it.
fn to<C: Client>(by: By) {
    let scene = Scene::new(by, "--v1");
    let kept = scene.folder("kept", true);
    let mut ours = scene.ccbt("ours", &kept);
    ours.wait_for("Downloaded top");
    scene.tracker.wait_for_somebody(|| ours.log());
    let folder = scene.folder("theirs", false);
    let client = C::start(&scene.place.path("client"), &scene.torrent, &folder);
    scene.introduce("ours", &kept, &client);
    scene.wait_for(&folder, C::NAME, || {
        format!("{}\n{}", client.log(), ours.log())
    });
}

/// The client has it, we get it.
fn from<C: Client>(by: By) {
    let scene = Scene::new(by, "--v1");
    let folder = scene.folder("theirs", true);
    let client = C::start(&scene.place.path("client"), &scene.torrent, &folder);
    scene.tracker.wait_for_somebody(|| client.log());
    let out = scene.folder("out", false);
    let mut ours = scene.ccbt("ours", &out);
    ours.wait_for_within("Downloaded top", PATIENCE, || client.log());
    same(&scene.top, &out.join("top"));
}

#[test]
fn transmission_gets_it_from_us() {
    to::<Transmission>(By::Http);
}

#[test]
fn we_get_it_from_transmission() {
    from::<Transmission>(By::Udp);
}

#[test]
fn aria2_gets_it_from_us() {
    // It asks UDP trackers only while it has a DHT.
    to::<Aria2>(By::Http);
}

#[test]
fn we_get_it_from_aria2() {
    from::<Aria2>(By::Http);
}

#[test]
fn qbittorrent_gets_it_from_us() {
    to::<QBittorrent>(By::Http);
}

#[test]
fn we_get_it_from_qbittorrent() {
    from::<QBittorrent>(By::Udp);
}

#[test]
#[ignore = "long: scripts/interop runs it"]
fn hybrids_and_v2_with_qbittorrent() {
    for flag in ["--hybrid", "--v2"] {
        let scene = Scene::new(By::Http, flag);
        let mut ours = scene.ccbt("ours", &scene.folder("kept", true));
        ours.wait_for("Downloaded top");
        scene.tracker.wait_for_somebody(|| ours.log());
        let folder = scene.folder("theirs", false);
        let client = QBittorrent::start(&scene.place.path("client"), &scene.torrent, &folder);
        scene.wait_for(&folder, flag, || {
            format!("{}\n{}", client.log(), ours.log())
        });
        drop(ours);
        let out = scene.folder("out", false);
        let mut ours = scene.ccbt("again", &out);
        ours.wait_for_within("Downloaded top", PATIENCE, || client.log());
        same(&scene.top, &out.join("top"));
    }
}

#[test]
#[ignore = "long: scripts/interop runs it"]
fn one_seeder_and_four_who_want_it() {
    let scene = Scene::new(By::Http, "--v1");
    let kept = scene.folder("kept", true);
    let mut seeder = scene.ccbt("seeder", &kept);
    seeder.wait_for("Downloaded top");
    scene.tracker.wait_for_somebody(|| seeder.log());
    let folders =
        ["ours", "transmission", "aria2", "qbittorrent"].map(|name| scene.folder(name, false));
    let dir = |name: &str| scene.place.path(&format!("client-{name}"));
    let mut ours = scene.ccbt("leecher", &folders[0]);
    let transmission = Transmission::start(&dir("transmission"), &scene.torrent, &folders[1]);
    scene.introduce("seeder", &kept, &transmission);
    scene.introduce("leecher", &folders[0], &transmission);
    let aria2 = Aria2::start(&dir("aria2"), &scene.torrent, &folders[2]);
    let qbittorrent = QBittorrent::start(&dir("qbittorrent"), &scene.torrent, &folders[3]);
    ours.wait_for_within("Downloaded top", PATIENCE, String::new);
    scene.wait_for(&folders[0], "ccbt", || ours.log());
    scene.wait_for(&folders[1], Transmission::NAME, || transmission.log());
    scene.wait_for(&folders[2], Aria2::NAME, || aria2.log());
    scene.wait_for(&folders[3], QBittorrent::NAME, || qbittorrent.log());
}
