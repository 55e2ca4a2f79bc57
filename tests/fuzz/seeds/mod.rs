//! Seeds: inputs that our own encoders make, so that a fuzzer starts behind the first checks of every parser.

mod folder;
mod share;
mod torrent;
mod web;
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
        "ip_filter" => torrent::ip_filter(),
        "mse" => torrent::mse(),
        "hash_messages" => torrent::hash_messages(),
        "holepunch" => torrent::holepunch(),
        "peer_wire" => torrent::peer_wire(),
        "pex" => torrent::pex(),
        "torrent_hello" => torrent::torrent_hello(),
        "tracker_url" => torrent::tracker_url(),
        "proxy" => torrent::proxy(),
        "udp_tracker" => wire::udp_tracker(),
        "ut_metadata" => torrent::ut_metadata(),
        "chunk_lists" => web::chunk_lists(),
        "pcp" => web::pcp(),
        "ssdp" => web::ssdp(),
        "upnp" => web::upnp(),
        "web_seed" => web::web_seed(),
        "web_url" => web::web_url(),

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
        "config_toml" => config_toml(),
        "home_intent" => folder::home_intent(),
        "resume_log" => resume_log(),
        "set_manifest" => set_manifest(),
        "state_text" => state_text(),
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
        r#"{"link":"ccbt:rabc","dir":"/srv/a","merge":false,"dry_run":true,"peers":[]}"#,
        r#"{"action":{"verify":{"repair":true}}}"#,
        r#"{"source":{"magnet":"magnet:?xt=urn:btih:aa"},"dir":"/srv","select":["*.iso"],"until":"seeded"}"#,
        "{}",
        r#"{"torrent":"aabb","action":"show"}"#,
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
    let every_key = (0..21).flat_map(|key| texts.map(|text| with_prefix(&[key], text)));
    every_key
        .filter(|input| {
            crate::targets::TARGETS
                .iter()
                .any(|(name, target)| *name == "config" && target(input))
        })
        .collect()
}

fn config_toml() -> Vec<Vec<u8>> {
    vec![
        include_bytes!("../../../src/config/defaults.toml").to_vec(),
        b"listen = \"[::1]:6881\"\npeers = [\"192.0.2.1:1\"]\n[store]\nquota = \"1.5 GB\"\nscrub_every_s = 0\n".to_vec(),
        b"lsd = false\n[dht]\nbootstrap = [\"router.example:6881\"]\n[log]\nlevel = 'warn'\n".to_vec(),
    ]
}

fn set_manifest() -> Vec<Vec<u8>> {
    let file = r#"{"path":"a/f","kind":"file","size":3,"file_hash":"00","mode":420,"mtime_ns":5}"#;
    let dir = r#"{"path":"a","kind":"dir","mode":493,"mtime_ns":-1}"#;
    let link = r#"{"path":"l\u00e4","kind":"symlink","target":"../x","mode":511,"mtime_ns":0}"#;
    vec![
        format!(r#"{{"version":1,"entries":[{dir},{file},{link}]}}"#).into_bytes(),
        format!(r#"{{"version":1,"suite":"sha256","entries":[{file}]}}"#).into_bytes(),
        br#"{"version":1,"entries":[{"path":"../x","kind":"dir","mode":0,"mtime_ns":0}]}"#.to_vec(),
    ]
}

fn resume_log() -> Vec<Vec<u8>> {
    let log = |boot: u8, closed: u8, tail: &[u8]| {
        let header = [
            &b"ccbtrsm1"[..],
            &[boot; 36],
            &[closed],
            &20_u32.to_be_bytes(),
        ]
        .concat();
        [&20_u16.to_le_bytes()[..], &header, &[0x10, 0, 0], tail].concat()
    };
    vec![
        log(b'0', 0, &[0, 0, 0, 17, 0, 0, 0, 19]),
        log(b'x', 0, &[0, 0, 0, 17, 0, 0]),
        log(b'x', 1, &[]),
    ]
}

fn state_text() -> Vec<Vec<u8>> {
    let link = share::link_text();
    let folder = format!(
        r#"{{"version":1,"name":"a","link":"{link}","home":"/srv/a","live":null,"shared":true,"pinned":false,"peers":[],
        "mounts":[{{"dir":"/mnt","read_only":true}}],"incarnation":{{"id":[1,2,3,4,5,6,7,8],"clean":true,"fingerprint":""}}}}"#
    );
    let torrent = r#"{"version":1,"magnet":null,"dir":"/srv","selection":{"patterns":["*.iso"],"numbers":[{"start":1,"end":3}]},"sequential":false,"paused":false,"seed_percent":150,"peers":["192.0.2.1:6881"]}"#;
    let member = [&[7; 32][..], b"192.0.2.1:6881"].concat();
    vec![
        with_prefix(&[0], folder),
        with_prefix(&[1], torrent),
        with_prefix(&[2], "folder 00ff\ndevice 11ee\n"),
        with_prefix(&[3], "192.0.2.1:6881\nnonsense\n198.51.100.7:1\n"),
        with_prefix(&[4], "4711\n0:52\nnonsense\n"),
        with_prefix(
            &[5],
            r#"{"store":1,"nodes":true,"pack":7,"ended_ms":1700000000000}"#,
        ),
        with_prefix(&[6], member),
    ]
}

fn mountinfo() -> Vec<Vec<u8>> {
    let text: &[u8] = b"22 28 0:21 / /proc rw,nosuid shared:12 - proc proc rw\n\
        28 1 8:2 / / rw,relatime shared:1 - ext4 /dev/sda2 rw\n\
        90 28 0:52 / /mnt/a\\040b\\134 rw,nosuid,nodev - fuse.ccbt ccbt rw,user_id=0\n";
    vec![text.to_vec()]
}
