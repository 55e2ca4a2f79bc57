//! `ccbt join`

use std::ffi::OsString;
use std::path::PathBuf;

use clap::Args;

use super::connect::Session;
use super::options::{Context, NetworkOptions};
use super::{CommandResult, INTERRUPTED, output, source};
use crate::api::types::{ApiPath, JoinRequest, JoinResponse, MountSource};
use crate::api::{ApiError, ErrorKind, WorkItem, WorkKind, escape};

/// Keep a plain directory in step with a folder of others
///
/// The directory gets every file of the folder as an ordinary file; what is changed in it is published, what others
/// change is written into it. Files with the same content are taken as they are, different ones of one name are kept
/// side by side. Without a daemon the command stays in the foreground until Ctrl-C. It lasts until `ccbt unshare`.
#[derive(Debug, Args)]
pub(super) struct JoinCommand {
    /// A read-write ccbt: link, a file with one, or -
    link: OsString,
    /// The directory; it may have files already
    dir: PathBuf,
    /// Publish the files that only the directory has
    #[arg(long)]
    merge: bool,
    /// Only say what would happen
    #[arg(long)]
    dry_run: bool,
    /// Leave a daemon running in the background
    #[arg(short = 'd', long)]
    detach: bool,
    #[command(flatten)]
    pub(super) network: NetworkOptions,
}

impl JoinCommand {
    pub(super) async fn run(self, context: &Context) -> CommandResult {
        let (source, dir) = source::mount_args(Some(self.link), Some(self.dir), None)?;
        let MountSource::Link(link) = source else {
            return Err(ApiError::new(ErrorKind::Usage, "only a link can be joined")
                .hint("`ccbt join LINK DIR`"));
        };
        let mut session = Session::open(context, self.detach && !self.dry_run).await?;
        let request = JoinRequest {
            link,
            dir,
            merge: self.merge,
            dry_run: self.dry_run,
            peers: context.network.peers.clone(),
        };
        let Some(response) = session.call(context, &request).await? else {
            return Ok(INTERRUPTED);
        };
        context.output.result(&response, text)?;
        let (kind, dir) = (WorkKind::Share, response.dir);
        if !response.dry_run {
            session.stay(context, &WorkItem { kind, dir }).await?;
        }
        Ok(0)
    }
}

fn text(response: &JoinResponse) -> String {
    let name = escape(response.name.as_bytes());
    let dir = &response.dir;
    let mut text = match response.dry_run {
        true => format!("Would join {name} at {dir}\n"),
        false => format!("Joined {name} at {dir}\n"),
    };
    let missing = output::amount(response.missing);
    text.push_str(&format!("  {missing} to be written into the directory\n"));
    text.push_str(&format!(
        "  {} with the same content in both\n",
        response.same
    ));
    list(
        &mut text,
        response.different,
        "different, kept side by side",
        &response.different_paths,
    );
    list(
        &mut text,
        response.local_only,
        "only in the directory, published",
        &response.local_only_paths,
    );
    text
}

fn list(text: &mut String, count: u64, what: &str, paths: &[ApiPath]) {
    if count == 0 {
        return;
    }
    text.push_str(&format!("  {count} {what}\n"));
    for path in paths {
        text.push_str(&format!("    {path}\n"));
    }
    if count > paths.len() as u64 {
        text.push_str("    ...\n");
    }
}
