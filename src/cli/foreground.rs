//! The daemon in this process: the server on its socket, and the wait for a signal or for the end of the work.
//!
//! SIGTERM and SIGHUP end it. So does Ctrl-C, but if other commands have added work, the first one lists that and asks
//! again. When what this process was started for is gone (unmounted, unshared) and others added nothing, it ends by itself.

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};

use super::options::Context;
use super::output::{Output, only_here};
use crate::api::types::{Amount, Request, ShutdownRequest};
use crate::api::{
    ApiError, Client, Control, ErrorKind, NoProgress, ProgressReport, Server, Work, WorkItem,
    WorkKind,
};
use crate::config::StateDir;
use crate::daemon;

pub(super) struct Foreground {
    control: Arc<dyn Control>,
    server: Server,
    client: Client,
    signals: Signals,
    /// What the daemon brought back from earlier when it started.
    before: Vec<WorkItem>,
}

/// Why a foreground daemon ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Signal,
    /// What it was started for is gone.
    Done,
    /// It was shut down through the API.
    Shutdown,
}

impl Foreground {
    /// Starts the daemon of the locked directory `state` in this process.
    pub(super) async fn start(context: &Context, state: StateDir) -> Result<Self, ApiError> {
        let signals = Signals::new()?;
        // The daemon keeps the lock; the server and the client only need the path.
        let place = StateDir::find(state.path())?
            .ok_or_else(|| ApiError::new(ErrorKind::Internal, "the state directory is gone"))?;
        let control = daemon::start(Arc::new(context.config.clone()), state).await?;
        Self::serve(control, &place, context.config.api_listen, signals).await
    }

    async fn serve(
        control: Arc<dyn Control>,
        place: &StateDir,
        api: Option<SocketAddr>,
        signals: Signals,
    ) -> Result<Self, ApiError> {
        let before = control.work().borrow().items.clone();
        let started = async {
            let server = Server::start(control.clone(), place, api).await?;
            let client = Client::connect(place).await?;
            Ok((
                server,
                client.ok_or_else(|| {
                    ApiError::new(ErrorKind::Internal, "the daemon does not answer itself")
                })?,
            ))
        };
        match started.await {
            Ok((server, client)) => Ok(Self {
                control,
                server,
                client,
                signals,
                before,
            }),
            Err(error) => {
                let _left = stop(&*control).await;
                Err(error)
            }
        }
    }

    /// Calls the daemon as any other command would. A signal or a failure takes the daemon down.
    pub(super) async fn call<R: Request>(
        &mut self,
        request: &R,
        progress: &dyn ProgressReport,
    ) -> Result<Option<R::Response>, ApiError> {
        let called = tokio::select! {
            called = self.client.call(request, progress) => called.map(Some),
            _ = self.signals.next() => Ok(None),
        };
        if !matches!(called, Ok(Some(_))) {
            tokio::select! {
                _ = stop(&*self.control) => {}
                _ = self.signals.next() => {}
            }
        }
        called
    }

    /// Stays until a signal or the end of the work, then takes everything down. `own`: what this process is for; `None`:
    /// a daemon that serves others.
    pub(super) async fn run(
        mut self,
        output: Output,
        own: Option<&WorkItem>,
    ) -> Result<(), ApiError> {
        let mut work = self.control.work();
        let end = wait(&mut work, &mut self.signals, own, &self.before, output).await;
        tracing::info!(?end, "stopping");
        if end != End::Shutdown {
            tokio::select! {
                left = stop(&*self.control) => tell(output, left),
                () = insist(&mut self.signals, output) => {
                    return Err(ApiError::new(ErrorKind::Timeout, "left before all was unmounted")
                        .hint("what was saved is safe; the next daemon clears the mounts away"));
                }
            }
        }
        self.server.close().await;
        Ok(())
    }

    /// The work is done: takes everything down, unless other commands have added work meanwhile.
    pub(super) async fn finish(self, output: Output, own: &WorkItem) -> Result<(), ApiError> {
        let now = self.control.work().borrow().clone();
        if !others(&now, Some(own), &self.before).is_empty() {
            return self.run(output, Some(own)).await;
        }
        tell(output, stop(&*self.control).await);
        self.server.close().await;
        Ok(())
    }
}

/// Returns when a person has pressed Ctrl-C twice more. SIGTERM is patient: its sender follows up with SIGKILL.
async fn insist(signals: &mut Signals, output: Output) {
    let mut told = false;
    loop {
        match signals.next().await {
            Ask::Interrupt if told => return,
            Ask::Interrupt => {
                told = true;
                output.note("still writing and unmounting; Ctrl-C again leaves at once");
            }
            Ask::Terminate => {}
        }
    }
}

/// Takes the daemon down. What goes wrong is told; there is nothing else to do about it. Returns what is only here.
async fn stop(control: &dyn Control) -> Amount {
    let sink = Arc::new(NoProgress);
    match control.shutdown(ShutdownRequest {}, sink).await {
        Ok(response) => response.only_here,
        Err(error) => {
            tracing::error!(%error, "could not shut down cleanly");
            Amount::default()
        }
    }
}

fn tell(output: Output, left: Amount) {
    if let Some(sentence) = only_here(left) {
        output.note(&sentence);
    }
}

async fn wait(
    work: &mut watch::Receiver<Work>,
    signals: &mut Signals,
    own: Option<&WorkItem>,
    before: &[WorkItem],
    output: Output,
) -> End {
    let (mut asked, mut seen) = (false, false);
    loop {
        let now = work.borrow_and_update().clone();
        if now.ended {
            return End::Shutdown;
        }
        let others = others(&now, own, before);
        let there = own.is_none_or(|own| now.items.contains(own));
        seen |= there;
        if seen && !there && others.is_empty() {
            return End::Done;
        }
        tokio::select! {
            ask = signals.next() => match ask {
                Ask::Interrupt if !asked && own.is_some() && !others.is_empty() => {
                    asked = true;
                    output.note(&question(&others));
                }
                _ => return End::Signal,
            },
            changed = work.changed() => if changed.is_err() {
                return End::Shutdown;
            },
        }
    }
}

/// What other commands have added since this process started.
fn others(work: &Work, own: Option<&WorkItem>, before: &[WorkItem]) -> Vec<WorkItem> {
    let added = |item: &&WorkItem| Some(*item) != own && !before.contains(item);
    work.items.iter().filter(added).cloned().collect()
}

fn question(others: &[WorkItem]) -> String {
    let mut text = String::from("other commands use this process:\n");
    for item in others {
        let what = match item.kind {
            WorkKind::Mount => "mounted",
            WorkKind::Share => "shared ",
            WorkKind::Torrent => "torrent",
        };
        text.push_str(&format!("  {what}  {}\n", item.dir));
    }
    text.push_str("press Ctrl-C again to stop all of it");
    text
}

/// What a signal asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ask {
    /// Ctrl-C: a person, who can be asked again.
    Interrupt,
    /// SIGTERM, or the terminal is gone.
    Terminate,
}

/// Signals as they come; tests send their own.
struct Signals(mpsc::Receiver<Ask>);

impl Signals {
    fn new() -> Result<Self, ApiError> {
        let on =
            |kind| signal(kind).map_err(|error| ApiError::io("cannot listen for signals", &error));
        let mut interrupt = on(SignalKind::interrupt())?;
        let mut terminate = on(SignalKind::terminate())?;
        let mut hangup = on(SignalKind::hangup())?;
        let (asks, received) = mpsc::channel(4);
        tokio::spawn(async move {
            loop {
                let ask = tokio::select! {
                    _ = interrupt.recv() => Ask::Interrupt,
                    _ = terminate.recv() => Ask::Terminate,
                    _ = hangup.recv() => Ask::Terminate,
                };
                if asks.send(ask).await.is_err() {
                    return;
                }
            }
        });
        Ok(Self(received))
    }

    async fn next(&mut self) -> Ask {
        match self.0.recv().await {
            Some(ask) => ask,
            None => std::future::pending().await,
        }
    }
}

#[cfg(test)]
mod tests;
