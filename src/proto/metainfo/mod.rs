//! Torrent metainfo: what a `.torrent` file, or the metadata behind a magnet link, says (BEP 3, 12, 19, 27, 47, 52).
//!
//! Read as found, since an info-hash is the hash of the bytes as they are; written in canonical form ([`draft`]).
//! v1, v2 and hybrid torrents give one [`Info`]: files with their place in the piece space, in which v2 and hybrid
//! files begin at piece boundaries and pad files are only gaps.

pub mod chunks;
pub mod draft;
mod files;
pub mod merkle;
pub mod path;
pub mod wrap;

use std::collections::BTreeMap;
use std::fmt;

use sha1::Sha1;
use sha2::{Digest, Sha256};
use thiserror::Error;

use self::chunks::ChunkLists;
use self::merkle::{BLOCK_BYTES, TreeHash};
use self::path::{FilePath, Name};
use super::bencode::{BencodeError, Document, Strictness, Value};

/// Largest `.torrent` file read, in bytes. A v1 torrent of 8 TiB in 1 MiB pieces has 160 MiB of hashes.
pub const TORRENT_BYTES_MAX: u64 = 256 << 20;
/// Largest piece, in bytes: what clients are known to make, with room.
pub const PIECE_BYTES_MAX: u32 = 512 << 20;
/// Smallest piece of a v1 torrent, in bytes; such pieces were made in BitTorrent's first years.
const PIECE_BYTES_MIN: u32 = 1 << 10;
/// Most files in a torrent; more is refused before anything is made of it.
pub const FILES_MAX: usize = 1_000_000;
/// Largest content, in bytes; keeps every sum of lengths far from overflow.
const CONTENT_BYTES_MAX: u64 = 1 << 60;
/// Trackers, web seeds and nodes taken from a torrent; what follows is left out.
const URLS_MAX: usize = 256;
/// Longest URL or comment taken, in bytes.
const TEXT_BYTES_MAX: usize = 8 << 10;

/// SHA-1 of the info dictionary (BEP 3).
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct InfoHashV1(pub [u8; 20]);

/// SHA-256 of the info dictionary (BEP 52).
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct InfoHashV2(pub [u8; 32]);

impl InfoHashV2 {
    /// The first 20 bytes, which stand for it in handshakes, trackers and the DHT.
    pub fn short(&self) -> [u8; 20] {
        let mut short = [0; 20];
        short.copy_from_slice(&self.0[..20]);
        short
    }
}

/// The names a torrent goes by. At least one is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct InfoHashes {
    pub v1: Option<InfoHashV1>,
    pub v2: Option<InfoHashV2>,
}

impl InfoHashes {
    /// The 20 bytes that stand for the torrent in handshakes, the v1 hash if there is one.
    pub fn short(&self) -> [u8; 20] {
        let v2 = || self.v2.map(|hash| hash.short());
        self.v1.map(|hash| hash.0).or_else(v2).unwrap_or_default()
    }
}

/// What is said about a file besides its bytes (BEP 47).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Attributes {
    pub executable: bool,
    pub hidden: bool,
}

/// One file. Pad files are not listed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct File {
    /// Where it lies below the output folder; in a torrent of a directory the first part is the torrent's name.
    pub path: FilePath,
    /// Bytes; 0 for a symbolic link.
    pub length: u64,
    /// Where it begins in the piece space.
    pub offset: u64,
    /// Its number as BEP 53 counts: pad files included.
    pub index: u32,
    pub attributes: Attributes,
    /// What a symbolic link points at, from the same folder as `path`.
    pub symlink: Option<FilePath>,
    /// Root of its hash tree in v2 and hybrid torrents; `None` for an empty file.
    pub root: Option<TreeHash>,
}

/// The info dictionary: all that the info-hash covers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Info {
    pub hashes: InfoHashes,
    pub name: Name,
    /// Bytes in a piece; the last one, and in v2 the last one of each file, may be shorter.
    pub piece_bytes: u32,
    /// Peers come from the torrent's own trackers alone (BEP 27).
    pub private: bool,
    pub files: Vec<File>,
    /// SHA-1 of each piece; empty when the torrent is v2 only.
    pub pieces_v1: Vec<[u8; 20]>,
    /// Bytes of the piece space, gaps included.
    pub space_bytes: u64,
    /// The folder snapshot with the chunk lists of these files (docs/bep_xet.md).
    pub xet: Option<[u8; 32]>,
    raw: Vec<u8>,
}

/// A whole `.torrent` file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Torrent {
    pub info: Info,
    /// The piece hashes of each v2 file larger than one piece, by the file's root.
    pub layers: BTreeMap<TreeHash, Vec<TreeHash>>,
    /// Tracker URLs in tiers (BEP 12).
    pub trackers: Vec<Vec<String>>,
    /// HTTP servers with the content (BEP 19).
    pub web_seeds: Vec<String>,
    /// What the files are made of (docs/bep_xet.md).
    pub chunks: ChunkLists,
    /// DHT nodes to start from (BEP 5).
    pub nodes: Vec<(String, u16)>,
    pub comment: Option<String>,
    pub created_by: Option<String>,
    /// Seconds since 1970.
    pub created: Option<i64>,
}

/// Why a torrent is refused.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum MetainfoError {
    #[error("not a torrent: {0}")]
    Bencode(#[from] BencodeError),
    #[error("not a torrent: {key} is missing or of the wrong type")]
    Missing { key: &'static str },
    #[error("the torrent has meta version {0}, which this program does not know")]
    Version(i64),
    #[error("the piece length {0} is not one a torrent may have")]
    PieceLength(i64),
    #[error("the torrent wants to write to an unsafe name: {0}")]
    UnsafeName(Name),
    #[error(
        "the torrent has a path of {parts} parts and {bytes} bytes, which is too long or empty"
    )]
    PathLength { parts: usize, bytes: usize },
    #[error("the torrent has {0} twice, or as a file and a folder")]
    Duplicate(FilePath),
    #[error("the torrent has more than {FILES_MAX} files")]
    TooManyFiles,
    #[error("the length of {0} is not one a file can have")]
    Length(FilePath),
    #[error("the torrent has no files")]
    Empty,
    #[error("the torrent has {found} piece hashes where its content makes {expected}")]
    PieceCount { expected: u64, found: u64 },
    #[error("the v1 and the v2 half of the torrent disagree about {0}")]
    Halves(FilePath),
    #[error("the piece hashes of {0} are missing or do not give its root")]
    Layer(FilePath),
}

impl Info {
    /// Reads an info dictionary, which must be all of `raw`.
    pub fn parse(raw: &[u8]) -> Result<Self, MetainfoError> {
        let document = Document::parse(raw, Strictness::AsFound)?;
        Self::read(document.root())
    }

    fn read(info: Value<'_>) -> Result<Self, MetainfoError> {
        let name = info.get(b"name.utf-8").or_else(|| info.get(b"name"));
        let name = name
            .and_then(|v| v.bytes())
            .ok_or(MetainfoError::Missing { key: "info.name" })?;
        let name = Name::new(name)?;
        let version = info.get(b"meta version").map_or(Some(1), |v| v.integer());
        let has_v2 = match version {
            Some(1) => false,
            Some(2) => true,
            other => return Err(MetainfoError::Version(other.unwrap_or_default())),
        };
        let has_v1 = !has_v2 || info.get(b"pieces").is_some();
        let piece_bytes = piece_length(info, has_v2)?;
        let mut listed = if has_v2 {
            files::from_tree(info, &name, piece_bytes)?
        } else {
            files::from_list(info, &name)?
        };
        let mut pieces_v1 = Vec::new();
        if has_v1 {
            pieces_v1 = v1_pieces(info)?;
            if has_v2 {
                let list = files::from_list(info, &name)?;
                files::check_halves(&list, &listed)?;
                // Numbers count the pad files, which only the v1 list has.
                listed = files::with_numbers_of(listed, &list);
            }
            let expected = listed.space_bytes.div_ceil(u64::from(piece_bytes));
            if expected != pieces_v1.len() as u64 {
                let found = pieces_v1.len() as u64;
                return Err(MetainfoError::PieceCount { expected, found });
            }
        }
        files::check_names(&listed.files)?;
        let raw = info.raw();
        Ok(Self {
            hashes: InfoHashes {
                v1: has_v1.then(|| InfoHashV1(Sha1::digest(raw).into())),
                v2: has_v2.then(|| InfoHashV2(Sha256::digest(raw).into())),
            },
            name,
            piece_bytes,
            private: info.get(b"private").and_then(|v| v.integer()) == Some(1),
            files: listed.files,
            pieces_v1,
            space_bytes: listed.space_bytes,
            xet: info
                .get(b"xet")
                .and_then(|v| v.bytes())
                .and_then(|bytes| bytes.try_into().ok()),
            raw: raw.to_vec(),
        })
    }

    /// The dictionary as found, for peers that ask for it (BEP 9).
    pub fn raw(&self) -> &[u8] {
        &self.raw
    }

    /// Bytes of all files together, without gaps.
    pub fn content_bytes(&self) -> u64 {
        self.files.iter().map(|file| file.length).sum()
    }

    /// Number of pieces.
    pub fn piece_count(&self) -> u64 {
        self.space_bytes.div_ceil(u64::from(self.piece_bytes))
    }
}

fn piece_length(info: Value<'_>, v2: bool) -> Result<u32, MetainfoError> {
    let key = "info.piece length";
    let found = info.get(b"piece length").and_then(|v| v.integer());
    let found = found.ok_or(MetainfoError::Missing { key })?;
    let refused = MetainfoError::PieceLength(found);
    let bytes = u32::try_from(found).map_err(|_| refused.clone())?;
    let well_formed = if v2 {
        bytes >= BLOCK_BYTES && bytes.is_power_of_two()
    } else {
        bytes >= PIECE_BYTES_MIN
    };
    if well_formed && bytes <= PIECE_BYTES_MAX {
        Ok(bytes)
    } else {
        Err(refused)
    }
}

fn v1_pieces(info: Value<'_>) -> Result<Vec<[u8; 20]>, MetainfoError> {
    let key = "info.pieces";
    let bytes = info.get(b"pieces").and_then(|v| v.bytes());
    let (pieces, rest) = bytes.ok_or(MetainfoError::Missing { key })?.as_chunks();
    if !rest.is_empty() {
        return Err(MetainfoError::Missing { key });
    }
    Ok(pieces.to_vec())
}

impl Torrent {
    /// Reads a `.torrent` file.
    pub fn parse(bytes: &[u8]) -> Result<Self, MetainfoError> {
        let document = Document::parse(bytes, Strictness::AsFound)?;
        let root = document.root();
        let info = root
            .get(b"info")
            .ok_or(MetainfoError::Missing { key: "info" })?;
        let info = Info::read(info)?;
        let layers = layers(root, &info)?;
        let chunks = root.get(b"xet").map(|dict| ChunkLists::read(dict, &info));
        Ok(Self {
            chunks: chunks.unwrap_or_default(),
            layers,
            trackers: trackers(root),
            web_seeds: web_seeds(root),
            nodes: nodes(root),
            comment: root.get(b"comment").and_then(text),
            created_by: root.get(b"created by").and_then(text),
            created: root.get(b"creation date").and_then(|v| v.integer()),
            info,
        })
    }
}

/// The `piece layers`, each checked against the root it stands under; for files of one piece there is none. A hybrid may lack some.
fn layers(
    root: Value<'_>,
    info: &Info,
) -> Result<BTreeMap<TreeHash, Vec<TreeHash>>, MetainfoError> {
    let mut found = BTreeMap::new();
    for (key, layer) in root
        .get(b"piece layers")
        .and_then(|v| v.dict())
        .into_iter()
        .flatten()
    {
        found.insert(key, layer);
    }
    let mut layers = BTreeMap::new();
    for file in &info.files {
        let Some(file_root) = file.root else { continue };
        if file.length <= u64::from(info.piece_bytes) || layers.contains_key(&file_root) {
            continue;
        }
        let refused = || MetainfoError::Layer(file.path.clone());
        let listed = found.get(&file_root[..]);
        if listed.is_none() && !info.pieces_v1.is_empty() {
            // A hybrid that came by a magnet link: its pieces are checked by their v1 hashes.
            continue;
        }
        let bytes = listed.and_then(|v| v.bytes());
        let (layer, rest) = bytes.ok_or_else(refused)?.as_chunks();
        let pieces = file.length.div_ceil(u64::from(info.piece_bytes));
        let fits = rest.is_empty() && layer.len() as u64 == pieces;
        if !fits || merkle::root_of_pieces(layer, info.piece_bytes) != file_root {
            return Err(refused());
        }
        layers.insert(file_root, layer.to_vec());
    }
    Ok(layers)
}

/// `announce-list` if there is one, else `announce` (BEP 12).
fn trackers(root: Value<'_>) -> Vec<Vec<String>> {
    let tier = |tier: Value<'_>| -> Vec<String> {
        tier.list().into_iter().flatten().filter_map(text).collect()
    };
    let list = root.get(b"announce-list").and_then(|v| v.list());
    let mut tiers: Vec<Vec<String>> = list.into_iter().flatten().map(tier).collect();
    tiers.retain(|tier| !tier.is_empty());
    if tiers.is_empty() {
        tiers.extend(root.get(b"announce").and_then(text).map(|url| vec![url]));
    }
    let mut left = URLS_MAX;
    for tier in &mut tiers {
        tier.truncate(left);
        left -= tier.len();
    }
    tiers.retain(|tier| !tier.is_empty());
    tiers
}

/// `url-list` is one URL or a list of them (BEP 19).
fn web_seeds(root: Value<'_>) -> Vec<String> {
    let Some(value) = root.get(b"url-list") else {
        return Vec::new();
    };
    match value.list() {
        Some(list) => list.filter_map(text).take(URLS_MAX).collect(),
        None => text(value).into_iter().collect(),
    }
}

fn nodes(root: Value<'_>) -> Vec<(String, u16)> {
    let node = |node: Value<'_>| {
        let mut pair = node.list()?;
        let host = text(pair.next()?)?;
        let port = u16::try_from(pair.next()?.integer()?).ok()?;
        Some((host, port))
    };
    let list = root.get(b"nodes").and_then(|v| v.list());
    list.into_iter()
        .flatten()
        .filter_map(node)
        .take(URLS_MAX)
        .collect()
}

/// Text somebody may be shown: not empty, UTF-8, not longer than [`TEXT_BYTES_MAX`].
fn text(value: Value<'_>) -> Option<String> {
    let bytes = value.bytes()?;
    let fits = !bytes.is_empty() && bytes.len() <= TEXT_BYTES_MAX;
    fits.then(|| String::from_utf8(bytes.to_vec()).ok())?
}

fn hex(bytes: &[u8], f: &mut fmt::Formatter<'_>) -> fmt::Result {
    bytes.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
}

impl fmt::Display for InfoHashV1 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        hex(&self.0, f)
    }
}

impl fmt::Debug for InfoHashV1 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        hex(&self.0, f)
    }
}

impl fmt::Display for InfoHashV2 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        hex(&self.0, f)
    }
}

impl fmt::Debug for InfoHashV2 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        hex(&self.0, f)
    }
}

#[cfg(test)]
pub(crate) mod tests;
