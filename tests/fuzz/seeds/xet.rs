//! Seeds of the store's targets.

use std::path::Path;
use std::sync::Arc;

use ccbt_xet::assemble::Assembler;
use ccbt_xet::codec::{Encoder, Scheme};
use ccbt_xet::disk::{Disk, MemDisk};
use ccbt_xet::hash::{ChunkHash, Suite, chunk_hash, node_id};
use ccbt_xet::recipe::{ChunkRef, encode_segment};
use ccbt_xet::shard::Form;
use ccbt_xet::store::{Store, StoreOptions};
use ccbt_xet::xorb::{Footer, RecordHeader};

use super::with_prefix;
use crate::targets::checkpointed;

fn chunks() -> Vec<Vec<u8>> {
    let line = b"a line that is much the same as the others\n";
    let floats = (0..200_u32).flat_map(|n| (n as f32).to_le_bytes());
    vec![b"short".to_vec(), line.repeat(20), floats.collect()]
}

pub(super) fn chunk_stream() -> Vec<Vec<u8>> {
    vec![
        // Noise, one byte, noise; blocks of 5000 bytes and more.
        vec![1, 0, 0x60, 200, 0xff, 0x7f, 2, 0xff, 0x9f, 19, 136],
        vec![7, 0xff, 0xff, 0],
        vec![255, 0xff, 0xff, 3, 0, 1],
    ]
}

pub(super) fn hash_text() -> Vec<Vec<u8>> {
    let text = chunk_hash(b"some chunk").to_string();
    vec![
        text.to_uppercase().into_bytes(),
        text.into_bytes(),
        vec![b'0'; 63],
    ]
}

pub(super) fn codec() -> Vec<Vec<u8>> {
    let mut out = Vec::new();
    let mut encoder = Encoder::new();
    for chunk in chunks() {
        for scheme in [Scheme::Stored, Scheme::Lz4, Scheme::GroupedLz4] {
            let encoded = encoder.encode(scheme, &chunk);
            let [a, b, c, _] = (chunk.len() as u32).to_le_bytes();
            out.push(with_prefix(
                &[encoded.scheme.as_byte(), a, b, c],
                encoded.payload,
            ));
        }
    }
    out.dedup();
    out
}

/// Records and their footer.
fn sealed() -> (Vec<u8>, Vec<u8>) {
    let (mut records, mut footer, mut encoder) = (Vec::new(), Footer::new(), Encoder::new());
    for (chunk, scheme) in chunks()
        .iter()
        .zip([Scheme::Stored, Scheme::Lz4, Scheme::GroupedLz4])
    {
        let encoded = encoder.encode(scheme, chunk);
        let header = RecordHeader {
            scheme: encoded.scheme,
            payload_len: encoded.payload.len() as u32,
            chunk_len: chunk.len() as u32,
        };
        records.extend_from_slice(&header.encode());
        records.extend_from_slice(encoded.payload);
        footer.push(chunk_hash(chunk), &header);
    }
    footer.seal(Suite::Blake3);
    (records, footer.encode().expect("a footer of version 1"))
}

pub(super) fn xorb() -> Vec<Vec<u8>> {
    let (records, footer) = sealed();
    let vectors = vectors(include_str!("../../../xet/tests/vectors/xorb.json"));
    let mut out = vec![records.clone(), [records, footer].concat()];
    out.extend(short_bytes(&vectors["xorbs"], &["with_footer_base64"]));
    out.extend(short_bytes(&vectors["corrupted"], &["bytes_base64"]));
    out
}

fn vectors(text: &str) -> serde_json::Value {
    serde_json::from_str(text).expect("the vectors are JSON")
}

/// Longest vector that becomes a seed, in bytes: the corpus is part of every checkout.
const SEED_LEN_MAX: usize = 8 << 10;

/// The base64 at `path` in each of the cases, where it is short.
fn short_bytes(cases: &serde_json::Value, path: &[&str]) -> Vec<Vec<u8>> {
    let cases = cases.as_array().into_iter().flatten();
    let texts = cases.filter_map(|case| {
        let found = path.iter().try_fold(case, |value, key| value.get(key));
        let bytes = data_encoding::BASE64.decode(found?.as_str()?.as_bytes());
        Some(bytes.expect("the vectors are base64"))
    });
    texts.filter(|bytes| bytes.len() <= SEED_LEN_MAX).collect()
}

pub(super) fn footer() -> Vec<Vec<u8>> {
    vec![sealed().1]
}

pub(super) fn recipe() -> Vec<Vec<u8>> {
    let chunk = |first: u8, len| ChunkRef {
        hash: ChunkHash::from_bytes([first; 32]),
        len,
    };
    vec![
        encode_segment(&[chunk(1, 1)]),
        encode_segment(&[chunk(3, 9000), chunk(2, 131_072), chunk(0, 70_000)]),
    ]
}

/// A store with chunks and nodes whose packs are not sealed.
fn store() -> MemDisk {
    let disk = MemDisk::new();
    let opened = Store::open(
        Path::new("/store"),
        Arc::new(disk.clone()),
        StoreOptions::default(),
    );
    let store = opened.expect("a new store");
    for chunk in chunks() {
        store
            .put_chunk(&chunk_hash(&chunk), &chunk)
            .expect("there is room");
        store
            .put_node(1, &node_id(1, &chunk), &chunk)
            .expect("there is room");
        store.sync().expect("the disk is whole");
    }
    disk
}

fn file(disk: &MemDisk, dir: &str, extension: &str) -> Vec<u8> {
    let paths = disk
        .list(&Path::new("/store").join(dir))
        .expect("the fake disk");
    let path = paths
        .iter()
        .find(|path| path.extension().is_some_and(|found| found == extension));
    disk.contents(path.expect("the store has such a file"))
        .expect("it was listed")
}

pub(super) fn pack() -> Vec<Vec<u8>> {
    let (records, footer) = sealed();
    let nodes = file(&store(), "nodes", "nodes");
    vec![
        with_prefix(&[0], [&records[..], &footer].concat()),
        with_prefix(&[0], &records),
        with_prefix(&[0], &records[..records.len() - 3]),
        with_prefix(&[1], &nodes),
    ]
}

pub(super) fn pack_journal() -> Vec<Vec<u8>> {
    let disk = store();
    let (pack, mut journal) = (
        file(&disk, "chunks", "xorb"),
        &file(&disk, "chunks", "journal")[..],
    );
    let (mut batches, mut bodies) = (0, Vec::new());
    while let Some((count, rest)) = journal.split_first_chunk::<4>() {
        let count = u32::from_le_bytes(*count) as usize;
        bodies.push(count as u8);
        bodies.extend_from_slice(&rest[..40 * count]);
        journal = &rest[40 * count + 4..];
        batches += 1;
    }
    let journal = with_prefix(&[batches], &bodies);
    vec![
        [&journal[..], &pack].concat(),
        [&journal[..], &pack[..40]].concat(),
        with_prefix(&[0], &pack),
    ]
}

pub(super) fn shard() -> Vec<Vec<u8>> {
    let mut assembler = Assembler::new(Suite::Blake3);
    for chunk in chunks() {
        let added = assembler.chunk(&chunk_hash(&chunk), &chunk);
        added.expect("a chunk");
    }
    assembler.end_file(Some([7; 32]));
    assembler.end_file(None);
    let (_, mut shard) = assembler.finish_shard();
    let mut out: Vec<Vec<u8>> = [Form::LOCAL, Form::SERVER, Form::Upload]
        .map(|form| shard.encode(form).expect("our own shard"))
        .into();
    shard.files.clear();
    shard.key = Some([9; 32]);
    out.push(shard.encode(Form::LOCAL).expect("our own shard"));
    let vectors = vectors(include_str!("../../../xet/tests/vectors/shard.json"));
    out.extend(short_bytes(&vectors["shards"], &["with_footer_base64"]));
    out.extend(short_bytes(
        &vectors["shards"],
        &["server_reserialized", "base64"],
    ));
    out.extend(short_bytes(&vectors["keyed"], &["base64"]));
    out
}

/// The sections of a checkpoint without their checksums.
pub(super) fn index_checkpoint() -> Vec<Vec<u8>> {
    let (disk, _) = checkpointed();
    let file = disk.contents(Path::new("/store/chunks/index.checkpoint"));
    let file = file.expect("the store has one");
    let (mut rest, mut out) = (&file[8..], Vec::new());
    while let Some((len, after)) = rest.split_first_chunk::<4>() {
        let (section, after) = after.split_at(u32::from_le_bytes(*len) as usize);
        out.extend_from_slice(len);
        out.extend_from_slice(section);
        rest = &after[4..];
    }
    let shorter = out[..out.len() - 20].to_vec();
    vec![out, shorter]
}
