//! `ccbt pin`

use std::path::PathBuf;

use clap::Args;

use super::options::Context;
use super::{CommandResult, connect, output, source};
use crate::api::types::PinRequest;

/// Fetch a file or directory and keep it on this device
#[derive(Debug, Args)]
pub(super) struct PinCommand {
    /// In a mounted folder
    path: PathBuf,
}

impl PinCommand {
    pub(super) async fn run(self, context: &Context) -> CommandResult {
        let path = source::target(&self.path)?;
        let response = connect::ask(context, &PinRequest { path: path.clone() }).await?;
        context.output.result(&response, |response| {
            format!(
                "{path} is kept on this device: {}\n",
                output::amount(response.kept)
            )
        })?;
        Ok(0)
    }
}
