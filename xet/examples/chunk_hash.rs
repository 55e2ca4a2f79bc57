//! How fast bytes in memory are cut and hashed: `cargo run --release -p ccbt-xet --example chunk_hash [MiB]`.
//!
//! Prints, for each way and suite, the median and the range of five runs in GiB per second that one thread spends on
//! a core, so that other work on the machine shows little; and the median in CPU seconds per 10^9 bytes.

use std::hint::black_box;
use std::io;
use std::time::Instant;

use ccbt_xet::chunk::chunks;
use ccbt_xet::hash::Suite;
use ccbt_xet::ingest::each_chunk;

const RUNS: usize = 5;

fn main() {
    let mib = std::env::args().nth(1).and_then(|arg| arg.parse().ok());
    let data = noise(mib.unwrap_or(256) << 20);
    measure("cuts only", &data, |data| chunks(data).count() as u64);
    for suite in [Suite::Blake3, Suite::Sha256] {
        measure(&format!("cut and hash, {suite:?}"), &data, |data| {
            chunks(data)
                .map(|chunk| suite.chunk_hash(chunk).word(0))
                .fold(0, u64::wrapping_add)
        });
    }
    measure("through windows, Blake3", &data, |data| {
        let mut sum = 0u64;
        let done = each_chunk(Suite::Blake3, data, |hash, _| {
            sum = sum.wrapping_add(hash.word(0));
            Ok::<(), io::Error>(())
        });
        done.map_or(0, |()| sum)
    });
    measure("64 KiB pieces, Blake3", &data, |data| {
        data.chunks(64 << 10)
            .map(|piece| Suite::Blake3.chunk_hash(piece).word(0))
            .fold(0, u64::wrapping_add)
    });
}

fn measure(what: &str, data: &[u8], run: impl Fn(&[u8]) -> u64) {
    black_box(run(data));
    let mut rates: Vec<f64> = (0..RUNS)
        .map(|_| {
            let start = Clock::now();
            black_box(run(black_box(data)));
            data.len() as f64 / start.seconds() / f64::from(1 << 30)
        })
        .collect();
    rates.sort_by(f64::total_cmp);
    println!(
        "{what:<26} {:.2} GiB/s ({:.2} to {:.2})  {:.3} s/GB",
        rates[RUNS / 2],
        rates[0],
        rates[RUNS - 1],
        1e9 / (rates[RUNS / 2] * f64::from(1 << 30))
    );
}

/// Time of this thread on a core, or, where the system does not tell, time.
struct Clock(Instant, Option<u64>);

impl Clock {
    fn now() -> Self {
        Self(Instant::now(), on_core_ns())
    }

    fn seconds(&self) -> f64 {
        match (self.1, on_core_ns()) {
            (Some(before), Some(now)) if now > before => (now - before) as f64 / 1e9,
            _ => self.0.elapsed().as_secs_f64(),
        }
    }
}

fn on_core_ns() -> Option<u64> {
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat").ok()?;
    stat.split(' ').next()?.parse().ok()
}

/// Bytes without a pattern (splitmix64).
fn noise(len: usize) -> Vec<u8> {
    let mut state = 1u64;
    let mut out = Vec::with_capacity(len + 8);
    while out.len() < len {
        state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        out.extend_from_slice(&(z ^ (z >> 31)).to_le_bytes());
    }
    out.truncate(len);
    out
}
