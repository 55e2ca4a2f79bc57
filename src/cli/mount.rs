//! `ccbt mount`

use std::ffi::OsString;
use std::path::PathBuf;

use clap::Args;

use super::connect::Session;
use super::options::{Context, NetworkOptions};
use super::{CommandResult, INTERRUPTED, output, source};
use crate::api::types::{MountRequest, MountResponse};
use crate::api::{WorkItem, WorkKind, escape};

/// Mount a folder: a directory over itself, or a link on a directory
///
/// A directory is private until it is shared. A link can also be given as `-` (read from standard input), as a file that
/// holds it, or in $CCBT_LINK (then only DIR is named). Without a daemon the command stays in the foreground until Ctrl-C
/// or until the directory is unmounted.
#[derive(Debug, Args)]
pub(super) struct MountCommand {
    /// A directory, a ccbt: link, a file with a link, or -
    #[arg(value_name = "SOURCE")]
    source: Option<OsString>,
    /// Where to mount it [default: SOURCE itself]
    dir: Option<PathBuf>,
    /// Refuse writes here, whatever the link allows
    #[arg(long)]
    read_only: bool,
    /// Fetch everything and keep it on this device
    #[arg(long)]
    offline: bool,
    /// Honour set-user-id bits of files in the folder
    #[arg(long)]
    suid: bool,
    /// Honour device files
    #[arg(long)]
    dev: bool,
    /// Leave a daemon running in the background; the mount comes back when it starts again
    #[arg(short = 'd', long)]
    detach: bool,
    #[command(flatten)]
    pub(super) network: NetworkOptions,
}

impl MountCommand {
    pub(super) async fn run(self, context: &Context) -> CommandResult {
        let env = std::env::var_os("CCBT_LINK");
        let (source, dir) = source::mount_args(self.source, self.dir, env)?;
        let mut session = Session::open(context, self.detach).await?;
        let request = MountRequest {
            source,
            dir: dir.clone(),
            read_only: self.read_only,
            offline: self.offline,
            persist: self.detach,
            suid: self.suid,
            dev: self.dev,
            peers: context.network.peers.clone(),
        };
        let Some(response) = session.call(context, &request).await? else {
            return Ok(INTERRUPTED);
        };
        context.output.result(&response, line)?;
        if response.content.is_none() && !context.output.json && !context.global.quiet {
            context
                .output
                .note("no peer has answered yet; the folder shows up when one does");
        }
        session
            .stay(
                context,
                &WorkItem {
                    kind: WorkKind::Mount,
                    dir: response.dir,
                },
            )
            .await?;
        Ok(0)
    }
}

fn line(response: &MountResponse) -> String {
    let name = escape(response.name.as_bytes());
    let mut line = format!("Mounted {name} on {}", response.dir);
    if response.read_only {
        line.push_str(" (read-only)");
    }
    if let Some(content) = response.content {
        line.push_str(&format!(": {}", output::amount(content)));
    }
    line + "\n"
}
