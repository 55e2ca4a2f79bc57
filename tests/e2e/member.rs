//! A member of a folder that the test plays itself: a real socket and a real session, and the test decides what it says.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use ccbt::proto::noise::StaticKey;
use ccbt::proto::session::{Config, Event, Session};
use ccbt::proto::ut_xet::Frame;
use ccbt::share::{Capability, Certificate, DeviceKey, FolderCredentials, Link, Role, Writer};
use ccbt::{clock, random};
use socket2::{Domain, Socket, Type};

/// Longer than anything here takes.
const PATIENCE: Duration = Duration::from_secs(30);

/// The keys of a write link and a device of our own.
#[derive(Clone)]
pub(crate) struct Keys {
    pub(crate) device: Arc<DeviceKey>,
    pub(crate) credentials: Arc<FolderCredentials>,
}

impl Keys {
    pub(crate) fn of(link: &str) -> Self {
        let link: Link = link.parse().unwrap();
        let Capability::Write(write) = link.capability().clone() else {
            panic!("not a write link");
        };
        let device = Arc::new(DeviceKey::generate(&mut random::fill));
        let name = "mallory".parse().unwrap();
        let certificate = Certificate::issue(&write, device.id(), Role::Writer, 0, name);
        let credentials = FolderCredentials {
            folder: link.folder(),
            read: write.read_key(),
            write: Some(write.public()),
            manifest: None,
            writer: Some(Writer {
                device: Arc::clone(&device),
                certificate,
            }),
        };
        Self {
            device,
            credentials: Arc::new(credentials),
        }
    }

    /// The keys of a read link, and of a device that nobody has certified.
    pub(crate) fn of_reader(link: &str) -> Self {
        let link: Link = link.parse().unwrap();
        let Capability::Read(read) = link.capability().clone() else {
            panic!("not a read link");
        };
        let credentials = FolderCredentials {
            folder: link.folder(),
            read,
            write: None,
            manifest: None,
            writer: None,
        };
        Self {
            device: Arc::new(DeviceKey::generate(&mut random::fill)),
            credentials: Arc::new(credentials),
        }
    }

    pub(crate) fn certificate(&self) -> Certificate {
        self.credentials
            .writer
            .as_ref()
            .unwrap()
            .certificate
            .clone()
    }
}

/// See the module documentation.
pub(crate) struct Member {
    stream: TcpStream,
    session: Session,
    start: Instant,
    input: BytesMut,
    closed: bool,
}

impl Member {
    /// Calls `port` on this machine from 127.0.0.`from` and proves itself.
    pub(crate) fn connect(from: u8, port: u16, keys: &Keys) -> Self {
        let stream = connect_from(from, port);
        let credentials = Arc::clone(&keys.credentials);
        let session = Session::connect(Duration::ZERO, credentials, config(), &mut random::fill);
        Self::begin(stream, session)
    }

    /// Takes the next call and proves itself.
    pub(crate) fn accept(listener: &TcpListener, keys: &Keys) -> Self {
        let (stream, _) = listener.accept().unwrap();
        let credentials = Arc::clone(&keys.credentials);
        let lookup = Box::new(move |_: &_| Some(Arc::clone(&credentials)));
        let session = Session::accept(Duration::ZERO, lookup, config(), &mut random::fill);
        Self::begin(stream, session)
    }

    fn begin(stream: TcpStream, session: Session) -> Self {
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        let mut member = Self {
            stream,
            session,
            start: Instant::now(),
            input: BytesMut::new(),
            closed: false,
        };
        let end = Instant::now() + PATIENCE;
        loop {
            match member.turn() {
                Some(Event::Established(_)) => return member,
                Some(event) => panic!("instead of a session: {event:?}"),
                None => assert!(Instant::now() < end && !member.closed, "no session"),
            }
        }
    }

    /// Sends what waits, takes what has come; the next event, if there is one soon.
    fn turn(&mut self) -> Option<Event> {
        if let Some(event) = self.session.poll_event() {
            return Some(event);
        }
        if self.flush().is_err() {
            self.closed = true;
            return None;
        }
        let mut buf = [0; 64 * 1024];
        let soon = Duration::from_millis(20);
        self.stream.set_read_timeout(Some(soon)).unwrap();
        match self.stream.read(&mut buf) {
            Ok(0) => self.closed = true,
            Ok(n) => {
                self.input.extend_from_slice(&buf[..n]);
                self.session
                    .handle_input(self.start.elapsed(), &mut self.input);
            }
            Err(error) if is_timeout(&error) => {}
            Err(_) => self.closed = true,
        }
        self.session.poll_event()
    }

    fn flush(&mut self) -> io::Result<()> {
        let mut out = BytesMut::new();
        while self.session.poll_transmit(self.start.elapsed(), &mut out) {}
        self.stream.write_all(&out)
    }

    /// Says something; fails once the other side has closed.
    pub(crate) fn say(&mut self, frame: &Frame) -> io::Result<()> {
        self.session
            .send(frame)
            .map_err(|error| io::Error::other(error.to_string()))?;
        self.flush()
    }

    /// The first frame that `pick` takes, within a generous time.
    pub(crate) fn hear<T>(&mut self, mut pick: impl FnMut(Frame) -> Option<T>) -> T {
        let end = Instant::now() + PATIENCE;
        while Instant::now() < end {
            match self.turn() {
                Some(Event::Frame(frame)) => {
                    if let Some(found) = pick(frame) {
                        return found;
                    }
                }
                Some(Event::Closed(reason)) => panic!("closed: {reason}"),
                _ => assert!(!self.closed, "closed"),
            }
        }
        panic!("the frame does not come");
    }

    /// Answers what comes by `reply` until the other side closes. False if it does not.
    pub(crate) fn until_closed(
        &mut self,
        patience: Duration,
        mut reply: impl FnMut(Frame) -> Vec<Frame>,
    ) -> bool {
        let end = Instant::now() + patience;
        while Instant::now() < end && !self.closed {
            match self.turn() {
                Some(Event::Frame(frame)) => {
                    for frame in reply(frame) {
                        if self.say(&frame).is_err() {
                            return true;
                        }
                    }
                }
                Some(Event::Closed(_)) => return true,
                _ => {}
            }
        }
        self.closed
    }
}

fn config() -> Config {
    Config {
        static_key: Arc::new(StaticKey::generate(&mut random::fill)),
        nonce: random::bytes(),
        listen_port: 0,
        today: clock::unix_days(),
    }
}

pub(crate) fn is_timeout(error: &io::Error) -> bool {
    use io::ErrorKind::{TimedOut, WouldBlock};
    matches!(error.kind(), TimedOut | WouldBlock)
}

/// A connection from 127.0.0.`from`, so that a bar on it hits nobody else.
pub(crate) fn connect_from(from: u8, port: u16) -> TcpStream {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    let ours = SocketAddr::from((Ipv4Addr::new(127, 0, 0, from), 0));
    socket.bind(&ours.into()).unwrap();
    let theirs = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    socket.connect(&theirs.into()).unwrap();
    socket.into()
}
