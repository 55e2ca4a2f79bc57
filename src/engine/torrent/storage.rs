//! Where the bytes of a torrent lie: files below the output folder, and one sparse file of ours for what belongs to files
//! that are not wanted.
//!
//! Which files lie in the folder is noted in a file of ours (`placed`): a file that is there stays there though it is not wanted any more,
//! and one that is wanted later gets its bytes out of ours first. [`relocate`](super::relocate) changes where things are.
//!
//! Positions are those of the piece space; gaps (pad files, ends of v2 pieces) read as zeros and swallow what is written.
//! Nothing is opened through a symbolic link, so no byte can land outside the output folder.

use std::collections::{HashMap, VecDeque};
use std::fs::File;
use std::io::{self, IoSlice};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::{Mutex, RwLock};
use rustix::fs::{AtFlags, Mode, OFlags};

use super::settings::Preallocation;
use super::{names, relocate};
use crate::proto::bitfield::Bitfield;
use crate::proto::blocks::Layout;
use crate::proto::metainfo::Info;

/// Files kept open per torrent.
const OPEN_MAX: usize = 128;
/// Slices handed to the kernel in one call, below its limit of 1,024.
const SLICES_MAX: usize = 512;
/// Names of folders and files that are made: the umask decides.
const DIR_MODE: u32 = 0o777;
const FILE_MODE: u32 = 0o666;
const EXECUTABLE_MODE: u32 = 0o777;

/// A piece of the piece space inside one file.
#[derive(Debug, Clone)]
pub(super) struct Part {
    /// `None`: a gap, all zeros.
    pub(super) file: Option<usize>,
    /// Where it begins in the file.
    pub(super) at: u64,
    pub(super) len: u64,
}

#[derive(Debug)]
pub(super) struct Slot {
    pub(super) path: PathBuf,
    pub(super) offset: u64,
    pub(super) length: u64,
    executable: bool,
    /// Its number among the files of the torrent.
    pub(super) number: usize,
}

/// What changes while the torrent runs. Who writes holds it for reading, so that nothing is written to where a file has been.
#[derive(Debug)]
pub(super) struct Ground {
    pub(super) root: PathBuf,
    /// While files are on the move, some are still here.
    pub(super) former: Option<PathBuf>,
    /// Of each slot: it lies in the folder.
    pub(super) placed: Vec<bool>,
}

/// See the module documentation.
#[derive(Debug)]
pub(super) struct Storage {
    pub(super) ground: RwLock<Ground>,
    /// With at least one byte, by offset.
    pub(super) files: Vec<Slot>,
    /// Symbolic links and empty files, made at the end and at the beginning.
    pub(super) links: Vec<(PathBuf, PathBuf)>,
    pub(super) empty: Vec<PathBuf>,
    /// Sparse; addressed by the piece space.
    pub(super) parts: PathBuf,
    preallocation: Preallocation,
    open: Mutex<Open>,
}

#[derive(Debug, Default)]
struct Open {
    /// With whether they may be written.
    files: HashMap<usize, (Arc<File>, bool)>,
    order: VecDeque<usize>,
}

/// The number of the file of ours among the open ones.
pub(super) const PARTS: usize = usize::MAX;

impl Storage {
    /// The files of `info` below `root`; `parts` is where the bytes of files that `wanted` refuses go.
    pub(super) fn new(
        info: &Info,
        root: PathBuf,
        parts: PathBuf,
        preallocation: Preallocation,
        wanted: impl Fn(usize) -> bool,
    ) -> Self {
        let (mut files, mut links, mut empty) = (Vec::new(), Vec::new(), Vec::new());
        for (number, file) in info.files.iter().enumerate() {
            let path = file.path.to_path();
            if let Some(target) = &file.symlink {
                links.push((path, target.to_path()));
            } else if file.length == 0 {
                empty.push(path);
            } else {
                files.push(Slot {
                    path,
                    offset: file.offset,
                    length: file.length,
                    executable: file.attributes.executable,
                    number,
                });
            }
        }
        let paths = files.iter_mut().map(|slot| &mut slot.path);
        let mut paths: Vec<_> = paths.chain(&mut empty).collect();
        names::distinct(&root, &mut paths);
        files.sort_by_key(|slot| slot.offset);
        let noted = relocate::read_placed(&parts, files.len());
        let placed =
            noted.unwrap_or_else(|| files.iter().map(|slot| wanted(slot.number)).collect());
        Self {
            ground: RwLock::new(Ground {
                root,
                former: None,
                placed,
            }),
            files,
            links,
            empty,
            parts,
            preallocation,
            open: Mutex::default(),
        }
    }

    /// Makes the output folder and the files without bytes.
    pub(super) fn prepare(&self) -> io::Result<()> {
        let ground = self.ground.read();
        std::fs::create_dir_all(&ground.root)?;
        for path in &self.empty {
            drop(open_at(&ground.root, path, true, false)?);
        }
        Ok(())
    }

    /// Makes symbolic links, once everything else is there. One that cannot be made is left out.
    pub(super) fn finish(&self) -> io::Result<()> {
        for (path, target) in &self.links {
            let depth = path.components().count().saturating_sub(1);
            let up: PathBuf = std::iter::repeat_n("..", depth).collect();
            let (dir, name) = folder_of(&self.ground.read().root, path, true)?;
            match rustix::fs::symlinkat(up.join(target), &dir, name) {
                Ok(()) | Err(rustix::io::Errno::EXIST) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// How the range lies in files, in order.
    pub(super) fn parts(&self, offset: u64, len: u64) -> Vec<Part> {
        self.parts_on(&self.ground.read(), offset, len)
    }

    fn parts_on(&self, ground: &Ground, offset: u64, len: u64) -> Vec<Part> {
        let (mut at, end) = (offset, offset + len);
        let mut out = Vec::new();
        let mut number = self
            .files
            .partition_point(|slot| slot.offset + slot.length <= offset);
        while at < end {
            let Some(slot) = self.files.get(number).filter(|slot| slot.offset < end) else {
                out.push(Part {
                    file: None,
                    at: 0,
                    len: end - at,
                });
                break;
            };
            if at < slot.offset {
                out.push(Part {
                    file: None,
                    at: 0,
                    len: slot.offset - at,
                });
                at = slot.offset;
            }
            let len = end.min(slot.offset + slot.length) - at;
            let part = match ground.placed.get(number) {
                Some(true) => Part {
                    file: Some(number),
                    at: at - slot.offset,
                    len,
                },
                _ => Part {
                    file: Some(PARTS),
                    at,
                    len,
                },
            };
            out.push(part);
            at += len;
            number += 1;
        }
        out
    }

    /// Writes what lies one behind the other.
    pub(super) fn write(&self, offset: u64, data: &[&[u8]]) -> io::Result<()> {
        let total: usize = data.iter().map(|slice| slice.len()).sum();
        let ground = self.ground.read();
        let mut skip = 0;
        for part in self.parts_on(&ground, offset, total as u64) {
            let len = part.len as usize;
            if let Some(number) = part.file {
                let file = self.file_on(&ground, number, true)?;
                write_all(&file, part.at, &cut(data, skip, len))?;
            }
            skip += len;
        }
        Ok(())
    }

    /// Fills `buf`. A file that is missing or too short is an error.
    pub(super) fn read(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        use std::os::unix::fs::FileExt;
        let ground = self.ground.read();
        let mut rest = buf;
        for part in self.parts_on(&ground, offset, rest.len() as u64) {
            let (now, later) = rest.split_at_mut(part.len as usize);
            match part.file {
                Some(number) => self
                    .file_on(&ground, number, false)?
                    .read_exact_at(now, part.at)?,
                None => now.fill(0),
            }
            rest = later;
        }
        Ok(())
    }

    /// The open file of a [`Part`], to send from.
    pub(super) fn file(&self, number: usize) -> io::Result<Arc<File>> {
        self.file_on(&self.ground.read(), number, false)
    }

    pub(super) fn file_on(
        &self,
        ground: &Ground,
        number: usize,
        write: bool,
    ) -> io::Result<Arc<File>> {
        if let Some((file, writable)) = self.open.lock().files.get(&number)
            && (*writable || !write)
        {
            return Ok(Arc::clone(file));
        }
        let file = Arc::new(match self.files.get(number) {
            Some(slot) => self.open_slot(ground, slot, write)?,
            None => self.open_parts(write)?,
        });
        let mut open = self.open.lock();
        let entry = (Arc::clone(&file), write || number == PARTS);
        if open.files.insert(number, entry).is_none() {
            open.order.push_back(number);
        }
        if open.order.len() > OPEN_MAX
            && let Some(oldest) = open.order.pop_front()
        {
            open.files.remove(&oldest);
        }
        Ok(file)
    }

    fn open_slot(&self, ground: &Ground, slot: &Slot, write: bool) -> io::Result<File> {
        // What is on the move may be in either place.
        let former = ground.former.as_deref().into_iter();
        let mut found = Err(io::ErrorKind::NotFound.into());
        for root in former.chain([ground.root.as_path()]) {
            let make = write && root == ground.root;
            found = open_at(root, &slot.path, make, slot.executable);
            if !matches!(&found, Err(error) if error.kind() == io::ErrorKind::NotFound) {
                break;
            }
        }
        let file = found?;
        let grows = self.preallocation == Preallocation::None;
        if write && !grows && file.metadata()?.len() < slot.length {
            file.set_len(slot.length)?;
        }
        Ok(file)
    }

    pub(super) fn open_parts(&self, write: bool) -> io::Result<File> {
        std::fs::OpenOptions::new()
            .read(true)
            .write(true)
            .create(write)
            .truncate(false)
            .open(&self.parts)
    }

    /// Whether the bytes of these pieces can be there: every file in which one lies is there and long enough.
    pub(super) fn is_present(&self, have: &Bitfield, layout: &Layout) -> bool {
        self.lacking(have, layout).is_empty()
    }

    /// The pieces of `have` that lie in files that are missing or too short.
    pub(super) fn lacking(&self, have: &Bitfield, layout: &Layout) -> Vec<u32> {
        let ground = self.ground.read();
        let bytes = u64::from(layout.piece_bytes().max(1));
        let mut lacking = Vec::new();
        for (n, slot) in self.files.iter().enumerate() {
            let placed = ground.placed.get(n) == Some(&true);
            let here = match (placed, &ground.former) {
                (false, _) => length_of(&self.parts).map(|_| slot.length),
                (true, None) => length_of(&ground.root.join(&slot.path)),
                (true, Some(former)) => length_of(&former.join(&slot.path))
                    .or_else(|| length_of(&ground.root.join(&slot.path))),
            };
            let pieces = slot.offset / bytes..=(slot.offset + slot.length - 1) / bytes;
            lacking.extend(pieces.map(|piece| piece as u32).filter(|piece| {
                let end = (u64::from(*piece) + 1) * bytes;
                let needed = (end - slot.offset).min(slot.length);
                have.has(*piece) && here.is_none_or(|here| here < needed)
            }));
        }
        lacking.dedup();
        lacking
    }

    /// The bytes a user may still write to the disk of the output folder.
    pub(super) fn free_bytes(&self) -> io::Result<u64> {
        free_bytes(&self.ground.read().root)
    }

    /// The parts can be read in full now.
    pub(super) fn is_readable(&self, parts: &[Part]) -> bool {
        let ground = self.ground.read();
        parts.iter().all(|part| match part.file {
            Some(number) => self
                .file_on(&ground, number, false)
                .and_then(|file| file.metadata())
                .is_ok_and(|file| file.len() >= part.at + part.len),
            None => true,
        })
    }

    /// Takes the disk space that the user wants taken before the start.
    pub(super) fn preallocate(&self) -> io::Result<()> {
        if self.preallocation != Preallocation::Full {
            return Ok(());
        }
        let ground = self.ground.read();
        let (mut wanted, mut needed) = (Vec::new(), 0);
        for (n, slot) in self.files.iter().enumerate() {
            if ground.placed.get(n) == Some(&true) {
                use std::os::unix::fs::MetadataExt;
                let file = std::fs::symlink_metadata(ground.root.join(&slot.path));
                let taken = file.map_or(0, |file| file.blocks() * 512);
                if taken < slot.length {
                    needed += slot.length - taken;
                    wanted.push((n, slot));
                }
            }
        }
        // All or nothing: a disk that is filled to the brim before the first byte comes helps nobody.
        if needed > free_bytes(&ground.root)? {
            return Err(io::ErrorKind::StorageFull.into());
        }
        for (n, slot) in wanted {
            let file = self.file_on(&ground, n, true)?;
            let flags = rustix::fs::FallocateFlags::empty();
            match rustix::fs::fallocate(&file, flags, 0, slot.length) {
                Ok(()) => {}
                // A file system that cannot; the space is taken as it is written.
                Err(rustix::io::Errno::OPNOTSUPP) => file.set_len(slot.length)?,
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Makes what was written durable.
    pub(super) fn sync(&self) -> io::Result<()> {
        let open: Vec<_> = self.open.lock().files.values().cloned().collect();
        let written = open.iter().filter(|(_, writable)| *writable);
        written
            .into_iter()
            .try_for_each(|(file, _)| file.sync_data())
    }

    /// Closes all files; they are opened again when needed.
    pub(super) fn close(&self) {
        *self.open.lock() = Open::default();
    }
}

/// Opens a file below `root`; `write`: for writing, made if it is missing.
pub(super) fn open_at(root: &Path, path: &Path, write: bool, executable: bool) -> io::Result<File> {
    let (dir, name) = folder_of(root, path, write)?;
    // What is seeded may be read-only, and then only reading is asked for.
    let wanted = if write {
        OFlags::RDWR | OFlags::CREATE
    } else {
        OFlags::RDONLY
    };
    let mode = if executable {
        EXECUTABLE_MODE
    } else {
        FILE_MODE
    };
    let flags = wanted | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let fd = rustix::fs::openat(&dir, name, flags, Mode::from_raw_mode(mode))?;
    let file = File::from(fd);
    match file.metadata()?.is_file() {
        true => Ok(file),
        false => Err(io::Error::from(io::ErrorKind::InvalidInput)),
    }
}

/// The folder in which `path` lies, made if need be, and the last name. Goes down one name at a time.
pub(super) fn folder_of<'a>(
    root: &Path,
    path: &'a Path,
    make: bool,
) -> io::Result<(OwnedFd, &'a Path)> {
    let flags = OFlags::DIRECTORY | OFlags::PATH | OFlags::CLOEXEC;
    let mut dir = rustix::fs::open(root, flags, Mode::empty())?;
    let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
    for part in path.parent().into_iter().flat_map(Path::components) {
        let part = Path::new(part.as_os_str());
        let found = rustix::fs::statat(&dir, part, AtFlags::SYMLINK_NOFOLLOW);
        if make && matches!(found, Err(rustix::io::Errno::NOENT)) {
            match rustix::fs::mkdirat(&dir, part, Mode::from_raw_mode(DIR_MODE)) {
                Ok(()) | Err(rustix::io::Errno::EXIST) => {}
                Err(error) => return Err(error.into()),
            }
        }
        dir = rustix::fs::openat(&dir, part, flags | OFlags::NOFOLLOW, Mode::empty())?;
    }
    Ok((dir, Path::new(name)))
}

fn free_bytes(folder: &Path) -> io::Result<u64> {
    let disk = rustix::fs::statvfs(folder)?;
    Ok(disk.f_bavail.saturating_mul(disk.f_frsize))
}

/// The length of an ordinary file, if there is one.
fn length_of(path: &Path) -> Option<u64> {
    let found = std::fs::symlink_metadata(path).ok()?;
    found.is_file().then_some(found.len())
}

/// `len` bytes of the slices, after the first `skip`.
fn cut<'a>(data: &[&'a [u8]], mut skip: usize, mut len: usize) -> Vec<&'a [u8]> {
    let mut out = Vec::new();
    for slice in data {
        let from = skip.min(slice.len());
        skip -= from;
        let rest = slice.get(from..).unwrap_or_default();
        let now = rest.get(..len.min(rest.len())).unwrap_or_default();
        len -= now.len();
        if !now.is_empty() {
            out.push(now);
        }
    }
    out
}

fn write_all(file: &File, mut at: u64, data: &[&[u8]]) -> io::Result<()> {
    let mut slices: Vec<IoSlice<'_>> = data.iter().map(|slice| IoSlice::new(slice)).collect();
    let mut rest = slices.as_mut_slice();
    while !rest.is_empty() {
        let some = rest.get(..rest.len().min(SLICES_MAX)).unwrap_or_default();
        let written = match rustix::io::pwritev(file, some, at) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => written,
            Err(rustix::io::Errno::INTR) => continue,
            Err(error) => return Err(error.into()),
        };
        at += written as u64;
        IoSlice::advance_slices(&mut rest, written);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::metainfo::path::{FilePath, Name};
    use crate::proto::metainfo::{self, Attributes, InfoHashV1, InfoHashes};

    fn path(text: &str) -> FilePath {
        let names = text
            .split('/')
            .map(|part| Name::new(part.as_bytes()).unwrap());
        FilePath::new(names.collect()).unwrap()
    }

    /// Files of the lengths given, each 10 bytes behind the end of the last one.
    fn storage(dir: &Path, lengths: &[(&str, u64)], unwanted: &[usize]) -> Storage {
        let mut offset = 0;
        let mut files = Vec::new();
        for (index, (name, length)) in (0..).zip(lengths) {
            files.push(metainfo::File {
                path: path(name),
                length: *length,
                offset,
                index,
                attributes: Attributes::default(),
                symlink: None,
                root: None,
            });
            offset += length + 10;
        }
        let info = info(files, offset);
        let sparse = Preallocation::Sparse;
        Storage::new(&info, dir.join("out"), dir.join("parts"), sparse, |n| {
            !unwanted.contains(&n)
        })
    }

    fn info(files: Vec<metainfo::File>, space_bytes: u64) -> Info {
        let draft = b"d6:lengthi1e4:name1:a12:piece lengthi16384e6:pieces20:aaaaaaaaaaaaaaaaaaaae";
        let mut info = Info::parse(draft).unwrap();
        info.hashes = InfoHashes {
            v1: Some(InfoHashV1([0; 20])),
            v2: None,
        };
        info.files = files;
        info.space_bytes = space_bytes;
        info
    }

    #[test]
    fn ranges_go_to_their_files_and_unwanted_ones_are_not_made() {
        let dir = tempfile::tempdir().unwrap();
        let lengths = [
            ("t/a", 100),
            ("t/d/b", 5),
            ("t/empty", 0),
            ("t/c", 50),
            ("t/x", 20),
        ];
        let storage = storage(dir.path(), &lengths, &[3]);
        storage.prepare().unwrap();
        let bytes: Vec<u8> = (0..215).map(|n| n as u8 | 1).collect();
        let (first, second) = bytes.split_at(37);
        storage.write(0, &[first, second]).unwrap();
        let mut back = vec![7; 215];
        storage.read(0, &mut back).unwrap();
        let in_gap = |n: usize| !matches!(n, 0..100 | 110..115 | 135..185 | 195..215);
        for (n, byte) in back.iter().enumerate() {
            assert_eq!(*byte, if in_gap(n) { 0 } else { bytes[n] }, "{n}");
        }
        let read = |name: &str| std::fs::read(dir.path().join("out").join(name));
        assert_eq!(read("t/a").unwrap(), bytes[..100]);
        assert_eq!(read("t/d/b").unwrap(), bytes[110..115]);
        assert_eq!(read("t/empty").unwrap(), b"");
        assert!(read("t/c").is_err(), "it is not wanted");
        storage.sync().unwrap();
        let layout = Layout::new(110, 215);
        assert!(storage.is_present(&Bitfield::full(2), &layout));
        std::fs::write(dir.path().join("out/t/a"), "short").unwrap();
        assert!(!storage.is_present(&Bitfield::full(2), &layout));
        let mut second = Bitfield::new(2);
        second.set(1);
        assert!(storage.is_present(&second, &layout));
    }

    #[test]
    fn no_link_leads_out() {
        let dir = tempfile::tempdir().unwrap();
        let away = dir.path().join("away");
        std::fs::create_dir_all(&away).unwrap();
        std::fs::create_dir_all(dir.path().join("out/t")).unwrap();
        std::os::unix::fs::symlink(&away, dir.path().join("out/t/d")).unwrap();
        std::os::unix::fs::symlink(away.join("f"), dir.path().join("out/t/a")).unwrap();
        let storage = storage(dir.path(), &[("t/a", 5), ("t/d/b", 5)], &[]);
        storage.write(0, &[b"bytes"]).unwrap_err();
        storage.write(15, &[b"bytes"]).unwrap_err();
        assert_eq!(std::fs::read_dir(&away).unwrap().count(), 0);
    }

    #[test]
    fn slices_are_cut_anywhere() {
        let data: [&[u8]; 3] = [b"abc", b"", b"defg"];
        for skip in 0..7 {
            for len in 0..=7 - skip {
                let joined = cut(&data, skip, len).concat();
                assert_eq!(joined, b"abcdefg"[skip..skip + len]);
            }
        }
    }
}
