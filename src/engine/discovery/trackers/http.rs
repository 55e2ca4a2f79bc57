//! Announces to an HTTP or HTTPS tracker: one connection, one request, an answer bounded in length and time.

use std::future::Future;
use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::OnceLock;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::client::conn::http1;
use hyper::header::{ACCEPT, CONNECTION, HOST, LOCATION, USER_AGENT};
use hyper::{Request, Response, StatusCode, Uri, body::Body, body::Incoming};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tower_service::Service;

use super::{REDIRECTS_MAX, TrackerError, TrackerUrl, resolve};
use crate::net;
use crate::proto::http_tracker::{
    ANSWER_LEN_MAX, parse_answer, parse_scrape, path_and_query, scrape_path_and_query,
};
use crate::proto::tracker::{AnnounceRequest, Announced, Scraped};
use crate::share::SwarmId;

/// From the first packet to the last byte of the answer.
const ANSWER_TIME: Duration = Duration::from_secs(30);
/// For one address to take the connection.
const CONNECT_TIME: Duration = Duration::from_secs(8);
/// Addresses tried of a name that has several.
const ADDRESSES_MAX: usize = 3;
/// Longest head of an answer.
const HEAD_LEN_MAX: usize = 32 * 1024;

pub(super) async fn announce(
    url: &TrackerUrl,
    request: &AnnounceRequest,
) -> Result<Announced, TrackerError> {
    announce_within(ANSWER_TIME, url, request).await
}

pub(super) async fn announce_within(
    limit: Duration,
    url: &TrackerUrl,
    request: &AnnounceRequest,
) -> Result<Announced, TrackerError> {
    let question = path_and_query(url.path_and_query(), request);
    let body = within(limit, ask(url, question)).await?;
    Ok(parse_answer(&body)?)
}

/// Asks for the counts of a swarm.
pub(super) async fn scrape(url: &TrackerUrl, swarm: SwarmId) -> Result<Scraped, TrackerError> {
    let question = scrape_path_and_query(url.path_and_query(), swarm);
    let question = question.ok_or(TrackerError::NoScrape)?;
    let body = within(ANSWER_TIME, ask(url, question)).await?;
    Ok(parse_scrape(&body, swarm)?)
}

async fn within(
    limit: Duration,
    answer: impl Future<Output = Result<Bytes, TrackerError>>,
) -> Result<Bytes, TrackerError> {
    tokio::time::timeout(limit, answer)
        .await
        .unwrap_or(Err(TrackerError::TimedOut(limit)))
}

/// Asks for `path_and_query` of the tracker, and goes where it is sent.
async fn ask(url: &TrackerUrl, path_and_query: String) -> Result<Bytes, TrackerError> {
    let (mut url, mut question) = (url.clone(), path_and_query);
    for _ in 0..=REDIRECTS_MAX {
        match exchange(&url, &question).await? {
            Exchanged::Body(body) => return Ok(body),
            Exchanged::Elsewhere(location) => url = url.redirected(&location)?,
        }
        question = url.path_and_query().to_owned();
    }
    Err(TrackerError::Redirect("in circles"))
}

/// How one request ended.
enum Exchanged {
    Body(Bytes),
    /// The question is to be put there.
    Elsewhere(String),
}

async fn exchange(url: &TrackerUrl, question: &str) -> Result<Exchanged, TrackerError> {
    let authority = url.uri.authority().ok_or(TrackerError::Url)?;
    // User and password are not sent on.
    let host = authority.as_str().rsplit('@').next().unwrap_or_default();
    let request = Request::get(question)
        .header(HOST, host)
        .header(USER_AGENT, concat!("ccbt/", env!("CARGO_PKG_VERSION")))
        .header(ACCEPT, "*/*")
        .header(CONNECTION, "close")
        .body(Empty::<Bytes>::new())
        .map_err(failed)?;
    // The whole question: what is allowed on this machine depends on its path.
    let target = Uri::builder()
        .scheme(url.uri.scheme_str().unwrap_or_default())
        .authority(authority.as_str())
        .path_and_query(question)
        .build()
        .map_err(failed)?;
    let stream = connector().call(target).await.map_err(connect_error)?;
    let (mut sender, connection) = http1::Builder::new()
        .max_buf_size(HEAD_LEN_MAX)
        .handshake(stream)
        .await
        .map_err(failed)?;
    // Ends with this function, whatever the tracker does.
    let mut driver = JoinSet::new();
    driver.spawn(connection);
    let answer = sender.send_request(request).await.map_err(failed)?;
    if answer.status().is_redirection()
        && let Some(location) = answer.headers().get(LOCATION)
    {
        let location = location.to_str().map_err(failed)?;
        return Ok(Exchanged::Elsewhere(location.to_owned()));
    }
    Ok(Exchanged::Body(read_body(answer).await?))
}

async fn read_body(answer: Response<Incoming>) -> Result<Bytes, TrackerError> {
    if answer.status() != StatusCode::OK {
        return Err(TrackerError::Status(answer.status().as_u16()));
    }
    let body = answer.into_body();
    if body.size_hint().lower() > ANSWER_LEN_MAX as u64 {
        return Err(TrackerError::TooLong);
    }
    let read = Limited::new(body, ANSWER_LEN_MAX).collect().await;
    match read {
        Ok(read) => Ok(read.to_bytes()),
        Err(error) if error.is::<http_body_util::LengthLimitError>() => Err(TrackerError::TooLong),
        Err(error) => Err(failed(error)),
    }
}

fn failed(error: impl std::fmt::Display) -> TrackerError {
    TrackerError::Http(error.to_string())
}

/// Gives back our own error if that is what went wrong below TLS.
fn connect_error(error: Box<dyn std::error::Error + Send + Sync>) -> TrackerError {
    match error.downcast::<TrackerError>() {
        Ok(error) => *error,
        Err(error) => failed(error),
    }
}

/// TLS over [`Dial`]. Built once: it holds the parsed root certificates.
fn connector() -> HttpsConnector<Dial> {
    static CONNECTOR: OnceLock<HttpsConnector<Dial>> = OnceLock::new();
    let build = || {
        let builder = HttpsConnectorBuilder::new().with_webpki_roots();
        builder.https_or_http().enable_http1().wrap_connector(Dial)
    };
    CONNECTOR.get_or_init(build).clone()
}

/// TCP connections for the TLS connector.
#[derive(Debug, Clone)]
struct Dial;

impl Service<Uri> for Dial {
    type Response = TokioIo<TcpStream>;
    type Error = TrackerError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, TrackerError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), TrackerError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        Box::pin(dial(uri))
    }
}

async fn dial(uri: Uri) -> Result<TokioIo<TcpStream>, TrackerError> {
    let url = TrackerUrl::parse(&uri.to_string())?;
    let path = url.uri.path();
    let known = ["/announce", "/scrape"]
        .iter()
        .any(|begin| path.starts_with(begin));
    let host = url.host.parse::<IpAddr>();
    if host.is_ok_and(|ip| ip.is_loopback()) && !known {
        return Err(TrackerError::LocalPath);
    }
    if let Some(connected) = net::connect_by_proxy(&url.host, url.port, CONNECT_TIME).await {
        return Ok(TokioIo::new(connected?));
    }
    let mut last = TrackerError::Resolve(io::ErrorKind::NotFound.into());
    for addr in resolve(&url.host, url.port)
        .await?
        .into_iter()
        .take(ADDRESSES_MAX)
    {
        if addr.ip().is_loopback() && !known {
            return Err(TrackerError::LocalPath);
        }
        match net::tcp_connect(addr, CONNECT_TIME).await {
            Ok(stream) => return Ok(TokioIo::new(stream)),
            Err(error) => last = TrackerError::Io(error),
        }
    }
    Err(last)
}
