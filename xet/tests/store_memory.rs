//! What long work takes of memory. One test, in a process of its own, as it looks at all of the process.

#[expect(dead_code, reason = "the chunks of other tests")]
mod store_support;

use std::convert::Infallible;
use std::time::Duration;

use ccbt_xet::disk::MemDisk;
use ccbt_xet::hash::{ChunkHash, Suite};
use ccbt_xet::ingest::{IngestError, Taken, name_stream, store_stream};
use ccbt_xet::store::{Collect, Marks, StoreOptions};
use store_support::{noise, open_with, small_packs};

/// Names that are asked for while a gc runs. Kept, they would take more than [`GROWTH_MAX_KIB`] several times over.
const NAMES: u64 = 2_000_000;

const GROWTH_MAX_KIB: u64 = 16 * 1024;

fn resident_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("this is Linux");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line
        .and_then(|rest| rest.split_whitespace().next())
        .expect("a size");
    kib.parse().expect("a number")
}

/// Bytes of a stream that is long beside what may be kept of it.
const STREAM_BYTES: u64 = 512 << 20;

#[test]
fn long_work_takes_no_more_memory_than_short_work() {
    a_gc_does_not_keep_the_names_of_what_is_put_meanwhile();
    a_stream_takes_the_same_however_long_it_is();
}

/// A stream that repeats itself every few MB, so that the store does not grow with it.
fn stream() -> impl FnMut(&mut [u8]) -> Result<Taken, IngestError> + Send {
    let (_, bytes) = noise(3, 5_000_000);
    let (mut left, mut at) = (STREAM_BYTES, 0);
    move |buf| {
        let len = buf.len().min(bytes.len() - at).min(left as usize);
        buf[..len].copy_from_slice(&bytes[at..at + len]);
        (at, left) = ((at + len) % bytes.len(), left - len as u64);
        Ok(Taken::Bytes(len))
    }
}

fn a_stream_takes_the_same_however_long_it_is() {
    let store = open_with(&MemDisk::new(), StoreOptions::default(), "opens");
    let (mut read, mut total) = (stream(), 0);
    let first = |buf: &mut [u8]| match total < 20_000_000 {
        true => read(buf).inspect(|taken| {
            if let Taken::Bytes(len) = taken {
                total += len;
            }
        }),
        false => Ok(Taken::Bytes(0)),
    };
    store_stream(&store, u64::MAX, first, |_| Ok::<_, IngestError>(())).expect("stored");
    let before = resident_kib();
    let mut named = 0;
    name_stream(Suite::Blake3, STREAM_BYTES, stream(), |chunk| {
        named += u64::from(chunk.len);
        Ok::<_, IngestError>(())
    })
    .expect("named");
    let mut stored = 0;
    store_stream(&store, STREAM_BYTES, stream(), |chunk| {
        stored += u64::from(chunk.len);
        Ok::<_, IngestError>(())
    })
    .expect("stored");
    assert_eq!((named, stored), (STREAM_BYTES, STREAM_BYTES));
    let grown = resident_kib().saturating_sub(before);
    assert!(grown < GROWTH_MAX_KIB, "{grown} KiB more");
}

fn a_gc_does_not_keep_the_names_of_what_is_put_meanwhile() {
    let store = open_with(&MemDisk::new(), small_packs(), "opens");
    let chunks: Vec<_> = (0..40).map(|n| noise(n, 500)).collect();
    for (hash, bytes) in &chunks {
        store.put_chunk(hash, bytes).expect("put");
    }
    let mut grown = 0;
    let mark = |_: &mut Marks<'_>| {
        let before = resident_kib();
        let mut name = [7; 32];
        for n in 0..NAMES {
            name[..8].copy_from_slice(&n.wrapping_mul(0x9E37_79B9_7F4A_7C15).to_be_bytes());
            assert!(!store.note_held(&ChunkHash::from_bytes(name)));
        }
        // What is held and asked for stays all the same.
        chunks
            .iter()
            .step_by(2)
            .for_each(|(hash, _)| assert!(store.note_held(hash)));
        grown = resident_kib().saturating_sub(before);
        Ok::<_, Infallible>(())
    };
    let how = Collect {
        wait: Duration::ZERO,
        grace: Duration::ZERO,
        dry_run: false,
    };
    let done = store
        .collect(mark, &how, &mut |_, _| true)
        .expect("collects");
    assert!(grown < GROWTH_MAX_KIB, "{grown} KiB more");
    assert_eq!(done.dropped, 20);
    for (n, (hash, bytes)) in chunks.iter().enumerate() {
        let held = store.chunk(hash).expect("reads");
        assert_eq!(
            held.as_deref(),
            n.is_multiple_of(2).then_some(&bytes[..]),
            "{n}"
        );
    }
}
