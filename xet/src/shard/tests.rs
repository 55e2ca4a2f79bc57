//! Shards as bytes: round trips, damaged and contradicting input.

use proptest::prelude::*;

use super::*;
use crate::hash::{chunk_hash, range_hash};
use crate::merkle;

fn xorb_of(lens: &[u32], seed: u8) -> XorbInfo {
    let chunks: Vec<ChunkInfo> = lens
        .iter()
        .enumerate()
        .map(|(i, len)| ChunkInfo::plain(&chunk_hash(&[seed, i as u8]), *len))
        .collect();
    let hashes = chunks
        .iter()
        .map(|chunk| ChunkHash::from_bytes(*chunk.listed.as_bytes()));
    let hash = merkle::xorb_hash(hashes.zip(lens.iter().map(|len| u64::from(*len))));
    XorbInfo {
        hash,
        flags: 0,
        len: lens.iter().sum(),
        disk_len: 7,
        chunks,
    }
}

/// A file of chunks `range` of `xorb`, with everything a client writes.
fn file_of(xorb: &XorbInfo, range: Range<u32>) -> FileInfo {
    let chunks = &xorb.chunks[range.start as usize..range.end as usize];
    let hashes: Vec<ChunkHash> = chunks
        .iter()
        .map(|chunk| ChunkHash::from_bytes(*chunk.listed.as_bytes()))
        .collect();
    let lens = chunks.iter().map(|chunk| u64::from(chunk.len));
    FileInfo {
        hash: merkle::file_hash(hashes.iter().copied().zip(lens)),
        segments: vec![Segment {
            xorb: xorb.hash,
            flags: 0,
            len: chunks.iter().map(|chunk| chunk.len).sum(),
            chunks: range,
        }],
        verification: Some(vec![range_hash(&hashes)]),
        sha256: Some([9; 32]),
    }
}

/// One xorb of three chunks, one file of the last two, sealed: header at 0, file at 48..240, end at
/// 240, xorb at 288..480, end at 480, tables at 528 (12), 540 (12), 552 (48), footer at 600..800.
fn small() -> (Shard, Vec<u8>) {
    let xorb = xorb_of(&[10, 20, 30], 1);
    let shard = Shard {
        files: vec![file_of(&xorb, 1..3)],
        xorbs: vec![xorb],
        key: None,
    };
    let bytes = shard.encode(Form::LOCAL).expect("shard");
    assert_eq!(bytes.len(), 800);
    (shard, bytes)
}

/// `bytes` with those at `at` replaced.
fn with(bytes: &[u8], at: usize, new: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    bytes[at..at + new.len()].copy_from_slice(new);
    bytes
}

#[test]
fn a_header_of_something_else_is_refused() {
    let (_, bytes) = small();
    assert_eq!(parse(&with(&bytes, 31, &[0])), Err(ShardError::Tag));
    let version = ShardError::Version {
        part: "header",
        version: 3,
    };
    assert_eq!(parse(&with(&bytes, 32, &[3])), Err(version));
    assert_eq!(
        parse(&with(&bytes, 40, &[201])),
        Err(ShardError::FooterLen(201))
    );
    assert_eq!(
        parse(&with(&bytes, 40, &[0])),
        Err(ShardError::Trailing(272))
    );
}

#[test]
fn counts_beyond_the_input_are_cut_off_not_allocated() {
    let (_, bytes) = small();
    let huge = u32::MAX.to_le_bytes();
    let cut_off = parse(&with(&bytes, 48 + 36, &huge));
    assert!(
        matches!(cut_off, Err(ShardError::Segment { at: 144, .. })),
        "{cut_off:?}"
    );
    let chunks = u32::MAX;
    assert_eq!(
        parse(&with(&bytes, 288 + 36, &huge)),
        Err(ShardError::Chunks { at: 288, chunks })
    );
    for entries in [u64::MAX, u64::MAX / 12 + 1, 2] {
        let place = LookupError::Place {
            table: "file",
            at: 528,
            entries,
        };
        let found = parse(&with(&bytes, 600 + 32, &entries.to_le_bytes()));
        match entries {
            // The next table is not where this one would end.
            2 => assert!(found.is_err()),
            _ => assert_eq!(found, Err(place.into())),
        }
    }
}

#[test]
fn records_that_no_writer_writes_are_refused() {
    let (_, bytes) = small();
    let refused = |at: usize, new: &[u8]| parse(&with(&bytes, at, new)).expect_err("refused");
    assert_eq!(
        refused(48 + 32, &[1]),
        ShardError::FileFlags {
            at: 48,
            flags: 0xc000_0001
        }
    );
    // A segment beyond 8192 chunks, one of none, and ones of impossible lengths.
    for (at, new) in [
        (44, [1, 32, 0, 0]),
        (40, [3, 0, 0, 0]),
        (36, [1, 0, 0, 0]),
        (36, [1, 0, 4, 0]),
    ] {
        let error = refused(96 + at, &new);
        assert!(
            matches!(error, ShardError::Segment { at: 96, .. }),
            "{error}"
        );
    }
    assert_eq!(refused(240 + 47, &[1]), ShardError::End { at: 240 });
    assert!(matches!(
        refused(336 + 48 + 32, &[11]),
        ShardError::Chunk {
            at: 384,
            offset: 11,
            ..
        }
    ));
    assert!(matches!(
        refused(336 + 36, &[0]),
        ShardError::Chunk {
            at: 336,
            len: 0,
            ..
        }
    ));
    let stated = ShardError::XorbLen {
        at: 288,
        stated: 61,
        actual: 60,
    };
    assert_eq!(refused(288 + 40, &[61]), stated);
}

#[test]
fn a_footer_that_points_elsewhere_is_refused() {
    let (_, bytes) = small();
    let refused = |at: usize, new: u8| parse(&with(&bytes, 600 + at, &[new])).expect_err("refused");
    assert!(matches!(
        refused(0, 2),
        ShardError::Version {
            part: "footer",
            version: 2
        }
    ));
    for (at, part) in [
        (8, "the file section"),
        (16, "the xorb section"),
        (192, "the footer"),
    ] {
        let error = refused(at, 9);
        assert!(
            matches!(error, ShardError::Offset { part: found, .. } if found == part),
            "{error}"
        );
    }
    for at in [168, 176, 184] {
        assert!(matches!(refused(at, 1), ShardError::Sum { .. }));
        // A writer may leave sums out.
        parse(&with(&bytes, 600 + at, &[0])).expect("sum left out");
    }
    for (at, table) in [(24, "file"), (40, "xorb"), (56, "chunk")] {
        let error = refused(at, 1);
        assert!(
            matches!(&error, ShardError::Lookup(LookupError::Place { table: found, .. }) if *found == table),
            "{error}"
        );
    }
    let gap = ShardError::Lookup(LookupError::Gap(16));
    assert_eq!(refused(64, 2), gap);
}

#[test]
fn lookup_tables_must_lead_where_they_say() {
    let (_, bytes) = small();
    for (at, table) in [(528 + 8, "file"), (540 + 8, "xorb"), (552 + 12, "chunk")] {
        let target = LookupError::Target { table, entry: 0 };
        assert_eq!(parse(&with(&bytes, at, &[77])), Err(target.into()));
    }
    let swapped = [&bytes[568..584], &bytes[552..568]].concat();
    let order = LookupError::Order {
        table: "chunk",
        entry: 1,
    };
    assert_eq!(parse(&with(&bytes, 552, &swapped)), Err(order.into()));
}

#[test]
fn every_cut_is_refused() {
    let (shard, bytes) = small();
    for len in 0..bytes.len() {
        assert!(parse(&bytes[..len]).is_err(), "cut at {len}");
    }
    let upload = shard.encode(Form::Upload).expect("upload");
    for len in 0..upload.len() {
        assert!(parse(&upload[..len]).is_err(), "upload cut at {len}");
    }
    assert_eq!(
        parse(&[&upload[..], &[0]].concat()),
        Err(ShardError::Trailing(1))
    );
}

#[test]
fn contradictions_between_files_and_xorbs_are_found() {
    let (shard, _) = small();
    assert_eq!(shard.check(), Ok(()));
    let mut other = shard.clone();
    other.xorbs[0].chunks[0].len += 1;
    assert!(matches!(other.check(), Err(CheckError::Xorb { .. })));
    let mut other = shard.clone();
    other.files[0].segments[0].chunks = 1..4;
    assert!(matches!(
        other.check(),
        Err(CheckError::Segment { segment: 0, .. })
    ));
    let mut other = shard.clone();
    other.files[0].segments[0].len -= 1;
    assert!(matches!(other.check(), Err(CheckError::Segment { .. })));
    let mut other = shard;
    other.files[0].verification = Some(vec![RangeHash::from_bytes([0; 32])]);
    assert!(matches!(
        other.check(),
        Err(CheckError::Verification { segment: 0, .. })
    ));
    let hidden = other.hidden([1; 32]).expect("plain");
    assert_eq!(hidden.check(), Ok(()), "hidden hashes cannot be checked");
}

#[test]
fn what_cannot_be_written_is_refused() {
    let (mut shard, _) = small();
    let hidden = shard.hidden([1; 32]).expect("plain");
    assert_eq!(hidden.encode(Form::Upload), Err(EncodeError::Hidden));
    shard.files[0].verification = Some(Vec::new());
    assert_eq!(
        shard.encode(Form::LOCAL),
        Err(EncodeError::Verification {
            file: 0,
            segments: 1,
            hashes: 0
        })
    );
}

#[test]
fn an_empty_file_has_a_record_without_segments() {
    let empty = FileInfo {
        hash: merkle::file_hash([]),
        segments: Vec::new(),
        verification: Some(Vec::new()),
        sha256: Some([0; 32]),
    };
    let shard = Shard {
        files: vec![empty],
        ..Shard::default()
    };
    for form in [Form::Upload, Form::LOCAL, Form::SERVER] {
        let bytes = shard.encode(form).expect("shard");
        assert_eq!(parse(&bytes).expect("shard").shard, shard);
    }
    assert_eq!(shard.check(), Ok(()));
}

fn shard_strategy() -> impl Strategy<Value = Shard> {
    let xorbs = prop::collection::vec(prop::collection::vec(1u32..=131_072, 1..6), 1..4);
    let pick = (any::<prop::sample::Index>(), any::<bool>(), any::<bool>());
    (xorbs, prop::collection::vec(pick, 0..4)).prop_map(|(lens, picks)| {
        let mut xorbs: Vec<XorbInfo> = (0..)
            .zip(&lens)
            .map(|(seed, lens)| xorb_of(lens, seed))
            .collect();
        let mut files = Vec::new();
        for (at, verification, sha256) in picks {
            let xorb = at.get(&xorbs);
            let end = xorb.chunks.len() as u32;
            let mut file = file_of(xorb, at.index(end as usize) as u32..end);
            file.verification = file.verification.filter(|_| verification);
            file.sha256 = file.sha256.filter(|_| sha256);
            files.push(file);
        }
        xorbs.sort_by_key(|xorb| xorb.hash);
        files.sort_by_key(|file| file.hash);
        Shard {
            files,
            xorbs,
            key: None,
        }
    })
}

proptest! {
    #[test]
    fn all_forms_round_trip(shard in shard_strategy(), seal: [bool; 3], key in 1u8..) {
        for form in [Form::Upload, Form::LOCAL, Form::SERVER] {
            let bytes = shard.encode(form).expect("shard");
            prop_assert_eq!(&parse(&bytes).expect("own shard").shard, &shard);
            prop_assert_eq!(form == Form::Upload, bytes.len() == shard.sections_len());
        }
        let seal = Seal {
            file_table: seal[0],
            xorb_table: seal[1],
            chunk_table: seal[2],
            created: 1,
            expires: 2,
        };
        let hidden = shard.hidden([key; 32]).expect("plain");
        let bytes = hidden.encode(Form::Sealed(seal)).expect("shard");
        let parsed = parse(&bytes).expect("own shard");
        prop_assert_eq!(parsed.shard, hidden);
        prop_assert_eq!(parsed.footer.expect("footer").expires, 2);
    }

    #[test]
    fn damage_is_refused_or_changes_the_content_and_never_panics(
        shard in shard_strategy(),
        flips in prop::collection::vec((any::<prop::sample::Index>(), 1u8..), 1..4),
    ) {
        let mut bytes = shard.encode(Form::LOCAL).expect("shard");
        for (at, bits) in flips {
            let at = at.index(bytes.len());
            bytes[at] ^= bits;
        }
        if let Ok(parsed) = parse(&bytes) {
            // Whatever is accepted can be written again.
            parsed.shard.encode(Form::LOCAL).expect("accepted shard");
        }
    }

    #[test]
    fn noise_behind_a_header_never_panics(noise in prop::collection::vec(any::<u8>(), 0..2000)) {
        let (_, bytes) = small();
        prop_assert!(parse(&[&bytes[..48], &noise[..]].concat()).is_err());
    }
}
