//! Directories, and attributes of what is there already.

use std::collections::{BTreeMap, HashSet};
use std::io;

use bytes::Bytes;

use super::super::base::{At, HomeId, Row, RowKind};
use super::super::fs::{Attributes, HomeFs, RenameHow};
use super::super::intent::{Intent, IntentId};
use super::super::ledger::{Apply, LedgerError};
use super::super::places::DISPLACED;
use super::super::plan::join;
use super::puts::Staged;
use super::{Miss, Writer, changed_if_gone, changed_if_there, displaced_name, settle, temp_name};
use crate::folder::state::{Fid, Xattrs};

/// Directories that are announced together.
const BATCH: usize = 256;

/// A directory to be made.
#[derive(Debug, Clone)]
pub(in super::super) struct NewDir {
    pub(in super::super) at: At,
    pub(in super::super) fid: Fid,
    pub(in super::super) mode: u16,
    pub(in super::super) xattrs: Xattrs,
}

/// Attributes a thing is to have.
#[derive(Debug, Clone)]
pub(in super::super) struct Dress {
    pub(in super::super) at: At,
    pub(in super::super) row: Row,
    pub(in super::super) attributes: Attributes,
    /// What it stands for.
    pub(in super::super) held: Bytes,
}

impl<F: HomeFs> Writer<'_, F> {
    /// Makes directories, none of them in another. Returns for each its number.
    pub(in super::super) fn mkdir(
        &mut self,
        dirs: &[NewDir],
    ) -> Result<Vec<Result<HomeId, Miss>>, LedgerError> {
        let mut ids = Vec::with_capacity(dirs.len());
        for batch in dirs.chunks(BATCH) {
            let (mut results, mut staged) = (Vec::with_capacity(batch.len()), Vec::new());
            for new in batch {
                let result = self.go_on().and_then(|()| self.stage_dir(new));
                results.push(result.map(|one| staged.push((one, results.len()))));
            }
            self.place_all(&staged, &mut results)?;
            let mut made = staged.iter().map(|(one, index)| (*index, one.row.id));
            let mut next = made.next();
            for (index, (result, new)) in results.into_iter().zip(batch).enumerate() {
                let id = next.filter(|(at, _)| *at == index).map(|(_, id)| id);
                if id.is_some() {
                    next = made.next();
                }
                if matches!(result, Err(Miss::Changed)) {
                    self.written.scan.insert(new.at.dir);
                }
                ids.push(result.and_then(|()| id.ok_or(Miss::Changed)));
            }
        }
        Ok(ids)
    }

    /// Makes the directory under a temporary name. Nothing the user sees changes.
    fn stage_dir(&mut self, new: &NewDir) -> Result<Staged, Miss> {
        let parent = self.open(new.at.dir)?;
        self.check_unknown(&new.at)?;
        let id = self.fresh_id();
        let temp = temp_name(id);
        self.has_room(0)?;
        let made = self.fs.mkdir(&parent, &temp).map_err(changed_if_there);
        self.note_room(made)?;
        let attributes = Attributes {
            mode: Some(new.mode),
            mtime: None,
            xattrs: (!new.xattrs.is_empty()).then(|| new.xattrs.clone()),
        };
        let dressed = self.fs.set_attributes(&parent, &temp, &attributes);
        let kept = match dressed {
            Ok(kept) => kept,
            Err(error) => {
                // It has no intent yet, so one that stays here is swept by the next scan.
                let _left = self.fs.rmdir(&parent, &temp);
                return Err(error.into());
            }
        };
        Ok(Staged {
            at: new.at.clone(),
            temp,
            row: Row {
                id,
                stamp: kept.found.stamp,
                mode: kept.found.mode,
                xattrs: kept.xattrs,
                unsure: false,
                kind: RowKind::Dir,
                held: Bytes::new(),
            },
            dir: Some(new.fid),
            old: None,
        })
    }

    /// A directory of a temporary name goes; what somebody has put into it does not.
    pub(super) fn drop_dir(&mut self, dir: &F::Dir, temp: &[u8]) -> io::Result<()> {
        match self.fs.rmdir(dir, temp) {
            Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => {
                self.keep_unrecorded(dir, temp, temp)
            }
            removed => removed,
        }
    }

    /// Removes directories, a child before its parent. One that is not empty stays.
    pub(in super::super) fn rmdir(&mut self, dirs: &[(At, Row)]) -> Result<u64, LedgerError> {
        let mut gone = Vec::new();
        for (at, row) in dirs {
            match self.remove_dir(at, row) {
                Ok(()) => gone.push((at, row)),
                Err(miss) => {
                    tracing::debug!(error = %miss, "a directory is not removed");
                    self.written.scan.extend([at.dir, row.id]);
                }
            }
        }
        let removed: HashSet<HomeId> = gone.iter().map(|(_, row)| row.id).collect();
        let mut synced = BTreeMap::new();
        gone.retain(|(at, _)| removed.contains(&at.dir) || self.synced(&mut synced, &[at.dir]));
        if gone.is_empty() {
            return Ok(0);
        }
        self.ledger.update(&mut |txn| {
            let mut apply = Apply::new(txn);
            for (at, row) in &gone {
                apply.forget(at);
                apply.forget_dir(row.id);
            }
        })?;
        for (at, row) in &gone {
            self.places.set(row.id, None);
            self.written.entries -= i64::from(!super::super::places::is_hidden(at.dir));
        }
        self.written.removed += gone.len() as u64;
        Ok(gone.len() as u64)
    }

    fn remove_dir(&mut self, at: &At, row: &Row) -> Result<(), Miss> {
        self.go_on()?;
        let parent = self.open(at.dir)?;
        self.check(&parent, &at.name, row)?;
        let path = self.places.path(row.id).ok_or(Miss::Changed)?;
        match self.fs.rmdir(&parent, &at.name) {
            Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => {
                match (self.is_spent)(&path, &path) {
                    true => self.displace_spent(&parent, at, &path),
                    false => Err(Miss::Changed),
                }
            }
            removed => removed.map_err(changed_if_gone),
        }
    }

    /// What nobody but its user knows goes with the directory, to where it is found. If more has come into it since that
    /// was looked at, it comes back: among the displaced nobody would read it.
    fn displace_spent(&mut self, parent: &F::Dir, at: &At, path: &[u8]) -> Result<(), Miss> {
        let displaced = self.open_own(DISPLACED)?;
        let new = displaced_name(self.fresh_id(), &at.name);
        let (here, there) = ((parent, &at.name[..]), (&displaced, &new[..]));
        self.fs.rename(here, there, RenameHow::NoReplace)?;
        let now = self.places.path(DISPLACED).unwrap_or_default();
        if (self.is_spent)(&join(&now, &new), path) {
            self.fs.sync_dir(&displaced)?;
            return Ok(self.fs.sync_dir(parent)?);
        }
        match self.fs.rename(there, here, RenameHow::NoReplace) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                self.keep_in_sight(there, (parent, at.dir), &at.name)?;
            }
            back => back?,
        }
        Err(Miss::Changed)
    }

    /// Sets attributes and notes what things stand for now. Returns for each whether that was done.
    pub(in super::super) fn dress(
        &mut self,
        things: &[Dress],
    ) -> Result<Vec<Result<(), Miss>>, LedgerError> {
        let mut results: Vec<Result<(), Miss>> = things.iter().map(|_| Ok(())).collect();
        let is_renamed = |thing: &Dress| thing.attributes == Attributes::default();
        let renamed: Vec<&Dress> = things.iter().filter(|thing| is_renamed(thing)).collect();
        let dressed = things.iter().zip(&mut results);
        let dressed: Vec<_> = dressed.filter(|(thing, _)| !is_renamed(thing)).collect();
        if !renamed.is_empty() {
            self.ledger.update(&mut |txn| {
                for thing in &renamed {
                    let held = thing.held.clone();
                    Apply::new(txn).keep(
                        &thing.at,
                        &Row {
                            held,
                            ..thing.row.clone()
                        },
                    );
                }
            })?;
        }
        if self.read_only().is_some() {
            for (_, result) in dressed {
                *result = self.read_only().map_or(Ok(()), Err);
            }
            return Ok(results);
        }
        let intents: Vec<Intent> = dressed.iter().map(|(thing, _)| thing.intent()).collect();
        let ids = self.intend(intents.iter())?;
        for ((thing, result), id) in dressed.into_iter().zip(ids) {
            let set = self.set(thing);
            let is_disk = set.as_ref().is_err_and(Miss::is_disk);
            self.is_stuck |= is_disk;
            if set.is_err() || !thing.row.is_dir() {
                self.written.scan.insert(thing.at.dir);
            }
            if !is_disk {
                self.keep_dressed(&thing.at, set.as_ref().ok(), id)?;
            }
            *result = set.map(drop);
        }
        Ok(results)
    }

    fn set(&self, thing: &Dress) -> Result<Row, Miss> {
        self.go_on()?;
        let dir = self.open(thing.at.dir)?;
        self.check(&dir, &thing.at.name, &thing.row)?;
        let kept = self
            .fs
            .set_attributes(&dir, &thing.at.name, &thing.attributes)
            .map_err(changed_if_gone)?;
        let row = Row {
            held: thing.held.clone(),
            xattrs: match thing.attributes.xattrs {
                Some(_) => kept.xattrs,
                None => thing.row.xattrs,
            },
            ..thing.row.clone()
        };
        self.look_dressed(&dir, &thing.at, row)
    }

    /// What is there, after attributes were set: what somebody wrote meanwhile has the time that was set, so it is to be
    /// read again.
    fn look_dressed(&self, dir: &F::Dir, at: &At, row: Row) -> Result<Row, Miss> {
        let found = self.fs.stat(dir, &at.name).map_err(changed_if_gone)?;
        let is_thing = row.stamp.same_ino(found.stamp.ino) && row.is_of(found.kind);
        if !is_thing || !(row.is_dir() || row.stamp.size == found.stamp.size) {
            return Err(Miss::Changed);
        }
        Ok(Row {
            stamp: found.stamp,
            mode: found.mode,
            unsure: !row.is_dir(),
            ..row
        })
    }

    fn keep_dressed(
        &mut self,
        at: &At,
        row: Option<&Row>,
        id: IntentId,
    ) -> Result<(), LedgerError> {
        self.written.dressed += u64::from(row.is_some());
        self.ledger.update(&mut |txn| {
            settle(txn, &[id]);
            if let Some(row) = row {
                Apply::new(txn).keep(at, row);
            }
        })
    }

    /// Settles the intent of setting attributes after a crash or an error. Returns whether it is settled.
    pub(super) fn recover_dress(
        &mut self,
        at: &At,
        row: &Row,
        id: IntentId,
    ) -> Result<bool, LedgerError> {
        let looked = self
            .open(at.dir)
            .and_then(|dir| self.look_dressed(&dir, at, row.clone()));
        match looked {
            Err(error) if error.is_disk() => {
                tracing::warn!(%error, "attributes cannot be looked at yet");
                Ok(false)
            }
            looked => {
                self.written.scan.insert(at.dir);
                self.keep_dressed(at, looked.ok().as_ref(), id)?;
                Ok(true)
            }
        }
    }
}

impl Dress {
    fn intent(&self) -> Intent {
        Intent::Dress {
            at: self.at.clone(),
            row: Row {
                held: self.held.clone(),
                ..self.row.clone()
            },
        }
    }
}
