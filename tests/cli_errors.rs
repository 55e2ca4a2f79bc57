//! What wrong command lines and unusable state directories get: one sentence, a hint, an exit code, and nothing changed.

mod support;

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;

use ccbt::api::ErrorKind;
use support::Place;

const LINK: &str = "ccbt:wsecretsecretsecret";

#[test]
fn commands_that_need_a_daemon_say_how_to_start_one() {
    let place = Place::new();
    let state = place.path("state");
    let state = state.to_str().unwrap();
    for command in [
        &["status"][..],
        &["peers"],
        &["keys"],
        &["pin", "."],
        &["unpin", "."],
        &["evict", "."],
        &["unmount", "x"],
        &["unshare", "."],
        &["confirm", "."],
        &["conflicts"],
        &["daemon", "stop"],
    ] {
        let run = place.run(&[command, &["--state", state]].concat());
        let expected = format!(
            "ccbt: no daemon is running for {state}\nhint: start one with `ccbt daemon -d`\n"
        );
        assert_eq!(
            (run.code, run.stdout.as_str(), run.stderr),
            (10, "", expected)
        );
    }
    assert!(!place.path("state").exists());
}

#[test]
fn an_error_in_json_is_an_object_too() {
    let run = Place::new().run(&["status", "--json"]);
    assert_eq!(run.code, 10);
    assert_eq!(run.json()["error"]["kind"], "no_daemon");
}

#[test]
fn sources_that_cannot_be_mounted() {
    let place = Place::new();
    std::fs::write(place.path("file"), "text").unwrap();
    std::fs::create_dir(place.path("m")).unwrap();
    for (args, code, words) in [
        (&["none"][..], 3, "there is no directory none"),
        (&["file", "m"], 2, "file is a file, and it holds no link"),
        (&[LINK], 2, "a link needs a directory"),
        (&[], 2, "nothing to mount was named"),
        (&[LINK, "no/parent"], 3, "cannot use no/parent"),
        (&["-", "m"], 2, "standard input is not one link"),
    ] {
        let run = place.run(&[&["mount"], args, &["--state", "state"]].concat());
        assert_eq!(run.code, code, "{run:?}");
        assert!(run.stderr.contains(words), "{run:?}");
        assert!(!run.stderr.contains("secret"), "{run:?}");
        assert!(!place.path("state").exists());
    }
}

#[test]
fn directories_that_cannot_be_shared() {
    let place = Place::new();
    std::fs::write(place.path("file"), "text").unwrap();
    for (dir, code, words) in [
        ("none", 3, "ccbt: there is no directory none\n"),
        ("file", 2, "ccbt: file is not a directory\n"),
        ("a\u{1b}[2J", 3, "ccbt: there is no directory a\\x1b[2J\n"),
    ] {
        let run = place.run(&["share", dir, "--state", "state"]);
        assert_eq!(run.code, code, "{run:?}");
        assert!(run.stderr.starts_with(words), "{run:?}");
    }
}

#[test]
fn state_directories_that_cannot_be_used() {
    let place = Place::new();
    let newer = place.path("newer");
    std::fs::create_dir(&newer).unwrap();
    std::fs::write(newer.join("version"), "9\n").unwrap();
    std::fs::write(place.path("file"), "").unwrap();
    std::fs::create_dir(place.path("open")).unwrap();
    std::fs::write(place.path("open/x"), "").unwrap();
    std::fs::set_permissions(place.path("open"), Permissions::from_mode(0o777)).unwrap();
    for (state, code, words) in [
        (
            "newer",
            5,
            "was written by a newer ccbt (version 9, this one knows 1)",
        ),
        ("file", 2, "is not a directory"),
        ("open", 5, "others can write to the state directory"),
    ] {
        for command in [&["share", "."][..], &["daemon"], &["daemon", "-d"]] {
            let run = place.run(&[command, &["--state", state]].concat());
            assert_eq!(run.code, code, "{run:?}");
            assert!(
                run.stderr.contains(words) && run.stderr.contains("\nhint: "),
                "{run:?}"
            );
        }
    }
    assert_eq!(std::fs::read_dir(&newer).unwrap().count(), 1);
}

#[test]
fn a_command_line_that_cannot_be_parsed_exits_with_2() {
    let place = Place::new();
    for args in [
        &["shar"][..],
        &["mount", "--listen", "localhost:1", "."],
        &["status", "-v", "-q"],
        &[],
    ] {
        let run = place.run(args);
        assert_eq!((run.code, run.stdout.as_str()), (2, ""), "{run:?}");
    }
}

#[test]
fn every_command_has_help() {
    let place = Place::new();
    let help = place.run(&["--help"]);
    assert_eq!(help.code, 0);
    for command in [
        "share",
        "join",
        "unshare",
        "confirm",
        "conflicts",
        "displaced",
        "mount",
        "unmount",
        "status",
        "peers",
        "pin",
        "unpin",
        "evict",
        "keys",
        "xet",
        "daemon",
        "config",
    ] {
        assert!(
            help.stdout.contains(&format!("\n  {command}  ")),
            "{command}: {}",
            help.stdout
        );
        assert_eq!(place.run(&[command, "--help"]).code, 0, "{command}");
    }
    let mount = place.run(&["mount", "--help"]).stdout;
    for option in [
        "--listen",
        "--peer",
        "--no-dht",
        "--no-lsd",
        "--no-pex",
        "--no-portmap",
        "--api",
        "--state",
        "--config",
        "--json",
        "--offline",
        "--read-only",
        "--read-timeout",
    ] {
        assert!(mount.contains(option), "{option}");
    }
}

#[test]
fn the_manual_has_the_table_of_exit_codes() {
    let manual = include_str!("../docs/manual/exit-codes.md");
    let rows: Vec<Vec<&str>> = manual
        .lines()
        .filter(|line| line.starts_with("| ") && line.contains('`'))
        .map(|line| {
            line.split('|')
                .map(|cell| cell.trim().trim_matches('`'))
                .collect()
        })
        .collect();
    let expected: Vec<_> = ErrorKind::TABLE
        .iter()
        .map(|(kind, code, status)| {
            let kind = serde_json::to_value(kind).unwrap();
            (
                code.to_string(),
                kind.as_str().unwrap().to_owned(),
                status.to_string(),
            )
        })
        .collect();
    let found: Vec<_> = rows
        .iter()
        .map(|row| (row[1].to_owned(), row[2].to_owned(), row[3].to_owned()))
        .collect();
    assert_eq!(found, expected);
}
