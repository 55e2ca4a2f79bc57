//! Damaged, cut and missing files, full disks, failing syncs, a lying index: the store names what
//! it lost, keeps the rest, and never serves wrong bytes.

mod store_support;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use ccbt_xet::disk::{Disk, MemDisk, OpenMode};
use ccbt_xet::hash::{ChunkHash, Suite};
use ccbt_xet::index::{Candidates, ChunkIndex, PackId, Place};
use ccbt_xet::merkle::xorb_hash;
use ccbt_xet::store::{Put, Store, StoreOptions, VerifyPosition, WriteError};
use ccbt_xet::xorb;
use store_support::{DIR, node, noise, open_with, small_packs, text};

type Chunks = Vec<(ChunkHash, Vec<u8>)>;

/// Seven chunks of 1000 bytes: five in the sealed pack 1, two in the open pack 2. All synced.
fn filled(disk: &MemDisk) -> Chunks {
    let chunks: Chunks = (0..7).map(|n| noise(n, 1000)).collect();
    let store = open_with(disk, small_packs(), "filling");
    for (hash, bytes) in &chunks {
        store.put_chunk(hash, bytes).expect("put");
    }
    store.sync().expect("sync");
    chunks
}

fn path(name: &str) -> PathBuf {
    Path::new(DIR).join("chunks").join(name)
}

/// The chunks that are missing; all others must be right.
fn missing(store: &Store, chunks: &Chunks) -> Vec<usize> {
    let mut missing = Vec::new();
    for (n, (hash, bytes)) in chunks.iter().enumerate() {
        match store.chunk(hash).expect("reads") {
            Some(got) => assert_eq!(got, bytes, "chunk {n}"),
            None => missing.push(n),
        }
    }
    missing
}

/// After damage that loses `lost`: they are named, can be put again, and gc cleans up.
fn check_damage(disk: &MemDisk, chunks: &Chunks, lost: &[usize], context: &str) {
    let store = open_with(disk, small_packs(), context);
    assert_eq!(missing(&store, chunks), lost, "{context}");
    let names: Vec<ChunkHash> = lost.iter().map(|n| chunks[*n].0).collect();
    assert_eq!(store.take_quarantined().0, names, "{context}");
    assert_eq!(store.stats().quarantined as usize, lost.len(), "{context}");
    for (n, (hash, bytes)) in chunks.iter().enumerate() {
        let want = if lost.contains(&n) {
            Put::New
        } else {
            Put::Held
        };
        assert_eq!(
            store.put_chunk(hash, bytes).expect("put"),
            want,
            "{context}: chunk {n}"
        );
    }
    store.sync().expect("sync");
    disk.crash(1);
    let store = open_with(disk, small_packs(), context);
    assert_eq!(missing(&store, chunks), [0; 0], "{context}");
    store.remove(&|_| true).expect("gc");
    assert_eq!(missing(&store, chunks), [0; 0], "{context}");
    disk.crash(2);
    let store = open_with(disk, small_packs(), context);
    assert_eq!(missing(&store, chunks), [0; 0], "{context}");
    assert_eq!(store.stats().quarantined, 0, "{context}");
}

#[test]
fn damaged_records_are_quarantined_and_named() {
    let record = 1008;
    for (file, slot, lost) in [("00000001.xorb", 2, 2), ("00000002.xorb", 0, 5)] {
        for at in [0, 1, 4, 8, 500, 1007] {
            let disk = MemDisk::new();
            let chunks = filled(&disk);
            let byte = disk.contents(&path(file)).expect("is there")[slot * record + at];
            disk.damage(&path(file), slot * record + at, &[byte ^ 0x55]);
            check_damage(
                &disk,
                &chunks,
                &[lost],
                &format!("{file}, byte {at} of slot {slot}"),
            );
        }
    }
}

#[test]
fn a_cut_pack_loses_only_what_was_cut() {
    let disk = MemDisk::new();
    let chunks = filled(&disk);
    let file = disk
        .open(&path("00000002.xorb"), OpenMode::Write)
        .expect("is there");
    file.set_len(1500).expect("cut");
    file.sync().expect("sync");
    check_damage(&disk, &chunks, &[6], "open pack cut in its last record");
}

#[test]
fn without_footer_or_journal_records_still_name_themselves() {
    for damaged in [5 * 1008, 5 * 1008 + 200] {
        let disk = MemDisk::new();
        let chunks = filled(&disk);
        let all = disk
            .contents(&path("00000001.xorb"))
            .expect("is there")
            .len();
        disk.damage(&path("00000001.xorb"), damaged, &vec![0xEE; all - damaged]);
        check_damage(
            &disk,
            &chunks,
            &[],
            &format!("footer damaged from {damaged}"),
        );
    }
    let disk = MemDisk::new();
    let chunks = filled(&disk);
    disk.remove(&path("00000002.journal")).expect("is there");
    check_damage(&disk, &chunks, &[], "journal lost");
    let disk = MemDisk::new();
    let chunks = filled(&disk);
    disk.damage(&path("00000002.journal"), 0, &[0xFF; 30]);
    check_damage(&disk, &chunks, &[], "journal damaged");
}

#[test]
fn damage_while_open_is_found_by_the_first_read_only() {
    let disk = MemDisk::new();
    let chunks = filled(&disk);
    let store = open_with(&disk, small_packs(), "opens");
    assert!(store.contains(&chunks[1].0));
    disk.damage(&path("00000001.xorb"), 1008 + 100, &[0; 100]);
    assert!(store.chunk(&chunks[1].0).expect("reads").is_none());
    assert!(!store.contains(&chunks[1].0));
    let mut buf = [0; 10];
    assert!(
        store
            .read_range(&chunks[1].0, 0, &mut buf)
            .expect("reads")
            .is_none()
    );
}

#[test]
fn damaged_nodes_are_named_too() {
    let disk = MemDisk::new();
    let nodes: Vec<_> = (0..7).map(|n| node(n as u8, n)).collect();
    let store = open_with(&disk, small_packs(), "filling");
    for (kind, (id, bytes)) in nodes.iter().enumerate() {
        store.put_node(kind as u8, id, bytes).expect("put");
    }
    store.sync().expect("sync");
    let pack = Path::new(DIR).join("nodes/00000001.nodes");
    // The kind is part of what a node's id vouches for.
    disk.damage(&pack, 0, &[9]);
    let store = open_with(&disk, small_packs(), "again");
    assert!(store.node(&nodes[0].0).expect("reads").is_none());
    assert_eq!(
        store.node(&nodes[1].0).expect("reads").expect("held"),
        nodes[1].1
    );
    assert_eq!(store.take_quarantined().1, [nodes[0].0]);
    // A footer whose checksum is wrong is not believed.
    let len = disk.contents(&pack).expect("is there").len();
    disk.damage(&pack, len - 30, &[0x77; 3]);
    let store = open_with(&disk, small_packs(), "footer damaged");
    for (id, bytes) in &nodes[1..] {
        assert_eq!(store.node(id).expect("reads").expect("held"), bytes);
    }
}

#[test]
fn no_damage_makes_opening_fail_or_serves_wrong_bytes() {
    for seed in 0..4000u64 {
        let disk = MemDisk::new();
        let chunks = filled(&disk);
        let files = disk.list(&Path::new(DIR).join("chunks")).expect("lists");
        let random = *blake3::hash(&seed.to_le_bytes()).as_bytes();
        for hit in random.as_chunks::<8>().0.iter().take(1 + seed as usize % 4) {
            let file = &files[usize::from(hit[0]) % files.len()];
            let len = disk.contents(file).expect("is there").len().max(1);
            let at = usize::from(u16::from_le_bytes([hit[1], hit[2]])) % len;
            disk.damage(file, at, &vec![hit[3]; 1 + usize::from(hit[4])]);
        }
        let store = open_with(&disk, small_packs(), &format!("seed {seed}"));
        missing(&store, &chunks);
        for (hash, bytes) in &chunks {
            store.put_chunk(hash, bytes).expect("put");
        }
        missing(&store, &chunks);
        store.remove(&|_| true).expect("gc");
        for (hash, bytes) in &chunks {
            store.put_chunk(hash, bytes).expect("put");
        }
        store.sync().expect("sync");
        disk.crash(seed);
        let store = open_with(&disk, small_packs(), &format!("seed {seed}, repaired"));
        assert_eq!(missing(&store, &chunks), [0; 0], "seed {seed}");
    }
}

#[test]
fn a_full_disk_costs_only_the_put() {
    for spare in (0..6000).step_by(13) {
        let disk = MemDisk::new();
        let mut chunks = filled(&disk);
        let store = open_with(&disk, small_packs(), "opens");
        disk.limit_space(Some(spare));
        let more: Chunks = (100..108).map(|n| noise(n, 900)).collect();
        let mut accepted = 0;
        for (hash, bytes) in &more {
            match store.put_chunk(hash, bytes) {
                Ok(_) => accepted += 1,
                Err(WriteError::NoSpace { .. }) => break,
                Err(other) => panic!("{spare} bytes spare: {other}"),
            }
        }
        assert!(accepted < more.len(), "{spare} bytes spare");
        assert!(!store.contains(&more[accepted].0), "{spare} bytes spare");
        store.sync().expect("the rest can still be synced");
        chunks.extend_from_slice(&more[..accepted]);
        assert_eq!(missing(&store, &chunks), [0; 0], "{spare} bytes spare");
        disk.limit_space(None);
        for (hash, bytes) in &more {
            store.put_chunk(hash, bytes).expect("there is space again");
        }
        store.sync().expect("sync");
        chunks.extend_from_slice(&more[accepted..]);
        drop(store);
        disk.crash(spare);
        let store = open_with(&disk, small_packs(), "after the crash");
        assert_eq!(missing(&store, &chunks), [0; 0], "{spare} bytes spare");
        assert_eq!(store.stats().quarantined, 0, "{spare} bytes spare");
    }
}

#[test]
fn leftovers_of_a_failed_write_do_not_end_up_in_a_sealed_pack() {
    let disk = MemDisk::new();
    let mut chunks = filled(&disk);
    let store = open_with(&disk, small_packs(), "opens");
    disk.limit_space(Some(40_000));
    let (large, bytes) = noise(50, 50_000);
    assert!(matches!(
        store.put_chunk(&large, &bytes),
        Err(WriteError::NoSpace { .. })
    ));
    chunks.extend((60..64).map(|n| noise(n, 10)));
    for (hash, bytes) in &chunks[7..] {
        store.put_chunk(hash, bytes).expect("a small one fits");
    }
    store.sync().expect("sync");
    let sizes = chunks[5..10]
        .iter()
        .map(|(hash, bytes)| (*hash, bytes.len() as u64));
    let sealed = disk.contents(&path("00000002.xorb")).expect("is there");
    let contents = xorb::validate(Suite::Blake3, &sealed, &xorb_hash(sizes)).expect("a whole xorb");
    assert!(contents.footer.is_some());
}

#[test]
fn what_is_put_after_damage_was_seen_is_safe_from_it() {
    for seed in 0..40 {
        let disk = MemDisk::new();
        let mut chunks = filled(&disk);
        let store = open_with(&disk, small_packs(), "opens");
        disk.damage(&path("00000002.xorb"), 0, &[0xFF; 4]);
        assert_eq!(missing(&store, &chunks), [5]);
        chunks.extend((60..62).map(|n| noise(n, 1000)));
        for (hash, bytes) in &chunks[7..] {
            store.put_chunk(hash, bytes).expect("put");
        }
        store.sync().expect("sync");
        disk.crash(seed);
        disk.damage(&path("00000002.journal"), 0, &[0; 4]);
        let store = open_with(&disk, small_packs(), "again");
        let lost = missing(&store, &chunks);
        assert!(
            lost.iter().all(|n| [5, 6].contains(n)),
            "seed {seed}: {lost:?}"
        );
    }
}

#[test]
fn gc_clears_damage_out_of_the_open_pack() {
    let disk = MemDisk::new();
    let chunks = filled(&disk);
    let store = open_with(&disk, small_packs(), "opens");
    disk.damage(&path("00000002.xorb"), 500, &[0xFF; 4]);
    assert_eq!(missing(&store, &chunks), [5]);
    store.remove(&|_| true).expect("gc");
    let store = open_with(&disk, small_packs(), "again");
    assert_eq!(missing(&store, &chunks), [5]);
    assert_eq!(store.stats().quarantined, 0, "it is only missing now");
}

#[test]
fn a_full_disk_then_a_crash_keeps_what_was_synced() {
    for spare in (0..4000).step_by(37) {
        let disk = MemDisk::new();
        let chunks = filled(&disk);
        let store = open_with(&disk, small_packs(), "opens");
        disk.limit_space(Some(spare));
        for n in 100..110 {
            let (hash, bytes) = noise(n, 900);
            let _full = store.put_chunk(&hash, &bytes);
        }
        disk.crash(spare);
        disk.limit_space(None);
        let store = open_with(&disk, small_packs(), "after the crash");
        assert_eq!(missing(&store, &chunks), [0; 0], "{spare} bytes spare");
    }
}

#[test]
fn after_a_failed_sync_nothing_is_called_durable() {
    let disk = MemDisk::new();
    let chunks = filled(&disk);
    let store = open_with(&disk, small_packs(), "opens");
    let (hash, bytes) = noise(50, 100);
    store.put_chunk(&hash, &bytes).expect("put");
    disk.fail_syncs(1);
    assert!(matches!(store.sync(), Err(WriteError::Io { .. })));
    assert!(matches!(store.sync(), Err(WriteError::SyncFailed)));
    let (other, other_bytes) = noise(51, 100);
    assert!(matches!(
        store.put_chunk(&other, &other_bytes),
        Err(WriteError::SyncFailed)
    ));
    assert_eq!(store.chunk(&hash).expect("reads").expect("held"), bytes);
    drop(store);
    let store = open_with(&disk, small_packs(), "again");
    store.put_chunk(&other, &other_bytes).expect("put");
    store.sync().expect("sync");
    assert_eq!(missing(&store, &chunks), [0; 0]);
}

/// Says every chunk may be in places that do not exist or hold something else.
#[derive(Debug, Default)]
struct LyingIndex;

impl ChunkIndex for LyingIndex {
    fn candidates(&self, _: &[u8; 32]) -> Candidates {
        let mut places = Candidates::default();
        for (pack, slot) in [(1, 0), (2, 1), (1, 8000), (77, 3), (u32::MAX, u16::MAX)] {
            places.push(Place {
                pack: PackId(pack),
                slot,
            });
        }
        places
    }

    fn insert(&self, _: &[u8; 32], _: Place) {}

    fn remove(&self, _: &[u8; 32], _: Place) -> bool {
        true
    }

    fn retain_packs(&self, _: &dyn Fn(PackId) -> bool) {}

    fn parts(&self) -> usize {
        0
    }

    fn save_part(&self, _: usize) -> Vec<u8> {
        Vec::new()
    }

    fn load_part(&self, _: usize, _: &[u8]) -> bool {
        false
    }

    fn len(&self) -> usize {
        0
    }

    fn memory_bytes(&self) -> usize {
        0
    }
}

#[test]
fn a_lying_index_costs_misses_only() {
    let disk = MemDisk::new();
    let chunks = filled(&disk);
    let open = |index: Box<dyn ChunkIndex>| {
        let (dir, disk) = (Path::new(DIR), Arc::new(disk.clone()));
        Store::open_with_index(dir, disk, small_packs(), index).expect("opens")
    };
    let store = open(Box::new(LyingIndex));
    assert_eq!(missing(&store, &chunks), [1, 2, 3, 4, 5]);
    assert_eq!(
        store.put_chunk(&chunks[0].0, &chunks[0].1).expect("put"),
        Put::Held
    );
    assert_eq!(
        store.put_chunk(&chunks[1].0, &chunks[1].1).expect("put"),
        Put::New
    );
    assert_eq!(store.stats().quarantined, 0);
    drop(store);
    let store = open(Box::<ccbt_xet::index::MapIndex>::default());
    assert_eq!(missing(&store, &chunks), [0; 0]);
}

#[test]
fn compressed_records_survive_gc() {
    let disk = MemDisk::new();
    let options = StoreOptions {
        pack_slots: 4,
        ..small_packs()
    };
    let store = open_with(&disk, options, "opens");
    let chunks: Chunks = (0..16).map(|n| text(n, 4000)).collect();
    for (hash, bytes) in &chunks {
        store.put_chunk(hash, bytes).expect("put");
    }
    let keep: Chunks = chunks.iter().step_by(4).cloned().collect();
    let reclaimed = store
        .remove(&|hash| keep.iter().any(|(kept, _)| kept == hash))
        .expect("gc");
    assert!(reclaimed.moved_bytes < 2000, "{reclaimed:?}");
    assert_eq!(missing(&store, &keep), [0; 0]);
    assert_eq!(store.stats().chunks, 4);
    disk.crash(3);
    assert_eq!(missing(&open_with(&disk, options, "again"), &keep), [0; 0]);
}

#[test]
fn what_the_drive_cannot_read_is_missing_and_the_rest_is_not() {
    let disk = MemDisk::new();
    let chunks = filled(&disk);
    let store = open_with(&disk, small_packs(), "opens");
    // In the middle of slot 1 of the sealed pack, and of slot 1 of the open one.
    disk.fail_reads(&path("00000001.xorb"), 1500..1501);
    disk.fail_reads(&path("00000002.xorb"), 1500..1501);
    assert_eq!(missing(&store, &chunks), [1, 6]);
    let names = [chunks[1].0, chunks[6].0];
    assert_eq!(store.take_quarantined().0, names);
    for hash in &names {
        assert!(!store.contains(hash));
    }

    // A gc moves the rest elsewhere, and leaves the pack: the drive may read it another day.
    store.remove(&|_| true).expect("gc");
    assert_eq!(missing(&store, &chunks), [1, 6]);
    assert!(disk.contents(&path("00000001.xorb")).is_some());
    disk.kill();
    disk.heal();
    let store = open_with(&disk, small_packs(), "another day");
    assert_eq!(missing(&store, &chunks), [0; 0]);
}

#[test]
fn a_pack_the_drive_cannot_read_goes_once_its_records_are_elsewhere() {
    let disk = MemDisk::new();
    let chunks = filled(&disk);
    let store = open_with(&disk, small_packs(), "opens");
    disk.fail_reads(&path("00000001.xorb"), 1500..3500);
    let found = store.verify(&mut |_, _| true).expect("goes on");
    assert_eq!((found.records, found.damaged), (7, 3));
    for hash in store.take_quarantined().0 {
        let (_, bytes) = chunks.iter().find(|chunk| chunk.0 == hash).expect("known");
        store.put_chunk(&hash, bytes).expect("put");
    }
    store.remove(&|_| true).expect("gc");
    assert!(disk.contents(&path("00000001.xorb")).is_none());
    assert_eq!(missing(&store, &chunks), [0; 0]);
    disk.crash(8);
    let store = open_with(&disk, small_packs(), "again");
    assert_eq!(missing(&store, &chunks), [0; 0]);
    assert_eq!(store.stats().quarantined, 0);
}

#[test]
fn a_scrub_goes_on_behind_what_the_drive_cannot_read() {
    let disk = MemDisk::new();
    let chunks: Chunks = (0..23).map(|n| noise(n, 1000)).collect();
    let store = open_with(&disk, small_packs(), "opens");
    for (hash, bytes) in &chunks {
        store.put_chunk(hash, bytes).expect("put");
    }
    store.sync().expect("sync");
    disk.fail_reads(&path("00000002.xorb"), 0..1_000_000);
    let (mut at, mut packs, mut damaged) = (VerifyPosition::default(), 0, 0);
    while let Some((next, found)) = store.verify_next(at, &mut |_, _| true) {
        (at, packs, damaged) = (next, packs + 1, damaged + found.damaged);
    }
    assert_eq!((packs, damaged), (5, 5));
    let lost: Vec<usize> = (5..10).collect();
    assert_eq!(missing(&store, &chunks), lost);
    store.remove(&|_| true).expect("gc");
    assert_eq!(missing(&store, &chunks), lost);
    disk.kill();
    disk.heal();
    let store = open_with(&disk, small_packs(), "another day");
    assert_eq!(missing(&store, &chunks), [0; 0]);
}

#[test]
fn where_only_the_footer_cannot_be_read_records_name_themselves() {
    let disk = MemDisk::new();
    let chunks = filled(&disk);
    let footer = 5 * 1008;
    let store = open_with(&disk, small_packs(), "opens");
    disk.fail_reads(&path("00000001.xorb"), footer..1_000_000);
    assert_eq!(missing(&store, &chunks), [0; 0]);
    store.remove(&|_| true).expect("gc");
    assert!(disk.contents(&path("00000001.xorb")).is_none());
    assert_eq!(missing(&store, &chunks), [0; 0]);

    // The same found at start, with a record that cannot be read either: nobody can tell its name.
    let disk = MemDisk::new();
    let chunks = filled(&disk);
    disk.fail_reads(&path("00000001.xorb"), footer..1_000_000);
    disk.fail_reads(&path("00000001.xorb"), 1500..1501);
    let store = open_with(&disk, small_packs(), "opens");
    assert_eq!(missing(&store, &chunks), [1]);
    assert_eq!(store.take_quarantined().0, []);
    assert_eq!((store.take_nameless(), store.take_nameless()), (1, 0));
    store.put_chunk(&chunks[1].0, &chunks[1].1).expect("put");
    assert_eq!(missing(&store, &chunks), [0; 0]);
}

/// What is stored as it is names itself whatever its bytes are, so damage in it does not show where the footer is damaged too.
#[test]
fn a_record_that_changed_under_a_damaged_footer_is_named() {
    for lost in [0, 3, 4] {
        let disk = MemDisk::new();
        let chunks = filled(&disk);
        let store = open_with(&disk, small_packs(), "opens");
        let losses = store.losses();
        disk.damage(&path("00000001.xorb"), lost * 1008 + 77, &[0xA5; 8]);
        // The magic of the second section: the names are still there.
        disk.damage(&path("00000001.xorb"), 5 * 1008 + 40, b"?");
        let found = store.verify(&mut |_, _| true).expect("reads");
        assert_eq!((found.records, found.damaged), (6, 1));
        assert_eq!(store.take_quarantined().0, [chunks[lost].0]);
        assert_eq!(store.take_nameless(), 0);
        assert!(store.losses() > losses);
        assert_eq!(missing(&store, &chunks), [lost]);
        store
            .put_chunk(&chunks[lost].0, &chunks[lost].1)
            .expect("put");
        assert_eq!(store.remove(&|_| true).expect("gc").moved_bytes, 4 * 1008);
        assert_eq!(missing(&store, &chunks), [0; 0]);
    }
    // Nobody can tell the name of one whose name is damaged too; but that something may be missing is told.
    let disk = MemDisk::new();
    let chunks = filled(&disk);
    let store = open_with(&disk, small_packs(), "opens");
    let losses = store.losses();
    disk.damage(&path("00000001.xorb"), 3 * 1008 + 77, &[0xA5; 8]);
    disk.damage(&path("00000001.xorb"), 5 * 1008 + 52 + 3 * 32, &[0xA5; 8]);
    store.verify(&mut |_, _| true).expect("reads");
    assert!(store.losses() > losses);
    assert_eq!(missing(&store, &chunks), [3]);
}

/// A record that was good when it was last read may have been damaged since. Nobody else has what is moved.
#[test]
fn a_record_is_hashed_once_more_before_it_is_moved() {
    for make in [noise as fn(u64, usize) -> (ChunkHash, Vec<u8>), text] {
        let disk = MemDisk::new();
        let store = open_with(&disk, small_packs(), "opens");
        let chunks: Chunks = (0..7).map(|n| make(n, 1000)).collect();
        for (hash, bytes) in &chunks {
            store.put_chunk(hash, bytes).expect("put");
        }
        store.sync().expect("sync");
        assert_eq!(missing(&store, &chunks), [0; 0]);
        // The last bytes of the second record: of its content, or of the frame around it.
        let pack = disk.contents(&path("00000001.xorb")).expect("is there");
        let payload =
            |at: usize| u32::from_le_bytes([pack[at + 1], pack[at + 2], pack[at + 3], 0]) as usize;
        let first = 8 + payload(0);
        let end = first + 8 + payload(first);
        disk.damage(&path("00000001.xorb"), end - 12, &[pack[end - 12] ^ 1]);
        let keep = |hash: &ChunkHash| chunks[1..3].iter().any(|chunk| chunk.0 == *hash);
        store.remove(&keep).expect("gc");
        assert!(disk.contents(&path("00000001.xorb")).is_none());
        assert_eq!(store.take_quarantined().0, [chunks[1].0]);
        assert_eq!(store.chunk(&chunks[1].0).expect("reads"), None);
        assert_eq!(
            store.chunk(&chunks[2].0).expect("reads").expect("held"),
            chunks[2].1
        );
    }
}
