//! Whether anybody has a file open for writing, as the kernel knows it: a read lease is refused while somebody has.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::raw::c_int;

use rustix::process::Signal;

/// From Linux's `fcntl.h`, the same on every architecture.
const F_SETLEASE: c_int = 1024;
const F_SETSIG: c_int = 10;
/// From the `fcntl.h` of every architecture Rust's standard library builds this for.
const F_RDLCK: c_int = 0;

unsafe extern "C" {
    fn fcntl(fd: c_int, command: c_int, argument: c_int) -> c_int;
}

/// A file that nobody had open for writing when this was made. Whoever opens it so afterwards waits until this is gone,
/// or for as long as `/proc/sys/fs/lease-break-time` says.
#[derive(Debug)]
pub(super) struct Unwritten(#[expect(dead_code, reason = "holds the lease")] OwnedFd);

impl Unwritten {
    /// Fails if somebody has the file open for writing, and where that cannot be known: the file is another user's, or
    /// the file system has no leases. `file` was opened for reading only.
    pub(super) fn prove(file: OwnedFd) -> io::Result<Self> {
        // Who opens the file for writing has a signal sent to who has the lease. The usual one would end this process;
        // that of urgent data on sockets, which nobody here asks for, is ignored.
        set(&file, F_SETSIG, Signal::URG.as_raw())?;
        set(&file, F_SETLEASE, F_RDLCK)?;
        Ok(Self(file))
    }
}

fn set(file: &OwnedFd, command: c_int, argument: c_int) -> io::Result<()> {
    // SAFETY: with these commands `fcntl` takes a descriptor, which `file` keeps open during the call, and an integer; it
    // reads and writes no memory of ours.
    match unsafe { fcntl(file.as_raw_fd(), command, argument) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{File, OpenOptions};

    use super::*;

    #[test]
    fn a_file_that_is_being_written_is_known() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        let writer = File::create(&path).unwrap();
        let read = || OwnedFd::from(File::open(&path).unwrap());
        let error = Unwritten::prove(read()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock, "{error}");
        drop(writer);
        let unwritten = Unwritten::prove(read()).unwrap();
        let second = Unwritten::prove(read()).unwrap();
        drop((unwritten, second));
        let _writer = OpenOptions::new().write(true).open(&path).unwrap();
        assert!(Unwritten::prove(read()).is_err());
    }

    /// The kernel tells who has the lease by a signal, which must not end the process.
    #[test]
    fn who_opens_the_file_for_writing_meanwhile_only_waits() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        std::fs::write(&path, b"f").unwrap();
        let unwritten = Unwritten::prove(OwnedFd::from(File::open(&path).unwrap())).unwrap();
        let opening = std::thread::spawn(move || OpenOptions::new().write(true).open(path));
        std::thread::sleep(std::time::Duration::from_millis(200));
        drop(unwritten);
        opening.join().unwrap().unwrap();
    }
}
