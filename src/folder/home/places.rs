//! Where in the home every file and directory with a base record is: the records themselves say what is where only by
//! the number of the directory.

use std::collections::HashMap;

use parking_lot::RwLock;

use super::base::{At, HomeId};
use super::marker::OWN_DIR;
use super::plan::join;

/// In our own directory: what was replaced or removed by peers' edits.
pub const DISPLACED: HomeId = HomeId(u64::MAX);

/// In our own directory: what is on its way from one name to another while a third thing is in its way.
pub const ASIDE: HomeId = HomeId(u64::MAX - 1);

/// Whether the user does not see what is in `dir` as part of the folder.
pub fn is_hidden(dir: HomeId) -> bool {
    dir == DISPLACED || dir == ASIDE
}

/// The name in our own directory.
pub(super) fn own_name(dir: HomeId) -> Option<&'static str> {
    match dir {
        DISPLACED => Some("displaced"),
        ASIDE => Some("aside"),
        _ => None,
    }
}

/// Places by number.
#[derive(Debug, Default)]
pub struct Places {
    by_id: RwLock<HashMap<HomeId, At>>,
}

impl Places {
    /// Notes where something is, or that it is gone.
    pub fn set(&self, id: HomeId, at: Option<At>) {
        let mut by_id = self.by_id.write();
        match at {
            Some(at) => by_id.insert(id, at),
            None => by_id.remove(&id),
        };
    }

    pub fn get(&self, id: HomeId) -> Option<At> {
        self.by_id.read().get(&id).cloned()
    }

    /// The path of something from the root; none if it has no record.
    pub fn path(&self, id: HomeId) -> Option<Vec<u8>> {
        let by_id = self.by_id.read();
        let mut names = Vec::new();
        let mut id = id;
        // Records come from a file of ours; a damaged one must not make this run in circles.
        while id != HomeId::ROOT && own_name(id).is_none() && names.len() <= by_id.len() {
            let at = by_id.get(&id)?;
            names.push(&at.name);
            id = at.dir;
        }
        let start = match own_name(id) {
            Some(own) => join(OWN_DIR.as_bytes(), own.as_bytes()),
            None if id == HomeId::ROOT => Vec::new(),
            None => return None,
        };
        let path = names.into_iter().rev();
        Some(path.fold(start, |path, name| join(&path, name)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(dir: HomeId, name: &'static str) -> At {
        At {
            dir,
            name: name.into(),
        }
    }

    #[test]
    fn paths_lead_from_the_root_or_from_our_own_directory() {
        let places = Places::default();
        places.set(HomeId(1), Some(at(HomeId::ROOT, "a")));
        places.set(HomeId(2), Some(at(HomeId(1), "b")));
        assert_eq!(places.path(HomeId(2)).unwrap(), b"a/b");
        places.set(HomeId(1), Some(at(DISPLACED, "1-a")));
        assert_eq!(places.path(HomeId(2)).unwrap(), b".ccbt/displaced/1-a/b");
        assert_eq!(places.path(HomeId::ROOT).unwrap(), b"");
        places.set(HomeId(1), None);
        assert_eq!(places.path(HomeId(2)), None);
    }

    #[test]
    fn damaged_records_do_not_make_a_path_run_in_circles() {
        let places = Places::default();
        places.set(HomeId(1), Some(at(HomeId(2), "a")));
        places.set(HomeId(2), Some(at(HomeId(1), "b")));
        assert_eq!(places.path(HomeId(1)), None);
    }
}
