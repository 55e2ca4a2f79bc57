//! Asking a router to let others in: PCP (RFC 6887), its forerunner NAT-PMP (RFC 6886) and UPnP IGD. Sans-IO.
//!
//! - [`pcp`]: the first two, which are one protocol in two versions. [`igd`]: UPnP, with [`ssdp`] to find it and [`xml`] to read it.
//! - [`route`]: which router.

pub mod igd;
pub mod pcp;
pub mod route;
pub mod ssdp;
pub mod xml;

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

/// Time since the owner's start.
type Now = Duration;

/// How long a mapping is asked to last, should we vanish; it is renewed at half of that.
const LIFETIME: Duration = Duration::from_secs(3600);
/// A router that says less or more is taken to say this.
const LIFETIME_MIN: Duration = Duration::from_secs(60);
const LIFETIME_MAX: Duration = Duration::from_secs(7 * 86_400);

/// What is let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Protocol {
    Tcp,
    Udp,
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
        })
    }
}

/// A port of ours that others should reach.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Want {
    pub protocol: Protocol,
    pub port: u16,
}

/// A way to a port of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mapped {
    pub want: Want,
    /// Where others find it; the address may be unknown.
    pub external: (Option<IpAddr>, u16),
}

impl Mapped {
    pub fn addr(&self) -> Option<SocketAddr> {
        let (ip, port) = self.external;
        Some(SocketAddr::new(ip?, port))
    }
}

/// When to renew a mapping that a router says to last for `lifetime`.
fn renewal(lifetime: Duration) -> Duration {
    lifetime.clamp(LIFETIME_MIN, LIFETIME_MAX) / 2
}
