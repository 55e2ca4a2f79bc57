//! Scrubbing a store, and collecting garbage beside work in flight.

mod store_support;

use std::convert::Infallible;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use ccbt_xet::disk::MemDisk;
use ccbt_xet::hash::ChunkHash;
use ccbt_xet::store::{Collect, CollectError, Marks, Put, Reclaimed, VerifyPosition};
use store_support::{DIR, node, noise, open_with, small_packs, text};

/// A gc that waits for work under way and spares nothing for being young.
const COLLECT: Collect = Collect {
    wait: Duration::from_secs(60),
    grace: Duration::ZERO,
    dry_run: false,
};

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
    while let Some((next, found)) = store.verify_next(at, &mut |read, (before, total)| {
        assert!(before + read > shown.0 && before + read <= total && total == all);
        shown = (before + read, total);
        true
    }) {
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
    let mark = |marks: &mut Marks<'_>| {
        wanted.iter().for_each(|hash| marks.chunk(hash));
        Ok::<_, Infallible>(())
    };
    let dry_run = Collect {
        dry_run: true,
        ..COLLECT
    };
    let all = &mut |_: &Reclaimed, _: (u64, u64)| true;
    let estimate = store.collect(mark, &dry_run, all).expect("estimate");
    assert!(chunks.iter().all(|(hash, _)| store.is_packed(hash)));
    let done = store.collect(mark, &COLLECT, all).expect("collects");
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
            let mark = |marks: &mut Marks<'_>| {
                assert!(named.load(Ordering::SeqCst), "asked too early");
                marks.chunk(&early.0);
                Ok::<_, Infallible>(())
            };
            let all = &mut |_: &Reclaimed, _: (u64, u64)| true;
            store.collect(mark, &COLLECT, all).expect("collects")
        });
        // Whichever comes first, the gc must not ask before the hold is gone.
        std::thread::sleep(Duration::from_millis(20));
        named.store(true, Ordering::SeqCst);
        drop(hold);
        gc.join().expect("gc")
    });
    assert!(store.is_packed(&early.0));

    // Work that begins while a gc runs is not waited for: its puts are noted.
    let mark = |_: &mut Marks<'_>| {
        let _later = store.hold();
        store.put_chunk(&late.0, &late.1).expect("put");
        Ok::<_, Infallible>(())
    };
    store
        .collect(mark, &COLLECT, &mut |_, _| true)
        .expect("collects");
    assert!(store.is_packed(&late.0) && !store.is_packed(&early.0));
}

#[test]
fn gc_gives_up_on_work_that_does_not_end_and_on_an_owner_that_cannot_tell() {
    let disk = MemDisk::new();
    let store = open_with(&disk, small_packs(), "opens");
    let (hash, bytes) = noise(1, 900);
    let hold = store.hold();
    store.put_chunk(&hash, &bytes).expect("put");
    let nothing = |_: &mut Marks<'_>| Ok::<_, Infallible>(());
    let at_once = Collect {
        wait: Duration::ZERO,
        ..COLLECT
    };
    let all = &mut |_: &Reclaimed, _: (u64, u64)| true;
    let busy = store.collect(nothing, &at_once, all);
    assert!(matches!(busy, Err(CollectError::Busy(Duration::ZERO))));
    drop(hold);
    let unknown = |_: &mut Marks<'_>| Err("no idea");
    let failed = store.collect(unknown, &COLLECT, all);
    assert!(matches!(failed, Err(CollectError::Mark("no idea"))));
    assert!(store.is_packed(&hash));
    assert_eq!(
        store
            .collect(nothing, &COLLECT, all)
            .expect("collects")
            .dropped,
        1
    );
}

#[test]
fn gc_spares_packs_that_were_written_to_just_now() {
    let disk = MemDisk::new();
    let store = open_with(&disk, small_packs(), "opens");
    let chunks: Vec<_> = (0..13).map(|n| noise(n, 900)).collect();
    // Two sealed packs, and the first record of a third.
    for (hash, bytes) in &chunks[..11] {
        store.put_chunk(hash, bytes).expect("put");
    }
    let grace = Duration::from_secs(600);
    let collect = |dry_run| {
        let nothing = |_: &mut Marks<'_>| Ok::<_, Infallible>(());
        let how = Collect {
            grace,
            dry_run,
            ..COLLECT
        };
        let reclaimed = store.collect(nothing, &how, &mut |_, _| true);
        reclaimed.expect("collects").dropped
    };
    disk.pass(grace - Duration::from_secs(1));
    assert_eq!((collect(true), collect(false)), (0, 0));
    disk.pass(Duration::from_secs(1));
    // These come from a peer, and nothing names them yet.
    for (hash, bytes) in &chunks[11..] {
        store.put_chunk(hash, bytes).expect("put");
    }
    assert_eq!(collect(true), 10);
    assert_eq!(collect(false), 10);
    assert!(chunks[10..].iter().all(|(hash, _)| store.is_packed(hash)));
    assert!(!chunks[..10].iter().any(|(hash, _)| store.is_packed(hash)));
}

#[test]
fn gc_collects_nodes_like_chunks_and_only_those_it_may_judge() {
    let disk = MemDisk::new();
    let store = open_with(&disk, small_packs(), "opens");
    let nodes: Vec<_> = (0..23).map(|n| node(1, n)).collect();
    for (id, bytes) in &nodes[..20] {
        store.put_node(1, id, bytes).expect("put");
    }
    let all = &mut |_: &Reclaimed, _: (u64, u64)| true;
    let unknown = |marks: &mut Marks<'_>| {
        marks.keep_all_nodes();
        Ok::<_, Infallible>(())
    };
    let kept = store.collect(unknown, &COLLECT, all).expect("collects");
    assert_eq!(kept.dropped, 0, "nobody can tell which are wanted");
    let mark = |marks: &mut Marks<'_>| {
        nodes[..20]
            .iter()
            .step_by(5)
            .for_each(|(id, _)| marks.node(id));
        // One that is new, and one that is held and asked for after it was judged.
        store.put_node(1, &nodes[20].0, &nodes[20].1).expect("put");
        let held = store.put_node(1, &nodes[1].0, &nodes[1].1);
        assert_eq!(held.expect("put"), Put::Held);
        Ok::<_, Infallible>(())
    };
    let before = store.stats().bytes;
    let done = store.collect(mark, &COLLECT, all).expect("collects");
    assert_eq!(done.dropped, 15);
    assert!(store.stats().bytes < before / 2, "{:?}", store.stats());
    let wanted = |n: usize| (n < 20 && n.is_multiple_of(5)) || n == 20 || n == 1;
    for (n, (id, bytes)) in nodes.iter().enumerate() {
        let held = store.node(id).expect("reads");
        assert_eq!(held.as_deref(), wanted(n).then_some(&bytes[..]), "node {n}");
    }
    store.sync().expect("sync");
    disk.crash(5);
    let store = open_with(&disk, small_packs(), "again");
    for (n, (id, bytes)) in nodes.iter().enumerate().filter(|(n, _)| wanted(*n)) {
        assert_eq!(store.node(id).expect("reads").expect("held"), bytes, "{n}");
    }
}

#[test]
fn gc_ends_early_when_it_is_told_to_and_loses_nothing() {
    let disk = MemDisk::new();
    let store = open_with(&disk, small_packs(), "opens");
    let chunks: Vec<_> = (0..25).map(|n| noise(n, 900)).collect();
    for (hash, bytes) in &chunks {
        store.put_chunk(hash, bytes).expect("put");
    }
    let mark = |marks: &mut Marks<'_>| {
        chunks
            .iter()
            .step_by(5)
            .for_each(|(hash, _)| marks.chunk(hash));
        Ok::<_, Infallible>(())
    };
    let mut heard = Vec::new();
    let done = store.collect(mark, &COLLECT, &mut |reclaimed, (at, of)| {
        heard.push((reclaimed.dropped, at, of));
        heard.len() < 2
    });
    assert_eq!(done.expect("collects").dropped, 8);
    // Two packs of chunks; the nodes' shelf, which has none, is not heard of.
    assert_eq!(heard.len(), 2, "{heard:?}");
    assert!(
        heard[0].1 < heard[1].1 && heard[1].1 < heard[1].2,
        "{heard:?}"
    );
    for (hash, bytes) in chunks.iter().step_by(5) {
        assert_eq!(store.chunk(hash).expect("reads").expect("held"), bytes);
    }
}
