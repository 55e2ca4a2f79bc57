//! `ccbt unmount`

use std::path::PathBuf;

use clap::Args;

use super::options::Context;
use super::{CommandResult, connect, source};
use crate::api::types::UnmountRequest;

/// Take a mount down, once everything written is safe
#[derive(Debug, Args)]
pub(super) struct UnmountCommand {
    /// The mount point
    dir: PathBuf,
    /// Detach now even if files are open; what is written to them later is lost
    #[arg(long)]
    force: bool,
}

impl UnmountCommand {
    pub(super) async fn run(self, context: &Context) -> CommandResult {
        let dir = source::target(&self.dir)?;
        let response = connect::ask(
            context,
            &UnmountRequest {
                dir,
                force: self.force,
            },
        )
        .await?;
        context.output.result(&response, |response| {
            format!("Unmounted {}\n", response.dir)
        })?;
        Ok(0)
    }
}
