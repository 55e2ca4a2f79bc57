//! Who is connected, and what members tell each other apart from content: manifest, certificates, heads, addresses,
//! what they show.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use ccbt_xet::hash::NodeId;

use super::adopt::Told;
use super::replica::RETRY_TIME_MIN;
use super::{Credit, Door, PEERS_MAX, Peer, Swarm, SwarmHandle, have};
use crate::clock;
use crate::engine::peer::{FromPeer, NewPeer, PeerInfo, ToPeer};
use crate::proto::scheduler::PeerKey;
use crate::proto::ut_xet::{Frame, Holding};
use crate::share::heads::HeadError;
use crate::share::{BadSignature, Certificate, Manifest, Role, Unverified};

/// What is said of a link whose suite is not the folder's.
pub const WRONG_SUITE: &str = "the link names another hash suite than the folder's owner does";

impl Swarm {
    pub(super) fn peer_event(&mut self, event: FromPeer) {
        let now = self.clock.now();
        match event {
            FromPeer::Up(new) => self.peer_up(*new),
            FromPeer::Frame { key, frame, credit } => self.frame(key, frame, credit),
            FromPeer::Arrived { key, items } => {
                // Right after a failure something smaller may still fit: that is not room.
                let room = |(_, at): &(String, Duration)| *at + RETRY_TIME_MIN <= now;
                if self.not_stored.take_if(|failed| room(failed)).is_some() {
                    self.replica.try_now();
                }
                for item in items {
                    self.scheduler.arrived(now, item, Some(key));
                }
                let left = |job| self.scheduler.left(job);
                self.replica.handle_arrived(now, left);
            }
            FromPeer::Missed { key, items } => {
                for item in items {
                    self.scheduler.missed(now, item, key);
                }
            }
            FromPeer::NotStored { key, items, why } => {
                let why = format!("what peers send cannot be kept: {why}");
                self.not_stored = Some((why, now));
                for item in items {
                    self.scheduler.not_stored(now, item, key);
                }
            }
            FromPeer::Down { key, called } => {
                let peer = self.peers.remove(&key);
                if peer.is_some() {
                    self.scheduler.peer_down(key);
                }
                if let Some(addr) = called.or_else(|| peer.and_then(|peer| peer.reach)) {
                    let other = self.peers.values().any(|peer| peer.reach == Some(addr));
                    if other {
                        self.dialer.connected(addr);
                    } else {
                        self.dialer.failed(now, addr);
                    }
                }
            }
        }
    }

    pub(super) fn peer_up(&mut self, new: NewPeer) {
        let NewPeer {
            key,
            info,
            addr,
            called,
            commands,
            counters,
        } = new;
        let now = self.clock.now();
        let close = || {
            let _gone = commands.send(ToPeer::Close);
        };
        if !self.config.online || self.ending.is_some() || !self.is_wanted(&info, called) {
            return close();
        }
        let reach = called.or_else(|| {
            (info.listen_port != 0).then(|| SocketAddr::new(addr.ip(), info.listen_port))
        });
        if let Some(reach) = reach {
            self.dialer.connected(reach);
            (self.config.met)(reach);
        }
        if let Some(manifest) = info.manifest.clone() {
            let _verified_in_auth = self.manifest_offered(manifest.into());
        }
        if let Some(certificate) = info.certificate.clone() {
            let _known = self
                .heads
                .offer_certificate(certificate.into(), clock::unix_days());
        }
        let called = called.is_some();
        let (since, shows, stored, reminded) = (now, None, None, None);
        let peer = Peer {
            info,
            addr,
            called,
            reach,
            since,
            commands,
            counters,
            shows,
            stored,
            keeps: false,
            reminded,
        };
        self.greet(&peer);
        self.introduce(&peer);
        self.peers.insert(key, peer);
        self.scheduler.peer_up(key);
        self.replica.member_has_more();
        self.hints.try_now();
        self.retry_adoptions();
    }

    /// Of two connections between the same two processes, one called by either, the one stays whose caller has the larger
    /// nonce; both sides decide alike. If the same side called twice, the caller knows whether its older call still lives;
    /// who was called does not, and keeps both until the dead one falls silent.
    pub(super) fn is_wanted(&self, info: &PeerInfo, called: Option<SocketAddr>) -> bool {
        let ours_stays = self.config.nonce > info.nonce;
        for double in self
            .peers
            .values()
            .filter(|peer| peer.info.nonce == info.nonce)
        {
            match (called.is_some(), double.called) {
                (true, true) => return false,
                (false, false) => {}
                (ours, _) if ours != ours_stays => return false,
                _ => {
                    let _gone = double.commands.send(ToPeer::Close);
                }
            }
        }
        true
    }

    /// Tells the others of a new member that can be called.
    pub(super) fn introduce(&self, peer: &Peer) {
        let Some(reach) = peer.reach.filter(|_| self.config.exchange) else {
            return;
        };
        for other in self.peers.values() {
            let _gone = other.commands.send(ToPeer::Send(Frame::Peers(vec![reach])));
        }
    }

    /// What every new connection is told: who may write, the newest heads, where other members are, what we show.
    pub(super) fn greet(&self, peer: &Peer) {
        let send = |frame| {
            let _gone = peer.commands.send(ToPeer::Send(frame));
        };
        if let Some(manifest) = self.heads.manifest() {
            send(Frame::Manifest(Box::new(manifest.clone().into())));
        }
        self.tell_heads(peer);
        let members: Vec<SocketAddr> = self
            .peers
            .values()
            .filter_map(|peer| peer.reach)
            .take(PEERS_MAX)
            .collect();
        if self.config.exchange && !members.is_empty() {
            send(Frame::Peers(members));
        }
        if let Some((root, whole)) = self.told {
            send(have(root, whole));
            if self.may_vouch() {
                // What we said in an earlier run may not be true any more.
                send(match whole {
                    true => Frame::Stored(root),
                    false => Frame::Unstored(root),
                });
            }
        }
    }

    /// What a member says unasked. Nothing counts from one that was turned away at the start.
    pub(super) fn frame(&mut self, key: PeerKey, frame: Frame, credit: Credit) {
        if !self.peers.contains_key(&key) {
            return;
        }
        match frame {
            Frame::Manifest(manifest) => {
                let offered = self.manifest_offered(*manifest);
                if offered.is_err() {
                    self.drop_peer(key, "it sent a manifest the owner did not sign");
                }
            }
            Frame::Certs(certificates) => self.certificates(key, certificates),
            Frame::Heads(heads) => {
                for head in heads {
                    if self.head_offered(key, head, None).is_err() {
                        break;
                    }
                }
            }
            Frame::Delta(delta) => {
                let (head, delta) = (delta.head.clone(), *delta);
                let _credit = credit;
                let told = Arc::new(Told { delta, _credit });
                let _dropped = self.head_offered(key, head, Some(told));
            }
            Frame::Peers(addrs) if self.config.exchange => {
                for addr in addrs {
                    self.dialer.found(addr);
                }
            }
            Frame::Have {
                snapshot: root,
                what,
            } => {
                let shows = Some((root, what == Holding::All));
                if let Some(peer) = self.peers.get_mut(&key)
                    && peer.shows != shows
                {
                    peer.shows = shows;
                    if what == Holding::All {
                        self.scheduler.peer_has_more(key);
                        self.replica.member_has_more();
                    }
                }
            }
            Frame::Stored(root) if self.is_keeper(key) => self.stored(key, root),
            Frame::Unstored(root) => self.unstored(key, root),
            _ => {}
        }
    }

    /// Takes a manifest; new connections are then met with it, and a reader can check certificates.
    pub(super) fn manifest_offered(
        &mut self,
        manifest: Unverified<Manifest>,
    ) -> Result<(), BadSignature> {
        if self.heads.offer_manifest(manifest)? {
            self.heads_saved = false;
            let mut credentials = (*self.credentials).clone();
            credentials.manifest = self.heads.manifest().cloned();
            self.credentials = Arc::new(credentials);
            self.dial.reopen(self.door());
            self.check_suite();
        }
        Ok(())
    }

    /// With the wrong suite nothing is asked of members: what they sent would look like lies.
    fn check_suite(&mut self) {
        let suite = self.heads.manifest().map(|m| m.claims().suite.hashes());
        if suite.is_some_and(|suite| suite != self.config.store.suite()) {
            self.wrong_suite = true;
            self.trouble = Some(WRONG_SUITE.to_owned());
            self.set_online(false);
        }
    }

    pub(super) fn door(&self) -> Door {
        Door {
            swarm: SwarmHandle::new(self.tx.clone()),
            credentials: Arc::clone(&self.credentials),
            store: Arc::clone(&self.config.store),
            name: self.config.name.clone(),
        }
    }

    /// Only a device that the write key certified as a keeper may vouch for content.
    pub(super) fn is_keeper(&self, key: PeerKey) -> bool {
        let certificate = self
            .peers
            .get(&key)
            .and_then(|peer| peer.info.certificate.as_ref());
        certificate.is_some_and(|certificate| certificate.role() == Role::Keeper)
    }

    fn stored(&mut self, key: PeerKey, root: NodeId) {
        if let Some(peer) = self.peers.get_mut(&key) {
            peer.stored = Some(root);
            peer.keeps = true;
            if let Some(keeper) = peer.device() {
                self.kept.stored(keeper, root);
            }
        }
    }

    /// A keeper that shows another tree by now only went on: it still has what both trees show.
    fn unstored(&mut self, key: PeerKey, root: NodeId) {
        if let Some(peer) = self.peers.get_mut(&key) {
            peer.stored = None;
            let went_on = peer.shows.is_some_and(|(shown, _)| shown != root);
            if let (false, Some(keeper)) = (went_on, peer.device()) {
                self.kept.lost(&keeper);
                self.save_kept();
            }
        }
    }

    pub(super) fn certificates(
        &mut self,
        key: PeerKey,
        certificates: Vec<Unverified<Certificate>>,
    ) {
        let today = clock::unix_days();
        for certificate in certificates {
            match self.heads.offer_certificate(certificate, today) {
                Ok(news) => self.heads_saved &= !news,
                Err(HeadError::Certificate(crate::share::CertError::Expired { .. })) => {}
                Err(error) => {
                    tracing::warn!(%error, "certificate refused");
                    self.drop_peer(key, "it sent a certificate the write key did not sign");
                    return;
                }
            }
        }
    }

    pub(super) fn drop_peer(&mut self, key: PeerKey, why: &'static str) {
        if let Some(peer) = self.peers.get(&key) {
            tracing::warn!(addr = %peer.addr, why, "peer dropped");
            let _gone = peer.commands.send(ToPeer::Drop(why));
        }
    }
}
