//! Seeds of the targets of `share`: signed objects of one folder.

use ccbt::share::heads::Heads;
use ccbt::share::{
    Auth, Capability, Certificate, DeviceKey, Head, HeadClaims, Hints, Incarnation, Link, Manifest,
    ManifestClaims, NodeId, Revocation, Role, Side, Suite,
};

use super::with_prefix;
use crate::targets::share::owner;
use crate::targets::wire::{MEMBER, address};

pub(super) struct Signed {
    pub(super) manifest: Manifest,
    pub(super) certificate: Certificate,
    pub(super) head: Head,
}

pub(super) fn signed() -> Signed {
    let owner = owner();
    let write = owner.write_key(1);
    let device = DeviceKey::from_bytes([8; 32]);
    let claims = ManifestClaims {
        epoch: 1,
        suite: Suite::Blake3,
        write: write.public(),
        flags: 0,
        revocations: vec![Revocation {
            incarnation: Incarnation::from_bytes([9; 8]),
            last_seq: 4,
        }],
    };
    let head = HeadClaims {
        epoch: 1,
        device: device.id(),
        incarnation: Incarnation::from_bytes([1; 8]),
        ctr: 5,
        seq: 2,
        snapshot: NodeId::from_bytes([3; 32]),
        previous: [4; 32],
        hlc: 1_700_000_000_000 << 16,
        flags: 0,
    };
    let name = "laptop".parse().expect("a device's name");
    Signed {
        manifest: Manifest::sign(&owner, claims).expect("one revocation"),
        certificate: Certificate::issue(&write, device.id(), Role::Writer, 30_000, name),
        head: Head::sign(&device, head),
    }
}

pub(super) fn auth() -> Vec<Vec<u8>> {
    let mut reader = (*MEMBER.credentials).clone();
    reader.writer = None;
    reader.manifest = Some(signed().manifest);
    let credentials = [reader, (*MEMBER.credentials).clone()];
    let encode = |auth: Auth| {
        let mut out = Vec::new();
        auth.encode(&mut out);
        out
    };
    credentials
        .iter()
        .map(|own| encode(Auth::prove(own, Side::Caller, &[6; 32])))
        .collect()
}

pub(super) fn heads_file() -> Vec<Vec<u8>> {
    let own = signed();
    let mut heads = Heads::new(owner().folder(), Some(owner().write_key(1).public()));
    let empty = heads.encode();
    heads
        .offer_manifest(own.manifest.into())
        .expect("it is signed");
    heads
        .offer_certificate(own.certificate.into(), 20_000)
        .expect("it is signed");
    let head = heads
        .check(own.head.into(), u64::MAX >> 16)
        .expect("it is signed");
    heads.take(head.expect("it is news"));
    vec![empty, heads.encode()]
}

pub(super) fn dht_item() -> Vec<Vec<u8>> {
    let own = signed();
    let mut item = vec![0, 1, 1];
    item.extend_from_slice(&own.head.encode());
    item.extend_from_slice(&[2, 4, 192, 0, 2, 1, 0xe1, 0x1a, 6]);
    item.extend_from_slice(&[
        0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xe1, 0x1a,
    ]);
    vec![
        item,
        vec![0, 1, 0, 0],
        with_prefix(&[1], own.manifest.encode()),
    ]
}

/// A link as people pass it on.
pub(super) fn link_text() -> String {
    let owner = owner();
    let capability = Capability::Read(owner.write_key(1).read_key());
    Link::new(owner.folder(), Suite::Blake3, capability).reveal()
}

pub(super) fn link() -> Vec<Vec<u8>> {
    let owner = owner();
    let write = owner.write_key(1);
    let capabilities = [
        Capability::Owner(owner.clone()),
        Capability::Write(write.clone()),
        Capability::Read(write.read_key()),
        Capability::Discover(write.read_key().discover_key()),
    ];
    let hints = Hints {
        peers: vec![address()],
        trackers: vec!["udp://tracker.example:80/a b".to_owned()],
        name: Some("photos & \u{e4}".to_owned()),
    };
    let mut out = Vec::new();
    for capability in capabilities {
        let mut link = Link::new(owner.folder(), Suite::Blake3, capability);
        link.hints = hints.clone();
        let text = link.reveal();
        let (secret, query) = text["ccbt:".len()..]
            .split_once('?')
            .expect("a link with hints");
        let payload = data_encoding::BASE32_NOPAD.decode(secret.to_uppercase().as_bytes());
        let checked = &payload.expect("our own link")[..67];
        out.push([&[0], checked, query.as_bytes()].concat());
        out.push(text.into_bytes());
    }
    out
}
