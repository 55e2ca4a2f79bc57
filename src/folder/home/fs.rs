//! What writing a home needs of a file system. All names are single components looked up in an open directory, and no
//! call follows a symbolic link.

use std::io;

use bytes::Bytes;

use super::base::FileTime;
use super::caps::Caps;
use super::plan::Found;
use crate::folder::state::Xattrs;

/// Names that begin so are ours in every directory of a home: files on their way in. They are never read as the user's
/// and never written for a peer.
pub const TEMP_PREFIX: &[u8] = b".ccbt-tmp-";

/// What a rename does with what is at its target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RenameHow {
    /// Fails with `AlreadyExists`.
    NoReplace,
    /// The two change places. Fails with `NotFound` if nothing is there.
    Exchange,
}

/// Attributes to set.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Attributes {
    /// Permission bits (0o777).
    pub mode: Option<u16>,
    pub mtime: Option<FileTime>,
    /// All `user.` attributes: others are removed.
    pub xattrs: Option<Xattrs>,
}

/// What a file or directory is after attributes were set, as far as the file system keeps them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kept {
    pub found: Found,
    /// [`xattr_digest`](super::base::xattr_digest) of the attributes it has.
    pub xattrs: u64,
}

/// What a file system has room for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Room {
    /// Bytes that can still be written.
    pub free: u64,
    pub is_read_only: bool,
}

/// The file system of a home.
pub trait HomeFs {
    /// An open directory.
    type Dir;
    /// A file that was created and is being written.
    type File;

    /// What it keeps.
    fn caps(&self) -> Caps;

    /// What there is room for now.
    fn room(&self) -> io::Result<Room>;

    /// Opens a directory by its path from the root, empty for the root: beneath it, on its file system, through no
    /// symbolic link.
    fn open_dir(&self, path: &[u8]) -> io::Result<Self::Dir>;

    /// The directory itself.
    fn stat_dir(&self, dir: &Self::Dir) -> io::Result<Found>;

    /// What is at a name.
    fn stat(&self, dir: &Self::Dir, name: &[u8]) -> io::Result<Found>;

    /// Creates a file that did not exist, only its owner may read it.
    fn create(&self, dir: &Self::Dir, name: &[u8]) -> io::Result<Self::File>;

    /// From how many bytes on a file is worth being put together while its content arrives; none where a file cannot be
    /// without a name.
    fn nameless_from(&self) -> Option<u64>;

    /// Creates a file without a name, which is gone when it is dropped. Fails where there are none, and says so from then
    /// on.
    fn create_nameless(&self, dir: &Self::Dir) -> io::Result<Self::File>;

    /// Gives such a file a name that did not exist.
    fn give_name(&self, file: &Self::File, dir: &Self::Dir, name: &[u8]) -> io::Result<()>;

    /// Writes at the end.
    fn append(&self, file: &mut Self::File, bytes: &[u8]) -> io::Result<()>;

    /// Goes on `bytes` of zeros later.
    fn skip(&self, file: &mut Self::File, bytes: u64) -> io::Result<()>;

    /// From how many bytes on a file is worth being begun as a clone of another; none where files share no blocks.
    fn clones_from(&self) -> Option<u64>;

    /// Gives a file that was just created the content of the file `from` in `dir`, without copying it. Returns false, and
    /// leaves it empty, if that cannot be.
    fn share_blocks(&self, dir: &Self::Dir, from: &[u8], file: &mut Self::File)
    -> io::Result<bool>;

    /// Reads from byte `at` on what a file being written holds. Returns fewer bytes than asked for only at its end.
    fn read_at(&self, file: &Self::File, at: u64, buf: &mut [u8]) -> io::Result<usize>;

    /// Writes from byte `at` on.
    fn write_at(&self, file: &mut Self::File, at: u64, bytes: &[u8]) -> io::Result<()>;

    /// Up to which byte a file being written holds nothing but zeros, from `at` on.
    fn data_from(&self, file: &Self::File, at: u64) -> io::Result<u64>;

    /// Gives a file being written this many bytes: the rest goes, or zeros come.
    fn resize(&self, file: &mut Self::File, size: u64) -> io::Result<()>;

    /// Ends the writing and sets attributes. Returns what the file is then.
    fn finish(&self, file: &mut Self::File, attributes: &Attributes) -> io::Result<Kept>;

    /// Makes content and attributes of finished files durable.
    fn sync_files(&self, files: &[Self::File]) -> io::Result<()>;

    /// Makes a symbolic link. Fails with `Unsupported` where there are none.
    fn symlink(&self, dir: &Self::Dir, name: &[u8], target: &Bytes) -> io::Result<()>;

    fn mkdir(&self, dir: &Self::Dir, name: &[u8]) -> io::Result<()>;

    /// Sets attributes of what is at a name, unless it is a symbolic link. Returns what it is then.
    fn set_attributes(
        &self,
        dir: &Self::Dir,
        name: &[u8],
        attributes: &Attributes,
    ) -> io::Result<Kept>;

    /// Fails with `InvalidFilename` if the file system has no such names.
    fn rename(
        &self,
        from: (&Self::Dir, &[u8]),
        to: (&Self::Dir, &[u8]),
        how: RenameHow,
    ) -> io::Result<()>;

    /// Whether [`RenameHow::Exchange`] works here.
    fn can_exchange(&self) -> bool;

    /// Removes the name of a file of ours.
    fn unlink(&self, dir: &Self::Dir, name: &[u8]) -> io::Result<()>;

    /// Removes an empty directory.
    fn rmdir(&self, dir: &Self::Dir, name: &[u8]) -> io::Result<()>;

    /// Makes the names in a directory durable.
    fn sync_dir(&self, dir: &Self::Dir) -> io::Result<()>;
}
