//! `ccbt info` and `ccbt magnet`

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use clap::Args;
use serde::Serialize;

use super::CommandResult;
use super::output::{self, Output};
use crate::api::types::Amount;
use crate::api::{ApiError, ErrorKind, escape};
use crate::proto::magnet::Magnet;
use crate::proto::metainfo::{InfoHashes, TORRENT_BYTES_MAX, Torrent};

/// Show what a torrent file or magnet link says
#[derive(Debug, Args)]
pub(super) struct InfoCommand {
    /// A .torrent file or a magnet link
    torrent: String,
}

/// Print the magnet link of a torrent file
#[derive(Debug, Args)]
pub(super) struct MagnetCommand {
    /// A .torrent file
    torrent: PathBuf,
}

/// What a torrent says, but for its files.
#[derive(Debug, Serialize)]
pub(super) struct TorrentInfo {
    name: String,
    info_hash: Option<String>,
    info_hash_v2: Option<String>,
    pub(super) content: Amount,
    pub(super) piece_bytes: u32,
    pub(super) pieces: u64,
    private: bool,
    trackers: Vec<Vec<String>>,
    web_seeds: Vec<String>,
    /// Chunks in its chunk lists; 0 without.
    chunks: u64,
    comment: Option<String>,
    created_by: Option<String>,
    created: Option<i64>,
}

impl TorrentInfo {
    pub(super) fn of(torrent: &Torrent) -> Self {
        let info = &torrent.info;
        Self {
            name: escape(info.name.as_bytes()),
            info_hash: info.hashes.v1.map(|hash| hash.to_string()),
            info_hash_v2: info.hashes.v2.map(|hash| hash.to_string()),
            content: Amount {
                files: info.files.len() as u64,
                bytes: info.content_bytes(),
            },
            piece_bytes: info.piece_bytes,
            pieces: info.piece_count(),
            private: info.private,
            trackers: torrent.trackers.clone(),
            web_seeds: torrent.web_seeds.clone(),
            chunks: torrent.chunks.len() as u64,
            comment: torrent.comment.clone(),
            created_by: torrent.created_by.clone(),
            created: torrent.created,
        }
    }
}

#[derive(Serialize)]
struct ListedFile {
    path: String,
    length: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    symlink: Option<String>,
}

#[derive(Serialize)]
struct WholeTorrent {
    #[serde(flatten)]
    info: TorrentInfo,
    files: Vec<ListedFile>,
}

#[derive(Serialize)]
struct ShownMagnet {
    name: Option<String>,
    info_hash: Option<String>,
    info_hash_v2: Option<String>,
    bytes: Option<u64>,
    trackers: Vec<String>,
    web_seeds: Vec<String>,
    peers: Vec<String>,
}

impl InfoCommand {
    pub(super) fn run(self, out: Output) -> CommandResult {
        if self
            .torrent
            .get(..7)
            .is_some_and(|s| s.eq_ignore_ascii_case("magnet:"))
        {
            let magnet = Magnet::parse(&self.torrent)
                .map_err(|error| ApiError::new(ErrorKind::Usage, error))?;
            out.result(&shown_magnet(&magnet), magnet_text)?;
            return Ok(0);
        }
        let torrent = read(Path::new(&self.torrent))?;
        let files = torrent.info.files.iter().map(|file| ListedFile {
            path: escape(file.path.to_path().as_os_str().as_encoded_bytes()),
            length: file.length,
            symlink: file
                .symlink
                .as_ref()
                .map(|path| escape(path.to_path().as_os_str().as_encoded_bytes())),
        });
        let whole = WholeTorrent {
            info: TorrentInfo::of(&torrent),
            files: files.collect(),
        };
        out.result(&whole, whole_text)?;
        Ok(0)
    }
}

impl MagnetCommand {
    pub(super) fn run(self, out: Output) -> CommandResult {
        let torrent = read(&self.torrent)?;
        let magnet = Magnet {
            hashes: torrent.info.hashes,
            name: Some(String::from_utf8_lossy(torrent.info.name.as_bytes()).into_owned()),
            length: Some(torrent.info.content_bytes()),
            trackers: torrent.trackers.into_iter().flatten().collect(),
            web_seeds: torrent.web_seeds,
            peers: Vec::new(),
            select: Vec::new(),
        };
        #[derive(Serialize)]
        struct Link {
            magnet: String,
        }
        out.result(
            &Link {
                magnet: magnet.to_string(),
            },
            |link| format!("{}\n", link.magnet),
        )?;
        Ok(0)
    }
}

/// Reads a torrent file; the size is bounded before anything is read.
fn read(path: &Path) -> Result<Torrent, ApiError> {
    let shown = escape(path.as_os_str().as_encoded_bytes());
    let failed = |error| ApiError::io(format_args!("cannot read {shown}"), &error);
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(failed)?;
    file.take(TORRENT_BYTES_MAX + 1)
        .read_to_end(&mut bytes)
        .map_err(failed)?;
    if bytes.len() as u64 > TORRENT_BYTES_MAX {
        let largest = output::bytes(TORRENT_BYTES_MAX);
        let message = format!("{shown} is larger than {largest}, so it is no torrent file");
        return Err(ApiError::new(ErrorKind::Usage, message));
    }
    Torrent::parse(&bytes)
        .map_err(|error| ApiError::new(ErrorKind::Usage, format_args!("{shown}: {error}")))
}

fn shown_magnet(magnet: &Magnet) -> ShownMagnet {
    let InfoHashes { v1, v2 } = magnet.hashes;
    ShownMagnet {
        name: magnet.name.as_ref().map(|name| escape(name.as_bytes())),
        info_hash: v1.map(|hash| hash.to_string()),
        info_hash_v2: v2.map(|hash| hash.to_string()),
        bytes: magnet.length,
        trackers: magnet.trackers.clone(),
        web_seeds: magnet.web_seeds.clone(),
        peers: magnet
            .peers
            .iter()
            .map(|(host, port)| format!("{host}:{port}"))
            .collect(),
    }
}

/// `info hash  …`, one line for each version.
pub(super) fn hash_lines(info: &TorrentInfo) -> String {
    let v1 = info
        .info_hash
        .iter()
        .map(|hash| format!("info hash     {hash}\n"));
    let v2 = info
        .info_hash_v2
        .iter()
        .map(|hash| format!("info hash v2  {hash}\n"));
    v1.chain(v2).collect()
}

fn whole_text(whole: &WholeTorrent) -> String {
    let info = &whole.info;
    let mut text = format!("name          {}\n{}", info.name, hash_lines(info));
    let mut line = |key: &str, value: &str| {
        text.push_str(&format!("{key:12}  {}\n", escape(value.as_bytes())));
    };
    line("content", &output::amount(info.content));
    let (pieces, size) = (
        output::count(info.pieces),
        output::bytes(info.piece_bytes.into()),
    );
    line("pieces", &format!("{pieces} of {size}"));
    line("private", if info.private { "yes" } else { "no" });
    info.trackers
        .iter()
        .flatten()
        .for_each(|url| line("tracker", url));
    info.web_seeds.iter().for_each(|url| line("web seed", url));
    if info.chunks > 0 {
        line("chunk lists", &output::count(info.chunks));
    }
    info.comment
        .iter()
        .for_each(|comment| line("comment", comment));
    info.created_by.iter().for_each(|by| line("created by", by));
    let rows: Vec<_> = whole
        .files
        .iter()
        .map(|file| {
            let name = match &file.symlink {
                Some(target) => format!("{} -> {target}", file.path),
                None => file.path.clone(),
            };
            vec![format!("{:>10}", output::bytes(file.length)), name]
        })
        .collect();
    text + "\n" + &output::table(&rows)
}

fn magnet_text(magnet: &ShownMagnet) -> String {
    let rows = [
        ("name", magnet.name.clone()),
        ("info hash", magnet.info_hash.clone()),
        ("info hash v2", magnet.info_hash_v2.clone()),
        ("size", magnet.bytes.map(output::bytes)),
    ];
    let known = rows
        .into_iter()
        .filter_map(|(key, value)| Some((key, value?)));
    let many = |key: &'static str, values: &[String]| {
        values
            .iter()
            .map(|value| (key, escape(value.as_bytes())))
            .collect::<Vec<_>>()
    };
    let rows = known
        .chain(many("tracker", &magnet.trackers))
        .chain(many("web seed", &magnet.web_seeds))
        .chain(many("peer", &magnet.peers));
    rows.map(|(key, value)| format!("{key:12}  {value}\n"))
        .collect()
}
