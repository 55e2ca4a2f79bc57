//! The rows of `scripts/bench xet`, one measurement a call: `bench-xet ROW ARGS..` prints one line of JSON.
//!
//! `ours` is the store of ccbt, `ref` the published xet-data. Seconds are CPU of the whole process, user and system,
//! over the measured part only; rates are wall clock, in units of 10^6 bytes.

mod input;
mod ours;
mod reference;

use std::env;
use std::error::Error;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Mutex;
use std::time::Instant;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

fn main() -> ExitCode {
    let args: Vec<String> = env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match run(&args) {
        Ok(fields) => {
            println!("{{{}}}", fields.0.join(", "));
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("bench-xet {}: {error}", args.join(" "));
            ExitCode::FAILURE
        }
    }
}

fn run(args: &[&str]) -> Result<Fields> {
    match *args {
        ["noise", path, mib] => input::noise_file(Path::new(path), mib.parse()?),
        ["text", path, mib] => input::text_file(Path::new(path), mib.parse()?),
        ["edited", from, to] => input::edited_file(Path::new(from), Path::new(to)),
        ["chunkhash", side, threads, mib] => chunk_hash(side, threads.parse()?, mib.parse()?),
        ["ingest", "ours", file, dir] => ours::ingest(None, Path::new(file), Path::new(dir)),
        ["ingest", "ours", file, dir, held] => {
            ours::ingest(Some(Path::new(held)), Path::new(file), Path::new(dir))
        }
        ["ingest", side, file, dir] => {
            reference::ingest(side, None, Path::new(file), Path::new(dir))
        }
        ["ingest", side, file, dir, held] => {
            reference::ingest(side, Some(Path::new(held)), Path::new(file), Path::new(dir))
        }
        ["read", dir, file] => ours::read(Path::new(dir), Path::new(file)),
        ["random", dir, file] => ours::random(Path::new(dir), Path::new(file)),
        ["packs", dir, chunks] => ours::synthetic_packs(Path::new(dir), chunks.parse()?),
        ["start", dir] => ours::start(Path::new(dir), false),
        ["start-and-die", dir] => ours::start(Path::new(dir), true),
        ["gc", dir, chunks] => ours::collect(Path::new(dir), chunks.parse()?),
        _ => Err("no such row".into()),
    }
}

/// Length of what a thread cuts and hashes before it looks for more, in bytes.
const PART_LEN: usize = 8 << 20;

/// Cuts and hashes bytes in memory with as many threads. As in an ingest, this thread is one of them, and whoever is free
/// takes what is next: in equal shares the clock would show the slower of two cores twice over, and not what both do.
fn chunk_hash(side: &str, threads: usize, mib: usize) -> Result<Fields> {
    let cut: fn(&[u8]) -> u64 = match side {
        "ours" => ours::chunk_hash,
        _ => reference::chunk_hash,
    };
    let mut data = vec![0; mib << 20];
    input::fill_noise(1, &mut data);
    std::hint::black_box(cut(&data[..data.len() / 8]));
    let parts = Mutex::new(data.chunks(PART_LEN));
    let next = || parts.lock().ok()?.next();
    let take = || {
        while let Some(part) = next() {
            std::hint::black_box(cut(part));
        }
    };
    let clock = Clock::start();
    std::thread::scope(|scope| {
        for _ in 1..threads {
            scope.spawn(take);
        }
        take();
    });
    Ok(clock.stop(data.len() as u64))
}

/// What is printed: `"name": number`.
#[derive(Default)]
struct Fields(Vec<String>);

impl Fields {
    fn with(mut self, name: &str, value: f64) -> Self {
        self.0.push(format!("\"{name}\": {value:.6}"));
        self
    }
}

/// Wall clock and CPU of the process.
struct Clock {
    wall: Instant,
    cpu: f64,
}

impl Clock {
    fn start() -> Self {
        Self {
            wall: Instant::now(),
            cpu: cpu_seconds(),
        }
    }

    fn stop(&self, bytes: u64) -> Fields {
        let (wall, cpu) = (self.wall.elapsed().as_secs_f64(), cpu_seconds() - self.cpu);
        Fields::default()
            .with("s", wall)
            .with("cpu_s", cpu)
            .with("mb_s", bytes as f64 / 1e6 / wall)
    }
}

/// User and system time of all threads, dead ones included.
fn cpu_seconds() -> f64 {
    let usage = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    usage.tv_sec as f64 + usage.tv_nsec as f64 / 1e9
}

/// A line of `/proc/self/status`, in MiB.
fn status_mib(name: &str) -> Result<f64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    let kib = line.and_then(|rest| rest.trim_start_matches(':').split_whitespace().next());
    Ok(kib.ok_or("not in the status")?.parse::<f64>()? / 1024.0)
}
