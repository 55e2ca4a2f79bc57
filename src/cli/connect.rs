//! Finding the daemon of a state directory, or becoming it.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::background;
use super::foreground::Foreground;
use super::options::Context;
use super::progress::Bar;
use crate::api::types::Request;
use crate::api::{ApiError, Client, ErrorKind, WorkItem, escape};
use crate::config::StateDir;

/// A daemon that has the lock but no socket yet is starting. Beyond this it is stuck.
const STARTING_MAX: Duration = Duration::from_secs(10);
/// A daemon that has answered that it ends has only its process to end.
const ENDING_MAX: Duration = Duration::from_secs(10);
pub(super) const POLL: Duration = Duration::from_millis(20);

/// The daemon if one runs; waits for one that is just starting.
pub(super) async fn find(context: &Context) -> Result<Option<Client>, ApiError> {
    let Some(state) = StateDir::find(&context.state)? else {
        return Ok(None);
    };
    // One that was killed still has its socket while it cannot end, and would never answer.
    let state = tokio::task::spawn_blocking(move || state.end_killed_holder().map(|()| state))
        .await
        .map_err(|error| ApiError::new(ErrorKind::Internal, error))??;
    let until = Instant::now() + STARTING_MAX;
    loop {
        if let Some(client) = Client::connect(&state).await? {
            return Ok(Some(client));
        }
        let Some(pid) = state.holder() else {
            return Ok(None);
        };
        if Instant::now() >= until {
            let pid = pid.map_or_else(String::new, |pid| format!(" (process id {pid})"));
            let message = format!("the daemon{pid} of {} does not answer", shown(context));
            return Err(ApiError::new(ErrorKind::Timeout, message).hint(
                "its log is ccbt.log in the state directory; if it hangs, end it with `kill`",
            ));
        }
        sleep(POLL).await;
    }
}

/// Waits until the daemon that said it ends has: until then, the next command might still find it.
pub(super) async fn gone(context: &Context) -> Result<(), ApiError> {
    let Some(state) = StateDir::find(&context.state)? else {
        return Ok(());
    };
    let until = Instant::now() + ENDING_MAX;
    while state.holder().is_some() && Instant::now() < until {
        sleep(POLL).await;
    }
    Ok(())
}

/// The daemon, for commands that make no sense without one.
pub(super) async fn require(context: &Context) -> Result<Client, ApiError> {
    context.log_for_client()?;
    find(context).await?.ok_or_else(|| {
        let message = format!("no daemon is running for {}", shown(context));
        ApiError::new(ErrorKind::NoDaemon, message).hint("start one with `ccbt daemon -d`")
    })
}

/// Asks the running daemon, with a progress bar.
pub(super) async fn ask<R: Request>(
    context: &Context,
    request: &R,
) -> Result<R::Response, ApiError> {
    let client = require(context).await?;
    client.call(request, &Bar::new(context)).await
}

fn shown(context: &Context) -> String {
    escape(context.state.as_os_str().as_encoded_bytes())
}

/// What `share` and `mount` talk to: a daemon that is there, or this very process.
pub(super) enum Session {
    Daemon(Client),
    Foreground(Box<Foreground>),
}

impl Session {
    /// `detach`: a daemon that must be started goes to the background.
    pub(super) async fn open(context: &Context, detach: bool) -> Result<Self, ApiError> {
        if let Some(client) = find(context).await? {
            if context.network.binds_daemon() {
                context.output.note(
                    "a daemon is running already: network options other than --peer have no effect",
                );
            }
            context.log_for_client()?;
            return Ok(Self::Daemon(client));
        }
        if detach {
            context.log_for_client()?;
            return background::start(context).await.map(Self::Daemon);
        }
        let state = StateDir::lock(&context.state)?;
        context.log_for_foreground()?;
        Foreground::start(context, state)
            .await
            .map(|daemon| Self::Foreground(Box::new(daemon)))
    }

    /// Makes the call that this session was opened for. `None`: interrupted, and everything is down again.
    pub(super) async fn call<R: Request>(
        &mut self,
        context: &Context,
        request: &R,
    ) -> Result<Option<R::Response>, ApiError> {
        let bar = Bar::new(context);
        match self {
            Self::Daemon(client) => client.call(request, &bar).await.map(Some),
            Self::Foreground(daemon) => daemon.call(request, &bar).await,
        }
    }

    /// The work is done: a foreground daemon ends, unless others use it.
    pub(super) async fn finish(self, context: &Context, own: &WorkItem) -> Result<(), ApiError> {
        match self {
            Self::Daemon(_) => Ok(()),
            Self::Foreground(daemon) => daemon.finish(context.output, own).await,
        }
    }

    /// Returns at once if a daemon has taken the work over; else stays until it is told to end, or `own` is gone.
    pub(super) async fn stay(self, context: &Context, own: &WorkItem) -> Result<(), ApiError> {
        match self {
            Self::Daemon(_) => Ok(()),
            Self::Foreground(daemon) => daemon.run(context.output, Some(own)).await,
        }
    }
}
