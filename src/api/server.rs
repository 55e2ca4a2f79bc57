//! The API over HTTP/1: one router behind the unix socket in the state directory and, if asked for, a TCP address.
//!
//! `POST /v1/<name>` with the request as JSON. The answer is the response as JSON, or `{"error": …}` with the status of its
//! kind. Who sends `Accept: application/x-ndjson` gets a line `{"progress": …}` now and then, and at last one line
//! `{"result": …}` or `{"error": …}`, always with status 200. `GET /v1/status` and `/v1/peers` need no body; `GET
//! /v1/metrics` is for Prometheus. Connections, calls and the size of requests are bounded.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request as HttpRequest, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use bytes::Bytes;
use hyper::body::Frame;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use serde::Serialize;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tokio::time::{Instant, sleep, timeout};

use super::access::{self, Token};
use super::control::{Control, NoProgress, ProgressReport, ProgressSink, Reply};
use super::error::{ApiError, ErrorKind};
use super::listen::{self, SocketFile};
use super::types::{Progress, Request, StatusRequest};
use crate::config::StateDir;
use crate::telemetry::metrics;

/// The biggest request is two paths and some addresses.
const REQUEST_BYTES_MAX: usize = 64 << 10;
/// Time for a client to send its request; it is on this machine or near it.
const REQUEST_TIME: Duration = Duration::from_secs(10);
/// On each listener: a script may run many commands at once, an attacker shall not hold every descriptor.
const CONNECTIONS_MAX: usize = 64;
/// Calls go on when their client has gone, so they have a bound of their own.
const CALLS_MAX: usize = 256;
/// A progress line this often at most: a bar cannot show more.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(100);
/// Time for answers that are being sent when the server closes.
const DRAIN_TIME: Duration = Duration::from_secs(2);
/// After a failed `accept` (out of descriptors): long enough not to spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

const NDJSON: &str = "application/x-ndjson";

/// One line of a streamed answer.
#[derive(Debug, Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Line<T> {
    Progress(Progress),
    Result(T),
    Error(ApiError),
}

/// A running server. Dropped, it stops taking connections; [`Server::close`] also lets answers out.
#[derive(Debug)]
pub struct Server {
    closing: watch::Sender<bool>,
    connections: Vec<Arc<Semaphore>>,
    tcp: Option<SocketAddr>,
    _socket: SocketFile,
}

#[derive(Clone)]
struct App {
    control: Arc<dyn Control>,
    calls: Arc<Semaphore>,
}

impl Server {
    /// Listens on the state directory's socket and on `tcp`. The caller holds the directory's lock.
    pub async fn start(
        control: Arc<dyn Control>,
        state: &StateDir,
        tcp: Option<SocketAddr>,
    ) -> Result<Self, ApiError> {
        let app = App {
            control,
            calls: Arc::new(Semaphore::new(CALLS_MAX)),
        };
        let (closing, _) = watch::channel(false);
        let tcp = match tcp {
            Some(addr) => Some(bind_tcp(addr, state).await?),
            None => None,
        };
        let (unix, socket) = listen::bind_unix(&state.socket()).map_err(|error| {
            ApiError::io("cannot listen on the socket in the state directory", &error)
        })?;
        let mut server = Self {
            closing,
            connections: Vec::new(),
            tcp: None,
            _socket: socket,
        };
        let permits = server.listener();
        tokio::spawn(accept_unix(
            unix,
            router(app.clone()),
            permits,
            server.closing.subscribe(),
        ));
        if let Some((listener, addr, token)) = tcp {
            server.tcp = Some(addr);
            let permits = server.listener();
            let closing = server.closing.subscribe();
            tokio::spawn(accept_tcp(listener, router(app), token, permits, closing));
        }
        Ok(server)
    }

    /// The TCP address that is listened on.
    pub fn tcp_addr(&self) -> Option<SocketAddr> {
        self.tcp
    }

    /// Takes no more connections and waits a little for the answers that are on their way out.
    pub async fn close(self) {
        self.closing.send_replace(true);
        let all = u32::try_from(CONNECTIONS_MAX).unwrap_or(u32::MAX);
        for permits in &self.connections {
            if timeout(DRAIN_TIME, permits.acquire_many(all))
                .await
                .is_err()
            {
                tracing::debug!("closed API connections that were still in use");
            }
        }
    }

    fn listener(&mut self) -> Arc<Semaphore> {
        let permits = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        self.connections.push(permits.clone());
        permits
    }
}

async fn bind_tcp(
    addr: SocketAddr,
    state: &StateDir,
) -> Result<(TcpListener, SocketAddr, Token), ApiError> {
    let token = Token::load(&state.token_file()).map_err(|error| {
        let path = state.token_file();
        let path = super::escape(path.as_os_str().as_encoded_bytes());
        ApiError::io(format_args!("cannot use the API token {path}"), &error)
            .hint("remove the file and a new one is made")
    })?;
    let failed = |error| {
        ApiError::io(format_args!("cannot listen for the API on {addr}"), &error)
            .hint("choose another address with --api")
    };
    let listener = listen::bind_tcp(addr).await.map_err(failed)?;
    let bound = listener.local_addr().map_err(failed)?;
    if !bound.ip().is_loopback() {
        tracing::warn!(%bound, "the API is reachable from other machines, without encryption");
    }
    Ok((listener, bound, token))
}

async fn accept_unix(
    listener: UnixListener,
    router: Router,
    permits: Arc<Semaphore>,
    mut closing: watch::Receiver<bool>,
) {
    let router = router.layer(middleware::from_fn(refuse_pages));
    loop {
        let Ok(permit) = permits.clone().acquire_owned().await else {
            return;
        };
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = closed(&mut closing) => return,
        };
        match accepted {
            Ok((stream, _)) if access::is_allowed_peer(&stream) => {
                let served = serve(stream, router.clone(), closing.clone());
                tokio::spawn(async move {
                    served.await;
                    drop(permit);
                });
            }
            Ok(_) => tracing::warn!("refused an API connection of another user"),
            Err(_) => sleep(ACCEPT_PAUSE).await,
        }
    }
}

async fn accept_tcp(
    listener: TcpListener,
    router: Router,
    token: Token,
    permits: Arc<Semaphore>,
    mut closing: watch::Receiver<bool>,
) {
    loop {
        let Ok(permit) = permits.clone().acquire_owned().await else {
            return;
        };
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = closed(&mut closing) => return,
        };
        let local = accepted.and_then(|(stream, _)| Ok((stream.local_addr()?, stream)));
        let Ok((local, stream)) = local else {
            sleep(ACCEPT_PAUSE).await;
            continue;
        };
        let token = token.clone();
        let router = router
            .clone()
            .layer(middleware::from_fn(move |request, next| {
                check_tcp(local, token.clone(), request, next)
            }));
        let served = serve(stream, router, closing.clone());
        tokio::spawn(async move {
            served.await;
            drop(permit);
        });
    }
}

async fn refuse_pages(request: HttpRequest, next: Next) -> Response {
    match access::check_origin(request.headers()) {
        Ok(()) => next.run(request).await,
        Err(error) => error_response(&error),
    }
}

async fn check_tcp(local: SocketAddr, token: Token, request: HttpRequest, next: Next) -> Response {
    match access::check_tcp(request.headers(), local, &token) {
        Ok(()) => next.run(request).await,
        Err(error) => {
            tracing::warn!(%error, "refused an API request");
            error_response(&error)
        }
    }
}

/// The server is closing, or gone.
async fn closed(closing: &mut watch::Receiver<bool>) {
    // The error case is the server having been dropped.
    drop(closing.wait_for(|closing| *closing).await);
}

/// One connection, until its client or the server closes it.
async fn serve<S>(stream: S, router: Router, mut closing: watch::Receiver<bool>)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(REQUEST_TIME)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    let mut connection = std::pin::pin!(connection);
    let finished = tokio::select! {
        result = &mut connection => Some(result),
        () = closed(&mut closing) => None,
    };
    let result = match finished {
        Some(result) => result,
        None => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = result {
        tracing::debug!(%error, "an API connection ended early");
    }
}

fn router(app: App) -> Router {
    Router::new()
        .merge(folder_routes())
        .merge(torrent_routes())
        .route(
            "/v1/mount",
            post(|app, request| call(app, request, |c, r, p| c.mount(r, p))),
        )
        .route(
            "/v1/unmount",
            post(|app, request| call(app, request, |c, r, p| c.unmount(r, p))),
        )
        .route(
            "/v1/status",
            post(|app, request| call(app, request, |c, r, p| c.status(r, p)))
                .get(|app, request| call(app, request, |c, r, p| c.status(r, p))),
        )
        .route(
            "/v1/peers",
            post(|app, request| call(app, request, |c, r, p| c.peers(r, p)))
                .get(|app, request| call(app, request, |c, r, p| c.peers(r, p))),
        )
        .route(
            "/v1/keys",
            post(|app, request| call(app, request, |c, r, p| c.keys(r, p))),
        )
        .route(
            "/v1/store",
            post(|app, request| call(app, request, |c, r, p| c.store(r, p))),
        )
        .route(
            "/v1/shutdown",
            post(|app, request| call(app, request, |c, r, p| c.shutdown(r, p))),
        )
        .route("/v1/metrics", get(exposition))
        .fallback(|| async { error_response(&ApiError::new(ErrorKind::NotFound, "no such call")) })
        .method_not_allowed_fallback(|| async {
            error_response(&ApiError::new(
                ErrorKind::Usage,
                "this call needs another method",
            ))
        })
        .with_state(app)
}

fn folder_routes() -> Router<App> {
    Router::new()
        .route(
            "/v1/share",
            post(|app, request| call(app, request, |c, r, p| c.share(r, p))),
        )
        .route(
            "/v1/unshare",
            post(|app, request| call(app, request, |c, r, p| c.unshare(r, p))),
        )
        .route(
            "/v1/join",
            post(|app, request| call(app, request, |c, r, p| c.join(r, p))),
        )
        .route(
            "/v1/confirm",
            post(|app, request| call(app, request, |c, r, p| c.confirm(r, p))),
        )
        .route(
            "/v1/conflicts",
            post(|app, request| call(app, request, |c, r, p| c.conflicts(r, p)))
                .get(|app, request| call(app, request, |c, r, p| c.conflicts(r, p))),
        )
        .route(
            "/v1/resolve",
            post(|app, request| call(app, request, |c, r, p| c.resolve(r, p))),
        )
        .route(
            "/v1/displaced",
            post(|app, request| call(app, request, |c, r, p| c.displaced(r, p))),
        )
        .route(
            "/v1/pin",
            post(|app, request| call(app, request, |c, r, p| c.pin(r, p))),
        )
        .route(
            "/v1/unpin",
            post(|app, request| call(app, request, |c, r, p| c.unpin(r, p))),
        )
        .route(
            "/v1/evict",
            post(|app, request| call(app, request, |c, r, p| c.evict(r, p))),
        )
}

fn torrent_routes() -> Router<App> {
    Router::new()
        .route(
            "/v1/download",
            post(|app, request| call(app, request, |c, r, p| c.download(r, p))),
        )
        .route(
            "/v1/torrents",
            post(|app, request| call(app, request, |c, r, p| c.torrents(r, p)))
                .get(|app, request| call(app, request, |c, r, p| c.torrents(r, p))),
        )
        .route(
            "/v1/torrent",
            post(|app, request| call(app, request, |c, r, p| c.torrent(r, p))),
        )
}

/// Reads the request, begins the call, and answers in the form that was asked for.
async fn call<R, F>(State(app): State<App>, request: HttpRequest, begin: F) -> Response
where
    R: Request,
    F: for<'a> FnOnce(&'a dyn Control, R, ProgressSink) -> Reply<'a, R::Response> + Send + 'static,
{
    let streams = wants_lines(request.headers());
    let request = match read_request::<R>(request).await {
        Ok(request) => request,
        Err(error) => return error_response(&error),
    };
    let Ok(permit) = app.calls.try_acquire_owned() else {
        return error_response(&ApiError::new(
            ErrorKind::Busy,
            "too many calls are running",
        ));
    };
    let (progress, updates) = watch::channel(Progress::default());
    let (done, answer) = oneshot::channel();
    tokio::spawn(async move {
        let result = begin(&*app.control, request, Arc::new(Newest(progress))).await;
        drop(permit);
        // Nobody waits for the answer any more: that is no reason to undo the call.
        drop(done.send(result));
    });
    if streams {
        return stream_response(updates, answer);
    }
    match answer.await.unwrap_or_else(|_| Err(panicked())) {
        Ok(result) => json_response(StatusCode::OK, &result),
        Err(error) => error_response(&error),
    }
}

fn wants_lines(headers: &HeaderMap) -> bool {
    headers
        .get(header::ACCEPT)
        .is_some_and(|accept| accept.as_bytes() == NDJSON.as_bytes())
}

async fn read_request<R: Request>(request: HttpRequest) -> Result<R, ApiError> {
    let usage = |message: String| ApiError::new(ErrorKind::Usage, message);
    let body = axum::body::to_bytes(request.into_body(), REQUEST_BYTES_MAX);
    let body = match timeout(REQUEST_TIME, body).await {
        Ok(Ok(body)) => body,
        Ok(Err(_)) => {
            return Err(usage(format!(
                "the request is cut off or over {REQUEST_BYTES_MAX} bytes"
            )));
        }
        Err(_) => {
            return Err(ApiError::new(
                ErrorKind::Timeout,
                "the request did not arrive",
            ));
        }
    };
    let body: &[u8] = if body.is_empty() { b"{}" } else { &body };
    serde_json::from_slice(body)
        .map_err(|error| usage(format!("the request `{}` is malformed: {error}", R::NAME)))
}

/// Keeps the newest report.
struct Newest(watch::Sender<Progress>);

impl ProgressReport for Newest {
    fn report(&self, progress: Progress) {
        self.0.send_replace(progress);
    }
}

/// The call's task ended without an answer.
fn panicked() -> ApiError {
    ApiError::new(
        ErrorKind::Internal,
        "the daemon failed while working on this",
    )
    .hint("its log says more; please report it")
}

fn json_response(status: StatusCode, body: &impl Serialize) -> Response {
    match serde_json::to_vec(body) {
        Ok(mut body) => {
            body.push(b'\n');
            (status, [(header::CONTENT_TYPE, "application/json")], body).into_response()
        }
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

fn error_response(error: &ApiError) -> Response {
    let status = StatusCode::from_u16(error.kind.http_status());
    let status = status.unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    json_response(status, &Line::<()>::Error(error.clone()))
}

fn stream_response<T: Serialize + Send + 'static>(
    updates: watch::Receiver<Progress>,
    answer: oneshot::Receiver<Result<T, ApiError>>,
) -> Response {
    let (lines, body) = mpsc::channel(1);
    tokio::spawn(write_lines(updates, answer, lines));
    ([(header::CONTENT_TYPE, NDJSON)], Body::new(Lines(body))).into_response()
}

/// Sends progress until the answer is there, then the answer. Ends when the client has gone.
async fn write_lines<T: Serialize>(
    mut updates: watch::Receiver<Progress>,
    mut answer: oneshot::Receiver<Result<T, ApiError>>,
    lines: mpsc::Sender<Bytes>,
) {
    let mut next = Instant::now();
    let mut more = true;
    let result = loop {
        tokio::select! {
            biased;
            result = &mut answer => break result,
            changed = changed_after(&mut updates, next), if more => {
                more = changed;
                let progress = updates.borrow_and_update().clone();
                if more && lines.send(line(&Line::<T>::Progress(progress))).await.is_err() {
                    return;
                }
                next = Instant::now() + PROGRESS_INTERVAL;
            }
        }
    };
    let last = match result.unwrap_or_else(|_| Err(panicked())) {
        Ok(result) => Line::Result(result),
        Err(error) => Line::Error(error),
    };
    // An error means that the client has gone.
    drop(lines.send(line(&last)).await);
}

async fn changed_after(updates: &mut watch::Receiver<Progress>, next: Instant) -> bool {
    tokio::time::sleep_until(next).await;
    updates.changed().await.is_ok()
}

fn line<T: Serialize>(line: &Line<T>) -> Bytes {
    let mut text = serde_json::to_vec(line).unwrap_or_default();
    text.push(b'\n');
    text.into()
}

/// A body made of lines that come one at a time.
struct Lines(mpsc::Receiver<Bytes>);

impl hyper::body::Body for Lines {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        self.0
            .poll_recv(cx)
            .map(|line| line.map(|line| Ok(Frame::data(line))))
    }
}

async fn exposition(State(app): State<App>) -> Response {
    let status = app
        .control
        .status(StatusRequest {}, Arc::new(NoProgress))
        .await;
    match status {
        Ok(status) => {
            let text = metrics::exposition(&status.daemon.metrics);
            ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], text).into_response()
        }
        Err(error) => error_response(&error),
    }
}
