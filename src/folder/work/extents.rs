//! What was written to a file since its base version: an ordered map of extents, each naming where its bytes lie.
//!
//! Written bytes are only ever appended somewhere (inside a journal record, or at the end of a staging file) and never
//! overwritten there. So a clone of the map is a consistent cut of the file: a commit reads its clone while writers go
//! on, and recovery can check every written range against its own checksum.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

/// A file that holds written bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum FileId {
    /// The journal of this generation: small writes travel inside their record.
    Journal(u64),
    /// The staging file of this number.
    Staging(u64),
}

/// Where the bytes of a range come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Source {
    /// The base version, at the same offset.
    Base,
    /// A hole.
    Zero,
    /// `file`, from byte `at` on.
    Data { file: FileId, at: u64 },
}

impl Source {
    /// The source of the bytes that lie `n` further on.
    fn skip(self, n: u64) -> Self {
        match self {
            Self::Data { file, at } => Self::Data { file, at: at + n },
            Self::Base | Self::Zero => self,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Extent {
    pub(super) end: u64,
    pub(super) source: Source,
    /// Which change of the file wrote it; a commit forgets what its cut held.
    stamp: u64,
}

/// A range of the file and where its bytes are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Piece {
    pub(super) range: Range<u64>,
    pub(super) source: Source,
}

/// A file as base version plus extents.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Overlay {
    size: u64,
    /// The base shows through below this offset: the smallest size the file had since.
    visible: u64,
    /// The same since the last [`Overlay::freeze`].
    visible_frozen: u64,
    base_size: u64,
    extents: BTreeMap<u64, Extent>,
    stamp: u64,
    frozen: u64,
}

impl Overlay {
    pub(super) fn new(base_size: u64) -> Self {
        Self {
            size: base_size,
            visible: base_size,
            visible_frozen: base_size,
            base_size,
            extents: BTreeMap::new(),
            stamp: 0,
            frozen: 0,
        }
    }

    /// From the parts a checkpoint kept.
    pub(super) fn from_parts(
        base_size: u64,
        size: u64,
        visible: u64,
        stamp: u64,
        extents: impl IntoIterator<Item = Piece>,
    ) -> Self {
        let mut overlay = Self::new(base_size);
        overlay.size = size;
        overlay.visible = visible.min(base_size).min(size);
        overlay.stamp = stamp;
        for piece in extents {
            overlay.put(piece.range, piece.source);
        }
        overlay
    }

    pub(super) fn size(&self) -> u64 {
        self.size
    }

    pub(super) fn visible(&self) -> u64 {
        self.visible
    }

    /// The number of the newest change.
    pub(super) fn stamp(&self) -> u64 {
        self.stamp
    }

    /// `len` bytes were written at `start`; they lie in `file` at `at`.
    pub(super) fn write(&mut self, start: u64, len: u64, file: FileId, at: u64) {
        self.stamp += 1;
        if len > 0 {
            self.size = self.size.max(start + len);
            self.put(start..start + len, Source::Data { file, at });
        }
    }

    /// The range reads as zeros, as far as the file goes.
    pub(super) fn zero(&mut self, range: Range<u64>) {
        self.stamp += 1;
        let end = range.end.min(self.size);
        if range.start < end {
            self.put(range.start..end, Source::Zero);
        }
    }

    /// Something changed that is not bytes.
    pub(super) fn touch(&mut self) {
        self.stamp += 1;
    }

    pub(super) fn set_size(&mut self, size: u64) {
        self.stamp += 1;
        if size < self.size {
            self.clear(size..self.size);
        }
        self.size = size;
        self.visible = self.visible.min(size);
        self.visible_frozen = self.visible_frozen.min(size);
    }

    /// A cut to commit. [`Overlay::settle`] with its stamp makes the committed version the new base.
    pub(super) fn freeze(&mut self) -> Self {
        let cut = self.clone();
        self.frozen = self.stamp;
        self.visible_frozen = self.size;
        cut
    }

    /// The latest cut was committed: it is the base now, what was written later lies over it.
    pub(super) fn settle(&mut self, cut: &Self) {
        self.extents.retain(|_, extent| extent.stamp > cut.stamp);
        self.base_size = cut.size;
        self.visible = self.visible_frozen;
    }

    /// Where the bytes of `range` are, in order and without gaps; what lies beyond the end of the file is left out.
    pub(super) fn pieces(&self, range: Range<u64>) -> Vec<Piece> {
        let end = range.end.min(self.size);
        let mut at = range.start;
        let mut out = Vec::new();
        let first = self
            .extents
            .range(..=at)
            .next_back()
            .map_or(at, |(&start, _)| start);
        for (&start, extent) in self.extents.range(first..end.max(first)) {
            if extent.end <= at {
                continue;
            }
            self.push_gap(&mut out, at..start);
            let from = start.max(at);
            at = extent.end.min(end);
            out.push(Piece {
                range: from..at,
                source: extent.source.skip(from - start),
            });
        }
        self.push_gap(&mut out, at..end);
        out
    }

    /// The ranges whose bytes may differ from the base at the same offset, ascending and apart.
    pub(super) fn changed(&self) -> Vec<Range<u64>> {
        let mut out: Vec<Range<u64>> = Vec::new();
        let pieces = self.pieces(0..self.size);
        for piece in pieces.into_iter().filter(|p| p.source != Source::Base) {
            match out.last_mut() {
                Some(last) if last.end == piece.range.start => last.end = piece.range.end,
                _ => out.push(piece.range),
            }
        }
        out
    }

    /// The extents, for the checkpoint.
    pub(super) fn extents(&self) -> impl ExactSizeIterator<Item = Piece> + '_ {
        self.extents.iter().map(|(&start, extent)| Piece {
            range: start..extent.end,
            source: extent.source,
        })
    }

    /// The files its bytes are in.
    pub(super) fn files(&self) -> BTreeSet<FileId> {
        self.extents
            .values()
            .filter_map(|extent| match extent.source {
                Source::Data { file, .. } => Some(file),
                Source::Base | Source::Zero => None,
            })
            .collect()
    }

    /// Bytes that are not holes.
    pub(super) fn filled(&self) -> u64 {
        self.pieces(0..self.size)
            .iter()
            .filter(|piece| piece.source != Source::Zero)
            .map(|piece| piece.range.end - piece.range.start)
            .sum()
    }

    fn push_gap(&self, out: &mut Vec<Piece>, gap: Range<u64>) {
        let base_end = gap.end.min(self.visible);
        if gap.start < base_end {
            out.push(Piece {
                range: gap.start..base_end,
                source: Source::Base,
            });
        }
        let zero_start = gap.start.max(self.visible);
        if zero_start < gap.end {
            out.push(Piece {
                range: zero_start..gap.end,
                source: Source::Zero,
            });
        }
    }

    fn put(&mut self, range: Range<u64>, source: Source) {
        self.clear(range.clone());
        let stamp = self.stamp;
        if let Some((&start, last)) = self.extents.range_mut(..range.start).next_back() {
            let follows = last.end == range.start && last.source.skip(last.end - start) == source;
            if follows && last.stamp > self.frozen {
                last.end = range.end;
                last.stamp = stamp;
                return;
            }
        }
        let end = range.end;
        self.extents
            .insert(range.start, Extent { end, source, stamp });
    }

    /// Removes what the map says of `range`, cutting extents that reach over its ends.
    fn clear(&mut self, range: Range<u64>) {
        if let Some((&start, extent)) = self.extents.range_mut(..range.start).next_back() {
            let old = *extent;
            if old.end > range.start {
                extent.end = range.start;
            }
            if old.end > range.end {
                let source = old.source.skip(range.end - start);
                self.extents.insert(range.end, Extent { source, ..old });
            }
        }
        let inside: Vec<u64> = self.extents.range(range.clone()).map(|(&s, _)| s).collect();
        for start in inside {
            if let Some(old) = self.extents.remove(&start)
                && old.end > range.end
            {
                let source = old.source.skip(range.end - start);
                self.extents.insert(range.end, Extent { source, ..old });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const FILE: FileId = FileId::Staging(7);

    /// The same file as plain bytes; `log` is the one file that holds what was written.
    struct Reference {
        base: Vec<u8>,
        bytes: Vec<u8>,
        log: Vec<u8>,
        overlay: Overlay,
    }

    impl Reference {
        fn new(base_len: usize) -> Self {
            let base: Vec<u8> = (0..base_len).map(|i| 1 + (i % 100) as u8).collect();
            Self {
                bytes: base.clone(),
                log: Vec::new(),
                overlay: Overlay::new(base.len() as u64),
                base,
            }
        }

        fn apply(&mut self, op: u8, start: usize, len: usize) {
            let end = start + len;
            match op {
                0 => {
                    let fill = 101 + (self.log.len() % 150) as u8;
                    let at = self.log.len() as u64;
                    self.log.extend(std::iter::repeat_n(fill, len));
                    self.overlay.write(start as u64, len as u64, FILE, at);
                    if len > 0 && end > self.bytes.len() {
                        self.bytes.resize(end, 0);
                    }
                    if len > 0 {
                        self.bytes[start..end].fill(fill);
                    }
                }
                1 => {
                    self.overlay.zero(start as u64..end as u64);
                    let end = end.min(self.bytes.len());
                    if start < end {
                        self.bytes[start..end].fill(0);
                    }
                }
                _ => {
                    self.overlay.set_size(start as u64);
                    self.bytes.resize(start, 0);
                }
            }
        }

        fn read(&self, overlay: &Overlay, base: &[u8], range: Range<u64>) -> Vec<u8> {
            let mut out = Vec::new();
            let mut at = range.start;
            for piece in overlay.pieces(range) {
                assert_eq!(piece.range.start, at, "gap");
                at = piece.range.end;
                let len = (piece.range.end - piece.range.start) as usize;
                match piece.source {
                    Source::Base => {
                        let start = piece.range.start as usize;
                        out.extend_from_slice(&base[start..start + len]);
                    }
                    Source::Zero => out.resize(out.len() + len, 0),
                    Source::Data { at, .. } => {
                        out.extend_from_slice(&self.log[at as usize..at as usize + len]);
                    }
                }
            }
            out
        }

        fn check(&self) {
            let all = self.read(&self.overlay, &self.base, 0..u64::MAX);
            assert_eq!(all, self.bytes);
            let (from, to) = (self.bytes.len() / 3, self.bytes.len() / 2);
            let part = self.read(&self.overlay, &self.base, from as u64..to as u64);
            assert_eq!(part, &self.bytes[from..to]);
            for (at, &byte) in self.bytes.iter().enumerate() {
                let at64 = at as u64;
                if !self.overlay.changed().iter().any(|r| r.contains(&at64)) {
                    assert_eq!(Some(&byte), self.base.get(at), "changed() misses {at}");
                }
            }
        }
    }

    proptest! {
        #[test]
        fn equals_plain_bytes_across_commits(
            base in 0usize..120,
            ops in prop::collection::vec((0u8..5, 0usize..150, 0usize..60), 1..24),
        ) {
            let mut file = Reference::new(base);
            let mut cut: Option<(Overlay, Vec<u8>)> = None;
            for (op, start, len) in ops {
                match op {
                    3 => cut = Some((file.overlay.freeze(), file.bytes.clone())),
                    4 => if let Some((frozen, bytes)) = cut.take() {
                        prop_assert_eq!(&file.read(&frozen, &file.base, 0..u64::MAX), &bytes);
                        file.overlay.settle(&frozen);
                        file.base = bytes;
                    },
                    _ => file.apply(op, start, len),
                }
                file.check();
            }
        }

        #[test]
        fn survives_a_checkpoint(ops in prop::collection::vec((0u8..3, 0usize..150, 0usize..60), 1..16)) {
            let mut file = Reference::new(70);
            for (op, start, len) in ops {
                file.apply(op, start, len);
            }
            let old = &file.overlay;
            file.overlay = Overlay::from_parts(70, old.size(), old.visible(), old.stamp(), old.extents());
            file.check();
        }
    }

    #[test]
    fn a_sequential_writer_makes_one_extent() {
        let mut overlay = Overlay::new(0);
        for i in 0..100 {
            overlay.write(i * 10, 10, FILE, i * 10);
        }
        assert_eq!(overlay.extents().len(), 1);
        overlay.freeze();
        overlay.write(1000, 10, FILE, 1000);
        assert_eq!(
            overlay.extents().len(),
            2,
            "a commit must be able to drop the first"
        );
    }
}
