//! What is done when nodes of the tree have gone.

use std::collections::HashSet;

use ccbt_xet::hash::NodeId;

use super::rig::{Rig, noise};
use crate::folder::tree::Trees;
use crate::folder::work::StoreNodes;

/// The nodes of the tree as last written.
fn tree(rig: &Rig) -> HashSet<NodeId> {
    let (tip, mut named) = (rig.folder.inner.core.lock().tip.tree, HashSet::new());
    let nodes = StoreNodes(&rig.store);
    assert!(Trees::new(&nodes).add_nodes(&tip, &mut named).unwrap());
    named
}

/// A folder of many files whose tree has several nodes, and what is in them.
fn filled() -> (Rig, Vec<(String, Vec<u8>)>) {
    let rig = Rig::new(1);
    let files: Vec<_> = (0..400)
        .map(|n| (format!("file {n}"), noise(n, 100 + n as usize)))
        .collect();
    for (name, bytes) in &files {
        rig.put(name, bytes).unwrap();
    }
    rig.publish().unwrap();
    (rig.remounted(), files)
}

#[test]
fn a_tree_that_lost_nodes_is_written_again() {
    let lost: [&dyn Fn(usize) -> bool; 3] = [&|_| true, &|n| n == 0, &|n| n % 2 == 1];
    for is_lost in lost {
        let (rig, mut files) = filled();
        let before = tree(&rig);
        assert!(before.len() > 4, "{}", before.len());
        assert!(!rig.folder.restore_tree().unwrap());
        let mut ids: Vec<_> = before.iter().copied().collect();
        ids.sort_unstable_by_key(|id| *id.as_bytes());
        let gone: HashSet<_> = (0..)
            .zip(&ids)
            .filter(|(n, _)| is_lost(*n))
            .map(|(_, id)| *id)
            .collect();
        rig.store.remove_nodes(&|id| !gone.contains(id)).unwrap();
        assert!(rig.folder.restore_tree().unwrap());
        assert_eq!(tree(&rig), before, "the same tree");
        assert!(!rig.folder.restore_tree().unwrap());

        // What was not written yet goes with it.
        files.push(("new".to_owned(), noise(1000, 5000)));
        rig.put("new", &files[400].1).unwrap();
        rig.store.remove_nodes(&|id| !gone.contains(id)).unwrap();
        assert!(rig.folder.restore_tree().unwrap());
        let rig = rig.killed();
        assert_eq!(rig.folder.stats(&|_| true).files, 401);
        for (name, bytes) in &files {
            assert!(rig.read(name).unwrap() == *bytes, "{name}");
        }
        rig.publish().unwrap();
    }
}
