//! Plain files as contents: chunked and hashed from end to end, their chunks stored or left where they are.

use std::io;

use ccbt_xet::hash::ChunkHash;
use ccbt_xet::recipe::ChunkRef;

use super::Folder;
use super::commit::{CommitError, chunk_all};
use super::nodes::StoreNodes;
use crate::folder::content::{self, ContentWriter};
use crate::folder::state::Content;
use crate::folder::tree::NodesError;

/// Whether the bytes of chunks go into the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keep {
    Stored,
    /// They stay in the plain file, from which the store borrows them.
    Borrowed,
}

/// A file as content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ingested {
    pub content: Content,
    /// Bytes.
    pub size: u64,
    /// In file order, with what a borrower needs to find them.
    pub chunks: Vec<(ChunkHash, u64, u32)>,
}

/// Why a file could not be taken in.
#[derive(Debug, thiserror::Error)]
pub enum IngestError {
    #[error("the file cannot be read: {0}")]
    Read(#[from] io::Error),
    #[error(transparent)]
    Store(#[from] CommitError),
}

impl Folder {
    /// Chunks `len` bytes that `read(offset, buf)` gives. Neither chunks nor nodes are synced.
    pub fn ingest(
        &self,
        len: u64,
        read: impl FnMut(u64, &mut [u8]) -> io::Result<()> + Send,
        keep: Keep,
    ) -> Result<Ingested, IngestError> {
        let store = &self.inner.config.store;
        let mut read = read;
        let chunks = chunk_all(
            store.suite(),
            len,
            |offset, buf| Ok::<_, IngestError>(read(offset, buf)?),
            keep == Keep::Stored,
            |batch| {
                store.put_chunks(batch).map_err(CommitError::from)?;
                Ok(())
            },
        )?;
        Ok(self.listed(&chunks)?)
    }

    fn listed(&self, chunks: &[ChunkRef]) -> Result<Ingested, CommitError> {
        let nodes = StoreNodes(&self.inner.config.store);
        let mut writer = ContentWriter::new(&nodes);
        let mut at = 0;
        let mut ranges = Vec::with_capacity(chunks.len());
        for chunk in chunks {
            let pushed = writer.push(content::ChunkRef {
                hash: chunk.hash,
                len: chunk.len,
            });
            pushed.map_err(|error: NodesError<_>| CommitError::from(error))?;
            ranges.push((chunk.hash, at, chunk.len));
            at += u64::from(chunk.len);
        }
        let (content, size) = writer.finish()?;
        Ok(Ingested {
            content: Content::from(&content[..]),
            size,
            chunks: ranges,
        })
    }
}
