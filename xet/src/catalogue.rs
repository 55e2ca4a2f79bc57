//! The catalogue: what is nice to have and may vanish at any moment (peers seen, resume hints,
//! statistics). Named trees of bytes in sled 0.34.
//!
//! sled is never trusted with anything that cannot be had otherwise: it is known to fail for ever
//! on damaged files, to lose the end of its log silently, and to panic. So opening happens on a
//! thread of its own with a deadline; a database that does not open is moved aside for a new one;
//! if that fails too, rows are kept in memory. No operation fails: a row that cannot be read is
//! missing, one that cannot be written is forgotten. Deleting the directory costs nothing.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use parking_lot::RwLock;

/// Page cache of sled in bytes. What it really takes is a multiple of it.
const CACHE_BYTES: u64 = 1024 * 1024;

/// Recovery of a large log takes seconds; a database that needs longer than this is given up.
const OPEN_DEADLINE: Duration = Duration::from_secs(20);

/// Bytes of keys and values kept when there is no disk to keep them on.
const MEMORY_BYTES_MAX: usize = 16 * 1024 * 1024;

/// What became of the directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Opened {
    /// It was opened, or created where there was none.
    AsItWas,
    /// It could not be opened and was moved aside; the catalogue starts empty.
    MovedAside,
    /// It is in use by another process, or nothing can be written: rows live in memory.
    InMemory,
}

/// A row: key and value.
pub type Row = (Vec<u8>, Vec<u8>);

/// Trees of rows that may be lost.
#[derive(Debug)]
pub struct Catalogue {
    backend: Backend,
    opened: Opened,
    /// Present while it is, the next start moves the database aside.
    mark: PathBuf,
    /// sled failed: it is not asked again.
    broken: AtomicBool,
}

#[derive(Debug)]
enum Backend {
    Sled(sled::Db),
    Memory(RwLock<Memory>),
}

#[derive(Debug, Default)]
struct Memory {
    rows: BTreeMap<(String, Vec<u8>), Vec<u8>>,
    bytes: usize,
}

impl Catalogue {
    /// Opens the catalogue in `dir`, whatever state that is in.
    pub fn open(dir: &Path) -> Self {
        let mark = dir.with_extension("broken");
        let usable = if mark.exists() {
            Err(OpenFailed::Broken)
        } else {
            open_sled(dir)
        };
        let (backend, opened) = match usable {
            Ok(db) => (Backend::Sled(db), Opened::AsItWas),
            Err(OpenFailed::InUse) => (Backend::Memory(RwLock::default()), Opened::InMemory),
            Err(reason) => {
                tracing::warn!(?dir, %reason, "the catalogue is moved aside and starts empty");
                match move_aside(dir, &mark)
                    .map_err(OpenFailed::Io)
                    .and_then(|()| open_sled(dir))
                {
                    Ok(db) => (Backend::Sled(db), Opened::MovedAside),
                    Err(reason) => {
                        tracing::warn!(?dir, %reason, "the catalogue is kept in memory only");
                        (Backend::Memory(RwLock::default()), Opened::InMemory)
                    }
                }
            }
        };
        Self {
            backend,
            opened,
            mark,
            broken: AtomicBool::new(false),
        }
    }

    /// What [`open`](Self::open) found.
    pub const fn opened(&self) -> Opened {
        self.opened
    }

    /// The value of a row.
    pub fn get(&self, tree: &str, key: &[u8]) -> Option<Vec<u8>> {
        match &self.backend {
            Backend::Sled(db) => {
                let value = self.guarded(|| db.open_tree(tree)?.get(key))??;
                Some(value.to_vec())
            }
            Backend::Memory(memory) => memory
                .read()
                .rows
                .get(&(tree.to_owned(), key.to_vec()))
                .cloned(),
        }
    }

    /// Sets a row.
    pub fn put(&self, tree: &str, key: &[u8], value: &[u8]) {
        match &self.backend {
            Backend::Sled(db) => {
                self.guarded(|| db.open_tree(tree)?.insert(key, value));
            }
            Backend::Memory(memory) => memory.write().put(tree, key, value),
        }
    }

    /// Removes a row.
    pub fn remove(&self, tree: &str, key: &[u8]) {
        match &self.backend {
            Backend::Sled(db) => {
                self.guarded(|| db.open_tree(tree)?.remove(key));
            }
            Backend::Memory(memory) => memory.write().remove(tree, key),
        }
    }

    /// The rows whose key starts with `prefix`, in key order. Ends early if one cannot be read.
    pub fn iter_prefix<'a>(
        &'a self,
        tree: &str,
        prefix: &[u8],
    ) -> Box<dyn Iterator<Item = Row> + 'a> {
        match &self.backend {
            Backend::Sled(db) => {
                let rows = self.guarded(|| Ok(db.open_tree(tree)?.scan_prefix(prefix)));
                let Some(mut rows) = rows else {
                    return Box::new(std::iter::empty());
                };
                Box::new(std::iter::from_fn(move || {
                    let (key, value) = self.guarded(|| rows.next().transpose())??;
                    Some((key.to_vec(), value.to_vec()))
                }))
            }
            Backend::Memory(memory) => Box::new(memory.read().starting(tree, prefix).into_iter()),
        }
    }

    /// Writes rows to disk. Without it the last ones are lost when the machine goes down.
    pub fn flush(&self) {
        if let Backend::Sled(db) = &self.backend {
            self.guarded(|| db.flush());
        }
    }

    /// Runs an operation of sled unless one failed before. A failure ends its use.
    fn guarded<T>(&self, operate: impl FnOnce() -> sled::Result<T>) -> Option<T> {
        if self.broken.load(Ordering::Relaxed) {
            return None;
        }
        let reason = match catch_unwind(AssertUnwindSafe(operate)) {
            Ok(Ok(result)) => return Some(result),
            Ok(Err(error)) => error.to_string(),
            Err(_) => "sled panicked".to_owned(),
        };
        if !self.broken.swap(true, Ordering::Relaxed) {
            let marked = fs::write(&self.mark, []);
            tracing::warn!(%reason, ?marked, "the catalogue failed and is not used any more");
        }
        None
    }
}

impl Memory {
    fn put(&mut self, tree: &str, key: &[u8], value: &[u8]) {
        self.remove(tree, key);
        let added = key.len() + value.len();
        if self.bytes + added <= MEMORY_BYTES_MAX {
            self.bytes += added;
            self.rows
                .insert((tree.to_owned(), key.to_vec()), value.to_vec());
        }
    }

    fn remove(&mut self, tree: &str, key: &[u8]) {
        if let Some(value) = self.rows.remove(&(tree.to_owned(), key.to_vec())) {
            self.bytes -= key.len() + value.len();
        }
    }

    fn starting(&self, tree: &str, prefix: &[u8]) -> Vec<Row> {
        let from = (tree.to_owned(), prefix.to_vec());
        let rows = self.rows.range(from..);
        let rows = rows.take_while(|((of, key), _)| of == tree && key.starts_with(prefix));
        rows.map(|((_, key), value)| (key.clone(), value.clone()))
            .collect()
    }
}

/// Why a database is not used.
#[derive(Debug, thiserror::Error)]
enum OpenFailed {
    #[error("it failed in its last use")]
    Broken,
    #[error("it is in use by another process")]
    InUse,
    #[error("it did not open within {} s", OPEN_DEADLINE.as_secs())]
    TooSlow,
    #[error("opening it panicked")]
    Panicked,
    #[error("{0}")]
    Sled(sled::Error),
    #[error("{0}")]
    Io(io::Error),
}

/// Opens the database on a thread of its own, which is left behind if it takes too long.
fn open_sled(dir: &Path) -> Result<sled::Db, OpenFailed> {
    let config = sled::Config::default()
        .path(dir)
        .cache_capacity(CACHE_BYTES)
        .flush_every_ms(None);
    let (send, receive) = mpsc::channel();
    let open = move || {
        let opened = catch_unwind(AssertUnwindSafe(|| config.open()));
        // Nobody listens any more after the deadline: the database is closed again.
        let _too_late = send.send(opened);
    };
    thread::Builder::new()
        .name("catalogue".into())
        .spawn(open)
        .map_err(OpenFailed::Io)?;
    match receive.recv_timeout(OPEN_DEADLINE) {
        Ok(Ok(Ok(db))) => Ok(db),
        Ok(Ok(Err(error))) if error.to_string().contains("could not acquire lock") => {
            Err(OpenFailed::InUse)
        }
        Ok(Ok(Err(error))) => Err(OpenFailed::Sled(error)),
        Ok(Err(_)) => Err(OpenFailed::Panicked),
        Err(_) => Err(OpenFailed::TooSlow),
    }
}

/// Renames the directory, in place of the one moved aside before.
fn move_aside(dir: &Path, mark: &Path) -> io::Result<()> {
    let aside = dir.with_extension("damaged");
    let absent = |result: io::Result<()>| match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    };
    if aside.is_dir() {
        fs::remove_dir_all(&aside)?;
    } else {
        absent(fs::remove_file(&aside))?;
    }
    absent(fs::rename(dir, &aside))?;
    absent(fs::remove_file(mark))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(catalogue: &Catalogue, tree: &str, prefix: &[u8]) -> Vec<Row> {
        catalogue.iter_prefix(tree, prefix).collect()
    }

    fn check_operations(catalogue: &Catalogue) {
        assert_eq!(catalogue.get("peers", b"a"), None);
        catalogue.put("peers", b"ab", b"1");
        catalogue.put("peers", b"aa", b"2");
        catalogue.put("peers", b"b", b"3");
        catalogue.put("stats", b"aa", b"4");
        catalogue.put("peers", b"ab", b"5");
        let want = [
            (b"aa".to_vec(), b"2".to_vec()),
            (b"ab".to_vec(), b"5".to_vec()),
        ];
        assert_eq!(rows(catalogue, "peers", b"a"), want);
        assert_eq!(rows(catalogue, "peers", b"").len(), 3);
        assert_eq!(rows(catalogue, "none", b""), []);
        catalogue.remove("peers", b"ab");
        catalogue.remove("peers", b"absent");
        assert_eq!(catalogue.get("peers", b"ab"), None);
        assert_eq!(catalogue.get("stats", b"aa"), Some(b"4".to_vec()));
        catalogue.flush();
    }

    #[test]
    fn rows_come_back_after_reopening() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("catalogue");
        let catalogue = Catalogue::open(&path);
        check_operations(&catalogue);
        let second = Catalogue::open(&path);
        assert_eq!(
            second.opened(),
            Opened::InMemory,
            "the first one has it open"
        );
        check_operations(&second);
        drop((catalogue, second));
        let catalogue = Catalogue::open(&path);
        assert_eq!(catalogue.opened(), Opened::AsItWas);
        assert_eq!(catalogue.get("peers", b"aa"), Some(b"2".to_vec()));
    }

    #[test]
    fn damaged_and_deleted_directories_cost_only_the_rows() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("catalogue");
        for round in 0..3 {
            let catalogue = Catalogue::open(&path);
            check_operations(&catalogue);
            drop(catalogue);
            fs::write(path.join("conf"), b"this is no configuration").unwrap();
            let catalogue = Catalogue::open(&path);
            assert_eq!(catalogue.opened(), Opened::MovedAside, "round {round}");
            check_operations(&catalogue);
            drop(catalogue);
            fs::remove_dir_all(&path).unwrap();
        }
        assert_eq!(Catalogue::open(&path).opened(), Opened::AsItWas);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
    }

    #[test]
    fn a_failure_in_use_leaves_a_mark_and_a_new_database() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("catalogue");
        let catalogue = Catalogue::open(&path);
        catalogue.put("peers", b"a", b"1");
        assert_eq!(catalogue.guarded::<()>(|| panic!("as sled does")), None);
        assert_eq!(catalogue.get("peers", b"a"), None);
        drop(catalogue);
        let catalogue = Catalogue::open(&path);
        assert_eq!(catalogue.opened(), Opened::MovedAside);
        check_operations(&catalogue);
        drop(catalogue);
        assert_eq!(Catalogue::open(&path).opened(), Opened::AsItWas);
    }

    #[test]
    fn without_a_place_rows_are_kept_in_memory_within_a_bound() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("file"), b"").unwrap();
        let catalogue = Catalogue::open(&dir.path().join("file/catalogue"));
        assert_eq!(catalogue.opened(), Opened::InMemory);
        check_operations(&catalogue);
        for number in 0..20u8 {
            catalogue.put("large", &[number], &vec![number; 1024 * 1024]);
        }
        assert_eq!(rows(&catalogue, "large", b"").len(), 15);
    }
}
