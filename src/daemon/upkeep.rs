//! What is done for the store while nobody asks: damage is looked for and repaired, garbage is collected, and where
//! everything lies is saved for the next start. What was displaced long ago goes.
//!
//! Everything is read once in `store.scrub_every_s`, slowly; after such a round what no folder needs is dropped. How
//! far a round got is kept beside the store, so it goes on after a restart; a crash may lose the last step of it.
//! `docs/formats/scrub.md` has the file.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use ccbt_xet::store::{Collect, Store, Verified, VerifyPosition};
use serde::{Deserialize, Serialize};

use super::Daemon;
use super::open::blocking;
use super::store::collecting;
use crate::api::types::{JobStatus, Progress};
use crate::api::{ApiError, ErrorKind};
use crate::{clock, state_file};

/// How long the garbage collection waits for files that are being stored. Then it is not its time: while it waits,
/// no folder is opened.
const QUIET_TIME: Duration = Duration::from_secs(2);

/// Longest time somebody who waits for the garbage collection to make way is not seen.
const PAUSE_STEP: Duration = Duration::from_millis(50);

/// Time between two looks at what is displaced in plain directories.
const EXPIRE_EVERY: Duration = Duration::from_secs(1800);

/// File with [`Round`] in the state directory.
const ROUND_FILE: &str = "scrub.json";

/// How far reading everything got.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Round {
    /// Number of the store: BLAKE3's is the first.
    #[serde(default)]
    store: usize,
    /// In the packs of nodes, which come after those of chunks.
    nodes: bool,
    /// The last pack read; 0 before the first.
    pack: u32,
    /// When the last round ended, in milliseconds since 1970.
    ended_ms: u64,
}

impl Round {
    pub(super) fn parse(bytes: &[u8]) -> Option<Self> {
        serde_json::from_slice(bytes).ok()
    }
}

impl Daemon {
    /// Looks after the store until the daemon stops.
    pub(super) fn start_upkeep(&self) {
        let (inner, mut round) = (Arc::downgrade(&self.0), self.read_round());
        let mut expired: Option<Instant> = None;
        let look_every = self.0.config.store_look_every;
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(look_every).await;
                let Some(daemon) = inner
                    .upgrade()
                    .map(Self)
                    .filter(|daemon| !daemon.is_stopping())
                else {
                    return;
                };
                if expired.is_none_or(|last| last.elapsed() >= EXPIRE_EVERY) {
                    daemon.expire_displaced().await;
                    expired = Some(Instant::now());
                }
                if let Err(error) = daemon.keep_up(&mut round).await {
                    tracing::warn!(error = error.message, "the store could not be looked after");
                }
            }
        });
    }

    async fn keep_up(&self, round: &mut Round) -> Result<(), ApiError> {
        self.mend().await;
        for store in self.0.stores.all() {
            let saved = blocking(move || Ok(store.checkpoint_if_due())).await?;
            if let Err(error) = saved {
                tracing::warn!(%error, "the next start will take longer");
            }
        }
        let since_ms = clock::unix_millis().saturating_sub(round.ended_ms);
        let every = self.0.config.store_scrub_every;
        if every.is_none_or(|every| u128::from(since_ms) < every.as_millis()) {
            return Ok(());
        }
        let id = self.0.next_number.fetch_add(1, Ordering::Relaxed);
        let ended = self.scrub(round, id).await;
        self.0.jobs.lock().remove(&id);
        if ended? {
            self.collect_in_background().await;
        }
        Ok(())
    }

    /// Reads all packs after where the round is, one after the other. Whether the round ended.
    async fn scrub(&self, round: &mut Round, id: u64) -> Result<bool, ApiError> {
        while !self.is_stopping() {
            let (daemon, from) = (self.clone(), *round);
            let step = blocking(move || daemon.scrub_pack(from, id)).await?;
            let Some((at, found)) = step else {
                let store = round.store.saturating_add(1);
                if store < self.0.stores.all().len() {
                    *round = Round {
                        store,
                        nodes: false,
                        pack: 0,
                        ..*round
                    };
                    continue;
                }
                *round = Round {
                    ended_ms: clock::unix_millis(),
                    ..Round::default()
                };
                return self.write_round(*round).map(|()| true);
            };
            if found.damaged > 0 {
                self.mend().await;
            }
            if !self.is_stopping() {
                (round.nodes, round.pack) = (at.nodes, at.pack);
                self.write_round(*round)?;
            }
        }
        Ok(false)
    }

    fn scrub_pack(
        &self,
        round: Round,
        id: u64,
    ) -> Result<Option<(VerifyPosition, Verified)>, ApiError> {
        let position = VerifyPosition {
            nodes: round.nodes,
            pack: round.pack,
        };
        let started = Instant::now();
        let Some(store) = self.0.stores.all().get(round.store).cloned() else {
            return Ok(None);
        };
        let all = self.0.stores.all();
        let bytes =
            |stores: &[Arc<Store>]| -> u64 { stores.iter().map(|store| store.stats().bytes).sum() };
        let (earlier, later) = (bytes(&all[..round.store]), bytes(&all[round.store + 1..]));
        let step = store.verify_next(position, &mut |read, (before, total)| {
            let progress = Progress {
                bytes_done: earlier + before + read,
                bytes_total: Some(earlier + total + later),
                note: "looking for damage".to_owned(),
                ..Progress::default()
            };
            let what = "scrub".to_owned();
            self.0.jobs.lock().insert(id, JobStatus { what, progress });
            self.pause(started, read, &|| self.is_stopping());
            !self.is_stopping()
        });
        Ok(step)
    }

    /// Waits until as much time has gone by since `started` as `bytes` take, or until `enough`.
    fn pause(&self, started: Instant, bytes: u64, enough: &dyn Fn() -> bool) {
        let Some(rate) = self.0.config.store_scrub_rate else {
            return;
        };
        let due = Duration::from_millis(bytes.saturating_mul(1000) / rate);
        while !enough() {
            match due.checked_sub(started.elapsed()) {
                Some(left) if !left.is_zero() => std::thread::sleep(left.min(PAUSE_STEP)),
                _ => return,
            }
        }
    }

    /// Drops what no folder needs, unless a folder cannot be asked or files are being stored: then the next time.
    async fn collect_in_background(&self) {
        let id = self.0.next_number.fetch_add(1, Ordering::Relaxed);
        let daemon = self.clone();
        let collected = blocking(move || {
            let stores = daemon.0.stores.all();
            stores
                .iter()
                .try_for_each(|store| daemon.collect_slowly(store, id))
        });
        if let Err(error) = collected.await {
            tracing::info!(error = error.message, "no garbage is collected now");
        }
        self.0.jobs.lock().remove(&id);
    }

    fn collect_slowly(&self, store: &Store, id: u64) -> Result<(), ApiError> {
        let how = Collect {
            wait: QUIET_TIME,
            grace: self.0.config.store_gc_grace,
            dry_run: false,
        };
        let enough = || self.is_stopping() || self.0.waiting_for_gc.load(Ordering::Acquire) > 0;
        let started = Instant::now();
        let collected = self.collect_store(store, &how, &mut |reclaimed, (done, total)| {
            let (what, progress) = ("gc".to_owned(), collecting(done, total));
            self.0.jobs.lock().insert(id, JobStatus { what, progress });
            // What is moved is read and written.
            self.pause(started, 2 * reclaimed.moved_bytes, &enough);
            !enough()
        })?;
        let (dropped, freed_bytes) = (collected.dropped, collected.freed_bytes);
        tracing::info!(dropped, freed_bytes, "garbage collected");
        Ok(())
    }

    fn is_stopping(&self) -> bool {
        self.0.stopping.load(Ordering::Relaxed)
    }

    /// What is unreadable counts as never begun; a new store has nothing in it that was not just verified.
    fn read_round(&self) -> Round {
        match std::fs::read(self.0.state.path().join(ROUND_FILE)) {
            Ok(bytes) => Round::parse(&bytes).unwrap_or_default(),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                let round = Round {
                    ended_ms: clock::unix_millis(),
                    ..Round::default()
                };
                if let Err(error) = self.write_round(round) {
                    tracing::warn!(error = error.message, "the store's next check is not noted");
                }
                round
            }
            Err(_) => Round::default(),
        }
    }

    fn write_round(&self, round: Round) -> Result<(), ApiError> {
        let json = serde_json::to_vec(&round);
        let json = json.map_err(|error| ApiError::new(ErrorKind::Internal, error))?;
        let path = self.0.state.path().join(ROUND_FILE);
        state_file::replace(&path, &json)
            .map_err(|error| ApiError::io(format_args!("cannot write {}", path.display()), &error))
    }
}

/// The last sync of a store, and where everything lies for the next start.
pub(super) fn close_store(store: &Store) {
    if let Err(error) = store.sync() {
        tracing::error!(%error, "the store was not synced");
    } else if let Err(error) = store.checkpoint_at_end() {
        tracing::warn!(%error, "the next start will take longer");
    }
}
