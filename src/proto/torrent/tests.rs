//! Single rules of the torrent machine: what it answers to what a peer says.

use bytes::Bytes;
use sha1::{Digest, Sha1};

use super::*;
use crate::proto::blocks::BLOCK_BYTES;
use crate::proto::metainfo::InfoHashV1;
use crate::proto::ut_metadata::UtMetadata;
use hello::{Hello, LT_DONTHAVE, UT_METADATA};

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
        super_seed: false,
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
            v2: false,
            called: false,
            addr: None,
            pex_flags: 0,
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
fn a_later_bitfield_adds_to_what_was_said() {
    let mut t = torrent(Bitfield::new(5));
    join(&mut t, A, true);
    drop(actions(&mut t));
    assert_eq!(said(&mut t, A, Message::HaveNone), []);
    let field = |bits| Message::Bitfield(Bytes::copy_from_slice(&[bits]));
    assert_eq!(
        said(&mut t, A, field(0x40)),
        [Action::Send(A, Message::Interested)]
    );
    assert_eq!(said(&mut t, A, Message::Unchoke).len(), 2);
    assert_eq!(
        said(&mut t, A, field(0x80)).len(),
        2,
        "not less than before"
    );
    assert_eq!(said(&mut t, A, Message::HaveAll).len(), 6);
    assert_eq!(said(&mut t, A, field(0)), []);
    let dropped = said(&mut t, A, field(0x01));
    assert!(
        matches!(dropped[..], [Action::Drop(A, Fault::Protocol(_))]),
        "{dropped:?}"
    );
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
fn a_super_seed_serves_those_who_came_before_it_was_one() {
    let mut t = torrent(Bitfield::full(5));
    join(&mut t, A, true);
    assert_eq!(actions(&mut t), [Action::Send(A, Message::HaveAll)]);
    t.set_super_seed(Now::ZERO, true);
    join(&mut t, B, true);
    let shown: Vec<u32> = actions(&mut t)
        .into_iter()
        .filter_map(|action| match action {
            Action::Send(B, Message::Have(piece)) => Some(piece),
            _ => None,
        })
        .collect();
    assert!((1..5).contains(&shown.len()), "{shown:?}");
    drop(said(&mut t, A, Message::Interested));
    drop(said(&mut t, B, Message::Interested));
    for piece in 0..5 {
        let asked = block(piece, 0);
        assert_eq!(
            said(&mut t, A, Message::Request(asked)),
            [Action::Serve(A, asked)]
        );
        let answer = match shown.contains(&piece) {
            true => Action::Serve(B, asked),
            false => Action::Send(B, Message::Reject(asked)),
        };
        assert_eq!(said(&mut t, B, Message::Request(asked)), [answer]);
    }
    t.set_super_seed(Now::ZERO, false);
    let told = actions(&mut t);
    assert_eq!(told.len(), 5 - shown.len(), "{told:?}");
}

/// libtorrent hangs up on who only uploads and has nothing that it wants.
#[test]
fn a_super_seed_does_not_say_that_it_only_uploads() {
    let mut t = torrent(Bitfield::full(5));
    t.set_super_seed(Now::ZERO, true);
    let new = NewPeer {
        fast: true,
        extended: true,
        v2: false,
        called: false,
        addr: None,
        pex_flags: 0,
    };
    t.peer_joined(Now::ZERO, A, new);
    let only_uploads = |t: &mut Torrent| {
        let hello = actions(t).into_iter().find_map(|action| match action {
            Action::Send(A, Message::Extended { id: 0, payload }) => Hello::decode(&payload),
            _ => None,
        });
        hello.unwrap().upload_only
    };
    assert!(!only_uploads(&mut t));
    t.message(Now::ZERO, A, Message::NotInterested);
    assert!(
        t.poll_timeout().unwrap() <= Duration::from_secs(10),
        "shown anew"
    );
    t.set_super_seed(Now::ZERO, false);
    assert!(only_uploads(&mut t));
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
        super_seed: false,
        seed: 3,
    };
    let mut t = Torrent::new(Now::ZERO, settings);
    t.peer_joined(
        Now::ZERO,
        A,
        NewPeer {
            fast: true,
            extended: true,
            v2: false,
            called: false,
            addr: None,
            pex_flags: 0,
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
        super_seed: false,
        seed: 3,
    };
    let mut t = Torrent::new(Now::ZERO, settings);
    t.set_metadata(Bytes::from_static(b"de"));
    let new = NewPeer {
        fast: true,
        extended: true,
        v2: false,
        called: false,
        addr: None,
        pex_flags: 0,
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
            super_seed: false,
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

/// A peer that knows BEP 10 and has said `hello`.
fn greet(t: &mut Torrent, key: PeerKey, called: bool, addr: &str, hello: Hello) {
    let new = NewPeer {
        fast: true,
        extended: true,
        v2: false,
        called,
        addr: Some(addr.parse().unwrap()),
        pex_flags: 0,
    };
    t.peer_joined(Now::ZERO, key, new);
    let payload = hello.encode().into();
    t.message(Now::ZERO, key, Message::Extended { id: 0, payload });
}

/// What is sent to the peer as an extended message of that number.
fn extended(actions: &[Action], to: PeerKey, number: u8) -> Vec<Bytes> {
    let payload = |action: &Action| match action {
        Action::Send(key, Message::Extended { id, payload }) if (*key, *id) == (to, number) => {
            Some(payload.clone())
        }
        _ => None,
    };
    actions.iter().filter_map(payload).collect()
}

/// A hello with numbers of its own for every extension.
fn theirs(port: u16) -> Hello {
    Hello {
        ut_pex: Some(21),
        lt_donthave: Some(23),
        ut_holepunch: Some(24),
        ..Hello::ours(None, true, false, port)
    }
}

#[test]
fn peers_are_told_at_once_of_others_that_can_be_called() {
    let mut t = torrent(Bitfield::new(5));
    greet(&mut t, A, true, "10.0.0.1:1", theirs(0));
    greet(&mut t, B, false, "10.0.0.2:40000", theirs(0));
    let c = PeerKey(3);
    greet(
        &mut t,
        c,
        false,
        "10.0.0.3:40001",
        Hello {
            upload_only: true,
            ..theirs(3)
        },
    );
    drop(actions(&mut t));
    assert_eq!(t.poll_timeout(), Some(Now::ZERO));
    t.handle_timeout(Now::ZERO);
    let told = actions(&mut t);
    let peers = |to| {
        let payload = extended(&told, to, 21);
        let told = crate::proto::pex::decode(payload.first()?)?.into_iter();
        Some(
            told.map(|peer| (peer.addr.to_string(), peer.flags))
                .collect::<Vec<_>>(),
        )
    };
    // Nobody is told of B: it has not said where it takes calls, and its end of the connection does not.
    let (first, third) = (
        ("10.0.0.1:1".to_owned(), 0x18),
        ("10.0.0.3:3".to_owned(), 0x0a),
    );
    assert_eq!(peers(A), Some(vec![third.clone()]));
    assert_eq!(peers(B), Some(vec![first.clone(), third]));
    assert_eq!(peers(c), Some(vec![first]));
    // News within the same minute waits for the next one.
    greet(&mut t, PeerKey(4), true, "10.0.0.4:4", theirs(0));
    t.handle_timeout(Duration::from_secs(30));
    assert_eq!(extended(&actions(&mut t), A, 21), Vec::<Bytes>::new());
    t.handle_timeout(Duration::from_secs(60));
    assert_eq!(extended(&actions(&mut t), A, 21).len(), 1);
}

#[test]
fn nobody_is_told_of_anybody_while_it_may_be_private() {
    for private in [false, true] {
        let hashes = InfoHashes {
            v1: Some(InfoHashV1([1; 20])),
            v2: None,
        };
        let settings = Settings {
            hashes,
            private: false,
            port: 7,
            lazy: false,
            super_seed: false,
            seed: 3,
        };
        let mut t = Torrent::new(Now::ZERO, settings);
        greet(&mut t, A, true, "10.0.0.1:1", theirs(0));
        greet(&mut t, B, true, "10.0.0.2:2", theirs(0));
        t.handle_timeout(Now::ZERO);
        assert_eq!(extended(&actions(&mut t), A, 21), Vec::<Bytes>::new());
        let have = Bitfield::new(5);
        t.begin(
            Now::ZERO,
            layout(),
            Bytes::from_static(b"de"),
            private,
            have,
        );
        t.handle_timeout(Now::ZERO);
        let told = extended(&actions(&mut t), A, 21).len();
        assert_eq!(told, usize::from(!private));
    }
}

#[test]
fn who_has_finished_says_so_and_what_is_lost_is_taken_back() {
    let mut have = Bitfield::full(5);
    have.clear(4);
    let mut t = torrent(have);
    greet(&mut t, A, true, "10.0.0.1:1", theirs(0));
    let first = extended(&actions(&mut t), A, 0);
    let hello = |payload: &Bytes| Hello::decode(payload).unwrap();
    assert!(!hello(&first[0]).upload_only);
    assert_eq!(hello(&first[0]).your_ip, Some([10, 0, 0, 1].into()));
    t.piece_verified(Now::ZERO, 4);
    let again = extended(&actions(&mut t), A, 0);
    assert!(again.len() == 1 && hello(&again[0]).upload_only);
    t.piece_lost(Now::ZERO, 2);
    let lost = actions(&mut t);
    assert_eq!(extended(&lost, A, 23), [Bytes::from_static(&[0, 0, 0, 2])]);
    assert!(!hello(&extended(&lost, A, 0)[0]).upload_only);
    t.piece_verified(Now::ZERO, 2);
    // Neither wants anything of the other.
    let only = Hello {
        upload_only: true,
        ..theirs(0)
    };
    drop(said(
        &mut t,
        A,
        Message::Extended {
            id: 0,
            payload: only.encode().into(),
        },
    ));
    t.handle_timeout(Duration::from_secs(1));
    assert!(actions(&mut t).contains(&Action::Drop(A, Fault::Redundant)));
}

#[test]
fn a_second_hello_changes_only_what_it_names() {
    let mut t = torrent(Bitfield::full(5));
    greet(&mut t, A, false, "10.0.0.1:40000", theirs(7));
    let short = Bytes::from_static(b"d11:upload_onlyi1ee");
    drop(said(
        &mut t,
        A,
        Message::Extended {
            id: 0,
            payload: short,
        },
    ));
    let peer = &t.peers[&A];
    assert_eq!(peer.callable(), Some("10.0.0.1:7".parse().unwrap()));
    let hello = peer.hello.as_ref().unwrap();
    assert_eq!((hello.ut_pex, hello.upload_only), (Some(21), true));
}

#[test]
fn nothing_wakes_a_torrent_that_has_nothing_to_do() {
    let mut t = torrent(Bitfield::full(5));
    t.handle_timeout(Now::ZERO);
    assert_eq!(t.poll_timeout(), None, "nobody is there");
    greet(&mut t, A, true, "10.0.0.1:1", theirs(0));
    let mut now = Now::ZERO;
    let mut woken = 0;
    while now < Duration::from_secs(170) {
        t.handle_timeout(now);
        drop(actions(&mut t));
        now = t.poll_timeout().unwrap().max(now);
        woken += 1;
    }
    assert!(
        woken < 10,
        "{woken} times in three minutes, for one idle peer"
    );
    t.handle_timeout(Duration::from_secs(180));
    assert!(actions(&mut t).contains(&Action::Drop(A, Fault::Silent)));
    assert_eq!(t.poll_timeout(), None);
}

#[test]
fn a_suggested_piece_is_asked_for_first() {
    let mut t = torrent(Bitfield::new(5));
    join(&mut t, A, true);
    drop(said(&mut t, A, Message::HaveAll));
    for piece in [9, 3] {
        drop(said(&mut t, A, Message::Suggest(piece)));
    }
    let asked = said(&mut t, A, Message::Unchoke);
    assert_eq!(asked[0], Action::Send(A, Message::Request(block(3, 0))));
    assert_eq!(asked.len(), 10);
}

#[test]
fn a_choked_peer_with_nothing_gets_some_pieces_nevertheless() {
    let mut t = torrent(Bitfield::full(5));
    for n in 10..30 {
        greet(&mut t, PeerKey(n), false, "10.9.9.9:1", theirs(0));
        drop(said(&mut t, PeerKey(n), Message::Interested));
    }
    greet(&mut t, A, false, "80.4.4.200:1", theirs(0));
    drop(actions(&mut t));
    let set = said(&mut t, A, Message::Interested);
    let piece = |action: &Action| match action {
        Action::Send(A, Message::AllowedFast(piece)) => *piece,
        other => panic!("{other:?}"),
    };
    let mut set: Vec<u32> = set.iter().map(piece).collect();
    assert_eq!(
        said(&mut t, A, Message::Request(block(set[0], 0))),
        [Action::Serve(A, block(set[0], 0))]
    );
    set.sort_unstable();
    set.dedup();
    assert!(set.len() == 5, "a torrent of five pieces");
    let rich = PeerKey(2);
    greet(&mut t, rich, false, "80.4.4.201:1", theirs(0));
    drop(said(&mut t, rich, Message::HaveAll));
    assert_eq!(
        said(&mut t, rich, Message::Interested),
        [],
        "it has something to offer"
    );
}

#[test]
fn two_who_want_to_meet_are_told_of_each_other() {
    use super::holepunch::{Holepunch, Refusal};
    let mut t = torrent(Bitfield::new(5));
    greet(&mut t, A, true, "10.0.0.1:1", theirs(0));
    greet(&mut t, B, false, "10.0.0.2:40000", theirs(2));
    let c = PeerKey(3);
    greet(
        &mut t,
        c,
        true,
        "10.0.0.3:3",
        Hello {
            ut_holepunch: None,
            ..theirs(0)
        },
    );
    drop(actions(&mut t));
    let ask = |t: &mut Torrent, addr: &str| {
        let payload = Holepunch::Rendezvous(addr.parse().unwrap()).encode().into();
        let id = hello::UT_HOLEPUNCH;
        let actions = said(t, A, Message::Extended { id, payload });
        let of = |to| {
            extended(&actions, to, 24)
                .first()
                .and_then(|p| Holepunch::decode(p))
        };
        (of(A), of(B))
    };
    // The one that called shows its end of the connection, which is what its way out is open for.
    let (to_a, to_b) = ask(&mut t, "10.0.0.2:2");
    assert_eq!(
        to_a,
        Some(Holepunch::Connect("10.0.0.2:40000".parse().unwrap()))
    );
    assert_eq!(
        to_b,
        Some(Holepunch::Connect("10.0.0.1:1".parse().unwrap()))
    );
    for (addr, why) in [
        ("10.0.0.3:3", Refusal::NoSupport),
        ("10.0.0.1:1", Refusal::NoSelf),
        ("10.0.0.9:9", Refusal::NotConnected),
        ("0.0.0.0:9", Refusal::NoSuchPeer),
    ] {
        let refused = Some(Holepunch::Refused(addr.parse().unwrap(), why));
        assert_eq!(ask(&mut t, addr), (refused, None));
    }
    // A peer that told of an address is asked to introduce us, and we go where it sends us.
    let other: SocketAddr = "10.0.0.7:7".parse().unwrap();
    let told = [(other, 0)].into_iter().collect();
    let pex = crate::proto::pex::Told::default().news(&told).unwrap();
    let id = hello::UT_PEX;
    drop(said(
        &mut t,
        A,
        Message::Extended {
            id,
            payload: pex.into(),
        },
    ));
    t.call_failed(Now::ZERO, other);
    let asked = extended(&actions(&mut t), A, 24);
    assert_eq!(asked, [Bytes::from(Holepunch::Rendezvous(other).encode())]);
    let payload = Holepunch::Connect(other).encode().into();
    let id = hello::UT_HOLEPUNCH;
    assert_eq!(
        said(&mut t, A, Message::Extended { id, payload }),
        [Action::Punch(other)]
    );
}

#[test]
fn the_least_of_many_makes_room_for_a_better_one() {
    let mut t = torrent(Bitfield::new(5));
    let ip = Hello {
        your_ip: Some([123, 213, 32, 10].into()),
        ..theirs(0)
    };
    for n in 1..9_u8 {
        greet(
            &mut t,
            PeerKey(n.into()),
            true,
            &format!("98.{n}.54.32:1"),
            ip.clone(),
        );
    }
    let mut order: Vec<u8> = (1..20).collect();
    let addr = |n: u8| -> SocketAddr { format!("98.{n}.54.32:1").parse().unwrap() };
    order.sort_by_key(|n| t.standing(&addr(*n)));
    let worst = *order.iter().find(|n| **n < 9).unwrap();
    drop(actions(&mut t));
    if order[0] >= 9 {
        assert!(!t.make_room(addr(order[0])), "it is worth less than all");
    }
    assert!(t.make_room(addr(*order.last().unwrap())));
    let dropped = actions(&mut t);
    assert_eq!(
        dropped,
        [Action::Drop(PeerKey(worst.into()), Fault::Crowded)]
    );
}

mod hashes {
    //! The exchange of piece hashes between two machines.

    use super::super::trees::tests::synthetic;
    use super::*;

    fn pair(pieces: u32) -> (Torrent, Torrent, Layers) {
        let (lacking, full, layers) = synthetic(pieces);
        let new = NewPeer {
            fast: true,
            extended: false,
            v2: true,
            called: true,
            addr: None,
            pex_flags: 0,
        };
        let mut both = [lacking, full].map(|trees| {
            let mut t = torrent(Bitfield::full(5));
            t.peer_joined(Now::ZERO, A, new.clone());
            drop(actions(&mut t));
            t.set_hashes(Now::ZERO, trees);
            t
        });
        let [a, b] = &mut both;
        let (a, b) = (
            std::mem::replace(a, torrent(Bitfield::new(5))),
            std::mem::replace(b, torrent(Bitfield::new(5))),
        );
        (a, b, layers)
    }

    fn send(said: Vec<Action>, to: &mut Torrent, spoil: bool) -> Vec<Action> {
        for action in said {
            if let Action::Send(A, mut message) = action {
                if let Message::Hashes { hashes, .. } = &mut message
                    && spoil
                {
                    let mut wrong = hashes.to_vec();
                    wrong[7] ^= 1;
                    *hashes = wrong.into();
                }
                to.message(Now::ZERO, A, message);
            }
        }
        actions(to)
    }

    #[test]
    fn what_one_has_the_other_gets() {
        for pieces in [2, 5, 700, 3000] {
            let (mut a, mut b, layers) = pair(pieces);
            assert_eq!(a.summary(Now::ZERO).hash_sources, Some(1));
            let mut asked = actions(&mut a);
            assert!(!asked.is_empty());
            loop {
                let answers = send(asked, &mut b, false);
                asked = send(answers, &mut a, false);
                if let [Action::Layers(got)] = &asked[..] {
                    assert_eq!(*got, layers);
                    break;
                }
            }
            assert_eq!(a.summary(Now::ZERO).hash_sources, None);
        }
    }

    #[test]
    fn false_hashes_end_the_connection_and_others_are_asked() {
        let (mut a, mut b, _) = pair(5);
        let asked = actions(&mut a);
        let answers = send(asked, &mut b, false);
        let end = send(answers, &mut a, true);
        assert_eq!(end, [Action::Drop(A, Fault::Lie)]);
        assert_eq!(a.summary(Now::ZERO).hash_sources, Some(0));
    }

    #[test]
    fn leaves_are_read_for_a_few_requests_at_once_and_only_of_pieces_that_are_here() {
        let (_, mut b, layers) = pair(5);
        let root = *layers.keys().next().unwrap();
        let range = |index| HashRange {
            root,
            base_layer: 0,
            index,
            length: 2,
            proof_layers: 3,
        };
        for n in 0..4 {
            let wanted = said(&mut b, A, Message::HashRequest(range(n * 2)));
            assert!(
                matches!(&wanted[..], [Action::ServeHashes(A, _, of)] if of.piece == n),
                "{wanted:?}"
            );
        }
        let reject = |range| [Action::Send(A, Message::HashReject(range))];
        assert_eq!(
            said(&mut b, A, Message::HashRequest(range(8))),
            reject(range(8))
        );
        b.leaves_read(Now::ZERO, A, range(0), None);
        assert_eq!(actions(&mut b), reject(range(0)));
        // Not what the tree says: the file has changed since.
        b.leaves_read(Now::ZERO, A, range(2), Some(vec![[1; 32]; 2]));
        assert_eq!(actions(&mut b), reject(range(2)));
        assert!(matches!(
            &said(&mut b, A, Message::HashRequest(range(8)))[..],
            [Action::ServeHashes(..)]
        ));
        b.piece_lost(Now::ZERO, 2);
        drop(actions(&mut b));
        assert_eq!(
            said(&mut b, A, Message::HashRequest(range(4))),
            reject(range(4))
        );
    }
}
