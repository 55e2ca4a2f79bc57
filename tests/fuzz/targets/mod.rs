//! The fuzz targets: one function for every parser of bytes that we did not write ourselves or that a disk may have
//! damaged. libFuzzer drives them (`tests/fuzz/fuzz.rs`), and `tests/fuzz_corpora.rs` runs each over its committed corpus.
//!
//! A target panics when a promise is broken, and says whether the parser took the input: a corpus in which nothing is
//! taken tests little. Checksums and ciphers that would keep a fuzzer out are put on by the target.

pub(crate) mod folder;
pub(crate) mod hashes;
pub(crate) mod local;
pub(crate) mod share;
pub(crate) mod torrent;
pub(crate) mod web;
pub(crate) mod wire;
mod xet;

pub(crate) use xet::checkpointed;

/// Runs a parser on an input. True if it took it for what it looks for.
pub(crate) type Target = fn(&[u8]) -> bool;

/// Every target, by the name of its corpus directory.
pub(crate) const TARGETS: &[(&str, Target)] = &[
    ("api_request", local::api_request),
    ("auth", share::auth),
    ("bencode", wire::bencode),
    ("certificate", share::certificate),
    ("changes", folder::changes),
    ("checkpoint", local::checkpoint),
    ("chunk_lists", web::chunk_lists),
    ("chunk_stream", xet::chunk_stream),
    ("codec", xet::codec),
    ("config", local::config),
    ("config_toml", local::config_toml),
    ("content", folder::content),
    ("dht_item", share::dht_item),
    ("entry", folder::entry),
    ("extension", wire::extension),
    ("folder_journal", local::folder_journal),
    ("footer", xet::footer),
    ("frame", wire::frame),
    ("handshake", wire::handshake),
    ("hash_messages", hashes::hash_messages),
    ("hash_text", xet::hash_text),
    ("head", share::head),
    ("heads_file", share::heads_file),
    ("holepunch", hashes::holepunch),
    ("home_intent", local::home_intent),
    ("home_row", local::home_row),
    ("http_tracker", wire::http_tracker),
    ("index_checkpoint", xet::index_checkpoint),
    ("ip_filter", torrent::ip_filter),
    ("link", share::link),
    ("lsd", wire::lsd),
    ("magnet", wire::magnet),
    ("manifest", share::manifest),
    ("merge", folder::merge),
    ("metainfo", wire::metainfo),
    ("mountinfo", local::mountinfo),
    ("mse", torrent::mse),
    ("noise", wire::noise),
    ("pack", xet::pack),
    ("pack_journal", xet::pack_journal),
    ("pcp", web::pcp),
    ("peer_wire", torrent::peer_wire),
    ("pex", torrent::pex),
    ("proxy", torrent::proxy),
    ("recipe", xet::recipe),
    ("resume_log", local::resume_log),
    ("session_member", wire::session_member),
    ("session_stranger", wire::session_stranger),
    ("set_manifest", local::set_manifest),
    ("shard", xet::shard),
    ("snapshot", folder::snapshot),
    ("ssdp", web::ssdp_answer),
    ("state_text", local::state_text),
    ("torrent_hello", torrent::torrent_hello),
    ("tracker_url", torrent::tracker_url),
    ("tree", folder::tree),
    ("udp_tracker", wire::udp_tracker),
    ("upnp", web::upnp),
    ("ut_metadata", torrent::ut_metadata),
    ("web_seed", web::web_seed),
    ("web_url", web::web_url),
    ("xorb", xet::xorb),
    ("xorb_whole", xet::xorb_whole),
];

/// Takes a field off the front of an input; what is short is filled up with zeros.
fn take<const N: usize>(input: &mut &[u8]) -> [u8; N] {
    let (head, rest) = input.split_at(N.min(input.len()));
    *input = rest;
    let mut out = [0; N];
    out[..head.len()].copy_from_slice(head);
    out
}

/// Cuts an input into parts, each with its length before it in two little-endian bytes. The last one may be short.
fn parts(mut input: &[u8]) -> Vec<&[u8]> {
    let mut parts = Vec::new();
    while !input.is_empty() {
        let len = usize::from(u16::from_le_bytes(take(&mut input)));
        let (part, rest) = input.split_at(len.min(input.len()));
        parts.push(part);
        input = rest;
    }
    parts
}

/// The bytes of which [`parts`] makes these.
pub(crate) fn join<P: AsRef<[u8]>>(parts: impl IntoIterator<Item = P>) -> Vec<u8> {
    let mut out = Vec::new();
    for part in parts {
        let part = part.as_ref();
        let len = u16::try_from(part.len()).expect("a part is shorter than 64 KiB");
        out.extend_from_slice(&len.to_le_bytes());
        out.extend_from_slice(part);
    }
    out
}
