//! `ccbt displaced`

use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};
use std::time::{Duration, SystemTime};

use clap::Args;
use serde::Serialize;

use super::options::Context;
use super::output::{self, Output, age, bytes};
use super::progress::Bar;
use super::{CommandResult, connect, source};
use crate::api::types::{
    ApiPath, Displaced, DisplacedAction, DisplacedRequest, DisplacedResponse, DisplacedWhy,
};
use crate::api::{ApiError, ErrorKind, escape};
use crate::folder::home::displaced;

/// Show what edits by others replaced or removed in a plain directory, and take it back
///
/// Each has a number. What is taken back is a file like any other that you put into the directory: it is published.
/// Where things were is known while a daemon has the directory open. They are kept for `displaced.keep_days`.
#[derive(Debug, Args)]
pub(super) struct DisplacedCommand {
    /// A directory that is shared or joined, or was [default: every one]
    dir: Option<PathBuf>,
    /// Take this one back to where it was
    #[arg(long, value_name = "NUMBER", requires = "dir")]
    restore: Option<u64>,
    /// Under this name in DIR
    #[arg(long = "as", value_name = "NAME", requires = "restore")]
    name: Option<PathBuf>,
    /// Take all back, the newest first; what has its name taken comes beside it
    #[arg(long, conflicts_with = "restore", requires = "dir")]
    restore_all: bool,
    /// Only what was displaced within this time: 90s, 30min, 2h, 3d
    #[arg(long, value_name = "TIME", requires = "restore_all", value_parser = duration)]
    since: Option<Duration>,
    /// Only what this device replaced
    #[arg(long, value_name = "NAME", requires = "restore_all")]
    device: Option<String>,
}

#[derive(Serialize)]
struct Restored {
    path: ApiPath,
}

impl DisplacedCommand {
    pub(super) async fn run(self, context: &Context) -> CommandResult {
        let dir = self.dir.as_deref().map(source::existing_dir).transpose()?;
        if self.name.as_deref().is_some_and(|name| !is_inside(name)) {
            let what = "the name with --as does not stay in the directory";
            return Err(
                ApiError::new(ErrorKind::Usage, what).hint("name it from DIR on, like `sub/name`")
            );
        }
        let request = self.request(dir.clone());
        match (ask(context, &request).await?, dir) {
            (Some(response), _) => show(context.output, &request.action, &response)?,
            (None, Some(dir)) => self.run_alone(context.output, &dir)?,
            (None, None) => drop(connect::require(context).await?),
        }
        Ok(0)
    }

    fn request(&self, dir: Option<ApiPath>) -> DisplacedRequest {
        let action = match (self.restore, self.restore_all) {
            (Some(number), _) => DisplacedAction::Restore {
                number,
                name: self.name.clone().map(ApiPath),
            },
            (None, true) => DisplacedAction::RestoreAll {
                since_s: self.since.map(|since| since.as_secs()),
                device: self.device.clone(),
            },
            (None, false) => DisplacedAction::List,
        };
        DisplacedRequest { dir, action }
    }

    /// Without a daemon: what the directory itself says.
    fn run_alone(&self, out: Output, dir: &ApiPath) -> Result<(), ApiError> {
        if ccbt_mount::is_ccbt_mount(&dir.0).unwrap_or(false) {
            let what = format!("{dir} is mounted over itself, so its plain files are not in sight");
            return Err(ApiError::new(ErrorKind::Busy, what)
                .hint(format!("unmount it first: ccbt unmount {dir}")));
        }
        if self.restore_all {
            let what = "where things were is known only while a daemon has the directory open";
            return Err(ApiError::new(ErrorKind::NoDaemon, what)
                .hint("start it with `ccbt daemon -d`, or restore one with --restore NUMBER"));
        }
        let found = displaced::list(&dir.0)
            .map_err(|error| ApiError::io(format_args!("cannot read {dir}"), &error))?;
        let Some(number) = self.restore else {
            let listed: Vec<Displaced> = found.iter().map(|one| listed(one, dir)).collect();
            return out.result(&listed, |listed: &Vec<Displaced>| table(listed));
        };
        let one = found.into_iter().find(|one| one.number == number);
        let one = one.ok_or_else(|| unknown(number, dir))?;
        let path = restore(&one, dir, self.name.as_deref())?;
        out.result(&Restored { path }, restored)
    }
}

/// What the daemon says; none if there is none, or it does not have the directory open.
async fn ask(
    context: &Context,
    request: &DisplacedRequest,
) -> Result<Option<DisplacedResponse>, ApiError> {
    context.log_for_client()?;
    let Some(client) = connect::find(context).await? else {
        return Ok(None);
    };
    match client.call(request, &Bar::new(context)).await {
        Err(error)
            if error.kind == ErrorKind::NotFound && request.action == DisplacedAction::List =>
        {
            Ok(None)
        }
        answer => answer.map(Some),
    }
}

fn show(
    out: Output,
    action: &DisplacedAction,
    response: &DisplacedResponse,
) -> Result<(), ApiError> {
    match action {
        DisplacedAction::List => out.result(&response.displaced, |listed| table(listed)),
        DisplacedAction::Restore { .. } => {
            let path = response.restored.first().cloned();
            let path = path.unwrap_or_else(|| ApiPath(PathBuf::new()));
            out.result(&Restored { path }, restored)
        }
        DisplacedAction::RestoreAll { .. } => out.result(&response.restored, |paths| {
            let lines = paths.iter().map(|path| format!("Restored {path}\n"));
            match paths.is_empty() {
                true => "Nothing was restored\n".to_owned(),
                false => lines.collect(),
            }
        }),
    }
}

fn is_inside(name: &Path) -> bool {
    name.components()
        .all(|part| matches!(part, Component::Normal(_)))
}

fn restore(
    one: &displaced::Displaced,
    dir: &ApiPath,
    name: Option<&Path>,
) -> Result<ApiPath, ApiError> {
    one.restore(&dir.0, name).map(ApiPath).map_err(|error| {
        let shown = name.map_or_else(
            || escape(&one.name),
            |name| escape(name.as_os_str().as_bytes()),
        );
        match error.kind() {
            io::ErrorKind::AlreadyExists => ApiError::new(
                ErrorKind::Refused,
                format_args!("{dir} has a {shown} already"),
            )
            .hint("choose another name with --as NAME"),
            _ => ApiError::io(format_args!("cannot restore {shown}"), &error),
        }
    })
}

fn unknown(number: u64, dir: &ApiPath) -> ApiError {
    let what = format!("nothing in {dir} was displaced under the number {number}");
    ApiError::new(ErrorKind::NotFound, what).hint(format!("ccbt displaced {dir} lists what was"))
}

fn restored(done: &Restored) -> String {
    format!("Restored {}\n", done.path)
}

fn listed(one: &displaced::Displaced, dir: &ApiPath) -> Displaced {
    let age = SystemTime::now().duration_since(one.modified);
    Displaced {
        dir: dir.clone(),
        number: one.number,
        name: escape(&one.name),
        path: None,
        why: None,
        device: None,
        directory: one.is_dir,
        size: one.size,
        age_s: age.map_or(0, |age| age.as_secs()),
    }
}

fn table(listed: &[Displaced]) -> String {
    if listed.is_empty() {
        return "Nothing was displaced\n".to_owned();
    }
    let mut text = String::new();
    for of_dir in listed.chunk_by(|a, b| a.dir == b.dir) {
        let is_one = of_dir.len() == listed.len();
        if let Some(first) = of_dir.first().filter(|_| !is_one) {
            text.push_str(&format!("{}\n", first.dir));
        }
        let head = ["number", "size", "displaced", "by", "was"].map(str::to_owned);
        let rows = std::iter::once(head.to_vec()).chain(of_dir.iter().map(row));
        text.push_str(&output::table(&rows.collect::<Vec<_>>()));
    }
    text
}

fn row(one: &Displaced) -> Vec<String> {
    let size = match one.directory {
        true => "directory".to_owned(),
        false => bytes(one.size),
    };
    let by = match (&one.why, &one.device) {
        (_, Some(device)) => escape(device.as_bytes()),
        (Some(DisplacedWhy::Removed), None) => "removed".to_owned(),
        _ => "-".to_owned(),
    };
    let was = one
        .path
        .as_ref()
        .map_or_else(|| one.name.clone(), ToString::to_string);
    let age = format!("{} ago", age(one.age_s));
    vec![one.number.to_string(), size, age, by, was]
}

/// A time as people write it: a whole number and s, min, h or d.
fn duration(text: &str) -> Result<Duration, String> {
    let end = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let seconds = match unit.trim() {
        "s" => 1,
        "min" => 60,
        "h" => 3600,
        "d" => 86_400,
        _ => return Err("a whole number and s, min, h or d, like 30min".to_owned()),
    };
    let number: u64 = number
        .parse()
        .map_err(|_| "a whole number comes first".to_owned())?;
    Ok(Duration::from_secs(number.saturating_mul(seconds)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_numbers_with_units() {
        assert_eq!(duration("90s"), Ok(Duration::from_secs(90)));
        assert_eq!(duration("2 h"), Ok(Duration::from_secs(7200)));
        assert_eq!(duration("3d"), Ok(Duration::from_secs(259_200)));
        for bad in ["", "3", "h", "-1h", "1.5h", "99999999999999999999d"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }
}
