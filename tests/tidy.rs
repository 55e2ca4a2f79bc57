//! Style and layering as a test: what CONTRIBUTING.md says and a machine can check.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::path::{Path, PathBuf};

/// Longest function, in lines.
const FUNCTION_LINES_MAX: usize = 70;
/// Longest file without its tests, in lines.
const FILE_LINES_MAX: usize = 800;
/// Largest file in the tree; test vectors are the big ones.
const FILE_BYTES_MAX: u64 = 400 * 1024;

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn sources() -> Vec<(String, String)> {
    let mut out = Vec::new();
    let mut todo: Vec<PathBuf> = ["src", "xet", "mount", "tests"]
        .map(|dir| root().join(dir))
        .into();
    while let Some(dir) = todo.pop() {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() && !path.ends_with("target") {
                todo.push(path);
            } else if path.extension().is_some_and(|e| e == "rs") {
                let name = path
                    .strip_prefix(root())
                    .unwrap()
                    .to_string_lossy()
                    .into_owned();
                out.push((name, fs::read_to_string(&path).unwrap()));
            }
        }
    }
    out.sort();
    out
}

/// The part of a file before its in-file tests.
fn without_tests(text: &str) -> &str {
    text.split("#[cfg(test)]\nmod tests {")
        .next()
        .unwrap_or(text)
}

fn report(what: &str, found: Vec<String>) {
    assert!(found.is_empty(), "{what}:\n{}", found.join("\n"));
}

#[test]
fn every_file_says_what_lives_in_it() {
    let silent =
        |(_, text): &&(String, String)| !text.starts_with("//!") && !text.starts_with("#!");
    let found = sources()
        .iter()
        .filter(silent)
        .map(|(name, _)| name.clone())
        .collect();
    report("files that do not open with //!", found);
}

#[test]
fn functions_and_files_are_short() {
    let mut long = Vec::new();
    for (name, text) in sources() {
        let is_test = name.contains("tests") || name.contains("/pair");
        let code = without_tests(&text);
        if !is_test && code.lines().count() > FILE_LINES_MAX {
            long.push(format!("{name}: {} lines", code.lines().count()));
        }
        let mut start: Option<(usize, usize, String)> = None;
        for (n, line) in code.lines().enumerate() {
            let indent = line.len() - line.trim_start().len();
            let head = line.trim_start();
            let is_fn = [
                "fn ",
                "pub fn ",
                "async fn ",
                "pub async fn ",
                "pub(crate) fn ",
                "pub(super) fn ",
                "pub(super) async fn ",
                "const fn ",
                "pub const fn ",
                "unsafe fn ",
            ]
            .iter()
            .any(|p| head.starts_with(p));
            if is_fn && !line.trim_end().ends_with(';') {
                start = Some((n, indent, head.to_owned()));
            }
            if let Some((from, at, what)) = &start
                && indent == *at
                && head == "}"
            {
                let lines = n - from + 1;
                if lines > FUNCTION_LINES_MAX && !is_test {
                    long.push(format!("{name}:{}: {lines} lines: {what}", from + 1));
                }
                start = None;
            }
        }
    }
    report("longer than a reader can hold", long);
}

/// (folder, what must not occur there, why)
const LAYERS: &[(&str, &str, &str)] = &[
    ("src/proto/", "tokio", "protocols do no IO"),
    ("src/proto/", "Instant::now", "time is passed in"),
    ("src/share/", "tokio", "rules do no IO"),
    (
        "src/folder/",
        "tokio",
        "a folder is driven by its callers' threads",
    ),
    ("src/folder/state/", "std::fs", "the state is pure"),
    ("src/folder/tree/", "std::fs", "the tree is pure"),
    ("xet/src/", "tokio", "the store knows no runtime"),
    ("xet/src/", "std::net", "the store knows no network"),
    ("mount/src/", "blake3", "the mount knows no hash"),
    ("src/", "use fuser", "only mount/ speaks FUSE"),
];

#[test]
fn layers_do_not_reach_past_each_other() {
    let mut found = Vec::new();
    for (name, text) in sources() {
        for (folder, word, why) in LAYERS {
            if name.starts_with(folder) && without_tests(&text).contains(word) {
                found.push(format!("{name}: `{word}` ({why})"));
            }
        }
    }
    report("layering", found);
}

#[test]
fn sockets_are_opened_in_one_place() {
    let allowed = ["src/net.rs", "src/api/listen.rs", "src/api/client.rs"];
    let openers = [
        "TcpListener::bind",
        "TcpStream::connect",
        "UdpSocket::bind",
        "UnixListener::bind",
        "Socket::new(",
    ];
    let mut found = Vec::new();
    for (name, text) in sources() {
        let exempt = allowed.contains(&name.as_str())
            || name.starts_with("tests/")
            || name.contains("tests");
        if !exempt
            && openers
                .iter()
                .any(|word| without_tests(&text).contains(word))
        {
            found.push(name);
        }
    }
    report("sockets opened outside src/net.rs and src/api/", found);
}

#[test]
fn nothing_large_or_left_over_lies_in_the_tree() {
    let mut found = Vec::new();
    for (name, text) in sources() {
        for word in [
            "todo!(",
            "unimplemented!(",
            "dbg!(",
            concat!("FIX", "ME"),
            concat!("XX", "X"),
        ] {
            if text.contains(word) && name != "tests/tidy.rs" {
                found.push(format!("{name}: {word}"));
            }
        }
        let bytes = fs::metadata(Path::new(&root()).join(&name)).unwrap().len();
        if bytes > FILE_BYTES_MAX {
            found.push(format!("{name}: {bytes} bytes"));
        }
    }
    report("left over", found);
}
