//! `ccbt xet`: formats as files, export and import, and the store without a daemon.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use ccbt_xet::chunk::chunks;
use ccbt_xet::hash::chunk_hash;
use ccbt_xet::merkle;
use support::Place;

/// Bytes without a pattern, the same each time (xorshift64*).
fn noise(len: usize) -> Vec<u8> {
    let mut x = 0x9e37_79b9_7f4a_7c15_u64;
    let next = || {
        x ^= x >> 12;
        x ^= x << 25;
        x ^= x >> 27;
        (x.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 56) as u8
    };
    std::iter::repeat_with(next).take(len).collect()
}

#[test]
fn the_json_is_what_the_library_says_of_the_whole_file() {
    let place = Place::new();
    for len in [0, 1, 8191, 3_000_000] {
        let data = noise(len);
        std::fs::write(place.path("f"), &data).unwrap();
        let run = place.run(&["xet", "inspect", "f", "--json"]);
        let json = run.json();
        let cut: Vec<_> = chunks(&data)
            .map(|chunk| (chunk_hash(chunk), chunk.len() as u64))
            .collect();
        assert_eq!(json["size"], len);
        assert_eq!(
            json["file_hash"],
            merkle::file_hash(cut.iter().copied()).to_string()
        );
        assert_eq!(
            json["xorb_hash"],
            merkle::xorb_hash(cut.iter().copied()).to_string()
        );
        let mut offset = 0;
        let expected: Vec<_> = cut
            .iter()
            .map(|(hash, len)| {
                let dedup = offset == 0 || hash.is_dedup_eligible();
                let row = serde_json::json!({
                    "offset": offset, "len": len, "hash": hash.to_string(), "dedup": dedup,
                });
                offset += len;
                row
            })
            .collect();
        assert_eq!(json["chunks"], serde_json::Value::Array(expected));
        assert!(len < 1_000_000 || cut.len() > 10);
        assert_eq!(json.as_object().unwrap().len(), 4);
    }
}

#[test]
fn the_text_has_a_line_for_each_chunk_and_the_sums() {
    let place = Place::new();
    std::fs::write(place.path("f"), noise(300_000)).unwrap();
    let run = place.run(&["xet", "inspect", "f"]);
    let json = place.run(&["xet", "inspect", "f", "--json"]).json();
    let lines: Vec<&str> = run.stdout.lines().collect();
    let chunks = json["chunks"].as_array().unwrap();
    assert_eq!(lines.len(), chunks.len() + 3);
    assert!(lines[0].ends_with(&format!("{}  dedup", chunks[0]["hash"].as_str().unwrap())));
    assert!(run.stdout.contains(&format!(
        "file hash  {}\n",
        json["file_hash"].as_str().unwrap()
    )));
}

#[test]
fn what_cannot_be_inspected_is_named() {
    let place = Place::new();
    let run = place.run(&["xet", "inspect", "none"]);
    assert_eq!((run.code, run.stdout.as_str()), (3, ""));
    assert_eq!(
        run.stderr,
        "ccbt: cannot read none: no such file or directory\n"
    );
    let run = place.run(&["xet", "inspect", "."]);
    assert_eq!(
        (run.code, run.stderr.as_str()),
        (2, "ccbt: . is a directory\nhint: name a file\n")
    );
}

/// Standard base64 of the vectors.
fn base64(text: &serde_json::Value) -> Vec<u8> {
    let text = text.as_str().unwrap();
    data_encoding::BASE64.decode(text.as_bytes()).unwrap()
}

fn vectors(text: &str) -> serde_json::Value {
    serde_json::from_str(text).unwrap()
}

#[test]
fn xorbs_are_shown_as_the_vectors_have_them_and_corrupted_ones_refused() {
    let place = Place::new();
    let vectors = vectors(include_str!("../xet/tests/vectors/xorb.json"));
    let mut shown = 0;
    for case in vectors["xorbs"].as_array().unwrap() {
        if case["with_footer_base64"].is_null() {
            continue;
        }
        let bytes = base64(&case["with_footer_base64"]);
        std::fs::write(place.path("x"), &bytes).unwrap();
        let run = place.run(&["xet", "xorb", "x", "--json"]);
        assert_eq!(run.json(), case["expect"], "{}", case["name"]);
        let len = case["without_footer_len"].as_u64().unwrap() as usize;
        std::fs::write(place.path("x"), &bytes[..len]).unwrap();
        let upload = place.run(&["xet", "xorb", "x", "--json"]).json();
        assert_eq!(upload["chunks"], case["expect"]["chunks"]);
        assert_eq!(upload["footer_version"], serde_json::Value::Null);
        shown += 1;
    }
    assert_eq!(shown, 7);
    for case in vectors["corrupted"].as_array().unwrap() {
        std::fs::write(place.path("x"), base64(&case["bytes_base64"])).unwrap();
        let claimed = case["claimed_xorb_hash"].as_str().unwrap();
        let run = place.run(&["xet", "xorb", "x", "--hash", claimed, "--json"]);
        let accepted = case["xet_core_validate"] == "accepts" || case["name"] == "without-footer";
        assert_eq!(run.code == 0, accepted, "{}: {run:?}", case["name"]);
        if !accepted {
            assert_eq!(run.code, 7, "{}", case["name"]);
            assert!(run.stderr.starts_with("ccbt: x: "), "{}", run.stderr);
        }
    }
}

#[test]
fn shards_are_shown_as_the_vectors_have_them_and_cut_ones_refused() {
    let place = Place::new();
    let vectors = vectors(include_str!("../xet/tests/vectors/shard.json"));
    let mut cases: Vec<(Vec<u8>, &serde_json::Value)> = Vec::new();
    for case in vectors["shards"].as_array().unwrap() {
        let rewrite = &case["server_reserialized"];
        cases.push((base64(&case["with_footer_base64"]), &case["expect"]));
        cases.push((base64(&rewrite["base64"]), &rewrite["expect"]));
    }
    for case in vectors["keyed"].as_array().unwrap() {
        cases.push((base64(&case["base64"]), &case["expect"]));
    }
    for (bytes, expect) in &cases {
        std::fs::write(place.path("s"), bytes).unwrap();
        let run = place.run(&["xet", "shard", "s", "--json"]);
        assert_eq!(&run.json(), *expect);
    }
    let (bytes, _) = &cases[2];
    std::fs::write(place.path("s"), &bytes[..bytes.len() - 1]).unwrap();
    let run = place.run(&["xet", "shard", "s"]);
    assert_eq!((run.code, run.stdout.as_str()), (7, ""));
    assert!(run.stderr.starts_with("ccbt: s: "), "{}", run.stderr);
}

#[test]
fn the_hash_of_a_file_is_printed_alone() {
    let place = Place::new();
    std::fs::write(place.path("f"), noise(500_000)).unwrap();
    let inspected = place.run(&["xet", "inspect", "f", "--json"]).json();
    let run = place.run(&["xet", "hash", "f"]);
    let hash = inspected["file_hash"].as_str().unwrap();
    assert_eq!((run.code, run.stdout), (0, format!("{hash}\n")));
    let json = place.run(&["xet", "hash", "f", "--json"]).json();
    assert_eq!(json["file_hash"], hash);
    assert_eq!(
        json["chunks"],
        inspected["chunks"].as_array().unwrap().len()
    );
}

/// A folder with files that share content, an empty one, and a link.
fn fill(place: &Place) {
    let big = noise(700_000);
    std::fs::create_dir_all(place.path("in/sub/none")).unwrap();
    std::fs::write(place.path("in/a"), &big).unwrap();
    std::fs::write(
        place.path("in/sub/b"),
        [&big[..300_000], b"x", &big[300_000..]].concat(),
    )
    .unwrap();
    std::fs::write(place.path("in/sub/empty"), b"").unwrap();
    std::os::unix::fs::symlink("sub/b", place.path("in/link")).unwrap();
}

#[test]
fn what_was_exported_is_imported() {
    let place = Place::new();
    fill(&place);
    let out = place
        .run(&["xet", "export", "in", "-o", "set", "--json"])
        .json();
    assert_eq!(
        (&out["files"], &out["bytes"]),
        (&3.into(), &1_400_001.into())
    );
    assert!(out["stored_bytes"].as_u64().unwrap() < 1_000_000, "{out}");
    let shard = format!("set/{}.mdb", out["shards"][0].as_str().unwrap());
    let files = place.run(&["xet", "shard", &shard, "--json"]).json();
    assert_eq!(files["files"].as_array().unwrap().len(), 3);
    let xorb = format!("set/{}.xorb", out["xorbs"][0].as_str().unwrap());
    assert_eq!(place.run(&["xet", "xorb", &xorb]).code, 0);

    let run = place.run(&["xet", "import", "set", "-o", "back", "--json"]);
    assert_eq!(run.json()["files"], 3);
    for name in ["a", "sub/b", "sub/empty"] {
        let before = std::fs::read(place.path("in").join(name)).unwrap();
        let after = std::fs::read(place.path("back").join(name)).unwrap();
        assert!(before == after, "{name}");
        let time = |of: &str| {
            std::fs::metadata(place.path(of).join(name))
                .unwrap()
                .modified()
                .unwrap()
        };
        assert_eq!(time("in"), time("back"));
    }
    assert!(place.path("back/sub/none").is_dir());
    let link = std::fs::read_link(place.path("back/link")).unwrap();
    assert_eq!(link.to_str(), Some("sub/b"));
    assert_eq!(
        place.run(&["xet", "import", "set", "-o", "back"]).code,
        7,
        "replaced something"
    );
    assert_eq!(place.run(&["xet", "export", "in", "-o", "set"]).code, 5);
    assert_eq!(place.run(&["xet", "export", "in", "-o", "in/new"]).code, 5);

    // Without names every file is called by its hash.
    std::fs::remove_file(place.path("set/files.json")).unwrap();
    assert_eq!(
        place.run(&["xet", "import", "set", "-o", "unnamed"]).code,
        0
    );
    let hash = place.run(&["xet", "hash", "in/a"]).stdout;
    let named = std::fs::read(place.path("unnamed").join(hash.trim())).unwrap();
    assert!(named == noise(700_000));
}

#[test]
fn a_single_file_is_a_set_too() {
    let place = Place::new();
    std::fs::write(place.path("f"), noise(300_000)).unwrap();
    let out = place
        .run(&["xet", "export", "f", "-o", "set", "--no-sha256", "--json"])
        .json();
    assert_eq!((&out["files"], &out["bytes"]), (&1.into(), &300_000.into()));
    let shard = format!("set/{}.mdb", out["shards"][0].as_str().unwrap());
    let shown = place.run(&["xet", "shard", &shard, "--json"]).json();
    let hash = place.run(&["xet", "hash", "f"]).stdout;
    assert_eq!(shown["files"][0]["file_hash"], hash.trim());
    assert_eq!(
        shown["files"][0]["metadata_ext_sha256_field"],
        serde_json::Value::Null
    );
    assert_eq!(place.run(&["xet", "import", "set", "-o", "back"]).code, 0);
    assert!(std::fs::read(place.path("back/f")).unwrap() == noise(300_000));
}

#[test]
fn a_set_that_lies_is_refused() {
    let place = Place::new();
    fill(&place);
    let out = place
        .run(&["xet", "export", "in", "-o", "set", "--json"])
        .json();
    let manifest = std::fs::read_to_string(place.path("set/files.json")).unwrap();
    let outside = manifest.replace("\"path\":\"a\"", "\"path\":\"../a\"");
    assert_ne!(manifest, outside);
    std::fs::write(place.path("set/files.json"), outside).unwrap();
    let run = place.run(&["xet", "import", "set", "-o", "back"]);
    assert_eq!(run.code, 7);
    assert!(run.stderr.contains("../a leads out"), "{}", run.stderr);
    std::fs::write(place.path("set/files.json"), manifest).unwrap();

    let xorb = place.path(&format!("set/{}.xorb", out["xorbs"][0].as_str().unwrap()));
    let mut bytes = std::fs::read(&xorb).unwrap();
    bytes[5000] ^= 1;
    std::fs::write(&xorb, bytes).unwrap();
    let run = place.run(&["xet", "import", "set", "-o", "back"]);
    assert_eq!(run.code, 7);
    assert!(run.stderr.contains(".xorb: "), "{}", run.stderr);
}

#[test]
fn the_store_is_looked_at_without_a_daemon() {
    let place = Place::new();
    let state = place.path("state");
    let args = |command: &'static str| ["xet", command, "--json", "--state", "state"];
    assert_eq!(place.run(&args("stats")).code, 3);
    let store = ccbt_xet::store::Store::open(
        &state.join("store"),
        std::sync::Arc::new(ccbt_xet::disk::RealDisk),
        ccbt_xet::store::StoreOptions::default(),
    )
    .unwrap();
    for chunk in chunks(&noise(900_000)) {
        store.put_chunk(&chunk_hash(chunk), chunk).unwrap();
    }
    store.sync().unwrap();
    let held = store.stats().chunks;
    drop(store);
    let stats = place.run(&args("stats")).json();
    assert_eq!(
        (&stats["chunks"], &stats["chunk_bytes"]),
        (&held.into(), &900_000.into())
    );
    assert_eq!(
        (&stats["packs"], &stats["content"]["files"]),
        (&1.into(), &0.into())
    );
    assert_eq!(stats["only_here"], serde_json::Value::Null);
    let good = place.run(&args("verify"));
    assert_eq!((good.code, &good.json()["records"]), (0, &held.into()));

    let dry = place
        .run(&["xet", "gc", "--dry-run", "--json", "--state", "state"])
        .json();
    assert_eq!(
        (&dry["dropped"], &dry["dry_run"]),
        (&held.into(), &true.into())
    );
    assert_eq!(place.run(&args("stats")).json()["chunks"], held);

    let pack = state.join("store/chunks/00000001.xorb");
    let mut bytes = std::fs::read(&pack).unwrap();
    bytes[100] ^= 1;
    std::fs::write(&pack, bytes).unwrap();
    let bad = place.run(&args("verify"));
    assert_eq!((bad.code, &bad.json()["damaged"]), (7, &1.into()));
    assert_eq!(
        place
            .run(&["xet", "verify", "--repair", "--state", "state"])
            .code,
        10
    );
    let gc = place.run(&args("gc")).json();
    assert!(gc["dropped"].as_u64().unwrap() >= held - 1, "{gc}");
    assert_eq!(place.run(&args("stats")).json()["chunks"], 0);
    std::fs::create_dir_all(state.join("folders/0123456789abcdef")).unwrap();
    assert_eq!(place.run(&args("gc")).code, 10, "folders were not asked");
}

/// Stops the daemon when the test is over.
struct Background<'a>(&'a Place);

impl Drop for Background<'_> {
    fn drop(&mut self) {
        self.0.run(&["daemon", "stop", "--state", "state"]);
    }
}

#[test]
fn the_daemon_collects_only_what_no_folder_needs_open_or_not() {
    let place = Place::new();
    let (wanted, garbage) = (noise(400_000), noise(900_000)[450_000..].to_vec());
    std::fs::create_dir(place.path("dir")).unwrap();
    std::fs::write(place.path("dir/a"), &wanted).unwrap();
    let store = ccbt_xet::store::Store::open(
        &place.path("state/store"),
        std::sync::Arc::new(ccbt_xet::disk::RealDisk),
        ccbt_xet::store::StoreOptions::default(),
    )
    .unwrap();
    let names = |data: &[u8]| -> std::collections::BTreeSet<_> {
        chunks(data)
            .map(|chunk| {
                store.put_chunk(&chunk_hash(chunk), chunk).unwrap();
                chunk_hash(chunk)
            })
            .collect()
    };
    let wanted = names(&wanted);
    let garbage = names(&garbage).difference(&wanted).count();
    assert!(!wanted.is_empty() && garbage > 0);
    store.sync().unwrap();
    drop(store);
    // What was stored just now is not collected.
    let an_hour_ago = std::time::SystemTime::now() - std::time::Duration::from_secs(3600);
    for pack in std::fs::read_dir(place.path("state/store/chunks")).unwrap() {
        let file = std::fs::File::open(pack.unwrap().path()).unwrap();
        file.set_modified(an_hour_ago).unwrap();
    }

    let quiet = [
        "--state",
        "state",
        "--listen",
        "127.0.0.1:0",
        "--no-dht",
        "--no-lsd",
        "--no-pex",
        "--no-portmap",
    ];
    let started = place.run(&[&["daemon", "-d"], &quiet[..]].concat());
    assert_eq!(started.code, 0, "{started:?}");
    let _daemon = Background(&place);
    let shared = place.run(&["share", "dir", "--state", "state"]);
    assert_eq!(shared.code, 0, "{shared:?}");
    let ask = |args: &[&str]| {
        let run = place.run(&[&["xet"], args, &["--json", "--state", "state"]].concat());
        assert_eq!(run.code, 0, "{run:?}");
        run.json()
    };
    let stats = ask(&["stats"]);
    assert_eq!(
        (&stats["content"]["files"], &stats["content"]["bytes"]),
        (&1.into(), &400_000.into())
    );
    assert_eq!(stats["here"], stats["content"]);
    assert!(stats["borrowed_bytes"].as_u64() <= Some(400_000));
    assert_eq!(stats["chunks"], wanted.len() + garbage);
    assert_eq!(ask(&["verify", "--repair"])["damaged"], 0);
    assert_eq!(ask(&["gc", "--dry-run"])["dropped"], garbage);
    // The folder is closed now; its chunks stay all the same.
    assert_eq!(place.run(&["unshare", "dir", "--state", "state"]).code, 0);
    assert_eq!(ask(&["gc"])["dropped"], garbage);
    let stats = ask(&["stats"]);
    assert_eq!(stats["chunks"], wanted.len());
    assert_eq!(
        (&stats["content"]["files"], &stats["here"]["bytes"]),
        (&1.into(), &400_000.into()),
        "it is remembered"
    );
    assert_eq!(stats["borrowed"], 0);
    assert_eq!(ask(&["gc"])["dropped"], 0);
}

#[test]
fn the_other_suite_names_everything_otherwise_and_comes_back_the_same() {
    use ccbt_xet::hash::Suite;

    let place = Place::new();
    fill(&place);
    let data = std::fs::read(place.path("in/a")).unwrap();
    let mut tree = merkle::MerkleBuilder::with_suite(Suite::Sha256);
    for chunk in chunks(&data) {
        tree.push(&Suite::Sha256.chunk_hash(chunk), chunk.len() as u64);
    }
    let hash = tree.file_hash().to_string();
    let run = place.run(&["xet", "hash", "in/a", "--suite", "sha256"]);
    assert_eq!((run.code, run.stdout), (0, format!("{hash}\n")));
    let inspect = place.run(&["xet", "inspect", "in/a", "--suite", "sha256", "--json"]);
    assert_eq!(inspect.json()["file_hash"], hash);

    let out = place
        .run(&[
            "xet", "export", "in", "-o", "set", "--suite", "sha256", "--json",
        ])
        .json();
    let name = out["xorbs"][0].as_str().unwrap();
    let xorb = format!("set/{name}.xorb");
    assert_eq!(place.run(&["xet", "xorb", &xorb, "--hash", name]).code, 7);
    let of_suite = ["xet", "xorb", &xorb, "--hash", name, "--suite", "sha256"];
    assert_eq!(place.run(&of_suite).code, 0);

    let shard = format!("set/{}.mdb", out["shards"][0].as_str().unwrap());
    assert_eq!(place.run(&["xet", "shard", &shard]).code, 7);
    let of_suite = ["xet", "shard", &shard, "--suite", "sha256"];
    assert_eq!(place.run(&of_suite).code, 0);

    // The set says which suite it is of.
    assert_eq!(place.run(&["xet", "import", "set", "-o", "back"]).code, 0);
    assert!(std::fs::read(place.path("back/a")).unwrap() == data);
    let other = place.run(&["xet", "import", "set", "-o", "x", "--suite", "blake3"]);
    assert_eq!(other.code, 2, "{other:?}");
    assert!(other.stderr.contains("--suite sha256"), "{}", other.stderr);

    // Without its list, whoever reads it must.
    std::fs::remove_file(place.path("set/files.json")).unwrap();
    let unsaid = place.run(&["xet", "import", "set", "-o", "y"]);
    assert_eq!(unsaid.code, 7, "{unsaid:?}");
    let said = place.run(&["xet", "import", "set", "-o", "z", "--suite", "sha256"]);
    assert_eq!(said.code, 0, "{said:?}");
    assert!(std::fs::read(place.path("z").join(&hash)).unwrap() == data);
}

#[test]
fn a_damaged_set_leaves_no_file_that_looks_right() {
    let place = Place::new();
    std::fs::create_dir_all(place.path("in")).unwrap();
    std::fs::write(place.path("in/f"), noise(400_000)).unwrap();
    let out = place
        .run(&["xet", "export", "in", "-o", "set", "--json"])
        .json();
    let xorb = place.path(&format!("set/{}.xorb", out["xorbs"][0].as_str().unwrap()));
    let mut bytes = std::fs::read(&xorb).unwrap();
    bytes[200_000] ^= 1;
    std::fs::write(&xorb, &bytes).unwrap();
    let run = place.run(&["xet", "import", "set", "-o", "back"]);
    assert_eq!(run.code, 7, "{run:?}");
    assert!(!place.path("back/f").exists());
    std::fs::remove_file(&xorb).unwrap();
    let run = place.run(&["xet", "import", "set", "-o", "back"]);
    assert_eq!(run.code, 7, "{run:?}");
    assert!(run.stderr.contains("is missing"), "{}", run.stderr);
    assert!(!place.path("back/f").exists());
}
