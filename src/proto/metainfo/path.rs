//! Names inside a torrent. They become paths on somebody's disk, so what could leave the output folder is refused.

use std::fmt;
use std::path::PathBuf;

use super::MetainfoError;

/// Longest name Linux file systems take, in bytes.
pub const NAME_BYTES_MAX: usize = 255;
/// Deepest path: with names of average length what fits into `PATH_MAX`.
pub const PATH_PARTS_MAX: usize = 128;
/// Longest path in bytes, below `PATH_MAX` with room for the output folder.
const PATH_BYTES_MAX: usize = 3072;

/// One safe name: not empty, not `.` or `..`, without `/` and NUL, at most [`NAME_BYTES_MAX`] bytes.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name(Box<[u8]>);

impl Name {
    /// Takes bytes of a torrent as a name.
    pub fn new(bytes: &[u8]) -> Result<Self, MetainfoError> {
        let unsafe_name = bytes.is_empty()
            || bytes == b"."
            || bytes == b".."
            || bytes.len() > NAME_BYTES_MAX
            || bytes.iter().any(|b| matches!(b, b'/' | 0));
        if unsafe_name {
            return Err(MetainfoError::UnsafeName(Self(bytes.into())));
        }
        Ok(Self(bytes.into()))
    }

    /// The name as found.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{}\"", self.0.escape_ascii())
    }
}

impl fmt::Display for Name {
    /// Cut and escaped, so that it can stand in a message.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = self.0.get(..NAME_BYTES_MAX).unwrap_or(&self.0);
        match std::str::from_utf8(shown) {
            Ok(text) if !text.chars().any(char::is_control) => f.write_str(text),
            _ => write!(f, "{}", shown.escape_ascii()),
        }
    }
}

/// Where a file lies below the output folder. Never empty.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FilePath(Vec<Name>);

impl FilePath {
    /// A path of the given names.
    pub fn new(parts: Vec<Name>) -> Result<Self, MetainfoError> {
        let bytes: usize = parts.iter().map(|part| part.0.len() + 1).sum();
        if parts.is_empty() || parts.len() > PATH_PARTS_MAX || bytes > PATH_BYTES_MAX {
            return Err(MetainfoError::PathLength {
                parts: parts.len(),
                bytes,
            });
        }
        Ok(Self(parts))
    }

    /// The names from the outside in.
    pub fn parts(&self) -> &[Name] {
        &self.0
    }

    /// The path for the file system, relative to the output folder.
    pub fn to_path(&self) -> PathBuf {
        use std::os::unix::ffi::OsStrExt;
        self.0
            .iter()
            .map(|part| std::ffi::OsStr::from_bytes(&part.0))
            .collect()
    }
}

impl fmt::Display for FilePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, part) in self.0.iter().enumerate() {
            let slash = if n == 0 { "" } else { "/" };
            write!(f, "{slash}{part}")?;
        }
        Ok(())
    }
}
