//! What an announce to an HTTP tracker says and what its answer means (BEP 3, 7, 23). The request itself is the driver's.

use std::net::{IpAddr, SocketAddr};

use thiserror::Error;

use super::bencode::{BencodeError, Document, Strictness, Value};
use super::tracker::{AnnounceRequest, Announced, Event, Scraped, compact_v4, compact_v6, reason};
use crate::share::SwarmId;

/// Longest answer read. 500 peers as dictionaries are below 50 KiB.
pub const ANSWER_LEN_MAX: usize = 1 << 20;
/// Interval of a tracker that names none.
const INTERVAL_SECS_DEFAULT: u64 = 1800;

/// Why an answer is none.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum HttpAnswerError {
    /// Not bencode; usually an error page.
    #[error("the answer is not a tracker's: {0}")]
    NotBencode(#[from] BencodeError),
    /// Bencode, but not a dictionary with peers.
    #[error("the answer has no list of peers")]
    NoPeers,
    /// Bencode, but nothing about the swarm asked about.
    #[error("the answer does not speak of the torrent")]
    NoSwarm,
    /// The tracker says no.
    #[error("the tracker refuses: {reason}")]
    Refused {
        /// In its words.
        reason: String,
    },
}

/// Path and query to ask for: those of the tracker's URL with the announce added.
pub fn path_and_query(of_url: &str, request: &AnnounceRequest) -> String {
    let joint = if of_url.contains('?') { '&' } else { '?' };
    let event = match request.event {
        Event::Regular => "",
        Event::Completed => "&event=completed",
        Event::Started => "&event=started",
        Event::Stopped => "&event=stopped",
    };
    format!(
        "{of_url}{joint}info_hash={}&peer_id={}&port={}&uploaded={}&downloaded={}&left={}\
         &compact=1&no_peer_id=1&numwant={}&key={:08x}{event}",
        percent(request.swarm.as_bytes()),
        percent(&request.peer_id),
        request.port,
        request.uploaded,
        request.downloaded,
        request.left,
        request.wanted(),
        request.key,
    )
}

/// Reads the body of an answer.
pub fn parse_answer(body: &[u8]) -> Result<Announced, HttpAnswerError> {
    let document = Document::parse(body, Strictness::AsFound)?;
    let root = document.root();
    if let Some(text) = root.get(b"failure reason") {
        return Err(HttpAnswerError::Refused {
            reason: reason(text.bytes().unwrap_or_default()),
        });
    }
    let (peers, peers6) = (root.get(b"peers"), root.get(b"peers6"));
    if peers.is_none() && peers6.is_none() {
        return Err(HttpAnswerError::NoPeers);
    }
    let seconds = |key| Some(root.get(key)?.integer()?.max(0).unsigned_abs());
    let interval = seconds(b"interval".as_slice()).unwrap_or(INTERVAL_SECS_DEFAULT);
    let least = seconds(b"min interval".as_slice()).unwrap_or(0);
    let v4 = compact_v4(peers.and_then(|p| p.bytes()).unwrap_or_default());
    let v6 = compact_v6(peers6.and_then(|p| p.bytes()).unwrap_or_default());
    let named = peers
        .and_then(|p| p.list())
        .into_iter()
        .flatten()
        .filter_map(named_peer);
    let count = |key| u32::try_from(root.get(key)?.integer()?).ok();
    let warning = root.get(b"warning message").and_then(|text| text.bytes());
    Ok(Announced {
        seeds: count(b"complete".as_slice()),
        leechers: count(b"incomplete".as_slice()),
        warning: warning.map(reason).filter(|text| !text.is_empty()),
        ..Announced::new(interval.max(least), v4.chain(v6).chain(named))
    })
}

/// Path and query that scrape a swarm (BEP 48): the last part of the announce URL's path begins with `announce`, which
/// `scrape` replaces. `None`: the tracker cannot be scraped.
pub fn scrape_path_and_query(of_url: &str, swarm: SwarmId) -> Option<String> {
    let (path, query) = match of_url.split_once('?') {
        Some((path, query)) => (path, Some(query)),
        None => (of_url, None),
    };
    let (before, last) = path.rsplit_once('/')?;
    let rest = last.strip_prefix("announce")?;
    let query = query.map(|query| format!("{query}&")).unwrap_or_default();
    let hash = percent(swarm.as_bytes());
    Some(format!("{before}/scrape{rest}?{query}info_hash={hash}"))
}

/// Reads the answer to a scrape.
pub fn parse_scrape(body: &[u8], swarm: SwarmId) -> Result<Scraped, HttpAnswerError> {
    let document = Document::parse(body, Strictness::AsFound)?;
    let root = document.root();
    if let Some(text) = root.get(b"failure reason") {
        return Err(HttpAnswerError::Refused {
            reason: reason(text.bytes().unwrap_or_default()),
        });
    }
    let files = root.get(b"files");
    let file = files.and_then(|files| files.get(swarm.as_bytes()));
    let file = file.ok_or(HttpAnswerError::NoSwarm)?;
    let count = |key: &[u8]| {
        let number = file.get(key).and_then(|v| v.integer());
        number.and_then(|n| u32::try_from(n).ok()).unwrap_or(0)
    };
    Ok(Scraped {
        seeds: count(b"complete"),
        leechers: count(b"incomplete"),
        downloads: count(b"downloaded"),
    })
}

/// A peer as a dictionary. Host names are not looked up: a tracker could make us ask for any.
fn named_peer(peer: Value<'_>) -> Option<SocketAddr> {
    let ip: IpAddr = std::str::from_utf8(peer.get(b"ip")?.bytes()?)
        .ok()?
        .parse()
        .ok()?;
    let port = u16::try_from(peer.get(b"port")?.integer()?).ok()?;
    Some(SocketAddr::new(ip, port))
}

/// Percent-encodes all but the unreserved characters of RFC 3986.
fn percent(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(bytes.len() * 3);
    for &byte in bytes {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::super::bencode::Item;
    use super::super::tracker::tests::request;
    use super::*;

    fn addr(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[test]
    fn the_question_is_percent_encoded_and_keeps_the_urls_own_query() {
        let text = path_and_query("/announce", &request(Event::Started));
        assert_eq!(
            text,
            "/announce?info_hash=%00%01%02%03%04%05%06%07%08%09%0A%0B%0C%0D%0E%0F%10%11%12%13\
             &peer_id=-CC0001-abcdefghijkl&port=51413&uploaded=7&downloaded=8&left=9\
             &compact=1&no_peer_id=1&numwant=100&key=deadbeef&event=started"
        );
        let text = path_and_query("/a?pass=x", &request(Event::Regular));
        assert!(text.starts_with("/a?pass=x&info_hash=%00") && text.ends_with("key=deadbeef"));
    }

    #[test]
    fn compact_lists_of_both_families_are_read() {
        let mut body = b"d8:intervali900e5:peers6:\x0a\x00\x00\x01\x00\x506:peers618:".to_vec();
        body.extend([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 81]);
        body.push(b'e');
        let answer = parse_answer(&body).unwrap();
        assert_eq!(answer.interval, Duration::from_secs(900));
        assert_eq!(answer.peers, [addr("10.0.0.1:80"), addr("[::1]:81")]);
    }

    #[test]
    fn dictionaries_are_read_and_names_and_bad_ports_skipped() {
        let body = b"d8:intervali60e12:min intervali3600e5:peersl\
            d2:ip8:10.0.0.14:porti80ee\
            d2:ip3:::14:porti81ee\
            d2:ip9:localhost4:porti82ee\
            d2:ip8:10.0.0.24:porti65536ee\
            i5eee";
        let answer = parse_answer(body).unwrap();
        assert_eq!(answer.peers, [addr("10.0.0.1:80"), addr("[::1]:81")]);
        assert_eq!(
            answer.interval,
            Duration::from_secs(3600),
            "the larger of the two"
        );
    }

    #[test]
    fn counts_and_a_warning_are_read() {
        let body = b"d8:completei5e10:incompletei7e5:peers0:15:warning message4:slowe";
        let answer = parse_answer(body).unwrap();
        assert_eq!((answer.seeds, answer.leechers), (Some(5), Some(7)));
        assert_eq!(answer.warning.as_deref(), Some("slow"));
        let body = b"d8:completei-5e10:incompletei7777777777e5:peers0:e";
        let answer = parse_answer(body).unwrap();
        assert_eq!(
            (answer.seeds, answer.leechers, answer.warning),
            (None, None, None)
        );
    }

    #[test]
    fn a_scrape_goes_where_bep_48_says() {
        let swarm = SwarmId::from_bytes([b'a'; 20]);
        let hash = "info_hash=aaaaaaaaaaaaaaaaaaaa";
        for (announce, scrape) in [
            ("/announce", Some("/scrape?")),
            ("/x/announce", Some("/x/scrape?")),
            ("/announce.php", Some("/scrape.php?")),
            ("/announce?x2%0644", Some("/scrape?x2%0644&")),
            (
                "/announce.php?x=announce/y",
                Some("/scrape.php?x=announce/y&"),
            ),
            ("/a", None),
            ("/x%064announce", None),
            ("/announce/x", None),
            ("", None),
        ] {
            let expected = scrape.map(|scrape| format!("{scrape}{hash}"));
            assert_eq!(
                scrape_path_and_query(announce, swarm),
                expected,
                "{announce}"
            );
        }
        let body =
            b"d5:filesd20:aaaaaaaaaaaaaaaaaaaad8:completei5e10:downloadedi50e10:incompletei10eeee";
        let scraped = Scraped {
            seeds: 5,
            leechers: 10,
            downloads: 50,
        };
        assert_eq!(parse_scrape(body, swarm), Ok(scraped));
        let other = SwarmId::from_bytes([b'b'; 20]);
        assert_eq!(parse_scrape(body, other), Err(HttpAnswerError::NoSwarm));
        assert_eq!(parse_scrape(b"le", swarm), Err(HttpAnswerError::NoSwarm));
        assert!(matches!(
            parse_scrape(b"x", swarm),
            Err(HttpAnswerError::NotBencode(_))
        ));
    }

    #[test]
    fn what_is_no_answer_says_why() {
        assert!(matches!(
            parse_answer(b"<html>404</html>"),
            Err(HttpAnswerError::NotBencode(_))
        ));
        assert_eq!(
            parse_answer(b"d8:intervali900ee"),
            Err(HttpAnswerError::NoPeers)
        );
        assert_eq!(parse_answer(b"le"), Err(HttpAnswerError::NoPeers));
        let refused = HttpAnswerError::Refused {
            reason: "unregistered".into(),
        };
        assert_eq!(
            parse_answer(b"d14:failure reason12:unregisterede"),
            Err(refused)
        );
        let deep = [vec![b'l'; 100_000], vec![b'e'; 100_000]].concat();
        assert!(matches!(
            parse_answer(&deep),
            Err(HttpAnswerError::NotBencode(_))
        ));
    }

    proptest! {
        #[test]
        fn any_list_of_peers_comes_back(ports in prop::collection::vec(1_u16.., 0..600),
                                        compact in any::<bool>()) {
            let want: Vec<SocketAddr> =
                ports.iter().take(500).map(|p| SocketAddr::from(([10, 1, 2, 3], *p))).collect();
            let peers = if compact {
                let bytes = |p: &u16| [&[10, 1, 2, 3][..], &p.to_be_bytes()].concat();
                Item::Bytes(ports.iter().flat_map(bytes).collect())
            } else {
                let dict = |p: &u16| Item::dict([
                    ("ip", Item::Bytes(b"10.1.2.3".to_vec())),
                    ("port", Item::Integer(i64::from(*p))),
                ]);
                Item::List(ports.iter().map(dict).collect())
            };
            let mut body = Vec::new();
            Item::dict([("interval", Item::Integer(1)), ("peers", peers)]).encode(&mut body);
            prop_assert_eq!(parse_answer(&body).unwrap().peers, want);
        }

        #[test]
        fn no_body_makes_it_panic(body in prop::collection::vec(any::<u8>(), 0..200)) {
            drop(parse_answer(&body));
            drop(parse_answer(&[b"d5:peers", &body[..], b"e"].concat()));
        }
    }
}
