//! What a gc must leave: everything somebody here can still read.

use std::time::Duration;

use ccbt_mount::VolumeError;
use ccbt_xet::chunk::chunks;
use ccbt_xet::disk::Disk;
use ccbt_xet::hash::chunk_hash;
use ccbt_xet::store::{Collect, Marks};

use super::rig::{READ, Rig, noise};

const LEN: usize = 300_000;

fn collect(rig: &Rig) {
    let mark = |marks: &mut Marks<'_>| {
        rig.folder.needed_chunks(&mut |hash| marks.chunk(hash))?;
        let nodes = rig.folder.needed_nodes(&[])?.expect("the tree is whole");
        nodes.iter().for_each(|node| marks.node(node));
        Ok::<_, VolumeError>(())
    };
    let how = Collect {
        wait: Duration::from_secs(60),
        grace: Duration::ZERO,
        dry_run: false,
    };
    rig.store.collect(mark, &how, &mut |_, _| true).unwrap();
}

/// Whether all chunks of a content are in packs; they are all there or none is.
fn is_packed(rig: &Rig, bytes: &[u8]) -> bool {
    let mut packed = chunks(bytes).map(|chunk| rig.store.is_packed(&chunk_hash(chunk)));
    let first = packed.next().unwrap();
    assert!(packed.all(|other| other == first), "some chunks are gone");
    first
}

#[test]
fn gc_leaves_what_is_named_open_or_not_yet_committed() {
    let rig = Rig::new(1);
    let [kept, edited, unlinked, gone] = [1, 2, 3, 4].map(|seed| noise(seed, LEN));
    rig.put("kept", &kept).unwrap();
    rig.put("edited", &edited).unwrap();
    rig.put("unlinked", &unlinked).unwrap();
    rig.put("gone", &gone).unwrap();
    rig.publish().unwrap();
    for bytes in [&kept, &edited, &unlinked, &gone] {
        assert!(is_packed(&rig, bytes));
    }
    let (ino, handle) = rig.open("unlinked", READ).unwrap();
    rig.unlink("unlinked").unwrap();
    rig.put("gone", b"something else").unwrap();
    rig.publish().unwrap();
    rig.patch("edited", 150_000, b"edit").unwrap();
    collect(&rig);
    assert!(is_packed(&rig, &kept));
    assert!(is_packed(&rig, &edited), "the change lies over it");
    assert!(is_packed(&rig, &unlinked), "it is open");
    assert!(!is_packed(&rig, &gone));
    assert_eq!(rig.read_handle(ino, handle).unwrap(), unlinked);
    let mut expected = edited;
    expected[150_000..150_004].copy_from_slice(b"edit");
    assert_eq!(rig.read("edited").unwrap(), expected);
    rig.publish().unwrap();
    collect(&rig);
    assert_eq!(rig.read("edited").unwrap(), expected);
    assert!(is_packed(&rig, &expected));
}

/// Bytes of node packs.
fn node_bytes(rig: &Rig) -> u64 {
    let packs = rig.disk.list(std::path::Path::new("/store/nodes")).unwrap();
    let packs = packs
        .iter()
        .filter(|path| path.extension().is_some_and(|e| e == "nodes"));
    packs
        .map(|path| rig.disk.contents(path).unwrap().len() as u64)
        .sum()
}

#[test]
fn nodes_do_not_pile_up_and_what_is_needed_stays() {
    let mut rig = Rig::new(1);
    // Long enough for a recipe that no entry has room for.
    let mut big = noise(9, 4_000_000);
    rig.put("big", &big).unwrap();
    for n in 0..400 {
        rig.put(&format!("file-{n}"), format!("content {n}").as_bytes())
            .unwrap();
    }
    rig.publish().unwrap();
    collect(&rig);
    let first = node_bytes(&rig);
    let (mut random, mut uncollected) = (7u64, 0);
    for round in 0..60 {
        random = random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695);
        let (file, at) = (random >> 33, (random >> 20) % 3_900_000);
        let name = format!("file-{}", file % 400);
        match round % 5 {
            4 => rig.unlink(&name).unwrap_or_default(),
            _ => rig.put(&name, format!("round {round}").as_bytes()).unwrap(),
        }
        rig.patch("big", at, b"an edit").unwrap();
        big[at as usize..at as usize + 7].copy_from_slice(b"an edit");
        rig.publish().unwrap();
        if round % 10 == 9 {
            uncollected = uncollected.max(node_bytes(&rig));
            let before = rig.tree();
            collect(&rig);
            assert_eq!(rig.tree(), before, "round {round}");
            rig = match round % 20 {
                9 => rig.killed(),
                _ => rig.crashed(round),
            };
            assert_eq!(rig.tree(), before, "round {round}, after a restart");
            assert!(rig.read("big").unwrap() == big, "round {round}");
        }
    }
    let last = node_bytes(&rig);
    assert!(
        uncollected > 2 * first,
        "nothing to collect: {first} then {uncollected}"
    );
    assert!(last < 2 * first, "{first} bytes of nodes became {last}");
}

#[test]
fn what_was_published_can_still_be_fetched_after_a_gc() {
    let (one, two, three) = (Rig::new(1), Rig::new(2), Rig::new(3));
    for n in 0..300 {
        one.put(&format!("file-{n}"), &noise(n, 3000)).unwrap();
    }
    let mut published = one.publish().unwrap();
    for n in 0..20 {
        one.put(&format!("file-{n}"), &noise(n + 1000, 3000))
            .unwrap();
        published = one.publish().unwrap();
        collect(&one);
    }
    // Merged here, so the tree of the state is no longer the one that was published.
    two.put("other", b"other").unwrap();
    two.peers.others.lock().push(one.store.clone());
    let other = two.publish().unwrap();
    one.peers.others.lock().push(two.store);
    assert!(one.merge(&other));
    collect(&one);
    three.peers.others.lock().push(one.store);
    assert!(three.merge(&published));
    assert_eq!(three.read("file-5").unwrap(), noise(1005, 3000));
    assert_eq!(three.read("file-200").unwrap(), noise(200, 3000));
}
