//! Put, get, sync, reopen: on a real disk and on one in memory.

mod store_support;

use std::path::Path;
use std::sync::Arc;

use ccbt_xet::disk::{MemDisk, RealDisk};
use ccbt_xet::hash::{NodeId, Suite, XorbHash, chunk_hash};
use ccbt_xet::store::{Put, Store, StoreOptions, WriteError};
use ccbt_xet::xorb;
use store_support::{DIR, node, noise, open_with, small_packs, text};

#[test]
fn what_is_put_is_found_now_and_after_reopening() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a/store");
    let options = small_packs();
    let chunks: Vec<_> = (0..40).map(|n| noise(n, 1 + n as usize * 997)).collect();
    let texts: Vec<_> = (0..13).map(|n| text(n, 20_000 + n as usize)).collect();
    let nodes: Vec<_> = (0..12).map(|n| (n as u8, node(n as u8, n))).collect();
    let store = Store::open(&path, Arc::new(RealDisk), options).unwrap();
    for (hash, bytes) in chunks.iter().chain(&texts) {
        assert_eq!(store.put_chunk(hash, bytes).unwrap(), Put::New);
        assert_eq!(store.put_chunk(hash, bytes).unwrap(), Put::Held);
    }
    for (kind, (id, bytes)) in &nodes {
        assert_eq!(store.put_node(*kind, id, bytes).unwrap(), Put::New);
        assert_eq!(store.put_node(*kind, id, bytes).unwrap(), Put::Held);
    }
    let check = |store: &Store| {
        for (hash, bytes) in chunks.iter().chain(&texts) {
            assert!(store.contains(hash) && store.is_packed(hash));
            assert_eq!(store.chunk(hash).unwrap().unwrap(), bytes);
        }
        for (_, (id, bytes)) in &nodes {
            assert_eq!(store.node(id).unwrap().unwrap(), bytes);
        }
        let (absent, _) = noise(1000, 10);
        assert!(!store.contains(&absent) && store.chunk(&absent).unwrap().is_none());
        assert!(store.node(&NodeId::from_bytes([3; 32])).unwrap().is_none());
        let stats = store.stats();
        assert_eq!((stats.chunks, stats.nodes, stats.quarantined), (53, 12, 0));
        assert_eq!(stats.packs, 11 + 3);
    };
    check(&store);
    store.sync().unwrap();
    check(&store);
    drop(store);
    let store = Store::open(&path, Arc::new(RealDisk), options).unwrap();
    check(&store);
    let (hash, bytes) = noise(500, 5000);
    assert_eq!(store.put_chunk(&hash, &bytes).unwrap(), Put::New);
    drop(store);
    // Never synced, but no crash either.
    let store = Store::open(&path, Arc::new(RealDisk), options).unwrap();
    assert_eq!(store.chunk(&hash).unwrap().unwrap(), bytes);
}

#[test]
fn batches_store_everything_once() {
    let disk = MemDisk::new();
    let store = open_with(
        &disk,
        StoreOptions {
            pack_slots: 50,
            ..small_packs()
        },
        "opens",
    );
    let mut chunks: Vec<_> = (0..200).map(|n| noise(n, 500)).collect();
    chunks.extend((0..20).map(|n| text(n, 5000)));
    let refs: Vec<_> = chunks
        .iter()
        .map(|(hash, bytes)| (*hash, bytes.as_slice()))
        .collect();
    store.put_chunk(&refs[7].0, refs[7].1).unwrap();
    let before = disk.operations();
    let mut twice = refs.clone();
    twice.push(refs[3]);
    let put = store.put_chunks(&twice).unwrap();
    assert!(
        disk.operations() - before < 40,
        "{} operations",
        disk.operations() - before
    );
    for (n, put) in put.iter().enumerate() {
        let want = if n == 7 || n == 220 {
            Put::Held
        } else {
            Put::New
        };
        assert_eq!(*put, want, "chunk {n}");
    }
    store.sync().unwrap();
    disk.crash(1);
    let store = open_with(&disk, small_packs(), "opens");
    for (hash, bytes) in &chunks {
        assert_eq!(store.chunk(hash).unwrap().unwrap(), bytes);
    }
    assert_eq!(store.stats().chunks, 220);
}

#[test]
fn a_sealed_pack_is_a_xorb() {
    let disk = MemDisk::new();
    let store = open_with(&disk, small_packs(), "opens");
    let mixed = |n: u64| {
        if n > 2 { noise(n, 9000) } else { text(n, 9000) }
    };
    let chunks: Vec<_> = (0..6).map(mixed).collect();
    for (hash, bytes) in &chunks {
        store.put_chunk(hash, bytes).unwrap();
    }
    let pack = Path::new(DIR).join("chunks/00000001.xorb");
    let bytes = disk.contents(&pack).unwrap();
    let records = xorb::records(&bytes).map(|record| record.unwrap().decode().unwrap());
    assert!(records.eq(chunks[..5].iter().map(|(_, bytes)| bytes.clone())));
    let claimed: XorbHash = ccbt_xet::merkle::xorb_hash(
        chunks[..5]
            .iter()
            .map(|(hash, bytes)| (*hash, bytes.len() as u64)),
    );
    let contents = xorb::validate(Suite::Blake3, &bytes, &claimed).unwrap();
    assert!(contents.footer.is_some());
    assert!(
        bytes.len() < 4 * 9000,
        "{} bytes: the texts were not compressed",
        bytes.len()
    );
}

#[test]
fn full_packs_stay_within_a_xorb() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path(), Arc::new(RealDisk), StoreOptions::default()).unwrap();
    for n in 0..520 {
        let (hash, bytes) = noise(n, 131_072);
        store.put_chunk(&hash, &bytes).unwrap();
    }
    let sealed = std::fs::metadata(dir.path().join("chunks/00000001.xorb")).unwrap();
    let spare = xorb::MAX_XORB_LEN as u64 - sealed.len();
    assert!(spare < 131_200, "{spare} bytes unused");
    let (hash, bytes) = noise(519, 131_072);
    let mut part = vec![0; 1000];
    assert_eq!(
        store.read_range(&hash, 130_000, &mut part).unwrap(),
        Some(131_072)
    );
    assert_eq!(part, bytes[130_000..131_000]);
}

#[test]
fn ranges_are_the_bytes_of_their_chunk_however_it_is_stored() {
    let disk = MemDisk::new();
    let numbers: Vec<u8> = (0..12_000u32)
        .flat_map(|n| (n * 7919).to_le_bytes())
        .collect();
    let numbers = (chunk_hash(&numbers), numbers);
    let chunks = [
        text(2, 50_000),
        noise(1, 50_000),
        numbers,
        text(3, 131_072),
        noise(4, 9),
    ];
    for cache_bytes in [0, 4 << 20] {
        let options = StoreOptions {
            cache_bytes,
            ..small_packs()
        };
        let store = open_with(&disk, options, "opens");
        for (hash, bytes) in &chunks {
            store.put_chunk(hash, bytes).unwrap();
        }
        for reopened in [false, true] {
            let store = match reopened {
                true => &open_with(&disk, options, "again"),
                false => &store,
            };
            for (n, (hash, bytes)) in chunks.iter().cycle().take(40).enumerate() {
                let from = (n * 7919) % bytes.len();
                for len in [1, 100, 4096, bytes.len()] {
                    let mut buf = vec![0xAA; len];
                    let got = store.read_range(hash, from as u32, &mut buf).unwrap();
                    assert_eq!(got, Some(bytes.len() as u32));
                    match bytes.get(from..from + len) {
                        Some(expected) => assert!(buf == expected, "chunk {n} {from} {len}"),
                        None => assert!(buf.iter().all(|byte| *byte == 0xAA), "{n} {from} {len}"),
                    }
                }
                let mut whole = vec![0; bytes.len()];
                assert_eq!(
                    store.read_range(hash, 0, &mut whole).unwrap(),
                    Some(whole.len() as u32)
                );
                assert!(whole == *bytes);
                assert!(
                    store
                        .read_range(hash, u32::MAX, &mut [0; 9])
                        .unwrap()
                        .is_some()
                );
            }
            store.sync().unwrap();
        }
    }
    let store = open_with(&disk, small_packs(), "opens");
    assert_eq!(
        store.read_range(&noise(77, 5).0, 0, &mut [0; 2]).unwrap(),
        None
    );
}

#[test]
fn one_sync_serves_all_and_none_is_made_for_nothing() {
    let disk = MemDisk::new();
    let store = open_with(
        &disk,
        StoreOptions {
            pack_slots: 8192,
            ..small_packs()
        },
        "opens",
    );
    for n in 0..100 {
        let (hash, bytes) = noise(n, 3000);
        store.put_chunk(&hash, &bytes).unwrap();
    }
    let before = disk.syncs();
    store.sync().unwrap();
    assert_eq!(disk.syncs() - before, 1);
    store.sync().unwrap();
    assert_eq!(disk.syncs() - before, 1);
}

#[test]
fn impossible_lengths_are_refused() {
    let store = open_with(&MemDisk::new(), small_packs(), "opens");
    for len in [0, 131_073] {
        let (hash, bytes) = noise(1, len);
        let error = store.put_chunk(&hash, &bytes).unwrap_err();
        assert!(
            matches!(error, WriteError::Length { len: got } if got == len),
            "{error}"
        );
        let error = store
            .put_node(1, &NodeId::from_bytes([0; 32]), &bytes)
            .unwrap_err();
        assert!(matches!(error, WriteError::Length { .. }), "{error}");
    }
    let file = tempfile::NamedTempFile::new().unwrap();
    let error = Store::open(file.path(), Arc::new(RealDisk), small_packs()).unwrap_err();
    assert!(
        error.to_string().contains(file.path().to_str().unwrap()),
        "{error}"
    );
}
