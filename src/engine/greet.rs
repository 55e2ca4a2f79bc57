//! The beginning of a torrent's connection: the encryption it may begin with, as the one who calls and as the one called.

use std::io;

use bytes::BytesMut;
use thiserror::Error;

use super::stream::PeerStream;
use crate::proto::handshake::Handshake;
use crate::proto::mse::{Done, Encryption, Keys, Lookup, Mse, MseError};
use crate::random;

/// Why no encrypted connection came about.
#[derive(Debug, Error)]
pub(super) enum GreetError {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error(transparent)]
    Mse(#[from] MseError),
    #[error("a job of ours panicked")]
    Panicked(#[from] tokio::task::JoinError),
}

/// Begins encryption for the torrent of `ours`, which is sent along. What comes of the layer above is in `inbuf` then.
pub(super) async fn call(
    stream: &mut PeerStream,
    inbuf: &mut BytesMut,
    encryption: Encryption,
    ours: &Handshake,
) -> Result<(), GreetError> {
    let keys = tokio::task::spawn_blocking(|| Keys::generate(&mut random::fill)).await?;
    let initial = ours.encode().to_vec();
    let mut mse = Mse::call(keys, ours.info_hash, encryption, initial, &mut random::fill);
    let done = drive(stream, inbuf, &mut mse).await?;
    begin(stream, inbuf, done);
    Ok(())
}

/// Answers a caller whose first bytes are in `inbuf`. Returns the info-hash that both know.
pub(super) async fn answer(
    stream: &mut PeerStream,
    inbuf: &mut BytesMut,
    encryption: Encryption,
    lookup: Lookup,
) -> Result<[u8; 20], GreetError> {
    let mut mse = Mse::answer(encryption, lookup, &mut random::fill);
    let done = drive(stream, inbuf, &mut mse).await?;
    let torrent = done.torrent;
    begin(stream, inbuf, done);
    Ok(torrent)
}

async fn drive(
    stream: &mut PeerStream,
    inbuf: &mut BytesMut,
    mse: &mut Mse,
) -> Result<Done, GreetError> {
    loop {
        if let Some(work) = mse.poll_work() {
            let job = tokio::task::spawn_blocking(move || work.run(&mut random::fill));
            mse.handle_work(job.await?);
        }
        while let Some(out) = mse.poll_transmit() {
            stream.write_all(&out).await?;
        }
        if let Some(outcome) = mse.poll_outcome() {
            return Ok(outcome?);
        }
        if inbuf.is_empty() && stream.read_some(inbuf).await? == 0 {
            return Err(GreetError::Io(io::ErrorKind::UnexpectedEof.into()));
        }
        mse.handle_input(inbuf);
        inbuf.clear();
    }
}

fn begin(stream: &mut PeerStream, inbuf: &mut BytesMut, done: Done) {
    if let Some(ciphers) = done.ciphers {
        stream.encrypt(ciphers);
    }
    inbuf.extend_from_slice(&done.early);
}

/// Reads until `len` bytes are there, or what is there begins no handshake: that is for whoever looks at it next to refuse.
pub(super) async fn read_until(
    stream: &mut PeerStream,
    inbuf: &mut BytesMut,
    len: usize,
) -> io::Result<()> {
    while inbuf.len() < len && Handshake::decode(inbuf).is_ok() {
        if stream.read_some(inbuf).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
    Ok(())
}

/// Reads on without an answer until the other side hangs up or our patience ends: whoever tries out what is here learns
/// nothing from how it fails.
pub(super) async fn ignore(stream: &mut PeerStream) -> io::Result<()> {
    let mut nothing = BytesMut::new();
    while stream.read_some(&mut nothing).await? > 0 {
        nothing.clear();
    }
    Err(io::ErrorKind::UnexpectedEof.into())
}
