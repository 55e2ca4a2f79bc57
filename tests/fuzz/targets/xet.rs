//! Targets of the store: names, chunks, records, packs.

use std::path::Path;
use std::sync::Arc;

use ccbt_xet::chunk::{Chunker, MAX_CHUNK, MIN_CHUNK, chunks};
use ccbt_xet::codec::{Encoder, Scheme, decode_into, decode_start};
use ccbt_xet::disk::{Disk, MemDisk, OpenMode};
use ccbt_xet::hash::{ChunkHash, Suite, XorbHash, chunk_hash};
use ccbt_xet::merkle::xorb_hash;
use ccbt_xet::recipe::{Recipe, decode_segment, encode_segment, segments};
use ccbt_xet::shard;
use ccbt_xet::store::{OpenStoreError, Store, StoreOptions};
use ccbt_xet::xorb::{Footer, parse as parse_xorb, records, validate};

use super::take;

/// The text form of a hash: what is read is written the same, in lower case.
pub(crate) fn hash_text(data: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(data) else {
        return false;
    };
    let Ok(hash) = text.parse::<ChunkHash>() else {
        return false;
    };
    assert_eq!(hash.to_string(), text.to_ascii_lowercase());
    true
}

/// A stream of bytes gives the same chunks however it comes in. The input is a program: a run is `kind u8 | len u16`,
/// eight bytes a unit, of noise or of one byte; what is left over says how the stream is cut into blocks.
pub(crate) fn chunk_stream(data: &[u8]) -> bool {
    const STREAM_LEN_MAX: usize = 1 << 20;
    let (runs, rest) = data.as_chunks::<3>();
    let mut stream = Vec::new();
    for (n, [kind, a, b]) in runs.iter().enumerate() {
        let len = 8 * usize::from(u16::from_le_bytes([*a, *b]));
        let end = (stream.len() + len).min(STREAM_LEN_MAX);
        match kind {
            0..128 => {
                let from = stream.len();
                stream.resize(end, 0);
                let mut noise = blake3::Hasher::new();
                noise.update(&[*kind, n as u8]);
                noise.finalize_xof().fill(&mut stream[from..]);
            }
            _ => stream.resize(end, *kind),
        }
    }
    let whole: Vec<&[u8]> = chunks(&stream).collect();
    assert_eq!(whole.concat(), stream);
    for (i, chunk) in whole.iter().enumerate() {
        assert!(chunk.len() <= MAX_CHUNK && (chunk.len() >= MIN_CHUNK || i + 1 == whole.len()));
    }
    let mut block_len = 1 + rest
        .iter()
        .fold(0, |sum, byte| sum * 256 + usize::from(*byte));
    let (mut chunker, mut lens, mut open, mut left) = (Chunker::new(), Vec::new(), 0, &stream[..]);
    while !left.is_empty() {
        let (mut block, after) = left.split_at(block_len.min(left.len()));
        while let Some(taken) = chunker.next_cut(block) {
            lens.push(open + taken);
            open = 0;
            block = &block[taken..];
        }
        open += block.len();
        assert_eq!(chunker.pending(), open);
        block_len = (block_len * 31 + 17) % 70_001 + 1;
        left = after;
    }
    lens.extend(Some(open).filter(|open| *open > 0));
    assert!(
        lens.iter()
            .copied()
            .eq(whole.iter().map(|chunk| chunk.len()))
    );
    whole.len() > 1
}

/// A payload: `scheme u8 | length of the chunk u24 | payload`. What is decoded can be encoded and decoded again. Of
/// another scheme it is a chunk: it can be encoded.
pub(crate) fn codec(mut data: &[u8]) -> bool {
    let [scheme, a, b, c] = take(&mut data);
    let len = u32::from_le_bytes([a, b, c, 0]) as usize % (MAX_CHUNK + 1);
    let Some(scheme) = Scheme::from_byte(scheme) else {
        let chunk = &data[..data.len().min(MAX_CHUNK)];
        encodes(Scheme::Lz4, chunk);
        encodes(Scheme::GroupedLz4, chunk);
        return false;
    };
    let mut chunk = vec![0; len];
    let decoded = decode_into(scheme, data, &mut chunk).is_ok();
    // Readers of a range decode the start only, of what was once decoded whole. Of anything else too, bytes or nothing.
    let mut start = Vec::new();
    for len in [0, 1, len / 3, len.saturating_sub(1), len] {
        if let Some(start) = decode_start(scheme, data, len, &mut start) {
            assert_eq!(start.len(), len);
            assert!(!decoded || start == &chunk[..len]);
        }
    }
    if !decoded {
        return false;
    }
    encodes(scheme, &chunk);
    true
}

/// What is encoded is decoded to the same.
fn encodes(scheme: Scheme, chunk: &[u8]) {
    let mut encoder = Encoder::new();
    let encoded = encoder.encode(scheme, chunk);
    let mut again = vec![0; chunk.len()];
    decode_into(encoded.scheme, encoded.payload, &mut again).expect("our own encoding");
    assert_eq!(again, chunk);
    let mut start = Vec::new();
    let third = chunk.len() / 3;
    if let Some(start) = decode_start(encoded.scheme, encoded.payload, third, &mut start) {
        assert_eq!(start, &chunk[..third]);
    }
}

/// The records of a xorb, under the hash that follows from them.
pub(crate) fn xorb(data: &[u8]) -> bool {
    let mut chunks = Vec::new();
    for record in records(data).map_while(Result::ok) {
        let Ok(chunk) = record.decode() else {
            break;
        };
        chunks.push((chunk_hash(&chunk), chunk.len() as u32));
        assert!(record.end() <= data.len());
    }
    let claimed = xorb_hash(chunks.iter().map(|(hash, len)| (*hash, u64::from(*len))));
    let stranger = XorbHash::from_bytes([1; 32]);
    assert!(validate(Suite::Blake3, data, &stranger).is_err());
    let Ok(contents) = validate(Suite::Blake3, data, &claimed) else {
        return false;
    };
    assert_eq!(contents.chunks, chunks);
    true
}

/// A whole xorb whose hash nobody claimed. What is taken under a suite is what the records say.
pub(crate) fn xorb_whole(data: &[u8]) -> bool {
    let mut taken = false;
    for suite in [Suite::Blake3, Suite::Sha256] {
        let Ok(contents) = parse_xorb(suite, data) else {
            continue;
        };
        let mut found = Vec::new();
        for record in records(data).take(contents.chunks.len()) {
            let chunk = record.expect("a record").decode().expect("a payload");
            found.push((suite.chunk_hash(&chunk), chunk.len() as u32));
        }
        assert_eq!(found, contents.chunks);
        assert!(validate(suite, data, &contents.hash).is_ok());
        taken = true;
    }
    taken
}

/// A shard in any form. What is taken can be written in every form that needs no more than it has, and is read the
/// same again, in the order of its hashes. Hidden under a key it answers for the chunks it lists, and for no others.
pub(crate) fn shard(data: &[u8]) -> bool {
    let Ok(parsed) = shard::parse(data) else {
        return false;
    };
    let shard = parsed.shard;
    // It may lie about what it names, never about its own structure.
    let _lies = shard.check();
    let mut sorted = shard.clone();
    sorted.files.sort_by_key(|file| file.hash);
    sorted.xorbs.sort_by_key(|xorb| xorb.hash);
    for form in [shard::Form::LOCAL, shard::Form::SERVER, shard::Form::Upload] {
        match shard.encode(form) {
            Ok(bytes) => {
                let again = shard::parse(&bytes).expect("our own shard");
                assert_eq!(again.shard, sorted, "{form:?}");
                assert_eq!(again.shard.encode(form).as_ref(), Ok(&bytes));
            }
            Err(error) => assert!(shard.key.is_some(), "{form:?}: {error}"),
        }
    }
    let Some(hidden) = shard.hidden([1; 32]) else {
        assert!(shard.key.is_some() && !shard.xorbs.is_empty());
        return true;
    };
    let bytes = hidden
        .encode(shard::Form::LOCAL)
        .expect("it has a place for a key");
    let again = shard::parse(&bytes).expect("our own shard").shard;
    assert_eq!(again.key, Some([1; 32]));
    let (plain, hidden) = (shard::Answer::new(sorted), shard::Answer::new(again));
    let chunks = shard.xorbs.iter().flat_map(|xorb| &xorb.chunks);
    for chunk in chunks.filter_map(|chunk| shard.plain_hash(chunk)) {
        let held = plain.find(&chunk);
        assert!(held.is_some_and(|held| {
            let xorb = shard.xorbs.iter().find(|xorb| {
                let listed = xorb.chunks.get(held.chunk as usize);
                xorb.hash == held.xorb
                    && listed
                        .is_some_and(|of| of.listed == shard.listed(&chunk) && of.len == held.len)
            });
            xorb.is_some()
        }));
        assert_eq!(hidden.find(&chunk), held);
    }
    let stranger = chunk_hash(b"in no shard");
    assert_eq!(hidden.find(&stranger), plain.find(&stranger));
    true
}

/// The footer of a xorb. One of version 1 is written as it was read, but for reserved bytes.
pub(crate) fn footer(data: &[u8]) -> bool {
    let Ok(footer) = Footer::parse(data) else {
        return false;
    };
    let n = footer.hashes.len();
    assert_eq!(footer.record_ends.len(), n);
    let Some(encoded) = footer.encode() else {
        return true;
    };
    assert_eq!(encoded.len(), data.len());
    let again = Footer::parse(&encoded).expect("our own footer");
    assert_eq!(format!("{again:?}"), format!("{footer:?}"));
    footer.root(Suite::Blake3).is_some()
}

/// One segment of a recipe.
pub(crate) fn recipe(data: &[u8]) -> bool {
    let Ok(segment) = decode_segment(data) else {
        return false;
    };
    assert_eq!(encode_segment(&segment), data);
    assert_eq!(segments(&segment).count(), 1);
    let recipe = Recipe::new(segment);
    let last = recipe.len() - 1;
    assert_eq!(
        recipe.find(last).map(|(i, _)| i + 1),
        Some(recipe.chunks().len())
    );
    assert!(recipe.find(last + 1).is_none());
    assert_eq!(
        recipe.covering(0..recipe.len()).count(),
        recipe.chunks().len()
    );
    true
}

const STORE: &str = "/store";

fn put_file(disk: &MemDisk, path: &Path, bytes: &[u8]) {
    let dir = path.parent().expect("a file is in a directory");
    disk.create_dir(dir).expect("the fake disk");
    let file = disk.open(path, OpenMode::Create).expect("the fake disk");
    file.write_at(0, &[bytes]).expect("the fake disk");
    file.sync().expect("the fake disk");
    disk.sync_dir(dir).expect("the fake disk");
}

/// None: what lies there is a store of the other suite. A fuzzer sees what a record's name is compared with, and so finds
/// the right one.
fn try_open(disk: &MemDisk) -> Option<Store> {
    let disk = Arc::new(disk.clone());
    match Store::open(Path::new(STORE), disk, StoreOptions::default()) {
        Err(OpenStoreError::Suite { .. }) => None,
        opened => Some(opened.expect("damage is no reason not to open")),
    }
}

fn open(disk: &MemDisk) -> Store {
    try_open(disk).expect("it could be opened before")
}

/// Opens the store that lies on the disk, reads and writes, and does so again: what was good before stays so.
fn use_store(disk: &MemDisk, content: &[u8]) -> bool {
    let names: Vec<ChunkHash> = records(content)
        .map_while(Result::ok)
        .filter_map(|record| record.decode().ok())
        .map(|chunk| chunk_hash(&chunk))
        .collect();
    let Some(store) = try_open(disk) else {
        return false;
    };
    let mut found = Vec::new();
    for name in &names {
        if let Ok(Some(bytes)) = store.chunk(name) {
            assert_eq!(chunk_hash(&bytes), *name);
            found.push(*name);
        }
    }
    let new = chunk_hash(b"new");
    store.put_chunk(&new, b"new").expect("there is room");
    store.sync().expect("the disk is whole");
    drop(store);
    let store = open(disk);
    found.push(new);
    for name in &found {
        let bytes = store.chunk(name).expect("it could be read before");
        assert_eq!(chunk_hash(&bytes.expect("it was there before")), *name);
    }
    store.stats().chunks > 1
}

/// A pack file: `kind u8 | bytes`, an even kind of chunks, an odd one of nodes; sealed, or cut off anywhere.
pub(crate) fn pack(mut data: &[u8]) -> bool {
    let [kind] = take(&mut data);
    let disk = MemDisk::new();
    let path = if kind % 2 == 0 {
        "chunks/1.xorb"
    } else {
        "nodes/1.nodes"
    };
    put_file(&disk, &Path::new(STORE).join(path), data);
    use_store(&disk, data) || try_open(&disk).is_some_and(|store| store.stats().nodes > 0)
}

/// The journal beside a pack of chunks: `number of batches u8`, each `number of entries u8 | entries` (the target adds
/// the checksum), then the pack.
pub(crate) fn pack_journal(mut data: &[u8]) -> bool {
    const ENTRY_LEN: usize = 40;
    let [batches] = take(&mut data);
    let mut journal = Vec::new();
    for _ in 0..batches % 8 {
        let [entries] = take(&mut data);
        let len = (usize::from(entries) * ENTRY_LEN).min(data.len());
        let (entries_bytes, rest) = data.split_at(len);
        let mut batch = u32::from(entries).to_le_bytes().to_vec();
        batch.extend_from_slice(entries_bytes);
        let crc = crc32fast::hash(&batch);
        journal.extend_from_slice(&batch);
        journal.extend_from_slice(&crc.to_le_bytes());
        data = rest;
    }
    let disk = MemDisk::new();
    let pack = Path::new(STORE).join("chunks/1.xorb");
    put_file(&disk, &pack.with_extension("journal"), &journal);
    put_file(&disk, &pack, data);
    use_store(&disk, data)
}

/// The checkpoint of an index: `length u32 | bytes` for every section (the target adds the checksums), before a store
/// of a few packs. It may hide chunks, but not give wrong ones.
pub(crate) fn index_checkpoint(mut data: &[u8]) -> bool {
    let mut file = b"CCBTIDX\x01".to_vec();
    while !data.is_empty() {
        let len = u32::from_le_bytes(take(&mut data)) as usize;
        let (section, rest) = data.split_at(len.min(data.len()));
        file.extend_from_slice(&(section.len() as u32).to_le_bytes());
        file.extend_from_slice(section);
        file.extend_from_slice(&crc32fast::hash(section).to_le_bytes());
        data = rest;
    }
    let (disk, names) = checkpointed();
    put_file(
        &disk,
        &Path::new(STORE).join("chunks/index.checkpoint"),
        &file,
    );
    let store = open(&disk);
    let known = disk.contents(&Path::new(STORE).join("chunks/index.checkpoint"));
    for name in &names {
        if let Ok(Some(bytes)) = store.chunk(name) {
            assert_eq!(chunk_hash(&bytes), *name);
        }
    }
    let new = chunk_hash(b"new");
    store.put_chunk(&new, b"new").expect("there is room");
    store.sync().expect("the disk is whole");
    drop(store);
    let bytes = open(&disk).chunk(&new).expect("it was put");
    assert_eq!(bytes.as_deref(), Some(&b"new"[..]));
    known.is_some()
}

/// A store of three small packs with a checkpoint, and the names of its chunks.
pub(crate) fn checkpointed() -> (MemDisk, Vec<ChunkHash>) {
    let disk = MemDisk::new();
    let options = StoreOptions {
        pack_slots: 2,
        checkpoint_packs: 1,
        ..StoreOptions::default()
    };
    let store = Store::open(Path::new(STORE), Arc::new(disk.clone()), options);
    let store = store.expect("the fake disk");
    let mut names = Vec::new();
    for number in 0..7u8 {
        let name = chunk_hash(&[number; 50]);
        store
            .put_chunk(&name, &[number; 50])
            .expect("the fake disk");
        names.push(name);
    }
    store.sync().expect("the fake disk");
    store.checkpoint_if_due().expect("the fake disk");
    (disk, names)
}
