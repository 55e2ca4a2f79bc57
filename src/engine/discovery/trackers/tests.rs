//! Trackers against small servers on loopback, good and bad.

use std::time::Instant;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::task::JoinHandle;

use super::super::stop_pair;
use super::*;

fn request() -> AnnounceRequest {
    AnnounceRequest {
        swarm: SwarmId::from_bytes([b'a'; 20]),
        peer_id: [b'b'; 20],
        port: 6881,
        key: 1,
        uploaded: 0,
        downloaded: 0,
        left: 1,
        event: Event::Started,
    }
}

/// Reads the head of one request.
async fn head(stream: &mut TcpStream) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.unwrap());
    }
    String::from_utf8(head).unwrap()
}

/// Answers each connection with `head_and_body`, then `endless` as long as the other side takes it. Gives the URL and
/// the heads of the requests.
async fn http_server(
    head_and_body: Vec<u8>,
    endless: &'static [u8],
) -> (String, mpsc::Receiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/announce?pass=x", listener.local_addr().unwrap());
    let (heads, receiver) = mpsc::channel(8);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            drop(heads.send(head(&mut stream).await).await);
            let mut alive = stream.write_all(&head_and_body).await.is_ok();
            while alive && !endless.is_empty() {
                alive = stream.write_all(endless).await.is_ok();
            }
        }
    });
    (url, receiver)
}

async fn http(answer: &[u8], endless: &'static [u8]) -> Result<Announced, TrackerError> {
    let (url, _heads) = http_server(answer.to_vec(), endless).await;
    TrackerUrl::parse(&url).unwrap().announce(request()).await
}

#[tokio::test]
async fn an_http_tracker_is_asked_and_understood() {
    let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 37\r\n\r\n\
                   d8:intervali900e5:peers6:\x0a\x00\x00\x01\x00\x50e";
    let body = answer.len() - answer.iter().position(|b| *b == b'd').unwrap();
    let answer = String::from_utf8_lossy(answer).replace("37", &body.to_string());
    let (url, mut heads) = http_server(answer.into_bytes(), b"").await;
    let announced = TrackerUrl::parse(&url)
        .unwrap()
        .announce(request())
        .await
        .unwrap();
    assert_eq!(announced.interval, Duration::from_secs(900));
    assert_eq!(announced.peers, ["10.0.0.1:80".parse().unwrap()]);
    let head = heads.recv().await.unwrap();
    let authority = url
        .strip_prefix("http://")
        .unwrap()
        .split('/')
        .next()
        .unwrap();
    assert!(head.starts_with("GET /announce?pass=x&info_hash=aaaaaaaaaaaaaaaaaaaa&peer_id=b"));
    assert!(head.contains(&format!("host: {authority}\r\n")), "{head}");
}

#[tokio::test]
async fn an_answer_without_length_ends_with_the_connection() {
    let announced = http(b"HTTP/1.1 200 OK\r\n\r\nd5:peers0:e", b"")
        .await
        .unwrap();
    assert_eq!(announced.peers, []);
}

#[tokio::test]
async fn what_is_no_answer_is_refused() {
    let html = http(
        b"HTTP/1.1 200 OK\r\nContent-Length: 13\r\n\r\n<html></html>",
        b"",
    )
    .await;
    assert!(
        matches!(
            html,
            Err(TrackerError::Answer(HttpAnswerError::NotBencode(_)))
        ),
        "{html:?}"
    );
    let moved = http(
        b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\n\r\n",
        b"",
    )
    .await;
    assert!(matches!(moved, Err(TrackerError::Status(302))), "{moved:?}");
    let junk = http(b"SSH-2.0-OpenSSH\r\n\r\n", b"").await;
    assert!(matches!(junk, Err(TrackerError::Http(_))), "{junk:?}");
    let cut = http(
        b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\nd5:peers",
        b"",
    )
    .await;
    assert!(matches!(cut, Err(TrackerError::Http(_))), "{cut:?}");
}

#[tokio::test]
async fn an_answer_too_long_is_not_read_to_its_end() {
    let huge = http(
        b"HTTP/1.1 200 OK\r\nContent-Length: 2147483648\r\n\r\n",
        b"",
    )
    .await;
    assert!(matches!(huge, Err(TrackerError::TooLong)), "{huge:?}");
    let endless = http(b"HTTP/1.1 200 OK\r\n\r\n", &[b'x'; 65536]).await;
    assert!(matches!(endless, Err(TrackerError::TooLong)), "{endless:?}");
    let head = http(
        b"HTTP/1.1 200 OK\r\n",
        b"x-header: some value of a header\r\n",
    )
    .await;
    assert!(matches!(head, Err(TrackerError::Http(_))), "{head:?}");
}

#[tokio::test]
async fn a_tracker_that_hangs_is_left() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/announce", listener.local_addr().unwrap());
    let url = TrackerUrl::parse(&url).unwrap();
    let limit = Duration::from_millis(200);
    // The kernel takes the connection; nobody ever answers.
    let outcome = http::announce_within(limit, &url, &request()).await;
    assert!(
        matches!(outcome, Err(TrackerError::TimedOut(_))),
        "{outcome:?}"
    );
}

#[tokio::test]
async fn a_tracker_that_sends_a_byte_now_and_then_is_left_too() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/announce", listener.local_addr().unwrap());
    let dripping = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.unwrap();
        while stream.write_all(b"d").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    let url = TrackerUrl::parse(&url).unwrap();
    let outcome = http::announce_within(Duration::from_secs(1), &url, &request()).await;
    assert!(
        matches!(outcome, Err(TrackerError::TimedOut(_))),
        "{outcome:?}"
    );
    dripping.abort();
}

#[tokio::test]
async fn a_local_service_is_called_only_where_a_tracker_would_be() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/admin/delete?x=", listener.local_addr().unwrap());
    let outcome = TrackerUrl::parse(&url).unwrap().announce(request()).await;
    assert!(
        matches!(outcome, Err(TrackerError::LocalPath)),
        "{outcome:?}"
    );
}

#[test]
fn urls_that_are_none_are_refused() {
    for text in [
        "",
        "udp://host",
        "udp://host:0/",
        "ftp://h:1/",
        "/announce",
        "http://:80/",
        "x y",
    ] {
        assert!(
            matches!(TrackerUrl::parse(text), Err(TrackerError::Url)),
            "{text}"
        );
    }
    let url = TrackerUrl::parse("https://[::1]/announce?a=b").unwrap();
    assert_eq!((url.udp, url.host.as_str(), url.port), (false, "::1", 443));
    assert_eq!(url.path_and_query(), "/announce?a=b");
}

#[test]
fn failures_are_waited_for_ever_longer() {
    let secs: Vec<u64> = [1, 2, 3, 5, 6, 99].map(|n| retry_wait(n).as_secs()).into();
    assert_eq!(secs, [60, 120, 240, 960, 1800, 1800]);
}

/// A tracker by UDP that first answers with a wrong transaction id, then rightly. Reports the events it was told.
async fn udp_tracker(ip: &str) -> (String, mpsc::Receiver<u8>, JoinHandle<()>) {
    let socket = UdpSocket::bind((ip, 0)).await.unwrap();
    let url = format!("udp://{}/announce", socket.local_addr().unwrap());
    let (events, receiver) = mpsc::channel(8);
    let task = tokio::spawn(async move {
        let mut datagram = [0; 1500];
        while let Ok((len, from)) = socket.recv_from(&mut datagram).await {
            let question = &datagram[..len];
            let action = question[11];
            let mut answer = vec![0, 0, 0, action];
            answer.extend_from_slice(&question[12..16]);
            if action == 0 {
                answer.extend_from_slice(&[1, 2, 3, 4, 5, 6, 7, 8]);
            } else {
                assert_eq!(
                    &question[..8],
                    &[1, 2, 3, 4, 5, 6, 7, 8],
                    "our connection id"
                );
                answer.extend_from_slice(&[0, 0, 7, 8, 0, 0, 0, 0, 0, 0, 0, 0, 10, 0, 0, 9, 0, 80]);
                events.send(question[83]).await.unwrap_or_default();
            }
            let mut wrong = answer.clone();
            wrong[7] ^= 1;
            wrong.truncate(9);
            socket.send_to(&wrong, from).await.unwrap();
            socket.send_to(&answer, from).await.unwrap();
        }
    });
    (url, receiver, task)
}

#[tokio::test]
async fn a_udp_tracker_is_asked_and_a_wrong_transaction_ignored() {
    let (url, mut events, _task) = udp_tracker("127.0.0.1").await;
    let announced = TrackerUrl::parse(&url)
        .unwrap()
        .announce(request())
        .await
        .unwrap();
    assert_eq!(announced.peers, ["10.0.0.9:80".parse().unwrap()]);
    assert_eq!(announced.interval, Duration::from_secs(1800));
    assert_eq!(events.recv().await, Some(2), "started");
}

#[tokio::test]
async fn a_port_nobody_listens_on_is_known_at_once() {
    let port = UdpSocket::bind("127.0.0.1:0")
        .await
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let start = Instant::now();
    let url = TrackerUrl::parse(&format!("udp://127.0.0.1:{port}")).unwrap();
    let outcome = url.announce(request()).await;
    assert!(matches!(outcome, Err(TrackerError::Io(_))), "{outcome:?}");
    assert!(start.elapsed() < Duration::from_secs(10));
}

#[tokio::test]
async fn a_task_delivers_peers_and_says_good_bye() {
    let (url, mut events, _task) = udp_tracker("127.0.0.1").await;
    let (stopper, stop) = stop_pair();
    let (sink, mut found) = mpsc::channel(8);
    let swarm = SwarmId::from_bytes([1; 20]);
    let status = Arc::new(Mutex::new(TrackerStatus {
        url: url.clone(),
        ..Default::default()
    }));
    let url = TrackerUrl::parse(&url).unwrap();
    let task = Task {
        url,
        swarm,
        port: 0,
        sink,
        status: Arc::clone(&status),
        stop,
    };
    let task = tokio::spawn(task.run());
    let peer = found.recv().await.unwrap();
    assert_eq!(
        peer,
        (swarm, "10.0.0.9:80".parse().unwrap(), Source::Tracker)
    );
    let status = status.lock().clone();
    assert_eq!((status.peers, status.error), (Some(1), None));
    drop(stopper);
    task.await.unwrap();
    assert_eq!(
        (events.recv().await, events.recv().await),
        (Some(2), Some(3)),
        "started, stopped"
    );
}
