//! Moving what is in the home: renames, and removals, which are renames into our own directory.

use std::collections::BTreeMap;
use std::io;

use super::super::base::{At, HomeId, Row};
use super::super::fs::{HomeFs, RenameHow};
use super::super::intent::{Intent, IntentId};
use super::super::ledger::{Apply, LedgerError};
use super::super::origin::Why;
use super::super::places::{DISPLACED, is_hidden};
use super::{Miss, Writer, changed_if_gone, is_thing, is_untouched, settle, shown_name};

/// Moves whose intents are written down together.
const BATCH: usize = 256;

/// One thing to be moved.
#[derive(Debug, Clone)]
pub(in super::super) struct Move {
    pub(in super::super) from: At,
    pub(in super::super) to: At,
    /// Its base record, as it is to be at the new place.
    pub(in super::super) row: Row,
}

/// What a rename turned out to be.
pub(super) enum Moved {
    /// Its record at the new place.
    Done(Row),
    /// It is not what we wanted to move, and is where the user left it.
    Undone,
}

impl<F: HomeFs> Writer<'_, F> {
    /// Moves things, in order. Returns for each whether it is at its new place.
    pub(in super::super) fn relocate(
        &mut self,
        moves: &[Move],
    ) -> Result<Vec<Result<(), Miss>>, LedgerError> {
        let mut results = Vec::with_capacity(moves.len());
        for batch in moves.chunks(BATCH) {
            if self.read_only().is_some() {
                results.extend(batch.iter().filter_map(|_| self.read_only()).map(Err));
                continue;
            }
            let intents: Vec<Intent> = batch.iter().map(Move::intent).collect();
            let ids = self.intend(intents.iter())?;
            let mut renamed = Vec::new();
            let mut refused = Vec::new();
            for (one, id) in batch.iter().zip(ids) {
                match self.rename(one) {
                    Ok(row) => {
                        renamed.push((one, row, id));
                        results.push(Ok(()));
                    }
                    Err(miss) => {
                        self.written.scan.extend(visible(one));
                        refused.extend((!self.is_stuck).then_some(id));
                        results.push(Err(miss));
                    }
                }
            }
            self.keep_moves(&renamed, &refused)?;
        }
        Ok(results)
    }

    fn rename(&mut self, one: &Move) -> Result<Row, Miss> {
        self.go_on()?;
        let (from, to) = (self.open(one.from.dir)?, self.open(one.to.dir)?);
        self.check_unknown(&one.to)?;
        let one = match is_hidden(one.from.dir) {
            true => self.check_hidden(one, &from)?,
            false => {
                let mut row = one.row.clone();
                // What stays in sight is read again where it goes; what does not has to be known by its content.
                row.unsure &= is_hidden(one.to.dir);
                self.check(&from, &one.from.name, &row)?;
                one.clone()
            }
        };
        let renamed = self.rename_checked(&one, &from, &to);
        // An error of the disk may come after the rename.
        self.is_stuck |= matches!(renamed, Err(Miss::Io(_)));
        renamed
    }

    /// What is aside is known by its inode. If it was written to through an old handle, it may come back in sight, to be
    /// read there; it may not go among the displaced unread. Returns the move as it is to be done.
    fn check_hidden(&mut self, one: &Move, from: &F::Dir) -> Result<Move, Miss> {
        let found = self.look(from, &one.from.name)?;
        let Some(found) = found.filter(|found| is_thing(&one.row, found)) else {
            self.abandon(&one.from, from)?;
            return Err(Miss::Changed);
        };
        let row = &one.row;
        let is_same = row.is_dir() || (row.stamp.is_same(&found.stamp) && row.mode == found.mode);
        // A mode that was set just before it went aside has changed the ctime too.
        let is_known = is_untouched(row, &found) && row.mode != found.mode;
        if is_same || (is_known && is_hidden(one.to.dir)) {
            return Ok(one.clone());
        }
        if is_hidden(one.to.dir) {
            self.abandon(&one.from, from)?;
            return Err(Miss::Changed);
        }
        self.written.scan.insert(one.to.dir);
        let row = Row {
            stamp: found.stamp,
            unsure: true,
            ..row.clone()
        };
        Ok(Move { row, ..one.clone() })
    }

    fn rename_checked(&mut self, one: &Move, from: &F::Dir, to: &F::Dir) -> Result<Row, Miss> {
        let names = ((from, &one.from.name[..]), (to, &one.to.name[..]));
        match self.fs.rename(names.0, names.1, RenameHow::NoReplace) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                return Err(Miss::Changed);
            }
            renamed => renamed.map_err(changed_if_gone)?,
        }
        self.places.set(one.row.id, Some(one.to.clone()));
        // Whatever goes wrong from here on, it is not where it was.
        match self.settle_move(one, from, to).map_err(Miss::Io)? {
            Moved::Done(row) => Ok(row),
            Moved::Undone => Err(Miss::Changed),
        }
    }

    /// What is aside was written to and has no place, or is gone: nobody knows it any more, and the user finds it at the
    /// top.
    fn abandon(&mut self, at: &At, dir: &F::Dir) -> Result<(), Miss> {
        if self.look(dir, &at.name)?.is_some() {
            let root = self.open(HomeId::ROOT)?;
            let to = (&root, HomeId::ROOT);
            self.keep_in_sight((dir, &at.name[..]), to, shown_name(&at.name))?;
        }
        let forgotten = self.ledger.update(&mut |txn| Apply::new(txn).forget(at));
        forgotten.map_err(|error| Miss::Io(io::Error::other(error)))
    }

    /// After the rename: what was moved has to be what was meant, else it goes back.
    pub(super) fn settle_move(
        &mut self,
        one: &Move,
        from: &F::Dir,
        to: &F::Dir,
    ) -> io::Result<Moved> {
        let found = self.fs.stat(to, &one.to.name)?;
        if is_untouched(&one.row, &found) {
            let mut row = one.row.clone();
            // The rename has set the time of the last change of the inode.
            row.stamp.ctime = found.stamp.ctime;
            return Ok(Moved::Done(row));
        }
        let back = ((to, &one.to.name[..]), (from, &one.from.name[..]));
        match self.fs.rename(back.0, back.1, RenameHow::NoReplace) {
            // The user has something else there by now: what was moved stays in sight, beside it or where it is.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                if is_hidden(one.to.dir) && !is_hidden(one.from.dir) {
                    let (moved, back) = ((to, &one.to.name[..]), (from, one.from.dir));
                    self.keep_in_sight(moved, back, &one.from.name)?;
                }
            }
            renamed => renamed?,
        }
        self.fs.sync_dir(to)?;
        self.fs.sync_dir(from)?;
        self.places.set(one.row.id, Some(one.from.clone()));
        Ok(Moved::Undone)
    }

    /// Makes renames durable, then the records of what is where.
    pub(super) fn keep_moves(
        &mut self,
        renamed: &[(&Move, Row, IntentId)],
        refused: &[IntentId],
    ) -> Result<(), LedgerError> {
        let mut dirs = BTreeMap::new();
        let mut durable = Vec::new();
        for (one, row, id) in renamed {
            match self.synced(&mut dirs, &[one.from.dir, one.to.dir]) {
                true => durable.push((*one, row, *id)),
                false => self.is_stuck = true,
            }
        }
        self.ledger.update(&mut |txn| {
            settle(txn, refused);
            for (one, row, id) in &durable {
                settle(txn, &[*id]);
                let mut apply = Apply::new(txn);
                apply.moved(&one.from, &one.to, row);
                if one.to.dir == DISPLACED {
                    let origin = self.origin(&one.from, Why::Removed, None, row);
                    apply.keep_origin(&one.to.name, &origin);
                }
            }
        })?;
        for (one, ..) in durable {
            let is_gone = is_hidden(one.to.dir);
            self.written.entries +=
                i64::from(is_hidden(one.from.dir)) - i64::from(is_hidden(one.to.dir));
            self.written.removed += u64::from(is_gone);
            self.written.moved += u64::from(!is_gone);
        }
        Ok(())
    }

    /// Whether the names in all these directories are durable; each is synced once. One that the user has taken away is not
    /// ours to sync: a rename is one change, and the directory at its other end is.
    pub(super) fn synced(&self, done: &mut BTreeMap<HomeId, bool>, dirs: &[HomeId]) -> bool {
        dirs.iter().all(|dir| {
            *done.entry(*dir).or_insert_with(|| match self.open(*dir) {
                Ok(dir) => self.fs.sync_dir(&dir).is_ok(),
                Err(miss) => !miss.is_disk(),
            })
        })
    }

    /// Settles the intent of a move after a crash or an error. Returns whether it is settled.
    pub(super) fn recover_move(&mut self, one: &Move, id: IntentId) -> Result<bool, LedgerError> {
        let settled = self.open(one.to.dir).and_then(|to| {
            let there = self.look(&to, &one.to.name)?;
            if !there.is_some_and(|found| is_thing(&one.row, &found)) {
                return Ok(None);
            }
            let from = self.open(one.from.dir)?;
            self.places.set(one.row.id, Some(one.to.clone()));
            Ok(Some(self.settle_move(one, &from, &to)?))
        });
        match settled {
            Ok(Some(Moved::Done(row))) => {
                // What the power took with it is not in the times.
                let unsure = !row.is_dir();
                self.written.scan.extend(visible(one));
                self.keep_moves(&[(one, Row { unsure, ..row }, id)], &[])?;
            }
            Ok(Some(Moved::Undone) | None) | Err(Miss::Changed | Miss::Missing) => {
                let row = self.row(&one.from).filter(|row| row.id == one.row.id);
                if row.is_some() {
                    // It was thought to be at its new place when the error came.
                    self.places.set(one.row.id, Some(one.from.clone()));
                }
                self.keep_moves(&[], &[id])?;
            }
            Err(error) => {
                tracing::warn!(%error, "a rename cannot be finished yet");
                return Ok(false);
            }
        }
        Ok(self.ledger.row(&id.key()).is_none())
    }
}

impl Move {
    fn intent(&self) -> Intent {
        Intent::Move {
            from: self.from.clone(),
            to: self.to.clone(),
            row: self.row.clone(),
        }
    }
}

fn visible(one: &Move) -> impl Iterator<Item = HomeId> {
    let dirs = [one.from.dir, one.to.dir].into_iter();
    dirs.filter(|dir| !is_hidden(*dir))
}
