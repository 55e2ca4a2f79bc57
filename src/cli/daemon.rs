//! `ccbt daemon`

use clap::{Args, Subcommand};

use super::foreground::Foreground;
use super::options::{Context, NetworkOptions};
use super::output::only_here;
use super::{CommandResult, background, connect};
use crate::api::ApiError;
use crate::api::types::{ShutdownRequest, ShutdownResponse};
use crate::config::StateDir;

/// Run the daemon: shares and mounts go on without a terminal
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(super) struct DaemonCommand {
    #[command(subcommand)]
    action: Option<Action>,
    /// In the background; returns when it is ready
    #[arg(short = 'd', long)]
    detach: bool,
    /// This process is the one in the background
    #[arg(long, hide = true)]
    detached: bool,
    #[command(flatten)]
    pub(super) network: NetworkOptions,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Publish, unmount and end the daemon that runs
    Stop,
}

impl DaemonCommand {
    pub(super) async fn run(self, context: &Context) -> CommandResult {
        match self.action {
            Some(Action::Stop) => stop(context).await,
            None if self.detach => start_detached(context).await,
            None => run_here(context, self.detached).await,
        }
    }
}

async fn stop(context: &Context) -> CommandResult {
    let response = connect::ask(context, &ShutdownRequest {}).await?;
    connect::gone(context).await?;
    context.output.result(&response, stopped)?;
    if let Some(sentence) = only_here(response.only_here) {
        context.output.note(&sentence);
    }
    Ok(0)
}

fn stopped(response: &ShutdownResponse) -> String {
    let unmounted = response
        .unmounted
        .iter()
        .map(|dir| format!("Unmounted {dir}\n"));
    unmounted
        .chain(["The daemon has ended\n".to_owned()])
        .collect()
}

async fn start_detached(context: &Context) -> CommandResult {
    context.log_for_client()?;
    if connect::find(context).await?.is_some() {
        context.output.note("a daemon is running already");
        return Ok(0);
    }
    background::start(context).await?;
    Ok(0)
}

async fn run_here(context: &Context, detached: bool) -> CommandResult {
    if detached {
        leave_terminal()?;
    }
    let state = StateDir::lock(&context.state)?;
    context.log_for_daemon(detached)?;
    Foreground::start(context, state)
        .await?
        .run(context.output, None)
        .await?;
    Ok(0)
}

/// A session of our own: no terminal can send us its signals; and no directory is kept busy by being our working one.
fn leave_terminal() -> Result<(), ApiError> {
    rustix::process::setsid()
        .map_err(|error| ApiError::io("cannot leave the terminal", &error.into()))?;
    std::env::set_current_dir("/").map_err(|error| ApiError::io("cannot enter /", &error))
}
