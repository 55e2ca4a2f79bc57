//! Targets of what web servers and routers answer, and of chunk lists in torrents.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use ccbt::proto::blocks::Layout;
use ccbt::proto::metainfo::Info;
use ccbt::proto::metainfo::chunks::ChunkLists;
use ccbt::proto::portmap::igd::{Igd, IgdEvent, both};
use ccbt::proto::portmap::pcp::{Pcp, PcpEvent};
use ccbt::proto::portmap::ssdp;
use ccbt::proto::web_seed::url::{URL_BYTES_MAX, WebUrl};
use ccbt::proto::web_seed::{Answer, Next, WebFiles, WebSeed};

use super::parts;

/// Two files, 100,000 and 5 bytes, in pieces of 64 KiB.
pub(crate) fn info() -> Info {
    let hashes = "a".repeat(40);
    let text = format!(
        "d5:filesld6:lengthi100000e4:pathl1:aeed6:lengthi5e4:pathl1:beee4:name1:t12:piece lengthi65536e6:pieces40:{hashes}e"
    );
    Info::parse(text.as_bytes()).expect("it is a torrent")
}

/// The router, and we.
pub(crate) const ROUTER: Ipv4Addr = Ipv4Addr::new(192, 168, 1, 1);
pub(crate) const OURS: Ipv4Addr = Ipv4Addr::new(192, 168, 1, 7);

/// Lists are as long as their files, and come back.
pub(crate) fn chunk_lists(data: &[u8]) -> bool {
    let info = info();
    let Some(lists) = ChunkLists::parse(data, &info) else {
        return false;
    };
    for (number, list) in lists.iter() {
        let bytes: u64 = list.iter().map(|chunk| u64::from(chunk.len)).sum();
        assert_eq!(bytes, info.files[number as usize].length);
    }
    assert_eq!(
        ChunkLists::parse(&lists.encode(), &info),
        Some(lists.clone())
    );
    !lists.is_empty()
}

/// Datagrams of a router: at most one event each and the address's, and never a request that is due at once again.
pub(crate) fn pcp(data: &[u8]) -> bool {
    let mut pcp = Pcp::new(Duration::ZERO, OURS.into(), &both(6881), &mut |b| b.fill(9));
    let mut mapped = false;
    for (n, datagram) in parts(data).into_iter().enumerate() {
        let now = Duration::from_millis(n as u64 * 40);
        while pcp.poll_transmit(now).is_some() {}
        pcp.handle_datagram(now, datagram);
        let events: Vec<PcpEvent> = std::iter::from_fn(|| pcp.poll_event()).collect();
        assert!(events.len() <= 2);
        mapped |= events
            .iter()
            .any(|event| matches!(event, PcpEvent::Mapped(_)));
    }
    mapped
}

/// Where a router says that it is: nowhere else.
pub(crate) fn ssdp_answer(data: &[u8]) -> bool {
    ssdp::location(IpAddr::from(ROUTER), data).is_some_and(|url| {
        assert_eq!(url.host, ROUTER.to_string());
        true
    })
}

/// A description and answers of a router, each with its status in front: all questions go to that router.
pub(crate) fn upnp(data: &[u8]) -> bool {
    let url = WebUrl::parse("http://192.168.1.1:5000/root.xml").expect("it is a URL");
    let mut igd = Igd::new(url, OURS, &both(6881), 7);
    let mut mapped = false;
    for answer in parts(data) {
        let Some(ask) = igd.poll_ask() else { break };
        assert_eq!(ask.url.host, ROUTER.to_string());
        let (status, body) = answer.split_first().unwrap_or((&0, &[]));
        let status = if status % 2 == 0 { 200 } else { 500 };
        igd.handle_answer(Duration::ZERO, status, body);
        while let Some(event) = igd.poll_event() {
            mapped |= matches!(event, IgdEvent::Mapped(_));
        }
    }
    mapped
}

/// The URL of a web seed and a redirect from there: nothing of them breaks a request's lines.
pub(crate) fn web_url(data: &[u8]) -> bool {
    let texts = parts(data);
    let [first, second] = [0, 1].map(|n| texts.get(n).copied().unwrap_or_default());
    let (Ok(first), Ok(second)) = (std::str::from_utf8(first), std::str::from_utf8(second)) else {
        return false;
    };
    let Ok(url) = WebUrl::parse(first) else {
        return false;
    };
    let there = url.redirected(second);
    for url in [Some(&url), there.as_ref().ok()].into_iter().flatten() {
        assert!(url.path.starts_with('/'));
        let shown = url.to_string();
        let odd = |c: char| c.is_control() || c.is_whitespace();
        assert!(!shown.contains(odd), "{shown:?}");
        if shown.len() <= URL_BYTES_MAX {
            let again = WebUrl::parse(&shown).map(|again| again.to_string());
            assert_eq!(again, Ok(shown));
        }
    }
    assert!(!url.tls || there.as_ref().is_ok_and(|there| there.tls) || there.is_err());
    there.is_ok()
}

/// What a server answers: a status and headers, then its body in steps. Blocks that come out are whole and none comes twice.
pub(crate) fn web_seed(data: &[u8]) -> bool {
    let info = info();
    let layout = Layout::of(&info);
    let base = WebUrl::parse("http://h/").expect("it is a URL");
    let mut seed = WebSeed::new(base, Arc::new(WebFiles::new(&info)));
    for piece in 0..layout.pieces() {
        (0..layout.blocks(piece)).for_each(|n| seed.ask(layout.block(piece, n)));
    }
    let mut seen = Vec::new();
    let mut steps = parts(data).into_iter();
    let mut again = None;
    while let Some(fetch) = again.take().or_else(|| seed.poll_fetch()) {
        let Some(head) = steps.next() else { break };
        let answer = answer(head);
        match seed.answered(Duration::ZERO, fetch.lane, fetch.id, &answer) {
            Next::Take(bytes) => {
                assert!(bytes <= fetch.end - fetch.begin);
                let body = steps.next().unwrap_or_default();
                seed.body(Duration::ZERO, fetch.lane, fetch.id, body);
                seed.ended(Duration::ZERO, fetch.lane, fetch.id, None);
            }
            Next::Again(next) => again = Some(next),
            Next::Leave => {}
        }
        while let Some((block, bytes)) = seed.poll_block() {
            assert_eq!(bytes.len(), block.length as usize);
            assert!(!seen.contains(&block));
            seen.push(block);
        }
    }
    !seen.is_empty()
}

/// Lines: status, then headers by their first letters.
fn answer(head: &[u8]) -> Answer {
    let text = String::from_utf8_lossy(head);
    let mut lines = text.lines();
    let status = lines.next().and_then(|line| line.parse().ok());
    let mut answer = Answer {
        status: status.unwrap_or(206),
        ..Answer::default()
    };
    for line in lines {
        let Some((name, value)) = line.split_once(' ') else {
            continue;
        };
        let value = Some(value.to_owned());
        match name {
            "n" => answer.length = value.and_then(|n| n.parse().ok()),
            "r" => answer.range = value,
            "l" => answer.location = value,
            "t" => answer.kind = value,
            "e" => answer.encoding = value,
            "a" => answer.retry_after = value,
            _ => {}
        }
    }
    answer
}
