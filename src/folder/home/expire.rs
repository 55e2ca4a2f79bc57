//! When the displaced go: after a time, or when there is too much of them, and never while somebody may still want them.
//!
//! Clocks jump, so what a clock says is not enough: a thing goes only if this process has seen it lie there for a while.

use std::collections::HashSet;
use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use bytes::Bytes;
use ccbt_xet::hash::ChunkHash;
use rustix::fs::{AtFlags, Mode, OFlags};

use super::base::{At, Row, RowKind, Stamp};
use super::displaced::Lying;
use super::lease::Unwritten;
use super::ledger::LedgerError;
use super::places::DISPLACED;
use super::plan::{FoundKind, Seen};
use super::take::ranges_of;
use super::{Home, origin};

/// Things whose records go together; each takes a descriptor meanwhile.
const BATCH: usize = 128;

/// Entries of one displaced directory; one with more stays.
const TREE_MAX: usize = 100_000;

/// How long the displaced of a home are kept.
#[derive(Debug, Clone, Copy)]
pub struct Retention {
    /// None: for ever.
    pub keep: Option<Duration>,
    /// The oldest go when all together have more bytes. None: there may be any number.
    pub max_bytes: Option<u64>,
    /// However short the time they are kept and however much there is: by the clock, and as this process has seen it.
    pub at_least: Duration,
}

/// A displaced thing whose time has come.
#[derive(Debug, Clone)]
pub struct Due {
    name: Bytes,
    number: u64,
    stamp: Stamp,
    is_dir: bool,
    bytes: u64,
    /// Its base record, if it has one.
    row: Option<Row>,
}

/// What went.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Expired {
    pub things: u64,
    pub bytes: u64,
}

/// Why nothing went.
#[derive(Debug, thiserror::Error)]
pub enum ExpireError {
    #[error("the displaced files cannot be read: {0}")]
    Io(#[from] io::Error),
    #[error(transparent)]
    Ledger(#[from] LedgerError),
}

impl Home {
    /// What is to go now.
    pub fn displaced_due(&self, retention: &Retention) -> Result<Vec<Due>, ExpireError> {
        let lying = self.displaced()?;
        self.forget_missing(&lying)?;
        let seen_for = self.note_seen(&lying);
        let now = (self.inner.clock)();
        let mut total: u64 = lying.iter().map(|one| one.bytes).sum();
        let mut due = Vec::new();
        // In the order in which they came.
        for one in lying {
            let since = one.origin.as_ref().map_or(0, |origin| origin.when);
            let since = since.max(one.found.stamp.ctime.unix_nanos());
            let age = Duration::from_nanos(now.saturating_sub(since));
            let is_old = retention.keep.is_some_and(|keep| age >= keep);
            let is_much = retention.max_bytes.is_some_and(|max| total > max);
            if !(is_old || is_much)
                || age < retention.at_least
                || seen_for(one.number) < retention.at_least
            {
                continue;
            }
            total = total.saturating_sub(one.bytes);
            let at = displaced_at(&one.file);
            due.push(Due {
                number: one.number,
                stamp: one.found.stamp,
                is_dir: one.found.kind == FoundKind::Dir,
                bytes: one.bytes,
                row: self.inner.row(&at),
                name: one.file,
            });
        }
        Ok(due)
    }

    /// Notes what lies there. Returns how long each has been known to.
    fn note_seen(&self, lying: &[Lying]) -> impl Fn(u64) -> Duration + use<> {
        let now = self.inner.elapsed();
        let mut seen = self.inner.displaced_seen.lock();
        let numbers: HashSet<u64> = lying.iter().map(|one| one.number).collect();
        seen.retain(|number, _| numbers.contains(number));
        for number in numbers {
            seen.entry(number).or_insert(now);
        }
        let seen = seen.clone();
        move |number| now.saturating_sub(seen.get(&number).copied().unwrap_or(now))
    }

    /// The user has taken things out of the directory: their records go.
    fn forget_missing(&self, lying: &[Lying]) -> Result<(), LedgerError> {
        let _scanner = self.inner.scanner.lock();
        let names: HashSet<&[u8]> = lying.iter().map(|one| &one.file[..]).collect();
        let rows = self.inner.ledger.rows(&super::base::prefix(DISPLACED));
        let rows = rows.into_iter().filter_map(|(key, row)| {
            let at = At::from_key(&key).ok()?;
            (!names.contains(&at.name[..])).then_some((key, Row::decode(&row).ok()))
        });
        let rows: Vec<(Bytes, Option<Row>)> = rows.collect();
        let origins = self.inner.ledger.rows(&origin::table_prefix());
        let origins = origins
            .into_iter()
            .map(|(key, _)| key)
            .filter(|key| origin::from_key(key).is_none_or(|file| !names.contains(file)));
        let origins: Vec<Bytes> = origins.collect();
        if rows.is_empty() && origins.is_empty() {
            return Ok(());
        }
        self.inner.ledger.update(&mut |txn| {
            for key in rows.iter().map(|(key, _)| key).chain(&origins) {
                txn.set_row(key.clone(), None);
            }
        })?;
        rows.iter()
            .filter_map(|(_, row)| row.as_ref())
            .for_each(|row| self.let_go(row));
        Ok(())
    }

    /// The store and the table of places know a displaced thing no more.
    pub(super) fn let_go(&self, row: &Row) {
        let files = &self.inner.files;
        self.inner.store.unborrow(files.source(row.id));
        files.set_place(row.id, None);
    }

    /// The chunks that only these and other plain files have.
    pub fn borrowed_by(&self, due: &[Due]) -> HashSet<ChunkHash> {
        let store = &self.inner.store;
        let mut chunks = HashSet::new();
        for row in due.iter().filter_map(|one| one.row.as_ref()) {
            let RowKind::File { content } = &row.kind else {
                continue;
            };
            // What has no list of its chunks here is not lent.
            let ranges = ranges_of(store, content, row.stamp.size).unwrap_or_default();
            let hashes = ranges.into_iter().map(|(hash, ..)| hash);
            chunks.extend(hashes.filter(|hash| !store.is_packed(hash)));
        }
        chunks
    }

    /// Removes them, but for those that somebody has open for writing or that are not as they were.
    pub fn expire(&self, due: &[Due]) -> Result<Expired, ExpireError> {
        let _scanner = self.inner.scanner.lock();
        let mut expired = Expired::default();
        let own = self.open_displaced()?;
        for batch in due.chunks(BATCH) {
            let mut proven = Vec::new();
            for one in batch {
                match self.prove_unwritten(&own, one) {
                    Ok(proof) => proven.push((one, proof)),
                    Err(error) => {
                        tracing::debug!(number = one.number, %error, "a displaced file is kept");
                    }
                }
            }
            // Nobody may count on them when they go.
            self.inner.ledger.update(&mut |txn| {
                for (one, _) in &proven {
                    txn.set_row(displaced_at(&one.name).key(), None);
                    txn.set_row(origin::key(&one.name), None);
                }
            })?;
            self.inner.ledger.sync()?;
            for (one, proof) in proven {
                one.row.iter().for_each(|row| self.let_go(row));
                self.remove(&own, one)?;
                drop(proof);
                expired.things += 1;
                expired.bytes += one.bytes;
            }
        }
        rustix::fs::fsync(&own).map_err(io::Error::from)?;
        Ok(expired)
    }

    /// Fails unless it is what was looked at and nobody writes to it.
    fn prove_unwritten(&self, own: &OwnedFd, one: &Due) -> io::Result<Option<Unwritten>> {
        let stat = rustix::fs::statat(own, &one.name[..], AtFlags::SYMLINK_NOFOLLOW)?;
        let found = self.inner.files.found(&stat);
        if found.stamp != one.stamp {
            return Err(io::Error::other("it is not as it was"));
        }
        match found.kind {
            FoundKind::File => Ok(Some(unwritten(own, &one.name)?)),
            FoundKind::Dir => {
                let tree = self.tree(one)?.into_iter();
                for (dir, name, _) in tree.filter(|(.., kind)| *kind == FoundKind::File) {
                    unwritten(&self.inner.files.open_dir(&dir)?, &name)?;
                }
                Ok(None)
            }
            FoundKind::Symlink | FoundKind::Special => Ok(None),
        }
    }

    /// What is in a displaced directory, a directory before what is in it: the directory's path, the name, the kind.
    fn tree(&self, one: &Due) -> io::Result<Vec<(Vec<u8>, Bytes, FoundKind)>> {
        let top = super::displaced::path_of(&one.name);
        let (mut dirs, mut out) = (vec![top], Vec::new());
        while let Some(dir) = dirs.pop() {
            let open = self.inner.files.open_dir(&dir)?;
            let listing = self.inner.files.list(&open, false)?;
            let leftover = listing
                .leftover
                .into_iter()
                .map(|name| (name, FoundKind::File));
            let mut entries: Vec<(Bytes, FoundKind)> = leftover.collect();
            for (name, seen) in listing.names {
                match seen {
                    Seen::Found(found) => entries.push((name, found.kind)),
                    Seen::Nested | Seen::Busy | Seen::Unknown => {
                        return Err(io::ErrorKind::PermissionDenied.into());
                    }
                }
            }
            for (name, kind) in entries {
                if kind == FoundKind::Dir {
                    dirs.push(super::plan::join(&dir, &name));
                }
                out.push((dir.clone(), name, kind));
            }
            if !listing.complete || listing.is_nested || out.len() > TREE_MAX {
                return Err(io::Error::other("it has too much in it, or cannot be read"));
            }
        }
        Ok(out)
    }

    fn remove(&self, own: &OwnedFd, one: &Due) -> io::Result<()> {
        if !one.is_dir {
            return Ok(rustix::fs::unlinkat(own, &one.name[..], AtFlags::empty())?);
        }
        for (dir, name, kind) in self.tree(one)?.into_iter().rev() {
            let flags = match kind {
                FoundKind::Dir => AtFlags::REMOVEDIR,
                _ => AtFlags::empty(),
            };
            let dir = self.inner.files.open_dir(&dir)?;
            rustix::fs::unlinkat(&dir, &name[..], flags).map_err(io::Error::from)?;
        }
        Ok(rustix::fs::unlinkat(
            own,
            &one.name[..],
            AtFlags::REMOVEDIR,
        )?)
    }
}

fn unwritten(dir: &OwnedFd, name: &Bytes) -> io::Result<Unwritten> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    Unwritten::prove(rustix::fs::openat(dir, &name[..], flags, Mode::empty())?)
}

fn displaced_at(name: &Bytes) -> At {
    At {
        dir: DISPLACED,
        name: name.clone(),
    }
}
