//! Opening and closing files: who gets which content.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use ccbt_mount::{OpenMode, VolumeError};
use parking_lot::Mutex;

use super::body::{Body, Stored};
use super::core::Core;
use super::inodes::{Ino, NodeKind};
use super::read::Ahead;
use super::record::{BodyId, Shape};
use super::{Dirty, Inner};
use crate::folder::state::FileKind;

/// An open file. Goes on reading the version it was opened at, whatever is merged meanwhile.
#[derive(Debug)]
pub struct OpenFile {
    pub(super) ino: Ino,
    pub(super) body: Arc<Body>,
    pub(super) mode: OpenMode,
    pub(super) ahead: Mutex<Ahead>,
    /// What is read ahead for it is of no use once it is closed.
    pub(super) interest: Arc<()>,
}

/// What the kernel knows of a file and need not ask again when it is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Trusted {
    pub(crate) pages: bool,
    pub(crate) size: bool,
}

impl Inner {
    /// Opens a file, and says what of it the kernel may trust.
    pub(crate) fn open(
        &self,
        ino: Ino,
        mode: OpenMode,
    ) -> Result<(OpenFile, Trusted), VolumeError> {
        if mode.write && self.config.read_only {
            return Err(VolumeError::ReadOnly);
        }
        let (body, trusted) = {
            let mut core = self.core.lock();
            let body = self.body_of(&mut core, ino)?;
            let content = body.page().stored.content.digest();
            body.page().writers += u32::from(mode.write);
            let inode = core.inodes.get_mut(ino).ok_or(VolumeError::NotFound)?;
            inode.opens += 1;
            if mode.write {
                inode.writing = Arc::downgrade(&body);
            }
            let cached = u64::from_be_bytes(content.0);
            let pages = inode.cached.replace(cached) == Some(cached);
            let size = pages || !inode.renewed;
            (body, Trusted { pages, size })
        };
        let file = OpenFile {
            ino,
            body,
            mode,
            ahead: Mutex::default(),
            interest: Arc::default(),
        };
        if mode.truncate
            && let Err(error) = self.reshape(&file.body, Shape::Size(0))
        {
            self.close(&file);
            return Err(error);
        }
        Ok((file, trusted))
    }

    /// The content a file inode has now.
    pub(super) fn body_of(&self, core: &mut Core, ino: Ino) -> Result<Arc<Body>, VolumeError> {
        let inode = core.inode(ino)?;
        match inode.meta.kind {
            NodeKind::Dir(_) => return Err(VolumeError::IsDirectory),
            NodeKind::Special { .. } => return Err(VolumeError::NotSupported),
            NodeKind::File => {}
        }
        if let Some(body) = &inode.body {
            return Ok(body.clone());
        }
        let (spot, node) = core.node_of(inode).ok_or(VolumeError::Stale)?;
        if node.version.kind == FileKind::Symlink {
            return Err(VolumeError::Invalid);
        }
        let base = core
            .state
            .base(spot.dir, spot.name.as_bytes())
            .ok_or(VolumeError::Stale)?;
        let stored = Stored {
            content: node.version.content,
            size: node.version.size,
        };
        let id = BodyId(self.next_number.fetch_add(1, Ordering::Relaxed));
        let body = Arc::new(Body::new(id, ino, base, stored, node.mtime));
        core.note_body(&body);
        if let Some(inode) = core.inodes.get_mut(ino) {
            inode.body = Some(body.clone());
        }
        Ok(body)
    }

    /// A descriptor was closed: what was written is to be committed.
    pub(crate) fn flush(&self, file: &OpenFile) {
        let mut page = file.body.page();
        if page.is_dirty() && file.mode.write {
            page.due = true;
            drop(page);
            self.config.observer.dirty(Dirty::Closed);
        }
    }

    pub(crate) fn close(&self, file: &OpenFile) {
        let dirty = {
            let mut core = self.core.lock();
            let dirty = {
                let mut page = file.body.page();
                page.writers -= u32::from(file.mode.write);
                if page.writers == 0 && page.is_dirty() {
                    page.due = true;
                }
                page.is_dirty() && !page.unlinked
            };
            if let Some(inode) = core.inodes.get_mut(file.ino) {
                inode.opens = inode.opens.saturating_sub(1);
                inode.divided &= inode.opens > 0;
            }
            core.release_body(file.ino);
            dirty
        };
        if dirty {
            self.config.observer.dirty(Dirty::Closed);
        }
    }
}

impl Core {
    /// Lets go of a content nobody has open and that needs no commit.
    pub(super) fn release_body(&mut self, ino: Ino) {
        let Some(inode) = self.inodes.get_mut(ino) else {
            return;
        };
        let needed = inode.body.as_ref().is_some_and(|body| body.page().listed);
        if inode.opens == 0 && !needed {
            if let Some(body) = inode.body.take() {
                let unlinked = body.page().unlinked;
                self.trash
                    .extend(body.page().staging_files().filter(|_| unlinked));
            }
            self.drop_if_gone(ino);
        }
    }
}
