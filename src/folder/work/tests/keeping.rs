//! What is kept: looks for what is missing, what is only on loan from plain files, and what an evict has to spare.

use std::collections::HashSet;
use std::io;
use std::sync::Arc;
use std::sync::mpsc;
use std::time::Duration;

use bytes::Bytes;
use ccbt_mount::Volume;
use ccbt_xet::hash::chunk_hash;
use ccbt_xet::store::{BorrowedFiles, SourceId};

use super::rig::{ALL, READ, Rig, noise};
use crate::folder::state::Node;
use crate::folder::work::Lacking;

/// A plain file that does not change.
#[derive(Debug)]
struct Plain(Vec<u8>);

impl BorrowedFiles for Plain {
    fn read_at(&self, _: SourceId, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        let from = self.0.get(offset as usize..offset as usize + buf.len());
        buf.copy_from_slice(from.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn mismatch(&self, _: SourceId) {}
}

/// Lets `rig` borrow all chunks of `bytes`.
fn lend(rig: &Rig, bytes: &[u8]) -> SourceId {
    let source = SourceId::new(1, 1).unwrap();
    let store = Arc::downgrade(&rig.store);
    rig.folder.set_lenders(Arc::new(move |hash| {
        let sources = store.upgrade().unwrap().borrowed_from(hash);
        assert!(sources.iter().all(|of| *of == source));
        vec![Bytes::from_static(b"held f"); sources.len()]
    }));
    rig.store
        .set_borrow_reader(1, Arc::new(Plain(bytes.to_vec())));
    let mut at = 0;
    let ranges: Vec<_> = ccbt_xet::chunk::chunks(bytes)
        .map(|chunk| {
            let range = (chunk_hash(chunk), at, chunk.len() as u32);
            at += chunk.len() as u64;
            range
        })
        .collect();
    rig.store.borrow(source, &ranges);
    source
}

fn look(rig: &Rig, whole: Option<&Lacking>, pack: bool) -> Lacking {
    let whole = whole.map(|look| look.root);
    rig.folder.lacking(whole, ALL, pack).unwrap()
}

/// One folder, and another that has merged all of its nodes and none of its chunks.
fn merged(bytes: &[u8]) -> (Rig, Rig) {
    let (a, b) = (Rig::new(1), Rig::new(2));
    *b.peers.others.lock() = vec![a.store.clone()];
    a.put("f", bytes).unwrap();
    b.merge(&a.publish().unwrap());
    let nodes = look(&b, None, false).missing.nodes;
    b.peers.copy_nodes(&nodes).unwrap();
    (a, b)
}

fn content(rig: &Rig, name: &str) -> Bytes {
    match rig.folder.lookup_path(&[name.as_bytes()]).unwrap().node {
        Node::File(file) => Bytes::copy_from_slice(&file.version.content.0),
        Node::Dir(_) => panic!("{name} is a directory"),
    }
}

#[test]
fn what_is_only_on_loan_is_not_kept_before_it_is_stored() {
    let bytes = noise(7, 1_000_000);
    let (_a, b) = merged(&bytes);
    let source = lend(&b, &bytes);
    let found = look(&b, None, false);
    assert!(found.on_loan && !found.whole, "{found:?}");
    assert!(found.missing.chunks.is_empty(), "{found:?}");
    let found = look(&b, None, true);
    assert!(found.whole && !found.on_loan, "{found:?}");
    b.peers.others.lock().clear();
    b.store.unborrow(source);
    assert!(b.read("f").unwrap() == bytes);
}

#[test]
fn a_plain_file_with_a_base_record_keeps_what_it_holds() {
    let bytes = noise(7, 1_000_000);
    let (_a, b) = merged(&bytes);
    lend(&b, &bytes);
    let row = content(&b, "f");
    let key = Bytes::from_static(b"held f");
    b.folder
        .update(|txn| txn.set_row(key.clone(), Some(row.clone())))
        .unwrap();
    let before = b.store.stats().chunks;
    let found = look(&b, None, true);
    assert!(found.whole && !found.on_loan, "{found:?}");
    assert_eq!(b.store.stats().chunks, before, "nothing is copied");
    let other = Bytes::from_static(b"another content");
    b.folder
        .update(|txn| txn.set_row(key.clone(), Some(other.clone())))
        .unwrap();
    assert!(look(&b, None, false).on_loan);
}

#[test]
fn a_look_after_a_whole_one_is_at_what_changed() {
    let bytes = noise(7, 1_000_000);
    let (a, b) = merged(&bytes);
    assert!(b.read("f").unwrap() == bytes);
    let whole = look(&b, None, false);
    assert!(whole.whole);
    // Without telling anybody, everything is given up.
    b.store.remove(&|_| false).unwrap();
    a.put("g", &noise(8, 300_000)).unwrap();
    b.merge(&a.publish().unwrap());
    let found = look(&b, Some(&whole), false);
    assert!(!found.whole);
    b.peers.copy_nodes(&found.missing.nodes).unwrap();
    let (new, all) = (look(&b, Some(&whole), false), look(&b, None, false));
    assert!((1..20).contains(&new.missing.chunks.len()), "{new:?}");
    assert!(all.missing.chunks.len() > new.missing.chunks.len());
    b.put("mine", b"not published").unwrap();
    assert!(!look(&b, None, false).whole);
}

#[test]
fn of_all_that_is_missing_what_was_named_is_found_once() {
    let bytes = noise(7, 1_000_000);
    let (a, b) = merged(&bytes);
    a.put("g", &bytes).unwrap();
    b.merge(&a.publish().unwrap());
    let all = b.folder.missing_below(&[], usize::MAX).unwrap().chunks;
    let named: HashSet<_> = all.iter().skip(3).take(2).map(|want| want.hash).collect();
    let among = |chunks| b.folder.missing_among(chunks, &HashSet::new()).unwrap();
    let found: Vec<_> = among(&named).chunks.iter().map(|want| want.hash).collect();
    assert_eq!(found, [all[3].hash, all[4].hash]);
    assert!(b.read("f").unwrap() == bytes);
    assert!(among(&named).is_empty(), "they are here now");
}

#[test]
fn a_loss_shows() {
    let bytes = noise(7, 1_000_000);
    let (_a, b) = merged(&bytes);
    let source = lend(&b, &bytes);
    let before = b.store.losses();
    assert!(b.read("f").unwrap() == bytes);
    assert_eq!(b.store.losses(), before);
    b.store.unborrow(source);
    assert!(b.store.losses() > before);
}

#[test]
fn a_folder_held_still_commits_nothing() {
    let rig = Rig::new(1);
    rig.put("f", &noise(3, 100_000)).unwrap();
    let held = rig.folder.hold();
    assert_eq!(held.settled_root(), None, "what is new is in no tree");
    let (tx, rx) = mpsc::channel();
    std::thread::scope(|scope| {
        let rig = &rig;
        scope.spawn(move || {
            rig.publish().unwrap();
            tx.send(()).unwrap();
        });
        assert!(rx.recv_timeout(Duration::from_millis(200)).is_err());
        drop(held);
        rx.recv_timeout(Duration::from_secs(60)).unwrap();
    });
    assert_eq!(rig.folder.hold().settled_root(), Some(rig.folder.root().0));
}

#[test]
fn what_some_version_or_handle_needs_is_spared() {
    let rig = Rig::new(1);
    let (old, new) = (noise(3, 300_000), noise(4, 300_000));
    rig.put("f", &old).unwrap();
    rig.publish().unwrap();
    let (ino, handle) = rig.open("f", READ).unwrap();
    rig.put("g", &new).unwrap();
    rig.rename("g", "f").unwrap();
    rig.publish().unwrap();
    let chunks =
        |bytes: &[u8]| -> HashSet<_> { ccbt_xet::chunk::chunks(bytes).map(chunk_hash).collect() };
    let unneeded = chunk_hash(b"nobody's");
    let mut spare: HashSet<_> = chunks(&old).union(&chunks(&new)).copied().collect();
    spare.insert(unneeded);
    let opened = {
        let mut spare = spare.clone();
        rig.folder.hold().spare_opened(&mut spare).unwrap();
        spare
    };
    assert!(opened.is_disjoint(&chunks(&old)), "an open handle needs it");
    assert!(opened.is_superset(&chunks(&new)), "nothing has it open");
    rig.folder.hold().spare(&mut spare).unwrap();
    assert_eq!(spare, HashSet::from([unneeded]));
    rig.store.remove(&|hash| !spare.contains(hash)).unwrap();
    assert!(rig.read_handle(ino, handle).unwrap() == old);
    rig.volume.release(ino, handle);
    assert!(rig.read("f").unwrap() == new);
}
