//! Small files read one after another are fetched ahead; single opens fetch nothing else.

use bytes::Bytes;

use super::rig::{Rig, noise};
use crate::folder::work::Priority;

const FILE_LEN: usize = 8 << 10;

fn name(dir: &str, n: usize) -> String {
    format!("{dir}/f{n:05}")
}

fn content(dir: &str, n: usize) -> Vec<u8> {
    let seed = dir.bytes().map(u64::from).sum::<u64>() * 100_000 + n as u64;
    noise(seed, FILE_LEN)
}

/// `b` knows the names of what `a` has.
fn pair(dirs: &[(&str, usize)]) -> (Rig, Rig) {
    let (a, b) = (Rig::new(1), Rig::new(2));
    b.peers.others.lock().push(a.store.clone());
    for (dir, count) in dirs {
        a.mkdir(dir).unwrap();
        for n in 0..*count {
            a.put(&name(dir, n), &content(dir, n)).unwrap();
        }
    }
    assert!(b.merge(&a.publish().unwrap()));
    (a, b)
}

fn read(rig: &Rig, dir: &str, n: usize) {
    assert_eq!(
        rig.read(&name(dir, n)).unwrap(),
        Bytes::from(content(dir, n)),
        "{dir} {n}"
    );
}

fn asked(rig: &Rig, priority: Priority) -> usize {
    let asked = rig.peers.asked.lock();
    asked.iter().filter(|(_, p)| *p == priority).count()
}

#[test]
fn a_directory_read_by_name_is_fetched_ahead_in_growing_steps() {
    let (_a, b) = pair(&[("d", 900)]);
    for n in 0..900 {
        read(&b, "d", n);
        let beyond = asked(&b, Priority::ReadAhead) * FILE_LEN;
        assert!(
            beyond <= n * FILE_LEN + (4 << 20) + FILE_LEN,
            "{beyond} bytes at {n}"
        );
    }
    assert_eq!(
        asked(&b, Priority::Blocking),
        3,
        "all but those that show the run"
    );
    assert_eq!(asked(&b, Priority::ReadAhead), 897, "each once");
    let requests = b.peers.interests.lock().len();
    assert!(requests < 30, "{requests} requests");
}

#[test]
fn the_next_directory_goes_on_where_the_last_ended() {
    let (_a, b) = pair(&[("d", 40), ("e", 40)]);
    for dir in ["d", "e"] {
        for n in 0..40 {
            read(&b, dir, n);
        }
    }
    assert_eq!(
        asked(&b, Priority::Blocking),
        4,
        "three in the first, one in the second"
    );
}

#[test]
fn readers_out_of_step_are_one_run() {
    let (_a, b) = pair(&[("d", 200)]);
    for n in (0..200).step_by(4) {
        for n in [n + 1, n, n + 3, n + 2] {
            read(&b, "d", n);
        }
    }
    assert!(asked(&b, Priority::Blocking) < 8);
}

#[test]
fn single_and_scattered_opens_fetch_nothing_else() {
    let (_a, b) = pair(&[("d", 600)]);
    read(&b, "d", 300);
    assert_eq!(asked(&b, Priority::ReadAhead), 0);
    for n in 1..60 {
        read(&b, "d", n * 389 % 600);
    }
    assert_eq!(asked(&b, Priority::ReadAhead), 0);
    let (_a, b) = pair(&[("d", 600)]);
    for n in (0..600).rev() {
        read(&b, "d", n);
    }
    assert_eq!(asked(&b, Priority::ReadAhead), 0, "backwards");
}

#[test]
fn what_was_asked_for_is_given_up_when_the_reader_goes_elsewhere() {
    let (_a, b) = pair(&[("d", 600)]);
    for n in 0..10 {
        read(&b, "d", n);
    }
    let lives = |rig: &Rig| {
        rig.peers
            .interests
            .lock()
            .iter()
            .any(|i| i.strong_count() > 0)
    };
    assert!(lives(&b));
    read(&b, "d", 500);
    assert!(!lives(&b));
}
