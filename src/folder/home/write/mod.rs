//! Writing the home: the few ways in which anything in it is changed for peers' edits. Each is a rename that can fail
//! or be undone, announced by a durable intent, checked afterwards against the base record, and never destroys a byte
//! that is not ours: what was there goes to our own directory.
//!
//! Files are written whole under a temporary name (`puts`), everything else is moved (`moves`) or is a directory
//! (`dirs`). `recover` finishes what a crash or an error left in between; nothing may scan the home before it has.

mod dirs;
mod moves;
mod puts;
mod recover;

use std::collections::BTreeSet;
use std::io;
use std::ops::Range;

use bytes::Bytes;

use super::base::{At, FileTime, HomeId, Row, RowKind, UNKNOWN_INO};
use super::fs::{HomeFs, RenameHow, TEMP_PREFIX};
use super::intent::{Intent, IntentId};
use super::ledger::{Ledger, LedgerError, Txn, dots};
use super::marker::OWN_DIR;
use super::origin::{Origin, Why};
use super::places::{DISPLACED, Places, is_hidden, own_name};
use super::plan::{Found, FoundKind, join};
use crate::folder::state::{FileKind, Xattrs, beside};

pub(super) use dirs::{Dress, NewDir};
pub(super) use moves::Move;
pub(super) use puts::{Partial, Put};

/// Of the name a displaced file had, at most so many bytes are kept: with its number it has to fit into 255.
const DISPLACED_NAME_MAX: usize = 220;

/// Names tried for what was edited while it was to be replaced.
const BESIDE_MAX: usize = 99;

/// Where the contents of files come from, and who is told what file has them now.
pub(super) trait Contents {
    /// Up to which byte all of a content is here, from byte `from` on, where a piece of it began or ended.
    fn here(&self, content: &Bytes, size: u64, from: u64) -> Result<u64, ContentError>;

    /// Hands a part of a content that is [here](Self::here) to `each`, in order.
    fn read(
        &self,
        content: &Bytes,
        size: u64,
        part: Range<u64>,
        each: &mut dyn FnMut(Piece<'_>) -> io::Result<()>,
    ) -> Result<(), ContentError>;

    /// Whether a file with the content `old` has most of the content `new` where that has it. Each with its size.
    fn are_alike(&self, old: (&Bytes, u64), new: (&Bytes, u64)) -> bool;

    /// Has a file hold a content, its end apart, which is the caller's: what the file holds already is proven to be it, the
    /// rest is written.
    fn patch(&self, content: &Bytes, size: u64, file: &mut dyn Patch) -> Result<(), ContentError>;

    /// File `id` has this content from now on.
    fn lend(&self, id: HomeId, content: &Bytes, size: u64);
}

/// A file that is being written and holds something already.
pub(super) trait Patch {
    /// Returns fewer bytes than asked for only at the end.
    fn read(&mut self, at: u64, buf: &mut [u8]) -> io::Result<usize>;

    fn write(&mut self, at: u64, bytes: &[u8]) -> io::Result<()>;

    /// Up to which byte there is nothing but zeros, from `at` on.
    fn data_from(&mut self, at: u64) -> io::Result<u64>;
}

/// A part of a content.
#[derive(Debug, Clone, Copy)]
pub(super) enum Piece<'b> {
    Bytes(&'b [u8]),
    /// So many zeros.
    Zeros(u64),
}

/// Why a content could not be read.
#[derive(Debug, thiserror::Error)]
pub(super) enum ContentError {
    /// Not all of it is here yet.
    #[error("parts of it are not here yet")]
    Missing,
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// A file or symlink as the folder shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Version {
    pub(super) kind: FileKind,
    pub(super) content: Bytes,
    pub(super) size: u64,
    pub(super) mtime: FileTime,
    /// Permission bits (0o777).
    pub(super) mode: u16,
    pub(super) xattrs: Xattrs,
    /// As a base record has it.
    pub(super) held: Bytes,
}

/// Why one thing was not done. It is tried again after the next scan, or later.
#[derive(Debug, thiserror::Error)]
pub(super) enum Miss {
    /// What is there is not what the records say: the user was faster.
    #[error("it changed meanwhile")]
    Changed,
    #[error("parts of it are not here yet")]
    Missing,
    /// The disk is full or read-only.
    #[error(transparent)]
    NoRoom(io::Error),
    /// The file system has no such names, or no such kind of thing.
    #[error("it cannot be here")]
    Unfit,
    #[error(transparent)]
    Io(io::Error),
}

impl From<ContentError> for Miss {
    fn from(error: ContentError) -> Self {
        match error {
            ContentError::Missing => Self::Missing,
            ContentError::Io(error) => error.into(),
        }
    }
}

impl From<io::Error> for Miss {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            kind if is_no_room(kind) => Self::NoRoom(error),
            io::ErrorKind::InvalidFilename => Self::Unfit,
            _ => Self::Io(error),
        }
    }
}

impl Miss {
    /// Whether it is the disk, and not only that things are not as they were thought to be.
    fn is_disk(&self) -> bool {
        !matches!(self, Self::Changed | Self::Missing)
    }
}

impl From<Miss> for io::Error {
    fn from(miss: Miss) -> Self {
        match miss {
            Miss::NoRoom(error) | Miss::Io(error) => error,
            Miss::Unfit => io::ErrorKind::InvalidFilename.into(),
            miss => Self::other(miss),
        }
    }
}

/// Whether an error says that nothing more can be written here, whatever it is.
fn is_no_room(kind: io::ErrorKind) -> bool {
    matches!(
        kind,
        io::ErrorKind::StorageFull
            | io::ErrorKind::QuotaExceeded
            | io::ErrorKind::ReadOnlyFilesystem
    )
}

/// What was done, for who has to follow it.
#[derive(Debug, Default)]
pub(super) struct Written {
    /// Files and symlinks that came into the home, or were replaced in it.
    pub(super) put: u64,
    /// Things that were renamed.
    pub(super) moved: u64,
    /// Files and directories that were taken out of the home.
    pub(super) removed: u64,
    pub(super) made_dirs: u64,
    /// Things whose attributes were set.
    pub(super) dressed: u64,
    /// Records more, or fewer if negative, of what the user sees.
    pub(super) entries: i64,
    /// Directories to be scanned, because something in them is not as recorded or was written too recently to be sure.
    pub(super) scan: BTreeSet<HomeId>,
}

impl Written {
    /// Things done.
    pub(super) fn count(&self) -> u64 {
        self.put + self.moved + self.removed + self.made_dirs + self.dressed
    }

    pub(super) fn is_nothing(&self) -> bool {
        self.count() == 0
    }
}

/// Writes into one home. Only one may exist at a time, and no scan beside it.
pub(super) struct Writer<'w, F: HomeFs> {
    pub(super) fs: &'w F,
    pub(super) ledger: &'w dyn Ledger,
    pub(super) contents: &'w dyn Contents,
    pub(super) places: &'w Places,
    /// Whether the directory at the first path holds nothing but what is not shared, by the rules for the second.
    pub(super) is_spent: &'w dyn Fn(&[u8], &[u8]) -> bool,
    /// The number the next new thing gets.
    pub(super) next_id: &'w mut u64,
    /// Reads the wall clock.
    pub(super) now: &'w dyn Fn() -> FileTime,
    pub(super) written: Written,
    /// What is being put together while its content arrives, from one writing to the next.
    pub(super) partial: &'w mut Option<Partial<F::File>>,
    /// It is still wanted.
    pub(super) is_partial_used: bool,
    /// An error left it unknown what is where: nothing more is done before `recover` has found out.
    pub(super) is_stuck: bool,
    /// The disk is full or read-only: what needs more of it is not tried again and again.
    pub(super) refused: Option<io::ErrorKind>,
}

impl<F: HomeFs> Writer<'_, F> {
    fn go_on(&self) -> Result<(), Miss> {
        match self.is_stuck {
            true => Err(Miss::Io(io::Error::other("an earlier error comes first"))),
            false => Ok(()),
        }
    }

    /// Looks whether anything can be written at all.
    pub(super) fn look_for_room(&mut self) {
        if self.fs.room().is_ok_and(|room| room.is_read_only) {
            self.refused = Some(io::ErrorKind::ReadOnlyFilesystem);
        }
    }

    /// Why nothing at all can be changed.
    fn read_only(&self) -> Option<Miss> {
        let kind = self.refused?;
        (kind == io::ErrorKind::ReadOnlyFilesystem).then(|| Miss::NoRoom(kind.into()))
    }

    /// Whether so many bytes more may fit.
    fn has_room(&self, bytes: u64) -> Result<(), Miss> {
        if let Some(kind) = self.refused {
            return Err(Miss::NoRoom(kind.into()));
        }
        match self.fs.room()?.free < bytes {
            true => Err(Miss::NoRoom(io::ErrorKind::StorageFull.into())),
            false => Ok(()),
        }
    }

    /// Remembers that there is no room.
    fn note_room<T>(&mut self, result: Result<T, Miss>) -> Result<T, Miss> {
        if let Err(Miss::NoRoom(error)) = &result {
            self.refused = Some(error.kind());
        }
        result
    }

    pub(super) fn fresh_id(&mut self) -> HomeId {
        let id = HomeId(*self.next_id);
        *self.next_id += 1;
        id
    }

    /// Opens a directory and proves that it is the one the records mean.
    pub(super) fn open(&self, dir: HomeId) -> Result<F::Dir, Miss> {
        if own_name(dir).is_some() {
            return Ok(self.open_own(dir)?);
        }
        let path = self.places.path(dir).ok_or(Miss::Changed)?;
        let open = self.fs.open_dir(&path).map_err(changed_if_gone)?;
        if dir == HomeId::ROOT {
            return Ok(open);
        }
        let row = self.places.get(dir).and_then(|at| self.row(&at));
        let row = row.filter(|row| row.id == dir);
        let ino = self.fs.stat_dir(&open)?.stamp.ino;
        match row.is_some_and(|row| row.stamp.same_ino(ino)) {
            true => Ok(open),
            false => Err(Miss::Changed),
        }
    }

    /// Opens a directory of our own, made when it is first needed.
    fn open_own(&self, dir: HomeId) -> io::Result<F::Dir> {
        let path = self.places.path(dir).ok_or(io::ErrorKind::NotFound)?;
        match self.fs.open_dir(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            opened => return opened,
        }
        let own = self.fs.open_dir(OWN_DIR.as_bytes())?;
        let name = own_name(dir).unwrap_or_default().as_bytes();
        self.fs.mkdir(&own, name)?;
        self.fs.sync_dir(&own)?;
        self.fs.open_dir(&path)
    }

    pub(super) fn row(&self, at: &At) -> Option<Row> {
        Row::decode(&self.ledger.row(&at.key())?).ok()
    }

    /// Proves that no record says what is at a name. One that something else has by now is for a scan to remove: what
    /// it stands for was the user's doing.
    fn check_unknown(&self, at: &At) -> Result<(), Miss> {
        match self.row(at) {
            Some(_) => Err(Miss::Changed),
            None => Ok(()),
        }
    }

    /// What is at a name, none if nothing is.
    fn look(&self, dir: &F::Dir, name: &[u8]) -> io::Result<Option<Found>> {
        match self.fs.stat(dir, name) {
            Ok(found) => Ok(Some(found)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Proves that what is at a name is what its record says.
    fn check(&self, dir: &F::Dir, name: &[u8], row: &Row) -> Result<(), Miss> {
        let found = self.fs.stat(dir, name).map_err(changed_if_gone)?;
        let is_same = match row.kind {
            RowKind::Dir => is_thing(row, &found),
            // One that was read too soon after a change may have changed since.
            _ => !row.unsure && row.stamp.is_same(&found.stamp) && found.mode == row.mode,
        };
        if is_same && row.is_of(found.kind) {
            Ok(())
        } else {
            Err(Miss::Changed)
        }
    }

    /// Writes down what is about to be done, durably.
    fn intend<'i>(
        &mut self,
        intents: impl Iterator<Item = &'i Intent>,
    ) -> Result<Vec<IntentId>, LedgerError> {
        let records: Vec<(IntentId, Bytes)> = intents
            .map(|intent| (IntentId(self.fresh_id().0), intent.encode()))
            .collect();
        if records.is_empty() {
            return Ok(Vec::new());
        }
        self.ledger.update(&mut |txn| {
            for (id, record) in &records {
                txn.set_row(id.key(), Some(record.clone()));
            }
        })?;
        self.ledger.sync()?;
        Ok(records.into_iter().map(|(id, _)| id).collect())
    }

    /// Where something that is displaced now was, and what took its place.
    fn origin(&self, at: &At, why: Why, by: Option<&Row>, old: &Row) -> Origin {
        let name = match is_hidden(at.dir) {
            true => shown_name(&at.name),
            false => &at.name,
        };
        let dir = (!is_hidden(at.dir))
            .then(|| self.places.path(at.dir))
            .flatten();
        let by = by.and_then(|row| dots(&row.held).first().copied());
        Origin {
            path: join(&dir.unwrap_or_default(), name),
            why,
            by: by.map(|dot| dot.inc),
            when: (self.now)().unix_nanos(),
            held: old.held.clone(),
        }
    }

    /// A file of a temporary name that no intent knows: something ended while it was written, or it is not ours.
    pub(super) fn sweep(&mut self, dir: HomeId, name: &[u8]) -> Result<(), Miss> {
        let open = self.open(dir)?;
        match self.look(&open, name)? {
            Some(found) if found.kind == FoundKind::Dir => Ok(self.drop_dir(&open, name)?),
            _ => Ok(self.keep_unrecorded(&open, name, name)?),
        }
    }

    /// Puts something that the user has had a hand in, and that no record says, where the next scan reads it: beside
    /// `shown` in the directory `to`. Among the displaced nobody would ever see what was made of it.
    fn keep_in_sight(
        &mut self,
        from: (&F::Dir, &[u8]),
        (to, id): (&F::Dir, HomeId),
        shown: &[u8],
    ) -> io::Result<()> {
        self.written.scan.insert(id);
        for number in 1..=BESIDE_MAX {
            let name = beside(shown, &format!("edited {number}"), 1);
            match self
                .fs
                .rename(from, (to, name.as_bytes()), RenameHow::NoReplace)
            {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                renamed => {
                    renamed?;
                    self.fs.sync_dir(to)?;
                    return self.fs.sync_dir(from.0);
                }
            }
        }
        self.keep_unrecorded(from.0, from.1, shown)
    }

    /// Puts a file of ours that nobody wants, or one that nobody knows, where the user finds it.
    fn keep_unrecorded(&mut self, dir: &F::Dir, name: &[u8], shown: &[u8]) -> io::Result<()> {
        let displaced = self.open_own(DISPLACED)?;
        let new = displaced_name(self.fresh_id(), shown);
        self.fs
            .rename((dir, name), (&displaced, &new), RenameHow::NoReplace)?;
        self.fs.sync_dir(&displaced)?;
        self.fs.sync_dir(dir)
    }
}

/// The name a file gets among the displaced.
pub(super) fn displaced_name(id: HomeId, name: &[u8]) -> Bytes {
    let name = &name[..name.len().min(DISPLACED_NAME_MAX)];
    [format!("{}-", id.0).as_bytes(), name].concat().into()
}

/// The name it had before.
pub(super) fn shown_name(name: &[u8]) -> &[u8] {
    let number = name.iter().position(|byte| *byte == b'-');
    number.map_or(name, |at| &name[at + 1..])
}

/// The name of a file on its way in.
fn temp_name(id: HomeId) -> Bytes {
    [TEMP_PREFIX, id.0.to_string().as_bytes()].concat().into()
}

/// A temporary name that is taken is for a scan to clear away.
fn changed_if_there(error: io::Error) -> Miss {
    match error.kind() {
        io::ErrorKind::AlreadyExists => Miss::Changed,
        _ => error.into(),
    }
}

fn changed_if_gone(error: io::Error) -> Miss {
    match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => Miss::Changed,
        _ => error.into(),
    }
}

/// Whether what was found is the very file or directory of a record, whatever is in it. Where inodes say nothing, a file
/// with the record's size and time is.
fn is_thing(row: &Row, found: &Found) -> bool {
    let is_known = row.stamp.ino != UNKNOWN_INO && found.stamp.ino != UNKNOWN_INO;
    let is_it = match is_known || row.is_dir() {
        true => row.stamp.same_ino(found.stamp.ino),
        false => row.stamp.same_content(&found.stamp),
    };
    is_it && row.is_of(found.kind)
}

/// Whether it is that thing and, as far as can be told after a rename, nobody has written to it.
fn is_untouched(row: &Row, found: &Found) -> bool {
    is_thing(row, found) && (row.is_dir() || row.stamp.same_content(&found.stamp))
}

impl Row {
    fn is_of(&self, kind: FoundKind) -> bool {
        match self.kind {
            RowKind::Dir => kind == FoundKind::Dir,
            RowKind::File { .. } => kind == FoundKind::File,
            RowKind::Symlink { .. } => kind == FoundKind::Symlink,
        }
    }
}

/// Removes intents that are settled.
fn settle(txn: &mut dyn Txn, intents: &[IntentId]) {
    for intent in intents {
        txn.set_row(intent.key(), None);
    }
}
