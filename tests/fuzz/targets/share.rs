//! Targets of `share`: links and signed objects.

use ccbt::share::dht_item::{ItemKey, SignedItem};
use ccbt::share::heads::Heads;
use ccbt::share::{Auth, Certificate, DiscoverKey, Head, Link, Manifest, OwnerSeed, WriteKey};
use chacha20poly1305::aead::{Aead, Payload};
use chacha20poly1305::{KeyInit, XChaCha20Poly1305, XNonce};
use ed25519_dalek::{Signer, SigningKey};

use super::take;

const TODAY: u32 = 20_000;

pub(crate) fn owner() -> OwnerSeed {
    OwnerSeed::from_bytes([7; 32])
}

/// A link as text or, behind a zero byte, its payload without the checksum and its query. It comes back the same.
pub(crate) fn link(data: &[u8]) -> bool {
    const CHECKED_LEN: usize = 67;
    let text = match data.split_first() {
        Some((0, mut rest)) => {
            let mut payload = take::<CHECKED_LEN>(&mut rest).to_vec();
            let checksum = blake3::hash(&payload);
            payload.extend_from_slice(&checksum.as_bytes()[..4]);
            let secret = data_encoding::BASE32_NOPAD.encode(&payload);
            let Ok(query) = std::str::from_utf8(rest) else {
                return false;
            };
            format!("ccbt:{secret}?{query}")
        }
        _ => String::from_utf8_lossy(data).into_owned(),
    };
    let Ok(link) = text.parse::<Link>() else {
        return false;
    };
    let again: Link = link.reveal().parse().expect("our own link");
    assert_eq!(again.reveal(), link.reveal());
    assert_eq!(
        (again.folder(), again.right()),
        (link.folder(), link.right())
    );
    assert_eq!(again.hints, link.hints);
    true
}

pub(crate) fn certificate(data: &[u8]) -> bool {
    let Ok(certificate) = Certificate::decode(data) else {
        return false;
    };
    assert_eq!(certificate.claimed().encode(), data);
    let _verified = certificate.verify(&owner().write_key(1).public(), TODAY);
    true
}

pub(crate) fn manifest(data: &[u8]) -> bool {
    let Ok(manifest) = Manifest::decode(data) else {
        return false;
    };
    assert_eq!(manifest.claimed().encode(), data);
    let _verified = manifest.verify(&owner().folder());
    true
}

pub(crate) fn head(data: &[u8]) -> bool {
    let Ok(head) = Head::decode(data) else {
        return false;
    };
    assert_eq!(head.claimed().encode(), data);
    let _verified = head.verify();
    true
}

pub(crate) fn auth(data: &[u8]) -> bool {
    let Ok(auth) = Auth::decode(data) else {
        return false;
    };
    let mut out = Vec::new();
    auth.encode(&mut out);
    assert_eq!(out, data);
    true
}

/// The table of heads as it is kept on disk. What was taken is written and read the same.
pub(crate) fn heads_file(data: &[u8]) -> bool {
    let owner = owner();
    let fresh = || Heads::new(owner.folder(), Some(owner.write_key(1).public()));
    let mut heads = fresh();
    let restored = heads.restore(data, TODAY).is_ok();
    let mut again = fresh();
    again
        .restore(&heads.encode(), TODAY)
        .expect("our own table");
    assert_eq!(again.encode(), heads.encode());
    restored && heads.heads().count() > 0
}

/// What is in a DHT item: `kind u8 | plain bytes`, an even kind for heads and addresses, an odd one for the manifest.
/// The target encrypts and signs it as a member could.
pub(crate) fn dht_item(mut data: &[u8]) -> bool {
    let [kind] = take(&mut data);
    let discover = owner().write_key(1).read_key().discover_key();
    if kind % 2 == 0 {
        let write = owner().write_key(1);
        let item = seal(
            &discover,
            b"",
            (write.public().into(), write_secret(&write)),
            data,
        );
        item.open(&discover).is_ok()
    } else {
        let signer = (owner().folder().into(), *owner().expose());
        let item = seal(&discover, b"manifest", signer, data);
        item.open_manifest(&discover).is_ok()
    }
}

fn write_secret(write: &WriteKey) -> [u8; 32] {
    *write.expose()
}

fn seal(
    discover: &DiscoverKey,
    label: &[u8],
    signer: (ItemKey, [u8; 32]),
    plain: &[u8],
) -> SignedItem {
    let salt = discover.salt();
    let aad = [&salt[..], label].concat();
    let cipher = XChaCha20Poly1305::new((&*discover.item_key()).into());
    let payload = Payload {
        msg: plain,
        aad: &aad,
    };
    let sealed = cipher
        .encrypt(XNonce::from_slice(&[5; 24]), payload)
        .expect("the input is short");
    let value = [&[5; 24][..], &sealed].concat();
    let text = [
        b"4:salt8:",
        &salt[..],
        format!("3:seqi1e1:v{}:", value.len()).as_bytes(),
        &value,
    ]
    .concat();
    let (key, secret) = signer;
    SignedItem {
        key,
        salt,
        seq: 1,
        signature: SigningKey::from_bytes(&secret).sign(&text).to_bytes(),
        value,
    }
}
