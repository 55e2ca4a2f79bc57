//! The checkpoint: everything the journal said up to one generation, in one file, so that the journal before it can go.
//!
//! Written to a temporary file, synced, renamed. What it refers to (nodes, staging files, earlier journals that still
//! hold written bytes) is durable before the rename.

use std::collections::BTreeSet;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use ccbt_xet::disk::{Disk, OpenMode};
use ccbt_xet::hash::NodeId;

use super::Inner;
use super::body::Body;
use super::core::Core;
use super::extents::{FileId, Piece, Source};
use super::inodes::{Ino, Meta, Spot};
use super::journal;
use super::publish::{FlushError, Tip};
use super::record::{self, Base, BodyId, Published};
use super::table::Packed;
use crate::folder::encoding::{DecodeError, Reader, put_varint};
use crate::folder::state::{Hlc, Inc, Time};
use crate::folder::tree::Tree;

const MAGIC: &[u8; 8] = b"ccbtchk1";
const NAME: &str = "checkpoint";
const TEMPORARY: &str = "checkpoint.new";

/// A journal of this length is worth a checkpoint; a folder with a large table waits until the journal is as long.
pub(super) const JOURNAL_BYTES: u64 = 64 << 20;

/// A checkpoint as it is on disk.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Checkpoint {
    /// The first generation to replay over it.
    pub(super) journal: u64,
    /// The incarnation whose operations it and the journal after it hold as our own.
    pub(super) inc: Inc,
    pub(super) tip: Tip,
    pub(super) vv: Vec<(Inc, u64)>,
    pub(super) hlc: Hlc,
    pub(super) next_ino: u64,
    pub(super) next_number: u64,
    pub(super) published: Option<Published>,
    pub(super) inodes: Vec<(Ino, Meta, Vec<Spot>)>,
    pub(super) table: Packed,
    pub(super) bodies: Vec<SavedBody>,
}

/// Content that was not committed.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct SavedBody {
    pub(super) body: BodyId,
    pub(super) ino: Ino,
    pub(super) base: Base,
    pub(super) size: u64,
    pub(super) visible: u64,
    pub(super) stamp: u64,
    pub(super) settled: u64,
    pub(super) mtime: Time,
    pub(super) extents: Vec<Piece>,
}

impl SavedBody {
    fn of(body: &Body) -> Self {
        let page = body.page();
        Self {
            body: body.id,
            ino: body.ino,
            base: page.base(),
            size: page.overlay.size(),
            visible: page.overlay.visible(),
            stamp: page.overlay.stamp(),
            settled: page.settled,
            mtime: page.mtime,
            extents: page.overlay.extents().collect(),
        }
    }

    fn encode(&self, out: &mut Vec<u8>) {
        put_varint(out, self.body.0);
        put_varint(out, self.ino.0);
        record::put_base(out, &self.base);
        for number in [self.size, self.visible, self.stamp, self.settled] {
            put_varint(out, number);
        }
        record::put_time(out, self.mtime);
        put_varint(out, self.extents.len() as u64);
        for piece in &self.extents {
            put_varint(out, piece.range.start);
            put_varint(out, piece.range.end - piece.range.start);
            match piece.source {
                Source::Data { file, at } => {
                    out.push(1);
                    record::put_file_id(out, file);
                    put_varint(out, at);
                }
                Source::Zero | Source::Base => out.push(0),
            }
        }
    }

    fn decode(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            body: BodyId(r.varint()?),
            ino: Ino(r.varint()?),
            base: record::base(r)?,
            size: r.varint()?,
            visible: r.varint()?,
            stamp: r.varint()?,
            settled: r.varint()?,
            mtime: record::time(r)?,
            extents: record::list(r, "extents", 3, |r| {
                let start = r.varint()?;
                let len = r.varint()?;
                let end = start
                    .checked_add(len)
                    .ok_or(DecodeError::Rule("an extent has no end"))?;
                let source = match r.u8()? {
                    0 => Source::Zero,
                    1 => Source::Data {
                        file: record::file_id(r)?,
                        at: r.varint()?,
                    },
                    _ => return Err(DecodeError::Rule("unknown kind of extent")),
                };
                Ok(Piece {
                    range: start..end,
                    source,
                })
            })?,
        })
    }
}

impl Checkpoint {
    fn encode(&self) -> Vec<u8> {
        let mut out = MAGIC.to_vec();
        put_varint(&mut out, self.journal);
        out.extend_from_slice(&self.inc.0);
        out.extend_from_slice(self.tip.tree.root.as_bytes());
        out.push(self.tip.tree.height);
        out.extend_from_slice(self.tip.shared.as_bytes());
        put_varint(&mut out, self.tip.files);
        put_varint(&mut out, self.tip.bytes);
        put_varint(&mut out, self.vv.len() as u64);
        for (inc, ctr) in &self.vv {
            out.extend_from_slice(&inc.0);
            put_varint(&mut out, *ctr);
        }
        for number in [self.hlc.0, self.next_ino, self.next_number] {
            put_varint(&mut out, number);
        }
        record::put_option(&mut out, self.published.as_ref(), |out, published| {
            published.encode(out);
        });
        put_varint(&mut out, self.inodes.len() as u64);
        for (ino, meta, names) in &self.inodes {
            put_varint(&mut out, ino.0);
            record::put_meta(&mut out, meta);
            put_varint(&mut out, names.len() as u64);
            names
                .iter()
                .for_each(|spot| record::put_spot(&mut out, spot));
        }
        self.table.encode(&mut out);
        put_varint(&mut out, self.bodies.len() as u64);
        self.bodies.iter().for_each(|body| body.encode(&mut out));
        let crc = crc32fast::hash(&out);
        out.extend_from_slice(&crc.to_le_bytes());
        out
    }

    fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let damaged = DecodeError::Rule("the checksum is wrong");
        let (body, crc) = bytes.split_last_chunk().ok_or(damaged)?;
        if u32::from_le_bytes(*crc) != crc32fast::hash(body) {
            return Err(damaged);
        }
        let r = &mut Reader::new(body);
        if r.take(MAGIC.len())? != MAGIC {
            return Err(DecodeError::Rule("not a checkpoint of this version"));
        }
        let checkpoint = Self {
            journal: r.varint()?,
            inc: Inc(r.array()?),
            tip: Tip {
                tree: Tree {
                    root: NodeId::from_bytes(r.array()?),
                    height: r.u8()?,
                },
                shared: NodeId::from_bytes(r.array()?),
                files: r.varint()?,
                bytes: r.varint()?,
            },
            vv: record::list(r, "counters", 9, |r| Ok((Inc(r.array()?), r.varint()?)))?,
            hlc: Hlc(r.varint()?),
            next_ino: r.varint()?,
            next_number: r.varint()?,
            published: record::option(r, Published::decode)?,
            inodes: record::list(r, "inodes", 10, |r| {
                let (ino, meta) = (Ino(r.varint()?), record::meta(r)?);
                Ok((ino, meta, record::list(r, "names", 9, record::spot)?))
            })?,
            table: Packed::decode(r)?,
            bodies: record::list(r, "bodies", 20, SavedBody::decode)?,
        };
        match r.remaining() {
            0 => Ok(checkpoint),
            left => Err(DecodeError::Trailing(left)),
        }
    }
}

/// The checkpoint of a folder, if it has one.
pub(super) fn load(disk: &dyn Disk, dir: &Path) -> io::Result<Option<Checkpoint>> {
    let file = match disk.open(&dir.join(NAME), OpenMode::Read) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut bytes = vec![0; file.len()? as usize];
    file.read_at(0, &mut bytes)?;
    let invalid = |error| io::Error::new(io::ErrorKind::InvalidData, error);
    Checkpoint::decode(&bytes).map(Some).map_err(invalid)
}

fn store(disk: &dyn Disk, dir: &Path, checkpoint: &Checkpoint) -> io::Result<()> {
    let temporary = dir.join(TEMPORARY);
    let file = disk.open(&temporary, OpenMode::Create)?;
    file.write_at(0, &[&checkpoint.encode()])?;
    file.sync()?;
    disk.rename(&temporary, &dir.join(NAME))?;
    disk.sync_dir(dir)
}

impl Inner {
    /// Writes a checkpoint and drops the journal before it.
    pub(super) fn checkpoint(&self) -> Result<(), FlushError> {
        let (mut checkpoint, flush, bodies) = {
            let _alone = self.gate.write();
            let journal = self.journal.roll()?;
            let mut core = self.core.lock();
            let bodies: Vec<Arc<Body>> = core.dirty.values().cloned().collect();
            let flush = core.take_unflushed();
            let next_number = self.next_number.load(Ordering::Relaxed);
            (core.checkpoint(journal, next_number), flush, bodies)
        };
        checkpoint.tip = self.write_tree(flush)?;
        for body in &bodies {
            self.sync_staging(body)?;
        }
        self.config
            .store
            .sync()
            .map_err(|error| FlushError::Store(error.into()))?;
        self.journal.sync()?;
        store(self.config.disk.as_ref(), &self.config.dir, &checkpoint)?;
        self.drop_journals(checkpoint.journal, &checkpoint.bodies)?;
        self.empty_trash()?;
        Ok(())
    }

    /// Checkpoints if the journal has grown long.
    pub(super) fn checkpoint_if_long(&self) -> Result<(), FlushError> {
        let inodes = self.core.lock().inodes.iter().len() as u64;
        // About what one inode takes in a checkpoint.
        let table_bytes = inodes * 64;
        if self.journal.len() > JOURNAL_BYTES.max(4 * table_bytes) {
            self.checkpoint()?;
        }
        Ok(())
    }

    /// Removes journals before `first` that hold no written bytes of `bodies`.
    fn drop_journals(&self, first: u64, bodies: &[SavedBody]) -> io::Result<()> {
        let disk = self.config.disk.as_ref();
        let needed = files_of(bodies);
        for generation in journal::generations(disk, &self.config.dir)? {
            if generation < first && !needed.contains(&FileId::Journal(generation)) {
                disk.remove(&journal::path(&self.config.dir, generation))?;
            }
        }
        Ok(())
    }

    /// Removes staging files that nothing durable refers to. To be called after a sync of the journal, with what was
    /// in the trash before it.
    pub(super) fn empty_trash(&self) -> io::Result<()> {
        let trash = std::mem::take(&mut self.core.lock().trash);
        if trash.is_empty() {
            return Ok(());
        }
        self.journal.sync()?;
        for number in trash {
            match self.config.disk.remove(&self.staging_path(number)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }
}

/// The files that hold written bytes of some bodies.
pub(super) fn files_of(bodies: &[SavedBody]) -> BTreeSet<FileId> {
    let pieces = bodies.iter().flat_map(|body| &body.extents);
    let files = pieces.filter_map(|piece| match piece.source {
        Source::Data { file, .. } => Some(file),
        Source::Base | Source::Zero => None,
    });
    files.collect()
}

impl Core {
    fn checkpoint(&self, journal: u64, next_number: u64) -> Checkpoint {
        let inodes = self.inodes.iter();
        let bodies = self.dirty.values();
        Checkpoint {
            journal,
            inc: self.inc,
            tip: self.tip,
            vv: self.state.vv().iter().collect(),
            hlc: self.hlc,
            next_ino: self.inodes.next(),
            next_number,
            published: self.published.clone(),
            inodes: inodes
                .map(|(ino, inode)| {
                    (
                        ino,
                        inode.meta.clone(),
                        inode.names.iter().cloned().collect(),
                    )
                })
                .collect(),
            table: Packed::of(&self.table),
            bodies: bodies.map(|body| SavedBody::of(body)).collect(),
        }
    }
}
