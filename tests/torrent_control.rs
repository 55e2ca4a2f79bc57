//! What a user may decide for torrents while they run: how fast, which files, where to, in which order; and what happens when the
//! disk is full or files go away.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use support::Place;
use support::clients::*;

/// Bytes per second of the tests of limits: little, so that a loaded machine keeps up.
const LIMIT: u64 = 1 << 20;
/// How long a rate is watched on a machine that has nothing else to do. It is told four times a second, so its ends are known
/// to 5 %.
const WINDOW: Duration = Duration::from_secs(10);

/// A daemon that commands are sent to.
struct Daemon<'a> {
    place: &'a Place,
    state: &'static str,
    ccbt: Ccbt,
    port: u16,
}

impl<'a> Daemon<'a> {
    fn start(place: &'a Place, state: &'static str, env: &[(&str, &str)]) -> Self {
        let port = free_port();
        let ccbt = Ccbt::daemon(place, state, port, env);
        Self {
            place,
            state,
            ccbt,
            port,
        }
    }

    fn try_run(&self, args: &[&str]) -> Option<serde_json::Value> {
        let state = self.place.path(self.state);
        let run = self
            .place
            .run(&[&["--state", text(&state), "--json"], args].concat());
        (run.code == 0).then(|| run.json())
    }

    fn run(&self, args: &[&str]) -> serde_json::Value {
        self.try_run(args)
            .unwrap_or_else(|| panic!("{args:?}\n{}", self.ccbt.log()))
    }

    /// Begins a download, without waiting for it.
    fn download(&self, torrent: &Path, out: &Path, peers: &[u16], more: &[&str]) -> String {
        let peers: Vec<String> = peers
            .iter()
            .map(|port| format!("--peer=127.0.0.1:{port}"))
            .collect();
        let peers: Vec<&str> = peers.iter().map(String::as_str).collect();
        let args = ["download", text(torrent), "-d", "-o", text(out)];
        let run = self.run(&[&args, more, &peers].concat());
        run["torrent"]["hash"].as_str().unwrap().to_owned()
    }

    fn torrent(&self, hash: &str) -> serde_json::Value {
        self.run(&["torrent", hash])["torrent"].clone()
    }

    fn number(&self, hash: &str, field: &str) -> u64 {
        self.torrent(hash)[field].as_u64().unwrap()
    }

    /// Until so many files are wanted, and all of them are here.
    fn wait_for_files(&self, hash: &str, files: u64) {
        until("the files", || {
            let torrent = self.torrent(hash);
            torrent["content"]["files"] == files && torrent["state"] == "seeding"
        });
    }

    fn wait_for(&self, hash: &str, state: &str) {
        until(state, || self.torrent(hash)["state"] == state);
    }
}

fn until(what: &str, mut ready: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !ready() {
        assert!(Instant::now() < end, "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// What limits allow since something began. A loaded machine passes less, but never more; how near to the limit an idle one
/// comes is tested on a clock of its own (`engine::limits`), and by `scripts/interop` on this one.
struct Allowance {
    since: Instant,
    limit: u64,
    /// Of the time before the limit was this one.
    before: f64,
}

impl Allowance {
    fn new(limit: u64) -> Self {
        Self {
            since: Instant::now(),
            limit,
            before: 0.0,
        }
    }

    fn bytes(&self) -> f64 {
        self.before + self.limit as f64 * self.since.elapsed().as_secs_f64()
    }

    fn change(&mut self, limit: u64) {
        *self = Self {
            before: self.bytes(),
            ..Self::new(limit)
        };
    }

    /// Waits until `count` has come to `bytes`, and asserts that no more has passed than may.
    fn holds(&self, bytes: u64, what: &str, mut count: impl FnMut() -> u64) {
        let mut passed = 0;
        until(what, || {
            passed = count();
            passed >= bytes
        });
        // A quarter of a second may be saved up, and one read of each connection goes beyond.
        let allowed = self.bytes() + self.limit as f64 / 2.0;
        assert!(passed as f64 <= allowed, "{what}: {passed} of {allowed:.0}");
    }
}

#[test]
fn a_torrent_passes_no_more_than_its_limit_and_a_new_one() {
    let place = Place::new();
    let top = content(&place, 24);
    let file = torrent(&place, &top, "--v1");
    let (_seeder, port) = Other::seed(&file, &place.path("src"), 0);
    let daemon = Daemon::start(&place, "s", &[]);
    let out = place.path("out");
    let mut allowance = Allowance::new(LIMIT);
    let hash = daemon.download(&file, &out, &[port], &["--limit-down", "1MiB"]);
    let down = || daemon.number(&hash, "bytes_down");
    allowance.holds(3 * LIMIT, "down", down);
    allowance.change(2 * LIMIT);
    daemon.run(&["torrent", &hash, "set", "limit_down=2MiB"]);
    allowance.holds(8 * LIMIT, "down, changed", down);
    daemon.run(&["torrent", &hash, "set", "limit_down="]);
    daemon.wait_for(&hash, "seeding");
    same(&top, &out.join("top"));
}

#[test]
fn each_peer_passes_no_more_than_its_limit() {
    let place = Place::new();
    let top = content(&place, 24);
    let file = torrent(&place, &top, "--v1");
    let seeders = [(); 2].map(|()| Other::seed(&file, &place.path("src"), 0));
    let ports = [seeders[0].1, seeders[1].1];
    let daemon = Daemon::start(&place, "s", &[("CCBT_TORRENT_PEER_LIMIT_DOWN", "1MiB")]);
    let allowance = Allowance::new(2 * LIMIT);
    let hash = daemon.download(&file, &place.path("out"), &ports, &[]);
    allowance.holds(6 * LIMIT, "two peers, down", || {
        daemon.number(&hash, "bytes_down")
    });
}

#[test]
fn two_torrents_share_what_all_may_send() {
    let place = Place::new();
    let daemon = Daemon::start(&place, "s", &[("CCBT_TORRENT_LIMIT_UP", "1MiB")]);
    let mut torrents = Vec::new();
    for name in ["one", "two"] {
        let top = place.path("src").join(name);
        fs::create_dir_all(&top).unwrap();
        fs::write(top.join("f"), random_bytes(24 << 20)).unwrap();
        let file = torrent_named(&place, &top, name);
        let hash = daemon.download(&file, &place.path("src"), &[], &[]);
        daemon.wait_for(&hash, "seeding");
        torrents.push((hash, file, place.path(&format!("out-{name}"))));
    }
    let allowance = Allowance::new(LIMIT);
    let leech =
        |(_, file, out): &(String, PathBuf, PathBuf)| Other::begin_leech(file, out, daemon.port);
    let _leechers: Vec<_> = torrents.iter().map(leech).collect();
    let sent = |n: usize| daemon.number(&torrents[n].0, "bytes_up");
    allowance.holds(4 * LIMIT, "all torrents, up", || sent(0) + sent(1));
    until("both get something", || sent(0).min(sent(1)) > LIMIT);
}

#[test]
#[ignore = "measures time on a machine with nothing else to do: scripts/interop runs it"]
fn a_torrent_comes_within_ten_percent_of_its_limits() {
    let place = Place::new();
    let top = content(&place, 96);
    let file = torrent(&place, &top, "--v1");
    let (seeder, port) = Other::seed(&file, &place.path("src"), 0);
    let daemon = Daemon::start(&place, "s", &[]);
    let out = place.path("out");
    let hash = daemon.download(&file, &out, &[port], &["--limit-down", "1MiB"]);
    let down = || daemon.number(&hash, "bytes_down");
    is_near(LIMIT, "torrent, down", down);
    daemon.run(&["torrent", &hash, "set", "limit_down=2MiB"]);
    is_near(2 * LIMIT, "torrent, down, changed", down);
    daemon.run(&["torrent", &hash, "set", "limit_down=", "limit_up=2MiB"]);
    daemon.wait_for(&hash, "seeding");
    // Peer exchange would lead the leecher to it.
    drop(seeder);
    let leecher = Other::begin_leech(&file, &place.path("again"), daemon.port);
    is_near(2 * LIMIT, "torrent, up", || {
        daemon.number(&hash, "bytes_up")
    });
    daemon.run(&["torrent", &hash, "set", "limit_up="]);
    leecher.wait();
    same(&top, &place.path("again").join("top"));
}

/// Asserts that what `count` counts grows by `limit` bytes per second.
fn is_near(limit: u64, what: &str, mut count: impl FnMut() -> u64) {
    // What may be saved up in idle time is over after this.
    until(what, || count() > limit);
    let (begun, before) = (Instant::now(), count());
    std::thread::sleep(WINDOW);
    let (bytes, time) = (count() - before, begun.elapsed());
    let rate = bytes as f64 / time.as_secs_f64();
    let share = rate / limit as f64;
    assert!(
        (0.9..1.1).contains(&share),
        "{what}: {rate:.0} bytes/s with a limit of {limit}"
    );
}

fn torrent_named(place: &Place, top: &Path, name: &str) -> PathBuf {
    let file = place.path(&format!("{name}.torrent"));
    let run = place.run(&[
        "create",
        text(top),
        "-o",
        text(&file),
        "--piece-size",
        "256KiB",
    ]);
    assert_eq!(run.code, 0, "{}", run.stderr);
    file
}

#[test]
fn settings_are_kept_and_wrong_ones_are_refused() {
    let place = Place::new();
    let top = content(&place, 1);
    let file = torrent(&place, &top, "--v1");
    let daemon = Daemon::start(&place, "s", &[]);
    let hash = daemon.download(&file, &place.path("src"), &[], &["--limit-up", "5M"]);
    daemon.wait_for(&hash, "seeding");
    let shown = daemon.run(&[
        "torrent",
        &hash,
        "set",
        "slots=3",
        "seed_ratio=1.5",
        "preallocation=full",
        "order=round-robin",
        "super_seed=yes",
    ]);
    assert_eq!(shown["settings"]["order"], "round-robin");
    assert_eq!(shown["settings"]["super_seed"], true);
    let settings = |shown: &serde_json::Value| {
        let settings = &shown["settings"];
        ["limit_up", "slots", "seed_percent"].map(|key| settings[key].as_u64())
    };
    assert_eq!(settings(&shown), [Some(5 << 20), Some(3), Some(150)]);
    let state = place.path("s");
    for (args, what) in [
        (
            ["torrent", &hash, "set", "limit_up=fast"],
            "limit_up must be",
        ),
        (
            ["torrent", &hash, "set", "order=any"],
            "order must be one of rarest, sequential, round-robin",
        ),
        (
            ["torrent", &hash, "set", "colour=red"],
            "no setting `colour`",
        ),
    ] {
        let run = place.run(&[&["--state", text(&state)], &args[..]].concat());
        assert!(run.code == 2 && run.stderr.contains(what), "{run:?}");
    }
    drop(daemon);
    let daemon = Daemon::start(&place, "s", &[]);
    assert_eq!(
        settings(&daemon.run(&["torrent", &hash])),
        [Some(5 << 20), Some(3), Some(150)]
    );
    let shown = daemon.run(&["torrent", &hash, "set", "limit_up=", "slots="]);
    assert_eq!(settings(&shown), [None, None, Some(150)]);
}

#[test]
fn files_that_are_wanted_later_get_what_is_here_of_them() {
    let place = Place::new();
    let top = content(&place, 4);
    let file = torrent(&place, &top, "--v1");
    let (_seeder, port) = Other::seed(&file, &place.path("src"), 0);
    let daemon = Daemon::start(&place, "s", &[]);
    let out = place.path("out");
    let hash = daemon.download(&file, &out, &[port], &["--select", "deep"]);
    daemon.wait_for(&hash, "seeding");
    // Its neighbours lie in the same pieces and are in nobody's way.
    assert!(!out.join("top/sub/b").exists() && !out.join("top/z").exists());
    let before = daemon.number(&hash, "bytes_down");
    daemon.run(&["torrent", &hash, "priority", "sub/b", "7"]);
    daemon.wait_for_files(&hash, 2);
    let read = |dir: &Path, name: &str| fs::read(dir.join(name)).unwrap();
    assert_eq!(read(&top, "sub/b"), read(&out.join("top"), "sub/b"));
    let fetched = daemon.number(&hash, "bytes_down") - before;
    assert!(fetched <= 512 << 10, "{fetched} bytes for a file of 16 KiB");
    let files = daemon.run(&["torrent", &hash, "files"]);
    let priority = |name: &str| {
        let all = files["files"].as_array().unwrap();
        let file = all
            .iter()
            .find(|file| file["path"].as_str().unwrap().ends_with(name));
        file.unwrap()["priority"].as_u64().unwrap()
    };
    assert_eq!(
        (priority("sub/b"), priority("deep/c"), priority("top/big")),
        (7, 4, 0)
    );
    // A file that is there stays, whatever is wanted; and all of it is found again after a restart.
    daemon.run(&["torrent", &hash, "priority", "*", "4"]);
    daemon.wait_for_files(&hash, 6);
    daemon.run(&["torrent", &hash, "priority", "big", "0"]);
    daemon.wait_for_files(&hash, 5);
    drop(daemon);
    let daemon = Daemon::start(&place, "s", &[]);
    daemon.wait_for(&hash, "seeding");
    daemon.run(&["torrent", &hash, "priority", "big", "4"]);
    daemon.wait_for_files(&hash, 6);
    assert_eq!(daemon.number(&hash, "bytes_down"), 0);
    same(&top, &out.join("top"));
}

/// A folder on another file system than the tests' own.
struct OtherDisk(PathBuf);

impl OtherDisk {
    fn new(place: &Place, size: &str) -> Self {
        let dir = place.path("disk");
        fs::create_dir_all(&dir).unwrap();
        let option = format!("size={size}");
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &option, "none", text(&dir)])
            .status()
            .unwrap();
        assert!(
            mounted.success(),
            "a tmpfs cannot be mounted: these tests need root"
        );
        Self(dir)
    }

    fn resize(&self, size: &str) {
        self.remount(&format!("size={size}"));
    }

    fn remount(&self, option: &str) {
        let option = format!("remount,{option}");
        let resized = Command::new("mount")
            .args(["-o", &option, text(&self.0)])
            .status()
            .unwrap();
        assert!(resized.success());
    }
}

impl Drop for OtherDisk {
    fn drop(&mut self) {
        drop(Command::new("umount").args(["-l", text(&self.0)]).status());
    }
}

#[test]
fn a_torrent_moves_while_it_is_served() {
    let place = Place::new();
    let disk = OtherDisk::new(&place, "256m");
    let top = content(&place, 64);
    let file = torrent(&place, &top, "--v1");
    let kept = place.path("kept");
    copy(&top, &kept.join("top"));
    let daemon = Daemon::start(&place, "s", &[("CCBT_TORRENT_LIMIT_UP", "16MiB")]);
    let hash = daemon.download(&file, &kept, &[], &[]);
    daemon.wait_for(&hash, "seeding");
    // A file of somebody else's stays where it is.
    fs::write(kept.join("top/mine"), "mine").unwrap();
    let out = place.path("leeched");
    let leecher = Other::begin_leech(&file, &out, daemon.port);
    for to in [place.path("near"), disk.0.join("far"), place.path("back")] {
        daemon.run(&["torrent", &hash, "move", text(&to)]);
        assert_eq!(daemon.torrent(&hash)["dir"], text(&to));
        same(&top, &to.join("top"));
    }
    leecher.wait();
    same(&top, &out.join("top"));
    let gone = |path: PathBuf| until("what was moved is gone", || !path.exists());
    gone(disk.0.join("far/top"));
    gone(place.path("near/top"));
    assert_eq!(fs::read_dir(kept.join("top")).unwrap().count(), 1);
    // Nothing is overwritten.
    let taken = place.path("taken");
    fs::create_dir_all(taken.join("top")).unwrap();
    fs::write(taken.join("top/z"), "not yours").unwrap();
    let state = place.path("s");
    let run = place.run(&[
        "--state",
        text(&state),
        "torrent",
        &hash,
        "move",
        text(&taken),
    ]);
    assert!(
        run.code != 0 && run.stderr.contains("exists already"),
        "{run:?}"
    );
    assert_eq!(fs::read(taken.join("top/z")).unwrap(), b"not yours");
    same(&top, &place.path("back/top"));
    drop(daemon);
    let daemon = Daemon::start(&place, "s", &[]);
    daemon.wait_for(&hash, "seeding");
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to.parent().unwrap()).unwrap();
    let copied = Command::new("cp")
        .args(["-r", text(from), text(to)])
        .status()
        .unwrap();
    assert!(copied.success());
}

#[test]
fn a_move_that_is_cut_off_goes_on() {
    let place = Place::new();
    let disk = OtherDisk::new(&place, "256m");
    let top = content(&place, 96);
    let file = torrent(&place, &top, "--v1");
    let kept = place.path("kept");
    copy(&top, &kept.join("top"));
    let to = disk.0.join("far");
    let mut daemon = Daemon::start(&place, "s", &[]);
    let hash = daemon.download(&file, &kept, &[], &[]);
    daemon.wait_for(&hash, "seeding");
    let state = place.path("s");
    let mut command =
        place.command(&["--state", text(&state), "torrent", &hash, "move", text(&to)]);
    let mut moving = command
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    // The large file is on its way, or has just arrived.
    let half = to.join("top/big.ccbt-moving");
    let end = Instant::now() + PATIENCE;
    while !half.exists() && !to.join("top/big").exists() {
        assert!(Instant::now() < end, "nothing moves");
    }
    daemon.ccbt.child.kill().unwrap();
    daemon.ccbt.child.wait().unwrap();
    drop(moving.wait());
    drop(daemon);
    let daemon = Daemon::start(&place, "s", &[]);
    until("the torrent", || {
        daemon.try_run(&["torrent", &hash]).is_some()
    });
    daemon.wait_for(&hash, "seeding");
    let dir = PathBuf::from(daemon.torrent(&hash)["dir"].as_str().unwrap());
    assert_eq!(dir, to);
    same(&top, &dir.join("top"));
    assert_eq!(daemon.number(&hash, "bytes_down"), 0);
}

#[test]
fn a_full_disk_is_said_and_waited_for() {
    let place = Place::new();
    let disk = OtherDisk::new(&place, "12m");
    let top = content(&place, 24);
    let file = torrent(&place, &top, "--v1");
    let (_seeder, port) = Other::seed(&file, &place.path("src"), 0);
    let daemon = Daemon::start(&place, "s", &[]);
    let hash = daemon.download(&file, &disk.0, &[port], &[]);
    until("a word about the disk", || {
        daemon.torrent(&hash)["note"]
            .as_str()
            .unwrap()
            .contains("disk is full")
    });
    disk.resize("64m");
    daemon.wait_for(&hash, "seeding");
    same(&top, &disk.0.join("top"));
}

#[test]
fn a_folder_that_cannot_be_written_to_is_said_and_left_alone() {
    let place = Place::new();
    let disk = OtherDisk::new(&place, "64m");
    let top = content(&place, 8);
    let file = torrent(&place, &top, "--v1");
    let (_seeder, port) = Other::seed(&file, &place.path("src"), 0);
    disk.remount("ro");
    let daemon = Daemon::start(&place, "s", &[]);
    let hash = daemon.download(&file, &disk.0, &[port], &[]);
    until("a word about the folder", || {
        let torrent = daemon.torrent(&hash);
        torrent["note"].as_str().unwrap().contains("output folder") && torrent["bytes_done"] == 0
    });
    disk.remount("rw");
    daemon.run(&["torrent", &hash, "resume"]);
    daemon.wait_for(&hash, "seeding");
    same(&top, &disk.0.join("top"));
}

#[test]
fn space_that_is_to_be_taken_first_is_taken_or_missed_before_the_start() {
    let place = Place::new();
    let disk = OtherDisk::new(&place, "12m");
    let top = content(&place, 24);
    let file = torrent(&place, &top, "--v1");
    let (_seeder, port) = Other::seed(&file, &place.path("src"), 2 << 20);
    let daemon = Daemon::start(&place, "s", &[("CCBT_TORRENT_PREALLOCATION", "full")]);
    let hash = daemon.download(&file, &disk.0, &[port], &[]);
    until("a word about the disk", || {
        daemon.torrent(&hash)["note"]
            .as_str()
            .unwrap()
            .contains("disk is full")
    });
    assert_eq!(
        daemon.number(&hash, "bytes_down"),
        0,
        "it was asked for though there was no room"
    );
    disk.resize("64m");
    until("the space", || {
        use std::os::unix::fs::MetadataExt;
        fs::metadata(disk.0.join("top/big")).is_ok_and(|big| big.blocks() * 512 >= 24 << 20)
    });
    assert!(
        daemon.number(&hash, "bytes_done") < 20 << 20,
        "the space was not taken first"
    );
    daemon.wait_for(&hash, "seeding");
    same(&top, &disk.0.join("top"));
}

#[test]
fn a_file_that_goes_away_while_it_is_served_is_fetched_again() {
    let place = Place::new();
    let top = content(&place, 8);
    let file = torrent(&place, &top, "--v1");
    let kept = place.path("kept");
    copy(&top, &kept.join("top"));
    let daemon = Daemon::start(&place, "s", &[]);
    let hash = daemon.download(&file, &kept, &[], &[]);
    daemon.wait_for(&hash, "seeding");
    let big = fs::OpenOptions::new()
        .write(true)
        .open(kept.join("top/big"))
        .unwrap();
    big.set_len(3 << 20).unwrap();
    fs::remove_file(kept.join("top/z")).unwrap();
    let out = place.path("out");
    let leecher = Other::begin_leech(&file, &out, daemon.port);
    until("a word about the file", || {
        daemon.torrent(&hash)["note"]
            .as_str()
            .unwrap()
            .contains("gone from the output folder")
    });
    // What is left is served; the rest comes from another.
    let (_seeder, port) = Other::seed(&file, &place.path("src"), 0);
    daemon.download(&file, &kept, &[port], &[]);
    leecher.wait();
    same(&top, &out.join("top"));
    daemon.wait_for(&hash, "seeding");
    same(&top, &kept.join("top"));
}

#[test]
fn torrents_wait_for_those_before_them() {
    let place = Place::new();
    let daemon = Daemon::start(&place, "s", &[("CCBT_TORRENT_DOWNLOADS_MAX", "1")]);
    let mut hashes = Vec::new();
    for name in ["one", "two"] {
        let top = place.path("src").join(name);
        fs::create_dir_all(&top).unwrap();
        fs::write(top.join("f"), random_bytes(1 << 20)).unwrap();
        let file = torrent_named(&place, &top, name);
        hashes.push((daemon.download(&file, &place.path("out"), &[], &[]), file));
    }
    daemon.wait_for(&hashes[0].0, "downloading");
    daemon.wait_for(&hashes[1].0, "queued");
    daemon.run(&["torrent", &hashes[1].0, "set", "forced=true"]);
    daemon.wait_for(&hashes[1].0, "downloading");
    daemon.run(&["torrent", &hashes[1].0, "set", "forced="]);
    daemon.wait_for(&hashes[1].0, "queued");
    let (_seeder, port) = Other::seed(&hashes[0].1, &place.path("src"), 0);
    daemon.download(&hashes[0].1, &place.path("out"), &[port], &[]);
    daemon.wait_for(&hashes[0].0, "seeding");
    daemon.wait_for(&hashes[1].0, "downloading");
    daemon.run(&["torrent", &hashes[0].0, "pause"]);
    daemon.wait_for(&hashes[0].0, "paused");
}

/// Pieces are fetched in the order that is set, and shown one by one to a peer that is alone.
#[test]
fn orders_and_super_seeding_work_with_other_programs() {
    let place = Place::new();
    let top = content(&place, 4);
    let file = torrent(&place, &top, "--v1");
    let (_seeder, port) = Other::seed(&file, &place.path("src"), 0);
    let daemon = Daemon::start(&place, "s", &[("CCBT_TORRENT_ORDER", "round-robin")]);
    let out = place.path("out");
    let hash = daemon.download(&file, &out, &[port], &[]);
    daemon.wait_for(&hash, "seeding");
    same(&top, &out.join("top"));
    daemon.run(&["torrent", &hash, "set", "super_seed=yes"]);
    let again = place.path("again");
    Other::leech(text(&file), &again, daemon.port);
    same(&top, &again.join("top"));
}

/// A tracker that refuses everybody.
fn refusing_tracker() -> String {
    use std::io::{Read, Write};
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/announce", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut head = [0; 4096];
            drop(stream.read(&mut head));
            let answer = b"HTTP/1.0 200 OK\r\n\r\nd14:failure reason14:not registerede";
            drop(stream.write_all(answer));
        }
    });
    url
}

#[test]
fn what_trackers_say_is_shown() {
    let place = Place::new();
    let top = content(&place, 1);
    let url = refusing_tracker();
    let file = place.path("t.torrent");
    let create = ["create", text(&top), "-o", text(&file), "--tracker", &url];
    assert_eq!(place.run(&create).code, 0);
    let daemon = Daemon::start(&place, "s", &[]);
    let hash = daemon.download(&file, &place.path("out"), &[], &[]);
    let note = || daemon.torrent(&hash)["note"].as_str().unwrap().to_owned();
    until("the tracker's answer", || {
        note() == "no peers; tracker said: not registered"
    });
    let list = daemon.run(&["torrent", &hash, "trackers"]);
    let tracker = &list["trackers"][0];
    assert_eq!(tracker["url"], url);
    assert_eq!(tracker["message"], "not registered");
    assert_eq!(tracker["error"], "the tracker refuses: not registered");
    assert!(tracker["asked_s"].as_u64().unwrap() < PATIENCE.as_secs());
    assert!(tracker["next_s"].as_u64().unwrap() > 0);
    assert_eq!(tracker["seeds"], serde_json::Value::Null);
    let state = place.path("s");
    let run = place.run(&["--state", text(&state), "torrent", &hash, "trackers"]);
    let expected = "tracker said: not registered";
    assert!(run.stdout.contains(expected), "{}", run.stdout);
}
