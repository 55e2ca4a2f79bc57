//! The door to the folder: what a home needs of it, and how one change of the home becomes operations on its state.
//!
//! Every operation is based on the versions the path's base record stands for, never on what the folder shows by then:
//! what a peer has written meanwhile survives beside it (merge-rules O1).

use std::collections::{BTreeSet, HashMap};

use bytes::Bytes;

use super::base::{At, FileTime, HomeId, Row, RowKind, table_prefix};
use super::intent::Intent;
use super::origin::{self, Origin};
use super::watch::Waker;
use crate::folder::state::{
    Body, By, Change, Content, Dot, Fid, FileKind, FileNode, Inc, Key, Name, NewFile, Node,
    OpError, Redot, RenameMode, State, Target, Time, Xattrs, beside,
};
use crate::folder::work::Lenders;

/// First byte of the keys under which it is kept which directory of the folder a directory of the home is.
const NOTES: u8 = b'd';

/// Names tried for a directory whose own name is taken.
const BESIDE_MAX: usize = 999;

/// Why the folder could not keep a change. Nothing of it was kept.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    #[error("the disk with the folder's own files is full")]
    NoSpace,
    #[error("the folder's own files cannot be written: {0}")]
    Io(std::io::Error),
    #[error("the folder is closed or read-only")]
    Closed,
}

/// A part of a folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Extent {
    Everything,
    /// Directories: the names in them, and the attributes of what has those names.
    Dirs(BTreeSet<Fid>),
}

impl Extent {
    pub fn is_empty(&self) -> bool {
        matches!(self, Self::Dirs(dirs) if dirs.is_empty())
    }

    /// Both parts.
    pub fn add(&mut self, other: Self) {
        match (&mut *self, other) {
            (Self::Dirs(dirs), Self::Dirs(more)) => dirs.extend(more),
            _ => *self = Self::Everything,
        }
    }
}

/// A folder.
pub trait Ledger: Send + Sync {
    /// The rows of its table whose keys begin with `prefix`, in order.
    fn rows(&self, prefix: &[u8]) -> Vec<(Bytes, Bytes)>;

    /// One row of its table.
    fn row(&self, key: &[u8]) -> Option<Bytes>;

    /// What changed in the folder since the last call.
    fn take_changed(&self) -> Extent;

    /// Has `waker` wake when there is something to take again.
    fn wake_on_change(&self, waker: Waker);

    /// Has `lenders` asked which rows may be the base records of files that have a chunk.
    fn set_lenders(&self, lenders: Lenders);

    /// How often content has come that was missing; `waker` wakes for that too.
    fn arrivals(&self) -> u64;

    /// Lets `look` see the folder's state. It must be quick.
    fn read(&self, look: &mut dyn FnMut(&State));

    /// Makes every update that returned before the call durable.
    fn sync(&self) -> Result<(), LedgerError>;

    /// Runs `work`, called once, and keeps what it did: all of it, or nothing if it fails.
    fn update(&self, work: &mut dyn FnMut(&mut dyn Txn)) -> Result<(), LedgerError>;
}

/// An operation on a state.
pub type Operation<'o> = dyn FnMut(&mut State, By) -> Result<Vec<Change>, OpError> + 'o;

/// A change of a folder under way.
pub trait Txn {
    fn state(&self) -> &State;

    /// Does one operation on the state, and what follows from it.
    fn operate(&mut self, op: &mut Operation<'_>) -> Result<(), OpError>;

    fn row(&self, key: &[u8]) -> Option<Bytes>;

    /// Sets a row of the table, or removes it.
    fn set_row(&mut self, key: Bytes, row: Option<Bytes>);
}

/// A file or symlink as it is on disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct DiskFile {
    pub(super) kind: FileKind,
    pub(super) content: Bytes,
    pub(super) size: u64,
    pub(super) mtime: FileTime,
    pub(super) mode: u16,
    pub(super) xattrs: Xattrs,
}

/// Attributes that changed on disk.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Attributes {
    pub(super) mode: Option<u16>,
    pub(super) mtime: Option<FileTime>,
    pub(super) xattrs: Option<Xattrs>,
}

impl From<FileTime> for Time {
    fn from(time: FileTime) -> Self {
        Self {
            secs: time.secs,
            nanos: time.nanos,
        }
    }
}

/// The operations of one update.
pub(super) struct Apply<'t> {
    txn: &'t mut dyn Txn,
    /// Directories taken out of the way, and where they were shown.
    lifted: HashMap<HomeId, (Fid, Name)>,
}

impl<'t> Apply<'t> {
    pub(super) fn new(txn: &'t mut dyn Txn) -> Self {
        Self {
            txn,
            lifted: HashMap::new(),
        }
    }

    /// Keeps a base record.
    pub(super) fn keep(&mut self, at: &At, row: &Row) {
        self.txn.set_row(at.key(), Some(row.encode()));
    }

    /// Forgets a base record.
    pub(super) fn forget(&mut self, at: &At) {
        self.txn.set_row(at.key(), None);
    }

    /// Keeps where the displaced thing `name` was.
    pub(super) fn keep_origin(&mut self, name: &[u8], origin: &Origin) {
        self.txn.set_row(origin::key(name), Some(origin.encode()));
    }

    /// Something is at another place than its record says.
    pub(super) fn moved(&mut self, from: &At, to: &At, row: &Row) {
        self.forget(from);
        self.keep(to, row);
        if let Some((fid, _)) = self.noted(row.id) {
            self.note(row.id, fid, to);
        }
    }

    /// Forgets which directory of the folder a directory was.
    pub(super) fn forget_dir(&mut self, id: HomeId) {
        self.txn.set_row(note_key(id), None);
    }

    pub(super) fn mkdir(
        &mut self,
        at: &At,
        id: HomeId,
        mode: u16,
        xattrs: &Xattrs,
    ) -> Result<(), OpError> {
        let parent = self.dir(at.dir)?;
        let fid = self.dir_at(parent, &at.name, mode)?;
        self.note(id, fid, at);
        self.set_dir_attributes(fid, None, xattrs)
    }

    /// Takes directories out of the way of each other: wherever they go, they can go there now.
    pub(super) fn lift(&mut self, id: HomeId) {
        let name = format!(".ccbt-moving-{}", id.0);
        if let Some((from, old)) = self.shown_dir(id) {
            let to = (Fid::ROOT, name.as_bytes());
            let renamed = self.rename((from, old.as_bytes()), to, RenameMode::NoReplace);
            self.lifted
                .extend(renamed.is_ok().then_some((id, (from, old))));
        }
    }

    /// Follows a directory to its new place. If the folder cannot, it stays where it was, but what it is is known by the
    /// new place.
    pub(super) fn move_dir(&mut self, id: HomeId, to: &At, mode: u16) -> Result<(), OpError> {
        let fid = self.noted(id).map(|(fid, _)| fid);
        if let Some(fid) = fid {
            self.note(id, fid, to);
        }
        let moved = self.move_shown(id, to, mode);
        if moved.is_err() {
            self.put_back(id)?;
        }
        moved
    }

    fn move_shown(&mut self, id: HomeId, to: &At, mode: u16) -> Result<(), OpError> {
        let parent = self.dir(to.dir)?;
        let Some((from, old)) = self.shown_dir(id) else {
            let fid = self.dir_at(parent, &to.name, mode)?;
            self.note(id, fid, to);
            return Ok(());
        };
        let from = (from, old.as_bytes());
        match self.rename(from, (parent, &to.name), RenameMode::Replace) {
            Err(OpError::NotEmpty | OpError::Exists | OpError::NotDirectory) => {
                self.rename_beside(from, (parent, &to.name), "moved")
            }
            moved => moved,
        }
    }

    /// Puts a directory that was lifted back to where it was, or into the root if that is gone.
    fn put_back(&mut self, id: HomeId) -> Result<(), OpError> {
        let (Some((parent, name)), Some((from, lifted))) =
            (self.lifted.remove(&id), self.shown_dir(id))
        else {
            return Ok(());
        };
        let from = (from, lifted.as_bytes());
        let back = (parent, name.as_bytes());
        if self.rename(from, back, RenameMode::NoReplace).is_ok() {
            return Ok(());
        }
        self.rename_beside(from, (Fid::ROOT, name.as_bytes()), "moved")
    }

    /// Renames to the first name like `to` that is free: what peers have put at `to` stays.
    fn rename_beside(
        &mut self,
        from: (Fid, &[u8]),
        to: (Fid, &[u8]),
        tag: &str,
    ) -> Result<(), OpError> {
        for number in 1..=BESIDE_MAX {
            let name = beside(to.1, tag, number);
            match self.rename(from, (to.0, name.as_bytes()), RenameMode::NoReplace) {
                Err(OpError::Exists) => {}
                done => return done,
            }
        }
        Err(OpError::Exists)
    }

    fn rename(
        &mut self,
        from: (Fid, &[u8]),
        to: (Fid, &[u8]),
        mode: RenameMode,
    ) -> Result<(), OpError> {
        self.txn
            .operate(&mut |state, by| state.rename(from, to, mode, by))
    }

    /// Removes a directory, unless a peer put something into it meanwhile.
    pub(super) fn rmdir(&mut self, id: HomeId) -> Result<(), OpError> {
        if let Some((parent, name)) = self.shown_dir(id) {
            match self
                .txn
                .operate(&mut |state, by| state.rmdir(parent, name.as_bytes(), by))
            {
                Ok(()) | Err(OpError::NotEmpty) => {}
                Err(error) => return Err(error),
            }
        }
        self.forget_dir(id);
        Ok(())
    }

    /// Removes the versions `held`; what replaced them stays.
    pub(super) fn remove(&mut self, at: &At, held: &[u8]) -> Result<(), OpError> {
        let Some(fid) = self.noted_fid(at.dir) else {
            return Ok(());
        };
        match self.locate(fid, &at.name, &dots(held)) {
            Some((shown, _)) => self
                .txn
                .operate(&mut |state, by| state.unlink(fid, shown.as_bytes(), by)),
            None => Ok(()),
        }
    }

    /// Writes a file in place of the versions `held`, with their attributes but for what `change` says. Returns what it
    /// stands for now.
    pub(super) fn put(
        &mut self,
        at: &At,
        held: &[u8],
        file: &DiskFile,
        change: &Attributes,
    ) -> Result<Bytes, OpError> {
        let fid = self.dir(at.dir)?;
        let based_on = dots(held);
        let shown = match self.locate(fid, &at.name, &based_on) {
            Some((shown, node)) if node.version.kind == file.kind => {
                self.write(fid, &shown, None, file)?
            }
            Some((shown, _)) => {
                self.txn
                    .operate(&mut |state, by| state.unlink(fid, shown.as_bytes(), by))?;
                self.create_beside(fid, &at.name, file)?
            }
            None => match self.txn.state().lookup(fid, &at.name) {
                None => self.create(fid, &at.name, file)?,
                Some(Node::File(node)) if is_content(&node, file) => {
                    return Ok(encode_dots(node.dots()));
                }
                Some(Node::File(node)) if node.version.kind == file.kind => {
                    self.write(fid, &Name::from(&at.name[..]), Some(based_on), file)?
                }
                // Another kind of thing is there by now and keeps the name.
                Some(_) => self.create_beside(fid, &at.name, file)?,
            },
        };
        self.set_attributes(fid, &shown, change)
    }

    /// Changes attributes of the versions `held`, if they are still shown. Returns what they are known as now.
    pub(super) fn attributes(
        &mut self,
        at: &At,
        held: &Bytes,
        change: &Attributes,
    ) -> Result<Bytes, OpError> {
        let Some(fid) = self.noted_fid(at.dir) else {
            return Ok(held.clone());
        };
        match self.locate(fid, &at.name, &dots(held)) {
            Some((shown, _)) => self.set_attributes(fid, &shown, change),
            None => Ok(held.clone()),
        }
    }

    pub(super) fn dir_attributes(
        &mut self,
        id: HomeId,
        mode: Option<u16>,
        xattrs: &Xattrs,
    ) -> Result<(), OpError> {
        match self.noted_fid(id) {
            Some(fid) => self.set_dir_attributes(fid, mode, xattrs),
            None => Ok(()),
        }
    }

    fn set_dir_attributes(
        &mut self,
        fid: Fid,
        mode: Option<u16>,
        xattrs: &Xattrs,
    ) -> Result<(), OpError> {
        let Some(node) = self.txn.state().dir(fid) else {
            return Ok(());
        };
        let target = Target::Dir(fid);
        if let Some(mode) = mode.filter(|mode| *mode != node.mode) {
            self.txn
                .operate(&mut |state, by| state.chmod(target, mode, by))?;
        }
        self.set_xattrs(target, &node.xattrs, xattrs)
    }

    fn set_attributes(
        &mut self,
        fid: Fid,
        shown: &Name,
        change: &Attributes,
    ) -> Result<Bytes, OpError> {
        let target = Target::Name(fid, shown.as_bytes());
        let node = self.file(fid, shown)?;
        if let Some(mode) = change.mode.filter(|mode| *mode != node.mode) {
            self.txn
                .operate(&mut |state, by| state.chmod(target, mode, by))?;
        }
        if let Some(mtime) = change
            .mtime
            .map(Time::from)
            .filter(|mtime| *mtime != node.mtime)
        {
            self.txn
                .operate(&mut |state, by| state.set_times(target, mtime, by))?;
        }
        if let Some(xattrs) = &change.xattrs {
            self.set_xattrs(target, &node.xattrs, xattrs)?;
        }
        Ok(encode_dots(self.file(fid, shown)?.dots()))
    }

    fn set_xattrs(
        &mut self,
        target: Target<'_>,
        old: &Xattrs,
        new: &Xattrs,
    ) -> Result<(), OpError> {
        for name in old.keys().filter(|name| !new.contains_key(*name)) {
            self.txn
                .operate(&mut |state, by| state.remove_xattr(target, name, by))?;
        }
        for (name, value) in new
            .iter()
            .filter(|(name, value)| old.get(*name) != Some(value))
        {
            self.txn.operate(&mut |state, by| {
                state.set_xattr(target, name.clone(), value.clone(), by)
            })?;
        }
        Ok(())
    }

    fn create(&mut self, fid: Fid, name: &[u8], file: &DiskFile) -> Result<Name, OpError> {
        let new = NewFile {
            kind: file.kind,
            mode: file.mode,
            body: body(file),
        };
        self.txn
            .operate(&mut |state, by| state.create(fid, name, new.clone(), by))?;
        Ok(Name::from(name))
    }

    /// Creates a file at the first name like `name` that is free.
    fn create_beside(&mut self, fid: Fid, name: &[u8], file: &DiskFile) -> Result<Name, OpError> {
        let mut number = 0;
        loop {
            let free = match number {
                0 => Name::from(name),
                number => beside(name, "conflict", number),
            };
            match self.create(fid, free.as_bytes(), file) {
                Err(OpError::Exists) if number < BESIDE_MAX => number += 1,
                done => return done,
            }
        }
    }

    /// Writes in place of what is shown, or of `based_on` only.
    fn write(
        &mut self,
        fid: Fid,
        shown: &Name,
        based_on: Option<Vec<Dot>>,
        file: &DiskFile,
    ) -> Result<Name, OpError> {
        let base = self.txn.state().base(fid, shown.as_bytes());
        let mut base = base.ok_or(OpError::NotFound)?;
        if let Some(based_on) = based_on {
            base.dots = based_on;
        }
        self.txn
            .operate(&mut |state, by| state.write(&mut base, body(file), by))?;
        let written = base.dots.first().copied();
        let found = written.and_then(|dot| self.locate(fid, base.shown.as_bytes(), &[dot]));
        found.map(|(shown, _)| shown).ok_or(OpError::NotFound)
    }

    fn file(&self, fid: Fid, shown: &Name) -> Result<FileNode, OpError> {
        match self.txn.state().lookup(fid, shown.as_bytes()) {
            Some(Node::File(node)) => Ok(node),
            _ => Err(OpError::NotFound),
        }
    }

    /// Where one of the versions `dots` is shown in `fid`: at `name`, or beside it.
    fn locate(&self, fid: Fid, name: &[u8], dots: &[Dot]) -> Option<(Name, FileNode)> {
        let is_it = |node: &FileNode| node.dots().any(|dot| dots.contains(&dot));
        let state = self.txn.state();
        if dots.is_empty() {
            return None;
        }
        match state.lookup(fid, name) {
            Some(Node::File(node)) if is_it(&node) => return Some((Name::from(name), node)),
            None => return None,
            Some(_) => {}
        }
        // Only what shares its key with others has another name than its own. One operation may have given its dot to
        // versions under other keys too.
        let key = Key::file(fid, Name::from(name));
        state.entry(&key)?;
        state
            .list(fid)
            .into_iter()
            .find_map(|(shown, node)| match node {
                Node::File(node) if node.at == key && is_it(&node) => Some((shown, node)),
                _ => None,
            })
    }

    /// The directory of the folder that `id` is, brought back if peers have removed it.
    fn dir(&mut self, id: HomeId) -> Result<Fid, OpError> {
        // From `id` upwards, the directories that are not shown any more.
        let mut lost = Vec::new();
        let mut at = id;
        let mut fid = loop {
            if at == HomeId::ROOT {
                break Fid::ROOT;
            }
            let (fid, place) = self.noted(at).ok_or(OpError::NotFound)?;
            if self.txn.state().dir(fid).is_some() {
                break fid;
            }
            let above = place.dir;
            lost.push((at, place));
            at = above;
        };
        for (id, place) in lost.into_iter().rev() {
            fid = self.dir_at(fid, &place.name, 0o755)?;
            self.note(id, fid, &place);
        }
        Ok(fid)
    }

    /// The directory at a name, made if there is none.
    fn dir_at(&mut self, parent: Fid, name: &[u8], mode: u16) -> Result<Fid, OpError> {
        match self.txn.state().lookup(parent, name) {
            Some(Node::Dir(node)) => return Ok(node.fid),
            // A directory has the name, see merge-rules V4.
            Some(Node::File(_)) => {
                self.rename_beside((parent, name), (parent, name), "conflict")?;
            }
            None => {}
        }
        self.txn
            .operate(&mut |state, by| state.mkdir(parent, name, mode, by))?;
        match self.txn.state().lookup(parent, name) {
            Some(Node::Dir(node)) => Ok(node.fid),
            _ => Err(OpError::NotFound),
        }
    }

    /// Where the folder shows a directory of the home.
    fn shown_dir(&self, id: HomeId) -> Option<(Fid, Name)> {
        let (fid, _) = self.noted(id)?;
        self.txn.state().location(fid)
    }

    fn noted_fid(&self, id: HomeId) -> Option<Fid> {
        match id {
            HomeId::ROOT => Some(Fid::ROOT),
            id => self.noted(id).map(|(fid, _)| fid),
        }
    }

    /// `fid 8 | parent u64 | name`.
    fn noted(&self, id: HomeId) -> Option<(Fid, At)> {
        let note = self.txn.row(&note_key(id))?;
        let fid = Fid(*note.first_chunk()?);
        let dir = HomeId(u64::from_be_bytes(*note.get(8..)?.first_chunk()?));
        Some((
            fid,
            At {
                dir,
                name: note.slice(16..),
            },
        ))
    }

    /// Notes which directory of the folder a directory is.
    pub(super) fn note(&mut self, id: HomeId, fid: Fid, at: &At) {
        let note = [&fid.0[..], &at.dir.0.to_be_bytes(), &at.name].concat();
        self.txn.set_row(note_key(id), Some(note.into()));
    }
}

fn note_key(id: HomeId) -> Bytes {
    [&[NOTES][..], &id.0.to_be_bytes()].concat().into()
}

fn body(file: &DiskFile) -> Body {
    Body {
        content: Content::from(&file.content[..]),
        size: file.size,
        mtime: file.mtime.into(),
    }
}

fn is_content(node: &FileNode, file: &DiskFile) -> bool {
    node.version.kind == file.kind && *node.version.content.0 == file.content[..]
}

/// A row with the dots in it renamed; none if there is nothing to rename in it.
pub fn rename_row(redot: &Redot, row: &[u8]) -> Option<Bytes> {
    let bytes = Bytes::copy_from_slice(row);
    if let Ok(mut intent) = Intent::decode(&bytes) {
        let mut any = false;
        intent
            .rows_mut()
            .for_each(|row| any |= rename_held(redot, row));
        return any.then(|| intent.encode());
    }
    let mut row = Row::decode(&bytes).ok()?;
    rename_held(redot, &mut row).then(|| row.encode())
}

fn rename_held(redot: &Redot, row: &mut Row) -> bool {
    let renamed = encode_dots(dots(&row.held).into_iter().map(|dot| redot.dot(dot)));
    let any = renamed != row.held;
    row.held = renamed;
    any
}

/// Which directory of the folder a directory of the home is.
pub(super) fn noted_fid(ledger: &dyn Ledger, id: HomeId) -> Option<Fid> {
    Some(Fid(*ledger.row(&note_key(id))?.first_chunk()?))
}

/// Which directory of the home is which of the folder, as far as it is known.
pub(super) fn noted_dirs(ledger: &dyn Ledger) -> Vec<(HomeId, Fid)> {
    let notes = ledger.rows(&[NOTES]).into_iter();
    notes
        .filter_map(|(key, note)| {
            let id = u64::from_be_bytes(key.get(1..)?.try_into().ok()?);
            Some((HomeId(id), Fid(*note.first_chunk()?)))
        })
        .collect()
}

/// The content of the plain file that a row of the table is the base record of, with its size in bytes.
pub fn held_content(key: &Bytes, row: &Bytes) -> Option<(Bytes, u64)> {
    let is_record = key.starts_with(&table_prefix());
    let row = Row::decode(row).ok().filter(|_| is_record)?;
    match row.kind {
        RowKind::File { content } => Some((content, row.stamp.size)),
        RowKind::Dir | RowKind::Symlink { .. } => None,
    }
}

/// Dots as a base record holds them: `inc 8 | ctr u64` each.
pub(super) fn encode_dots(dots: impl Iterator<Item = Dot>) -> Bytes {
    let mut out = Vec::with_capacity(16);
    for dot in dots {
        out.extend_from_slice(&dot.inc.0);
        out.extend_from_slice(&dot.ctr.to_le_bytes());
    }
    out.into()
}

pub(super) fn dots(held: &[u8]) -> Vec<Dot> {
    let (dots, _) = held.as_chunks::<16>();
    dots.iter()
        .map(|dot| {
            let (mut inc, mut ctr) = ([0; 8], [0; 8]);
            inc.copy_from_slice(&dot[..8]);
            ctr.copy_from_slice(&dot[8..]);
            Dot {
                inc: Inc(inc),
                ctr: u64::from_le_bytes(ctr),
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::folder::home::memory::MemoryLedger;

    fn at(dir: HomeId, name: &'static [u8]) -> At {
        let name = Bytes::from_static(name);
        At { dir, name }
    }

    #[test]
    fn a_directory_that_cannot_go_where_it_should_is_put_back() {
        let ledger = MemoryLedger::new(Inc([1; 8]));
        let mut memory = ledger.lock();
        let mut apply = Apply::new(&mut *memory);
        let id = HomeId(5);
        let from = at(HomeId::ROOT, b"dir");
        apply.mkdir(&from, id, 0o755, &Xattrs::new()).unwrap();
        apply.lift(id);
        let nowhere = at(HomeId(99), b"dir");
        let moved = apply.move_dir(id, &nowhere, 0o755);
        assert!(matches!(moved, Err(OpError::NotFound)), "{moved:?}");
        let shown = memory.state.list(Fid::ROOT);
        let names: Vec<&[u8]> = shown.iter().map(|(name, _)| name.as_bytes()).collect();
        assert_eq!(names, [b"dir"]);
    }
}
