//! Crashes after every single operation, and with every kind of leftovers: what was synced is
//! there afterwards with the right bytes, and nothing wrong is ever served.

mod store_support;

use std::collections::{HashMap, HashSet};
use std::convert::Infallible;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use ccbt_xet::disk::{Disk, MemDisk, OpenMode};
use ccbt_xet::hash::{ChunkHash, NodeId};
use ccbt_xet::store::{Collect, Marks, Store, StoreOptions, WriteError};
use store_support::{DIR, node, noise, open_with, small_packs, text};

/// A gc that waits for work under way and spares nothing for being young.
const COLLECT: Collect = Collect {
    wait: Duration::from_secs(60),
    grace: Duration::ZERO,
    dry_run: false,
};

/// Everything the workload ever tries to store, by name.
struct World {
    chunks: Vec<(ChunkHash, Vec<u8>)>,
    nodes: Vec<(u8, NodeId, Vec<u8>)>,
}

/// What sync has promised, as numbers of chunks and nodes.
#[derive(Clone, Default)]
struct Promised {
    chunks: Vec<usize>,
    nodes: Vec<usize>,
}

impl World {
    fn new() -> Self {
        let mut chunks: Vec<_> = (0..9).map(|n| text(n, 700 + 300 * n as usize)).collect();
        chunks.extend((0..14).map(|n| noise(n, 1 + 450 * n as usize)));
        let nodes = (0..8).map(|n| {
            let kind = n as u8 % 3;
            let (id, bytes) = node(kind, n);
            (kind, id, bytes)
        });
        Self {
            chunks,
            nodes: nodes.collect(),
        }
    }

    /// Puts all, syncs and saves where things are now and then. Stops at the first error.
    fn run(&self, store: &Store, promised: &mut Promised) -> Result<(), WriteError> {
        let mut put = promised.clone();
        for n in 0..self.chunks.len() {
            let (hash, bytes) = &self.chunks[n];
            store.put_chunk(hash, bytes)?;
            put.chunks.push(n);
            if let Some((kind, id, bytes)) = self.nodes.get(n / 2) {
                store.put_node(*kind, id, bytes)?;
                put.nodes.push(n / 2);
            }
            if n % 4 == 3 {
                store.sync()?;
                *promised = put.clone();
            }
            if n % 8 == 5 {
                store.checkpoint_if_due()?;
            }
        }
        store.sync()?;
        *promised = put;
        Ok(())
    }

    /// Whatever is served is right, and what was promised is served.
    fn check(&self, store: &Store, promised: &Promised, context: &str) {
        for (n, (hash, bytes)) in self.chunks.iter().enumerate() {
            match store.chunk(hash).expect(context) {
                Some(got) => assert_eq!(got, bytes, "{context}: chunk {n}"),
                None => assert!(
                    !promised.chunks.contains(&n),
                    "{context}: chunk {n} is lost"
                ),
            }
        }
        for (n, (_, id, bytes)) in self.nodes.iter().enumerate() {
            match store.node(id).expect(context) {
                Some(got) => assert_eq!(got, bytes, "{context}: node {n}"),
                None => assert!(!promised.nodes.contains(&n), "{context}: node {n} is lost"),
            }
        }
        assert_eq!(
            store.stats().quarantined,
            0,
            "{context}: nothing was damaged"
        );
    }
}

fn open(disk: &MemDisk, context: &str) -> Store {
    open_with(disk, small_packs(), context)
}

fn try_open(disk: &MemDisk) -> Option<Store> {
    Store::open(Path::new(DIR), Arc::new(disk.clone()), small_packs()).ok()
}

/// Operations a run takes without a crash.
fn operations_of(run: impl Fn(&MemDisk)) -> u64 {
    let disk = MemDisk::new();
    run(&disk);
    disk.operations()
}

#[test]
fn crash_after_every_operation_of_writing() {
    let world = World::new();
    let whole = operations_of(|disk| {
        let store = open(disk, "no crash");
        world
            .run(&store, &mut Promised::default())
            .expect("no crash");
    });
    assert!(whole > 80, "{whole} operations");
    for crash_at in 0..whole {
        for seed in 0..16 {
            let context = format!("crash after operation {crash_at}, seed {seed}");
            let (disk, mut promised) = (MemDisk::new(), Promised::default());
            disk.fail_after(crash_at);
            if let Some(store) = try_open(&disk) {
                let _crashed = world.run(&store, &mut promised);
            }
            disk.crash(seed ^ (crash_at << 8));
            let store = open(&disk, &context);
            world.check(&store, &promised, &context);
            // Life goes on, and another crash finds it all.
            world.run(&store, &mut promised).expect(&context);
            drop(store);
            disk.crash(seed);
            world.check(&open(&disk, &context), &promised, &context);
        }
    }
}

#[test]
fn crash_during_recovery_from_a_crash() {
    let world = World::new();
    for first in (5..120).step_by(7) {
        for second in 0..12 {
            let context = format!("crashes after {first} and {second} operations");
            let (disk, mut promised) = (MemDisk::new(), Promised::default());
            disk.fail_after(first);
            if let Some(store) = try_open(&disk) {
                let _crashed = world.run(&store, &mut promised);
            }
            disk.crash(first * 31 + second);
            disk.fail_after(second);
            if let Some(store) = try_open(&disk) {
                let _crashed = world.run(&store, &mut promised);
            }
            disk.crash(second * 17 + first);
            world.check(&open(&disk, &context), &promised, &context);
        }
    }
}

#[test]
fn a_killed_process_loses_nothing_it_put() {
    let world = World::new();
    let disk = MemDisk::new();
    let store = open(&disk, "first");
    for (hash, bytes) in &world.chunks {
        store.put_chunk(hash, bytes).expect("put");
    }
    disk.kill();
    let all = Promised {
        chunks: (0..world.chunks.len()).collect(),
        nodes: Vec::new(),
    };
    world.check(&open(&disk, "killed"), &all, "killed");
    disk.crash(7);
    world.check(
        &open(&disk, "reopened, then crashed"),
        &all,
        "reopened, then crashed",
    );
}

#[test]
fn gc_and_crash_after_every_operation() {
    let world = World::new();
    let keep_set: Vec<ChunkHash> = world
        .chunks
        .iter()
        .enumerate()
        .filter(|(n, _)| n % 3 == 0)
        .map(|(_, c)| c.0)
        .collect();
    let kept = Promised {
        chunks: (0..world.chunks.len()).filter(|n| n % 3 == 0).collect(),
        nodes: (0..world.nodes.len()).collect(),
    };
    let filled = |disk: &MemDisk| {
        let store = open(disk, "filling");
        world
            .run(&store, &mut Promised::default())
            .expect("filling");
        store
    };
    let before = operations_of(|disk| drop(filled(disk)));
    let whole = operations_of(|disk| {
        let store = filled(disk);
        let reclaimed = store.remove(&|hash| keep_set.contains(hash)).expect("gc");
        assert_eq!(
            reclaimed.dropped as usize,
            world.chunks.len() - kept.chunks.len()
        );
        assert!(
            reclaimed.freed_bytes > 2 * reclaimed.moved_bytes,
            "{reclaimed:?}"
        );
        assert_eq!(store.stats().chunks as usize, kept.chunks.len());
        world.check(&store, &kept, "after gc");
        let dropped = &world.chunks[1].0;
        assert!(!store.contains(dropped) && store.chunk(dropped).expect("reads").is_none());
    });
    for crash_at in 0..=(whole - before) {
        for seed in 0..6 {
            let context = format!("crash after operation {crash_at} of gc, seed {seed}");
            let disk = MemDisk::new();
            let store = filled(&disk);
            disk.fail_after(crash_at);
            let _crashed = store.remove(&|hash| keep_set.contains(hash));
            disk.crash(seed * 1000 + crash_at);
            let store = open(&disk, &context);
            world.check(&store, &kept, &context);
            store
                .remove(&|hash| keep_set.contains(hash))
                .expect(&context);
            world.check(&store, &kept, &context);
            assert_eq!(
                store.stats().chunks as usize,
                kept.chunks.len(),
                "{context}"
            );
        }
    }
}

#[test]
fn a_start_after_a_kill_reads_footers_only() {
    let disk = MemDisk::new();
    let options = StoreOptions {
        cache_bytes: 0,
        pack_slots: 50,
        ..StoreOptions::default()
    };
    let store = open_with(&disk, options, "first");
    let chunks: HashMap<_, _> = (0..520).map(|n| noise(n, 10_000)).collect();
    for (hash, bytes) in &chunks {
        store.put_chunk(hash, bytes).expect("put");
    }
    store.sync().expect("sync");
    disk.kill();
    let before = disk.bytes_read();
    let store = open_with(&disk, options, "again");
    let read = disk.bytes_read() - before;
    assert!(read < 520 * 100, "{read} bytes read to open 5 MB");
    for (hash, bytes) in &chunks {
        assert_eq!(store.chunk(hash).expect("reads").expect("held"), bytes);
    }
}

const CHECKPOINT: &str = "/state/store/chunks/index.checkpoint";

/// Ten sealed packs and an open one, with a checkpoint of all that was sealed.
fn checkpointed(disk: &MemDisk) -> Vec<(ChunkHash, Vec<u8>)> {
    let store = open(disk, "filling");
    let chunks: Vec<_> = (0..53).map(|n| noise(n, 2_000)).collect();
    for (hash, bytes) in &chunks {
        store.put_chunk(hash, bytes).expect("put");
    }
    store.sync().expect("sync");
    store.checkpoint_if_due().expect("checkpoint");
    chunks
}

fn assert_all(store: &Store, chunks: &[(ChunkHash, Vec<u8>)], context: &str) {
    for (n, (hash, bytes)) in chunks.iter().enumerate() {
        let got = store.chunk(hash).expect(context);
        assert_eq!(got.as_deref(), Some(&bytes[..]), "{context}: chunk {n}");
    }
    assert_eq!(store.stats().chunks as usize, chunks.len(), "{context}");
}

#[test]
fn a_start_with_a_checkpoint_reads_no_footer_it_covers() {
    let disk = MemDisk::new();
    let mut chunks = checkpointed(&disk);
    disk.kill();
    let store = open(&disk, "with a checkpoint");
    assert_all(&store, &chunks, "with a checkpoint");
    let more: Vec<_> = (100..112).map(|n| noise(n, 3_000)).collect();
    for (hash, bytes) in &more {
        store.put_chunk(hash, bytes).expect("put");
    }
    chunks.extend(more);
    disk.kill();
    let store = open(&disk, "with newer packs");
    assert_all(&store, &chunks, "with newer packs");
    // The names of the first pack are damaged; only who reads its footer minds.
    let footer_at = 5 * 2_008;
    disk.damage(
        Path::new("/state/store/chunks/00000001.xorb"),
        footer_at,
        b"no footer",
    );
    let before = disk.bytes_read();
    let store = open(&disk, "with a damaged footer");
    assert_eq!(store.stats().quarantined, 0);
    assert_eq!(store.stats().chunks as usize, chunks.len());
    let read = disk.bytes_read() - before;
    disk.remove(Path::new(CHECKPOINT)).expect("removed");
    let before = disk.bytes_read();
    let store_without = open(&disk, "without");
    assert!(disk.bytes_read() - before > read);
    assert_all(&store_without, &chunks, "without a checkpoint");
}

#[test]
fn a_damaged_checkpoint_costs_only_time() {
    let disk = MemDisk::new();
    let chunks = checkpointed(&disk);
    let whole = disk
        .open(Path::new(CHECKPOINT), OpenMode::Read)
        .expect("is there");
    let len = whole.len().expect("length");
    let mut bytes = vec![0; len as usize];
    whole.read_at(0, &mut bytes).expect("reads");
    let rewrite = |bytes: &[u8]| {
        let file = disk
            .open(Path::new(CHECKPOINT), OpenMode::Create)
            .expect("made");
        file.write_at(0, &[bytes]).expect("written");
    };
    for at in (0..bytes.len()).step_by(7) {
        let mut damaged = bytes.clone();
        damaged[at] ^= 0x20;
        rewrite(&damaged);
        let context = format!("byte {at} changed");
        assert_all(&open(&disk, &context), &chunks, &context);
        assert!(disk.open(Path::new(CHECKPOINT), OpenMode::Read).is_err());
        rewrite(&bytes[..at]);
        let context = format!("cut at {at}");
        assert_all(&open(&disk, &context), &chunks, &context);
    }
}

#[test]
fn numbers_of_packs_a_checkpoint_covers_are_not_used_again() {
    let disk = MemDisk::new();
    let chunks = checkpointed(&disk);
    let keep: Vec<_> = chunks[..20].to_vec();
    let kept: HashSet<ChunkHash> = keep.iter().map(|(hash, _)| *hash).collect();
    let store = open(&disk, "gc");
    let mark = |marks: &mut Marks<'_>| {
        kept.iter().for_each(|hash| marks.chunk(hash));
        Ok::<_, Infallible>(())
    };
    store.collect(mark, &COLLECT, &mut |_, _| true).expect("gc");
    drop(store);
    // The open pack was emptied too; the one begun after it is empty and goes at the next start.
    for context in ["after gc", "and again"] {
        disk.kill();
        assert_all(&open(&disk, context), &keep, context);
    }
    let packs = disk.list(Path::new("/state/store/chunks")).expect("listed");
    assert!(
        packs
            .iter()
            .all(|path| path < &PathBuf::from("/state/store/chunks/00000005")
                || path.ends_with("index.checkpoint")),
        "{packs:?}"
    );
    let store = open(&disk, "one more");
    let (hash, bytes) = noise(1000, 2_000);
    store.put_chunk(&hash, &bytes).expect("put");
    store.sync().expect("sync");
    let packs = disk.list(Path::new("/state/store/chunks")).expect("listed");
    assert!(
        packs.iter().any(|path| path.ends_with("00000012.xorb")),
        "{packs:?}"
    );
    disk.kill();
    let store = open(&disk, "again");
    assert_eq!(store.chunk(&hash).expect("reads").expect("held"), bytes);
}
