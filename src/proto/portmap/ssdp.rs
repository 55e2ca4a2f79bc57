//! Finding a UPnP router: a question to a multicast group, and answers that say where its description is.

use std::net::{IpAddr, Ipv4Addr, SocketAddrV4};

use crate::proto::web_seed::url::{WebUrl, is_local};

/// Where devices listen.
pub const GROUP: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(239, 255, 255, 250), 1900);
/// Longest answer looked at.
const ANSWER_LEN_MAX: usize = 8 << 10;
/// What is asked for, the newest first; each is a question of its own.
const TARGETS: [&str; 3] = [
    "urn:schemas-upnp-org:device:InternetGatewayDevice:2",
    "urn:schemas-upnp-org:device:InternetGatewayDevice:1",
    "urn:schemas-upnp-org:service:WANIPConnection:1",
];

/// The questions to put to the group.
pub fn questions() -> impl Iterator<Item = Vec<u8>> {
    TARGETS.iter().map(|target| {
        format!(
            "M-SEARCH * HTTP/1.1\r\nHOST: {GROUP}\r\nMAN: \"ssdp:discover\"\r\nMX: 2\r\nST: {target}\r\n\r\n"
        )
        .into_bytes()
    })
}

/// Where the description of the router is that answers from `from`. Others may not speak for it: it lies on the same machine, and that
/// is near.
pub fn location(from: IpAddr, answer: &[u8]) -> Option<WebUrl> {
    let text = std::str::from_utf8(answer.get(..ANSWER_LEN_MAX).unwrap_or(answer)).ok()?;
    let mut lines = text.split("\r\n");
    let ok = lines.next()?;
    if !ok.starts_with("HTTP/1.") || ok.split(' ').nth(1) != Some("200") {
        return None;
    }
    let mut headers = lines.filter_map(|line| line.split_once(':'));
    let (_, value) = headers.find(|(name, _)| name.trim().eq_ignore_ascii_case("location"))?;
    let url = WebUrl::parse(value.trim()).ok()?;
    let ip: IpAddr = url.host.parse().ok()?;
    (ip == from && is_local(ip) && !url.tls).then_some(url)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_router_itself_says_where_it_is() {
        let from: IpAddr = "192.168.1.1".parse().unwrap();
        let answer = |location: &str| {
            format!("HTTP/1.1 200 OK\r\nST: x\r\nLocation:{location}\r\n\r\n").into_bytes()
        };
        let url = location(from, &answer(" http://192.168.1.1:5000/root.xml")).unwrap();
        assert_eq!(url.to_string(), "http://192.168.1.1:5000/root.xml");
        for other in [
            "http://192.168.1.2/",
            "http://example.org/",
            "https://192.168.1.1/",
            "nothing",
        ] {
            assert_eq!(location(from, &answer(other)), None, "{other}");
        }
        let far: IpAddr = "203.0.113.9".parse().unwrap();
        assert_eq!(location(far, &answer("http://203.0.113.9/")), None);
        assert_eq!(location(from, b"NOTIFY * HTTP/1.1\r\n"), None);
        assert_eq!(questions().count(), 3);
    }
}
