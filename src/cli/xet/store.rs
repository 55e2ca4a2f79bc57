//! `ccbt xet stats`, `verify` and `gc`: by the daemon if one runs, else by this process with the state directory locked.

use std::sync::Arc;

use clap::Args;

use super::super::options::Context;
use super::super::output::{amount, bytes, count, table};
use super::super::progress::Bar;
use super::super::{CommandResult, connect};
use crate::api::types::{
    GcResponse, StoreAction, StoreRequest, StoreResponse, StoreStatsResponse, VerifyResponse,
};
use crate::api::{ApiError, ErrorKind, ProgressSink};
use crate::config::StateDir;
use crate::daemon;

/// Show what the store holds
#[derive(Debug, Args)]
pub(in crate::cli) struct StatsCommand {}

/// Read and hash everything in the store
///
/// Ends with exit code 7 if something is damaged and was not repaired.
#[derive(Debug, Args)]
pub(in crate::cli) struct VerifyCommand {
    /// Get what is damaged from plain files and peers; needs a daemon
    #[arg(long)]
    repair: bool,
}

/// Drop chunks and nodes that no folder needs
#[derive(Debug, Args)]
pub(in crate::cli) struct GcCommand {
    /// Only say what would be dropped
    #[arg(long)]
    dry_run: bool,
}

impl StatsCommand {
    pub(super) async fn run(self, context: &Context) -> CommandResult {
        let StoreResponse::Stats(stats) = call(context, StoreAction::Stats).await? else {
            return Err(unexpected());
        };
        context.output.result(&stats, stats_text)?;
        Ok(0)
    }
}

impl VerifyCommand {
    pub(super) async fn run(self, context: &Context) -> CommandResult {
        let repair = self.repair;
        let StoreResponse::Verify(found) = call(context, StoreAction::Verify { repair }).await?
        else {
            return Err(unexpected());
        };
        context.output.result(&found, verify_text)?;
        if found.damaged > found.repaired {
            let lost = found.damaged - found.repaired;
            context
                .output
                .note(&format!("ccbt: {} damaged records", count(lost)));
            return Ok(ErrorKind::Io.exit_code());
        }
        Ok(0)
    }
}

impl GcCommand {
    pub(super) async fn run(self, context: &Context) -> CommandResult {
        let dry_run = self.dry_run;
        let StoreResponse::Gc(done) = call(context, StoreAction::Gc { dry_run }).await? else {
            return Err(unexpected());
        };
        context.output.result(&done, gc_text)?;
        Ok(0)
    }
}

async fn call(context: &Context, action: StoreAction) -> Result<StoreResponse, ApiError> {
    let request = StoreRequest { action };
    if let Some(client) = connect::find(context).await? {
        context.log_for_client()?;
        return client.call(&request, &Bar::new(context)).await;
    }
    context.log_for_client()?;
    if matches!(action, StoreAction::Verify { repair: true }) {
        connect::require(context).await?;
    }
    if StateDir::find(&context.state)?.is_none() {
        let what = format!("there is no store in {}", super::shown(&context.state));
        return Err(ApiError::new(ErrorKind::NotFound, what).hint("choose another with --state"));
    }
    let state = StateDir::lock(&context.state)?;
    let bar: ProgressSink = Arc::new(Bar::new(context));
    let work = move || daemon::store_offline(&state, &request, &bar);
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|error| Err(ApiError::new(ErrorKind::Internal, error)))
}

fn unexpected() -> ApiError {
    ApiError::new(ErrorKind::Internal, "the daemon answered something else")
}

fn stats_text(stats: &StoreStatsResponse) -> String {
    let mut rows = Vec::new();
    let mut row = |name: &str, value: String| rows.push(vec![name.to_owned(), value]);
    if let Some(content) = stats.content {
        row("files", amount(content));
    }
    if let Some(here) = stats.here {
        row("here", amount(here));
    }
    let chunks = format!("{}, {}", count(stats.chunks), bytes(stats.chunk_bytes));
    row("chunks", chunks);
    row("nodes", count(stats.nodes));
    let packs = format!("{}, {}", count(stats.packs), bytes(stats.packed_bytes));
    row("packs", packs);
    let borrowed = count(stats.borrowed);
    row(
        "borrowed",
        format!("{borrowed} ranges, {}", bytes(stats.borrowed_bytes)),
    );
    if let Some(only_here) = stats.only_here {
        row("only here", amount(only_here));
    }
    if stats.quarantined > 0 {
        row("damaged", format!("{} records", count(stats.quarantined)));
    }
    row("memory", bytes(stats.memory_bytes));
    table(&rows)
}

fn verify_text(found: &VerifyResponse) -> String {
    let mut text = format!("{} records, {}", count(found.records), bytes(found.bytes));
    if found.damaged > 0 {
        text.push_str(&format!(
            "; {} damaged, {} of them repaired",
            count(found.damaged),
            count(found.repaired)
        ));
    } else {
        text.push_str(", all good");
    }
    text + "\n"
}

fn gc_text(done: &GcResponse) -> String {
    let would = if done.dry_run {
        "Would drop"
    } else {
        "Dropped"
    };
    format!(
        "{would} {} chunks and nodes, {}; {} on disk\n",
        count(done.dropped),
        bytes(done.dropped_bytes),
        bytes(done.freed_bytes)
    )
}
