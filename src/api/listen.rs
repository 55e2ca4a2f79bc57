//! The API's sockets: with `net.rs` the only place that opens any.

use std::fs::{File, Permissions};
use std::io;
use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use tokio::net::{TcpListener, UnixListener, UnixStream};

/// The kernel takes 107 bytes of path in a socket address (`sun_path`, without the final zero).
const SUN_PATH_BYTES_MAX: usize = 107;

/// Binds `path`, replacing a socket that a killed daemon left there. The caller holds the lock of the state directory, so
/// no other daemon can be listening. Only the owner may connect.
pub(super) fn bind_unix(path: &Path) -> io::Result<(UnixListener, SocketFile)> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(Short::of(path)?.path)?;
    std::fs::set_permissions(path, Permissions::from_mode(0o600))?;
    let meta = std::fs::symlink_metadata(path)?;
    let file = SocketFile {
        path: path.to_path_buf(),
        id: (meta.dev(), meta.ino()),
    };
    Ok((listener, file))
}

/// The socket in the file system. Removed when dropped, unless another daemon has put its own there meanwhile.
#[derive(Debug)]
pub(super) struct SocketFile {
    path: PathBuf,
    /// Device and inode.
    id: (u64, u64),
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let found = std::fs::symlink_metadata(&self.path);
        if found.is_ok_and(|meta| (meta.dev(), meta.ino()) == self.id) {
            // It cannot be helped; the next daemon replaces it.
            drop(std::fs::remove_file(&self.path));
        }
    }
}

pub(super) async fn connect_unix(path: &Path) -> io::Result<UnixStream> {
    let short = Short::of(path)?;
    UnixStream::connect(&short.path).await
}

pub(super) async fn bind_tcp(addr: SocketAddr) -> io::Result<TcpListener> {
    TcpListener::bind(addr).await
}

/// A path to the same file that fits a socket address: `path` itself or, if that is too long, through an open descriptor
/// of its directory, which must stay open while the path is used.
struct Short {
    path: PathBuf,
    _dir: Option<File>,
}

impl Short {
    fn of(path: &Path) -> io::Result<Self> {
        if path.as_os_str().len() <= SUN_PATH_BYTES_MAX {
            return Ok(Self {
                path: path.to_path_buf(),
                _dir: None,
            });
        }
        let (Some(dir), Some(name)) = (path.parent(), path.file_name()) else {
            return Err(io::ErrorKind::InvalidFilename.into());
        };
        let dir = File::open(dir)?;
        let path = PathBuf::from(format!("/proc/self/fd/{}", dir.as_raw_fd())).join(name);
        Ok(Self {
            path,
            _dir: Some(dir),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_path_longer_than_a_socket_address_works() {
        let dir = tempfile::tempdir().unwrap();
        let deep = dir.path().join("d".repeat(120));
        std::fs::create_dir(&deep).unwrap();
        for dir in [dir.path(), &deep] {
            let path = dir.join("api.sock");
            let old = bind_unix(&path).unwrap();
            let (listener, file) = bind_unix(&path).unwrap();
            drop(old);
            let (client, server) = tokio::join!(connect_unix(&path), listener.accept());
            client.unwrap();
            server.unwrap();
            assert_eq!(
                std::fs::metadata(&path).unwrap().permissions().mode() & 0o777,
                0o600
            );
            drop(file);
            assert!(!path.exists());
        }
    }
}
