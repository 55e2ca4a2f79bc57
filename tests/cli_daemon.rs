//! The daemon's life as scripts see it: in the foreground, in the background, and from a second command.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use support::{Place, Run};

/// No test may touch the network outside this machine.
const QUIET: [&str; 8] = [
    "--state",
    "state",
    "--listen",
    "127.0.0.1:0",
    "--no-dht",
    "--no-lsd",
    "--no-pex",
    "--no-portmap",
];
const WAIT_MAX: Duration = Duration::from_secs(30);

fn shared_place() -> Place {
    let place = Place::new();
    std::fs::create_dir(place.path("dir")).unwrap();
    std::fs::write(place.path("dir/a"), "content").unwrap();
    place
}

/// A foreground command that is ended, and its mounts with it, whatever the test does.
struct Foreground(Child);

impl Foreground {
    fn start(place: &Place, args: &[&str]) -> Self {
        let mut command = place.command(&[args, &QUIET].concat());
        Self(
            command
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .unwrap(),
        )
    }

    fn lines(&mut self, n: usize) -> Vec<String> {
        let stdout = self.0.stdout.as_mut().unwrap();
        BufReader::new(stdout)
            .lines()
            .take(n)
            .map(Result::unwrap)
            .collect()
    }

    /// The first line on standard error.
    fn said(&mut self) -> String {
        let mut line = String::new();
        let stderr = self.0.stderr.as_mut().unwrap();
        BufReader::new(stderr).read_line(&mut line).unwrap();
        line
    }

    fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(i32::try_from(self.0.id()).unwrap()).unwrap();
        kill_process(pid, signal).unwrap();
    }

    fn code(&mut self) -> i32 {
        let until = Instant::now() + WAIT_MAX;
        loop {
            if let Some(status) = self.0.try_wait().unwrap() {
                return status.code().unwrap_or(-1);
            }
            assert!(Instant::now() < until, "the command did not end");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Foreground {
    fn drop(&mut self) {
        if self.0.try_wait().is_ok_and(|status| status.is_none()) {
            self.signal(Signal::TERM);
            drop(self.0.wait());
        }
    }
}

/// A daemon in the background, stopped when the test is over.
struct Background<'a>(&'a Place);

impl Drop for Background<'_> {
    fn drop(&mut self) {
        self.0.run(&["daemon", "stop", "--state", "state"]);
    }
}

fn socket_is_there(place: &Place) -> bool {
    place.path("state/api.sock").exists()
}

#[test]
fn share_prints_the_links_and_stays_until_sigterm() {
    let place = shared_place();
    let mut share = Foreground::start(&place, &["share", "./dir"]);
    let lines = share.lines(2);
    assert!(lines[0].starts_with("read-write  ccbt:w"), "{lines:?}");
    assert!(lines[1].starts_with("read-only   ccbt:r"), "{lines:?}");
    assert_eq!(share.said(), "Sharing ./dir: 1 file, 7 B\n");
    let status = place.run(&["status", "--json", "--state", "state"]);
    assert_eq!(status.json()["daemon"]["pid"], share.0.id());
    let second = place.run(&["daemon", "--state", "state"]);
    assert_eq!(second.code, 4, "{second:?}");
    share.signal(Signal::TERM);
    assert_eq!(share.code(), 0);
    assert!(!socket_is_there(&place));
    assert_eq!(place.run(&["status", "--state", "state"]).code, 10);
}

#[test]
fn a_background_daemon_takes_commands_and_stops() {
    let place = shared_place();
    let run = place.run(&[&["daemon", "-d"], &QUIET[..]].concat());
    assert_eq!(
        (run.code, run.stdout.as_str(), run.stderr.as_str()),
        (0, "", "")
    );
    let _stop = Background(&place);
    let again = place.run(&[&["daemon", "-d"], &QUIET[..]].concat());
    assert_eq!(
        (again.code, again.stderr.as_str()),
        (0, "a daemon is running already\n")
    );
    let share = place.run(&["share", "dir", "--state", "state", "--json"]);
    assert!(
        share.json()["read_write"]
            .as_str()
            .unwrap()
            .starts_with("ccbt:w"),
        "{share:?}"
    );
    let stop = place.run(&["daemon", "stop", "--state", "state"]);
    assert_eq!(
        (stop.code, stop.stdout.as_str()),
        (0, "The daemon has ended\n")
    );
    let gone = place.run(&["status", "--state", "state"]);
    assert_eq!(gone.code, 10, "{gone:?}");
}

#[test]
fn the_background_daemon_is_in_a_session_of_its_own() {
    let place = shared_place();
    let _stop = Background(&place);
    assert_eq!(
        place
            .run(&[&["share", "-d", "dir"], &QUIET[..]].concat())
            .code,
        0
    );
    let status = place.run(&["status", "--json", "--state", "state"]).json();
    let pid = status["daemon"]["pid"].as_u64().unwrap();
    assert_eq!(
        std::fs::read_link(format!("/proc/{pid}/cwd")).unwrap(),
        Path::new("/")
    );
    let pid = Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
    assert_eq!(rustix::process::getsid(Some(pid)).unwrap(), pid);
}

#[test]
fn the_link_is_in_no_log() {
    let place = shared_place();
    let _stop = Background(&place);
    let run = place.run(&[&["share", "-d", "-vv", "dir"], &QUIET[..]].concat());
    let link = run
        .stdout
        .lines()
        .next()
        .unwrap()
        .split_whitespace()
        .nth(1)
        .unwrap();
    let log = std::fs::read_to_string(place.path("state/ccbt.log")).unwrap();
    assert!(!log.is_empty() && !log.contains(link), "{log}");
}

#[test]
fn a_background_daemon_that_cannot_start_says_why() {
    let place = shared_place();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let api = taken.local_addr().unwrap().to_string();
    let run = place.run(&[&["daemon", "-d", "--api", &api], &QUIET[..]].concat());
    assert!(run.code == 4 || run.code == 1, "{run:?}");
    assert!(
        run.stderr.starts_with("ccbt: the daemon did not start: "),
        "{run:?}"
    );
    assert!(run.stderr.contains("\nhint: its log is "), "{run:?}");
    assert_eq!(place.run(&["status", "--state", "state"]).code, 10);
}

#[test]
fn a_directory_another_daemon_holds_is_busy() {
    let place = shared_place();
    let _held = ccbt::config::StateDir::lock(&place.path("state")).unwrap();
    let run: Run = place.run(&["daemon", "--state", "state"]);
    assert_eq!(run.code, 4, "{run:?}");
    let pid = std::process::id();
    assert!(
        run.stderr
            .contains(&format!("in use by the daemon with process id {pid}\n")),
        "{run:?}"
    );
}
