//! What mistakes get: one clear sentence, the documented exit code, nothing changed.

use std::fs;
use std::path::Path;
use std::process::Output;

use crate::support::{World, ccbt, text};

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
    fails(&run(&state, &["mount", &p(&full)]), 5, "is not empty");
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
}
