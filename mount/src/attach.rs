//! The system calls and helpers that put a FUSE mount into the tree and take it out again.
//!
//! fuser's own mounting is not used: as root it cannot give the mount a subtype, and dropping its handle unmounts
//! whatever lies on the path by then. Root calls mount(2); others ask the set-uid helper `fusermount3`, which opens
//! `/dev/fuse`, mounts, and passes the descriptor back over a socket.

use std::ffi::CString;
use std::io::{self, ErrorKind, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};

use rustix::fs::Access;
use rustix::mount::{MountFlags, UnmountFlags};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};

use crate::errno::{Failure, failure};
use crate::mountinfo::{FS_TYPE, quoted};
use crate::session::{MountError, MountOptions, UnmountError};

const DEVICE: &str = "/dev/fuse";
const HELPERS: [&str; 2] = ["fusermount3", "fusermount"];
/// The helper finds the number of the socket to answer on in this variable.
const HELPER_SOCKET: &str = "_FUSE_COMMFD";

/// Mounts at `path` (absolute) and returns the descriptor to serve it by.
pub(crate) fn attach(path: &Path, options: &MountOptions) -> Result<OwnedFd, MountError> {
    if !Path::new(DEVICE).exists() {
        return Err(MountError::NoDevice);
    }
    if rustix::process::geteuid().is_root() {
        match attach_directly(path, options) {
            // Root in a container may be refused what the helper of the host's image is allowed.
            Err(error) if failure(&error) == Failure::NotPermitted => {
                tracing::debug!(%error, "mount(2) is not permitted, trying the helper");
            }
            result => {
                return result.map_err(|source| MountError::Io {
                    path: path.into(),
                    source,
                });
            }
        }
    }
    attach_by_helper(path, options)
}

fn attach_directly(path: &Path, options: &MountOptions) -> io::Result<OwnedFd> {
    let device = std::fs::File::options()
        .read(true)
        .write(true)
        .open(DEVICE)?;
    let mode = rustix::fs::stat(path)?.st_mode;
    let data = format!(
        "fd={},rootmode={mode:o},user_id={},group_id={},default_permissions{}",
        device.as_raw_fd(),
        rustix::process::getuid().as_raw(),
        rustix::process::getgid().as_raw(),
        if options.others_allowed() {
            ",allow_other"
        } else {
            ""
        },
    );
    let flag = |set, flag| if set { flag } else { MountFlags::empty() };
    let flags = flag(options.read_only, MountFlags::RDONLY)
        | flag(!options.suid, MountFlags::NOSUID)
        | flag(!options.dev, MountFlags::NODEV);
    let data = CString::new(data)?;
    rustix::mount::mount(
        options.fsname.as_str(),
        path,
        FS_TYPE,
        flags,
        data.as_c_str(),
    )?;
    Ok(device.into())
}

fn attach_by_helper(path: &Path, options: &MountOptions) -> Result<OwnedFd, MountError> {
    let to_io = |source| MountError::Io {
        path: path.into(),
        source,
    };
    let (ours, theirs) = UnixStream::pair().map_err(to_io)?;
    let theirs = OwnedFd::from(theirs);
    for helper in HELPERS {
        let child = Command::new(helper)
            .args(["-o", &helper_options(options), "--"])
            .arg(path)
            // The socket becomes descriptor 0: no other can be handed down without racing other threads' children.
            .env(HELPER_SOCKET, "0")
            .stdin(Stdio::from(theirs.try_clone().map_err(to_io)?))
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn();
        let child = match child {
            Err(error) if error.kind() == ErrorKind::NotFound => continue,
            child => child.map_err(to_io)?,
        };
        drop(theirs);
        let received = receive_descriptor(&ours);
        let output = child.wait_with_output().map_err(to_io)?;
        return match received.map_err(to_io)? {
            Some(device) => Ok(device),
            None => Err(refusal(path, first_line(&output.stderr))),
        };
    }
    Err(MountError::NoHelper)
}

/// What the helper's refusal means. It opens the device as root where it can, so that we may not is no reason by itself.
fn refusal(path: &Path, message: String) -> MountError {
    let may_open = rustix::fs::access(DEVICE, Access::READ_OK | Access::WRITE_OK).is_ok();
    if message.contains(DEVICE) && !may_open {
        return MountError::DeviceDenied;
    }
    let path = path.into();
    MountError::HelperRefused { path, message }
}

fn helper_options(options: &MountOptions) -> String {
    // The helper splits at commas and takes a backslash before one as an escape.
    let fsname = options.fsname.replace('\\', r"\\").replace(',', r"\,");
    let mut list = format!("fsname={fsname},subtype=ccbt,default_permissions");
    let flags = [
        (options.read_only, ",ro"),
        (options.others_allowed(), ",allow_other"),
        (options.suid, ",suid"),
        (options.dev, ",dev"),
    ];
    for (_, option) in flags.iter().filter(|(set, _)| *set) {
        list.push_str(option);
    }
    list
}

/// The descriptor the helper sends; `None` if it hung up without one.
fn receive_descriptor(socket: &UnixStream) -> io::Result<Option<OwnedFd>> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    let mut data = [IoSliceMut::new(&mut byte)];
    rustix::io::retry_on_intr(|| {
        rustix::net::recvmsg(socket, &mut data, &mut control, RecvFlags::CMSG_CLOEXEC)
    })?;
    Ok(control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
        _ => None,
    }))
}

/// Takes the mount at `path` out of the tree at once; files still open in it go on working.
pub(crate) fn detach(path: &Path) -> Result<(), UnmountError> {
    match rustix::mount::unmount(path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
        Ok(()) => Ok(()),
        Err(error) => match failure(&error.into()) {
            Failure::NotPermitted => detach_by_helper(path),
            Failure::NotMounted => Ok(()),
            _ => Err(UnmountError::Io {
                path: path.into(),
                source: error.into(),
            }),
        },
    }
}

/// Ends the connection of the mount at `path`, whose file system has the device number `minor`: every call that waits in it
/// fails. For a process that was killed while the kernel made it wait for one of those calls.
pub(crate) fn abort(path: &Path, minor: u32) -> Result<(), UnmountError> {
    let flags = UnmountFlags::FORCE | UnmountFlags::NOFOLLOW;
    // Aborting comes first, so it is done even if the mount is in use and stays.
    match rustix::mount::unmount(path, flags).map_err(|error| failure(&error.into())) {
        Err(Failure::NotPermitted) => {}
        Err(_) | Ok(()) => return Ok(()),
    }
    // Where the control file system is mounted, its files belong to whoever mounted.
    let knob = format!("/sys/fs/fuse/connections/{minor}/abort");
    std::fs::write(knob, "1").map_err(|_| UnmountError::NotAborted { path: path.into() })
}

fn detach_by_helper(path: &Path) -> Result<(), UnmountError> {
    for helper in HELPERS {
        let output = Command::new(helper)
            .args(["-u", "-z", "--"])
            .arg(path)
            .stdin(Stdio::null())
            .output();
        return match output {
            Err(error) if error.kind() == ErrorKind::NotFound => continue,
            Err(source) => Err(UnmountError::Io {
                path: path.into(),
                source,
            }),
            Ok(output) if output.status.success() => Ok(()),
            Ok(output) => Err(UnmountError::HelperRefused {
                path: path.into(),
                message: first_line(&output.stderr),
            }),
        };
    }
    Err(UnmountError::NoHelper { path: quoted(path) })
}

/// Whether the administrator lets users open their mounts to others.
pub(crate) fn users_may_allow_other() -> bool {
    std::fs::read_to_string("/etc/fuse.conf").is_ok_and(|text| allows_other(&text))
}

fn allows_other(config: &str) -> bool {
    config.lines().any(|line| line.trim() == "user_allow_other")
}

fn first_line(output: &[u8]) -> String {
    let text = String::from_utf8_lossy(output);
    let line = text.lines().next().unwrap_or("no reason given");
    line.chars().filter(|c| !c.is_control()).collect()
}

/// Raises the kernel's read-ahead for the mount with this device number: eight times fewer requests for a stream. Only
/// root may; without it everything works, slower.
pub(crate) fn raise_read_ahead((major, minor): (u32, u32)) {
    /// What one request can carry (`fs.fuse.max_pages_limit` pages), in KiB.
    const READ_AHEAD_KIB: u32 = 1024;
    let knob = format!("/sys/class/bdi/{major}:{minor}/read_ahead_kb");
    if let Err(error) = std::fs::write(&knob, READ_AHEAD_KIB.to_string()) {
        tracing::debug!(%error, knob, "read-ahead stays at the kernel's default");
    }
}

/// A name for the `source` column of the mount table: neither empty nor longer than the kernel takes.
pub(crate) fn check_fsname(name: &str) -> Result<(), MountError> {
    /// Longest source name, in bytes: one page holds all mount options.
    const FSNAME_BYTES_MAX: usize = 1024;
    if name.is_empty() || name.len() > FSNAME_BYTES_MAX || name.contains(char::is_control) {
        return Err(MountError::FsName {
            name: quoted(Path::new(name)),
        });
    }
    Ok(())
}

/// Whether the process that served the mount at `path` is gone. Asks by `statfs`: the attributes `stat` shows may come
/// from the kernel's cache for as long as their time to live lasts.
pub(crate) fn is_dead(path: &Path) -> bool {
    match rustix::fs::statfs(path) {
        Ok(_) => false,
        Err(error) => failure(&error.into()) == Failure::Disconnected,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_comma_in_the_name_adds_no_option() {
        let options = MountOptions {
            fsname: r"a,allow_other\".into(),
            allow_other: false,
            read_only: true,
            ..MountOptions::default()
        };
        assert_eq!(
            helper_options(&options),
            r"fsname=a\,allow_other\\,subtype=ccbt,default_permissions,ro"
        );
    }

    #[test]
    fn names_are_checked() {
        assert!(check_fsname("ccbt:photos, 2024").is_ok());
        for bad in ["", "a\nb", &"x".repeat(2000)] {
            assert!(
                matches!(check_fsname(bad), Err(MountError::FsName { .. })),
                "{bad:?}"
            );
        }
    }

    #[test]
    fn fuse_conf() {
        assert!(allows_other(
            "# comment\n user_allow_other \nmount_max = 3\n"
        ));
        assert!(!allows_other("#user_allow_other\n"));
    }

    #[test]
    fn descriptors_come_over_the_socket_or_not() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let file = tempfile::tempfile().unwrap();
        let fds = [std::os::fd::AsFd::as_fd(&file)];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = rustix::net::SendAncillaryBuffer::new(&mut space);
        assert!(control.push(rustix::net::SendAncillaryMessage::ScmRights(&fds)));
        rustix::net::sendmsg(
            &theirs,
            &[io::IoSlice::new(b"x")],
            &mut control,
            rustix::net::SendFlags::empty(),
        )
        .unwrap();
        assert!(receive_descriptor(&ours).unwrap().is_some());
        drop(theirs);
        assert!(receive_descriptor(&ours).unwrap().is_none());
    }
}
