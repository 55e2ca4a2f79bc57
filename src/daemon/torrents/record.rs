//! What is remembered of a torrent over restarts: a record and its metadata, in a folder of its own.

use std::net::SocketAddr;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::super::place;
use crate::api::types::*;
use crate::api::{ApiError, ErrorKind};
use crate::engine::torrent::select::Selection;
use crate::state_file;

const RECORD_FILE: &str = "torrent.json";
pub(super) const METAINFO_FILE: &str = "metainfo.torrent";
/// Raised when the meaning of a field changes; a newer file is refused.
pub(super) const VERSION: u32 = 1;

/// What is remembered of a torrent over restarts.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct TorrentRecord {
    pub(super) version: u32,
    /// As given; the metadata lies in a file beside this one.
    pub(super) magnet: Option<String>,
    pub(super) dir: ApiPath,
    pub(super) selection: Selection,
    pub(super) sequential: bool,
    /// Only what is read is fetched: it was made by a mount.
    #[serde(default)]
    pub(super) lazy: bool,
    pub(super) paused: bool,
    pub(super) seed_percent: Option<u64>,
    pub(super) peers: Vec<SocketAddr>,
}

pub(super) fn load(state: &Path) -> Result<TorrentRecord, ApiError> {
    let path = state.join(RECORD_FILE);
    let shown = place::shown(&path);
    let bytes = std::fs::read(&path)
        .map_err(|error| ApiError::io(format_args!("cannot read {shown}"), &error))?;
    let record: TorrentRecord = serde_json::from_slice(&bytes).map_err(|error| {
        ApiError::new(ErrorKind::Io, format_args!("{shown} is damaged: {error}"))
    })?;
    match record.version {
        VERSION => Ok(record),
        version => Err(ApiError::new(
            ErrorKind::Refused,
            format_args!("{shown} was written by a newer ccbt (version {version})"),
        )),
    }
}

pub(super) fn save(state: &Path, record: &TorrentRecord) -> Result<(), ApiError> {
    let path = state.join(RECORD_FILE);
    let bytes = serde_json::to_vec_pretty(record)
        .map_err(|error| ApiError::new(ErrorKind::Internal, error))?;
    write(&path, &bytes)
}

pub(super) fn save_metainfo(state: &Path, bytes: &[u8]) -> Result<(), ApiError> {
    write(&state.join(METAINFO_FILE), bytes)
}

fn write(path: &Path, bytes: &[u8]) -> Result<(), ApiError> {
    state_file::replace(path, bytes)
        .map_err(|error| ApiError::io(format_args!("cannot write {}", place::shown(path)), &error))
}
