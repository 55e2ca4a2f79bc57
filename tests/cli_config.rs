//! `ccbt config`

mod support;

use support::{Place, Run};

#[test]
fn list_shows_every_key_with_its_source() {
    let place = Place::new();
    std::fs::create_dir_all(place.path(".config/ccbt")).unwrap();
    let file = place.path(".config/ccbt/config.toml");
    std::fs::write(&file, "lsd = false\n[log]\nformat = 'json'\n").unwrap();
    let mut command = place.command(&["config", "list", "-v"]);
    let run = Run::of(command.env("CCBT_CACHE_READ", "64 MiB").output().unwrap());
    assert_eq!((run.code, run.stderr.as_str()), (0, ""));
    let row = |key: &str| {
        let line = run
            .stdout
            .lines()
            .find(|line| line.starts_with(&format!("{key} = ")));
        line.unwrap()
            .split_whitespace()
            .collect::<Vec<_>>()
            .join(" ")
    };
    assert_eq!(row("pex"), "pex = true # default");
    assert_eq!(row("lsd"), format!("lsd = false # file {}", file.display()));
    assert_eq!(
        row("cache.read"),
        "cache.read = 67108864 # environment CCBT_CACHE_READ"
    );
    assert_eq!(row("log.level"), "log.level = \"debug\" # command line");
}

#[test]
fn get_prints_one_value_as_text_and_json() {
    let place = Place::new();
    assert_eq!(
        place.run(&["config", "get", "read_timeout_s"]).stdout,
        "30\n"
    );
    let json = place
        .run(&["config", "get", "dht.enabled", "--json"])
        .json();
    let expected = serde_json::json!({"key": "dht.enabled", "value": true, "source": "default"});
    assert_eq!(json, expected);
    let run = place.run(&["config", "get", "lisen"]);
    assert_eq!((run.code, run.stdout.as_str()), (2, ""));
    assert_eq!(
        run.stderr,
        "ccbt: there is no key `lisen`\nhint: `ccbt config list` shows every key\n"
    );
}

#[test]
fn an_unknown_key_stops_every_command_and_names_the_file() {
    let place = Place::new();
    std::fs::write(place.path("c.toml"), "lisen = '127.0.0.1:1'\n").unwrap();
    for command in [
        &["config", "list"][..],
        &["status"],
        &["daemon"],
        &["share", "."],
    ] {
        let run = place.run(&[command, &["--config", "c.toml"]].concat());
        assert_eq!(run.code, 2, "{run:?}");
        assert!(
            run.stderr
                .starts_with("ccbt: unknown key `lisen` in file c.toml\nhint: "),
            "{run:?}"
        );
    }
    assert!(!place.path(".local").exists());
}

#[test]
fn a_file_that_was_named_must_be_there() {
    let run = Place::new().run(&["config", "list", "--config", "none.toml"]);
    assert_eq!(run.code, 3);
    let expected =
        "ccbt: cannot read the configuration file none.toml: no such file or directory\n";
    assert_eq!(run.stderr, expected);
}

#[test]
fn path_says_where_the_file_would_be() {
    let place = Place::new();
    let json = place.run(&["config", "path", "--json"]).json();
    let expected = place.path(".config/ccbt/config.toml");
    assert_eq!(json, serde_json::json!({"path": expected, "exists": false}));
}

#[test]
fn the_manual_shows_the_defaults_as_they_are() {
    let manual = include_str!("../docs/manual/config.md");
    let block: String = manual
        .lines()
        .skip_while(|line| !line.starts_with("    "))
        .map(|line| format!("{}\n", line.strip_prefix("    ").unwrap_or(line)))
        .collect();
    assert_eq!(block, include_str!("../src/config/defaults.toml"));
}
