//! Which files of a torrent are wanted: patterns on their paths, or their numbers (BEP 53).

use std::ops::RangeInclusive;

use serde::{Deserialize, Serialize};

use crate::proto::metainfo::File;
use crate::proto::picker::{PRIORITY_MAX, PRIORITY_NORMAL};

/// With nothing in it, everything is wanted.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Selection {
    /// `*` and `?` stand for anything, also for `/`. A pattern without them matches a part of the path.
    pub patterns: Vec<String>,
    pub numbers: Vec<RangeInclusive<u32>>,
    /// Patterns with how much their files are wanted: 0 not at all, up to 7. The last one that matches decides.
    #[serde(default)]
    pub priorities: Vec<(String, u8)>,
}

impl Selection {
    pub fn wants(&self, file: &File) -> bool {
        self.priority(file) > 0
    }

    /// 0: it is not wanted.
    pub fn priority(&self, file: &File) -> u8 {
        let path = file.path.to_path();
        let path = path.as_os_str().as_encoded_bytes();
        let fits = |(pattern, _): &&(String, u8)| matches(pattern.as_bytes(), path);
        match self.priorities.iter().rev().find(fits) {
            Some((_, priority)) => (*priority).min(PRIORITY_MAX),
            None if self.chooses(file) => PRIORITY_NORMAL,
            None => 0,
        }
    }

    /// Says how much files are wanted from now on.
    pub fn prefer(&mut self, pattern: &str, priority: u8) {
        self.priorities.retain(|(old, _)| old != pattern);
        self.priorities.push((pattern.to_owned(), priority));
    }

    fn chooses(&self, file: &File) -> bool {
        if self.patterns.is_empty() && self.numbers.is_empty() {
            return true;
        }
        let path = file.path.to_path();
        let path = path.as_os_str().as_encoded_bytes();
        let numbered = self.numbers.iter().any(|range| range.contains(&file.index));
        numbered
            || self
                .patterns
                .iter()
                .any(|pattern| matches(pattern.as_bytes(), path))
    }
}

fn matches(pattern: &[u8], path: &[u8]) -> bool {
    if !pattern.iter().any(|byte| matches!(byte, b'*' | b'?')) {
        return !pattern.is_empty() && path.windows(pattern.len()).any(|part| part == pattern);
    }
    // Where to go on when what follows the last `*` does not fit: one byte later.
    let (mut p, mut t, mut retry) = (0, 0, None);
    while let Some(byte) = path.get(t) {
        match pattern.get(p) {
            Some(b'*') => {
                p += 1;
                retry = Some((p, t));
            }
            Some(c) if c == byte || *c == b'?' => (p, t) = (p + 1, t + 1),
            _ => match retry {
                Some((after, at)) => {
                    (p, t) = (after, at + 1);
                    retry = Some((after, at + 1));
                }
                None => return false,
            },
        }
    }
    pattern
        .get(p..)
        .unwrap_or_default()
        .iter()
        .all(|byte| *byte == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::metainfo::Info;

    #[test]
    fn the_last_priority_that_matches_decides() {
        let raw = b"d5:filesld6:lengthi1e4:pathl1:aeed6:lengthi1e4:pathl1:beed6:lengthi1e4:pathl2:aceee4:name1:t12:piece lengthi16384e6:pieces20:aaaaaaaaaaaaaaaaaaaae";
        let info = Info::parse(raw).unwrap();
        let mut selection = Selection::default();
        let all = |selection: &Selection| -> Vec<u8> {
            info.files
                .iter()
                .map(|file| selection.priority(file))
                .collect()
        };
        assert_eq!(all(&selection), [4, 4, 4]);
        selection.patterns.push("b".into());
        assert_eq!(all(&selection), [0, 4, 0]);
        selection.prefer("t/a*", 7);
        selection.prefer("c", 9);
        assert_eq!(all(&selection), [7, 4, 7]);
        selection.prefer("*", 1);
        selection.prefer("c", 0);
        assert_eq!(all(&selection), [1, 1, 0]);
    }

    #[test]
    fn patterns_match_as_people_expect() {
        let path = b"top/sub/Episode 01.mkv";
        for pattern in [
            "*.mkv",
            "sub",
            "top/*",
            "*Episode ??.mkv",
            "*",
            "01",
            "*s*b*E*v",
        ] {
            assert!(matches(pattern.as_bytes(), path), "{pattern}");
        }
        for pattern in ["*.mp4", "sub2", "", "?", "*.mkv?", "x*", "top/*.mk"] {
            assert!(!matches(pattern.as_bytes(), path), "{pattern}");
        }
    }
}
