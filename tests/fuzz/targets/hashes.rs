//! Targets of what peers say about piece hashes and about meeting others.

use std::time::Duration;

use bytes::Bytes;
use ccbt::proto::bitfield::Bitfield;
use ccbt::proto::blocks::Layout;
use ccbt::proto::metainfo::Info;
use ccbt::proto::metainfo::merkle::{self, TreeHash};
use ccbt::proto::scheduler::PeerKey;
use ccbt::proto::torrent::holepunch::Holepunch;
use ccbt::proto::torrent::{Action, HashTrees, Layers, NewPeer, Settings, Torrent};
use ccbt::proto::wire::{Message, WireLimits, decode};

const PIECE_BYTES: u32 = 32 << 10;
const PIECES: u32 = 5;

/// The piece hashes of the file the target is about.
pub(crate) fn layer() -> Vec<TreeHash> {
    (0..PIECES)
        .map(|n| merkle::leaf(&n.to_be_bytes()))
        .collect()
}

/// The root of its tree.
pub(crate) fn root() -> TreeHash {
    merkle::root_of_pieces(&layer(), PIECE_BYTES)
}

fn info() -> Info {
    let length = PIECES * PIECE_BYTES - 10;
    let head = format!("d9:file treed1:ad0:d6:lengthi{length}e11:pieces root32:");
    let tail = format!("eee12:meta versioni2e4:name1:a12:piece lengthi{PIECE_BYTES}ee");
    let raw = [head.as_bytes(), &root(), tail.as_bytes()].concat();
    Info::parse(&raw).expect("an info dictionary")
}

fn machine(info: &Info, layers: Layers) -> Torrent {
    let now = Duration::ZERO;
    let settings = Settings {
        hashes: info.hashes,
        private: false,
        port: 0,
        lazy: false,
        super_seed: false,
        seed: 1,
    };
    let mut torrent = Torrent::new(now, settings);
    let layout = Layout::of(info);
    let have = Bitfield::full(layout.pieces());
    torrent.begin(now, layout, Bytes::new(), false, have);
    let trees = HashTrees::new(info, layers).expect("a v2 torrent");
    torrent.set_hashes(now, trees);
    let new = NewPeer {
        fast: true,
        extended: true,
        v2: true,
        called: true,
        addr: None,
        pex_flags: 0,
    };
    torrent.peer_joined(now, PeerKey(1), new);
    torrent
}

/// Messages to one who has the hashes and one who lacks them: only the right ones are taken for right.
pub(crate) fn hash_messages(data: &[u8]) -> bool {
    let limits = WireLimits { bitfield_bytes: 16 };
    let info = info();
    let layers = Layers::from([(root(), layer())]);
    let mut taken = false;
    for known in [Layers::new(), layers.clone()] {
        let mut torrent = machine(&info, known);
        let (mut at, mut now) = (0, Duration::ZERO);
        while let Ok(Some((message, len))) = decode(&data[at..], limits) {
            at += len;
            now += Duration::from_millis(100);
            torrent.message(now, PeerKey(1), message.map(Bytes::copy_from_slice));
            torrent.handle_timeout(now);
            while let Some(action) = torrent.poll_action() {
                match action {
                    Action::Layers(got) => {
                        assert_eq!(got, layers);
                        taken = true;
                    }
                    Action::Send(_, Message::Hashes { range, hashes }) => {
                        assert!(hashes.len() >= 32 * range.length as usize);
                        taken = true;
                    }
                    Action::ServeHashes(key, range, of) => {
                        assert!(of.piece < PIECES && of.bytes <= PIECE_BYTES);
                        torrent.leaves_read(now, key, range, Some(vec![[1; 32]; 2]));
                    }
                    _ => {}
                }
            }
        }
    }
    taken
}

/// A message of BEP 55; what is written again is read the same.
pub(crate) fn holepunch(data: &[u8]) -> bool {
    let Some(message) = Holepunch::decode(data) else {
        return false;
    };
    assert_eq!(Holepunch::decode(&message.encode()), Some(message));
    true
}
