//! A connection to a web server: made when the first request comes, kept for the next ones, one request at a time. Nothing of an
//! answer is believed here; bodies are read as far as the machine says.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::body::{Body, Incoming};
use hyper::client::conn::http1::{self, SendRequest};
use hyper::header::{
    ACCEPT, ACCEPT_ENCODING, AUTHORIZATION, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE,
    CONTENT_TYPE, HOST, HeaderName, LOCATION, RANGE, RETRY_AFTER, USER_AGENT,
};
use hyper::{Request, Response, Uri};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tower_service::Service;

use super::super::DialTorrent;
use crate::engine::limits::{Limits, Way};
use crate::net;
use crate::proto::web_seed::url::{UrlError, WebUrl, is_local};
use crate::proto::web_seed::{Answer, Fetch, Next, WebError};

/// For one address to take the connection, TLS included.
const CONNECT_TIME: Duration = Duration::from_secs(10);
/// For a name to be looked up.
const RESOLVE_TIME: Duration = Duration::from_secs(10);
/// For the head of an answer, and then for each next part of its body.
const SILENCE_MAX: Duration = Duration::from_secs(30);
/// Addresses tried of a name that has several.
const ADDRESSES_MAX: usize = 4;
/// Longest head of an answer, and most of a body that is read at once.
const BUFFER_LEN_MAX: usize = 64 << 10;

/// What a connection tells about one request.
pub(super) struct LaneEvent {
    pub(super) lane: usize,
    pub(super) id: u64,
    pub(super) news: LaneNews,
}

pub(super) enum LaneNews {
    /// The head is here; what to do with the rest?
    Answer(Answer, oneshot::Sender<Next>),
    Body(Bytes),
    /// All that was to be read has been, or else why not.
    Ended(Option<WebError>),
}

/// The way to a connection, which ends with it.
pub(super) struct Lane {
    fetches: mpsc::UnboundedSender<Fetch>,
    _task: JoinSet<()>,
}

impl Lane {
    pub(super) fn start(
        limits: Limits,
        gate: Arc<dyn DialTorrent>,
        events: mpsc::Sender<LaneEvent>,
    ) -> Self {
        let (fetches, mut todo) = mpsc::unbounded_channel();
        let mut connection = Connection {
            limits,
            gate,
            events,
            kept: None,
        };
        let mut task = JoinSet::new();
        task.spawn(async move {
            while let Some(fetch) = todo.recv().await {
                if connection.fetch(fetch).await.is_none() {
                    return;
                }
            }
        });
        Self {
            fetches,
            _task: task,
        }
    }

    pub(super) fn give(&self, fetch: Fetch) {
        // An error means that the task has ended, and so has all else.
        drop(self.fetches.send(fetch));
    }
}

/// An open connection.
struct Kept {
    tls: bool,
    authority: String,
    sender: SendRequest<Empty<Bytes>>,
    /// Ends with the connection.
    _driver: JoinSet<()>,
}

struct Connection {
    limits: Limits,
    gate: Arc<dyn DialTorrent>,
    events: mpsc::Sender<LaneEvent>,
    kept: Option<Kept>,
}

impl Connection {
    /// Makes a request, and those it is redirected to. `None`: nobody listens any more.
    async fn fetch(&mut self, mut fetch: Fetch) -> Option<()> {
        loop {
            let outcome = self.attempt(&fetch).await;
            let error = match outcome {
                Ok(Some(next)) => {
                    fetch = next;
                    continue;
                }
                Ok(None) => None,
                Err(error) => Some(error),
            };
            if error.is_some() {
                self.kept = None;
            }
            return self.tell(&fetch, LaneNews::Ended(error)).await;
        }
    }

    async fn tell(&self, fetch: &Fetch, news: LaneNews) -> Option<()> {
        let (lane, id) = (fetch.lane, fetch.id);
        self.events.send(LaneEvent { lane, id, news }).await.ok()
    }

    async fn attempt(&mut self, fetch: &Fetch) -> Result<Option<Fetch>, WebError> {
        let response = self.ask(fetch).await?;
        let (reply, verdict) = oneshot::channel();
        let news = LaneNews::Answer(answer_of(&response), reply);
        self.tell(fetch, news).await.ok_or_else(gone)?;
        let body = response.into_body();
        match verdict.await.map_err(|_| gone())? {
            Next::Take(bytes) => {
                self.read(fetch, body, bytes).await?;
                Ok(None)
            }
            Next::Again(next) => {
                self.keep_if(body.is_end_stream());
                Ok(Some(next))
            }
            Next::Leave => {
                self.keep_if(body.is_end_stream());
                Ok(None)
            }
        }
    }

    /// A connection on which something is still to come is of no use for the next request.
    fn keep_if(&mut self, ended: bool) {
        if !ended {
            self.kept = None;
        }
    }

    /// Sends the request and waits for the head of the answer. A server may close a connection that was kept at any time; then
    /// a new one is made.
    async fn ask(&mut self, fetch: &Fetch) -> Result<Response<Incoming>, WebError> {
        let url = &fetch.url;
        let fits = |kept: &Kept| {
            (kept.tls, kept.authority.as_str()) == (url.tls, url.authority().as_str())
                && !kept.sender.is_closed()
        };
        if let Some(kept) = self.kept.as_mut().filter(|kept| fits(kept))
            && let Ok(response) = send(kept, fetch).await
        {
            return Ok(response);
        }
        self.kept = None;
        let kept = self.kept.insert(connect(url, fetch, &self.gate).await?);
        send(kept, fetch).await
    }

    async fn read(
        &mut self,
        fetch: &Fetch,
        mut body: Incoming,
        mut left: u64,
    ) -> Result<(), WebError> {
        while left > 0 {
            while let Some(at) = self.limits.ready_at(Way::Down) {
                tokio::time::sleep_until(at.into()).await;
            }
            let frame = within(SILENCE_MAX, body.frame()).await?;
            let frame = match frame {
                Some(frame) => frame.map_err(broken)?,
                None => return Ok(()),
            };
            let Ok(data) = frame.into_data() else {
                continue;
            };
            self.limits.passed(Way::Down, data.len() as u64);
            left = left.saturating_sub(data.len() as u64);
            self.tell(fetch, LaneNews::Body(data))
                .await
                .ok_or_else(gone)?;
        }
        self.keep_if(body.is_end_stream());
        Ok(())
    }
}

async fn send(kept: &mut Kept, fetch: &Fetch) -> Result<Response<Incoming>, WebError> {
    let url = &fetch.url;
    let (first, last) = (fetch.begin, fetch.end.saturating_sub(1));
    let mut request = Request::get(url.path.as_str())
        .header(HOST, url.authority())
        .header(USER_AGENT, concat!("ccbt/", env!("CARGO_PKG_VERSION")))
        .header(ACCEPT, "*/*")
        .header(ACCEPT_ENCODING, "identity")
        .header(RANGE, format!("bytes={first}-{last}"));
    if let Some(login) = url.login() {
        request = request.header(AUTHORIZATION, login);
    }
    let request = request.body(Empty::new()).map_err(broken)?;
    let answer = async {
        kept.sender.ready().await.map_err(broken)?;
        kept.sender.send_request(request).await.map_err(broken)
    };
    within(SILENCE_MAX, answer).await?
}

fn answer_of(response: &Response<Incoming>) -> Answer {
    let text = |name: HeaderName| {
        let value = response.headers().get(name)?.as_bytes();
        Some(String::from_utf8_lossy(value).into_owned())
    };
    Answer {
        status: response.status().as_u16(),
        length: text(CONTENT_LENGTH).and_then(|text| text.parse().ok()),
        range: text(CONTENT_RANGE),
        location: text(LOCATION),
        kind: text(CONTENT_TYPE),
        encoding: text(CONTENT_ENCODING),
        retry_after: text(RETRY_AFTER),
    }
}

async fn connect(
    url: &WebUrl,
    fetch: &Fetch,
    gate: &Arc<dyn DialTorrent>,
) -> Result<Kept, WebError> {
    let dial = Dial {
        url: url.clone(),
        redirected: fetch.redirected,
        gate: Arc::clone(gate),
    };
    let scheme = if url.tls { "https" } else { "http" };
    let target = Uri::builder()
        .scheme(scheme)
        .authority(url.authority())
        .path_and_query("/")
        .build()
        .map_err(broken)?;
    let mut connector = over_tls(dial);
    let stream = connector.call(target);
    let stream = within(CONNECT_TIME * ADDRESSES_MAX as u32, stream).await?;
    let stream = stream.map_err(|error| match error.downcast::<WebError>() {
        Ok(error) => *error,
        Err(error) => broken(error),
    })?;
    let (sender, connection) = http1::Builder::new()
        .max_buf_size(BUFFER_LEN_MAX)
        .handshake(stream)
        .await
        .map_err(broken)?;
    let mut driver = JoinSet::new();
    driver.spawn(async move {
        if let Err(error) = connection.await {
            tracing::debug!(%error, "connection to a web seed");
        }
    });
    Ok(Kept {
        tls: url.tls,
        authority: url.authority(),
        sender,
        _driver: driver,
    })
}

fn over_tls(dial: Dial) -> HttpsConnector<Dial> {
    let builder = HttpsConnectorBuilder::new().with_webpki_roots();
    builder.https_or_http().enable_http1().wrap_connector(dial)
}

/// TCP connections for the TLS connector.
#[derive(Clone)]
struct Dial {
    url: WebUrl,
    redirected: bool,
    gate: Arc<dyn DialTorrent>,
}

impl Service<Uri> for Dial {
    type Response = TokioIo<TcpStream>;
    type Error = WebError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, WebError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), WebError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let dial = self.clone();
        Box::pin(async move { dial.connect().await.map(TokioIo::new) })
    }
}

impl Dial {
    async fn connect(&self) -> Result<TcpStream, WebError> {
        let (host, port) = (self.url.host.as_str(), self.url.port);
        if let Ok(ip) = host.parse() {
            self.check(ip)?;
        }
        if let Some(connected) = net::connect_by_proxy(host, port, CONNECT_TIME).await {
            return connected.map_err(broken);
        }
        let found = within(RESOLVE_TIME, tokio::net::lookup_host((host, port))).await?;
        let found: Vec<SocketAddr> = found.map_err(broken)?.take(ADDRESSES_MAX).collect();
        let mut last = broken("its name has no address");
        for addr in found {
            self.check(addr.ip())?;
            match net::tcp_connect(addr, CONNECT_TIME).await {
                Ok(stream) => return Ok(stream),
                Err(error) => last = broken(error),
            }
        }
        Err(last)
    }

    /// A torrent must not make us ask things of servers that only we can reach: those get no query, and nobody is sent to them.
    fn check(&self, ip: IpAddr) -> Result<(), WebError> {
        if is_local(ip) && (self.redirected || self.url.has_query()) {
            return Err(UrlError::Inwards.into());
        }
        match self.gate.allows(ip) {
            true => Ok(()),
            false => Err(WebError::Filtered),
        }
    }
}

async fn within<T>(time: Duration, what: impl Future<Output = T>) -> Result<T, WebError> {
    let done = tokio::time::timeout(time, what).await;
    done.map_err(|_| WebError::Hangs(time))
}

fn broken(error: impl std::fmt::Display) -> WebError {
    WebError::Broken(error.to_string())
}

/// The task that this is for has ended; nobody reads it.
fn gone() -> WebError {
    broken(io::ErrorKind::BrokenPipe)
}
