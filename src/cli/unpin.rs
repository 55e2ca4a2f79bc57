//! `ccbt unpin`

use std::path::PathBuf;

use clap::Args;

use super::options::Context;
use super::{CommandResult, connect, output, source};
use crate::api::types::UnpinRequest;

/// Let a pinned file or directory be dropped when space is needed
#[derive(Debug, Args)]
pub(super) struct UnpinCommand {
    /// In a mounted folder
    path: PathBuf,
}

impl UnpinCommand {
    pub(super) async fn run(self, context: &Context) -> CommandResult {
        let path = source::target(&self.path)?;
        let response = connect::ask(context, &UnpinRequest { path: path.clone() }).await?;
        context.output.result(&response, |response| {
            format!(
                "{path} may be dropped: {}\n",
                output::amount(response.released)
            )
        })?;
        Ok(0)
    }
}
