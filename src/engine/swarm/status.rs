//! What a swarm tells about itself.

use std::net::SocketAddr;
use std::sync::atomic::Ordering;

use ccbt_xet::hash::NodeId;
use tokio::sync::oneshot;

use super::kept::incarnations_of_others;
use super::{Elsewhere, Swarm};
use crate::clock;

/// How a folder stands with its peers.
#[derive(Debug, Clone)]
pub struct SwarmStatus {
    pub root: NodeId,
    pub peers: Vec<PeerView>,
    pub heads: Vec<HeadView>,
    /// Seconds since the last publication from here in this run.
    pub published_age_s: Option<u64>,
    /// Every chunk of the root is here, as far as known.
    pub whole: bool,
    pub replica: bool,
    /// A keeper said it holds this root.
    pub stored_elsewhere: bool,
    /// Connected members that said of some root that they hold it: they will of the next, when they have it. One that has
    /// taken it back, because a file it lends from has just changed, counts: it says so again after its next look.
    pub keepers: usize,
    /// What other devices hold, as far as known.
    pub elsewhere: Elsewhere,
    /// Why nothing is published or received, if something is in the way.
    pub trouble: Option<String>,
    /// The state was rolled back: the incarnation must not be gone on with.
    pub rolled_back: bool,
    /// The link is not of the folder's hash suite.
    pub wrong_suite: bool,
    /// Chunks and nodes that are being asked for.
    pub wanted: usize,
}

/// One connected member.
#[derive(Debug, Clone)]
pub struct PeerView {
    pub addr: SocketAddr,
    pub incoming: bool,
    pub device: Option<String>,
    pub writer: bool,
    pub connected_s: u64,
    pub bytes_in: u64,
    pub bytes_out: u64,
    pub converged: bool,
}

/// The newest head of one incarnation.
#[derive(Debug, Clone)]
pub struct HeadView {
    pub device: String,
    pub snapshot: String,
    pub age_s: u64,
    pub newest: bool,
    /// Published from here in this run.
    pub own: bool,
}

impl Swarm {
    pub(super) fn report_status(&self, reply: oneshot::Sender<SwarmStatus>) {
        let root = self.config.folder.root().0;
        let peers: Vec<PeerView> = self
            .peers
            .values()
            .map(|peer| self.peer_view(peer, root))
            .collect();
        let not_stored = || self.not_stored.as_ref().map(|(why, _)| why.clone());
        let status = SwarmStatus {
            root,
            heads: self.head_views(),
            published_age_s: self
                .published_at
                .map(|at| (self.clock.now() - at).as_secs()),
            whole: self.replica.whole() == Some(root),
            replica: self.replica.is_wanted(),
            keepers: self.peers.values().filter(|p| p.keeps).count(),
            stored_elsewhere: self.peers.values().any(|p| p.stored == Some(root)),
            elsewhere: self.elsewhere(),
            trouble: self.trouble.clone().or_else(not_stored),
            rolled_back: self.rolled_back,
            wrong_suite: self.wrong_suite,
            wanted: self.scheduler.wanted(),
            peers,
        };
        let _nobody = reply.send(status);
    }

    fn elsewhere(&self) -> Elsewhere {
        Elsewhere {
            kept: self.kept.vectors(),
            others: incarnations_of_others(&self.heads, self.config.device.id()),
        }
    }

    fn peer_view(&self, peer: &super::Peer, root: NodeId) -> PeerView {
        let certificate = peer.info.certificate.as_ref();
        PeerView {
            addr: peer.addr,
            incoming: !peer.called,
            device: certificate.map(|c| c.name().to_string()),
            writer: certificate.is_some(),
            connected_s: (self.clock.now() - peer.since).as_secs(),
            bytes_in: peer.counters.bytes_in.load(Ordering::Relaxed),
            bytes_out: peer.counters.bytes_out.load(Ordering::Relaxed),
            converged: peer.shows.is_some_and(|(shown, _)| shown == root),
        }
    }

    fn head_views(&self) -> Vec<HeadView> {
        let newest = self.heads.heads().map(|h| h.claims().hlc).max();
        let now_ms = clock::unix_millis();
        self.heads
            .heads()
            .map(|head| {
                let claims = head.claims();
                let name = self.heads.device_name(&claims.incarnation);
                HeadView {
                    device: name.map_or_else(|| claims.device.to_string(), str::to_owned),
                    snapshot: claims.snapshot.to_string().chars().take(12).collect(),
                    age_s: now_ms.saturating_sub(claims.hlc >> 16) / 1000,
                    newest: Some(claims.hlc) == newest,
                    own: claims.incarnation == self.config.incarnation,
                }
            })
            .collect()
    }
}
