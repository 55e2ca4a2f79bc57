//! Trackers: where they are, asking one of them once, and what is known of them. `task` asks for as long as a swarm is watched.

mod http;
mod task;
mod udp;

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use hyper::Uri;
use thiserror::Error;

pub use self::task::{Announce, Totals};
pub(super) use self::task::{Entry, Task};
use crate::proto::http_tracker::{ANSWER_LEN_MAX, HttpAnswerError};
use crate::proto::tracker::{AnnounceRequest, Announced, Scraped};
use crate::proto::udp_tracker::UdpTrackerError;
use crate::share::SwarmId;

/// Longest name lookup.
const RESOLVE_TIME: Duration = Duration::from_secs(10);
/// Redirects followed in a row.
const REDIRECTS_MAX: usize = 5;

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
    /// It sends us elsewhere, where we do not go.
    #[error("the tracker redirects {0}")]
    Redirect(&'static str),
    /// BEP 48 gives no way to scrape it.
    #[error("the tracker cannot be scraped")]
    NoScrape,
    /// The socket failed.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// A UDP tracker's answer, or none.
    #[error(transparent)]
    Udp(#[from] UdpTrackerError),
    /// Connecting, TLS or HTTP failed.
    #[error("{0}")]
    Http(String),
    /// The HTTP status is not 200.
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

impl TrackerError {
    /// The tracker's own words.
    fn said(&self) -> Option<&str> {
        match self {
            Self::Udp(UdpTrackerError::Refused { reason })
            | Self::Answer(HttpAnswerError::Refused { reason }) => Some(reason),
            _ => None,
        }
    }
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

    /// Asks for the counts of a swarm.
    pub async fn scrape(&self, swarm: SwarmId) -> Result<Scraped, TrackerError> {
        if self.udp {
            udp::scrape(self, swarm).await
        } else {
            http::scrape(self, swarm).await
        }
    }

    /// Where a redirect of this HTTP tracker leads: an absolute URL, or a path on the same server. Never from TLS to none.
    fn redirected(&self, location: &str) -> Result<Self, TrackerError> {
        let here = self.uri.authority().ok_or(TrackerError::Url)?;
        let scheme = self.uri.scheme_str().unwrap_or_default();
        let text = if location.contains("://") {
            location.to_owned()
        } else if let Some(rest) = location.strip_prefix("//") {
            format!("{scheme}://{rest}")
        } else if location.starts_with('/') {
            format!("{scheme}://{here}{location}")
        } else {
            return Err(TrackerError::Redirect("to something that is no URL"));
        };
        let there = Self::parse(&text);
        let there = there.map_err(|_| TrackerError::Redirect("to something that is no URL"))?;
        match (there.udp, scheme, there.uri.scheme_str()) {
            (true, ..) => Err(TrackerError::Redirect("to another protocol")),
            (_, "https", Some("http")) => Err(TrackerError::Redirect("from https to http")),
            _ => Ok(there),
        }
    }
}

async fn resolve(host: &str, port: u16) -> Result<Vec<SocketAddr>, TrackerError> {
    let lookup = tokio::time::timeout(RESOLVE_TIME, tokio::net::lookup_host((host, port))).await;
    let found = lookup.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
    Ok(found.map_err(TrackerError::Resolve)?.collect())
}

/// What is known of a tracker.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TrackerStatus {
    /// Its URL as given.
    pub url: String,
    /// Its tier, from 0.
    pub tier: usize,
    /// Peers in the last answer, if there was one.
    pub peers: Option<usize>,
    /// Peers that have everything, as the tracker counts.
    pub seeds: Option<u32>,
    /// Peers that do not.
    pub leechers: Option<u32>,
    /// What the tracker wants the user to know: a warning, or why it refuses.
    pub message: Option<String>,
    /// Why the last announce failed, if it did.
    pub error: Option<String>,
    /// When it was asked last, in seconds since 1970.
    pub last_announce: Option<u64>,
    /// When it is asked next, in seconds since 1970; `None` for one that waits until others of its tier fail.
    pub next_announce: Option<u64>,
}

#[cfg(test)]
mod tests;
