//! One task per connection of a torrent: reads messages, writes messages, sends blocks from the disk.
//!
//! It decides nothing. What comes goes to the torrent's actor in the order it came, blocks as slices of the receive buffer;
//! what the actor says goes out. Where the connection is a plain socket, blocks are sent by `sendfile`, so their bytes never
//! enter this process; else they are read into a buffer of the connection.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Buf, Bytes, BytesMut};
use thiserror::Error;
use tokio::io::Interest;
use tokio::sync::mpsc;

use super::disk::DiskTorrent;
use super::slab::{SLAB_BYTES, Slab, SlabPool};
use super::storage::Part;
use super::web::FromWeb;
use crate::engine::limits::{Limits, Way};
use crate::engine::stream::PeerStream;
use crate::proto::blocks::Block;
use crate::proto::scheduler::PeerKey;
use crate::proto::wire::{self, Message, WireError, WireLimits};

/// Reads that fill less than this are copied out, so that a slow peer's blocks do not hold whole buffers.
const SHARE_BYTES_MIN: usize = 48 << 10;
/// Longest bitfield taken: 8 million pieces.
const BITFIELD_BYTES_MAX: u32 = 1 << 20;
/// Messages waiting to be written; a peer that reads nothing while we owe it this much is closed.
const UNREAD_BYTES_MAX: usize = 4 << 20;
/// Zeros that stand for a gap, sent in steps of this many bytes.
const ZEROS: &[u8] = &[0; 16 << 10];
/// A block's bytes are read in steps of this many where they cannot be sent from the file.
const COPY_BYTES: usize = 16 << 10;
/// Time for the last messages when we close.
const FLUSH_TIME: Duration = Duration::from_millis(200);

/// What a connection tells the actor.
pub(super) enum FromPeer {
    /// Messages in the order they came; never empty.
    Said(PeerKey, Vec<Message<Bytes>>),
    /// Blocks were sent, or refused with no bytes.
    Served {
        key: PeerKey,
        blocks: u32,
        bytes: u64,
    },
    /// The piece is not on disk as it should be.
    Unreadable(u32),
    Down(PeerKey, PeerEnd),
    /// It is a web seed.
    Web(PeerKey, FromWeb),
    /// Blocks that another torrent had.
    Held(Vec<(Block, Bytes)>),
    /// There are no more of them.
    HeldDone,
}

/// What the actor tells a connection.
pub(super) enum ToPeer {
    Send(Message<Bytes>),
    Serve(Block),
    Unserve(Block),
    UnserveAll,
    /// From now on blocks can be served.
    Disk(Arc<DiskTorrent>),
}

/// Why a connection ended.
#[derive(Debug, Error)]
pub(super) enum PeerEnd {
    #[error("the connection broke: {0}")]
    Io(#[from] io::Error),
    #[error("the peer closed the connection")]
    Eof,
    #[error("the peer broke the protocol: {0}")]
    Wire(#[from] WireError),
    #[error("the peer reads nothing")]
    Stuck,
    #[error("closed by us")]
    Closed,
}

/// A connection whose handshakes are done.
pub(super) struct Connection {
    pub(super) key: PeerKey,
    pub(super) stream: PeerStream,
    /// What came behind the handshake.
    pub(super) early: Vec<u8>,
    pub(super) fast: bool,
    pub(super) slabs: SlabPool,
    pub(super) limits: Limits,
    pub(super) events: mpsc::Sender<FromPeer>,
    pub(super) commands: mpsc::UnboundedReceiver<Vec<ToPeer>>,
}

/// Runs a connection until it ends, and says so.
pub(super) async fn run(mut connection: Connection) {
    let mut task = Task {
        fast: connection.fast,
        limits: connection.limits.clone(),
        carry: std::mem::take(&mut connection.early),
        out: BytesMut::new(),
        queue: VecDeque::new(),
        sending: None,
        disk: None,
        served: (0, 0),
        unreadable: None,
    };
    let end = match task.run(&mut connection).await {
        Ok(()) => PeerEnd::Closed,
        Err(end) => end,
    };
    task.report(&connection).await;
    let down = FromPeer::Down(connection.key, end);
    drop(connection.events.send(down).await);
}

struct Task {
    fast: bool,
    limits: Limits,
    /// The beginning of a message whose rest has not come.
    carry: Vec<u8>,
    out: BytesMut,
    queue: VecDeque<Block>,
    sending: Option<Sending>,
    disk: Option<Arc<DiskTorrent>>,
    /// Blocks and bytes not reported yet.
    served: (u32, u64),
    /// A piece that could not be read, not reported yet.
    unreadable: Option<u32>,
}

/// A block on its way out. Until it is done, messages wait.
struct Sending {
    /// What is left of the message's head.
    head: BytesMut,
    parts: VecDeque<Part>,
    bytes: u64,
}

impl Task {
    async fn run(&mut self, connection: &mut Connection) -> Result<(), PeerEnd> {
        if !self.carry.is_empty() {
            self.take(connection, None, 0).await?;
        }
        loop {
            self.report(connection).await;
            let (interest, wake) = self.interest(connection.stream.owes());
            tokio::select! {
                biased;
                commands = connection.commands.recv() => match commands {
                    Some(commands) => self.commands(commands)?,
                    None => return self.flush(&mut connection.stream).await,
                },
                ready = connection.stream.ready(interest.unwrap_or(Interest::READABLE)), if interest.is_some() => {
                    let ready = ready?;
                    if ready.is_writable() && (self.wants_to_write() || connection.stream.owes()) {
                        self.write(&mut connection.stream)?;
                    }
                    if ready.is_readable() && self.limits.ready_at(Way::Down).is_none() {
                        self.read(connection).await?;
                    }
                }
                () = tokio::time::sleep_until(wake.unwrap_or_else(Instant::now).into()), if wake.is_some() => {}
            }
            if !self.out.is_empty() {
                self.write(&mut connection.stream)?;
            }
        }
    }

    /// What to wait for on the socket, and when a limit lets more through.
    fn interest(&self, owes: bool) -> (Option<Interest>, Option<Instant>) {
        let down = self.limits.ready_at(Way::Down);
        let up = self
            .waits_to_serve()
            .then(|| self.limits.ready_at(Way::Up))
            .flatten();
        let read = down.is_none().then_some(Interest::READABLE);
        let write = (owes || self.wants_to_write()).then_some(Interest::WRITABLE);
        let interest = match (read, write) {
            (Some(read), Some(write)) => Some(read | write),
            (read, write) => read.or(write),
        };
        (interest, [down, up].into_iter().flatten().min())
    }

    fn waits_to_serve(&self) -> bool {
        self.disk.is_some() && !self.queue.is_empty()
    }

    fn wants_to_write(&self) -> bool {
        let blocks = self.waits_to_serve() && self.limits.ready_at(Way::Up).is_none();
        !self.out.is_empty() || self.sending.is_some() || blocks
    }

    fn commands(&mut self, commands: Vec<ToPeer>) -> Result<(), PeerEnd> {
        for command in commands {
            match command {
                ToPeer::Send(message) => self.put(&message),
                ToPeer::Serve(block) => self.queue.push_back(block),
                ToPeer::Unserve(block) => {
                    if let Some(n) = self.queue.iter().position(|queued| *queued == block) {
                        self.queue.remove(n);
                        self.refuse(block);
                    }
                }
                ToPeer::UnserveAll => {
                    for block in std::mem::take(&mut self.queue) {
                        self.refuse(block);
                    }
                }
                ToPeer::Disk(disk) => self.disk = Some(disk),
            }
        }
        match self.out.len() > UNREAD_BYTES_MAX {
            true => Err(PeerEnd::Stuck),
            false => Ok(()),
        }
    }

    fn put(&mut self, message: &Message<Bytes>) {
        message.encode(&mut self.out);
    }

    fn refuse(&mut self, block: Block) {
        self.served.0 += 1;
        if self.fast {
            self.put(&Message::Reject(block));
        }
    }

    async fn report(&mut self, connection: &Connection) {
        let (blocks, bytes) = std::mem::take(&mut self.served);
        if blocks > 0 {
            let key = connection.key;
            let served = FromPeer::Served { key, blocks, bytes };
            drop(connection.events.send(served).await);
        }
        if let Some(piece) = self.unreadable.take() {
            drop(connection.events.send(FromPeer::Unreadable(piece)).await);
        }
    }

    /// Reads what is there and hands it on.
    async fn read(&mut self, connection: &mut Connection) -> Result<(), PeerEnd> {
        let needed = wire::needed(&self.carry).unwrap_or(0);
        if needed > SLAB_BYTES {
            return self.read_large(connection, needed).await;
        }
        let Some(mut slab) = connection.slabs.take().await else {
            return Err(PeerEnd::Closed);
        };
        let mut filled = self.carry.len();
        if let Some(begin) = slab.as_mut().get_mut(..filled) {
            begin.copy_from_slice(&self.carry);
        }
        let carried = self.carry.len();
        self.carry.clear();
        let full = carried
            .saturating_add(self.limits.turn_bytes(Way::Down))
            .min(SLAB_BYTES);
        let ended = loop {
            let room = slab.as_mut().get_mut(filled..full).unwrap_or_default();
            if room.is_empty() {
                break None;
            }
            match connection.stream.try_read(room) {
                Ok(0) => break Some(PeerEnd::Eof),
                Ok(n) => filled += n,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break None,
                Err(error) => break Some(error.into()),
            }
        };
        self.limits.passed(Way::Down, (filled - carried) as u64);
        self.take(connection, Some(slab), filled).await?;
        ended.map_or(Ok(()), Err)
    }

    /// A message longer than a buffer: the bitfield of a very large torrent.
    async fn read_large(
        &mut self,
        connection: &mut Connection,
        needed: usize,
    ) -> Result<(), PeerEnd> {
        // Its header has been checked when the carry was made.
        let mut chunk = vec![0; (needed - self.carry.len()).min(SLAB_BYTES)];
        match connection.stream.try_read(&mut chunk) {
            Ok(0) => return Err(PeerEnd::Eof),
            Ok(n) => {
                self.limits.passed(Way::Down, n as u64);
                self.carry
                    .extend_from_slice(chunk.get(..n).unwrap_or_default());
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Err(error.into()),
        }
        self.take(connection, None, 0).await
    }

    /// Cuts messages out of the buffer, or else out of what was carried over, and keeps the rest.
    async fn take(
        &mut self,
        connection: &Connection,
        slab: Option<Slab>,
        filled: usize,
    ) -> Result<(), PeerEnd> {
        let bytes = match slab {
            Some(slab) if filled >= SHARE_BYTES_MIN => slab.freeze().slice(..filled),
            Some(slab) => {
                let bytes = slab.as_slice().get(..filled).unwrap_or_default().to_vec();
                // Others may read while this one waits.
                drop(slab);
                match connection.slabs.keep(bytes).await {
                    Some(bytes) => bytes,
                    None => return Err(PeerEnd::Closed),
                }
            }
            None => std::mem::take(&mut self.carry).into(),
        };
        let limits = WireLimits {
            bitfield_bytes: BITFIELD_BYTES_MAX,
        };
        let mut messages = Vec::new();
        let mut rest = bytes.as_ref();
        let wrong = loop {
            match wire::decode(rest, limits) {
                Ok(Some((message, taken))) => {
                    messages.push(message.map(|payload| bytes.slice_ref(payload)));
                    rest.advance(taken);
                }
                Ok(None) => break None,
                Err(error) => break Some(error),
            }
        };
        self.carry = rest.to_vec();
        if !messages.is_empty() {
            let said = FromPeer::Said(connection.key, messages);
            drop(connection.events.send(said).await);
        }
        wrong.map_or(Ok(()), |error| Err(error.into()))
    }

    /// Writes as much as the socket takes.
    fn write(&mut self, stream: &mut PeerStream) -> Result<(), PeerEnd> {
        stream.try_flush()?;
        loop {
            if let (Some(sending), Some(disk)) = (&mut self.sending, &self.disk) {
                if !send_head(stream, &mut sending.head)? || !send_block(stream, disk, sending)? {
                    return Ok(());
                }
                self.served.0 += 1;
                self.served.1 += sending.bytes;
                self.sending = None;
            }
            while !self.out.is_empty() {
                match stream.try_write(&self.out) {
                    Ok(n) => self.out.advance(n),
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                    Err(error) => return Err(error.into()),
                }
            }
            let Some(disk) = &self.disk else {
                return Ok(());
            };
            if self.limits.ready_at(Way::Up).is_some() {
                return Ok(());
            }
            let Some(block) = self.queue.pop_front() else {
                return Ok(());
            };
            let offset = disk.layout.offset(block.piece) + u64::from(block.begin);
            let parts = disk.storage.parts(offset, block.length.into());
            // Found out before the head is sent: what follows it cannot be taken back.
            if !disk.storage.is_readable(&parts) {
                self.unreadable = Some(block.piece);
                if !self.fast {
                    // It knows no word for this and would wait.
                    return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
                }
                self.refuse(block);
                continue;
            }
            self.limits.passed(Way::Up, block.length.into());
            let mut head = BytesMut::new();
            wire::put_piece_head(&mut head, &block);
            self.sending = Some(Sending {
                head,
                parts: parts.into(),
                bytes: block.length.into(),
            });
        }
    }

    /// Sends what is left, if the socket takes it soon.
    async fn flush(&mut self, stream: &mut PeerStream) -> Result<(), PeerEnd> {
        let all = async {
            while !self.out.is_empty() || self.sending.is_some() || stream.owes() {
                self.queue.clear();
                stream.ready(Interest::WRITABLE).await?;
                self.write(stream)?;
            }
            Ok(())
        };
        tokio::time::timeout(FLUSH_TIME, all)
            .await
            .unwrap_or(Ok(()))
    }
}

/// Sends the head of a block, in one packet with what follows; true when it is out.
fn send_head(stream: &mut PeerStream, head: &mut BytesMut) -> Result<bool, PeerEnd> {
    let flags = rustix::net::SendFlags::MORE | rustix::net::SendFlags::NOSIGNAL;
    while !head.is_empty() {
        let sent = match stream.sendfile_target() {
            Some(socket) => socket.try_io(Interest::WRITABLE, || {
                rustix::net::send(socket.as_fd(), head, flags).map_err(io::Error::from)
            }),
            None => stream.try_write(head),
        };
        match sent {
            Ok(n) => head.advance(n),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(true)
}

/// Sends more of a block; true when it is out.
fn send_block(
    stream: &mut PeerStream,
    disk: &DiskTorrent,
    sending: &mut Sending,
) -> Result<bool, PeerEnd> {
    while let Some(part) = sending.parts.front_mut() {
        let sent = match part.file {
            Some(number) => {
                let file = disk.storage.file(number)?;
                send_file(stream, &file, part.at, part.len)
            }
            None => {
                let zeros = ZEROS.get(..ZEROS.len().min(part.len as usize));
                stream.try_write(zeros.unwrap_or_default())
            }
        };
        match sent {
            Ok(n) => {
                part.at += n as u64;
                part.len -= n as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
            Err(error) => return Err(error.into()),
        }
        if part.len == 0 {
            sending.parts.pop_front();
        }
    }
    Ok(true)
}

/// Sends some of `len` bytes of a file. That the file has become shorter than when its pieces were checked is an error.
fn send_file(stream: &mut PeerStream, file: &File, mut at: u64, len: u64) -> io::Result<usize> {
    let count = usize::try_from(len).unwrap_or(usize::MAX);
    let sent = match stream.sendfile_target() {
        Some(socket) => socket.try_io(Interest::WRITABLE, || {
            rustix::fs::sendfile(socket.as_fd(), file, Some(&mut at), count)
                .map_err(io::Error::from)
        })?,
        None => {
            stream.try_flush()?;
            if stream.owes() {
                return Err(io::ErrorKind::WouldBlock.into());
            }
            let mut bytes = [0; COPY_BYTES];
            let room = count.min(COPY_BYTES);
            let read = file.read_at(bytes.get_mut(..room).unwrap_or_default(), at)?;
            match bytes.get(..read).unwrap_or_default() {
                [] => 0,
                read => stream.try_write(read)?,
            }
        }
    };
    match sent {
        0 if count > 0 => Err(io::ErrorKind::UnexpectedEof.into()),
        sent => Ok(sent),
    }
}
