//! Makes a torrent of a file or folder on disk: lists it, reads each piece once and hashes it on all cores.

use std::fs::{self, File, Metadata};
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Component, Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;

use ccbt_xet::hash::Suite;
use ccbt_xet::ingest::{name_stream, reader};
use ccbt_xet::recipe::ChunkRef;
use thiserror::Error;

use crate::proto::metainfo::chunks::{ChunkLists, MARKED_BYTES, Mark, mark};
use crate::proto::metainfo::draft::{Draft, DraftFile, Extras, Piece, PieceHash, Version};
use crate::proto::metainfo::path::{FilePath, Name};
use crate::proto::metainfo::{Attributes, FILES_MAX, MetainfoError, Torrent};

/// What the torrent is to be.
#[derive(Debug, Clone)]
pub struct CreateOptions {
    pub version: Version,
    /// Bytes in a piece, a power of two; chosen by the size of the content if absent.
    pub piece_bytes: Option<u32>,
    pub extras: Extras,
    /// With chunk lists (docs/bep_xet.md).
    pub chunks: bool,
}

/// A finished torrent.
#[derive(Debug, Clone)]
pub struct Created {
    /// The `.torrent` file.
    pub torrent: Vec<u8>,
    /// What lies below the path but is not in the torrent: special files, and symbolic links that lead out of it.
    pub left_out: Vec<PathBuf>,
}

/// Why no torrent could be made.
#[derive(Debug, Error)]
pub enum CreateError {
    #[error("cannot read {}: {error}", path.display())]
    Read { path: PathBuf, error: io::Error },
    #[error("{} changed while it was read", .0.display())]
    Changed(PathBuf),
    #[error("{} is neither a file nor a directory", .0.display())]
    Special(PathBuf),
    #[error(transparent)]
    Metainfo(#[from] MetainfoError),
}

/// Makes a torrent of `path`. `progress` hears the bytes hashed so far and in all, from several threads.
pub fn create(
    path: &Path,
    options: CreateOptions,
    progress: &(dyn Fn(u64, u64) + Sync),
) -> Result<Created, CreateError> {
    let read = |error| CreateError::Read {
        path: path.to_owned(),
        error,
    };
    let root = path.canonicalize().map_err(read)?;
    let top = Name::new(root.file_name().unwrap_or_default().as_bytes())?;
    let mut listing = Listing {
        root: &root,
        top: top.clone(),
        files: Vec::new(),
        left_out: Vec::new(),
    };
    let metadata = fs::metadata(&root).map_err(read)?;
    if metadata.is_dir() {
        listing.folder(&root, &mut vec![top.clone()])?;
    } else if metadata.is_file() {
        listing.add(vec![top.clone()], &metadata, None)?;
    } else {
        return Err(CreateError::Special(root));
    }
    let Listing {
        files, left_out, ..
    } = listing;
    let chunks = options.chunks;
    let draft = Draft::new(
        top,
        options.version,
        options.piece_bytes,
        files,
        options.extras,
    )?;
    let hashes = hash_pieces(&draft, &root, progress)?;
    let mut torrent = draft.finish(&hashes);
    if chunks {
        add_chunks(&mut torrent, &root)?;
    }
    Ok(Created { torrent, left_out })
}

/// Cuts the files once more, into chunks, and puts the lists into the torrent.
fn add_chunks(torrent: &mut Vec<u8>, root: &Path) -> Result<(), CreateError> {
    let info = Torrent::parse(torrent)?.info;
    let mut lists = ChunkLists::default();
    for file in info.files.iter().filter(|file| file.length > 0) {
        let path = root.parent().unwrap_or(root).join(file.path.to_path());
        let read = |error| CreateError::Read {
            path: path.clone(),
            error,
        };
        let content = File::open(&path).map_err(read)?;
        let mut content = Marking::of(content);
        let list = list_chunks(&mut content, file.length).map_err(read)?;
        let list = list.ok_or_else(|| CreateError::Changed(path.clone()))?;
        lists.set(file.index, list);
        lists.set_marks(file.index, content.finish());
    }
    lists.add_to(torrent);
    Ok(())
}

/// Marks the blocks of what is read through it.
struct Marking<R> {
    inner: R,
    block: Vec<u8>,
    marks: Vec<Mark>,
}

impl<R> Marking<R> {
    fn of(inner: R) -> Self {
        let (block, marks) = (Vec::new(), Vec::new());
        Self {
            inner,
            block,
            marks,
        }
    }

    fn finish(mut self) -> Vec<Mark> {
        if !self.block.is_empty() {
            self.marks.push(mark(&self.block));
        }
        self.marks
    }
}

impl<R: Read> Read for Marking<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let len = self.inner.read(buf)?;
        let mut bytes = buf.get(..len).unwrap_or_default();
        while !bytes.is_empty() {
            let room = MARKED_BYTES as usize - self.block.len();
            let (now, later) = bytes.split_at(room.min(bytes.len()));
            self.block.extend_from_slice(now);
            bytes = later;
            if self.block.len() == MARKED_BYTES as usize {
                self.marks.push(mark(&self.block));
                self.block.clear();
            }
        }
        Ok(len)
    }
}

/// The chunks of a file; `None` if it is not as long as it was.
pub fn list_chunks(content: impl Read + Send, length: u64) -> io::Result<Option<Vec<ChunkRef>>> {
    let mut list = Vec::new();
    let note = |chunk| {
        list.push(chunk);
        Ok(())
    };
    name_stream::<io::Error>(Suite::Blake3, length, reader(content), note)?;
    let bytes: u64 = list
        .iter()
        .map(|chunk: &ChunkRef| u64::from(chunk.len))
        .sum();
    Ok((bytes == length).then_some(list))
}

struct Listing<'a> {
    root: &'a Path,
    top: Name,
    files: Vec<DraftFile>,
    left_out: Vec<PathBuf>,
}

impl Listing<'_> {
    fn folder(&mut self, dir: &Path, parts: &mut Vec<Name>) -> Result<(), CreateError> {
        let read = |error| CreateError::Read {
            path: dir.to_owned(),
            error,
        };
        for entry in fs::read_dir(dir).map_err(read)? {
            let entry = entry.map_err(read)?;
            let path = entry.path();
            let read = |error| CreateError::Read {
                path: path.clone(),
                error,
            };
            let metadata = fs::symlink_metadata(&path).map_err(read)?;
            parts.push(Name::new(entry.file_name().as_bytes())?);
            if metadata.is_dir() {
                self.folder(&path, parts)?;
            } else if metadata.is_file() {
                self.add(parts.clone(), &metadata, None)?;
            } else {
                let target = metadata
                    .is_symlink()
                    .then(|| fs::read_link(&path))
                    .transpose();
                match target
                    .map_err(read)?
                    .and_then(|target| self.inside(dir, &target))
                {
                    Some(target) => self.add(parts.clone(), &metadata, Some(target))?,
                    None => self.left_out.push(path),
                }
            }
            parts.pop();
        }
        Ok(())
    }

    fn add(
        &mut self,
        parts: Vec<Name>,
        metadata: &Metadata,
        symlink: Option<FilePath>,
    ) -> Result<(), CreateError> {
        if self.files.len() >= FILES_MAX {
            return Err(MetainfoError::TooManyFiles.into());
        }
        let executable = symlink.is_none() && metadata.mode() & 0o100 != 0;
        self.files.push(DraftFile {
            path: FilePath::new(parts)?,
            length: if symlink.is_some() { 0 } else { metadata.len() },
            attributes: Attributes {
                executable,
                hidden: false,
            },
            symlink,
        });
        Ok(())
    }

    /// The target of a link as a path in the torrent; `None` if it leads out of it.
    fn inside(&self, dir: &Path, target: &Path) -> Option<FilePath> {
        let mut place = dir.strip_prefix(self.root).ok()?.to_path_buf();
        for component in target.components() {
            match component {
                Component::Normal(part) => place.push(part),
                Component::CurDir => {}
                Component::ParentDir if place.pop() => {}
                _ => return None,
            }
        }
        let below = place.iter().map(|part| Name::new(part.as_bytes()));
        let parts: Result<Vec<_>, _> = std::iter::once(Ok(self.top.clone())).chain(below).collect();
        let parts = parts.ok().filter(|parts| parts.len() > 1)?;
        FilePath::new(parts).ok()
    }
}

/// Every piece's hash, in order. Threads take the next piece in turn, so the disk is read nearly in order.
fn hash_pieces(
    draft: &Draft,
    root: &Path,
    progress: &(dyn Fn(u64, u64) + Sync),
) -> Result<Vec<PieceHash>, CreateError> {
    let pieces = draft.pieces();
    let total = draft.files().iter().map(|file| file.length).sum();
    let next = AtomicUsize::new(0);
    let shared = Mutex::new((vec![None; pieces.len()], 0u64));
    let work = || -> Result<(), CreateError> {
        let mut reader = Reader {
            draft,
            root,
            open: None,
            buffer: Vec::new(),
        };
        while let Some((n, piece)) = {
            let n = next.fetch_add(1, Ordering::Relaxed);
            pieces.get(n).map(|piece| (n, piece))
        } {
            let hash = piece.hash(reader.read(piece)?);
            let mut shared = shared.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(slot) = shared.0.get_mut(n) {
                *slot = Some(hash);
            }
            shared.1 += piece.bytes() as u64;
            progress(shared.1, total);
        }
        Ok(())
    };
    let threads = thread::available_parallelism().map_or(1, usize::from);
    thread::scope(|scope| {
        let running: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        let ended = running.into_iter().map(|thread| match thread.join() {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        });
        ended.collect::<Result<(), _>>()
    })?;
    let hashes = shared
        .into_inner()
        .unwrap_or_else(PoisonError::into_inner)
        .0;
    Ok(hashes.into_iter().flatten().collect())
}

/// One thread's buffer and the file it read last.
struct Reader<'a> {
    draft: &'a Draft,
    root: &'a Path,
    open: Option<(usize, File)>,
    buffer: Vec<u8>,
}

impl Reader<'_> {
    fn read(&mut self, piece: &Piece) -> Result<&[u8], CreateError> {
        self.buffer.resize(piece.bytes(), 0);
        let mut at = 0;
        for (number, offset, len) in &piece.parts {
            let path = self.path(*number);
            let failed = |error: io::Error| match error.kind() {
                io::ErrorKind::UnexpectedEof => CreateError::Changed(path.clone()),
                _ => CreateError::Read {
                    path: path.clone(),
                    error,
                },
            };
            if self.open.as_ref().is_none_or(|(open, _)| open != number) {
                self.open = Some((*number, File::open(&path).map_err(failed)?));
            }
            let end = at + *len as usize;
            if let (Some((_, file)), Some(part)) = (&self.open, self.buffer.get_mut(at..end)) {
                file.read_exact_at(part, *offset).map_err(failed)?;
            }
            at = end;
        }
        Ok(&self.buffer)
    }

    fn path(&self, number: usize) -> PathBuf {
        let below = self
            .draft
            .files()
            .get(number)
            .map(|file| file.path.to_path());
        let below = below.unwrap_or_default();
        self.root.parent().unwrap_or(self.root).join(below)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;
    use crate::proto::metainfo::Torrent;

    fn options(version: Version) -> CreateOptions {
        CreateOptions {
            version,
            piece_bytes: Some(16 << 10),
            extras: Extras::default(),
            chunks: false,
        }
    }

    #[test]
    fn a_folder_becomes_a_torrent() {
        let dir = tempfile::tempdir().unwrap();
        let top = dir.path().join("top");
        fs::create_dir_all(top.join("sub")).unwrap();
        fs::write(top.join("sub/big"), vec![7; 50_000]).unwrap();
        fs::write(top.join("small"), b"abc").unwrap();
        symlink("../small", top.join("sub/in")).unwrap();
        symlink("/etc/passwd", top.join("out")).unwrap();
        symlink("../../x", top.join("sub/above")).unwrap();
        for version in [Version::V1, Version::V2, Version::Hybrid] {
            let created = create(&top, options(version), &|_, _| {}).unwrap();
            let torrent = Torrent::parse(&created.torrent).unwrap();
            let files: Vec<_> = torrent
                .info
                .files
                .iter()
                .map(|f| (f.path.to_string(), f.length))
                .collect();
            let expected = [("top/small", 3), ("top/sub/big", 50_000), ("top/sub/in", 0)];
            assert_eq!(files, expected.map(|(path, len)| (path.to_owned(), len)));
            let link = torrent.info.files[2].symlink.as_ref().unwrap();
            assert_eq!(link.to_string(), "top/small");
            let mut left_out = created.left_out;
            left_out.sort();
            assert_eq!(left_out, [top.join("out"), top.join("sub/above")]);
        }
    }

    #[test]
    fn progress_ends_at_the_total() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("f");
        fs::write(&file, vec![1; 100_000]).unwrap();
        let last = Mutex::new((0, 0));
        let created = create(&file, options(Version::V1), &|done, total| {
            *last.lock().unwrap() = (done, total);
        });
        assert_eq!(*last.lock().unwrap(), (100_000, 100_000));
        let torrent = Torrent::parse(&created.unwrap().torrent).unwrap();
        assert_eq!(torrent.info.pieces_v1.len(), 7);
    }
}
