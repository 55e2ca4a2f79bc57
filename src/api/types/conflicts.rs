//! Of `conflicts` and `resolve`: names that more than one thing wants.

use serde::{Deserialize, Serialize};

use super::ApiPath;

/// Of `conflicts`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConflictsRequest {
    /// Only at or below this directory of a folder; in every open folder if `None`.
    #[serde(default)]
    pub dir: Option<ApiPath>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConflictsResponse {
    /// By path.
    pub conflicts: Vec<Conflict>,
    /// There are more than these.
    pub more: bool,
}

/// One name and everything that wants it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Conflict {
    /// Folder id, 64 hex digits.
    pub folder: String,
    pub folder_name: String,
    /// The name they all want.
    pub path: ApiPath,
    /// Stands for exactly these versions: `resolve` wants it back, and does nothing if there are others by then.
    pub seen: String,
    /// The one that has the name first.
    pub versions: Vec<ConflictVersion>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConflictVersion {
    /// Where it is shown.
    pub path: ApiPath,
    pub kind: ConflictKind,
    /// Who wrote it: the name of the device, or the first digits of its incarnation. `None` for a directory.
    pub device: Option<String>,
    /// Since it was written; `None` for a directory.
    pub age_s: Option<u64>,
    /// Bytes; for a directory the number of entries in it.
    pub size: u64,
    /// All of its content is on this device.
    pub here: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ConflictKind {
    File,
    Symlink,
    Directory,
}

/// Of `resolve`: ends the conflict that a path is part of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ResolveRequest {
    /// Where one of the versions is shown.
    pub path: ApiPath,
    /// [`Conflict::seen`] of what the user decided about.
    pub seen: String,
    pub action: ResolveAction,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ResolveAction {
    /// The version at the path gets the name, the others go.
    Keep,
    /// Every version stays, as an ordinary file with a name of its own.
    KeepBoth,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResolveResponse {
    pub folder: String,
    /// Where what was kept is now.
    pub kept: Vec<ApiPath>,
    /// Versions that were removed.
    pub removed: u64,
}
