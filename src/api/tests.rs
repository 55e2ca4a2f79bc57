//! Server and client against the fake daemon, over real sockets.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::fake::FakeControl;
use super::types::*;
use super::*;
use crate::config::StateDir;

struct Setup {
    _dir: TempDir,
    state: StateDir,
    control: Arc<FakeControl>,
    server: Server,
}

async fn setup() -> Setup {
    let dir = tempfile::tempdir().unwrap();
    let state = StateDir::lock(&dir.path().join("state")).unwrap();
    let control = Arc::new(FakeControl::default());
    let tcp: SocketAddr = "127.0.0.1:0".parse().unwrap();
    let server = Server::start(control.clone(), &state, Some(tcp))
        .await
        .unwrap();
    Setup {
        _dir: dir,
        state,
        control,
        server,
    }
}

impl Setup {
    async fn client(&self) -> Client {
        Client::connect(&self.state).await.unwrap().unwrap()
    }

    fn token(&self) -> String {
        std::fs::read_to_string(self.state.token_file())
            .unwrap()
            .trim()
            .to_owned()
    }

    /// Sends `request` over TCP, with `{addr}` and `{token}` filled in, and returns the status and the body.
    async fn raw(&self, request: &str) -> (u16, String) {
        let addr = self.server.tcp_addr().unwrap();
        let request = request.replace("{addr}", &addr.to_string());
        let request = request.replace("{token}", &self.token());
        let mut stream = TcpStream::connect(addr).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        let status = answer.split(' ').nth(1).unwrap().parse().unwrap();
        (status, answer.split_once("\r\n\r\n").unwrap().1.to_owned())
    }

    async fn get(&self, path: &str, headers: &str) -> (u16, String) {
        self.raw(&format!(
            "GET {path} HTTP/1.1\r\nConnection: close\r\n{headers}\r\n"
        ))
        .await
    }

    async fn post(&self, path: &str, body: &str) -> (u16, String) {
        let len = body.len();
        self.raw(&format!(
            "POST {path} HTTP/1.1\r\nConnection: close\r\n{GOOD}Content-Length: {len}\r\n\r\n{body}"
        ))
        .await
    }
}

const GOOD: &str = "Host: {addr}\r\nAuthorization: Bearer {token}\r\n";

#[derive(Default)]
struct Seen(Mutex<Vec<Progress>>);

impl ProgressReport for Seen {
    fn report(&self, progress: Progress) {
        self.0.lock().unwrap().push(progress);
    }
}

fn pin(path: &str) -> PinRequest {
    PinRequest {
        path: ApiPath(path.into()),
    }
}

#[tokio::test]
async fn a_call_brings_its_result_over_the_socket() {
    let setup = setup().await;
    let client = setup.client().await;
    let request = ShareRequest {
        dir: ApiPath("/d/pics".into()),
        name: None,
        peers: Vec::new(),
        suite: None,
    };
    let response = client.call(&request, &NoProgress).await.unwrap();
    assert_eq!(
        (response.name.as_str(), response.read_write.reveal()),
        ("pics", "ccbt:wfake")
    );
    let work = setup.control.work().borrow().clone();
    assert_eq!(
        work.items,
        [WorkItem {
            kind: WorkKind::Share,
            dir: request.dir
        }]
    );
}

#[tokio::test]
async fn an_error_arrives_whole() {
    let setup = setup().await;
    let request = EvictRequest {
        path: ApiPath("/d/\u{7}x".into()),
    };
    let error = setup
        .client()
        .await
        .call(&request, &NoProgress)
        .await
        .unwrap_err();
    assert_eq!(error.kind, ErrorKind::Refused);
    assert_eq!(error.message, "/d/\\x07x is pinned");
    assert_eq!(error.hint.as_deref(), Some("unpin it first"));
}

#[tokio::test]
async fn progress_comes_before_the_result_and_never_goes_back() {
    let setup = setup().await;
    let seen = Seen::default();
    setup
        .client()
        .await
        .call(&pin("/a/1000"), &seen)
        .await
        .unwrap();
    let steps: Vec<u64> = seen
        .0
        .lock()
        .unwrap()
        .iter()
        .map(|p| p.files_done)
        .collect();
    assert!(!steps.is_empty() && steps.is_sorted(), "{steps:?}");
}

#[tokio::test]
async fn a_panic_in_the_daemon_is_an_error_of_that_call_alone() {
    let setup = setup().await;
    let client = setup.client().await;
    let error = client.call(&pin("/panic"), &NoProgress).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Internal);
    client.call(&pin("/a/0"), &NoProgress).await.unwrap();
}

#[tokio::test]
async fn a_call_goes_on_when_its_client_has_gone() {
    let setup = setup().await;
    let client = setup.client().await;
    let call = tokio::spawn(async move { client.call(&pin("/a/400"), &NoProgress).await });
    while setup.control.pin_ended("/a/400").is_none() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    call.abort();
    while setup.control.pin_ended("/a/400") != Some(true) {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn closing_lets_answers_out_and_removes_the_socket() {
    let setup = setup().await;
    let client = setup.client().await;
    let call = tokio::spawn(async move { client.call(&pin("/a/300"), &NoProgress).await });
    while setup.control.pin_ended("/a/300").is_none() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    setup.server.close().await;
    assert!(call.await.unwrap().is_ok());
    assert!(Client::connect(&setup.state).await.unwrap().is_none());
    assert!(!setup.state.socket().exists());
}

#[tokio::test]
async fn tcp_needs_the_token_our_host_and_no_origin() {
    let setup = setup().await;
    let other = "0".repeat(64);
    for (headers, status) in [
        (GOOD.to_owned(), 200),
        ("Host: {addr}\r\n".into(), 403),
        (
            format!("Host: {{addr}}\r\nAuthorization: Bearer {other}\r\n"),
            403,
        ),
        (
            "Host: {addr}\r\nAuthorization: Basic {token}\r\n".into(),
            403,
        ),
        (
            "Host: evil.example\r\nAuthorization: Bearer {token}\r\n".into(),
            403,
        ),
        ("Authorization: Bearer {token}\r\n".into(), 403),
        (format!("{GOOD}Host: {{addr}}\r\n"), 403),
        (format!("{GOOD}Origin: http://{{addr}}\r\n"), 403),
        (format!("{GOOD}Origin: null\r\n"), 403),
    ] {
        let (got, body) = setup.get("/v1/status", &headers).await;
        assert_eq!(got, status, "{headers} {body}");
        assert_eq!(
            body.contains("\"kind\":\"denied\""),
            status == 403,
            "{body}"
        );
    }
}

#[tokio::test]
async fn plain_answers_carry_the_status_of_their_kind() {
    let setup = setup().await;
    let (status, body) = setup.post("/v1/pin", r#"{"path":"/a/0"}"#).await;
    assert_eq!(
        (status, body.trim()),
        (200, r#"{"kept":{"files":4,"bytes":4194304}}"#)
    );
    for (path, body, status, kind) in [
        ("/v1/evict", r#"{"path":"/a"}"#, 422, "refused"),
        ("/v1/unmount", r#"{"dir":"/none"}"#, 404, "not_found"),
        ("/v1/pin", r#"{"path":3}"#, 400, "usage"),
        ("/v1/pin", "{", 400, "usage"),
        ("/v1/pin", r#"{"path":"/a","x":1}"#, 400, "usage"),
        ("/v1/nothing", "", 404, "not_found"),
        ("/v1/metrics", "", 400, "usage"),
        ("/v1/pin", r#"{"path":"/panic"}"#, 500, "internal"),
    ] {
        let (got, answer) = setup.post(path, body).await;
        assert_eq!(got, status, "{path} {body}: {answer}");
        let error: serde_json::Value = serde_json::from_str(&answer).unwrap();
        assert_eq!(error["error"]["kind"], kind, "{answer}");
    }
}

#[tokio::test]
async fn a_request_that_is_too_long_is_refused() {
    let setup = setup().await;
    let (status, body) = setup.post("/v1/pin", &" ".repeat(65 << 10)).await;
    assert_eq!(status, 400, "{body}");
}

#[tokio::test]
async fn metrics_come_in_the_text_format() {
    let setup = setup().await;
    let (status, body) = setup.get("/v1/metrics", GOOD).await;
    assert_eq!(status, 200);
    assert!(body.contains("\nccbt_mounts 2\n"), "{body}");
}

#[tokio::test]
async fn a_port_in_use_is_busy() {
    let setup = setup().await;
    let other = tempfile::tempdir().unwrap();
    let state = StateDir::lock(other.path()).unwrap();
    let control = Arc::new(FakeControl::default());
    let error = Server::start(control, &state, setup.server.tcp_addr())
        .await
        .unwrap_err();
    assert_eq!(error.kind, ErrorKind::Busy);
    assert!(error.hint.unwrap().contains("--api"));
}

#[test]
fn the_manual_lists_every_call() {
    let manual = include_str!("../../docs/manual/cli.md");
    let (_, list) = manual.split_once("for NAME = ").unwrap();
    let (list, _) = list.split_once(". With").unwrap();
    let listed: Vec<&str> = list.split(',').map(str::trim).collect();
    assert_eq!(listed, NAMES);
}
