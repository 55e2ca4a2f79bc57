//! The router: asked to let peers in from when something is shared until the daemon ends.

use std::net::SocketAddr;

use super::Daemon;
use crate::api::types::{MappedPort, PortmapEntry};
use crate::engine::portmap::{Portmap, PortmapStatus};
use crate::net;
use crate::proto::portmap::{Protocol, Want};

impl Daemon {
    /// Peers are taken at `addr` from now on.
    pub(super) fn map_ports(&self, addr: SocketAddr) {
        if !self.0.config.portmap || addr.ip().is_loopback() {
            return;
        }
        if net::is_proxied() {
            tracing::info!("no port mapping: everything goes through the proxy");
            return;
        }
        let want = |protocol| Want {
            protocol,
            port: addr.port(),
        };
        let mut wants = vec![want(Protocol::Tcp)];
        if self.0.config.network.utp {
            wants.push(want(Protocol::Udp));
        }
        let portmap = Portmap::start(wants);
        let mut status = portmap.status();
        *self.0.portmap.lock() = Some(portmap);
        let daemon = self.clone();
        tokio::spawn(async move {
            while status.changed().await.is_ok() {
                let port = outside(&status.borrow_and_update(), addr.port());
                if let Some(discovery) = &*daemon.0.discovery.lock() {
                    discovery.call_at(port);
                }
            }
        });
    }

    /// Where peers from outside find our port.
    pub(super) fn outside_port(&self) -> u16 {
        let ours = self.0.listening.lock().map_or(0, |addr| addr.port());
        let portmap = self.0.portmap.lock();
        let status = portmap.as_ref().map(Portmap::status);
        status.map_or(ours, |status| outside(&status.borrow(), ours))
    }

    pub(super) async fn close_portmap(&self) {
        let portmap = self.0.portmap.lock().take();
        if let Some(portmap) = portmap {
            portmap.close().await;
        }
    }

    pub(super) fn portmap_entry(&self) -> Option<PortmapEntry> {
        let status = self.0.portmap.lock().as_ref()?.status();
        let status = status.borrow().clone();
        let port = |mapped: &crate::proto::portmap::Mapped| MappedPort {
            protocol: mapped.want.protocol.to_string(),
            port: mapped.want.port,
            external: mapped.external.1,
        };
        Some(PortmapEntry {
            method: status.method.map(str::to_owned),
            external_ip: status.external_ip,
            ports: status.ports.iter().map(port).collect(),
            trouble: status.trouble,
        })
    }
}

fn outside(status: &PortmapStatus, ours: u16) -> u16 {
    let want = Want {
        protocol: Protocol::Tcp,
        port: ours,
    };
    status.external_port(want).unwrap_or(ours)
}
