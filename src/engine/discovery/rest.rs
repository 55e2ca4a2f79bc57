//! Lets the thread of `mainline` rest.
//!
//! It waits for datagrams for 50 ms at a time, which is all it does on most days, and costs an idle daemon more than
//! everything else together. How long it waits is a property of its socket, which it does not hand out; the socket is
//! found by its port.

use std::io;
use std::net::SocketAddrV4;
use std::time::Duration;

use rustix::net::sockopt::{self, Timeout};
use rustix::net::{SocketType, getsockname};
use rustix::process::{PidfdFlags, PidfdGetfdFlags, getpid, pidfd_getfd, pidfd_open};

/// Makes reads of the UDP socket at `port` of this process wait for `wait`. False: there is no such socket.
pub(super) fn wait_longer(port: u16, wait: Duration) -> io::Result<bool> {
    let this = pidfd_open(getpid(), PidfdFlags::empty())?;
    for entry in std::fs::read_dir("/proc/self/fd")? {
        let name = entry?.file_name();
        let Some(number) = name.to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        // A copy, so that what it is cannot change meanwhile. The listing's own is closed by now.
        let Ok(file) = pidfd_getfd(&this, number, PidfdGetfdFlags::empty()) else {
            continue;
        };
        let is_udp = sockopt::socket_type(&file) == Ok(SocketType::DGRAM);
        let local = getsockname(&file).map(SocketAddrV4::try_from);
        if is_udp && matches!(local, Ok(Ok(addr)) if addr.port() == port) {
            sockopt::set_socket_timeout(&file, Timeout::Recv, Some(wait))?;
            return Ok(true);
        }
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_socket_by_its_port() {
        let socket = std::net::UdpSocket::bind(("127.0.0.1", 0)).unwrap();
        let other = std::net::UdpSocket::bind(("127.0.0.1", 0)).unwrap();
        let wait = Duration::from_millis(300);
        let port = socket.local_addr().unwrap().port();
        assert!(wait_longer(port, wait).unwrap());
        assert_eq!(socket.read_timeout().unwrap(), Some(wait));
        assert_eq!(other.read_timeout().unwrap(), None);
        drop(socket);
        assert!(!wait_longer(port, wait).unwrap());
    }
}
