//! UPnP: the router is looked for by multicast and asked over HTTP.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1;
use hyper::header::{CONNECTION, CONTENT_TYPE, HOST, USER_AGENT};
use hyper::{Method, Request};
use hyper_util::rt::TokioIo;
use tokio::task::JoinSet;

use super::{End, Stop, Task, sleep};
use crate::net;
use crate::proto::portmap::igd::{Ask, BODY_LEN_MAX, Igd, IgdEvent};
use crate::proto::portmap::ssdp;
use crate::proto::web_seed::url::WebUrl;
use crate::random;

/// Times the router is looked for, and the wait for answers each time.
const SEARCHES: usize = 2;
const SEARCH_TIME: Duration = Duration::from_secs(3);
/// Descriptions looked at; there is one router, or a few.
const FOUND_MAX: usize = 8;
/// Longest answer to a search.
const ANSWER_LEN_MAX: usize = 8 << 10;
const CONNECT_TIME: Duration = Duration::from_secs(4);

impl Task {
    pub(super) async fn by_upnp(&self, router: Ipv4Addr, stop: &mut Stop) -> End {
        let found = tokio::select! {
            found = search(router) => found,
            _ = &mut *stop => return End::Closed,
        };
        let (ours, found) = match found {
            Ok(found) => found,
            Err(error) => return End::Failed(error.to_string()),
        };
        let mut last = "no router answers".to_owned();
        for url in found {
            match self.ask_router(url, ours, stop).await {
                End::Failed(why) => last = why,
                End::Closed => return End::Closed,
            }
            if self.told.borrow().method.is_some() {
                break;
            }
        }
        End::Failed(last)
    }

    async fn ask_router(&self, url: WebUrl, ours: Ipv4Addr, stop: &mut Stop) -> End {
        let seed = u64::from_le_bytes(random::bytes());
        let mut igd = Igd::new(url, ours, &self.wants, seed);
        let mut stopping = false;
        loop {
            igd.handle_timeout(self.clock.now());
            while let Some(ask) = igd.poll_ask() {
                match tokio::time::timeout(Igd::ANSWER_TIME, exchange(&ask)).await {
                    Ok(Ok((status, body))) => igd.handle_answer(self.clock.now(), status, &body),
                    Ok(Err(why)) => igd.handle_failure(self.clock.now(), why),
                    Err(_) => igd.handle_failure(self.clock.now(), "it does not answer".to_owned()),
                }
                if !stopping
                    && stop.try_recv() != Err(tokio::sync::oneshot::error::TryRecvError::Empty)
                {
                    stopping = true;
                    igd.release();
                }
            }
            while let Some(event) = igd.poll_event() {
                match event {
                    IgdEvent::Mapped(mapped) => self.mapped("UPnP", mapped),
                    IgdEvent::Failed(error) => return End::Failed(error.to_string()),
                    IgdEvent::Released => return End::Closed,
                }
            }
            let until = igd.poll_timeout().map(|at| self.clock.instant(at));
            tokio::select! {
                () = sleep(until) => {}
                _ = &mut *stop, if !stopping => {
                    stopping = true;
                    igd.release();
                }
            }
        }
    }
}

/// Descriptions of routers, that of the default route first; and our address on the way there.
async fn search(router: Ipv4Addr) -> std::io::Result<(Ipv4Addr, Vec<WebUrl>)> {
    let way = net::udp_to(SocketAddr::from((router, ssdp::GROUP.port()))).await?;
    let IpAddr::V4(ours) = way.local_addr()?.ip() else {
        return Err(std::io::ErrorKind::AddrNotAvailable.into());
    };
    let socket = net::udp_from_v4(ours)?;
    let mut found: Vec<WebUrl> = Vec::new();
    let mut buf = vec![0; ANSWER_LEN_MAX];
    for _ in 0..SEARCHES {
        for question in ssdp::questions() {
            socket.send_to(&question, ssdp::GROUP).await?;
        }
        let until = tokio::time::Instant::now() + SEARCH_TIME;
        while let Ok(received) = tokio::time::timeout_at(until, socket.recv_from(&mut buf)).await {
            let Ok((len, from)) = received else { continue };
            let answer = buf.get(..len).unwrap_or_default();
            let Some(url) = ssdp::location(from.ip(), answer) else {
                continue;
            };
            let first = url.host == router.to_string();
            if found.len() < FOUND_MAX && !found.contains(&url) {
                found.push(url);
            }
            if first {
                break;
            }
        }
        if !found.is_empty() {
            break;
        }
    }
    found.sort_by_key(|url| url.host != router.to_string());
    Ok((ours, found))
}

/// One request on a connection of its own.
async fn exchange(ask: &Ask) -> Result<(u16, Bytes), String> {
    let failed = |error: &dyn std::fmt::Display| error.to_string();
    let ip: IpAddr = ask.url.host.parse().map_err(|error| failed(&error))?;
    let addr = SocketAddr::new(ip, ask.url.port);
    let stream = net::tcp_connect(addr, CONNECT_TIME).await;
    let stream = stream.map_err(|error| failed(&error))?;
    let handshake = http1::handshake(TokioIo::new(stream)).await;
    let (mut sender, connection) = handshake.map_err(|error| failed(&error))?;
    // Ends with this function, whatever the router does.
    let mut driver = JoinSet::new();
    driver.spawn(connection);
    let mut request = Request::builder()
        .uri(ask.url.path.as_str())
        .header(HOST, ask.url.authority())
        .header(USER_AGENT, concat!("ccbt/", env!("CARGO_PKG_VERSION")))
        .header(CONNECTION, "close");
    let mut content = Bytes::new();
    if let Some((action, body)) = &ask.post {
        request = request
            .method(Method::POST)
            .header(CONTENT_TYPE, "text/xml; charset=\"utf-8\"")
            .header("SOAPAction", action.as_str());
        content = body.clone().into();
    }
    let request = request.body(Full::new(content));
    let request = request.map_err(|error| failed(&error))?;
    let answer = sender.send_request(request).await;
    let answer = answer.map_err(|error| failed(&error))?;
    let status = answer.status().as_u16();
    let body = Limited::new(answer.into_body(), BODY_LEN_MAX)
        .collect()
        .await;
    let body = body.map_err(|error| failed(&error))?;
    Ok((status, body.to_bytes()))
}
