//! All packs of one kind: the index into them, the pack being written, lookups and reads.

mod quarantine;

use std::collections::{HashMap, HashSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use parking_lot::{Mutex, RwLock};

use crate::disk::{DiskFile, OpenMode, is_unreadable};
use crate::index::{ChunkIndex, PackId, Place};
use crate::pack::files::OpenFiles;
use crate::pack::journal::{self, Journal};
use crate::pack::open::{NAMELESS, OpenedPack, open_pack};
use crate::pack::{
    Entry, Layout, Name, Pack, PackKind, RawRecord, Scratch, State, encode_header, footer,
};
use crate::xorb::RecordHeader;

use self::quarantine::Quarantine;
use super::checkpoint::{self, Covered};
use super::{OpenStoreError, ReadError, WriteError};

/// Records of one vectored write.
const BATCH_RECORDS_MAX: usize = 32;

/// Lookups of a name before giving up on places that gc empties under us.
const LOOKUPS_MAX: usize = 3;

/// When a pack is full.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    pub(crate) bytes: u64,
    pub(crate) slots: usize,
}

#[derive(Debug)]
pub(crate) struct Shelf {
    pub(crate) kind: PackKind,
    dir: PathBuf,
    limits: Limits,
    pub(crate) files: Arc<OpenFiles>,
    pub(crate) index: Box<dyn ChunkIndex>,
    pub(crate) packs: RwLock<HashMap<PackId, Arc<Pack>>>,
    writer: Mutex<Writer>,
    /// Records ever appended by this process. What a commit has to cover.
    appended: AtomicU64,
    quarantined: Mutex<Quarantine>,
    /// One pack's footer is given up at a time.
    renaming: Mutex<()>,
    /// Packs the last checkpoint covered.
    checkpointed: Mutex<usize>,
}

/// The one that appends.
#[derive(Debug)]
struct Writer {
    open: Option<Unsealed>,
    /// Packs whose footer is written but not yet synced.
    sealed: Vec<Unsealed>,
    last_id: u32,
}

/// A pack with a journal.
#[derive(Clone, Debug)]
pub(crate) struct Unsealed {
    pub(crate) pack: Arc<Pack>,
    pub(crate) file: Arc<dyn DiskFile>,
    pub(crate) journal: Arc<Mutex<Journal>>,
    /// Bytes of a failed write may stand behind the last record.
    torn: bool,
}

/// What a commit has to sync.
pub(crate) struct Dirty {
    pub(crate) sealed: Vec<Unsealed>,
    /// The open pack and how many of its records the sync will cover.
    pub(crate) open: Option<(Unsealed, usize)>,
}

/// What a checkpoint may cover.
pub(crate) struct Durable {
    last_id: u32,
    packs: Vec<Arc<Pack>>,
}

/// How part of a content was had.
pub(crate) enum Ranged {
    /// It is in the buffer, unless the content, whose length this is, ends before.
    Copied(u32),
    /// All of it had to be read.
    Whole { content: Bytes, is_plain: bool },
}

/// A record to append.
#[derive(Clone, Copy)]
pub(crate) struct Item<'a> {
    pub(crate) name: Name,
    /// Our chunker, at the start of the content, cuts at its end.
    pub(crate) is_cut: bool,
    pub(crate) tag: u8,
    pub(crate) header: RecordHeader,
    pub(crate) payload: &'a [u8],
}

impl Shelf {
    /// Opens all packs in `dir`, which must exist.
    pub(crate) fn open(
        kind: PackKind,
        dir: PathBuf,
        limits: Limits,
        files: Arc<OpenFiles>,
        index: Box<dyn ChunkIndex>,
    ) -> Result<Self, OpenStoreError> {
        let shelf = Self {
            kind,
            dir,
            limits,
            files,
            index,
            packs: RwLock::default(),
            writer: Mutex::new(Writer {
                open: None,
                sealed: Vec::new(),
                last_id: 0,
            }),
            appended: AtomicU64::new(0),
            quarantined: Mutex::default(),
            renaming: Mutex::default(),
            checkpointed: Mutex::default(),
        };
        shelf.load()?;
        Ok(shelf)
    }

    fn load(&self) -> Result<(), OpenStoreError> {
        let at = |path: &Path, source| OpenStoreError::Io {
            path: path.to_path_buf(),
            source,
        };
        let disk = &self.files.disk;
        let paths = disk.list(&self.dir).map_err(|error| at(&self.dir, error))?;
        let covered = checkpoint::load(&**disk, &self.dir, &*self.index);
        let covered = covered.map_err(|error| at(&self.dir, error))?;
        let mut last_id = covered.last_id;
        let opened = self.open_covered(&paths, covered);
        let mut unsealed = Vec::new();
        for path in &paths {
            let Some(id) = pack_id(path).filter(|id| !opened.contains(id)) else {
                continue;
            };
            last_id = last_id.max(id.0);
            if self.is_pack(path) {
                let opened = open_pack(&self.files, self.kind, id, path.clone());
                let opened = opened.map_err(|error| at(path, error))?;
                unsealed.extend(opened.and_then(|opened| self.adopt(opened)));
            } else if !paths.contains(&path.with_extension(self.kind.extension())) {
                journal::remove(&**disk, path).map_err(|error| at(path, error))?;
            }
        }
        let mut writer = self.writer.lock();
        writer.last_id = last_id;
        writer.open = unsealed.pop();
        for old in unsealed {
            if let Err(error) = self.finish(old) {
                tracing::warn!(%error, "cannot seal an old pack, it stays as it is");
            }
        }
        disk.sync_dir(&self.dir)
            .map_err(|error| at(&self.dir, error))
    }

    fn is_pack(&self, path: &Path) -> bool {
        path.extension()
            .is_some_and(|extension| extension == self.kind.extension())
    }

    /// Takes the packs that are as the checkpoint knew them; the index has their entries. Entries of all others leave
    /// it again.
    fn open_covered(&self, paths: &[PathBuf], mut known: Covered) -> HashSet<PackId> {
        let journals = paths.iter().filter(|path| !self.is_pack(path));
        for id in journals.filter_map(|path| pack_id(path)) {
            known.packs.remove(&id);
        }
        let mut packs = self.packs.write();
        for path in paths.iter().filter(|path| self.is_pack(path)) {
            let Some((id, ends)) = pack_id(path).and_then(|id| known.packs.remove_entry(&id))
            else {
                continue;
            };
            if checkpoint::has_length(&*self.files.disk, path, self.kind, &ends) {
                let layout = Layout::Sealed { ends };
                let pack = Pack::new(id, self.kind, path.clone(), layout, false);
                packs.insert(id, Arc::new(pack));
            }
        }
        // A bit for each number in use: the index asks for every one of its entries.
        let highest = packs.keys().map(|id| id.0 as usize).max().unwrap_or(0);
        let mut is_opened = vec![0u64; highest / 64 + 1];
        for id in packs.keys() {
            is_opened[id.0 as usize / 64] |= 1 << (id.0 % 64);
        }
        let is_known = |id: PackId| {
            let word = is_opened.get(id.0 as usize / 64);
            word.is_some_and(|word| (word >> (id.0 % 64)) & 1 == 1)
        };
        self.index.retain_packs(&is_known);
        *self.checkpointed.lock() = packs.len();
        packs.keys().copied().collect()
    }

    /// Sealed packs that were synced and have no damage: what a checkpoint may cover. No sync may be running.
    pub(crate) fn durable_packs(&self) -> Durable {
        let writer = self.writer.lock();
        let waiting: HashSet<PackId> = writer.sealed.iter().map(|sealed| sealed.pack.id).collect();
        let durable =
            |pack: &&Arc<Pack>| pack.is_sealed() && !pack.has_bad() && !waiting.contains(&pack.id);
        let packs = self.packs.read();
        Durable {
            last_id: writer.last_id,
            packs: packs.values().filter(durable).cloned().collect(),
        }
    }

    /// Writes a checkpoint if at least `packs_min` packs, and the `part`-th part of those it covers, came or went
    /// since the last.
    pub(crate) fn checkpoint(
        &self,
        durable: &Durable,
        packs_min: usize,
        part: usize,
    ) -> io::Result<()> {
        let mut checkpointed = self.checkpointed.lock();
        let changed = durable.packs.len().abs_diff(*checkpointed);
        if self.index.parts() > 0 && changed >= packs_min.max(*checkpointed / part) {
            let Durable { last_id, packs } = durable;
            checkpoint::save(&*self.files.disk, &self.dir, &*self.index, *last_id, packs)?;
            *checkpointed = packs.len();
        }
        Ok(())
    }

    /// Takes an opened pack into the index. Returns it if it can be appended to.
    fn adopt(&self, opened: OpenedPack) -> Option<Unsealed> {
        let OpenedPack {
            pack,
            names,
            unsealed,
            unreadable,
        } = opened;
        let pack = Arc::new(pack);
        for (slot, name) in names.iter().enumerate() {
            let slot = slot as u16;
            if pack.state(slot) == State::Bad {
                self.count_bad(name);
            } else {
                self.index.insert(
                    name,
                    Place {
                        pack: pack.id,
                        slot,
                    },
                );
            }
        }
        if unreadable {
            self.note_unreadable(&pack, &NAMELESS);
        }
        self.packs.write().insert(pack.id, Arc::clone(&pack));
        let (file, journal) = unsealed?;
        Some(Unsealed {
            pack,
            file,
            journal: Arc::new(Mutex::new(journal)),
            torn: false,
        })
    }

    /// Seals a pack left over by a crash.
    fn finish(&self, mut old: Unsealed) -> Result<(), WriteError> {
        self.write_footer(&mut old)?;
        let synced = old.file.sync();
        synced.map_err(|error| WriteError::from_io(&old.pack.path, error))?;
        self.forget_journal(&old.pack);
        Ok(())
    }

    /// Appends records in order. After an error none or the first few of them are there.
    pub(crate) fn append(&self, items: &[Item<'_>]) -> Result<(), WriteError> {
        let mut writer = self.writer.lock();
        self.append_locked(&mut writer, items)
    }

    /// Appends a record unless it is there by now. Whether it was appended.
    pub(crate) fn append_if_missing(&self, item: Item<'_>) -> Result<bool, WriteError> {
        let mut writer = self.writer.lock();
        let missing = !self.holds(&item.name);
        if missing {
            self.append_locked(&mut writer, &[item])?;
        }
        Ok(missing)
    }

    /// As [`append`](Self::append), without the items that are there by now.
    pub(crate) fn append_missing(&self, items: &[Item<'_>]) -> Result<Vec<bool>, WriteError> {
        let mut writer = self.writer.lock();
        let mut new = Vec::with_capacity(items.len());
        let mut missing: Vec<Item<'_>> = Vec::new();
        for item in items {
            let twice = missing.iter().any(|other| other.name == item.name);
            new.push(!twice && !self.holds(&item.name));
            if new.last() == Some(&true) {
                missing.push(*item);
            }
        }
        self.append_locked(&mut writer, &missing)?;
        Ok(new)
    }

    fn append_locked(&self, writer: &mut Writer, items: &[Item<'_>]) -> Result<(), WriteError> {
        let mut rest = items;
        while !rest.is_empty() {
            let fitting = writer
                .open
                .as_ref()
                .map_or(0, |open| self.fitting(&open.pack, rest));
            match &mut writer.open {
                Some(open) if fitting > 0 => {
                    let (batch, after) = rest.split_at(fitting);
                    self.write_batch(open, batch)?;
                    rest = after;
                }
                _ => self.rotate(writer)?,
            }
        }
        Ok(())
    }

    /// How many of the items the pack still takes with one write. A damaged pack takes none: if its
    /// journal were lost, a scan could not get past the damage to what follows.
    fn fitting(&self, pack: &Pack, items: &[Item<'_>]) -> usize {
        if pack.has_bad() {
            return 0;
        }
        let (mut len, slots) = (pack.records_len(), pack.slots());
        for (count, item) in items.iter().enumerate().take(BATCH_RECORDS_MAX) {
            len += item.header.record_len() as u64;
            let slots = slots + count + 1;
            let full = len + footer::len(self.kind, slots) as u64 > self.limits.bytes;
            if slots > self.limits.slots || (full && slots > 1) {
                return count;
            }
        }
        items.len().min(BATCH_RECORDS_MAX)
    }

    /// Writes records behind the last one, then makes them known.
    fn write_batch(&self, open: &mut Unsealed, items: &[Item<'_>]) -> Result<(), WriteError> {
        self.cut_torn(open)?;
        let pack = &open.pack;
        let start = pack.records_len();
        let mut headers = [[0; 8]; BATCH_RECORDS_MAX];
        let mut parts: [&[u8]; 2 * BATCH_RECORDS_MAX] = [&[]; 2 * BATCH_RECORDS_MAX];
        for (header, item) in headers.iter_mut().zip(items) {
            *header = encode_header(item.tag, &item.header);
        }
        for (parts, (header, item)) in parts.chunks_exact_mut(2).zip(headers.iter().zip(items)) {
            (parts[0], parts[1]) = (header, item.payload);
        }
        if let Err(error) = open.file.write_at(start, &parts[..2 * items.len()]) {
            let error = WriteError::from_io(&pack.path, error);
            open.torn = true;
            // If cutting fails too, the next write tries again before anything else.
            let _later = self.cut_torn(open);
            return Err(error);
        }
        let mut end = start as u32;
        for item in items {
            end += item.header.record_len() as u32;
            let len = item.header.chunk_len;
            let entry = Entry {
                name: item.name,
                end,
                len,
                tag: item.tag,
            };
            let plain = item.header.scheme == crate::codec::Scheme::Stored;
            if let Some(slot) = pack.push(entry, plain) {
                if item.is_cut {
                    pack.mark_cut(slot);
                }
                self.index.insert(
                    &item.name,
                    Place {
                        pack: pack.id,
                        slot,
                    },
                );
            }
        }
        self.appended
            .fetch_add(items.len() as u64, Ordering::Release);
        Ok(())
    }

    fn cut_torn(&self, open: &mut Unsealed) -> Result<(), WriteError> {
        if open.torn {
            let cut = open.file.set_len(open.pack.records_len());
            cut.map_err(|error| WriteError::from_io(&open.pack.path, error))?;
            open.torn = false;
        }
        Ok(())
    }

    /// Seals the open pack and opens a new one. The sealed one is synced by the next commit.
    fn rotate(&self, writer: &mut Writer) -> Result<(), WriteError> {
        if let Some(open) = &mut writer.open {
            self.write_footer(open)?;
        }
        writer.sealed.extend(writer.open.take());
        if writer.last_id >= PackId::MAX.0 {
            return Err(WriteError::NoSpace {
                path: self.dir.clone(),
            });
        }
        let id = PackId(writer.last_id + 1);
        let path = self
            .dir
            .join(format!("{:08}.{}", id.0, self.kind.extension()));
        let created = self.create_pack(id, &path);
        writer.open = Some(created.map_err(|error| WriteError::from_io(&path, error))?);
        writer.last_id = id.0;
        Ok(())
    }

    fn create_pack(&self, id: PackId, path: &Path) -> io::Result<Unsealed> {
        let disk = &self.files.disk;
        let journal = Arc::new(Mutex::new(Journal::create(&**disk, path)?));
        let file = Arc::from(disk.open(path, OpenMode::Create)?);
        // From here on a pack without a journal is a sealed one, also after a crash.
        disk.sync_dir(&self.dir)?;
        let layout = Layout::Listed(Vec::new());
        let pack = Arc::new(Pack::new(id, self.kind, path.to_path_buf(), layout, false));
        self.packs.write().insert(id, Arc::clone(&pack));
        Ok(Unsealed {
            pack,
            file,
            journal,
            torn: false,
        })
    }

    fn write_footer(&self, open: &mut Unsealed) -> Result<(), WriteError> {
        self.cut_torn(open)?;
        if let Some(bytes) = footer::encode(self.kind, &open.pack.listed_from(0)) {
            if let Err(error) = open.file.write_at(open.pack.records_len(), &[&bytes]) {
                open.torn = true;
                let _later = self.cut_torn(open);
                return Err(WriteError::from_io(&open.pack.path, error));
            }
            open.pack.mark_sealed();
        }
        Ok(())
    }

    /// Records appended so far: what a commit started now has to cover.
    pub(crate) fn appended(&self) -> u64 {
        self.appended.load(Ordering::Acquire)
    }

    /// What is to be synced so that all records appended before this call are durable.
    pub(crate) fn take_dirty(&self) -> Dirty {
        let mut writer = self.writer.lock();
        let sealed = std::mem::take(&mut writer.sealed);
        let open = writer
            .open
            .as_ref()
            .map(|open| (open.clone(), open.pack.slots()));
        Dirty { sealed, open }
    }

    /// Sealed packs that wait for a commit.
    pub(crate) fn sealed_waiting(&self) -> usize {
        self.writer.lock().sealed.len()
    }

    /// Removes the journal of a sealed pack that was synced. Left behind, it costs a scan.
    pub(crate) fn forget_journal(&self, pack: &Pack) {
        if let Err(error) = journal::remove(&*self.files.disk, &pack.path) {
            tracing::warn!(path = ?pack.path, %error, "cannot remove a pack's journal");
        }
    }

    /// Seals the open pack if `due`, so that gc may empty it.
    pub(crate) fn seal_if(&self, due: impl FnOnce(&Pack) -> bool) -> Result<(), WriteError> {
        let mut writer = self.writer.lock();
        match writer.open.as_ref().is_some_and(|open| due(&open.pack)) {
            true => self.rotate(&mut writer),
            false => Ok(()),
        }
    }

    /// Gives a pack's files up. Readers that hold it open finish.
    pub(crate) fn drop_pack(&self, pack: &Pack) -> io::Result<()> {
        self.packs.write().remove(&pack.id);
        self.quarantined.lock().unreadable.remove(&pack.id);
        match self.files.disk.remove(&pack.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        journal::remove(&*self.files.disk, &pack.path)
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    pub(crate) fn sync_dir(&self) -> io::Result<()> {
        self.files.disk.sync_dir(&self.dir)
    }

    /// Whether some record has this name and is not known to be bad.
    pub(crate) fn holds(&self, name: &Name) -> bool {
        self.find(name, |_, _| Ok(Some(())))
            .is_ok_and(|found| found.is_some())
    }

    /// Whether a pack besides `pack` has a good record with this name.
    pub(crate) fn has_elsewhere(&self, name: &Name, pack: &Pack) -> bool {
        let found = self.find(name, |other, slot| {
            let good = other.id != pack.id && self.hashed_record(other, slot, name)?.is_some();
            Ok(good.then_some(()))
        });
        found.is_ok_and(|found| found.is_some())
    }

    /// The content under a name. Checked against the name when it is read the first time.
    pub(crate) fn read(&self, name: &Name) -> Result<Option<Bytes>, ReadError> {
        self.find(name, |pack, slot| self.read_slot(pack, slot, name))
    }

    /// Copies the content under a name from `offset` on into `buf`, decoding and checking no more than it takes; all of
    /// it if `keep` says that it will be wanted.
    pub(crate) fn read_range(
        &self,
        name: &Name,
        (offset, buf): (u32, &mut [u8]),
        scratch: &mut Scratch,
        keep: impl Fn() -> bool,
    ) -> Result<Option<Ranged>, ReadError> {
        self.find(name, |pack, slot| {
            let is_plain = pack.state(slot) == State::Plain;
            let copied = match pack.state(slot) {
                State::Plain => pack.read_plain(&self.files, slot, offset, buf)?,
                State::Encoded if !keep() => {
                    pack.read_encoded(&self.files, slot, (offset, &mut *buf), scratch)?
                }
                _ => None,
            };
            if let Some(len) = copied {
                return Ok(Some(Ranged::Copied(len)));
            }
            let whole = self.checked_record(pack, slot, name)?;
            Ok(whole.map(|(record, content)| Ranged::Whole {
                content,
                is_plain: is_plain || record.is_plain(),
            }))
        })
    }

    /// Where a record with this name is.
    pub(crate) fn place_of(&self, name: &Name) -> Option<Place> {
        let found = self.find(name, |pack, slot| {
            Ok(Some(Place {
                pack: pack.id,
                slot,
            }))
        });
        found.ok().flatten()
    }

    fn pack(&self, id: PackId) -> Option<Arc<Pack>> {
        self.packs.read().get(&id).cloned()
    }

    /// Notes that our chunker, at the start of the content at this place, cuts at its end.
    pub(crate) fn mark_cut(&self, place: Place) {
        if let Some(pack) = self.pack(place.pack) {
            pack.mark_cut(place.slot);
        }
    }

    /// Name and length of what was stored after the content at this place, if our chunker is known to cut at its end.
    pub(crate) fn follower(&self, place: Place) -> Option<(Name, u32)> {
        let pack = self.pack(place.pack)?;
        let next = usize::from(place.slot) + 1;
        if next < pack.slots() {
            return pack.known_cut(&self.files, next as u16).ok()?;
        }
        let pack = self.pack(PackId(place.pack.0 + 1))?;
        pack.known_cut(&self.files, 0).ok()?
    }

    /// Gives `visit` the records with this name until it takes one.
    fn find<T>(
        &self,
        name: &Name,
        mut visit: impl FnMut(&Pack, u16) -> io::Result<Option<T>>,
    ) -> Result<Option<T>, ReadError> {
        let mut failed = None;
        for _ in 0..LOOKUPS_MAX {
            let mut gone = false;
            for place in self.index.candidates(name).iter() {
                let Some(pack) = self.packs.read().get(&place.pack).cloned() else {
                    gone = true;
                    continue;
                };
                match self.visit_named(&pack, place.slot, name, &mut visit) {
                    Ok(Some(found)) => return Ok(Some(found)),
                    Ok(None) => {}
                    Err(error) if error.kind() == io::ErrorKind::NotFound => gone = true,
                    Err(error) if is_unreadable(&error) => {
                        self.give_up(&pack, place.slot, name, &error);
                    }
                    Err(source) => {
                        failed = Some(ReadError {
                            path: pack.path.clone(),
                            source,
                        });
                    }
                }
            }
            if !gone {
                break;
            }
        }
        failed.map_or(Ok(None), Err)
    }

    fn visit_named<T>(
        &self,
        pack: &Pack,
        slot: u16,
        name: &Name,
        visit: &mut impl FnMut(&Pack, u16) -> io::Result<Option<T>>,
    ) -> io::Result<Option<T>> {
        let named = pack.state(slot) != State::Bad && self.name_in(pack, slot)? == Some(*name);
        if named { visit(pack, slot) } else { Ok(None) }
    }

    fn name_in(&self, pack: &Pack, slot: u16) -> io::Result<Option<Name>> {
        match pack.name(&self.files, slot) {
            Err(error) if is_unreadable(&error) && pack.is_sealed() => {
                self.rename_records(pack)?;
                pack.name(&self.files, slot)
            }
            read => read,
        }
    }

    /// The names of all records, in slot order: from the footer, or if that is gone, from the records.
    pub(crate) fn names(&self, pack: &Pack) -> io::Result<Vec<Name>> {
        match pack.names(&self.files) {
            Err(error) if is_unreadable(&error) && pack.is_sealed() => {
                self.rename_records(pack)?;
                pack.names(&self.files)
            }
            read => read,
        }
    }

    fn read_slot(&self, pack: &Pack, slot: u16, name: &Name) -> io::Result<Option<Bytes>> {
        Ok(self
            .checked_record(pack, slot, name)?
            .map(|(_, content)| content))
    }

    /// Reads a record and decodes it. It is hashed unless that was done before; `None` means it is
    /// damaged and now in quarantine.
    pub(crate) fn checked_record(
        &self,
        pack: &Pack,
        slot: u16,
        name: &Name,
    ) -> io::Result<Option<(RawRecord, Bytes)>> {
        let known = matches!(pack.state(slot), State::Plain | State::Encoded);
        self.read_record(pack, slot, name, known)
    }

    /// As [`checked_record`](Self::checked_record), and hashed in any case.
    pub(crate) fn hashed_record(
        &self,
        pack: &Pack,
        slot: u16,
        name: &Name,
    ) -> io::Result<Option<(RawRecord, Bytes)>> {
        self.read_record(pack, slot, name, false)
    }

    fn read_record(
        &self,
        pack: &Pack,
        slot: u16,
        name: &Name,
        known: bool,
    ) -> io::Result<Option<(RawRecord, Bytes)>> {
        let good = |record: RawRecord| {
            let content = record.decode()?;
            let good = known || self.kind.name_of(record.tag, &content).as_ref() == Some(name);
            good.then_some((record, content))
        };
        let checked = match pack.read(&self.files, slot) {
            Err(error) if is_unreadable(&error) => {
                self.give_up(pack, slot, name, &error);
                return Ok(None);
            }
            read => read?.and_then(good),
        };
        match &checked {
            Some((record, _)) if !known => {
                let state = if record.is_plain() {
                    State::Plain
                } else {
                    State::Encoded
                };
                pack.set_state(slot, state);
            }
            Some(_) => {}
            None => self.quarantine(pack, slot, name),
        }
        Ok(checked)
    }
}

/// The number in the name of a pack or its journal.
fn pack_id(path: &Path) -> Option<PackId> {
    let number = path.file_stem()?.to_str()?.parse().ok()?;
    (1..=PackId::MAX.0)
        .contains(&number)
        .then_some(PackId(number))
}
