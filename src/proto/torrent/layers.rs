//! Fetches the piece hashes of v2 files, which a magnet link does not lead to, from peers (BEP 52).
//!
//! Every answer is checked up to the root of its file before it is kept, so one liar is known at once and nobody else is
//! blamed. Up to 512 hashes go into a request; several peers are asked at once, one that refuses or is silent rests.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::trees::{HashTrees, Layers};
use crate::proto::metainfo::merkle::{self, TreeHash};
use crate::proto::scheduler::PeerKey;
use crate::proto::wire::HashRange;

/// Time since the owner's start.
type Now = Duration;

/// Hashes asked for in one request (BEP 52).
const ASKED_MAX: u32 = 512;
/// Requests open with one peer: libtorrent keeps two.
const PIPELINE: usize = 4;
/// A request that is not answered within this time goes to another peer.
const ANSWER_TIME: Duration = Duration::from_secs(5);
/// A peer that refused or was silent is asked again after this time: it may have the hashes by then.
const REST_TIME: Duration = Duration::from_secs(10);

/// Hashes that are asked for together: the file, and how many times [`ASKED_MAX`] hashes lie before them.
type Chunk = (TreeHash, u32);

/// What an answer led to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum HashProgress {
    /// More is to come.
    Going,
    /// All hashes are here and right.
    Done(Layers),
    /// They do not lead to the root of the file.
    Wrong,
}

#[derive(Debug, Default)]
struct Source {
    open: usize,
    /// Not asked before.
    rests_until: Now,
    /// The last chunk it was asked for; the next is looked for behind it, so that one refused is not asked for over and over.
    last: Option<Chunk>,
}

/// See the module documentation.
#[derive(Debug)]
pub(super) struct HashFetch {
    /// The layer the hashes lie in.
    layer: u32,
    filler: TreeHash,
    /// Pieces of each file.
    pieces: BTreeMap<TreeHash, u32>,
    open: BTreeSet<Chunk>,
    asked: BTreeMap<Chunk, (PeerKey, Now)>,
    here: BTreeMap<Chunk, Vec<TreeHash>>,
    sources: BTreeMap<PeerKey, Source>,
}

impl HashFetch {
    /// Fetches what `trees` misses. `None`: nothing.
    pub(super) fn new(trees: &HashTrees) -> Option<Self> {
        let shapes = trees.missing();
        let pieces: BTreeMap<TreeHash, u32> = shapes
            .map(|(root, shape)| (root, shape.pieces(trees.piece_bytes())))
            .collect();
        let layer = merkle::piece_layer(trees.piece_bytes());
        let chunks = |(root, pieces): (&TreeHash, &u32)| {
            let root = *root;
            (0..pieces.div_ceil(ASKED_MAX)).map(move |chunk| (root, chunk))
        };
        Some(Self {
            layer,
            filler: merkle::filler(layer),
            open: pieces.iter().flat_map(chunks).collect(),
            pieces,
            asked: BTreeMap::new(),
            here: BTreeMap::new(),
            sources: BTreeMap::new(),
        })
        .filter(|fetch| !fetch.open.is_empty())
    }

    /// Peers that can be asked.
    pub(super) fn sources(&self) -> usize {
        self.sources.len()
    }

    /// The peer takes hash messages.
    pub(super) fn offered(&mut self, peer: PeerKey) {
        self.sources.entry(peer).or_default();
    }

    pub(super) fn peer_left(&mut self, peer: PeerKey) {
        self.sources.remove(&peer);
        let gone = self.asked.extract_if(.., |_, (asked, _)| *asked == peer);
        self.open.extend(gone.map(|(chunk, _)| chunk));
    }

    /// What to ask for now, and of whom.
    pub(super) fn requests(&mut self, now: Now) -> Vec<(PeerKey, HashRange)> {
        let late = |_: &Chunk, (_, at): &mut (PeerKey, Now)| now >= *at + ANSWER_TIME;
        let late: Vec<_> = self.asked.extract_if(.., late).collect();
        for (chunk, (peer, _)) in late {
            self.give_back(now, peer, chunk);
        }
        let mut out = Vec::new();
        let peers: Vec<PeerKey> = self.sources.keys().copied().collect();
        // In turns, so that all of them have something to do.
        for peer in std::iter::repeat_n(peers, PIPELINE).flatten() {
            if let Some(range) = self.next_for(now, peer) {
                out.push((peer, range));
            }
        }
        out
    }

    /// When [`Self::requests`] may have something new.
    pub(super) fn poll_timeout(&self) -> Option<Now> {
        let late = self.asked.values().map(|(_, at)| *at + ANSWER_TIME);
        let rested = self
            .sources
            .values()
            .filter(|s| s.open < PIPELINE)
            .map(|s| s.rests_until);
        let rested = rested.filter(|_| !self.open.is_empty());
        late.chain(rested).min()
    }

    /// Hashes have come. Those nobody asked for are ignored.
    pub(super) fn received(
        &mut self,
        peer: PeerKey,
        range: &HashRange,
        hashes: &[u8],
    ) -> HashProgress {
        let chunk = (range.root, range.index / ASKED_MAX);
        let ours = self
            .asked
            .get(&chunk)
            .is_some_and(|(asked, _)| *asked == peer);
        if !ours || self.range(chunk) != Some(*range) {
            return HashProgress::Going;
        }
        self.asked.remove(&chunk);
        if let Some(source) = self.sources.get_mut(&peer) {
            source.open -= 1;
        }
        let Some(nodes) = self.check(range, hashes) else {
            self.open.insert(chunk);
            return HashProgress::Wrong;
        };
        self.here.insert(chunk, nodes);
        if !self.open.is_empty() || !self.asked.is_empty() {
            return HashProgress::Going;
        }
        let mut layers = Layers::new();
        for ((root, _), nodes) in std::mem::take(&mut self.here) {
            layers.entry(root).or_default().extend(nodes);
        }
        HashProgress::Done(layers)
    }

    /// The peer does not have them, or does not want to send them.
    pub(super) fn rejected(&mut self, now: Now, peer: PeerKey, range: &HashRange) {
        let chunk = (range.root, range.index / ASKED_MAX);
        let ours = self
            .asked
            .get(&chunk)
            .is_some_and(|(asked, _)| *asked == peer);
        if ours && self.range(chunk) == Some(*range) {
            self.asked.remove(&chunk);
            self.give_back(now, peer, chunk);
        }
    }

    /// The chunk's piece hashes, if what came leads to the root of the file.
    fn check(&self, range: &HashRange, hashes: &[u8]) -> Option<Vec<TreeHash>> {
        let (hashes, _) = hashes.as_chunks::<32>();
        let expected = range.length + (range.proof_layers + 1).saturating_sub(range.length.ilog2());
        let (nodes, uncles) = hashes.split_at_checked(range.length as usize)?;
        if hashes.len() != expected as usize
            || merkle::root_by_uncles(nodes, range.index, uncles) != range.root
        {
            return None;
        }
        let pieces = self.pieces.get(&range.root)?.saturating_sub(range.index);
        let (nodes, behind) = nodes.split_at_checked(pieces.min(range.length) as usize)?;
        let padded = behind.iter().all(|node| *node == self.filler);
        padded.then(|| nodes.to_vec())
    }

    fn give_back(&mut self, now: Now, peer: PeerKey, chunk: Chunk) {
        self.open.insert(chunk);
        if let Some(source) = self.sources.get_mut(&peer) {
            source.open -= 1;
            source.rests_until = now + REST_TIME;
        }
    }

    fn next_for(&mut self, now: Now, peer: PeerKey) -> Option<HashRange> {
        let source = self.sources.get(&peer)?;
        if source.open >= PIPELINE || now < source.rests_until {
            return None;
        }
        let behind = source
            .last
            .and_then(|(root, chunk)| self.open.range((root, chunk + 1)..).next());
        let chunk = *behind.or_else(|| self.open.first())?;
        let range = self.range(chunk)?;
        self.open.remove(&chunk);
        self.asked.insert(chunk, (peer, now));
        let source = self.sources.get_mut(&peer)?;
        source.open += 1;
        source.last = Some(chunk);
        Some(range)
    }

    /// What is asked for to get a chunk: its hashes with all uncles up to the root. Index and length are of the padded tree.
    fn range(&self, (root, chunk): Chunk) -> Option<HashRange> {
        let pieces = *self.pieces.get(&root)?;
        let index = chunk * ASKED_MAX;
        let rest = pieces.checked_sub(index)?.next_power_of_two();
        let height = pieces.next_power_of_two().ilog2();
        Some(HashRange {
            root,
            base_layer: self.layer,
            index,
            length: rest.clamp(2, ASKED_MAX),
            proof_layers: height.saturating_sub(1),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::trees::Answer;
    use super::super::trees::tests::synthetic;
    use super::*;

    const A: PeerKey = PeerKey(1);
    const B: PeerKey = PeerKey(2);

    fn answer(trees: &mut HashTrees, range: &HashRange) -> Vec<u8> {
        match trees.answer(range) {
            Answer::Hashes(hashes) => hashes.concat(),
            other => panic!("{range:?}: {other:?}"),
        }
    }

    #[test]
    fn layers_of_any_size_are_fetched_from_several_peers() {
        for pieces in [2, 3, 5, 511, 512, 513, 514, 1024, 1025, 1700, 2049] {
            let (lacking, mut full, layers) = synthetic(pieces);
            let mut fetch = HashFetch::new(&lacking).unwrap();
            fetch.offered(A);
            fetch.offered(B);
            let mut asked = fetch.requests(Now::ZERO);
            assert_eq!(asked.len() as u32, pieces.div_ceil(512));
            let both = asked.iter().map(|(peer, _)| *peer).collect::<BTreeSet<_>>();
            assert_eq!(both.len(), if pieces > 512 { 2 } else { 1 });
            assert_eq!(fetch.requests(Now::ZERO), []);
            asked.reverse();
            for (n, (peer, range)) in asked.iter().enumerate() {
                let hashes = answer(&mut full, range);
                let progress = fetch.received(*peer, range, &hashes);
                let last = n + 1 == asked.len();
                assert_eq!(
                    progress,
                    if last {
                        HashProgress::Done(layers.clone())
                    } else {
                        HashProgress::Going
                    }
                );
                // Twice is once.
                assert_eq!(fetch.received(*peer, range, &hashes), HashProgress::Going);
            }
            let mut lacking = lacking;
            lacking.complete(layers);
            assert!(HashFetch::new(&lacking).is_none());
        }
    }

    #[test]
    fn who_refuses_or_is_silent_rests_and_others_are_asked() {
        let (lacking, ..) = synthetic(600);
        let mut fetch = HashFetch::new(&lacking).unwrap();
        assert_eq!(fetch.poll_timeout(), None);
        fetch.offered(A);
        let asked = fetch.requests(Now::ZERO);
        assert_eq!(asked.len(), 2);
        fetch.rejected(Now::ZERO, A, &asked[1].1);
        fetch.rejected(Now::ZERO, B, &asked[0].1);
        assert_eq!(fetch.requests(Now::ZERO), [], "it rests");
        fetch.offered(B);
        assert_eq!(fetch.requests(Now::ZERO), [(B, asked[1].1)]);
        assert_eq!(fetch.poll_timeout(), Some(ANSWER_TIME));
        let later = fetch.requests(ANSWER_TIME);
        assert_eq!(later, [], "both are silent");
        let later = fetch.requests(ANSWER_TIME + REST_TIME);
        assert_eq!(later.len(), 2);
        fetch.peer_left(A);
        fetch.peer_left(B);
        assert_eq!((fetch.sources(), fetch.poll_timeout()), (0, None));
        fetch.offered(PeerKey(3));
        assert_eq!(fetch.requests(ANSWER_TIME + REST_TIME).len(), 2);
    }

    #[test]
    fn a_false_hash_anywhere_is_noticed() {
        let (lacking, mut full, _) = synthetic(1025);
        let mut fetch = HashFetch::new(&lacking).unwrap();
        fetch.offered(A);
        for (_, range) in fetch.requests(Now::ZERO) {
            let right = answer(&mut full, &range);
            let last = right.len() - 1;
            for at in [0, 32, last - 40, last] {
                let mut wrong = right.clone();
                wrong[at] ^= 1;
                let again = fetch.requests(Now::ZERO);
                assert!(again.len() <= 1);
                assert_eq!(
                    fetch.received(A, &range, &wrong),
                    HashProgress::Wrong,
                    "{range:?} at {at}"
                );
                let open = fetch.requests(Now::ZERO);
                assert_eq!(open, [(A, range)]);
            }
            assert_eq!(fetch.received(A, &range, &right[32..]), HashProgress::Wrong);
        }
    }
}
