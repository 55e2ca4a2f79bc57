//! The only file that opens sockets (besides the API's own listener): TCP to and from peers, UDP for trackers and LSD.
//!
//! Everything else is handed streams and sockets that came from here, so that a test or a policy (bind address, proxy)
//! has one place to take hold of.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, TcpKeepalive, Type};
use tokio::net::{TcpListener, TcpSocket, TcpStream, UdpSocket};

/// Connections that wait to be accepted.
const BACKLOG: i32 = 256;
/// A peer's machine that vanished is noticed after about this long even if we have nothing to send.
const KEEPALIVE_TIME: Duration = Duration::from_secs(60);

/// Listens for peers. An IPv6 wildcard takes IPv4 too.
pub fn tcp_listen(addr: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM, Some(Protocol::TCP))?;
    if addr.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&addr.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

/// Connects to a peer, within `timeout`.
pub async fn tcp_connect(addr: SocketAddr, timeout: Duration) -> io::Result<TcpStream> {
    let socket = if addr.is_ipv4() {
        TcpSocket::new_v4()?
    } else {
        TcpSocket::new_v6()?
    };
    let stream = tokio::time::timeout(timeout, socket.connect(addr))
        .await
        .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
    tune(&stream)?;
    Ok(stream)
}

/// Sets what every peer connection wants: no delay for small frames. Buffers are left to the kernel, which lets them grow with bandwidth and
/// delay; a size that is set by us stays as it is, and 1 MiB is 5 MB/s at 200 ms.
pub fn tune(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let socket = socket2::SockRef::from(stream);
    socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(KEEPALIVE_TIME))
}

/// A UDP socket bound to `addr`.
pub async fn udp_bind(addr: SocketAddr) -> io::Result<UdpSocket> {
    UdpSocket::bind(addr).await
}

/// A UDP socket that receives what is sent to the multicast `group` on `port`, together with others on this machine.
pub fn udp_multicast_v4(group: Ipv4Addr, port: u16) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP))?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)).into())?;
    socket.join_multicast_v4(&group, &Ipv4Addr::UNSPECIFIED)?;
    socket.set_multicast_loop_v4(true)?;
    UdpSocket::from_std(socket.into())
}
