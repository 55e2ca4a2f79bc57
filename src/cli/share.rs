//! `ccbt share`

use std::path::{Path, PathBuf};

use clap::Args;

use super::connect::Session;
use super::options::{Context, NetworkOptions};
use super::{CommandResult, INTERRUPTED, output, source};
use crate::api::types::{HashSuite, ShareRequest, ShareResponse};
use crate::api::{WorkItem, WorkKind, escape};

/// Publish a directory and print its links
///
/// The directory stays as it is; it is watched, and changes are published. Without a daemon the command stays in the
/// foreground until Ctrl-C. The share itself lasts until `ccbt unshare`.
#[derive(Debug, Args)]
pub(super) struct ShareCommand {
    /// A plain directory, or one that is mounted
    dir: PathBuf,
    /// Name of the folder [default: that of the directory]
    #[arg(long)]
    name: Option<String>,
    /// Hash that names the chunks of a new folder [default: blake3]
    #[arg(long, value_name = "HASH")]
    suite: Option<HashSuite>,
    /// Leave a daemon running in the background
    #[arg(short = 'd', long)]
    detach: bool,
    #[command(flatten)]
    pub(super) network: NetworkOptions,
}

impl ShareCommand {
    pub(super) async fn run(self, context: &Context) -> CommandResult {
        let dir = source::existing_dir(&self.dir)?;
        let mut session = Session::open(context, self.detach).await?;
        let request = ShareRequest {
            dir: dir.clone(),
            name: self.name,
            peers: context.network.peers.clone(),
            suite: self.suite,
        };
        let Some(response) = session.call(context, &request).await? else {
            return Ok(INTERRUPTED);
        };
        if !context.output.json && !context.global.quiet {
            context.output.note(&summary(&self.dir, &response));
        }
        context.output.result(&response, links)?;
        session
            .stay(
                context,
                &WorkItem {
                    kind: WorkKind::Share,
                    dir,
                },
            )
            .await?;
        Ok(0)
    }
}

/// Names the directory as the user did.
fn summary(dir: &Path, response: &ShareResponse) -> String {
    let dir = escape(dir.as_os_str().as_encoded_bytes());
    format!("Sharing {dir}: {}", output::amount(response.content))
}

/// The two lines scripts look for.
fn links(response: &ShareResponse) -> String {
    let (write, read) = (response.read_write.reveal(), response.read_only.reveal());
    format!("read-write  {write}\nread-only   {read}\n")
}
