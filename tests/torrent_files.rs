//! Torrent files between ccbt and libtorrent: each reads what the other made, with equal hashes and content.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::fs;
use std::process::Command;

use support::Place;

const VERSIONS: [&str; 3] = ["v1", "v2", "hybrid"];

/// Runs the script beside this file with Debian's Python, whose libtorrent `scripts/setup` installs.
fn libtorrent(args: &[&str]) -> serde_json::Value {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/torrent_files.py");
    let run = Command::new("/usr/bin/python3")
        .arg(script)
        .args(args)
        .output()
        .unwrap();
    let errors = String::from_utf8_lossy(&run.stderr);
    assert!(
        run.status.success(),
        "libtorrent for Python is needed (scripts/setup installs python3-libtorrent): {errors}"
    );
    serde_json::from_slice(&run.stdout).unwrap()
}

/// Files of every size class: empty, below a block, below a piece, several pieces, a whole number of pieces.
fn content(place: &Place) -> String {
    let top = place.path("content/top");
    fs::create_dir_all(top.join("sub/deep")).unwrap();
    let bytes =
        |len: usize, step: usize| (0..len).map(|n| (n * step / 7) as u8).collect::<Vec<_>>();
    for (path, len) in [
        ("empty", 0),
        ("a.txt", 100),
        ("sub/block", 16_384),
        ("sub/deep/pieces", 100_000),
        ("sub.txt", 65_536),
        ("z\u{e4}", 20_000),
    ] {
        fs::write(top.join(path), bytes(len, path.len() + 3)).unwrap();
    }
    top.to_str().unwrap().to_owned()
}

#[test]
fn libtorrent_reads_what_ccbt_made() {
    let place = Place::new();
    let top = content(&place);
    for version in VERSIONS {
        let file = place.path(&format!("{version}.torrent"));
        let file = file.to_str().unwrap();
        let flag = format!("--{version}");
        let run = place.run(&[
            "create",
            &top,
            "-o",
            file,
            &flag,
            "--piece-size",
            "32KiB",
            "--json",
        ]);
        assert_eq!(run.code, 0, "{run:?}");
        let made = run.json();
        let parent = place.path("content");
        let found = libtorrent(&["check", file, parent.to_str().unwrap()]);
        assert_eq!(
            found["whole"], true,
            "{version}: libtorrent does not find the content whole"
        );
        assert_eq!(found["hashes"]["v1"], made["info_hash"], "{version}");
        assert_eq!(found["hashes"]["v2"], made["info_hash_v2"], "{version}");
        assert_eq!(
            found["files"].as_array().unwrap().len(),
            6,
            "{version}: {found}"
        );
    }
}

#[test]
fn ccbt_reads_what_libtorrent_made() {
    let place = Place::new();
    let top = content(&place);
    for version in VERSIONS {
        let file = place.path(&format!("{version}.torrent"));
        let file = file.to_str().unwrap();
        let made = libtorrent(&["make", &top, file, version]);
        let run = place.run(&["info", file, "--json"]);
        assert_eq!(run.code, 0, "{run:?}");
        let info = run.json();
        assert_eq!(info["info_hash"], made["hashes"]["v1"], "{version}");
        assert_eq!(info["info_hash_v2"], made["hashes"]["v2"], "{version}");
        assert_eq!(info["content"]["files"], 6, "{version}: {info}");
        assert_eq!(info["content"]["bytes"], 202_020, "{version}");
        assert_eq!(info["trackers"][0][0], "http://tracker.example/announce");
        let magnet = place.run(&["magnet", file]);
        let again = place.run(&["info", magnet.stdout.trim(), "--json"]).json();
        assert_eq!(again["info_hash"], info["info_hash"]);
        assert_eq!(again["info_hash_v2"], info["info_hash_v2"]);
        assert_eq!(again["name"], "top");
    }
}

#[test]
fn an_existing_torrent_is_not_overwritten() {
    let place = Place::new();
    let top = content(&place);
    fs::write(place.path("t.torrent"), "mine").unwrap();
    let file = place.path("t.torrent");
    let file = file.to_str().unwrap();
    let run = place.run(&["create", &top, "-o", file]);
    assert_eq!(run.code, 5, "{run:?}");
    assert_eq!(fs::read(file).unwrap(), b"mine");
    let run = place.run(&["create", &top, "-o", file, "--force"]);
    assert_eq!(run.code, 0, "{run:?}");
}

#[test]
fn what_is_no_torrent_gets_a_reason() {
    let place = Place::new();
    fs::write(place.path("x.torrent"), "d4:infod4:name2:..ee").unwrap();
    for (arg, code, words) in [
        ("none.torrent", 3, "cannot read none.torrent"),
        ("x.torrent", 2, "unsafe name: .."),
        ("magnet:?dn=x", 2, "names no torrent"),
    ] {
        let run = place.run(&["info", arg]);
        assert_eq!(run.code, code, "{run:?}");
        assert!(run.stderr.contains(words), "{run:?}");
    }
}
