//! `ccbt download`

use std::path::PathBuf;

use clap::Args;

use super::connect::Session;
use super::options::{Context, NetworkOptions};
use super::{CommandResult, INTERRUPTED, output, source};
use crate::api::types::{
    ApiPath, DownloadRequest, DownloadResponse, TorrentSettings, TorrentSource, TorrentUntil,
};
use crate::api::{ApiError, ErrorKind, WorkItem, WorkKind, escape};
use crate::config;

/// Download a torrent file or magnet link
///
/// The command ends when the content is there, unless it is to seed. Interrupted, it goes on where it was when it is given
/// again. A daemon that runs goes on seeding.
#[derive(Debug, Args)]
pub(super) struct DownloadCommand {
    /// A .torrent file or a magnet link
    torrent: String,
    /// Where the files go [default: the current directory]
    #[arg(short, long, value_name = "DIR")]
    output: Option<PathBuf>,
    /// Only files whose paths match (`*` and `?` stand for anything); may be repeated
    #[arg(long, value_name = "PATTERN")]
    select: Vec<String>,
    /// Fetch pieces in order
    #[arg(long)]
    sequential: bool,
    /// Receive at most so many bytes per second, like 5MiB
    #[arg(long, value_name = "RATE", value_parser = parse_rate)]
    limit_down: Option<u64>,
    /// Send at most so many bytes per second
    #[arg(long, value_name = "RATE", value_parser = parse_rate)]
    limit_up: Option<u64>,
    /// Seed until Ctrl-C
    #[arg(long)]
    seed: bool,
    /// Seed until this many times the content was sent
    #[arg(long, value_name = "RATIO", value_parser = parse_ratio, conflicts_with = "seed")]
    seed_ratio: Option<u64>,
    /// Leave a daemon running in the background that downloads
    #[arg(short = 'd', long)]
    detach: bool,
    #[command(flatten)]
    pub(super) network: NetworkOptions,
}

/// A ratio as a percentage.
fn parse_ratio(text: &str) -> Result<u64, String> {
    let ratio: f64 = text.parse().map_err(|_| "not a number".to_owned())?;
    match (0.0..=1e6).contains(&ratio) {
        true => Ok((ratio * 100.0) as u64),
        false => Err("0 to 1000000".to_owned()),
    }
}

/// `5M` is what other programs take, and means MiB there.
fn parse_rate(text: &str) -> Result<u64, String> {
    let number = text.trim_end_matches(['K', 'k', 'M', 'm', 'G', 'g']);
    let text = match number.len() < text.len() && number.ends_with(|c: char| c.is_ascii_digit()) {
        true => format!("{text}iB"),
        false => text.to_owned(),
    };
    config::parse_bytes(&text).ok_or_else(|| "a number of bytes, like 5MiB".to_owned())
}

impl DownloadCommand {
    pub(super) async fn run(self, context: &Context) -> CommandResult {
        let dir = self.output.unwrap_or_else(|| PathBuf::from("."));
        let dir = std::path::absolute(&dir)
            .map_err(|error| ApiError::io("cannot use the output folder", &error))?;
        let dir = ApiPath(dir.canonicalize().unwrap_or(dir));
        let mut session = Session::open(context, self.detach).await?;
        let until = match (self.detach, self.seed_ratio) {
            (true, _) => TorrentUntil::Started,
            (false, Some(1..)) => TorrentUntil::Seeded,
            (false, _) => TorrentUntil::Finished,
        };
        let request = DownloadRequest {
            source: source_of(&self.torrent)?,
            dir: dir.clone(),
            select: self.select,
            sequential: self.sequential,
            seed_percent: self.seed_ratio,
            settings: TorrentSettings {
                limit_down: self.limit_down,
                limit_up: self.limit_up,
                ..TorrentSettings::default()
            },
            peers: context.network.peers.clone(),
            until,
        };
        let Some(response) = session.call(context, &request).await? else {
            return Ok(INTERRUPTED);
        };
        context.output.result(&response, line)?;
        let own = WorkItem {
            kind: WorkKind::Torrent,
            dir,
        };
        if self.seed {
            session.stay(context, &own).await?;
        } else {
            session.finish(context, &own).await?;
        }
        Ok(0)
    }
}

fn source_of(text: &str) -> Result<TorrentSource, ApiError> {
    let is_magnet = text
        .get(..7)
        .is_some_and(|scheme| scheme.eq_ignore_ascii_case("magnet:"));
    if is_magnet {
        return Ok(TorrentSource::Magnet(text.to_owned()));
    }
    let path = source::target(text.as_ref())?;
    match path.0.is_file() {
        true => Ok(TorrentSource::File(path)),
        false => Err(ApiError::new(
            ErrorKind::NotFound,
            format_args!("there is no torrent file {path}"),
        )),
    }
}

fn line(response: &DownloadResponse) -> String {
    let torrent = &response.torrent;
    let name = escape(torrent.name.as_bytes());
    let amount = torrent.content.map_or_else(String::new, |content| {
        format!(": {}", output::amount(content))
    });
    let done = torrent
        .content
        .is_some_and(|c| c.bytes == torrent.bytes_done);
    let verb = if done { "Downloaded" } else { "Downloading" };
    format!("{verb} {name} to {}{amount}\n", torrent.dir)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_written_as_people_do() {
        for (text, rate) in [
            ("5M", 5 << 20),
            ("5MiB", 5 << 20),
            ("100k", 100 << 10),
            ("1 MB", 1_000_000),
            ("7", 7),
        ] {
            assert_eq!(parse_rate(text), Ok(rate), "{text}");
        }
        for bad in ["M", "fast", "-1", "5MM"] {
            parse_rate(bad).unwrap_err();
        }
    }

    #[test]
    fn ratios_are_percentages() {
        assert_eq!(parse_ratio("1.5"), Ok(150));
        assert_eq!(parse_ratio("0"), Ok(0));
        for bad in ["-1", "x", "NaN", "1e9"] {
            parse_ratio(bad).unwrap_err();
        }
    }
}
