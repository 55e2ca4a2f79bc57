//! The DHT items of a folder (`docs/bep_xet.md` section 4), for a device that starts while no member it knows is online:
//! newest heads and endpoints, signed by the write key, and the manifest that names that key, signed by the owner. Both are
//! encrypted for readers and signed as BEP 44 wants it.

use std::net::{IpAddr, SocketAddr};

use chacha20poly1305::aead::{Aead, KeyInit, Payload};
use chacha20poly1305::{XChaCha20Poly1305, XNonce};
use thiserror::Error;

use super::head::Head;
use super::ids::FolderId;
use super::keys::{DiscoverKey, OwnerSeed, WriteKey, WritePublic};
use super::manifest::Manifest;
use super::signed::{self, BadSignature, Unverified};
use super::wire::{DecodeError, Reader, at_most};

/// Longest value BEP 44 nodes store, in bytes of bencode.
pub const VALUE_LEN_MAX: usize = 1000;
/// Heads in one item.
pub const HEADS_MAX: usize = 3;
/// Endpoints in one item.
pub const ENDPOINTS_MAX: usize = 8;

const VERSION: u8 = 1;
const NONCE_LEN: usize = 24;
const TAG_LEN: usize = 16;
/// Longest bencode prefix of a value: `NNN:`.
const PREFIX_LEN: usize = 4;
/// Longest text in an item, in bytes.
const PLAIN_LEN_MAX: usize = VALUE_LEN_MAX - PREFIX_LEN - NONCE_LEN - TAG_LEN;
/// Authenticated with the manifest's item, so that it is never taken for the other one.
const MANIFEST_LABEL: &[u8] = b"manifest";
/// BEP 44 signs the bencoded parts themselves, without a context in front.
const NO_CONTEXT: &[u8] = b"";

/// What the item tells. A hint: heads are checked as any other, endpoints are called as any other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DhtItem {
    /// At most [`HEADS_MAX`].
    pub heads: Vec<Unverified<Head>>,
    /// At most [`ENDPOINTS_MAX`].
    pub endpoints: Vec<SocketAddr>,
}

/// The Ed25519 public key an item is signed by and stored under.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ItemKey(pub [u8; 32]);

impl From<WritePublic> for ItemKey {
    fn from(key: WritePublic) -> Self {
        Self(key.0)
    }
}

impl From<FolderId> for ItemKey {
    fn from(folder: FolderId) -> Self {
        Self(*folder.as_bytes())
    }
}

/// An item as the DHT stores it. Whoever can read it can put it again unchanged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignedItem {
    /// `PK_w` or, for the manifest, `PK_s`, under which it is stored.
    pub key: ItemKey,
    /// Salt, under which it is stored.
    pub salt: [u8; 8],
    /// Number of this version; the larger one counts.
    pub seq: i64,
    /// Nonce and encrypted item.
    pub value: Vec<u8>,
    /// By `key`, over salt, seq and value as BEP 44 encodes them.
    pub signature: [u8; 64],
}

/// Why an item cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum ItemError {
    /// The key it is stored under did not sign it.
    #[error(transparent)]
    Signature(#[from] BadSignature),
    /// It was not encrypted with the folder's item key, or was changed since.
    #[error("the item does not decrypt")]
    Decrypt,
    /// What was encrypted is not an item.
    #[error(transparent)]
    Decode(#[from] DecodeError),
}

/// The number of a version written at `unix_millis`, after the version `last`.
pub fn next_seq(unix_millis: u64, last: Option<i64>) -> i64 {
    let now = i64::try_from(unix_millis).unwrap_or(i64::MAX);
    last.map_or(now, |last| now.max(last.saturating_add(1)))
}

impl SignedItem {
    /// Encrypts and signs `item` as version `seq`. `nonce` must be random.
    pub fn seal(
        item: &DhtItem,
        write: &WriteKey,
        seq: i64,
        nonce: [u8; NONCE_LEN],
    ) -> Result<Self, ItemError> {
        let discover = write.read_key().discover_key();
        let salt = discover.salt();
        let value = encrypt(&discover, &salt, &item.encode()?, nonce)?;
        let signature = write.sign(NO_CONTEXT, &signed_text(&salt, seq, &value));
        Ok(Self {
            key: write.public().into(),
            salt,
            seq,
            value,
            signature,
        })
    }

    /// Encrypts and signs the manifest as version `seq` of its item. `nonce` must be random. Fails if it is too long.
    pub fn seal_manifest(
        manifest: &Manifest,
        owner: &OwnerSeed,
        seq: i64,
        nonce: [u8; NONCE_LEN],
    ) -> Result<Self, ItemError> {
        let write = owner.write_key(manifest.claims().epoch);
        let discover = write.read_key().discover_key();
        let salt = discover.salt();
        let label = [&salt[..], MANIFEST_LABEL].concat();
        let value = encrypt(&discover, &label, &manifest.encode(), nonce)?;
        let signature = owner.sign(NO_CONTEXT, &signed_text(&salt, seq, &value));
        Ok(Self {
            key: owner.folder().into(),
            salt,
            seq,
            value,
            signature,
        })
    }

    /// Checks the signature.
    pub fn verify(&self) -> Result<(), BadSignature> {
        let text = signed_text(&self.salt, self.seq, &self.value);
        signed::verify(&self.key.0, NO_CONTEXT, &text, &self.signature)
    }

    /// Checks the signature and decrypts.
    pub fn open(&self, discover: &DiscoverKey) -> Result<DhtItem, ItemError> {
        self.verify()?;
        let plain = decrypt(discover, &self.salt, &self.value)?;
        Ok(DhtItem::decode(&plain)?)
    }

    /// Checks the signature and decrypts the manifest. Whether the owner signed it is for its own signature to say.
    pub fn open_manifest(&self, discover: &DiscoverKey) -> Result<Unverified<Manifest>, ItemError> {
        self.verify()?;
        let label = [&self.salt[..], MANIFEST_LABEL].concat();
        let plain = decrypt(discover, &label, &self.value)?;
        Ok(Manifest::decode(&plain)?)
    }
}

fn encrypt(
    discover: &DiscoverKey,
    label: &[u8],
    plain: &[u8],
    nonce: [u8; NONCE_LEN],
) -> Result<Vec<u8>, ItemError> {
    at_most("item bytes", plain.len() as u64, PLAIN_LEN_MAX as u64)?;
    let payload = Payload {
        msg: plain,
        aad: label,
    };
    let sealed = cipher(discover)
        .encrypt(XNonce::from_slice(&nonce), payload)
        .map_err(|_| ItemError::Decrypt)?;
    Ok([&nonce[..], &sealed].concat())
}

fn decrypt(discover: &DiscoverKey, label: &[u8], value: &[u8]) -> Result<Vec<u8>, ItemError> {
    let (nonce, sealed) = value
        .split_first_chunk::<NONCE_LEN>()
        .ok_or(ItemError::Decrypt)?;
    let payload = Payload {
        msg: sealed,
        aad: label,
    };
    cipher(discover)
        .decrypt(XNonce::from_slice(nonce), payload)
        .map_err(|_| ItemError::Decrypt)
}

fn cipher(discover: &DiscoverKey) -> XChaCha20Poly1305 {
    XChaCha20Poly1305::new((&*discover.item_key()).into())
}

/// What BEP 44 has signed: `4:salt`, `3:seq` and `1:v` with their bencoded values.
fn signed_text(salt: &[u8], seq: i64, value: &[u8]) -> Vec<u8> {
    let mut text = format!("4:salt{}:", salt.len()).into_bytes();
    text.extend_from_slice(salt);
    text.extend_from_slice(format!("3:seqi{seq}e1:v{}:", value.len()).as_bytes());
    text.extend_from_slice(value);
    text
}

impl DhtItem {
    fn encode(&self) -> Result<Vec<u8>, DecodeError> {
        at_most("heads", self.heads.len() as u64, HEADS_MAX as u64)?;
        at_most(
            "endpoints",
            self.endpoints.len() as u64,
            ENDPOINTS_MAX as u64,
        )?;
        let mut out = vec![VERSION, self.heads.len() as u8];
        for head in &self.heads {
            out.extend_from_slice(&head.claimed().encode());
        }
        out.push(self.endpoints.len() as u8);
        for endpoint in &self.endpoints {
            match endpoint.ip() {
                IpAddr::V4(ip) => {
                    out.push(4);
                    out.extend_from_slice(&ip.octets());
                }
                IpAddr::V6(ip) => {
                    out.push(6);
                    out.extend_from_slice(&ip.octets());
                }
            }
            out.extend_from_slice(&endpoint.port().to_le_bytes());
        }
        Ok(out)
    }

    fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(bytes);
        let version = u64::from(reader.u8()?);
        if version != u64::from(VERSION) {
            return Err(DecodeError::Value {
                what: "item version",
                value: version,
            });
        }
        let heads = count(&mut reader, "heads", HEADS_MAX)?;
        let heads = (0..heads)
            .map(|_| Head::read(&mut reader))
            .collect::<Result<_, _>>()?;
        let endpoints = count(&mut reader, "endpoints", ENDPOINTS_MAX)?;
        let endpoints = (0..endpoints)
            .map(|_| endpoint(&mut reader))
            .collect::<Result<_, _>>()?;
        reader.finish()?;
        Ok(Self { heads, endpoints })
    }
}

fn count(reader: &mut Reader<'_>, what: &'static str, max: usize) -> Result<u8, DecodeError> {
    let count = reader.u8()?;
    at_most(what, u64::from(count), max as u64)?;
    Ok(count)
}

fn endpoint(reader: &mut Reader<'_>) -> Result<SocketAddr, DecodeError> {
    let ip: IpAddr = match reader.u8()? {
        4 => reader.array::<4>()?.into(),
        6 => reader.array::<16>()?.into(),
        family => {
            return Err(DecodeError::Value {
                what: "address family",
                value: u64::from(family),
            });
        }
    };
    Ok(SocketAddr::new(ip, reader.u16()?))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::head::{HEAD_LEN, Head};
    use super::super::ids::Incarnation;
    use super::super::link::Suite;
    use super::super::manifest::{ManifestClaims, Revocation};
    use super::*;

    fn write_key() -> WriteKey {
        OwnerSeed::from_bytes([3; 32]).write_key(0)
    }

    fn discover() -> DiscoverKey {
        write_key().read_key().discover_key()
    }

    fn any_item() -> impl Strategy<Value = DhtItem> {
        let head = prop::collection::vec(any::<u8>(), HEAD_LEN)
            .prop_map(|bytes| Head::decode(&bytes).unwrap());
        let v4 = any::<([u8; 4], u16)>().prop_map(SocketAddr::from);
        let v6 = any::<([u8; 16], u16)>().prop_map(SocketAddr::from);
        let endpoint = prop_oneof![v4, v6];
        let heads = prop::collection::vec(head, 0..=HEADS_MAX);
        let endpoints = prop::collection::vec(endpoint, 0..=ENDPOINTS_MAX);
        (heads, endpoints).prop_map(|(heads, endpoints)| DhtItem { heads, endpoints })
    }

    fn item() -> DhtItem {
        DhtItem {
            heads: vec![],
            endpoints: vec![SocketAddr::from(([10, 0, 0, 1], 0x0102))],
        }
    }

    #[test]
    fn the_plain_text_is_as_documented() {
        assert_eq!(item().encode().unwrap(), [1, 0, 1, 4, 10, 0, 0, 1, 2, 1]);
    }

    #[test]
    fn the_signature_is_the_one_of_bep_44() {
        // The test vector of BEP 44 with salt: what is signed is normative, not our encoding of it.
        assert_eq!(
            signed_text(b"foobar", 1, b"Hello World!"),
            b"4:salt6:foobar3:seqi1e1:v12:Hello World!"
        );
        let mut item = SignedItem::seal(&item(), &write_key(), 7, [1; 24]).unwrap();
        assert_eq!(item.verify(), Ok(()));
        item.seq = 8;
        assert_eq!(
            item.open(&discover()),
            Err(ItemError::Signature(BadSignature))
        );
    }

    #[test]
    fn only_the_folders_readers_open_it() {
        let sealed = SignedItem::seal(&item(), &write_key(), 7, [1; 24]).unwrap();
        assert_eq!(sealed.open(&discover()), Ok(item()));
        let other = OwnerSeed::from_bytes([3; 32])
            .write_key(1)
            .read_key()
            .discover_key();
        assert_eq!(sealed.open(&other), Err(ItemError::Decrypt));
    }

    fn manifest(revoked: u8) -> (OwnerSeed, Manifest) {
        let owner = OwnerSeed::from_bytes([3; 32]);
        let revocations = (0..revoked).map(|n| Revocation {
            incarnation: Incarnation::from_bytes([n; 8]),
            last_seq: 1,
        });
        let claims = ManifestClaims {
            epoch: 0,
            suite: Suite::Blake3,
            write: owner.write_key(0).public(),
            flags: 0,
            revocations: revocations.collect(),
        };
        let manifest = Manifest::sign(&owner, claims).unwrap();
        (owner, manifest)
    }

    #[test]
    fn the_manifest_has_an_item_of_its_own() {
        let (owner, manifest) = manifest(50);
        let sealed = SignedItem::seal_manifest(&manifest, &owner, 7, [1; 24]).unwrap();
        assert!(sealed.value.len() + PREFIX_LEN <= VALUE_LEN_MAX);
        assert_eq!(sealed.key, owner.folder().into());
        let opened = sealed.open_manifest(&discover()).unwrap();
        assert_eq!(opened.verify(&owner.folder()), Ok(manifest));
        assert_eq!(sealed.open(&discover()), Err(ItemError::Decrypt));
        let other = SignedItem::seal(&item(), &write_key(), 7, [1; 24]).unwrap();
        assert_eq!(other.open_manifest(&discover()), Err(ItemError::Decrypt));
    }

    #[test]
    fn a_manifest_too_long_for_the_dht_is_refused() {
        let (owner, manifest) = manifest(60);
        let refused = SignedItem::seal_manifest(&manifest, &owner, 7, [1; 24]);
        assert!(matches!(
            refused,
            Err(ItemError::Decode(DecodeError::TooMany { .. }))
        ));
    }

    #[test]
    fn a_holder_of_the_write_key_who_writes_nonsense_is_refused_by_count() {
        let limit = |what, value, max| DecodeError::TooMany { what, value, max };
        assert_eq!(DhtItem::decode(&[1, 4]), Err(limit("heads", 4, 3)));
        assert_eq!(DhtItem::decode(&[1, 0, 9]), Err(limit("endpoints", 9, 8)));
        assert_eq!(
            DhtItem::decode(&[1, 0, 0, 0]),
            Err(DecodeError::Trailing { left: 1 })
        );
        assert!(matches!(
            DhtItem::decode(&[2, 0, 0]),
            Err(DecodeError::Value { value: 2, .. })
        ));
        let nine = DhtItem {
            heads: vec![],
            endpoints: vec![([1, 1, 1, 1], 1).into(); 9],
        };
        assert!(SignedItem::seal(&nine, &write_key(), 1, [0; 24]).is_err());
    }

    #[test]
    fn numbers_grow_even_when_the_clock_does_not() {
        assert_eq!(next_seq(1000, None), 1000);
        assert_eq!(next_seq(1000, Some(5)), 1000);
        assert_eq!(next_seq(1000, Some(1000)), 1001);
        assert_eq!(next_seq(1000, Some(i64::MAX)), i64::MAX);
        assert_eq!(next_seq(u64::MAX, None), i64::MAX);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn any_item_round_trips_and_fits_the_dht(item in any_item(), nonce: [u8; 24]) {
            let sealed = SignedItem::seal(&item, &write_key(), 1, nonce).unwrap();
            // Bencode puts "NNN:" in front.
            prop_assert!(sealed.value.len() + 4 <= VALUE_LEN_MAX);
            prop_assert_eq!(sealed.open(&discover()), Ok(item));
        }

        #[test]
        fn one_changed_byte_is_noticed(at in 0_usize..50, flip in 1_u8..) {
            let mut sealed = SignedItem::seal(&item(), &write_key(), 1, [9; 24]).unwrap();
            sealed.value[at] ^= flip;
            prop_assert_eq!(sealed.open(&discover()), Err(ItemError::Signature(BadSignature)));
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..900)) {
            if let Ok(item) = DhtItem::decode(&bytes) {
                prop_assert_eq!(item.encode().unwrap(), bytes);
            }
        }
    }
}
