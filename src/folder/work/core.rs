//! What the one lock of a folder protects: the state, the inodes, the list of what is to be committed, and how a change
//! of them becomes one journal record.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::{Arc, Weak};

use ccbt_mount::VolumeError;

use super::body::Body;
use super::inodes::{Ino, Inode, Inodes, Local, Meta, NodeKind, Spot};
use super::publish::Tip;
use super::record::{BodyId, OpRecord, Published, Record};
use super::table::Table;
use crate::folder::codec;
use crate::folder::state::{
    By, Change, DirNode, Fid, FileNode, Hlc, Inc, Key, Name, Node, OpError, State, Time,
    VersionVector,
};

/// With more changed directories than these, it is cheaper to look at all.
const CHANGED_DIRS_MAX: usize = 4096;

/// Everything that changes together.
#[derive(Debug)]
pub(super) struct Core {
    pub(super) state: State,
    pub(super) inodes: Inodes,
    /// Rows the caller keeps here (base records of a home).
    pub(super) table: Table,
    /// Bodies with changes that are not committed.
    pub(super) dirty: BTreeMap<BodyId, Arc<Body>>,
    /// Every body made, and some that are gone.
    pub(super) bodies: Vec<Weak<Body>>,
    /// Staging files to remove once the log no longer needs them.
    pub(super) trash: Vec<u64>,
    /// Keys whose entries changed since the tree was last written.
    pub(super) unflushed: BTreeSet<Key>,
    /// Directories in which anything changed since they were last taken; none: any may have.
    pub(super) changed: Option<BTreeSet<Fid>>,
    /// Told when there is the first such directory, and when content has come. Must not wait.
    pub(super) on_change: Listener,
    /// How often content has come that was missing.
    pub(super) arrivals: u64,
    /// The newest reading of the hybrid clock.
    pub(super) hlc: Hlc,
    pub(super) tip: Tip,
    /// What the tree as last written has seen.
    pub(super) tip_vector: VersionVector,
    pub(super) published: Option<Published>,
    /// The last head was signed by a clock so far ahead that nobody believes it: it is to be signed anew.
    pub(super) sign_again: bool,
    /// Owner of what comes from elsewhere.
    pub(super) owner: (u32, u32),
    pub(super) inc: Inc,
}

/// One operation under way: what it leaves behind in the log and who must hear of it.
pub(super) struct Op<'c> {
    pub(super) core: &'c mut Core,
    pub(super) record: OpRecord,
    pub(super) by: By,
    pub(super) now: Time,
    pub(super) changes: Vec<Change>,
}

/// A shown thing with its number.
#[derive(Debug)]
pub(super) enum Shown {
    Dir(Ino, DirNode),
    File(Ino, FileNode),
    Special(Ino),
}

impl Shown {
    pub(super) fn ino(&self) -> Ino {
        match self {
            Self::Dir(ino, _) | Self::File(ino, _) | Self::Special(ino) => *ino,
        }
    }
}

pub(super) fn time_of(unix_ns: u64) -> Time {
    Time {
        secs: (unix_ns / 1_000_000_000) as i64,
        nanos: (unix_ns % 1_000_000_000) as u32,
    }
}

impl From<OpError> for Refused {
    fn from(error: OpError) -> Self {
        Self(match error {
            OpError::NotFound => VolumeError::NotFound,
            OpError::Exists => VolumeError::Exists,
            OpError::NotDirectory => VolumeError::NotDirectory,
            OpError::IsDirectory => VolumeError::IsDirectory,
            OpError::NotEmpty => VolumeError::NotEmpty,
            OpError::Invalid => VolumeError::Invalid,
            OpError::TooDeep => VolumeError::NameTooLong,
        })
    }
}

impl From<VolumeError> for Refused {
    fn from(error: VolumeError) -> Self {
        Self(error)
    }
}

/// An operation that changed nothing, and why.
#[derive(Debug)]
pub(super) struct Refused(pub(super) VolumeError);

/// Who is told of the first change since they last looked.
#[derive(Default)]
pub(super) struct Listener(pub(super) Option<Arc<dyn Fn() + Send + Sync>>);

impl fmt::Debug for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Listener").field(&self.0.is_some()).finish()
    }
}

impl Core {
    /// Whether the tree as last written holds all of the state. Means something to the holder of `turn`: nobody else
    /// is writing it then.
    pub(super) fn is_flushed(&self) -> bool {
        self.unflushed.is_empty()
    }

    /// Remembers a body that was made, as long as it lives.
    pub(super) fn note_body(&mut self, body: &Arc<Body>) {
        if self.bodies.len() == self.bodies.capacity() {
            self.bodies.retain(|body| body.strong_count() > 0);
        }
        self.bodies.push(Arc::downgrade(body));
    }

    /// Notes which directories changed, for who keeps a copy of them.
    pub(super) fn note_changed(&mut self, changes: &[Change]) {
        if changes.is_empty() {
            return;
        }
        if let (Some(dirs), Some(tell)) = (&self.changed, &self.on_change.0)
            && dirs.is_empty()
        {
            tell();
        }
        if let Some(dirs) = &mut self.changed {
            dirs.extend(changes.iter().map(Change::dir));
        }
        if self
            .changed
            .as_ref()
            .is_some_and(|dirs| dirs.len() > CHANGED_DIRS_MAX)
        {
            self.changed = None;
        }
    }

    pub(super) fn inode(&self, ino: Ino) -> Result<&Inode, VolumeError> {
        self.inodes.get(ino).ok_or(VolumeError::NotFound)
    }

    /// The directory `ino` stands for, if it is one.
    pub(super) fn fid(&self, ino: Ino) -> Result<Fid, VolumeError> {
        match self.inode(ino)?.meta.kind {
            NodeKind::Dir(fid) => Ok(fid),
            _ => Err(VolumeError::NotDirectory),
        }
    }

    /// What the state shows for a file inode: its node at the first name that still is one.
    pub(super) fn node_of(&self, inode: &Inode) -> Option<(Spot, FileNode)> {
        inode.names.iter().find_map(|spot| {
            match self.state.lookup(spot.dir, spot.name.as_bytes()) {
                Some(Node::File(node)) => Some((spot.clone(), node)),
                _ => None,
            }
        })
    }

    /// What `dir` shows as `name`, with its number, given now if it has none.
    pub(super) fn find(&mut self, dir: Fid, name: &[u8]) -> Option<Shown> {
        let node = self.state.lookup(dir, name);
        let spot = Spot {
            dir,
            name: Name::from(name),
        };
        match node {
            Some(node) => Some(self.numbered(spot, node)),
            None => self.inodes.special_at(&spot).map(Shown::Special),
        }
    }

    /// Gives what is shown at `spot` its number.
    pub(super) fn numbered(&mut self, spot: Spot, node: Node) -> Shown {
        match node {
            Node::Dir(node) => {
                let known = self.inodes.of_dir(node.fid);
                let ino = known.unwrap_or_else(|| {
                    let kind = NodeKind::Dir(node.fid);
                    let local = self.foreign(node.mtime.unwrap_or_else(|| self.clock_time()));
                    self.inodes.add(Meta { kind, local })
                });
                Shown::Dir(ino, node)
            }
            Node::File(node) => {
                let known = self.inodes.at(&spot).filter(|ino| self.is_file(*ino));
                let ino = known.unwrap_or_else(|| self.number_file(spot, &node));
                Shown::File(ino, node)
            }
        }
    }

    fn is_file(&self, ino: Ino) -> bool {
        let inode = self.inodes.get(ino);
        inode.is_some_and(|inode| inode.meta.kind == NodeKind::File)
    }

    fn number_file(&mut self, spot: Spot, node: &FileNode) -> Ino {
        let linked = match node.version.link {
            Some(_) => self.state.inode_names(node),
            None => Vec::new(),
        };
        let known = linked.into_iter().find_map(|(dir, name)| {
            self.inodes
                .at(&Spot { dir, name })
                .filter(|ino| self.is_file(*ino))
        });
        let ino = known.unwrap_or_else(|| {
            let local = self.foreign(node.mtime);
            let kind = NodeKind::File;
            self.inodes.add(Meta { kind, local })
        });
        self.inodes.bind(spot, ino);
        ino
    }

    /// Attributes of what came from elsewhere.
    fn foreign(&self, time: Time) -> Local {
        Local {
            uid: self.owner.0,
            gid: self.owner.1,
            set_id: 0,
            atime: time,
            ctime: time,
            mtime: None,
        }
    }

    fn clock_time(&self) -> Time {
        time_of(self.hlc.unix_ms().saturating_mul(1_000_000))
    }

    /// Starts an operation at `now_ns`.
    pub(super) fn op(&mut self, now_ns: u64) -> Op<'_> {
        self.hlc = self.hlc.tick(now_ns / 1_000_000);
        Op {
            by: By {
                inc: self.inc,
                hlc: self.hlc,
            },
            core: self,
            record: OpRecord::default(),
            now: time_of(now_ns),
            changes: Vec::new(),
        }
    }
}

impl Op<'_> {
    /// Changes local attributes.
    pub(super) fn touch(&mut self, ino: Ino, change: impl FnOnce(&mut Local, Time)) {
        if let Some(meta) = self.core.inodes.meta_mut(ino) {
            change(&mut meta.local, self.now);
        }
    }

    /// A name came to or went from directory `dir`.
    pub(super) fn touch_dir(&mut self, dir: Ino) {
        self.touch(dir, |local, now| {
            local.mtime = Some(now);
            local.ctime = now;
        });
    }

    /// The record's bytes, once everything is done. None: there is nothing to remember.
    pub(super) fn finish(mut self) -> (Option<Vec<u8>>, Vec<Change>) {
        let changes = std::mem::take(&mut self.changes);
        let record = self.complete();
        (
            record.map(|record| Record::Op(Box::new(record)).encode()),
            changes,
        )
    }

    /// Fills in what the state and the inodes changed.
    pub(super) fn complete(mut self) -> Option<OpRecord> {
        let core = self.core;
        for key in core.state.take_dirty() {
            let entry = core.state.entry(&key);
            let encoded = entry
                .map(|entry| codec::encode_entry(&key, entry))
                .transpose();
            match encoded {
                Ok(entry) => self.record.entries.push((codec::encode_key(&key), entry)),
                Err(error) => tracing::error!(%error, ?key, "an entry cannot be recorded"),
            }
            core.unflushed.insert(key);
        }
        let touched = core.inodes.take_touched();
        for ino in touched.inos {
            let meta = core.inodes.get(ino).map(|inode| inode.meta.clone());
            self.record.metas.push((ino, meta));
        }
        for spot in touched.spots {
            let ino = core.inodes.at(&spot);
            self.record.binds.push((spot, ino));
        }
        self.record.hlc = core.hlc;
        if !self.record.entries.is_empty() {
            let inc = core.inc;
            self.record.seen.push((inc, core.state.vv().get(inc)));
        }
        (!self.record.is_empty()).then_some(self.record)
    }
}
