//! Targets of our own files and of what the machine tells: damaged or tampered with, they are refused and no more.

use std::ffi::OsString;
use std::path::Path;
use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::Bytes;
use ccbt::api::types::{
    ConfirmRequest, DownloadRequest, EvictRequest, JoinRequest, KeysRequest, MountRequest,
    PeersRequest, PinRequest, Request, ShareRequest, ShutdownRequest, StatusRequest, StoreRequest,
    TorrentRequest, TorrentsRequest, UnmountRequest, UnpinRequest, UnshareRequest,
};
use ccbt::config::{Config, KEYS};
use ccbt::folder::home::base::{At, Row};
use ccbt::folder::state::Inc;
use ccbt::folder::tree::NodeKind;
use ccbt::folder::work::{
    Clock, Dirty, Fetch, FetchError, Fetched, Folder, FolderConfig, Observer, Priority, WantedChunk,
};
use ccbt_xet::disk::{Disk, MemDisk, OpenMode};
use ccbt_xet::hash::{NodeId, node_id};
use ccbt_xet::store::{Store, StoreOptions};

use super::{parts, take};

/// A request to the daemon: `which u8 | JSON`. What is read is written and read the same.
pub(crate) fn api_request(mut data: &[u8]) -> bool {
    const READERS: [fn(&[u8]) -> bool; 17] = [
        request::<ShareRequest>,
        request::<UnshareRequest>,
        request::<ConfirmRequest>,
        request::<MountRequest>,
        request::<UnmountRequest>,
        request::<StatusRequest>,
        request::<PeersRequest>,
        request::<PinRequest>,
        request::<UnpinRequest>,
        request::<EvictRequest>,
        request::<KeysRequest>,
        request::<ShutdownRequest>,
        request::<JoinRequest>,
        request::<StoreRequest>,
        request::<DownloadRequest>,
        request::<TorrentsRequest>,
        request::<TorrentRequest>,
    ];
    let [which] = take(&mut data);
    READERS[usize::from(which) % READERS.len()](data)
}

fn request<R: Request>(json: &[u8]) -> bool {
    let Ok(read) = serde_json::from_slice::<R>(json) else {
        return false;
    };
    let written = serde_json::to_vec(&read).expect("a request can be written");
    let again: R = serde_json::from_slice(&written).expect("our own JSON");
    assert_eq!(
        serde_json::to_vec(&again).expect("a request can be written"),
        written
    );
    true
}

/// A setting as a variable of the environment gives it: `which u8 | text`. The layers keep it as it was read.
pub(crate) fn config(mut data: &[u8]) -> bool {
    let [which] = take(&mut data);
    let Ok(text) = std::str::from_utf8(data) else {
        return false;
    };
    let (key, kind) = KEYS[usize::from(which) % KEYS.len()];
    let name = ccbt::config::env_name(key);
    let env = |asked: &str| (asked == name).then(|| OsString::from(text));
    let loaded = Config::load(None, &env, Vec::new());
    if let (Ok(value), Ok(loaded)) = (kind.check_text(text), &loaded) {
        let kept = loaded.setting(key).map(|setting| &setting.value);
        assert_eq!(kept, Some(&value));
    }
    loaded.is_ok()
}

/// A configuration file. What is shown of it can be written into one.
pub(crate) fn config_toml(data: &[u8]) -> bool {
    std::str::from_utf8(data).is_ok_and(ccbt::fuzzing::config_toml)
}

/// `files.json` of an exported set.
pub(crate) fn set_manifest(data: &[u8]) -> bool {
    ccbt::fuzzing::set_manifest(data)
}

/// What a home notes before a rename: `length of the key u8 | key | intent`.
pub(crate) fn home_intent(mut data: &[u8]) -> bool {
    let [len] = take(&mut data);
    let (key, data) = data.split_at(usize::from(len).min(data.len()));
    ccbt::fuzzing::intent(key, &Bytes::copy_from_slice(data))
}

/// The log of a torrent's pieces: `number of pieces u16 | log`.
pub(crate) fn resume_log(mut data: &[u8]) -> bool {
    let pieces = u32::from(u16::from_le_bytes(take(&mut data)));
    ccbt::fuzzing::resume_log(data, pieces, &[b'0'; 36])
}

/// A small file of the state directory: `which u8 | bytes`.
pub(crate) fn state_text(mut data: &[u8]) -> bool {
    let [which] = take(&mut data);
    ccbt::fuzzing::state_text(which, data)
}

/// `/proc/self/mountinfo`.
pub(crate) fn mountinfo(data: &[u8]) -> bool {
    ccbt_mount::fuzzing::mountinfo(data) > 0
}

/// A record of a home's base: `length of the key u8 | key | record`.
pub(crate) fn home_row(mut data: &[u8]) -> bool {
    let [len] = take(&mut data);
    let (key, data) = data.split_at(usize::from(len).min(data.len()));
    let key = Bytes::copy_from_slice(key);
    let at = At::from_key(&key);
    if let Ok(at) = &at {
        assert_eq!(at.key(), key);
    }
    let Ok(row) = Row::decode(&Bytes::copy_from_slice(data)) else {
        return false;
    };
    assert_eq!(row.encode(), data);
    at.is_ok()
}

const FOLDER: &str = "/folder";

struct Nobody;

impl Clock for Nobody {
    fn now_ns(&self) -> u64 {
        1_700_000_000_000_000_000
    }
}

impl Observer for Nobody {
    fn dirty(&self, _: Dirty) {}
}

impl Fetch for Nobody {
    fn chunks(&self, _: Vec<WantedChunk>, _: Priority, done: Fetched) {
        done(Err(FetchError::NoPeer));
    }

    fn nodes(&self, _: Vec<(u8, NodeId)>, _: Priority, done: Fetched) {
        done(Err(FetchError::NoPeer));
    }

    fn ahead(&self, _: Vec<WantedChunk>, _: Weak<()>, done: Fetched) {
        done(Err(FetchError::NoPeer));
    }
}

/// How the folder of the targets and of their seeds is opened.
pub(crate) fn folder_config(disk: &MemDisk, inc: u8) -> FolderConfig {
    let disk: Arc<dyn Disk> = Arc::new(disk.clone());
    let options = StoreOptions {
        cache_bytes: 0,
        ..StoreOptions::default()
    };
    let store = Store::open(Path::new("/store"), Arc::clone(&disk), options);
    FolderConfig {
        dir: FOLDER.into(),
        disk,
        store: Arc::new(store.expect("the store is whole")),
        inc: Inc([inc; 8]),
        rename_row: |_, _| None,
        held_content: |_, _| None,
        clock: Arc::new(Nobody),
        read_only: false,
        fetch: Arc::new(Nobody),
        observer: Arc::new(Nobody),
        device_name: Arc::new(|inc| Some(format!("dev{}", inc.0[0]))),
        read_timeout: Duration::from_secs(30),
    }
}

fn put_file(disk: &MemDisk, name: &str, bytes: &[u8]) {
    let file = disk
        .open(&Path::new(FOLDER).join(name), OpenMode::Create)
        .expect("the fake disk");
    file.write_at(0, &[bytes]).expect("the fake disk");
    file.sync().expect("the fake disk");
}

/// A folder whose files are there opens or says why not. One that opened does so again.
fn open_folder(config: FolderConfig) -> bool {
    let again = config.clone();
    match Folder::open(config) {
        Ok(folder) => drop(folder),
        Err(_) => return false,
    }
    let folder = Folder::open(again).expect("it opened before");
    let _stats = folder.stats(&|_| true);
    true
}

pub(crate) fn new_disk() -> MemDisk {
    let disk = MemDisk::new();
    disk.create_dir(Path::new(FOLDER)).expect("the fake disk");
    disk
}

/// A checkpoint: `incarnation u8 | length of the leaf u16 | leaf | bytes behind the magic`. The target adds the checksum.
/// The root of the tree is the leaf if it is named in the checkpoint.
pub(crate) fn checkpoint(mut data: &[u8]) -> bool {
    let [inc] = take(&mut data);
    let len = usize::from(u16::from_le_bytes(take(&mut data))).min(data.len());
    let (leaf, body) = data.split_at(len);
    let mut bytes = b"ccbtchk1".to_vec();
    bytes.extend_from_slice(body);
    let crc = crc32fast::hash(&bytes);
    bytes.extend_from_slice(&crc.to_le_bytes());
    let disk = new_disk();
    put_file(&disk, "checkpoint", &bytes);
    let config = folder_config(&disk, inc % 4);
    let kind = NodeKind::TreeLeaf.code();
    // An empty node has no place in a store.
    let _refused = config.store.put_node(kind, &node_id(kind, leaf), leaf);
    open_folder(config)
}

/// The journal of a new folder: the bodies of its records. The target adds lengths and checksums.
pub(crate) fn folder_journal(data: &[u8]) -> bool {
    const GENERATION: u64 = 1;
    let mut bytes = b"ccbtjrn1".to_vec();
    bytes.extend_from_slice(&GENERATION.to_le_bytes());
    bytes.extend_from_slice(&0_u64.to_le_bytes());
    let crc = crc32fast::hash(&bytes);
    bytes.extend_from_slice(&crc.to_le_bytes());
    for body in parts(data) {
        let mut hasher = crc32fast::Hasher::new();
        hasher.update(&GENERATION.to_le_bytes());
        hasher.update(&(bytes.len() as u64).to_le_bytes());
        hasher.update(body);
        bytes.extend_from_slice(&(body.len() as u32).to_le_bytes());
        bytes.extend_from_slice(&hasher.finalize().to_le_bytes());
        bytes.extend_from_slice(body);
    }
    let disk = new_disk();
    put_file(&disk, &format!("journal-{GENERATION:016x}"), &bytes);
    let config = folder_config(&disk, 1);
    open_folder(config) && !data.is_empty()
}
