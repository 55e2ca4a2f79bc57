//! A torrent peer's connection, whatever carries it: TCP or uTP, plain or under RC4.
//!
//! It is used like a socket that does not block: [`PeerStream::ready`], then `try_read` and `try_write`. What has been
//! encrypted cannot be encrypted again, so `try_write` keeps what the socket did not take, and [`PeerStream::owes`] says
//! that it has to be called again.

use std::io;

use bytes::{Buf, BytesMut};
use tokio::io::{Interest, Ready};
use tokio::net::TcpStream;

use super::utp::UtpPipe;
use crate::proto::mse::Ciphers;

/// Bytes encrypted ahead of the socket.
const ENCRYPTED_BYTES_MAX: usize = 64 << 10;
/// Read at once during handshakes.
const HANDSHAKE_READ_BYTES: usize = 4096;

/// See the module documentation.
#[derive(Debug)]
pub(super) struct PeerStream {
    pipe: Pipe,
    crypt: Option<Box<Crypt>>,
}

#[derive(Debug)]
enum Pipe {
    Tcp(TcpStream),
    Utp(Box<UtpPipe>),
}

#[derive(Debug)]
struct Crypt {
    ciphers: Ciphers,
    /// Encrypted, and not taken by the pipe.
    unsent: BytesMut,
}

impl From<TcpStream> for PeerStream {
    fn from(socket: TcpStream) -> Self {
        Self {
            pipe: Pipe::Tcp(socket),
            crypt: None,
        }
    }
}

impl From<UtpPipe> for PeerStream {
    fn from(pipe: UtpPipe) -> Self {
        Self {
            pipe: Pipe::Utp(Box::new(pipe)),
            crypt: None,
        }
    }
}

impl Pipe {
    fn try_write(&mut self, buf: &[u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(socket) => socket.try_write(buf),
            Self::Utp(pipe) => pipe.try_write(buf),
        }
    }
}

impl PeerStream {
    /// From the next byte on everything is encrypted.
    pub(super) fn encrypt(&mut self, ciphers: Ciphers) {
        self.crypt = Some(Box::new(Crypt {
            ciphers,
            unsent: BytesMut::new(),
        }));
    }

    /// The socket, if bytes may go to it from elsewhere: by `sendfile`.
    pub(super) fn sendfile_target(&self) -> Option<&TcpStream> {
        match &self.pipe {
            Pipe::Tcp(socket) if self.crypt.is_none() => Some(socket),
            _ => None,
        }
    }

    pub(super) fn is_tcp(&self) -> bool {
        matches!(self.pipe, Pipe::Tcp(_))
    }

    /// The socket of a connection that is no torrent's.
    pub(super) fn into_tcp(self) -> Option<TcpStream> {
        match self.pipe {
            Pipe::Tcp(socket) if self.crypt.is_none() => Some(socket),
            _ => None,
        }
    }

    /// Returns when something of `interest` may be possible.
    pub(super) async fn ready(&mut self, interest: Interest) -> io::Result<Ready> {
        match &mut self.pipe {
            Pipe::Tcp(socket) => socket.ready(interest).await,
            Pipe::Utp(pipe) => pipe.ready(interest).await,
        }
    }

    /// Reads what is there.
    pub(super) fn try_read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let len = match &mut self.pipe {
            Pipe::Tcp(socket) => socket.try_read(buf)?,
            Pipe::Utp(pipe) => pipe.try_read(buf)?,
        };
        if let (Some(crypt), Some(read)) = (&mut self.crypt, buf.get_mut(..len)) {
            crypt.ciphers.incoming.apply(read);
        }
        Ok(len)
    }

    /// Takes bytes to be sent; less than all of them if the socket is full.
    pub(super) fn try_write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let Some(crypt) = &mut self.crypt else {
            return self.pipe.try_write(buf);
        };
        crypt.flush(&mut self.pipe)?;
        if !crypt.unsent.is_empty() {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let taken = buf.get(..ENCRYPTED_BYTES_MAX).unwrap_or(buf);
        crypt.unsent.extend_from_slice(taken);
        crypt.ciphers.outgoing.apply(&mut crypt.unsent);
        crypt.flush(&mut self.pipe)?;
        Ok(taken.len())
    }

    /// Whether bytes that were taken wait for the socket.
    pub(super) fn owes(&self) -> bool {
        let encrypted = self.crypt.as_ref().is_some_and(|c| !c.unsent.is_empty());
        let below = matches!(&self.pipe, Pipe::Utp(pipe) if pipe.owes());
        encrypted || below
    }

    /// Sends what it owes, as far as that goes.
    pub(super) fn try_flush(&mut self) -> io::Result<()> {
        if let Pipe::Utp(pipe) = &mut self.pipe {
            pipe.try_flush()?;
        }
        match &mut self.crypt {
            Some(crypt) => crypt.flush(&mut self.pipe),
            None => Ok(()),
        }
    }

    /// Reads something behind what is in `into`; 0 at the end.
    pub(super) async fn read_some(&mut self, into: &mut BytesMut) -> io::Result<usize> {
        let mut bytes = [0; HANDSHAKE_READ_BYTES];
        loop {
            self.ready(Interest::READABLE).await?;
            match self.try_read(&mut bytes) {
                Ok(len) => {
                    into.extend_from_slice(bytes.get(..len).unwrap_or_default());
                    return Ok(len);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
    }

    pub(super) async fn write_all(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() || self.owes() {
            self.ready(Interest::WRITABLE).await?;
            let written = match bytes.is_empty() {
                true => self.try_flush().map(|()| 0),
                false => self.try_write(bytes),
            };
            match written {
                Ok(len) => bytes.advance(len),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

impl Crypt {
    fn flush(&mut self, pipe: &mut Pipe) -> io::Result<()> {
        while !self.unsent.is_empty() {
            match pipe.try_write(&self.unsent) {
                Ok(len) => self.unsent.advance(len),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::mse::{Done, Encryption, Keys, Mse, obfuscated};
    use crate::random;

    const TORRENT: [u8; 20] = [4; 20];

    async fn pair() -> (PeerStream, PeerStream) {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let there = listener.local_addr().unwrap();
        let (a, b) = tokio::join!(TcpStream::connect(there), listener.accept());
        let (a, b) = (a.unwrap(), b.unwrap().0);
        // Small, so that writes are partial.
        socket2::SockRef::from(&a)
            .set_send_buffer_size(4096)
            .unwrap();
        (a.into(), b.into())
    }

    fn agreed() -> (Done, Done) {
        let find = |name: &[u8; 20]| (*name == obfuscated(&TORRENT)).then_some(TORRENT);
        let keys = Keys::generate(&mut random::fill);
        let mut sides = [
            Mse::call(
                keys,
                TORRENT,
                Encryption::Require,
                Vec::new(),
                &mut random::fill,
            ),
            Mse::answer(Encryption::Require, Box::new(find), &mut random::fill),
        ];
        for n in 0..4 {
            let out = sides[n % 2].poll_transmit().unwrap();
            let to = &mut sides[(n + 1) % 2];
            to.handle_input(&out);
            if let Some(work) = to.poll_work() {
                let worked = work.run(&mut random::fill);
                to.handle_work(worked);
            }
        }
        sides
            .map(|mut side| side.poll_outcome().unwrap().unwrap())
            .into()
    }

    #[tokio::test]
    async fn encrypted_bytes_keep_their_order_over_partial_writes() {
        let (mut from, mut to) = pair().await;
        let (a, b) = agreed();
        assert!(from.sendfile_target().is_some());
        from.encrypt(a.ciphers.unwrap());
        to.encrypt(b.ciphers.unwrap());
        assert!(from.sendfile_target().is_none());
        let sent: Vec<u8> = (0..3_000_000_u32)
            .map(|n| (n.wrapping_mul(n) >> 7) as u8)
            .collect();
        let expected = sent.clone();
        let writing = tokio::spawn(async move {
            let mut left = &sent[..];
            let mut owed = false;
            // Odd steps, so that what is kept and what comes next meet anywhere.
            while !left.is_empty() {
                let step = &left[..left.len().min(70_001)];
                match from.try_write(step) {
                    Ok(len) => left = &left[len..],
                    Err(error) => assert_eq!(error.kind(), io::ErrorKind::WouldBlock),
                }
                if from.owes() {
                    owed = true;
                    from.ready(Interest::WRITABLE).await.unwrap();
                }
            }
            from.write_all(&[]).await.unwrap();
            assert!(owed, "no write was partial");
        });
        let mut got = BytesMut::new();
        while to.read_some(&mut got).await.unwrap() > 0 {}
        writing.await.unwrap();
        assert!(got == expected[..]);
    }
}
