//! Announces to a UDP tracker, by IPv4 and IPv6 at once if its name has both: each shows us to other peers.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use tokio::task::JoinSet;

use super::{TrackerError, TrackerUrl, resolve};
use crate::clock::Elapsed;
use crate::proto::tracker::{AnnounceRequest, Announced};
use crate::proto::udp_tracker::{DATAGRAM_LEN_MAX, Family, UdpAnnounce};
use crate::{net, random};

/// How long the slower address family is waited for once the other has answered.
const SECOND_FAMILY_TIME: Duration = Duration::from_secs(5);

pub(super) async fn announce(
    url: &TrackerUrl,
    request: AnnounceRequest,
) -> Result<Announced, TrackerError> {
    // Not even its name is looked up.
    net::refuse_udp_by_proxy()?;
    let addrs = resolve(&url.host, url.port).await?;
    let mut exchanges = JoinSet::new();
    for family in [SocketAddr::is_ipv4, SocketAddr::is_ipv6] {
        if let Some(addr) = addrs.iter().copied().find(family) {
            exchanges.spawn(exchange(
                addr,
                url.path_and_query().to_owned(),
                request.clone(),
            ));
        }
    }
    let mut merged: Option<Result<Announced, TrackerError>> = None;
    loop {
        let next = match &merged {
            Some(Ok(_)) => {
                let next = tokio::time::timeout(SECOND_FAMILY_TIME, exchanges.join_next()).await;
                next.unwrap_or(None)
            }
            _ => exchanges.join_next().await,
        };
        match next {
            Some(Ok(outcome)) => merged = Some(merge(merged, outcome)),
            Some(Err(_)) => {}
            None => return merged.unwrap_or(Err(TrackerError::Url)),
        }
    }
}

/// An answer counts more than an error, the first error more than the second.
fn merge(
    first: Option<Result<Announced, TrackerError>>,
    second: Result<Announced, TrackerError>,
) -> Result<Announced, TrackerError> {
    match (first, second) {
        (None, outcome) | (Some(Err(_)), outcome @ Ok(_)) => outcome,
        (Some(outcome), Err(_)) => outcome,
        (Some(Ok(mut both)), Ok(more)) => {
            both.interval = both.interval.max(more.interval);
            both.peers.extend(more.peers);
            Ok(both)
        }
    }
}

async fn exchange(
    addr: SocketAddr,
    url_data: String,
    request: AnnounceRequest,
) -> Result<Announced, TrackerError> {
    let (local, family) = match addr {
        SocketAddr::V4(_) => ((Ipv4Addr::UNSPECIFIED, 0).into(), Family::V4),
        SocketAddr::V6(_) => ((Ipv6Addr::UNSPECIFIED, 0).into(), Family::V6),
    };
    let socket = net::udp_bind(local).await?;
    // Connected: the kernel drops what others send, and says when nobody listens there.
    socket.connect(addr).await?;
    let clock = Elapsed::start();
    let mut udp = UdpAnnounce::new(clock.now(), request, url_data, family, &mut random::fill);
    let mut datagram = [0; DATAGRAM_LEN_MAX];
    loop {
        if let Some(outcome) = udp.poll_outcome() {
            return Ok(outcome?);
        }
        if let Some(out) = udp.poll_transmit() {
            socket.send(&out).await?;
        }
        let deadline = udp.poll_timeout().unwrap_or_default();
        tokio::select! {
            received = socket.recv(&mut datagram) => {
                let received = datagram.get(..received?).unwrap_or_default();
                udp.handle_datagram(clock.now(), received, &mut random::fill);
            }
            () = tokio::time::sleep_until(clock.instant(deadline).into()) => {
                udp.handle_timeout(clock.now(), &mut random::fill);
            }
        }
    }
}
