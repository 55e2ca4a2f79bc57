//! Which files of a torrent are wanted: patterns on their paths, or their numbers (BEP 53).

use std::ops::RangeInclusive;

use serde::{Deserialize, Serialize};

use crate::proto::metainfo::File;

/// With nothing in it, everything is wanted.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Selection {
    /// `*` and `?` stand for anything, also for `/`. A pattern without them matches a part of the path.
    pub patterns: Vec<String>,
    pub numbers: Vec<RangeInclusive<u32>>,
}

impl Selection {
    pub fn wants(&self, file: &File) -> bool {
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
    use super::matches;

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
