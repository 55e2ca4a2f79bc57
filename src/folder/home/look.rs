//! Looking at one directory of a home because somebody asked, without waiting for what happens in it to be over.

use std::collections::HashSet;

use super::base::HomeId;
use super::ledger::noted_dirs;
use super::scan::{Part, Scan};
use super::{Home, ScanError, ScanReport};
use crate::folder::state::Fid;

impl Home {
    /// Takes in what lies in a directory of the folder now. Nothing to do if the home has no such directory.
    pub fn look_at(&self, dir: Fid) -> Result<ScanReport, ScanError> {
        let noted = noted_dirs(&*self.inner.ledger).into_iter();
        let found = noted.filter(|(_, fid)| *fid == dir).map(|(id, _)| id);
        let dirs: Vec<HomeId> = match dir {
            Fid::ROOT => vec![HomeId::ROOT],
            _ => found.collect(),
        };
        if dirs.is_empty() {
            return Ok(ScanReport::default());
        }
        let nothing = HashSet::new();
        let part = Part::Dirs {
            dirs: &dirs,
            open: &nothing,
            moved: &nothing,
        };
        let mut scanner = self.inner.scanner.lock();
        // Who asks wants what is there, at rest or not.
        scanner.restless.retain(|at, _| !dirs.contains(&at.dir));
        Scan::new(&self.inner, &mut scanner, &|_| ()).run(&part)
    }
}
