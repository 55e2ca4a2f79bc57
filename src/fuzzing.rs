//! Doors for the fuzz targets to parsers that nobody else needs from outside. Each says whether it took the input, and
//! panics where what was read is not written and read again as the same.

use bytes::Bytes;

use crate::cli::xet::set::Manifest;
use crate::config::{Config, parse_holder};
use crate::daemon::fuzzing as daemon;
use crate::engine::discovery::dht;
use crate::engine::torrent::resume::{self, Left};
use crate::folder::home::intent::{Intent, IntentId};
use crate::folder::home::marker::Marker;

/// `files.json` of an exported set. Every path stays inside.
pub fn set_manifest(bytes: &[u8]) -> bool {
    let Ok((manifest, _)) = Manifest::parse(bytes) else {
        return false;
    };
    let json = serde_json::to_vec(&manifest).unwrap_or_default();
    let again = Manifest::parse(&json).map(|(again, _)| serde_json::to_vec(&again).ok());
    assert_eq!(again.ok().flatten(), Some(json));
    true
}

/// What a home notes before it renames something, and the key it notes it under.
pub fn intent(key: &[u8], bytes: &Bytes) -> bool {
    if let Some(id) = IntentId::from_key(key) {
        assert_eq!(id.key(), key);
    }
    let Ok(intent) = Intent::decode(bytes) else {
        return false;
    };
    assert_eq!(Intent::decode(&intent.encode()).ok(), Some(intent));
    true
}

/// The log of the pieces of a torrent, after a start of the machine that had this id.
pub fn resume_log(bytes: &[u8], pieces: u32, boot: &[u8]) -> bool {
    match resume::parse(bytes, pieces, boot) {
        None | Some(Left::Nothing) => false,
        Some(Left::Sure(have) | Left::Unsure(have)) => {
            assert_eq!(have.len(), pieces);
            assert!(have.iter().all(|piece| piece < pieces));
            true
        }
    }
}

/// A configuration file.
pub fn config_toml(text: &str) -> bool {
    let Ok(config) = Config::from_toml(text) else {
        return false;
    };
    // What is shown can be written into a file.
    let shown = |setting: &crate::config::Setting| format!("{} = {}\n", setting.key, setting.value);
    let shown: String = config.settings().map(shown).collect();
    let again = Config::from_toml(&shown).map_err(|error| error.to_string());
    let values = |config: &Config| {
        let values = config.settings().map(|setting| setting.value.clone());
        values.collect::<Vec<_>>()
    };
    assert_eq!(again.map(|again| values(&again)), Ok(values(&config)));
    true
}

/// The small files of a state directory: a folder's record, a torrent's, the marker of a home, nodes of the DHT, the lock,
/// how far a check of the store is, the key under which a member is remembered.
pub fn state_text(which: u8, bytes: &[u8]) -> bool {
    match which % 7 {
        0 => daemon::folder_record(bytes),
        1 => daemon::torrent_record(bytes),
        2 => {
            let marker = Marker::parse(bytes);
            !marker.folder.is_empty() && !marker.device.is_empty()
        }
        3 => !dht::parse_nodes(bytes).is_empty(),
        4 => std::str::from_utf8(bytes).is_ok_and(|text| parse_holder(text).is_some()),
        5 => daemon::round(bytes),
        _ => daemon::member(bytes),
    }
}
