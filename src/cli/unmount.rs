//! `ccbt unmount`

use std::path::PathBuf;

use clap::Args;
use serde::Serialize;

use super::options::Context;
use super::output::only_here;
use super::{CommandResult, connect, source};
use crate::api::types::{ApiPath, UnmountRequest};
use crate::api::{ApiError, ErrorKind};

/// Take a mount down, once everything written is safe
///
/// Without a daemon, takes away what a killed one left.
#[derive(Debug, Args)]
pub(super) struct UnmountCommand {
    /// The mount point
    dir: PathBuf,
    /// End it now even if files are open: programs that have them open get errors
    #[arg(long)]
    force: bool,
}

impl UnmountCommand {
    pub(super) async fn run(self, context: &Context) -> CommandResult {
        context.log_for_client()?;
        if connect::find(context).await?.is_none()
            && let Some(dir) = detach_dead(source::target(&self.dir)?)?
        {
            let dead = DeadMount { dir };
            context.output.result(&dead, |dead| gone(&dead.dir))?;
            return Ok(0);
        }
        let dir = source::target(&self.dir)?;
        let response = connect::ask(
            context,
            &UnmountRequest {
                dir,
                force: self.force,
            },
        )
        .await?;
        context
            .output
            .result(&response, |response| match response.folder {
                Some(_) => format!("Unmounted {}\n", response.dir),
                None => gone(&response.dir),
            })?;
        if let Some(sentence) = only_here(response.only_here) {
            context.output.note(&sentence);
        }
        Ok(0)
    }
}

fn gone(dir: &ApiPath) -> String {
    format!("Unmounted {dir}, whose daemon was gone\n")
}

/// A mount that was taken down without a daemon.
#[derive(Serialize)]
struct DeadMount {
    dir: ApiPath,
}

/// Takes away what a killed daemon left at `dir`; `None` if there is no such thing.
fn detach_dead(dir: ApiPath) -> Result<Option<ApiPath>, ApiError> {
    match ccbt_mount::detach_dead(&dir.0) {
        Ok(true) => Ok(Some(dir)),
        Ok(false) => Ok(None),
        Err(error) => Err(ApiError::new(ErrorKind::Busy, error)),
    }
}
