//! What scans met that keeps something in the directory from being part of the folder, as of the last look at each
//! directory: for the user to see and to do something about.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use super::scan::ScanReport;

/// Paths remembered of each kind.
const KEPT_MAX: usize = 1000;

/// Paths of each kind that are told.
const TOLD_MAX: usize = 100;

/// What is wrong with a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum ProblemKind {
    /// It cannot be read: it stays as it is in the folder.
    Unreadable,
    /// It changes each time it is read.
    Moving,
    /// What a peer did leaves no place for it.
    Blocked,
    /// A directory on another file system, or the home of something else: not entered.
    Nested,
    /// A device, socket or fifo: not shared.
    Special,
}

/// Paths with the same problem.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    pub kind: ProblemKind,
    /// At least so many.
    pub count: usize,
    /// The first by name, from the top of the home.
    pub first: Vec<Vec<u8>>,
}

#[derive(Debug, Default)]
pub(super) struct Problems(BTreeMap<ProblemKind, BTreeSet<Vec<u8>>>);

impl Problems {
    /// A scan of everything, or of the directories with these paths, has ended.
    pub(super) fn note(&mut self, dirs: Option<&[Vec<u8>]>, report: &ScanReport) {
        match dirs {
            None => self.0.clear(),
            Some(dirs) => {
                let dirs: HashSet<&[u8]> = dirs.iter().map(Vec::as_slice).collect();
                let is_old =
                    |path: &Vec<u8>| dirs.contains(&path[..]) || dirs.contains(parent(path));
                self.0
                    .values_mut()
                    .for_each(|paths| paths.retain(|path| !is_old(path)));
            }
        }
        let counts = &report.counts;
        let blocked = report.blocked.iter().map(|(path, _)| path);
        self.add(ProblemKind::Unreadable, report.unreadable.iter());
        self.add(ProblemKind::Unreadable, counts.unknown.iter());
        self.add(ProblemKind::Moving, report.moving.iter());
        self.add(ProblemKind::Blocked, blocked);
        self.add(ProblemKind::Nested, counts.nested.iter());
        self.add(ProblemKind::Special, counts.special.iter());
    }

    fn add<'p>(&mut self, kind: ProblemKind, paths: impl Iterator<Item = &'p Vec<u8>>) {
        let kept = self.0.entry(kind).or_default();
        for path in paths {
            if kept.len() >= KEPT_MAX {
                return;
            }
            kept.insert(path.clone());
        }
    }

    pub(super) fn told(&self) -> Vec<Problem> {
        let kinds = self.0.iter().filter(|(_, paths)| !paths.is_empty());
        kinds
            .map(|(kind, paths)| Problem {
                kind: *kind,
                count: paths.len(),
                first: paths.iter().take(TOLD_MAX).cloned().collect(),
            })
            .collect()
    }
}

fn parent(path: &[u8]) -> &[u8] {
    let end = path.iter().rposition(|byte| *byte == b'/');
    path.get(..end.unwrap_or(0)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(unreadable: &[&str]) -> ScanReport {
        ScanReport {
            unreadable: unreadable
                .iter()
                .map(|path| path.as_bytes().to_vec())
                .collect(),
            ..ScanReport::default()
        }
    }

    fn first(problems: &Problems) -> Vec<String> {
        let told = problems
            .told()
            .into_iter()
            .flat_map(|problem| problem.first);
        told.map(|path| String::from_utf8(path).unwrap()).collect()
    }

    #[test]
    fn a_look_at_a_directory_replaces_what_was_known_of_it_and_nothing_else() {
        let mut problems = Problems::default();
        problems.note(None, &report(&["a", "d/b", "d/e/c"]));
        assert_eq!(first(&problems), ["a", "d/b", "d/e/c"]);
        problems.note(Some(&[b"d".to_vec()]), &report(&["d/x"]));
        assert_eq!(first(&problems), ["a", "d/e/c", "d/x"]);
        problems.note(Some(&[b"".to_vec()]), &report(&[]));
        assert_eq!(first(&problems), ["d/e/c", "d/x"]);
        problems.note(None, &report(&[]));
        assert_eq!(problems.told(), []);
    }

    #[test]
    fn of_many_only_the_first_are_told() {
        let mut problems = Problems::default();
        let paths: Vec<String> = (0..5000).map(|n| format!("{n:04}")).collect();
        let paths: Vec<&str> = paths.iter().map(String::as_str).collect();
        problems.note(None, &report(&paths));
        let told = problems.told();
        assert_eq!((told[0].count, told[0].first.len()), (KEPT_MAX, TOLD_MAX));
    }
}
