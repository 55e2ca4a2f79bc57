//! Announces to a UDP tracker, by IPv4 and IPv6 at once if its name has both: each shows us to other peers.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use tokio::task::JoinSet;

use super::{TrackerError, TrackerUrl, resolve};
use crate::clock::Elapsed;
use crate::proto::tracker::{AnnounceRequest, Announced, Scraped};
use crate::proto::udp_tracker::{DATAGRAM_LEN_MAX, Family, Question, UdpAnswer, UdpExchange};
use crate::share::SwarmId;
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
    for family in [Family::V4, Family::V6] {
        let fits = |addr: &SocketAddr| addr.is_ipv4() == (family == Family::V4);
        if let Some(addr) = addrs.iter().copied().find(fits) {
            let question = Question::Announce {
                request: request.clone(),
                url_data: url.path_and_query().to_owned(),
                family,
            };
            exchanges.spawn(async move {
                match exchange(addr, question).await? {
                    UdpAnswer::Announced(announced) => Ok(announced),
                    UdpAnswer::Scraped(_) => Err(TrackerError::NoScrape),
                }
            });
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

/// Asks for the counts of a swarm, at the first address that answers.
pub(super) async fn scrape(url: &TrackerUrl, swarm: SwarmId) -> Result<Scraped, TrackerError> {
    net::refuse_udp_by_proxy()?;
    let addrs = resolve(&url.host, url.port).await?;
    let addr = addrs.first().ok_or(TrackerError::NoScrape)?;
    match exchange(*addr, Question::Scrape(swarm)).await? {
        UdpAnswer::Scraped(scraped) => Ok(scraped),
        UdpAnswer::Announced(_) => Err(TrackerError::NoScrape),
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
            // Both families are one swarm to some trackers and two to others.
            both.seeds = both.seeds.max(more.seeds);
            both.leechers = both.leechers.max(more.leechers);
            Ok(both)
        }
    }
}

async fn exchange(addr: SocketAddr, question: Question) -> Result<UdpAnswer, TrackerError> {
    let local = match addr {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let socket = net::udp_bind(local).await?;
    // Connected: the kernel drops what others send, and says when nobody listens there.
    socket.connect(addr).await?;
    let clock = Elapsed::start();
    let mut udp = UdpExchange::new(clock.now(), question, &mut random::fill);
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
