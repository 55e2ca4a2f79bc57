//! `ccbt torrents` and `ccbt torrent`

use clap::{Args, ValueEnum};

use super::options::Context;
use super::{CommandResult, connect, output};
use crate::api::escape;
use crate::api::types::{
    TorrentAction, TorrentEntry, TorrentRequest, TorrentResponse, TorrentState, TorrentsRequest,
};

/// List torrents
#[derive(Debug, Args)]
pub(super) struct TorrentsCommand {}

/// Look at a torrent, or do something with it
#[derive(Debug, Args)]
pub(super) struct TorrentCommand {
    /// Its info-hash or the beginning of it, or its name
    torrent: String,
    #[arg(value_enum, default_value_t = Verb::Show)]
    action: Verb,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Verb {
    /// How it stands
    Show,
    /// Its files
    Files,
    /// Its peers
    Peers,
    /// Stop until `resume`
    Pause,
    /// Go on
    Resume,
    /// Read and hash all content again
    Recheck,
    /// Forget it; its files stay
    Remove,
}

impl TorrentsCommand {
    pub(super) async fn run(self, context: &Context) -> CommandResult {
        let response = connect::ask(context, &TorrentsRequest {}).await?;
        context.output.result(&response, |response| {
            output::table(&response.torrents.iter().map(row).collect::<Vec<_>>())
        })?;
        Ok(0)
    }
}

impl TorrentCommand {
    pub(super) async fn run(self, context: &Context) -> CommandResult {
        let action = match self.action {
            Verb::Show => TorrentAction::Show,
            Verb::Files => TorrentAction::Files,
            Verb::Peers => TorrentAction::Peers,
            Verb::Pause => TorrentAction::Pause,
            Verb::Resume => TorrentAction::Resume,
            Verb::Recheck => TorrentAction::Recheck,
            Verb::Remove => TorrentAction::Remove,
        };
        let torrent = self.torrent;
        let response = connect::ask(context, &TorrentRequest { torrent, action }).await?;
        context.output.result(&response, |response| match action {
            TorrentAction::Files => files(response),
            TorrentAction::Peers => peers(response),
            TorrentAction::Remove => {
                format!("Removed {}\n", escape(response.torrent.name.as_bytes()))
            }
            _ => shown(&response.torrent),
        })?;
        Ok(0)
    }
}

fn state(state: TorrentState) -> &'static str {
    match state {
        TorrentState::Metadata => "metadata",
        TorrentState::Checking => "checking",
        TorrentState::Downloading => "downloading",
        TorrentState::Seeding => "seeding",
        TorrentState::Paused => "paused",
        TorrentState::Stopped => "stopped",
    }
}

/// How much of the content is here, in percent.
fn percent(torrent: &TorrentEntry) -> String {
    match torrent.content {
        Some(content) if content.bytes > 0 => {
            format!(
                "{}%",
                (u128::from(torrent.bytes_done) * 100) / u128::from(content.bytes)
            )
        }
        Some(_) => "100%".to_owned(),
        None => "-".to_owned(),
    }
}

fn rate(bytes: u64) -> String {
    format!("{}/s", output::bytes(bytes))
}

fn row(torrent: &TorrentEntry) -> Vec<String> {
    vec![
        torrent.hash.chars().take(8).collect(),
        state(torrent.state).to_owned(),
        percent(torrent),
        format!("down {}", rate(torrent.rate_down)),
        format!("up {}", rate(torrent.rate_up)),
        escape(torrent.name.as_bytes()),
        format!("({})", escape(torrent.note.as_bytes())),
    ]
}

fn shown(torrent: &TorrentEntry) -> String {
    let content = torrent
        .content
        .map_or_else(|| "not known yet".to_owned(), output::amount);
    let lines = [
        ("name", escape(torrent.name.as_bytes())),
        ("info hash", torrent.hash.clone()),
        (
            "state",
            format!(
                "{}: {}",
                state(torrent.state),
                escape(torrent.note.as_bytes())
            ),
        ),
        ("output", torrent.dir.to_string()),
        ("content", content),
        (
            "done",
            format!(
                "{} ({})",
                output::bytes(torrent.bytes_done),
                percent(torrent)
            ),
        ),
        (
            "received",
            format!(
                "{}, {}",
                output::bytes(torrent.bytes_down),
                rate(torrent.rate_down)
            ),
        ),
        (
            "sent",
            format!(
                "{}, {}",
                output::bytes(torrent.bytes_up),
                rate(torrent.rate_up)
            ),
        ),
        ("wasted", output::bytes(torrent.bytes_wasted)),
        (
            "peers",
            format!("{}, {} of them seeds", torrent.peers, torrent.seeds),
        ),
    ];
    let lines = lines.map(|(key, value)| format!("{key:9}  {value}\n"));
    lines.concat()
}

fn files(response: &TorrentResponse) -> String {
    let row = |file: &crate::api::types::TorrentFile| {
        let wanted = if file.wanted { "" } else { "(not wanted)" };
        vec![
            format!("{:>10}", output::bytes(file.bytes)),
            file.path.to_string(),
            wanted.to_owned(),
        ]
    };
    output::table(&response.files.iter().map(row).collect::<Vec<_>>())
}

fn peers(response: &TorrentResponse) -> String {
    let row = |peer: &crate::api::types::TorrentPeerEntry| {
        vec![
            peer.addr.to_string(),
            if peer.incoming { "in" } else { "out" }.to_owned(),
            format!("down {}", rate(peer.rate_down)),
            format!("up {}", rate(peer.rate_up)),
            format!("{} pieces", output::count(peer.pieces.into())),
            escape(peer.client.as_deref().unwrap_or_default().as_bytes()),
        ]
    };
    output::table(&response.peers.iter().map(row).collect::<Vec<_>>())
}
