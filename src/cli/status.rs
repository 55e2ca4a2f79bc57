//! `ccbt status`

use clap::Args;

use super::options::Context;
use super::output::{age, amount, count};
use super::peers::right;
use super::{CommandResult, connect};
use crate::api::escape;
use crate::api::types::{
    Amount, ApiPath, DaemonStatus, FolderStatus, HomeProblemKind, HomeStatus, JobStatus,
    PortmapEntry, StatusRequest, StatusResponse, UnopenedStatus,
};
use crate::proto::web_seed::url::is_local;

/// Paths with the same problem that are named; `--json` has more.
const PROBLEMS_NAMED_MAX: usize = 3;

/// Show folders, mounts, what is only here and what is missing
#[derive(Debug, Args)]
pub(super) struct StatusCommand {}

impl StatusCommand {
    pub(super) async fn run(self, context: &Context) -> CommandResult {
        let response = connect::ask(context, &StatusRequest {}).await?;
        context.output.result(&response, text)?;
        Ok(0)
    }
}

fn text(response: &StatusResponse) -> String {
    let mut text = daemon(&response.daemon);
    for folder in &response.folders {
        text.push('\n');
        text.push_str(&folder_text(folder));
    }
    for unopened in &response.unopened {
        let UnopenedStatus {
            name,
            mount,
            error,
            hint,
        } = unopened;
        let hint = hint
            .as_ref()
            .map_or_else(String::new, |hint| format!(": {hint}"));
        let name = escape(name.as_bytes());
        let what = mount.as_ref().map_or_else(
            || "not open".to_owned(),
            |dir| format!("not mounted on {dir}"),
        );
        text.push_str(&format!("\n{name}  {what}: {error}{hint}\n"));
    }
    for JobStatus { what, progress } in &response.jobs {
        let note = escape(progress.note.as_bytes());
        let done = amount(Amount {
            files: progress.files_done,
            bytes: progress.bytes_done,
        });
        text.push_str(&format!(
            "\nworking on {}: {note} {done}\n",
            escape(what.as_bytes())
        ));
    }
    text
}

fn daemon(daemon: &DaemonStatus) -> String {
    let mut text = format!(
        "ccbt {}, process {}, up {}, state {}\n",
        escape(daemon.version.as_bytes()),
        daemon.pid,
        age(daemon.uptime_s),
        daemon.state
    );
    if let Some(addr) = daemon.listen {
        text.push_str(&format!("listening on {addr}"));
        if let Some(nodes) = daemon.dht_nodes {
            text.push_str(&format!(", {} DHT nodes", count(nodes.into())));
        }
        text.push('\n');
    }
    text.extend(daemon.portmap.as_ref().map(portmap));
    text
}

fn portmap(portmap: &PortmapEntry) -> String {
    let Some(method) = portmap
        .method
        .as_ref()
        .filter(|_| !portmap.ports.is_empty())
    else {
        let why = portmap
            .trouble
            .as_deref()
            .unwrap_or("the router is being asked");
        return format!("no port mapping: {}\n", escape(why.as_bytes()));
    };
    let ports = portmap.ports.iter();
    let ports = ports.map(|port| format!("{} {}", port.protocol, port.external));
    let ports: Vec<String> = ports.collect();
    let ip = portmap.external_ip;
    let at = ip.map_or_else(String::new, |ip| format!(" at {ip}"));
    let beyond = match ip.is_some_and(is_local) {
        true => "; that is no public address, so there is another router beyond it",
        false => "",
    };
    format!(
        "the router lets peers in{at}, {} ({method}){beyond}\n",
        ports.join(", ")
    )
}

fn folder_text(folder: &FolderStatus) -> String {
    let mut lines = vec![format!(
        "{}  {}  {}",
        escape(folder.name.as_bytes()),
        right(folder.right),
        if folder.shared { "shared" } else { "private" }
    )];
    lines.extend(folder.home.iter().map(|home| format!("directory  {home}")));
    for mount in &folder.mounts {
        let how = if mount.read_only { " (read-only)" } else { "" };
        lines.push(format!("mounted    {}{how}", mount.dir));
    }
    let pinned = if folder.pinned { ", kept whole" } else { "" };
    lines.push(format!("content    {}{pinned}", amount(folder.content)));
    lines.push(format!(
        "peers      {}, {} with the same content",
        folder.peers, folder.converged_with
    ));
    for head in &folder.heads {
        let newest = if head.newest { ", newest" } else { "" };
        let device = escape(head.device.as_bytes());
        lines.push(format!(
            "head       {device}: {}, {} ago{newest}",
            head.snapshot,
            age(head.age_s)
        ));
    }
    if let Some(published) = &folder.published {
        lines.push(format!(
            "published  {}, {} ago",
            published.snapshot,
            age(published.age_s)
        ));
    }
    let some = |amount: &Amount| amount.files > 0 || amount.bytes > 0;
    if some(&folder.only_here) {
        lines.push(format!("only here  {}", amount(folder.only_here)));
    }
    if some(&folder.missing) {
        lines.push(format!("missing    {}", amount(folder.missing)));
    }
    if folder.dirty_files > 0 {
        lines.push(format!(
            "pending    {} files to be published",
            count(folder.dirty_files)
        ));
    }
    if let Some(home) = &folder.directory {
        lines.extend(directory(home));
    }
    if let Some(why) = &folder.held_back {
        lines.push(held_back(why, folder.home.as_ref()));
    }
    lines.extend(
        folder
            .waiting
            .iter()
            .map(|why| format!("waiting    {}", escape(why.as_bytes()))),
    );
    lines.join("\n  ") + "\n"
}

/// What there is to say of a plain directory beside what is held back or waiting.
fn directory(home: &HomeStatus) -> Vec<String> {
    let mut lines = Vec::new();
    if let Some(why) = &home.polling {
        let why = escape(why.as_bytes());
        lines.push(format!(
            "watching   by a look at everything now and then: {why}"
        ));
    }
    for problem in &home.problems {
        let what = match problem.kind {
            HomeProblemKind::Unreadable => "unreadable",
            HomeProblemKind::Moving => "changing  ",
            HomeProblemKind::Blocked => "no place  ",
            HomeProblemKind::Nested => "not entered",
            HomeProblemKind::Special => "not shared",
        };
        let named = problem.first.iter().take(PROBLEMS_NAMED_MAX);
        let named: Vec<String> = named.map(ToString::to_string).collect();
        let more = match problem.count > named.len() as u64 {
            true => format!(", and {} more", count(problem.count - named.len() as u64)),
            false => String::new(),
        };
        lines.push(format!("{what} {}{more}", named.join(", ")));
    }
    if home.displaced.files > 0 {
        lines.push(format!("displaced  {}", amount(home.displaced)));
    }
    lines
}

fn held_back(why: &str, home: Option<&ApiPath>) -> String {
    let why = escape(why.as_bytes());
    let confirm = home.map_or_else(String::new, |home| {
        format!("; if it is meant to be so: ccbt confirm {home}")
    });
    format!("held back  nothing of the directory is published: {why}{confirm}")
}
