//! `ccbt config`

use clap::{Args, Subcommand};
use serde::Serialize;

use super::CommandResult;
use super::options::{self, GlobalOptions, NetworkOptions};
use super::output::{Output, table};
use crate::api::types::ApiPath;
use crate::api::{ApiError, ErrorKind, escape};
use crate::config::{self, Config, Setting};

/// Show the configuration and where each value comes from
#[derive(Debug, Subcommand)]
pub(super) enum ConfigCommand {
    /// Every key with its value and its source
    List,
    /// One value
    Get(GetArgs),
    /// The configuration file
    Path,
}

#[derive(Debug, Args)]
pub(super) struct GetArgs {
    /// Such as log.level
    key: String,
}

impl ConfigCommand {
    pub(super) fn run(self, global: &GlobalOptions) -> CommandResult {
        let output = Output { json: global.json };
        match self {
            Self::Path => path(global, output)?,
            Self::List => list(&load(global)?, output)?,
            Self::Get(args) => get(&load(global)?, &args.key, output)?,
        }
        Ok(0)
    }
}

fn load(global: &GlobalOptions) -> Result<Config, ApiError> {
    options::load_config(global, &NetworkOptions::default())
}

fn list(config: &Config, output: Output) -> Result<(), ApiError> {
    #[derive(Serialize)]
    struct List<'a> {
        settings: Vec<&'a Setting>,
    }
    let list = List {
        settings: config.settings().collect(),
    };
    output.result(&list, |list| {
        let row = |setting: &&Setting| {
            let assignment = format!("{} = {}", setting.key, setting.value);
            vec![
                escape(assignment.as_bytes()),
                escape(format!("# {}", setting.source).as_bytes()),
            ]
        };
        table(&list.settings.iter().map(row).collect::<Vec<_>>())
    })
}

fn get(config: &Config, key: &str, output: Output) -> Result<(), ApiError> {
    let setting = config.setting(key).ok_or_else(|| {
        let key = escape(key.as_bytes());
        ApiError::new(ErrorKind::Usage, format_args!("there is no key `{key}`"))
            .hint("`ccbt config list` shows every key")
    })?;
    output.result(setting, |setting| format!("{}\n", setting.value))
}

fn path(global: &GlobalOptions, output: Output) -> Result<(), ApiError> {
    #[derive(Serialize)]
    struct Place {
        path: ApiPath,
        exists: bool,
    }
    let path = match &global.config {
        Some(path) => path.clone(),
        None => config::default_file()?,
    };
    let place = Place {
        exists: path.exists(),
        path: path.into(),
    };
    output.result(&place, |place| {
        let missing = if place.exists {
            ""
        } else {
            "  (does not exist)"
        };
        format!("{}{missing}\n", place.path)
    })
}
