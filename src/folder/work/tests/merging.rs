//! Folders that merge each other's snapshots.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use ccbt_mount::{Ino, Notifier, RenameMode, Volume, VolumeError};
use parking_lot::Mutex;

use super::random::{Dice, Step, run, step};
use super::rig::{ALL, READ, Rig, WRITE, noise};
use crate::folder::snapshot::Snapshot;
use crate::folder::state::Fid;
use crate::folder::work::Priority;

/// Two folders that can fetch from each other.
fn pair() -> (Rig, Rig) {
    let (a, b) = (Rig::new(1), Rig::new(2));
    *a.peers.others.lock() = vec![b.store.clone()];
    *b.peers.others.lock() = vec![a.store.clone()];
    (a, b)
}

fn assert_same(a: &Rig, b: &Rig, what: &str) {
    let (one, two) = (a.tree(), b.tree());
    let names =
        |tree: &std::collections::BTreeMap<String, _>| tree.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(&one), names(&two), "{what}");
    assert!(one == two, "{what}: contents differ");
}

#[test]
fn a_lazy_folder_shows_names_at_once_and_fetches_content_when_it_is_read() {
    let (a, b) = pair();
    let big = noise(3, 4_000_000);
    a.mkdir("d").unwrap();
    a.put("d/big", &big).unwrap();
    let publication = a.publish().unwrap();
    assert!(b.merge(&publication));
    assert!(!b.merge(&publication), "twice is once");
    assert_eq!(b.find("d/big").unwrap().size, 4_000_000);
    assert!(b.peers.asked.lock().is_empty(), "names need no chunk");
    let ino = b.find("d/big").unwrap().ino;
    let state = |b: &Rig| b.volume.getxattr(ino, b"user.ccbt.state").unwrap();
    assert_eq!(state(&b), &b"remote"[..]);
    let missing = b.folder.lacking(None, ALL, false).unwrap().missing;
    assert!(
        missing.chunks.is_empty() && !missing.nodes.is_empty(),
        "the recipe comes first"
    );
    b.peers.copy_nodes(&missing.nodes).unwrap();
    let missing = b.folder.lacking(None, ALL, false).unwrap().missing;
    assert!(
        missing.chunks.len() > 20 && missing.nodes.is_empty(),
        "{missing:?}"
    );
    assert!(b.read("d/big").unwrap() == big);
    assert_eq!(state(&b), &b"local"[..]);
    assert!(
        b.folder
            .lacking(None, ALL, false)
            .unwrap()
            .missing
            .chunks
            .is_empty()
    );
    let asked = b.peers.asked.lock();
    assert!(
        asked
            .iter()
            .any(|(_, priority)| *priority == Priority::ReadAhead)
    );
    assert_eq!(a.folder.root(), b.folder.root());
    assert!(b.publish().is_none(), "a merge is nothing to announce");
}

#[test]
fn a_chunk_nobody_has_is_an_error_that_is_remembered() {
    let (a, b) = pair();
    a.put("f", &noise(3, 100_000)).unwrap();
    let publication = a.publish().unwrap();
    b.merge(&publication);
    b.peers.others.lock().clear();
    assert_eq!(b.read("f"), Err(VolumeError::TimedOut));
    let asked = b.peers.asked.lock().len();
    assert_eq!(b.read("f"), Err(VolumeError::TimedOut));
    assert_eq!(b.peers.asked.lock().len(), asked, "asked again at once");
}

#[test]
fn writing_downloads_only_the_neighbours() {
    let (a, b) = pair();
    let mut bytes = noise(5, 6_000_000);
    a.put("f", &bytes).unwrap();
    b.merge(&a.publish().unwrap());
    b.patch("f", 3_000_000, b"here").unwrap();
    bytes[3_000_000..3_000_004].copy_from_slice(b"here");
    // The first attempt asks for what it lacks, a later one commits.
    for _ in 0..8 {
        b.publish();
    }
    let asked = b.peers.asked.lock().len();
    assert!(asked <= 6, "{asked} chunks fetched for four bytes");
    assert_eq!(b.folder.stats(&|_| true).dirty, 0);
    b.put("g", &noise(6, 300_000)).unwrap();
    assert!(b.read("f").unwrap() == bytes);
    b.patch("f", 0, b"again").unwrap();
    let publication = b.publish().unwrap();
    a.merge(&publication);
    bytes[..5].copy_from_slice(b"again");
    assert!(a.read("f").unwrap() == bytes);
}

#[test]
fn an_open_file_is_committed_on_the_version_it_was_opened_at() {
    let (a, b) = pair();
    a.put("f", b"one").unwrap();
    b.merge(&a.publish().unwrap());
    let (ino, handle) = a.open("f", WRITE).unwrap();
    b.put("f", b"two").unwrap();
    a.merge(&b.publish().unwrap());
    assert_eq!(
        a.read("f").unwrap(),
        &b"two"[..],
        "a new open has the new version"
    );
    assert_eq!(
        a.read_handle(ino, handle).unwrap(),
        &b"one"[..],
        "the old one its own"
    );
    let shown = a.volume.getattr_open(ino, handle).unwrap();
    assert!(shown.fleeting && a.volume.getattr(ino).unwrap().fleeting);
    a.volume.write(ino, handle, 0, b"ONE").unwrap();
    a.volume.release(ino, handle);
    assert!(!a.volume.getattr(ino).unwrap().fleeting);
    b.merge(&a.publish().unwrap());
    assert_same(&a, &b, "after the conflict");
    let contents: Vec<_> = a.tree().into_values().flatten().collect();
    assert_eq!(contents.len(), 2, "both versions are there");
    assert!(contents.contains(&(&b"ONE"[..]).into()) && contents.contains(&(&b"two"[..]).into()));
}

#[test]
fn what_opening_empties_is_the_version_that_was_opened() {
    let (a, b) = pair();
    a.put("f", b"one").unwrap();
    b.merge(&a.publish().unwrap());
    // The kernel opens for O_TRUNC and truncates in two steps, and says no handle in the second.
    let (ino, handle) = a.open("f", WRITE).unwrap();
    b.put("f", b"by b").unwrap();
    a.merge(&b.publish().unwrap());
    a.truncate("f", 0).unwrap();
    a.volume.write(ino, handle, 0, b"by a").unwrap();
    a.volume.release(ino, handle);
    b.merge(&a.publish().unwrap());
    assert_same(&a, &b, "after the conflict");
    let mut contents: Vec<_> = a.tree().into_values().flatten().collect();
    contents.sort();
    assert_eq!(contents, [&b"by a"[..], b"by b"], "nobody saw what b wrote");
    // Whoever truncates what is there now truncates that.
    a.truncate("f", 0).unwrap();
    assert_eq!(a.read("f").unwrap(), &b""[..]);
}

#[test]
fn what_is_written_into_a_new_file_takes_the_place_of_the_empty_one() {
    for when in 0..4 {
        let (a, b) = pair();
        b.put("f", b"by b").unwrap();
        let theirs = b.publish().unwrap();
        let (ino, handle) = a.create("f").unwrap();
        if when & 1 > 0 {
            b.merge(&a.publish().unwrap());
        }
        if when & 2 > 0 {
            a.merge(&theirs);
        }
        a.volume.write(ino, handle, 0, b"by a").unwrap();
        a.merge(&theirs);
        a.volume.release(ino, handle);
        b.merge(&a.publish().unwrap());
        assert_same(&a, &b, "after the conflict");
        let mut contents: Vec<_> = a.tree().into_values().flatten().collect();
        contents.sort();
        assert_eq!(contents, [&b"by a"[..], b"by b"], "{when}");
    }
}

#[test]
fn a_new_file_is_not_shown_empty_while_it_is_being_filled() {
    let (a, b) = pair();
    let (ino, handle) = a.create("f").unwrap();
    let publication = std::thread::scope(|scope| {
        let publishing = scope.spawn(|| a.publish().unwrap());
        // The clock of the test stands still but for who asks it.
        std::thread::sleep(std::time::Duration::from_millis(20));
        a.volume.write(ino, handle, 0, b"by a").unwrap();
        a.volume.release(ino, handle);
        publishing.join().unwrap()
    });
    b.merge(&publication);
    assert_eq!(b.read("f").unwrap(), &b"by a"[..]);
    // One that stays empty is shown all the same.
    let (_, _handle) = a.create("g").unwrap();
    b.merge(&a.publish().unwrap());
    assert_eq!(b.read("g").unwrap(), &b""[..]);
}

#[test]
fn a_rename_takes_what_was_written_and_leaves_what_came_meanwhile() {
    for is_theirs_later in [false, true] {
        let (a, b) = pair();
        let put = || {
            b.put("f", b"by b").unwrap();
            b.publish().unwrap()
        };
        let before = (!is_theirs_later).then(put);
        let (ino, handle) = a.create("f").unwrap();
        a.volume.write(ino, handle, 0, b"by a").unwrap();
        a.volume.release(ino, handle);
        a.merge(&before.unwrap_or_else(put));
        a.rename("f", "g").unwrap();
        b.merge(&a.publish().unwrap());
        assert_same(&a, &b, "after the rename");
        assert_eq!(a.read("g").unwrap(), &b"by a"[..], "{is_theirs_later}");
        assert_eq!(a.read("f").unwrap(), &b"by b"[..], "{is_theirs_later}");
        assert_eq!(a.names("").len(), 2, "{is_theirs_later}");
    }
}

/// Two folders that show two versions of `f`.
fn in_conflict() -> (Rig, Rig) {
    let (a, b) = pair();
    a.put("f", b"one").unwrap();
    b.merge(&a.publish().unwrap());
    a.put("f", b"by a").unwrap();
    a.publish().unwrap();
    b.put("f", b"by b").unwrap();
    a.merge(&b.publish().unwrap());
    assert_eq!(a.names("").len(), 2, "a conflict");
    (a, b)
}

#[test]
fn a_conflict_takes_the_name_of_its_device_once_that_is_known() {
    let (a, b) = pair();
    b.nameless.store(true, Ordering::Relaxed);
    a.put("f", b"by a").unwrap();
    b.put("f", b"by b").unwrap();
    b.publish().unwrap();
    b.merge(&a.publish().unwrap());
    let has = |part: &str| b.names("").iter().any(|(name, _)| name.contains(part));
    assert!(has("conflict 0") && !has("conflict dev"));
    b.folder.take_changed();
    b.nameless.store(false, Ordering::Relaxed);
    b.folder.rename_siblings();
    assert!(has("conflict dev") && !has("conflict 0"));
    // A plain directory that follows the folder has to rename its file.
    let changed = b.folder.take_changed().unwrap();
    assert_eq!(changed, BTreeSet::from([Fid::ROOT]));
}

/// A file of another name, written and synced, of which no version is made yet.
fn write_beside(a: &Rig) {
    let (ino, handle) = a.create("new").unwrap();
    a.volume.write(ino, handle, 0, b"new").unwrap();
    a.sync_handle(ino, handle).unwrap();
    a.volume.release(ino, handle);
}

#[test]
fn what_is_not_committed_yet_goes_along_when_it_is_renamed_over_a_conflict() {
    for is_killed in [false, true] {
        let (mut a, b) = in_conflict();
        write_beside(&a);
        a.rename("new", "f").unwrap();
        if is_killed {
            a = a.killed();
            *b.peers.others.lock() = vec![a.store.clone()];
        }
        b.merge(&a.publish().unwrap());
        for rig in [&a, &b] {
            assert_eq!(rig.read("f").unwrap(), &b"new"[..], "killed: {is_killed}");
            assert_eq!(rig.find("new"), Err(VolumeError::NotFound));
            assert_eq!(rig.names("").len(), 2, "the conflict is still there");
        }
    }
}

#[test]
fn what_is_not_committed_yet_goes_along_when_it_is_exchanged_for_a_conflict() {
    let (a, b) = in_conflict();
    let old = a.read("f").unwrap();
    write_beside(&a);
    let names = (a.split("new").unwrap(), a.split("f").unwrap());
    a.volume
        .rename(names.0, names.1, RenameMode::Exchange)
        .unwrap();
    assert_eq!(a.read("new").unwrap(), old);
    a.unlink("new").unwrap();
    b.merge(&a.publish().unwrap());
    for rig in [&a, &b] {
        assert_eq!(rig.read("f").unwrap(), &b"new"[..]);
        assert_eq!(
            rig.names("").len(),
            2,
            "what was seen is gone, the other not"
        );
    }
}

#[test]
fn a_file_removed_elsewhere_comes_back_when_it_was_being_written() {
    let (a, b) = pair();
    a.put("f", b"one").unwrap();
    b.merge(&a.publish().unwrap());
    let (ino, handle) = a.open("f", WRITE).unwrap();
    a.volume.write(ino, handle, 0, b"two").unwrap();
    b.unlink("f").unwrap();
    a.merge(&b.publish().unwrap());
    assert_eq!(a.read_handle(ino, handle).unwrap(), &b"two"[..]);
    assert_eq!(a.volume.getattr(ino).unwrap().size, 3);
    a.volume.release(ino, handle);
    let a = a.killed();
    *a.peers.others.lock() = vec![b.store.clone()];
    let publication = a.publish().unwrap();
    *b.peers.others.lock() = vec![a.store.clone()];
    b.merge(&publication);
    assert_eq!(b.read("f").unwrap(), &b"two"[..]);
    assert_eq!(a.read("f").unwrap(), &b"two"[..]);
    let (ino, handle) = a.open("f", READ).unwrap();
    b.unlink("f").unwrap();
    a.merge(&b.publish().unwrap());
    assert_eq!(
        a.read_handle(ino, handle).unwrap(),
        &b"two"[..],
        "open files outlive removal"
    );
    assert!(a.tree().is_empty());
}

#[derive(Default)]
struct Heard {
    inodes: Mutex<Vec<Ino>>,
    names: Mutex<Vec<Vec<u8>>>,
}

impl Notifier for Heard {
    fn inode_changed(&self, ino: Ino) {
        self.inodes.lock().push(ino);
    }

    fn entry_changed(&self, _: Ino, name: &[u8]) {
        self.names.lock().push(name.to_vec());
    }
}

#[test]
fn merges_tell_the_kernel_and_keep_numbers() {
    let (a, b) = pair();
    let heard = Arc::new(Heard::default());
    a.put("f", b"one").unwrap();
    a.put("gone", b"x").unwrap();
    b.merge(&a.publish().unwrap());
    b.volume.attach(heard.clone());
    let ino = b.find("f").unwrap().ino;
    let opened = b.volume.open(ino, READ).unwrap();
    b.volume.release(ino, opened.handle);
    assert!(!opened.ask_size, "it was just looked up");
    assert!(b.volume.open(ino, READ).unwrap().keep_cache);
    a.put("f", b"two").unwrap();
    a.unlink("gone").unwrap();
    a.mkdir("new").unwrap();
    b.merge(&a.publish().unwrap());
    assert_eq!(
        b.find("f").unwrap().ino,
        ino,
        "a new version is the same file"
    );
    assert!(heard.inodes.lock().contains(&ino));
    for name in [&b"gone"[..], b"new"] {
        assert!(heard.names.lock().iter().any(|heard| heard == name));
    }
    let opened = b.volume.open(ino, READ).unwrap();
    assert!(!opened.keep_cache, "the pages are of the old version");
    assert!(opened.ask_size, "and so is the size");
    let again = b.volume.open(ino, READ).unwrap();
    assert!(again.keep_cache && !again.ask_size);
}

#[test]
fn a_change_list_builds_the_tree_it_was_made_from() {
    let (a, b) = pair();
    a.put("f", b"one").unwrap();
    b.merge(&a.publish().unwrap());
    a.put("f", b"two").unwrap();
    a.put("g", b"three").unwrap();
    let publication = a.publish().unwrap();
    let snapshot = Snapshot::decode(&publication.snapshot).unwrap();
    let changes = publication.changes.clone().unwrap();
    assert!(changes.len() <= 3, "{}", changes.len());
    b.peers.others.lock().clear();
    assert!(
        b.folder
            .apply_changes(publication.base_root, changes, snapshot.tree.root)
            .unwrap()
    );
    assert!(b.folder.merge(&snapshot).unwrap().changed);
    assert_eq!(b.folder.root(), a.folder.root());
}

#[test]
fn folders_that_merge_each_other_in_any_order_end_up_equal() {
    for seed in 0..20 {
        let mut dice = Dice::new(seed + 500);
        let (mut a, mut b) = pair();
        let mut last = (None, None);
        for _ in 0..60 {
            let first = dice.below(2) == 0;
            let rig = if first { &a } else { &b };
            // Refused or done: both are fine, and equal to what the user saw.
            let step = step(&mut dice);
            if !matches!(step, Step::Publish) {
                let _refused = run(rig, &step);
            }
            match dice.below(12) {
                0 => last.0 = a.publish().or(last.0),
                1 => last.1 = b.publish().or(last.1),
                2 => drop(last.1.as_ref().map(|publication| a.merge(publication))),
                3 => drop(last.0.as_ref().map(|publication| b.merge(publication))),
                4 => {
                    a = a.killed();
                    *a.peers.others.lock() = vec![b.store.clone()];
                    *b.peers.others.lock() = vec![a.store.clone()];
                }
                5 => {
                    b = b.remounted();
                    *b.peers.others.lock() = vec![a.store.clone()];
                    *a.peers.others.lock() = vec![b.store.clone()];
                }
                _ => {}
            }
        }
        for rig in [&a, &b] {
            // What a commit lacks is fetched by the first attempt.
            for _ in 0..6 {
                match (rig.publish(), rig.config_inc()) {
                    (Some(publication), 1) => last.0 = Some(publication),
                    (Some(publication), _) => last.1 = Some(publication),
                    (None, _) => {}
                }
            }
        }
        if let Some(publication) = &last.1 {
            a.merge(publication);
        }
        if let Some(publication) = &last.0 {
            b.merge(publication);
        }
        assert_eq!(a.folder.root(), b.folder.root(), "seed {seed}");
        assert_same(&a, &b, &format!("seed {seed}"));
    }
}
