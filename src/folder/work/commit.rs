//! Commits: what was written becomes chunks in the store and a new version in the state.
//!
//! Only the changed part of a file is chunked again. The version is made after its chunks are durable, and the written
//! bytes are let go after the version is, so a crash finds the old version with the written bytes or the new one.

use std::sync::Arc;

use ccbt_xet::hash::NodeId;
use ccbt_xet::ingest::{self, Taken};
use ccbt_xet::store::WriteError;

use super::body::{Body, Cut, Stored};
use super::nodes::{StoreError, StoreNodes};
use super::record::Settled;
use super::{Dirty, Inner, Priority, WantedChunk, read};
use crate::folder::content::{self, ContentWriter};
use crate::folder::state::{Body as NewBody, Content};
use crate::folder::tree::NodesError;

/// An open file that goes on being written is committed this often, in nanoseconds.
const OPEN_COMMIT_NS: u64 = 5_000_000_000;

/// Why a file could not be committed. Nothing is lost: it stays as it was written.
#[derive(Debug, thiserror::Error)]
pub enum CommitError {
    #[error("{} chunks of the version it was based on are not here", .0.len())]
    MissingChunks(Vec<WantedChunk>),
    #[error("{} nodes of the version it was based on are not here", .0.len())]
    MissingNodes(Vec<(u8, NodeId)>),
    #[error("no space left for its chunks")]
    NoSpace,
    #[error("its bytes cannot be read")]
    Unreadable,
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("its chunks cannot be listed: {0}")]
    Recipe(String),
}

impl From<WriteError> for CommitError {
    fn from(error: WriteError) -> Self {
        match error {
            WriteError::NoSpace { .. } => Self::NoSpace,
            error => Self::Store(error.into()),
        }
    }
}

impl From<NodesError<StoreError>> for CommitError {
    fn from(error: NodesError<StoreError>) -> Self {
        match error {
            NodesError::Missing(nodes) => Self::MissingNodes(
                nodes
                    .iter()
                    .map(|node| (node.kind.code(), node.id))
                    .collect(),
            ),
            NodesError::Store(StoreError::Write(error)) => error.into(),
            NodesError::Store(error) => Self::Store(error),
            error => Self::Recipe(error.to_string()),
        }
    }
}

/// A commit whose chunks are in the store.
struct Ready {
    body: Arc<Body>,
    cut: Cut,
    stored: Stored,
}

impl Inner {
    /// Commits the files that are closed or synced, or (`all`) every changed one. Those that cannot be now are left as
    /// they are; the first reason is given back.
    pub(super) fn commit_due(self: &Arc<Self>, all: bool) -> Result<(), CommitError> {
        loop {
            let (settled, result) = self.commit_round(all)?;
            match result {
                // Written bytes that are chunks now take their space twice until they are let go.
                Err(CommitError::NoSpace) if settled > 0 => {
                    if let Err(error) = self.empty_trash() {
                        tracing::warn!(%error, "written bytes that are not needed any more stay");
                        return Err(CommitError::NoSpace);
                    }
                }
                result => return result,
            }
        }
    }

    /// Commits what fits. How many files that was, and why others were left.
    fn commit_round(
        self: &Arc<Self>,
        all: bool,
    ) -> Result<(usize, Result<(), CommitError>), CommitError> {
        // What is stored here is named by the state only once it is settled.
        let _unnamed = self.config.store.hold();
        let mut ready = Vec::new();
        let mut failed = Ok(());
        for body in self.due(all) {
            let cut = body.freeze();
            match self.encode(&cut) {
                Ok(stored) => ready.push(Ready { body, cut, stored }),
                Err(error) => {
                    self.defer(&body, &error);
                    failed = failed.and(Err(error));
                }
            }
        }
        let settled = ready.len();
        if settled > 0 {
            self.config.store.sync()?;
            for ready in ready {
                self.settle(ready)?;
            }
        }
        Ok((settled, failed))
    }

    fn due(&self, all: bool) -> Vec<Arc<Body>> {
        let now = self.now_ns();
        let core = self.core.lock();
        let bodies = core.dirty.values().filter(|body| {
            let page = body.page();
            let old = page
                .since
                .is_some_and(|since| now.saturating_sub(since) > OPEN_COMMIT_NS);
            page.is_dirty() && !page.waiting && (all || page.due || page.writers == 0 || old)
        });
        bodies.cloned().collect()
    }

    /// What is missing is asked for, and the commit tried again when it is here.
    fn defer(self: &Arc<Self>, body: &Arc<Body>, error: &CommitError) {
        let ino = body.ino.0;
        match error {
            // Usual where content comes on demand.
            CommitError::MissingChunks(_) | CommitError::MissingNodes(_) => {
                tracing::debug!(%error, ino, "a file is not committed yet");
            }
            _ => tracing::warn!(%error, ino, "a file is not committed yet"),
        }
        body.page().due = true;
        let (inner, body) = (self.clone(), body.clone());
        let again = {
            let body = body.clone();
            Box::new(move |result: Result<(), super::FetchError>| {
                body.page().waiting = false;
                if result.is_ok() {
                    inner.config.observer.dirty(Dirty::Closed);
                }
            })
        };
        let fetch = &self.config.fetch;
        match error {
            CommitError::MissingChunks(want) => {
                body.page().waiting = true;
                fetch.chunks(want.clone(), Priority::Blocking, again);
            }
            CommitError::MissingNodes(want) => {
                body.page().waiting = true;
                fetch.nodes(want.clone(), Priority::Blocking, again);
            }
            _ => {}
        }
    }

    /// Puts the content of a cut into the store.
    fn encode(&self, cut: &Cut) -> Result<Stored, CommitError> {
        let new_len = cut.overlay.size();
        let changed = cut.overlay.changed();
        let whole = changed.first().is_some_and(|range| *range == (0..new_len));
        if !whole && cut.stored.size > 0 {
            let stored = self.patch(cut, &changed)?;
            self.pack_kept(&cut.stored, &stored)?;
            return Ok(stored);
        }
        let nodes = StoreNodes(&self.config.store);
        let mut writer = ContentWriter::new(&nodes);
        let mut at = 0;
        let read = |buf: &mut [u8]| {
            let take = (new_len - at).min(buf.len() as u64) as usize;
            if take > 0 {
                self.read_cut(cut, at, &mut buf[..take])?;
            }
            at += take as u64;
            Ok(Taken::Bytes(take))
        };
        ingest::store_stream(&self.config.store, new_len, read, |chunk| {
            Ok::<_, CommitError>(writer.push(content::ChunkRef {
                hash: chunk.hash,
                len: chunk.len,
            })?)
        })?;
        Ok(stored(writer.finish()?))
    }

    pub(super) fn read_cut(
        &self,
        cut: &Cut,
        offset: u64,
        buf: &mut [u8],
    ) -> Result<(), CommitError> {
        let extract = cut.extract(offset..offset + buf.len() as u64);
        let bytes = self.assemble(&extract).map_err(|lack| match lack {
            read::Lack::Chunks(want) => CommitError::MissingChunks(want),
            read::Lack::Nodes(want) => CommitError::MissingNodes(want),
            read::Lack::Failed(_) => CommitError::Unreadable,
        })?;
        if bytes.len() != buf.len() {
            return Err(CommitError::Unreadable);
        }
        buf.copy_from_slice(&bytes);
        Ok(())
    }

    /// Makes the new version of a file whose chunks are durable.
    fn settle(&self, ready: Ready) -> Result<(), CommitError> {
        let Ready { body, cut, stored } = ready;
        let _gate = self.gate.read();
        let ticket = {
            let mut core = self.core.lock();
            let mut op = core.op(self.now_ns());
            let mut page = body.page();
            if page.unlinked {
                return Ok(());
            }
            let new = NewBody {
                content: stored.content.clone(),
                size: stored.size,
                mtime: cut.mtime,
            };
            let digest = u64::from_be_bytes(stored.content.digest().0);
            let changes = match op.core.state.write(&mut page.at, new, op.by) {
                Ok(changes) => changes,
                Err(error) => return Err(CommitError::Recipe(error.to_string())),
            };
            let idle = body.try_pen();
            op.core.trash.extend(page.settle(&cut, stored));
            page.listed = page.is_dirty() || idle.is_none();
            op.record.settled.push(Settled {
                body: body.id,
                stamp: cut.overlay.stamp(),
                base: page.base(),
            });
            let (listed, dir, shown) = (page.listed, page.at.key.dir, page.at.shown.clone());
            drop(page);
            drop(idle);
            if !listed {
                op.core.dirty.remove(&body.id);
            }
            op.rehome(body.ino, dir, shown, digest);
            op.follow(changes);
            op.core.release_body(body.ino);
            op.finish().0.map(|record| self.journal.queue(record))
        };
        if let Some(ticket) = ticket
            && let Err(error) = self.journal.write_out(ticket)
        {
            tracing::error!(%error, "a commit waits to be written to the journal");
        }
        Ok(())
    }
}

impl Body {
    fn try_pen(&self) -> Option<parking_lot::MutexGuard<'_, super::body::Pen>> {
        self.pen.try_lock()
    }
}

pub(super) fn stored((content, size): (Vec<u8>, u64)) -> Stored {
    Stored {
        content: Content::from(&content[..]),
        size,
    }
}
