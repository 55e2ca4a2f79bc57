//! Which directory is shown where: one parent for each, chosen from its places, with the directories brought back
//! because something is still in them (ghosts) and the cycles broken up.
//!
//! [`Graph::compute`] is the definition; it reads every directory but no file. [`Graph::update`] does the same for one
//! directory whose place changed, in logarithmic time, and declines whenever ghosts or cycles could come or go.

use std::collections::{BTreeMap, BTreeSet};

use super::label;
use super::values::{BirthPath, Fid, Name, Place, Rank, Value as _};
use super::{Dir, Dirs};

/// The position of one directory in the graph.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct At {
    /// Of its largest place; none for a ghost, which is smaller than any.
    pub(super) rank: Option<Rank>,
    /// Of a ghost, which need not have a head to look it up in.
    pub(super) birth: Option<BirthPath>,
    pub(super) parent: Fid,
    /// The name before siblings are told apart.
    pub(super) name: Name,
    /// Shown elsewhere than at its largest place because of a cycle.
    pub(super) displaced: bool,
    /// Only a ghost whose children are all displaced is invisible.
    pub(super) visible: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Node {
    /// None for the root alone.
    at: Option<At>,
    /// The visible directories in it, those of one name largest first.
    children: BTreeMap<Name, Vec<Fid>>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Graph {
    nodes: BTreeMap<Fid, Node>,
    pub(super) displaced: BTreeSet<Fid>,
}

/// A name in a directory whose group of shown things may have changed.
pub(super) type Touched = BTreeSet<(Fid, Name)>;

/// The graph cannot follow a change in place: compute it anew.
pub(super) struct Declined;

impl At {
    fn placed(place: &Place) -> Self {
        Self {
            rank: Some(place.rank()),
            birth: None,
            parent: place.parent,
            name: place.name.clone(),
            displaced: false,
            visible: true,
        }
    }

    pub(super) fn is_ghost(&self) -> bool {
        self.rank.is_none()
    }
}

impl Graph {
    /// The graph of no directories: the root alone.
    pub(super) fn empty() -> Self {
        Self {
            nodes: BTreeMap::from([(Fid::ROOT, Node::default())]),
            displaced: BTreeSet::new(),
        }
    }

    pub(super) fn compute(dirs: &Dirs) -> Self {
        let mut ats = placed(dirs);
        add_ghosts(dirs, &mut ats);
        let displaced = break_cycles(dirs, &mut ats);
        hide_empty_ghosts(dirs, &mut ats);
        let mut graph = Self::empty();
        for (&fid, at) in &ats {
            graph.nodes.entry(fid).or_default().at = Some(at.clone());
            if at.visible {
                let parent = graph.nodes.entry(at.parent).or_default();
                let group = parent.children.entry(at.name.clone()).or_default();
                let place = (at.rank, fid);
                let index = group.partition_point(|other| (ats[other].rank, *other) > place);
                group.insert(index, fid);
            }
        }
        graph.displaced = displaced;
        graph
    }

    /// Follows one directory whose largest place became `new`. `files`: whether it holds any file. On refusal the
    /// graph is unchanged.
    pub(super) fn update(
        &mut self,
        fid: Fid,
        new: Option<&Place>,
        files: bool,
        touched: &mut Touched,
    ) -> Result<(), Declined> {
        let old = self.at(fid).cloned();
        if !self.displaced.is_empty() || fid == Fid::ROOT {
            return Err(Declined);
        }
        if let Some(old) = &old
            && (old.is_ghost() || self.at(old.parent).is_some_and(At::is_ghost))
        {
            return Err(Declined);
        }
        match new {
            Some(place) if !self.can_hold(place.parent, fid) => return Err(Declined),
            None if files || self.has_children(fid) => return Err(Declined),
            _ => {}
        }
        if let Some(old) = old {
            self.detach(fid, &old);
            touched.insert((old.parent, old.name));
        }
        match new {
            Some(place) => {
                self.attach(fid, At::placed(place));
                touched.insert((place.parent, place.name.clone()));
            }
            None => {
                self.nodes.remove(&fid);
            }
        }
        Ok(())
    }

    /// Whether `parent` is shown and not `fid` or below it.
    fn can_hold(&self, parent: Fid, fid: Fid) -> bool {
        self.is_shown(parent) && !self.is_within(parent, fid)
    }

    fn attach(&mut self, fid: Fid, at: At) {
        let place = (at.rank, fid);
        let ranks = |graph: &Self, other: Fid| (graph.at(other).and_then(|at| at.rank), other);
        let index = self
            .group(at.parent, at.name.as_bytes())
            .partition_point(|&other| ranks(self, other) > place);
        let parent = self.nodes.entry(at.parent).or_default();
        let group = parent.children.entry(at.name.clone()).or_default();
        group.insert(index, fid);
        self.nodes.entry(fid).or_default().at = Some(at);
    }

    fn detach(&mut self, fid: Fid, at: &At) {
        if let Some(parent) = self.nodes.get_mut(&at.parent)
            && let Some(group) = parent.children.get_mut(&at.name)
        {
            group.retain(|other| *other != fid);
            if group.is_empty() {
                parent.children.remove(&at.name);
            }
        }
    }

    /// Where a directory is; none for the root and for one that is nowhere.
    pub(super) fn at(&self, fid: Fid) -> Option<&At> {
        self.nodes.get(&fid)?.at.as_ref()
    }

    pub(super) fn is_known(&self, fid: Fid) -> bool {
        self.nodes.contains_key(&fid)
    }

    pub(super) fn is_shown(&self, fid: Fid) -> bool {
        let node = self.nodes.get(&fid);
        node.is_some_and(|node| node.at.as_ref().is_none_or(|at| at.visible))
    }

    pub(super) fn has_children(&self, fid: Fid) -> bool {
        let node = self.nodes.get(&fid);
        node.is_some_and(|node| !node.children.is_empty())
    }

    /// The directories shown in `parent`, by name.
    pub(super) fn children(&self, parent: Fid) -> impl Iterator<Item = (&Name, &[Fid])> {
        let node = self.nodes.get(&parent).into_iter();
        node.flat_map(|node| node.children.iter().map(|(name, fids)| (name, &fids[..])))
    }

    /// The directories of one name in `parent`, largest first.
    pub(super) fn group(&self, parent: Fid, name: &[u8]) -> &[Fid] {
        let node = self.nodes.get(&parent);
        node.and_then(|node| node.children.get(name))
            .map_or(&[], Vec::as_slice)
    }

    /// `fid` and the directories above it, the root left out.
    pub(super) fn ancestors(&self, fid: Fid) -> impl Iterator<Item = (Fid, &At)> {
        let step = |fid| self.at(fid).map(|at| (fid, at));
        std::iter::successors(step(fid), move |(_, at)| step(at.parent))
    }

    /// Whether `fid` is `top` or below it.
    pub(super) fn is_within(&self, fid: Fid, top: Fid) -> bool {
        top == Fid::ROOT || self.ancestors(fid).any(|(above, _)| above == top)
    }

    /// Every directory but the root.
    pub(super) fn iter(&self) -> impl Iterator<Item = (Fid, &At)> {
        let nodes = self.nodes.iter();
        nodes.filter_map(|(&fid, node)| Some((fid, node.at.as_ref()?)))
    }
}

type Ats = BTreeMap<Fid, At>;

/// Every directory at its largest place.
fn placed(dirs: &Dirs) -> Ats {
    let largest = |(&fid, dir): (&Fid, &Dir)| Some((fid, At::placed(dir.places.first()?)));
    dirs.iter().filter_map(largest).collect()
}

/// Brings back the directories without a place that hold a file version or are the parent of another, where they were
/// born.
fn add_ghosts(dirs: &Dirs, ats: &mut Ats) {
    let holders = dirs.iter().filter(|(_, dir)| dir.shown_names > 0);
    let parents = ats.values().map(|at| at.parent);
    let wanted: BTreeSet<Fid> = holders.map(|(&fid, _)| fid).chain(parents).collect();
    for birth in wanted.iter().filter_map(|fid| Some(&dirs.get(fid)?.birth)) {
        let mut birth: &BirthPath = birth;
        while let Some((parent, name)) = birth.parent()
            && !ats.contains_key(&birth.fid())
        {
            let ghost = At {
                rank: None,
                birth: Some(birth.clone()),
                parent: parent.fid(),
                name: name.clone(),
                displaced: false,
                visible: true,
            };
            ats.insert(birth.fid(), ghost);
            birth = parent;
        }
    }
}

/// In each cycle, moves the directory with the largest place back to where it was, or to the root.
fn break_cycles(dirs: &Dirs, ats: &mut Ats) -> BTreeSet<Fid> {
    let mut displaced = BTreeSet::new();
    for cycle in cycles(ats) {
        let Some(&top) = cycle.iter().max_by_key(|&fid| (ats[fid].rank, *fid)) else {
            continue;
        };
        let was = dirs
            .get(&top)
            .and_then(|dir| dir.places.first()?.was.clone());
        let back = was.filter(|(parent, _)| reaches_root_around(ats, *parent, &cycle));
        if let Some(at) = ats.get_mut(&top) {
            (at.parent, at.name) = back.unwrap_or_else(|| {
                (
                    Fid::ROOT,
                    label::label(at.name.as_bytes(), label::RECOVERED, 1),
                )
            });
            at.displaced = true;
            displaced.insert(top);
        }
    }
    displaced
}

/// The cycles, each and all in the order of their directories: a directory has one parent, so no two share one.
fn cycles(ats: &Ats) -> BTreeSet<BTreeSet<Fid>> {
    let mut cycles = BTreeSet::new();
    let mut walked: BTreeMap<Fid, Fid> = BTreeMap::new();
    for &start in ats.keys() {
        let mut fid = start;
        while let Some(at) = ats.get(&fid) {
            match walked.get(&fid) {
                None => {
                    walked.insert(fid, start);
                    fid = at.parent;
                }
                Some(&walk) => {
                    if walk == start {
                        cycles.insert(cycle_of(ats, fid));
                    }
                    break;
                }
            }
        }
    }
    cycles
}

fn cycle_of(ats: &Ats, start: Fid) -> BTreeSet<Fid> {
    let mut cycle = BTreeSet::new();
    let mut fid = start;
    while cycle.insert(fid) {
        fid = ats[&fid].parent;
    }
    cycle
}

/// Whether the way up from `fid` ends at the root and meets no directory of `cycle`.
fn reaches_root_around(ats: &Ats, mut fid: Fid, cycle: &BTreeSet<Fid>) -> bool {
    let mut trail = BTreeSet::new();
    while fid != Fid::ROOT {
        let Some(at) = ats.get(&fid) else {
            return false;
        };
        if cycle.contains(&fid) || !trail.insert(fid) {
            return false;
        }
        fid = at.parent;
    }
    true
}

/// A ghost that lost its last child to another place is not shown, and may leave its parent empty in turn.
fn hide_empty_ghosts(dirs: &Dirs, ats: &mut Ats) {
    let mut children: BTreeMap<Fid, usize> = BTreeMap::new();
    for at in ats.values() {
        *children.entry(at.parent).or_insert(0) += 1;
    }
    let holds_files = |fid| dirs.get(&fid).is_some_and(|dir: &Dir| dir.shown_names > 0);
    let ghosts = ats.iter().filter(|(_, at)| at.is_ghost());
    let mut empty: Vec<Fid> = ghosts
        .map(|(&fid, _)| fid)
        .filter(|fid| !children.contains_key(fid) && !holds_files(*fid))
        .collect();
    while let Some(fid) = empty.pop() {
        let Some(at) = ats.get_mut(&fid) else {
            continue;
        };
        at.visible = false;
        let parent = at.parent;
        let left = children.entry(parent).or_insert(1);
        *left -= 1;
        if *left == 0 && ats.get(&parent).is_some_and(At::is_ghost) && !holds_files(parent) {
            empty.push(parent);
        }
    }
}
