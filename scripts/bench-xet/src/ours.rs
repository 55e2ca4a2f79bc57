//! The work of the store.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ccbt_xet::chunk::chunks;
use ccbt_xet::codec::Scheme;
use ccbt_xet::disk::RealDisk;
use ccbt_xet::hash::{ChunkHash, Suite};
use ccbt_xet::ingest::{self, IngestError};
use ccbt_xet::recipe::ChunkRef;
use ccbt_xet::store::{Collect, Marks, Store, StoreOptions};
use ccbt_xet::xorb::{Footer, RecordHeader};

use crate::input::{fill_noise, splitmix};
use crate::{Clock, Fields, Result, status_mib};

/// Bytes of one random read.
const READ_LEN: usize = 4096;

/// Random reads of one pass.
const READS: usize = 200_000;

/// Chunks of a synthetic pack, and their length: what 64 MiB hold at the usual mean.
const PACK_CHUNKS: u64 = 1024;
const CHUNK_LEN: u32 = 65_400;

/// Length of the chunks gc is measured with.
const SMALL_CHUNK: usize = 8 << 10;

pub fn chunk_hash(data: &[u8]) -> u64 {
    chunks(data)
        .map(|chunk| Suite::Blake3.chunk_hash(chunk).word(0))
        .fold(0, u64::wrapping_add)
}

fn open(dir: &Path) -> Result<Store> {
    Ok(Store::open(
        dir,
        Arc::new(RealDisk),
        StoreOptions::default(),
    )?)
}

/// As a commit of a written file does it.
fn store_file(store: &Store, file: &Path) -> Result<()> {
    let len = fs::metadata(file)?.len();
    store_bytes(store, len, File::open(file)?)?;
    store.sync()?;
    Ok(())
}

fn store_bytes(store: &Store, len: u64, bytes: impl io::Read + Send) -> Result<()> {
    let mut total = 0;
    ingest::store_stream(store, len, ingest::reader(bytes), |chunk: ChunkRef| {
        total += u64::from(chunk.len);
        Ok::<(), IngestError>(())
    })?;
    if total != len {
        return Err(format!("{total} bytes stored instead of {len}").into());
    }
    Ok(())
}

pub fn ingest(held: Option<&Path>, file: &Path, dir: &Path) -> Result<Fields> {
    let store = open(dir)?;
    if let Some(held) = held {
        store_file(&store, held)?;
    }
    let before = store.stats().bytes;
    let clock = Clock::start();
    store_file(&store, file)?;
    let fields = clock.stop(fs::metadata(file)?.len());
    let new = store.stats().bytes - before;
    Ok(fields.with("new_mib", new as f64 / f64::from(1 << 20)))
}

/// The chunks of a file that is in the store; stores it if it is not.
fn listed(store: &Store, file: &Path) -> Result<Vec<ChunkRef>> {
    let mut listed = Vec::new();
    ingest::each_chunk(Suite::Blake3, File::open(file)?, |hash, bytes| {
        listed.push(ChunkRef {
            hash: *hash,
            len: bytes.len() as u32,
        });
        Ok::<(), io::Error>(())
    })?;
    if !listed.iter().all(|chunk| store.is_packed(&chunk.hash)) {
        store_file(store, file)?;
    }
    Ok(listed)
}

/// Reads a file chunk by chunk, twice: each chunk is verified in the first pass only.
pub fn read(dir: &Path, file: &Path) -> Result<Fields> {
    drop((open(dir)?, listed(&open(dir)?, file)?));
    let mut plain = vec![0; 1 << 20];
    let mut fields = Fields::default();
    let mut reader = File::open(file)?;
    while io::Read::read(&mut reader, &mut plain)? > 0 {}
    let list = listed(&open(dir)?, file)?;
    let store = open(dir)?;
    let mut buffer = vec![0; 128 << 10];
    for pass in ["first", "second"] {
        let (clock, mut total) = (Instant::now(), 0);
        for chunk in &list {
            total += read_range(&store, chunk, 0, &mut buffer[..chunk.len as usize])?;
        }
        let rate = total as f64 / 1e6 / clock.elapsed().as_secs_f64();
        fields = fields.with(&format!("{pass}_mb_s"), rate);
    }
    Ok(fields)
}

/// What a reader does.
fn read_range(store: &Store, chunk: &ChunkRef, offset: u32, buf: &mut [u8]) -> Result<usize> {
    match store.read_range(&chunk.hash, offset, buf)? {
        Some(len) if len == chunk.len => Ok(std::hint::black_box(buf).len()),
        _ => Err("a chunk is not there".into()),
    }
}

/// Random reads inside of chunks, the second of two passes over the same places.
pub fn random(dir: &Path, file: &Path) -> Result<Fields> {
    let list = listed(&open(dir)?, file)?;
    let store = open(dir)?;
    let fitting = list.iter().filter(|chunk| chunk.len as usize >= READ_LEN);
    let fitting: Vec<&ChunkRef> = fitting.collect();
    let mut buffer = [0; READ_LEN];
    let mut fields = Fields::default();
    for pass in ["first", "second"] {
        let mut state = 3;
        let clock = Instant::now();
        for _ in 0..READS {
            let random = splitmix(&mut state);
            let chunk = fitting[(random >> 32) as usize % fitting.len()];
            let offset = random as u32 % (chunk.len - READ_LEN as u32 + 1);
            read_range(&store, chunk, offset, &mut buffer)?;
        }
        let rate = READS as f64 / clock.elapsed().as_secs_f64();
        fields = fields.with(&format!("{pass}_per_s"), rate);
    }
    Ok(fields)
}

/// Packs with true footers and holes for contents.
pub fn synthetic_packs(dir: &Path, chunks: u64) -> Result<Fields> {
    fs::create_dir_all(dir.join("chunks"))?;
    let header = RecordHeader {
        scheme: Scheme::Stored,
        payload_len: CHUNK_LEN,
        chunk_len: CHUNK_LEN,
    };
    for pack in 1..=chunks.div_ceil(PACK_CHUNKS) {
        let mut footer = Footer::new();
        for slot in 0..PACK_CHUNKS.min(chunks - (pack - 1) * PACK_CHUNKS) {
            footer.push(synthetic_name(pack, slot), &header);
        }
        let file = File::create(dir.join(format!("chunks/{pack:08}.xorb")))?;
        let bytes = footer.encode().ok_or("no footer")?;
        file.write_all_at(&bytes, u64::from(footer.records_len()))?;
    }
    Ok(Fields::default())
}

fn synthetic_name(pack: u64, slot: u64) -> ChunkHash {
    let mut name = [0; 32];
    fill_noise(pack << 32 | slot << 4, &mut name);
    ChunkHash::from_bytes(name)
}

/// Opens a store of synthetic packs and closes it, or is killed over unsynced work.
pub fn start(dir: &Path, and_die: bool) -> Result<Fields> {
    let before = status_mib("VmRSS")?;
    let clock = Clock::start();
    let store = open(dir)?;
    let fields = clock.stop(0);
    let stats = store.stats();
    for pack in 1..=stats.packs.min(100) {
        if !store.is_packed(&synthetic_name(pack, pack * 7 % PACK_CHUNKS)) {
            return Err(format!("a chunk of pack {pack} is not known").into());
        }
    }
    let fields = fields
        .with("chunks", stats.chunks as f64)
        .with("rss_mib", status_mib("VmRSS")? - before)
        .with("peak_mib", status_mib("VmHWM")?)
        .with("index_mib", stats.memory_bytes as f64 / f64::from(1 << 20));
    if and_die {
        die_while_storing(&store)?;
    }
    let clock = Instant::now();
    store.checkpoint_at_end()?;
    drop(store);
    Ok(fields.with("close_s", clock.elapsed().as_secs_f64()))
}

fn die_while_storing(store: &Store) -> Result<()> {
    let mut data = vec![0; 80 << 20];
    fill_noise(u64::from(std::process::id()), &mut data);
    let (synced, unsynced) = data.split_at(70 << 20);
    store_bytes(store, synced.len() as u64, synced)?;
    store.sync()?;
    store_bytes(store, unsynced.len() as u64, unsynced)?;
    rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL)?;
    Err("survived".into())
}

/// Stores small chunks, then drops every second one.
pub fn collect(dir: &Path, chunks: u64) -> Result<Fields> {
    let store = open(dir)?;
    let mut numbers = HashMap::new();
    let mut block = vec![0; SMALL_CHUNK * 64];
    for first in (0..chunks).step_by(64) {
        fill_noise(first << 32, &mut block);
        let pieces: Vec<(ChunkHash, &[u8])> = block
            .chunks(SMALL_CHUNK)
            .map(|piece| (Suite::Blake3.chunk_hash(piece), piece))
            .collect();
        for (number, (hash, _)) in (first..).zip(&pieces) {
            numbers.insert(*hash, number);
        }
        store.put_chunks(&pieces)?;
    }
    store.sync()?;
    let before = disk_bytes(dir)?;
    let clock = Clock::start();
    let mark = |marks: &mut Marks<'_>| {
        let wanted = numbers.iter().filter(|(_, number)| *number % 2 == 0);
        wanted.for_each(|(hash, _)| marks.chunk(hash));
        Ok::<_, io::Error>(())
    };
    let how = Collect {
        wait: Duration::ZERO,
        grace: Duration::ZERO,
        dry_run: false,
    };
    store.collect(mark, &how, &mut |_, _| true)?;
    let fields = clock.stop(0);
    let kept = numbers.iter().filter(|(_, number)| *number % 2 == 0);
    for (hash, _) in kept.step_by(997) {
        let bytes = store.chunk(hash)?.ok_or("a kept chunk is gone")?;
        if Suite::Blake3.chunk_hash(&bytes) != *hash {
            return Err("a kept chunk changed".into());
        }
    }
    let fallen = 1.0 - disk_bytes(dir)? / before;
    Ok(fields.with("fallen", fallen))
}

/// Bytes the store takes on disk.
fn disk_bytes(dir: &Path) -> Result<f64> {
    let mut total = 0;
    for entry in fs::read_dir(dir.join("chunks"))? {
        total += std::os::unix::fs::MetadataExt::blocks(&entry?.metadata()?) * 512;
    }
    Ok(total as f64)
}
