//! Keeps ports of ours reachable through the router, by whichever of PCP, NAT-PMP and UPnP it knows; takes them back at the end.
//!
//! One task. The protocols are in `proto::portmap`; here are their sockets. `upnp`: the third of them.

mod upnp;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use tokio::net::UdpSocket;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;

use crate::clock::Elapsed;
use crate::net::{self, Bind};
use crate::proto::portmap::pcp::{DATAGRAM_LEN_MAX, Dialect, Pcp, PcpEvent, ROUTER_PORT};
use crate::proto::portmap::{Mapped, Want, route};
use crate::random;

/// After a failure, and after a router that knows none of the protocols: it may be replaced, or the network be another one.
const RETRY_TIME: Duration = Duration::from_secs(600);
/// After a mapping was lost: the router may have started again.
const LOST_TIME: Duration = Duration::from_secs(15);
/// How long the end of the process waits for the router.
const RELEASE_TIME: Duration = Duration::from_secs(2);
/// Times a router says that nobody listens for PCP before it is believed.
const REFUSALS_MAX: u32 = 3;
/// The kernel's table of routes.
const ROUTES: &str = "/proc/net/route";

/// How it stands.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PortmapStatus {
    /// `PCP`, `NAT-PMP` or `UPnP`, once one of them has worked.
    pub method: Option<&'static str>,
    /// Our address as the router tells it.
    pub external_ip: Option<IpAddr>,
    pub ports: Vec<Mapped>,
    /// Why there is no mapping.
    pub trouble: Option<String>,
}

impl PortmapStatus {
    fn add(&mut self, method: &'static str, mapped: Mapped) {
        self.method = Some(method);
        self.trouble = None;
        self.external_ip = mapped.external.0.or(self.external_ip);
        self.ports.retain(|port| port.want != mapped.want);
        self.ports.push(mapped);
        self.ports.sort_by_key(|port| port.want);
    }

    /// Others find our port at this one.
    pub fn external_port(&self, want: Want) -> Option<u16> {
        let found = self.ports.iter().find(|port| port.want == want)?;
        Some(found.external.1)
    }
}

/// The way to the task. Dropped without [`Portmap::close`], mappings stay until they end.
pub struct Portmap {
    status: watch::Receiver<PortmapStatus>,
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

impl Portmap {
    /// Starts mapping `wants`.
    pub fn start(wants: Vec<Want>) -> Self {
        let (told, status) = watch::channel(PortmapStatus::default());
        let (stop, stopped) = oneshot::channel();
        let task = Task {
            wants,
            told,
            clock: Elapsed::start(),
        };
        Self {
            status,
            stop,
            task: tokio::spawn(task.run(stopped)),
        }
    }

    pub fn status(&self) -> watch::Receiver<PortmapStatus> {
        self.status.clone()
    }

    /// Takes the mappings back, as far as the router answers soon.
    pub async fn close(self) {
        drop(self.stop);
        let over = tokio::time::timeout(RELEASE_TIME, self.task).await;
        if over.is_err() {
            tracing::info!("the router does not say whether it took the port mapping back");
        }
    }
}

/// How one protocol came to an end.
enum End {
    /// We stop, and the mappings are taken back.
    Closed,
    /// It does not work, or no longer.
    Failed(String),
}

struct Task {
    wants: Vec<Want>,
    told: watch::Sender<PortmapStatus>,
    clock: Elapsed,
}

/// Resolves when we are to stop.
type Stop = oneshot::Receiver<()>;

impl Task {
    async fn run(self, mut stop: Stop) {
        loop {
            let trouble = match self.turn(&mut stop).await {
                End::Closed => return,
                End::Failed(why) => why,
            };
            let had = self.told.borrow().method.is_some();
            tracing::info!(why = trouble, "no port mapping");
            self.told.send_replace(PortmapStatus {
                trouble: Some(trouble),
                ..PortmapStatus::default()
            });
            let wait = if had { LOST_TIME } else { RETRY_TIME };
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                _ = &mut stop => return,
            }
        }
    }

    /// Tries one protocol after the other, and stays with one that works.
    async fn turn(&self, stop: &mut Stop) -> End {
        let Some(router) = router() else {
            return End::Failed("there is no router: no default route by IPv4".to_owned());
        };
        let by_pcp = match net::udp_to(SocketAddr::from((router, ROUTER_PORT))).await {
            Ok(socket) => self.by_pcp(&socket, stop).await,
            Err(error) => End::Failed(error.to_string()),
        };
        let End::Failed(pcp) = by_pcp else {
            return End::Closed;
        };
        if self.told.borrow().method.is_some() {
            return End::Failed(pcp);
        }
        tracing::debug!(why = pcp, "no PCP and no NAT-PMP");
        match self.by_upnp(router, stop).await {
            End::Closed => End::Closed,
            End::Failed(upnp) => End::Failed(format!("PCP, NAT-PMP: {pcp}; UPnP: {upnp}")),
        }
    }

    async fn by_pcp(&self, socket: &UdpSocket, stop: &mut Stop) -> End {
        let Ok(ours) = socket.local_addr() else {
            return End::Failed("there is no address of ours".to_owned());
        };
        let now = self.clock.now();
        let mut pcp = Pcp::new(now, ours.ip(), &self.wants, &mut random::fill);
        let mut buf = [0; DATAGRAM_LEN_MAX];
        let (mut stopping, mut refused) = (false, 0);
        loop {
            while let Some(datagram) = pcp.poll_transmit(self.clock.now()) {
                // One that is lost is sent again.
                if let Err(error) = socket.send(&datagram).await {
                    tracing::debug!(%error, "the router cannot be asked");
                }
            }
            while let Some(event) = pcp.poll_event() {
                match event {
                    PcpEvent::Mapped(mapped) => self.mapped(dialect(&pcp), mapped),
                    PcpEvent::Failed(error) => return End::Failed(error.to_string()),
                    PcpEvent::Released => return End::Closed,
                }
            }
            let until = pcp.poll_timeout().map(|at| self.clock.instant(at));
            tokio::select! {
                received = socket.recv(&mut buf) => match received {
                    Ok(len) => {
                        let datagram = buf.get(..len).unwrap_or_default();
                        pcp.handle_datagram(self.clock.now(), datagram);
                    }
                    Err(error) if refused >= REFUSALS_MAX => return End::Failed(error.to_string()),
                    // It may be starting.
                    Err(_) => refused += 1,
                },
                () = sleep(until) => {}
                _ = &mut *stop, if !stopping => {
                    stopping = true;
                    pcp.release(self.clock.now());
                }
            }
        }
    }

    fn mapped(&self, method: &'static str, mapped: Mapped) {
        let (want, port) = (mapped.want, mapped.external.1);
        self.told.send_if_modified(|status| {
            let before = status.clone();
            status.add(method, mapped);
            let news = *status != before;
            if news {
                let ip = status.external_ip.map(|ip| ip.to_string());
                let ip = ip.unwrap_or_default();
                tracing::info!(method, protocol = %want.protocol, port = want.port, external = port, ip, "port mapped");
            }
            news
        });
    }
}

fn dialect(pcp: &Pcp) -> &'static str {
    match pcp.dialect() {
        Dialect::Pcp => "PCP",
        Dialect::NatPmp => "NAT-PMP",
    }
}

fn router() -> Option<Ipv4Addr> {
    let table = std::fs::read_to_string(ROUTES).ok()?;
    let interface = match net::bound_to() {
        Some(Bind::Interface(name)) => Some(name.as_str()),
        _ => None,
    };
    route::default_gateway(&table, interface)
}

async fn sleep(until: Option<std::time::Instant>) {
    match until {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}
