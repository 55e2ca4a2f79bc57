//! The schedule against the rates that section 4 of `docs/bep_xet.md` gives.

use super::*;
use crate::share::{DeviceKey, HeadClaims, Incarnation, SnapshotId};

const NEWS: Sight = Sight {
    news: true,
    alone: false,
    stands_down: false,
};
const QUIET: Sight = Sight {
    news: false,
    ..NEWS
};
const ALONE: Sight = Sight {
    alone: true,
    ..QUIET
};

fn secs(n: u64) -> Now {
    Duration::from_secs(n)
}

/// Plays a day in steps of ten seconds; when each get and put happened.
fn play(mut sight: impl FnMut(Now) -> Sight, works: bool) -> (Vec<u64>, Vec<u64>) {
    let mut schedule = Schedule::new(secs(0));
    let (mut gets, mut puts) = (Vec::new(), Vec::new());
    for at in (0..24 * 3600).step_by(10) {
        let now = secs(at);
        let sight = sight(now);
        match schedule.step(now, sight) {
            Step::Get => {
                gets.push(at);
                schedule.got(now, sight);
            }
            Step::Put => {
                puts.push(at);
                let result = if works { Ok(8) } else { Err(DhtError::Silent) };
                schedule.put(now, &result);
            }
            Step::Wait => {}
        }
    }
    (gets, puts)
}

fn gaps(times: &[u64]) -> Vec<u64> {
    times.windows(2).map(|w| w[1] - w[0]).collect()
}

#[test]
fn a_writer_that_never_rests_puts_every_five_minutes() {
    let (gets, puts) = play(|_| NEWS, true);
    assert_eq!(
        (gets[0], puts[0]),
        (0, 10),
        "looks before it puts, then puts at once"
    );
    assert!(gaps(&puts).iter().all(|gap| *gap >= 300), "{puts:?}");
    assert!(puts.len() > 280, "{}", puts.len());
}

#[test]
fn one_change_is_put_once_and_again_every_hour() {
    let (gets, puts) = play(|now| if now < secs(20) { NEWS } else { QUIET }, true);
    assert_eq!(puts[0], 10);
    let gaps = gaps(&puts);
    assert!(
        gaps.iter().all(|gap| (3600..=3980).contains(gap)),
        "{gaps:?}"
    );
    assert!(gaps.len() >= 21);
    for put in &puts {
        let before = gets.iter().filter(|get| *get < put).max().unwrap();
        assert!(put - before <= 900, "put at {put} after a get at {before}");
    }
}

#[test]
fn who_stands_down_puts_only_its_own_news() {
    let stands_down = Sight {
        stands_down: true,
        ..QUIET
    };
    assert_eq!(play(|_| stands_down, true).1, [0_u64; 0]);
    let (_, puts) = play(
        |now| Sight {
            news: (secs(8000)..secs(8010)).contains(&now),
            ..stands_down
        },
        true,
    );
    assert_eq!(puts, [8000]);
}

#[test]
fn who_is_alone_looks_soon_then_ever_later() {
    let (gets, _) = play(|_| ALONE, true);
    let gaps = gaps(&gets);
    assert_eq!(gaps[..5], [20, 30, 60, 120, 240]);
    assert!(gaps.iter().all(|gap| *gap <= 900) && gets.len() < 120);
    let (gets, _) = play(|_| QUIET, true);
    assert!(gets.len() <= 48, "{}", gets.len());
}

#[test]
fn failed_puts_back_off() {
    let (_, puts) = play(|_| NEWS, false);
    assert_eq!(gaps(&puts)[..4], [20, 30, 60, 120]);
    assert!(puts.len() < 24 * 5, "{}", puts.len());
}

#[test]
fn a_newer_item_is_looked_at_before_the_next_put() {
    let mut schedule = Schedule::new(secs(0));
    schedule.got(secs(0), NEWS);
    assert_eq!(schedule.step(secs(1), NEWS), Step::Put);
    schedule.put(secs(1), &Err(DhtError::Newer));
    assert_eq!(schedule.step(secs(2), NEWS), Step::Get);
    schedule.got(secs(2), NEWS);
    assert_eq!(schedule.step(secs(3), NEWS), Step::Wait);
    assert_eq!(schedule.step(secs(17), NEWS), Step::Put);
}

fn head(device: u8, millis: u64) -> Head {
    let key = DeviceKey::from_bytes([device; 32]);
    let claims = HeadClaims {
        epoch: 0,
        device: key.id(),
        incarnation: Incarnation::from_bytes([device; 8]),
        ctr: 1,
        seq: 1,
        snapshot: SnapshotId::from_bytes([0; 32]),
        previous: [0; 32],
        hlc: millis << 16,
        flags: 0,
    };
    Head::sign(&key, claims)
}

fn outlook(own: Option<Head>) -> Outlook {
    Outlook {
        heads: own.iter().cloned().collect(),
        own,
        manifest: None,
        write: None,
        endpoints: vec![],
        alone: false,
        stands_down: false,
    }
}

fn item(heads: &[Head], endpoints: &[u16]) -> DhtItem {
    DhtItem {
        heads: heads.iter().cloned().map(Into::into).collect(),
        endpoints: endpoints
            .iter()
            .map(|port| SocketAddr::from(([10, 0, 0, 1], *port)))
            .collect(),
    }
}

#[test]
fn news_is_our_own_later_head_or_address_and_no_one_elses() {
    let (older, newer) = (head(1, 100), head(1, 200));
    let others = head(2, 300);
    let mine = item(std::slice::from_ref(&newer), &[1]);
    let look = outlook(Some(newer.clone()));
    assert!(is_news(&mine, &look, None));
    assert!(is_news(&mine, &look, Some(&item(&[older], &[1]))));
    assert!(!is_news(
        &mine,
        &look,
        Some(&item(std::slice::from_ref(&newer), &[1, 2]))
    ));
    assert!(is_news(&mine, &look, Some(&item(&[newer], &[2]))), "moved");
    // Another wrote after us: it knew our head, or the hourly put will tell both.
    assert!(!is_news(&mine, &look, Some(&item(&[others], &[1]))));
    assert!(!is_news(&mine, &outlook(None), None), "nothing published");
}

#[test]
fn an_item_from_the_far_future_is_not_kept_alive() {
    let write = OwnerSeed::from_bytes([1; 32]).write_key(0);
    let sealed = |seq| SignedItem::seal(&item(&[], &[1]), &write, seq, [0; 24]).unwrap();
    let mut shelf = Shelf {
        schedule: Schedule::new(secs(0)),
        newest: None,
    };
    assert_eq!(shelf.worth_keeping(), None);
    let now = next_seq(clock::unix_millis(), None);
    shelf.take(sealed(now));
    shelf.take(sealed(now - 1));
    assert_eq!(shelf.worth_keeping(), Some(sealed(now)), "the newest");
    shelf.take(sealed(i64::MAX));
    assert_eq!(shelf.worth_keeping(), None);
}
