//! The codecs: round trips, the vectors of other encoders, damaged frames.

use proptest::prelude::*;

use super::*;
use crate::chunk::MAX_CHUNK;

fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    blake3::Hasher::new()
        .update(&seed.to_le_bytes())
        .finalize_xof()
        .fill(&mut bytes);
    bytes
}

fn text(len: usize) -> Vec<u8> {
    (0..)
        .flat_map(|i| format!("line {i} of some text\n").into_bytes())
        .take(len)
        .collect()
}

fn numbers(len: usize) -> Vec<u8> {
    (0u32..)
        .flat_map(|i| (0x3f80_0000 + i * 97).to_le_bytes())
        .take(len)
        .collect()
}

fn scheme(probe: &Probe, chunk: &[u8]) -> Scheme {
    probe.scheme(chunk, &mut Table::new())
}

#[test]
fn noise_is_stored_and_looked_at_ever_more_rarely() {
    let probe = Probe::new();
    let chunk = noise(1, 65_536);
    let looked: Vec<usize> = (0..200)
        .filter(|_| {
            let looks = probe.skip.load(Ordering::Relaxed) == 0;
            assert_eq!(scheme(&probe, &chunk), Scheme::Stored);
            looks
        })
        .collect();
    assert_eq!(looked, [0, 2, 6, 14, 30, 62, 94, 126, 158, 190]);
}

#[test]
fn a_paying_chunk_ends_the_back_off() {
    let probe = Probe::new();
    assert_eq!(scheme(&probe, &noise(1, 65_536)), Scheme::Stored);
    assert_eq!(
        scheme(&probe, &text(65_536)),
        Scheme::Stored,
        "passed unprobed"
    );
    assert_eq!(scheme(&probe, &text(65_536)), Scheme::Lz4);
    assert_eq!(probe.skip.load(Ordering::Relaxed), 1);
}

#[test]
fn text_is_looked_at_ever_more_rarely_until_a_chunk_does_not_shrink() {
    let (probe, mut encoder) = (Probe::new(), Encoder::new());
    let mut encode = |chunk: &[u8]| probe.encode(&mut encoder, chunk).scheme;
    for _ in 0..40 {
        assert_eq!(encode(&text(65_536)), Scheme::Lz4);
    }
    assert!(probe.skip.load(Ordering::Relaxed) > 3);
    assert_eq!(encode(&noise(1, 65_536)), Scheme::Stored);
    assert_eq!(probe.skip.load(Ordering::Relaxed), 0);
    // The next look finds noise, the one after it text again.
    assert_eq!(encode(&noise(2, 65_536)), Scheme::Stored);
    assert_eq!(encode(&text(65_536)), Scheme::Stored, "passed unprobed");
    assert_eq!(encode(&text(65_536)), Scheme::Lz4);
}

#[test]
fn numbers_are_grouped() {
    assert_eq!(scheme(&Probe::new(), &numbers(65_536)), Scheme::GroupedLz4);
    for len in 0..200 {
        let _ = scheme(&Probe::new(), &numbers(len));
    }
}

#[test]
fn what_does_not_shrink_is_stored() {
    let mut encoder = Encoder::new();
    for scheme in [Scheme::Lz4, Scheme::GroupedLz4] {
        for len in [1, 15, 100, 8192, MAX_CHUNK] {
            let chunk = noise(3, len);
            let encoded = encoder.encode(scheme, &chunk);
            assert_eq!(
                (encoded.scheme, encoded.payload),
                (Scheme::Stored, &chunk[..])
            );
        }
    }
}

#[test]
fn lz4_crate_reads_our_frames() {
    let chunk = text(MAX_CHUNK);
    let mut encoder = Encoder::new();
    let encoded = encoder.encode(Scheme::Lz4, &chunk);
    assert_eq!(encoded.scheme, Scheme::Lz4);
    let mut read = Vec::new();
    let mut frame = lz4_flex::frame::FrameDecoder::new(encoded.payload);
    std::io::Read::read_to_end(&mut frame, &mut read).expect("valid frame");
    assert_eq!(read, chunk);
}

#[test]
fn only_the_exact_length_is_accepted() {
    let chunk = text(20_000);
    for scheme in [Scheme::Stored, Scheme::Lz4, Scheme::GroupedLz4] {
        let mut encoder = Encoder::new();
        let encoded = encoder.encode(scheme, &chunk);
        assert_eq!(encoded.scheme, scheme);
        for len in [0, 1, 19_999, 20_001, MAX_CHUNK] {
            let mut out = vec![0; len];
            assert!(
                decode_into(scheme, encoded.payload, &mut out).is_err(),
                "{scheme:?} {len}"
            );
        }
        for cut in [
            0,
            1,
            7,
            encoded.payload.len() - 4,
            encoded.payload.len() - 1,
        ] {
            let mut out = vec![0; chunk.len()];
            assert!(decode_into(scheme, &encoded.payload[..cut], &mut out).is_err());
        }
        let mut longer = encoded.payload.to_vec();
        longer.push(0);
        assert!(decode_into(scheme, &longer, &mut vec![0; chunk.len()]).is_err());
    }
}

#[test]
fn frames_of_the_lz4_crate_with_every_option_are_read() {
    use lz4_flex::frame::{BlockMode, BlockSize, FrameEncoder, FrameInfo};
    let chunk = [text(70_000), noise(4, 20_000), text(40_000)].concat();
    for bits in 0u8..16 {
        for size in [BlockSize::Max64KB, BlockSize::Max256KB, BlockSize::Max4MB] {
            let linked = bits & 1 != 0;
            let info = FrameInfo::new()
                .block_mode(if linked {
                    BlockMode::Linked
                } else {
                    BlockMode::Independent
                })
                .block_checksums(bits & 2 != 0)
                .content_checksum(bits & 4 != 0)
                .content_size((bits & 8 != 0).then_some(chunk.len() as u64))
                .block_size(size);
            let mut frame = FrameEncoder::with_frame_info(info, Vec::new());
            std::io::Write::write_all(&mut frame, &chunk).expect("into memory");
            let payload = frame.finish().expect("into memory");
            let mut out = vec![0; chunk.len()];
            assert_eq!(
                decode_into(Scheme::Lz4, &payload, &mut out),
                Ok(()),
                "{bits} {size:?}"
            );
            assert!(out == chunk);
        }
    }
}

#[test]
fn byte_grouping_vectors() {
    let vectors = include_str!("../../tests/vectors/xorb.json");
    let vectors: serde_json::Value = serde_json::from_str(vectors).expect("vector file");
    let cases = vectors["byte_grouping"].as_array().expect("list");
    assert_eq!(cases.len(), 15);
    for case in cases {
        let (data, expected) = (unhex(&case["data_hex"]), unhex(&case["grouped_hex"]));
        let mut grouped = vec![0; data.len()];
        group(&data, &mut grouped);
        assert_eq!(grouped, expected);
        let mut back = vec![0; data.len()];
        ungroup(&grouped, &mut back);
        assert_eq!(back, data);
    }
}

fn unhex(text: &serde_json::Value) -> Vec<u8> {
    let digit = |c: u8| char::from(c).to_digit(16).expect("hex digit") as u8;
    let pairs = text.as_str().expect("text").as_bytes().as_chunks::<2>().0;
    pairs
        .iter()
        .map(|[high, low]| digit(*high) << 4 | digit(*low))
        .collect()
}

proptest! {
    #[test]
    fn every_scheme_round_trips(
        parts in prop::collection::vec((0u8..3, 0usize..20_000), 1..5),
        seed: u64,
    ) {
        let chunk: Vec<u8> = parts.iter().flat_map(|(kind, len)| match kind {
            0 => noise(seed, *len),
            1 => text(*len),
            _ => numbers(*len),
        }).collect();
        let mut encoder = Encoder::new();
        for scheme in [Scheme::Stored, Scheme::Lz4, Scheme::GroupedLz4] {
            let encoded = encoder.encode(scheme, &chunk);
            let mut out = vec![0xaa; chunk.len()];
            prop_assert_eq!(decode_into(encoded.scheme, encoded.payload, &mut out), Ok(()));
            prop_assert!(out == chunk);
        }
    }

    #[test]
    fn damaged_frames_never_panic(
        at in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        options in 0u8..8,
        len in 0usize..MAX_CHUNK,
    ) {
        use lz4_flex::frame::{BlockMode, FrameEncoder, FrameInfo};
        let linked = options & 1 != 0;
        let info = FrameInfo::new()
            .block_mode(if linked { BlockMode::Linked } else { BlockMode::Independent })
            .block_checksums(options & 2 != 0)
            .content_checksum(options & 4 != 0);
        let mut frame = FrameEncoder::with_frame_info(info, Vec::new());
        std::io::Write::write_all(&mut frame, &text(80_000)).expect("into memory");
        let mut payload = frame.finish().expect("into memory");
        for (index, byte) in &at {
            // The first seven bytes are guarded by a checksum: damage beyond them goes further.
            let i = 7 + index.index(payload.len() - 7);
            payload[i] = *byte;
        }
        let mut out = vec![0; len];
        let _ = decode_into(Scheme::Lz4, &payload, &mut out);
        let _ = decode_into(Scheme::GroupedLz4, &payload, &mut out);
    }

    #[test]
    fn arbitrary_bytes_never_panic(mut payload: Vec<u8>, len in 0usize..5_000) {
        let mut out = vec![0; len];
        let _ = decode_into(Scheme::Lz4, &payload, &mut out);
        payload.splice(0..0, [4, 0x22, 0x4d, 0x18, 0x40, 0x40, 0xc0]);
        let _ = decode_into(Scheme::Lz4, &payload, &mut out);
        let _ = decode_into(Scheme::GroupedLz4, &payload, &mut out);
    }
}

/// Words that come again near and far, runs of one byte and of a few, noise: short and long literals and matches.
fn mixed() -> impl Strategy<Value = Vec<u8>> {
    let piece = prop_oneof![
        (0u64..8, 1usize..60).prop_map(|(seed, len)| noise(seed, len)),
        (any::<u64>(), 1usize..3000).prop_map(|(seed, len)| noise(seed, len)),
        (any::<u64>(), 1usize..20, 1usize..2000).prop_map(|(seed, period, len)| {
            noise(seed, period).into_iter().cycle().take(len).collect()
        }),
    ];
    prop::collection::vec(piece, 0..200).prop_map(|pieces| {
        let mut bytes = pieces.concat();
        bytes.truncate(MAX_CHUNK);
        bytes
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn the_start_of_a_chunk_is_what_the_whole_begins_with(
        chunk in mixed(), cuts in prop::collection::vec(any::<prop::sample::Index>(), 40),
    ) {
        let mut encoder = Encoder::new();
        let encoded = encoder.encode(Scheme::Lz4, &chunk);
        let mut start = vec![0xAA; 7];
        for cut in cuts.iter().map(|cut| cut.index(chunk.len() + 1)).chain([0, chunk.len()]) {
            let got = decode_start(encoded.scheme, encoded.payload, cut, &mut start);
            match encoded.scheme {
                Scheme::Lz4 => prop_assert!(got == Some(&chunk[..cut]), "{cut} of {}", chunk.len()),
                _ => prop_assert!(got.is_none()),
            }
        }
        prop_assert!(decode_start(encoded.scheme, encoded.payload, chunk.len() + 1, &mut start).is_none());
    }

    #[test]
    fn the_start_of_anything_is_bytes_or_nothing(
        block in prop::collection::vec(any::<u8>(), 0..300), len in 0usize..1000,
    ) {
        let mut out = Vec::new();
        if let Some(start) = block::decode_start(&block, len, &mut out) {
            prop_assert_eq!(start.len(), len);
        }
    }

    #[test]
    fn a_block_is_what_other_decoders_take(chunk in mixed()) {
        let mut block = vec![0; encode::room(chunk.len())];
        let len = encode::encode(&chunk, &mut block, &mut Table::new()).expect("there is room");
        let block = &block[..len];
        prop_assert!(lz4_flex::block::decompress(block, chunk.len()).expect("valid") == chunk);
        ends_as_decoders_expect(block, chunk.len());
        // Cut short by any number of bytes, it does not fit.
        let mut cut = vec![0; len - 1];
        prop_assert_eq!(encode::encode(&chunk, &mut cut, &mut Table::new()), None);
    }
}

/// The last match begins twelve bytes before the end or more, and the last five bytes are literals: others copy in long
/// steps and rely on it.
fn ends_as_decoders_expect(mut block: &[u8], len: usize) {
    let length = |short: u8, block: &mut &[u8]| {
        let mut len = usize::from(short);
        while len >= 15 {
            let byte;
            (byte, *block) = (block[0], &block[1..]);
            len += usize::from(byte);
            if byte < 255 {
                break;
            }
        }
        len
    };
    let mut at = 0;
    loop {
        let token = block[0];
        block = &block[1..];
        let literals = length(token >> 4, &mut block);
        (at, block) = (at + literals, &block[literals..]);
        if block.is_empty() {
            assert!(
                at == len && (literals >= 5 || literals == len),
                "{literals}"
            );
            return;
        }
        block = &block[2..];
        assert!(at + 12 <= len, "a match at {at} of {len}");
        at += 4 + length(token & 15, &mut block);
    }
}

#[test]
fn blocks_of_every_length_up_to_a_few_steps() {
    for len in 0..200 {
        for chunk in [
            noise(5, len),
            vec![9; len],
            text(len),
            noise(6, 7).repeat(30),
        ] {
            let chunk = &chunk[..len];
            let mut block = vec![0; encode::room(len)];
            let used = encode::encode(chunk, &mut block, &mut Table::new()).expect("there is room");
            assert!(lz4_flex::block::decompress(&block[..used], len).expect("valid") == chunk);
            ends_as_decoders_expect(&block[..used], len);
        }
    }
}

/// Fewer matches are looked for than the crate does; it must not cost what it saves.
#[test]
fn output_is_about_as_small_as_what_the_crate_gives() {
    let sources = concat!(
        include_str!("../store.rs"),
        include_str!("../pack.rs"),
        include_str!("../index.rs")
    );
    for chunk in [sources.as_bytes(), &text(65_536)] {
        let mut block = vec![0; encode::room(chunk.len())];
        let len = encode::encode(chunk, &mut block, &mut Table::new()).expect("there is room");
        let crates = lz4_flex::block::compress(chunk).len();
        assert!(len * 100 <= crates * 105, "{len} against {crates}");
    }
}

/// What was seen more than 64 KiB before has the same low bits in its position as something else.
#[test]
fn a_match_is_never_looked_for_beyond_the_window() {
    let words = noise(1, 2000);
    for distance in [65_000, 65_535, 65_536, 65_537, 65_600, 131_072] {
        let between = vec![9; distance - words.len()];
        let chunk = [&words[..], &between, &words].concat();
        let mut block = vec![0; encode::room(chunk.len())];
        let len = encode::encode(&chunk, &mut block, &mut Table::new()).expect("there is room");
        assert!(lz4_flex::block::decompress(&block[..len], chunk.len()).expect("valid") == chunk);
        assert_eq!(len < 2 * words.len(), distance <= 65_535, "{distance}");
    }
}

#[test]
fn equal_chunks_are_encoded_alike() {
    let (probe, mut encoder) = (Probe::new(), Encoder::new());
    let chunks = [text(50_000), numbers(70_000)];
    let mut once = |chunk: &[u8]| probe.encode(&mut encoder, chunk).payload.to_vec();
    let first = once(&chunks[0]);
    once(&chunks[1]);
    assert!(once(&chunks[0]) == first);
}

/// Every cut of a chunk with every kind of sequence, the last ones too.
#[test]
fn every_start_of_a_short_chunk() {
    let chunk = [
        &noise(1, 40)[..],
        &[7; 300],
        &noise(1, 40),
        b"abcabcabcabc",
        &noise(2, 20),
    ]
    .concat();
    let mut encoder = Encoder::new();
    let encoded = encoder.encode(Scheme::Lz4, &chunk);
    assert_eq!(encoded.scheme, Scheme::Lz4);
    for cut in 0..=chunk.len() {
        let mut start = Vec::new();
        let got = decode_start(Scheme::Lz4, encoded.payload, cut, &mut start);
        assert_eq!(got, Some(&chunk[..cut]));
    }
}

#[test]
fn payloads_follow_each_other() {
    let (probe, mut encoder, mut payloads) = (Probe::new(), Encoder::new(), Payloads::default());
    let chunks = [
        text(60_000),
        numbers(50_000),
        text(100_000),
        noise(1, 9000),
        text(70_000),
    ];
    for _ in 0..3 {
        payloads.clear();
        let encoded: Vec<_> = chunks
            .iter()
            .map(|chunk| probe.encode_to(&mut encoder, chunk, &mut payloads))
            .collect();
        let kept = encoded.iter().flatten().count();
        assert!(kept >= 3, "{kept}");
        for (chunk, encoded) in chunks.iter().zip(encoded) {
            let Some((scheme, range)) = encoded else {
                continue;
            };
            let mut got = vec![0; chunk.len()];
            decode_into(scheme, payloads.get(range), &mut got).unwrap();
            assert!(got == *chunk);
        }
    }
}
