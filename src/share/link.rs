//! Links: a capability to a folder as one line of text, with optional hints where to find it
//! (`docs/bep_xet.md` section 1). A link is a secret: only [`Link::reveal`] shows it.

use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;

use data_encoding::{BASE32_NOPAD, DecodeKind};
use thiserror::Error;
use zeroize::Zeroizing;

use super::ids::FolderId;
use super::keys::{self, DiscoverKey, OwnerSeed, ReadKey, WriteKey};

const SCHEME: &str = "ccbt:";
const VERSION: u8 = 0;
const CHECKED_LEN: usize = 1 + 1 + 1 + 32 + 32;
const PAYLOAD_LEN: usize = CHECKED_LEN + 4;

/// Base32 characters of the payload.
const TEXT_LEN: usize = (PAYLOAD_LEN * 8).div_ceil(5);

/// Longest link that is looked at, hints included, in bytes.
const LINK_LEN_MAX: usize = 8 << 10;

/// Most `pe=` and most `tr=` hints taken; a link is for people to pass around.
const HINTS_MAX: usize = 16;

/// What a link lets its holder do, the lesser right being smaller.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Right {
    /// Find and meet members.
    Discover,
    /// Read the folder.
    Read,
    /// Publish changes.
    Write,
    /// Sign manifests.
    Owner,
}

/// Hash suite of a folder's chunks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Suite {
    /// Keyed BLAKE3, compatible with Xet.
    Blake3,
    /// HMAC-SHA-256 in the same tree.
    Sha256,
}

/// The key a link carries.
#[derive(Debug, Clone)]
pub enum Capability {
    /// Everything, in every epoch.
    Owner(OwnerSeed),
    /// Read and write in one epoch.
    Write(WriteKey),
    /// Read in one epoch.
    Read(ReadKey),
    /// Meet in one epoch.
    Discover(DiscoverKey),
}

/// Where to look for members. Nobody vouches for it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Hints {
    /// Addresses of members (`pe`).
    pub peers: Vec<SocketAddr>,
    /// Tracker URLs (`tr`).
    pub trackers: Vec<String>,
    /// Suggested name of the folder (`n`), as the sender wrote it.
    pub name: Option<String>,
}

/// A link to a folder. `Debug` and `Display` name the folder and the right, not the secret.
#[derive(Clone)]
pub struct Link {
    folder: FolderId,
    suite: Suite,
    capability: Capability,
    /// Hints that came with it or shall go with it.
    pub hints: Hints,
}

/// Why text is not a usable link. The text itself is never repeated, it may be a secret.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum LinkError {
    /// Another kind of URI, or none.
    #[error("a folder link starts with \"ccbt:\"")]
    Scheme,
    /// Longer than any link.
    #[error("the link has {len} bytes, more than the {LINK_LEN_MAX} a link can have")]
    TooLong {
        /// Its length.
        len: usize,
    },
    /// A character that base32 does not have.
    #[error("character {position} of the link is none that a link contains")]
    Character {
        /// Counted from 1, scheme included.
        position: usize,
    },
    /// Length or checksum is wrong.
    #[error("the link is mistyped or cut off")]
    Checksum,
    /// Made by a newer ccbt.
    #[error("the link has version {0}, this program knows version {VERSION}")]
    Version(u8),
    /// The first letter and the capability byte disagree or are unknown.
    #[error("the link grants an unknown right ({0})")]
    UnknownRight(u8),
    /// A hash suite this program does not have.
    #[error("the link uses the unknown hash suite {0}")]
    UnknownSuite(u8),
    /// The folder id is no public key, or not the owner seed's.
    #[error("the link names no valid folder")]
    Folder,
    /// A known hint cannot be understood.
    #[error("the hint \"{key}\" of the link cannot be understood")]
    Hint {
        /// `pe`, `tr` or `n`.
        key: &'static str,
    },
    /// The link gives less than the operation needs.
    #[error("this needs {} link, but the link only lets you {}", .need.noun(), .have.verb())]
    Insufficient {
        /// What the link gives.
        have: Right,
        /// What is needed.
        need: Right,
    },
}

impl Link {
    /// A link for `capability`. For an owner's seed the folder has to be its own.
    pub fn new(folder: FolderId, suite: Suite, capability: Capability) -> Self {
        Self {
            folder,
            suite,
            capability,
            hints: Hints::default(),
        }
    }

    /// The folder it leads to.
    pub fn folder(&self) -> FolderId {
        self.folder
    }

    /// The folder's hash suite.
    pub fn suite(&self) -> Suite {
        self.suite
    }

    /// The key it carries.
    pub fn capability(&self) -> &Capability {
        &self.capability
    }

    /// What it lets its holder do.
    pub fn right(&self) -> Right {
        self.capability.right()
    }

    /// Fails unless the link gives at least `need`.
    pub fn require(&self, need: Right) -> Result<(), LinkError> {
        let have = self.right();
        if have >= need {
            Ok(())
        } else {
            Err(LinkError::Insufficient { have, need })
        }
    }

    /// The same folder with a lesser (or equal) right, without hints. `epoch` matters only when
    /// it is taken from an owner link.
    pub fn attenuate(&self, right: Right, epoch: u32) -> Result<Self, LinkError> {
        self.require(right)?;
        let capability = self.capability.attenuate(right, epoch);
        Ok(Self::new(self.folder, self.suite, capability))
    }

    /// The text of the link, secret included: for showing to the user who asked for it.
    pub fn reveal(&self) -> String {
        let mut payload = Zeroizing::new([0; PAYLOAD_LEN]);
        payload[0] = self.right().letter() << 3 | VERSION;
        payload[1] = self.right().byte();
        payload[2] = self.suite.byte();
        payload[3..35].copy_from_slice(self.folder.as_bytes());
        payload[35..CHECKED_LEN].copy_from_slice(self.capability.secret());
        let check = checksum(&payload[..CHECKED_LEN]);
        payload[CHECKED_LEN..].copy_from_slice(&check);
        let mut text = SCHEME.to_owned();
        text.push_str(&BASE32_NOPAD.encode(&payload[..]).to_ascii_lowercase());
        text.push_str(&self.hints.to_query());
        text
    }

    fn describe(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let letter = self.right().name();
        write!(f, "ccbt:({letter} link, folder {})", short(&self.folder))
    }
}

fn short(folder: &FolderId) -> String {
    folder.to_string().chars().take(12).collect()
}

impl FromStr for Link {
    type Err = LinkError;

    fn from_str(text: &str) -> Result<Self, LinkError> {
        let text = text.trim();
        if text.len() > LINK_LEN_MAX {
            return Err(LinkError::TooLong { len: text.len() });
        }
        let body = match text.split_at_checked(SCHEME.len()) {
            Some((scheme, body)) if scheme.eq_ignore_ascii_case(SCHEME) => body,
            _ => return Err(LinkError::Scheme),
        };
        let (secret, query) = body.split_once('?').unwrap_or((body, ""));
        let payload = decode_payload(secret)?;
        let mut link = decode_link(&payload)?;
        link.hints = Hints::from_query(query)?;
        Ok(link)
    }
}

fn decode_payload(text: &str) -> Result<Zeroizing<[u8; PAYLOAD_LEN]>, LinkError> {
    let upper = Zeroizing::new(text.to_ascii_uppercase());
    let bad = |byte: u8| !matches!(byte, b'A'..=b'Z' | b'2'..=b'7');
    if let Some(at) = upper.bytes().position(bad) {
        return Err(LinkError::Character {
            position: SCHEME.len() + at + 1,
        });
    }
    if upper.len() != TEXT_LEN {
        return Err(LinkError::Checksum);
    }
    let decoded = BASE32_NOPAD
        .decode(upper.as_bytes())
        .map_err(|error| match error.kind {
            DecodeKind::Symbol => LinkError::Character {
                position: SCHEME.len() + error.position + 1,
            },
            DecodeKind::Length | DecodeKind::Trailing | DecodeKind::Padding => LinkError::Checksum,
        })?;
    let decoded = Zeroizing::new(decoded);
    let mut payload = Zeroizing::new([0; PAYLOAD_LEN]);
    if decoded.len() != PAYLOAD_LEN {
        return Err(LinkError::Checksum);
    }
    payload.copy_from_slice(&decoded);
    if checksum(&payload[..CHECKED_LEN]) != payload[CHECKED_LEN..] {
        return Err(LinkError::Checksum);
    }
    Ok(payload)
}

fn decode_link(payload: &[u8; PAYLOAD_LEN]) -> Result<Link, LinkError> {
    let [first, cap, suite, ref rest @ ..] = *payload;
    if first & 7 != VERSION {
        return Err(LinkError::Version(first & 7));
    }
    let right = Right::from_byte(cap)
        .filter(|right| right.letter() == first >> 3)
        .ok_or(LinkError::UnknownRight(cap))?;
    let suite = Suite::from_byte(suite).ok_or(LinkError::UnknownSuite(suite))?;
    let folder: [u8; 32] = std::array::from_fn(|i| rest[i]);
    let secret = Zeroizing::new(std::array::from_fn(|i| rest[32 + i]));
    if !keys::is_public_key(&folder) {
        return Err(LinkError::Folder);
    }
    let folder = FolderId::from_bytes(folder);
    let capability = Capability::from_secret(right, *secret);
    match &capability {
        Capability::Owner(seed) if seed.folder() != folder => Err(LinkError::Folder),
        _ => Ok(Link::new(folder, suite, capability)),
    }
}

fn checksum(checked: &[u8]) -> [u8; 4] {
    let hash = blake3::hash(checked);
    std::array::from_fn(|i| hash.as_bytes()[i])
}

impl fmt::Display for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.describe(f)
    }
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.describe(f)
    }
}

impl Capability {
    /// What the key lets its holder do.
    pub fn right(&self) -> Right {
        match self {
            Self::Owner(_) => Right::Owner,
            Self::Write(_) => Right::Write,
            Self::Read(_) => Right::Read,
            Self::Discover(_) => Right::Discover,
        }
    }

    /// The key for writing in `epoch`, if the capability reaches that far.
    pub fn write_key(&self, epoch: u32) -> Option<WriteKey> {
        match self {
            Self::Owner(seed) => Some(seed.write_key(epoch)),
            Self::Write(key) => Some(key.clone()),
            Self::Read(_) | Self::Discover(_) => None,
        }
    }

    /// The key for reading in `epoch`, if the capability reaches that far.
    pub fn read_key(&self, epoch: u32) -> Option<ReadKey> {
        match self {
            Self::Read(key) => Some(key.clone()),
            _ => self.write_key(epoch).map(|key| key.read_key()),
        }
    }

    /// The key for meeting in `epoch`.
    pub fn discover_key(&self, epoch: u32) -> DiscoverKey {
        match self {
            Self::Owner(seed) => seed.write_key(epoch).read_key().discover_key(),
            Self::Write(key) => key.read_key().discover_key(),
            Self::Read(key) => key.discover_key(),
            Self::Discover(key) => key.clone(),
        }
    }

    /// The lesser of `right` and what this is.
    fn attenuate(&self, right: Right, epoch: u32) -> Self {
        let lesser = match right {
            Right::Owner => None,
            Right::Write => self.write_key(epoch).map(Self::Write),
            Right::Read => self.read_key(epoch).map(Self::Read),
            Right::Discover => Some(Self::Discover(self.discover_key(epoch))),
        };
        lesser.unwrap_or_else(|| self.clone())
    }

    fn from_secret(right: Right, secret: [u8; 32]) -> Self {
        match right {
            Right::Owner => Self::Owner(OwnerSeed::from_bytes(secret)),
            Right::Write => Self::Write(WriteKey::from_bytes(secret)),
            Right::Read => Self::Read(ReadKey::from_bytes(secret)),
            Right::Discover => Self::Discover(DiscoverKey::from_bytes(secret)),
        }
    }

    fn secret(&self) -> &[u8; 32] {
        match self {
            Self::Owner(key) => key.expose(),
            Self::Write(key) => key.expose(),
            Self::Read(key) => key.expose(),
            Self::Discover(key) => key.expose(),
        }
    }
}

impl Right {
    fn byte(self) -> u8 {
        match self {
            Self::Discover => 0,
            Self::Read => 1,
            Self::Write => 2,
            Self::Owner => 3,
        }
    }

    fn from_byte(byte: u8) -> Option<Self> {
        [Self::Discover, Self::Read, Self::Write, Self::Owner]
            .get(usize::from(byte))
            .copied()
    }

    /// Base32 index of the link's first letter: e, r, w or o.
    fn letter(self) -> u8 {
        let letter = match self {
            Self::Discover => b'e',
            Self::Read => b'r',
            Self::Write => b'w',
            Self::Owner => b'o',
        };
        letter - b'a'
    }

    fn name(self) -> &'static str {
        match self {
            Self::Discover => "relay",
            Self::Read => "read",
            Self::Write => "write",
            Self::Owner => "owner",
        }
    }

    fn noun(self) -> &'static str {
        match self {
            Self::Discover => "a relay",
            Self::Read => "a read-only",
            Self::Write => "a read-write",
            Self::Owner => "the owner's",
        }
    }

    fn verb(self) -> &'static str {
        match self {
            Self::Discover => "find the folder",
            Self::Read => "read",
            Self::Write => "read and write",
            Self::Owner => "own the folder",
        }
    }
}

impl Suite {
    /// What names the chunks.
    pub fn hashes(self) -> ccbt_xet::hash::Suite {
        match self {
            Self::Blake3 => ccbt_xet::hash::Suite::Blake3,
            Self::Sha256 => ccbt_xet::hash::Suite::Sha256,
        }
    }

    /// The byte in links and manifests.
    pub(super) fn byte(self) -> u8 {
        match self {
            Self::Blake3 => 0,
            Self::Sha256 => 1,
        }
    }

    pub(super) fn from_byte(byte: u8) -> Option<Self> {
        [Self::Blake3, Self::Sha256].get(usize::from(byte)).copied()
    }
}

impl Hints {
    fn from_query(query: &str) -> Result<Self, LinkError> {
        let mut hints = Self::default();
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            match key {
                "pe" if hints.peers.len() < HINTS_MAX => {
                    let peer = percent_decode(value).and_then(|text| text.parse().ok());
                    hints.peers.push(peer.ok_or(LinkError::Hint { key: "pe" })?);
                }
                "tr" if hints.trackers.len() < HINTS_MAX => {
                    let url = percent_decode(value).ok_or(LinkError::Hint { key: "tr" })?;
                    hints.trackers.push(url);
                }
                "n" => {
                    let name = percent_decode(value).ok_or(LinkError::Hint { key: "n" })?;
                    hints.name = Some(name);
                }
                // Hints of newer versions, and more than anybody needs, are passed over.
                _ => {}
            }
        }
        Ok(hints)
    }

    fn to_query(&self) -> String {
        let peers = self.peers.iter().map(|peer| ("pe", peer.to_string()));
        let trackers = self.trackers.iter().map(|url| ("tr", url.clone()));
        let name = self.name.iter().map(|name| ("n", name.clone()));
        let mut query = String::new();
        for (key, value) in peers.chain(trackers).chain(name) {
            query.push(if query.is_empty() { '?' } else { '&' });
            query.push_str(key);
            query.push('=');
            percent_encode(&value, &mut query);
        }
        query
    }
}

/// Escapes everything but RFC 3986 unreserved characters and the `:` of addresses.
fn percent_encode(text: &str, out: &mut String) {
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b':' => {
                out.push(char::from(byte));
            }
            _ => {
                out.push('%');
                out.push_str(&data_encoding::HEXUPPER.encode(&[byte]));
            }
        }
    }
}

fn percent_decode(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut parts = text.as_bytes().split(|byte| *byte == b'%');
    bytes.extend_from_slice(parts.next()?);
    for part in parts {
        let (hex, plain) = part.split_at_checked(2)?;
        bytes.extend(data_encoding::HEXUPPER_PERMISSIVE.decode(hex).ok()?);
        bytes.extend_from_slice(plain);
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests;
