//! Scrubbing a store, and collecting garbage beside work in flight.

mod store_support;

use std::convert::Infallible;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use ccbt_xet::disk::MemDisk;
use ccbt_xet::hash::ChunkHash;
use ccbt_xet::store::{CollectError, VerifyPosition};
use store_support::{DIR, node, noise, open_with, small_packs, text};

const LONG: Duration = Duration::from_secs(60);

#[test]
fn verify_reads_everything_and_names_what_is_damaged() {
    let disk = MemDisk::new();
    let store = open_with(&disk, small_packs(), "opens");
    let chunks: Vec<_> = (0..13).map(|n| noise(n, 1000)).collect();
    for (hash, bytes) in &chunks {
        store.put_chunk(hash, bytes).expect("put");
    }
    let (id, bytes) = node(1, 7);
    store.put_node(1, &id, &bytes).expect("put");
    store.sync().expect("sync");
    let mut seen = Vec::new();
    let verified = store
        .verify(&mut |done, total| {
            seen.push((done, total));
            true
        })
        .expect("reads");
    assert_eq!((verified.records, verified.damaged), (14, 0));
    let total = store.stats().bytes;
    assert_eq!(verified.bytes, total);
    assert_eq!((seen.len(), seen.last()), (14, Some(&(total, total))));

    // Damage that a read would not notice: the chunk was hashed before.
    let pack = Path::new(DIR).join("chunks/00000001.xorb");
    disk.damage(&pack, 2 * 1008 + 500, &[0; 8]);
    let verified = store.verify(&mut |_, _| true).expect("reads");
    assert_eq!((verified.records, verified.damaged), (14, 1));
    assert_eq!(store.take_quarantined().0, [chunks[2].0]);
    assert_eq!(store.chunk(&chunks[2].0).expect("reads"), None);
    let again = store.verify(&mut |_, _| true).expect("reads");
    assert_eq!((again.records, again.damaged), (13, 0));
    let mut calls = 0;
    let stopped = store.verify(&mut |_, _| {
        calls += 1;
        calls < 3
    });
    assert_eq!(stopped.expect("reads").records, 3);
}

#[test]
fn packs_are_verified_one_at_a_time_from_where_the_last_time_ended() {
    let disk = MemDisk::new();
    let store = open_with(&disk, small_packs(), "opens");
    for n in 0..13 {
        let (hash, bytes) = noise(n, 1000);
        store.put_chunk(&hash, &bytes).expect("put");
    }
    let (id, bytes) = node(1, 7);
    store.put_node(1, &id, &bytes).expect("put");
    store.sync().expect("sync");
    disk.damage(&Path::new(DIR).join("chunks/00000002.xorb"), 500, &[0; 8]);
    let (mut at, mut steps, mut shown) = (VerifyPosition::default(), Vec::new(), (0, 0));
    let all = store.stats().bytes;
    while let Some((next, found)) = store
        .verify_next(at, &mut |read, (before, total)| {
            assert!(before + read > shown.0 && before + read <= total && total == all);
            shown = (before + read, total);
            true
        })
        .expect("reads")
    {
        steps.push((next.nodes, next.pack, found.records, found.damaged));
        at = next;
    }
    let expected = [
        (false, 1, 5, 0),
        (false, 2, 5, 1),
        (false, 3, 3, 0),
        (true, 1, 1, 0),
    ];
    assert_eq!(steps, expected);
    assert_eq!(shown, (all, all));
}

/// A footer that is damaged while a checkpoint stands in for it makes names wrong; the records still know theirs.
#[test]
fn verify_mends_a_footer_that_no_start_has_looked_at() {
    for at in [60, 52 + 32 * 5 + 12 + 8, 3] {
        let disk = MemDisk::new();
        let store = open_with(&disk, small_packs(), "opens");
        let chunks: Vec<_> = (0..13).map(|n| noise(n, 1000)).collect();
        for (hash, bytes) in &chunks {
            store.put_chunk(hash, bytes).expect("put");
        }
        store.sync().expect("sync");
        store.checkpoint_if_due().expect("checkpoint");
        drop(store);
        let pack = Path::new(DIR).join("chunks/00000001.xorb");
        disk.damage(&pack, 5 * 1008 + at, &[7; 8]);
        let store = open_with(&disk, small_packs(), "opens again");
        let verified = store.verify(&mut |_, _| true).expect("reads");
        assert_eq!((verified.records, verified.damaged), (13, 0), "byte {at}");
        for (n, (hash, bytes)) in chunks.iter().enumerate() {
            let got = store.chunk(hash).expect("reads");
            assert_eq!(got.as_deref(), Some(&bytes[..]), "byte {at}, chunk {n}");
        }
        let kept = store.remove(&|_| true).expect("gc");
        assert_eq!((kept.dropped, kept.moved_bytes), (0, 5 * 1008), "byte {at}");
        assert!(disk.contents(&pack).is_none());
        drop(store);
        let store = open_with(&disk, small_packs(), "and again");
        assert!(
            chunks.iter().all(|(hash, _)| store.is_packed(hash)),
            "byte {at}"
        );
    }
}

#[test]
fn content_is_counted_before_compression() {
    let disk = MemDisk::new();
    let store = open_with(&disk, small_packs(), "opens");
    let lens = [4000, 4001, 4002, 4003, 4004, 4005, 4006];
    for (n, len) in (0..).zip(lens) {
        let (hash, bytes) = text(n, len);
        store.put_chunk(&hash, &bytes).expect("put");
    }
    // Five are in a sealed pack, two in the open one.
    let total = lens.iter().sum::<usize>() as u64;
    assert_eq!(store.content_bytes().expect("reads"), total);
    assert!(store.stats().bytes < total / 4);
    store.sync().expect("sync");
    drop(store);
    let store = open_with(&disk, small_packs(), "opens again");
    assert_eq!(store.content_bytes().expect("reads"), total);
}

#[test]
fn a_dry_run_says_what_a_gc_does_and_drops_nothing() {
    let disk = MemDisk::new();
    let store = open_with(&disk, small_packs(), "opens");
    let chunks: Vec<_> = (0..22).map(|n| noise(n, 500 + n as usize)).collect();
    for (hash, bytes) in &chunks {
        store.put_chunk(hash, bytes).expect("put");
    }
    let wanted: Vec<ChunkHash> = chunks.iter().step_by(4).map(|chunk| chunk.0).collect();
    let mark = || Ok::<_, Infallible>(|hash: &ChunkHash| wanted.contains(hash));
    let estimate = store.collect(mark, LONG, true).expect("estimate");
    assert!(chunks.iter().all(|(hash, _)| store.is_packed(hash)));
    let done = store.collect(mark, LONG, false).expect("collects");
    assert_eq!(estimate, done);
    assert_eq!(done.dropped as usize, chunks.len() - wanted.len());
    assert!(done.freed_bytes > done.moved_bytes && done.dropped_bytes > 0);
    for (hash, bytes) in &chunks {
        let held = store.chunk(hash).expect("reads");
        match wanted.contains(hash) {
            true => assert_eq!(held.expect("kept"), bytes),
            false => assert_eq!(held, None),
        }
    }
}

#[test]
fn gc_asks_what_is_wanted_only_after_older_work_has_named_its_chunks() {
    let disk = MemDisk::new();
    let store = open_with(&disk, small_packs(), "opens");
    let (early, late) = (noise(1, 900), noise(2, 900));
    let named = AtomicBool::new(false);
    let hold = store.hold();
    store.put_chunk(&early.0, &early.1).expect("put");
    std::thread::scope(|scope| {
        let gc = scope.spawn(|| {
            let mark = || {
                assert!(named.load(Ordering::SeqCst), "asked too early");
                Ok::<_, Infallible>(|hash: &ChunkHash| *hash == early.0)
            };
            store.collect(mark, LONG, false).expect("collects")
        });
        // Whichever comes first, the gc must not ask before the hold is gone.
        std::thread::sleep(Duration::from_millis(20));
        named.store(true, Ordering::SeqCst);
        drop(hold);
        gc.join().expect("gc")
    });
    assert!(store.is_packed(&early.0));

    // Work that begins while a gc runs is not waited for: its puts are noted.
    let mark = || {
        let _later = store.hold();
        store.put_chunk(&late.0, &late.1).expect("put");
        Ok::<_, Infallible>(|_: &ChunkHash| false)
    };
    store.collect(mark, LONG, false).expect("collects");
    assert!(store.is_packed(&late.0) && !store.is_packed(&early.0));
}

#[test]
fn gc_gives_up_on_work_that_does_not_end_and_on_an_owner_that_cannot_tell() {
    let disk = MemDisk::new();
    let store = open_with(&disk, small_packs(), "opens");
    let (hash, bytes) = noise(1, 900);
    let hold = store.hold();
    store.put_chunk(&hash, &bytes).expect("put");
    let nothing = || Ok::<_, Infallible>(|_: &ChunkHash| false);
    let busy = store.collect(nothing, Duration::ZERO, false);
    assert!(matches!(busy, Err(CollectError::Busy(Duration::ZERO))));
    drop(hold);
    let unknown = || Err::<fn(&ChunkHash) -> bool, _>("no idea");
    let failed = store.collect(unknown, LONG, false);
    assert!(matches!(failed, Err(CollectError::Mark("no idea"))));
    assert!(store.is_packed(&hash));
    assert_eq!(
        store
            .collect(nothing, LONG, false)
            .expect("collects")
            .dropped,
        1
    );
}
