//! What a torrent has, for other torrents of this daemon: its files, where they lie, and the chunks they are made of.
//!
//! Chunk lists are made when they are wanted for the first time and kept beside the resume log. They may be out of date or
//! damaged: whoever uses them hashes what it reads.

use std::io::{self, Read};
use std::path::PathBuf;
use std::sync::Arc;

use super::Metadata;
use super::actor::Actor;
use super::disk::DiskTorrent;
use crate::engine::create::list_chunks;
use crate::proto::bitfield::Bitfield;
use crate::proto::metainfo::File;
use crate::proto::metainfo::chunks::ChunkLists;
use crate::state_file;

/// In the state folder of the torrent.
const LISTS_FILE: &str = "chunks";
/// Longest such file read: of 2 TiB of content.
const LISTS_BYTES_MAX: u64 = 1 << 30;

/// Torrents that may have content which another one wants.
pub trait Lenders: Send + Sync + std::fmt::Debug {
    /// All torrents but the one of this short hash.
    fn lenders(&self, but: &[u8; 20]) -> Vec<super::TorrentHandle>;
}

/// What a torrent has at a moment.
pub(in crate::engine) struct Lent {
    pub(super) metadata: Arc<Metadata>,
    disk: Arc<DiskTorrent>,
    have: Bitfield,
    lists: PathBuf,
}

impl Actor {
    /// What is here. Nothing of a private torrent: which blocks somebody does not ask for shows what it has.
    pub(super) fn lend(&self) -> Option<Lent> {
        let metadata = self.metadata.clone().filter(|m| !m.info.private)?;
        Some(Lent {
            metadata,
            disk: Arc::clone(&self.content.as_ref()?.disk),
            have: self.machine.have()?.clone(),
            lists: self.config.state.join(LISTS_FILE),
        })
    }
}

impl Lent {
    /// The file is here whole.
    pub(super) fn has(&self, file: &File) -> bool {
        let bytes = u64::from(self.disk.layout.piece_bytes().max(1));
        let pieces = file.offset / bytes..(file.offset + file.length).div_ceil(bytes);
        pieces.into_iter().all(|piece| self.have.has(piece as u32))
    }

    /// Reads from the piece space.
    pub(super) fn read(&self, at: u64, buf: &mut [u8]) -> io::Result<()> {
        self.disk.storage.read(at, buf)
    }

    /// The chunks of those files that are whole and that `wants` would like to know of.
    pub(super) fn lists(&self, wants: impl Fn(&File) -> bool) -> ChunkLists {
        let info = &self.metadata.info;
        let mut lists = self.kept().unwrap_or_default();
        let known = |file: &&File| lists.of(file.index).is_none();
        let missing: Vec<&File> = info
            .files
            .iter()
            .filter(|file| file.length > 0 && wants(file) && self.has(file))
            .filter(known)
            .collect();
        let news = !missing.is_empty();
        for file in missing {
            let content = Content {
                of: self,
                at: file.offset,
                end: file.offset + file.length,
            };
            match list_chunks(content, file.length) {
                Ok(Some(list)) => lists.set(file.index, list),
                Ok(None) => {}
                Err(error) => tracing::info!(%error, path = %file.path, "a file cannot be lent"),
            }
        }
        if news && let Err(error) = state_file::replace(&self.lists, &lists.encode()) {
            tracing::info!(%error, "chunk lists will be made again");
        }
        lists
    }

    fn kept(&self) -> Option<ChunkLists> {
        let file = std::fs::File::open(&self.lists).ok()?;
        let mut bytes = Vec::new();
        file.take(LISTS_BYTES_MAX).read_to_end(&mut bytes).ok()?;
        ChunkLists::parse(&bytes, &self.metadata.info)
    }
}

/// A file of the torrent as a stream.
struct Content<'a> {
    of: &'a Lent,
    at: u64,
    end: u64,
}

impl Read for Content<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let left = usize::try_from(self.end - self.at).unwrap_or(usize::MAX);
        let len = left.min(buf.len());
        self.of
            .read(self.at, buf.get_mut(..len).unwrap_or_default())?;
        self.at += len as u64;
        Ok(len)
    }
}
