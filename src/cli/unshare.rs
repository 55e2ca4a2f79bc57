//! `ccbt unshare`

use std::path::PathBuf;

use clap::Args;

use super::options::Context;
use super::{CommandResult, connect, source};
use crate::api::escape;
use crate::api::types::UnshareRequest;

/// Stop sharing a directory; its files stay
#[derive(Debug, Args)]
pub(super) struct UnshareCommand {
    /// The directory that is shared
    dir: PathBuf,
}

impl UnshareCommand {
    pub(super) async fn run(self, context: &Context) -> CommandResult {
        // The directory may be gone: that must not keep it shared.
        let dir = source::existing_dir(&self.dir).or_else(|_| source::target(&self.dir))?;
        let response = connect::ask(context, &UnshareRequest { dir: dir.clone() }).await?;
        context.output.result(&response, |response| {
            format!(
                "{} is no longer shared; the files in {dir} stay\n",
                escape(response.name.as_bytes())
            )
        })?;
        Ok(0)
    }
}
