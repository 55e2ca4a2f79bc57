//! A daemon that was killed and cannot end.
//!
//! The kernel may make a thread of the daemon wait for a directory that a program has locked, while that program waits
//! for the daemon's answer. Killed in that moment, the daemon stays: it keeps its files open and its lock, and the program
//! hangs, until its mounts are aborted. Which those are, it notes in the lock file while it lives.

use std::fs::{File, TryLockError};
use std::io;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use ccbt_mount::{MountId, UnmountError};

/// The lock file has a line for each mount; a daemon with more than this many bytes of them is not believed.
const HOLDER_BYTES_MAX: usize = 1 << 20;
/// How long a killed process may take to end by itself: it may be in the middle of a sync.
const ENDING: Duration = Duration::from_secs(1);
/// How long it may take once its mounts are aborted.
const ABORTED: Duration = Duration::from_secs(5);
const POLL: Duration = Duration::from_millis(10);

/// Who holds a state directory.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Holder {
    pub(super) pid: u32,
    pub(super) mounts: Vec<MountId>,
}

/// Writes what [`read_holder`] reads. Not synced: it is of use only while this process exists.
pub(super) fn write_holder(lock: &File, mounts: &[MountId]) -> io::Result<()> {
    let mut text = format!("{}\n", std::process::id());
    for mount in mounts {
        text.push_str(&format!("{mount}\n"));
    }
    lock.write_all_at(text.as_bytes(), 0)?;
    lock.set_len(text.len() as u64)
}

/// `None` if the file does not say. Lines that are not understood are skipped.
pub(super) fn read_holder(lock: &File) -> Option<Holder> {
    let len = usize::try_from(lock.metadata().ok()?.len()).ok()?;
    let mut bytes = vec![0; len.min(HOLDER_BYTES_MAX)];
    lock.read_exact_at(&mut bytes, 0).ok()?;
    parse_holder(std::str::from_utf8(&bytes).ok()?)
}

pub(crate) fn parse_holder(text: &str) -> Option<Holder> {
    let mut lines = text.lines();
    let pid = lines.next()?.trim().parse().ok()?;
    let mounts = lines.filter_map(|line| line.parse().ok()).collect();
    Some(Holder { pid, mounts })
}

/// If `lock` is held by a process that was killed, waits until it has ended, and helps it to.
pub(super) fn end_holder(lock: &File) -> Result<(), UnmountError> {
    let Some(holder) = read_holder(lock) else {
        return Ok(());
    };
    if !is_held(lock) || !is_dying(holder.pid) || is_free_within(lock, ENDING) {
        return Ok(());
    }
    for mount in holder.mounts {
        ccbt_mount::abort(mount)?;
    }
    is_free_within(lock, ABORTED);
    Ok(())
}

/// Takes away the dead mounts that the last holder of `lock`, which we hold now, left: whoever looks into one gets an
/// error, and its directory cannot be used.
pub(super) fn detach_left(lock: &File) {
    for mount in read_holder(lock)
        .into_iter()
        .flat_map(|holder| holder.mounts)
    {
        if let Err(error) = ccbt_mount::detach_dead_mount(mount) {
            tracing::warn!(%error, "a mount of a daemon that was killed stays");
        }
    }
}

fn is_held(lock: &File) -> bool {
    let held = matches!(lock.try_lock_shared(), Err(TryLockError::WouldBlock));
    if !held {
        // Only asked for to see whether it is free; a failure means that it was not taken.
        let _free = lock.unlock();
    }
    held
}

fn is_free_within(lock: &File, limit: Duration) -> bool {
    let until = Instant::now() + limit;
    while is_held(lock) {
        if Instant::now() >= until {
            return false;
        }
        std::thread::sleep(POLL);
    }
    true
}

/// Whether the process is dead but for threads that the kernel has not ended yet (proc_pid_stat(5)).
fn is_dying(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The name before it may contain anything.
    let state = stat
        .rsplit_once(") ")
        .and_then(|(_, rest)| rest.chars().next());
    matches!(state, Some('Z' | 'X'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_holder_reads_back_and_garbage_is_nobody() {
        let file = tempfile::tempfile().unwrap();
        assert_eq!(read_holder(&file), None);
        let mounts: Vec<MountId> = ["31 0:45", "9999999 0:1048575"]
            .map(|id| id.parse().unwrap())
            .to_vec();
        for mounts in [mounts, Vec::new()] {
            write_holder(&file, &mounts).unwrap();
            let pid = std::process::id();
            assert_eq!(read_holder(&file), Some(Holder { pid, mounts }));
        }
        for bad in ["", "x", "-1\n", "\n12\n"] {
            assert_eq!(parse_holder(bad), None, "{bad:?}");
        }
        let odd = parse_holder("7\nx\n1 2\n3 4:5\n").unwrap();
        assert_eq!(odd.mounts, ["3 4:5".parse().unwrap()]);
    }

    #[test]
    fn only_a_process_that_was_killed_is_dying() {
        assert!(!is_dying(std::process::id()));
        assert!(!is_dying(u32::MAX));
        let mut child = std::process::Command::new("sleep")
            .arg("60")
            .spawn()
            .unwrap();
        assert!(!is_dying(child.id()));
        child.kill().unwrap();
        // Nobody has waited for it yet.
        while !is_dying(child.id()) {
            std::thread::sleep(POLL);
        }
        child.wait().unwrap();
        assert!(!is_dying(child.id()));
    }

    #[test]
    fn a_lock_held_by_the_living_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let held = File::create_new(&path).unwrap();
        held.lock().unwrap();
        write_holder(&held, &[]).unwrap();
        let other = File::open(&path).unwrap();
        end_holder(&other).unwrap();
        assert!(is_held(&other));
        drop(held);
        assert!(!is_held(&other));
    }
}
