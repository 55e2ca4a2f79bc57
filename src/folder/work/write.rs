//! Writing: bytes go to the journal or a staging file and into the journal's log, then into the map of the file.

use std::io;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use ccbt_mount::{Allocate, OpenMode, Seek, VolumeError};
use ccbt_xet::disk::DiskFile;

use super::body::{Body, Page, Pen};
use super::core::time_of;
use super::extents::{FileId, Source};
use super::inodes::Ino;
use super::open::OpenFile;
use super::record::{BodyStart, DataAt, DataRecord, Record, Shape, ShapeRecord};
use super::{Dirty, Inner, disk_error};
use crate::folder::state::Time;

/// Bytes a file may have in journal records between two syncs: one sync of the journal makes them durable. What is
/// more goes to a staging file, where it lies in one piece.
const INLINE_BYTES_MAX: u64 = 64 << 10;

/// Largest file, as the kernel counts.
const FILE_BYTES_MAX: u64 = i64::MAX as u64;

impl Inner {
    /// Writes all of `data`, or nothing. What is written when this returns survives the process.
    pub(crate) fn write(
        &self,
        file: &OpenFile,
        offset: u64,
        data: &[u8],
    ) -> Result<(), VolumeError> {
        if !file.mode.write {
            return Err(VolumeError::BadHandle);
        }
        if data.is_empty() {
            return Ok(());
        }
        let _gate = self.gate.read();
        self.journal.ready().map_err(|error| disk_error(&error))?;
        let body = &file.body;
        let mut pen = body.pen();
        self.begin(body);
        let (end, stamp) = {
            let page = body.page();
            (page.overlay.size(), page.overlay.stamp() + 1)
        };
        let offset = if file.mode.append { end } else { offset };
        let len = data.len() as u64;
        if offset
            .checked_add(len)
            .is_none_or(|end| end > FILE_BYTES_MAX)
        {
            return Err(VolumeError::TooLarge);
        }
        let mut record = DataRecord {
            body: body.id,
            stamp,
            mtime: time_of(self.now_ns()),
            offset,
            len,
            at: DataAt::Inline,
        };
        let placed = if pen.inline + len <= INLINE_BYTES_MAX {
            self.write_inline(&mut pen, &record, data)
        } else {
            self.write_staging(&mut pen, &mut record, data)
        };
        let (id, at, source) = placed.map_err(|error| disk_error(&error))?;
        {
            let mut page = body.page();
            page.overlay.write(offset, len, id, at);
            page.files.entry(id).or_insert_with(|| source.clone());
            if let FileId::Staging(_) = id {
                page.note_unsynced(source);
            }
            page.changed(record.mtime, self.now_ns());
        }
        drop(pen);
        self.config.observer.dirty(Dirty::Writing);
        Ok(())
    }

    fn write_inline(
        &self,
        pen: &mut Pen,
        record: &DataRecord,
        data: &[u8],
    ) -> io::Result<(FileId, u64, Arc<dyn DiskFile>)> {
        let head = Record::Data(record.clone()).encode();
        let (generation, at) = self.journal.append(&head, data)?;
        pen.inline += data.len() as u64;
        let (current, file) = self.journal.current();
        debug_assert_eq!(current, generation, "the gate keeps generations apart");
        Ok((FileId::Journal(generation), at, file))
    }

    fn write_staging(
        &self,
        pen: &mut Pen,
        record: &mut DataRecord,
        data: &[u8],
    ) -> io::Result<(FileId, u64, Arc<dyn DiskFile>)> {
        let staging = pen.staging(|| self.create_staging())?;
        let at = staging.tail;
        staging.file.write_at(at, &[data])?;
        record.at = DataAt::Staging {
            file: staging.number,
            at,
            crc: crc32fast::hash(data),
        };
        self.journal
            .append(&Record::Data(record.clone()).encode(), &[])?;
        staging.tail += data.len() as u64;
        Ok((FileId::Staging(staging.number), at, staging.file.clone()))
    }

    fn create_staging(&self) -> io::Result<(u64, Arc<dyn DiskFile>)> {
        let number = self.next_number.fetch_add(1, Ordering::Relaxed);
        let path = self.staging_path(number);
        let file = self
            .config
            .disk
            .open(&path, ccbt_xet::disk::OpenMode::Create)?;
        Ok((number, Arc::from(file)))
    }

    pub(super) fn staging_dir(&self) -> PathBuf {
        self.config.dir.join("staging")
    }

    pub(super) fn staging_path(&self, number: u64) -> PathBuf {
        self.staging_dir().join(format!("{number:016x}"))
    }

    /// Before a change: lists the body among those to commit and tells the log what its changes lie over.
    fn begin(&self, body: &Arc<Body>) {
        if body.page().listed {
            return;
        }
        let mut core = self.core.lock();
        let mut page = body.page();
        if page.unlinked || page.listed {
            return;
        }
        page.listed = true;
        let start = BodyStart {
            body: body.id,
            ino: body.ino,
            base: page.base(),
        };
        // Written with the first change, which drains the queue.
        let _ = self.journal.queue(Record::BodyStart(start).encode());
        core.dirty.insert(body.id, body.clone());
        drop(page);
        if let Some(inode) = core.inodes.get_mut(body.ino) {
            let other = inode
                .body
                .as_ref()
                .filter(|other| !Arc::ptr_eq(other, body));
            if other.is_none_or(|other| !other.page().listed) {
                inode.body = Some(body.clone());
            }
        }
    }

    /// Changes size, holes or time of a file.
    pub(super) fn reshape(&self, body: &Arc<Body>, change: Shape) -> Result<(), VolumeError> {
        self.reshape_at(body, change, time_of(self.now_ns()))
    }

    fn reshape_at(&self, body: &Arc<Body>, change: Shape, mtime: Time) -> Result<(), VolumeError> {
        let _gate = self.gate.read();
        if !matches!(change, Shape::Size(0)) {
            self.journal.ready().map_err(|error| disk_error(&error))?;
        }
        let _pen = body.pen();
        self.begin(body);
        let record = ShapeRecord {
            body: body.id,
            stamp: body.page().overlay.stamp() + 1,
            mtime,
            change,
        };
        let encoded = Record::Shape(record).encode();
        self.journal
            .append(&encoded, &[])
            .map_err(|error| disk_error(&error))?;
        let mut page = body.page();
        match change {
            Shape::Size(size) => page.overlay.set_size(size),
            Shape::Zero { start, end } => page.overlay.zero(start..end),
            Shape::Time => page.overlay.touch(),
        }
        page.changed(mtime, self.now_ns());
        drop(page);
        self.config.observer.dirty(Dirty::Writing);
        Ok(())
    }

    /// Sets the time of content that is not committed. False: the content is committed, the state has the time.
    pub(super) fn date_body(&self, ino: Ino, mtime: Time) -> Result<bool, VolumeError> {
        let body = {
            let core = self.core.lock();
            core.inode(ino)?.body.clone()
        };
        match body {
            Some(body) if body.is_dirty() => {
                self.reshape_at(&body, Shape::Time, mtime)?;
                Ok(true)
            }
            _ => Ok(false),
        }
    }

    pub(crate) fn truncate(
        &self,
        ino: Ino,
        file: Option<&OpenFile>,
        size: u64,
    ) -> Result<(), VolumeError> {
        if self.config.read_only {
            return Err(VolumeError::ReadOnly);
        }
        if size > FILE_BYTES_MAX {
            return Err(VolumeError::TooLarge);
        }
        if let Some(file) = file {
            return self.reshape(&file.body, Shape::Size(size));
        }
        if let Some(body) = self.opened_to_empty(ino, size)? {
            return self.reshape(&body, Shape::Size(0));
        }
        let mode = OpenMode {
            write: true,
            ..OpenMode::default()
        };
        let (file, _) = self.open(ino, mode)?;
        let done = self.reshape(&file.body, Shape::Size(size));
        self.close(&file);
        done
    }

    /// The content that a truncation without a handle is for, if the file was just opened with `O_TRUNC`: the kernel opens it
    /// first and says the size afterwards, and versions of others that come in between are not to be emptied.
    fn opened_to_empty(&self, ino: Ino, size: u64) -> Result<Option<Arc<Body>>, VolumeError> {
        let core = self.core.lock();
        let opened = core.inode(ino)?.writing.upgrade();
        let is_untouched = |body: &Arc<Body>| {
            let page = body.page();
            page.writers > 0 && !page.is_dirty()
        };
        Ok(opened.filter(|body| size == 0 && is_untouched(body)))
    }

    pub(crate) fn allocate(
        &self,
        file: &OpenFile,
        range: Range<u64>,
        how: Allocate,
    ) -> Result<(), VolumeError> {
        if !file.mode.write {
            return Err(VolumeError::BadHandle);
        }
        if range.end > FILE_BYTES_MAX {
            return Err(VolumeError::TooLarge);
        }
        let (zero, keep_size) = match how {
            Allocate::Reserve { keep_size } => (false, keep_size),
            Allocate::Punch => (true, true),
            Allocate::Zero { keep_size } => (true, keep_size),
        };
        if !keep_size && range.end > file.body.size() {
            self.reshape(&file.body, Shape::Size(range.end))?;
        }
        if zero {
            let (start, end) = (range.start, range.end);
            self.reshape(&file.body, Shape::Zero { start, end })?;
        }
        Ok(())
    }

    pub(crate) fn seek(
        &self,
        file: &OpenFile,
        offset: u64,
        whence: Seek,
    ) -> Result<u64, VolumeError> {
        let page = file.body.page();
        let size = page.overlay.size();
        if offset >= size {
            return Err(VolumeError::NoSuchOffset);
        }
        let pieces = page.overlay.pieces(offset..size);
        let hole = |wanted: bool| {
            let found = pieces
                .iter()
                .find(|piece| (piece.source == Source::Zero) == wanted);
            found.map(|piece| piece.range.start)
        };
        match whence {
            Seek::Data => hole(false).ok_or(VolumeError::NoSuchOffset),
            Seek::Hole => Ok(hole(true).unwrap_or(size)),
        }
    }

    /// Makes what was written before the call durable here.
    pub(crate) fn fsync(&self, file: &OpenFile) -> Result<(), VolumeError> {
        file.body.pen().inline = 0;
        self.sync_staging(&file.body)
            .map_err(|error| disk_error(&error))?;
        self.journal.sync().map_err(|error| disk_error(&error))?;
        let mut page = file.body.page();
        if page.is_dirty() {
            page.due = true;
            drop(page);
            self.config.observer.dirty(Dirty::Fsynced);
        }
        Ok(())
    }

    /// Makes names and attributes durable.
    pub(crate) fn fsync_names(&self) -> Result<(), VolumeError> {
        self.journal.sync().map_err(|error| disk_error(&error))
    }

    /// Makes the staging files of a body durable. A file for which that failed stays failed as long as the body needs it.
    pub(super) fn sync_staging(&self, body: &Body) -> io::Result<()> {
        let mut failed = body.sync.lock();
        let unsynced = {
            let page = &mut *body.page();
            let is_needed = |file: &Arc<dyn DiskFile>| {
                let mut needed = page.files.values();
                needed.any(|needed| Arc::ptr_eq(needed, file))
            };
            failed.retain(is_needed);
            page.unsynced.retain(is_needed);
            if !failed.is_empty() {
                return Err(io::Error::other("an earlier sync of a file's bytes failed"));
            }
            std::mem::take(&mut page.unsynced)
        };
        if unsynced.is_empty() {
            return Ok(());
        }
        let synced = unsynced
            .iter()
            .try_for_each(|file| file.sync())
            .and_then(|()| self.config.disk.sync_dir(&self.staging_dir()));
        if synced.is_err() {
            failed.extend(unsynced.iter().cloned());
            let mut page = body.page();
            unsynced
                .into_iter()
                .for_each(|file| page.note_unsynced(file));
        }
        synced
    }
}

impl Page {
    fn changed(&mut self, mtime: Time, now_ns: u64) {
        self.mtime = mtime;
        self.since.get_or_insert(now_ns);
    }

    fn note_unsynced(&mut self, file: Arc<dyn DiskFile>) {
        if !self.unsynced.iter().any(|other| Arc::ptr_eq(other, &file)) {
            self.unsynced.push(file);
        }
    }
}
