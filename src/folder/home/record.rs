//! From what a scan concluded to operations of the folder and base records, in one update of the folder.

use bytes::Bytes;

use super::base::{At, HomeId, Row, prefix, table_prefix};
use super::intent::{self, Intent, IntentId};
use super::ledger::{Apply, Attributes, DiskFile, Ledger, Txn};
use super::origin;
use super::places::{Places, is_hidden};
use super::plan::{DirStep, Rows, Steps, Take};
use crate::folder::state::{OpError, Xattrs};

/// Numbers are given one by one and never get this large.
const NUMBERS_MAX: u64 = 1 << 48;

/// The folder's table as the plan reads it.
pub(super) struct Table<'l>(pub(super) &'l dyn Ledger);

impl Rows for Table<'_> {
    fn children(&self, dir: HomeId) -> Vec<(Bytes, Row)> {
        let rows = self.0.rows(&prefix(dir)).into_iter();
        // A damaged record is none: its path is taken for new and read.
        rows.filter_map(|(key, row)| Some((At::from_key(&key).ok()?.name, Row::decode(&row).ok()?)))
            .collect()
    }
}

/// Has `places` say where everything with a record is. Returns the number after the largest in use and the count of what
/// the user sees.
pub(super) fn restore(
    ledger: &dyn Ledger,
    places: &Places,
    each: &mut dyn FnMut(&Row),
) -> (u64, u64) {
    let (mut next_id, mut entries) = (1, 0);
    for (key, row) in ledger.rows(&table_prefix()) {
        let (Ok(at), Ok(row)) = (At::from_key(&key), Row::decode(&row)) else {
            continue;
        };
        next_id = next_id.max(row.id.0 + 1);
        entries += u64::from(!is_hidden(at.dir));
        places.set(row.id, Some(at));
        each(&row);
    }
    for (key, intent) in ledger.rows(&intent::table_prefix()) {
        let own = IntentId::from_key(&key).map_or(0, |id| id.0);
        let mut ids = Intent::decode(&intent).ok();
        let rows = ids.iter_mut().flat_map(Intent::rows_mut);
        let largest = rows.map(|row| row.id.0).chain([own]).max();
        next_id = next_id.max(largest.unwrap_or(0) + 1);
    }
    for (key, _) in ledger.rows(&origin::table_prefix()) {
        let number = origin::from_key(&key).and_then(origin::number_of);
        // A damaged key must not use up all numbers.
        let number = number.filter(|number| *number < NUMBERS_MAX);
        next_id = next_id.max(number.unwrap_or(0) + 1);
    }
    (next_id, entries)
}

/// What an update did.
#[derive(Debug, Default)]
pub(super) struct Recorded {
    /// Where things have a record now.
    pub(super) placed: Vec<(HomeId, At)>,
    /// What a peer's work leaves no place for.
    pub(super) blocked: Vec<(Vec<u8>, OpError)>,
}

/// Removals, renames and new directories: together they are one change of the tree. `dirs` has for each new or renamed
/// directory its attributes and record.
pub(super) fn rebuild(
    txn: &mut dyn Txn,
    steps: &Steps,
    dirs: &[(Xattrs, Row)],
    renamed: &mut dyn Iterator<Item = (&Take, &DiskFile, &Row)>,
) -> Recorded {
    let mut apply = Apply::new(txn);
    let mut out = Recorded::default();
    for (at, row) in &steps.removed {
        out.note(&at.name, apply.remove(at, &row.held));
        apply.forget(at);
    }
    let moved = || {
        steps.dirs.iter().filter_map(|step| match step {
            DirStep::Moved(moved) => Some(moved),
            DirStep::New(_) => None,
        })
    };
    for moved in moved() {
        if steps.dirs.len() + steps.removed_dirs.len() > 1 {
            apply.lift(moved.row.id);
        }
        apply.forget(&moved.from);
    }
    for (at, row) in &steps.removed_dirs {
        out.note(&at.name, apply.rmdir(row.id));
        apply.forget(at);
    }
    for (step, (xattrs, row)) in steps.dirs.iter().zip(dirs) {
        let (at, path, done) = match step {
            DirStep::New(new) => {
                let done = apply.mkdir(&new.at, new.id, row.mode, xattrs);
                (&new.at, &new.path, done)
            }
            DirStep::Moved(moved) => {
                let done = apply.move_dir(row.id, &moved.to, row.mode);
                (&moved.to, &moved.path, done)
            }
        };
        // One that was renamed is there, whatever the folder could make of it: a pull takes it to where it is shown.
        if out.note(path, done) || matches!(step, DirStep::Moved(_)) {
            apply.keep(at, row);
            out.placed.push((row.id, at.clone()));
        }
    }
    let mut files = put_all(txn, renamed);
    out.placed.append(&mut files.placed);
    out.blocked.append(&mut files.blocked);
    out
}

/// Writes files into the folder, each in place of what its base record stands for.
pub(super) fn put_all(
    txn: &mut dyn Txn,
    files: &mut dyn Iterator<Item = (&Take, &DiskFile, &Row)>,
) -> Recorded {
    let mut apply = Apply::new(txn);
    let mut out = Recorded::default();
    for (take, file, row) in files {
        match put(&mut apply, take, file, row) {
            Ok(held) => {
                let row = Row {
                    held,
                    ..row.clone()
                };
                apply.keep(&take.at, &row);
                out.placed.push((row.id, take.at.clone()));
            }
            Err(error) => out.blocked.push((take.path.clone(), error)),
        }
    }
    out
}

fn put(apply: &mut Apply<'_>, take: &Take, file: &DiskFile, new: &Row) -> Result<Bytes, OpError> {
    let Some(base) = &take.base else {
        let all = Attributes {
            mode: Some(file.mode),
            mtime: None,
            xattrs: Some(file.xattrs.clone()),
        };
        return apply.put(&take.at, &[], file, &all);
    };
    // What the file system could not keep of a version is no edit of it.
    let change = Attributes {
        mode: (base.mode != new.mode).then_some(new.mode),
        mtime: (base.stamp.mtime != new.stamp.mtime).then_some(new.stamp.mtime),
        xattrs: (base.xattrs != new.xattrs).then(|| file.xattrs.clone()),
    };
    if base.kind != new.kind {
        let mtime = None;
        return apply.put(&take.at, &base.held, file, &Attributes { mtime, ..change });
    }
    apply.attributes(&take.at, &base.held, &change)
}

impl Recorded {
    /// Returns whether it was done.
    fn note(&mut self, path: &[u8], done: Result<(), OpError>) -> bool {
        let error = done.err();
        self.blocked
            .extend(error.map(|error| (path.to_vec(), error)));
        error.is_none()
    }
}
