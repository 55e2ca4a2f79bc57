//! `ccbt displaced`

use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};
use std::time::SystemTime;

use clap::Args;
use serde::Serialize;

use super::output::{self, Output};
use super::{CommandResult, source};
use crate::api::types::ApiPath;
use crate::api::{ApiError, ErrorKind, escape};
use crate::folder::home::displaced::{self, Displaced};

/// Show what edits by others replaced or removed in a plain directory, and take it back
///
/// Each has a number. What is taken back is a file like any other that you put into the directory: it is published.
#[derive(Debug, Args)]
pub(super) struct DisplacedCommand {
    /// A directory that is shared or joined, or was
    dir: PathBuf,
    /// Take this one back
    #[arg(long, value_name = "NUMBER")]
    restore: Option<u64>,
    /// Under this name in DIR [default: the one it had, at the top of DIR]
    #[arg(long = "as", value_name = "NAME", requires = "restore")]
    name: Option<PathBuf>,
}

#[derive(Serialize)]
struct Listed {
    number: u64,
    /// Escaped.
    name: String,
    directory: bool,
    size: u64,
    age_s: u64,
}

#[derive(Serialize)]
struct Restored {
    path: ApiPath,
}

impl DisplacedCommand {
    pub(super) fn run(self, out: Output) -> CommandResult {
        let dir = source::existing_dir(&self.dir)?;
        if ccbt_mount::is_ccbt_mount(&dir.0).unwrap_or(false) {
            let what = format!("{dir} is mounted over itself, so its plain files are not in sight");
            return Err(ApiError::new(ErrorKind::Busy, what)
                .hint(format!("unmount it first: ccbt unmount {dir}")));
        }
        let found = displaced::list(&dir.0)
            .map_err(|error| ApiError::io(format_args!("cannot read {dir}"), &error))?;
        match self.restore {
            None => {
                let listed: Vec<Listed> = found.iter().map(listed).collect();
                out.result(&listed, |listed: &Vec<Listed>| table(listed))?;
            }
            Some(number) => {
                let one = found.into_iter().find(|one| one.number == number);
                let one = one.ok_or_else(|| unknown(number, &dir))?;
                let path = restore(&one, &dir, self.name.as_deref())?;
                out.result(&Restored { path }, |done| {
                    format!("Restored {}\n", done.path)
                })?;
            }
        }
        Ok(0)
    }
}

fn restore(one: &Displaced, dir: &ApiPath, name: Option<&Path>) -> Result<ApiPath, ApiError> {
    let is_inside = |name: &Path| {
        name.components()
            .all(|part| matches!(part, Component::Normal(_)))
    };
    if name.is_some_and(|name| !is_inside(name)) {
        let what = "the name with --as does not stay in the directory";
        return Err(
            ApiError::new(ErrorKind::Usage, what).hint("name it from DIR on, like `sub/name`")
        );
    }
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

fn listed(one: &Displaced) -> Listed {
    let age = SystemTime::now().duration_since(one.modified);
    Listed {
        number: one.number,
        name: escape(&one.name),
        directory: one.is_dir,
        size: one.size,
        age_s: age.map_or(0, |age| age.as_secs()),
    }
}

fn table(listed: &[Listed]) -> String {
    if listed.is_empty() {
        return "Nothing was displaced\n".to_owned();
    }
    let head = ["number", "size", "changed", "name"]
        .map(str::to_owned)
        .to_vec();
    let rows = listed.iter().map(|one| {
        let size = match one.directory {
            true => "directory".to_owned(),
            false => output::bytes(one.size),
        };
        let age = format!("{} ago", output::age(one.age_s));
        vec![one.number.to_string(), size, age, one.name.clone()]
    });
    output::table(&std::iter::once(head).chain(rows).collect::<Vec<_>>())
}
