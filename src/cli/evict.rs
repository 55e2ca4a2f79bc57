//! `ccbt evict`

use std::path::PathBuf;

use clap::Args;

use super::options::Context;
use super::{CommandResult, connect, output, source};
use crate::api::types::{EvictRequest, EvictResponse};

/// Drop the local copy of a file or directory that other devices hold
#[derive(Debug, Args)]
pub(super) struct EvictCommand {
    /// In a mounted folder
    path: PathBuf,
}

impl EvictCommand {
    pub(super) async fn run(self, context: &Context) -> CommandResult {
        let path = source::target(&self.path)?;
        let response = connect::ask(context, &EvictRequest { path }).await?;
        context.output.result(&response, text)?;
        Ok(0)
    }
}

fn text(response: &EvictResponse) -> String {
    let mut text = format!("Freed {}\n", output::amount(response.freed));
    if response.only_here.files > 0 {
        let kept = output::amount(response.only_here);
        text.push_str(&format!(
            "Left in place, because no other device has it: {kept}\n"
        ));
    }
    text
}
