//! Many threads on one store, and chunks borrowed from plain files that others edit.

mod store_support;

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use ccbt_xet::disk::MemDisk;
use ccbt_xet::hash::ChunkHash;
use ccbt_xet::store::{BorrowedFiles, Put, SourceId, Store, StoreOptions};
use parking_lot::Mutex;
use store_support::{node, noise, open_with, small_packs, text};

type Chunks = Vec<(ChunkHash, Vec<u8>)>;

/// Plain files in memory.
#[derive(Debug, Default)]
struct PlainFiles {
    files: Mutex<HashMap<SourceId, Vec<u8>>>,
    mismatches: Mutex<Vec<SourceId>>,
    reads: AtomicUsize,
}

impl BorrowedFiles for PlainFiles {
    fn read_at(&self, source: SourceId, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.reads.fetch_add(1, Ordering::Relaxed);
        let files = self.files.lock();
        let file = files.get(&source).ok_or(io::ErrorKind::NotFound)?;
        let range = offset as usize..offset as usize + buf.len();
        buf.copy_from_slice(file.get(range).ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn mismatch(&self, source: SourceId) {
        self.mismatches.lock().push(source);
    }
}

/// A store that borrows the same three chunks from two files.
fn borrowing() -> (Store, Arc<PlainFiles>, Chunks) {
    let store = open_with(&MemDisk::new(), small_packs(), "opens");
    let files = Arc::new(PlainFiles::default());
    store.set_borrow_reader(0, Arc::clone(&files) as Arc<dyn BorrowedFiles>);
    let chunks: Vec<_> = (0..3).map(|n| noise(n, 10_000 + n as usize)).collect();
    let content: Vec<u8> = chunks.iter().flat_map(|(_, bytes)| bytes.clone()).collect();
    let mut at = 0;
    let mut ranges = Vec::new();
    for (hash, bytes) in &chunks {
        ranges.push((*hash, at, bytes.len() as u32));
        at += bytes.len() as u64;
    }
    for source in [SourceId(1), SourceId(2)] {
        files.files.lock().insert(source, content.clone());
        store.borrow(source, &ranges);
    }
    (store, files, chunks)
}

#[test]
fn borrowed_chunks_are_served_and_not_packed() {
    let (store, files, chunks) = borrowing();
    for (hash, bytes) in &chunks {
        assert!(store.contains(hash) && !store.is_packed(hash));
        assert_eq!(store.chunk(hash).unwrap().unwrap(), bytes);
        let mut part = [0; 10];
        assert_eq!(
            store.read_range(hash, 3, &mut part).unwrap(),
            Some(bytes.len() as u32)
        );
        assert_eq!(part, bytes[3..13]);
    }
    assert_eq!(store.stats().borrowed, 6);
    assert_eq!(files.mismatches.lock().len(), 0);
    store.unborrow(SourceId(1));
    assert!(store.contains(&chunks[0].0));
    store.unborrow(SourceId(2));
    assert!(!store.contains(&chunks[0].0) && store.chunk(&chunks[0].0).unwrap().is_none());
    assert_eq!(store.stats().borrowed, 0);
}

#[test]
fn an_edited_file_is_noticed_and_another_serves() {
    let (store, files, chunks) = borrowing();
    for source in [SourceId(1), SourceId(2)] {
        files.files.lock().get_mut(&source).unwrap()[10_000 + 77] ^= 1;
    }
    let (edited, bytes) = &chunks[1];
    assert!(store.chunk(edited).unwrap().is_none());
    assert!(!store.contains(edited));
    let mut told = files.mismatches.lock().clone();
    told.sort_unstable();
    assert_eq!(told, [SourceId(1), SourceId(2)]);
    assert_eq!(store.stats().borrowed, 4, "only the edited ranges went");
    assert_eq!(store.put_chunk(edited, bytes).unwrap(), Put::New);
    assert_eq!(store.chunk(edited).unwrap().unwrap(), bytes);
    files.files.lock().remove(&SourceId(1));
    assert_eq!(store.chunk(&chunks[2].0).unwrap().unwrap(), chunks[2].1);
}

/// Chunks that lie together in a plain file are one read; what was edited there comes from elsewhere, and is not mixed in.
#[test]
fn many_chunks_are_read_at_once_and_each_is_the_right_one() {
    let (store, files, chunks) = borrowing();
    let (packed, bytes) = noise(9, 5000);
    store.put_chunk(&packed, &bytes).unwrap();
    let order = [1, 2, 9, 0, 1, 2, 1];
    let pick = |n: usize| match n {
        9 => (packed, &bytes),
        n => (chunks[n].0, &chunks[n].1),
    };
    let list: Vec<_> = order
        .iter()
        .map(|n| (pick(*n).0, pick(*n).1.len() as u32))
        .collect();
    let want: Vec<u8> = order.iter().flat_map(|n| pick(*n).1.clone()).collect();
    let mut buf = vec![0; want.len()];
    assert!(store.read_all(&list, &mut buf).unwrap());
    assert!(buf == want);
    assert_eq!(files.reads.load(Ordering::Relaxed), 3, "three runs");

    for edited in [1, 2] {
        files.files.lock().get_mut(&SourceId(edited)).unwrap()[10_000 + 77] ^= edited as u8;
        buf.fill(0);
        let is_here = store.read_all(&list, &mut buf).unwrap();
        assert_eq!(is_here, edited == 1, "the other file has it still");
        assert!(!is_here || buf == want);
    }
    assert_eq!(files.mismatches.lock().len(), 2);
    let mut short = vec![0; want.len() - 1];
    assert!(!store.read_all(&list[2..3], &mut short[..4999]).unwrap());
    assert!(!store.read_all(&list[2..3], &mut short).unwrap());
}

#[test]
fn a_borrowed_chunk_can_be_packed_and_outlives_its_file() {
    let (store, files, chunks) = borrowing();
    let (hash, bytes) = &chunks[0];
    assert_eq!(store.put_chunk(hash, bytes).unwrap(), Put::New);
    files.files.lock().clear();
    assert_eq!(store.chunk(hash).unwrap().unwrap(), bytes);
    assert_eq!(files.mismatches.lock().len(), 0, "the pack comes first");
}

#[test]
fn readers_writers_and_syncs_together() {
    const THREADS: u64 = 6;
    const EACH: u64 = 150;
    let disk = MemDisk::new();
    let options = StoreOptions {
        cache_bytes: 100_000,
        pack_slots: 40,
        ..StoreOptions::default()
    };
    let store = open_with(&disk, options, "opens");
    let new = AtomicUsize::new(0);
    thread::scope(|scope| {
        for writer in 0..THREADS {
            let (store, new) = (&store, &new);
            scope.spawn(move || {
                // Two writers each have the same chunks.
                for n in 0..EACH {
                    let (hash, bytes) = noise(writer / 2 * EACH + n, 2000);
                    if store.put_chunk(&hash, &bytes).unwrap() == Put::New {
                        new.fetch_add(1, Ordering::Relaxed);
                    }
                    assert_eq!(store.chunk(&hash).unwrap().unwrap(), bytes);
                    let (other, bytes) = noise(writer / 2 * EACH + n / 2, 2000);
                    assert_eq!(store.chunk(&other).unwrap().unwrap(), bytes);
                    let kind = n as u8 % 4;
                    let (id, bytes) = node(kind, n);
                    store.put_node(kind, &id, &bytes).unwrap();
                    assert_eq!(store.node(&id).unwrap().unwrap(), bytes);
                    if n % 10 == writer {
                        store.sync().unwrap();
                    }
                }
                store.sync().unwrap();
            });
        }
    });
    assert_eq!(
        new.into_inner() as u64,
        THREADS / 2 * EACH,
        "each chunk was stored once"
    );
    disk.crash(99);
    let store = open_with(&disk, options, "again");
    for n in 0..THREADS / 2 * EACH {
        let (hash, bytes) = noise(n, 2000);
        assert_eq!(store.chunk(&hash).unwrap().unwrap(), bytes, "chunk {n}");
    }
}

#[test]
fn kept_chunks_are_never_missing_while_gc_moves_them() {
    const ROUNDS: usize = 60;
    let store = open_with(&MemDisk::new(), small_packs(), "opens");
    let kept: Vec<_> = (0..20).map(|n| text(n, 3000)).collect();
    for (n, (hash, bytes)) in kept.iter().enumerate() {
        store.put_chunk(hash, bytes).unwrap();
        for garbage in 0..4 {
            let (hash, bytes) = noise(n as u64 * 4 + garbage, 500);
            store.put_chunk(&hash, &bytes).unwrap();
        }
    }
    let done = AtomicBool::new(false);
    let mut moved = 0;
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    for (n, (hash, bytes)) in kept.iter().enumerate() {
                        assert_eq!(store.chunk(hash).unwrap().expect("is kept"), bytes, "{n}");
                    }
                }
            });
        }
        for round in 0..ROUNDS {
            let keep = |hash: &ChunkHash| kept.iter().any(|(kept, _)| kept == hash);
            moved += store.remove(&keep).unwrap().moved_bytes;
            // Garbage between the records just moved makes the next round move them again.
            for n in 0..30 {
                let (hash, bytes) = noise((1000 + round * 30 + n) as u64, 2000);
                store.put_chunk(&hash, &bytes).unwrap();
            }
        }
        done.store(true, Ordering::Relaxed);
    });
    assert!(moved > 0);
    assert_eq!(store.stats().quarantined, 0);
}

#[test]
fn a_put_during_gc_is_not_dropped_by_it() {
    let disk = MemDisk::new();
    let store = open_with(&disk, small_packs(), "opens");
    let chunks: Vec<_> = (0..60).map(|n| noise(n, 200)).collect();
    for (hash, bytes) in &chunks {
        store.put_chunk(hash, bytes).unwrap();
    }
    // Asked about each chunk, gc is told no; but before the answer somebody puts it again.
    let held = AtomicUsize::new(0);
    let refuse_and_put = |hash: &ChunkHash| {
        let (_, bytes) = chunks.iter().find(|(other, _)| other == hash).unwrap();
        if hash.as_bytes()[0].is_multiple_of(2) {
            let put = thread::scope(|scope| {
                scope
                    .spawn(|| store.put_chunk(hash, bytes).unwrap())
                    .join()
                    .unwrap()
            });
            held.fetch_add(usize::from(put == Put::Held), Ordering::Relaxed);
        }
        false
    };
    store.remove(&refuse_and_put).unwrap();
    assert!(held.into_inner() > 10);
    for (hash, bytes) in &chunks {
        let got = store.chunk(hash).unwrap();
        assert_eq!(got.is_some(), hash.as_bytes()[0].is_multiple_of(2));
        assert!(got.is_none_or(|got| got == bytes));
    }
    disk.crash(5);
    let store = open_with(&disk, small_packs(), "again");
    for (hash, bytes) in chunks
        .iter()
        .filter(|(hash, _)| hash.as_bytes()[0].is_multiple_of(2))
    {
        assert_eq!(store.chunk(hash).unwrap().unwrap(), bytes);
    }
}

#[test]
fn what_was_noted_as_held_during_gc_is_not_dropped_by_it() {
    let store = open_with(&MemDisk::new(), small_packs(), "opens");
    let chunks: Vec<_> = (0..60).map(|n| noise(n, 200)).collect();
    for (hash, bytes) in &chunks {
        store.put_chunk(hash, bytes).unwrap();
    }
    let is_noted = |hash: &ChunkHash| hash.as_bytes()[0].is_multiple_of(2);
    // Asked about each chunk, gc is told no; but before the answer a stream meets it and leaves it out.
    let refuse = |hash: &ChunkHash| {
        if is_noted(hash) {
            let noted = thread::scope(|scope| scope.spawn(|| store.note_held(hash)).join());
            assert!(noted.unwrap());
        }
        false
    };
    store.remove(&refuse).unwrap();
    for (hash, bytes) in &chunks {
        let got = store.chunk(hash).unwrap();
        assert_eq!(got.is_some(), is_noted(hash));
        assert!(got.is_none_or(|got| got == bytes));
        assert_eq!(store.note_held(hash), is_noted(hash));
    }
}
