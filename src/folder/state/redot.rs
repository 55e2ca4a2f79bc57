//! A device that cannot go on under its incarnation takes what it has not published over to a fresh one.
//!
//! A state directory may have been copied, or restored from a backup: then somebody else may use the same counters for
//! other things (merge rules, "State"). What was published under them is known by the heads; everything above is still
//! ours to rename, because nobody has seen it.

use super::{Dot, Entry, Inc, LinkId, VersionVector};

/// Renames the dots of one incarnation above a counter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Redot {
    from: Inc,
    /// The last counter of `from` that was published.
    published: u64,
    to: Inc,
}

impl Redot {
    /// Of what `from` did, everything after `published` becomes `to`'s, which has done nothing before.
    pub fn new(from: Inc, published: u64, to: Inc) -> Self {
        Self {
            from,
            published,
            to,
        }
    }

    pub fn dot(&self, dot: Dot) -> Dot {
        if dot.inc == self.from && dot.ctr > self.published {
            Dot {
                inc: self.to,
                ctr: dot.ctr - self.published,
            }
        } else {
            dot
        }
    }

    pub fn vector(&self, vv: &VersionVector) -> VersionVector {
        let mut out = VersionVector::default();
        for (inc, ctr) in vv.iter() {
            let kept = if inc == self.from {
                ctr.min(self.published)
            } else {
                ctr
            };
            if kept > 0 {
                out.see(Dot { inc, ctr: kept });
            }
            let renamed = self.dot(Dot { inc, ctr });
            if renamed.inc == self.to {
                out.see(renamed);
            }
        }
        out
    }

    /// Renames the dots in `entry`; whether there were any.
    pub fn entry(&self, entry: &mut Entry) -> bool {
        let mut changed = false;
        let mut rename = |dot: &mut Dot| {
            let renamed = self.dot(*dot);
            changed |= renamed != *dot;
            *dot = renamed;
        };
        match entry {
            Entry::Head(head) => {
                head.places
                    .iter_mut()
                    .for_each(|place| rename(&mut place.dot));
                head.metas.iter_mut().for_each(|meta| rename(&mut meta.dot));
                if changed {
                    head.places.sort_by(|a, b| b.cmp(a));
                    head.metas.sort_by(|a, b| b.cmp(a));
                }
            }
            Entry::File(file) => {
                for version in &mut file.versions {
                    rename(&mut version.dot);
                    if let Some(LinkId(dot)) = &mut version.link {
                        rename(dot);
                    }
                }
                file.metas.iter_mut().for_each(|meta| rename(&mut meta.dot));
                if changed {
                    file.versions.sort_by(|a, b| b.cmp(a));
                    file.metas.sort_by(|a, b| b.cmp(a));
                }
            }
        }
        changed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OLD: Inc = Inc([1; 8]);
    const NEW: Inc = Inc([2; 8]);
    const OTHER: Inc = Inc([3; 8]);

    fn dot(inc: Inc, ctr: u64) -> Dot {
        Dot { inc, ctr }
    }

    #[test]
    fn only_what_was_not_published_is_renamed() {
        let redot = Redot::new(OLD, 5, NEW);
        assert_eq!(redot.dot(dot(OLD, 5)), dot(OLD, 5));
        assert_eq!(redot.dot(dot(OLD, 6)), dot(NEW, 1));
        assert_eq!(redot.dot(dot(OLD, 9)), dot(NEW, 4));
        assert_eq!(redot.dot(dot(OTHER, 9)), dot(OTHER, 9));
    }

    #[test]
    fn the_vector_covers_exactly_the_renamed_dots() {
        let mut vv = VersionVector::default();
        vv.see(dot(OLD, 9));
        vv.see(dot(OTHER, 7));
        let out = Redot::new(OLD, 5, NEW).vector(&vv);
        assert_eq!((out.get(OLD), out.get(NEW), out.get(OTHER)), (5, 4, 7));
        let nothing = Redot::new(OLD, 0, NEW).vector(&vv);
        assert_eq!(
            (nothing.get(OLD), nothing.get(NEW), nothing.len()),
            (0, 9, 2)
        );
        let all = Redot::new(OLD, 9, NEW).vector(&vv);
        assert_eq!((all.get(OLD), all.get(NEW)), (9, 0));
    }
}
