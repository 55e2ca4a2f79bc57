//! The only file that opens sockets (besides the API's own listener): TCP to and from peers, UDP for uTP, trackers and LSD.
//!
//! Everything else is handed streams and sockets that came from here, so that the policy of the process, where it is bound
//! and which proxy it goes through, has one place to take hold of. It is set once, by [`configure`], before the first
//! socket: what nobody passes on, nobody can forget to pass on.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, TcpKeepalive, Type};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream, UdpSocket};

use crate::proto::ip_filter::IpFilter;
use crate::proto::mse::Encryption;
use crate::proto::proxy::{Dialogue, ProxyUrl, Target};

/// Connections that wait to be accepted.
const BACKLOG: i32 = 256;
/// A peer's machine that vanished is noticed after about this long even if we have nothing to send.
const KEEPALIVE_TIME: Duration = Duration::from_secs(60);

/// Routers that what is sent to find a router may pass (UPnP Device Architecture 1.1).
const MULTICAST_TTL: u32 = 2;

/// How peers are reached: `network.*` of the configuration.
#[derive(Debug, Clone, Default)]
pub struct Network {
    /// Of connections of torrents; folders have their own.
    pub encryption: Encryption,
    /// Take and open uTP streams, besides TCP.
    pub utp: bool,
    /// Addresses that are not spoken to.
    pub filter: Option<Arc<IpFilter>>,
    pub route: Route,
}

/// Which way everything goes that leaves this machine.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Route {
    pub bind: Option<Bind>,
    /// TCP goes through it; there is no UDP.
    pub proxy: Option<ProxyUrl>,
}

/// What sockets are bound to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Bind {
    /// An address of this machine. Nothing goes to addresses of the other family.
    Address(IpAddr),
    /// The name of an interface.
    Interface(String),
}

static ROUTE: OnceLock<Route> = OnceLock::new();

/// Sets the route of this process. Only the first call counts.
pub fn configure(route: Route) {
    if ROUTE.set(route).is_err() {
        tracing::debug!("the route of this process is set already");
    }
}

fn route() -> &'static Route {
    ROUTE.get_or_init(Route::default)
}

/// Whether TCP goes through a proxy and everything else has to be left.
pub fn is_proxied() -> bool {
    route().proxy.is_some()
}

/// What a socket is bound to that is not opened here.
pub fn bound_to() -> Option<&'static Bind> {
    route().bind.as_ref()
}

impl Bind {
    /// Binds a socket that calls, or that will be bound to `listen`.
    fn apply(&self, socket: &Socket, listen: Option<SocketAddr>) -> io::Result<Option<SocketAddr>> {
        match self {
            Self::Address(ip) => {
                let port = listen.map_or(0, |addr| addr.port());
                let open = listen.is_none_or(|addr| addr.ip().is_unspecified());
                Ok(match open {
                    true => Some(SocketAddr::new(*ip, port)),
                    false => listen,
                })
            }
            Self::Interface(name) => {
                socket.bind_device(Some(name.as_bytes()))?;
                Ok(listen)
            }
        }
    }
}

/// A socket as the route wants it, bound where it listens, if it does.
fn open(kind: Type, family: SocketAddr, listen: Option<SocketAddr>) -> io::Result<Socket> {
    open_by(route(), kind, family, listen)
}

fn open_by(
    route: &Route,
    kind: Type,
    family: SocketAddr,
    listen: Option<SocketAddr>,
) -> io::Result<Socket> {
    let family = match &route.bind {
        // A listener on everything becomes one on the address, of whatever family.
        Some(Bind::Address(ip)) if listen.is_some_and(|addr| addr.ip().is_unspecified()) => {
            SocketAddr::new(*ip, 0)
        }
        _ => family,
    };
    let protocol = match kind {
        Type::DGRAM => Protocol::UDP,
        _ => Protocol::TCP,
    };
    let socket = Socket::new(Domain::for_address(family), kind, Some(protocol))?;
    socket.set_nonblocking(true)?;
    if listen.is_some() && family.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    if listen.is_some() && kind == Type::STREAM {
        socket.set_reuse_address(true)?;
    }
    let local = match &route.bind {
        Some(bind) => bind.apply(&socket, listen)?,
        None => listen,
    };
    if let Some(local) = local {
        if local.is_ipv4() != family.is_ipv4() {
            return Err(io::ErrorKind::AddrNotAvailable.into());
        }
        socket.bind(&local.into())?;
    }
    Ok(socket)
}

/// Listens for peers. An IPv6 wildcard takes IPv4 too.
pub fn tcp_listen(addr: SocketAddr) -> io::Result<TcpListener> {
    let socket = open(Type::STREAM, addr, Some(addr))?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

/// Connects to a peer, within `timeout`.
pub async fn tcp_connect(addr: SocketAddr, timeout: Duration) -> io::Result<TcpStream> {
    let stream = match &route().proxy {
        Some(proxy) => within(timeout, by_proxy(proxy, Target::Addr(addr))).await?,
        None => within(timeout, direct(addr)).await?,
    };
    tune(&stream)?;
    Ok(stream)
}

/// Connects to a host whose name the proxy looks up. `None` without a proxy.
pub async fn connect_by_proxy(
    host: &str,
    port: u16,
    timeout: Duration,
) -> Option<io::Result<TcpStream>> {
    let proxy = route().proxy.as_ref()?;
    let target = match host.parse() {
        Ok(ip) => Target::Addr(SocketAddr::new(ip, port)),
        Err(_) => Target::Name(host.to_owned(), port),
    };
    Some(within(timeout, by_proxy(proxy, target)).await)
}

async fn within<T>(timeout: Duration, call: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    let outcome = tokio::time::timeout(timeout, call).await;
    outcome.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

async fn direct(addr: SocketAddr) -> io::Result<TcpStream> {
    let socket = open(Type::STREAM, addr, None)?;
    TcpSocket::from_std_stream(socket.into())
        .connect(addr)
        .await
}

async fn by_proxy(proxy: &ProxyUrl, target: Target) -> io::Result<TcpStream> {
    let mut last = io::ErrorKind::NotFound.into();
    for addr in tokio::net::lookup_host((proxy.host.as_str(), proxy.port)).await? {
        match direct(addr).await {
            Ok(stream) => return ask_proxy(stream, proxy, target).await,
            Err(error) => last = error,
        }
    }
    Err(last)
}

async fn ask_proxy(
    mut stream: TcpStream,
    proxy: &ProxyUrl,
    target: Target,
) -> io::Result<TcpStream> {
    let mut dialogue = Dialogue::new(proxy.clone(), target).map_err(io::Error::other)?;
    loop {
        while let Some(out) = dialogue.poll_transmit() {
            stream.write_all(&out).await?;
        }
        // Byte by byte, so that nothing is read that belongs to what the connection is for.
        let input = [stream.read_u8().await?];
        if dialogue
            .handle_input(&input)
            .map_err(io::Error::other)?
            .is_some()
        {
            return Ok(stream);
        }
    }
}

/// Sets what every peer connection wants: no delay for small frames. Buffers are left to the kernel, which lets them grow with bandwidth and
/// delay; a size that is set by us stays as it is, and 1 MiB is 5 MB/s at 200 ms.
pub fn tune(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let socket = socket2::SockRef::from(stream);
    socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(KEEPALIVE_TIME))
}

/// A UDP socket on which peers can reach us. An IPv6 wildcard takes IPv4 too.
pub fn udp_listen(addr: SocketAddr) -> io::Result<UdpSocket> {
    refuse_udp_by_proxy()?;
    UdpSocket::from_std(open(Type::DGRAM, addr, Some(addr))?.into())
}

/// A UDP socket bound to `addr`.
pub async fn udp_bind(addr: SocketAddr) -> io::Result<UdpSocket> {
    refuse_udp_by_proxy()?;
    UdpSocket::from_std(open(Type::DGRAM, addr, Some(addr))?.into())
}

/// A UDP socket connected to `addr`; its own address is the one we have on the way there.
pub async fn udp_to(addr: SocketAddr) -> io::Result<UdpSocket> {
    refuse_udp_by_proxy()?;
    let socket = UdpSocket::from_std(open(Type::DGRAM, addr, None)?.into())?;
    socket.connect(addr).await?;
    Ok(socket)
}

/// A UDP socket that sends from `ip`, multicast too, and not further than to the next networks.
pub fn udp_from_v4(ip: Ipv4Addr) -> io::Result<UdpSocket> {
    refuse_udp_by_proxy()?;
    let addr = SocketAddr::from((ip, 0));
    let socket = open(Type::DGRAM, addr, Some(addr))?;
    socket.set_multicast_if_v4(&ip)?;
    socket.set_multicast_ttl_v4(MULTICAST_TTL)?;
    UdpSocket::from_std(socket.into())
}

/// A UDP socket that receives what is sent to the multicast `group` on `port`, together with others on this machine.
pub fn udp_multicast_v4(group: Ipv4Addr, port: u16) -> io::Result<UdpSocket> {
    refuse_udp_by_proxy()?;
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP))?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    socket.set_nonblocking(true)?;
    let interface = match bound_to() {
        None => Ipv4Addr::UNSPECIFIED,
        Some(Bind::Address(IpAddr::V4(ip))) => {
            socket.set_multicast_if_v4(ip)?;
            *ip
        }
        Some(Bind::Address(_)) => return Err(io::ErrorKind::AddrNotAvailable.into()),
        Some(Bind::Interface(name)) => {
            socket.bind_device(Some(name.as_bytes()))?;
            Ipv4Addr::UNSPECIFIED
        }
    };
    socket.bind(&SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)).into())?;
    socket.join_multicast_v4(&group, &interface)?;
    socket.set_multicast_loop_v4(true)?;
    UdpSocket::from_std(socket.into())
}

/// An error where everything goes through a proxy.
pub fn refuse_udp_by_proxy() -> io::Result<()> {
    match is_proxied() {
        true => Err(io::Error::new(
            io::ErrorKind::Unsupported,
            "there is no UDP through the proxy",
        )),
        false => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addr(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    fn bound(ip: &str) -> Route {
        Route {
            bind: Some(Bind::Address(ip.parse().unwrap())),
            proxy: None,
        }
    }

    fn local(socket: &Socket) -> SocketAddr {
        socket.local_addr().unwrap().as_socket().unwrap()
    }

    #[test]
    fn sockets_are_bound_to_the_address() {
        let route = bound("127.0.0.5");
        for kind in [Type::STREAM, Type::DGRAM] {
            let calls = open_by(&route, kind, addr("127.0.0.1:9"), None).unwrap();
            assert_eq!(local(&calls).ip(), addr("127.0.0.5:0").ip());
            let listens = open_by(&route, kind, addr("[::]:0"), Some(addr("[::]:0"))).unwrap();
            assert_eq!(local(&listens).ip(), addr("127.0.0.5:0").ip());
            let named = addr("127.0.0.6:0");
            let listens = open_by(&route, kind, named, Some(named)).unwrap();
            assert_eq!(
                local(&listens).ip(),
                named.ip(),
                "who names an address means it"
            );
            let other = open_by(&route, kind, addr("[::1]:9"), None);
            assert_eq!(other.unwrap_err().kind(), io::ErrorKind::AddrNotAvailable);
        }
    }

    #[test]
    fn sockets_are_bound_to_the_interface_or_not_opened() {
        let open = |name: &str, listen| {
            let route = Route {
                bind: Some(Bind::Interface(name.to_owned())),
                proxy: None,
            };
            open_by(&route, Type::STREAM, addr("127.0.0.1:0"), listen)
        };
        for listen in [None, Some(addr("127.0.0.1:0"))] {
            let socket = open("lo", listen).unwrap();
            assert_eq!(socket.device().unwrap().as_deref(), Some(&b"lo"[..]));
            assert!(open("no-such-if0", listen).is_err());
        }
    }

    #[tokio::test]
    async fn a_proxy_is_asked_and_then_out_of_the_way() {
        let proxy = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let place = proxy.local_addr().unwrap();
        let serving = tokio::spawn(async move {
            let (mut stream, _) = proxy.accept().await.unwrap();
            let mut greeting = [0; 3];
            stream.read_exact(&mut greeting).await.unwrap();
            stream.write_all(&[5, 0]).await.unwrap();
            let mut request = [0; 10];
            stream.read_exact(&mut request).await.unwrap();
            stream
                .write_all(b"\x05\0\0\x01\0\0\0\0\0\0and more")
                .await
                .unwrap();
            request
        });
        let url = ProxyUrl::parse(&format!("socks5://{place}")).unwrap();
        let target = Target::Addr(addr("10.1.2.3:80"));
        let mut stream = by_proxy(&url, target).await.unwrap();
        let mut rest = String::new();
        stream.read_to_string(&mut rest).await.unwrap();
        assert_eq!(rest, "and more");
        assert_eq!(serving.await.unwrap(), [5, 1, 0, 1, 10, 1, 2, 3, 0, 80]);
    }
}
