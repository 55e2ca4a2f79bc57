//! Announces one swarm to one tracker for as long as it is watched.

mod http;
mod udp;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hyper::Uri;
use parking_lot::Mutex;
use thiserror::Error;
use tokio::sync::mpsc;

use super::{Found, Source, Stop, deliver, jittered};
use crate::proto::http_tracker::{ANSWER_LEN_MAX, HttpAnswerError};
use crate::proto::tracker::{AnnounceRequest, Announced, Event};
use crate::proto::udp_tracker::UdpTrackerError;
use crate::random;
use crate::share::SwarmId;

/// First wait after a failure; doubled with each further one.
const RETRY_TIME_MIN: Duration = Duration::from_secs(60);
/// Longest wait after failures.
const RETRY_TIME_MAX: Duration = Duration::from_secs(30 * 60);
/// The good-bye to a tracker must not hold up the end.
const LEAVE_TIME: Duration = Duration::from_secs(3);
/// Longest name lookup.
const RESOLVE_TIME: Duration = Duration::from_secs(10);
/// What we say is missing. Not 0: to those who miss nothing many trackers do not name others who miss nothing.
const LEFT: u64 = 1;
/// Said in place of 0 when nobody can call us: trackers refuse 0.
const PORT_NONE: u16 = 1;

/// Why an announce came to nothing.
#[derive(Debug, Error)]
pub enum TrackerError {
    /// Not an http, https or udp URL with a host.
    #[error("not the URL of a tracker")]
    Url,
    /// The host name has no address.
    #[error("the host name cannot be resolved: {0}")]
    Resolve(io::Error),
    /// A tracker on this machine whose path is not that of an announce: a link must not make us call any local service.
    #[error("a tracker on this machine needs a path that begins with /announce")]
    LocalPath,
    /// The socket failed.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// A UDP tracker's answer, or none.
    #[error(transparent)]
    Udp(#[from] UdpTrackerError),
    /// Connecting, TLS or HTTP failed.
    #[error("{0}")]
    Http(String),
    /// The HTTP status is not 200. Redirects are not followed.
    #[error("HTTP status {0}")]
    Status(u16),
    /// The HTTP answer is longer than is read.
    #[error("the answer is longer than {ANSWER_LEN_MAX} bytes")]
    TooLong,
    /// The HTTP answer did not come in time.
    #[error("no whole answer in {} s", .0.as_secs())]
    TimedOut(Duration),
    /// The HTTP answer is none.
    #[error(transparent)]
    Answer(#[from] HttpAnswerError),
}

/// Where a tracker is.
#[derive(Debug, Clone)]
pub struct TrackerUrl {
    udp: bool,
    host: String,
    port: u16,
    uri: Uri,
}

impl TrackerUrl {
    /// Reads an `http`, `https` or `udp` URL.
    pub fn parse(text: &str) -> Result<Self, TrackerError> {
        let uri: Uri = text.parse().map_err(|_| TrackerError::Url)?;
        let port = match uri.scheme_str() {
            Some("udp") => uri.port_u16(),
            Some("http") => Some(uri.port_u16().unwrap_or(80)),
            Some("https") => Some(uri.port_u16().unwrap_or(443)),
            _ => None,
        };
        let port = port.filter(|port| *port != 0).ok_or(TrackerError::Url)?;
        let host = uri.host().unwrap_or_default();
        let host = host
            .trim_start_matches('[')
            .trim_end_matches(']')
            .to_owned();
        if host.is_empty() {
            return Err(TrackerError::Url);
        }
        Ok(Self {
            udp: uri.scheme_str() == Some("udp"),
            host,
            port,
            uri,
        })
    }

    fn path_and_query(&self) -> &str {
        self.uri.path_and_query().map_or("/", |path| path.as_str())
    }

    /// Asks the tracker once.
    pub async fn announce(&self, request: AnnounceRequest) -> Result<Announced, TrackerError> {
        if self.udp {
            udp::announce(self, request).await
        } else {
            http::announce(self, &request).await
        }
    }
}

async fn resolve(host: &str, port: u16) -> Result<Vec<SocketAddr>, TrackerError> {
    let lookup = tokio::time::timeout(RESOLVE_TIME, tokio::net::lookup_host((host, port))).await;
    let found = lookup.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
    Ok(found.map_err(TrackerError::Resolve)?.collect())
}

/// What a tracker said last.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TrackerStatus {
    /// Its URL as given.
    pub url: String,
    /// Peers in the last answer, if there was one.
    pub peers: Option<usize>,
    /// Why the last announce failed, if it did.
    pub error: Option<String>,
}

/// One swarm's announces to one tracker.
pub(super) struct Task {
    pub(super) url: TrackerUrl,
    pub(super) swarm: SwarmId,
    pub(super) port: u16,
    pub(super) sink: mpsc::Sender<Found>,
    pub(super) status: Arc<Mutex<TrackerStatus>>,
    pub(super) stop: Stop,
}

impl Task {
    /// Announces until told to stop, then says good-bye to a tracker that knows us.
    pub(super) async fn run(self) {
        let mut request = AnnounceRequest {
            swarm: self.swarm,
            peer_id: random::bytes(),
            port: if self.port == 0 { PORT_NONE } else { self.port },
            key: u32::from_be_bytes(random::bytes()),
            uploaded: 0,
            downloaded: 0,
            left: LEFT,
            event: Event::Started,
        };
        let mut stop = self.stop.clone();
        tokio::select! {
            () = self.repeat(&mut request) => {}
            () = stop.stopped() => {}
        }
        if request.event == Event::Regular {
            request.event = Event::Stopped;
            drop(tokio::time::timeout(LEAVE_TIME, self.url.announce(request)).await);
        }
    }

    /// Ends only when nobody listens any more.
    async fn repeat(&self, request: &mut AnnounceRequest) {
        let mut failures = 0;
        loop {
            let outcome = self.url.announce(request.clone()).await;
            self.note(&outcome);
            let wait = match outcome {
                Ok(announced) => {
                    failures = 0;
                    request.event = Event::Regular;
                    for peer in announced.peers {
                        if !deliver(&self.sink, self.swarm, peer, Source::Tracker).await {
                            return;
                        }
                    }
                    announced.interval
                }
                Err(_) => {
                    failures += 1;
                    jittered(retry_wait(failures))
                }
            };
            tokio::time::sleep(wait).await;
        }
    }

    fn note(&self, outcome: &Result<Announced, TrackerError>) {
        let mut status = self.status.lock();
        match outcome {
            Ok(announced) => {
                status.peers = Some(announced.peers.len());
                status.error = None;
            }
            Err(error) => {
                tracing::debug!(swarm = %self.swarm, url = status.url, %error, "tracker");
                status.error = Some(error.to_string());
            }
        }
    }
}

fn retry_wait(failures: u32) -> Duration {
    (RETRY_TIME_MIN * 2_u32.pow(failures.saturating_sub(1).min(10))).min(RETRY_TIME_MAX)
}

#[cfg(test)]
mod tests;
