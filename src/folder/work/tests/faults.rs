//! What a full disk, a failing drive, a kill or somebody else's change must not lose.

use std::io;
use std::sync::Arc;

use bytes::Bytes;
use ccbt_mount::{Kind, Volume, VolumeError};
use ccbt_xet::hash::{ChunkHash, chunk_hash};
use ccbt_xet::store::{BorrowedFiles, SourceId};
use parking_lot::Mutex;

use super::rig::{Rig, WRITE, noise};
use crate::folder::content::{ChunkRef, ContentWriter};
use crate::folder::state::{Body, Content, Fid, FileKind, NewFile, Time};
use crate::folder::work::nodes::StoreNodes;

#[test]
fn rows_are_read_on_a_full_disk() {
    let rig = Rig::new(1);
    let row = |n: u32| Bytes::from(format!("row {n}"));
    let set = |n| {
        rig.folder
            .update(|txn| txn.set_row(row(n), Some(Bytes::from(vec![7; 1000]))))
    };
    set(0).unwrap();
    rig.disk.limit_space(Some(0));
    let refused = (1..1000).find_map(|n| set(n).err());
    assert_eq!(refused, Some(VolumeError::NoSpace));
    assert!(!rig.folder.rows(b"row").is_empty(), "stored rows are gone");
    assert_eq!(rig.folder.row(&row(0)), Some(Bytes::from(vec![7; 1000])));
    assert_eq!(rig.folder.row(b"row"), None);
}

#[test]
fn writes_are_recovered_beside_a_directory_that_took_their_name() {
    let (a, b) = (Rig::new(1), Rig::new(2));
    *a.peers.others.lock() = vec![b.store.clone()];
    *b.peers.others.lock() = vec![a.store.clone()];
    a.put("f.txt", b"old content").unwrap();
    b.merge(&a.publish().unwrap());
    b.unlink("f.txt").unwrap();
    b.mkdir("f.txt").unwrap();
    let (ino, handle) = a.open("f.txt", WRITE).unwrap();
    a.volume.write(ino, handle, 0, b"new").unwrap();
    a.sync_handle(ino, handle).unwrap();
    a.merge(&b.publish().unwrap());
    assert_eq!(a.find("f.txt").unwrap().kind, Kind::Dir);
    let a = a.killed();
    assert_eq!(a.find("f.txt").unwrap().kind, Kind::Dir);
    let recovered = "f (recovered).txt";
    assert_eq!(a.read(recovered).unwrap(), &b"new content"[..]);
    a.publish().unwrap();
    assert_eq!(a.crashed(1).read(recovered).unwrap(), &b"new content"[..]);
}

#[test]
fn a_failed_sync_is_not_forgotten() {
    let rig = Rig::new(1);
    let (ino, handle) = rig.create("f").unwrap();
    rig.volume
        .write(ino, handle, 0, &noise(1, 200_000))
        .unwrap();
    rig.disk.fail_syncs(1);
    for _ in 0..2 {
        let synced = rig.sync_handle(ino, handle);
        assert_eq!(synced, Err(VolumeError::Io), "the bytes of a file");
    }
    // Committed, its bytes are elsewhere.
    rig.volume.release(ino, handle);
    rig.publish().unwrap();
    let (ino, handle) = rig.open("f", WRITE).unwrap();
    rig.sync_handle(ino, handle).unwrap();
    rig.volume.write(ino, handle, 0, b"little").unwrap();
    rig.disk.fail_syncs(1);
    for _ in 0..2 {
        let synced = rig.sync_handle(ino, handle);
        assert_eq!(synced, Err(VolumeError::Io), "the journal");
    }
}

#[test]
fn what_was_applied_is_reported_as_done() {
    let rig = Rig::new(1);
    rig.disk.fail_after(0);
    rig.mkdir("done").unwrap();
    assert_eq!(rig.find("done").unwrap().kind, Kind::Dir);
    assert_eq!(rig.mkdir("refused").unwrap_err(), VolumeError::Io);
    assert_eq!(rig.find("refused").unwrap_err(), VolumeError::NotFound);
}

#[test]
fn a_sync_after_a_kill_covers_what_was_written_before_it() {
    for seed in 0..20 {
        let rig = Rig::new(1);
        let big = noise(seed, 200_000);
        rig.put("f", &big).unwrap();
        let rig = rig.killed();
        rig.fsync("f").unwrap();
        let rig = rig.crashed(seed);
        assert!(rig.read("f").unwrap() == big, "seed {seed}");
    }
}

/// A plain file that can be taken away.
#[derive(Debug)]
struct Plain(Mutex<Vec<u8>>);

impl BorrowedFiles for Plain {
    fn read_at(&self, _: SourceId, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        let bytes = self.0.lock();
        let from = bytes.get(offset as usize..offset as usize + buf.len());
        buf.copy_from_slice(from.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn mismatch(&self, _: SourceId) {}
}

#[test]
fn a_commit_keeps_what_only_a_plain_file_had() {
    let rig = Rig::new(1);
    let mut bytes = noise(3, 2_000_000);
    let plain = Arc::new(Plain(Mutex::new(bytes.clone())));
    let source = SourceId::new(1, 1).unwrap();
    let nodes = StoreNodes(&rig.store);
    let mut writer = ContentWriter::new(&nodes);
    let mut ranges: Vec<(ChunkHash, u64, u32)> = Vec::new();
    let mut offset = 0;
    for chunk in ccbt_xet::chunk::chunks(&bytes) {
        let (hash, len) = (chunk_hash(chunk), chunk.len() as u32);
        writer.push(ChunkRef { hash, len }).unwrap();
        ranges.push((hash, offset, len));
        offset += u64::from(len);
    }
    let (content, size) = writer.finish().unwrap();
    rig.store.set_borrow_reader(1, plain.clone());
    rig.store.borrow(source, &ranges);
    let file = NewFile {
        kind: FileKind::File,
        mode: 0o644,
        body: Body {
            content: Content::from(&content[..]),
            size,
            mtime: Time::default(),
        },
    };
    let made = rig.folder.update(|txn| {
        txn.apply(|state, by| Ok(((), state.create(Fid::ROOT, b"f", file.clone(), by)?)))
    });
    made.unwrap().unwrap();
    rig.patch("f", 1_000_000, b"edited").unwrap();
    rig.publish().unwrap();
    plain.0.lock().clear();
    rig.store.unborrow(source);
    bytes[1_000_000..1_000_006].copy_from_slice(b"edited");
    assert!(rig.read("f").unwrap() == bytes);
}
