//! From a head somebody sent to a merged state: fetch its snapshot and nodes, check its vector, merge, believe, forward.

use std::sync::Arc;
use std::time::Duration;

use ccbt_xet::hash::NodeId;
use ccbt_xet::store::Store;

use super::{Credit, JobDone, NODE_BYTES_GUESS, Swarm, Waiter};
use crate::clock;
use crate::engine::peer::ToPeer;
use crate::folder::changes::{self, PackedChanges};
use crate::folder::snapshot::Snapshot;
use crate::folder::tree::NodeKind;
use crate::folder::work::{FetchError, Folder, MergeError};
use crate::proto::scheduler::{Item, PeerKey, Priority};
use crate::proto::ut_xet::{Delta, Frame};
use crate::share::heads::{Counters, HeadError};
use crate::share::{DeviceId, Head, Incarnation, Unverified};

/// A head whose snapshot could not be had is tried again after this long.
const RETRY_TIME: Duration = Duration::from_secs(3);
/// What the user is told after a rollback. Nothing is merged or published until then.
const ROLLED_BACK: &str = "the state directory is older than what this device has published (a restored backup?): \
     stop the daemon and start it again, it then goes on as a new device and nothing is lost";
/// Heads worked on or held back at once; more are refused until one is done.
const ADOPTIONS_MAX: usize = 1024;

/// A DELTA with the credit its sender used for it: while it waits here, that peer cannot send much more.
pub(super) struct Told {
    pub(super) delta: Delta,
    pub(super) _credit: Credit,
}

/// A head on its way to being believed.
pub(super) struct Adoption {
    head: Head,
    /// Who told us; it is not told again. Nobody if the DHT did.
    from: Option<PeerKey>,
    /// The change list that came with it, tried once.
    delta: Option<Arc<Told>>,
    stage: Stage,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// Something can be done now.
    Ready,
    /// A job works on it.
    Merging,
    /// Nodes were asked for.
    Fetching,
    /// Its vector names counters nobody has signed yet, or its nodes could not be had: tried again then.
    Held { until: Duration },
}

impl Adoption {
    pub(super) fn head(&self) -> &Head {
        &self.head
    }
}

/// What one attempt came to.
pub(super) enum Outcome {
    Merged {
        changed: bool,
    },
    Missing(Vec<(u8, NodeId)>),
    /// The vector names a counter this incarnation has not signed.
    Uncovered(Incarnation),
    /// The snapshot or a node of it breaks the format: the device signed nonsense.
    Invalid(String),
    /// Our own disk failed.
    Failed(String),
    /// A snapshot knows more of what this incarnation did than we do: our state was rolled back.
    RolledBack,
}

/// The peer sent a head that its device did not sign; nothing else it says counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Forged;

impl Swarm {
    /// A head arrived, with the change list that leads to it or without.
    pub(super) fn head_offered(
        &mut self,
        key: PeerKey,
        head: Unverified<Head>,
        delta: Option<Arc<Told>>,
    ) -> Result<(), Forged> {
        let device = head.claimed().claims().device;
        match self.heads.check(head, clock::unix_millis()) {
            Ok(None) => {}
            Ok(Some(head)) => self.adopt(Some(key), head, delta),
            Err(error @ (HeadError::Signature(_) | HeadError::Foreign(_))) => {
                tracing::warn!(%error, "forged head");
                self.config.metrics.heads_refused.inc();
                self.drop_peer(key, "it sent a forged head");
                return Err(Forged);
            }
            Err(error) => {
                tracing::info!(%error, "head not taken");
                self.config.metrics.heads_refused.inc();
                self.trouble = Some(self.not_taken(device, &error));
            }
        }
        Ok(())
    }

    /// Why a head was not taken, for people.
    fn not_taken(&self, device: DeviceId, error: &HeadError) -> String {
        let certificate = self.heads.certificates().find(|c| c.device() == device);
        let name = certificate.map_or_else(|| device.to_string(), |c| c.name().to_string());
        let advice = match error {
            HeadError::Future { .. } => ": set the clock that is wrong",
            _ => "",
        };
        format!("what {name} publishes is not taken: {error}{advice}")
    }

    pub(super) fn adopt(&mut self, from: Option<PeerKey>, head: Head, delta: Option<Arc<Told>>) {
        if self.rolled_back || self.wrong_suite || self.ending.is_some() {
            return;
        }
        let incarnation = head.claims().incarnation;
        if let Some(known) = self.adoptions.get_mut(&incarnation) {
            let newer = head.claims().seq > known.head.claims().seq;
            let idle = known.stage != Stage::Merging;
            if !newer {
                known.stage = if idle { Stage::Ready } else { known.stage };
                return;
            }
            if !idle {
                // The running merge answers for the old head; this one is offered again by its HEADS or the next DELTA.
                known.head = head;
                known.delta = delta;
                known.from = from;
                return;
            }
        } else if self.adoptions.len() >= ADOPTIONS_MAX {
            return;
        }
        self.adoptions.insert(
            incarnation,
            Adoption {
                head,
                from,
                delta,
                stage: Stage::Ready,
            },
        );
    }

    /// Starts the next merge, if none runs.
    pub(super) fn start_adoption(&mut self) {
        if self.adopting || self.ending.is_some() || self.rolled_back {
            return;
        }
        let ready = self
            .adoptions
            .iter_mut()
            .find(|(_, a)| a.stage == Stage::Ready);
        let Some((incarnation, adoption)) = ready else {
            return;
        };
        adoption.stage = Stage::Merging;
        let (incarnation, head, delta) =
            (*incarnation, adoption.head.clone(), adoption.delta.take());
        self.adopting = true;
        self.name_devices();
        let counters = self
            .heads
            .counters(self.adoptions.values().map(|pending| &pending.head));
        let (folder, store) = (self.config.folder.clone(), Arc::clone(&self.config.store));
        let panicked = Attempt {
            head: head.clone(),
            delta: None,
            outcome: Outcome::Invalid("merging it panicked".to_owned()),
        };
        let merge = move || {
            let change_list = delta.as_deref().map(|told| &told.delta);
            let outcome = attempt(&folder, &store, &head, change_list, &counters);
            let done = Attempt {
                head,
                delta,
                outcome,
            };
            JobDone::Adopted(incarnation, Box::new(done))
        };
        let otherwise = JobDone::Adopted(incarnation, Box::new(panicked));
        self.start_job(otherwise, merge);
    }

    pub(super) fn adopted(&mut self, incarnation: Incarnation, done: Attempt) {
        self.adopting = false;
        let now = self.clock.now();
        let Attempt {
            head,
            delta,
            outcome,
        } = done;
        let superseded = self
            .adoptions
            .get(&incarnation)
            .is_some_and(|a| a.head != head);
        let next = match outcome {
            Outcome::Merged { changed } => {
                tracing::debug!(%incarnation, changed, "head merged");
                self.believe(head, delta);
                None
            }
            Outcome::Missing(nodes) if !superseded => {
                self.fetch_nodes(incarnation, nodes);
                Some(Stage::Fetching)
            }
            Outcome::Missing(_) => Some(Stage::Ready),
            Outcome::Uncovered(other) => Some(self.held_for(&head, other)),
            Outcome::Invalid(error) => {
                tracing::warn!(%incarnation, error, "snapshot refused");
                self.config.metrics.heads_refused.inc();
                self.trouble = Some(format!("a snapshot was refused: {error}"));
                None
            }
            Outcome::RolledBack => {
                tracing::error!("this device's state was rolled back");
                self.rolled_back = true;
                self.trouble = Some(ROLLED_BACK.to_owned());
                None
            }
            Outcome::Failed(error) => {
                tracing::error!(%incarnation, error, "cannot merge");
                self.trouble = Some(error);
                Some(Stage::Held {
                    until: now + RETRY_TIME,
                })
            }
        };
        let next = if superseded { Some(Stage::Ready) } else { next };
        match (next, self.adoptions.get_mut(&incarnation)) {
            (Some(stage), Some(adoption)) => adoption.stage = stage,
            (None, _) => {
                self.adoptions.remove(&incarnation);
            }
            (Some(_), None) => {}
        }
    }

    /// The vector of `head` names counters that no head of `other` we believe has signed.
    fn held_for(&mut self, head: &Head, other: Incarnation) -> Stage {
        let incarnation = head.claims().incarnation;
        if !self.adoptions.contains_key(&other)
            && let Some(vouched) = self.heads.vouched(head, &other).cloned()
        {
            tracing::info!(%incarnation, %other, "a head with its clock ahead counts: its device went on from it");
            let from = self.adoptions.get(&incarnation).and_then(|a| a.from);
            self.adopt(from, vouched, None);
            return Stage::Ready;
        }
        tracing::debug!(%incarnation, %other, "head held back until the other's head comes");
        self.config.metrics.heads_held_back.inc();
        Stage::Held {
            until: self.clock.now() + RETRY_TIME,
        }
    }

    fn fetch_nodes(&mut self, incarnation: Incarnation, nodes: Vec<(u8, NodeId)>) {
        let items = nodes
            .into_iter()
            .map(|(kind, id)| (Item::Node { kind, id }, NODE_BYTES_GUESS));
        let deadline = self.clock.now() + self.config.read_timeout;
        let job = self.ask_for(items.collect(), Priority::Blocked, deadline);
        self.waiters.insert(job, Waiter::Adoption(incarnation));
    }

    pub(super) fn adoption_fetched(
        &mut self,
        incarnation: Incarnation,
        result: Result<(), FetchError>,
    ) {
        let now = self.clock.now();
        if let Some(hint) = self.fruitless_hint(incarnation, result.is_err()) {
            self.hints.push(hint.into());
            return;
        }
        if let Some(adoption) = self.adoptions.get_mut(&incarnation) {
            adoption.stage = match result {
                Ok(()) => Stage::Ready,
                Err(_) => Stage::Held {
                    until: now + RETRY_TIME,
                },
            };
        }
    }

    /// Takes back a head that only the DHT named and whose snapshot no member has: it is tried again when another comes.
    fn fruitless_hint(&mut self, incarnation: Incarnation, failed: bool) -> Option<Head> {
        let adoption = self.adoptions.get(&incarnation)?;
        if !failed || adoption.from.is_some() {
            return None;
        }
        self.adoptions.remove(&incarnation).map(|a| a.head)
    }

    /// Looks again at what was held back long enough.
    pub(super) fn retry_adoptions(&mut self) {
        let now = self.clock.now();
        for adoption in self.adoptions.values_mut() {
            if matches!(adoption.stage, Stage::Held { until } if until <= now) {
                adoption.stage = Stage::Ready;
            }
        }
    }

    /// The head's snapshot is merged: it counts from now on, and others hear of it.
    fn believe(&mut self, head: Head, delta: Option<Arc<Told>>) {
        let from = self
            .adoptions
            .get(&head.claims().incarnation)
            .and_then(|a| a.from);
        if !self.heads.take(head.clone()) {
            return;
        }
        self.config.metrics.heads_accepted.inc();
        self.heads_saved = false;
        self.trouble = None;
        self.replica.changed();
        for adoption in self.adoptions.values_mut() {
            if matches!(adoption.stage, Stage::Held { .. }) {
                adoption.stage = Stage::Ready;
            }
        }
        let frame = match delta {
            Some(told) => Frame::Delta(Box::new(told.delta.clone())),
            None => Frame::Heads(vec![head.clone().into()]),
        };
        self.forward(&head, from, &frame);
    }

    /// Sends a newly believed head to sqrt(n) + 3 others, with the certificate that makes it count.
    fn forward(&self, head: &Head, from: Option<PeerKey>, frame: &Frame) {
        let others = self.peers.iter().filter(|(key, _)| Some(**key) != from);
        let count = (self.peers.len() as f64).sqrt() as usize + 3;
        let certificate = self
            .heads
            .certificates()
            .find(|c| c.device() == head.claims().device)
            .cloned();
        for (_, peer) in others.take(count) {
            if let Some(certificate) = &certificate {
                let certs = Frame::Certs(vec![certificate.clone().into()]);
                let _gone = peer.commands.send(ToPeer::Send(certs));
            }
            let _gone = peer.commands.send(ToPeer::Send(frame.clone()));
        }
    }
}

/// A finished attempt with what it was about.
pub(super) struct Attempt {
    head: Head,
    delta: Option<Arc<Told>>,
    outcome: Outcome,
}

/// One attempt, on the blocking pool.
fn attempt(
    folder: &Folder,
    store: &Store,
    head: &Head,
    delta: Option<&Delta>,
    counters: &Counters,
) -> Outcome {
    let id = head.claims().snapshot;
    if let Some(delta) = delta
        && let Err(outcome) = build(folder, store, &id, delta)
    {
        return outcome;
    }
    let bytes = match store.node(&id) {
        Ok(Some(bytes)) => bytes,
        Ok(None) => return Outcome::Missing(vec![(NodeKind::Snapshot.code(), id)]),
        Err(error) => return Outcome::Failed(error.to_string()),
    };
    let snapshot = match Snapshot::decode(&bytes) {
        Ok(snapshot) => snapshot,
        Err(error) => return Outcome::Invalid(error.to_string()),
    };
    let vector = snapshot
        .vector
        .iter()
        .map(|(inc, ctr)| (Incarnation::from_bytes(inc.0), ctr));
    if let Some(incarnation) = counters.uncovered(vector) {
        return Outcome::Uncovered(incarnation);
    }
    // Only now: anybody can write a large counter into a vector, but the signature that covers ours is our own.
    if folder.is_behind_itself(&snapshot) {
        return Outcome::RolledBack;
    }
    match folder.merge(&snapshot) {
        Ok(merged) => Outcome::Merged {
            changed: merged.changed,
        },
        Err(MergeError::Missing(nodes)) => Outcome::Missing(nodes),
        Err(error @ MergeError::Flush(_)) => Outcome::Failed(error.to_string()),
        Err(error) => Outcome::Invalid(error.to_string()),
    }
}

/// Builds the head's tree from the change list, if we have its base. Otherwise the nodes are fetched one by one.
fn build(folder: &Folder, store: &Store, id: &NodeId, delta: &Delta) -> Result<(), Outcome> {
    let kind = NodeKind::Snapshot.code();
    if ccbt_xet::hash::node_id(kind, &delta.snapshot) != *id {
        let error = "the snapshot is not the one its head names";
        return Err(Outcome::Invalid(error.to_owned()));
    }
    let invalid = |error: &dyn std::fmt::Display| Outcome::Invalid(error.to_string());
    let snapshot = Snapshot::decode(&delta.snapshot).map_err(|e| invalid(&e))?;
    let put = store.put_node(kind, id, &delta.snapshot);
    put.map_err(|error| Outcome::Failed(error.to_string()))?;
    let packed = PackedChanges {
        raw_len: delta.raw_len,
        zstd: delta.changes.clone(),
    };
    // A bad change list may be the relayer's: the head and its snapshot are signed, so the nodes are fetched instead.
    let Ok(changes) = changes::unpack(&packed) else {
        return Ok(());
    };
    match folder.apply_changes(delta.base_root, changes, snapshot.tree.root) {
        Err(error @ MergeError::Flush(_)) => Err(Outcome::Failed(error.to_string())),
        _ => Ok(()),
    }
}
