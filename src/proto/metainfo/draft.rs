//! A torrent in the making: which bytes make up each piece, and the `.torrent` file once every piece is hashed.
//!
//! The caller reads the pieces and hashes them in any order ([`Piece::hash`]); nothing here touches a file.

use std::collections::BTreeMap;

use sha1::{Digest, Sha1};

use super::merkle::{self, BLOCK_BYTES, TreeHash};
use super::path::{FilePath, Name};
use super::{Attributes, MetainfoError, PIECE_BYTES_MAX};
use crate::proto::bencode::Item;

/// Pieces aimed at when no piece size is asked for: few enough for a small `.torrent`, enough to share early.
const PIECES_AIM: u64 = 1500;
/// Piece sizes chosen by themselves lie between these, in bytes.
const AUTO_PIECE_BYTES: (u64, u64) = (32 << 10, 16 << 20);

/// Which hashes a torrent carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    V1,
    V2,
    Hybrid,
}

impl Version {
    fn has_v1(self) -> bool {
        self != Self::V2
    }

    fn has_v2(self) -> bool {
        self != Self::V1
    }
}

/// A file that will be in the torrent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DraftFile {
    /// In a torrent of a folder the first part is the torrent's name.
    pub path: FilePath,
    pub length: u64,
    pub attributes: Attributes,
    pub symlink: Option<FilePath>,
}

/// What does not depend on the content.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Extras {
    /// One tier each (BEP 12).
    pub trackers: Vec<String>,
    pub web_seeds: Vec<String>,
    pub private: bool,
    pub comment: Option<String>,
    pub created_by: Option<String>,
    /// Seconds since 1970.
    pub created: Option<i64>,
    /// The `source` key private trackers ask for, to give their torrents an info-hash of their own.
    pub source: Option<String>,
}

/// See the module documentation.
#[derive(Debug, Clone)]
pub struct Draft {
    name: Name,
    version: Version,
    piece_bytes: u32,
    files: Vec<DraftFile>,
    extras: Extras,
}

/// One piece: the ranges of files it is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Piece {
    /// (number of the file in [`Draft::files`], offset in it, bytes), in order.
    pub parts: Vec<(usize, u64, u32)>,
    /// Zeros behind the parts, hashed by v1 only.
    pad: u32,
    /// The file has other pieces, so a v2 hash is that of a whole piece's subtree.
    in_layer: bool,
    piece_bytes: u32,
    version: Version,
}

/// The hashes of one piece.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PieceHash {
    v1: Option<[u8; 20]>,
    v2: Option<TreeHash>,
}

impl Piece {
    /// Bytes of all parts together.
    pub fn bytes(&self) -> usize {
        self.parts.iter().map(|(_, _, len)| *len as usize).sum()
    }

    /// Hashes the content of the parts, one after the other.
    pub fn hash(&self, content: &[u8]) -> PieceHash {
        let v1 = self.version.has_v1().then(|| {
            let mut hasher = Sha1::new();
            hasher.update(content);
            let zeros = [0; 4096];
            let mut left = self.pad as usize;
            while left > 0 {
                let n = left.min(zeros.len());
                hasher.update(&zeros[..n]);
                left -= n;
            }
            hasher.finalize().into()
        });
        let v2 = self.version.has_v2().then(|| {
            let leaves: Vec<_> = content
                .chunks(BLOCK_BYTES as usize)
                .map(merkle::leaf)
                .collect();
            if self.in_layer {
                merkle::piece_hash(&leaves, self.piece_bytes)
            } else {
                merkle::small_file_root(&leaves)
            }
        });
        PieceHash { v1, v2 }
    }
}

impl Draft {
    /// A torrent called `name` of `files` with their sizes. Without a piece size one is chosen.
    pub fn new(
        name: Name,
        version: Version,
        piece_bytes: Option<u32>,
        mut files: Vec<DraftFile>,
        extras: Extras,
    ) -> Result<Self, MetainfoError> {
        if files.is_empty() {
            return Err(MetainfoError::Empty);
        }
        // The order of the v2 tree, which a hybrid's list must have too.
        files.sort_by(|a, b| a.path.cmp(&b.path));
        let content: u64 = files.iter().map(|file| file.length).sum();
        let piece_bytes = piece_bytes.unwrap_or_else(|| auto_piece_bytes(content));
        let fits = (BLOCK_BYTES..=PIECE_BYTES_MAX).contains(&piece_bytes);
        if !fits || !piece_bytes.is_power_of_two() {
            return Err(MetainfoError::PieceLength(i64::from(piece_bytes)));
        }
        Ok(Self {
            name,
            version,
            piece_bytes,
            files,
            extras,
        })
    }

    /// The files in the order of the torrent.
    pub fn files(&self) -> &[DraftFile] {
        &self.files
    }

    /// Bytes in a piece.
    pub fn piece_bytes(&self) -> u32 {
        self.piece_bytes
    }

    /// The pieces in order.
    pub fn pieces(&self) -> Vec<Piece> {
        let mut pieces = Vec::new();
        let mut open = self.piece();
        let mut room = self.piece_bytes;
        for (number, file) in self.files.iter().enumerate() {
            let mut offset = 0;
            while offset < file.length {
                let len = u64::from(room).min(file.length - offset) as u32;
                open.parts.push((number, offset, len));
                open.in_layer = file.length > u64::from(self.piece_bytes);
                offset += u64::from(len);
                room -= len;
                let boundary = self.version.has_v2() && offset == file.length;
                if room == 0 || boundary {
                    open.pad = room;
                    pieces.push(std::mem::replace(&mut open, self.piece()));
                    room = self.piece_bytes;
                }
            }
        }
        if !open.parts.is_empty() {
            pieces.push(open);
        }
        if let Some(last) = pieces.last_mut() {
            last.pad = 0;
        }
        pieces
    }

    fn piece(&self) -> Piece {
        Piece {
            parts: Vec::new(),
            pad: 0,
            in_layer: false,
            piece_bytes: self.piece_bytes,
            version: self.version,
        }
    }

    /// The `.torrent` file, given the hash of each of [`Self::pieces`].
    pub fn finish(&self, hashes: &[PieceHash]) -> Vec<u8> {
        let mut info = BTreeMap::new();
        let mut set = |key: &str, value| drop(info.insert(key.as_bytes().to_vec(), value));
        set("name", bytes(self.name.as_bytes()));
        set("piece length", Item::Integer(i64::from(self.piece_bytes)));
        if self.extras.private {
            set("private", Item::Integer(1));
        }
        if let Some(source) = &self.extras.source {
            set("source", bytes(source.as_bytes()));
        }
        if self.version.has_v1() {
            let pieces = hashes.iter().filter_map(|hash| hash.v1).flatten().collect();
            set("pieces", Item::Bytes(pieces));
            match self.single() {
                Some(file) => {
                    set("length", integer(file.length));
                    if let Some(attr) = attr(file) {
                        set("attr", attr);
                    }
                }
                None => set("files", self.list()),
            }
        }
        let mut layers = BTreeMap::new();
        if self.version.has_v2() {
            set("meta version", Item::Integer(2));
            set("file tree", self.tree(hashes, &mut layers));
        }
        let mut out = Vec::new();
        self.outer(Item::Dict(info), layers).encode(&mut out);
        out
    }

    fn outer(&self, info: Item, layers: BTreeMap<Vec<u8>, Item>) -> Item {
        let mut torrent = BTreeMap::new();
        let mut set = |key: &str, value| drop(torrent.insert(key.as_bytes().to_vec(), value));
        set("info", info);
        if self.version.has_v2() {
            set("piece layers", Item::Dict(layers));
        }
        let text = |text: &String| bytes(text.as_bytes());
        let extras = &self.extras;
        if let Some(first) = extras.trackers.first() {
            set("announce", text(first));
        }
        if extras.trackers.len() > 1 {
            let tiers = extras
                .trackers
                .iter()
                .map(|url| Item::List(vec![text(url)]));
            set("announce-list", Item::List(tiers.collect()));
        }
        if !extras.web_seeds.is_empty() {
            set(
                "url-list",
                Item::List(extras.web_seeds.iter().map(text).collect()),
            );
        }
        if let Some(comment) = &extras.comment {
            set("comment", text(comment));
        }
        if let Some(by) = &extras.created_by {
            set("created by", text(by));
        }
        if let Some(created) = extras.created {
            set("creation date", Item::Integer(created));
        }
        Item::Dict(torrent)
    }

    /// The file, if the torrent is of one file and not of a folder.
    fn single(&self) -> Option<&DraftFile> {
        match self.files.as_slice() {
            [file] if file.path.parts().len() == 1 => Some(file),
            _ => None,
        }
    }

    /// The v1 list; in a hybrid a pad file fills each file's last piece, but for the last of all.
    fn list(&self) -> Item {
        let last = self.files.iter().rposition(|file| file.length > 0);
        let mut list = Vec::new();
        for (number, file) in self.files.iter().enumerate() {
            let parts = file
                .path
                .parts()
                .iter()
                .skip(1)
                .map(|part| bytes(part.as_bytes()));
            let path = Item::List(parts.collect());
            let mut entry = fields(file);
            entry.insert(b"path".to_vec(), path);
            list.push(Item::Dict(entry));
            let over = file.length % u64::from(self.piece_bytes);
            if self.version == Version::Hybrid && over > 0 && last != Some(number) {
                let pad = u64::from(self.piece_bytes) - over;
                let name = [".pad".to_owned(), pad.to_string()].map(|part| bytes(part.as_bytes()));
                list.push(Item::dict([
                    ("attr", bytes(b"p")),
                    ("length", integer(pad)),
                    ("path", Item::List(name.into())),
                ]));
            }
        }
        Item::List(list)
    }

    /// The v2 tree; collects the piece layers on the way.
    fn tree(&self, hashes: &[PieceHash], layers: &mut BTreeMap<Vec<u8>, Item>) -> Item {
        let mut tree = BTreeMap::new();
        let mut hashes = hashes.iter().filter_map(|hash| hash.v2);
        let single = self.single().is_some();
        for file in &self.files {
            let pieces = file.length.div_ceil(u64::from(self.piece_bytes)) as usize;
            let layer: Vec<TreeHash> = hashes.by_ref().take(pieces).collect();
            let root = match layer.as_slice() {
                [] => None,
                [root] => Some(*root),
                layer => Some(merkle::root_of_pieces(layer, self.piece_bytes)),
            };
            let mut entry = fields(file);
            if let Some(root) = root {
                entry.insert(b"pieces root".to_vec(), bytes(&root));
                if layer.len() > 1 {
                    layers.insert(root.to_vec(), Item::Bytes(layer.concat()));
                }
            }
            let skipped = usize::from(!single);
            let parts = file.path.parts().get(skipped..).unwrap_or_default();
            insert(&mut tree, parts, entry);
        }
        Item::Dict(tree)
    }
}

fn insert(tree: &mut BTreeMap<Vec<u8>, Item>, parts: &[Name], entry: BTreeMap<Vec<u8>, Item>) {
    let Some((part, below)) = parts.split_first() else {
        tree.insert(Vec::new(), Item::Dict(entry));
        return;
    };
    let next = tree
        .entry(part.as_bytes().to_vec())
        .or_insert_with(|| Item::Dict(BTreeMap::new()));
    if let Item::Dict(next) = next {
        insert(next, below, entry);
    }
}

/// The fields both forms have.
fn fields(file: &DraftFile) -> BTreeMap<Vec<u8>, Item> {
    let mut fields = BTreeMap::new();
    fields.insert(b"length".to_vec(), integer(file.length));
    if let Some(attr) = attr(file) {
        fields.insert(b"attr".to_vec(), attr);
    }
    if let Some(target) = &file.symlink {
        let parts = target
            .parts()
            .iter()
            .skip(1)
            .map(|part| bytes(part.as_bytes()));
        fields.insert(b"symlink path".to_vec(), Item::List(parts.collect()));
    }
    fields
}

fn attr(file: &DraftFile) -> Option<Item> {
    let flags = [
        (file.attributes.hidden, b'h'),
        (file.symlink.is_some(), b'l'),
        (file.attributes.executable, b'x'),
    ];
    let set: Vec<u8> = flags
        .into_iter()
        .filter_map(|(on, flag)| on.then_some(flag))
        .collect();
    (!set.is_empty()).then_some(Item::Bytes(set))
}

fn bytes(bytes: &[u8]) -> Item {
    Item::Bytes(bytes.to_vec())
}

/// Lengths are far below 2^63 by the checks of who made them.
fn integer(value: u64) -> Item {
    Item::Integer(i64::try_from(value).unwrap_or(i64::MAX))
}

fn auto_piece_bytes(content: u64) -> u32 {
    let (low, high) = AUTO_PIECE_BYTES;
    let bytes = (content / PIECES_AIM).clamp(low, high).next_power_of_two();
    u32::try_from(bytes.min(high)).unwrap_or(PIECE_BYTES_MAX)
}
