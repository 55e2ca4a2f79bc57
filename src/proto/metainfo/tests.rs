//! Torrents we write are read back as they were meant; torrents that lie are refused with the reason.

use proptest::prelude::*;

use super::draft::{Draft, DraftFile, Extras, PieceHash, Version};
use super::*;
use crate::proto::bencode::Item;

fn name(text: &str) -> Name {
    Name::new(text.as_bytes()).unwrap()
}

fn path(text: &str) -> FilePath {
    FilePath::new(text.split('/').map(name).collect()).unwrap()
}

fn file(text: &str, length: u64) -> DraftFile {
    DraftFile {
        path: path(text),
        length,
        attributes: Attributes::default(),
        symlink: None,
    }
}

/// Content that differs from file to file and from block to block.
fn content(file: &DraftFile) -> Vec<u8> {
    let seed = file.path.to_string().len() as u64;
    (0..file.length)
        .map(|n| (n / 1000 + n * 7 + seed * 31) as u8)
        .collect()
}

fn hash_all(draft: &Draft) -> Vec<PieceHash> {
    let contents: Vec<_> = draft.files().iter().map(content).collect();
    let bytes_of = |piece: &draft::Piece| -> Vec<u8> {
        let ranges = piece.parts.iter();
        ranges
            .flat_map(|(n, at, len)| contents[*n][*at as usize..][..*len as usize].to_vec())
            .collect()
    };
    draft
        .pieces()
        .iter()
        .map(|piece| piece.hash(&bytes_of(piece)))
        .collect()
}

/// The content of [`torrent_of`].
pub(crate) fn content_of(length: u64) -> Vec<u8> {
    content(&file("top/a", length))
}

/// A v2 torrent of one file in pieces of 32 KiB.
pub(crate) fn torrent_of(length: u64) -> Torrent {
    Torrent::parse(&make(Version::V2, vec![file("top/a", length)])).unwrap()
}

fn make(version: Version, files: Vec<DraftFile>) -> Vec<u8> {
    let root = files[0].path.parts()[0].clone();
    let draft = Draft::new(root, version, Some(32 << 10), files, Extras::default()).unwrap();
    draft.finish(&hash_all(&draft))
}

/// The v1 hashes from the definition: one stream of all files and gaps, cut into pieces.
fn naive_v1(info: &Info, files: &[DraftFile]) -> Vec<[u8; 20]> {
    let mut stream = vec![0; info.space_bytes as usize];
    for file in &info.files {
        let draft = files.iter().find(|draft| draft.path == file.path).unwrap();
        stream[file.offset as usize..][..file.length as usize].copy_from_slice(&content(draft));
    }
    stream
        .chunks(info.piece_bytes as usize)
        .map(|piece| Sha1::digest(piece).into())
        .collect()
}

/// The v2 root from the definition: all leaves, filled with zeros to a power of two.
fn naive_root(file: &DraftFile) -> Option<TreeHash> {
    let mut level: Vec<_> = content(file).chunks(16 << 10).map(merkle::leaf).collect();
    level.resize(level.len().next_power_of_two(), [0; 32]);
    while level.len() > 1 {
        level = level
            .chunks(2)
            .map(|pair| merkle::parent(&pair[0], &pair[1]))
            .collect();
    }
    (file.length > 0).then(|| level[0])
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn what_is_written_is_read(
        lengths in prop::collection::vec(prop_oneof![Just(0u64), 1..100u64, 10_000..200_000u64], 1..6),
        version in prop::sample::select(vec![Version::V1, Version::V2, Version::Hybrid]),
    ) {
        let paths = ["t/a", "t/b/c", "t/b/d.x", "t/b.txt", "t/z"];
        let mut files: Vec<_> = lengths.iter().zip(paths).map(|(len, path)| file(path, *len)).collect();
        let torrent = Torrent::parse(&make(version, files.clone())).unwrap();
        let info = &torrent.info;
        files.sort_by(|a, b| a.path.cmp(&b.path));
        prop_assert_eq!(info.files.iter().map(|f| (&f.path, f.length)).collect::<Vec<_>>(),
            files.iter().map(|f| (&f.path, f.length)).collect::<Vec<_>>());
        prop_assert_eq!(info.hashes.v1.is_some(), version != Version::V2);
        prop_assert_eq!(info.hashes.v2.is_some(), version != Version::V1);
        if version != Version::V2 {
            prop_assert_eq!(&info.pieces_v1, &naive_v1(info, &files));
        }
        if version != Version::V1 {
            for (found, draft) in info.files.iter().zip(&files) {
                prop_assert_eq!(found.root, naive_root(draft));
                prop_assert!(found.length == 0 || found.offset % (32 << 10) == 0);
            }
        }
        // The info part alone, as peers send it, says the same.
        prop_assert_eq!(&Info::parse(info.raw()).unwrap(), info);
    }

    #[test]
    fn damage_is_refused_or_harmless(at in 0usize..10_000, byte in any::<u8>(), version in prop::sample::select(vec![Version::V1, Version::V2, Version::Hybrid])) {
        let mut bytes = make(version, vec![file("t/a", 70_000), file("t/b/c", 40_000)]);
        let at = at % bytes.len();
        bytes[at] = byte;
        if let Ok(torrent) = Torrent::parse(&bytes) {
            prop_assert!(torrent.info.piece_count() <= 8192);
        }
    }
}

#[test]
fn a_single_file_is_not_in_a_folder() {
    for version in [Version::V1, Version::V2, Version::Hybrid] {
        let torrent = Torrent::parse(&make(version, vec![file("one.bin", 100_000)])).unwrap();
        assert_eq!(torrent.info.files.len(), 1);
        assert_eq!(torrent.info.files[0].path, path("one.bin"));
        assert_eq!(torrent.info.piece_count(), 4);
        assert_eq!(torrent.info.content_bytes(), 100_000);
    }
}

#[test]
fn everything_around_the_info_is_kept() {
    let extras = Extras {
        trackers: vec!["http://a/announce".into(), "udp://b:1".into()],
        web_seeds: vec!["http://w/".into()],
        private: true,
        comment: Some("hello".into()),
        created_by: Some("ccbt".into()),
        created: Some(12),
        source: None,
    };
    let mut link = file("t/link", 0);
    link.symlink = Some(path("t/a"));
    let mut program = file("t/a", 5);
    program.attributes.executable = true;
    let draft = Draft::new(
        name("t"),
        Version::Hybrid,
        None,
        vec![link, program],
        extras,
    )
    .unwrap();
    let torrent = Torrent::parse(&draft.finish(&hash_all(&draft))).unwrap();
    assert_eq!(torrent.trackers, [["http://a/announce"], ["udp://b:1"]]);
    assert_eq!(torrent.web_seeds, ["http://w/"]);
    assert!(torrent.info.private);
    assert_eq!(torrent.comment.as_deref(), Some("hello"));
    assert_eq!(torrent.created_by.as_deref(), Some("ccbt"));
    assert_eq!(torrent.created, Some(12));
    assert!(torrent.info.files[0].attributes.executable);
    assert_eq!(torrent.info.files[1].symlink, Some(path("t/a")));
}

/// A v1 torrent of the given files, without any care.
fn rough(files: &[(&[&str], i64)], pieces: usize) -> Vec<u8> {
    let part = |part: &&str| Item::Bytes(part.as_bytes().to_vec());
    let list = files.iter().map(|(path, length)| {
        let path = Item::List(path.iter().map(part).collect());
        Item::dict([("length", Item::Integer(*length)), ("path", path)])
    });
    let info = Item::dict([
        ("files", Item::List(list.collect())),
        ("name", Item::Bytes(b"t".to_vec())),
        ("piece length", Item::Integer(16 << 10)),
        ("pieces", Item::Bytes(vec![0; 20 * pieces])),
    ]);
    let mut out = Vec::new();
    Item::dict([("info", info)]).encode(&mut out);
    out
}

#[test]
fn torrents_that_would_do_harm_are_refused() {
    let refused = |files: &[(&[&str], i64)]| Torrent::parse(&rough(files, 1)).unwrap_err();
    for part in ["..", ".", "", "a/b", "nul\0"] {
        assert!(
            matches!(refused(&[(&["x", part], 1)]), MetainfoError::UnsafeName(_)),
            "{part:?}"
        );
    }
    let long = "n".repeat(256);
    assert!(matches!(
        refused(&[(&[&long], 1)]),
        MetainfoError::UnsafeName(_)
    ));
    let deep = vec!["d"; 200];
    assert!(matches!(
        refused(&[(&deep, 1)]),
        MetainfoError::PathLength { .. }
    ));
    assert!(matches!(
        refused(&[(&[], 1)]),
        MetainfoError::PathLength { .. }
    ));
    assert_eq!(
        refused(&[(&["a"], 1), (&["a"], 1)]),
        MetainfoError::Duplicate(path("t/a"))
    );
    assert_eq!(
        refused(&[(&["a"], 1), (&["a", "b"], 1)]),
        MetainfoError::Duplicate(path("t/a/b"))
    );
    assert_eq!(refused(&[(&["a"], -1)]), MetainfoError::Length(path("t/a")));
    assert_eq!(
        refused(&[(&["a"], i64::MAX)]),
        MetainfoError::Length(path("t/a"))
    );
    assert_eq!(refused(&[]), MetainfoError::Empty);
    let count = Torrent::parse(&rough(&[(&["a"], 16 << 10)], 2)).unwrap_err();
    assert_eq!(
        count,
        MetainfoError::PieceCount {
            expected: 1,
            found: 2
        }
    );
}

#[test]
fn halves_that_disagree_are_refused() {
    let torrent = make(
        Version::Hybrid,
        vec![file("t/a", 40_000), file("t/b", 40_000)],
    );
    let replaced = |from: &[u8], to: &[u8], which: usize| {
        let at = torrent
            .windows(from.len())
            .enumerate()
            .filter(|(_, w)| *w == from);
        let at = at.map(|(at, _)| at).nth(which).unwrap();
        let mut changed = torrent.clone();
        changed.splice(at..at + from.len(), to.iter().copied());
        Torrent::parse(&changed)
    };
    assert!(matches!(
        replaced(b"i40000e", b"i40001e", 0),
        Err(MetainfoError::Halves(_) | MetainfoError::Layer(_))
    ));
    assert!(matches!(
        replaced(b"4:pathl1:b", b"4:pathl1:c", 0),
        Err(MetainfoError::Halves(_))
    ));
}

#[test]
fn a_layer_must_give_its_root() {
    let mut torrent = make(Version::V2, vec![file("t/a", 100_000)]);
    let last = torrent.len() - 4;
    torrent[last] ^= 1;
    assert_eq!(
        Torrent::parse(&torrent).unwrap_err(),
        MetainfoError::Layer(path("t/a"))
    );
}

#[test]
fn a_hybrid_without_piece_layers_is_read_and_one_with_them_keeps_them() {
    let files = || {
        vec![
            file("top/a", 100_000),
            file("top/b", 10),
            file("top/c", 70_000),
        ]
    };
    let whole = Torrent::parse(&make(Version::Hybrid, files())).unwrap();
    assert_eq!(whole.layers.len(), 2);
    let none = wrap::wrap(whole.info.raw(), &[], &BTreeMap::new());
    let bare = Torrent::parse(&none).unwrap();
    assert_eq!((&bare.info, bare.layers.len()), (&whole.info, 0));
    let again = wrap::wrap(whole.info.raw(), &[], &whole.layers);
    assert_eq!(Torrent::parse(&again).unwrap().layers, whole.layers);
    // A wrong layer is worse than none.
    let mut wrong = whole.layers.clone();
    wrong.values_mut().next().unwrap()[0][0] ^= 1;
    let refused = Torrent::parse(&wrap::wrap(whole.info.raw(), &[], &wrong));
    assert!(
        matches!(refused, Err(MetainfoError::Layer(_))),
        "{refused:?}"
    );
    let v2 = Torrent::parse(&make(Version::V2, files())).unwrap();
    let refused = Torrent::parse(&wrap::wrap(v2.info.raw(), &[], &BTreeMap::new()));
    assert!(
        matches!(refused, Err(MetainfoError::Layer(_))),
        "{refused:?}"
    );
}
