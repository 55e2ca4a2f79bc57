//! `ccbt confirm`

use std::path::PathBuf;

use clap::Args;

use super::options::Context;
use super::{CommandResult, connect, output, source};
use crate::api::escape;
use crate::api::types::{ConfirmRequest, ConfirmResponse};

/// Publish what a shared directory holds, though most of it is gone
///
/// When a shared directory is suddenly empty, has lost most of its files or its marker, the disk may just not be mounted.
/// Then nothing of it is published until it is back, or this command says that it is meant to be so.
#[derive(Debug, Args)]
pub(super) struct ConfirmCommand {
    /// The directory that is held back, as `ccbt status` shows it
    dir: PathBuf,
}

impl ConfirmCommand {
    pub(super) async fn run(self, context: &Context) -> CommandResult {
        let dir = source::existing_dir(&self.dir).or_else(|_| source::target(&self.dir))?;
        let response = connect::ask(context, &ConfirmRequest { dir: dir.clone() }).await?;
        let shown = dir.to_string();
        context
            .output
            .result(&response, |response| text(response, &shown))?;
        Ok(0)
    }
}

fn text(response: &ConfirmResponse, dir: &str) -> String {
    let content = output::amount(response.content);
    match &response.held_back {
        Some(why) => format!(
            "Confirmed although {}: {dir} is published with {content}\n",
            escape(why.as_bytes())
        ),
        None => format!("Nothing of {dir} was held back: {content}\n"),
    }
}
