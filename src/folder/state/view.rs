//! What the user sees: the tree of names that a state stands for. Looking up one name or listing one directory reads
//! that directory alone.

use std::collections::BTreeMap;

use super::State;
use super::values::{Dot, Fid, FileEntry, FileMeta, Key, LinkId, Name, Time, Version, Xattrs};

/// Mode of the root while nobody has set one.
const ROOT_MODE: u16 = 0o755;

/// Mode of a directory that came back without place and meta.
const GHOST_MODE: u16 = 0o700;

/// One shown thing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Node {
    Dir(DirNode),
    File(FileNode),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DirNode {
    pub fid: Fid,
    pub mode: u16,
    /// None: nobody has set one, the mount keeps its own.
    pub mtime: Option<Time>,
    pub xattrs: Xattrs,
    /// Shown only because something is still in it.
    pub ghost: bool,
}

/// A file or symlink. `mode` and `mtime` are those to show; the version's own may be overridden by a meta.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileNode {
    /// Where its values are, which is where it is shown only if it has its own name.
    pub at: Key,
    pub version: Version,
    /// Versions there with the same content, not shown.
    pub hidden: Vec<Dot>,
    pub role: Role,
    pub mode: u16,
    pub mtime: Time,
    pub xattrs: Xattrs,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Has the name it was written to.
    Main,
    /// Shown beside what has the name.
    Sibling,
}

/// A shown thing and where it is shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Spot {
    pub(super) dir: Fid,
    pub(super) name: Name,
    /// The name it is one of the group of; `name` unless it is a sibling.
    pub(super) base: Name,
    pub(super) node: Node,
}

/// One of the group of things that want a name, the first of which has it.
#[derive(Debug)]
#[expect(
    clippy::large_enum_variant,
    reason = "nearly every one is a file, and there are few at a time"
)]
pub(super) enum Member {
    Dir(Fid),
    File {
        version: Version,
        hidden: Vec<Dot>,
        role: Role,
        /// For the one that has the name.
        meta: Option<FileMeta>,
    },
}

impl Node {
    pub fn mode(&self) -> u16 {
        match self {
            Self::Dir(dir) => dir.mode,
            Self::File(file) => file.mode,
        }
    }
}

impl FileNode {
    /// Every dot of what it shows, the version's first.
    pub fn dots(&self) -> impl Iterator<Item = Dot> + '_ {
        std::iter::once(self.version.dot).chain(self.hidden.iter().copied())
    }

    /// Whether both are names of one inode.
    pub fn is_same_inode(&self, other: &Self) -> bool {
        if self.at == other.at && self.version.dot == other.version.dot {
            return true;
        }
        self.version.link.is_some()
            && self.version.link == other.version.link
            && self.version.same() == other.version.same()
            && (self.mode, self.mtime, &self.xattrs) == (other.mode, other.mtime, &other.xattrs)
    }
}

impl Spot {
    /// Whether it has the name it wants.
    pub(super) fn is_plain(&self) -> bool {
        self.name == self.base
    }

    pub(super) fn dir_node(&self) -> Option<&DirNode> {
        match &self.node {
            Node::Dir(dir) => Some(dir),
            Node::File(_) => None,
        }
    }
}

impl State {
    /// What `dir` shows as `name`.
    pub fn lookup(&self, dir: Fid, name: &[u8]) -> Option<Node> {
        self.spot(dir, name).map(|spot| spot.node)
    }

    /// Everything `dir` shows, by name; nothing if `dir` is not shown itself.
    pub fn list(&self, dir: Fid) -> Vec<(Name, Node)> {
        let spots = self.spots(dir).into_iter();
        spots.map(|spot| (spot.name, spot.node)).collect()
    }

    /// The directory itself, if it is shown.
    pub fn dir(&self, fid: Fid) -> Option<DirNode> {
        self.graph.is_shown(fid).then(|| self.dir_node(fid))
    }

    /// How many directories `dir` shows.
    pub fn subdirs(&self, dir: Fid) -> usize {
        self.graph.children(dir).map(|(_, group)| group.len()).sum()
    }

    /// The directory above and the name a directory is shown under; none for the root and for one that is not shown.
    pub fn location(&self, fid: Fid) -> Option<(Fid, Name)> {
        self.dir_spot(fid).map(|spot| (spot.dir, spot.name))
    }

    /// The names that lead to a directory from the root; none if it is not shown.
    pub fn path_of(&self, fid: Fid) -> Option<Vec<Name>> {
        self.dir(fid)?;
        let mut path = Vec::new();
        let mut at = fid;
        while at != Fid::ROOT {
            let (parent, name) = self.location(at)?;
            path.push(name);
            at = parent;
        }
        path.reverse();
        Some(path)
    }

    /// The keys whose versions carry a link id. They are one inode only as far as they show the same, see
    /// [`Self::inode_names`].
    pub fn names_of(&self, link: LinkId) -> impl Iterator<Item = &Key> {
        self.links.get(&link).into_iter().flatten()
    }

    /// Every shown name of the inode of `file`, as (directory, name).
    pub fn inode_names(&self, file: &FileNode) -> Vec<(Fid, Name)> {
        let spots = self.inode_spots(file).into_iter();
        spots.map(|spot| (spot.dir, spot.name)).collect()
    }

    /// Everything that wants the name that what `dir` shows as `shown` wants: where each is shown, the one that has the
    /// name first. Nothing if it wants it alone.
    pub fn rivals(&self, dir: Fid, shown: &[u8]) -> Vec<(Name, Node)> {
        let Some(spot) = self.spot(dir, shown) else {
            return Vec::new();
        };
        let group = self.group(dir, spot.base.as_bytes());
        if group.len() < 2 {
            return Vec::new();
        }
        group
            .into_iter()
            .map(|spot| (spot.name, spot.node))
            .collect()
    }

    pub(super) fn inode_spots(&self, file: &FileNode) -> Vec<Spot> {
        let linked = file
            .version
            .link
            .iter()
            .flat_map(|&link| self.names_of(link));
        let keys = linked.chain(file.version.link.is_none().then_some(&file.at));
        keys.flat_map(|key| self.group(key.dir, key.name.as_bytes()))
            .filter(|spot| matches!(&spot.node, Node::File(other) if other.is_same_inode(file)))
            .collect()
    }

    pub(super) fn spot(&self, dir: Fid, name: &[u8]) -> Option<Spot> {
        if let Some(member) = self.members(dir, name).into_iter().next() {
            let base = Name::from(name);
            return Some(self.as_spot(dir, &base, &base, member));
        }
        let (base, index) = self.sibling(dir, name)?;
        let member = self.members(dir, base.as_bytes()).into_iter().nth(*index)?;
        Some(self.as_spot(dir, &Name::from(name), base, member))
    }

    /// A directory and where it is shown; none for the root.
    pub(super) fn dir_spot(&self, fid: Fid) -> Option<Spot> {
        let at = self.graph.at(fid).filter(|at| at.visible)?;
        let group = self.graph.group(at.parent, at.name.as_bytes());
        let index = group.iter().position(|other| *other == fid)?;
        let labels = self.sibling_labels(at.parent, at.name.as_bytes());
        let name = match index.checked_sub(1) {
            None => &at.name,
            Some(sibling) => labels.get(sibling)?,
        };
        Some(self.as_spot(at.parent, name, &at.name, Member::Dir(fid)))
    }

    /// The group of things that want `base`, each where it is shown.
    pub(super) fn group(&self, dir: Fid, base: &[u8]) -> Vec<Spot> {
        let wanted = Name::from(base);
        let labels = self.sibling_labels(dir, base).iter();
        let names = std::iter::once(&wanted).chain(labels);
        let members = self.members(dir, base).into_iter();
        members
            .zip(names)
            .map(|(member, name)| self.as_spot(dir, name, &wanted, member))
            .collect()
    }

    fn spots(&self, dir: Fid) -> Vec<Spot> {
        let entries = self.dirs.get(&dir).into_iter();
        let entries = entries.flat_map(|dir| dir.names.iter());
        let any_dirs = self.graph.has_children(dir);
        let mut spots: Vec<Spot> = entries
            .filter(|(name, _)| !any_dirs || self.graph.group(dir, name.as_bytes()).is_empty())
            .filter_map(|(name, entry)| {
                let first = file_members(entry, true).into_iter().next()?;
                Some(self.as_spot(dir, &name, &name, first))
            })
            .collect();
        for (name, group) in self.graph.children(dir) {
            let first = group.first().map(|fid| Member::Dir(*fid));
            spots.extend(first.map(|first| self.as_spot(dir, name, name, first)));
        }
        for (shown, base, index) in self.siblings(dir) {
            if let Some(member) = self.members(dir, base.as_bytes()).into_iter().nth(index) {
                spots.push(self.as_spot(dir, shown, base, member));
            }
        }
        spots.sort_unstable_by(|one, two| one.name.cmp(&two.name));
        spots
    }

    /// Whether something has `name` as its own.
    pub(super) fn is_plain(&self, dir: Fid, name: &[u8]) -> bool {
        let dir_has_file = |dir: &super::Dir| dir.names.shows(name);
        self.dirs.get(&dir).is_some_and(dir_has_file) || !self.graph.group(dir, name).is_empty()
    }

    /// The things that want `base` in `dir`: directories before files, each kind largest first, versions of one content
    /// as one.
    pub(super) fn members(&self, dir: Fid, base: &[u8]) -> Vec<Member> {
        let dirs = self
            .graph
            .group(dir, base)
            .iter()
            .map(|fid| Member::Dir(*fid));
        let mut members: Vec<Member> = dirs.collect();
        let entry = self.dirs.get(&dir).and_then(|dir| dir.names.get(base));
        if let Some(entry) = entry {
            let has_name = members.is_empty();
            members.extend(file_members(entry, has_name));
        }
        members
    }

    fn as_spot(&self, dir: Fid, name: &Name, base: &Name, member: Member) -> Spot {
        let node = match member {
            Member::Dir(fid) => Node::Dir(self.dir_node(fid)),
            Member::File {
                version,
                hidden,
                role,
                meta,
            } => {
                let at = Key::file(dir, base.clone());
                Node::File(file_node(at, version, hidden, role, meta))
            }
        };
        Spot {
            dir,
            name: name.clone(),
            base: base.clone(),
            node,
        }
    }

    fn dir_node(&self, fid: Fid) -> DirNode {
        let dir = self.dirs.get(&fid);
        let meta = dir.and_then(|dir| dir.metas.first());
        let place = dir.and_then(|dir| dir.places.first());
        let bare = if fid == Fid::ROOT {
            ROOT_MODE
        } else {
            place.map_or(GHOST_MODE, |place| place.mode)
        };
        DirNode {
            fid,
            mode: meta.map_or(bare, |meta| meta.mode),
            mtime: meta.and_then(|meta| meta.mtime),
            xattrs: meta.map(|meta| meta.xattrs.clone()).unwrap_or_default(),
            ghost: fid != Fid::ROOT && place.is_none(),
        }
    }
}

/// The versions at a name, those of one content as one. `has_name`: no directory has it.
fn file_members(entry: FileEntry, has_name: bool) -> Vec<Member> {
    let mut members: Vec<Member> = Vec::with_capacity(entry.versions.len());
    let mut seen = BTreeMap::new();
    let alone = entry.versions.len() == 1;
    let mut metas = entry.metas.into_iter();
    for version in entry.versions {
        if !alone {
            let (kind, content) = version.same();
            let index = *seen.entry((kind, content.clone())).or_insert(members.len());
            if let Some(Member::File { hidden, .. }) = members.get_mut(index) {
                hidden.push(version.dot);
                continue;
            }
        }
        let first = has_name && members.is_empty();
        members.push(Member::File {
            version,
            hidden: Vec::new(),
            role: if first { Role::Main } else { Role::Sibling },
            meta: if first { metas.next() } else { None },
        });
    }
    members
}

fn file_node(
    at: Key,
    version: Version,
    hidden: Vec<Dot>,
    role: Role,
    meta: Option<FileMeta>,
) -> FileNode {
    let set = meta.as_ref().and_then(|meta| meta.mtime);
    let set = set.filter(|(content, _)| *content == version.content.digest());
    FileNode {
        at,
        hidden,
        role,
        mode: meta.as_ref().map_or(version.mode, |meta| meta.mode),
        mtime: set.map_or(version.mtime, |(_, time)| time),
        version,
        xattrs: meta.map(|meta| meta.xattrs).unwrap_or_default(),
    }
}
