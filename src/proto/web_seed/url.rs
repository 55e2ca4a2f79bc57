//! URLs of web seeds: as torrents have them, with a file's path behind them, and where a redirect leads.

use std::fmt;
use std::net::IpAddr;

use data_encoding::BASE64;
use percent_encoding::{AsciiSet, CONTROLS, percent_decode_str, utf8_percent_encode};
use thiserror::Error;

/// Longest URL taken, in bytes, with the path of a file.
pub const URL_BYTES_MAX: usize = 8 << 10;
/// What cannot stand in a request line and is escaped where a URL has it as it is.
const RAW: &AsciiSet = &CONTROLS
    .add(b' ')
    .add(b'"')
    .add(b'<')
    .add(b'>')
    .add(b'\\')
    .add(b'^')
    .add(b'`')
    .add(b'{')
    .add(b'|')
    .add(b'}');

/// Why a URL is not that of a web seed, or a redirect is not followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum UrlError {
    #[error("it is not an http or https URL")]
    Scheme,
    #[error("its URL names no host")]
    Host,
    #[error("its URL is longer than {URL_BYTES_MAX} bytes")]
    TooLong,
    #[error("it redirects from https to http")]
    Downgrade,
    #[error("it leads to a server that only this machine can reach, by a redirect or with a query")]
    Inwards,
}

/// An `http` or `https` URL.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct WebUrl {
    pub tls: bool,
    pub host: String,
    pub port: u16,
    /// With the query, escaped; begins with `/`.
    pub path: String,
    /// What goes into `Authorization`, if the URL has a user name.
    login: Option<String>,
}

impl WebUrl {
    pub fn parse(text: &str) -> Result<Self, UrlError> {
        if text.len() > URL_BYTES_MAX {
            return Err(UrlError::TooLong);
        }
        let (scheme, rest) = text.split_once("://").ok_or(UrlError::Scheme)?;
        let tls = match scheme.to_ascii_lowercase().as_str() {
            "http" => false,
            "https" => true,
            _ => return Err(UrlError::Scheme),
        };
        let rest = rest.split('#').next().unwrap_or_default();
        let end = rest.find(['/', '?']).unwrap_or(rest.len());
        let (authority, path) = rest.split_at(end);
        let (login, place) = match authority.rsplit_once('@') {
            Some((login, place)) => (Some(login_of(login)), place),
            None => (None, authority),
        };
        let (host, port) = host_and_port(place, tls)?;
        let slash = if path.starts_with('/') { "" } else { "/" };
        let path = format!("{slash}{}", utf8_percent_encode(path, RAW));
        if path.len() > URL_BYTES_MAX {
            return Err(UrlError::TooLong);
        }
        Ok(Self {
            tls,
            host,
            port,
            path,
            login,
        })
    }

    /// The same with `tail`, which is escaped, behind it.
    pub(super) fn with(&self, tail: &str) -> Result<Self, UrlError> {
        let mut url = self.clone();
        url.path += tail;
        match url.path.len() > URL_BYTES_MAX {
            true => Err(UrlError::TooLong),
            false => Ok(url),
        }
    }

    pub(super) fn is_folder(&self) -> bool {
        self.path.ends_with('/')
    }

    pub fn has_query(&self) -> bool {
        self.path.contains('?')
    }

    /// Where a redirect leads that an answer to this URL has. The login goes nowhere else.
    pub fn redirected(&self, location: &str) -> Result<Self, UrlError> {
        let authority = self.authority();
        let scheme = if self.tls { "https" } else { "http" };
        let text = if has_scheme(location) {
            location.to_owned()
        } else if let Some(rest) = location.strip_prefix("//") {
            format!("{scheme}://{rest}")
        } else if location.starts_with('/') {
            format!("{scheme}://{authority}{location}")
        } else {
            let path = self.path.split('?').next().unwrap_or_default();
            let folder = path.rsplit_once('/').map_or("", |(folder, _)| folder);
            format!("{scheme}://{authority}{folder}/{location}")
        };
        let mut there = Self::parse(&text)?;
        if self.tls && !there.tls {
            return Err(UrlError::Downgrade);
        }
        if (there.tls, &there.host, there.port) == (self.tls, &self.host, self.port) {
            there.login = there.login.or_else(|| self.login.clone());
        }
        Ok(there)
    }

    /// What goes into `Host`: without the port where it is the usual one.
    pub fn authority(&self) -> String {
        let host = match self.host.contains(':') {
            true => format!("[{}]", self.host),
            false => self.host.clone(),
        };
        match (self.tls, self.port) {
            (false, 80) | (true, 443) => host,
            (_, port) => format!("{host}:{port}"),
        }
    }

    /// What goes into `Authorization`.
    pub fn login(&self) -> Option<&str> {
        self.login.as_deref()
    }
}

impl fmt::Display for WebUrl {
    /// Without the login.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.tls { "https" } else { "http" };
        write!(f, "{scheme}://{}{}", self.authority(), self.path)
    }
}

impl fmt::Debug for WebUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// Nobody but us, and those near us, can reach it.
pub fn is_local(ip: IpAddr) -> bool {
    match ip.to_canonical() {
        IpAddr::V4(ip) => {
            // RFC 6598: what providers have between their customers and the world.
            let [a, b, ..] = ip.octets();
            let shared = a == 100 && b & 0xc0 == 64;
            ip.is_loopback()
                || ip.is_private()
                || ip.is_link_local()
                || ip.is_unspecified()
                || shared
        }
        IpAddr::V6(ip) => {
            ip.is_loopback()
                || ip.is_unique_local()
                || ip.is_unicast_link_local()
                || ip.is_unspecified()
        }
    }
}

fn has_scheme(text: &str) -> bool {
    text.split_once("://").is_some_and(|(scheme, _)| {
        !scheme.is_empty() && scheme.bytes().all(|b| b.is_ascii_alphanumeric())
    })
}

fn login_of(text: &str) -> String {
    let bytes: Vec<u8> = percent_decode_str(text).collect();
    let colon: &[u8] = if text.contains(':') { b"" } else { b":" };
    format!("Basic {}", BASE64.encode(&[&bytes, colon].concat()))
}

fn host_and_port(place: &str, tls: bool) -> Result<(String, u16), UrlError> {
    let usual = if tls { 443 } else { 80 };
    let (host, port) = match place.strip_prefix('[') {
        Some(rest) => {
            let (host, rest) = rest.split_once(']').ok_or(UrlError::Host)?;
            let host = host.parse::<std::net::Ipv6Addr>();
            (host.map_err(|_| UrlError::Host)?.to_string(), rest)
        }
        None => {
            let end = place.find(':').unwrap_or(place.len());
            let (host, rest) = place.split_at(end);
            (host.to_ascii_lowercase(), rest)
        }
    };
    let port = match port.strip_prefix(':') {
        None if port.is_empty() => usual,
        Some("") => usual,
        Some(port) => port.parse().map_err(|_| UrlError::Host)?,
        None => return Err(UrlError::Host),
    };
    let fits = |c: char| c.is_ascii_alphanumeric() || "-._:".contains(c);
    if host.is_empty() || host.len() > 255 || port == 0 || !host.chars().all(fits) {
        return Err(UrlError::Host);
    }
    Ok((host, port))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn url(text: &str) -> WebUrl {
        WebUrl::parse(text).unwrap()
    }

    #[test]
    fn urls_are_read_as_torrents_have_them() {
        let read = url("HTTP://me:p%40ss@Mirror.example:8080/a b/\u{e4}?x=1#part");
        assert_eq!((read.host.as_str(), read.port), ("mirror.example", 8080));
        assert_eq!(read.path, "/a%20b/%C3%A4?x=1");
        assert_eq!(read.login(), Some("Basic bWU6cEBzcw=="));
        assert_eq!(
            read.to_string(),
            "http://mirror.example:8080/a%20b/%C3%A4?x=1"
        );
        assert_eq!(url("https://h").path, "/");
        assert_eq!(url("https://h?q").path, "/?q");
        assert_eq!(url("http://[::1]:99/").authority(), "[::1]:99");
        assert_eq!(url("https://h:443/").authority(), "h");
        for bad in [
            "",
            "ftp://h/",
            "http://",
            "http:///x",
            "http://h:0/",
            "http://h:70000/",
            "http://a b/",
            "http://[zz]/",
            "http://h\r\nX: y/",
        ] {
            assert!(WebUrl::parse(bad).is_err(), "{bad:?}");
        }
        let long = format!("http://h/{}", "a".repeat(URL_BYTES_MAX));
        assert_eq!(WebUrl::parse(&long), Err(UrlError::TooLong));
        assert!(!url("http://h/\r\nX: y").path.contains(['\r', '\n', ' ']));
    }

    #[test]
    fn redirects_lead_where_they_say_and_never_out_of_tls() {
        let here = url("https://me:pw@h/a/b?q=/x");
        let to = |location: &str| here.redirected(location).map(|url| url.to_string());
        assert_eq!(to("/c").unwrap(), "https://h/c");
        assert_eq!(to("c?d").unwrap(), "https://h/a/c?d");
        assert_eq!(to("//other/c").unwrap(), "https://other/c");
        assert_eq!(to("https://h:444/c").unwrap(), "https://h:444/c");
        assert_eq!(to("http://h/c"), Err(UrlError::Downgrade));
        assert_eq!(to("ftp://h/c"), Err(UrlError::Scheme));
        assert!(here.redirected("/c").unwrap().login().is_some());
        assert!(here.redirected("//other/c").unwrap().login().is_none());
    }
}
