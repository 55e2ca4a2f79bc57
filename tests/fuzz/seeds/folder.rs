//! Seeds of the targets of folders: what a folder with a bit of everything in it writes and says.

use std::cell::RefCell;
use std::convert::Infallible;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use ccbt::folder::changes::{Change, pack};
use ccbt::folder::content::{ChunkRef, ContentReader, ContentWriter};
use ccbt::folder::home::base::{At, FileTime, HomeId, Row, RowKind, Stamp};
use ccbt::folder::snapshot::Snapshot;
use ccbt::folder::tree::{MemoryNodes, NodeKind, Nodes, Trees};
use ccbt::folder::work::{Folder, HEAD_LEN, Publication};
use ccbt::volume::FolderVolume;
use ccbt_mount::{Caller, Handle, Ino, OpenMode, RenameMode, SetXattr, Volume};
use ccbt_xet::disk::{Disk, MemDisk};
use ccbt_xet::hash::{ChunkHash, NodeId};

use super::with_prefix;
use crate::targets::join;
use crate::targets::local::{folder_config, new_disk};

const USER: Caller = Caller { uid: 0, gid: 0 };
const DONE: &str = "the folder is writable";

/// A folder in use.
struct Used {
    disk: MemDisk,
    folder: Arc<Folder>,
    volume: FolderVolume,
}

impl Used {
    fn new() -> Self {
        let disk = new_disk();
        let folder = Arc::new(Folder::open(folder_config(&disk, 1)).expect("a new folder"));
        let volume = FolderVolume::new(Arc::clone(&folder));
        let used = Self {
            disk,
            folder,
            volume,
        };
        used.fill();
        used
    }

    fn fill(&self) {
        let volume = &self.volume;
        let dir = volume
            .mkdir(Ino::ROOT, b"dir", 0o755, USER)
            .expect(DONE)
            .ino;
        let (file, handle) = self.create(dir, b"file");
        volume.write(file, handle, 0, b"some bytes").expect(DONE);
        volume.write(file, handle, 6, b"more bytes").expect(DONE);
        volume.release(file, handle);
        volume
            .setxattr(file, b"user.note", b"value", SetXattr::Any)
            .expect(DONE);
        volume.link(file, Ino::ROOT, b"linked").expect(DONE);
        volume
            .symlink(dir, b"symlink", b"../linked", USER)
            .expect(DONE);
        let (gone, handle) = self.create(Ino::ROOT, b"gone");
        volume.release(gone, handle);
        volume.unlink(Ino::ROOT, b"gone").expect(DONE);
        volume
            .rename(
                (dir, b"symlink"),
                (Ino::ROOT, b"moved"),
                RenameMode::Replace,
            )
            .expect(DONE);
    }

    fn create(&self, dir: Ino, name: &[u8]) -> (Ino, Handle) {
        let mode = OpenMode {
            read: true,
            write: true,
            append: false,
            truncate: false,
        };
        let (attr, opened) = self
            .volume
            .create(dir, name, 0o644, mode, USER)
            .expect(DONE);
        (attr.ino, opened.handle)
    }

    fn publish(&self) -> Publication {
        let sign = |_| Ok([0; HEAD_LEN]);
        self.folder
            .publish(&sign)
            .expect(DONE)
            .expect("there is something to publish")
    }

    /// The journal that is written to.
    fn journal(&self) -> Vec<u8> {
        let paths = self.disk.list(Path::new("/folder")).expect("the fake disk");
        let is_journal = |path: &&PathBuf| path.to_string_lossy().contains("journal-");
        let newest = paths
            .iter()
            .rfind(is_journal)
            .expect("a folder has a journal");
        self.disk.contents(newest).expect("it was listed")
    }

    fn file(&self, name: &str) -> Vec<u8> {
        let contents = self.disk.contents(&Path::new("/folder").join(name));
        contents.expect("a folder has such a file")
    }
}

/// The bodies of the records in a journal's file.
fn records(journal: &[u8]) -> Vec<u8> {
    let (mut bodies, mut left) = (Vec::new(), &journal[28..]);
    while let Some((len, rest)) = left.split_first_chunk::<4>() {
        let (body, after) = rest[4..].split_at(u32::from_le_bytes(*len) as usize);
        bodies.push(body);
        left = after;
    }
    join(bodies)
}

pub(super) fn folder_journal() -> Vec<Vec<u8>> {
    let used = Used::new();
    let written = used.journal();
    used.publish();
    vec![records(&written), records(&used.journal())]
}

pub(super) fn checkpoint() -> Vec<Vec<u8>> {
    let used = Used::new();
    let empty = {
        let disk = new_disk();
        let folder = Folder::open(folder_config(&disk, 1)).expect("a new folder");
        folder.shutdown().expect(DONE);
        disk
    };
    let empty = empty
        .contents(Path::new("/folder/checkpoint"))
        .expect("a folder that was shut down has one");
    used.publish();
    let (open, handle) = used.create(Ino::ROOT, b"half written");
    used.volume
        .write(open, handle, 4, b"not committed")
        .expect(DONE);
    used.folder.shutdown().expect(DONE);
    let full = used.file("checkpoint");
    // Behind magic, journal, incarnation: the root of the tree.
    let root: [u8; 32] = std::array::from_fn(|i| full[8 + 1 + 8 + i]);
    let store = folder_config(&used.disk, 1).store;
    let leaf = store
        .node(&NodeId::from_bytes(root))
        .expect("the store is whole")
        .expect("the tree is here");
    let input = |inc: u8, leaf: &[u8], file: &[u8]| {
        let body = &file[8..file.len() - 4];
        [&[inc][..], &join([leaf]), body].concat()
    };
    vec![
        input(1, &leaf, &full),
        input(2, &leaf, &full),
        input(1, &[0], &empty),
    ]
}

fn published() -> (Vec<Change>, Vec<u8>) {
    let publication = Used::new().publish();
    (
        publication.changes.expect("the folder is small"),
        publication.snapshot,
    )
}

pub(super) fn snapshot() -> Vec<Vec<u8>> {
    let (_, first) = published();
    let mut second = Snapshot::decode(&first).expect("our own snapshot");
    second.parents = vec![NodeId::from_bytes([1; 32]), NodeId::from_bytes([2; 32])];
    vec![second.encode().expect("two parents"), first]
}

pub(super) fn entry() -> Vec<Vec<u8>> {
    let (changes, _) = published();
    let entries = changes
        .into_iter()
        .filter_map(|(key, value)| Some((key, value?)));
    entries
        .map(|(key, value)| [&[key.len() as u8][..], &key, &value].concat())
        .collect()
}

/// The list, uncompressed and as it is sent.
fn lists() -> Vec<Vec<u8>> {
    let (changes, _) = published();
    let packed = pack(&changes).expect("the list is short");
    let raw = zstd::bulk::decompress(&packed.zstd, packed.raw_len as usize).expect("our own list");
    let sent = [&packed.raw_len.to_le_bytes()[..], &packed.zstd].concat();
    vec![with_prefix(&[0], raw), with_prefix(&[1], sent)]
}

pub(super) fn changes() -> Vec<Vec<u8>> {
    lists()
}

pub(super) fn merge() -> Vec<Vec<u8>> {
    lists()
        .into_iter()
        .flat_map(|list| [with_prefix(&[0], &list), with_prefix(&[100], &list)])
        .collect()
}

/// Notes nodes in the order in which they are first asked for.
struct Recorder<'n> {
    nodes: &'n MemoryNodes,
    given: RefCell<Vec<(NodeId, Bytes)>>,
}

impl Nodes for Recorder<'_> {
    type Error = Infallible;

    fn get(&self, kind: NodeKind, id: &NodeId) -> Result<Option<Bytes>, Infallible> {
        let found = self.nodes.get(kind, id)?;
        let mut given = self.given.borrow_mut();
        if let Some(bytes) = &found
            && given.iter().all(|(known, _)| known != id)
        {
            given.push((*id, bytes.clone()));
        }
        Ok(found)
    }

    fn put(&self, _: NodeKind, _: &NodeId, _: Bytes) -> Result<(), Infallible> {
        Ok(())
    }
}

impl<'n> Recorder<'n> {
    fn new(nodes: &'n MemoryNodes) -> Self {
        Self {
            nodes,
            given: RefCell::default(),
        }
    }

    fn parts(self) -> Vec<u8> {
        join(self.given.into_inner().iter().map(|(_, bytes)| bytes))
    }
}

pub(super) fn tree() -> Vec<Vec<u8>> {
    [0, 3, 300]
        .map(|count: u32| {
            let nodes = MemoryNodes::new();
            let entries = (0..count).map(|n| {
                let key = [&[7; 16][..], format!("{n:06}").as_bytes()].concat();
                (Bytes::from(key), Bytes::from(n.to_le_bytes().to_vec()))
            });
            let tree = Trees::new(&nodes).build(entries).expect("the keys ascend");
            let recorder = Recorder::new(&nodes);
            let walked: Result<Vec<_>, _> = Trees::new(&recorder).range(&tree, &[]).collect();
            assert_eq!(walked.expect("all nodes are here").len(), count as usize);
            with_prefix(&[tree.height], recorder.parts())
        })
        .into()
}

pub(super) fn content() -> Vec<Vec<u8>> {
    let mut out = vec![
        content_of(0, 1),
        content_of(2, 1),
        content_of(10, 1),
        content_of(300, 1),
    ];
    // Every chunk ends a segment: more than an entry can name.
    out.push(content_of(100, 0));
    out
}

fn content_of(chunks: u32, first_byte: u8) -> Vec<u8> {
    let nodes = MemoryNodes::new();
    let mut writer = ContentWriter::new(&nodes);
    for n in 0..chunks {
        let mut hash = [first_byte; 32];
        hash[1..5].copy_from_slice(&n.to_le_bytes());
        let chunk = ChunkRef {
            hash: ChunkHash::from_bytes(hash),
            len: 9000 + n,
        };
        writer.push(chunk).expect("a good chunk");
    }
    let (content, size) = writer.finish().expect("good chunks");
    let recorder = Recorder::new(&nodes);
    let reader = ContentReader::new(&recorder, &content, size).expect("our own content");
    assert!(reader.missing(16).expect("our own nodes").is_empty());
    reader.locate(0..size).expect("our own nodes");
    [
        &size.to_le_bytes()[..],
        &join([&content]),
        &recorder.parts(),
    ]
    .concat()
}

pub(super) fn home_row() -> Vec<Vec<u8>> {
    let time = FileTime {
        secs: 1_700_000_000,
        nanos: 5,
    };
    let kinds = [
        RowKind::Dir,
        RowKind::File {
            content: Bytes::from_static(b"\x01\x01 a chunk"),
        },
        RowKind::Symlink {
            target: Bytes::from_static(b"../target"),
        },
    ];
    let key = At {
        dir: HomeId::ROOT,
        name: Bytes::from_static(b"name"),
    }
    .key();
    let row = |kind| Row {
        id: HomeId(3),
        stamp: Stamp {
            ino: 9,
            size: 10,
            mtime: time,
            ctime: time,
        },
        mode: 0o644,
        xattrs: 1,
        unsure: false,
        kind,
        held: Bytes::from_static(b"held"),
    };
    let input = |kind| [&[key.len() as u8][..], &key, &row(kind).encode()].concat();
    kinds.map(input).into()
}

/// A move, a put of a file, of a directory and over another, and a dressing.
pub(super) fn home_intent() -> Vec<Vec<u8>> {
    let rows = home_row();
    // `length of the key u8 | key | record`.
    let split = |seed: &[u8]| {
        let (key, row) = seed[1..].split_at(usize::from(seed[0]));
        (key.to_vec(), row.to_vec())
    };
    let ((at, dir), (_, file)) = (split(&rows[0]), split(&rows[1]));
    let (temp, fid) = (b".temp".to_vec(), vec![7; 8]);
    let intents: [(u8, Vec<&[u8]>); 5] = [
        (0x10, vec![&at, &at, &file]),
        (0x11, vec![&at, &temp, &file]),
        (0x11, vec![&at, &temp, &dir, &fid]),
        (0x11, vec![&at, &temp, &file, &file, b"old"]),
        (0x12, vec![&at, &file]),
    ];
    let key = with_prefix(b"i", 7_u64.to_be_bytes());
    let seed = |(kind, fields): (u8, Vec<&[u8]>)| {
        let mut out = with_prefix(&[key.len() as u8], &key);
        out.push(kind);
        for field in fields {
            out.extend_from_slice(&(field.len() as u32).to_le_bytes());
            out.extend_from_slice(field);
        }
        out
    };
    intents.map(seed).into()
}
