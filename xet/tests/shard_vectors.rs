//! The cross-checked shard vectors (`tests/vectors/shard.json`): every form, read and written.

use ccbt_xet::hash::{ChunkHash, shard_hash};
use ccbt_xet::shard::{Answer, Form, Parsed, Seal, Shard, parse};
use serde::Deserialize;
use serde_json::{Value, json};

#[path = "vectors/input.rs"]
#[expect(dead_code, reason = "the generator of the other vectors")]
mod input;
use input::{base64, hex32};

#[derive(Deserialize)]
struct Vectors {
    shards: Vec<Case>,
    keyed: Vec<Keyed>,
}

#[derive(Deserialize)]
struct Case {
    name: String,
    with_footer_base64: String,
    shard_hash_of_with_footer: String,
    upload_form_base64: String,
    upload_form_len: usize,
    expect: Value,
    global_dedup_eligible_chunks_sorted: Vec<String>,
    server_reserialized: Rewrite,
}

#[derive(Deserialize)]
struct Rewrite {
    with_verification: bool,
    base64: String,
    shard_hash: String,
    expect: Value,
}

#[derive(Deserialize)]
struct Keyed {
    include_files: bool,
    xorb_lookup: bool,
    chunk_lookup: bool,
    key_raw_hex: String,
    base64: String,
    expect: Value,
    unkeyed_to_keyed: Vec<(String, String)>,
}

fn vectors() -> Vectors {
    input::read(include_str!("vectors/shard.json"))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A parse in the shape of the vectors.
fn shape(bytes: &[u8], parsed: &Parsed) -> Value {
    let Parsed {
        shard,
        footer,
        tables,
    } = parsed;
    let pairs = |table: &[(u64, u32)]| -> Vec<Value> {
        let rows = table.iter();
        rows.map(|(word, record)| json!([word.to_string(), record]))
            .collect()
    };
    let chunks = tables.chunks.iter();
    let chunks = chunks.map(|(word, record, number)| json!([word.to_string(), record, number]));
    let footer = footer.as_ref().map(|footer| {
        json!({
            "version": 1,
            "file_info_offset": footer.files_at,
            "xorb_info_offset": footer.xorbs_at,
            "file_lookup_offset": footer.file_table.0,
            "file_lookup_num": footer.file_table.1,
            "xorb_lookup_offset": footer.xorb_table.0,
            "xorb_lookup_num": footer.xorb_table.1,
            "chunk_lookup_offset": footer.chunk_table.0,
            "chunk_lookup_num": footer.chunk_table.1,
            "chunk_hash_key_raw_hex": hex(&footer.key),
            "creation_timestamp": footer.created,
            "key_expiry": footer.expires.to_string(),
            "stored_bytes_on_disk": footer.disk_bytes,
            "materialized_bytes": footer.file_bytes,
            "stored_bytes": footer.xorb_bytes,
            "footer_offset": footer.footer_at,
        })
    });
    json!({
        "total_len": bytes.len(),
        "header": { "version": 2, "footer_size": if footer.is_some() { 200 } else { 0 } },
        "files": shape_files(shard),
        "xorbs": shape_xorbs(shard),
        "file_lookup": pairs(&tables.files),
        "xorb_lookup": pairs(&tables.xorbs),
        "chunk_lookup": chunks.collect::<Vec<_>>(),
        "footer": footer,
    })
}

fn shape_files(shard: &Shard) -> Vec<Value> {
    let files = shard.files.iter().map(|file| {
        let segments = file.segments.iter().map(|segment| {
            json!({
                "xorb_hash": segment.xorb.to_string(),
                "flags": segment.flags,
                "unpacked_bytes": segment.len,
                "start": segment.chunks.start,
                "end": segment.chunks.end,
            })
        });
        let ranges = file.verification.iter().flatten();
        let sha256 = file.sha256.as_ref().map(|sha256| {
            let field = file.sha256_field().expect("it has one");
            json!({ "raw_on_disk_hex": hex(&field), "sha256_hex": hex(sha256) })
        });
        json!({
            "file_hash": file.hash.to_string(),
            "flags": file.flags(),
            "num_entries": file.segments.len(),
            "segments": segments.collect::<Vec<_>>(),
            "verification": ranges.map(ToString::to_string).collect::<Vec<_>>(),
            "metadata_ext_sha256_field": sha256,
        })
    });
    files.collect()
}

fn shape_xorbs(shard: &Shard) -> Vec<Value> {
    let xorbs = shard.xorbs.iter().map(|xorb| {
        let mut offset = 0;
        let chunks = xorb.chunks.iter().map(|chunk| {
            let row = json!([chunk.listed.to_string(), offset, chunk.len, chunk.flags]);
            offset += chunk.len;
            row
        });
        let chunks: Vec<Value> = chunks.collect();
        json!({
            "xorb_hash": xorb.hash.to_string(),
            "flags": xorb.flags,
            "num_entries": xorb.chunks.len(),
            "num_bytes_in_xorb": xorb.len,
            "num_bytes_on_disk": xorb.disk_len,
            "chunks": chunks,
        })
    });
    xorbs.collect()
}

#[test]
fn every_form_parses_to_what_the_vectors_say() {
    let vectors = vectors();
    assert_eq!((vectors.shards.len(), vectors.keyed.len()), (5, 3));
    for case in &vectors.shards {
        for (bytes, expect) in [
            (&case.with_footer_base64, &case.expect),
            (
                &case.server_reserialized.base64,
                &case.server_reserialized.expect,
            ),
        ] {
            let bytes = base64(bytes);
            let parsed = parse(&bytes).expect(&case.name);
            assert_eq!(&shape(&bytes, &parsed), expect, "{}", case.name);
            assert_eq!(parsed.shard.check(), Ok(()), "{}", case.name);
        }
        let upload = base64(&case.upload_form_base64);
        assert_eq!(upload.len(), case.upload_form_len);
        let parsed = parse(&upload).expect(&case.name);
        let sections = shape(&upload, &parsed);
        assert_eq!(sections["files"], case.expect["files"], "{}", case.name);
        assert_eq!(sections["xorbs"], case.expect["xorbs"], "{}", case.name);
        assert_eq!(parsed.footer, None);
    }
    for case in &vectors.keyed {
        let bytes = base64(&case.base64);
        let parsed = parse(&bytes).expect("keyed shard");
        assert_eq!(shape(&bytes, &parsed), case.expect);
        assert_eq!(parsed.shard.check(), Ok(()));
    }
}

#[test]
fn what_is_written_equals_the_vectors() {
    for case in &vectors().shards {
        let name = &case.name;
        let sealed = base64(&case.with_footer_base64);
        let mut shard = parse(&sealed).expect(name).shard;
        assert_eq!(shard.encode(Form::LOCAL).as_ref(), Ok(&sealed), "{name}");
        assert_eq!(
            shard_hash(&sealed).to_string(),
            case.shard_hash_of_with_footer
        );
        let upload = base64(&case.upload_form_base64);
        assert_eq!(shard.encode(Form::Upload).as_ref(), Ok(&upload), "{name}");
        assert_eq!(parse(&upload).expect(name).shard, shard, "{name}");

        shard.offer_file_starts();
        if !case.server_reserialized.with_verification {
            for file in &mut shard.files {
                file.verification = None;
            }
        }
        let rewritten = base64(&case.server_reserialized.base64);
        assert_eq!(
            shard.encode(Form::SERVER).as_ref(),
            Ok(&rewritten),
            "{name}"
        );
        assert_eq!(
            shard_hash(&rewritten).to_string(),
            case.server_reserialized.shard_hash
        );
    }
}

#[test]
fn chunks_to_ask_about() {
    for case in &vectors().shards {
        let shard = parse(&base64(&case.upload_form_base64))
            .expect(&case.name)
            .shard;
        let eligible: Vec<String> = shard
            .dedup_eligible()
            .iter()
            .map(ChunkHash::to_string)
            .collect();
        assert_eq!(
            eligible, case.global_dedup_eligible_chunks_sorted,
            "{}",
            case.name
        );
    }
}

#[test]
fn answers_hide_chunk_hashes_under_their_key() {
    let vectors = vectors();
    let both = vectors
        .shards
        .iter()
        .find(|case| case.name == "five-files-two-xorbs");
    let plain = parse(&base64(&both.expect("case").with_footer_base64)).expect("shard");
    for case in &vectors.keyed {
        let key = hex32(&case.key_raw_hex);
        let mut hidden = plain.shard.hidden(key).expect("not hidden yet");
        if !case.include_files {
            hidden.files.clear();
        }
        assert_eq!(hidden.hidden(key), None);
        assert_eq!(hidden.dedup_eligible(), []);
        let seal = Seal {
            file_table: case.include_files,
            xorb_table: case.xorb_lookup,
            chunk_table: case.chunk_lookup,
            created: 1_700_000_000,
            expires: 1_700_003_600,
        };
        let bytes = base64(&case.base64);
        assert_eq!(hidden.encode(Form::Sealed(seal)).as_ref(), Ok(&bytes));

        let answer = Answer::new(parse(&bytes).expect("answer").shard);
        for (plain_hash, keyed) in &case.unkeyed_to_keyed {
            let chunk: ChunkHash = plain_hash.parse().expect("hash");
            assert_eq!(hidden.listed(&chunk).to_string(), *keyed);
            let held = answer.find(&chunk).expect("held");
            let xorbs = &plain.shard.xorbs;
            let xorb = xorbs.iter().find(|xorb| xorb.hash == held.xorb);
            let info = xorb.expect("xorb").chunks[held.chunk as usize];
            assert_eq!(plain.shard.plain_hash(&info), Some(chunk));
            assert_eq!(info.len, held.len);
        }
        assert_eq!(answer.find(&ChunkHash::from_bytes([7; 32])), None);
    }
}
