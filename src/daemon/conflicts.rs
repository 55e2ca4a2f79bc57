//! `conflicts` and `resolve`: names that more than one thing wants, and how a user ends that.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ccbt_mount::VolumeError;

use super::Daemon;
use super::open::{OpenFolder, blocking, unscanned};
use crate::api::types::*;
use crate::api::{ApiError, ErrorKind, escape};
use crate::clock;
use crate::folder::state::{
    Fid, FileKind, FileNode, Name, Node, OpError, RenameMode, State, beside,
};
use crate::folder::work::Txn;

/// Conflicts of one answer: a person looks through them, and the folder stands still while they are collected.
const LISTED_MAX: usize = 1000;

/// Names tried for a version that is to get one of its own.
const BESIDE_MAX: usize = 999;

/// One name of a folder that more than one thing wants.
struct Group {
    /// The directory, from the root.
    above: Vec<Name>,
    /// Everything that wants the name, each where it is shown, the one that has it first.
    members: Vec<(Name, Node)>,
}

/// A name in a folder.
struct Place {
    open: Arc<OpenFolder>,
    /// Where the folder's root is for who asked.
    root: PathBuf,
    above: Vec<Name>,
    name: Name,
}

/// Why a conflict was not ended. Nothing was changed.
#[derive(Debug, thiserror::Error)]
enum Unresolved {
    #[error("nothing else wants the name")]
    NoConflict,
    #[error("its versions changed meanwhile")]
    Changed,
    #[error("one of the versions is a directory with something in it")]
    NotEmpty,
    #[error(transparent)]
    Refused(#[from] OpError),
}

impl Daemon {
    pub(super) async fn list_conflicts(
        &self,
        request: ConflictsRequest,
    ) -> Result<ConflictsResponse, ApiError> {
        let folders = match &request.dir {
            Some(dir) => {
                let (open, below) = self.folder_of(dir)?;
                let root = root_of(dir, below.len())?;
                vec![(open, root, below)]
            }
            None => self.shown_folders(),
        };
        let mut response = ConflictsResponse {
            conflicts: Vec::new(),
            more: false,
        };
        for (open, root, below) in folders {
            let room = LISTED_MAX - response.conflicts.len();
            let mut found = blocking(move || Ok(listed(&open, &root, &below, room + 1))).await?;
            response.more |= found.len() > room;
            found.truncate(room);
            response.conflicts.append(&mut found);
        }
        response.conflicts.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(response)
    }

    /// Every open folder that is somewhere to be seen, and where.
    fn shown_folders(&self) -> Vec<(Arc<OpenFolder>, PathBuf, Vec<Name>)> {
        let folders: Vec<Arc<OpenFolder>> = self.0.folders.lock().values().cloned().collect();
        let place = |open: Arc<OpenFolder>| {
            let home = open.record.lock().home.clone();
            let mount = || self.mounts_of(&open.id).first().map(|at| at.dir.clone());
            let dir = home.or_else(mount)?.0;
            Some((open, dir, Vec::new()))
        };
        folders.into_iter().filter_map(place).collect()
    }

    pub(super) async fn resolve_conflict(
        &self,
        request: ResolveRequest,
    ) -> Result<ResolveResponse, ApiError> {
        let Place {
            open,
            root,
            above,
            name,
        } = self.place_of(&request.path)?;
        if open.credentials.writer.is_none() {
            let what = "this device only has a read-only link to the folder";
            return Err(ApiError::new(ErrorKind::Refused, what)
                .hint("resolve it on a device that may write"));
        }
        // What was saved a moment ago belongs to what the user decided about.
        take_in(&open, &above, &request.path).await?;
        self.publish(&open).await?;
        let (opened, shown) = (Arc::clone(&open), above.clone());
        let (seen, action) = (request.seen, request.action);
        let done = blocking(move || {
            let folder = &opened.folder;
            let done = folder.update(|txn| match action {
                ResolveAction::Keep => keep_one(txn, &shown, &name, &seen),
                ResolveAction::KeepBoth => {
                    keep_all(txn, &shown, &name, &seen, &|node| match node {
                        Node::Dir(_) => "copy".to_owned(),
                        Node::File(file) => device(&opened, file),
                    })
                }
            })?;
            folder.sync()?;
            Ok(done)
        });
        let done = done.await?;
        let (kept, removed) = done.map_err(|why| unresolved(&why, &request.path))?;
        self.publish(&open).await?;
        Ok(ResolveResponse {
            folder: open.id.to_string(),
            kept: kept.iter().map(|name| path(&root, &above, name)).collect(),
            removed,
        })
    }

    /// The folder and the name in it that a path leads to; a symbolic link in the last place is not followed.
    fn place_of(&self, at: &ApiPath) -> Result<Place, ApiError> {
        let (Some(dir), Some(name)) = (at.0.parent(), at.0.file_name()) else {
            return Err(unresolved(&Unresolved::NoConflict, at));
        };
        let dir = ApiPath(dir.to_path_buf());
        let (open, above) = self.folder_of(&dir)?;
        Ok(Place {
            open,
            root: root_of(&dir, above.len())?,
            above,
            name: Name::from(name.as_bytes()),
        })
    }
}

/// The directory `levels` above `dir`, which was found to be there.
fn root_of(dir: &ApiPath, levels: usize) -> Result<PathBuf, ApiError> {
    let real = std::fs::canonicalize(&dir.0)
        .map_err(|error| ApiError::io(format_args!("cannot use {dir}"), &error))?;
    Ok(real.ancestors().nth(levels).unwrap_or(&real).to_path_buf())
}

/// Has what lies in a directory of the home be part of the folder.
async fn take_in(open: &Arc<OpenFolder>, above: &[Name], asked: &ApiPath) -> Result<(), ApiError> {
    let Some(home) = open.home.lock().clone() else {
        return Ok(());
    };
    let dir = open.folder.look(|state| dir_at(state, above));
    let Some(dir) = dir else { return Ok(()) };
    let report = blocking(move || home.look_at(dir).map_err(unscanned)).await?;
    if report.moving.is_empty() {
        return Ok(());
    }
    let what = format!("a file beside {asked} is being written");
    Err(ApiError::new(ErrorKind::Busy, what).hint("try again when the program is done"))
}

fn dir_at(state: &State, path: &[Name]) -> Option<Fid> {
    path.iter().try_fold(Fid::ROOT, |dir, name| {
        match state.lookup(dir, name.as_bytes())? {
            Node::Dir(node) => Some(node.fid),
            Node::File(_) => None,
        }
    })
}

fn listed(open: &OpenFolder, root: &Path, below: &[Name], room: usize) -> Vec<Conflict> {
    let groups: Vec<Group> = open.folder.look(|state| {
        let groups = state.conflicts().filter_map(|(dir, name)| {
            let above = state.path_of(dir)?;
            let members = state.rivals(dir, name.as_bytes());
            let is_asked = above.starts_with(below) && !members.is_empty();
            is_asked.then_some(Group { above, members })
        });
        groups.take(room).collect()
    });
    let groups = groups.iter();
    groups.map(|group| conflict(open, root, group)).collect()
}

fn conflict(open: &OpenFolder, root: &Path, group: &Group) -> Conflict {
    let versions = group.members.iter().map(|(name, node)| {
        let path = path(root, &group.above, name);
        version(open, path, node)
    });
    let versions: Vec<ConflictVersion> = versions.collect();
    Conflict {
        folder: open.id.to_string(),
        folder_name: open.record.lock().name.clone(),
        path: versions
            .first()
            .map_or_else(|| ApiPath(root.to_path_buf()), |first| first.path.clone()),
        seen: seen(&group.members),
        versions,
    }
}

fn version(open: &OpenFolder, path: ApiPath, node: &Node) -> ConflictVersion {
    match node {
        Node::Dir(dir) => ConflictVersion {
            path,
            kind: ConflictKind::Directory,
            device: None,
            age_s: None,
            size: open.folder.look(|state| state.list(dir.fid).len()) as u64,
            here: true,
        },
        Node::File(file) => {
            let written = file.version.hlc.unix_ms() / 1000;
            let now = clock::unix_nanos() / 1_000_000_000;
            ConflictVersion {
                path,
                kind: match file.version.kind {
                    FileKind::File => ConflictKind::File,
                    FileKind::Symlink => ConflictKind::Symlink,
                },
                device: Some(escape(device(open, file).as_bytes())),
                age_s: Some(now.saturating_sub(written)),
                size: file.version.size,
                here: open.folder.is_here(node),
            }
        }
    }
}

/// What the device is called that wrote a file.
fn device(open: &OpenFolder, file: &FileNode) -> String {
    let inc = file.version.dot.inc.0;
    let known = open.names.read().get(&inc).cloned();
    known.unwrap_or_else(|| {
        inc.iter()
            .take(4)
            .map(|byte| format!("{byte:02x}"))
            .collect()
    })
}

fn path(root: &Path, above: &[Name], name: &Name) -> ApiPath {
    let names = above.iter().chain([name]);
    let mut path = root.to_path_buf();
    path.extend(names.map(|name| OsStr::from_bytes(name.as_bytes())));
    ApiPath(path)
}

/// Stands for what wants a name, down to the versions.
fn seen(members: &[(Name, Node)]) -> String {
    let mut hasher = blake3::Hasher::new();
    for (name, node) in members {
        hasher.update(&(name.as_bytes().len() as u64).to_le_bytes());
        hasher.update(name.as_bytes());
        match node {
            Node::Dir(dir) => drop(hasher.update(b"d").update(&dir.fid.0)),
            Node::File(file) => {
                for dot in file.dots() {
                    hasher.update(b"f").update(&dot.inc.0);
                    hasher.update(&dot.ctr.to_le_bytes());
                }
            }
        }
    }
    hasher.finalize().to_hex().chars().take(32).collect()
}

/// What wants the name that `shown` wants, if it is still what was seen, and the directory.
fn still(
    state: &State,
    above: &[Name],
    shown: &Name,
    seen_before: &str,
) -> Result<(Fid, Vec<(Name, Node)>), Unresolved> {
    let dir = dir_at(state, above).ok_or(Unresolved::NoConflict)?;
    let members = state.rivals(dir, shown.as_bytes());
    if members.is_empty() {
        return Err(Unresolved::NoConflict);
    }
    match seen(&members) == seen_before {
        true => Ok((dir, members)),
        false => Err(Unresolved::Changed),
    }
}

/// `shown` gets the name, the others go. Returns the name, and how many went.
fn keep_one(
    txn: &mut Txn<'_, '_>,
    above: &[Name],
    shown: &Name,
    seen_before: &str,
) -> Result<(Vec<Name>, u64), Unresolved> {
    let (dir, members) = still(txn.state(), above, shown, seen_before)?;
    let (losers, kept): (Vec<_>, Vec<_>) = members.iter().partition(|(name, _)| name != shown);
    let is_full = |node: &Node| match node {
        Node::Dir(node) => !txn.state().list(node.fid).is_empty(),
        Node::File(_) => false,
    };
    if losers.iter().any(|(_, node)| is_full(node)) {
        return Err(Unresolved::NotEmpty);
    }
    let (Some((base, _)), [(_, kept)]) = (members.first(), &kept[..]) else {
        return Err(Unresolved::NoConflict);
    };
    keep(txn, dir, base, kept)?;
    Ok((vec![base.clone()], losers.len() as u64))
}

/// Removes everything that wants `base` but `kept`, which gets the name.
fn keep(txn: &mut Txn<'_, '_>, dir: Fid, base: &Name, kept: &Node) -> Result<(), OpError> {
    // Names of siblings depend on the others, so each is found again.
    loop {
        let members = txn.state().rivals(dir, base.as_bytes());
        let mut rest = members.iter().skip(1);
        match rest.find(|(_, node)| !is_same(node, kept)) {
            Some((name, node)) => remove(txn, dir, name, node)?,
            None => break,
        }
    }
    let members = txn.state().rivals(dir, base.as_bytes());
    let [(_, main), (name, _)] = &members[..] else {
        return Ok(());
    };
    let (from, to) = ((dir, name.as_bytes()), (dir, base.as_bytes()));
    if is_same(main, kept) {
        return Ok(());
    }
    let is_alike = matches!(
        (main, kept),
        (Node::Dir(_), Node::Dir(_)) | (Node::File(_), Node::File(_))
    );
    if is_alike {
        return rename(txn, from, to, RenameMode::Replace);
    }
    remove(txn, dir, base, main)?;
    rename(txn, from, to, RenameMode::NoReplace)
}

/// Everything but the first gets a name of its own, which `tag` makes. Returns all names.
fn keep_all(
    txn: &mut Txn<'_, '_>,
    above: &[Name],
    shown: &Name,
    seen_before: &str,
    tag: &dyn Fn(&Node) -> String,
) -> Result<(Vec<Name>, u64), Unresolved> {
    let (dir, members) = still(txn.state(), above, shown, seen_before)?;
    let base = members.first().map(|(name, _)| name.clone());
    let base = base.ok_or(Unresolved::NoConflict)?;
    let mut kept = vec![base.clone()];
    loop {
        let members = txn.state().rivals(dir, base.as_bytes());
        let Some((shown, node)) = members.get(1) else {
            return Ok((kept, 0));
        };
        let tag = tag(node);
        let is_free = |own: &Name| txn.state().lookup(dir, own.as_bytes()).is_none();
        let own = (1..=BESIDE_MAX)
            .map(|number| beside(base.as_bytes(), &tag, number))
            .find(is_free)
            .ok_or(OpError::Exists)?;
        let (from, to) = ((dir, shown.as_bytes()), (dir, own.as_bytes()));
        rename(txn, from, to, RenameMode::NoReplace)?;
        kept.push(own);
    }
}

fn is_same(one: &Node, other: &Node) -> bool {
    match (one, other) {
        (Node::Dir(one), Node::Dir(other)) => one.fid == other.fid,
        (Node::File(one), Node::File(other)) => one.version.dot == other.version.dot,
        _ => false,
    }
}

fn remove(txn: &mut Txn<'_, '_>, dir: Fid, name: &Name, node: &Node) -> Result<(), OpError> {
    txn.apply(|state, by| {
        let changes = match node {
            Node::Dir(_) => state.rmdir(dir, name.as_bytes(), by)?,
            Node::File(_) => state.unlink(dir, name.as_bytes(), by)?,
        };
        Ok(((), changes))
    })
}

fn rename(
    txn: &mut Txn<'_, '_>,
    from: (Fid, &[u8]),
    to: (Fid, &[u8]),
    mode: RenameMode,
) -> Result<(), OpError> {
    txn.apply(|state, by| Ok(((), state.rename(from, to, mode, by)?)))
}

fn unresolved(why: &Unresolved, asked: &ApiPath) -> ApiError {
    let what = format!("{asked}: {why}");
    match why {
        Unresolved::NoConflict => ApiError::new(ErrorKind::NotFound, what)
            .hint("`ccbt conflicts` lists what is in conflict"),
        Unresolved::Changed => ApiError::new(ErrorKind::Refused, what)
            .hint("look at them again: `ccbt conflicts --show PATH`"),
        Unresolved::NotEmpty => ApiError::new(ErrorKind::Refused, what)
            .hint("keep both with --keep-both, or empty the directory first"),
        Unresolved::Refused(_) => ApiError::new(ErrorKind::Refused, what),
    }
}

impl From<VolumeError> for ApiError {
    fn from(error: VolumeError) -> Self {
        let kind = match error {
            VolumeError::NoSpace => ErrorKind::NoSpace,
            VolumeError::ReadOnly => ErrorKind::Refused,
            _ => ErrorKind::Io,
        };
        Self::new(kind, format_args!("the folder cannot be changed: {error}"))
    }
}
