//! `ccbt conflicts`

use std::fs;
use std::path::{Path, PathBuf};

use clap::Args;

use super::options::Context;
use super::output::{age, bytes, count, table};
use super::{CommandResult, connect, diff, source};
use crate::api::types::{
    ApiPath, Conflict, ConflictKind, ConflictVersion, ConflictsRequest, ConflictsResponse,
    ResolveAction, ResolveRequest, ResolveResponse,
};
use crate::api::{ApiError, ErrorKind, escape};

/// Larger files are not compared line by line.
const DIFF_BYTES_MAX: u64 = 4 << 20;

/// Show files that two people changed at once, and choose what to keep
///
/// Both versions are always kept: the newest has the name, the others are shown beside it as `NAME (conflict DEVICE
/// UTC)`. What a choice removes goes among the displaced of every plain directory: `ccbt displaced`.
#[derive(Debug, Args)]
pub(super) struct ConflictsCommand {
    /// Only below this directory of a folder [default: every open folder]
    #[arg(conflicts_with = "path")]
    dir: Option<PathBuf>,
    #[command(flatten)]
    choice: Choice,
}

#[derive(Debug, Args)]
#[group(id = "path", multiple = false)]
struct Choice {
    /// Show all versions of this file; of texts, how they differ
    #[arg(long, value_name = "PATH")]
    show: Option<PathBuf>,
    /// Keep this version, under the name they all want; the others go
    #[arg(long, value_name = "PATH")]
    keep: Option<PathBuf>,
    /// Keep every version, each as a file of its own
    #[arg(long, value_name = "PATH")]
    keep_both: Option<PathBuf>,
}

impl ConflictsCommand {
    pub(super) async fn run(self, context: &Context) -> CommandResult {
        let Choice {
            show,
            keep,
            keep_both,
        } = self.choice;
        if let Some(path) = show {
            let (_, conflict) = find(context, &path).await?;
            context.output.result(&conflict, shown)?;
            return Ok(0);
        }
        let choice = keep.map(|path| (path, ResolveAction::Keep));
        let choice = choice.or_else(|| keep_both.map(|path| (path, ResolveAction::KeepBoth)));
        if let Some((path, action)) = choice {
            let (path, Conflict { seen, .. }) = find(context, &path).await?;
            let request = ResolveRequest { path, seen, action };
            let response = connect::ask(context, &request).await?;
            context.output.result(&response, resolved)?;
            return Ok(0);
        }
        let dir = self.dir.as_deref().map(source::existing_dir).transpose()?;
        let response = connect::ask(context, &ConflictsRequest { dir }).await?;
        context.output.result(&response, list)?;
        Ok(0)
    }
}

/// The conflict that a path is part of, and the path as the daemon knows it.
async fn find(context: &Context, path: &Path) -> Result<(ApiPath, Conflict), ApiError> {
    let path = source::target(path)?;
    let dir = path.0.parent().map(|dir| ApiPath(dir.to_path_buf()));
    let response = connect::ask(context, &ConflictsRequest { dir }).await?;
    let is_it = |version: &ConflictVersion| version.path == path;
    let mut conflicts = response.conflicts.into_iter();
    let found = conflicts.find(|conflict| conflict.versions.iter().any(is_it));
    let found = found.ok_or_else(|| {
        let what = format!("{path} is in conflict with nothing");
        ApiError::new(ErrorKind::NotFound, what).hint("`ccbt conflicts` lists what is in conflict")
    })?;
    Ok((path, found))
}

fn list(response: &ConflictsResponse) -> String {
    if response.conflicts.is_empty() {
        return "No conflicts\n".to_owned();
    }
    let mut text = String::new();
    for conflict in &response.conflicts {
        if !text.is_empty() {
            text.push('\n');
        }
        text.push_str(&heading(conflict));
    }
    if response.more {
        text.push_str("\nThere are more; name a directory to see those below it\n");
    }
    text
}

/// The name and a line for each version.
fn heading(conflict: &Conflict) -> String {
    let rows: Vec<Vec<String>> = conflict.versions.iter().map(row).collect();
    let rows = table(&rows);
    let rows = rows.lines().map(|row| format!("  {row}\n"));
    format!("{}\n{}", conflict.path, rows.collect::<String>())
}

fn row(version: &ConflictVersion) -> Vec<String> {
    let name = version.path.0.file_name().unwrap_or_default();
    let size = match version.kind {
        ConflictKind::File => bytes(version.size),
        ConflictKind::Symlink => "symbolic link".to_owned(),
        ConflictKind::Directory => format!("directory, {} entries", count(version.size)),
    };
    let here = if version.here { "" } else { "not here yet" };
    vec![
        escape(name.as_encoded_bytes()),
        version
            .device
            .as_ref()
            .map_or_else(String::new, |device| escape(device.as_bytes())),
        version
            .age_s
            .map_or_else(String::new, |seconds| format!("{} ago", age(seconds))),
        size,
        here.to_owned(),
    ]
}

fn shown(conflict: &Conflict) -> String {
    let mut text = heading(conflict);
    let Some((first, others)) = conflict.versions.split_first() else {
        return text;
    };
    for other in others {
        text.push_str(&format!("\n--- {}\n+++ {}\n", first.path, other.path));
        text.push_str(&difference(first, other));
    }
    text
}

fn difference(one: &ConflictVersion, other: &ConflictVersion) -> String {
    match (content(one), content(other)) {
        (Ok(one), Ok(other)) => match (as_text(&one), as_text(&other)) {
            (Some(one), Some(other)) => diff::unified(one, other),
            _ => "not texts, or too large to compare\n".to_owned(),
        },
        (Err(why), _) | (_, Err(why)) => format!("{why}\n"),
    }
}

/// What a version holds, if it is to be had.
fn content(version: &ConflictVersion) -> Result<Vec<u8>, String> {
    let path = &version.path;
    let unreadable = |error: std::io::Error| format!("{path} cannot be read: {error}");
    match version.kind {
        ConflictKind::Directory => Err(format!("{path} is a directory")),
        ConflictKind::Symlink => {
            let target = fs::read_link(&path.0).map_err(unreadable)?;
            Ok(target.as_os_str().as_encoded_bytes().to_vec())
        }
        ConflictKind::File if !version.here => Err(format!("{path} is not here yet")),
        // The sizes are shown above.
        ConflictKind::File if version.size > DIFF_BYTES_MAX => Ok(vec![0]),
        ConflictKind::File => fs::read(&path.0).map_err(unreadable),
    }
}

fn as_text(bytes: &[u8]) -> Option<&str> {
    let text = std::str::from_utf8(bytes).ok()?;
    (!text.contains('\0')).then_some(text)
}

fn resolved(response: &ResolveResponse) -> String {
    let kept: Vec<String> = response.kept.iter().map(ToString::to_string).collect();
    let removed = match response.removed {
        0 => String::new(),
        1 => "; removed 1 other version".to_owned(),
        n => format!("; removed {} other versions", count(n)),
    };
    format!("Kept {}{removed}\n", kept.join(", "))
}
