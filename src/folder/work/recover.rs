//! Opening a folder: checkpoint, then the journal over it, then the contents that were being written.
//!
//! Written bytes in staging files are checked against the checksums in their records. Where they do not match, the
//! machine lost power before they were synced: the file goes back to what it was before the first such write, never
//! before a write that was synced.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use bytes::Bytes;
use ccbt_xet::disk::{Disk, DiskFile, OpenMode};
use parking_lot::{Mutex, RwLock};

use super::body::{Body, Stored};
use super::checkpoint::{self, Checkpoint, SavedBody};
use super::core::{Core, Listener, time_of};
use super::extents::{FileId, Overlay};
use super::inodes::{Ino, Inodes, Local, NodeKind, Spot};
use super::journal::{self, Journal, Scan};
use super::merge::AHEAD_MS_MAX;
use super::nodes::{StoreError, StoreNodes};
use super::publish::{FlushError, Tip, Turn};
use super::record::{BodyId, DataAt, DataRecord, OpRecord, Published, Record, Shape, ShapeRecord};
use super::table::{Packed, Table};
use super::{Folder, FolderConfig, Inner, read};
use crate::folder::codec;
use crate::folder::encoding::DecodeError;
use crate::folder::state::{
    Body as NewBody, By, Content, EntryError, FileKind, Hlc, Inc, Key, Name, NewFile, OpError,
    Redot, State, Time, VersionVector, beside, conflict_tag,
};
use crate::folder::tree::{NodesError, Trees};

/// Names tried for what was being written under a name that others have taken.
const BESIDE_MAX: usize = 999;

/// Why a folder cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenFolderError {
    #[error("{path}: {source}")]
    Io { path: PathBuf, source: io::Error },
    #[error("the checkpoint or journal in {path} is damaged: {reason}")]
    Damaged { path: PathBuf, reason: DecodeError },
    #[error("the tree of the last checkpoint cannot be read: {0}")]
    Tree(#[from] NodesError<StoreError>),
    #[error("the stored state contradicts itself: {0}")]
    State(#[from] EntryError),
    #[error("writes to {name:?} that were not committed have no place in the folder: {reason}")]
    NoPlace { name: String, reason: OpError },
    #[error("what was recovered cannot be written down: {0}")]
    Checkpoint(#[from] FlushError),
}

/// What checkpoint and journal say, before it is made alive.
struct Replay {
    checkpoint: Checkpoint,
    entries: BTreeMap<Bytes, Bytes>,
    /// Keys the journal changed.
    changed: BTreeSet<Key>,
    vv: BTreeMap<Inc, u64>,
    inodes: Inodes,
    table: Table,
    bodies: BTreeMap<BodyId, Replayed>,
    next_number: u64,
    /// The checkpoint does not say what is so: there is none, or it is of another incarnation.
    rewrite: bool,
}

/// A body and what was done to it since its base.
struct Replayed {
    saved: SavedBody,
    changes: Vec<Alter>,
}

enum Alter {
    Data {
        record: DataRecord,
        file: FileId,
        at: u64,
    },
    Shape(ShapeRecord),
}

impl Alter {
    fn stamp(&self) -> u64 {
        match self {
            Self::Data { record, .. } => record.stamp,
            Self::Shape(record) => record.stamp,
        }
    }
}

impl Folder {
    /// Opens the folder in `config.dir`, or makes a new one there. Whatever was acknowledged before a kill, or synced
    /// before a power failure, is there.
    pub fn open(config: FolderConfig) -> Result<Self, OpenFolderError> {
        let at = |source| OpenFolderError::Io {
            path: config.dir.clone(),
            source,
        };
        prepare(&config).map_err(at)?;
        let (replay, last, end) = replay(&config)?;
        let journal =
            Journal::begin(config.disk.clone(), &config.dir, last + 1, end).map_err(at)?;
        let needed = replay.needed_files();
        let Revived {
            core,
            next_number,
            rewrite,
        } = replay.revive(&config)?;
        let inner = Inner {
            journal,
            core: Mutex::new(core),
            gate: RwLock::new(()),
            turn: Mutex::new(Turn),
            next_number: AtomicU64::new(next_number),
            notifiers: RwLock::default(),
            reads: read::Reads::default(),
            packed: super::patch::Packed::default(),
            lenders: RwLock::default(),
            config,
        };
        inner
            .drop_unneeded(&needed)
            .map_err(|source| OpenFolderError::Io {
                path: inner.config.dir.clone(),
                source,
            })?;
        if rewrite {
            inner.checkpoint()?;
        } else {
            inner.write_replayed();
        }
        Ok(Self {
            inner: Arc::new(inner),
        })
    }
}

/// The live folder, and whether the log says more than it: then a checkpoint has to say what is.
struct Revived {
    core: Core,
    next_number: u64,
    rewrite: bool,
}

fn prepare(config: &FolderConfig) -> io::Result<()> {
    config.disk.create_dir(&config.dir.join("staging"))?;
    config.disk.sync_dir(&config.dir)?;
    match config.dir.parent() {
        Some(parent) => config.disk.sync_dir(parent),
        None => Ok(()),
    }
}

/// Reads everything there is. Also the last generation and where it ends: it is cut there.
fn replay(config: &FolderConfig) -> Result<(Replay, u64, u64), OpenFolderError> {
    let (disk, dir) = (config.disk.as_ref(), &config.dir);
    let at = |source| OpenFolderError::Io {
        path: dir.clone(),
        source,
    };
    let loaded = checkpoint::load(disk, dir).map_err(at)?;
    let mut replay = Replay::start(config, loaded)?;
    let generations = journal::generations(disk, dir).map_err(at)?;
    let mut last = generations.last().copied().unwrap_or(0);
    let mut end = 0;
    let first = replay.checkpoint.journal;
    let wanted = generations.iter().copied().filter(|n| *n >= first);
    for (generation, expected) in wanted.zip(first..) {
        let scan = journal::scan(disk, dir, generation).map_err(at)?;
        let follows = scan
            .as_ref()
            .filter(|scan| generation == expected && (generation == first || scan.before == end));
        let Some(scan) = follows else {
            break;
        };
        end = scan.end;
        replay
            .apply_generation(generation, scan)
            .map_err(|reason| OpenFolderError::Damaged {
                path: journal::path(dir, generation),
                reason,
            })?;
        // The next checkpoint takes it for durable, and a killed process may not have synced it.
        let file = disk.open(&journal::path(dir, generation), OpenMode::Read);
        file.and_then(|file| file.sync()).map_err(at)?;
        last = generation;
    }
    disk.sync_dir(dir).map_err(at)?;
    // What is beyond was never acknowledged as durable.
    for generation in generations.into_iter().filter(|n| *n > last) {
        disk.remove(&journal::path(dir, generation)).map_err(at)?;
    }
    if end > 0 {
        cut(disk, &journal::path(dir, last), end).map_err(at)?;
    }
    Ok((replay, last, end))
}

fn cut(disk: &dyn Disk, path: &std::path::Path, end: u64) -> io::Result<()> {
    let file = disk.open(path, OpenMode::Write)?;
    if file.len()? > end {
        file.set_len(end)?;
    }
    file.sync()
}

impl Replay {
    fn start(config: &FolderConfig, loaded: Option<Checkpoint>) -> Result<Self, OpenFolderError> {
        let nodes = StoreNodes(&config.store);
        let trees = Trees::new(&nodes);
        let owner = owner();
        let rewrite = loaded
            .as_ref()
            .is_none_or(|loaded| loaded.inc != config.inc);
        let mut checkpoint = match loaded {
            Some(checkpoint) => checkpoint,
            None => Checkpoint {
                journal: 1,
                inc: config.inc,
                tip: Tip::empty(&trees)?,
                vv: Vec::new(),
                hlc: Hlc::default(),
                next_ino: 0,
                next_number: 1,
                published: None,
                inodes: Vec::new(),
                table: Packed::default(),
                bodies: Vec::new(),
            },
        };
        let entries: Result<_, _> = trees.range(&checkpoint.tip.tree, &[]).collect();
        let now = time_of(config.clock.now_ns());
        let mut inodes = Inodes::new(Local {
            uid: owner.0,
            gid: owner.1,
            set_id: 0,
            atime: now,
            ctime: now,
            mtime: None,
        });
        inodes.reserve(checkpoint.next_ino);
        for (ino, meta, names) in &checkpoint.inodes {
            inodes.set_meta(*ino, meta.clone());
            names
                .iter()
                .for_each(|spot| inodes.bind(spot.clone(), *ino));
        }
        let bodies = checkpoint.bodies.iter().cloned();
        Ok(Self {
            entries: entries?,
            changed: BTreeSet::new(),
            vv: checkpoint.vv.iter().copied().collect(),
            inodes,
            table: std::mem::take(&mut checkpoint.table)
                .table()
                .map_err(|reason| OpenFolderError::Damaged {
                    path: config.dir.clone(),
                    reason,
                })?,
            bodies: bodies
                .map(|saved| {
                    (
                        saved.body,
                        Replayed {
                            saved,
                            changes: Vec::new(),
                        },
                    )
                })
                .collect(),
            next_number: checkpoint.next_number,
            checkpoint,
            rewrite,
        })
    }

    fn apply_generation(&mut self, generation: u64, scan: &Scan) -> Result<(), DecodeError> {
        for (at, bytes) in &scan.records {
            match Record::decode(bytes)? {
                Record::Op(op) => self.apply(*op)?,
                Record::BodyStart(start) => {
                    self.next_number = self.next_number.max(start.body.0 + 1);
                    let saved = SavedBody {
                        body: start.body,
                        ino: start.ino,
                        size: start.base.size,
                        visible: start.base.size,
                        base: start.base,
                        stamp: 0,
                        settled: 0,
                        mtime: Time::default(),
                        extents: Vec::new(),
                    };
                    let changes = Vec::new();
                    self.bodies.insert(start.body, Replayed { saved, changes });
                }
                Record::Data(record) => {
                    let (file, place) = match record.at {
                        DataAt::Inline => {
                            let data = at + bytes.len() as u64 - record.len;
                            (FileId::Journal(generation), data)
                        }
                        DataAt::Staging { file, at, .. } => {
                            self.next_number = self.next_number.max(file + 1);
                            (FileId::Staging(file), at)
                        }
                    };
                    if let Some(body) = self.bodies.get_mut(&record.body) {
                        body.changes.push(Alter::Data {
                            record,
                            file,
                            at: place,
                        });
                    }
                }
                Record::Shape(shape) => {
                    if let Some(body) = self.bodies.get_mut(&shape.body) {
                        body.changes.push(Alter::Shape(shape));
                    }
                }
                Record::Published(published) => self.published(published),
            }
        }
        Ok(())
    }

    fn published(&mut self, published: Published) {
        self.checkpoint.tip.shared = ccbt_xet::hash::NodeId::from_bytes(published.root);
        self.checkpoint.published = Some(published);
    }

    fn apply(&mut self, op: OpRecord) -> Result<(), DecodeError> {
        for (inc, ctr) in op.seen {
            let seen = self.vv.entry(inc).or_default();
            *seen = (*seen).max(ctr);
        }
        self.checkpoint.hlc = self.checkpoint.hlc.max(op.hlc);
        for (key, entry) in op.entries {
            self.changed.insert(codec::decode_key(&key)?);
            match entry {
                Some(entry) => self.entries.insert(key, entry),
                None => self.entries.remove(&key[..]),
            };
        }
        for (ino, meta) in op.metas {
            match meta {
                Some(meta) => self.inodes.set_meta(ino, meta),
                None => drop(self.inodes.remove(ino)),
            }
        }
        for (spot, ino) in op.binds {
            match ino {
                Some(ino) => self.inodes.bind(spot, ino),
                None => drop(self.inodes.unbind(&spot)),
            }
        }
        for (key, value) in op.table {
            match value {
                Some(value) => self.table.insert(&key, &value),
                None => self.table.remove(&key),
            };
        }
        for settled in op.settled {
            if let Some(body) = self.bodies.get_mut(&settled.body) {
                body.settle(settled.stamp, settled.base);
            }
        }
        for (body, anchor) in op.moved {
            if let Some(body) = self.bodies.get_mut(&body) {
                body.saved.base.anchor = anchor;
            }
        }
        for body in op.dropped {
            self.bodies.remove(&body);
        }
        Ok(())
    }

    fn needed_files(&self) -> BTreeSet<FileId> {
        let mut needed = BTreeSet::new();
        for body in self.bodies.values() {
            needed.extend(checkpoint::files_of(std::slice::from_ref(&body.saved)));
            needed.extend(body.changes.iter().filter_map(|change| match change {
                Alter::Data { file, .. } => Some(*file),
                Alter::Shape(_) => None,
            }));
        }
        needed
    }

    /// How to take what an earlier incarnation did not publish over to `inc`.
    fn redot(&self, inc: Inc) -> Option<Redot> {
        let from = self.checkpoint.inc;
        let published = self
            .checkpoint
            .published
            .as_ref()
            .filter(|last| last.inc == from);
        (from != inc).then(|| Redot::new(from, published.map_or(0, |last| last.ctr), inc))
    }

    /// The live folder.
    fn revive(mut self, config: &FolderConfig) -> Result<Revived, OpenFolderError> {
        let damaged = |reason| OpenFolderError::Damaged {
            path: config.dir.clone(),
            reason,
        };
        let mut entries = Vec::with_capacity(self.entries.len());
        let redot = self.redot(config.inc);
        for (key, entry) in &self.entries {
            let key = codec::decode_key(key).map_err(damaged)?;
            let mut entry = codec::decode_entry(&key, entry).map_err(damaged)?;
            if redot.is_some_and(|redot| redot.entry(&mut entry)) {
                self.changed.insert(key.clone());
            }
            entries.push((key, entry));
        }
        if let Some(redot) = &redot {
            self.bodies.values_mut().for_each(|body| body.redot(redot));
            self.table.change(|row| (config.rename_row)(redot, row));
        }
        let names = config.device_name.clone();
        let tag = conflict_tag(move |inc| names(inc));
        let seen: VersionVector = self.vv.into_iter().collect();
        let vv = redot.map_or_else(|| seen.clone(), |redot| redot.vector(&seen));
        let state = State::from_entries(entries, vv, tag)?;
        let now = Hlc::default().tick(config.clock.now_ns() / 1_000_000);
        // The clock was wrong and was set right: what is done from now on must be believed by others.
        let was_ahead = self.checkpoint.hlc.unix_ms() > now.unix_ms() + AHEAD_MS_MAX;
        let published = self.checkpoint.published;
        let is_ours = published
            .as_ref()
            .is_some_and(|last| last.inc == config.inc);
        let mut core = Core {
            state,
            inodes: self.inodes,
            table: self.table,
            dirty: BTreeMap::new(),
            bodies: Vec::new(),
            trash: Vec::new(),
            unflushed: self.changed,
            hlc: if was_ahead { now } else { self.checkpoint.hlc },
            changed: None,
            on_change: Listener::default(),
            arrivals: 0,
            tip: self.checkpoint.tip,
            tip_vector: self.checkpoint.vv.iter().copied().collect(),
            published,
            sign_again: was_ahead && is_ours,
            owner: owner(),
            inc: config.inc,
        };
        core.inodes.take_touched();
        let mut next_number = self.next_number;
        let mut rewrite = self.rewrite;
        for (id, body) in self.bodies {
            next_number = next_number.max(id.0 + 1);
            rewrite |= !body.revive(&mut core, config)?;
        }
        Ok(Revived {
            core,
            next_number,
            rewrite,
        })
    }
}

fn owner() -> (u32, u32) {
    (
        rustix::process::getuid().as_raw(),
        rustix::process::getgid().as_raw(),
    )
}

impl Replayed {
    fn redot(&mut self, redot: &Redot) {
        let dots = &mut self.saved.base.anchor.dots;
        dots.iter_mut().for_each(|dot| *dot = redot.dot(*dot));
    }

    fn settle(&mut self, stamp: u64, base: super::record::Base) {
        self.changes.retain(|change| change.stamp() > stamp);
        let saved = &mut self.saved;
        saved.size = base.size;
        saved.visible = base.size;
        saved.base = base;
        saved.stamp = stamp;
        saved.settled = stamp;
        saved.extents.clear();
    }

    fn is_dirty(&self) -> bool {
        self.saved.stamp != self.saved.settled || !self.changes.is_empty()
    }

    /// Makes the content alive again, as far as its bytes are there. False: something the log says is not so.
    fn revive(self, core: &mut Core, config: &FolderConfig) -> Result<bool, OpenFolderError> {
        if !self.is_dirty() {
            return Ok(true);
        }
        let ino = self.saved.ino;
        let vv = core.state.vv().get(config.inc);
        let at = anchored(core, &self.saved, config).map_err(|reason| {
            let name = self.saved.base.anchor.shown.as_bytes();
            let name = String::from_utf8_lossy(name).into_owned();
            OpenFolderError::NoPlace { name, reason }
        })?;
        let mut as_logged = core.state.vv().get(config.inc) == vv;
        let saved = &self.saved;
        let stored = Stored {
            content: saved.base.content.clone(),
            size: saved.base.size,
        };
        let spot = Spot {
            dir: at.key.dir,
            name: at.shown.clone(),
        };
        let body = Arc::new(Body::new(saved.body, ino, at, stored, saved.mtime));
        {
            let page = &mut *body.page();
            let extents = saved.extents.iter().cloned();
            let (base_size, stamp) = (saved.base.size, saved.stamp);
            page.overlay =
                Overlay::from_parts(base_size, saved.size, saved.visible, stamp, extents);
            page.settled = saved.settled;
            let mut files = Files {
                config,
                open: HashMap::new(),
            };
            let lost = self
                .changes
                .iter()
                .position(|change| !files.is_whole(change));
            if lost.is_some() {
                as_logged = false;
                tracing::warn!(
                    ino = ino.0,
                    "writes that were not synced were lost with the power"
                );
            }
            for change in self.changes.iter().take(lost.unwrap_or(self.changes.len())) {
                page.mtime = change.apply(&mut page.overlay);
            }
            page.since = Some(0);
            page.due = true;
            page.listed = true;
            for id in page.overlay.files() {
                if let Some(file) = files.get(id) {
                    if let FileId::Staging(_) = id {
                        // Read back is not durable: after a kill it may be in the page cache only.
                        page.unsynced.push(file.clone());
                    }
                    page.files.insert(id, file);
                }
            }
        }
        core.revive_inode(ino, spot, &body);
        core.note_body(&body);
        core.dirty.insert(body.id, body);
        Ok(as_logged)
    }
}

impl Core {
    fn revive_inode(&mut self, ino: Ino, spot: Spot, body: &Arc<Body>) {
        if self
            .inodes
            .get(ino)
            .is_none_or(|inode| inode.meta.kind != NodeKind::File)
        {
            return;
        }
        if self
            .inodes
            .get(ino)
            .is_some_and(|inode| inode.names.is_empty())
        {
            self.inodes.bind(spot, ino);
        }
        if let Some(inode) = self.inodes.get_mut(ino) {
            inode.body = Some(body.clone());
        }
    }
}

/// The base of a body as the state has it. If others removed the file while it was being written, its base version is
/// put back first, as the write itself would have, beside what has taken its name since.
fn anchored(
    core: &mut Core,
    saved: &SavedBody,
    config: &FolderConfig,
) -> Result<crate::folder::state::Base, OpError> {
    let anchor = &saved.base.anchor;
    let (dir, name) = (anchor.key.dir, anchor.shown.as_bytes());
    if let Some(mut base) = core.state.base(dir, name) {
        base.key = anchor.key.clone();
        base.shown = anchor.shown.clone();
        base.dots = anchor.dots.clone();
        return Ok(base);
    }
    let now = config.clock.now_ns();
    core.hlc = core.hlc.tick(now / 1_000_000);
    let by = By {
        inc: config.inc,
        hlc: core.hlc,
    };
    let file = NewFile {
        kind: FileKind::File,
        mode: 0o600,
        body: NewBody {
            content: Content(saved.base.content.0.clone()),
            size: saved.base.size,
            mtime: time_of(now),
        },
    };
    let dir = core
        .state
        .dir(dir)
        .map_or(crate::folder::state::Fid::ROOT, |node| node.fid);
    let others = (1..=BESIDE_MAX).map(|number| beside(name, "recovered", number));
    for name in std::iter::once(Name::from(name)).chain(others) {
        match core.state.create(dir, name.as_bytes(), file.clone(), by) {
            Ok(_) => {
                let base = core.state.base(dir, name.as_bytes());
                return base.ok_or(OpError::NotFound);
            }
            Err(OpError::Exists) => {}
            Err(error) => return Err(error),
        }
    }
    Err(OpError::Exists)
}

/// The files written bytes are in, opened as needed.
struct Files<'c> {
    config: &'c FolderConfig,
    open: HashMap<FileId, Arc<dyn DiskFile>>,
}

impl Files<'_> {
    fn get(&mut self, id: FileId) -> Option<Arc<dyn DiskFile>> {
        if let Some(file) = self.open.get(&id) {
            return Some(file.clone());
        }
        let dir = &self.config.dir;
        let path = match id {
            FileId::Journal(generation) => journal::path(dir, generation),
            FileId::Staging(number) => dir.join("staging").join(format!("{number:016x}")),
        };
        let file: Arc<dyn DiskFile> = Arc::from(self.config.disk.open(&path, OpenMode::Read).ok()?);
        self.open.insert(id, file.clone());
        Some(file)
    }

    /// Whether the bytes of a change are what was written.
    fn is_whole(&mut self, change: &Alter) -> bool {
        let Alter::Data { record, file, at } = change else {
            return true;
        };
        let DataAt::Staging { crc, .. } = record.at else {
            return true;
        };
        let Some(file) = self.get(*file) else {
            return false;
        };
        let fits = file
            .len()
            .is_ok_and(|len| at.saturating_add(record.len) <= len);
        let mut bytes = vec![0; if fits { record.len as usize } else { 0 }];
        fits && file.read_at(*at, &mut bytes).is_ok() && crc32fast::hash(&bytes) == crc
    }
}

impl Alter {
    /// Repeats the change. Its time.
    fn apply(&self, overlay: &mut Overlay) -> Time {
        match self {
            Self::Data { record, file, at } => {
                overlay.write(record.offset, record.len, *file, *at);
                record.mtime
            }
            Self::Shape(record) => {
                match record.change {
                    Shape::Size(size) => overlay.set_size(size),
                    Shape::Zero { start, end } => overlay.zero(start..end),
                    Shape::Time => overlay.touch(),
                }
                record.mtime
            }
        }
    }
}

impl Inner {
    /// Writes what the journal said into the tree, so that its root is the state's. If there is no room, the next
    /// publication does it.
    fn write_replayed(&self) {
        let flush = self.core.lock().take_unflushed();
        if let Err(error) = self.write_tree(flush) {
            tracing::warn!(%error, "the recovered tree is not written yet");
        }
    }

    /// Removes what an earlier run left and nothing refers to.
    fn drop_unneeded(&self, needed: &BTreeSet<FileId>) -> io::Result<()> {
        let disk = self.config.disk.as_ref();
        for path in disk.list(&self.staging_dir())? {
            let number = path.file_name().and_then(|name| name.to_str());
            let number = number.and_then(|name| u64::from_str_radix(name, 16).ok());
            if number.is_none_or(|number| !needed.contains(&FileId::Staging(number))) {
                disk.remove(&path)?;
            }
        }
        Ok(())
    }
}

impl Tip {
    /// Of a folder in which nothing was ever done.
    fn empty(trees: &Trees<'_, StoreNodes<'_>>) -> Result<Self, NodesError<StoreError>> {
        let tree = trees.build([])?;
        Ok(Self {
            tree,
            shared: tree.root,
            files: 0,
            bytes: 0,
        })
    }
}
