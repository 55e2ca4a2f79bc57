//! What is done for the store while nobody asks: damage is looked for and repaired, and where everything lies is
//! saved for the next start. What was displaced long ago goes.
//!
//! Everything is read once in [`ROUND_EVERY`], slowly. How far that got is kept beside the store, so a round goes on
//! after a restart; a crash may lose the last step of it.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use ccbt_xet::store::{Store, Verified, VerifyPosition};
use serde::{Deserialize, Serialize};

use super::Daemon;
use super::open::blocking;
use crate::api::types::{JobStatus, Progress};
use crate::api::{ApiError, ErrorKind};
use crate::{clock, state_file};

/// Time between two looks whether there is something to do, and before the first.
const LOOK_EVERY: Duration = Duration::from_secs(60);

/// Time between two looks at what is displaced in plain directories.
const EXPIRE_EVERY: Duration = Duration::from_secs(1800);

/// Time from the end of one round to the next, in milliseconds.
const ROUND_EVERY_MS: u64 = 7 * 86_400_000;

/// Bytes read a second: a quarter of a terabyte a day, and a thousandth of a core.
const READ_RATE: u64 = 3 << 20;

/// File with [`Round`] in the state directory.
const ROUND_FILE: &str = "scrub.json";

/// How far reading everything got.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Round {
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

impl Daemon {
    /// Looks after the store until the daemon stops.
    pub(super) fn start_upkeep(&self) {
        let (inner, mut round) = (Arc::downgrade(&self.0), self.read_round());
        let mut expired: Option<Instant> = None;
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(LOOK_EVERY).await;
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
        self.mend().await?;
        for store in self.0.stores.all() {
            let saved = blocking(move || Ok(store.checkpoint_if_due())).await?;
            if let Err(error) = saved {
                tracing::warn!(%error, "the next start will take longer");
            }
        }
        if clock::unix_millis().saturating_sub(round.ended_ms) < ROUND_EVERY_MS {
            return Ok(());
        }
        let id = self.0.next_number.fetch_add(1, Ordering::Relaxed);
        let done = self.scrub(round, id).await;
        self.0.jobs.lock().remove(&id);
        done
    }

    /// Reads all packs after where the round is, one after the other.
    async fn scrub(&self, round: &mut Round, id: u64) -> Result<(), ApiError> {
        while !self.is_stopping() {
            let (daemon, from) = (self.clone(), *round);
            let step = blocking(move || daemon.scrub_pack(from, id)).await?;
            let Some((at, found)) = step else {
                if round.store + 1 < self.0.stores.all().len() {
                    let store = round.store + 1;
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
                return self.write_round(*round);
            };
            if found.damaged > 0 {
                self.mend().await?;
            }
            if !self.is_stopping() {
                (round.nodes, round.pack) = (at.nodes, at.pack);
                self.write_round(*round)?;
            }
        }
        Ok(())
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
        let step = store.verify_next(position, &mut |read, (before, total)| {
            let progress = Progress {
                bytes_done: before + read,
                bytes_total: Some(total),
                note: "looking for damage".to_owned(),
                ..Progress::default()
            };
            let what = "scrub".to_owned();
            self.0.jobs.lock().insert(id, JobStatus { what, progress });
            let due = Duration::from_millis(read * 1000 / READ_RATE);
            std::thread::sleep(due.saturating_sub(started.elapsed()));
            !self.is_stopping()
        });
        step.map_err(|error| ApiError::new(ErrorKind::Io, error))
    }

    /// Gets back what was found damaged since the last time, whoever found it.
    async fn mend(&self) -> Result<(), ApiError> {
        let (chunks, nodes) = self.take_quarantined();
        if chunks.is_empty() && nodes.is_empty() {
            return Ok(());
        }
        let damaged = (chunks.len() + nodes.len()) as u64;
        let repaired = self.repair(&chunks, &nodes).await?;
        tracing::warn!(damaged, repaired, "records of the store were damaged");
        Ok(())
    }

    fn is_stopping(&self) -> bool {
        self.0.stopping.load(Ordering::Relaxed)
    }

    /// What is unreadable counts as never begun; a new store has nothing in it that was not just verified.
    fn read_round(&self) -> Round {
        match std::fs::read(self.0.state.path().join(ROUND_FILE)) {
            Ok(bytes) => serde_json::from_slice(&bytes).unwrap_or_default(),
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
