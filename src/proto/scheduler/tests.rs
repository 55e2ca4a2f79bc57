//! The scheduler against simulated peers: every job ends, nothing is asked twice without reason, all peers are used.

use std::collections::{BTreeSet, HashSet};

use super::*;

fn item(n: u64) -> Item {
    let mut hash = [0; 32];
    hash[..8].copy_from_slice(&n.to_le_bytes());
    Item::Chunk(ChunkHash::from_bytes(hash))
}

fn ms(n: u64) -> Now {
    Duration::from_millis(n)
}

fn drain(s: &mut Scheduler, now: Now) -> Vec<Output> {
    std::iter::from_fn(|| s.poll_output(now)).collect()
}

fn requests(outputs: &[Output]) -> Vec<(PeerKey, Item)> {
    outputs
        .iter()
        .flat_map(|o| match o {
            Output::Request { peer, items, .. } => items.iter().map(|i| (*peer, *i)).collect(),
            _ => Vec::new(),
        })
        .collect()
}

#[test]
fn a_job_without_items_is_done_at_once() {
    let mut s = Scheduler::new();
    let job = s.add_job([], Priority::Blocked, ms(1000));
    assert_eq!(drain(&mut s, ms(0)), [Output::Done(job)]);
    assert_eq!(s.poll_timeout(), None);
}

#[test]
fn an_item_wanted_twice_is_asked_once_and_ends_both_jobs() {
    let mut s = Scheduler::new();
    s.peer_up(PeerKey(1));
    let a = s.add_job([(item(1), 1000)], Priority::ReadAhead, ms(30_000));
    let b = s.add_job(
        [(item(1), 1000), (item(2), 1000)],
        Priority::ReadAhead,
        ms(30_000),
    );
    let asked = requests(&drain(&mut s, ms(0)));
    assert_eq!(asked.len(), 2);
    s.arrived(ms(1), item(1), Some(PeerKey(1)));
    assert_eq!(drain(&mut s, ms(1)), [Output::Done(a)]);
    s.arrived(ms(1), item(2), Some(PeerKey(1)));
    assert_eq!(drain(&mut s, ms(1)), [Output::Done(b)]);
    assert_eq!((s.wanted(), s.open_bytes()), (0, 0));
}

#[test]
fn a_blocking_item_overtakes_read_ahead() {
    let mut s = Scheduler::new();
    let _far = s.add_job(
        (0..100).map(|n| (item(n), 65_536)),
        Priority::ReadAhead,
        ms(30_000),
    );
    let _near = s.add_job([(item(99), 65_536)], Priority::Blocked, ms(30_000));
    s.peer_up(PeerKey(1));
    let asked = requests(&drain(&mut s, ms(0)));
    assert_eq!(asked[0].1, item(99));
    assert_eq!(asked.len(), 16, "a fresh peer is asked for 1 MiB");
    assert_eq!(
        asked.iter().map(|(_, i)| *i).collect::<HashSet<_>>().len(),
        asked.len()
    );
}

#[test]
fn every_idle_peer_is_used() {
    let mut s = Scheduler::new();
    for p in 0..3 {
        s.peer_up(PeerKey(p));
    }
    let _ = s.add_job(
        (0..300).map(|n| (item(n), 65_536)),
        Priority::Replica,
        ms(30_000),
    );
    let asked = requests(&drain(&mut s, ms(0)));
    for p in 0..3 {
        assert_eq!(
            asked.iter().filter(|(peer, _)| *peer == PeerKey(p)).count(),
            16
        );
    }
}

#[test]
fn a_miss_goes_to_another_peer_and_then_to_the_first_again() {
    let mut s = Scheduler::new();
    s.peer_up(PeerKey(1));
    s.peer_up(PeerKey(2));
    let job = s.add_job([(item(1), 1000)], Priority::Blocked, ms(30_000));
    let first = requests(&drain(&mut s, ms(0)))[0].0;
    s.missed(ms(1), item(1), first);
    let second = requests(&drain(&mut s, ms(1)))[0].0;
    assert_ne!(first, second);
    s.missed(ms(2), item(1), second);
    assert_eq!(drain(&mut s, ms(2)), []);
    s.handle_timeout(ms(1100));
    assert_eq!(
        requests(&drain(&mut s, ms(1100))).len(),
        1,
        "a first miss is believed for a second"
    );
    s.arrived(ms(1101), item(1), None);
    assert_eq!(drain(&mut s, ms(1101)), [Output::Done(job)]);
}

/// How often a peer that never has the item is asked for it within ten minutes.
fn questions_to_a_peer_without(say_more_at: Option<u64>) -> usize {
    let mut s = Scheduler::new();
    s.peer_up(PeerKey(1));
    let _ = s.add_job([(item(1), 1000)], Priority::Replica, ms(600_000));
    let mut asked = 0;
    for now in (0..600_000).step_by(50).map(ms) {
        s.handle_timeout(now);
        if say_more_at.map(ms) == Some(now) {
            s.peer_has_more(PeerKey(1));
        }
        for (peer, item) in requests(&drain(&mut s, now)) {
            asked += 1;
            s.missed(now, item, peer);
        }
    }
    asked
}

#[test]
fn a_peer_that_misses_again_is_asked_ever_less() {
    // 1 + 2 + .. + 32 s, then every 64 s.
    assert_eq!(questions_to_a_peer_without(None), 15);
    let then = questions_to_a_peer_without(Some(500_000));
    assert!(
        (16..=22).contains(&then),
        "{then}: what it missed is forgiven"
    );
}

#[test]
fn a_job_is_barren_once_all_peers_lack_all_that_is_left_of_it() {
    let mut s = Scheduler::new();
    let all = [(item(1), 1000), (item(2), 1000)];
    let job = s.add_job(all, Priority::Replica, ms(600_000));
    assert!(s.is_barren(job), "nobody is there");
    s.peer_up(PeerKey(1));
    assert!(!s.is_barren(job), "one was not asked yet");
    let asked = requests(&drain(&mut s, ms(0)));
    assert_eq!((asked.len(), s.is_barren(job)), (2, false), "on its way");
    s.missed(ms(1), item(1), PeerKey(1));
    assert_eq!((s.is_barren(job), s.left(job)), (false, Some(2)));
    s.arrived(ms(2), item(2), Some(PeerKey(1)));
    assert_eq!((s.is_barren(job), s.left(job)), (true, Some(1)));
    s.handle_timeout(ms(1100));
    assert_eq!(requests(&drain(&mut s, ms(1100))).len(), 1, "asked again");
    assert!(s.is_barren(job), "who lacked it is asked again");
    s.peer_up(PeerKey(2));
    assert!(!s.is_barren(job), "somebody new may have it");
    s.arrived(ms(1200), item(1), None);
    assert_eq!((s.is_barren(job), s.left(job)), (false, None));
}

/// A job that takes the place of another in the middle of it: what is on its way is not asked for again, and who lacks
/// something is not asked anew.
#[test]
fn a_job_in_place_of_another_begins_where_that_was() {
    let mut s = Scheduler::new();
    s.peer_up(PeerKey(1));
    let first = [(item(1), 1000), (item(2), 1000)];
    let first = s.add_job(first, Priority::Replica, ms(600_000));
    assert_eq!(requests(&drain(&mut s, ms(0))).len(), 2);
    s.missed(ms(1), item(1), PeerKey(1));
    let second = [(item(1), 1000), (item(2), 1000), (item(3), 1000)];
    let second = s.add_job(second, Priority::Replica, ms(600_000));
    s.cancel(first);
    let outputs = drain(&mut s, ms(2));
    assert_eq!(requests(&outputs), [(PeerKey(1), item(3))]);
    assert!(outputs.contains(&Output::Failed(first, Failure::Cancelled)));
    assert_eq!(s.left(second), Some(3));
}

#[test]
fn an_item_that_cannot_be_kept_ends_its_jobs_and_is_not_asked_again() {
    let mut s = Scheduler::new();
    s.peer_up(PeerKey(1));
    s.peer_up(PeerKey(2));
    let job = s.add_job(
        [(item(1), 1000), (item(2), 1000)],
        Priority::Replica,
        ms(600_000),
    );
    let asked = requests(&drain(&mut s, ms(0)));
    s.not_stored(
        ms(1),
        item(1),
        asked.iter().find(|a| a.1 == item(1)).unwrap().0,
    );
    assert_eq!(
        drain(&mut s, ms(1)),
        [Output::Failed(job, Failure::NotStored)]
    );
    assert_eq!((s.wanted(), s.open_bytes()), (0, 0));
}

#[test]
fn what_becomes_urgent_on_its_way_is_not_asked_twice_at_once() {
    let mut s = Scheduler::new();
    s.peer_up(PeerKey(1));
    s.peer_up(PeerKey(2));
    let _ = s.add_job([(item(1), 1000)], Priority::ReadAhead, ms(30_000));
    assert_eq!(requests(&drain(&mut s, ms(0))).len(), 1);
    let _ = s.add_job([(item(1), 1000)], Priority::Blocked, ms(30_000));
    assert_eq!(drain(&mut s, ms(1)), []);
    s.handle_timeout(ms(200));
    assert_eq!(requests(&drain(&mut s, ms(200))).len(), 1, "it is late");
}

#[test]
fn what_is_on_its_way_is_not_asked_for_again_when_its_job_was_given_up() {
    let mut s = Scheduler::new();
    s.peer_up(PeerKey(1));
    let ahead = s.add_job([(item(1), 1000)], Priority::ReadAhead, ms(30_000));
    assert_eq!(requests(&drain(&mut s, ms(0))).len(), 1);
    s.cancel(ahead);
    let job = s.add_job([(item(1), 1000)], Priority::Replica, ms(30_000));
    assert_eq!(requests(&drain(&mut s, ms(1))), [], "it is on its way");
    s.arrived(ms(2), item(1), Some(PeerKey(1)));
    assert!(drain(&mut s, ms(2)).contains(&Output::Done(job)));
    assert!(s.flying.is_empty());
}

#[test]
fn what_was_on_its_way_and_does_not_come_is_asked_for() {
    let given_up = || {
        let mut s = Scheduler::new();
        s.peer_up(PeerKey(1));
        let job = s.add_job([(item(1), 1000)], Priority::ReadAhead, ms(30_000));
        drain(&mut s, ms(0));
        s.cancel(job);
        drain(&mut s, ms(0));
        s
    };
    let want = |s: &mut Scheduler, at| {
        let _job = s.add_job([(item(1), 1000)], Priority::Replica, ms(600_000));
        requests(&drain(s, ms(at))).len()
    };
    // It could not be kept.
    let mut s = given_up();
    s.not_stored(ms(1), item(1), PeerKey(1));
    assert_eq!(want(&mut s, 1), 1);
    // Its peer is gone, before and after somebody waits for it.
    let mut s = given_up();
    s.peer_down(PeerKey(1));
    s.peer_up(PeerKey(2));
    assert_eq!(want(&mut s, 1), 1);
    let mut s = given_up();
    assert_eq!(want(&mut s, 1), 0);
    s.peer_down(PeerKey(1));
    s.peer_up(PeerKey(2));
    assert_eq!(requests(&drain(&mut s, ms(2))).len(), 1);
    // The peer did not have it.
    let mut s = given_up();
    assert_eq!(want(&mut s, 1), 0);
    s.missed(ms(1), item(1), PeerKey(1));
    s.handle_timeout(ms(1100));
    assert_eq!(requests(&drain(&mut s, ms(1100))).len(), 1);
    // The peer is silent.
    let mut s = given_up();
    s.handle_timeout(FLIGHT_TIME);
    assert_eq!(want(&mut s, 60_000), 1);
}

#[test]
fn the_one_peer_that_has_it_is_found_among_many_that_do_not() {
    let mut s = Scheduler::new();
    for p in 0..128 {
        s.peer_up(PeerKey(p));
    }
    let all = (0..2048).map(|n| (item(n), 1000));
    let _ = s.add_job(all, Priority::Replica, ms(600_000));
    let mut questions = 0;
    for now in (0..60_000).step_by(10).map(ms) {
        s.handle_timeout(now);
        for (peer, item) in requests(&drain(&mut s, now)) {
            questions += 1;
            if peer == PeerKey(127) {
                s.arrived(now, item, Some(peer));
            } else {
                s.missed(now, item, peer);
            }
        }
        if s.wanted() == 0 {
            break;
        }
    }
    assert_eq!(s.wanted(), 0);
    // Everything of everybody would be 262,144.
    assert!(questions < 40_000, "{questions} questions");
}

#[test]
fn a_blocking_job_fails_early_when_nobody_is_there_and_late_when_somebody_is_silent() {
    let mut s = Scheduler::new();
    let alone = s.add_job([(item(1), 1000)], Priority::Blocked, ms(30_000));
    s.handle_timeout(ms(0));
    s.handle_timeout(ms(4_900));
    assert_eq!(drain(&mut s, ms(4_900)), []);
    s.handle_timeout(ms(5_000));
    assert_eq!(
        drain(&mut s, ms(5_000)),
        [Output::Failed(alone, Failure::NobodyHasIt)]
    );

    s.peer_up(PeerKey(1));
    let silent = s.add_job([(item(2), 1000)], Priority::Blocked, ms(40_000));
    assert_eq!(requests(&drain(&mut s, ms(10_000))).len(), 1);
    s.handle_timeout(ms(39_999));
    assert!(!drain(&mut s, ms(39_999)).contains(&Output::Failed(silent, Failure::TimedOut)));
    s.handle_timeout(ms(40_000));
    assert!(drain(&mut s, ms(40_000)).contains(&Output::Failed(silent, Failure::TimedOut)));
    assert_eq!((s.wanted(), s.open_bytes()), (0, 0));
}

#[test]
fn a_late_blocking_item_is_asked_of_a_second_peer() {
    let mut s = Scheduler::new();
    s.peer_up(PeerKey(1));
    s.peer_up(PeerKey(2));
    let _ = s.add_job([(item(1), 1000)], Priority::Blocked, ms(30_000));
    assert_eq!(requests(&drain(&mut s, ms(0))).len(), 1);
    s.handle_timeout(ms(199));
    assert_eq!(requests(&drain(&mut s, ms(199))).len(), 0);
    s.handle_timeout(ms(200));
    assert_eq!(requests(&drain(&mut s, ms(200))).len(), 1);
    s.handle_timeout(ms(900));
    assert_eq!(requests(&drain(&mut s, ms(900))).len(), 0, "two are enough");
}

/// Splitmix64: a seeded stream for the simulation below.
struct Rng(u64);

impl Rng {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (z ^ (z >> 31)) % n
    }
}

/// Peers that hold random parts, answer late, miss, or vanish. At the end every job is done or failed, exactly once, and
/// a job that was possible throughout is done.
fn simulate(seed: u64) {
    let mut rng = Rng(seed);
    let mut s = Scheduler::new();
    let holds: Vec<BTreeSet<u64>> = (0..3)
        .map(|_| (0..200).filter(|_| rng.below(3) > 0).collect())
        .collect();
    for p in 0..3 {
        s.peer_up(PeerKey(p));
    }
    let stays = rng.below(3);
    let mut jobs: BTreeMap<JobId, bool> = BTreeMap::new();
    let mut ended: BTreeMap<JobId, bool> = BTreeMap::new();
    let mut in_flight: Vec<(Now, PeerKey, Item)> = Vec::new();
    for step in 0..4000_u64 {
        let now = ms(step * 10);
        if step < 40 {
            let wanted: BTreeSet<u64> = (0..rng.below(20) + 1).map(|_| rng.below(200)).collect();
            let possible = wanted.iter().all(|n| holds[stays as usize].contains(n));
            let priority = PRIORITIES[rng.below(4) as usize];
            let job = s.add_job(
                wanted
                    .iter()
                    .map(|n| (item(*n), 1 + rng.below(131_072) as u32)),
                priority,
                now + ms(30_000),
            );
            jobs.insert(job, possible);
        }
        if step % 500 == 250 {
            let goes = PeerKey(rng.below(3));
            if goes.0 != stays {
                s.peer_down(goes);
                in_flight.retain(|(_, p, _)| *p != goes);
                s.peer_up(goes);
            }
        }
        s.handle_timeout(now);
        for output in drain(&mut s, now) {
            match output {
                Output::Request { peer, items, .. } => {
                    for i in items {
                        in_flight.push((now + ms(rng.below(300)), peer, i));
                    }
                }
                Output::Done(job) => assert_eq!(ended.insert(job, true), None, "seed {seed}"),
                Output::Failed(job, _) => assert_eq!(ended.insert(job, false), None, "seed {seed}"),
            }
        }
        let (due, later): (Vec<_>, Vec<_>) = in_flight.drain(..).partition(|(at, ..)| *at <= now);
        in_flight = later;
        for (_, peer, i) in due {
            let Item::Chunk(hash) = i else { unreachable!() };
            let n = u64::from_le_bytes(hash.as_bytes()[..8].try_into().unwrap());
            if holds[peer.0 as usize].contains(&n) {
                s.arrived(now, i, Some(peer));
            } else {
                s.missed(now, i, peer);
            }
        }
    }
    assert_eq!(ended.len(), jobs.len(), "seed {seed}: every job ends");
    assert_eq!((s.wanted(), s.open_bytes()), (0, 0), "seed {seed}");
    for (job, possible) in jobs {
        assert!(
            ended[&job] || !possible,
            "seed {seed}: job {job:?} could have been done"
        );
    }
}

#[test]
fn all_jobs_end_whatever_peers_do() {
    for seed in 0..200 {
        simulate(seed);
    }
}
