//! The parsers of the daemon's small files, for [`crate::fuzzing`].

use std::path::PathBuf;

use super::record::FolderRecord;
use super::seen;
use super::torrents;
use super::upkeep::Round;

/// A folder's record, with a link that can be read.
pub(crate) fn folder_record(bytes: &[u8]) -> bool {
    let Ok(record) = FolderRecord::parse(bytes, PathBuf::new()) else {
        return false;
    };
    let json = serde_json::to_vec(&record).unwrap_or_default();
    let again = FolderRecord::parse(&json, PathBuf::new());
    let again = again.ok().and_then(|again| serde_json::to_vec(&again).ok());
    assert_eq!(again, Some(json));
    record.link(&PathBuf::new()).is_ok()
}

/// A torrent's record.
pub(crate) fn torrent_record(bytes: &[u8]) -> bool {
    torrents::parse_record(bytes, "").is_ok()
}

/// How far a check of the store is.
pub(crate) fn round(bytes: &[u8]) -> bool {
    let round = Round::parse(bytes);
    let again = round.and_then(|round| Round::parse(&serde_json::to_vec(&round).ok()?));
    assert_eq!(again, round);
    round.is_some()
}

/// The key under which a member is remembered.
pub(crate) fn member(key: &[u8]) -> bool {
    seen::addr_of(key).is_some()
}
