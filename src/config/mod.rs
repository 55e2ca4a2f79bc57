//! Configuration: defaults, then the file, then the environment, then the command line; each value remembers which of
//! them it came from. And the state directory, where a daemon keeps everything.

mod killed;
mod schedule;
mod state;
mod torrent;
mod value;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::io::Read;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Serialize;

pub(crate) use killed::parse_holder;
pub use schedule::Schedule;
pub use state::{LOCK_FILE, LOG_FILE, STATE_VERSION, StateDir, StateError};
pub use torrent::TorrentKeys;
pub(crate) use value::parse_bytes;
pub use value::{Kind, ProxyText, Value};

use crate::api::{ApiError, ErrorKind};
use crate::net::{Bind, Network, Route};
use crate::proto::mse::Encryption;
use crate::proto::proxy::ProxyUrl;

/// Every key. `defaults.toml` has each with its meaning; a test compares the two.
pub const KEYS: [(&str, Kind); 43] = [
    ("api.listen", Kind::OptionalAddress),
    ("cache.read", Kind::Bytes),
    ("dht.bootstrap", Kind::Hosts),
    ("dht.enabled", Kind::Bool),
    ("displaced.keep_days", Kind::Days),
    ("displaced.max_bytes", Kind::Bytes),
    ("listen", Kind::Address),
    ("log.format", Kind::Choice(&["text", "json"])),
    (
        "log.level",
        Kind::Choice(&["error", "warn", "info", "debug", "trace"]),
    ),
    ("log.target", Kind::Choice(&["stderr", "file"])),
    ("lsd", Kind::Bool),
    ("network.bind", Kind::Bind),
    (
        "network.encryption",
        Kind::Choice(&["off", "prefer", "require"]),
    ),
    ("network.ip_filter", Kind::OptionalPath),
    ("network.proxy", Kind::Proxy),
    ("network.utp", Kind::Bool),
    ("peers", Kind::Addresses),
    ("pex", Kind::Bool),
    ("portmap", Kind::Bool),
    ("read_timeout_s", Kind::Seconds),
    ("store.gc_grace_s", Kind::Seconds),
    ("store.look_every_s", Kind::Seconds),
    ("store.quota", Kind::Bytes),
    ("store.scrub_every_s", Kind::Period),
    ("store.scrub_rate", Kind::Bytes),
    ("torrent.alt_limit_down", Kind::Bytes),
    ("torrent.alt_limit_up", Kind::Bytes),
    ("torrent.alt_schedule", Kind::Schedule),
    ("torrent.dedup", Kind::Bool),
    ("torrent.downloads_max", Kind::Count),
    ("torrent.limit_down", Kind::Bytes),
    ("torrent.limit_up", Kind::Bytes),
    (
        "torrent.order",
        Kind::Choice(&["rarest", "sequential", "round-robin"]),
    ),
    ("torrent.peer_limit_down", Kind::Bytes),
    ("torrent.peer_limit_up", Kind::Bytes),
    ("torrent.peers_max", Kind::Count),
    (
        "torrent.preallocation",
        Kind::Choice(&["none", "sparse", "full"]),
    ),
    ("torrent.seed_minutes", Kind::Count),
    ("torrent.seed_percent", Kind::Count),
    ("torrent.seeds_max", Kind::Count),
    ("torrent.slots", Kind::Count),
    ("torrent.web_seeds", Kind::Bool),
    ("trackers", Kind::Trackers),
];

const DAY_S: u64 = 86_400;

const DEFAULTS: &str = include_str!("defaults.toml");

/// A configuration file is a few hundred bytes; more is some other file.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// The values in force. Made once, then shared.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where peers connect. Port 0: the system chooses.
    pub listen: SocketAddr,
    pub network: Network,
    /// A list of addresses that are not spoken to; the network's is read from it.
    pub ip_filter: Option<PathBuf>,
    pub peers: Vec<SocketAddr>,
    pub dht: bool,
    /// `HOST:PORT`; empty: the well-known nodes.
    pub dht_bootstrap: Vec<String>,
    pub lsd: bool,
    pub pex: bool,
    pub portmap: bool,
    pub trackers: Vec<String>,
    pub read_timeout: Duration,
    /// Memory for content that was read or is read ahead.
    pub read_cache_bytes: u64,
    /// Disk space for fetched content; `None`: no limit.
    pub store_quota_bytes: Option<u64>,
    /// How long what edits by others replaced is kept; `None`: for ever.
    pub displaced_keep: Option<Duration>,
    /// The oldest of it goes when it takes more; `None`: no limit.
    pub displaced_max_bytes: Option<u64>,
    /// What was stored less than this ago is not collected.
    pub store_gc_grace: Duration,
    /// Time between two looks at the store.
    pub store_look_every: Duration,
    /// Time from the end of one check of the whole store to the next; `None`: never.
    pub store_scrub_every: Option<Duration>,
    /// Bytes a second that a check reads; `None`: as fast as it goes.
    pub store_scrub_rate: Option<u64>,
    pub log_level: &'static str,
    pub log_format: &'static str,
    pub log_target: &'static str,
    pub api_listen: Option<SocketAddr>,
    pub torrent: TorrentKeys,
    settings: Settings,
}

/// Where a value came from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    Default,
    File(PathBuf),
    /// The name of the variable.
    Env(String),
    Flag,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File(path) => write!(f, "file {}", path.display()),
            Self::Env(name) => write!(f, "environment {name}"),
            Self::Flag => f.write_str("command line"),
        }
    }
}

/// One key with its value and where that came from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Setting {
    pub key: &'static str,
    pub value: Value,
    pub source: Source,
}

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("cannot read the configuration file {}: {error}", path.display())]
    Read {
        path: PathBuf,
        error: std::io::Error,
    },
    #[error("the configuration file {} is over 1 MiB", path.display())]
    TooLong { path: PathBuf },
    #[error("the configuration file {} is not TOML: {error}", path.display())]
    Syntax {
        path: PathBuf,
        error: toml::de::Error,
    },
    #[error("unknown key `{key}` in {origin}")]
    UnknownKey { key: String, origin: Source },
    #[error("`{key}` in {origin} must be {expected}")]
    Invalid {
        key: &'static str,
        origin: Source,
        expected: String,
    },
    #[error("neither $HOME nor $XDG_CONFIG_HOME is set")]
    NoHome,
}

impl From<ConfigError> for ApiError {
    fn from(error: ConfigError) -> Self {
        match &error {
            ConfigError::Read { path, error } => {
                let path = crate::api::escape(path.as_os_str().as_encoded_bytes());
                Self::io(
                    format_args!("cannot read the configuration file {path}"),
                    error,
                )
            }
            ConfigError::UnknownKey { .. } => Self::new(ErrorKind::Usage, &error)
                .hint("`ccbt config list` shows every key; correct or remove this one"),
            _ => Self::new(ErrorKind::Usage, &error),
        }
    }
}

/// Values by key while the layers are laid on each other.
#[derive(Debug, Clone, Default)]
struct Settings(BTreeMap<&'static str, Setting>);

impl Config {
    /// Lays the layers on each other. `file`: the file to read, if any. `env`: looks a variable up. `flags`: what the
    /// command line says, by key.
    pub fn load(
        file: Option<&Path>,
        env: &dyn Fn(&str) -> Option<OsString>,
        flags: Vec<(&'static str, Value)>,
    ) -> Result<Self, ConfigError> {
        let mut settings = Settings::default();
        settings.add_toml(DEFAULTS, Path::new("defaults.toml"), &Source::Default)?;
        if let Some(path) = file {
            settings.add_toml(&read_file(path)?, path, &Source::File(path.to_path_buf()))?;
        }
        settings.add_env(env)?;
        for (key, value) in flags {
            settings.set(key, value, Source::Flag);
        }
        Self::from_settings(settings)
    }

    /// A file with this text over the defaults.
    pub(crate) fn from_toml(text: &str) -> Result<Self, ConfigError> {
        let path = PathBuf::from("text");
        let mut settings = Settings::default();
        settings.add_toml(DEFAULTS, Path::new("defaults.toml"), &Source::Default)?;
        settings.add_toml(text, &path, &Source::File(path.clone()))?;
        Self::from_settings(settings)
    }

    /// The defaults alone.
    pub fn defaults() -> Result<Self, ConfigError> {
        Self::load(None, &|_| None, Vec::new())
    }

    /// All settings, by key.
    pub fn settings(&self) -> impl Iterator<Item = &Setting> {
        self.settings.0.values()
    }

    pub fn setting(&self, key: &str) -> Option<&Setting> {
        self.settings.0.get(key)
    }

    fn from_settings(settings: Settings) -> Result<Self, ConfigError> {
        let s = &settings;
        Ok(Self {
            listen: s.address("listen")?.ok_or_else(|| s.invalid("listen"))?,
            network: s.network()?,
            ip_filter: s.text("network.ip_filter")?.map(PathBuf::from),
            peers: s.addresses("peers")?,
            dht: s.bool("dht.enabled")?,
            dht_bootstrap: s.list("dht.bootstrap")?,
            lsd: s.bool("lsd")?,
            pex: s.bool("pex")?,
            portmap: s.bool("portmap")?,
            trackers: s.list("trackers")?,
            read_timeout: Duration::from_secs(s.number("read_timeout_s")?),
            read_cache_bytes: s.number("cache.read")?,
            store_quota_bytes: Some(s.number("store.quota")?).filter(|n| *n > 0),
            displaced_keep: Some(s.number("displaced.keep_days")?)
                .filter(|days| *days > 0)
                .map(|days| Duration::from_secs(days * DAY_S)),
            displaced_max_bytes: Some(s.number("displaced.max_bytes")?).filter(|n| *n > 0),
            store_gc_grace: Duration::from_secs(s.number("store.gc_grace_s")?),
            store_look_every: Duration::from_secs(s.number("store.look_every_s")?),
            store_scrub_every: Some(s.number("store.scrub_every_s")?)
                .filter(|n| *n > 0)
                .map(Duration::from_secs),
            store_scrub_rate: Some(s.number("store.scrub_rate")?).filter(|n| *n > 0),
            log_level: s.choice("log.level")?,
            log_format: s.choice("log.format")?,
            log_target: s.choice("log.target")?,
            api_listen: s.address("api.listen")?,
            torrent: TorrentKeys::of(s)?,
            settings,
        })
    }
}

/// Where the configuration file is looked for when none is named: `ccbt/config.toml` in the XDG configuration directory.
pub fn default_file() -> Result<PathBuf, ConfigError> {
    use etcetera::BaseStrategy;
    let base = etcetera::choose_base_strategy().map_err(|_| ConfigError::NoHome)?;
    Ok(base.config_dir().join("ccbt/config.toml"))
}

/// Name of the environment variable of a key.
pub fn env_name(key: &str) -> String {
    format!("CCBT_{}", key.to_ascii_uppercase().replace('.', "_"))
}

fn read_file(path: &Path) -> Result<String, ConfigError> {
    let failed = |error| ConfigError::Read {
        path: path.to_path_buf(),
        error,
    };
    let mut text = String::new();
    let file = std::fs::File::open(path).map_err(failed)?;
    file.take(FILE_BYTES_MAX + 1)
        .read_to_string(&mut text)
        .map_err(failed)?;
    if text.len() as u64 > FILE_BYTES_MAX {
        return Err(ConfigError::TooLong {
            path: path.to_path_buf(),
        });
    }
    Ok(text)
}

impl Settings {
    fn set(&mut self, key: &'static str, value: Value, source: Source) {
        self.0.insert(key, Setting { key, value, source });
    }

    fn add_toml(&mut self, text: &str, path: &Path, source: &Source) -> Result<(), ConfigError> {
        let table: toml::Table = text.parse().map_err(|error| ConfigError::Syntax {
            path: path.to_path_buf(),
            error,
        })?;
        self.add_table(&table, "", source)
    }

    /// Keys are at most two names deep, so a table inside a table's table is an unknown key.
    fn add_table(
        &mut self,
        table: &toml::Table,
        prefix: &str,
        source: &Source,
    ) -> Result<(), ConfigError> {
        for (name, value) in table {
            let full = format!("{prefix}{name}");
            if let Some((key, kind)) = KEYS.iter().find(|(key, _)| *key == full) {
                let value = kind
                    .check_toml(value)
                    .map_err(|expected| ConfigError::Invalid {
                        key,
                        origin: source.clone(),
                        expected,
                    })?;
                self.set(key, value, source.clone());
                continue;
            }
            match value.as_table() {
                Some(inner) if prefix.is_empty() && is_section(name) => {
                    self.add_table(inner, &format!("{name}."), source)?;
                }
                _ => {
                    return Err(ConfigError::UnknownKey {
                        key: full,
                        origin: source.clone(),
                    });
                }
            }
        }
        Ok(())
    }

    fn add_env(&mut self, env: &dyn Fn(&str) -> Option<OsString>) -> Result<(), ConfigError> {
        for (key, kind) in KEYS {
            let name = env_name(key);
            let Some(text) = env(&name) else { continue };
            let checked = match text.to_str() {
                Some(text) => kind.check_text(text),
                None => Err("text in UTF-8".into()),
            };
            let origin = Source::Env(name);
            match checked {
                Ok(value) => self.set(key, value, origin),
                Err(expected) => {
                    return Err(ConfigError::Invalid {
                        key,
                        origin,
                        expected,
                    });
                }
            }
        }
        Ok(())
    }

    fn network(&self) -> Result<Network, ConfigError> {
        let encryption = match self.choice("network.encryption")? {
            "off" => Encryption::Off,
            "require" => Encryption::Require,
            _ => Encryption::Prefer,
        };
        let utp = self.bool("network.utp")?;
        let bind = self.text("network.bind")?;
        let proxy = match self.value("network.proxy") {
            Some(Value::Proxy(url)) => ProxyUrl::parse(&url.0),
            _ => return Err(self.invalid("network.proxy")),
        };
        Ok(Network {
            encryption,
            utp,
            filter: None,
            route: Route {
                bind: bind.map(|text| match text.parse() {
                    Ok(ip) => Bind::Address(ip),
                    Err(_) => Bind::Interface(text.to_owned()),
                }),
                proxy,
            },
        })
    }

    fn bool(&self, key: &'static str) -> Result<bool, ConfigError> {
        match self.value(key) {
            Some(Value::Bool(b)) => Ok(*b),
            _ => Err(self.invalid(key)),
        }
    }

    fn number(&self, key: &'static str) -> Result<u64, ConfigError> {
        match self.value(key) {
            Some(Value::Number(n)) => Ok(*n),
            _ => Err(self.invalid(key)),
        }
    }

    fn address(&self, key: &'static str) -> Result<Option<SocketAddr>, ConfigError> {
        match self.value(key) {
            Some(Value::Address(addr)) => Ok(*addr),
            _ => Err(self.invalid(key)),
        }
    }

    fn addresses(&self, key: &'static str) -> Result<Vec<SocketAddr>, ConfigError> {
        match self.value(key) {
            Some(Value::Addresses(list)) => Ok(list.clone()),
            _ => Err(self.invalid(key)),
        }
    }

    fn schedule(&self, key: &'static str) -> Result<Option<Schedule>, ConfigError> {
        match self.value(key) {
            Some(Value::Schedule(schedule)) => Ok(*schedule),
            _ => Err(self.invalid(key)),
        }
    }

    fn list(&self, key: &'static str) -> Result<Vec<String>, ConfigError> {
        match self.value(key) {
            Some(Value::List(list)) => Ok(list.clone()),
            _ => Err(self.invalid(key)),
        }
    }

    /// `None` for the empty text.
    fn text(&self, key: &'static str) -> Result<Option<&str>, ConfigError> {
        match self.value(key) {
            Some(Value::Text(text)) => Ok(Some(text.as_str()).filter(|text| !text.is_empty())),
            _ => Err(self.invalid(key)),
        }
    }

    fn choice(&self, key: &'static str) -> Result<&'static str, ConfigError> {
        match self.value(key) {
            Some(Value::Choice(word)) => Ok(word),
            _ => Err(self.invalid(key)),
        }
    }

    fn value(&self, key: &str) -> Option<&Value> {
        self.0.get(key).map(|setting| &setting.value)
    }

    /// Only reached by a flag of the wrong kind or a key without a default; tests hold both off.
    fn invalid(&self, key: &'static str) -> ConfigError {
        let origin = self
            .0
            .get(key)
            .map_or(Source::Default, |setting| setting.source.clone());
        ConfigError::Invalid {
            key,
            origin,
            expected: "of another kind".into(),
        }
    }
}

fn is_section(name: &str) -> bool {
    KEYS.iter().any(|(key, _)| {
        key.split_once('.')
            .is_some_and(|(section, _)| section == name)
    })
}

#[cfg(test)]
mod tests;
