//! A web seed and a server that is a function.

use proptest::prelude::*;

use super::*;
use crate::proto::blocks::{BLOCK_BYTES, Layout};
use crate::proto::metainfo::Info;

const PIECE_BYTES: u32 = 64 << 10;

/// A torrent `t` of files of these lengths.
fn info(lengths: &[u64]) -> Info {
    let mut list = String::new();
    for (n, length) in lengths.iter().enumerate() {
        list += &format!("d6:lengthi{length}e4:pathl2:f{n}ee");
    }
    let pieces = lengths.iter().sum::<u64>().div_ceil(PIECE_BYTES.into());
    let hashes = "a".repeat(pieces as usize * 20);
    let text = format!(
        "d5:filesl{list}e4:name1:t12:piece lengthi{PIECE_BYTES}e6:pieces{}:{hashes}e",
        hashes.len()
    );
    Info::parse(text.as_bytes()).unwrap()
}

struct Rig {
    seed: WebSeed,
    layout: Layout,
    lengths: Vec<u64>,
    now: Now,
    requests: usize,
}

fn byte(at: u64) -> u8 {
    (at * 7 + at / 251) as u8
}

impl Rig {
    fn new(lengths: &[u64]) -> Self {
        let info = info(lengths);
        let base = WebUrl::parse("http://h/").unwrap();
        Self {
            seed: WebSeed::new(base, Arc::new(WebFiles::new(&info))),
            layout: Layout::of(&info),
            lengths: lengths.to_vec(),
            now: Now::ZERO,
            requests: 0,
        }
    }

    fn ask_all(&mut self) {
        for piece in 0..self.layout.pieces() {
            self.ask_piece(piece);
        }
    }

    fn ask_piece(&mut self, piece: u32) {
        for number in 0..self.layout.blocks(piece) {
            self.seed.ask(self.layout.block(piece, number));
        }
    }

    /// Where the file of this URL begins in the piece space, and its length.
    fn file(&self, url: &WebUrl) -> (u64, u64) {
        let number: usize = url.path.strip_prefix("/t/f").unwrap().parse().unwrap();
        let begin = self.lengths[..number].iter().sum();
        (begin, self.lengths[number])
    }

    fn answer(&self, fetch: &Fetch) -> Answer {
        let (_, length) = self.file(&fetch.url);
        Answer {
            status: 206,
            range: Some(format!("bytes {}-{}/{length}", fetch.begin, fetch.end - 1)),
            ..Answer::default()
        }
    }

    /// Answers a request in order, the body in steps.
    fn serve(&mut self, fetch: &Fetch, step: usize) {
        self.requests += 1;
        let (file, _) = self.file(&fetch.url);
        let answer = self.answer(fetch);
        let next = self.seed.answered(self.now, fetch.lane, fetch.id, &answer);
        assert_eq!(next, Next::Take(fetch.end - fetch.begin));
        let body: Vec<u8> = (fetch.begin..fetch.end).map(|at| byte(file + at)).collect();
        for bytes in body.chunks(step) {
            self.seed.body(self.now, fetch.lane, fetch.id, bytes);
        }
        self.seed.ended(self.now, fetch.lane, fetch.id, None);
    }

    fn blocks(&mut self) -> Vec<Block> {
        let mut out = Vec::new();
        while let Some((block, bytes)) = self.seed.poll_block() {
            let at = self.layout.offset(block.piece) + u64::from(block.begin);
            assert_eq!(bytes.len(), block.length as usize);
            assert!((at..).zip(&bytes).all(|(at, found)| byte(at) == *found));
            out.push(block);
        }
        out
    }

    fn news(&mut self) -> Vec<News> {
        std::iter::from_fn(|| self.seed.poll_news()).collect()
    }
}

#[test]
fn ranges_are_long_and_every_block_comes_once() {
    let mut rig = Rig::new(&[10 << 20]);
    rig.ask_all();
    let mut found = Vec::new();
    while let Some(fetch) = rig.seed.poll_fetch() {
        assert!(fetch.end - fetch.begin <= RUN_BYTES_MAX);
        rig.serve(&fetch, 100_000);
        found.extend(rig.blocks());
    }
    assert_eq!(rig.requests, 3, "4 MiB at once");
    assert_eq!(found.len(), 640);
    assert_eq!(rig.seed.received(rig.now).0, 10 << 20);
    assert!(rig.seed.trouble().is_none() && rig.news().is_empty());
}

#[test]
fn a_few_requests_are_under_way_at_once() {
    let mut rig = Rig::new(&[64 << 20]);
    rig.ask_all();
    let fetches: Vec<Fetch> = std::iter::from_fn(|| rig.seed.poll_fetch()).collect();
    assert_eq!(fetches.len(), LANES);
    for fetch in fetches.iter().rev() {
        rig.serve(fetch, 1 << 20);
    }
    assert_eq!(rig.blocks().len(), LANES * 256);
}

#[test]
fn a_server_without_ranges_is_off_and_says_why() {
    let mut rig = Rig::new(&[1 << 20]);
    rig.ask_piece(3);
    let fetch = rig.seed.poll_fetch().unwrap();
    let answer = Answer {
        status: 200,
        length: Some(2 << 30),
        ..Answer::default()
    };
    let next = rig.seed.answered(rig.now, fetch.lane, fetch.id, &answer);
    assert_eq!((next, rig.news()), (Next::Leave, vec![News::Off]));
    assert_eq!(rig.seed.trouble(), Some(&WebError::NoRanges));
    rig.ask_all();
    assert_eq!(rig.seed.poll_fetch(), None);
    assert_eq!(rig.seed.poll_timeout(), None);
}

#[test]
fn one_that_fails_rests_longer_each_time_and_a_block_forgives() {
    let mut rig = Rig::new(&[1 << 20]);
    let mut rests = Vec::new();
    for _ in 0..12 {
        rig.ask_piece(0);
        let fetch = rig.seed.poll_fetch().unwrap();
        let error = WebError::Hangs(Duration::from_secs(30));
        rig.seed.ended(rig.now, fetch.lane, fetch.id, Some(error));
        assert_eq!(rig.seed.poll_fetch(), None);
        let until = rig.seed.poll_timeout().unwrap();
        rests.push(until - rig.now);
        rig.now = until;
        rig.seed.handle_timeout(rig.now);
        assert_eq!(rig.news(), [News::Rests, News::Ready]);
    }
    assert_eq!(rests[..3], [2, 4, 8].map(Duration::from_secs));
    assert_eq!(rests[11], REST_TIME_MAX);
    rig.ask_piece(0);
    rig.ask_piece(9);
    let fetch = rig.seed.poll_fetch().unwrap();
    assert_eq!(rig.seed.poll_fetch(), None, "one at first");
    rig.serve(&fetch, 1000);
    assert_eq!(rig.seed.failures, 0);
    let fetch = rig.seed.poll_fetch().unwrap();
    rig.serve(&fetch, 1000);
    let late = rig.seed.poll_fetch();
    assert_eq!(late, None);
}

#[test]
fn a_connection_that_breaks_costs_no_other_and_is_made_again() {
    let mut rig = Rig::new(&[8 << 20]);
    rig.ask_all();
    let fetches: Vec<Fetch> = std::iter::from_fn(|| rig.seed.poll_fetch()).collect();
    let [first, second] = &fetches[..] else {
        panic!("{fetches:?}")
    };
    let answer = rig.answer(first);
    rig.seed.answered(rig.now, first.lane, first.id, &answer);
    let body: Vec<u8> = (0..100_000).map(byte).collect();
    rig.seed.body(rig.now, first.lane, first.id, &body);
    rig.seed.ended(rig.now, first.lane, first.id, None);
    let again = rig.seed.poll_fetch().unwrap();
    let whole = u64::from(BLOCK_BYTES) * 6;
    assert_eq!((again.begin, again.end), (whole, 4 << 20));
    rig.serve(second, 1 << 20);
    rig.serve(&again, 1 << 20);
    assert_eq!(rig.blocks().len(), 512);
    assert_eq!(rig.news(), []);
}

#[test]
fn redirects_are_followed_remembered_and_not_for_ever() {
    let mut rig = Rig::new(&[1 << 20]);
    let away = |url: &str| Answer {
        status: 302,
        location: Some(url.to_owned()),
        ..Answer::default()
    };
    rig.ask_piece(0);
    let fetch = rig.seed.poll_fetch().unwrap();
    let moved = away("http://mirror/t/f0");
    let next = rig.seed.answered(rig.now, fetch.lane, fetch.id, &moved);
    let Next::Again(fetch) = next else {
        panic!("{next:?}")
    };
    assert_eq!(fetch.url.to_string(), "http://mirror/t/f0");
    assert!(fetch.redirected);
    rig.serve(&fetch, 1000);
    rig.ask_piece(1);
    let fetch = rig.seed.poll_fetch().unwrap();
    assert_eq!(fetch.url.host, "mirror", "it is remembered");
    let gone = Answer {
        status: 404,
        ..Answer::default()
    };
    let next = rig.seed.answered(rig.now, fetch.lane, fetch.id, &gone);
    let Next::Again(mut fetch) = next else {
        panic!("{next:?}")
    };
    assert_eq!(fetch.url.host, "h", "until it is no longer so");
    for n in 0..20 {
        let circle = away(&format!("/t/f{}", n % 2));
        match rig.seed.answered(rig.now, fetch.lane, fetch.id, &circle) {
            Next::Again(next) => fetch = next,
            other => {
                assert_eq!((other, n), (Next::Leave, u32::from(REDIRECTS_MAX)));
                break;
            }
        }
    }
    assert_eq!(rig.seed.trouble(), Some(&WebError::Redirects));
}

#[test]
fn a_file_that_is_missing_takes_its_pieces_along_and_no_others() {
    let piece = u64::from(PIECE_BYTES);
    let mut rig = Rig::new(&[piece * 2, piece + 7, piece * 3 - 7]);
    rig.ask_all();
    let fetches: Vec<Fetch> = std::iter::from_fn(|| rig.seed.poll_fetch()).collect();
    let [first] = &fetches[..] else {
        panic!("{fetches:?}")
    };
    rig.serve(first, 5000);
    let second = rig.seed.poll_fetch().unwrap();
    assert_eq!(second.url.path, "/t/f1");
    let gone = Answer {
        status: 404,
        ..Answer::default()
    };
    rig.seed.answered(rig.now, second.lane, second.id, &gone);
    assert_eq!(rig.news(), [News::Lacks(vec![2, 3])]);
    let third = rig.seed.poll_fetch().unwrap();
    assert_eq!((third.url.path.as_str(), third.begin), ("/t/f2", piece - 7));
    rig.serve(&third, 5000);
    let pieces: Vec<u32> = rig.blocks().iter().map(|block| block.piece).collect();
    assert_eq!((pieces.len(), pieces.contains(&2)), (16, false));
    assert!(rig.seed.trouble().is_none());
}

#[test]
fn what_is_cancelled_is_not_fetched_and_a_long_rest_is_cut_off() {
    let mut rig = Rig::new(&[8 << 20]);
    rig.ask_all();
    rig.seed.cancel(rig.layout.block(100, 0));
    let fetch = rig.seed.poll_fetch().unwrap();
    assert_eq!((fetch.begin, fetch.end), (0, 4 << 20));
    for piece in 0..64 {
        for number in 0..4 {
            rig.seed.cancel(rig.layout.block(piece, number));
        }
    }
    assert_eq!(rig.seed.poll_abort(), Some(fetch.lane));
    // What comes nevertheless is of no use.
    rig.seed.body(rig.now, fetch.lane, fetch.id, &[0; 1 << 20]);
    assert_eq!(rig.seed.poll_block(), None);
    let ranges: Vec<(u64, u64)> = std::iter::from_fn(|| rig.seed.poll_fetch())
        .map(|fetch| (fetch.begin, fetch.end))
        .collect();
    let cut = 100 * u64::from(PIECE_BYTES);
    let behind = cut + u64::from(BLOCK_BYTES);
    assert_eq!(ranges, [(4 << 20, cut), (behind, 8 << 20)]);
}

proptest! {
    #[test]
    fn any_files_come_whole_whatever_the_steps(
        lengths in prop::collection::vec(prop_oneof![Just(0), 1..200_000u64], 1..8),
        step in 1..70_000usize,
        order in any::<u64>(),
    ) {
        prop_assume!(lengths.iter().sum::<u64>() > 0);
        let mut rig = Rig::new(&lengths);
        rig.ask_all();
        let mut found = Vec::new();
        let mut order = order;
        loop {
            let mut fetches: Vec<Fetch> = std::iter::from_fn(|| rig.seed.poll_fetch()).collect();
            if fetches.is_empty() {
                break;
            }
            while !fetches.is_empty() {
                order = order.rotate_left(7);
                let fetch = fetches.swap_remove(order as usize % fetches.len());
                rig.serve(&fetch, step);
            }
            found.extend(rig.blocks());
        }
        found.sort_unstable();
        let all: Vec<Block> = (0..rig.layout.pieces())
            .flat_map(|piece| (0..rig.layout.blocks(piece)).map(move |number| (piece, number)))
            .map(|(piece, number)| rig.layout.block(piece, number))
            .collect();
        prop_assert_eq!(found, all);
    }
}
