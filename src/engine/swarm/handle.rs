//! The way to a folder's actor: what others may ask of it, and where connections report.

use std::net::SocketAddr;
use std::sync::{Arc, Weak};

use ccbt_xet::hash::NodeId;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};

use super::NODE_BYTES_GUESS;
use super::hints::Outlook;
use super::publish::NotPublished;
use super::status::SwarmStatus;
use crate::engine::peer::FromPeer;
use crate::folder::work::{self, Dirty, Fetch, Fetched, Observer, WantedChunk};
use crate::proto::scheduler::{Item, Priority};
use crate::share::dht_item::DhtItem;
use crate::share::{Manifest, Unverified};

/// What one connection may have told us and we have not dealt with, in bytes. Two of the largest frames.
const UNHEARD_BYTES_MAX: u32 = 512 * 1024;

/// What reaches the actor.
pub(in crate::engine) enum Message {
    Peer(FromPeer),
    Dirty(Dirty),
    Fetch {
        items: Vec<(Item, u32)>,
        priority: Priority,
        /// The fetch is given up when this is gone.
        interest: Option<Weak<()>>,
        done: Fetched,
    },
    DialFailed(SocketAddr),
    DialedOurselves(SocketAddr),
    Found(SocketAddr),
    Give(SocketAddr),
    Hinted(DhtItem),
    Manifest(Box<Unverified<Manifest>>),
    Outlook(oneshot::Sender<Outlook>),
    SetReplica(bool),
    SetKeeper(bool),
    SetOnline(bool),
    Status(oneshot::Sender<SwarmStatus>),
    PublishNow(oneshot::Sender<Result<(), NotPublished>>),
    Shutdown(oneshot::Sender<()>),
}

/// The way to a folder's actor. Cheap to clone; the actor ends when it is told to.
#[derive(Clone)]
pub struct SwarmHandle {
    tx: mpsc::UnboundedSender<Message>,
}

/// The receiving end, made before the folder is opened because the folder needs the handle.
pub struct SwarmInbox {
    pub(super) tx: mpsc::UnboundedSender<Message>,
    pub(super) rx: mpsc::UnboundedReceiver<Message>,
}

/// Makes the two ends.
pub fn channel() -> (SwarmHandle, SwarmInbox) {
    let (tx, rx) = mpsc::unbounded_channel();
    (SwarmHandle::new(tx.clone()), SwarmInbox { tx, rx })
}

impl SwarmHandle {
    pub(super) fn new(tx: mpsc::UnboundedSender<Message>) -> Self {
        Self { tx }
    }

    fn tell(&self, message: Message) {
        // The actor is gone only at shutdown, when nobody is left to care.
        let _gone = self.tx.send(message);
    }

    fn fetch(
        &self,
        items: impl Iterator<Item = (Item, u32)>,
        priority: Priority,
        interest: Option<Weak<()>>,
        done: Fetched,
    ) {
        self.tell(Message::Fetch {
            items: items.collect(),
            priority,
            interest,
            done,
        });
    }

    /// An address of a member the user gave.
    pub fn give(&self, addr: SocketAddr) {
        self.tell(Message::Give(addr));
    }

    /// An address discovery found.
    pub fn found(&self, addr: SocketAddr) {
        self.tell(Message::Found(addr));
    }

    /// What the folder's DHT item says.
    pub fn hinted(&self, item: DhtItem) {
        self.tell(Message::Hinted(item));
    }

    /// A manifest that did not come from a member.
    pub fn manifest(&self, manifest: Unverified<Manifest>) {
        self.tell(Message::Manifest(Box::new(manifest)));
    }

    /// What the folder has to tell those who are not connected; `None` once the actor has ended.
    pub async fn outlook(&self) -> Option<Outlook> {
        let (tx, rx) = oneshot::channel();
        self.tell(Message::Outlook(tx));
        rx.await.ok()
    }

    /// Whether to keep the whole content here.
    pub fn set_replica(&self, on: bool) {
        self.tell(Message::SetReplica(on));
    }

    /// Whether a plain directory here holds the whole folder.
    pub fn set_keeper(&self, on: bool) {
        self.tell(Message::SetKeeper(on));
    }

    /// Whether to talk to peers.
    pub fn set_online(&self, on: bool) {
        self.tell(Message::SetOnline(on));
    }

    /// How things stand; `None` once the actor has ended.
    pub async fn status(&self) -> Option<SwarmStatus> {
        let (tx, rx) = oneshot::channel();
        self.tell(Message::Status(tx));
        rx.await.ok()
    }

    /// Publishes what there is now.
    pub async fn publish_now(&self) -> Result<(), NotPublished> {
        let (tx, rx) = oneshot::channel();
        self.tell(Message::PublishNow(tx));
        rx.await
            .unwrap_or_else(|_| Err(NotPublished::because("the folder is being closed")))
    }

    /// Publishes, says BYE to peers and ends the actor.
    pub async fn shutdown(&self) {
        let (tx, rx) = oneshot::channel();
        self.tell(Message::Shutdown(tx));
        let _ended = rx.await;
    }

    pub(in crate::engine) fn dial_failed(&self, addr: SocketAddr) {
        self.tell(Message::DialFailed(addr));
    }

    pub(in crate::engine) fn dialed_ourselves(&self, addr: SocketAddr) {
        self.tell(Message::DialedOurselves(addr));
    }

    pub(in crate::engine) fn peer_events(&self) -> PeerEvents {
        PeerEvents {
            tx: self.tx.clone(),
            room: Arc::new(Semaphore::new(UNHEARD_BYTES_MAX as usize)),
        }
    }
}

/// Where a connection's task reports. What the peer says of its own accord needs credit; everything else is bounded by
/// what we asked of it.
#[derive(Clone)]
pub(in crate::engine) struct PeerEvents {
    tx: mpsc::UnboundedSender<Message>,
    /// Bytes that may still be told, for this connection.
    room: Arc<Semaphore>,
}

/// Part of what a connection may tell, given back when dropped.
#[derive(Debug)]
pub(in crate::engine) struct Credit(
    #[expect(dead_code, reason = "held for its drop")] Option<OwnedSemaphorePermit>,
);

impl PeerEvents {
    pub(in crate::engine) fn send(&self, event: FromPeer) {
        let _gone = self.tx.send(Message::Peer(event));
    }

    /// Credit for `bytes`, if there is room now.
    pub(in crate::engine) fn try_credit(&self, bytes: u64) -> Option<Credit> {
        let room = Arc::clone(&self.room);
        let permit = room.try_acquire_many_owned(permits(bytes)).ok()?;
        Some(Credit(Some(permit)))
    }

    /// Waits for credit.
    pub(in crate::engine) async fn credit(&self, bytes: u64) -> Credit {
        let room = Arc::clone(&self.room);
        // The semaphore is never closed.
        Credit(room.acquire_many_owned(permits(bytes)).await.ok())
    }
}

/// A frame heavier than all the room takes all of it.
fn permits(bytes: u64) -> u32 {
    u32::try_from(bytes).map_or(UNHEARD_BYTES_MAX, |bytes| bytes.min(UNHEARD_BYTES_MAX))
}

impl Observer for SwarmHandle {
    fn dirty(&self, why: Dirty) {
        self.tell(Message::Dirty(why));
    }
}

impl Fetch for SwarmHandle {
    fn chunks(&self, want: Vec<WantedChunk>, priority: work::Priority, done: Fetched) {
        self.fetch(want.iter().map(chunk_item), urgency(priority), None, done);
    }

    fn nodes(&self, want: Vec<(u8, NodeId)>, priority: work::Priority, done: Fetched) {
        let item = |(kind, id)| (Item::Node { kind, id }, NODE_BYTES_GUESS);
        let items = want.into_iter().map(item);
        self.fetch(items, urgency(priority), None, done);
    }

    fn ahead(&self, want: Vec<WantedChunk>, interest: Weak<()>, done: Fetched) {
        let items = want.iter().map(chunk_item);
        self.fetch(items, Priority::ReadAhead, Some(interest), done);
    }
}

fn chunk_item(wanted: &WantedChunk) -> (Item, u32) {
    (Item::Chunk(wanted.hash), wanted.len)
}

fn urgency(priority: work::Priority) -> Priority {
    match priority {
        work::Priority::Blocking => Priority::Blocked,
        work::Priority::ReadAhead => Priority::ReadAhead,
        work::Priority::Replica => Priority::Replica,
        work::Priority::Probe => Priority::Prefetch,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::scheduler::PeerKey;
    use crate::proto::ut_xet::Frame;

    #[tokio::test]
    async fn what_a_connection_tells_is_bounded_until_it_is_dealt_with() {
        let (handle, mut inbox) = channel();
        let events = handle.peer_events();
        let mut sent = 0;
        while let Some(credit) = events.try_credit(100_000) {
            let (key, frame) = (PeerKey(1), Frame::Cancel { req: 0 });
            events.send(FromPeer::Frame { key, frame, credit });
            sent += 1;
        }
        assert_eq!(sent, 5);
        let other = handle.peer_events();
        assert!(
            other.try_credit(100_000).is_some(),
            "another connection has its own room"
        );
        let heard = inbox.rx.recv().await;
        assert!(
            events.try_credit(100_000).is_none(),
            "it is being dealt with"
        );
        drop(heard);
        drop(events.credit(100_000).await);
        inbox.rx.close();
        while inbox.rx.recv().await.is_some() {}
        drop(events.credit(u64::MAX).await);
    }
}
