//! Seeds: inputs that our own encoders make, so that a fuzzer starts behind the first checks of every parser.

mod folder;
mod share;
mod torrent;
mod wire;
mod xet;

/// The seeds of a target.
pub(crate) fn of(target: &str) -> Vec<Vec<u8>> {
    match target {
        "chunk_stream" => xet::chunk_stream(),
        "codec" => xet::codec(),
        "footer" => xet::footer(),
        "hash_text" => xet::hash_text(),
        "index_checkpoint" => xet::index_checkpoint(),
        "pack" => xet::pack(),
        "pack_journal" => xet::pack_journal(),
        "recipe" => xet::recipe(),
        "shard" => xet::shard(),
        "xorb" | "xorb_whole" => xet::xorb(),

        "bencode" => wire::bencode(),
        "extension" => wire::extension(),
        "frame" => wire::frame(),
        "handshake" => wire::handshake(),
        "http_tracker" => wire::http_tracker(),
        "lsd" => wire::lsd(),
        "magnet" => wire::magnet(),
        "metainfo" => wire::metainfo(),
        "noise" => wire::noise(),
        "session_member" => wire::session_member(),
        "session_stranger" => wire::session_stranger(),
        "hash_messages" => torrent::hash_messages(),
        "holepunch" => torrent::holepunch(),
        "peer_wire" => torrent::peer_wire(),
        "pex" => torrent::pex(),
        "udp_tracker" => wire::udp_tracker(),
        "ut_metadata" => torrent::ut_metadata(),

        "auth" => share::auth(),
        "certificate" => vec![share::signed().certificate.encode()],
        "dht_item" => share::dht_item(),
        "head" => vec![share::signed().head.encode().to_vec()],
        "heads_file" => share::heads_file(),
        "link" => share::link(),
        "manifest" => vec![share::signed().manifest.encode()],

        "changes" => folder::changes(),
        "checkpoint" => folder::checkpoint(),
        "content" => folder::content(),
        "entry" => folder::entry(),
        "folder_journal" => folder::folder_journal(),
        "home_row" => folder::home_row(),
        "merge" => folder::merge(),
        "snapshot" => folder::snapshot(),
        "tree" => folder::tree(),

        "api_request" => api_request(),
        "config" => config(),
        "mountinfo" => mountinfo(),
        _ => Vec::new(),
    }
}

fn with_prefix(prefix: &[u8], bytes: impl AsRef<[u8]>) -> Vec<u8> {
    [prefix, bytes.as_ref()].concat()
}

fn api_request() -> Vec<Vec<u8>> {
    let requests = [
        r#"{"dir":"/srv/a","name":"a","peers":["192.0.2.1:6881"]}"#,
        r#"{"dir":"/srv/a"}"#,
        r#"{"dir":"/srv/a"}"#,
        r#"{"source":{"dir":"/srv/a"},"dir":"/mnt","read_only":true,"offline":false,"persist":true,"peers":[]}"#,
        r#"{"dir":"/mnt","force":true}"#,
        "{}",
        r#"{"folder":"a"}"#,
        r#"{"path":"/mnt/a\u00e4"}"#,
        r#"{"path":"/mnt/a"}"#,
        r#"{"path":"/mnt/a"}"#,
        r#"{"action":"show","folder":null}"#,
        "{}",
    ];
    let numbered = requests.iter().enumerate();
    numbered
        .map(|(n, json)| with_prefix(&[n as u8], json))
        .collect()
}

fn config() -> Vec<Vec<u8>> {
    let texts = [
        "127.0.0.1:6881",
        "192.0.2.1:1,[2001:db8::1]:2",
        "true",
        "false",
        "256MiB",
        "12",
        "info",
        "json",
        "",
        "router.example:6881, other.example:1",
    ];
    let every_key = (0..15).flat_map(|key| texts.map(|text| with_prefix(&[key], text)));
    every_key
        .filter(|input| {
            crate::targets::TARGETS
                .iter()
                .any(|(name, target)| *name == "config" && target(input))
        })
        .collect()
}

fn mountinfo() -> Vec<Vec<u8>> {
    let text: &[u8] = b"22 28 0:21 / /proc rw,nosuid shared:12 - proc proc rw\n\
        28 1 8:2 / / rw,relatime shared:1 - ext4 /dev/sda2 rw\n\
        90 28 0:52 / /mnt/a\\040b\\134 rw,nosuid,nodev - fuse.ccbt ccbt rw,user_id=0\n";
    vec![text.to_vec()]
}
