//! Magnet links of torrents (BEP 9, 52, 53): info-hashes, and where to ask for the rest.

use std::fmt;
use std::ops::RangeInclusive;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use thiserror::Error;

use super::metainfo::{InfoHashV1, InfoHashV2, InfoHashes};

/// Longest magnet read, in bytes; some carry a hundred trackers.
const MAGNET_BYTES_MAX: usize = 64 << 10;
/// Trackers, web seeds, peers or file ranges taken; what follows is left out.
const HINTS_MAX: usize = 256;
/// What may stand in a value as it is (RFC 3986, unreserved).
const ESCAPED: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');
/// A multihash of SHA-256: code 0x12, 32 bytes (BEP 52).
const SHA256_MULTIHASH: [u8; 2] = [0x12, 32];

/// A parsed magnet link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Magnet {
    pub hashes: InfoHashes,
    /// `dn`: what to show until the real name is known.
    pub name: Option<String>,
    /// `xl`: bytes of the content, as the link claims.
    pub length: Option<u64>,
    /// `tr`
    pub trackers: Vec<String>,
    /// `ws`
    pub web_seeds: Vec<String>,
    /// `x.pe`: host and port.
    pub peers: Vec<(String, u16)>,
    /// `so`: numbers of the files wanted (BEP 53); empty for all.
    pub select: Vec<RangeInclusive<u32>>,
}

/// Why a magnet is refused.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum MagnetError {
    #[error("not a magnet link: it does not begin with magnet:?")]
    Scheme,
    #[error("the magnet link is longer than {MAGNET_BYTES_MAX} bytes")]
    TooLong,
    #[error("the magnet link names no torrent: xt=urn:btih: or xt=urn:btmh: is missing")]
    NoHash,
    #[error("the magnet link is damaged: {0} is not an info-hash")]
    Hash(String),
    #[error("the magnet link names two different torrents")]
    TwoTorrents,
}

impl Magnet {
    /// Reads a link. Parameters that are unknown, or hints that make no sense, are passed over; the hashes must be right.
    pub fn parse(link: &str) -> Result<Self, MagnetError> {
        if link.len() > MAGNET_BYTES_MAX {
            return Err(MagnetError::TooLong);
        }
        let scheme = link.get(..8).filter(|s| s.eq_ignore_ascii_case("magnet:?"));
        scheme.ok_or(MagnetError::Scheme)?;
        let mut magnet = Self {
            hashes: InfoHashes { v1: None, v2: None },
            name: None,
            length: None,
            trackers: Vec::new(),
            web_seeds: Vec::new(),
            peers: Vec::new(),
            select: Vec::new(),
        };
        for pair in link.get(8..).unwrap_or_default().split('&') {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            // `tr.1` and the like number parameters that occur several times.
            let key = match key.rsplit_once('.') {
                Some((key, number)) if number.bytes().all(|b| b.is_ascii_digit()) => key,
                _ => key,
            };
            magnet.take(key, &percent_decode_str(value).decode_utf8_lossy())?;
        }
        if magnet.hashes.v1.is_none() && magnet.hashes.v2.is_none() {
            return Err(MagnetError::NoHash);
        }
        Ok(magnet)
    }

    fn take(&mut self, key: &str, value: &str) -> Result<(), MagnetError> {
        match key {
            "xt" => self.topic(value)?,
            "dn" if !value.is_empty() => self.name = Some(value.replace('+', " ")),
            "xl" => self.length = value.parse().ok(),
            "tr" => push(&mut self.trackers, Some(value.to_owned())),
            "ws" => push(&mut self.web_seeds, Some(value.to_owned())),
            "x.pe" => push(&mut self.peers, peer(value)),
            "so" => value
                .split(',')
                .for_each(|part| push(&mut self.select, range(part))),
            _ => {}
        }
        Ok(())
    }

    fn topic(&mut self, topic: &str) -> Result<(), MagnetError> {
        let refused = || MagnetError::Hash(topic.chars().take(100).collect());
        if let Some(text) = topic.strip_prefix("urn:btih:") {
            let hash = InfoHashV1(btih(text).ok_or_else(refused)?);
            if self
                .hashes
                .v1
                .replace(hash)
                .is_some_and(|other| other != hash)
            {
                return Err(MagnetError::TwoTorrents);
            }
        } else if let Some(text) = topic.strip_prefix("urn:btmh:") {
            let hash = InfoHashV2(btmh(text).ok_or_else(refused)?);
            if self
                .hashes
                .v2
                .replace(hash)
                .is_some_and(|other| other != hash)
            {
                return Err(MagnetError::TwoTorrents);
            }
        }
        Ok(())
    }
}

fn push<T>(list: &mut Vec<T>, value: Option<T>) {
    if list.len() < HINTS_MAX {
        list.extend(value);
    }
}

/// 40 hexadecimal digits, or 32 of base32 as old links have it.
fn btih(text: &str) -> Option<[u8; 20]> {
    let bytes = match text.len() {
        40 => data_encoding::HEXLOWER_PERMISSIVE.decode(text.as_bytes()),
        _ => data_encoding::BASE32.decode(text.to_ascii_uppercase().as_bytes()),
    };
    bytes.ok()?.try_into().ok()
}

fn btmh(text: &str) -> Option<[u8; 32]> {
    let bytes = data_encoding::HEXLOWER_PERMISSIVE
        .decode(text.as_bytes())
        .ok()?;
    bytes.strip_prefix(&SHA256_MULTIHASH)?.try_into().ok()
}

fn peer(text: &str) -> Option<(String, u16)> {
    let (host, port) = text.rsplit_once(':')?;
    let host = host
        .strip_prefix('[')
        .and_then(|h| h.strip_suffix(']'))
        .unwrap_or(host);
    let port = port.parse().ok().filter(|port| *port != 0)?;
    (!host.is_empty()).then(|| (host.to_owned(), port))
}

fn range(text: &str) -> Option<RangeInclusive<u32>> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let (first, last) = (first.parse().ok()?, last.parse().ok()?);
    (first <= last).then_some(first..=last)
}

impl fmt::Display for Magnet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut before = "magnet:?";
        let mut pair = |key: &str, value: &dyn fmt::Display| {
            let written = write!(f, "{before}{key}={value}");
            before = "&";
            written
        };
        if let Some(hash) = self.hashes.v1 {
            pair("xt", &format_args!("urn:btih:{hash}"))?;
        }
        if let Some(hash) = self.hashes.v2 {
            pair("xt", &format_args!("urn:btmh:1220{hash}"))?;
        }
        if let Some(name) = &self.name {
            pair("dn", &utf8_percent_encode(name, ESCAPED))?;
        }
        if let Some(length) = self.length {
            pair("xl", &length)?;
        }
        for url in &self.trackers {
            pair("tr", &utf8_percent_encode(url, ESCAPED))?;
        }
        for url in &self.web_seeds {
            pair("ws", &utf8_percent_encode(url, ESCAPED))?;
        }
        for (host, port) in &self.peers {
            match host.contains(':') {
                true => pair("x.pe", &format_args!("[{host}]:{port}"))?,
                false => pair("x.pe", &format_args!("{host}:{port}"))?,
            }
        }
        if !self.select.is_empty() {
            let ranges = self
                .select
                .iter()
                .map(|range| match range.start() == range.end() {
                    true => range.start().to_string(),
                    false => format!("{}-{}", range.start(), range.end()),
                });
            pair("so", &ranges.collect::<Vec<_>>().join(","))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const V1: &str = "631a31dd0a46257d5078c0dee4e66e26f73e42ac";
    const V2: &str = "d8dd32ac93357c368556af3ac1d95c9d76bd0dff6fa9833ecdac3d53134efabb";

    #[test]
    fn a_link_is_read_whole() {
        let link = format!(
            "magnet:?xt=urn:btih:{V1}&xt=urn:btmh:1220{V2}&dn=a%20b%26c&xl=7&tr=http%3A%2F%2Ft%2Fa&tr.1=udp://u:1\
             &ws=http://w/&x.pe=1.2.3.4:5&x.pe=[::1]:6&x.pe=host:7&x.pe=bad&so=0,2,4-6,9-8&new=x"
        );
        let magnet = Magnet::parse(&link).unwrap();
        assert_eq!(magnet.hashes.v1.unwrap().to_string(), V1);
        assert_eq!(magnet.hashes.v2.unwrap().to_string(), V2);
        assert_eq!(magnet.name.as_deref(), Some("a b&c"));
        assert_eq!(magnet.length, Some(7));
        assert_eq!(magnet.trackers, ["http://t/a", "udp://u:1"]);
        assert_eq!(magnet.web_seeds, ["http://w/"]);
        let peer = |host: &str, port| (host.to_owned(), port);
        assert_eq!(
            magnet.peers,
            [peer("1.2.3.4", 5), peer("::1", 6), peer("host", 7)]
        );
        assert_eq!(magnet.select, [0..=0, 2..=2, 4..=6]);
        assert_eq!(Magnet::parse(&magnet.to_string()).unwrap(), magnet);
    }

    #[test]
    fn base32_is_the_same_hash() {
        let hex = Magnet::parse(&format!("magnet:?xt=urn:btih:{V1}")).unwrap();
        let base32 = data_encoding::BASE32.encode(&hex.hashes.v1.unwrap().0);
        for text in [base32.clone(), base32.to_lowercase()] {
            assert_eq!(
                Magnet::parse(&format!("MAGNET:?xt=urn:btih:{text}")).unwrap(),
                hex
            );
        }
    }

    #[test]
    fn what_names_no_torrent_is_refused() {
        let parse = |text: &str| Magnet::parse(text).unwrap_err();
        assert_eq!(parse("http://x"), MagnetError::Scheme);
        assert_eq!(parse("magnet:?dn=x"), MagnetError::NoHash);
        assert_eq!(
            parse("magnet:?xt=urn:btih:12"),
            MagnetError::Hash("urn:btih:12".into())
        );
        let other = V1.replace('6', "7");
        let two = format!("magnet:?xt=urn:btih:{V1}&xt=urn:btih:{other}");
        assert_eq!(parse(&two), MagnetError::TwoTorrents);
        assert_eq!(
            parse(&format!("magnet:?{}", "a".repeat(MAGNET_BYTES_MAX))),
            MagnetError::TooLong
        );
        assert!(matches!(
            parse(&format!("magnet:?xt=urn:btmh:1120{V2}")),
            MagnetError::Hash(_)
        ));
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in "(magnet:\\?)?[ -~]{0,120}") {
            if let Ok(magnet) = Magnet::parse(&text) {
                prop_assert_eq!(Magnet::parse(&magnet.to_string()).unwrap(), magnet);
            }
        }
    }
}
