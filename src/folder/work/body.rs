//! The content of one file while something has it open or it is not committed: the version it started from, and what
//! was written since.
//!
//! Every handle keeps the body it was opened on. A merge that changes the file gives its inode a new body, so old handles
//! go on reading the version they opened, and a write through one of them is committed on that version.
//!
//! Locks: `pen` is held by one writer at a time, during its I/O; `page` never during I/O. Order: pen, core, page; `sync`
//! before a page.

use std::collections::HashMap;
use std::io;
use std::ops::Range;
use std::sync::Arc;

use ccbt_xet::disk::DiskFile;
use parking_lot::{Mutex, MutexGuard};

use super::extents::{FileId, Overlay, Piece, Source};
use super::inodes::Ino;
use super::record::{self, Anchor, BodyId};
use crate::folder::state::{self, Content, Time};

/// An immutable content: the reference a version holds, and its size in bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Stored {
    pub(super) content: Content,
    pub(super) size: u64,
}

#[derive(Debug)]
pub(super) struct Body {
    pub(super) id: BodyId,
    pub(super) ino: Ino,
    pub(super) pen: Mutex<Pen>,
    /// Held while staging files are synced: whoever comes meanwhile waits for what is being synced for it too. The
    /// files for which that failed once: the kernel may have dropped their bytes, and another sync proves nothing.
    pub(super) sync: Mutex<Vec<Arc<dyn DiskFile>>>,
    page: Mutex<Page>,
}

/// What only the one writing needs.
#[derive(Debug, Default)]
pub(super) struct Pen {
    /// The staging file being appended to.
    pub(super) staging: Option<Staging>,
    /// Bytes in journal records since the last sync or commit.
    pub(super) inline: u64,
}

#[derive(Debug)]
pub(super) struct Staging {
    pub(super) number: u64,
    pub(super) file: Arc<dyn DiskFile>,
    pub(super) tail: u64,
}

/// The content as it is now.
#[derive(Debug)]
pub(super) struct Page {
    /// The version a commit replaces.
    pub(super) at: state::Base,
    pub(super) stored: Arc<Stored>,
    pub(super) overlay: Overlay,
    /// Of the newest change.
    pub(super) mtime: Time,
    /// The newest change that is committed.
    pub(super) settled: u64,
    /// The files its written bytes are in.
    pub(super) files: HashMap<FileId, Arc<dyn DiskFile>>,
    /// Staging files with bytes that may not be durable.
    pub(super) unsynced: Vec<Arc<dyn DiskFile>>,
    /// Open handles that can write.
    pub(super) writers: u32,
    /// When the first change since the last commit was made, in nanoseconds.
    pub(super) since: Option<u64>,
    /// Closed, synced or renamed since: to be committed at once.
    pub(super) due: bool,
    /// Its last name was removed: never to be committed.
    pub(super) unlinked: bool,
    /// Listed among the bodies to commit; the log knows what its changes lie over.
    pub(super) listed: bool,
    /// Its commit waits for something to be fetched.
    pub(super) waiting: bool,
}

/// What a commit works on: a consistent cut.
#[derive(Debug)]
pub(super) struct Cut {
    pub(super) stored: Arc<Stored>,
    pub(super) overlay: Overlay,
    pub(super) mtime: Time,
    pub(super) files: HashMap<FileId, Arc<dyn DiskFile>>,
}

/// A range to read and where it is, with the files held open.
#[derive(Debug)]
pub(super) struct Extract {
    pub(super) stored: Arc<Stored>,
    pub(super) pieces: Vec<(Piece, Option<Arc<dyn DiskFile>>)>,
}

impl Body {
    pub(super) fn new(id: BodyId, ino: Ino, at: state::Base, stored: Stored, mtime: Time) -> Self {
        Self {
            id,
            ino,
            pen: Mutex::default(),
            sync: Mutex::default(),
            page: Mutex::new(Page {
                at,
                overlay: Overlay::new(stored.size),
                stored: Arc::new(stored),
                mtime,
                settled: 0,
                files: HashMap::new(),
                unsynced: Vec::new(),
                writers: 0,
                since: None,
                due: false,
                unlinked: false,
                listed: false,
                waiting: false,
            }),
        }
    }

    pub(super) fn pen(&self) -> MutexGuard<'_, Pen> {
        self.pen.lock()
    }

    pub(super) fn page(&self) -> MutexGuard<'_, Page> {
        self.page.lock()
    }

    pub(super) fn size(&self) -> u64 {
        self.page().overlay.size()
    }

    pub(super) fn is_dirty(&self) -> bool {
        self.page().is_dirty()
    }

    /// A cut to commit. What is written from now on goes to other files, so that those of the cut can be freed.
    pub(super) fn freeze(&self) -> Cut {
        let mut pen = self.pen();
        *pen = Pen::default();
        let page = &mut *self.page();
        page.due = false;
        Cut {
            stored: page.stored.clone(),
            overlay: page.overlay.freeze(),
            mtime: page.mtime,
            files: page.files.clone(),
        }
    }

    pub(super) fn extract(&self, range: Range<u64>) -> Extract {
        let page = self.page();
        extract(&page.overlay, &page.stored, &page.files, range)
    }
}

impl Cut {
    pub(super) fn extract(&self, range: Range<u64>) -> Extract {
        extract(&self.overlay, &self.stored, &self.files, range)
    }
}

fn extract(
    overlay: &Overlay,
    stored: &Arc<Stored>,
    files: &HashMap<FileId, Arc<dyn DiskFile>>,
    range: Range<u64>,
) -> Extract {
    let pieces = overlay.pieces(range).into_iter();
    let with_files = pieces.map(|piece| {
        let file = match piece.source {
            Source::Data { file, .. } => files.get(&file).cloned(),
            Source::Base | Source::Zero => None,
        };
        (piece, file)
    });
    Extract {
        pieces: with_files.collect(),
        stored: stored.clone(),
    }
}

impl Page {
    pub(super) fn is_dirty(&self) -> bool {
        self.overlay.stamp() != self.settled
    }

    /// The base as the journal keeps it.
    pub(super) fn base(&self) -> record::Base {
        record::Base {
            anchor: self.anchor(),
            content: self.stored.content.clone(),
            size: self.stored.size,
        }
    }

    pub(super) fn anchor(&self) -> Anchor {
        Anchor {
            key: self.at.key.clone(),
            shown: self.at.shown.clone(),
            dots: self.at.dots.clone(),
        }
    }

    /// The staging files its bytes are in.
    pub(super) fn staging_files(&self) -> impl Iterator<Item = u64> + '_ {
        self.files.keys().filter_map(|id| match id {
            FileId::Staging(number) => Some(*number),
            FileId::Journal(_) => None,
        })
    }

    /// `cut` is version `stored` now. Gives back the staging files nothing needs any more.
    pub(super) fn settle(&mut self, cut: &Cut, stored: Stored) -> Vec<u64> {
        self.overlay.settle(&cut.overlay);
        self.settled = cut.overlay.stamp();
        self.stored = Arc::new(stored);
        if !self.is_dirty() {
            self.since = None;
            self.due = false;
        }
        let needed = self.overlay.files();
        let mut free = Vec::new();
        self.files.retain(|id, _| {
            let keep = needed.contains(id);
            if let (false, FileId::Staging(number)) = (keep, id) {
                free.push(*number);
            }
            keep
        });
        free
    }
}

impl Pen {
    /// The staging file to append to; `create` makes a new one.
    pub(super) fn staging(
        &mut self,
        create: impl FnOnce() -> io::Result<(u64, Arc<dyn DiskFile>)>,
    ) -> io::Result<&mut Staging> {
        if self.staging.is_none() {
            let (number, file) = create()?;
            self.staging = Some(Staging {
                number,
                file,
                tail: 0,
            });
        }
        self.staging
            .as_mut()
            .ok_or_else(|| io::Error::other("no staging file"))
    }
}
