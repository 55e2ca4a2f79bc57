//! The command line: one file per subcommand. It parses, asks a daemon through the API, and shows the answer; it decides
//! nothing about folders.

mod background;
mod config;
mod confirm;
mod conflicts;
mod connect;
mod create;
mod daemon;
mod diff;
mod displaced;
mod download;
mod evict;
mod foreground;
mod info;
mod join;
mod keys;
mod mount;
mod options;
mod output;
mod peers;
mod pin;
mod progress;
mod share;
mod source;
mod status;
mod torrents;
mod unmount;
mod unpin;
mod unshare;
pub(crate) mod xet;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::api::ApiError;
use options::{Context, GlobalOptions};
use output::Output;

/// The exit code of a command that Ctrl-C stopped before it was done, as shells have it (128 + SIGINT).
const INTERRUPTED: u8 = 130;

/// What a command ends with when nothing went wrong: its exit code, nearly always 0.
type CommandResult = Result<u8, ApiError>;

/// A peer-to-peer filesystem you mount: share a folder, mount it elsewhere, edit it in place.
#[derive(Debug, Parser)]
#[command(name = "ccbt", version, max_term_width = 100)]
struct Cli {
    #[command(flatten)]
    global: GlobalOptions,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Share(share::ShareCommand),
    Join(join::JoinCommand),
    Unshare(unshare::UnshareCommand),
    Confirm(confirm::ConfirmCommand),
    Conflicts(conflicts::ConflictsCommand),
    Displaced(displaced::DisplacedCommand),
    Mount(mount::MountCommand),
    Unmount(unmount::UnmountCommand),
    Status(status::StatusCommand),
    Peers(peers::PeersCommand),
    Pin(pin::PinCommand),
    Unpin(unpin::UnpinCommand),
    Evict(evict::EvictCommand),
    Keys(keys::KeysCommand),
    Download(download::DownloadCommand),
    Torrents(torrents::TorrentsCommand),
    Torrent(torrents::TorrentCommand),
    Create(create::CreateCommand),
    Info(info::InfoCommand),
    Magnet(info::MagnetCommand),
    #[command(subcommand)]
    Xet(xet::XetCommand),
    Daemon(daemon::DaemonCommand),
    #[command(subcommand)]
    Config(config::ConfigCommand),
}

/// The whole program: parses the command line, does it, and turns the outcome into an exit code.
pub fn main() -> ExitCode {
    // Exits by itself, with 2, when the command line cannot be parsed.
    let cli = Cli::parse();
    let output = Output {
        json: cli.global.json,
    };
    match run(cli, output) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            output.error(&error);
            ExitCode::from(error.kind.exit_code())
        }
    }
}

fn run(cli: Cli, output: Output) -> CommandResult {
    let global = cli.global;
    let command = match cli.command {
        Command::Config(command) => return command.run(&global),
        Command::Create(command) => return command.run(&global, output),
        Command::Info(command) => return command.run(output),
        Command::Magnet(command) => return command.run(output),
        Command::Xet(command) => match command.run_alone(&global) {
            Ok(done) => return done,
            Err(command) => Command::Xet(command),
        },
        command => command,
    };
    let network = match &command {
        Command::Share(command) => command.network.clone(),
        Command::Join(command) => command.network.clone(),
        Command::Mount(command) => command.network.clone(),
        Command::Daemon(command) => command.network.clone(),
        Command::Download(command) => command.network.clone(),
        _ => options::NetworkOptions::default(),
    };
    let context = Context::new(global, network)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| ApiError::io("cannot start threads", &error))?;
    let result = runtime.block_on(dispatch(command, &context));
    // A thread stuck in a system call must not keep the process.
    runtime.shutdown_background();
    result
}

async fn dispatch(command: Command, context: &Context) -> CommandResult {
    match command {
        Command::Share(command) => command.run(context).await,
        Command::Join(command) => command.run(context).await,
        Command::Unshare(command) => command.run(context).await,
        Command::Confirm(command) => command.run(context).await,
        Command::Conflicts(command) => command.run(context).await,
        Command::Displaced(command) => command.run(context).await,
        Command::Mount(command) => command.run(context).await,
        Command::Unmount(command) => command.run(context).await,
        Command::Status(command) => command.run(context).await,
        Command::Peers(command) => command.run(context).await,
        Command::Pin(command) => command.run(context).await,
        Command::Unpin(command) => command.run(context).await,
        Command::Evict(command) => command.run(context).await,
        Command::Keys(command) => command.run(context).await,
        Command::Download(command) => command.run(context).await,
        Command::Torrents(command) => command.run(context).await,
        Command::Torrent(command) => command.run(context).await,
        Command::Daemon(command) => command.run(context).await,
        Command::Xet(command) => command.run(context).await,
        // Done in `run`, without a runtime.
        Command::Config(_) | Command::Create(_) | Command::Info(_) | Command::Magnet(_) => Ok(0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }
}
