//! Options that several commands have, and the context that is made of them.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::Args;

use super::output::Output;
use crate::api::ApiError;
use crate::config::{self, Config, Source, StateDir, Value};
use crate::telemetry::{self, LogOptions};

#[derive(Debug, Clone, Default, Args)]
pub(super) struct GlobalOptions {
    /// Directory for keys, store, catalogue and logs [default: ccbt in the XDG data directory]
    #[arg(
        long,
        global = true,
        value_name = "DIR",
        env = "CCBT_STATE",
        hide_env_values = true
    )]
    pub(super) state: Option<PathBuf>,
    /// Configuration file [default: ccbt/config.toml in the XDG configuration directory]
    #[arg(
        long,
        global = true,
        value_name = "FILE",
        env = "CCBT_CONFIG",
        hide_env_values = true
    )]
    pub(super) config: Option<PathBuf>,
    /// Print one JSON object instead of text
    #[arg(long, global = true)]
    pub(super) json: bool,
    /// Log more; twice: everything
    #[arg(short, long, global = true, action = clap::ArgAction::Count, conflicts_with = "quiet")]
    pub(super) verbose: u8,
    /// Log errors only, show no progress
    #[arg(short, long, global = true)]
    pub(super) quiet: bool,
}

/// For commands that may start a daemon.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Network options (where this command starts the daemon)")]
pub(super) struct NetworkOptions {
    /// Where peers connect
    #[arg(long, value_name = "IP:PORT")]
    pub(super) listen: Option<SocketAddr>,
    /// Connect to this peer; may be repeated
    #[arg(long = "peer", value_name = "IP:PORT")]
    pub(super) peers: Vec<SocketAddr>,
    /// Do not use the DHT
    #[arg(long)]
    pub(super) no_dht: bool,
    /// Do not look for peers on the local network
    #[arg(long)]
    pub(super) no_lsd: bool,
    /// Do not exchange addresses with peers
    #[arg(long)]
    pub(super) no_pex: bool,
    /// Do not ask the router to forward the port (not built yet: nothing asks it)
    #[arg(long)]
    pub(super) no_portmap: bool,
    /// Offer the JSON API on this TCP address too; the token is in api.token in the state directory
    #[arg(long, value_name = "IP:PORT")]
    pub(super) api: Option<SocketAddr>,
    /// How long a read waits for peers before it fails
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub(super) read_timeout: Option<u64>,
}

impl NetworkOptions {
    /// As configuration keys with values.
    fn settings(&self) -> Vec<(&'static str, Value)> {
        let mut settings = Vec::new();
        if let Some(addr) = self.listen {
            settings.push(("listen", Value::Address(Some(addr))));
        }
        if !self.peers.is_empty() {
            settings.push(("peers", Value::Addresses(self.peers.clone())));
        }
        let off = [
            ("dht.enabled", self.no_dht),
            ("lsd", self.no_lsd),
            ("pex", self.no_pex),
            ("portmap", self.no_portmap),
        ];
        let off = off.into_iter().filter(|(_, off)| *off);
        settings.extend(off.map(|(key, _)| (key, Value::Bool(false))));
        if let Some(addr) = self.api {
            settings.push(("api.listen", Value::Address(Some(addr))));
        }
        if let Some(seconds) = self.read_timeout {
            settings.push(("read_timeout_s", Value::Number(seconds)));
        }
        settings
    }

    /// The same options for another `ccbt`.
    pub(super) fn args(&self) -> Vec<String> {
        let mut args = Vec::new();
        let mut push = |name: &str, value: Option<String>| {
            args.push(value.map_or_else(|| name.to_owned(), |value| format!("{name}={value}")));
        };
        if let Some(addr) = self.listen {
            push("--listen", Some(addr.to_string()));
        }
        for addr in &self.peers {
            push("--peer", Some(addr.to_string()));
        }
        let flags = [
            ("--no-dht", self.no_dht),
            ("--no-lsd", self.no_lsd),
            ("--no-pex", self.no_pex),
            ("--no-portmap", self.no_portmap),
        ];
        for (name, _) in flags.into_iter().filter(|(_, set)| *set) {
            push(name, None);
        }
        if let Some(addr) = self.api {
            push("--api", Some(addr.to_string()));
        }
        if let Some(seconds) = self.read_timeout {
            push("--read-timeout", Some(seconds.to_string()));
        }
        args
    }

    /// Whether any was given that a daemon that runs already cannot take up. Peers travel with the call.
    pub(super) fn binds_daemon(&self) -> bool {
        let rest = Self {
            peers: Vec::new(),
            ..self.clone()
        };
        !rest.args().is_empty()
    }
}

/// What every command works with.
#[derive(Debug)]
pub(super) struct Context {
    pub(super) global: GlobalOptions,
    pub(super) network: NetworkOptions,
    pub(super) config: Config,
    /// Absolute. May not exist.
    pub(super) state: PathBuf,
    pub(super) output: Output,
}

impl Context {
    pub(super) fn new(global: GlobalOptions, network: NetworkOptions) -> Result<Self, ApiError> {
        let config = load_config(&global, &network)?;
        let state = match &global.state {
            Some(path) => path.clone(),
            None => StateDir::default_path()?,
        };
        let state = std::path::absolute(&state)
            .map_err(|error| ApiError::io("cannot use the state directory", &error))?;
        let output = Output { json: global.json };
        Ok(Self {
            global,
            network,
            config,
            state,
            output,
        })
    }

    /// Logs of a command that only talks to a daemon.
    pub(super) fn log_for_client(&self) -> Result<(), ApiError> {
        self.log(self.terminal_level(), "stderr")
    }

    /// Logs of a daemon that a person watches.
    pub(super) fn log_for_foreground(&self) -> Result<(), ApiError> {
        self.log(self.terminal_level(), self.config.log_target)
    }

    /// Logs of a daemon that runs by itself. `detached`: nobody sees its stderr.
    pub(super) fn log_for_daemon(&self, detached: bool) -> Result<(), ApiError> {
        let target = if detached {
            "file"
        } else {
            self.config.log_target
        };
        self.log(self.config.log_level, target)
    }

    /// On a terminal only warnings show, unless somebody asked for more.
    fn terminal_level(&self) -> &'static str {
        let asked = self
            .config
            .setting("log.level")
            .is_some_and(|s| s.source != Source::Default);
        if asked { self.config.log_level } else { "warn" }
    }

    fn log(&self, level: &str, target: &str) -> Result<(), ApiError> {
        let file = self.state.join(config::LOG_FILE);
        telemetry::init(LogOptions {
            level,
            json: self.config.log_format == "json",
            file: (target == "file").then_some(file.as_path()),
        })
    }
}

/// The file that is read: the one named, else the usual one if it is there.
pub(super) fn config_file(global: &GlobalOptions) -> Result<Option<PathBuf>, ApiError> {
    match &global.config {
        Some(path) => Ok(Some(path.clone())),
        // Without a home directory there is no usual file; that is no reason to fail.
        None => Ok(config::default_file().ok().filter(|path| path.exists())),
    }
}

pub(super) fn load_config(
    global: &GlobalOptions,
    network: &NetworkOptions,
) -> Result<Config, ApiError> {
    let mut flags = network.settings();
    let level = match (global.quiet, global.verbose) {
        (true, _) => Some("error"),
        (_, 0) => None,
        (_, 1) => Some("debug"),
        _ => Some("trace"),
    };
    flags.extend(level.map(|level| ("log.level", Value::Choice(level))));
    let file = config_file(global)?;
    Ok(Config::load(
        file.as_deref(),
        &|name| std::env::var_os(name),
        flags,
    )?)
}

#[cfg(test)]
mod tests {
    use super::super::Cli;
    use super::*;
    use clap::Parser;

    #[derive(Debug, Parser)]
    struct Only {
        #[command(flatten)]
        network: NetworkOptions,
    }

    #[test]
    fn network_options_reach_a_background_daemon_unchanged() {
        let args = [
            "--listen=[::1]:5",
            "--peer=127.0.0.1:6",
            "--peer=127.0.0.1:7",
            "--no-dht",
            "--no-lsd",
            "--no-pex",
            "--no-portmap",
            "--api=127.0.0.1:0",
            "--read-timeout=9",
        ];
        let parsed = Only::parse_from(std::iter::once("x").chain(args));
        assert_eq!(parsed.network.args(), args);
        assert_eq!(parsed.network.settings().len(), args.len() - 1);
        let config = Config::load(None, &|_| None, parsed.network.settings()).unwrap();
        assert_eq!(
            (
                config.dht,
                config.peers.len(),
                config.read_timeout.as_secs()
            ),
            (false, 2, 9)
        );
        assert!(parsed.network.binds_daemon());
        let peers_only = Only::parse_from(["x", "--peer", "127.0.0.1:6"]);
        assert!(!peers_only.network.binds_daemon());
    }

    #[test]
    fn global_options_may_follow_the_command() {
        let cli =
            Cli::try_parse_from(["ccbt", "status", "--json", "--state", "/s", "-vv"]).unwrap();
        assert!(cli.global.json);
        assert_eq!(
            (cli.global.verbose, cli.global.state),
            (2, Some("/s".into()))
        );
    }
}
