//! A web server for tests: it serves a folder with ranges, or misbehaves in one of several ways.

#![allow(dead_code, reason = "each file of tests uses its own part")]
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::clients::{PATIENCE, free_port, text};

/// How the server answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Manner {
    /// As it should.
    Good,
    /// Each byte of one file is another one.
    Wrong,
    /// As if it did not know `Range`.
    WithoutRanges,
    /// With a page that says something to people.
    Page,
    /// To itself, for ever.
    Circles,
    /// To a server that only this machine can reach.
    Inwards,
    /// It says that two gigabytes follow, and begins to send them.
    Endless,
    /// Never.
    Hangs,
    /// One file is not there.
    Lacks,
    /// Busy the first time, and then as it should.
    BusyAtFirst,
    /// It closes the connection in the middle of every third answer: a block that lies in two files takes two in a row.
    Breaks,
    /// Only with a user name and a password.
    Login,
}

/// A running server.
pub(crate) struct WebServer {
    pub(crate) port: u16,
    state: Arc<State>,
}

struct State {
    root: PathBuf,
    manner: Manner,
    /// Bytes of bodies sent.
    sent: AtomicU64,
    requests: Mutex<Vec<String>>,
}

impl WebServer {
    pub(crate) fn start(root: &Path, manner: Manner) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let state = Arc::new(State {
            root: root.to_owned(),
            manner,
            sent: AtomicU64::new(0),
            requests: Mutex::default(),
        });
        let shared = Arc::clone(&state);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let state = Arc::clone(&shared);
                // A client that goes away ends the thread.
                std::thread::spawn(move || drop(state.serve(stream)));
            }
        });
        Self { port, state }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://127.0.0.1:{}/", self.port)
    }

    pub(crate) fn sent(&self) -> u64 {
        self.state.sent.load(Ordering::Relaxed)
    }

    /// The first lines of all requests.
    pub(crate) fn requests(&self) -> Vec<String> {
        self.state.requests.lock().unwrap().clone()
    }
}

/// A request, as far as it matters.
struct Request {
    path: String,
    range: Option<(usize, usize)>,
    login: Option<String>,
}

impl State {
    fn serve(&self, stream: TcpStream) -> std::io::Result<()> {
        stream.set_nodelay(true)?;
        let mut input = BufReader::new(stream.try_clone()?);
        while let Some(request) = self.read(&mut input)? {
            self.answer(&stream, &request)?;
        }
        Ok(())
    }

    fn read(&self, input: &mut impl BufRead) -> std::io::Result<Option<Request>> {
        let mut lines = Vec::new();
        loop {
            let mut line = String::new();
            if input.read_line(&mut line)? == 0 {
                return Ok(None);
            }
            match line.trim_end() {
                "" => break,
                line => lines.push(line.to_owned()),
            }
        }
        self.requests.lock().unwrap().push(lines[0].clone());
        let header = |name: &str| {
            let mut values = lines.iter().filter_map(|line| line.split_once(':'));
            let (_, value) = values.find(|(key, _)| key.eq_ignore_ascii_case(name))?;
            Some(value.trim().to_owned())
        };
        let range = header("range").and_then(|range| {
            let (first, last) = range.strip_prefix("bytes=")?.split_once('-')?;
            Some((first.parse().ok()?, last.parse().ok()?))
        });
        let path = lines[0].split(' ').nth(1).unwrap_or_default();
        Ok(Some(Request {
            path: decoded(path),
            range,
            login: header("authorization"),
        }))
    }

    fn answer(&self, mut out: &TcpStream, request: &Request) -> std::io::Result<()> {
        let first = self.requests.lock().unwrap().len() == 1;
        let plain = |head: &str, body: &str| {
            let length = body.len();
            format!("HTTP/1.1 {head}\r\nContent-Length: {length}\r\n\r\n{body}").into_bytes()
        };
        let body = fs::read(self.root.join(request.path.trim_start_matches('/')));
        let lacks = self.manner == Manner::Lacks && request.path.ends_with("/deep/c");
        let login = self.manner == Manner::Login && request.login.as_deref() != Some(LOGIN);
        let said = match (self.manner, &body) {
            (Manner::Hangs, _) => {
                std::thread::sleep(PATIENCE);
                return Ok(());
            }
            (Manner::Page, _) => plain(
                "200 OK\r\nContent-Type: text/html",
                "<html>Pay first</html>",
            ),
            (Manner::Circles, _) => plain("302 Found\r\nLocation: ./again", ""),
            (Manner::Inwards, _) => plain("302 Found\r\nLocation: http://127.0.0.1:1/admin", ""),
            (Manner::Endless, _) => return self.endless(out),
            (Manner::BusyAtFirst, _) if first => plain("503 No\r\nRetry-After: 1", ""),
            _ if login => plain("401 Who", ""),
            (_, Err(_)) => plain("404 Not Found", ""),
            _ if lacks => plain("404 Not Found", ""),
            (_, Ok(body)) => return self.file(out, request, body),
        };
        out.write_all(&said)
    }

    fn file(&self, mut out: &TcpStream, request: &Request, body: &[u8]) -> std::io::Result<()> {
        let range = request
            .range
            .filter(|_| self.manner != Manner::WithoutRanges);
        let (head, part) = match range {
            Some((first, last)) => {
                let range = format!("Content-Range: bytes {first}-{last}/{}", body.len());
                (
                    format!("206 Partial Content\r\n{range}"),
                    &body[first..=last],
                )
            }
            None => ("200 OK".to_owned(), body),
        };
        let mut part = part.to_vec();
        if self.manner == Manner::Wrong {
            part.iter_mut().for_each(|byte| *byte = !*byte);
        }
        write!(
            out,
            "HTTP/1.1 {head}\r\nContent-Length: {}\r\n\r\n",
            part.len()
        )?;
        let third = self.requests.lock().unwrap().len().is_multiple_of(3);
        if self.manner == Manner::Breaks && third {
            let half = &part[..part.len() / 2];
            out.write_all(half)?;
            self.sent.fetch_add(half.len() as u64, Ordering::Relaxed);
            return Err(std::io::ErrorKind::BrokenPipe.into());
        }
        out.write_all(&part)?;
        self.sent.fetch_add(part.len() as u64, Ordering::Relaxed);
        Ok(())
    }

    fn endless(&self, mut out: &TcpStream) -> std::io::Result<()> {
        write!(
            out,
            "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n",
            2u64 << 30
        )?;
        loop {
            out.write_all(&[b'x'; 65_536])?;
            self.sent.fetch_add(65_536, Ordering::Relaxed);
        }
    }
}

/// Of `me` and `secret`.
const LOGIN: &str = "Basic bWU6c2VjcmV0";

fn decoded(path: &str) -> String {
    percent_encoding::percent_decode_str(path)
        .decode_utf8()
        .unwrap()
        .into_owned()
}

/// A server that others have written.
pub(crate) struct Program {
    child: Child,
    pub(crate) port: u16,
}

impl Program {
    /// lighttpd, which knows ranges.
    pub(crate) fn lighttpd(root: &Path, scratch: &Path) -> Self {
        let port = free_port();
        let config = scratch.join("lighttpd.conf");
        let lines = format!(
            "server.document-root = \"{}\"\nserver.port = {port}\nserver.bind = \"127.0.0.1\"\n",
            text(root)
        );
        fs::write(&config, lines).unwrap();
        let mut command = Command::new("/usr/sbin/lighttpd");
        command.args(["-D", "-f", text(&config)]);
        Self::start(
            command,
            port,
            "lighttpd is needed: scripts/setup installs it",
        )
    }

    /// Python's, which knows none.
    pub(crate) fn python(root: &Path) -> Self {
        let port = free_port();
        let mut command = Command::new(super::clients::PYTHON);
        let port_text = port.to_string();
        command.args(["-m", "http.server", "--bind", "127.0.0.1", &port_text]);
        command.args(["--directory", text(root)]);
        Self::start(
            command,
            port,
            "Debian's python3 is needed: scripts/setup installs it",
        )
    }

    fn start(mut command: Command, port: u16, needed: &str) -> Self {
        command.stdin(Stdio::null()).stdout(Stdio::null());
        let child = command.stderr(Stdio::null()).spawn().expect(needed);
        let until = Instant::now() + PATIENCE;
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(Instant::now() < until, "the web server does not start");
            std::thread::sleep(Duration::from_millis(20));
        }
        Self { child, port }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://127.0.0.1:{}/", self.port)
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}
