//! The published and cross-checked Xet test vectors (`tests/vectors/*.json`).

use ccbt_xet::chunk::{self, Chunker};
use ccbt_xet::hash::{
    ChunkHash, FileHash, RangeHash, Suite, chunk_hash, keyed_chunk_hash, range_hash,
};
use ccbt_xet::merkle::{self, MerkleBuilder};
use ccbt_xet::xorb::{self, Footer, HEADER_LEN, Record, XorbError, records};
use serde::Deserialize;
use sha2::{Digest, Sha256};

#[path = "vectors/input.rs"]
mod input;
use input::{Part, base64, build, hex, hex32, rng};

#[derive(Deserialize)]
struct HashVectors {
    string_form: Vec<StringForm>,
    chunk_hash: Vec<ChunkHashCase>,
    keyed_hash: Vec<KeyedCase>,
    verification_range: Vec<RangeCase>,
    internal_node: Vec<NodeCase>,
    global_dedup_by_hash: Vec<DedupCase>,
}

#[derive(Deserialize)]
struct StringForm {
    raw_hex: String,
    string: String,
    #[serde(default)]
    mod4: Option<u64>,
    #[serde(default)]
    mod1024: Option<u64>,
    #[serde(default)]
    first_u64_le: Option<String>,
}

#[derive(Deserialize)]
struct ChunkHashCase {
    seed: String,
    len: usize,
    chunk_hash: String,
}

#[derive(Deserialize)]
struct KeyedCase {
    key_raw_hex: String,
    hash: String,
    keyed: String,
}

#[derive(Deserialize)]
struct RangeCase {
    seed: String,
    n_hashes: usize,
    range_hash: String,
}

#[derive(Deserialize)]
struct NodeCase {
    preimage: String,
    hash: String,
}

#[derive(Deserialize)]
struct DedupCase {
    hash: String,
    eligible_by_hash: bool,
}

#[test]
fn hashes() {
    let vectors: HashVectors = input::read(include_str!("vectors/hashes.json"));
    vectors.string_form.iter().for_each(check_string_form);
    for case in &vectors.chunk_hash {
        let data = rng(case.seed.parse().expect("seed"), case.len);
        assert_eq!(
            chunk_hash(&data).to_string(),
            case.chunk_hash,
            "{} bytes",
            case.len
        );
    }
    for case in &vectors.keyed_hash {
        let keyed = keyed_chunk_hash(&hex32(&case.key_raw_hex), &case.hash.parse().expect("hash"));
        assert_eq!(keyed.to_string(), case.keyed);
    }
    for case in &vectors.verification_range {
        let bytes = rng(case.seed.parse().expect("seed"), 32 * case.n_hashes);
        let range = range_hash(&leaf_hashes(&bytes));
        assert_eq!(
            range.to_string(),
            case.range_hash,
            "{} hashes",
            case.n_hashes
        );
    }
    for case in &vectors.internal_node {
        check_internal_node(case);
    }
    for case in &vectors.global_dedup_by_hash {
        let hash: ChunkHash = case.hash.parse().expect("hash");
        assert_eq!(hash.is_dedup_eligible(), case.eligible_by_hash, "{hash}");
    }
}

/// The node over the lines of `preimage`, where the cut rule makes them one group.
fn check_internal_node(case: &NodeCase) {
    let children: Vec<(ChunkHash, u64)> = case
        .preimage
        .lines()
        .map(|line| line.split_once(" : ").expect("line of a preimage"))
        .map(|(hash, len)| (hash.parse().expect("hash"), len.parse().expect("length")))
        .collect();
    let inner = children.iter().skip(2).rev().skip(1);
    if inner.clone().all(|(hash, _)| hash.word(3) % 4 != 0) {
        assert_eq!(merkle::xorb_hash(children).to_string(), case.hash);
    }
}

fn check_string_form(case: &StringForm) {
    let hash = ChunkHash::from_bytes(hex32(&case.raw_hex));
    assert_eq!(hash.to_string(), case.string);
    assert_eq!(case.string.parse(), Ok(hash));
    if let Some(rest) = case.mod4 {
        assert_eq!(hash.word(3) % 4, rest);
    }
    if let Some(rest) = case.mod1024 {
        assert_eq!(hash.word(3) % 1024, rest);
    }
    if let Some(first) = &case.first_u64_le {
        assert_eq!(hash.word(0).to_string(), *first);
    }
}

#[derive(Deserialize)]
struct Published {
    chunk_hash: Vec<PublishedChunk>,
    string_form: Vec<StringForm>,
    internal_node: Vec<PublishedNode>,
    verification_range: Vec<PublishedRange>,
    file_hash_one_chunk: Vec<PublishedFile>,
    empty_file: PublishedEmpty,
}

#[derive(Deserialize)]
struct PublishedChunk {
    data_hex: String,
    hash_raw_hex: String,
    hash: String,
}

#[derive(Deserialize)]
struct PublishedNode {
    children: Vec<(String, u64)>,
    hash: String,
}

#[derive(Deserialize)]
struct PublishedRange {
    hashes: Vec<String>,
    range_hash: String,
}

#[derive(Deserialize)]
struct PublishedFile {
    chunk: (String, u64),
    xorb_hash: String,
    file_hash: String,
}

#[derive(Deserialize)]
struct PublishedEmpty {
    xet_core_and_hf_xet: String,
}

#[test]
fn published() {
    let vectors: Published = input::read(include_str!("vectors/published.json"));
    for case in &vectors.chunk_hash {
        let hash = chunk_hash(&hex(&case.data_hex));
        assert_eq!(hash.as_bytes(), &hex32(&case.hash_raw_hex));
        assert_eq!(hash.to_string(), case.hash);
    }
    vectors.string_form.iter().for_each(check_string_form);
    for case in &vectors.internal_node {
        let children = case
            .children
            .iter()
            .map(|(hash, len)| (hash.parse().expect("hash"), *len));
        assert_eq!(merkle::xorb_hash(children).to_string(), case.hash);
    }
    for case in &vectors.verification_range {
        let hashes: Vec<ChunkHash> = case
            .hashes
            .iter()
            .map(|hash| hash.parse().expect("hash"))
            .collect();
        assert_eq!(
            range_hash(&hashes),
            case.range_hash.parse::<RangeHash>().expect("hash")
        );
    }
    for case in &vectors.file_hash_one_chunk {
        let chunk = (
            case.chunk.0.parse::<ChunkHash>().expect("hash"),
            case.chunk.1,
        );
        assert_eq!(merkle::xorb_hash([chunk]).to_string(), case.xorb_hash);
        assert_eq!(merkle::file_hash([chunk]).to_string(), case.file_hash);
    }
    assert_eq!(
        merkle::file_hash([]).to_string(),
        vectors.empty_file.xet_core_and_hf_xet
    );
}

#[derive(Deserialize)]
struct MerkleVectors {
    cases: Vec<MerkleCase>,
}

#[derive(Deserialize)]
struct MerkleCase {
    name: String,
    n: usize,
    hash_seed: String,
    size_seed: String,
    last_word: String,
    sizes: String,
    first_leaves: Vec<(String, u64)>,
    xorb_hash: String,
    file_hash: String,
    salt_hex_raw: String,
    file_hash_with_salt: String,
    verification_hash: String,
}

#[test]
fn merkle_roots() {
    let vectors: MerkleVectors = input::read(include_str!("vectors/merkle.json"));
    assert!(vectors.cases.len() >= 40);
    for case in &vectors.cases {
        let leaves = merkle_leaves(case);
        for (leaf, (hash, len)) in leaves.iter().zip(&case.first_leaves) {
            assert_eq!(
                (&leaf.0.to_string(), leaf.1),
                (hash, *len),
                "generator of {}",
                case.name
            );
        }
        let mut builder = MerkleBuilder::new();
        for (hash, len) in &leaves {
            builder.push(hash, *len);
        }
        let name = &case.name;
        let salted = builder.clone().salted_file_hash(&hex32(&case.salt_hex_raw));
        assert_eq!(
            builder.clone().xorb_hash().to_string(),
            case.xorb_hash,
            "{name}"
        );
        assert_eq!(builder.file_hash().to_string(), case.file_hash, "{name}");
        assert_eq!(salted.to_string(), case.file_hash_with_salt, "{name}");
        let hashes: Vec<ChunkHash> = leaves.iter().map(|leaf| leaf.0).collect();
        assert_eq!(
            range_hash(&hashes).to_string(),
            case.verification_hash,
            "{name}"
        );
    }
}

fn merkle_leaves(case: &MerkleCase) -> Vec<(ChunkHash, u64)> {
    let mut hashes = rng(case.hash_seed.parse().expect("seed"), 32 * case.n);
    for hash in hashes.chunks_exact_mut(32) {
        match case.last_word.as_str() {
            "keep" => {}
            "cut" => hash[24] &= 0xfc,
            "nocut" => hash[24] |= 1,
            other => panic!("unknown kind of last word {other}"),
        }
    }
    let sizes = rng(case.size_seed.parse().expect("seed"), 8 * case.n);
    let sizes = sizes
        .as_chunks::<8>()
        .0
        .iter()
        .map(|bytes| u64::from_le_bytes(*bytes));
    let sizes = sizes.map(|r| match case.sizes.as_str() {
        "chunk" => 1 + r % 131_072,
        "big" => r >> 12,
        "zero" => 0,
        other => panic!("unknown kind of size {other}"),
    });
    leaf_hashes(&hashes).into_iter().zip(sizes).collect()
}

fn leaf_hashes(bytes: &[u8]) -> Vec<ChunkHash> {
    bytes
        .as_chunks::<32>()
        .0
        .iter()
        .map(|raw| ChunkHash::from_bytes(*raw))
        .collect()
}

#[derive(Deserialize)]
struct FileVectors {
    cases: Vec<FileCase>,
}

#[derive(Deserialize)]
struct FileCase {
    name: String,
    parts: Vec<Part>,
    expect: FileExpect,
}

#[derive(Deserialize)]
struct FileExpect {
    len: usize,
    sha256: String,
    n_chunks: usize,
    xorb_hash_all_chunks: String,
    file_hash: String,
    verification_hash_all_chunks: String,
    global_dedup_eligible: Vec<usize>,
    chunks: Vec<(usize, usize, String)>,
}

#[test]
fn files() {
    let vectors: FileVectors = input::read(include_str!("vectors/files.json"));
    assert_eq!(vectors.cases.len(), 75);
    for case in &vectors.cases {
        let data = build(&case.parts);
        let expect = &case.expect;
        assert_eq!(data.len(), expect.len, "generator of {}", case.name);
        assert_eq!(
            Sha256::digest(&data)[..],
            hex(&expect.sha256),
            "generator of {}",
            case.name
        );
        check_chunks(&case.name, &data, expect);
        for block_len in [1, 7, 64, 4096, 1 << 20, data.len().max(1)] {
            let ends: Vec<usize> = expect.chunks.iter().map(|(at, len, _)| at + len).collect();
            assert_eq!(
                fed(&data, block_len),
                ends,
                "{} in blocks of {block_len}",
                case.name
            );
        }
    }
}

fn check_chunks(name: &str, data: &[u8], expect: &FileExpect) {
    let mut at = 0;
    let mut chunks = Vec::new();
    for chunk in chunk::chunks(data) {
        let (offset, len, hash) = &expect.chunks[chunks.len()];
        assert_eq!((at, chunk.len()), (*offset, *len), "{name}");
        assert_eq!(chunk_hash(chunk).to_string(), *hash, "{name}");
        at += chunk.len();
        chunks.push((chunk_hash(chunk), chunk.len() as u64));
    }
    assert_eq!(chunks.len(), expect.n_chunks, "{name}");
    assert_eq!(
        merkle::xorb_hash(chunks.iter().copied()).to_string(),
        expect.xorb_hash_all_chunks
    );
    let file: FileHash = expect.file_hash.parse().expect("hash");
    assert_eq!(merkle::file_hash(chunks.iter().copied()), file, "{name}");
    let hashes: Vec<ChunkHash> = chunks.iter().map(|chunk| chunk.0).collect();
    assert_eq!(
        range_hash(&hashes).to_string(),
        expect.verification_hash_all_chunks,
        "{name}"
    );
    let eligible = hashes.iter().enumerate();
    let eligible = eligible.filter(|(i, hash)| *i == 0 || hash.is_dedup_eligible());
    let eligible: Vec<usize> = eligible.map(|(i, _)| i).collect();
    assert_eq!(eligible, expect.global_dedup_eligible, "{name}");
}

/// Ends of the chunks when `data` is fed in blocks of `block_len`, the end of the file included.
fn fed(data: &[u8], block_len: usize) -> Vec<usize> {
    let (mut chunker, mut ends, mut at) = (Chunker::new(), Vec::new(), 0);
    for mut block in data.chunks(block_len) {
        while let Some(taken) = chunker.next_cut(block) {
            at += taken;
            ends.push(at);
            block = &block[taken..];
        }
        at += block.len();
    }
    if chunker.pending() > 0 {
        ends.push(at);
    }
    ends
}

#[derive(Deserialize)]
struct XorbVectors {
    xorbs: Vec<XorbCase>,
    corrupted: Vec<CorruptedCase>,
}

#[derive(Deserialize)]
struct XorbCase {
    name: String,
    source_chunks: Option<Vec<SourceChunk>>,
    with_footer_base64: Option<String>,
    without_footer_base64: Option<String>,
    bytes_base64: Option<String>,
    without_footer_len: Option<usize>,
    data_sha256: Option<String>,
    xet_core_reader_returns_data: Option<bool>,
    chunk_hash: Option<String>,
    /// Null where the reference refuses the bytes.
    expect: Option<XorbExpect>,
}

impl XorbCase {
    fn expect(&self) -> &XorbExpect {
        self.expect.as_ref().expect(&self.name)
    }
}

#[derive(Deserialize)]
struct SourceChunk {
    parts: Vec<Part>,
}

#[derive(Deserialize)]
struct XorbExpect {
    xorb_hash: String,
    num_chunks: usize,
    info_length: usize,
    boundary_offsets: Vec<u32>,
    #[serde(default)]
    unpacked_offsets: Vec<u32>,
    #[serde(default)]
    chunk_hashes: Vec<String>,
    #[serde(default)]
    chunks: Vec<RecordExpect>,
}

#[derive(Deserialize)]
struct RecordExpect {
    offset: usize,
    scheme: u8,
    compressed_len: u32,
    uncompressed_len: u32,
    chunk_hash: String,
    data_sha256: String,
}

#[derive(Deserialize)]
struct CorruptedCase {
    name: String,
    bytes_base64: String,
    claimed_xorb_hash: String,
    xet_core_validate: String,
}

fn xorb_vectors() -> XorbVectors {
    input::read(include_str!("vectors/xorb.json"))
}

#[test]
fn xorbs_with_and_without_footer() {
    let vectors = xorb_vectors();
    let mut checked = 0;
    for case in &vectors.xorbs {
        let (Some(bytes), Some(upload_len)) = (&case.with_footer_base64, case.without_footer_len)
        else {
            continue;
        };
        let bytes = base64(bytes);
        let claimed = case.expect().xorb_hash.parse().expect("hash");
        let sealed = xorb::validate(Suite::Blake3, &bytes, &claimed).expect(&case.name);
        let upload =
            xorb::validate(Suite::Blake3, &bytes[..upload_len], &claimed).expect(&case.name);
        assert_eq!(sealed.chunks, upload.chunks, "{}", case.name);
        assert_eq!(upload.footer, None, "{}", case.name);
        check_footer(
            case,
            &bytes[upload_len..],
            sealed.footer.as_ref().expect("footer"),
        );
        check_records(case, &bytes);
        for (record, source) in records(&bytes).zip(case.source_chunks.iter().flatten()) {
            let chunk = record.expect("record").decode().expect("payload");
            assert_eq!(chunk, build(&source.parts), "{}", case.name);
        }
        checked += 1;
    }
    assert_eq!(checked, 7);
}

fn check_footer(case: &XorbCase, bytes: &[u8], footer: &Footer) {
    let (expect, name) = (case.expect(), &case.name);
    assert_eq!(bytes.len(), expect.info_length + 4, "{name}");
    let word = *bytes.last_chunk().expect("length word");
    assert_eq!(xorb::footer_len(word), Some(bytes.len()), "{name}");
    assert_eq!(footer.xorb_hash.to_string(), expect.xorb_hash, "{name}");
    assert_eq!(footer.root(Suite::Blake3), Some(footer.xorb_hash), "{name}");
    assert_eq!(footer.hashes.len(), expect.num_chunks, "{name}");
    assert_eq!(footer.record_ends, expect.boundary_offsets, "{name}");
    assert_eq!(
        footer.chunk_ends.as_ref(),
        Some(&expect.unpacked_offsets),
        "{name}"
    );
    assert_eq!(footer.encode().as_deref(), Some(bytes), "{name}");
}

fn check_records(case: &XorbCase, bytes: &[u8]) {
    let found: Vec<Record<'_>> = records(bytes).collect::<Result<_, _>>().expect(&case.name);
    assert_eq!(found.len(), case.expect().chunks.len(), "{}", case.name);
    for (record, expect) in found.iter().zip(&case.expect().chunks) {
        let header = record.header;
        assert_eq!(record.offset, expect.offset);
        assert_eq!(header.scheme.as_byte(), expect.scheme);
        assert_eq!(header.payload_len, expect.compressed_len);
        assert_eq!(header.chunk_len, expect.uncompressed_len);
        assert_eq!(header.encode(), bytes[record.offset..][..HEADER_LEN]);
        let chunk = record.decode().expect(&case.name);
        assert_eq!(
            chunk_hash(&chunk).to_string(),
            expect.chunk_hash,
            "{}",
            case.name
        );
        assert_eq!(
            Sha256::digest(&chunk)[..],
            hex(&expect.data_sha256),
            "{}",
            case.name
        );
    }
}

#[test]
fn frames_of_another_encoder() {
    let vectors = xorb_vectors();
    let (mut accepted, mut refused) = (0, 0);
    for case in vectors
        .xorbs
        .iter()
        .filter(|case| case.name.starts_with("liblz4-"))
    {
        let bytes = base64(case.without_footer_base64.as_ref().expect("bytes"));
        // A xorb of one chunk has the chunk's hash.
        let claimed = case
            .chunk_hash
            .as_ref()
            .expect("hash")
            .parse()
            .expect("hash");
        let found = xorb::validate(Suite::Blake3, &bytes, &claimed);
        // The reference reader takes a frame without its end mark; refusing it is also right.
        let lax = case.name == "liblz4-truncated-before-end-mark";
        if case.xet_core_reader_returns_data == Some(true) && !lax {
            found.expect(&case.name);
            check_records(case, &bytes);
            let record = records(&bytes).next().expect("one record").expect("record");
            let chunk = record.decode().expect(&case.name);
            let expected = case.data_sha256.as_ref().expect("hash of the data");
            assert_eq!(Sha256::digest(&chunk)[..], hex(expected), "{}", case.name);
            accepted += 1;
        } else {
            assert!(
                matches!(found, Err(XorbError::Payload { .. })),
                "{}: {found:?}",
                case.name
            );
            refused += 1;
        }
    }
    assert_eq!((accepted, refused), (9, 4));
}

#[test]
fn legacy_footer() {
    let vectors = xorb_vectors();
    let case = vectors
        .xorbs
        .iter()
        .find(|case| case.name == "legacy-footer-v0")
        .expect("case");
    let bytes = base64(case.bytes_base64.as_ref().expect("bytes"));
    let claimed = case.expect().xorb_hash.parse().expect("hash");
    let found = xorb::validate(Suite::Blake3, &bytes, &claimed).expect("legacy xorb");
    let footer = found.footer.expect("footer");
    assert_eq!(footer.record_ends, case.expect().boundary_offsets);
    assert_eq!(footer.chunk_ends, None);
    let hashes: Vec<String> = footer.hashes.iter().map(ChunkHash::to_string).collect();
    assert_eq!(hashes, case.expect().chunk_hashes);
    let word = *bytes.last_chunk().expect("length word");
    assert_eq!(xorb::footer_len(word), Some(case.expect().info_length + 4));
}

#[test]
fn of_the_corrupted_only_what_the_reference_accepts_is_accepted() {
    let vectors = xorb_vectors();
    assert_eq!(vectors.corrupted.len(), 31);
    for case in &vectors.corrupted {
        let bytes = base64(&case.bytes_base64);
        let found = xorb::validate(
            Suite::Blake3,
            &bytes,
            &case.claimed_xorb_hash.parse().expect("hash"),
        );
        let sealed = found.as_ref().is_ok_and(|found| found.footer.is_some());
        assert_eq!(
            sealed,
            case.xet_core_validate == "accepts",
            "{}: {found:?}",
            case.name
        );
        // The reference wants a footer here; uploads have none and must be readable all the same.
        assert_eq!(
            found.is_ok(),
            sealed || case.name == "without-footer",
            "{}",
            case.name
        );
    }
}
