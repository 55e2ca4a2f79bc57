//! What is worth knowing again after a restart, and may be lost: which members were met where. Kept in the catalogue.
//!
//! The catalogue belongs to one thread, because its database may take seconds to open, and may fail in every call: nobody
//! else ever waits for it. It is opened when the first folder goes online, so a daemon with private folders has none.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::Duration;

use ccbt_xet::catalogue::{Catalogue, Opened};

use crate::clock;
use crate::engine::swarm::SwarmHandle;
use crate::share::FolderId;

/// In the state directory.
const DIR: &str = "catalogue";
/// Rows `folder id, address -> day of the last meeting`.
const PEERS: &str = "peers";
/// Members of one folder that are remembered: enough to find one that is still there.
const PEERS_MAX: usize = 64;
/// Nobody is looked for who was not met for so long.
const PEERS_DAYS_MAX: u32 = 90;
/// Notes that may wait while the database opens; more are dropped.
const NOTES_MAX: usize = 1024;
/// Rows are written to disk together, so long after the first of them.
const FLUSH_AFTER: Duration = Duration::from_secs(5);
/// How long the end of the daemon waits for that.
const CLOSE_TIME: Duration = Duration::from_secs(2);

/// The way to the catalogue.
pub(super) struct Seen {
    notes: SyncSender<Note>,
    rebuilt: Arc<AtomicU64>,
}

enum Note {
    Met(FolderId, SocketAddr),
    Recall(FolderId, SwarmHandle),
    /// Write everything to disk, let go of the database, and say so.
    End(SyncSender<()>),
}

impl Seen {
    pub(super) fn start(state: &Path) -> std::io::Result<Self> {
        let (notes, received) = sync_channel(NOTES_MAX);
        let rebuilt = Arc::new(AtomicU64::new(0));
        let keeper = Keeper {
            dir: state.join(DIR),
            catalogue: None,
            rebuilt: Arc::clone(&rebuilt),
        };
        let builder = std::thread::Builder::new().name("seen".to_owned());
        builder.spawn(move || keeper.run(&received))?;
        Ok(Self { notes, rebuilt })
    }

    /// A member of the folder was met, who can be called at `addr`.
    pub(super) fn met(&self, folder: FolderId, addr: SocketAddr) {
        self.tell(Note::Met(folder, addr));
    }

    /// Tells a folder where its members were met in earlier runs.
    pub(super) fn recall(&self, folder: FolderId, swarm: SwarmHandle) {
        self.tell(Note::Recall(folder, swarm));
    }

    /// How often the catalogue was damaged and begun anew in this run.
    pub(super) fn rebuilt(&self) -> u64 {
        self.rebuilt.load(Ordering::Relaxed)
    }

    /// Writes what is left to disk, if that does not take long.
    pub(super) fn close(&self) {
        let (done, is_done) = sync_channel(1);
        self.tell(Note::End(done));
        // What did not get there in time is as good as lost, and may be.
        let _late = is_done.recv_timeout(CLOSE_TIME);
    }

    fn tell(&self, note: Note) {
        // What does not fit is forgotten: it will be met again.
        let _full = self.notes.try_send(note);
    }
}

/// The thread's own.
struct Keeper {
    dir: PathBuf,
    catalogue: Option<Catalogue>,
    rebuilt: Arc<AtomicU64>,
}

impl Keeper {
    fn run(mut self, notes: &Receiver<Note>) {
        let mut is_dirty = false;
        loop {
            let note = match is_dirty {
                true => notes.recv_timeout(FLUSH_AFTER),
                false => notes.recv().map_err(|_| RecvTimeoutError::Disconnected),
            };
            match note {
                Ok(Note::Met(folder, addr)) => {
                    let today = clock::unix_days();
                    self.catalogue()
                        .put(PEERS, &key(&folder, addr), &today.to_le_bytes());
                    is_dirty = true;
                }
                Ok(Note::Recall(folder, swarm)) => {
                    for addr in recall(self.catalogue(), &folder, clock::unix_days()) {
                        swarm.found(addr);
                    }
                }
                Ok(Note::End(done)) => {
                    self.flush();
                    drop(self.catalogue.take());
                    let _nobody = done.send(());
                    return;
                }
                Err(RecvTimeoutError::Timeout) => {
                    self.flush();
                    is_dirty = false;
                }
                Err(RecvTimeoutError::Disconnected) => return self.flush(),
            }
        }
    }

    fn flush(&self) {
        if let Some(catalogue) = &self.catalogue {
            catalogue.flush();
        }
    }

    fn catalogue(&mut self) -> &Catalogue {
        let (dir, rebuilt) = (&self.dir, &self.rebuilt);
        self.catalogue.get_or_insert_with(|| {
            let catalogue = Catalogue::open(dir);
            if catalogue.opened() == Opened::MovedAside {
                rebuilt.fetch_add(1, Ordering::Relaxed);
            }
            catalogue
        })
    }
}

/// Where members were met, the latest first. Drops rows that are too old or too many.
fn recall(catalogue: &Catalogue, folder: &FolderId, today: u32) -> Vec<SocketAddr> {
    let mut rows: Vec<(u32, Vec<u8>)> = Vec::new();
    for (key, value) in catalogue.iter_prefix(PEERS, folder.as_bytes()) {
        let day = <[u8; 4]>::try_from(value.as_slice()).map_or(0, u32::from_le_bytes);
        rows.push((day, key));
    }
    rows.sort_unstable_by(|a, b| b.cmp(a));
    let mut known = Vec::new();
    for (day, key) in rows {
        match addr_of(&key) {
            // A clock that was ahead makes days of the future; they count as today.
            Some(addr)
                if today.saturating_sub(day) <= PEERS_DAYS_MAX && known.len() < PEERS_MAX =>
            {
                known.push(addr);
            }
            _ => catalogue.remove(PEERS, &key),
        }
    }
    known
}

fn key(folder: &FolderId, addr: SocketAddr) -> Vec<u8> {
    let mut key = folder.as_bytes().to_vec();
    key.extend_from_slice(addr.to_string().as_bytes());
    key
}

pub(super) fn addr_of(key: &[u8]) -> Option<SocketAddr> {
    let addr = key.get(FolderId::LEN..)?;
    std::str::from_utf8(addr).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TODAY: u32 = 20_000;

    fn addr(n: u16) -> SocketAddr {
        SocketAddr::from(([10, 0, 0, 1], n))
    }

    fn put(catalogue: &Catalogue, folder: &FolderId, n: u16, day: u32) {
        catalogue.put(PEERS, &key(folder, addr(n)), &day.to_le_bytes());
    }

    #[test]
    fn members_come_back_latest_first_and_only_those_of_the_folder() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(DIR);
        let (mine, other) = (FolderId::from_bytes([1; 32]), FolderId::from_bytes([2; 32]));
        let catalogue = Catalogue::open(&path);
        put(&catalogue, &mine, 1, TODAY - 2);
        put(&catalogue, &mine, 2, TODAY);
        put(&catalogue, &mine, 3, TODAY - PEERS_DAYS_MAX - 1);
        put(&catalogue, &other, 4, TODAY);
        catalogue.put(PEERS, &[&[1; 32][..], b"no address"].concat(), b"odd");
        catalogue.flush();
        drop(catalogue);
        let catalogue = Catalogue::open(&path);
        assert_eq!(recall(&catalogue, &mine, TODAY), [addr(2), addr(1)]);
        assert_eq!(catalogue.iter_prefix(PEERS, mine.as_bytes()).count(), 2);
        assert_eq!(recall(&catalogue, &other, TODAY), [addr(4)]);
    }

    #[test]
    fn no_more_than_a_bound_are_kept() {
        let dir = tempfile::tempdir().unwrap();
        let catalogue = Catalogue::open(&dir.path().join(DIR));
        let folder = FolderId::from_bytes([1; 32]);
        for n in 1..=200 {
            put(&catalogue, &folder, n, TODAY);
        }
        assert_eq!(recall(&catalogue, &folder, TODAY).len(), PEERS_MAX);
        assert_eq!(
            catalogue.iter_prefix(PEERS, folder.as_bytes()).count(),
            PEERS_MAX
        );
    }

    #[test]
    fn a_damaged_database_is_counted_and_replaced() {
        let state = tempfile::tempdir().unwrap();
        put(
            &Catalogue::open(&state.path().join(DIR)),
            &FolderId::from_bytes([1; 32]),
            9,
            TODAY,
        );
        std::fs::write(state.path().join(DIR).join("conf"), b"no configuration").unwrap();
        let seen = Seen::start(state.path()).unwrap();
        let folder = FolderId::from_bytes([1; 32]);
        seen.met(folder, addr(1));
        seen.close();
        assert_eq!(seen.rebuilt(), 1);
        let catalogue = Catalogue::open(&state.path().join(DIR));
        assert_eq!(recall(&catalogue, &folder, clock::unix_days()), [addr(1)]);
    }

    #[test]
    fn a_daemon_that_meets_nobody_makes_no_database() {
        let state = tempfile::tempdir().unwrap();
        Seen::start(state.path()).unwrap().close();
        assert!(!state.path().join(DIR).exists());
    }
}
