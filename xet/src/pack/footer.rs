//! Footers of sealed packs: the xorb's for chunks, our own for nodes.

use std::io;

use crate::disk::DiskFile;
use crate::hash::ChunkHash;
use crate::xorb::{self, HEADER_LEN, MAX_CHUNKS, MAX_PAYLOAD};

use super::{Entry, Name, PackKind};

/// First bytes of a node footer; the last is its version.
const NODES_MAGIC: [u8; 8] = *b"CCBTNOD\x01";

/// Bytes of a node footer besides those per node: magic, count, checksum, length word.
const NODES_FIXED_LEN: usize = 8 + 4 + 4 + 4;

/// Id, kind, end of the record.
const NODES_LEN_PER_NODE: usize = 32 + 1 + 4;

/// Bytes of a xorb footer before the first chunk hash.
const XORB_NAMES_OFFSET: u64 = 52;

/// Bytes of a node footer before the first id.
const NODES_NAMES_OFFSET: u64 = 12;

/// Bytes of the word that ends both footers.
const LENGTH_WORD: usize = 4;

/// What a footer says, as far as opening the pack needs it.
pub(crate) struct PackFooter {
    pub(crate) names: Vec<Name>,
    pub(crate) ends: Vec<u32>,
    /// The whole footer, of a pack of chunks.
    xorb: Option<xorb::Footer>,
}

impl PackFooter {
    /// Whether the names are those that were written. Costs a hash over them in a pack of chunks; a footer of nodes
    /// has a checksum that was looked at when it was read.
    pub(crate) fn is_whole(&self, kind: PackKind) -> bool {
        match (kind, &self.xorb) {
            (PackKind::Chunks(suite), Some(footer)) => footer.root(suite) == Some(footer.xorb_hash),
            _ => true,
        }
    }
}

/// Where the names start, counted from the start of the footer.
pub(crate) const fn names_offset(kind: PackKind) -> u64 {
    match kind {
        PackKind::Chunks(_) => XORB_NAMES_OFFSET,
        PackKind::Nodes => NODES_NAMES_OFFSET,
    }
}

/// Where a xorb footer of `slots` chunks says how long all of them are together, counted from its
/// start: the end of the last one in the uncompressed concatenation.
pub(crate) const fn content_end_offset(slots: usize) -> u64 {
    64 + 40 * slots as u64 - 4
}

/// Length of the footer of a pack with `slots` records, length word included.
pub(crate) const fn len(kind: PackKind, slots: usize) -> usize {
    match kind {
        PackKind::Chunks(_) => 92 + 40 * slots + LENGTH_WORD,
        PackKind::Nodes => NODES_FIXED_LEN + NODES_LEN_PER_NODE * slots,
    }
}

/// The footer of these records. `None` if there are none.
pub(crate) fn encode(kind: PackKind, entries: &[Entry]) -> Option<Vec<u8>> {
    if entries.is_empty() {
        return None;
    }
    match kind {
        PackKind::Nodes => Some(encode_nodes(entries)),
        PackKind::Chunks(suite) => {
            let mut footer = xorb::Footer::new();
            let mut chunk_end = 0;
            let mut chunk_ends = Vec::with_capacity(entries.len());
            for entry in entries {
                footer.hashes.push(ChunkHash::from_bytes(entry.name));
                footer.record_ends.push(entry.end);
                chunk_end += entry.len;
                chunk_ends.push(chunk_end);
            }
            footer.chunk_ends = Some(chunk_ends);
            footer.seal(suite);
            footer.encode()
        }
    }
}

fn encode_nodes(entries: &[Entry]) -> Vec<u8> {
    let len = len(PackKind::Nodes, entries.len());
    let mut out = Vec::with_capacity(len);
    out.extend_from_slice(&NODES_MAGIC);
    out.extend_from_slice(&(entries.len() as u32).to_le_bytes());
    out.extend(entries.iter().flat_map(|entry| entry.name));
    out.extend(entries.iter().map(|entry| entry.tag));
    out.extend(entries.iter().flat_map(|entry| entry.end.to_le_bytes()));
    out.extend_from_slice(&crc32fast::hash(&out).to_le_bytes());
    out.extend_from_slice(&(len as u32).to_le_bytes());
    out
}

/// Reads the footer at the end of a pack. `None` if there is none that fits this file.
pub(crate) fn read(kind: PackKind, file: &dyn DiskFile) -> io::Result<Option<PackFooter>> {
    let file_len = file.len()?;
    let Some(word_at) = file_len.checked_sub(LENGTH_WORD as u64) else {
        return Ok(None);
    };
    let mut word = [0; LENGTH_WORD];
    file.read_at(word_at, &mut word)?;
    let footer_len = match kind {
        PackKind::Chunks(_) => xorb::footer_len(word),
        PackKind::Nodes => Some(u32::from_le_bytes(word) as usize),
    };
    let len_max = len(kind, MAX_CHUNKS);
    let Some(footer_len) = footer_len.filter(|len| *len <= len_max) else {
        return Ok(None);
    };
    let Some(start) = file_len.checked_sub(footer_len as u64) else {
        return Ok(None);
    };
    let mut bytes = vec![0; footer_len];
    file.read_at(start, &mut bytes)?;
    let footer = match kind {
        PackKind::Chunks(_) => parse_xorb(&bytes),
        PackKind::Nodes => parse_nodes(&bytes),
    };
    let fits = |footer: &PackFooter| {
        footer
            .ends
            .last()
            .is_some_and(|end| u64::from(*end) == start)
    };
    Ok(footer.filter(fits))
}

fn parse_xorb(bytes: &[u8]) -> Option<PackFooter> {
    let footer = xorb::Footer::parse(bytes).ok()?;
    // A legacy footer has its hashes elsewhere; no pack was ever written with one.
    footer.chunk_ends.as_ref()?;
    let names = footer.hashes.iter().map(|hash| *hash.as_bytes()).collect();
    let ends = footer.record_ends.clone();
    Some(PackFooter {
        names,
        ends,
        xorb: Some(footer),
    })
}

fn parse_nodes(bytes: &[u8]) -> Option<PackFooter> {
    let (body, _length_word) = bytes.split_last_chunk::<LENGTH_WORD>()?;
    let (body, crc) = body.split_last_chunk::<4>()?;
    let (magic, rest) = body.split_first_chunk::<8>()?;
    let (count, rest) = rest.split_first_chunk::<4>()?;
    let count = u32::from_le_bytes(*count) as usize;
    let known = *magic == NODES_MAGIC && (1..=MAX_CHUNKS).contains(&count);
    if !known || bytes.len() != len(PackKind::Nodes, count) {
        return None;
    }
    if crc32fast::hash(body) != u32::from_le_bytes(*crc) {
        return None;
    }
    let (names, rest) = rest.split_at_checked(32 * count)?;
    let (_kinds, ends) = rest.split_at_checked(count)?;
    let ends: Vec<u32> = ends
        .as_chunks()
        .0
        .iter()
        .map(|end| u32::from_le_bytes(*end))
        .collect();
    let mut start = 0;
    for &end in &ends {
        let len = end.checked_sub(start)? as usize;
        if !(HEADER_LEN + 1..=HEADER_LEN + MAX_PAYLOAD).contains(&len) {
            return None;
        }
        start = end;
    }
    Some(PackFooter {
        names: names.as_chunks::<32>().0.to_vec(),
        ends,
        xorb: None,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn entries(count: usize) -> Vec<Entry> {
        let entry = |n: usize| Entry {
            name: *blake3::hash(&[n as u8]).as_bytes(),
            end: (n as u32 + 1) * 100,
            len: 92,
            tag: n as u8,
        };
        (0..count).map(entry).collect()
    }

    #[test]
    fn node_footers_are_as_documented_and_refuse_every_changed_byte() {
        let entries = entries(5);
        let bytes = encode(PackKind::Nodes, &entries).unwrap();
        assert_eq!(bytes.len(), 20 + 37 * 5);
        assert_eq!(bytes[..12], *b"CCBTNOD\x01\x05\0\0\0");
        assert_eq!(bytes[12 + 32..12 + 64], entries[1].name);
        assert_eq!(bytes[12 + 160..12 + 165], [0, 1, 2, 3, 4]);
        let footer = parse_nodes(&bytes).unwrap();
        assert!(
            footer
                .names
                .iter()
                .eq(entries.iter().map(|entry| &entry.name))
        );
        assert_eq!(footer.ends, [100, 200, 300, 400, 500]);
        // The length word at the end was used to find the footer.
        for changed in 0..bytes.len() - LENGTH_WORD {
            let mut copy = bytes.clone();
            copy[changed] ^= 0x10;
            assert!(parse_nodes(&copy).is_none(), "byte {changed}");
        }
        for cut in 0..bytes.len() {
            assert!(parse_nodes(&bytes[..cut]).is_none(), "cut at {cut}");
        }
        assert!(encode(PackKind::Nodes, &[]).is_none());
    }

    proptest! {
        #[test]
        fn arbitrary_node_footers_never_panic(
            mut bytes in prop::collection::vec(any::<u8>(), 0..400),
            count in 0..12u32,
        ) {
            if bytes.len() >= 12 {
                bytes[..8].copy_from_slice(&NODES_MAGIC);
                bytes[8..12].copy_from_slice(&count.to_le_bytes());
                bytes.resize(len(PackKind::Nodes, count as usize).min(bytes.len()), 0);
                if let Some(crc_at) = bytes.len().checked_sub(8) {
                    let crc = crc32fast::hash(&bytes[..crc_at]).to_le_bytes();
                    bytes[crc_at..crc_at + 4].copy_from_slice(&crc);
                }
            }
            if let Some(footer) = parse_nodes(&bytes) {
                prop_assert_eq!(footer.names.len(), footer.ends.len());
            }
        }
    }
}
