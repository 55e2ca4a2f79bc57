//! The layers, their order, and what a wrong value says.

use super::*;

fn write(text: &str) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("config.toml");
    std::fs::write(&path, text).unwrap();
    (dir, path)
}

fn error_of(text: &str) -> String {
    let (_dir, path) = write(text);
    let error = Config::load(Some(&path), &|_| None, Vec::new()).unwrap_err();
    let error = ApiError::from(error);
    assert_eq!(error.kind, ErrorKind::Usage);
    error.message.replace(path.to_str().unwrap(), "FILE")
}

#[test]
fn the_defaults_name_every_key_and_no_other() {
    let config = Config::defaults().unwrap();
    let keys: Vec<&str> = config.settings().map(|setting| setting.key).collect();
    assert_eq!(keys, KEYS.map(|(key, _)| key));
    assert!(
        config
            .settings()
            .all(|setting| setting.source == Source::Default)
    );
    assert_eq!(config.read_timeout, Duration::from_secs(30));
    assert_eq!(config.read_cache_bytes, 256 << 20);
    assert_eq!(config.store_quota_bytes, None);
    assert_eq!(
        config.displaced_keep,
        Some(Duration::from_secs(30 * 86_400))
    );
    assert_eq!(config.displaced_max_bytes, None);
    assert_eq!(
        config.store_scrub_every,
        Some(Duration::from_secs(7 * 86_400))
    );
    assert_eq!(config.store_scrub_rate, Some(3 << 20));
    assert_eq!(config.store_gc_grace, Duration::from_secs(600));
    assert_eq!((config.dht, config.api_listen), (true, None));
}

#[test]
fn a_later_layer_wins_and_is_named() {
    let (_dir, path) = write("lsd = false\npex = false\nportmap = false\n[log]\nlevel = 'warn'\n");
    let env = |name: &str| match name {
        "CCBT_PEX" => Some("yes".into()),
        "CCBT_PORTMAP" => Some("yes".into()),
        _ => None,
    };
    let config = Config::load(Some(&path), &env, vec![("portmap", Value::Bool(false))]).unwrap();
    let source = |key| config.setting(key).unwrap().source.clone();
    assert_eq!((config.dht, source("dht.enabled")), (true, Source::Default));
    assert_eq!(
        (config.lsd, source("lsd")),
        (false, Source::File(path.clone()))
    );
    assert_eq!(
        (config.pex, source("pex")),
        (true, Source::Env("CCBT_PEX".into()))
    );
    assert_eq!((config.portmap, source("portmap")), (false, Source::Flag));
    assert_eq!(
        (config.log_level, source("log.level")),
        ("warn", Source::File(path))
    );
}

#[test]
fn what_is_wrong_is_named_with_its_file() {
    assert_eq!(error_of("lisen = 1"), "unknown key `lisen` in file FILE");
    assert_eq!(
        error_of("[dht]\nenable = true"),
        "unknown key `dht.enable` in file FILE"
    );
    assert_eq!(
        error_of("[dht.enabled]\nx = 1"),
        "`dht.enabled` in file FILE must be true or false"
    );
    assert_eq!(error_of("dht = true"), "unknown key `dht` in file FILE");
    assert_eq!(error_of("[other]"), "unknown key `other` in file FILE");
    assert_eq!(
        error_of("listen = 6881"),
        "`listen` in file FILE must be an address, IP:PORT"
    );
    assert!(error_of("listen =").starts_with("the configuration file FILE is not TOML"));
    let env = |name: &str| (name == "CCBT_LSD").then(|| "perhaps".into());
    let error = Config::load(None, &env, Vec::new()).unwrap_err();
    assert_eq!(
        error.to_string(),
        "`lsd` in environment CCBT_LSD must be true or false"
    );
}

#[test]
fn a_named_file_must_exist() {
    let error = Config::load(Some(Path::new("/nonexistent/c")), &|_| None, Vec::new()).unwrap_err();
    assert_eq!(ApiError::from(error).kind, ErrorKind::NotFound);
}

#[test]
fn a_flag_of_the_wrong_kind_is_an_error_not_a_panic() {
    let flags = vec![("listen", Value::Bool(true))];
    assert!(Config::load(None, &|_| None, flags).is_err());
}
