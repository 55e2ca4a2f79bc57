//! Where the bytes of a torrent lie: files below the output folder, and one sparse file of ours for what belongs to files
//! that are not wanted.
//!
//! Positions are those of the piece space; gaps (pad files, ends of v2 pieces) read as zeros and swallow what is written.
//! Nothing is opened through a symbolic link, so no byte can land outside the output folder.

use std::collections::{HashMap, VecDeque};
use std::fs::File;
use std::io::{self, IoSlice};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;
use rustix::fs::{AtFlags, Mode, OFlags};

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
struct Slot {
    path: PathBuf,
    offset: u64,
    length: u64,
    executable: bool,
    wanted: bool,
}

/// See the module documentation.
#[derive(Debug)]
pub(super) struct Storage {
    root: PathBuf,
    /// With at least one byte, by offset.
    files: Vec<Slot>,
    /// Symbolic links and empty files, made at the end and at the beginning.
    links: Vec<(PathBuf, PathBuf)>,
    empty: Vec<PathBuf>,
    /// Sparse; addressed by the piece space.
    parts: PathBuf,
    open: Mutex<Open>,
}

#[derive(Debug, Default)]
struct Open {
    /// With whether they may be written.
    files: HashMap<usize, (Arc<File>, bool)>,
    order: VecDeque<usize>,
}

/// The number of the file of ours among the open ones.
const PARTS: usize = usize::MAX;

impl Storage {
    /// The files of `info` below `root`; `parts` is where the bytes of files that `wanted` refuses go.
    pub(super) fn new(
        info: &Info,
        root: PathBuf,
        parts: PathBuf,
        wanted: impl Fn(usize) -> bool,
    ) -> Self {
        let mut storage = Self {
            root,
            files: Vec::new(),
            links: Vec::new(),
            empty: Vec::new(),
            parts,
            open: Mutex::default(),
        };
        for (number, file) in info.files.iter().enumerate() {
            let path = file.path.to_path();
            if let Some(target) = &file.symlink {
                storage.links.push((path, target.to_path()));
            } else if file.length == 0 {
                storage.empty.push(path);
            } else {
                storage.files.push(Slot {
                    path,
                    offset: file.offset,
                    length: file.length,
                    executable: file.attributes.executable,
                    wanted: wanted(number),
                });
            }
        }
        storage.files.sort_by_key(|slot| slot.offset);
        storage
    }

    /// Makes the output folder and the files without bytes.
    pub(super) fn prepare(&self) -> io::Result<()> {
        std::fs::create_dir_all(&self.root)?;
        for path in &self.empty {
            drop(self.open_at(path, true, false)?);
        }
        Ok(())
    }

    /// Makes symbolic links, once everything else is there. One that cannot be made is left out.
    pub(super) fn finish(&self) -> io::Result<()> {
        for (path, target) in &self.links {
            let depth = path.components().count().saturating_sub(1);
            let up: PathBuf = std::iter::repeat_n("..", depth).collect();
            let (dir, name) = self.folder_of(path, true)?;
            match rustix::fs::symlinkat(up.join(target), &dir, name) {
                Ok(()) | Err(rustix::io::Errno::EXIST) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// How the range lies in files, in order.
    pub(super) fn parts(&self, offset: u64, len: u64) -> Vec<Part> {
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
            let part = match slot.wanted {
                true => Part {
                    file: Some(number),
                    at: at - slot.offset,
                    len,
                },
                false => Part {
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
        let mut skip = 0;
        for part in self.parts(offset, total as u64) {
            let len = part.len as usize;
            if let Some(number) = part.file {
                let file = self.file(number, true)?;
                write_all(&file, part.at, &cut(data, skip, len))?;
            }
            skip += len;
        }
        Ok(())
    }

    /// Fills `buf`. A file that is missing or too short is an error.
    pub(super) fn read(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        use std::os::unix::fs::FileExt;
        let mut rest = buf;
        for part in self.parts(offset, rest.len() as u64) {
            let (now, later) = rest.split_at_mut(part.len as usize);
            match part.file {
                Some(number) => self.file(number, false)?.read_exact_at(now, part.at)?,
                None => now.fill(0),
            }
            rest = later;
        }
        Ok(())
    }

    /// The open file of a [`Part`], to send from.
    pub(super) fn file(&self, number: usize, write: bool) -> io::Result<Arc<File>> {
        if let Some((file, writable)) = self.open.lock().files.get(&number)
            && (*writable || !write)
        {
            return Ok(Arc::clone(file));
        }
        let file = Arc::new(match self.files.get(number) {
            Some(slot) => {
                let file = self.open_at(&slot.path, write, slot.executable)?;
                if write && file.metadata()?.len() < slot.length {
                    file.set_len(slot.length)?;
                }
                file
            }
            None => std::fs::OpenOptions::new()
                .read(true)
                .write(true)
                .create(write)
                .truncate(false)
                .open(&self.parts)?,
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

    /// Whether every file in which one of these pieces lies is there and has its length.
    pub(super) fn is_present(&self, have: &Bitfield, layout: &Layout) -> bool {
        let present = |slot: &Slot| {
            let path = match slot.wanted {
                true => &self.root.join(&slot.path),
                false => &self.parts,
            };
            let found = std::fs::symlink_metadata(path);
            found.is_ok_and(|m| m.is_file() && (!slot.wanted || m.len() == slot.length))
        };
        let piece = |offset: u64| (offset / u64::from(layout.piece_bytes().max(1))) as u32;
        self.files.iter().all(|slot| {
            let mut pieces = piece(slot.offset)..=piece(slot.offset + slot.length - 1);
            !pieces.any(|piece| have.has(piece)) || present(slot)
        })
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

    fn open_at(&self, path: &Path, write: bool, executable: bool) -> io::Result<File> {
        let (dir, name) = self.folder_of(path, write)?;
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
    fn folder_of<'a>(&self, path: &'a Path, make: bool) -> io::Result<(OwnedFd, &'a Path)> {
        let flags = OFlags::DIRECTORY | OFlags::PATH | OFlags::CLOEXEC;
        let mut dir = rustix::fs::open(&self.root, flags, Mode::empty())?;
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
        Storage::new(&info, dir.join("out"), dir.join("parts"), |n| {
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
