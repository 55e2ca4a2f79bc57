//! uTP (BEP 29): streams over one UDP socket, by `librqbit-utp`. No other file names that crate.
//!
//! Three things are put right around it. It sends a SYN once, so [`Utp::connect`] begins anew while no answer comes. It
//! ends for good when its socket reports an error, so [`Datagrams`] reports none while receiving. And its streams are polled,
//! so [`UtpPipe`] keeps a little on both sides, to be used like a socket that does not block.

use std::fmt;
use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroUsize;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use bytes::{Buf, BytesMut};
use librqbit_dualstack_sockets::PollSendToVectored;
use librqbit_utp::{SocketOpts, Transport, UtpSocket, UtpSocketUdp, UtpStream};
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf, Ready};
use tokio::net::UdpSocket;
use tokio::task::JoinSet;

/// Kept on either side of a stream.
const BUFFER_BYTES: usize = 16 << 10;
/// Streams at once. One has up to 1 MiB in each direction.
const STREAMS_MAX: usize = 256;
/// A stream on which nothing came for this long has ended. Peers say at least every two minutes that they are there.
const IDLE_TIME: Duration = Duration::from_secs(180);
/// After this long without an answer to a SYN, another is sent.
const SYN_TIMES: [Duration; 3] = [
    Duration::from_millis(800),
    Duration::from_millis(1600),
    Duration::from_millis(3200),
];
/// After an error of the socket, wait before the next try.
const ERROR_PAUSE: Duration = Duration::from_millis(50);
/// Kernel buffers of the socket, which all streams share. The system may grant less.
const SOCKET_BUFFER_BYTES: usize = 4 << 20;

/// uTP over one UDP socket. Cheap to clone.
#[derive(Clone)]
pub(super) struct Utp(Arc<UtpSocket<Datagrams, Environment>>);

impl fmt::Debug for Utp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Utp").field(&self.0.bind_addr()).finish()
    }
}

impl Utp {
    /// Runs on `socket` until the process ends.
    pub(super) fn start(socket: UdpSocket) -> io::Result<Self> {
        let raw = socket2::SockRef::from(&socket);
        raw.set_recv_buffer_size(SOCKET_BUFFER_BYTES)?;
        raw.set_send_buffer_size(SOCKET_BUFFER_BYTES)?;
        let local = socket.local_addr()?;
        let options = SocketOpts {
            remote_inactivity_timeout: Some(IDLE_TIME),
            max_live_vsocks: NonZeroUsize::new(STREAMS_MAX),
            disable_nagle: true,
            ..SocketOpts::default()
        };
        let datagrams = Datagrams { socket, local };
        let utp = UtpSocket::new_with_opts(datagrams, Environment::default(), options);
        Ok(Self(utp.map_err(io::Error::other)?))
    }

    /// Waits for the next stream that somebody opens.
    pub(super) async fn accept(&self) -> io::Result<(UtpPipe, SocketAddr)> {
        let stream = self.0.accept().await.map_err(io::Error::other)?;
        let addr = stream.remote_addr();
        Ok((UtpPipe::new(stream), addr))
    }

    /// Opens a stream within `limit`.
    pub(super) async fn connect(&self, addr: SocketAddr, limit: Duration) -> io::Result<UtpPipe> {
        let mut tries = JoinSet::new();
        let any = async {
            for wait in SYN_TIMES {
                let socket = Arc::clone(&self.0);
                tries.spawn(async move { socket.connect(addr).await });
                // An answer to an earlier SYN is as good.
                let answer = tokio::time::timeout(wait, tries.join_next()).await;
                if let Ok(Some(Ok(opened))) = answer {
                    return opened.map_err(io::Error::other);
                }
            }
            match tries.join_next().await {
                Some(Ok(opened)) => opened.map_err(io::Error::other),
                _ => Err(io::ErrorKind::TimedOut.into()),
            }
        };
        let opened = tokio::time::timeout(limit, any).await;
        let stream = opened.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))?;
        Ok(UtpPipe::new(stream))
    }
}

/// The crate's clock and random numbers, whose type it does not export.
type Environment = <UtpSocketUdp as HasEnvironment>::Environment;

trait HasEnvironment {
    type Environment;
}

impl<T, E> HasEnvironment for UtpSocket<T, E> {
    type Environment = E;
}

/// The socket as the crate wants it. Addresses are what they are, not IPv4 inside IPv6.
struct Datagrams {
    socket: UdpSocket,
    local: SocketAddr,
}

impl Datagrams {
    /// An address as the socket takes it.
    fn reachable(&self, addr: SocketAddr) -> SocketAddr {
        match addr.ip() {
            IpAddr::V4(v4) if self.local.is_ipv6() => (v4.to_ipv6_mapped(), addr.port()).into(),
            _ => addr,
        }
    }
}

impl Transport for Datagrams {
    async fn recv_from<'a>(&'a self, buf: &'a mut [u8]) -> io::Result<(usize, SocketAddr)> {
        loop {
            match self.socket.recv_from(buf).await {
                Ok((len, from)) => {
                    return Ok((len, SocketAddr::new(from.ip().to_canonical(), from.port())));
                }
                Err(error) => {
                    tracing::debug!(%error, "cannot receive a datagram");
                    tokio::time::sleep(ERROR_PAUSE).await;
                }
            }
        }
    }

    async fn send_to<'a>(&'a self, buf: &'a [u8], target: SocketAddr) -> io::Result<usize> {
        self.socket.send_to(buf, self.reachable(target)).await
    }

    fn poll_send_to(
        &self,
        cx: &mut Context<'_>,
        buf: &[u8],
        target: SocketAddr,
    ) -> Poll<io::Result<usize>> {
        self.socket.poll_send_to(cx, buf, self.reachable(target))
    }

    fn bind_addr(&self) -> SocketAddr {
        self.local
    }
}

impl PollSendToVectored for Datagrams {
    fn poll_send_to_vectored(
        &self,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
        target: SocketAddr,
    ) -> Poll<io::Result<usize>> {
        let target = self.reachable(target);
        self.socket.poll_send_to_vectored(cx, bufs, target)
    }
}

/// A stream.
pub(super) struct UtpPipe {
    stream: UtpStream,
    /// Read to find out whether there is something.
    ahead: BytesMut,
    /// Taken from the writer while the stream was full.
    unsent: BytesMut,
    ended: bool,
    /// What a poll for readiness met, for who asks next.
    error: Option<io::Error>,
}

impl fmt::Debug for UtpPipe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("UtpPipe")
            .field(&self.stream.remote_addr())
            .finish()
    }
}

impl UtpPipe {
    fn new(stream: UtpStream) -> Self {
        Self {
            stream,
            ahead: BytesMut::new(),
            unsent: BytesMut::new(),
            ended: false,
            error: None,
        }
    }

    /// Returns when something of `interest` is possible, or has failed.
    pub(super) async fn ready(&mut self, interest: Interest) -> io::Result<Ready> {
        poll_fn(|cx| Poll::Ready(Ok(ready!(self.poll_ready(cx, interest))))).await
    }

    fn poll_ready(&mut self, cx: &mut Context<'_>, interest: Interest) -> Poll<Ready> {
        let mut ready = Ready::EMPTY;
        match self.poll_flush(cx) {
            Poll::Ready(Ok(())) if interest.is_writable() => ready |= Ready::WRITABLE,
            Poll::Ready(Err(error)) => self.error = Some(error),
            _ => {}
        }
        if interest.is_readable() {
            match self.poll_ahead(cx) {
                Poll::Ready(Ok(())) => ready |= Ready::READABLE,
                Poll::Ready(Err(error)) => self.error = Some(error),
                Poll::Pending => {}
            }
        }
        if self.error.is_some() {
            ready = Ready::READABLE | Ready::WRITABLE;
        }
        match ready.is_empty() {
            true => Poll::Pending,
            false => Poll::Ready(ready),
        }
    }

    /// Ready when there is something to read, or the end.
    fn poll_ahead(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.ahead.is_empty() || self.ended {
            return Poll::Ready(Ok(()));
        }
        self.ahead.resize(BUFFER_BYTES, 0);
        let mut buf = ReadBuf::new(&mut self.ahead);
        let read = Pin::new(&mut self.stream).poll_read(cx, &mut buf);
        let len = buf.filled().len();
        self.ahead.truncate(len);
        ready!(read)?;
        self.ended = len == 0;
        Poll::Ready(Ok(()))
    }

    /// Ready when nothing is owed.
    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.unsent.is_empty() {
            let len = ready!(Pin::new(&mut self.stream).poll_write(cx, &self.unsent))?;
            self.unsent.advance(len);
        }
        Poll::Ready(Ok(()))
    }

    pub(super) fn try_read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if let Some(error) = self.error.take() {
            return Err(error);
        }
        if !self.ahead.is_empty() {
            let len = self.ahead.len().min(buf.len());
            self.ahead
                .copy_to_slice(buf.get_mut(..len).unwrap_or_default());
            return Ok(len);
        }
        if self.ended || buf.is_empty() {
            return Ok(0);
        }
        let mut into = ReadBuf::new(buf);
        // Nobody is woken: who wants to wait asks for readiness.
        let mut cx = Context::from_waker(Waker::noop());
        match Pin::new(&mut self.stream).poll_read(&mut cx, &mut into) {
            Poll::Ready(Ok(())) => {
                let len = into.filled().len();
                self.ended = len == 0;
                Ok(len)
            }
            Poll::Ready(Err(error)) => Err(error),
            Poll::Pending => Err(io::ErrorKind::WouldBlock.into()),
        }
    }

    pub(super) fn try_write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.try_flush()?;
        if self.owes() {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let mut cx = Context::from_waker(Waker::noop());
        match Pin::new(&mut self.stream).poll_write(&mut cx, buf) {
            Poll::Ready(written) => written,
            Poll::Pending => {
                // Room cannot be waited for without something to write.
                let taken = buf.get(..BUFFER_BYTES).unwrap_or(buf);
                self.unsent.extend_from_slice(taken);
                Ok(taken.len())
            }
        }
    }

    pub(super) fn owes(&self) -> bool {
        !self.unsent.is_empty()
    }

    pub(super) fn try_flush(&mut self) -> io::Result<()> {
        if let Some(error) = self.error.take() {
            return Err(error);
        }
        let mut cx = Context::from_waker(Waker::noop());
        match self.poll_flush(&mut cx) {
            Poll::Ready(flushed) => flushed,
            Poll::Pending => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn local() -> (Utp, SocketAddr) {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let addr = socket.local_addr().unwrap();
        (Utp::start(socket).unwrap(), addr)
    }

    /// Writes everything and waits until it is out of our hands.
    async fn send(pipe: &mut UtpPipe, mut bytes: &[u8]) {
        while !bytes.is_empty() || pipe.owes() {
            pipe.ready(Interest::WRITABLE).await.unwrap();
            match pipe.try_write(bytes) {
                Ok(len) => bytes = &bytes[len..],
                Err(error) => assert_eq!(error.kind(), io::ErrorKind::WouldBlock),
            }
        }
    }

    async fn receive(pipe: &mut UtpPipe, len: usize) -> Vec<u8> {
        let mut got = Vec::new();
        let mut buf = vec![0; 100_000];
        while got.len() < len {
            pipe.ready(Interest::READABLE).await.unwrap();
            match pipe.try_read(&mut buf) {
                Ok(0) => break,
                Ok(len) => got.extend_from_slice(&buf[..len]),
                Err(error) => assert_eq!(error.kind(), io::ErrorKind::WouldBlock),
            }
        }
        got
    }

    #[tokio::test]
    async fn streams_carry_bytes_both_ways_at_once() {
        let (a, _) = local().await;
        let (b, there) = local().await;
        let bytes: Vec<u8> = (0..2_000_000_u32)
            .map(|n| (n.wrapping_mul(n) >> 9) as u8)
            .collect();
        let expected = bytes.clone();
        let answering = tokio::spawn(async move {
            let (mut pipe, _) = b.accept().await.unwrap();
            let got = receive(&mut pipe, bytes.len()).await;
            assert!(got == bytes, "{} bytes came", got.len());
            send(&mut pipe, &got).await;
            // The other side hangs up once it has all.
            assert_eq!(receive(&mut pipe, 1).await, b"");
        });
        let mut pipe = a.connect(there, Duration::from_secs(20)).await.unwrap();
        send(&mut pipe, &expected).await;
        let back = receive(&mut pipe, expected.len()).await;
        assert!(back == expected, "{} bytes came back", back.len());
        drop(pipe);
        answering.await.unwrap();
    }

    #[tokio::test]
    async fn a_lost_syn_is_sent_again() {
        let (a, _) = local().await;
        let (b, there) = local().await;
        let between = Arc::new(UdpSocket::bind("127.0.0.1:0").await.unwrap());
        let addr = between.local_addr().unwrap();
        let forwarding = tokio::spawn(async move {
            let mut datagram = [0; 2000];
            let mut caller = None;
            let mut syns = 0;
            loop {
                let (len, from) = between.recv_from(&mut datagram).await.unwrap();
                let to = if from == there {
                    caller.unwrap()
                } else {
                    there
                };
                if from != there {
                    caller = Some(from);
                }
                // Type 4 in the upper half of the first byte.
                let syn = datagram[0] >> 4 == 4;
                syns += u32::from(syn);
                if !syn || syns > 1 {
                    between.send_to(&datagram[..len], to).await.unwrap();
                }
            }
        });
        let answering = tokio::spawn(async move {
            let (mut pipe, _) = b.accept().await.unwrap();
            receive(&mut pipe, 5).await
        });
        let mut pipe = a.connect(addr, Duration::from_secs(20)).await.unwrap();
        send(&mut pipe, b"hello").await;
        assert_eq!(answering.await.unwrap(), b"hello");
        forwarding.abort();
    }

    #[tokio::test]
    async fn nobody_there_is_an_error_in_time() {
        let (a, _) = local().await;
        let silent = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let there = silent.local_addr().unwrap();
        let outcome = a.connect(there, Duration::from_millis(100)).await;
        assert_eq!(outcome.unwrap_err().kind(), io::ErrorKind::TimedOut);
    }
}
