//! The part of the actor that deals with files while the torrent runs: another choice of them, another folder, a disk in trouble, files that
//! are not what they were.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;

use super::actor::Actor;
use super::relocate::MoveError;
use super::select::Selection;
use super::{Phase, ToTorrent};
use crate::proto::torrent::Now;

/// After an error of the disk, wait before asking for more.
const DISK_RETRY_TIME: Duration = Duration::from_secs(5);
/// A full disk must have this much room, and two pieces, before more is asked for.
const ROOM_BYTES_MIN: u64 = 4 << 20;

/// What is going on with files.
#[derive(Debug, Default)]
pub(super) struct FilesState {
    /// They are on their way to another folder.
    pub(super) moving: bool,
    /// Content of other torrents is being taken.
    pub(super) taking: bool,
    pub(super) held_bytes: u64,
    /// Some that are wanted could not be put into the folder.
    unplaced: bool,
    /// The disk had no room.
    full: bool,
    /// What is to be said of those that have gone, until all is here again.
    pub(super) lost_note: Option<String>,
}

type MoveReply = oneshot::Sender<Result<(), MoveError>>;

impl Actor {
    /// Asks peers for blocks, or not.
    pub(super) fn hold(&mut self, now: Now) {
        let busy = self.files.moving || self.files.taking;
        let held = self.is_resting() || self.trouble.is_some() || busy;
        self.machine.hold(now, held);
    }

    /// Other files are wanted: those that were not go into the folder first.
    pub(super) fn select(&mut self, selection: Selection) {
        self.config.selection = selection;
        let (Some(content), Some(metadata)) = (&self.content, &self.metadata) else {
            return;
        };
        let selection = self.config.selection.clone();
        let (disk, metadata, handle) = (
            Arc::clone(&content.disk),
            Arc::clone(metadata),
            self.handle.clone(),
        );
        tokio::task::spawn_blocking(move || {
            let files = &metadata.info.files;
            let wants = |n: usize| files.get(n).is_some_and(|file| selection.wants(file));
            handle.tell(ToTorrent::Placed(disk.storage.place(wants)));
        });
    }

    pub(super) fn placed(&mut self, now: Now, result: io::Result<()>) {
        self.files.unplaced = result.is_err();
        if let Err(error) = result {
            return self.disk_trouble(now, &error);
        }
        self.count_wanted();
        self.want_selected(now);
        self.set_phase();
        self.next_status = now;
    }

    pub(super) fn relocate(&mut self, now: Now, to: PathBuf, reply: MoveReply) {
        let ready = self.machine.pieces().is_some() && self.phase != Phase::Checking;
        let Some(content) = self
            .content
            .as_ref()
            .filter(|_| ready && !self.files.moving)
        else {
            // Who asked may have gone away.
            return drop(reply.send(Err(MoveError::NotYet)));
        };
        let (disk, pool) = (Arc::clone(&content.disk), self.config.shared.disk.clone());
        let handle = self.handle.clone();
        self.files.moving = true;
        self.hold(now);
        self.next_status = now;
        tokio::task::spawn_blocking(move || {
            // What has been asked for no more is not taken; what has come is written before the files go.
            pool.barrier();
            let result = disk.storage.relocate(&to, false);
            handle.tell(ToTorrent::Moved(to, result, reply));
        });
    }

    pub(super) fn moved(
        &mut self,
        now: Now,
        to: PathBuf,
        result: Result<(), MoveError>,
        reply: MoveReply,
    ) {
        self.files.moving = false;
        if result.is_ok() {
            self.config.dir = to;
        }
        self.hold(now);
        self.next_status = now;
        drop(reply.send(result));
    }

    pub(super) fn sweep(&self, from: PathBuf) {
        if let Some(content) = &self.content {
            let disk = Arc::clone(&content.disk);
            drop(tokio::task::spawn_blocking(move || {
                disk.storage.sweep(&from);
            }));
        }
    }

    /// The disk does not do what it should: nothing is asked for, for a while.
    pub(super) fn disk_trouble(&mut self, now: Now, error: &io::Error) {
        use std::io::ErrorKind;
        self.files.full = matches!(
            error.kind(),
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded
        );
        let trouble = match self.files.full {
            true => "the disk is full; it goes on when there is room".to_owned(),
            false => format!("cannot write to the output folder: {error}"),
        };
        tracing::warn!(%error, "a piece could not be written");
        self.trouble = Some(trouble);
        self.hold(now);
        self.retry_at = Some(now + DISK_RETRY_TIME);
        self.next_status = now;
    }

    pub(super) fn retry(&mut self, now: Now) {
        self.retry_at = None;
        if self.phase == Phase::Stopped {
            return;
        }
        if self.files.full && !self.has_room() {
            self.retry_at = Some(now + DISK_RETRY_TIME);
            return;
        }
        self.trouble = None;
        self.files.full = false;
        if self.files.unplaced {
            self.select(self.config.selection.clone());
        }
        if self.machine.pieces().is_none() {
            // The space for all files could not be taken.
            return self.check(false);
        }
        self.hold(now);
        self.next_status = now;
    }

    /// A quota is not seen here: then it is tried again.
    fn has_room(&self) -> bool {
        self.content.as_ref().is_none_or(|content| {
            let needed = ROOM_BYTES_MIN.max(2 * u64::from(content.disk.layout.piece_bytes()));
            content
                .disk
                .storage
                .free_bytes()
                .is_ok_and(|free| free >= needed)
        })
    }

    /// A peer was to get something that is not on disk any more.
    pub(super) fn unreadable(&mut self, now: Now, piece: u32) {
        let (Some(content), Some(have)) = (&self.content, self.machine.have()) else {
            return;
        };
        if !have.has(piece) || self.phase == Phase::Checking {
            return;
        }
        let mut lost = content.disk.storage.lacking(have, &content.disk.layout);
        if lost.is_empty() {
            lost.push(piece);
        }
        tracing::warn!(pieces = lost.len(), "files were changed or moved away");
        let count = lost.len();
        for piece in lost {
            self.machine.piece_lost(now, piece);
            self.piece_gone(piece);
        }
        self.rewrite_log();
        self.set_phase();
        let pieces = if count == 1 { "piece is" } else { "pieces are" };
        self.files.lost_note = Some(format!(
            "{count} {pieces} gone from the output folder: fetching again"
        ));
        self.next_status = now;
    }
}
