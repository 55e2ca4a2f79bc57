//! Who may use the API: on the unix socket the user who runs the daemon, and root; over TCP whoever holds the token, and no
//! web page.

use std::fs::OpenOptions;
use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use axum::http::{HeaderMap, header};
use data_encoding::HEXLOWER;
use tokio::net::UnixStream;

use super::error::{ApiError, ErrorKind};

/// 256 bits, so guessing is out of the question.
const TOKEN_BYTES: usize = 32;

/// The secret of the TCP API. Compared in constant time, never shown.
#[derive(Clone)]
pub(super) struct Token(String);

impl Token {
    /// Reads the token, or makes one in a file only the owner can read.
    pub(super) fn load(path: &Path) -> io::Result<Self> {
        let mut text = String::new();
        match std::fs::File::open(path) {
            Ok(file) => file.take(256).read_to_string(&mut text)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Self::create(path),
            Err(error) => return Err(error),
        };
        let text = text.trim();
        let bytes = HEXLOWER.decode(text.as_bytes());
        if bytes.is_ok_and(|bytes| bytes.len() == TOKEN_BYTES) {
            return Ok(Self(text.to_owned()));
        }
        Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "it does not hold 64 hex digits",
        ))
    }

    fn create(path: &Path) -> io::Result<Self> {
        let mut bytes = [0; TOKEN_BYTES];
        getrandom::fill(&mut bytes).map_err(io::Error::other)?;
        let text = HEXLOWER.encode(&bytes);
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path)?;
        writeln!(file, "{text}")?;
        file.sync_all()?;
        Ok(Self(text))
    }

    fn is(&self, other: &str) -> bool {
        let (a, b) = (self.0.as_bytes(), other.as_bytes());
        a.len() == b.len() && a.iter().zip(b).fold(0, |differ, (a, b)| differ | (a ^ b)) == 0
    }
}

/// Whether the process at the other end of a unix socket may speak to us.
pub(super) fn is_allowed_peer(stream: &UnixStream) -> bool {
    stream
        .peer_cred()
        .is_ok_and(|peer| peer.uid() == 0 || peer.uid() == rustix::process::geteuid().as_raw())
}

/// Checks a request that came over TCP to our address `local`.
pub(super) fn check_tcp(
    headers: &HeaderMap,
    local: SocketAddr,
    token: &Token,
) -> Result<(), ApiError> {
    check_origin(headers)?;
    let hosts: Vec<_> = headers.get_all(header::HOST).iter().collect();
    let [host] = hosts.as_slice() else {
        return Err(denied("the request must have one Host header"));
    };
    if !host.to_str().is_ok_and(|host| is_own_host(host, local)) {
        return Err(denied(
            "the Host header does not name this daemon's address",
        ));
    }
    let bearer = headers
        .get(header::AUTHORIZATION)
        .and_then(|value| value.to_str().ok());
    let bearer = bearer.and_then(|value| value.strip_prefix("Bearer "));
    match bearer {
        Some(given) if token.is(given.trim()) => Ok(()),
        Some(_) => Err(denied("the token is wrong").hint(TOKEN_HINT)),
        None => Err(denied("the request carries no token").hint(TOKEN_HINT)),
    }
}

const TOKEN_HINT: &str =
    "send `Authorization: Bearer TOKEN` with the content of api.token in the state directory";

/// A browser adds `Origin` to whatever a page sends; no page has any business here, on either socket.
pub(super) fn check_origin(headers: &HeaderMap) -> Result<(), ApiError> {
    if headers.contains_key(header::ORIGIN) {
        return Err(denied("requests from web pages are refused"));
    }
    Ok(())
}

/// A page that resolved its own name to our address (DNS rebinding) still sends that name as `Host`. Ours are the address
/// the connection came to and, on loopback, `localhost`.
fn is_own_host(host: &str, local: SocketAddr) -> bool {
    let ip = local.ip().to_canonical();
    let (name, port) = match host.rsplit_once(':') {
        Some((name, port)) if !port.ends_with(']') => (name, Some(port)),
        _ => (host, None),
    };
    let port_fits = match port {
        Some(port) => port.parse() == Ok(local.port()),
        None => local.port() == 80,
    };
    let name = name
        .strip_prefix('[')
        .and_then(|n| n.strip_suffix(']'))
        .unwrap_or(name);
    let name_fits = match name.parse::<IpAddr>() {
        Ok(named) => named.to_canonical() == ip,
        Err(_) => ip.is_loopback() && name.eq_ignore_ascii_case("localhost"),
    };
    port_fits && name_fits
}

fn denied(message: &str) -> ApiError {
    ApiError::new(ErrorKind::Denied, message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn only_our_own_names_are_hosts() {
        let v4: SocketAddr = "127.0.0.1:7070".parse().unwrap();
        let v6: SocketAddr = "[::1]:7070".parse().unwrap();
        let far: SocketAddr = "192.0.2.7:80".parse().unwrap();
        for (host, local, own) in [
            ("127.0.0.1:7070", v4, true),
            ("LOCALHOST:7070", v4, true),
            ("localhost", v4, false),
            ("localhost:7071", v4, false),
            ("127.0.0.2:7070", v4, false),
            ("evil.example:7070", v4, false),
            ("127.0.0.1:7070:7070", v4, false),
            ("[::1]:7070", v6, true),
            ("[::1]", v6, false),
            ("192.0.2.7", far, true),
            ("localhost:80", far, false),
            ("", far, false),
        ] {
            assert_eq!(is_own_host(host, local), own, "{host} {local}");
        }
    }

    #[test]
    fn the_token_is_made_once_private_and_compared_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("api.token");
        let token = Token::load(&path).unwrap();
        assert_eq!(
            std::fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o600
        );
        assert_eq!(Token::load(&path).unwrap().0, token.0);
        assert_eq!(token.0.len(), 64);
        assert!(token.is(&token.0.clone()));
        assert!(!token.is(&token.0[1..]));
        assert!(!token.is(&token.0.replace(char::is_alphanumeric, "0")));
        std::fs::write(&path, "0").unwrap();
        assert!(Token::load(&path).is_err());
    }
}
