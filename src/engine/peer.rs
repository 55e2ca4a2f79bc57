//! One task per connection: owns the socket and the session, serves what the peer asks, stores what it sends.
//!
//! Bulk data never passes through the folder's actor. A chunk that arrives is hashed and stored by a job on the blocking
//! pool, and the actor hears only its name; a chunk that is asked for is read by a job and goes straight to the session. Both
//! directions are bounded: at most [`STORE_JOBS_MAX`] batches are being stored before the socket is read again, and
//! nothing is read from the store while [`QUEUED_BYTES_MAX`] wait to be sent. What a member tells us unasked goes to the actor
//! on credit: while the actor is behind with what this peer said, its socket is not read.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::{Bytes, BytesMut};
use ccbt_xet::chunk::MAX_CHUNK;
use ccbt_xet::codec::{self, Scheme};
use ccbt_xet::hash::node_id;
use ccbt_xet::store::Store;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::allowance::{self, Allowance};
use super::serve::{ServeQueue, Wanted};
use super::swarm::{Credit, PeerEvents};
use crate::clock::Elapsed;
use crate::proto::scheduler::{Item, PeerKey, Priority};
use crate::proto::session::{Event, Session};
use crate::proto::ut_xet::{
    Chunk, Frame, Get, Indexes, NODE_LEN_MAX, Obj, ObjCodec, ObjectRef, Want,
};

use crate::telemetry::Metrics;

pub use crate::proto::session::PeerInfo;

/// Bytes read from the socket at once.
const READ_BYTES: usize = 256 * 1024;
/// Encrypted bytes gathered before they are written.
const WRITE_BYTES: usize = 512 * 1024;
/// Bytes waiting to be sent beyond which nothing more is read from the store.
const QUEUED_BYTES_MAX: usize = 1 << 20;
/// A peer that lets this much wait is closed: news would pile up without end.
const UNREAD_BYTES_MAX: usize = 16 << 20;
/// Received bytes that make a batch worth a job of its own.
const BATCH_BYTES: usize = 512 * 1024;
/// Batches being hashed and stored at once, per connection.
const STORE_JOBS_MAX: usize = 2;
/// Chunks read from the store by one job.
const SERVE_BATCH: usize = 8;
/// Jobs reading for one connection at once: one reads while the other's chunks are being sent.
const SERVE_JOBS_MAX: usize = 2;
/// Nodes below this are sent as they are.
const COMPRESS_LEN_MIN: usize = 512;
const ZSTD_LEVEL: i32 = 1;

/// What a connection's task tells the folder's actor.
pub(super) enum FromPeer {
    Up(Box<NewPeer>),
    Frame {
        key: PeerKey,
        frame: Frame,
        /// Given back when the frame has been dealt with.
        credit: Credit,
    },
    Arrived {
        key: PeerKey,
        items: Vec<Item>,
    },
    Missed {
        key: PeerKey,
        items: Vec<Item>,
    },
    /// They came and our store could not keep them.
    NotStored {
        key: PeerKey,
        items: Vec<Item>,
        why: String,
    },
    Down {
        key: PeerKey,
        called: Option<SocketAddr>,
    },
}

/// A connection that has proven itself.
pub(super) struct NewPeer {
    pub(super) key: PeerKey,
    pub(super) info: PeerInfo,
    pub(super) addr: SocketAddr,
    /// The address we called, if we did.
    pub(super) called: Option<SocketAddr>,
    pub(super) commands: mpsc::UnboundedSender<ToPeer>,
    pub(super) counters: Arc<PeerCounters>,
}

/// What the actor tells a connection's task.
#[derive(Debug)]
pub(super) enum ToPeer {
    Send(Frame),
    Ask {
        priority: Priority,
        items: Vec<Item>,
    },
    Close,
    /// It broke a rule: close, and count it.
    Drop(&'static str),
}

/// Bytes on the socket, both ways.
#[derive(Debug, Default)]
pub struct PeerCounters {
    pub bytes_in: AtomicU64,
    pub bytes_out: AtomicU64,
}

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
pub enum PeerEnd {
    #[error("the connection broke: {0}")]
    Io(#[from] std::io::Error),
    #[error("the peer closed the connection")]
    Eof,
    #[error("{0}")]
    Session(crate::proto::session::Reason),
    #[error("the peer sent a chunk or node that is not what it was asked for")]
    Lie,
    #[error("the peer broke the protocol: {0}")]
    Protocol(&'static str),
    #[error("closed by us")]
    Closed,
    #[error("a job of ours for it panicked")]
    Panicked,
}

/// A connection that has proven itself, and what its task works with.
pub(super) struct Connection {
    pub(super) key: PeerKey,
    pub(super) stream: TcpStream,
    pub(super) session: Session,
    pub(super) clock: Elapsed,
    pub(super) store: Arc<Store>,
    pub(super) events: PeerEvents,
    pub(super) commands: mpsc::UnboundedReceiver<ToPeer>,
    pub(super) counters: Arc<PeerCounters>,
    pub(super) metrics: Arc<Metrics>,
}

/// Runs a session up to AUTH: returns who the peer is. The caller bounds the time and the number of those.
pub(super) async fn handshake(
    stream: &mut TcpStream,
    session: &mut Session,
    clock: &Elapsed,
    inbuf: &mut BytesMut,
) -> Result<PeerInfo, PeerEnd> {
    let mut outbuf = BytesMut::new();
    loop {
        session.handle_timeout(clock.now());
        while session.poll_transmit(clock.now(), &mut outbuf) {}
        if !outbuf.is_empty() {
            stream.write_all_buf(&mut outbuf).await?;
        }
        match session.poll_event() {
            Some(Event::Established(info)) => return Ok(*info),
            Some(Event::Closed(reason)) => return Err(PeerEnd::Session(reason)),
            Some(Event::Frame(_)) => return Err(PeerEnd::Protocol("a frame before AUTH")),
            None => {}
        }
        let until = session.poll_timeout().map(|at| clock.instant(at).into());
        tokio::select! {
            read = stream.read_buf(inbuf) => {
                if read? == 0 {
                    return Err(PeerEnd::Eof);
                }
                session.handle_input(clock.now(), inbuf);
            }
            () = sleep_until(until) => {}
        }
    }
}

async fn sleep_until(at: Option<tokio::time::Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

/// What a finished job of a connection brings back.
enum JobDone {
    Stored(Stored),
    Read(Vec<(Wanted, Option<Bytes>)>),
}

struct Stored {
    arrived: Vec<Item>,
    /// Could not be written: our disk, not the peer.
    failed: Vec<Item>,
    why: String,
    lie: bool,
}

/// A chunk or node as it arrived, not looked at yet.
struct Received {
    item: Item,
    packing: Packing,
    raw_len: u32,
    bytes: Bytes,
}

enum Packing {
    Chunk(u8),
    Node(ObjCodec),
}

/// The running state of a connection's task.
struct Task {
    key: PeerKey,
    session: Session,
    store: Arc<Store>,
    events: PeerEvents,
    counters: Arc<PeerCounters>,
    metrics: Arc<Metrics>,
    clock: Elapsed,
    allowance: Allowance,
    /// A frame for the actor that has no credit yet, with its weight. Nothing is read meanwhile.
    untold: Option<(Frame, u64)>,
    next_req: u32,
    /// What each of our requests asked for and has not got.
    asked: HashMap<u32, Vec<Option<Item>>>,
    wanted: ServeQueue,
    received: Vec<Received>,
    received_bytes: usize,
    storing: usize,
    reading: usize,
    jobs: JoinSet<JobDone>,
}

/// Runs an established connection until it ends.
pub(super) async fn run(connection: Connection, mut inbuf: BytesMut) -> PeerEnd {
    let clock = connection.clock;
    let (mut task, mut stream, mut commands) = Task::new(connection);
    let (mut reader, mut writer) = stream.split();
    let mut outbuf = BytesMut::with_capacity(WRITE_BYTES);
    task.session.handle_input(clock.now(), &mut inbuf);
    loop {
        if let Err(end) = task.handle_events() {
            return end;
        }
        task.start_jobs();
        while outbuf.len() < WRITE_BYTES && task.session.poll_transmit(clock.now(), &mut outbuf) {}
        let may_read = task.storing < STORE_JOBS_MAX && task.untold.is_none();
        let owed = task.untold.as_ref().map(|(_, weight)| *weight);
        let until = task
            .session
            .poll_timeout()
            .map(|at| clock.instant(at).into());
        inbuf.reserve(READ_BYTES);
        tokio::select! {
            biased;
            command = commands.recv() => match command {
                Some(command) => {
                    if let Err(end) = task.command(command) {
                        flush(&mut task.session, clock, &mut outbuf, &mut writer).await;
                        return end;
                    }
                }
                None => {
                    flush(&mut task.session, clock, &mut outbuf, &mut writer).await;
                    return PeerEnd::Closed;
                }
            },
            Some(done) = task.jobs.join_next() => match done {
                Ok(done) => if let Err(end) = task.job_done(done) { return end },
                Err(error) => {
                    tracing::error!(%error, "a job of a connection panicked");
                    return PeerEnd::Panicked;
                }
            },
            credit = task.events.credit(owed.unwrap_or(0)), if owed.is_some() => task.tell(credit),
            written = writer.write_buf(&mut outbuf), if !outbuf.is_empty() => match written {
                Ok(n) => task.written(n as u64),
                Err(error) => return error.into(),
            },
            read = reader.read_buf(&mut inbuf), if may_read => match read {
                Ok(0) => return PeerEnd::Eof,
                Ok(n) => {
                    task.read(n as u64);
                    task.session.handle_input(clock.now(), &mut inbuf);
                }
                Err(error) => return error.into(),
            },
            () = sleep_until(until) => task.session.handle_timeout(clock.now()),
        }
    }
}

/// Sends what is left, such as BYE, if the socket takes it at once.
async fn flush(
    session: &mut Session,
    clock: Elapsed,
    outbuf: &mut BytesMut,
    writer: &mut tokio::net::tcp::WriteHalf<'_>,
) {
    while session.poll_transmit(clock.now(), outbuf) {}
    let patience = std::time::Duration::from_millis(200);
    let _late = tokio::time::timeout(patience, writer.write_all_buf(outbuf)).await;
}

impl Task {
    fn new(connection: Connection) -> (Self, TcpStream, mpsc::UnboundedReceiver<ToPeer>) {
        let clock = connection.clock;
        let task = Self {
            key: connection.key,
            session: connection.session,
            store: connection.store,
            events: connection.events,
            counters: connection.counters,
            metrics: connection.metrics,
            clock,
            allowance: Allowance::new(clock.now()),
            untold: None,
            next_req: 0,
            asked: HashMap::new(),
            wanted: ServeQueue::default(),
            received: Vec::new(),
            received_bytes: 0,
            storing: 0,
            reading: 0,
            jobs: JoinSet::new(),
        };
        (task, connection.stream, connection.commands)
    }

    fn read(&self, bytes: u64) {
        self.counters.bytes_in.fetch_add(bytes, Ordering::Relaxed);
        self.metrics.wire_bytes_in.add(bytes);
    }

    fn written(&self, bytes: u64) {
        self.counters.bytes_out.fetch_add(bytes, Ordering::Relaxed);
        self.metrics.wire_bytes_out.add(bytes);
    }

    fn command(&mut self, command: ToPeer) -> Result<(), PeerEnd> {
        match command {
            ToPeer::Send(_) if self.session.queued_len() > UNREAD_BYTES_MAX => {
                return Err(PeerEnd::Protocol("the peer does not read"));
            }
            ToPeer::Send(frame) => self.send(&frame),
            ToPeer::Ask { priority, items } => self.ask(priority, items),
            ToPeer::Close => return Err(PeerEnd::Closed),
            ToPeer::Drop(why) => return Err(PeerEnd::Protocol(why)),
        }
        Ok(())
    }

    /// A frame that cannot be sent is our own mistake, or the session is over and says so by its event.
    fn send(&mut self, frame: &Frame) {
        if let Err(error) = self.session.send(frame) {
            tracing::debug!(%error, "frame not sent");
        }
    }

    /// One request; the scheduler never mixes chunks and nodes in one.
    fn ask(&mut self, priority: Priority, items: Vec<Item>) {
        let req = self.next_req;
        self.next_req = self.next_req.wrapping_add(1);
        let mut chunks = Vec::new();
        let mut objects = Vec::new();
        for item in &items {
            match *item {
                Item::Chunk(hash) => chunks.push(hash),
                Item::Node { kind, id } => objects.push(ObjectRef { kind, id }),
            }
        }
        let frame = if objects.is_empty() {
            Frame::Want(Want {
                req,
                priority,
                chunks,
            })
        } else {
            Frame::Get(Get {
                req,
                priority,
                objects,
            })
        };
        self.send(&frame);
        self.asked
            .insert(req, items.into_iter().map(Some).collect());
    }

    fn handle_events(&mut self) -> Result<(), PeerEnd> {
        while self.untold.is_none()
            && let Some(event) = self.session.poll_event()
        {
            match event {
                Event::Frame(frame) => {
                    let weight = allowance::weight(&frame);
                    if !self.allowance.take(self.clock.now(), weight) {
                        return Err(PeerEnd::Protocol("a flood of news"));
                    }
                    self.frame(frame, weight)?;
                }
                Event::Closed(reason) => return Err(PeerEnd::Session(reason)),
                Event::Established(_) => {}
            }
        }
        Ok(())
    }

    fn frame(&mut self, frame: Frame, weight: u64) -> Result<(), PeerEnd> {
        let too_much = |_| PeerEnd::Protocol("too many items asked for at once");
        match frame {
            Frame::Want(want) => {
                let items = want.chunks.into_iter().map(Item::Chunk);
                self.wanted
                    .push(want.req, want.priority, items)
                    .map_err(too_much)
            }
            Frame::Get(get) => {
                let node = |o: ObjectRef| Item::Node {
                    kind: o.kind,
                    id: o.id,
                };
                let items = get.objects.into_iter().map(node);
                self.wanted
                    .push(get.req, get.priority, items)
                    .map_err(too_much)
            }
            Frame::Cancel { req } => {
                self.wanted.cancel(req);
                Ok(())
            }
            Frame::Chunk(c) => {
                self.receive(c.req, c.idx, Packing::Chunk(c.scheme), c.raw_len, c.bytes)
            }
            Frame::Obj(o) => self.receive(o.req, o.idx, Packing::Node(o.codec), o.raw_len, o.bytes),
            Frame::Miss(indexes) | Frame::Absent(indexes) => self.missed(indexes.req, &indexes.idx),
            frame => {
                let credit = self.events.try_credit(weight);
                self.untold = Some((frame, weight));
                if let Some(credit) = credit {
                    self.tell(credit);
                }
                Ok(())
            }
        }
    }

    /// Passes on the frame that waited for credit.
    fn tell(&mut self, credit: Credit) {
        if let Some((frame, _)) = self.untold.take() {
            let key = self.key;
            self.events.send(FromPeer::Frame { key, frame, credit });
        }
    }

    fn receive(
        &mut self,
        req: u32,
        idx: u16,
        packing: Packing,
        raw_len: u32,
        bytes: Bytes,
    ) -> Result<(), PeerEnd> {
        let item = self.take_asked(req, idx)?;
        self.received_bytes += bytes.len();
        self.received.push(Received {
            item,
            packing,
            raw_len,
            bytes,
        });
        Ok(())
    }

    fn missed(&mut self, req: u32, idx: &[u16]) -> Result<(), PeerEnd> {
        let items = idx
            .iter()
            .map(|i| self.take_asked(req, *i))
            .collect::<Result<_, _>>()?;
        self.events.send(FromPeer::Missed {
            key: self.key,
            items,
        });
        Ok(())
    }

    /// The item an answer is about; each is answered once.
    fn take_asked(&mut self, req: u32, idx: u16) -> Result<Item, PeerEnd> {
        let unasked = PeerEnd::Protocol("an answer to nothing");
        let Some(items) = self.asked.get_mut(&req) else {
            return Err(unasked);
        };
        let item = items
            .get_mut(usize::from(idx))
            .and_then(Option::take)
            .ok_or(unasked)?;
        if items.iter().all(Option::is_none) {
            self.asked.remove(&req);
        }
        Ok(item)
    }

    fn start_jobs(&mut self) {
        let enough = self.received_bytes >= BATCH_BYTES || self.storing == 0;
        if !self.received.is_empty() && enough && self.storing < STORE_JOBS_MAX {
            let batch = std::mem::take(&mut self.received);
            self.received_bytes = 0;
            self.storing += 1;
            let store = Arc::clone(&self.store);
            self.jobs
                .spawn_blocking(move || JobDone::Stored(store_batch(&store, batch)));
        }
        while !self.wanted.is_empty()
            && self.reading < SERVE_JOBS_MAX
            && self.session.queued_len() < QUEUED_BYTES_MAX
        {
            let batch = self.wanted.take(SERVE_BATCH);
            self.reading += 1;
            let store = Arc::clone(&self.store);
            self.jobs
                .spawn_blocking(move || JobDone::Read(read_batch(&store, batch)));
        }
    }

    fn count_stored(&self, stored: &Stored) {
        let chunks = stored.arrived.iter().filter(|item| item.is_chunk());
        self.metrics.chunks_fetched.add(chunks.count() as u64);
        if stored.lie {
            self.metrics.chunks_wrong.inc();
        }
    }

    fn job_done(&mut self, done: JobDone) -> Result<(), PeerEnd> {
        match done {
            JobDone::Stored(stored) => {
                self.storing -= 1;
                let key = self.key;
                self.count_stored(&stored);
                if !stored.arrived.is_empty() {
                    self.events.send(FromPeer::Arrived {
                        key,
                        items: stored.arrived,
                    });
                }
                if !stored.failed.is_empty() {
                    self.events.send(FromPeer::NotStored {
                        key,
                        items: stored.failed,
                        why: stored.why,
                    });
                }
                if stored.lie {
                    Err(PeerEnd::Lie)
                } else {
                    Ok(())
                }
            }
            JobDone::Read(batch) => {
                self.reading -= 1;
                for (wanted, bytes) in batch {
                    if wanted.item.is_chunk() && bytes.is_some() {
                        self.metrics.chunks_served.inc();
                    }
                    self.send(&answer(wanted, bytes));
                }
                Ok(())
            }
        }
    }
}

fn answer(wanted: Wanted, bytes: Option<Bytes>) -> Frame {
    let Wanted { req, idx, item } = wanted;
    let raw_len = bytes.as_ref().map_or(0, |bytes| bytes.len() as u32);
    match (item, bytes) {
        (Item::Chunk(_), Some(bytes)) => {
            let scheme = Scheme::Stored.as_byte();
            Frame::Chunk(Chunk {
                req,
                idx,
                scheme,
                raw_len,
                bytes,
            })
        }
        (Item::Chunk(_), None) => Frame::Miss(Indexes {
            req,
            idx: vec![idx],
        }),
        (Item::Node { .. }, Some(bytes)) => {
            let packed = (bytes.len() >= COMPRESS_LEN_MIN)
                .then(|| zstd::bulk::compress(&bytes, ZSTD_LEVEL).ok())
                .flatten()
                .filter(|packed| packed.len() < bytes.len());
            let (codec, bytes) = match packed {
                Some(packed) => (ObjCodec::Zstd, packed.into()),
                None => (ObjCodec::Raw, bytes),
            };
            Frame::Obj(Obj {
                req,
                idx,
                codec,
                raw_len,
                bytes,
            })
        }
        (Item::Node { .. }, None) => Frame::Absent(Indexes {
            req,
            idx: vec![idx],
        }),
    }
}

/// Reads a batch for the peer. What cannot be read counts as missing: the peer asks elsewhere.
fn read_batch(store: &Store, batch: Vec<Wanted>) -> Vec<(Wanted, Option<Bytes>)> {
    let read = |item: &Item| match item {
        Item::Chunk(hash) => store.chunk(hash).map_err(|e| e.to_string()),
        Item::Node { id, .. } => store.node(id).map_err(|e| e.to_string()),
    };
    batch
        .into_iter()
        .map(|wanted| {
            let bytes = read(&wanted.item).unwrap_or_else(|error| {
                tracing::warn!(error, "cannot read what a peer asked for");
                None
            });
            (wanted, bytes)
        })
        .collect()
}

/// Hashes and stores a batch. One wrong item makes the sender a liar; the rest of the batch counts.
fn store_batch(store: &Store, batch: Vec<Received>) -> Stored {
    let mut stored = Stored {
        arrived: Vec::new(),
        failed: Vec::new(),
        why: String::new(),
        lie: false,
    };
    for received in batch {
        let item = received.item;
        let Some(bytes) = unpack(&received) else {
            stored.lie = true;
            continue;
        };
        let put = match item {
            Item::Chunk(hash) if store.suite().chunk_hash(&bytes) == hash => {
                store.put_chunk(&hash, &bytes)
            }
            Item::Node { kind, id } if node_id(kind, &bytes) == id => {
                store.put_node(kind, &id, &bytes)
            }
            _ => {
                stored.lie = true;
                continue;
            }
        };
        match put {
            Ok(_) => stored.arrived.push(item),
            Err(error) => {
                stored.why = error.to_string();
                stored.failed.push(item);
            }
        }
    }
    if !stored.failed.is_empty() {
        let (items, error) = (stored.failed.len(), &stored.why);
        tracing::warn!(items, error, "cannot store what a peer sent");
    }
    stored
}

/// The raw bytes of what arrived, within the limits of its kind.
fn unpack(received: &Received) -> Option<Bytes> {
    let raw_len = received.raw_len as usize;
    match (received.item, &received.packing) {
        (Item::Chunk(_), Packing::Chunk(scheme)) => {
            let scheme = Scheme::from_byte(*scheme)?;
            if raw_len == 0 || raw_len > MAX_CHUNK {
                return None;
            }
            if scheme == Scheme::Stored {
                return (received.bytes.len() == raw_len).then(|| received.bytes.clone());
            }
            let mut chunk = vec![0; raw_len];
            codec::decode_into(scheme, &received.bytes, &mut chunk).ok()?;
            Some(chunk.into())
        }
        (Item::Node { .. }, Packing::Node(_)) if received.raw_len > NODE_LEN_MAX => None,
        (Item::Node { .. }, Packing::Node(ObjCodec::Raw)) => {
            (received.bytes.len() == raw_len).then(|| received.bytes.clone())
        }
        (Item::Node { .. }, Packing::Node(ObjCodec::Zstd)) => {
            let node = zstd::bulk::decompress(&received.bytes, raw_len).ok()?;
            (node.len() == raw_len).then(|| node.into())
        }
        _ => None,
    }
}
