//! The names that more than one thing wants: which they are in each directory, and under which names the losers are
//! shown. Sibling names depend on every other name of the directory, so they are worked out for a directory at once,
//! when first asked for after something that bears on them changed; a directory without rivals costs nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::OnceLock;

use super::label;
use super::values::{Fid, Name};
use super::view::Member;
use super::{Change, State};

/// The crowded names of one directory.
#[derive(Clone, Default)]
pub(super) struct Crowd {
    bases: BTreeSet<Name>,
    names: OnceLock<SiblingNames>,
}

#[derive(Clone, Default)]
struct SiblingNames {
    /// Shown name -> wanted name and place in the group there (from 1).
    by_shown: BTreeMap<Name, (Name, usize)>,
    /// Wanted name -> shown names of the group but for its first.
    by_base: BTreeMap<Name, Vec<Name>>,
}

impl Crowd {
    pub(super) fn forget_names(&mut self) {
        self.names.take();
    }
}

impl State {
    /// Takes note that the group at `base` may have changed, and says what that changes in the view.
    pub(super) fn refresh_crowd(&mut self, dir: Fid, base: Name, changes: &mut BTreeSet<Change>) {
        let crowded = self.members(dir, base.as_bytes()).len() > 1;
        let crowd = match crowded {
            true => Some(self.crowds.entry(dir).or_default()),
            false => self.crowds.get_mut(&dir),
        };
        let Some(crowd) = crowd else {
            changes.insert(Change::Name { dir, name: base });
            return;
        };
        let was_crowded = match crowded {
            true => !crowd.bases.insert(base.clone()),
            false => crowd.bases.remove(&base),
        };
        // A plain name like a sibling's takes it away from the sibling.
        if crowded || was_crowded || is_sibling_like(&base) {
            crowd.forget_names();
            changes.insert(Change::Listing { dir });
        } else {
            changes.insert(Change::Name { dir, name: base });
        }
        if crowd.bases.is_empty() {
            self.crowds.remove(&dir);
        }
    }

    /// The wanted name and the place in its group of the sibling shown as `shown`.
    pub(super) fn sibling(&self, dir: Fid, shown: &[u8]) -> Option<&(Name, usize)> {
        self.sibling_names(dir)?.by_shown.get(shown)
    }

    /// The names under which the group at `base` is shown, its first member left out.
    pub(super) fn sibling_labels(&self, dir: Fid, base: &[u8]) -> &[Name] {
        let names = self.sibling_names(dir);
        names
            .and_then(|names| names.by_base.get(base))
            .map_or(&[], Vec::as_slice)
    }

    /// Every sibling in `dir`: shown name, wanted name, place in the group.
    pub(super) fn siblings(&self, dir: Fid) -> impl Iterator<Item = (&Name, &Name, usize)> {
        let names = self.sibling_names(dir).into_iter();
        names.flat_map(|names| names.by_shown.iter().map(|(s, (b, i))| (s, b, *i)))
    }

    /// Every name that more than one thing wants. Costs what is crowded, whatever else the folder holds.
    pub fn conflicts(&self) -> impl Iterator<Item = (Fid, &Name)> {
        let crowds = self.crowds.iter();
        crowds.flat_map(|(&dir, crowd)| crowd.bases.iter().map(move |base| (dir, base)))
    }

    fn sibling_names(&self, dir: Fid) -> Option<&SiblingNames> {
        let crowd = self.crowds.get(&dir)?;
        Some(
            crowd
                .names
                .get_or_init(|| self.name_siblings(dir, &crowd.bases)),
        )
    }

    fn name_siblings(&self, dir: Fid, bases: &BTreeSet<Name>) -> SiblingNames {
        let mut names = SiblingNames::default();
        for base in bases {
            let mut shown = Vec::new();
            for (index, member) in self
                .members(dir, base.as_bytes())
                .iter()
                .enumerate()
                .skip(1)
            {
                let tag = self.tag_of(member);
                let taken = |name: &Name| {
                    names.by_shown.contains_key(name) || self.is_plain(dir, name.as_bytes())
                };
                let mut number = 1;
                let mut label = label::label(base.as_bytes(), &tag, number);
                while taken(&label) {
                    number += 1;
                    label = label::label(base.as_bytes(), &tag, number);
                }
                names.by_shown.insert(label.clone(), (base.clone(), index));
                shown.push(label);
            }
            names.by_base.insert(base.clone(), shown);
        }
        names
    }

    fn tag_of(&self, member: &Member) -> String {
        match member {
            Member::File { version, .. } => (self.tag)(version.dot.inc, version.hlc),
            Member::Dir(fid) => match self.graph.at(*fid).and_then(|at| at.rank) {
                Some(rank) => (self.tag)(rank.dot.inc, rank.hlc),
                None => label::RECOVERED.to_owned(),
            },
        }
    }
}

/// Every label has its tag in parentheses.
fn is_sibling_like(name: &Name) -> bool {
    name.as_bytes().windows(2).any(|pair| pair == b" (")
}
