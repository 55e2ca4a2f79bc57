//! What would happen if a directory became the home of a folder: what both have, what differs, what only one has.

use std::io;
use std::path::Path;
use std::sync::atomic::AtomicBool;

use bytes::Bytes;
use ccbt_xet::store::Store;

use super::contents;
use super::files::HomeFiles;
use super::fs::TEMP_PREFIX;
use super::ignore::rules_of;
use super::ledger::Ledger;
use super::plan::{Found, FoundKind, Seen, join};
use super::take::content_of;
use super::watch::Waker;
use crate::folder::state::{Fid, FileKind, Name, Node};

/// Paths that are named; of more only the count is told.
const NAMED_MAX: usize = 100;

/// Some paths, and how many there are.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Paths {
    pub count: u64,
    /// The first of them, relative to the directory.
    pub first: Vec<Vec<u8>>,
}

/// The comparison of a directory with a folder.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct JoinPlan {
    /// Files with the same content in both.
    pub same: u64,
    /// Names that are something else in the folder: both are kept, side by side.
    pub different: Paths,
    /// Files and directories that only the directory has.
    pub local_only: Paths,
    /// Files that only the folder has, and their bytes: they are written into the directory.
    pub missing_files: u64,
    pub missing_bytes: u64,
}

impl Paths {
    fn add(&mut self, path: Vec<u8>) {
        self.count += 1;
        if self.first.len() < NAMED_MAX {
            self.first.push(path);
        }
    }
}

/// Compares the directory `dir` with a folder. Files with equal names and sizes are read; nothing is changed.
pub fn compare(dir: &Path, ledger: &dyn Ledger, store: &Store) -> io::Result<JoinPlan> {
    let files = HomeFiles::open(dir, 0, Waker::new()?)?;
    let rules = rules_of(&files, ledger, &|content, size| {
        contents::content(store, &files, content, size)
    });
    let mut plan = JoinPlan::default();
    let mut dirs = vec![(Vec::new(), Fid::ROOT)];
    while let Some((path, fid)) = dirs.pop() {
        let mut shown = Vec::new();
        ledger.read(&mut |state| shown = state.list(fid));
        let listing = files.list(&files.open_dir(&path)?, path.is_empty())?;
        let mut here = listing.names;
        for (name, node) in shown {
            let at = join(&path, name.as_bytes());
            match (here.remove(name.as_bytes()), &node) {
                (None, node) => count_missing(ledger, node, &mut plan),
                (Some(Seen::Found(found)), Node::Dir(dir)) if found.kind == FoundKind::Dir => {
                    dirs.push((at, dir.fid));
                }
                (Some(Seen::Found(found)), node) if is_same(&files, store, &at, found, node)? => {
                    plan.same += 1;
                }
                (Some(_), node) => {
                    plan.different.add(at);
                    count_missing(ledger, node, &mut plan);
                }
            }
        }
        let within = rules.within(&path);
        // A home of something else, or another disk, is not published either.
        let shared = here
            .into_iter()
            .filter(|(name, seen)| *seen != Seen::Nested && !within.ignores(name, seen.is_dir()));
        for (name, _) in shared {
            plan.local_only.add(join(&path, &name));
        }
    }
    Ok(plan)
}

fn is_same(
    files: &HomeFiles,
    store: &Store,
    path: &[u8],
    found: Found,
    node: &Node,
) -> io::Result<bool> {
    let Node::File(node) = node else {
        return Ok(false);
    };
    let content: Bytes = match (found.kind, node.version.kind) {
        (FoundKind::Symlink, FileKind::Symlink) => files.read_link(path)?,
        (FoundKind::File, FileKind::File) if found.stamp.size == node.version.size => {
            let file = files.open_file(path)?;
            let never = AtomicBool::new(false);
            content_of(store, &file, found.stamp.size, &never).map_err(io::Error::other)?
        }
        _ => return Ok(false),
    };
    Ok(content[..] == *node.version.content.0)
}

/// Counts a node and what is below it.
fn count_missing(ledger: &dyn Ledger, node: &Node, plan: &mut JoinPlan) {
    let mut nodes = vec![node.clone()];
    while let Some(node) = nodes.pop() {
        match node {
            Node::File(node) => {
                plan.missing_files += 1;
                plan.missing_bytes += node.version.size;
            }
            Node::Dir(dir) => ledger.read(&mut |state| {
                let below: Vec<(Name, Node)> = state.list(dir.fid);
                nodes.extend(below.into_iter().map(|(_, node)| node));
            }),
        }
    }
}

/// Whether a directory holds nothing but what is ours.
pub fn is_bare(dir: &Path) -> io::Result<bool> {
    for entry in std::fs::read_dir(dir)? {
        let name = entry?.file_name();
        let name = name.as_encoded_bytes();
        if !name.starts_with(TEMP_PREFIX) && name != super::marker::OWN_DIR.as_bytes() {
            return Ok(false);
        }
    }
    Ok(true)
}
