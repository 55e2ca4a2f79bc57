//! Handles of pack files: opened when first read, closed again when too many are open.

use std::collections::VecDeque;
use std::io;
use std::path::Path;
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

use crate::disk::{Disk, DiskFile, OpenMode};

/// Handles kept open for reading: a process has 1024 descriptors by default, and a terabyte has
/// 16,000 packs.
const OPEN_FILES_MAX: usize = 256;

/// Place of one pack's handle.
pub(crate) type Handle = Mutex<Option<Arc<dyn DiskFile>>>;

/// Opens pack files for reading and closes those opened longest ago.
#[derive(Debug)]
pub(crate) struct OpenFiles {
    pub(crate) disk: Arc<dyn Disk>,
    opened: Mutex<VecDeque<Weak<Handle>>>,
}

impl OpenFiles {
    pub(crate) fn new(disk: Arc<dyn Disk>) -> Self {
        Self {
            disk,
            opened: Mutex::default(),
        }
    }

    /// The open file at `path`, whose handle is kept in `handle`.
    pub(crate) fn file(&self, path: &Path, handle: &Arc<Handle>) -> io::Result<Arc<dyn DiskFile>> {
        let file: Arc<dyn DiskFile> = {
            let mut handle = handle.lock();
            if let Some(file) = &*handle {
                return Ok(Arc::clone(file));
            }
            let file = Arc::from(self.disk.open(path, OpenMode::Read)?);
            *handle = Some(Arc::clone(&file));
            file
        };
        let oldest = {
            let mut opened = self.opened.lock();
            opened.push_back(Arc::downgrade(handle));
            if opened.len() > OPEN_FILES_MAX {
                opened.pop_front()
            } else {
                None
            }
        };
        if let Some(oldest) = oldest.and_then(|oldest| oldest.upgrade()) {
            oldest.lock().take();
        }
        Ok(file)
    }
}
