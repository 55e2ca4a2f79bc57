//! How a torrent's peer is called: by TCP or uTP, with encryption or without, and what it was found to want.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::OnceLock;
use std::time::Duration;

use bytes::BytesMut;
use parking_lot::Mutex;

use super::greet::{self, GreetError};
use super::stream::PeerStream;
use super::utp::Utp;
use crate::clock::Elapsed;
use crate::net;
use crate::proto::handshake::Handshake;
use crate::proto::mse::Encryption;

/// Time a call has to be answered.
pub(super) const CONNECT_TIME: Duration = Duration::from_secs(10);
/// TCP alone is tried for this long; then uTP as well.
const TCP_TIME: Duration = Duration::from_secs(1);
/// Time for an answer by uTP where TCP was refused.
const UTP_TIME: Duration = Duration::from_secs(2);
/// Time an encrypted handshake of ours may take, where a plain one may follow.
const ENCRYPTION_TIME: Duration = Duration::from_secs(4);
/// How a peer has to be called is believed for this long.
const HABIT_TIME: Duration = Duration::from_secs(3600);
/// Such peers remembered.
const HABITS_MAX: usize = 4096;

/// See the module documentation.
pub(super) struct Caller {
    encryption: Encryption,
    clock: Elapsed,
    /// Once we listen for it, if it is wanted.
    utp: OnceLock<Utp>,
    /// Peers that are not called like others, and until when.
    habits: Mutex<HashMap<SocketAddr, (Habit, Duration)>>,
}

/// How a peer is called. Others answer encrypted handshakes by TCP.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Habit {
    /// It does not answer encrypted handshakes.
    plain: bool,
    /// It takes connections by TCP and says nothing on them: some have only uTP behind an open port.
    utp: bool,
}

/// A connection to a peer.
pub(super) struct Reached {
    pub(super) stream: PeerStream,
    /// What it has said so far.
    pub(super) inbuf: BytesMut,
    /// It has our handshake.
    pub(super) said: bool,
}

impl Caller {
    pub(super) fn new(encryption: Encryption) -> Self {
        Self {
            encryption,
            clock: Elapsed::start(),
            utp: OnceLock::new(),
            habits: Mutex::default(),
        }
    }

    /// From now on peers are called by uTP too.
    pub(super) fn use_utp(&self, utp: Utp) {
        self.utp.get_or_init(|| utp);
    }

    /// Calls a peer, as far as encryption goes.
    pub(super) async fn reach(
        &self,
        addr: SocketAddr,
        ours: &Handshake,
    ) -> Result<Reached, GreetError> {
        let habit = self.habit(addr);
        let hides = match self.encryption {
            Encryption::Off => false,
            Encryption::Prefer => !habit.plain,
            Encryption::Require => true,
        };
        let mut stream = self.connect(addr, habit).await?;
        let mut inbuf = BytesMut::new();
        if !hides {
            return Ok(Reached {
                stream,
                inbuf,
                said: false,
            });
        }
        let call = greet::call(&mut stream, &mut inbuf, self.encryption, ours);
        let called = tokio::time::timeout(ENCRYPTION_TIME, call).await;
        match called.unwrap_or_else(|_| Err(io::Error::from(io::ErrorKind::TimedOut).into())) {
            Ok(()) => Ok(Reached {
                stream,
                inbuf,
                said: true,
            }),
            Err(error) if self.encryption == Encryption::Require => {
                self.failed(addr, &stream);
                Err(error)
            }
            Err(error) => {
                tracing::debug!(%addr, %error, "no encryption, so without");
                let habit = Habit {
                    plain: true,
                    ..habit
                };
                self.learn(addr, habit);
                Ok(Reached {
                    stream: self.connect(addr, habit).await?,
                    inbuf: BytesMut::new(),
                    said: false,
                })
            }
        }
    }

    /// A connection came about and nothing came of it: the next one is by the other protocol.
    pub(super) fn failed(&self, addr: SocketAddr, stream: &PeerStream) {
        let utp = stream.is_tcp();
        self.learn(addr, Habit { plain: false, utp });
    }

    /// By TCP, or else by uTP. The error is that of TCP.
    async fn connect(&self, addr: SocketAddr, habit: Habit) -> io::Result<PeerStream> {
        let mut tcp = std::pin::pin!(net::tcp_connect(addr, CONNECT_TIME));
        let Some(utp) = self.utp.get() else {
            return tcp.await.map(Into::into);
        };
        if habit.utp
            && let Ok(pipe) = utp.connect(addr, UTP_TIME).await
        {
            return Ok(pipe.into());
        }
        match tokio::time::timeout(TCP_TIME, &mut tcp).await {
            Ok(Ok(stream)) => Ok(stream.into()),
            Ok(Err(error)) => match utp.connect(addr, UTP_TIME).await {
                Ok(pipe) => Ok(pipe.into()),
                Err(_) => Err(error),
            },
            Err(_) => {
                let mut other = std::pin::pin!(utp.connect(addr, CONNECT_TIME));
                tokio::select! {
                    stream = &mut tcp => match stream {
                        Ok(stream) => Ok(stream.into()),
                        Err(error) => other.await.map_or(Err(error), |pipe| Ok(pipe.into())),
                    },
                    pipe = &mut other => match pipe {
                        Ok(pipe) => Ok(pipe.into()),
                        Err(_) => tcp.await.map(Into::into),
                    },
                }
            }
        }
    }

    fn habit(&self, addr: SocketAddr) -> Habit {
        let now = self.clock.now();
        let habits = self.habits.lock();
        let known = habits.get(&addr).filter(|(_, until)| *until > now);
        known.map(|(habit, _)| *habit).unwrap_or_default()
    }

    fn learn(&self, addr: SocketAddr, habit: Habit) {
        let now = self.clock.now();
        let mut habits = self.habits.lock();
        habits.retain(|_, (_, until)| *until > now);
        habits.remove(&addr);
        if habit != Habit::default() && habits.len() < HABITS_MAX {
            habits.insert(addr, (habit, now + HABIT_TIME));
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    /// A peer that hangs up on whoever calls, and says how often it was called.
    async fn deaf() -> (SocketAddr, tokio::sync::mpsc::UnboundedReceiver<()>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let (calls, called) = tokio::sync::mpsc::unbounded_channel();
        tokio::spawn(async move {
            while listener.accept().await.is_ok() {
                calls.send(()).unwrap();
            }
        });
        (addr, called)
    }

    #[tokio::test]
    async fn who_does_not_answer_encryption_is_called_without_at_once_and_later() {
        let (addr, mut called) = deaf().await;
        let ours = Handshake::for_torrent([1; 20], [2; 20]);
        let caller = Caller::new(Encryption::Prefer);
        for calls in [2, 1] {
            let reached = caller.reach(addr, &ours).await.unwrap();
            assert!(!reached.said);
            for _ in 0..calls {
                called.recv().await.unwrap();
            }
        }
        caller.reach(addr, &ours).await.unwrap();
        called.recv().await.unwrap();
        assert!(called.try_recv().is_err(), "one call too many");
        let strict = Caller::new(Encryption::Require);
        assert!(strict.reach(addr, &ours).await.is_err());
    }

    #[tokio::test]
    async fn who_hangs_up_on_tcp_is_called_by_utp() {
        let (addr, _called) = deaf().await;
        let open = |addr| async move {
            let socket = tokio::net::UdpSocket::bind(addr).await.unwrap();
            Utp::start(socket).unwrap()
        };
        let theirs = open(addr).await;
        let caller = Caller::new(Encryption::Off);
        caller.use_utp(open("127.0.0.1:0".parse().unwrap()).await);
        let ours = Handshake::for_torrent([1; 20], [2; 20]);
        let reached = caller.reach(addr, &ours).await.unwrap();
        assert!(reached.stream.is_tcp());
        caller.failed(addr, &reached.stream);
        let answering = tokio::spawn(async move { theirs.accept().await.map(drop) });
        let reached = caller.reach(addr, &ours).await.unwrap();
        assert!(!reached.stream.is_tcp());
        answering.await.unwrap().unwrap();
    }
}
