//! Publishing what changed here: one job at a time, then DELTA to every connected peer.

use std::sync::Arc;

use super::{JobDone, Swarm};
use crate::engine::peer::ToPeer;
use crate::folder::changes;
use crate::folder::work::{Publication, PublishError, Unsigned};
use crate::proto::ut_xet::{Delta, Frame};
use crate::share::head::FLAG_HOME;
use crate::share::{Head, HeadClaims};

/// DELTA must fit a frame of 256 KiB with its head and snapshot. Without it the receiver fetches the nodes it lacks.
const COMPRESSED_LEN_MAX: usize = 160 * 1024;

/// What a publication came to.
pub(super) struct Outcome(Result<Option<(Head, Frame)>, NotPublished>);

/// Why nothing was published. It is tried again.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{why}")]
pub struct NotPublished {
    why: String,
    /// There is no space left for what is to be written first.
    pub is_disk_full: bool,
}

impl NotPublished {
    pub(super) fn because(why: impl std::fmt::Display) -> Self {
        Self {
            why: why.to_string(),
            is_disk_full: false,
        }
    }
}

impl From<PublishError> for NotPublished {
    fn from(error: PublishError) -> Self {
        Self {
            is_disk_full: error.is_disk_full(),
            ..Self::because(error)
        }
    }
}

impl Swarm {
    /// After a restart there may be changes that were not published before the end.
    pub(super) fn start_publication_if_dirty(&mut self) {
        self.pace.changed(self.clock.now());
    }

    /// Publishes what there is now, after a publication that runs already.
    pub(super) fn publish_soon(&mut self) {
        self.publish_again = self.publishing;
        self.start_publication();
    }

    pub(super) fn start_publication(&mut self) {
        if self.publishing || self.rolled_back {
            self.refuse_waiters();
            return;
        }
        self.publishing = true;
        self.publish_waiters.append(&mut self.next_publish_waiters);
        self.pace.published(self.clock.now());
        let folder = self.config.folder.clone();
        let device = Arc::clone(&self.config.device);
        let incarnation = self.config.incarnation;
        let epoch = self.config.epoch;
        let flags = if self.config.keeper { FLAG_HOME } else { 0 };
        let head_file = self.config.own_head_file();
        let publish = move || {
            let sign = |unsigned: Unsigned| {
                let claims = HeadClaims {
                    epoch,
                    device: device.id(),
                    incarnation,
                    ctr: unsigned.ctr,
                    seq: unsigned.seq,
                    snapshot: unsigned.snapshot,
                    previous: unsigned.prev,
                    hlc: unsigned.hlc,
                    flags,
                };
                let head = Head::sign(&device, claims).encode();
                crate::state_file::replace(&head_file, &head)?;
                Ok(head)
            };
            let published = folder.publish(&sign);
            JobDone::Published(Box::new(Outcome(match published {
                Ok(None) => Ok(None),
                Ok(Some(publication)) => announce(publication)
                    .map(Some)
                    .map_err(NotPublished::because),
                Err(error) => Err(error.into()),
            })))
        };
        let panicked = Outcome(Err(NotPublished::because("publishing panicked")));
        let otherwise = JobDone::Published(Box::new(panicked));
        self.start_job(otherwise, publish);
    }

    /// After a rollback nothing is published: whoever asks is told.
    fn refuse_waiters(&mut self) {
        if self.rolled_back {
            for waiter in self.next_publish_waiters.drain(..) {
                let _nobody = waiter.send(Err(NotPublished::because(
                    "the state directory was rolled back",
                )));
            }
        }
    }

    pub(super) fn published(&mut self, outcome: Outcome) {
        self.publishing = false;
        let now = self.clock.now();
        let result = match outcome.0 {
            Ok(None) => Ok(()),
            Ok(Some((head, frame))) => {
                self.published_at = Some(now);
                self.config.metrics.snapshots_published.inc();
                self.heads.take(head);
                self.heads_saved = false;
                self.replica.changed();
                for peer in self.peers.values() {
                    let _gone = peer.commands.send(ToPeer::Send(frame.clone()));
                }
                self.trouble = None;
                Ok(())
            }
            Err(error) => {
                tracing::warn!(%error, "not published");
                self.trouble = Some(format!("not published: {error}"));
                self.pace.failed(now);
                Err(error)
            }
        };
        for waiter in self.publish_waiters.drain(..) {
            let _nobody = waiter.send(result.clone());
        }
        if std::mem::take(&mut self.publish_again) {
            self.start_publication();
        }
    }
}

/// The frame that tells peers: with the change list if it is short enough.
fn announce(publication: Publication) -> Result<(Head, Frame), String> {
    let head = Head::decode(&publication.head).map_err(|error| error.to_string())?;
    let head = head.verify().map_err(|error| error.to_string())?;
    let packed = publication
        .changes
        .and_then(|list| changes::pack(&list).ok())
        .filter(|packed| packed.zstd.len() + publication.snapshot.len() <= COMPRESSED_LEN_MAX);
    let frame = match packed {
        Some(packed) => Frame::Delta(Box::new(Delta {
            head: head.clone().into(),
            snapshot: publication.snapshot.into(),
            base_root: publication.base_root,
            raw_len: packed.raw_len,
            changes: packed.zstd,
        })),
        None => Frame::Heads(vec![head.clone().into()]),
    };
    Ok((head, frame))
}
