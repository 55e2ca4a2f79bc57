//! `ccbt keys`

use clap::{Args, ValueEnum};

use super::options::Context;
use super::{CommandResult, connect};
use crate::api::escape;
use crate::api::types::{FolderKeys, KeysAction, KeysRequest, KeysResponse};

/// Show the links of folders, or back up the keys that own them
#[derive(Debug, Args)]
pub(super) struct KeysCommand {
    /// show: the links to hand out; backup: the owner keys too
    #[arg(default_value = "show")]
    action: Action,
    /// Only this folder: its id, its name, or a directory of it
    #[arg(long)]
    folder: Option<String>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Action {
    Show,
    Backup,
}

impl KeysCommand {
    pub(super) async fn run(self, context: &Context) -> CommandResult {
        let action = match self.action {
            Action::Show => KeysAction::Show,
            Action::Backup => KeysAction::Backup,
        };
        let response = connect::ask(
            context,
            &KeysRequest {
                action,
                folder: self.folder,
            },
        )
        .await?;
        if action == KeysAction::Backup && !context.output.json {
            context
                .output
                .note("whoever has an owner key owns the folder: keep this where nobody finds it");
        }
        context.output.result(&response, text)?;
        Ok(0)
    }
}

fn text(response: &KeysResponse) -> String {
    let device = escape(response.device_name.as_bytes());
    let mut text = format!("device {device}  {}\n", response.device_key);
    for folder in &response.folders {
        text.push_str(&folder_text(folder));
    }
    text
}

fn folder_text(folder: &FolderKeys) -> String {
    let mut text = format!("\n{}  {}\n", escape(folder.name.as_bytes()), folder.id);
    let secrets = [
        ("owner", &folder.owner),
        ("read-write", &folder.read_write),
        ("read-only", &folder.read_only),
    ];
    for (name, secret) in secrets {
        if let Some(secret) = secret {
            text.push_str(&format!("  {name:10}  {}\n", secret.reveal()));
        }
    }
    text
}
