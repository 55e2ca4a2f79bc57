//! Putting versions into the home: whole and durable under a temporary name first, then in place by one rename. What was
//! there comes out under the temporary name, is checked, and goes among the displaced.

use std::collections::BTreeMap;
use std::io;

use bytes::Bytes;

use super::super::base::{At, HomeId, Row, RowKind, is_unsure};
use super::super::fs::{Attributes, HomeFs, Kept, RenameHow};
use super::super::intent::{Intent, IntentId};
use super::super::ledger::{Apply, LedgerError};
use super::super::origin::Why;
use super::super::places::DISPLACED;
use super::super::plan::Found;
use super::{
    Miss, Patch, Piece, Version, Writer, changed_if_there, displaced_name, is_no_room, is_thing,
    is_untouched, settle, temp_name,
};
use crate::folder::state::{Fid, FileKind};

/// Files, and bytes of them, that are made durable and announced together. Each is open until then.
const BATCH_FILES: usize = 256;
const BATCH_BYTES: u64 = 64 << 20;

/// A version that is to be at a place.
#[derive(Debug, Clone)]
pub(in super::super) struct Put {
    pub(in super::super) at: At,
    pub(in super::super) version: Version,
    /// The base record of what is there now and is to be replaced.
    pub(in super::super) old: Option<Row>,
}

/// A file that is put together while its content arrives. It has no name, so nobody sees it and it leaves nothing behind.
#[derive(Debug)]
pub(in super::super) struct Partial<F> {
    content: Bytes,
    size: u64,
    file: F,
    /// Bytes that it has, from its start.
    done: u64,
}

impl<F> Partial<F> {
    fn is_of(&self, version: &Version) -> bool {
        (&self.content, self.size) == (&version.content, version.size)
    }
}

/// The new file, whole and durable, or the new directory, under its temporary name.
#[derive(Debug)]
pub(super) struct Staged {
    pub(super) at: At,
    pub(super) temp: Bytes,
    pub(super) row: Row,
    /// For a new directory, which one of the folder it is.
    pub(super) dir: Option<Fid>,
    pub(super) old: Option<(Row, Bytes)>,
}

/// What came of putting it in place.
enum Outcome {
    Done(Box<Done>),
    /// Nothing of ours is at the place, and why.
    Undone(Miss),
}

/// It is in place.
struct Done {
    at: At,
    row: Row,
    dir: Option<Fid>,
    displaced: Option<(Row, Bytes)>,
    /// Nothing with a record was at the place before.
    is_new: bool,
}

impl<F: HomeFs> Writer<'_, F> {
    /// Puts versions in place. Returns for each whether it is.
    pub(in super::super) fn put(
        &mut self,
        puts: &[Put],
    ) -> Result<Vec<Result<(), Miss>>, LedgerError> {
        let mut results = Vec::with_capacity(puts.len());
        let mut left = puts;
        while !left.is_empty() {
            let mut bytes = 0;
            let fits = left.iter().take(BATCH_FILES).take_while(|put| {
                let has_room = bytes < BATCH_BYTES;
                bytes += put.version.size;
                has_room
            });
            let (batch, rest) = left.split_at(fits.count());
            left = rest;
            results.append(&mut self.put_batch(batch)?);
        }
        Ok(results)
    }

    fn put_batch(&mut self, batch: &[Put]) -> Result<Vec<Result<(), Miss>>, LedgerError> {
        let mut results = Vec::with_capacity(batch.len());
        let (mut staged, mut files) = (Vec::new(), Vec::new());
        for put in batch {
            let result = self.go_on().and_then(|()| self.stage(put));
            if matches!(result, Err(Miss::Changed)) {
                self.written.scan.insert(put.at.dir);
            }
            results.push(result.map(|(one, file)| {
                staged.push((one, results.len()));
                files.extend(file);
            }));
        }
        let synced = self.fs.sync_files(&files);
        drop(files);
        if let Err(error) = synced {
            // Which of them it is about is not known.
            for (one, index) in staged {
                self.drop_staged(&one);
                let miss = match is_no_room(error.kind()) {
                    true => Miss::NoRoom(error.kind().into()),
                    false => Miss::Io(io::Error::new(error.kind(), error.to_string())),
                };
                if let Err(miss) = self.note_room::<()>(Err(miss)) {
                    note(&mut results, index, miss);
                }
            }
            return Ok(results);
        }
        self.place_all(&staged, &mut results)?;
        Ok(results)
    }

    /// Puts what is staged in place. The number with each is where its result goes.
    pub(super) fn place_all(
        &mut self,
        staged: &[(Staged, usize)],
        results: &mut [Result<(), Miss>],
    ) -> Result<(), LedgerError> {
        let intents: Vec<Intent> = staged.iter().map(|(one, _)| one.intent()).collect();
        let ids = match self.intend(intents.iter()) {
            Ok(ids) => ids,
            Err(error) => {
                staged.iter().for_each(|(one, _)| self.drop_staged(one));
                return Err(error);
            }
        };
        let (mut done, mut undone) = (Vec::new(), Vec::new());
        for ((one, index), id) in staged.iter().zip(ids) {
            match self.place(one) {
                Ok(Outcome::Done(one)) => done.push((one, id)),
                Ok(Outcome::Undone(miss)) => {
                    if !miss.is_disk() {
                        self.written.scan.insert(one.at.dir);
                    }
                    undone.push(id);
                    note(results, *index, miss);
                }
                Err(error) => {
                    self.is_stuck = true;
                    note(results, *index, Miss::Io(error));
                }
            }
        }
        self.keep_puts(&done, &undone)
    }

    /// Writes the new file; it is not durable yet. Nothing the user sees changes.
    fn stage(&mut self, put: &Put) -> Result<(Staged, Option<F::File>), Miss> {
        let is_assembled = put.version.kind == FileKind::File && self.is_assembled(put);
        if !is_assembled {
            self.check_here(put)?;
        }
        let dir = self.open(put.at.dir)?;
        match &put.old {
            Some(old) => self.check(&dir, &put.at.name, old)?,
            None => self.check_unknown(&put.at)?,
        }
        let partial = self.partial.as_ref();
        let done = partial.filter(|partial| partial.is_of(&put.version));
        self.has_room(put.version.size - done.map_or(0, |partial| partial.done))?;
        let id = self.fresh_id();
        let temp = temp_name(id);
        let written = self.write(&dir, &temp, put, is_assembled);
        let (kept, file) = self.note_room(written)?;
        let content = put.version.content.clone();
        let row = Row {
            id,
            stamp: kept.found.stamp,
            mode: kept.found.mode,
            xattrs: kept.xattrs,
            unsure: is_unsure(kept.found.stamp.mtime, (self.now)()),
            kind: match put.version.kind {
                FileKind::File => RowKind::File { content },
                FileKind::Symlink => RowKind::Symlink { target: content },
            },
            held: put.version.held.clone(),
        };
        let old = put.old.clone();
        let staged = Staged {
            at: put.at.clone(),
            temp,
            row,
            dir: None,
            old: old.map(|old| (old, displaced_name(self.fresh_id(), &put.at.name))),
        };
        Ok((staged, file))
    }

    fn write(
        &mut self,
        dir: &F::Dir,
        temp: &[u8],
        put: &Put,
        is_assembled: bool,
    ) -> Result<(Kept, Option<F::File>), Miss> {
        let version = &put.version;
        if version.kind == FileKind::Symlink {
            let made = self.fs.symlink(dir, temp, &version.content);
            made.map_err(|error| match error.kind() {
                io::ErrorKind::Unsupported => Miss::Unfit,
                _ => changed_if_there(error),
            })?;
            let found = self.fs.stat(dir, temp)?;
            return Ok((Kept { found, xattrs: 0 }, None));
        }
        let filled = match is_assembled {
            true => {
                let mut file = self.assemble(dir, version)?;
                let named = self.fs.give_name(&file, dir, temp);
                named.map_err(changed_if_there)?;
                let kept = self.fs.finish(&mut file, &version.attributes());
                kept.map(|kept| (kept, file)).map_err(Miss::from)
            }
            false => {
                let file = self.fs.create(dir, temp).map_err(changed_if_there)?;
                self.fill(dir, file, put)
            }
        };
        let filled = filled.inspect_err(|_| {
            // It has no intent yet, so a file that stays here is swept by the next scan.
            let _left = self.fs.unlink(dir, temp);
        });
        filled.map(|(kept, file)| (kept, Some(file)))
    }

    /// Whether a file is put together while its content arrives: one at a time, if that is worth it.
    fn is_assembled(&self, put: &Put) -> bool {
        if let Some(partial) = &*self.partial {
            return partial.is_of(&put.version);
        }
        let may_be_clone = put.old.is_some() && self.fs.clones_from().is_some();
        let least = self.fs.nameless_from().filter(|_| !may_be_clone);
        least.is_some_and(|least| put.version.size >= least) && self.check_here(put).is_err()
    }

    /// Proves that all of a content is here.
    fn check_here(&self, Put { version, .. }: &Put) -> Result<(), Miss> {
        let is_file = version.kind == FileKind::File;
        match is_file && self.contents.here(&version.content, version.size, 0)? < version.size {
            true => Err(Miss::Missing),
            false => Ok(()),
        }
    }

    /// Goes on to put a file together, as far as its content is here. Returns it once it is whole.
    fn assemble(&mut self, dir: &F::Dir, version: &Version) -> Result<F::File, Miss> {
        let Version { content, size, .. } = version;
        let mut partial = match self.partial.take() {
            Some(partial) => partial,
            None => Partial {
                content: content.clone(),
                size: *size,
                file: self.fs.create_nameless(dir)?,
                done: 0,
            },
        };
        let here = self.contents.here(content, *size, partial.done)?;
        let file = &mut partial.file;
        let append = &mut |piece: Piece<'_>| self.append(file, piece);
        self.contents
            .read(content, *size, partial.done..here, append)?;
        partial.done = here;
        self.is_partial_used = true;
        if here == *size {
            return Ok(partial.file);
        }
        *self.partial = Some(partial);
        Err(Miss::Missing)
    }

    /// What nobody has asked for any more is not put together.
    pub(in super::super) fn drop_unused(&mut self) {
        if !self.is_partial_used {
            *self.partial = None;
        }
    }

    fn append(&self, file: &mut F::File, piece: Piece<'_>) -> io::Result<()> {
        match piece {
            Piece::Bytes(bytes) => self.fs.append(file, bytes),
            Piece::Zeros(bytes) => self.fs.skip(file, bytes),
        }
    }

    fn fill(&self, dir: &F::Dir, mut file: F::File, put: &Put) -> Result<(Kept, F::File), Miss> {
        let (content, size) = (&put.version.content, put.version.size);
        let is_like = self.begin_as_clone(dir, &mut file, put)?;
        let filled = match is_like {
            true => {
                let (fs, file) = (self.fs, &mut file);
                self.contents
                    .patch(content, size, &mut Patched { fs, file })
            }
            false => {
                let append = &mut |piece: Piece<'_>| self.append(&mut file, piece);
                self.contents.read(content, size, 0..size, append)
            }
        };
        filled?;
        if is_like {
            self.fs.resize(&mut file, size)?;
        }
        let kept = self.fs.finish(&mut file, &put.version.attributes())?;
        Ok((kept, file))
    }

    /// Has a new file share the blocks of the one it is to replace, if it needs few others. Somebody may be writing to that
    /// one: of what is in the new file nothing is known by this.
    fn begin_as_clone(&self, dir: &F::Dir, file: &mut F::File, put: &Put) -> io::Result<bool> {
        let (Some(old), Some(least)) = (&put.old, self.fs.clones_from()) else {
            return Ok(false);
        };
        let RowKind::File { content } = &old.kind else {
            return Ok(false);
        };
        let new = (&put.version.content, put.version.size);
        let is_worth_it =
            old.stamp.size >= least && self.contents.are_alike((content, old.stamp.size), new);
        match is_worth_it {
            true => self.fs.share_blocks(dir, &put.at.name, file),
            false => Ok(false),
        }
    }

    /// Puts the new file in place.
    fn place(&mut self, one: &Staged) -> io::Result<Outcome> {
        let dir = match self.open(one.at.dir) {
            Ok(dir) => dir,
            Err(miss) => return undone(miss),
        };
        let how = match one.old {
            Some(_) => RenameHow::Exchange,
            None => RenameHow::NoReplace,
        };
        if let Some((old, _)) = &one.old {
            // The other files of the batch took their time, and after the rename its ctime says nothing any more.
            if let Err(miss) = self.check(&dir, &one.at.name, old) {
                if !miss.is_disk() {
                    self.discard(&dir, one, false)?;
                }
                return undone(miss);
            }
        }
        match self.fs.rename((&dir, &one.temp), (&dir, &one.at.name), how) {
            Err(error) if is_refusal(&error) => self.resolve(one, &dir),
            // Refused before anything was done.
            Err(error) if !matches!(Miss::from(io::Error::from(error.kind())), Miss::Io(_)) => {
                match self.resolve(one, &dir)? {
                    Outcome::Undone(_) => Ok(Outcome::Undone(error.into())),
                    done => Ok(done),
                }
            }
            Err(error) => Err(error),
            Ok(()) => self.resolve(one, &dir),
        }
    }

    /// Finds out from what is where whether the new file is in place, and clears up.
    fn resolve(&mut self, one: &Staged, dir: &F::Dir) -> io::Result<Outcome> {
        let there = self.look(dir, &one.at.name)?;
        let temp = self.look(dir, &one.temp)?;
        if temp.is_some_and(|temp| is_thing(&one.row, &temp)) {
            // One that was to be exchanged may have been in sight, and open, before it came back.
            self.discard(dir, one, one.old.is_some())?;
            return Ok(Outcome::Undone(Miss::Changed));
        }
        let is_there = there.is_some_and(|there| is_thing(&one.row, &there));
        let Some((old, name)) = &one.old else {
            return Ok(self.outcome(one, is_there, there, None));
        };
        if let Some(temp) = temp {
            if !is_untouched(old, &temp) {
                self.give_back(dir, one)?;
                return Ok(Outcome::Undone(Miss::Changed));
            }
            let displaced = self.open_own(DISPLACED)?;
            let names = ((dir, &one.temp[..]), (&displaced, &name[..]));
            match self.fs.rename(names.0, names.1, RenameHow::NoReplace) {
                // A crash had the number of the name forgotten.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                    self.keep_unrecorded(dir, &one.temp, &one.at.name)?;
                }
                renamed => renamed?,
            }
        }
        let displaced = self.open_own(DISPLACED)?;
        let out = self.look(&displaced, name)?;
        let out = out.filter(|out| is_thing(old, out)).map(|out| {
            let mut row = old.clone();
            row.stamp.ctime = out.stamp.ctime;
            (row, name.clone())
        });
        let is_done = is_there || out.is_some();
        Ok(self.outcome(one, is_done, there, out))
    }

    /// What the user made of it since is an edit of what was put there.
    fn outcome(
        &self,
        one: &Staged,
        is_done: bool,
        there: Option<Found>,
        displaced: Option<(Row, Bytes)>,
    ) -> Outcome {
        if !is_done {
            return Outcome::Undone(Miss::Changed);
        }
        let mut row = one.row.clone();
        if let Some(there) = there.filter(|there| is_untouched(&row, there)) {
            row.stamp.ctime = there.stamp.ctime;
        }
        Outcome::Done(Box::new(Done {
            at: one.at.clone(),
            row,
            dir: one.dir,
            displaced,
            is_new: one.old.is_none(),
        }))
    }

    /// The file swapped out was edited behind us: it goes back to its name. If the user has replaced what we had put
    /// there, that stays, and what was edited before comes beside it.
    fn give_back(&mut self, dir: &F::Dir, one: &Staged) -> io::Result<()> {
        let (temp, name) = ((dir, &one.temp[..]), (dir, &one.at.name[..]));
        match self.fs.rename(temp, name, RenameHow::Exchange) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                match self.fs.rename(temp, name, RenameHow::NoReplace) {
                    Err(error) if is_refusal(&error) => {}
                    renamed => {
                        renamed?;
                        // Without its intent, a crash must not bring the temporary name back.
                        return self.fs.sync_dir(dir);
                    }
                }
            }
            swapped => {
                swapped?;
                let out = self.look(dir, &one.temp)?;
                if out.is_some_and(|out| is_untouched(&one.row, &out)) {
                    // The user has seen it for a moment, and may have it open.
                    return self.keep_unrecorded(dir, &one.temp, &one.at.name);
                }
                match self.fs.rename(temp, name, RenameHow::Exchange) {
                    Err(error) if !is_refusal(&error) => return Err(error),
                    _ => {}
                }
            }
        }
        self.keep_in_sight(temp, (dir, one.at.dir), &one.at.name)
    }

    /// Takes the temporary file or directory away: removed if nobody can have seen it, and beside its name if somebody
    /// has had a hand in it.
    fn discard(&mut self, dir: &F::Dir, one: &Staged, is_seen: bool) -> io::Result<()> {
        let temp = (dir, &one.temp[..]);
        if one.row.is_dir() {
            return match self.fs.rmdir(dir, &one.temp) {
                Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => {
                    self.keep_in_sight(temp, (dir, one.at.dir), &one.at.name)
                }
                removed => removed,
            };
        }
        let found = self.look(dir, &one.temp)?;
        if !found.is_some_and(|found| is_untouched(&one.row, &found)) {
            return self.keep_in_sight(temp, (dir, one.at.dir), &one.at.name);
        }
        match is_seen {
            true => self.keep_unrecorded(dir, &one.temp, &one.at.name),
            false => self.fs.unlink(dir, &one.temp),
        }
    }

    /// Nothing was announced: the temporary file goes.
    fn drop_staged(&self, one: &Staged) {
        if let Ok(dir) = self.open(one.at.dir) {
            let _left = match one.row.is_dir() {
                true => self.fs.rmdir(&dir, &one.temp),
                false => self.fs.unlink(&dir, &one.temp),
            };
        }
    }

    /// Makes the names durable, then the records.
    fn keep_puts(
        &mut self,
        done: &[(Box<Done>, IntentId)],
        undone: &[IntentId],
    ) -> Result<(), LedgerError> {
        let mut dirs = BTreeMap::new();
        let mut durable = Vec::new();
        for (one, id) in done {
            let own = one.displaced.is_some().then_some(DISPLACED);
            let dirs_of: Vec<HomeId> = own.into_iter().chain([one.at.dir]).collect();
            match self.synced(&mut dirs, &dirs_of) {
                true => durable.push((one, *id)),
                false => self.is_stuck = true,
            }
        }
        self.ledger.update(&mut |txn| {
            settle(txn, undone);
            for (one, id) in &durable {
                settle(txn, &[*id]);
                let mut apply = Apply::new(txn);
                apply.keep(&one.at, &one.row);
                if let Some(fid) = one.dir {
                    apply.note(one.row.id, fid, &one.at);
                }
                if let Some((row, name)) = &one.displaced {
                    apply.keep(&displaced_at(name), row);
                    let origin = self.origin(&one.at, Why::Replaced, Some(&one.row), row);
                    apply.keep_origin(name, &origin);
                }
            }
        })?;
        for (one, _) in durable {
            self.follow_put(one);
        }
        Ok(())
    }

    fn follow_put(&mut self, one: &Done) {
        if let Some((row, name)) = &one.displaced {
            self.places.set(row.id, Some(displaced_at(name)));
        }
        self.written.entries += i64::from(one.is_new);
        self.places.set(one.row.id, Some(one.at.clone()));
        if one.row.unsure {
            self.written.scan.insert(one.at.dir);
        }
        if one.row.is_dir() {
            // It is watched from when it is first listed.
            self.written.scan.insert(one.row.id);
        }
        if let RowKind::File { content } = &one.row.kind {
            self.contents.lend(one.row.id, content, one.row.stamp.size);
        }
        match one.row.is_dir() {
            true => self.written.made_dirs += 1,
            false => self.written.put += 1,
        }
    }

    /// Settles the intent of a put after a crash or an error. Returns whether it is settled.
    pub(super) fn recover_put(&mut self, one: &Staged, id: IntentId) -> Result<bool, LedgerError> {
        let outcome = match self.open(one.at.dir) {
            Ok(dir) => self.resolve(one, &dir),
            // The user has moved the directory with what is in it: a scan finds it.
            Err(miss) => undone(miss),
        };
        match outcome {
            Ok(Outcome::Done(done)) => self.keep_puts(&[(done, id)], &[])?,
            Ok(Outcome::Undone(_)) => {
                self.written.scan.insert(one.at.dir);
                self.keep_puts(&[], &[id])?;
            }
            Err(error) => {
                tracing::warn!(%error, "a file cannot be put in place yet");
                return Ok(false);
            }
        }
        Ok(self.ledger.row(&id.key()).is_none())
    }
}

/// A file that was begun as a clone.
struct Patched<'f, F: HomeFs> {
    fs: &'f F,
    file: &'f mut F::File,
}

impl<F: HomeFs> Patch for Patched<'_, F> {
    fn read(&mut self, at: u64, buf: &mut [u8]) -> io::Result<usize> {
        self.fs.read_at(self.file, at, buf)
    }

    fn write(&mut self, at: u64, bytes: &[u8]) -> io::Result<()> {
        self.fs.write_at(self.file, at, bytes)
    }

    fn data_from(&mut self, at: u64) -> io::Result<u64> {
        self.fs.data_from(self.file, at)
    }
}

impl Staged {
    fn intent(&self) -> Intent {
        Intent::Put {
            at: self.at.clone(),
            temp: self.temp.clone(),
            row: self.row.clone(),
            dir: self.dir,
            old: self.old.clone(),
        }
    }
}

impl Version {
    pub(super) fn attributes(&self) -> Attributes {
        Attributes {
            mode: Some(self.mode),
            mtime: Some(self.mtime),
            xattrs: Some(self.xattrs.clone()),
        }
    }
}

/// It is not in place; an error of the disk leaves that open.
fn undone(miss: Miss) -> io::Result<Outcome> {
    match miss.is_disk() {
        true => Err(miss.into()),
        false => Ok(Outcome::Undone(miss)),
    }
}

fn note(results: &mut [Result<(), Miss>], index: usize, miss: Miss) {
    if let Some(result) = results.get_mut(index) {
        *result = Err(miss);
    }
}

fn displaced_at(name: &Bytes) -> At {
    At {
        dir: DISPLACED,
        name: name.clone(),
    }
}

/// Whether a rename was refused because of what is at the names, so that nothing happened.
fn is_refusal(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::AlreadyExists | io::ErrorKind::NotFound
    )
}
