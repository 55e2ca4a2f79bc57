//! Trackers against small servers on loopback, good and bad.

use std::time::Instant;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::task::JoinHandle;

use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::{mpsc, watch};

use super::super::{Source, stop_pair};
use super::*;
use crate::proto::tracker::Event;

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
    let moved = http(b"HTTP/1.1 302 Found\r\n\r\n", b"").await;
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
    let secs: Vec<u64> = [1, 2, 3, 5, 6, 99]
        .map(|n| task::retry_wait(n).as_secs())
        .into();
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

/// A swarm's task over tiers of URLs.
struct Run {
    swarm: SwarmId,
    found: mpsc::Receiver<super::super::Found>,
    statuses: Vec<Arc<Mutex<TrackerStatus>>>,
    totals: watch::Sender<Totals>,
    stopper: super::super::Stopper,
    task: JoinHandle<()>,
}

fn run(tiers: &[&[&str]]) -> Run {
    let (stopper, stop) = stop_pair();
    let (sink, found) = mpsc::channel(8);
    let swarm = SwarmId::from_bytes([1; 20]);
    let (totals, watched) = watch::channel(Totals::default());
    let mut statuses = Vec::new();
    let mut entry = |url: &&str| {
        let status = Arc::new(Mutex::new(TrackerStatus::default()));
        statuses.push(Arc::clone(&status));
        Entry::new(TrackerUrl::parse(url).unwrap(), status)
    };
    let tiers = tiers
        .iter()
        .map(|tier| tier.iter().map(&mut entry).collect())
        .collect();
    let announce = Announce {
        tiers: Vec::new(),
        peer_id: *b"-CC0100-abcdefghijkl",
        key: 7,
        totals: watched,
    };
    let port = watch::channel(0).1;
    let task = Task {
        tiers,
        swarm,
        announce,
        port,
        sink,
        stop,
    };
    let task = tokio::spawn(task.run());
    Run {
        swarm,
        found,
        statuses,
        totals,
        stopper,
        task,
    }
}

#[tokio::test]
async fn a_task_delivers_peers_tells_of_the_end_of_the_download_and_says_good_bye() {
    let (url, mut events, _task) = udp_tracker("127.0.0.1").await;
    let mut run = run(&[&[&url]]);
    let peer = run.found.recv().await.unwrap();
    let expected = (run.swarm, "10.0.0.9:80".parse().unwrap(), Source::Tracker);
    assert_eq!(peer, expected);
    let status = run.statuses[0].lock().clone();
    assert_eq!((status.peers, status.error), (Some(1), None));
    assert_eq!((status.seeds, status.leechers), (Some(0), Some(0)));
    let totals = Totals {
        uploaded: 5,
        downloaded: 9,
        left: 0,
        completed: true,
    };
    run.totals.send(totals).unwrap();
    assert_eq!(events.recv().await, Some(2), "started");
    assert_eq!(events.recv().await, Some(1), "completed, at once");
    drop(run.stopper);
    run.task.await.unwrap();
    assert_eq!(events.recv().await, Some(3), "stopped");
}

#[tokio::test]
async fn what_was_whole_from_the_start_is_not_told_as_completed() {
    let body =
        b"HTTP/1.1 200 OK\r\n\r\nd8:completei1e10:incompletei0e5:peers6:\x0a\x00\x00\x01\x00\x50e";
    let (url, mut heads) = http_server(body.to_vec(), b"").await;
    let mut run = run(&[&[&url]]);
    let totals = Totals {
        uploaded: 5,
        downloaded: 0,
        left: 0,
        completed: false,
    };
    run.totals.send(totals).unwrap();
    run.found.recv().await.unwrap();
    drop(run.stopper);
    run.task.await.unwrap();
    let first = heads.recv().await.unwrap();
    assert!(
        first.contains("event=started") && first.contains("peer_id=-CC0100-abcdefghijkl"),
        "{first}"
    );
    let last = heads.recv().await.unwrap();
    assert!(
        last.contains("event=stopped") && last.contains("uploaded=5") && last.contains("left=0"),
        "{last}"
    );
    assert_eq!(heads.try_recv().ok(), None);
}

#[tokio::test]
async fn what_is_found_to_be_whole_after_the_first_announcement_is_told_at_once() {
    let body =
        b"HTTP/1.1 200 OK\r\n\r\nd8:completei0e10:incompletei1e5:peers6:\x0a\x00\x00\x01\x00\x50e";
    let (url, mut heads) = http_server(body.to_vec(), b"").await;
    let mut run = run(&[&[&url]]);
    run.found.recv().await.unwrap();
    let first = heads.recv().await.unwrap();
    assert!(
        first.contains("event=started") && !first.contains("left=0&"),
        "{first}"
    );
    let totals = Totals {
        left: 0,
        ..Totals::default()
    };
    run.totals.send(totals).unwrap();
    let second = heads.recv().await.unwrap();
    assert!(
        second.contains("left=0&") && !second.contains("event="),
        "{second}"
    );
    drop(run.stopper);
    run.task.await.unwrap();
    assert!(heads.recv().await.unwrap().contains("event=stopped"));
    assert_eq!(heads.try_recv().ok(), None);
}

#[tokio::test]
async fn the_first_that_answers_is_asked_and_only_it_is_told_of_the_end() {
    let refused = b"HTTP/1.1 200 OK\r\n\r\nd14:failure reason2:noe".to_vec();
    let answer =
        b"HTTP/1.1 200 OK\r\n\r\nd8:completei1e10:incompletei0e5:peers6:\x0a\x00\x00\x01\x00\x50e";
    let (bad, mut bad_heads) = http_server(refused, b"").await;
    let (good, mut good_heads) = http_server(answer.to_vec(), b"").await;
    let (later, mut later_heads) = http_server(answer.to_vec(), b"").await;
    let mut run = run(&[&[&bad], &[&good], &[&later]]);
    run.found.recv().await.unwrap();
    drop(run.stopper);
    run.task.await.unwrap();
    assert!(bad_heads.recv().await.unwrap().contains("event=started"));
    assert_eq!(bad_heads.try_recv().ok(), None, "it does not know us");
    assert!(good_heads.recv().await.unwrap().contains("event=started"));
    assert!(good_heads.recv().await.unwrap().contains("event=stopped"));
    assert_eq!(later_heads.try_recv().ok(), None, "its tier is not needed");
    let refused = run.statuses[0].lock().clone();
    assert_eq!(refused.error.as_deref(), Some("the tracker refuses: no"));
    assert_eq!(refused.message.as_deref(), Some("no"));
    let answered = run.statuses[1].lock().clone();
    assert_eq!((answered.error, answered.message), (None, None));
    assert!(answered.last_announce >= refused.last_announce && refused.last_announce > Some(0));
    assert_eq!(run.statuses[2].lock().last_announce, None);
}

#[tokio::test]
async fn a_tracker_that_gives_no_counts_is_scraped() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/announce?pass=x", listener.local_addr().unwrap());
    let server = tokio::spawn(async move {
        let mut heads = Vec::new();
        for body in [
            &b"d5:peers6:\x0a\x00\x00\x01\x00\x50e"[..],
            b"d5:filesd20:\x01\x01\x01\x01\x01\x01\x01\x01\x01\x01\x01\x01\x01\x01\x01\x01\x01\x01\x01\x01d8:completei5e10:downloadedi50e10:incompletei10eeee",
        ] {
            let (mut stream, _) = listener.accept().await.unwrap();
            heads.push(head(&mut stream).await);
            stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.unwrap();
            stream.write_all(body).await.unwrap();
        }
        heads
    });
    let mut run = run(&[&[&url]]);
    run.found.recv().await.unwrap();
    let heads = server.await.unwrap();
    assert!(
        heads[1].starts_with("GET /scrape?pass=x&info_hash=%01%01"),
        "{heads:?}"
    );
    let status = run.statuses[0].lock().clone();
    assert_eq!((status.seeds, status.leechers), (Some(5), Some(10)));
}

#[tokio::test]
async fn a_redirect_is_followed_as_far_as_is_right() {
    let answer = b"HTTP/1.1 200 OK\r\n\r\nd5:peers6:\x0a\x00\x00\x01\x00\x50e";
    let (there, mut heads) = http_server(answer.to_vec(), b"").await;
    let moved =
        |to: &str| format!("HTTP/1.1 302 Found\r\nLocation: {to}\r\nContent-Length: 0\r\n\r\n");
    let announced = http(moved(&there).as_bytes(), b"").await.unwrap();
    assert_eq!(announced.peers, ["10.0.0.1:80".parse().unwrap()]);
    assert!(
        heads
            .recv()
            .await
            .unwrap()
            .starts_with("GET /announce?pass=x HTTP")
    );
    // On itself, for ever.
    let (url, mut heads) = http_server(moved("/announce?again").into_bytes(), b"").await;
    let outcome = TrackerUrl::parse(&url).unwrap().announce(request()).await;
    assert!(
        matches!(outcome, Err(TrackerError::Redirect("in circles"))),
        "{outcome:?}"
    );
    let mut asked = 0;
    while heads.try_recv().is_ok() {
        asked += 1;
    }
    assert_eq!(asked, 1 + REDIRECTS_MAX);
    let local = there.replace("/announce", "/admin");
    let outcome = http(moved(&local).as_bytes(), b"").await;
    assert!(
        matches!(outcome, Err(TrackerError::LocalPath)),
        "{outcome:?}"
    );
    let outcome = http(moved("udp://127.0.0.1:1/announce").as_bytes(), b"").await;
    assert!(
        matches!(outcome, Err(TrackerError::Redirect(_))),
        "{outcome:?}"
    );
}

#[test]
fn a_redirect_never_leads_from_tls_to_none() {
    let url = TrackerUrl::parse("https://t.example/announce?a=b").unwrap();
    let to = |location: &str| url.redirected(location).map(|url| url.uri.to_string());
    assert_eq!(to("/x/announce").unwrap(), "https://t.example/x/announce");
    assert_eq!(
        to("//u.example/announce").unwrap(),
        "https://u.example/announce"
    );
    assert_eq!(
        to("https://u.example/announce?q").unwrap(),
        "https://u.example/announce?q"
    );
    for refused in [
        "http://t.example/announce",
        "ftp://t.example/",
        "",
        "announce",
        "https://:1/",
    ] {
        assert!(
            matches!(to(refused), Err(TrackerError::Redirect(_))),
            "{refused}"
        );
    }
}
