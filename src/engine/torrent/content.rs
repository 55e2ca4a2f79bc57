//! The part of the actor that deals with what is on disk: opening, checking, noting what is here, and saying how it stands.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::actor::Actor;
use parking_lot::RwLock;

use super::disk::DiskTorrent;
use super::hashes::PieceHashes;
use super::resume::{self, Left, ResumeLog};
use super::storage::Storage;
use super::{Metadata, Phase, TorrentStatus};
use crate::proto::bitfield::Bitfield;
use crate::proto::blocks::Layout;
use crate::proto::picker::{Order, PRIORITY_NORMAL};
use crate::proto::torrent::Summary;

/// What is known once the metadata is.
pub(super) struct Content {
    pub(super) disk: Arc<DiskTorrent>,
    /// What is here, for readers that do not ask the actor.
    pub(super) have: Arc<RwLock<Bitfield>>,
    log: Option<ResumeLog>,
    /// Bytes of files that are wanted, and of those in each piece that has any.
    wanted_bytes: u64,
    wanted_files: u64,
    wanted: Vec<u64>,
    /// Symbolic links have been made.
    finished: bool,
}

/// What was found on disk.
pub(super) struct Checked {
    pub(super) have: Bitfield,
    /// The folder could not be prepared.
    pub(super) error: Option<std::io::Error>,
}

impl Actor {
    fn resume_path(&self) -> PathBuf {
        self.config.state.join("resume")
    }

    /// The metadata is here: looks at what is on disk.
    pub(super) fn open(&mut self, metadata: Metadata) {
        let info = &metadata.info;
        let layout = Layout::of(info);
        let Some(hashes) = PieceHashes::new(info, &metadata.layers) else {
            return self.await_layers(metadata);
        };
        let selection = &self.config.selection;
        let wants = |n: usize| info.files.get(n).is_some_and(|file| selection.wants(file));
        let parts = self.config.state.join("parts");
        let storage = Storage::new(info, self.config.dir.clone(), parts, wants);
        let mut wanted = vec![0; layout.pieces() as usize];
        let (mut wanted_bytes, mut wanted_files) = (0, 0);
        for file in info.files.iter().filter(|file| selection.wants(file)) {
            wanted_bytes += file.length;
            wanted_files += 1;
            spread(
                &mut wanted,
                file.offset,
                file.length,
                u64::from(layout.piece_bytes()),
            );
        }
        let events = self.disk_events.clone();
        let disk = self
            .config
            .shared
            .disk
            .torrent(storage, layout, hashes, events);
        self.content = Some(Content {
            have: Arc::new(RwLock::new(Bitfield::new(disk.layout.pieces()))),
            disk,
            log: None,
            wanted_bytes,
            wanted_files,
            wanted,
            finished: false,
        });
        self.config.name = String::from_utf8_lossy(info.name.as_bytes()).into_owned();
        self.machine
            .set_metadata(metadata.info.raw().to_vec().into());
        self.hash_trees(&metadata.info, &metadata.layers);
        self.metadata = Some(Arc::new(metadata));
        self.check(false);
    }

    /// Finds out which pieces are here. `all`: whatever the log says.
    fn check(&mut self, all: bool) {
        let Some(content) = &self.content else { return };
        self.phase = Phase::Checking;
        let (disk, path) = (Arc::clone(&content.disk), self.resume_path());
        let (checked, done) = (self.checked.clone(), Arc::clone(&self.checked_pieces));
        self.checked_pieces.store(0, Ordering::Relaxed);
        self.checking_pieces = content.disk.layout.pieces().into();
        tokio::task::spawn_blocking(move || {
            let result = look(&disk, &path, all, &|n| {
                done.fetch_add(n.into(), Ordering::Relaxed);
            });
            let (have, error) = match result {
                Ok(have) => (have, None),
                Err(error) => (Bitfield::new(disk.layout.pieces()), Some(error)),
            };
            // An error means that the torrent was closed meanwhile.
            drop(checked.send(Checked { have, error }));
        });
    }

    pub(super) fn recheck(&mut self) {
        // While a check runs there is nothing to check again.
        if self.phase != Phase::Checking && self.content.is_some() {
            self.check(true);
        }
    }

    /// The look at the disk is over: from here on pieces are asked for.
    pub(super) fn begin(&mut self, checked: Checked) {
        let now = self.clock.now();
        if let Some(error) = checked.error {
            return self.stop(format!("cannot use the output folder: {error}"));
        }
        let path = self.resume_path();
        let (Some(content), Some(metadata)) = (&mut self.content, &self.metadata) else {
            return;
        };
        match ResumeLog::begin(&path, &checked.have) {
            Ok(log) => content.log = Some(log),
            Err(error) => {
                tracing::warn!(%error, "what is downloaded will be checked at the next start");
            }
        }
        *content.have.write() = checked.have.clone();
        let layout = content.disk.layout.clone();
        let lazy = self.config.lazy;
        let wanted: Vec<(u32, u8)> = (0..)
            .zip(&content.wanted)
            .map(|(piece, bytes)| {
                (
                    piece,
                    if *bytes > 0 && !lazy {
                        PRIORITY_NORMAL
                    } else {
                        0
                    },
                )
            })
            .collect();
        if self.machine.pieces().is_some() {
            let have = checked.have;
            (0..have.len())
                .filter(|piece| !have.has(*piece))
                .for_each(|piece| {
                    self.machine.piece_lost(now, piece);
                });
            have.iter()
                .for_each(|piece| self.machine.piece_verified(now, piece));
        } else {
            let raw = metadata.info.raw().to_vec().into();
            let private = metadata.info.private;
            self.machine.begin(now, layout, raw, private, checked.have);
            if self.config.sequential {
                self.machine.set_order(Order::Sequential);
            }
            self.machine.want(now, wanted);
        }
        self.announce_disk();
        self.answer_reads(None);
        self.set_phase();
        self.next_status = now;
    }

    /// Nothing more can be done until the user does something.
    pub(super) fn stop(&mut self, why: String) {
        tracing::warn!(why, "torrent stopped");
        self.phase = Phase::Stopped;
        self.trouble = Some(why);
        self.machine.hold(self.clock.now(), true);
    }

    pub(super) fn set_phase(&mut self) {
        if matches!(self.phase, Phase::Stopped) {
            return;
        }
        let begun = self.machine.pieces().is_some();
        self.phase = match (&self.content, begun) {
            _ if self.config.paused => Phase::Paused,
            (None, _) => Phase::Metadata,
            (Some(_), false) => Phase::Checking,
            (Some(_), true) if self.machine.is_finished() => Phase::Seeding,
            (Some(_), true) => Phase::Downloading,
        };
        if let (Phase::Seeding, Some(content)) = (self.phase, &mut self.content)
            && !std::mem::replace(&mut content.finished, true)
            && let Err(error) = content.disk.storage.finish()
        {
            tracing::warn!(%error, "cannot make the symbolic links of the torrent");
        }
    }

    pub(super) fn log_piece(&mut self, piece: u32) {
        let log = self
            .content
            .as_mut()
            .and_then(|content| content.log.as_mut());
        if let Some(Err(error)) = log.map(|log| log.verified(piece)) {
            tracing::warn!(%error, piece, "a piece could not be noted; it may be fetched again");
        }
    }

    /// Makes everything durable and notes what is here.
    pub(super) async fn close_content(&mut self) {
        let Some(mut content) = self.content.take() else {
            return;
        };
        let (Some(log), Some(have)) = (content.log.take(), self.machine.have().cloned()) else {
            return;
        };
        let disk = content.disk;
        let closed = tokio::task::spawn_blocking(move || {
            disk.storage.sync()?;
            disk.storage.close();
            log.close(&have)
        });
        match closed.await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "the torrent was not closed in order"),
            Err(error) => tracing::error!(%error, "closing the torrent panicked"),
        }
    }

    /// How it stands, for a user.
    pub(super) fn describe(&self, summary: &Summary) -> TorrentStatus {
        let content = self.content.as_ref();
        let mut done = 0;
        if let (Some(content), Some(have)) = (content, self.machine.have()) {
            let bytes = have
                .iter()
                .filter_map(|piece| content.wanted.get(piece as usize));
            done = bytes.sum();
        }
        let total = content.map(|content| content.wanted_bytes);
        if self.phase == Phase::Checking && self.checking_pieces > 0 {
            let share =
                self.checked_pieces.load(Ordering::Relaxed) as f64 / self.checking_pieces as f64;
            done = (share * total.unwrap_or(0) as f64) as u64;
        }
        let finished = self.machine.is_finished();
        let ratio = summary.bytes_up as f64 / total.unwrap_or(0).max(1) as f64;
        TorrentStatus {
            name: self.config.name.clone(),
            phase: self.phase,
            bytes_total: total,
            bytes_done: done,
            files_total: content.map_or(0, |content| content.wanted_files),
            rate_down: summary.rate_down,
            rate_up: summary.rate_up,
            bytes_down: summary.bytes_down,
            bytes_up: summary.bytes_up,
            bytes_wasted: summary.bytes_wasted,
            peers: summary.peers,
            seeds: summary.seeds,
            note: self.note(summary),
            finished,
            done_seeding: finished && self.config.seed_ratio.is_some_and(|wanted| ratio >= wanted),
            has_layers: summary.hash_sources.is_none(),
        }
    }

    /// What is going on, or why nothing is.
    fn note(&self, summary: &Summary) -> String {
        if let Some(trouble) = &self.trouble {
            return trouble.clone();
        }
        let peers = summary.peers;
        let metadata = format!(
            "waiting for metadata from {} of {peers} peers",
            summary.metadata_sources
        );
        match self.phase {
            Phase::Paused => "paused".to_owned(),
            Phase::Checking => "checking files".to_owned(),
            Phase::Seeding => format!("seeding to {} of {peers} peers", summary.leechers),
            Phase::Metadata if let Some(sources) = summary.hash_sources => {
                format!("waiting for piece hashes from {sources} of {peers} peers")
            }
            Phase::Metadata if peers > 0 => metadata,
            Phase::Metadata => "looking for peers with the metadata".to_owned(),
            _ if peers == 0 => "no peers".to_owned(),
            _ if self.config.lazy && summary.missing == 0 => {
                format!("waiting for reads, {peers} peers")
            }
            _ if summary.copies_min == Some(0) && summary.rate_down == 0 => {
                format!("{peers} peers, none of which has what is missing")
            }
            _ if summary.unchoked == 0 => format!("all {peers} peers choke us"),
            _ => format!("downloading from {} of {peers} peers", summary.unchoked),
        }
    }
}

/// Adds the bytes of a file to the pieces it lies in.
fn spread(pieces: &mut [u64], offset: u64, length: u64, piece_bytes: u64) {
    let (mut at, end) = (offset, offset + length);
    while at < end {
        let piece = at / piece_bytes;
        let next = ((piece + 1) * piece_bytes).min(end);
        if let Some(bytes) = pieces.get_mut(piece as usize) {
            *bytes += next - at;
        }
        at = next;
    }
}

/// Prepares the output folder and finds out which pieces are in it.
fn look(
    disk: &DiskTorrent,
    resume: &std::path::Path,
    all: bool,
    progress: &(dyn Fn(u32) + Sync),
) -> std::io::Result<Bitfield> {
    let pieces = disk.layout.pieces();
    disk.storage.prepare()?;
    let some = |have: &Bitfield| have.iter().collect::<Vec<u32>>();
    let check = match resume::read(resume, pieces) {
        Left::Sure(have)
            if !all && (have.ones() == 0 || disk.storage.is_present(&have, &disk.layout)) =>
        {
            return Ok(have);
        }
        Left::Unsure(have) if !all => some(&have),
        _ => (0..pieces).collect(),
    };
    Ok(disk.check_all(&check, progress))
}
