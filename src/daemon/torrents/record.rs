//! What is remembered of a torrent over restarts: a record and its metadata, in a folder of its own.

use std::net::SocketAddr;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::super::place;
use crate::api::types::*;
use crate::api::{ApiError, ErrorKind};
use crate::engine::torrent::select::Selection;
use crate::{clock, state_file};

const RECORD_FILE: &str = "torrent.json";
pub(super) const METAINFO_FILE: &str = "metainfo.torrent";
/// Raised when the meaning of a field changes; a newer file is refused.
pub(super) const VERSION: u32 = 3;
/// The oldest that is read: it has `sequential` and `seed_percent` in the place of settings. Version 2 has `sequential` among them.
const VERSION_MIN: u32 = 1;

/// What is remembered of a torrent over restarts.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::daemon) struct TorrentRecord {
    pub(super) version: u32,
    /// As given; the metadata lies in a file beside this one.
    pub(super) magnet: Option<String>,
    pub(super) dir: ApiPath,
    pub(super) selection: Selection,
    #[serde(default)]
    pub(super) settings: TorrentSettings,
    /// Of version 1.
    #[serde(default, skip_serializing)]
    sequential: bool,
    /// Only what is read is fetched: it was made by a mount.
    #[serde(default)]
    pub(super) lazy: bool,
    pub(super) paused: bool,
    /// Of version 1.
    #[serde(default, skip_serializing)]
    seed_percent: Option<u64>,
    /// Where its files are being moved to.
    #[serde(default)]
    pub(super) moving: Option<ApiPath>,
    /// Its place in the queue: milliseconds since 1970 at which it came, unless the user says otherwise. 0: before there was a queue.
    #[serde(default)]
    pub(super) order: u64,
    pub(super) peers: Vec<SocketAddr>,
}

impl TorrentRecord {
    /// Of a torrent that is new here.
    pub(super) fn new(dir: ApiPath, lazy: bool, magnet: Option<String>) -> Self {
        Self {
            version: VERSION,
            magnet,
            dir,
            selection: Selection::default(),
            settings: TorrentSettings::default(),
            sequential: false,
            lazy,
            paused: false,
            seed_percent: None,
            moving: None,
            order: clock::unix_millis(),
            peers: Vec::new(),
        }
    }

    /// What is in the fields of version 1 goes to where it is now.
    fn upgraded(mut self) -> Self {
        self.version = VERSION;
        if std::mem::take(&mut self.sequential) {
            self.settings.order.get_or_insert(PieceOrder::Sequential);
        }
        if let Some(percent) = self.seed_percent.take() {
            self.settings.seed_percent.get_or_insert(percent);
        }
        self
    }
}

pub(super) fn load(state: &Path) -> Result<TorrentRecord, ApiError> {
    let path = state.join(RECORD_FILE);
    let shown = place::shown(&path);
    let bytes = std::fs::read(&path)
        .map_err(|error| ApiError::io(format_args!("cannot read {shown}"), &error))?;
    parse_record(&bytes, &shown)
}

pub(in crate::daemon) fn parse_record(
    bytes: &[u8],
    shown: &str,
) -> Result<TorrentRecord, ApiError> {
    let damaged = |error: serde_json::Error| {
        ApiError::new(ErrorKind::Io, format_args!("{shown} is damaged: {error}"))
    };
    let mut json: serde_json::Value = serde_json::from_slice(bytes).map_err(damaged)?;
    order_of_version_2(&mut json);
    let record: TorrentRecord = serde_json::from_value(json).map_err(damaged)?;
    match record.version {
        VERSION_MIN..=VERSION => Ok(record.upgraded()),
        version => Err(ApiError::new(
            ErrorKind::Refused,
            format_args!("{shown} was written by a newer ccbt (version {version})"),
        )),
    }
}

/// `sequential` among the settings of version 2 is an order now.
fn order_of_version_2(json: &mut serde_json::Value) {
    let settings = json.get_mut("settings").and_then(|s| s.as_object_mut());
    let Some(settings) = settings else { return };
    if settings.remove("sequential") == Some(true.into()) {
        settings.insert("order".to_owned(), "sequential".into());
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_of_the_first_version_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let old = r#"{"version": 1, "magnet": null, "dir": "/out", "selection": {"patterns": ["*.mkv"], "numbers": [{"start": 1, "end": 3}]},
            "sequential": true, "lazy": false, "paused": true, "seed_percent": 150, "peers": ["127.0.0.1:5"]}"#;
        std::fs::write(dir.path().join(RECORD_FILE), old).unwrap();
        let record = load(dir.path()).unwrap();
        assert_eq!(record.selection.patterns, ["*.mkv"]);
        assert_eq!(record.selection.numbers, [1..=3]);
        let settings = TorrentSettings {
            order: Some(PieceOrder::Sequential),
            seed_percent: Some(150),
            ..TorrentSettings::default()
        };
        assert_eq!((&record.settings, record.paused), (&settings, true));
        save(dir.path(), &record).unwrap();
        let again = load(dir.path()).unwrap();
        assert_eq!((again.settings, again.version), (settings, VERSION));
        let text = std::fs::read_to_string(dir.path().join(RECORD_FILE)).unwrap();
        std::fs::write(
            dir.path().join(RECORD_FILE),
            text.replace("\"version\": 3", "\"version\": 9"),
        )
        .unwrap();
        assert_eq!(load(dir.path()).unwrap_err().kind, ErrorKind::Refused);
    }

    #[test]
    fn a_record_of_the_second_version_keeps_its_order() {
        for (sequential, order) in [
            ("true", Some(PieceOrder::Sequential)),
            ("false", None),
            ("null", None),
        ] {
            let old = format!(
                r#"{{"version": 2, "magnet": null, "dir": "/out", "selection": {{"patterns": [], "numbers": []}},
                "settings": {{"slots": 3, "sequential": {sequential}}}, "paused": false, "peers": []}}"#
            );
            let record = parse_record(old.as_bytes(), "it").unwrap();
            assert_eq!(record.settings.order, order);
            assert_eq!(record.settings.slots, Some(3));
        }
        assert!(parse_record(b"{\"settings\": 7}", "it").is_err());
    }
}
