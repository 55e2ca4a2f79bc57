//! Where in the home every file and directory with a base record is: the records themselves say what is where only by
//! the number of the directory.

use std::collections::HashMap;

use bytes::Bytes;
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

/// Numbers that lie together: they are given one by one, so most of a page is in use.
const PAGE_IDS: usize = 256;

/// Places by number.
#[derive(Debug, Default)]
pub struct Places {
    pages: RwLock<Pages>,
}

#[derive(Debug, Default)]
struct Pages {
    by_number: HashMap<u64, Page>,
    /// Places in all of them.
    count: usize,
}

/// A home may have a million places: each is one piece of bytes, `directory u64 | name`.
#[derive(Debug)]
struct Page {
    places: Box<[Option<Box<[u8]>>; PAGE_IDS]>,
    count: usize,
}

impl Default for Page {
    fn default() -> Self {
        Self {
            places: Box::new([const { None }; PAGE_IDS]),
            count: 0,
        }
    }
}

impl Pages {
    fn get(&self, id: HomeId) -> Option<(HomeId, &[u8])> {
        let (page, index) = split(id);
        let place = self.by_number.get(&page)?.places.get(index)?.as_ref()?;
        let (dir, name) = place.split_first_chunk()?;
        Some((HomeId(u64::from_le_bytes(*dir)), name))
    }

    fn set(&mut self, id: HomeId, at: Option<At>) {
        let (page_number, index) = split(id);
        if at.is_none() && !self.by_number.contains_key(&page_number) {
            return;
        }
        let page = self.by_number.entry(page_number).or_default();
        let Some(place) = page.places.get_mut(index) else {
            return;
        };
        let new = at.map(|at| [&at.dir.0.to_le_bytes(), &at.name[..]].concat().into());
        let is_more = usize::from(new.is_some());
        let old = usize::from(std::mem::replace(place, new).is_some());
        page.count = page.count + is_more - old;
        self.count = self.count + is_more - old;
        if page.count == 0 {
            self.by_number.remove(&page_number);
        }
    }
}

fn split(id: HomeId) -> (u64, usize) {
    let ids = PAGE_IDS as u64;
    (id.0 / ids, (id.0 % ids) as usize)
}

impl Places {
    /// Notes where something is, or that it is gone.
    pub fn set(&self, id: HomeId, at: Option<At>) {
        self.pages.write().set(id, at);
    }

    pub fn get(&self, id: HomeId) -> Option<At> {
        let pages = self.pages.read();
        let (dir, name) = pages.get(id)?;
        let name = Bytes::copy_from_slice(name);
        Some(At { dir, name })
    }

    /// The path of something from the root; none if it has no record.
    pub fn path(&self, id: HomeId) -> Option<Vec<u8>> {
        let pages = self.pages.read();
        let mut names = Vec::new();
        let mut id = id;
        // Records come from a file of ours; a damaged one must not make this run in circles.
        while id != HomeId::ROOT && own_name(id).is_none() && names.len() <= pages.count {
            let (dir, name) = pages.get(id)?;
            names.push(name);
            id = dir;
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
    fn places_come_and_go_and_leave_nothing_behind() {
        let places = Places::default();
        let numbers = [1, 255, 256, 100_000, (1 << 48) - 1].map(HomeId);
        for id in numbers {
            let name = Bytes::from(id.0.to_string());
            let dir = HomeId(id.0 / 2);
            places.set(
                id,
                Some(At {
                    dir,
                    name: name.clone(),
                }),
            );
            places.set(
                id,
                Some(At {
                    dir: HomeId(7),
                    name,
                }),
            );
        }
        assert_eq!(places.pages.read().count, 5);
        for id in numbers {
            let at = places.get(id).unwrap();
            assert_eq!(
                (at.dir, &at.name[..]),
                (HomeId(7), id.0.to_string().as_bytes())
            );
            assert_eq!(places.get(HomeId(id.0 ^ 2)), None);
            places.set(HomeId(id.0 ^ 2), None);
            places.set(id, None);
            assert_eq!(places.get(id), None);
        }
        assert!(places.pages.read().by_number.is_empty());
    }

    #[test]
    fn damaged_records_do_not_make_a_path_run_in_circles() {
        let places = Places::default();
        places.set(HomeId(1), Some(at(HomeId(2), "a")));
        places.set(HomeId(2), Some(at(HomeId(1), "b")));
        assert_eq!(places.path(HomeId(1)), None);
    }
}
