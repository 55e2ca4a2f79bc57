//! What a gc must leave: everything somebody here can still read.

use std::time::Duration;

use ccbt_mount::VolumeError;
use ccbt_xet::chunk::chunks;
use ccbt_xet::hash::{ChunkHash, chunk_hash};

use super::rig::{READ, Rig, noise};

const LEN: usize = 300_000;

fn collect(rig: &Rig) {
    let mark = || {
        let needed = rig.folder.needed_chunks()?;
        Ok::<_, VolumeError>(move |hash: &ChunkHash| needed.contains(hash))
    };
    let collected = rig.store.collect(mark, Duration::from_secs(60), false);
    collected.unwrap();
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
