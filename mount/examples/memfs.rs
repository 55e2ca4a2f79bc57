//! Mounts a file system that lives in memory until SIGTERM, SIGINT or an external unmount.
//!
//! `memfs MOUNT_POINT [--suid] [--dev] [--read-only]`

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use ccbt_mount::{Caller, MemoryVolume, MountOptions, Unmounted, mount};

/// Bytes the files hold at most together.
const CAPACITY: u64 = 8 << 30;

const SIGINT: i32 = 2;
const SIGTERM: i32 = 15;

static STOP: AtomicBool = AtomicBool::new(false);

extern "C" fn stop(_signal: i32) {
    STOP.store(true, Ordering::Relaxed);
}

unsafe extern "C" {
    fn signal(number: i32, handler: extern "C" fn(i32)) -> usize;
}

fn main() -> ExitCode {
    let (flags, paths): (Vec<String>, Vec<String>) = std::env::args()
        .skip(1)
        .partition(|argument| argument.starts_with("--"));
    let [path] = paths.as_slice() else {
        eprintln!("usage: memfs MOUNT_POINT [--suid] [--dev] [--read-only]");
        return ExitCode::from(2);
    };
    let has = |flag: &str| flags.iter().any(|given| given == flag);
    let options = MountOptions {
        fsname: "memfs".into(),
        suid: has("--suid"),
        dev: has("--dev"),
        read_only: has("--read-only"),
        ..MountOptions::default()
    };
    for number in [SIGINT, SIGTERM] {
        // SAFETY: the handler only stores to an atomic, which is allowed in a signal handler.
        unsafe { signal(number, stop) };
    }
    run(&PathBuf::from(path), &options)
}

fn run(path: &std::path::Path, options: &MountOptions) -> ExitCode {
    let owner = Caller {
        uid: rustix::process::getuid().as_raw(),
        gid: rustix::process::getgid().as_raw(),
    };
    let volume = Arc::new(MemoryVolume::new(owner, CAPACITY));
    let mounted = match mount(volume, path, options) {
        Ok(mounted) => mounted,
        Err(error) => {
            eprintln!("memfs: {error}");
            return ExitCode::FAILURE;
        }
    };
    println!("mounted on {}", mounted.path().display());
    loop {
        let ended = mounted.wait_for(Duration::from_millis(50));
        if ended || STOP.load(Ordering::Relaxed) {
            break;
        }
    }
    match mounted.unmount() {
        Ok(Unmounted::Done) => ExitCode::SUCCESS,
        Ok(Unmounted::StillInUse) => {
            eprintln!("memfs: files were still open");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("memfs: {error}");
            ExitCode::FAILURE
        }
    }
}
