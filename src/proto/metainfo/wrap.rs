//! A `.torrent` file around an info dictionary that came from peers.

use std::collections::BTreeMap;

use super::merkle::TreeHash;

/// The file: `info` as it came, trackers in tiers, and the piece hashes that are known. Keys in the order bencode wants.
pub fn wrap(
    info: &[u8],
    tiers: &[Vec<String>],
    layers: &BTreeMap<TreeHash, Vec<TreeHash>>,
) -> Vec<u8> {
    let mut out = b"d".to_vec();
    if let Some(first) = tiers.iter().flatten().next() {
        put(&mut out, b"announce");
        put(&mut out, first.as_bytes());
        put(&mut out, b"announce-list");
        out.push(b'l');
        for tier in tiers.iter().filter(|tier| !tier.is_empty()) {
            out.push(b'l');
            tier.iter().for_each(|url| put(&mut out, url.as_bytes()));
            out.push(b'e');
        }
        out.push(b'e');
    }
    put(&mut out, b"info");
    out.extend_from_slice(info);
    if !layers.is_empty() {
        put(&mut out, b"piece layers");
        out.push(b'd');
        for (root, layer) in layers {
            put(&mut out, root);
            put(&mut out, layer.as_flattened());
        }
        out.push(b'e');
    }
    out.push(b'e');
    out
}

fn put(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend_from_slice(format!("{}:", bytes.len()).as_bytes());
    out.extend_from_slice(bytes);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::metainfo::Torrent;

    #[test]
    fn what_is_written_is_a_torrent_with_its_tiers() {
        let info = b"d6:lengthi1e4:name1:a12:piece lengthi16384e6:pieces20:aaaaaaaaaaaaaaaaaaaae";
        let tier = |urls: &[&str]| urls.iter().map(|url| (*url).to_owned()).collect::<Vec<_>>();
        for tiers in [
            vec![],
            vec![
                tier(&["udp://a:1", "udp://c:1"]),
                tier(&["http://b/announce"]),
            ],
        ] {
            let torrent = Torrent::parse(&wrap(info, &tiers, &BTreeMap::new())).unwrap();
            assert_eq!(torrent.info.raw(), info);
            assert_eq!(torrent.trackers, tiers);
        }
    }
}
