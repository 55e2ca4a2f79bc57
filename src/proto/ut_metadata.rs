//! Metadata from peers (BEP 9): the messages, and putting the info dictionary together from several peers at once.
//!
//! What comes is believed only when its hash is the one in the magnet link. Its size is what a peer claims, so each claim is
//! bounded, and a claim whose pieces do not give the hash costs those who sent them their trust.

use std::collections::BTreeMap;
use std::time::Duration;

use sha1::Sha1;
use sha2::{Digest, Sha256};

use super::bencode::{Document, Item, Strictness};
use super::metainfo::InfoHashes;
use super::scheduler::PeerKey;

/// Time since the owner's start.
type Now = Duration;

/// Bytes of a piece of metadata (BEP 9).
pub const METADATA_PIECE_BYTES: usize = 16 * 1024;
/// Largest metadata taken from peers, in bytes: 1,000,000 files or 1.6 million pieces need less.
pub const METADATA_BYTES_MAX: usize = 64 << 20;
/// A piece that has not come after this time is asked of another peer.
const ANSWER_TIME: Duration = Duration::from_secs(3);
/// Pieces asked of one peer at once: 128 KiB. libtorrent answers at once as long as less than 160 KiB wait to be sent, and what is
/// beyond only at its next tick, up to a second later.
const PIPELINE: usize = 8;

/// One message of the extension.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum UtMetadata<'a> {
    Request {
        piece: u32,
    },
    Data {
        piece: u32,
        total: u64,
        data: &'a [u8],
    },
    Reject {
        piece: u32,
    },
}

impl<'a> UtMetadata<'a> {
    /// Reads a payload. Messages of kinds that are not known are `None`, as is what is none.
    pub fn decode(payload: &'a [u8]) -> Option<Self> {
        let document = Document::parse_prefix(payload, Strictness::AsFound).ok()?;
        let root = document.root();
        let field = |key: &[u8]| root.get(key).and_then(|v| v.integer());
        let piece = u32::try_from(field(b"piece")?).ok()?;
        match field(b"msg_type")? {
            0 => Some(Self::Request { piece }),
            1 => Some(Self::Data {
                piece,
                total: u64::try_from(field(b"total_size")?).ok()?,
                data: payload.get(document.len()..)?,
            }),
            2 => Some(Self::Reject { piece }),
            _ => None,
        }
    }

    /// The payload.
    pub fn encode(&self) -> Vec<u8> {
        let (kind, piece) = match self {
            Self::Request { piece } => (0, piece),
            Self::Data { piece, .. } => (1, piece),
            Self::Reject { piece } => (2, piece),
        };
        let kind = ("msg_type", Item::Integer(kind));
        let piece = ("piece", Item::Integer(i64::from(*piece)));
        let mut payload = Vec::new();
        if let Self::Data { total, data, .. } = self {
            let total = i64::try_from(*total).unwrap_or(i64::MAX);
            Item::dict([kind, piece, ("total_size", Item::Integer(total))]).encode(&mut payload);
            payload.extend_from_slice(data);
        } else {
            Item::dict([kind, piece]).encode(&mut payload);
        }
        payload
    }
}

/// The piece of `metadata` with this number.
pub fn piece_of(metadata: &[u8], piece: u32) -> Option<&[u8]> {
    metadata
        .chunks(METADATA_PIECE_BYTES)
        .nth(piece as usize)
        .filter(|_| metadata.len() <= METADATA_BYTES_MAX)
}

/// What a piece of metadata led to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Progress {
    /// More is to come.
    Going,
    /// It is whole and has the hash.
    Done(Vec<u8>),
    /// It is whole and wrong; these peers sent it.
    Wrong(Vec<PeerKey>),
}

/// One peer's claim, and how it answers.
#[derive(Debug)]
struct Source {
    total: usize,
    asked: BTreeMap<u32, Now>,
    rejected: bool,
}

/// Pieces of one claimed size.
#[derive(Debug, Default)]
struct Attempt {
    pieces: BTreeMap<u32, (PeerKey, Vec<u8>)>,
}

/// Fetches the info dictionary of a magnet link.
#[derive(Debug)]
pub struct MetadataFetch {
    hashes: InfoHashes,
    sources: BTreeMap<PeerKey, Source>,
    /// By claimed size: a wrong claim cannot get in the way of a right one.
    attempts: BTreeMap<usize, Attempt>,
}

impl MetadataFetch {
    pub fn new(hashes: InfoHashes) -> Self {
        Self {
            hashes,
            sources: BTreeMap::new(),
            attempts: BTreeMap::new(),
        }
    }

    /// Peers that say they have it.
    pub fn sources(&self) -> usize {
        self.sources
            .values()
            .filter(|source| !source.rejected)
            .count()
    }

    /// A peer says that the metadata has `total` bytes. Sizes that cannot be are ignored.
    pub fn offered(&mut self, peer: PeerKey, total: u64) {
        let total = usize::try_from(total).unwrap_or(usize::MAX);
        if (1..=METADATA_BYTES_MAX).contains(&total) {
            let source = Source {
                total,
                asked: BTreeMap::new(),
                rejected: false,
            };
            self.sources.insert(peer, source);
        }
    }

    pub fn peer_left(&mut self, peer: PeerKey) {
        self.sources.remove(&peer);
    }

    /// Pieces to ask for now, and of whom.
    pub fn requests(&mut self, now: Now) -> Vec<(PeerKey, u32)> {
        let mut out = Vec::new();
        let peers: Vec<PeerKey> = self.sources.keys().copied().collect();
        for _ in 0..PIPELINE {
            for peer in &peers {
                if let Some(piece) = self.next_piece(*peer, now) {
                    out.push((*peer, piece));
                }
            }
        }
        out
    }

    fn next_piece(&mut self, peer: PeerKey, now: Now) -> Option<u32> {
        let source = self.sources.get(&peer)?;
        let in_time = |at: &Now| now < *at + ANSWER_TIME;
        if source.rejected || source.asked.values().filter(|at| in_time(at)).count() >= PIPELINE {
            return None;
        }
        let total = source.total;
        let here = self.attempts.get(&total);
        let asked = |piece: &u32| {
            let others = self.sources.values().filter(|s| s.total == total);
            others.filter_map(|s| s.asked.get(piece)).any(in_time)
        };
        let pieces = total.div_ceil(METADATA_PIECE_BYTES) as u32;
        let piece = (0..pieces).find(|piece| {
            here.is_none_or(|attempt| !attempt.pieces.contains_key(piece)) && !asked(piece)
        })?;
        self.sources.get_mut(&peer)?.asked.insert(piece, now);
        Some(piece)
    }

    /// When [`Self::requests`] may have something because an answer is late.
    pub fn poll_timeout(&self) -> Option<Now> {
        let asked = self
            .sources
            .values()
            .flat_map(|source| source.asked.values());
        asked.min().map(|at| *at + ANSWER_TIME)
    }

    pub fn rejected(&mut self, peer: PeerKey, piece: u32) {
        if let Some(source) = self.sources.get_mut(&peer) {
            source.rejected |= source.asked.remove(&piece).is_some();
        }
    }

    /// A piece has come. Pieces that were not asked for, or have the wrong length, are ignored.
    pub fn received(&mut self, peer: PeerKey, piece: u32, data: &[u8]) -> Progress {
        let Some(source) = self.sources.get_mut(&peer) else {
            return Progress::Going;
        };
        let total = source.total;
        let begin = piece as usize * METADATA_PIECE_BYTES;
        let expected = total.saturating_sub(begin).min(METADATA_PIECE_BYTES);
        if source.asked.remove(&piece).is_none() || data.len() != expected {
            return Progress::Going;
        }
        let attempt = self.attempts.entry(total).or_default();
        attempt
            .pieces
            .entry(piece)
            .or_insert_with(|| (peer, data.to_vec()));
        if attempt.pieces.len() < total.div_ceil(METADATA_PIECE_BYTES) {
            return Progress::Going;
        }
        let whole = attempt.pieces.values().map(|(_, data)| data.as_slice());
        let whole = whole.collect::<Vec<_>>().concat();
        if matches(&self.hashes, &whole) {
            return Progress::Done(whole);
        }
        let attempt = self.attempts.remove(&total).unwrap_or_default();
        let mut liars: Vec<PeerKey> = attempt.pieces.values().map(|(peer, _)| *peer).collect();
        liars.sort_unstable();
        liars.dedup();
        Progress::Wrong(liars)
    }
}

/// Whether an info dictionary has the hashes a magnet link names.
pub fn matches(hashes: &InfoHashes, info: &[u8]) -> bool {
    let v1 = hashes
        .v1
        .is_none_or(|hash| hash.0 == <[u8; 20]>::from(Sha1::digest(info)));
    let v2 = hashes
        .v2
        .is_none_or(|hash| hash.0 == <[u8; 32]>::from(Sha256::digest(info)));
    v1 && v2 && (hashes.v1.is_some() || hashes.v2.is_some())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::proto::metainfo::InfoHashV1;

    fn some_metadata(len: usize) -> (Vec<u8>, InfoHashes) {
        let bytes: Vec<u8> = (0..len).map(|n| (n * 31 / 7) as u8).collect();
        let hashes = InfoHashes {
            v1: Some(InfoHashV1(Sha1::digest(&bytes).into())),
            v2: None,
        };
        (bytes, hashes)
    }

    #[test]
    fn messages_look_as_the_standard_says() {
        let request = UtMetadata::Request { piece: 3 };
        assert_eq!(request.encode(), b"d8:msg_typei0e5:piecei3ee");
        let data = UtMetadata::Data {
            piece: 0,
            total: 34256,
            data: b"xxxx",
        };
        assert_eq!(
            data.encode(),
            b"d8:msg_typei1e5:piecei0e10:total_sizei34256eexxxx"
        );
        for message in [request, data, UtMetadata::Reject { piece: 9 }] {
            assert_eq!(UtMetadata::decode(&message.encode()), Some(message.clone()));
        }
        assert_eq!(UtMetadata::decode(b"d8:msg_typei7e5:piecei3ee"), None);
    }

    #[test]
    fn it_comes_from_several_peers_at_once() {
        let (bytes, hashes) = some_metadata(10 * METADATA_PIECE_BYTES + 5);
        let mut fetch = MetadataFetch::new(hashes);
        for n in 0..3 {
            fetch.offered(PeerKey(n), bytes.len() as u64);
        }
        let mut asked_of = BTreeMap::<PeerKey, u32>::new();
        let mut open = fetch.requests(Duration::ZERO);
        assert_eq!(open.len(), 11, "each piece once");
        while let Some((peer, piece)) = open.pop() {
            *asked_of.entry(peer).or_default() += 1;
            let data = piece_of(&bytes, piece).unwrap();
            match fetch.received(peer, piece, data) {
                Progress::Going => open.extend(fetch.requests(Duration::ZERO)),
                Progress::Done(whole) => {
                    assert_eq!(whole, bytes);
                    assert!(asked_of.len() == 3, "{asked_of:?}");
                    return;
                }
                Progress::Wrong(_) => panic!("the hash is right"),
            }
        }
        panic!("it did not end");
    }

    #[test]
    fn lies_name_the_liar_and_silence_is_asked_elsewhere() {
        let (bytes, hashes) = some_metadata(100);
        let mut fetch = MetadataFetch::new(hashes);
        fetch.offered(PeerKey(1), 100);
        fetch.offered(PeerKey(2), u64::MAX);
        fetch.offered(PeerKey(3), 0);
        assert_eq!(fetch.sources(), 1);
        assert_eq!(fetch.requests(Duration::ZERO), [(PeerKey(1), 0)]);
        fetch.offered(PeerKey(4), 100);
        assert_eq!(fetch.requests(Duration::from_secs(1)), []);
        assert_eq!(fetch.poll_timeout(), Some(Duration::from_secs(3)));
        let late = fetch.requests(Duration::from_secs(3));
        assert_eq!(late.len(), 1);
        let wrong = fetch.received(PeerKey(1), 0, &[0; 100]);
        assert_eq!(wrong, Progress::Wrong(vec![PeerKey(1)]));
        fetch.peer_left(PeerKey(1));
        let asked = fetch.requests(Duration::from_secs(9));
        assert_eq!(asked, [(PeerKey(4), 0)]);
        assert_eq!(
            fetch.received(PeerKey(4), 0, &bytes[1..]),
            Progress::Going,
            "too short"
        );
        let asked = fetch.requests(Duration::from_secs(9));
        assert_eq!(asked, [(PeerKey(4), 0)]);
        assert_eq!(
            fetch.received(PeerKey(4), 0, &bytes),
            Progress::Done(bytes.clone())
        );
    }

    proptest! {
        #[test]
        fn arbitrary_payloads_never_panic(payload in prop::collection::vec(any::<u8>(), 0..60)) {
            let _message = UtMetadata::decode(&payload);
        }
    }
}
