//! Xorbs as bytes: round trips, limits, damaged input.

use proptest::prelude::*;

use super::*;
use crate::codec::Encoder;
use crate::hash::chunk_hash;

/// A sealed xorb of these chunks, all stored or compressed by the scheme given.
fn sealed(chunks: &[(Scheme, Vec<u8>)]) -> (Vec<u8>, Footer) {
    let (mut bytes, mut footer, mut encoder) = (Vec::new(), Footer::new(), Encoder::new());
    for (scheme, chunk) in chunks {
        let encoded = encoder.encode(*scheme, chunk);
        let header = RecordHeader {
            scheme: encoded.scheme,
            payload_len: encoded.payload.len() as u32,
            chunk_len: chunk.len() as u32,
        };
        assert!(footer.fits(&header));
        bytes.extend_from_slice(&header.encode());
        bytes.extend_from_slice(encoded.payload);
        footer.push(chunk_hash(chunk), &header);
    }
    footer.seal(Suite::Blake3);
    bytes.extend(footer.encode().expect("version 1"));
    (bytes, footer)
}

fn chunk_strategy() -> impl Strategy<Value = (Scheme, Vec<u8>)> {
    let scheme = prop_oneof![
        Just(Scheme::Stored),
        Just(Scheme::Lz4),
        Just(Scheme::GroupedLz4)
    ];
    (scheme, prop::collection::vec(0u8..3, 1..300))
}

#[test]
fn a_writer_stops_at_either_limit() {
    let header = |len| RecordHeader {
        scheme: Scheme::Stored,
        payload_len: len,
        chunk_len: len,
    };
    let hash = chunk_hash(b"");
    let mut full = Footer::new();
    while full.fits(&header(131_072)) {
        full.push(hash, &header(131_072));
    }
    assert_eq!(full.hashes.len(), 511);
    assert!(full.fits(&header(100_000)));
    let sealed_len = full.records_len() as usize + full.encode().expect("version 1").len();
    let room = MAX_XORB_LEN - sealed_len - HEADER_LEN - 40;
    assert!(full.fits(&header(room as u32)));
    assert!(!full.fits(&header(room as u32 + 1)));

    let mut many = Footer::new();
    while many.fits(&header(1)) {
        many.push(hash, &header(1));
    }
    assert_eq!(many.hashes.len(), MAX_CHUNKS);
}

#[test]
fn lengths_no_footer_has_are_refused() {
    assert_eq!(footer_len(132u32.to_le_bytes()), Some(136));
    assert_eq!(footer_len((60 + 36 * 2u32).to_le_bytes()), Some(136));
    assert_eq!(
        footer_len((92 + 40 * 8192u32).to_le_bytes()),
        Some(MAX_READ_LEN - 67_174_400)
    );
    for len in [0, 60, 92, 93, 133, 92 + 40 * 8193, u32::MAX] {
        assert_eq!(footer_len(len.to_le_bytes()), None, "{len}");
    }
}

#[test]
fn nothing_may_follow_or_be_missing() {
    let (bytes, footer) = sealed(&[(Scheme::Stored, b"one".to_vec())]);
    let claimed = footer.xorb_hash;
    let records_len = footer.records_len() as usize;
    assert_eq!(
        validate(Suite::Blake3, &bytes, &claimed).map(|found| found.footer),
        Ok(Some(footer))
    );
    let upload = validate(Suite::Blake3, &bytes[..records_len], &claimed);
    assert_eq!(upload.map(|found| found.footer), Ok(None));
    for cut in (0..bytes.len()).filter(|cut| *cut != records_len) {
        assert!(
            validate(Suite::Blake3, &bytes[..cut], &claimed).is_err(),
            "cut at {cut}"
        );
    }
    for extra in [&[0][..], b"X", b"XETBLOB", &[0; 8]] {
        assert!(validate(Suite::Blake3, &[&bytes, extra].concat(), &claimed).is_err());
    }
    assert_eq!(
        validate(Suite::Blake3, &[], &XorbHash::from_bytes([0; 32])),
        Err(XorbError::Empty)
    );
}

#[test]
fn a_footer_longer_than_its_content_is_refused() {
    let (bytes, footer) = sealed(&[(Scheme::Stored, b"one".to_vec())]);
    let body = &bytes[footer.records_len() as usize..bytes.len() - 4];
    let longer = [body, &[0], &133u32.to_le_bytes()].concat();
    assert_eq!(Footer::parse(&longer), Err(FooterError::Length));
    let shorter = [&body[..131], &131u32.to_le_bytes()].concat();
    assert_eq!(Footer::parse(&shorter), Err(FooterError::Length));
    assert_eq!(
        Footer::parse(&[body, &132u32.to_le_bytes()].concat()),
        Ok(footer)
    );
}

#[test]
fn more_than_8192_chunks_are_refused() {
    let record = [
        &RecordHeader {
            scheme: Scheme::Stored,
            payload_len: 1,
            chunk_len: 1,
        }
        .encode()[..],
        b"a",
    ];
    let bytes = record.concat().repeat(MAX_CHUNKS + 1);
    assert_eq!(
        records(&bytes[9..]).filter(Result::is_ok).count(),
        MAX_CHUNKS
    );
    assert_eq!(
        records(&bytes).last().map(Result::err),
        Some(Some(XorbError::TooManyChunks))
    );
}

proptest! {
    #[test]
    fn what_is_sealed_is_read_back(chunks in prop::collection::vec(chunk_strategy(), 1..20)) {
        let (bytes, footer) = sealed(&chunks);
        let found = validate(Suite::Blake3, &bytes, &footer.xorb_hash).expect("own xorb");
        let expected: Vec<_> =
            chunks.iter().map(|(_, chunk)| (chunk_hash(chunk), chunk.len() as u32)).collect();
        prop_assert_eq!(found.chunks, expected);
        prop_assert_eq!(found.footer, Some(footer));
        for (record, (_, chunk)) in records(&bytes).zip(&chunks) {
            prop_assert_eq!(&record.expect("own record").decode().expect("own payload"), chunk);
        }
    }

    #[test]
    fn one_changed_byte_is_found_unless_reserved(
        chunks in prop::collection::vec(chunk_strategy(), 1..5),
        at: prop::sample::Index,
        flip in 1u8..,
    ) {
        let (mut bytes, footer) = sealed(&chunks);
        let at = at.index(bytes.len());
        let reserved = bytes.len() - 20..bytes.len() - 4;
        let lz4_slack = at < footer.records_len() as usize;
        bytes[at] ^= flip;
        let found = validate(Suite::Blake3, &bytes, &footer.xorb_hash);
        // A changed payload may still decode to the same chunk; anything else may not.
        prop_assert!(found.is_err() || reserved.contains(&at) || lz4_slack, "byte {}", at);
        if let Ok(found) = found {
            prop_assert_eq!(found.footer, Some(footer));
        }
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes: Vec<u8>, headers: bool, tail: Vec<u8>) {
        let (mut xorb, footer) = sealed(&[(Scheme::Lz4, vec![7; 500])]);
        if headers {
            xorb.truncate(footer.records_len() as usize);
        }
        for bytes in [&bytes, &[&xorb[..], &tail].concat(), &[&FOOTER_MAGIC[..], &tail].concat()] {
            drop(validate(Suite::Blake3, bytes, &footer.xorb_hash));
            drop(Footer::parse(bytes));
            for record in records(bytes).flatten() {
                drop(record.decode());
            }
        }
    }
}

/// A xorb as writers make it that count uncompressed bytes: 64 MiB of them, stored as they are.
#[test]
fn a_reader_takes_64_mib_of_incompressible_chunks() {
    let mut bytes = Vec::with_capacity(MAX_READ_LEN);
    let header = RecordHeader {
        scheme: Scheme::Stored,
        payload_len: MAX_CHUNK as u32,
        chunk_len: MAX_CHUNK as u32,
    };
    let (chunk, mut footer) = (vec![7; MAX_CHUNK], Footer::new());
    let hash = chunk_hash(&chunk);
    for n in 1..=512u32 {
        bytes.extend_from_slice(&header.encode());
        bytes.extend_from_slice(&chunk);
        // Not by `push`: such a xorb is longer than ours may be.
        footer.hashes.push(hash);
        footer.record_ends.push(n * header.record_len() as u32);
        footer
            .chunk_ends
            .as_mut()
            .expect("version 1")
            .push(n * MAX_CHUNK as u32);
    }
    assert!(!footer.fits(&header));
    footer.seal(Suite::Blake3);
    assert!(bytes.len() > MAX_XORB_LEN);
    let upload = parse(Suite::Blake3, &bytes).expect("upload");
    assert_eq!((upload.hash, upload.chunks.len()), (footer.xorb_hash, 512));
    bytes.extend(footer.encode().expect("version 1"));
    assert_eq!(
        parse(Suite::Blake3, &bytes).map(|found| found.footer),
        Ok(Some(footer))
    );
    bytes.resize(MAX_READ_LEN, 0);
    assert!(!matches!(
        parse(Suite::Blake3, &bytes),
        Err(XorbError::TooLong(_))
    ));
    bytes.push(0);
    assert_eq!(
        parse(Suite::Blake3, &bytes),
        Err(XorbError::TooLong(MAX_READ_LEN + 1))
    );
}

#[test]
fn suites_do_not_pass_for_each_other() {
    let (bytes, footer) = sealed(&[
        (Scheme::Stored, b"one".to_vec()),
        (Scheme::Stored, b"two".to_vec()),
    ]);
    assert!(parse(Suite::Sha256, &bytes).is_err());
    let records = &bytes[..footer.records_len() as usize];
    let other = parse(Suite::Sha256, records).expect("records are of no suite");
    let blake3 = parse(Suite::Blake3, records).expect("records");
    assert_ne!(other.hash, blake3.hash);
    let mut sealed = footer;
    sealed.hashes = other.chunks.iter().map(|chunk| chunk.0).collect();
    sealed.seal(Suite::Sha256);
    let bytes = [records, &sealed.encode().expect("version 1")].concat();
    assert_eq!(
        validate(Suite::Sha256, &bytes, &other.hash).map(|found| found.footer),
        Ok(Some(sealed))
    );
}
