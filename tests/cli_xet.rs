//! `ccbt xet inspect`

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
