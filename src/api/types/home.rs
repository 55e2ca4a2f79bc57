//! Plain directories: what `status` says of them, and what edits by others displaced in them.

use serde::{Deserialize, Serialize};

use super::{Amount, ApiPath};

/// How a plain directory and its folder stand to each other.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HomeStatus {
    /// Why changes are only looked for now and then; `None`: they are seen at once.
    pub polling: Option<String>,
    /// What the folder shows and the directory has not got yet.
    pub waiting: Option<String>,
    /// Why nothing is published or written.
    pub held_back: Option<String>,
    pub problems: Vec<HomeProblem>,
    /// What edits by others replaced or removed, and is kept.
    pub displaced: Amount,
}

/// What keeps some names of a directory from being part of the folder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HomeProblem {
    pub kind: HomeProblemKind,
    /// At least so many.
    pub count: u64,
    /// The first of them by name, from the directory on.
    pub first: Vec<ApiPath>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HomeProblemKind {
    /// It cannot be read: it stays as it is in the folder.
    Unreadable,
    /// It changes each time it is read, and is published when it is still.
    Moving,
    /// What somebody else did leaves no place for it.
    Blocked,
    /// A directory on another file system, or the home of something else: not entered.
    Nested,
    /// A device, socket or fifo: not shared.
    Special,
}

/// Of `displaced`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DisplacedRequest {
    /// A directory that is shared or joined; every one if `None`.
    #[serde(default)]
    pub dir: Option<ApiPath>,
    #[serde(default)]
    pub action: DisplacedAction,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DisplacedAction {
    #[default]
    List,
    /// Back to where it was, or to `name` in the directory; replaces nothing.
    Restore { number: u64, name: Option<ApiPath> },
    /// The newest first, each to where it was or, if that is taken, beside it.
    RestoreAll {
        /// Only what was displaced so long ago or less.
        since_s: Option<u64>,
        /// Only what this device replaced.
        device: Option<String>,
    },
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DisplacedResponse {
    /// Of `list`: what is displaced, by directory and in the order in which it came.
    pub displaced: Vec<Displaced>,
    /// Where what was taken back is.
    pub restored: Vec<ApiPath>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Displaced {
    /// The directory it lies in.
    pub dir: ApiPath,
    /// Different for each of a directory.
    pub number: u64,
    /// The name it had, escaped.
    pub name: String,
    /// Where it was, from the directory on; `None` if that is not known.
    pub path: Option<ApiPath>,
    pub why: Option<DisplacedWhy>,
    /// Whose version took its place, if that is known.
    pub device: Option<String>,
    pub directory: bool,
    /// Bytes.
    pub size: u64,
    /// Since it was displaced.
    pub age_s: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DisplacedWhy {
    Replaced,
    Removed,
}
