//! What the DHT item tells us, and what we have to tell it.
//!
//! The item is a hint: its addresses are called as any other, its heads wait until the certificate that makes them count is
//! known and somebody is connected who may have their snapshots.

use std::net::SocketAddr;
use std::time::Duration;

use super::Swarm;
use crate::clock;
use crate::proto::tracker::callable;
use crate::share::dht_item::{DhtItem, ENDPOINTS_MAX, HEADS_MAX};
use crate::share::heads::HeadError;
use crate::share::{Head, Incarnation, Manifest, Unverified, WritePublic};

/// Heads that could not be used are looked at again after this long, or when a member comes.
const AGAIN_TIME: Duration = Duration::from_secs(60);

/// What a folder has to tell those who are not connected.
#[derive(Debug, Clone)]
pub struct Outlook {
    /// The newest heads by their clocks, at most [`HEADS_MAX`].
    pub heads: Vec<Head>,
    /// The head of this incarnation.
    pub own: Option<Head>,
    pub manifest: Option<Manifest>,
    /// The key items are found under, once it is known.
    pub write: Option<WritePublic>,
    /// Where members can be called, first those we have called ourselves; at most [`ENDPOINTS_MAX`].
    pub endpoints: Vec<SocketAddr>,
    /// No member is connected.
    pub alone: bool,
    /// A connected writer, before us in the order of incarnations, keeps the item alive.
    pub stands_down: bool,
}

/// Heads the DHT named that are not believed yet.
#[derive(Debug, Default)]
pub(super) struct Hints {
    heads: Vec<Unverified<Head>>,
    not_before: Duration,
}

impl Hints {
    /// Keeps the latest.
    pub(super) fn push(&mut self, head: Unverified<Head>) {
        if self.heads.contains(&head) {
            return;
        }
        if self.heads.len() >= HEADS_MAX {
            self.heads.remove(0);
        }
        self.heads.push(head);
    }

    pub(super) fn try_now(&mut self) {
        self.not_before = Duration::ZERO;
    }
}

impl Swarm {
    pub(super) fn hinted(&mut self, item: DhtItem) {
        for addr in item.endpoints.into_iter().filter(callable) {
            self.dialer.found(addr);
        }
        for head in item.heads {
            self.hints.push(head);
        }
        self.hints.try_now();
    }

    /// Makes use of hinted heads, if a member is there to ask for what they name.
    pub(super) fn weigh_hints(&mut self) {
        let now = self.clock.now();
        if self.hints.heads.is_empty() || self.peers.is_empty() || now < self.hints.not_before {
            return;
        }
        self.hints.not_before = now + AGAIN_TIME;
        for head in std::mem::take(&mut self.hints.heads) {
            match self.heads.check(head.clone(), clock::unix_millis()) {
                Ok(Some(head)) => self.adopt(None, head, None),
                Err(HeadError::NoCertificate(_) | HeadError::NoManifest) => self.hints.push(head),
                Ok(None) => {}
                Err(error) => tracing::debug!(%error, "a head in the DHT does not count"),
            }
        }
    }

    pub(super) fn outlook(&self) -> Outlook {
        let mut heads: Vec<Head> = self.heads.heads().cloned().collect();
        heads.sort_by_key(|head| std::cmp::Reverse(head.claims().hlc));
        heads.truncate(HEADS_MAX);
        let own = self
            .heads
            .heads()
            .find(|head| head.claims().incarnation == self.config.incarnation);
        let mut members: Vec<(bool, SocketAddr)> = self
            .peers
            .values()
            .filter_map(|peer| Some((!peer.called, peer.reach?)))
            .collect();
        members.sort_unstable();
        members.dedup();
        Outlook {
            own: own.cloned(),
            heads,
            manifest: self.heads.manifest().cloned(),
            write: self.heads.write_public(),
            endpoints: members
                .into_iter()
                .map(|(_, addr)| addr)
                .take(ENDPOINTS_MAX)
                .collect(),
            alone: self.peers.is_empty(),
            stands_down: self.stands_down(),
        }
    }

    /// A reader leaves the item to connected writers, a writer to those whose incarnation is smaller.
    fn stands_down(&self) -> bool {
        let ours = self
            .credentials
            .writer
            .is_some()
            .then_some(self.config.incarnation);
        let writers = self
            .peers
            .values()
            .filter_map(|p| p.info.certificate.as_ref());
        writers
            .flat_map(|writer| {
                let heads = self.heads.heads().map(Head::claims);
                heads.filter(|head| head.device == writer.device())
            })
            .any(|head| keeps_before(head.incarnation, ours))
    }
}

fn keeps_before(theirs: Incarnation, ours: Option<Incarnation>) -> bool {
    ours.is_none_or(|ours| theirs < ours)
}
