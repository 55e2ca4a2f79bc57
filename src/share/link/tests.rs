//! Links are typed, mailed and cut off by people: every way they break has to be told precisely.

use proptest::prelude::*;

use super::*;

fn owner() -> OwnerSeed {
    OwnerSeed::from_bytes([1; 32])
}

fn link(right: Right) -> Link {
    let owner_link = Link::new(owner().folder(), Suite::Blake3, Capability::Owner(owner()));
    owner_link.attenuate(right, 0).unwrap()
}

/// Text of a link whose payload is changed by `edit`, with a checksum that fits again.
fn forged(edit: impl FnOnce(&mut [u8; CHECKED_LEN])) -> String {
    let text = link(Right::Read).reveal();
    let payload = decode_payload(&text[SCHEME.len()..]).unwrap();
    let mut checked: [u8; CHECKED_LEN] = std::array::from_fn(|i| payload[i]);
    edit(&mut checked);
    let bytes = [&checked[..], &checksum(&checked)].concat();
    format!("ccbt:{}", BASE32_NOPAD.encode(&bytes).to_ascii_lowercase())
}

fn error(text: &str) -> LinkError {
    text.parse::<Link>().unwrap_err()
}

#[test]
fn the_first_letter_says_the_right_and_the_length_is_fixed() {
    let rights = [
        (Right::Owner, 'o'),
        (Right::Write, 'w'),
        (Right::Read, 'r'),
        (Right::Discover, 'e'),
    ];
    for (right, letter) in rights {
        let text = link(right).reveal();
        assert_eq!(text.len(), 119);
        assert!(text.starts_with(&format!("ccbt:{letter}")), "{text}");
        let parsed: Link = text.parse().unwrap();
        assert_eq!(parsed.right(), right);
        assert_eq!(parsed.reveal(), text);
    }
}

#[test]
fn a_fixed_link_does_not_change_its_text() {
    assert_eq!(link(Right::Read).reveal(), GOLDEN_READ_LINK);
}

const GOLDEN_READ_LINK: &str = "ccbt:raaqbcui4poxicprsx6vfwznhs5f24wkm4e36hmucin7g5eiag2a6324wpmb3duate6p375gi22wzlqrlyhsazzcr5p6hizujaax2j4spyhrqwyc74";

#[test]
fn attenuation_goes_down_only_and_keeps_the_swarm() {
    let write = link(Right::Write);
    let read = write.attenuate(Right::Read, 99).unwrap();
    let swarm = |link: &Link| link.capability().discover_key(0).swarm();
    assert_eq!(swarm(&write), swarm(&read));
    assert_eq!(swarm(&write), swarm(&link(Right::Owner)));
    let refused = read.attenuate(Right::Write, 0).unwrap_err();
    assert_eq!(
        refused,
        LinkError::Insufficient {
            have: Right::Read,
            need: Right::Write
        }
    );
    assert_eq!(
        refused.to_string(),
        "this needs a read-write link, but the link only lets you read"
    );
}

#[test]
fn hints_survive_the_trip() {
    let mut link = link(Right::Read);
    link.hints = Hints {
        peers: vec![
            "192.0.2.1:6881".parse().unwrap(),
            "[2001:db8::1]:1".parse().unwrap(),
        ],
        trackers: vec!["udp://tracker.example:80/announce?x=1&y=2".to_owned()],
        name: Some("photos 100% & ä".to_owned()),
    };
    let parsed: Link = link.reveal().parse().unwrap();
    assert_eq!(parsed.hints, link.hints);
}

#[test]
fn unknown_hints_are_passed_over_and_broken_ones_named() {
    let text = link(Right::Read).reveal();
    let parsed: Link = format!("{text}?zz=1&&n=a").parse().unwrap();
    assert_eq!(parsed.hints.name.as_deref(), Some("a"));
    assert_eq!(
        error(&format!("{text}?pe=host")),
        LinkError::Hint { key: "pe" }
    );
    assert_eq!(error(&format!("{text}?n=%f")), LinkError::Hint { key: "n" });
    assert_eq!(
        error(&format!("{text}?tr=%ff")),
        LinkError::Hint { key: "tr" }
    );
}

#[test]
fn damage_by_people_is_told_as_such() {
    let text = link(Right::Read).reveal();
    for cut in SCHEME.len()..text.len() {
        assert_eq!(error(&text[..cut]), LinkError::Checksum, "cut at {cut}");
    }
    assert_eq!(
        error(&format!("{text}a")).to_string(),
        "the link is mistyped or cut off"
    );
    for i in SCHEME.len()..text.len() {
        let other = if text.as_bytes()[i] == b'q' { 'p' } else { 'q' };
        let mistyped = format!("{}{other}{}", &text[..i], &text[i + 1..]);
        assert_eq!(error(&mistyped), LinkError::Checksum, "character {i}");
    }
    let with_space = format!("{} {}", &text[..9], &text[9..]);
    assert_eq!(error(&with_space), LinkError::Character { position: 10 });
}

#[test]
fn case_and_surrounding_blanks_do_not_matter() {
    let text = link(Right::Read).reveal();
    let shouted: Link = format!(" {}\n", text.to_uppercase()).parse().unwrap();
    assert_eq!(shouted.reveal(), text);
}

#[test]
fn links_of_other_kinds_and_times_are_told_apart() {
    assert_eq!(error(""), LinkError::Scheme);
    assert_eq!(error("magnet:?xt=urn:btih:0"), LinkError::Scheme);
    assert_eq!(error(&forged(|p| p[0] |= 1)), LinkError::Version(1));
    assert_eq!(error(&forged(|p| p[1] = 4)), LinkError::UnknownRight(4));
    assert_eq!(error(&forged(|p| p[1] = 2)), LinkError::UnknownRight(2));
    assert_eq!(error(&forged(|p| p[2] = 2)), LinkError::UnknownSuite(2));
    assert_eq!(error(&forged(|p| p[3..35].fill(0))), LinkError::Folder);
    assert_eq!(
        error(&"c".repeat(LINK_LEN_MAX + 1)),
        LinkError::TooLong {
            len: LINK_LEN_MAX + 1
        }
    );
}

#[test]
fn an_owner_link_with_the_wrong_seed_is_refused() {
    let stranger = OwnerSeed::from_bytes([2; 32]);
    let text = Link::new(owner().folder(), Suite::Sha256, Capability::Owner(stranger)).reveal();
    assert_eq!(error(&text), LinkError::Folder);
}

#[test]
fn neither_debug_nor_display_nor_errors_show_the_secret() {
    let link = link(Right::Write);
    let secret = link.reveal();
    for shown in [
        format!("{link}"),
        format!("{link:?}"),
        format!("{:?}", link.capability()),
    ] {
        for part in secret.as_bytes()[SCHEME.len()..].windows(9) {
            assert!(
                !shown.contains(std::str::from_utf8(part).unwrap()),
                "{shown}"
            );
        }
    }
    assert!(format!("{link}").contains("write link"));
}

proptest! {
    #[test]
    fn arbitrary_text_never_panics(text in ".{0,200}") {
        drop(text.parse::<Link>());
        drop(format!("ccbt:{text}").parse::<Link>());
        drop(format!("{}?{text}", link(Right::Read).reveal()).parse::<Link>());
    }

    #[test]
    fn every_secret_survives_the_trip(secret: [u8; 32], sha: bool) {
        let suite = if sha { Suite::Sha256 } else { Suite::Blake3 };
        let key = Capability::Read(ReadKey::from_bytes(secret));
        let parsed: Link = Link::new(owner().folder(), suite, key).reveal().parse().unwrap();
        prop_assert_eq!(parsed.capability().secret(), &secret);
        prop_assert_eq!(parsed.suite(), suite);
        prop_assert_eq!(parsed.folder(), owner().folder());
    }
}
