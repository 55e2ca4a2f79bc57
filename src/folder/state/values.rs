//! The values a folder is made of and the names of things in it: plain data, ordered and compared, nothing else.
//!
//! Every value starts with its hlc and dot, so the derived order of a value type is the order "largest" means
//! everywhere: by (hlc, incarnation, counter). The fields after them decide only between forged dots.

use std::borrow::Borrow;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use bytes::Bytes;

/// Longest name of a directory entry, in bytes (Linux `NAME_MAX`).
pub const NAME_BYTES_MAX: usize = 255;

/// Most names on a birth path: the head of a directory carries the whole path, and a chain of them is walked and freed
/// recursively.
pub const BIRTH_LEVELS_MAX: usize = 64;

/// An incarnation of a device: 8 random bytes, taken anew whenever its counters might be stale.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Inc(pub [u8; 8]);

/// One operation of one incarnation. Counters start at 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Dot {
    pub inc: Inc,
    pub ctr: u64,
}

/// Hybrid logical clock: unix milliseconds << 16 | counter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Hlc(pub u64);

/// A directory's identity: the first 8 bytes of the hash of where it was born. The root is all zeros.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Fid(pub [u8; 8]);

/// Names whose versions carry one link id are one inode while what they show is equal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LinkId(pub Dot);

/// The name of a directory entry: bytes, shared between the places that hold it.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name(Arc<[u8]>);

/// What a version holds, as an encoded reference; opaque here, equal references are equal content.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Content(pub Arc<[u8]>);

/// The first 8 bytes of the BLAKE3 hash of a [`Content`]: enough to tell which version a time was set on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ContentDigest(pub [u8; 8]);

/// A point in time: seconds since the epoch (may be negative) and nanoseconds in `0..1_000_000_000`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Time {
    pub secs: i64,
    pub nanos: u32,
}

/// Extended attributes by full name (`user.x`).
pub type Xattrs = BTreeMap<Bytes, Bytes>;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum FileKind {
    File,
    Symlink,
}

/// The position of a value among its rivals.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rank {
    pub hlc: Hlc,
    pub dot: Dot,
}

/// Where a directory is: a value of the directory, not of the parent it names.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    pub hlc: Hlc,
    pub dot: Dot,
    pub parent: Fid,
    pub name: Name,
    /// The mode its author saw, shown while no [`DirMeta`] survives.
    pub mode: u16,
    /// Where it was before the last move: a directory in a cycle goes back there.
    pub was: Option<(Fid, Name)>,
}

/// Attributes of a directory.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct DirMeta {
    pub hlc: Hlc,
    pub dot: Dot,
    pub mode: u16,
    /// A time set by the user; without one the mount keeps its own.
    pub mtime: Option<Time>,
    pub xattrs: Xattrs,
}

/// Content at a name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    pub hlc: Hlc,
    pub dot: Dot,
    pub kind: FileKind,
    pub content: Content,
    /// Bytes of the content.
    pub size: u64,
    pub mtime: Time,
    pub mode: u16,
    pub link: Option<LinkId>,
}

/// Attributes set on a name after its content was written. They apply to the version that has the name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct FileMeta {
    pub hlc: Hlc,
    pub dot: Dot,
    pub mode: u16,
    /// A time set by the user, and the content it was set on: it applies to no other.
    pub mtime: Option<(ContentDigest, Time)>,
    pub xattrs: Xattrs,
}

/// What merges need to know of a value.
pub(super) trait Value: Ord + Clone {
    fn dot(&self) -> Dot;
    fn hlc(&self) -> Hlc;

    fn rank(&self) -> Rank {
        Rank {
            hlc: self.hlc(),
            dot: self.dot(),
        }
    }
}

macro_rules! value {
    ($($type:ty),*) => {$(
        impl Value for $type {
            fn dot(&self) -> Dot {
                self.dot
            }

            fn hlc(&self) -> Hlc {
                self.hlc
            }
        }
    )*};
}

value!(Place, DirMeta, Version, FileMeta);

/// The key of an entry. An empty name is the head of directory `dir`, any other a name in it. Ordered by directory, then
/// by name, so a head comes before the names it heads.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    pub dir: Fid,
    pub name: Name,
}

/// The values at one key. Every list is sorted, largest first, without duplicates.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Entry {
    Head(Head),
    File(FileEntry),
}

/// Everything about a directory that is not in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    pub birth: BirthPath,
    pub places: Vec<Place>,
    pub metas: Vec<DirMeta>,
}

/// The files at one name.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct FileEntry {
    pub versions: Vec<Version>,
    pub metas: Vec<FileMeta>,
}

/// What each incarnation's operations a state has seen: all of them up to the counter.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct VersionVector(BTreeMap<Inc, u64>);

/// Where a directory was created, from the root: gives the identity of every directory on it. Shares its beginning with
/// the paths it grew from.
#[derive(Clone)]
pub struct BirthPath(Option<Arc<Birth>>);

struct Birth {
    parent: BirthPath,
    name: Name,
    n: u32,
    fid: Fid,
    level: usize,
}

impl Fid {
    pub const ROOT: Self = Self([0; 8]);

    /// The directory born in `parent` as the `n`th of that name its creator knew.
    pub fn born(parent: Self, n: u32, name: &[u8]) -> Self {
        let mut hasher = blake3::Hasher::new_derive_key("ccbt 2026 dir");
        hasher.update(&parent.0).update(&n.to_le_bytes());
        hasher.update(name);
        Self(first_8(hasher.finalize()))
    }
}

fn first_8(hash: blake3::Hash) -> [u8; 8] {
    let mut out = [0; 8];
    out.copy_from_slice(&hash.as_bytes()[..8]);
    out
}

impl Hlc {
    /// The next reading after `self` at `now_ms` (unix milliseconds): never earlier than either.
    #[must_use]
    pub fn tick(self, now_ms: u64) -> Self {
        let wall = now_ms.min(u64::MAX >> 16) << 16;
        Self(self.0.saturating_add(1).max(wall))
    }

    pub fn unix_ms(self) -> u64 {
        self.0 >> 16
    }
}

impl Content {
    pub fn digest(&self) -> ContentDigest {
        ContentDigest(first_8(blake3::hash(&self.0)))
    }
}

impl From<&[u8]> for Content {
    fn from(bytes: &[u8]) -> Self {
        Self(bytes.into())
    }
}

impl Version {
    /// Versions that are the same to a reader: shown once.
    pub fn same(&self) -> (FileKind, &Content) {
        (self.kind, &self.content)
    }
}

impl FileEntry {
    pub fn is_empty(&self) -> bool {
        self.versions.is_empty() && self.metas.is_empty()
    }
}

impl Name {
    /// Whether a user may give an entry this name: 1 to 255 bytes without `/` and NUL, not `.` or `..`.
    pub fn is_valid(name: &[u8]) -> bool {
        (1..=NAME_BYTES_MAX).contains(&name.len())
            && name != b"."
            && name != b".."
            && !name.iter().any(|byte| matches!(byte, b'/' | 0))
    }

    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl From<&[u8]> for Name {
    fn from(bytes: &[u8]) -> Self {
        Self(bytes.into())
    }
}

impl Borrow<[u8]> for Name {
    fn borrow(&self) -> &[u8] {
        &self.0
    }
}

impl Key {
    pub fn head(dir: Fid) -> Self {
        Self {
            dir,
            name: Name::from(&[][..]),
        }
    }

    pub fn file(dir: Fid, name: Name) -> Self {
        Self { dir, name }
    }
}

impl VersionVector {
    /// The newest counter seen of `inc`, 0 if none.
    pub fn get(&self, inc: Inc) -> u64 {
        self.0.get(&inc).copied().unwrap_or(0)
    }

    pub fn covers(&self, dot: Dot) -> bool {
        dot.ctr <= self.get(dot.inc)
    }

    /// Counts `dot` and all of its incarnation before it as seen.
    pub fn see(&mut self, dot: Dot) {
        let seen = self.0.entry(dot.inc).or_insert(0);
        *seen = (*seen).max(dot.ctr);
    }

    pub fn join(&mut self, other: &Self) {
        for (&inc, &ctr) in &other.0 {
            self.see(Dot { inc, ctr });
        }
    }

    pub fn iter(&self) -> impl Iterator<Item = (Inc, u64)> + '_ {
        self.0.iter().map(|(&inc, &ctr)| (inc, ctr))
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl FromIterator<(Inc, u64)> for VersionVector {
    fn from_iter<I: IntoIterator<Item = (Inc, u64)>>(entries: I) -> Self {
        let mut vector = Self::default();
        for (inc, ctr) in entries {
            vector.see(Dot { inc, ctr });
        }
        vector
    }
}

impl BirthPath {
    pub fn root() -> Self {
        Self(None)
    }

    /// The path of the `n`th directory born as `name` in the directory this path leads to; none beyond
    /// [`BIRTH_LEVELS_MAX`].
    pub fn child(&self, name: &Name, n: u32) -> Option<Self> {
        let level = self.level() + 1;
        (level <= BIRTH_LEVELS_MAX).then(|| {
            Self(Some(Arc::new(Birth {
                parent: self.clone(),
                name: name.clone(),
                n,
                fid: Fid::born(self.fid(), n, name.as_bytes()),
                level,
            })))
        })
    }

    /// From the steps below the root; none if there are more than [`BIRTH_LEVELS_MAX`] or one is no valid name.
    pub fn from_steps<'a>(steps: impl IntoIterator<Item = (&'a [u8], u32)>) -> Option<Self> {
        let mut path = Self::root();
        for (name, n) in steps {
            if !Name::is_valid(name) {
                return None;
            }
            path = path.child(&Name::from(name), n)?;
        }
        Some(path)
    }

    /// (name, n) of each directory on the path, the root's child first.
    pub fn steps(&self) -> Vec<(Name, u32)> {
        let mut steps = Vec::with_capacity(self.level());
        let mut at = self;
        while let Some(birth) = &at.0 {
            steps.push((birth.name.clone(), birth.n));
            at = &birth.parent;
        }
        steps.reverse();
        steps
    }

    pub fn fid(&self) -> Fid {
        self.0.as_ref().map_or(Fid::ROOT, |birth| birth.fid)
    }

    pub fn level(&self) -> usize {
        self.0.as_ref().map_or(0, |birth| birth.level)
    }

    /// The birth path of the directory it was born in, and its name there; none for the root.
    pub fn parent(&self) -> Option<(&Self, &Name)> {
        self.0.as_ref().map(|birth| (&birth.parent, &birth.name))
    }
}

impl PartialEq for BirthPath {
    fn eq(&self, other: &Self) -> bool {
        match (&self.0, &other.0) {
            (Some(mine), Some(theirs)) => {
                Arc::ptr_eq(mine, theirs)
                    || (mine.fid == theirs.fid && self.steps() == other.steps())
            }
            (mine, theirs) => mine.is_none() && theirs.is_none(),
        }
    }
}

impl Eq for BirthPath {}

impl fmt::Debug for BirthPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, n) in self.steps() {
            write!(f, "/{name:?}#{n}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0.escape_ascii())
    }
}

impl fmt::Debug for Content {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0.escape_ascii())
    }
}

impl fmt::Debug for Inc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", u64::from_be_bytes(self.0))
    }
}

impl fmt::Debug for Fid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", u64::from_be_bytes(self.0))
    }
}
