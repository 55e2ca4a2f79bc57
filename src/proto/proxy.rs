//! Asking a proxy for a connection: SOCKS5 (RFC 1928, with the user names of RFC 1929) and HTTP CONNECT. Sans-IO: the
//! caller sends what [`Dialogue::poll_transmit`] has and hands in what comes, until the way is free.

use std::net::{IpAddr, SocketAddr};

use data_encoding::BASE64;
use thiserror::Error;

/// Longest answer of an HTTP proxy up to its empty line.
const HTTP_HEAD_LEN_MAX: usize = 8192;
const SOCKS: u8 = 5;
const NO_PASSWORD: u8 = 0;
const PASSWORD: u8 = 2;
const CONNECT: u8 = 1;

/// How a proxy is spoken to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProxyKind {
    Socks5,
    Http,
}

/// A proxy: `socks5://[USER:PASSWORD@]HOST:PORT` or `http://…`.
#[derive(Clone, PartialEq, Eq)]
pub struct ProxyUrl {
    pub kind: ProxyKind,
    pub host: String,
    pub port: u16,
    login: Option<(String, String)>,
}

impl std::fmt::Debug for ProxyUrl {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            kind, host, port, ..
        } = self;
        write!(f, "{kind:?}({host}:{port})")
    }
}

impl ProxyUrl {
    pub fn parse(text: &str) -> Option<Self> {
        let (scheme, rest) = text.split_once("://")?;
        let kind = match scheme {
            "socks5" | "socks5h" => ProxyKind::Socks5,
            "http" => ProxyKind::Http,
            _ => return None,
        };
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        let (login, place) = match rest.rsplit_once('@') {
            Some((login, place)) => (Some(login), place),
            None => (None, rest),
        };
        let (host, port) = place.rsplit_once(':')?;
        let port = port.parse().ok().filter(|port| *port != 0)?;
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let bad = |c: char| c.is_control() || c.is_whitespace() || "/?#@".contains(c);
        if host.is_empty() || host.contains(bad) {
            return None;
        }
        let decode = |text: &str| {
            let text = percent_encoding::percent_decode_str(text)
                .decode_utf8()
                .ok()?;
            (text.len() <= 255).then(|| text.into_owned())
        };
        let login = match login {
            None => None,
            Some(login) => {
                let (user, password) = login.split_once(':').unwrap_or((login, ""));
                Some((decode(user)?, decode(password)?))
            }
        };
        Some(Self {
            kind,
            host: host.to_owned(),
            port,
            login,
        })
    }
}

/// Where the connection shall lead.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    Addr(SocketAddr),
    /// A name that the proxy looks up, so that we ask nobody.
    Name(String, u16),
}

/// Why there is no way through.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ProxyError {
    #[error("the proxy does not speak SOCKS5")]
    NotSocks,
    #[error("the answer of the proxy is not HTTP")]
    NotHttp,
    #[error("the proxy wants a login it was not given, or another one")]
    Login,
    #[error("the proxy refuses: {0}")]
    Refused(String),
    #[error("the name of the host is too long for the proxy")]
    NameTooLong,
}

/// One request for a connection.
#[derive(Debug)]
pub struct Dialogue {
    proxy: ProxyUrl,
    target: Target,
    state: State,
    input: Vec<u8>,
    output: Vec<u8>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Method,
    Login,
    Reply,
    Head,
    Free,
}

impl Dialogue {
    pub fn new(proxy: ProxyUrl, target: Target) -> Result<Self, ProxyError> {
        if matches!(&target, Target::Name(name, _) if name.len() > 255) {
            return Err(ProxyError::NameTooLong);
        }
        let (state, output) = match proxy.kind {
            ProxyKind::Socks5 => {
                let methods: &[u8] = match proxy.login {
                    Some(_) => &[SOCKS, 2, NO_PASSWORD, PASSWORD],
                    None => &[SOCKS, 1, NO_PASSWORD],
                };
                (State::Method, methods.to_vec())
            }
            ProxyKind::Http => (State::Head, http_request(&proxy, &target)),
        };
        Ok(Self {
            proxy,
            target,
            state,
            input: Vec::new(),
            output,
        })
    }

    /// Bytes to be sent.
    pub fn poll_transmit(&mut self) -> Option<Vec<u8>> {
        (!self.output.is_empty()).then(|| std::mem::take(&mut self.output))
    }

    /// Takes what came. `Some` once the way is free, with what has already come along it.
    pub fn handle_input(&mut self, input: &[u8]) -> Result<Option<Vec<u8>>, ProxyError> {
        self.input.extend_from_slice(input);
        loop {
            let before = self.state;
            match self.state {
                State::Method => self.method()?,
                State::Login => self.logged_in()?,
                State::Reply => self.reply()?,
                State::Head => self.head()?,
                State::Free => return Ok(Some(std::mem::take(&mut self.input))),
            }
            if self.state == before {
                return Ok(None);
            }
        }
    }

    fn method(&mut self) -> Result<(), ProxyError> {
        let Some([version, method]) = self.input.first_chunk().copied() else {
            return Ok(());
        };
        if version != SOCKS {
            return Err(ProxyError::NotSocks);
        }
        self.input.drain(..2);
        match (method, &self.proxy.login) {
            (NO_PASSWORD, _) => self.ask(),
            (PASSWORD, Some((user, password))) => {
                self.output.push(1);
                for text in [user, password] {
                    self.output.push(text.len() as u8);
                    self.output.extend_from_slice(text.as_bytes());
                }
                self.state = State::Login;
            }
            _ => return Err(ProxyError::Login),
        }
        Ok(())
    }

    fn logged_in(&mut self) -> Result<(), ProxyError> {
        let Some([_, status]) = self.input.first_chunk().copied() else {
            return Ok(());
        };
        if status != 0 {
            return Err(ProxyError::Login);
        }
        self.input.drain(..2);
        self.ask();
        Ok(())
    }

    fn ask(&mut self) {
        self.output.extend_from_slice(&[SOCKS, CONNECT, 0]);
        match &self.target {
            Target::Addr(addr) => put_addr(&mut self.output, *addr),
            Target::Name(name, port) => {
                self.output.push(3);
                self.output.push(name.len() as u8);
                self.output.extend_from_slice(name.as_bytes());
                self.output.extend_from_slice(&port.to_be_bytes());
            }
        }
        self.state = State::Reply;
    }

    fn reply(&mut self) -> Result<(), ProxyError> {
        let Some([version, status, _, kind, first]) = self.input.first_chunk().copied() else {
            return Ok(());
        };
        if version != SOCKS {
            return Err(ProxyError::NotSocks);
        }
        if status != 0 {
            return Err(ProxyError::Refused(refusal(status)));
        }
        // The address it calls from, which tells us nothing.
        let len = match kind {
            1 => 4,
            3 => 1 + usize::from(first),
            4 => 16,
            _ => return Err(ProxyError::NotSocks),
        };
        let whole = 4 + len + 2;
        if self.input.len() >= whole {
            self.input.drain(..whole);
            self.state = State::Free;
        }
        Ok(())
    }

    fn head(&mut self) -> Result<(), ProxyError> {
        let window = self.input.get(..HTTP_HEAD_LEN_MAX).unwrap_or(&self.input);
        let end = window.windows(4).position(|four| four == b"\r\n\r\n");
        let line = window
            .split(|byte| *byte == b'\r')
            .next()
            .unwrap_or_default();
        let begins = b"HTTP/1.".iter().zip(line).all(|(a, b)| a == b);
        let Some(end) = end else {
            return match begins && window.len() < HTTP_HEAD_LEN_MAX {
                true => Ok(()),
                false => Err(ProxyError::NotHttp),
            };
        };
        let line = String::from_utf8_lossy(line).into_owned();
        let mut words = line.splitn(3, ' ');
        let status = words.nth(1).and_then(|word| word.parse::<u16>().ok());
        match status.filter(|_| begins) {
            Some(200..=299) => {
                self.input.drain(..end + 4);
                self.state = State::Free;
                Ok(())
            }
            Some(407) => Err(ProxyError::Login),
            Some(status) => Err(ProxyError::Refused(format!("HTTP status {status}"))),
            None => Err(ProxyError::NotHttp),
        }
    }
}

fn http_request(proxy: &ProxyUrl, target: &Target) -> Vec<u8> {
    let place = match target {
        Target::Addr(addr) => addr.to_string(),
        Target::Name(name, port) => format!("{name}:{port}"),
    };
    let mut request = format!("CONNECT {place} HTTP/1.1\r\nHost: {place}\r\n");
    if let Some((user, password)) = &proxy.login {
        let login = BASE64.encode(format!("{user}:{password}").as_bytes());
        request += &format!("Proxy-Authorization: Basic {login}\r\n");
    }
    request += "\r\n";
    request.into_bytes()
}

fn put_addr(out: &mut Vec<u8>, addr: SocketAddr) {
    match addr.ip() {
        IpAddr::V4(v4) => {
            out.push(1);
            out.extend_from_slice(&v4.octets());
        }
        IpAddr::V6(v6) => {
            out.push(4);
            out.extend_from_slice(&v6.octets());
        }
    }
    out.extend_from_slice(&addr.port().to_be_bytes());
}

fn refusal(status: u8) -> String {
    let known = [
        "general failure",
        "not allowed by its rules",
        "network unreachable",
        "host unreachable",
        "connection refused",
        "time to live expired",
        "command not supported",
        "kind of address not supported",
    ];
    let n = usize::from(status).checked_sub(1);
    match n.and_then(|n| known.get(n)) {
        Some(text) => (*text).to_owned(),
        None => format!("status {status}"),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn target() -> Target {
        Target::Name("tracker.example".to_owned(), 80)
    }

    fn dialogue(url: &str) -> Dialogue {
        Dialogue::new(ProxyUrl::parse(url).unwrap(), target()).unwrap()
    }

    #[test]
    fn urls_are_read_or_not() {
        let url = ProxyUrl::parse("socks5://me:p%40ss@[::1]:1080").unwrap();
        assert_eq!((url.host.as_str(), url.port), ("::1", 1080));
        assert_eq!(url.login, Some(("me".to_owned(), "p@ss".to_owned())));
        assert!(!format!("{url:?}").contains("p@ss"));
        assert_eq!(
            ProxyUrl::parse("http://proxy:3128/").unwrap().kind,
            ProxyKind::Http
        );
        for bad in [
            "",
            "proxy:80",
            "https://p:1",
            "socks5://p",
            "socks5://:1",
            "socks5://p:0",
            "http://a b:1",
        ] {
            assert_eq!(ProxyUrl::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn socks_with_a_login_byte_by_byte() {
        let mut d = dialogue("socks5://me:secret@p:1");
        let mut said = Vec::new();
        let answers: [&[u8]; 3] = [
            &[5, 2],
            &[1, 0],
            &[5, 0, 0, 3, 4, b'n', b'a', b'm', b'e', 0, 80, b'x', b'y'],
        ];
        let mut free = Vec::new();
        for answer in answers {
            said.push(d.poll_transmit().unwrap());
            for byte in answer {
                if let Some(rest) = d.handle_input(&[*byte]).unwrap() {
                    free.extend(rest);
                }
            }
        }
        assert_eq!(free, b"xy");
        assert_eq!(said[0], [5, 2, 0, 2]);
        assert_eq!(said[1], b"\x01\x02me\x06secret");
        assert_eq!(
            said[2],
            [b"\x05\x01\0\x03\x0f", &b"tracker.example"[..], b"\0\x50"].concat()
        );
    }

    #[test]
    fn http_connect() {
        let mut d = dialogue("http://me:secret@p:1");
        let said = String::from_utf8(d.poll_transmit().unwrap()).unwrap();
        assert!(
            said.starts_with("CONNECT tracker.example:80 HTTP/1.1\r\nHost: tracker.example:80\r\n")
        );
        assert!(
            said.contains("Proxy-Authorization: Basic bWU6c2VjcmV0\r\n"),
            "{said}"
        );
        let answer = b"HTTP/1.0 200 Connection established\r\nVia: x\r\n\r\nearly";
        for byte in &answer[..answer.len() - 5] {
            d.handle_input(&[*byte]).unwrap();
        }
        assert_eq!(d.handle_input(b"early"), Ok(Some(b"early".to_vec())));
    }

    #[test]
    fn refusals_say_why() {
        let error = |url: &str, answer: &[u8]| dialogue(url).handle_input(answer).unwrap_err();
        assert_eq!(error("socks5://p:1", &[5, 0xff]), ProxyError::Login);
        assert_eq!(error("socks5://p:1", b"HTTP"), ProxyError::NotSocks);
        assert_eq!(
            error("socks5://p:1", &[5, 0, 5, 5, 0, 1, 0]),
            ProxyError::Refused("connection refused".into())
        );
        assert_eq!(
            error("http://p:1", b"HTTP/1.1 403 No\r\n\r\n"),
            ProxyError::Refused("HTTP status 403".into())
        );
        assert_eq!(
            error("http://p:1", b"HTTP/1.1 407 Who\r\n\r\n"),
            ProxyError::Login
        );
        assert_eq!(error("http://p:1", b"SSH-2.0-x\r\n"), ProxyError::NotHttp);
        assert_eq!(
            error(
                "http://p:1",
                &[b"HTTP/1.1 200 ", &[b'x'; 9000][..]].concat()
            ),
            ProxyError::NotHttp
        );
    }

    proptest! {
        #[test]
        fn garbage_is_no_panic(input: Vec<u8>, socks: bool) {
            let mut d = dialogue(if socks { "socks5://a:b@p:1" } else { "http://p:1" });
            for piece in input.chunks(3) {
                if d.handle_input(piece).is_err() {
                    break;
                }
            }
        }
    }
}
