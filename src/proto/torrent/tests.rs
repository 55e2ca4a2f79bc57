//! Single rules of the torrent machine: what it answers to what a peer says.

use bytes::Bytes;
use sha1::{Digest, Sha1};

use super::hello::{Hello, LT_DONTHAVE, UT_METADATA};
use super::*;
use crate::proto::blocks::BLOCK_BYTES;
use crate::proto::metainfo::InfoHashV1;
use crate::proto::ut_metadata::UtMetadata;

const A: PeerKey = PeerKey(1);
const B: PeerKey = PeerKey(2);

fn layout() -> Layout {
    Layout::new(2 * BLOCK_BYTES, u64::from(10 * BLOCK_BYTES))
}

fn torrent(have: Bitfield) -> Torrent {
    let hashes = InfoHashes {
        v1: Some(InfoHashV1([1; 20])),
        v2: None,
    };
    let settings = Settings {
        hashes,
        private: false,
        port: 7,
        lazy: false,
        seed: 3,
    };
    let mut torrent = Torrent::new(Now::ZERO, settings);
    torrent.begin(Now::ZERO, layout(), Bytes::from_static(b"de"), false, have);
    torrent
}

fn join(torrent: &mut Torrent, key: PeerKey, fast: bool) {
    torrent.peer_joined(
        Now::ZERO,
        key,
        NewPeer {
            fast,
            extended: false,
            addr: None,
        },
    );
}

fn actions(torrent: &mut Torrent) -> Vec<Action> {
    std::iter::from_fn(|| torrent.poll_action()).collect()
}

fn said(torrent: &mut Torrent, key: PeerKey, message: Message<Bytes>) -> Vec<Action> {
    torrent.message(Now::ZERO, key, message);
    actions(torrent)
}

fn block(piece: u32, number: u32) -> Block {
    layout().block(piece, number)
}

#[test]
fn interest_and_the_first_unchoke_come_at_once() {
    let mut have = Bitfield::new(5);
    have.set(0);
    let mut t = torrent(have);
    join(&mut t, A, true);
    assert_eq!(
        actions(&mut t),
        [Action::Send(
            A,
            Message::Bitfield(Bytes::from_static(&[0x80]))
        )]
    );
    assert_eq!(said(&mut t, A, Message::Have(0)), []);
    assert_eq!(
        said(&mut t, A, Message::Have(3)),
        [Action::Send(A, Message::Interested)]
    );
    assert_eq!(
        said(&mut t, A, Message::Interested),
        [Action::Send(A, Message::Unchoke)]
    );
    assert_eq!(
        said(&mut t, A, Message::Request(block(0, 1))),
        [Action::Serve(A, block(0, 1))]
    );
    let asked = said(&mut t, A, Message::Unchoke);
    assert_eq!(
        asked,
        [0, 1].map(|n| Action::Send(A, Message::Request(block(3, n))))
    );
    assert_eq!(t.block_arrived(Now::ZERO, A, block(3, 0)), Verdict::Write);
    assert_eq!(t.block_arrived(Now::ZERO, A, block(3, 0)), Verdict::Waste);
    assert_eq!(t.block_arrived(Now::ZERO, A, block(2, 0)), Verdict::Waste);
}

#[test]
fn who_is_choked_or_asks_for_what_is_not_here_is_refused() {
    let mut t = torrent(Bitfield::new(5));
    join(&mut t, A, true);
    join(&mut t, B, false);
    assert_eq!(actions(&mut t), [Action::Send(A, Message::HaveNone)]);
    let reject = |key| Action::Send(key, Message::Reject(block(1, 0)));
    assert_eq!(said(&mut t, A, Message::Request(block(1, 0))), [reject(A)]);
    assert_eq!(said(&mut t, B, Message::Request(block(1, 0))), []);
    drop(said(&mut t, A, Message::Interested));
    assert_eq!(said(&mut t, A, Message::Request(block(1, 0))), [reject(A)]);
}

#[test]
fn what_cannot_be_ends_the_connection() {
    let beyond = Block {
        piece: 4,
        begin: BLOCK_BYTES,
        length: BLOCK_BYTES + 1,
    };
    let wrong: [Message<Bytes>; 6] = [
        Message::Have(5),
        Message::Bitfield(Bytes::from_static(&[0xff])),
        Message::Request(beyond),
        Message::AllowedFast(9),
        Message::Reject(block(0, 0)),
        Message::HaveAll,
    ];
    for message in wrong {
        let mut t = torrent(Bitfield::new(5));
        join(&mut t, A, false);
        let dropped = said(&mut t, A, message.clone());
        let reason = matches!(dropped[..], [Action::Drop(A, Fault::Protocol(_))]);
        assert!(reason, "{message:?}: {dropped:?}");
        assert_eq!(said(&mut t, A, Message::Unchoke), [], "it is gone");
    }
}

#[test]
fn a_choke_gives_the_blocks_to_others() {
    let mut t = torrent(Bitfield::new(5));
    join(&mut t, A, false);
    join(&mut t, B, false);
    for key in [A, B] {
        drop(said(
            &mut t,
            key,
            Message::Bitfield(Bytes::from_static(&[0xf8])),
        ));
    }
    assert_eq!(said(&mut t, A, Message::Unchoke).len(), 10);
    assert_eq!(
        said(&mut t, B, Message::Unchoke).len(),
        10,
        "endgame: everything again"
    );
    for n in 0..10 {
        t.block_arrived(Now::ZERO, A, block(n / 2, n % 2));
    }
    let cancels = actions(&mut t);
    assert_eq!(cancels.len(), 10, "{cancels:?}");
    assert!(
        cancels
            .iter()
            .all(|a| matches!(a, Action::Send(B, Message::Cancel(_))))
    );
    let mut t = torrent(Bitfield::new(5));
    join(&mut t, A, false);
    drop(said(
        &mut t,
        A,
        Message::Bitfield(Bytes::from_static(&[0xf8])),
    ));
    assert_eq!(said(&mut t, A, Message::Unchoke).len(), 10);
    drop(said(&mut t, A, Message::Choke));
    assert_eq!(said(&mut t, A, Message::Unchoke).len(), 10, "asked anew");
    t.hold(Now::ZERO, true);
    assert_eq!(actions(&mut t).len(), 10, "cancelled");
    drop(said(&mut t, A, Message::Have(1)));
    assert_eq!(said(&mut t, A, Message::Unchoke), [], "held");
    t.hold(Now::ZERO, false);
    assert_eq!(actions(&mut t).len(), 10);
}

#[test]
fn an_allowed_fast_piece_is_asked_for_while_choked() {
    let mut t = torrent(Bitfield::new(5));
    join(&mut t, A, true);
    drop(said(&mut t, A, Message::HaveAll));
    let asked = said(&mut t, A, Message::AllowedFast(2));
    assert_eq!(
        asked,
        [0, 1].map(|n| Action::Send(A, Message::Request(block(2, n))))
    );
    drop(said(&mut t, A, Message::Reject(block(2, 0))));
    assert_eq!(said(&mut t, A, Message::AllowedFast(3)).len(), 2);
}

#[test]
fn metadata_comes_from_peers_and_pieces_named_before_count() {
    let raw: Vec<u8> = vec![b'x'; 20_000];
    let hash = InfoHashV1(Sha1::digest(&raw).into());
    let hashes = InfoHashes {
        v1: Some(hash),
        v2: None,
    };
    let settings = Settings {
        hashes,
        private: false,
        port: 0,
        lazy: false,
        seed: 3,
    };
    let mut t = Torrent::new(Now::ZERO, settings);
    t.peer_joined(
        Now::ZERO,
        A,
        NewPeer {
            fast: true,
            extended: true,
            addr: None,
        },
    );
    drop(said(&mut t, A, Message::HaveAll));
    drop(actions(&mut t));
    let hello = Hello {
        ut_metadata: Some(9),
        ..Hello::ours(Some(20_000), true, true, 0)
    };
    let asked = said(
        &mut t,
        A,
        Message::Extended {
            id: 0,
            payload: hello.encode().into(),
        },
    );
    assert_eq!(asked.len(), 2);
    let mut done = Vec::new();
    for (piece, data) in (0..).zip(raw.chunks(16_384)) {
        let request = UtMetadata::Request { piece }.encode().into();
        assert!(asked.contains(&Action::Send(
            A,
            Message::Extended {
                id: 9,
                payload: request
            }
        )));
        let answer = UtMetadata::Data {
            piece,
            total: 20_000,
            data,
        }
        .encode()
        .into();
        done = said(
            &mut t,
            A,
            Message::Extended {
                id: UT_METADATA,
                payload: answer,
            },
        );
    }
    assert_eq!(done, [Action::Metadata(raw.clone())]);
    t.begin(Now::ZERO, layout(), raw.into(), false, Bitfield::new(5));
    let greeted = actions(&mut t);
    assert_eq!(
        greeted,
        [
            Action::Send(A, Message::HaveNone),
            Action::Send(A, Message::Interested)
        ]
    );
    let request = UtMetadata::Request { piece: 1 }.encode().into();
    let answer = said(
        &mut t,
        A,
        Message::Extended {
            id: UT_METADATA,
            payload: request,
        },
    );
    assert!(
        matches!(&answer[..], [Action::Send(A, Message::Extended { payload, .. })] if payload.len() > 3_616)
    );
    let gone = Message::Extended {
        id: LT_DONTHAVE,
        payload: Bytes::from_static(&[0, 0, 0, 2]),
    };
    drop(said(&mut t, A, gone));
    assert_eq!(
        said(&mut t, A, Message::Unchoke).len(),
        8,
        "piece 2 is no longer there"
    );
}

#[test]
fn metadata_that_is_known_is_not_asked_for() {
    let hashes = InfoHashes {
        v1: Some(InfoHashV1([1; 20])),
        v2: None,
    };
    let settings = Settings {
        hashes,
        private: false,
        port: 0,
        lazy: false,
        seed: 3,
    };
    let mut t = Torrent::new(Now::ZERO, settings);
    t.set_metadata(Bytes::from_static(b"de"));
    let new = NewPeer {
        fast: true,
        extended: true,
        addr: None,
    };
    t.peer_joined(Now::ZERO, A, new);
    drop(actions(&mut t));
    let payload = Hello::ours(Some(2), true, true, 0).encode().into();
    assert_eq!(said(&mut t, A, Message::Extended { id: 0, payload }), []);
}

#[test]
fn ten_thousand_haves_and_haves_before_the_metadata_are_bounded() {
    let hashes = InfoHashes {
        v1: Some(InfoHashV1([1; 20])),
        v2: None,
    };
    let mut t = Torrent::new(
        Now::ZERO,
        Settings {
            hashes,
            private: false,
            port: 0,
            lazy: false,
            seed: 3,
        },
    );
    join(&mut t, A, true);
    for piece in 0..10_000 {
        t.message(Now::ZERO, A, Message::Have(piece));
    }
    assert_eq!(actions(&mut t), []);
    t.begin(Now::ZERO, layout(), Bytes::new(), false, Bitfield::new(5));
    let dropped = actions(&mut t);
    assert!(
        matches!(dropped[..], [Action::Drop(A, Fault::Protocol(_)), ..]),
        "{dropped:?}"
    );
}
