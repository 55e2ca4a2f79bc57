//! Entries against their bytes, and the way of a state through the tree and back.

use std::collections::BTreeMap;
use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::folder::content::{ChunkRef, ContentWriter};
use crate::folder::snapshot::covers;
use crate::folder::state::{Body, By, NewFile, RenameMode, State, Tag, Target};
use crate::folder::tree::{Difference, MemoryNodes, Tree, Trees};

fn name(text: &str) -> Name {
    Name::from(text.as_bytes())
}

fn any_name() -> impl Strategy<Value = Name> {
    prop_oneof!["[a-z]{1,3}", "[a-z]{250,255}", Just("..a".to_owned())].prop_map(|text| name(&text))
}

/// Few incarnations and counters, so that values share dots.
fn any_dot() -> impl Strategy<Value = Dot> {
    let ctr = prop_oneof![1_u64..4, 1..=u64::MAX];
    (0_u8..3, ctr).prop_map(|(inc, ctr)| Dot {
        inc: Inc([inc; 8]),
        ctr,
    })
}

fn any_hlc() -> impl Strategy<Value = Hlc> {
    prop_oneof![0_u64..3, any::<u64>()].prop_map(Hlc)
}

fn any_time() -> impl Strategy<Value = Time> {
    (any::<i64>(), 0_u32..1_000_000_000).prop_map(|(secs, nanos)| Time { secs, nanos })
}

fn any_xattrs() -> impl Strategy<Value = Xattrs> {
    let value = prop::collection::vec(any::<u8>(), 0..20);
    prop::collection::btree_map("user\\.[a-z]{1,4}", value, 0..4).prop_map(|xattrs| {
        xattrs
            .into_iter()
            .map(|(name, value)| (name.into(), value.into()))
            .collect()
    })
}

fn any_fid() -> impl Strategy<Value = Fid> {
    prop_oneof![Just(Fid::ROOT), any::<[u8; 8]>().prop_map(Fid)]
}

fn any_place() -> impl Strategy<Value = Place> {
    let was = prop::option::of((any_fid(), any_name()));
    (
        any_dot(),
        any_hlc(),
        any_fid(),
        any_name(),
        0_u16..0o10000,
        was,
    )
        .prop_map(|(dot, hlc, parent, name, mode, was)| Place {
            hlc,
            dot,
            parent,
            name,
            mode,
            was,
        })
}

fn any_dir_meta() -> impl Strategy<Value = DirMeta> {
    (
        any_dot(),
        any_hlc(),
        0_u16..0o10000,
        prop::option::of(any_time()),
        any_xattrs(),
    )
        .prop_map(|(dot, hlc, mode, mtime, xattrs)| DirMeta {
            hlc,
            dot,
            mode,
            mtime,
            xattrs,
        })
}

fn any_version() -> impl Strategy<Value = Version> {
    let content = prop_oneof![
        "[a-z/]{1,20}".prop_map(|target| {
            (
                FileKind::Symlink,
                target.len() as u64,
                Content::from(target.as_bytes()),
            )
        }),
        prop::collection::vec((any::<[u8; 32]>(), 1_u32..=131_072), 0..40).prop_map(|chunks| {
            let (content, size) = file(&chunks);
            (FileKind::File, size, content)
        }),
    ];
    let link = prop::option::of(any_dot().prop_map(LinkId));
    (
        any_dot(),
        any_hlc(),
        content,
        any_time(),
        0_u16..0o10000,
        link,
    )
        .prop_map(
            |(dot, hlc, (kind, size, content), mtime, mode, link)| Version {
                hlc,
                dot,
                kind,
                content,
                size,
                mtime,
                mode,
                link,
            },
        )
}

fn file(chunks: &[([u8; 32], u32)]) -> (Content, u64) {
    let nodes = MemoryNodes::new();
    let mut writer = ContentWriter::new(&nodes);
    for (hash, len) in chunks {
        let hash = ccbt_xet::hash::ChunkHash::from_bytes(*hash);
        writer.push(ChunkRef { hash, len: *len }).unwrap();
    }
    let (content, size) = writer.finish().unwrap();
    (Content::from(&content[..]), size)
}

fn any_file_meta() -> impl Strategy<Value = FileMeta> {
    let mtime = prop::option::of((any::<[u8; 8]>().prop_map(ContentDigest), any_time()));
    (any_dot(), any_hlc(), 0_u16..0o10000, mtime, any_xattrs()).prop_map(
        |(dot, hlc, mode, mtime, xattrs)| FileMeta {
            hlc,
            dot,
            mode,
            mtime,
            xattrs,
        },
    )
}

/// A list as states hold it: largest first, without doubles.
fn sorted<T: Ord>(mut values: Vec<T>) -> Vec<T> {
    values.sort_by(|a, b| b.cmp(a));
    values.dedup();
    values
}

fn any_entry() -> impl Strategy<Value = (Key, Entry)> {
    let steps = prop::collection::vec((any_name(), any::<u32>()), 0..4);
    let places = prop::collection::vec(any_place(), 0..4);
    let metas = prop::collection::vec(any_dir_meta(), 0..4);
    let head = (steps, places, metas).prop_map(|(steps, places, metas)| {
        let steps = steps.iter().map(|(name, n)| (name.as_bytes(), *n));
        let birth = BirthPath::from_steps(steps).unwrap();
        let places = if birth.fid() == Fid::ROOT {
            vec![]
        } else {
            sorted(places)
        };
        let key = Key::head(birth.fid());
        (
            key,
            Entry::Head(Head {
                birth,
                places,
                metas: sorted(metas),
            }),
        )
    });
    let versions = prop::collection::vec(any_version(), 0..4);
    let metas = prop::collection::vec(any_file_meta(), 0..4);
    let file = (any_fid(), any_name(), versions, metas).prop_filter_map(
        "an entry has a value",
        |(dir, name, versions, metas)| {
            let file = FileEntry {
                versions: sorted(versions),
                metas: sorted(metas),
            };
            (!file.is_empty()).then(|| (Key::file(dir, name), Entry::File(file)))
        },
    );
    prop_oneof![head, file]
}

proptest! {
    #[test]
    fn an_entry_survives_the_way((key, entry) in any_entry()) {
        prop_assert_eq!(decode_key(&encode_key(&key)), Ok(key.clone()));
        let bytes = encode_entry(&key, entry.as_ref()).unwrap();
        prop_assert_eq!(decode_entry(&key, &bytes), Ok(entry));
    }

    #[test]
    fn what_is_decoded_is_encoded_the_same(
        (key, entry) in any_entry(),
        at: prop::sample::Index,
        byte: u8,
    ) {
        let mut bytes = encode_entry(&key, entry.as_ref()).unwrap().to_vec();
        let at = at.index(bytes.len());
        bytes[at] = byte;
        if let Ok(entry) = decode_entry(&key, &bytes) {
            prop_assert_eq!(encode_entry(&key, entry.as_ref()).unwrap(), bytes);
        }
    }

    #[test]
    fn arbitrary_bytes_never_panic(
        mut bytes in prop::collection::vec(any::<u8>(), 0..300),
        key_bytes in prop::collection::vec(any::<u8>(), 0..20),
    ) {
        drop(decode_key(&key_bytes));
        for (flags, key) in [(0, Key::head(Fid::ROOT)), (1, Key::file(Fid::ROOT, name("a")))] {
            drop(decode_entry(&key, &bytes));
            if let Some(first) = bytes.first_mut() {
                *first = flags;
            }
            drop(decode_entry(&key, &bytes));
        }
    }
}

fn version() -> Version {
    Version {
        hlc: Hlc(300),
        dot: Dot {
            inc: Inc([5; 8]),
            ctr: 1,
        },
        kind: FileKind::Symlink,
        content: Content::from(&b"to"[..]),
        size: 2,
        mtime: Time { secs: -1, nanos: 7 },
        mode: 0o644,
        link: None,
    }
}

fn entry_of(versions: Vec<Version>) -> Entry {
    Entry::File(FileEntry {
        versions,
        metas: vec![],
    })
}

fn meta() -> FileMeta {
    let dot = Dot {
        inc: Inc([5; 8]),
        ctr: 1,
    };
    FileMeta {
        hlc: Hlc(1),
        dot,
        mode: 0o600,
        mtime: None,
        xattrs: Xattrs::new(),
    }
}

/// Bytes of fixed entries: they must never change, or old folders could not be read.
#[test]
fn bytes_are_those_of_the_format() {
    let key = Key::file(Fid::ROOT, name("a"));
    assert_eq!(encode_key(&key), &b"\0\0\0\0\0\0\0\0a"[..]);
    let mut older = version();
    older.dot = Dot {
        inc: Inc([4; 8]),
        ctr: 200,
    };
    older.hlc = Hlc(2);
    older.link = Some(LinkId(Dot {
        inc: Inc([6; 8]),
        ctr: 3,
    }));
    let digest = ContentDigest([9; 8]);
    let mut attributes = meta();
    attributes.mtime = Some((digest, Time { secs: 1, nanos: 0 }));
    attributes
        .xattrs
        .insert(Bytes::from_static(b"user.x"), Bytes::from_static(b"yz"));
    let entry = Entry::File(FileEntry {
        versions: vec![version(), older],
        metas: vec![attributes],
    });
    let wanted = [
        &b"\x01\x02"[..],
        b"\x04\x04\x04\x04\x04\x04\x04\x04\xc8\x01\x02\x01\x02\x01\x07\xa4\x03\x01",
        b"\x06\x06\x06\x06\x06\x06\x06\x06\x03\x02to",
        b"\x05\x05\x05\x05\x05\x05\x05\x05\x01\xac\x02\x01\x02\x01\x07\xa4\x03\x00\x02to",
        b"\x01\x05\x05\x05\x05\x05\x05\x05\x05\x01\x01\x80\x03",
        b"\x01\x09\x09\x09\x09\x09\x09\x09\x09\x02\x00\x01\x06user.x\x02yz",
    ]
    .concat();
    assert_eq!(encode_entry(&key, entry.as_ref()).unwrap(), wanted);

    let birth = BirthPath::from_steps([(&b"d"[..], 1)]).unwrap();
    let key = Key::head(birth.fid());
    let dot = Dot {
        inc: Inc([5; 8]),
        ctr: 2,
    };
    let was = Some((Fid::ROOT, name("d")));
    let place = Place {
        hlc: Hlc(1),
        dot,
        parent: Fid([7; 8]),
        name: name("e"),
        mode: 0o755,
        was,
    };
    let mtime = Some(Time { secs: 1, nanos: 1 });
    let meta = DirMeta {
        hlc: Hlc(1),
        dot,
        mode: 0o700,
        mtime,
        xattrs: Xattrs::new(),
    };
    let entry = Entry::Head(Head {
        birth,
        places: vec![place],
        metas: vec![meta],
    });
    let wanted = [
        &b"\x00\x01\x01d\x01\x01"[..],
        b"\x05\x05\x05\x05\x05\x05\x05\x05\x02\x01\x07\x07\x07\x07\x07\x07\x07\x07\x01e\xed\x03",
        b"\x01\0\0\0\0\0\0\0\0\x01d\x01",
        b"\x05\x05\x05\x05\x05\x05\x05\x05\x02\x01\xc0\x03\x01\x02\x01\x00",
    ]
    .concat();
    assert_eq!(encode_entry(&key, entry.as_ref()).unwrap(), wanted);
}

#[test]
fn entries_that_no_peer_would_take_are_not_encoded() {
    let key = Key::file(Fid::ROOT, name("a"));
    let encode = |entry: &Entry| encode_entry(&key, entry.as_ref());
    assert!(encode(&entry_of(vec![version()])).is_ok());
    let empty = DecodeError::Rule("an entry has no value");
    assert_eq!(encode(&entry_of(vec![])), Err(empty));
    let double = DecodeError::Order("values of an entry");
    assert_eq!(encode(&entry_of(vec![version(), version()])), Err(double));
    let (small, mut large) = (version(), version());
    large.hlc = Hlc(301);
    assert!(encode(&entry_of(vec![large.clone(), small.clone()])).is_ok());
    let order = DecodeError::Rule("the values of an entry are not in order");
    assert_eq!(encode(&entry_of(vec![small, large])), Err(order));

    let refused = |change: fn(&mut Version)| {
        let mut version = version();
        change(&mut version);
        assert!(
            encode(&entry_of(vec![version.clone()])).is_err(),
            "{version:?}"
        );
    };
    refused(|version| version.dot.ctr = 0);
    refused(|version| version.mode = 0o10000);
    refused(|version| version.mtime.nanos = 1_000_000_000);
    refused(|version| version.size = 3);
    refused(|version| version.content = Content::from(&b"t\0"[..]));
    refused(|version| version.content = Content::from(&[b'a'; 4096][..]));
    refused(|version| version.kind = FileKind::File);

    let with = |name: &'static [u8], len: usize| {
        let mut meta = meta();
        meta.xattrs
            .insert(Bytes::from_static(name), vec![0; len].into());
        encode(&Entry::File(FileEntry {
            versions: vec![],
            metas: vec![meta],
        }))
    };
    assert!(with(b"user.x", (64 << 10) - 6).is_ok());
    assert!(with(b"user.x", (64 << 10) - 5).is_err());
    assert!(with(b"user.", 1).is_err());
    assert!(with(b"security.capability", 1).is_err());
    assert!(with(b"user.\0", 1).is_err());
}

#[test]
fn keys_and_heads_that_break_a_rule_are_refused() {
    let key = |dir: &[u8; 8], name: &[u8]| decode_key(&[&dir[..], name].concat());
    assert_eq!(key(&[0; 8], b""), Ok(Key::head(Fid::ROOT)));
    assert_eq!(
        key(&[1; 8], b".ccbt"),
        Ok(Key::file(Fid([1; 8]), name(".ccbt")))
    );
    assert_eq!(
        key(&[0; 8], b".ccbt"),
        Err(DecodeError::Rule("a name is reserved"))
    );
    let long = [b'a'; 256];
    for bad in [&b"."[..], b"..", b"a/b", b"a\0", &long] {
        assert_eq!(key(&[1; 8], bad), Err(DecodeError::Rule("not a name")));
    }
    assert!(decode_key(&[0; 7]).is_err());

    let root = Key::head(Fid::ROOT);
    assert!(decode_entry(&root, &[0, 0, 0, 0]).is_ok());
    assert!(
        decode_entry(&root, &[1, 0, 0]).is_err(),
        "a file is not a head"
    );
    assert!(decode_entry(&Key::file(Fid::ROOT, name("a")), &[0, 0, 0, 0]).is_err());
    let elsewhere = DecodeError::Rule("a directory is not the one its birth path leads to");
    assert_eq!(
        decode_entry(&Key::head(Fid([1; 8])), &[0, 0, 0, 0]),
        Err(elsewhere)
    );
    let dot = Dot {
        inc: Inc([5; 8]),
        ctr: 2,
    };
    let (parent, name) = (Fid([1; 8]), name("d"));
    let place = Place {
        hlc: Hlc(1),
        dot,
        parent,
        name,
        mode: 0,
        was: None,
    };
    let head = Head {
        birth: BirthPath::root(),
        places: vec![place],
        metas: vec![],
    };
    let placed = encode_entry(&root, Entry::Head(head).as_ref());
    assert_eq!(placed, Err(DecodeError::Rule("the root has a place")));
}

/// A device: its state, and the tree of it.
#[derive(Clone)]
struct Device {
    inc: Inc,
    state: State,
    tree: Tree,
}

fn tag() -> Tag {
    Arc::new(|inc, hlc| format!("{inc:?} {}", hlc.0))
}

impl Device {
    fn new(trees: &Trees<'_, MemoryNodes>, inc: u8) -> Self {
        let tree = trees.build([]).unwrap();
        Self {
            inc: Inc([inc; 8]),
            state: State::new(tag()),
            tree,
        }
    }

    /// Operations come as numbers, so that a test can draw them; what fails changes nothing.
    fn operate(&mut self, now: u64, (op, a, b): (u8, u8, u8)) {
        let by = By {
            inc: self.inc,
            hlc: Hlc(now),
        };
        let dirs: Vec<Fid> = (0..3)
            .map(|n| Fid::born(Fid::ROOT, 0, &[b'a' + n]))
            .collect();
        let dir = |n: u8| {
            if n % 4 == 3 {
                Fid::ROOT
            } else {
                dirs[usize::from(n % 4)]
            }
        };
        let label = |n: u8| vec![b'a' + n / 4 % 4];
        let target = now.to_string();
        let (content, size) = (Content::from(target.as_bytes()), target.len() as u64);
        let body = Body {
            content,
            size,
            mtime: Time {
                secs: now as i64,
                nanos: 0,
            },
        };
        let state = &mut self.state;
        drop(match op % 8 {
            0 | 1 => {
                let file = NewFile {
                    kind: FileKind::Symlink,
                    mode: 0o644,
                    body,
                };
                state.create(dir(a), &label(a), file, by)
            }
            2 => state.mkdir(Fid::ROOT, &label(a), 0o755, by),
            3 => {
                let (from, to) = (label(a), label(b));
                state.rename((dir(a), &from), (dir(b), &to), RenameMode::Replace, by)
            }
            4 => state.unlink(dir(a), &label(a), by),
            5 => state.chmod(Target::Name(dir(a), &label(a)), 0o600, by),
            6 => state.rmdir(Fid::ROOT, &label(a), by),
            _ => match state.base(dir(a), &label(a)) {
                Some(mut base) => state.write(&mut base, body, by),
                None => return,
            },
        });
    }

    /// Writes what changed since the last time into the tree.
    fn commit(&mut self, trees: &Trees<'_, MemoryNodes>) {
        let encode = |key: &Key| {
            let entry = self.state.entry(key)?;
            Some(encode_entry(key, entry).unwrap())
        };
        let dirty = self.state.clone().take_dirty();
        let changes: Vec<_> = dirty
            .iter()
            .map(|key| (encode_key(key), encode(key)))
            .collect();
        drop(self.state.take_dirty());
        self.tree = trees.apply(&self.tree, changes).unwrap();
    }

    /// The tree of all entries, from scratch.
    fn full_tree(&self, trees: &Trees<'_, MemoryNodes>) -> Tree {
        let entries = self.state.entries();
        let encoded =
            entries.map(|(key, entry)| (encode_key(&key), encode_entry(&key, entry).unwrap()));
        trees.build(encoded).unwrap()
    }

    /// Merges another device's snapshot, of which only the tree and the vector are known.
    fn merge(&mut self, trees: &Trees<'_, MemoryNodes>, theirs: &Self) {
        let entry = |difference: Difference| {
            let key = decode_key(&difference.key).unwrap();
            let entry = difference
                .b
                .map(|bytes| decode_entry(&key, &bytes).unwrap());
            (key, entry)
        };
        let differences = trees.diff(&self.tree, &theirs.tree).unwrap();
        let theirs_differ: Vec<_> = differences.map(|found| entry(found.unwrap())).collect();
        self.state
            .merge_entries(theirs_differ, theirs.state.vv())
            .unwrap();
        self.commit(trees);
    }
}

proptest! {
    #[test]
    fn states_meet_through_their_trees(
        ops in prop::collection::vec((any::<bool>(), any::<(u8, u8, u8)>(), 0_u8..12), 1..60),
    ) {
        let nodes = MemoryNodes::new();
        let trees = Trees::new(&nodes);
        let mut devices = [Device::new(&trees, 1), Device::new(&trees, 2)];
        for (now, (who, op, merge)) in ops.into_iter().enumerate() {
            let who = usize::from(who);
            devices[who].operate(now as u64 + 1, op);
            devices[who].commit(&trees);
            prop_assert_eq!(devices[who].tree, devices[who].full_tree(&trees));
            if merge == 0 {
                let other = devices[1 - who].clone();
                devices[who].merge(&trees, &other);
                prop_assert_eq!(devices[who].tree, devices[who].full_tree(&trees));
            }
        }
        let [mut one, mut two] = devices;
        one.merge(&trees, &two);
        two.merge(&trees, &one);
        prop_assert_eq!(one.tree, two.tree);
        prop_assert!(covers(one.state.vv(), two.state.vv()));
        let read: Result<BTreeMap<_, _>, _> = trees.range(&one.tree, &[]).collect();
        let entries = read.unwrap().into_iter().map(|(key, bytes)| {
            let key = decode_key(&key).unwrap();
            let entry = decode_entry(&key, &bytes).unwrap();
            (key, entry)
        });
        let again = State::from_entries(entries, two.state.vv().clone(), tag()).unwrap();
        let all = |state: &State| -> Vec<_> {
            state.entries().map(|(key, entry)| (key, entry.to_entry())).collect()
        };
        prop_assert_eq!(all(&again), all(&two.state));
    }
}
