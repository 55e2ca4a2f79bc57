//! Inode numbers: which name or directory has which, and the attributes that never leave this machine.
//!
//! A number belongs to what the user sees as one file: a directory by its identity, a file by the shown names it has
//! (all hard links together). It is given once, stays through renames, merges and remounts, and is never used again.
//! Numbers are bound to *shown* names, because those are what stays the same while versions come, go and conflict.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Bound;
use std::sync::{Arc, Weak};

use super::body::Body;
use crate::folder::state::{Content, Fid, FileKind, FileNode, Name, Time, Xattrs};

pub(super) use ccbt_mount::Ino;

/// A shown name in a directory.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Spot {
    pub(super) dir: Fid,
    pub(super) name: Name,
}

/// What a number stands for, as far as it is ours alone to know.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Meta {
    pub(super) kind: NodeKind,
    pub(super) local: Local,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) enum NodeKind {
    /// A file or symbolic link of the shared state.
    File,
    Dir(Fid),
    /// Known to this machine only.
    Special {
        kind: SpecialKind,
        rdev: u32,
        mode: u16,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum SpecialKind {
    Fifo = 0,
    Socket = 1,
    CharDevice = 2,
    BlockDevice = 3,
}

impl SpecialKind {
    pub(super) fn from_u8(n: u8) -> Option<Self> {
        [
            Self::Fifo,
            Self::Socket,
            Self::CharDevice,
            Self::BlockDevice,
        ]
        .into_iter()
        .find(|kind| *kind as u8 == n)
    }
}

/// Attributes that are not shared.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Local {
    pub(super) uid: u32,
    pub(super) gid: u32,
    /// The set-user-id and set-group-id bits.
    pub(super) set_id: u16,
    pub(super) atime: Time,
    pub(super) ctime: Time,
    /// Of directories and special files; a file's is part of its version.
    pub(super) mtime: Option<Time>,
}

/// A file that has no name any more but is open or known to the kernel.
#[derive(Debug, Clone)]
pub(super) struct Orphan {
    pub(super) kind: FileKind,
    pub(super) content: Content,
    pub(super) size: u64,
    pub(super) mode: u16,
    pub(super) mtime: Time,
    pub(super) xattrs: Xattrs,
}

impl From<FileNode> for Orphan {
    fn from(node: FileNode) -> Self {
        Self {
            kind: node.version.kind,
            content: node.version.content,
            size: node.version.size,
            mode: node.mode,
            mtime: node.mtime,
            xattrs: node.xattrs,
        }
    }
}

/// One inode.
#[derive(Debug)]
pub(super) struct Inode {
    pub(super) meta: Meta,
    /// The names of a file; empty for directories and what was unlinked.
    pub(super) names: BTreeSet<Spot>,
    /// What an unlinked file still is.
    pub(super) orphan: Option<Box<Orphan>>,
    /// Its content, while something has it open or it is not committed.
    pub(super) body: Option<Arc<Body>>,
    /// The content that was opened for writing last.
    pub(super) writing: Weak<Body>,
    /// Open handles.
    pub(super) opens: u32,
    /// Some of them are of a version that others have replaced since.
    pub(super) divided: bool,
    /// Others have changed it since it got its number.
    pub(super) renewed: bool,
    /// The kernel may ask for it by number.
    pub(super) known: bool,
    /// The digest of the content the kernel may have cached pages of.
    pub(super) cached: Option<u64>,
}

/// All inodes, by number, name and directory.
#[derive(Debug)]
pub(super) struct Inodes {
    by_ino: HashMap<Ino, Inode>,
    by_spot: HashMap<Spot, Ino>,
    by_dir: HashMap<Fid, Ino>,
    /// The names of special files, which no state knows.
    specials: BTreeMap<Spot, Ino>,
    next: u64,
    /// What changed since [`Inodes::take_touched`].
    touched: Touched,
}

/// Inodes and names that are to be logged as they are by then.
#[derive(Debug, Default)]
pub(super) struct Touched {
    pub(super) inos: BTreeSet<Ino>,
    pub(super) spots: BTreeSet<Spot>,
}

impl Inodes {
    /// The root alone.
    pub(super) fn new(root: Local) -> Self {
        let mut inodes = Self {
            by_ino: HashMap::new(),
            by_spot: HashMap::new(),
            by_dir: HashMap::new(),
            specials: BTreeMap::new(),
            next: Ino::ROOT.0 + 1,
            touched: Touched::default(),
        };
        let kind = NodeKind::Dir(Fid::ROOT);
        inodes.set_meta(Ino::ROOT, Meta { kind, local: root });
        inodes
    }

    pub(super) fn get(&self, ino: Ino) -> Option<&Inode> {
        self.by_ino.get(&ino)
    }

    /// For what is not logged: bodies, counts. Attributes change through [`Inodes::meta_mut`].
    pub(super) fn get_mut(&mut self, ino: Ino) -> Option<&mut Inode> {
        self.by_ino.get_mut(&ino)
    }

    /// The attributes of an inode, to be changed and logged.
    pub(super) fn meta_mut(&mut self, ino: Ino) -> Option<&mut Meta> {
        let inode = self.by_ino.get_mut(&ino)?;
        self.touched.inos.insert(ino);
        Some(&mut inode.meta)
    }

    /// What was numbered, named or changed since the last call.
    pub(super) fn take_touched(&mut self) -> Touched {
        std::mem::take(&mut self.touched)
    }

    /// Numbers and names given but not logged yet.
    pub(super) fn touched(&self) -> usize {
        self.touched.inos.len() + self.touched.spots.len()
    }

    pub(super) fn at(&self, spot: &Spot) -> Option<Ino> {
        self.by_spot.get(spot).copied()
    }

    pub(super) fn of_dir(&self, dir: Fid) -> Option<Ino> {
        self.by_dir.get(&dir).copied()
    }

    /// The number the next new inode gets.
    pub(super) fn next(&self) -> u64 {
        self.next
    }

    /// Numbers below `next` are taken.
    pub(super) fn reserve(&mut self, next: u64) {
        self.next = self.next.max(next);
    }

    /// A new number for `meta`, without a name yet.
    pub(super) fn add(&mut self, meta: Meta) -> Ino {
        let ino = Ino(self.next);
        self.set_meta(ino, meta);
        ino
    }

    /// Creates or changes an inode.
    pub(super) fn set_meta(&mut self, ino: Ino, meta: Meta) {
        self.next = self.next.max(ino.0 + 1);
        self.touched.inos.insert(ino);
        if let NodeKind::Dir(fid) = meta.kind {
            self.by_dir.insert(fid, ino);
        }
        match self.by_ino.get_mut(&ino) {
            Some(inode) => inode.meta = meta,
            None => {
                self.by_ino.insert(ino, Inode::new(meta));
            }
        }
    }

    /// Gives `spot` to `ino`, taking it from whoever had it.
    pub(super) fn bind(&mut self, spot: Spot, ino: Ino) {
        self.touched.spots.insert(spot.clone());
        if let Some(old) = self.by_spot.insert(spot.clone(), ino)
            && old != ino
            && let Some(inode) = self.by_ino.get_mut(&old)
        {
            inode.names.remove(&spot);
        }
        self.specials.remove(&spot);
        if let Some(inode) = self.by_ino.get_mut(&ino) {
            if matches!(inode.meta.kind, NodeKind::Special { .. }) {
                self.specials.insert(spot.clone(), ino);
            }
            inode.names.insert(spot);
        }
    }

    /// Takes `spot` from the inode that has it.
    pub(super) fn unbind(&mut self, spot: &Spot) -> Option<Ino> {
        let ino = self.by_spot.remove(spot)?;
        self.touched.spots.insert(spot.clone());
        self.specials.remove(spot);
        if let Some(inode) = self.by_ino.get_mut(&ino) {
            inode.names.remove(spot);
        }
        Some(ino)
    }

    /// Forgets an inode and every name it had.
    pub(super) fn remove(&mut self, ino: Ino) -> Option<Inode> {
        let inode = self.by_ino.remove(&ino)?;
        self.touched.inos.insert(ino);
        for spot in &inode.names {
            self.touched.spots.insert(spot.clone());
            self.by_spot.remove(spot);
            self.specials.remove(spot);
        }
        if let NodeKind::Dir(fid) = inode.meta.kind
            && self.by_dir.get(&fid) == Some(&ino)
        {
            self.by_dir.remove(&fid);
        }
        Some(inode)
    }

    pub(super) fn iter(&self) -> impl ExactSizeIterator<Item = (Ino, &Inode)> {
        self.by_ino.iter().map(|(&ino, inode)| (ino, inode))
    }

    /// The numbered names in a directory, found by looking at all of them.
    pub(super) fn names_in(&self, dir: Fid) -> Vec<Name> {
        let spots = self.by_spot.keys().filter(|spot| spot.dir == dir);
        spots.map(|spot| spot.name.clone()).collect()
    }

    /// The special file at a name.
    pub(super) fn special_at(&self, spot: &Spot) -> Option<Ino> {
        self.specials.get(spot).copied()
    }

    /// The special files in a directory.
    pub(super) fn specials_in(&self, dir: Fid) -> impl Iterator<Item = (&Name, Ino)> {
        let first = Spot {
            dir,
            name: Name::from(&[][..]),
        };
        self.specials
            .range((Bound::Included(first), Bound::Unbounded))
            .take_while(move |(spot, _)| spot.dir == dir)
            .map(|(spot, &ino)| (&spot.name, ino))
    }
}

impl Inode {
    fn new(meta: Meta) -> Self {
        Self {
            meta,
            names: BTreeSet::new(),
            orphan: None,
            body: None,
            writing: Weak::new(),
            opens: 0,
            divided: false,
            renewed: false,
            known: false,
            cached: None,
        }
    }
}
