//! `ccbt torrents` and `ccbt torrent`

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};

use super::options::Context;
use super::{CommandResult, connect, output};
use crate::api::types::{
    ApiPath, PieceOrder, TorrentAction, TorrentEntry, TorrentRequest, TorrentResponse,
    TorrentSetting, TorrentSettings, TorrentState, TorrentTracker, TorrentWebSeed, TorrentsRequest,
};
use crate::api::{ApiError, escape};
use crate::proto::picker::PRIORITY_NORMAL;

/// List torrents
#[derive(Debug, Args)]
pub(super) struct TorrentsCommand {}

/// Look at a torrent, or do something with it
#[derive(Debug, Args)]
pub(super) struct TorrentCommand {
    /// Its info-hash or the beginning of it, or its name
    torrent: String,
    #[command(subcommand)]
    action: Option<Verb>,
}

#[derive(Debug, Clone, PartialEq, Eq, Subcommand)]
enum Verb {
    /// How it stands
    Show,
    /// Its files
    Files,
    /// Its peers
    Peers,
    /// Its trackers
    Trackers,
    /// Web servers that have its content, and why one is not asked
    WebSeeds,
    /// Stop until `resume`
    Pause,
    /// Go on
    Resume,
    /// Read and hash all content again
    Recheck,
    /// Move its files to another folder
    Move {
        /// Made if it is missing
        dir: PathBuf,
    },
    /// Change what is different for this torrent
    ///
    /// Keys are limit_down, limit_up (bytes per second, like 5MiB; 0 for no limit), peer_limit_down, peer_limit_up (of each connection),
    /// peers_max, slots, seed_ratio, seed_minutes, order (rarest, sequential, round-robin: which pieces are fetched first),
    /// super_seed (yes: show each peer a few pieces at a time, for the first who has everything), forced (active whatever the
    /// queue says) and preallocation (none, sparse, full; from the next start on).
    /// Without a value, the configuration decides again.
    Set {
        #[arg(required = true, value_name = "KEY=VALUE", value_parser = setting)]
        settings: Vec<TorrentSetting>,
    },
    /// Say how much files are wanted: 0 not at all, 1 to 7, 4 is usual
    Priority {
        /// `*` and `?` stand for anything; without them, a part of the path
        pattern: String,
        #[arg(value_parser = clap::value_parser!(u8).range(0..=7))]
        priority: u8,
    },
    /// Forget it; its files stay
    Remove,
}

fn setting(text: &str) -> Result<TorrentSetting, String> {
    let (key, value) = text.split_once('=').ok_or("KEY=VALUE is expected")?;
    Ok(TorrentSetting {
        key: key.trim().to_owned(),
        value: value.trim().to_owned(),
    })
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
        let verb = self.action.unwrap_or(Verb::Show);
        let action = match verb.clone() {
            Verb::Show => TorrentAction::Show,
            Verb::Files => TorrentAction::Files,
            Verb::Peers => TorrentAction::Peers,
            Verb::Trackers => TorrentAction::Trackers,
            Verb::WebSeeds => TorrentAction::WebSeeds,
            Verb::Pause => TorrentAction::Pause,
            Verb::Resume => TorrentAction::Resume,
            Verb::Recheck => TorrentAction::Recheck,
            Verb::Move { dir } => TorrentAction::Move { dir: target(&dir)? },
            Verb::Set { settings } => TorrentAction::Set(settings),
            Verb::Priority { pattern, priority } => TorrentAction::Priority { pattern, priority },
            Verb::Remove => TorrentAction::Remove,
        };
        let torrent = self.torrent;
        let response = connect::ask(context, &TorrentRequest { torrent, action }).await?;
        context.output.result(&response, |response| match verb {
            Verb::Files => files(response),
            Verb::Peers => peers(response),
            Verb::Trackers => trackers(response),
            Verb::WebSeeds => web_seeds(response),
            Verb::Remove => {
                format!("Removed {}\n", escape(response.torrent.name.as_bytes()))
            }
            _ => shown(response),
        })?;
        Ok(0)
    }
}

/// The folder as an absolute path.
fn target(dir: &Path) -> Result<ApiPath, ApiError> {
    let dir = std::path::absolute(dir)
        .map_err(|error| ApiError::io("cannot use the output folder", &error))?;
    Ok(ApiPath(dir.canonicalize().unwrap_or(dir)))
}

fn state(state: TorrentState) -> &'static str {
    match state {
        TorrentState::Metadata => "metadata",
        TorrentState::Checking => "checking",
        TorrentState::Downloading => "downloading",
        TorrentState::Seeding => "seeding",
        TorrentState::Queued => "queued",
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
        torrent.left_s.map_or_else(String::new, |seconds| {
            format!("{} left", output::age(seconds))
        }),
        escape(torrent.name.as_bytes()),
        format!("({})", escape(torrent.note.as_bytes())),
    ]
}

fn shown(response: &TorrentResponse) -> String {
    let torrent = &response.torrent;
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
        ("from here", output::bytes(torrent.bytes_held)),
        (
            "peers",
            format!("{}, {} of them seeds", torrent.peers, torrent.seeds),
        ),
        ("web seeds", torrent.web_seeds.to_string()),
    ];
    let own = settings(&response.settings);
    let own = (!own.is_empty()).then_some(("settings", own));
    let lines = lines.into_iter().chain(own);
    lines
        .map(|(key, value)| format!("{key:9}  {value}\n"))
        .collect()
}

/// What is different for the torrent, as it is set.
fn settings(settings: &TorrentSettings) -> String {
    let rate = |n: u64| if n == 0 { "0".to_owned() } else { rate(n) };
    let preallocation = settings
        .preallocation
        .map(|way| format!("{way:?}").to_lowercase());
    let all = [
        ("limit_down", settings.limit_down.map(rate)),
        ("limit_up", settings.limit_up.map(rate)),
        ("peer_limit_down", settings.peer_limit_down.map(rate)),
        ("peer_limit_up", settings.peer_limit_up.map(rate)),
        ("peers_max", settings.peers_max.map(|n| n.to_string())),
        ("slots", settings.slots.map(|n| n.to_string())),
        (
            "seed_ratio",
            settings
                .seed_percent
                .map(|n| format!("{}.{:02}", n / 100, n % 100)),
        ),
        ("seed_minutes", settings.seed_minutes.map(|n| n.to_string())),
        ("order", settings.order.map(order)),
        ("super_seed", settings.super_seed.map(|yes| yes.to_string())),
        ("preallocation", preallocation),
        ("forced", settings.forced.map(|yes| yes.to_string())),
    ];
    let set = all
        .into_iter()
        .filter_map(|(key, value)| Some(format!("{key}={}", value?)));
    set.collect::<Vec<_>>().join(", ")
}

fn order(order: PieceOrder) -> String {
    match order {
        PieceOrder::Rarest => "rarest",
        PieceOrder::Sequential => "sequential",
        PieceOrder::RoundRobin => "round-robin",
    }
    .to_owned()
}

fn files(response: &TorrentResponse) -> String {
    let row = |file: &crate::api::types::TorrentFile| {
        let wanted = match file.priority {
            0 => "(not wanted)".to_owned(),
            PRIORITY_NORMAL => String::new(),
            other => format!("(priority {other})"),
        };
        vec![
            format!("{:>10}", output::bytes(file.bytes)),
            file.path.to_string(),
            wanted,
        ]
    };
    output::table(&response.files.iter().map(row).collect::<Vec<_>>())
}

fn trackers(response: &TorrentResponse) -> String {
    let all = &response.trackers;
    let first = all.first().map(|tracker| &tracker.hash);
    let several = all.iter().any(|tracker| Some(&tracker.hash) != first);
    let row = |tracker: &TorrentTracker| {
        let hash = several.then(|| tracker.hash.chars().take(8).collect());
        let url = escape(tracker.url.as_bytes());
        let mut row: Vec<String> = hash.into_iter().collect();
        row.extend([url, asked(tracker), named(tracker), heard(tracker)]);
        row
    };
    output::table(&all.iter().map(row).collect::<Vec<_>>())
}

/// When it was asked, and when it is again.
fn asked(tracker: &TorrentTracker) -> String {
    let ago = tracker.asked_s.map_or_else(
        || "not asked".to_owned(),
        |seconds| format!("asked {} ago", output::age(seconds)),
    );
    match tracker.next_s {
        Some(seconds) => format!("{ago}, next in {}", output::age(seconds)),
        None => ago,
    }
}

/// Whom it knows.
fn named(tracker: &TorrentTracker) -> String {
    let count = |n: Option<u32>| n.map_or_else(|| "?".to_owned(), |n| output::count(n.into()));
    match (tracker.peers, tracker.seeds, tracker.leechers) {
        (None, None, None) => "-".to_owned(),
        (peers, seeds, leechers) => format!(
            "{} peers, {} seeds, {} leechers",
            count(peers),
            count(seeds),
            count(leechers)
        ),
    }
}

/// What it says, or why it says nothing.
fn heard(tracker: &TorrentTracker) -> String {
    match (&tracker.message, &tracker.error) {
        (Some(message), _) => format!("tracker said: {}", escape(message.as_bytes())),
        (None, Some(error)) => escape(error.as_bytes()),
        (None, None) => String::new(),
    }
}

fn web_seeds(response: &TorrentResponse) -> String {
    let row = |seed: &TorrentWebSeed| {
        let state = match (seed.active, seed.off) {
            (true, _) => "in use",
            (false, true) => "off",
            (false, false) => "waiting",
        };
        let why = seed.trouble.as_deref().unwrap_or_default();
        vec![
            escape(seed.url.as_bytes()),
            state.to_owned(),
            format!("down {}", rate(seed.rate_down)),
            output::bytes(seed.bytes_down),
            escape(why.as_bytes()),
        ]
    };
    output::table(&response.web_seeds.iter().map(row).collect::<Vec<_>>())
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
