//! Drives local discovery: one socket and one task for all swarms. Only the default interface is used.

use std::collections::HashMap;
use std::io;
use std::net::{SocketAddr, SocketAddrV4};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::net::UdpSocket;
use tokio::sync::Notify;
use tokio::sync::mpsc::{self, error::TrySendError};
use tokio::task::JoinHandle;

use super::{Found, Source, Stop};
use crate::clock::Elapsed;
use crate::proto::lsd::{DATAGRAM_LEN_MAX, Lsd};
use crate::proto::tracker::callable;
use crate::share::SwarmId;
use crate::{net, random};

/// Wait before the socket is opened again after it failed; there may be no network yet.
const OPEN_RETRY_TIME: Duration = Duration::from_secs(60);

/// Local discovery as the rest of discovery sees it.
#[derive(Debug)]
pub(super) struct LsdHandle {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    group: SocketAddrV4,
    clock: Elapsed,
    watched: Mutex<Watched>,
    /// Something new may be due.
    changed: Notify,
    /// Whether the socket is open.
    active: AtomicBool,
}

#[derive(Debug)]
struct Watched {
    lsd: Lsd,
    sinks: HashMap<SwarmId, mpsc::Sender<Found>>,
}

/// Starts announcing `port` to `group`.
pub(super) fn spawn(group: SocketAddrV4, port: u16, mut stop: Stop) -> (LsdHandle, JoinHandle<()>) {
    let lsd = Lsd::new(port, group, random::bytes());
    let shared = Arc::new(Shared {
        group,
        clock: Elapsed::start(),
        watched: Mutex::new(Watched {
            lsd,
            sinks: HashMap::new(),
        }),
        changed: Notify::new(),
        active: AtomicBool::new(false),
    });
    let driver = Arc::clone(&shared);
    let task = tokio::spawn(async move {
        tokio::select! {
            () = driver.run() => {}
            () = stop.stopped() => {}
        }
        driver.active.store(false, Ordering::Relaxed);
    });
    (LsdHandle { shared }, task)
}

impl LsdHandle {
    pub(super) fn watch(&self, swarm: SwarmId, sink: mpsc::Sender<Found>) {
        let mut watched = self.shared.watched.lock();
        watched.sinks.insert(swarm, sink);
        watched.lsd.watch(self.shared.clock.now(), swarm);
        self.shared.changed.notify_one();
    }

    pub(super) fn unwatch(&self, swarm: SwarmId) {
        self.shared.watched.lock().remove(swarm);
    }

    /// Whether the socket is open.
    pub(super) fn active(&self) -> bool {
        self.shared.active.load(Ordering::Relaxed)
    }
}

impl Watched {
    fn remove(&mut self, swarm: SwarmId) {
        self.sinks.remove(&swarm);
        self.lsd.unwatch(swarm);
    }

    fn hear(&mut self, datagram: &[u8], from: SocketAddr) {
        let Ok((port, swarms)) = self.lsd.handle_datagram(datagram) else {
            return;
        };
        let peer = SocketAddr::new(from.ip(), port);
        if !callable(&peer) {
            return;
        }
        for swarm in swarms {
            // A full sink loses the address: it comes again in five minutes, and one slow swarm must not stop the rest.
            let sent = self
                .sinks
                .get(&swarm)
                .map(|s| s.try_send((swarm, peer, Source::Lsd)));
            if matches!(sent, Some(Err(TrySendError::Closed(_)))) {
                self.remove(swarm);
            }
        }
    }
}

impl Shared {
    async fn run(&self) {
        loop {
            match net::udp_multicast_v4(*self.group.ip(), self.group.port()) {
                Ok(socket) => {
                    self.active.store(true, Ordering::Relaxed);
                    let error = self.serve(&socket).await;
                    tracing::debug!(%error, "local discovery starts anew");
                }
                Err(error) => tracing::debug!(%error, "no local discovery"),
            }
            self.active.store(false, Ordering::Relaxed);
            tokio::time::sleep(OPEN_RETRY_TIME).await;
        }
    }

    /// Runs until the socket fails.
    async fn serve(&self, socket: &UdpSocket) -> io::Error {
        let mut datagram = [0; DATAGRAM_LEN_MAX + 1];
        loop {
            if let Err(error) = self.announce(socket).await {
                return error;
            }
            tokio::select! {
                received = socket.recv_from(&mut datagram) => match received {
                    Ok((len, from)) => {
                        let datagram = datagram.get(..len).unwrap_or_default();
                        self.watched.lock().hear(datagram, from);
                    }
                    Err(error) => return error,
                },
                () = self.due() => {}
            }
        }
    }

    async fn announce(&self, socket: &UdpSocket) -> io::Result<()> {
        loop {
            let next = self.watched.lock().lsd.poll_transmit(self.clock.now());
            let Some(datagram) = next else { return Ok(()) };
            socket
                .send_to(&datagram, SocketAddr::V4(self.group))
                .await?;
        }
    }

    /// Returns when an announce is due or what is watched has changed.
    async fn due(&self) {
        let at = self.watched.lock().lsd.poll_timeout();
        match at {
            Some(at) => {
                let due = tokio::time::sleep_until(self.clock.instant(at).into());
                tokio::select! {
                    () = due => {}
                    () = self.changed.notified() => {}
                }
            }
            None => self.changed.notified().await,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::super::stop_pair;
    use super::*;

    /// Two instances on this machine.
    #[tokio::test]
    async fn two_instances_find_each_other_by_multicast() {
        let port = 20_000 + u16::from_be_bytes(random::bytes()) % 20_000;
        let group = SocketAddrV4::new(Ipv4Addr::new(239, 192, 152, 143), port);
        let probe = net::udp_multicast_v4(*group.ip(), port).unwrap_or_else(|e| panic!("{e}"));
        if let Err(error) = probe.send_to(b"x", SocketAddr::V4(group)).await {
            panic!(
                "this test needs multicast, as after `ip link set lo up multicast on; ip route add 239.0.0.0/8 dev lo`: {error}"
            );
        }
        let swarm = SwarmId::from_bytes([7; 20]);
        let (stopper, stop) = stop_pair();
        let (a, task) = spawn(group, 1111, stop.clone());
        let (found, mut at_a) = mpsc::channel(8);
        a.watch(swarm, found);
        // The first announce of `a` may go out before `b` listens; that of `b` cannot miss `a` once `a` is active.
        while !a.active() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let (b, _) = spawn(group, 2222, stop);
        let (found, _at_b) = mpsc::channel(8);
        b.watch(swarm, found);
        let found = tokio::time::timeout(Duration::from_secs(20), at_a.recv()).await;
        let (of, addr, source) = found.unwrap().unwrap();
        assert_eq!((of, addr.port(), source), (swarm, 2222, Source::Lsd));
        drop(stopper);
        task.await.unwrap();
        assert!(!a.active());
    }
}
