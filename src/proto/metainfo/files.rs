//! The two ways a torrent lists its files: the v1 list (BEP 3, 47) and the v2 tree (BEP 52).

use std::collections::HashSet;

use super::merkle::TreeHash;
use super::path::{FilePath, Name, PATH_PARTS_MAX};
use super::{Attributes, CONTENT_BYTES_MAX, FILES_MAX, File, MetainfoError};
use crate::proto::bencode::Value;

/// Files with their places in the piece space.
pub(super) struct Listed {
    pub(super) files: Vec<File>,
    pub(super) space_bytes: u64,
    /// Listed files, pads included.
    count: u32,
}

impl Listed {
    fn new() -> Self {
        Self {
            files: Vec::new(),
            space_bytes: 0,
            count: 0,
        }
    }

    fn add(&mut self, path: FilePath, entry: &Entry<'_>) -> Result<(), MetainfoError> {
        if self.count as usize >= FILES_MAX {
            return Err(MetainfoError::TooManyFiles);
        }
        let length = if entry.symlink {
            0
        } else {
            entry.length(&path)?
        };
        let offset = self.space_bytes;
        self.space_bytes += length;
        if self.space_bytes > CONTENT_BYTES_MAX {
            return Err(MetainfoError::Length(path));
        }
        let index = self.count;
        self.count += 1;
        if entry.pad {
            return Ok(());
        }
        let symlink = if entry.symlink {
            Some(entry.symlink_target(&path)?)
        } else {
            None
        };
        self.files.push(File {
            symlink,
            path,
            length,
            offset,
            index,
            attributes: entry.attributes,
            root: None,
        });
        Ok(())
    }
}

/// The fields that a file has in both forms.
struct Entry<'d> {
    value: Value<'d>,
    attributes: Attributes,
    pad: bool,
    symlink: bool,
}

impl<'d> Entry<'d> {
    fn new(value: Value<'d>) -> Self {
        let attr = value
            .get(b"attr")
            .and_then(|v| v.bytes())
            .unwrap_or_default();
        Self {
            value,
            attributes: Attributes {
                executable: attr.contains(&b'x'),
                hidden: attr.contains(&b'h'),
            },
            pad: attr.contains(&b'p'),
            symlink: attr.contains(&b'l'),
        }
    }

    fn length(&self, path: &FilePath) -> Result<u64, MetainfoError> {
        let found = self.value.get(b"length").and_then(|v| v.integer());
        found
            .and_then(|length| u64::try_from(length).ok())
            .filter(|length| *length <= CONTENT_BYTES_MAX)
            .ok_or_else(|| MetainfoError::Length(path.clone()))
    }

    /// `symlink path` is given from the torrent's top folder, so it cannot leave it.
    fn symlink_target(&self, path: &FilePath) -> Result<FilePath, MetainfoError> {
        let key = "symlink path";
        let list = self.value.get(b"symlink path").and_then(|v| v.list());
        let list = list.ok_or(MetainfoError::Missing { key })?;
        let mut parts: Vec<Name> = path.parts().first().cloned().into_iter().collect();
        names(list, &mut parts)?;
        FilePath::new(parts)
    }
}

fn names<'d>(
    list: impl Iterator<Item = Value<'d>>,
    parts: &mut Vec<Name>,
) -> Result<(), MetainfoError> {
    for part in list {
        if parts.len() >= PATH_PARTS_MAX {
            return Err(MetainfoError::PathLength {
                parts: parts.len() + 1,
                bytes: 0,
            });
        }
        let bytes = part.bytes().ok_or(MetainfoError::Missing { key: "path" })?;
        parts.push(Name::new(bytes)?);
    }
    Ok(())
}

/// The v1 form: one `length`, or a list of `files`.
pub(super) fn from_list(info: Value<'_>, name: &Name) -> Result<Listed, MetainfoError> {
    let mut listed = Listed::new();
    let Some(list) = info.get(b"files") else {
        let key = "info.length";
        info.get(b"length").ok_or(MetainfoError::Missing { key })?;
        listed.add(FilePath::new(vec![name.clone()])?, &Entry::new(info))?;
        return Ok(listed);
    };
    let key = "info.files";
    for file in list.list().ok_or(MetainfoError::Missing { key })? {
        let entry = Entry::new(file);
        let path = file.get(b"path.utf-8").or_else(|| file.get(b"path"));
        let path = path.and_then(|v| v.list());
        let mut parts = vec![name.clone()];
        if entry.pad {
            // Nothing is made of a pad's name, so nothing is asked of it.
            listed.add(FilePath::new(parts)?, &entry)?;
            continue;
        }
        names(
            path.ok_or(MetainfoError::Missing { key: "path" })?,
            &mut parts,
        )?;
        if parts.len() == 1 {
            return Err(MetainfoError::PathLength { parts: 0, bytes: 0 });
        }
        listed.add(FilePath::new(parts)?, &entry)?;
    }
    if listed.files.is_empty() {
        return Err(MetainfoError::Empty);
    }
    Ok(listed)
}

/// The v2 form: `file tree`. Each file begins at a piece boundary.
pub(super) fn from_tree(
    info: Value<'_>,
    name: &Name,
    piece_bytes: u32,
) -> Result<Listed, MetainfoError> {
    let key = "info.file tree";
    let tree = info
        .get(b"file tree")
        .ok_or(MetainfoError::Missing { key })?;
    let mut listed = Listed::new();
    let single = single_file(tree, name);
    let mut parts = if single {
        Vec::new()
    } else {
        vec![name.clone()]
    };
    let mut walk = TreeWalk {
        listed: &mut listed,
        piece_bytes: u64::from(piece_bytes),
    };
    walk.folder(tree, &mut parts)?;
    if listed.files.is_empty() {
        return Err(MetainfoError::Empty);
    }
    Ok(listed)
}

/// A tree with nothing but one file that has the torrent's name is a torrent of that file.
fn single_file(tree: Value<'_>, name: &Name) -> bool {
    let mut entries = tree.dict().into_iter().flatten();
    let Some((key, value)) = entries.next() else {
        return false;
    };
    key == name.as_bytes() && value.get(b"").is_some() && entries.next().is_none()
}

struct TreeWalk<'a> {
    listed: &'a mut Listed,
    piece_bytes: u64,
}

impl TreeWalk<'_> {
    /// As deep as bencode nests at most, which bounds the recursion.
    fn folder(&mut self, folder: Value<'_>, parts: &mut Vec<Name>) -> Result<(), MetainfoError> {
        let key = "info.file tree";
        for (name, value) in folder.dict().ok_or(MetainfoError::Missing { key })? {
            parts.push(Name::new(name)?);
            match value.get(b"") {
                Some(file) => self.file(FilePath::new(parts.clone())?, file)?,
                None => self.folder(value, parts)?,
            }
            parts.pop();
        }
        Ok(())
    }

    fn file(&mut self, path: FilePath, value: Value<'_>) -> Result<(), MetainfoError> {
        let mut entry = Entry::new(value);
        entry.pad = false;
        if !entry.symlink && entry.length(&path)? > 0 {
            self.listed.space_bytes = self.listed.space_bytes.next_multiple_of(self.piece_bytes);
        }
        self.listed.add(path, &entry)?;
        let Some(file) = self.listed.files.last_mut() else {
            return Ok(());
        };
        if file.length > 0 {
            let key = "pieces root";
            let root: Option<TreeHash> = value
                .get(b"pieces root")
                .and_then(|v| v.bytes()?.try_into().ok());
            file.root = Some(root.ok_or(MetainfoError::Missing { key })?);
        }
        Ok(())
    }
}

/// A hybrid torrent says everything twice; both must say the same (BEP 52, "upgrade path").
pub(super) fn check_halves(list: &Listed, tree: &Listed) -> Result<(), MetainfoError> {
    let same = |a: &File, b: &File| {
        let place = a.length == 0 || a.offset == b.offset;
        a.path == b.path && a.length == b.length && a.symlink == b.symlink && place
    };
    for n in 0..list.files.len().max(tree.files.len()) {
        match (list.files.get(n), tree.files.get(n)) {
            (Some(a), Some(b)) if same(a, b) => {}
            (Some(file), _) | (None, Some(file)) => {
                return Err(MetainfoError::Halves(file.path.clone()));
            }
            (None, None) => {}
        }
    }
    Ok(())
}

/// The tree's files with the list's numbers and extent; the halves have been checked.
pub(super) fn with_numbers_of(mut tree: Listed, list: &Listed) -> Listed {
    for (file, numbered) in tree.files.iter_mut().zip(&list.files) {
        file.index = numbered.index;
    }
    // The list may end in a pad, which belongs to the last piece hash.
    tree.space_bytes = list.space_bytes;
    tree
}

/// No path twice, and none that runs through a file.
pub(super) fn check_names(files: &[File]) -> Result<(), MetainfoError> {
    let mut seen = HashSet::with_capacity(files.len());
    for file in files {
        if !seen.insert(file.path.parts()) {
            return Err(MetainfoError::Duplicate(file.path.clone()));
        }
    }
    for file in files {
        let parts = file.path.parts();
        let through = (1..parts.len()).any(|depth| seen.contains(&parts[..depth]));
        if through {
            return Err(MetainfoError::Duplicate(file.path.clone()));
        }
    }
    Ok(())
}
