//! The part of the actor that deals with what is on disk: opening, checking, noting what is here, and saying how it stands.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use parking_lot::RwLock;

use super::actor::Actor;
use super::disk::DiskTorrent;
use super::hashes::PieceHashes;
use super::resume::{self, Left, ResumeLog};
use super::storage::Storage;
use super::{Metadata, PARTS_FILE, Phase, TorrentStatus};
use crate::proto::bitfield::Bitfield;
use crate::proto::blocks::Layout;
use crate::proto::torrent::{Now, Summary};

/// What is known once the metadata is.
pub(super) struct Content {
    pub(super) disk: Arc<DiskTorrent>,
    /// What is here, for readers that do not ask the actor.
    pub(super) have: Arc<RwLock<Bitfield>>,
    pub(super) log: Option<ResumeLog>,
    /// Bytes of files that are wanted, and of those in each piece that has any.
    wanted_bytes: u64,
    wanted_files: u64,
    wanted: Vec<u64>,
    /// How much each piece is wanted, as its most wanted file.
    pub(super) priorities: Vec<u8>,
    /// Symbolic links have been made.
    finished: bool,
}

/// What was found on disk.
pub(super) struct Checked {
    pub(super) have: Bitfield,
    /// The log of an earlier run says so and was closed in order.
    pub(super) noted: bool,
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
        let storage = Storage::new(
            info,
            self.config.dir.clone(),
            self.config.state.join(PARTS_FILE),
            self.config.settings.preallocation,
            wants,
        );
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
            wanted_bytes: 0,
            wanted_files: 0,
            wanted: Vec::new(),
            priorities: Vec::new(),
            finished: false,
        });
        self.config.name = String::from_utf8_lossy(info.name.as_bytes()).into_owned();
        let metadata = Arc::new(metadata);
        self.machine.set_metadata(raw_of(&metadata));
        self.hash_trees(&metadata.info, &metadata.layers);
        self.metadata = Some(metadata);
        self.count_wanted();
        self.check(false);
    }

    /// Finds out what the selection means for pieces.
    pub(super) fn count_wanted(&mut self) {
        let (Some(content), Some(metadata)) = (&mut self.content, &self.metadata) else {
            return;
        };
        let pieces = content.disk.layout.pieces() as usize;
        let piece_bytes = u64::from(content.disk.layout.piece_bytes().max(1));
        (content.wanted_bytes, content.wanted_files) = (0, 0);
        content.wanted = vec![0; pieces];
        content.priorities = vec![0; pieces];
        for file in &metadata.info.files {
            let priority = self.config.selection.priority(file);
            if priority == 0 {
                continue;
            }
            content.wanted_bytes += file.length;
            content.wanted_files += 1;
            spread(&mut content.wanted, file.offset, file.length, piece_bytes);
            let touched =
                file.offset / piece_bytes..(file.offset + file.length).div_ceil(piece_bytes);
            if file.length > 0 {
                for piece in touched {
                    if let Some(old) = content.priorities.get_mut(piece as usize) {
                        *old = (*old).max(priority);
                    }
                }
            }
        }
    }

    /// Tells the machine how much each piece is wanted.
    pub(super) fn want_selected(&mut self, now: Now) {
        let Some(content) = &self.content else { return };
        let lazy = self.config.lazy;
        let priority = |priority: &u8| if lazy { 0 } else { *priority };
        let wanted: Vec<(u32, u8)> = (0..).zip(content.priorities.iter().map(priority)).collect();
        self.machine.want(now, wanted);
    }

    /// Finds out which pieces are here. `all`: whatever the log says.
    pub(super) fn check(&mut self, all: bool) {
        let Some(content) = &self.content else { return };
        self.phase = Phase::Checking;
        self.next_status = self.clock.now();
        let (disk, path) = (Arc::clone(&content.disk), self.resume_path());
        let (checked, done) = (self.checked.clone(), Arc::clone(&self.checked_pieces));
        self.checked_pieces.store(0, Ordering::Relaxed);
        self.checking_pieces = content.disk.layout.pieces().into();
        let metadata = self.metadata.clone();
        let selection = self.config.selection.clone();
        tokio::task::spawn_blocking(move || {
            let files = metadata.as_ref().map(|metadata| &metadata.info.files);
            let wants = |n: usize| {
                files
                    .and_then(|files| files.get(n))
                    .is_some_and(|file| selection.wants(file))
            };
            let result = look(&disk, wants, &path, all, &|n| {
                done.fetch_add(n.into(), Ordering::Relaxed);
            });
            let looked = result.unwrap_or_else(|error| Checked {
                have: Bitfield::new(disk.layout.pieces()),
                noted: false,
                error: Some(error),
            });
            // An error means that the torrent was closed meanwhile.
            drop(checked.send(looked));
        });
    }

    pub(super) fn recheck(&mut self) {
        // While a check runs there is nothing to check again.
        if self.phase != Phase::Checking && self.content.is_some() {
            self.trouble = None;
            self.check(true);
        }
    }

    /// The look at the disk is over: from here on pieces are asked for.
    pub(super) fn begin(&mut self, checked: Checked) {
        let now = self.clock.now();
        match &checked.error {
            // The user makes room, and it goes on.
            Some(error) if error.kind() == std::io::ErrorKind::StorageFull => {
                self.phase = Phase::Downloading;
                return self.disk_trouble(now, error);
            }
            Some(error) => return self.stop(format!("cannot use the output folder: {error}")),
            None => {}
        }
        let path = self.resume_path();
        let (Some(content), Some(metadata)) = (&mut self.content, &self.metadata) else {
            return;
        };
        content.log = match checked.noted {
            // It stays as it is until there is something to add: a thousand seeds that start write nothing.
            true => Some(ResumeLog::unchanged(&path)),
            false => begin_log(&path, &checked.have),
        };
        *content.have.write() = checked.have.clone();
        let layout = content.disk.layout.clone();
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
            let raw = raw_of(metadata);
            let private = metadata.info.private;
            self.machine.begin(now, layout, raw, private, checked.have);
            self.machine.set_order(self.config.settings.order.into());
            self.want_selected(now);
        }
        self.take_held();
        self.hold(now);
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
            _ if self.queued => Phase::Queued,
            (None, _) => Phase::Metadata,
            (Some(_), false) => Phase::Checking,
            (Some(_), true) if self.machine.is_finished() => Phase::Seeding,
            (Some(_), true) => Phase::Downloading,
        };
        self.seeding_since = match self.phase {
            Phase::Seeding => self.seeding_since.or_else(|| Some(self.clock.now())),
            _ => None,
        };
        if let (Phase::Seeding, Some(content)) = (self.phase, &mut self.content)
            && !std::mem::replace(&mut content.finished, true)
            && let Err(error) = content.disk.storage.finish()
        {
            tracing::warn!(%error, "cannot make the symbolic links of the torrent");
        }
    }

    pub(super) fn log_piece(&mut self, piece: u32) {
        let have = self.machine.have();
        let log = self
            .content
            .as_mut()
            .and_then(|content| content.log.as_mut());
        if let (Some(have), Some(log)) = (have, log)
            && let Err(error) = log.verified(piece, have)
        {
            tracing::warn!(%error, piece, "a piece could not be noted; it may be fetched again");
        }
    }

    /// Pieces have gone that were noted.
    pub(super) fn rewrite_log(&mut self) {
        let path = self.resume_path();
        if let (Some(content), Some(have)) = (&mut self.content, self.machine.have()) {
            content.log = begin_log(&path, have);
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
    pub(super) fn describe(&self, now: Now, summary: &Summary) -> TorrentStatus {
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
        let settings = &self.config.settings;
        let ratio = summary.bytes_up as f64 / total.unwrap_or(0).max(1) as f64;
        let since = self.seeding_since.unwrap_or(now);
        let seeded = settings.seed_ratio.is_some_and(|wanted| ratio >= wanted)
            || settings
                .seed_time
                .is_some_and(|wanted| now.saturating_sub(since) >= wanted);
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
            bytes_held: self.files.held_bytes,
            peers: summary.peers,
            seeds: summary.seeds,
            web_seeds: self.webs.active(),
            note: self.note(summary),
            finished,
            // Once it is, it stays so: it is paused then, and time stops.
            done_seeding: self.seeded || (finished && seeded),
            has_layers: summary.hash_sources.is_none(),
        }
    }

    /// What is going on, or why nothing is.
    fn note(&self, summary: &Summary) -> String {
        if let Some(trouble) = &self.trouble {
            return trouble.clone();
        }
        if self.files.moving {
            return "moving files".to_owned();
        }
        if self.files.taking && self.phase == Phase::Downloading {
            return "taking what other torrents have".to_owned();
        }
        if let (Some(note), Phase::Downloading) = (&self.files.lost_note, self.phase) {
            return note.clone();
        }
        let peers = summary.peers;
        let web = self.webs.active();
        let metadata = format!(
            "waiting for metadata from {} of {peers} peers",
            summary.metadata_sources
        );
        match self.phase {
            Phase::Paused if self.seeded => "seeded enough".to_owned(),
            Phase::Paused => "paused".to_owned(),
            Phase::Queued => "waiting until others are done".to_owned(),
            Phase::Checking => "checking files".to_owned(),
            Phase::Seeding => format!("seeding to {} of {peers} peers", summary.leechers),
            Phase::Metadata if let Some(sources) = summary.hash_sources => {
                format!("waiting for piece hashes from {sources} of {peers} peers")
            }
            Phase::Metadata if peers > 0 => metadata,
            Phase::Metadata => "looking for peers with the metadata".to_owned(),
            _ if web > 0 && summary.unchoked == 0 && summary.missing > 0 => {
                format!("downloading from {web} web seeds, {peers} peers")
            }
            _ if peers == 0 => self.webs.trouble().unwrap_or_else(|| "no peers".to_owned()),
            _ if self.config.lazy && summary.missing == 0 => {
                format!("waiting for reads, {peers} peers")
            }
            _ if summary.copies_min == Some(0) && summary.rate_down == 0 => {
                format!("{peers} peers, none of which has what is missing")
            }
            _ if summary.unchoked == 0 => format!("all {peers} peers choke us"),
            _ if web > 0 => format!(
                "downloading from {} of {peers} peers and {web} web seeds",
                summary.unchoked
            ),
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

fn begin_log(path: &std::path::Path, have: &Bitfield) -> Option<ResumeLog> {
    ResumeLog::begin(path, have)
        .inspect_err(|error| {
            tracing::warn!(%error, "what is downloaded will be checked at the next start");
        })
        .ok()
}

/// The info dictionary where it lies, without a copy.
fn raw_of(metadata: &Arc<Metadata>) -> Bytes {
    struct Raw(Arc<Metadata>);
    impl AsRef<[u8]> for Raw {
        fn as_ref(&self) -> &[u8] {
            self.0.info.raw()
        }
    }
    Bytes::from_owner(Raw(Arc::clone(metadata)))
}

/// Prepares the output folder and finds out which pieces are in it.
fn look(
    disk: &DiskTorrent,
    wants: impl Fn(usize) -> bool,
    resume: &std::path::Path,
    all: bool,
    progress: &(dyn Fn(u32) + Sync),
) -> std::io::Result<Checked> {
    let pieces = disk.layout.pieces();
    disk.storage.prepare()?;
    disk.storage.place(wants)?;
    disk.storage.preallocate()?;
    let found = |have, noted| Checked {
        have,
        noted,
        error: None,
    };
    let some = |have: &Bitfield| have.iter().collect::<Vec<u32>>();
    let check = match resume::read(resume, pieces) {
        Left::Sure { have, closed }
            if !all && (have.ones() == 0 || disk.storage.is_present(&have, &disk.layout)) =>
        {
            return Ok(found(have, closed));
        }
        Left::Unsure(have) if !all => some(&have),
        _ => (0..pieces).collect(),
    };
    Ok(found(disk.check_all(&check, progress), false))
}
