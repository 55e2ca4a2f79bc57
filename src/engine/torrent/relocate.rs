//! Where files lie, changed while the torrent runs: out of our file of unwanted bytes into the folder, and to another folder.
//!
//! Nothing is taken away before what replaces it is durable and noted. A move that is cut off is gone on with by calling it again:
//! each file is whole in one place or the other.

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rustix::fs::AtFlags;

use super::storage::{Ground, Slot, Storage, folder_of, open_at};
use crate::state_file;

/// Bytes copied in one step.
const STEP_BYTES: u64 = 1 << 20;
/// Added to the name of a file while it is copied.
const HALF_DONE: &str = ".ccbt-moving";

/// The note beside the file of unwanted bytes: a byte for each file, `1` for those in the folder.
fn placed_path(parts: &Path) -> PathBuf {
    parts.with_file_name("placed")
}

/// What was noted; `None` if nothing was, or for another torrent.
pub(super) fn read_placed(parts: &Path, files: usize) -> Option<Vec<bool>> {
    let bytes = std::fs::read(placed_path(parts)).ok()?;
    (bytes.len() == files).then(|| bytes.iter().map(|byte| *byte == b'1').collect())
}

impl Storage {
    /// Files that are wanted and lie in our file go to the folder with all that is here of them. `wanted` is asked by the number of
    /// a file in the torrent.
    pub(super) fn place(&self, wanted: impl Fn(usize) -> bool) -> io::Result<()> {
        let mut ground = self.ground.write();
        for (n, slot) in self.files.iter().enumerate() {
            if ground.placed.get(n) == Some(&false) && wanted(slot.number) {
                self.take_out(&ground, slot)?;
                if let Some(placed) = ground.placed.get_mut(n) {
                    *placed = true;
                }
            }
        }
        self.let_go(&mut ground, &wanted);
        self.note(&ground, &wanted)
    }

    /// A file that is not wanted any more and was never made need not be made.
    fn let_go(&self, ground: &mut Ground, wanted: &impl Fn(usize) -> bool) {
        for (slot, placed) in self.files.iter().zip(&mut ground.placed) {
            let made = || is_there(&ground.root.join(&slot.path));
            if *placed && !wanted(slot.number) && ground.former.is_none() && !made() {
                *placed = false;
            }
        }
    }

    /// Not needed while all files are wanted: then all of them are looked for in the folder.
    fn note(&self, ground: &Ground, wanted: &impl Fn(usize) -> bool) -> io::Result<()> {
        let all = self.files.iter().all(|slot| wanted(slot.number));
        let path = placed_path(&self.parts);
        let bytes: Vec<u8> = ground
            .placed
            .iter()
            .map(|p| if *p { b'1' } else { b'0' })
            .collect();
        match std::fs::read(&path) {
            Ok(old) if old == bytes => Ok(()),
            Err(_) if all && !bytes.contains(&b'0') => Ok(()),
            _ => state_file::replace(&path, &bytes),
        }
    }

    /// Copies what our file has of a file into the folder, durably.
    fn take_out(&self, ground: &Ground, slot: &Slot) -> io::Result<()> {
        let parts = match self.open_parts(false) {
            Ok(parts) => parts,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(error),
        };
        let (mut at, end) = (slot.offset, slot.offset + slot.length);
        let mut target = None;
        while let Some(data) = next_data(&parts, at, end)? {
            let file = match &target {
                Some(file) => file,
                None => target.insert(open_at(&ground.root, &slot.path, true, false)?),
            };
            copy(
                &parts,
                data.start,
                file,
                data.start - slot.offset,
                data.end - data.start,
            )?;
            at = data.end;
        }
        if let Some(file) = target {
            file.sync_all()?;
        }
        Ok(())
    }

    /// Moves the files to another folder. Reads go on meanwhile; nothing may be written. Called again after it was cut off, it goes on.
    pub(super) fn relocate(&self, to: &Path, again: bool) -> Result<(), MoveError> {
        let from = self.ground.read().root.clone();
        let at = |error| MoveError::Io {
            path: to.to_owned(),
            error,
        };
        std::fs::create_dir_all(to).map_err(at)?;
        if same_folder(&from, to) {
            return Ok(());
        }
        let files: Vec<&Path> = self.moving();
        if !again && let Some(path) = files.iter().find(|path| is_there(&to.join(path))) {
            return Err(MoveError::Exists(to.join(path)));
        }
        {
            let mut ground = self.ground.write();
            ground.former = Some(std::mem::replace(&mut ground.root, to.to_owned()));
        }
        let moved = files.iter().try_for_each(|path| {
            move_file(&from, to, path).map_err(|error| MoveError::Io {
                path: from.join(path),
                error,
            })
        });
        if let Err(error) = moved {
            return Err(self.turn_back(&from, to, &files, error));
        }
        sync_folders(to, &files).map_err(at)?;
        self.ground.write().former = None;
        // Only now: until then a file may be opened in the former place.
        self.close();
        self.finish().map_err(at)?;
        Ok(())
    }

    /// What has gone over comes back. If it cannot, it stays found: it is looked for in both places.
    fn turn_back(&self, from: &Path, to: &Path, files: &[&Path], error: MoveError) -> MoveError {
        let back = files.iter().try_for_each(|path| {
            match is_there(&from.join(path)) {
                // Only copied; the original has not been touched.
                true if is_there(&to.join(path)) => std::fs::remove_file(to.join(path)),
                true => Ok(()),
                false => move_file(to, from, path),
            }
        });
        let mut ground = self.ground.write();
        ground.root = from.to_owned();
        ground.former = None;
        self.close();
        match back {
            Ok(()) => error,
            Err(back) => {
                ground.former = Some(to.to_owned());
                MoveError::Torn(Box::new(error), back)
            }
        }
    }

    /// Removes what a move has left behind: copies' originals and empty folders. Only once the new place is noted.
    pub(super) fn sweep(&self, from: &Path) {
        let root = self.ground.read().root.clone();
        if same_folder(from, &root) {
            return;
        }
        let links = self.links.iter().map(|(path, _)| path.as_path());
        for path in self.moving().into_iter().chain(links) {
            if is_there(&root.join(path)) && is_there(&from.join(path)) {
                log(std::fs::remove_file(from.join(path)), path);
            }
        }
        let mut folders: Vec<&Path> = self
            .moving()
            .iter()
            .flat_map(|path| path.ancestors().skip(1))
            .collect();
        folders.sort_by_key(|path| std::cmp::Reverse(path.components().count()));
        folders.dedup();
        for folder in folders {
            // One that is not empty is somebody's.
            if !folder.as_os_str().is_empty() {
                let _used = std::fs::remove_dir(from.join(folder));
            }
        }
    }

    /// Paths that lie in the folder.
    fn moving(&self) -> Vec<&Path> {
        let ground = self.ground.read();
        let placed = |(n, _): &(usize, &Slot)| ground.placed.get(*n) == Some(&true);
        let files = self.files.iter().enumerate().filter(placed);
        let files = files.map(|(_, slot)| slot.path.as_path());
        files
            .chain(self.empty.iter().map(PathBuf::as_path))
            .collect()
    }
}

/// Why a torrent stays where it is.
#[derive(Debug, thiserror::Error)]
pub enum MoveError {
    #[error("{} exists already", .0.display())]
    Exists(PathBuf),
    #[error("cannot move {}: {error}", path.display())]
    Io { path: PathBuf, error: io::Error },
    #[error("{0}; what had gone over cannot come back: {1}")]
    Torn(Box<Self>, io::Error),
    #[error("it is not known yet what the torrent is, or it is being checked")]
    NotYet,
    #[error("the torrent was removed")]
    Gone,
}

/// Renames the file or, to another file system, copies it. Does nothing if it is there already, or nowhere yet.
fn move_file(from: &Path, to: &Path, path: &Path) -> io::Result<()> {
    let (old, new) = (from.join(path), to.join(path));
    if !is_there(&old) || is_there(&new) {
        return Ok(());
    }
    let (old_dir, name) = folder_of(from, path, false)?;
    let (new_dir, _) = folder_of(to, path, true)?;
    match rustix::fs::renameat(&old_dir, name, &new_dir, name) {
        Ok(()) => {}
        Err(rustix::io::Errno::XDEV) => {
            let mut half = name.as_os_str().to_owned();
            half.push(HALF_DONE);
            let half = Path::new(&half);
            let copied = copy_file(
                &open_at(from, path, false, false)?,
                to,
                &path.with_file_name(half),
            );
            if let Err(error) = copied {
                let _not_made = rustix::fs::unlinkat(&new_dir, half, AtFlags::empty());
                return Err(error);
            }
            rustix::fs::renameat(&new_dir, half, &new_dir, name)?;
        }
        Err(error) => return Err(error.into()),
    }
    Ok(())
}

/// Durably; holes stay holes.
fn copy_file(source: &File, to: &Path, path: &Path) -> io::Result<()> {
    let target = open_at(to, path, true, false)?;
    let from = source.metadata()?;
    // What an earlier attempt has left may be of any length.
    target.set_len(0)?;
    target.set_len(from.len())?;
    target.set_permissions(from.permissions())?;
    let mut at = 0;
    while let Some(data) = next_data(source, at, from.len())? {
        copy(
            source,
            data.start,
            &target,
            data.start,
            data.end - data.start,
        )?;
        at = data.end;
    }
    target.sync_all()
}

/// The next bytes of a sparse file that are more than a hole.
fn next_data(file: &File, at: u64, end: u64) -> io::Result<Option<std::ops::Range<u64>>> {
    use rustix::fs::SeekFrom;
    if at >= end {
        return Ok(None);
    }
    let start = match rustix::fs::seek(file, SeekFrom::Data(at)) {
        Ok(start) if start < end => start,
        Ok(_) | Err(rustix::io::Errno::NXIO) => return Ok(None),
        // A file system that does not tell holes: all of it is data.
        Err(rustix::io::Errno::INVAL) => {
            return Ok(Some(at..end.min(file.metadata()?.len().max(at + 1))));
        }
        Err(error) => return Err(error.into()),
    };
    let hole = rustix::fs::seek(file, SeekFrom::Hole(start))?;
    Ok(Some(start..hole.min(end)))
}

fn copy(source: &File, from: u64, target: &File, to: u64, len: u64) -> io::Result<()> {
    let mut buf = vec![0; len.min(STEP_BYTES) as usize];
    let mut done = 0;
    while done < len {
        let now = buf.len().min((len - done) as usize);
        let Some(part) = buf.get_mut(..now) else {
            break;
        };
        source.read_exact_at(part, from + done)?;
        target.write_all_at(part, to + done)?;
        done += now as u64;
    }
    Ok(())
}

/// Makes the names of the files durable.
fn sync_folders(root: &Path, files: &[&Path]) -> io::Result<()> {
    let folders = files.iter().flat_map(|path| path.ancestors().skip(1));
    let folders: BTreeSet<&Path> = folders.collect();
    for folder in folders {
        match File::open(root.join(folder)) {
            Ok(folder) => folder.sync_all()?,
            // None of its files was there to be moved.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    match root.parent() {
        Some(parent) => File::open(parent)?.sync_all(),
        None => Ok(()),
    }
}

fn is_there(path: &Path) -> bool {
    std::fs::symlink_metadata(path).is_ok()
}

fn same_folder(a: &Path, b: &Path) -> bool {
    a == b || matches!((a.canonicalize(), b.canonicalize()), (Ok(a), Ok(b)) if a == b)
}

fn log(result: io::Result<()>, path: &Path) {
    if let Err(error) = result {
        tracing::warn!(%error, path = %path.display(), "a file that was moved stays behind too");
    }
}

#[cfg(test)]
mod tests {
    use super::super::settings::Preallocation;
    use super::*;
    use crate::proto::metainfo::Info;

    /// `t/a` of 100 bytes, `t/d/b` of 50, `t/c` of 70, one behind the other.
    const RAW: &[u8] = b"d5:filesld6:lengthi100e4:pathl1:aeed6:lengthi50e4:pathl1:d1:beed6:lengthi70e4:pathl1:ceee4:name1:t12:piece lengthi16384e6:pieces20:aaaaaaaaaaaaaaaaaaaae";

    fn open(dir: &Path, root: &str, wanted: &[usize]) -> Storage {
        let info = Info::parse(RAW).unwrap();
        let (root, parts) = (dir.join(root), dir.join("parts"));
        let storage = Storage::new(&info, root, parts, Preallocation::Sparse, |n| {
            wanted.contains(&n)
        });
        storage.prepare().unwrap();
        storage.place(|n| wanted.contains(&n)).unwrap();
        storage
    }

    fn bytes() -> Vec<u8> {
        (0..220).map(|n| n as u8 | 1).collect()
    }

    fn read(storage: &Storage) -> Vec<u8> {
        let mut back = vec![0; 220];
        storage.read(0, &mut back).unwrap();
        back
    }

    #[test]
    fn files_wanted_later_take_their_bytes_along_and_stay() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("out/t");
        let storage = open(dir.path(), "out", &[1]);
        storage.write(0, &[&bytes()]).unwrap();
        assert!(!out.join("a").exists() && !out.join("c").exists());
        storage.place(|n| n != 2).unwrap();
        assert_eq!(std::fs::read(out.join("a")).unwrap(), bytes()[..100]);
        assert_eq!(read(&storage), bytes());
        // Not wanted any more, but made: it stays, also for the next start.
        storage.place(|n| n == 1).unwrap();
        storage.write(0, &[b"new"]).unwrap();
        assert_eq!(&std::fs::read(out.join("a")).unwrap()[..3], b"new");
        drop(storage);
        let storage = open(dir.path(), "out", &[1]);
        assert_eq!(read(&storage)[..3], *b"new");
        assert_eq!(read(&storage)[3..], bytes()[3..]);
        // Killed after the choice was noted and before the files were placed.
        let storage = open(dir.path(), "out", &[0, 1, 2]);
        assert_eq!(std::fs::read(out.join("c")).unwrap(), bytes()[150..]);
        assert_eq!(read(&storage)[3..], bytes()[3..]);
    }

    #[test]
    fn a_file_that_was_never_made_is_not_made_when_it_is_not_wanted_any_more() {
        let dir = tempfile::tempdir().unwrap();
        let storage = open(dir.path(), "out", &[0, 1, 2]);
        storage.place(|n| n == 0).unwrap();
        storage.write(0, &[&bytes()]).unwrap();
        assert!(!dir.path().join("out/t/c").exists());
        assert_eq!(read(&storage), bytes());
        drop(storage);
        assert_eq!(read(&open(dir.path(), "out", &[0])), bytes());
    }

    #[test]
    fn a_move_goes_on_from_any_point() {
        for cut in 0..4 {
            let dir = tempfile::tempdir().unwrap();
            let (from, to) = (dir.path().join("out"), dir.path().join("to"));
            let storage = open(dir.path(), "out", &[0, 1, 2]);
            storage.write(0, &[&bytes()]).unwrap();
            std::fs::write(from.join("t/mine"), "mine").unwrap();
            drop(storage);
            // What a killed move leaves: some files there, one of them only copied, one half.
            std::fs::create_dir_all(to.join("t/d")).unwrap();
            for path in ["t/a", "t/d/b", "t/c"].iter().take(cut) {
                std::fs::rename(from.join(path), to.join(path)).unwrap();
            }
            if cut == 1 {
                std::fs::copy(to.join("t/a"), from.join("t/a")).unwrap();
                std::fs::write(to.join("t/c.ccbt-moving"), "ha").unwrap();
            }
            let storage = open(dir.path(), "out", &[0, 1, 2]);
            storage.relocate(&to, true).unwrap();
            assert_eq!(read(&storage), bytes(), "{cut}");
            storage.sweep(&from);
            assert_eq!(read(&storage), bytes(), "{cut}");
            assert_eq!(
                std::fs::read_dir(from.join("t")).unwrap().count(),
                1,
                "{cut}"
            );
        }
    }

    #[test]
    fn a_move_that_fails_leaves_everything_where_it_was() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("out"), dir.path().join("to"));
        let storage = open(dir.path(), "out", &[0, 1, 2]);
        storage.write(0, &[&bytes()]).unwrap();
        std::fs::create_dir_all(to.join("t")).unwrap();
        std::fs::write(to.join("t/d"), "in the way of a folder").unwrap();
        let error = storage.relocate(&to, false).unwrap_err();
        assert!(matches!(error, MoveError::Io { .. }), "{error}");
        assert!(from.join("t/a").exists() && !to.join("t/a").exists());
        assert_eq!(read(&storage), bytes());
        storage.write(0, &[b"new"]).unwrap();
        assert_eq!(&std::fs::read(from.join("t/a")).unwrap()[..3], b"new");
        std::fs::remove_file(to.join("t/d")).unwrap();
        std::fs::write(to.join("t/c"), "somebody's").unwrap();
        assert!(
            matches!(storage.relocate(&to, false), Err(MoveError::Exists(path)) if path == to.join("t/c"))
        );
        assert_eq!(std::fs::read(to.join("t/c")).unwrap(), b"somebody's");
    }
}
